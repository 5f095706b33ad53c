//! Ring 4: one I/O server on real files.
#![allow(clippy::unwrap_used)]

mod common;

use braid_env::machine;
use braid_io_server::{DiskError, IoFatal, IoServer};
use braid_terms::{PortionIndex, WriteNumber};
use braid_wire::io::*;
use braid_wire::operations::Operations;
use common::*;

const NONE: WriteNumber = WriteNumber::NONE;

#[test] // Proves: W-2, W-12.
fn prepared_bytes_are_read_from_their_decided_mark_on_and_survive_a_restart() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let env = machine::env(Default::default());
        format(&env, folder.path()).await;
        let (one, two) = (blocks(1, 64), block(500));
        {
            let server = start(&env, folder.path(), 1).await;
            let owner = Owner::new(&server, 7, 1, 1);
            let first = record(number(1, 1), NONE, vec![write(0, &one)]);
            owner.prepare(first.clone(), &one, NONE, NONE).await.unwrap();
            let second = record(number(1, 2), number(1, 1), vec![write(3, &two)]);
            owner.prepare(second, &two, number(1, 1), NONE).await.unwrap();
            assert_eq!(owner.read(NONE, 0, 64).await.unwrap(), vec![0; 64 * 4096]);
            assert_eq!(owner.read(number(1, 1), 0, 64).await.unwrap(), one);
            let overlaid = owner.read(number(1, 2), 2, 3).await.unwrap();
            assert_eq!(overlaid, [block(3), two.clone(), block(5)].concat());
            let repeat = owner.prepare(first, &one, NONE, NONE).await;
            assert!(repeat.is_ok(), "{repeat:?}");
            let gap = record(number(1, 4), number(1, 3), vec![]);
            let refusal = owner.prepare(gap, &[], NONE, NONE).await;
            assert_eq!(refusal, Err(IoRefusal::Gap { last: number(1, 2) }));
        }
        let server = start(&env, folder.path(), 2).await;
        let stale = Owner::new(&server, 7, 1, 1);
        assert!(matches!(
            stale.read(number(1, 2), 0, 1).await,
            Err(IoRefusal::WrongIncarnation { .. })
        ));
        let owner = Owner::new(&server, 7, 2, 2);
        assert_eq!(owner.read(number(1, 2), 0, 1).await, Err(IoRefusal::UnknownGroup));
        let report = owner.open().await.unwrap();
        assert_eq!(report.last, number(1, 2));
        assert_eq!(report.records.len(), 2);
        assert_eq!(report.files, vec![FileState::Present]);
        assert_eq!(report.decided, number(1, 1));
        // All stable: a checkpoint applies it, and another restart finds it in the files.
        owner.sync().await;
        owner.marks(number(1, 2), number(1, 2), vec![]).await;
        server.checkpoint().await.unwrap();
        assert_eq!(owner.open().await.unwrap().records, vec![]);
        let expect = [&one[..3 * 4096], &two, &one[4 * 4096..]].concat();
        assert_eq!(owner.read(number(1, 2), 0, 64).await.unwrap(), expect);
        drop((owner, server, stale));
        let server = start(&env, folder.path(), 3).await;
        let owner = Owner::new(&server, 7, 3, 3);
        let report = owner.open().await.unwrap();
        assert_eq!((report.last, report.stable), (number(1, 2), number(1, 2)));
        assert_eq!(report.lengths, vec![8192]);
        assert_eq!(owner.read(number(1, 2), 0, 64).await.unwrap(), expect);
    });
}

