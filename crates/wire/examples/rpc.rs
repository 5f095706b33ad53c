//! How fast calls are: `cargo run --release -p braid-wire --example rpc [tiny] [unix]`.
//!
//! A server and a client thread over loopback. Prints calls per second with 1 and 64 under way, and
//! GiB/s and CPU seconds per GiB (both sides) with payloads of 64 KiB and 1 MiB, written and read.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a measurement uses real time")]

use std::rc::Rc;
use std::time::{Duration, Instant};

use braid_env::{Address, Payload, machine};
use braid_terms::ClusterId;
use braid_wire::rpc::*;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::LocalSet;

#[derive(Serialize, Deserialize)]
enum Ask {
    Take,
    Give(u32),
}

enum Bench {}

impl Service for Bench {
    type Request = Ask;
    type Reply = u32;

    const ROLE: Role = Role::Io;
}

struct Server {
    bytes: Bytes,
}

impl Handler<Bench> for Server {
    type Session = ();

    fn hello(&self, _: &Hello) -> Result<(), HelloReply> {
        Ok(())
    }

    async fn handle(self: Rc<Self>, _: Rc<()>, request: Ask, payload: Bytes) -> (u32, Payload) {
        match request {
            Ask::Take => (payload.len() as u32, Payload::empty()),
            Ask::Give(size) => (size, self.bytes.slice(..size as usize).into()),
        }
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, future)
}

/// Of all threads, as the scheduler counts them.
fn cpu_seconds() -> f64 {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path().join("schedstat");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    nanoseconds as f64 / 1e9
}

async fn measure(
    client: &Client<Bench>,
    under_way: usize,
    span: Duration,
    make: impl Fn() -> (Ask, Payload),
) -> (u64, f64, f64) {
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    let one = async |_| {
        let mut count = 0;
        while begin.elapsed() < span {
            let (ask, payload) = make();
            client.call(&ask, payload, Duration::from_secs(10)).await.unwrap();
            count += 1u64;
        }
        count
    };
    let counts = futures_util::future::join_all((0..under_way).map(one)).await;
    (counts.into_iter().sum(), begin.elapsed().as_secs_f64(), cpu_seconds() - cpu)
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let span =
        Duration::from_millis(if words.iter().any(|word| word == "tiny") { 20 } else { 2000 });
    let at = if words.iter().any(|word| word == "unix") {
        Address::Unix(std::env::temp_dir().join(format!("braid-rpc-{}", std::process::id())))
    } else {
        Address::Tcp("127.0.0.1:0".parse().unwrap())
    };
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        block_on(async move {
            let listener = machine::env(machine::Inherited::new()).listen(at).await.unwrap();
            sender.send(listener.address.clone()).unwrap();
            let server = Server { bytes: vec![1; 1 << 20].into() };
            serve::<Bench, _>(listener, Rc::new(server)).await;
        });
    });
    let at = receiver.recv().unwrap();
    block_on(async move {
        let env = machine::env(machine::Inherited::new());
        let hello = Hello::new(ClusterId(1), Role::Io, 0, Peer::Unknown);
        let client = Client::<Bench>::connect(&env, at, hello).await.unwrap();
        for under_way in [1, 64] {
            let (count, wall, cpu) =
                measure(&client, under_way, span, || (Ask::Take, Payload::empty())).await;
            println!(
                "small, {under_way:2} under way: {:8.0} calls/s, {:5.2} us CPU per call",
                count as f64 / wall,
                cpu / count as f64 * 1e6
            );
        }
        for (size, under_way) in [(4 << 10, 16), (64 << 10, 16), (1 << 20, 1), (1 << 20, 8)] {
            let bytes = Bytes::from(vec![7; size]);
            let write = || (Ask::Take, Payload::from(bytes.clone()));
            let read = || (Ask::Give(size as u32), Payload::empty());
            for (name, result) in [
                ("write", measure(&client, under_way, span, write).await),
                ("read", measure(&client, under_way, span, read).await),
            ] {
                let gib = result.0 as f64 * size as f64 / f64::from(1 << 30);
                println!(
                    "{name:5} {:4} KiB, {under_way:2} under way: {:5.2} GiB/s, {:5.3} s CPU per GiB",
                    size >> 10,
                    gib / result.1,
                    result.2 / gib
                );
            }
        }
    });
}
