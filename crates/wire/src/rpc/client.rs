//! The calling side of a connection.
//!
//! # Theory
//! A call is a *slot* by its id: made with the request, filled by the reply, the deadline or the end
//! of the connection, and taken out by the future that waits. One task per connection takes frames
//! in and keeps time; there is no timer per call, because nearly all calls end long before theirs.
//! # Invariants
//! C1 A slot without an outcome is counted in `awaited`.
//! C2 While calls are awaited, the task's alarm rings no later than the earliest deadline and the
//!    next ping.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use braid_env::{
    Address, Connection, Env, FRAME_HEAD_MAX, Frame, FrameReceiver, FrameSender, Payload,
};
use braid_terms::PAYLOAD_MAX;
use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use super::{HELLO_WAIT, Hello, HelloReply, Service, send_hello};
use crate::header::{self, FLAG_TOO_LARGE, FrameKind, Header};

/// One connection to a service; clones share it. It ends with the last clone and the last call.
pub struct Client<S> {
    handle: Rc<Handle>,
    service: PhantomData<fn(S)>,
}

impl<S> Clone for Client<S> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), service: PhantomData }
    }
}

/// Limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// Silence after which the peer is asked whether it is there, while a call waits.
    pub ping_after: Duration,
    /// Silence after which the connection counts as broken, while a call waits.
    pub broken_after: Duration,
    /// Payload bytes of requests under way, above which `call` waits; `start_call` does not.
    pub payload_bytes_max: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            ping_after: Duration::from_secs(2),
            broken_after: Duration::from_secs(10),
            payload_bytes_max: 64 << 20,
        }
    }
}

/// Why there is no connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens, or the network does not reach it.
    Unreachable(io::Error),
    /// It is there and does not want us; only after `NotReady` it may soon.
    Refused(HelloReply),
    /// It closed the connection, was silent, or does not speak our protocol.
    Broken,
}

impl std::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(error) => write!(f, "unreachable: {error}"),
            Self::Refused(reply) => write!(f, "refused: {reply:?}"),
            Self::Broken => f.write_str("the connection broke before it was greeted"),
        }
    }
}

impl std::error::Error for ConnectError {}

/// Why a call has no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CallError {
    /// The connection ended. Whether the request was carried out is not known, unless the
    /// connection had ended before the call.
    Closed,
    /// The deadline passed. Whether the request was carried out is not known; `Cancel` was sent.
    Deadline,
    /// Request or answer does not fit a frame.
    TooLarge,
    /// Request or answer was not understood: the peer is of another version, or there is a bug.
    Undecodable,
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Closed => "the connection ended",
            Self::Deadline => "the deadline passed",
            Self::TooLarge => "too large for a frame",
            Self::Undecodable => "not understood",
        })
    }
}

impl std::error::Error for CallError {}

impl<S: Service> Client<S> {
    /// Connects and says hello, with the usual options.
    pub async fn connect(env: &Env, to: Address, hello: Hello) -> Result<Self, ConnectError> {
        Self::connect_with(env, to, hello, ClientOptions::default()).await
    }

    /// Connects and says hello.
    pub async fn connect_with(
        env: &Env,
        to: Address,
        hello: Hello,
        options: ClientOptions,
    ) -> Result<Self, ConnectError> {
        assert_eq!(hello.role, S::ROLE, "the hello asks for another role than the service has");
        let mut connection = env.connect(to).await.map_err(ConnectError::Unreachable)?;
        send_hello(&connection, &hello).map_err(|_| ConnectError::Broken)?;
        let answer = timeout(HELLO_WAIT, connection.receiver.recv()).await;
        let Ok(Some(frame)) = answer else {
            return Err(ConnectError::Broken);
        };
        match parse_hello_reply(&frame.head) {
            Some(HelloReply::Welcome { version }) if version <= hello.version => {
                Ok(Self::run(connection, options))
            }
            Some(HelloReply::Welcome { .. }) | None => Err(ConnectError::Broken),
            Some(refusal) => Err(ConnectError::Refused(refusal)),
        }
    }

