use std::net::SocketAddr;

use braid_terms::{
    DiskInfo, FactKind, FactNumber, LayoutGeneration, PortionIndex, RaidScheme, STRIP_SIZE_DEFAULT,
    WriteNumber,
};

use super::*;

fn grant(counter: u64) -> GrantNumber {
    GrantNumber { term: 1, counter }
}

/// Servers 1 and 2 with disks 1 and 2.
pub(crate) fn state() -> StateMachine {
    state_of(2)
}

pub(crate) fn state_of(servers: u32) -> StateMachine {
    let mut map = ClusterMap { version: 1, ..ClusterMap::default() };
    let at: SocketAddr = "127.0.0.1:1".parse().unwrap();
    for number in 1..=servers {
        let server = ServerInfo {
            id: ServerId(number),
            name: String::new(),
            lc_address: at,
            coordinator_address: at,
            main_address: at,
            state: ServerState::InUse,
            is_mount: false,
            lc: None,
            lccs: Vec::new(),
        };
        let disk = DiskInfo {
            id: DiskId(number),
            identity: u128::from(number),
            server: ServerId(number),
            address: at,
            path: String::new(),
            state: DiskState::InUse,
            incarnation: None,
        };
        map.servers.insert(server.id, server);
        map.disks.insert(disk.id, disk);
    }
    map.coordinators = vec![ServerId(1), ServerId(2)];
    let mut state = StateMachine::default();
    assert_eq!(state.apply(Command::Begin { map: Box::new(map) }), Outcome::Done);
    state
}

