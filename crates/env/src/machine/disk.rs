//! Real folders and files.
//!
//! # Theory
//! Paths are relative to a descriptor of the folder, so that a renamed or replaced parent cannot
//! move a disk's files under a running role. What the page cache answers is done in the role's
//! thread; `RWF_NOWAIT` tells whether it does.
//! # Failure
//! Errors of the kernel come back as they are. A sync that failed is never repeated here: the
//! kernel has dropped the bytes, a second sync would lie (S-4).
//! Large writes and reads of what is not in memory go past the page cache (`O_DIRECT`), by a second
//! descriptor of the same file: a copy into fresh pages of the cache costs several times what all
//! else of the way costs. File systems without it, and memory that does not begin at pages, get the
//! page cache.
//! # Not here
//! io_uring.

use std::cell::{OnceCell, RefCell};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, ready};
use rustix::fs::{
    AtFlags, CWD, Dir, FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, fallocate,
    fdatasync, flock, fstat, fstatvfs, fsync, ftruncate, mkdirat, openat, renameat, statat, syncfs,
    unlinkat,
};
use rustix::io::{Errno, retry_on_intr};

use super::pool::Pool;
use crate::{File, FileOps, FolderOps, OpenMode, PAGE_SIZE, PageBuffer, Space};

/// A folder of the machine.
pub(super) struct MachineFolder {
    descriptor: Arc<OwnedFd>,
    lock: RefCell<Option<OwnedFd>>,
    pool: Rc<Pool>,
}

impl MachineFolder {
    /// Opens a folder that exists; a missing one may be a disk that is not mounted.
    pub(super) fn open(path: &Path, pool: Rc<Pool>) -> io::Result<Self> {
        let descriptor =
            Arc::new(retry_on_intr(|| openat(CWD, path, FOLDER_FLAGS, Mode::empty()))?);
        Ok(Self { descriptor, lock: RefCell::default(), pool })
    }

    fn open_folder(&self, path: &str) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { checked(path)? };
        Ok(retry_on_intr(|| openat(&*self.descriptor, path, FOLDER_FLAGS, Mode::empty()))?)
    }
}

