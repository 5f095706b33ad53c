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
//! # Source
//! O-1 to O-6, G-4, G-5.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use braid_env::{Env, Moment};
use braid_terms::{
    ClusterId, ClusterMap, DataType, DeviceId, DiskId, Fact, FactKind, FactNumber, GrantNumber,
    GroupLayout, Incarnation, LayoutGeneration, LccId, NUMBER_RANGE_SIZE, PolicyQuestion, ServerId,
};
use braid_wire::coordinator::{
    CoordinatorRefusal, CoordinatorReply, CoordinatorRequest, FactRefusal,
};
use braid_wire::coordinator_client::{CoordinatorClient, CoordinatorError};
use braid_wire::lcc::LccStatus;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep};

use crate::disks::Disks;
use crate::group::open::OpenError;
use crate::group::{Dead, Group};
use crate::placement::{Candidate, draw};
use crate::policy;

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

enum Entry {
    Opening(Rc<Notify>),
    Open(Rc<Group>),
}

struct Range {
    first: u64,
    next: u64,
    grant: GrantNumber,
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
    map: RefCell<Rc<ClusterMap>>,
    lease_until: Cell<Moment>,
    /// The newest term of a global controller that was told our holdings.
    told_term: Cell<u64>,
    live_disks: RefCell<BTreeMap<DiskId, u64>>,
    groups: RefCell<BTreeMap<DeviceId, Entry>>,
    ranges: RefCell<Vec<Range>>,
    leasing: tokio::sync::Mutex<()>,
    facts: RefCell<Vec<(GrantNumber, FactKind, FactDone)>>,
    facts_bell: Notify,
    unstable: RefCell<BTreeMap<DeviceId, Rc<Group>>>,
    marks: RefCell<BTreeMap<DeviceId, Rc<Group>>>,
    counters: Cell<Counters>,
    uses: Cell<u64>,
    repairs: Cell<u64>,
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
}

