//! The code: parity of a stripe row, and lost strips from any k that are left.
//! # Theory
//! A row is k data strips and m parity strips. Byte `b` of parity `i` is the sum over the data
//! units `j` of `c[i][j]` times byte `b` of data `j`, in GF(2^8). `c` is a Cauchy matrix
//! `1 / (x_i + y_j)` with `x_i = 32 + i` and `y_j = j`, its columns divided by what makes row 0 all
//! ones, then its rows divided by what makes column 0 all ones:
//! ```text
//! c[i][j] = (32 ^ j) * (32 + i) / ((32 + i) ^ j) / 32        ^ is XOR, * and / are of the field
//!
//!           j = 0   1   2   3
//! i = 0         1   1   1   1      plain XOR, so RAID 5 is rs/k+1
//! i = 1         1   .   .   .      k = 1 sees ones only, so a copy is rs/1+m
//! ```
//! Every square part of a Cauchy matrix has an inverse, and dividing whole rows and columns does
//! not change that: any k units give all others. `c` does not depend on k and m, so a narrow
//! scheme is a corner of a wide one, and there is one table to write down.
//! # Decoding
//! e lost data units take the first e parities that are there. What these parities hold beyond the
//! data that is there is e sums of the e lost units: an e by e part of `c`, whose inverse gives each
//! lost unit as a sum over k units. Such a plan is a [`Decoder`], made once for a loss pattern.
//! # Invariants
//! C1 Strips of a row are of one length; a strip that is shorter goes on with zeros (G-9).
//! # Source
//! G-3, G-9.

use std::fmt;

use braid_terms::{PORTIONS_MAX, RaidScheme};

use crate::UnitSet;
use crate::gf::{inverse, mul};
use crate::kernels::{self, Kernel, Mode, ROWS_AT_ONCE, Rows};

/// Encodes and decodes the rows of one scheme. Cheap to make (no allocation, 1 KiB), cheap to keep.
#[derive(Clone, PartialEq, Eq)]
pub struct Code {
    data: usize,
    parity: usize,
    kernel: Kernel,
    /// `c[i][j]` for i below m and j below k.
    rows: Rows,
}

/// Why there is no code, or no decoder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CodeError {
    /// No data unit, or more than 32 units.
    Counts { data: usize, parity: usize },
    /// Fewer than k units are there: wait for a server; the row cannot be computed.
    TooFew { present: usize, needed: usize },
    /// A unit that a row of this code does not have.
    NoSuchUnit { unit: usize, units: usize },
}

impl fmt::Display for CodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counts { data, parity } => {
                write!(f, "{data} data and {parity} parity units are no code: 1 to 32 units")
            }
            Self::TooFew { present, needed } => {
                write!(f, "{present} units of a row are there, {needed} are needed")
            }
            Self::NoSuchUnit { unit, units } => {
                write!(f, "unit {unit} does not exist in a row of {units} units")
            }
        }
    }
}

impl std::error::Error for CodeError {}

/// `c[i][j]`: what data unit `unit` is multiplied by in parity `parity_index` (from 0), whatever k
/// and m are. Their sum is below 32.
///
/// Source: G-3.
#[must_use]
pub const fn parity_coefficient(parity_index: usize, unit: usize) -> u8 {
    assert!(parity_index + unit < PORTIONS_MAX, "a row has 32 units at most");
    let x_0 = PORTIONS_MAX as u8;
    let x_i = x_0 + parity_index as u8;
    let y_j = unit as u8;
    mul(mul(x_0 ^ y_j, x_i), inverse(mul(x_i ^ y_j, x_0)))
}

impl Code {
    /// The code of k = `data` and m = `parity` units, with the fastest kernel of this CPU.
    ///
    /// Errors: `Counts` unless `data` is at least 1 and both together at most 32.
    pub fn new(data: usize, parity: usize) -> Result<Self, CodeError> {
        Self::with_kernel(data, parity, Kernel::best())
    }

