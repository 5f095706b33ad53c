//! The local journal of an LCC: writes that were answered and may not be in the cluster yet.
//! # Theory
//! ```text
//! keep()    record and bytes behind the newest segment -> one sync for all that wait -> answered
//! settle()  what the cluster has on its media is not needed: a segment without such records goes
//! start     the segments of former starts are read; what they keep is laid over the group, or
//!           found to be there (`group/copies.rs`, `files/copies.rs`)
//! ```
//! Bytes stay in the files: they are read again where they are laid.
//! # Invariants
//! L1 What `keep` answered is on the medium, until it is settled.
//! L2 A record is kept only under a fact that is recorded.
//! # Failure
//! A full disk, a failed write: that write is answered by the cluster. A failed sync: all are, as long as
//! this LCC lives. A folder that cannot be read at the start: nothing is kept here, and no fact of this
//! server is closed.
//! # Source
//! W-13, S-3, S-4.

pub(crate) mod format;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;

use braid_env::{Env, File, Folder, OpenMode};
use braid_terms::{DeviceId, FactNumber, GrantNumber, WriteNumber, planted};
use bytes::Bytes;
use tokio::sync::Notify;

use crate::DeviceWrite;
pub(crate) use format::{Copy, Identity};
use format::{SEGMENT_HEAD, crc32c_of, padding, parse, record, segment_head};

/// Why a write is not in the local journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NotKept;

/// The local journal of one LCC; without a folder it keeps nothing.
pub(crate) struct LocalJournal {
    identity: Identity,
    /// The folder of all LCCs of the server.
    folder: Option<Folder>,
    /// Below it, this LCC's.
    name: String,
    /// Held, so that no other process has it.
    _own: Option<Folder>,
    /// What was there at the start is known.
    is_known: bool,
    state: RefCell<State>,
    /// Told when something is to be laid.
    pub bell: Notify,
}

#[derive(Default)]
struct State {
    next_segment: u64,
    current: Option<Rc<Segment>>,
    /// Records that are needed, by segment.
    needed: BTreeMap<String, usize>,
    kept: BTreeMap<DeviceId, Vec<Kept>>,
    /// Bytes of all of them.
    bytes: usize,
    has_failed: bool,
}

/// A record that is needed.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    /// What it says.
    pub copy: Copy,
    /// It may not be laid over the device: it becomes a file of its own.
    pub is_conflict: bool,
    path: String,
    bytes_at: u64,
    length: u32,
    crc: u32,
}

impl Kept {
    /// The device byte behind its last one.
    pub fn end(&self) -> u64 {
        let ends = self.copy.parts.iter().map(|(at, size)| at + u64::from(*size));
        ends.max().unwrap_or(0)
    }
}

struct Segment {
    number: u64,
    path: String,
    folder: String,
    file: File,
    end: Cell<u64>,
    synced: Cell<u64>,
    is_syncing: Cell<bool>,
    has_failed: Cell<bool>,
    bell: Notify,
}

