//! A store in this process's memory: the mount without a cluster.
//!
//! For tests, and to measure what the mount itself costs. It follows the rules of an owner as far as
//! the mount can tell the difference; clones share one state, as two mounts share a cluster.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use braid_client::{Change, Grant, Notice, Pins};
use braid_env::Payload;
use braid_terms::{
    AckMode, DataType, DeviceId, DiskId, GroupLayout, LayoutGeneration, RaidScheme, WriteNumber,
};
use braid_wire::lcc::{
    AttributeChanges, Attributes, DeviceLength, DirectoryEntry, DirectoryOp, FileData, FileKind,
    FileLock, FileOp, FileTime, IfExists, LccRefusal, LccReply, NewAttributes, OperationId,
    SetTime,
};
use braid_wire::locks::LockTable;
use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::clock::{lease_now, wall};
use crate::errno::Errno;
use crate::store::{Right, Space, Store, StoreError};

/// See the head of this file.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    counter: AtomicU64,
    /// Reads of devices.
    reads: AtomicU64,
    /// Writes of bytes fail from now on, for tests.
    broken: std::sync::atomic::AtomicBool,
    /// Nobody may keep copies, for tests.
    without_copies: std::sync::atomic::AtomicBool,
    /// Writes of bytes wait for permits of it, for tests.
    gate: Mutex<Option<Arc<Semaphore>>>,
    /// Writes of bytes that were asked for.
    writes: AtomicU64,
}

#[derive(Default)]
struct Inner {
    /// As of the last operation that was not answered ahead, if one was since.
    decided: Option<BTreeMap<DeviceId, Directory>>,
    directories: BTreeMap<DeviceId, Directory>,
    devices: BTreeMap<DeviceId, Device>,
    next_device: u64,
    locks: LockTable,
}

#[derive(Clone, Default)]
struct Directory {
    names: BTreeMap<Bytes, DirectoryEntry>,
    cookies: BTreeMap<u64, Bytes>,
    next_cookie: u64,
    records: BTreeMap<DeviceId, Attributes>,
    parent: Option<GroupLayout>,
    retired: bool,
}

/// Bytes of a device in pieces of `PIECE`; a missing one is a hole.
#[derive(Default)]
struct Device {
    pieces: BTreeMap<u64, Vec<u8>>,
    length: u64,
    /// Counts the changes.
    number: WriteNumber,
    /// It has changes that nobody waited to be stable for.
    is_unstable: bool,
}

const PIECE: u64 = 64 << 10;
const ROOT: DeviceId = DeviceId(1_000);

type Answer = Result<LccReply, LccRefusal>;

impl Default for MemoryStore {
    fn default() -> Self {
        let mut inner = Inner { next_device: 2_000, ..Inner::default() };
        let mut root = Directory { next_cookie: 1, ..Directory::default() };
        let new = NewAttributes {
            id: None,
            kind: FileKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            made: None,
            atime: None,
            mtime: None,
            rdev: 0,
            data: FileData::None,
            size: 0,
            target: None,
            xattrs: Vec::new(),
        };
        root.records.insert(ROOT, record(ROOT, new));
        root.parent = Some(directory_layout(ROOT));
        inner.directories.insert(ROOT, root);
        Self {
            shared: Arc::new(Shared {
                inner: Mutex::new(inner),
                counter: AtomicU64::new(1),
                reads: AtomicU64::new(0),
                broken: std::sync::atomic::AtomicBool::new(false),
                without_copies: std::sync::atomic::AtomicBool::new(false),
                gate: Mutex::default(),
                writes: AtomicU64::new(0),
            }),
        }
    }
}

impl MemoryStore {
    /// From now on, writes of bytes to devices are refused (or not).
    pub fn set_broken(&self, broken: bool) {
        self.shared.broken.store(broken, Ordering::Relaxed);
    }

    /// From now on nobody may keep copies, as where an owner gives no lease.
    pub fn end_copies(&self) {
        self.shared.without_copies.store(true, Ordering::Relaxed);
    }

    /// From now on each write of bytes waits for a permit of what this gives.
    pub fn hold_writes(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.shared.gate.lock().expect("no holder panics") = Some(gate.clone());
        gate
    }