    fn run(connection: Connection, options: ClientOptions) -> Self {
        let Connection { sender, receiver, peer } = connection;
        let now = Instant::now();
        let core = Rc::new(Core {
            sender,
            peer,
            options,
            slots: RefCell::default(),
            awaited: Cell::new(0),
            next_id: Cell::new(1),
            alarm: Cell::new(now + IDLE_ALARM),
            heard: Cell::new(now),
            pinged: Cell::new(now),
            is_closed: Cell::new(false),
            alarm_moved: Notify::new(),
            closed: Notify::new(),
            room: Arc::new(Semaphore::new(room_of(options.payload_bytes_max))),
        });
        tokio::task::spawn_local(take_frames(core.clone(), receiver));
        Self { handle: Rc::new(Handle { core }), service: PhantomData }
    }

    /// Asks and waits for the answer. Waits first while too much payload is under way; such calls
    /// start in the order of their first poll, but calls without payload overtake them.
    ///
    /// Dropping the future cancels the call. `deadline` counts from the start of the call.
    pub async fn call(
        &self,
        request: &S::Request,
        payload: Payload,
        deadline: Duration,
    ) -> Result<(S::Reply, Bytes), CallError> {
        let core = &self.handle.core;
        let room = room_of(payload.len()).min(room_of(core.options.payload_bytes_max));
        let permit = if room == 0 {
            None
        } else {
            let count = u32::try_from(room).unwrap_or(u32::MAX);
            Some(core.room.clone().acquire_many_owned(count).await.map_err(|_| CallError::Closed)?)
        };
        self.send(request, payload, deadline, permit).await
    }

    /// Sends the request now, and gives a future that waits for the answer.
    ///
    /// Requests leave in the order of these calls (R1). Never waits: the caller bounds what it has
    /// under way. Dropping the future cancels the call.
    pub fn start_call(
        &self,
        request: &S::Request,
        payload: Payload,
        deadline: Duration,
    ) -> Call<S> {
        let core = &self.handle.core;
        let count = u32::try_from(room_of(payload.len())).unwrap_or(u32::MAX);
        let permit = core.room.clone().try_acquire_many_owned(count).ok();
        self.send(request, payload, deadline, permit)
    }

    fn send(
        &self,
        request: &S::Request,
        payload: Payload,
        deadline: Duration,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Call<S> {
        let mut call = Call {
            handle: self.handle.clone(),
            id: 0,
            refused: None,
            _permit: permit,
            service: PhantomData,
        };
        match self.handle.core.send_request(request, payload, deadline) {
            Ok(id) => call.id = id,
            Err(error) => call.refused = Some(error),
        }
        call
    }

    /// Whether the connection has ended; then every call fails with `Closed`.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.handle.core.is_closed.get()
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        let core = &self.handle.core;
        while !core.is_closed.get() {
            core.closed.notified().await;
        }
    }

    /// Ends the connection; what waits fails with `Closed`.
    pub fn close(&self) {
        self.handle.core.close();
    }

    /// The other side's address, for people.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.handle.core.peer
    }
}

/// A call under way: waits for its answer. Dropping it cancels the call.
pub struct Call<S> {
    handle: Rc<Handle>,
    /// 0 once it is over.
    id: u64,
    refused: Option<CallError>,
    _permit: Option<OwnedSemaphorePermit>,
    service: PhantomData<fn(S)>,
}

impl<S: Service> Future for Call<S> {
    type Output = Result<(S::Reply, Bytes), CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(error) = self.refused {
            return Poll::Ready(Err(error));
        }
        assert!(self.id != 0, "a call was polled after its end");
        let core = &self.handle.core;
        let mut slots = core.slots.borrow_mut();
        let slot = slots.get_mut(&self.id).expect("only the call itself takes its slot out");
        let Some(outcome) = slot.outcome.take() else {
            match &mut slot.waker {
                Some(waker) => waker.clone_from(context.waker()),
                None => slot.waker = Some(context.waker().clone()),
            }
            return Poll::Pending;
        };
        slots.remove(&self.id);
        drop(slots);
        self.id = 0;
        Poll::Ready(outcome.and_then(|(head, payload)| {
            let (_, body) = Header::parse(&head).map_err(|_| CallError::Undecodable)?;
            let reply = header::decode(body).map_err(|_| CallError::Undecodable)?;
            Ok((reply, payload))
        }))
    }
}

