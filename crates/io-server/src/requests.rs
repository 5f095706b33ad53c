//! Requests that change a slot: open, prepare, marks, rejoin, rebuild, remove.
//! # Theory
//! Each is checked, written to the journal, then taken into the state by a `take_*` function; a
//! replay calls the same functions with the same bodies, so that both end in the same state (S2).
//! Large runs of new blocks go straight to their places in the portion file before their record is
//! journalled: without the record they do not exist (W-8).
//! # Invariants
//! Q1 A refused request changed nothing that can be seen.
//! Q2 Direct bytes go only where no valid block is, or where the slot joins and is not believed.
//! # Failure
//! A full disk refuses writes of bytes with `Full`; voids, outcomes, marks, removals and rebuilds
//! go on in the reserve.
//! # Source
//! O-5, W-1, W-2, W-4, W-8, F-2, F-4, F-9, S-4.

use braid_env::File;
use braid_terms::{
    BLOCK_SIZE, GroupLayout, Incarnation, JournalPosition, PortionName, WriteNumber,
};
use braid_wire::io::{
    BlockRange, Change, Create, Fence, GroupMarks, IoRefusal, IoReply, Open, Prepare, RecordKind,
    Rejoin, Report, ShadowMark,
};
use bytes::Bytes;

use crate::fence::{Known, Wish, check};
use crate::group::{Group, slot_fits};
use crate::journal::Appended;
use crate::journal_body::{Kind, Opened, Prepared, Rebuilt, Rejoined, Removed, SlotKey};
use crate::portion_file::{Presence, runs};
use crate::portion_page::GROUP_BLOCKS;
use crate::prepare::{Verdict, change_range, check_changes, check_shape, judge, to_pieces};
use crate::range_set::RangeSet;
use crate::store::{Store, disk_refusal, portion_refusal, unreadable};

/// Where a journalled record is: what `take_*` needs of it.
#[derive(Clone)]
pub(crate) struct Place {
    pub position: JournalPosition,
    pub journal: File,
    pub images_at: u64,
    pub image_count: u32,
}

/// The answer to a prepare; blocks may still be on their way.
pub(crate) enum Promise {
    New(IoReply),
    /// The record was taken before.
    Repeated(IoReply),
}

impl Store {
    /// Takes a group over for a grant and says what is kept of it. Source: O-5, W-6.
    pub fn open(&mut self, open: Open) -> Result<Report, IoRefusal> {
        let key = key_of(&open.fence);
        check_layout(&open.layout, key)?;
        self.ready()?;
        self.check_fence(&open.fence, Wish::Raise)?;
        self.evict(self.limits.groups_max);
        self.load(&open.layout, key)?;
        let opened = Opened {
            key,
            grant: open.fence.grant,
            writer: open.writer,
            layout: open.layout,
            absent: open.absent,
        };
        let group = self.group(key).expect("just loaded");
        if opened.layout.generation < group.layout.generation {
            return Err(IoRefusal::WrongLayout { generation: group.layout.generation });
        }
        let repeats = group.opened
            && group.grant == opened.grant
            && group.absent == opened.absent
            && group.layout.generation == opened.layout.generation;
        if !repeats {
            self.append(Kind::Open, &opened, &[])?;
            self.take_open(opened)?;
        }
        self.report(key)
    }

    /// Takes an open into the state.
    pub fn take_open(&mut self, opened: Opened) -> Result<(), IoRefusal> {
        self.load(&opened.layout, opened.key)?;
        let group = self.group(opened.key).expect("just loaded");
        group.grant = group.grant.max(opened.grant);
        group.opened = true;
        group.take_absent(&opened.absent);
        if !group.known {
            group.layout = opened.layout;
        }
        Ok(())
    }

    /// What is kept of a group.
    pub fn inspect(&mut self, fence: &Fence) -> Result<Report, IoRefusal> {
        let key = key_of(fence);
        self.ready()?;
        self.check_fence(fence, Wish::Look)?;
        self.load_evicted(key)?;
        self.report(key)
    }

