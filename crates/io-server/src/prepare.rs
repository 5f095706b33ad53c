//! Prepare: whether a slot takes a record.
//! # Theory
//! Records of a slot form a chain by `prev`. A slot takes the next one, answers one that it has as
//! it did before, and refuses all else, so that what it holds is always a prefix of what it was sent.
//! # Invariants
//! P1 A number stands for one content, except that a void record replaces what is not decided.
//! # Source
//! W-1, W-2; I2 of `wire::io`.

use braid_terms::{BLOCK_SIZE, JournalPosition, WriteNumber, sometimes};
use braid_wire::io::{BlockRange, Change, ENDS_MAX, Record, RecordKind};
use braid_wire::operations::OPERATIONS_MAX;

use crate::group::{Group, Piece, Source};
use crate::portion_page::BLOCKS_MAX;

/// Most changes and most footprints of one record.
const PARTS_MAX: usize = 1 << 16;

/// What to do with a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It follows: take it.
    Take,
    /// It was taken: give the first answer.
    Repeat(JournalPosition),
    /// It withdraws a record that is kept and not decided.
    ReplaceByVoid,
    /// It does not follow.
    Gap,
    /// It contradicts itself or what is settled.
    Bad(&'static str),
}

/// Judges a record.
///
/// | kept  | record is void, kept is not | number           | prev    | verdict                   |
/// |-------|-----------------------------|------------------|---------|---------------------------|
/// | yes   | yes                         | above decided    | any     | `ReplaceByVoid`           |
/// | yes   | no, or decided              | any              | any     | `Repeat`                  |
/// | no    | any                         | the last one     | any     | `Repeat`: it was dropped  |
/// | no    | any                         | below the last   | any     | `Gap`                     |
/// | no    | any                         | above the last   | last    | `Take`                    |
/// | no    | any                         | above the last   | another | `Gap`                     |
///
/// Source: W-1.
#[must_use]
pub fn judge(group: &Group, record: &Record) -> Verdict {
    if let RecordKind::Outcome { ends_at } = record.kind
        && (record.number.sequence != 0 || ends_at >= record.number)
    {
        return Verdict::Bad("an outcome record has sequence 0 and ends before itself");
    }
    let number = record.number;
    // What is above the last one cannot be kept; without this, each new record would look at all.
    let kept = group.entries.iter().rev().take_while(|_| number <= group.last);
    if let Some(entry) = kept.into_iter().find(|entry| entry.is_record(number)) {
        let is_void = |record: &Record| record.kind == RecordKind::Void;
        let withdraws = is_void(record) && !entry.record.as_ref().is_some_and(is_void);
        sometimes!("W-1: a record came twice");
        if withdraws && number > group.decided {
            return Verdict::ReplaceByVoid;
        }
        return Verdict::Repeat(entry.position);
    }
    if number == WriteNumber::NONE {
        return Verdict::Bad("a record has a number");
    }
    if number == group.last {
        return Verdict::Repeat(JournalPosition(0));
    }
    if number < group.last
        || record.prev != group.last && !braid_terms::planted!("W-1/a-gap-is-taken")
    {
        sometimes!("W-1: a record with a gap before it was refused");
        return Verdict::Gap;
    }
    match record.kind {
        RecordKind::Outcome { ends_at } if ends_at < group.stable => {
            Verdict::Bad("an outcome ends below what is stable")
        }
        _ => Verdict::Take,
    }
}

/// Checks what does not depend on the slot's state: counts, ranges, the payload's length.
///
/// Errors: what is wrong.
pub fn check_shape(
    record: &Record,
    devices: usize,
    payload_length: usize,
) -> Result<(), &'static str> {
    if record.lengths.len() != devices {
        return Err("one length a device");
    }
    if record.participants.len() > braid_terms::PORTIONS_MAX
        || record.footprints.len() > PARTS_MAX
        || record.ends.len() > ENDS_MAX
        || record.operations.as_ref().is_some_and(|told| told.done.len() > OPERATIONS_MAX)
    {
        return Err("too many participants or footprints");
    }
    if record.kind != RecordKind::Write && !record.changes.is_empty() {
        return Err("only writes change blocks");
    }
    record.footprints.iter().try_for_each(|part| check_range(part.range, devices))?;
    check_changes(&record.changes, devices, payload_length)
}

