//! Clients that remember every byte that was acknowledged to them.
//!
//! Each has names of its own, so that what a name must hold is known exactly. Every eight bytes of a
//! file say which write put them there: a wrong byte tells whose it is.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use braid_client::{Client, ClusterFile, EntryAttributes, Error, PutOptions, RenameOptions};
use braid_env::machine;
use tokio::time::Instant;

use crate::random::Random;

/// Names of each client.
const FILES: u64 = 24;

/// What is seen by all.
#[derive(Default)]
pub struct Shared {
    stop: AtomicBool,
    /// The fault under way.
    fault: Mutex<&'static str>,
    pub stalls: Mutex<BTreeMap<&'static str, Stalls>>,
    /// What must not be: lost or wrong bytes, errors, a cluster that does not heal.
    violations: Mutex<Vec<String>>,
    /// A disk is full: changes may be refused for lack of space.
    pub may_be_full: AtomicBool,
    /// Clients look at everything when this goes up, and count themselves when they have.
    round: AtomicU64,
    checked: AtomicU64,
    pub operations: AtomicU64,
    pub acknowledged_bytes: AtomicU64,
    pub verified_bytes: AtomicU64,
    pub lost_bytes: AtomicU64,
    pub refused: AtomicU64,
}

/// How long operations took.
#[derive(Clone, Default)]
pub struct Stalls {
    pub columns: [u64; COLUMNS.len()],
    pub longest: Duration,
    /// The longest of those that were under way since the fault began.
    pub of_this_fault: Duration,
}

/// Upper ends of the histogram's columns, in milliseconds.
pub const COLUMNS: [u64; 8] = [10, 50, 100, 500, 1000, 2000, 4000, u64::MAX];

/// Where no fault is.
pub const NO_FAULT: &str = "none";

impl Shared {
    pub fn new() -> Self {
        Self { fault: Mutex::new(NO_FAULT), ..Self::default() }
    }

    pub fn begin_fault(&self, name: &'static str) {
        self.stalls.lock().unwrap().entry(name).or_default().of_this_fault = Duration::ZERO;
        *self.fault.lock().unwrap() = name;
    }

    /// The longest stall since its begin; above `limit` it is a violation.
    pub fn end_fault(&self, limit: Option<Duration>) -> Duration {
        let name = *self.fault.lock().unwrap();
        let stall = self.stalls.lock().unwrap().entry(name).or_default().of_this_fault;
        if limit.is_some_and(|limit| limit < stall) {
            self.violate(format!("a stall of {:.2} s", stall.as_secs_f64()));
        }
        *self.fault.lock().unwrap() = NO_FAULT;
        stall
    }

    /// An operation that a fault meets counts for it, whether it began or ended in it.
    fn took(&self, fault_at_begin: &'static str, time: Duration) {
        self.operations.fetch_add(1, Ordering::Relaxed);
        let now = *self.fault.lock().unwrap();
        let fault = if now == NO_FAULT { fault_at_begin } else { now };
        let column = COLUMNS.iter().position(|end| time.as_millis() as u64 <= *end).unwrap();
        let mut stalls = self.stalls.lock().unwrap();
        let stalls = stalls.entry(fault).or_default();
        stalls.columns[column] += 1;
        stalls.longest = stalls.longest.max(time);
        stalls.of_this_fault = stalls.of_this_fault.max(time);
    }

