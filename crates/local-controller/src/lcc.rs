//! One LCC: the groups that it owns, how it becomes an owner, and where new groups go.
//! # Theory
//! ```text
//! group wanted -> in the table
//!              -> its number is of a range that we lease: ours without asking
//!              -> the global controller: granted (open it), or owned by another
//! ```
//! Numbers of new devices come from leased ranges, so making one asks nobody.
//! # Invariants
//! L1 A group is in the table at most once, opening or open.
//! L2 Nothing is answered while the lease is over.
//! L3 What was told to a term is all that is owned under grants of earlier terms (O-3, hole 6).
//! # Source
//! O-1 to O-6, G-4, G-5.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use braid_env::{Env, Moment};
use braid_terms::{
    ClusterId, ClusterMap, DataType, DeviceId, DiskId, Fact, FactKind, FactNumber, GrantNumber,
    GroupLayout, Incarnation, LayoutGeneration, LccId, PolicyQuestion, ServerId,
};
use braid_wire::coordinator::{
    CoordinatorRefusal, CoordinatorReply, CoordinatorRequest, FactRefusal, LiveDisk,
};
use braid_wire::coordinator_client::{CoordinatorClient, CoordinatorError};
use braid_wire::lcc::LccStatus;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep};

use crate::caches::{Caches, FirstCopy};
use crate::disks::Disks;
use crate::group::open::OpenError;
use crate::group::{Dead, Group};
use crate::local::LocalJournal;
use crate::placement::{Candidate, draw};
use crate::policy;
use crate::ranges::Ranges;
use crate::shadow::{Shadow, Shadows};

/// Why a group is not to be had here.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum OwnError {
    /// Another LCC owns it; who and where, if known.
    NotOwner(Option<(LccId, SocketAddr)>),
    /// Too few portions answer, no lease, or no global controller now.
    Unavailable(String),
    /// No portion knows such a group.
    Unknown,
    /// The layout contradicts itself.
    BadLayout(String),
}

/// Why a new group has no place.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PlaceError {
    /// Too few disks are up for the least scheme that survives as much.
    NoPlace(String),
    /// No numbers can be leased now.
    Unavailable(String),
}

/// Counts since the LCC's start.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counters {
    pub writes: u64,
    pub prepares: u64,
    pub coordinator_calls: u64,
    pub bytes_written: u64,
    pub bytes_read: u64,
    pub blocks_rebuilt: u64,
    pub degraded_reads: u64,
}

/// What a group is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Use,
    /// It may never have been written.
    Create {
        home: DeviceId,
    },
    Repair,
    /// To settle what somebody left, whoever is to own it then.
    Settle,
}

enum Entry {
    Opening(Rc<Opening>),
    Open(Rc<Group>),
}

struct Opening {
    purpose: Purpose,
    /// Told when it is open, or could not be opened.
    bell: Notify,
    /// Why it could not be opened. All who wait for it hear it: each trying in turn, a thousand of
    /// them would wake each other a million times.
    error: RefCell<Option<OwnError>>,
    /// Under which it is being opened; owned from then on.
    grant: Cell<Option<GrantNumber>>,
}

type FactDone = oneshot::Sender<Result<FactNumber, Dead>>;

/// One LCC.
pub struct Lcc {
    pub(crate) env: Env,
    pub(crate) cluster: ClusterId,
    id: LccId,
    incarnation: Incarnation,
    pub(crate) coordinators: CoordinatorClient,
    pub(crate) disks: Disks,
    /// Copies that clients have of its groups. Source: N-1.
    pub(crate) caches: Rc<Caches>,
    map: RefCell<Rc<ClusterMap>>,
    lease_until: Cell<Moment>,
    live_disks: RefCell<BTreeMap<DiskId, LiveDisk>>,
    /// Since when the others are known to hold no lease.
    absent_disks: RefCell<BTreeMap<DiskId, Moment>>,
    looks_for_restarts: Cell<bool>,
    groups: RefCell<BTreeMap<DeviceId, Entry>>,
    ranges: RefCell<Ranges>,
    /// Groups that this LCC dropped without settling them: it opens them as a whole next time. Under
    /// which grant, where it goes on holding them until then. Source: O-8.
    unclean: RefCell<BTreeMap<DeviceId, Option<GrantNumber>>>,
    /// The newest term to which we told what we own; grants of earlier terms come too late.
    told_term: Cell<u64>,
    leasing: tokio::sync::Mutex<()>,
    facts: RefCell<Vec<(GrantNumber, FactKind, FactDone)>>,
    facts_bell: Notify,
    unstable: RefCell<BTreeMap<DeviceId, Rc<Group>>>,
    marks: RefCell<BTreeMap<DeviceId, Rc<Group>>>,
    /// Groups with writes that were answered from the local journal. Source: W-13.
    busy: RefCell<BTreeMap<DeviceId, Rc<Group>>>,
    pub(crate) local: LocalJournal,
    /// What other LCCs told as their shadow.
    pub(crate) shadow: Shadow,
    pub(crate) shadows: Shadows,
    /// Told when one of the first two above gets something.
    pub(crate) work_bell: Notify,
    counters: Cell<Counters>,
    /// Bytes that were answered and are not decided.
    pub(crate) ahead_bytes: Cell<usize>,
    uses: Cell<u64>,
    repairs: Cell<u64>,
    /// Nothing new is begun any more.
    ending: Cell<bool>,
    /// Our incarnation is invalid: all ends.
    invalid: Cell<bool>,
    pub(crate) invalid_bell: Notify,
}

