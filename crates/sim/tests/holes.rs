//! Ring 2: the numbered holes of the design's reasons, each a script that fails without its rule.
//! `docs/simulator.md` lists them.
//!
//! X is the old owner, N the next one. With `raid5/2+1` on servers 1, 2 and 3, block b is in D1 at
//! server 1 where b is even, in D2 at server 2 where it is odd; the parity P is at server 3. Owners
//! are at servers that keep no portion of the device, unless a script says so.

use std::time::Duration;

use braid_sim::scripted::{Failed, Message, Role, Script, Seen, block};
use braid_terms::{GroupLayout, PortionIndex};
use braid_wire::coordinator::{CoordinatorReply, CoordinatorRequest};
use braid_wire::io::{IoRefusal, IoReply, IoRequest};
use braid_wire::lcc::{DirectoryOp, FileKind, LccRefusal};
use bytes::Bytes;
use tokio::time::timeout;

#[path = "clean_opens.rs"]
mod clean_opens;
#[path = "common/planted.rs"]
mod planted;

use clean_opens::{
    nothing_is_clean_while_a_sweep_is_due, what_reached_an_untouched_slot_late_is_not_believed,
};

const SLOW: Duration = Duration::from_secs(3);

/// Whether it is a record of a write that a server's LC sends to another server.
fn is_prepare(seen: &Seen, from: u32, to: u32) -> bool {
    let prepare = matches!(&seen.message, Message::ToIo(IoRequest::Prepare(_)));
    prepare && (seen.from, seen.to) == (from, to)
}

fn is_promise(seen: &Seen, from: u32, to: u32) -> bool {
    let promise = matches!(&seen.message, Message::FromIo(Ok(IoReply::Promised { .. })));
    promise && (seen.from, seen.to) == (from, to)
}

fn blocks(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| block(*byte)).collect()
}

/// A device on servers 1, 2 and 3 that X made at `owner`, with one block for each byte, all stable.
async fn device_of(script: &Script, owner: u32, bytes: &[u8]) -> GroupLayout {
    let device = script.device(&[1, 2, 3]);
    script.write_at_last(owner, &device, 0, &blocks(bytes)).await;
    script.stable_everywhere(owner, &device).await;
    device
}

const BLOCK: u64 = 4096;

/// Hole 1: an answered write is lost because one machine kept both its owner and a portion.
///
/// 1. X at server 1 owns a device with D1 there; a write {D1, P} is held, answered, and on no disk.
/// 2. Server 1 loses its power: X is gone, and D1 lost what was only held.
/// 3. Server 1 is back before anybody opens the device, so D1 is in sync and lacks the write.
/// 4. N must see that D1 *lost* the write, not that it never promised it.
#[test] // Proves: W-6, W-1.
fn hole_1_who_lost_a_record_is_not_asked_whether_it_counts() {
    Script::run(1, 3, "raid5/2+1", async |script| {
        let device = device_of(&script, 1, &[1, 2]).await;
        script.set_sync_time(&[1, 2, 3], SLOW);
        script.write(1, &device, 0, block(3)).await.expect("a held write");
        script.power_cut(&[1]);
        script.power_on(&[1]);
        let read = script.read_at_last(2, &device, 0, 8192).await;
        assert!(read == blocks(&[3, 2]), "an answered write is gone");
        script.check_all_ways(2, &device, &blocks(&[3, 2])).await;
    });
}

/// Hole 1 with m = 2: two machines lose what they held at once.
///
/// 1. A write {D1, P1, P2} is held and answered.
/// 2. The machines of X, of D1 and of P1 lose their power; those of D1 and P1 are back at once.
/// 3. N finds the write at P2 alone. Two that lost it are not more than m.
#[test] // Proves: W-6, W-1.
fn hole_1_two_faulty_portions_lose_an_answered_write_and_it_counts() {
    Script::run(2, 6, "rs/2+2", async |script| {
        let device = script.device(&[1, 2, 3, 4]);
        script.write_at_last(5, &device, 0, &blocks(&[1, 2])).await;
        script.stable_everywhere(5, &device).await;
        script.set_sync_time(&[1, 2, 3, 4], SLOW);
        script.write(5, &device, 0, block(3)).await.expect("a held write");
        script.power_cut(&[1, 3, 5]);
        script.power_on(&[1, 3]);
        let read = script.read_at_last(6, &device, 0, 8192).await;
        assert!(read == blocks(&[3, 2]), "an answered write is gone");
        script.power_on(&[5]);
        script.check_all_ways(6, &device, &blocks(&[3, 2])).await;
    });
}

/// m = 2, one fault after the other: the first by a fact, the second by a loss.
///
/// 1. The machine of D1 is away; a write to block 0 goes to P1 and P2 only, behind a fact.
/// 2. It is held and answered; the machines of X and of P1 lose their power, P1 is back.
/// 3. One removed and one that lost it are not more than m: N finds it at P2.
#[test] // Proves: W-6, F-2.
fn two_portions_fail_one_after_the_other_and_nothing_is_lost() {
    Script::run(3, 6, "rs/2+2", async |script| {
        let device = script.device(&[1, 2, 3, 4]);
        script.write_at_last(5, &device, 0, &blocks(&[1, 2])).await;
        script.stable_everywhere(5, &device).await;
        script.power_cut(&[1]);
        script.set_sync_time(&[2, 3, 4], SLOW);
        script.write_at_last(5, &device, 0, &block(3)).await;
        script.power_cut(&[5]);
        script.power_cut(&[3]);
        script.power_on(&[3]);
        let read = script.read_at_last(6, &device, 0, 8192).await;
        assert!(read == blocks(&[3, 2]), "an answered write is gone");
        script.power_on(&[1]);
        script.power_on(&[5]);
        script.check_all_ways(6, &device, &blocks(&[3, 2])).await;
    });
}

/// Two portions of m = 1 fail at once: one may be removed, not both.
///
/// 1. The I/O servers of D1 and P stop at once.
/// 2. A write waits: with both removed, k - 1 were left.
/// 3. Both are back, and the write is answered.
#[test] // Proves: W-3, G-8.
fn two_portions_of_one_parity_are_not_both_removed() {
    Script::run(4, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        script.cluster.kill(1, Role::Io);
        script.cluster.kill(3, Role::Io);
        let mut write = script.begin_write(4, &device, 0, block(3));
        let early = timeout(Duration::from_secs(10), &mut write).await;
        assert!(early.is_err(), "answered with one portion of three: {early:?}");
        script.cluster.start_process(1, Role::Io);
        script.cluster.start_process(3, Role::Io);
        let written = timeout(Duration::from_secs(60), write).await.expect("it ends");
        assert_eq!(written.expect("no panic"), Ok(()));
        script.check_all_ways(4, &device, &blocks(&[3, 2])).await;
    });
}

/// Hole 2: an aborted write comes back.
///
/// 1. A write {D1, P} reaches P only; X dies.
/// 2. N opens: D1 never promised, so the write is aborted. N serves the old bytes, then dies.
/// 3. The machine of D1 is away. N2 finds P alone with its promise, and must not commit it.
#[test] // Proves: W-6.
fn hole_2_what_one_owner_aborted_no_later_one_commits() {
    Script::run(5, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        let promised = script.note(|seen| is_promise(seen, 3, 4));
        let held = script.hold(|seen| is_prepare(seen, 4, 1));
        let write = script.begin_write(4, &device, 0, block(3));
        held.reached(1).await;
        script.counted("P promises", &promised, 1).await;
        script.cluster.kill(4, Role::Lc);
        write.abort();
        let read = script.read_at_last(5, &device, 0, 8192).await;
        assert!(read == blocks(&[1, 2]), "D1 never promised it");
        script.cluster.kill(5, Role::Lc);
        script.power_cut(&[1]);
        let read = script.read_at_last(2, &device, 0, 8192).await;
        assert!(read == blocks(&[1, 2]), "an aborted write is back");
        script.power_on(&[1]);
        script.cluster.start_process(4, Role::Lc);
        script.cluster.start_process(5, Role::Lc);
        script.check_all_ways(2, &device, &blocks(&[1, 2])).await;
    });
}

