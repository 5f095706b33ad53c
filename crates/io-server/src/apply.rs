//! Apply: moves what is stable from the journal into the portion files.
//! # Theory
//! The newest change of each block wins, so entries are walked from the newest to the oldest and a
//! block is touched once. Direct bytes are in their place already; only their checksum is entered.
//! ```text
//! entries 5 6 7 (stable) | 8 (kept, direct at block 3)
//! 7 first: its blocks; then 6: what 7 has not; then 5. Block 3 gets its checksum entry, but its
//! bytes are 8's and stay.
//! ```
//! # Invariants
//! A1 Only entries that are stable and on the medium are applied: a torn block can be repeated.
//! A2 Applying twice gives the same as applying once, also after later direct writes.
//! A3 A file that was lost is not made anew from what the journal still has of it: the owner must
//! learn that all below is gone.
//! # Failure
//! An error leaves the entries kept; what is cached of the files is dropped, and reads go on seeing
//! the kept entries over whatever is below.
//! # Source
//! W-8, W-9, S-1.

use std::collections::BTreeSet;

use braid_terms::{BLOCK_SIZE, PortionName};
use braid_wire::io::BlockRange;

use crate::group::{AppliedState, Entry, Group, Piece, Source};
use crate::journal_body::SlotKey;
use crate::portion_file::{PortionError, Presence, runs};
use crate::portion_page::{Checksums, GROUP_BLOCKS, Header};
use crate::range_set::RangeSet;
use crate::store::Store;

/// Blocks that are copied at once.
const COPY_BLOCKS: u64 = 64;

impl Store {
    /// Applies what may be applied of a group and drops it from the kept entries.
    ///
    /// Returns the number of bytes copied. Errors: nothing was dropped.
    pub fn apply_group(&mut self, key: SlotKey) -> Result<u64, PortionError> {
        let Some(mut group) = self.groups.remove(&key) else { return Ok(0) };
        let count = group.applicable(self.synced);
        group.epoch += 1;
        group.forget_aborted(self.synced);
        let result = if 0 < count || group.header_dirty {
            self.apply_entries(&mut group, count)
        } else {
            Ok(0)
        };
        if result.is_err() {
            Self::names(&group.layout, key.slot).iter().for_each(|name| self.files.forget(*name));
        }
        self.groups.insert(key, group);
        result
    }

    fn apply_entries(&mut self, group: &mut Group, count: usize) -> Result<u64, PortionError> {
        let names = Self::names(&group.layout, group.key.slot);
        for name in names.iter().filter(|_| !group.files_expected) {
            if matches!(self.files.presence(*name)?, Presence::None | Presence::Begun) {
                return Err(PortionError::FileLost);
            }
        }
        let mut direct_later = RangeSet::default();
        for entry in group.entries.iter().skip(count) {
            let direct = entry.pieces.iter().filter(|piece| piece.source == Source::Direct);
            direct.for_each(|piece| direct_later.add(piece.range));
        }
        let mut done = RangeSet::default();
        let mut pages = BTreeSet::new();
        let mut copied = 0;
        for entry in group.entries.iter().take(count).rev() {
            for piece in entry.pieces.iter().rev() {
                for run in self.runs_of(&names, piece, done.gaps(piece.range))? {
                    let name = names[usize::from(run.device_index)];
                    let page = (run.device_index, run.first / GROUP_BLOCKS);
                    self.files.checksums(name, page.1)?;
                    pages.insert(page);
                    enter_checksums(self.files.checksums_mut(name, page.1)?, piece, run);
                    for part in direct_later.gaps(run) {
                        copied += self.place_bytes(name, entry, piece, part)?;
                    }
                }
                done.add(piece.range);
            }
        }
        for (device, page) in pages {
            let name = names[usize::from(device)];
            if 0 < page {
                self.files.write_page(name, page)?;
            }
        }
        let state = group.applied_state(count);
        for (index, name) in names.iter().enumerate() {
            self.files.write_header(*name, header_of(group, &state, index))?;
        }
        group.drop_applied(count);
        group.header_dirty = false;
        group.files_expected = false;
        Ok(copied)
    }

    // What of a piece is to be entered, each run within one block group.
    fn runs_of(
        &mut self,
        names: &[PortionName],
        piece: &Piece,
        gaps: Vec<BlockRange>,
    ) -> Result<Vec<BlockRange>, PortionError> {
        if piece.source != Source::Punch {
            return Ok(gaps.into_iter().flat_map(runs).collect());
        }
        let mut held = Vec::new();
        for gap in gaps {
            let name = names[usize::from(gap.device_index)];
            held.extend(self.files.held_runs(name, gap)?);
        }
        Ok(held)
    }

    // Brings the bytes of one run of a piece to their place.
    fn place_bytes(
        &mut self,
        name: PortionName,
        entry: &Entry,
        piece: &Piece,
        run: BlockRange,
    ) -> Result<u64, PortionError> {
        match piece.source {
            Source::Direct => Ok(0),
            Source::Punch => {
                self.files.punch_blocks(name, run)?;
                Ok(0)
            }
            Source::Image(images_at) => {
                let mut at = run.first;
                let end = run.first + run.count;
                let mut buffer = vec![0; BLOCK_SIZE * usize_of(run.count.min(COPY_BLOCKS))];
                while at < end {
                    let count = (end - at).min(COPY_BLOCKS);
                    let bytes = &mut buffer[..usize_of(count) * BLOCK_SIZE];
                    let offset = images_at + (at - piece.range.first) * BLOCK_SIZE as u64;
                    entry.journal.read_exact_at(bytes, offset)?;
                    let part = BlockRange { first: at, count, ..run };
                    self.files.write_blocks(name, part, bytes)?;
                    at += count;
                }
                Ok(run.count * BLOCK_SIZE as u64)
            }
        }
    }
}

fn enter_checksums(checksums: &mut Checksums, piece: &Piece, run: BlockRange) {
    for block in run.first..run.first + run.count {
        let index = usize_of(block % GROUP_BLOCKS);
        let crc = match piece.source {
            Source::Punch => None,
            Source::Direct | Source::Image(_) => {
                Some(piece.crcs[usize_of(block - piece.range.first)])
            }
        };
        checksums.set(index, crc);
    }
}

fn header_of(group: &Group, state: &AppliedState, device: usize) -> Header {
    let applied = |(number, _, _): &_| *number <= state.base_prev;
    Header {
        layout: group.layout.clone(),
        home: group.home,
        file_id: group.layout.group(),
        existing: state.existing,
        ends: state.ends.clone(),
        operations: state.operations.clone(),
        length: state.lengths.get(device).copied().unwrap_or(0),
        last: state.base_prev,
        fence: group.grant,
        outcome: group.outcome.filter(applied).map(|(number, ends_at, _)| (number, ends_at)),
        damages_repaired: group.damages_repaired,
    }
}

fn usize_of(count: u64) -> usize {
    usize::try_from(count).expect("counts within a group of blocks")
}
