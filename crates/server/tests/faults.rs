//! Ring 5: servers die under a client that goes on, disks fill up, a bit flips.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use braid_client::{Client, ClusterFile, PutOptions};
use braid_env::machine;
use bytes::Bytes;
use common::{Cluster, kill};
use tokio::time::Instant;

/// No stall may be longer than what clients wait for; how short it is, the drill measures.
const PATIENCE: Duration = Duration::from_secs(30);

fn client_file(cluster: &Cluster) -> ClusterFile {
    let text = fs::read_to_string(cluster.path("braid-data/client.toml")).unwrap();
    ClusterFile::parse(&text).unwrap()
}

fn content(number: u64) -> Bytes {
    (0..20_000_u64).map(|at| ((at * 7 + number * 13) >> 2) as u8).collect::<Vec<_>>().into()
}

/// Writes and reads files without a pause while `fault` is done; the longest wait.
fn work_through(cluster: &Cluster, round: u64, fault: impl FnOnce() + Send) -> Duration {
    let file = client_file(cluster);
    std::thread::scope(|scope| {
        let (began, begin) = std::sync::mpsc::channel();
        let worker = scope.spawn(move || {
            machine::run(async {
                let client = Client::connect(machine::env(Default::default()), &file).await;
                let client = client.unwrap();
                let mut longest = Duration::ZERO;
                let mut end = Instant::now() + PATIENCE;
                let mut number = 0;
                while Instant::now() < end {
                    let path = format!("/{round}-{number}");
                    let start = Instant::now();
                    let bytes = content(number);
                    let put = client.put_bytes(&path, bytes, PutOptions::default()).await;
                    put.unwrap_or_else(|error| panic!("{path}: {error}"));
                    let back = client.get_bytes(format!("/{round}-{}", number / 2)).await;
                    assert!(back.unwrap() == content(number / 2), "another content");
                    longest = longest.max(start.elapsed());
                    if number == 20 {
                        // Now it is at work; some seconds are enough to meet what comes.
                        began.send(()).unwrap();
                        end = Instant::now() + Duration::from_secs(8);
                    }
                    number += 1;
                }
                assert!(20 < number, "the cluster is too slow to be tested");
                for number in 0..number {
                    let back = client.get_bytes(format!("/{round}-{number}")).await;
                    assert!(back.unwrap() == content(number), "another content");
                }
                longest
            })
            .unwrap()
        });
        // Where the worker fails, its panic is told by `join`.
        if begin.recv().is_ok() {
            fault();
        }
        worker.join().unwrap()
    })
}

#[test] // Proves: O-3, O-4, F-2.
fn killed_owners_and_a_killed_leader_stop_no_client() {
    let cluster = Cluster::started(6);
    let status = cluster.json(&["status", "--json"]);
    let leader = status["global_controller"]["server"].as_u64().unwrap();
    let other = 1 + leader % 6;
    let server = |id| cluster.pids(id, "");
    // All local controllers but one, the leader's coordinator, a whole server, and the leader's.
    let lcs: Vec<i32> =
        (1..=6).filter(|id| *id != other).flat_map(|id| cluster.pids(id, "lc")).collect();
    let faults = [
        ("all owners but one", lcs),
        ("the leader's process", cluster.pids(leader, "coordinator")),
        ("a server", server(other)),
        ("the leader's server", server(leader)),
    ];
    for ((what, pids), round) in faults.into_iter().zip(0..) {
        assert!(!pids.is_empty(), "{what}: no process");
        // A process that the fault before had ended has another number by now.
        let pids = if round < 2 { pids } else { server(if round == 2 { other } else { leader }) };
        let kill_all = || pids.iter().for_each(|pid| kill(*pid, "KILL"));
        let longest = work_through(&cluster, round, kill_all);
        println!("{what} killed: longest put and get {:.2} s", longest.as_secs_f64());
        if 2 <= round {
            // Its code may say that something is still to be repaired.
            let ports = cluster.ports.to_string();
            cluster.run(&["up", "--detach", "--servers", "6", "--port-base", &ports]);
        }
        cluster.wait_status("health", |status| status["health"] == "ok");
    }
}

