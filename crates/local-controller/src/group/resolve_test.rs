//! Cases of W-6(4), as interleavings that once lost data.

use braid_terms::{DeviceId, GrantNumber, Incarnation, JournalPosition, LayoutGeneration};
use braid_wire::io::{Participant, Record};

use super::*;

fn number(grant: u64, sequence: u64) -> WriteNumber {
    WriteNumber { grant: GrantNumber { term: 1, counter: grant }, sequence }
}

/// A record at slots (slot, incarnation under which it was asked).
fn head(number: WriteNumber, prev: WriteNumber, asked: &[(u8, u64)]) -> RecordHead {
    let participants = asked.iter().map(|(slot, incarnation)| Participant {
        slot: PortionIndex(*slot),
        incarnation: Incarnation(*incarnation),
    });
    RecordHead {
        record: Record {
            number,
            prev,
            writer: Incarnation(99),
            kind: RecordKind::Write,
            participants: participants.collect(),
            footprints: Vec::new(),
            lengths: vec![number.sequence * 100],
            existing: 7,
            changes: Vec::new(),
        },
        position: JournalPosition(1),
    }
}

fn report(incarnation: u64, stable: WriteNumber, records: Vec<RecordHead>) -> Report {
    Report {
        incarnation: Incarnation(incarnation),
        layout: Some(braid_terms::GroupLayout {
            devices: vec![DeviceId(1)],
            scheme: "raid5/2+1".parse().expect("a scheme"),
            strip_size: 4096,
            generation: LayoutGeneration(1),
            disks: vec![braid_terms::DiskId(1); 3],
        }),
        generation: LayoutGeneration(1),
        home: DeviceId(0),
        files: Vec::new(),
        last: records.last().map_or(stable, |head| head.record.number),
        decided: stable,
        stable,
        outcome: None,
        records,
        lengths: vec![stable.sequence * 100],
        existing: 7,
        missed: Vec::new(),
        damaged_after: None,
        synced: JournalPosition(0),
    }
}

fn judge(reports: Vec<(u8, Report)>, removed: usize) -> Resolution {
    let reports = reports.into_iter().map(|(slot, report)| (PortionIndex(slot), report));
    resolve(&reports.collect(), removed, 1, 1)
}

#[test] // Proves: W-6.
fn a_lost_promise_is_no_veto() {
    // Hole 1: D1 and its machine's promise are gone; the parity still has the answered write.
    let write = head(number(1, 1), WriteNumber::NONE, &[(1, 10), (3, 30)]);
    let end = judge(
        vec![
            (1, report(11, WriteNumber::NONE, vec![])),
            (2, report(20, WriteNumber::NONE, vec![])),
            (3, report(30, WriteNumber::NONE, vec![write])),
        ],
        0,
    );
    assert_eq!(end.ends_at, number(1, 1));
    assert_eq!(end.lost_at.into_iter().collect::<Vec<_>>(), [PortionIndex(1)]);
    assert!(end.needs_outcome);
    assert_eq!(end.lengths, [100]);
}

#[test] // Proves: W-6.
fn what_was_never_promised_ends_the_prefix() {
    // Hole 4: W1 reached D1 only, W2 both: neither counts.
    let first = head(number(1, 1), WriteNumber::NONE, &[(1, 10), (3, 30)]);
    let second = head(number(1, 2), number(1, 1), &[(1, 10), (3, 30)]);
    let end = judge(
        vec![
            (1, report(10, WriteNumber::NONE, vec![first, second.clone()])),
            (2, report(20, WriteNumber::NONE, vec![])),
            (3, report(30, WriteNumber::NONE, vec![second])),
        ],
        0,
    );
    assert_eq!(end.ends_at, WriteNumber::NONE);
    assert!(end.needs_outcome);
    assert!(end.lost_at.is_empty());
    assert_eq!(end.lengths, [0]);
}

#[test] // Proves: W-6.
fn an_outcome_keeps_what_it_left_out_void() {
    // Hole 2: the aborted write is at the parity alone, D1 is away now; the outcome at D2 decides.
    let aborted = head(number(1, 1), WriteNumber::NONE, &[(1, 10), (3, 30)]);
    let mut second = report(20, WriteNumber::NONE, vec![]);
    second.outcome = Some((number(2, 0), WriteNumber::NONE, true));
    let end = judge(vec![(2, second), (3, report(30, WriteNumber::NONE, vec![aborted]))], 1);
    assert_eq!(end.ends_at, WriteNumber::NONE);
}

#[test] // Proves: W-10.
fn a_gap_in_the_numbers_ends_the_prefix() {
    // Hole 25: the first write is nowhere any more, so the second must not count.
    let second = head(number(1, 2), number(1, 1), &[(2, 20), (3, 30)]);
    let end = judge(
        vec![
            (1, report(11, WriteNumber::NONE, vec![])),
            (2, report(20, WriteNumber::NONE, vec![second.clone()])),
            (3, report(30, WriteNumber::NONE, vec![second])),
        ],
        0,
    );
    assert_eq!(end.ends_at, WriteNumber::NONE);
}

#[test] // Proves: W-6.
fn more_lost_than_the_scheme_tolerates_is_not_kept() {
    let write = head(number(1, 1), WriteNumber::NONE, &[(1, 10), (2, 20), (3, 30)]);
    let end = judge(
        vec![
            (1, report(11, WriteNumber::NONE, vec![])),
            (2, report(21, WriteNumber::NONE, vec![])),
            (3, report(30, WriteNumber::NONE, vec![write])),
        ],
        0,
    );
    assert_eq!(end.ends_at, WriteNumber::NONE);
}

#[test] // Proves: W-6.
fn a_later_grant_follows_where_it_began() {
    let first = head(number(1, 4), number(1, 3), &[(1, 10), (3, 30)]);
    let second = head(number(5, 1), number(1, 4), &[(1, 10), (3, 30)]);
    let at = |slot: u64| report(slot * 10, number(1, 3), vec![first.clone(), second.clone()]);
    let end = judge(vec![(1, at(1)), (2, report(20, number(1, 3), vec![])), (3, at(3))], 0);
    assert_eq!(end.ends_at, number(5, 1));
    assert!(end.lost_at.is_empty());
    assert_eq!(end.settled, number(1, 3));
}

#[test] // Proves: W-6.
fn nothing_in_doubt_costs_nothing() {
    let quiet = |slot: u64| report(slot * 10, number(3, 9), vec![]);
    let end = judge(vec![(1, quiet(1)), (2, quiet(2)), (3, quiet(3))], 0);
    assert!(!end.needs_outcome);
    assert_eq!((end.ends_at, end.lengths), (number(3, 9), vec![900]));
}
