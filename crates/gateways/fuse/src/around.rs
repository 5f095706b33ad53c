//! Reading around: random reads of a file that fits fill the kernel's page cache ahead of themselves.
//!
//! # Theory
//! What the kernel's pages have is never asked of the mount again, so it sees *misses* only. Each
//! one is widened, the more the file was missed before, and what came with it is put into the
//! kernel's pages (`FUSE_NOTIFY_STORE`): a file of a few hundred MiB is there after a few hundred
//! reads of a megabyte, where single blocks would take as long as ten thousand.
//! ```text
//! misses so far        up to 4   up to 16   up to 48   more
//! bytes fetched         16 KiB     64 KiB    256 KiB    1 MiB
//! ```
//! A file larger than [`Tuning::around_max`](crate::vfs::Tuning) is asked for block by block, but
//! for megabytes that were missed so often that fetching them whole had cost less.
//! # Invariants
//! A1 Bytes go into the kernel's pages only while nobody has the file open for writing here, nor cuts
//!    it: a page written through a mapping would be lost under them. Who begins to, waits until what
//!    is under way has arrived.
//! A2 The pages thread takes news in order: bytes of before a change by others are dropped after they
//!    were put there, since the drop is told later.
//! # Failure
//! A file that is evicted as fast as it is read is given up for a minute, once twice its size was
//! fetched.
//! # Not here
//! Sequential reads: `read.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::inode::Inode;
use crate::vfs::{Shared, Stale};

/// What is remembered of a file's misses.
#[derive(Default, Debug)]
pub struct Around {
    misses: u32,
    /// Bytes fetched around them since `since_ms`.
    fetched: u64,
    since_ms: u64,
    /// Of large files: misses by megabyte.
    regions: BTreeMap<u64, u8>,
}

/// Bytes of the widest fetch; the size of a region.
const REGION: u64 = 1 << 20;
/// A file up to this is fetched whole at its first miss.
const WHOLE: u64 = 256 << 10;
/// So many single reads cost as much as a whole region.
const REGION_MISSES: u8 = 6;
/// Regions that are counted at a time.
const REGIONS_MAX: usize = 4096;
/// How long a file is given up.
const FORGET_MS: u64 = 60_000;
/// Bytes on their way to the kernel.
const STORES_MAX: u64 = 32 << 20;

impl Around {
    /// A read at `at` missed: what is to be fetched instead, if more than was asked.
    ///
    /// Units: bytes; the range begins and ends at powers of two.
    pub fn widen(
        &mut self,
        at: u64,
        size: u64,
        around_max: u64,
        now_ms: u64,
    ) -> Option<(u64, u64)> {
        if self.since_ms + FORGET_MS <= now_ms {
            *self = Self { since_ms: now_ms, ..Self::default() };
        }
        if self.fetched > size.saturating_mul(2).max(REGION) {
            return None;
        }
        self.misses = self.misses.saturating_add(1);
        let width = if size <= around_max { self.width(size) } else { self.region(at / REGION)? };
        self.fetched += width;
        let from = at - at % width;
        Some((from, from + width))
    }

    fn width(&self, size: u64) -> u64 {
        match self.misses {
            _ if size <= WHOLE => WHOLE,
            0..=4 => 16 << 10,
            5..=16 => 64 << 10,
            17..=48 => 256 << 10,
            _ => REGION,
        }
    }

    fn region(&mut self, region: u64) -> Option<u64> {
        if REGIONS_MAX <= self.regions.len() {
            self.regions.clear();
        }
        let misses = self.regions.entry(region).or_default();
        *misses += 1;
        if *misses < REGION_MISSES {
            return None;
        }
        self.regions.remove(&region);
        Some(REGION)
    }
}

