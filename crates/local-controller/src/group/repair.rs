//! Repair: a portion under a fact gets back what it missed, under load.
//! # Theory
//! ```text
//! Suspect -Rejoin-> Joining: gets every new write and is required
//!    missed rows below that, one region after the other, under their locks: computed from the
//!    others, laid in place, synced, read back
//! -fact closed-> InSync
//! ```
//! A failure at any point leaves the fact open; the next attempt starts anew.
//! # Source
//! F-2, F-4, F-5, F-6.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use braid_env::Payload;
use braid_terms::{FactKind, PortionIndex, WriteNumber, planted, sometimes};
use braid_wire::io::{
    BlockRange, Change, IoReply, IoRequest, Missed, Read, RecordKind, Rejoin, Report,
};
use braid_wire::operations::OPERATIONS_MAX;
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::images::{BLOCK, crcs, runs};
use super::open::is_gone;
use super::row_locks::Rows;
use super::slots::Opened;
use super::{Condition, Group, Link};
use crate::disks::{CALL_WAIT, DiskUp};

/// Blocks that are rebuilt under one lock: 1 MiB of a portion.
const REGION_BLOCKS: u64 = 256;

/// What came of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repaired {
    /// No slot is under a fact any more.
    Whole,
    /// Some slot does not answer, or the attempt failed: later again.
    Not,
}

impl Group {
    /// Repairs every slot under a fact whose disk answers; who comes while a repair is under way
    /// waits for it.
    pub async fn repair(self: &Rc<Self>) -> Repaired {
        // A task of its own: who gives up waiting must not leave a half repair behind.
        let (done, repaired) = oneshot::channel();
        let group = self.clone();
        tokio::task::spawn_local(async move {
            let _ = done.send(group.repair_all().await);
        });
        repaired.await.unwrap_or(Repaired::Not)
    }

