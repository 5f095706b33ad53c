//! What is known of one group at one slot: fence, marks, chain, kept records.
//! # Theory
//! A slot is the applied state (in the portion files) and, on top, the *kept* records in the order
//! of the journal. A read paints kept records up to `decided` over the applied state; a checkpoint
//! applies and drops a prefix of those up to `stable`.
//! ```text
//!  applied (base_prev) | kept: 5 6 7 8 9 |
//!                            ^stable  ^decided      <- what a read with decided = 8 sees: 5..8
//! ```
//! # Invariants
//! G1 Kept records are in the order of their numbers, and each names the one before it as `prev`.
//! G2 `stable` is at most `decided`; neither goes back.
//! G3 Whatever an absent slot lacks of a dropped record is in its miss map.
//! # Source
//! W-1, W-4, W-12, F-2.

use std::collections::VecDeque;

use braid_env::File;
use braid_terms::{DeviceId, GrantNumber, GroupLayout, JournalPosition, PortionIndex, WriteNumber};
use braid_wire::io::{Absent, BlockRange, Change, Participant, Record, RecordKind};
use braid_wire::operations::{OPERATIONS_MAX, Operations};

use crate::journal_body::{GroupPicture, Shape, SlotKey};
use crate::miss_map::MissMap;
use crate::range_set::RangeSet;

/// A group at one slot.
pub struct Group {
    /// Which.
    pub key: SlotKey,
    /// Where it lives.
    pub layout: GroupLayout,
    /// By records, a header or a rejoin; an open alone makes nothing known.
    pub known: bool,
    /// Its home.
    pub home: DeviceId,
    /// Its fence.
    pub grant: GrantNumber,
    /// Opened (or made) since this start. Source: O-5.
    pub opened: bool,
    /// The record before the first kept one; the last one, where none is kept.
    pub base_prev: WriteNumber,
    /// The last record taken.
    pub last: WriteNumber,
    /// Newest decided mark.
    pub decided: WriteNumber,
    /// Newest stable mark.
    pub stable: WriteNumber,
    /// Newest outcome record: number, where what came before it ends, position.
    pub outcome: Option<(WriteNumber, WriteNumber, JournalPosition)>,
    /// Lengths of the devices as of the applied state.
    pub lengths: Vec<u64>,
    /// Existing portions as of the applied state.
    pub existing: u32,
    /// The write whose lengths they are.
    pub lengths_at: WriteNumber,
    /// Last writes of former grants, as of the applied state. Source: W-9.
    pub ends: Vec<WriteNumber>,
    /// Latest changes of clients, as of the applied state. Source: N-3.
    pub operations: Operations,
    /// Slots under a fact.
    pub absent: Vec<Absent>,
    /// What they missed of dropped records.
    pub missed: MissMap,
    /// What joining ones would have missed if their join failed.
    pub missed_joining: MissMap,
    /// Records above it may be lost here. Source: S-3.
    pub damaged_after: Option<WriteNumber>,
    /// Damages of the disk's journal that are repaired here.
    pub damages_repaired: u32,
    /// Its portion files may be missing still: they are made when records are applied.
    pub files_expected: bool,
    /// Rejoined in this start: rebuilt blocks may go straight over what is there.
    pub rejoined: bool,
    /// The headers do not say what must survive an eviction.
    pub header_dirty: bool,
    /// Kept records and rebuilt blocks, in the order of the journal.
    pub entries: VecDeque<Entry>,
    /// Blocks whose direct bytes belong to a dropped record, and the position that dropped it. Until
    /// that is on the medium the record may come back, and would want its bytes. Source: W-8.
    pub aborted: Vec<(JournalPosition, BlockRange)>,
    /// Counts changes of what lies in place, so that a read that overlapped one is read again.
    pub epoch: u64,
    /// When it was last used, by the store's counter.
    pub used: u64,
}

/// What headers say of the applied state.
pub struct AppliedState {
    /// Lengths of the devices.
    pub lengths: Vec<u64>,
    /// Existing portions.
    pub existing: u32,
    /// The write whose lengths they are.
    pub lengths_at: WriteNumber,
    /// The last record that is applied.
    pub base_prev: WriteNumber,
    /// Last writes of former grants.
    pub ends: Vec<WriteNumber>,
    /// Latest changes of clients.
    pub operations: Operations,
}

