//! Attaching a directory to `/dev/fuse`: `mount(2)` as root, else by way of `fusermount3`.
//!
//! # Theory
//! `fusermount3` opens `/dev/fuse`, mounts, and hands the descriptor over through a socket whose
//! number stands in its environment.

use std::ffi::CString;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::errno::Errno;

/// Who may use a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Everybody whom permissions let.
    All,
    /// Who mounted it, and root.
    RootAndOwner,
    /// Who mounted it.
    Owner,
}

/// How a directory is to be attached.
#[derive(Clone, Debug)]
pub struct Attach {
    /// Shown as the source.
    pub name: String,
    /// Device nodes count.
    pub dev: bool,
    /// Set-user-id counts.
    pub suid: bool,
    /// Programs may be started.
    pub exec: bool,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Who may use it.
    pub access: Access,
}

impl Attach {
    /// What the kernel keeps of it.
    pub fn flags(&self) -> MountFlags {
        let mut flags = MountFlags::empty();
        for (is_set, flag) in [
            (!self.dev, MountFlags::NODEV),
            (!self.suid, MountFlags::NOSUID),
            (!self.exec, MountFlags::NOEXEC),
            (self.read_only, MountFlags::RDONLY),
        ] {
            flags.set(flag, is_set);
        }
        flags
    }
}

const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];
const SUBTYPE: &str = "braid";

/// Mounts; gives the descriptor of `/dev/fuse`, which does not block.
///
/// Errors: what the kernel or the helper says.
pub fn attach(directory: &Path, how: &Attach) -> io::Result<OwnedFd> {
    let fd = match attach_directly(directory, how) {
        Err(Errno::PERM) => attach_by_helper(directory, how)?,
        outcome => outcome?,
    };
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    Ok(fd)
}

fn attach_directly(directory: &Path, how: &Attach) -> Result<OwnedFd, Errno> {
    let fd = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        fd.as_raw_fd(),
        uid.as_raw(),
        gid.as_raw(),
    );
    if how.access != Access::Owner {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let kind = format!("fuse.{SUBTYPE}");
    rustix::mount::mount(
        how.name.as_str(),
        directory,
        kind.as_str(),
        how.flags(),
        data.as_c_str(),
    )?;
    Ok(fd)
}

fn attach_by_helper(directory: &Path, how: &Attach) -> io::Result<OwnedFd> {
    let escaped = how.name.replace('\\', "\\\\").replace(',', "\\,");
    let mut options = format!("fsname={escaped},subtype={SUBTYPE},default_permissions");
    for (is_set, option) in [
        (how.dev, ",dev"),
        (how.suid, ",suid"),
        (!how.exec, ",noexec"),
        (how.read_only, ",ro"),
        (how.access != Access::Owner, ",allow_other"),
    ] {
        options.push_str(if is_set { option } else { "" });
    }
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for helper in HELPERS {
        match run_helper(helper, directory, &options) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => last = error,
            outcome => return outcome,
        }
    }
    Err(last)
}

fn run_helper(helper: &str, directory: &Path, options: &str) -> io::Result<OwnedFd> {
    let (theirs, ours) = UnixStream::pair()?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    let mut child = Command::new(helper)
        .arg("-o")
        .arg(options)
        .arg("--")
        .arg(directory)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(theirs);
    let received = receive(&ours);
    let mut reason = String::new();
    if let Some(mut errors) = child.stderr.take() {
        errors.read_to_string(&mut reason)?;
    }
    child.wait()?;
    match received {
        Ok(Some(fd)) => Ok(fd),
        _ => Err(io::Error::new(io::ErrorKind::PermissionDenied, reason.trim().to_owned())),
    }
}

fn receive(from: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(from, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let fds = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(fds)
}

/// Unmounts, whatever is open: then the directory is detached at once, and the rest ends when the
/// last file is closed.
///
/// Errors: what the kernel or the helper says.
pub fn detach(directory: &Path) -> io::Result<()> {
    let outcome = match rustix::mount::unmount(directory, UnmountFlags::empty()) {
        Err(Errno::BUSY) => rustix::mount::unmount(directory, UnmountFlags::DETACH),
        outcome => outcome,
    };
    match outcome {
        Err(Errno::PERM) => {}
        outcome => return Ok(outcome?),
    }
    for helper in HELPERS {
        let status = Command::new(helper).args(["-u", "-z", "--"]).arg(directory).status();
        match status {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => return Err(io::Error::other(format!("{helper}: {status}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::PermissionDenied.into())
}
