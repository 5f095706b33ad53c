//! aarch64: nibble look-ups by `TBL`.

use std::arch::aarch64::*;

use super::Columns;
use super::vector::{self, Lane};
use crate::gf::{NIBBLES, Nibbles};

/// SAFETY: the CPU has NEON; all slices have one length.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run(columns: &Columns<'_>, outputs: &mut [&mut [u8]]) -> usize {
    // SAFETY: as the caller vouches.
    unsafe { vector::run::<Table128>(columns, outputs) }
}

#[derive(Clone, Copy)]
struct Table128(uint8x16_t);

impl Lane for Table128 {
    const BYTES: usize = 16;
    type Factor = &'static Nibbles;

    #[inline(always)]
    fn factor(c: u8) -> Self::Factor {
        &NIBBLES[usize::from(c)]
    }
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the CPU.
        Self(unsafe { vdupq_n_u8(0) })
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller vouches for the CPU and the bytes; no alignment is needed.
        Self(unsafe { vld1q_u8(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: as `load`.
        unsafe { vst1q_u8(to, self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller vouches for the CPU.
        Self(unsafe { veorq_u8(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, factor: Self::Factor) -> Self {
        // SAFETY: the caller vouches for the CPU; the tables have their 32 bytes.
        unsafe {
            let low_products = vld1q_u8(factor.0.as_ptr());
            let high_products = vld1q_u8(factor.0.as_ptr().add(16));
            let low = vqtbl1q_u8(low_products, vandq_u8(self.0, vdupq_n_u8(15)));
            let high = vqtbl1q_u8(high_products, vshrq_n_u8::<4>(self.0));
            Self(veorq_u8(low, high))
        }
    }
}
