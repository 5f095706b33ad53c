//! All interleavings of two cluster writes, their owners and one faulty machine, with [`resolve`].
//! # Theory
//! A breadth-first search over explicit states of raid5/2+1. What counts is judged by the product's
//! [`resolve`]; portions, owners and messages are as small as the rules allow.
//! ```text
//! owner   numbers W1, then W2, at once | decides what all in-sync participants promised, in order
//! record  on its way -> held -> on the medium; may arrive after its owner is gone (a pause)
//! fault   one machine loses its power, with what was only held, and is back; one portion is away
//! next    opens (fences) what is not away, judges, writes the outcome, serves; may stop anywhere
//! ```
//! # Invariants
//! M1 Whoever serves has every answered write.
//! M2 What was served is a first part of what is served later, and what one owner left out, none has.
//! # Source
//! W-1, W-3, W-6, O-5; holes 1, 2, 4 and 8 of the design's reasons.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use braid_terms::{Incarnation, PortionIndex, WriteNumber};

use super::tests::{head, number, report};
use super::*;

/// What is taken out of the rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// Portions take records of any grant.
    NoFence,
    /// The next owner serves before its outcome is on the media.
    ServeBeforeTheOutcome,
    /// Records do not name incarnations: who lost one seems never to have promised it.
    NoIncarnations,
    /// A write is decided by one promise.
    OnePromise,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Kept {
    number: (u64, u64),
    prev: (u64, u64),
    /// For an outcome record, where what was before it ends.
    ends_at: Option<(u64, u64)>,
    asked: Vec<(u8, u64)>,
}

#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
struct Portion {
    incarnation: u64,
    fence: u64,
    kept: Vec<Kept>,
    /// So many of them are on the medium.
    synced: usize,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    portions: [Portion; 3],
    /// The portion that nobody reaches now, and those under a fact.
    away: Option<usize>,
    removed: [bool; 3],
    /// On their way.
    records: BTreeSet<(usize, u64)>,
    /// What each record says, by its place in `records`.
    sent: Vec<Kept>,
    grant: u64,
    /// Of the owner: numbered writes without a decision, and who promised, at which incarnation.
    pending: Vec<(Kept, Vec<(usize, u64)>)>,
    last: (u64, u64),
    /// It may serve and write.
    is_open: bool,
    /// The outcome that it waits for.
    outcome: Option<Kept>,
    /// What counts, as it sees it.
    counts: Vec<(u64, u64)>,
    answered: Vec<(u64, u64)>,
    /// Writes without which some owner served.
    void: BTreeSet<(u64, u64)>,
    /// What was served last.
    served: Vec<(u64, u64)>,
    writes: usize,
    cuts: usize,
    opens: usize,
    wrong: bool,
}

const NONE: (u64, u64) = (0, 0);
const PARTS: [[usize; 2]; 2] = [[0, 2], [1, 2]];

impl World {
    fn new() -> Self {
        let portion = |slot: u64| Portion { incarnation: 10 * (slot + 1), ..Portion::default() };
        Self {
            portions: [portion(0), portion(1), portion(2)],
            away: None,
            removed: [false; 3],
            records: BTreeSet::new(),
            sent: Vec::new(),
            grant: 1,
            pending: Vec::new(),
            last: NONE,
            is_open: true,
            outcome: None,
            counts: Vec::new(),
            answered: Vec::new(),
            void: BTreeSet::new(),
            served: Vec::new(),
            writes: 0,
            cuts: 0,
            opens: 0,
            wrong: false,
        }
    }

    fn next(&self, limits: Limits, broken: Broken) -> Vec<Self> {
        let mut next = Vec::new();
        let mut add = |change: &dyn Fn(&mut World) -> bool| {
            let mut world = self.clone();
            if change(&mut world) {
                next.push(world);
            }
        };
        add(&|world| world.submit(limits));
        add(&|world| world.decide(broken));
        add(&|world| world.finish_open(broken));
        add(&|world| world.take_over(limits, broken));
        add(&|world| world.away.take().is_some());
        for slot in 0..3 {
            add(&|world| world.sync(slot, limits));
            add(&|world| world.cut_power(slot, limits));
            add(&|world| world.go_away(slot));
        }
        for (slot, at) in &self.records {
            add(&|world| world.arrive(*slot, *at, broken));
        }
        next
    }

    fn send(&mut self, kept: &Kept) {
        let at = self.sent.len() as u64;
        self.sent.push(kept.clone());
        for (slot, _) in &kept.asked {
            self.records.insert((usize::from(*slot) - 1, at));
        }
    }

    fn submit(&mut self, limits: Limits) -> bool {
        if !self.is_open || self.writes == limits.writes {
            return false;
        }
        let number = (self.grant, if self.last.0 == self.grant { self.last.1 + 1 } else { 1 });
        let parts = PARTS[self.writes].iter().copied().filter(|slot| !self.removed[*slot]);
        let asked: Vec<_> =
            parts.map(|slot| (slot as u8 + 1, self.portions[slot].incarnation)).collect();
        if asked.is_empty() {
            return false;
        }
        // A slot has one record before it; the model's records name it by the slot's own chain.
        let kept = Kept { number, prev: NONE, ends_at: None, asked };
        self.send(&kept);
        self.pending.push((kept, Vec::new()));
        self.last = number;
        self.writes += 1;
        true
    }

