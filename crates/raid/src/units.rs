//! Sets of units of a stripe row, as bits: the key of a cached [`crate::Decoder`].

use std::fmt;

use braid_terms::{PORTIONS_MAX, PortionIndex};

/// A set of units: 0 to k-1 are data, k to k+m-1 parity. Unit `u` lies on slot `u + 1`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnitSet(u32);

impl UnitSet {
    /// No unit.
    pub const EMPTY: Self = Self(0);

    /// The units 0 to `count - 1`; `count` is at most 32.
    #[must_use]
    pub const fn first(count: usize) -> Self {
        assert!(count <= PORTIONS_MAX);
        Self(((1_u64 << count) - 1) as u32)
    }

    /// The set with the bits of `bits`: unit `u` is in it if bit `u` is set.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Bit `u` is set if unit `u` is in the set.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether `unit` is in the set.
    #[must_use]
    pub const fn contains(self, unit: usize) -> bool {
        unit < PORTIONS_MAX && self.0 & (1 << unit) != 0
    }

    /// Adds `unit`, below 32.
    pub const fn insert(&mut self, unit: usize) {
        assert!(unit < PORTIONS_MAX);
        self.0 |= 1 << unit;
    }

    /// Takes `unit` out.
    pub const fn remove(&mut self, unit: usize) {
        assert!(unit < PORTIONS_MAX);
        self.0 &= !(1 << unit);
    }

    /// How many units are in the set.
    #[must_use]
    pub const fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether no unit is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The units in this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The units that are in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The units that are in either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The units, upwards.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let unit = rest.trailing_zeros() as usize;
            rest &= rest.wrapping_sub(1);
            (unit < PORTIONS_MAX).then_some(unit)
        })
    }
}

impl FromIterator<usize> for UnitSet {
    fn from_iter<I: IntoIterator<Item = usize>>(units: I) -> Self {
        let mut set = Self::EMPTY;
        units.into_iter().for_each(|unit| set.insert(unit));
        set
    }
}

impl FromIterator<PortionIndex> for UnitSet {
    fn from_iter<I: IntoIterator<Item = PortionIndex>>(slots: I) -> Self {
        slots.into_iter().map(PortionIndex::zero_based).collect()
    }
}

impl fmt::Debug for UnitSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_what_was_put_in() {
        let set: UnitSet = [0_usize, 3, 31].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 3, 31]);
        assert_eq!((set.count(), set.contains(3), set.contains(4)), (3, true, false));
        assert_eq!(UnitSet::first(32).count(), 32);
        assert_eq!(UnitSet::first(0), UnitSet::EMPTY);
        assert_eq!(set.without(UnitSet::first(4)).iter().collect::<Vec<_>>(), [31]);
    }
}
