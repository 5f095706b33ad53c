//! Ring 3: some seeds of the whole cluster.

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
