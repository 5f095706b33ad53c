//! The drill: real processes die, stand still and rot under clients that remember every byte.
//!
//! `cargo test` runs it for some seconds; `cargo xtask drill --minutes 60` for as long as wanted, and
//! writes a report. What it found is repeated with `--seed`, as far as real processes repeat.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use braid_client::{Client, ClusterFile, EntryAttributes, PutOptions, RenameOptions};
use braid_env::machine;
use common::{Cluster, kill};
use tokio::time::Instant;

const SERVERS: u64 = 6;
const WORKERS: u64 = 3;
const FILES: u64 = 24;

/// Upper ends of the histogram's columns, in milliseconds.
const COLUMNS: [u64; 6] = [100, 500, 1000, 2000, 4000, u64::MAX];

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }

    fn length(&mut self) -> u64 {
        [0, 100, 3000, 5000, 70_000, 300_000][self.below(6) as usize]
    }
}

/// What is seen by all.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    operations: AtomicU64,
    acknowledged_bytes: AtomicU64,
    /// The fault under way, and how long operations took by fault.
    fault: Mutex<&'static str>,
    stalls: Mutex<BTreeMap<&'static str, [u64; COLUMNS.len()]>>,
    wrong: Mutex<Vec<String>>,
}

impl Shared {
    fn took(&self, time: Duration) {
        self.operations.fetch_add(1, Ordering::Relaxed);
        let fault = *self.fault.lock().unwrap();
        let column = COLUMNS.iter().position(|end| time.as_millis() as u64 <= *end).unwrap();
        self.stalls.lock().unwrap().entry(fault).or_default()[column] += 1;
    }

    fn is_wrong(&self) -> bool {
        !self.wrong.lock().unwrap().is_empty()
    }
}

/// One client with names of its own; it knows what each file must hold.
struct Worker {
    client: Client,
    folder: String,
    model: BTreeMap<String, Vec<u8>>,
    random: Random,
}

impl Worker {
    async fn step(&mut self) -> Result<u64, String> {
        let random = &mut self.random;
        let path = format!("{}/{}", self.folder, random.below(FILES));
        let told = |error: braid_client::Error| format!("{path}: {error}");
        let Some(content) = self.model.get_mut(&path) else {
            let length = random.length();
            let bytes = random.bytes(length);
            let options = PutOptions { stable: random.below(4) == 0, ..PutOptions::default() };
            self.client.put_bytes(&path, bytes.clone().into(), options).await.map_err(told)?;
            self.model.insert(path, bytes);
            return Ok(length);
        };
        match random.below(10) {
            0..4 => {
                let at = random.below(content.len() as u64 + 5000) as usize;
                let length = 1 + random.length();
                let bytes = random.bytes(length);
                let file = self.client.open(&path).await.map_err(told)?;
                file.write(at as u64, bytes.clone().into()).await.map_err(told)?;
                file.flush().await.map_err(told)?;
                content.resize(content.len().max(at + bytes.len()), 0);
                content[at..at + bytes.len()].copy_from_slice(&bytes);
                Ok(length)
            }
            4 => {
                let size = random.below(content.len() as u64 + 2000);
                self.client.truncate(&path, size).await.map_err(told)?;
                content.resize(size as usize, 0);
                Ok(0)
            }
            5 => {
                let to = format!("{}/{}", self.folder, random.below(FILES));
                let renamed = self.client.rename(&path, &to, RenameOptions::default()).await;
                renamed.map_err(|error| format!("{path} to {to}: {error}"))?;
                let content = self.model.remove(&path).unwrap();
                self.model.insert(to, content);
                Ok(0)
            }
            6 => {
                self.client.unlink(&path).await.map_err(told)?;
                self.model.remove(&path);
                Ok(0)
            }
            _ => self.check(&path).await.map(|()| 0),
        }
    }