impl LocalJournal {
    /// Opens the local journal of an LCC, the `index`-th of `lccs`, and reads what former starts left;
    /// the first LCC takes over what LCCs have left that there are no more.
    pub fn open(env: &Env, folder: Option<&Path>, identity: Identity, place: (u8, u8)) -> Self {
        let mut journal = Self {
            identity,
            folder: None,
            name: format!("lcc-{}", place.0),
            _own: None,
            is_known: folder.is_none(),
            state: RefCell::default(),
            bell: Notify::new(),
        };
        if let Some(path) = folder {
            match journal.read(env, path, place) {
                Ok(()) => journal.is_known = true,
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "no local journal");
                    journal.folder = None;
                }
            }
        }
        journal
    }

    fn read(&mut self, env: &Env, path: &Path, (index, lccs): (u8, u8)) -> io::Result<()> {
        let folder = env.folder(path)?;
        folder.create_folder(&self.name)?;
        let own = env.folder(&path.join(&self.name))?;
        if !own.take_exclusively()? {
            return Err(io::Error::other("another process has it"));
        }
        self._own = Some(own);
        let is_ours = |name: &String| {
            let number = name.strip_prefix("lcc-").and_then(|number| number.parse::<u32>().ok());
            let left = |number: u32| index == 0 && u32::from(lccs) <= number;
            number.is_some_and(|number| number == u32::from(index) || left(number))
        };
        for lcc in folder.list("")?.iter().filter(|name| is_ours(name)) {
            for name in folder.list(lcc)? {
                let number = name.strip_suffix(".log").and_then(|name| name.parse::<u64>().ok());
                let Some(number) = number else { continue };
                if *lcc == self.name {
                    let state = self.state.get_mut();
                    state.next_segment = state.next_segment.max(number + 1);
                }
                self.read_segment(&folder, format!("{lcc}/{name}"), number)?;
            }
        }
        self.folder = Some(folder);
        let kept = self.state.get_mut().kept.values_mut();
        kept.for_each(|kept| kept.sort_by_key(|kept| kept.copy.number));
        self.bell.notify_one();
        Ok(())
    }

    fn read_segment(&mut self, folder: &Folder, path: String, number: u64) -> io::Result<()> {
        let parsed = parse(&folder.read_file(&path)?, self.identity, number);
        if parsed.is_damaged {
            tracing::error!(%path, "a local journal is damaged: answered writes may be lost");
        }
        if parsed.records.is_empty() {
            // One that is damaged stays, for people.
            return if parsed.is_damaged { Ok(()) } else { folder.remove(&path) };
        }
        let state = self.state.get_mut();
        state.needed.insert(path.clone(), parsed.records.len());
        for found in parsed.records {
            state.bytes += found.length as usize;
            let kept = state.kept.entry(found.copy.layout.group()).or_default();
            kept.push(Kept {
                copy: found.copy,
                is_conflict: false,
                path: path.clone(),
                bytes_at: found.bytes_at,
                length: found.length,
                crc: found.crc,
            });
        }
        Ok(())
    }

    /// Whether it takes writes.
    pub fn is_usable(&self) -> bool {
        self.folder.is_some() && !self.state.borrow().has_failed
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.state.borrow().kept.is_empty()
    }

    /// Whether what it had at the start is known.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// Keeps a write; returns when it is on the medium.
    ///
    /// Errors: `NotKept`.
    pub async fn keep(&self, copy: Copy, bytes: &[&[u8]]) -> Result<(), NotKept> {
        let (segment, end) = match self.append(copy, bytes) {
            Ok(appended) => appended,
            Err(error) => {
                tracing::debug!(%error, "not in the local journal");
                return Err(NotKept);
            }
        };
        if planted!("W-13/the-local-journal-is-not-synced") {
            return Ok(());
        }
        let kept = segment.synced_to(self.folder.as_ref().ok_or(NotKept)?, end).await;
        if kept.is_err() {
            self.state.borrow_mut().has_failed = true;
        }
        kept
    }

    fn append(&self, copy: Copy, bytes: &[&[u8]]) -> io::Result<(Rc<Segment>, u64)> {
        let size = bytes.iter().map(|piece| piece.len()).sum();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let mut state = self.state.borrow_mut();
        if state.has_failed || BYTES_MAX < state.bytes + size {
            return Err(full());
        }
        let segment = self.segment(&mut state)?;
        let at = segment.end.get();
        let (head, crc) = record(&copy, bytes, segment.number, segment.synced.get());
        let mut pieces = vec![&head[..]];
        pieces.extend_from_slice(bytes);
        pieces.push(padding(size));
        if let Err(error) = segment.file.write_at(&pieces, at) {
            // Its rests must not stand behind a later record.
            state.current = None;
            return Err(error);
        }
        let bytes_at = at + head.len() as u64;
        segment.end.set(bytes_at + size.next_multiple_of(8) as u64);
        let length = u32::try_from(size).expect("a request has at most 4 MiB");
        let path = segment.path.clone();
        *state.needed.entry(path.clone()).or_default() += 1;
        state.bytes += size;
        let kept = state.kept.entry(copy.layout.group()).or_default();
        kept.push(Kept { copy, is_conflict: false, path, bytes_at, length, crc });
        Ok((segment.clone(), segment.end.get()))
    }

    /// The segment that takes the next record.
    fn segment(&self, state: &mut State) -> io::Result<Rc<Segment>> {
        let folder = self.folder.as_ref().ok_or(io::ErrorKind::NotFound)?;
        if let Some(segment) = state.current.as_ref().filter(|now| now.end.get() < SEGMENT_SIZE) {
            return Ok(segment.clone());
        }
        let number = state.next_segment.max(1);
        state.next_segment = number + 1;
        let path = format!("{}/{number:06}.log", self.name);
        let file = folder.open(&path, OpenMode::CreateNew)?;
        file.write_at(&[&segment_head(self.identity, number)[..]], 0)?;
        let segment = Rc::new(Segment {
            number,
            path,
            folder: self.name.clone(),
            file,
            end: Cell::new(SEGMENT_HEAD as u64),
            synced: Cell::new(0),
            is_syncing: Cell::new(false),
            has_failed: Cell::new(false),
            bell: Notify::new(),
        });
        let before = state.current.replace(segment.clone());
        if let Some(before) = before.filter(|before| !state.needed.contains_key(&before.path)) {
            let _ = folder.remove(&before.path);
        }
        Ok(segment)
    }

    /// Bytes of a record.
    ///
    /// Errors: of the disk; `InvalidData` where they do not fit their checksum.
    pub fn bytes_of(&self, kept: &Kept) -> io::Result<Bytes> {
        let folder = self.folder.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let file = folder.open(&kept.path, OpenMode::Read)?;
        let mut bytes = vec![0; kept.length as usize];
        file.read_exact_at(&mut bytes, kept.bytes_at)?;
        if crc32c_of(&[&bytes]) != kept.crc {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(bytes.into())
    }

    /// The writes of a record.
    ///
    /// Errors: as `bytes_of`.
    pub fn writes_of(&self, kept: &Kept) -> io::Result<Vec<DeviceWrite>> {
        let mut rest = self.bytes_of(kept)?;
        let part = |(at, size): &(u64, u32)| {
            let bytes = rest.split_to(*size as usize);
            DeviceWrite { device_index: 0, at: *at, bytes }
        };
        Ok(kept.copy.parts.iter().map(part).collect())
    }

    /// What is kept of a device, in the order of its numbers, conflicts too.
    pub fn of(&self, device: DeviceId) -> Vec<Kept> {
        self.state.borrow().kept.get(&device).cloned().unwrap_or_default()
    }

    /// Whether something of a device may be laid.
    pub fn has(&self, device: DeviceId) -> bool {
        let state = self.state.borrow();
        state.kept.get(&device).is_some_and(|kept| kept.iter().any(|kept| !kept.is_conflict))
    }

    /// Whether something is kept under a fact.
    pub fn has_under(&self, fact: FactNumber) -> bool {
        let state = self.state.borrow();
        state.kept.values().flatten().any(|kept| kept.copy.fact == fact)
    }

    /// Devices of which something is kept, and under which fact last.
    pub fn devices(&self) -> Vec<(DeviceId, FactNumber)> {
        let state = self.state.borrow();
        let to_lay = state.kept.iter().filter_map(|(device, kept)| {
            let last = kept.iter().rfind(|kept| !kept.is_conflict)?;
            Some((*device, last.copy.fact))
        });
        to_lay.collect()
    }

    /// Devices with records that become files of their own.
    pub fn conflicts(&self) -> Vec<DeviceId> {
        let state = self.state.borrow();
        let with = state.kept.iter().filter(|(_, kept)| kept.iter().any(|kept| kept.is_conflict));
        with.map(|(device, _)| *device).collect()
    }

    /// This record may not be laid.
    pub fn set_conflict(&self, device: DeviceId, number: WriteNumber) {
        let mut state = self.state.borrow_mut();
        let kept = state.kept.get_mut(&device).into_iter().flatten();
        kept.filter(|kept| kept.copy.number == number).for_each(|kept| kept.is_conflict = true);
    }

    /// Writes of a grant up to a number need not be kept any more.
    pub fn settled_to(&self, device: DeviceId, grant: GrantNumber, stable: WriteNumber) {
        self.settle(device, |kept| {
            kept.copy.number.grant == grant && kept.copy.number <= stable && !kept.is_conflict
        });
    }

    /// These need not be kept any more.
    pub fn settle(&self, device: DeviceId, is_settled: impl Fn(&Kept) -> bool) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Some(kept) = state.kept.get_mut(&device) else { return };
        let (settled, left) = kept.drain(..).partition::<Vec<_>, _>(|kept| is_settled(kept));
        *kept = left;
        if kept.is_empty() {
            state.kept.remove(&device);
        }
        for settled in settled {
            state.bytes -= settled.length as usize;
            let Some(needed) = state.needed.get_mut(&settled.path) else { continue };
            *needed -= 1;
            if *needed > 0 {
                continue;
            }
            state.needed.remove(&settled.path);
            let is_current = state.current.as_ref().is_some_and(|now| now.path == settled.path);
            if let Some(folder) = self.folder.as_ref().filter(|_| !is_current) {
                // One that stays is read at the next start, and found settled.
                let _ = folder.remove(&settled.path);
            }
        }
    }

    /// Nothing is to come soon: a segment that nothing needs goes.
    pub fn rest(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let unneeded = |now: &mut Rc<Segment>| !state.needed.contains_key(&now.path);
        if let (Some(segment), Some(folder)) = (state.current.take_if(unneeded), &self.folder) {
            let _ = folder.remove(&segment.path);
        }
    }
}