/// What an LCC is made of.
pub(crate) struct LccParts {
    pub env: Env,
    pub cluster: ClusterId,
    pub id: LccId,
    pub incarnation: Incarnation,
    pub coordinators: CoordinatorClient,
    pub disks: Disks,
    pub map: Rc<ClusterMap>,
    pub local: LocalJournal,
    pub first_copy: Arc<FirstCopy>,
}

impl Lcc {
    pub(crate) fn new(parts: LccParts) -> Rc<Self> {
        let lcc = Rc::new(Self {
            caches: Rc::new(Caches::new(parts.env.clone(), parts.first_copy)),
            env: parts.env,
            cluster: parts.cluster,
            id: parts.id,
            incarnation: parts.incarnation,
            coordinators: parts.coordinators,
            disks: parts.disks,
            map: RefCell::new(parts.map.clone()),
            lease_until: Cell::default(),
            live_disks: RefCell::default(),
            absent_disks: RefCell::default(),
            looks_for_restarts: Cell::default(),
            groups: RefCell::default(),
            ranges: RefCell::default(),
            unclean: RefCell::default(),
            told_term: Cell::default(),
            leasing: tokio::sync::Mutex::new(()),
            facts: RefCell::default(),
            facts_bell: Notify::new(),
            unstable: RefCell::default(),
            marks: RefCell::default(),
            busy: RefCell::default(),
            local: parts.local,
            shadow: Shadow::default(),
            shadows: Shadows::default(),
            work_bell: Notify::new(),
            counters: Cell::default(),
            ahead_bytes: Cell::default(),
            uses: Cell::default(),
            repairs: Cell::default(),
            ending: Cell::default(),
            invalid: Cell::default(),
            invalid_bell: Notify::new(),
        });
        lcc.disks.set_incarnation(lcc.incarnation, lcc.id.index);
        lcc.disks.learn(&parts.map);
        lcc
    }

    /// Its place.
    #[must_use]
    pub fn id(&self) -> LccId {
        self.id
    }

    /// This start of it.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The cluster that it belongs to.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The world.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// Access to the coordinators.
    #[must_use]
    pub fn coordinators(&self) -> &CoordinatorClient {
        &self.coordinators
    }

    /// The newest map that it has.
    #[must_use]
    pub fn map(&self) -> Rc<ClusterMap> {
        self.map.borrow().clone()
    }

    pub(crate) fn learn(&self, map: Rc<ClusterMap>) {
        self.disks.learn(&map);
        self.coordinators.learn(&map);
        *self.map.borrow_mut() = map;
    }

    pub(crate) fn set_lease(&self, until: Moment, disks: &[LiveDisk]) {
        self.lease_until.set(self.lease_until.get().max(until));
        self.caches.set_lease(self.lease_until.get());
        let live: BTreeMap<_, _> = disks.iter().map(|live| (live.disk, *live)).collect();
        let now = self.env.now();
        let mut absent = self.absent_disks.borrow_mut();
        absent.retain(|disk, _| !live.contains_key(disk));
        let map = self.map.borrow().clone();
        for disk in map.disks.keys().filter(|disk| !live.contains_key(disk)) {
            absent.entry(*disk).or_insert(now);
        }
        *self.live_disks.borrow_mut() = live;
    }

    /// Whether it may answer. Source: O-4.
    #[must_use]
    pub fn lease_valid(&self) -> bool {
        !self.invalid.get() && self.env.now() < self.lease_until.get()
            || braid_terms::planted!("O-4/answer-without-a-lease")
    }

    /// Whether it is about to become the owner of a group.
    pub(crate) fn is_opening(&self, device: DeviceId) -> bool {
        matches!(self.groups.borrow().get(&device), Some(Entry::Opening(_)))
    }

    /// Waits until it may not answer.
    pub(crate) async fn lease_over(&self) {
        while self.lease_valid() {
            let left = self.lease_until.get() - self.env.now();
            sleep(left.max(Duration::from_millis(1))).await;
        }
    }

    /// Whether a disk's I/O server is known to hold no lease: it is not being restarted just now.
    #[must_use]
    pub fn is_dead(&self, disk: DiskId) -> bool {
        self.lease_valid() && !self.live_disks.borrow().contains_key(&disk)
    }

    /// Whether that has been so for a time. For longer than any lease, a global controller that is new
    /// has heard of all that live.
    pub(crate) fn is_dead_for(&self, disk: DiskId, span: Duration) -> bool {
        let since = self.absent_disks.borrow().get(&disk).copied();
        self.is_dead(disk) && since.is_some_and(|since| span <= self.env.now() - since)
    }

    /// Whether the disks of a group have room for more than removals, as last told.
    pub(crate) fn has_room(&self, layout: &GroupLayout) -> bool {
        let live = self.live_disks.borrow();
        let is_full = |disk: &&DiskId| live.get(disk).is_some_and(|live| live.bytes_free == 0);
        let mut full = layout.disks.iter().filter(is_full);
        full.next().is_none()
    }

