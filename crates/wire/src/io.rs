//! What an owner asks of an I/O server: opens, prepares, marks, reads, rebuilds.
//!
//! # Theory
//! A *group* has the same scheme, strip size and disks for its one or two devices, so one disk keeps
//! portion K of each of them: its *slot* K. A slot takes the records of its group in the order of
//! the `prev` chain. Everything is counted in whole blocks of 4 KiB of a portion's content; a block
//! that no checksum entry names was never written and reads as zeros.
//! ```text
//! owner                         I/O server (slot K)
//!  Open(grant)  ------------->  fences every lower grant, reports what it keeps      O-5, W-6
//!  Prepare(record, bytes) --->  journals, promises: Promised                         W-1, W-2
//!  Marks(decided, stable) --->  what is visible, what may be applied                 W-4
//!  Sync(position) ----------->  journal and direct bytes to the medium               W-9
//!  Read(decided, blocks) ---->  applied bytes overlaid with records up to `decided`  W-12
//! ```
//! # Invariants
//! I1 Every request names grant and I/O incarnation; a lower grant or another incarnation is refused.
//! I2 A repeat of a prepare gets the first answer; a number never stands for two contents, except
//! that a void record replaces the content.
//! # Not here
//! Who may be the owner: `coordinator`.

use braid_terms::{
    DeviceId, DiskId, GrantNumber, GroupLayout, Incarnation, JournalPosition, LayoutGeneration,
    PortionIndex, PortionName, WriteNumber,
};
use serde::{Deserialize, Serialize};

use crate::operations::{Operation, Operations};
use crate::rpc::{Role, Service};

/// The service of an I/O server.
pub enum Io {}

impl Service for Io {
    type Request = IoRequest;
    type Reply = Result<IoReply, IoRefusal>;

    const ROLE: Role = Role::Io;
}

/// Names a group at one slot and proves the right to speak for it. Source: O-5.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fence {
    /// The group.
    pub group: DeviceId,
    /// The slot that the I/O server keeps of it.
    pub slot: PortionIndex,
    /// The grant of the sender.
    pub grant: GrantNumber,
    /// The I/O server's incarnation; `Incarnation(0)` in `Open` only: any.
    pub incarnation: Incarnation,
}

/// A run of blocks of one device's portion.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct BlockRange {
    /// Which device of the group, 0 or 1.
    pub device_index: u8,
    /// First block, in blocks of the portion's content.
    pub first: u64,
    /// Number of blocks.
    pub count: u64,
}

/// A slot whose fact says that it must not be believed. Source: F-2, F-4.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Absent {
    /// The slot.
    pub slot: PortionIndex,
    /// While it joins: from this write on it gets every record, so records from here on are not
    /// missed when they are dropped. Reverts to `None` when the join fails.
    pub joining_from: Option<WriteNumber>,
}

