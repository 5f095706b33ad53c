//! The kernel's FUSE protocol: requests read from `/dev/fuse`, answers written to it.
//!
//! # Theory
//! ```text
//! request   | header 40 | fields of the operation | name NUL ... or bytes |
//! answer    | length 4 | error 4 | number of the request 8 | fields | bytes |
//! notice    the same with number 0, and its kind where the error stands
//! ```
//! All numbers as the machine has them. Version 7.38, as in the kernel's `fuse.h`; from a kernel that
//! has less, features are not asked for.
//! # Failure
//! A request that is shorter than its fields is answered with `EINVAL` where its number can be read. A request is answered once: a
//! task that ended without doing so leaves `EIO`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::errno::{Errno, Outcome};

/// What the kernel asks for.
pub mod op {
    #![allow(missing_docs, reason = "named as in the kernel's `fuse.h`")]
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
}

/// Features of `INIT`, as in the kernel's `fuse.h`.
pub mod feature {
    #![allow(missing_docs, reason = "named as in the kernel's `fuse.h`")]
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const POSIX_LOCKS: u32 = 1 << 1;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const DONT_MASK: u32 = 1 << 6;
    pub const FLOCK_LOCKS: u32 = 1 << 10;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const POSIX_ACL: u32 = 1 << 20;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    pub const EXPLICIT_INVAL_DATA: u32 = 1 << 25;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
    pub const SETXATTR_EXT: u32 = 1 << 29;
}

/// Bytes of a request's header.
const HEADER: usize = 40;
/// Bytes of one request of the kernel: of what it writes or reads at a time.
pub const REQUEST_MAX: u32 = 1 << 20;
/// Bytes of the longest request: a write with its header, rounded up.
pub const BUFFER: usize = REQUEST_MAX as usize + (64 << 10);
const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_INVAL_ENTRY: i32 = 3;
const NOTIFY_STORE: i32 = 4;
/// The kernel asks for the name again, and need not let go of what it stands for.
const EXPIRE_ONLY: u32 = 1;

/// A request's header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// What is asked for; see [`op`].
    pub opcode: u32,
    /// Number of the request.
    pub unique: u64,
    /// The inode that it is about.
    pub node: u64,
    /// Who asks.
    pub uid: u32,
    /// Who asks.
    pub gid: u32,
    /// Who asks: the thread.
    pub pid: u32,
}

/// The rest of a request, read from its front.
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// A header, and what follows it.
    pub fn parse(request: &'a [u8]) -> Outcome<(Header, Self)> {
        let mut fields = Fields(request);
        let length = fields.u32()? as usize;
        let header = Header {
            opcode: fields.u32()?,
            unique: fields.u64()?,
            node: fields.u64()?,
            uid: fields.u32()?,
            gid: fields.u32()?,
            pid: fields.u32()?,
        };
        let body = request.get(HEADER..length).ok_or(Errno::INVAL)?;
        Ok((header, Fields(body)))
    }

    /// The next bytes.
    pub fn take(&mut self, count: usize) -> Outcome<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> Outcome<u32> {
        let bytes = self.take(4)?;
        Ok(u32::from_ne_bytes(bytes.try_into().expect("four were taken")))
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Outcome<u64> {
        let bytes = self.take(8)?;
        Ok(u64::from_ne_bytes(bytes.try_into().expect("eight were taken")))
    }

    /// A name with a NUL behind it.
    pub fn name(&mut self) -> Outcome<Bytes> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        let name = Bytes::copy_from_slice(self.take(end)?);
        self.take(1)?;
        Ok(name)
    }
}

/// The open `/dev/fuse` of one mount.
pub struct Device {
    fd: OwnedFd,
    /// Requests that tasks work on, for `INTERRUPT`.
    running: RefCell<BTreeMap<u64, Rc<Running>>>,
}

/// A request that a task works on.
pub struct Running {
    /// The thread that waits for it.
    pub pid: u32,
    /// A signal has come for it.
    pub interrupted: Notify,
    is_answered: Cell<bool>,
}

