//! Copies of names and attributes that owners gave, kept until they are recalled or their lease ends.
//!
//! # Theory
//! For gateways that keep copies of their own, too (a mount's kernel). Looks are answered from here
//! where they can be; else the owner is asked, and says whether its answer may be kept.
//! ```text
//! look --here--> answer
//!   `----------> owner --granted--> kept, under the lease of that owner's LCC
//! Watch: a poll that waits at each LCC that gave something; it brings recalls
//! KeepCaches: some times in two seconds, while what it gave is used
//! ```
//! An answer that crossed a recall of its group, or a change of our own, is told and not kept.
//! # Invariants
//! K1 A copy is used only while its lease runs; leases count from when they were asked for.
//! K2 A recall is answered when neither we nor the gateway have what it names.
//! # Failure
//! When an LCC does not answer, all that it gave is dropped at once, and the gateway told so.
//! # Source
//! N-1, O-4.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use braid_env::{Moment, Payload};
use braid_terms::{DeviceId, GroupLayout};
use braid_wire::lcc::{
    Answer, Attributes, DirectoryEntry, DirectoryOp, IfExists, Lcc, LccRefusal, LccReply,
    LccRequest, Recall, RecallAnswer,
};
use braid_wire::rpc;
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::Error;
use crate::reach::{Answered, How, Place, Reach};

/// How long what one LCC gave may be used. Counts by the clock of leases ([`Moment`]).
#[derive(Default, Debug)]
struct Lease(AtomicU64);

impl Lease {
    fn is_valid(&self, now: Moment) -> bool {
        let until = self.0.load(Ordering::Relaxed);
        now.0 < until || braid_terms::planted!("N-1/caches-outlive-their-lease") && until > 0
    }
}

/// The right to keep what an owner said of a group. Other threads may look at it.
#[derive(Default, Debug)]
pub struct Grant {
    lease: Arc<Lease>,
    is_over: AtomicBool,
    /// It only runs out.
    is_timed: bool,
    used: AtomicU64,
}

impl Grant {
    /// One that runs until then, for stores that recall nothing.
    #[must_use]
    pub fn until(end: Moment) -> Arc<Self> {
        let lease = Arc::new(Lease(AtomicU64::new(end.0)));
        Arc::new(Self { lease, is_timed: true, ..Self::default() })
    }

    /// Whether what is kept under it may be used now; that counts as its use.
    #[must_use]
    pub fn use_at(&self, now: Moment) -> bool {
        let is_valid = !self.is_over.load(Ordering::Relaxed) && self.lease.is_valid(now);
        if is_valid {
            self.used.fetch_max(now.0, Ordering::Relaxed);
        }
        is_valid
    }

    /// How long it runs, if it is not prolonged.
    #[must_use]
    pub fn left(&self, now: Moment) -> Duration {
        if self.is_over.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        Moment(self.lease.0.load(Ordering::Relaxed)) - now
    }

    /// Whether who gave it recalls what is kept under it before that is not so any more.
    #[must_use]
    pub fn is_recalled(&self) -> bool {
        !self.is_timed
    }

    fn used(&self) -> Moment {
        Moment(self.used.load(Ordering::Relaxed))
    }

    fn is_of(&self, watch: &Watch) -> bool {
        Arc::ptr_eq(&self.lease, &watch.lease)
    }
}

/// Groups of which a gateway uses copies without asking here: their leases are kept. Other threads may
/// look at it.
#[derive(Default, Debug)]
pub struct Pins(Mutex<BTreeMap<DeviceId, u32>>);

impl Pins {
    fn all(&self) -> MutexGuard<'_, BTreeMap<DeviceId, u32>> {
        self.0.lock().expect("no holder panics")
    }

    /// One use more.
    pub fn pin(&self, group: DeviceId) {
        *self.all().entry(group).or_default() += 1;
    }

    /// One less.
    pub fn unpin(&self, group: DeviceId) {
        let mut all = self.all();
        if let Some(count) = all.get_mut(&group) {
            *count -= 1;
            if *count == 0 {
                all.remove(&group);
            }
        }
    }

    fn has(&self, group: DeviceId) -> bool {
        self.all().contains_key(&group)
    }
}

