//! Calls between simulated processes: kill, pause, partition, and the same run from the same seed.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use braid_env::simulated::{SimProcess, Simulation, run};
use braid_env::{Env, Payload};
use braid_terms::ClusterId;
use braid_wire::rpc::*;
use bytes::Bytes;
use tokio::time::{Instant, sleep};

enum Count {}

impl Service for Count {
    type Request = u64;
    type Reply = u64;

    const ROLE: Role = Role::Coordinator;
}

/// Answers after the asked number of milliseconds.
struct Slow {
    seen: RefCell<Vec<u64>>,
}

impl Handler<Count> for Slow {
    type Session = ();

    fn hello(&self, _: &Hello) -> Result<(), HelloReply> {
        Ok(())
    }

    async fn handle(self: Rc<Self>, _: Rc<()>, request: u64, payload: Bytes) -> (u64, Payload) {
        self.seen.borrow_mut().push(request);
        sleep(Duration::from_millis(request)).await;
        (request, payload.into())
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn start_server(simulation: &Simulation) -> SimProcess {
    let machine = simulation.machine(2);
    let at = machine.address(1);
    simulation.spawn_process(&machine, "server", |env| async move {
        let listener = env.listen(at).await.unwrap();
        serve::<Count, _>(listener, Rc::new(Slow { seen: RefCell::default() })).await;
    })
}

async fn connect(simulation: &Simulation, env: &Env) -> Result<Client<Count>, ConnectError> {
    let hello = Hello::new(ClusterId(1), Role::Coordinator, 0, Peer::Unknown);
    Client::connect(env, simulation.machine(2).address(1), hello).await
}

#[test]
fn a_killed_server_ends_calls_soon_and_a_paused_one_after_ten_seconds() {
    run(1, async |simulation| {
        let env = simulation.machine(1).env();
        let server = start_server(&simulation);
        sleep(SECOND).await;
        let client = connect(&simulation, &env).await.unwrap();
        let begin = Instant::now();
        assert_eq!(client.call(&30_000, Payload::empty(), 60 * SECOND).await.unwrap().0, 30_000);
        assert!(begin.elapsed() >= 30 * SECOND, "a slow answer is no silence");
        let call = client.start_call(&30_000, Payload::empty(), 60 * SECOND);
        let begin = Instant::now();
        sleep(SECOND).await;
        server.kill();
        assert_eq!(call.await.err(), Some(CallError::Closed));
        assert!(begin.elapsed() < 2 * SECOND);

        let server = start_server(&simulation);
        sleep(SECOND).await;
        let client = connect(&simulation, &env).await.unwrap();
        server.pause();
        let begin = Instant::now();
        let call = client.call(&1, Payload::empty(), 60 * SECOND);
        assert_eq!(call.await.err(), Some(CallError::Closed));
        assert!(begin.elapsed() >= 10 * SECOND && begin.elapsed() < 11 * SECOND);
    });
}

/// A process that stood still itself must not blame the peer for the silence.
#[test]
fn a_paused_caller_finds_its_answer() {
    run(2, async |simulation| {
        start_server(&simulation);
        sleep(SECOND).await;
        let (simulated, answered) = (simulation.clone(), Rc::new(Cell::new(None)));
        let answer = answered.clone();
        let caller = simulation.spawn_process(&simulation.machine(1), "caller", |env| async move {
            let client = connect(&simulated, &env).await.unwrap();
            answer.set(Some(client.call(&5000, Payload::empty(), 600 * SECOND).await.is_ok()));
        });
        sleep(SECOND).await;
        caller.pause();
        sleep(100 * SECOND).await;
        assert_eq!(answered.get(), None);
        caller.resume();
        sleep(SECOND).await;
        assert_eq!(answered.get(), Some(true));
    });
}

/// Many callers, a server that is killed and started again, links that are held.
fn storm(seed: u64) -> (u64, u64, u64) {
    run(seed, async |simulation| {
        let (good, bad) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        for number in 3..8 {
            let (world, good, bad) = (simulation.clone(), good.clone(), bad.clone());
            simulation.spawn_process(&simulation.machine(number), "caller", |env| async move {
                loop {
                    let Ok(client) = connect(&world, &env).await else { continue };
                    while !client.is_closed() {
                        let payload = Bytes::from(vec![1; 1 + env.random_below(9) as usize]);
                        let calls: Vec<_> = (0..1 + env.random_below(5))
                            .map(|_| {
                                let request = env.random_below(300);
                                client.start_call(&request, payload.clone().into(), SECOND / 4)
                            })
                            .collect();
                        for call in calls {
                            let count = if call.await.is_ok() { &good } else { &bad };
                            count.set(count.get() + 1);
                        }
                    }
                }
            });
        }
        for _ in 0..10 {
            let server = start_server(&simulation);
            sleep(Duration::from_millis(simulation.random_below(3000))).await;
            simulation.partition(2, 3 + simulation.random_below(5) as u32);
            sleep(Duration::from_millis(simulation.random_below(3000))).await;
            server.kill();
            simulation.heal_all();
        }
        (simulation.trace(), good.get(), bad.get())
    })
}

#[test]
fn a_storm_repeats_exactly() {
    for seed in 0..3 {
        let first = storm(seed);
        assert_eq!(first, storm(seed));
        assert!(first.1 > 100 && first.2 > 10);
    }
}
