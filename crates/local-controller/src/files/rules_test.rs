//! Random operations against a plain model; stops between any two writes; repeats.

use std::collections::BTreeMap;

use braid_terms::{DiskId, LayoutGeneration, RaidScheme};
use braid_wire::joint::{Joint, JointAnswer, JointStep};
use braid_wire::lcc::{DeviceLength, DeviceNews};

use super::super::log::test::Device;
use super::super::log::{Log, LogRole};
use super::super::pending::removed;
use super::super::record::Change;
use super::super::steps::change_joint;
use super::*;

pub(in crate::files) const GROUP: u64 = 10;
const ROLES: [LogRole; 2] = [LogRole::Names, LogRole::Attributes];

pub(in crate::files) fn layout(devices: &[u64]) -> GroupLayout {
    GroupLayout {
        devices: devices.iter().copied().map(DeviceId).collect(),
        scheme: RaidScheme::Raid1 { copies: 3 },
        strip_size: 65536,
        generation: LayoutGeneration(1),
        disks: (1..=3).map(DiskId).collect(),
    }
}

pub(in crate::files) fn plain(kind: FileKind) -> NewAttributes {
    NewAttributes {
        id: None,
        kind,
        mode: 0o755,
        uid: 1,
        gid: 2,
        made: None,
        atime: None,
        mtime: None,
        rdev: 0,
        data: FileData::None,
        size: 0,
        target: None,
        xattrs: Vec::new(),
    }
}

fn in_device(device: u64, size: u64) -> NewAttributes {
    let data = FileData::Device(layout(&[device]));
    NewAttributes { data, size, ..plain(FileKind::File) }
}

/// A directory with its two devices, and no task or network.
pub(in crate::files) struct Bench {
    pub state: State,
    pub pending: Pending,
    logs: [Log; 2],
    devices: [Device; 2],
    next: u64,
    time: i64,
}

impl Bench {
    pub fn begun() -> Self {
        let id = DeviceId(GROUP);
        let mut devices = [Device::default(), Device::default()];
        let logs = ROLES.map(|role| {
            let place = usize::from(role.device_index());
            let (log, root) = Log::create(DeviceId(GROUP + place as u64), role);
            devices[place].write(&root);
            log
        });
        let state = State::new(id);
        let pending = Pending::new(&state);
        let mut bench = Self { state, pending, logs, devices, next: 100, time: 0 };
        let operation = bench.operation();
        let parent = layout(&[1, 2]);
        let attributes = plain(FileKind::Directory);
        bench.run(DirectoryOp::Begin { operation, attributes, parent }).unwrap();
        bench.decide();
        bench
    }

    pub fn operation(&mut self) -> OperationId {
        self.next += 1;
        OperationId { client: 1, counter: self.next }
    }

    pub fn change(&mut self, op: DirectoryOp) -> Result<Verdict, LccRefusal> {
        self.next += 1;
        self.time += 1;
        let around = Circumstances {
            now: FileTime { seconds: self.time, nanoseconds: 0 },
            session: 0,
            new_id: DeviceId(self.next),
        };
        change(&self.state, &mut self.pending, op, &around)
    }

    pub fn run(&mut self, op: DirectoryOp) -> Result<LccReply, LccRefusal> {
        match self.change(op)? {
            Verdict::Batched(_, reply) | Verdict::Repeated(reply) => Ok(reply),
            Verdict::RepeatedIn(_) => panic!("nothing was repeated"),
            Verdict::Blocked(intent) => panic!("nothing is locked: {intent:?}"),
            Verdict::Joint => Err(bad("it concerns other groups")),
        }
    }

    /// The share of the parent in the removal of a directory.
    fn remove_directory(&mut self, name: &Bytes) {
        let entry = self.pending.names.get(name).and_then(|(_, entry)| entry.clone());
        let entry = entry.or_else(|| self.state.names.get(name).cloned()).unwrap();
        let (name, id) = (name.clone(), entry.id);
        let steps =
            vec![JointStep::Leave { name, id }, JointStep::Drop { directory: entry.home.unwrap() }];
        let joint = Box::new(self.joint());
        let op = DirectoryOp::Decide { joint, steps };
        let made = change_joint(&self.state, &mut self.pending, &op);
        assert!(matches!(made, Ok(Verdict::Batched(..))), "{made:?}");
    }