/// A kept record, or rebuilt blocks.
pub struct Entry {
    /// Its position.
    pub position: JournalPosition,
    /// Visible from this decided mark on: the record's number.
    pub number: WriteNumber,
    /// The record without its changes; none for rebuilt blocks.
    pub record: Option<Record>,
    /// Its changes.
    pub pieces: Vec<Piece>,
    /// The journal file with its images.
    pub journal: File,
    /// Footprint of its pieces: first block and end over both devices, to skip it quickly.
    pub span: (u64, u64),
}

/// A run of blocks with one source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The blocks.
    pub range: BlockRange,
    /// Where their bytes are.
    pub source: Source,
    /// Their checksums; empty for `Punch`.
    pub crcs: Vec<u32>,
}

/// Where the bytes of a piece are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// In the entry's journal file from this byte on.
    Image(u64),
    /// At their place in the portion file.
    Direct,
    /// Nowhere: they read as zeros.
    Punch,
}

impl Group {
    /// A slot of which nothing is known.
    #[must_use]
    pub fn unknown(key: SlotKey, layout: GroupLayout) -> Self {
        let lengths = vec![0; layout.devices.len()];
        Self {
            key,
            layout,
            known: false,
            home: DeviceId(0),
            grant: GrantNumber::default(),
            opened: false,
            base_prev: WriteNumber::NONE,
            last: WriteNumber::NONE,
            decided: WriteNumber::NONE,
            stable: WriteNumber::NONE,
            outcome: None,
            lengths,
            existing: 0,
            lengths_at: WriteNumber::NONE,
            ends: Vec::new(),
            operations: Operations::default(),
            absent: Vec::new(),
            missed: MissMap::default(),
            missed_joining: MissMap::default(),
            damaged_after: None,
            damages_repaired: 0,
            files_expected: false,
            rejoined: false,
            header_dirty: false,
            entries: VecDeque::new(),
            aborted: Vec::new(),
            epoch: 0,
            used: 0,
        }
    }

    /// Moves the marks forward.
    ///
    /// Returns whether one moved.
    pub fn take_marks(&mut self, decided: WriteNumber, stable: WriteNumber) -> bool {
        let before = (self.decided, self.stable);
        self.stable = self.stable.max(stable);
        self.decided = self.decided.max(decided).max(self.stable);
        before != (self.decided, self.stable)
    }

    /// Takes the owner's list of slots under a fact. Source: F-2.
    ///
    /// What a joining slot would have missed becomes missed when its join ends without a close.
    pub fn take_absent(&mut self, absent: &[Absent]) {
        for old in &self.absent {
            let new = absent.iter().find(|new| new.slot == old.slot);
            if new.is_some_and(|new| new.joining_from != old.joining_from) {
                let ranges = self.missed_joining.take(old.slot);
                self.missed.add_all(old.slot, &ranges);
            }
        }
        let still = |slot| absent.iter().any(|new| new.slot == slot);
        self.missed.retain(still);
        self.missed_joining.retain(still);
        self.absent = absent.to_vec();
    }

    /// Adds a record that was judged fit to follow.
    pub fn push_record(&mut self, record: Record, pieces: Vec<Piece>, at: (JournalPosition, File)) {
        let number = record.number;
        if let RecordKind::Outcome { ends_at } = record.kind {
            // Rebuilt blocks stay: they are the state at a decided mark.
            if !braid_terms::planted!("W-6/what-an-outcome-left-out-comes-back") {
                self.drop_entries(at.0, |entry| entry.record.is_some() && ends_at < entry.number);
            }
            self.outcome = Some((number, ends_at, at.0));
        }
        self.last = number;
        self.known = true;
        self.entries.push_back(Entry::new(number, Some(record), pieces, at));
    }

    /// Adds rebuilt blocks.
    pub fn push_rebuilt(
        &mut self,
        decided: WriteNumber,
        pieces: Vec<Piece>,
        at: (JournalPosition, File),
    ) {
        self.entries.push_back(Entry::new(decided, None, pieces, at));
    }

