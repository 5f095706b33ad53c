//! Ring 2: writes that are answered from a local journal, as scripts; see `holes.rs`.
//!
//! X is the LC of server 4, N that of server 5; portions are on servers 1, 2 and 3.

#[path = "common/found.rs"]
mod found;

use std::time::Duration;

use braid_client::PutOptions;
use braid_env::Payload;
use braid_sim::scripted::{Failed, Hold, Message, Role, Script, Seen, block};
use braid_terms::{FactKind, GroupLayout, WriteNumber};
use braid_wire::coordinator::CoordinatorRequest;
use braid_wire::io::IoRequest;
use braid_wire::lcc::{FileOp, LccRefusal, LccRequest};
use tokio::time::timeout;

const BLOCK: u64 = 4096;
const SLOW: Duration = Duration::from_secs(20);
/// So long an answer is seen not to come.
const EARLY: Duration = Duration::from_millis(300);

fn blocks(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| block(*byte)).collect()
}

fn is_prepare_of(seen: &Seen, from: u32) -> bool {
    matches!(&seen.message, Message::ToIo(IoRequest::Prepare(_))) && seen.from == from
}

fn records_a_copy(seen: &Seen) -> bool {
    let Message::ToCoordinator(CoordinatorRequest::RecordFacts { facts, .. }) = &seen.message
    else {
        return false;
    };
    facts.iter().any(|(_, kind)| matches!(kind, FactKind::LocalCopy { .. })) && seen.from == 4
}

fn closes_a_fact(seen: &Seen) -> bool {
    let request = &seen.message;
    matches!(request, Message::ToCoordinator(CoordinatorRequest::CloseFacts { .. }))
        && seen.from == 4
}

fn file_op(seen: &Seen) -> Option<&FileOp> {
    let Message::ToLcc(request) = &seen.message else { return None };
    match &**request {
        LccRequest::File { op, .. } if seen.from == 4 => Some(op),
        _ => None,
    }
}

fn lays(seen: &Seen, which: Option<WriteNumber>) -> bool {
    let op = file_op(seen);
    matches!(op, Some(FileOp::LayCopy { number, .. }) if which.is_none_or(|of| of == *number))
}

fn ends_a_copy(seen: &Seen) -> bool {
    matches!(file_op(seen), Some(FileOp::EndCopy { .. }))
}

/// A device on servers 1, 2 and 3 that X made at server 4, with one block for each byte, all stable.
async fn device_of(script: &Script, bytes: &[u8]) -> GroupLayout {
    let device = script.device(&[1, 2, 3]);
    script.write_at_last(4, &device, 0, &blocks(bytes)).await;
    script.stable_everywhere(4, &device).await;
    device
}

/// X answers a write of block 0 that reaches no portion.
async fn answered_locally(script: &Script, device: &GroupLayout, byte: u8) -> (WriteNumber, Hold) {
    let held = script.hold(|seen| is_prepare_of(seen, 4));
    let answered = script.write_local(4, device, 0, block(byte)).await;
    let answered = answered.expect("answered from the local journal").number;
    assert_eq!(script.copies().await.len(), 1, "a fact says so before the answer");
    (answered, held)
}

fn is_unavailable<T>(answer: &Result<T, Failed>) -> bool {
    matches!(answer, Err(Failed::Refused(LccRefusal::Unavailable { .. })))
}

/// N owns the device while X is away: it shows what the cluster has and changes nothing.
async fn is_read_only(script: &Script, device: &GroupLayout, old: &[u8], answered: WriteNumber) {
    let length = u32::try_from(blocks(old).len()).expect("a short device");
    let read = script.read_at_last(5, device, 0, length).await;
    assert!(read == blocks(old), "no portion has it");
    let written = script.write(5, device, 0, block(8)).await;
    assert!(is_unavailable(&written), "written over what was answered: {written:?}");
    let cut = script.set_length(5, device, 0).await;
    assert!(is_unavailable(&cut), "cut what was answered: {cut:?}");
    let told = script.sync_of(5, device, answered).await;
    assert!(is_unavailable(&told), "nobody knows yet whether it is lost: {told:?}");
}

