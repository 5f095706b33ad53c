//! Reads: applied blocks, overlaid with kept records.
//! # Theory
//! A read is planned at once and its bytes are fetched afterwards, possibly waiting for the medium.
//! If a checkpoint changed the group's blocks meanwhile, it is planned again, so that a checksum
//! never meets the bytes of another state.
//! ```text
//! applied:   a b c . e        kept 5:  . B . D .      read with decided 5:  a B c D e
//! ```
//! Large pieces go past the page cache, or one pass over a large file would drive all else out of it;
//! what is read a second time is kept.
//! # Invariants
//! R1 A record above the read's `decided` is not visible.
//! # Failure
//! Bytes that a file has no more are given as zeros: their checksum tells the owner.
//! # Source
//! W-12, S-2.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::rc::Rc;

use braid_env::{File, Payload};
use braid_terms::{BLOCK_SIZE, PAYLOAD_MAX, PortionName, WriteNumber};
use braid_wire::io::{BlockRange, Fence, IoRefusal, IoReply, Read, Seek};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;

use crate::direct::{Ticket, written};
use crate::fence::Wish;
use crate::group::{Entry, Group, Source};
use crate::journal_body::SlotKey;
use crate::portion_file::{Presence, runs};
use crate::portion_page::{GROUP_BLOCKS, block_offset};
use crate::prepare::check_range;
use crate::requests::{bad, key_of};
use crate::store::{Store, disk_refusal, portion_refusal, unreadable};

/// Where the bytes of a read are.
pub(crate) struct Plan {
    crcs: Vec<Option<u32>>,
    extents: Vec<Extent>,
    epoch: u64,
    on_their_way: Vec<Ticket>,
}

struct Extent {
    file: File,
    at: u64,
    length: usize,
    /// Not to be kept in memory.
    is_uncached: bool,
}

impl Extent {
    fn begin(&self) -> LocalBoxFuture<'static, io::Result<Bytes>> {
        if self.is_uncached {
            self.file.read_uncached(self.at, self.length)
        } else {
            self.file.read(self.at, self.length)
        }
    }
}

/// What was read past the page cache lately: a second read of it is worth keeping in memory.
#[derive(Default)]
pub(crate) struct RecentReads {
    seen: BTreeSet<(PortionName, u64)>,
    order: VecDeque<(PortionName, u64)>,
}

impl RecentReads {
    /// Whether this place was read before; it was now.
    fn note(&mut self, name: PortionName, at: u64) -> bool {
        let place = (name, at);
        if !self.seen.insert(place) {
            return true;
        }
        self.order.push_back(place);
        if RECENT_MAX < self.order.len()
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        false
    }
}

#[derive(Clone, Copy)]
enum Cell {
    Absent,
    InFile { at: u64, crc: u32 },
    InJournal { entry: usize, at: u64, crc: u32 },
}

/// Serves a read; the store is not locked while the medium works.
pub(crate) async fn read(
    store: Rc<RefCell<Store>>,
    read: Box<Read>,
) -> (Result<IoReply, IoRefusal>, Payload) {
    let key = key_of(&read.fence);
    let mut plan = match store.borrow_mut().plan(&read) {
        Ok(plan) => plan,
        Err(refusal) => return (Err(refusal), Payload::empty()),
    };
    loop {
        // An owner reads only what was promised, so there is nothing to wait for.
        written(&store, &plan.on_their_way).await;
        let mut payload = Payload::empty();
        let reads: Vec<_> = plan.extents.iter().map(Extent::begin).collect();
        for (extent, read) in plan.extents.iter().zip(reads) {
            match read.await {
                Ok(bytes) => payload.push(filled(bytes, extent.length)),
                Err(error) => return (Err(unreadable(&error)), Payload::empty()),
            }
        }
        let mut store = store.borrow_mut();
        if store.groups.get(&key).is_some_and(|group| group.epoch == plan.epoch) {
            store.status.bytes_read += payload.len() as u64;
            return (Ok(IoReply::Blocks { crcs: plan.crcs }), payload);
        }
        plan = match store.plan(&read) {
            Ok(plan) => plan,
            Err(refusal) => return (Err(refusal), Payload::empty()),
        };
    }
}

fn filled(bytes: Bytes, length: usize) -> Bytes {
    if bytes.len() == length {
        return bytes;
    }
    let mut filled = bytes.to_vec();
    filled.resize(length, 0);
    filled.into()
}

