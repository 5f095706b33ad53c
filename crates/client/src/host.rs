//! An LCC of the client's own process: a client machine as a server without disks.
//!
//! # Theory
//! ```text
//! Client -> Reach -- in process, no copy --> LCC -- strips --> I/O servers
//!              `---- other owners, over the network
//! ```
//! The LC registers as a mount and gets a number of its own. What nobody owns is asked for here first,
//! so that the groups that only this client uses end up here; what it makes is made in its own number
//! ranges (O-2). Others reach it by its address, as any owner.
//! # Failure
//! An LC that was found invalid (this machine stood still, or was cut off for longer than a lease)
//! registers again, with another number; meanwhile others own what it had, and are asked. Where it
//! cannot listen or register, the client goes on without.
//! # Source
//! DESIGN 2, O-2, O-4.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use braid_env::{Address, Env};
use braid_local_controller::lc::{LcConfig, LcEnd, Registrant, Started, Threads};
use braid_terms::DiskId;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};

use crate::Client;
use crate::reach::{Local, Reach};

/// How a client's own LC is set up.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Shown in `braid status`.
    pub name: String,
    /// Where it listens, and others reach it; port 0 is any that is free.
    pub listen: SocketAddr,
    /// Unix sockets of I/O servers of this machine.
    pub io_sockets: BTreeMap<DiskId, PathBuf>,
    /// Groups that it keeps open without need.
    pub groups_kept: usize,
}

/// A client's own LC; it runs until [`Hosted::end`], or as long as its process.
pub struct Hosted {
    shutdown: Rc<Notify>,
    running: JoinHandle<LcEnd>,
}

impl Client {
    /// Starts an LC in this process, and waits a moment for it; it may come later.
    pub async fn host(&self, options: HostOptions) -> Hosted {
        let reach = self.inner().reach.clone();
        let shutdown = Rc::new(Notify::new());
        let config = LcConfig {
            registrant: Registrant::Mount { name: options.name },
            cluster: reach.cluster(),
            listen: vec![Address::Tcp(options.listen)],
            coordinators: reach.coordinators().addresses(),
            io_sockets: options.io_sockets,
            lccs: 1,
            threads: Threads::One,
            groups_kept: options.groups_kept,
            // It has a number only until it ends: nobody would look for what it left.
            local: None,
            shutdown: shutdown.clone(),
        };
        let (ready, is_ready) = oneshot::channel();
        let running = spawn_local(run(reach, config, ready));
        // Without it, others are asked.
        let _ = timeout(START_WAIT, is_ready).await;
        Hosted { shutdown, running }
    }
}

impl Hosted {
    /// Gives all groups up: everything is stable, nothing is left to be swept. `false` where that was
    /// not possible in time.
    pub async fn end(self) -> bool {
        self.shutdown.notify_one();
        matches!(self.running.await, Ok(LcEnd::Clean))
    }
}

async fn run(reach: Rc<Reach>, config: LcConfig, ready: oneshot::Sender<()>) -> LcEnd {
    let mut ready = Some(ready);
    loop {
        let end = match start(&reach.env, &config).await {
            Ok(started) => {
                let offering = offer(&reach, local_of(&started), &mut ready);
                let end = tokio::select! {
                    end = started.wait(&config.shutdown) => end,
                    never = offering => match never {},
                };
                reach.set_local(None);
                end
            }
            Err(end) => end,
        };
        if end != LcEnd::Invalid {
            return end;
        }
        tracing::info!("this machine's LC was not valid any more: it registers again");
        sleep(AGAIN).await;
    }
}

/// Has this process ask the LCC as soon as that may answer: with its first lease it hears of disks.
async fn offer(
    reach: &Reach,
    local: Option<Local>,
    ready: &mut Option<oneshot::Sender<()>>,
) -> Infallible {
    if let Some(local) = local {
        while !local.files.lcc().lease_valid() {
            sleep(LOOK_AGAIN).await;
        }
        reach.set_local(Some(local));
        if let Some(ready) = ready.take() {
            // Whoever waited has gone on without.
            let _ = ready.send(());
        }
    }
    std::future::pending().await
}

async fn start(env: &Env, config: &LcConfig) -> Result<Started, LcEnd> {
    let started = tokio::select! {
        started = Started::start(env.clone(), config) => started?,
        () = config.shutdown.notified() => return Err(LcEnd::Clean),
    };
    Ok(started)
}

fn local_of(started: &Started) -> Option<Local> {
    let files = started.files().into_iter().next()?;
    let address = started.addresses().iter().find_map(|address| match address {
        Address::Tcp(address) => Some(*address),
        Address::Unix(_) => None,
    })?;
    Some(Local { place: (address, 0), server: started.server(), files })
}

/// Longest wait of a client for its own LC.
const START_WAIT: Duration = Duration::from_secs(3);

const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Pause before it registers again.
const AGAIN: Duration = Duration::from_millis(100);
