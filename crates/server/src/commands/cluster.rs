//! `up` and `down`: the embedded cluster of this machine.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use braid_client::{ClusterFile, ServerEntry};
use braid_env::{Env, machine};
use braid_io_server::{DiskError, DiskIdentity, format_disk};
use braid_terms::{ClusterId, ClusterMap, DiskId, ServerId};
use braid_wire::main_controller::{MainReply, MainRequest};
use tokio::time::{Instant, sleep, timeout};

use super::Outcome;
use super::health::{self, Health};
use super::mount;
use crate::cli::Up;
use crate::layout::{ServerFile, new_cluster, server_folder};
use crate::output::{DEGRADED, Failure};

/// Servers of a new cluster where nothing is said.
const SERVERS_USUAL: u32 = 6;

/// Longest wait for a started cluster to be healthy.
const HEALTHY_WAIT: Duration = Duration::from_secs(60);

/// Longest wait for a server to end cleanly.
const DOWN_WAIT: Duration = Duration::from_secs(60);

/// Starts the cluster of a folder, making it first if it is new.
pub fn up(up: &Up) -> Outcome {
    machine::run(async {
        let env = machine::env(Default::default());
        if up.only_make {
            make(&env, up).await?;
            return Ok(ExitCode::SUCCESS);
        }
        let started = Instant::now();
        start(&env, up).await?;
        let file = super::read_cluster_file(&up.dir.join("client.toml"))?;
        let health = wait_healthy(&env, &file).await?;
        println!(
            "{} servers are up after {:.1} s, health: {}",
            file.servers.len(),
            started.elapsed().as_secs_f64(),
            health.word()
        );
        let client_file = up.dir.join("client.toml");
        println!("cluster file: {}", client_file.display());
        println!("try:  braid --cluster {} put README.md /README.md", client_file.display());
        if let Some(directory) = &up.mount {
            mount::start_of_cluster(&up.dir, &client_file, directory)?;
            println!("mounted at {}", directory.display());
        }
        let code = if health == Health::Ok { ExitCode::SUCCESS } else { ExitCode::from(DEGRADED) };
        if up.detach {
            return Ok(code);
        }
        println!("Ctrl-C stops it");
        let signal = tokio::signal::unix::SignalKind::terminate();
        let mut terminate = tokio::signal::unix::signal(signal)?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            _ = terminate.recv() => {}
        }
        println!("stopping");
        stop(&env, &up.dir).await?;
        Ok(ExitCode::SUCCESS)
    })?
}

/// Stops the cluster of a folder.
pub fn down(dir: &Path) -> Outcome {
    machine::run(async {
        let env = machine::env(Default::default());
        let count = stop(&env, dir).await?;
        match count {
            0 => println!("nothing was running in {}", dir.display()),
            count => println!("stopped {count} servers"),
        }
        Ok(ExitCode::SUCCESS)
    })?
}

/// Makes what is missing and starts the servers that do not run; does not wait for them.
///
/// Errors: all of them run already.
pub async fn start(env: &Env, up: &Up) -> Result<(), Failure> {
    if !up.dir.join("client.toml").is_file() {
        make(env, up).await?;
    }
    let file = super::read_cluster_file(&up.dir.join("client.toml"))?;
    let there = u32::try_from(file.servers.len()).unwrap_or(u32::MAX);
    if let Some(asked) = up.servers.filter(|asked| *asked != there) {
        return Err(Failure::Usage(format!(
            "the cluster in {} has {there} servers, not {asked}; leave --servers out, or choose \
             another --dir for a new cluster",
            up.dir.display()
        )));
    }
    let is_down = |server: &&ServerEntry| !is_running(&server_folder(&up.dir, server.id.0));
    let mut down = file.servers.iter().filter(is_down).peekable();
    if down.peek().is_none() {
        let name = up.dir.display();
        return Err(Failure::Failed(format!(
            "all servers of {name} run already; `braid down --dir {name}` stops them"
        )));
    }
    down.try_for_each(|server| start_server(&up.dir, server.id))
}

/// Starts one server of the folder as a process of its own.
pub fn start_server(dir: &Path, id: ServerId) -> Result<(), Failure> {
    let folder = server_folder(dir, id.0);
    if is_running(&folder) {
        let name = dir.display();
        return Err(Failure::Failed(format!(
            "server {id} of {name} runs already; `braid down --dir {name}` stops it"
        )));
    }
    ServerFile::read(&folder)?;
    check_ports(&folder)?;
    let log = folder.join("log");
    std::fs::create_dir_all(&log)?;
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log.join("main.log"))?;
    let program = std::env::current_exe()?;
    let mut command = std::process::Command::new(program);
    command.arg("serve").arg("--dir").arg(&folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // Ctrl-C of the terminal is for `up`, which then ends the servers in order.
    command.process_group(0);
    command.spawn().map_err(|error| Failure::Failed(format!("server {id}: {error}")))?;
    Ok(())
}

/// Told before the server is started, so that the command can say it.
fn check_ports(folder: &Path) -> Result<(), Failure> {
    let file = ServerFile::read(folder)?;
    let disks = file.disk.iter().map(|disk| disk.address);
    for address in [file.lc, file.coordinator, file.main].into_iter().chain(disks) {
        if let Err(error) = std::net::TcpListener::bind(address) {
            return Err(Failure::Failed(format!(
                "port {} of {} cannot be had: {error}; end what uses it or choose another --port-base",
                address.port(),
                address.ip()
            )));
        }
    }
    Ok(())
}