    pub fn violate(&self, what: String) {
        let fault = *self.fault.lock().unwrap();
        println!("VIOLATION (fault: {fault}): {what}");
        self.violations.lock().unwrap().push(format!("{what} (fault: {fault})"));
    }

    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    pub fn is_violated(&self) -> bool {
        !self.violations.lock().unwrap().is_empty()
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Begins a look of all clients at everything; true once `clients` have ended it.
    pub fn begin_round(&self) {
        self.checked.store(0, Ordering::Relaxed);
        self.round.fetch_add(1, Ordering::Relaxed);
    }

    pub fn round_is_done(&self, clients: u64) -> bool {
        clients <= self.checked.load(Ordering::Relaxed)
    }
}

/// How a client reaches the store.
#[derive(Clone)]
pub enum Way {
    Library,
    /// Where it is mounted.
    Mount(PathBuf),
}

enum Store {
    Library(Client),
    Mount(PathBuf),
}

/// Why a change was not made.
enum Refusal {
    /// Allowed while a disk is full; a part of it may have been made.
    Full(String),
    Error(String),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            error @ (Error::NoSpace { .. } | Error::NoPlace { .. }) => {
                Self::Full(error.to_string())
            }
            error => Self::Error(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull => Self::Full(error.to_string()),
            _ => Self::Error(error.to_string()),
        }
    }
}

impl Store {
    async fn make_folder(&self, path: &str) -> Result<(), Refusal> {
        match self {
            Self::Library(client) => {
                client.mkdir_all(path, &EntryAttributes::default()).await?;
            }
            Self::Mount(root) => fs::create_dir_all(below(root, path))?,
        }
        Ok(())
    }

    async fn put(&self, path: &str, bytes: &[u8], synced: bool) -> Result<(), Refusal> {
        match self {
            Self::Library(client) => {
                let options = PutOptions { stable: synced, ..PutOptions::default() };
                client.put_bytes(path, bytes.to_vec().into(), options).await?;
            }
            Self::Mount(root) => {
                let mut file = File::create(below(root, path))?;
                file.write_all(bytes)?;
                if synced {
                    file.sync_all()?;
                }
            }
        }
        Ok(())
    }

    async fn write(&self, path: &str, at: u64, bytes: &[u8], synced: bool) -> Result<(), Refusal> {
        match self {
            Self::Library(client) => {
                let file = client.open(path).await?;
                file.write(at, bytes.to_vec().into()).await?;
                file.flush().await?;
                if synced {
                    file.sync().await?;
                }
            }
            Self::Mount(root) => {
                let file = OpenOptions::new().write(true).open(below(root, path))?;
                file.write_all_at(bytes, at)?;
                if synced {
                    file.sync_all()?;
                }
            }
        }
        Ok(())
    }

    async fn truncate(&self, path: &str, size: u64) -> Result<(), Refusal> {
        match self {
            Self::Library(client) => client.truncate(path, size).await?,
            Self::Mount(root) => {
                let file = OpenOptions::new().write(true).open(below(root, path))?;
                file.set_len(size)?;
            }
        }
        Ok(())
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), Refusal> {
        match self {
            Self::Library(client) => client.rename(from, to, RenameOptions::default()).await?,
            Self::Mount(root) => fs::rename(below(root, from), below(root, to))?,
        }
        Ok(())
    }

    async fn unlink(&self, path: &str) -> Result<(), Refusal> {
        match self {
            Self::Library(client) => client.unlink(path).await?,
            Self::Mount(root) => fs::remove_file(below(root, path))?,
        }
        Ok(())
    }

    /// `None`: there is no such file.
    async fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
        match self {
            Self::Library(client) => match client.get_bytes(path).await {
                Ok(bytes) => Ok(Some(bytes.to_vec())),
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error.to_string()),
            },
            Self::Mount(root) => match fs::read(below(root, path)) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

/// Time of day, as logs have it.
fn clock() -> String {
    let time = machine::env(Default::default()).wall_time();
    let (seconds, milliseconds) = (time.seconds % 86_400, time.nanoseconds / 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hour:02}:{minute:02}:{second:02}.{milliseconds:03}")
}

fn below(root: &std::path::Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// A name and what was acknowledged of it.
pub type Model = BTreeMap<String, Vec<u8>>;

struct Worker<'a> {
    store: Store,
    folder: String,
    model: Model,
    random: Random,
    /// Number of the next write.
    generation: u64,
    shared: &'a Shared,
    file: &'a ClusterFile,
    log: File,
}

/// One step's change, as it is to be if it is acknowledged.
enum Change {
    Put { path: String, bytes: Vec<u8>, synced: bool },
    Write { path: String, at: u64, bytes: Vec<u8>, synced: bool },
    Truncate { path: String, size: u64 },
    Rename { from: String, to: String },
    Unlink { path: String },
}

impl Change {
    fn bytes(&self) -> u64 {
        match self {
            Self::Put { bytes, .. } | Self::Write { bytes, .. } => bytes.len() as u64,
            _ => 0,
        }
    }

