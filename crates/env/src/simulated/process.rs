//! Processes: a set of tasks that can be paused, resumed and killed, and its world.
//!
//! # Theory
//! A process is a `LocalSet`, polled by one task of the simulation. Paused: it is not polled, and
//! what wakes it meanwhile is not lost. Killed: first its world is dead, then its tasks are dropped,
//! so destructors cannot say goodbye to anyone (V2).

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use super::Shared;
use super::disk::SimFolder;
use super::machine::{MachineState, SimMachine};
use super::network::{self, Goodbye};
use crate::{Address, Connection, Env, Folder, Listener, Moment, WallTime, World, new_task_set};

/// A process of a machine; clones share it. Dropping it changes nothing.
#[derive(Clone)]
pub struct SimProcess {
    state: Rc<ProcessState>,
    shared: Rc<Shared>,
}

impl SimProcess {
    pub(super) fn spawn<F: Future<Output = ()> + 'static>(
        shared: &Rc<Shared>,
        machine: &SimMachine,
        name: &str,
        main: impl FnOnce(Env) -> F,
    ) -> Self {
        assert!(machine.is_up(), "a process cannot start on a machine without power");
        let state = ProcessState::new(shared, &machine.state, name);
        shared.processes.borrow_mut().push(state.clone());
        let tasks = new_task_set();
        let main = main(state.env(shared));
        let done = state.clone();
        tasks.spawn_local(async move {
            main.await;
            done.is_done.set(true);
        });
        *state.tasks.borrow_mut() = Some(tasks);
        shared.trace_event("spawn", u64::from(machine.number()), state.number, name.as_bytes(), 0);
        shared.spawn(Running { state: state.clone(), shared: shared.clone() });
        Self { state, shared: shared.clone() }
    }

    /// Stops it as SIGSTOP does: nothing of it runs, its sockets stay and fill up.
    pub fn pause(&self) {
        self.state.is_paused.set(true);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.state.is_paused.set(false);
        self.state.wake();
    }

    /// Ends it as SIGKILL does. Of the frames that it had sent and that had not left, some first
    /// ones still do; then its peers see the end.
    pub fn kill(&self) {
        self.state.kill(&self.shared, Goodbye::Reset);
    }

    /// Resets all its connections; what is under way is lost.
    pub fn close_connections(&self) {
        self.state.close_connections(&self.shared);
    }

    /// Whether it was neither killed nor has it ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.state.is_alive.get()
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        while self.state.is_alive.get() {
            self.state.ended.notified().await;
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }
}

pub(super) struct ProcessState {
    pub(super) number: u64,
    pub(super) name: String,
    pub(super) machine: Rc<MachineState>,
    pub(super) is_alive: Cell<bool>,
    is_paused: Cell<bool>,
    is_done: Cell<bool>,
    tasks: RefCell<Option<LocalSet>>,
    waker: RefCell<Option<Waker>>,
    ended: Notify,
    /// Its ends of connections; some may be over.
    pub(super) ends: RefCell<Vec<Weak<network::End>>>,
}

impl ProcessState {
    pub(super) fn new(shared: &Rc<Shared>, machine: &Rc<MachineState>, name: &str) -> Rc<Self> {
        Rc::new(Self {
            number: shared.number(),
            name: name.to_owned(),
            machine: machine.clone(),
            is_alive: Cell::new(true),
            is_paused: Cell::new(false),
            is_done: Cell::new(false),
            tasks: RefCell::default(),
            waker: RefCell::default(),
            ended: Notify::new(),
            ends: RefCell::default(),
        })
    }

    /// The world as this process sees it.
    pub(super) fn env(self: &Rc<Self>, shared: &Rc<Shared>) -> Env {
        Env::new(Rc::new(SimWorld { process: self.clone(), shared: shared.clone() }))
    }

    pub(super) fn kill(&self, shared: &Shared, goodbye: Goodbye) {
        if !self.is_alive.replace(false) {
            return;
        }
        shared.trace_event("kill", self.number, 0, self.name.as_bytes(), 0);
        self.leave_network(shared, goodbye);
        self.end(shared);
    }

    fn leave_network(&self, shared: &Shared, goodbye: Goodbye) {
        shared.network.remove_listeners(self.number);
        for end in self.ends.take() {
            if let Some(end) = end.upgrade() {
                end.abandon(shared, goodbye);
            }
        }
    }

    fn close_connections(&self, shared: &Shared) {
        for end in self.ends.take() {
            if let Some(end) = end.upgrade() {
                end.abandon(shared, Goodbye::Reset);
            }
        }
    }

    /// Drops all tasks; where it kills itself, its runner does so after the poll.
    pub(super) fn end(&self, shared: &Shared) {
        shared.processes.borrow_mut().retain(|other| other.number != self.number);
        let tasks = self.tasks.try_borrow_mut().ok().and_then(|mut tasks| tasks.take());
        drop(tasks);
        self.ended.notify_waiters();
        self.wake();
    }

    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        waker.into_iter().for_each(Waker::wake);
    }

    pub(super) fn check_alive(&self) -> io::Result<()> {
        if self.is_alive.get() { Ok(()) } else { Err(io::Error::other("the process was killed")) }
    }
}

/// Polls a process until its end.
struct Running {
    state: Rc<ProcessState>,
    shared: Rc<Shared>,
}

impl Future for Running {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let state = &self.state;
        if state.is_alive.get() {
            *state.waker.borrow_mut() = Some(context.waker().clone());
            if state.is_paused.get() {
                return Poll::Pending;
            }
            if let Some(tasks) = &mut *state.tasks.borrow_mut() {
                let _ = Pin::new(tasks).poll(context);
            }
            if state.is_done.get() && state.is_alive.replace(false) {
                // As the kernel does at an exit: what was sent leaves, then the end.
                self.shared.trace_event("exit", state.number, 0, state.name.as_bytes(), 0);
                state.leave_network(&self.shared, Goodbye::Orderly);
                state.end(&self.shared);
            }
        }
        if state.is_alive.get() {
            return Poll::Pending;
        }
        // It killed itself in this poll.
        let tasks = state.tasks.borrow_mut().take();
        drop(tasks);
        Poll::Ready(())
    }
}

/// The world of one process.
struct SimWorld {
    process: Rc<ProcessState>,
    shared: Rc<Shared>,
}

impl World for SimWorld {
    fn now(&self) -> Moment {
        self.process.machine.now()
    }

    fn wall_time(&self) -> WallTime {
        self.process.machine.wall_time()
    }

    fn random(&self) -> u64 {
        // The dead draw no numbers, so that their destructors do not change the run.
        if self.process.is_alive.get() { self.shared.random() } else { 0 }
    }

    fn connect(&self, to: Address) -> LocalBoxFuture<'static, io::Result<Connection>> {
        network::connect(self.shared.clone(), self.process.clone(), to).boxed_local()
    }

    fn listen(&self, at: Address) -> LocalBoxFuture<'static, io::Result<Listener>> {
        let result = network::listen(&self.shared, &self.process, at);
        futures_util::future::ready(result).boxed_local()
    }

    fn folder(&self, path: &Path) -> io::Result<Folder> {
        let (disk, inner) = self.process.machine.find_disk(path)?;
        Ok(Folder(Rc::new(SimFolder::open(&self.process, &disk, &inner)?)))
    }
}