impl FolderOps for MachineFolder {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<File> {
        let flags = match mode {
            OpenMode::Read => OFlags::RDONLY,
            OpenMode::Write => OFlags::RDWR,
            OpenMode::Create => OFlags::RDWR | OFlags::CREATE,
            OpenMode::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        let path = checked(path)?;
        let open =
            || openat(&*self.descriptor, path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
        let descriptor = Arc::new(retry_on_intr(open)?);
        Ok(File(Rc::new(MachineFile {
            descriptor,
            direct: OnceCell::new(),
            pool: self.pool.clone(),
        })))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(self.open_folder(path)?)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_folder(&self, path: &str) -> io::Result<()> {
        if path.is_empty() {
            return Ok(());
        }
        let path = checked(path)?;
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            match mkdirat(&*self.descriptor, &path[..end], Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // `EXIST` may have been a file.
        self.open_folder(path).map(drop)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        Ok(unlinkat(&*self.descriptor, checked(path)?, AtFlags::empty())?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&*self.descriptor, checked(from)?, &*self.descriptor, checked(to)?)?)
    }

    fn length(&self, path: &str) -> io::Result<Option<u64>> {
        match statat(&*self.descriptor, checked(path)?, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => {
                Ok(Some(stat.st_size.unsigned_abs()))
            }
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn sync_folder(&self, path: &str) -> LocalBoxFuture<'static, io::Result<()>> {
        match self.open_folder(path) {
            Ok(folder) => self.pool.run(move || Ok(fsync(folder)?)).boxed_local(),
            Err(error) => ready(Err(error)).boxed_local(),
        }
    }

    fn sync_all(&self) -> LocalBoxFuture<'static, io::Result<()>> {
        let folder = self.descriptor.clone();
        self.pool.run(move || Ok(syncfs(folder)?)).boxed_local()
    }

    fn space(&self) -> io::Result<Space> {
        let stat = fstatvfs(&*self.descriptor)?;
        Ok(Space { total: stat.f_blocks * stat.f_frsize, free: stat.f_bavail * stat.f_frsize })
    }

    fn take_exclusively(&self) -> io::Result<bool> {
        let mut lock = self.lock.borrow_mut();
        if lock.is_some() {
            return Ok(true);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = openat(&*self.descriptor, LOCK_NAME, flags, Mode::RUSR | Mode::WUSR)?;
        match retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => {
                *lock = Some(file);
                Ok(true)
            }
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// A file of the machine.
struct MachineFile {
    descriptor: Arc<OwnedFd>,
    /// The same file past the page cache; none where the file system has no such way.
    direct: OnceCell<Option<Arc<OwnedFd>>>,
    pool: Rc<Pool>,
}

impl FileOps for MachineFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let position = at + done as u64;
            let rest = &mut buffer[done..];
            match retry_on_intr(|| rustix::io::pread(&*self.descriptor, &mut *rest, position))? {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }

    fn read(&self, at: u64, length: usize) -> LocalBoxFuture<'static, io::Result<Bytes>> {
        let mut bytes = PageBuffer::new(length);
        match read_cached(&self.descriptor, &mut bytes, at) {
            Ok((count, true)) => {
                bytes.truncate(count);
                ready(Ok(bytes.freeze())).boxed_local()
            }
            Ok((count, false)) => {
                let descriptor = self.descriptor.clone();
                let rest = move || {
                    let count = read_until(&descriptor, &mut bytes, at, count)?;
                    bytes.truncate(count);
                    Ok(bytes.freeze())
                };
                self.pool.run(rest).boxed_local()
            }
            Err(error) => ready(Err(error)).boxed_local(),
        }
    }

    fn write_at(&self, pieces: &[&[u8]], at: u64) -> io::Result<()> {
        write_all(&self.descriptor, pieces, at)
    }

    fn reserve(&self, at: u64, length: u64) -> io::Result<()> {
        match retry_on_intr(|| fallocate(&*self.descriptor, FallocateFlags::empty(), at, length)) {
            // Then the write itself tells.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write_uncached(
        &self,
        pieces: Vec<Bytes>,
        at: u64,
    ) -> LocalBoxFuture<'static, io::Result<()>> {
        let fits = is_page(at) && pieces.iter().all(is_aligned);
        let Some(direct) = self.direct().filter(|_| fits) else {
            let slices: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
            return ready(self.write_at(&slices, at)).boxed_local();
        };
        let cached = self.descriptor.clone();
        let write = move || {
            let slices: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
            match write_all(&direct, &slices, at) {
                // Blocks of this medium are larger than our pages.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    write_all(&cached, &slices, at)
                }
                written => written,
            }
        };
        self.pool.run(write).boxed_local()
    }

    fn read_uncached(&self, at: u64, length: usize) -> LocalBoxFuture<'static, io::Result<Bytes>> {
        // Memory is not even looked at: an attempt to read from it would begin to fill it.
        let Some(direct) = self.direct().filter(|_| is_page(at)) else {
            return self.read(at, length);
        };
        let descriptor = self.descriptor.clone();
        let read = move || {
            let mut bytes = PageBuffer::new(length);
            // It ends at a whole page; the rest of the last one is read as usual.
            let end = length - length % PAGE_SIZE;
            let done = match read_until(&direct, &mut bytes[..end], at, 0) {
                // Blocks of this medium are larger than our pages, or the file ends within one.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => 0,
                done => done?,
            };
            let count = read_until(&descriptor, &mut bytes, at, done)?;
            bytes.truncate(count);
            Ok(bytes.freeze())
        };
        self.pool.run(read).boxed_local()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(fstat(&*self.descriptor)?.st_size.unsigned_abs())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        Ok(retry_on_intr(|| ftruncate(&*self.descriptor, length))?)
    }

    fn data_from(&self, at: u64) -> io::Result<Option<u64>> {
        // The descriptor's own position, which this moves, is used by nobody.
        match retry_on_intr(|| rustix::fs::seek(&*self.descriptor, SeekFrom::Data(at))) {
            Ok(place) => Ok(Some(place)),
            Err(Errno::NXIO) => Ok(None),
            // A file system without holes.
            Err(Errno::INVAL) => Ok((at < self.length()?).then_some(at)),
            Err(error) => Err(error.into()),
        }
    }

    fn punch(&self, at: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| fallocate(&*self.descriptor, flags, at, length)) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeros(at, length),
            Err(error) => Err(error.into()),
        }
    }

