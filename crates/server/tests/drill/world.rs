//! The servers of a drill: on loopback, or each in a network namespace of its own.
//!
//! ```text
//! hub namespace: clients, a bridge      10.99.1.1
//!    |- port1 - veth - namespace of server 1    10.99.0.1   (a process holds it, and ends with us)
//!    |- port2 - veth - namespace of server 2    10.99.0.2
//! ```
//! The thread that makes it moves into the hub, and with it all threads and processes that it starts.
//! Namespaces have no names: nothing of them is left, however the drill ends.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::common::{Cluster, kill, pids_in};
use crate::faults::pause;

pub const SERVERS: u64 = 6;

/// Size of the small file system of one server's disk.
const SMALL_DISK: u64 = 768 << 20;

pub struct World {
    pub cluster: Cluster,
    mount: Option<Mount>,
    hub: Option<Hub>,
    served: Vec<Child>,
    /// A disk with a small file system, and whose it is.
    small: Option<SmallDisk>,
    pub has_nft: bool,
    /// What this machine cannot do, and why.
    pub skipped: Vec<String>,
}

impl World {
    /// A cluster that is up.
    pub fn start(small_disk_of: u64, has_mount: bool) -> Self {
        let cluster = Cluster::new();
        let mut skipped = Vec::new();
        let hub = Hub::make().map_err(|why| skipped.push(format!("{NO_NAMESPACES}: {why}"))).ok();
        let ports = cluster.ports.to_string();
        let servers = SERVERS.to_string();
        let fixed = ["up", "--servers", &servers, "--port-base", &ports];
        cluster.ok(&[&fixed[..], &["--only-make"]].concat());
        if hub.is_some() {
            give_addresses(&cluster);
        }
        let disk = cluster.path(&format!("braid-data/server-{small_disk_of}/disk-1"));
        let small = SmallDisk::make(&cluster.path("small.img"), &disk, small_disk_of)
            .map_err(|why| skipped.push(format!("a full disk: {why}")))
            .ok();
        let has_nft = hub.is_some() && run("nft", &["list", "ruleset"]).is_ok();
        if hub.is_some() && !has_nft {
            skipped.push("partitions in one direction: nft is not installed".to_owned());
        }
        let served = Vec::new();
        let mut world = Self { cluster, mount: None, hub, served, small, has_nft, skipped };
        world.start_missing();
        world.cluster.wait_status("health", |status| status["health"] == "ok");
        if has_mount {
            world.mount = Mount::start(&world.cluster)
                .map_err(|why| world.skipped.push(format!("a client with a mount: {why}")))
                .ok();
        }
        world
    }

    pub fn has_namespaces(&self) -> bool {
        self.hub.is_some()
    }

    pub fn small_disk(&self) -> Option<&SmallDisk> {
        self.small.as_ref()
    }

    pub fn mount(&self) -> Option<&Path> {
        self.mount.as_ref().map(|mount| mount.directory.as_path())
    }

    /// Ends everything that waits in the mount.
    pub fn abort_mount(&self) {
        if let Some(mount) = &self.mount {
            let _ = fs::write(format!("/sys/fs/fuse/connections/{}/abort", mount.connection), "1");
        }
    }

