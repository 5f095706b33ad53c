//! The seed's stream of numbers, and the hash of what happened.

use std::ops::Range;
use std::time::Duration;

/// xoshiro256++ seeded by splitmix64: small, and the same on every machine and in every version.
pub(super) struct Random {
    state: [u64; 4],
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let mut seed = seed;
        let state = std::array::from_fn(|_| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = seed;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ (word >> 31)
        });
        Self { state }
    }

    pub(super) fn next(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing is below 0");
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    pub(super) fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.below(count as u64)).expect("below a usize")
    }

    /// True `percent` times of 100.
    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A time in the range; its start where the range is empty.
    pub(super) fn span(&mut self, range: &Range<Duration>) -> Duration {
        let width = range.end.saturating_sub(range.start).as_nanos();
        let width = u64::try_from(width).unwrap_or(u64::MAX).max(1);
        range.start + Duration::from_nanos(self.below(width))
    }
}

/// Hash of all events, in order. Not against an enemy: FNV-1a over words, with a rotation that
/// moves high bits down.
pub(super) struct Trace {
    hash: u64,
    prints: bool,
}

impl Trace {
    pub(super) fn new() -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, prints: std::env::var_os("BRAID_SIM_TRACE").is_some() }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn event(
        &mut self,
        at: u64,
        what: &str,
        from: u64,
        to: u64,
        bytes: &[u8],
        count: u64,
    ) {
        self.mix(at);
        self.mix_bytes(what.as_bytes());
        self.mix(from);
        self.mix(to);
        self.mix_bytes(bytes);
        self.mix(count);
        if self.prints {
            let (seconds, micros) = (at / 1_000_000_000, at / 1000 % 1_000_000);
            let shown = &bytes[..bytes.len().min(SHOWN_BYTES)];
            eprintln!("{seconds}.{micros:06} {what} {from}>{to} {count} {}", shown.escape_ascii());
        }
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    }

    fn mix_bytes(&mut self, bytes: &[u8]) {
        self.mix(bytes.len() as u64);
        for piece in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.mix(u64::from_le_bytes(word));
        }
    }
}

const SHOWN_BYTES: usize = 80;
