//! Changes over several directory groups: renames across directories, links into another directory,
//! removals of names whose count is kept elsewhere, and of directories.
//!
//! # Theory
//! Each group keeps its owner. One group is the *primary*: its write decides. The others, the
//! *secondaries*, first make a stable intent that names the primary's group; it locks the names and
//! counts concerned until the outcome is known there.
//! ```text
//! driver     the owner that was asked; it looks, and tells each group its steps
//!   Intend   to each secondary, the one with the highest number first; answered when stable
//!   Decide   to the primary, which has the lowest number (the root's is the lowest of all)
//!   Finish   to each secondary: `Decided`, or `Void` where it was refused
//! secondary  asks the primary (`Outcome`), which answers once that is stable, and finishes
//! primary    forgets the change when it is finished and stable at all secondaries
//! ```
//! # Invariants
//! J1 A primary that was asked for the outcome of a change that it does not know makes it void first;
//!    what is void is never decided.
//! J2 A secondary writes what was decided only when that is stable at the primary: no power cut leaves
//!    one side without the other.
//! J3 A driver sends each of its requests once; what is not answered is not sent again.
//! # Source
//! W-7, O-7.

use braid_terms::{DeviceId, GroupLayout};
use serde::{Deserialize, Serialize};

use crate::lcc::{Attributes, DirectoryEntry, FileKind, FileTime, NewAttributes, OperationId};

/// Identity of one attempt at a change over several groups; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct JointId {
    /// Random, per start of the LCC that drives it.
    pub driver: u64,
    /// Grows by one with each attempt of that LCC.
    pub counter: u64,
}

/// What all groups of a change are told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Joint {
    /// Which attempt.
    pub id: JointId,
    /// The client's operation; done once (L2).
    pub operation: OperationId,
    /// How that is answered, also when it is repeated.
    pub answer: JointAnswer,
    /// When it is done.
    pub time: FileTime,
    /// The group whose write decides.
    pub primary: GroupLayout,
    /// The others.
    pub secondaries: Vec<GroupLayout>,
}

/// The answer to the client, as far as it is known before the change is made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JointAnswer {
    /// `Entry`; its attributes are looked up.
    Entry(DirectoryEntry),
    /// `Removed`.
    Removed {
        /// What a name named.
        entry: Option<DirectoryEntry>,
        /// Its attributes of before, without inline bytes.
        attributes: Option<Box<Attributes>>,
    },
}

/// A part of a change, within one group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JointStep {
    /// A name goes, which stands for this.
    Leave {
        /// The name.
        name: bytes::Bytes,
        /// What it must stand for.
        id: DeviceId,
    },
    /// A name is entered.
    Enter {
        /// The name.
        name: bytes::Bytes,
        /// What it will stand for.
        id: DeviceId,
        /// What that is.
        kind: FileKind,
        /// The group that keeps its attributes; may be this one.
        home: GroupLayout,
        /// What the name must stand for before; nothing, if none.
        replaces: Option<DeviceId>,
    },
    /// A file is made.
    Make {
        /// Its name.
        name: bytes::Bytes,
        /// Its number.
        id: DeviceId,
        /// Its attributes and bytes.
        attributes: Box<NewAttributes>,
        /// What the name must stand for before; nothing, if none.
        replaces: Option<DeviceId>,
    },
    /// Adds to the number of names of a file whose attributes are kept here.
    Count {
        /// The file.
        id: DeviceId,
        /// 1 or -1; without a name left the file goes.
        by: i32,
        /// What the number must be before.
        before: Option<u32>,
        /// The record of a file without a name left stays as it is: somebody has it open.
        keep_last: bool,
    },
    /// A new time of change, for attributes that are kept here.
    Touch {
        /// Of what.
        id: DeviceId,
    },
    /// A directory that no name here stands for any more goes on the to-remove list.
    Drop {
        /// Its group.
        directory: GroupLayout,
    },
    /// This directory ends; it must be empty.
    Retire,
    /// This directory has another parent.
    SetParent {
        /// The new parent's group.
        parent: GroupLayout,
    },
}

/// What a secondary is told of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JointNews {
    /// It is decided, but perhaps not yet stable at the primary.
    Decided,
    /// It is decided, and stable at the primary. Answered when it is finished and stable here.
    Stable,
    /// It is not made.
    Void,
}