/// Hole 24: an owner answers from its local journal and dies; another one must not write before its
/// server is back.
///
/// 1. X answers a write that is under way to all portions for long. X dies.
/// 2. N opens the device. It shows the old bytes, and refuses changes.
/// 3. X's server is back: N lays the write, the fact is closed, and a sync of the client that was
///    answered succeeds. What X had sent arrives late, and is refused.
#[test] // Proves: W-13.
fn what_a_local_journal_has_is_laid_by_the_next_owner() {
    Script::run(90, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let (answered, held) = answered_locally(&script, &device, 3).await;
        script.cluster.kill(4, Role::Lc);
        is_read_only(&script, &device, &[1, 2], answered).await;
        held.release();
        script.cluster.start_process(4, Role::Lc);
        script.no_copies().await;
        assert_eq!(script.sync_of(5, &device, answered).await, Ok(()));
        script.check_all_ways(5, &device, &blocks(&[3, 2])).await;
        script.write_at_last(5, &device, BLOCK, &block(7)).await;
        script.check_all_ways(5, &device, &blocks(&[3, 7])).await;
    });
}

/// The same, and N is gone by then: X's next start is the owner, and lays it before it answers anything.
#[test] // Proves: W-13.
fn what_a_local_journal_has_is_laid_before_its_owner_serves_again() {
    Script::run(91, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let (first, held) = answered_locally(&script, &device, 3).await;
        // It waits for no portion, for it is of another row, and not for the fact: that is there.
        let second = script.write_local(4, &device, 2 * BLOCK, block(4)).await;
        let second = second.expect("answered from the local journal").number;
        assert!(first < second);
        script.cluster.kill(4, Role::Lc);
        is_read_only(&script, &device, &[1, 2], first).await;
        held.release();
        script.cluster.kill(5, Role::Lc);
        script.cluster.start_process(4, Role::Lc);
        let read = script.read_at_last(4, &device, 0, 3 * 4096).await;
        assert!(read == blocks(&[3, 2, 4]), "an answered write is not seen");
        script.cluster.start_process(5, Role::Lc);
        script.no_copies().await;
        assert_eq!(script.sync_of(4, &device, second).await, Ok(()));
        script.check_all_ways(4, &device, &blocks(&[3, 2, 4])).await;
    });
}

/// A write of several parts is one record: all of it is laid, also where one part is laid over another.
#[test] // Proves: W-13.
fn all_parts_of_a_write_are_laid() {
    Script::run(105, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2, 3, 4]).await;
        let held = script.hold(|seen| is_prepare_of(seen, 4));
        let parts = [(0, 7), (3 * BLOCK, 8), (0, 9)];
        let answered = script.write_many_local(4, &device, &parts).await;
        let answered = answered.expect("answered from the local journal").number;
        script.cluster.kill(4, Role::Lc);
        is_read_only(&script, &device, &[1, 2, 3, 4], answered).await;
        held.release();
        script.cluster.start_process(4, Role::Lc);
        script.no_copies().await;
        assert_eq!(script.sync_of(5, &device, answered).await, Ok(()));
        script.check_all_ways(5, &device, &blocks(&[9, 2, 3, 8])).await;
    });
}

/// Only the local journal has anything of a device: none of its portions was ever made.
#[test] // Proves: W-13.
fn a_device_that_only_a_local_journal_knows_is_made_again() {
    Script::run(92, 5, "raid5/2+1", async |script| {
        let device = script.device(&[1, 2, 3]);
        let (answered, held) = answered_locally(&script, &device, 3).await;
        script.cluster.kill(4, Role::Lc);
        let gone = async |script: &Script| {
            let read = script.read(5, &device, 0, 4096).await;
            matches!(read, Err(Failed::Refused(LccRefusal::NotFound)))
        };
        script.until("no portion knows it", gone).await;
        held.release();
        script.cluster.start_process(4, Role::Lc);
        script.no_copies().await;
        let read = script.read_at_last(5, &device, 0, 4096).await;
        assert!(read == block(3), "an answered write is not seen");
        let owner = script.owner(&device).await;
        assert_eq!(script.sync_of(owner, &device, answered).await, Ok(()));
        script.check_all_ways(owner, &device, &block(3)).await;
    });
}

/// The whole server of X loses its power, just behind the answer.
#[test] // Proves: W-13, S-3.
fn an_answer_from_a_local_journal_outlives_a_power_cut() {
    Script::run(93, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let (answered, held) = answered_locally(&script, &device, 3).await;
        script.local_disk(4).set_unlucky(true);
        script.power_cut(&[4]);
        is_read_only(&script, &device, &[1, 2], answered).await;
        held.release();
        script.power_on(&[4]);
        script.no_copies().await;
        assert_eq!(script.sync_of(5, &device, answered).await, Ok(()));
        script.check_all_ways(5, &device, &blocks(&[3, 2])).await;
    });
}

