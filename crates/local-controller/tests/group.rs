//! Ring 2: one group over real I/O servers in the simulated world, against a model in memory.
#![allow(clippy::unwrap_used)]

mod common;

use std::rc::Rc;
use std::time::Duration;

use braid_env::simulated::{Simulation, run};
use braid_local_controller::{DeviceWrite, Group, GroupWrite, Lcc};
use braid_terms::{DataType, GroupLayout, PolicyQuestion};
use bytes::Bytes;
use common::Cluster;
use tokio::time::{sleep, timeout};

struct Random(u64);

impl Random {
    fn next(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next(256) as u8).collect()
    }
}

async fn layout(lcc: &Rc<Lcc>, strip_size: u32) -> GroupLayout {
    let question = PolicyQuestion::default();
    let mut layouts = lcc.new_layouts(DataType::File, &question, 1).await.unwrap();
    let mut layout = layouts.pop().unwrap();
    layout.strip_size = strip_size;
    layout
}

async fn write(group: &Rc<Group>, model: &mut Vec<u8>, at: usize, bytes: Vec<u8>) {
    if model.len() < at + bytes.len() {
        model.resize(at + bytes.len(), 0);
    }
    model[at..at + bytes.len()].copy_from_slice(&bytes);
    let write = DeviceWrite { device_index: 0, at: at as u64, bytes: Bytes::from(bytes) };
    let change = GroupWrite { writes: vec![write], ..GroupWrite::default() };
    let written = timeout(Duration::from_secs(30), group.write(change)).await;
    written.expect("a write stands still").unwrap();
}

async fn check(group: &Rc<Group>, model: &[u8]) {
    assert_eq!(group.length(0), model.len() as u64);
    let read = timeout(Duration::from_secs(30), group.read(0, 0, u64::MAX)).await;
    let read = read.expect("a read stands still").unwrap().into_bytes();
    assert_eq!(read.len(), model.len());
    if let Some(at) = (0..model.len()).find(|at| read[*at] != model[*at]) {
        panic!("byte {at} of {} is wrong", model.len());
    }
}

async fn scribble(group: &Rc<Group>, model: &mut Vec<u8>, random: &mut Random, count: usize) {
    for _ in 0..count {
        let at = random.next(model.len() as u64 + 20_000) as usize;
        let length = match random.next(4) {
            0 => 1 + random.next(100),
            1 => 4096,
            2 => 1 + random.next(20_000),
            _ => 1 + random.next(400_000),
        };
        let bytes = random.bytes(length as usize);
        write(group, model, at, bytes).await;
    }
}

async fn repaired(cluster: &Cluster) {
    let done = timeout(Duration::from_secs(120), async {
        while cluster.coordinator.suspects() > 0 {
            sleep(Duration::from_millis(50)).await;
        }
    });
    done.await.expect("facts stay open");
}

