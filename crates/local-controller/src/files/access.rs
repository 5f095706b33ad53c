//! What the file controllers need of a group: one trait, so that they are tested without a cluster.
//!
//! # Not here
//! How it is done: the RAID controller. Source: DESIGN 2.

use braid_terms::GroupLayout;
use braid_wire::lcc::LccRefusal;
use bytes::Bytes;

/// A change of one device of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// These bytes from here.
    Write {
        /// Which device of the group.
        device_index: u8,
        /// First byte.
        at: u64,
        /// What.
        bytes: Bytes,
    },
    /// Reads as zeros from now on; the length stays.
    Punch {
        /// Which device of the group.
        device_index: u8,
        /// First byte.
        at: u64,
        /// Bytes.
        length: u64,
    },
}

/// A group that this LCC owns.
pub trait GroupAccess: Clone + 'static {
    /// Where it is.
    fn layout(&self) -> GroupLayout;

    /// Lengths of its devices in bytes, as of all writes that were begun.
    fn lengths(&self) -> Vec<u64>;

    /// Whether it may still be answered for: owner, within the lease. Source: O-4.
    ///
    /// Errors: `NotOwner`, `Unavailable`.
    fn check(&self) -> Result<(), LccRefusal>;

    /// Reads; shorter than asked at the end of the device.
    fn read(
        &self,
        device_index: u8,
        at: u64,
        length: u64,
    ) -> impl Future<Output = Result<Bytes, LccRefusal>> + 'static;

    /// One cluster write, done when decided. Who needs an order waits for one before the next.
    fn write(&self, parts: Vec<Part>) -> impl Future<Output = Result<(), LccRefusal>> + 'static;

    /// Waits until all that is decided is stable.
    fn sync(&self) -> impl Future<Output = Result<(), LccRefusal>> + 'static;
}
