//! Calls over real sockets: order, cancel, deadlines, ends, refusals.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use braid_env::{Address, Env, Frame, Payload, machine};
use braid_terms::ClusterId;
use braid_wire::header::{FrameKind, Header};
use braid_wire::rpc::*;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local, yield_now};

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
enum Ask {
    Echo(u64),
    Wait(u64),
    Release,
    Strange(bool),
}

enum Echo {}

impl Service for Echo {
    type Request = Ask;
    type Reply = u64;

    const ROLE: Role = Role::Io;
}

#[derive(Default)]
struct Server {
    seen: RefCell<Vec<u64>>,
    dropped: Cell<u64>,
    finished: Cell<u64>,
    sessions: Cell<i64>,
    release: Notify,
}

struct CountDrop(Rc<Server>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.dropped.set(self.0.dropped.get() + 1);
    }
}

impl Handler<Echo> for Server {
    type Session = ();

    fn hello(&self, hello: &Hello) -> Result<(), HelloReply> {
        if hello.cluster != CLUSTER {
            return Err(HelloReply::WrongCluster { cluster: CLUSTER });
        }
        self.sessions.set(self.sessions.get() + 1);
        Ok(())
    }

    async fn handle(self: Rc<Self>, _: Rc<()>, request: Ask, payload: Bytes) -> (u64, Payload) {
        match request {
            Ask::Echo(number) => {
                self.seen.borrow_mut().push(number);
                if number % 3 == 0 {
                    yield_now().await;
                }
                (number, payload.into())
            }
            Ask::Wait(number) => {
                self.seen.borrow_mut().push(number);
                let counted = CountDrop(self.clone());
                self.release.notified().await;
                self.finished.set(self.finished.get() + 1);
                std::mem::forget(counted);
                (number, Payload::empty())
            }
            Ask::Release => {
                self.release.notify_waiters();
                (0, Payload::empty())
            }
            Ask::Strange(_) => (0, Payload::empty()),
        }
    }

    fn closed(&self, (): &()) {
        self.sessions.set(self.sessions.get() - 1);
    }
}

const CLUSTER: ClusterId = ClusterId(7);
const LONG: Duration = Duration::from_secs(20);

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, future)
}

fn hello() -> Hello {
    Hello::new(CLUSTER, Role::Io, 0, Peer::Unknown)
}

struct World {
    env: Env,
    server: Rc<Server>,
    at: Address,
}

impl World {
    async fn new() -> Self {
        Self::at(Address::Tcp("127.0.0.1:0".parse().unwrap())).await
    }

    async fn at(at: Address) -> Self {
        let env = machine::env(machine::Inherited::new());
        let listener = env.listen(at).await.unwrap();
        let at = listener.address.clone();
        let server = Rc::new(Server::default());
        spawn_local(serve::<Echo, _>(listener, server.clone()));
        Self { env, server, at }
    }

    async fn client(&self) -> Client<Echo> {
        Client::connect(&self.env, self.at.clone(), hello()).await.unwrap()
    }

    async fn until(&self, condition: impl Fn(&Server) -> bool) {
        while !condition(&self.server) {
            yield_now().await;
        }
    }
}

async fn check_echo(world: World) {
    let client = world.client().await;
    for size in [0, 1, 4096, 1 << 20, 16 << 20] {
        let bytes = Bytes::from(vec![size as u8; size]);
        let (number, payload) =
            client.call(&Ask::Echo(5), bytes.clone().into(), LONG).await.unwrap();
        assert_eq!((number, payload), (5, bytes));
    }
}

#[test]
fn calls_are_answered_over_tcp() {
    run(async { check_echo(World::new().await).await });
}

#[test]
fn calls_are_answered_over_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    run(async { check_echo(World::at(Address::Unix(folder.path().join("s"))).await).await });
}

#[test]
fn handlers_begin_in_the_order_of_the_calls() {
    run(async {
        let world = World::new().await;
        let client = world.client().await;
        let calls: Vec<_> = (0..1000)
            .map(|number| {
                let size = if number % 7 == 0 { 100_000 } else { number as usize };
                client.start_call(&Ask::Echo(number), Bytes::from(vec![1; size]).into(), LONG)
            })
            .collect();
        // The order of waiting is another one.
        for (number, call) in calls.into_iter().enumerate().rev() {
            assert_eq!(call.await.unwrap().0, number as u64);
        }
        assert_eq!(*world.server.seen.borrow(), (0..1000).collect::<Vec<_>>());
    });
}

#[test]
fn a_dropped_call_drops_its_handler() {
    run(async {
        let world = World::new().await;
        let client = world.client().await;
        let call = client.start_call(&Ask::Wait(1), Payload::empty(), LONG);
        let other = client.start_call(&Ask::Wait(2), Payload::empty(), LONG);
        world.until(|server| server.seen.borrow().len() == 2).await;
        drop(call);
        world.until(|server| server.dropped.get() == 1).await;
        client.call(&Ask::Release, Payload::empty(), LONG).await.unwrap();
        assert_eq!(other.await.unwrap().0, 2);
    });
}

