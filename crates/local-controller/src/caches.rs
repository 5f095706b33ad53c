//! Caches of clients: who may have copies of what a directory's group says, and how they are recalled.
//!
//! # Theory
//! A client process with caches (a mount) *registers* at an LCC. What it looks up from then on it may
//! keep: the owner notes the group as *watched* by it with the look itself. A change waits, decided but
//! shown to nobody, until the others that watch the group have said that they keep nothing of it.
//! ```text
//! client                                 owner
//!   | Watch(begins)  (a long poll)         | registered, lease
//!   | Lookup "a"                           | group 9 is watched by the client
//!   |<---------------- Granted(entry) -----|
//!   |                                      | another client's rename of "a" is decided
//!   |<---------------- Recalls(9: "a") ----| from now on nothing of group 9 is granted
//!   | drops "a", also from its kernel      |
//!   | Watch(answers: 1) ------------------>| the rename is shown, and answered
//! ```
//! # Invariants
//! C1 While a registration lives, it has answered the recall of all that was granted to it and is not
//!    what the group says.
//! C2 A lease ends at the client before it ends here, and before the lease of the LC ends (O-4): who
//!    owns the group next need not know of it while that one may run.
//! C3 A registration that leaves a recall unanswered gets no longer lease than a whole one from when the
//!    recall was made.
//! # Failure
//! A client that does not answer is waited out for its lease, and then forgotten; it finds out when it
//! wants to prolong it. A new owner waits before its first change as long as caches that gone owners
//! gave may live.
//! # Source
//! N-1, O-4; DESIGN-REASONS 11.
//! # Bytes
//! Copies of a file's bytes live and end with its attributes. A client that has bytes which it has not
//! sent says so before it answers the first such write (`Writes`); then nobody else has copies of the
//! file, and who looks at it waits until they are sent.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use braid_env::{Env, Moment};
use braid_terms::{DeviceId, LEASE_MS};
use braid_wire::lcc::{LccRefusal, LccReply, Recall, RecallAnswer};
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// A client process; 0 is one that keeps no copies.
pub type Session = u64;

/// Who asked for a change; a 0 in it stands for somebody without copies.
pub type Authors = BTreeSet<Session>;

/// What is about to change in a directory's group.
#[derive(Clone, Default, Debug)]
pub struct Changed {
    /// Names.
    pub names: BTreeMap<Bytes, Authors>,
    /// Attributes and bytes.
    pub ids: BTreeMap<DeviceId, Authors>,
}

impl Changed {
    /// What a session must give up: what others than itself change.
    fn of_others(&self, session: Session) -> (Vec<Bytes>, Vec<DeviceId>) {
        let is_only = |authors: &Authors| authors.len() == 1 && authors.contains(&session);
        // What nobody asked for is the owner's own doing.
        let other = |authors: &Authors| !is_only(authors);
        let names = self.names.iter().filter(|(_, authors)| other(authors));
        let ids = self.ids.iter().filter(|(_, authors)| other(authors));
        (names.map(|(name, _)| name.clone()).collect(), ids.map(|(id, _)| *id).collect())
    }
}

/// Copies that clients have of groups of one LCC.
pub struct Caches {
    env: Env,
    /// The lease of the LC ends then.
    lease_until: Cell<Moment>,
    first: Arc<FirstCopy>,
    /// The global controller knows that clients may have copies: they may be granted.
    is_told: Cell<bool>,
    became_told: Notify,
    sessions: RefCell<BTreeMap<Session, Registration>>,
    groups: RefCell<BTreeMap<DeviceId, Watched>>,
    /// Groups that were granted while clients might have copies that gone owners gave.
    quiet: RefCell<BTreeMap<DeviceId, Moment>>,
    /// Files, by their groups, of which one name is counted for those who have them open. Source: N-4.
    held: RefCell<BTreeMap<(DeviceId, DeviceId), Held>>,
    /// Nothing is granted any more.
    is_ending: Cell<bool>,
    /// Notes of unsent bytes so far.
    notes: Cell<u64>,
    /// A recall was answered, or a session ended.
    answered: Notify,
}