/// What a gateway is to do.
pub enum Notice {
    /// Copies that it may have are recalled.
    Recalled(Recalled),
    /// The lease of all that it was given in these groups has ended.
    Lost(Vec<DeviceId>),
}

/// A recall; it is answered when this is dropped.
pub struct Recalled {
    /// What it names.
    pub recall: Recall,
    /// Something that it asks about is open here. Source: N-4.
    pub is_open: Cell<bool>,
    watch: Weak<Watch>,
}

impl Drop for Recalled {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.upgrade() {
            watch.answer(&self.recall, self.is_open.get());
        }
    }
}

/// Copies of one client process.
pub struct Caches {
    reach: Rc<Reach>,
    groups: RefCell<BTreeMap<DeviceId, Group>>,
    watches: RefCell<BTreeMap<Place, Rc<Watch>>>,
    pins: Arc<Pins>,
    notices: Option<mpsc::UnboundedSender<Notice>>,
    /// Counts registrations that were asked for.
    registered: Cell<u64>,
}

/// What is kept of a group.
#[derive(Default)]
struct Group {
    grant: Arc<Grant>,
    names: BTreeMap<Bytes, Option<DirectoryEntry>>,
    records: BTreeMap<DeviceId, Attributes>,
    /// Recalls that came.
    recalls: u64,
    /// Changes of our own that began or ended.
    changes: u64,
}

impl Group {
    fn drop_named(&mut self, names: &[Bytes], ids: &[DeviceId]) {
        names.iter().for_each(|name| drop(self.names.remove(name)));
        ids.iter().for_each(|id| drop(self.records.remove(id)));
    }

    fn clear(&mut self) {
        self.names.clear();
        self.records.clear();
    }

    /// Nothing that was given of it may be used any more, nor is anything before the next
    /// [`Self::begin`]: who gives it under this lease does not know of this client yet.
    fn end(&mut self, lease: Arc<Lease>) {
        self.clear();
        self.grant.is_over.store(true, Ordering::Relaxed);
        let (is_over, used) = (true.into(), self.grant.used().0.into());
        self.grant = Arc::new(Grant { lease, is_over, used, ..Grant::default() });
    }

    /// The owner recalls from now on what it gives.
    fn begin(&mut self) {
        if self.grant.is_over.load(Ordering::Relaxed) {
            let (lease, used) = (self.grant.lease.clone(), self.grant.used().0.into());
            self.grant = Arc::new(Grant { lease, used, ..Grant::default() });
        }
    }
}

/// A registration at an LCC.
struct Watch {
    lease: Arc<Lease>,
    registration: u64,
    /// Which of ours it is, once it was asked for.
    nth: Cell<u64>,
    answers: RefCell<Vec<(u64, DeviceId, bool)>>,
    has_answers: Notify,
    began: Moment,
    /// Its lease runs, or never will.
    is_decided: Cell<bool>,
    became_decided: Notify,
}

impl Watch {
    fn answer(&self, recall: &Recall, is_open: bool) {
        self.answers.borrow_mut().push((recall.number, recall.group, is_open));
        self.has_answers.notify_one();
    }

    fn decide(&self) {
        self.is_decided.set(true);
        self.became_decided.notify_waiters();
    }

    /// Waits until it is known whether its lease runs, but not long after it began. Says whether it
    /// waited.
    async fn decided(&self, now: Moment) -> bool {
        let left = self.began + DECIDED_MAX - now;
        let became = self.became_decided.notified();
        if self.is_decided.get() || left.is_zero() {
            return false;
        }
        // If nothing is known by then, what comes now is not kept.
        let _ = timeout(left, became).await;
        true
    }
}

/// When an answer was asked for.
struct Stamp {
    recalls: u64,
    changes: u64,
    registered: u64,
}