impl Device {
    /// Over the descriptor of a mount; it must not block.
    pub fn new(fd: OwnedFd) -> Rc<Self> {
        Rc::new(Self { fd, running: RefCell::default() })
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A request that a task works on.
    pub fn running(&self, unique: u64) -> Option<Rc<Running>> {
        self.running.borrow().get(&unique).cloned()
    }

    fn send(&self, unique: u64, error: i32, parts: [&[u8]; 2]) {
        let length = 16 + parts[0].len() + parts[1].len();
        let mut head = [0; 16];
        head[..4].copy_from_slice(&(length as u32).to_ne_bytes());
        head[4..8].copy_from_slice(&error.to_ne_bytes());
        head[8..].copy_from_slice(&unique.to_ne_bytes());
        let all = [IoSlice::new(&head), IoSlice::new(parts[0]), IoSlice::new(parts[1])];
        match rustix::io::writev(&self.fd, &all) {
            // The request was given up, or the mount has ended.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => {}
            Err(error) => {
                tracing::warn!(%error, unique, "the kernel does not take an answer");
                if unique != 0 && error == Errno::INVAL {
                    // Whoever waits must not wait for ever.
                    let mut short = head;
                    short[..4].copy_from_slice(&16_u32.to_ne_bytes());
                    short[4..8].copy_from_slice(&(-Errno::IO.raw_os_error()).to_ne_bytes());
                    let _ = rustix::io::write(&self.fd, &short);
                }
            }
        }
    }
}

/// Tells the kernel that its pages of a file, or of a listing, are stale; may wait for requests to be
/// answered, so never call it where they are.
///
/// Errors: the kernel's, `ENOENT` where it does not know the file.
pub fn drop_pages(device: impl AsFd, node: u64) -> Result<(), Errno> {
    let mut notice = [0; 40];
    notice[..4].copy_from_slice(&40_u32.to_ne_bytes());
    notice[4..8].copy_from_slice(&NOTIFY_INVAL_INODE.to_ne_bytes());
    notice[16..24].copy_from_slice(&node.to_ne_bytes());
    // From 0, and length 0: all of it.
    rustix::io::write(device, &notice).map(drop)
}

/// Gives the kernel bytes of a file to keep as its pages; may wait as [`drop_pages`].
///
/// Errors: the kernel's, `ENOENT` where it does not know the file.
pub fn store_pages(device: impl AsFd, node: u64, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    let mut notice = [0; 40];
    notice[..4].copy_from_slice(&(40 + bytes.len() as u32).to_ne_bytes());
    notice[4..8].copy_from_slice(&NOTIFY_STORE.to_ne_bytes());
    notice[16..24].copy_from_slice(&node.to_ne_bytes());
    notice[24..32].copy_from_slice(&at.to_ne_bytes());
    notice[32..36].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
    rustix::io::writev(device, &[IoSlice::new(&notice), IoSlice::new(bytes)]).map(drop)
}

/// Tells the kernel that attributes of an inode are stale; it never waits for that.
pub fn drop_attributes(device: impl AsFd, node: u64) {
    let mut notice = [0; 40];
    notice[..4].copy_from_slice(&40_u32.to_ne_bytes());
    notice[4..8].copy_from_slice(&NOTIFY_INVAL_INODE.to_ne_bytes());
    notice[16..24].copy_from_slice(&node.to_ne_bytes());
    // From before the first byte: no pages.
    notice[24..32].copy_from_slice(&(-1_i64).to_ne_bytes());
    // An error: it does not know the inode, or the mount is ending.
    let _ = rustix::io::write(device, &notice);
}

/// Tells the kernel that it must ask for a name again; waits until nobody changes the directory.
///
/// Errors: the kernel's, `ENOENT` where it does not know the name.
pub fn drop_name(device: impl AsFd, directory: u64, name: &[u8]) -> Result<(), Errno> {
    let length = 16 + 16 + name.len() + 1;
    let mut notice = vec![0; length];
    notice[..4].copy_from_slice(&(length as u32).to_ne_bytes());
    notice[4..8].copy_from_slice(&NOTIFY_INVAL_ENTRY.to_ne_bytes());
    notice[16..24].copy_from_slice(&directory.to_ne_bytes());
    notice[24..28].copy_from_slice(&(name.len() as u32).to_ne_bytes());
    notice[28..32].copy_from_slice(&EXPIRE_ONLY.to_ne_bytes());
    notice[32..32 + name.len()].copy_from_slice(name);
    rustix::io::write(device, &notice).map(drop)
}

/// The duty to answer one request.
pub struct Reply {
    device: Rc<Device>,
    unique: u64,
    running: Option<Rc<Running>>,
    is_done: bool,
}

impl Reply {
    /// For a request just read.
    pub fn new(device: &Rc<Device>, unique: u64) -> Self {
        Self { device: device.clone(), unique, running: None, is_done: false }
    }

    /// A task works on it from now on: signals are told to it.
    pub fn run(&mut self, pid: u32) -> Rc<Running> {
        let running = Running { pid, interrupted: Notify::new(), is_answered: Cell::new(false) };
        let running = Rc::new(running);
        self.device.running.borrow_mut().insert(self.unique, running.clone());
        self.running = Some(running.clone());
        running
    }

    fn send(&mut self, error: i32, parts: [&[u8]; 2]) {
        self.is_done = true;
        if let Some(running) = self.running.take() {
            self.device.running.borrow_mut().remove(&self.unique);
            if running.is_answered.replace(true) {
                return; // It was interrupted.
            }
        }
        self.device.send(self.unique, error, parts);
    }

    /// It failed.
    pub fn error(mut self, error: Errno) {
        self.send(-error.raw_os_error(), [&[], &[]]);
    }

    /// It is done; there is nothing to say.
    pub fn ok(mut self) {
        self.send(0, [&[], &[]]);
    }

    /// Bytes.
    pub fn data(mut self, bytes: &[u8]) {
        self.send(0, [bytes, &[]]);
    }

