//! Bytes of a portion file's slots: headers and checksum pages (`docs/format/portion-file.md`).
//! # Theory
//! ```text
//! block group g | slot A | slot B | 512 blocks |     at byte g * 514 * 4096
//! ```
//! Both slots hold the same page, of different age; the newest valid one counts, and a change goes
//! to the older one. In block group 0 the page is the header, which so carries the checksums of the
//! first 2 MiB of content: a small file has no other page.
//! # Invariants
//! P1 A slot is overwritten only while the other one is on the medium.
//! # Failure
//! A torn slot fails its checksum; the other one and the journal give the state back.
//! # Source
//! S-1, S-7. Departure: two slots in place of journalled page images.

use braid_terms::{
    BLOCK_SIZE, DeviceId, DiskId, GrantNumber, GroupLayout, LayoutGeneration, PORTIONS_MAX,
    PortionIndex, PortionName, RaidScheme, WriteNumber,
};
use braid_wire::io::ENDS_MAX;
use braid_wire::lcc::OperationId;
use braid_wire::operations::{Done, OPERATIONS_MAX, Operation, Operations};

use crate::bytes_le::{Get, Put};
use crate::checksum::crc32c;
use crate::disk::{DiskIdentity, FORMAT};

/// Blocks of a block group.
pub const GROUP_BLOCKS: u64 = 512;
/// Blocks that a portion can have: beyond, offsets would leave what files can be.
pub const BLOCKS_MAX: u64 = 1 << 48;

const HEADER_MAGIC: &[u8; 8] = b"BRAIDPRT";
const PAGE_MAGIC: &[u8; 8] = b"BRAIDSUM";
const ENDS_AT: usize = 376;
const OPERATIONS_AT: usize = 760;
const DONE_AT: usize = OPERATIONS_AT + 32;
const DONE_SIZE: usize = 56;
const PRESENCE_AT: usize = 1920;
const CRCS_AT: usize = 1984;
const OWN_CRC_AT: usize = BLOCK_SIZE - 4;

/// Byte of the first slot of block group `group`.
#[must_use]
pub fn slots_offset(group: u64) -> u64 {
    group * (GROUP_BLOCKS + 2) * BLOCK_SIZE as u64
}

/// Byte of block `block` in the file.
#[must_use]
pub fn block_offset(block: u64) -> u64 {
    (block / GROUP_BLOCKS * (GROUP_BLOCKS + 2) + 2 + block % GROUP_BLOCKS) * BLOCK_SIZE as u64
}

/// Checksums of one block group; a block without one was never written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checksums {
    present: [u64; 8],
    crcs: [u32; GROUP_BLOCKS as usize],
}

impl Default for Checksums {
    fn default() -> Self {
        Self { present: [0; 8], crcs: [0; GROUP_BLOCKS as usize] }
    }
}

impl Checksums {
    /// Checksum of the `index`-th block of the group.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<u32> {
        (self.present[index / 64] >> (index % 64) & 1 == 1).then(|| self.crcs[index])
    }

    /// Sets or clears it.
    pub fn set(&mut self, index: usize, crc: Option<u32>) {
        let bit = 1 << (index % 64);
        match crc {
            Some(_) => self.present[index / 64] |= bit,
            None => self.present[index / 64] &= !bit,
        }
        self.crcs[index] = crc.unwrap_or(0);
    }

    /// Number of blocks that are there.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.present.iter().map(|bits| bits.count_ones()).sum()
    }
}

/// What a header says besides its checksums.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The group.
    pub layout: GroupLayout,
    /// See `docs/format/portion-file.md`, as all below.
    pub home: DeviceId,
    /// First data device of the file.
    pub file_id: DeviceId,
    /// Slots of which portion files exist.
    pub existing: u32,
    /// Of this device, in bytes.
    pub length: u64,
    /// Last applied write.
    pub last: WriteNumber,
    /// Highest grant.
    pub fence: GrantNumber,
    /// Newest outcome record applied and where what came before it ends.
    pub outcome: Option<(WriteNumber, WriteNumber)>,
    /// Damages of the disk's journal that are repaired here.
    pub damages_repaired: u32,
    /// Last writes of former grants, in order.
    pub ends: Vec<WriteNumber>,
    /// Latest changes of clients.
    pub operations: Operations,
}

/// Which page is meant: what must stand in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageKey {
    /// The disk.
    pub identity: DiskIdentity,
    /// The portion.
    pub name: PortionName,
    /// The block group.
    pub group: u64,
}

/// One decoded slot.
pub struct Slot {
    /// Age of the slot: higher is newer.
    pub generation: u64,
    /// Only in block group 0.
    pub header: Option<Header>,
    /// Checksums of the group's blocks.
    pub checksums: Box<Checksums>,
}