fn schemes() -> [(&'static str, u32, u32); 6] {
    [
        ("raid0/2", 4096, 2),
        ("raid1/3", 65536, 3),
        ("raid5/2+1", 512, 3),
        ("rs/4+2", 65536, 6),
        ("rs/4+2", 4096, 6),
        ("rs/2+2", 1024, 5),
    ]
}

#[test] // Proves: W-3, G-1.
fn what_is_written_is_read() {
    for (scheme, strip, servers) in schemes() {
        run(1, async |simulation: Simulation| {
            let cluster = Cluster::start(&simulation, servers, scheme).await;
            let lc = cluster.start_lc(1).await;
            let lcc = &lc.lccs()[0];
            let layout = layout(lcc, strip).await;
            let group = lcc.create_group(&layout, layout.group()).unwrap();
            let mut random = Random(3);
            let mut model = Vec::new();
            scribble(&group, &mut model, &mut random, 30).await;
            check(&group, &model).await;
            group.sync().await.unwrap();
            assert_eq!(group.marks().0, group.marks().1);
            check(&group, &model).await;
        });
    }
}

#[test] // Proves: W-6, O-5.
fn another_owner_finds_everything() {
    for (scheme, strip, servers) in schemes() {
        run(2, async |simulation: Simulation| {
            let cluster = Cluster::start(&simulation, servers, scheme).await;
            let lc = cluster.start_lc(1).await;
            let layout = layout(&lc.lccs()[0], strip).await;
            let group = lc.lccs()[0].create_group(&layout, layout.group()).unwrap();
            let mut random = Random(5);
            let mut model = Vec::new();
            scribble(&group, &mut model, &mut random, 10).await;
            drop(lc);
            // The same server starts anew: the LCC of before is invalid.
            let lc = cluster.start_lc(1).await;
            let group = lc.lccs()[0].group(&layout).await.unwrap();
            check(&group, &model).await;
            scribble(&group, &mut model, &mut random, 10).await;
            check(&group, &model).await;
            assert_eq!(cluster.coordinator.suspects(), 0);
        });
    }
}

#[test] // Proves: F-2, F-4, W-5.
fn killed_and_returned_portions_lose_nothing() {
    for (seed, (scheme, strip, servers)) in schemes().into_iter().skip(1).enumerate() {
        let scheme_parity = scheme.parse::<braid_terms::RaidScheme>().unwrap().parity() as u32;
        run(seed as u64, async |simulation: Simulation| {
            let cluster = Cluster::start(&simulation, servers, scheme).await;
            let lc = cluster.start_lc(1).await;
            let layout = layout(&lc.lccs()[0], strip).await;
            let group = lc.lccs()[0].create_group(&layout, layout.group()).unwrap();
            let mut random = Random(seed as u64);
            let mut model = Vec::new();
            scribble(&group, &mut model, &mut random, 10).await;
            for round in 0..3 {
                let out: Vec<u32> = (0..scheme_parity)
                    .map(|at| layout.disks[(at as usize + 2 * round) % layout.disks.len()].0)
                    .collect();
                for number in &out {
                    if round == 1 { cluster.power_cut(*number) } else { cluster.kill_io(*number) }
                }
                scribble(&group, &mut model, &mut random, 6).await;
                check(&group, &model).await;
                assert!(cluster.coordinator.suspects() > 0);
                for number in &out {
                    if round == 1 { cluster.power_on(*number) } else { cluster.start_io(*number) }
                }
                scribble(&group, &mut model, &mut random, 4).await;
                check(&group, &model).await;
                repaired(&cluster).await;
                // The answer to the close is on its way.
                sleep(Duration::from_millis(100)).await;
                assert!(group.absent().is_empty());
                check(&group, &model).await;
            }
        });
    }
}

#[test] // Proves: W-5.
fn a_short_restart_costs_no_fact() {
    run(7, async |simulation: Simulation| {
        let cluster = Cluster::start(&simulation, 6, "rs/4+2").await;
        let lc = cluster.start_lc(1).await;
        let layout = layout(&lc.lccs()[0], 65536).await;
        let group = lc.lccs()[0].create_group(&layout, layout.group()).unwrap();
        let mut random = Random(9);
        let mut model = Vec::new();
        scribble(&group, &mut model, &mut random, 5).await;
        for number in 1..=6 {
            cluster.kill_io(number);
            cluster.start_io(number);
            scribble(&group, &mut model, &mut random, 3).await;
        }
        check(&group, &model).await;
        assert_eq!(cluster.coordinator.suspects(), 0);
    });
}

#[test] // Proves: F-6, S-2.
fn a_flipped_bit_is_never_returned_and_is_repaired() {
    run(11, async |simulation: Simulation| {
        let cluster = Cluster::start(&simulation, 6, "rs/4+2").await;
        let lc = cluster.start_lc(1).await;
        let layout = layout(&lc.lccs()[0], 65536).await;
        let group = lc.lccs()[0].create_group(&layout, layout.group()).unwrap();
        let mut random = Random(13);
        let mut model = Vec::new();
        let bytes = random.bytes(1 << 20);
        write(&group, &mut model, 0, bytes).await;
        group.sync().await.unwrap();
        sleep(Duration::from_secs(15)).await;
        let disk = simulation.machine(layout.disks[1].0).disk("/disk").unwrap();
        let name = layout.portion_name(0, braid_terms::PortionIndex(2)).path();
        disk.flip_bit(&name, 4096 * 20 + 77, 3);
        check(&group, &model).await;
        sleep(Duration::from_millis(100)).await;
        repaired(&cluster).await;
        check(&group, &model).await;
        assert!(lc.lccs()[0].status().blocks_rebuilt > 0);
    });
}

#[test] // Proves: O-5, W-6.
fn an_old_owner_is_fenced() {
    run(17, async |simulation: Simulation| {
        let cluster = Cluster::start(&simulation, 6, "rs/4+2").await;
        let old = cluster.start_lc(1).await;
        let layout = layout(&old.lccs()[0], 65536).await;
        let group = old.lccs()[0].create_group(&layout, layout.group()).unwrap();
        let mut random = Random(19);
        let mut model = Vec::new();
        scribble(&group, &mut model, &mut random, 4).await;
        let new = cluster.start_lc(1).await;
        let taken = new.lccs()[0].group(&layout).await.unwrap();
        check(&taken, &model).await;
        let write = DeviceWrite { device_index: 0, at: 0, bytes: Bytes::from(vec![1; 4096]) };
        let change = GroupWrite { writes: vec![write], ..GroupWrite::default() };
        let refused = timeout(Duration::from_secs(20), group.write(change)).await.expect("an end");
        assert!(refused.is_err());
        check(&taken, &model).await;
    });
}

#[test] // Proves: F-4, W-9.
fn a_portion_that_returns_before_the_disks_synced_is_repaired() {
    // The promises that a removed slot gave under its old incarnation once held the stable mark
    // back for ever when it joined again, and with it the repair that waited for the mark.
    run(23, async |simulation: Simulation| {
        let cluster = Cluster::start(&simulation, 6, "rs/4+2").await;
        let lc = cluster.start_lc(1).await;
        let layout = layout(&lc.lccs()[0], 65536).await;
        let group = lc.lccs()[0].create_group(&layout, layout.group()).unwrap();
        for number in 1..=6 {
            let disk = simulation.machine(number).disk("/disk").unwrap();
            disk.set_sync_latency(Duration::from_secs(3)..Duration::from_secs(4));
        }
        let mut random = Random(29);
        let mut model = Vec::new();
        scribble(&group, &mut model, &mut random, 5).await;
        let out = layout.disks[0].0;
        cluster.kill_io(out);
        scribble(&group, &mut model, &mut random, 2).await;
        assert_eq!(cluster.coordinator.suspects(), 1);
        cluster.start_io(out);
        let mended = timeout(Duration::from_secs(60), async {
            while cluster.coordinator.suspects() > 0 {
                let _ = group.repair().await;
                sleep(Duration::from_millis(10)).await;
            }
        });
        mended.await.expect("the repair stands still");
        check(&group, &model).await;
    });
}

#[test] // Proves: F-4, G-9.
fn a_small_file_that_is_on_few_portions_is_repaired() {
    // The data portions of a file of two blocks, but for the first, were never written: the repair
    // of its parity once asked them what was missed, was refused, and never came to an end.
    run(31, async |simulation: Simulation| {
        let cluster = Cluster::start(&simulation, 6, "rs/4+2").await;
        let lc = cluster.start_lc(1).await;
        let layout = layout(&lc.lccs()[0], 65536).await;
        let group = lc.lccs()[0].create_group(&layout, layout.group()).unwrap();
        let mut random = Random(37);
        let mut model = Vec::new();
        let out = layout.disks[5].0;
        cluster.kill_io(out);
        let bytes = random.bytes(5000);
        write(&group, &mut model, 0, bytes).await;
        cluster.start_io(out);
        let bytes = random.bytes(5000);
        write(&group, &mut model, 0, bytes).await;
        repaired(&cluster).await;
        check(&group, &model).await;
    });
}

#[test] // Proves: F-4, W-5.
fn a_portion_in_sync_that_was_restarted_unused_does_not_stop_a_repair() {
    // The owner's connection to a restarted I/O server was stale, nobody used it, and the repair of
    // another portion failed on it for ever.
    run(41, async |simulation: Simulation| {
        let cluster = Cluster::start(&simulation, 6, "rs/4+2").await;
        let lc = cluster.start_lc(1).await;
        let layout = layout(&lc.lccs()[0], 65536).await;
        let group = lc.lccs()[0].create_group(&layout, layout.group()).unwrap();
        let mut random = Random(43);
        let mut model = Vec::new();
        let bytes = random.bytes(1 << 20);
        write(&group, &mut model, 0, bytes).await;
        group.sync().await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let (first, second) = (layout.disks[0].0, layout.disks[1].0);
        cluster.kill_io(first);
        cluster.kill_io(second);
        // Only the first data portion and the parity are used.
        let bytes = random.bytes(4096);
        write(&group, &mut model, 0, bytes).await;
        cluster.start_io(first);
        cluster.start_io(second);
        repaired(&cluster).await;
        check(&group, &model).await;
    });
}

#[test] // Proves: W-3, G-8.
fn two_portions_that_fail_at_once_are_not_both_removed() {
    // Each of the two was removed because the other was still counted: one of three was left, and
    // nobody could rebuild the two. Found by the simulator: three servers, seed 4.
    run(47, async |simulation: Simulation| {
        let cluster = Cluster::start(&simulation, 3, "raid5/2+1").await;
        let lc = cluster.start_lc(1).await;
        let layout = layout(&lc.lccs()[0], 4096).await;
        let group = lc.lccs()[0].create_group(&layout, layout.group()).unwrap();
        let mut random = Random(53);
        let mut model = Vec::new();
        scribble(&group, &mut model, &mut random, 3).await;
        let (one, other) = (layout.disks[0].0, layout.disks[1].0);
        cluster.kill_io(one);
        cluster.kill_io(other);
        // Whole stripes: nothing old is to be read first.
        let (writer, bytes) = (group.clone(), random.bytes(16_384));
        let written = bytes.clone();
        let waiting = tokio::task::spawn_local(async move {
            let write = DeviceWrite { device_index: 0, at: 0, bytes: Bytes::from(written) };
            writer.write(GroupWrite { writes: vec![write], ..GroupWrite::default() }).await
        });
        sleep(Duration::from_secs(10)).await;
        assert!(!waiting.is_finished(), "below the quorum a write waits");
        let facts = cluster.coordinator.facts.borrow().clone();
        let own = facts.values().filter(|fact| fact.kind.group() == Some(layout.group()));
        assert!(own.count() <= 1);
        cluster.start_io(one);
        cluster.start_io(other);
        let done = timeout(Duration::from_secs(60), waiting).await;
        done.expect("the write stands still").unwrap().unwrap();
        if model.len() < bytes.len() {
            model.resize(bytes.len(), 0);
        }
        model[..bytes.len()].copy_from_slice(&bytes);
        repaired(&cluster).await;
        check(&group, &model).await;
    });
}

#[test] // Proves: W-6, F-2.
fn a_group_that_is_only_read_costs_no_fact_while_a_portion_is_away() {
    run(43, async |simulation: Simulation| {
        let cluster = Cluster::start(&simulation, 6, "rs/4+2").await;
        let old = cluster.start_lc(1).await;
        let layout = layout(&old.lccs()[0], 65536).await;
        let group = old.lccs()[0].create_group(&layout, layout.group()).unwrap();
        let mut random = Random(47);
        let mut model = Vec::new();
        scribble(&group, &mut model, &mut random, 6).await;
        group.sync().await.unwrap();
        // The slots hear that all of it is stable.
        sleep(Duration::from_secs(3)).await;
        let out = layout.disks[1].0;
        cluster.kill_io(out);
        let new = cluster.start_lc(1).await;
        let taken = new.lccs()[0].group(&layout).await.unwrap();
        check(&taken, &model).await;
        assert_eq!(cluster.coordinator.suspects(), 0);
        // It returns, and is read again: without it the data could not be computed any more.
        cluster.start_io(out);
        sleep(Duration::from_secs(5)).await;
        check(&taken, &model).await;
        sleep(Duration::from_secs(1)).await;
        cluster.kill_io(layout.disks[0].0);
        cluster.kill_io(layout.disks[2].0);
        check(&taken, &model).await;
        cluster.start_io(layout.disks[0].0);
        cluster.start_io(layout.disks[2].0);
        sleep(Duration::from_secs(2)).await;
        // A write is another matter: it is not answered before the log says who lacks it.
        cluster.kill_io(out);
        scribble(&taken, &mut model, &mut random, 3).await;
        assert!(0 < cluster.coordinator.suspects());
        cluster.start_io(out);
        repaired(&cluster).await;
        check(&taken, &model).await;
    });
}

/// Data ranges as `seek` tells them.
async fn data_of(group: &Rc<Group>, length: u64) -> Vec<std::ops::Range<u64>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < length {
        let data = group.seek(0, at, false).await.unwrap();
        assert!(at <= data && data <= length);
        if data == length {
            break;
        }
        let hole = group.seek(0, data, true).await.unwrap();
        assert!(data < hole && hole <= length);
        found.push(data..hole);
        at = hole;
    }
    found
}