impl Store {
    /// Says where the bytes of a read are.
    ///
    /// Errors: `UnknownGroup` where there is no portion file and should be one; `Behind` where the
    /// journal's damage may have taken what is asked; `Unreadable`, fences.
    pub fn plan(&mut self, read: &Read) -> Result<Plan, IoRefusal> {
        let group = self.readable(&read.fence, read.decided)?;
        let devices = group.layout.devices.len();
        let mut blocks: u64 = 0;
        for range in &read.ranges {
            check_range(*range, devices).map_err(bad)?;
            blocks = blocks.saturating_add(range.count);
        }
        if blocks > (PAYLOAD_MAX / BLOCK_SIZE) as u64 {
            return Err(bad("more blocks than one answer may have"));
        }
        let mut plan = Plan {
            crcs: Vec::new(),
            extents: Vec::new(),
            epoch: group.epoch,
            on_their_way: Vec::new(),
        };
        for range in &read.ranges {
            self.plan_range(read, *range, &mut plan)?;
        }
        Ok(plan)
    }

    /// The group, if all up to `decided` can be read here.
    fn readable(&mut self, fence: &Fence, decided: WriteNumber) -> Result<&Group, IoRefusal> {
        let key = key_of(fence);
        self.ready()?;
        self.check_fence(fence, Wish::Use)?;
        self.evict(self.limits.groups_max);
        self.load_evicted(key)?;
        let group = self.group(key).ok_or(IoRefusal::UnknownGroup)?;
        if !group.known {
            return Err(IoRefusal::UnknownGroup);
        }
        if group.damaged_after.is_some_and(|after| after < decided) {
            return Err(IoRefusal::Behind { last: group.last });
        }
        Ok(&self.groups[&key])
    }

    /// Finds the next block that was written, or was not. Looks at so many at most.
    ///
    /// Errors: as `plan`.
    pub fn seek(&mut self, seek: &Seek) -> Result<IoReply, IoRefusal> {
        let key = key_of(&seek.fence);
        let device_index = seek.device_index;
        let group = self.readable(&seek.fence, seek.decided)?;
        let first = BlockRange { device_index, first: seek.from, count: 1 };
        check_range(first, group.layout.devices.len()).map_err(bad)?;
        let name = group.layout.portion_name(usize::from(device_index), key.slot);
        let kept_end = group.entries.iter().map(|entry| entry.span.1).max().unwrap_or(0);
        let file = self.files.file(name).map_err(|error| disk_refusal(&error))?;
        let length =
            file.map_or(Ok(0), |file| file.length()).map_err(|error| unreadable(&error))?;
        // A file is longer than its blocks: it has pages of checksums, too.
        let end = kept_end.max(length / BLOCK_SIZE as u64);
        let mut at = seek.from;
        for _ in 0..SEEK_PAGES_MAX {
            if end <= at {
                break;
            }
            let count = GROUP_BLOCKS - at % GROUP_BLOCKS;
            let cells =
                self.cells(key, seek.decided, BlockRange { device_index, first: at, count })?;
            let found = cells.iter().position(|cell| seek.present != matches!(cell, Cell::Absent));
            if let Some(place) = found {
                return Ok(IoReply::Sought { at: at + place as u64, found: true });
            }
            at += count;
        }
        Ok(match (end <= at, seek.present) {
            (true, true) => IoReply::Sought { at: u64::MAX, found: false },
            (true, false) => IoReply::Sought { at, found: true },
            (false, _) => IoReply::Sought { at, found: false },
        })
    }

