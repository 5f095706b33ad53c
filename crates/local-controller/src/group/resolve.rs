//! What of a group's unfinished writes counts, from what its portions report.
//! # Theory
//! The new owner walks the numbers up from where all is settled: the newest stable mark or outcome
//! record that any in-sync slot has. A write is kept while everything that an answered client could
//! have seen is still there.
//! ```text
//! in-sync participant     record there   record not there
//!   same incarnation      has it         never promised: the write was never decided
//!   other incarnation     has it         lost: it may have promised before it restarted
//! ```
//! # Invariants
//! R1 A write that was decided is kept, as long as the scheme tolerates what is lost.
//! R2 What is kept is a prefix.
//! # Source
//! W-6(4), W-10; holes 1, 2, 4 and 25 of the design's reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use braid_terms::{PortionIndex, WriteNumber, planted, sometimes};
use braid_wire::io::{ENDS_MAX, RecordHead, RecordKind, Report};
use braid_wire::operations::Operations;

use super::images::slot_bit;
use super::open::is_gone;

/// Where a group stands after all that is in doubt was judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolution {
    /// Everything up to here was settled before.
    pub settled: WriteNumber,
    /// The last write that counts; at least `settled`.
    pub ends_at: WriteNumber,
    /// Records above `settled` exist, so the outcome must be written down before the first answer.
    pub needs_outcome: bool,
    /// In-sync slots that lack something that counts: to be removed by facts and rebuilt.
    pub lost_at: BTreeSet<PortionIndex>,
    /// The first write that is not kept was lost at more slots than the scheme tolerates together
    /// with those out of sync: it may have been answered, and one more report may save it.
    pub beyond_tolerance: bool,
    /// Lengths of the devices at `ends_at`, in bytes.
    pub lengths: Vec<u64>,
    /// Existing portions at `ends_at`, bit K-1 for slot K.
    pub existing: u32,
    /// The last write of each of the latest grants up to `ends_at`, in order. Source: W-9.
    pub ends: Vec<WriteNumber>,
    /// The latest changes of clients up to `ends_at`. Source: N-3.
    pub operations: Operations,
}

/// Counts of a group.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// k.
    pub data: usize,
    /// m.
    pub parity: usize,
    /// Devices.
    pub devices: usize,
    /// Slots that are not in sync.
    pub removed: usize,
}

/// Judges the reports of all in-sync slots that answered, of which there is at least one.
#[must_use]
pub fn resolve(reports: &BTreeMap<PortionIndex, Report>, counts: Counts) -> Resolution {
    let stable = reports.values().map(|report| report.stable).max().unwrap_or_default();
    let outcomes = reports.values().filter_map(|report| report.outcome);
    let outcome = outcomes.max_by_key(|(number, _, _)| *number);
    // What an earlier outcome left out is void: from its number on only later records count, but
    // what it kept may still be needed above the stable mark; that may be outcomes, too.
    let is_void = |number: WriteNumber| {
        outcome.is_some_and(|(at, ends_at, _)| ends_at < number && number < at)
            && !planted!("W-6/what-an-outcome-left-out-comes-back")
    };
    let mut heads: BTreeMap<WriteNumber, &RecordHead> = BTreeMap::new();
    for head in reports.values().flat_map(|report| &report.records) {
        let number = head.record.number;
        if !is_void(number) {
            let known = heads.entry(number).or_insert(head);
            // A withdrawn write may still stand where its void record did not arrive.
            if head.record.kind == RecordKind::Void {
                *known = head;
            }
        }
    }
    let mut lost_at = BTreeSet::new();
    let mut ends_at = stable;
    let mut beyond_tolerance = false;
    let above = (Bound::Excluded(stable), Bound::Unbounded);
    for (number, head) in heads.range(above) {
        let follows = follows(ends_at, *number, head.record.kind);
        if !follows && !planted!("W-6/keep-above-an-aborted-write")
            || planted!("W-6/what-is-held-is-forgotten")
        {
            break;
        }
        // What an outcome kept was judged then; the outcome itself is in doubt like any record.
        let settled_by_outcome = outcome.is_some_and(|(at, _, _)| *number < at);
        let mut lost = lost_at.clone();
        let mut has_it = 0;
        let mut never = false;
        for participant in &head.record.participants {
            let Some(report) = reports.get(&participant.slot) else { continue };
            let same = |kept: &RecordHead| {
                kept.record.number == *number && kept.record.kind == head.record.kind
            };
            if report.records.iter().any(same) {
                has_it += 1;
            } else if planted!("W-6/a-lost-promise-is-a-veto") {
                never = true;
            } else if report.incarnation != participant.incarnation
                || report.damaged_after.is_some_and(|after| after < *number)
                || settled_by_outcome
                || planted!("W-6/keep-what-was-never-promised")
            {
                lost.insert(participant.slot);
            } else {
                never = true;
            }
        }
        if never && planted!("W-6/keep-above-an-aborted-write") {
            continue;
        }
        beyond_tolerance = !never && counts.parity < counts.removed + lost.len();
        if never {
            sometimes!("W-6: a write that was never promised ends the prefix");
        }
        if never || has_it == 0 || counts.parity < counts.removed + lost.len() {
            break;
        }
        lost_at = lost;
        ends_at = *number;
    }
    let kept = heads.range(..=ends_at).next_back().map(|(_, head)| *head);
    let (lengths, existing) = lengths_at_end(reports, kept, counts);
    let kept = heads.range(..=ends_at).map(|(_, head)| &head.record.ends);
    let told = reports.values().map(|report| &report.ends).chain(kept);
    let ends = ends_with(told, ends_at);
    // A withdrawn write may still stand where its void record did not arrive.
    let counts_of = |head: &RecordHead| {
        let known = heads.get(&head.record.number);
        head.record.number <= ends_at
            && known.is_some_and(|known| known.record.kind == head.record.kind)
    };
    let operations = operations_of(reports, counts_of, existing, counts);
    Resolution {
        settled: stable,
        ends_at,
        needs_outcome: reports
            .values()
            .any(|report| report.records.iter().any(|head| stable < head.record.number)),
        lost_at,
        beyond_tolerance,
        lengths,
        existing,
        ends,
        operations,
    }
}

