//! Where a group's requests come from, and to whom it is to go: movement of ownership.
//!
//! # Theory
//! | owner  | who asks for it                                  | it goes to |
//! |--------|--------------------------------------------------|------------|
//! | any    | one mount only, for [`ALONE`] and several times  | that mount |
//! | mount  | others too, in each of [`SHARED`] seconds        | a server   |
//! | server | several                                          | nobody     |
//!
//! Servers are preferred: what more than one use is at a server, whose lease is kept by a wire. A
//! group that moves is *leaving*: what is under way ends, what comes waits, then hears of the new
//! owner.
//! # Invariants
//! U1 A group goes only when no request of it is under way; of clients none begins before it is gone.
//! # Failure
//! One that cannot be drained in time stays, and is tried again later.
//! # Source
//! O-6, DESIGN-REASONS 35, 39.
//! # Not here
//! How it is drained and given up: `requests.rs`, `lcc.rs`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use braid_terms::{DeviceId, LccId, ServerId};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::caches::Session;

/// Who sends a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// A client in the LCC's own process.
    Here,
    /// A client in the process of another LCC: a mount.
    Mount(ServerId),
    /// A client without an LCC, by what it drew.
    Client(u64),
    /// A role of a server: background work, which counts for nothing.
    Server,
}

/// Who sends a request, and which client process's copies it is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    /// Who sends it.
    pub caller: Caller,
    /// The client process, 0 for others. Source: N-1.
    pub session: Session,
    /// It takes an answer that is not decided yet. Source: W-9.
    pub is_ahead: bool,
}

impl Asker {
    /// A role of a server.
    pub const SERVER: Self = Self { caller: Caller::Server, session: 0, is_ahead: false };
}

/// To whom a group is to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Move {
    /// This mount alone uses it.
    To(ServerId),
    /// Several use it: some server.
    ToServer,
}

/// An owner, and where it is.
pub type Place = (LccId, SocketAddr);

/// The uses of an LCC's groups; clones share them.
#[derive(Clone, Default)]
pub struct Uses(Rc<RefCell<BTreeMap<DeviceId, Use>>>);

struct Use {
    /// The only caller since `since`.
    caller: Caller,
    since: Instant,
    count: u32,
    /// Seconds in a row in which others asked, and when the last of them began.
    shared: u32,
    shared_at: Instant,
    last: Instant,
    under_way: u32,
    state: State,
    /// The last request under way ended, or it does not leave any more.
    bell: Rc<Notify>,
}

#[derive(Clone, Copy)]
enum State {
    Here,
    /// Copies that clients have of it are taken back; its requests go on.
    Recalled,
    Leaving,
    /// Given to that owner, who is named until then.
    Given(Place, Instant),
    /// Could not be drained: not again before.
    Stays(Instant),
}

/// A request under way; it ends when this is dropped.
pub struct UnderWay {
    uses: Uses,
    group: DeviceId,
}

/// What a request hears.
pub enum Entry {
    /// It goes on; the group may have to move.
    Begun(UnderWay, Option<Move>),
    /// It waits for the bell and asks again.
    Wait(Rc<Notify>),
    /// Somebody else is to be asked.
    Gone(Place),
}

impl Uses {
    /// A request comes.
    pub fn enter(&self, group: DeviceId, caller: Caller, is_mount: bool) -> Entry {
        let now = Instant::now();
        let mut uses = self.0.borrow_mut();
        let used = uses.entry(group).or_insert_with(|| Use::new(caller, now));
        match used.state {
            // What a request under way asks of its own LCC must not wait for that request's end.
            State::Leaving if caller != Caller::Server => {
                return Entry::Wait(used.bell.clone());
            }
            State::Given(place, until) if now < until => return Entry::Gone(place),
            State::Given(..) => *used = Use::new(caller, now),
            State::Here | State::Recalled | State::Leaving | State::Stays(_) => {}
        }
        used.under_way += 1;
        let wanted = used.note(caller, now, is_mount);
        Entry::Begun(UnderWay { uses: self.clone(), group }, wanted)
    }