/// A file was made an exbibyte long and cut again, as any user may: the record's punch walked a page
/// for each 2 MiB of nothing, the server was killed as hung, and its journal repeated it at each start.
/// Found by stress-ng.
#[test] // Proves: W-8, S-1.
fn a_punch_costs_what_is_there_and_not_its_length() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let env = machine::env(Default::default());
        format(&env, folder.path()).await;
        let (near, far) = (blocks(1, 700), blocks(5_000, 4));
        let server = start(&env, folder.path(), 1).await;
        let owner = Owner::new(&server, 7, 1, 1);
        let far_at = 1 << 28;
        let changes = vec![write(0, &near), write(far_at, &far)];
        let payload = [&near[..], &far].concat();
        owner.prepare(record(number(1, 1), NONE, changes), &payload, NONE, NONE).await.unwrap();
        owner.sync().await;
        owner.marks(number(1, 1), number(1, 1), vec![]).await;
        server.checkpoint().await.unwrap();
        assert_eq!(owner.read(number(1, 1), far_at, 4).await.unwrap(), far);
        let punch = Change::Punch(BlockRange { device_index: 0, first: 600, count: 1 << 47 });
        let cut = record(number(1, 2), number(1, 1), vec![punch]);
        owner.prepare(cut, &[], number(1, 1), number(1, 1)).await.unwrap();
        owner.sync().await;
        owner.marks(number(1, 2), number(1, 2), vec![]).await;
        server.checkpoint().await.unwrap();
        let expect = [&near[..600 * 4096], &[0; 100 * 4096]].concat();
        assert_eq!(owner.read(number(1, 2), 0, 700).await.unwrap(), expect);
        assert_eq!(owner.read(number(1, 2), far_at, 4).await.unwrap(), vec![0; 4 * 4096]);
    });
}

#[test] // Proves: S-7.
fn a_folder_without_disk_toml_is_missing_and_one_of_another_cluster_is_refused() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let env = machine::env(Default::default());
        let missing = IoServer::start(&env, &config(folder.path())).await;
        assert!(matches!(missing.err(), Some(IoFatal::Disk(DiskError::Missing))));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        format(&env, folder.path()).await;
        let mut other = config(folder.path());
        other.cluster.0 += 1;
        let refused = IoServer::start(&env, &other).await;
        assert!(matches!(refused.err(), Some(IoFatal::Disk(DiskError::OtherCluster { .. }))));
    });
}

#[test] // Proves: O-5.
fn a_higher_grant_fences_lower_ones() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let env = machine::env(Default::default());
        format(&env, folder.path()).await;
        let server = start(&env, folder.path(), 1).await;
        let (old, new) = (Owner::new(&server, 7, 1, 1), Owner::new(&server, 7, 2, 1));
        let bytes = block(1);
        let first = record(number(1, 1), NONE, vec![write(0, &bytes)]);
        old.prepare(first, &bytes, NONE, NONE).await.unwrap();
        let report = new.open().await.unwrap();
        assert_eq!(report.records.len(), 1);
        let second = record(number(1, 2), number(1, 1), vec![write(0, &bytes)]);
        let fenced = Err(IoRefusal::Fenced { grant: grant(2) });
        assert_eq!(old.prepare(second, &bytes, NONE, NONE).await, fenced);
        // The new owner drops what is above nothing, and the slot is empty again.
        let mut outcome = record(number(2, 0), number(1, 1), vec![]);
        outcome.kind = RecordKind::Outcome { ends_at: NONE };
        new.prepare(outcome, &[], NONE, NONE).await.unwrap();
        assert_eq!(new.read(number(2, 0), 0, 1).await.unwrap(), vec![0; 4096]);
        let report = new.inspect().await.unwrap();
        assert_eq!(report.outcome, Some((number(2, 0), NONE, false)));
        assert_eq!((report.last, report.records.len()), (number(2, 0), 1));
    });
}

