//! An LC: registers, keeps its lease, hosts LCCs, works off facts, ends cleanly.
//! # Theory
//! ```text
//! RegisterLc -> incarnations -> lease -> serve
//!    every 0.6 s       renew the lease, take a newer map, tell holdings to a new global controller
//!    every second      facts to work off; dead LCCs to sweep
//!    an LCC panicked   RegisterLcc -> a new incarnation in a new thread; the others go on
//!    end               everything stable, marks told, groups released, UnregisterLc
//! ```
//! This is the LC's front; each LCC is a [`Worker`], in this thread or in one of its own.
//! # Failure
//! An invalid incarnation ends the LC: its main controller starts a new one. A panic ends the LCC whose
//! thread it is: it is registered anew, and what it had is granted and swept as that of any LCC that is
//! gone. Where all LCCs are in the LC's thread, it ends the LC.
//! # Source
//! DESIGN 2, O-3, O-4, O-8, F-3, F-4.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use braid_env::{Address, Env, Moment, machine};
use braid_terms::{
    ClusterId, ClusterMap, DiskId, Fact, FactKind, GroupLayout, Incarnation, LEASE_MS, LccId,
    RENEW_MS, ServerId,
};
use braid_wire::coordinator::{CoordinatorRefusal, CoordinatorReply, CoordinatorRequest};
use braid_wire::coordinator_client::{CoordinatorClient, CoordinatorError};
use braid_wire::io::BadBlocks;
use braid_wire::rpc::{Hello, Peer};
use futures_util::future::join_all;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};

use crate::caches::FirstCopy;
use crate::disks::CALL_WAIT;
use crate::files::Files;
use crate::lcc::Lcc;
use crate::policy::lcc_of;
use crate::worker::{Holdings, Mail, Worker, WorkerParts};

/// What an LC is told at its start.
#[derive(Clone)]
pub struct LcConfig {
    /// As what it registers.
    pub registrant: Registrant,
    /// The cluster.
    pub cluster: ClusterId,
    /// Where it listens.
    pub listen: Vec<Address>,
    /// Coordinators to begin with.
    pub coordinators: Vec<SocketAddr>,
    /// Unix sockets of I/O servers of this machine.
    pub io_sockets: BTreeMap<DiskId, PathBuf>,
    /// How many LCCs it hosts, 1 at least.
    pub lccs: u8,
    /// Where they run.
    pub threads: Threads,
    /// Groups that an LCC keeps open without need.
    pub groups_kept: usize,
    /// Folder of the server's local journals. Without one, what asks to be answered from there is
    /// answered by the cluster. Source: W-13.
    pub local: Option<PathBuf>,
    /// Told to end cleanly.
    pub shutdown: Rc<Notify>,
}

/// As what an LC registers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Registrant {
    /// The LC of a server that the map knows.
    Server(ServerId),
    /// A mount: a server without disks, which gets a number of its own. Others reach it at the first
    /// address at which it listens.
    Mount {
        /// For people.
        name: String,
    },
}

/// Where the LCCs of an LC run.
#[derive(Clone)]
pub enum Threads {
    /// All in the LC's thread.
    One,
    /// Each in its own; only on a machine. With the listening sockets that the parent bound.
    Each(Rc<RefCell<machine::Inherited>>),
}

/// Why an LC ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum LcEnd {
    /// It was told to, and everything is stable.
    Clean,
    /// It was told to, and something could not be brought to its media in time.
    Unfinished,
    /// Its incarnation is not valid any more: start again.
    Invalid,
    /// It cannot listen.
    CannotListen,
}

/// Runs until told to end, or its incarnation is invalid.
pub async fn run(env: Env, config: LcConfig) -> LcEnd {
    let started = tokio::select! {
        started = Started::start(env, &config) => started,
        () = config.shutdown.notified() => return LcEnd::Clean,
    };
    match started {
        Ok(started) => started.wait(&config.shutdown).await,
        Err(end) => end,
    }
}

