//! What is on the disk: lists, descriptions, verification, status.
//! # Source
//! F-6, F-9, O-8.

use std::cell::RefCell;
use std::rc::Rc;

use braid_terms::{BLOCK_SIZE, Incarnation, PortionName};
use braid_wire::io::{BlockRange, IoRefusal, IoReply, PortionDescription};
use tokio::task::yield_now;

use crate::group::{Source, slot_fits};
use crate::journal_body::SlotKey;
use crate::portion_file::{PortionError, is_good};
use crate::portion_page::{GROUP_BLOCKS, block_offset, slots_offset};
use crate::store::{Store, disk_refusal, portion_refusal, unreadable};

/// Most names of one answer.
const NAMES_MAX: usize = 10_000;
/// Blocks that are read and verified before others get their turn.
const VERIFY_BLOCKS: usize = 64;

impl Store {
    /// Names of portion files after a name, by folder, device and index.
    pub fn list_portions(
        &self,
        after: Option<PortionName>,
        limit: u32,
    ) -> Result<IoReply, IoRefusal> {
        let limit = usize::try_from(limit).unwrap_or(NAMES_MAX).clamp(1, NAMES_MAX);
        let mut names = Vec::new();
        for number in after.map_or(0, |name| name.folder())..=255 {
            let found = self.folder.list(&format!("portions/{number:02x}"));
            let found = found.map_err(|error| disk_refusal(&error))?;
            let mut found: Vec<PortionName> = found
                .iter()
                .filter_map(|name| name.parse().ok())
                .filter(|name: &PortionName| name.folder() == number)
                .filter(|name| after.is_none_or(|after| (after.folder(), after) < (number, *name)))
                .collect();
            found.sort_unstable();
            names.append(&mut found);
            if limit < names.len() {
                names.truncate(limit);
                return Ok(IoReply::Portions { names, end: false });
            }
        }
        Ok(IoReply::Portions { names, end: true })
    }

    /// What a portion file's header says.
    pub fn describe(&mut self, name: PortionName) -> Result<IoReply, IoRefusal> {
        let (_, header) = self.files.look(name).map_err(|error| unreadable(&error))?;
        let file = self.files.file(name).map_err(|error| unreadable(&error))?;
        let (Some(header), Some(file)) = (header, file) else {
            return Err(IoRefusal::UnknownGroup);
        };
        let key = SlotKey { group: header.layout.group(), slot: name.index };
        let mut description = PortionDescription {
            home: header.home,
            length: header.length,
            path: name.path(),
            allocated: file.length().map_err(|error| unreadable(&error))?,
            layout: header.layout,
        };
        // What is kept in the journal is newer.
        if let Some(group) = self.groups.get(&key).filter(|group| slot_fits(&group.layout, key)) {
            let device = group.layout.devices.iter().position(|device| *device == name.device);
            let (lengths, _) = group.stable_lengths();
            if let Some(length) = device.and_then(|device| lengths.get(device)) {
                description.length = *length;
            }
        }
        Ok(IoReply::Portion(Box::new(description)))
    }

    /// Groups with kept records above their stable mark by these writers, or by any.
    pub fn list_unfinished(&self, writers: &[Incarnation]) -> IoReply {
        let by_writer =
            |incarnation: Incarnation| writers.is_empty() || writers.contains(&incarnation);
        let groups = self.groups.values().filter(|group| {
            let kept = group.entries.iter().filter(|entry| entry.number > group.stable);
            kept.filter_map(|entry| entry.record.as_ref()).any(|record| by_writer(record.writer))
        });
        IoReply::Unfinished { groups: groups.map(|group| group.layout.clone()).collect() }
    }

    /// The slot that a portion file is of, and which device of the group.
    fn header_names_device(&mut self, name: PortionName) -> Result<(SlotKey, u8), IoRefusal> {
        let (_, header) = self.files.look(name).map_err(|error| unreadable(&error))?;
        let header = header.ok_or(IoRefusal::UnknownGroup)?;
        let key = SlotKey { group: header.layout.group(), slot: name.index };
        let device = header.layout.devices.iter().position(|device| *device == name.device);
        let device = device.and_then(|device| u8::try_from(device).ok());
        Ok((key, device.ok_or(IoRefusal::UnknownGroup)?))
    }
}

/// Verifies the applied blocks of a portion file. Source: F-6.
pub(crate) async fn verify(
    store: Rc<RefCell<Store>>,
    name: PortionName,
) -> Result<IoReply, IoRefusal> {
    let (mut blocks, mut bad) = (0, Vec::new());
    let mut group = 0;
    while let Some(seen) = verify_group(&store, name, group).await? {
        blocks += seen.blocks;
        bad.extend(seen.bad);
        group += 1;
    }
    Ok(IoReply::Verified { blocks, bad })
}