#[test] // Proves: F-2, F-4.
fn what_an_absent_slot_misses_is_told_and_a_rejoined_slot_is_rebuilt() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let env = machine::env(Default::default());
        format(&env, folder.path()).await;
        let server = start(&env, folder.path(), 1).await;
        let owner = Owner::new(&server, 7, 1, 1);
        let bytes = block(1);
        let first = record(number(1, 1), NONE, vec![write(5, &bytes)]);
        owner.prepare(first, &bytes, NONE, NONE).await.unwrap();
        owner.sync().await;
        let absent = Absent { slot: PortionIndex(2), joining_from: None };
        owner.marks(number(1, 1), number(1, 1), vec![absent]).await;
        server.checkpoint().await.unwrap();
        let missed = owner.inspect().await.unwrap().missed;
        let range = BlockRange { device_index: 0, first: 5, count: 1 };
        assert_eq!(missed, vec![Missed { slot: PortionIndex(2), ranges: vec![range] }]);
        drop((owner, server));
        let server = start(&env, folder.path(), 2).await;
        let owner = Owner::new(&server, 7, 2, 2);
        assert_eq!(owner.open_with(vec![absent]).await.unwrap().missed, missed);
        assert_eq!(owner.open().await.unwrap().missed, vec![]);

        // This slot itself begins anew, whole.
        let request = IoRequest::Rejoin {
            fence: owner.fence(),
            rejoin: Box::new(Rejoin {
                layout: layout(7),
                after: NONE,
                prev: number(1, 9),
                decided: number(1, 9),
                lengths: vec![123],
                home: braid_terms::DeviceId(9),
                whole: true,
                operations: Operations::default(),
                missed: Vec::new(),
            }),
        };
        let report = report(owner.ask(request, &[]).await.0).unwrap();
        assert_eq!((report.last, report.lengths), (number(1, 9), vec![123]));
        let bytes = blocks(100, 40);
        let changes = vec![write(0, &bytes)];
        let rebuild = IoRequest::Rebuild { fence: owner.fence(), decided: number(1, 9), changes };
        assert!(owner.ask(rebuild, &bytes).await.0.is_ok());
        assert_eq!(owner.read(number(1, 9), 0, 40).await.unwrap(), bytes);
        let news = block(999);
        let next = record(number(2, 1), number(1, 9), vec![write(2, &news)]);
        owner.prepare(next, &news, number(2, 1), number(1, 9)).await.unwrap();
        owner.sync().await;
        server.checkpoint().await.unwrap();
        assert_eq!(owner.read(number(2, 1), 2, 1).await.unwrap(), news);
        assert_eq!(owner.read(number(2, 1), 3, 37).await.unwrap(), blocks(103, 37));
        drop((owner, server));
        let server = start(&env, folder.path(), 3).await;
        let owner = Owner::new(&server, 7, 3, 3);
        assert_eq!(owner.open().await.unwrap().last, number(2, 1));
        assert_eq!(owner.read(number(2, 1), 2, 1).await.unwrap(), news);
        assert_eq!(owner.read(number(2, 1), 3, 37).await.unwrap(), blocks(103, 37));
    });
}

/// A join that goes on from what the slot has up to `after`.
fn rejoin(owner: &Owner, after: WriteNumber, prev: WriteNumber) -> IoRequest {
    let rejoin = Rejoin {
        layout: layout(7),
        after,
        prev,
        decided: prev,
        lengths: vec![123],
        home: braid_terms::DeviceId(9),
        whole: false,
        operations: Operations::default(),
        missed: Vec::new(),
    };
    IoRequest::Rejoin { fence: owner.fence(), rejoin: Box::new(rejoin) }
}

#[test] // Proves: F-4.
fn what_an_earlier_join_rebuilt_outlives_the_next_one() {
    // An I/O server that stood still for a while, twice, was never restarted, so that what the first
    // repair laid in the journal was not in its place when the second began; it was dropped, and old
    // bytes were read.
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let env = machine::env(Default::default());
        format(&env, folder.path()).await;
        let server = start(&env, folder.path(), 1).await;
        let owner = Owner::new(&server, 7, 1, 1);
        let old = blocks(1, 6);
        let first = record(number(1, 1), NONE, vec![write(0, &old)]);
        owner.prepare(first, &old, number(1, 1), number(1, 1)).await.unwrap();
        report(owner.ask(rejoin(&owner, number(1, 1), number(1, 9)), &[]).await.0).unwrap();
        let rebuilt = blocks(100, 3);
        let changes = vec![write(1, &rebuilt)];
        let rebuild = IoRequest::Rebuild { fence: owner.fence(), decided: number(1, 9), changes };
        assert!(owner.ask(rebuild, &rebuilt).await.0.is_ok());
        // Written after the close: one that is stable, one that is not.
        let kept = block(200);
        let next = record(number(1, 10), number(1, 9), vec![write(4, &kept)]);
        owner.prepare(next, &kept, number(1, 10), number(1, 10)).await.unwrap();
        let dropped = block(300);
        let last = record(number(1, 11), number(1, 10), vec![write(1, &dropped)]);
        owner.prepare(last, &dropped, number(1, 11), number(1, 10)).await.unwrap();
        report(owner.ask(rejoin(&owner, number(1, 10), number(1, 20)), &[]).await.0).unwrap();
        let expect = [&old[..4096], &rebuilt, &kept, &old[5 * 4096..]].concat();
        assert!(owner.read(number(1, 20), 0, 6).await.unwrap() == expect, "other bytes");
        owner.sync().await;
        server.checkpoint().await.unwrap();
        assert!(owner.read(number(1, 20), 0, 6).await.unwrap() == expect, "other bytes");
    });
}