/// Bytes of a slot.
#[must_use]
pub fn encode(
    key: PageKey,
    generation: u64,
    header: Option<&Header>,
    checksums: &Checksums,
) -> Vec<u8> {
    assert_eq!(header.is_some(), key.group == 0, "the header is the page of block group 0");
    let mut page = vec![0; BLOCK_SIZE];
    let mut put = Put(&mut page);
    put.bytes(0, if header.is_some() { HEADER_MAGIC } else { PAGE_MAGIC });
    put.u32(8, FORMAT);
    put.u32(12, key.identity.disk.0);
    put.u128(16, key.identity.cluster.0);
    put.u128(32, key.identity.identity);
    put.u64(48, generation);
    put.u64(56, key.name.device.0);
    put.bytes(64, &[key.name.index.0, key.name.count]);
    match header {
        Some(header) => put_header(&mut put, key, header),
        None => put.u64(72, key.group),
    }
    for (index, bits) in checksums.present.iter().enumerate() {
        put.u64(PRESENCE_AT + 8 * index, *bits);
    }
    for (index, crc) in checksums.crcs.iter().enumerate() {
        put.u32(CRCS_AT + 4 * index, *crc);
    }
    let crc = crc32c(&page[..OWN_CRC_AT]);
    Put(&mut page).u32(OWN_CRC_AT, crc);
    page
}

fn put_header(put: &mut Put<'_>, key: PageKey, header: &Header) {
    let layout = &header.layout;
    let device_at = layout.devices.iter().position(|device| *device == key.name.device);
    let device_at = device_at.expect("a header's device is of its group");
    for (place, count) in [(66, device_at), (67, layout.devices.len())] {
        put.bytes(place, &[u8::try_from(count).expect("two devices at most")]);
    }
    put.u32(68, layout.generation.0);
    put.bytes(72, layout.scheme.to_string().as_bytes());
    put.u32(96, layout.strip_size);
    put.u32(100, header.existing);
    put.u64(104, header.home.0);
    put.u64(112, header.file_id.0);
    put.u64(120, header.length);
    put.number(128, header.last);
    put.grant(152, header.fence);
    let (outcome, ends_at) = header.outcome.unwrap_or((WriteNumber::NONE, WriteNumber::NONE));
    put.number(168, outcome);
    put.number(192, ends_at);
    put.u32(216, header.damages_repaired);
    for (index, device) in layout.devices.iter().enumerate() {
        put.u64(224 + 8 * index, device.0);
    }
    for (index, disk) in layout.disks.iter().enumerate() {
        put.u32(240 + 4 * index, disk.0);
    }
    put.u32(368, u32::try_from(header.ends.len()).expect("at most ENDS_MAX"));
    for (index, end) in header.ends.iter().enumerate() {
        put.number(ENDS_AT + 24 * index, *end);
    }
    let Operations { forgotten, done } = &header.operations;
    put.u32(OPERATIONS_AT, u32::try_from(done.len()).expect("at most OPERATIONS_MAX"));
    put.number(OPERATIONS_AT + 8, *forgotten);
    for (index, Done { number, operation }) in done.iter().enumerate() {
        let at = DONE_AT + DONE_SIZE * index;
        put.number(at, *number);
        put.u64(at + 24, operation.id.client);
        put.u64(at + 32, operation.id.counter);
        put.u64(at + 40, operation.answered);
        put.u64(at + 48, operation.at);
    }
}

/// Reads a slot; `None` where it is not valid or not the page that is meant.
#[must_use]
pub fn decode(key: PageKey, page: &[u8]) -> Option<Slot> {
    if page.len() != BLOCK_SIZE {
        return None;
    }
    let get = Get(page);
    let magic = if key.group == 0 { HEADER_MAGIC } else { PAGE_MAGIC };
    let fits = page[..8] == *magic
        && get.u32(OWN_CRC_AT) == crc32c(&page[..OWN_CRC_AT])
        && get.u32(8) == FORMAT
        && get.u32(12) == key.identity.disk.0
        && get.u128(16) == key.identity.cluster.0
        && get.u128(32) == key.identity.identity
        && get.u64(56) == key.name.device.0
        && page[64] == key.name.index.0
        && page[65] == key.name.count;
    if !fits {
        return None;
    }
    let header = if key.group == 0 {
        Some(get_header(&get, page, key.name)?)
    } else if get.u64(72) == key.group {
        None
    } else {
        return None;
    };
    let mut checksums = Box::<Checksums>::default();
    for (index, bits) in checksums.present.iter_mut().enumerate() {
        *bits = get.u64(PRESENCE_AT + 8 * index);
    }
    for (index, crc) in checksums.crcs.iter_mut().enumerate() {
        *crc = get.u32(CRCS_AT + 4 * index);
    }
    Some(Slot { generation: get.u64(48), header, checksums })
}