/// A power cut of the site takes what the portions only held; the local journal has it.
///
/// 1. A write is answered from the local journal, and decided. No portion has it on its disk.
/// 2. All machines lose their power. The portions have the old bytes.
/// 3. X's server lays it.
#[test] // Proves: W-13, W-10.
fn a_local_journal_keeps_what_is_not_on_the_disks_of_the_cluster() {
    Script::run(94, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        script.set_sync_time(&[1, 2, 3], SLOW);
        let answered = script.write_local(4, &device, 0, block(3)).await;
        let answered = answered.expect("answered from the local journal").number;
        let decided = async |script: &Script| {
            let group = script.describe(4, &device).await;
            group.is_some_and(|group| answered <= group.decided && group.stable < answered)
        };
        script.until("it is decided", decided).await;
        let end = script.simulation.elapsed() + Duration::from_secs(5);
        let is_over = async |script: &Script| end <= script.simulation.elapsed();
        script.until("a busy period would be over", is_over).await;
        assert_eq!(script.copies().await.len(), 1, "it is on no disk of the cluster");
        for server in script.servers() {
            script.local_disk(server).set_unlucky(true);
        }
        script.power_cut(&script.servers());
        script.power_on(&script.servers());
        let laid = async |script: &Script| {
            let read = script.read_at_last(4, &device, 0, 8192).await;
            read == blocks(&[3, 2])
        };
        script.until("the answered write is back", laid).await;
        script.no_copies().await;
        let owner = script.owner(&device).await;
        assert_eq!(script.sync_of(owner, &device, answered).await, Ok(()));
        script.check_all_ways(owner, &device, &blocks(&[3, 2])).await;
    });
}

/// The fact comes before the answer, and the record before that.
///
/// 1. X's fact is under way for long: a write is not answered. Nor is one of which the record is not on
///    the medium.
/// 2. X dies in both. What nobody was answered may be there or not; nothing is left open.
#[test] // Proves: W-13.
fn nothing_is_answered_before_its_fact_and_its_record() {
    Script::run(95, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let held = script.hold(|seen| is_prepare_of(seen, 4));
        let facts = script.hold(records_a_copy);
        let mut write = script.begin_local(4, &device, 0, block(3));
        facts.reached(1).await;
        let early = timeout(EARLY, &mut write).await;
        assert!(early.is_err(), "answered before its fact: {early:?}");
        script.cluster.kill(4, Role::Lc);
        let read = script.read_at_last(5, &device, 0, 8192).await;
        assert!(read == blocks(&[1, 2]), "there was no record of it yet");
        held.release();
        facts.release();
        script.cluster.start_process(4, Role::Lc);
        script.no_copies().await;

        let owner = script.owner(&device).await;
        let held = script.hold(move |seen| is_prepare_of(seen, owner));
        let slow = SLOW..SLOW + Duration::from_millis(1);
        script.local_disk(owner).set_sync_latency(slow);
        let mut write = script.begin_local(owner, &device, 0, block(3));
        script.until("a fact is recorded", async |script| !script.copies().await.is_empty()).await;
        let early = timeout(EARLY, &mut write).await;
        assert!(early.is_err(), "answered before its record: {early:?}");
        script.local_disk(owner).set_unlucky(true);
        script.power_cut(&[owner]);
        let other = if owner == 4 { 5 } else { 4 };
        let read = script.read_at_last(other, &device, 0, 8192).await;
        assert!(read == blocks(&[1, 2]), "nobody was answered");
        held.release();
        script.local_disk(owner).set_usual_sync_latency();
        script.power_on(&[owner]);
        script.no_copies().await;
        let owner = script.owner(&device).await;
        script.check_all_ways(owner, &device, &blocks(&[1, 2])).await;
    });
}