/// What the slots together know of the latest changes of clients, with those of their records that count.
///
/// A parity slot has a part in every write: one of them that is whole forgot all that is forgotten. Without
/// one, any k slots together have a part in every write, and what one forgot the others may not have had.
fn operations_of(
    reports: &BTreeMap<PortionIndex, Report>,
    counts_of: impl Fn(&RecordHead) -> bool,
    existing: u32,
    counts: Counts,
) -> Operations {
    let mut operations = Operations::default();
    let known: BTreeMap<_, _> = reports
        .iter()
        .map(|(slot, report)| {
            let mut known = report.operations.clone();
            let records = report.records.iter().filter(|head| counts_of(head));
            records.for_each(|head| known.take(&head.record));
            (slot, known)
        })
        .collect();
    known.values().for_each(|known| operations.merge(known));
    let parity = reports.iter().filter(|(slot, report)| {
        counts.data <= slot.zero_based()
            && report.damaged_after.is_none()
            && !is_gone(report, existing & slot_bit(**slot) != 0, WriteNumber::NONE)
    });
    let forgotten = parity.map(|(slot, _)| known[slot].forgotten).min();
    operations.forgotten = forgotten.unwrap_or(operations.forgotten);
    operations
}

/// The newest list of former grants' last writes, with `ends_at` behind it.
///
/// A grant's list stands in the first record of each slot, and whatever counts of it has its first
/// write, of which any k slots have a part (lemma of O-5): the newest list leaves no grant out.
pub(super) fn ends_with<'a>(
    told: impl Iterator<Item = &'a Vec<WriteNumber>>,
    ends_at: WriteNumber,
) -> Vec<WriteNumber> {
    let known = told.filter(|ends| ends.last().is_some_and(|last| *last <= ends_at));
    let mut ends = known.max_by_key(|ends| ends.last().copied()).cloned().unwrap_or_default();
    if ends.last().copied().unwrap_or_default() < ends_at {
        // Writes of one grant end once: what is told twice is told by the later one.
        ends.retain(|end| end.grant < ends_at.grant);
        ends.push(ends_at);
    }
    let too_many = ends.len().saturating_sub(ENDS_MAX);
    ends.drain(..too_many);
    ends
}

/// Whether `next` is the number behind `last`: the next of its grant, or the first of a later one.
fn follows(last: WriteNumber, next: WriteNumber, kind: RecordKind) -> bool {
    if next.grant == last.grant {
        return next.sequence == last.sequence + 1;
    }
    // A later grant began after its owner had settled what was before. An outcome record says where
    // that ended; writes without one began where nothing was in doubt.
    match kind {
        RecordKind::Outcome { ends_at } => ends_at <= last,
        RecordKind::Write | RecordKind::Void => next.sequence == 1,
    }
}

/// Lengths and existing portions at the end of what counts.
///
/// Every record carries those after it, so the newest one that counts has them, unless a slot that
/// reports no record heard of a newer one: it tells what it knew at its own stable mark. All writes
/// went to all in-sync parity slots, so those are believed before data slots, whose newest record
/// may be one that changed no length (an outcome, a void) behind a write that they had no part in.
/// One whose journal or portion file is lost is believed last: it forgot lengths with them.
fn lengths_at_end(
    reports: &BTreeMap<PortionIndex, Report>,
    kept: Option<&RecordHead>,
    counts: Counts,
) -> (Vec<u64>, u32) {
    let known = reports.iter().filter(|(_, report)| report.layout.is_some());
    let exist = known.clone().fold(0, |exist, (_, report)| exist | report.existing);
    let settled = known.map(|(slot, report)| {
        let first = report.records.first();
        let at = first.map_or(report.last, |head| head.record.prev);
        let is_parity = counts.data <= slot.zero_based();
        let is_whole = report.damaged_after.is_none()
            && !is_gone(report, exist & slot_bit(*slot) != 0, WriteNumber::NONE);
        let order = (is_whole, is_parity, at);
        (order, (&report.lengths, report.existing))
    });
    let settled = settled.max_by_key(|(order, _)| *order);
    let (lengths, existing) = match (kept, settled) {
        (Some(head), Some(((.., at), _))) if at <= head.record.number => {
            (&head.record.lengths, head.record.existing)
        }
        (_, Some((_, known))) => known,
        (Some(head), None) => (&head.record.lengths, head.record.existing),
        (None, None) => return (vec![0; counts.devices], 0),
    };
    // A report from outside may say anything.
    let mut lengths = lengths.clone();
    lengths.resize(counts.devices, 0);
    (lengths, existing)
}

#[cfg(test)]
#[path = "resolve_test.rs"]
mod tests;

#[cfg(test)]
#[path = "resolve_model.rs"]
mod model;