/// Hole 2, after a power cut: an aborted write comes back.
///
/// 1. A write {D1, P} reaches P only, and P's disk; X dies. N opens: D1 never promised, so the write
///    is aborted. All disks are slow.
/// 2. N serves the old bytes. The site loses its power, with all that was not synced; D1's machine
///    stays away.
/// 3. N2 finds P alone with its promise, and must not commit it: what N said was on the disks.
#[test] // Proves: W-6.
fn hole_2_an_outcome_is_on_the_disks_before_the_first_answer() {
    Script::run(28, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        let promised = script.note(|seen| is_promise(seen, 3, 4));
        let held = script.hold(|seen| is_prepare(seen, 4, 1));
        let write = script.begin_write(4, &device, 0, block(3));
        held.reached(1).await;
        script.counted("P promises", &promised, 1).await;
        // The sync of another device brings P's record to its disk, too.
        device_of(&script, 5, &[1, 2]).await;
        script.cluster.kill(4, Role::Lc);
        write.abort();
        script.set_sync_time(&[1, 2, 3], SLOW);
        let read = script.read_at_last(5, &device, 0, 8192).await;
        assert!(read == blocks(&[1, 2]), "D1 never promised it");
        script.power_cut(&script.servers());
        script.power_on(&[2, 3, 4, 5]);
        let read = script.read_at_last(2, &device, 0, 8192).await;
        assert!(read == blocks(&[1, 2]), "an aborted write is back");
        script.power_on(&[1]);
        script.check_all_ways(2, &device, &blocks(&[1, 2])).await;
    });
}

/// Two portions of m = 1 at once, one of which is only silent: what the other lost may be answered.
///
/// 1. X at server 1 has D1 there; a write {D1, P} is held and answered. D2's I/O server stops, and
///    server 1 loses its power, with what D1 held; it is back at once.
/// 2. N finds the write at P alone. With D2 taken for lost that were two, more than m: N waits.
/// 3. D2 is back. It has no part in the write, so only D1 lost it: it counts.
#[test] // Proves: W-6.
fn silent_portions_are_waited_for_where_others_lost_what_may_be_answered() {
    Script::run(29, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 1, &[1, 2]).await;
        script.set_sync_time(&[1, 2, 3], SLOW);
        script.write(1, &device, 0, block(3)).await.expect("a held write");
        script.cluster.kill(2, Role::Io);
        script.power_cut(&[1]);
        script.power_on(&[1]);
        let opened = script.note(|seen| {
            matches!(seen.message, Message::FromIo(Ok(IoReply::Report(_)))) && seen.to == 4
        });
        let (n, of) = (script.clone(), device.clone());
        let read = tokio::task::spawn_local(async move { n.read_at_last(4, &of, 0, 8192).await });
        script.counted("N hears the others", &opened, 2).await;
        // Less than a lease: they are not gone yet.
        let later = script.simulation.elapsed() + Duration::from_secs(1);
        script.until("N waits", async |script| later <= script.simulation.elapsed()).await;
        script.cluster.start_process(2, Role::Io);
        let read = read.await.expect("no panic");
        assert!(read == blocks(&[3, 2]), "an answered write is gone");
        script.check_all_ways(4, &device, &blocks(&[3, 2])).await;
    });
}

/// A portion that was restarted lacks an answered write, and says nothing of it; the others are silent for
/// a moment (simulator, seed 50227).
///
/// 1. D1, D2 and D3 are copies. A first write is on D1's medium and on no other, so that it is in doubt.
/// 2. A second one is held by all and answered. Server 1 loses its power with what it held, the I/O
///    servers of D2 and D3 stop, and so does X.
/// 3. N hears D1 alone: any one copy is enough to go on with, and D1 was restarted since the first write.
///    N waits, hears the others, and the second write counts.
#[test] // Proves: W-6.
fn a_restarted_portion_is_not_believed_alone() {
    Script::run(74, 5, "raid1/3", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        script.set_sync_time(&[2, 3], 10 * SLOW);
        script.write(4, &device, 0, block(3)).await.expect("a held write");
        let first = script.describe(4, &device).await.expect("X owns it").decided;
        let synced = async |script: &Script| {
            let Some(report) = script.inspect(1, PortionIndex(1), &device, first.grant).await
            else {
                return false;
            };
            let head = report.records.iter().find(|head| head.record.number == first);
            head.is_some_and(|head| head.position <= report.synced)
        };
        script.until("the first write is on the medium of D1", synced).await;
        script.set_sync_time(&[1], 10 * SLOW);
        script.write(4, &device, 0, block(4)).await.expect("a held write");
        script.power_cut(&[1]);
        script.cluster.kill(2, Role::Io);
        script.cluster.kill(3, Role::Io);
        script.cluster.kill(4, Role::Lc);
        script.power_on(&[1]);
        let opened = script.note(|seen| {
            matches!(seen.message, Message::FromIo(Ok(IoReply::Report(_)))) && seen.to == 5
        });
        let (n, of) = (script.clone(), device.clone());
        let read = tokio::task::spawn_local(async move { n.read_at_last(5, &of, 0, 8192).await });
        script.counted("N hears D1", &opened, 1).await;
        // They have no lease any more, for longer than one runs; what they start with is a sync.
        let later = script.simulation.elapsed() + Duration::from_millis(2600);
        script.until("N waits", async |script| later <= script.simulation.elapsed()).await;
        script.set_sync_time(&[1, 2, 3], Duration::from_millis(1));
        script.cluster.start_process(2, Role::Io);
        script.cluster.start_process(3, Role::Io);
        let read = read.await.expect("no panic");
        assert!(read == blocks(&[4, 2]), "an answered write is gone");
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[4, 2])).await;
    });
}

/// A directory operation whose answer was lost is asked for again.
///
/// 1. A file is made, and so is one of another client that only counts where the name is free.
/// 2. Both are asked for again, as who heard no answer does: the first is answered as before, and there is
///    one file of its number.
#[test] // Proves: N-3.
fn a_repeated_directory_operation_is_answered_as_the_first() {
    Script::run(75, 5, "raid5/2+1", async |script| {
        let directory = script.directory(&[1, 2], 4, &script.root()).await;
        let id = script.make(4, &directory, "f").await;
        let link = |name: &'static str| DirectoryOp::Link {
            operation: script.operation(),
            name: Bytes::from_static(name.as_bytes()),
            id,
            kind: FileKind::File,
            home: directory.clone(),
        };
        let second = link("g");
        for _ in 0..3 {
            let linked = script.names_at_last(4, &directory, second.clone()).await;
            assert!(linked.is_ok(), "{linked:?}");
        }
        assert_eq!(script.link_count(4, &directory, id).await, Some(2));
        let third = script.names_at_last(4, &directory, link("g")).await;
        assert!(matches!(third, Err(LccRefusal::Exists { .. })), "{third:?}");
        // Also by the next owner.
        script.cluster.kill(4, Role::Lc);
        let linked = script.names_at_last(5, &directory, second).await;
        assert!(linked.is_ok(), "{linked:?}");
        assert_eq!(script.link_count(5, &directory, id).await, Some(2));
        script.cluster.start_process(4, Role::Lc);
    });
}

