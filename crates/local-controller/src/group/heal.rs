//! Bad blocks: written anew from the others, where they lie.
//! # Theory
//! A block that does not fit its checksum is no reason to remove its slot: the rest of the slot is
//! good. It is computed from the others and written like any new bytes, as a numbered write under the
//! row's lock, if it is still bad then. What cannot be read even after that (checksums are lost, the
//! medium refuses) makes the whole portion suspect.
//! ```text
//! bad block -lock-> read again -good-> nothing to do
//!                              -bad-> compute -> write of that block -decided-> read again
//!                                                        -still bad-> fact: all of it -> repair
//! ```
//! # Source
//! F-6, S-2, W-12.

use std::ops::Range;
use std::rc::Rc;

use braid_terms::PortionIndex;
use braid_wire::io::{BlockRange, Change, Footprint, RecordKind};

use super::images::{BLOCK, Images, SlotChange, crcs, runs, slot_bit};
use super::read::Miss;
use super::row_locks::Rows;
use super::{Group, WriteError};

/// What came of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Healed {
    /// The blocks are good now.
    Yes,
    /// They were computed and written, and cannot be read all the same.
    Never,
    /// Not now: the slot does not answer, or is out of sync.
    NotNow,
}

impl Group {
    /// Sees to it that bad blocks are written anew.
    pub(super) fn report_bad(
        self: &Rc<Self>,
        slot: PortionIndex,
        device_index: u8,
        mut blocks: Vec<u64>,
    ) {
        blocks.sort_unstable();
        blocks.dedup();
        let (group, count) = (self.layout.group(), blocks.len());
        tracing::warn!(%group, %slot, count, "blocks do not fit their checksums");
        let group = self.clone();
        tokio::task::spawn_local(async move {
            group.heal_all(slot, device_index, runs(blocks.into_iter())).await;
        });
    }

    /// Writes anew what a scrub found, where it is still bad; what it says is checked first.
    pub(crate) async fn heal_found(self: &Rc<Self>, slot: PortionIndex, found: BlockRange) {
        let is_slot = (1..=self.geometry.portions()).contains(&usize::from(slot.0));
        let is_device = usize::from(found.device_index) < self.layout.devices.len();
        let Some(end) = found.first.checked_add(found.count.min(HEAL_MAX)) else { return };
        if !is_slot || !is_device || BLOCKS_MAX < end {
            return;
        }
        let group = self.clone();
        // A task of its own: who gives up waiting must not leave a half write behind.
        let healing = tokio::task::spawn_local(async move {
            let runs = (found.first..end).step_by(HEAL_BLOCKS);
            let runs = runs.map(|first| first..end.min(first + HEAL_BLOCKS as u64));
            group.heal_all(slot, found.device_index, runs).await;
        });
        let _ = healing.await;
    }

    async fn heal_all(
        self: &Rc<Self>,
        slot: PortionIndex,
        device_index: u8,
        runs: impl IntoIterator<Item = Range<u64>>,
    ) {
        for run in runs {
            match self.heal(slot, device_index, run).await {
                Ok(Healed::Yes) => {}
                Ok(Healed::Never) => {
                    let k = self.geometry.data();
                    if self.state.borrow().may_remove(slot, k) {
                        self.remove_slot(slot, true).await;
                        self.repair().await;
                    }
                    return;
                }
                Ok(Healed::NotNow) | Err(_) => return,
            }
        }
    }

    async fn heal(
        self: &Rc<Self>,
        slot: PortionIndex,
        device_index: u8,
        rows: Range<u64>,
    ) -> Result<Healed, WriteError> {
        let lock = vec![Rows { device_index, range: rows.clone() }];
        let guard = self.locks.lock(lock.clone(), false).await;
        self.links_ready().await?;
        // Out of sync it is not believed; the first read after its repair finds what is still bad.
        if !self.state.borrow().slot(slot).condition.in_sync() {
            return Ok(Healed::NotNow);
        }
        match self.read_slot(device_index, slot, rows.clone()).await? {
            Ok(_) => return Ok(Healed::Yes),
            Err(Miss::Silent) => return Ok(Healed::NotNow),
            Err(Miss::Bad(_)) => {}
        }
        let unit = self.geometry.unit(slot);
        let bytes = self.compute_unit(device_index, unit, rows.clone()).await?;
        let count = rows.end - rows.start;
        assert_eq!(bytes.len() as u64, count * BLOCK, "what was computed is what was asked");
        let mut sums = Vec::new();
        crcs(&bytes, &mut sums);
        let mut images = Images::default();
        images.slots.resize_with(self.geometry.portions(), SlotChange::default);
        let change = &mut images.slots[slot.zero_based()];
        change.changes.push(Change::Write { device_index, first: rows.start, crcs: sums });
        change.payload.push(bytes);
        let range = BlockRange { device_index, first: rows.start, count };
        images.footprints.push(Footprint { slots: slot_bit(slot), range });
        self.may_number().await?;
        let lengths = self.state.borrow().lengths.clone();
        let (_, decided) = self.submit(RecordKind::Write, images, lengths, Some(guard))?;
        decided.await.map_err(|_| WriteError::LostOwnership)??;
        let lcc = self.lcc()?;
        lcc.count(|counters| counters.blocks_rebuilt += count);
        let _guard = self.locks.lock(lock, true).await;
        match self.read_slot(device_index, slot, rows).await? {
            Ok(_) => Ok(Healed::Yes),
            Err(Miss::Silent) => Ok(Healed::NotNow),
            Err(Miss::Bad(_)) => Ok(Healed::Never),
        }
    }
}

/// Blocks that are written anew under one lock.
const HEAL_BLOCKS: usize = 256;

/// Blocks of one run that a scrub tells.
const HEAL_MAX: u64 = 1 << 16;

/// No portion has more blocks.
const BLOCKS_MAX: u64 = 1 << 51;