#[derive(Default)]
struct Watched {
    by: BTreeSet<Session>,
    /// Who may have bytes of a file that it has not sent, and which of its notes that is.
    unsent: BTreeMap<DeviceId, (Session, u64)>,
    /// Changes that are decided and wait for recalls: nothing is granted meanwhile.
    changing: u32,
    /// It is being given up: nobody may keep bytes that it has not sent.
    is_ending: bool,
}

impl Watched {
    fn is_idle(&self) -> bool {
        self.by.is_empty() && self.unsent.is_empty() && self.changing == 0
    }
}

struct Registration {
    number: u64,
    until: Moment,
    /// Not delivered yet.
    queue: BTreeMap<(DeviceId, Kind), Recall>,
    /// Recalls that are not answered, with when they were made.
    unanswered: BTreeMap<u64, Moment>,
    /// Those that ask for bytes, likewise; they may take longer.
    sending: BTreeMap<u64, Moment>,
    /// Answers to whether something is open.
    open: BTreeMap<u64, bool>,
    next: u64,
    polls: u64,
    bell: Rc<Notify>,
}

/// What a recall is for; those of one kind go together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Copies are taken back.
    Copies,
    /// Apart: sending bytes is a change, which must not wait for itself.
    Unsent,
    /// Whether a file is open.
    Open,
}

impl Kind {
    fn of(recall: &Recall) -> Self {
        match (recall.unsent.is_empty(), recall.open.is_empty()) {
            (false, _) => Self::Unsent,
            (true, false) => Self::Open,
            (true, true) => Self::Copies,
        }
    }
}

/// Who has a file open whose names may be gone.
#[derive(Default)]
struct Held {
    by: BTreeSet<Session>,
    /// Names in its record that are counted for them.
    names: u32,
}

/// A recall that is waited for.
type Awaited = (Session, u64, u64);

/// What LCCs say to their LC: the global controller is to know that clients may have copies. Without
/// one nobody waits for the lease of an LC that is gone.
#[derive(Default)]
pub struct FirstCopy {
    is_wanted: AtomicBool,
    /// Somebody waits for it.
    pub bell: Notify,
}

impl FirstCopy {
    /// Whether somebody ever wanted one.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    fn want(&self) {
        self.is_wanted.store(true, Ordering::Relaxed);
        self.bell.notify_one();
    }
}

impl Caches {
    pub fn new(env: Env, first: Arc<FirstCopy>) -> Self {
        Self {
            env,
            lease_until: Cell::default(),
            first,
            is_told: Cell::new(false),
            became_told: Notify::new(),
            sessions: RefCell::default(),
            groups: RefCell::default(),
            quiet: RefCell::default(),
            held: RefCell::default(),
            is_ending: Cell::new(false),
            notes: Cell::new(0),
            answered: Notify::new(),
        }
    }

    /// The lease of the LC runs until then.
    pub fn set_lease(&self, until: Moment) {
        self.lease_until.set(self.lease_until.get().max(until));
    }

    /// The global controller knows that clients may have copies.
    pub fn set_told(&self) {
        self.is_told.set(true);
        self.became_told.notify_waiters();
    }

    /// A group was granted; clients may have copies of it for so long that its last owner gave.
    pub fn granted(&self, group: DeviceId, caches: Duration) {
        let now = self.env.now();
        let mut quiet = self.quiet.borrow_mut();
        quiet.retain(|_, until| now < *until);
        if !caches.is_zero() && !braid_terms::planted!("N-1/new-owner-does-not-wait") {
            quiet.insert(group, now + caches);
        }
    }

    /// What a look of this session says may be kept by it, unless it is about to change.
    pub fn grant(&self, group: DeviceId, session: Session) -> bool {
        if session == 0 || self.is_ending.get() || !self.may_have_copies(session) {
            return false;
        }
        let mut groups = self.groups.borrow_mut();
        let watched = groups.entry(group).or_default();
        let may = watched.changing == 0;
        if may {
            watched.by.insert(session);
        }
        may
    }

    /// Whether this session may be given copies now. Source: N-1, O-4.
    fn may_have_copies(&self, session: Session) -> bool {
        self.is_told.get() && self.is_registered(session)
    }

    fn is_registered(&self, session: Session) -> bool {
        let sessions = self.sessions.borrow();
        sessions.get(&session).is_some_and(|registration| self.env.now() < registration.until)
    }