/// Hole 4: answers out of order.
///
/// 1. A first write {D1, P} does not reach D1; a second one {D2, P} of another row is promised by all.
/// 2. The second must not be answered before the first is decided.
#[test] // Proves: W-3, W-1.
fn hole_4_answers_follow_the_numbers() {
    Script::run(6, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2, 3, 4]).await;
        let of_p = script.note(|seen| is_promise(seen, 3, 4));
        let of_d2 = script.note(|seen| is_promise(seen, 2, 4));
        let held = script.hold(|seen| is_prepare(seen, 4, 1));
        let first = script.begin_write(4, &device, 0, block(5));
        held.reached(1).await;
        let mut second = script.begin_write(4, &device, 3 * BLOCK, block(6));
        script.counted("D2 promises the second", &of_d2, 1).await;
        script.counted("P promises both", &of_p, 2).await;
        let early = timeout(Duration::from_millis(300), &mut second).await;
        assert!(early.is_err(), "the second was answered before the first was decided");
        held.release();
        assert_eq!(first.await.expect("no panic"), Ok(()));
        assert_eq!(second.await.expect("no panic"), Ok(()));
        script.check_all_ways(4, &device, &blocks(&[5, 2, 3, 6])).await;
    });
}

/// Hole 4, the prefix property: of several writes in flight only a first part survives.
///
/// 1. A first write {D1, P} does not reach D1; a second one {D2, P} of another row is promised by all;
///    neither is answered. X dies.
/// 2. N must abort the first, and so the second too: it lies above it.
#[test] // Proves: W-6, W-1.
fn hole_4_nothing_survives_above_what_was_aborted() {
    Script::run(7, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2, 3, 4]).await;
        let of_p = script.note(|seen| is_promise(seen, 3, 4));
        let of_d2 = script.note(|seen| is_promise(seen, 2, 4));
        let held = script.hold(|seen| is_prepare(seen, 4, 1));
        let first = script.begin_write(4, &device, 0, block(5));
        held.reached(1).await;
        let second = script.begin_write(4, &device, 3 * BLOCK, block(6));
        script.counted("D2 promises the second", &of_d2, 1).await;
        script.counted("P promises both", &of_p, 2).await;
        script.cluster.kill(4, Role::Lc);
        first.abort();
        second.abort();
        let read = script.read_at_last(5, &device, 0, 4 * BLOCK as u32).await;
        assert!(read == blocks(&[1, 2, 3, 4]), "no prefix of the writes");
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[1, 2, 3, 4])).await;
    });
}

/// Hole 5: a late close makes a stale portion count as in sync.
///
/// 1. D1 was away while X wrote, so it has a fact; it is back and rebuilt. X's close is on its way.
/// 2. X stands still and D1 is away again. N becomes the owner and writes without D1: the fact is open.
/// 3. X's close arrives. It names the fact, but N's grant is the higher one.
#[test] // Proves: F-1, F-4.
fn hole_5_a_late_close_is_refused() {
    Script::run(8, 5, "raid5/2+1", async |script| {
        script.move_leader_from(&[1, 4]).await;
        let device = device_of(&script, 4, &[1, 2]).await;
        script.cluster.kill(1, Role::Io);
        script.write_at_last(4, &device, 0, &block(3)).await;
        script.suspected().await;
        let close = |seen: &Seen| {
            let close = matches!(
                seen.message,
                Message::ToCoordinator(CoordinatorRequest::CloseFacts { .. })
            );
            close && seen.from == 4
        };
        let held = script.hold(close);
        script.cluster.start_process(1, Role::Io);
        held.reached(1).await;
        script.cluster.set_paused(4, Role::Lc, true);
        script.cluster.kill(1, Role::Io);
        script.write_at_last(5, &device, 0, &block(9)).await;
        let answered =
            script.note(|seen| matches!(seen.message, Message::FromCoordinator(_)) && seen.to == 4);
        held.release();
        script.counted("X's close is answered", &answered, 1).await;
        let facts = script.cluster.open_facts().await;
        assert_eq!(facts.map(|(suspects, _)| suspects), Some(1), "the late close counted");
        script.cluster.set_paused(4, Role::Lc, false);
        script.cluster.start_process(1, Role::Io);
        script.check_all_ways(5, &device, &blocks(&[9, 2])).await;
    });
}

/// Hole 7: a paused owner wakes up when another one owns the group.
///
/// 1. X stands still with a request of a client in its socket; its lease ends, N becomes the owner.
///    Nothing was in doubt, so nothing was written meanwhile.
/// 2. X wakes up before it hears anything. What it sends names its old grant.
/// 3. N writes. All that N answered is there, and X answered nothing.
#[test] // Proves: O-5, O-3.
fn hole_7_a_paused_owner_wakes_up_fenced() {
    Script::run(9, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        script.read(4, &device, 0, 8192).await.expect("X serves");
        script.cluster.set_paused(4, Role::Lc, true);
        let of_x = script.begin_write(4, &device, 0, block(7));
        assert!(script.read_at_last(5, &device, 0, 8192).await == blocks(&[1, 2]));
        script.cluster.set_paused(4, Role::Lc, false);
        let of_x = of_x.await.expect("no panic");
        assert!(of_x.is_err(), "a former owner answers {of_x:?}");
        script.write(5, &device, BLOCK, block(8)).await.expect("N still owns it");
        script.check_all_ways(5, &device, &blocks(&[1, 8])).await;
    });
}

/// Hole 8: a former owner's record arrives late.
///
/// 1. X's records of a write {D1, P} are under way for long; X stands still. N becomes the owner.
/// 2. N writes {D2, P}: D1 hears nothing of it but N's open.
/// 3. X's records arrive. They name X's grant, so neither D1 nor P takes them.
#[test] // Proves: O-5.
fn hole_8_records_of_a_former_owner_are_refused() {
    Script::run(30, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        let to_d1 = script.hold(|seen| is_prepare(seen, 4, 1));
        let to_p = script.hold(|seen| is_prepare(seen, 4, 3));
        let of_x = script.begin_write(4, &device, 0, block(7));
        to_d1.reached(1).await;
        to_p.reached(1).await;
        script.cluster.set_paused(4, Role::Lc, true);
        script.write_at_last(5, &device, BLOCK, &block(8)).await;
        let answered = script.note(|seen| {
            matches!(seen.message, Message::FromIo(_)) && seen.to == 4 && seen.from != 2
        });
        to_d1.release();
        to_p.release();
        script.counted("D1 and P answer X", &answered, 2).await;
        let read = script.read_at_last(5, &device, 0, 8192).await;
        assert!(read == blocks(&[1, 8]), "a former owner wrote");
        script.cluster.set_paused(4, Role::Lc, false);
        let of_x = of_x.await.expect("no panic");
        assert!(of_x.is_err(), "a former owner answers {of_x:?}");
        script.check_all_ways(5, &device, &blocks(&[1, 8])).await;
    });
}