    /// Writes of bytes that were asked for so far.
    pub fn writes(&self) -> u64 {
        self.shared.writes.load(Ordering::Relaxed)
    }

    /// The size that the record of a file says, by its name in the root.
    pub fn size_of(&self, name: &str) -> Option<u64> {
        let inner = self.shared.inner.lock().expect("no holder panics");
        let root = inner.directories.get(&ROOT)?;
        Some(root.records.get(&root.names.get(name.as_bytes())?.id)?.size)
    }

    /// What was answered ahead is lost, as where an owner is gone.
    pub fn lose_ahead(&self) {
        let mut inner = self.shared.inner.lock().expect("no holder panics");
        if let Some(decided) = inner.decided.take() {
            inner.directories = decided;
        }
    }

    /// Reads of devices so far.
    pub fn reads(&self) -> u64 {
        self.shared.reads.load(Ordering::Relaxed)
    }

    /// Devices with changes that are not stable: what a power cut of the site could take.
    pub fn unstable(&self) -> usize {
        let inner = self.shared.inner.lock().expect("no holder panics");
        inner.devices.values().filter(|device| device.is_unstable).count()
    }

    /// Devices that have bytes, and records of all directories: what a removal must bring down.
    pub fn counts(&self) -> (usize, usize) {
        let inner = self.shared.inner.lock().expect("no holder panics");
        let records = inner.directories.values().map(|directory| directory.records.len()).sum();
        (inner.devices.len(), records)
    }
}

impl MemoryStore {
    /// As an owner does: not for ever.
    async fn wait_for_lock(&self, lock: FileLock) -> LccReply {
        for _ in 0..100 {
            let got = self.shared.inner.lock().expect("no holder panics").locks.lock(lock);
            match got {
                Ok(()) => return LccReply::Lock(None),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(2)).await,
            }
        }
        let inner = self.shared.inner.lock().expect("no holder panics");
        LccReply::Lock(inner.locks.conflict(&lock))
    }
}

impl Store for MemoryStore {
    async fn root(&self) -> Result<GroupLayout, StoreError> {
        Ok(directory_layout(ROOT))
    }

    async fn directory(
        &self,
        group: &GroupLayout,
        op: DirectoryOp,
    ) -> Result<(LccReply, Right), StoreError> {
        if let DirectoryOp::Lock { lock, wait: true } = op {
            return Ok((self.wait_for_lock(lock).await, None));
        }
        let mut inner = self.shared.inner.lock().expect("no holder panics");
        inner.decided = None;
        let reply = inner.directory(group.group(), op);
        let reply = reply.map_err(|refusal| StoreError::Refused(errno(&refusal)))?;
        Ok((reply, self.right(group.group())))
    }

    async fn directory_soon(
        &self,
        group: &GroupLayout,
        op: DirectoryOp,
    ) -> Result<(LccReply, Right), StoreError> {
        let decided = {
            let mut inner = self.shared.inner.lock().expect("no holder panics");
            inner.decided.take().unwrap_or_else(|| inner.directories.clone())
        };
        let answer = self.directory(group, op).await;
        self.shared.inner.lock().expect("no holder panics").decided = Some(decided);
        answer
    }

    fn right(&self, _: DeviceId) -> Right {
        if self.shared.without_copies.load(Ordering::Relaxed) {
            return None;
        }
        // Nothing is recalled here: it is believed for a second.
        Some(Grant::until(lease_now() + Duration::from_secs(1)))
    }

    fn pins(&self) -> Arc<Pins> {
        Arc::default()
    }

    fn drop_lost(&self) {}

    fn notice_now(&self) -> Option<Notice> {
        None
    }

    async fn notice(&self) -> Option<Notice> {
        None
    }

    fn change(&self, _: &GroupLayout, _: &FileOp) -> Option<Change> {
        None
    }