impl Caches {
    /// Of this client process; with `notices` a gateway hears what it is to drop.
    pub(crate) fn new(
        reach: Rc<Reach>,
        notices: Option<mpsc::UnboundedSender<Notice>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            reach,
            groups: RefCell::default(),
            watches: RefCell::default(),
            pins: Arc::default(),
            notices,
            registered: Cell::new(0),
        })
    }

    /// The clock of leases.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.reach.env.now()
    }

    /// Does it at the owner of a directory's group, or answers from what is kept. Says also whether the
    /// answer may be kept.
    ///
    /// With `is_ahead` a change may be answered before it is decided. Source: W-9.
    pub async fn directory_op(
        self: &Rc<Self>,
        layout: &GroupLayout,
        op: DirectoryOp,
        is_ahead: bool,
    ) -> (Result<LccReply, Error>, Option<Arc<Grant>>) {
        let group = layout.group();
        match &op {
            DirectoryOp::Lookup { .. } | DirectoryOp::GetAttributes { .. } => {
                if let Some((reply, granted)) = self.here(group, &op) {
                    let refused = |refusal| Error::refused(refusal, format!("device {group}"));
                    return (reply.map_err(refused), Some(granted));
                }
            }
            _ => {}
        }
        let is_look = matches!(op, DirectoryOp::Lookup { .. } | DirectoryOp::GetAttributes { .. });
        let mut touched = touched(&op);
        self.begin_change(group, touched.as_mut());
        let request = LccRequest::Directory { layout: layout.clone(), op: op.clone() };
        let (reply, granted, alone) = loop {
            let stamp = self.stamp(group);
            let mut answered = None;
            let how = How { is_ahead, ..How::default() };
            let asked = self.reach.ask_noting(&request, Payload::empty(), how, &mut answered).await;
            let reply = asked.map(|(reply, _)| reply);
            let watch = answered.as_ref().map(|answered| self.watch(answered.place));
            let granted = answered.and_then(|answered| self.granted_now(group, &stamp, answered));
            // Who hears of recalls looks again once it will hear of them.
            let again = granted.is_none() && is_look && self.notices.is_some();
            if again
                && let Some(watch) = watch
                && watch.decided(self.now()).await
            {
                continue;
            }
            break (reply, granted, self.end_change(group, touched.as_ref(), &stamp));
        };
        if alone && granted.is_some() {
            self.keep(group, &op, &reply);
        }
        (reply, granted)
    }

    /// The right to use what is kept of a group, if it is watched.
    #[must_use]
    pub fn granted(&self, group: DeviceId) -> Option<Arc<Grant>> {
        let groups = self.groups.borrow();
        let grant = &groups.get(&group)?.grant;
        grant.use_at(self.now()).then(|| grant.clone())
    }

    /// Which groups a gateway uses without asking here.
    #[must_use]
    pub fn pins(&self) -> &Arc<Pins> {
        &self.pins
    }

    /// Drops what leases that are over gave. A gateway calls it before it answers anything. Source: N-1.
    pub fn drop_lost(&self) {
        let now = self.now();
        let lost = |watch: &&Rc<Watch>| {
            watch.lease.0.load(Ordering::Relaxed) > 0 && !watch.lease.is_valid(now)
        };
        let lost: Vec<_> = self.watches.borrow().values().filter(lost).cloned().collect();
        lost.iter().for_each(|watch| self.lose(watch));
    }

    fn here(
        &self,
        group: DeviceId,
        op: &DirectoryOp,
    ) -> Option<(Result<LccReply, LccRefusal>, Arc<Grant>)> {
        let now = self.now();
        let groups = self.groups.borrow();
        let kept = groups.get(&group).filter(|kept| kept.grant.use_at(now))?;
        let reply = match op {
            DirectoryOp::Lookup { name } => match kept.names.get(name)? {
                None => Err(LccRefusal::NotFound),
                Some(entry) => {
                    let attributes = match entry.home {
                        Some(_) => None,
                        None => Some(Box::new(kept.records.get(&entry.id)?.clone())),
                    };
                    Ok(LccReply::Entry { entry: entry.clone(), attributes })
                }
            },
            DirectoryOp::GetAttributes { id } => {
                Ok(LccReply::Attributes(Box::new(kept.records.get(id)?.clone())))
            }
            _ => return None,
        };
        Some((reply, kept.grant.clone()))
    }

    fn stamp(&self, group: DeviceId) -> Stamp {
        let groups = self.groups.borrow();
        let (recalls, changes) =
            groups.get(&group).map_or((0, 0), |kept| (kept.recalls, kept.changes));
        Stamp { recalls, changes, registered: self.registered.get() }
    }

    fn begin_change(&self, group: DeviceId, touched: Option<&mut Touched>) {
        if let Some(touched) = touched {
            let mut groups = self.groups.borrow_mut();
            let kept = groups.entry(group).or_default();
            kept.changes += 1;
            if touched.what_is_named {
                for name in &touched.names {
                    match kept.names.get(name) {
                        Some(entry) => touched.ids.extend(entry.as_ref().map(|entry| entry.id)),
                        None => touched.all = true,
                    }
                }
            }
            kept.drop_named(&touched.names, &touched.ids);
        }
    }

    /// Says whether no change of our own was under way in the group meanwhile.
    fn end_change(&self, group: DeviceId, touched: Option<&Touched>, stamp: &Stamp) -> bool {
        let mut groups = self.groups.borrow_mut();
        let kept = groups.entry(group).or_default();
        let alone = kept.changes == stamp.changes;
        if let Some(touched) = touched {
            kept.changes += 1;
            kept.drop_named(&touched.names, &touched.ids);
            if touched.all {
                kept.clear();
            }
            // Its times and counts.
            kept.records.remove(&group);
        }
        alone
    }

    /// Whether an answer may be kept, and under which lease. Watches who gave it from now on.
    fn granted_now(
        self: &Rc<Self>,
        group: DeviceId,
        stamp: &Stamp,
        answered: Answered,
    ) -> Option<Arc<Grant>> {
        let now = self.now();
        let watch = self.watch(answered.place);
        let mut groups = self.groups.borrow_mut();
        let kept = groups.entry(group).or_default();
        if !kept.grant.is_of(&watch) {
            // Somebody else owns it now.
            kept.end(watch.lease.clone());
        }
        kept.grant.used.fetch_max(now.0, Ordering::Relaxed);
        // What was asked for before it was for the registration of before, which ended with it.
        let is_same = watch.nth.get() <= stamp.registered && kept.recalls == stamp.recalls;
        if answered.is_granted && is_same {
            kept.begin();
        }
        let may = answered.is_granted && is_same && kept.grant.use_at(now);
        may.then(|| kept.grant.clone())
    }

    fn keep(&self, group: DeviceId, op: &DirectoryOp, reply: &Result<LccReply, Error>) {
        let mut groups = self.groups.borrow_mut();
        if GROUPS_MAX < groups.len() {
            let now = self.now();
            groups.retain(|_, kept| kept.grant.lease.is_valid(now));
        }
        let Some(kept) = groups.get_mut(&group) else { return };
        if KEPT_MAX < kept.names.len() + kept.records.len() {
            kept.clear();
        }
        match (op, reply) {
            (DirectoryOp::Lookup { name }, Err(Error::NotFound { .. })) => {
                kept.names.insert(name.clone(), None);
            }
            (
                DirectoryOp::Lookup { .. } | DirectoryOp::Create { .. },
                Ok(LccReply::Entry { entry, attributes, .. }),
            ) if !entry.name.is_empty() => {
                kept.names.insert(entry.name.clone(), Some(entry.clone()));
                if let Some(attributes) = attributes {
                    kept.records.insert(attributes.id, (**attributes).clone());
                }
            }
            (
                DirectoryOp::GetAttributes { .. } | DirectoryOp::SetAttributes { .. },
                Ok(LccReply::Attributes(attributes)),
            ) if attributes.nlink > 0 => {
                kept.records.insert(attributes.id, (**attributes).clone());
            }
            _ => {}
        }
    }

    /// The registration at an LCC, begun where there is none.
    fn watch(self: &Rc<Self>, place: Place) -> Rc<Watch> {
        if let Some(watch) = self.watches.borrow().get(&place) {
            return watch.clone();
        }
        let watch = Rc::new(Watch {
            lease: Arc::default(),
            registration: self.reach.env.random(),
            nth: Cell::new(u64::MAX),
            answers: RefCell::default(),
            has_answers: Notify::new(),
            began: self.now(),
            is_decided: Cell::new(false),
            became_decided: Notify::new(),
        });
        self.watches.borrow_mut().insert(place, watch.clone());
        let (caches, ours) = (Rc::downgrade(self), watch.clone());
        spawn_local(async move { attend(caches, place, ours).await });
        watch
    }

    /// All that was given under this lease is dropped.
    fn lose(&self, watch: &Rc<Watch>) {
        watch.lease.0.store(0, Ordering::Relaxed);
        watch.decide();
        self.watches.borrow_mut().retain(|_, other| !Rc::ptr_eq(other, watch));
        let mut lost = Vec::new();
        self.groups.borrow_mut().retain(|group, kept| {
            let is_lost = kept.grant.is_of(watch);
            if is_lost {
                lost.push(*group);
            }
            !is_lost
        });
        watch.has_answers.notify_one();
        if let Some(notices) = self.notices.as_ref().filter(|_| !lost.is_empty()) {
            // Without a gateway there is nobody to tell.
            let _ = notices.send(Notice::Lost(lost));
        }
    }

    fn recalled(&self, recall: Recall, watch: &Rc<Watch>) {
        if let Some(kept) = self.groups.borrow_mut().get_mut(&recall.group) {
            kept.recalls += 1;
            if recall.all {
                kept.end(watch.lease.clone());
            }
            kept.drop_named(&recall.names, &recall.ids);
        }
        let is_open = Cell::new(false);
        let recalled = Recalled { recall, is_open, watch: Rc::downgrade(watch) };
        if let Some(notices) = &self.notices {
            // If nobody hears it, it is answered when it is dropped.
            let _ = notices.send(Notice::Recalled(recalled));
        }
    }

    /// The answers that wait to be sent. Groups that nobody uses are not watched any more.
    fn take_answers(&self, watch: &Watch) -> Vec<RecallAnswer> {
        let now = self.now();
        let answers = std::mem::take(&mut *watch.answers.borrow_mut());
        let answer = |(number, group, is_open)| {
            let mut groups = self.groups.borrow_mut();
            let is_used = self.pins.has(group)
                || groups.get(&group).is_some_and(|kept| now - kept.grant.used() < RELEASE_AFTER);
            if !is_used && let Some(kept) = groups.get_mut(&group) {
                // Answers on their way are not kept.
                kept.recalls += 1;
                kept.end(watch.lease.clone());
            }
            RecallAnswer { number, released: (!is_used).then_some(group), is_open }
        };
        answers.into_iter().map(answer).collect()
    }

    fn is_used(&self, watch: &Watch) -> bool {
        let now = self.now();
        let groups = self.groups.borrow();
        let mut of_watch = groups.iter().filter(|(_, kept)| kept.grant.is_of(watch));
        of_watch.any(|(group, kept)| now - kept.grant.used() < IDLE_MAX || self.pins.has(*group))
    }
}