/// Those who lay die half way, one after the other.
///
/// 1. X answers two writes, which reach no portion, and dies. N owns the device.
/// 2. X's next start has the first laid; the second is under way when it dies. All is laid again.
/// 3. N dies when the second is laid and the fact not closed. Who comes next lays it once more.
#[test] // Proves: W-13.
fn laying_half_way_is_begun_anew() {
    Script::run(103, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let (first, held) = answered_locally(&script, &device, 3).await;
        let second = script.write_local(4, &device, 2 * BLOCK, block(4)).await;
        let second = second.expect("answered from the local journal").number;
        script.cluster.kill(4, Role::Lc);
        is_read_only(&script, &device, &[1, 2], first).await;
        held.release();
        let lay = script.hold(move |seen| lays(seen, Some(second)));
        script.cluster.start_process(4, Role::Lc);
        lay.reached(1).await;
        let read = script.read_at_last(5, &device, 0, 8192).await;
        assert!(read == blocks(&[3, 2]), "the first is laid");
        script.cluster.kill(4, Role::Lc);
        // What was under way arrives late: to be laid twice is no harm.
        lay.release();
        let written = script.write(5, &device, 0, block(8)).await;
        assert!(is_unavailable(&written), "written over what is half laid: {written:?}");
        let end = script.hold(ends_a_copy);
        let again = script.note(|seen| lays(seen, None));
        script.cluster.start_process(4, Role::Lc);
        end.reached(1).await;
        assert!(2 <= again.get(), "all is laid again from the first");
        script.cluster.kill(5, Role::Lc);
        end.release();
        script.no_copies().await;
        script.cluster.start_process(5, Role::Lc);
        let owner = script.owner(&device).await;
        for written in [first, second] {
            assert_eq!(script.sync_of(owner, &device, written).await, Ok(()));
        }
        script.check_all_ways(owner, &device, &blocks(&[3, 2, 4])).await;
    });
}

/// X only stands still, for longer than its lease: what it answered before is laid when it goes on.
#[test] // Proves: W-13, O-4.
fn what_a_stopped_owner_answered_is_laid_when_it_goes_on() {
    Script::run(104, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let (answered, held) = answered_locally(&script, &device, 3).await;
        script.cluster.set_paused(4, Role::Lc, true);
        is_read_only(&script, &device, &[1, 2], answered).await;
        held.release();
        script.cluster.set_paused(4, Role::Lc, false);
        script.no_copies().await;
        assert_eq!(script.sync_of(5, &device, answered).await, Ok(()));
        script.check_all_ways(5, &device, &blocks(&[3, 2])).await;
    });
}

/// X dies when the cluster has everything: nothing is laid twice, and its fact is closed.
#[test] // Proves: W-13.
fn what_the_cluster_has_is_not_laid_again() {
    Script::run(96, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let closes = script.hold(closes_a_fact);
        for byte in [3, 4] {
            script.write_local(4, &device, 0, block(byte)).await.expect("answered");
        }
        script.stable_everywhere(4, &device).await;
        closes.reached(1).await;
        script.cluster.kill(4, Role::Lc);
        closes.release();
        let before = script.read_at_last(5, &device, 0, 8192).await;
        assert!(before == blocks(&[4, 2]));
        script.cluster.start_process(4, Role::Lc);
        script.no_copies().await;
        script.check_all_ways(5, &device, &blocks(&[4, 2])).await;
    });
}

/// What it costs: one fact and one close for a hundred writes.
#[test] // Proves: W-13.
fn a_busy_period_costs_one_fact() {
    Script::run(97, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let records = script.note(records_a_copy);
        let closes = script.note(closes_a_fact);
        for round in 0..100 {
            script.write_local(4, &device, 0, block(round)).await.expect("answered");
        }
        script.no_copies().await;
        // One that does not ask the global controller first is sent on to it.
        assert!((1..=2).contains(&records.get()), "{} facts", records.get());
        assert!((1..=2).contains(&closes.get()), "{} closes", closes.get());
        script.check_all_ways(4, &device, &blocks(&[99, 2])).await;
    });
}

/// A local journal that is full, or fails, answers nothing: the cluster does.
#[test] // Proves: W-13, S-4.
fn what_a_local_journal_does_not_take_is_answered_by_the_cluster() {
    for fails in [true, false] {
        Script::run(98, 5, "raid5/2+1", async |script| {
            let device = device_of(&script, &[1, 2]).await;
            let disk = script.local_disk(4);
            if fails {
                disk.fail_syncs(1)
            } else {
                disk.set_size(disk.used())
            }
            let held = script.hold(|seen| is_prepare_of(seen, 4));
            let mut write = script.begin_local(4, &device, 0, block(3));
            held.reached(1).await;
            let early = timeout(EARLY, &mut write).await;
            assert!(early.is_err(), "answered, and it is nowhere: {early:?}");
            held.release();
            write.await.expect("no panic").expect("the cluster has it");
            let read = script.read(4, &device, 0, 8192).await.expect("X serves");
            assert!(read == blocks(&[3, 2]));
            script.no_copies().await;
            script.check_all_ways(4, &device, &blocks(&[3, 2])).await;
        });
    }
}