    async fn file(
        &self,
        group: &GroupLayout,
        op: FileOp,
        _: Option<&Change>,
        payload: Payload,
    ) -> Result<(LccReply, Bytes), StoreError> {
        let changes = matches!(op, FileOp::Write { .. } | FileOp::WriteMany { .. });
        let gate = self.shared.gate.lock().expect("no holder panics").clone();
        if let Some(gate) = gate.filter(|_| changes) {
            self.shared.writes.fetch_add(1, Ordering::Relaxed);
            gate.acquire().await.expect("it is never closed").forget();
        }
        if changes && self.shared.broken.load(Ordering::Relaxed) {
            return Err(StoreError::Refused(Errno::NOSPC));
        }
        if matches!(op, FileOp::Read { .. }) {
            self.shared.reads.fetch_add(1, Ordering::Relaxed);
        }
        let mut inner = self.shared.inner.lock().expect("no holder panics");
        let device = inner.devices.entry(group.group()).or_default();
        Ok(device.file(op, &payload))
    }

    async fn new_device(
        &self,
        data_type: DataType,
        _: Option<String>,
    ) -> Result<GroupLayout, StoreError> {
        let mut inner = self.shared.inner.lock().expect("no holder panics");
        if data_type == DataType::File {
            return Ok(inner.file_layout());
        }
        inner.next_device += 2;
        Ok(directory_layout(DeviceId(inner.next_device)))
    }

    async fn ack(&self, _: Option<String>) -> AckMode {
        AckMode::Cluster
    }

    fn ready_device(&self) -> Option<GroupLayout> {
        let mut inner = self.shared.inner.lock().expect("no holder panics");
        Some(inner.file_layout())
    }

    fn session(&self) -> u64 {
        self.shared.counter.fetch_add(1, Ordering::Relaxed)
    }

    fn operation(&self) -> OperationId {
        OperationId { client: 1, counter: self.shared.counter.fetch_add(1, Ordering::Relaxed) }
    }

    async fn space(&self) -> Result<Space, StoreError> {
        Ok(Space { total: 1 << 40, free: 1 << 39 })
    }
}

fn errno(refusal: &LccRefusal) -> Errno {
    match refusal {
        LccRefusal::NotFound | LccRefusal::Retired => Errno::NOENT,
        LccRefusal::Exists { .. } => Errno::EXIST,
        LccRefusal::IsDirectory => Errno::ISDIR,
        LccRefusal::NotDirectory => Errno::NOTDIR,
        LccRefusal::NotEmpty => Errno::NOTEMPTY,
        LccRefusal::Conflict => Errno::STALE,
        LccRefusal::BadRequest { .. } => Errno::INVAL,
        _ => Errno::IO,
    }
}

fn directory_layout(id: DeviceId) -> GroupLayout {
    GroupLayout {
        devices: vec![id, DeviceId(id.0 + 1)],
        scheme: RaidScheme::Raid1 { copies: 3 },
        strip_size: 64 << 10,
        generation: LayoutGeneration(1),
        disks: vec![DiskId(1), DiskId(2), DiskId(3)],
    }
}

fn record(id: DeviceId, new: NewAttributes) -> Attributes {
    let made = new.made.unwrap_or_else(wall);
    assert!(new.kind == FileKind::File || new.size == 0, "only a file is made with a size");
    Attributes {
        id,
        kind: new.kind,
        mode: new.mode,
        uid: new.uid,
        gid: new.gid,
        size: new.target.as_ref().map_or(new.size, |target| target.len() as u64),
        nlink: 1,
        atime: new.atime.unwrap_or(made),
        mtime: new.mtime.unwrap_or(made),
        ctime: made,
        btime: made,
        rdev: new.rdev,
        version: 1,
        writers: 0,
        size_number: WriteNumber::NONE,
        data: new.data,
        target: new.target,
        xattrs: new.xattrs,
    }
}

impl Inner {
    fn file_layout(&mut self) -> GroupLayout {
        self.next_device += 2;
        let mut layout = directory_layout(DeviceId(self.next_device));
        layout.devices.truncate(1);
        layout.scheme = RaidScheme::Rs { data: 4, parity: 2 };
        layout.disks = (1..=6).map(DiskId).collect();
        layout
    }