/// A request to an I/O server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum IoRequest {
    /// Fences lower grants, then reports. Idempotent. Answer: `Report`. Source: O-5, W-6.
    Open(Box<Open>),
    /// Takes one record; its bytes are the payload, blocks in the order of the changes. Answer:
    /// `Promised`.
    Prepare(Box<Prepare>),
    /// Marks of any number of groups; those with a lower grant or a wrong incarnation are left out.
    /// Answer: `Marked`.
    Marks {
        /// The I/O incarnation that is meant.
        incarnation: Incarnation,
        /// The marks.
        groups: Vec<GroupMarks>,
    },
    /// What a shadow says for a writer that is silent: only that something is decided, under the
    /// writer's grant. Answer: `Marked`. Source: W-4.
    Decided {
        /// The I/O incarnation that is meant.
        incarnation: Incarnation,
        /// The marks.
        groups: Vec<ShadowMark>,
    },
    /// Makes journal and direct bytes durable up to a position (or all that is there). Answer:
    /// `Synced`. Source: W-9, S-3.
    Sync {
        /// The I/O incarnation that is meant.
        incarnation: Incarnation,
        /// A position that a promise named; a position not yet reached means: all that is there.
        position: JournalPosition,
    },
    /// Reads blocks. Answer: `Blocks`, the payload being the present blocks in order. Not verified
    /// by the I/O server: the owner does (S-2).
    Read(Box<Read>),
    /// Finds the next block that was written, or that was not. Answer: `Sought`.
    Seek(Box<Seek>),
    /// What the slot keeps of records above the stable mark and of miss maps. Answer: `Report`.
    Inspect {
        /// Who asks.
        fence: Fence,
    },
    /// A returning slot starts anew: records up to `after` are kept and applied, all above dropped;
    /// the next record names `prev` as its predecessor. Durable when answered. A slot without
    /// portion files begins empty, and stands under `layout`. Answer: `Report`. Source: F-4.
    Rejoin {
        /// Who asks.
        fence: Fence,
        /// What it begins with.
        rejoin: Box<Rejoin>,
    },
    /// Rebuilt blocks of a joining slot, laid in place behind everything it keeps; the payload is
    /// their bytes. Only under the owner's row locks. Answer: `Promised`. Source: F-4, F-6.
    Rebuild {
        /// Who asks.
        fence: Fence,
        /// The decided mark whose state the bytes are.
        decided: WriteNumber,
        /// Blocks with their checksums; `Punch` where the rows read as zeros.
        changes: Vec<Change>,
    },
    /// Removes the slot's portion files and all that is known of the group, and refuses every grant
    /// up to the fence's from then on. Idempotent, also where nothing is. Answer: `Promised` with
    /// the tombstone's position. Source: F-9.
    Remove {
        /// Who asks; the group's owner.
        fence: Fence,
        /// The layout, so that a slot that never saw the group knows its portion names.
        layout: Box<GroupLayout>,
    },
    /// Names of portion files after a name, in order of (folder, device, index). Answer: `Portions`.
    ListPortions {
        /// Continue behind this name.
        after: Option<PortionName>,
        /// At most this many.
        limit: u32,
    },
    /// Header facts of one portion file, for `where` and for home checks. Answer: `Portion`.
    DescribePortion {
        /// Which.
        name: PortionName,
    },
    /// Groups with records above their stable mark that one of these LCC incarnations wrote, or of
    /// any LCC when empty. Answer: `Unfinished`. Source: O-8.
    ListUnfinished {
        /// LCC incarnations.
        writers: Vec<Incarnation>,
    },
    /// Verifies the stored blocks of a portion against their checksums (no network). Answer:
    /// `Verified`. Source: F-6.
    Verify {
        /// Which.
        name: PortionName,
    },
    /// Begins to verify all portions of the disk now, at full speed; one that is under way goes on
    /// so. Answer: `Status`, of before. Source: F-6.
    Scrub,
    /// State of the I/O server. Answer: `Status`.
    Status,
}

/// See [`IoRequest::Open`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Open {
    /// Who opens.
    pub fence: Fence,
    /// The LCC incarnation of the owner.
    pub writer: Incarnation,
    /// Where the owner believes the group to be.
    pub layout: GroupLayout,
    /// Slots under a fact; all others are in sync, and miss maps kept for those are dropped.
    pub absent: Vec<Absent>,
}

/// See [`IoRequest::Prepare`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepare {
    /// Who asks.
    pub fence: Fence,
    /// What the journal is to keep.
    pub record: Record,
    /// With the first record of a group under its first grant: makes the slot where it is unknown,
    /// as an `Open` would. A slot that is known takes no notice of it.
    pub create: Option<Box<Create>>,
    /// Rides along: everything of the group up to here is decided.
    pub decided: WriteNumber,
    /// Rides along: everything of the group up to here is stable on all in-sync participants.
    pub stable: WriteNumber,
}

/// What a slot that begins needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Create {
    /// The LCC incarnation of the owner.
    pub writer: Incarnation,
    /// Where the group lives.
    pub layout: GroupLayout,
    /// The meta-data device that holds the group's record; itself for directories. Source: F-9.
    pub home: DeviceId,
}

