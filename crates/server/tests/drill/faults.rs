//! What goes wrong: one kind at a time, never more of it than rs/4+2 and five coordinators tolerate.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;

use crate::common::pids_in;
use crate::random::Random;
use crate::workload::Shared;
use crate::world::{Cut, SERVERS, World, signal};

/// Members of the consensus group.
const COORDINATORS: u64 = 5;

/// A stall that is promised to be shorter, where a main controller restarts a killed process.
const PROCESS_LIMIT: Duration = Duration::from_secs(1);
/// And where a machine dies.
const MACHINE_LIMIT: Duration = Duration::from_secs(4);

/// What a fault needs of the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Namespaces,
    Nft,
    SmallDisk,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    KillProcess(&'static str),
    StopProcess(&'static str),
    KillServer,
    KillTwoServers,
    StopServer,
    KillInRepair,
    FlipBits,
    CutServer(Cut),
    /// Its machine is gone without a word.
    DeadServer,
    DeadController,
    KillOneCutOne,
    FullDisk,
}

/// Name, what it is, what it needs, and how long a client may stall.
type Row = (&'static str, Kind, Needs, Option<Duration>);

#[rustfmt::skip]
const KINDS: &[Row] = &[
    ("kill an I/O server", Kind::KillProcess("io"), Needs::Nothing, Some(PROCESS_LIMIT)),
    ("kill a local controller", Kind::KillProcess("lc"), Needs::Nothing, Some(PROCESS_LIMIT)),
    ("kill a coordinator", Kind::KillProcess("coordinator"), Needs::Nothing, Some(PROCESS_LIMIT)),
    ("kill a main controller", Kind::KillProcess("main"), Needs::Nothing, Some(MACHINE_LIMIT)),
    ("stop an I/O server", Kind::StopProcess("io"), Needs::Nothing, None),
    ("stop a local controller", Kind::StopProcess("lc"), Needs::Nothing, None),
    ("stop a coordinator", Kind::StopProcess("coordinator"), Needs::Nothing, None),
    ("kill a server", Kind::KillServer, Needs::Nothing, Some(MACHINE_LIMIT)),
    ("kill two servers", Kind::KillTwoServers, Needs::Nothing, None),
    ("stop a server", Kind::StopServer, Needs::Nothing, None),
    ("kill during repair", Kind::KillInRepair, Needs::Nothing, None),
    ("flip bits", Kind::FlipBits, Needs::Nothing, None),
    ("cut a server off", Kind::CutServer(Cut::Link), Needs::Namespaces, None),
    ("a server hears nothing", Kind::CutServer(Cut::Towards), Needs::Nft, None),
    ("a server is not heard", Kind::CutServer(Cut::From), Needs::Nft, None),
    ("cut a server off from servers", Kind::CutServer(Cut::OtherServers), Needs::Nft, None),
    ("a machine dies", Kind::DeadServer, Needs::Namespaces, Some(MACHINE_LIMIT)),
    ("the global controller's machine dies", Kind::DeadController, Needs::Namespaces,
        Some(MACHINE_LIMIT)),
    ("kill one server, cut another off", Kind::KillOneCutOne, Needs::Namespaces, None),
    ("a full disk", Kind::FullDisk, Needs::SmallDisk, None),
];

/// A kind of fault that this machine can do.
#[derive(Clone, Copy)]
pub struct Fault {
    pub name: &'static str,
    pub kind: Kind,
    pub limit: Option<Duration>,
}

/// All kinds that this machine can do and whose names have one of the words.
pub fn possible(world: &World, words: &[String]) -> Vec<Fault> {
    let can = |needs: Needs| match needs {
        Needs::Nothing => true,
        Needs::Namespaces => world.has_namespaces(),
        Needs::Nft => world.has_nft,
        Needs::SmallDisk => world.small_disk().is_some(),
    };
    let named = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    let rows = KINDS.iter().filter(|(name, _, needs, _)| can(*needs) && named(name));
    rows.map(|(name, kind, _, limit)| Fault { name, kind: *kind, limit: *limit }).collect()
}

/// Where and how long: drawn before anything is seen, so that a seed repeats it.
struct Drawn {
    server: u64,
    other: u64,
    member: u64,
    duration: u64,
    leader_instead: bool,
}

impl Drawn {
    fn draw(random: &mut Random, longest: u64) -> Self {
        let server = 1 + random.below(SERVERS);
        Self {
            server,
            other: 1 + (server + random.below(SERVERS - 1)) % SERVERS,
            member: 1 + random.below(COORDINATORS),
            duration: 300 + random.below(longest),
            leader_instead: random.below(2) == 0,
        }
    }
}

/// Does a fault and takes it back; what exactly was done. The cluster may still have to heal.
///
/// Errors: what did not happen that must.
pub fn harm(
    world: &mut World,
    fault: Fault,
    random: &mut Random,
    longest: u64,
    still: &[String],
    shared: &Shared,
) -> Result<String, String> {
    let drawn = Drawn::draw(random, longest);
    let Drawn { server, other, duration, .. } = drawn;
    let status = world.status();
    let leader = status["global_controller"]["server"].as_u64().unwrap_or(1);
    let all = |server| pids_in(&status, server, "");
    match fault.kind {
        Kind::KillProcess("main") => {
            signal(&pids_in(&status, server, "main"), "KILL");
            // Its children end when they notice; nobody else ends them.
            wait(world, "the end of its children", |_| all(server).iter().all(|pid| !lives(*pid)))?;
            world.start_missing();
            Ok(format!("server {server}"))
        }
        Kind::KillProcess(role) => {
            let server = match role {
                "coordinator" if drawn.leader_instead => leader,
                "coordinator" => drawn.member,
                _ => server,
            };
            kill_until_restarted(world, server, role)?;
            Ok(format!("server {server}"))
        }
        Kind::StopProcess(role) => {
            let server = match role {
                "coordinator" if drawn.leader_instead => leader,
                "coordinator" => drawn.member,
                _ => server,
            };
            let pids = pids_in(&status, server, role);
            signal(&pids, "STOP");
            pause(duration);
            signal(&pids, "CONT");
            Ok(format!("server {server}, {duration} ms"))
        }
        Kind::KillServer => {
            signal(&all(server), "KILL");
            pause(duration);
            world.start_missing();
            Ok(format!("server {server}, {duration} ms"))
        }
        Kind::KillTwoServers => {
            signal(&[all(server), all(other)].concat(), "KILL");
            pause(duration);
            world.start_missing();
            Ok(format!("servers {server} and {other}, {duration} ms"))
        }
        Kind::StopServer => {
            signal(&all(server), "STOP");
            pause(duration);
            signal(&all(server), "CONT");
            Ok(format!("server {server}, {duration} ms"))
        }
        Kind::KillInRepair => kill_in_repair(world, server, other, &all(server)),
        Kind::FlipBits => flip_bits(world, server, still, random),
        Kind::CutServer(cut) => {
            world.cut(server, cut);
            pause(duration);
            world.heal_cuts();
            Ok(format!("server {server}, {duration} ms"))
        }
        Kind::DeadServer | Kind::DeadController => {
            let server = if fault.kind == Kind::DeadController { leader } else { server };
            // Cut first: nobody hears how its processes end.
            world.cut(server, Cut::Link);
            signal(&all(server), "KILL");
            // Long enough for every stall to be seen to its end.
            let duration = duration + 5000;
            pause(duration);
            world.heal_cuts();
            world.start_missing();
            Ok(format!("server {server}, {duration} ms"))
        }
        Kind::KillOneCutOne => {
            world.cut(server, Cut::Link);
            signal(&all(other), "KILL");
            pause(duration);
            world.heal_cuts();
            world.start_missing();
            Ok(format!("server {other} killed, {server} cut off, {duration} ms"))
        }
        Kind::FullDisk => {
            let small = world.small_disk().ok_or("no small disk")?;
            shared.may_be_full.store(true, Ordering::Relaxed);
            small.fill();
            pause(duration + 2000);
            small.free();
            Ok(format!("server {}, {} ms", small.server, duration + 2000))
        }
    }
}

/// Kills the processes of a role, and waits until others are in their place.
fn kill_until_restarted(world: &World, server: u64, role: &str) -> Result<(), String> {
    let before = world.pids(server, role);
    if before.is_empty() {
        return Err(format!("server {server} has no process {role}"));
    }
    signal(&before, "KILL");
    wait(world, "a restart", |status| {
        let now = pids_in(status, server, role);
        now.len() == before.len() && now.iter().all(|pid| !before.contains(pid))
    })
}

/// A server comes back with portions that lack writes; who rebuilds them dies, and so does it.
fn kill_in_repair(
    world: &mut World,
    server: u64,
    other: u64,
    pids: &[i32],
) -> Result<String, String> {
    signal(pids, "KILL");
    wait(world, "a fact", |status| status["facts"]["suspect"].as_u64() > Some(0))?;
    world.start_missing();
    let mut met = 0;
    for role in ["io", "lc", "io"] {
        wait(world, "its processes", |status| pids_in(status, server, "io").len() == 1)?;
        met += u64::from(world.status()["facts"]["suspect"].as_u64() > Some(0));
        kill_until_restarted(world, if role == "lc" { other } else { server }, role)?;
    }
    Ok(format!("server {server}, local controller of {other}; {met} of 3 met the repair"))
}

/// Flips bits in portion files of a server: of files that nobody changes, and of any.
fn flip_bits(
    world: &World,
    server: u64,
    still: &[String],
    random: &mut Random,
) -> Result<String, String> {
    let mut flipped = 0;
    for path in still {
        let output = world.cluster.run(&["where", path, "--json"]);
        let device: Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
        let portions = device["portions"].as_array().into_iter().flatten();
        for portion in portions.filter(|portion| portion["server"] == server) {
            // One block in each: a second one might be of the same row as one of another disk's.
            flipped += u64::from(flip(Path::new(portion["file"].as_str().unwrap_or("")), random));
        }
    }
    let folder = world.cluster.path(&format!("braid-data/server-{server}/disk-1/portions"));
    let mut files = files_below(&folder);
    random.shuffle(&mut files);
    for path in files.into_iter().take(8) {
        flipped += u64::from(flip(&path, random));
    }
    // What nobody reads, a scrub finds; what it finds, the owners mend.
    let mut first = None;
    for _ in 0..60 {
        let output = world.cluster.run(&["scrub", "--wait"]);
        let text = String::from_utf8_lossy(&output.stdout);
        let found = text.lines().find(|line| line.contains(" bad")).unwrap_or("").to_owned();
        let found =
            found.strip_suffix(" bad").and_then(|line| line.rsplit(' ').next()?.parse().ok());
        let first: u64 = *first.get_or_insert(found.unwrap_or(0));
        if found == Some(0) && world.status()["scrub"]["bad_blocks"] == 0 {
            return Ok(format!("server {server}: {flipped} bits, {first} left by the first scrub"));
        }
        pause(500);
    }
    Err("bits are flipped still, after 60 scrubs".to_owned())
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> =
        list(folder).flat_map(|entry| list(&entry.path())).map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// Flips a bit of the file's data, if there is some: behind the pages at the beginning.
fn flip(path: &Path, random: &mut Random) -> bool {
    let begin = 12_288;
    let Ok(mut file) = fs::OpenOptions::new().read(true).write(true).open(path) else {
        return false;
    };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    if length <= begin {
        return false;
    }
    let at = begin + random.below((length - begin).min(1 << 18));
    let mut byte = [0];
    let is_read = file.seek(SeekFrom::Start(at)).is_ok() && file.read_exact(&mut byte).is_ok();
    is_read
        && file.seek(SeekFrom::Start(at)).is_ok()
        && file.write_all(&[byte[0] ^ (1 << random.below(8))]).is_ok()
}

/// Longest wait for anything to come.
const PATIENCE: u64 = 180;

/// Waits until the status is so.
///
/// Errors: it does not come.
pub fn wait(world: &World, what: &str, is: impl Fn(&Value) -> bool) -> Result<(), String> {
    let mut last = Value::Null;
    // Each look takes its time, so that this is no busy loop.
    for _ in 0..PATIENCE * 10 {
        last = world.status();
        if is(&last) {
            return Ok(());
        }
        pause(100);
    }
    Err(format!("{what} did not come: {}, {}", last["health"], last["reasons"]))
}

/// Waits until nothing is wrong, and that for some looks: who just died may not be missed yet.
///
/// Errors: it does not heal.
pub fn heal(world: &World) -> Result<(), String> {
    let looks = std::cell::Cell::new(0);
    wait(world, "health", |status| {
        let facts = &status["facts"];
        let is_healed = status["health"] == "ok" && facts["suspect"] == 0 && facts["pending"] == 0;
        looks.set(if is_healed { looks.get() + 1 } else { 0 });
        looks.get() == 3
    })
}

fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Its state stands behind its name.
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

pub fn pause(milliseconds: u64) {
    let seconds = format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000);
    let _ = Command::new("sleep").arg(seconds).status();
}