    async fn check(&self, path: &str) -> Result<(), String> {
        let found =
            self.client.get_bytes(path).await.map_err(|error| format!("{path}: {error}"))?;
        let expected = &self.model[path];
        if found == expected.as_slice() {
            return Ok(());
        }
        let at = found.iter().zip(expected).position(|(found, expected)| found != expected);
        let (have, want) = (found.len(), expected.len());
        Err(format!("{path}: {have} bytes instead of {want}, the first other one at {at:?}"))
    }
}

fn work(file: &ClusterFile, number: u64, seed: u64, shared: &Shared) {
    let result: Result<(), String> = machine::run(async {
        let env = machine::env(Default::default());
        let client = Client::connect(env, file).await.map_err(|error| error.to_string())?;
        let folder = format!("/{number}");
        client
            .mkdir_all(&folder, &EntryAttributes::default())
            .await
            .map_err(|error| error.to_string())?;
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number + 1));
        let mut worker = Worker { client, folder, model: BTreeMap::new(), random };
        while !shared.stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            let bytes = worker.step().await?;
            shared.acknowledged_bytes.fetch_add(bytes, Ordering::Relaxed);
            shared.took(start.elapsed());
        }
        for path in worker.model.keys() {
            worker.check(path).await?;
        }
        Ok(())
    })
    .unwrap();
    if let Err(what) = result {
        shared.stop.store(true, Ordering::Relaxed);
        shared.wrong.lock().unwrap().push(what);
    }
}

fn pause(milliseconds: u64) {
    let seconds = format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000);
    let _ = Command::new("sleep").arg(seconds).status();
}

fn start_missing(cluster: &Cluster) {
    let ports = cluster.ports.to_string();
    cluster.run(&["up", "--detach", "--servers", "6", "--port-base", &ports]);
}

/// Does one fault and takes it back.
fn harm(cluster: &Cluster, random: &mut Random, shared: &Shared) {
    let (first, second) = (1 + random.below(SERVERS), 1 + random.below(SERVERS));
    let roles = ["io", "lc", "coordinator"];
    let role = roles[random.below(3) as usize];
    let while_down = 200 + random.below(5000);
    let name = |name| *shared.fault.lock().unwrap() = name;
    let all = |servers: &[u64]| -> Vec<i32> {
        servers.iter().flat_map(|server| cluster.pids(*server, "")).collect()
    };
    match random.below(10) {
        0..3 => {
            name("kill a process");
            cluster.pids(first, role).into_iter().for_each(|pid| kill(pid, "KILL"));
        }
        3 => {
            name("stop a process");
            let pids = cluster.pids(first, role);
            pids.iter().for_each(|pid| kill(*pid, "STOP"));
            pause(while_down);
            pids.iter().for_each(|pid| kill(*pid, "CONT"));
        }
        4..6 => {
            name("kill a server");
            all(&[first]).into_iter().for_each(|pid| kill(pid, "KILL"));
            pause(while_down);
            start_missing(cluster);
        }
        6..8 => {
            name("kill two servers");
            all(&[first, second]).into_iter().for_each(|pid| kill(pid, "KILL"));
            pause(while_down);
            start_missing(cluster);
            // Also during the repair.
            cluster.pids(first, "lc").into_iter().for_each(|pid| kill(pid, "KILL"));
        }
        8 => {
            name("stop a server");
            let pids = all(&[first]);
            pids.iter().for_each(|pid| kill(*pid, "STOP"));
            pause(while_down);
            pids.iter().for_each(|pid| kill(*pid, "CONT"));
        }
        _ => {
            name("flip bits");
            let folder = cluster.path(&format!("braid-data/server-{first}/disk-1/portions"));
            for path in files_below(&folder).into_iter().take(8) {
                flip(&path, random);
            }
        }
    }
    let healed = |status: &serde_json::Value| status["health"] == "ok";
    cluster.wait_status("health", healed);
    name("none");
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    list(folder).flat_map(|entry| list(&entry.path())).map(|entry| entry.path()).collect()
}

