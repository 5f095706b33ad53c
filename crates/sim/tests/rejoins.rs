//! Ring 2: slots that are removed and come back more than once, as scripts; see `holes.rs`.

#[path = "common/found.rs"]
mod found;

use braid_sim::scripted::{Role, Script, block};
use braid_terms::GroupLayout;

const BLOCK: u64 = 4096;

fn blocks(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| block(*byte)).collect()
}

/// A device on servers 1, 2 and 3 that X made at server 4, with one block for each byte, applied.
async fn device_of(script: &Script, bytes: &[u8]) -> GroupLayout {
    let device = script.device(&[1, 2, 3]);
    script.write_at_last(4, &device, 0, &blocks(bytes)).await;
    script.stable_everywhere(4, &device).await;
    script.applied(&[1, 2, 3]).await;
    device
}

/// Waits until the owner, asked at server 4, says that so many slots are under facts.
async fn absent(script: &Script, device: &GroupLayout, count: usize) {
    let is_so = async |script: &Script| {
        let group = script.describe(4, device).await;
        group.is_some_and(|group| group.absent.len() == count)
    };
    script.until("so many slots are absent", is_so).await;
}

/// What a third slot missed is known to who was there; a slot that rejoins must be told before it is
/// left alone with it (seed 401734).
///
/// 1. Slots 2 and 3 are away while X writes block 0.
/// 2. Slot 3 rejoins and is whole again. Slot 1, which was there all the time, is away then.
/// 3. X writes block 1. Slot 2 rejoins with only slot 3 to say what it missed.
#[test] // Proves: F-2, F-4.
fn what_others_missed_is_told_to_a_slot_that_rejoins() {
    Script::run(150, 5, "raid1/3", async |script| {
        let device = device_of(&script, &[1, 2, 3]).await;
        script.cluster.kill(2, Role::Io);
        script.cluster.kill(3, Role::Io);
        script.write_at_last(4, &device, 0, &block(11)).await;
        absent(&script, &device, 2).await;
        script.cluster.start_process(3, Role::Io);
        absent(&script, &device, 1).await;
        script.cluster.kill(1, Role::Io);
        script.write_at_last(4, &device, BLOCK, &block(12)).await;
        absent(&script, &device, 2).await;
        script.cluster.start_process(2, Role::Io);
        absent(&script, &device, 1).await;
        // Only slot 2 is left.
        script.cluster.kill(3, Role::Io);
        let read = script.read_at_last(4, &device, 0, 3 * BLOCK as u32).await;
        assert!(read == blocks(&[11, 12, 3]), "slot 2 serves what it had");
        script.cluster.start_process(1, Role::Io);
        script.cluster.start_process(3, Role::Io);
        script.check_all_ways(4, &device, &blocks(&[11, 12, 3])).await;
    });
}

/// The rule that this script guards, taken out: the script must fail.
#[test] // Proves: F-2, F-4.
fn the_planted_bug_is_found() {
    found::each_is_found(&[(
        "F-2/what-others-missed-is-not-told",
        what_others_missed_is_told_to_a_slot_that_rejoins,
    )]);
}