    /// `new`, computing with `kernel`: the bytes are the same, for tests and benchmarks.
    ///
    /// Errors: as `new`.
    pub fn with_kernel(data: usize, parity: usize, kernel: Kernel) -> Result<Self, CodeError> {
        if data == 0 || data > PORTIONS_MAX || parity > PORTIONS_MAX - data {
            return Err(CodeError::Counts { data, parity });
        }
        let mut rows = [[0; PORTIONS_MAX]; PORTIONS_MAX];
        for (i, row) in rows[..parity].iter_mut().enumerate() {
            for (j, coefficient) in row[..data].iter_mut().enumerate() {
                *coefficient = parity_coefficient(i, j);
            }
        }
        Ok(Self { data, parity, kernel, rows })
    }

    /// The code of a scheme: raid1 is 1+(n-1), raid5 k+1, raid6 k+2, raid0 k+0.
    ///
    /// Errors: `Counts` where `scheme.check()` fails too.
    pub fn of_scheme(scheme: RaidScheme) -> Result<Self, CodeError> {
        Self::new(scheme.data(), scheme.parity())
    }

    /// k.
    #[must_use]
    pub fn data(&self) -> usize {
        self.data
    }

    /// m.
    #[must_use]
    pub fn parity(&self) -> usize {
        self.parity
    }

    /// k + m.
    #[must_use]
    pub fn units(&self) -> usize {
        self.data + self.parity
    }

