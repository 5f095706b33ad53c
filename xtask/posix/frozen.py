"""One server frozen (SIGSTOP) in the middle of writes and reads: no call may take 5 s."""
import glob, os, signal, subprocess, sys, threading, time

mount, data = os.environ["MOUNT"], os.path.dirname(os.environ["CLUSTER"])
def processes(server):
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            if f"{data}/server-{server}\0" in open(path).read():
                found.append(int(path.split("/")[2]))
        except OSError:
            pass
    return found
if not processes(1):
    print("the cluster's processes are not found"), sys.exit(77)
def tell(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass  # Its main controller, not yet stopped itself, replaced it.
longest, going, failure = {}, True, []
def work(name, call):
    try:
        while going:
            begun = time.monotonic()
            call()
            longest[name] = max(longest.get(name, 0), time.monotonic() - begun)
    except Exception as error:
        failure.append(f"{name}: {error}")
block, count = os.urandom(1 << 20), [0]
open(f"{mount}/read", "wb").write(block * 64)
def write():
    with open(f"{mount}/write", "wb") as file:
        file.write(block), os.fsync(file.fileno())
def make():
    count[0] += 1
    open(f"{mount}/n{count[0]}", "w").close()
def read():
    with open(f"{mount}/read", "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 20):
            pass
threads = [threading.Thread(target=work, args=pair) for pair in (("write", write), ("create", make), ("read", read))]
[thread.start() for thread in threads]
worst = {}
for server in range(1, 7):
    time.sleep(3)
    longest.clear()
    pids = processes(server)
    tell(pids, signal.SIGSTOP)
    time.sleep(8)
    tell(pids, signal.SIGCONT)
    worst[server] = max(longest.values(), default=8)
    time.sleep(2)
going = False
[thread.join() for thread in threads]
if failure:
    sys.exit(str(failure))
text = ", ".join(f"server {server} {span:.1f} s" for server, span in worst.items())
if max(worst.values()) >= 5:
    sys.exit(f"stalls of 5 s or more: {text}")
print(f"longest stalls: {text}")
