//! Ring 4: the same I/O server on the simulator's disks, with power cuts at random moments.
#![allow(clippy::unwrap_used)]

mod common;

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use braid_env::simulated;
use braid_terms::WriteNumber;
use common::*;

const NONE: WriteNumber = WriteNumber::NONE;
const WRITES: u64 = 60;

fn numbered(sequence: u64) -> WriteNumber {
    if sequence == 0 { NONE } else { number(1, sequence) }
}

/// Where and how long write `sequence` is: small ones overwrite, large ones are new.
fn place(sequence: u64) -> (u64, u64) {
    if sequence.is_multiple_of(3) { (1000 + sequence * 32, 32) } else { (sequence % 7, 1) }
}

async fn put(server: &Started, synced: Rc<Cell<u64>>, promised: Rc<Cell<u64>>) {
    let owner = Owner::new(server, 7, 1, 1);
    for sequence in 1..=WRITES {
        let (first, count) = place(sequence);
        let bytes = blocks(sequence * 100, count);
        let record =
            record(number(1, sequence), numbered(sequence - 1), vec![write(first, &bytes)]);
        let stable = numbered(synced.get());
        owner.prepare(record, &bytes, numbered(sequence - 1), stable).await.unwrap();
        promised.set(sequence);
        if sequence % 5 == 0 {
            owner.sync().await;
            synced.set(sequence);
        }
        if sequence % 16 == 0 {
            server.checkpoint().await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test] // Proves: W-9, S-3.
fn a_power_cut_at_any_moment_leaves_a_prefix_with_all_that_was_synced() {
    for seed in 0..30 {
        simulated::run(seed, async |world| {
            let machine = world.machine(1);
            machine.add_disk("/disk", 1 << 30);
            format(&machine.env(), Path::new("/disk")).await;
            let (synced, promised) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let counts = (synced.clone(), promised.clone());
            world.spawn_process(&machine, "io", move |env| async move {
                let server = start(&env, Path::new("/disk"), 1).await;
                put(&server, counts.0, counts.1).await;
            });
            tokio::time::sleep(Duration::from_millis(world.random_below(400))).await;
            machine.power_cut();
            machine.power_on();
            let process = world.spawn_process(&machine, "io", move |env| async move {
                let server = start(&env, Path::new("/disk"), 2).await;
                let owner = Owner::new(&server, 7, 2, 2);
                let report = owner.open().await.unwrap();
                let last = report.last.sequence;
                assert_eq!(report.damaged_after, None, "seed {seed}");
                assert!(synced.get() <= last && last <= promised.get() + 1, "seed {seed}: {last}");
                let mut expect = vec![vec![0; 4096]; 3000];
                for sequence in 1..=last {
                    let (first, count) = place(sequence);
                    for (index, block) in blocks(sequence * 100, count).chunks(4096).enumerate() {
                        expect[usize::try_from(first).unwrap() + index] = block.to_vec();
                    }
                }
                if 0 < last {
                    let found = owner.read(report.last, 0, 3000).await.unwrap();
                    assert!(found == expect.concat(), "seed {seed}: another content");
                }
            });
            process.ended().await;
        });
    }
}