    fn paths(&self) -> Vec<&String> {
        match self {
            Self::Put { path, .. }
            | Self::Write { path, .. }
            | Self::Truncate { path, .. }
            | Self::Unlink { path } => vec![path],
            Self::Rename { from, to } => vec![from, to],
        }
    }

    fn told(&self) -> String {
        match self {
            Self::Put { path, bytes, synced } => format!("put {path} {} {synced}", bytes.len()),
            Self::Write { path, at, bytes, synced } => {
                format!("write {path} {at} {} {synced}", bytes.len())
            }
            Self::Truncate { path, size } => format!("truncate {path} {size}"),
            Self::Rename { from, to } => format!("rename {from} {to}"),
            Self::Unlink { path } => format!("unlink {path}"),
        }
    }

    fn apply(self, model: &mut Model) {
        match self {
            Self::Put { path, bytes, .. } => {
                model.insert(path, bytes);
            }
            Self::Write { path, at, bytes, .. } => {
                let content = model.get_mut(&path).unwrap();
                let (at, end) = (at as usize, at as usize + bytes.len());
                content.resize(content.len().max(end), 0);
                content[at..end].copy_from_slice(&bytes);
            }
            Self::Truncate { path, size } => {
                model.get_mut(&path).unwrap().resize(size as usize, 0);
            }
            Self::Rename { from, to } => {
                let content = model.remove(&from).unwrap();
                model.insert(to, content);
            }
            Self::Unlink { path } => {
                model.remove(&path);
            }
        }
    }
}

impl Worker<'_> {
    /// Bytes of which every eight tell the write's number and their place in it.
    fn bytes(&mut self, length: u64) -> Vec<u8> {
        self.generation += 1;
        let words = (0..length.div_ceil(8)).map(|word| self.generation << 24 | word);
        let mut bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(length as usize);
        bytes
    }

    fn choose(&mut self) -> Option<Change> {
        let path = format!("{}/{}", self.folder, self.random.below(FILES));
        let Some(size) = self.model.get(&path).map(Vec::len) else {
            let length = self.random.length();
            let bytes = self.bytes(length);
            return Some(Change::Put { path, bytes, synced: self.random.below(4) == 0 });
        };
        match self.random.below(10) {
            0..4 => {
                let at = self.random.below(size as u64 + 5000);
                let length = 1 + self.random.length();
                let bytes = self.bytes(length);
                Some(Change::Write { path, at, bytes, synced: self.random.below(4) == 0 })
            }
            4 => Some(Change::Truncate { path, size: self.random.below(size as u64 + 2000) }),
            5 => {
                let to = format!("{}/{}", self.folder, self.random.below(FILES));
                (to != path).then_some(Change::Rename { from: path, to })
            }
            6 => Some(Change::Unlink { path }),
            _ => None,
        }
    }

