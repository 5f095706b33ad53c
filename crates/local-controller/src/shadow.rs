//! The shadow controller: an LCC of another server that finishes what a dead writer had decided.
//! # Theory
//! ```text
//! writer   decided --ready--> shadow        done: every portion heard the mark
//!                  --marks--> portions      the next batch to the shadow says so
//! shadow   the writer is silent for a second, or invalid, and something is not done
//!                  --decided, under the writer's grant--> portions
//! ```
//! Ready and done are marks of many groups in one message, told when marks are told: no write costs a
//! message, and who writes nothing sends nothing.
//! # Invariants
//! H1 A shadow says what is decided, never what is stable: it causes nothing to be applied, and touches
//!    no list of slots under a fact.
//! H2 It speaks under the writer's grant, so that a portion which a newer owner has opened refuses it.
//! # Failure
//! Any doubt is harmless: a writer that is only slow says the same itself. A shadow that is gone is
//! missed by nobody: the next owner's open settles the group (W-6).
//! # Source
//! W-4; hole 26 of the design's reasons.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use braid_env::{Address, Moment, Payload};
use braid_terms::{DeviceId, DiskId, Incarnation, ServerId, WriteNumber};
use braid_wire::io::{IoRequest, ShadowMark};
use braid_wire::lcc::{Lcc as LccService, LccRequest, Ready};
use braid_wire::rpc::{Client, Hello, Peer, Role};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::disks::CALL_WAIT;
use crate::group::Group;
use crate::lcc::Lcc;

/// What other LCCs had decided and not told everywhere.
#[derive(Default)]
pub(crate) struct Shadow {
    writers: RefCell<BTreeMap<Incarnation, Writer>>,
    bell: Notify,
}

struct Writer {
    heard: Moment,
    groups: BTreeMap<DeviceId, Ready>,
}

impl Shadow {
    /// A writer says what is ready and what is done.
    pub fn take(
        &self,
        now: Moment,
        writer: Incarnation,
        ready: Vec<Ready>,
        done: &[(DeviceId, WriteNumber)],
    ) {
        let mut writers = self.writers.borrow_mut();
        let known =
            writers.entry(writer).or_insert_with(|| Writer { heard: now, groups: BTreeMap::new() });
        known.heard = now;
        for (group, number) in done {
            if known.groups.get(group).is_some_and(|ready| ready.decided <= *number) {
                known.groups.remove(group);
            }
        }
        for ready in ready {
            if GROUPS_MAX <= known.groups.len() {
                known.groups.pop_first();
            }
            known.groups.insert(ready.group, ready);
        }
        if known.groups.is_empty() {
            writers.remove(&writer);
        }
        self.bell.notify_one();
    }

    /// What is to be finished: of writers that are silent, or not valid.
    fn take_silent(&self, now: Moment, is_valid: impl Fn(Incarnation) -> bool) -> Vec<Ready> {
        let mut writers = self.writers.borrow_mut();
        let silent = |(writer, known): (&Incarnation, &Writer)| {
            (known.heard + SILENCE_MAX <= now || !is_valid(*writer)).then_some(*writer)
        };
        let silent: Vec<_> = writers.iter().filter_map(silent).collect();
        let taken = silent.into_iter().filter_map(|writer| writers.remove(&writer));
        taken.flat_map(|writer| writer.groups.into_values()).collect()
    }
}

/// How an LCC speaks to its own shadows.
#[derive(Default)]
pub(crate) struct Shadows {
    peers: RefCell<BTreeMap<ServerId, Client<LccService>>>,
    /// Heard by every portion, and the shadow does not know.
    done: RefCell<BTreeMap<ServerId, Vec<(DeviceId, WriteNumber)>>>,
    /// Servers whose LC holds a lease.
    live: RefCell<Vec<ServerId>>,
    /// Messages sent.
    pub sent: std::cell::Cell<u64>,
}

impl Shadows {
    pub fn set_live(&self, mut servers: Vec<ServerId>) {
        servers.sort_unstable();
        *self.live.borrow_mut() = servers;
    }

    pub fn has_news(&self) -> bool {
        !self.done.borrow().is_empty()
    }
}

impl Lcc {
    /// Another server, by device number among those up.
    fn shadow_of(&self, device: DeviceId) -> Option<ServerId> {
        let live = self.shadows.live.borrow();
        let others: Vec<_> = live.iter().filter(|server| **server != self.server()).collect();
        let count = u64::try_from(others.len()).ok().filter(|count| *count > 0)?;
        others.get(usize::try_from(device.0 % count).ok()?).map(|server| **server)
    }

