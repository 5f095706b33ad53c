//! All interleavings of who owns one group, with [`GlobalController`] and [`StateMachine`] as they are.
//!
//! # Theory
//! A breadth-first search over explicit states: two or three LCs of one LCC each, one group. Leases,
//! grants, holdings and invalidations are judged by the product; LCs are as small as their rules allow.
//! ```text
//! LC       asks, owns, gives up; renews, and tells a new term what it owns; may be started anew
//! seat     a global controller with the log as its member knows it; a former one goes on granting
//! time     steps of half a lease (O-4), each whenever it likes
//! ```
//! Whoever does nothing for some steps was paused, and a message that never arrives was lost. A request
//! that comes late is one that was sent later, or one of which nobody takes the answer.
//!
//! What is the same for all that follows is one state: moments count from now, LCs have no names, and
//! what can have no effect any more is dropped. So the search needs no bound on depth or time.
//! # Invariants
//! M1 At most one LCC may answer: it owns the group, and its lease runs by its own clock (O-1, O-4).
//! M2 Of the LCCs that are valid in the log at most one owns the group (O-5).
//! M3 A seat grants what it does not know only when each LC of its map told it what it owns (O-3).
//! M4 Grant numbers grow, and whoever may answer owns the group under the newest that arrived (G4).
//! # Source
//! O-1 to O-6; holes 6, 7, 9 and 10 of the design's reasons.
//! # Not here
//! What becomes of writes: `resolve_model.rs` of the local controller. Of renewals and of holdings one
//! each is on its way at a time; the others arrive at once.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use braid_terms::{plant, take_reached};

use crate::command::{Command, Outcome};
use crate::state_machine::test::{lease, state_of};

use super::*;

/// What is taken out of the rules of LCs and of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// An LCC that told a term takes grants of earlier ones.
    LateGrants,
    /// An LCC answers without a lease.
    NoLease,
    /// An LC counts its lease from when the answer came.
    LeaseFromTheAnswer,
    /// A former global controller renews leases.
    NoRound,
    /// A new global controller takes a renewal of just now for one of before the silence.
    NoSilence,
}

#[derive(Clone, Copy, Debug)]
struct Lc {
    lc: Incarnation,
    lcc: Incarnation,
    /// Its process ended.
    is_gone: bool,
    /// In the log.
    is_valid: bool,
    /// By its clock, which is as slow as O-4 allows.
    lease_until: Moment,
    told_term: u64,
    owns: Option<GrantNumber>,
    /// It owns the group as a number of its range.
    of_range: bool,
    // On their way to it, or from it:
    granted: Option<GrantNumber>,
    renewed: Option<Renewed>,
    holdings: Option<(u64, Option<GrantNumber>)>,
    released: Option<GrantNumber>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Renewed {
    sent: Moment,
    term: u64,
    tell: bool,
}

/// A global controller, and what its member knows of the log.
#[derive(Clone)]
struct Seat {
    gc: GlobalController,
    log: Rc<StateMachine>,
    /// Its clock; of a former one it stands still, so that it grants as long as it can.
    now: Moment,
    /// LCs that were there when it was elected and did not tell it what they own.
    unheard: BTreeSet<Incarnation>,
}

#[derive(Clone)]
struct World {
    now: Moment,
    /// The newest is the last.
    seats: Vec<Rc<Seat>>,
    lcs: Vec<Lc>,
    /// Proposed, and not committed.
    condemned: BTreeSet<Incarnation>,
    /// A quorum round was confirmed just now.
    was_confirmed: bool,
    is_paused: bool,
    /// The last grant under which somebody became the owner.
    newest: GrantNumber,
    left: Limits,
    wrong: Option<&'static str>,
}

/// How much may happen yet.
#[derive(Clone, Copy, Hash, Debug)]
struct Limits {
    servers: u32,
    /// The group is a number of a range of the first LC.
    of_range: bool,
    grants: u8,
    elections: u8,
    /// Of LCs.
    restarts: u8,
    /// Of the global controller.
    pauses: u8,
    releases: u8,
    /// Answers to renewals may come late; then no lease is longer than otherwise.
    late_answers: bool,
}

/// What does not arrive at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Late {
    Nothing,
    Answer,
    Holdings,
}

