//! A child process of a server: one role with its heartbeat.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use braid_coordinator::CoordinatorConfig;
use braid_env::{Address, Env, machine};
use braid_io_server::{IoConfig, Limits};
use braid_local_controller::lc::{LcConfig, LcEnd, Registrant, Threads};
use braid_terms::{ClusterMap, DiskId, ServerId};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::inherited::{self, Handed};
use crate::layout::ServerFile;

/// Runs a role until it ends or is told to.
///
/// Errors: a text for people.
pub fn run(role: &str, folder: &Path, disk: Option<u32>) -> Result<(), String> {
    let Handed { heartbeat, sockets } = inherited::take()?;
    let file = ServerFile::read(folder)?;
    let sockets = Cell::new(sockets);
    let threads = match role {
        "lc" if 1 < file.lccs => Threads::Each(Rc::new(RefCell::new(sockets.take()))),
        _ => Threads::One,
    };
    machine::run(async move {
        let env = machine::env(sockets.take());
        spawn_local(beat(heartbeat));
        match role {
            "coordinator" => coordinator(env, folder, &file).await,
            "io" => io(env, folder, &file, disk.ok_or("an I/O server needs --disk")?).await,
            "lc" => lc(env, folder, &file, threads).await,
            other => Err(format!("there is no role {other}")),
        }
    })
    .map_err(|error| error.to_string())?
}

/// Tells the main controller every second that the loop turns; ends when the main controller does.
async fn beat(heartbeat: OwnedFd) {
    let heartbeat = std::os::unix::net::UnixStream::from(heartbeat);
    let Ok(heartbeat) = UnixStream::from_std(heartbeat) else { return };
    loop {
        match heartbeat.try_write(&[1]) {
            Ok(_) => {}
            // The main controller stands still: it will read later.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        tokio::select! {
            () = sleep(Duration::from_secs(1)) => {}
            () = ended(&heartbeat) => break,
        }
    }
    tracing::error!("the main controller is gone");
    std::process::exit(1);
}

/// Waits for the end of the heartbeat; the main controller never writes on it.
async fn ended(heartbeat: &UnixStream) {
    while heartbeat.readable().await.is_ok() {
        match heartbeat.try_read(&mut [0]) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Waits for SIGTERM; SIGINT is the main controller's to handle, for a terminal sends it to all.
async fn told_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let interrupt = signal(SignalKind::interrupt());
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
        }
        Err(error) => {
            tracing::error!(%error, "no signal can be waited for");
            std::future::pending::<()>().await;
        }
    }
    drop(interrupt);
}

async fn coordinator(env: Env, folder: &Path, file: &ServerFile) -> Result<(), String> {
    let first_map = std::fs::read_to_string(folder.join("first-map.json"))
        .ok()
        .map(|text| serde_json::from_str::<ClusterMap>(&text))
        .transpose()
        .map_err(|error| format!("first-map.json: {error}"))?;
    let state = folder.join("coordinator");
    std::fs::create_dir_all(&state).map_err(|error| format!("{}: {error}", state.display()))?;
    let config = CoordinatorConfig {
        server: ServerId(file.id),
        cluster: file.cluster_id()?,
        listen: vec![Address::Tcp(file.coordinator)],
        folder: state,
        members: file.member.iter().map(|member| (ServerId(member.id), member.address)).collect(),
        first_map,
    };
    tokio::select! {
        end = braid_coordinator::run(env, config) => end.map_err(|error| format!("{error:?}")),
        () = told_to_end() => Ok(()),
    }
}

async fn io(env: Env, folder: &Path, file: &ServerFile, disk: u32) -> Result<(), String> {
    let entry = file.disk.iter().find(|entry| entry.id == disk);
    let entry = entry.ok_or_else(|| format!("this server has no disk {disk}"))?;
    let config = IoConfig {
        disk: DiskId(disk),
        folder: entry.path.clone(),
        cluster: file.cluster_id()?,
        server: ServerId(file.id),
        listen: vec![
            Address::Tcp(entry.address),
            Address::Unix(ServerFile::io_socket(folder, disk)),
        ],
        coordinators: file.coordinators(),
        limits: Limits::default(),
    };
    let end = braid_io_server::run_until(env, config, told_to_end()).await;
    end.map_err(|fatal| fatal.to_string())
}

async fn lc(env: Env, folder: &Path, file: &ServerFile, threads: Threads) -> Result<(), String> {
    let here = folder.parent().unwrap_or(folder);
    let sockets = ServerFile::io_sockets(here, file.cluster_id()?, Some(file.lc.ip()));
    let local = folder.join("local");
    std::fs::create_dir_all(&local).map_err(|error| format!("{}: {error}", local.display()))?;
    let shutdown = Rc::new(Notify::new());
    let config = LcConfig {
        registrant: Registrant::Server(ServerId(file.id)),
        cluster: file.cluster_id()?,
        listen: vec![Address::Tcp(file.lc)],
        coordinators: file.coordinators(),
        io_sockets: sockets,
        lccs: file.lccs,
        threads,
        groups_kept: GROUPS_KEPT,
        local: Some(local),
        shutdown: shutdown.clone(),
    };
    spawn_local(async move {
        told_to_end().await;
        shutdown.notify_one();
    });
    match braid_local_controller::lc::run(env, config).await {
        LcEnd::Clean => Ok(()),
        end => Err(format!("the LC ended: {end:?}")),
    }
}

/// Groups that an LCC keeps open without need.
const GROUPS_KEPT: usize = 20_000;
