//! The parent process of a server: binds the sockets, starts the roles, watches and restarts them.
//! # Theory
//! ```text
//! spawn child (sockets, heartbeat) -> running -exits---------------> pause -> spawn
//!                                             -silent for HUNG_AFTER-> SIGKILL -> exits
//! ```
//! A child writes a byte on its heartbeat every second, from the loop that does its work; the end of
//! the heartbeat tells a child that its main controller is gone, and it ends too.
//! # Failure
//! A child that keeps failing is started with growing pauses, up to `PAUSE_MAX`.
//! # Source
//! DESIGN 2.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use braid_env::{Address, Env, Payload, machine};
use braid_terms::{ClusterId, DiskId, ServerId};
use braid_wire::main_controller::{
    MainController, MainReply, MainRequest, ProcessInfo, ProcessRole,
};
use braid_wire::rpc::{Handler, Hello, HelloReply, serve};
use bytes::Bytes;
use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use crate::inherited;
use crate::layout::ServerFile;

/// Silence of a child after which it counts as hung.
const HUNG_AFTER: Duration = Duration::from_secs(5);
/// First and longest pause before a restart.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A child that ran for so long is healthy: its next restart is at once.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// Longest wait for a child to end cleanly.
const END_WAIT: Duration = Duration::from_secs(30);

struct Child {
    role: ProcessRole,
    disk: Option<u32>,
    addresses: Vec<Address>,
    sockets: Vec<OwnedFd>,
    pid: Cell<Option<u32>>,
    restarts: Cell<u32>,
    /// Not to be started again.
    stopped: Cell<bool>,
    last_end: RefCell<Option<String>>,
    ended: Notify,
}

struct Main {
    folder: PathBuf,
    file: ServerFile,
    cluster: ClusterId,
    children: Vec<Child>,
    ending: Cell<bool>,
    end: Notify,
    started: Instant,
}

/// Runs a server until it is told to end.
///
/// Errors: a text for people.
pub fn run(folder: &Path) -> Result<(), String> {
    let folder = folder.canonicalize().map_err(|error| format!("{}: {error}", folder.display()))?;
    let file = ServerFile::read(&folder)?;
    let cluster = file.cluster_id()?;
    let run = folder.join("run");
    std::fs::create_dir_all(&run).map_err(|error| format!("{}: {error}", run.display()))?;
    let lock = std::fs::File::create(run.join("lock")).map_err(|error| error.to_string())?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| format!("{} runs already", folder.display()))?;
    std::fs::write(run.join("main.pid"), std::process::id().to_string())
        .map_err(|error| error.to_string())?;
    let children = children_of(&folder, &file)?;
    let listener = bind(&Address::Tcp(file.main))?;
    let main_address = file.main;
    machine::run(async move {
        let main = Rc::new(Main {
            folder,
            file,
            cluster,
            children,
            ending: Cell::new(false),
            end: Notify::new(),
            started: Instant::now(),
        });
        let mut sockets = machine::Inherited::new();
        sockets.insert(Address::Tcp(main_address), listener);
        let env = machine::env(sockets);
        main.run(&env, main_address).await
    })
    .map_err(|error| error.to_string())?
}

fn children_of(folder: &Path, file: &ServerFile) -> Result<Vec<Child>, String> {
    let mut wanted = Vec::new();
    if file.is_member {
        let addresses = vec![Address::Tcp(file.coordinator)];
        wanted.push((ProcessRole::Coordinator, None, addresses));
    }
    for disk in &file.disk {
        let socket = Address::Unix(ServerFile::io_socket(folder, disk.id));
        wanted.push((ProcessRole::Io, Some(disk.id), vec![Address::Tcp(disk.address), socket]));
    }
    wanted.push((ProcessRole::Lc, None, vec![Address::Tcp(file.lc)]));
    let mut children = Vec::new();
    for (role, disk, addresses) in wanted {
        let sockets = addresses.iter().map(bind).collect::<Result<_, _>>()?;
        children.push(Child {
            role,
            disk,
            addresses,
            sockets,
            pid: Cell::new(None),
            restarts: Cell::new(0),
            stopped: Cell::new(false),
            last_end: RefCell::new(None),
            ended: Notify::new(),
        });
    }
    Ok(children)
}