/// Hole 9: an owner that is cut off goes on answering reads.
///
/// 1. X at server 1 has D1 there. Server 1 is cut off from all others; its clients are not.
/// 2. N removes D1 by a fact and writes.
/// 3. From then on X must not answer a read, though its D1 was never told of N.
#[test] // Proves: O-4.
fn hole_9_an_owner_without_a_lease_answers_no_read() {
    Script::run(10, 5, "raid5/2+1", async |script| {
        script.move_leader_from(&[1]).await;
        let device = device_of(&script, 1, &[1, 2]).await;
        script.read(1, &device, 0, 4096).await.expect("X serves");
        script.isolate(1);
        script.read(1, &device, 0, 4096).await.expect("X has its lease still");
        script.write_at_last(4, &device, 0, &block(9)).await;
        let of_x = timeout(SLOW, script.read(1, &device, 0, 4096)).await;
        assert!(!matches!(of_x, Ok(Ok(_))), "X answers after N wrote");
        script.simulation.heal_all();
        script.check_all_ways(4, &device, &blocks(&[9, 2])).await;
    });
}

/// Hole 9: bytes that were gathered under a lease and are answered after it.
///
/// 1. X hears no coordinator any more. Near the end of its lease it asks D1 for a client's bytes; D1's
///    answer is under way for long.
/// 2. N becomes the owner and writes.
/// 3. The answer reaches X. Its lease is over, so the bytes are not passed on.
#[test] // Proves: O-4.
fn hole_9_the_lease_is_checked_after_the_bytes_are_there() {
    Script::run(11, 5, "raid5/2+1", async |script| {
        script.move_leader_from(&[1, 4]).await;
        let device = device_of(&script, 4, &[1, 2]).await;
        script.read(4, &device, 0, 4096).await.expect("X serves");
        for other in [2, 3, 5] {
            script.simulation.partition_both(4, other);
        }
        // Its lease runs 2 s from the last renewal, of 0.6 s ago at most.
        let nearly = script.simulation.elapsed() + Duration::from_millis(1250);
        script
            .until("the lease is nearly over", async |script| nearly <= script.simulation.elapsed())
            .await;
        let (n, to) = (script.clone(), device.clone());
        let of_n = tokio::task::spawn_local(async move {
            // By N alone: X is still named as the owner for a while.
            let written = async |n: &Script| n.write(5, &to, 0, block(9)).await.is_ok();
            n.until("N writes", written).await;
        });
        let bytes = |seen: &Seen| {
            let bytes = matches!(seen.message, Message::FromIo(Ok(IoReply::Blocks { .. })));
            bytes && (seen.from, seen.to) == (1, 4)
        };
        let held = script.hold(bytes);
        let (x, of) = (script.clone(), device.clone());
        let read = tokio::task::spawn_local(async move { x.read(4, &of, 0, 4096).await });
        held.reached(1).await;
        let began = script.simulation.elapsed();
        of_n.await.expect("N writes");
        let took = script.simulation.elapsed() - began;
        assert!(took < Duration::from_millis(1400), "X gave up waiting for D1: {took:?}");
        held.release();
        let read = timeout(SLOW, read).await.map(|read| read.expect("no panic"));
        assert!(!matches!(&read, Ok(Ok(_))), "X answers after N wrote");
        script.simulation.heal_all();
        script.check_all_ways(5, &device, &blocks(&[9, 2])).await;
    });
}

/// Hole 10: a global controller without a majority goes on renewing leases.
///
/// 1. The global controller and X are at one server, which is cut off from all others.
/// 2. The others elect another one, N becomes the owner and writes.
/// 3. X asks its own coordinator in vain for more lease, and must not answer a read.
#[test] // Proves: O-4.
fn hole_10_a_lease_needs_a_majority_after_it_was_asked_for() {
    Script::run(12, 5, "raid5/2+1", async |script| {
        let x = script.leader().await;
        let others: Vec<u32> = (1..=5).filter(|server| *server != x).collect();
        let device = script.device(&[x, others[0], others[1]]);
        script.write_at_last(x, &device, 0, &blocks(&[1, 2])).await;
        script.stable_everywhere(x, &device).await;
        script.isolate(x);
        script.read(x, &device, 0, 4096).await.expect("X has its lease still");
        script.write_at_last(others[2], &device, 0, &block(9)).await;
        let of_x = timeout(SLOW, script.read(x, &device, 0, 4096)).await;
        assert!(!matches!(of_x, Ok(Ok(_))), "X answers after N wrote");
        script.simulation.heal_all();
        script.check_all_ways(others[2], &device, &blocks(&[9, 2])).await;
    });
}

/// Hole 10: a new global controller does not know who holds a lease.
///
/// 1. X at server 1 has just renewed its lease; server 1 is cut off, and the global controller dies.
/// 2. The new one is asked at once by N, which writes as soon as it may.
/// 3. It waited one lease from its election: X answers no read any more.
#[test] // Proves: O-4, O-3.
fn hole_10_a_new_global_controller_waits_for_the_leases_of_before() {
    Script::run(13, 5, "raid5/2+1", async |script| {
        let leader = script.move_leader_from(&[1]).await;
        let device = device_of(&script, 1, &[1, 2]).await;
        script.read(1, &device, 0, 4096).await.expect("X serves");
        let renewed = script.note(|seen| {
            let reply = matches!(
                seen.message,
                Message::FromCoordinator(Ok(CoordinatorReply::Renewed { .. }))
            );
            reply && seen.to == 1
        });
        script.counted("X renews its lease", &renewed, 2).await;
        script.isolate(1);
        script.cluster.kill(leader, Role::Coordinator);
        let n = if leader == 4 { 5 } else { 4 };
        script.write_at_last(n, &device, 0, &block(9)).await;
        let of_x = timeout(SLOW, script.read(1, &device, 0, 4096)).await;
        assert!(!matches!(of_x, Ok(Ok(_))), "X answers after N wrote");
        script.simulation.heal_all();
        script.cluster.start_process(leader, Role::Coordinator);
        script.check_all_ways(n, &device, &blocks(&[9, 2])).await;
    });
}

/// O-3: a new global controller hears who owns what before it grants.
///
/// 1. X owns a device and goes on; the global controller dies.
/// 2. N asks the next one for the device. It is X's, by what X told.
#[test] // Proves: O-3.
fn a_new_global_controller_grants_nothing_that_is_owned() {
    Script::run(14, 5, "raid5/2+1", async |script| {
        let leader = script.move_leader_from(&[4, 5]).await;
        let device = device_of(&script, 4, &[1, 2]).await;
        script.cluster.kill(leader, Role::Coordinator);
        script
            .until("N is told whose it is", async |script| {
                match script.read(5, &device, 0, 4096).await {
                    Err(Failed::Refused(LccRefusal::NotOwner { owner: Some((lcc, _)) })) => {
                        assert_eq!(lcc.server.0, 4);
                        true
                    }
                    Ok(_) => panic!("N was granted what X owns"),
                    Err(_) => false,
                }
            })
            .await;
        // X owns it still; I/O servers may wait for their next lease.
        script.write_at_last(4, &device, 0, &block(3)).await;
        script.cluster.start_process(leader, Role::Coordinator);
        script.check_all_ways(4, &device, &blocks(&[3, 2])).await;
    });
}

/// O-2: a number of a range that an LC leased belongs to its LCC, though nobody registered the group.
///
/// 1. X gives a number of its range to a client and makes the device: no global controller hears of it.
/// 2. N asks for the device. It is X's.
#[test] // Proves: O-2.
fn a_number_of_a_leased_range_has_its_owner() {
    Script::run(39, 5, "raid5/2+1", async |script| {
        let device = script.new_device(4).await;
        script.write_at_last(4, &device, 0, &blocks(&[1, 2])).await;
        let asked = script.read(5, &device, 0, 8192).await;
        let is_of_x = match &asked {
            Err(Failed::Refused(LccRefusal::NotOwner { owner: Some((lcc, _)) })) => {
                lcc.server.0 == 4
            }
            _ => false,
        };
        assert!(is_of_x, "N is told {asked:?}");
        script.check_all_ways(4, &device, &blocks(&[1, 2])).await;
    });
}

