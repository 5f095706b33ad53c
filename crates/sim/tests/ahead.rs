//! Ring 2: writes that are answered from memory, as scripts; see `holes.rs`.

#[path = "common/found.rs"]
mod found;

use std::time::Duration;

use braid_sim::scripted::{Failed, Message, Role, Script, Seen, block};
use braid_terms::GroupLayout;
use braid_wire::io::IoRequest;
use braid_wire::lcc::LccRefusal;
use tokio::time::timeout;

const BLOCK: u64 = 4096;

fn blocks(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| block(*byte)).collect()
}

fn is_prepare(seen: &Seen, from: u32, to: u32) -> bool {
    let prepare = matches!(&seen.message, Message::ToIo(IoRequest::Prepare(_)));
    prepare && (seen.from, seen.to) == (from, to)
}

/// A device on servers 1, 2 and 3 that X made at server 4, with one block for each byte, all stable.
async fn device_of(script: &Script, bytes: &[u8]) -> GroupLayout {
    let device = script.device(&[1, 2, 3]);
    script.write_at_last(4, &device, 0, &blocks(bytes)).await;
    script.stable_everywhere(4, &device).await;
    device
}

/// Mode `memory`: the answer comes before any portion promised, and who looks sees what was answered.
///
/// 1. X sends a write to D1 and P; both are under way for long. It is answered all the same, and so is
///    a second one, behind the end of the device.
/// 2. A read waits, and so does a sync; then both are there.
#[test] // Proves: W-12, W-3.
fn what_is_answered_from_memory_is_seen_by_the_next_look() {
    Script::run(70, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let held = script.hold(|seen| is_prepare(seen, 4, 1) || is_prepare(seen, 4, 3));
        script.write_ahead(4, &device, 0, block(3)).await.expect("answered from memory");
        let longer = script.write_ahead(4, &device, 2 * BLOCK, block(4)).await;
        assert_eq!(longer.expect("answered from memory").bytes, 3 * BLOCK);
        held.reached(4).await;
        let (reader, of) = (script.clone(), device.clone());
        let mut read =
            tokio::task::spawn_local(async move { reader.read(4, &of, 0, 3 * 4096).await });
        let early = timeout(Duration::from_millis(300), &mut read).await;
        assert!(early.is_err(), "read before it was decided: {early:?}");
        held.release();
        let read = read.await.expect("no panic").expect("X serves");
        assert!(read == blocks(&[3, 2, 4]), "what was answered is not seen");
        script.sync(4, &device).await.expect("all can sync");
        script.check_all_ways(4, &device, &blocks(&[3, 2, 4])).await;
    });
}

/// Mode `memory`: the owner's end takes what only it had, and the next sync says so.
///
/// 1. A write is answered from X's memory; it reached no portion. X dies.
/// 2. N serves the old bytes. A sync of the client that was answered is refused.
#[test] // Proves: W-9.
fn what_only_memory_had_is_told_as_lost() {
    Script::run(71, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let held = script.hold(|seen| is_prepare(seen, 4, 1) || is_prepare(seen, 4, 3));
        let answered = script.write_ahead(4, &device, 0, block(3)).await;
        let answered = answered.expect("answered from memory").number;
        held.reached(2).await;
        script.cluster.kill(4, Role::Lc);
        let read = script.read_at_last(5, &device, 0, 8192).await;
        assert!(read == blocks(&[1, 2]), "no portion promised it");
        let told = script.sync_of(5, &device, answered).await;
        assert_eq!(told, Err(Failed::Refused(LccRefusal::HeldLost)));
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[1, 2])).await;
    });
}

/// Mode `memory`: what reached the portions before the owner died is as good as any write.
///
/// 1. A write is answered from X's memory and promised by all. X dies before it hears of that.
/// 2. N keeps it, and a sync of the client that was answered succeeds.
#[test] // Proves: W-6, W-9.
fn what_was_promised_outlives_the_memory_it_was_answered_from() {
    Script::run(72, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let promises = script.hold(|seen| {
            matches!(seen.message, Message::FromIo(Ok(braid_wire::io::IoReply::Promised { .. })))
                && seen.to == 4
        });
        let answered = script.write_ahead(4, &device, 0, block(3)).await;
        let answered = answered.expect("answered from memory").number;
        promises.reached(2).await;
        script.cluster.kill(4, Role::Lc);
        let read = script.read_at_last(5, &device, 0, 8192).await;
        assert!(read == blocks(&[3, 2]), "all had promised it");
        let told = script.sync_of(5, &device, answered).await;
        assert_eq!(told, Ok(()));
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[3, 2])).await;
    });
}

/// A rule that these scripts guard, taken out: the script must fail.
#[test] // Proves: W-12.
fn the_planted_bug_is_found() {
    found::each_is_found(&[(
        "W-12/what-was-answered-is-not-seen",
        what_is_answered_from_memory_is_seen_by_the_next_look,
    )]);
}
