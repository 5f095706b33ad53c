//! Ring 2: the shadow controller, as scripts; see `holes.rs`.

#[path = "common/found.rs"]
mod found;

use std::time::Duration;

use braid_sim::scripted::{Message, Role, Script, Seen, block};
use braid_terms::{GroupLayout, PortionIndex};
use braid_wire::io::{Fence, IoReply, IoRequest, Report, ShadowMark};
use braid_wire::lcc::LccRequest;

const BLOCK: u64 = 4096;
const SLOW: Duration = Duration::from_secs(20);

fn blocks(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| block(*byte)).collect()
}

fn is_ready(seen: &Seen) -> bool {
    let Message::ToLcc(request) = &seen.message else { return false };
    let ready = matches!(&**request, LccRequest::Shadow { ready, .. } if !ready.is_empty());
    ready && seen.from == 4
}

fn is_shadow_call(seen: &Seen) -> bool {
    let Message::ToLcc(request) = &seen.message else { return false };
    matches!(**request, LccRequest::Shadow { .. }) && seen.from == 4
}

fn is_marks(seen: &Seen) -> bool {
    matches!(seen.message, Message::ToIo(IoRequest::Marks { .. })) && seen.from == 4
}

fn is_decided(seen: &Seen) -> bool {
    matches!(seen.message, Message::ToIo(IoRequest::Decided { .. }))
}

/// A device on servers 1, 2 and 3 that X made at server 4, with one block for each byte, all stable.
async fn device_of(script: &Script, bytes: &[u8]) -> GroupLayout {
    let device = script.device(&[1, 2, 3]);
    script.write_at_last(4, &device, 0, &blocks(bytes)).await;
    script.stable_everywhere(4, &device).await;
    device
}

/// What slot K, at server K, keeps of a device.
async fn report(script: &Script, slot: u8, device: &GroupLayout, fence: Fence) -> Option<Report> {
    let server = u32::from(slot);
    let Some(IoReply::Status(status)) = script.ask_io(server, &IoRequest::Status).await else {
        return None;
    };
    let fence = Fence {
        group: device.group(),
        slot: PortionIndex(slot),
        incarnation: status.incarnation,
        ..fence
    };
    match script.ask_io(server, &IoRequest::Inspect { fence }).await {
        Some(IoReply::Report(report)) => Some(*report),
        _ => None,
    }
}

/// A shadow finishes what a dead writer had decided, and no more.
///
/// 1. X's write {D1, P} is decided and answered; on no disk. X tells its shadow, and its marks to the
///    portions are under way for long. X dies.
/// 2. D1 and P hear from the shadow that it is decided. They do not hear that it is stable, and apply
///    nothing.
/// 3. All machines lose their power. What was only held is gone at all of them: the old bytes are whole.
#[test] // Proves: W-4.
fn a_shadow_says_what_a_dead_writer_had_decided() {
    Script::run(80, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let before = script.describe(4, &device).await.expect("X owns it");
        script.set_sync_time(&[1, 2, 3], SLOW);
        let ready = script.note(is_ready);
        let held = script.hold(is_marks);
        let finished = script.note(is_decided);
        script.write(4, &device, 0, block(3)).await.expect("a held write");
        script.counted("the shadow is told", &ready, 1).await;
        held.reached(1).await;
        let after = script.describe(4, &device).await.expect("X owns it");
        assert!(before.decided < after.decided);
        script.cluster.kill(4, Role::Lc);
        script.counted("the shadow speaks", &finished, 2).await;
        let fence = Fence {
            group: device.group(),
            slot: PortionIndex(1),
            grant: after.decided.grant,
            incarnation: Default::default(),
        };
        for slot in [1, 3] {
            let heard = async |script: &Script| {
                let report = report(script, slot, &device, fence).await;
                report.is_some_and(|report| report.decided == after.decided)
            };
            script.until("a portion hears what is decided", heard).await;
            let report = report(&script, slot, &device, fence).await.expect("it answers");
            assert!(report.stable < after.decided, "the shadow says what is stable");
        }
        script.power_cut(&[1, 2, 3]);
        script.power_on(&[1, 2, 3]);
        held.release();
        script.cluster.start_process(4, Role::Lc);
        script.check_all_ways(5, &device, &blocks(&[1, 2])).await;
    });
}

/// Hole 26: a writer that is silent only towards its shadow, and a new owner.
///
/// 1. X's write is decided; X stands still.
/// 2. N opens the device, keeps the write, and writes the same block anew.
/// 3. What a shadow of X says arrives late. It names X's grant and is refused.
#[test] // Proves: W-4, O-5.
fn hole_26_a_shadow_is_refused_once_a_newer_owner_has_opened() {
    Script::run(81, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        script.write(4, &device, 0, block(3)).await.expect("a held write");
        let decided = script.describe(4, &device).await.expect("X owns it").decided;
        script.cluster.set_paused(4, Role::Lc, true);
        let read = script.read_at_last(5, &device, 0, 8192).await;
        assert!(read == blocks(&[3, 2]), "an answered write is gone");
        script.write_at_last(5, &device, 0, &block(9)).await;
        for slot in [1, 3] {
            let Some(IoReply::Status(status)) = script.ask_io(slot, &IoRequest::Status).await
            else {
                panic!("the I/O server of {slot} answers");
            };
            let mark = ShadowMark {
                group: device.group(),
                slot: PortionIndex(u8::try_from(slot).expect("three slots")),
                grant: decided.grant,
                decided,
            };
            let incarnation = status.incarnation;
            let late = IoRequest::Decided { incarnation, groups: vec![mark] };
            let Some(IoReply::Marked { refused, .. }) = script.ask_io(slot, &late).await else {
                panic!("the I/O server of {slot} answers");
            };
            assert_eq!(refused, [device.group()], "a late mark counts at {slot}");
        }
        script.cluster.set_paused(4, Role::Lc, false);
        script.check_all_ways(5, &device, &blocks(&[9, 2])).await;
    });
}

/// What shadows cost: no message for a write, and none where nothing is written.
#[test] // Proves: W-4.
fn shadows_cost_no_message_for_a_write() {
    Script::run(82, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, &[1, 2]).await;
        let calls = script.note(is_shadow_call);
        for round in 0..100 {
            script.write(4, &device, 0, block(round)).await.expect("a held write");
            script.write(4, &device, BLOCK, block(round)).await.expect("a held write");
        }
        assert!(calls.get() <= 20, "{} messages for 200 writes", calls.get());
        script.stable_everywhere(4, &device).await;
        let quiet = async |script: &Script, seconds| {
            let end = script.simulation.elapsed() + Duration::from_secs(seconds);
            let is_over = async |script: &Script| end <= script.simulation.elapsed();
            script.until("some time passes", is_over).await;
        };
        quiet(&script, 3).await;
        let before = calls.get();
        quiet(&script, 20).await;
        assert_eq!(calls.get(), before, "an idle cluster tells shadows something");
    });
}

/// A rule that these scripts guard, taken out: the script must fail.
#[test] // Proves: W-4.
fn the_planted_bug_is_found() {
    found::each_is_found(&[(
        "W-4/the-shadow-says-stable",
        a_shadow_says_what_a_dead_writer_had_decided,
    )]);
}
