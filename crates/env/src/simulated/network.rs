//! Connections between simulated processes.
//!
//! # Theory
//! A connection has two *ends*, one per process. What an end sends lies in its outbox, each frame
//! with the time of its arrival; a task of the simulation, the *pump*, moves it into the inbox of
//! the other end, which is the channel that the role reads. The last item of an outbox is the end of
//! the connection.
//! ```text
//! send -> outbox: |frame 1.2ms|frame 3.0ms|end 3.4ms| -pump, while the link is not held-> inbox -> recv
//! ```
//! # Invariants
//! N1 Frames of one direction arrive in order, and the end after them (E2).
//! N2 While a link is held or the target has no power, nothing passes, also no end.
//! # Failure
//! | event at A                | what B gets                                                   |
//! |---------------------------|---------------------------------------------------------------|
//! | last sender dropped, exit | all frames, then the end                                      |
//! | `close`, kill, reset      | some first of the frames that were queued, then the end       |
//! | power cut                 | some first frames; the end after `SILENCE`, or when it sends to A after A is back |
//! | pause                     | nothing; its own frames fill A's inbox                        |
//! | link A to B held          | nothing; A gets the end after `UNACKED_MAX`                   |
//! | a frame of A held         | nothing from there on; the frame outlives A: it has left      |
//! | a frame of A lost         | the end; A gets it too, and nothing of what was under way     |

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use braid_terms::PAYLOAD_MAX;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until};

use super::Shared;
use super::machine::{CONNECT_WAIT, address_of, machine_of};
use super::process::ProcessState;
use crate::{
    Address, Closed, Connection, FRAME_HEAD_MAX, Frame, FrameReceiver, FrameSender, Listener,
    Payload, SenderOps,
};

/// Links and listeners.
pub(super) struct Network {
    latency: RefCell<Range<Duration>>,
    links: RefCell<BTreeMap<(u32, u32), Link>>,
    changed: Notify,
    listeners: RefCell<BTreeMap<Place, Listening>>,
    ends: RefCell<Vec<Weak<End>>>,
    watch: RefCell<Option<Watch>>,
}

type Watch = Box<dyn FnMut(&FrameSeen<'_>) -> Passage>;

/// A frame at the end of its way, before its receiver has it.
#[derive(Clone, Copy, Debug)]
pub struct FrameSeen<'a> {
    /// Machine and name of the sending process.
    pub from: (u32, &'a str),
    /// Machine and name of the receiving process.
    pub to: (u32, &'a str),
    /// Its head.
    pub head: &'a [u8],
}

/// What becomes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passage {
    /// It arrives.
    Pass,
    /// It waits, and all behind it in its direction of its connection, until this number is released.
    Hold(u32),
    /// It never arrives: the connection breaks.
    Lose,
}

/// One direction between two machines.
#[derive(Clone, Copy, Default)]
pub(super) struct Link {
    pub(super) held: bool,
    /// While held, connections break at the sender.
    pub(super) breaks: bool,
    pub(super) delay: Duration,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Tcp(u32, u16),
    Unix(u32, PathBuf),
}

struct Listening {
    process: Rc<ProcessState>,
    accepted: mpsc::Sender<Connection>,
}

/// How a process leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Goodbye {
    /// All that was sent, then the end.
    Orderly,
    /// Some of what was sent, then the end.
    Reset,
    /// Some of what was sent, then nothing for long.
    Silence,
}

impl Network {
    pub(super) fn new() -> Self {
        Self {
            latency: RefCell::new(LATENCY),
            links: RefCell::default(),
            changed: Notify::new(),
            listeners: RefCell::default(),
            ends: RefCell::default(),
            watch: RefCell::default(),
        }
    }

    pub(super) fn set_watch(&self, watch: Option<Watch>) {
        *self.watch.borrow_mut() = watch;
    }

    /// Frames held under this number arrive.
    pub(super) fn release(&self, number: u32) {
        for end in self.ends.borrow().iter().filter_map(Weak::upgrade) {
            if end.gate.get() == Gate::Held(number) {
                end.gate.set(Gate::Released);
            }
        }
        self.changed.notify_waiters();
    }

