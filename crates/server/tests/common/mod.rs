//! A real cluster of this machine in a folder of its own, ended with the test.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::Value;

/// Tests of one process take different ports; those of others are found taken.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// Ports that no other test takes as long as this lives, in whatever process it runs.
pub struct Ports {
    pub base: u16,
    _lock: std::fs::File,
}

pub fn free_ports(count: u16) -> Ports {
    loop {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        let spread = (std::process::id() as u16 % 68).wrapping_mul(160);
        let base = 21_000 + (spread + turn.wrapping_mul(160)) % 10_880;
        let path = std::env::temp_dir().join(format!("braid-test-ports-{base}"));
        let Ok(lock) = std::fs::File::create(path) else { continue };
        let exclusively = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        let is_ours = rustix::fs::flock(&lock, exclusively).is_ok();
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if is_ours && (base..base + count).all(free) {
            return Ports { base, _lock: lock };
        }
    }
}

pub struct Cluster {
    pub folder: tempfile::TempDir,
    pub ports: u16,
    _reserved: Ports,
}

impl Cluster {
    pub fn new() -> Self {
        let reserved = free_ports(120);
        let folder = tempfile::tempdir().unwrap();
        Self { folder, ports: reserved.base, _reserved: reserved }
    }

    pub fn started(servers: u32) -> Self {
        let cluster = Self::new();
        cluster.up(servers);
        cluster
    }

    pub fn up(&self, servers: u32) {
        let (servers, ports) = (servers.to_string(), self.ports.to_string());
        self.ok(&["up", "--detach", "--servers", &servers, "--port-base", &ports]);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_braid"));
        command.args(arguments).current_dir(self.folder.path());
        command.env_remove("BRAID_CLUSTER").env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs what must succeed; its standard output.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "braid {arguments:?}: {}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.logs()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what must fail with this exit code; its standard error.
    #[track_caller]
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "braid {arguments:?}: {error}");
        assert!(!error.trim().is_empty(), "braid {arguments:?} says nothing");
        error
    }

    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    /// Waits until `condition` holds of the status; gives up after a minute.
    #[track_caller]
    pub fn wait_status(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        // Each look takes its time, so that this is no busy loop.
        for _ in 0..600 {
            let output = self.run(&["status", "--json"]);
            if let Ok(status) = serde_json::from_slice::<Value>(&output.stdout) {
                if condition(&status) {
                    return status;
                }
                last = status;
            }
            let _ = Command::new("sleep").arg("0.1").status();
        }
        panic!("{what} did not come: {last:#}\n{}", self.logs());
    }

    /// Process ids of a server by role.
    pub fn pids(&self, server: u64, role: &str) -> Vec<i32> {
        pids_in(&self.json(&["status", "--json"]), server, role)
    }

    pub fn logs(&self) -> String {
        let mut text = String::new();
        for server in 1..=6 {
            let folder = self.path(&format!("braid-data/server-{server}/log"));
            let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            for entry in entries {
                let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(12).collect();
                text += &format!("--- {}\n", entry.path().display());
                for line in tail.into_iter().rev() {
                    text += &format!("{line}\n");
                }
            }
        }
        text
    }
}

/// Process ids of a server by role, as a status tells them; none where it tells nothing of it.
pub fn pids_in(status: &Value, server: u64, role: &str) -> Vec<i32> {
    let servers = status["servers"].as_array().into_iter().flatten();
    let of_server = servers.filter(|found| found["id"] == server);
    let processes = of_server.filter_map(|found| found["processes"].as_array()).flatten();
    let of_role = processes.filter(|process| role.is_empty() || process["role"] == role);
    of_role.filter_map(|process| process["pid"].as_i64()).map(|pid| pid as i32).collect()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.path("braid-data/client.toml").is_file() {
            let _ = self.run(&["down"]);
            // Whatever did not end cleanly must not outlive the test.
            for server in 1..=6 {
                let pid = self.path(&format!("braid-data/server-{server}/run/main.pid"));
                let pid = std::fs::read_to_string(pid).ok().and_then(|pid| pid.parse().ok());
                if let Some(pid) = pid.filter(|pid| is_braid(*pid)) {
                    kill(pid, "KILL");
                }
            }
        }
    }
}

fn is_braid(pid: i32) -> bool {
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.contains("serve") && line.contains("braid")
}

pub fn kill(pid: i32, signal: &str) {
    let _ = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status();
}

/// Files of many sizes, some in folders; the same each time.
pub fn make_tree(folder: &Path, count: u32) {
    std::fs::create_dir_all(folder.join("a/b")).unwrap();
    std::fs::create_dir_all(folder.join("empty")).unwrap();
    for index in 0..count {
        let place = ["", "a", "a/b"][index as usize % 3];
        let length = match index % 7 {
            0 => 0,
            1 => 1,
            2 => 4096,
            3 => 4097,
            4 => 70_000,
            5 => 300_000,
            _ => 1000,
        };
        let bytes: Vec<u8> =
            (0..length).map(|at| (at * 31 + index * 17 + at / 251) as u8).collect();
        std::fs::write(folder.join(place).join(format!("file {index}")), bytes).unwrap();
    }
    std::os::unix::fs::symlink("file 1", folder.join("link")).unwrap();
}

pub fn assert_same_tree(left: &Path, right: &Path) {
    let output = Command::new("diff").args(["-r", "--no-dereference"]).args([left, right]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