    fn directory(&mut self, id: DeviceId, op: DirectoryOp) -> Answer {
        if let DirectoryOp::Begin { attributes, parent, .. } = op {
            let mut made =
                Directory { next_cookie: 1, parent: Some(parent), ..Directory::default() };
            made.records.insert(id, record(id, attributes));
            self.directories.insert(id, made);
            return self.own(id);
        }
        match op {
            DirectoryOp::Lock { lock, .. } => {
                return Ok(LccReply::Lock(self.locks.lock(lock).err()));
            }
            DirectoryOp::TestLock { lock } => {
                return Ok(LccReply::Lock(self.locks.conflict(&lock)));
            }
            DirectoryOp::Unlock { lock } => {
                self.locks.unlock(&lock);
                return Ok(LccReply::Done);
            }
            DirectoryOp::Unlink { name, only_id, keep, directory, .. } => {
                return self.unlink(id, &name, only_id, (keep, directory));
            }
            DirectoryOp::Rename { .. } => return self.rename(id, op),
            DirectoryOp::Link { name, id: file, kind, home, .. } => {
                let at = home.group();
                if !self.directories.get(&at).is_some_and(|d| d.records.contains_key(&file)) {
                    return Err(LccRefusal::NotFound);
                }
                let home = (at != id).then_some(home);
                let entry = DirectoryEntry { name, id: file, kind, home, cookie: 0 };
                let directory = self.live(id)?;
                check_free(directory, &entry.name)?;
                let entry = directory.put(entry);
                directory.touch(id);
                self.count(at, file, 1, false);
                return Ok(self.directories[&id].entry_reply(entry));
            }
            DirectoryOp::KeepLocks { locks, .. } => {
                let lost = locks.into_iter().filter(|lock| self.locks.lock(*lock).is_err());
                return Ok(LccReply::LostLocks(lost.collect()));
            }
            _ => {}
        }
        let new_id = DeviceId(self.next_device + 2);
        self.next_device += 2;
        let replaced = match &op {
            DirectoryOp::Create { name, .. } => {
                self.directories.get(&id).and_then(|d| d.names.get(name))
            }
            _ => None,
        };
        let replaced = replaced.cloned();
        let mut directory = self.directories.remove(&id).ok_or(LccRefusal::NotFound)?;
        let answer = directory.change(id, new_id, op, &mut self.devices);
        self.directories.insert(id, directory);
        if let (Ok(_), Some(old)) = (&answer, replaced) {
            self.count(home_of(&old, id), old.id, -1, false);
        }
        match answer {
            Ok(LccReply::Attributes(record)) if record.id == id => self.own(id),
            answer => answer,
        }
    }

    fn own(&self, id: DeviceId) -> Answer {
        let directory = &self.directories[&id];
        let mut own = directory.records[&id].clone();
        own.size = directory.names.len() as u64;
        let is_directory = |entry: &&DirectoryEntry| entry.kind == FileKind::Directory;
        own.nlink = 2 + directory.names.values().filter(is_directory).count() as u32;
        Ok(LccReply::Attributes(Box::new(own)))
    }
}

/// Names that concern several directories.
impl Inner {
    fn live(&mut self, id: DeviceId) -> Result<&mut Directory, LccRefusal> {
        let directory = self.directories.get_mut(&id).ok_or(LccRefusal::NotFound)?;
        directory.check_live()?;
        Ok(directory)
    }

    fn entry(&self, directory: DeviceId, name: &Bytes) -> Result<DirectoryEntry, LccRefusal> {
        let directory = self.directories.get(&directory).ok_or(LccRefusal::NotFound)?;
        directory.names.get(name).cloned().ok_or(LccRefusal::NotFound)
    }

    fn count(&mut self, home: DeviceId, id: DeviceId, by: i32, keep_last: bool) {
        let Some(directory) = self.directories.get_mut(&home) else { return };
        let is_last = directory.records.get(&id).is_some_and(|record| record.nlink == 1);
        if !(keep_last && is_last && by < 0) {
            directory.count(id, by, &mut self.devices);
        }
    }

