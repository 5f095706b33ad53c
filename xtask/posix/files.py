"""Files in unusual states: without names, open and removed, sparse, mapped by several, copied, times."""
import ctypes, errno, mmap, os, subprocess, sys, time

mount, other, done = os.environ["MOUNT"], os.environ["OTHER"], []
at = lambda name: f"{mount}/{name}"
libc = ctypes.CDLL(None, use_errno=True)

# O_TMPFILE, with and without a name later.
fd = os.open(mount, os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(fd, b"x" * 100_000)
assert os.fstat(fd).st_nlink == 0
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
linked = libc.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, at("named").encode(), AT_SYMLINK_FOLLOW)
assert linked == 0, os.strerror(ctypes.get_errno())
os.close(fd)
assert open(f"{other}/named", "rb").read() == b"x" * 100_000
done.append("O_TMPFILE")

# Open and removed here.
with open(at("gone"), "w+b") as file:
    file.write(b"y" * 50_000), file.flush(), os.unlink(at("gone"))
    file.write(b"z"), file.seek(0)
    assert file.read() == b"y" * 50_000 + b"z" and os.fstat(file.fileno()).st_nlink == 0
done.append("open after unlink")

# Huge offsets.
fd = os.open(at("sparse"), os.O_RDWR | os.O_CREAT)
for place in (0, 1 << 32, 1 << 40, (1 << 45) + 5):
    os.pwrite(fd, b"here", place)
    assert os.pread(fd, 4, place) == b"here"
assert os.fstat(fd).st_size == (1 << 45) + 9
assert os.lseek(fd, 4096, os.SEEK_DATA) <= 1 << 32
assert os.pread(fd, 100, 1 << 44) == bytes(100)
os.ftruncate(fd, 10)
assert os.fstat(fd).st_size == 10
os.close(fd)
done.append("offsets to 2^45")

# One mapping, two processes.
with open(at("map"), "w+b") as file:
    file.truncate(1 << 20)
    shared = mmap.mmap(file.fileno(), 1 << 20)
    CHILD = "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); assert m[5000:5005] == b'hello'; m[9000:9005] = b'world'; m.flush()"
    shared[5000:5005] = b"hello"
    assert subprocess.run([sys.executable, "-c", CHILD, at("map")]).returncode == 0
    assert shared[9000:9005] == b"world"
    shared.flush()
data = open(f"{other}/map", "rb").read()
assert data[5000:5005] == b"hello" and data[9000:9005] == b"world"
done.append("shared mapping")

# copy_file_range.
source = os.urandom(3_000_001)
open(at("from"), "wb").write(source)
with open(at("from"), "rb") as a, open(at("to"), "w+b") as b:
    left = len(source)
    while left:
        left -= os.copy_file_range(a.fileno(), b.fileno(), left)
assert open(f"{other}/to", "rb").read() == source
done.append("copy_file_range")

# posix_fallocate grows the file; what cannot fit is refused.
with open(at("room"), "wb") as file:
    os.posix_fallocate(file.fileno(), 0, 10_000_000)
    assert os.fstat(file.fileno()).st_size == 10_000_000
    try:
        os.posix_fallocate(file.fileno(), 0, 1 << 60)
        sys.exit("posix_fallocate of an exbibyte was promised")
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    assert os.fstat(file.fileno()).st_size == 10_000_000
done.append("posix_fallocate")

# relatime: a read after a write moves the time of access.
open(at("read"), "wb").write(b"x" * 10_000)
os.utime(at("read"), ns=(1_000_000_000, 2_000_000_000))
open(at("read"), "rb").read()
if os.stat(at("read")).st_atime_ns == 1_000_000_000:
    done.append("no times of access (as noatime)")
else:
    done.append("relatime")
print(", ".join(done))
