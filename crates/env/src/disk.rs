//! Folders and files of one disk.
//!
//! # Theory
//! Reads and writes that the page cache answers are done at once, in the role's thread: a hand-over
//! to another thread costs more than they do. What waits for the medium is a future: `sync_data`,
//! `sync_all`, `sync_folder`, and `read`, which goes to a thread only when the cache has not got
//! the bytes.
//! # Failure
//! A failed sync is fatal for an I/O server (S-4): the caller ends the process. A write that
//! returned survives the process; only a sync makes it survive the machine.

use std::io;
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, ready};

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// For reading; it must exist.
    Read,
    /// For reading and writing; it must exist.
    Write,
    /// For reading and writing; made where it does not exist.
    Create,
    /// For reading and writing; it must not exist.
    CreateNew,
}

/// Space of a disk, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What may still be written.
    pub free: u64,
}

/// What a world does for [`Folder`]. Paths are relative to the folder.
pub trait FolderOps {
    /// Opens a file.
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<File>;
    /// Names in `path` (`""` is the folder itself), sorted.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// Makes a folder and its parents; one that exists is no error.
    fn create_folder(&self, path: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Renames a file over what is at `to`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Length of a file in bytes; `None` where there is none.
    fn length(&self, path: &str) -> io::Result<Option<u64>>;
    /// Makes names in `path` durable.
    fn sync_folder(&self, path: &str) -> LocalBoxFuture<'static, io::Result<()>>;
    /// Makes the whole file system durable: all that was written before the call.
    fn sync_all(&self) -> LocalBoxFuture<'static, io::Result<()>>;
    /// Space of the file system.
    fn space(&self) -> io::Result<Space>;
    /// Takes the folder for this process alone; `false` where another process has it. The hold
    /// ends with the process.
    fn take_exclusively(&self) -> io::Result<bool>;
}

/// A folder; clones share it.
#[derive(Clone)]
pub struct Folder(pub Rc<dyn FolderOps>);

impl std::ops::Deref for Folder {
    type Target = dyn FolderOps;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl Folder {
    /// Reads a whole small file.
    pub fn read_file(&self, path: &str) -> io::Result<Vec<u8>> {
        let file = self.open(path, OpenMode::Read)?;
        let length = usize::try_from(file.length()?).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Writes a whole small file so that after a crash either the old or the new one is there.
    pub async fn replace_file(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let aside = format!("{path}.new");
        let file = self.open(&aside, OpenMode::Create)?;
        file.set_length(0)?;
        file.write_at(&[bytes], 0)?;
        file.sync_data().await?;
        self.rename(&aside, path)?;
        let parent = Path::new(path).parent().and_then(Path::to_str).unwrap_or("").to_owned();
        self.sync_folder(&parent).await
    }
}

/// What a world does for [`File`].
pub trait FileOps {
    /// Reads at most `buffer.len()` bytes at `at`, in this thread; fewer at the end of the file.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    /// Reads `length` bytes at `at`, fewer at the end of the file; waits without holding up the
    /// thread when they are not in memory.
    fn read(&self, at: u64, length: usize) -> LocalBoxFuture<'static, io::Result<Bytes>>;
    /// Writes all pieces one behind the other at `at`, in this thread.
    ///
    /// Errors: a part may have been written.
    fn write_at(&self, pieces: &[&[u8]], at: u64) -> io::Result<()>;
    /// Takes space for a range, so that a write there does not find the disk full; what was never
    /// written reads as zeros.
    ///
    /// Errors: `StorageFull`.
    fn reserve(&self, at: u64, length: u64) -> io::Result<()> {
        let _ = (at, length);
        Ok(())
    }
    /// Writes all pieces one behind the other at `at`, past the page cache where the medium and the
    /// pieces' memory allow it; the work begins at the call. When it ended the bytes survive this
    /// process, and a sync that begins then covers them.
    ///
    /// Errors: a part may have been written.
    fn write_uncached(
        &self,
        pieces: Vec<Bytes>,
        at: u64,
    ) -> LocalBoxFuture<'static, io::Result<()>> {
        let slices: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
        ready(self.write_at(&slices, at)).boxed_local()
    }
    /// As `read`, but what is not in memory is not kept there; the work begins at the call.
    fn read_uncached(&self, at: u64, length: usize) -> LocalBoxFuture<'static, io::Result<Bytes>> {
        self.read(at, length)
    }
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Cuts or extends with zeros.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// The first place from `at` on that may not be a hole; none where only holes follow.
    fn data_from(&self, at: u64) -> io::Result<Option<u64>> {
        Ok((at < self.length()?).then_some(at))
    }
    /// Gives the space of a range back; it reads as zeros.
    fn punch(&self, at: u64, length: u64) -> io::Result<()>;
    /// Makes the bytes and what is needed to find them durable: all that was written before.
    fn sync_data(&self) -> LocalBoxFuture<'static, io::Result<()>>;
    /// Starts to write a range back, without waiting, so that a later sync is short.
    fn start_writeback(&self, at: u64, length: u64);
}

/// A file; clones share it.
#[derive(Clone)]
pub struct File(pub Rc<dyn FileOps>);

impl std::ops::Deref for File {
    type Target = dyn FileOps;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl File {
    /// Reads exactly `buffer.len()` bytes.
    ///
    /// Errors: `UnexpectedEof` where the file ends before.
    pub fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_at(&mut buffer[done..], at + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => done += count,
            }
        }
        Ok(())
    }
}
