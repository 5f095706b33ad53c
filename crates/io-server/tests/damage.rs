//! Ring 4: damaged bytes, a full disk, a medium that fails.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use braid_io_server::{IoFatal, IoServer, Limits};
use braid_terms::{PortionIndex, PortionName, WriteNumber};
use braid_wire::io::*;
use common::disk::{Random, TestDisk};
use common::*;

const NONE: WriteNumber = WriteNumber::NONE;

/// A disk with one group that is applied, and one whose records are all in the journal.
async fn filled() -> TestDisk {
    let disk = TestDisk::new();
    let env = disk.env(1);
    format(&env, Path::new("/disk")).await;
    let server = start(&env, Path::new("/disk"), 1).await;
    for device in [7, 8] {
        let owner = Owner::new(&server, device, 1, 1);
        for sequence in 1..=3 {
            let bytes = blocks(device * 100 + sequence, 3);
            let changes = vec![write(first_block(device, sequence), &bytes)];
            let prev = if sequence == 1 { NONE } else { number(1, sequence - 1) };
            let stable = if device == 7 { prev } else { NONE };
            let record = record(number(1, sequence), prev, changes);
            owner.prepare(record, &bytes, prev, stable).await.unwrap();
            if device == 7 {
                // Each checkpoint leaves an older state in one of the slots.
                owner.sync().await;
                owner.marks(number(1, sequence), number(1, sequence), vec![]).await;
                server.checkpoint().await.unwrap();
            }
        }
    }
    let owner = Owner::new(&server, 8, 1, 1);
    owner.sync().await;
    // Later records tell that what stands before was synced.
    owner.open_with(vec![Absent { slot: PortionIndex(2), joining_from: None }]).await.unwrap();
    disk.clone()
}

/// Group 7 is in a block group with a checksum page of its own, group 8 beside the header.
fn first_block(device: u64, sequence: u64) -> u64 {
    sequence * 2 + if device == 7 { 600 } else { 0 }
}

/// What is read of a group: blocks that fit their checksums, or a refusal.
async fn check_group(server: &Started, device: u64, sound: bool) -> bool {
    let owner = Owner::new(server, device, 2, 2);
    let report = match owner.open().await {
        Ok(report) => report,
        Err(IoRefusal::Unreadable { .. }) => return true,
        Err(other) => panic!("{other:?}"),
    };
    let mut told = report.damaged_after.is_some()
        || report.files.contains(&FileState::Unreadable)
        || report.last != number(1, 3);
    let fence = owner.fence();
    let ranges = vec![BlockRange { device_index: 0, first: first_block(device, 0), count: 12 }];
    let read = Read { fence, decided: number(1, 3), ranges };
    let (reply, payload) = owner.ask(IoRequest::Read(Box::new(read)), &[]).await;
    let Ok(IoReply::Blocks { crcs }) = reply else { return true };
    let bytes = payload.into_bytes();
    let mut present = bytes.chunks(4096);
    let mut expect = vec![None; 12];
    for sequence in 1..=3 {
        for index in 0..3 {
            let at = usize::try_from(sequence * 2 + index).unwrap();
            expect[at] = Some(block(device * 100 + sequence + index));
        }
    }
    for (crc, expect) in crcs.iter().zip(expect) {
        let found = crc.map(|crc| (crc, present.next().unwrap()));
        match (found, expect) {
            (None, None) => {}
            (Some((crc, bytes)), Some(expect)) => {
                let fits = braid_io_server::crc32c(bytes) == crc;
                told |= !fits;
                assert!(!fits || bytes == expect, "wrong bytes with a right checksum");
            }
            (found, _) => {
                assert!(told, "a block appeared or vanished: {:?}", found.map(|found| found.0));
            }
        }
    }
    assert!(!sound || !told, "nothing was damaged");
    told
}

#[test] // Proves: S-2, S-3.
fn a_flipped_bit_anywhere_is_told_and_never_a_panic() {
    run(async {
        let disk = filled().await;
        let files: Vec<(String, usize)> = disk
            .files()
            .into_iter()
            .filter(|(name, _)| name != "disk.toml")
            .map(|(name, bytes)| (name, bytes.len()))
            .collect();
        let mut random = Random(9);
        let mut told = 0;
        for round in 0..240 {
            let copy = disk.copy();
            if 0 < round {
                let (name, length) =
                    &files[usize::try_from(random.below(files.len() as u64)).unwrap()];
                // Mostly heads, bodies and pages, where a bit matters.
                let page = 514 * 4096;
                let at = match random.below(3) {
                    0 => usize::try_from(random.below(*length as u64)).unwrap(),
                    1 if page < *length => page + usize::try_from(random.below(8192)).unwrap(),
                    _ => usize::try_from(random.below((*length).min(8192) as u64)).unwrap(),
                };
                copy.flip(name, at, u8::try_from(random.below(8)).unwrap());
            }
            let env = copy.env(2);
            let server = start(&env, Path::new("/disk"), 2).await;
            for device in [7, 8] {
                told += u32::from(check_group(&server, device, round == 0).await);
                let name = layout(device).portion_name(0, PortionIndex(1));
                let owner = Owner::new(&server, device, 2, 2);
                let _ = owner.ask(IoRequest::Verify { name }, &[]).await;
            }
            let _ = server.checkpoint().await;
        }
        assert!(40 < told, "most bits matter: {told}");
    });
}