    fn arrive(&mut self, slot: usize, at: u64, broken: Broken) -> bool {
        if self.away == Some(slot) {
            return false;
        }
        self.records.remove(&(slot, at));
        let mut kept = self.sent[at as usize].clone();
        let portion = &mut self.portions[slot];
        let last = portion.kept.last().map_or(NONE, |kept| kept.number);
        let asked = kept.asked.iter().any(|(to, incarnation)| {
            usize::from(*to) == slot + 1 && *incarnation == portion.incarnation
        });
        let fenced = kept.number.0 < portion.fence && broken != Broken::NoFence;
        // The chain: all earlier records to this slot are there.
        let expected = self.sent[..at as usize].iter().rev().find(|earlier| {
            let to_it = earlier.asked.iter().any(|(to, _)| usize::from(*to) == slot + 1);
            to_it && earlier.number.0 == kept.number.0 && earlier.number < kept.number
        });
        let follows = expected.is_none_or(|earlier| earlier.number == last);
        if !asked || fenced || !follows || kept.number <= last {
            return true; // Refused.
        }
        kept.prev = last;
        if let Some(ends_at) = kept.ends_at {
            let number = kept.number;
            portion.kept.retain(|old| old.number <= ends_at || number < old.number);
            portion.synced = portion.synced.min(portion.kept.len());
        }
        let number = kept.number;
        portion.kept.push(kept);
        let incarnation = portion.incarnation;
        for (pending, promised) in &mut self.pending {
            if pending.number == number {
                promised.push((slot, incarnation));
            }
        }
        true
    }

    fn decide(&mut self, broken: Broken) -> bool {
        let Some((kept, promised)) = self.pending.first() else { return false };
        let mut required =
            kept.asked.iter().map(|(slot, _)| usize::from(*slot) - 1).filter(|s| !self.removed[*s]);
        let has = |slot: usize| promised.iter().any(|(by, _)| *by == slot);
        let decided = match broken {
            Broken::OnePromise => required.any(has),
            _ => required.all(has),
        };
        if !decided || !self.is_open {
            return false;
        }
        let (kept, _) = self.pending.remove(0);
        self.answered.push(kept.number);
        self.counts.push(kept.number);
        self.check_served();
        true
    }

    fn sync(&mut self, slot: usize, limits: Limits) -> bool {
        // Without a power cut to come only an outcome needs it.
        if self.cuts == limits.cuts && self.outcome.is_none() {
            return false;
        }
        let portion = &mut self.portions[slot];
        let all = portion.kept.len();
        std::mem::replace(&mut portion.synced, all) != all
    }

    /// One machine at most loses something.
    fn cut_power(&mut self, slot: usize, limits: Limits) -> bool {
        if self.cuts == limits.cuts || self.away.is_some() || self.removed.contains(&true) {
            return false;
        }
        self.cuts += 1;
        let portion = &mut self.portions[slot];
        portion.kept.truncate(portion.synced);
        portion.incarnation += 1;
        for (_, promised) in &mut self.pending {
            promised.retain(|(by, _)| *by != slot);
        }
        true
    }

    /// Two faults at once are more than is promised.
    fn go_away(&mut self, slot: usize) -> bool {
        if self.away.is_some() || self.cuts > 0 || self.removed.contains(&true) {
            return false;
        }
        self.away = Some(slot);
        true
    }

