//! Group commit, failures and checkpoints on a group in memory.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use braid_terms::{DiskId, LayoutGeneration, RaidScheme};
use braid_wire::Payload;
use braid_wire::lcc::{FileData, FileKind, FileTime, IfExists, NewAttributes, OperationId};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, join_all};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::*;

/// A group in memory; clones share it. Writes are decided by `decide`, or at once.
#[derive(Clone)]
pub(in crate::files) struct MemoryGroup(Rc<RefCell<Inner>>);

type Held = (Vec<Part>, oneshot::Sender<Result<(), LccRefusal>>);

struct Inner {
    layout: GroupLayout,
    /// As decided.
    devices: Vec<Vec<u8>>,
    /// Cluster writes so far.
    writes: usize,
    syncs: usize,
    /// On their way, where they are held back.
    held: Option<VecDeque<Held>>,
    refusal: Option<LccRefusal>,
    refuse_next: Option<LccRefusal>,
    is_alive: bool,
}

pub(in crate::files) fn directory_layout(first: u64) -> GroupLayout {
    GroupLayout {
        devices: vec![DeviceId(first), DeviceId(first + 1)],
        scheme: RaidScheme::Raid1 { copies: 3 },
        strip_size: 65536,
        generation: LayoutGeneration(1),
        disks: (1..=3).map(DiskId).collect(),
    }
}

impl MemoryGroup {
    pub(in crate::files) fn new(layout: GroupLayout) -> Self {
        let count = layout.devices.len();
        Self(Rc::new(RefCell::new(Inner {
            layout,
            devices: vec![Vec::new(); count],
            writes: 0,
            syncs: 0,
            held: None,
            refusal: None,
            refuse_next: None,
            is_alive: true,
        })))
    }

    fn decide(&self) {
        let write = self.0.borrow_mut().held.as_mut().and_then(VecDeque::pop_front);
        let (parts, done) = write.expect("a write is on its way");
        self.0.borrow_mut().take(&parts);
        let _ = done.send(Ok(()));
    }

    fn writes(&self) -> usize {
        self.0.borrow().writes
    }
}

impl Inner {
    fn take(&mut self, parts: &[Part]) {
        for part in parts {
            match part {
                Part::Write { device_index, at, bytes } => {
                    let device = &mut self.devices[usize::from(*device_index)];
                    let at = usize::try_from(*at).unwrap();
                    assert_eq!(at % 4096, 0, "writes begin at a block");
                    let end = at + bytes.len();
                    device.resize(device.len().max(end), 0);
                    device[at..end].copy_from_slice(bytes);
                }
                Part::Punch { device_index, at, length } => {
                    let device = &mut self.devices[usize::from(*device_index)];
                    let at = usize::try_from(*at).unwrap();
                    let end = device.len().min(at + usize::try_from(*length).unwrap());
                    device[at..end].fill(0);
                }
            }
        }
    }
}

impl GroupAccess for MemoryGroup {
    fn layout(&self) -> GroupLayout {
        self.0.borrow().layout.clone()
    }

    fn lengths(&self) -> Vec<u64> {
        self.0.borrow().devices.iter().map(|device| device.len() as u64).collect()
    }

    fn check(&self) -> Result<(), LccRefusal> {
        self.0.borrow().refusal.clone().map_or(Ok(()), Err)
    }

    fn is_alive(&self) -> bool {
        self.0.borrow().is_alive
    }

    fn read(
        &self,
        device_index: u8,
        at: u64,
        length: u64,
    ) -> impl Future<Output = Result<Payload, LccRefusal>> + 'static {
        let inner = self.0.borrow();
        let device = &inner.devices[usize::from(device_index)];
        let at = usize::try_from(at).unwrap().min(device.len());
        let end = (at + usize::try_from(length).unwrap()).min(device.len());
        let bytes = Bytes::copy_from_slice(&device[at..end]);
        async move { Ok(Payload::from(bytes)) }
    }

    fn write(
        &self,
        parts: Vec<Part>,
        _: bool,
    ) -> impl Future<Output = Result<(), LccRefusal>> + 'static {
        let mut inner = self.0.borrow_mut();
        inner.writes += 1;
        if let Some(refusal) = inner.refuse_next.take() {
            return async move { Err(refusal) }.boxed_local();
        }
        let written: LocalBoxFuture<'static, _> = match &mut inner.held {
            None => {
                inner.take(&parts);
                async { Ok(()) }.boxed_local()
            }
            Some(held) => {
                let (done, decided) = oneshot::channel();
                held.push_back((parts, done));
                async { decided.await.expect("the test decides") }.boxed_local()
            }
        };
        written
    }

    fn sync(&self) -> impl Future<Output = Result<(), LccRefusal>> + 'static {
        self.0.borrow_mut().syncs += 1;
        async { Ok(()) }
    }
}

