//! A small owner for tests: makes records and asks an I/O server.
#![allow(dead_code, clippy::unwrap_used)]

pub mod disk;

use std::path::Path;
use std::rc::Rc;

use braid_env::{Env, Payload};
use braid_io_server::{DiskIdentity, IoConfig, IoServer, Limits, crc32c, format_disk};
use braid_terms::{
    BLOCK_SIZE, ClusterId, DeviceId, DiskId, GrantNumber, GroupLayout, Incarnation,
    JournalPosition, LayoutGeneration, PortionIndex, RaidScheme, ServerId, WriteNumber,
};
use braid_wire::io::*;
use bytes::Bytes;

pub const IDENTITY: DiskIdentity =
    DiskIdentity { cluster: ClusterId(1), disk: DiskId(2), identity: 77 };

pub fn config(path: &Path) -> IoConfig {
    IoConfig {
        disk: IDENTITY.disk,
        folder: path.to_owned(),
        cluster: IDENTITY.cluster,
        server: ServerId(1),
        listen: Vec::new(),
        coordinators: Vec::new(),
        limits: Limits {
            reserve_bytes: 1 << 20,
            direct_blocks_min: 4,
            uncached_blocks_min: 6,
            ..Limits::default()
        },
    }
}

pub async fn format(env: &Env, path: &Path) {
    format_disk(env, path, IDENTITY).await.unwrap();
}

/// A started I/O server; dropping it is the end of its process.
pub struct Started {
    pub server: IoServer,
    task: tokio::task::JoinHandle<()>,
}

impl std::ops::Deref for Started {
    type Target = IoServer;

