//! The kernel's side: requests of `fuser` become operations of the mount.
//!
//! The only file that knows `fuser`. Whatever is here already is answered on the FUSE thread;
//! everything else goes over the bridge with its reply object.
//! # Traps
//! Capabilities that `fuser` 0.18 would take but not serve are never asked for (DEPENDENCIES,
//! section 2). Locks are not asked for either: the local kernel keeps them. Nor is
//! `FUSE_ATOMIC_O_TRUNC`: with it the file is cut before the kernel has refused (`ETXTBSY`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use braid_terms::{DeviceId, NAME_MAX};
use braid_wire::lcc::{Attributes, FileKind, FileTime, SetTime};
use bytes::Bytes;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileAttr, FileHandle, FileType, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::attributes::{Changes, XattrMode};
use crate::bridge::Bridge;
use crate::errno::{Errno, Outcome};
use crate::names::{Caller, NewNode, RenameMode};
use crate::open::{O_TRUNC, Released};
use crate::read::ReadHere;
use crate::space::{Allocate, Sought};
use crate::store::Store;
use crate::vfs::Shared;
use crate::write::{Depth, WriteHere};

/// Bytes of one request of the kernel.
pub const REQUEST_MAX: u32 = 1 << 20;
const BACKGROUND_MAX: u16 = 64;
const BLOCK: u32 = 64 << 10;
const GENERATION: Generation = Generation(0);
/// The root of every FUSE mount.
const ROOT: u64 = 1;

/// Serves the kernel.
pub struct Front<S> {
    bridge: Bridge<S>,
}

impl<S: Store> Front<S> {
    /// Over a bridge.
    pub fn new(bridge: Bridge<S>) -> Self {
        Self { bridge }
    }

    fn shared(&self) -> &Shared {
        &self.bridge.shared
    }

    fn id(&self, ino: INodeNo) -> DeviceId {
        to_id(self.shared(), ino.0)
    }
}

/// The kernel calls the root 1; a device of that number goes by the root's.
pub fn to_ino(shared: &Shared, id: DeviceId) -> u64 {
    match id.0 {
        root if root == shared.root.0 => ROOT,
        ROOT => shared.root.0,
        other => other,
    }
}

fn to_id(shared: &Shared, ino: u64) -> DeviceId {
    // Swapping twice gives the first again.
    DeviceId(to_ino(shared, DeviceId(ino)))
}

fn fuse_errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

fn to_system_time(time: FileTime) -> SystemTime {
    let nanoseconds = Duration::from_nanos(u64::from(time.nanoseconds));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole.unwrap_or(UNIX_EPOCH) + nanoseconds
}

/// A time as `fuser` 0.18 hands it over: before 1970 it adds the nanoseconds in the wrong direction,
/// which is undone here.
fn to_file_time(time: SystemTime) -> FileTime {
    let (since, sign) = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (since, 1),
        Err(before) => (before.duration(), -1),
    };
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    FileTime { seconds: sign * seconds, nanoseconds: since.subsec_nanos() }
}

fn to_set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::To(to_file_time(time)),
    }
}

fn to_file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharacterDevice => FileType::CharDevice,
    }
}

fn to_kind(mode: u32) -> Outcome<FileKind> {
    Ok(match mode & 0o170_000 {
        0 | 0o100_000 => FileKind::File,
        0o010_000 => FileKind::Fifo,
        0o140_000 => FileKind::Socket,
        0o060_000 => FileKind::BlockDevice,
        0o020_000 => FileKind::CharacterDevice,
        _ => return Err(Errno::INVAL),
    })
}