/// An LC that has registered and works.
pub struct Started {
    controller: Rc<Lc>,
    server: ServerId,
    addresses: Vec<Address>,
    /// Those in this thread.
    workers: Vec<Worker>,
    lccs: Vec<Rc<Lcc>>,
    starter: Rc<Starter>,
    endings: mpsc::UnboundedReceiver<Ending>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Why a worker needs its front.
pub(crate) enum Ending {
    /// Its incarnation is not valid.
    Invalid,
    /// Its thread is gone: it panicked.
    Gone(u8),
}

/// What all LCCs of an LC are started with.
struct Starter {
    config: LcConfig,
    server: ServerId,
    endings: mpsc::UnboundedSender<Ending>,
    first_copy: Arc<FirstCopy>,
    /// How often in a row LCCs ended, and when the last one did.
    restarts: Cell<(u32, Moment)>,
}

impl Starter {
    fn parts(
        &self,
        index: u8,
        incarnation: Incarnation,
        map: Arc<ClusterMap>,
    ) -> (mpsc::UnboundedSender<Mail>, WorkerParts) {
        let (mail, reader) = mpsc::unbounded_channel();
        let parts = WorkerParts {
            cluster: self.config.cluster,
            id: LccId { server: self.server, index },
            incarnation,
            io_sockets: self.config.io_sockets.clone(),
            map,
            groups_kept: self.config.groups_kept,
            local: self.config.local.clone(),
            lccs: self.config.lccs.max(1),
            first_copy: self.first_copy.clone(),
            mail: reader,
            endings: self.endings.clone(),
        };
        (mail, parts)
    }

    /// How long to wait before the next restart: what panics at once again must not load the others.
    fn pause(&self, now: Moment) -> Duration {
        let (count, last) = self.restarts.get();
        let count = if now - last < CALM { count + 1 } else { 0 };
        self.restarts.set((count, now));
        RESTART_PAUSE * 2_u32.pow(count.min(RESTART_DOUBLINGS))
    }
}

/// Sockets that wait for clients.
enum Listening {
    Here(braid_env::Listener),
    ForThreads(machine::RawListener),
}

impl Started {
    /// Registers, and begins to work and to listen.
    ///
    /// Errors: `CannotListen`.
    pub async fn start(env: Env, config: &LcConfig) -> Result<Self, LcEnd> {
        let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
        for address in &config.listen {
            let listening = match &config.threads {
                Threads::One => env.listen(address.clone()).await.map(Listening::Here),
                Threads::Each(inherited) => {
                    machine::listen_raw(address.clone(), &mut inherited.borrow_mut())
                        .map(Listening::ForThreads)
                }
            };
            match listening {
                Ok(listener) => {
                    addresses.push(listener.address().clone());
                    listeners.push(listener);
                }
                Err(error) => {
                    tracing::error!(%address, %error, "the LC cannot listen");
                    return Err(LcEnd::CannotListen);
                }
            }
        }
        let request = registration(config, &addresses).ok_or(LcEnd::CannotListen)?;
        let coordinators = coordinator_client(&env, config);
        let registered = register(&coordinators, &request).await;
        let (lc, incarnations, map) = registered.ok_or(LcEnd::CannotListen)?;
        let server = map.servers.values().find(|server| server.lc == Some(lc));
        // Somebody else has registered in its place already.
        let server = server.ok_or(LcEnd::Invalid)?.id;
        coordinators.learn(&map);
        let map = Arc::new(map);
        let (tell, endings) = mpsc::unbounded_channel();
        let restarts = Cell::default();
        let first_copy = Arc::<FirstCopy>::default();
        let starter = Rc::new(Starter {
            config: config.clone(),
            server,
            endings: tell,
            first_copy: first_copy.clone(),
            restarts,
        });
        let (mut workers, mut mails) = (Vec::new(), Vec::new());
        let first = incarnations.first().copied().unwrap_or_default();
        for (incarnation, index) in incarnations.into_iter().zip(0..) {
            let (mail, parts) = starter.parts(index, incarnation, map.clone());
            mails.push(mail);
            match config.threads {
                Threads::One => {
                    workers.push(Worker::start(env.clone(), coordinators.clone(), parts));
                }
                Threads::Each(_) => {
                    let addresses = config.coordinators.clone();
                    if let Err(error) = start_thread(parts, addresses) {
                        tracing::error!(%error, "no thread for an LCC");
                        return Err(LcEnd::Unfinished);
                    }
                }
            }
        }
        let controller = Rc::new(Lc {
            env,
            lc,
            coordinators,
            first: Cell::new(first),
            mails: RefCell::new(mails),
            map: RefCell::new(map),
            lease: RefCell::default(),
            first_copy,
            is_ending: Cell::default(),
        });
        let mut tasks =
            vec![spawn_local(controller.clone().renew()), spawn_local(controller.clone().work())];
        let files: Vec<_> = workers.iter().map(|worker| worker.files.clone()).collect();
        for listener in listeners {
            tasks.push(match listener {
                Listening::Here(listener) => spawn_local(serve(files.clone(), listener)),
                Listening::ForThreads(listener) => {
                    spawn_local(controller.clone().hand_out(listener))
                }
            });
        }
        let lccs = workers.iter().map(|worker| worker.lcc.clone()).collect();
        Ok(Self { controller, server, addresses, workers, lccs, starter, endings, tasks })
    }