/// Whether a server's main controller holds its lock.
pub fn is_running(folder: &Path) -> bool {
    let Ok(lock) = std::fs::OpenOptions::new().write(true).open(folder.join("run/lock")) else {
        return false;
    };
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
}

async fn make(env: &Env, up: &Up) -> Result<(), Failure> {
    let dir = absolute(&up.dir)?;
    if dir.exists() && std::fs::read_dir(&dir)?.next().is_some() {
        return Err(Failure::Failed(format!(
            "{} is not empty and no cluster: it has no client.toml; choose another --dir",
            dir.display()
        )));
    }
    let cluster = ClusterId(env.random_u128());
    let servers = up.servers.unwrap_or(SERVERS_USUAL);
    if servers < 3 {
        eprintln!(
            "warning: with {servers} server(s) the cluster survives the loss of disks, not of servers"
        );
    }
    let (files, map) =
        new_cluster(cluster, &dir, servers, up.disks, up.port_base, || env.random_u128())?;
    for file in &files {
        make_server(env, &dir, file, &map).await?;
    }
    let servers = files.iter().map(|file| ServerEntry {
        id: ServerId(file.id),
        lc: file.lc,
        coordinator: file.coordinator,
        main: file.main,
    });
    let client = ClusterFile { cluster, name: map.name.clone(), servers: servers.collect() };
    // Written last: a folder without it is no cluster yet.
    std::fs::write(dir.join("client.toml"), client.to_string())?;
    Ok(())
}

async fn make_server(
    env: &Env,
    dir: &Path,
    file: &ServerFile,
    map: &ClusterMap,
) -> Result<(), Failure> {
    let folder = server_folder(dir, file.id);
    std::fs::create_dir_all(&folder)?;
    let text = toml::to_string(file).map_err(|error| Failure::Failed(error.to_string()))?;
    std::fs::write(folder.join("server.toml"), text)?;
    let text = serde_json::to_string(map).map_err(|error| Failure::Failed(error.to_string()))?;
    std::fs::write(folder.join("first-map.json"), text)?;
    for disk in &file.disk {
        std::fs::create_dir_all(&disk.path)?;
        let identity = DiskIdentity {
            cluster: map.cluster,
            disk: DiskId(disk.id),
            identity: map.disks[&DiskId(disk.id)].identity,
        };
        let formatted = format_disk(env, &disk.path, identity).await;
        formatted.map_err(|error: DiskError| {
            Failure::Failed(format!("{}: {error}", disk.path.display()))
        })?;
    }
    Ok(())
}

fn absolute(dir: &Path) -> Result<std::path::PathBuf, Failure> {
    Ok(std::path::absolute(dir)?)
}

/// Waits until every server takes part and the root directory is there.
pub async fn wait_healthy(env: &Env, file: &ClusterFile) -> Result<Health, Failure> {
    let end = Instant::now() + HEALTHY_WAIT;
    loop {
        let seen = health::look(env, file, Duration::from_secs(1)).await;
        let health = seen.health();
        if health == Health::Ok && seen.map.as_ref().is_some_and(|map| map.root.is_some()) {
            return Ok(health);
        }
        if end <= Instant::now() {
            let reasons = seen.reasons().join("; ");
            // Servers of before may be away for good: what works is told with what does not.
            let works = seen.map.as_ref().is_some_and(|map| map.root.is_some());
            if works && health != Health::Unavailable {
                eprintln!("warning: {reasons}");
                return Ok(health);
            }
            return Err(Failure::Unreachable(format!(
                "the cluster is not healthy after {} s: {reasons}; see the log folders",
                HEALTHY_WAIT.as_secs()
            )));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Ends all servers of the folder; returns how many were running.
pub async fn stop(env: &Env, dir: &Path) -> Result<usize, Failure> {
    let file = super::read_cluster_file(&dir.join("client.toml"))?;
    // What waits in its memory needs the servers.
    mount::end_of_cluster(dir, DOWN_WAIT).await?;
    let running: Vec<&ServerEntry> =
        file.servers.iter().filter(|server| is_running(&server_folder(dir, server.id.0))).collect();
    // All LCs first: they need the others' I/O servers and coordinators to end cleanly.
    let lcs = running.iter().map(|server| async {
        let asked = health::ask_main(env, &file, server, &MainRequest::EndLc);
        let _ = timeout(DOWN_WAIT / 2, asked).await;
    });
    futures_util::future::join_all(lcs).await;
    let ends = running.iter().map(|server| async {
        let reply = health::ask_main(env, &file, server, &MainRequest::End).await;
        if !matches!(reply, Some(MainReply::Ending)) {
            tracing::warn!(server = %server.id, "does not answer; it is sent a signal");
            let pid = std::fs::read_to_string(server_folder(dir, server.id.0).join("run/main.pid"));
            let pid = pid.ok().and_then(|pid| pid.trim().parse().ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
    });
    futures_util::future::join_all(ends).await;
    let end = Instant::now() + DOWN_WAIT;
    for server in &running {
        while is_running(&server_folder(dir, server.id.0)) {
            if end <= Instant::now() {
                return Err(Failure::Failed(format!(
                    "server {} does not end; see its log folder",
                    server.id
                )));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(running.len())
}
