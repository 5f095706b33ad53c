//! The kernel's side: its requests become operations of the mount.
//!
//! # Theory
//! Requests are read and answered on the thread of the client library. What is here already is
//! answered at once; for everything else a task takes the reply along.
//! ```text
//! /dev/fuse --read--> Session::take --here--> answer
//!                          `--task--> Vfs --owner--> answer
//! ```
//! # Interrupts
//! A signal for a thread that waits for an answer only ends its waiting if it kills the thread, as
//! with any file system, and the operation does not end soon: then the thread hears `EINTR` although
//! the operation goes on. A wait for a lock ends by any signal.
//! # Traps
//! `FUSE_ATOMIC_O_TRUNC` is not asked for: with it the file is cut before the kernel has refused
//! (`ETXTBSY`).

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use braid_terms::{DeviceId, NAME_MAX};
use braid_wire::lcc::{Attributes, FileKind, FileLock, FileTime, LockKind, SetTime};
use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::attributes::{Changes, XattrMode};
use crate::errno::{Errno, Outcome};
use crate::kernel::{
    Answer, Attr, BUFFER, Device, Fields, Header, REQUEST_MAX, Reply, Running, feature, op,
};
use crate::names::{Caller, Found, Making, NewNode, RenameMode};
use crate::open::{O_TRUNC, Opened, Released};
use crate::read::ReadHere;
use crate::space::{Allocate, Sought};
use crate::store::Store;
use crate::vfs::{Handle, Shared, Vfs, may_write};
use crate::write::{Depth, WriteHere};

const BACKGROUND_MAX: u16 = 64;
const BLOCK: u32 = 64 << 10;
/// The root of every FUSE mount.
const ROOT: u64 = 1;
const VERSION: (u32, u32) = (7, 38);
const FEATURES: u32 = feature::ASYNC_READ
    | feature::BIG_WRITES
    | feature::PARALLEL_DIROPS
    | feature::ASYNC_DIO
    | feature::DO_READDIRPLUS
    | feature::READDIRPLUS_AUTO
    | feature::CACHE_SYMLINKS
    | feature::MAX_PAGES
    // Own writes change the time of a file; its pages stay right all the same.
    | feature::EXPLICIT_INVAL_DATA
    | feature::POSIX_ACL
    | feature::DONT_MASK
    | feature::SETXATTR_EXT
    // Else the kernel asks for `security.capability` before each write.
    | feature::HANDLE_KILLPRIV_V2;
/// Requests taken before tasks get their turn.
const TURN: usize = 32;
/// How long an operation goes on before a thread that was killed hears that it was given up. Whoever
/// waits for a killed process takes its last operation for done or not done, so it should be: SQLite
/// looks for a journal that is just being removed.
const KILL_GRACE: Duration = Duration::from_secs(4);
/// How often it is looked whether a thread that waits was killed, after its first signal.
const KILL_POLL: Duration = Duration::from_millis(500);
const F_RDLCK: u32 = 0;
const F_WRLCK: u32 = 1;
const F_UNLCK: u32 = 2;
const FOPEN_KEEP_CACHE: u32 = 1 << 1;

/// Serves the kernel.
pub struct Session<S> {
    vfs: Rc<Vfs<S>>,
    device: Rc<Device>,
    only: Option<u32>,
}

/// A request, and the duty to answer it.
struct Asked<'a> {
    header: Header,
    fields: Fields<'a>,
    reply: Option<Reply>,
}

impl Asked<'_> {
    fn reply(&mut self) -> Reply {
        self.reply.take().expect("each request is answered in one place")
    }

    fn caller(&self) -> Caller {
        Caller { uid: self.header.uid, gid: self.header.gid }
    }
}

struct Watched(Rc<Device>);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd().as_raw_fd()
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

fn type_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => 0o100_000,
        FileKind::Directory => 0o040_000,
        FileKind::Symlink => 0o120_000,
        FileKind::Fifo => 0o010_000,
        FileKind::Socket => 0o140_000,
        FileKind::BlockDevice => 0o060_000,
        FileKind::CharacterDevice => 0o020_000,
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

fn to_attr(shared: &Shared, shown: &Attributes) -> Attr {
    let size = match shown.kind {
        FileKind::File | FileKind::Symlink => shown.size,
        // A directory's number of entries would make some tools think that it is short.
        FileKind::Directory => 4096,
        _ => 0,
    };
    let time = |time: FileTime| (time.seconds.cast_unsigned(), time.nanoseconds);
    Attr {
        ino: to_ino(shared, shown.id),
        size,
        has_blocks: shown.kind == FileKind::File,
        times: [time(shown.atime), time(shown.mtime), time(shown.ctime)],
        mode: type_bits(shown.kind) | shown.mode & 0o7777,
        nlink: shown.nlink,
        uid: shown.uid,
        gid: shown.gid,
        rdev: shown.rdev as u32,
        block: BLOCK,
    }
}

