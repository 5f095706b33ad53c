use braid_terms::{DiskId, GroupLayout, LayoutGeneration, PortionIndex, RaidScheme, ServerId};
use braid_terms::{STRIP_SIZE_DEFAULT, WriteNumber};

use super::*;

const X: Incarnation = Incarnation(10);
const N: Incarnation = Incarnation(20);

fn grant(counter: u64) -> GrantNumber {
    GrantNumber { term: 1, counter }
}

fn layout(generation: u32) -> GroupLayout {
    GroupLayout {
        devices: vec![DeviceId(7)],
        scheme: RaidScheme::Rs { data: 2, parity: 1 },
        strip_size: STRIP_SIZE_DEFAULT,
        generation: LayoutGeneration(generation),
        disks: vec![DiskId(1), DiskId(2), DiskId(3)],
    }
}

fn suspect(slot: u8, after: u64) -> FactKind {
    let after = WriteNumber { grant: grant(1), sequence: after };
    FactKind::Suspect { layout: layout(1), slot: PortionIndex(slot), after, whole: false }
}

fn with_whole(mut kind: FactKind) -> FactKind {
    if let FactKind::Suspect { whole, .. } = &mut kind {
        *whole = true;
    }
    kind
}

fn after_of(table: &FactTable, number: FactNumber) -> (u64, bool) {
    match &table.open[&number].fact.kind {
        FactKind::Suspect { after, whole, .. } => (after.sequence, *whole),
        _ => panic!("not suspect"),
    }
}

#[test] // Proves: F-1.
fn a_repeat_is_answered_as_the_first() {
    let mut table = FactTable::default();
    let first = table.record(X, grant(1), suspect(1, 5)).unwrap();
    let version = table.version();
    assert_eq!(table.record(X, grant(1), suspect(1, 5)), Ok(first));
    // Says less than what stands: the slot may lack all above 5 anyway.
    assert_eq!(table.record(X, grant(1), suspect(1, 9)), Ok(first));
    assert_eq!(table.version(), version);
    assert_ne!(table.record(X, grant(1), suspect(2, 5)), Ok(first));
    assert_eq!(table.close(first, grant(1)), Ok(()));
    assert_eq!(table.close(first, grant(1)), Ok(()));
    assert_eq!(table.of_group(DeviceId(7)).len(), 1);
}

#[test] // Proves: F-2. What is said is never lost by saying less or something else.
fn facts_of_one_slot_become_one_that_says_both() {
    for (first, second, expect) in [
        (suspect(1, 5), suspect(1, 3), (3, false)),
        (suspect(1, 5), with_whole(suspect(1, 9)), (5, true)),
        (with_whole(suspect(1, 5)), suspect(1, 2), (2, true)),
    ] {
        let mut table = FactTable::default();
        let old = table.record(X, grant(1), first).unwrap();
        let new = table.record(X, grant(1), second).unwrap();
        assert_ne!(old, new);
        assert_eq!(after_of(&table, new), expect);
        assert_eq!(table.of_group(DeviceId(7)).len(), 1);
        assert_eq!(table.counts(|_| true).suspect, 1);
        assert_eq!(table.close(old, grant(1)), Err(FactRefusal::OtherFact));
        assert_eq!(table.close(new, grant(1)), Ok(()));
        assert_eq!(table, FactTable { last: 2, version: table.version, ..FactTable::default() });
    }
}

/// The old owner X repaired slot 1 and proposed to close its fact; the close was delayed. N took
/// over, found slot 1 missing a write and recorded it anew. Then X's close came.
#[test] // Proves: F-1. Hole 5.
fn a_late_close_of_an_older_owner_closes_nothing() {
    let mut table = FactTable::default();
    let of_x = table.record(X, grant(1), suspect(1, 5)).unwrap();
    let of_n = table.record(N, grant(2), suspect(1, 8)).unwrap();
    assert_ne!(of_x, of_n);
    assert_eq!(after_of(&table, of_n), (5, false));
    assert_eq!(table.close(of_x, grant(1)), Err(FactRefusal::OtherFact));
    assert_eq!(
        table.close(of_n, grant(1)),
        Err(FactRefusal::LowerGrant { seen: grant(2) }),
        "not even by the right number"
    );
    assert_eq!(table.of_group(DeviceId(7)).len(), 1);

    // Also where N's fact was recorded after X's close would have been right.
    assert_eq!(table.close(of_n, grant(2)), Ok(()));
    let again = table.record(N, grant(2), suspect(1, 9)).unwrap();
    assert_eq!(table.close(of_x, grant(1)), Ok(()), "closed before, by whomever");
    assert_eq!(table.of_group(DeviceId(7))[0].number, again);
}