    /// Fields.
    pub fn fields(mut self, fields: &Answer) {
        self.send(0, [&fields.0, &[]]);
    }

    /// How it went.
    pub fn outcome(self, outcome: Outcome<()>) {
        match outcome {
            Ok(()) => self.ok(),
            Err(error) => self.error(error),
        }
    }

    /// Nothing is said; for requests that have no answer.
    pub fn none(mut self) {
        self.is_done = true;
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.is_done {
            self.send(-Errno::IO.raw_os_error(), [&[], &[]]);
        }
    }
}

impl Device {
    /// Whoever waits for the request is told `EINTR` now; what was begun goes on.
    pub fn give_up(&self, unique: u64, running: &Running) {
        if !running.is_answered.replace(true) {
            self.running.borrow_mut().remove(&unique);
            self.send(unique, -Errno::INTR.raw_os_error(), [&[], &[]]);
        }
    }
}

/// Fields of an answer.
#[derive(Default)]
pub struct Answer(pub Vec<u8>);

impl Answer {
    /// With room.
    pub fn new() -> Self {
        Self(Vec::with_capacity(160))
    }

    /// 16 bits.
    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// 32 bits.
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// 64 bits.
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// Attributes: `fuse_attr`.
    pub fn attr(self, attr: &Attr) -> Self {
        self.u64(attr.ino)
            .u64(attr.size)
            .u64(attr.size.div_ceil(512) * u64::from(attr.has_blocks))
            .u64(attr.times[0].0)
            .u64(attr.times[1].0)
            .u64(attr.times[2].0)
            .u32(attr.times[0].1)
            .u32(attr.times[1].1)
            .u32(attr.times[2].1)
            .u32(attr.mode)
            .u32(attr.nlink)
            .u32(attr.uid)
            .u32(attr.gid)
            .u32(attr.rdev)
            .u32(attr.block)
            .u32(0)
    }

    /// A name's inode: `fuse_entry_out`; how long name and attributes are believed, in milliseconds.
    pub fn entry(self, attr: &Attr, name_ms: u64, attributes_ms: u64) -> Self {
        let split = |ms: u64| (ms / 1000, (ms % 1000) as u32 * 1_000_000);
        let (name, attributes) = (split(name_ms), split(attributes_ms));
        self.u64(attr.ino)
            .u64(0)
            .u64(name.0)
            .u64(attributes.0)
            .u32(name.1)
            .u32(attributes.1)
            .attr(attr)
    }

    /// An entry of a listing, with a name: `fuse_dirent`.
    pub fn listed(mut self, ino: u64, place: u64, kind: u32, name: &[u8]) -> Self {
        self = self.u64(ino).u64(place).u32(name.len() as u32).u32(kind);
        self.0.extend_from_slice(name);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }
}

/// Attributes as the kernel takes them.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes take space.
    pub has_blocks: bool,
    /// Last access, change of bytes, change of attributes: seconds (as two's complement) and
    /// nanoseconds.
    pub times: [(u64, u32); 3],
    /// Kind and permissions.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of a device node.
    pub rdev: u32,
    /// Preferred bytes of a request.
    pub block: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&(HEADER as u32 + body.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(&opcode.to_ne_bytes());
        bytes.extend_from_slice(&7_u64.to_ne_bytes());
        bytes.extend_from_slice(&8_u64.to_ne_bytes());
        bytes.extend_from_slice(&[0; 16]);
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn fields_come_in_order() {
        let bytes = request(op::LOOKUP, b"\x01\0\0\0name\0rest");
        let (header, mut fields) = Fields::parse(&bytes).expect("it is long enough");
        assert_eq!((header.opcode, header.unique, header.node), (op::LOOKUP, 7, 8));
        assert_eq!(fields.u32(), Ok(1));
        assert_eq!(fields.name().as_deref(), Ok(&b"name"[..]));
        assert_eq!(fields.take(4), Ok(&b"rest"[..]));
        assert_eq!(fields.u32(), Err(Errno::INVAL));
    }

    #[test]
    fn short_requests_are_refused() {
        let bytes = request(op::LOOKUP, b"name");
        for length in 0..bytes.len() {
            assert!(Fields::parse(&bytes[..length]).is_err(), "{length}");
        }
        let (_, mut fields) = Fields::parse(&bytes).expect("all of it is there");
        assert_eq!(fields.name(), Err(Errno::INVAL), "a name without its NUL");
    }

    #[test]
    fn answers_have_the_sizes_of_the_kernels_structs() {
        let attr = Attr {
            ino: 1,
            size: 513,
            has_blocks: true,
            times: [(1, 2); 3],
            mode: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            block: 4096,
        };
        assert_eq!(Answer::new().attr(&attr).0.len(), 88);
        assert_eq!(Answer::new().entry(&attr, 1500, 500).0.len(), 128);
        assert_eq!(Answer::new().attr(&attr).0[16..24], 2_u64.to_ne_bytes());
        assert_eq!(Answer::new().listed(1, 2, 8, b"abc").0.len(), 32);
    }
}
