//! The facts: recorded once, superseded, closed by number.
//!
//! # Theory
//! A fact has a *subject*: the slot of a group in one layout generation, the local journal of a
//! server, or an LCC start. At most one fact of a subject is open.
//! ```text
//! record: nothing open                                a new number
//!         open, same recorder, says as much already   the open one's number (a repeat)
//!         open, otherwise                             a new number that says what both say;
//!                                                     the old one is *superseded*
//! close:  open                                        closed
//!         superseded by one that is open              refused: the portion has another fact
//!         neither                                     closed before (a repeat)
//! ```
//! # Invariants
//! F1 What an open fact says is never lost before somebody closes the number under which it stands.
//! F2 A close that was on its way when its subject was recorded anew closes nothing.
//! # Source
//! F-1, F-2, F-3. DESIGN-REASONS 5.

use std::collections::{BTreeMap, BTreeSet};

use braid_terms::{DeviceId, Fact, FactKind, FactNumber, GrantNumber, Incarnation};
use braid_wire::coordinator::{FactCounts, FactRefusal};
use serde::{Deserialize, Serialize};

/// All open facts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FactTable {
    /// The last number given.
    last: u64,
    /// Grows with each change.
    version: u64,
    open: BTreeMap<FactNumber, OpenFact>,
    /// Groups with open facts.
    groups: BTreeMap<DeviceId, GroupFacts>,
    /// Open `Pending` facts.
    pending: BTreeMap<Incarnation, FactNumber>,
    /// Numbers whose successor is open.
    superseded: BTreeSet<FactNumber>,
    suspects: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct OpenFact {
    fact: Fact,
    /// The numbers that it supersedes.
    before: Vec<FactNumber>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct GroupFacts {
    /// The highest grant under which anything was recorded while facts were open.
    seen: GrantNumber,
    facts: Vec<FactNumber>,
}

impl FactTable {
    /// Records what is said of a group.
    ///
    /// Errors: `LowerGrant`; `OtherFact` for what no LCC may record. Source: F-1, F-2.
    pub fn record(
        &mut self,
        recorder: Incarnation,
        grant: GrantNumber,
        kind: FactKind,
    ) -> Result<FactNumber, FactRefusal> {
        let is_sound = match &kind {
            FactKind::Pending { .. } => false,
            FactKind::Suspect { layout, slot, .. } => {
                let slots = layout.check().map_or(0, |()| layout.scheme.portions());
                (1..=slots).contains(&usize::from(slot.0))
            }
            FactKind::LocalCopy { layout, .. } => layout.check().is_ok(),
        };
        // The group is asked for only of a sound layout.
        let Some(group) = is_sound.then(|| kind.group()).flatten() else {
            return Err(FactRefusal::OtherFact);
        };
        let known = self.groups.entry(group).or_default();
        if grant < known.seen {
            return Err(FactRefusal::LowerGrant { seen: known.seen });
        }
        known.seen = grant;
        let subject = subject_of(&kind);
        let same = |number: &&FactNumber| subject_of(&self.open[number].fact.kind) == subject;
        let Some(number) = known.facts.iter().find(same).copied() else {
            let number = self.insert(recorder, grant, kind, Vec::new());
            self.groups.entry(group).or_default().facts.push(number);
            return Ok(number);
        };
        let open = &self.open[&number];
        if open.fact.recorder == recorder && covers(&open.fact.kind, &kind) {
            return Ok(number);
        }
        let merged = merge(&open.fact.kind, kind);
        let mut old = self.remove(number);
        old.before.push(number);
        self.superseded.insert(number);
        let new = self.insert(recorder, grant, merged, old.before);
        if let Some(known) = self.groups.get_mut(&group) {
            known.facts.iter_mut().filter(|at| **at == number).for_each(|at| *at = new);
        }
        Ok(new)
    }

    /// Closes a fact about a group.
    ///
    /// Errors: `OtherFact`, `LowerGrant`. Source: F-1.
    pub fn close(&mut self, number: FactNumber, grant: GrantNumber) -> Result<(), FactRefusal> {
        let Some(open) = self.open.get(&number) else {
            let was_closed = (1..=self.last).contains(&number.0);
            let is_repeat = was_closed && !self.superseded.contains(&number);
            return if is_repeat { Ok(()) } else { Err(FactRefusal::OtherFact) };
        };
        let Some(group) = open.fact.kind.group() else {
            return Err(FactRefusal::OtherFact); // Pending ends with its incarnation or its sweep.
        };
        let seen = self.groups.get(&group).map_or_else(GrantNumber::default, |known| known.seen);
        if grant < seen && !braid_terms::planted!("F-1/a-former-owner-may-close") {
            braid_terms::sometimes!("F-1: a late close was refused");
            return Err(FactRefusal::LowerGrant { seen });
        }
        let closed = self.remove(number);
        closed.before.iter().for_each(|before| {
            self.superseded.remove(before);
        });
        if let Some(known) = self.groups.get_mut(&group) {
            known.seen = grant;
            known.facts.retain(|fact| *fact != number);
            if known.facts.is_empty() {
                self.groups.remove(&group);
            }
        }
        Ok(())
    }

    /// Records that an LCC start may leave unfinished writes. Source: F-3.
    pub fn record_pending(&mut self, incarnation: Incarnation) {
        let kind = FactKind::Pending { incarnation };
        let number = self.insert(incarnation, GrantNumber::default(), kind, Vec::new());
        self.pending.insert(incarnation, number);
    }

    /// Closes the pending fact of an LCC start, if it is open.
    pub fn close_pending(&mut self, incarnation: Incarnation) {
        if let Some(number) = self.pending.remove(&incarnation) {
            self.remove(number);
        }
    }

    fn insert(
        &mut self,
        recorder: Incarnation,
        grant: GrantNumber,
        kind: FactKind,
        before: Vec<FactNumber>,
    ) -> FactNumber {
        self.last += 1;
        self.version += 1;
        self.suspects += u64::from(matches!(kind, FactKind::Suspect { .. }));
        let number = FactNumber(self.last);
        let fact = Fact { number, recorder, grant, kind };
        self.open.insert(number, OpenFact { fact, before });
        number
    }

    fn remove(&mut self, number: FactNumber) -> OpenFact {
        let open = self.open.remove(&number).expect("the caller has seen it");
        self.version += 1;
        self.suspects -= u64::from(matches!(open.fact.kind, FactKind::Suspect { .. }));
        open
    }

    /// Grows with every fact recorded or closed.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The open facts of a group.
    #[must_use]
    pub fn of_group(&self, group: DeviceId) -> Vec<Fact> {
        let numbers = self.groups.get(&group).into_iter().flat_map(|known| &known.facts);
        numbers.map(|number| self.open[number].fact.clone()).collect()
    }

    /// Open facts above a number, in order.
    pub fn above(&self, after: FactNumber) -> impl Iterator<Item = &Fact> {
        let range = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        self.open.range(range).map(|(_, open)| &open.fact)
    }

    /// LCC starts that may have left unfinished writes or still make them.
    pub fn pending(&self) -> impl Iterator<Item = Incarnation> {
        self.pending.keys().copied()
    }

    /// Whether the pending fact of an LCC start is open.
    #[must_use]
    pub fn is_pending(&self, incarnation: Incarnation) -> bool {
        self.pending.contains_key(&incarnation)
    }

    /// How many are open; `pending` counts those whose incarnation is not valid.
    #[must_use]
    pub fn counts(&self, is_valid: impl Fn(Incarnation) -> bool) -> FactCounts {
        let pending = self.pending().filter(|incarnation| !is_valid(*incarnation)).count() as u64;
        let others = self.open.len() as u64 - self.pending.len() as u64;
        FactCounts { pending, suspect: self.suspects, local_copy: others - self.suspects }
    }
}

/// What a fact is about, apart from its group.
#[derive(PartialEq, Eq)]
enum Subject {
    Pending(u64),
    Slot(u8, u32),
    Journal(u32),
}

fn subject_of(kind: &FactKind) -> Subject {
    match kind {
        FactKind::Pending { incarnation } => Subject::Pending(incarnation.0),
        FactKind::Suspect { layout, slot, .. } => Subject::Slot(slot.0, layout.generation.0),
        FactKind::LocalCopy { server, .. } => Subject::Journal(server.0),
    }
}

/// Whether `open` says all that `new` says of the same subject.
fn covers(open: &FactKind, new: &FactKind) -> bool {
    match (open, new) {
        (
            FactKind::Suspect { after, whole, .. },
            FactKind::Suspect { after: new_after, whole: new_whole, .. },
        ) => after <= new_after && whole >= new_whole,
        (FactKind::LocalCopy { base, .. }, FactKind::LocalCopy { base: new_base, .. }) => {
            base <= new_base
        }
        _ => false,
    }
}

/// What both say together of the same subject.
fn merge(open: &FactKind, mut new: FactKind) -> FactKind {
    match (open, &mut new) {
        (
            FactKind::Suspect { after, whole, .. },
            FactKind::Suspect { after: new_after, whole: new_whole, .. },
        ) => {
            *new_after = (*new_after).min(*after);
            *new_whole |= whole;
        }
        (FactKind::LocalCopy { base, .. }, FactKind::LocalCopy { base: new_base, .. }) => {
            *new_base = (*new_base).min(*base);
        }
        _ => {}
    }
    new
}

#[cfg(test)]
#[path = "facts_test.rs"]
mod test;