    pub fn status(&self) -> Value {
        let output = self.cluster.run(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    pub fn pids(&self, server: u64, role: &str) -> Vec<i32> {
        pids_in(&self.status(), server, role)
    }

    /// Starts the servers that do not run.
    pub fn start_missing(&mut self) {
        for server in 1..=SERVERS {
            let folder = format!("braid-data/server-{server}");
            if is_running(&self.cluster.path(&folder)) {
                continue;
            }
            let log = self.cluster.path(&folder).join("log");
            fs::create_dir_all(&log).unwrap();
            let log = File::options().create(true).append(true).open(log.join("main.log")).unwrap();
            let braid = self.cluster.command(&[]);
            let mut serve = match &self.hub {
                Some(hub) => hub.command_of(server, braid.get_program().to_str().unwrap()),
                None => self.cluster.command(&[]),
            };
            serve.args(["serve", "--dir", &folder]).current_dir(self.cluster.folder.path());
            serve.env_remove("BRAID_CLUSTER").env_remove("RUST_LOG");
            serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            // Who ended before is no zombie from now on.
            self.served.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            self.served.push(serve.spawn().unwrap());
        }
    }

    /// All servers end cleanly and are started again.
    pub fn restart(&mut self) {
        drop(self.mount.take());
        self.cluster.ok(&["down"]);
        self.start_missing();
    }

    /// Cuts a server off; nothing where it has no namespace.
    pub fn cut(&self, server: u64, cut: Cut) {
        let Some(hub) = &self.hub else { return };
        let port = format!("port{server}");
        let done = match cut {
            Cut::Link => run("ip", &["link", "set", &port, "down"]),
            Cut::Towards => hub.drop_in(server, "10.99.0.0/16"),
            Cut::From => drop_from(&port, ""),
            Cut::OtherServers => hub
                .drop_in(server, "10.99.0.0/24")
                .and_then(|()| drop_from(&port, "ip daddr 10.99.0.0/24")),
        };
        done.unwrap();
    }

    pub fn heal_cuts(&self) {
        let Some(hub) = &self.hub else { return };
        for server in 1..=SERVERS {
            run("ip", &["link", "set", &format!("port{server}"), "up"]).unwrap();
            if self.has_nft {
                let mut flush = hub.command_of(server, "nft");
                finished(flush.args(["flush", "ruleset"])).unwrap();
            }
        }
        if self.has_nft {
            run("nft", &["flush", "ruleset"]).unwrap();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.mount.take());
        // The servers end before their disk and their network go.
        let _ = self.cluster.run(&["down"]);
        drop(self.small.take());
    }
}

const NO_NAMESPACES: &str = "partitions, dead machines (servers are on loopback)";

/// Which packets of a server are lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// All.
    Link,
    /// Those that are sent to it.
    Towards,
    /// Those that it sends.
    From,
    /// Those to and from other servers; clients reach it.
    OtherServers,
}

struct Hub {
    _hub: Namespace,
    servers: Vec<Namespace>,
}

impl Hub {
    /// Moves this thread into it.
    fn make() -> Result<Self, String> {
        let hub = Namespace::make()?;
        let servers = (0..SERVERS).map(|_| Namespace::make()).collect::<Result<Vec<_>, _>>()?;
        let link = File::open(hub.path()).map_err(|error| error.to_string())?;
        move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| format!("a namespace cannot be entered: {error}"))?;
        run("ip", &["link", "set", "lo", "up"])?;
        run("ip", &["link", "add", "hub", "type", "bridge"])?;
        run("ip", &["address", "add", "10.99.1.1/16", "dev", "hub"])?;
        run("ip", &["link", "set", "hub", "up"])?;
        let hub = Self { _hub: hub, servers };
        for (server, space) in (1..).zip(&hub.servers) {
            let (port, pid) = (format!("port{server}"), space.0.id().to_string());
            let pair = ["type", "veth", "peer", "name", "rear", "netns", &pid];
            run("ip", &[&["link", "add", &port][..], &pair].concat())?;
            run("ip", &["link", "set", &port, "master", "hub", "up"])?;
            let address = format!("10.99.0.{server}/16");
            for line in [
                &["link", "set", "lo", "up"][..],
                &["address", "add", &address, "dev", "rear"],
                &["link", "set", "rear", "up"],
            ] {
                finished(hub.command_of(server, "ip").args(line))?;
            }
        }
        Ok(hub)
    }

    fn command_of(&self, server: u64, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.servers[server as usize - 1].path()));
        command.arg("--").arg(program);
        command
    }

    /// What comes from there to the server is lost.
    fn drop_in(&self, server: u64, from: &str) -> Result<(), String> {
        let mut nft = self.command_of(server, "nft");
        let rules = format!(
            "table ip drill {{\n chain in {{\n type filter hook prerouting priority -300;\n \
             iifname \"rear\" ip saddr {from} drop\n }}\n}}\n"
        );
        finished(nft.arg(rules))
    }
}

/// What comes from a server is lost, as far as it matches.
fn drop_from(port: &str, matching: &str) -> Result<(), String> {
    let rules = format!(
        "table netdev drill {{\n chain {port} {{\n type filter hook ingress device \"{port}\" priority \
         0;\n {matching} drop\n }}\n}}\n"
    );
    run("nft", &[&rules])
}

/// A network namespace, as long as its process lives; that ends when nobody holds its input.
struct Namespace(Child);

impl Namespace {
    fn make() -> Result<Self, String> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo; exec cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| format!("unshare: {error}"))?;
        let mut made = Self(child);
        let mut line = String::new();
        let output = made.0.stdout.as_mut().expect("piped");
        match BufReader::new(output).read_line(&mut line) {
            Ok(1..) => Ok(made),
            _ => Err("unshare --net: not permitted".to_owned()),
        }
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Gives each server of a cluster that was just made an address of its own.
fn give_addresses(cluster: &Cluster) {
    let first = u64::from(cluster.ports);
    let moved = |text: &str| {
        let mut pieces = text.split("127.0.0.1:");
        let mut moved = pieces.next().unwrap().to_owned();
        for piece in pieces {
            let digits: String = piece.chars().take_while(char::is_ascii_digit).collect();
            let server = (digits.parse::<u64>().unwrap() - first) / 20 + 1;
            moved += &format!("10.99.0.{server}:{piece}");
        }
        moved
    };
    let mut files = vec![cluster.path("braid-data/client.toml")];
    for server in 1..=SERVERS {
        let folder = cluster.path(&format!("braid-data/server-{server}"));
        files.extend([folder.join("server.toml"), folder.join("first-map.json")]);
    }
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, moved(&text)).unwrap();
    }
}