    /// Its copies are going to be taken back before it leaves. `false` where it leaves already.
    pub fn begin_recall(&self, group: DeviceId) -> bool {
        self.begin(group, State::Recalled, |state| matches!(state, State::Here))
    }

    /// From now on requests wait. `false` where it leaves already.
    pub fn begin_leaving(&self, group: DeviceId) -> bool {
        self.begin(group, State::Leaving, |state| matches!(state, State::Here | State::Recalled))
    }

    fn begin(&self, group: DeviceId, next: State, may: impl Fn(State) -> bool) -> bool {
        let mut uses = self.0.borrow_mut();
        let used = uses.entry(group).or_insert_with(|| Use::new(Caller::Server, Instant::now()));
        let may = may(used.state);
        if may {
            used.state = next;
        }
        may
    }

    /// Waits until no request is under way.
    pub async fn ended(&self, group: DeviceId) {
        loop {
            let bell = match self.0.borrow().get(&group) {
                Some(used) if used.under_way > 0 => used.bell.clone(),
                _ => return,
            };
            let rung = bell.notified();
            if self.0.borrow().get(&group).is_some_and(|used| used.under_way > 0) {
                rung.await;
            }
        }
    }

    /// It is gone, to that owner; or it stays.
    pub fn end_leaving(&self, group: DeviceId, to: Option<Place>) {
        let now = Instant::now();
        if let Some(used) = self.0.borrow_mut().get_mut(&group) {
            used.state = match to {
                Some(place) => State::Given(place, now + NAMED),
                None => State::Stays(now + STAYS),
            };
            used.bell.notify_waiters();
        }
    }

    /// Forgets what was not asked for lately.
    pub fn forget_idle(&self) {
        let now = Instant::now();
        self.0.borrow_mut().retain(|_, used| {
            used.under_way > 0
                || matches!(used.state, State::Recalled | State::Leaving)
                || now < used.last + IDLE
        });
    }
}

impl Use {
    fn new(caller: Caller, now: Instant) -> Self {
        Self {
            caller,
            since: now,
            count: 0,
            shared: 0,
            shared_at: now,
            last: now,
            under_way: 0,
            state: State::Here,
            bell: Rc::default(),
        }
    }

    fn note(&mut self, caller: Caller, now: Instant, is_mount: bool) -> Option<Move> {
        if caller == Caller::Server {
            return None;
        }
        if now > self.last + PAUSE {
            // What was long ago says nothing of now.
            (self.caller, self.since, self.count) = (caller, now, 0);
        }
        self.last = now;
        if caller != self.caller {
            (self.caller, self.since, self.count) = (caller, now, 0);
        }
        self.count = self.count.saturating_add(1);
        let wanted = match caller {
            Caller::Here | Caller::Server => None,
            Caller::Mount(server) if self.since + ALONE <= now && COUNT <= self.count => {
                Some(Move::To(server))
            }
            Caller::Mount(_) | Caller::Client(_) => {
                self.note_shared(now);
                (is_mount && SHARED <= self.shared).then_some(Move::ToServer)
            }
        };
        match self.state {
            State::Here => wanted,
            State::Stays(until) if until <= now => {
                self.state = State::Here;
                wanted
            }
            _ => None,
        }
    }

