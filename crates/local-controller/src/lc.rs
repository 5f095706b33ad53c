//! An LC: registers, keeps its lease, hosts LCCs, works off facts, ends cleanly.
//! # Theory
//! ```text
//! RegisterLc -> incarnations -> lease -> serve
//!    every second      renew the lease, take a newer map, tell holdings to a new global controller
//!    every second      syncs of what is decided; marks; facts to work off; dead LCCs to sweep
//!    end               everything stable, marks told, groups released, UnregisterLc
//! ```
//! # Failure
//! An invalid incarnation ends the LC: its main controller starts a new one.
//! # Source
//! O-3, O-4, O-8, F-3, F-4.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use braid_env::{Address, Env, Payload};
use braid_terms::{
    ClusterId, ClusterMap, DiskId, DiskState, Fact, FactKind, GroupLayout, Incarnation, LEASE_MS,
    LccId, ServerId,
};
use braid_wire::coordinator::{CoordinatorRefusal, CoordinatorReply, CoordinatorRequest};
use braid_wire::coordinator_client::{CoordinatorClient, CoordinatorError};
use braid_wire::io::{IoReply, IoRequest};
use braid_wire::rpc::Peer;
use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};

use crate::disks::{CALL_WAIT, Disks};
use crate::files::Files;
use crate::group::Group;
use crate::group::repair::Repaired;
use crate::lcc::{Lcc, LccParts, OwnError};

