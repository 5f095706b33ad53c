//! Recovery: what a start makes of the journal it finds.
//! # Theory
//! A first pass over all segments finds the newest position known to be on the medium. A second one
//! repeats every record on the groups' states, as when it came. Then all that is kept is written to
//! a new segment and synced, the old ones are removed, and a checkpoint applies what is stable.
//! # States
//! ```text
//! segments -pass 1-> synced -pass 2-> states -new segment, sync-> old ones removed -apply-> serving
//! ```
//! # Invariants
//! V1 A record at or below the newest synced position is never dropped in silence.
//! V2 Nothing that was found counts as being on the medium before it was written again (S-4).
//! # Failure
//! A stop in recovery: the old segments are still there, the new one is not complete or repeats them.
//! # Source
//! S-3, S-4, W-8.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use braid_env::{Env, Folder};
use braid_terms::{BLOCK_SIZE, Incarnation, JournalPosition, PortionName, WriteNumber, sometimes};
use braid_wire::io::GroupMarks;
use serde::de::DeserializeOwned;

use crate::disk::DiskIdentity;
use crate::group::{Group, Source};
use crate::journal::{Found, FoundRecord, Journal, SegmentReader, segments};
use crate::journal_body::{
    GroupPicture, Kind, Opened, Picture, Prepared, Rebuilt, Rejoined, Removed, SlotKey,
};
use crate::portion_file::{PortionFiles, is_good, runs};
use crate::portion_page::block_offset;
use crate::prepare::{Verdict, judge};
use crate::requests::Place;
use crate::store::{Limits, Store};

/// What to do with what stands in a journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Repeat the record.
    Repeat,
    /// The journal ends here.
    Cut,
    /// This record's bytes are lost: the group is told so from here on.
    GroupDamaged,
    /// A record is lost and nobody knows whose: every group is told so.
    DiskDamaged,
}

/// Decides on a record, or on bytes in its place.
///
/// | head | images | synced | decision       | because                                           |
/// |------|--------|--------|----------------|---------------------------------------------------|
/// | good | good   | any    | `Repeat`       | it is whole                                       |
/// | good | bad    | yes    | `GroupDamaged` | it was on the medium and the medium lost it       |
/// | bad  | any    | yes    | `DiskDamaged`  | the same, and its group cannot be read            |
/// | good | bad    | no     | `Cut`          | a torn tail: nobody was told that it is stable    |
/// | bad  | any    | no     | `Cut`          | the same                                          |
///
/// `synced`: its position is at or below the newest position known to be on the medium.
///
/// Source: S-3.
#[must_use]
pub fn decide(head_good: bool, images_good: bool, synced: bool) -> Decision {
    let synced = synced && !braid_terms::planted!("S-3/damage-is-taken-for-a-torn-tail");
    match (head_good, images_good, synced) {
        (true, true, _) => Decision::Repeat,
        (true, false, true) => Decision::GroupDamaged,
        (false, _, true) => Decision::DiskDamaged,
        (true | false, false, false) | (false, true, false) => Decision::Cut,
    }
}

/// What the first pass finds.
#[derive(Default)]
struct Survey {
    segments: Vec<u64>,
    /// Newest position known to be on the medium.
    synced: JournalPosition,
    /// Newest position of all.
    newest: u64,
    /// Segments whose picture is complete, and the position at which it is.
    complete: BTreeMap<u64, u64>,
}

struct Replay<'a> {
    store: &'a mut Store,
    synced: JournalPosition,
    /// Groups whose state before the record in hand is known.
    seen: BTreeSet<SlotKey>,
    removed: BTreeMap<SlotKey, Vec<PortionName>>,
    disk_damaged: bool,
    cut: bool,
}