    fn note_shared(&mut self, now: Instant) {
        let behind = now - self.shared_at;
        if self.shared == 0 || 2 * SECOND <= behind {
            (self.shared, self.shared_at) = (1, now);
        } else if SECOND <= behind {
            (self.shared, self.shared_at) = (self.shared + 1, now);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(used) = self.uses.0.borrow_mut().get_mut(&self.group) {
            used.under_way -= 1;
            if used.under_way == 0 && matches!(used.state, State::Leaving) {
                used.bell.notify_waiters();
            }
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// A mount that was the only one to ask for so long gets the group.
const ALONE: Duration = Duration::from_secs(3);

/// Requests that it must have sent meanwhile.
const COUNT: u32 = 4;

/// Seconds in a row in which others ask a mount before the group goes to a server.
const SHARED: u32 = 4;

/// After a pause of this length it is counted anew.
const PAUSE: Duration = Duration::from_secs(10);

/// How long the new owner of a group is named by the old one.
const NAMED: Duration = Duration::from_secs(5);

/// After an attempt that failed.
const STAYS: Duration = Duration::from_secs(10);

/// What was not asked for so long is forgotten.
const IDLE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: DeviceId = DeviceId(7);
    const MOUNT: Caller = Caller::Mount(ServerId(9));

    fn ask(uses: &Uses, caller: Caller, is_mount: bool) -> Option<Move> {
        match uses.enter(GROUP, caller, is_mount) {
            Entry::Begun(_, wanted) => wanted,
            Entry::Wait(_) | Entry::Gone(_) => panic!("it is here"),
        }
    }

    async fn pass(milliseconds: u64) {
        tokio::time::advance(Duration::from_millis(milliseconds)).await;
    }

    #[tokio::test(start_paused = true)] // Proves: O-6.
    async fn the_only_user_gets_it_after_some_seconds() {
        let uses = Uses::default();
        for _ in 0..100 {
            assert_eq!(ask(&uses, MOUNT, false), None, "many requests are no time");
        }
        pass(2900).await;
        assert_eq!(ask(&uses, MOUNT, false), None);
        assert_eq!(ask(&uses, Caller::Client(1), false), None);
        pass(200).await;
        assert_eq!(ask(&uses, MOUNT, false), None, "it was not alone");
        assert_eq!(ask(&uses, Caller::Server, false), None);
        pass(3000).await;
        assert_eq!(ask(&uses, MOUNT, false), None, "and twice is not often");
        assert_eq!(ask(&uses, MOUNT, false), None);
        assert_eq!(ask(&uses, MOUNT, false), Some(Move::To(ServerId(9))));
    }

    #[tokio::test(start_paused = true)] // Proves: O-6.
    async fn what_several_use_leaves_a_mount_and_stays_at_a_server() {
        for is_mount in [true, false] {
            let uses = Uses::default();
            let mut moved = Vec::new();
            for turn in 0..20 {
                ask(&uses, Caller::Here, is_mount);
                if ask(&uses, MOUNT, is_mount).is_some() {
                    moved.push(turn);
                }
                pass(400).await;
            }
            assert_eq!(moved.first().copied(), is_mount.then_some(9), "three seconds and some");
        }
        // Now and then is not together.
        let uses = Uses::default();
        for _ in 0..20 {
            ask(&uses, Caller::Here, true);
            assert_eq!(ask(&uses, Caller::Client(1), true), None);
            pass(2500).await;
        }
    }

    #[tokio::test(start_paused = true)] // Proves: O-6.
    async fn a_group_leaves_when_nothing_is_under_way_and_names_the_next_owner() {
        let uses = Uses::default();
        let Entry::Begun(under_way, _) = uses.enter(GROUP, Caller::Here, true) else {
            panic!("it is here");
        };
        assert!(uses.begin_leaving(GROUP));
        assert!(!uses.begin_leaving(GROUP), "only once");
        assert!(matches!(uses.enter(GROUP, MOUNT, true), Entry::Wait(_)));
        let ended = async { tokio::time::timeout(SECOND, uses.ended(GROUP)).await.is_ok() };
        assert!(!ended.await, "one is under way");
        let (ended, ()) = tokio::join!(uses.ended(GROUP), async { drop(under_way) });
        assert_eq!(ended, ());
        let place = (LccId { server: ServerId(9), index: 0 }, ([127, 0, 0, 1], 1).into());
        uses.end_leaving(GROUP, Some(place));
        let Entry::Gone(named) = uses.enter(GROUP, MOUNT, true) else { panic!("it is gone") };
        assert_eq!(named, place);
        pass(5000).await;
        assert_eq!(ask(&uses, Caller::Here, true), None, "it may be ours again");
    }
}