/// The local journal is lost with what only it had: that is told, and the device is free again.
#[test] // Proves: W-13, W-9.
fn a_lost_local_journal_is_told_and_blocks_nobody() {
    Script::run(99, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let (answered, held) = answered_locally(&script, &device, 3).await;
        script.cluster.kill(4, Role::Lc);
        is_read_only(&script, &device, &[1, 2], answered).await;
        held.release();
        assert_eq!(script.remove_local_journals(4), 1);
        script.cluster.start_process(4, Role::Lc);
        script.no_copies().await;
        let told = script.sync_of(5, &device, answered).await;
        assert_eq!(told, Err(Failed::Refused(LccRefusal::HeldLost)));
        script.write(5, &device, 0, block(5)).await.expect("nothing is in doubt any more");
        script.check_all_ways(5, &device, &blocks(&[5, 2])).await;
    });
}

/// A damaged record is not laid, the others are, and that one is lost is told.
#[test] // Proves: W-13, S-3.
fn a_damaged_record_of_a_local_journal_is_told() {
    Script::run(100, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let (first, held) = answered_locally(&script, &device, 3).await;
        let second = script.write_local(4, &device, 2 * BLOCK, block(4)).await;
        let second = second.expect("answered from the local journal").number;
        script.cluster.kill(4, Role::Lc);
        is_read_only(&script, &device, &[1, 2], first).await;
        held.release();
        let disk = script.local_disk(4);
        let journal = disk.files().into_iter().find(|path| path.ends_with(".log"));
        let journal = journal.expect("it was answered from there");
        let content = disk.content(&journal).expect("it is there");
        let at = content.windows(4096).position(|window| window == block(3));
        disk.flip_bit(&journal, at.expect("the bytes are in it") as u64 + 99, 1);
        script.cluster.start_process(4, Role::Lc);
        script.no_copies().await;
        let read = script.read_at_last(4, &device, 0, 3 * 4096).await;
        assert!(read == blocks(&[1, 2, 4]), "one is damaged, the other is not");
        let owner = script.owner(&device).await;
        for written in [first, second] {
            let told = script.sync_of(owner, &device, written).await;
            assert_eq!(told, Err(Failed::Refused(LccRefusal::HeldLost)));
        }
    });
}

/// Hole 24, the other end: an operator gives a local copy up, others write, and its server comes back.
///
/// 1. X answers a write of a file from its local journal and dies; no portion has it.
/// 2. An operator gives it up. N writes the same block.
/// 3. X is back. N's bytes stay; X's are in a file beside.
#[test] // Proves: W-13.
fn what_may_not_be_laid_becomes_a_file_beside() {
    Script::run(101, 5, "raid5/2+1", async |script| {
        let client = script.client();
        let options = PutOptions { stable: true, ..PutOptions::default() };
        client.put_bytes("/f", blocks(&[1, 2]).into(), options).await.expect("a file");
        let node = client.lookup("/f").await.expect("it is there");
        let device = node.attributes.device().expect("it is long").clone();
        let owner = script.owner(&device).await;
        let held = script.hold(move |seen| is_prepare_of(seen, owner));
        let answered = script.write_local(owner, &device, 0, block(3)).await;
        let answered = answered.expect("answered from the local journal").number;
        let facts = script.copies().await;
        assert_eq!(facts.len(), 1);
        script.cluster.kill(owner, Role::Lc);
        let other = script.servers().into_iter().find(|server| *server != owner);
        let other = other.expect("there are five");
        let read = script.read_at_last(other, &device, 0, 8192).await;
        assert!(read == blocks(&[1, 2]));
        let discard = FileOp::EndCopy { fact: facts[0] };
        client.file_op(&device, discard, Payload::empty()).await.expect("an operator may");
        assert_eq!(script.copies().await, []);
        script.write_at_last(other, &device, 0, &block(7)).await;
        held.release();
        script.cluster.start_process(owner, Role::Lc);
        let names = async || {
            let listed = client.list("/", false).await.expect("the root is there").all().await;
            let listed = listed.expect("the root can be listed").into_iter();
            listed.map(|entry| entry.name).collect::<Vec<_>>()
        };
        let is_copy = |name: &bytes::Bytes| name.starts_with(b"f.local-copy-");
        script.until("a file beside", async |_| names().await.iter().any(is_copy)).await;
        let names: Vec<_> = names().await.into_iter().filter(|name| is_copy(name)).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let path = [b"/", &names[0][..]].concat();
        let copy = client.get_bytes(path).await.expect("it can be read");
        assert!(copy == block(3), "what was answered is not in the file beside");
        let file = client.get_bytes("/f").await.expect("it can be read");
        assert!(file == blocks(&[7, 2]), "an old local copy was laid over new bytes");
        let holder = script.owner(&device).await;
        let told = script.sync_of(holder, &device, answered).await;
        assert_eq!(told, Err(Failed::Refused(LccRefusal::HeldLost)));
        let journals = async |script: &Script| {
            let files = script.local_disk(owner).files();
            files.iter().all(|path| !path.ends_with(".log"))
        };
        script.until("the local journal has nothing left", journals).await;
        script.check_all_ways(holder, &device, &blocks(&[7, 2])).await;
    });
}

