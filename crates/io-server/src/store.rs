//! All that one I/O server holds: groups, portion files, journal.
//! # Theory
//! One thread, one [`Store`]. Requests change it synchronously, in the order of their connection;
//! what waits for the medium (syncs, reads past the page cache) waits outside, with the store
//! unlocked, and looks again afterwards.
//! ```text
//! request -> fence.rs -> requests.rs -> journal append -> group state -> answer
//!                        read.rs: applied blocks + kept records
//! checkpoint.rs: sync, apply.rs, new segment, sync, old segments away
//! ```
//! # Invariants
//! S1 Nothing is answered as promised before its record is in the journal file.
//! S2 The state is what a replay of the journal over the portion files would give.
//! # Source
//! W-1, W-2, S-1, S-3, S-4.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use braid_env::{Env, File, Folder, Moment};
use braid_terms::{
    DeviceId, GrantNumber, GroupLayout, Incarnation, JournalPosition, PortionIndex, PortionName,
    WriteNumber,
};
use braid_wire::io::{FileState, IoRefusal, IoStatus, RecordHead, Report};
use serde::Serialize;
use tokio::sync::Notify;

use crate::direct::DirectWrites;
use crate::disk::DiskIdentity;
use crate::group::{Group, slot_fits};
use crate::journal::{Appended, Journal};
use crate::journal_body::{Kind, Shape, SlotKey};
use crate::portion_file::{PortionError, PortionFiles, Presence};
use crate::read::RecentReads;

/// Bounds of an I/O server's memory and disk use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clean groups kept in memory.
    pub groups_max: usize,
    /// Journal bytes that start a checkpoint.
    pub journal_bytes_max: u64,
    /// Kept records that start a checkpoint.
    pub entries_max: usize,
    /// Quiet time after which all that is stable is applied.
    pub idle: std::time::Duration,
    /// Space that only removals, voids and repairs may use, in bytes; less on small disks.
    pub reserve_bytes: u64,
    /// Shortest run of new blocks that is written straight to its place.
    pub direct_blocks_min: u64,
    /// Shortest run that goes past the page cache, to and from the medium.
    pub uncached_blocks_min: u64,
    /// Time for which a removed group's grants are refused at least.
    pub tombstone: std::time::Duration,
    /// From the beginning of one scrub to the next. Source: F-6.
    pub scrub_interval: std::time::Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            groups_max: 1024,
            journal_bytes_max: 64 << 20,
            entries_max: 32 << 10,
            idle: std::time::Duration::from_secs(5),
            reserve_bytes: 64 << 20,
            direct_blocks_min: 16,
            uncached_blocks_min: 32,
            tombstone: std::time::Duration::from_secs(600),
            scrub_interval: std::time::Duration::from_secs(14 * 24 * 3600),
        }
    }
}

/// A group that left the memory.
#[derive(Clone)]
pub(crate) struct Evicted {
    pub grant: GrantNumber,
    pub shape: Shape,
    /// Of a group that an open alone made known: no header has it.
    pub layout: Option<Box<GroupLayout>>,
}

/// See the module.
pub(crate) struct Store {
    pub env: Env,
    pub folder: Folder,
    pub identity: DiskIdentity,
    pub limits: Limits,
    /// This start's number.
    pub incarnation: Incarnation,
    pub groups: BTreeMap<SlotKey, Group>,
    /// Opened in this start, clean, and not in memory.
    pub evicted: BTreeMap<SlotKey, Evicted>,
    /// Grants up to these are refused; with the time until which they are kept.
    pub tombstones: BTreeMap<SlotKey, (GrantNumber, Moment)>,
    pub files: PortionFiles,
    /// Blocks on their way.
    pub direct: DirectWrites,
    pub recent_reads: RecentReads,
    pub journal: Journal,
    /// Journal files with bytes that may not be on the medium.
    pub unsynced_segments: Vec<File>,
    /// All positions up to here are on the medium.
    pub synced: JournalPosition,
    /// Times that the journal of this disk was found damaged.
    pub damages: u32,
    /// Something was journalled that a checkpoint would take up.
    pub unapplied: bool,
    /// When the last request that changes something came.
    pub busy_at: Moment,
    /// While it is over, nothing is promised. Source: O-5.
    pub lease_until: Moment,
    /// Space as last seen, less what was written since.
    pub bytes_free: u64,
    pub bytes_total: u64,
    pub uses: u64,
    /// Number of groups above which letting some go is tried again.
    pub evict_above: usize,
    pub status: IoStatus,
    /// The medium failed: the process must end. Source: S-4.
    pub failed: Option<String>,
    /// Rung when a checkpoint is worth it or `failed` was set.
    pub bell: Rc<Notify>,
}

impl Store {
    /// A position up to which everything is in the journal file now.
    pub fn last_position(&self) -> JournalPosition {
        self.journal.last()
    }