    fn sync_data(&self) -> LocalBoxFuture<'static, io::Result<()>> {
        let descriptor = self.descriptor.clone();
        self.pool.run(move || Ok(fdatasync(descriptor)?)).boxed_local()
    }

    fn start_writeback(&self, at: u64, length: u64) {
        let descriptor = self.descriptor.clone();
        // In the pool, because it waits when the disk's queue is full. The result is dropped: only
        // a sync tells whether bytes are safe, and it tells errors of write-back too.
        drop(self.pool.run(move || {
            start_writeback(&descriptor, at, length);
            Ok(())
        }));
    }
}

impl MachineFile {
    fn direct(&self) -> Option<Arc<OwnedFd>> {
        let open = || {
            // By its descriptor: the name may be another file's by now.
            let path = format!("/proc/self/fd/{}", self.descriptor.as_raw_fd());
            let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
            retry_on_intr(|| openat(CWD, path.as_str(), flags, Mode::empty())).ok().map(Arc::new)
        };
        self.direct.get_or_init(open).clone()
    }

    /// The file's length stays as it is, as with a hole.
    fn write_zeros(&self, at: u64, length: u64) -> io::Result<()> {
        let zeros = [0; 64 << 10];
        let end = at.saturating_add(length).min(self.length()?);
        let mut at = at;
        while at < end {
            let count = (end - at).min(zeros.len() as u64);
            let piece = usize::try_from(count).expect("at most the length of `zeros`");
            self.write_at(&[&zeros[..piece]], at)?;
            at += count;
        }
        Ok(())
    }
}

fn write_all(descriptor: &OwnedFd, pieces: &[&[u8]], at: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut rest = &mut slices[..];
    let mut at = at;
    // Empty slices in front would make a finished write look like a stuck one.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(PIECES_MAX)];
        let count = match rustix::io::pwritev(descriptor, batch, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        at += count as u64;
        IoSlice::advance_slices(&mut rest, count);
    }
    Ok(())
}

/// Reads what is in memory: how many bytes, and whether that was all that the file has.
fn read_cached(descriptor: &OwnedFd, bytes: &mut [u8], at: u64) -> io::Result<(usize, bool)> {
    if bytes.is_empty() {
        return Ok((0, true));
    }
    let vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let Ok(offset) = libc::off_t::try_from(at) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // SAFETY: the vector names the bytes of `bytes`, which live until the call returns.
    let count =
        unsafe { libc::preadv2(descriptor.as_raw_fd(), &vector, 1, offset, libc::RWF_NOWAIT) };
    let Ok(count) = usize::try_from(count) else {
        // Not in memory, or a file system that cannot tell: a thread reads it.
        return Ok((0, false));
    };
    assert!(count <= bytes.len(), "the kernel read more than asked");
    let at_end = || -> io::Result<bool> {
        Ok(at + count as u64 >= fstat(descriptor)?.st_size.unsigned_abs())
    };
    Ok((count, count == bytes.len() || at_end()?))
}

/// Reads on from `done` bytes until `bytes` is full or the file ends; how many there are then.
fn read_until(
    descriptor: &OwnedFd,
    bytes: &mut [u8],
    at: u64,
    mut done: usize,
) -> io::Result<usize> {
    while done < bytes.len() {
        let position = at + done as u64;
        match retry_on_intr(|| rustix::io::pread(descriptor, &mut bytes[done..], position))? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

fn is_page(at: u64) -> bool {
    at.is_multiple_of(PAGE_SIZE as u64)
}

/// Whether direct I/O takes these bytes.
fn is_aligned(bytes: &Bytes) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of(PAGE_SIZE) && bytes.len().is_multiple_of(PAGE_SIZE)
}

fn start_writeback(descriptor: &OwnedFd, at: u64, length: u64) {
    let (Ok(at), Ok(length)) = (libc::off64_t::try_from(at), libc::off64_t::try_from(length))
    else {
        return;
    };
    let descriptor = descriptor.as_fd().as_raw_fd();
    // SAFETY: only numbers are passed, and the descriptor is open.
    unsafe { libc::sync_file_range(descriptor, at, length, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Refuses paths that leave the folder.
fn checked(path: &str) -> io::Result<&str> {
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || !inside {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path leaves its folder"));
    }
    Ok(path)
}

const FOLDER_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

const LOCK_NAME: &str = "lock";

/// IOV_MAX of Linux.
const PIECES_MAX: usize = 1024;