    /// Puts a void record in the place of the record of its number.
    pub fn replace_by_void(&mut self, record: Record, at: (JournalPosition, File)) {
        let number = record.number;
        let entry = self.entries.iter_mut().find(|entry| entry.is_record(number));
        let entry = entry.expect("the judge found the record");
        self.aborted.extend(entry.direct_ranges().map(|range| (at.0, range)));
        *entry = Entry::new(number, Some(record), Vec::new(), at);
    }

    /// Drops kept entries because of the journal record at `position`.
    pub fn drop_entries(&mut self, position: JournalPosition, drops: impl Fn(&Entry) -> bool) {
        for entry in self.entries.iter().filter(|entry| drops(entry)) {
            self.aborted.extend(entry.direct_ranges().map(|range| (position, range)));
        }
        self.entries.retain(|entry| !drops(entry));
    }

    /// Removes the newest records down to (without) `number`, as if they had never been taken.
    pub fn lose_from(&mut self, number: WriteNumber) {
        let Some(index) = self.entries.iter().position(|entry| entry.is_record(number)) else {
            return;
        };
        let lost = self.entries[index].record.as_ref();
        self.last = lost.map_or(self.base_prev, |record| record.prev);
        self.entries.truncate(index);
        if self.outcome.is_some_and(|(outcome, _, _)| outcome >= number) {
            self.outcome = None;
        }
    }

    /// How many of the kept entries may be applied: a prefix, stable and on the medium.
    #[must_use]
    pub fn applicable(&self, synced: JournalPosition) -> usize {
        let is_stable = |entry: &Entry| {
            entry.number <= self.stable || braid_terms::planted!("W-9/apply-before-stable")
        };
        let fits = |entry: &&Entry| is_stable(entry) && entry.position <= synced;
        self.entries.iter().take_while(fits).count()
    }

    /// The applied state after the first `count` entries were applied.
    #[must_use]
    pub fn applied_state(&self, count: usize) -> AppliedState {
        let mut records = self.entries.iter().take(count).filter_map(|entry| entry.record.as_ref());
        let newest = records
            .rfind(|record| record.kind == RecordKind::Write && self.lengths_at < record.number);
        let (lengths, existing, lengths_at) = match newest {
            Some(record) => (record.lengths.clone(), record.existing, record.number),
            None => (self.lengths.clone(), self.existing, self.lengths_at),
        };
        let mut records = self.entries.iter().take(count).filter_map(|entry| entry.record.as_ref());
        let ends = records.rfind(|record| !record.ends.is_empty());
        let ends = ends.map_or(&self.ends, |record| &record.ends).clone();
        let first_kept = self.entries.iter().skip(count).find_map(|entry| entry.record.as_ref());
        let base_prev = first_kept.map_or(self.last, |record| record.prev);
        let records = self.entries.iter().take(count).filter_map(|entry| entry.record.as_ref());
        let operations = self.operations_with(records);
        AppliedState { lengths, existing, lengths_at, base_prev, ends, operations }
    }

    /// Drops the first `count` entries, which are applied: lengths move, misses are noted (G3).
    pub fn drop_applied(&mut self, count: usize) {
        let AppliedState { lengths, existing, lengths_at, base_prev, ends, operations } =
            self.applied_state(count);
        self.operations = operations;
        self.ends = ends;
        self.lengths = lengths;
        self.existing = existing;
        self.lengths_at = lengths_at;
        self.base_prev = base_prev;
        for entry in self.entries.drain(..count).collect::<Vec<_>>() {
            let record = entry.record.filter(|record| record.kind == RecordKind::Write);
            record.iter().for_each(|record| self.note_missed(record));
        }
    }

    fn note_missed(&mut self, record: &Record) {
        if braid_terms::planted!("F-2/nothing-is-noted-as-missed") {
            return;
        }
        for (slot, range, joined) in self.misses_of(record) {
            let map = if joined { &mut self.missed_joining } else { &mut self.missed };
            map.add(slot, range);
        }
    }

    /// What absent slots lack: of dropped records, and of kept ones up to the stable mark, which
    /// reports do not list. Source: F-2.
    #[must_use]
    pub fn missed_so_far(&self) -> MissMap {
        let mut missed = self.missed.clone();
        let stable = self.entries.iter().filter(|entry| entry.number <= self.stable);
        let records = stable.filter_map(|entry| entry.record.as_ref());
        for record in records.filter(|record| record.kind == RecordKind::Write) {
            for (slot, range, joined) in self.misses_of(record) {
                if !joined {
                    missed.add(slot, range);
                }
            }
        }
        missed
    }