#[test] // Proves: F-2.
fn a_lost_file_is_not_made_anew_from_what_the_journal_has_of_it() {
    run(async {
        let disk = filled().await;
        let env = disk.env(2);
        let server = start(&env, Path::new("/disk"), 2).await;
        let owner = Owner::new(&server, 7, 2, 2);
        owner.open().await.unwrap();
        let bytes = blocks(9, 1);
        let later = record(number(2, 1), number(1, 3), vec![write(700, &bytes)]);
        owner.prepare(later, &bytes, number(1, 3), number(1, 3)).await.unwrap();
        owner.sync().await;
        owner.marks(number(2, 1), number(2, 1), vec![]).await;
        // The record is in the journal, what was before only in the file.
        let copy = disk.copy();
        copy.lose(&layout(7).portion_name(0, PortionIndex(1)).path());
        let env = copy.env(3);
        for (incarnation, checkpoint) in [(3, true), (4, false), (5, true)] {
            let server = start(&env, Path::new("/disk"), incarnation).await;
            if checkpoint {
                server.checkpoint().await.unwrap();
            }
            let owner = Owner::new(&server, 7, incarnation, incarnation);
            let report = owner.open().await.unwrap();
            assert_eq!(report.files, [FileState::None], "it looks as if it were whole");
            assert!(owner.read(number(2, 1), first_block(7, 1), 1).await.is_err());
        }
    });
}

/// Number of blocks that a portion was verified to have, and the bad ones.
async fn verified(owner: &Owner, name: PortionName) -> (u64, Vec<BlockRange>) {
    match owner.ask(IoRequest::Verify { name }, &[]).await.0 {
        Ok(IoReply::Verified { blocks, bad }) => (blocks, bad),
        other => panic!("{other:?}"),
    }
}

#[test] // Proves: F-6.
fn verification_finds_the_bad_block() {
    run(async {
        let disk = filled().await;
        let name = layout(7).portion_name(0, PortionIndex(1));
        disk.flip(&name.path(), (514 + 2 + 603 - 512) * 4096 + 5, 1);
        let env = disk.env(2);
        let server = start(&env, Path::new("/disk"), 2).await;
        let owner = Owner::new(&server, 7, 2, 2);
        let range = BlockRange { device_index: 0, first: 603, count: 1 };
        assert_eq!(verified(&owner, name).await, (7, vec![range]));
    });
}

/// A record of which nobody says that it is stable stays in the journal, its bytes in their place.
#[test] // Proves: F-6.
fn verification_finds_the_bad_block_of_a_kept_record() {
    run(async {
        let disk = filled().await;
        let env = disk.env(2);
        let server = start(&env, Path::new("/disk"), 2).await;
        let owner = Owner::new(&server, 7, 2, 2);
        owner.open().await.unwrap();
        let bytes = blocks(9, 8);
        let later = record(number(2, 1), number(1, 3), vec![write(620, &bytes)]);
        owner.prepare(later, &bytes, number(1, 3), number(1, 3)).await.unwrap();
        owner.sync().await;
        let name = layout(7).portion_name(0, PortionIndex(1));
        assert_eq!(verified(&owner, name).await, (15, vec![]));
        disk.flip(&name.path(), (514 + 2 + 623 - 512) * 4096 + 5, 1);
        let range = BlockRange { device_index: 0, first: 623, count: 1 };
        assert_eq!(verified(&owner, name).await, (15, vec![range]));
    });
}