    /// Journals a record and promises it. Source: W-2.
    pub fn prepare(&mut self, prepare: Prepare, payload: &Bytes) -> Result<Promise, IoRefusal> {
        let Prepare { fence, record, create, decided, stable } = prepare;
        let key = key_of(&fence);
        self.ready()?;
        let make = self.wants_making(key, create.as_deref(), record.prev)?;
        if make {
            self.check_fence(&fence, Wish::Raise)?;
        } else {
            self.check_fence(&fence, Wish::Use)?;
        }
        if record.number.grant > fence.grant {
            return Err(bad("a record of a grant above the sender's"));
        }
        let (devices, verdict) = if make {
            let create = create.as_deref().expect("it wants making");
            check_layout(&create.layout, key)?;
            let mut group = Group::unknown(key, create.layout.clone());
            group.grant = fence.grant;
            (create.layout.devices.len(), judge(&group, &record))
        } else {
            self.load_evicted(key)?;
            let group = self.group(key).ok_or(IoRefusal::UnknownGroup)?;
            (group.layout.devices.len(), judge(group, &record))
        };
        check_shape(&record, devices, payload.len()).map_err(bad)?;
        match verdict {
            Verdict::Take | Verdict::ReplaceByVoid => {}
            Verdict::Repeat(position) => {
                self.ride_along(key, decided, stable);
                return Ok(Promise::Repeated(self.promised(position)));
            }
            Verdict::Gap => {
                let last = self.groups.get(&key).map_or_else(Default::default, |group| group.last);
                return Err(IoRefusal::Gap { last });
            }
            Verdict::Bad(reason) => return Err(bad(reason)),
        }
        let (home, layout) = match &create {
            Some(create) if make => (create.home, &create.layout),
            _ => (self.groups[&key].home, &self.groups[&key].layout),
        };
        let of_directory = layout.devices.contains(&home);
        if record.kind == RecordKind::Write && self.is_full(payload.len() as u64, of_directory) {
            return Err(IoRefusal::Full);
        }
        let (names, shape, known) = match &create {
            Some(create) if make => {
                let group = Group::unknown(key, create.layout.clone());
                (Self::names(&create.layout, key.slot), group.shape(), false)
            }
            _ => {
                let group = &self.groups[&key];
                (Self::names(&group.layout, key.slot), group.shape(), group.known)
            }
        };
        if !known {
            self.clear_begun(&names)?;
        }
        let (direct, images) = self.write_direct(key, &names, &record.changes, payload, false)?;
        let prepared = Prepared {
            key,
            grant: fence.grant,
            shape,
            decided,
            stable,
            create: create.filter(|_| make),
            record,
            direct,
        };
        let appended = self.append(Kind::Prepare, &prepared, &slices(payload, &images))?;
        let place = self.place(appended, &images);
        self.take_prepare(prepared, &place)?;
        self.go_on_after_damage(key);
        self.status.prepares += 1;
        self.status.bytes_written += payload.len() as u64;
        self.touched();
        Ok(Promise::New(self.promised(place.position)))
    }

    // The owner has seen the report of an open and goes on from the last record here: nothing that
    // it counts on is lost.
    fn go_on_after_damage(&mut self, key: SlotKey) {
        let damages = self.damages;
        if let Some(group) = self.groups.get_mut(&key).filter(|g| g.damaged_after.is_some()) {
            group.damaged_after = None;
            group.damages_repaired = damages;
            group.header_dirty = true;
        }
    }