    /// Everything ends: a newer start of this LCC counts.
    pub(crate) fn invalidate(&self) {
        if !self.invalid.replace(true) {
            tracing::warn!(lcc = %self.id, "this start of the LCC is not valid any more");
            let groups: Vec<_> = self.open_groups();
            groups.into_iter().for_each(|group| group.kill(Dead::LostOwnership));
            self.invalid_bell.notify_waiters();
            self.invalid_bell.notify_one();
        }
    }

    /// From now on groups take no new change, and no group is opened.
    pub(crate) fn set_ending(&self) {
        self.ending.set(true);
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.get()
    }

    pub(crate) fn is_invalid(&self) -> bool {
        self.invalid.get()
    }

    /// The group, becoming its owner where there is none; waits at most about ten seconds.
    ///
    /// Errors: `OwnError`.
    pub async fn group(self: &Rc<Self>, layout: &GroupLayout) -> Result<Rc<Group>, OwnError> {
        self.group_for(layout, Purpose::Use).await
    }

    /// As `group`, but a group that no portion knows and that is under facts is opened, empty, so
    /// that the facts can be worked off.
    ///
    /// Errors: `OwnError`.
    pub(crate) async fn group_to_repair(
        self: &Rc<Self>,
        layout: &GroupLayout,
    ) -> Result<Rc<Group>, OwnError> {
        self.group_for(layout, Purpose::Repair).await
    }

    /// As `group`, for who settles what a dead LCC left. Source: O-8.
    ///
    /// Errors: `OwnError`; `NotOwner` names who owns it, never who is only to own it (O-7).
    pub(crate) async fn group_to_settle(
        self: &Rc<Self>,
        layout: &GroupLayout,
    ) -> Result<Rc<Group>, OwnError> {
        self.group_for(layout, Purpose::Settle).await
    }

    /// As `group`, but a group that no portion knows is made: for who knows that it was never
    /// written, though the LCC that gave its number is gone.
    ///
    /// Errors: `OwnError`, never `Unknown`.
    pub async fn group_or_create(
        self: &Rc<Self>,
        layout: &GroupLayout,
        home: DeviceId,
    ) -> Result<Rc<Group>, OwnError> {
        self.group_for(layout, Purpose::Create { home }).await
    }

    async fn group_for(
        self: &Rc<Self>,
        layout: &GroupLayout,
        purpose: Purpose,
    ) -> Result<Rc<Group>, OwnError> {
        if layout.check().is_err() {
            return Err(OwnError::BadLayout("the layout of a group contradicts itself".into()));
        }
        if self.is_ending() {
            return Err(OwnError::Unavailable("the local controller ends".into()));
        }
        let device = layout.group();
        let opening = loop {
            let other = {
                let mut groups = self.groups.borrow_mut();
                match groups.get(&device) {
                    Some(Entry::Open(group)) if group.is_alive() => {
                        self.uses.set(self.uses.get() + 1);
                        group.used.set(self.uses.get());
                        return Ok(group.clone());
                    }
                    Some(Entry::Opening(other)) => other.clone(),
                    _ => {
                        let opening = Rc::new(Opening {
                            purpose,
                            bell: Notify::new(),
                            error: RefCell::default(),
                            grant: Cell::default(),
                        });
                        groups.insert(device, Entry::Opening(opening.clone()));
                        break opening;
                    }
                }
            };
            let opened = other.bell.notified();
            if matches!(self.groups.borrow().get(&device), Some(Entry::Opening(_))) {
                opened.await;
            }
            let error = other.error.borrow().clone();
            if let Some(error) = error.filter(|_| other.purpose == purpose) {
                return Err(error);
            }
        };
        // A task of its own: who gives up waiting must not leave the entry behind.
        let (done, result) = oneshot::channel();
        let lcc = self.clone();
        let layout = layout.clone();
        tokio::task::spawn_local(async move {
            let opened = lcc.acquire(layout, purpose, &opening).await;
            match &opened {
                Ok(group) => {
                    lcc.ranges.borrow_mut().note_made(device);
                    lcc.groups.borrow_mut().insert(device, Entry::Open(group.clone()));
                }
                Err(error) => {
                    *opening.error.borrow_mut() = Some(error.clone());
                    lcc.groups.borrow_mut().remove(&device);
                }
            }
            opening.bell.notify_waiters();
            let _ = done.send(opened);
        });
        result.await.unwrap_or_else(|_| Err(OwnError::Unavailable("the LCC ends".into())))
    }

