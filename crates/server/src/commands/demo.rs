//! `demo`: the main job, told as it happens.
//! # Theory
//! ```text
//! six servers -> a source tree and one large file in -> two servers SIGKILLed during the write
//!   -> everything read back -> the two come back, what they missed is rebuilt
//!   -> two others SIGKILLed -> everything read back again
//! ```
//! Every file is compared by its BLAKE3 hash with what was put in.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use braid_client::{Client, ClusterFile, PutOptions};
use braid_env::{Env, machine};
use braid_terms::ServerId;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep};

use super::health::{self, Health};
use super::progress::Progress;
use super::put::LocalFile;
use super::{Outcome, cluster};
use crate::cli::{Demo, Up};
use crate::layout::PORTS_PER_SERVER;
use crate::output::{Failure, size};

/// Servers of the demonstration.
const SERVERS: u32 = 6;

/// Bytes of one write of the large file.
const CHUNK: usize = 1 << 20;

/// Longest repair that is waited for.
const REPAIR_WAIT: Duration = Duration::from_secs(600);

/// Runs the demonstration; fails unless all of it held.
pub fn run(demo: &Demo) -> Outcome {
    machine::run(async {
        let env = machine::env(Default::default());
        let folder = std::env::temp_dir().join(format!("braid-demo-{:08x}", env.random() as u32));
        let up = Up {
            servers: Some(SERVERS),
            disks: 1,
            dir: folder.join("cluster"),
            mount: None,
            port_base: free_ports(&env)?,
            no_gateways: true,
            detach: true,
            only_make: false,
        };
        fs::create_dir_all(&folder)?;
        let result = tokio::select! {
            result = told(&env, demo, &up) => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::Failed("interrupted".to_owned())),
        };
        if up.dir.join("client.toml").is_file() {
            let stopped = cluster::stop(&env, &up.dir).await;
            if let Err(failure) = stopped {
                eprintln!("braid: {failure}");
            }
        }
        if demo.keep || result.is_err() {
            println!("the cluster's folder is kept: {}", up.dir.display());
        } else {
            fs::remove_dir_all(&folder)?;
        }
        result.map(|()| ExitCode::SUCCESS)
    })?
}

/// What is told at the end.
#[derive(Default)]
struct Figures {
    rows: Vec<(String, String)>,
}

impl Figures {
    fn add(&mut self, what: &str, value: String) {
        println!("    {what}: {value}");
        self.rows.push((what.to_owned(), value));
    }
}

async fn told(env: &Env, demo: &Demo, up: &Up) -> Result<(), Failure> {
    let mut figures = Figures::default();
    println!("[1] six servers, each its own processes, default scheme rs/4+2");
    let started = Instant::now();
    cluster::start(env, up).await?;
    let file = super::read_cluster_file(&up.dir.join("client.toml"))?;
    cluster::wait_healthy(env, &file).await?;
    figures.add("healthy after", format!("{:.1} s", started.elapsed().as_secs_f64()));
    let client = Client::connect(env.clone(), &file).await?;

    println!("[2] a tree of real files in");
    let source = source_tree(demo)?;
    let (local, hashes) = hash_tree(&source, demo.files)?;
    let bytes: u64 = local.iter().map(|path| fs::metadata(path).map_or(0, |m| m.len())).sum();
    let started = Instant::now();
    let stored = store_tree(&client, &source, &local).await?;
    let seconds = started.elapsed().as_secs_f64();
    figures.add(
        &format!("{stored} files of {}", source.display()),
        format!(
            "{} in {seconds:.1} s, {:.0} files/s",
            size(bytes),
            stored as f64 / seconds.max(0.001)
        ),
    );

    println!("[3] one file of {} in; two servers are SIGKILLed during it", size(demo.size));
    let killed = [ServerId(2), ServerId(5)];
    let write = store_large(env, &client, demo.size, || {
        for server in killed {
            kill_server(&up.dir, server);
        }
        println!("    servers {} and {} killed, all their processes", killed[0], killed[1]);
    });
    let (large_hash, stall, seconds) = write.await?;
    figures.add(
        "large file",
        format!("{:.1} s, {}/s, no error", seconds, size((demo.size as f64 / seconds) as u64)),
    );
    figures.add("longest stall of the writer", format!("{:.2} s", stall.as_secs_f64()));

    println!("[4] with four of six servers everything is read back and compared");
    let seconds = compare(&client, &hashes, &large_hash).await?;
    figures.add("read back and compared", format!("{seconds:.1} s, all identical"));

    println!("[5] the two come back; what they missed is rebuilt");
    for server in killed {
        wait_gone(&up.dir, server).await?;
        cluster::start_server(&up.dir, server)?;
    }
    let seconds = wait_repaired(env, &file).await?;
    figures.add("repaired", format!("{seconds:.1} s, 0 suspect"));

    println!("[6] two other servers are SIGKILLed, and everything is read back again");
    for server in [ServerId(1), ServerId(4)] {
        kill_server(&up.dir, server);
    }
    let seconds = compare(&client, &hashes, &large_hash).await?;
    figures.add("read back and compared again", format!("{seconds:.1} s, all identical"));

    println!("\nall of it held:");
    for (what, value) in figures.rows {
        println!("  {what:<56} {value}");
    }
    Ok(())
}