/// Hole 13: bytes of an aborted write show up when the file grows over them.
///
/// 1. A long write beyond the end goes straight to its place at D1 and D2 and never reaches P. X dies.
/// 2. N aborts it: the device is as long as before.
/// 3. The device is extended over the place. What nobody wrote reads as zeros, and fits the parity.
#[test] // Proves: W-8.
fn hole_13_what_was_aborted_reads_as_zeros_when_the_device_grows() {
    Script::run(15, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        let of_d1 = script.note(|seen| is_promise(seen, 1, 4));
        let of_d2 = script.note(|seen| is_promise(seen, 2, 4));
        let held = script.hold(|seen| is_prepare(seen, 4, 3));
        let write = script.begin_write(4, &device, 2 * BLOCK, blocks(&[7; 30]));
        held.reached(1).await;
        script.counted("D1 promises", &of_d1, 1).await;
        script.counted("D2 promises", &of_d2, 1).await;
        script.cluster.kill(4, Role::Lc);
        write.abort();
        assert!(script.read_at_last(5, &device, 0, 1 << 20).await == blocks(&[1, 2]));
        script.set_length(5, &device, 32 * BLOCK).await.expect("it grows");
        let mut expected = blocks(&[0; 32]);
        expected[..2 * BLOCK as usize].copy_from_slice(&blocks(&[1, 2]));
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &expected).await;
    });
}

/// Hole 13, over blocks that exist: an aborted write must not have touched them.
///
/// 1. A long write over old blocks is promised by D1 and D2 and never reaches P. X dies.
/// 2. N aborts it. Both have the old bytes still; with new bytes in their places neither had any.
#[test] // Proves: W-8.
fn hole_13_an_aborted_write_leaves_the_old_bytes() {
    Script::run(31, 5, "raid5/2+1", async |script| {
        let old: Vec<u8> = (1..=32).collect();
        let device = device_of(&script, 4, &old).await;
        script.applied(&[1, 2, 3]).await;
        let of_d1 = script.note(|seen| is_promise(seen, 1, 4));
        let of_d2 = script.note(|seen| is_promise(seen, 2, 4));
        let held = script.hold(|seen| is_prepare(seen, 4, 3));
        let write = script.begin_write(4, &device, 0, blocks(&[77; 32]));
        held.reached(1).await;
        script.counted("D1 promises", &of_d1, 1).await;
        script.counted("D2 promises", &of_d2, 1).await;
        script.cluster.kill(4, Role::Lc);
        write.abort();
        assert!(script.read_at_last(5, &device, 0, 1 << 20).await == blocks(&old));
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&old)).await;
    });
}

/// Hole 16: a portion file that is gone reads as zeros.
///
/// 1. All is applied. The I/O server of D1 stops, D1's portion file vanishes, it starts again.
/// 2. X restarts too, so that nobody remembers. N must not take the absent file for one that was never
///    written.
#[test] // Proves: F-5, W-1.
fn hole_16_a_portion_file_that_is_gone_is_lost_not_empty() {
    Script::run(16, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        script.applied(&[1, 2, 3]).await;
        script.cluster.kill(4, Role::Lc);
        script.cluster.kill(1, Role::Io);
        assert_eq!(script.remove_portions(1, &device), 1);
        script.cluster.start_process(1, Role::Io);
        let read = script.read_at_last(5, &device, 0, 8192).await;
        assert!(read == blocks(&[1, 2]), "an absent file was read as zeros");
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[1, 2])).await;
    });
}

/// Hole 20: a sync failed, and what it did not save counts as saved.
///
/// 1. A write is held; the syncs of D1 and P fail: nothing of it reaches the media, and the pages look
///    clean. Their I/O servers end and start again.
/// 2. The client's sync is answered at last.
/// 3. The site loses its power. What was synced is there.
#[test] // Proves: S-4, W-9.
fn hole_20_a_failed_sync_is_no_sync() {
    Script::run(17, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        script.disk(1).fail_syncs(1);
        script.disk(3).fail_syncs(1);
        script.write(4, &device, 0, block(3)).await.expect("a held write");
        for server in [1, 3] {
            script
                .until("its I/O server ends", async |script| {
                    script.ask_io(server, &IoRequest::Status).await.is_none()
                })
                .await;
            // As its main controller does with a process that ended.
            script.cluster.kill(server, Role::Io);
            script.cluster.start_process(server, Role::Io);
        }
        script.until("it is synced", async |script| script.sync(4, &device).await.is_ok()).await;
        script.power_cut(&script.servers());
        script.power_on(&script.servers());
        let read = script.read_at_last(4, &device, 0, 8192).await;
        assert!(read == blocks(&[3, 2]), "a synced write is gone");
        script.check_all_ways(4, &device, &blocks(&[3, 2])).await;
    });
}

/// Hole 20, in the journal: a record that was stable is rotten, and is taken for a torn end.
///
/// 1. A write {D1, P} is stable. D1's I/O server stops before it applies it; a bit of its record in
///    D1's journal flips. P applies its own.
/// 2. X dies too, so that nobody remembers. D1 is back, and must say that it lost something: to N it
///    would else look as if it had had no part in anything.
#[test] // Proves: S-3.
fn a_rotten_record_of_the_journal_is_a_loss_not_an_end() {
    Script::run(32, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        script.applied(&[1, 2, 3]).await;
        script.write(4, &device, 0, block(0xa3)).await.expect("a held write");
        script.sync(4, &device).await.expect("all in sync can sync");
        script.cluster.kill(1, Role::Io);
        assert!(script.flip_a_bit_of(1, "journal/", &block(0xa3)), "it is in the journal");
        script.stable_at(&device, 3).await;
        script.cluster.kill(4, Role::Lc);
        script.cluster.start_process(1, Role::Io);
        let read = script.read_at_last(5, &device, 0, 8192).await;
        assert!(read == blocks(&[0xa3, 2]), "a stable write is gone");
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[0xa3, 2])).await;
    });
}

/// A bit of a block flips on the disk of D1. Who reads it gets what was written.
#[test] // Proves: S-2, F-6.
fn a_rotten_block_is_not_passed_on() {
    Script::run(33, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[0xa1, 2]).await;
        script.applied(&[1, 2, 3]).await;
        assert!(script.flip_a_bit_of(1, "portions/", &block(0xa1)), "it is in the portion file");
        let read = script.read_at_last(4, &device, 0, 8192).await;
        assert!(read == blocks(&[0xa1, 2]), "rotten bytes are passed on");
        script.check_all_ways(4, &device, &blocks(&[0xa1, 2])).await;
    });
}

