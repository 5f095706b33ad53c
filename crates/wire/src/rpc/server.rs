//! The answering side of a connection.
//!
//! # Theory
//! One task per connection reads frames, makes a handler future of each request, polls it once, and
//! keeps those that are not done. Replies of one turn leave together, because `env` writes small
//! frames at the end of the turn.
//! # Invariants
//! R1 and R2 of `rpc.rs`.
//! # Failure
//! A request that cannot be decoded is answered so; a frame that makes no sense closes the
//! connection. A peer that does not read its replies is not read from.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use braid_env::{Connection, FRAME_HEAD_MAX, Frame, FrameSender, Listener, Payload};
use braid_terms::PAYLOAD_MAX;
use bytes::Bytes;
use futures_util::future::{AbortHandle, Abortable, LocalBoxFuture};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::{
    HELLO_WAIT, Hello, HelloReply, Role, Service, WIRE_VERSION, WIRE_VERSION_MIN, send_hello,
};
use crate::header::{self, FLAG_TOO_LARGE, FLAG_UNDECODABLE, FrameKind, Header};

/// Who answers the requests of a service.
pub trait Handler<S: Service>: 'static {
    /// State of one connection.
    type Session: 'static;

    /// Begins a session; version and role are checked already, the cluster is not.
    fn hello(&self, hello: &Hello) -> Result<Self::Session, HelloReply>;

    /// Answers one request. What is done before the first wait is done in the order of the requests
    /// on the connection (R1). The future is dropped when the caller cancels; what must not be torn
    /// by that belongs in a task of its own. When the connection breaks it runs on (R2).
    fn handle(
        self: Rc<Self>,
        session: Rc<Self::Session>,
        request: S::Request,
        payload: Bytes,
    ) -> impl Future<Output = (S::Reply, Payload)> + 'static;

    /// The connection is gone; handlers of it may still run.
    fn closed(&self, session: &Self::Session) {
        let _ = session;
    }
}

/// Why there was no hello.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum HelloError {
    /// The peer left, or was silent for [`HELLO_WAIT`].
    Gone,
    /// Its first frame was something else.
    Undecodable,
}

/// Accepts for ever; each connection is a task of this thread.
pub async fn serve<S: Service, H: Handler<S>>(mut listener: Listener, handler: Rc<H>) {
    while let Some(connection) = listener.accept().await {
        spawn_local(serve_connection::<S, H>(connection, handler.clone()));
    }
}

/// Serves one connection from its hello to its end and the end of its handlers.
pub async fn serve_connection<S: Service, H: Handler<S>>(
    mut connection: Connection,
    handler: Rc<H>,
) {
    match accept_hello(&mut connection).await {
        Ok(hello) => serve_connection_after::<S, H>(connection, hello, handler).await,
        Err(error) => {
            tracing::debug!(peer = %connection.peer, ?error, "a connection without a hello");
        }
    }
}

/// Reads the hello, for a role that chooses by it who serves the connection.
pub async fn accept_hello(connection: &mut Connection) -> Result<Hello, HelloError> {
    let frame = timeout(HELLO_WAIT, connection.receiver.recv()).await;
    let Ok(Some(frame)) = frame else {
        return Err(HelloError::Gone);
    };
    Hello::parse(&frame.head).map_err(|_| HelloError::Undecodable)
}

/// Serves one connection whose hello was read.
pub async fn serve_connection_after<S: Service, H: Handler<S>>(
    connection: Connection,
    hello: Hello,
    handler: Rc<H>,
) {
    let session = match greet(&hello, S::ROLE, |hello| handler.hello(hello)) {
        Ok((session, version)) => {
            let _ = send_hello(&connection, &HelloReply::Welcome { version });
            Rc::new(session)
        }
        Err(refusal) => {
            tracing::debug!(peer = %connection.peer, ?hello, ?refusal, "refused a connection");
            let _ = send_hello(&connection, &refusal);
            return;
        }
    };
    Serving::<S, H> {
        handler,
        session,
        sender: connection.sender.clone(),
        running: FuturesUnordered::new(),
        aborts: BTreeMap::new(),
        held_bytes: 0,
    }
    .run(connection)
    .await;
}

fn greet<T>(
    hello: &Hello,
    role: Role,
    begin: impl FnOnce(&Hello) -> Result<T, HelloReply>,
) -> Result<(T, u16), HelloReply> {
    let version = hello.version.min(WIRE_VERSION);
    if version < hello.version_min || version < WIRE_VERSION_MIN {
        return Err(HelloReply::WrongVersion { min: WIRE_VERSION_MIN, max: WIRE_VERSION });
    }
    if hello.role != role {
        return Err(HelloReply::WrongRole);
    }
    Ok((begin(hello)?, version))
}

struct Serving<S: Service, H: Handler<S>> {
    handler: Rc<H>,
    session: Rc<H::Session>,
    sender: FrameSender,
    running: FuturesUnordered<Running<S::Reply>>,
    aborts: BTreeMap<u64, AbortHandle>,
    /// Payload bytes that running handlers were given.
    held_bytes: usize,
}