fn get_header(get: &Get<'_>, page: &[u8], name: PortionName) -> Option<Header> {
    let (device_at, device_count) = (usize::from(page[66]), usize::from(page[67]));
    let text = std::str::from_utf8(&page[72..96]).ok()?.trim_end_matches('\0');
    let scheme: RaidScheme = text.parse().ok()?;
    if device_at >= device_count || device_count > 2 || scheme.portions() > PORTIONS_MAX {
        return None;
    }
    let layout = GroupLayout {
        devices: (0..device_count).map(|index| DeviceId(get.u64(224 + 8 * index))).collect(),
        scheme,
        strip_size: get.u32(96),
        generation: LayoutGeneration(get.u32(68)),
        disks: (0..scheme.portions()).map(|index| DiskId(get.u32(240 + 4 * index))).collect(),
    };
    layout.check().ok()?;
    let slot = PortionIndex(name.index.0);
    if slot.0 == 0 || slot.zero_based() >= scheme.portions() {
        return None;
    }
    if layout.portion_name(device_at, slot) != name {
        return None;
    }
    let outcome = get.number(168);
    let ends_count = usize::try_from(get.u32(368)).ok().filter(|count| *count <= ENDS_MAX)?;
    let done_count = usize::try_from(get.u32(OPERATIONS_AT)).ok();
    let done_count = done_count.filter(|count| *count <= OPERATIONS_MAX)?;
    let done = |index: usize| {
        let at = DONE_AT + DONE_SIZE * index;
        let id = OperationId { client: get.u64(at + 24), counter: get.u64(at + 32) };
        let operation = Operation { id, answered: get.u64(at + 40), at: get.u64(at + 48) };
        Done { number: get.number(at), operation }
    };
    Some(Header {
        layout,
        home: DeviceId(get.u64(104)),
        file_id: DeviceId(get.u64(112)),
        existing: get.u32(100),
        length: get.u64(120),
        last: get.number(128),
        fence: get.grant(152),
        outcome: (outcome != WriteNumber::NONE).then(|| (outcome, get.number(192))),
        damages_repaired: get.u32(216),
        ends: (0..ends_count).map(|index| get.number(ENDS_AT + 24 * index)).collect(),
        operations: Operations {
            forgotten: get.number(OPERATIONS_AT + 8),
            done: (0..done_count).map(done).collect(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use braid_terms::ClusterId;

    fn header() -> Header {
        Header {
            layout: GroupLayout {
                devices: vec![DeviceId(727), DeviceId(728)],
                scheme: RaidScheme::Rs { data: 4, parity: 2 },
                strip_size: 65536,
                generation: LayoutGeneration(3),
                disks: (1..=6).map(DiskId).collect(),
            },
            home: DeviceId(9),
            file_id: DeviceId(727),
            existing: 0x3f,
            length: 1 << 40,
            last: WriteNumber { grant: GrantNumber { term: 1, counter: 2 }, sequence: 3 },
            fence: GrantNumber { term: 1, counter: 4 },
            outcome: None,
            damages_repaired: 1,
            ends: vec![WriteNumber::NONE; ENDS_MAX],
            operations: Operations {
                forgotten: WriteNumber { grant: GrantNumber { term: 1, counter: 1 }, sequence: 8 },
                done: vec![
                    Done {
                        number: WriteNumber {
                            grant: GrantNumber { term: 1, counter: 2 },
                            sequence: 3
                        },
                        operation: Operation {
                            id: OperationId { client: u64::MAX, counter: 5 },
                            answered: 4,
                            at: u64::MAX,
                        },
                    };
                    OPERATIONS_MAX
                ],
            },
        }
    }

    fn key(group: u64) -> PageKey {
        let identity = DiskIdentity { cluster: ClusterId(5), disk: DiskId(6), identity: 7 };
        PageKey { identity, name: header().layout.portion_name(1, PortionIndex(2)), group }
    }

    #[test] // Proves: S-1.
    fn slots_come_back_and_a_flipped_bit_does_not() {
        let mut checksums = Checksums::default();
        checksums.set(0, Some(0));
        checksums.set(511, Some(u32::MAX));
        for group in [0, 1] {
            let header = (group == 0).then(header);
            let mut page = encode(key(group), 9, header.as_ref(), &checksums);
            let slot = decode(key(group), &page).expect("own bytes");
            assert_eq!((slot.generation, slot.header), (9, header));
            assert_eq!(*slot.checksums, checksums);
            assert!(decode(key(group + 1), &page).is_none(), "the page of another group");
            for at in 0..page.len() {
                page[at] ^= 1 << (at % 8);
                assert!(decode(key(group), &page).is_none(), "a bit of byte {at} is flipped");
                page[at] ^= 1 << (at % 8);
            }
        }
    }

    #[test] // Proves: S-1.
    fn blocks_lie_behind_their_slots() {
        for (block, page) in [(0, 2), (511, 513), (512, 516), (1023, 1027), (1024, 1030)] {
            assert_eq!(block_offset(block), page * 4096);
        }
        assert_eq!(slots_offset(2), 1028 * 4096);
    }
}
