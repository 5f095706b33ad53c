//! From new bytes to block images of all slots: data as it came, parity computed, checksums.
//! # Theory
//! A write is cut into *sections*. Whole stripes need nothing else: their strips go out as slices of
//! the caller's bytes, and only parity is new memory. What is left at the ends, and every write of a
//! device with strips below a block, is built in row buffers: old bytes of the rows that are not
//! wholly new, the new bytes over them.
//! ```text
//! write        |  end  |  whole stripes ............  |  end  |
//! memory        copied    slices, parity encoded       copied
//! ```
//! # Source
//! W-11, G-9, S-2.

use std::ops::Range;

use braid_env::PageBuffer;
use braid_raid::{Code, Geometry};
use braid_terms::{BLOCK_SIZE, PortionIndex};
use braid_wire::Payload;
use braid_wire::io::{BlockRange, Change, Footprint};
use braid_wire::operations::Operation;
use bytes::Bytes;

/// `BLOCK_SIZE` for positions.
pub const BLOCK: u64 = BLOCK_SIZE as u64;

/// What changes at one slot.
#[derive(Clone, Default, Debug)]
pub struct SlotChange {
    /// In order, with the payload's blocks.
    pub changes: Vec<Change>,
    /// The blocks of all `Write` changes.
    pub payload: Payload,
}

/// What one write changes, by slot from 0, and where.
#[derive(Clone, Default, Debug)]
pub struct Images {
    /// One for each slot.
    pub slots: Vec<SlotChange>,
    /// For the records.
    pub footprints: Vec<Footprint>,
    /// Slots without a change take part as well.
    pub to_all: bool,
    /// The change of a client that it is. Source: N-3.
    pub operation: Option<Operation>,
}

/// A part of a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Section {
    /// Device bytes.
    pub range: Range<u64>,
    /// Whole stripes whose strips are whole blocks.
    pub whole: bool,
}

/// CRC-32C of each block of whole blocks.
pub fn crcs(bytes: &[u8], into: &mut Vec<u32>) {
    assert!(bytes.len().is_multiple_of(BLOCK_SIZE), "whole blocks");
    into.extend(bytes.chunks_exact(BLOCK_SIZE).map(crc));
}

/// CRC-32C of one block.
#[must_use]
pub fn crc(block: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, block);
    u32::try_from(crc).expect("a CRC of 32 bits")
}

/// Cuts a write of the device bytes `range`.
#[must_use]
pub fn sections(geometry: &Geometry, range: Range<u64>) -> Vec<Section> {
    let stripe = geometry.stripe_size();
    let whole = range.start.next_multiple_of(stripe)..range.end / stripe * stripe;
    if u64::from(geometry.strip_size()) % BLOCK != 0 || whole.start >= whole.end {
        return cut_stripes(geometry, range);
    }
    let mut sections = Vec::new();
    if range.start < whole.start {
        sections.push(Section { range: range.start..whole.start, whole: false });
    }
    sections.push(Section { range: whole.clone(), whole: true });
    if whole.end < range.end {
        sections.push(Section { range: whole.end..range.end, whole: false });
    }
    sections
}

/// Where strips are whole blocks, two ends in neighbouring stripes are two sections: their rows do
/// not meet, and each one's rows are narrower than both together.
fn cut_stripes(geometry: &Geometry, range: Range<u64>) -> Vec<Section> {
    let stripe = geometry.stripe_size();
    let edge = range.start.next_multiple_of(stripe);
    let blocks = u64::from(geometry.strip_size()) % BLOCK == 0;
    if blocks && range.start < edge && edge < range.end {
        return vec![
            Section { range: range.start..edge, whole: false },
            Section { range: edge..range.end, whole: false },
        ];
    }
    vec![Section { range, whole: false }]
}

/// The block rows that a range of device bytes touches, as one run.
#[must_use]
pub fn rows_of(geometry: &Geometry, range: Range<u64>) -> Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    let stripes = geometry.stripes(range.clone());
    let first = geometry.row_range(stripes.start, range.clone());
    let last = geometry.row_range(stripes.end - 1, range);
    first.start / BLOCK..last.end.div_ceil(BLOCK)
}