    /// Where blocks are that are visible.
    fn cells(
        &mut self,
        key: SlotKey,
        decided: WriteNumber,
        range: BlockRange,
    ) -> Result<Vec<Cell>, IoRefusal> {
        let group = &self.groups[&key];
        let name = group.layout.portion_name(usize::from(range.device_index), key.slot);
        let expected = group.files_expected;
        let presence = self.files.presence(name).map_err(|error| disk_refusal(&error))?;
        match presence {
            Presence::Present => {}
            Presence::None | Presence::Begun if expected => {}
            Presence::None | Presence::Begun => return Err(IoRefusal::UnknownGroup),
            Presence::Unreadable => return Err(unreadable(&"no header of the portion is valid")),
        }
        let mut cells = vec![Cell::Absent; usize::try_from(range.count).expect("checked")];
        for run in runs(range) {
            let checksums = self.files.checksums(name, run.first / GROUP_BLOCKS);
            let checksums = checksums.map_err(|error| portion_refusal(&error))?;
            for block in run.first..run.first + run.count {
                let index = usize::try_from(block % GROUP_BLOCKS).expect("below 512");
                if let Some(crc) = checksums.get(index) {
                    let at = block_offset(block);
                    cells[index_of(block, range)] = Cell::InFile { at, crc };
                }
            }
        }
        paint(&self.groups[&key], decided, range, &mut cells);
        Ok(cells)
    }

    fn plan_range(
        &mut self,
        read: &Read,
        range: BlockRange,
        plan: &mut Plan,
    ) -> Result<(), IoRefusal> {
        let key = key_of(&read.fence);
        let cells = self.cells(key, read.decided, range)?;
        let group = &self.groups[&key];
        let name = group.layout.portion_name(usize::from(range.device_index), key.slot);
        let file = self.files.file(name).map_err(|error| disk_refusal(&error))?;
        let group = &self.groups[&key];
        plan.on_their_way.extend(self.direct.meeting(name, range));
        // One range's extents are not joined with those of the next.
        let from = plan.extents.len();
        for cell in cells {
            let (file, at, crc) = match cell {
                Cell::Absent => {
                    plan.crcs.push(None);
                    continue;
                }
                Cell::InFile { at, crc } => {
                    let file = file.as_ref().ok_or_else(|| unreadable(&"the file is gone"))?;
                    (file, at, crc)
                }
                Cell::InJournal { entry, at, crc } => (&group.entries[entry].journal, at, crc),
            };
            plan.crcs.push(Some(crc));
            plan.add(from, file, at);
        }
        let least = usize::try_from(self.limits.uncached_blocks_min).unwrap_or(usize::MAX);
        for extent in &mut plan.extents[from..] {
            extent.is_uncached = least.saturating_mul(BLOCK_SIZE) <= extent.length
                && !self.recent_reads.note(name, extent.at);
        }
        Ok(())
    }
}

impl Plan {
    // Blocks that follow each other in one file are one extent.
    fn add(&mut self, from: usize, file: &File, at: u64) {
        if let Some(last) = self.extents[from..].last_mut()
            && Rc::ptr_eq(&last.file.0, &file.0)
            && last.at + last.length as u64 == at
        {
            last.length += BLOCK_SIZE;
            return;
        }
        self.extents.push(Extent {
            file: file.clone(),
            at,
            length: BLOCK_SIZE,
            is_uncached: false,
        });
    }
}

// Later entries lie over earlier ones.
fn paint(group: &Group, decided: WriteNumber, range: BlockRange, cells: &mut [Cell]) {
    let end = range.first + range.count;
    let is_decided = |entry: &Entry| {
        entry.number <= decided || braid_terms::planted!("W-12/read-what-is-not-decided")
    };
    let visible = |entry: &Entry| is_decided(entry) && entry.meets(range.first, end);
    for (at_entry, entry) in group.entries.iter().enumerate().filter(|(_, e)| visible(e)) {
        for piece in &entry.pieces {
            if piece.range.device_index != range.device_index {
                continue;
            }
            let first = piece.range.first.max(range.first);
            let stop = (piece.range.first + piece.range.count).min(end);
            for block in first..stop {
                let index = index_of(block, piece.range);
                cells[index_of(block, range)] = match piece.source {
                    Source::Punch => Cell::Absent,
                    Source::Direct => {
                        Cell::InFile { at: block_offset(block), crc: piece.crcs[index] }
                    }
                    Source::Image(at) => Cell::InJournal {
                        entry: at_entry,
                        at: at + (index * BLOCK_SIZE) as u64,
                        crc: piece.crcs[index],
                    },
                };
            }
        }
    }
}

fn index_of(block: u64, range: BlockRange) -> usize {
    usize::try_from(block - range.first).expect("ranges in memory are short")
}

/// Pages of checksums that one search looks at: 512 MiB of a portion.
const SEEK_PAGES_MAX: u32 = 256;

/// Beginnings of reads that are remembered.
const RECENT_MAX: usize = 16_384;