    async fn acquire(
        self: &Rc<Self>,
        layout: GroupLayout,
        purpose: Purpose,
        opening: &Opening,
    ) -> Result<Rc<Group>, OwnError> {
        let end = Instant::now() + ACQUIRE_WAIT;
        let device = layout.group();
        // Who settles or repairs must not take somebody who was only named for an owner who did.
        let is_for_use = !matches!(purpose, Purpose::Repair | Purpose::Settle);
        if let Some(sibling) = self.reserved_for(&layout).filter(|_| is_for_use) {
            return Err(OwnError::NotOwner(Some(sibling)));
        }
        loop {
            let of_range = self.own_range(device);
            let (grant, facts, clean) = match of_range {
                Some(grant) => (grant, self.facts_of(device, end).await?, false),
                None => self.ask_for(device, end).await?,
            };
            opening.grant.set(Some(grant));
            let is_clean = clean
                && facts.is_empty()
                && !self.unclean.borrow().contains_key(&device)
                && !self.local.has(device);
            if is_clean && purpose == Purpose::Use {
                match Group::open_clean(self, &layout, grant).await {
                    Ok(Some(group)) => return Ok(group),
                    Ok(None) => {}
                    Err(error) => return Err(own_error(error)),
                }
            }
            let under = (grant, &facts[..]);
            let may_be_new = matches!(purpose, Purpose::Create { .. } | Purpose::Repair);
            let opened = Group::open(self, layout.clone(), under, may_be_new, end).await;
            // What only the local journal has may be all that was ever written.
            let kept = self
                .local
                .of(device)
                .into_iter()
                .find(|kept| facts.iter().any(|fact| fact.number == kept.copy.fact));
            let opened = match (opened, purpose, kept) {
                // All slots were fenced by the open and know nothing.
                (Err(OpenError::Unknown), Purpose::Create { home }, _) => {
                    Group::fresh(self, layout.clone(), under, home)
                }
                (Err(OpenError::Unknown), _, Some(kept)) => {
                    Group::fresh(self, layout.clone(), under, kept.copy.home)
                }
                (opened, _, _) => opened,
            };
            let opened = match opened {
                Ok(group) if self.local.has(device) => self.lay_own(group).await,
                opened => opened,
            };
            return match opened {
                Err(OpenError::GrantUsed) if of_range.is_some() => {
                    self.ranges.borrow_mut().lose(device);
                    continue;
                }
                Err(OpenError::Unavailable(reason)) => {
                    // Some slots may have heard of an outcome, others not.
                    self.note_unclean(device, grant);
                    Err(OpenError::Unavailable(reason))
                }
                Err(OpenError::LostOwnership) => {
                    self.note_lost(device);
                    Err(OpenError::LostOwnership)
                }
                opened => {
                    self.unclean.borrow_mut().remove(&device);
                    opened
                }
            }
            .map_err(own_error);
        }
    }

    /// The LCC of this server that is to own a group, where this one is reserved for other data. What it
    /// owns it keeps. Source: O-7.
    fn reserved_for(&self, layout: &GroupLayout) -> Option<(LccId, SocketAddr)> {
        let map = self.map();
        let own = map.servers.get(&self.id.server)?;
        let count = u8::try_from(own.lccs.len()).ok()?;
        let owns = self.own_range(layout.group()).is_some()
            || self.unclean.borrow().contains_key(&layout.group());
        if owns
            || policy::lccs_for(&map, count, policy::data_type_of(layout)).contains(&self.id.index)
        {
            return None;
        }
        let index = policy::lcc_of(&map, count, layout);
        Some((LccId { server: self.id.server, index }, own.lc_address))
    }

    /// Lays what the local journal has of a group that was just opened. Source: W-13.
    async fn lay_own(self: &Rc<Self>, group: Rc<Group>) -> Result<Rc<Group>, OpenError> {
        let Err(error) = group.lay_own(self).await else { return Ok(group) };
        tracing::debug!(group = %group.layout.group(), ?error, "not all of a local copy is laid");
        // Whoever opens it next begins anew.
        group.kill(Dead::LostOwnership);
        Err(match error {
            crate::WriteError::LostOwnership => OpenError::LostOwnership,
            error => OpenError::Unavailable(format!("a local copy is not laid yet: {error:?}")),
        })
    }

    /// The grant of a group that is to be removed, and its facts. It is not opened, so that one of
    /// which some portions are gone already can be removed; it is served from here no more.
    pub(crate) async fn grant_to_remove(
        &self,
        device: DeviceId,
    ) -> Result<(GrantNumber, Vec<Fact>), OwnError> {
        let end = Instant::now() + ACQUIRE_WAIT;
        let open = match self.groups.borrow().get(&device) {
            Some(Entry::Open(group)) if group.is_alive() => Some(group.clone()),
            Some(Entry::Opening(_)) => return Err(OwnError::Unavailable("it is opening".into())),
            _ => None,
        };
        if let Some(group) = open {
            let has_facts = group.has_facts() || group.has_copies();
            let facts = if has_facts { self.facts_of(device, end).await? } else { Vec::new() };
            group.kill(Dead::Removed);
            return Ok((group.grant, facts));
        }
        match self.own_range(device) {
            Some(grant) => {
                self.ranges.borrow_mut().lose(device);
                Ok((grant, Vec::new()))
            }
            None => {
                let (grant, facts, _) = self.ask_for(device, end).await?;
                Ok((grant, facts))
            }
        }
    }

    /// A grant, the group's open facts, and whether it is clean.
    async fn ask_for(
        &self,
        device: DeviceId,
        end: Instant,
    ) -> Result<(GrantNumber, Vec<Fact>, bool), OwnError> {
        let request = CoordinatorRequest::Grant { lcc: self.incarnation, group: device };
        loop {
            match self.ask(&request, end).await? {
                // Told to a newer global controller, what we own is known: this one came too late.
                CoordinatorReply::Granted { grant, .. } if grant.term < self.told_term.get() => {
                    braid_terms::sometimes!("O-3: a late grant was refused");
                    sleep(ASK_PAUSE).await;
                }
                CoordinatorReply::Granted { grant, facts, clean, caches_ms } => {
                    self.caches.granted(device, Duration::from_millis(caches_ms.into()));
                    return Ok((grant, facts, clean));
                }
                CoordinatorReply::OwnedBy { lcc, incarnation, address } => {
                    let other = (incarnation != self.incarnation).then_some((lcc, address));
                    return Err(OwnError::NotOwner(other));
                }
                _ => return Err(no_answer()),
            }
        }
    }