    /// What an entry named loses a name; its record of before, if it is a file.
    fn lose(
        &mut self,
        directory: DeviceId,
        entry: &DirectoryEntry,
        keep_last: bool,
    ) -> Result<Option<Box<Attributes>>, LccRefusal> {
        let home = home_of(entry, directory);
        if entry.kind == FileKind::Directory {
            if let Some(ended) = self.directories.get_mut(&home) {
                if !ended.names.is_empty() {
                    return Err(LccRefusal::NotEmpty);
                }
                ended.retired = true;
            }
            return Ok(None);
        }
        let record = self.directories.get(&home).and_then(|d| d.records.get(&entry.id)).cloned();
        self.count(home, entry.id, -1, keep_last);
        Ok(record.map(Box::new))
    }

    fn unlink(
        &mut self,
        id: DeviceId,
        name: &Bytes,
        only_id: Option<DeviceId>,
        (keep, is_directory): (bool, bool),
    ) -> Answer {
        let entry = self.entry(id, name)?;
        if only_id.is_some_and(|id| id != entry.id) {
            return Err(LccRefusal::Conflict);
        }
        match (entry.kind == FileKind::Directory, is_directory) {
            (true, false) => return Err(LccRefusal::IsDirectory),
            (false, true) => return Err(LccRefusal::NotDirectory),
            _ => {}
        }
        let before = self.lose(id, &entry, keep)?;
        let directory = self.directories.get_mut(&id).expect("it has the name");
        directory.take(name);
        directory.touch(id);
        removed(Some(entry), before)
    }

    fn rename(&mut self, id: DeviceId, op: DirectoryOp) -> Answer {
        let DirectoryOp::Rename {
            from, target, to, exchange, if_exists, only_replaces, keep, ..
        } = op
        else {
            unreachable!("asked for a rename only");
        };
        let into = target.as_ref().map_or(id, GroupLayout::group);
        self.live(id)?;
        self.live(into)?;
        let moved = self.entry(id, &from)?;
        let taken = self.entry(into, &to).ok();
        let back = if exchange { Some(taken.clone().ok_or(LccRefusal::NotFound)?) } else { None };
        if only_replaces.is_some() && only_replaces != taken.as_ref().map(|taken| taken.id) {
            return Err(LccRefusal::Conflict);
        }
        if let Some(taken) = &taken {
            if !exchange {
                check_replace(&moved, taken, if_exists)?;
            }
            if taken.id == moved.id {
                return removed(None, None);
            }
        }
        self.check_not_below(&moved, into)?;
        if let Some(back) = &back {
            self.check_not_below(back, id)?;
        }
        let replaced = taken.filter(|_| !exchange);
        let before = match &replaced {
            Some(replaced) => self.lose(into, replaced, keep)?,
            None => None,
        };
        self.live(id)?.take(&from);
        self.enter(moved, id, (into, &to));
        if let Some(back) = back {
            self.enter(back, into, (id, &from));
        }
        self.live(id)?.touch(id);
        self.live(into)?.touch(into);
        removed(replaced, before)
    }

    /// Something that was in `from` gets this name.
    fn enter(&mut self, entry: DirectoryEntry, from: DeviceId, (into, name): (DeviceId, &Bytes)) {
        let home = home_of(&entry, from);
        let is_directory = entry.kind == FileKind::Directory;
        let kept_at = entry.home.clone().unwrap_or_else(|| directory_layout(from));
        let kept_at = (is_directory || home != into).then_some(kept_at);
        let moved = DirectoryEntry { name: name.clone(), home: kept_at, ..entry };
        if let Some(home) = self.directories.get_mut(&home) {
            if is_directory {
                home.parent = Some(directory_layout(into));
            }
            if let Some(record) = home.records.get_mut(&moved.id) {
                record.ctime = wall();
                record.version += 1;
            }
        }
        self.directories.get_mut(&into).expect("it is live").put(moved);
    }

    fn check_not_below(&self, moved: &DirectoryEntry, into: DeviceId) -> Result<(), LccRefusal> {
        if moved.kind != FileKind::Directory {
            return Ok(());
        }
        let mut at = into;
        loop {
            if at == moved.id {
                return Err(LccRefusal::BadRequest { reason: "below itself".into() });
            }
            match self.directories.get(&at).and_then(|d| d.parent.as_ref()) {
                Some(parent) if parent.group() != at => at = parent.group(),
                _ => return Ok(()),
            }
        }
    }
}