#[test] // Proves: F-1.
fn an_older_owner_records_nothing_beside_a_newer_one() {
    let mut table = FactTable::default();
    table.record(N, grant(2), suspect(1, 5)).unwrap();
    let refused = Err(FactRefusal::LowerGrant { seen: grant(2) });
    assert_eq!(table.record(X, grant(1), suspect(1, 5)), refused);
    assert_eq!(table.record(X, grant(1), suspect(2, 5)), refused);
    assert_eq!(table.of_group(DeviceId(7)).len(), 1);
}

#[test] // Proves: F-8. Hole 18: a close for the copy on one disk clears nothing of another.
fn generations_of_a_layout_are_apart() {
    let mut table = FactTable::default();
    let old = table.record(X, grant(1), suspect(1, 5)).unwrap();
    let mut kind = suspect(1, 6);
    if let FactKind::Suspect { layout, .. } = &mut kind {
        layout.generation = LayoutGeneration(2);
    }
    let new = table.record(X, grant(1), kind).unwrap();
    assert_eq!(table.of_group(DeviceId(7)).len(), 2);
    assert_eq!(table.close(old, grant(1)), Ok(()));
    assert_eq!(table.of_group(DeviceId(7))[0].number, new);
}

#[test]
fn what_no_lcc_may_record_is_refused() {
    let mut table = FactTable::default();
    let mut no_devices = layout(1);
    no_devices.devices.clear();
    let bad_layout = FactKind::Suspect {
        layout: no_devices.clone(),
        slot: PortionIndex(1),
        after: WriteNumber::NONE,
        whole: false,
    };
    let kinds = [
        FactKind::Pending { incarnation: X },
        bad_layout,
        suspect(0, 1),
        suspect(4, 1),
        FactKind::LocalCopy { layout: no_devices, server: ServerId(1), base: WriteNumber::NONE },
    ];
    for kind in kinds {
        assert_eq!(table.record(X, grant(1), kind), Err(FactRefusal::OtherFact));
    }
    assert_eq!(table.close(FactNumber(0), grant(1)), Err(FactRefusal::OtherFact));
    assert_eq!(table.close(FactNumber(1), grant(1)), Err(FactRefusal::OtherFact));
    assert_eq!(table, FactTable::default());
}

#[test] // Proves: F-3.
fn a_pending_fact_is_closed_by_its_own_way_only() {
    let mut table = FactTable::default();
    table.record_pending(X);
    assert_eq!(table.counts(|_| true).pending, 0);
    assert_eq!(table.counts(|_| false).pending, 1);
    let number = table.above(FactNumber(0)).next().unwrap().number;
    assert_eq!(table.close(number, grant(9)), Err(FactRefusal::OtherFact));
    table.close_pending(X);
    assert_eq!(table.counts(|_| false), FactCounts::default());
    table.close_pending(X);
}

#[test]
fn a_local_copy_keeps_its_lowest_base() {
    let mut table = FactTable::default();
    let copy = |sequence| FactKind::LocalCopy {
        layout: layout(1),
        server: ServerId(1),
        base: WriteNumber { grant: grant(1), sequence },
    };
    let first = table.record(X, grant(1), copy(5)).unwrap();
    assert_eq!(table.record(X, grant(1), copy(6)), Ok(first));
    let merged = table.record(N, grant(2), copy(9)).unwrap();
    assert_eq!(table.of_group(DeviceId(7))[0].kind, copy(5));
    assert_eq!(table.counts(|_| true).local_copy, 1);
    assert_eq!(table.close(merged, grant(2)), Ok(()));
}