/// Checks changes against their payload.
///
/// Errors: what is wrong.
pub fn check_changes(
    changes: &[Change],
    devices: usize,
    payload_length: usize,
) -> Result<(), &'static str> {
    if changes.len() > PARTS_MAX {
        return Err("too many changes");
    }
    let mut blocks = 0;
    for change in changes {
        check_range(change_range(change), devices)?;
        if let Change::Write { crcs, .. } = change {
            blocks += crcs.len();
        }
    }
    if blocks * BLOCK_SIZE != payload_length {
        return Err("the payload is not the changes' blocks");
    }
    Ok(())
}

/// Checks a range from outside.
///
/// Errors: what is wrong.
pub fn check_range(range: BlockRange, devices: usize) -> Result<(), &'static str> {
    if usize::from(range.device_index) >= devices {
        return Err("the group has no such device");
    }
    let end = range.first.checked_add(range.count);
    if range.count == 0 || end.is_none_or(|end| end > BLOCKS_MAX) {
        return Err("a range is empty or beyond the largest portion");
    }
    Ok(())
}

/// The blocks that a change is about.
#[must_use]
pub fn change_range(change: &Change) -> BlockRange {
    match change {
        Change::Write { device_index, first, crcs } => {
            BlockRange { device_index: *device_index, first: *first, count: crcs.len() as u64 }
        }
        Change::Punch(range) => *range,
    }
}