/// A base of ports that are all free now.
fn free_ports(env: &Env) -> Result<u16, Failure> {
    let count = PORTS_PER_SERVER * SERVERS as u16;
    for _ in 0..100 {
        // Steps of whole clusters: two that look at the same moment seldom take the same.
        let base = 10_000 + env.random_below(80) as u16 * count;
        let free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if base.checked_add(count).is_some() && (base..base + count).all(free) {
            return Ok(base);
        }
    }
    Err(Failure::Failed("no 120 free ports in a row were found".to_owned()))
}

/// The toolchain's sources, the crates that cargo fetched, or what was asked for.
fn source_tree(demo: &Demo) -> Result<PathBuf, Failure> {
    if let Some(source) = &demo.source {
        return Ok(source.clone());
    }
    let sysroot = std::process::Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = sysroot.ok().filter(|output| output.status.success());
    let sysroot = sysroot.and_then(|output| String::from_utf8(output.stdout).ok());
    let library = sysroot.map(|root| Path::new(root.trim()).join("lib/rustlib/src/rust/library"));
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let registry = home.map(|home| home.join("registry/src"));
    let candidates: Vec<PathBuf> = [library, registry].into_iter().flatten().collect();
    let enough = |path: &&PathBuf| list_tree(path, demo.files).len() >= demo.files.min(5000);
    if let Some(found) = candidates.iter().find(enough) {
        return Ok(found.clone());
    }
    let best = candidates.into_iter().max_by_key(|path| list_tree(path, demo.files).len());
    best.filter(|path| !list_tree(path, 1).is_empty()).ok_or_else(|| {
        Failure::Failed("no tree of real files was found; name one with --source DIR".to_owned())
    })
}

/// Regular files below a folder, at most `limit`, in a stable order.
fn list_tree(folder: &Path, limit: usize) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut stack = vec![folder.to_owned()];
    while let Some(folder) = stack.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_dir() => stack.push(path),
                Ok(metadata) if metadata.is_file() => files.push(path),
                _ => {}
            }
            if files.len() >= limit {
                return files;
            }
        }
    }
    files
}

type Hashes = BTreeMap<String, blake3::Hash>;

fn hash_tree(source: &Path, limit: usize) -> Result<(Vec<PathBuf>, Hashes), Failure> {
    let local = list_tree(source, limit);
    let mut hashes = Hashes::new();
    for path in &local {
        hashes.insert(store_path(source, path), blake3::hash(&fs::read(path)?));
    }
    Ok((local, hashes))
}

fn store_path(source: &Path, path: &Path) -> String {
    let below = path.strip_prefix(source).unwrap_or(path);
    format!("/tree/{}", below.to_string_lossy())
}

async fn store_tree(client: &Client, source: &Path, local: &[PathBuf]) -> Result<usize, Failure> {
    let new = braid_client::EntryAttributes { mode: 0o755, ..Default::default() };
    let mut directories = BTreeMap::new();
    let mut files = Vec::new();
    for path in local {
        let target = store_path(source, path);
        let (parent, name) = target.rsplit_once('/').expect("it begins with '/'");
        if !directories.contains_key(parent) {
            directories.insert(parent.to_owned(), client.mkdir_all(parent, &new).await?);
        }
        files.push(LocalFile {
            path: path.clone(),
            directory: directories[parent].clone(),
            name: name.as_bytes().to_vec(),
            size: fs::metadata(path)?.len(),
            kind: super::put::LocalKind::File,
            target,
        });
    }
    let count = files.len();
    let progress = Rc::new(Progress::new("stored", true, None));
    match super::put::store_all(client, files, false, &progress).await {
        0 => Ok(count),
        failed => Err(Failure::Failed(format!("{failed} files of the tree were not stored"))),
    }
}

/// Bytes of the large file: a stream of a small generator, the same each time.
struct Generator(u64);

impl Generator {
    fn next(&mut self, length: usize) -> Bytes {
        let mut bytes = BytesMut::zeroed(length);
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
        bytes.freeze()
    }
}

