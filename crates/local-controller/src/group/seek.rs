//! Where a device has bytes, and where it was never written or was punched.
//! # Theory
//! Each data unit's slot finds the next of its blocks; the first of them in the device is the answer.
//! For a unit whose slot does not answer a parity slot does: a row without parity has no data either,
//! and a row with it counts as data.
//! # Invariants
//! K1 What is called a hole reads as zeros; what is called data may, too.
//! # Failure
//! Where no slot answers, or the search is too long, all that was not looked at counts as data.
//! # Source
//! G-1, W-12.

use std::cmp::Ordering;
use std::rc::Rc;

use braid_terms::BLOCK_SIZE;
use braid_wire::io::{IoRequest, Seek};

use super::read::SlotReply;
use super::{Group, ReadError};

impl Group {
    /// First device byte from `at` on with data, or without. The device's length where there is none.
    ///
    /// Errors: `ReadError`.
    pub async fn seek(
        self: &Rc<Self>,
        device_index: u8,
        at: u64,
        hole: bool,
    ) -> Result<u64, ReadError> {
        self.check_lease()?;
        let length = self.length(device_index);
        if length <= at {
            return Ok(length);
        }
        if (self.geometry.strip_size() as usize) < BLOCK_SIZE {
            // A block has pieces of many places of the device.
            return Ok(if hole { length } else { at });
        }
        let units = 0..self.geometry.data();
        let found = units.map(|unit| self.seek_unit(device_index, unit, at, hole));
        let mut first = length;
        for place in futures_util::future::join_all(found).await {
            first = first.min(place?.unwrap_or(length));
        }
        self.check_lease()?;
        Ok(first.max(at))
    }

    /// Where a block of one unit begins, in the device.
    async fn seek_unit(
        self: &Rc<Self>,
        device_index: u8,
        unit: usize,
        at: u64,
        hole: bool,
    ) -> Result<Option<u64>, ReadError> {
        let block = BLOCK_SIZE as u64;
        let strip = u64::from(self.geometry.strip_size());
        let segment = self.geometry.locate(at);
        let mut from = match unit.cmp(&segment.unit) {
            Ordering::Less => (segment.stripe + 1) * (strip / block),
            Ordering::Equal => segment.portion_at / block,
            Ordering::Greater => segment.stripe * (strip / block),
        };
        let place = |row: u64| {
            let (stripe, in_strip) = (row * block / strip, row * block % strip);
            let strips =
                stripe.checked_mul(self.geometry.data() as u64)?.checked_add(unit as u64)?;
            strips.checked_mul(strip)?.checked_add(in_strip)
        };
        let parity = self.geometry.data()..self.geometry.portions();
        'slots: for unit in std::iter::once(unit).chain(parity) {
            let slot = self.geometry.slot(unit);
            for _ in 0..SEEKS_MAX {
                let request = |fence, decided| {
                    let seek = Seek { fence, decided, device_index, from, present: !hole };
                    IoRequest::Seek(Box::new(seek))
                };
                match self.ask_slot(slot, request).await? {
                    SlotReply::Nothing => return Ok(place(from).filter(|_| hole)),
                    SlotReply::Sought(row, true) => return Ok(place(row)),
                    SlotReply::Sought(u64::MAX, false) => return Ok(None),
                    SlotReply::Sought(row, false) => from = from.max(row),
                    SlotReply::Silent | SlotReply::Unreadable | SlotReply::Blocks(..) => {
                        continue 'slots;
                    }
                }
            }
            break;
        }
        Ok(place(from).filter(|_| !hole))
    }
}

/// Requests of one search to one slot: 32 GiB of a portion.
const SEEKS_MAX: u32 = 64;
