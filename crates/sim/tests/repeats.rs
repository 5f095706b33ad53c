//! Ring 2: changes of bytes that a client sends again because it got no answer (N-3), as scripts. Names
//! and places as in `holes.rs`; A is the client without an answer, B another one.

#[path = "common/found.rs"]
mod found;

use braid_sim::scripted::{Failed, Message, Role, Script, Seen, block};
use braid_terms::{AckMode, GroupLayout, WriteNumber};
use braid_wire::io::IoRequest;
use braid_wire::lcc::{FileChange, FileOp, LccRefusal, LccReply, OperationId};

fn blocks(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| block(*byte)).collect()
}

fn is_prepare(seen: &Seen, from: u32, to: u32) -> bool {
    let prepare = matches!(&seen.message, Message::ToIo(IoRequest::Prepare(_)));
    prepare && (seen.from, seen.to) == (from, to)
}

/// The only change of a client.
fn change_of(client: u64, again: bool) -> FileChange {
    let operation = OperationId { client, counter: 1 };
    FileChange { operation, answered: 1, since: WriteNumber::NONE, again }
}

fn write_op(device: &GroupLayout, at: u64, append: bool) -> FileOp {
    let (home, ack) = (device.group(), AckMode::Cluster);
    FileOp::Write { at, home, fresh: false, stable: false, append, ack }
}

/// Writes block 0; A and B do so, whose number the byte is, too.
async fn write(script: &Script, server: u32, device: &GroupLayout, client: u8, again: bool) {
    let change = change_of(u64::from(client), again);
    let op = write_op(device, 0, false);
    let done = script.change_at_last(server, device, op, change, block(client)).await;
    assert!(matches!(done, Ok(LccReply::Written { at: 0, .. })), "{done:?}");
}

async fn device_of(script: &Script, owner: u32, servers: &[u32], bytes: &[u8]) -> GroupLayout {
    let device = script.device(servers);
    script.write_at_last(owner, &device, 0, &blocks(bytes)).await;
    script.stable_everywhere(owner, &device).await;
    device
}

/// Ends the LC of an owner and waits until its sweep has ended: the next open is clean.
async fn end_of(script: &Script, owner: u32) {
    script.cluster.kill(owner, Role::Lc);
    for left in [1, 0] {
        let swept = async |script: &Script| {
            script.cluster.open_facts().await.is_some_and(|(_, pending)| pending == left)
        };
        script.until("the sweep goes on", swept).await;
    }
}

/// A's write is done, and its answer is lost (simulator, seed 2246 of three servers).
///
/// 1. B sees it and writes the same block. A sends its write again: B's bytes stay.
/// 2. So also where the owner was killed meanwhile: the next one finds the record in the journals,
/// 3. or, where that was applied and dropped, in the headers, also where it asks one parity slot alone.
#[test] // Proves: N-3, W-9.
fn a_write_that_is_sent_again_is_done_once() {
    Script::run(131, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2, 3], &[1, 2]).await;
        write(&script, 4, &device, 3, false).await;
        assert!(script.read_at_last(4, &device, 0, 4096).await == block(3));
        write(&script, 4, &device, 4, false).await;
        let mut owner = 4;
        for what in ["kept", "applied", "clean"] {
            write(&script, owner, &device, 3, true).await;
            assert!(script.read_at_last(owner, &device, 0, 4096).await == block(4), "{what}");
            let next = 9 - owner;
            match what {
                "kept" => script.cluster.kill(owner, Role::Lc),
                "applied" => {
                    script.stable_everywhere(owner, &device).await;
                    script.applied(&[1, 2, 3]).await;
                    script.cluster.kill(owner, Role::Lc);
                }
                _ => end_of(&script, owner).await,
            }
            write(&script, next, &device, 3, true).await;
            assert!(script.read_at_last(next, &device, 0, 4096).await == block(4), "{what}");
            script.cluster.start_process(owner, Role::Lc);
            owner = next;
        }
        script.check_all_ways(owner, &device, &blocks(&[4, 2])).await;
    });
}

/// A sends its write again while the first is under way: the second is answered with it.
#[test] // Proves: N-3.
fn a_repeat_waits_for_what_is_under_way() {
    Script::run(132, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2, 3], &[1, 2]).await;
        let before = script.describe(4, &device).await.expect("X owns it").decided;
        let prepares = script.hold(|seen| is_prepare(seen, 4, 1));
        let begin = |again: bool| {
            let (script, device) = (script.clone(), device.clone());
            tokio::task::spawn_local(async move { write(&script, 4, &device, 3, again).await })
        };
        let first = begin(false);
        prepares.reached(1).await;
        let second = begin(true);
        let later = script.simulation.elapsed() + std::time::Duration::from_millis(200);
        script.until("it waits", async |script| later <= script.simulation.elapsed()).await;
        prepares.release();
        first.await.expect("it is answered");
        second.await.expect("it is answered");
        let after = script.describe(4, &device).await.expect("X owns it").decided;
        assert_eq!(after.sequence, before.sequence + 1, "it was done twice");
    });
}