fn around(id: u64) -> Circumstances {
    Circumstances {
        now: FileTime { seconds: i64::try_from(id).unwrap(), nanoseconds: 0 },
        session: 0,
        new_id: DeviceId(1_000_000 + id),
    }
}

fn attributes(kind: FileKind, bytes: usize) -> NewAttributes {
    let data = match bytes {
        0 => FileData::None,
        count => FileData::Inline(vec![7; count].into()),
    };
    let size = bytes as u64;
    NewAttributes {
        id: None,
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        made: None,
        atime: None,
        mtime: None,
        rdev: 0,
        data,
        size,
        target: None,
        xattrs: Vec::new(),
    }
}

fn operation(counter: u64) -> OperationId {
    OperationId { client: 9, counter }
}

fn create(counter: u64, bytes: usize, stable: bool) -> DirectoryOp {
    DirectoryOp::Create {
        operation: operation(counter),
        name: format!("file-{counter}").into(),
        attributes: attributes(FileKind::File, bytes),
        if_exists: IfExists::Fail,
        stable,
    }
}

async fn begun(group: &MemoryGroup) -> Rc<Directory<MemoryGroup>> {
    let directory = Directory::load(group.clone()).await.unwrap();
    let begin = DirectoryOp::Begin {
        operation: operation(0),
        attributes: attributes(FileKind::Directory, 0),
        parent: directory_layout(1),
    };
    directory.clone().change(begin, around(0), None).await.unwrap();
    directory
}