/// What an I/O server's journal keeps of one write. Source: W-1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The write.
    pub number: WriteNumber,
    /// This slot's previous record.
    pub prev: WriteNumber,
    /// LCC incarnation of the writer.
    pub writer: Incarnation,
    /// What it is.
    pub kind: RecordKind,
    /// All slots that were asked, with the I/O incarnation under which they were.
    pub participants: Vec<Participant>,
    /// Where blocks change, of all slots, asked or skipped: what a slot misses that lacks it.
    pub footprints: Vec<Footprint>,
    /// Lengths of the devices after it, in bytes.
    pub lengths: Vec<u64>,
    /// Slots of which portion files exist after it, bit K-1 for slot K. Source: F-5.
    pub existing: u32,
    /// In the slot's first record of a grant: the last write of each of the latest grants before it,
    /// in order, at most [`ENDS_MAX`]; empty in all others. Source: W-9.
    pub ends: Vec<WriteNumber>,
    /// The change of a client that it is. Source: N-3.
    pub operation: Option<Operation>,
    /// In the slot's first record of a grant, and the first one after a rejoin: the latest changes before
    /// it, in place of what the slot knows, where there are any. Source: N-3.
    pub operations: Option<Box<Operations>>,
    /// What changes at this slot; nothing for a void or outcome record or for a mere witness.
    pub changes: Vec<Change>,
}

/// Former grants whose last write a group remembers.
pub const ENDS_MAX: usize = 16;

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RecordKind {
    /// Changes bytes or lengths.
    Write,
    /// A withdrawn write: the number stands for nothing. Replaces an undecided record of its number.
    Void,
    /// Number (grant, 0): what came before ends at this number; every other record above it and
    /// below this one is void. Source: W-6(5).
    Outcome {
        /// The last number that counts.
        ends_at: WriteNumber,
    },
}

/// A slot that was asked for a promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Participant {
    /// The slot.
    pub slot: PortionIndex,
    /// Its I/O server's incarnation when it was asked.
    pub incarnation: Incarnation,
}

/// Blocks that a write changes at several slots alike.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Footprint {
    /// Bit K-1 for slot K.
    pub slots: u32,
    /// The blocks.
    pub range: BlockRange,
}

/// One change of a slot's blocks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Change {
    /// Whole blocks with new bytes: the next `crcs.len()` blocks of the payload.
    Write {
        /// Which device of the group, 0 or 1.
        device_index: u8,
        /// First block.
        first: u64,
        /// CRC-32C of each block, as the owner computed it.
        crcs: Vec<u32>,
    },
    /// Blocks that read as zeros again and give their space back.
    Punch(BlockRange),
}

/// Marks of one group. Source: W-4.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupMarks {
    /// The group.
    pub group: DeviceId,
    /// The slot.
    pub slot: PortionIndex,
    /// The sender's grant.
    pub grant: GrantNumber,
    /// All up to here is decided.
    pub decided: WriteNumber,
    /// All up to here is stable on all in-sync participants; may be applied and dropped.
    pub stable: WriteNumber,
    /// Slots under a fact. Before a record is dropped, its footprint at these goes to the miss map.
    pub absent: Vec<Absent>,
}

/// See [`IoRequest::Decided`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShadowMark {
    /// The group.
    pub group: DeviceId,
    /// The slot.
    pub slot: PortionIndex,
    /// The writer's grant.
    pub grant: GrantNumber,
    /// All up to here is decided.
    pub decided: WriteNumber,
}

/// What a returning slot begins with. See [`IoRequest::Rejoin`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rejoin {
    /// The group's layout.
    pub layout: GroupLayout,
    /// The `after` of the slot's fact.
    pub after: WriteNumber,
    /// What the next record will name as `prev`.
    pub prev: WriteNumber,
    /// What the group decided so far; becomes the slot's decided and stable mark.
    pub decided: WriteNumber,
    /// The devices' lengths in bytes, at `decided`.
    pub lengths: Vec<u64>,
    /// Home of the group, for the headers. Source: F-9.
    pub home: DeviceId,
    /// Drop all content first: the fact says `whole`.
    pub whole: bool,
    /// The latest changes of clients at `decided`, in place of what the slot knows. Source: N-3.
    pub operations: Operations,
    /// What other slots under facts lack at `decided`: the slot drops the records that say it.
    /// Source: F-2.
    pub missed: Vec<Missed>,
}

