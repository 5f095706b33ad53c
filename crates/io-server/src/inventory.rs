//! What is on the disk: lists, descriptions, verification, status.
//! # Source
//! F-6, F-9, O-8.

use std::cell::RefCell;
use std::rc::Rc;

use braid_terms::{BLOCK_SIZE, Incarnation, PortionName};
use braid_wire::io::{BlockRange, IoRefusal, IoReply, PortionDescription};
use tokio::task::yield_now;

use crate::group::slot_fits;
use crate::journal_body::SlotKey;
use crate::portion_file::is_good;
use crate::portion_page::{GROUP_BLOCKS, block_offset, slots_offset};
use crate::store::{Store, disk_refusal, portion_refusal, unreadable};

/// Most names of one answer.
const NAMES_MAX: usize = 10_000;
/// Blocks that are verified before others get their turn.
const VERIFY_BLOCKS: u64 = 64;

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

    fn header_names_device(&mut self, name: PortionName) -> Result<(SlotKey, u8), IoRefusal> {
        let (_, header) = self.files.look(name).map_err(|error| unreadable(&error))?;
        let header = header.ok_or(IoRefusal::UnknownGroup)?;
        let key = SlotKey { group: header.layout.group(), slot: name.index };
        let device = header.layout.devices.iter().position(|device| *device == name.device);
        let device = device.and_then(|device| u8::try_from(device).ok());
        Ok((key, device.ok_or(IoRefusal::UnknownGroup)?))
    }
}

/// Verifies the applied blocks of a portion file; those that a kept record changes are left out,
/// because their bytes may be on the way. Source: F-6.
pub(crate) async fn verify(
    store: Rc<RefCell<Store>>,
    name: PortionName,
) -> Result<IoReply, IoRefusal> {
    let (key, device_index) = store.borrow_mut().header_names_device(name)?;
    let (mut blocks, mut bad) = (0, Vec::new());
    let mut group = 0;
    loop {
        let (file, wanted) = {
            let mut store = store.borrow_mut();
            store.files.trim();
            let file = store.files.file(name).map_err(|error| unreadable(&error))?;
            let file = file.ok_or(IoRefusal::UnknownGroup)?;
            let length = file.length().map_err(|error| unreadable(&error))?;
            if length <= slots_offset(group) {
                return Ok(IoReply::Verified { blocks, bad });
            }
            let range =
                BlockRange { device_index, first: group * GROUP_BLOCKS, count: GROUP_BLOCKS };
            let covered = store.groups.get(&key).map(|group| group.covered(range));
            let covered = covered.unwrap_or_default();
            match store.files.checksums(name, group) {
                Ok(checksums) => {
                    let crc = |index: u64| {
                        let block = range.first + index;
                        let skipped = covered.contains(device_index, block);
                        let crc = checksums.get(usize::try_from(index).unwrap_or(0));
                        crc.filter(|_| !skipped).map(|crc| (block, crc))
                    };
                    (file, (0..GROUP_BLOCKS).filter_map(crc).collect::<Vec<_>>())
                }
                Err(crate::portion_file::PortionError::PageLost { .. }) => {
                    bad.push(range);
                    (file, Vec::new())
                }
                Err(error) => return Err(portion_refusal(&error)),
            }
        };
        for (index, (block, crc)) in wanted.into_iter().enumerate() {
            let bytes = file.read(block_offset(block), BLOCK_SIZE).await;
            let good = bytes.is_ok_and(|bytes| is_good(&bytes, crc));
            // A block that was changed since the list was made is good by its new checksum.
            if !good && store.borrow_mut().still_has(name, block, crc) {
                bad.push(BlockRange { device_index, first: block, count: 1 });
            }
            blocks += 1;
            if (index as u64).is_multiple_of(VERIFY_BLOCKS) {
                yield_now().await;
            }
        }
        group += 1;
    }
}

impl Store {
    fn still_has(&mut self, name: PortionName, block: u64, crc: u32) -> bool {
        let index = usize::try_from(block % GROUP_BLOCKS).unwrap_or(0);
        let checksums = self.files.checksums(name, block / GROUP_BLOCKS);
        checksums.is_ok_and(|checksums| checksums.get(index) == Some(crc))
    }
}