fn answer_attr(shared: &Shared, reply: Reply, outcome: Outcome<Attributes>) {
    match outcome {
        Ok(shown) => {
            let inode = shared.inodes.get(shown.id);
            let most = shared.tuning.ttl_ms;
            let ttl = inode.map_or(0, |inode| inode.state().attributes_ms(most));
            let (seconds, rest) = (ttl / 1000, (ttl % 1000) as u32 * 1_000_000);
            let fields = Answer::new().u64(seconds).u32(rest).u32(0);
            reply.fields(&fields.attr(&to_attr(shared, &shown)));
        }
        Err(error) => reply.error(error),
    }
}

/// A name of this directory and what it stands for.
fn entry_of(shared: &Shared, parent: DeviceId, found: &Found) -> Answer {
    let directory = shared.inodes.get(parent);
    let name_ms = directory.map_or(0, |directory| shared.name_ms(&directory, &found.right));
    let state = found.inode.state();
    let attributes_ms = state.attributes_ms(shared.tuning.ttl_ms);
    Answer::new().entry(&to_attr(shared, &state.shown()), name_ms, attributes_ms)
}

fn answer_entry(shared: &Shared, reply: Reply, parent: DeviceId, outcome: Outcome<Found>) {
    match outcome {
        Ok(found) => reply.fields(&entry_of(shared, parent, &found)),
        Err(error) => reply.error(error),
    }
}

fn answer_opened(reply: Reply, fields: Answer, opened: Opened) {
    let flags = if opened.keep_pages { FOPEN_KEEP_CACHE } else { 0 };
    reply.fields(&fields.u64(opened.handle).u32(flags).u32(0));
}

fn answer_xattr(reply: Reply, size: u32, outcome: Outcome<Bytes>) {
    match outcome {
        Ok(value) if size == 0 => reply.fields(&Answer::new().u32(value.len() as u32).u32(0)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::RANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(error),
    }
}

fn answer_written(reply: Reply, outcome: Outcome<u64>) {
    match outcome {
        Ok(count) => reply.fields(&Answer::new().u32(count as u32).u32(0)),
        Err(error) => reply.error(error),
    }
}

/// Whether a thread was told to end: it will never look at an answer.
fn is_killed(pid: u32) -> bool {
    const SIGKILL: u64 = 1 << 8;
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let pending = status.lines().filter(|line| line.starts_with("SigPnd:"));
    pending
        .filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok())
        .any(|signals| signals & SIGKILL != 0)
}

impl<S: Store> Session<S> {
    /// Over the descriptor of a mount. With `only`, nobody but that user and root is served.
    pub fn new(vfs: Rc<Vfs<S>>, fd: OwnedFd, only: Option<u32>) -> Self {
        Self { vfs, device: Device::new(fd), only }
    }

