//! From a change to block images: what must be read first, the new bytes over it, parity.
//! # Theory
//! Each write is cut into sections (`images.rs`). Sections that touch common rows are one *patch*: its
//! rows are built once, with the bytes of all of them in their order, since they share parity. What
//! all patches lack of their rows is read together, by one request to each slot.
//! # Source
//! W-11, DESIGN 13.

use std::ops::Range;
use std::rc::Rc;

use braid_raid::Geometry;
use braid_terms::BLOCK_SIZE;
use bytes::Bytes;

use super::images::{Builder, Images, chunks, rows_of, rows_to_read, sections};
use super::{Group, GroupWrite, WriteError};

/// Rows of one device that are built together.
struct Patch {
    device_index: u8,
    rows: Range<u64>,
    /// New bytes by where they begin, in the order of the writes.
    parts: Vec<(u64, Bytes)>,
    /// One section of whole stripes: nothing is copied.
    whole: bool,
}

impl Patch {
    /// Device bytes that are new, in order and joined.
    fn ranges(&self) -> Vec<Range<u64>> {
        let mut all: Vec<_> =
            self.parts.iter().map(|(at, bytes)| *at..*at + bytes.len() as u64).collect();
        all.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(all.len());
        for range in all {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        joined
    }
}

impl Group {
    /// What a change means for each slot. The caller holds the rows' locks.
    pub(super) async fn build(self: &Rc<Self>, change: &GroupWrite) -> Result<Images, WriteError> {
        let mut builder = Builder::new(&self.geometry, &self.code);
        let patches = patches(&self.geometry, change);
        let mut missing = Vec::new();
        for patch in patches.iter().filter(|patch| !patch.whole) {
            let length = self.state.borrow().lengths[usize::from(patch.device_index)];
            let runs = rows_to_read(&self.geometry, &patch.ranges(), patch.rows.clone(), length);
            missing.extend(runs.into_iter().map(|run| (patch.device_index, run)));
        }
        let mut old = self.read_many(&missing).await?.into_iter().zip(&missing).peekable();
        for patch in patches {
            let Patch { device_index, rows, parts, whole } = &patch;
            if *whole {
                let (at, bytes) = &parts[0];
                builder.whole(*device_index, *at, bytes);
                continue;
            }
            let size = (rows.end - rows.start) as usize * BLOCK_SIZE;
            let mut units = vec![vec![0_u8; size]; self.geometry.data()];
            let is_ours = |next: &(Vec<Bytes>, &(u8, Range<u64>))| {
                next.1.0 == *device_index
                    && rows.start <= next.1.1.start
                    && next.1.1.end <= rows.end
            };
            while let Some((of_run, (_, run))) = old.next_if(is_ours) {
                let from = (run.start - rows.start) as usize * BLOCK_SIZE;
                for (unit, old) in units.iter_mut().zip(of_run) {
                    unit[from..from + old.len()].copy_from_slice(&old);
                }
            }
            for (at, bytes) in parts {
                lay_over(&self.geometry, &mut units, rows, *at, bytes);
            }
            builder.rows(*device_index, rows, units, &patch.ranges());
        }
        for (device_index, range) in &change.punches {
            assert_eq!(self.punchable(range.clone()), *range, "whole rows are punched");
            builder.punch(*device_index, &rows_of(&self.geometry, range.clone()));
        }
        Ok(builder.finish())
    }
}

/// The patches of a change, by device and rows.
fn patches(geometry: &Geometry, change: &GroupWrite) -> Vec<Patch> {
    let mut all = Vec::new();
    for write in change.writes.iter().filter(|write| !write.bytes.is_empty()) {
        let range = write.at..write.at + write.bytes.len() as u64;
        for section in sections(geometry, range) {
            let from = (section.range.start - write.at) as usize;
            let to = (section.range.end - write.at) as usize;
            all.push(Patch {
                device_index: write.device_index,
                rows: rows_of(geometry, section.range.clone()),
                parts: vec![(section.range.start, write.bytes.slice(from..to))],
                whole: section.whole,
            });
        }
    }
    if change.writes.len() < 2 {
        // Sections of one write have no rows in common.
        return all;
    }
    // A stable sort: parts of common rows stay in the order of the writes.
    all.sort_by_key(|patch| (patch.device_index, patch.rows.start));
    let mut joined: Vec<Patch> = Vec::with_capacity(all.len());
    for patch in all {
        match joined.last_mut() {
            Some(last)
                if last.device_index == patch.device_index && patch.rows.start < last.rows.end =>
            {
                last.rows.end = last.rows.end.max(patch.rows.end);
                last.parts.extend(patch.parts);
                last.whole = false;
            }
            _ => joined.push(patch),
        }
    }
    joined
}

/// New bytes, from device byte `at` on, over the data units' bytes of some rows.
fn lay_over(geometry: &Geometry, units: &mut [Vec<u8>], rows: &Range<u64>, at: u64, bytes: &[u8]) {
    let range = at..at + bytes.len() as u64;
    let touched = rows_of(geometry, range.clone());
    for (unit, buffer) in units.iter_mut().enumerate() {
        for row in touched.clone() {
            let index = (row - rows.start) as usize;
            for (place, at, size) in chunks(geometry, unit, row) {
                let start = at.max(range.start);
                let end = (at + size).min(range.end);
                if start < end {
                    let to = index * BLOCK_SIZE + place + (start - at) as usize;
                    let count = (end - start) as usize;
                    let from = (start - range.start) as usize;
                    buffer[to..to + count].copy_from_slice(&bytes[from..from + count]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceWrite;

    fn write(at: u64, length: usize, byte: u8) -> DeviceWrite {
        DeviceWrite { device_index: 0, at, bytes: vec![byte; length].into() }
    }

    fn patches_of(writes: Vec<DeviceWrite>) -> Vec<(Range<u64>, usize, bool)> {
        let geometry = Geometry::new("rs/4+2".parse().expect("a scheme"), 65536).expect("fits");
        let change = GroupWrite { writes, ..GroupWrite::default() };
        let all = patches(&geometry, &change).into_iter();
        all.map(|patch| (patch.rows, patch.parts.len(), patch.whole)).collect()
    }

    #[test] // Proves: W-11. Rows that share parity are built once.
    fn writes_of_common_rows_are_one_patch() {
        // The first blocks of two data units are one row.
        assert_eq!(patches_of(vec![write(0, 10, 1), write(65536, 10, 2)]), [(0..1, 2, false)]);
        assert_eq!(
            patches_of(vec![
                write(65536 + 4096, 8192, 1),
                write(4096 * 9, 10, 2),
                write(8192, 1, 3)
            ]),
            [(1..3, 2, false), (9..10, 1, false)]
        );
        // A whole stripe is copied where something else is in it.
        let stripe = 4 * 65536;
        assert_eq!(patches_of(vec![write(0, stripe, 1)]), [(0..16, 1, true)]);
        assert_eq!(patches_of(vec![write(0, stripe, 1), write(5, 1, 2)]), [(0..16, 2, false)]);
        let next = stripe as u64;
        assert_eq!(
            patches_of(vec![write(next, stripe, 1), write(5, 1, 2)]),
            [(0..1, 1, false), (16..32, 1, true)]
        );
    }

    #[test]
    fn the_later_of_two_writes_counts() {
        let geometry = Geometry::new("rs/4+2".parse().expect("a scheme"), 65536).expect("fits");
        let mut units = vec![vec![0; 16 * BLOCK_SIZE]; 4];
        lay_over(&geometry, &mut units, &(0..16), 65530, &[1; 20]);
        lay_over(&geometry, &mut units, &(0..16), 65540, &[2; 4]);
        assert_eq!(units[0][65528..], [0, 0, 1, 1, 1, 1, 1, 1]);
        assert_eq!(units[1][..16], [1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 0, 0]);
    }
}