    /// Appends a record with its body.
    ///
    /// Errors: `Full` where the disk is; any other trouble of the disk is told as `Unreadable`.
    pub fn append(
        &mut self,
        kind: Kind,
        body: &impl Serialize,
        images: &[&[u8]],
    ) -> Result<Appended, IoRefusal> {
        let body = postcard::to_stdvec(body).map_err(|error| unreadable(&error))?;
        let appended = self.journal.append(kind, self.synced, &body, images);
        let appended = appended.map_err(|error| disk_refusal(&error))?;
        let bytes = body.len() as u64 + images.iter().map(|piece| piece.len() as u64).sum::<u64>();
        self.bytes_free = self.bytes_free.saturating_sub(bytes);
        if self.journal.new_bytes() > self.limits.journal_bytes_max {
            self.bell.notify_one();
        }
        Ok(appended)
    }

    /// Whether a prepare of so many bytes is to be refused. Directories may use a half of the
    /// reserve: a name must go before its file's space comes back. Source: S-4.
    pub fn is_full(&mut self, bytes: u64, of_directory: bool) -> bool {
        if self.bytes_usable() < LOOK_BELOW {
            // Others may write to the same file system: near the end what we counted is not enough.
            let _ = self.look_at_space();
        }
        let reserve = if of_directory { self.reserve() / 2 } else { self.reserve() };
        // A journalled byte is written a second time when it is applied.
        self.bytes_free < reserve + 2 * bytes + (64 << 10)
    }

    fn reserve(&self) -> u64 {
        let reserve = self.limits.reserve_bytes.max(self.bytes_total / 100);
        reserve.min(self.bytes_total / 10)
    }

    /// Bytes that files may still take.
    pub fn bytes_usable(&self) -> u64 {
        self.bytes_free.saturating_sub(self.reserve() + (128 << 10))
    }

    /// Asks the file system for its space.
    pub fn look_at_space(&mut self) -> io::Result<()> {
        let space = self.folder.space()?;
        self.bytes_free = space.free;
        self.bytes_total = space.total;
        Ok(())
    }

    /// Names of the portion files of a group at a slot.
    pub fn names(layout: &GroupLayout, slot: PortionIndex) -> Vec<PortionName> {
        (0..layout.devices.len()).map(|device| layout.portion_name(device, slot)).collect()
    }

    /// Brings a group into memory, from its headers if it is not there. `None`: nothing is known.
    ///
    /// Errors: `Unreadable`.
    pub fn load(&mut self, layout: &GroupLayout, key: SlotKey) -> Result<(), IoRefusal> {
        if self.groups.contains_key(&key) {
            return Ok(());
        }
        let names = Self::names(layout, key.slot);
        self.load_names(&names, key, Some(layout))
    }

    /// Brings an evicted group back. `false`: it was not opened in this start.
    ///
    /// Errors: `Unreadable`.
    pub fn load_evicted(&mut self, key: SlotKey) -> Result<bool, IoRefusal> {
        if self.groups.contains_key(&key) {
            return Ok(true);
        }
        match self.evicted.get(&key).cloned() {
            None => return Ok(false),
            Some(Evicted { layout: Some(layout), .. }) => self.load(&layout, key)?,
            Some(Evicted { shape, .. }) => self.load_shape(key, shape)?,
        }
        Ok(self.groups.contains_key(&key))
    }

    /// Brings a group back of which only group, slot and shape are known.
    ///
    /// Errors: `Unreadable`.
    pub fn load_shape(&mut self, key: SlotKey, shape: Shape) -> Result<(), IoRefusal> {
        let devices = [key.group, shape.second];
        let names: Vec<PortionName> = devices
            .iter()
            .filter(|device| device.0 != 0)
            .map(|device| PortionName { device: *device, index: key.slot, count: shape.count })
            .collect();
        self.load_names(&names, key, None)
    }

    fn load_names(
        &mut self,
        names: &[PortionName],
        key: SlotKey,
        layout: Option<&GroupLayout>,
    ) -> Result<(), IoRefusal> {
        let mut headers = Vec::new();
        for name in names {
            let (_, header) = self.files.look(*name).map_err(|error| unreadable(&error))?;
            headers.extend(header.filter(|header| slot_fits(&header.layout, key)));
        }
        let newest = headers.iter().max_by_key(|header| (header.layout.generation, header.last));
        let mut group = match (newest, layout) {
            (Some(header), _) => {
                let mut group = Group::unknown(key, header.layout.clone());
                group.known = true;
                group.home = header.home;
                group.grant = header.fence;
                group.base_prev = header.last;
                group.last = header.last;
                group.lengths_at = header.last;
                group.take_marks(header.last, header.last);
                group.outcome =
                    header.outcome.map(|(number, ends_at)| (number, ends_at, JournalPosition(0)));
                group.existing = header.existing;
                group.ends.clone_from(&header.ends);
                group.operations.clone_from(&header.operations);
                group.damages_repaired = header.damages_repaired;
                group
            }
            (None, Some(layout)) => Group::unknown(key, layout.clone()),
            (None, None) => return Ok(()),
        };
        for (device, name) in names.iter().enumerate() {
            let (_, header) = self.files.look(*name).map_err(|error| unreadable(&error))?;
            if let (Some(header), Some(length)) = (header, group.lengths.get_mut(device)) {
                *length = header.length;
            }
        }
        if group.damages_repaired < self.damages {
            group.damaged_after = Some(group.last);
        }
        if let Some(evicted) = self.evicted.remove(&key) {
            group.grant = group.grant.max(evicted.grant);
            group.opened = true;
        }
        group.used = self.uses;
        self.groups.insert(key, group);
        Ok(())
    }