    pub(super) fn set_latency(&self, range: Range<Duration>) {
        *self.latency.borrow_mut() = range;
    }

    pub(super) fn change_link(&self, from: u32, to: u32, change: impl FnOnce(&mut Link)) {
        change(self.links.borrow_mut().entry((from, to)).or_default());
        self.changed.notify_waiters();
    }

    pub(super) fn heal_all(&self) {
        self.links.borrow_mut().clear();
        self.changed.notify_waiters();
    }

    /// Something that may have held frames is different now.
    pub(super) fn changed(&self) {
        self.changed.notify_waiters();
    }

    pub(super) fn reset(&self, shared: &Shared, which: impl Fn(u32, u32) -> bool) {
        let ends: Vec<_> = self.ends.borrow().iter().filter_map(Weak::upgrade).collect();
        for end in ends {
            let Some(other) = end.other.borrow().upgrade() else { continue };
            if end.is_open.get() && which(end.machine(), other.machine()) {
                shared.trace_event("reset", end.number, other.number, &[], 0);
                end.finish();
                other.finish();
            }
        }
    }

    pub(super) fn remove_listeners(&self, process: u64) {
        self.listeners.borrow_mut().retain(|_, listening| listening.process.number != process);
    }

    fn link(&self, from: u32, to: u32) -> Link {
        self.links.borrow().get(&(from, to)).copied().unwrap_or_default()
    }
}

impl Shared {
    fn travel_time(&self, from: u32, to: u32) -> Duration {
        let latency = self.network.latency.borrow().clone();
        self.random_span(&latency) + self.network.link(from, to).delay
    }

    /// Whether nothing passes now (N2).
    fn is_blocked(&self, from: u32, to: u32) -> bool {
        let is_up = self.machines.borrow().get(&to).is_some_and(|machine| machine.is_up.get());
        !is_up || self.network.link(from, to).held
    }

    /// Asks the watch, once for each frame.
    fn passage(&self, from: &End, to: &End) -> Passage {
        match from.gate.get() {
            Gate::Held(number) => return Passage::Hold(number),
            Gate::Released => {
                from.gate.set(Gate::Unasked);
                return Passage::Pass;
            }
            Gate::Unasked => {}
        }
        let mut watch = self.network.watch.borrow_mut();
        let outbox = from.outbox.borrow();
        let frame = outbox.front().and_then(|item| item.frame.as_ref());
        let (Some(watch), Some(frame)) = (watch.as_mut(), frame) else { return Passage::Pass };
        let passage = watch(&FrameSeen {
            from: (from.machine(), &from.process.name),
            to: (to.machine(), &to.process.name),
            head: &frame.head,
        });
        if let Passage::Hold(number) = passage {
            from.gate.set(Gate::Held(number));
        }
        passage
    }

