//! The walk over the columns, for any vector that can load, add and multiply.
//!
//! Everything here is `inline(always)`: it takes on the instructions of the function that calls
//! it (`run_avx2` and its like), and only there do the vectors become registers.

use braid_terms::PORTIONS_MAX;

use super::{Columns, ROWS_AT_ONCE};

/// A vector register full of bytes.
pub(super) trait Lane: Copy {
    /// Bytes of it.
    const BYTES: usize;
    /// What it is multiplied by, as the instructions want it.
    type Factor: Copy;

    /// The factor for coefficient `c`.
    fn factor(c: u8) -> Self::Factor;
    /// SAFETY: the CPU has the instructions of this vector.
    unsafe fn zero() -> Self;
    /// SAFETY: as `zero`, and `BYTES` bytes from `from` can be read. No alignment is needed.
    unsafe fn load(from: *const u8) -> Self;
    /// SAFETY: as `zero`, and `BYTES` bytes from `to` can be written. No alignment is needed.
    unsafe fn store(self, to: *mut u8);
    /// SAFETY: as `zero`.
    unsafe fn add(self, other: Self) -> Self;
    /// SAFETY: as `zero`.
    unsafe fn mul(self, factor: Self::Factor) -> Self;
}

/// Sums up whole vectors, and returns how many bytes of each slice are done.
///
/// SAFETY: the CPU has the instructions of `L`, and all sources and outputs have one length.
#[inline(always)]
pub(super) unsafe fn run<L: Lane>(columns: &Columns<'_>, outputs: &mut [&mut [u8]]) -> usize {
    let size = outputs[0].len();
    let mut walk = Walk::<L> {
        sources: [std::ptr::null(); PORTIONS_MAX],
        factors: [[L::factor(0); ROWS_AT_ONCE]; PORTIONS_MAX],
        count: columns.sources.len(),
        outputs: [std::ptr::null_mut(); ROWS_AT_ONCE],
        accumulate: columns.accumulate,
    };
    for (place, source) in columns.sources.iter().enumerate() {
        walk.sources[place] = source.as_ptr();
        walk.factors[place] = columns.coefficients[place].map(L::factor);
    }
    for (place, output) in outputs.iter_mut().enumerate() {
        walk.outputs[place] = output.as_mut_ptr();
    }
    // The first parity and each single lost strip are plain XOR; then nothing is multiplied.
    let first_is_xor = columns.coefficients.iter().all(|row| row[0] == 1);
    // SAFETY: the caller vouches for the CPU and the lengths; the walks stay below `size`.
    unsafe {
        match (outputs.len(), first_is_xor) {
            (1, true) => walk.rows::<1, 4, true>(size),
            (1, false) => walk.rows::<1, 4, false>(size),
            (2, true) => walk.rows::<2, 4, true>(size),
            (2, false) => walk.rows::<2, 4, false>(size),
            (3, true) => walk.rows::<3, 2, true>(size),
            (3, false) => walk.rows::<3, 2, false>(size),
            (4, true) => walk.rows::<4, 2, true>(size),
            (4, false) => walk.rows::<4, 2, false>(size),
            (other, _) => unreachable!("{other} outputs at once"),
        }
    }
}

/// One call's pointers and factors.
struct Walk<L: Lane> {
    sources: [*const u8; PORTIONS_MAX],
    factors: [[L::Factor; ROWS_AT_ONCE]; PORTIONS_MAX],
    count: usize,
    outputs: [*mut u8; ROWS_AT_ONCE],
    accumulate: bool,
}

impl<L: Lane> Walk<L> {
    /// All columns for `ROWS` outputs, `WIDE` vectors at a time, then one.
    ///
    /// SAFETY: as `run`; `size` is the length of all slices.
    #[inline(always)]
    unsafe fn rows<const ROWS: usize, const WIDE: usize, const FIRST_IS_XOR: bool>(
        &self,
        size: usize,
    ) -> usize {
        let mut at = 0;
        while size - at >= WIDE * L::BYTES {
            // SAFETY: `WIDE` vectors from `at` end at or before `size`.
            unsafe { self.column::<ROWS, WIDE, FIRST_IS_XOR>(at) };
            at += WIDE * L::BYTES;
        }
        while size - at >= L::BYTES {
            // SAFETY: one vector from `at` ends at or before `size`.
            unsafe { self.column::<ROWS, 1, FIRST_IS_XOR>(at) };
            at += L::BYTES;
        }
        at
    }

    /// One column of `WIDE` vectors from `at`.
    ///
    /// SAFETY: as `run`, and `at + WIDE * BYTES` is not above the length of the slices.
    #[inline(always)]
    unsafe fn column<const ROWS: usize, const WIDE: usize, const FIRST_IS_XOR: bool>(
        &self,
        at: usize,
    ) {
        // SAFETY: all pointers are into slices that reach beyond this column.
        unsafe {
            let mut sums = [[L::zero(); WIDE]; ROWS];
            if self.accumulate {
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (place, sum) in sums.iter_mut().enumerate() {
                        *sum = L::load(self.outputs[row].add(at + place * L::BYTES));
                    }
                }
            }
            for source in 0..self.count {
                let from = self.sources[source].add(at);
                let factors = &self.factors[source];
                let mut bytes = [L::zero(); WIDE];
                for (place, bytes) in bytes.iter_mut().enumerate() {
                    *bytes = L::load(from.add(place * L::BYTES));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (sum, bytes) in sums.iter_mut().zip(bytes) {
                        let product =
                            if FIRST_IS_XOR && row == 0 { bytes } else { bytes.mul(factors[row]) };
                        *sum = sum.add(product);
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (place, sum) in sums.iter().enumerate() {
                    sum.store(self.outputs[row].add(at + place * L::BYTES));
                }
            }
        }
    }
}