type Devices = BTreeMap<DeviceId, Device>;

impl Directory {
    fn change(
        &mut self,
        own: DeviceId,
        new_id: DeviceId,
        op: DirectoryOp,
        devices: &mut Devices,
    ) -> Answer {
        match op {
            DirectoryOp::Lookup { name } => {
                let entry = self.names.get(&name).cloned().ok_or(LccRefusal::NotFound)?;
                Ok(self.entry_reply(entry))
            }
            DirectoryOp::List { after, limit, attributes } => {
                Ok(self.list(after, limit, attributes))
            }
            DirectoryOp::Create { name, attributes, if_exists, .. } => {
                self.check_live()?;
                let new_id = attributes.id.unwrap_or(new_id);
                if self.records.contains_key(&new_id) {
                    return Err(LccRefusal::Conflict);
                }
                let entry = DirectoryEntry {
                    name,
                    id: new_id,
                    kind: attributes.kind,
                    home: None,
                    cookie: 0,
                };
                if let Some(old) = self.names.get(&entry.name) {
                    check_replace(&entry, old, if_exists)?;
                }
                self.records.insert(new_id, record(new_id, attributes));
                if entry.name.is_empty() {
                    return Ok(self.entry_reply(entry));
                }
                let entry = self.put(entry);
                self.touch(own);
                Ok(self.entry_reply(entry))
            }
            DirectoryOp::Enter { name, id, kind, home, .. } => {
                self.check_live()?;
                let home = (home.group() != own).then_some(home);
                check_free(self, &name)?;
                let entry = self.put(DirectoryEntry { name, id, kind, home, cookie: 0 });
                self.touch(own);
                Ok(self.entry_reply(entry))
            }
            DirectoryOp::GetAttributes { id } => {
                let record = self.records.get(&id).cloned().ok_or(LccRefusal::NotFound)?;
                Ok(LccReply::Attributes(Box::new(record)))
            }
            DirectoryOp::SetAttributes { id, changes, .. } => self.set(id, changes, devices),
            DirectoryOp::Retire { .. } => {
                if !self.names.is_empty() {
                    return Err(LccRefusal::NotEmpty);
                }
                self.retired = true;
                Ok(LccReply::Done)
            }
            DirectoryOp::Parent => Ok(LccReply::Layouts(self.parent.iter().cloned().collect())),
            _ => Ok(LccReply::Done),
        }
    }

    fn check_live(&self) -> Result<(), LccRefusal> {
        if self.retired { Err(LccRefusal::Retired) } else { Ok(()) }
    }

    fn kept_here(&self, entry: &DirectoryEntry) -> Option<Box<Attributes>> {
        match entry.home {
            None => self.records.get(&entry.id).cloned().map(Box::new),
            Some(_) => None,
        }
    }

    fn entry_reply(&self, entry: DirectoryEntry) -> LccReply {
        LccReply::Entry { attributes: self.kept_here(&entry), entry }
    }

    fn touch(&mut self, own: DeviceId) {
        let record = self.records.get_mut(&own).expect("it was begun");
        record.mtime = wall();
        record.ctime = record.mtime;
        record.version += 1;
    }

    fn put(&mut self, mut entry: DirectoryEntry) -> DirectoryEntry {
        self.take(&entry.name.clone());
        entry.cookie = self.next_cookie;
        self.next_cookie += 1;
        self.cookies.insert(entry.cookie, entry.name.clone());
        self.names.insert(entry.name.clone(), entry.clone());
        entry
    }

    fn take(&mut self, name: &Bytes) {
        if let Some(old) = self.names.remove(name) {
            self.cookies.remove(&old.cookie);
        }
    }

    fn count(&mut self, id: DeviceId, change: i32, devices: &mut Devices) {
        let Some(record) = self.records.get_mut(&id) else { return };
        record.nlink = record.nlink.saturating_add_signed(change);
        record.ctime = wall();
        record.version += 1;
        if record.nlink == 0 {
            if let FileData::Device(layout) = &record.data {
                devices.remove(&layout.group());
            }
            self.records.remove(&id);
        }
    }