    /// The open facts of a group whose number is of our range.
    async fn facts_of(&self, device: DeviceId, end: Instant) -> Result<Vec<Fact>, OwnError> {
        let mut after = FactNumber(0);
        let mut own = Vec::new();
        loop {
            let request = CoordinatorRequest::Facts { after, limit: 4096 };
            let CoordinatorReply::Facts { facts, end: last } = self.ask(&request, end).await?
            else {
                return Err(no_answer());
            };
            after = facts.last().map_or(after, |fact| fact.number);
            own.extend(facts.into_iter().filter(|fact| fact.kind.group() == Some(device)));
            if last {
                return Ok(own);
            }
        }
    }

    async fn ask(
        &self,
        request: &CoordinatorRequest,
        end: Instant,
    ) -> Result<CoordinatorReply, OwnError> {
        self.count(|counters| counters.coordinator_calls += 1);
        let left = end.saturating_duration_since(Instant::now());
        match self.coordinators.call(request, left).await {
            Ok(reply) => Ok(reply),
            Err(CoordinatorError::Refused(CoordinatorRefusal::InvalidIncarnation)) => {
                self.invalidate();
                Err(OwnError::NotOwner(None))
            }
            Err(error) => Err(OwnError::Unavailable(error.to_string())),
        }
    }

    fn own_range(&self, device: DeviceId) -> Option<GrantNumber> {
        self.ranges.borrow().grant_of(device)
    }

    /// Whether this LCC gave the number out and nobody made the group since: a `fresh` request may
    /// make it.
    #[must_use]
    pub fn may_be_fresh(&self, layout: &GroupLayout) -> bool {
        let device = layout.group();
        self.own_range(device).is_some()
            && !self.ranges.borrow().is_made(device)
            && !self.groups.borrow().contains_key(&device)
    }

    /// Makes a group that was never written, of a number that this LCC gave out. Nothing is asked.
    ///
    /// Errors: `NotOwner` where the number is not of a range of this LCC.
    pub fn create_group(
        self: &Rc<Self>,
        layout: &GroupLayout,
        home: DeviceId,
    ) -> Result<Rc<Group>, OwnError> {
        let device = layout.group();
        let Some(grant) = self.own_range(device).filter(|_| self.may_be_fresh(layout)) else {
            return Err(OwnError::NotOwner(None));
        };
        let group = Group::fresh(self, layout.clone(), (grant, &[]), home);
        let group = group.map_err(|error| OwnError::BadLayout(format!("{error:?}")))?;
        self.uses.set(self.uses.get() + 1);
        group.used.set(self.uses.get());
        self.ranges.borrow_mut().note_made(device);
        self.groups.borrow_mut().insert(device, Entry::Open(group.clone()));
        Ok(group)
    }

    /// Layouts of new groups that this LCC owns, by policy. Source: G-4, G-5.
    ///
    /// Errors: `PlaceError`.
    pub async fn new_layouts(
        &self,
        data_type: DataType,
        question: &PolicyQuestion,
        count: u32,
    ) -> Result<Vec<GroupLayout>, PlaceError> {
        let map = self.map();
        let choice = policy::choose(&map, data_type, question);
        let devices = if data_type == DataType::File { 1 } else { 2 };
        let mut layouts = Vec::new();
        for _ in 0..count {
            let candidates = self.candidates(&map);
            let random = |bound| self.env.random_below(bound);
            let (scheme, disks) = draw(&candidates, choice.scheme, choice.spread, random)
                .map_err(PlaceError::NoPlace)?;
            let mut numbers = Vec::new();
            for _ in 0..devices {
                numbers.push(self.new_number().await?);
            }
            layouts.push(GroupLayout {
                devices: numbers,
                scheme,
                strip_size: choice.strip_size,
                generation: LayoutGeneration(1),
                disks,
            });
        }
        Ok(layouts)
    }

    fn candidates(&self, map: &ClusterMap) -> Vec<Candidate> {
        let live = self.live_disks.borrow();
        let disks = map.disks.values().filter_map(|disk| {
            let server = map.servers.get(&disk.server)?;
            let usable = disk.state == braid_terms::DiskState::InUse
                && server.state == braid_terms::ServerState::InUse;
            let free = live.get(&disk.id).filter(|_| usable)?.bytes_free;
            Some(Candidate { disk: disk.id, server: disk.server, free })
        });
        disks.collect()
    }

    /// A number that no device has.
    ///
    /// Errors: `Unavailable`.
    pub(crate) async fn new_number(&self) -> Result<DeviceId, PlaceError> {
        loop {
            if let Some(number) = self.ranges.borrow_mut().take() {
                return Ok(number);
            }
            self.lease_numbers().await?;
        }
    }