    /// The kernel that computes.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Fills all parity strips of a row.
    ///
    /// Shapes: `data` is k strips, `parity` m strips (that every parity is as long as the longest
    /// data strip is the caller's duty, and asserted; C1 for the rest). What was never written may
    /// be empty. Old bytes of `parity` do not matter.
    /// Source: G-9.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        assert_eq!(data.len(), self.data, "k data strips");
        assert_eq!(parity.len(), self.parity, "m parity strips");
        let longest = data.iter().map(|strip| strip.len()).max().unwrap_or(0);
        assert!(parity.iter().all(|strip| strip.len() >= longest), "data without parity");
        kernels::combine(self.kernel, &self.rows, data, parity, Mode::Replace);
    }

    /// Brings all parity strips from `old` to `new` of one data unit.
    ///
    /// Shapes: `unit` below k; `parity` is m slices of the same range of the parity strips as `old`
    /// and `new` are of the data strip. `old` and `new` may be short (C1) and differ in length; no
    /// parity slice is shorter than either (asserted).
    /// With `parity` all zeros the result is what to add to the parity: `g * (old xor new)`.
    pub fn delta(&self, unit: usize, old: &[u8], new: &[u8], parity: &mut [&mut [u8]]) {
        assert!(unit < self.data, "parity follows data units");
        assert_eq!(parity.len(), self.parity, "m parity strips");
        let longest = old.len().max(new.len());
        assert!(parity.iter().all(|strip| strip.len() >= longest), "data without parity");
        let mut rows = [[0; PORTIONS_MAX]; PORTIONS_MAX];
        for (row, ours) in rows.iter_mut().zip(&self.rows[..self.parity]) {
            row[..2].fill(ours[unit]);
        }
        kernels::combine(self.kernel, &rows, &[old, new], parity, Mode::Accumulate);
    }

    /// Whether the parity strips are those of the data strips; for scrub.
    ///
    /// Shapes: k data and m parity strips of any lengths, C1.
    /// Source: F-6.
    #[must_use]
    pub fn matches(&self, data: &[&[u8]], parity: &[&[u8]]) -> bool {
        const PIECE: usize = 2048;
        assert_eq!(data.len(), self.data, "k data strips");
        assert_eq!(parity.len(), self.parity, "m parity strips");
        let longest = data.iter().chain(parity).map(|strip| strip.len()).max().unwrap_or(0);
        let mut sums = [[0_u8; PIECE]; ROWS_AT_ONCE];
        let mut rows = [[0; PORTIONS_MAX]; PORTIONS_MAX];
        let mut slices: [&[u8]; PORTIONS_MAX] = [&[]; PORTIONS_MAX];
        for start in (0..longest).step_by(PIECE) {
            let size = PIECE.min(longest - start);
            for (slice, strip) in slices.iter_mut().zip(data) {
                *slice = piece(strip, start, size);
            }
            for (group_index, group) in parity.chunks(ROWS_AT_ONCE).enumerate() {
                let first = group_index * ROWS_AT_ONCE;
                rows[..group.len()].copy_from_slice(&self.rows[first..first + group.len()]);
                let mut outputs = sums.each_mut().map(|sum| &mut sum[..size]);
                let outputs = &mut outputs[..group.len()];
                let sources = &slices[..self.data];
                kernels::combine(self.kernel, &rows, sources, outputs, Mode::Replace);
                for (strip, sum) in group.iter().zip(outputs.iter()) {
                    let strip = piece(strip, start, size);
                    let (same, rest) = sum.split_at(strip.len());
                    if same != strip || rest.iter().any(|byte| *byte != 0) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// A plan that computes the units `wanted` from units of `present`; for one loss pattern and
    /// any number of rows. A unit in both is copied.
    ///
    /// Errors: `TooFew` if fewer than k units are present; `NoSuchUnit`.
    pub fn decoder(&self, present: UnitSet, wanted: UnitSet) -> Result<Decoder, CodeError> {
        let units = self.units();
        if let Some(unit) = present.or(wanted).without(UnitSet::first(units)).iter().next() {
            return Err(CodeError::NoSuchUnit { unit, units });
        }
        if present.count() < self.data {
            return Err(CodeError::TooFew { present: present.count(), needed: self.data });
        }
        let data_units = UnitSet::first(self.data);
        let lost = data_units.without(present);
        let helpers: UnitSet = present.without(data_units).iter().take(lost.count()).collect();
        let lost_rows = self.lost_rows(present.and(data_units), lost, helpers);
        let mut decoder = Decoder {
            sources: UnitSet::EMPTY,
            wanted,
            kernel: self.kernel,
            rows: [[0; PORTIONS_MAX]; PORTIONS_MAX],
        };
        let mut full = [[0; PORTIONS_MAX]; PORTIONS_MAX];
        for (row, unit) in full.iter_mut().zip(wanted.iter()) {
            *row = self.wanted_row(unit, present, &lost_rows);
            decoder.sources = (0..units)
                .filter(|source| row[*source] != 0 || decoder.sources.contains(*source))
                .collect();
        }
        for (row, full) in decoder.rows.iter_mut().zip(&full) {
            for (coefficient, unit) in row.iter_mut().zip(decoder.sources.iter()) {
                *coefficient = full[unit];
            }
        }
        Ok(decoder)
    }

    /// Computes lost units of one row: `decoder` and `apply` in one.
    ///
    /// Shapes: units with their strips, in any order and none twice; `wanted` strips are filled
    /// over their length, which may be less than that of the row.
    /// Errors: as `decoder`.
    pub fn reconstruct(
        &self,
        present: &[(usize, &[u8])],
        wanted: &mut [(usize, &mut [u8])],
    ) -> Result<(), CodeError> {
        let check = |unit: usize| {
            if unit < self.units() {
                Ok(unit)
            } else {
                Err(CodeError::NoSuchUnit { unit, units: self.units() })
            }
        };
        let present_set =
            present.iter().map(|(unit, _)| check(*unit)).collect::<Result<UnitSet, _>>()?;
        let wanted_set =
            wanted.iter().map(|(unit, _)| check(*unit)).collect::<Result<UnitSet, _>>()?;
        assert_eq!(present_set.count(), present.len(), "a unit is there twice");
        assert_eq!(wanted_set.count(), wanted.len(), "a unit is wanted twice");
        let decoder = self.decoder(present_set, wanted_set)?;
        let mut sources: [&[u8]; PORTIONS_MAX] = [&[]; PORTIONS_MAX];
        for (source, unit) in sources.iter_mut().zip(decoder.sources.iter()) {
            let found = present.iter().find(|(other, _)| *other == unit);
            *source = found.expect("sources are present").1;
        }
        let mut outputs: [&mut [u8]; PORTIONS_MAX] = std::array::from_fn(|_| Default::default());
        for (unit, strip) in wanted.iter_mut() {
            let place = wanted_set.and(UnitSet::first(*unit)).count();
            outputs[place] = strip;
        }
        let sources = &sources[..decoder.sources.count()];
        decoder.apply(sources, &mut outputs[..wanted_set.count()]);
        Ok(())
    }

    /// For each lost data unit its coefficients over all units, at index `unit`.
    fn lost_rows(&self, present_data: UnitSet, lost: UnitSet, helpers: UnitSet) -> Rows {
        let size = lost.count();
        assert_eq!(size, helpers.count(), "k units are present");
        let mut part = [[0; PORTIONS_MAX]; PORTIONS_MAX];
        for (row, helper) in part.iter_mut().zip(helpers.iter()) {
            for (coefficient, unit) in row.iter_mut().zip(lost.iter()) {
                *coefficient = self.rows[helper - self.data][unit];
            }
        }
        let solution = invert(part, size).expect("every square part of a Cauchy matrix inverts");
        let mut rows = [[0; PORTIONS_MAX]; PORTIONS_MAX];
        for (unit, factors) in lost.iter().zip(&solution) {
            for (factor, helper) in factors.iter().zip(helpers.iter()) {
                rows[unit][helper] = *factor;
                for data_unit in present_data.iter() {
                    rows[unit][data_unit] ^= mul(*factor, self.rows[helper - self.data][data_unit]);
                }
            }
        }
        rows
    }

    /// The coefficients of one wanted unit over the present units.
    fn wanted_row(&self, unit: usize, present: UnitSet, lost_rows: &Rows) -> [u8; PORTIONS_MAX] {
        let mut row = [0; PORTIONS_MAX];
        if present.contains(unit) {
            row[unit] = 1;
        } else if unit < self.data {
            row = lost_rows[unit];
        } else {
            for data_unit in 0..self.data {
                let factor = self.rows[unit - self.data][data_unit];
                if present.contains(data_unit) {
                    row[data_unit] ^= factor;
                } else {
                    for (sum, coefficient) in row.iter_mut().zip(&lost_rows[data_unit]) {
                        *sum ^= mul(factor, *coefficient);
                    }
                }
            }
        }
        row
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({}+{}, {:?})", self.data, self.parity, self.kernel)
    }
}

/// How to compute some units of a row from others; keep it for all rows with one loss pattern.
#[derive(Clone, PartialEq, Eq)]
pub struct Decoder {
    sources: UnitSet,
    wanted: UnitSet,
    kernel: Kernel,
    /// `[wanted, upwards][source, upwards]`.
    rows: Rows,
}

impl Decoder {
    /// The units that `apply` reads: at most k of those present, the others need not be fetched.
    #[must_use]
    pub fn sources(&self) -> UnitSet {
        self.sources
    }

    /// The units that `apply` computes.
    #[must_use]
    pub fn wanted(&self) -> UnitSet {
        self.wanted
    }

    /// Computes the wanted strips of one row (or the same range of each strip of a row).
    ///
    /// Shapes: `sources` are the strips of `sources()` and `wanted` those of `wanted()`, upwards by
    /// unit. Short sources go on with zeros (C1); wanted strips are filled over their length, which
    /// may be less than that of the row.
    pub fn apply(&self, sources: &[&[u8]], wanted: &mut [&mut [u8]]) {
        assert_eq!(sources.len(), self.sources.count(), "a strip for each source unit");
        assert_eq!(wanted.len(), self.wanted.count(), "a strip for each wanted unit");
        kernels::combine(self.kernel, &self.rows, sources, wanted, Mode::Replace);
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Decoder({:?} from {:?}, {:?})", self.wanted, self.sources, self.kernel)
    }
}

/// The bytes of `strip` from `start`, `size` at most; fewer where it ends before.
fn piece(strip: &[u8], start: usize, size: usize) -> &[u8] {
    let start = start.min(strip.len());
    &strip[start..strip.len().min(start + size)]
}

/// The inverse of the upper left `size` by `size` part, or `None` if it has none (Gauss, Jordan).
fn invert(mut part: Rows, size: usize) -> Option<Rows> {
    let mut result = [[0; PORTIONS_MAX]; PORTIONS_MAX];
    for (index, row) in result[..size].iter_mut().enumerate() {
        row[index] = 1;
    }
    for column in 0..size {
        let pivot = (column..size).find(|row| part[*row][column] != 0)?;
        part.swap(column, pivot);
        result.swap(column, pivot);
        let scale = inverse(part[column][column]);
        for place in 0..size {
            part[column][place] = mul(part[column][place], scale);
            result[column][place] = mul(result[column][place], scale);
        }
        for row in (0..size).filter(|row| *row != column) {
            let factor = part[row][column];
            for place in 0..size {
                part[row][place] ^= mul(factor, part[column][place]);
                result[row][place] ^= mul(factor, result[column][place]);
            }
        }
    }
    Some(result)
}

#[cfg(test)]
#[path = "code_test.rs"]
mod tests;