#[test] // Proves: K1.
fn holes_are_where_nothing_was_written() {
    for (scheme, strip, servers) in schemes() {
        let scheme_parity = scheme.parse::<braid_terms::RaidScheme>().unwrap().parity() as u32;
        run(1, async |simulation: Simulation| {
            let cluster = Cluster::start(&simulation, servers, scheme).await;
            let lc = cluster.start_lc(1).await;
            let layout = layout(&lc.lccs()[0], strip).await;
            let group = lc.lccs()[0].create_group(&layout, layout.group()).unwrap();
            let mut model = Vec::new();
            let written = [(0, 100), (3 << 20, 4096), (5 << 20, 300_000), (20_000_000, 1)];
            for (at, length) in written {
                write(&group, &mut model, at, vec![7; length]).await;
            }
            let length = model.len() as u64;
            let check_all = async |is_fine: bool| {
                let found = data_of(&group, length).await;
                for (at, byte) in model.iter().enumerate().filter(|(_, byte)| **byte != 0) {
                    let at = at as u64;
                    assert!(
                        found.iter().any(|data| data.contains(&at)),
                        "{scheme}: {byte} at {at}"
                    );
                }
                if is_fine && 4096 <= strip {
                    let block = |at: usize| (at / 4096 * 4096) as u64;
                    let blocks = written
                        .map(|(at, size)| block(at)..(block(at + size - 1) + 4096).min(length));
                    assert_eq!(found, blocks, "{scheme} with strips of {strip} bytes");
                }
                assert!(found.iter().map(|data| data.end - data.start).sum::<u64>() <= length);
            };
            check_all(true).await;
            for disk in &layout.disks[..scheme_parity as usize] {
                cluster.kill_io(disk.0);
            }
            check_all(scheme_parity == 0).await;
            // A long hole ends where a search does, or is found.
            let far = DeviceWrite { device_index: 0, at: 1 << 40, bytes: Bytes::from_static(b"x") };
            let change = GroupWrite { writes: vec![far], ..GroupWrite::default() };
            group.write(change).await.unwrap();
            assert!(group.seek(0, 21_000_000, false).await.unwrap() <= 1 << 40);
            assert_eq!(group.seek(0, 1 << 40, false).await.unwrap(), 1 << 40);
            assert_eq!(group.seek(0, (1 << 40) + 1, true).await.unwrap(), (1 << 40) + 1);
        });
    }
}

