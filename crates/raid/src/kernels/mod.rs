//! Kernels: sums of products over GF(2^8), once for each set of instructions.
//! # Theory
//! All of the code is one operation: output `r` is the sum over sources `j` of `c[r][j]` times
//! source `j`. A kernel walks down the strips one vector wide column at a time, loads each source
//! once and keeps up to [`ROWS_AT_ONCE`] sums in registers. [`combine`] cuts the strips so that
//! a kernel only sees slices of one length:
//! ```text
//! source 0   |##########|#####|###|      strips may be short; what is not there is zeros,
//! source 1   |##########|     |   |      and is left out of the sum
//! source 2   |##########|#####|   |
//! output 0   |##########|#####|###|0000| more than the longest source: zeros
//! output 1   |##########|               a short output is only filled as far as it goes
//!            one call    one   one
//! ```
//! # Invariants
//! K1 A `Kernel` value exists only if this CPU has its instructions.
//! K2 A kernel sees sources and outputs of one length.
//! # Source
//! G-3, G-9.

#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

use braid_terms::PORTIONS_MAX;

/// Coefficients of a sum: `[output][source]`.
pub(crate) type Rows = [[u8; PORTIONS_MAX]; PORTIONS_MAX];

/// Outputs that a kernel sums up in one walk over the sources.
pub(crate) const ROWS_AT_ONCE: usize = 4;

/// Bytes of each strip per walk where one walk is not enough, so that the second walk finds the
/// sources in the cache: 28 strips of 4 KiB fit any second-level cache.
const BLOCK_BYTES: usize = 4096;

/// What a kernel sums up; all slices have one length.
pub(crate) struct Columns<'a> {
    sources: &'a [&'a [u8]],
    /// For each source its coefficients in the outputs.
    coefficients: &'a [[u8; ROWS_AT_ONCE]],
    /// Whether the sums are added to what the outputs hold.
    accumulate: bool,
}

/// A way to compute, by the instructions that it uses; all give the same bytes.
///
/// A value exists only if this CPU has the instructions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel(Kind);

// Not all kinds exist on each machine type.
#[allow(dead_code)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Kind {
    Scalar,
    Neon,
    Ssse3,
    Avx2,
    GfniAvx2,
    GfniAvx512,
}

impl Kernel {
    /// Plain code, everywhere.
    pub const SCALAR: Self = Self(Kind::Scalar);

    /// The kernels of this CPU, the fastest last; the first is [`Kernel::SCALAR`].
    pub fn available() -> impl Iterator<Item = Self> {
        [Kind::Scalar, Kind::Neon, Kind::Ssse3, Kind::Avx2, Kind::GfniAvx2, Kind::GfniAvx512]
            .into_iter()
            .filter(|kind| kind.detected())
            .map(Self)
    }

    /// The fastest kernel of this CPU; asks the CPU once.
    #[must_use]
    pub fn best() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().last().expect("plain code is always there"))
    }

    /// A name for logs and benchmarks.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            Kind::Neon => "neon",
            Kind::Ssse3 => "ssse3",
            Kind::Avx2 => "avx2",
            Kind::GfniAvx2 => "gfni-avx2",
            Kind::GfniAvx512 => "gfni-avx512",
        }
    }

    /// Sums `columns` up into one to [`ROWS_AT_ONCE`] outputs.
    fn run(self, columns: &Columns<'_>, outputs: &mut [&mut [u8]]) {
        assert!((1..=ROWS_AT_ONCE).contains(&outputs.len()));
        assert!(columns.sources.len() <= PORTIONS_MAX);
        assert_eq!(columns.sources.len(), columns.coefficients.len());
        let size = outputs[0].len();
        assert!(columns.sources.iter().all(|source| source.len() == size), "K2");
        assert!(outputs.iter().all(|output| output.len() == size), "K2");
        let done = match self.0 {
            Kind::Scalar => 0,
            // SAFETY: K1, the CPU has the instructions; K2 was just asserted.
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => unsafe { neon::run(columns, outputs) },
            // SAFETY: K1 and K2 as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Ssse3 => unsafe { x86::run_ssse3(columns, outputs) },
            // SAFETY: K1 and K2 as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { x86::run_avx2(columns, outputs) },
            // SAFETY: K1 and K2 as above.
            #[cfg(target_arch = "x86_64")]
            Kind::GfniAvx2 => unsafe { x86::run_gfni_avx2(columns, outputs) },
            // SAFETY: K1 and K2 as above.
            #[cfg(target_arch = "x86_64")]
            Kind::GfniAvx512 => unsafe { x86::run_gfni_avx512(columns, outputs) },
            #[allow(unreachable_patterns)]
            other => unreachable!("{other:?} is not of this machine type"),
        };
        if done < size {
            scalar::run(columns, outputs, done);
        }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Kind {
    /// Whether this CPU has the instructions.
    fn detected(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "x86_64")]
            Self::Ssse3 => is_x86_feature_detected!("ssse3"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::GfniAvx2 => is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::GfniAvx512 => {
                is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx512f")
            }
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
}

/// What happens to the bytes that the outputs hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They are written over.
    Replace,
    /// The sums are added to them.
    Accumulate,
}

