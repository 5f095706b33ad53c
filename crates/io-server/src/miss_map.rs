//! Miss maps: which blocks an absent slot lacks, of records that were dropped here.
//! # Theory
//! A set of block ranges per slot, kept sorted and joined. A map that gets too long grows coarser:
//! ranges are widened to whole regions and joined, so that it names more than was missed, never
//! less.
//! # Invariants
//! M1 A block once added is in the map until the slot is in sync again.
//! # Source
//! F-2.

use std::collections::BTreeMap;

use braid_terms::PortionIndex;
use braid_wire::io::{BlockRange, Missed};

use crate::range_set::RangeSet;

/// Most ranges of one slot's map before it grows coarser.
const RANGES_MAX: usize = 4096;

/// What slots missed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct MissMap {
    slots: BTreeMap<PortionIndex, RangeSet>,
}

impl MissMap {
    /// Adds a range that `slot` missed.
    pub fn add(&mut self, slot: PortionIndex, range: BlockRange) {
        let set = self.slots.entry(slot).or_default();
        set.add(range);
        if set.len() > RANGES_MAX {
            set.coarsen(RANGES_MAX / 2);
        }
    }

    /// Adds all that another map names for `slot`.
    pub fn add_all(&mut self, slot: PortionIndex, ranges: &RangeSet) {
        ranges.iter().for_each(|range| self.add(slot, range));
    }

    /// Forgets a slot and says what it missed.
    pub fn take(&mut self, slot: PortionIndex) -> RangeSet {
        self.slots.remove(&slot).unwrap_or_default()
    }

    /// Forgets all slots that `keep` does not name.
    pub fn retain(&mut self, keep: impl Fn(PortionIndex) -> bool) {
        self.slots.retain(|slot, _| keep(*slot));
    }

    /// Whether nothing is missed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// As told to owners and kept in the journal.
    #[must_use]
    pub fn to_missed(&self) -> Vec<Missed> {
        self.slots
            .iter()
            .map(|(slot, ranges)| Missed { slot: *slot, ranges: ranges.iter().collect() })
            .collect()
    }

    /// The other way.
    #[must_use]
    pub fn from_missed(missed: &[Missed]) -> Self {
        let mut map = Self::default();
        for slot in missed {
            slot.ranges.iter().for_each(|range| map.add(slot.slot, *range));
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // Proves: F-2.
    fn a_long_map_grows_coarser_and_names_no_less() {
        let slot = PortionIndex(2);
        let mut map = MissMap::default();
        let blocks: Vec<u64> = (0..10_000).map(|index| index * 37).collect();
        blocks.iter().for_each(|block| map.add(slot, range(*block)));
        let set = map.take(slot);
        assert!(set.len() <= RANGES_MAX);
        assert!(blocks.iter().all(|block| set.contains(0, *block)));
    }

    fn range(first: u64) -> BlockRange {
        BlockRange { device_index: 0, first, count: 1 }
    }
}