    fn list(&self, after: u64, limit: u32, attributes: bool) -> LccReply {
        let mut entries = Vec::new();
        for name in self.cookies.range(after + 1..).map(|(_, name)| name).take(limit as usize) {
            let entry = self.names[name].clone();
            let mut record = if attributes { self.kept_here(&entry).map(|r| *r) } else { None };
            if let Some(record) = &mut record
                && matches!(record.data, FileData::Inline(_))
            {
                record.data = FileData::None;
            }
            entries.push((entry, record));
        }
        let end = entries.len() < limit as usize;
        LccReply::Entries { entries, end }
    }

    fn set(&mut self, id: DeviceId, changes: AttributeChanges, devices: &mut Devices) -> Answer {
        let now = wall();
        let time = |set: Option<SetTime>, old: FileTime| match set {
            None => old,
            Some(SetTime::Now) => now,
            Some(SetTime::To(time)) => time,
        };
        let record = self.records.get_mut(&id).ok_or(LccRefusal::NotFound)?;
        if let Some((data, size)) = changes.data {
            match &data {
                FileData::None => assert_eq!(size, 0, "no bytes have no size"),
                FileData::Inline(bytes) => assert_eq!(size, bytes.len() as u64, "size of inline"),
                FileData::Device(_) => {}
            }
            if data.device() != record.device() {
                (record.writers, record.size_number) = (0, WriteNumber::NONE);
            }
            record.data = data;
            record.size = size;
            record.mtime = now;
        }
        if let Some(news) = changes.device
            && record.device().is_some_and(|layout| layout.group() == news.device)
        {
            record.writers = record.writers.saturating_add_signed(news.writers);
            if let Some(length) = news.length
                && record.size_number <= length.number
            {
                (record.size, record.size_number) = (length.bytes, length.number);
                record.mtime = now;
            }
        }
        record.mode = changes.mode.unwrap_or(record.mode);
        record.uid = changes.uid.unwrap_or(record.uid);
        record.gid = changes.gid.unwrap_or(record.gid);
        record.atime = time(changes.atime, record.atime);
        record.mtime = time(changes.mtime, record.mtime);
        record.ctime = now;
        record.version += 1;
        for name in &changes.remove_xattrs {
            record.xattrs.retain(|(key, _)| key != name);
        }
        for (name, value) in changes.set_xattrs {
            record.xattrs.retain(|(key, _)| *key != name);
            record.xattrs.push((name, value));
        }
        record.xattrs.sort();
        let mut shown = record.clone();
        if changes.nlink != 0 {
            shown.nlink = shown.nlink.saturating_add_signed(changes.nlink);
            let version = record.version;
            self.count(id, changes.nlink, devices);
            if let Some(record) = self.records.get_mut(&id) {
                record.version = version;
            }
        }
        Ok(LccReply::Attributes(Box::new(shown)))
    }
}

fn check_replace(
    source: &DirectoryEntry,
    target: &DirectoryEntry,
    if_exists: IfExists,
) -> Result<(), LccRefusal> {
    match (source.kind == FileKind::Directory, target.kind == FileKind::Directory) {
        _ if if_exists == IfExists::Fail => Err(LccRefusal::Exists { kind: target.kind }),
        _ if source.id == target.id => Ok(()),
        (false, false) | (true, true) => Ok(()),
        (false, true) => Err(LccRefusal::IsDirectory),
        (true, false) => Err(LccRefusal::NotDirectory),
    }
}

fn check_free(directory: &Directory, name: &Bytes) -> Result<(), LccRefusal> {
    match directory.names.get(name) {
        Some(old) => Err(LccRefusal::Exists { kind: old.kind }),
        None => Ok(()),
    }
}

fn home_of(entry: &DirectoryEntry, directory: DeviceId) -> DeviceId {
    entry.home.as_ref().map_or(directory, GroupLayout::group)
}

fn removed(entry: Option<DirectoryEntry>, attributes: Option<Box<Attributes>>) -> Answer {
    Ok(LccReply::Removed { entry, attributes })
}

