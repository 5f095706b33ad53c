//! Ring 3: LCs that ask for groups while coordinators and LCs are killed, paused and cut off; nobody
//! may ever see two owners, a number given twice, or a grant that does not grow.
#![allow(clippy::unwrap_used)]

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use braid_env::simulated::{self, SimProcess, Simulation};
use braid_env::{Env, Moment};
use braid_terms::*;
use braid_wire::coordinator::*;
use braid_wire::coordinator_client::{CoordinatorClient, CoordinatorError};
use braid_wire::rpc::Peer;
use common::*;
use tokio::time::sleep;

const MACHINES: u32 = 3;
const GROUPS: u64 = 4;

/// What an LC believes; here for all to see.
struct LcState {
    incarnation: Incarnation,
    lcc: Incarnation,
    lease_until: Moment,
    owned: BTreeMap<DeviceId, GrantNumber>,
    /// The highest term that was told what is owned.
    told: u64,
}

#[derive(Default)]
struct Oracle {
    lcs: BTreeMap<u32, LcState>,
    envs: BTreeMap<u32, Env>,
    incarnations: BTreeSet<u64>,
    numbers: BTreeSet<u64>,
    highest: BTreeMap<DeviceId, GrantNumber>,
    grants: u64,
    moves: u64,
    last_owner: BTreeMap<DeviceId, u32>,
}

impl Oracle {
    /// Proves: O-1, O-3, O-4. Holes 6, 7, 10.
    fn owns(&mut self, server: u32, group: DeviceId, grant: GrantNumber) {
        for (other, lc) in &self.lcs {
            let now = self.envs[other].now();
            if *other != server && lc.owned.contains_key(&group) && now < lc.lease_until {
                panic!("group {group} has two owners: {other} by its lease, {server} by {grant}");
            }
        }
        let highest = self.highest.entry(group).or_default();
        assert!(*highest < grant, "grant {grant} of group {group} is not above {highest}");
        *highest = grant;
        self.grants += 1;
        self.moves += u64::from(self.last_owner.insert(group, server) != Some(server));
    }
}

type Shared = Rc<RefCell<Oracle>>;

/// An LC that registers, renews, tells, asks and releases, like the real one.
async fn lc(env: Env, server: u32, coordinators: Vec<SocketAddr>, oracle: Shared) {
    let client = CoordinatorClient::new(env.clone(), CLUSTER, Peer::Unknown, coordinators);
    loop {
        let request = CoordinatorRequest::RegisterLc { server: ServerId(server), lccs: 1 };
        match client.call(&request, 5 * SECOND).await {
            Ok(CoordinatorReply::Registered { incarnation, lccs, .. }) => {
                let oracle = &mut *oracle.borrow_mut();
                // Given once, and never to two.
                assert!(oracle.incarnations.insert(incarnation.0));
                assert!(oracle.incarnations.insert(lccs[0].0));
                let state = LcState {
                    incarnation,
                    lcc: lccs[0],
                    lease_until: Moment(0),
                    owned: BTreeMap::new(),
                    told: 0,
                };
                oracle.lcs.insert(server, state);
            }
            _ => continue,
        }
        tokio::select! {
            () = renew(&env, server, &client, &oracle) => {}
            () = ask(&env, server, &client, &oracle) => {}
        }
        oracle.borrow_mut().lcs.remove(&server);
    }
}

/// Ends when the incarnation is invalid.
async fn renew(env: &Env, server: u32, client: &CoordinatorClient, oracle: &Shared) {
    loop {
        let sent = env.now();
        let lc = oracle.borrow().lcs[&server].incarnation;
        let request = CoordinatorRequest::Renew { lc, map_version: 0, no_copies: None };
        match client.call(&request, 2 * SECOND).await {
            Ok(CoordinatorReply::Renewed { term, tell_holdings, .. }) => {
                let told = {
                    let oracle = &mut *oracle.borrow_mut();
                    let state = oracle.lcs.get_mut(&server).unwrap();
                    state.lease_until = sent + Duration::from_millis(LEASE_MS);
                    state.told = if tell_holdings { state.told.max(term) } else { state.told };
                    let owned = state.owned.iter();
                    owned.map(|(group, grant)| (*group, *grant, 0)).collect()
                };
                if tell_holdings {
                    let request = CoordinatorRequest::Holdings {
                        lc,
                        term,
                        groups: told,
                        ranges: Vec::new(),
                        last: true,
                    };
                    let _ = client.call(&request, SECOND).await;
                }
            }
            Err(CoordinatorError::Refused(CoordinatorRefusal::InvalidIncarnation)) => return,
            _ => {}
        }
        sleep(Duration::from_millis(700 + env.random_below(300))).await;
    }
}

