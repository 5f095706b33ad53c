//! Prepare: whether a slot takes a record.
//! # Theory
//! Records of a slot form a chain by `prev`. A slot takes the next one, answers one that it has as
//! it did before, and refuses all else, so that what it holds is always a prefix of what it was sent.
//! # Invariants
//! P1 A number stands for one content, except that a void record replaces what is not decided.
//! # Source
//! W-1, W-2; I2 of `wire::io`.

use braid_terms::{BLOCK_SIZE, JournalPosition, WriteNumber};
use braid_wire::io::{BlockRange, Change, Record, RecordKind};

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
    let kept = group.entries.iter().rev().find(|entry| entry.is_record(number));
    if let Some(entry) = kept {
        let is_void = |record: &Record| record.kind == RecordKind::Void;
        let withdraws = is_void(record) && !entry.record.as_ref().is_some_and(is_void);
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
    if number < group.last || record.prev != group.last {
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
    if record.participants.len() > braid_terms::PORTIONS_MAX || record.footprints.len() > PARTS_MAX
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