/// Stores the large file; calls `in_the_middle` at a third. Returns its hash, the longest stall
/// between two writes that were taken, and the seconds.
async fn store_large(
    env: &Env,
    client: &Client,
    length: u64,
    in_the_middle: impl FnOnce(),
) -> Result<(blake3::Hash, Duration, f64), Failure> {
    let mut generator = Generator(env.random() | 1);
    let mut hasher = blake3::Hasher::new();
    let options = PutOptions { size: Some(length), replace: true, ..PutOptions::default() };
    let mut writer = client.put("/large", options).await?;
    let mut middle = Some(in_the_middle);
    let started = Instant::now();
    let mut last = started;
    let mut stall = Duration::ZERO;
    let mut written = 0;
    while written < length {
        let count = CHUNK.min(usize::try_from(length - written).unwrap_or(CHUNK));
        let bytes = generator.next(count);
        hasher.update(&bytes);
        writer.write(bytes).await?;
        written += count as u64;
        let now = Instant::now();
        stall = stall.max(now - last);
        last = now;
        if written >= length / 3
            && let Some(middle) = middle.take()
        {
            middle();
        }
    }
    writer.finish().await?;
    stall = stall.max(last.elapsed());
    Ok((hasher.finalize(), stall, started.elapsed().as_secs_f64()))
}

/// Reads everything back; returns the seconds.
async fn compare(client: &Client, hashes: &Hashes, large: &blake3::Hash) -> Result<f64, Failure> {
    let started = Instant::now();
    let wrong = RefCell::new(Vec::new());
    let done = Cell::new(0_usize);
    let reads = hashes.iter().map(|(path, hash)| {
        let (wrong, done) = (&wrong, &done);
        async move {
            match client.get_bytes(path).await {
                Ok(bytes) if blake3::hash(&bytes) == *hash => done.set(done.get() + 1),
                Ok(_) => wrong.borrow_mut().push(format!("{path}: other bytes came back")),
                Err(error) => wrong.borrow_mut().push(error.to_string()),
            }
        }
    });
    futures_util::stream::iter(reads).buffer_unordered(32).collect::<Vec<()>>().await;
    let mut hasher = blake3::Hasher::new();
    let mut reader = client.open("/large").await?.reader().await?;
    while let Some(bytes) = reader.next().await? {
        hasher.update(&bytes);
    }
    if hasher.finalize() != *large {
        wrong.borrow_mut().push("/large: other bytes came back".to_owned());
    }
    let wrong = wrong.into_inner();
    if wrong.is_empty() {
        println!("    {} files and the large one are identical", done.get());
        return Ok(started.elapsed().as_secs_f64());
    }
    for line in wrong.iter().take(10) {
        println!("    {line}");
    }
    Err(Failure::Failed(format!("{} files did not come back as they were put in", wrong.len())))
}

/// SIGKILLs all processes of a server: its main controller first, so that it restarts nothing.
fn kill_server(dir: &Path, server: ServerId) {
    let folder = crate::layout::server_folder(dir, server.0);
    let pid = fs::read_to_string(folder.join("run/main.pid")).ok();
    let Some(main) = pid.and_then(|pid| pid.trim().parse::<i32>().ok()) else { return };
    let mut processes = children_of(main);
    processes.insert(0, main);
    for pid in processes.into_iter().filter_map(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn children_of(parent: i32) -> Vec<i32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

async fn wait_gone(dir: &Path, server: ServerId) -> Result<(), Failure> {
    let folder = crate::layout::server_folder(dir, server.0);
    let end = Instant::now() + Duration::from_secs(10);
    while cluster::is_running(&folder) {
        if end <= Instant::now() {
            return Err(Failure::Failed(format!("server {server} does not go away")));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Waits until nothing is suspect and all servers take part; returns the seconds.
async fn wait_repaired(env: &Env, file: &ClusterFile) -> Result<f64, Failure> {
    let started = Instant::now();
    let mut last = usize::MAX;
    loop {
        let seen = health::look(env, file, Duration::from_secs(2)).await;
        let suspects = seen.suspects();
        if seen.map.is_some() && suspects != last {
            println!("    {suspects} suspect");
            last = suspects;
        }
        if seen.map.is_some() && suspects == 0 && seen.health() == Health::Ok {
            return Ok(started.elapsed().as_secs_f64());
        }
        if started.elapsed() > REPAIR_WAIT {
            return Err(Failure::Failed(format!(
                "not repaired after {} s: {}",
                REPAIR_WAIT.as_secs(),
                seen.reasons().join("; ")
            )));
        }
        sleep(Duration::from_millis(300)).await;
    }
}