/// A small file system of its own; `None` where that needs rights that we do not have.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let size = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "braid-test"]).arg(&at);
        let mounted = mount.stderr(Stdio::null()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(at));
        }
        println!("skipped: a small file system cannot be mounted here (needs root)");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test] // Proves: S-4.
fn a_full_local_disk_ends_a_get_with_an_error() {
    let cluster = Cluster::started(3);
    fs::write(cluster.path("x"), vec![5; 3 << 20]).unwrap();
    cluster.ok(&["put", "--quiet", "x", "/x"]);
    // Everybody's full disk.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = cluster.command(&["cat", "/x"]).stdout(full).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("No space left"), "{error}");
    if let Some(small) = SmallDisk::mount(cluster.path("small"), "1M") {
        let error = cluster.fails(1, &["get", "--quiet", "/x", "small/x"]);
        assert!(error.contains("No space left"), "{error}");
        let left = fs::read_dir(&small.0).unwrap().count();
        assert_eq!(left, 0, "a part of a file is no file");
    }
    assert_eq!(cluster.ok(&["cat", "/x"]).len(), 3 << 20);
}

#[test] // Proves: S-4.
fn a_full_cluster_says_so_loses_nothing_and_goes_on_after_a_removal() {
    let cluster = Cluster::new();
    let Some(disk) = SmallDisk::mount(cluster.path("braid-data"), "300M") else { return };
    // The servers must end before their disk goes.
    let (cluster, _disk) = &(cluster, disk);
    cluster.up(3);
    let bytes: Vec<u8> = (0..20_u32 << 20).map(|at| (at >> 7) as u8).collect();
    fs::write(cluster.path("x"), &bytes).unwrap();
    cluster.ok(&["put", "--quiet", "--sync", "x", "/first"]);
    let mut stored = Vec::new();
    let full = (0..20).find_map(|number| {
        let path = format!("/{number}");
        let output = cluster.run(&["put", "--quiet", "x", &path]);
        if output.status.success() {
            stored.push(path);
            return None;
        }
        Some(String::from_utf8_lossy(&output.stderr).into_owned())
    });
    let error = full.expect("400 MB in three copies do not fit 300 MB");
    assert!(error.contains("no space left"), "{error}");
    for path in ["/first".to_owned()].iter().chain(&stored) {
        let output = cluster.run(&["cat", path]);
        assert!(output.stdout == bytes, "{path} is another: {:?}", output.stderr);
    }
    for path in &stored {
        cluster.ok(&["rm", path]);
    }
    // The space comes back once the removals are carried out.
    let mut again = cluster.run(&["put", "--quiet", "x", "/again"]);
    for _ in 0..60 {
        if again.status.success() {
            break;
        }
        let _ = Command::new("sleep").arg("0.5").status();
        again = cluster.run(&["put", "--quiet", "x", "/again"]);
    }
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(cluster.run(&["cat", "/again"]).stdout == bytes, "another content");
}

