//! Mounting and unmounting.
//!
//! # Theory
//! ```text
//! main thread         waits for a signal or for the end of the session
//! client's thread     /dev/fuse, the mount's file system and the client library: no request changes
//!                     the thread
//! pages thread        tells the kernel which pages are stale; must not answer requests, since the
//!                     kernel may let it wait for one
//! names thread        tells it which names are stale, likewise
//! ```
//! # Failure
//! An unmount with open files detaches the directory at once; what waits is sent, and after
//! [`END_WAIT`] the kernel's connection is closed: it answers whoever still waits with `ENOTCONN`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use braid_env::Env;
use braid_terms::DiskId;
use tokio::sync::oneshot;

use crate::attach::{Access, Attach, attach, detach};
use crate::bridge::{Bridge, begin};
use crate::kernel::{REQUEST_MAX, drop_name, drop_pages, store_pages};
use crate::session::to_ino;
use crate::store::{Store, StoreError};
use crate::vfs::{Shared, Stale, Tuning};
use crate::write::Depth;

/// What to mount, where and how.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The cluster's `client.toml`.
    pub cluster_file: PathBuf,
    /// An empty directory, usually.
    pub directory: PathBuf,
    /// As after `-o`: see [`Flags::parse`].
    pub options: Vec<String>,
    /// Unix sockets of I/O servers of this machine.
    pub io_sockets: BTreeMap<DiskId, PathBuf>,
}

/// What `-o` says.
#[derive(Clone, Debug)]
pub struct Flags {
    /// Sizes and times.
    pub tuning: Tuning,
    /// What is mounted already gets other options.
    pub remount: bool,
    /// Of this client, for policies.
    pub priority: Option<u8>,
    /// The mount has an LCC of its own.
    pub own_lcc: bool,
    read_only: bool,
    access: Option<Access>,
    dev: Option<bool>,
    suid: Option<bool>,
    exec: bool,
}