    async fn repair_all(self: &Rc<Self>) -> Repaired {
        let mut waited = false;
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.borrow_mut();
                if state.dead.is_some() {
                    return Repaired::Not;
                }
                if !state.repairing {
                    state.repairing = !waited;
                    break;
                }
            }
            waited = true;
            changed.await;
        }
        if !waited {
            // Slots in sync that nobody used since their I/O server was restarted are opened again
            // here, or the others would wait for them for ever.
            let ready = timeout(READY_WAIT, self.links_ready()).await;
            let is_ready = matches!(ready, Ok(Ok(())));
            for slot in self.layout.slots().filter(|_| is_ready) {
                let condition = self.state.borrow().slot(slot).condition;
                if matches!(condition, Condition::Suspect { .. })
                    && self.repair_slot(slot).await.is_none()
                {
                    self.join_failed(slot).await;
                }
            }
            self.state.borrow_mut().repairing = false;
            self.changed.notify_waiters();
        }
        if !self.has_facts() && self.is_alive() { Repaired::Whole } else { Repaired::Not }
    }

    async fn join_failed(self: &Rc<Self>, index: PortionIndex) {
        let joining =
            matches!(self.state.borrow().slot(index).condition, Condition::Joining { .. });
        if joining {
            self.remove_slot(index, false).await;
        }
    }

    /// `None` where it did not succeed.
    async fn repair_slot(self: &Rc<Self>, index: PortionIndex) -> Option<()> {
        let lcc = self.lcc().ok()?;
        let Condition::Suspect { after, whole: known_whole, .. } =
            self.state.borrow().slot(index).condition
        else {
            return None;
        };
        // Its files tell whether there is anything to build upon.
        let (seen, up) = match self.open_slot(index).await {
            Opened::Report(seen, up) => (Some(seen), up),
            Opened::Unreadable(up) => (None, up),
            Opened::Fenced | Opened::Unusable | Opened::NotReady | Opened::Silent => return None,
        };
        let existed = self.state.borrow().existing & super::images::slot_bit(index) != 0;
        let gone = seen.is_none_or(|seen| is_gone(&seen, existed, after));
        let whole = known_whole || gone;
        if whole && !known_whole {
            // The rejoin will empty it: from then on it is not to be taken for one that lacks a few
            // regions, whoever repairs it.
            let layout = self.layout.clone();
            let kind = FactKind::Suspect { layout, slot: index, after, whole };
            let fact = match lcc.record_fact(self.grant, kind).await {
                Ok(fact) => fact,
                Err(dead) => {
                    self.kill(dead);
                    return None;
                }
            };
            let mut state = self.state.borrow_mut();
            state.slot_mut(index).condition = Condition::Suspect { fact, after, whole };
        }
        let Condition::Suspect { fact, .. } = self.state.borrow().slot(index).condition else {
            return None;
        };
        // Nothing is numbered between the rejoin's `prev` and the first write that it gets: all rows
        // are locked meanwhile.
        let everything = self.everything();
        let guard = self.locks.lock(everything, false).await;
        self.pending_settled().await.ok()?;
        let (prev, decided, lengths, operations) = {
            let state = self.state.borrow();
            let mut operations = state.operations.clone();
            operations.limit(OPERATIONS_MAX);
            (state.last, state.decided, state.decided_lengths.clone(), operations)
        };
        let told = self.missed_of_others(index).await?;
        let rejoin = Rejoin {
            layout: self.layout.clone(),
            after,
            prev,
            decided,
            lengths,
            home: self.home.get(),
            whole,
            operations,
            missed: told.clone(),
        };
        let request = IoRequest::Rejoin { fence: self.fence(index, &up), rejoin: Box::new(rejoin) };
        let answer = up.client.call(&request, Payload::empty(), SYNC_WAIT).await;
        let Ok((Ok(IoReply::Report(report)), _)) = answer else {
            tracing::warn!(group = %self.layout.group(), slot = %index, ?answer, "no rejoin");
            return None;
        };
        {
            let mut state = self.state.borrow_mut();
            let from = WriteNumber {
                grant: self.grant,
                sequence: if prev.grant == self.grant { prev.sequence + 1 } else { 1 },
            };
            let slot = state.slot_mut(index);
            slot.condition = Condition::Joining { fact, after, whole, from };
            slot.link = Link::Up(up.clone());
            slot.prev = report.last;
            slot.knows_ends = false;
            slot.unknown = false;
            slot.seen = true;
            slot.refusals = 0;
        }
        self.after_slot_change();
        drop(guard);
        let mut missed = self.missed_of(index, after, whole, Some(&report)).await?;
        if planted!("F-4/close-before-the-rebuild") {
            missed.clear();
        }
        let mut blocks = 0;
        for range in &missed {
            blocks += range.count;
            self.rebuild(index, &up, *range).await?;
        }
        self.sync_slot(index, &up).await?;
        for range in &missed {
            self.read_back(index, &up, *range).await?;
        }
        // The slot counts all up to its rejoin as stable, so it must be so everywhere before others
        // believe its mark.
        self.stable(decided).await.ok()?;
        if self.lacks_more(index, decided, &told) && !planted!("F-2/what-others-missed-is-not-told")
        {
            sometimes!("F-4: another slot was removed during a join");
            return None;
        }
        self.close(index).await?;
        lcc.count(|counters| counters.blocks_rebuilt += blocks);
        tracing::info!(group = %self.layout.group(), slot = %index, blocks, "repaired a portion");
        sometimes!("F-4: a portion is whole again");
        if whole {
            sometimes!("F-5: a portion was rebuilt as a whole");
        }
        self.after_slot_change();
        Some(())
    }

    /// Closes the fact of a slot that is whole again. From before the close is proposed until its
    /// outcome is known the slot is required, and no new fact is recorded of it (hole 23).
    async fn close(self: &Rc<Self>, index: PortionIndex) -> Option<()> {
        let lcc = self.lcc().ok()?;
        let fact = {
            let mut state = self.state.borrow_mut();
            let slot = state.slot_mut(index);
            // It may have failed meanwhile.
            let Condition::Joining { fact, from, .. } = slot.condition else { return None };
            slot.condition = Condition::Closing { from };
            fact
        };
        if let Err(dead) = lcc.close_fact(fact, self.grant).await {
            self.kill(dead);
            return None;
        }
        {
            let mut state = self.state.borrow_mut();
            state.slot_mut(index).condition = Condition::InSync;
            state.missed.retain(|missed| missed.slot != index);
        }
        Some(())
    }

    fn everything(&self) -> Vec<Rows> {
        (0..self.layout.devices.len())
            .map(|device| Rows { device_index: device as u8, range: 0..u64::MAX })
            .collect()
    }

    /// What other slots under facts lack: whoever knows may be gone when they come back, and a slot that
    /// rejoins drops the records that say it. Called with all rows locked. Source: F-2.
    async fn missed_of_others(self: &Rc<Self>, index: PortionIndex) -> Option<Vec<Missed>> {
        if planted!("F-2/what-others-missed-is-not-told") {
            return Some(Vec::new());
        }
        let mut missed = Vec::new();
        for (slot, after) in self.lacking_others(index) {
            let ranges = self.missed_of(slot, after?, false, None).await?;
            missed.push(Missed { slot, ranges });
        }
        Some(missed)
    }

    /// Whether another slot was removed since that lacks something of what is up to `decided`: of those
    /// writes the slot that joined has no record.
    fn lacks_more(&self, index: PortionIndex, decided: WriteNumber, told: &[Missed]) -> bool {
        let mut others = self.lacking_others(index).into_iter();
        others.any(|(slot, after)| {
            after.is_none_or(|after| after < decided) && told.iter().all(|t| t.slot != slot)
        })
    }

    /// Other slots that lack a part of what was written, and above what; none while their facts are on
    /// the way. What is rebuilt as a whole needs no list.
    fn lacking_others(&self, index: PortionIndex) -> Vec<(PortionIndex, Option<WriteNumber>)> {
        let state = self.state.borrow();
        let others = state.slots.iter().filter(|slot| slot.index != index);
        let lacking = others.filter_map(|slot| match slot.condition {
            Condition::Suspect { after, whole: false, .. }
            | Condition::Joining { after, whole: false, .. } => Some((slot.index, Some(after))),
            Condition::Removing => Some((slot.index, None)),
            _ => None,
        });
        lacking.collect()
    }

    /// Everything that a slot lacks of writes above `after`, also what it dropped itself as it
    /// rejoined. Source: F-2.
    async fn missed_of(
        self: &Rc<Self>,
        index: PortionIndex,
        after: WriteNumber,
        whole: bool,
        rejoined: Option<&Report>,
    ) -> Option<Vec<BlockRange>> {
        let mut rows: BTreeMap<u8, BTreeSet<u64>> = BTreeMap::new();
        if whole {
            let lengths = self.state.borrow().lengths.clone();
            let mut all = Vec::new();
            for (device_index, length) in lengths.into_iter().enumerate() {
                let end = super::images::rows_of(&self.geometry, 0..length).end;
                for first in (0..end).step_by(REGION_BLOCKS as usize) {
                    let count = REGION_BLOCKS.min(end - first);
                    all.push(BlockRange { device_index: device_index as u8, first, count });
                }
            }
            return Some(all);
        }
        let mut add = |range: &BlockRange| {
            let blocks = rows.entry(range.device_index).or_default();
            blocks.extend(range.first..range.first + range.count);
        };
        if let Some(rejoined) = rejoined {
            self.missed_in(rejoined, index, after).iter().for_each(&mut add);
        }
        let slots = {
            let state = self.state.borrow();
            // A slot that was never written knows nothing of the group.
            let in_sync =
                state.slots.iter().filter(|slot| slot.condition.in_sync() && !slot.unknown);
            let links = in_sync.map(|slot| (slot.index, slot.link.clone()));
            let missed = state.missed.iter().filter(|missed| missed.slot == index);
            let missed = missed.filter(|_| !planted!("F-2/the-miss-map-is-ignored"));
            missed.flat_map(|missed| &missed.ranges).for_each(&mut add);
            links.collect::<Vec<_>>()
        };
        for (slot, link) in slots {
            let Link::Up(up) = link else { return None };
            let request = IoRequest::Inspect { fence: self.fence(slot, &up) };
            let answer = up.client.call(&request, Payload::empty(), CALL_WAIT).await;
            let Ok((Ok(IoReply::Report(report)), _)) = answer else { return None };
            self.missed_in(&report, index, after).iter().for_each(&mut add);
        }
        let mut all = Vec::new();
        for (device_index, blocks) in rows {
            for run in runs(blocks.into_iter()) {
                for first in (run.start..run.end).step_by(REGION_BLOCKS as usize) {
                    let count = REGION_BLOCKS.min(run.end - first);
                    all.push(BlockRange { device_index, first, count });
                }
            }
        }
        Some(all)
    }

    fn missed_in(
        &self,
        report: &Report,
        index: PortionIndex,
        after: WriteNumber,
    ) -> Vec<BlockRange> {
        let bit = super::images::slot_bit(index);
        let dropped = report.missed.iter().filter(|missed| missed.slot == index);
        let dropped = dropped.filter(|_| !planted!("F-2/the-miss-map-is-ignored"));
        let mut ranges: Vec<BlockRange> =
            dropped.flat_map(|missed: &Missed| missed.ranges.clone()).collect();
        for head in &report.records {
            let record = &head.record;
            let counts = after < record.number && record.kind == RecordKind::Write;
            if counts && !planted!("F-2/kept-records-are-not-missed") {
                let own = record.footprints.iter().filter(|print| print.slots & bit != 0);
                ranges.extend(own.map(|print| print.range));
            }
        }
        ranges
    }

    /// Lays computed blocks in place.
    async fn rebuild(
        self: &Rc<Self>,
        index: PortionIndex,
        up: &DiskUp,
        range: BlockRange,
    ) -> Option<()> {
        let rows = range.first..range.first + range.count;
        let lock = vec![Rows { device_index: range.device_index, range: rows.clone() }];
        let guard = self.locks.lock(lock, false).await;
        let decided = self.state.borrow().decided;
        let unit = self.geometry.unit(index);
        let bytes = self.compute_unit(range.device_index, unit, rows.clone()).await.ok()?;
        let (changes, payload) = changes_of(range.device_index, &rows, &bytes);
        let request = IoRequest::Rebuild { fence: self.fence(index, up), decided, changes };
        let answer = up.client.call(&request, payload, CALL_WAIT).await;
        drop(guard);
        let Ok((Ok(IoReply::Promised { .. }), _)) = answer else {
            tracing::warn!(group = %self.layout.group(), slot = %index, ?answer, "not rebuilt");
            return None;
        };
        Some(())
    }

    async fn sync_slot(&self, index: PortionIndex, up: &DiskUp) -> Option<()> {
        let position = braid_terms::JournalPosition(u64::MAX);
        let request = IoRequest::Sync { incarnation: up.incarnation, position };
        let answer = up.client.call(&request, Payload::empty(), SYNC_WAIT).await;
        let Ok((Ok(IoReply::Synced { synced }), _)) = answer else { return None };
        self.lcc().ok()?.disks.link(self.layout.disk(index)).note_synced(up.incarnation, synced);
        Some(())
    }

    /// Reads rebuilt rows back and compares them with what the others say.
    async fn read_back(
        self: &Rc<Self>,
        index: PortionIndex,
        up: &DiskUp,
        range: BlockRange,
    ) -> Option<()> {
        let rows = range.first..range.first + range.count;
        let lock = vec![Rows { device_index: range.device_index, range: rows.clone() }];
        let _guard = self.locks.lock(lock, true).await;
        let decided = self.state.borrow().decided;
        let request = IoRequest::Read(Box::new(Read {
            fence: self.fence(index, up),
            decided,
            ranges: vec![range],
        }));
        let answer = up.client.call(&request, Payload::empty(), CALL_WAIT).await;
        let Ok((Ok(IoReply::Blocks { crcs: stored }), payload)) = answer else { return None };
        let unit = self.geometry.unit(index);
        let expected = self.compute_unit(range.device_index, unit, rows).await.ok()?;
        let mut blocks = payload.chunks_exact(BLOCK as usize);
        let mut right = stored.len() as u64 == range.count;
        for (crc, expected) in stored.iter().zip(expected.chunks_exact(BLOCK as usize)) {
            let mut sum = Vec::new();
            crcs(expected, &mut sum);
            right &= match crc {
                Some(crc) => blocks.next() == Some(expected) && sum[0] == *crc,
                None => expected.iter().all(|byte| *byte == 0),
            };
        }
        if !right {
            tracing::error!(group = %self.layout.group(), slot = %index, ?range, "read back wrong");
            return None;
        }
        Some(())
    }
}

/// Runs of blocks with bytes, and of zeros, which give their space back.
fn changes_of(device_index: u8, rows: &Range<u64>, bytes: &Bytes) -> (Vec<Change>, Payload) {
    let block = |row: u64| {
        let from = ((row - rows.start) * BLOCK) as usize;
        from..from + BLOCK as usize
    };
    let is_zero = |row: &u64| bytes[block(*row)].iter().all(|byte| *byte == 0);
    let mut changes = Vec::new();
    let mut payload = Payload::empty();
    for run in runs(rows.clone().filter(|row| !is_zero(row))) {
        let piece = bytes.slice(block(run.start).start..block(run.end - 1).end);
        let mut sums = Vec::new();
        crcs(&piece, &mut sums);
        changes.push(Change::Write { device_index, first: run.start, crcs: sums });
        payload.push(piece);
    }
    for run in runs(rows.clone().filter(is_zero)) {
        let count = run.end - run.start;
        changes.push(Change::Punch(BlockRange { device_index, first: run.start, count }));
    }
    (changes, payload)
}

/// Longest wait for the slots in sync.
const READY_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

/// Longest wait for a medium.
const SYNC_WAIT: std::time::Duration = std::time::Duration::from_secs(60);