    fn deref(&self) -> &IoServer {
        &self.server
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts with an incarnation; syncs run in a task of their own.
pub async fn start(env: &Env, path: &Path, incarnation: u64) -> Started {
    start_with(env, &config(path), incarnation).await
}

pub async fn start_with(env: &Env, config: &IoConfig, incarnation: u64) -> Started {
    // An earlier one that was dropped lets go of the disk when its task is.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let server = IoServer::start(env, config).await.unwrap();
    server.serve_alone(Incarnation(incarnation));
    let maintained = server.clone();
    let task = tokio::task::spawn_local(async move {
        let _ = maintained.maintain().await;
    });
    Started { server, task }
}

pub fn layout(device: u64) -> GroupLayout {
    GroupLayout {
        devices: vec![DeviceId(device)],
        scheme: RaidScheme::Raid1 { copies: 2 },
        strip_size: 65536,
        generation: LayoutGeneration(1),
        disks: vec![DiskId(2), DiskId(3)],
    }
}

pub fn grant(counter: u64) -> GrantNumber {
    GrantNumber { term: 1, counter }
}

pub fn number(counter: u64, sequence: u64) -> WriteNumber {
    WriteNumber { grant: grant(counter), sequence }
}

/// Speaks for one group under one grant.
#[derive(Clone)]
pub struct Owner {
    pub server: Rc<IoServer>,
    pub device: u64,
    pub grant: u64,
    pub incarnation: u64,
}

pub fn block(seed: u64) -> Vec<u8> {
    (0..BLOCK_SIZE as u64).map(|at| (seed.wrapping_mul(31) + at * 7 + at / 256) as u8).collect()
}

pub fn blocks(seed: u64, count: u64) -> Vec<u8> {
    (0..count).flat_map(|index| block(seed + index)).collect()
}

pub fn write(first: u64, bytes: &[u8]) -> Change {
    Change::Write { device_index: 0, first, crcs: bytes.chunks(BLOCK_SIZE).map(crc32c).collect() }
}

pub fn record(number: WriteNumber, prev: WriteNumber, changes: Vec<Change>) -> Record {
    let footprints = changes
        .iter()
        .map(|change| Footprint {
            slots: 3,
            range: match change {
                Change::Write { first, crcs, .. } => {
                    BlockRange { device_index: 0, first: *first, count: crcs.len() as u64 }
                }
                Change::Punch(range) => *range,
            },
        })
        .collect();
    Record {
        number,
        prev,
        writer: Incarnation(5),
        kind: RecordKind::Write,
        participants: vec![
            Participant { slot: PortionIndex(1), incarnation: Incarnation(1) },
            Participant { slot: PortionIndex(2), incarnation: Incarnation(1) },
        ],
        footprints,
        lengths: vec![number.sequence * 4096],
        existing: 3,
        ends: Vec::new(),
        operation: None,
        operations: None,
        changes,
    }
}

impl Owner {
    pub fn new(server: &IoServer, device: u64, grant: u64, incarnation: u64) -> Self {
        Self { server: Rc::new(server.clone()), device, grant, incarnation }
    }

    pub fn fence(&self) -> Fence {
        Fence {
            group: DeviceId(self.device),
            slot: PortionIndex(1),
            grant: grant(self.grant),
            incarnation: Incarnation(self.incarnation),
        }
    }

    pub async fn ask(
        &self,
        request: IoRequest,
        payload: &[u8],
    ) -> (Result<IoReply, IoRefusal>, Payload) {
        self.server.handle(request, Bytes::copy_from_slice(payload)).await
    }

    pub async fn open(&self) -> Result<Report, IoRefusal> {
        self.open_with(Vec::new()).await
    }

    pub async fn open_with(&self, absent: Vec<Absent>) -> Result<Report, IoRefusal> {
        let open = Open {
            fence: self.fence(),
            writer: Incarnation(5),
            layout: layout(self.device),
            absent,
        };
        report(self.ask(IoRequest::Open(Box::new(open)), &[]).await.0)
    }

    pub async fn inspect(&self) -> Result<Report, IoRefusal> {
        report(self.ask(IoRequest::Inspect { fence: self.fence() }, &[]).await.0)
    }

    pub async fn prepare(
        &self,
        record: Record,
        payload: &[u8],
        decided: WriteNumber,
        stable: WriteNumber,
    ) -> Result<JournalPosition, IoRefusal> {
        let create = (record.prev == WriteNumber::NONE).then(|| {
            Box::new(Create {
                writer: Incarnation(5),
                layout: layout(self.device),
                home: DeviceId(9),
            })
        });
        let fence = self.fence();
        let prepare = Prepare { fence, record, create, decided, stable };
        match self.ask(IoRequest::Prepare(Box::new(prepare)), payload).await.0? {
            IoReply::Promised { position, .. } => Ok(position),
            other => panic!("{other:?}"),
        }
    }

    pub async fn marks(&self, decided: WriteNumber, stable: WriteNumber, absent: Vec<Absent>) {
        let marks = GroupMarks {
            group: DeviceId(self.device),
            slot: PortionIndex(1),
            grant: grant(self.grant),
            decided,
            stable,
            absent,
        };
        let incarnation = Incarnation(self.incarnation);
        let request = IoRequest::Marks { incarnation, groups: vec![marks] };
        match self.ask(request, &[]).await.0 {
            Ok(IoReply::Marked { refused, .. }) => assert!(refused.is_empty()),
            other => panic!("{other:?}"),
        }
    }

    pub async fn sync(&self) -> JournalPosition {
        let incarnation = Incarnation(self.incarnation);
        let position = JournalPosition(u64::MAX);
        match self.ask(IoRequest::Sync { incarnation, position }, &[]).await.0 {
            Ok(IoReply::Synced { synced }) => synced,
            other => panic!("{other:?}"),
        }
    }

    /// Reads blocks and verifies them: zeros where there are none.
    pub async fn read(
        &self,
        decided: WriteNumber,
        first: u64,
        count: u64,
    ) -> Result<Vec<u8>, IoRefusal> {
        let ranges = vec![BlockRange { device_index: 0, first, count }];
        let read = Read { fence: self.fence(), decided, ranges };
        let (reply, payload) = self.ask(IoRequest::Read(Box::new(read)), &[]).await;
        let IoReply::Blocks { crcs } = reply? else { panic!("no blocks") };
        let bytes = payload.into_bytes();
        let mut present = bytes.chunks(BLOCK_SIZE);
        let mut found = Vec::new();
        for crc in crcs {
            match crc {
                None => found.extend_from_slice(&[0; BLOCK_SIZE]),
                Some(crc) => {
                    let block = present.next().expect("bytes of each present block");
                    assert_eq!(crc32c(block), crc, "the block does not fit its checksum");
                    found.extend_from_slice(block);
                }
            }
        }
        assert!(present.next().is_none());
        Ok(found)
    }
}

pub fn report(reply: Result<IoReply, IoRefusal>) -> Result<Report, IoRefusal> {
    match reply? {
        IoReply::Report(report) => Ok(*report),
        other => panic!("{other:?}"),
    }
}

pub fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}