    /// Takes a journalled record into the state. The caller has judged it.
    pub fn take_prepare(&mut self, prepared: Prepared, place: &Place) -> Result<(), IoRefusal> {
        let key = prepared.key;
        if let Some(create) = prepared.create {
            let mut group = Group::unknown(key, create.layout);
            group.home = create.home;
            group.damages_repaired = self.damages;
            if let Some(opened) = self.groups.get(&key) {
                group.grant = opened.grant;
                group.absent.clone_from(&opened.absent);
            }
            self.groups.insert(key, group);
            self.evicted.remove(&key);
        }
        let direct = &prepared.direct;
        let changes = &prepared.record.changes;
        let pieces = to_pieces(changes, direct, place.images_at, place.image_count)
            .ok_or_else(|| bad("images do not fit the changes"))?;
        let group = self.group(key).ok_or(IoRefusal::UnknownGroup)?;
        group.grant = group.grant.max(prepared.grant);
        group.opened = true;
        // Begun by an open alone: its files are made by this record.
        group.files_expected |= !group.known;
        let mut record = prepared.record;
        record.changes = Vec::new();
        let at = (place.position, place.journal.clone());
        if judge(group, &record) == Verdict::ReplaceByVoid {
            group.replace_by_void(record, at);
        } else {
            group.push_record(record, pieces, at);
        }
        group.take_marks(prepared.decided, prepared.stable);
        self.unapplied = true;
        Ok(())
    }

    /// Takes marks of many groups. Source: W-4.
    pub fn marks(&mut self, groups: Vec<GroupMarks>) -> Result<IoReply, IoRefusal> {
        let mut refused = Vec::new();
        let mut taken = Vec::new();
        for marks in groups {
            let key = SlotKey { group: marks.group, slot: marks.slot };
            let fence = Fence {
                group: marks.group,
                slot: marks.slot,
                grant: marks.grant,
                incarnation: self.incarnation,
            };
            let allowed = self.check_fence(&fence, Wish::Use).is_ok();
            if allowed && !self.groups.contains_key(&key) && marks.absent.is_empty() {
                // It left the memory because nothing of it is kept: all is stable and applied.
                continue;
            }
            if !allowed || !self.load_evicted(key).unwrap_or(false) {
                refused.push(marks.group);
                continue;
            }
            let group = self.group(key).expect("just loaded");
            let news = marks.decided > group.decided
                || marks.stable > group.stable
                || marks.absent != group.absent;
            // A clean group needs no marks: what they say is in its headers.
            if news && !(group.entries.is_empty() && marks.absent == group.absent) {
                taken.push(marks);
            } else {
                group.take_marks(marks.decided, marks.stable);
            }
        }
        if !taken.is_empty() {
            self.append(Kind::Marks, &taken, &[])?;
            self.take_all_marks(taken);
        }
        Ok(IoReply::Marked { synced: self.synced, refused })
    }

    /// Takes what a shadow says is decided; a group that is not in memory has nothing undecided. Not
    /// journalled: a mark that is forgotten costs nothing. Source: W-4.
    pub fn decided(&mut self, groups: Vec<ShadowMark>) -> IoReply {
        let mut refused = Vec::new();
        for ShadowMark { group, slot, grant, decided } in groups {
            let fence = Fence { group, slot, grant, incarnation: self.incarnation };
            if self.ready().is_err() || self.check_fence(&fence, Wish::Use).is_err() {
                refused.push(group);
                continue;
            }
            let key = SlotKey { group, slot };
            if let Some(group) = self.groups.get_mut(&key) {
                let is_stable = braid_terms::planted!("W-4/the-shadow-says-stable");
                let stable = if is_stable { decided } else { WriteNumber::NONE };
                group.take_marks(decided, stable);
                self.unapplied |= is_stable;
            }
        }
        IoReply::Marked { synced: self.synced, refused }
    }

    /// Takes marks into the state.
    pub fn take_all_marks(&mut self, groups: Vec<GroupMarks>) {
        for marks in groups {
            let key = SlotKey { group: marks.group, slot: marks.slot };
            if let Some(group) = self.group(key) {
                group.take_absent(&marks.absent);
                group.take_marks(marks.decided, marks.stable);
                self.unapplied |= group.applicable(JournalPosition(u64::MAX)) > 0;
            }
        }
        self.busy_at = self.env.now();
    }