fn is_running(folder: &Path) -> bool {
    let Ok(lock) = File::options().write(true).open(folder.join("run/lock")) else { return false };
    let exclusively = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&lock, exclusively).is_err()
}

/// A small file system with the disk of one server.
pub struct SmallDisk {
    pub server: u64,
    folder: PathBuf,
}

impl SmallDisk {
    fn make(image: &Path, disk: &Path, server: u64) -> Result<Self, String> {
        let file = File::create(image).map_err(|error| error.to_string())?;
        file.set_len(SMALL_DISK).map_err(|error| error.to_string())?;
        let image = image.to_str().ok_or("its name")?;
        run("mkfs.ext4", &["-q", "-F", "-m", "0", image])?;
        let before = disk.with_extension("before");
        fs::rename(disk, &before).map_err(|error| error.to_string())?;
        fs::create_dir(disk).map_err(|error| error.to_string())?;
        let folder = disk.to_str().ok_or("its name")?;
        if let Err(why) = run("mount", &["-o", "loop", image, folder]) {
            fs::remove_dir(disk).and_then(|()| fs::rename(&before, disk)).unwrap();
            return Err(why);
        }
        let small = Self { server, folder: disk.to_owned() };
        fs::remove_dir(disk.join("lost+found")).map_err(|error| error.to_string())?;
        let from = format!("{}/.", before.display());
        run("cp", &["-a", &from, folder])?;
        Ok(small)
    }

    /// Takes all its space.
    pub fn fill(&self) {
        let free = || rustix::fs::statvfs(&self.folder).map_or(0, |s| s.f_bavail * s.f_frsize);
        // What others write meanwhile takes from it, too: no piece may be too large for what is left.
        for piece in 0..12 {
            let size = if piece < 8 { free() / 2 } else { free() }.max(1).to_string();
            let name = self.folder.join(format!("filler-{piece}"));
            let _ = run("fallocate", &["-l", &size, name.to_str().unwrap()]);
        }
    }

    pub fn free(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("filler-") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if run("umount", &[self.folder.to_str().unwrap()]).is_err() {
            let _ = run("umount", &["--lazy", self.folder.to_str().unwrap()]);
        }
    }
}

/// A mount that ends with the drill.
struct Mount {
    directory: PathBuf,
    process: Child,
    /// Number of its connection in the kernel.
    connection: u32,
}

impl Mount {
    fn start(cluster: &Cluster) -> Result<Self, String> {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|error| format!("/dev/fuse: {error}"))?;
        // Beside no server's folder: it must take the network.
        let away = cluster.path("client");
        fs::create_dir_all(&away).unwrap();
        fs::copy(cluster.path("braid-data/client.toml"), away.join("client.toml")).unwrap();
        let directory = cluster.path("mnt");
        fs::create_dir_all(&directory).unwrap();
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).unwrap_or(0);
        let before = device(&directory);
        let log = File::create(away.join("mount.log")).unwrap();
        let mut command = cluster.command(&["--cluster", "client/client.toml", "mount", "mnt"]);
        command.env("RUST_LOG", "info,openraft=error");
        command.arg("--foreground").stdout(Stdio::null()).stderr(log);
        let mut process = command.spawn().map_err(|error| error.to_string())?;
        while device(&directory) == before {
            if !matches!(process.try_wait(), Ok(None)) {
                let why = fs::read_to_string(away.join("mount.log")).unwrap_or_default();
                return Err(why.trim().lines().last().unwrap_or("it ended").to_owned());
            }
            pause(20);
        }
        let connection = rustix::fs::minor(device(&directory));
        Ok(Self { directory, process, connection })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let place = self.directory.to_str().unwrap();
        if run("umount", &[place]).is_err() {
            let _ = run("umount", &["--lazy", place]);
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

/// Runs a program; its last line where it fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    finished(Command::new(program).args(arguments))
}

fn finished(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output();
    let name = command.get_program().to_string_lossy().into_owned();
    let output = output.map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name}: {}", error.trim().lines().last().unwrap_or("failed")))
}

pub fn signal(pids: &[i32], signal: &str) {
    pids.iter().for_each(|pid| kill(*pid, signal));
}
