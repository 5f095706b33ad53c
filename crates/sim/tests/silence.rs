//! Ring 2: machines that fall silent without a word, and how long that is felt.
//! `docs/simulator.md` lists them.

use std::time::Duration;

use braid_sim::scripted::{Script, block};
use tokio::task::spawn_local;

/// Groups of one owner with a portion at the silent machine: with an attempt to reach it for each,
/// one after the other, the last would wait for twelve seconds.
const GROUPS: u8 = 30;

/// What the source of a stall may be: 1.5 s until a silent machine counts as gone, an attempt to reach
/// it, 0.7 s for a restart, a fact.
const STALL_MAX: Duration = Duration::from_secs(4);

/// A machine that died without a word is waited for by all groups at once, not by one after the other.
///
/// 1. X at server 4 owns many devices, all with D1 at server 1.
/// 2. Server 1 is silent: connections to it are neither taken nor refused.
/// 3. All devices are written at once, and once more.
#[test] // Proves: W-3, F-2.
fn groups_do_not_wait_for_a_silent_machine_one_after_the_other() {
    Script::run(70, 5, "raid5/2+1", async |script| {
        script.move_leader_from(&[1]).await;
        let devices: Vec<_> = (0..GROUPS).map(|_| script.device(&[1, 2, 3])).collect();
        for device in &devices {
            script.write_at_last(4, device, 0, &block(1)).await;
        }
        script.isolate(1);
        for round in 2..4 {
            let (start, bytes) = (script.simulation.elapsed(), block(round));
            let writes = devices.iter().cloned().map(|device| {
                let (script, bytes) = (script.clone(), bytes.clone());
                spawn_local(async move { script.write_at_last(4, &device, 0, &bytes).await })
            });
            for write in writes.collect::<Vec<_>>() {
                write.await.expect("no write panics");
            }
            let stall = script.simulation.elapsed() - start;
            assert!(stall < STALL_MAX, "write {round} took {stall:?}");
        }
        script.simulation.heal_all();
        script.check_all_ways(4, &devices[0], &block(3)).await;
    });
}