/// Keeps a registration as long as it is used.
async fn attend(caches: Weak<Caches>, place: Place, watch: Rc<Watch>) {
    let Some(reach) = caches.upgrade().map(|caches| caches.reach.clone()) else { return };
    if let Ok(client) = reach.client(place).await {
        tokio::select! {
            // A lease is asked for behind the registration.
            biased;
            () = poll(&caches, &client, &watch) => {}
            () = prolong(&caches, &client, &watch) => {}
        }
    } else {
        // Not again at once.
        sleep(KEEP_EVERY).await;
    }
    if let Some(caches) = caches.upgrade() {
        caches.lose(&watch);
    }
}

/// Waits for recalls until the registration has ended.
async fn poll(caches: &Weak<Caches>, client: &rpc::Client<Lcc>, watch: &Rc<Watch>) {
    let mut polls = FuturesUnordered::new();
    let mut begins = true;
    loop {
        let Some(answers) = caches.upgrade().map(|caches| caches.take_answers(watch)) else {
            return;
        };
        let registration = watch.registration;
        let request = LccRequest::Watch { registration, begins, answers };
        // The one of before ends with it, and brings what was on its way.
        polls.push(client.start_call(&request, Payload::empty(), POLL_MAX));
        if std::mem::take(&mut begins) {
            let Some(caches) = caches.upgrade() else { return };
            caches.registered.set(caches.registered.get() + 1);
            watch.nth.set(caches.registered.get());
        }
        loop {
            tokio::select! {
                biased;
                Some(answer) = polls.next() => {
                    let Ok((Ok(Answer { reply: LccReply::Recalls(recalls), .. }), _)) = answer else {
                        return;
                    };
                    let Some(caches) = caches.upgrade() else { return };
                    for recall in recalls {
                        caches.recalled(recall, watch);
                    }
                    if polls.is_empty() {
                        break;
                    }
                }
                () = watch.has_answers.notified() => break,
            }
        }
    }
}