pub(crate) fn register(state: &mut StateMachine, server: u32) -> (Incarnation, Vec<Incarnation>) {
    match state.apply(Command::RegisterLc { server: ServerId(server), lccs: 2 }) {
        Outcome::Registered { incarnation, lccs } => (incarnation, lccs),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn lease(state: &mut StateMachine, lcc: Incarnation, counter: u64) -> DeviceId {
    match state.apply(Command::LeaseNumbers { lcc, grant: grant(counter) }) {
        Outcome::Numbers { first, .. } => first,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn suspect_of(device: u64, slot: u8) -> FactKind {
    let layout = GroupLayout {
        devices: vec![DeviceId(device)],
        scheme: RaidScheme::Raid1 { copies: 2 },
        strip_size: STRIP_SIZE_DEFAULT,
        generation: LayoutGeneration(1),
        disks: vec![DiskId(1), DiskId(2)],
    };
    FactKind::Suspect { layout, slot: PortionIndex(slot), after: WriteNumber::NONE, whole: false }
}

fn is_refused(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(_))
}

#[test] // Proves: O-3, F-3.
fn an_lc_that_starts_again_ends_its_former_incarnations_in_one_entry() {
    let mut state = state();
    let (old_lc, old) = register(&mut state, 1);
    let version = state.map().version;
    let (lc, lccs) = register(&mut state, 1);
    assert!(state.map().version > version);
    assert_eq!(state.server_of_lc(old_lc), None);
    assert!(old.iter().all(|lcc| !state.is_valid_lcc(*lcc)));
    assert!(lccs.iter().all(|lcc| state.is_valid_lcc(*lcc)));
    let mut all = vec![old_lc, lc];
    all.extend(old.iter().chain(&lccs));
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 6, "an incarnation is given once");
    assert_eq!(state.fact_counts().pending, 2, "the former two are to be swept");
}

#[test] // Proves: O-5, F-1. Hole 7: a paused LC that was given up writes nothing more.
fn an_invalid_incarnation_changes_nothing_any_more() {
    let mut state = state();
    let (lc, lccs) = register(&mut state, 1);
    let (_, other) = register(&mut state, 2);
    let fact = vec![(grant(1), suspect_of(5, 1))];
    let Outcome::Recorded(recorded) =
        state.apply(Command::RecordFacts { lcc: lccs[0], facts: fact.clone() })
    else {
        panic!("not recorded");
    };
    let number = *recorded[0].as_ref().unwrap();
    assert_eq!(state.apply(Command::Invalidate { lc }), Outcome::Done);
    let before = state.clone();

    let refused = Err(FactRefusal::InvalidIncarnation);
    let record = Command::RecordFacts { lcc: lccs[0], facts: fact };
    assert_eq!(state.apply(record), Outcome::Recorded(vec![refused]));
    let close = Command::CloseFacts { lcc: lccs[0], facts: vec![(number, grant(9))] };
    let refused = Err(FactRefusal::InvalidIncarnation);
    assert_eq!(state.apply(close), Outcome::Closed(vec![refused]));
    for command in [
        Command::LeaseNumbers { lcc: lccs[1], grant: grant(2) },
        Command::CloseSweep { lcc: lccs[0], dead: lccs[1] },
        Command::RegisterLcc { lc, index: 0 },
        Command::UnregisterLc { lc },
    ] {
        let outcome = state.apply(command);
        assert_eq!(outcome, Outcome::Refused(CoordinatorRefusal::InvalidIncarnation));
    }
    assert_eq!(state.apply(Command::Invalidate { lc }), Outcome::Done, "a repeat");
    assert_eq!(state, before);

    let close = Command::CloseFacts { lcc: other[0], facts: vec![(number, grant(2))] };
    assert_eq!(state.apply(close), Outcome::Closed(vec![Ok(())]));
}

#[test] // Proves: O-3. Hole 7: each start of an LCC has an incarnation of its own.
fn an_lcc_that_starts_again_leaves_its_siblings_alone() {
    let mut state = state();
    let (lc, lccs) = register(&mut state, 1);
    let of_first = lease(&mut state, lccs[0], 1);
    let of_second = lease(&mut state, lccs[1], 2);
    let Outcome::Registered { incarnation, lccs: new } =
        state.apply(Command::RegisterLcc { lc, index: 0 })
    else {
        panic!("not registered");
    };
    assert_eq!((incarnation, new.len()), (lc, 1));
    assert!(!state.is_valid_lcc(lccs[0]) && state.is_valid_lcc(lccs[1]));
    assert_eq!(state.find_lcc(new[0]).unwrap().0, LccId { server: ServerId(1), index: 0 });
    assert_eq!(state.range_owner(of_first), None, "its numbers are like any others");
    assert_eq!(state.range_owner(of_second), Some(lccs[1]));
    assert!(is_refused(&state.apply(Command::RegisterLcc { lc, index: 2 })));
    assert_eq!(state.fact_counts().pending, 1);
}

#[test] // Proves: F-3, O-8.
fn pending_ends_with_a_clean_end_or_a_sweep_by_a_valid_lcc() {
    let mut state = state();
    let (first, _) = register(&mut state, 1);
    assert_eq!(state.apply(Command::UnregisterLc { lc: first }), Outcome::Done);
    assert_eq!(state.fact_counts().pending, 0);

    let (second, dead) = register(&mut state, 1);
    let (_, lccs) = register(&mut state, 2);
    let early = Command::CloseSweep { lcc: lccs[0], dead: dead[0] };
    assert!(is_refused(&state.apply(early)), "it is valid");
    state.apply(Command::Invalidate { lc: second });
    assert_eq!(state.fact_counts().pending, 2);
    for dead in dead {
        assert_eq!(state.apply(Command::CloseSweep { lcc: lccs[0], dead }), Outcome::Done);
        assert_eq!(state.apply(Command::CloseSweep { lcc: lccs[0], dead }), Outcome::Done);
    }
    assert_eq!(state.fact_counts().pending, 0);
}

#[test] // Proves: O-2.
fn number_ranges_are_given_once() {
    let mut state = state();
    let (lc, lccs) = register(&mut state, 1);
    let first = lease(&mut state, lccs[0], 1);
    let second = lease(&mut state, lccs[1], 2);
    assert_eq!(second.0, first.0 + NUMBER_RANGE_SIZE);
    assert_eq!(first, DeviceId(16));
    assert_eq!(state.range_owner(DeviceId(15)), None);
    let last = DeviceId(first.0 + NUMBER_RANGE_SIZE - 1);
    assert_eq!(state.range_owner(first), Some(lccs[0]));
    assert_eq!(state.range_owner(last), Some(lccs[0]));
    assert_eq!(state.range_owner(second), Some(lccs[1]));
    assert_eq!(state.range_owner(DeviceId(0)), None);
    assert_eq!(state.range_owner(DeviceId(second.0 + NUMBER_RANGE_SIZE)), None);
    state.apply(Command::Invalidate { lc });
    assert_eq!(state.range_owner(first), None);
    let (_, lccs) = register(&mut state, 1);
    assert_eq!(lease(&mut state, lccs[0], 3).0, second.0 + NUMBER_RANGE_SIZE);
}

#[test] // Proves: S-7, O-5.
fn an_io_server_is_known_by_its_disk_identity() {
    let mut state = state();
    let register = |state: &mut StateMachine, disk, identity| {
        state.apply(Command::RegisterIo { disk: DiskId(disk), identity })
    };
    assert!(is_refused(&register(&mut state, 1, 2)));
    assert!(is_refused(&register(&mut state, 3, 3)));
    let Outcome::Registered { incarnation, .. } = register(&mut state, 1, 1) else {
        panic!("not registered");
    };
    assert_eq!(state.map().disks[&DiskId(1)].incarnation, Some(incarnation));
    assert_ne!(register(&mut state, 1, 1), Outcome::Registered { incarnation, lccs: vec![] });
    let set = |state_of| {
        let change = MapChange::SetDiskState { disk: DiskId(1), state: state_of };
        Command::Change(Box::new(change))
    };
    state.apply(set(DiskState::Failed));
    assert_eq!(state.map().disks[&DiskId(1)].incarnation, None);
    assert!(is_refused(&register(&mut state, 1, 1)), "it was declared lost");
    assert!(is_refused(&state.apply(set(DiskState::InUse))));
}

#[test] // Proves: O-5, F-3.
fn a_mount_is_in_the_map_as_long_as_its_lc_is_valid() {
    let mut state = state();
    let mount = |port| Command::RegisterMount {
        name: "m".to_owned(),
        lc_address: SocketAddr::from(([127, 0, 0, 1], port)),
        lccs: 1,
    };
    let registered = |outcome| match outcome {
        Outcome::Registered { incarnation, lccs } => (incarnation, lccs[0]),
        other => panic!("{other:?}"),
    };
    let (first, dead) = registered(state.apply(mount(9)));
    assert_eq!(state.server_of_lc(first), Some(ServerId(3)));
    let (again, lcc) = registered(state.apply(mount(9)));
    assert_eq!(state.server_of_lc(again), Some(ServerId(3)), "a repeat keeps the number");
    assert!(!state.is_valid_lcc(dead) && state.facts().is_pending(dead));
    let (other, _) = registered(state.apply(mount(10)));
    assert_eq!(state.server_of_lc(other), Some(ServerId(4)));
    let range = lease(&mut state, lcc, 1);

    // Its lease ran out: it is gone, and what it left is to be swept.
    let version = state.map().version;
    assert_eq!(state.apply(Command::Invalidate { lc: again }), Outcome::Done);
    assert!(version < state.map().version);
    assert!(!state.map().servers.contains_key(&ServerId(3)));
    assert_eq!(state.range_owner(range), None);
    assert!(state.facts().is_pending(lcc));
    // One that ends by itself leaves nothing.
    assert_eq!(state.apply(Command::UnregisterLc { lc: other }), Outcome::Done);
    assert!(!state.map().servers.contains_key(&ServerId(4)));
    assert_eq!(state.fact_counts().pending, 2, "of the one that was cut off, and its first start");

    let (late, _) = registered(state.apply(mount(9)));
    assert_eq!(state.server_of_lc(late), Some(ServerId(5)), "numbers are never used again");
    // A server with disks stays.
    let (lc, _) = register(&mut state, 1);
    assert_eq!(state.apply(Command::Invalidate { lc }), Outcome::Done);
    assert!(state.map().servers.contains_key(&ServerId(1)));
}

#[test]
fn the_first_root_stays() {
    let mut state = state();
    let FactKind::Suspect { layout, .. } = suspect_of(8, 1) else { unreachable!() };
    let other = GroupLayout { devices: vec![DeviceId(9)], ..layout.clone() };
    let first = Command::SetRoot { layout: Box::new(layout.clone()) };
    assert_eq!(state.apply(first), Outcome::Done);
    let version = state.map().version;
    assert_eq!(state.apply(Command::SetRoot { layout: Box::new(other) }), Outcome::Done);
    assert_eq!(state.map().root, Some(layout), "the first one wins");
    assert_eq!(state.map().version, version);
}

#[test]
fn a_copy_by_snapshot_goes_on_alike() {
    let mut state = state();
    let (_, lccs) = register(&mut state, 1);
    lease(&mut state, lccs[0], 1);
    let facts = (1..50).map(|device| (grant(1), suspect_of(device, 1))).collect();
    state.apply(Command::RecordFacts { lcc: lccs[0], facts });
    let bytes = crate::raft::stored::encode(&state);
    let mut copy: StateMachine = crate::raft::stored::decode(&bytes).unwrap();
    assert_eq!(copy, state);
    for state in [&mut copy, &mut state] {
        let (_, lccs) = register(state, 2);
        lease(state, lccs[1], 2);
        let close = vec![(FactNumber(4), grant(3))];
        state.apply(Command::CloseFacts { lcc: lccs[0], facts: close });
    }
    assert_eq!(copy, state);
}