    /// Slots that lack a record, the blocks, and whether only a failed join would make it so.
    fn misses_of(&self, record: &Record) -> Vec<(PortionIndex, BlockRange, bool)> {
        let mut misses = Vec::new();
        for footprint in &record.footprints {
            for slot in 1..=u8::try_from(self.layout.scheme.portions()).unwrap_or(u8::MAX) {
                if slot > 32 || footprint.slots >> (slot - 1) & 1 == 0 {
                    continue;
                }
                let slot = PortionIndex(slot);
                if slot == self.key.slot {
                    // What is here is not lacked here.
                    continue;
                }
                let absent = self.absent.iter().find(|absent| absent.slot == slot);
                let asked = |asked: &Participant| asked.slot == slot;
                match absent {
                    Some(Absent { joining_from: Some(from), .. }) if record.number >= *from => {
                        misses.push((slot, footprint.range, true));
                    }
                    Some(_) => misses.push((slot, footprint.range, false)),
                    // Skipped, so there is a fact, also where its news are still on the way.
                    None if !record.participants.iter().any(asked) => {
                        misses.push((slot, footprint.range, false));
                    }
                    None => {}
                }
            }
        }
        misses
    }

    /// Lengths and existing portions at the newest record up to the stable mark.
    #[must_use]
    pub fn stable_lengths(&self) -> (Vec<u64>, u32) {
        let newest = self
            .entries
            .iter()
            .rev()
            .filter(|entry| entry.number <= self.stable && entry.number > self.lengths_at)
            .filter_map(|entry| entry.record.as_ref())
            .find(|record| record.kind == RecordKind::Write);
        match newest {
            Some(record) => (record.lengths.clone(), record.existing),
            None => (self.lengths.clone(), self.existing),
        }
    }

    /// Last writes of former grants, at the newest record up to the stable mark that tells them.
    #[must_use]
    pub fn stable_ends(&self) -> Vec<WriteNumber> {
        let stable = self.entries.iter().rev().filter(|entry| entry.number <= self.stable);
        let mut records = stable.filter_map(|entry| entry.record.as_ref());
        let newest = records.find(|record| !record.ends.is_empty());
        newest.map_or(&self.ends, |record| &record.ends).clone()
    }

    /// Latest changes of clients up to the stable mark.
    #[must_use]
    pub fn stable_operations(&self) -> Operations {
        let stable = self.entries.iter().filter(|entry| entry.number <= self.stable);
        self.operations_with(stable.filter_map(|entry| entry.record.as_ref()))
    }