    /// The owner stops or stands still; the next one opens all that it reaches.
    fn take_over(&mut self, limits: Limits, broken: Broken) -> bool {
        if self.opens == limits.opens {
            return false;
        }
        self.opens += 1;
        self.grant += 1;
        self.pending.clear();
        self.is_open = false;
        self.outcome = None;
        // Who is away is removed by a fact.
        if let Some(slot) = self.away {
            self.removed[slot] = true;
        }
        let mut reports = BTreeMap::new();
        for slot in (0..3).filter(|slot| !self.removed[*slot]) {
            let portion = &mut self.portions[slot];
            portion.fence = self.grant;
            let named = |asked: &(u8, u64)| match broken {
                Broken::NoIncarnations => (asked.0, 0),
                _ => *asked,
            };
            let heads = portion.kept.iter().map(|kept| {
                let asked: Vec<_> = kept.asked.iter().map(named).collect();
                let mut head = head(wide(kept.number), wide(kept.prev), &asked);
                if let Some(ends_at) = kept.ends_at {
                    head.record.kind = RecordKind::Outcome { ends_at: wide(ends_at) };
                }
                head
            });
            let heads = heads.collect();
            let mut of_slot = report(portion.incarnation, WriteNumber::NONE, heads);
            if broken == Broken::NoIncarnations {
                of_slot.incarnation = Incarnation(0);
            }
            of_slot.outcome = portion
                .kept
                .iter()
                .rev()
                .find_map(|kept| Some((wide(kept.number), wide(kept.ends_at?), false)));
            reports.insert(PortionIndex(slot as u8 + 1), of_slot);
        }
        if reports.len() < 2 {
            return false;
        }
        let removed = 3 - reports.len();
        let counts = Counts { data: 2, parity: 1, devices: 1, removed };
        let resolution = resolve(&reports, counts);
        let ends_at = narrow(resolution.ends_at);
        let mut numbers: Vec<_> = reports
            .values()
            .flat_map(|report| &report.records)
            .filter(|head| head.record.kind == RecordKind::Write)
            .map(|head| narrow(head.record.number))
            .filter(|number| *number <= ends_at)
            .collect();
        let newest = reports.values().filter_map(|report| report.outcome).max();
        if let Some((at, ends, _)) = newest {
            numbers.retain(|number| *number <= narrow(ends) || narrow(at) < *number);
        }
        numbers.sort_unstable();
        numbers.dedup();
        self.counts = numbers;
        for slot in &resolution.lost_at {
            if self.removed.contains(&true) {
                return false; // More than the scheme tolerates.
            }
            self.removed[slot.zero_based()] = true;
        }
        self.last = ends_at;
        if !resolution.needs_outcome {
            self.is_open = true;
            self.check_served();
            return true;
        }
        let slots = (0..3).filter(|slot| !self.removed[*slot]);
        let asked = slots.map(|slot| (slot as u8 + 1, self.portions[slot].incarnation)).collect();
        let outcome = Kept { number: (self.grant, 0), prev: NONE, ends_at: Some(ends_at), asked };
        self.send(&outcome);
        self.last = outcome.number;
        self.outcome = Some(outcome);
        true
    }

    fn finish_open(&mut self, broken: Broken) -> bool {
        let Some(outcome) = &self.outcome else { return false };
        let is_there = |slot: usize| {
            let portion = &self.portions[slot];
            let synced = &portion.kept[..portion.synced];
            self.removed[slot] || synced.iter().any(|kept| kept.number == outcome.number)
        };
        if broken != Broken::ServeBeforeTheOutcome && !(0..3).all(is_there) {
            return false;
        }
        self.outcome = None;
        self.is_open = true;
        self.check_served();
        true
    }

    /// M1 and M2; from here on all of this was seen by somebody.
    fn check_served(&mut self) {
        let has_all = self.answered.iter().all(|number| self.counts.contains(number));
        let none_is_void = self.counts.iter().all(|number| !self.void.contains(number));
        self.wrong |= !has_all || !none_is_void || !self.counts.starts_with(&self.served);
        // Former owners' writes that are not there now must not come back.
        let former = self.sent.iter().filter(|kept| kept.ends_at.is_none());
        let former = former.map(|kept| kept.number).filter(|number| number.0 < self.grant);
        self.void.extend(former.filter(|number| !self.counts.contains(number)));
        self.served.clone_from(&self.counts);
    }
}

fn wide((grant, sequence): (u64, u64)) -> WriteNumber {
    if (grant, sequence) == NONE { WriteNumber::NONE } else { number(grant, sequence) }
}

fn narrow(number: WriteNumber) -> (u64, u64) {
    (number.grant.counter, number.sequence)
}

#[derive(Clone, Copy)]
struct Limits {
    writes: usize,
    cuts: usize,
    opens: usize,
    states: usize,
}

/// Searches all states within the limits; how many there are, and whether an invariant was broken.
fn search(limits: Limits, broken: Broken) -> (usize, bool) {
    let hash = |world: &World| {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        hasher.finish()
    };
    let first = World::new();
    let mut seen = BTreeSet::from([hash(&first)]);
    let mut queue = VecDeque::from([first]);
    while let Some(world) = queue.pop_front() {
        if world.wrong {
            return (seen.len(), true);
        }
        for next in world.next(limits, broken) {
            if seen.insert(hash(&next)) {
                queue.push_back(next);
            }
        }
        assert!(seen.len() < limits.states, "the model grew out of its limits");
    }
    (seen.len(), false)
}

#[test] // Proves: W-1, W-3, W-6, O-5.
fn no_interleaving_loses_an_answered_write_or_brings_back_an_aborted_one() {
    for (writes, cuts, opens) in [(1, 1, 2), (2, 0, 1)] {
        let limits = Limits { writes, cuts, opens, states: 3_000_000 };
        let (states, violated) = search(limits, Broken::Nothing);
        println!("{writes} writes, {cuts} power cuts, {opens} new owners: {states} states");
        assert!(!violated, "{writes} {cuts} {opens}");
    }
}

/// The test of the test: without one of the rules something is lost or comes back.
#[test]
fn without_a_rule_the_model_finds_a_loss() {
    for broken in
        [Broken::NoFence, Broken::ServeBeforeTheOutcome, Broken::NoIncarnations, Broken::OnePromise]
    {
        let limits = Limits { writes: 1, cuts: 1, opens: 2, states: 1_000_000 };
        let (states, violated) = search(limits, broken);
        println!("{broken:?}: {states} states");
        assert!(violated, "{broken:?} is not found");
    }
}
