//! What the consensus log says: commands to the state machine, and what became of them.
//!
//! # Theory
//! One log entry carries the commands of all who waited, so that a hundred facts cost one round.
//! Every command carries all that its outcome depends on: a replay gives the same state.
//! # Not here
//! How an entry is stored: `raft/stored.rs`.

use std::fmt;
use std::net::SocketAddr;

use braid_terms::{
    ClusterMap, DeviceId, DiskId, FactKind, FactNumber, GrantNumber, GroupLayout, Incarnation,
    ServerId,
};
use braid_wire::coordinator::{CoordinatorRefusal, FactRefusal, MapChange};
use serde::{Deserialize, Serialize};

/// One change of the state. Stored in the log: new kinds are added at the end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// The first map of a new cluster; without effect when there is one.
    Begin {
        /// The map.
        map: Box<ClusterMap>,
    },
    /// See `CoordinatorRequest::RegisterLc`.
    RegisterLc {
        /// Which server.
        server: ServerId,
        /// How many LCCs.
        lccs: u8,
    },
    /// See `CoordinatorRequest::RegisterLcc`.
    RegisterLcc {
        /// The LC.
        lc: Incarnation,
        /// Which LCC of it.
        index: u8,
    },
    /// See `CoordinatorRequest::UnregisterLc`.
    UnregisterLc {
        /// The LC.
        lc: Incarnation,
    },
    /// The LC's lease is over: it and its LCCs are invalid from here on. Source: O-5.
    Invalidate {
        /// The LC.
        lc: Incarnation,
    },
    /// See `CoordinatorRequest::RegisterIo`.
    RegisterIo {
        /// Which disk.
        disk: DiskId,
        /// Its identity.
        identity: u128,
    },
    /// See `CoordinatorRequest::LeaseNumbers`.
    LeaseNumbers {
        /// For whom.
        lcc: Incarnation,
        /// The grant under which the whole range is owned.
        grant: GrantNumber,
    },
    /// See `CoordinatorRequest::RecordFacts`.
    RecordFacts {
        /// Who.
        lcc: Incarnation,
        /// What.
        facts: Vec<(GrantNumber, FactKind)>,
    },
    /// See `CoordinatorRequest::CloseFacts`.
    CloseFacts {
        /// Who.
        lcc: Incarnation,
        /// Which.
        facts: Vec<(FactNumber, GrantNumber)>,
    },
    /// See `CoordinatorRequest::CloseSweep`.
    CloseSweep {
        /// Who swept.
        lcc: Incarnation,
        /// Whose groups.
        dead: Incarnation,
    },
    /// See `CoordinatorRequest::SetRoot`.
    SetRoot {
        /// The root's group.
        layout: Box<GroupLayout>,
    },
    /// See `CoordinatorRequest::Change`.
    Change(Box<MapChange>),
    /// See `CoordinatorRequest::RegisterMount`.
    RegisterMount {
        /// For people.
        name: String,
        /// Where its LC is reached.
        lc_address: SocketAddr,
        /// How many LCCs.
        lccs: u8,
    },
}

/// What became of a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done.
    Done,
    /// Refused; nothing changed.
    Refused(CoordinatorRefusal),
    /// New incarnations.
    Registered {
        /// Of the LC or the I/O server.
        incarnation: Incarnation,
        /// Of the LCCs.
        lccs: Vec<Incarnation>,
    },
    /// A range of numbers.
    Numbers {
        /// Its first.
        first: DeviceId,
        /// Its grant.
        grant: GrantNumber,
    },
    /// One result for each fact.
    Recorded(Vec<Result<FactNumber, FactRefusal>>),
    /// One result for each fact.
    Closed(Vec<Result<(), FactRefusal>>),
}

/// The commands of one log entry, in order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Batch(pub Vec<Command>);

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands", self.0.len())
    }
}

impl Command {
    /// How much of an entry it takes, in facts: entries stay small enough for a message.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::RecordFacts { facts, .. } => facts.len(),
            Self::CloseFacts { facts, .. } => facts.len(),
            _ => 1,
        }
    }
}