/// S-4: a disk that is full for one write makes neither a gap nor a fact.
///
/// 1. D1's disk has room for little. A long write is refused there; its answer is under way for long.
/// 2. A short one follows it on the same connection. D1 lacks what comes before, so it refuses.
/// 3. The long write fails, both numbers become void, the short one is written or refused, and D1
///    stays in sync.
#[test] // Proves: S-4, W-1.
fn a_full_disk_makes_no_gap_and_costs_no_fact() {
    Script::run(34, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        script.applied(&[1, 2, 3]).await;
        let disk = script.disk(1);
        disk.set_size(disk.used() + (3 << 20));
        // A start looks how much room there is.
        script.cluster.kill(1, Role::Io);
        script.cluster.start_process(1, Role::Io);
        script.write_at_last(4, &device, 0, &block(1)).await;
        let facts = script.note(|seen| {
            matches!(seen.message, Message::ToCoordinator(CoordinatorRequest::RecordFacts { .. }))
        });
        let sent = script.note(|seen| is_prepare(seen, 4, 1));
        let refused = script.hold(|seen| {
            matches!(seen.message, Message::FromIo(Err(IoRefusal::Full)))
                && (seen.from, seen.to) == (1, 4)
        });
        let long = script.begin_write(4, &device, 64 * BLOCK, blocks(&[7; 1000]));
        refused.reached(1).await;
        let short = script.begin_write(4, &device, 10 * BLOCK, blocks(&[8, 9]));
        script.counted("the short one is sent", &sent, 2).await;
        refused.release();
        let long = long.await.expect("no panic");
        assert!(long.is_err(), "a full disk took it: {long:?}");
        let _ = short.await.expect("no panic");
        disk.set_size(4 << 30);
        script.write_at_last(4, &device, 10 * BLOCK, &blocks(&[8, 9])).await;
        assert_eq!(facts.get(), 0, "a full disk costs a fact");
        let mut expected = blocks(&[1, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend(blocks(&[8, 9]));
        script.check_all_ways(4, &device, &expected).await;
    });
}

/// Hole 22: a write that a portion lost is forgotten before the portion is back.
///
/// 1. A write {D1, P} is held and answered; D1's disk is slow. D1's machine loses its power, and the
///    write with it.
/// 2. D1 is removed by a fact, at a later write that skips it. All is applied, so the records of both
///    are dropped.
/// 3. D1 is back. It lacks not only the second write.
#[test] // Proves: F-2, W-9.
fn hole_22_what_a_removed_portion_lost_is_rebuilt_too() {
    Script::run(18, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2, 3, 4]).await;
        script.set_sync_time(&[1], SLOW);
        script.write(4, &device, 0, block(5)).await.expect("a held write");
        script.power_cut(&[1]);
        script.write_at_last(4, &device, 3 * BLOCK, &block(6)).await;
        script.suspected().await;
        script.sync(4, &device).await.expect("all in sync can sync");
        script.applied(&[2, 3]).await;
        script.power_on(&[1]);
        script.check_all_ways(4, &device, &blocks(&[5, 2, 3, 6])).await;
    });
}

/// F-2: a write is answered while the fact that excuses a portion is on its way.
///
/// 1. X does not reach D1. A write {D1, P} is promised by P; the fact of D1 is under way for long.
/// 2. The write must not be answered: X dies, the fact never arrives, and D1 is reached again.
#[test] // Proves: F-2, W-3.
fn no_answer_before_the_fact_is_recorded() {
    Script::run(35, 5, "raid5/2+1", async |script| {
        script.move_leader_from(&[1, 4]).await;
        let device = device_of(&script, 4, &[1, 2]).await;
        let fact = script.hold(|seen| {
            let fact = matches!(
                seen.message,
                Message::ToCoordinator(CoordinatorRequest::RecordFacts { .. })
            );
            fact && seen.from == 4
        });
        script.simulation.partition_both(4, 1);
        let mut write = script.begin_write(4, &device, 0, block(7));
        fact.reached(1).await;
        let early = timeout(Duration::from_millis(300), &mut write).await;
        script.cluster.kill(4, Role::Lc);
        script.simulation.heal_all();
        let read = script.read_at_last(5, &device, 0, 8192).await;
        assert!(early.is_err(), "answered without D1 and without a fact: {early:?}");
        assert!(read == blocks(&[1, 2]) || read == blocks(&[7, 2]), "neither old nor new");
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &read).await;
    });
}

/// W-5: a portion restarts and lacks what was answered, and its owner lives on.
///
/// 1. A write {D1, P} is held and answered; D1's machine loses its power, and the write with it, and
///    is back at once.
/// 2. X opens D1 again and sees what it lacks. It is not read from D1 before it is rebuilt there.
#[test] // Proves: W-5, F-2.
fn what_a_restarted_portion_lacks_is_not_read_from_it() {
    Script::run(36, 5, "raid5/2+1", async |script| {
        // Its I/O server is back without an election.
        script.move_leader_from(&[1, 4]).await;
        let device = device_of(&script, 4, &[1, 2]).await;
        script.set_sync_time(&[1], SLOW);
        script.write(4, &device, 0, block(3)).await.expect("a held write");
        script.power_cut(&[1]);
        script.power_on(&[1]);
        let read = script.read_at_last(4, &device, 0, 8192).await;
        assert!(read == blocks(&[3, 2]), "an answered write is gone");
        script.check_all_ways(4, &device, &blocks(&[3, 2])).await;
    });
}

/// W-11: two writes of one row at once, to different portions: both are in the parity.
#[test] // Proves: W-11.
fn two_writes_of_one_row_are_both_in_the_parity() {
    Script::run(37, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        let first = script.begin_write(4, &device, 0, block(3));
        let second = script.begin_write(4, &device, BLOCK, block(4));
        assert_eq!(first.await.expect("no panic"), Ok(()));
        assert_eq!(second.await.expect("no panic"), Ok(()));
        script.check_all_ways(4, &device, &blocks(&[3, 4])).await;
    });
}

/// W-12: a read shows a write that is not decided, and then it is aborted.
///
/// 1. A write {D1, P} is promised by D1 and does not reach P. A read of its block waits.
/// 2. X dies; N aborts the write.
#[test] // Proves: W-12.
fn what_is_not_decided_is_not_read() {
    Script::run(38, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        let of_d1 = script.note(|seen| is_promise(seen, 1, 4));
        let held = script.hold(|seen| is_prepare(seen, 4, 3));
        let write = script.begin_write(4, &device, 0, block(7));
        held.reached(1).await;
        script.counted("D1 promises", &of_d1, 1).await;
        let early = timeout(Duration::from_millis(300), script.read(4, &device, 0, 4096)).await;
        script.cluster.kill(4, Role::Lc);
        write.abort();
        let read = script.read_at_last(5, &device, 0, 8192).await;
        assert!(read == blocks(&[1, 2]), "P never promised it");
        assert!(!matches!(early, Ok(Ok(bytes)) if bytes != block(1)), "it was read before");
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[1, 2])).await;
    });
}

/// Hole 23: the outcome of a close is not known, and the owner goes on as if it had failed.
///
/// 1. D1 was away and is whole again; X's close is committed, its answer is under way for long.
/// 2. D1 is away again. A write to it must not be answered without it: the fact is closed already.
/// 3. X dies; D1 is back, and in sync as the facts say. All that was answered is there.
#[test] // Proves: F-2, F-4.
fn hole_23_while_a_close_is_proposed_the_portion_is_required() {
    Script::run(19, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        script.cluster.kill(1, Role::Io);
        script.write_at_last(4, &device, 0, &block(3)).await;
        script.suspected().await;
        let closed = |seen: &Seen| {
            let closed =
                matches!(seen.message, Message::FromCoordinator(Ok(CoordinatorReply::Closed(_))));
            closed && seen.to == 4
        };
        let held = script.hold(closed);
        script.cluster.start_process(1, Role::Io);
        held.reached(1).await;
        script.cluster.kill(1, Role::Io);
        let write = script.begin_write(4, &device, 0, block(7));
        let answered = timeout(SLOW, write).await;
        script.cluster.kill(4, Role::Lc);
        script.cluster.start_process(1, Role::Io);
        let read = script.read_at_last(5, &device, 0, 8192).await;
        if let Ok(Ok(Ok(()))) = answered {
            assert!(read == blocks(&[7, 2]), "an answered write is gone");
        }
        assert!(read == blocks(&[7, 2]) || read == blocks(&[3, 2]), "neither old nor new");
        drop(held);
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &read).await;
    });
}