    /// Begins a slot anew. It is durable after the next sync, for which the caller waits.
    pub fn rejoin(&mut self, fence: &Fence, mut rejoined: Rejoined) -> Result<(), IoRefusal> {
        let key = rejoined.key;
        check_layout(&rejoined.begin.layout, key)?;
        if rejoined.begin.lengths.len() != rejoined.begin.layout.devices.len() {
            return Err(bad("one length a device"));
        }
        self.ready()?;
        self.check_fence(fence, Wish::Raise)?;
        self.load(&rejoined.begin.layout, key)?;
        let held = self.groups[&key].layout.generation;
        if rejoined.begin.layout.generation < held {
            return Err(IoRefusal::WrongLayout { generation: held });
        }
        for name in Self::names(&rejoined.begin.layout, key.slot) {
            let presence = self.files.presence(name).map_err(|error| disk_refusal(&error))?;
            if presence == Presence::Unreadable && !rejoined.begin.whole {
                return Err(unreadable(&"a header is lost: rejoin as whole"));
            }
        }
        // A start that repeats this must tell a slot that began here from one whose file is lost.
        rejoined.begin.whole |= !self.groups[&key].known;
        let position = self.append(Kind::Rejoin, &rejoined, &[])?.position;
        if rejoined.begin.whole {
            for name in Self::names(&rejoined.begin.layout, key.slot) {
                self.files.remove(name).map_err(|error| disk_refusal(&error))?;
            }
        }
        self.take_rejoin(rejoined, position)?;
        self.touched();
        Ok(())
    }

    /// Takes a rejoin into the state.
    pub fn take_rejoin(
        &mut self,
        rejoined: Rejoined,
        position: JournalPosition,
    ) -> Result<(), IoRefusal> {
        let Rejoined { key, grant, begin } = rejoined;
        let Rejoin { layout, after, whole, .. } = begin;
        self.load(&layout, key)?;
        let damages = self.damages;
        let group = self.group(key).expect("just loaded");
        // Blocks that an earlier join rebuilt are the state at their decided mark: what is kept of them
        // up to `after` may not be in its place yet, and nobody else tells it as missed. What is above
        // is dropped, for it may show what does not count, and is missed again.
        for entry in group.entries.iter().filter(|entry| entry.record.is_none()) {
            if !whole && after < entry.number {
                entry.pieces.iter().for_each(|piece| group.missed.add(key.slot, piece.range));
            }
        }
        group.drop_entries(position, |entry| {
            (whole || after < entry.number)
                && !braid_terms::planted!("F-4/a-rejoin-keeps-its-records")
        });
        // Made anew; else its files are there, or lost.
        group.files_expected |= whole;
        group.layout = layout;
        group.known = true;
        group.home = begin.home;
        group.grant = group.grant.max(grant);
        group.opened = true;
        group.last = begin.prev;
        let first = group.entries.front().and_then(|entry| entry.record.as_ref());
        group.base_prev = first.map_or(begin.prev, |record| record.prev);
        group.decided = begin.decided;
        group.stable = begin.decided;
        group.lengths = begin.lengths;
        group.lengths_at = begin.decided;
        group.operations = begin.operations;
        for missed in begin.missed.iter().filter(|missed| missed.slot != key.slot) {
            missed.ranges.iter().for_each(|range| group.missed.add(missed.slot, *range));
        }
        group.outcome = None;
        group.damaged_after = None;
        group.damages_repaired = damages;
        group.header_dirty = true;
        group.rejoined = true;
        group.epoch += 1;
        if let Some(own) = 1u32.checked_shl(u32::from(key.slot.0) - 1) {
            group.existing |= own;
        }
        self.unapplied = true;
        Ok(())
    }