/// Binds a listening socket, so that the address stays ours while a child is restarted.
fn bind(address: &Address) -> Result<OwnedFd, String> {
    match address {
        Address::Tcp(at) => {
            let listener = std::net::TcpListener::bind(at).map_err(|error| taken(*at, &error))?;
            listener.set_nonblocking(true).map_err(|error| error.to_string())?;
            Ok(listener.into())
        }
        Address::Unix(path) => {
            // Only this server uses its run folder, and it holds the lock.
            let _ = std::fs::remove_file(path);
            let listener = std::os::unix::net::UnixListener::bind(path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            listener.set_nonblocking(true).map_err(|error| error.to_string())?;
            Ok(listener.into())
        }
    }
}

fn taken(address: SocketAddr, error: &std::io::Error) -> String {
    format!(
        "port {} of {} cannot be had: {error}; end what uses it or choose another --port-base",
        address.port(),
        address.ip()
    )
}

impl Main {
    async fn run(self: Rc<Self>, env: &Env, address: SocketAddr) -> Result<(), String> {
        let listener =
            env.listen(Address::Tcp(address)).await.map_err(|error| taken(address, &error))?;
        spawn_local(serve::<MainController, Answerer>(
            listener,
            Rc::new(Answerer { main: self.clone() }),
        ));
        for index in 0..self.children.len() {
            spawn_local(self.clone().keep(index));
        }
        let signal = |kind| tokio::signal::unix::signal(kind).map_err(|e| e.to_string());
        let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = self.end.notified() => {}
        }
        self.end_children().await;
        Ok(())
    }

    /// Starts a child and starts it again for as long as the server runs.
    async fn keep(self: Rc<Self>, index: usize) {
        let child = &self.children[index];
        let mut pause = PAUSE_MIN;
        loop {
            let started = Instant::now();
            let end = match self.spawn(child) {
                Ok((process, heartbeat)) => self.watch(child, process, heartbeat).await,
                Err(error) => error,
            };
            child.pid.set(None);
            child.ended.notify_waiters();
            child.ended.notify_one();
            *child.last_end.borrow_mut() = Some(end.clone());
            if self.ending.get() || child.stopped.get() {
                return;
            }
            tracing::warn!(role = ?child.role, disk = ?child.disk, %end, "a process ended; it is started again");
            pause = if started.elapsed() < HEALTHY_AFTER {
                (pause * 2).min(PAUSE_MAX)
            } else {
                PAUSE_MIN
            };
            if child.restarts.get() == 0 || started.elapsed() >= HEALTHY_AFTER {
                pause = PAUSE_MIN;
            }
            child.restarts.set(child.restarts.get() + 1);
            sleep(pause).await;
            if self.ending.get() || child.stopped.get() {
                return;
            }
        }
    }

    fn spawn(&self, child: &Child) -> Result<(tokio::process::Child, OwnedFd), String> {
        let fail = |error: &dyn std::fmt::Display| format!("cannot be started: {error}");
        let (own, theirs) = std::os::unix::net::UnixStream::pair().map_err(|e| fail(&e))?;
        own.set_nonblocking(true).map_err(|e| fail(&e))?;
        theirs.set_nonblocking(true).map_err(|e| fail(&e))?;
        let program = std::env::current_exe().map_err(|e| fail(&e))?;
        let log = self.folder.join("log");
        std::fs::create_dir_all(&log).map_err(|e| fail(&e))?;
        let name = match child.disk {
            Some(disk) => format!("{}-{disk}", role_name(child.role)),
            None => role_name(child.role).to_owned(),
        };
        let log = open_log(&log.join(format!("{name}.log"))).map_err(|e| fail(&e))?;
        let mut command = std::process::Command::new(program);
        command.arg("role").arg(role_name(child.role)).arg("--dir").arg(&self.folder);
        if let Some(disk) = child.disk {
            command.arg("--disk").arg(disk.to_string());
        }
        let mut names = vec!["heartbeat".to_owned()];
        let mut descriptors: Vec<OwnedFd> = vec![theirs.into()];
        for (address, socket) in child.addresses.iter().zip(&child.sockets) {
            names.push(inherited::name_of(address));
            descriptors.push(socket.try_clone().map_err(|e| fail(&e))?);
        }
        let text: Vec<String> =
            names.iter().zip(inherited::FIRST..).map(|(name, fd)| format!("{fd}={name}")).collect();
        command.env(inherited::VARIABLE, text.join(";"));
        let mappings = descriptors.into_iter().zip(inherited::FIRST..);
        let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.collect()).map_err(|e| fail(&e))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        let process = command.spawn().map_err(|e| fail(&e))?;
        child.pid.set(process.id());
        Ok((process, own.into()))
    }

    /// Waits for the child's end; kills it when it is silent. Returns why it ended.
    async fn watch(
        &self,
        child: &Child,
        mut process: tokio::process::Child,
        heartbeat: OwnedFd,
    ) -> String {
        let heartbeat = std::os::unix::net::UnixStream::from(heartbeat);
        let Ok(heartbeat) = UnixStream::from_std(heartbeat) else {
            let _ = process.start_kill();
            return "no heartbeat".to_owned();
        };
        loop {
            tokio::select! {
                status = process.wait() => {
                    return status.map_or_else(|error| error.to_string(), |status| status.to_string());
                }
                heard = timeout(HUNG_AFTER, heard(&heartbeat)) => match heard {
                    Ok(true) => {}
                    // It closed its end: it is about to exit.
                    Ok(false) => {
                        let status = timeout(HUNG_AFTER, process.wait()).await;
                        return match status {
                            Ok(status) => status.map_or_else(|e| e.to_string(), |s| s.to_string()),
                            Err(_) => { let _ = process.kill().await; "did not exit".to_owned() }
                        };
                    }
                    Err(_) if self.ending.get() => {}
                    Err(_) => {
                        tracing::warn!(role = ?child.role, disk = ?child.disk, "a process hangs; it is killed");
                        let _ = process.kill().await;
                        return "hung, was killed".to_owned();
                    }
                },
            }
        }
    }

    /// Ends the children: the LC first, so that it can bring everything to the disks.
    async fn end_children(&self) {
        self.ending.set(true);
        for role in [ProcessRole::Lc, ProcessRole::Io, ProcessRole::Coordinator] {
            self.end_role(role).await;
        }
    }

    async fn end_role(&self, role: ProcessRole) {
        let children: Vec<_> = self.children.iter().filter(|child| child.role == role).collect();
        for child in &children {
            child.stopped.set(true);
            signal(child.pid.get(), Signal::TERM);
        }
        for child in &children {
            let gone = async {
                while child.pid.get().is_some() {
                    child.ended.notified().await;
                }
            };
            if timeout(END_WAIT, gone).await.is_err() {
                tracing::warn!(?role, "a process did not end in time; it is killed");
                signal(child.pid.get(), Signal::KILL);
            }
        }
    }

    fn processes(&self) -> Vec<ProcessInfo> {
        let own = ProcessInfo {
            role: ProcessRole::Main,
            disk: None,
            pid: Some(std::process::id()),
            restarts: 0,
            last_end: None,
        };
        let children = self.children.iter().map(|child| ProcessInfo {
            role: child.role,
            disk: child.disk.map(DiskId),
            pid: child.pid.get(),
            restarts: child.restarts.get(),
            last_end: child.last_end.borrow().clone(),
        });
        std::iter::once(own).chain(children).collect()
    }
}

