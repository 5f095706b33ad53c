//! All interleavings of who owns one group, with the global controller and the log as they are.
//!
//! # Theory
//! A breadth-first search over explicit states: three LCs, two writes, a crash, a pause, a new global
//! controller. Leases, grants, holdings and invalidations are the product's [`GlobalController`] and
//! [`StateMachine`]; LCs and portions are as small as their rules allow. Messages arrive in any order.
//! ```text
//! LC        asks, opens (fences), writes, reads; renews; tells what it owns to a new term
//! portions  one fence: any two sets of k have a portion in common (lemma of O-5)
//! time      steps of 700 ms, of which three are longer than a lease
//! ```
//! # Invariants
//! M1 Whoever answers a read under its lease has every answered write.
//! M2 What an owner left out when it answered, no later one has.
//! # Source
//! O-1 to O-5; holes 6, 7, 8 and 9 of the design's reasons.
//! # Not here
//! What counts of unfinished writes: `resolve_model.rs` of the local controller. Quorum rounds: scripts.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::command::Command;
use crate::state_machine::test::{register, state_of};

use super::*;

/// What is taken out of the rules of LCs and portions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// Portions take writes below their fence.
    NoFence,
    /// An LC that told a term takes grants of earlier ones.
    LateGrants,
    /// Reads are answered without a lease.
    NoLease,
    /// Leases count from when the answer came.
    LeaseFromTheAnswer,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Message {
    Granted { lcc: Incarnation, grant: GrantNumber },
    Renewed { lc: Incarnation, asked: Moment, term: u64, tell: bool },
    Holdings { lc: Incarnation, term: u64, grant: Option<GrantNumber> },
    Invalidate { lc: Incarnation },
    Write { lcc: Incarnation, grant: GrantNumber, write: u8 },
    Promised { lcc: Incarnation, write: u8 },
}

#[derive(Clone, Copy, Hash, Debug)]
struct Lc {
    lc: Incarnation,
    lcc: Incarnation,
    is_paused: bool,
    is_ended: bool,
    lease_until: Moment,
    told_term: u64,
    grant: Option<GrantNumber>,
    is_open: bool,
    /// Writes that it has.
    knows: u8,
}

#[derive(Clone)]
struct World {
    now: Moment,
    state: StateMachine,
    gc: GlobalController,
    lcs: Vec<Lc>,
    mail: BTreeSet<Message>,
    fence: GrantNumber,
    written: u8,
    answered: u8,
    /// Writes that somebody left out when it answered.
    void: u8,
    /// Under which grants writes were sent.
    sent: Vec<GrantNumber>,
    left: Limits,
    is_wrong: bool,
}

/// How much may happen yet.
#[derive(Clone, Copy, Hash, Debug)]
struct Limits {
    writes: u8,
    crashes: u8,
    pauses: u8,
    elections: u8,
    grants: u8,
    steps: u8,
}

const GROUP: DeviceId = DeviceId(7);
const START: Moment = Moment(1_000_000_000_000);
const STEP: Duration = Duration::from_millis(700);