impl Device {
    fn file(&mut self, op: FileOp, payload: &Payload) -> (LccReply, Bytes) {
        match &op {
            // A stable write is so with all before it.
            FileOp::Write { stable, .. } => self.is_unstable = !stable,
            FileOp::WriteMany { .. } | FileOp::Truncate { .. } | FileOp::Punch { .. } => {
                self.is_unstable = true;
            }
            FileOp::Sync { .. } => self.is_unstable = false,
            _ => {}
        }
        let reply = match op {
            FileOp::Write { mut at, append, .. } => {
                at = if append { self.length } else { at };
                let mut place = at;
                for piece in &payload.pieces {
                    self.put(place, piece);
                    place += piece.len() as u64;
                }
                self.length = self.length.max(place);
                self.number.sequence += 1;
                LccReply::Written { at, length: self.length_now() }
            }
            FileOp::Read { at, length, .. } => {
                let end = (at + u64::from(length)).min(self.length);
                let bytes = self.get(at, end.max(at));
                return (LccReply::Read { length: self.length }, bytes);
            }
            FileOp::Length | FileOp::Sync { .. } => LccReply::Length(self.length_now()),
            FileOp::Truncate { length, .. } => {
                self.zero(length, self.length.max(length));
                self.length = length;
                self.number.sequence += 1;
                LccReply::Length(self.length_now())
            }
            FileOp::Punch { at, length } => {
                self.zero(at, (at + length).min(self.length));
                self.number.sequence += 1;
                LccReply::Length(self.length_now())
            }
            FileOp::Seek { at, hole } => LccReply::Place(self.seek(at, hole)),
            // A store in memory has no local journals.
            FileOp::Remove | FileOp::LayCopy { .. } | FileOp::EndCopy { .. } => LccReply::Done,
            FileOp::WriteMany { parts, .. } => {
                let mut bytes = payload.clone().into_bytes();
                for (at, size) in &parts {
                    self.put(*at, &bytes.split_to(*size as usize));
                    self.length = self.length.max(at + u64::from(*size));
                }
                assert!(bytes.is_empty(), "all of it has a place");
                self.number.sequence += 1;
                LccReply::Written { at: parts[0].0, length: self.length_now() }
            }
        };
        (reply, Bytes::new())
    }

    fn length_now(&self) -> DeviceLength {
        DeviceLength { number: self.number, bytes: self.length }
    }

    fn put(&mut self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = at % PIECE;
            let (part, rest) = bytes.split_at(bytes.len().min((PIECE - within) as usize));
            let piece = self.pieces.entry(at / PIECE).or_insert_with(|| vec![0; PIECE as usize]);
            piece[within as usize..within as usize + part.len()].copy_from_slice(part);
            at += part.len() as u64;
            bytes = rest;
        }
    }

    fn get(&self, from: u64, to: u64) -> Bytes {
        let mut out = Vec::with_capacity((to - from) as usize);
        let mut at = from;
        while at < to {
            let within = at % PIECE;
            let len = (PIECE - within).min(to - at);
            match self.pieces.get(&(at / PIECE)) {
                Some(piece) => {
                    out.extend_from_slice(&piece[within as usize..(within + len) as usize]);
                }
                None => out.resize(out.len() + len as usize, 0),
            }
            at += len;
        }
        out.into()
    }

    fn zero(&mut self, from: u64, to: u64) {
        let touched: Vec<u64> =
            self.pieces.range(from / PIECE..).map(|(place, _)| *place).collect();
        for place in touched {
            let (start, end) = (place * PIECE, (place + 1) * PIECE);
            if start >= to {
                break;
            }
            if from <= start && end <= to {
                self.pieces.remove(&place);
            } else if let Some(piece) = self.pieces.get_mut(&place) {
                let (from, to) = (from.max(start) - start, to.min(end) - start);
                piece[from as usize..to as usize].fill(0);
            }
        }
    }

    fn seek(&self, at: u64, hole: bool) -> u64 {
        let mut at = at;
        while at < self.length && self.pieces.contains_key(&(at / PIECE)) == hole {
            at = (at / PIECE + 1) * PIECE;
        }
        at.min(self.length)
    }
}