    /// Whether a change of the group may have to wait.
    pub fn matters(&self, group: DeviceId) -> bool {
        self.groups.borrow().contains_key(&group) || self.quiet.borrow().contains_key(&group)
    }

    /// Whether others than this session may have copies of the group.
    pub fn is_watched_by_others(&self, group: DeviceId, session: Session) -> bool {
        let groups = self.groups.borrow();
        let is_other = |watched: &Watched| {
            watched.changing > 0 && watched.is_ending
                || watched.by.iter().any(|by| *by != session)
                || watched.unsent.values().any(|(by, _)| *by != session)
        };
        let is_quiet = |until: &Moment| self.env.now() < *until;
        groups.get(&group).is_some_and(is_other)
            || self.quiet.borrow().get(&group).is_some_and(is_quiet)
    }

    /// Before a decided change is shown: nobody but who asked for it has copies of what it changes when
    /// this returns, and nobody gets any before the result is dropped. Source: N-1.
    pub async fn before_change(self: &Rc<Self>, group: DeviceId, changed: &Changed) -> Changing {
        let changing = Changing::begin(self, group);
        let quiet = self.quiet.borrow().get(&group).copied().unwrap_or_default();
        let left = quiet - self.env.now();
        if !left.is_zero() {
            sleep(left).await;
        }
        let watching: Vec<Session> = {
            let groups = self.groups.borrow();
            groups.get(&group).map(|w| w.by.iter().copied().collect()).unwrap_or_default()
        };
        let mut awaited = Vec::new();
        for session in watching {
            let (names, ids) = changed.of_others(session);
            if !names.is_empty() || !ids.is_empty() {
                let recall = Recall { group, names, ids, ..Recall::default() };
                awaited.extend(self.recall(session, recall));
            }
        }
        if !braid_terms::planted!("N-1/recall-not-waited-for") {
            self.wait(awaited).await;
        }
        changing
    }

    /// A session is going to keep bytes of a file that it has not sent: nobody else has copies of the
    /// file, or unsent bytes, when this returns. Source: W-9.
    ///
    /// Errors: `Conflict` where it is not registered, or the global controller does not know yet that
    /// clients have copies.
    pub async fn writes(
        self: &Rc<Self>,
        group: DeviceId,
        session: Session,
        id: DeviceId,
    ) -> Result<LccReply, LccRefusal> {
        if session == 0 || !self.may_have_copies(session) {
            return Err(LccRefusal::Conflict);
        }
        self.before_look(group, session, |of| *of == id).await;
        // Noted first: who looks from now on has it sent.
        self.notes.set(self.notes.get() + 1);
        let note = (session, self.notes.get());
        {
            let mut groups = self.groups.borrow_mut();
            let watched = groups.entry(group).or_default();
            let by_other = watched.unsent.get(&id).is_some_and(|(by, _)| *by != session);
            if watched.is_ending || self.is_ending.get() || by_other {
                return Err(LccRefusal::Conflict);
            }
            watched.unsent.insert(id, note);
        }
        let changed = Changed { ids: [(id, [session].into())].into(), ..Changed::default() };
        let changing = self.before_change(group, &changed).await;
        drop(changing);
        let groups = self.groups.borrow();
        let is_noted = groups.get(&group).is_some_and(|known| known.unsent.get(&id) == Some(&note));
        if is_noted { Ok(LccReply::Done) } else { Err(LccRefusal::Conflict) }
    }

    /// Before a look of this session at these: bytes of them that wait at other clients are held when
    /// this returns, as far as those send them in time. Source: W-9.
    pub async fn before_look(
        &self,
        group: DeviceId,
        session: Session,
        at: impl Fn(&DeviceId) -> bool,
    ) {
        let notes: Vec<(DeviceId, (Session, u64))> = {
            let groups = self.groups.borrow();
            let Some(watched) = groups.get(&group) else { return };
            let unsent = watched.unsent.iter().filter(|(id, (by, _))| *by != session && at(id));
            unsent.map(|(id, note)| (*id, *note)).collect()
        };
        if notes.is_empty() {
            return;
        }
        let ask = |(id, (by, _)): &(DeviceId, (Session, u64))| {
            self.recall(*by, Recall { group, unsent: vec![*id], ..Recall::default() })
        };
        let awaited = notes.iter().filter_map(ask).collect();
        let _ = timeout(SEND_MAX, self.wait(awaited)).await;
        if let Some(watched) = self.groups.borrow_mut().get_mut(&group) {
            // What was noted anew meanwhile stays.
            watched.unsent.retain(|id, note| !notes.contains(&(*id, *note)));
        }
    }