    /// Sees to it that a number can be given out.
    async fn lease_numbers(&self) -> Result<(), PlaceError> {
        let _one = self.leasing.lock().await;
        if self.ranges.borrow().has_room() {
            return Ok(());
        }
        let request = CoordinatorRequest::LeaseNumbers { lcc: self.incarnation };
        match self.ask(&request, Instant::now() + ACQUIRE_WAIT).await {
            // Asked again by who needs a number.
            Ok(CoordinatorReply::Numbers { grant, .. }) if grant.term < self.told_term.get() => {
                Ok(())
            }
            Ok(CoordinatorReply::Numbers { first, grant }) => {
                self.ranges.borrow_mut().add(first, grant);
                Ok(())
            }
            _ => Err(PlaceError::Unavailable("no device numbers to be had".into())),
        }
    }

    /// Leases numbers ahead, so that the first create does not wait.
    pub(crate) async fn warm_up(&self) {
        let _ = self.lease_numbers().await;
    }

    /// Something of a group may not be settled that was opened under this grant, or was to be. Until
    /// it is, it stays with this LCC, also where a new global controller asks. Source: O-8.
    pub(crate) fn note_unclean(&self, device: DeviceId, grant: GrantNumber) {
        self.unclean.borrow_mut().insert(device, Some(grant));
    }

    /// As `note_unclean`, of a group that somebody else may own by now.
    pub(crate) fn note_lost(&self, device: DeviceId) {
        self.unclean.borrow_mut().entry(device).or_insert(None);
    }

    /// Whether everything that was ever opened here was settled, or is open still.
    pub(crate) fn left_nothing(&self) -> bool {
        self.unclean.borrow().is_empty()
    }

    pub(crate) fn forget(&self, device: DeviceId, grant: GrantNumber) {
        let mut groups = self.groups.borrow_mut();
        if matches!(groups.get(&device), Some(Entry::Open(group)) if group.grant == grant) {
            groups.remove(&device);
        }
        drop(groups);
        self.unstable.borrow_mut().remove(&device);
        self.marks.borrow_mut().remove(&device);
        // Somebody else was granted it, or it is gone: never ours again without asking.
        self.ranges.borrow_mut().lose(device);
    }

    /// All groups that are open.
    #[must_use]
    pub fn open_groups(&self) -> Vec<Rc<Group>> {
        let groups = self.groups.borrow();
        let open = groups.values().filter_map(|entry| match entry {
            Entry::Open(group) => Some(group.clone()),
            Entry::Opening(_) => None,
        });
        open.collect()
    }

    /// Opens slots again whose I/O server was restarted, also of groups that nobody uses just now:
    /// what one lost is to be rebuilt before another one fails. Source: F-2.
    pub(crate) async fn reopen_restarted(self: &Rc<Self>) {
        if self.looks_for_restarts.replace(true) {
            return;
        }
        let live: Vec<_> = self.live_disks.borrow().values().copied().collect();
        for (disk, incarnation) in self.disks.restarted(&live).await {
            tracing::debug!(%disk, %incarnation, "an I/O server was restarted");
            for groups in self.open_groups().chunks(REOPEN_AT_ONCE) {
                let reopened = groups.iter().map(|group| group.reopen_at(disk, incarnation));
                futures_util::future::join_all(reopened).await;
            }
        }
        self.looks_for_restarts.set(false);
    }

    /// What a new global controller is told: granted groups, also those that are being opened, and
    /// ranges by their first number. Grants of earlier terms are refused from then on.
    pub(crate) fn tell_holdings(
        &self,
        term: u64,
    ) -> (Vec<(DeviceId, GrantNumber, u8)>, Vec<DeviceId>) {
        self.told_term.set(self.told_term.get().max(term));
        let groups = self.groups.borrow();
        let held = groups.iter().filter_map(|(device, entry)| {
            let grant = match entry {
                Entry::Open(group) => group.grant,
                Entry::Opening(opening) => opening.grant.get()?,
            };
            Some((*device, grant))
        });
        let unclean = self.unclean.borrow();
        let unclean = unclean.iter().filter(|(device, _)| !groups.contains_key(device));
        let unclean = unclean.filter_map(|(device, grant)| Some((*device, (*grant)?)));
        let held = held.chain(unclean).filter(|(device, _)| self.own_range(*device).is_none());
        let told = held.map(|(device, grant)| (device, grant, self.id.index)).collect();
        (told, self.ranges.borrow().firsts())
    }

    /// Gives up groups that were not used for long, beyond `keep`. Source: O-6.
    pub(crate) async fn evict(&self, keep: usize) {
        let mut idle: Vec<_> =
            self.open_groups().into_iter().filter(|group| group.is_idle()).collect();
        let count = self.groups.borrow().len();
        if count <= keep {
            return;
        }
        idle.sort_by_key(|group| group.used.get());
        idle.truncate(count - keep);
        let (mut released, mut ending) = (Vec::new(), Vec::new());
        for group in idle {
            let device = group.layout.group();
            // Whoever still holds it must not use it.
            let is_used = Rc::strong_count(&group) > 2 || self.caches.has_held(device);
            if is_used || group.has_facts() {
                continue;
            }
            if self.own_range(device).is_none() {
                ending.push(self.caches.end_group(device).await);
                if Rc::strong_count(&group) > 2 {
                    continue;
                }
                released.push((device, group.grant));
            }
            self.groups.borrow_mut().remove(&device);
        }
        if !released.is_empty() {
            let request = CoordinatorRequest::Release { lcc: self.incarnation, groups: released };
            let _ = self.ask(&request, Instant::now() + ACQUIRE_WAIT).await;
        }
    }

