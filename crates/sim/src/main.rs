//! `cargo xtask sim`: runs seeds of the simulated cluster.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use braid_env::machine;
use braid_sim::{Settings, run_seed};

const HELP: &str = "\
cargo xtask sim [--seeds N] [--start S] [--seed S] [--ops N] [--servers N] [--twice]

  --seeds N    how many seeds (default 10), from --start (default 1) on
  --seed S     this one only
  --ops N      operations a seed (default 200)
  --servers N  servers, 3 or 6 (default 6)
  --trace      prints what happens
  --twice      each seed twice; both must leave the same trace";

struct Options {
    start: u64,
    count: u64,
    twice: bool,
    settings: Settings,
}

fn parse() -> Option<Options> {
    let mut options = Options { start: 1, count: 10, twice: false, settings: Settings::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
        match argument.as_str() {
            "--seeds" => options.count = number()?,
            "--start" => options.start = number()?,
            "--seed" => (options.start, options.count) = (number()?, 1),
            "--ops" => options.settings.operations = number()?,
            "--servers" => {
                options.settings.servers = u32::try_from(number()?).ok()?;
                if options.settings.servers < 6 {
                    options.settings.scheme = "raid5/2+1".parse().ok()?;
                }
            }
            "--twice" => options.twice = true,
            "--trace" => options.settings.trace = true,
            _ => return None,
        }
    }
    (options.settings.servers >= 3).then_some(options)
}

fn main() -> ExitCode {
    let Some(options) = parse() else {
        eprintln!("{HELP}");
        return ExitCode::from(2);
    };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .without_time()
        .with_ansi(false)
        .init();
    let env = machine::env(Default::default());
    let started = env.now();
    let mut operations = 0;
    let mut reads = 0;
    let mut reached: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in options.start..options.start + options.count {
        // A thread of its own, so that nothing of one seed is left for the next.
        let settings = options.settings;
        let run = || std::thread::spawn(move || run_seed(seed, settings)).join();
        let Ok(outcome) = run() else {
            println!(
                "seed {seed}: panicked; again: cargo xtask sim --seed {seed} --ops {}",
                settings.operations
            );
            return ExitCode::FAILURE;
        };
        if options.twice && run().ok().as_ref() != Some(&outcome) {
            println!("seed {seed}: two runs differ");
            return ExitCode::FAILURE;
        }
        operations += outcome.operations;
        reads += outcome.reads;
        for (what, count) in outcome.reached {
            *reached.entry(what).or_insert(0) += count;
        }
        if let Some(violation) = outcome.violation {
            println!("seed {seed}: {violation}");
            println!("again: cargo xtask sim --seed {seed} --ops {}", settings.operations);
            return ExitCode::FAILURE;
        }
    }
    let seconds = (env.now() - started).max(Duration::from_millis(1)).as_secs_f64();
    println!(
        "{} seeds, {operations} operations, {reads} reads compared, {seconds:.1} s, {:.0} operations/s, no violation",
        options.count,
        operations as f64 / seconds
    );
    for (what, count) in reached {
        println!("  reached {count:>6} times: {what}");
    }
    ExitCode::SUCCESS
}