/// See [`IoRequest::Read`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Read {
    /// Who asks.
    pub fence: Fence,
    /// Records up to here are visible.
    pub decided: WriteNumber,
    /// What to read.
    pub ranges: Vec<BlockRange>,
}

/// A search for blocks of one portion.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seek {
    /// Who asks.
    pub fence: Fence,
    /// Records up to here are visible.
    pub decided: WriteNumber,
    /// Which device of the group.
    pub device_index: u8,
    /// First block.
    pub from: u64,
    /// One that was written, or one that was not.
    pub present: bool,
}

/// An answer of an I/O server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum IoReply {
    /// To `Open`, `Inspect`, `Rejoin`.
    Report(Box<Report>),
    /// To `Prepare`, `Rebuild`, `Remove`: the record is in the journal file.
    Promised {
        /// Its position; `Sync` up to here makes it stable on this disk.
        position: JournalPosition,
        /// All positions up to here are on the medium.
        synced: JournalPosition,
    },
    /// To `Marks`.
    Marked {
        /// All positions up to here are on the medium.
        synced: JournalPosition,
        /// Groups whose marks were not taken (fenced, unknown).
        refused: Vec<DeviceId>,
    },
    /// To `Sync`.
    Synced {
        /// All positions up to here are on the medium.
        synced: JournalPosition,
    },
    /// To `Read`, one entry for each block asked: its checksum, or none where it was never written.
    Blocks {
        /// In the order of the ranges.
        crcs: Vec<Option<u32>>,
    },
    /// To `Seek`.
    Sought {
        /// The block; or that up to which there is none, the largest number where none follows.
        at: u64,
        /// Whether it was found.
        found: bool,
    },
    /// To `ListPortions`.
    Portions {
        /// In order.
        names: Vec<PortionName>,
        /// Nothing follows.
        end: bool,
    },
    /// To `DescribePortion`.
    Portion(Box<PortionDescription>),
    /// To `ListUnfinished`.
    Unfinished {
        /// The groups, as their slots know them.
        groups: Vec<GroupLayout>,
    },
    /// To `Verify`.
    Verified {
        /// Blocks looked at.
        blocks: u64,
        /// Blocks whose bytes do not fit their checksum.
        bad: Vec<BlockRange>,
    },
    /// To `Status`.
    Status(IoStatus),
}

/// What a slot knows of its group. Source: W-6(2).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The I/O server's incarnation.
    pub incarnation: Incarnation,
    /// The newest layout that it knows; none where it never heard of the group.
    pub layout: Option<GroupLayout>,
    /// Its generation, 0 where it never heard of the group.
    pub generation: LayoutGeneration,
    /// Home of the group.
    pub home: DeviceId,
    /// State of each device's portion file.
    pub files: Vec<FileState>,
    /// The last record that it took (kept or dropped since).
    pub last: WriteNumber,
    /// The newest decided mark that it heard.
    pub decided: WriteNumber,
    /// The newest stable mark that it heard.
    pub stable: WriteNumber,
    /// The newest outcome record that it has: (its number, where what came before ends, on the
    /// medium).
    pub outcome: Option<(WriteNumber, WriteNumber, bool)>,
    /// Records above the stable mark, in order, without bytes.
    pub records: Vec<RecordHead>,
    /// Lengths of the devices at the newest record at or below the stable mark, in bytes.
    pub lengths: Vec<u64>,
    /// `existing` at that record.
    pub existing: u32,
    /// `ends` of the newest record at or below the stable mark that has some.
    pub ends: Vec<WriteNumber>,
    /// The latest changes of clients at or below the stable mark, of those that it took. Source: N-3.
    pub operations: Operations,
    /// What absent slots missed, of dropped records.
    pub missed: Vec<Missed>,
    /// Its journal was damaged: records above this number may have been lost there. Source: S-3.
    pub damaged_after: Option<WriteNumber>,
    /// All positions up to here are on the medium.
    pub synced: JournalPosition,
}

