//! The one interface to the world: clock, randomness, network and disk.
//!
//! # Theory
//! A role is one thread: a current-thread tokio runtime of local tasks, everything `!Send`. It
//! reaches the world only through its [`Env`], so that the same role runs on a machine
//! ([`machine`]) and, many of them in one thread, in the simulator ([`simulated`]). Timers are
//! `tokio::time`, which the simulator pauses and moves; tasks are `tokio::task::spawn_local`.
//! ```text
//! role -> Env -> machine:   CLOCK_BOOTTIME, getrandom, TCP and Unix sockets, files
//!             -> simulated: virtual time, one seed, frames in a queue, disks that lose writes
//! ```
//! # Invariants
//! E1 Nothing else in a role touches the world.
//! E2 Frames of one connection arrive in order, whole, or not at all.
//! # Not here
//! What the frames say: `wire`.

mod disk;
mod memory;
mod net;
mod time;

pub mod machine;
#[cfg(feature = "simulated")]
pub mod simulated;

use std::io;
use std::path::Path;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;

pub use disk::{File, FileOps, Folder, FolderOps, OpenMode, Space};
pub use memory::{PAGE_SIZE, PageBuffer};
pub use net::{
    Address, Closed, Connection, FRAME_HEAD_MAX, Frame, FrameReceiver, FrameSender, Listener,
    Payload, SenderOps,
};
pub use time::{Moment, WallTime};

/// What a world offers; roles hold it as [`Env`].
pub trait World {
    /// Time since the machine started, also while it was suspended (CLOCK_BOOTTIME). Source: O-4.
    fn now(&self) -> Moment;
    /// Time of day, for file times and people; may jump.
    fn wall_time(&self) -> WallTime;
    /// 64 random bits.
    fn random(&self) -> u64;
    /// Connects; the error says why not.
    fn connect(&self, to: Address) -> LocalBoxFuture<'static, io::Result<Connection>>;
    /// Listens at an address, or takes over the socket that the parent bound there.
    fn listen(&self, at: Address) -> LocalBoxFuture<'static, io::Result<Listener>>;
    /// Opens a folder; everything in it is reached by relative paths.
    fn folder(&self, path: &Path) -> io::Result<Folder>;
}

/// A role's access to the world; cloning it is cheap.
#[derive(Clone)]
pub struct Env(Rc<dyn World>);

impl Env {
    /// Wraps a world.
    #[must_use]
    pub fn new(world: Rc<dyn World>) -> Self {
        Self(world)
    }

    /// See [`World::now`].
    #[must_use]
    pub fn now(&self) -> Moment {
        self.0.now()
    }

    /// See [`World::wall_time`].
    #[must_use]
    pub fn wall_time(&self) -> WallTime {
        self.0.wall_time()
    }

    /// See [`World::random`].
    #[must_use]
    pub fn random(&self) -> u64 {
        self.0.random()
    }

    /// A random number below `bound`, which is above 0.
    #[must_use]
    pub fn random_below(&self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing is below 0");
        // The high half of the product: uniform enough for placement and jitter.
        ((u128::from(self.random()) * u128::from(bound)) >> 64) as u64
    }

    /// 128 random bits.
    #[must_use]
    pub fn random_u128(&self) -> u128 {
        u128::from(self.random()) << 64 | u128::from(self.random())
    }

    /// See [`World::connect`].
    pub async fn connect(&self, to: Address) -> io::Result<Connection> {
        self.0.connect(to).await
    }

    /// See [`World::listen`].
    pub async fn listen(&self, at: Address) -> io::Result<Listener> {
        self.0.listen(at).await
    }

    /// See [`World::folder`].
    pub fn folder(&self, path: &Path) -> io::Result<Folder> {
        self.0.folder(path)
    }
}

/// A set of tasks in which a panic is never lost: tokio would keep it in a handle that nobody looks
/// at, and the role would go on with half of itself.
#[cfg(feature = "simulated")]
fn new_task_set() -> tokio::task::LocalSet {
    #[allow(unused_mut, reason = "changed only with tokio_unstable")]
    let mut tasks = tokio::task::LocalSet::new();
    #[cfg(tokio_unstable)]
    tasks.unhandled_panic(tokio::runtime::UnhandledPanic::ShutdownRuntime);
    tasks
}