    /// The group, if it is open here.
    pub(crate) fn open_group(&self, device: DeviceId) -> Option<Rc<Group>> {
        match self.groups.borrow().get(&device) {
            Some(Entry::Open(group)) if group.is_alive() => Some(group.clone()),
            _ => None,
        }
    }

    /// Gives a group up of which everything is decided, stable and told. `false` where the global
    /// controller did not hear of it: it is asked for anew by whoever wants it here. Source: O-6.
    pub(crate) async fn give_up(&self, group: &Rc<Group>) -> bool {
        let (device, lcc) = (group.layout.group(), self.incarnation);
        let request = match self.own_range(device) {
            Some(_) => CoordinatorRequest::GiveUpNumbers { lcc, groups: vec![device] },
            None => CoordinatorRequest::Release { lcc, groups: vec![(device, group.grant)] },
        };
        // Whoever still holds it must not use it.
        group.kill(Dead::GivenUp);
        self.ask(&request, Instant::now() + ACQUIRE_WAIT).await.is_ok()
    }

    /// Records a fact; returns when it is committed, however often it must be asked. Source: F-2.
    pub(crate) async fn record_fact(
        &self,
        grant: GrantNumber,
        kind: FactKind,
    ) -> Result<FactNumber, Dead> {
        let (done, recorded) = oneshot::channel();
        self.facts.borrow_mut().push((grant, kind, done));
        self.facts_bell.notify_one();
        recorded.await.unwrap_or(Err(Dead::LostOwnership))
    }

    /// Sends the facts that wait, all in one entry. Runs as long as the LCC.
    pub(crate) async fn send_facts(self: Rc<Self>) {
        loop {
            self.facts_bell.notified().await;
            loop {
                let waiting = std::mem::take(&mut *self.facts.borrow_mut());
                if waiting.is_empty() {
                    break;
                }
                let facts: Vec<_> =
                    waiting.iter().map(|(grant, kind, _)| (*grant, kind.clone())).collect();
                let request = CoordinatorRequest::RecordFacts { lcc: self.incarnation, facts };
                // An unknown outcome is asked for, not guessed: a repeat is answered as the first.
                let results = loop {
                    match self.ask(&request, Instant::now() + ASK_AGAIN).await {
                        Ok(CoordinatorReply::Recorded(results)) => break results,
                        _ if self.is_invalid() => return,
                        _ => sleep(ASK_PAUSE).await,
                    }
                };
                for ((_, _, done), result) in waiting.into_iter().zip(results) {
                    let _ = done.send(result.map_err(|refusal| {
                        if refusal == FactRefusal::InvalidIncarnation {
                            self.invalidate();
                        }
                        Dead::LostOwnership
                    }));
                }
            }
        }
    }