impl<S> Drop for Call<S> {
    fn drop(&mut self) {
        if self.id == 0 {
            return;
        }
        let core = &self.handle.core;
        let slot = core.slots.borrow_mut().remove(&self.id);
        if slot.is_some_and(|slot| slot.outcome.is_none()) {
            core.awaited.set(core.awaited.get() - 1);
            core.cancel(self.id);
        }
    }
}

/// Ends the connection when nobody can use it any more.
struct Handle {
    core: Rc<Core>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.close();
    }
}

struct Core {
    sender: FrameSender,
    peer: String,
    options: ClientOptions,
    slots: RefCell<BTreeMap<u64, Slot>>,
    awaited: Cell<usize>,
    next_id: Cell<u64>,
    /// When the task looks at deadlines and silence.
    alarm: Cell<Instant>,
    /// When the peer was heard, or when the first of the awaited calls began.
    heard: Cell<Instant>,
    pinged: Cell<Instant>,
    is_closed: Cell<bool>,
    alarm_moved: Notify,
    closed: Notify,
    room: Arc<Semaphore>,
}

struct Slot {
    deadline: Instant,
    outcome: Option<Result<(Bytes, Bytes), CallError>>,
    waker: Option<Waker>,
}

impl Core {
    fn send_request<T: serde::Serialize>(
        &self,
        request: &T,
        payload: Payload,
        deadline: Duration,
    ) -> Result<u64, CallError> {
        if self.is_closed.get() {
            return Err(CallError::Closed);
        }
        let id = self.next_id.get();
        // A deadline that does not fit is as good as none.
        let deadline_ms = u32::try_from(deadline.as_millis().max(1)).unwrap_or(0);
        let head = Header { kind: FrameKind::Request, flags: 0, deadline_ms, id }.with(request);
        if head.len() > FRAME_HEAD_MAX || payload.len() > PAYLOAD_MAX {
            return Err(CallError::TooLarge);
        }
        if self.sender.send(Frame { head, payload }).is_err() {
            self.close();
            return Err(CallError::Closed);
        }
        self.next_id.set(id + 1);
        let now = Instant::now();
        let deadline = now + deadline.min(DEADLINE_MAX);
        self.slots.borrow_mut().insert(id, Slot { deadline, outcome: None, waker: None });
        if self.awaited.replace(self.awaited.get() + 1) == 0 {
            self.heard.set(now);
        }
        let alarm = deadline.min(now + self.options.ping_after);
        if alarm < self.alarm.get() {
            self.alarm.set(alarm);
            self.alarm_moved.notify_one();
        }
        Ok(id)
    }

    fn cancel(&self, id: u64) {
        let head = Header { id, ..Header::plain(FrameKind::Cancel) }.alone();
        // A broken connection cancels by itself.
        let _ = self.sender.send(Frame { head, payload: Payload::empty() });
    }

    fn on_frame(&self, frame: Frame) {
        self.heard.set(Instant::now());
        let Ok((header, _)) = Header::parse(&frame.head) else {
            tracing::warn!(peer = %self.peer, "closed a connection: a frame without a header");
            self.close();
            return;
        };
        match header.kind {
            FrameKind::Reply => {
                let outcome = match header.flags {
                    0 => Ok((frame.head, frame.payload.into_bytes())),
                    FLAG_TOO_LARGE => Err(CallError::TooLarge),
                    // `FLAG_UNDECODABLE`, or one that we do not know.
                    _ => Err(CallError::Undecodable),
                };
                self.finish(header.id, outcome);
            }
            FrameKind::Ping => self.answer_ping(),
            FrameKind::Pong => {}
            FrameKind::Hello | FrameKind::Request | FrameKind::Cancel => {
                let kind = header.kind;
                tracing::warn!(peer = %self.peer, ?kind, "closed a connection: it only answers");
                self.close();
            }
        }
    }