/// State of one portion file of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FileState {
    /// There is none.
    None,
    /// It is there and its header is valid.
    Present,
    /// It is there, or should be, and cannot be read.
    Unreadable,
}

/// A kept record without its bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordHead {
    /// The record; `changes` is left empty.
    pub record: Record,
    /// Its position in this journal.
    pub position: JournalPosition,
}

/// Blocks that a slot missed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Missed {
    /// The slot that lacks them.
    pub slot: PortionIndex,
    /// Sorted, not overlapping.
    pub ranges: Vec<BlockRange>,
}

/// What a portion file's header says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortionDescription {
    /// Its layout.
    pub layout: GroupLayout,
    /// Its home.
    pub home: DeviceId,
    /// Length of the device in bytes, as far as this slot knows.
    pub length: u64,
    /// Path on that server.
    pub path: String,
    /// Bytes that the file takes on the disk.
    pub allocated: u64,
}

/// State of an I/O server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct IoStatus {
    /// Its disk.
    pub disk: DiskId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Space of its disk in bytes.
    pub bytes_total: u64,
    /// What a prepare may still use, in bytes.
    pub bytes_free: u64,
    /// Bytes in journal files.
    pub journal_bytes: u64,
    /// Groups in memory.
    pub groups: u64,
    /// Prepares taken since its start.
    pub prepares: u64,
    /// Syncs of the medium since its start.
    pub syncs: u64,
    /// Payload bytes read and written since its start.
    pub bytes_read: u64,
    /// See above.
    pub bytes_written: u64,
    /// How far its scrub is.
    pub scrub: ScrubStatus,
}

/// How far the scrub of one disk is: each pass verifies every stored block against its checksum.
/// Source: F-6.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// When the last complete pass began, in milliseconds since 1970: nothing on the disk was
    /// verified longer ago than that. The first start of a disk counts as one.
    pub verified: u64,
    /// Whether a pass is under way.
    pub running: bool,
    /// Blocks of 4 KiB that it has verified, or the last one did.
    pub blocks: u64,
    /// Blocks that did not fit when they were last looked at.
    pub bad_blocks: u64,
    /// Passes that ended since the I/O server started.
    pub passes: u64,
}

/// Blocks that do not fit their checksums. Source: F-6.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BadBlocks {
    /// The group.
    pub layout: GroupLayout,
    /// The slot that keeps them.
    pub slot: PortionIndex,
    /// Which blocks.
    pub range: BlockRange,
}

/// Why an I/O server did not do it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum IoRefusal {
    /// Another incarnation answers here. Open again.
    WrongIncarnation {
        /// Who answers.
        current: Incarnation,
    },
    /// A newer grant has opened the group. The sender owns it no more. Source: O-5.
    Fenced {
        /// The grant that opened it.
        grant: GrantNumber,
    },
    /// The record's `prev` is not the last one here; nothing was taken. Source: W-1.
    Gap {
        /// The last one here.
        last: WriteNumber,
    },
    /// The slot does not know the group: open first; or its portion file is lost.
    UnknownGroup,
    /// A slot of a higher layout generation is here.
    WrongLayout {
        /// That generation.
        generation: LayoutGeneration,
    },
    /// The disk is too full; nothing was taken. Source: S-4.
    Full,
    /// The slot lacks a record up to the decided mark that a read named. Source: W-12.
    Behind {
        /// The last one here.
        last: WriteNumber,
    },
    /// Stored bytes or headers cannot be read.
    Unreadable {
        /// What the disk said.
        reason: String,
    },
    /// Starting, or its lease is over: it promises nothing. Try again soon.
    NotReady,
    /// The request contradicts itself.
    BadRequest {
        /// How.
        reason: String,
    },
}
