//! Ring 1: whole coordinators in the simulator, one and several, with members killed.
#![allow(clippy::unwrap_used)]

mod common;

use braid_env::simulated;
use braid_terms::*;
use braid_wire::coordinator::*;
use braid_wire::coordinator_client::CoordinatorError;
use common::*;
use tokio::time::{Instant, sleep};

#[test]
fn one_member_begins_answers_and_remembers() {
    simulated::run(1, async |simulation| {
        let begin = Instant::now();
        let mut group = Group::start(&simulation, 1);
        let (lc, lccs) = group.register_lc(1, 2).await;
        assert!(begin.elapsed() < SECOND, "one member need not wait for others");
        let request = CoordinatorRequest::LeaseNumbers { lcc: lccs[0] };
        let Ok(CoordinatorReply::Numbers { first, grant }) = group.call(&request).await else {
            panic!("no numbers");
        };
        let before = group.map().await;
        assert_eq!(before.servers[&ServerId(1)].lc, Some(lc));

        group.kill(1);
        group.restart(1);
        assert_eq!(group.map().await, before);
        assert!(matches!(group.renew(lc).await, Ok(CoordinatorReply::Renewed { .. })));
        let Ok(CoordinatorReply::Numbers { first: next, grant: next_grant }) =
            group.call(&request).await
        else {
            panic!("no numbers");
        };
        assert!(next.0 >= first.0 + NUMBER_RANGE_SIZE);
        assert!(next_grant > grant, "a restarted leader grants under a new term");
    });
}

#[test]
fn a_killed_leader_costs_less_than_three_seconds() {
    for seed in 1..=10 {
        simulated::run(seed, async |simulation| {
            let mut group = Group::start(&simulation, 3);
            let (lc, lccs) = group.register_lc(1, 1).await;
            let leader = group.leader().await;
            group.kill(leader);
            let begin = Instant::now();
            let renewed = group.renew(lc).await;
            assert!(matches!(renewed, Ok(CoordinatorReply::Renewed { tell_holdings: true, .. })));
            let took = begin.elapsed();
            assert!(took < 3 * SECOND, "seed {seed}: {took:?}");
            assert_ne!(group.leader().await, leader);

            // The killed one comes back and catches up, also when the others are then gone.
            let facts = vec![(GrantNumber { term: 1, counter: 1 }, suspect(5, 1))];
            let request = CoordinatorRequest::RecordFacts { lcc: lccs[0], facts };
            assert!(
                matches!(group.call(&request).await, Ok(CoordinatorReply::Recorded(r)) if r[0].is_ok())
            );
            group.restart(leader);
            sleep(2 * SECOND).await;
            let second = group.leader().await;
            group.kill(second);
            let request = CoordinatorRequest::Facts { after: FactNumber(0), limit: 10 };
            let Ok(CoordinatorReply::Facts { facts, end: true }) = group.call(&request).await
            else {
                panic!("no facts");
            };
            assert_eq!(facts.len(), 1);
            assert!(group.ends.borrow().is_empty());
        });
    }
}

#[test]
fn after_all_members_lost_power_the_state_is_there() {
    for seed in 1..=20 {
        simulated::run(seed, async |simulation| {
            let mut group = Group::start(&simulation, 3);
            let (_, lccs) = group.register_lc(1, 1).await;
            let mut numbers = Vec::new();
            for device in 1..20 {
                let facts = vec![(GrantNumber { term: 1, counter: 1 }, suspect(device, 1))];
                let request = CoordinatorRequest::RecordFacts { lcc: lccs[0], facts };
                let Ok(CoordinatorReply::Recorded(results)) = group.call(&request).await else {
                    panic!("not recorded");
                };
                numbers.push(*results[0].as_ref().unwrap());
            }
            let before = group.map().await;
            for number in 1..=3 {
                simulation.machine(number).power_cut();
            }
            sleep(SECOND).await;
            for number in 1..=3 {
                simulation.machine(number).power_on();
                group.restart(number);
            }
            assert_eq!(group.map().await, before);
            let request = CoordinatorRequest::Facts { after: FactNumber(0), limit: 100 };
            let Ok(CoordinatorReply::Facts { facts, .. }) = group.call(&request).await else {
                panic!("no facts");
            };
            assert_eq!(facts.iter().map(|fact| fact.number).collect::<Vec<_>>(), numbers);
            assert!(group.ends.borrow().is_empty(), "{:?}", group.ends);
        });
    }
}

#[test]
fn what_is_not_in_the_map_is_refused() {
    simulated::run(3, async |simulation| {
        let group = Group::start(&simulation, 1);
        let requests = [
            CoordinatorRequest::RegisterLc { server: ServerId(9), lccs: 1 },
            CoordinatorRequest::RegisterIo { disk: DiskId(9), identity: 0 },
            CoordinatorRequest::RegisterIo { disk: DiskId(1), identity: 1 },
        ];
        for request in requests {
            let refused = group.call(&request).await;
            let is_unknown = matches!(
                refused,
                Err(CoordinatorError::Refused(CoordinatorRefusal::Unknown { .. }))
            );
            assert!(is_unknown, "{request:?}: {refused:?}");
        }
    });
}