    /// Latest changes of the applied state and these records behind it.
    fn operations_with<'a>(&self, records: impl Iterator<Item = &'a Record>) -> Operations {
        let mut operations = self.operations.clone();
        for record in records {
            operations.take(record);
            operations.limit(OPERATIONS_MAX);
        }
        operations
    }

    /// Forgets aborted blocks whose abort is on the medium.
    pub fn forget_aborted(&mut self, synced: JournalPosition) {
        self.aborted.retain(|(position, _)| synced < *position);
    }

    /// Blocks of `range` that some kept entry changes.
    #[must_use]
    pub fn covered(&self, range: BlockRange) -> RangeSet {
        let mut covered = RangeSet::default();
        let end = range.first + range.count;
        for entry in self.entries.iter().filter(|entry| entry.meets(range.first, end)) {
            let pieces = entry.pieces.iter().map(|piece| piece.range);
            pieces
                .filter(|piece| piece.device_index == range.device_index)
                .for_each(|piece| covered.add(piece));
        }
        covered
    }

    /// Whether it may leave the memory: the headers say all of it.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.entries.is_empty()
            && !self.header_dirty
            && self.absent.is_empty()
            && self.missed.is_empty()
            && self.missed_joining.is_empty()
            && self.damaged_after.is_none()
            && (self.known || self.last == WriteNumber::NONE)
            && !self.files_expected
    }

    /// What names its portion files.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape {
            count: u8::try_from(self.layout.scheme.portions()).expect("layouts were checked"),
            second: self.layout.devices.get(1).copied().unwrap_or_default(),
        }
    }

    /// Its state for the journal, without kept records.
    #[must_use]
    pub fn picture(&self) -> GroupPicture {
        GroupPicture {
            key: self.key,
            layout: self.layout.clone(),
            known: self.known,
            home: self.home,
            grant: self.grant,
            prev: self.base_prev,
            last: self.last,
            decided: self.decided,
            stable: self.stable,
            outcome: self.outcome.map(|(number, ends_at, _)| (number, ends_at)),
            lengths: self.lengths.clone(),
            lengths_at: self.lengths_at,
            existing: self.existing,
            ends: self.ends.clone(),
            operations: self.operations.clone(),
            absent: self.absent.clone(),
            missed: self.missed.to_missed(),
            missed_joining: self.missed_joining.to_missed(),
            damaged_after: self.damaged_after,
            damages_repaired: self.damages_repaired,
            files_expected: self.files_expected,
            header_dirty: self.header_dirty,
        }
    }

    /// The other way; `None` where the picture contradicts itself.
    #[must_use]
    pub fn from_picture(picture: GroupPicture, position: JournalPosition) -> Option<Self> {
        let fits = picture.layout.check().is_ok()
            && slot_fits(&picture.layout, picture.key)
            && picture.lengths.len() == picture.layout.devices.len();
        if !fits {
            return None;
        }
        Some(Self {
            known: picture.known,
            home: picture.home,
            grant: picture.grant,
            base_prev: picture.prev,
            last: picture.last,
            decided: picture.decided,
            stable: picture.stable,
            outcome: picture.outcome.map(|(number, ends_at)| (number, ends_at, position)),
            lengths: picture.lengths,
            lengths_at: picture.lengths_at,
            existing: picture.existing,
            ends: picture.ends,
            operations: picture.operations,
            absent: picture.absent,
            missed: MissMap::from_missed(&picture.missed),
            missed_joining: MissMap::from_missed(&picture.missed_joining),
            damaged_after: picture.damaged_after,
            damages_repaired: picture.damages_repaired,
            files_expected: picture.files_expected,
            header_dirty: picture.header_dirty,
            ..Self::unknown(picture.key, picture.layout)
        })
    }
}

impl Entry {
    /// An entry with its span.
    #[must_use]
    pub fn new(
        number: WriteNumber,
        record: Option<Record>,
        pieces: Vec<Piece>,
        (position, journal): (JournalPosition, File),
    ) -> Self {
        let first = pieces.iter().map(|piece| piece.range.first).min().unwrap_or(0);
        let end = pieces.iter().map(|piece| piece.range.first + piece.range.count).max();
        Self { position, number, record, pieces, journal, span: (first, end.unwrap_or(0)) }
    }

    /// Whether it is the record of that number.
    #[must_use]
    pub fn is_record(&self, number: WriteNumber) -> bool {
        self.record.is_some() && self.number == number
    }

    /// Whether it may change blocks from `first` to `end`.
    #[must_use]
    pub fn meets(&self, first: u64, end: u64) -> bool {
        self.span.0 < end && first < self.span.1
    }

    /// Runs whose bytes are in the portion file.
    pub fn direct_ranges(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let direct = self.pieces.iter().filter(|piece| piece.source == Source::Direct);
        direct.map(|piece| piece.range)
    }

    /// Its changes as they came, and which of their blocks are in the portion file.
    #[must_use]
    pub fn to_changes(&self) -> (Vec<Change>, Vec<BlockRange>) {
        let change = |piece: &Piece| match piece.source {
            Source::Punch => Change::Punch(piece.range),
            Source::Image(_) | Source::Direct => Change::Write {
                device_index: piece.range.device_index,
                first: piece.range.first,
                crcs: piece.crcs.clone(),
            },
        };
        (self.pieces.iter().map(change).collect(), self.direct_ranges().collect())
    }
}

/// Whether a layout has such a group and slot.
#[must_use]
pub fn slot_fits(layout: &GroupLayout, key: SlotKey) -> bool {
    layout.group() == key.group
        && key.slot.0 >= 1
        && usize::from(key.slot.0) <= layout.scheme.portions()
}