impl Late {
    const ALL: [Self; 3] = [Self::Nothing, Self::Answer, Self::Holdings];
}

const START: Moment = Moment(1_000_000_000_000);
const STEP: Duration = Duration::from_millis(1020);

/// How often leases are looked at.
const TICK: Duration = Duration::from_millis(510);

impl World {
    fn new(left: Limits) -> Self {
        let mut log = state_of(left.servers);
        let servers = (1..=left.servers).map(ServerId);
        let mut lcs: Vec<_> = servers.map(|server| register(&mut log, server)).collect();
        for lc in &mut lcs {
            (lc.lease_until, lc.told_term) = (START + lease_at_gc(), 5);
        }
        if left.of_range {
            // Under a grant of term 1.
            assert_eq!(lease(&mut log, lcs[0].lcc, 1), GROUP);
            (lcs[0].owns, lcs[0].of_range) = (Some(RANGE), true);
        }
        let mut seat = Seat::new(5, START, Duration::ZERO, Rc::new(log));
        for lc in &lcs {
            seat.hear(lc.lc, 5, None);
        }
        Self {
            now: START,
            seats: vec![Rc::new(seat)],
            lcs,
            condemned: BTreeSet::new(),
            was_confirmed: true,
            is_paused: false,
            newest: if left.of_range { RANGE } else { GrantNumber::default() },
            left,
            wrong: None,
        }
    }

    fn next(&self, broken: Broken) -> Vec<Self> {
        let mut next = Vec::new();
        let mut add = |change: &dyn Fn(&mut World)| {
            let mut world = self.clone();
            change(&mut world);
            world.check(broken);
            world.forget(broken);
            next.push(world);
        };
        let (left, newest) = (self.left, self.seats.len() - 1);
        add(&|world| world.step());
        if left.pauses > 0 || self.is_paused {
            add(&|world| world.pause_or_wake());
        }
        if left.elections > 0 {
            add(&|world| world.elect(Duration::ZERO));
            if !self.was_confirmed || broken == Broken::NoSilence {
                add(&|world| world.elect(STEP));
            }
        }
        for (at, lc) in self.lcs.iter().enumerate() {
            for nth in (0..=newest).filter(|nth| *nth < newest || !self.is_paused) {
                if left.grants > 0 {
                    add(&|world| world.ask(at, nth));
                }
                if lc.released.is_some() {
                    add(&|world| world.release_arrives(at, nth));
                }
                let confirms = nth == newest || broken == Broken::NoRound;
                for late in Late::ALL.into_iter().filter(|late| self.may_be(lc, *late)) {
                    if confirms && !lc.is_gone {
                        add(&|world| world.renew(at, nth, late, broken));
                    }
                }
            }
            if lc.granted.is_some() {
                add(&|world| world.grant_arrives(at));
            }
            if lc.renewed.is_some() {
                add(&|world| world.renewal_arrives(at, Late::Nothing, broken));
                if self.may_be(lc, Late::Holdings) {
                    add(&|world| world.renewal_arrives(at, Late::Holdings, broken));
                }
                add(&|world| world.lcs[at].renewed = None);
            }
            if lc.holdings.is_some() {
                add(&|world| world.holdings_arrive(at));
                add(&|world| world.lcs[at].holdings = None);
            }
            if self.condemned.contains(&lc.lc) {
                add(&|world| world.commit(at));
            }
            if left.restarts > 0 && lc.is_valid {
                add(&|world| world.restart(at));
            }
            if left.releases > 0 && !lc.is_gone && !lc.of_range && lc.owns.is_some() {
                add(&|world| world.release(at));
            }
        }
        next
    }