/// A handler that was polled once and is not done.
struct Running<R> {
    id: u64,
    payload_length: usize,
    future: Abortable<LocalBoxFuture<'static, (R, Payload)>>,
}

struct Done<R> {
    id: u64,
    payload_length: usize,
    /// None where it was cancelled.
    answer: Option<(R, Payload)>,
}

impl<R> Future for Running<R> {
    type Output = Done<R>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Done<R>> {
        let answer = std::task::ready!(self.future.poll_unpin(context)).ok();
        Poll::Ready(Done { id: self.id, payload_length: self.payload_length, answer })
    }
}

impl<S: Service, H: Handler<S>> Serving<S, H> {
    async fn run(mut self, connection: Connection) {
        let Connection { sender, mut receiver, peer } = connection;
        drop(sender);
        let mut is_open = true;
        while is_open || !self.running.is_empty() {
            let is_clogged = self.sender.queued_bytes() > REPLY_BYTES_MAX;
            let has_room = self.running.len() < RUNNING_MAX && self.held_bytes < HELD_BYTES_MAX;
            tokio::select! {
                biased;
                frame = receiver.recv(), if is_open && has_room && !is_clogged => {
                    let went_on = match frame {
                        Some(frame) => self.on_frame(frame, &peer),
                        None => false,
                    };
                    if !went_on {
                        is_open = false;
                        self.sender.close();
                        self.handler.closed(&self.session);
                    }
                }
                Some(done) = self.running.next(), if !self.running.is_empty() => self.on_done(done),
                () = async { sleep(CLOGGED_PAUSE).await }, if is_open && is_clogged => {}
            }
        }
    }

    /// `false` when the connection is to end.
    fn on_frame(&mut self, frame: Frame, peer: &str) -> bool {
        let Ok((header, body)) = Header::parse(&frame.head) else {
            tracing::warn!(%peer, "closed a connection: a frame without a header");
            return false;
        };
        match header.kind {
            FrameKind::Request => {
                match header::decode(body) {
                    Ok(request) => self.begin(header.id, request, frame.payload.into_bytes()),
                    Err(_) => {
                        tracing::warn!(%peer, "a request was not understood");
                        self.send(reply_flag(header.id, FLAG_UNDECODABLE), Payload::empty());
                    }
                }
                true
            }
            FrameKind::Cancel => {
                if let Some(abort) = self.aborts.remove(&header.id) {
                    abort.abort();
                }
                true
            }
            FrameKind::Ping => {
                self.send(Header::plain(FrameKind::Pong).alone(), Payload::empty());
                true
            }
            FrameKind::Pong => true,
            FrameKind::Hello | FrameKind::Reply => {
                let kind = header.kind;
                tracing::warn!(%peer, ?kind, "closed a connection: it only calls");
                false
            }
        }
    }

    fn begin(&mut self, id: u64, request: S::Request, payload: Bytes) {
        let payload_length = payload.len();
        let handler = self.handler.clone();
        let mut future = handler.handle(self.session.clone(), request, payload).boxed_local();
        // The poll that R1 promises. It needs no waker: `running` polls again with one.
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready((reply, payload)) => self.answer(id, &reply, payload),
            Poll::Pending => {
                let (abort, registration) = AbortHandle::new_pair();
                let future = Abortable::new(future, registration);
                self.running.push(Running { id, payload_length, future });
                self.aborts.insert(id, abort);
                self.held_bytes += payload_length;
            }
        }
    }

    fn on_done(&mut self, done: Done<S::Reply>) {
        self.held_bytes -= done.payload_length;
        self.aborts.remove(&done.id);
        if let Some((reply, payload)) = done.answer {
            self.answer(done.id, &reply, payload);
        }
    }

    fn answer(&self, id: u64, reply: &S::Reply, payload: Payload) {
        let head = Header { id, ..Header::plain(FrameKind::Reply) }.with(reply);
        if head.len() > FRAME_HEAD_MAX || payload.len() > PAYLOAD_MAX {
            self.send(reply_flag(id, FLAG_TOO_LARGE), Payload::empty());
        } else {
            self.send(head, payload);
        }
    }

    fn send(&self, head: Bytes, payload: Payload) {
        // The reader sees the end of the connection; a reply to nobody is dropped (R2).
        let _ = self.sender.send(Frame { head, payload });
    }
}

fn reply_flag(id: u64, flags: u8) -> Bytes {
    Header { id, flags, ..Header::plain(FrameKind::Reply) }.alone()
}

/// Handlers of one connection that run at once; more requests wait unread.
const RUNNING_MAX: usize = 16 << 10;

/// Payload bytes of requests that are held at once, per connection: above what a caller sends.
const HELD_BYTES_MAX: usize = 256 << 20;

/// Replies that wait to be read by the peer.
const REPLY_BYTES_MAX: usize = 128 << 20;

/// How soon to look again whether the peer reads its replies.
const CLOGGED_PAUSE: Duration = Duration::from_millis(1);
