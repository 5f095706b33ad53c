//! Verification: every block against its checksum, the parity of every row against its data.
//! # Theory
//! The I/O servers verify checksums by themselves, without the network. What they cannot see is a
//! row whose blocks are all what somebody wrote, and do not belong together: only the owner reads
//! whole rows, under their locks, at the decided mark. Such a row is told and counted; nothing is
//! written over it, for nobody knows which of its blocks is the stale one.
//! # Source
//! F-6, W-12.

use std::rc::Rc;

use braid_terms::PortionIndex;
use braid_wire::lcc::{RowPlace, Verified};
use futures_util::future::join_all;

use super::Group;
use super::images::BLOCK;
use super::read::Miss;
use super::row_locks::Rows;
use crate::ReadError;

/// Rows that are compared under one lock: 1 MiB of each portion.
const REGION_ROWS: u64 = 256;

/// Regions of one request.
const REGIONS: u64 = 16;

impl Group {
    /// Verifies some rows from a place on; blocks that are bad are written anew by and by.
    ///
    /// Errors: `LostOwnership`.
    pub async fn verify(self: &Rc<Self>, from: RowPlace) -> Result<Verified, ReadError> {
        let mut seen = Verified::default();
        let mut place = from;
        for _ in 0..REGIONS {
            let Some(rows) = self.rows_of(place.device_index) else {
                return Ok(seen);
            };
            if place.row < rows {
                let end = rows.min(place.row.saturating_add(REGION_ROWS));
                self.verify_region(place, end, &mut seen).await?;
                place.row = end;
            }
            if rows <= place.row {
                place = RowPlace { device_index: place.device_index + 1, row: 0 };
            }
        }
        seen.next = self.rows_of(place.device_index).map(|_| place);
        Ok(seen)
    }

    /// Rows of a device, `None` where there is no such device.
    fn rows_of(&self, device_index: u8) -> Option<u64> {
        let length = *self.state.borrow().lengths.get(usize::from(device_index))?;
        let longest = self.layout.slots().map(|slot| self.geometry.portion_length(length, slot));
        Some(longest.max().unwrap_or(0).div_ceil(BLOCK))
    }

    async fn verify_region(
        self: &Rc<Self>,
        place: RowPlace,
        end: u64,
        seen: &mut Verified,
    ) -> Result<(), ReadError> {
        let (device_index, rows) = (place.device_index, place.row..end);
        let count = end - place.row;
        let lock = vec![Rows { device_index, range: rows.clone() }];
        let guard = self.locks.lock(lock, true).await;
        let slots: Vec<PortionIndex> = self.layout.slots().collect();
        let reads = slots.iter().map(|slot| self.read_slot(device_index, *slot, rows.clone()));
        let reads = join_all(reads).await;
        drop(guard);
        let mut units = vec![None; slots.len()];
        for (slot, read) in slots.iter().zip(reads) {
            match read? {
                Ok(run) => {
                    seen.blocks += count;
                    units[self.geometry.unit(*slot)] = Some(run.into_bytes());
                }
                Err(Miss::Silent) => {}
                Err(Miss::Bad(blocks)) => {
                    seen.blocks += count;
                    seen.bad_blocks += blocks.len() as u64;
                    self.report_bad(*slot, device_index, blocks);
                }
            }
        }
        let Some(units) = units.into_iter().collect::<Option<Vec<_>>>() else {
            seen.rows_left += count;
            return Ok(());
        };
        for row in 0..count {
            let at = (row * BLOCK) as usize..((row + 1) * BLOCK) as usize;
            let blocks: Vec<&[u8]> = units.iter().map(|unit| &unit[at.clone()]).collect();
            let (data, parity) = blocks.split_at(self.geometry.data());
            if !self.code.matches(data, parity) {
                let group = self.layout.group();
                let row = place.row + row;
                tracing::error!(%group, device_index, row, "the parity does not fit the data");
                seen.unfit_rows += 1;
            }
        }
        Ok(())
    }
}