    /// One of each kind at a time.
    fn may_be(&self, lc: &Lc, late: Late) -> bool {
        let is_free = |has: fn(&Lc) -> bool| has(lc) || !self.lcs.iter().any(has);
        match late {
            Late::Nothing => true,
            Late::Answer => self.left.late_answers && is_free(|lc| lc.renewed.is_some()),
            Late::Holdings => is_free(|lc| lc.holdings.is_some()),
        }
    }

    fn newest_seat(&self) -> &Seat {
        self.seats.last().expect("somebody was elected")
    }

    fn step(&mut self) {
        let before = self.now;
        self.now = before + STEP;
        self.was_confirmed = false;
        let (mut effects, nth) = (Vec::new(), self.seats.len() - 1);
        let seat = Rc::make_mut(&mut self.seats[nth]);
        seat.now = self.now;
        if !self.is_paused {
            seat.gc.tick(before + TICK, &seat.log, &mut effects);
            seat.gc.tick(self.now, &seat.log, &mut effects);
        }
        self.propose(nth, &effects);
    }

    fn pause_or_wake(&mut self) {
        if !std::mem::replace(&mut self.is_paused, false) {
            self.left.pauses -= 1;
            self.is_paused = true;
        }
    }

    /// The former one is not told, and what it proposed is lost where it was not committed.
    fn elect(&mut self, silence: Duration) {
        self.left.elections -= 1;
        let last = self.newest_seat();
        let new = Seat::new(last.gc.term + 1, self.now, silence, last.log.clone());
        self.seats.push(Rc::new(new));
        self.condemned.clear();
        self.is_paused = false;
        sometimes!("model: two global controllers");
    }

    /// What a former one proposes is never committed.
    fn propose(&mut self, nth: usize, effects: &[Effect]) {
        if nth + 1 == self.seats.len() {
            self.condemned.extend(effects.iter().map(|Effect::Invalidate(lc)| *lc));
        }
    }

    /// Who does not wait for the answer asked before it was paused, ended, or was the owner.
    fn ask(&mut self, at: usize, nth: usize) {
        let lc = self.lcs[at];
        let seat = Rc::make_mut(&mut self.seats[nth]);
        let mut effects = Vec::new();
        let known = seat.gc.holders.get(&GROUP).map(|holding| holding.lcc);
        let before = seat.gc.counter;
        let answer = seat.gc.grant(seat.now, &seat.log, lc.lcc, GROUP, &mut effects);
        let all_told = seat.unheard.iter().all(|lc| seat.log.server_of_lc(*lc).is_none());
        let term = seat.gc.term;
        self.propose(nth, &effects);
        let Ownership::Granted(grant) = answer else { return };
        self.left.grants -= 1;
        if known != Some(lc.lcc) && !all_told {
            self.wrong = Some("M3");
        }
        if (grant.term, grant.counter) <= (term, before) {
            self.wrong = Some("M4");
        }
        if nth + 1 < self.seats.len() {
            sometimes!("model: a former global controller grants");
        } else if nth > 0 {
            sometimes!("model: a new global controller grants");
        }
        let owner = self.lcs.iter().find(|lc| lc.owns == Some(self.newest));
        if owner.is_some_and(|lc| !lc.is_valid) {
            sometimes!("model: a grant after the invalidation of the owner");
        }
        if !lc.is_gone && lc.owns.is_none() {
            self.lcs[at].granted = Some(grant);
        }
    }

    fn grant_arrives(&mut self, at: usize) {
        let grant = self.lcs[at].granted.take().expect("it is on its way");
        self.lcs[at].owns = Some(grant);
        self.newest = self.newest.max(grant);
    }