/// The runs of rows of `rows` that must be read before `ranges` are written: some of their bytes below
/// `length` are not written. Ranges are in order, and no two meet.
#[must_use]
pub fn rows_to_read(
    geometry: &Geometry,
    ranges: &[Range<u64>],
    rows: Range<u64>,
    length: u64,
) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for row in rows {
        let needed = (0..geometry.data()).any(|unit| {
            chunks(geometry, unit, row).any(|(_, at, size)| {
                let end = (at + size).min(length);
                let behind = ranges.partition_point(|range| range.start <= at);
                let is_new = behind.checked_sub(1).is_some_and(|last| end <= ranges[last].end);
                at < end && !is_new
            })
        });
        if needed {
            match runs.last_mut() {
                Some(run) if run.end == row => run.end += 1,
                _ => runs.push(row..row + 1),
            }
        }
    }
    runs
}

/// Runs of device bytes in block `row` of data unit `unit`: place in the block, device byte, size.
pub fn chunks(
    geometry: &Geometry,
    unit: usize,
    row: u64,
) -> impl Iterator<Item = (usize, u64, u64)> + use<> {
    let strip = u64::from(geometry.strip_size());
    let (stripe_size, size) = (geometry.stripe_size(), strip.min(BLOCK));
    (0..BLOCK / size).map(move |index| {
        let portion_at = row * BLOCK + index * size;
        let at = portion_at / strip * stripe_size + unit as u64 * strip + portion_at % strip;
        ((index * size) as usize, at, size)
    })
}

/// Collects the sections of one write.
pub struct Builder<'a> {
    geometry: &'a Geometry,
    code: &'a Code,
    images: Images,
}

impl<'a> Builder<'a> {
    /// Nothing yet.
    #[must_use]
    pub fn new(geometry: &'a Geometry, code: &'a Code) -> Self {
        let slots = vec![SlotChange::default(); geometry.portions()];
        Self { geometry, code, images: Images { slots, ..Images::default() } }
    }

    /// Whole stripes: `bytes` are their device bytes from `at` on.
    pub fn whole(&mut self, device_index: u8, at: u64, bytes: &Bytes) {
        let strip = self.geometry.strip_size() as usize;
        let (k, m) = (self.geometry.data(), self.geometry.parity());
        let stripe = strip * k;
        let stripes = bytes.len() / stripe;
        let first = at / self.geometry.stripe_size() * (strip as u64 / BLOCK);
        let blocks = strip * stripes / BLOCK_SIZE;
        let mut sums = vec![Vec::with_capacity(blocks); k + m];
        let mut parity: Vec<_> = (0..m).map(|_| PageBuffer::new(strip * stripes)).collect();
        for index in 0..stripes {
            let row = bytes.slice(index * stripe..(index + 1) * stripe);
            // Parity and checksums by pieces that stay in the inner caches: each byte is read once.
            let piece = strip.min(PIECE);
            for from in (0..strip).step_by(piece) {
                let data: Vec<&[u8]> = (0..k)
                    .map(|unit| &row[unit * strip + from..unit * strip + from + piece])
                    .collect();
                let place = index * strip + from;
                let mut outputs: Vec<&mut [u8]> =
                    parity.iter_mut().map(|strip| &mut strip[place..place + piece]).collect();
                self.code.encode(&data, &mut outputs);
                for (sums, data) in sums.iter_mut().zip(&data) {
                    crcs(data, sums);
                }
                for (sums, output) in sums[k..].iter_mut().zip(&outputs) {
                    crcs(output, sums);
                }
            }
            for unit in 0..k {
                let piece = row.slice(unit * strip..(unit + 1) * strip);
                self.images.slots[unit].payload.push(piece);
            }
        }
        for (unit, strip) in parity.into_iter().enumerate() {
            self.images.slots[k + unit].payload.push(strip.freeze());
        }
        for (slot, crcs) in self.images.slots.iter_mut().zip(sums) {
            slot.changes.push(Change::Write { device_index, first, crcs });
        }
        let range = BlockRange { device_index, first, count: blocks as u64 };
        let slots = slot_bits(0..k + m);
        self.images.footprints.push(Footprint { slots, range });
    }

    /// Rows from row buffers: `units` are the k data units' bytes of the rows, old where not new;
    /// `ranges` tell the new device bytes, in order.
    pub fn rows(
        &mut self,
        device_index: u8,
        rows: &Range<u64>,
        units: Vec<Vec<u8>>,
        ranges: &[Range<u64>],
    ) {
        let (k, m) = (self.geometry.data(), self.geometry.parity());
        let size = units[0].len();
        let mut parity = vec![vec![0_u8; size]; m];
        {
            let data: Vec<&[u8]> = units.iter().map(Vec::as_slice).collect();
            let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
            self.code.encode(&data, &mut outputs);
        }
        for (unit, bytes) in units.into_iter().enumerate() {
            let bytes = Bytes::from(bytes);
            let changed = |row: &u64| {
                chunks(self.geometry, unit, *row).any(|(_, at, size)| {
                    let behind = ranges.partition_point(|range| range.start < at + size);
                    behind.checked_sub(1).is_some_and(|last| at < ranges[last].end)
                })
            };
            for run in runs(rows.clone().filter(changed)) {
                self.push(unit..unit + 1, device_index, rows.start, &run, &bytes);
            }
        }
        for (index, strip) in parity.into_iter().enumerate() {
            self.push(k + index..k + index + 1, device_index, rows.start, rows, &strip.into());
        }
    }