#[test] // Proves: DESIGN 13: a stable write is one round trip.
fn a_stable_write_asks_for_its_sync_behind_its_prepares() {
    run(1, async |simulation: Simulation| {
        let cluster = Cluster::start(&simulation, 6, "rs/4+2").await;
        let lc = cluster.start_lc(1).await;
        let layout = layout(&lc.lccs()[0], 65536).await;
        let group = lc.lccs()[0].create_group(&layout, layout.group()).unwrap();
        write(&group, &mut Vec::new(), 0, vec![1; 300_000]).await;
        group.sync().await.unwrap();
        let way = Duration::from_millis(100);
        simulation.set_latency(way..way + Duration::from_micros(1));
        let mut took = Vec::new();
        for stable_soon in [false, true] {
            let begun = simulation.elapsed();
            let bytes = Bytes::from(vec![2; 4096]);
            let writes = vec![DeviceWrite { device_index: 0, at: 0, bytes }];
            let change = GroupWrite { writes, stable_soon, ..GroupWrite::default() };
            let number = group.write(change).await.unwrap();
            group.stable(number).await.unwrap();
            took.push(simulation.elapsed() - begun);
        }
        // Both read the old row first.
        assert!(6 * way <= took[0] && took[0] < 7 * way, "{took:?}");
        assert!(4 * way <= took[1] && took[1] < 5 * way, "{took:?}");
    });
}
