//! The simulator's side: virtual time, network and disks, all from one seed.
//!
//! # Theory
//! One thread, one tokio runtime with a paused clock: time stands while anything can run and jumps
//! to the next timer when nothing can. Machines have a clock and disks; a process is a `LocalSet` of
//! its own, so that it can be paused, resumed and killed with everything that it spawned.
//! ```text
//! run(seed) -> Simulation -> SimMachine 1 -> SimDisk, SimDisk
//!                            SimMachine 2    ^
//!                            processes: LocalSet + Env ----> connections: two pipes each, every
//!                                                            pipe moved by a task of the simulation
//! ```
//! tokio's timers count in milliseconds, so whatever takes time here takes at least one.
//! # Invariants
//! V1 The same seed and the same program give the same [`Simulation::trace`].
//! V2 A killed process changes nothing any more: from the kill on its `Env` is dead, also for the
//!    destructors of what it held.
//! V3 A panic in any task of a process ends the simulation; nothing is swallowed.
//! # Failure
//! All of it, on request: see [`SimMachine`], [`SimProcess`], [`SimDisk`] and the links of
//! [`Simulation`].
//! # Not here
//! Byte streams: frames arrive whole or not at all (E2). Torn frames are tested in `machine`.

mod disk;
mod machine;
mod network;
mod process;
mod trace;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::Instant;

use crate::{Env, new_task_set};
pub use disk::SimDisk;
use machine::MachineState;
pub use machine::SimMachine;
use network::Network;
pub use network::{FrameSeen, Passage};
use process::ProcessState;
pub use process::SimProcess;
use trace::{Random, Trace};

/// Runs `body` in a new world to its end; then all processes are gone.
pub fn run<T>(seed: u64, body: impl AsyncFnOnce(Simulation) -> T) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let runtime = builder.build().expect("a runtime without I/O needs nothing of the machine");
    let tasks = new_task_set();
    tasks.block_on(&runtime, async {
        let simulation = Simulation::new(seed);
        let result = body(simulation.clone()).await;
        simulation.end();
        result
    })
}

/// A virtual world; clones share it.
#[derive(Clone)]
pub struct Simulation(Rc<Shared>);

/// What all parts of a world share.
struct Shared {
    begin: Instant,
    random: RefCell<Random>,
    trace: RefCell<Trace>,
    network: Network,
    machines: RefCell<BTreeMap<u32, Rc<MachineState>>>,
    processes: RefCell<Vec<Rc<ProcessState>>>,
    spawner: mpsc::UnboundedSender<LocalBoxFuture<'static, ()>>,
    next_number: Cell<u64>,
}