impl Lcc {
    pub(crate) fn new(parts: LccParts) -> Rc<Self> {
        let lcc = Rc::new(Self {
            env: parts.env,
            cluster: parts.cluster,
            id: parts.id,
            incarnation: parts.incarnation,
            coordinators: parts.coordinators,
            disks: parts.disks,
            map: RefCell::new(parts.map.clone()),
            lease_until: Cell::default(),
            told_term: Cell::default(),
            live_disks: RefCell::default(),
            groups: RefCell::default(),
            ranges: RefCell::default(),
            leasing: tokio::sync::Mutex::new(()),
            facts: RefCell::default(),
            facts_bell: Notify::new(),
            unstable: RefCell::default(),
            marks: RefCell::default(),
            counters: Cell::default(),
            uses: Cell::default(),
            repairs: Cell::default(),
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

    pub(crate) fn set_lease(&self, until: Moment, disks: Vec<(DiskId, u64)>) {
        self.lease_until.set(self.lease_until.get().max(until));
        *self.live_disks.borrow_mut() = disks.into_iter().collect();
    }

    /// Whether it may answer. Source: O-4.
    #[must_use]
    pub fn lease_valid(&self) -> bool {
        !self.invalid.get() && self.env.now() < self.lease_until.get()
    }

    /// Disks whose I/O servers hold a lease.
    #[must_use]
    pub fn live_disks(&self) -> BTreeSet<DiskId> {
        self.live_disks.borrow().keys().copied().collect()
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

    pub(crate) fn is_invalid(&self) -> bool {
        self.invalid.get()
    }

    /// The group, becoming its owner where there is none; waits at most about ten seconds.
    ///
    /// Errors: `OwnError`.
    pub async fn group(self: &Rc<Self>, layout: &GroupLayout) -> Result<Rc<Group>, OwnError> {
        self.group_made(layout, None).await
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
        self.group_made(layout, Some(home)).await
    }

    async fn group_made(
        self: &Rc<Self>,
        layout: &GroupLayout,
        create: Option<DeviceId>,
    ) -> Result<Rc<Group>, OwnError> {
        if layout.check().is_err() {
            return Err(OwnError::BadLayout("the layout of a group contradicts itself".into()));
        }
        let device = layout.group();
        let bell = loop {
            let opening = {
                let mut groups = self.groups.borrow_mut();
                match groups.get(&device) {
                    Some(Entry::Open(group)) if group.is_alive() => {
                        self.uses.set(self.uses.get() + 1);
                        group.used.set(self.uses.get());
                        return Ok(group.clone());
                    }
                    Some(Entry::Opening(bell)) => bell.clone(),
                    _ => {
                        let bell = Rc::new(Notify::new());
                        groups.insert(device, Entry::Opening(bell.clone()));
                        break bell;
                    }
                }
            };
            let opened = opening.notified();
            if matches!(self.groups.borrow().get(&device), Some(Entry::Opening(_))) {
                opened.await;
            }
        };
        // A task of its own: who gives up waiting must not leave the entry behind.
        let (done, result) = oneshot::channel();
        let lcc = self.clone();
        let layout = layout.clone();
        tokio::task::spawn_local(async move {
            let opened = lcc.acquire(layout, create).await;
            {
                let mut groups = lcc.groups.borrow_mut();
                match &opened {
                    Ok(group) => groups.insert(device, Entry::Open(group.clone())),
                    Err(_) => groups.remove(&device),
                };
            }
            bell.notify_waiters();
            let _ = done.send(opened);
        });
        result.await.unwrap_or_else(|_| Err(OwnError::Unavailable("the LCC ends".into())))
    }

    async fn acquire(
        self: &Rc<Self>,
        layout: GroupLayout,
        create: Option<DeviceId>,
    ) -> Result<Rc<Group>, OwnError> {
        let end = Instant::now() + ACQUIRE_WAIT;
        let device = layout.group();
        let (grant, facts) = match self.own_range(device) {
            Some(grant) => (grant, self.facts_of(device, end).await?),
            None => self.ask_for(device, end).await?,
        };
        let opened = match (Group::open(self, layout.clone(), grant, &facts, end).await, create) {
            // All slots were fenced by the open and know nothing.
            (Err(OpenError::Unknown), Some(home)) => Group::fresh(self, layout, grant, home),
            (opened, _) => opened,
        };
        opened.map_err(|error| match error {
            OpenError::LostOwnership => OwnError::NotOwner(None),
            OpenError::Unavailable(reason) => OwnError::Unavailable(reason),
            OpenError::Unknown => OwnError::Unknown,
            OpenError::BadLayout(reason) => OwnError::BadLayout(reason),
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
            let facts =
                if group.has_facts() { self.facts_of(device, end).await? } else { Vec::new() };
            group.kill(Dead::Removed);
            return Ok((group.grant, facts));
        }
        match self.own_range(device) {
            Some(grant) => {
                self.split_range(device);
                Ok((grant, Vec::new()))
            }
            None => self.ask_for(device, end).await,
        }
    }

    async fn ask_for(
        &self,
        device: DeviceId,
        end: Instant,
    ) -> Result<(GrantNumber, Vec<Fact>), OwnError> {
        let request = CoordinatorRequest::Grant { lcc: self.incarnation, group: device };
        match self.ask(&request, end).await? {
            // A grant of a global controller of before, that was long on its way: its successor was
            // not told of it (hole 6).
            CoordinatorReply::Granted { grant, .. } if grant.term < self.told_term.get() => {
                Err(OwnError::Unavailable("the grant is of an earlier global controller".into()))
            }
            CoordinatorReply::Granted { grant, facts, .. } => Ok((grant, facts)),
            CoordinatorReply::OwnedBy { lcc, incarnation, address } => {
                if incarnation == self.incarnation {
                    // Ours by the global controller's table, and not in ours: given up, or of a
                    // range. It is told so, and asked again.
                    let giving = CoordinatorRequest::GiveUpNumbers {
                        lcc: self.incarnation,
                        groups: vec![device],
                    };
                    self.ask(&giving, end).await?;
                    return Err(OwnError::NotOwner(None));
                }
                Err(OwnError::NotOwner(Some((lcc, address))))
            }
            _ => Err(OwnError::Unavailable("the global controller did not answer".into())),
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
                return Err(OwnError::Unavailable("the global controller did not answer".into()));
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
        let ranges = self.ranges.borrow();
        // Only numbers that were given out: the rest name nothing yet.
        let own = ranges.iter().find(|range| (range.first..range.next).contains(&device.0));
        own.map(|range| range.grant)
    }

    /// Whether the group was made by this LCC in this life and is not in the table any more, or
    /// never was: a `fresh` request may make it.
    #[must_use]
    pub fn may_be_fresh(&self, layout: &GroupLayout) -> bool {
        self.own_range(layout.group()).is_some()
            && !self.groups.borrow().contains_key(&layout.group())
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
        let group = Group::fresh(self, layout.clone(), grant, home);
        let group = group.map_err(|error| OwnError::BadLayout(format!("{error:?}")))?;
        self.uses.set(self.uses.get() + 1);
        group.used.set(self.uses.get());
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
            let free = live.get(&disk.id).copied().filter(|_| usable)?;
            Some(Candidate { disk: disk.id, server: disk.server, free })
        });
        disks.collect()
    }

    /// A number that no device has.
    ///
    /// Errors: `Unavailable`.
    pub(crate) async fn new_number(&self) -> Result<DeviceId, PlaceError> {
        loop {
            if let Some(range) = self.ranges.borrow_mut().last_mut()
                && range.next < range.first + NUMBER_RANGE_SIZE
            {
                range.next += 1;
                return Ok(DeviceId(range.next - 1));
            }
            let _one = self.leasing.lock().await;
            let has_room = self
                .ranges
                .borrow()
                .last()
                .is_some_and(|range| range.next < range.first + NUMBER_RANGE_SIZE);
            if has_room {
                continue;
            }
            let request = CoordinatorRequest::LeaseNumbers { lcc: self.incarnation };
            let end = Instant::now() + ACQUIRE_WAIT;
            match self.ask(&request, end).await {
                Ok(CoordinatorReply::Numbers { grant, .. })
                    if grant.term < self.told_term.get() => {}
                Ok(CoordinatorReply::Numbers { first, grant }) => {
                    let range = Range { first: first.0, next: first.0, grant };
                    self.ranges.borrow_mut().push(range);
                }
                _ => return Err(PlaceError::Unavailable("no device numbers to be had".into())),
            }
        }
    }

    /// Leases numbers ahead, so that the first create does not wait.
    pub(crate) async fn warm_up(&self) {
        if self.ranges.borrow().is_empty()
            && let Ok(DeviceId(number)) = self.new_number().await
            && let Some(range) = self.ranges.borrow_mut().last_mut()
            && range.next == number + 1
        {
            range.next = number;
        }
    }

    pub(crate) fn forget(&self, device: DeviceId, grant: GrantNumber) {
        let mut groups = self.groups.borrow_mut();
        if matches!(groups.get(&device), Some(Entry::Open(group)) if group.grant == grant) {
            groups.remove(&device);
        }
        drop(groups);
        self.unstable.borrow_mut().remove(&device);
        self.marks.borrow_mut().remove(&device);
        if self.own_range(device).is_some() && !self.is_invalid() {
            // Somebody else was granted it: never ours again without asking.
            self.split_range(device);
        }
    }

    /// Takes one number out of our ranges.
    fn split_range(&self, device: DeviceId) {
        let mut ranges = self.ranges.borrow_mut();
        let Some(at) =
            ranges.iter().position(|range| (range.first..range.next).contains(&device.0))
        else {
            return;
        };
        let grant = ranges[at].grant;
        let before = Range { first: ranges[at].first, next: device.0, grant };
        ranges[at].first = device.0 + 1;
        // The part before is full: numbers are given out only from the last one.
        if before.first < before.next {
            ranges.insert(0, before);
        }
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

    /// From now on no grant of a lower term is taken. Source: O-3.
    pub(crate) fn tells(&self, term: u64) {
        self.told_term.set(self.told_term.get().max(term));
    }

    /// What a new global controller is told: granted groups, and ranges by their first number.
    pub(crate) fn holdings(&self) -> (Vec<(DeviceId, GrantNumber, u8)>, Vec<DeviceId>) {
        let groups = self.open_groups();
        let granted = groups.iter().filter(|group| self.own_range(group.layout.group()).is_none());
        let granted = granted.map(|group| (group.layout.group(), group.grant, self.id.index));
        let ranges = self.ranges.borrow().iter().map(|range| DeviceId(range.first)).collect();
        (granted.collect(), ranges)
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
        let mut released = Vec::new();
        for group in idle {
            let device = group.layout.group();
            // Whoever still holds it must not use it.
            if Rc::strong_count(&group) > 2 || group.has_facts() {
                continue;
            }
            self.groups.borrow_mut().remove(&device);
            if self.own_range(device).is_none() {
                released.push((device, group.grant));
            }
        }
        if !released.is_empty() {
            let request = CoordinatorRequest::Release { lcc: self.incarnation, groups: released };
            let _ = self.ask(&request, Instant::now() + ACQUIRE_WAIT).await;
        }
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
                    match self.ask(&request, Instant::now() + Duration::from_secs(5)).await {
                        Ok(CoordinatorReply::Recorded(results)) => break results,
                        _ if self.is_invalid() => return,
                        _ => sleep(Duration::from_millis(50)).await,
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

    /// Closes a fact. Source: F-4.
    pub(crate) async fn close_fact(
        &self,
        fact: FactNumber,
        grant: GrantNumber,
    ) -> Result<(), OwnError> {
        let request =
            CoordinatorRequest::CloseFacts { lcc: self.incarnation, facts: vec![(fact, grant)] };
        match self.ask(&request, Instant::now() + ACQUIRE_WAIT).await? {
            CoordinatorReply::Closed(results) => match results.first() {
                Some(Ok(())) => Ok(()),
                other => Err(OwnError::Unavailable(format!("a fact was not closed: {other:?}"))),
            },
            _ => Err(OwnError::Unavailable("the global controller did not answer".into())),
        }
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    pub(crate) fn unstable(&self, group: &Rc<Group>) {
        self.unstable.borrow_mut().insert(group.layout.group(), group.clone());
    }

    pub(crate) fn marks_due(&self, group: &Rc<Group>) {
        self.marks.borrow_mut().insert(group.layout.group(), group.clone());
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
        for group in groups.values() {
            group.queue_marks();
        }
        self.disks.flush_marks().await;
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
        }
    }

    /// Servers of the map, for whoever looks for owners.
    #[must_use]
    pub fn server(&self) -> ServerId {
        self.id.server
    }
}

/// Longest wait for an owner, a grant or an open.
const ACQUIRE_WAIT: Duration = Duration::from_secs(10);