#[test] // Proves: F-2, F-4.
fn what_a_rejoin_drops_of_an_earlier_join_is_missed_again() {
    // The first join rebuilt blocks at a mark that was decided and not stable yet. The slot was removed
    // again before it was: the second join began below that mark, dropped the blocks, and nobody told
    // them as missed, for no write had changed them since (simulator, six servers, seed 400082).
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let env = machine::env(Default::default());
        format(&env, folder.path()).await;
        let server = start(&env, folder.path(), 1).await;
        let owner = Owner::new(&server, 7, 1, 1);
        let old = blocks(1, 6);
        let first = record(number(1, 1), NONE, vec![write(0, &old)]);
        owner.prepare(first, &old, number(1, 1), number(1, 1)).await.unwrap();
        let request = rejoin(&owner, number(1, 1), number(1, 9));
        assert_eq!(report(owner.ask(request, &[]).await.0).unwrap().missed, vec![]);
        for (decided, first) in [(number(1, 9), 4), (number(1, 12), 1)] {
            let bytes = blocks(100, 2);
            let changes = vec![write(first, &bytes)];
            let rebuild = IoRequest::Rebuild { fence: owner.fence(), decided, changes };
            assert!(owner.ask(rebuild, &bytes).await.0.is_ok());
        }
        let request = rejoin(&owner, number(1, 9), number(1, 20));
        let missed = report(owner.ask(request, &[]).await.0).unwrap().missed;
        let range = BlockRange { device_index: 0, first: 1, count: 2 };
        assert_eq!(missed, vec![Missed { slot: PortionIndex(1), ranges: vec![range] }]);
        // Also where the join is begun anew, before and after a restart.
        let request = rejoin(&owner, number(1, 9), number(1, 20));
        assert_eq!(report(owner.ask(request, &[]).await.0).unwrap().missed, missed);
        owner.sync().await;
        drop((owner, server));
        let server = start(&env, folder.path(), 2).await;
        let owner = Owner::new(&server, 7, 2, 2);
        let request = rejoin(&owner, number(1, 9), number(1, 20));
        assert_eq!(report(owner.ask(request, &[]).await.0).unwrap().missed, missed);
        assert!(owner.read(number(1, 20), 4, 2).await.unwrap() == blocks(100, 2), "other bytes");
        // What others lack is kept with that.
        let mut request = rejoin(&owner, number(1, 9), number(1, 20));
        let of_other = Missed { slot: PortionIndex(2), ranges: vec![range] };
        if let IoRequest::Rejoin { rejoin, .. } = &mut request {
            rejoin.missed.push(of_other.clone());
        }
        let all = report(owner.ask(request, &[]).await.0).unwrap().missed;
        assert_eq!(all, [missed, vec![of_other]].concat());
    });
}

#[test] // Proves: F-9.
fn a_removed_group_is_gone_and_its_grant_refused() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let env = machine::env(Default::default());
        format(&env, folder.path()).await;
        let server = start(&env, folder.path(), 1).await;
        let owner = Owner::new(&server, 7, 1, 1);
        let bytes = blocks(1, 32);
        let first = record(number(1, 1), NONE, vec![write(0, &bytes)]);
        owner.prepare(first.clone(), &bytes, NONE, NONE).await.unwrap();
        let name = layout(7).portion_name(0, PortionIndex(1));
        assert!(folder.path().join(name.path()).exists());
        for _ in 0..2 {
            let request = IoRequest::Remove { fence: owner.fence(), layout: Box::new(layout(7)) };
            assert!(owner.ask(request, &[]).await.0.is_ok());
            assert!(!folder.path().join(name.path()).exists());
            let refusal = owner.prepare(first.clone(), &bytes, NONE, NONE).await;
            assert_eq!(refusal, Err(IoRefusal::Fenced { grant: grant(1) }));
        }
        server.checkpoint().await.unwrap();
        drop((owner, server));
        let server = start(&env, folder.path(), 2).await;
        let owner = Owner::new(&server, 7, 1, 2);
        assert_eq!(owner.open().await.err(), Some(IoRefusal::Fenced { grant: grant(1) }));
    });
}
