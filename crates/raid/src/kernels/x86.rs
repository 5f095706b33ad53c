//! x86-64: nibble look-ups by `PSHUFB` (SSSE3, AVX2), bit matrices by `GF2P8AFFINEQB` (GFNI).

use std::arch::x86_64::*;

use super::Columns;
use super::vector::{self, Lane};
use crate::gf::{BIT_MATRICES, NIBBLES, Nibbles};

/// SAFETY: the CPU has SSSE3; all slices have one length.
#[target_feature(enable = "ssse3")]
pub(super) unsafe fn run_ssse3(columns: &Columns<'_>, outputs: &mut [&mut [u8]]) -> usize {
    // SAFETY: as the caller vouches.
    unsafe { vector::run::<Shuffle128>(columns, outputs) }
}

/// SAFETY: the CPU has AVX2; all slices have one length.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn run_avx2(columns: &Columns<'_>, outputs: &mut [&mut [u8]]) -> usize {
    // SAFETY: as the caller vouches.
    unsafe { vector::run::<Shuffle256>(columns, outputs) }
}

/// SAFETY: the CPU has GFNI and AVX2; all slices have one length.
#[target_feature(enable = "gfni,avx2")]
pub(super) unsafe fn run_gfni_avx2(columns: &Columns<'_>, outputs: &mut [&mut [u8]]) -> usize {
    // SAFETY: as the caller vouches.
    unsafe { vector::run::<Affine256>(columns, outputs) }
}

/// SAFETY: the CPU has GFNI and AVX-512F; all slices have one length.
#[target_feature(enable = "gfni,avx512f")]
pub(super) unsafe fn run_gfni_avx512(columns: &Columns<'_>, outputs: &mut [&mut [u8]]) -> usize {
    // SAFETY: as the caller vouches.
    unsafe { vector::run::<Affine512>(columns, outputs) }
}

/// Implements `Lane` for a register type; `mul` differs.
macro_rules! lane {
    ($name:ident, $bytes:literal, $register:ty, $factor:ty, $of:expr,
     $zero:ident, $load:ident, $store:ident, $xor:ident, $mul:expr) => {
        #[derive(Clone, Copy)]
        struct $name($register);

        impl Lane for $name {
            const BYTES: usize = $bytes;
            type Factor = $factor;

            #[inline(always)]
            fn factor(c: u8) -> Self::Factor {
                $of(usize::from(c))
            }
            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the caller vouches for the CPU.
                Self(unsafe { $zero() })
            }
            #[inline(always)]
            unsafe fn load(from: *const u8) -> Self {
                // SAFETY: the caller vouches for the CPU and the bytes; no alignment is needed.
                Self(unsafe { $load(from.cast()) })
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut u8) {
                // SAFETY: as `load`.
                unsafe { $store(to.cast(), self.0) }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the CPU.
                Self(unsafe { $xor(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn mul(self, factor: Self::Factor) -> Self {
                // SAFETY: the caller vouches for the CPU; tables have their 32 bytes.
                Self(unsafe { $mul(self.0, factor) })
            }
        }
    };
}

lane!(
    Shuffle128,
    16,
    __m128i,
    &'static Nibbles,
    |c: usize| &NIBBLES[c],
    _mm_setzero_si128,
    _mm_loadu_si128,
    _mm_storeu_si128,
    _mm_xor_si128,
    shuffle_128
);
lane!(
    Shuffle256,
    32,
    __m256i,
    &'static Nibbles,
    |c: usize| &NIBBLES[c],
    _mm256_setzero_si256,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_xor_si256,
    shuffle_256
);
lane!(
    Affine256,
    32,
    __m256i,
    u64,
    |c: usize| BIT_MATRICES[c],
    _mm256_setzero_si256,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_xor_si256,
    affine_256
);
lane!(
    Affine512,
    64,
    __m512i,
    u64,
    |c: usize| BIT_MATRICES[c],
    _mm512_setzero_si512,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    _mm512_xor_si512,
    affine_512
);

/// SAFETY: the CPU has SSSE3.
#[inline(always)]
unsafe fn shuffle_128(bytes: __m128i, nibbles: &'static Nibbles) -> __m128i {
    // SAFETY: the tables are 32 bytes at a multiple of 32.
    unsafe {
        let tables: *const __m128i = nibbles.0.as_ptr().cast();
        let mask = _mm_set1_epi8(15);
        let low = _mm_and_si128(bytes, mask);
        let high = _mm_and_si128(_mm_srli_epi64::<4>(bytes), mask);
        let low = _mm_shuffle_epi8(_mm_load_si128(tables), low);
        let high = _mm_shuffle_epi8(_mm_load_si128(tables.add(1)), high);
        _mm_xor_si128(low, high)
    }
}

/// SAFETY: the CPU has AVX2.
#[inline(always)]
unsafe fn shuffle_256(bytes: __m256i, nibbles: &'static Nibbles) -> __m256i {
    // SAFETY: the tables are 32 bytes at a multiple of 32.
    unsafe {
        let tables: *const __m128i = nibbles.0.as_ptr().cast();
        let mask = _mm256_set1_epi8(15);
        let low = _mm256_and_si256(bytes, mask);
        let high = _mm256_and_si256(_mm256_srli_epi64::<4>(bytes), mask);
        let low_products = _mm256_broadcastsi128_si256(_mm_load_si128(tables));
        let high_products = _mm256_broadcastsi128_si256(_mm_load_si128(tables.add(1)));
        let low = _mm256_shuffle_epi8(low_products, low);
        let high = _mm256_shuffle_epi8(high_products, high);
        _mm256_xor_si256(low, high)
    }
}

/// SAFETY: the CPU has GFNI and AVX2.
#[inline(always)]
unsafe fn affine_256(bytes: __m256i, matrix: u64) -> __m256i {
    // SAFETY: as the caller vouches.
    unsafe { _mm256_gf2p8affine_epi64_epi8::<0>(bytes, _mm256_set1_epi64x(matrix.cast_signed())) }
}

/// SAFETY: the CPU has GFNI and AVX-512F.
#[inline(always)]
unsafe fn affine_512(bytes: __m512i, matrix: u64) -> __m512i {
    // SAFETY: as the caller vouches.
    unsafe { _mm512_gf2p8affine_epi64_epi8::<0>(bytes, _mm512_set1_epi64(matrix.cast_signed())) }
}