/// An append whose answer was lost is there once, and its answer is that of the first.
#[test] // Proves: N-3.
fn an_append_that_is_sent_again_is_there_once() {
    Script::run(133, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2, 3], &[1]).await;
        let append = async |server, client: u8, again| {
            let op = write_op(&device, 0, true);
            let change = change_of(u64::from(client), again);
            match script.change_at_last(server, &device, op, change, block(client)).await {
                Ok(LccReply::Written { at, .. }) => at / 4096,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!([append(4, 2, false).await, append(4, 3, false).await], [1, 2]);
        assert_eq!(append(4, 2, true).await, 1);
        script.cluster.kill(4, Role::Lc);
        assert_eq!([append(5, 3, true).await, append(5, 2, true).await], [2, 1]);
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[1, 2, 3])).await;
    });
}

/// A cut and a punch are done once: what was written since stays.
#[test] // Proves: N-3.
fn a_cut_that_is_sent_again_takes_nothing_more() {
    Script::run(134, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2, 3], &[1, 2, 3, 4]).await;
        let cut = FileOp::Truncate { length: 8192, home: device.group() };
        let punch = FileOp::Punch { at: 0, length: 8192 };
        let all = [(2, cut, (2 * 4096, 7)), (3, punch, (0, 8))];
        for (client, op, _) in &all {
            let change = change_of(*client, false);
            let done = script.change_at_last(4, &device, op.clone(), change, Vec::new()).await;
            assert!(matches!(done, Ok(LccReply::Length(_))), "{done:?}");
        }
        for (_, _, (at, byte)) in all.iter().cloned() {
            script.write(4, &device, at, block(byte)).await.expect("X owns it");
        }
        script.cluster.kill(4, Role::Lc);
        for (client, op, _) in &all {
            let change = change_of(*client, true);
            let done = script.change_at_last(5, &device, op.clone(), change, Vec::new()).await;
            assert!(matches!(done, Ok(LccReply::Length(_))), "{done:?}");
        }
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[8, 0, 7])).await;
    });
}

/// A slot that was away when A wrote is the only one left: it was told when it came back.
#[test] // Proves: N-3, F-4.
fn a_slot_that_rejoins_is_told_what_was_done() {
    Script::run(135, 5, "raid1/2", async |script| {
        let device = device_of(&script, 4, &[1, 2], &[1]).await;
        script.cluster.kill(2, Role::Io);
        write(&script, 4, &device, 3, false).await;
        script.suspected().await;
        script.cluster.start_process(2, Role::Io);
        script.healed().await;
        write(&script, 4, &device, 4, false).await;
        script.stable_everywhere(4, &device).await;
        script.cluster.kill(1, Role::Io);
        script.cluster.kill(4, Role::Lc);
        write(&script, 5, &device, 3, true).await;
        assert!(script.read_at_last(5, &device, 0, 4096).await == block(4));
        script.cluster.start_process(1, Role::Io);
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &block(4)).await;
    });
}

/// More clients without an answer than slots keep: the next owner refuses what may have been done, and
/// does what it knows was not.
#[test] // Proves: N-3.
fn what_may_have_been_done_and_is_forgotten_is_refused() {
    Script::run(136, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2, 3], &[1, 2]).await;
        for client in 3..33 {
            write(&script, 4, &device, client, false).await;
        }
        let since = script.describe(4, &device).await.expect("X owns it").decided;
        // The owner itself keeps more of them.
        write(&script, 4, &device, 3, true).await;
        script.stable_everywhere(4, &device).await;
        script.applied(&[1, 2, 3]).await;
        script.cluster.kill(4, Role::Lc);
        let op = write_op(&device, 0, false);
        let change = change_of(3, true);
        let done = script.change_at_last(5, &device, op.clone(), change, block(3)).await;
        assert!(matches!(done, Err(LccRefusal::Forgotten)), "{done:?}");
        assert!(script.read_at_last(5, &device, 0, 4096).await == block(32));
        write(&script, 5, &device, 32, true).await;
        let change = FileChange { since, ..change_of(40, true) };
        let done = script.change_at_last(5, &device, op, change, block(40)).await;
        assert!(done.is_ok(), "{done:?}");
        assert!(script.read_at_last(5, &device, 0, 4096).await == block(40));
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[40, 2])).await;
    });
}

/// A write that was refused before it was done is done when it is asked for again.
#[test] // Proves: N-3.
fn what_was_not_done_is_done_when_it_is_sent_again() {
    Script::run(137, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2, 3], &[1, 2]).await;
        let prepares = script.hold(|seen| (1..=3).any(|to| is_prepare(seen, 4, to)));
        let (of, client) = (device.clone(), script.clone());
        let first = tokio::task::spawn_local(async move {
            let op = write_op(&of, 0, false);
            client.change(4, &of, op, change_of(3, false), block(3)).await
        });
        prepares.reached(2).await;
        script.cluster.kill(4, Role::Lc);
        prepares.release();
        let first = first.await.expect("no panic");
        assert!(matches!(first, Err(Failed::Unanswered)), "{first:?}");
        write(&script, 5, &device, 3, true).await;
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[3, 2])).await;
    });
}

/// A rule that these scripts guard, taken out: the script must fail.
#[test] // Proves: N-3.
fn the_planted_bug_is_found() {
    found::each_is_found(&[(
        "N-3/a-repeated-write-is-done-again",
        a_write_that_is_sent_again_is_done_once,
    )]);
}