/// Reads a disk's journal and makes the state of before.
///
/// What follows is the caller's: new segment, sync, removal of the old ones, checkpoint.
pub(crate) fn recover(
    env: &Env,
    folder: &Folder,
    identity: DiskIdentity,
    limits: Limits,
) -> io::Result<Store> {
    let survey = survey(folder, identity)?;
    let number = survey.segments.last().map_or(1, |last| last + 1);
    let first = (survey.newest >> 32).saturating_add(1) << 32;
    let journal =
        Journal::begin(folder, identity, number, first, JournalPosition(0), env.random())?;
    let mut files = PortionFiles::new(folder.clone(), identity);
    files.repeating = true;
    let now = env.now();
    let mut store = Store {
        env: env.clone(),
        folder: folder.clone(),
        identity,
        limits,
        incarnation: Incarnation(0),
        groups: BTreeMap::new(),
        evicted: BTreeMap::new(),
        tombstones: BTreeMap::new(),
        files,
        direct: Default::default(),
        recent_reads: Default::default(),
        journal,
        unsynced_segments: Vec::new(),
        synced: JournalPosition(0),
        damages: 0,
        unapplied: false,
        busy_at: now,
        lease_until: now,
        bytes_free: 0,
        bytes_total: 0,
        uses: 0,
        evict_above: 0,
        status: Default::default(),
        failed: None,
        bell: Default::default(),
    };
    store.look_at_space()?;
    let mut replay = Replay {
        store: &mut store,
        synced: survey.synced,
        seen: BTreeSet::new(),
        removed: BTreeMap::new(),
        disk_damaged: false,
        cut: false,
    };
    replay.run(&survey)?;
    replay.finish()?;
    Ok(store)
}

fn survey(folder: &Folder, identity: DiskIdentity) -> io::Result<Survey> {
    let mut survey = Survey { segments: segments(folder)?, ..Survey::default() };
    for segment in &survey.segments {
        let Some(mut reader) = SegmentReader::open(folder, identity, *segment)? else { continue };
        survey.synced = survey.synced.max(reader.synced);
        survey.newest = survey.newest.max(reader.first);
        loop {
            match reader.next()? {
                Found::Record(record) => {
                    survey.synced = survey.synced.max(record.synced);
                    survey.newest = survey.newest.max(record.position.0);
                    if record.kind == Kind::PictureEnd {
                        survey.complete.insert(*segment, record.position.0);
                    }
                }
                Found::Gap => {}
                Found::End => break,
            }
        }
    }
    Ok(survey)
}

