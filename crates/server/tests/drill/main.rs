//! The drill: real processes die, stand still, are cut off and rot under clients that remember every
//! byte.
//!
//! ```text
//! clients      put, write, cut, rename, remove, read and compare -------------------------------->
//! the drill    fault - taken back - healed - all look at everything - fault - ...
//! at the end   a new client reads everything; scrub; stop and start; a new client reads everything
//! ```
//! `cargo test` runs it for some seconds; `cargo xtask drill --minutes 60` for as long as wanted, and
//! writes a report. A seed repeats faults and what clients do, as far as real processes repeat.
//! # Failure
//! Any of: a byte that is not as it was acknowledged, an error at a client (but for lack of space
//! while a disk is full), a cluster that does not heal, with `BRAID_DRILL_LIMITS` a longer stall than
//! allowed. The logs of all roles and clients are kept beside the report then.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod random;
mod report;
mod workload;
mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use braid_client::ClusterFile;
use braid_env::machine;
use faults::{Fault, Kind, harm, heal, pause, possible};
use random::Random;
use report::{Done, Report};
use tokio::time::{Instant, interval};
use workload::{Model, Shared, Way, put_still_files, verify, work};
use world::{SERVERS, World};

/// Clients with the library; one more has a mount.
const CLIENTS: u64 = 3;

/// Files that nobody changes.
const STILL_FILES: u64 = 6;

struct Settings {
    time: Duration,
    seed: u64,
    report: Option<PathBuf>,
    /// Only faults whose names have one of them; all if there is none.
    words: Vec<String>,
    has_limits: bool,
    has_mount: bool,
}

impl Settings {
    fn read() -> Self {
        let value = |name: &str| std::env::var(format!("BRAID_DRILL_{name}")).ok();
        let number = |name, usual| value(name).and_then(|text| text.parse().ok()).unwrap_or(usual);
        let words = value("ONLY").unwrap_or_default();
        Self {
            time: Duration::from_secs(number("SECONDS", 12)),
            seed: number("SEED", u64::from(std::process::id())),
            report: value("REPORT").map(PathBuf::from),
            words: words.split(',').filter(|w| !w.is_empty()).map(str::to_owned).collect(),
            has_limits: value("LIMITS").is_some(),
            has_mount: value("MOUNT").is_some(),
        }
    }

    /// Longest time for which a fault stays, in milliseconds.
    fn longest(&self) -> u64 {
        if self.time < Duration::from_secs(60) { 1500 } else { 8000 }
    }
}

/// How long a thread that has nothing to wait for does not run: a stall of the machine.
#[derive(Default)]
struct Pulse {
    longest_us: AtomicU64,
    stop: AtomicBool,
}

impl Pulse {
    fn beat(&self) {
        let every = Duration::from_millis(10);
        let beating = machine::run(async {
            let mut ticks = interval(every);
            while !self.stop.load(Ordering::Relaxed) {
                let due = ticks.tick().await;
                let late = due.elapsed().as_micros() as u64;
                self.longest_us.fetch_max(late, Ordering::Relaxed);
            }
        });
        beating.unwrap();
    }

    fn take(&self) -> Duration {
        Duration::from_micros(self.longest_us.swap(0, Ordering::Relaxed))
    }
}

/// All that the thread of the faults has.
struct Drill<'a> {
    settings: &'a Settings,
    world: &'a mut World,
    file: &'a ClusterFile,
    still: &'a Model,
    shared: &'a Shared,
    pulse: &'a Pulse,
    clients: u64,
    start: Instant,
    done: Vec<Done>,
}

impl Drill<'_> {
    /// Faults of all kinds, in an order that the seed gives, until the time is over.
    ///
    /// Errors: what must not be.
    fn run(&mut self, faults: &[Fault]) -> Result<(), String> {
        let mut random = Random::new(self.settings.seed);
        self.all_look("start")?;
        loop {
            let mut pass = faults.to_vec();
            random.shuffle(&mut pass);
            for fault in pass {
                if self.settings.time <= self.start.elapsed() || self.shared.is_stopped() {
                    return Ok(());
                }
                pause(200 + random.below(800));
                self.one(fault, &mut random)?;
            }
        }
    }

    fn one(&mut self, fault: Fault, random: &mut Random) -> Result<(), String> {
        let at = self.start.elapsed();
        let longest = self.settings.longest();
        let still: Vec<String> = self.still.keys().cloned().collect();
        self.pulse.take();
        self.shared.begin_fault(fault.name);
        let what = harm(self.world, fault, random, longest, &still, self.shared);
        let what = what.map_err(|error| format!("{}: {error}", fault.name))?;
        let back = Instant::now();
        heal(self.world).map_err(|error| format!("{}, {what}: {error}", fault.name))?;
        let took = back.elapsed();
        let limit = fault.limit.filter(|_| self.settings.has_limits);
        let (stall, machine_stall) = (self.shared.end_fault(limit), self.pulse.take());
        let done = Done { at, name: fault.name, what, took, stall, machine_stall };
        println!("{}", done.row());
        self.done.push(done);
        if fault.kind == Kind::FlipBits {
            verify(self.file, std::slice::from_ref(self.still), self.shared);
        }
        self.all_look(fault.name)?;
        if fault.kind == Kind::FullDisk {
            // Controllers hear of its room with a renewal of its lease and one of theirs.
            pause(ROOM_KNOWN.saturating_sub(back.elapsed()).as_millis() as u64);
        }
        self.shared.may_be_full.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until every client has looked at everything that it has.
    fn all_look(&self, after: &str) -> Result<(), String> {
        self.shared.begin_round();
        for _ in 0..1200 {
            if self.shared.round_is_done(self.clients) || self.shared.is_stopped() {
                return Ok(());
            }
            pause(100);
        }
        Err(format!("{after}: a client does not come back within two minutes"))
    }
}