/// Splits changes into pieces: `direct` names the blocks that are in the portion file; images
/// follow each other from byte `images_at` of the journal file.
///
/// `None` where the number of images is not that of the record: damage.
#[must_use]
pub fn to_pieces(
    changes: &[Change],
    direct: &[BlockRange],
    images_at: u64,
    image_count: u32,
) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut images: u64 = 0;
    // Both lists are in the order of the changes, so one pass is enough.
    let mut direct = direct.iter().copied().peekable();
    for change in changes {
        let range = change_range(change);
        let Change::Write { crcs, .. } = change else {
            pieces.push(Piece { range, source: Source::Punch, crcs: Vec::new() });
            continue;
        };
        let (mut at, end) = (range.first, range.first + range.count);
        while at < end {
            let within = |run: &BlockRange| {
                run.device_index == range.device_index && at <= run.first && run.first < end
            };
            let run = direct.peek().copied().filter(within);
            let stop = match run {
                Some(run) if run.first == at => {
                    direct.next();
                    at.saturating_add(run.count)
                }
                Some(run) => run.first,
                None => end,
            };
            if stop > end || stop == at {
                return None;
            }
            let is_direct = run.is_some_and(|run| run.first == at);
            let source = if is_direct {
                Source::Direct
            } else {
                Source::Image(images_at + images * BLOCK_SIZE as u64)
            };
            let index = |block: u64| usize::try_from(block - range.first).unwrap_or(usize::MAX);
            pieces.push(Piece {
                range: BlockRange { device_index: range.device_index, first: at, count: stop - at },
                source,
                crcs: crcs[index(at)..index(stop)].to_vec(),
            });
            if !is_direct {
                images += stop - at;
            }
            at = stop;
        }
    }
    (images == u64::from(image_count) && direct.next().is_none()).then_some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal_body::SlotKey;
    use braid_env::{File, FileOps};
    use braid_terms::{
        DeviceId, DiskId, GrantNumber, GroupLayout, Incarnation, LayoutGeneration, PortionIndex,
        RaidScheme,
    };
    use std::io;
    use std::rc::Rc;

    struct NoFile;

    impl FileOps for NoFile {
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Ok(0)
        }
        fn read(
            &self,
            _: u64,
            _: usize,
        ) -> std::pin::Pin<Box<dyn Future<Output = io::Result<bytes::Bytes>>>> {
            Box::pin(async { Ok(bytes::Bytes::new()) })
        }
        fn write_at(&self, _: &[&[u8]], _: u64) -> io::Result<()> {
            Ok(())
        }
        fn length(&self) -> io::Result<u64> {
            Ok(0)
        }
        fn set_length(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn punch(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn sync_data(&self) -> std::pin::Pin<Box<dyn Future<Output = io::Result<()>>>> {
            Box::pin(async { Ok(()) })
        }
        fn start_writeback(&self, _: u64, _: u64) {}
    }

    fn number(sequence: u64) -> WriteNumber {
        WriteNumber { grant: GrantNumber { term: 1, counter: 1 }, sequence }
    }

    fn record(at: u64, prev: u64, kind: RecordKind) -> Record {
        Record {
            number: number(at),
            prev: number(prev),
            writer: Incarnation(1),
            kind,
            participants: Vec::new(),
            footprints: Vec::new(),
            lengths: vec![0],
            existing: 0,
            ends: Vec::new(),
            operation: None,
            operations: None,
            changes: Vec::new(),
        }
    }

    /// Applied up to 3; keeps 5 and 7; 5 is decided.
    fn group() -> Group {
        let layout = GroupLayout {
            devices: vec![DeviceId(1)],
            scheme: RaidScheme::Raid1 { copies: 1 },
            strip_size: 4096,
            generation: LayoutGeneration(1),
            disks: vec![DiskId(1)],
        };
        let mut group =
            Group::unknown(SlotKey { group: DeviceId(1), slot: PortionIndex(1) }, layout);
        group.base_prev = number(3);
        group.last = number(3);
        for (at, prev) in [(5, 3), (7, 5)] {
            let at_position = (JournalPosition(at), File(Rc::new(NoFile)));
            group.push_record(record(at, prev, RecordKind::Write), Vec::new(), at_position);
        }
        group.take_marks(number(5), number(3));
        group
    }

    #[test] // Proves: W-1.
    fn the_table_is_walked() {
        let group = group();
        for at in 0..10 {
            for prev in 0..10 {
                for kind in [RecordKind::Write, RecordKind::Void] {
                    let expect = match (at, kind) {
                        (7, RecordKind::Void) => Verdict::ReplaceByVoid,
                        (5 | 7, _) => Verdict::Repeat(JournalPosition(at)),
                        (8.., _) if prev == 7 => Verdict::Take,
                        _ => Verdict::Gap,
                    };
                    assert_eq!(judge(&group, &record(at, prev, kind)), expect, "{at} {prev}");
                }
            }
        }
    }

    #[test] // Proves: W-6.
    fn an_outcome_ends_at_or_above_what_is_stable() {
        let group = group();
        for ends_at in 0..9 {
            let mut outcome = record(0, 7, RecordKind::Outcome { ends_at: number(ends_at) });
            outcome.number.grant.counter = 2;
            let bad = ends_at < 3;
            assert_eq!(judge(&group, &outcome) == Verdict::Take, !bad, "{ends_at}");
        }
    }

    #[test] // Proves: W-8.
    fn pieces_name_each_block_once_and_where_it_is() {
        let crcs: Vec<u32> = (0..10).collect();
        let changes = [
            Change::Write { device_index: 0, first: 10, crcs: crcs.clone() },
            Change::Punch(BlockRange { device_index: 0, first: 30, count: 2 }),
            Change::Write { device_index: 0, first: 40, crcs },
        ];
        // Every pair of direct runs, one in each write.
        for (first, end) in (0..10).flat_map(|first| (first + 1..=10).map(move |end| (first, end)))
        {
            let run = |at| BlockRange { device_index: 0, first: at + first, count: end - first };
            let direct = [run(10), run(40)];
            let images = u32::try_from(20 - 2 * (end - first)).expect("small");
            let pieces = to_pieces(&changes, &direct, 1000, images).expect("they fit");
            let mut image_at = 1000;
            let mut blocks = Vec::new();
            for piece in pieces {
                match piece.source {
                    Source::Image(at) => {
                        assert_eq!(at, image_at);
                        image_at += piece.range.count * BLOCK_SIZE as u64;
                    }
                    Source::Direct => assert!(direct.contains(&piece.range)),
                    Source::Punch => assert_eq!(piece.range.first, 30),
                }
                blocks.extend(piece.range.first..piece.range.first + piece.range.count);
            }
            let expect: Vec<u64> = (10..20).chain(30..32).chain(40..50).collect();
            assert_eq!(blocks, expect);
            assert!(to_pieces(&changes, &direct, 1000, images + 1).is_none());
        }
    }
}