impl World {
    fn new(servers: u32, left: Limits) -> Self {
        let mut state = state_of(servers);
        let lcs = (1..=servers).map(|server| fresh(&mut state, server)).collect();
        let mut gc = GlobalController::new(5, START, Duration::ZERO, &state);
        let told = Told { term: 5, groups: &[], last: true };
        let mut world = Self {
            now: START,
            lcs,
            mail: BTreeSet::new(),
            fence: GrantNumber::default(),
            written: 0,
            answered: 0,
            void: 0,
            sent: Vec::new(),
            left,
            is_wrong: false,
            gc: gc.clone(),
            state,
        };
        for lc in &mut world.lcs {
            gc.holdings(START, &world.state, lc.lc, &told).expect("it is valid");
            (lc.lease_until, lc.told_term) = (START + LEASE_AT_LC, 5);
        }
        world.gc = gc;
        world
    }

    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.now, &self.lcs, &self.mail, self.fence, self.left).hash(&mut hasher);
        (self.written, self.answered, self.void, &self.sent).hash(&mut hasher);
        let leases = self.gc.lcs.iter().map(|(lc, l)| (*lc, l.until, l.told, l.condemned));
        leases.collect::<Vec<_>>().hash(&mut hasher);
        let holder = self.gc.holders.get(&GROUP).map(|holding| (holding.lcc, holding.grant));
        (self.gc.term, self.gc.counter, self.gc.present, holder).hash(&mut hasher);
        self.state.map().version.hash(&mut hasher);
        hasher.finish()
    }

    fn next(&self, broken: Broken) -> Vec<Self> {
        let mut next = Vec::new();
        let mut add = |change: &dyn Fn(&mut World) -> bool| {
            let mut world = self.clone();
            if change(&mut world) {
                next.push(world);
            }
        };
        add(&World::step);
        add(&World::elect);
        for message in &self.mail {
            add(&|world| world.arrive(*message, broken));
        }
        for at in 0..self.lcs.len() {
            add(&|world| world.ask(at));
            add(&|world| world.open(at));
            add(&|world| world.write(at));
            add(&|world| world.read(at, broken));
            add(&|world| world.renew(at));
            add(&|world| world.crash(at));
            add(&|world| world.pause(at));
            add(&|world| std::mem::take(&mut world.lcs[at].is_paused));
        }
        next
    }

    fn step(&mut self) -> bool {
        if self.left.steps == 0 {
            return false;
        }
        self.left.steps -= 1;
        self.now = self.now + STEP;
        let mut effects = Vec::new();
        self.gc.tick(self.now, &self.state, &mut effects);
        self.propose(&effects);
        true
    }

    fn propose(&mut self, effects: &[Effect]) {
        for Effect::Invalidate(lc) in effects {
            self.mail.insert(Message::Invalidate { lc: *lc });
        }
    }

    /// Nobody heard of the one of before for a moment.
    fn elect(&mut self) -> bool {
        if self.left.elections == 0 {
            return false;
        }
        self.left.elections -= 1;
        self.gc = GlobalController::new(self.gc.term + 1, self.now, Duration::ZERO, &self.state);
        true
    }

    fn crash(&mut self, at: usize) -> bool {
        if self.left.crashes == 0 {
            return false;
        }
        self.left.crashes -= 1;
        let server = u32::try_from(at + 1).expect("few servers");
        self.lcs[at] = fresh(&mut self.state, server);
        true
    }

    fn pause(&mut self, at: usize) -> bool {
        if self.left.pauses == 0 || self.lcs[at].is_paused {
            return false;
        }
        self.left.pauses -= 1;
        self.lcs[at].is_paused = true;
        true
    }

    /// The LC, if it does something now.
    fn active(&self, at: usize) -> Option<Lc> {
        Some(self.lcs[at]).filter(|lc| !lc.is_paused && !lc.is_ended)
    }

    fn ask(&mut self, at: usize) -> bool {
        let Some(lc) = self.active(at).filter(|lc| lc.grant.is_none()) else { return false };
        let waits =
            |message: &Message| matches!(message, Message::Granted { lcc, .. } if *lcc == lc.lcc);
        if self.left.grants == 0 || self.mail.iter().any(waits) {
            return false;
        }
        let mut effects = Vec::new();
        let answer = self.gc.grant(self.now, &self.state, lc.lcc, GROUP, &mut effects);
        self.propose(&effects);
        if let Ownership::Granted(grant) = answer {
            self.left.grants -= 1;
            self.mail.insert(Message::Granted { lcc: lc.lcc, grant });
        }
        true
    }

    fn open(&mut self, at: usize) -> bool {
        let Some(lc) = self.active(at).filter(|lc| !lc.is_open) else { return false };
        let Some(grant) = lc.grant else { return false };
        // A portion takes opens of valid incarnations only.
        if grant < self.fence || !self.state.is_valid_lcc(lc.lcc) {
            self.lcs[at].grant = None;
            return true;
        }
        self.fence = grant;
        (self.lcs[at].is_open, self.lcs[at].knows) = (true, self.written);
        true
    }

    fn write(&mut self, at: usize) -> bool {
        let Some(lc) = self.active(at).filter(|lc| lc.is_open) else { return false };
        let Some(grant) = lc.grant.filter(|_| self.left.writes > 0) else { return false };
        self.left.writes -= 1;
        let write = 1 << self.sent.len();
        self.sent.push(grant);
        self.mail.insert(Message::Write { lcc: lc.lcc, grant, write });
        true
    }

    fn read(&mut self, at: usize, broken: Broken) -> bool {
        let Some(lc) = self.active(at).filter(|lc| lc.is_open) else { return false };
        let Some(own) = lc.grant else { return false };
        if lc.lease_until <= self.now && broken != Broken::NoLease {
            return false;
        }
        self.is_wrong |= self.answered & !lc.knows != 0 || self.void & lc.knows != 0;
        let before = self.void;
        let older = self.sent.iter().enumerate().filter(|(_, grant)| **grant < own);
        let left_out = older.fold(0, |all, (nth, _)| all | (1_u8 << nth)) & !lc.knows;
        self.void |= left_out;
        self.is_wrong || self.void != before
    }

    fn renew(&mut self, at: usize) -> bool {
        let Some(lc) = self.active(at) else { return false };
        let waits =
            |message: &Message| matches!(message, Message::Renewed { lc: of, .. } if *of == lc.lc);
        // Not more often than it must: the rest are repeats.
        let is_new = self.now + STEP < lc.lease_until && lc.told_term == self.gc.term;
        if is_new || self.mail.iter().any(waits) {
            return false;
        }
        match self.gc.renew(self.now, self.now, &self.state, lc.lc) {
            Ok(renewal) => {
                let (asked, term, tell) = (self.now, self.gc.term, renewal.tell_holdings);
                self.mail.insert(Message::Renewed { lc: lc.lc, asked, term, tell });
            }
            Err(Refused) => self.lcs[at].is_ended = true,
        }
        true
    }

    fn arrive(&mut self, message: Message, broken: Broken) -> bool {
        let of_lc = |lc: Incarnation| self.lcs.iter().position(|known| known.lc == lc);
        let of_lcc = |lcc: Incarnation| self.lcs.iter().position(|known| known.lcc == lcc);
        // What reaches who stands still waits; what reaches who is gone is lost.
        let to = match message {
            Message::Granted { lcc, .. } | Message::Promised { lcc, .. } => Some(of_lcc(lcc)),
            Message::Renewed { lc, .. } => Some(of_lc(lc)),
            _ => None,
        };
        if let Some(Some(at)) = to
            && self.lcs[at].is_paused
        {
            return false;
        }
        self.mail.remove(&message);
        let now = self.now;
        match message {
            Message::Granted { grant, .. } => {
                if let Some(Some(at)) = to {
                    let lc = &mut self.lcs[at];
                    let is_late = grant.term < lc.told_term && broken != Broken::LateGrants;
                    if !is_late && !lc.is_ended {
                        (lc.grant, lc.is_open) = (Some(grant), false);
                    }
                }
            }
            Message::Renewed { lc, asked, term, tell } => {
                if let Some(Some(at)) = to {
                    let from = if broken == Broken::LeaseFromTheAnswer { now } else { asked };
                    let known = &mut self.lcs[at];
                    known.lease_until = known.lease_until.max(from + LEASE_AT_LC);
                    if tell && known.told_term < term {
                        known.told_term = term;
                        let grant = known.grant;
                        self.mail.insert(Message::Holdings { lc, term, grant });
                    }
                }
            }
            Message::Holdings { lc, term, grant } => {
                let groups: Vec<_> = grant.map(|grant| (GROUP, grant, 0)).into_iter().collect();
                let told = Told { term, groups: &groups, last: true };
                // A global controller of another term refuses it.
                let _ = self.gc.holdings(now, &self.state, lc, &told);
            }
            Message::Invalidate { lc } => {
                self.state.apply(Command::Invalidate { lc });
            }
            Message::Write { lcc, grant, write } => {
                if self.fence <= grant || broken == Broken::NoFence {
                    self.written |= write;
                    self.mail.insert(Message::Promised { lcc, write });
                } else if let Some(at) = of_lcc(lcc) {
                    self.lcs[at].grant = None;
                    self.lcs[at].is_open = false;
                }
            }
            Message::Promised { write, .. } => {
                if let Some(Some(at)) = to {
                    let lc = &mut self.lcs[at];
                    lc.knows |= write;
                    if now < lc.lease_until {
                        self.answered |= write;
                    }
                }
            }
        }
        true
    }
}