impl Simulation {
    /// A new world within a `LocalSet` of a runtime with paused time; [`run`] makes both.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let (spawner, mut spawned) = mpsc::unbounded_channel();
        // Tasks of the world itself must not die with the process that happened to cause them.
        spawn_local(async move {
            while let Some(task) = spawned.recv().await {
                spawn_local(task);
            }
        });
        Self(Rc::new(Shared {
            begin: Instant::now(),
            random: RefCell::new(Random::new(seed)),
            trace: RefCell::new(Trace::new()),
            network: Network::new(),
            machines: RefCell::default(),
            processes: RefCell::default(),
            spawner,
            next_number: Cell::new(1),
        }))
    }

    /// The machine of this number, from 1; made when first asked for.
    #[must_use]
    pub fn machine(&self, number: u32) -> SimMachine {
        SimMachine::of(&self.0, number)
    }

    /// Starts a process: `main` gets its world; when it returns, the process ends.
    pub fn spawn_process<F: Future<Output = ()> + 'static>(
        &self,
        machine: &SimMachine,
        name: &str,
        main: impl FnOnce(Env) -> F,
    ) -> SimProcess {
        SimProcess::spawn(&self.0, machine, name, main)
    }

    /// Hash of everything that was delivered and done to disks so far. Source: 12.
    ///
    /// With `BRAID_SIM_TRACE` in the environment each event is a line on stderr.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.0.trace.borrow().hash()
    }

    /// Mixes what a checker saw into the trace.
    pub fn trace_event(&self, what: &str) {
        self.0.trace_event("note", 0, 0, what.as_bytes(), 0);
    }

    /// 64 bits of the seed's stream, for the scenario.
    #[must_use]
    pub fn random(&self) -> u64 {
        self.0.random()
    }

    /// A number of the seed's stream below `bound`, which is above 0.
    #[must_use]
    pub fn random_below(&self, bound: u64) -> u64 {
        self.0.random.borrow_mut().below(bound)
    }

    /// Virtual time since the beginning; without any machine's drift.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.begin.elapsed()
    }

    /// How long a frame is under way.
    pub fn set_latency(&self, range: Range<Duration>) {
        self.0.network.set_latency(range);
    }

    /// More time for each frame from one machine to another.
    pub fn set_delay(&self, from: u32, to: u32, extra: Duration) {
        self.0.network.change_link(from, to, |link| link.delay = extra);
    }

    /// Holds frames from one machine to another until [`Self::heal`]. A connection whose frames are
    /// held for `network::UNACKED_MAX` breaks at the sender, as TCP does.
    pub fn partition(&self, from: u32, to: u32) {
        self.0.network.change_link(from, to, |link| (link.held, link.breaks) = (true, true));
    }

    /// Holds both directions.
    pub fn partition_both(&self, one: u32, other: u32) {
        self.partition(one, other);
        self.partition(other, one);
    }

    /// Holds frames from one machine to another, and never tells anyone.
    pub fn black_hole(&self, from: u32, to: u32) {
        self.0.network.change_link(from, to, |link| (link.held, link.breaks) = (true, false));
    }

    /// Ends `partition`, `black_hole` and `set_delay` of one direction.
    pub fn heal(&self, from: u32, to: u32) {
        self.0.network.change_link(from, to, |link| *link = network::Link::default());
    }

    /// Ends all faults of the network.
    pub fn heal_all(&self) {
        self.0.network.heal_all();
    }

    /// Shows every frame to `watch` before it arrives, in place of the one before; the watch must not
    /// call the simulation.
    pub fn watch_frames(&self, watch: impl FnMut(&FrameSeen<'_>) -> Passage + 'static) {
        self.0.network.set_watch(Some(Box::new(watch)));
    }

    /// Frames that are held under this number arrive, and what is behind them.
    pub fn release_frames(&self, number: u32) {
        self.0.network.release(number);
    }

    /// Resets all connections between two machines; what is under way is lost.
    pub fn reset_connections(&self, one: u32, other: u32) {
        self.0
            .network
            .reset(&self.0, |from, to| (from, to) == (one, other) || (from, to) == (other, one));
    }

    /// Ends all processes, in the order of their start.
    fn end(&self) {
        // It may own parts of the world.
        self.0.network.set_watch(None);
        let processes = self.0.processes.take();
        processes.iter().for_each(|process| process.is_alive.set(false));
        processes.iter().for_each(|process| process.end(&self.0));
    }
}

impl Shared {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        // Without a receiver the world has ended.
        let _ = self.spawner.send(task.boxed_local());
    }

    fn random(&self) -> u64 {
        self.random.borrow_mut().next()
    }

    fn random_span(&self, range: &Range<Duration>) -> Duration {
        self.random.borrow_mut().span(range)
    }

    /// Numbers in the order of asking, for what needs a name.
    fn number(&self) -> u64 {
        self.next_number.replace(self.next_number.get() + 1)
    }

    fn trace_event(&self, what: &str, from: u64, to: u64, bytes: &[u8], count: u64) {
        let at = u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.trace.borrow_mut().event(at, what, from, to, bytes, count);
    }
}

#[cfg(test)]
#[path = "simulated_test.rs"]
mod test;
