//! Ring 3: some seeds of the whole cluster.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use braid_sim::coverage::REQUIRED;
use braid_sim::{Settings, run_seed};

fn check(seed: u64, settings: Settings) -> u64 {
    let outcome = run_seed(seed, settings);
    assert_eq!(outcome.violation, None, "{}", settings.command(seed));
    assert!(outcome.operations >= settings.operations);
    assert!(outcome.reads > 0);
    outcome.trace
}

fn three() -> Settings {
    Settings::default().with_servers(3)
}

#[test] // Proves: W-3, W-6, W-9, W-10, F-2, F-4, O-3, O-5, O-8.
fn six_servers_lose_nothing() {
    // 16 and 55: appends whose owner loses its lease. 118: silent portions while others lost records.
    for seed in [2, 16, 55, 118] {
        check(seed, Settings { operations: 120, ..Settings::default() });
    }
}

#[test] // Proves: W-3, W-6, W-10, F-4.
fn three_servers_lose_nothing() {
    // 6: writes answered from local journals. 11: a power cut takes the end of a file whose size is known.
    for seed in [1, 4, 6, 7, 11] {
        check(seed, Settings { operations: 120, ..three() });
    }
}

#[test]
fn the_same_seed_leaves_the_same_trace() {
    let settings = Settings { operations: 60, rounds: 1, ..Settings::default() };
    for seed in 11..=12 {
        let run =
            move || std::thread::spawn(move || check(seed, settings)).join().expect("no panic");
        assert_eq!(run(), run(), "seed {seed}");
    }
}

/// Seeds of the fixed list, each of a cluster of 3 to 12 servers with its scheme.
const FIRST: u64 = 900_000;
const COUNT: u64 = 300;

/// A seed that never loses a record proves nothing of lost records: together they reach all states.
#[test] // Proves: W-3, W-6, W-9, W-10, F-2, F-4, O-3, O-5, O-8.
fn three_hundred_seeds_lose_nothing_and_reach_all_required_states() {
    let next = AtomicU64::new(FIRST);
    let reached = Mutex::new(BTreeSet::new());
    let wrong = Mutex::new(Vec::new());
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if FIRST + COUNT <= seed {
            return;
        }
        let settings = Settings { operations: 100, ..Settings::default() }.mixed(seed);
        // A thread of its own: nothing of one seed is left for the next.
        let outcome = std::thread::spawn(move || run_seed(seed, settings)).join();
        let violation = match outcome {
            Ok(outcome) => {
                reached.lock().expect("no holder panics").extend(outcome.reached.into_keys());
                outcome.violation
            }
            Err(_) => Some("a panic".to_owned()),
        };
        if let Some(violation) = violation {
            let line = format!("{violation}: {}", settings.command(seed));
            wrong.lock().expect("no holder panics").push(line);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    let wrong = wrong.into_inner().expect("no holder panics");
    assert!(wrong.is_empty(), "{wrong:#?}");
    let reached = reached.into_inner().expect("no holder panics");
    let never: Vec<_> = REQUIRED.iter().filter(|what| !reached.contains(**what)).collect();
    assert!(never.is_empty(), "never reached: {never:#?}");
}