    /// Before the last name of a file goes: whether others than this session have it open. Then one name
    /// more is to be counted for them, unless `is_held` says so already. Source: N-4.
    pub async fn is_open_elsewhere(&self, group: DeviceId, session: Session, id: DeviceId) -> bool {
        let others: Vec<Session> = {
            let groups = self.groups.borrow();
            let by = groups.get(&group).map(|watched| &watched.by);
            by.into_iter().flatten().copied().filter(|other| *other != session).collect()
        };
        let ask = |other: &Session| {
            self.recall(*other, Recall { group, open: vec![id], ..Recall::default() })
        };
        let asked: Vec<Awaited> = others.iter().filter_map(ask).collect();
        self.wait(asked.clone()).await;
        let said = |(session, number, recall): &Awaited| {
            let open = self.with(*session, *number, |known| known.open.remove(recall));
            open.flatten().is_some().then_some(*session)
        };
        let holders: BTreeSet<Session> = asked.iter().filter_map(said).collect();
        if holders.is_empty() {
            return false;
        }
        self.held.borrow_mut().entry((group, id)).or_default().by.extend(holders);
        true
    }

    /// A name was counted (or not any more) for those who have the file open.
    pub fn count_held(&self, group: DeviceId, id: DeviceId, is_counted: bool) {
        let mut held = self.held.borrow_mut();
        if let Some(file) = held.get_mut(&(group, id)) {
            file.names = u32::from(is_counted);
            if !is_counted {
                held.remove(&(group, id));
            }
        }
    }

    /// Whether a name of the file is counted for who has it open.
    pub fn is_held(&self, group: DeviceId, id: DeviceId) -> bool {
        self.held.borrow().get(&(group, id)).is_some_and(|file| file.names > 0)
    }

    /// Whether names of any file of the group are counted for who has it open. Source: N-4.
    pub fn has_held(&self, group: DeviceId) -> bool {
        let held = self.held.borrow();
        held.range((group, DeviceId(0))..=(group, DeviceId(u64::MAX))).next().is_some()
    }

    /// A session has closed a file.
    pub fn closed(&self, group: DeviceId, session: Session, id: DeviceId) {
        if let Some(file) = self.held.borrow_mut().get_mut(&(group, id)) {
            file.by.remove(&session);
        }
    }

    /// Files with a name that was counted for holders who are gone or have closed them.
    pub fn held_by_nobody(&self) -> Vec<(DeviceId, DeviceId)> {
        let mut held = self.held.borrow_mut();
        for file in held.values_mut() {
            file.by.retain(|session| self.is_registered(*session));
        }
        let gone = held.iter().filter(|(_, file)| file.names > 0 && file.by.is_empty());
        gone.map(|(place, _)| *place).collect()
    }

    /// Before a group is given up: nobody has copies of it, or bytes that it has not sent, when this
    /// returns, and nobody gets any before the result is dropped. Source: N-1, O-6.
    pub async fn end_group(self: &Rc<Self>, group: DeviceId) -> Changing {
        let changing = Changing::begin(self, group);
        let watching: Vec<Session> = {
            let mut groups = self.groups.borrow_mut();
            let watched = groups.entry(group).or_default();
            watched.is_ending = true;
            watched.by.iter().copied().collect()
        };
        let recall =
            |session| self.recall(session, Recall { group, all: true, ..Recall::default() });
        let awaited = watching.into_iter().filter_map(recall).collect();
        self.wait(awaited).await;
        self.before_look(group, 0, |_| true).await;
        if let Some(watched) = self.groups.borrow_mut().get_mut(&group) {
            // Whoever wants a copy again asks for it; by then the group has an owner.
            watched.by.clear();
            watched.unsent.clear();
        }
        changing
    }

    /// The LC ends: nobody has copies of any of its groups when this returns, and nobody gets any.
    /// Source: N-1.
    pub async fn end_all(self: &Rc<Self>) {
        self.is_ending.set(true);
        let groups: Vec<DeviceId> = self.groups.borrow().keys().copied().collect();
        let ended = groups.into_iter().map(|group| self.end_group(group));
        futures_util::future::join_all(ended).await;
    }

