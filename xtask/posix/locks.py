"""flock and fcntl locks between two mounts: exclusion, ranges, death of the holder, waiting."""
import fcntl, os, signal, struct, subprocess, sys, time

mount, other = os.environ["MOUNT"], os.environ["OTHER"]
open(f"{mount}/file", "w").write("0")
a, b = open(f"{mount}/file", "r+"), open(f"{other}/file", "r+")

def refused(call, *arguments):
    try:
        call(*arguments)
    except BlockingIOError:
        return True
    return False

fcntl.flock(a, fcntl.LOCK_EX)
assert refused(fcntl.flock, b, fcntl.LOCK_EX | fcntl.LOCK_NB), "flock does not exclude the other mount"
fcntl.flock(a, fcntl.LOCK_UN)
fcntl.flock(b, fcntl.LOCK_SH | fcntl.LOCK_NB)
fcntl.flock(a, fcntl.LOCK_SH | fcntl.LOCK_NB)
fcntl.flock(a, fcntl.LOCK_UN), fcntl.flock(b, fcntl.LOCK_UN)
fcntl.lockf(a, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
fcntl.lockf(b, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10)
assert refused(fcntl.lockf, b, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5), "ranges do not exclude the other mount"
fcntl.lockf(a, fcntl.LOCK_UN), fcntl.lockf(b, fcntl.LOCK_UN)

# A counter under a lock, by eight processes over both mounts, loses no step.
COUNT = r"""
import fcntl, sys
for _ in range(int(sys.argv[2])):
    with open(sys.argv[1], "r+") as file:
        (fcntl.flock if sys.argv[3] == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX)
        value = int(file.read()); file.seek(0); file.write(str(value + 1)); file.flush()
"""
for kind in ("flock", "lockf"):
    open(f"{mount}/file", "w").write("0")
    run = lambda where: subprocess.Popen([sys.executable, "-c", COUNT, f"{where}/file", "25", kind])
    running = [run(where) for where in (mount, other) * 4]
    assert all(process.wait() == 0 for process in running)
    value = open(f"{other}/file").read()
    assert value == "200", f"{kind}: {value} of 200 steps"

# The lock of a process that is killed is free.
HOLD = "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(1000)"
holder = subprocess.Popen([sys.executable, "-c", HOLD, f"{mount}/file"], stdout=subprocess.PIPE)
holder.stdout.readline()
assert refused(fcntl.lockf, b, fcntl.LOCK_EX | fcntl.LOCK_NB)
holder.send_signal(signal.SIGKILL)
holder.wait()
fcntl.lockf(b, fcntl.LOCK_EX)

# A wait ends by a signal.
class Alarm(Exception): pass
def ring(*_): raise Alarm
signal.signal(signal.SIGALRM, ring)
signal.alarm(1)
try:
    fcntl.lockf(a, fcntl.LOCK_EX) if refused(fcntl.lockf, a, fcntl.LOCK_EX | fcntl.LOCK_NB) else sys.exit("not excluded")
    sys.exit("it waited for nothing")
except Alarm:
    pass
print("flock and ranges, 400 steps by 8 processes, a killed holder, an interrupted wait")