    async fn step(&mut self) -> Result<(), String> {
        // Names are answered ahead at a mount: what a full disk refused of them is told later only.
        let only_looks = matches!(self.store, Store::Mount(_))
            && self.shared.may_be_full.load(Ordering::Relaxed);
        let change = if only_looks { None } else { self.choose() };
        let Some(change) = change else {
            let count = self.model.len() as u64;
            let Some(path) = self.model.keys().nth(self.random.below(count.max(1)) as usize) else {
                return Ok(());
            };
            return self.check(path).await;
        };
        let told = change.told();
        let done = match &change {
            Change::Put { path, bytes, synced } => self.store.put(path, bytes, *synced).await,
            Change::Write { path, at, bytes, synced } => {
                self.store.write(path, *at, bytes, *synced).await
            }
            Change::Truncate { path, size } => self.store.truncate(path, *size).await,
            Change::Rename { from, to } => self.store.rename(from, to).await,
            Change::Unlink { path } => self.store.unlink(path).await,
        };
        let result = match &done {
            Ok(()) => "ok",
            Err(Refusal::Full(error) | Refusal::Error(error)) => error.as_str(),
        };
        let fault = *self.shared.fault.lock().unwrap();
        let _ = writeln!(self.log, "{} {fault}: {} {told}: {result}", clock(), self.generation);
        match done {
            Ok(()) => {
                self.shared.acknowledged_bytes.fetch_add(change.bytes(), Ordering::Relaxed);
                change.apply(&mut self.model);
                Ok(())
            }
            Err(Refusal::Full(_)) if self.shared.may_be_full.load(Ordering::Relaxed) => {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
                self.settle(change).await
            }
            Err(Refusal::Full(error) | Refusal::Error(error)) => Err(format!("{told}: {error}")),
        }
    }

    /// What was refused for lack of space was made whole or not at all; from now on it is known.
    async fn settle(&mut self, change: Change) -> Result<(), String> {
        let told = change.told();
        let paths: Vec<String> = change.paths().into_iter().cloned().collect();
        let before = self.model.clone();
        change.apply(&mut self.model);
        let mut found = Vec::new();
        for path in &paths {
            found.push(self.store.read(path).await.map_err(|error| format!("{path}: {error}"))?);
        }
        let is = |model: &Model| {
            let mut pairs = paths.iter().zip(&found);
            pairs.all(|(path, found)| model.get(path) == found.as_ref())
        };
        if is(&self.model) {
            return Ok(());
        }
        if is(&before) {
            self.model = before;
            return Ok(());
        }
        Err(format!("{told}, refused for lack of space: neither made nor not made"))
    }

    async fn check(&self, path: &str) -> Result<(), String> {
        let found = self.store.read(path).await.map_err(|error| format!("{path}: {error}"))?;
        let same = compare(self.shared, path, found.as_deref(), &self.model[path]);
        let Err(what) = same else { return Ok(()) };
        Err(format!("{what}; {}", self.look_again(path).await))
    }

    /// Whether what was found wrong is so for ever, and for everybody: tells where to look.
    async fn look_again(&self, path: &str) -> String {
        let expected = self.model.get(path).map(Vec::as_slice);
        let told = |found: Result<Option<Vec<u8>>, String>| match found {
            Ok(found) if found.as_deref() == expected => "is right".to_owned(),
            Ok(found) => format!("finds {:?} bytes", found.map(|found| found.len())),
            Err(error) => error,
        };
        let env = machine::env(Default::default());
        let other = match Client::connect(env, self.file).await {
            Ok(client) => told(Store::Library(client).read(path).await),
            Err(error) => error.to_string(),
        };
        let own = told(self.store.read(path).await);
        format!("another client then {other}, this one {own}")
    }

    async fn check_all(&self) -> Result<(), String> {
        for path in self.model.keys() {
            self.check(path).await?;
        }
        for number in 0..FILES {
            let path = format!("{}/{number}", self.folder);
            if !self.model.contains_key(&path) && self.store.read(&path).await?.is_some() {
                return Err(format!("{path} is there, though its removal was acknowledged"));
            }
        }
        Ok(())
    }