    /// Queues a recall; what waits for the same client and group goes together.
    fn recall(&self, session: Session, recall: Recall) -> Option<Awaited> {
        let now = self.env.now();
        if !self.is_registered(session) {
            self.end_session(session);
            return None;
        }
        let mut sessions = self.sessions.borrow_mut();
        let registration = sessions.get_mut(&session)?;
        let next = registration.next;
        let kind = Kind::of(&recall);
        let queued = registration.queue.entry((recall.group, kind)).or_insert_with(|| {
            registration.next += 1;
            let waiting = match kind {
                Kind::Unsent => &mut registration.sending,
                Kind::Copies | Kind::Open => &mut registration.unanswered,
            };
            waiting.insert(next, now);
            Recall { number: next, group: recall.group, ..Recall::default() }
        });
        queued.names.extend(recall.names);
        queued.ids.extend(recall.ids);
        queued.unsent.extend(recall.unsent);
        queued.open.extend(recall.open);
        queued.all |= recall.all || NAMED_MAX < queued.names.len() + queued.ids.len();
        if queued.all {
            (queued.names, queued.ids) = Default::default();
        }
        registration.bell.notify_one();
        Some((session, registration.number, queued.number))
    }

    async fn wait(&self, mut awaited: Vec<Awaited>) {
        loop {
            let answered = self.answered.notified();
            awaited.retain(|(session, number, recall)| {
                let sessions = self.sessions.borrow();
                let registration = sessions.get(session).filter(|known| known.number == *number);
                registration.is_some_and(|known| {
                    known.unanswered.contains_key(recall) || known.sending.contains_key(recall)
                })
            });
            let ends = awaited.iter().filter_map(|(session, ..)| {
                Some((self.sessions.borrow().get(session)?.until, *session))
            });
            let Some((end, session)) = ends.min() else { return };
            let left = end - self.env.now();
            if left.is_zero() {
                tracing::debug!(session, "a client did not answer a recall within its lease");
                self.end_session(session);
            } else {
                let _ = timeout(left, answered).await;
            }
        }
    }

    fn end_session(&self, session: Session) {
        if let Some(ended) = self.sessions.borrow_mut().remove(&session) {
            ended.bell.notify_one();
            self.groups.borrow_mut().retain(|_, watched| {
                watched.by.remove(&session);
                watched.unsent.retain(|_, (by, _)| *by != session);
                !watched.is_idle()
            });
            self.answered.notify_waiters();
        }
    }

    /// See `LccRequest::Watch`.
    pub async fn watch(
        &self,
        session: Session,
        registration: u64,
        begins: bool,
        answers: Vec<RecallAnswer>,
    ) -> Result<LccReply, LccRefusal> {
        if session == 0 {
            return Err(crate::files::bad("only a client process watches"));
        }
        if begins {
            self.end_session(session);
            self.register(session, registration)?;
        }
        for answer in answers {
            self.take_answer(session, registration, answer);
        }
        let (poll, bell) = self
            .with(session, registration, |known| {
                known.polls += 1;
                // The poll of before ends.
                known.bell.notify_one();
                known.bell = Rc::new(Notify::new());
                (known.polls, known.bell.clone())
            })
            .ok_or(LccRefusal::NotFound)?;
        let take = || {
            let take = |known: &mut Registration| {
                let is_last = known.polls == poll;
                let queue =
                    if is_last { std::mem::take(&mut known.queue) } else { BTreeMap::new() };
                (is_last, queue.into_values().collect::<Vec<_>>())
            };
            self.with(session, registration, take).ok_or(LccRefusal::NotFound)
        };
        let (_, recalls) = take()?;
        if !recalls.is_empty() {
            return Ok(LccReply::Recalls(recalls));
        }
        let _ = timeout(POLL_MAX, bell.notified()).await;
        let (_, recalls) = take()?;
        Ok(LccReply::Recalls(recalls))
    }