async fn names(group: &MemoryGroup) -> BTreeMap<Bytes, DeviceId> {
    let directory = Directory::load(group.clone()).await.unwrap();
    let core = directory.core.borrow();
    core.state.names.iter().map(|(name, entry)| (name.clone(), entry.id)).collect()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[test] // Proves: W-7. DESIGN 8: many creates in flight become one cluster write.
fn creates_in_flight_share_two_cluster_writes() {
    run(async {
        let group = MemoryGroup::new(directory_layout(10));
        let directory = begun(&group).await;
        group.0.borrow_mut().held = Some(VecDeque::new());
        let before = group.writes();
        let make = |n| {
            tokio::task::spawn_local(directory.clone().change(create(n, 0, false), around(n), None))
        };
        let first: Vec<_> = (1..=3).map(make).collect();
        settle().await;
        assert_eq!(group.writes() - before, 1);
        let later: Vec<_> = (4..=400).map(make).collect();
        settle().await;
        assert_eq!(group.writes() - before, 1, "one batch on its way");
        assert!(names(&group).await.is_empty());
        let look = DirectoryOp::Lookup { name: Bytes::from_static(b"file-1") };
        assert_eq!(directory.look(&look).unwrap_err(), LccRefusal::NotFound);
        group.decide();
        settle().await;
        assert!(directory.look(&look).is_ok());
        assert!(first.iter().all(tokio::task::JoinHandle::is_finished));
        assert!(!later.iter().any(tokio::task::JoinHandle::is_finished));
        group.decide();
        join_all(later).await;
        assert_eq!(group.writes() - before, 2);
        assert_eq!(names(&group).await.len(), 400);
    });
}

#[test] // Proves: W-9, L2 of wire::lcc.
fn a_repeat_waits_for_the_first_and_stable_asks_for_a_sync() {
    run(async {
        let group = MemoryGroup::new(directory_layout(10));
        let directory = begun(&group).await;
        group.0.borrow_mut().held = Some(VecDeque::new());
        let op = create(1, 5, true);
        let first = tokio::task::spawn_local(directory.clone().change(op.clone(), around(1), None));
        settle().await;
        let again = tokio::task::spawn_local(directory.clone().change(op, around(2), None));
        settle().await;
        assert!(!again.is_finished());
        group.decide();
        let (first, again) = (first.await.unwrap().unwrap(), again.await.unwrap().unwrap());
        assert_eq!(format!("{first:?}"), format!("{again:?}"));
        assert_eq!(group.0.borrow().syncs, 2);
        assert_eq!(names(&group).await.len(), 1);
    });
}

#[test] // Proves: B1. Simulator, seed 1086.
fn a_refusal_waits_for_what_it_was_judged_by() {
    run(async {
        let group = MemoryGroup::new(directory_layout(10));
        let directory = begun(&group).await;
        directory.clone().change(create(1, 0, false), around(1), None).await.unwrap();
        group.0.borrow_mut().held = Some(VecDeque::new());
        let unlink = |n| DirectoryOp::Unlink {
            operation: operation(n),
            name: Bytes::from_static(b"file-1"),
            only_id: None,
            keep: false,
            directory: false,
        };
        let removed =
            tokio::task::spawn_local(directory.clone().change(unlink(2), around(2), None));
        settle().await;
        let refused =
            tokio::task::spawn_local(directory.clone().change(unlink(3), around(3), None));
        settle().await;
        let look = DirectoryOp::Lookup { name: Bytes::from_static(b"file-1") };
        assert!(directory.look(&look).is_ok(), "the name is there until the removal is decided");
        assert!(!refused.is_finished(), "refused by what nobody can see yet");
        group.decide();
        removed.await.unwrap().unwrap();
        assert_eq!(refused.await.unwrap().unwrap_err(), LccRefusal::NotFound);
    });
}

#[test] // Proves: B3.
fn a_failed_batch_fails_all_that_waits_and_the_devices_are_read_again() {
    run(async {
        let group = MemoryGroup::new(directory_layout(10));
        let directory = begun(&group).await;
        directory.clone().change(create(1, 0, false), around(1), None).await.unwrap();
        group.0.borrow_mut().refuse_next = Some(LccRefusal::NoSpace);
        let refused = directory.clone().change(create(2, 0, false), around(2), None).await;
        assert_eq!(refused.unwrap_err(), LccRefusal::NoSpace);
        assert!(directory.has_failed());
        assert!(directory.clone().change(create(3, 0, false), around(3), None).await.is_err());
        let directory = Directory::load(group.clone()).await.unwrap();
        directory.clone().change(create(2, 0, false), around(4), None).await.unwrap();
        assert_eq!(names(&group).await.len(), 2);
    });
}

#[test]
fn a_group_that_is_not_owned_any_more_answers_nothing() {
    run(async {
        let group = MemoryGroup::new(directory_layout(10));
        let directory = begun(&group).await;
        group.0.borrow_mut().refusal = Some(LccRefusal::NotOwner { owner: None });
        let look = DirectoryOp::GetAttributes { id: DeviceId(10) };
        assert_eq!(directory.look(&look).unwrap_err(), LccRefusal::NotOwner { owner: None });
        let refused = directory.clone().change(create(1, 0, false), around(1), None).await;
        assert_eq!(refused.unwrap_err(), LccRefusal::NotOwner { owner: None });
    });
}

#[test] // Proves: N-3. Every state between two cluster writes can be read.
fn checkpoints_happen_and_each_moment_can_be_read() {
    run(async {
        let group = MemoryGroup::new(directory_layout(10));
        let directory = begun(&group).await;
        let mut expect = BTreeMap::new();
        for round in 0..900 {
            let op = create(2 * round + 1, 4000, false);
            directory.clone().change(op, around(round), None).await.unwrap();
            let name = Bytes::from(format!("file-{}", 2 * round + 1));
            if round % 10 == 0 {
                expect.insert(name, DeviceId(1_000_000 + round));
            } else {
                let unlink = DirectoryOp::Unlink {
                    operation: operation(2 * round + 2),
                    name,
                    only_id: None,
                    keep: false,
                    directory: false,
                };
                directory.clone().change(unlink, around(round), None).await.unwrap();
            }
            if round % 50 == 0 {
                assert_eq!(names(&group).await, expect);
            }
        }
        settle().await;
        assert_eq!(names(&group).await, expect);
        let again = Directory::load(group.clone()).await.unwrap();
        let core = directory.core.borrow();
        assert_eq!(again.core.borrow().state, core.state);
        // The start of the log was given back: a checkpoint was switched to.
        let start = &group.0.borrow().devices[1][8192..8192 + 4096];
        assert!(start.iter().all(|byte| *byte == 0));
    });
}

#[test]
fn a_batch_is_bounded_and_the_rest_follows() {
    run(async {
        let group = MemoryGroup::new(directory_layout(10));
        let directory = begun(&group).await;
        let before = group.writes();
        let all =
            (1..=3000).map(|n| directory.clone().change(create(n, 4096, false), around(n), None));
        assert!(join_all(all).await.iter().all(Result::is_ok));
        let writes = group.writes() - before;
        assert!((6..=100).contains(&writes), "{writes} for 14 MB");
        assert_eq!(names(&group).await.len(), 3000);
    });
}

#[test] // Proves: N-3.
fn a_damaged_device_is_lost_and_never_shorter() {
    run(async {
        let group = MemoryGroup::new(directory_layout(10));
        let directory = begun(&group).await;
        directory.clone().change(create(1, 0, false), around(1), None).await.unwrap();
        let length = group.0.borrow().devices[0].len();
        group.0.borrow_mut().devices[0][length - 1] ^= 1;
        let lost = Directory::load(group.clone()).await.err();
        assert!(matches!(lost, Some(LccRefusal::Lost { .. })), "{lost:?}");
    });
}

#[test] // Proves: W-9. B1: only who is answered ahead sees what is not decided.
fn what_is_answered_ahead_is_seen_by_others_when_it_is_decided() {
    run(async {
        let group = MemoryGroup::new(directory_layout(10));
        let directory = begun(&group).await;
        group.0.borrow_mut().held = Some(VecDeque::new());
        let losses = Losses::default();
        for n in 1..=3 {
            let change =
                directory.clone().change(create(n, 5, false), around(n), Some(losses.clone()));
            let Changed::Done(LccReply::Entry { .. }) = change.await.unwrap() else {
                panic!("it is made");
            };
        }
        let taken = directory.clone().change(
            DirectoryOp::Create {
                operation: operation(9),
                name: Bytes::from_static(b"file-2"),
                attributes: attributes(FileKind::File, 0),
                if_exists: IfExists::Fail,
                stable: false,
            },
            around(9),
            Some(losses.clone()),
        );
        assert_eq!(taken.await.unwrap_err(), LccRefusal::Exists { kind: FileKind::File });
        let look = DirectoryOp::Lookup { name: Bytes::from_static(b"file-2") };
        let LccReply::Entry { entry, attributes: Some(record) } =
            directory.look_ahead(&look).await.unwrap()
        else {
            panic!("it has a record here");
        };
        assert_eq!((entry.id, record.size), (record.id, 5));
        let by_id = DirectoryOp::GetAttributes { id: entry.id };
        assert!(directory.look_ahead(&by_id).await.is_ok());
        let gone = DirectoryOp::Unlink {
            operation: operation(10),
            name: Bytes::from_static(b"file-2"),
            only_id: None,
            keep: false,
            directory: false,
        };
        directory.clone().change(gone, around(10), Some(losses.clone())).await.unwrap();
        let below = DirectoryOp::Enter {
            operation: operation(11),
            name: Bytes::from_static(b"below"),
            id: DeviceId(77),
            kind: FileKind::Directory,
            home: directory_layout(77),
        };
        directory.clone().change(below, around(11), Some(losses.clone())).await.unwrap();
        let own = DirectoryOp::GetAttributes { id: DeviceId(10) };
        let counted = |reply| match reply {
            LccReply::Attributes(own) => (own.size, own.nlink),
            other => panic!("{other:?}"),
        };
        let undecided = counted(directory.look_ahead(&own).await.unwrap());
        assert_eq!(undecided, (3, 3));
        assert_eq!(directory.look_ahead(&look).await.unwrap_err(), LccRefusal::NotFound);
        let look = DirectoryOp::Lookup { name: Bytes::from_static(b"file-3") };
        let other = directory.clone();
        let others = tokio::task::spawn_local(async move { other.look_decided(&look).await });
        settle().await;
        assert!(!others.is_finished(), "its batch is on its way");
        assert!(names(&group).await.is_empty());
        while !others.is_finished() {
            group.decide();
            settle().await;
        }
        assert!(others.await.unwrap().is_ok());
        directory.all_decided().await.unwrap();
        assert_eq!(counted(directory.look(&own).unwrap()), undecided);
        assert_eq!(names(&group).await.len(), 3);
        assert!(!losses.take(DeviceId(10)));
    });
}

#[test] // Proves: W-9. B4.
fn what_was_answered_ahead_and_is_lost_is_told_once() {
    run(async {
        let group = MemoryGroup::new(directory_layout(10));
        let directory = begun(&group).await;
        group.0.borrow_mut().refuse_next = Some(LccRefusal::NoSpace);
        let losses = Losses::default();
        let ahead = Some(losses.clone());
        directory.clone().change(create(1, 0, false), around(1), ahead).await.unwrap();
        assert_eq!(directory.all_decided().await.unwrap_err(), LccRefusal::NoSpace);
        assert!(directory.has_failed());
        assert!(losses.take(DeviceId(10)));
        assert!(!losses.take(DeviceId(10)));
        // One that was decided in time is none.
        let directory = Directory::load(group.clone()).await.unwrap();
        let ahead = Some(losses.clone());
        directory.clone().change(create(2, 0, false), around(2), ahead).await.unwrap();
        directory.all_decided().await.unwrap();
        group.0.borrow_mut().refuse_next = Some(LccRefusal::NoSpace);
        assert!(directory.clone().change(create(3, 0, false), around(3), None).await.is_err());
        assert!(!losses.take(DeviceId(10)), "who waited was told");
    });
}

#[test] // Proves: W-9. B5.
fn what_was_answered_ahead_waits_for_a_lease_and_for_portions() {
    run(async {
        let group = MemoryGroup::new(directory_layout(10));
        let directory = begun(&group).await;
        let losses = Losses::default();
        let ahead = || Some(losses.clone());
        // The lease is over while the batch is on its way, and while another one is to begin.
        group.0.borrow_mut().held = Some(VecDeque::new());
        directory.clone().change(create(1, 0, false), around(1), ahead()).await.unwrap();
        directory.want(directory.ahead.get());
        settle().await;
        assert_eq!(group.0.borrow().held.as_ref().map(VecDeque::len), Some(1));
        directory.clone().change(create(2, 0, false), around(2), ahead()).await.unwrap();
        let waits = directory.clone();
        let waits = tokio::task::spawn_local(async move {
            waits.change(create(3, 0, false), around(3), None).await
        });
        settle().await;
        group.0.borrow_mut().refusal = Some(LccRefusal::NotOwner { owner: None });
        group.0.borrow_mut().refuse_next = Some(LccRefusal::NotOwner { owner: None });
        group.decide();
        settle().await;
        assert!(!directory.has_failed());
        let refused = directory.clone().change(create(4, 0, false), around(4), ahead()).await;
        assert_eq!(refused.unwrap_err(), LccRefusal::NotOwner { owner: None });
        while group.0.borrow().held.as_ref().is_none_or(VecDeque::is_empty) {
            sleep(Duration::from_millis(5)).await;
        }
        group.decide();
        assert_eq!(waits.await.unwrap().unwrap_err(), LccRefusal::OutcomeUnknown);
        group.0.borrow_mut().refusal = None;
        assert_eq!(names(&group).await.len(), 3);
        // A portion that is away is waited for.
        group.0.borrow_mut().held = None;
        let reason = "a portion is away".into();
        group.0.borrow_mut().refuse_next = Some(LccRefusal::Unavailable { reason });
        directory.clone().change(create(5, 0, false), around(5), ahead()).await.unwrap();
        directory.all_decided().await.unwrap();
        assert_eq!(names(&group).await.len(), 4);
        assert!(!losses.take(DeviceId(10)));
        // Not where the group is another's.
        group.0.borrow_mut().refuse_next = Some(LccRefusal::NotOwner { owner: None });
        group.0.borrow_mut().is_alive = false;
        directory.clone().change(create(6, 0, false), around(6), ahead()).await.unwrap();
        assert!(directory.all_decided().await.is_err());
        assert!(losses.take(DeviceId(10)));
    });
}