    /// Rows that read as zeros from now on, at all slots.
    pub fn punch(&mut self, device_index: u8, rows: &Range<u64>) {
        let range = BlockRange { device_index, first: rows.start, count: rows.end - rows.start };
        if range.count > 0 {
            for slot in &mut self.images.slots {
                slot.changes.push(Change::Punch(range));
            }
            let slots = slot_bits(0..self.geometry.portions());
            self.images.footprints.push(Footprint { slots, range });
        }
    }

    /// What was collected.
    #[must_use]
    pub fn finish(self) -> Images {
        self.images
    }

    fn push(
        &mut self,
        units: Range<usize>,
        device_index: u8,
        base: u64,
        run: &Range<u64>,
        bytes: &Bytes,
    ) {
        let place = |row: u64| ((row - base) * BLOCK) as usize;
        let piece = bytes.slice(place(run.start)..place(run.end));
        let mut sums = Vec::new();
        crcs(&piece, &mut sums);
        let slot = &mut self.images.slots[units.start];
        slot.changes.push(Change::Write { device_index, first: run.start, crcs: sums });
        slot.payload.push(piece);
        let range = BlockRange { device_index, first: run.start, count: run.end - run.start };
        self.images.footprints.push(Footprint { slots: slot_bits(units), range });
    }
}

/// Bits of slots, counted from 0.
#[must_use]
pub fn slot_bits(slots: Range<usize>) -> u32 {
    slots.fold(0, |bits, slot| bits | 1 << slot)
}

/// The bit of one slot.
#[must_use]
pub fn slot_bit(slot: PortionIndex) -> u32 {
    1 << slot.zero_based()
}

/// Runs of neighbours.
pub fn runs(rows: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for row in rows {
        match runs.last_mut() {
            Some(run) if run.end == row => run.end += 1,
            _ => runs.push(row..row + 1),
        }
    }
    runs
}

/// Bytes of a strip that are coded and summed at a time.
const PIECE: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(scheme: &str, strip: u32) -> Geometry {
        Geometry::new(scheme.parse().expect("a scheme"), strip).expect("fits")
    }

    #[test] // Proves: W-11.
    fn only_rows_with_other_old_bytes_are_read() {
        let four = geometry("rs/4+2", 65536);
        // A new file: nothing is below its length.
        assert!(rows_to_read(&four, std::slice::from_ref(&(0..5000)), 0..2, 0).is_empty());
        // An append within a block reads that block's row.
        assert_eq!(
            rows_to_read(&four, std::slice::from_ref(&(5000..6000)), 1..2, 5000),
            vec![1..2]
        );
        // The whole file is overwritten.
        assert!(rows_to_read(&four, std::slice::from_ref(&(0..6000)), 0..2, 5000).is_empty());
        // The same rows of other units hold old bytes.
        assert_eq!(
            rows_to_read(&four, std::slice::from_ref(&(0..8192)), 0..2, 200_000),
            vec![0..2]
        );
        let row = [0..4096, 65536..69632, 131_072..135_168, 196_608..200_704];
        assert!(rows_to_read(&four, &row, 0..1, 300_000).is_empty(), "all units of a row");
        assert_eq!(rows_to_read(&four, &row[1..], 0..1, 300_000), vec![0..1]);
    }

    #[test] // Proves: G-9.
    fn sections_cover_the_write() {
        for (scheme, strip) in [("rs/4+2", 4096), ("raid5/2+1", 512), ("raid1/3", 65536)] {
            let geometry = geometry(scheme, strip);
            for start in (0..40_000).step_by(777) {
                for length in [1, 511, 4096, 16_384, 100_000] {
                    let mut at = start;
                    for section in sections(&geometry, start..start + length) {
                        assert_eq!(section.range.start, at);
                        at = section.range.end;
                    }
                    assert_eq!(at, start + length);
                }
            }
        }
    }
}
