//! What the file controllers need of a group: one trait, so that they are tested without a cluster.
//!
//! # Not here
//! How it is done: the RAID controller. Source: DESIGN 2.

use std::rc::Rc;

use braid_terms::GroupLayout;
use braid_wire::Payload;
use braid_wire::lcc::LccRefusal;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;

use crate::caches::{Changed, Changing};
use crate::{DeviceWrite, Group, GroupWrite, OwnError, PlaceError, ReadError, WriteError};

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

    /// Whether it may be written: owned, with or without a lease just now.
    fn is_alive(&self) -> bool;

    /// Reads; shorter than asked at the end of the device.
    fn read(
        &self,
        device_index: u8,
        at: u64,
        length: u64,
    ) -> impl Future<Output = Result<Payload, LccRefusal>> + 'static;

    /// One cluster write, done when decided, also where the lease ran out meanwhile: who answers looks
    /// at `check` again. Who needs an order waits for one before the next.
    /// With `stable_soon` the disks are asked behind it for what `sync` waits for.
    fn write(
        &self,
        parts: Vec<Part>,
        stable_soon: bool,
    ) -> impl Future<Output = Result<(), LccRefusal>> + 'static;

    /// Whether clients may have copies of the group.
    fn has_copies(&self) -> bool {
        false
    }

    /// Before a decided change is shown; see `caches.rs`. Source: N-1.
    fn before_change(&self, changed: Changed) -> LocalBoxFuture<'static, Option<Changing>> {
        let _ = changed;
        std::future::ready(None).boxed_local()
    }

    /// What clients keep of the group may be wrong.
    fn take_copies_back(&self) {}

    /// Waits until all that is decided is stable.
    fn sync(&self) -> impl Future<Output = Result<(), LccRefusal>> + 'static;
}

/// A group that the LCC has open.
#[derive(Clone)]
pub struct OwnedGroup(pub Rc<Group>);

impl GroupAccess for OwnedGroup {
    fn layout(&self) -> GroupLayout {
        self.0.layout().clone()
    }

    fn lengths(&self) -> Vec<u64> {
        let count = u8::try_from(self.0.layout().devices.len()).expect("a checked layout");
        (0..count).map(|device_index| self.0.length(device_index)).collect()
    }

    fn check(&self) -> Result<(), LccRefusal> {
        if !self.0.is_alive() {
            return Err(LccRefusal::NotOwner { owner: None });
        }
        self.0.check_lease().map_err(read_refusal)
    }

    fn is_alive(&self) -> bool {
        self.0.is_alive() && self.0.lcc().is_ok()
    }

    fn read(
        &self,
        device_index: u8,
        at: u64,
        length: u64,
    ) -> impl Future<Output = Result<Payload, LccRefusal>> + 'static {
        let group = self.0.clone();
        async move { group.read(device_index, at, length).await.map_err(read_refusal) }
    }

    fn write(
        &self,
        parts: Vec<Part>,
        stable_soon: bool,
    ) -> impl Future<Output = Result<(), LccRefusal>> + 'static {
        let group = self.0.clone();
        let mut change = GroupWrite { stable_soon, ..GroupWrite::default() };
        for part in parts {
            match part {
                Part::Write { device_index, at, bytes } => {
                    change.writes.push(DeviceWrite { device_index, at, bytes });
                }
                Part::Punch { device_index, at, length } => {
                    // What is left at the ends goes with the next one.
                    let range = group.punchable(at..at + length);
                    if !range.is_empty() {
                        change.punches.push((device_index, range));
                    }
                }
            }
        }
        async move {
            if change.writes.is_empty() && change.punches.is_empty() {
                return Ok(());
            }
            group.write_unanswered(change).await.map(|_| ()).map_err(write_refusal)
        }
    }

    fn has_copies(&self) -> bool {
        self.0.lcc().is_ok_and(|lcc| lcc.caches.matters(self.0.layout().group()))
    }

    fn before_change(&self, changed: Changed) -> LocalBoxFuture<'static, Option<Changing>> {
        let (lcc, group) = (self.0.lcc(), self.0.layout().group());
        let waiting = async move {
            // Without its LCC nothing is answered any more.
            let caches = lcc.ok()?.caches.clone();
            Some(caches.before_change(group, &changed).await)
        };
        waiting.boxed_local()
    }

    fn take_copies_back(&self) {
        self.0.take_copies_back();
    }

    fn sync(&self) -> impl Future<Output = Result<(), LccRefusal>> + 'static {
        let group = self.0.clone();
        async move { group.sync().await.map_err(write_refusal) }
    }
}

/// What a client is told of a read that failed.
pub fn read_refusal(error: ReadError) -> LccRefusal {
    match error {
        ReadError::LostOwnership => LccRefusal::NotOwner { owner: None },
        ReadError::Unavailable(reason) => LccRefusal::Unavailable { reason },
        ReadError::Lost(reason) => LccRefusal::Lost { reason },
    }
}

/// What a client is told of a write that failed.
pub fn write_refusal(error: WriteError) -> LccRefusal {
    match error {
        WriteError::LostOwnership => LccRefusal::NotOwner { owner: None },
        WriteError::OutcomeUnknown => LccRefusal::OutcomeUnknown,
        WriteError::NoSpace => LccRefusal::NoSpace,
        WriteError::Unavailable(reason) => LccRefusal::Unavailable { reason },
        WriteError::Lost(reason) => LccRefusal::Lost { reason },
        WriteError::TooBig => LccRefusal::TooBig,
        WriteError::HeldLost => LccRefusal::HeldLost,
        WriteError::Forgotten => LccRefusal::Forgotten,
    }
}

/// What a client is told of a group that is not to be had here.
pub fn own_refusal(error: OwnError) -> LccRefusal {
    match error {
        OwnError::NotOwner(owner) => LccRefusal::NotOwner { owner },
        OwnError::Unavailable(reason) => LccRefusal::Unavailable { reason },
        OwnError::Unknown => LccRefusal::NotFound,
        OwnError::BadLayout(reason) => LccRefusal::BadRequest { reason },
    }
}

/// What a client is told where a new group has no place.
pub fn place_refusal(error: PlaceError) -> LccRefusal {
    match error {
        PlaceError::NoPlace(reason) => LccRefusal::NoPlace { reason },
        PlaceError::Unavailable(reason) => LccRefusal::Unavailable { reason },
    }
}