    /// It was sent just now, and is answered after a quorum round that begins just now.
    fn renew(&mut self, at: usize, nth: usize, late: Late, broken: Broken) {
        let (lc, sent) = (self.lcs[at].lc, self.now);
        let seat = Rc::make_mut(&mut self.seats[nth]);
        let term = seat.gc.term;
        let renewal = seat.gc.renew(seat.now, seat.now, &seat.log, lc, None);
        self.was_confirmed |= nth + 1 == self.seats.len();
        let Ok(Renewal { tell_holdings: tell }) = renewal else {
            self.lcs[at].is_gone = true;
            return;
        };
        self.lcs[at].renewed = Some(Renewed { sent, term, tell });
        if late != Late::Answer {
            self.renewal_arrives(at, late, broken);
        }
    }

    fn renewal_arrives(&mut self, at: usize, late: Late, broken: Broken) {
        let lc = &mut self.lcs[at];
        let Renewed { sent, term, tell } = lc.renewed.take().expect("it is on its way");
        let from = if broken == Broken::LeaseFromTheAnswer { self.now } else { sent };
        lc.lease_until = lc.lease_until.max(from + lease_at_gc());
        if !tell {
            return;
        }
        lc.told_term = lc.told_term.max(term);
        lc.holdings = Some((term, lc.owns.filter(|_| !lc.of_range)));
        if lc.granted.is_some_and(|grant| grant.term < term) {
            sometimes!("model: a late grant");
        }
        if late != Late::Holdings {
            self.holdings_arrive(at);
        }
    }

    fn holdings_arrive(&mut self, at: usize) {
        let lc = self.lcs[at].lc;
        let (term, owns) = self.lcs[at].holdings.take().expect("they are on their way");
        let Some(nth) = self.seats.iter().position(|seat| seat.gc.term == term) else { return };
        Rc::make_mut(&mut self.seats[nth]).hear(lc, term, owns);
    }

    fn commit(&mut self, at: usize) {
        let lc = self.lcs[at].lc;
        self.condemned.remove(&lc);
        self.lcs[at].is_valid = false;
        self.log().apply(Command::Invalidate { lc });
        if self.lcs[at].owns.is_some() {
            sometimes!("model: an owner is invalid");
        }
    }

    fn log(&mut self) -> &mut StateMachine {
        let seat = Rc::make_mut(self.seats.last_mut().expect("somebody was elected"));
        Rc::make_mut(&mut seat.log)
    }

    /// Its process ends, and another one registers.
    fn restart(&mut self, at: usize) {
        let lc = self.lcs[at].lc;
        let server = self.newest_seat().log.server_of_lc(lc).expect("it is valid");
        self.left.restarts -= 1;
        (self.lcs[at].is_gone, self.lcs[at].is_valid) = (true, false);
        self.condemned.remove(&lc);
        let new = register(self.log(), server);
        self.lcs.push(new);
    }

    fn release(&mut self, at: usize) {
        self.left.releases -= 1;
        self.lcs[at].released = self.lcs[at].owns.take();
    }

    fn release_arrives(&mut self, at: usize, nth: usize) {
        let lcc = self.lcs[at].lcc;
        let grant = self.lcs[at].released.take().expect("it is on its way");
        let seat = Rc::make_mut(&mut self.seats[nth]);
        seat.gc.release(&seat.log, lcc, &[(GROUP, grant)]);
    }

    /// M1, M2 and M4.
    fn check(&mut self, broken: Broken) {
        let (mut answering, mut valid) = (0, 0);
        for lc in &self.lcs {
            let Some(grant) = lc.owns else { continue };
            let has_lease = self.now < lc.lease_until || broken == Broken::NoLease;
            valid += u8::from(lc.is_valid);
            if lc.is_gone {
                continue;
            }
            if !has_lease {
                sometimes!("model: the lease of an owner is over");
                continue;
            }
            answering += 1;
            if grant < self.newest {
                self.wrong = Some("M4");
            }
        }
        if valid > 1 {
            self.wrong = Some("M2");
        }
        if answering > 1 {
            self.wrong = Some("M1");
        }
    }