fn to_attr(shared: &Shared, shown: &Attributes) -> FileAttr {
    let size = match shown.kind {
        FileKind::File | FileKind::Symlink => shown.size,
        // A directory's number of entries would make some tools think that it is short.
        FileKind::Directory => 4096,
        _ => 0,
    };
    FileAttr {
        ino: INodeNo(to_ino(shared, shown.id)),
        size,
        blocks: if shown.kind == FileKind::File { size.div_ceil(512) } else { 0 },
        atime: to_system_time(shown.atime),
        mtime: to_system_time(shown.mtime),
        ctime: to_system_time(shown.ctime),
        crtime: to_system_time(shown.btime),
        kind: to_file_type(shown.kind),
        perm: (shown.mode & 0o7777) as u16,
        nlink: shown.nlink,
        uid: shown.uid,
        gid: shown.gid,
        rdev: shown.rdev as u32,
        blksize: BLOCK,
        flags: 0,
    }
}

fn ttl(shared: &Shared) -> Duration {
    Duration::from_millis(shared.tuning.ttl_ms)
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

fn to_bytes(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn open_flags(keep_pages: bool) -> FopenFlags {
    if keep_pages { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
}

fn reply_empty(reply: ReplyEmpty, outcome: Outcome<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(fuse_errno(error)),
    }
}

fn reply_attr(shared: &Shared, reply: ReplyAttr, outcome: Outcome<Attributes>) {
    match outcome {
        Ok(shown) => reply.attr(&ttl(shared), &to_attr(shared, &shown)),
        Err(error) => reply.error(fuse_errno(error)),
    }
}

fn reply_entry(
    shared: &Shared,
    reply: ReplyEntry,
    outcome: Outcome<std::sync::Arc<crate::inode::Inode>>,
) {
    match outcome {
        Ok(inode) => {
            let shown = inode.state().shown();
            reply.entry(&ttl(shared), &to_attr(shared, &shown), GENERATION);
        }
        Err(error) => reply.error(fuse_errno(error)),
    }
}

fn reply_xattr(reply: ReplyXattr, size: u32, outcome: Outcome<Bytes>) {
    match outcome {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(fuse_errno(Errno::RANGE)),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(fuse_errno(error)),
    }
}

impl<S: Store> fuser::Filesystem for Front<S> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Own writes change the time of a file; its pages stay right all the same.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ];
        for flag in wanted {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::debug!(?missing, "the kernel does not offer this");
            }
        }
        let _ = config.set_max_write(REQUEST_MAX);
        if let Err(most) = config.set_max_readahead(REQUEST_MAX) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (parent, name) = (self.id(parent), to_bytes(name));
        self.bridge.run(move |vfs| async move {
            let outcome = vfs.lookup(parent, name).await;
            reply_entry(&vfs.shared, reply, outcome);
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.shared().inodes.forget(self.id(ino), count);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let id = self.id(ino);
        if let Some(shown) = self.shared().attributes_here(id) {
            return reply_attr(self.shared(), reply, Ok(shown));
        }
        self.bridge.run(move |vfs| async move {
            let outcome = vfs.attributes(id).await;
            reply_attr(&vfs.shared, reply, outcome);
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let id = self.id(ino);
        let changes = Changes {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(to_set_time),
            mtime: mtime.map(to_set_time),
        };
        self.bridge.run(move |vfs| async move {
            let outcome = vfs.set_attributes(id, changes).await;
            reply_attr(&vfs.shared, reply, outcome);
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let id = self.id(ino);
        self.bridge.run(move |vfs| async move {
            match vfs.readlink(id).await {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(fuse_errno(error)),
            }
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = match to_kind(mode) {
            Ok(kind) => kind,
            Err(error) => return reply.error(fuse_errno(error)),
        };
        let node =
            NewNode { kind, mode, rdev: u64::from(rdev), target: None, caller: caller(request) };
        self.make(parent, name, node, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let kind = FileKind::Directory;
        let node = NewNode { kind, mode, rdev: 0, target: None, caller: caller(request) };
        self.make(parent, name, node, reply);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let node = NewNode {
            kind: FileKind::Symlink,
            mode: 0o777,
            rdev: 0,
            target: Some(to_bytes(target.as_os_str())),
            caller: caller(request),
        };
        self.make(parent, name, node, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = (self.id(parent), to_bytes(name));
        self.bridge.run(move |vfs| async move {
            reply_empty(reply, vfs.unlink(parent, name).await);
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = (self.id(parent), to_bytes(name));
        self.bridge.run(move |vfs| async move {
            reply_empty(reply, vfs.rmdir(parent, name).await);
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(fuse_errno(Errno::INVAL)),
        };
        let source = (self.id(parent), to_bytes(name));
        let target = (self.id(new_parent), to_bytes(new_name));
        self.bridge.run(move |vfs| async move {
            reply_empty(reply, vfs.rename(source, target, mode).await);
        });
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (id, parent, name) = (self.id(ino), self.id(parent), to_bytes(name));
        self.bridge.run(move |vfs| async move {
            let outcome = vfs.link(id, parent, name).await;
            reply_entry(&vfs.shared, reply, outcome);
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let id = self.id(ino);
        let inode = match self.shared().inode(id) {
            Ok(inode) => inode,
            Err(error) => return reply.error(fuse_errno(error)),
        };
        if flags.0 & O_TRUNC == 0 && self.shared().take_open_credit(&inode) {
            let opened = self.shared().open_checked(&inode, flags.0);
            return reply.opened(FileHandle(opened.handle), open_flags(opened.keep_pages));
        }
        self.bridge.run(move |vfs| async move {
            match vfs.open(id, flags.0).await {
                Ok(opened) => {
                    reply.opened(FileHandle(opened.handle), open_flags(opened.keep_pages));
                }
                Err(error) => reply.error(fuse_errno(error)),
            }
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (parent, name) = (self.id(parent), to_bytes(name));
        let node =
            NewNode { kind: FileKind::File, mode, rdev: 0, target: None, caller: caller(request) };
        self.bridge.run(move |vfs| async move {
            match vfs.create(parent, name, node, flags).await {
                Ok((inode, opened)) => {
                    let shown = inode.state().shown();
                    reply.created(
                        &ttl(&vfs.shared),
                        &to_attr(&vfs.shared, &shown),
                        GENERATION,
                        FileHandle(opened.handle),
                        open_flags(opened.keep_pages),
                    );
                }
                Err(error) => reply.error(fuse_errno(error)),
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        number: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let handle = match self.shared().handle(number.0) {
            Ok(handle) => handle,
            Err(error) => return reply.error(fuse_errno(error)),
        };
        match self.shared().read_here(&handle, offset, size as usize) {
            Ok(ReadHere::Now(bytes, wants_more)) => {
                reply.data(&bytes);
                if wants_more {
                    self.bridge.call(move |vfs| vfs.read_ahead(&handle));
                }
                return;
            }
            Ok(ReadHere::Ask) => {}
            Err(error) => return reply.error(fuse_errno(error)),
        }
        self.bridge.run(move |vfs| async move {
            match vfs.read(&handle, offset, size as usize).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(fuse_errno(error)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        number: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let handle = match self.shared().handle(number.0) {
            Ok(handle) => handle,
            Err(error) => return reply.error(fuse_errno(error)),
        };
        if !self.shared().writes_through(&handle) {
            match self.shared().write_here(&handle, offset, data) {
                Ok(WriteHere::Done) => return reply.written(data.len() as u32),
                Ok(WriteHere::Kick) => {
                    reply.written(data.len() as u32);
                    return self.bridge.call(move |vfs| vfs.kick(&handle.inode));
                }
                Ok(WriteHere::Full) => {}
                Err(error) => return reply.error(fuse_errno(error)),
            }
        }
        let data = Bytes::copy_from_slice(data);
        self.bridge.run(move |vfs| async move {
            match vfs.write(&handle, offset, data).await {
                Ok(written) => reply.written(written as u32),
                Err(error) => reply.error(fuse_errno(error)),
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, number: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let handle = match self.shared().handle(number.0) {
            Ok(handle) => handle,
            Err(error) => return reply.error(fuse_errno(error)),
        };
        {
            let state = handle.inode.state();
            if !state.is_dirty() {
                let outcome = state.check_error(&handle.errors_seen);
                drop(state);
                return reply_empty(reply, outcome);
            }
        }
        self.bridge.run(move |vfs| async move {
            reply_empty(reply, vfs.finish(&handle, Depth::Held).await);
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        number: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        // Nobody waits for it.
        reply.ok();
        match self.shared().release_here(number.0) {
            Released::Done => {}
            Released::Ask => {
                self.bridge.run(move |vfs| async move { vfs.release(number.0).await });
            }
            Released::Kept(inode) => {
                self.bridge.run(move |vfs| async move { vfs.drop_kept(&inode).await });
            }
        }
    }

    fn fsync(
        &self,
        _: &Request,
        _: INodeNo,
        number: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let handle = match self.shared().handle(number.0) {
            Ok(handle) => handle,
            Err(error) => return reply.error(fuse_errno(error)),
        };
        let depth = if datasync { Depth::Bytes } else { Depth::Stable };
        self.bridge.run(move |vfs| async move {
            reply_empty(reply, vfs.finish(&handle, depth).await);
        });
    }

    fn opendir(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.shared().inode(self.id(ino)) {
            Ok(inode) => {
                let number = self.shared().add_handle(inode, flags.0);
                reply.opened(FileHandle(number), FopenFlags::empty());
            }
            Err(error) => reply.error(fuse_errno(error)),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        number: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let handle = match self.shared().handle(number.0) {
            Ok(handle) => handle,
            Err(error) => return reply.error(fuse_errno(error)),
        };
        self.bridge.run(move |vfs| async move {
            let outcome = vfs
                .list(&handle, offset, false, |entry| {
                    let ino = INodeNo(to_ino(&vfs.shared, entry.id));
                    let kind = to_file_type(entry.kind);
                    !reply.add(ino, entry.place, kind, OsStr::from_bytes(&entry.name))
                })
                .await;
            match outcome {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(fuse_errno(error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        number: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let handle = match self.shared().handle(number.0) {
            Ok(handle) => handle,
            Err(error) => return reply.error(fuse_errno(error)),
        };
        self.bridge.run(move |vfs| async move {
            let shared = &vfs.shared;
            let outcome = vfs
                .list(&handle, offset, true, |entry| {
                    let name = OsStr::from_bytes(&entry.name);
                    let Some((home, record)) = &entry.known else {
                        // `.` and `..`: the kernel takes the number and the kind, and no lookup.
                        let mut attr = to_attr(shared, &handle.inode.state().shown());
                        attr.ino = INodeNo(to_ino(shared, entry.id));
                        let none = Duration::ZERO;
                        return !reply.add(attr.ino, entry.place, name, &none, &attr, GENERATION);
                    };
                    let inode = vfs.hear(home, record.clone());
                    inode.parent.store(handle.inode.id.0, std::sync::atomic::Ordering::Relaxed);
                    let attr = to_attr(shared, &inode.state().shown());
                    let ttl = ttl(shared);
                    let full = reply.add(attr.ino, entry.place, name, &ttl, &attr, GENERATION);
                    if full {
                        shared.inodes.forget(inode.id, 1);
                    }
                    !full
                })
                .await;
            match outcome {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(fuse_errno(error)),
            }
        });
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        number: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.shared().remove_handle(number.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, number: FileHandle, _: bool, reply: ReplyEmpty) {
        let handle = match self.shared().handle(number.0) {
            Ok(handle) => handle,
            Err(error) => return reply.error(fuse_errno(error)),
        };
        self.bridge.run(move |vfs| async move {
            reply_empty(reply, vfs.sync_directory(&handle.inode).await);
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.bridge.run(move |vfs| async move {
            match vfs.space().await {
                Ok(space) => {
                    let block = 4096;
                    let (total, free) = (space.total / block, space.free / block);
                    // Files take no places of their own: as many as there are blocks.
                    let name_max = NAME_MAX as u32;
                    reply.statfs(total, free, free, total, free, BLOCK, name_max, block as u32);
                }
                Err(error) => reply.error(fuse_errno(error)),
            }
        });
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => XattrMode::Any,
            1 => XattrMode::Create,
            2 => XattrMode::Replace,
            _ => return reply.error(fuse_errno(Errno::INVAL)),
        };
        let (id, name) = (self.id(ino), to_bytes(name));
        let value = Bytes::copy_from_slice(value);
        self.bridge.run(move |vfs| async move {
            reply_empty(reply, vfs.set_xattr(id, name, value, mode).await);
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let id = self.id(ino);
        // The kernel asks for `security.capability` before each write.
        if let Some(outcome) = self.shared().xattr_here(id, name.as_bytes()) {
            return reply_xattr(reply, size, outcome);
        }
        let name = to_bytes(name);
        self.bridge.run(move |vfs| async move {
            reply_xattr(reply, size, vfs.xattr(id, name).await);
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let id = self.id(ino);
        self.bridge.run(move |vfs| async move {
            reply_xattr(reply, size, vfs.xattr_names(id).await.map(Bytes::from));
        });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (id, name) = (self.id(ino), to_bytes(name));
        self.bridge.run(move |vfs| async move {
            reply_empty(reply, vfs.remove_xattr(id, name).await);
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        number: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const KEEP_SIZE: i32 = 1;
        const PUNCH_HOLE: i32 = 2;
        const ZERO_RANGE: i32 = 16;
        let keep_size = mode & KEEP_SIZE != 0;
        let what = match mode & !KEEP_SIZE {
            0 => Allocate::Room,
            PUNCH_HOLE if keep_size => Allocate::Punch,
            ZERO_RANGE => Allocate::Zero,
            _ => return reply.error(fuse_errno(Errno::OPNOTSUPP)),
        };
        let handle = match self.shared().handle(number.0) {
            Ok(handle) => handle,
            Err(error) => return reply.error(fuse_errno(error)),
        };
        self.bridge.run(move |vfs| async move {
            let outcome = vfs.allocate(&handle.inode, (offset, length), what, keep_size).await;
            reply_empty(reply, outcome);
        });
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        number: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let sought = match whence {
            SEEK_DATA => Sought::Data,
            SEEK_HOLE => Sought::Hole,
            _ => return reply.error(fuse_errno(Errno::INVAL)),
        };
        let place = u64::try_from(offset).map_err(|_| Errno::NXIO);
        let (handle, at) = match self.shared().handle(number.0).and_then(|h| Ok((h, place?))) {
            Ok(found) => found,
            Err(error) => return reply.error(fuse_errno(error)),
        };
        self.bridge.run(move |vfs| async move {
            match vfs.seek(&handle, at, sought).await {
                Ok(place) => reply.offset(place as i64),
                Err(error) => reply.error(fuse_errno(error)),
            }
        });
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        number_in: FileHandle,
        offset_in: u64,
        _: INodeNo,
        number_out: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let handles = self.shared().handle(number_in.0);
        let handles = handles.and_then(|source| Ok((source, self.shared().handle(number_out.0)?)));
        let (source, target) = match handles {
            Ok(handles) => handles,
            Err(error) => return reply.error(fuse_errno(error)),
        };
        // The answer has 32 bits.
        let len = len.min(1 << 30);
        self.bridge.run(move |vfs| async move {
            match vfs.copy((&source, offset_in), (&target, offset_out), len).await {
                Ok(copied) => reply.written(copied as u32),
                Err(error) => reply.error(fuse_errno(error)),
            }
        });
    }
}

impl<S: Store> Front<S> {
    fn make(&self, parent: INodeNo, name: &OsStr, node: NewNode, reply: ReplyEntry) {
        let (parent, name) = (self.id(parent), to_bytes(name));
        self.bridge.run(move |vfs| async move {
            let outcome = vfs.make(parent, name, node).await;
            reply_entry(&vfs.shared, reply, outcome);
        });
    }
}