    /// A change over this group alone.
    pub fn joint(&mut self) -> Joint {
        let operation = self.operation();
        Joint {
            id: JointId { driver: 7, counter: self.next },
            operation,
            answer: JointAnswer::Removed { entry: None, attributes: None },
            time: FileTime { seconds: self.time, nanoseconds: 0 },
            primary: layout(&[GROUP, GROUP + 1]),
            secondaries: Vec::new(),
        }
    }

    /// The batch becomes decided: its records onto the devices, its changes into the state.
    pub fn decide(&mut self) {
        let (batch, changes) = self.pending.close();
        let mut records: [Vec<_>; 2] = [Vec::new(), Vec::new()];
        for change in &changes {
            records[usize::from(change.role().device_index())].push(change.encode());
        }
        for ((log, device), records) in self.logs.iter_mut().zip(&mut self.devices).zip(&records) {
            device.write(&log.append(records));
        }
        let before = self.state.names.len();
        changes.into_iter().for_each(|change| self.state.apply(change));
        self.pending.decided(batch, &self.state, before);
    }

    pub fn checkpoint(&mut self, role: LogRole) {
        let place = usize::from(role.device_index());
        let checkpoint = self.logs[place].begin_checkpoint(&self.state.checkpoint(role));
        self.devices[place].write(&checkpoint.jump);
        self.devices[place].write(&checkpoint.body);
        let switch = self.logs[place].switch(&checkpoint);
        self.devices[place].write(&switch.root);
        self.devices[place].punch(&switch);
    }

    /// What the next owner would see.
    pub fn reloaded(&self) -> State {
        let mut state = State::new(self.state.id);
        for role in ROLES {
            let place = usize::from(role.device_index());
            let device = DeviceId(GROUP + place as u64);
            let (records, end) = self.devices[place].replay_as(device, role);
            end.unwrap();
            records.iter().for_each(|r| state.apply(Change::decode(role, r).unwrap()));
        }
        state
    }

    pub fn create(&mut self, name: &'static str, attributes: NewAttributes) -> LccReply {
        let operation = self.operation();
        let name = Bytes::from_static(name.as_bytes());
        let if_exists = IfExists::Fail;
        let stable = false;
        self.run(DirectoryOp::Create { operation, name, attributes, if_exists, stable }).unwrap()
    }

    fn unlink(&mut self, name: &'static str) -> Result<LccReply, LccRefusal> {
        let operation = self.operation();
        let name = Bytes::from_static(name.as_bytes());
        let (only_id, keep, directory) = (None, false, false);
        self.run(DirectoryOp::Unlink { operation, name, only_id, keep, directory })
    }
}

/// What a directory is, told in the plainest way.
#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    /// Name to id and kind.
    names: BTreeMap<Bytes, (DeviceId, FileKind)>,
    /// Ids of files here, with their number of names.
    files: BTreeMap<DeviceId, u32>,
    to_remove: Vec<DeviceId>,
}

impl Model {
    fn of(state: &State) -> Self {
        let here = |id: &&DeviceId| **id != state.id;
        Self {
            names: state.names.iter().map(|(n, e)| (n.clone(), (e.id, e.kind))).collect(),
            files: state
                .attributes
                .keys()
                .filter(here)
                .map(|id| (*id, state.attributes[id].nlink))
                .collect(),
            to_remove: state.to_remove.keys().copied().collect(),
        }
    }

