//! Clean opens: where nobody who is gone may have left anything, only what a request touches is asked.
//! # Theory
//! ```text
//! grant, clean, no facts -> Open at one parity slot and at slot 1, at once
//!     parity slot keeps nothing above its stable mark -> open; the others are `untouched`
//!     anything else                                   -> not clean after all: opened as a whole (W-6)
//! read that touches an untouched slot                 -> Open there, then the read
//! first write                                         -> Open at all of them, then the write
//! ```
//! A parity slot has part in every write: it knows the lengths, and once it is fenced no older owner
//! decides anything (lemma of O-5). A slot that is opened later and keeps something above its stable
//! mark, or lacks what it should have, ends the group: it is opened as a whole then.
//! # Cost
//! A cold read of a file that is smaller than a strip: the grant, two opens, one read; not n opens.
//! # Failure
//! What this LCC itself dropped without settling it is remembered (`Lcc::unclean`) and opened as a
//! whole, whatever the grant says.
//! # Source
//! O-8, O-5, W-6; hole 43 of the design's reasons.
//! # Not here
//! Groups without parity: all their slots are opened.

use std::rc::Rc;

use braid_terms::{DeviceId, GrantNumber, GroupLayout, PortionIndex, WriteNumber, planted};
use braid_wire::io::Report;

use super::images::slot_bit;
use super::open::{OpenError, is_gone};
use super::resolve::ends_with;
use super::slots::Opened;
use super::{Dead, Group, Link, State};
use crate::disks::DiskUp;
use crate::lcc::Lcc;

impl Group {
    /// Takes over a group of which nothing is in doubt; `None` where that must be looked at.
    ///
    /// Errors: `LostOwnership`, `BadLayout`.
    pub(crate) async fn open_clean(
        lcc: &Rc<Lcc>,
        layout: &GroupLayout,
        grant: GrantNumber,
    ) -> Result<Option<Rc<Self>>, OpenError> {
        let group = Self::new(lcc, layout.clone(), grant, DeviceId(0), false)?;
        let first = PortionIndex(1);
        let mut parity = layout.slots().skip(group.geometry.data());
        let Some(witness) = parity.find(|slot| !lcc.is_dead(layout.disk(*slot))) else {
            return Ok(None);
        };
        let reads_first = async {
            if lcc.is_dead(layout.disk(first)) {
                return None;
            }
            Some(group.open_slot(first).await)
        };
        let (told, first_told) = tokio::join!(group.open_slot(witness), reads_first);
        let (report, up) = match told {
            Opened::Report(report, up) if is_whole(&report, true) => (report, up),
            Opened::Fenced => return Err(OpenError::LostOwnership),
            _ => return Ok(None),
        };
        {
            let mut state = group.state.borrow_mut();
            let settled = WriteNumber { grant, sequence: 0 };
            (state.last, state.decided, state.stable) = (settled, settled, settled);
            state.lengths.clone_from(&report.lengths);
            state.lengths.resize(layout.devices.len(), 0);
            state.decided_lengths = state.lengths.clone();
            state.existing = report.existing;
            state.ends = ends_with(std::iter::once(&report.ends), report.last);
            state.operations.clone_from(&report.operations);
            if report.home != DeviceId(0) {
                group.home.set(report.home);
            }
            for slot in &mut state.slots {
                slot.untouched = true;
            }
            state.take_untouched(witness, &report, up);
        }
        match first_told {
            Some(Opened::Report(report, up)) => {
                let mut state = group.state.borrow_mut();
                if !state.agrees(first, &report) {
                    return Ok(None);
                }
                state.take_untouched(first, &report, up);
            }
            Some(Opened::Fenced) => return Err(OpenError::LostOwnership),
            Some(Opened::Unreadable(_) | Opened::Unusable) => return Ok(None),
            // Asked again when it is touched.
            Some(Opened::NotReady | Opened::Silent) | None => {}
        }
        Ok(Some(group))
    }

    /// A slot that a clean open left out has answered: it is taken, or the group ends, to be opened as
    /// a whole.
    pub(super) fn take_first_touched(
        self: &Rc<Self>,
        index: PortionIndex,
        report: &Report,
        up: DiskUp,
    ) {
        let agrees = {
            let mut state = self.state.borrow_mut();
            let agrees = state.agrees(index, report);
            if agrees {
                state.take_untouched(index, report, up);
            }
            agrees
        };
        if agrees {
            self.changed.notify_waiters();
        } else {
            tracing::info!(group = %self.layout.group(), slot = %index, "not clean after all");
            self.doubt();
        }
    }

    /// What clients keep of the group may be wrong: they give it up. Source: N-1.
    pub(crate) fn take_copies_back(&self) {
        let Ok(lcc) = self.lcc() else { return };
        let (caches, group) = (lcc.caches.clone(), self.layout.group());
        if caches.matters(group) {
            tokio::task::spawn_local(async move { drop(caches.end_group(group).await) });
        }
    }

    /// Ends it because something must be looked at that was not when it was opened. Clients give up
    /// their copies: what they say may be lost. Source: N-1.
    pub(super) fn doubt(self: &Rc<Self>) {
        if let Ok(lcc) = self.lcc() {
            lcc.note_unclean(self.layout.group(), self.grant);
        }
        self.take_copies_back();
        self.kill(Dead::LostOwnership);
    }
}

impl State {
    /// Whether a slot is as the clean open took it for: all that was written is settled, and there.
    fn agrees(&self, index: PortionIndex, report: &Report) -> bool {
        is_whole(report, self.existing & slot_bit(index) != 0)
            || planted!("O-8/untouched-slots-are-believed")
    }

    fn take_untouched(&mut self, index: PortionIndex, report: &Report, up: DiskUp) {
        let slot = self.slot_mut(index);
        slot.prev = report.last;
        slot.unknown = report.layout.is_none();
        slot.seen = true;
        slot.untouched = false;
        slot.link = Link::Up(up);
    }
}

/// Whether it keeps nothing above its stable mark and has what it should have.
fn is_whole(report: &Report, exists: bool) -> bool {
    report.records.is_empty()
        && report.missed.is_empty()
        && report.damaged_after.is_none()
        && !is_gone(report, exists, WriteNumber::NONE)
}