/// Two renewals after a disk has room again, and what a busy machine adds.
const ROOM_KNOWN: Duration = Duration::from_secs(3);

/// Everything is there for a client that comes new, on the disks, and after a stop and a start.
fn look_at_all(world: &mut World, file: &ClusterFile, models: &[Model], shared: &Shared) {
    verify(file, models, shared);
    // What is written anew is so a little later, and a portion that is slow to answer is asked again.
    let scrubbed = |arguments: &[&str], is_good: fn(&str) -> bool| {
        let mut text = String::new();
        for _ in 0..20 {
            let output = world.cluster.run(arguments);
            let said = [output.stdout, output.stderr].concat();
            text = String::from_utf8_lossy(&said).into_owned();
            if is_good(&text) {
                return;
            }
            pause(500);
        }
        shared.violate(format!("at the end, {arguments:?}: {text}"));
    };
    scrubbed(&["scrub", "--wait"], |text| text.contains(", 0 bad"));
    scrubbed(&["scrub", "/"], |text| {
        let is_whole = !text.contains("could not be compared") && !text.contains("does not fit");
        text.contains(", 0 bad") && is_whole
    });
    world.restart();
    if let Err(error) = heal(world) {
        shared.violate(format!("after the end, and a start: {error}"));
    }
    verify(file, models, shared);
}

/// Logs of all roles and clients, for who looks for the reason.
fn keep_logs(world: &World, folder: &Path) {
    let _ = fs::remove_dir_all(folder);
    for server in 1..=SERVERS {
        let from = world.cluster.path(&format!("braid-data/server-{server}/log"));
        let to = folder.join(format!("server-{server}"));
        let _ = fs::create_dir_all(&to);
        for entry in fs::read_dir(from).into_iter().flatten().flatten() {
            let _ = fs::copy(entry.path(), to.join(entry.file_name()));
        }
    }
    for number in 0..=CLIENTS {
        let name = format!("client-{number}.log");
        let _ = fs::copy(world.cluster.path(&name), folder.join(&name));
    }
    let _ = fs::copy(world.cluster.path("client/mount.log"), folder.join("mount.log"));
    let _ = fs::write(folder.join("status.json"), format!("{:#}", world.status()));
    println!("logs: {}", folder.display());
}

#[test] // Proves: O-3, O-4, O-5, W-3, W-5, W-6, F-2, F-4, F-6, S-4.
fn nothing_is_lost_while_processes_and_servers_die() {
    let settings = Settings::read();
    println!("drill: seed {}, {} s", settings.seed, settings.time.as_secs());
    let mut random = Random::new(!settings.seed);
    let mut world = World::start(1 + random.below(SERVERS), settings.has_mount);
    world.skipped.iter().for_each(|what| println!("skipped: {what}"));
    let skipped = world.skipped.clone();
    let has_namespaces = world.has_namespaces();
    let text = fs::read_to_string(world.cluster.path("braid-data/client.toml")).unwrap();
    let file = ClusterFile::parse(&text).unwrap();
    let still = put_still_files(&file, STILL_FILES, &mut random);
    let faults = possible(&world, &settings.words);
    assert!(!faults.is_empty(), "no fault has such a name");
    let mut ways = vec![Way::Library; CLIENTS as usize];
    ways.extend(world.mount().map(|directory| Way::Mount(directory.to_owned())));
    let clients = ways.len() as u64;
    let (shared, pulse) = (Shared::new(), Pulse::default());
    let mut done = Vec::new();
    let mut models = vec![still.clone()];
    let start = Instant::now();
    std::thread::scope(|scope| {
        let beating = scope.spawn(|| pulse.beat());
        let (shared, seed, file) = (&shared, settings.seed, &file);
        let working: Vec<_> = (0..)
            .zip(ways)
            .map(|(number, way)| {
                let log = world.cluster.path(&format!("client-{number}.log"));
                scope.spawn(move || work(way, file, (number, seed), shared, log))
            })
            .collect();
        let mut drill = Drill {
            settings: &settings,
            world: &mut world,
            file,
            still: &still,
            shared,
            pulse: &pulse,
            clients,
            start,
            done: Vec::new(),
        };
        // What fails here must end the clients too.
        let run = std::panic::AssertUnwindSafe(|| drill.run(&faults));
        match std::panic::catch_unwind(run) {
            Ok(Ok(())) => {}
            Ok(Err(what)) => shared.violate(what),
            Err(panic) => {
                shared.violate(panic.downcast_ref::<String>().cloned().unwrap_or_default());
            }
        }
        done = std::mem::take(&mut drill.done);
        shared.stop();
        if shared.is_violated() {
            // One that waits in the kernel would wait on.
            world.abort_mount();
        }
        models.extend(working.into_iter().map(|worker| worker.join().unwrap()));
        pulse.stop.store(true, Ordering::Relaxed);
        beating.join().unwrap();
    });
    if !shared.is_violated() {
        look_at_all(&mut world, &file, &models, &shared);
    }
    let report = Report {
        seed: settings.seed,
        took: start.elapsed(),
        clients,
        has_namespaces,
        has_limits: settings.has_limits,
        faults: &faults,
        done: &done,
        skipped: &skipped,
        shared: &shared,
    };
    let text = report.text();
    println!("{text}");
    if let Some(path) = &settings.report {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &text).unwrap();
        if shared.is_violated() {
            keep_logs(&world, &path.with_extension("logs"));
        }
    }
    assert!(!shared.is_violated(), "seed {}\n{}", settings.seed, world.cluster.logs());
    assert!(0 < shared.operations.load(Ordering::Relaxed));
}