#[test]
fn a_deadline_ends_a_call_and_its_handler() {
    run(async {
        let world = World::new().await;
        let client = world.client().await;
        let begin = tokio::time::Instant::now();
        let short = Duration::from_millis(50);
        let result = client.call(&Ask::Wait(1), Payload::empty(), short).await;
        assert_eq!(result.err(), Some(CallError::Deadline));
        assert!(begin.elapsed() >= short && begin.elapsed() < Duration::from_secs(2));
        world.until(|server| server.dropped.get() == 1).await;
        assert_eq!(client.call(&Ask::Echo(1), Payload::empty(), LONG).await.unwrap().0, 1);
    });
}

#[test]
fn handlers_outlive_their_connection() {
    run(async {
        let world = World::new().await;
        let client = world.client().await;
        let call = client.start_call(&Ask::Wait(1), Payload::empty(), LONG);
        world.until(|server| server.seen.borrow().len() == 1).await;
        client.close();
        assert_eq!(call.await.err(), Some(CallError::Closed));
        world.until(|server| server.sessions.get() == 0).await;
        world.client().await.call(&Ask::Release, Payload::empty(), LONG).await.unwrap();
        world.until(|server| server.finished.get() == 1).await;
        assert_eq!(world.server.dropped.get(), 0);
    });
}

#[test]
fn a_connection_ends_with_its_last_client() {
    run(async {
        let world = World::new().await;
        let client = world.client().await;
        let again = client.clone();
        drop(client);
        again.call(&Ask::Echo(1), Payload::empty(), LONG).await.unwrap();
        assert_eq!(world.server.sessions.get(), 1);
        drop(again);
        world.until(|server| server.sessions.get() == 0).await;
    });
}

#[test]
fn a_wrong_hello_is_refused_with_its_reason() {
    run(async {
        let world = World::new().await;
        let check = async |hello: Hello, expect: HelloReply| match Client::<Echo>::connect(
            &world.env,
            world.at.clone(),
            hello,
        )
        .await
        {
            Err(ConnectError::Refused(reply)) => assert_eq!(reply, expect),
            other => panic!("{:?}", other.err()),
        };
        let wrong_cluster = Hello { cluster: ClusterId(8), ..hello() };
        check(wrong_cluster, HelloReply::WrongCluster { cluster: CLUSTER }).await;
        let too_new = Hello { version: 9, version_min: 9, ..hello() };
        check(too_new, HelloReply::WrongVersion { min: 1, max: WIRE_VERSION }).await;
        // A caller that also speaks a newer version is welcome in ours.
        let newer = Hello { version: 9, ..hello() };
        Client::<Echo>::connect(&world.env, world.at.clone(), newer).await.unwrap();
        let connection = world.env.connect(world.at.clone()).await.unwrap();
        let wrong_role = Hello { role: Role::Main, ..hello() };
        let head = Header::plain(FrameKind::Hello).with(&wrong_role);
        connection.sender.send(Frame { head, payload: Payload::empty() }).unwrap();
        let mut receiver = connection.receiver;
        let answer = receiver.recv().await.unwrap().head;
        let (_, body) = Header::parse(&answer).unwrap();
        assert_eq!(braid_wire::header::decode::<HelloReply>(body), Ok(HelloReply::WrongRole));
        assert!(receiver.recv().await.is_none());
    });
}