    fn release(&mut self, id: DeviceId, has_device: bool) {
        let Some(count) = self.files.get_mut(&id) else { return };
        *count -= 1;
        if *count == 0 {
            self.files.remove(&id);
            if has_device {
                self.to_remove.push(id);
                self.to_remove.sort_unstable();
            }
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// One random operation at the bench and at the model; both do it or both refuse it.
fn step(bench: &mut Bench, model: &mut Model, random: &mut Random) {
    let name = |random: &mut Random| Bytes::from(format!("n{}", random.below(12)));
    let operation = bench.operation();
    let (one, other) = (name(random), name(random));
    match random.below(6) {
        0 | 1 => {
            let device = bench.next + 5_000_000;
            let attributes = in_device(device, 9);
            let op = DirectoryOp::Create {
                operation,
                name: one.clone(),
                attributes,
                if_exists: if random.below(2) == 0 { IfExists::Fail } else { IfExists::Replace },
                stable: false,
            };
            let replaces = matches!(&op, DirectoryOp::Create { if_exists: IfExists::Replace, .. });
            let may = model
                .names
                .get(&one)
                .is_none_or(|(_, kind)| replaces && *kind != FileKind::Directory);
            assert_eq!(bench.run(op).is_ok(), may);
            if may {
                if let Some((id, _)) = model.names.insert(one, (DeviceId(device), FileKind::File)) {
                    model.release(id, true);
                }
                model.files.insert(DeviceId(device), 1);
            }
        }
        2 => {
            let home = layout(&[bench.next + 9_000_000, bench.next + 9_000_001]);
            let id = home.group();
            let kind = FileKind::Directory;
            let op = DirectoryOp::Enter { operation, name: one.clone(), id, kind, home };
            let may = !model.names.contains_key(&one);
            assert_eq!(bench.run(op).is_ok(), may);
            if may {
                model.names.insert(one, (id, kind));
            }
        }
        3 => {
            let directory = random.below(2) == 0;
            let (only_id, keep) = (None, false);
            let op = DirectoryOp::Unlink { operation, name: one.clone(), only_id, keep, directory };
            let may = model
                .names
                .get(&one)
                .is_some_and(|(_, kind)| directory == (*kind == FileKind::Directory));
            if may && directory {
                // It concerns the directory itself, too.
                assert!(matches!(bench.change(op), Ok(Verdict::Joint)));
                bench.remove_directory(&one);
            } else {
                assert_eq!(bench.run(op).is_ok(), may);
            }
            if may {
                let (id, kind) = model.names.remove(&one).unwrap();
                model.release(id, true);
                if kind == FileKind::Directory {
                    model.to_remove.push(id);
                    model.to_remove.sort_unstable();
                }
            }
        }
        4 => {
            let exchange = random.below(3) == 0;
            let op = DirectoryOp::Rename {
                operation,
                from: one.clone(),
                to: other.clone(),
                exchange,
                target: None,
                if_exists: IfExists::Replace,
                only_replaces: None,
                keep: false,
            };
            let (source, target) = (model.names.get(&one), model.names.get(&other));
            let is_file = |entry: Option<&(DeviceId, FileKind)>| {
                entry.is_none_or(|(_, kind)| *kind == FileKind::File)
            };
            let may = source.is_some()
                && if exchange {
                    target.is_some()
                } else {
                    target.is_none() || one == other || is_file(source) && is_file(target)
                };
            assert_eq!(bench.run(op).is_ok(), may);
            if may && one != other {
                let source = model.names.remove(&one).unwrap();
                let target = model.names.remove(&other);
                model.names.insert(other, source);
                match target {
                    Some(target) if exchange => {
                        model.names.insert(one, target);
                    }
                    Some((id, _)) => model.release(id, true),
                    None => {}
                }
            }
        }
        _ => {
            let ids: Vec<_> = model.files.keys().copied().collect();
            let Some(id) = ids.get(random.below(20) as usize).copied() else { return };
            let mode = Some(random.below(4096) as u32);
            let changes = AttributeChanges { mode, ..AttributeChanges::default() };
            let op = DirectoryOp::SetAttributes { operation, id, changes, stable: false };
            bench.run(op).unwrap();
        }
    }
}

#[test]
fn a_file_without_a_name_gets_one_or_goes() {
    let mut bench = Bench::begun();
    for (device, named) in [(9_000_001, true), (9_000_002, false)] {
        bench.create("", in_device(device, 9));
        bench.decide();
        assert!(bench.state.names.is_empty());
        let id = DeviceId(device);
        assert_eq!(bench.reloaded().attributes[&id].nlink, 1);
        let operation = bench.operation();
        if named {
            let enter = DirectoryOp::Enter {
                operation,
                name: Bytes::from_static(b"name"),
                id,
                kind: FileKind::File,
                home: bench.state.own.as_ref().map(|_| layout(&[GROUP, GROUP + 1])).unwrap(),
            };
            bench.run(enter).unwrap();
            bench.decide();
            bench.unlink("name").unwrap();
        } else {
            let changes = AttributeChanges { nlink: -1, ..AttributeChanges::default() };
            let stable = false;
            bench.run(DirectoryOp::SetAttributes { operation, id, changes, stable }).unwrap();
        }
        bench.decide();
        let after = Model::of(&bench.reloaded());
        assert!(after.names.is_empty() && after.files.is_empty());
        assert!(after.to_remove.contains(&id));
    }
}

#[test] // Proves: N-3, W-7.
fn random_operations_are_those_of_the_model_and_survive_a_stop() {
    for seed in 1..=30 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
        let (mut bench, mut model) = (Bench::begun(), Model::default());
        for _ in 0..300 {
            step(&mut bench, &mut model, &mut random);
            match random.below(8) {
                0 | 1 => {
                    bench.decide();
                    assert_eq!(Model::of(&bench.state), model);
                    assert_eq!(bench.reloaded(), bench.state);
                }
                2 if bench.pending.is_empty() => bench.checkpoint(ROLES[random.below(2) as usize]),
                _ => {}
            }
        }
        bench.decide();
        assert_eq!(bench.pending.entries_added, 0);
        for role in ROLES {
            bench.checkpoint(role);
        }
        assert_eq!(bench.reloaded(), bench.state);
    }
}

#[test] // Proves: W-7. What is not decided is seen by operations behind it and by no reader.
fn undecided_changes_are_seen_by_operations_only() {
    let mut bench = Bench::begun();
    bench.create("a", plain(FileKind::File));
    assert!(bench.state.names.is_empty());
    let operation = bench.operation();
    let again = DirectoryOp::Create {
        operation,
        name: Bytes::from_static(b"a"),
        attributes: plain(FileKind::File),
        if_exists: IfExists::Fail,
        stable: false,
    };
    assert_eq!(bench.run(again).unwrap_err(), LccRefusal::Exists { kind: FileKind::File });
    bench.unlink("a").unwrap();
    bench.decide();
    assert!(bench.state.names.is_empty());
    assert_eq!(bench.unlink("a").unwrap_err(), LccRefusal::NotFound);
}

#[test] // Proves: L2 of wire::lcc.
fn a_repeat_is_answered_as_the_first_also_by_the_next_owner() {
    let mut bench = Bench::begun();
    let operation = bench.operation();
    let create = DirectoryOp::Create {
        operation,
        name: Bytes::from_static(b"a"),
        attributes: in_device(500, 7),
        if_exists: IfExists::Fail,
        stable: false,
    };
    assert!(matches!(bench.change(create.clone()), Ok(Verdict::Batched(2, _))));
    assert!(matches!(bench.change(create.clone()), Ok(Verdict::RepeatedIn(2))));
    bench.decide();
    let first = bench.run(create.clone()).unwrap();
    bench.state = bench.reloaded();
    bench.pending = Pending::new(&bench.state);
    let later = bench.run(create).unwrap();
    assert_eq!(format!("{first:?}"), format!("{later:?}"));
    let LccReply::Entry { entry, attributes, .. } = later else { panic!("{later:?}") };
    assert_eq!((entry.id, attributes.unwrap().size), (DeviceId(500), 7));

    let operation = bench.operation();
    let name = Bytes::from_static(b"a");
    let (only_id, keep, directory) = (None, false, false);
    let unlink = DirectoryOp::Unlink { operation, name, only_id, keep, directory };
    bench.run(unlink.clone()).unwrap();
    bench.decide();
    bench.checkpoint(LogRole::Attributes);
    bench.state = bench.reloaded();
    bench.pending = Pending::new(&bench.state);
    assert!(matches!(bench.run(unlink), Ok(LccReply::Removed { entry: Some(_), .. })));
    assert_eq!(bench.unlink("a").unwrap_err(), LccRefusal::NotFound);
}

#[test] // Proves: N-4, F-9.
fn the_last_name_puts_the_device_on_the_list() {
    let mut bench = Bench::begun();
    let operation = bench.operation();
    let layouts = vec![layout(&[500]), layout(&[501])];
    bench.run(DirectoryOp::BeginUploads { operation, layouts }).unwrap();
    bench.decide();
    assert_eq!(bench.state.uploads.len(), 2);
    bench.create("a", in_device(500, 7));
    bench.decide();
    assert_eq!(bench.state.uploads.len(), 1);
    // A second name elsewhere.
    let operation = bench.operation();
    let changes = |nlink| AttributeChanges { nlink, ..AttributeChanges::default() };
    let id = DeviceId(500);
    let stable = false;
    bench.run(DirectoryOp::SetAttributes { operation, id, changes: changes(1), stable }).unwrap();
    bench.unlink("a").unwrap();
    bench.decide();
    assert!(bench.state.names.is_empty() && bench.state.to_remove.is_empty());
    let operation = bench.operation();
    bench.run(DirectoryOp::SetAttributes { operation, id, changes: changes(-1), stable }).unwrap();
    let operation = bench.operation();
    let devices = vec![DeviceId(501), DeviceId(7777)];
    bench.run(DirectoryOp::AbandonUploads { operation, devices }).unwrap();
    bench.decide();
    assert_eq!(bench.state.to_remove.keys().copied().collect::<Vec<_>>(), [id, DeviceId(501)]);
    removed(&mut bench.pending, id);
    assert!(!bench.pending.is_empty());
    bench.decide();
    assert_eq!(bench.reloaded().to_remove.len(), 1);
}

#[test] // Proves: N-2: of two lengths the one of the later write counts, whoever tells first.
fn an_older_length_never_replaces_a_newer_one() {
    let mut bench = Bench::begun();
    bench.create("a", in_device(500, 7));
    let tell = |bench: &mut Bench, news: DeviceNews| {
        let operation = bench.operation();
        let changes = AttributeChanges { device: Some(news), ..AttributeChanges::default() };
        let (id, stable) = (DeviceId(500), false);
        let op = DirectoryOp::SetAttributes { operation, id, changes, stable };
        let LccReply::Attributes(now) = bench.run(op).unwrap() else { panic!("attributes") };
        (now.size, now.writers)
    };
    let news = |device, length: Option<(u64, u64, u64)>, writers| DeviceNews {
        device: DeviceId(device),
        length: length.map(|(counter, sequence, bytes)| {
            let number =
                WriteNumber { grant: braid_terms::GrantNumber { term: 1, counter }, sequence };
            DeviceLength { number, bytes }
        }),
        writers,
    };
    assert_eq!(tell(&mut bench, news(500, None, 1)), (7, 1));
    assert_eq!(tell(&mut bench, news(500, None, 1)), (7, 2));
    assert_eq!(tell(&mut bench, news(500, Some((1, 5, 4096)), -1)), (4096, 1));
    // A cut of before, told late; then the one who writes on; then the owner of after a crash.
    assert_eq!(tell(&mut bench, news(500, Some((1, 4, 100)), 0)), (4096, 1));
    assert_eq!(tell(&mut bench, news(500, Some((1, 6, 50)), -1)), (50, 0));
    assert_eq!(tell(&mut bench, news(500, Some((2, 0, 40)), -1)), (40, 0));
    // Of a device that the file has no more.
    assert_eq!(tell(&mut bench, news(499, Some((9, 9, 9)), 3)), (40, 0));
    bench.decide();
    let kept = &bench.reloaded().attributes[&DeviceId(500)];
    assert_eq!((kept.size, kept.size_number.sequence), (40, 0));
    // New bytes begin anew.
    let operation = bench.operation();
    let data = Some((FileData::Device(layout(&[501])), 3));
    let changes = AttributeChanges { data, ..AttributeChanges::default() };
    let op = DirectoryOp::SetAttributes { operation, id: DeviceId(500), changes, stable: false };
    bench.run(op).unwrap();
    assert_eq!(tell(&mut bench, news(500, Some((9, 9, 9)), 1)), (3, 0));
    assert_eq!(tell(&mut bench, news(501, Some((1, 1, 8)), 0)), (8, 0));
}

#[test]
fn a_retired_directory_takes_nothing() {
    let mut bench = Bench::begun();
    bench.create("a", plain(FileKind::File));
    let operation = bench.operation();
    let retire = |operation| DirectoryOp::Retire { operation };
    assert_eq!(bench.run(retire(operation)).unwrap_err(), LccRefusal::NotEmpty);
    bench.unlink("a").unwrap();
    let operation = bench.operation();
    bench.run(retire(operation)).unwrap();
    let operation = bench.operation();
    let create = |operation| DirectoryOp::Create {
        operation,
        name: Bytes::from_static(b"b"),
        attributes: plain(FileKind::File),
        if_exists: IfExists::Fail,
        stable: false,
    };
    assert_eq!(bench.run(create(operation)).unwrap_err(), LccRefusal::Retired);
    bench.decide();
    assert!(bench.state.is_disposable());
}

#[test]
fn bad_operations_are_refused_and_change_nothing() {
    let mut bench = Bench::begun();
    bench.create("f", plain(FileKind::File));
    bench.decide();
    let good = plain(FileKind::File);
    let inline = |size, count| NewAttributes {
        data: FileData::Inline(vec![0; count].into()),
        size,
        ..good.clone()
    };
    let bad: Vec<(&'static [u8], NewAttributes)> = vec![
        (b"", plain(FileKind::Fifo)),
        (b".", good.clone()),
        (b"a/b", good.clone()),
        (b"a", plain(FileKind::Directory)),
        (b"a", plain(FileKind::Symlink)),
        (b"a", inline(4097, 4097)),
        (b"a", inline(3, 4)),
        (b"a", NewAttributes { size: 1, ..good.clone() }),
        (b"a", NewAttributes { data: FileData::Device(layout(&[7, 8])), ..good.clone() }),
        (b"a", NewAttributes { data: FileData::Device(layout(&[0])), ..good.clone() }),
        (b"a", NewAttributes { xattrs: vec![(Bytes::new(), Bytes::new())], ..good.clone() }),
    ];
    for (name, attributes) in bad {
        let operation = bench.operation();
        let name = Bytes::from_static(name);
        let (if_exists, stable) = (IfExists::Fail, false);
        let op = DirectoryOp::Create { operation, name, attributes, if_exists, stable };
        let refusal = bench.run(op).unwrap_err();
        assert!(matches!(refusal, LccRefusal::BadRequest { .. }), "{refusal:?}");
        assert!(bench.pending.is_empty());
    }
}

#[test]
fn more_extended_attributes_than_there_is_room_for_are_refused_as_such() {
    let mut bench = Bench::begun();
    let many = |count: usize, size: usize| {
        let xattr = |at: usize| (Bytes::from(format!("user.{at}")), Bytes::from(vec![1; size]));
        NewAttributes { xattrs: (0..count).map(xattr).collect(), ..plain(FileKind::File) }
    };
    for (name, count, size, fits) in [
        ("a", 1024, 1, true),
        ("b", 1025, 1, false),
        ("c", 1, 65_000, true),
        ("d", 2, 33_000, false),
    ] {
        let operation = bench.operation();
        let (name, attributes) = (Bytes::from_static(name.as_bytes()), many(count, size));
        let (if_exists, stable) = (IfExists::Fail, false);
        let op = DirectoryOp::Create { operation, name, attributes, if_exists, stable };
        let refusal = bench.run(op).err();
        assert_eq!(refusal, (!fits).then_some(LccRefusal::NoSpace), "{count} of {size} bytes");
    }
}

#[test]
fn a_file_gets_the_number_that_its_maker_brought() {
    let mut bench = Bench::begun();
    let time = FileTime { seconds: 5, nanoseconds: 6 };
    let new =
        NewAttributes { id: Some(DeviceId(4_711)), made: Some(time), ..plain(FileKind::File) };
    let LccReply::Entry { entry, attributes, .. } = bench.create("a", new.clone()) else {
        panic!("an entry is answered");
    };
    assert_eq!(entry.id, DeviceId(4_711));
    let attributes = attributes.expect("they are kept here");
    let times = [attributes.atime, attributes.mtime, attributes.ctime, attributes.btime];
    assert_eq!(times, [time; 4]);
    let again = DirectoryOp::Create {
        operation: bench.operation(),
        name: "b".into(),
        attributes: new,
        if_exists: IfExists::Fail,
        stable: false,
    };
    assert_eq!(bench.run(again).unwrap_err(), LccRefusal::Conflict, "no number is given twice");
}

#[test]
fn listing_goes_by_cookies_and_is_bounded() {
    let mut bench = Bench::begun();
    for name in ["c", "a", "b", "d"] {
        bench.create(
            name,
            NewAttributes {
                data: FileData::Inline(Bytes::from_static(b"x")),
                size: 1,
                ..plain(FileKind::File)
            },
        );
    }
    bench.unlink("a").unwrap();
    bench.decide();
    let mut seen = Vec::new();
    let mut after = 0;
    loop {
        let LccReply::Entries { entries, end } = bench.state.list(after, 2, true) else {
            panic!("a list is a list");
        };
        for (entry, attributes) in entries {
            after = entry.cookie;
            let attributes = attributes.unwrap();
            assert_eq!((attributes.size, attributes.data), (1, FileData::None));
            seen.push(entry.name);
        }
        if end {
            break;
        }
    }
    assert_eq!(seen, ["c", "b", "d"]);
}