impl Segment {
    /// Waits until it is on the medium up to `end`. Who comes while a sync is under way shares the next.
    async fn synced_to(self: &Rc<Self>, folder: &Folder, end: u64) -> Result<(), NotKept> {
        loop {
            let ended = self.bell.notified();
            if self.has_failed.get() {
                return Err(NotKept);
            }
            if end <= self.synced.get() {
                return Ok(());
            }
            if !self.is_syncing.replace(true) {
                let (segment, folder) = (self.clone(), folder.clone());
                // A task: who waits may go away.
                tokio::task::spawn_local(async move { segment.sync(&folder).await });
            }
            ended.await;
        }
    }

    async fn sync(&self, folder: &Folder) {
        let end = self.end.get();
        let is_first = self.synced.get() == 0;
        let synced = async {
            self.file.sync_data().await?;
            // Its name, and that of its folder.
            if is_first {
                folder.sync_folder(&self.folder).await?;
                folder.sync_folder("").await?;
            }
            io::Result::Ok(())
        };
        match synced.await {
            Ok(()) => self.synced.set(end),
            Err(error) => {
                tracing::error!(path = %self.path, %error, "a sync of the local journal failed");
                self.has_failed.set(true);
            }
        }
        self.is_syncing.set(false);
        self.bell.notify_waiters();
    }
}

/// Bytes of one LCC that may be kept: beyond it writes are answered by the cluster.
const BYTES_MAX: usize = 64 << 20;

/// Bytes after which a new segment begins.
const SEGMENT_SIZE: u64 = 16 << 20;
