//! Device numbers that this LCC leased, and which of them are still its own.
//! # Theory
//! A range is leased under one grant. Its numbers are given out one after the other; a group of such
//! a number is owned under that grant without asking anybody, until somebody else was granted it.
//! ```text
//! given out -made-> made: exists, perhaps not in memory any more
//!           -lost-> not ours without asking, for ever
//! ```
//! # Invariants
//! N1 A number is given out once.
//! N2 A group that was made is never taken for a new one: its first record would meet a gap, and
//!    its bytes would read as zeros until then.
//! # Source
//! O-2.

use braid_terms::{DeviceId, GrantNumber, NUMBER_RANGE_SIZE};

/// The leased ranges of one LCC.
#[derive(Default)]
pub struct Ranges(Vec<Range>);

struct Range {
    first: u64,
    /// The next number to be given out.
    next: u64,
    grant: GrantNumber,
    made: Bits,
    lost: Bits,
}

impl Ranges {
    /// Takes a leased range; numbers are given out of the last one.
    pub fn add(&mut self, first: DeviceId, grant: GrantNumber) {
        let (made, lost) = (Bits::default(), Bits::default());
        self.0.push(Range { first: first.0, next: first.0, grant, made, lost });
    }

    /// Whether a number can be given out.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.0.last().is_some_and(|range| range.next < range.first + NUMBER_RANGE_SIZE)
    }

    /// Gives a number out.
    pub fn take(&mut self) -> Option<DeviceId> {
        let range =
            self.0.last_mut().filter(|range| range.next < range.first + NUMBER_RANGE_SIZE)?;
        range.next += 1;
        Some(DeviceId(range.next - 1))
    }

    /// The grant of a number that was given out and is our own.
    #[must_use]
    pub fn grant_of(&self, device: DeviceId) -> Option<GrantNumber> {
        let (range, index) = self.find(device)?;
        (!range.lost.has(index)).then_some(range.grant)
    }

    /// Whether the group was made by us.
    #[must_use]
    pub fn is_made(&self, device: DeviceId) -> bool {
        self.find(device).is_some_and(|(range, index)| range.made.has(index))
    }

    /// The group was made, or found made.
    pub fn note_made(&mut self, device: DeviceId) {
        if let Some((range, index)) = self.find_mut(device) {
            range.made.set(index);
        }
    }

    /// The number is not ours any more.
    pub fn lose(&mut self, device: DeviceId) {
        if let Some((range, index)) = self.find_mut(device) {
            range.lost.set(index);
        }
    }

    /// First numbers of the ranges.
    #[must_use]
    pub fn firsts(&self) -> Vec<DeviceId> {
        self.0.iter().map(|range| DeviceId(range.first)).collect()
    }

    fn find(&self, device: DeviceId) -> Option<(&Range, u64)> {
        let range = self.0.iter().find(|range| (range.first..range.next).contains(&device.0))?;
        Some((range, device.0 - range.first))
    }

    fn find_mut(&mut self, device: DeviceId) -> Option<(&mut Range, u64)> {
        let mut ranges = self.0.iter_mut();
        let range = ranges.find(|range| (range.first..range.next).contains(&device.0))?;
        let index = device.0 - range.first;
        Some((range, index))
    }
}

/// Numbers below the size of a range; memory up to the highest one that is set.
#[derive(Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn has(&self, index: u64) -> bool {
        let word = self.0.get((index / 64) as usize).copied().unwrap_or(0);
        word >> (index % 64) & 1 != 0
    }

    fn set(&mut self, index: u64) {
        assert!(index < NUMBER_RANGE_SIZE, "a range has no such number");
        let at = (index / 64) as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        self.0[at] |= 1 << (index % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // Proves: O-2.
    fn numbers_are_given_out_once_and_lost_for_ever() {
        let grant = |counter| GrantNumber { term: 1, counter };
        let mut ranges = Ranges::default();
        assert!(!ranges.has_room() && ranges.take().is_none());
        ranges.add(DeviceId(5000), grant(1));
        for number in 0..NUMBER_RANGE_SIZE {
            assert_eq!(ranges.take(), Some(DeviceId(5000 + number)));
        }
        assert!(!ranges.has_room() && ranges.take().is_none());
        ranges.add(DeviceId(16), grant(2));
        assert_eq!(ranges.take(), Some(DeviceId(16)));
        assert_eq!(ranges.grant_of(DeviceId(16)), Some(grant(2)));
        assert_eq!(ranges.grant_of(DeviceId(17)), None, "it was not given out");
        let last = DeviceId(5000 + NUMBER_RANGE_SIZE - 1);
        for device in [DeviceId(5000), DeviceId(5064), last] {
            assert_eq!(ranges.grant_of(device), Some(grant(1)));
            assert!(!ranges.is_made(device));
            ranges.note_made(device);
            assert!(ranges.is_made(device));
            ranges.lose(device);
            assert_eq!(ranges.grant_of(device), None);
        }
        assert_eq!(ranges.grant_of(DeviceId(5001)), Some(grant(1)));
        assert_eq!(ranges.firsts(), [DeviceId(5000), DeviceId(16)]);
        ranges.lose(DeviceId(4));
        assert!(!ranges.is_made(DeviceId(4)));
    }
}