    /// Serves until it is unmounted.
    ///
    /// Errors: `/dev/fuse` cannot be read.
    pub async fn serve(&self) -> std::io::Result<()> {
        let interest = Interest::READABLE | Interest::ERROR;
        #[expect(deprecated, reason = "its successor is unsafe; the descriptor lives in `Watched`")]
        let ready = AsyncFd::with_interest(Watched(self.device.clone()), interest)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let mut guard = ready.ready(interest).await?;
            for _ in 0..TURN {
                match rustix::io::read(self.device.fd(), &mut buffer[..]) {
                    // Newer kernels say CONNABORTED where the mount went while they looked.
                    Ok(0) | Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(()),
                    Ok(length) => self.take(&buffer[..length]),
                    Err(Errno::AGAIN) => {
                        guard.clear_ready();
                        break;
                    }
                    // The request was given up before it was read.
                    Err(Errno::INTR | Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn take(&self, request: &[u8]) {
        self.vfs.before_answer();
        let (header, fields) = match Fields::parse(request) {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::warn!(%error, "the kernel's request is too short");
                return;
            }
        };
        let reply = Reply::new(&self.device, header.unique);
        let mut asked = Asked { header, fields, reply: Some(reply) };
        let outcome =
            if self.is_refused(&header) { Err(Errno::ACCESS) } else { self.dispatch(&mut asked) };
        if let (Err(error), Some(reply)) = (outcome, asked.reply) {
            reply.error(error);
        }
    }

    fn is_refused(&self, header: &Header) -> bool {
        let allowed = [
            op::INIT,
            op::DESTROY,
            op::FORGET,
            op::BATCH_FORGET,
            op::INTERRUPT,
            op::READ,
            op::WRITE,
            op::FLUSH,
            op::FSYNC,
            op::RELEASE,
            op::RELEASEDIR,
        ];
        let is_stranger = self.only.is_some_and(|only| header.uid != only && header.uid != 0);
        is_stranger && !allowed.contains(&header.opcode)
    }

    fn shared(&self) -> &Shared {
        &self.vfs.shared
    }

    fn id(&self, ino: u64) -> DeviceId {
        to_id(self.shared(), ino)
    }

    /// A task answers it.
    fn spawn<F>(&self, asked: &mut Asked<'_>, task: impl FnOnce(Rc<Vfs<S>>, Reply) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        let mut reply = asked.reply();
        reply.run(asked.header.pid);
        tokio::task::spawn_local(task(self.vfs.clone(), reply));
    }

    /// A task that changes names of these directories answers it.
    fn spawn_change<F>(
        &self,
        asked: &mut Asked<'_>,
        directories: [DeviceId; 2],
        task: impl FnOnce(Rc<Vfs<S>>, Reply) -> F + 'static,
    ) where
        F: Future<Output = ()> + 'static,
    {
        let inodes = directories.map(|id| self.shared().inodes.get(id));
        for directory in inodes.iter().flatten() {
            directory.busy.fetch_add(1, Ordering::Relaxed);
        }
        self.spawn(asked, |vfs, reply| async move {
            task(vfs, reply).await;
            for directory in inodes.iter().flatten() {
                directory.busy.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }

    fn dispatch(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        match asked.header.opcode {
            op::INIT => self.init(asked),
            op::DESTROY => {
                asked.reply().ok();
                Ok(())
            }
            op::INTERRUPT => self.interrupt(asked),
            op::LOOKUP => self.lookup(asked),
            op::FORGET => self.forget(asked),
            op::BATCH_FORGET => self.batch_forget(asked),
            op::GETATTR => self.getattr(asked),
            op::SETATTR => self.setattr(asked),
            op::READLINK => self.readlink(asked),
            op::SYMLINK => self.symlink(asked),
            op::MKNOD => self.mknod(asked),
            op::MKDIR => self.mkdir(asked),
            op::UNLINK | op::RMDIR => self.remove(asked),
            op::RENAME | op::RENAME2 => self.rename(asked),
            op::LINK => self.link(asked),
            op::OPEN => self.open(asked),
            op::CREATE | op::TMPFILE => self.create(asked),
            op::READ => self.read(asked),
            op::WRITE => self.write(asked),
            op::FLUSH => self.flush(asked),
            op::RELEASE => self.release(asked),
            op::FSYNC => self.fsync(asked),
            op::OPENDIR => self.opendir(asked),
            op::READDIR => self.readdir(asked),
            op::READDIRPLUS => self.readdirplus(asked),
            op::RELEASEDIR => self.releasedir(asked),
            op::FSYNCDIR => self.fsyncdir(asked),
            op::STATFS => self.statfs(asked),
            op::SETXATTR => self.setxattr(asked),
            op::GETXATTR => self.getxattr(asked),
            op::LISTXATTR => self.listxattr(asked),
            op::REMOVEXATTR => self.removexattr(asked),
            op::FALLOCATE => self.fallocate(asked),
            op::GETLK => self.getlk(asked),
            op::SETLK | op::SETLKW => self.setlk(asked),
            op::LSEEK => self.lseek(asked),
            op::COPY_FILE_RANGE => self.copy_file_range(asked),
            _ => Err(Errno::NOSYS),
        }
    }

    fn init(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let (major, minor) = (asked.fields.u32()?, asked.fields.u32()?);
        let (read_ahead, offered) = (asked.fields.u32()?, asked.fields.u32()?);
        if major < VERSION.0 {
            return Err(Errno::PROTO);
        }
        if major > VERSION.0 {
            // The kernel asks again in this version.
            asked.reply().fields(&Answer(Answer::new().u32(VERSION.0).u32(VERSION.1).0));
            return Ok(());
        }
        let locks = feature::POSIX_LOCKS | feature::FLOCK_LOCKS;
        let is_local = self.shared().tuning.local_locks;
        let features = FEATURES | if is_local { 0 } else { locks };
        let mut fields = Answer::new()
            .u32(VERSION.0)
            .u32(VERSION.1.min(minor))
            .u32(read_ahead.max(REQUEST_MAX))
            .u32(offered & features)
            .u16(BACKGROUND_MAX)
            .u16(BACKGROUND_MAX / 4 * 3)
            .u32(REQUEST_MAX)
            .u32(1)
            .u16((REQUEST_MAX / 4096) as u16)
            .u16(0);
        fields.0.resize(64, 0);
        asked.reply().fields(&fields);
        Ok(())
    }

    fn interrupt(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let unique = asked.fields.u64()?;
        asked.reply().none();
        let Some(running) = self.device.running(unique) else { return Ok(()) };
        running.interrupted.notify_one();
        tokio::task::spawn_local(watch_killed(self.device.clone(), unique, running));
        Ok(())
    }

    fn lookup(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let (parent, name) = (self.id(asked.header.node), asked.fields.name()?);
        self.spawn(asked, |vfs, reply| async move {
            let outcome = vfs.lookup(parent, name).await;
            answer_entry(&vfs.shared, reply, parent, outcome);
        });
        Ok(())
    }

    fn forget(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        asked.reply().none();
        self.shared().inodes.forget(self.id(asked.header.node), asked.fields.u64()?);
        Ok(())
    }

    fn batch_forget(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        asked.reply().none();
        let (count, _) = (asked.fields.u32()?, asked.fields.u32()?);
        for _ in 0..count {
            let (ino, lookups) = (asked.fields.u64()?, asked.fields.u64()?);
            self.shared().inodes.forget(self.id(ino), lookups);
        }
        Ok(())
    }

    fn getattr(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let id = self.id(asked.header.node);
        let here = (!self.vfs.has_unborn(id)).then(|| self.shared().attributes_here(id)).flatten();
        if let Some(shown) = here {
            answer_attr(self.shared(), asked.reply(), Ok(shown));
            return Ok(());
        }
        self.spawn(asked, |vfs, reply| async move {
            let outcome = vfs.attributes(id).await;
            answer_attr(&vfs.shared, reply, outcome);
        });
        Ok(())
    }

    fn setattr(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let fields = &mut asked.fields;
        let valid = fields.u32()?;
        fields.take(12)?;
        let size = fields.u64()?;
        fields.u64()?;
        let seconds = [fields.u64()?, fields.u64()?, fields.u64()?];
        let nanoseconds = [fields.u32()?, fields.u32()?, fields.u32()?];
        let (mode, _, uid, gid) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
        let is = |bit: u32| valid & (1 << bit) != 0;
        let time = |index: usize, given: u32, now: u32| {
            let exactly = FileTime {
                seconds: seconds[index].cast_signed(),
                nanoseconds: nanoseconds[index].min(999_999_999),
            };
            match (is(given), is(now)) {
                (_, true) => Some(SetTime::Now),
                (true, false) => Some(SetTime::To(exactly)),
                (false, false) => None,
            }
        };
        let changes = Changes {
            mode: is(0).then_some(mode),
            uid: is(1).then_some(uid),
            gid: is(2).then_some(gid),
            size: is(3).then_some(size),
            atime: time(0, 4, 7),
            mtime: time(1, 5, 8),
            // Another owner, or cut by somebody who may not keep them.
            kill_privileges: is(1) || is(2) || is(11),
        };
        let id = self.id(asked.header.node);
        self.spawn(asked, |vfs, reply| async move {
            let outcome = vfs.set_attributes(id, changes).await;
            answer_attr(&vfs.shared, reply, outcome);
        });
        Ok(())
    }

    fn readlink(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let id = self.id(asked.header.node);
        self.spawn(asked, |vfs, reply| async move {
            match vfs.readlink(id).await {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(error),
            }
        });
        Ok(())
    }

    fn make(&self, asked: &mut Asked<'_>, name: Bytes, node: NewNode) -> Outcome<()> {
        let parent = self.id(asked.header.node);
        self.spawn_change(asked, [parent, parent], move |vfs, reply| async move {
            let outcome = vfs.make(parent, name, node, Making::Now).await;
            answer_entry(&vfs.shared, reply, parent, outcome);
        });
        Ok(())
    }

    fn mknod(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let (mode, rdev) = (asked.fields.u32()?, asked.fields.u32()?);
        let (umask, _) = (asked.fields.u32()?, asked.fields.u32()?);
        let name = asked.fields.name()?;
        let node = NewNode {
            kind: to_kind(mode)?,
            mode,
            umask,
            rdev: u64::from(rdev),
            target: None,
            caller: asked.caller(),
        };
        self.make(asked, name, node)
    }

    fn mkdir(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let (mode, umask) = (asked.fields.u32()?, asked.fields.u32()?);
        let name = asked.fields.name()?;
        let kind = FileKind::Directory;
        let node = NewNode { kind, mode, umask, rdev: 0, target: None, caller: asked.caller() };
        self.make(asked, name, node)
    }

    fn symlink(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let (name, target) = (asked.fields.name()?, asked.fields.name()?);
        let node = NewNode {
            kind: FileKind::Symlink,
            mode: 0o777,
            umask: 0,
            rdev: 0,
            target: Some(target),
            caller: asked.caller(),
        };
        self.make(asked, name, node)
    }

    fn remove(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let (parent, name) = (self.id(asked.header.node), asked.fields.name()?);
        let is_directory = asked.header.opcode == op::RMDIR;
        self.spawn_change(asked, [parent, parent], move |vfs, reply| async move {
            let outcome = match is_directory {
                true => vfs.rmdir(parent, name).await,
                false => vfs.unlink(parent, name).await,
            };
            reply.outcome(outcome);
        });
        Ok(())
    }

    fn rename(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let new_parent = asked.fields.u64()?;
        let flags = match asked.header.opcode {
            op::RENAME2 => {
                let flags = asked.fields.u32()?;
                asked.fields.u32()?;
                flags
            }
            _ => 0,
        };
        let mode = match flags {
            0 => RenameMode::Replace,
            1 => RenameMode::NoReplace,
            2 => RenameMode::Exchange,
            _ => return Err(Errno::INVAL),
        };
        let source = (self.id(asked.header.node), asked.fields.name()?);
        let target = (self.id(new_parent), asked.fields.name()?);
        self.spawn_change(asked, [source.0, target.0], move |vfs, reply| async move {
            reply.outcome(vfs.rename(source, target, mode).await);
        });
        Ok(())
    }

    fn link(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let id = self.id(asked.fields.u64()?);
        let (parent, name) = (self.id(asked.header.node), asked.fields.name()?);
        self.spawn_change(asked, [parent, parent], move |vfs, reply| async move {
            let outcome = vfs.link(id, parent, name).await;
            answer_entry(&vfs.shared, reply, parent, outcome);
        });
        Ok(())
    }

    fn open(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let flags = asked.fields.u32()?.cast_signed();
        let id = self.id(asked.header.node);
        let inode = self.shared().inode(id)?;
        // Who may write waits for what is on its way into the kernel's pages.
        let is_settled = !may_write(flags) || inode.state().stores == 0;
        if flags & O_TRUNC == 0 && is_settled && self.shared().take_open_credit(&inode) {
            let opened = self.shared().open_checked(&inode, flags);
            answer_opened(asked.reply(), Answer::new(), opened);
            return Ok(());
        }
        self.spawn(asked, |vfs, reply| async move {
            match vfs.open(id, flags).await {
                Ok(opened) => answer_opened(reply, Answer::new(), opened),
                Err(error) => reply.error(error),
            }
        });
        Ok(())
    }

    fn create(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let (flags, mode) = (asked.fields.u32()?.cast_signed(), asked.fields.u32()?);
        let (umask, _) = (asked.fields.u32()?, asked.fields.u32()?);
        let (parent, name) = (self.id(asked.header.node), asked.fields.name()?);
        let node = NewNode {
            kind: FileKind::File,
            mode,
            umask,
            rdev: 0,
            target: None,
            caller: asked.caller(),
        };
        let is_named = asked.header.opcode == op::CREATE;
        self.spawn_change(asked, [parent, parent], move |vfs, reply| async move {
            let made = match is_named {
                true => vfs.create(parent, name, node, flags).await,
                false => vfs.create_unnamed(parent, node, flags).await,
            };
            match made {
                Ok((found, opened)) => {
                    answer_opened(reply, entry_of(&vfs.shared, parent, &found), opened);
                }
                Err(error) => reply.error(error),
            }
        });
        Ok(())
    }

    fn handle(&self, asked: &mut Asked<'_>) -> Outcome<std::sync::Arc<Handle>> {
        self.shared().handle(asked.fields.u64()?)
    }

    fn read(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let handle = self.handle(asked)?;
        let (at, length) = (asked.fields.u64()?, asked.fields.u32()? as usize);
        if let ReadHere::Now(bytes, wants_more) = self.shared().read_here(&handle, at, length)? {
            asked.reply().data(&bytes);
            if wants_more {
                self.vfs.read_ahead(&handle);
            }
            return Ok(());
        }
        self.spawn(asked, |vfs, reply| async move {
            handle.inode.busy.fetch_add(1, Ordering::Relaxed);
            let read = vfs.read(&handle, at, length).await;
            handle.inode.busy.fetch_sub(1, Ordering::Relaxed);
            match read {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(error),
            }
        });
        Ok(())
    }

    fn write(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        const KILL_PRIVILEGES: u32 = 1 << 2;
        let handle = self.handle(asked)?;
        let (at, length) = (asked.fields.u64()?, asked.fields.u32()? as usize);
        let flags = asked.fields.u32()?;
        asked.fields.take(16)?;
        let data = asked.fields.take(length)?;
        let kills = handle.inode.state().loses_privileges(flags & KILL_PRIVILEGES != 0);
        if !self.shared().writes_through(&handle) && !kills {
            match self.shared().write_here(&handle, at, data)? {
                WriteHere::Full | WriteHere::NoTurn | WriteHere::NotTold => {}
                done => {
                    answer_written(asked.reply(), Ok(length as u64));
                    if done == WriteHere::Kick {
                        self.vfs.kick(&handle.inode);
                    }
                    return Ok(());
                }
            }
        }
        let data = Bytes::copy_from_slice(data);
        self.spawn(asked, |vfs, reply| async move {
            if kills && let Err(error) = vfs.kill_privileges(&handle.inode).await {
                return reply.error(error);
            }
            handle.inode.busy.fetch_add(1, Ordering::Relaxed);
            let written = vfs.write(&handle, at, data).await;
            handle.inode.busy.fetch_sub(1, Ordering::Relaxed);
            answer_written(reply, written.map(|count| count as u64));
        });
        Ok(())
    }

    fn flush(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let handle = self.handle(asked)?;
        asked.fields.u64()?;
        let owner = asked.fields.u64()?;
        let locks = self.vfs.locks_of(handle.inode.id, owner, LockKind::Range);
        if let Some(all) = locks {
            self.spawn(asked, |vfs, reply| async move {
                let flushed = vfs.finish(&handle, Depth::Held).await;
                let unlocked = vfs.unlock(&handle.inode, all).await;
                reply.outcome(flushed.and(unlocked));
            });
            return Ok(());
        }
        {
            let state = handle.inode.state();
            if !state.is_dirty() {
                let outcome = state.check_error(&handle.errors_seen);
                drop(state);
                asked.reply().outcome(outcome);
                return Ok(());
            }
        }
        self.spawn(asked, |vfs, reply| async move {
            reply.outcome(vfs.finish(&handle, Depth::Held).await);
        });
        Ok(())
    }

    fn release(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let number = asked.fields.u64()?;
        asked.fields.u64()?;
        let owner = asked.fields.u64()?;
        // Nobody waits for it.
        asked.reply().ok();
        if let Ok(handle) = self.shared().handle(number)
            && let Some(lock) = self.vfs.locks_of(handle.inode.id, owner, LockKind::Whole)
        {
            let vfs = self.vfs.clone();
            tokio::task::spawn_local(async move {
                if let Err(error) = vfs.unlock(&handle.inode, lock).await {
                    tracing::warn!(%error, "a lock is given up late: its lease must end");
                }
            });
        }
        match self.shared().release_here(number) {
            Released::Done => {}
            more => self.vfs.close_later(more, number),
        }
        Ok(())
    }

    fn fsync(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let handle = self.handle(asked)?;
        let depth = if asked.fields.u32()? & 1 != 0 { Depth::Bytes } else { Depth::Stable };
        self.spawn(asked, |vfs, reply| async move {
            reply.outcome(vfs.finish(&handle, depth).await);
        });
        Ok(())
    }

    fn opendir(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let flags = asked.fields.u32()?.cast_signed();
        let inode = self.shared().inode(self.id(asked.header.node))?;
        let number = self.shared().add_handle(inode, flags);
        answer_opened(asked.reply(), Answer::new(), Opened { handle: number, keep_pages: false });
        Ok(())
    }

    fn readdir(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let handle = self.handle(asked)?;
        let (place, room) = (asked.fields.u64()?, asked.fields.u32()? as usize);
        self.spawn(asked, |vfs, reply| async move {
            let mut told = Answer(Vec::with_capacity(room));
            let outcome = vfs
                .list(&handle, place, false, |entry| {
                    let (ino, kind) = (to_ino(&vfs.shared, entry.id), type_bits(entry.kind) >> 12);
                    let before = told.0.len();
                    let all = std::mem::take(&mut told);
                    told = all.listed(ino, entry.place, kind, &entry.name);
                    let fits = told.0.len() <= room;
                    told.0.truncate(if fits { told.0.len() } else { before });
                    fits
                })
                .await;
            match outcome {
                Ok(()) => reply.fields(&told),
                Err(error) => reply.error(error),
            }
        });
        Ok(())
    }

    fn readdirplus(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let handle = self.handle(asked)?;
        let (place, room) = (asked.fields.u64()?, asked.fields.u32()? as usize);
        self.spawn(asked, |vfs, reply| async move {
            let shared = &vfs.shared;
            let mut told = Answer(Vec::with_capacity(room));
            let outcome = vfs
                .list(&handle, place, true, |entry| {
                    let directory = &handle.inode;
                    let (right, recalls) = &entry.right;
                    let is_same = directory.recalls.load(Ordering::Relaxed) == *recalls;
                    let right = right.clone().filter(|_| is_same);
                    let inode = entry.known.as_ref().map(|(home, record, known)| {
                        let known = known.clone().filter(|_| is_same);
                        let inode = vfs.hear(home, record.clone(), known);
                        inode.found(handle.inode.id, &entry.name);
                        inode
                    });
                    let (attr, ttl) = match &inode {
                        Some(inode) => {
                            let state = inode.state();
                            let attributes_ms = state.attributes_ms(shared.tuning.ttl_ms);
                            let name_ms = shared.name_ms(directory, &right);
                            (to_attr(shared, &state.shown()), (name_ms, attributes_ms))
                        }
                        None => {
                            // `.` and `..`: the kernel takes the number and the kind, and no
                            // lookup.
                            let own = to_attr(shared, &handle.inode.state().shown());
                            (Attr { ino: to_ino(shared, entry.id), ..own }, (0, 0))
                        }
                    };
                    let before = told.0.len();
                    let all = std::mem::take(&mut told);
                    let kind = type_bits(entry.kind) >> 12;
                    let all = all.entry(&attr, ttl.0, ttl.1);
                    told = all.listed(attr.ino, entry.place, kind, &entry.name);
                    let fits = told.0.len() <= room;
                    if !fits {
                        told.0.truncate(before);
                        if let Some(inode) = inode {
                            shared.inodes.forget(inode.id, 1);
                        }
                    }
                    fits
                })
                .await;
            match outcome {
                Ok(()) => reply.fields(&told),
                Err(error) => reply.error(error),
            }
        });
        Ok(())
    }

    fn releasedir(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        self.shared().remove_handle(asked.fields.u64()?);
        asked.reply().ok();
        Ok(())
    }

    fn fsyncdir(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let handle = self.handle(asked)?;
        self.spawn(asked, |vfs, reply| async move {
            reply.outcome(vfs.sync_directory(&handle.inode).await);
        });
        Ok(())
    }

    fn statfs(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        self.spawn(asked, |vfs, reply| async move {
            match vfs.space().await {
                Ok(space) => {
                    let block = 4096;
                    let (total, free) = (space.total / block, space.free / block);
                    // Files take no places of their own: as many as there are blocks.
                    let mut fields =
                        Answer::new().u64(total).u64(free).u64(free).u64(total).u64(free);
                    fields = fields.u32(BLOCK).u32(NAME_MAX as u32).u32(block as u32);
                    fields.0.resize(80, 0);
                    reply.fields(&fields);
                }
                Err(error) => reply.error(error),
            }
        });
        Ok(())
    }

    fn setxattr(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        const KILL_SGID: u32 = 1;
        let (size, flags) = (asked.fields.u32()?, asked.fields.u32()?);
        let (more, _) = (asked.fields.u32()?, asked.fields.u32()?);
        let mode = match flags {
            0 => XattrMode::Any,
            1 => XattrMode::Create,
            2 => XattrMode::Replace,
            _ => return Err(Errno::INVAL),
        };
        let (id, name) = (self.id(asked.header.node), asked.fields.name()?);
        let value = Bytes::copy_from_slice(asked.fields.take(size as usize)?);
        self.spawn(asked, |vfs, reply| async move {
            reply.outcome(vfs.set_xattr(id, name, value, mode, more & KILL_SGID != 0).await);
        });
        Ok(())
    }

    fn getxattr(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let (size, _) = (asked.fields.u32()?, asked.fields.u32()?);
        let (id, name) = (self.id(asked.header.node), asked.fields.name()?);
        if let Some(outcome) = self.shared().xattr_here(id, &name) {
            answer_xattr(asked.reply(), size, outcome);
            return Ok(());
        }
        self.spawn(asked, |vfs, reply| async move {
            answer_xattr(reply, size, vfs.xattr(id, name).await);
        });
        Ok(())
    }

    fn listxattr(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let size = asked.fields.u32()?;
        let id = self.id(asked.header.node);
        self.spawn(asked, |vfs, reply| async move {
            answer_xattr(reply, size, vfs.xattr_names(id).await.map(Bytes::from));
        });
        Ok(())
    }

    fn removexattr(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let (id, name) = (self.id(asked.header.node), asked.fields.name()?);
        self.spawn(asked, |vfs, reply| async move {
            reply.outcome(vfs.remove_xattr(id, name).await);
        });
        Ok(())
    }

    fn fallocate(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        const KEEP_SIZE: u32 = 1;
        const PUNCH_HOLE: u32 = 2;
        const ZERO_RANGE: u32 = 16;
        let handle = self.handle(asked)?;
        let (at, length, mode) = (asked.fields.u64()?, asked.fields.u64()?, asked.fields.u32()?);
        let keep_size = mode & KEEP_SIZE != 0;
        let what = match mode & !KEEP_SIZE {
            0 => Allocate::Room,
            PUNCH_HOLE if keep_size => Allocate::Punch,
            ZERO_RANGE => Allocate::Zero,
            _ => return Err(Errno::OPNOTSUPP),
        };
        self.spawn(asked, |vfs, reply| async move {
            reply.outcome(vfs.allocate(&handle.inode, (at, length), what, keep_size).await);
        });
        Ok(())
    }

    fn wanted_lock(
        &self,
        asked: &mut Asked<'_>,
    ) -> Outcome<(std::sync::Arc<Handle>, u32, FileLock)> {
        const IS_FLOCK: u32 = 1;
        let handle = self.handle(asked)?;
        let owner = asked.fields.u64()?;
        let (from, to) = (asked.fields.u64()?, asked.fields.u64()?);
        let (mode, pid) = (asked.fields.u32()?, asked.fields.u32()?);
        let is_flock = asked.fields.u32()? & IS_FLOCK != 0;
        let lock = FileLock {
            id: handle.inode.id,
            session: self.vfs.session,
            owner,
            kind: if is_flock { LockKind::Whole } else { LockKind::Range },
            exclusive: mode == F_WRLCK,
            from: if is_flock { 0 } else { from },
            to: if is_flock { u64::MAX } else { to },
            pid,
        };
        Ok((handle, mode, lock))
    }

    fn getlk(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let (handle, _, lock) = self.wanted_lock(asked)?;
        self.spawn(asked, |vfs, reply| async move {
            match vfs.test_lock(&handle.inode, lock).await {
                Ok(held) => {
                    let mode =
                        held.map_or(F_UNLCK, |held| if held.exclusive { F_WRLCK } else { F_RDLCK });
                    // A process of another machine has no number here.
                    let pid = held.filter(|held| held.session == vfs.session).map_or(0, |h| h.pid);
                    let held = held.unwrap_or(lock);
                    reply.fields(&Answer::new().u64(held.from).u64(held.to).u32(mode).u32(pid));
                }
                Err(error) => reply.error(error),
            }
        });
        Ok(())
    }

    fn setlk(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let (handle, mode, lock) = self.wanted_lock(asked)?;
        let waits = asked.header.opcode == op::SETLKW;
        let mut reply = asked.reply();
        let running = reply.run(asked.header.pid);
        let vfs = self.vfs.clone();
        tokio::task::spawn_local(async move {
            let outcome = if mode == F_UNLCK {
                vfs.unlock(&handle.inode, lock).await
            } else {
                vfs.lock(&handle.inode, lock, waits.then_some(running)).await
            };
            reply.outcome(outcome);
        });
        Ok(())
    }

    fn lseek(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        const SEEK_DATA: u32 = 3;
        const SEEK_HOLE: u32 = 4;
        let handle = self.handle(asked)?;
        let (at, whence) = (asked.fields.u64()?, asked.fields.u32()?);
        let sought = match whence {
            SEEK_DATA => Sought::Data,
            SEEK_HOLE => Sought::Hole,
            _ => return Err(Errno::INVAL),
        };
        if i64::try_from(at).is_err() {
            return Err(Errno::NXIO);
        }
        self.spawn(asked, |vfs, reply| async move {
            match vfs.seek(&handle, at, sought).await {
                Ok(place) => reply.fields(&Answer::new().u64(place)),
                Err(error) => reply.error(error),
            }
        });
        Ok(())
    }

    fn copy_file_range(&self, asked: &mut Asked<'_>) -> Outcome<()> {
        let source = self.handle(asked)?;
        let (source_at, _node) = (asked.fields.u64()?, asked.fields.u64()?);
        let target = self.handle(asked)?;
        let (target_at, length) = (asked.fields.u64()?, asked.fields.u64()?);
        // The answer has 32 bits.
        let length = length.min(1 << 30);
        self.spawn(asked, |vfs, reply| async move {
            let copied = vfs.copy((&source, source_at), (&target, target_at), length).await;
            answer_written(reply, copied);
        });
        Ok(())
    }
}

/// Gives the request up when its thread is killed: a mount that waits for a lost cluster holds nobody
/// who wants to end.
async fn watch_killed(device: Rc<Device>, unique: u64, running: Rc<Running>) {
    let is_running = || device.running(unique).is_some_and(|now| Rc::ptr_eq(&now, &running));
    tokio::time::sleep(KILL_GRACE).await;
    while is_running() {
        if is_killed(running.pid) {
            device.give_up(unique, &running);
            return;
        }
        tokio::time::sleep(KILL_POLL).await;
    }
}