impl Shared {
    /// Has the pages thread put a kept chunk into the kernel's pages, unless that may not be (A1).
    pub fn store_pages(&self, inode: &Arc<Inode>, at: u64, bytes: Bytes) {
        let waiting = self.store_bytes.load(Ordering::Relaxed);
        let mut state = inode.state();
        if state.changers > 0 || state.is_dirty() || waiting > STORES_MAX || bytes.is_empty() {
            return;
        }
        state.stores += 1;
        drop(state);
        self.store_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let stale = Stale::Bytes { inode: inode.clone(), at, bytes };
        if let Err(unsent) = self.stale_pages.send(stale)
            && let Stale::Bytes { inode, at, bytes } = unsent.0
        {
            self.pages_stored(&inode, at, &bytes); // The mount is ending.
        }
    }

    /// The kernel has them, or did not want them.
    pub fn pages_stored(&self, inode: &Inode, at: u64, bytes: &Bytes) {
        self.store_bytes.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
        let mut state = inode.state();
        state.stores -= 1;
        // From now on the kernel's pages answer; another chunk in its place stays.
        if state.chunks.get(&at).is_some_and(|chunk| chunk.as_ptr() == bytes.as_ptr()) {
            state.chunks.remove(&at);
        }
        drop(state);
        inode.progress.notify_waiters();
    }
}

/// Somebody may change the file's bytes or its size here: nothing is put into the kernel's pages.
pub struct Changing {
    inode: Arc<Inode>,
}

impl Changing {
    /// From now on. Where something is on its way there, [`Changing::settled`] waits for it.
    pub fn begin(inode: &Arc<Inode>) -> Self {
        inode.state().changers += 1;
        Self { inode: inode.clone() }
    }

    /// Begins, and waits until nothing is on its way there.
    pub async fn settled(inode: &Arc<Inode>) -> Self {
        let changing = Self::begin(inode);
        loop {
            let progress = inode.progress.notified();
            if inode.state().stores == 0 {
                return changing;
            }
            progress.await;
        }
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.inode.state().changers -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn misses_of_a_file_that_fits_grow_until_it_is_here() {
        let mut around = Around::default();
        let size = 256 * MIB;
        let widths: Vec<u64> = (0..60)
            .map(|index| {
                let at = index * 4 * MIB + 4096;
                let (from, to) = around.widen(at, size, 512 * MIB, 100_000).expect("it is widened");
                assert!(from <= at && at < to && from.is_multiple_of(to - from), "{from}..{to}");
                to - from
            })
            .collect();
        assert_eq!(
            (widths[0], widths[10], widths[30], widths[59]),
            (16 << 10, 64 << 10, 256 << 10, MIB)
        );
        // Small ones are fetched whole at once.
        let whole = Around::default().widen(100_000, 200_000, MIB, 100_000);
        assert_eq!(whole, Some((0, WHOLE)));
    }

    #[test]
    fn a_file_that_does_not_stay_is_given_up_for_a_minute() {
        let mut around = Around::default();
        let size = 10 * MIB;
        let mut fetched = 0;
        let mut miss = |now_ms| {
            let widened = around.widen(5 * MIB, size, 512 * MIB, now_ms);
            fetched += widened.map_or(0, |(from, to)| to - from);
            widened.is_some()
        };
        while miss(100_000) {}
        assert!(!miss(100_000 + FORGET_MS - 1));
        assert!(miss(100_000 + FORGET_MS));
        assert!((2 * size..3 * size).contains(&fetched), "{fetched}");
    }

    #[test]
    fn of_a_large_file_only_what_is_missed_often_is_fetched_whole() {
        let mut around = Around::default();
        let size = 100_000 * MIB;
        for index in 0..50_000 {
            assert_eq!(around.widen(index * 2 * MIB, size, MIB, 100_000), None);
        }
        let often = (1..=REGION_MISSES).map(|_| around.widen(7 * MIB + 9, size, MIB, 100_000));
        let often: Vec<_> = often.collect();
        assert_eq!(often.iter().flatten().collect::<Vec<_>>(), [&(7 * MIB, 8 * MIB)]);
    }
}