/// Prolongs the lease while what it covers is used.
async fn prolong(caches: &Weak<Caches>, client: &rpc::Client<Lcc>, watch: &Rc<Watch>) {
    loop {
        let Some(env) = caches.upgrade().map(|caches| caches.reach.env.clone()) else { return };
        let asked = env.now();
        let request = LccRequest::KeepCaches { registration: watch.registration };
        match client.call(&request, Payload::empty(), KEEP_WAIT).await {
            Ok((Ok(Answer { reply: LccReply::Lease(lease_ms), .. }), _)) if lease_ms > 0 => {
                let until = asked + Duration::from_millis(lease_ms.into());
                watch.lease.0.fetch_max(until.0, Ordering::Relaxed);
                watch.decide();
            }
            Ok((Ok(Answer { reply: LccReply::Lease(_), .. }), _)) => {}
            _ => return,
        }
        sleep(KEEP_EVERY).await;
        if caches.upgrade().is_none_or(|caches| !caches.is_used(watch)) {
            return;
        }
    }
}

/// What a change of our own makes old.
struct Touched {
    names: Vec<Bytes>,
    ids: Vec<DeviceId>,
    /// Attributes of what has the names, too.
    what_is_named: bool,
    /// It may be more than that.
    all: bool,
}

fn touched(op: &DirectoryOp) -> Option<Touched> {
    let (names, ids, what_is_named, all) = match op {
        DirectoryOp::Create { name, if_exists, .. } => {
            (vec![name.clone()], vec![], *if_exists == IfExists::Replace, false)
        }
        DirectoryOp::SetAttributes { id, .. } => (vec![], vec![*id], false, false),
        DirectoryOp::Enter { name, id, .. } | DirectoryOp::Link { name, id, .. } => {
            (vec![name.clone()], vec![*id], true, false)
        }
        DirectoryOp::Unlink { name, only_id: Some(id), .. } => {
            (vec![name.clone()], vec![*id], false, false)
        }
        DirectoryOp::Unlink { name, .. } => (vec![name.clone()], vec![], true, false),
        DirectoryOp::Rename { from, to, .. } => {
            (vec![from.clone(), to.clone()], vec![], true, false)
        }
        DirectoryOp::Begin { .. }
        | DirectoryOp::AbandonUploads { .. }
        | DirectoryOp::Retire { .. }
        | DirectoryOp::MoveDirectory { .. }
        | DirectoryOp::Remove => (vec![], vec![], false, true),
        _ => return None,
    };
    Some(Touched { names, ids, what_is_named, all })
}

/// How often a lease is prolonged while it is used.
const KEEP_EVERY: Duration = Duration::from_millis(600);
const KEEP_WAIT: Duration = Duration::from_secs(2);
/// A look waits at most so long after a registration began for that.
const DECIDED_MAX: Duration = Duration::from_millis(300);
/// Longer than an owner lets a poll wait.
const POLL_MAX: Duration = Duration::from_secs(30);
/// What an LCC gave is kept so long after its last use.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// A group that was recalled is not watched any more if it was not used for so long: longer than any
/// lease, so that no gateway has anything of it.
const RELEASE_AFTER: Duration = Duration::from_secs(3);
const GROUPS_MAX: usize = 10_000;
/// Names and records kept of one group.
const KEPT_MAX: usize = 50_000;
