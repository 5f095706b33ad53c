"""SQLite: a writer is killed with SIGKILL again and again, in WAL and rollback modes; the other mount checks."""
import os, random, signal, sqlite3, subprocess, sys, time

KILLS = int(os.environ.get("SQLITE_KILLS", "12"))
WRITER = r"""
import sqlite3, sys, os, random
path, mode, log = sys.argv[1:]
db = sqlite3.connect(path, timeout=30, isolation_level=None)
db.execute(f"pragma journal_mode={mode}"); db.execute("pragma synchronous=full")
db.execute("create table if not exists t(id integer primary key, pair integer, fill blob)")
db.execute("create index if not exists i on t(pair)")
out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
rng = random.Random(os.getpid())
while True:
    db.execute("begin immediate")
    at = db.execute("select coalesce(max(id), 0) from t").fetchone()[0] + 1
    for id in (at, at + 1):
        db.execute("insert into t values(?, ?, ?)", (id, at, rng.randbytes(rng.randrange(9000))))
    if rng.random() < .3:
        db.execute("delete from t where pair in (select pair from t where pair < ? limit 1)", (at - 200,))
    db.execute("commit")
    os.write(log and out, b"%d\n" % at)  # The commit was acknowledged.
"""
mount, other, scratch = (os.environ[name] for name in ("MOUNT", "OTHER", "SCRATCH"))
commits = 0
for mode in ("delete", "truncate", "persist", "wal"):
    path, log = f"{mount}/{mode}.db", f"{scratch}/{mode}.log"
    for _ in range(KILLS):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path, mode, log], stderr=subprocess.PIPE)
        before = os.path.getsize(log) if os.path.exists(log) else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and writer.poll() is None:
            if os.path.exists(log) and os.path.getsize(log) > before + 20:
                break
            time.sleep(.01)
        time.sleep(random.random() * .2)
        if writer.poll() is not None:
            sys.exit(f"{mode}: the writer failed: {writer.stderr.read().decode()}")
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        acknowledged = [int(line) for line in open(log).read().split()]
        # A shared-memory index (WAL) needs one machine: it is checked where it was written.
        where = mount if mode == "wal" else other
        db = sqlite3.connect(f"{where}/{mode}.db", timeout=60)
        result = db.execute("pragma integrity_check").fetchall()
        if result != [("ok",)]:
            sys.exit(f"{mode}: {result[:5]}")
        halves = db.execute("select pair, count(*) from t group by pair having count(*) <> 2").fetchall()
        if halves:
            sys.exit(f"{mode}: half commits {halves[:5]}")
        last = db.execute("select coalesce(max(pair), 0) from t").fetchone()[0]
        if acknowledged and last < acknowledged[-1]:
            sys.exit(f"{mode}: commit {acknowledged[-1]} was acknowledged, the last one there is {last}")
        db.close()
    commits += len(acknowledged)
print(f"{KILLS} kills in each of 4 journal modes, {commits} commits, all there, integrity_check ok")