    /// Its LCCs that run in this thread, by index.
    #[must_use]
    pub fn lccs(&self) -> &[Rc<Lcc>] {
        &self.lccs
    }

    /// The server that it is the LC of.
    #[must_use]
    pub fn server(&self) -> ServerId {
        self.server
    }

    /// Where it listens: the real ports where 0 was asked.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The file controllers of its LCCs that run in this thread, by index: clients of this process
    /// call them directly.
    #[must_use]
    pub fn files(&self) -> Vec<Rc<Files>> {
        self.workers.iter().map(|worker| worker.files.clone()).collect()
    }

    /// Waits until it is told to end, or must.
    pub async fn wait(mut self, shutdown: &Notify) -> LcEnd {
        let end = loop {
            tokio::select! {
                ending = self.endings.recv() => match ending {
                    Some(Ending::Gone(index)) => {
                        let (lc, starter) = (self.controller.clone(), self.starter.clone());
                        self.tasks.push(spawn_local(lc.restart(starter, index)));
                    }
                    Some(Ending::Invalid) | None => break LcEnd::Invalid,
                },
                () = shutdown.notified() => break self.controller.end().await,
            }
        };
        self.workers.clear();
        end
    }
}

impl Listening {
    fn address(&self) -> &Address {
        match self {
            Self::Here(listener) => &listener.address,
            Self::ForThreads(listener) => &listener.address,
        }
    }
}

/// Serves a listener in this thread: each connection goes to the LCC that its hello names.
async fn serve(all: Vec<Rc<Files>>, mut listener: braid_env::Listener) {
    while let Some(connection) = listener.accept().await {
        let all = all.clone();
        spawn_local(crate::files::serve_one_of(all, connection));
    }
}

fn coordinator_client(env: &Env, config: &LcConfig) -> CoordinatorClient {
    let peer = match config.registrant {
        Registrant::Server(server) => {
            Peer::Server { server, incarnation: Incarnation(0), stream: 0 }
        }
        Registrant::Mount { .. } => Peer::Unknown,
    };
    CoordinatorClient::new(env.clone(), config.cluster, peer, config.coordinators.clone())
}

/// Runs a worker in a thread of its own.
fn start_thread(parts: WorkerParts, coordinators: Vec<SocketAddr>) -> std::io::Result<()> {
    let LccId { server, index } = parts.id;
    let peer = Peer::Server { server, incarnation: parts.incarnation, stream: index };
    let ended = Ended(parts.endings.clone(), index);
    machine::spawn(&format!("lcc-{index}"), move |env| async move {
        let cluster = parts.cluster;
        let client = CoordinatorClient::new(env.clone(), cluster, peer, coordinators);
        Worker::start(env, client, parts).wait().await;
        drop(ended);
    })
}

/// Tells the front that a thread ended, also by a panic.
struct Ended(mpsc::UnboundedSender<Ending>, u8);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.send(Ending::Gone(self.1));
    }
}