    fn answer_ping(&self) {
        let head = Header::plain(FrameKind::Pong).alone();
        let _ = self.sender.send(Frame { head, payload: Payload::empty() });
    }

    /// A reply to a call that was given up finds no slot, and that is all right.
    fn finish(&self, id: u64, outcome: Result<(Bytes, Bytes), CallError>) {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(&id).filter(|slot| slot.outcome.is_none()) else {
            return;
        };
        slot.outcome = Some(outcome);
        let waker = slot.waker.take();
        drop(slots);
        self.awaited.set(self.awaited.get() - 1);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Looks at deadlines and silence, and sets the alarm anew.
    fn on_alarm(&self) {
        let now = Instant::now();
        if now > self.alarm.get() + LATE_MAX {
            // We ourselves stood still; what the peer said meanwhile is not read yet.
            self.heard.set(now);
        }
        let mut next = now + IDLE_ALARM;
        let mut late = Vec::new();
        for (id, slot) in self.slots.borrow().iter().filter(|(_, slot)| slot.outcome.is_none()) {
            if slot.deadline <= now {
                late.push(*id);
            } else {
                next = next.min(slot.deadline);
            }
        }
        for id in late {
            self.cancel(id);
            self.finish(id, Err(CallError::Deadline));
        }
        if self.awaited.get() > 0 {
            if now >= self.heard.get() + self.options.broken_after {
                tracing::warn!(peer = %self.peer, "closed a connection: the peer is silent");
                self.close();
                return;
            }
            let ping_due = self.heard.get().max(self.pinged.get()) + self.options.ping_after;
            if now >= ping_due {
                self.pinged.set(now);
                let head = Header::plain(FrameKind::Ping).alone();
                let _ = self.sender.send(Frame { head, payload: Payload::empty() });
                next = next.min(now + self.options.ping_after);
            } else {
                next = next.min(ping_due);
            }
            next = next.min(self.heard.get() + self.options.broken_after);
        }
        self.alarm.set(next);
    }

    fn close(&self) {
        if self.is_closed.replace(true) {
            return;
        }
        self.sender.close();
        self.room.close();
        let open = |(id, slot): (&u64, &Slot)| slot.outcome.is_none().then_some(*id);
        let ids: Vec<u64> = self.slots.borrow().iter().filter_map(open).collect();
        for id in ids {
            self.finish(id, Err(CallError::Closed));
        }
        self.closed.notify_waiters();
        self.alarm_moved.notify_one();
    }
}

async fn take_frames(core: Rc<Core>, mut receiver: FrameReceiver) {
    let mut alarm = std::pin::pin!(sleep_until(core.alarm.get()));
    while !core.is_closed.get() {
        tokio::select! {
            biased;
            frame = receiver.recv() => match frame {
                Some(frame) => core.on_frame(frame),
                None => core.close(),
            },
            () = core.alarm_moved.notified() => alarm.as_mut().reset(core.alarm.get()),
            () = &mut alarm => {
                core.on_alarm();
                alarm.as_mut().reset(core.alarm.get());
            }
        }
    }
}

fn parse_hello_reply(head: &[u8]) -> Option<HelloReply> {
    let (header, body) = Header::parse(head).ok()?;
    if header.kind != FrameKind::Hello {
        return None;
    }
    header::decode(body).ok()
}

/// Payload bytes in units of the room's semaphore.
fn room_of(payload_bytes: usize) -> usize {
    payload_bytes.div_ceil(ROOM_UNIT)
}

const ROOM_UNIT: usize = 4 << 10;

/// When nothing is awaited, nothing is due.
const IDLE_ALARM: Duration = Duration::from_secs(3600);

/// Longer deadlines are none.
const DEADLINE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// An alarm that rings later than this tells that the process did not run.
const LATE_MAX: Duration = Duration::from_secs(1);
