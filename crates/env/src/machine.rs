//! The machine's side: sockets, files, clocks.
//!
//! # Theory
//! One [`Env`] belongs to one thread with a local runtime. Sockets are in
//! [`stream`] and [`socket`], files in [`disk`]; what must wait for the medium goes to the small
//! pool of threads in [`pool`].
//! # Failure
//! Nothing here ends the process; what the world refuses comes back as `io::Error`.

mod disk;
mod pool;
mod socket;
mod stream;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Once;

use bytes::Buf;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use rustix::rand::GetRandomFlags;
use rustix::time::ClockId;

use crate::memory;
use crate::{Address, Connection, Env, Folder, Listener, Moment, WallTime, World};
use disk::MachineFolder;
use pool::Pool;
pub use socket::{Accepted, RawListener, address_towards, connection_from_fd, listen_raw};

/// Listening sockets that the parent bound, by the address they were bound for.
pub type Inherited = BTreeMap<Address, OwnedFd>;

/// The world of this thread; what it listens at is taken from `inherited` where it is there.
#[must_use]
pub fn env(inherited: Inherited) -> Env {
    KEEP_MEMORY.call_once(keep_freed_memory);
    Env::new(Rc::new(Machine {
        inherited: RefCell::new(inherited),
        random: RefCell::new(RandomBytes { bytes: [0; RANDOM_BUFFER], used: RANDOM_BUFFER }),
        pool: Rc::new(Pool::new()),
    }))
}

/// Runs a role in this thread: a runtime of one thread and a set of tasks. A panic of any task is a
/// panic of this call.
///
/// Errors: the machine gives no runtime.
pub fn run<T>(role: impl Future<Output = T>) -> io::Result<T> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all();
    // A panic is never lost; tokio would keep it in a handle that nobody looks at.
    #[cfg(tokio_unstable)]
    builder.unhandled_panic(tokio::runtime::UnhandledPanic::ShutdownRuntime);
    // Not a `LocalSet`: each wake of a task in one costs a system call.
    let runtime = builder.build_local(tokio::runtime::LocalOptions::default())?;
    Ok(runtime.block_on(async {
        tokio::task::spawn_local(memory::tend());
        role.await
    }))
}

/// Runs a role in a thread of its own, with a world of its own. Who wants to know of its end gives it
/// a channel.
///
/// Errors: the machine gives no thread.
pub fn spawn<F: Future<Output = ()>>(
    name: &str,
    role: impl FnOnce(Env) -> F + Send + 'static,
) -> io::Result<()> {
    let run_role = move || {
        let ended = run(async move { role(env(Inherited::new())).await });
        if let Err(error) = ended {
            tracing::error!(%error, "a thread has no runtime");
        }
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run_role).map(drop)
}

struct Machine {
    inherited: RefCell<Inherited>,
    random: RefCell<RandomBytes>,
    pool: Rc<Pool>,
}

impl World for Machine {
    fn now(&self) -> Moment {
        let time = rustix::time::clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).expect("a machine did not start in the future");
        Moment(seconds * 1_000_000_000 + time.tv_nsec.unsigned_abs())
    }

    fn wall_time(&self) -> WallTime {
        let time = rustix::time::clock_gettime(ClockId::Realtime);
        let nanoseconds = u32::try_from(time.tv_nsec).expect("below 10^9");
        WallTime { seconds: time.tv_sec, nanoseconds }
    }

    fn random(&self) -> u64 {
        self.random.borrow_mut().next()
    }

    fn connect(&self, to: Address) -> LocalBoxFuture<'static, io::Result<Connection>> {
        socket::connect(to).boxed_local()
    }

    fn listen(&self, at: Address) -> LocalBoxFuture<'static, io::Result<Listener>> {
        let inherited = self.inherited.borrow_mut().remove(&at);
        async move { socket::listen(at, inherited) }.boxed_local()
    }

    fn folder(&self, path: &Path) -> io::Result<Folder> {
        Ok(Folder(Rc::new(MachineFolder::open(path, self.pool.clone())?)))
    }
}

/// Tells the allocator to keep what is freed.
///
/// Many buffers live for a short time. As it comes, glibc gives such memory back and faults it in
/// again page by page; with this, at most `FREED_BYTES_KEPT` stay per arena. Large payloads have
/// memory of their own ([`crate::PageBuffer`]).
fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes two numbers and may be called at any time. Where it refuses them, the
    // allocator goes on as before.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, FREED_BYTES_KEPT);
    }
}

static KEEP_MEMORY: Once = Once::new();

/// Above the largest payload; the largest that glibc allows.
#[cfg(target_env = "gnu")]
const MMAP_FROM: i32 = 32 << 20;

#[cfg(target_env = "gnu")]
const FREED_BYTES_KEPT: i32 = 16 << 20;

/// Random bytes of the kernel, fetched some at a time: a call costs as much as the bytes.
struct RandomBytes {
    bytes: [u8; RANDOM_BUFFER],
    used: usize,
}

impl RandomBytes {
    fn next(&mut self) -> u64 {
        if self.used == RANDOM_BUFFER {
            // Up to 256 bytes arrive whole and without EINTR once the kernel's pool is ready.
            let count = rustix::io::retry_on_intr(|| {
                rustix::rand::getrandom(&mut self.bytes[..], GetRandomFlags::empty())
            })
            .expect("getrandom cannot fail for a valid buffer");
            assert_eq!(count, RANDOM_BUFFER, "the kernel gives short requests whole");
            self.used = 0;
        }
        let number = (&self.bytes[self.used..]).get_u64_le();
        // What was given out is not kept.
        self.bytes[self.used..self.used + 8].fill(0);
        self.used += 8;
        number
    }
}

/// In bytes; a multiple of 8.
const RANDOM_BUFFER: usize = 256;

#[cfg(test)]
#[path = "machine_test.rs"]
mod test;