    async fn run(&mut self) -> Result<(), String> {
        let folder = self.folder.clone();
        if let Err(Refusal::Full(error) | Refusal::Error(error)) =
            self.store.make_folder(&folder).await
        {
            return Err(format!("{folder}: {error}"));
        }
        let mut round = 0;
        while !self.shared.is_stopped() {
            let asked = self.shared.round.load(Ordering::Relaxed);
            if round < asked {
                round = asked;
                self.check_all().await?;
                self.shared.checked.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let (start, fault) = (Instant::now(), *self.shared.fault.lock().unwrap());
            self.step().await?;
            self.shared.took(fault, start.elapsed());
        }
        self.check_all().await
    }
}

/// Counts what is not as it must be.
fn compare(
    shared: &Shared,
    path: &str,
    found: Option<&[u8]>,
    expected: &[u8],
) -> Result<(), String> {
    let lost = |count: usize| shared.lost_bytes.fetch_add(count as u64, Ordering::Relaxed);
    let Some(found) = found else {
        lost(expected.len());
        return Err(format!("{path}, {} bytes, is not there any more", expected.len()));
    };
    if found == expected {
        shared.verified_bytes.fetch_add(found.len() as u64, Ordering::Relaxed);
        return Ok(());
    }
    let differs = |at: &usize| found.get(*at) != expected.get(*at);
    let others: Vec<usize> = (0..found.len().max(expected.len())).filter(differs).collect();
    lost(others.len());
    let (first, last) = (others[0], others[others.len() - 1]);
    let window =
        |bytes: &[u8]| format!("{:02x?}", bytes.get(first..).map(|b| &b[..b.len().min(16)]));
    Err(format!(
        "{path}: {} bytes instead of {}, {} differ from {first} to {last}: {} instead of {}",
        found.len(),
        expected.len(),
        others.len(),
        window(found),
        window(expected)
    ))
}

/// Works until it is told to stop; what must be there in the end.
pub fn work(
    way: Way,
    file: &ClusterFile,
    (number, seed): (u64, u64),
    shared: &Shared,
    log: PathBuf,
) -> Model {
    let mut model = Model::new();
    let result = machine::run(async {
        let store = match way {
            Way::Library => {
                let env = machine::env(Default::default());
                let client = Client::connect(env, file).await.map_err(|error| error.to_string())?;
                Store::Library(client)
            }
            Way::Mount(directory) => Store::Mount(directory),
        };
        let random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number + 1));
        let log = File::create(log).map_err(|error| error.to_string())?;
        let folder = format!("/{number}");
        let mut worker =
            Worker { store, folder, model: Model::new(), random, generation: 0, shared, file, log };
        let result = worker.run().await;
        model = std::mem::take(&mut worker.model);
        result
    })
    .unwrap();
    if let Err(what) = result {
        shared.violate(format!("client {number}: {what}"));
        shared.stop();
    }
    model
}

/// A client that has nothing in memory reads everything.
pub fn verify(file: &ClusterFile, models: &[Model], shared: &Shared) {
    let result: Result<(), String> = machine::run(async {
        let env = machine::env(Default::default());
        let client = Client::connect(env, file).await.map_err(|error| error.to_string())?;
        let store = Store::Library(client);
        for (path, expected) in models.iter().flatten() {
            let found = store.read(path).await.map_err(|error| format!("{path}: {error}"))?;
            if let Err(what) = compare(shared, path, found.as_deref(), expected) {
                shared.violate(format!("at the end: {what}"));
            }
        }
        Ok(())
    })
    .unwrap();
    if let Err(what) = result {
        shared.violate(format!("at the end: {what}"));
    }
}

/// Files that nobody changes, for bits to be flipped in.
pub fn put_still_files(file: &ClusterFile, count: u64, random: &mut Random) -> Model {
    let made: Model = (0..count)
        .map(|number| {
            let bytes = (0..1 << 17).flat_map(|_| random.next().to_le_bytes()).collect();
            (format!("/still-{number}"), bytes)
        })
        .collect();
    machine::run(async {
        let client = Client::connect(machine::env(Default::default()), file).await.unwrap();
        for (path, bytes) in &made {
            let options = PutOptions { stable: true, ..PutOptions::default() };
            client.put_bytes(path, bytes.clone().into(), options).await.unwrap();
        }
    })
    .unwrap();
    made
}
