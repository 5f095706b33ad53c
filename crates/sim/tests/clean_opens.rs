//! Ring 2: clean opens (O-8), as scripts. Names and places as in `holes.rs`.

use std::time::Duration;

use braid_sim::scripted::{Message, Role, Script, Seen, block};
use braid_terms::GroupLayout;
use braid_wire::io::{IoReply, IoRequest};

const BLOCK: u64 = 4096;

fn is_open(seen: &Seen, from: u32, to: u32) -> bool {
    matches!(&seen.message, Message::ToIo(IoRequest::Open(_))) && (seen.from, seen.to) == (from, to)
}

fn is_prepare(seen: &Seen, from: u32, to: u32) -> bool {
    let prepare = matches!(&seen.message, Message::ToIo(IoRequest::Prepare(_)));
    prepare && (seen.from, seen.to) == (from, to)
}

fn blocks(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| block(*byte)).collect()
}

async fn device_of(script: &Script, owner: u32, bytes: &[u8]) -> GroupLayout {
    let device = script.device(&[1, 2, 3]);
    script.write_at_last(owner, &device, 0, &blocks(bytes)).await;
    script.stable_everywhere(owner, &device).await;
    device
}

/// Ends the LC of X and waits until its sweep has ended: nothing is pending of who is gone.
async fn end_of(script: &Script, owner: u32) {
    script.cluster.kill(owner, Role::Lc);
    let invalid = async |script: &Script| match script.cluster.open_facts().await {
        Some((_, pending)) => pending == 1,
        None => false,
    };
    script.until("X is invalid", invalid).await;
    swept(script).await;
}

async fn swept(script: &Script) {
    let ended = async |script: &Script| matches!(script.cluster.open_facts().await, Some((_, 0)));
    script.until("the sweep ends", ended).await;
}

/// What is read asks the slots that it touches and one of parity, a write all of them.
#[test] // Proves: O-8.
fn a_clean_open_asks_only_what_is_touched() {
    Script::run(101, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        script.applied(&[1, 2, 3]).await;
        end_of(&script, 4).await;
        let opens: Vec<_> =
            (1..=3).map(|server| script.note(move |seen| is_open(seen, 5, server))).collect();
        let counts = || opens.iter().map(|count| count.get()).collect::<Vec<_>>();
        assert!(script.read_at_last(5, &device, 0, 4096).await == block(1));
        assert_eq!(counts(), [1, 0, 1], "opens at D1, D2, P for a read of D1");
        assert!(script.read_at_last(5, &device, BLOCK, 4096).await == block(2));
        assert_eq!(counts(), [1, 1, 1], "opens for a read of D2");
        script.write(5, &device, 0, block(3)).await.expect("N owns it");
        assert_eq!(counts(), [1, 1, 1], "a write opens again what is open");
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[3, 2])).await;
    });
}

/// A clean open counts on nothing that a sweep has not looked at.
///
/// 1. m = 2. X is at server 6. A write {D2, P1, P2} is held and answered.
/// 2. The machines of X and of P1 lose their power; P1 is back, and lost what was only held. D2's I/O
///    server dies.
/// 3. D1 and P1 are in sync by what is known, and agree on the old bytes; P2 alone has the write. While
///    X was not swept, N must not answer from those two.
#[test] // Proves: O-8, W-6.
pub fn nothing_is_clean_while_a_sweep_is_due() {
    Script::run(102, 6, "rs/2+2", async |script| {
        script.move_leader_from(&[2, 3, 6]).await;
        let device = script.device(&[1, 2, 3, 4]);
        script.write_at_last(6, &device, 0, &blocks(&[1, 2])).await;
        script.stable_everywhere(6, &device).await;
        script.applied(&[1, 2, 3, 4]).await;
        script.set_sync_time(&[1, 2, 3, 4], Duration::from_secs(3));
        script.write(6, &device, BLOCK, block(3)).await.expect("a held write");
        script.power_cut(&[3, 6]);
        script.cluster.kill(2, Role::Io);
        script.power_on(&[3]);
        assert!(script.read_at_last(5, &device, BLOCK, 4096).await == block(3), "it is gone");
        script.power_on(&[2, 6]);
        swept(&script).await;
        script.check_all_ways(5, &device, &blocks(&[1, 3])).await;
    });
}

/// A slot that a clean open left out gets a former owner's write.
///
/// 1. X stands still with a write {D2, P} on the wire. It is invalidated and swept; no journal has
///    anything of it.
/// 2. N opens at P and D1 and reads block 0. The prepare reaches D2, which N has not fenced, and P,
///    which refuses it.
/// 3. N reads block 1. D2 keeps what was never decided: it must not be seen.
#[test] // Proves: O-8, O-5.
pub fn what_reached_an_untouched_slot_late_is_not_believed() {
    Script::run(103, 5, "raid5/2+1", async |script| {
        script.move_leader_from(&[4]).await;
        let device = device_of(&script, 4, &[1, 2]).await;
        script.applied(&[1, 2, 3]).await;
        let prepares = script.hold(|seen| is_prepare(seen, 4, 2) || is_prepare(seen, 4, 3));
        let write = script.begin_write(4, &device, BLOCK, block(3));
        prepares.reached(2).await;
        script.cluster.set_paused(4, Role::Lc, true);
        let invalid = async |script: &Script| matches!(script.cluster.open_facts().await, Some((_, pending)) if pending == 1);
        script.until("X is invalid", invalid).await;
        swept(&script).await;
        assert!(script.read_at_last(5, &device, 0, 4096).await == block(1));
        let promised = script.note(|seen| {
            matches!(&seen.message, Message::FromIo(Ok(IoReply::Promised { .. }))) && seen.from == 2
        });
        prepares.release();
        script.counted("D2 promises", &promised, 1).await;
        assert!(script.read_at_last(5, &device, BLOCK, 4096).await == block(2));
        script.cluster.set_paused(4, Role::Lc, false);
        write.await.expect("no panic").expect_err("a former owner's write");
        script.check_all_ways(5, &device, &blocks(&[1, 2])).await;
    });
}