/// Output `r` becomes (or gets added) the sum over `j` of `rows[r][j]` times source `j`.
///
/// Shapes: at most 32 sources and 32 outputs of any lengths; short sources end in zeros, outputs
/// are filled over their whole length, source bytes behind an output's end do not matter to it.
pub(crate) fn combine(
    kernel: Kernel,
    rows: &Rows,
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    mode: Mode,
) {
    assert!(sources.len() <= PORTIONS_MAX && outputs.len() <= PORTIONS_MAX);
    let longest = outputs.iter().map(|output| output.len()).max().unwrap_or(0);
    let mut start = 0;
    while start < longest {
        let ends = outputs.iter().map(|output| output.len());
        let end = sources.iter().map(|source| source.len()).chain(ends).filter(|end| *end > start);
        let mut end = end.min().expect("the longest output ends behind the start");
        if outputs.len() > ROWS_AT_ONCE {
            end = end.min(start + BLOCK_BYTES);
        }
        combine_slice(kernel, rows, sources, outputs, (start..end, mode));
        start = end;
    }
}

/// `combine` for bytes in which every strip is either there as a whole or not at all.
fn combine_slice(
    kernel: Kernel,
    rows: &Rows,
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    (range, mode): (Range<usize>, Mode),
) {
    let mut slices: [&[u8]; PORTIONS_MAX] = [&[]; PORTIONS_MAX];
    let mut source_indexes = [0; PORTIONS_MAX];
    let mut source_count = 0;
    for (index, source) in sources.iter().enumerate() {
        if let Some(slice) = source.get(range.clone()) {
            slices[source_count] = slice;
            source_indexes[source_count] = index;
            source_count += 1;
        }
    }
    for (group_index, group) in outputs.chunks_mut(ROWS_AT_ONCE).enumerate() {
        let mut targets: [&mut [u8]; ROWS_AT_ONCE] = [&mut [], &mut [], &mut [], &mut []];
        let mut coefficients = [[0; ROWS_AT_ONCE]; PORTIONS_MAX];
        let mut target_count = 0;
        for (index, output) in group.iter_mut().enumerate() {
            let Some(slice) = output.get_mut(range.clone()) else { continue };
            let row = &rows[group_index * ROWS_AT_ONCE + index];
            for (place, source_index) in source_indexes[..source_count].iter().enumerate() {
                coefficients[place][target_count] = row[*source_index];
            }
            targets[target_count] = slice;
            target_count += 1;
        }
        let targets = &mut targets[..target_count];
        if target_count == 0 {
            continue;
        }
        if source_count == 0 {
            if mode == Mode::Replace {
                targets.iter_mut().for_each(|target| target.fill(0));
            }
            continue;
        }
        let columns = Columns {
            sources: &slices[..source_count],
            coefficients: &coefficients[..source_count],
            accumulate: mode == Mode::Accumulate,
        };
        kernel.run(&columns, targets);
    }
}
