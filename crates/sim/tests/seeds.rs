//! Ring 3: some seeds of the whole cluster.

use std::collections::BTreeSet;
use std::thread::JoinHandle;

use braid_sim::coverage::REQUIRED;
use braid_sim::{Settings, run_seed};

type Reached = BTreeSet<&'static str>;

fn check(seed: u64, settings: Settings) -> (u64, Reached) {
    let outcome = run_seed(seed, settings);
    assert_eq!(outcome.violation, None, "{}", settings.command(seed));
    assert!(outcome.operations >= settings.operations);
    assert!(outcome.reads > 0);
    (outcome.trace, outcome.reached.into_keys().collect())
}

/// Runs seeds one after the other in a thread; which states they reached.
fn run(seeds: &'static [u64], settings: Settings) -> JoinHandle<Reached> {
    std::thread::spawn(move || {
        let mut all = Reached::new();
        for seed in seeds {
            let (_, reached) = check(*seed, settings);
            let new: Vec<_> = REQUIRED.iter().filter(|state| reached.contains(*state)).collect();
            let new: Vec<_> = new.into_iter().filter(|state| !all.contains(*state)).collect();
            println!("{}: first to reach {new:?}", settings.command(*seed));
            all.extend(reached);
        }
        all
    })
}

/// Seeds of six servers.
///
/// 16 and 55: appends whose owner loses its lease. 118: silent portions while others lost records.
const SIX: &[u64] = &[2, 16, 55, 118];

/// Seeds of three servers.
///
/// 6: writes answered from local journals. 11: a power cut takes the end of a file whose size is known.
const THREE: &[u64] = &[1, 4, 6, 7, 11, 20, 25, 31];

fn three() -> Settings {
    Settings::default().with_servers(3)
}

/// Nothing is lost, and the seeds are worth it: each state that must be reached is.
#[test] // Proves: W-3, W-6, W-9, W-10, F-2, F-4, O-3, O-5, O-8.
fn fixed_seeds_lose_nothing_and_reach_every_state() {
    let six = run(SIX, Settings { operations: 120, ..Settings::default() });
    let three = run(THREE, Settings { operations: 120, ..three() });
    let mut reached = three.join().expect("three servers lose nothing");
    reached.extend(six.join().expect("six servers lose nothing"));
    let never: Vec<_> = REQUIRED.iter().filter(|state| !reached.contains(*state)).collect();
    assert!(never.is_empty(), "never reached: {never:#?}");
}

#[test]
fn the_same_seed_leaves_the_same_trace() {
    let settings = Settings { operations: 60, rounds: 1, ..Settings::default() };
    for seed in 11..=12 {
        let run =
            move || std::thread::spawn(move || check(seed, settings).0).join().expect("no panic");
        assert_eq!(run(), run(), "seed {seed}");
    }
}