    /// Closes a fact; returns when the outcome is known, however often it must be asked. Refused, it
    /// says that somebody else speaks for the group. Source: F-1, F-4.
    pub(crate) async fn close_fact(
        &self,
        fact: FactNumber,
        grant: GrantNumber,
    ) -> Result<(), Dead> {
        let request =
            CoordinatorRequest::CloseFacts { lcc: self.incarnation, facts: vec![(fact, grant)] };
        loop {
            match self.ask(&request, Instant::now() + ASK_AGAIN).await {
                Ok(CoordinatorReply::Closed(results)) => match results.first() {
                    Some(Ok(())) => return Ok(()),
                    Some(Err(refusal)) => {
                        tracing::warn!(?fact, ?refusal, "a fact was not closed");
                        if *refusal == FactRefusal::InvalidIncarnation {
                            self.invalidate();
                        }
                        return Err(Dead::LostOwnership);
                    }
                    None => {}
                },
                _ if self.is_invalid() => return Err(Dead::LostOwnership),
                _ => {}
            }
            sleep(ASK_PAUSE).await;
        }
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Whether something is to be synced or told.
    pub(crate) fn has_background_work(&self) -> bool {
        let some = !self.unstable.borrow().is_empty() || !self.marks.borrow().is_empty();
        some || !self.busy.borrow().is_empty() || self.shadows.has_news()
    }

    pub(crate) fn unstable(&self, group: &Rc<Group>) {
        self.work_bell.notify_one();
        self.unstable.borrow_mut().insert(group.layout.group(), group.clone());
    }

    pub(crate) fn marks_due(&self, group: &Rc<Group>) {
        self.work_bell.notify_one();
        self.marks.borrow_mut().insert(group.layout.group(), group.clone());
    }

    /// A group answers from the local journal, until it does no more.
    pub(crate) fn note_busy(&self, group: &Rc<Group>) {
        self.work_bell.notify_one();
        self.busy.borrow_mut().insert(group.layout.group(), group.clone());
    }

    /// Ends the busy periods of groups that are busy no more. Source: W-13.
    pub(crate) fn end_busy(&self) {
        let over = |group: &Rc<Group>| !group.is_alive() || group.try_end_busy(BUSY_PAUSE);
        let groups: Vec<_> = self.busy.borrow().values().cloned().collect();
        for group in groups.iter().filter(|group| over(group)) {
            let mut busy = self.busy.borrow_mut();
            // Not one that took its place meanwhile.
            if busy.get(&group.layout.group()).is_some_and(|now| Rc::ptr_eq(now, group)) {
                busy.remove(&group.layout.group());
            }
        }
    }

    /// Whether a fact about the local journal of this server is one of this LCC, or may be.
    pub(crate) fn knows_copy(&self, device: DeviceId, fact: FactNumber) -> bool {
        let is_used = match self.groups.borrow().get(&device) {
            Some(Entry::Open(group)) => !group.state.borrow().local.is_idle(),
            Some(Entry::Opening(_)) => true,
            None => false,
        };
        !self.local.is_known() || is_used || self.local.has_under(fact)
    }

    /// Whether a fact of a group is open, as the coordinators know.
    ///
    /// Errors: `Unavailable`.
    pub(crate) async fn is_open_fact(
        &self,
        device: DeviceId,
        fact: FactNumber,
    ) -> Result<bool, OwnError> {
        let facts = self.facts_of(device, Instant::now() + ACQUIRE_WAIT).await?;
        Ok(facts.iter().any(|open| open.number == fact))
    }

    /// Closes a fact about a group that no portion knows.
    ///
    /// Errors: `OwnError`.
    pub(crate) async fn close_of_unknown(
        &self,
        device: DeviceId,
        fact: FactNumber,
    ) -> Result<(), OwnError> {
        let (grant, _, _) = self.ask_for(device, Instant::now() + ACQUIRE_WAIT).await?;
        let closed = self.close_fact(fact, grant).await;
        let groups = vec![(device, grant)];
        let request = CoordinatorRequest::Release { lcc: self.incarnation, groups };
        let _ = self.ask(&request, Instant::now() + ACQUIRE_WAIT).await;
        closed.map_err(|_| OwnError::NotOwner(None))
    }

    /// Brings decided writes to the media in the background. Source: W-9.
    pub(crate) async fn sync_unstable(self: &Rc<Self>) {
        let groups = std::mem::take(&mut *self.unstable.borrow_mut());
        let syncs = groups.into_values().map(|group| async move {
            let decided = group.marks().0;
            group.push_syncs(decided).await;
            group.settle_stable();
            let state = group.state.borrow();
            if !state.unstable.is_empty() && state.dead.is_none() {
                drop(state);
                self.unstable(&group);
            }
        });
        futures_util::future::join_all(syncs).await;
    }

    /// Tells the slots what moved.
    pub(crate) async fn send_marks(&self) {
        let groups = std::mem::take(&mut *self.marks.borrow_mut());
        let groups: Vec<_> = groups.into_values().collect();
        groups.iter().for_each(|group| group.queue_marks());
        let told = groups.iter().filter_map(|group| {
            let ready = group.ready()?;
            let disks = ready.slots.iter().map(|(_, disk)| *disk).collect();
            Some((ready, disks))
        });
        let told: Vec<_> = told.collect();
        let ((), silent) = tokio::join!(self.tell_shadows(&groups), self.disks.flush_marks());
        self.note_done(&told, &silent);
    }

    pub(crate) fn count_repair(&self, started: bool) {
        let repairs = self.repairs.get();
        self.repairs.set(if started { repairs + 1 } else { repairs.saturating_sub(1) });
    }

    /// What it counted.
    #[must_use]
    pub fn status(&self) -> LccStatus {
        let counters = self.counters.get();
        let groups = self.open_groups();
        let waiting = groups.iter().filter(|group| {
            let state = group.state.borrow();
            state.in_sync() < group.geometry.data() && !state.pending.is_empty()
        });
        LccStatus {
            incarnation: self.incarnation,
            map_version: self.map().version,
            groups: groups.len() as u64,
            writes: counters.writes,
            prepares: counters.prepares,
            coordinator_calls: counters.coordinator_calls,
            syncs_asked: self.disks.syncs.get(),
            bytes_written: counters.bytes_written,
            bytes_read: counters.bytes_read,
            repairs: self.repairs.get(),
            blocks_rebuilt: counters.blocks_rebuilt,
            waiting_writes: waiting.count() as u64,
            shadow_calls: self.shadows.sent.get(),
        }
    }

    /// Its server.
    #[must_use]
    pub fn server(&self) -> ServerId {
        self.id.server
    }
}

fn own_error(error: OpenError) -> OwnError {
    match error {
        OpenError::LostOwnership => OwnError::NotOwner(None),
        OpenError::Unavailable(reason) => OwnError::Unavailable(reason),
        OpenError::GrantUsed => OwnError::Unavailable("the grant was used before".into()),
        OpenError::Unknown => OwnError::Unknown,
        OpenError::BadLayout(reason) => OwnError::BadLayout(reason),
    }
}

fn no_answer() -> OwnError {
    OwnError::Unavailable("the global controller did not answer".into())
}

/// What must be known is asked for again after so long without an answer.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Groups that are opened at once again at a disk that was restarted.
const REOPEN_AT_ONCE: usize = 64;

/// Pause before it is asked again.
const ASK_PAUSE: Duration = Duration::from_millis(50);

/// A busy period ends when nothing was written for so long: who writes now and then records no fact
/// each time.
const BUSY_PAUSE: Duration = Duration::from_secs(2);

/// Longest wait for an owner, a grant or an open.
const ACQUIRE_WAIT: Duration = Duration::from_secs(10);