#[test] // Proves: S-2, F-6.
fn a_flipped_bit_is_not_read_and_is_mended() {
    let cluster = Cluster::started(6);
    let mut seed = 88_172_645_463_325_252_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as u8
    };
    let bytes: Vec<u8> = (0..1 << 20).map(|_| random()).collect();
    fs::write(cluster.path("x"), &bytes).unwrap();
    cluster.ok(&["put", "--quiet", "--sync", "x", "/x"]);
    // Everything is in the portion files, and nothing of it in memory.
    cluster.ok(&["down"]);
    let mut flipped = Vec::new();
    for disk in 1..=6 {
        let folder = cluster.path(&format!("braid-data/server-{disk}/disk-1/portions"));
        for path in files_below(&folder) {
            let found = fs::read(&path).unwrap();
            // Bytes of the file stand in it as they are: the place of a data strip's middle.
            let strip = &bytes[30_000..30_064];
            if let Some(at) = found.windows(64).position(|window| window == strip) {
                flip(&path, at as u64);
                flipped.push((path, found));
            }
        }
    }
    assert_eq!(flipped.len(), 1, "one data portion has these bytes");
    cluster.up(6);
    for _ in 0..2 {
        assert!(cluster.run(&["cat", "/x"]).stdout == bytes, "a wrong byte was read");
    }
    // What is mended goes by the journal; an end brings it to its place.
    cluster.wait_status("health", |status| status["health"] == "ok");
    cluster.ok(&["down"]);
    let (path, good) = &flipped[0];
    let (now, data) = (fs::read(path).unwrap(), 12_288);
    assert!(now[data..] == good[data..], "the bit is still flipped");
    cluster.up(6);
    assert!(cluster.run(&["cat", "/x"]).stdout == bytes, "a wrong byte was read");
}

/// Bits in data, in parity and in a checksum page, that nobody reads.
#[test] // Proves: F-6.
fn a_scrub_finds_flipped_bits_and_the_owners_mend_them() {
    let cluster = Cluster::started(3);
    fs::write(cluster.path("x"), (0..3 << 20).map(|at: u32| (at % 251) as u8).collect::<Vec<_>>())
        .unwrap();
    cluster.ok(&["put", "--quiet", "--sync", "x", "/x"]);
    let device = cluster.json(&["where", "/x", "--json"]);
    // Everything is in the portion files.
    cluster.ok(&["down"]);
    let data_begins = 12_288;
    let portions = device["portions"].as_array().unwrap().iter();
    let portions: Vec<PathBuf> =
        portions.map(|portion| portion["file"].as_str().unwrap().into()).collect();
    assert_eq!(portions.len(), 3);
    let good: Vec<Vec<u8>> = portions.iter().map(|path| fs::read(path).unwrap()).collect();
    // No two of them in one row: one portion more than one may lack is no matter of a scrub.
    flip(&portions[0], data_begins + 5 * 4096 + 17);
    flip(&portions[1], data_begins + 9 * 4096 + 4095);
    flip(&portions[2], data_begins + 30 * 4096);
    cluster.up(3);
    let mut text = cluster.ok(&["scrub", "--wait"]);
    assert!(text.contains("3 disks"), "{text}");
    for _ in 0..60 {
        if text.contains(", 0 bad") {
            break;
        }
        let _ = Command::new("sleep").arg("0.5").status();
        text = cluster.ok(&["scrub", "--wait"]);
    }
    assert!(text.contains(", 0 bad"), "{text}");
    let status = cluster.wait_status("blocks written anew", |status| {
        status["health"] == "ok" && status["scrub"]["bad_blocks"] == 0
    });
    assert_eq!(status["scrub"]["disks"].as_array().map(Vec::len), Some(3), "{status:#}");
    assert!(status["scrub"]["oldest_seconds"].as_u64().unwrap() < 600, "{status:#}");
    // Data and parity belong together, too.
    let text = cluster.ok(&["scrub", "/"]);
    assert!(text.contains(" 0 bad"), "{text}");
    assert!(!text.contains("could not be compared"), "{text}");
    // What is mended goes by the journal; an end brings it to its place.
    cluster.ok(&["down"]);
    for (path, good) in portions.iter().zip(&good) {
        let now = fs::read(path).unwrap();
        assert!(
            now[data_begins as usize..] == good[data_begins as usize..],
            "a bit is still flipped"
        );
    }
}

fn files_below(folder: &std::path::Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    folders
        .flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()))
        .collect()
}

fn flip(path: &std::path::Path, at: u64) {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 4]).unwrap();
}