    /// Lays rebuilt blocks behind all that is kept. Source: F-4.
    pub fn rebuild(
        &mut self,
        fence: &Fence,
        decided: WriteNumber,
        changes: Vec<Change>,
        payload: &Bytes,
    ) -> Result<IoReply, IoRefusal> {
        let key = key_of(fence);
        self.ready()?;
        self.check_fence(fence, Wish::Use)?;
        self.load_evicted(key)?;
        let group = self.group(key).ok_or(IoRefusal::UnknownGroup)?;
        if !group.known {
            return Err(IoRefusal::UnknownGroup);
        }
        let (shape, over_blocks) = (group.shape(), group.rejoined);
        let names = Self::names(&group.layout, key.slot);
        check_changes(&changes, names.len(), payload.len()).map_err(bad)?;
        let (direct, images) = self.write_direct(key, &names, &changes, payload, over_blocks)?;
        let rebuilt = Rebuilt { key, shape, decided, changes, direct };
        let appended = self.append(Kind::Rebuild, &rebuilt, &slices(payload, &images))?;
        let place = self.place(appended, &images);
        self.take_rebuild(rebuilt, &place)?;
        self.status.bytes_written += payload.len() as u64;
        self.touched();
        Ok(self.promised(place.position))
    }

    /// Takes rebuilt blocks into the state.
    pub fn take_rebuild(&mut self, rebuilt: Rebuilt, place: &Place) -> Result<(), IoRefusal> {
        let pieces =
            to_pieces(&rebuilt.changes, &rebuilt.direct, place.images_at, place.image_count)
                .ok_or_else(|| bad("images do not fit the changes"))?;
        let group = self.group(rebuilt.key).ok_or(IoRefusal::UnknownGroup)?;
        group.push_rebuilt(rebuilt.decided, pieces, (place.position, place.journal.clone()));
        self.unapplied = true;
        Ok(())
    }

    /// Removes a group and refuses its grants from then on. Source: F-9.
    pub fn remove(&mut self, fence: &Fence, removed: Removed) -> Result<IoReply, IoRefusal> {
        let key = removed.key;
        check_layout(&removed.layout, key)?;
        self.ready()?;
        let known = self.known_fence(key);
        if known.removed == Some(fence.grant) && fence.incarnation == self.incarnation {
            return Ok(self.promised(self.journal.last()));
        }
        self.check_fence(fence, Wish::Raise)?;
        self.load(&removed.layout, key)?;
        let held = self.groups[&key].layout.clone();
        let appended = self.append(Kind::Remove, &removed, &[])?;
        self.take_remove(&removed);
        for name in Self::names(&held, key.slot) {
            self.files.remove(name).map_err(|error| disk_refusal(&error))?;
        }
        self.touched();
        Ok(self.promised(appended.position))
    }

    /// Takes a removal into the state; the files are the caller's matter.
    pub fn take_remove(&mut self, removed: &Removed) {
        let until = self.env.now() + self.limits.tombstone;
        self.groups.remove(&removed.key);
        self.evicted.remove(&removed.key);
        let tombstone = self.tombstones.entry(removed.key).or_insert((removed.grant, until));
        *tombstone = (tombstone.0.max(removed.grant), until);
        self.unapplied = true;
    }

    /// Refuses where nothing may be promised. Source: O-5.
    pub fn ready(&self) -> Result<(), IoRefusal> {
        let over = self.lease_until <= self.env.now() || self.failed.is_some();
        if over { Err(IoRefusal::NotReady) } else { Ok(()) }
    }

    /// Refuses what is meant for another start.
    pub fn check_incarnation(&self, meant: Incarnation) -> Result<(), IoRefusal> {
        let current = self.incarnation;
        if meant == current { Ok(()) } else { Err(IoRefusal::WrongIncarnation { current }) }
    }

