//! Bodies of journal records (`docs/format/journal.md`), encoded with postcard.
//!
//! Changing a structure here changes the format: give it a new kind, or raise the format's version.

use braid_terms::{DeviceId, GrantNumber, GroupLayout, Incarnation, PortionIndex, WriteNumber};
use braid_wire::io::{Absent, BlockRange, Change, Create, Missed, Record, Rejoin};
use braid_wire::operations::Operations;
use serde::{Deserialize, Serialize};

/// Kinds of journal records.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Begins the picture: [`Picture`].
    Picture = 1,
    /// One group of it: [`GroupPicture`].
    PictureGroup = 2,
    /// Ends it.
    PictureEnd = 3,
    /// [`Prepared`].
    Prepare = 4,
    /// [`Opened`].
    Open = 5,
    /// `Vec<GroupMarks>`.
    Marks = 6,
    /// [`Rejoined`].
    Rejoin = 7,
    /// [`Rebuilt`].
    Rebuild = 8,
    /// [`Removed`].
    Remove = 9,
    /// Only its head counts.
    Synced = 10,
}

impl Kind {
    /// The kind of a byte from disk.
    #[must_use]
    pub fn of(byte: u8) -> Option<Self> {
        use Kind::{
            Marks, Open, Picture, PictureEnd, PictureGroup, Prepare, Rebuild, Rejoin, Remove,
            Synced,
        };
        [Picture, PictureGroup, PictureEnd, Prepare, Open, Marks, Rejoin, Rebuild, Remove, Synced]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A group at one slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct SlotKey {
    /// The group.
    pub group: DeviceId,
    /// The slot.
    pub slot: PortionIndex,
}

/// What names a group's portion files, besides group and slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Shape {
    /// N.
    pub count: u8,
    /// The group's second device; 0 if there is none.
    pub second: DeviceId,
}

/// What does not belong to one group.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Picture {
    /// How often the journal of this disk was found damaged.
    pub damages: u32,
    /// Removed groups and the grants up to which they are refused.
    pub tombstones: Vec<(SlotKey, GrantNumber)>,
}

/// A group's state, without its kept records.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupPicture {
    /// Which.
    pub key: SlotKey,
    /// Where it lives.
    pub layout: GroupLayout,
    /// Known by more than an open.
    pub known: bool,
    /// Its home.
    pub home: DeviceId,
    /// Its fence.
    pub grant: GrantNumber,
    /// The record before the first kept one (or the last one, where none is kept).
    pub prev: WriteNumber,
    /// The last record taken.
    pub last: WriteNumber,
    /// Newest decided mark.
    pub decided: WriteNumber,
    /// Newest stable mark.
    pub stable: WriteNumber,
    /// Newest outcome record and where what came before it ends.
    pub outcome: Option<(WriteNumber, WriteNumber)>,
    /// Lengths as of the applied state.
    pub lengths: Vec<u64>,
    /// The write whose lengths they are.
    pub lengths_at: WriteNumber,
    /// Existing portions as of the applied state.
    pub existing: u32,
    /// Last writes of former grants as of the applied state.
    pub ends: Vec<WriteNumber>,
    /// Latest changes of clients as of the applied state.
    pub operations: Operations,
    /// Slots under a fact.
    pub absent: Vec<Absent>,
    /// What they missed.
    pub missed: Vec<Missed>,
    /// What joining ones would miss if their join failed.
    pub missed_joining: Vec<Missed>,
    /// Records above it may be lost here.
    pub damaged_after: Option<WriteNumber>,
    /// Journal damages that are repaired here.
    pub damages_repaired: u32,
    /// Its portion files are not made yet, and that is right.
    pub files_expected: bool,
    /// Its headers are behind this picture.
    pub header_dirty: bool,
}

/// A promise.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// The slot.
    pub key: SlotKey,
    /// The grant under which it was asked.
    pub grant: GrantNumber,
    /// Names its portion files.
    pub shape: Shape,
    /// Rode along.
    pub decided: WriteNumber,
    /// Rode along.
    pub stable: WriteNumber,
    /// Makes the slot where it is unknown.
    pub create: Option<Box<Create>>,
    /// The record as it came.
    pub record: Record,
    /// Blocks whose bytes are in the portion file.
    pub direct: Vec<BlockRange>,
}

/// A fence was raised.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// The slot.
    pub key: SlotKey,
    /// The fence.
    pub grant: GrantNumber,
    /// The LCC incarnation of the owner.
    pub writer: Incarnation,
    /// Where the owner believes the group to be.
    pub layout: GroupLayout,
    /// Slots under a fact.
    pub absent: Vec<Absent>,
}

/// A slot starts anew.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rejoined {
    /// The slot.
    pub key: SlotKey,
    /// The fence.
    pub grant: GrantNumber,
    /// What it begins with.
    pub begin: Rejoin,
}

/// Blocks laid behind everything kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rebuilt {
    /// The slot.
    pub key: SlotKey,
    /// Names its portion files.
    pub shape: Shape,
    /// The decided mark whose state they are.
    pub decided: WriteNumber,
    /// The blocks.
    pub changes: Vec<Change>,
    /// Those whose bytes are in the portion file.
    pub direct: Vec<BlockRange>,
}

/// A group was removed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Removed {
    /// The slot.
    pub key: SlotKey,
    /// Grants up to here are refused from then on.
    pub grant: GrantNumber,
    /// Names its portion files.
    pub layout: GroupLayout,
}