    /// A resident group, marked as used.
    pub fn group(&mut self, key: SlotKey) -> Option<&mut Group> {
        self.uses += 1;
        let group = self.groups.get_mut(&key)?;
        group.used = self.uses;
        Some(group)
    }

    /// Lets clean groups leave the memory, oldest use first, until at most `keep` are left.
    pub fn evict(&mut self, keep: usize) {
        self.files.trim();
        if self.groups.len() <= keep.max(self.evict_above) {
            return;
        }
        let mut clean: Vec<(u64, SlotKey)> = self
            .groups
            .values()
            .filter(|group| group.is_clean())
            .map(|group| (group.used, group.key))
            .collect();
        clean.sort_unstable();
        let too_many = self.groups.len().saturating_sub(keep * 3 / 4);
        for (_, key) in clean.into_iter().take(too_many) {
            let Some(group) = self.groups.remove(&key) else { continue };
            if group.opened {
                let (grant, shape) = (group.grant, group.shape());
                let layout = (!group.known).then(|| Box::new(group.layout));
                self.evicted.insert(key, Evicted { grant, shape, layout });
            }
        }
        // Where most groups must stay, looking again is worth it only when there are many more.
        self.evict_above = self.groups.len() + self.groups.len() / 4;
    }

    /// What a slot knows of its group. Source: W-6(2).
    pub fn report(&mut self, key: SlotKey) -> Result<Report, IoRefusal> {
        let Some(group) = self.groups.get(&key) else {
            return Ok(self.empty_report());
        };
        let mut files = Vec::new();
        for name in Self::names(&group.layout, key.slot) {
            let presence = self.files.presence(name);
            files.push(match presence {
                Ok(Presence::Present) => FileState::Present,
                Ok(Presence::None | Presence::Begun) if group.files_expected => FileState::Present,
                Ok(Presence::None | Presence::Begun) => FileState::None,
                Ok(Presence::Unreadable) | Err(_) => FileState::Unreadable,
            });
        }
        let (lengths, existing) = group.stable_lengths();
        let head = |entry: &crate::group::Entry| {
            let record = entry.record.clone()?;
            Some(RecordHead { record, position: entry.position })
        };
        let unstable = group.entries.iter().filter(|entry| entry.number > group.stable);
        Ok(Report {
            incarnation: self.incarnation,
            layout: group.known.then(|| group.layout.clone()),
            generation: if group.known { group.layout.generation } else { Default::default() },
            home: group.home,
            files,
            last: group.last,
            decided: group.decided,
            stable: group.stable,
            outcome: group
                .outcome
                .map(|(number, ends_at, position)| (number, ends_at, position <= self.synced)),
            records: unstable.filter_map(head).collect(),
            lengths,
            existing,
            ends: group.stable_ends(),
            operations: group.stable_operations(),
            missed: group.missed_so_far().to_missed(),
            damaged_after: group.damaged_after,
            synced: self.synced,
        })
    }

    fn empty_report(&self) -> Report {
        Report {
            incarnation: self.incarnation,
            layout: None,
            generation: Default::default(),
            home: DeviceId(0),
            files: Vec::new(),
            last: WriteNumber::NONE,
            decided: WriteNumber::NONE,
            stable: WriteNumber::NONE,
            outcome: None,
            records: Vec::new(),
            lengths: Vec::new(),
            existing: 0,
            ends: Vec::new(),
            operations: Default::default(),
            missed: Vec::new(),
            damaged_after: (self.damages > 0).then_some(WriteNumber::NONE),
            synced: self.synced,
        }
    }

    /// State for `Status`.
    pub fn status(&self) -> IoStatus {
        IoStatus {
            disk: self.identity.disk,
            incarnation: self.incarnation,
            bytes_total: self.bytes_total,
            bytes_free: self.bytes_usable(),
            journal_bytes: self.journal.bytes(),
            groups: self.groups.len() as u64,
            ..self.status
        }
    }
}

/// Usable bytes below which the file system is asked at each write.
const LOOK_BELOW: u64 = 1 << 30;

/// The refusal for trouble with the disk.
pub(crate) fn disk_refusal(error: &io::Error) -> IoRefusal {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => IoRefusal::Full,
        _ => unreadable(error),
    }
}

/// The refusal for bytes that cannot be read.
pub(crate) fn unreadable(error: &impl std::fmt::Display) -> IoRefusal {
    IoRefusal::Unreadable { reason: error.to_string() }
}

/// The same for a portion file.
pub(crate) fn portion_refusal(error: &PortionError) -> IoRefusal {
    match error {
        PortionError::Io(error) => disk_refusal(error),
        PortionError::PageLost { .. } | PortionError::FileLost => unreadable(error),
    }
}
