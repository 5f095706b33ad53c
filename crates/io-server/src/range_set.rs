//! Sets of blocks as ranges.
//! # Invariants
//! R1 Ranges are sorted, none is empty, no two touch: equal sets are equal.

use std::collections::BTreeMap;

use braid_wire::io::BlockRange;

/// Blocks of a group's devices: ranges by (device, first block), with their ends.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RangeSet {
    ranges: BTreeMap<(u8, u64), u64>,
}

impl RangeSet {
    /// Adds a range, joining it with those that it meets.
    pub fn add(&mut self, range: BlockRange) {
        if range.count == 0 {
            return;
        }
        let device = range.device_index;
        let (mut first, mut end) = (range.first, range.first.saturating_add(range.count));
        // All that begin at or before the new end and reach the new beginning are joined with it.
        while let Some((&(found_device, found_first), &found_end)) =
            self.ranges.range(..=(device, end)).next_back()
        {
            if found_device != device || found_end < first {
                break;
            }
            first = first.min(found_first);
            end = end.max(found_end);
            self.ranges.remove(&(found_device, found_first));
        }
        self.ranges.insert((device, first), end);
    }

    /// Widens all ranges to whole regions, so that at most `ranges_max` remain.
    pub fn coarsen(&mut self, ranges_max: usize) {
        let old = std::mem::take(&mut self.ranges);
        let mut region: u64 = 16;
        loop {
            for ((device_index, first), end) in &old {
                let first = first / region * region;
                let count = end.div_ceil(region).saturating_mul(region) - first;
                self.add(BlockRange { device_index: *device_index, first, count });
            }
            // Two ranges remain at the most when a region is everything: one a device.
            if self.ranges.len() <= ranges_max.max(2) {
                return;
            }
            self.ranges.clear();
            region = region.saturating_mul(4);
        }
    }

    /// The parts of `range` that are not in the set, in order.
    #[must_use]
    pub fn gaps(&self, range: BlockRange) -> Vec<BlockRange> {
        let device_index = range.device_index;
        let (mut at, end) = (range.first, range.first.saturating_add(range.count));
        let mut gaps = Vec::new();
        let before = self.ranges.range(..=(device_index, at)).next_back();
        if let Some(((device, _), found_end)) = before
            && *device == device_index
        {
            at = at.max((*found_end).min(end));
        }
        for ((_, first), found_end) in self.ranges.range((device_index, at)..(device_index, end)) {
            if at < *first {
                gaps.push(BlockRange { device_index, first: at, count: first - at });
            }
            at = (*found_end).min(end);
        }
        if at < end {
            gaps.push(BlockRange { device_index, first: at, count: end - at });
        }
        gaps
    }

    /// Number of ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// All ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.ranges.iter().map(|((device_index, first), end)| BlockRange {
            device_index: *device_index,
            first: *first,
            count: end - first,
        })
    }

    /// Whether a block is in it.
    #[cfg(test)]
    pub fn contains(&self, device_index: u8, block: u64) -> bool {
        let before = self.ranges.range(..=(device_index, block)).next_back();
        before.is_some_and(|((device, _), end)| *device == device_index && block < *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, count: u64) -> BlockRange {
        BlockRange { device_index: 0, first, count }
    }

    #[test] // Proves: R1.
    fn ranges_join_and_none_is_lost() {
        // All subsets of 10 blocks, in two orders.
        for subset in 0u32..1024 {
            let blocks: Vec<u64> = (0..10).filter(|block| subset >> block & 1 == 1).collect();
            let (mut up, mut down) = (RangeSet::default(), RangeSet::default());
            blocks.iter().for_each(|block| up.add(range(*block, 1)));
            blocks.iter().rev().for_each(|block| down.add(range(*block, 1)));
            assert_eq!(up, down);
            for block in 0..12 {
                assert_eq!(up.contains(0, block), blocks.contains(&block));
                assert!(!up.contains(1, block));
            }
            for first in 0..12 {
                let gaps: Vec<u64> = up
                    .gaps(range(first, 12 - first))
                    .iter()
                    .flat_map(|gap| gap.first..gap.first + gap.count)
                    .collect();
                let expect = (first..12).filter(|block| !blocks.contains(block));
                assert_eq!(gaps, expect.collect::<Vec<_>>());
            }
            let joined: Vec<_> = up.iter().collect();
            assert!(joined.windows(2).all(|pair| pair[0].first + pair[0].count < pair[1].first));
        }
    }
}