#[test] // Proves: F-6.
fn a_scrub_finds_the_bad_block_looks_again_and_remembers_when() {
    run(async {
        let disk = filled().await;
        let name = layout(7).portion_name(0, PortionIndex(1)).path();
        let at = (514 + 2 + 603 - 512) * 4096 + 5;
        disk.flip(&name, at, 1);
        let env = disk.env(2);
        let server = start(&env, Path::new("/disk"), 2).await;
        let owner = Owner::new(&server, 7, 2, 2);
        let status = async |request| match owner.ask(request, &[]).await.0 {
            Ok(IoReply::Status(status)) => status.scrub,
            other => panic!("{other:?}"),
        };
        let until = async |condition: fn(&ScrubStatus) -> bool| {
            let waited = async {
                loop {
                    let scrub = status(IoRequest::Status).await;
                    if condition(&scrub) {
                        return scrub;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            };
            let limit = std::time::Duration::from_secs(60);
            tokio::time::timeout(limit, waited).await.expect("it comes to that")
        };
        let before = status(IoRequest::Scrub).await;
        assert_eq!((before.passes, before.bad_blocks), (0, 0));
        let found = until(|scrub| scrub.passes == 1).await;
        assert_eq!((found.blocks, found.bad_blocks, found.running), (7, 1, false));
        assert!(before.verified <= found.verified);
        disk.flip(&name, at, 1);
        let mended = until(|scrub| scrub.bad_blocks == 0).await;
        assert_eq!((mended.passes, mended.verified), (1, found.verified));
        drop(server);
        let server = start(&disk.env(3), Path::new("/disk"), 3).await;
        let owner = Owner::new(&server, 7, 3, 3);
        match owner.ask(IoRequest::Status, &[]).await.0 {
            Ok(IoReply::Status(status)) => assert_eq!(status.scrub.verified, mended.verified),
            other => panic!("{other:?}"),
        }
    });
}

#[test] // Proves: S-4.
fn a_full_disk_refuses_bytes_and_takes_voids_and_removals() {
    run(async {
        let disk = TestDisk::new();
        let env = disk.env(1);
        format(&env, Path::new("/disk")).await;
        let mut config = config(Path::new("/disk"));
        config.limits = Limits { reserve_bytes: 1 << 20, ..Limits::default() };
        let server = start_with(&env, &config, 1).await;
        let owner = Owner::new(&server, 7, 1, 1);
        let bytes = blocks(1, 8);
        let first = record(number(1, 1), NONE, vec![write(0, &bytes)]);
        owner.prepare(first, &bytes, NONE, NONE).await.unwrap();
        drop(server);
        disk.leave_free(3 << 20);
        let server = start_with(&env, &config, 2).await;
        let owner = Owner::new(&server, 7, 2, 2);
        owner.open().await.unwrap();
        let mut last = number(1, 1);
        let mut refused = None;
        for sequence in 1..100 {
            let bytes = blocks(sequence, 64);
            let record = record(number(2, sequence), last, vec![write(sequence * 64, &bytes)]);
            match owner.prepare(record, &bytes, NONE, NONE).await {
                Ok(_) => last = number(2, sequence),
                Err(refusal) => {
                    assert_eq!(refusal, IoRefusal::Full);
                    refused = Some(number(2, sequence));
                    break;
                }
            }
        }
        let refused = refused.expect("the disk is full before");
        let mut void = record(refused, last, vec![]);
        void.kind = RecordKind::Void;
        owner.prepare(void, &[], refused, NONE).await.unwrap();
        owner.sync().await;
        owner.marks(refused, refused, vec![]).await;
        server.checkpoint().await.unwrap();
        assert_eq!(owner.read(refused, 0, 8).await.unwrap(), bytes);
        let request = IoRequest::Remove { fence: owner.fence(), layout: Box::new(layout(7)) };
        assert!(owner.ask(request, &[]).await.0.is_ok());
    });
}

#[test] // Proves: S-4.
fn a_failed_sync_ends_the_server_and_is_no_proof_for_the_next_one() {
    run(async {
        let disk = TestDisk::new();
        let env = disk.env(1);
        format(&env, Path::new("/disk")).await;
        let server = IoServer::start(&env, &config(Path::new("/disk"))).await.unwrap();
        server.serve_alone(braid_terms::Incarnation(1));
        let owner = Owner::new(&server, 7, 1, 1);
        let bytes = blocks(1, 100);
        let first = record(number(1, 1), NONE, vec![write(0, &bytes)]);
        owner.prepare(first, &bytes, NONE, NONE).await.unwrap();
        disk.fail_syncs(true);
        let ended = server.clone();
        let task = tokio::task::spawn_local(async move { ended.maintain().await });
        let position = braid_terms::JournalPosition(u64::MAX);
        let request = IoRequest::Sync { incarnation: braid_terms::Incarnation(1), position };
        assert_eq!(owner.ask(request, &[]).await.0.err(), Some(IoRefusal::NotReady));
        assert!(matches!(task.await.unwrap(), IoFatal::Medium(_)));
        drop((owner, server));
        // The next start sees the bytes in the cache, and the kernel thinks that they are clean.
        disk.fail_syncs(false);
        let server = start(&env, Path::new("/disk"), 2).await;
        let owner = Owner::new(&server, 7, 2, 2);
        assert_eq!(owner.open().await.unwrap().last, number(1, 1));
        drop((owner, server));
        disk.cut_power(&mut Random(3));
        let server = start(&env, Path::new("/disk"), 3).await;
        let owner = Owner::new(&server, 7, 3, 3);
        assert_eq!(owner.open().await.unwrap().last, number(1, 1));
        assert_eq!(owner.read(number(1, 1), 0, 100).await.unwrap(), bytes);
    });
}