/// Ends when the incarnation is invalid.
async fn ask(env: &Env, server: u32, client: &CoordinatorClient, oracle: &Shared) {
    loop {
        sleep(Duration::from_millis(env.random_below(400))).await;
        let (lcc, lease_until) = {
            let state = &oracle.borrow().lcs[&server];
            (state.lcc, state.lease_until)
        };
        if env.now() >= lease_until {
            continue;
        }
        // Far above all ranges, so that they are nobody's by number.
        let group = DeviceId((1 << 40) + env.random_below(GROUPS));
        let held = oracle.borrow().lcs[&server].owned.get(&group).copied();
        let request = match (env.random_below(8), held) {
            (0, _) => CoordinatorRequest::LeaseNumbers { lcc },
            (_, None) => CoordinatorRequest::Grant { lcc, group },
            (_, Some(grant)) => {
                oracle.borrow_mut().lcs.get_mut(&server).unwrap().owned.remove(&group);
                CoordinatorRequest::Release { lcc, groups: vec![(group, grant)] }
            }
        };
        let answer = client.call(&request, 2 * SECOND).await;
        let oracle = &mut *oracle.borrow_mut();
        match answer {
            Ok(CoordinatorReply::Granted { grant, .. }) => {
                let state = oracle.lcs.get_mut(&server).unwrap();
                if grant.term >= state.told && env.now() < state.lease_until {
                    state.owned.insert(group, grant);
                    oracle.owns(server, group, grant);
                }
            }
            Ok(CoordinatorReply::Numbers { first, .. }) => {
                assert!(oracle.numbers.insert(first.0), "numbers {first} were leased twice");
            }
            Err(CoordinatorError::Refused(CoordinatorRefusal::InvalidIncarnation)) => return,
            _ => {}
        }
    }
}

struct World {
    group: Group,
    oracle: Shared,
    lcs: Vec<SimProcess>,
}

impl World {
    fn start(simulation: &Simulation) -> Self {
        let group = Group::start(simulation, MACHINES);
        let oracle = Shared::default();
        let mut world = Self { group, oracle, lcs: Vec::new() };
        for server in 1..=MACHINES {
            // LCs have machines of their own, with clocks that run up to 1 % wrong.
            let machine = simulation.machine(10 + server);
            let drift = i64::try_from(simulation.random_below(20_000_000)).unwrap() - 10_000_000;
            machine.set_drift(drift);
            world.oracle.borrow_mut().envs.insert(server, machine.env());
            let lc = world.spawn_lc(server);
            world.lcs.push(lc);
        }
        world
    }

    fn spawn_lc(&self, server: u32) -> SimProcess {
        let simulation = &self.group.simulation;
        let coordinators = (1..=MACHINES).map(|number| address(simulation, number)).collect();
        let oracle = self.oracle.clone();
        self.oracle.borrow_mut().lcs.remove(&server);
        simulation.spawn_process(&simulation.machine(10 + server), "lc", |env| {
            lc(env, server, coordinators, oracle)
        })
    }

    async fn fault(&mut self) {
        let simulation = self.group.simulation.clone();
        let span = Duration::from_millis(simulation.random_below(5000));
        let victim = 1 + u32::try_from(simulation.random_below(u64::from(MACHINES))).unwrap();
        let other = 1 + victim % MACHINES;
        let coordinator = self.group.processes[victim as usize - 1].clone();
        let lc = self.lcs[victim as usize - 1].clone();
        match simulation.random_below(8) {
            0 => {
                coordinator.kill();
                sleep(span).await;
                self.group.restart(victim);
            }
            1 => {
                coordinator.pause();
                sleep(span).await;
                coordinator.resume();
            }
            2 => {
                simulation.machine(victim).power_cut();
                sleep(span).await;
                simulation.machine(victim).power_on();
                self.group.restart(victim);
            }
            3 => {
                for peer in (1..=MACHINES).filter(|peer| *peer != victim) {
                    simulation.partition_both(victim, peer);
                }
                sleep(span).await;
                simulation.heal_all();
            }
            4 => {
                simulation.partition(victim, other);
                sleep(span).await;
                simulation.heal_all();
            }
            5 => {
                lc.pause();
                sleep(span * 2).await;
                lc.resume();
            }
            6 => {
                lc.kill();
                sleep(span).await;
                self.lcs[victim as usize - 1] = self.spawn_lc(victim);
            }
            _ => {
                for peer in 1..=MACHINES {
                    simulation.black_hole(10 + victim, peer);
                }
                sleep(span).await;
                simulation.heal_all();
            }
        }
    }
}

fn walk(seed: u64, rounds: u64) -> u64 {
    simulated::run(seed, async |simulation| {
        let mut world = World::start(&simulation);
        sleep(5 * SECOND).await;
        for _ in 0..rounds {
            world.fault().await;
            sleep(Duration::from_millis(simulation.random_below(3000))).await;
        }
        simulation.heal_all();
        // Whatever happened: soon everything works again.
        sleep(10 * SECOND).await;
        let grants = world.oracle.borrow().grants;
        sleep(5 * SECOND).await;
        let oracle = world.oracle.borrow();
        assert!(oracle.grants > grants, "seed {seed}: nothing is granted any more");
        assert_eq!(oracle.lcs.len(), MACHINES as usize);
        assert!(oracle.moves > rounds / 2, "seed {seed}: {} moves", oracle.moves);
        assert!(world.group.ends.borrow().is_empty(), "{:?}", world.group.ends);
        simulation.trace()
    })
}

#[test]
fn a_group_never_has_two_owners() {
    for seed in 1..=4 {
        walk(seed, 15);
    }
}

#[test] // The simulator's V1, for all that openraft does.
fn the_same_seed_gives_the_same_run() {
    assert_eq!(walk(77, 5), walk(77, 5));
}
