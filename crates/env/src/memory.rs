//! Memory of large payloads: whole pages, used again.
//!
//! # Theory
//! A payload of some hundred KiB lives for milliseconds. Fresh memory costs more than the bytes that
//! are copied into it: each page is faulted in and zeroed, on a virtual machine by its host as well.
//! So what is dropped is parked, by size, and given out again with its old bytes; what lay parked for
//! a whole [`TEND_EVERY`] goes back to the kernel. Whole pages are what direct I/O asks for.
//! # Invariants
//! B1 All bytes of a buffer are initialised, with zeros or with bytes of an earlier payload.
//! # Unsafe
//! Maps and unmaps anonymous pages; a region is owned by one buffer or by the list of parked ones.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Buffers begin and end at multiples of this.
pub const PAGE_SIZE: usize = 4096;

/// Bytes to be filled, then shared as [`Bytes`]; a multiple of nothing, but it begins at a page.
pub struct PageBuffer {
    region: Region,
    length: usize,
}

impl PageBuffer {
    /// A buffer of `length` bytes with any content.
    #[must_use]
    pub fn new(length: usize) -> Self {
        let size = size_class(length);
        let parked = PARKED.lock().unwrap_or_else(PoisonError::into_inner).take(size);
        Self { region: parked.unwrap_or_else(|| Region::map(size)), length }
    }

    /// A buffer of zeros.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        let mut buffer = Self::new(length);
        buffer.fill(0);
        buffer
    }

    /// Leaves only the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// The bytes, to be shared; the last one who drops them gives the memory back.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for PageBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the region has at least `length` bytes, all initialised (B1), and is ours.
        unsafe { std::slice::from_raw_parts(self.region.start.as_ptr(), self.length) }
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.region.start.as_ptr(), self.length) }
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        let region = Region { start: self.region.start, size: self.region.size };
        // The region's own drop must not run here: it has moved.
        self.region.size = 0;
        PARKED.lock().unwrap_or_else(PoisonError::into_inner).park(region);
    }
}

/// Gives memory back that nobody used for a while. Runs as long as the role.
pub(crate) async fn tend() {
    loop {
        tokio::time::sleep(TEND_EVERY).await;
        let old = PARKED.lock().unwrap_or_else(PoisonError::into_inner).age();
        drop(old);
    }
}

/// Mapped pages; none where the size is 0.
struct Region {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: the pages belong to nobody else, whichever thread holds the region.
unsafe impl Send for Region {}
// SAFETY: shared references only read.
unsafe impl Sync for Region {}

impl Region {
    fn map(size: usize) -> Self {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), size, access, MapFlags::PRIVATE) };
        let start = start.ok().and_then(|start| NonNull::new(start.cast()));
        let Some(start) = start else {
            let layout = std::alloc::Layout::from_size_align(size, PAGE_SIZE).expect("below 2^63");
            std::alloc::handle_alloc_error(layout)
        };
        Self { start, size }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.size > 0 {
            // SAFETY: the mapping is ours and nobody refers to it any more.
            let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.size) };
            debug_assert!(unmapped.is_ok(), "the region was mapped by us");
        }
    }
}

/// Regions that wait for their next use.
struct Parked {
    /// Newest last.
    regions: Vec<Region>,
    bytes: usize,
    /// The first so many lay here at the last `age`, and were not used since.
    old: usize,
}

impl Parked {
    fn take(&mut self, size: usize) -> Option<Region> {
        let at = self.regions.iter().rposition(|region| region.size == size)?;
        let region = self.regions.remove(at);
        self.bytes -= region.size;
        self.old = self.old.min(at);
        Some(region)
    }

    fn park(&mut self, region: Region) {
        if self.bytes + region.size <= PARKED_BYTES_MAX {
            self.bytes += region.size;
            self.regions.push(region);
        }
    }

    fn age(&mut self) -> Vec<Region> {
        let old: Vec<_> = self.regions.drain(..self.old).collect();
        self.bytes -= old.iter().map(|region| region.size).sum::<usize>();
        self.old = self.regions.len();
        old
    }
}

static PARKED: Mutex<Parked> = Mutex::new(Parked { regions: Vec::new(), bytes: 0, old: 0 });

/// Few sizes, so that a parked region fits the next payload: powers of two and the halves between.
fn size_class(length: usize) -> usize {
    let power = length.max(SIZE_MIN).next_power_of_two();
    let below = power / 4 * 3;
    if SIZE_MIN < below && length <= below { below } else { power }
}

/// Smallest region: each is a mapping of its own, of which a process can have some ten thousand.
const SIZE_MIN: usize = 64 << 10;

/// Most bytes that are parked in one process.
const PARKED_BYTES_MAX: usize = 64 << 20;

/// How often what is parked grows old.
const TEND_EVERY: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_hold_what_is_asked_and_are_whole_pages() {
        for length in (0..40_000).chain([1 << 20, (1 << 20) + 1, 3 << 20, 33 << 20]) {
            let size = size_class(length);
            assert!(length <= size && size.is_multiple_of(PAGE_SIZE), "{length} {size}");
            assert!(size <= (2 * length).max(SIZE_MIN), "{length} {size}");
        }
    }

    #[test]
    fn buffers_are_apart_and_begin_at_pages() {
        let mut buffers: Vec<_> = (0..8).map(|_| PageBuffer::new(100_000)).collect();
        for (index, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.as_ptr() as usize % PAGE_SIZE, 0);
            buffer.fill(u8::try_from(index).expect("small"));
        }
        let shared: Vec<_> = buffers.into_iter().map(PageBuffer::freeze).collect();
        for (index, bytes) in shared.iter().enumerate() {
            assert!(bytes.iter().all(|byte| usize::from(*byte) == index) && bytes.len() == 100_000);
        }
        drop(shared);
        assert!(PageBuffer::zeroed(100_000).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_grows_old_is_given_back() {
        let mut parked = Parked { regions: Vec::new(), bytes: 0, old: 0 };
        parked.park(Region::map(PAGE_SIZE));
        parked.park(Region::map(2 * PAGE_SIZE));
        assert!(parked.age().is_empty());
        // Used in between: the second is as if new.
        let used = parked.take(2 * PAGE_SIZE).expect("it was parked");
        parked.park(used);
        assert_eq!(parked.age().len(), 1);
        assert_eq!(parked.bytes, 2 * PAGE_SIZE);
        assert_eq!(parked.age().len(), 1);
        assert_eq!(parked.bytes, 0);
    }
}