/// Hole 25: something stable above something that is not.
///
/// 1. D2 is away under a fact. A first write {D1, P} is held; D1's disk is slow. A second write, of
///    D2's block, is kept by P alone.
/// 2. A sync of the second must wait for the first too.
/// 3. The site loses its power. What was synced is there, with all below it.
#[test] // Proves: W-9, W-10.
fn hole_25_what_is_stable_has_all_lower_numbers_below_it() {
    Script::run(20, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2, 3, 4]).await;
        script.power_cut(&[2]);
        script.write_at_last(4, &device, BLOCK, &block(9)).await;
        script.sync(4, &device).await.expect("all in sync can sync");
        script.set_sync_time(&[1], SLOW);
        script.write(4, &device, 0, block(5)).await.expect("a held write");
        script.write(4, &device, 3 * BLOCK, block(6)).await.expect("another one");
        script.sync(4, &device).await.expect("all in sync can sync");
        script.power_cut(&[1, 3, 4, 5]);
        script.power_on(&script.servers());
        let read = script.read_at_last(5, &device, 0, 4 * BLOCK as u32).await;
        assert!(read == blocks(&[5, 9, 3, 6]), "a synced write is gone");
        script.check_all_ways(5, &device, &blocks(&[5, 9, 3, 6])).await;
    });
}

/// Hole 30: the answer to a record is lost.
///
/// 1. P's promise does not arrive; the connection breaks.
/// 2. X sends the record again. P has it and says so; it costs no fact, and the bytes are right.
#[test] // Proves: W-1, W-5.
fn hole_30_a_repeat_gets_the_first_answer() {
    Script::run(21, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        let facts = script.note(|seen| {
            matches!(seen.message, Message::ToCoordinator(CoordinatorRequest::RecordFacts { .. }))
        });
        let lost = script.lose(1, |seen| is_promise(seen, 3, 4));
        script.write(4, &device, 0, block(3)).await.expect("it is sent again");
        assert_eq!(lost.get(), 1);
        script.write(4, &device, BLOCK, block(4)).await.expect("the next one follows");
        assert_eq!(facts.get(), 0, "a lost answer costs a fact");
        script.check_all_ways(4, &device, &blocks(&[3, 4])).await;
    });
}

/// Joining under load: the owner dies while a portion joins.
///
/// 1. D1 was away while X wrote block 0. It is back and joins: it gets new writes, and its rebuild is
///    under way for long. Block 2 is written meanwhile, also to D1, synced and applied.
/// 2. X dies. The fact is open, so N believes nothing of D1; the next join begins anew.
/// 3. D1 has at last both what it missed and what it got while the first join lasted.
#[test] // Proves: F-4, F-2.
fn a_join_that_fails_begins_anew() {
    Script::run(22, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2, 3, 4]).await;
        script.cluster.kill(1, Role::Io);
        script.write_at_last(4, &device, 0, &block(5)).await;
        script.suspected().await;
        script.sync(4, &device).await.expect("all in sync can sync");
        let rejoined = script.note(|seen| {
            matches!(seen.message, Message::ToIo(IoRequest::Rejoin { .. })) && seen.from == 4
        });
        // Blocks for the rebuild are under way for long.
        let inspected = script.hold(|seen| {
            matches!(seen.message, Message::ToIo(IoRequest::Inspect { .. })) && seen.from == 4
        });
        script.cluster.start_process(1, Role::Io);
        inspected.reached(1).await;
        assert_eq!(rejoined.get(), 1);
        script.cluster.kill(4, Role::Lc);
        let read = script.read_at_last(5, &device, 0, 4 * BLOCK as u32).await;
        assert!(read == blocks(&[5, 2, 3, 4]), "a joining portion was believed");
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[5, 2, 3, 4])).await;
    });
}

/// F-4: what a returning portion kept of a write that nobody else has.
///
/// 1. A write {D1, P} reaches D1 only. X dies, and D1's I/O server stops before anybody asks it.
/// 2. N opens the others. They know nothing of it: it is no write.
/// 3. D1 is back with its record. It is removed by a fact, drops the record, and joins.
#[test] // Proves: F-4, W-6.
fn a_returning_portion_drops_what_nobody_else_has() {
    Script::run(41, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        // Nothing else of its row is to be rebuilt.
        script.applied(&[1, 2, 3]).await;
        let of_d1 = script.note(|seen| is_promise(seen, 1, 4));
        let held = script.hold(|seen| is_prepare(seen, 4, 3));
        let write = script.begin_write(4, &device, 0, block(7));
        held.reached(1).await;
        script.counted("D1 promises", &of_d1, 1).await;
        script.cluster.kill(4, Role::Lc);
        script.cluster.kill(1, Role::Io);
        write.abort();
        assert!(script.read_at_last(5, &device, 0, 8192).await == blocks(&[1, 2]));
        script.cluster.start_process(1, Role::Io);
        script.write_at_last(5, &device, 2 * BLOCK, &block(9)).await;
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[1, 2, 9])).await;
    });
}

/// Joining under load: writes go on while a portion is rebuilt, also to the rows that are rebuilt.
///
/// 1. D1 was away while X wrote blocks 0 and 2. It joins, and its first rebuilt blocks are under way
///    for long.
/// 2. Blocks 2 and 4 are written meanwhile. The rebuild goes on.
/// 3. The fact is closed, and D1 has the newest of everything.
#[test] // Proves: F-4, W-12.
fn writes_go_on_while_a_portion_joins() {
    Script::run(23, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2, 3, 4, 5, 6]).await;
        script.cluster.kill(1, Role::Io);
        script.write_at_last(4, &device, 0, &block(11)).await;
        script.write_at_last(4, &device, 2 * BLOCK, &block(13)).await;
        script.suspected().await;
        let held = script.hold(|seen| {
            matches!(seen.message, Message::ToIo(IoRequest::Rebuild { .. })) && seen.to == 1
        });
        script.cluster.start_process(1, Role::Io);
        held.reached(1).await;
        let over = script.begin_write(4, &device, 2 * BLOCK, block(23));
        let beside = script.begin_write(4, &device, 4 * BLOCK, block(25));
        held.release();
        assert_eq!(over.await.expect("no panic"), Ok(()));
        assert_eq!(beside.await.expect("no panic"), Ok(()));
        script.check_all_ways(4, &device, &blocks(&[11, 2, 23, 4, 25, 6])).await;
    });
}

/// Site power cut: what was synced is there, and of the rest a first part.
///
/// Writes are answered one after the other, each held, some synced; all machines lose their power at
/// once and keep what their disks happened to have.
async fn site_power_cut(script: Script, portions: u32) {
    let servers: Vec<u32> = (1..=portions).collect();
    let device = script.device(&servers);
    let owner = portions + 1;
    let count = 12;
    script.write_at_last(owner, &device, 0, &blocks(&vec![0; count])).await;
    script.stable_everywhere(owner, &device).await;
    for server in &servers {
        let time = Duration::from_millis(1 + script.simulation.random_below(400));
        script.set_sync_time(&[*server], time);
    }
    let synced = script.simulation.random_below(count as u64) as usize;
    let answered = synced + script.simulation.random_below((count - synced) as u64) as usize;
    for number in 0..answered {
        let at = (number * 5 % count) as u64 * BLOCK;
        script.write_at_last(owner, &device, at, &block(number as u8 + 1)).await;
        if number + 1 == synced {
            script.sync(owner, &device).await.expect("all can sync");
        }
    }
    script.servers().into_iter().for_each(|server| script.cluster.power_cut(server));
    script.power_on(&script.servers());
    let read = script.read_at_last(owner, &device, 0, (count * 4096) as u32).await;
    let survived = |number: &usize| read[number * 5 % count * 4096] == *number as u8 + 1;
    let prefix = (0..answered).take_while(survived).count();
    assert!(synced <= prefix, "{synced} were synced, {prefix} survived");
    let mut expected = blocks(&vec![0; count]);
    for number in 0..prefix {
        let at = number * 5 % count * 4096;
        expected[at..at + 4096].fill(number as u8 + 1);
    }
    assert!(read == expected, "no prefix: {prefix} of {answered}, {synced} synced");
    if device.scheme.parity() > 0 {
        script.check_all_ways(owner, &device, &expected).await;
    }
}