#[test]
fn nobody_there_is_unreachable() {
    run(async {
        let env = machine::env(machine::Inherited::new());
        let listener = env.listen(Address::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
        let at = listener.address.clone();
        drop(listener);
        yield_now().await;
        yield_now().await;
        let result = Client::<Echo>::connect(&env, at, hello()).await;
        assert!(matches!(result.err(), Some(ConnectError::Unreachable(_))));
    });
}

/// A peer that is stopped (SIGSTOP): it has the connection and says nothing.
#[test]
fn a_silent_peer_breaks_the_connection() {
    run(async {
        let env = machine::env(machine::Inherited::new());
        let mut listener = env.listen(Address::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
        let at = listener.address.clone();
        let pings = Rc::new(Cell::new(0));
        let counted = pings.clone();
        spawn_local(async move {
            let mut connection = listener.accept().await.unwrap();
            accept_hello(&mut connection).await.unwrap();
            let head = Header::plain(FrameKind::Hello).with(&HelloReply::Welcome { version: 1 });
            connection.sender.send(Frame { head, payload: Payload::empty() }).unwrap();
            while let Some(frame) = connection.receiver.recv().await {
                if Header::parse(&frame.head).unwrap().0.kind == FrameKind::Ping {
                    counted.set(counted.get() + 1);
                }
            }
        });
        let options = ClientOptions {
            ping_after: Duration::from_millis(30),
            broken_after: Duration::from_millis(200),
            ..ClientOptions::default()
        };
        let client = Client::<Echo>::connect_with(&env, at, hello(), options).await.unwrap();
        let result = client.call(&Ask::Echo(1), Payload::empty(), LONG).await;
        assert_eq!(result.err(), Some(CallError::Closed));
        assert!(client.is_closed() && pings.get() > 1);
        client.closed().await;
    });
}

#[test]
fn a_slow_answer_of_a_living_peer_breaks_nothing() {
    run(async {
        let world = World::new().await;
        let options = ClientOptions {
            ping_after: Duration::from_millis(20),
            broken_after: Duration::from_millis(100),
            ..ClientOptions::default()
        };
        let client = Client::<Echo>::connect_with(&world.env, world.at.clone(), hello(), options)
            .await
            .unwrap();
        let slow = Duration::from_millis(400);
        let result = client.call(&Ask::Wait(1), Payload::empty(), slow).await;
        assert_eq!(result.err(), Some(CallError::Deadline));
        assert!(!client.is_closed());
    });
}

#[test]
fn what_does_not_fit_or_is_not_understood_is_told() {
    run(async {
        let world = World::new().await;
        let client = world.client().await;
        let large = Bytes::from(vec![0; braid_terms::PAYLOAD_MAX + 1]);
        let result = client.call(&Ask::Echo(1), large.into(), LONG).await;
        assert_eq!(result.err(), Some(CallError::TooLarge));
        // A request of another version: an unknown variant, then one with bytes behind it.
        let mut connection = world.env.connect(world.at.clone()).await.unwrap();
        let send =
            |head| connection.sender.send(Frame { head, payload: Payload::empty() }).unwrap();
        send(Header::plain(FrameKind::Hello).with(&hello()));
        let request = Header { id: 1, ..Header::plain(FrameKind::Request) };
        send(request.with(&200u8));
        send(request.with(&(Ask::Release, 1u8)));
        connection.receiver.recv().await.unwrap();
        for _ in 0..2 {
            let head = connection.receiver.recv().await.unwrap().head;
            let (header, body) = Header::parse(&head).unwrap();
            assert_eq!((header.kind, header.flags, body.len()), (FrameKind::Reply, 1, 0));
        }
    });
}

#[test]
fn calls_wait_for_room_and_are_freed_by_the_end() {
    run(async {
        let world = World::new().await;
        let options = ClientOptions { payload_bytes_max: 1 << 20, ..ClientOptions::default() };
        let client = Client::<Echo>::connect_with(&world.env, world.at.clone(), hello(), options)
            .await
            .unwrap();
        let payload = || Payload::from(Bytes::from(vec![0; 1 << 20]));
        let first = client.start_call(&Ask::Wait(1), payload(), LONG);
        let waiting = client.clone();
        let second =
            spawn_local(
                async move { waiting.call(&Ask::Echo(2), payload(), LONG).await.map(|_| ()) },
            );
        world.until(|server| server.seen.borrow().len() == 1).await;
        client.call(&Ask::Echo(3), Payload::empty(), LONG).await.unwrap();
        assert_eq!(*world.server.seen.borrow(), [1, 3]);
        drop(first);
        second.await.unwrap().unwrap();
        let _third = client.start_call(&Ask::Wait(4), payload(), LONG);
        let fourth = client.call(&Ask::Echo(5), payload(), LONG);
        let closing = async {
            yield_now().await;
            client.close();
        };
        let (fourth, ()) = tokio::join!(fourth, closing);
        assert_eq!(fourth.err(), Some(CallError::Closed));
    });
}

/// Bytes that come as they like: mutated messages and noise.
#[test]
fn no_bytes_make_the_decoders_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let seed = Header::plain(FrameKind::Hello).with(&hello());
    for round in 0..200_000 {
        let mut bytes: Vec<u8> = if round % 2 == 0 {
            (0..next() % 64).map(|_| next() as u8).collect()
        } else {
            seed.to_vec()
        };
        for _ in 0..next() % 4 {
            let at = next() as usize % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = next() as u8;
            }
        }
        bytes.truncate(next() as usize % (bytes.len() + 1));
        let _ = Hello::parse(&bytes);
        if let Ok((_, body)) = Header::parse(&bytes) {
            let _ = braid_wire::header::decode::<Vec<(String, Vec<u64>)>>(body);
            let _ = braid_wire::header::decode::<braid_wire::io::IoRequest>(body);
            let _ = braid_wire::header::decode::<braid_wire::lcc::LccRequest>(body);
        }
        let _ = braid_wire::header::decode::<Ask>(&bytes);
    }
}

/// The example of `docs/wire.md`.
#[test]
fn the_first_frame_is_as_documented() {
    let head = Header::plain(FrameKind::Hello).with(&hello());
    assert_eq!(head.len(), 0x16);
    assert_eq!(head[..16], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(head[16..], [1, 1, 7, 0, 0, 2]);
    assert_eq!(crc_fast::crc32_iscsi(b"123456789"), 0xe306_9283);
    let crc = crc_fast::crc32_iscsi(&head);
    assert_eq!(crc.to_le_bytes(), [0x19, 0x54, 0x7f, 0x41]);
}
