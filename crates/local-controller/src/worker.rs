//! One LCC at work, in the LC's thread or in one of its own.
//! # Theory
//! The LC's front registers, keeps the lease and talks to the global controller for all its LCCs;
//! what concerns one of them goes to it as [`Mail`]. A worker owns everything else: its groups, its
//! connections to I/O servers, its clients' connections.
//! ```text
//! front --Lease, Holdings, Repair, Settle, End--> worker --invalid, gone--> front
//! clients --hello: index--> front --socket--> worker
//! ```
//! # Failure
//! A worker whose front is gone ends; a front whose worker is gone starts another one.
//! # Source
//! O-3, O-4, O-8, F-4; DESIGN 2.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use braid_env::{Env, Moment, Payload, machine};
use braid_terms::{
    ClusterId, ClusterMap, DeviceId, DiskId, DiskState, FactNumber, GrantNumber, GroupLayout,
    Incarnation, LccId, ServerId,
};
use braid_wire::coordinator::LiveDisk;
use braid_wire::coordinator_client::CoordinatorClient;
use braid_wire::io::{BadBlocks, IoReply, IoRequest};
use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use crate::caches::FirstCopy;
use crate::disks::{CALL_WAIT, Disks};
use crate::files::{self, Files};
use crate::group::Group;
use crate::group::repair::Repaired;
use crate::lc::Ending;
use crate::lcc::{Lcc, LccParts, OwnError};
use crate::local::{Identity, LocalJournal};

/// What the front says to a worker.
pub(crate) enum Mail {
    /// The lease was renewed. Source: O-4.
    Lease {
        until: Moment,
        disks: Arc<[LiveDisk]>,
        servers: Arc<[ServerId]>,
        map: Option<Arc<ClusterMap>>,
        /// The global controller knows that clients may have copies. Source: N-1.
        copies: bool,
    },
    /// A new global controller asks what is owned. Source: O-3.
    Holdings { term: u64, reply: oneshot::Sender<Holdings> },
    /// Groups with facts to work off; answers whether some became whole. Source: F-4.
    Repair { layouts: Vec<GroupLayout>, reply: oneshot::Sender<bool> },
    /// Blocks that a scrub found bad; answers when they were tried. Source: F-6.
    Heal { bad: Vec<BadBlocks>, reply: oneshot::Sender<()> },
    /// Asks all disks for what a dead LCC left; answers whether all told. Source: O-8.
    ListUnfinished { dead: Incarnation, reply: oneshot::Sender<(bool, Vec<GroupLayout>)> },
    /// Groups to be opened, which settles them; answers whether all were. Source: O-8.
    Settle { layouts: Vec<GroupLayout>, reply: oneshot::Sender<bool> },
    /// Facts about the server's local journals; answers which of them may be this LCC's. Source: W-13.
    KnownCopies { facts: Arc<[(GroupLayout, FactNumber)]>, reply: oneshot::Sender<Vec<bool>> },
    /// Facts about the server's local journals under which no LCC has anything: they are closed.
    EndCopies { facts: Vec<(GroupLayout, FactNumber)>, reply: oneshot::Sender<()> },
    /// A client's socket, its hello unread.
    Socket(OwnedFd),
    /// Nothing new is begun, everything is made stable, marks are told; answers whether it was.
    End { reply: oneshot::Sender<bool> },
    /// The LC's incarnation is not valid any more.
    Invalid,
}

/// What an LCC owns, as a new global controller is told.
#[derive(Default)]
pub(crate) struct Holdings {
    pub groups: Vec<(DeviceId, GrantNumber, u8)>,
    /// First numbers of leased ranges.
    pub ranges: Vec<DeviceId>,
}

/// What a worker is made of; may go to another thread.
pub(crate) struct WorkerParts {
    pub cluster: ClusterId,
    pub id: LccId,
    pub incarnation: Incarnation,
    pub io_sockets: BTreeMap<DiskId, PathBuf>,
    pub map: Arc<ClusterMap>,
    pub groups_kept: usize,
    /// Folder of the server's local journals, where it has them, and how many LCCs share it.
    pub local: Option<PathBuf>,
    pub lccs: u8,
    pub first_copy: Arc<FirstCopy>,
    pub mail: mpsc::UnboundedReceiver<Mail>,
    /// Told when the LCC finds itself invalid.
    pub endings: mpsc::UnboundedSender<Ending>,
}