/// None for a mount that others cannot reach.
fn registration(config: &LcConfig, addresses: &[Address]) -> Option<CoordinatorRequest> {
    let lccs = config.lccs.max(1);
    match &config.registrant {
        Registrant::Server(server) => {
            Some(CoordinatorRequest::RegisterLc { server: *server, lccs })
        }
        Registrant::Mount { name } => {
            let lc_address = addresses.iter().find_map(|address| match address {
                Address::Tcp(address) => Some(*address),
                Address::Unix(_) => None,
            })?;
            Some(CoordinatorRequest::RegisterMount { name: name.clone(), lc_address, lccs })
        }
    }
}

/// None where it is refused for good.
async fn register(
    coordinators: &CoordinatorClient,
    request: &CoordinatorRequest,
) -> Option<(Incarnation, Vec<Incarnation>, ClusterMap)> {
    loop {
        match coordinators.call(request, CALL_WAIT).await {
            Ok(CoordinatorReply::Registered { incarnation, lccs, map }) => {
                return Some((incarnation, lccs, *map));
            }
            Err(CoordinatorError::Refused(CoordinatorRefusal::BadRequest { reason })) => {
                tracing::warn!(%reason, "not registered");
                return None;
            }
            answer => tracing::debug!(?answer, "not registered yet"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

struct Lc {
    env: Env,
    lc: Incarnation,
    coordinators: CoordinatorClient,
    /// Of the first LCC.
    first: Cell<Incarnation>,
    /// To each LCC.
    mails: RefCell<Vec<mpsc::UnboundedSender<Mail>>>,
    map: RefCell<Arc<ClusterMap>>,
    lease: RefCell<Lease>,
    first_copy: Arc<FirstCopy>,
    is_ending: Cell<bool>,
}

#[derive(Default)]
struct Lease {
    until: Moment,
    live: BTreeSet<DiskId>,
}

impl Lc {
    /// Keeps the lease, the map and the list of live disks. Source: O-4.
    async fn renew(self: Rc<Self>) {
        let mut newest_term = 0;
        // The newest term, or a later one, has heard that clients may have copies.
        let mut copies = false;
        loop {
            let sent = self.env.now();
            let with_copies = self.first_copy.is_wanted();
            let tells = with_copies && !braid_terms::planted!("N-1/first-copy-is-not-told");
            let request = CoordinatorRequest::Renew {
                lc: self.lc,
                map_version: self.map.borrow().version,
                no_copies: (!tells).then_some(newest_term),
            };
            let answer = self.coordinators.call(&request, RENEW_WAIT).await;
            match answer {
                Ok(CoordinatorReply::Renewed {
                    term, map, disks, servers, tell_holdings, ..
                }) => {
                    let until = sent + Duration::from_millis(LEASE_MS);
                    // One of a lower term is not who is asked who owned what.
                    copies |= with_copies && newest_term <= term;
                    newest_term = newest_term.max(term);
                    let map = map.map(|map| Arc::new(*map));
                    if let Some(map) = &map {
                        self.coordinators.learn(map);
                        *self.map.borrow_mut() = map.clone();
                    }
                    let live = disks.iter().map(|live| live.disk).collect();
                    *self.lease.borrow_mut() = Lease { until, live };
                    let (disks, servers): (Arc<[_]>, Arc<[_]>) = (disks.into(), servers.into());
                    for mail in &self.mails() {
                        let (disks, servers) = (disks.clone(), servers.clone());
                        let map = map.clone();
                        let _ = mail.send(Mail::Lease { until, disks, servers, map, copies });
                    }
                    if tell_holdings {
                        self.tell_holdings(term).await;
                    }
                }
                Err(CoordinatorError::Refused(CoordinatorRefusal::InvalidIncarnation)) => {
                    for mail in &self.mails() {
                        let _ = mail.send(Mail::Invalid);
                    }
                    return;
                }
                other => tracing::debug!(?other, "the lease was not renewed"),
            }
            let passed = self.env.now() - sent;
            let pause = RENEW_EVERY.saturating_sub(passed).max(Duration::from_millis(20));
            if copies {
                sleep(pause).await;
            } else {
                let _ = timeout(pause, self.first_copy.bell.notified()).await;
            }
        }
    }

    fn mails(&self) -> Vec<mpsc::UnboundedSender<Mail>> {
        self.mails.borrow().clone()
    }

    /// An LCC of which the thread is gone is registered anew, and works in a new one. Source: DESIGN 2.
    async fn restart(self: Rc<Self>, starter: Rc<Starter>, index: u8) {
        let pause = starter.pause(self.env.now());
        tracing::error!(index, ?pause, "an LCC panicked: it is started again");
        sleep(pause).await;
        let request = CoordinatorRequest::RegisterLcc { lc: self.lc, index };
        let (incarnation, map) = loop {
            match self.coordinators.call(&request, CALL_WAIT).await {
                Ok(CoordinatorReply::Registered { lccs, map, .. }) if !lccs.is_empty() => {
                    break (lccs[0], Arc::new(*map));
                }
                // The renewal of the lease hears it too, and ends the LC.
                Err(CoordinatorError::Refused(_)) => return,
                answer => tracing::debug!(?answer, "an LCC is not registered yet"),
            }
            sleep(RESTART_PAUSE).await;
        };
        self.coordinators.learn(&map);
        let (mail, parts) = starter.parts(index, incarnation, map);
        if let Err(error) = start_thread(parts, starter.config.coordinators.clone()) {
            tracing::error!(%error, "no thread for an LCC");
            let _ = starter.endings.send(Ending::Gone(index));
            return;
        }
        if index == 0 {
            self.first.set(incarnation);
        }
        // Its first lease comes with the next renewal.
        self.mails.borrow_mut()[usize::from(index)] = mail;
    }

    /// Asks each LCC; none for one that is gone.
    async fn ask_all<T>(&self, make: impl Fn(usize, oneshot::Sender<T>) -> Mail) -> Vec<Option<T>> {
        let mails = self.mails();
        let asked = mails.iter().enumerate().map(|(index, mail)| {
            let (reply, answer) = oneshot::channel();
            let _ = mail.send(make(index, reply));
            async move { answer.await.ok() }
        });
        join_all(asked).await
    }

    async fn tell_holdings(&self, term: u64) {
        let told = self.ask_all(|_, reply| Mail::Holdings { term, reply }).await;
        // What one that is gone held must not be taken for free.
        let Some(told) = told.into_iter().collect::<Option<Vec<Holdings>>>() else { return };
        let mut groups = Vec::new();
        let mut ranges = Vec::new();
        for holdings in told {
            groups.extend(holdings.groups);
            ranges.extend(holdings.ranges);
        }
        let mut chunks: Vec<_> = groups.chunks(10_000).map(<[_]>::to_vec).collect();
        if chunks.is_empty() {
            chunks.push(Vec::new());
        }
        let count = chunks.len();
        for (index, groups) in chunks.into_iter().enumerate() {
            let request = CoordinatorRequest::Holdings {
                lc: self.lc,
                term,
                groups,
                ranges: if index == 0 { std::mem::take(&mut ranges) } else { Vec::new() },
                last: index + 1 == count,
            };
            if self.coordinators.call(&request, RENEW_WAIT).await.is_err() {
                return;
            }
        }
    }

    /// Accepts sockets for LCCs in threads of their own.
    async fn hand_out(self: Rc<Self>, mut listener: machine::RawListener) {
        loop {
            let accepted = listener.accept().await;
            let controller = self.clone();
            spawn_local(async move { controller.hand_over(accepted).await });
        }
    }

    async fn hand_over(&self, mut accepted: machine::Accepted) {
        let head = timeout(HELLO_WAIT, accepted.peek_head()).await;
        let hello = match head {
            Ok(Ok(head)) => Hello::parse(&head).ok(),
            Ok(Err(_)) | Err(_) => None,
        };
        let Some(hello) = hello else {
            tracing::debug!(peer = %accepted.peer, "a connection without a hello");
            return;
        };
        // One that asks for an LCC that is not here is told so by any.
        let mails = self.mails();
        let mail = mails.get(usize::from(hello.index)).or(mails.first());
        if let (Some(mail), Ok(socket)) = (mail, accepted.into_descriptor()) {
            let _ = mail.send(Mail::Socket(socket));
        }
    }

    /// Works off facts, dead LCCs and bad blocks. Source: F-4, F-6, O-8.
    async fn work(self: Rc<Self>) {
        let mut busy = false;
        loop {
            sleep(if busy { WORK_AGAIN } else { WORK_EVERY }).await;
            busy = false;
            if self.lease.borrow().until <= self.env.now() || self.is_ending.get() {
                continue;
            }
            let request = CoordinatorRequest::Work { lc: self.lc };
            let answer = self.coordinators.call(&request, RENEW_WAIT).await;
            let Ok(CoordinatorReply::Work { facts, sweeps, bad }) = answer else { continue };
            self.end_copies(&facts).await;
            busy = self.repair_facts(facts).await;
            self.heal(bad).await;
            for dead in sweeps {
                self.sweep(dead).await;
            }
        }
    }

    /// Returns whether some group was made whole.
    async fn repair_facts(&self, facts: Vec<Fact>) -> bool {
        let mut groups = BTreeMap::new();
        for fact in facts {
            if let FactKind::Suspect { layout, slot, .. } = fact.kind
                && layout.check().is_ok()
                && usize::from(slot.0) <= layout.scheme.portions()
                && slot.0 >= 1
                && self.lease.borrow().live.contains(&layout.disk(slot))
            {
                groups.insert(layout.group(), layout);
            }
        }
        if groups.is_empty() {
            return false;
        }
        let shares = self.shares(groups.into_values());
        let share = |index: usize| shares.get(index).cloned().unwrap_or_default();
        let repaired = self.ask_all(|index, reply| Mail::Repair { layouts: share(index), reply });
        repaired.await.into_iter().flatten().any(|whole| whole)
    }

    /// Closes facts about local journals of this server in which nothing is left: a start between the last
    /// record's end and the close, or a local journal that was lost. Source: W-13.
    async fn end_copies(&self, facts: &[Fact]) {
        let copies = facts.iter().filter_map(|fact| match &fact.kind {
            FactKind::LocalCopy { layout, .. } if layout.check().is_ok() => {
                Some((layout.clone(), fact.number))
            }
            _ => None,
        });
        let copies: Arc<[_]> = copies.collect();
        if copies.is_empty() {
            return;
        }
        let asked =
            self.ask_all(|_, reply| Mail::KnownCopies { facts: copies.clone(), reply }).await;
        // What one that is gone had, nobody knows.
        let Some(known) = asked.into_iter().collect::<Option<Vec<Vec<bool>>>>() else { return };
        let mut shares = vec![Vec::new(); self.mails.borrow().len()];
        for (place, copy) in copies.iter().enumerate() {
            if known.iter().all(|known| known.get(place) == Some(&false)) {
                shares[self.share_of(&copy.0)].push(copy.clone());
            }
        }
        let share = |index: usize| shares.get(index).cloned().unwrap_or_default();
        self.ask_all(|index, reply| Mail::EndCopies { facts: share(index), reply }).await;
    }

    /// Has blocks that a scrub found bad written anew. Source: F-6.
    async fn heal(&self, bad: Vec<BadBlocks>) {
        if bad.is_empty() {
            return;
        }
        let mut shares = vec![Vec::new(); self.mails.borrow().len()];
        for blocks in bad.into_iter().filter(|blocks| blocks.layout.check().is_ok()) {
            let index = self.share_of(&blocks.layout);
            shares[index].push(blocks);
        }
        let share = |index: usize| shares.get(index).cloned().unwrap_or_default();
        self.ask_all(|index, reply| Mail::Heal { bad: share(index), reply }).await;
    }

    /// Which LCC works on which group. Source: O-7.
    fn share_of(&self, layout: &GroupLayout) -> usize {
        let count = u8::try_from(self.mails.borrow().len()).expect("as many as were configured");
        lcc_of(&self.map.borrow(), count, layout).into()
    }

    fn shares(&self, layouts: impl Iterator<Item = GroupLayout>) -> Vec<Vec<GroupLayout>> {
        let mut shares = vec![Vec::new(); self.mails.borrow().len()];
        for layout in layouts {
            let index = self.share_of(&layout);
            shares[index].push(layout);
        }
        shares
    }

    /// Settles every group that a dead LCC left unfinished; closes its pending fact only when every
    /// disk was asked. Source: O-8.
    async fn sweep(&self, dead: Incarnation) {
        let (reply, listed) = oneshot::channel();
        let Some(first) = self.mails().into_iter().next() else { return };
        let _ = first.send(Mail::ListUnfinished { dead, reply });
        let Ok((complete, layouts)) = listed.await else { return };
        let count = layouts.len();
        let shares = self.shares(layouts.into_iter());
        let share = |index: usize| shares.get(index).cloned().unwrap_or_default();
        let settled = self.ask_all(|index, reply| Mail::Settle { layouts: share(index), reply });
        let settled = settled.await.into_iter().all(|settled| settled == Some(true));
        if complete && settled || braid_terms::planted!("O-8/a-sweep-closes-too-early") {
            let request = CoordinatorRequest::CloseSweep { lcc: self.first.get(), dead };
            let answer = self.coordinators.call(&request, RENEW_WAIT).await;
            tracing::info!(%dead, groups = count, ?answer, "swept a dead LCC");
        }
    }

    /// Ends cleanly: nothing new is begun, everything is stable, marks are told, nothing is pending.
    async fn end(&self) -> LcEnd {
        self.is_ending.set(true);
        let finished = timeout(END_WAIT, self.ask_all(|_, reply| Mail::End { reply })).await;
        let all = finished.is_ok_and(|all| all.into_iter().all(|one| one == Some(true)));
        if !all {
            return LcEnd::Unfinished;
        }
        let request = CoordinatorRequest::UnregisterLc { lc: self.lc };
        match self.coordinators.call(&request, RENEW_WAIT).await {
            Ok(_) => LcEnd::Clean,
            Err(_) => LcEnd::Unfinished,
        }
    }
}

/// Pause before an LCC that panicked is started again; doubled each time.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

const RESTART_DOUBLINGS: u32 = 7;

/// After so long without a panic the pause is short again.
const CALM: Duration = Duration::from_secs(60);

/// How often the lease is renewed.
const RENEW_EVERY: Duration = Duration::from_millis(RENEW_MS);

/// Longest wait for a global controller before the next attempt.
const RENEW_WAIT: Duration = Duration::from_millis(2500);

/// How often facts are looked for.
const WORK_EVERY: Duration = Duration::from_millis(1000);

/// How soon again after some work was done.
const WORK_AGAIN: Duration = Duration::from_millis(20);

/// Longest wait for a client's first words.
const HELLO_WAIT: Duration = Duration::from_secs(5);

/// Longest clean end.
const END_WAIT: Duration = Duration::from_secs(20);
