//! Ring 1: whole coordinators in the simulator, one and several, with members killed.
#![allow(clippy::unwrap_used)]

mod common;

use braid_env::simulated;
use braid_terms::*;
use braid_wire::coordinator::*;
use braid_wire::coordinator_client::{CoordinatorClient, CoordinatorError};
use braid_wire::rpc::Peer;
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
    for seed in 1..=12 {
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

#[test] // Proves: O-3, O-4, O-5.
fn a_silent_owners_groups_are_had_within_four_seconds() {
    simulated::run(5, async |simulation| {
        let group = Group::start(&simulation, 3);
        let (_, silent) = group.register_lc(1, 1).await;
        let (lc, lccs) = group.register_lc(2, 1).await;
        let request = CoordinatorRequest::Grant { lcc: silent[0], group: DeviceId(7) };
        let granted = group.call(&request).await;
        assert!(
            matches!(granted, Ok(CoordinatorReply::Granted { clean: true, .. })),
            "{granted:?}"
        );
        let begin = Instant::now();
        let request = CoordinatorRequest::Grant { lcc: lccs[0], group: DeviceId(7) };
        loop {
            assert!(matches!(group.renew(lc).await, Ok(CoordinatorReply::Renewed { .. })));
            match group.call(&request).await.unwrap() {
                CoordinatorReply::OwnedBy { incarnation, .. } => assert_eq!(incarnation, silent[0]),
                CoordinatorReply::Granted { clean, .. } => {
                    assert!(!clean, "the silent one may have left something unfinished");
                    break;
                }
                other => panic!("{other:?}"),
            }
            sleep(SECOND / 4).await;
        }
        assert!(begin.elapsed() > SECOND && begin.elapsed() < 4 * SECOND);
        let map = group.map().await;
        assert_eq!(
            (map.servers[&ServerId(1)].lc, &*map.servers[&ServerId(1)].lccs),
            (None, &[None][..])
        );
    });
}

#[test] // Proves: O-4. Hole 10 (a).
fn a_leader_that_is_cut_off_renews_no_lease() {
    for seed in 1..=5 {
        simulated::run(seed, async |simulation| {
            let group = Group::start(&simulation, 3);
            let (lc, _) = group.register_lc(1, 1).await;
            let leader = group.leader().await;
            let alone = vec![address(&simulation, leader)];
            // Its clients still reach it.
            let env = simulation.machine(9).env();
            let client = CoordinatorClient::new(env, CLUSTER, Peer::Unknown, alone);
            let request = CoordinatorRequest::Renew { lc, map_version: 0, no_copies: None };
            assert!(client.call(&request, SECOND).await.is_ok());
            for other in (1..=3).filter(|other| *other != leader) {
                simulation.partition_both(leader, other);
            }
            let cut_off = client.call(&request, 2 * SECOND).await;
            assert_eq!(cut_off.map(|_| ()), Err(CoordinatorError::Unreachable));
            let renewed = group.renew(lc).await;
            assert!(renewed.is_ok(), "the others have elected one of them: {renewed:?}");
            simulation.heal_all();
            sleep(2 * SECOND).await;
            assert!(group.renew(lc).await.is_ok());
        });
    }
}

#[test]
fn a_member_that_was_away_for_long_gets_a_snapshot() {
    simulated::run(2, async |simulation| {
        let mut group = Group::start(&simulation, 3);
        let (lc, lccs) = group.register_lc(1, 1).await;
        let leader = group.leader().await;
        let away = 1 + leader % 3;
        group.kill(away);
        for device in 1..=2500 {
            let facts = vec![(GrantNumber { term: 1, counter: 1 }, suspect(device, 1))];
            let request = CoordinatorRequest::RecordFacts { lcc: lccs[0], facts };
            assert!(group.call(&request).await.is_ok());
            if device % 100 == 0 {
                assert!(group.renew(lc).await.is_ok());
            }
        }
        let disk = simulation.machine(leader).disk(FOLDER).unwrap();
        assert!(disk.files().contains(&"snapshot".to_owned()), "{:?}", disk.files());
        let length = disk.content("log").unwrap().len();
        assert!(length < 1 << 20, "the log is purged: {length} bytes");
        group.restart(away);
        sleep(3 * SECOND).await;
        let statuses = group.client.statuses(SECOND).await;
        for status in statuses.into_iter().map(Option::unwrap) {
            assert_eq!(status.facts.suspect, 2500, "server {}", status.server);
        }
        // And it remembers it.
        for number in 1..=3 {
            simulation.machine(number).power_cut();
            simulation.machine(number).power_on();
            group.restart(number);
        }
        let mut after = FactNumber(0);
        let mut count = 0;
        loop {
            let request = CoordinatorRequest::Facts { after, limit: 1000 };
            let Ok(CoordinatorReply::Facts { facts, end }) = group.call(&request).await else {
                panic!("no facts");
            };
            count += facts.len();
            after = facts.last().unwrap().number;
            if end {
                break;
            }
        }
        assert_eq!(count, 2500);
    });
}

#[test]
fn a_member_that_forgot_its_log_does_not_take_part() {
    simulated::run(2, async |simulation| {
        let mut group = Group::start(&simulation, 1);
        let (_, lccs) = group.register_lc(1, 1).await;
        for device in 1..=1200 {
            let facts = vec![(GrantNumber { term: 1, counter: 1 }, suspect(device, 1))];
            let request = CoordinatorRequest::RecordFacts { lcc: lccs[0], facts };
            assert!(group.call(&request).await.is_ok());
        }
        group.kill(1);
        let folder = simulation.machine(1).env().folder(FOLDER.as_ref()).unwrap();
        folder.remove("log").unwrap();
        group.restart(1);
        sleep(SECOND).await;
        assert!(group.ends.borrow()[0].1.contains("snapshot without a log"), "{:?}", group.ends);
    });
}

#[test] // Proves: S-4.
fn a_failed_sync_ends_the_member_and_costs_nothing() {
    simulated::run(6, async |simulation| {
        let mut group = Group::start(&simulation, 3);
        let (lc, lccs) = group.register_lc(1, 1).await;
        let leader = group.leader().await;
        simulation.machine(leader).disk(FOLDER).unwrap().fail_syncs(1);
        let facts = vec![(GrantNumber { term: 1, counter: 1 }, suspect(5, 1))];
        let request = CoordinatorRequest::RecordFacts { lcc: lccs[0], facts };
        let Ok(CoordinatorReply::Recorded(first)) = group.call(&request).await else {
            panic!("not recorded");
        };
        let Ok(CoordinatorReply::Recorded(again)) = group.call(&request).await else {
            panic!("not recorded");
        };
        assert_eq!(first, again);
        assert!(group.renew(lc).await.is_ok());
        sleep(2 * SECOND).await;
        assert!(group.renew(lc).await.is_ok());
        assert_eq!(group.ends.borrow().iter().map(|end| end.0).collect::<Vec<_>>(), [leader]);
        group.restart(leader);
        sleep(2 * SECOND).await;
        assert!(group.renew(lc).await.is_ok());
        assert_eq!(group.client.statuses(SECOND).await.iter().flatten().count(), 3);
        assert_eq!(group.ends.borrow().len(), 1);
    });
}
