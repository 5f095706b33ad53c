//! Numbers as types, so that a disk number never meets a server number by accident.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

number!(
    /// A virtual device: unique in the cluster, never reused. 0 is no device.
    DeviceId,
    u64
);
number!(
    /// A server of the cluster, from 1. Never reused.
    ServerId,
    u32
);
number!(
    /// A disk of the cluster, from 1. Never reused. Source: F-5.
    DiskId,
    u32
);
number!(
    /// One start of an I/O server, an LC or an LCC; given by the coordinators, never reused. 0 is none.
    Incarnation,
    u64
);
number!(
    /// Number of a fact in the consensus log. Source: F-1.
    FactNumber,
    u64
);
number!(
    /// Generation of a device's layout, from 1. Source: F-8.
    LayoutGeneration,
    u32
);
number!(
    /// Which portion of a device, from 1 as in the portion's file name; a *slot* of its group.
    PortionIndex,
    u8
);
number!(
    /// A place in the journal of one disk; grows by one with each record, never reused on that disk.
    JournalPosition,
    u64
);

impl PortionIndex {
    /// The index counted from 0, for arrays.
    #[must_use]
    pub fn zero_based(self) -> usize {
        assert!(self.0 >= 1, "portion indexes count from 1");
        usize::from(self.0) - 1
    }

    /// The portion index of the array place `at`.
    #[must_use]
    pub fn from_zero_based(at: usize) -> Self {
        assert!(at < crate::PORTIONS_MAX, "more portions than a device can have");
        Self(u8::try_from(at + 1).expect("PORTIONS_MAX fits a byte"))
    }
}

/// Identity of a cluster: 128 random bits, made at `init`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl std::str::FromStr for ClusterId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

/// The fence at the portions: above every earlier grant of the cluster. Source: O-2, O-5.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
pub struct GrantNumber {
    /// Raft term of the global controller that granted.
    pub term: u64,
    /// Counts the grants of that term.
    pub counter: u64,
}

impl fmt::Display for GrantNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.counter)
    }
}

/// A write's number inside its group: grants order writes of different owners. Source: W-1.
///
/// Sequence 0 under a grant is the outcome record of the open (W-6); writes count from 1.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
pub struct WriteNumber {
    /// The grant under which the write was made.
    pub grant: GrantNumber,
    /// Counts the writes of that grant.
    pub sequence: u64,
}

impl WriteNumber {
    /// Below every write: what a portion that holds nothing reports.
    pub const NONE: Self = Self { grant: GrantNumber { term: 0, counter: 0 }, sequence: 0 };
}

impl fmt::Display for WriteNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.grant, self.sequence)
    }
}

/// Where an LCC is reached: its server and its place among the LCCs of that server's LC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct LccId {
    /// The server whose LC hosts it.
    pub server: ServerId,
    /// Its index within that LC, from 0.
    pub index: u8,
}

impl fmt::Display for LccId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.server, self.index)
    }
}
