//! `cargo xtask sim`: runs seeds of the simulated cluster.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use braid_env::machine;
use braid_sim::coverage::{RARE, REQUIRED};
use braid_sim::planted::{ALL, Planted};
use braid_sim::{Outcome, Settings, run_seed};

const HELP: &str = "\
cargo xtask sim [--seeds N] [--start S] [--seed S] [--ops N] [--servers N | --mixed] [--twice]

  --seeds N    how many seeds (default 10), from --start (default 1) on
  --seed S     this one only
  --ops N      operations a seed (default 200)
  --servers N  servers, 3 to 12 (default 6); files are raid5/2+1 on fewer than 6, else rs/4+2
  --scheme S   scheme of files, after --servers: raid0/K, raid1/N, raid5/K+1, raid6/K+2, rs/K+M
  --mixed      servers (3 to 12) and scheme (m = 0 to 3) follow from the seed
  --clients N  clients (default 3)
  --rounds N   rounds of faults (default 2)
  --trace      prints what happens
  --planted    plants each bug of the list in turn; how many seeds until it is found
  --plant NAME plants one bug
  --twice      each seed twice; both must leave the same trace";

struct Options {
    start: u64,
    count: u64,
    twice: bool,
    mixed: bool,
    all_planted: bool,
    settings: Settings,
}

impl Options {
    fn settings(&self, seed: u64) -> Settings {
        if self.mixed { self.settings.mixed(seed) } else { self.settings }
    }
}

fn parse() -> Option<Options> {
    let mut options = Options {
        start: 1,
        count: 10,
        twice: false,
        mixed: false,
        all_planted: false,
        settings: Settings::default(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
        match argument.as_str() {
            "--seeds" => options.count = number()?,
            "--start" => options.start = number()?,
            "--seed" => (options.start, options.count) = (number()?, 1),
            "--ops" => options.settings.operations = number()?,
            "--servers" => {
                let servers = u32::try_from(number()?).ok().filter(|n| (3..=12).contains(n))?;
                options.settings = options.settings.with_servers(servers);
            }
            "--scheme" => options.settings.scheme = arguments.next()?.parse().ok()?,
            "--mixed" => options.mixed = true,
            "--clients" => options.settings.clients = u32::try_from(number()?).ok()?,
            "--rounds" => options.settings.rounds = u32::try_from(number()?).ok()?,
            "--twice" => options.twice = true,
            "--planted" => options.all_planted = true,
            "--plant" => options.settings.planted = Some(Planted::find(&arguments.next()?)?),
            "--trace" => options.settings.trace = true,
            _ => return None,
        }
    }
    let Settings { servers, scheme, .. } = options.settings;
    (scheme.portions() <= servers as usize).then_some(options)
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
    if (options.all_planted || options.settings.planted.is_some()) && !cfg!(feature = "planted") {
        eprintln!("this build cannot plant bugs: it needs the feature `planted`");
        return ExitCode::from(2);
    }
    if options.all_planted {
        return find_planted(&options);
    }
    let mut total = Total::default();
    for seed in options.start..options.start + options.count {
        let outcome = run(seed, &options);
        if let Err(wrong) = total.add(outcome) {
            println!("seed {seed}: {wrong}");
            println!("  again: {}", options.settings(seed).command(seed));
        }
    }
    let seconds = (env.now() - started).max(Duration::from_millis(1)).as_secs_f64();
    println!(
        "{} seeds, {} failed; {} operations, {} reads compared, {seconds:.1} s, {:.2} seeds/s, {:.0} operations/s",
        options.count,
        total.failed,
        total.operations,
        total.reads,
        options.count as f64 / seconds,
        total.operations as f64 / seconds
    );
    for (what, count) in &total.reached {
        println!("  reached {count:>6} times: {what}");
    }
    // Builds without the feature count only what happens around the roles.
    if cfg!(feature = "planted") {
        for what in REQUIRED.iter().chain(RARE).filter(|what| !total.reached.contains_key(**what)) {
            println!("  NEVER reached: {what}");
        }
    }
    if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plants each bug in turn and runs seeds, of three and of six servers, until it is found.
fn find_planted(options: &Options) -> ExitCode {
    // A planted bug may well end in an assertion: that counts as found.
    std::panic::set_hook(Box::new(|_| {}));
    println!("| rule | what was broken | script | seeds until found | found as |");
    println!("|---|---|---|---|---|");
    let mut missed = 0;
    for planted in ALL {
        let settings = Settings { planted: Some(*planted), ..options.settings };
        let found =
            (options.start..options.start + options.count).zip(1_u64..).find_map(|(seed, nth)| {
                let settings = settings.with_servers(if nth.is_multiple_of(2) { 3 } else { 6 });
                let outcome = std::thread::spawn(move || run_seed(seed, settings)).join();
                let violation = outcome.map_or(Some("an assertion".to_owned()), |o| o.violation)?;
                Some((nth, violation))
            });
        let what = format!("| {} | {} | `{}`", planted.rule(), planted.what, planted.script);
        match found {
            Some((nth, violation)) => {
                let short: String = violation.chars().take(100).collect();
                println!("{what} | {nth} | {} |", short.replace('|', "/"));
            }
            None => {
                missed += 1;
                println!("{what} | not in {} | |", options.count);
            }
        }
    }
    println!("{missed} of {} found by their scripts alone, not by these seeds", ALL.len());
    ExitCode::SUCCESS
}

/// Runs a seed in a thread of its own, so that nothing of it is left for the next.
///
/// Errors: it panicked, or two runs differ.
fn run(seed: u64, options: &Options) -> Result<Outcome, String> {
    let settings = options.settings(seed);
    let once = || std::thread::spawn(move || run_seed(seed, settings)).join();
    let outcome = once().map_err(|_| "panicked".to_owned())?;
    if options.twice && once().ok().as_ref() != Some(&outcome) {
        return Err("two runs differ".to_owned());
    }
    Ok(outcome)
}

/// What all seeds came to.
#[derive(Default)]
struct Total {
    failed: u64,
    operations: u64,
    reads: u64,
    reached: BTreeMap<&'static str, u64>,
}

impl Total {
    /// Errors: what was wrong with this seed.
    fn add(&mut self, outcome: Result<Outcome, String>) -> Result<(), String> {
        let outcome = outcome.inspect_err(|_| self.failed += 1)?;
        self.operations += outcome.operations;
        self.reads += outcome.reads;
        for (what, count) in outcome.reached {
            *self.reached.entry(what).or_insert(0) += count;
        }
        match outcome.violation {
            Some(violation) => {
                self.failed += 1;
                Err(violation)
            }
            None => Ok(()),
        }
    }
}