    /// Nobody becomes an owner any more beside the one that there is.
    fn is_over(&self) -> bool {
        let owners = self.lcs.iter().filter(|lc| lc.owns.is_some() && !lc.is_gone).count();
        self.left.grants == 0 && owners < 2 && self.lcs.iter().all(|lc| lc.granted.is_none())
    }

    /// Drops what has no effect any more.
    fn forget(&mut self, broken: Broken) {
        if self.left.grants == 0 && broken != Broken::NoRound {
            self.seats.drain(..self.seats.len() - 1);
        }
        self.was_confirmed &= self.left.elections > 0;
        for lc in &mut self.lcs {
            let has_lease = self.now < lc.lease_until;
            let is_idle = lc.owns.is_none() && lc.granted.is_none();
            lc.is_gone |= self.left.grants == 0 && is_idle;
            if broken != Broken::LateGrants {
                lc.granted = lc.granted.filter(|grant| lc.told_term <= grant.term);
            }
            let is_of_use = |renewed: &Renewed| {
                let until = match broken {
                    Broken::LeaseFromTheAnswer => self.now + lease_at_gc(),
                    _ => renewed.sent + lease_at_gc(),
                };
                let prolongs = lc.lease_until.max(self.now) < until;
                prolongs || renewed.tell && lc.told_term < renewed.term
            };
            lc.renewed = lc.renewed.filter(is_of_use);
            // Nobody gives it a lease any more.
            let strict = broken != Broken::NoLease && broken != Broken::NoRound;
            lc.is_gone |= strict && !lc.is_valid && !has_lease && lc.renewed.is_none();
            if lc.is_gone {
                (lc.lease_until, lc.told_term) = (Moment(0), 0);
                (lc.granted, lc.renewed) = (None, None);
                lc.owns = lc.owns.filter(|grant| lc.is_valid || *grant == self.newest);
            }
            let heard_by = |(term, _): &(u64, _)| {
                let seat = self.seats.iter().find(|seat| seat.gc.term == *term);
                seat.is_some_and(|seat| seat.log.server_of_lc(lc.lc).is_some())
            };
            lc.holdings = lc.holdings.filter(heard_by);
        }
    }

    /// The same for worlds that differ in names and in what the time is.
    fn key(&self) -> u64 {
        let mut lcs: Vec<_> = self.lcs.iter().map(|lc| self.key_of(lc)).collect();
        lcs.sort_unstable();
        let mut hasher = Mixed::default();
        lcs.hash(&mut hasher);
        for seat in &self.seats {
            let gc = &seat.gc;
            let is_behind = gc.map_version != seat.log.map().version;
            let unasked = seat.now - gc.present > AWAY;
            (gc.term, gc.counter, is_behind, unasked, gc.holders.len()).hash(&mut hasher);
            gc.given_up.len().hash(&mut hasher);
        }
        (self.was_confirmed, self.is_paused, self.newest, self.left).hash(&mut hasher);
        hasher.finish()
    }

