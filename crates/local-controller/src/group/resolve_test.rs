//! Cases of W-6(4), as interleavings that once lost data.

use braid_terms::{DeviceId, GrantNumber, Incarnation, JournalPosition, LayoutGeneration};
use braid_wire::io::{FileState, Participant, Record};
use braid_wire::lcc::OperationId;
use braid_wire::operations::Operation;

use super::*;

pub(super) fn number(grant: u64, sequence: u64) -> WriteNumber {
    WriteNumber { grant: GrantNumber { term: 1, counter: grant }, sequence }
}

/// A record at slots (slot, incarnation under which it was asked).
pub(super) fn head(number: WriteNumber, prev: WriteNumber, asked: &[(u8, u64)]) -> RecordHead {
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
            ends: Vec::new(),
            operation: None,
            operations: None,
            changes: Vec::new(),
        },
        position: JournalPosition(1),
    }
}

pub(super) fn report(incarnation: u64, stable: WriteNumber, records: Vec<RecordHead>) -> Report {
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
        ends: Vec::new(),
        operations: Operations::default(),
        missed: Vec::new(),
        damaged_after: None,
        synced: JournalPosition(0),
    }
}

fn judge(reports: Vec<(u8, Report)>, removed: usize) -> Resolution {
    let reports = reports.into_iter().map(|(slot, report)| (PortionIndex(slot), report));
    resolve(&reports.collect(), Counts { data: 2, parity: 1, devices: 1, removed })
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

/// Seed 2149 of three servers: two owners after each other settled what was in flight, and nothing
/// of it was stable when the third one looked.
#[test] // Proves: W-6.
fn an_outcome_below_the_newest_one_is_a_record_like_others() {
    let outcome = |at: WriteNumber, ends_at, prev| {
        let mut head = head(at, prev, &[(1, 10), (2, 20), (3, 30)]);
        head.record.kind = RecordKind::Outcome { ends_at };
        head
    };
    let write = head(number(1, 1), WriteNumber::NONE, &[(1, 10), (3, 30)]);
    let first = outcome(number(2, 0), number(1, 1), number(1, 1));
    let later = head(number(2, 1), number(2, 0), &[(2, 20), (3, 30)]);
    let second = outcome(number(3, 0), number(2, 1), number(2, 1));
    let mut of_d2 =
        report(20, WriteNumber::NONE, vec![first.clone(), later.clone(), second.clone()]);
    of_d2.outcome = Some((number(3, 0), number(2, 1), false));
    let mut of_p = report(30, WriteNumber::NONE, vec![write, first, later, second]);
    of_p.outcome = of_d2.outcome;
    let end = judge(vec![(2, of_d2), (3, of_p)], 1);
    assert_eq!(end.ends_at, number(3, 0));
    assert!(end.lost_at.is_empty());
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

#[test] // Proves: W-1, W-6.
fn a_withdrawn_write_that_still_stands_somewhere_does_not_count() {
    // The void record reached the parity only; the client was never told that it may forget it.
    let write = head(number(1, 1), WriteNumber::NONE, &[(1, 10), (3, 30)]);
    let mut void = write.clone();
    void.record.kind = RecordKind::Void;
    let end = |first: u64, write: &RecordHead, void: &RecordHead| {
        judge(
            vec![
                (1, report(first, WriteNumber::NONE, vec![write.clone()])),
                (2, report(20, WriteNumber::NONE, vec![])),
                (3, report(30, WriteNumber::NONE, vec![void.clone()])),
            ],
            0,
        )
    };
    let in_flight = end(10, &write, &void);
    assert_eq!(in_flight.ends_at, WriteNumber::NONE);
    assert!(in_flight.needs_outcome && in_flight.lost_at.is_empty());
    // It had arrived, and was lost with the machine: later answered writes may stand upon it.
    let lost = end(11, &write, &void);
    assert_eq!(lost.ends_at, number(1, 1));
    assert_eq!(lost.lost_at.into_iter().collect::<Vec<_>>(), [PortionIndex(1)]);
}

#[test] // Proves: W-6, W-8.
fn the_length_is_that_of_the_newest_write_wherever_it_is_known() {
    // The first portion heard that all is stable, and had no part in the last two writes. The parity
    // has them, and lost the mark with its machine.
    let records = vec![
        head(number(1, 2), number(1, 1), &[(2, 20), (3, 30)]),
        head(number(1, 3), number(1, 2), &[(2, 20), (3, 30)]),
    ];
    let mut first = report(10, number(1, 3), vec![]);
    (first.last, first.lengths) = (number(1, 1), vec![100]);
    let mut parity = report(31, number(1, 1), records);
    parity.lengths = vec![100];
    let end = judge(vec![(1, first), (3, parity)], 1);
    assert_eq!((end.ends_at, end.lengths, end.needs_outcome), (number(1, 3), vec![300], false));
}

#[test] // Proves: W-6, W-8.
fn a_parity_portion_knows_the_length_best() {
    // All took part in the outcome (2, 0), behind which the first one knows an old length only.
    let mut first = report(10, number(2, 0), vec![]);
    first.lengths = vec![100];
    let mut parity = report(30, number(2, 0), vec![]);
    parity.lengths = vec![300];
    let mut second = report(20, number(2, 0), vec![]);
    second.lengths = vec![200];
    let end = judge(vec![(1, parity.clone()), (2, second.clone()), (3, first.clone())], 0);
    assert_eq!(end.lengths, [100]);
    let end = judge(vec![(1, first), (2, second), (3, parity)], 0);
    assert_eq!(end.lengths, [300]);
}

/// Simulator, seed 1015 of three servers: a directory of length 0.
#[test] // Proves: F-5, W-6.
fn a_portion_that_lost_its_file_does_not_know_the_length() {
    let mut data = report(1, number(1, 3), Vec::new());
    data.files = vec![FileState::Present];
    let mut parity = report(1, number(1, 3), Vec::new());
    (parity.files, parity.lengths, parity.existing) = (vec![FileState::None], vec![0], 0);
    let end = judge(vec![(1, data.clone()), (3, parity.clone())], 0);
    assert_eq!((end.lengths, end.existing), (vec![300], 7));
    parity.files = vec![FileState::Unreadable];
    let end = judge(vec![(1, data), (3, parity)], 0);
    assert_eq!(end.lengths, [300]);
}

#[test] // Proves: W-6.
fn an_outcome_that_did_not_reach_all_is_settled_anew() {
    let write = head(number(1, 1), WriteNumber::NONE, &[(1, 10), (3, 30)]);
    let mut outcome = head(number(2, 0), number(1, 1), &[(1, 10), (2, 20), (3, 30)]);
    outcome.record.kind = RecordKind::Outcome { ends_at: number(1, 1) };
    let mut first = report(10, WriteNumber::NONE, vec![write.clone(), outcome]);
    first.outcome = Some((number(2, 0), number(1, 1), false));
    let end = judge(
        vec![
            (1, first),
            (2, report(20, WriteNumber::NONE, vec![])),
            (3, report(30, WriteNumber::NONE, vec![write])),
        ],
        0,
    );
    assert_eq!(end.ends_at, number(1, 1));
    assert!(end.needs_outcome && end.lost_at.is_empty());
}

/// Every state that three writes can leave at three portions of raid5/2+1: which data portions each
/// changed, how many of its records each portion has, whether it restarted, which one is removed.
#[test] // Proves: W-3, W-6, W-10.
fn all_small_cases_keep_what_was_decided_and_nothing_above_what_was_not() {
    let mut cases = 0;
    for shape in 0..27_u32 {
        // Slots of each write: the parity and one or both of the data portions.
        let slots_of = |write: u32| match shape / 3_u32.pow(write) % 3 {
            0 => vec![1_u8, 3],
            1 => vec![2, 3],
            _ => vec![1, 2, 3],
        };
        for state in 0..512_u32 {
            for removed in 0..4_u8 {
                check_case(&slots_of, state, removed);
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 27 * 512 * 4);
}

fn check_case(slots_of: &dyn Fn(u32) -> Vec<u8>, state: u32, removed: u8) {
    let asked = |write| slots_of(write).into_iter().map(|slot| (slot, u64::from(slot) * 10));
    // How many of its records a slot has, and whether it restarted since it was asked.
    let of_slot = |slot: u8| {
        let bits = state >> (3 * (slot - 1)) & 7;
        ((bits & 3) as usize, bits & 4 != 0)
    };
    let mut reports = Vec::new();
    for slot in (1..=3).filter(|slot| *slot != removed) {
        let (count, restarted) = of_slot(slot);
        let mut prev = WriteNumber::NONE;
        let mut records = Vec::new();
        for write in (0..3).filter(|write| slots_of(*write).contains(&slot)) {
            let number = number(1, u64::from(write) + 1);
            records.push(head(number, prev, &asked(write).collect::<Vec<_>>()));
            prev = number;
        }
        records.truncate(count);
        let incarnation = u64::from(slot) * 10 + u64::from(restarted);
        reports.push((slot, report(incarnation, WriteNumber::NONE, records)));
    }
    let end = judge(reports.clone(), usize::from(removed != 0));
    let case = format!("state {state:o}, removed {removed}: {end:?}");
    let has = |slot: u8, write: u32| {
        let wanted = number(1, u64::from(write) + 1);
        let report = &reports.iter().find(|(other, _)| *other == slot).expect("in sync").1;
        report.records.iter().any(|head| head.record.number == wanted)
    };
    let mut lacking = BTreeSet::new();
    let mut may_be_decided = true;
    for write in 0..3 {
        let wanted = number(1, u64::from(write) + 1);
        let slots = slots_of(write).into_iter().filter(|slot| *slot != removed);
        let (with, without): (Vec<u8>, Vec<u8>) = slots.partition(|slot| has(*slot, write));
        may_be_decided &= without.iter().all(|slot| of_slot(*slot).1);
        lacking.extend(without.iter().map(|slot| PortionIndex(*slot)));
        let bearable = lacking.len() + usize::from(removed != 0) <= 1;
        if may_be_decided && bearable && !with.is_empty() {
            assert!(wanted <= end.ends_at, "write {write} may have been answered: {case}");
        } else {
            assert!(end.ends_at < wanted, "write {write} cannot be kept: {case}");
            may_be_decided = false;
        }
        if end.ends_at == wanted {
            assert_eq!(end.lost_at, lacking, "{case}");
            assert_eq!(end.lengths, [wanted.sequence * 100], "{case}");
        }
    }
    let any = reports.iter().any(|(_, report)| !report.records.is_empty());
    assert_eq!(end.needs_outcome, any, "{case}");
}

#[test] // Proves: W-6, R1.
fn what_a_silent_slot_may_still_have_is_not_judged_without_it() {
    // An answered write of D1 and the parity: the parity's machine lost its power, D1 is silent for
    // a moment. Without D1's report the write would be given up.
    let write = head(number(1, 1), WriteNumber::NONE, &[(1, 10), (3, 30)]);
    let parity = (3, report(31, WriteNumber::NONE, vec![]));
    let idle = (2, report(20, WriteNumber::NONE, vec![]));
    let all = vec![(1, report(10, WriteNumber::NONE, vec![write.clone()])), idle.clone(), parity];
    let end = judge(all, 0);
    assert_eq!((end.ends_at, end.beyond_tolerance), (number(1, 1), false));
    // Two data slots have it, the third slot's loss and a silent one are too many.
    let write = head(number(1, 1), WriteNumber::NONE, &[(1, 10), (2, 20), (3, 30)]);
    let first = (1, report(10, WriteNumber::NONE, vec![write]));
    let end = judge(vec![first, (3, report(31, WriteNumber::NONE, vec![]))], 1);
    assert_eq!((end.ends_at, end.beyond_tolerance), (WriteNumber::NONE, true));
}

fn operation(client: u64) -> Operation {
    Operation { id: OperationId { client, counter: 1 }, answered: 1, at: 0 }
}

#[test] // Proves: N-3.
fn the_latest_changes_are_those_of_all_slots_and_of_kept_records() {
    let mut kept = head(number(1, 3), number(1, 2), &[(1, 10), (3, 30)]);
    kept.record.operation = Some(operation(3));
    let mut reports =
        [report(10, number(1, 2), vec![kept.clone()]), report(30, number(1, 2), vec![kept])];
    reports[0].operations.note(number(1, 1), operation(1));
    reports[0].operations.forgotten = number(1, 2);
    reports[1].operations.note(number(1, 2), operation(2));
    let [data, parity] = reports;
    let known = |reports: Vec<(u8, Report)>| {
        let operations = judge(reports, 1).operations;
        let clients = operations.done.iter().map(|done| done.operation.id.client);
        (clients.collect::<Vec<_>>(), operations.forgotten)
    };
    let both = known(vec![(1, data.clone()), (3, parity.clone())]);
    assert_eq!(both, (vec![1, 2, 3], WriteNumber::NONE), "the parity forgot nothing");
    let without_parity = known(vec![(1, data.clone()), (2, parity.clone())]);
    assert_eq!(without_parity, (vec![1, 2, 3], number(1, 2)));
    let gone = Report { files: vec![FileState::Unreadable], ..parity };
    let with_lost_parity = known(vec![(1, data), (3, gone)]);
    assert_eq!(with_lost_parity.1, number(1, 2), "what is lost says nothing");
}