/// Why a mount did not come about, or did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// There is no FUSE.
    #[error(
        "/dev/fuse cannot be opened ({error}): load the module with `modprobe fuse`, or, in a \
         container, start it with `--device /dev/fuse --cap-add SYS_ADMIN`"
    )]
    NoFuse {
        /// What the kernel says.
        error: std::io::Error,
    },
    /// It is there, for others.
    #[error("/dev/fuse may not be opened by this user: `chmod 666 /dev/fuse`, or mount as root")]
    FuseClosed,
    /// Not root, and no helper.
    #[error(
        "only root may mount by itself, and the helper `fusermount3` is not installed: install \
         the package `fuse3`, or mount as root"
    )]
    NoHelper,
    /// The mount point cannot be used.
    #[error("{}: cannot be mounted on: {error}", directory.display())]
    Directory {
        /// Which.
        directory: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// An option is not known, or makes no sense.
    #[error("mount option `{option}`: {reason}")]
    Option {
        /// Which.
        option: String,
        /// Why.
        reason: &'static str,
    },
    /// The cluster's file cannot be used.
    #[error("{}: {reason}", file.display())]
    ClusterFile {
        /// Which.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The cluster is not there.
    #[error("the cluster cannot be reached: {0}")]
    Cluster(#[from] StoreError),
    /// The kernel or the helper refused.
    #[error("{}: the mount was refused: {error}", directory.display())]
    Refused {
        /// Where.
        directory: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The session ended by a failure.
    #[error("the mount ended: {0}")]
    Session(std::io::Error),
    /// A thread could not be started, or ended by a bug.
    #[error("the mount's thread `{thread}` failed")]
    Thread {
        /// Which.
        thread: &'static str,
    },
}

impl Flags {
    /// Parses what stands after `-o`, a list for each `-o`, options by commas.
    ///
    /// | option                     | means                                                    |
    /// |----------------------------|----------------------------------------------------------|
    /// | `hard` (default), `soft`   | wait for a lost cluster, or give `EIO`                    |
    /// | `no_lcc`                   | it owns nothing: all is asked of servers                  |
    /// | `sync`                     | each write is held before it is answered                  |
    /// | `local_locks`              | locks hold within this mount only                         |
    /// | `ttl=MS`                   | how long the kernel believes what it was told at most; 0: ask always |
    /// | `write_memory=MIB`         | bytes that may wait to be written                         |
    /// | `priority=P`               | of this client, for policies (0 to 255)                   |
    /// | `allow_other`, `allow_root`, `allow_owner` | who may use it; root's mounts: all by default |
    /// | `ro`, `rw`, `dev`, `nodev`, `suid`, `nosuid`, `exec`, `noexec`, `noatime`, `atime` | the kernel's |
    /// | `remount`                  | the kernel's options of what is mounted change            |
    /// | `nofail`, `_netdev`, `noauto`, `user`, `defaults`, `x-*` | for other tools: taken and left |
    pub fn parse<'a>(lists: impl IntoIterator<Item = &'a str>) -> Result<Self, MountError> {
        let mut flags = Self {
            tuning: Tuning::default(),
            remount: false,
            priority: None,
            own_lcc: true,
            read_only: false,
            access: None,
            dev: None,
            suid: None,
            exec: true,
        };
        let options = lists.into_iter().flat_map(|list| list.split(','));
        for option in options.filter(|option| !option.is_empty()) {
            flags.take(option)?;
        }
        Ok(flags)
    }

    fn take(&mut self, option: &str) -> Result<(), MountError> {
        let refused = |reason| MountError::Option { option: option.to_owned(), reason };
        match option.split_once('=').unwrap_or((option, "")) {
            ("hard", "") => self.tuning.soft = false,
            ("soft", "") => self.tuning.soft = true,
            ("sync", "") => self.tuning.sync = true,
            ("no_lcc", "") => self.own_lcc = false,
            ("local_locks", "") => self.tuning.local_locks = true,
            ("async", "") => self.tuning.sync = false,
            ("ttl", value) => {
                let ttl = value.parse().ok().filter(|ttl| *ttl <= TTL_MS_MAX);
                self.tuning.ttl_ms = ttl.ok_or_else(|| refused("a time from 0 to 60000 ms"))?;
            }
            ("write_memory", value) => {
                let mib = value.parse().ok().filter(|mib| (1..=4096_u64).contains(mib));
                let mib = mib.ok_or_else(|| refused("1 to 4096 MiB"))?;
                self.tuning.write_memory = mib << 20;
            }
            ("priority", value) => {
                let priority = value.parse().map_err(|_| refused("a number from 0 to 255"))?;
                self.priority = Some(priority);
            }
            ("allow_other", "") => self.access = Some(Access::All),
            ("allow_root", "") => self.access = Some(Access::RootAndOwner),
            ("allow_owner", "") => self.access = Some(Access::Owner),
            ("remount", "") => self.remount = true,
            ("ro", "") => self.read_only = true,
            ("rw", "") => self.read_only = false,
            ("dev", "") => self.dev = Some(true),
            ("nodev", "") => self.dev = Some(false),
            ("suid", "") => self.suid = Some(true),
            ("nosuid", "") => self.suid = Some(false),
            ("exec", "") => self.exec = true,
            ("noexec", "") => self.exec = false,
            ("atime" | "noatime" | "relatime", "") => {}
            // What the kernel shows of a mount, and `mount -o remount` hands back.
            ("default_permissions", "") | ("user_id" | "group_id", _) => {}
            ("nofail" | "_netdev" | "noauto" | "auto" | "user" | "users" | "defaults", "") => {}
            (name, _) if name.starts_with("x-") => {}
            _ => return Err(refused("is not known; see `docs/guides/mount.md`")),
        }
        Ok(())
    }

    /// Changes what the kernel keeps of a mount: `ro`, `nodev`, `nosuid`, `noexec`.
    ///
    /// Errors: it is not one, or the caller may not.
    pub fn remount(&self, directory: &Path) -> Result<(), MountError> {
        let how = self.attach("");
        rustix::mount::mount_remount(directory, how.flags(), c"").map_err(|error| {
            MountError::Refused { directory: directory.to_owned(), error: error.into() }
        })
    }

    fn attach(&self, name: &str) -> Attach {
        let is_root = rustix::process::geteuid().is_root();
        // A mount of root's is a file system like any other, unless it is told not to be; and
        // `fusermount3` lets only those users open theirs to others to whom /etc/fuse.conf gives it.
        let usual = if is_root { Access::All } else { Access::Owner };
        Attach {
            name: name.to_owned(),
            dev: self.dev.unwrap_or(is_root),
            suid: self.suid.unwrap_or(is_root),
            exec: self.exec,
            read_only: self.read_only,
            access: self.access.unwrap_or(usual),
        }
    }
}

/// A mount that serves.
pub struct Mounted<S: Store> {
    directory: PathBuf,
    bridge: Option<Bridge<S>>,
    ended: mpsc::Receiver<std::io::Result<()>>,
    client: JoinHandle<()>,
}

/// How long an unmount waits for what is still open.
pub const END_WAIT: Duration = Duration::from_secs(5);
const TTL_MS_MAX: u64 = 60_000;

impl<S: Store> Mounted<S> {
    /// Mounts a store that `make` reaches, on the thread of the client library.
    pub fn start<M, F>(
        make: M,
        name: &str,
        directory: &Path,
        flags: &Flags,
    ) -> Result<Self, MountError>
    where
        M: FnOnce(Env) -> F + Send + 'static,
        F: Future<Output = Result<S, StoreError>>,
    {
        check_fuse()?;
        check_directory(directory)?;
        let (stale_pages, pages) = mpsc::channel();
        let (stale_names, names) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let begun = start_client(make, flags.tuning.clone(), (stale_pages, stale_names), end)?;
        let refused = |error| MountError::Refused { directory: directory.to_owned(), error };
        let how = flags.attach(name);
        let fd = attach(directory, &how).map_err(refused)?;
        for (thread, stale) in [("pages", pages), ("names", names)] {
            let notices = fd.try_clone().map_err(refused)?;
            start_notices(thread, notices, stale, &begun.bridge.shared)?;
        }
        let only = (how.access == Access::RootAndOwner).then(|| rustix::process::getuid().as_raw());
        // The thread is gone: `ended` tells.
        let _ = begun.attached.send((fd, only));
        set_read_ahead(directory);
        let directory = directory.to_owned();
        Ok(Self { directory, bridge: Some(begun.bridge), ended, client: begun.thread })
    }

    /// Unmounts, whatever is open. Then [`Mounted::wait`] ends soon.
    pub fn unmount(&mut self) {
        if let Err(error) = detach(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "not unmounted");
        }
    }

    /// Whether the session has ended; waits for that at most so long.
    fn wait_end(&self, at_most: Duration) -> Option<std::io::Result<()>> {
        match self.ended.recv_timeout(at_most) {
            Ok(outcome) => Some(outcome),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => Some(Ok(())),
        }
    }

    /// Waits until it is unmounted, by `umount`, or because `stop` says so; sends what still waits.
    pub fn wait(mut self, mut stop: impl FnMut() -> bool) -> Result<(), MountError> {
        let outcome = loop {
            if let Some(outcome) = self.wait_end(STOP_POLL) {
                break Some(outcome);
            }
            if stop() {
                self.unmount();
                break self.wait_end(END_WAIT);
            }
        };
        let is_over = outcome.is_some();
        if let Some(bridge) = self.bridge.take()
            && !is_over
        {
            self.flush_rest(&bridge);
        }
        if is_over && self.client.join().is_err() {
            return Err(MountError::Thread { thread: "client" });
        }
        outcome.unwrap_or(Ok(())).map_err(MountError::Session)
    }

    /// Sends what waits, while somebody still has files open.
    fn flush_rest(&self, bridge: &Bridge<S>) {
        let (done, end) = mpsc::channel();
        bridge.run(move |vfs| async move {
            let outcome = vfs.flush_all(Depth::Stable).await;
            let _ = done.send(outcome);
        });
        match end.recv_timeout(END_WAIT) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "not all written bytes reached the cluster"),
            Err(_) => tracing::error!("the cluster did not take all written bytes in time"),
        }
    }
}