    fn key_of(&self, lc: &Lc) -> u64 {
        let mut hasher = Mixed::default();
        (lc.is_gone, lc.told_term, lc.owns, lc.of_range).hash(&mut hasher);
        (lc.granted, lc.holdings, lc.released).hash(&mut hasher);
        steps(lc.lease_until, self.now).max(0).hash(&mut hasher);
        let renewed = lc.renewed.map(|renewed| {
            (steps(renewed.sent + lease_at_gc(), self.now), renewed.term, renewed.tell)
        });
        (renewed, self.condemned.contains(&lc.lc)).hash(&mut hasher);
        for (nth, seat) in self.seats.iter().enumerate() {
            let is_former = nth + 1 < self.seats.len();
            let gc = &seat.gc;
            let lease = gc.lcs.get(&lc.lc).map(|lease| {
                let until = if lease.condemned { seat.now } else { lease.until };
                let overdue = steps(until + LEASE_OVERDUE, seat.now);
                let (until, overdue) = match is_former {
                    true => (0, 0),
                    false => (steps(until, seat.now).max(-4), overdue.max(-4)),
                };
                (until, overdue, lease.told, lease.condemned)
            });
            (lease, seat.unheard.contains(&lc.lc)).hash(&mut hasher);
            let holding = gc.holders.get(&GROUP).filter(|holding| holding.lcc == lc.lcc);
            let is_new = lc.lc > gc.last_incarnation_before;
            let is_valid = lc.is_valid || is_former && seat.log.is_valid_lcc(lc.lcc);
            (holding.map(|holding| holding.grant), is_new, is_valid).hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl Seat {
    fn new(term: u64, now: Moment, silence: Duration, log: Rc<StateMachine>) -> Self {
        let gc = GlobalController::new(term, now, silence, &log);
        let unheard = log.map().servers.values().filter_map(|server| server.lc).collect();
        Self { gc, log, now, unheard }
    }

    fn hear(&mut self, lc: Incarnation, term: u64, owns: Option<GrantNumber>) {
        let groups: Vec<_> = owns.map(|grant| (GROUP, grant, 0)).into_iter().collect();
        let told = Told { term, groups: &groups, last: true };
        if self.gc.holdings(self.now, &self.log, lc, &told).is_ok() {
            self.unheard.remove(&lc);
        }
    }
}

/// An LC that has just begun.
fn register(log: &mut StateMachine, server: ServerId) -> Lc {
    let outcome = log.apply(Command::RegisterLc { server, lccs: 1 });
    let Outcome::Registered { incarnation: lc, lccs } = outcome else { panic!("{outcome:?}") };
    Lc {
        lc,
        lcc: lccs[0],
        is_gone: false,
        is_valid: true,
        lease_until: Moment(0),
        told_term: 0,
        owns: None,
        of_range: false,
        granted: None,
        renewed: None,
        holdings: None,
        released: None,
    }
}

/// How many half steps until this moment, rounded up.
fn steps(moment: Moment, now: Moment) -> i64 {
    let tick = TICK.as_nanos() as u64;
    let steps = |span: u64| i64::try_from(span).expect("few");
    match moment.0.checked_sub(now.0) {
        Some(ahead) => steps(ahead.div_ceil(tick)),
        None => -steps((now.0 - moment.0) / tick),
    }
}

/// In a build for tests the hash of the library would take most of the time.
#[derive(Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix((self.0 ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The first number of the first range.
const GROUP: DeviceId = DeviceId(16);

/// Under which the range was leased.
const RANGE: GrantNumber = GrantNumber { term: 1, counter: 1 };

/// Searches all states; how many there are, and which invariant was broken.
fn search(limits: Limits, broken: Broken) -> (usize, Option<&'static str>) {
    let first = World::new(limits);
    let mut seen = BTreeSet::from([first.key()]);
    let mut queue = VecDeque::from([first]);
    while let Some(world) = queue.pop_front() {
        for next in world.next(broken) {
            if next.wrong.is_some() {
                return (seen.len(), next.wrong);
            }
            if seen.insert(next.key()) && !next.is_over() {
                queue.push_back(next);
            }
        }
        assert!(seen.len() < STATES_MAX, "the model grew out of its limits");
    }
    (seen.len(), None)
}

const STATES_MAX: usize = 300_000;

const NONE: Limits = Limits {
    servers: 3,
    of_range: false,
    grants: 2,
    elections: 0,
    restarts: 0,
    pauses: 0,
    releases: 0,
    late_answers: false,
};

/// A new global controller.
const ELECTION: Limits = Limits { elections: 1, ..NONE };
/// A global controller that stands still, and an LC that is started anew.
const PAUSE: Limits = Limits { pauses: 1, restarts: 1, ..NONE };
/// Late answers to renewals, and an LC that is started anew.
const LATE: Limits = Limits { late_answers: true, restarts: 1, ..NONE };
/// Two of the faults at once, with two servers.
const ELECTION_RESTART: Limits = Limits { servers: 2, restarts: 1, ..ELECTION };
const ELECTION_RELEASE: Limits = Limits { servers: 2, releases: 1, ..ELECTION };
/// An owner that gives up.
const RELEASE: Limits = Limits { grants: 3, releases: 1, ..NONE };
/// A number of a range.
const RANGE_RESTART: Limits = Limits { of_range: true, restarts: 1, ..NONE };
const RANGE_ELECTION: Limits = Limits { servers: 2, of_range: true, ..ELECTION };

fn check(cases: &[Limits], reached: &[&str]) {
    let _ = take_reached();
    for limits in cases {
        let (states, wrong) = search(*limits, Broken::Nothing);
        println!("{limits:?}: {states} states");
        assert_eq!(wrong, None, "{limits:?}");
    }
    let all = take_reached();
    for state in reached {
        assert!(all.contains_key(state), "never reached: {state}");
    }
}

#[test] // Proves: O-1, O-3, O-4, O-5. Holes 6, 7, 9 and 10.
fn no_interleaving_of_an_election_has_two_owners() {
    check(
        &[ELECTION, RANGE_ELECTION],
        &[
            "O-3: a grant waited for what LCs own",
            "O-5: an LC was given up",
            "model: two global controllers",
            "model: a former global controller grants",
            "model: a new global controller grants",
            "model: a late grant",
            "model: the lease of an owner is over",
            "model: an owner is invalid",
            "model: a grant after the invalidation of the owner",
        ],
    );
}

#[test] // Proves: O-1, O-2, O-4, O-5, O-6.
fn no_interleaving_of_pauses_and_restarts_has_two_owners() {
    check(
        &[PAUSE, LATE, ELECTION_RESTART, ELECTION_RELEASE, RELEASE, RANGE_RESTART],
        &[
            "O-5: an LC was given up",
            "model: two global controllers",
            "model: the lease of an owner is over",
            "model: an owner is invalid",
            "model: a grant after the invalidation of the owner",
        ],
    );
}

/// The test of the test: what the product's global controller does wrong on purpose is found.
#[test]
fn each_planted_bug_is_found() {
    for (bug, limits, expect) in [
        ("O-2/a-grant-number-comes-twice", NONE, "M4"),
        ("O-2/numbers-of-ranges-are-free", RANGE_RESTART, "M1"),
        ("O-3/grant-before-all-told", ELECTION, "M3"),
        ("O-4/a-new-term-counts-no-lease", ELECTION, "M1"),
        ("O-5/grant-before-the-invalidation", NONE, "M2"),
        ("O-6/a-late-release-counts", RELEASE, "M1"),
    ] {
        plant(Some(bug));
        let (states, wrong) = search(limits, Broken::Nothing);
        plant(None);
        println!("{bug}: {states} states, {wrong:?}");
        assert_eq!(wrong, Some(expect), "{bug}");
    }
}

/// The same for rules of LCs and of the driver.
#[test]
fn without_a_rule_the_model_finds_two_owners() {
    for (broken, limits, expect) in [
        (Broken::LateGrants, ELECTION, "M1"),
        (Broken::NoLease, NONE, "M1"),
        (Broken::LeaseFromTheAnswer, Limits { late_answers: true, ..NONE }, "M4"),
        (Broken::NoRound, Limits { servers: 2, ..ELECTION }, "M1"),
        (Broken::NoSilence, ELECTION, "M1"),
    ] {
        let (states, wrong) = search(limits, broken);
        println!("{broken:?}: {states} states, {wrong:?}");
        assert_eq!(wrong, Some(expect), "{broken:?}");
    }
}