    /// Waits until something has travelled.
    async fn travel(&self, from: u32, to: u32, deadline: Instant) -> io::Result<()> {
        sleep(self.travel_time(from, to)).await;
        while self.is_blocked(from, to) {
            tokio::select! {
                biased;
                () = self.network.changed.notified() => {}
                () = sleep_until(deadline) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Ok(())
    }
}

/// Connects within two seconds.
pub(super) async fn connect(
    shared: Rc<Shared>,
    process: Rc<ProcessState>,
    to: Address,
) -> io::Result<Connection> {
    process.check_alive()?;
    let from = process.machine.number;
    let (place, target) = match &to {
        Address::Tcp(address) => {
            let target = machine_of(address.ip(), from)
                .ok_or_else(|| io::Error::from(io::ErrorKind::NetworkUnreachable))?;
            (Place::Tcp(target, address.port()), target)
        }
        Address::Unix(path) => (Place::Unix(from, path.clone()), from),
    };
    let deadline = Instant::now() + CONNECT_WAIT;
    shared.travel(from, target, deadline).await?;
    let connected = connect_now(&shared, &process, &place, to.to_string());
    shared.travel(target, from, deadline).await?;
    connected
}

fn connect_now(
    shared: &Rc<Shared>,
    process: &Rc<ProcessState>,
    place: &Place,
    peer: String,
) -> io::Result<Connection> {
    let listeners = shared.network.listeners.borrow();
    let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
    let listening = listeners.get(place).ok_or_else(refused)?;
    // With a full queue the kernel would wait; a listener that never accepts is refused here.
    let permit = listening.accepted.try_reserve().map_err(|_| refused())?;
    let (near, far) = connect_ends(shared, process, &listening.process, peer);
    permit.send(far);
    Ok(near)
}

/// Listens at an address of the process's machine.
pub(super) fn listen(
    shared: &Rc<Shared>,
    process: &Rc<ProcessState>,
    at: Address,
) -> io::Result<Listener> {
    process.check_alive()?;
    let machine = process.machine.number;
    let mut listeners = shared.network.listeners.borrow_mut();
    let (place, address) = match at {
        Address::Tcp(mut address) => {
            if machine_of(address.ip(), machine) != Some(machine) {
                return Err(io::ErrorKind::AddrNotAvailable.into());
            }
            if address.port() == 0 {
                address.set_port(process.machine.next_port.get());
                process.machine.next_port.set(address.port() + 1);
            }
            (Place::Tcp(machine, address.port()), Address::Tcp(address))
        }
        Address::Unix(path) => (Place::Unix(machine, path.clone()), Address::Unix(path)),
    };
    if listeners.get(&place).is_some_and(|listening| !listening.accepted.is_closed()) {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let (sender, accepted) = mpsc::channel(BACKLOG);
    listeners.insert(place, Listening { process: process.clone(), accepted: sender });
    Ok(Listener { accepted, address })
}

/// One end of a connection.
pub(super) struct End {
    number: u64,
    process: Rc<ProcessState>,
    other: RefCell<Weak<End>>,
    outbox: RefCell<VecDeque<Item>>,
    queued_bytes: Cell<usize>,
    last_arrival: Cell<Instant>,
    /// Whether the role may send.
    is_open: Cell<bool>,
    /// Where frames for the role go; none when it gets no more.
    inbox: RefCell<Option<mpsc::Sender<Frame>>>,
    outbox_changed: Notify,
    inbox_gone: Notify,
    /// Of the frame at the front of its outbox.
    gate: Cell<Gate>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// The watch was not asked yet.
    Unasked,
    Held(u32),
    /// It was held and may pass.
    Released,
}

struct Item {
    arrives: Instant,
    /// None is the end.
    frame: Option<Frame>,
}

fn connect_ends(
    shared: &Rc<Shared>,
    client: &Rc<ProcessState>,
    server: &Rc<ProcessState>,
    peer: String,
) -> (Connection, Connection) {
    let (near, near_inbox) = End::new(shared, client);
    let (far, far_inbox) = End::new(shared, server);
    *near.other.borrow_mut() = Rc::downgrade(&far);
    *far.other.borrow_mut() = Rc::downgrade(&near);
    shared.trace_event("connect", near.number, far.number, &[], 0);
    shared.spawn(pump(shared.clone(), near.clone(), far.clone()));
    shared.spawn(pump(shared.clone(), far.clone(), near.clone()));
    let caller = SocketAddr::new(address_of(client.machine.number), 0);
    let far_peer = format!("{} {}", caller.ip(), near.number);
    let connection = |end, inbox, peer| Connection {
        sender: FrameSender(Rc::new(SimSender { end, shared: shared.clone() })),
        receiver: FrameReceiver(inbox),
        peer,
    };
    (connection(near, near_inbox, peer), connection(far, far_inbox, far_peer))
}

impl End {
    fn new(shared: &Shared, process: &Rc<ProcessState>) -> (Rc<Self>, mpsc::Receiver<Frame>) {
        let (sender, receiver) = mpsc::channel(INBOX_FRAMES_MAX);
        let end = Rc::new(Self {
            number: shared.number(),
            process: process.clone(),
            other: RefCell::default(),
            outbox: RefCell::default(),
            queued_bytes: Cell::new(0),
            last_arrival: Cell::new(Instant::now()),
            is_open: Cell::new(true),
            inbox: RefCell::new(Some(sender)),
            outbox_changed: Notify::new(),
            inbox_gone: Notify::new(),
            gate: Cell::new(Gate::Unasked),
        });
        remember(&mut process.ends.borrow_mut(), &end);
        remember(&mut shared.network.ends.borrow_mut(), &end);
        (end, receiver)
    }

    fn machine(&self) -> u32 {
        self.process.machine.number
    }

    fn push(&self, shared: &Shared, frame: Option<Frame>, extra: Duration) {
        let to = self.other.borrow().upgrade().map_or(self.machine(), |other| other.machine());
        let earliest = Instant::now() + shared.travel_time(self.machine(), to) + extra;
        let arrives = earliest.max(self.last_arrival.get());
        self.last_arrival.set(arrives);
        if let Some(frame) = &frame {
            self.queued_bytes.set(self.queued_bytes.get() + size_of(frame));
        }
        self.outbox.borrow_mut().push_back(Item { arrives, frame });
        self.outbox_changed.notify_one();
    }

    fn pop(&self) -> Option<Item> {
        let item = self.outbox.borrow_mut().pop_front()?;
        if let Some(frame) = &item.frame {
            self.queued_bytes.set(self.queued_bytes.get() - size_of(frame));
        }
        Some(item)
    }

    /// The role hears and sends nothing more; the other side gets what `goodbye` says.
    pub(super) fn abandon(&self, shared: &Shared, goodbye: Goodbye) {
        let was_open = self.is_open.replace(false);
        self.inbox.borrow_mut().take();
        self.inbox_gone.notify_one();
        if !was_open && goodbye == Goodbye::Orderly {
            // Its end is queued already.
            return;
        }
        if goodbye != Goodbye::Orderly {
            self.drop_some(shared);
        }
        let extra = if goodbye == Goodbye::Silence { SILENCE } else { Duration::ZERO };
        self.push(shared, None, extra);
    }

    /// Keeps some first frames of the outbox.
    fn drop_some(&self, shared: &Shared) {
        let mut outbox = self.outbox.borrow_mut();
        outbox.retain(|item| item.frame.is_some());
        let kept = shared.random.borrow_mut().index(outbox.len() + 1);
        let left = usize::from(self.gate.get() != Gate::Unasked);
        outbox.truncate(kept.max(left));
        let frames = outbox.iter().filter_map(|item| item.frame.as_ref());
        self.queued_bytes.set(frames.map(size_of).sum());
        self.last_arrival.set(outbox.back().map_or(Instant::now(), |item| item.arrives));
    }

    /// The connection is over for this end, and it has nothing more to say.
    fn finish(&self) {
        self.is_open.set(false);
        self.inbox.borrow_mut().take();
        self.outbox.borrow_mut().clear();
        self.queued_bytes.set(0);
        self.gate.set(Gate::Unasked);
        self.inbox_gone.notify_one();
        self.outbox_changed.notify_one();
    }
}

struct SimSender {
    end: Rc<End>,
    shared: Rc<Shared>,
}

impl SenderOps for SimSender {
    fn send(&self, frame: Frame) -> Result<(), Closed> {
        assert!(frame.head.len() <= FRAME_HEAD_MAX, "the head is too long");
        assert!(frame.payload.len() <= PAYLOAD_MAX, "the payload is too long");
        if !self.end.process.is_alive.get() || !self.end.is_open.get() {
            return Err(Closed);
        }
        self.end.push(&self.shared, Some(frame), Duration::ZERO);
        Ok(())
    }

    fn queued_bytes(&self) -> usize {
        self.end.queued_bytes.get()
    }

    fn close(&self) {
        if self.end.process.is_alive.get() && self.end.is_open.get() {
            self.end.abandon(&self.shared, Goodbye::Reset);
        }
    }
}

impl Drop for SimSender {
    fn drop(&mut self) {
        // The dead say nothing (V2).
        if self.end.process.is_alive.get() && self.end.is_open.replace(false) {
            self.end.push(&self.shared, None, Duration::ZERO);
        }
    }
}

/// Moves what `from` sends to `to`, until the connection is over.
async fn pump(shared: Rc<Shared>, from: Rc<End>, to: Rc<End>) {
    let (source, target) = (from.machine(), to.machine());
    loop {
        let next = from.outbox.borrow().front().map(|item| (item.arrives, item.frame.is_none()));
        let Some((arrives, is_end)) = next else {
            // Without an inbox and open, its last word was taken already.
            if !from.is_open.get() && from.inbox.borrow().is_none() {
                return;
            }
            from.outbox_changed.notified().await;
            continue;
        };
        if arrives > Instant::now() {
            tokio::select! {
                biased;
                () = from.outbox_changed.notified() => {}
                () = sleep_until(arrives) => {}
            }
            continue;
        }
        if shared.is_blocked(source, target) {
            wait_unblocked(&shared, &from, arrives, is_end, (source, target)).await;
            continue;
        }
        match shared.passage(&from, &to) {
            Passage::Pass => {}
            Passage::Hold(_) => {
                tokio::select! {
                    biased;
                    () = shared.network.changed.notified() => {}
                    () = from.outbox_changed.notified() => {}
                }
                continue;
            }
            Passage::Lose => {
                shared.trace_event("lose", from.number, to.number, &[], 0);
                to.finish();
                from.finish();
                return;
            }
        }
        let Some(item) = from.pop() else { continue };
        let Some(frame) = item.frame else {
            shared.trace_event("end", from.number, to.number, &[], 0);
            to.finish();
            from.finish();
            return;
        };
        let inbox = to.inbox.borrow().clone();
        let Some(inbox) = inbox else {
            // Nobody is there any more, and the other kernel says so.
            sleep(shared.travel_time(target, source)).await;
            from.finish();
            return;
        };
        let payload_length = frame.payload.len() as u64;
        shared.trace_event("frame", from.number, to.number, &frame.head, payload_length);
        tokio::select! {
            biased;
            // A receiver that was dropped takes frames and forgets them.
            _ = inbox.send(in_one_piece(frame)) => {}
            () = to.inbox_gone.notified() => {}
        }
    }
}

/// Waits for a held link; what was held for too long breaks the connection at the sender.
async fn wait_unblocked(
    shared: &Shared,
    from: &End,
    arrived: Instant,
    is_end: bool,
    (source, target): (u32, u32),
) {
    let link = shared.network.link(source, target);
    if is_end || (link.held && !link.breaks) {
        shared.network.changed.notified().await;
        return;
    }
    tokio::select! {
        biased;
        () = shared.network.changed.notified() => {}
        () = sleep_until(arrived + UNACKED_MAX) => {
            shared.trace_event("break", from.number, 0, &[], 0);
            from.finish();
            // The other side learns it, if at all, when the link is healed.
            from.push(shared, None, Duration::ZERO);
        }
    }
}

fn in_one_piece(frame: Frame) -> Frame {
    Frame { head: frame.head, payload: Payload::from(frame.payload.into_bytes()) }
}

fn size_of(frame: &Frame) -> usize {
    frame.head.len() + frame.payload.len()
}

fn remember(ends: &mut Vec<Weak<End>>, end: &Rc<End>) {
    ends.retain(|end| end.strong_count() > 0);
    ends.push(Rc::downgrade(end));
}

const LATENCY: Range<Duration> = Duration::from_micros(100)..Duration::from_micros(3000);

/// TCP_USER_TIMEOUT of the machine's sockets.
const UNACKED_MAX: Duration = Duration::from_secs(20);

/// Keep-alive of the machine's sockets.
const SILENCE: Duration = Duration::from_secs(50);

const BACKLOG: usize = 1024;

/// Frames that are received and not yet read, per connection.
const INBOX_FRAMES_MAX: usize = 256;