const STOP_POLL: Duration = Duration::from_millis(100);

/// The client library's thread, before it has anything to serve.
struct Begun<S> {
    thread: JoinHandle<()>,
    bridge: Bridge<S>,
    /// What it is to serve, and for whom only (besides root).
    attached: oneshot::Sender<(OwnedFd, Option<u32>)>,
}

fn start_client<S, M, F>(
    make: M,
    tuning: Tuning,
    stale: (mpsc::Sender<Stale>, mpsc::Sender<Stale>),
    end: mpsc::Sender<std::io::Result<()>>,
) -> Result<Begun<S>, MountError>
where
    S: Store,
    M: FnOnce(Env) -> F + Send + 'static,
    F: Future<Output = Result<S, StoreError>>,
{
    let (ready, is_ready) = mpsc::channel();
    let (attached, is_attached) = oneshot::channel();
    let run = move || {
        let env = braid_env::machine::env(braid_env::machine::Inherited::default());
        let serve = async {
            let begun = match make(env).await {
                Ok(store) => begin(store, tuning, stale).await,
                Err(error) => Err(error),
            };
            match begun {
                Ok((bridge, serving)) => {
                    let _ = ready.send(Ok(bridge));
                    // Not mounted after all: there is nothing to serve.
                    let Ok((fd, only)) = is_attached.await else { return };
                    serving.serve(fd, only, end).await;
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        };
        if let Err(error) = braid_env::machine::run(serve) {
            tracing::error!(%error, "no runtime for the mount");
        }
    };
    let thread = std::thread::Builder::new()
        .name("client".to_owned())
        .spawn(run)
        .map_err(|_| MountError::Thread { thread: "client" })?;
    let bridge = is_ready.recv().map_err(|_| MountError::Thread { thread: "client" })??;
    Ok(Begun { thread, bridge, attached })
}

fn start_notices(
    thread: &'static str,
    notices: OwnedFd,
    stale: mpsc::Receiver<Stale>,
    shared: &std::sync::Arc<Shared>,
) -> Result<(), MountError> {
    // Weak: this thread ends with the last sender, which `Shared` has.
    let shared = std::sync::Arc::downgrade(shared);
    let run = move || {
        for stale in stale {
            let (id, name) = match stale {
                Stale::Inode(id) => (id, None),
                Stale::Name(directory, name) => (directory, Some(name)),
                Stale::Bytes { inode, at, bytes } => {
                    let Some(shared) = shared.upgrade() else { return };
                    let ino = to_ino(&shared, inode.id);
                    // Not taken: the file is asked for again.
                    let _ = store_pages(&notices, ino, at, &bytes);
                    shared.pages_stored(&inode, at, &bytes);
                    continue;
                }
                Stale::Told(told) => {
                    // Whoever asked may have gone.
                    let _ = told.send(());
                    continue;
                }
            };
            let Some(shared) = shared.upgrade() else { return };
            let ino = to_ino(&shared, id);
            drop(shared);
            let dropped = match name {
                None => drop_pages(&notices, ino),
                Some(name) => drop_name(&notices, ino, &name),
            };
            if let Err(error) = dropped {
                tracing::debug!(%id, %error, "the kernel does not know what is stale");
            }
        }
    };
    std::thread::Builder::new()
        .name(thread.to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|_| MountError::Thread { thread })
}

fn check_fuse() -> Result<(), MountError> {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    match device {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(MountError::FuseClosed);
        }
        Err(error) => return Err(MountError::NoFuse { error }),
    }
    let has_helper = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let more = ["/sbin", "/bin", "/usr/bin"].map(PathBuf::from);
        std::env::split_paths(&path)
            .chain(more)
            .any(|folder| ["fusermount3", "fusermount"].iter().any(|h| folder.join(h).exists()))
    };
    if rustix::process::geteuid().is_root() || has_helper() {
        Ok(())
    } else {
        Err(MountError::NoHelper)
    }
}