/// What [`verify_group`] saw.
#[derive(Default)]
pub(crate) struct Verified {
    /// Blocks looked at.
    pub blocks: u64,
    /// Runs of those that do not fit, in order.
    pub bad: Vec<BlockRange>,
}

/// Verifies the blocks of one checksum group that stand in their place: the applied ones, and those of
/// kept records that went there at once. A record may be kept for as long as nobody asks for its group.
/// `None` behind the file's end. Source: F-6.
///
/// Errors: `UnknownGroup` where there is no such portion, `Unreadable`.
pub(crate) async fn verify_group(
    store: &Rc<RefCell<Store>>,
    name: PortionName,
    group: u64,
) -> Result<Option<Verified>, IoRefusal> {
    let (key, file, range, wanted) = {
        let mut store = store.borrow_mut();
        let (key, device_index) = store.header_names_device(name)?;
        store.files.trim();
        let file = store.files.file(name).map_err(|error| unreadable(&error))?;
        let file = file.ok_or(IoRefusal::UnknownGroup)?;
        let length = file.length().map_err(|error| unreadable(&error))?;
        if length <= slots_offset(group) {
            return Ok(None);
        }
        let range = BlockRange { device_index, first: group * GROUP_BLOCKS, count: GROUP_BLOCKS };
        match store.standing(key, name, range) {
            Ok(wanted) => (key, file, range, wanted),
            Err(PortionError::PageLost { .. }) => {
                return Ok(Some(Verified { blocks: 0, bad: vec![range] }));
            }
            Err(error) => return Err(portion_refusal(&error)),
        }
    };
    let mut seen = Verified::default();
    // One read for each run of blocks that are there.
    let mut index = 0;
    while index < wanted.len() {
        let run = wanted[index..].iter().take(VERIFY_BLOCKS).take_while(|crc| crc.is_some());
        let run: Vec<u32> = run.flatten().copied().collect();
        if run.is_empty() {
            index += 1;
            continue;
        }
        let first = range.first + index as u64;
        let bytes = file.read_uncached(block_offset(first), run.len() * BLOCK_SIZE).await;
        // What cannot be read at all is bad as a whole; what is too short, from there on.
        let bytes = bytes.unwrap_or_default();
        for (at, crc) in run.iter().enumerate() {
            let block = bytes.get(at * BLOCK_SIZE..(at + 1) * BLOCK_SIZE);
            let number = first + at as u64;
            // A block that was changed since the list was made is good by its new checksum.
            if !block.is_some_and(|block| is_good(block, *crc))
                && store.borrow_mut().still_has(
                    key,
                    name,
                    BlockRange { first: number, count: 1, ..range },
                    *crc,
                )
            {
                match seen.bad.last_mut() {
                    Some(last) if last.first + last.count == number => last.count += 1,
                    _ => seen.bad.push(BlockRange { first: number, count: 1, ..range }),
                }
            }
        }
        seen.blocks += run.len() as u64;
        index += run.len();
        yield_now().await;
    }
    Ok(Some(seen))
}

impl Store {
    /// Checksums that blocks of one checksum group must fit where they stand; none for those that stand
    /// nowhere, in the journal, or are on their way.
    fn standing(
        &mut self,
        key: SlotKey,
        name: PortionName,
        range: BlockRange,
    ) -> Result<Vec<Option<u32>>, PortionError> {
        let first = usize::try_from(range.first % GROUP_BLOCKS).expect("below a group of blocks");
        let count = usize::try_from(range.count).expect("at most a group of blocks");
        let checksums = self.files.checksums(name, range.first / GROUP_BLOCKS)?;
        let mut wanted: Vec<_> = (first..first + count).map(|at| checksums.get(at)).collect();
        let entries = self.groups.get(&key).into_iter().flat_map(|group| &group.entries);
        let pieces = entries.flat_map(|entry| &entry.pieces);
        for piece in pieces.filter(|piece| piece.range.device_index == range.device_index) {
            let begin = piece.range.first.max(range.first);
            let end = (piece.range.first + piece.range.count).min(range.first + range.count);
            for block in begin..end {
                let index_in = |range: BlockRange| usize::try_from(block - range.first);
                let at = index_in(piece.range).expect("a piece in memory");
                let is_here = piece.source == Source::Direct
                    && self
                        .direct
                        .meeting(name, BlockRange { first: block, count: 1, ..range })
                        .is_empty();
                wanted[index_in(range).expect("at most a group of blocks")] =
                    is_here.then(|| piece.crcs[at]);
            }
        }
        Ok(wanted)
    }

    fn still_has(&mut self, key: SlotKey, name: PortionName, block: BlockRange, crc: u32) -> bool {
        self.standing(key, name, block).is_ok_and(|wanted| wanted == [Some(crc)])
    }
}