#[test] // Proves: W-10, W-9.
fn hole_25_a_power_cut_of_the_site_leaves_a_prefix() {
    for seed in 0..8 {
        Script::run(seed, 4, "raid5/2+1", async |script| site_power_cut(script, 3).await);
    }
}

#[test] // Proves: W-10, W-9.
fn a_power_cut_of_the_site_leaves_a_prefix_with_m_0() {
    for seed in 0..8 {
        Script::run(seed, 4, "raid0/3", async |script| site_power_cut(script, 3).await);
    }
}

#[test] // Proves: W-10, W-9.
fn a_power_cut_of_the_site_leaves_a_prefix_with_m_2() {
    for seed in 0..8 {
        Script::run(seed, 5, "rs/2+2", async |script| site_power_cut(script, 4).await);
    }
}

/// Hole 38: without parity a portion is away.
///
/// 1. A write to its block waits, and a read of it gives an error, never zeros.
/// 2. The portion is back: the write is answered, and what was there before is there.
#[test] // Proves: W-3, G-8.
fn hole_38_without_parity_everything_waits_for_a_portion() {
    Script::run(24, 5, "raid0/2", async |script| {
        let device = script.device(&[1, 2]);
        script.write_at_last(4, &device, 0, &blocks(&[1, 2, 3, 4])).await;
        script.stable_everywhere(4, &device).await;
        script.power_cut(&[2]);
        let mut write = script.begin_write(4, &device, BLOCK, block(7));
        let read = timeout(Duration::from_secs(10), script.read(4, &device, 3 * BLOCK, 4096)).await;
        assert!(!matches!(read, Ok(Ok(_))), "a read without its portion gives bytes");
        let early = timeout(Duration::from_millis(1), &mut write).await;
        assert!(!matches!(early, Ok(Ok(Ok(())))), "answered without its portion");
        script.cluster.kill(4, Role::Lc);
        let read = timeout(Duration::from_secs(10), script.read(5, &device, 3 * BLOCK, 4096)).await;
        assert!(!matches!(read, Ok(Ok(_))), "a new owner reads without a portion");
        script.power_on(&[2]);
        let read = script.read_at_last(5, &device, 0, 4 * BLOCK as u32).await;
        assert!(read == blocks(&[1, 7, 3, 4]) || read == blocks(&[1, 2, 3, 4]));
        script.write_at_last(5, &device, 3 * BLOCK, &block(8)).await;
        assert!(script.read_at_last(5, &device, 3 * BLOCK, 4096).await == block(8));
    });
}

/// Hole 31 and 32: with rs/4+2 two servers die, both with a coordinator and a portion.
///
/// Writes go on: three coordinators of five are left, and k portions.
#[test] // Proves: F-7, W-3, G-8.
fn hole_31_and_32_two_of_six_servers_die_and_writes_go_on() {
    Script::run(25, 6, "rs/4+2", async |script| {
        let leader = script.leader().await;
        let other = if leader == 1 { 2 } else { 1 };
        let device = script.device(&[1, 2, 3, 4, 5, 6]);
        let before = blocks(&[1, 2, 3, 4]);
        script.write_at_last(6, &device, 0, &before).await;
        script.power_cut(&[leader]);
        script.power_cut(&[other]);
        script.write_at_last(6, &device, BLOCK, &block(9)).await;
        assert!(script.read_at_last(6, &device, 0, 1 << 20).await == blocks(&[1, 9, 3, 4]));
        script.power_on(&[leader]);
        script.power_on(&[other]);
        script.check_all_ways(6, &device, &blocks(&[1, 9, 3, 4])).await;
    });
}

/// O-8: a group that nobody asks for is settled by the sweep, and the sweep waits for all disks.
///
/// 1. A write reaches P only; X dies, D2's I/O server is away. Nobody asks for the device.
/// 2. The sweep cannot ask D2's disk, so the dead X stays pending.
/// 3. D2 is back; the sweep ends. No journal keeps anything of X that is not settled.
#[test] // Proves: O-8, F-3.
fn a_sweep_settles_every_group_and_waits_for_every_disk() {
    Script::run(26, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        let writer = script.incarnation(4).await;
        let promised = script.note(|seen| is_promise(seen, 3, 4));
        let held = script.hold(|seen| is_prepare(seen, 4, 1));
        let write = script.begin_write(4, &device, 0, block(3));
        held.reached(1).await;
        script.counted("P promises", &promised, 1).await;
        script.cluster.kill(4, Role::Lc);
        write.abort();
        script.cluster.kill(2, Role::Io);
        let unfinished = IoRequest::ListUnfinished { writers: vec![writer] };
        let asked = script.note(|seen| {
            matches!(seen.message, Message::ToIo(IoRequest::ListUnfinished { .. })) && seen.to == 3
        });
        script.counted("sweeps were tried", &asked, 5).await;
        let pending = script.cluster.open_facts().await.map(|(_, pending)| pending);
        assert_eq!(pending, Some(1), "a sweep ended without a disk");
        script.power_on(&[2]);
        script
            .until("the sweep ends", async |script| {
                matches!(script.cluster.open_facts().await, Some((_, 0)))
            })
            .await;
        for server in 1..=5 {
            match script.ask_io(server, &unfinished).await {
                Some(IoReply::Unfinished { groups }) => assert!(groups.is_empty(), "at {server}"),
                other => panic!("{other:?}"),
            }
        }
        script.cluster.start_process(4, Role::Lc);
        let owner = script.owner(&device).await;
        script.check_all_ways(owner, &device, &blocks(&[1, 2])).await;
    });
}

/// What a restart lost is rebuilt although nobody asks for the device.
///
/// 1. All is stable and applied, and no client comes any more. The machine of P loses its power, and
///    with it P's file.
/// 2. It is back. X opens it again by itself, sees that it is gone, and has it rebuilt.
/// 3. The machine of D1 is lost for good: P is needed.
#[test] // Proves: F-2, F-4.
fn an_idle_owner_learns_of_what_a_restart_lost() {
    Script::run(27, 5, "raid5/2+1", async |script| {
        let bytes: Vec<u8> = (1..=64).collect();
        let device = device_of(&script, 4, &bytes).await;
        script.applied(&[1, 2, 3]).await;
        script.power_cut(&[3]);
        assert_eq!(script.remove_portions(3, &device), 1);
        script.power_on(&[3]);
        script.suspected().await;
        script.healed().await;
        script.power_cut(&[1]);
        assert!(script.read_at_last(4, &device, 0, 1 << 20).await == blocks(&bytes));
        script.power_on(&[1]);
        script.check_all_ways(4, &device, &blocks(&bytes)).await;
    });
}