/// A worker whose tasks run in this thread, until it is dropped.
pub(crate) struct Worker {
    pub lcc: Rc<Lcc>,
    pub files: Rc<Files>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Worker {
    pub fn start(env: Env, coordinators: CoordinatorClient, parts: WorkerParts) -> Self {
        coordinators.learn(&parts.map);
        let identity = Identity { cluster: parts.cluster, server: parts.id.server };
        let place = (parts.id.index, parts.lccs);
        let local = LocalJournal::open(&env, parts.local.as_deref(), identity, place);
        let lcc = Lcc::new(LccParts {
            env: env.clone(),
            cluster: parts.cluster,
            id: parts.id,
            incarnation: parts.incarnation,
            coordinators,
            disks: Disks::new(env, parts.cluster, parts.id.server, parts.io_sockets),
            map: Rc::new(ClusterMap::clone(&parts.map)),
            local,
            first_copy: parts.first_copy,
        });
        let files = Files::new(lcc.clone());
        let tasks = vec![
            spawn_local(lcc.clone().send_facts()),
            spawn_local(tend(lcc.clone(), parts.groups_kept)),
            spawn_local(lcc.clone().watch_writers()),
            spawn_local(warm_up(lcc.clone())),
            spawn_local(files.clone().background()),
            spawn_local(files.clone().lay_copies()),
            spawn_local(tell_invalid(lcc.clone(), parts.endings)),
            spawn_local(read_mail(lcc.clone(), files.clone(), parts.mail)),
        ];
        Self { lcc, files, tasks }
    }

    /// Works until its mail ends.
    pub async fn wait(&mut self) {
        let reading = self.tasks.pop().expect("the task that reads mail is the last");
        // An error is a panic of the task, which ends the thread anyway.
        let _ = reading.await;
    }
}

async fn read_mail(lcc: Rc<Lcc>, files: Rc<Files>, mut mail: mpsc::UnboundedReceiver<Mail>) {
    while let Some(mail) = mail.recv().await {
        let lcc = lcc.clone();
        match mail {
            Mail::Lease { until, disks, servers, map, copies } => {
                if let Some(map) = map {
                    lcc.learn(Rc::new(ClusterMap::clone(&map)));
                }
                lcc.set_lease(until, &disks);
                if copies {
                    lcc.caches.set_told();
                }
                lcc.shadows.set_live(servers.to_vec());
                spawn_local(async move { lcc.reopen_restarted().await });
            }
            Mail::Holdings { term, reply } => {
                let (groups, ranges) = lcc.tell_holdings(term);
                let _ = reply.send(Holdings { groups, ranges });
            }
            Mail::Repair { layouts, reply } => {
                let files = files.clone();
                spawn_local(async move {
                    let whole = repair(&lcc, layouts.clone()).await;
                    // A directory that nobody uses may have removals that wait for it.
                    for layout in &layouts {
                        files.look_after(layout).await;
                    }
                    reply.send(whole)
                });
            }
            Mail::Heal { bad, reply } => {
                spawn_local(async move {
                    heal(&lcc, bad).await;
                    let _ = reply.send(());
                });
            }
            Mail::ListUnfinished { dead, reply } => {
                spawn_local(async move { reply.send(list_unfinished(&lcc, dead).await) });
            }
            Mail::Settle { layouts, reply } => {
                let files = files.clone();
                spawn_local(async move { reply.send(settle_all(&files, layouts).await) });
            }
            Mail::KnownCopies { facts, reply } => {
                let known =
                    facts.iter().map(|(layout, fact)| lcc.knows_copy(layout.group(), *fact));
                let _ = reply.send(known.collect());
            }
            Mail::EndCopies { facts, reply } => {
                let files = files.clone();
                spawn_local(async move {
                    files.end_copies(facts).await;
                    let _ = reply.send(());
                });
            }
            Mail::Socket(socket) => match machine::connection_from_fd(socket) {
                Ok(connection) => {
                    spawn_local(files::serve_one_of(vec![files.clone()], connection));
                }
                Err(error) => tracing::debug!(%error, "a socket is of no use"),
            },
            Mail::End { reply } => {
                let files = files.clone();
                spawn_local(async move {
                    files.hand_over_removals().await;
                    files.ahead_decided().await;
                    lcc.caches.end_all().await;
                    lcc.set_ending();
                    reply.send(finish_all(&lcc).await)
                });
            }
            Mail::Invalid => lcc.invalidate(),
        }
    }
}

async fn tell_invalid(lcc: Rc<Lcc>, endings: mpsc::UnboundedSender<Ending>) {
    while !lcc.is_invalid() {
        lcc.invalid_bell.notified().await;
    }
    let _ = endings.send(Ending::Invalid);
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

/// Background work: syncs, marks, and what it need not keep.
async fn tend(lcc: Rc<Lcc>, groups_kept: usize) {
    let mut turn: u64 = 0;
    let mut evicted = Instant::now();
    loop {
        // With nothing to bring to the media and nothing to tell, it sleeps until there is.
        let worked = lcc.work_bell.notified();
        if !lcc.has_background_work() {
            let _ = timeout(TEND_IDLE, worked).await;
        }
        sleep(TEND_EVERY).await;
        lcc.end_busy();
        turn += 1;
        if turn.is_multiple_of(5) {
            // Not awaited: a disk that hangs must not keep marks from the others.
            let syncing = lcc.clone();
            spawn_local(async move { syncing.sync_unstable().await });
        }
        let telling = lcc.clone();
        let _ = timeout(CALL_WAIT, async move { telling.send_marks().await }).await;
        if evicted.elapsed() > EVICT_EVERY {
            lcc.evict(groups_kept).await;
            evicted = Instant::now();
        }
    }
}

/// Returns whether some group was made whole.
async fn repair(lcc: &Rc<Lcc>, layouts: Vec<GroupLayout>) -> bool {
    // A few at once: the rest of the work must not starve.
    let repairs = layouts.iter().map(|layout| async move {
        lcc.count_repair(true);
        let mut whole = false;
        if let Ok(group) = lcc.group_to_repair(layout).await {
            whole = timeout(REPAIR_WAIT, group.repair()).await == Ok(Repaired::Whole);
        }
        lcc.count_repair(false);
        whole
    });
    let repairs = futures_util::stream::iter(repairs).buffer_unordered(AT_ONCE);
    repairs.fold(false, |some, whole| async move { some | whole }).await
}

async fn heal(lcc: &Rc<Lcc>, bad: Vec<BadBlocks>) {
    let heals = bad.into_iter().map(|blocks| async move {
        if let Ok(group) = lcc.group(&blocks.layout).await {
            let _ = timeout(HEAL_WAIT, group.heal_found(blocks.slot, blocks.range)).await;
        }
    });
    futures_util::stream::iter(heals).buffer_unordered(AT_ONCE).collect::<()>().await;
}

async fn list_unfinished(lcc: &Rc<Lcc>, dead: Incarnation) -> (bool, Vec<GroupLayout>) {
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
    (complete, layouts.into_values().collect())
}

async fn settle_all(files: &Rc<Files>, layouts: Vec<GroupLayout>) -> bool {
    let settlings = layouts.iter().map(|layout| settle(files, layout));
    let settlings = futures_util::stream::iter(settlings).buffer_unordered(AT_ONCE);
    let settled = settlings.fold(true, |all, one| async move { all & one }).await;
    files.lcc().send_marks().await;
    settled
}

/// Opens a group, which settles it, and brings that to the media; `false`: later again.
async fn settle(files: &Rc<Files>, layout: &GroupLayout) -> bool {
    match files.lcc().group_to_settle(layout).await {
        Ok(group) => {
            let is_stable = group.sync().await.is_ok();
            files.look_after(layout).await;
            is_stable
        }
        // A live owner has opened it already, or it was removed.
        Err(OwnError::NotOwner(Some(_)) | OwnError::Unknown) => true,
        Err(error) => {
            tracing::debug!(group = %layout.group(), ?error, "not settled yet");
            false
        }
    }
}

async fn finish_all(lcc: &Rc<Lcc>) -> bool {
    // What was dropped half way is for the sweep.
    let mut all = lcc.left_nothing();
    for group in lcc.open_groups() {
        all &= finish(&group).await;
    }
    // Marks that moved by the syncs.
    lcc.send_marks().await;
    all
}

async fn finish(group: &Rc<Group>) -> bool {
    !group.is_alive() || group.drain().await.is_ok()
}

/// Works a group's facts off now, for who asks for it.
pub(crate) async fn repair_now(group: &Rc<Group>) -> bool {
    group.repair().await == Repaired::Whole
}

/// How often marks are told; every fifth time the disks are synced.
const TEND_EVERY: Duration = Duration::from_millis(200);

/// How often it looks without being called.
const TEND_IDLE: Duration = Duration::from_secs(5);

/// How often groups that nobody uses are looked for.
const EVICT_EVERY: Duration = Duration::from_secs(10);

/// Groups that one LCC repairs or settles at a time.
const AT_ONCE: usize = 32;

/// Longest wait for bad blocks of one group to be written anew.
const HEAL_WAIT: Duration = Duration::from_secs(30);

/// Longest wait for the repair of one group before others get their turn; it goes on meanwhile.
const REPAIR_WAIT: Duration = Duration::from_secs(600);