impl Replay<'_> {
    fn run(&mut self, survey: &Survey) -> io::Result<()> {
        let (folder, identity) = (self.store.folder.clone(), self.store.identity);
        let first_segment = survey.segments.first().copied();
        // A picture on the medium stands for all segments before it; without one, begin with the
        // oldest, which was complete when it became that.
        let on_medium = survey.complete.iter().rev().find(|(_, end)| **end <= survey.synced.0);
        let base = match (on_medium, survey.complete.iter().next()) {
            (Some((segment, _)), _) => *segment,
            (None, Some((segment, _))) => {
                self.disk_damaged = Some(*segment) != first_segment;
                *segment
            }
            (None, None) => {
                self.disk_damaged = true;
                return Ok(());
            }
        };
        let mut expected_segment = base;
        let mut last = 0;
        for segment in survey.segments.iter().copied().filter(|number| base <= *number) {
            if segment != expected_segment {
                self.disk_damaged = true;
            }
            expected_segment = segment + 1;
            let Some(mut reader) = SegmentReader::open(&folder, identity, segment)? else {
                // Without a head nothing of it can be told apart; a torn one had nothing synced.
                self.judge_gap(last + 1);
                if self.cut {
                    return Ok(());
                }
                continue;
            };
            let mut in_picture = true;
            if segment == base {
                last = reader.first.saturating_sub(1);
            } else if reader.first != last + 1 {
                // The end of the segment before is lost, or a start gave up here; that one had
                // promised nothing.
                self.judge_gap(last + 1);
                if self.cut {
                    return Ok(());
                }
                last = reader.first.saturating_sub(1);
            }
            loop {
                match reader.next()? {
                    Found::End => break,
                    Found::Gap => self.judge_gap(last + 1),
                    Found::Record(record) => {
                        if record.position.0 != last + 1 {
                            self.judge_gap(last + 1);
                        }
                        last = record.position.0;
                        let ends_picture = record.kind == Kind::PictureEnd;
                        if !self.cut && (!in_picture || segment == base) {
                            self.take(&reader, record, in_picture)?;
                        }
                        in_picture &= !ends_picture;
                    }
                }
                if self.cut {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    // Something that should be at `position` is not, or not readable.
    fn judge_gap(&mut self, position: u64) {
        match decide(false, false, position <= self.synced.0) {
            Decision::DiskDamaged => {
                tracing::error!(position, "the journal is damaged: records are lost");
                sometimes!("S-3: a journal was damaged");
                self.disk_damaged = true;
            }
            _ => {
                sometimes!("S-3: a torn end was cut");
                self.cut = true;
            }
        }
    }

    fn take(
        &mut self,
        reader: &SegmentReader,
        record: FoundRecord,
        in_picture: bool,
    ) -> io::Result<()> {
        let position = record.position;
        let place = Place {
            position,
            journal: reader.file.clone(),
            images_at: record.images_at,
            image_count: record.image_count,
        };
        let taken = match record.kind {
            Kind::Picture => parse(&record).map(|picture| self.take_picture(picture)),
            Kind::PictureGroup => parse(&record).and_then(|group: GroupPicture| {
                let group = Group::from_picture(group, position)?;
                self.seen.insert(group.key);
                self.store.groups.insert(group.key, group);
                Some(())
            }),
            Kind::PictureEnd | Kind::Synced => Some(()),
            Kind::Prepare => match parse(&record) {
                Some(prepared) => return self.take_prepare(prepared, &place, in_picture),
                None => None,
            },
            Kind::Rebuild => match parse(&record) {
                Some(rebuilt) => return self.take_rebuild(rebuilt, &place),
                None => None,
            },
            Kind::Open => parse(&record).and_then(|opened: Opened| {
                opened.layout.check().ok()?;
                self.removed.remove(&opened.key);
                self.store.take_open(opened).ok()
            }),
            Kind::Marks => parse(&record).map(|marks: Vec<GroupMarks>| {
                self.store.take_all_marks(marks);
            }),
            Kind::Rejoin => parse(&record).and_then(|rejoined: Rejoined| {
                rejoined.begin.layout.check().ok()?;
                self.seen.insert(rejoined.key);
                self.removed.remove(&rejoined.key);
                self.store.take_rejoin(rejoined, position).ok()
            }),
            Kind::Remove => parse(&record).and_then(|removed: Removed| {
                removed.layout.check().ok()?;
                let names = Store::names(&removed.layout, removed.key.slot);
                self.store.take_remove(&removed);
                self.seen.remove(&removed.key);
                self.removed.insert(removed.key, names);
                Some(())
            }),
        };
        if taken.is_none() {
            // Its checksum fits and its content does not: written by something that is not us.
            tracing::error!(position = position.0, kind = ?record.kind, "a record makes no sense");
            self.disk_damaged = true;
        }
        Ok(())
    }

    fn take_picture(&mut self, picture: Picture) {
        let until = self.store.env.now() + self.store.limits.tombstone;
        self.store.damages = picture.damages;
        self.store.tombstones =
            picture.tombstones.iter().map(|(key, grant)| (*key, (*grant, until))).collect();
    }

    fn take_prepare(
        &mut self,
        prepared: Prepared,
        place: &Place,
        in_picture: bool,
    ) -> io::Result<()> {
        let key = prepared.key;
        let (number, prev) = (prepared.record.number, prepared.record.prev);
        let images_good = self.images_good(&prepared.record.changes, &prepared.direct, place)?;
        match decide(true, images_good, place.position <= self.synced) {
            Decision::Repeat => {}
            Decision::Cut => {
                self.cut = true;
                return Ok(());
            }
            Decision::GroupDamaged | Decision::DiskDamaged => {
                self.damage(key, prev);
                return Ok(());
            }
        }
        self.removed.remove(&key);
        if prepared.create.is_none() && !self.store.groups.contains_key(&key) {
            let _ = self.store.load_shape(key, prepared.shape);
        }
        let group = self.store.groups.get_mut(&key);
        if prepared.create.is_none() && group.as_ref().is_none_or(|group| !group.known) {
            // No header: the portion file is lost, and the group will be found unknown.
            return Ok(());
        }
        let Some(group) = group else {
            self.seen.insert(key);
            let _ = self.store.take_prepare(prepared, place);
            return Ok(());
        };
        if self.seen.insert(key) {
            // Its header may be newer than this record: a checkpoint was cut short. What followed,
            // marks too, is repeated from here on.
            if prepared.create.is_some() {
                let _ = self.store.take_prepare(prepared, place);
                return Ok(());
            }
            group.last = prev;
            group.base_prev = prev;
            group.decided = prev;
            group.stable = prev;
        }
        let last_picture = group.last;
        if in_picture {
            let _ = self.store.take_prepare(prepared, place);
            if let Some(group) = self.store.groups.get_mut(&key) {
                group.last = last_picture;
            }
            return Ok(());
        }
        match judge(group, &prepared.record) {
            Verdict::Take | Verdict::ReplaceByVoid => {
                let _ = self.store.take_prepare(prepared, place);
            }
            Verdict::Bad(_) if prev == group.last && group.last < number => {
                // An outcome whose end is below what became stable later.
                let _ = self.store.take_prepare(prepared, place);
            }
            Verdict::Repeat(_) => {}
            Verdict::Gap | Verdict::Bad(_) => {
                let last = group.last;
                self.damage(key, last);
            }
        }
        Ok(())
    }

    fn take_rebuild(&mut self, rebuilt: Rebuilt, place: &Place) -> io::Result<()> {
        let key = rebuilt.key;
        if !self.images_good(&rebuilt.changes, &rebuilt.direct, place)? {
            match decide(true, false, place.position <= self.synced) {
                Decision::Cut => self.cut = true,
                _ => self.damage(key, WriteNumber::NONE),
            }
            return Ok(());
        }
        if !self.store.groups.contains_key(&key) {
            let _ = self.store.load_shape(key, rebuilt.shape);
        }
        let _ = self.store.take_rebuild(rebuilt, place);
        Ok(())
    }

    fn damage(&mut self, key: SlotKey, after: WriteNumber) {
        tracing::error!(group = %key.group, slot = %key.slot, %after, "journal records are lost");
        match self.store.groups.get_mut(&key) {
            Some(group) => {
                let earlier = group.damaged_after.unwrap_or(after);
                group.damaged_after = Some(earlier.min(after));
            }
            // Its state is not known: all groups are told.
            None => self.disk_damaged = true,
        }
    }

    fn images_good(
        &self,
        changes: &[braid_wire::io::Change],
        direct: &[braid_wire::io::BlockRange],
        place: &Place,
    ) -> io::Result<bool> {
        let pieces = crate::prepare::to_pieces(changes, direct, place.images_at, place.image_count);
        let Some(pieces) = pieces else { return Ok(false) };
        let mut block = vec![0; BLOCK_SIZE];
        for piece in pieces {
            let Source::Image(at) = piece.source else { continue };
            for (index, crc) in piece.crcs.iter().enumerate() {
                place.journal.read_exact_at(&mut block, at + (index * BLOCK_SIZE) as u64)?;
                if !is_good(&block, *crc) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn finish(mut self) -> io::Result<()> {
        let removed = std::mem::take(&mut self.removed);
        for (key, names) in removed {
            if !self.store.groups.contains_key(&key) {
                for name in names {
                    self.store.files.remove(name)?;
                    self.store.files.unsynced.folder(name);
                }
            }
        }
        if self.disk_damaged {
            self.store.damages += 1;
        }
        let keys: Vec<SlotKey> = self.store.groups.keys().copied().collect();
        for key in keys {
            self.check_direct(key)?;
            let damaged = self.disk_damaged;
            let group = self.store.groups.get_mut(&key).expect("its key was just listed");
            group.opened = false;
            group.rejoined = false;
            if damaged && group.damaged_after.is_none() {
                group.damaged_after = Some(group.last);
            }
        }
        self.store.unapplied = true;
        Ok(())
    }

    /// Verifies direct bytes that no sync is known to have covered, and writes them again, so that
    /// the next sync really brings them to the medium (V2). Where they are not what was promised,
    /// the record and all above it count as never taken.
    fn check_direct(&mut self, key: SlotKey) -> io::Result<()> {
        let group = &self.store.groups[&key];
        let names = Store::names(&group.layout, key.slot);
        if !group.entries.is_empty() || group.files_expected {
            // The start before may have made the files without having synced their names.
            names.iter().for_each(|name| self.store.files.unsynced.folder(*name));
        }
        for entry in &group.entries {
            for piece in entry.pieces.iter().filter(|piece| piece.source == Source::Direct) {
                let name = names[usize::from(piece.range.device_index)];
                let is_known = entry.position <= self.synced || entry.number <= group.stable;
                if is_known && self.store.files.file(name)?.is_none() {
                    // Synced bytes, and their file is lost: so is all that it had.
                    tracing::error!(group = %key.group, slot = %key.slot, "a portion file is lost");
                    let group = self.store.groups.get_mut(&key).expect("looked at above");
                    group.damaged_after = Some(WriteNumber::NONE);
                    return Ok(());
                }
            }
        }
        let mut lost = None;
        'entries: for (index, entry) in group.entries.iter().enumerate() {
            // What is stable was synced here, also where the marker that says so is lost; and its
            // place may have been punched and taken again since.
            if entry.position <= self.synced || entry.number <= group.stable {
                continue;
            }
            for piece in entry.pieces.iter().filter(|piece| piece.source == Source::Direct) {
                let name = names[usize::from(piece.range.device_index)];
                if !rewrite(&mut self.store.files, name, piece)? {
                    lost = Some(index);
                    break 'entries;
                }
            }
        }
        let group = self.store.groups.get_mut(&key).expect("looked at above");
        match lost.map(|index| (index, group.entries[index].record.is_some())) {
            Some((index, true)) => {
                let number = group.entries[index].number;
                group.lose_from(number);
            }
            Some((index, false)) => group.entries.truncate(index),
            None => {}
        }
        Ok(())
    }
}

fn rewrite(
    files: &mut PortionFiles,
    name: PortionName,
    piece: &crate::group::Piece,
) -> io::Result<bool> {
    let Some(file) = files.file(name)? else { return Ok(false) };
    for run in runs(piece.range) {
        let count = usize::try_from(run.count).expect("a run is within a group of blocks");
        let mut bytes = vec![0; count * BLOCK_SIZE];
        let found = file.read_exact_at(&mut bytes, block_offset(run.first));
        if found.is_err() {
            return Ok(false);
        }
        for (index, block) in bytes.chunks_exact(BLOCK_SIZE).enumerate() {
            let at = usize::try_from(run.first - piece.range.first).expect("in memory") + index;
            if !is_good(block, piece.crcs[at]) {
                return Ok(false);
            }
        }
        files.write_blocks(name, run, &bytes)?;
    }
    Ok(true)
}

fn parse<T: DeserializeOwned>(record: &FoundRecord) -> Option<T> {
    postcard::from_bytes(&record.body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // Proves: S-3.
    fn the_table_is_walked() {
        for case in 0..8 {
            let (head, images, synced) = (case & 1 == 1, case & 2 == 2, case & 4 == 4);
            let decision = decide(head, images, synced);
            assert_eq!(decision == Decision::Repeat, head && images);
            let whole = head && images;
            assert_eq!(decision == Decision::Cut, !(whole || synced));
            assert_eq!(decision == Decision::GroupDamaged, head && !images && synced);
            assert_eq!(decision == Decision::DiskDamaged, !head && synced);
        }
    }
}