/// What an LC is told at its start.
#[derive(Clone)]
pub struct LcConfig {
    /// The server that it belongs to.
    pub server: ServerId,
    /// The cluster.
    pub cluster: ClusterId,
    /// Where it listens.
    pub listen: Vec<Address>,
    /// Coordinators to begin with.
    pub coordinators: Vec<SocketAddr>,
    /// Unix sockets of this server's I/O servers.
    pub io_sockets: BTreeMap<DiskId, PathBuf>,
    /// How many LCCs it hosts, 1 at least.
    pub lccs: u8,
    /// Groups that an LCC keeps open without need.
    pub groups_kept: usize,
    /// Told to end cleanly.
    pub shutdown: Rc<Notify>,
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
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Started {
    /// Registers, and begins to work and to listen.
    ///
    /// Errors: `CannotListen`.
    pub async fn start(env: Env, config: &LcConfig) -> Result<Self, LcEnd> {
        let mut listeners = Vec::new();
        for address in &config.listen {
            match env.listen(address.clone()).await {
                Ok(listener) => listeners.push(listener),
                Err(error) => {
                    tracing::error!(%address, %error, "the LC cannot listen");
                    return Err(LcEnd::CannotListen);
                }
            }
        }
        let peer = Peer::Server { server: config.server, incarnation: Incarnation(0), stream: 0 };
        let addresses = config.coordinators.clone();
        let coordinators = CoordinatorClient::new(env.clone(), config.cluster, peer, addresses);
        let (lc, incarnations, map) = register(&coordinators, config).await;
        coordinators.learn(&map);
        let map = Rc::new(map);
        let lccs = incarnations.into_iter().zip(0..).map(|(incarnation, index)| {
            Lcc::new(LccParts {
                env: env.clone(),
                cluster: config.cluster,
                id: LccId { server: config.server, index },
                incarnation,
                coordinators: coordinators.clone(),
                disks: Disks::new(
                    env.clone(),
                    config.cluster,
                    config.server,
                    config.io_sockets.clone(),
                ),
                map: map.clone(),
            })
        });
        let lccs: Vec<Rc<Lcc>> = lccs.collect();
        let groups_kept = config.groups_kept;
        let controller = Rc::new(Lc { env, lc, coordinators, lccs, groups_kept });
        let mut tasks =
            vec![spawn_local(controller.clone().renew()), spawn_local(controller.clone().work())];
        for lcc in &controller.lccs {
            tasks.push(spawn_local(lcc.clone().send_facts()));
            tasks.push(spawn_local(controller.clone().tend(lcc.clone())));
            tasks.push(spawn_local(warm_up(lcc.clone())));
        }
        let files: Vec<_> = controller.lccs.iter().cloned().map(Files::new).collect();
        for own in &files {
            tasks.push(spawn_local(own.clone().background()));
        }
        for listener in listeners {
            tasks.push(spawn_local(crate::files::serve(files.clone(), listener)));
        }
        Ok(Self { controller, tasks })
    }

    /// Its LCCs, by index.
    #[must_use]
    pub fn lccs(&self) -> &[Rc<Lcc>] {
        &self.controller.lccs
    }

    /// Waits until it is told to end, or must.
    pub async fn wait(self, shutdown: &Notify) -> LcEnd {
        let lccs = &self.controller.lccs;
        let invalid = lccs.iter().map(|lcc| Box::pin(lcc.invalid_bell.notified()));
        let invalid = futures_util::future::select_all(invalid);
        tokio::select! {
            _ = invalid => LcEnd::Invalid,
            () = shutdown.notified() => self.controller.end().await,
        }
    }
}

async fn register(
    coordinators: &CoordinatorClient,
    config: &LcConfig,
) -> (Incarnation, Vec<Incarnation>, ClusterMap) {
    let request =
        CoordinatorRequest::RegisterLc { server: config.server, lccs: config.lccs.max(1) };
    loop {
        match coordinators.call(&request, CALL_WAIT).await {
            Ok(CoordinatorReply::Registered { incarnation, lccs, map }) => {
                return (incarnation, lccs, *map);
            }
            answer => tracing::debug!(?answer, "not registered yet"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn warm_up(lcc: Rc<Lcc>) {
    while !lcc.lease_valid() {
        sleep(Duration::from_millis(20)).await;
    }
    lcc.warm_up().await;
    let disks: Vec<_> = lcc.map().disks.keys().copied().collect();
    let connects = disks.into_iter().map(|disk| lcc.disks.connect(disk));
    futures_util::future::join_all(connects).await;
}

struct Lc {
    env: Env,
    lc: Incarnation,
    coordinators: CoordinatorClient,
    lccs: Vec<Rc<Lcc>>,
    groups_kept: usize,
}

impl Lc {
    /// Keeps the lease, the map and the list of live disks. Source: O-4.
    async fn renew(self: Rc<Self>) {
        loop {
            let sent = self.env.now();
            let map_version = self.lccs[0].map().version;
            let request = CoordinatorRequest::Renew { lc: self.lc, map_version };
            let answer = self.coordinators.call(&request, RENEW_WAIT).await;
            match answer {
                Ok(CoordinatorReply::Renewed { term, map, disks, tell_holdings, .. }) => {
                    let until = sent + Duration::from_millis(LEASE_MS);
                    if let Some(map) = map {
                        let map = Rc::new(*map);
                        self.lccs.iter().for_each(|lcc| lcc.learn(map.clone()));
                    }
                    for lcc in &self.lccs {
                        lcc.set_lease(until, disks.clone());
                    }
                    if tell_holdings {
                        self.tell_holdings(term).await;
                    }
                }
                Err(CoordinatorError::Refused(CoordinatorRefusal::InvalidIncarnation)) => {
                    self.lccs.iter().for_each(|lcc| lcc.invalidate());
                    return;
                }
                other => tracing::debug!(?other, "the lease was not renewed"),
            }
            let passed = self.env.now() - sent;
            sleep(RENEW_EVERY.saturating_sub(passed).max(Duration::from_millis(20))).await;
        }
    }

    async fn tell_holdings(&self, term: u64) {
        let mut groups = Vec::new();
        let mut ranges = Vec::new();
        for lcc in &self.lccs {
            let (held, leased) = lcc.tell_holdings(term);
            groups.extend(held);
            ranges.extend(leased);
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

    /// Background work of one LCC: syncs, marks, and what it need not keep.
    async fn tend(self: Rc<Self>, lcc: Rc<Lcc>) {
        let mut turn: u64 = 0;
        loop {
            sleep(TEND_EVERY).await;
            turn += 1;
            if turn.is_multiple_of(5) {
                // Not awaited: a disk that hangs must not keep marks from the others.
                let syncing = lcc.clone();
                spawn_local(async move { syncing.sync_unstable().await });
            }
            let telling = lcc.clone();
            let _ = timeout(CALL_WAIT, async move { telling.send_marks().await }).await;
            if turn.is_multiple_of(50) {
                lcc.evict(self.groups_kept).await;
            }
        }
    }

    /// Works off facts and dead LCCs. Source: F-4, O-8.
    async fn work(self: Rc<Self>) {
        let mut busy = false;
        loop {
            sleep(if busy { WORK_AGAIN } else { WORK_EVERY }).await;
            busy = false;
            if !self.lccs[0].lease_valid() || self.lccs[0].is_ending() {
                continue;
            }
            let request = CoordinatorRequest::Work { lc: self.lc };
            let answer = self.coordinators.call(&request, RENEW_WAIT).await;
            let Ok(CoordinatorReply::Work { facts, sweeps }) = answer else { continue };
            busy = self.repair_facts(facts).await;
            for dead in sweeps {
                self.sweep(dead).await;
            }
        }
    }

    /// Returns whether some group was made whole.
    async fn repair_facts(&self, facts: Vec<Fact>) -> bool {
        let live = self.lccs[0].live_disks();
        let mut groups = BTreeMap::new();
        for fact in facts {
            if let FactKind::Suspect { layout, slot, .. } = fact.kind
                && layout.check().is_ok()
                && usize::from(slot.0) <= layout.scheme.portions()
                && slot.0 >= 1
                && live.contains(&layout.disk(slot))
            {
                groups.insert(layout.group(), layout);
            }
        }
        let layouts: Vec<_> = groups.into_values().collect();
        // A few at once: the rest of the work must not starve.
        let repairs = layouts.iter().map(|layout| async move {
            let lcc = self.lcc_of(layout.group().0);
            lcc.count_repair(true);
            let mut whole = false;
            if let Ok(group) = lcc.group_to_repair(layout).await {
                whole = timeout(REPAIR_WAIT, group.repair()).await == Ok(Repaired::Whole);
            }
            lcc.count_repair(false);
            whole
        });
        let repairs = futures_util::stream::iter(repairs).buffer_unordered(REPAIRS_AT_ONCE);
        repairs.fold(false, |some, whole| async move { some | whole }).await
    }

    fn lcc_of(&self, device: u64) -> &Rc<Lcc> {
        &self.lccs[(device % self.lccs.len() as u64) as usize]
    }

    /// Settles every group that a dead LCC left unfinished; closes its pending fact only when every
    /// disk was asked. Source: O-8.
    async fn sweep(&self, dead: Incarnation) {
        let lcc = &self.lccs[0];
        let map = lcc.map();
        let mut complete = true;
        let mut layouts = BTreeMap::new();
        let disks = map.disks.values().filter(|disk| disk.state != DiskState::Failed);
        for disk in disks {
            let groups = match lcc.disks.connect(disk.id).await {
                Some(up) => {
                    let request = IoRequest::ListUnfinished { writers: vec![dead] };
                    match up.client.call(&request, Payload::empty(), CALL_WAIT).await {
                        Ok((Ok(IoReply::Unfinished { groups }), _)) => Some(groups),
                        _ => None,
                    }
                }
                None => None,
            };
            complete &= groups.is_some();
            for layout in groups.into_iter().flatten() {
                layouts.insert(layout.group(), layout);
            }
        }
        let settlings = layouts.values().map(|layout| self.settle(layout));
        let settlings = futures_util::stream::iter(settlings).buffer_unordered(REPAIRS_AT_ONCE);
        let settled = settlings.fold(true, |all, one| async move { all & one }).await;
        lcc.send_marks().await;
        if complete && settled {
            let request = CoordinatorRequest::CloseSweep { lcc: lcc.incarnation(), dead };
            let answer = self.coordinators.call(&request, RENEW_WAIT).await;
            tracing::info!(%dead, groups = layouts.len(), ?answer, "swept a dead LCC");
        }
    }

    /// Opens a group, which settles it, and brings that to the media; `false`: later again.
    async fn settle(&self, layout: &GroupLayout) -> bool {
        match self.lcc_of(layout.group().0).group(layout).await {
            Ok(group) => group.sync().await.is_ok(),
            // A live owner has opened it already, or it was removed.
            Err(OwnError::NotOwner(Some(_)) | OwnError::Unknown) => true,
            Err(error) => {
                tracing::debug!(group = %layout.group(), ?error, "not settled yet");
                false
            }
        }
    }

    /// Ends cleanly: nothing new is begun, everything is stable, marks are told, nothing is pending.
    async fn end(&self) -> LcEnd {
        self.lccs.iter().for_each(|lcc| lcc.set_ending());
        let finished = timeout(END_WAIT, async {
            let mut all = true;
            for lcc in &self.lccs {
                for group in lcc.open_groups() {
                    all &= finish(&group).await;
                }
                // Marks that moved by the syncs.
                lcc.send_marks().await;
            }
            all
        });
        if !finished.await.unwrap_or(false) {
            return LcEnd::Unfinished;
        }
        let request = CoordinatorRequest::UnregisterLc { lc: self.lc };
        match self.coordinators.call(&request, RENEW_WAIT).await {
            Ok(_) => LcEnd::Clean,
            Err(_) => LcEnd::Unfinished,
        }
    }
}

async fn finish(group: &Rc<Group>) -> bool {
    !group.is_alive() || group.drain().await.is_ok()
}

/// Works a group's facts off now, for who asks for it.
pub(crate) async fn repair_now(group: &Rc<Group>) -> bool {
    group.repair().await == Repaired::Whole
}

/// How often the lease is renewed.
const RENEW_EVERY: Duration = Duration::from_millis(1000);

/// Longest wait for a global controller before the next attempt.
const RENEW_WAIT: Duration = Duration::from_millis(2500);

/// How often marks are told; every fifth time the disks are synced.
const TEND_EVERY: Duration = Duration::from_millis(200);

/// How often facts are looked for.
const WORK_EVERY: Duration = Duration::from_millis(1000);

/// How soon again after some work was done.
const WORK_AGAIN: Duration = Duration::from_millis(20);

/// Groups that one LC repairs at a time.
const REPAIRS_AT_ONCE: usize = 32;

/// Longest wait for the repair of one group before others get their turn; it goes on meanwhile.
const REPAIR_WAIT: Duration = Duration::from_secs(600);

/// Longest clean end.
const END_WAIT: Duration = Duration::from_secs(20);