    /// What is known of a group's fence.
    pub fn known_fence(&self, key: SlotKey) -> Known {
        let removed = self.tombstones.get(&key).map(|(grant, _)| *grant);
        if let Some(group) = self.groups.get(&key) {
            let opened = group.opened.then_some(group.grant);
            return Known { opened, seen: group.grant, removed };
        }
        let grant = self.evicted.get(&key).map(|evicted| evicted.grant);
        Known { opened: grant, seen: grant.unwrap_or_default(), removed }
    }

    /// See [`check`].
    pub fn check_fence(&self, fence: &Fence, wish: Wish) -> Result<(), IoRefusal> {
        check(self.known_fence(key_of(fence)), fence, wish, self.incarnation)
    }

    /// The position in an answer, with what is on the medium.
    pub fn promised(&self, position: JournalPosition) -> IoReply {
        IoReply::Promised { position, synced: self.synced }
    }

    fn ride_along(&mut self, key: SlotKey, decided: WriteNumber, stable: WriteNumber) {
        if let Some(group) = self.group(key) {
            group.take_marks(decided, stable);
        }
    }

    // A slot is made by its first record where nothing is known of it, neither here nor on disk.
    fn wants_making(
        &mut self,
        key: SlotKey,
        create: Option<&Create>,
        prev: WriteNumber,
    ) -> Result<bool, IoRefusal> {
        let Some(create) = create else { return Ok(false) };
        if prev != WriteNumber::NONE {
            return Ok(false);
        }
        self.load_evicted(key)?;
        if let Some(group) = self.groups.get(&key) {
            return Ok(!group.known && group.entries.is_empty());
        }
        check_layout(&create.layout, key)?;
        for name in Self::names(&create.layout, key.slot) {
            match self.files.presence(name).map_err(|error| disk_refusal(&error))? {
                Presence::None | Presence::Begun => {}
                Presence::Present | Presence::Unreadable => return Ok(false),
            }
        }
        Ok(true)
    }

    // What a crash left of an earlier beginning must not be taken for pages of the new file.
    fn clear_begun(&mut self, names: &[PortionName]) -> Result<(), IoRefusal> {
        for name in names {
            let presence = self.files.presence(*name).map_err(|error| disk_refusal(&error))?;
            if presence != Presence::None {
                self.files.remove(*name).map_err(|error| disk_refusal(&error))?;
            }
        }
        Ok(())
    }

    /// Writes what may go to its place at once; returns those blocks, and the byte ranges of the
    /// payload that are to be journalled.
    ///
    /// Errors: `Full`, `Unreadable`.
    fn write_direct(
        &mut self,
        key: SlotKey,
        names: &[PortionName],
        changes: &[Change],
        payload: &Bytes,
        over_blocks: bool,
    ) -> Result<(Vec<BlockRange>, Vec<std::ops::Range<usize>>), IoRefusal> {
        let (mut direct, mut images) = (Vec::new(), Vec::<std::ops::Range<usize>>::new());
        let mut seen = RangeSet::default();
        let mut at = 0;
        for change in changes {
            let range = change_range(change);
            let Change::Write { .. } = change else {
                seen.add(range);
                continue;
            };
            let name = names[usize::from(range.device_index)];
            for (run, is_direct) in self.split_direct((key, name), range, &seen, over_blocks)? {
                let length = usize::try_from(run.count).expect("checked with the payload");
                let end = at + length * BLOCK_SIZE;
                if is_direct {
                    self.write_run(name, run, payload.slice(at..end))?;
                    self.bytes_free = self.bytes_free.saturating_sub((end - at) as u64);
                    direct.push(run);
                } else {
                    match images.last_mut() {
                        Some(last) if last.end == at => last.end = end,
                        _ => images.push(at..end),
                    }
                }
                at = end;
            }
            seen.add(range);
        }
        Ok((direct, images))
    }