/// An LC that has just begun, and owns nothing.
fn fresh(state: &mut StateMachine, server: u32) -> Lc {
    let (lc, lccs) = register(state, server);
    Lc {
        lc,
        lcc: lccs[0],
        is_paused: false,
        is_ended: false,
        lease_until: Moment(0),
        told_term: 0,
        grant: None,
        is_open: false,
        knows: 0,
    }
}

/// Searches all states within the limits; how many there are, and whether an invariant was broken.
fn search(servers: u32, limits: Limits, broken: Broken) -> (usize, bool) {
    let first = World::new(servers, limits);
    let mut seen = BTreeSet::from([first.key()]);
    let mut queue = VecDeque::from([first]);
    while let Some(world) = queue.pop_front() {
        for next in world.next(broken) {
            if next.is_wrong {
                return (seen.len(), true);
            }
            if seen.insert(next.key()) {
                queue.push_back(next);
            }
        }
        assert!(seen.len() < STATES_MAX, "the model grew out of its limits");
    }
    (seen.len(), false)
}

/// How an LC counts its lease. Source: O-4.
const LEASE_AT_LC: Duration = Duration::from_millis(LEASE_MS);

const STATES_MAX: usize = 4_000_000;

const LIMITS: Limits =
    Limits { writes: 2, crashes: 0, pauses: 0, elections: 0, grants: 2, steps: 4 };

#[test] // Proves: O-1, O-2, O-3, O-4, O-5. Holes 6, 7, 8, 9.
fn no_interleaving_has_an_owner_that_lacks_what_was_answered() {
    for (crashes, pauses, elections) in [(1, 1, 0), (0, 1, 1), (1, 0, 1)] {
        let limits = Limits { crashes, pauses, elections, ..LIMITS };
        let (states, is_wrong) = search(3, limits, Broken::Nothing);
        println!("{limits:?}: {states} states");
        assert!(!is_wrong, "{limits:?}");
    }
}

/// The test of the test: without one of the rules a read lacks what was answered, or shows what was not.
#[test]
fn without_a_rule_the_model_finds_two_owners() {
    for broken in [Broken::NoFence, Broken::LateGrants, Broken::NoLease, Broken::LeaseFromTheAnswer]
    {
        let limits = Limits { pauses: 1, elections: 1, grants: 3, ..LIMITS };
        let (states, is_wrong) = search(2, limits, broken);
        println!("{broken:?}: {states} states");
        assert!(is_wrong, "{broken:?} is not found");
    }
}