/// What may not be laid stays in the local journal as long as its device is there, also while no name of
/// it is found: a name may be on its way from one directory to another.
///
/// 1. As before, of a device without a name.
/// 2. X is back, and looks all directories through. It keeps what it has.
/// 3. The device gets a name: the file beside is there.
#[test] // Proves: W-13.
fn what_may_not_be_laid_waits_for_a_name() {
    Script::run(103, 5, "raid5/2+1", async |script| {
        let client = script.client();
        let device = device_of(&script, &[1, 2]).await;
        let (_, held) = answered_locally(&script, &device, 3).await;
        let facts = script.copies().await;
        script.cluster.kill(4, Role::Lc);
        let read = script.read_at_last(5, &device, 0, 8192).await;
        assert!(read == blocks(&[1, 2]));
        let discard = FileOp::EndCopy { fact: facts[0] };
        client.file_op(&device, discard, Payload::empty()).await.expect("an operator may");
        script.write_at_last(5, &device, 0, &block(7)).await;
        held.release();
        script.cluster.start_process(4, Role::Lc);
        let end = script.simulation.elapsed() + Duration::from_secs(10);
        script.until("it looked some times", async |s| end <= s.simulation.elapsed()).await;
        let kept = script.local_disk(4).files();
        assert!(kept.iter().any(|path| path.ends_with(".log")), "answered bytes are thrown away");
        script.name(&device, 8192, "late").await;
        let is_copy = |name: &bytes::Bytes| name.starts_with(b"late.local-copy-");
        let beside = async || {
            let listed = client.list("/", false).await.expect("the root is there").all().await;
            let listed = listed.expect("the root can be listed").into_iter();
            listed.map(|entry| entry.name).find(is_copy)
        };
        script.until("a file beside", async |_| beside().await.is_some()).await;
        let path = [b"/", &beside().await.expect("seen above")[..]].concat();
        assert!(client.get_bytes(path).await.expect("it can be read") == block(3));
    });
}

/// A group that is removed takes its local copy along.
#[test] // Proves: W-13, F-9.
fn a_removed_device_is_not_made_again_from_a_local_journal() {
    Script::run(102, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let (answered, held) = answered_locally(&script, &device, 3).await;
        script.cluster.kill(4, Role::Lc);
        is_read_only(&script, &device, &[1, 2], answered).await;
        held.release();
        let remove = async |script: &Script| {
            let removed = script.client().file_op(&device, FileOp::Remove, Payload::empty());
            removed.await.is_ok()
        };
        script.until("it is removed", remove).await;
        assert_eq!(script.copies().await, []);
        script.cluster.start_process(4, Role::Lc);
        let journals = async |script: &Script| {
            let files = script.local_disk(4).files();
            files.iter().all(|path| !path.ends_with(".log"))
        };
        script.until("the local journal has nothing left", journals).await;
        let read = script.read(5, &device, 0, 4096).await;
        assert_eq!(read, Err(Failed::Refused(LccRefusal::NotFound)));
    });
}

/// Rules that these scripts guard, taken out: the script must fail.
#[test] // Proves: W-13.
fn each_planted_bug_is_found() {
    found::each_is_found(&[
        ("W-13/answer-before-the-fact", nothing_is_answered_before_its_fact_and_its_record),
        (
            "W-13/the-local-journal-is-not-synced",
            an_answer_from_a_local_journal_outlives_a_power_cut,
        ),
        (
            "W-13/kept-until-it-is-decided",
            a_local_journal_keeps_what_is_not_on_the_disks_of_the_cluster,
        ),
        ("W-13/written-over-a-local-copy", what_a_local_journal_has_is_laid_by_the_next_owner),
        ("W-13/laid-without-its-fact", what_may_not_be_laid_becomes_a_file_beside),
    ]);
}