    fn write_run(
        &mut self,
        name: PortionName,
        run: BlockRange,
        bytes: Bytes,
    ) -> Result<(), IoRefusal> {
        if run.count < self.limits.uncached_blocks_min {
            let written = self.files.write_blocks(name, run, &bytes);
            return written.map_err(|error| disk_refusal(&error));
        }
        let writes = self.files.begin_blocks(name, run, &bytes);
        let writes = writes.map_err(|error| disk_refusal(&error))?;
        for (run, write) in writes {
            self.direct.begin(name, run, write);
        }
        Ok(())
    }

    // Cuts a range into runs that may go to their place at once and runs that may not.
    fn split_direct(
        &mut self,
        (key, name): (SlotKey, PortionName),
        range: BlockRange,
        seen: &RangeSet,
        over_blocks: bool,
    ) -> Result<Vec<(BlockRange, bool)>, IoRefusal> {
        let least = self.limits.direct_blocks_min;
        if range.count < least {
            return Ok(vec![(range, false)]);
        }
        let mut blocked = RangeSet::default();
        if let Some(group) = self.groups.get_mut(&key) {
            group.forget_aborted(self.synced);
            blocked = group.covered(range);
            group.aborted.iter().for_each(|(_, range)| blocked.add(*range));
        }
        seen.iter().for_each(|range| blocked.add(range));
        if !over_blocks && !braid_terms::planted!("W-8/direct-over-blocks-that-exist") {
            for run in runs(range) {
                let of_group = run.first / GROUP_BLOCKS;
                let checksums = self.files.checksums(name, of_group);
                let checksums = checksums.map_err(|error| portion_refusal(&error))?;
                if checksums.count() == 0 {
                    continue;
                }
                for first in run.first..run.first + run.count {
                    let index = usize::try_from(first % GROUP_BLOCKS).expect("below 512");
                    if checksums.get(index).is_some() {
                        blocked.add(BlockRange { first, count: 1, ..range });
                    }
                }
            }
        }
        let mut parts: Vec<(BlockRange, bool)> = Vec::new();
        let mut at = range.first;
        for gap in blocked.gaps(range).into_iter().filter(|gap| least <= gap.count) {
            if at < gap.first {
                parts.push((BlockRange { first: at, count: gap.first - at, ..range }, false));
            }
            at = gap.first + gap.count;
            parts.push((gap, true));
        }
        let end = range.first + range.count;
        if at < end {
            parts.push((BlockRange { first: at, count: end - at, ..range }, false));
        }
        Ok(parts)
    }

    fn place(&self, appended: Appended, images: &[std::ops::Range<usize>]) -> Place {
        let bytes: usize = images.iter().map(ExactSizeIterator::len).sum();
        Place {
            position: appended.position,
            journal: self.journal.file.clone(),
            images_at: appended.images_at,
            image_count: u32::try_from(bytes / BLOCK_SIZE).expect("below IMAGES_MAX"),
        }
    }

    fn touched(&mut self) {
        self.busy_at = self.env.now();
        self.evict(self.limits.groups_max);
    }
}

/// The group and slot that a fence names.
pub(crate) fn key_of(fence: &Fence) -> SlotKey {
    SlotKey { group: fence.group, slot: fence.slot }
}

/// Checks a layout from outside.
pub(crate) fn check_layout(layout: &GroupLayout, key: SlotKey) -> Result<(), IoRefusal> {
    layout.check().map_err(|error| IoRefusal::BadRequest { reason: error.to_string() })?;
    if slot_fits(layout, key) { Ok(()) } else { Err(bad("the layout has no such group and slot")) }
}

/// A refusal of what contradicts itself.
pub(crate) fn bad(reason: &str) -> IoRefusal {
    IoRefusal::BadRequest { reason: reason.to_owned() }
}

/// The journalled parts of a payload.
#[must_use]
pub(crate) fn slices<'a>(payload: &'a Bytes, images: &[std::ops::Range<usize>]) -> Vec<&'a [u8]> {
    images.iter().map(|range| &payload[range.clone()]).collect()
}