    fn register(&self, session: Session, number: u64) -> Result<(), LccRefusal> {
        let now = self.env.now();
        let mut sessions = self.sessions.borrow_mut();
        if SESSIONS_MAX <= sessions.len() {
            sessions.retain(|_, known| now < known.until);
        }
        if SESSIONS_MAX <= sessions.len() {
            return Err(crate::files::bad("too many client processes keep copies"));
        }
        let registration = Registration {
            number,
            until: now + here(self.lease_ms(now)),
            queue: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            sending: BTreeMap::new(),
            open: BTreeMap::new(),
            next: 1,
            polls: 0,
            bell: Rc::new(Notify::new()),
        };
        sessions.insert(session, registration);
        Ok(())
    }

    fn with<T>(
        &self,
        session: Session,
        number: u64,
        work: impl FnOnce(&mut Registration) -> T,
    ) -> Option<T> {
        let mut sessions = self.sessions.borrow_mut();
        sessions.get_mut(&session).filter(|known| known.number == number).map(work)
    }

    fn take_answer(&self, session: Session, registration: u64, answer: RecallAnswer) {
        let waited = self.with(session, registration, |known| {
            if answer.is_open {
                known.open.insert(answer.number, true);
            }
            let sent = known.sending.remove(&answer.number);
            known.unanswered.remove(&answer.number).or(sent)
        });
        if waited.flatten().is_some() {
            self.answered.notify_waiters();
        }
        if let Some(group) = answer.released.filter(|_| waited.is_some()) {
            let mut groups = self.groups.borrow_mut();
            if let Some(watched) = groups.get_mut(&group) {
                watched.by.remove(&session);
                if watched.is_idle() {
                    groups.remove(&group);
                }
            }
        }
    }

    /// How long a lease may be now, in milliseconds. Source: O-4.
    fn lease_ms(&self, now: Moment) -> u32 {
        let left = (self.lease_until.get() - now).min(Duration::from_millis(LEASE_MS));
        u32::try_from(left.as_millis()).unwrap_or(0)
    }

    /// See `LccRequest::KeepCaches`.
    pub async fn keep(&self, session: Session, registration: u64) -> Result<LccReply, LccRefusal> {
        if !self.is_told.get() {
            let told = self.became_told.notified();
            self.first.want();
            if timeout(TELL_MAX, told).await.is_err() {
                return Ok(LccReply::Lease(0));
            }
        }
        let now = self.env.now();
        if !self.is_registered(session) {
            self.end_session(session);
            return Err(LccRefusal::NotFound);
        }
        let whole = self.lease_ms(now);
        let lease_ms = self.with(session, registration, |known| {
            let since = known.unanswered.values().min().copied().unwrap_or(now);
            let waited = u32::try_from((now - since).as_millis()).unwrap_or(u32::MAX);
            let lease_ms = whole.saturating_sub(waited);
            known.until = known.until.max(now + here(lease_ms));
            lease_ms
        });
        lease_ms.map(LccReply::Lease).ok_or(LccRefusal::NotFound)
    }
}

/// Longest wait until the global controller knows that there are copies: shorter than a lease.
const TELL_MAX: Duration = Duration::from_secs(1);

/// A lease as it counts here: longer than at the client.
fn here(lease_ms: u32) -> Duration {
    Duration::from_millis(u64::from(lease_ms) + u64::from(lease_ms) / 50 + 1)
}

/// A change that waits for recalls, or is being shown.
pub struct Changing {
    caches: Rc<Caches>,
    group: DeviceId,
}

impl Changing {
    fn begin(caches: &Rc<Caches>, group: DeviceId) -> Self {
        caches.groups.borrow_mut().entry(group).or_default().changing += 1;
        Self { caches: caches.clone(), group }
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        let mut groups = self.caches.groups.borrow_mut();
        if let Some(watched) = groups.get_mut(&self.group) {
            watched.changing -= 1;
            watched.is_ending &= watched.changing > 0;
            if watched.is_idle() {
                groups.remove(&self.group);
            }
        }
    }
}

/// So long a look waits for bytes that a client has not sent: longer than those wait for portions of a
/// machine that stands still.
const SEND_MAX: Duration = Duration::from_secs(8);
/// Longest wait of one request for recalls.
const POLL_MAX: Duration = Duration::from_secs(20);
const SESSIONS_MAX: usize = 4096;
/// A recall that would name more takes the whole group back.
const NAMED_MAX: usize = 4096;