/// Waits for a sign of life; `false` at the heartbeat's end.
async fn heard(heartbeat: &UnixStream) -> bool {
    loop {
        if heartbeat.readable().await.is_err() {
            return false;
        }
        match heartbeat.try_read(&mut [0; 64]) {
            Ok(count) => return count > 0,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
}

/// A log file; one that has grown large is begun anew, the one before is kept.
fn open_log(path: &Path) -> std::io::Result<std::fs::File> {
    const LOG_MAX: u64 = 16 << 20;
    if std::fs::metadata(path).is_ok_and(|log| log.len() > LOG_MAX) {
        std::fs::rename(path, path.with_extension("log.old"))?;
    }
    std::fs::OpenOptions::new().create(true).append(true).open(path)
}

fn signal(pid: Option<u32>, signal: Signal) {
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended just now.
        let _ = kill_process(pid, signal);
    }
}

/// The name of a role on the command line and in file names.
pub fn role_name(role: ProcessRole) -> &'static str {
    match role {
        ProcessRole::Main => "main",
        ProcessRole::Coordinator => "coordinator",
        ProcessRole::Lc => "lc",
        ProcessRole::Io => "io",
    }
}

struct Answerer {
    main: Rc<Main>,
}

impl Handler<MainController> for Answerer {
    type Session = ();

    fn hello(&self, hello: &Hello) -> Result<(), HelloReply> {
        let cluster = self.main.cluster;
        if hello.cluster == cluster { Ok(()) } else { Err(HelloReply::WrongCluster { cluster }) }
    }

    async fn handle(
        self: Rc<Self>,
        _: Rc<()>,
        request: MainRequest,
        _: Bytes,
    ) -> (MainReply, Payload) {
        let server = ServerId(self.main.file.id);
        let reply = match request {
            MainRequest::Up => MainReply::Up { server },
            MainRequest::Processes => MainReply::Processes {
                server,
                processes: self.main.processes(),
                up_ms: u64::try_from(self.main.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            },
            MainRequest::EndLc => {
                self.main.end_role(ProcessRole::Lc).await;
                MainReply::Ending
            }
            MainRequest::End => {
                // The answer leaves first: the end begins with the next turn of the loop.
                self.main.end.notify_one();
                MainReply::Ending
            }
        };
        (reply, Payload::empty())
    }
}
