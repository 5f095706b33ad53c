//! Facts: what may be wrong or unfinished, kept in the consensus log.

use serde::{Deserialize, Serialize};

use crate::{
    DeviceId, FactNumber, GrantNumber, GroupLayout, Incarnation, PortionIndex, ServerId,
    WriteNumber,
};

/// One fact. Source: F-1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fact {
    /// Its number in the consensus log.
    pub number: FactNumber,
    /// Incarnation of the LCC that recorded it.
    pub recorder: Incarnation,
    /// Grant of the group under which it was recorded; `default()` for `Pending`.
    pub grant: GrantNumber,
    /// What it says.
    pub kind: FactKind,
}

/// What a fact says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FactKind {
    /// This LCC incarnation may have unfinished writes. Source: F-3.
    Pending {
        /// The LCC start that it is about.
        incarnation: Incarnation,
    },
    /// The portions of `slot` may lack any write above `after`, and what they keep above it must not
    /// be believed; all up to it they have. Source: F-2.
    Suspect {
        /// The group and where it lives, so that whoever reads the fact can repair it.
        layout: GroupLayout,
        /// Which portion.
        slot: PortionIndex,
        /// The group's stable mark when the portion was removed.
        after: WriteNumber,
        /// The portion file itself is gone or unreadable: everything of it is missing.
        whole: bool,
    },
    /// Acknowledged bytes of a group may be only in the local journal of `server`. Source: W-13.
    LocalCopy {
        /// The group and where it lives, so that whoever reads the fact can settle it.
        layout: GroupLayout,
        /// Whose local journal has them.
        server: ServerId,
        /// The newest write of the cluster's state that they build on.
        base: WriteNumber,
    },
}

impl FactKind {
    /// The group that the fact is about; none for `Pending`.
    #[must_use]
    pub fn group(&self) -> Option<DeviceId> {
        match self {
            Self::Pending { .. } => None,
            Self::Suspect { layout, .. } | Self::LocalCopy { layout, .. } => Some(layout.group()),
        }
    }
}