fn check_directory(directory: &Path) -> Result<(), MountError> {
    let refused = |error| MountError::Directory { directory: directory.to_owned(), error };
    let metadata = std::fs::metadata(directory).map_err(refused)?;
    if metadata.is_dir() {
        return Ok(());
    }
    Err(refused(std::io::Error::from_raw_os_error(rustix::io::Errno::NOTDIR.raw_os_error())))
}

/// Lets the kernel read ahead as much as one request carries: its default of 128 KiB makes eight
/// requests of one. Only root may; without it reading is slower.
fn set_read_ahead(directory: &Path) {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return };
    let Ok(directory) = directory.canonicalize() else { return };
    let directory = directory.to_string_lossy().into_owned();
    // `36 35 0:52 / /mnt rw ...`: the last one that is mounted there.
    let device = mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (device, _, place) = (fields.next()?, fields.next()?, fields.next()?);
        (place == directory).then(|| device.to_owned())
    });
    if let Some(device) = device {
        let kib = REQUEST_MAX >> 10;
        let _ = std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), kib.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parsed() {
        let flags = Flags::parse(["soft,ttl=0", "ro,write_memory=16,x-systemd.automount"])
            .expect("all are known");
        assert!(flags.tuning.soft);
        assert_eq!((flags.tuning.ttl_ms, flags.tuning.write_memory), (0, 16 << 20));
        assert!(flags.read_only);
        let shown = "remount,ro,relatime,user_id=0,group_id=0,default_permissions,allow_other";
        assert!(Flags::parse([shown]).expect("the kernel shows these").remount);
    }

    #[test]
    fn unknown_options_are_refused() {
        for option in ["sofft", "ttl=60001", "ttl=", "write_memory=0", "soft=1"] {
            assert!(matches!(Flags::parse([option]), Err(MountError::Option { .. })), "{option}");
        }
    }
}