    /// Tells the shadows what is ready in these groups, and what became done before.
    pub(crate) async fn tell_shadows(&self, groups: &[Rc<Group>]) {
        let mut batches: BTreeMap<ServerId, (Vec<Ready>, Vec<_>)> = BTreeMap::new();
        for (shadow, done) in std::mem::take(&mut *self.shadows.done.borrow_mut()) {
            batches.entry(shadow).or_default().1 = done;
        }
        for ready in groups.iter().filter_map(|group| group.ready()) {
            if let Some(shadow) = self.shadow_of(ready.group) {
                batches.entry(shadow).or_default().0.push(ready);
            }
        }
        let told = batches.into_iter().map(|(shadow, (ready, done))| async move {
            let request = LccRequest::Shadow { writer: self.incarnation(), ready, done };
            let Some(peer) = self.shadow_peer(shadow).await else { return };
            self.shadows.sent.set(self.shadows.sent.get() + 1);
            // Not answered: the next batch tries again, and nobody misses this one.
            if !matches!(peer.call(&request, Payload::empty(), TELL_WAIT).await, Ok((Ok(_), _))) {
                self.shadows.peers.borrow_mut().remove(&shadow);
            }
        });
        futures_util::future::join_all(told).await;
    }

    /// The portions of these groups heard the marks, but for those on `silent` disks.
    pub(crate) fn note_done(&self, groups: &[(Ready, Vec<DiskId>)], silent: &[DiskId]) {
        for (ready, disks) in groups {
            if disks.iter().any(|disk| silent.contains(disk)) {
                continue;
            }
            if let Some(shadow) = self.shadow_of(ready.group) {
                let mut done = self.shadows.done.borrow_mut();
                done.entry(shadow).or_default().push((ready.group, ready.decided));
            }
        }
    }

    async fn shadow_peer(&self, shadow: ServerId) -> Option<Client<LccService>> {
        let known = self.shadows.peers.borrow().get(&shadow).cloned();
        if let Some(peer) = known.filter(|peer| !peer.is_closed()) {
            return Some(peer);
        }
        let to = Address::Tcp(self.map().servers.get(&shadow)?.lc_address);
        let (server, incarnation, stream) = (self.server(), self.incarnation(), self.id().index);
        let hello =
            Hello::new(self.cluster, Role::Lcc, 0, Peer::Server { server, incarnation, stream });
        let connected = timeout(TELL_WAIT, Client::connect(&self.env, to, hello)).await;
        let peer = connected.ok()?.ok()?;
        self.shadows.peers.borrow_mut().insert(shadow, peer.clone());
        Some(peer)
    }

    /// Looks after writers whose shadow this LCC is. Runs as long as the LCC.
    pub(crate) async fn watch_writers(self: Rc<Self>) {
        loop {
            let told = self.shadow.bell.notified();
            if self.shadow.writers.borrow().is_empty() {
                told.await;
            }
            sleep(LOOK_EVERY).await;
            let map = self.map();
            let is_valid = |writer| {
                let mut servers = map.servers.values();
                servers.any(|server| server.lccs.contains(&Some(writer)))
            };
            let left = self.shadow.take_silent(self.env.now(), is_valid);
            self.finish_for(left).await;
        }
    }

    async fn finish_for(&self, left: Vec<Ready>) {
        let mut by_disk: BTreeMap<DiskId, Vec<ShadowMark>> = BTreeMap::new();
        for ready in left {
            for (slot, disk) in ready.slots {
                let (group, grant, decided) = (ready.group, ready.grant, ready.decided);
                let mark = ShadowMark { group, slot, grant, decided };
                by_disk.entry(disk).or_default().push(mark);
            }
        }
        let told = by_disk.into_iter().map(|(disk, groups)| async move {
            let Some(up) = self.disks.connect(disk).await else { return };
            let request = IoRequest::Decided { incarnation: up.incarnation, groups };
            let answer = up.client.call(&request, Payload::empty(), CALL_WAIT).await;
            tracing::debug!(%disk, ?answer, "marks of a silent writer");
        });
        futures_util::future::join_all(told).await;
    }
}

/// Silence of a writer with something ready after which its shadow speaks.
const SILENCE_MAX: Duration = Duration::from_millis(1000);

/// How often a shadow with something ready looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Longest wait for a shadow.
const TELL_WAIT: Duration = Duration::from_millis(400);

/// Groups of one writer that are kept.
const GROUPS_MAX: usize = 10_000;