/// Flips a bit of a block of the file's bytes, if there is one: behind the pages at the beginning.
fn flip(path: &Path, random: &mut Random) {
    let Ok(mut file) = fs::OpenOptions::new().read(true).write(true).open(path) else { return };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    if length <= 16_384 {
        return;
    }
    let at = 16_384 + random.below((length - 16_384).min(1 << 20));
    let mut byte = [0];
    if file.seek(SeekFrom::Start(at)).is_ok() && file.read_exact(&mut byte).is_ok() {
        let _ = file.seek(SeekFrom::Start(at));
        let _ = file.write_all(&[byte[0] ^ (1 << random.below(8))]);
    }
}

fn report(seed: u64, took: Duration, faults: &BTreeMap<&str, u64>, shared: &Shared) -> String {
    let mut text = String::new();
    let wrong = shared.wrong.lock().unwrap();
    let _ = writeln!(text, "# Drill\n");
    let _ = writeln!(
        text,
        "Seed {seed}, {:.1} minutes, {SERVERS} servers on this machine, {WORKERS} clients: {} \
         operations, {} MiB acknowledged.\n",
        took.as_secs_f64() / 60.0,
        shared.operations.load(Ordering::Relaxed),
        shared.acknowledged_bytes.load(Ordering::Relaxed) >> 20
    );
    let result =
        if wrong.is_empty() { "Nothing was lost, no wrong byte was read." } else { "WRONG:" };
    let _ = writeln!(text, "{result}\n");
    for what in wrong.iter() {
        let _ = writeln!(text, "- {what}");
    }
    let _ = writeln!(
        text,
        "| fault | times | operations up to 0.1 s | 0.5 s | 1 s | 2 s | 4 s | longer |"
    );
    let _ = writeln!(text, "|---|---|---|---|---|---|---|---|");
    for (fault, columns) in shared.stalls.lock().unwrap().iter() {
        let times = faults.get(fault).copied().unwrap_or(0);
        let columns: Vec<String> = columns.iter().map(u64::to_string).collect();
        let _ = writeln!(text, "| {fault} | {times} | {} |", columns.join(" | "));
    }
    text
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}

#[test] // Proves: O-3, O-4, O-5, W-3, W-5, W-6, F-2, F-4, F-6.
fn nothing_is_lost_while_processes_and_servers_die() {
    let seconds = setting("BRAID_DRILL_SECONDS", 20);
    let seed = setting("BRAID_DRILL_SEED", u64::from(std::process::id()));
    println!("drill: seed {seed}, {seconds} s");
    let cluster = Cluster::started(6);
    let text = fs::read_to_string(cluster.path("braid-data/client.toml")).unwrap();
    let file = ClusterFile::parse(&text).unwrap();
    let shared = Arc::new(Shared::default());
    *shared.fault.lock().unwrap() = "none";
    let start = Instant::now();
    let mut faults = BTreeMap::new();
    std::thread::scope(|scope| {
        for number in 0..WORKERS {
            let (file, shared) = (&file, shared.clone());
            scope.spawn(move || work(file, number, seed, &shared));
        }
        // What fails here must end the workers too.
        let faulting = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut random = Random(seed | 1);
            while start.elapsed() < Duration::from_secs(seconds) && !shared.is_wrong() {
                pause(500 + random.below(1500));
                let before = shared.stalls.lock().unwrap().clone();
                harm(&cluster, &mut random, &shared);
                let after = shared.stalls.lock().unwrap();
                let done = after.iter().find(|(name, columns)| {
                    **name != "none" && before.get(*name) != Some(*columns)
                });
                if let Some((name, _)) = done {
                    *faults.entry(*name).or_insert(0) += 1;
                }
            }
        }));
        shared.stop.store(true, Ordering::Relaxed);
        if let Err(panic) = faulting {
            let what = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            shared.wrong.lock().unwrap().push(what);
        }
    });
    let text = report(seed, start.elapsed(), &faults, &shared);
    println!("{text}");
    if let Ok(path) = std::env::var("BRAID_DRILL_REPORT") {
        fs::write(path, &text).unwrap();
    }
    assert!(!shared.is_wrong(), "{text}\n{}", cluster.logs());
    assert!(0 < shared.operations.load(Ordering::Relaxed));
}
