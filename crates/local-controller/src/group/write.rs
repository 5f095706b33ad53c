//! Cluster writes of a group: from a change to a decided number, and on to a stable one.
//! # Theory
//! See `group/mod.rs`. Bytes of a write are kept until it is decided, so that a slot whose process
//! was restarted gets them again; not longer.
//! # Failure
//! `Full` from one slot withdraws the write and all later ones: their numbers become void at all
//! participants, and the callers hear `NoSpace`.
//! # Source
//! W-1 to W-5, W-8, W-9, S-4.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use braid_terms::{Incarnation, JournalPosition, PortionIndex, WriteNumber, planted, sometimes};
use braid_wire::io::{
    Create, Fence, GroupMarks, IoRefusal, IoReply, IoRequest, Participant, Prepare, Record,
    RecordKind,
};
use braid_wire::lcc::Ready;
use braid_wire::rpc::CallError;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::images::{Images, rows_of, slot_bit};
use super::row_locks::Rows;
use super::{
    Condition, Dead, Group, GroupWrite, Link, Part, Pending, Slot, SlotChange, Unstable, WriteError,
};
use crate::disks::{CALL_WAIT, DiskUp};

/// What becomes of a numbered change.
pub(super) type Decided = oneshot::Receiver<Result<WriteNumber, WriteError>>;

impl Group {
    /// Makes one atomic change; returns its number when it is decided. Source: W-3.
    ///
    /// Changes that touch the same rows happen in the order of the calls' first polls.
    /// Errors: `WriteError`.
    pub async fn write(self: &Rc<Self>, change: GroupWrite) -> Result<WriteNumber, WriteError> {
        let (number, decided) = self.begin(change).await?;
        self.decided(number, decided).await
    }

    /// As `write`, done when it is decided, though the lease may have run out meanwhile: whoever
    /// answers for it looks at that. Source: O-4.
    ///
    /// Errors: `WriteError`.
    pub(crate) async fn write_unanswered(
        self: &Rc<Self>,
        change: GroupWrite,
    ) -> Result<WriteNumber, WriteError> {
        let (number, decided) = self.begin(change).await?;
        self.outcome(number, decided).await
    }

    /// Gives a change its number and sends it on its way.
    pub(super) async fn begin(
        self: &Rc<Self>,
        change: GroupWrite,
    ) -> Result<(WriteNumber, Decided), WriteError> {
        self.check_size(&change)?;
        let lock = self.locks.lock(self.rows_of_change(&change), false);
        let guard = lock.await;
        self.links_ready().await?;
        let mut images = self.build(&change).await?;
        images.operation = change.operation;
        self.may_number().await?;
        if self.lcc()?.is_ending() {
            return Err(WriteError::Unavailable("the local controller ends".into()));
        }
        let lengths = self.lengths_after(&change);
        let submitted = self.submit(RecordKind::Write, images, lengths, Some(guard))?;
        if change.stable_soon {
            self.sync_soon(submitted.0);
        }
        Ok(submitted)
    }

    /// Asks the disks behind the prepares of `number` for all that they have got.
    fn sync_soon(&self, number: WriteNumber) {
        let Ok(lcc) = self.lcc() else { return };
        let state = self.state.borrow();
        let Some(pending) = state.pending.iter().find(|write| write.number == number) else {
            return;
        };
        for slot in pending.parts.keys() {
            if matches!(state.slot(*slot).link, Link::Up(_)) {
                lcc.disks.sync_soon(self.layout.disk(*slot));
            }
        }
    }

    /// Waits until a numbered change is decided; it is answered under the lease.
    pub(super) async fn decided(
        &self,
        number: WriteNumber,
        decided: Decided,
    ) -> Result<WriteNumber, WriteError> {
        self.outcome(number, decided).await?;
        let lcc = self.lcc().map_err(|_| WriteError::OutcomeUnknown)?;
        if lcc.lease_valid() { Ok(number) } else { Err(WriteError::OutcomeUnknown) }
    }

    async fn outcome(
        &self,
        number: WriteNumber,
        decided: Decided,
    ) -> Result<WriteNumber, WriteError> {
        // It has a number: from here on the next owner may find it and keep it.
        match decided.await {
            Ok(Err(WriteError::LostOwnership)) | Err(_) => return Err(WriteError::OutcomeUnknown),
            Ok(decided) => decided?,
        };
        let lcc = self.lcc().map_err(|_| WriteError::OutcomeUnknown)?;
        lcc.count(|counters| counters.writes += 1);
        Ok(number)
    }

    /// Waits until everything up to `number` is stable, and sees to it. Source: W-9.
    pub async fn stable(self: &Rc<Self>, number: WriteNumber) -> Result<(), WriteError> {
        loop {
            let changed = self.changed.notified();
            if self.state.borrow().dead.is_some() {
                return Err(WriteError::LostOwnership);
            }
            if number <= self.state.borrow().stable {
                return Ok(());
            }
            self.push_syncs(number).await;
            self.settle_stable();
            if number <= self.state.borrow().stable {
                return Ok(());
            }
            // A slot that failed is opened again or removed; either moves the mark.
            let _ = timeout(Duration::from_millis(200), changed).await;
        }
    }

    /// Makes everything that was decided so far stable.
    pub async fn sync(self: &Rc<Self>) -> Result<(), WriteError> {
        let decided = self.state.borrow().decided;
        self.stable(decided).await
    }

    /// Waits until all that was numbered is decided and stable, and nothing is in a local journal only.
    pub(crate) async fn drain(self: &Rc<Self>) -> Result<(), WriteError> {
        self.pending_settled().await?;
        self.sync().await?;
        Ok(self.busy_ended().await?)
    }

    /// Waits until nothing that was numbered is undecided.
    pub(crate) async fn pending_settled(&self) -> Result<(), Dead> {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.borrow();
                if let Some(dead) = state.dead {
                    return Err(dead);
                }
                if state.pending.is_empty() {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    /// Asks the disks for what keeps `number` from being stable, and waits for their answers.
    pub(crate) async fn push_syncs(self: &Rc<Self>, number: WriteNumber) {
        let Ok(lcc) = self.lcc() else { return };
        let mut wanted = BTreeMap::new();
        for write in self.state.borrow().unstable.iter().take_while(|w| w.number <= number) {
            for (slot, (incarnation, position)) in &write.positions {
                wanted.insert(*slot, (*incarnation, *position));
            }
        }
        let disk = |slot: PortionIndex| self.layout.disk(slot);
        let syncs = wanted.into_iter().map(|(slot, (incarnation, position))| {
            let lcc = lcc.clone();
            async move {
                if !lcc.disks.sync(disk(slot), incarnation, position).await {
                    self.slot_failed(slot, incarnation);
                }
            }
        });
        futures_util::future::join_all(syncs).await;
    }

    /// Moves the stable mark over what all in-sync participants have on their media.
    pub(crate) fn settle_stable(self: &Rc<Self>) {
        let Ok(lcc) = self.lcc() else { return };
        let mut state = self.state.borrow_mut();
        // The fact on its way says that the slot has all up to the mark as it was, and a rejoin drops
        // what is above: until it is committed, and the others know it, the mark stands.
        if state.slots.iter().any(|slot| slot.condition == Condition::Removing) {
            return;
        }
        let before = state.stable;
        while let Some(write) = state.unstable.front() {
            let is_stable = write.positions.iter().all(|(slot, (incarnation, position))| {
                !state.slot(*slot).condition.takes_part()
                    || lcc.disks.link(self.layout.disk(*slot)).is_synced(*incarnation, *position)
                    || planted!("W-9/stable-before-the-medium")
            });
            if !is_stable {
                break;
            }
            let number = write.number;
            state.unstable.pop_front();
            state.stable = number;
        }
        if state.stable != before {
            state.marks_due = true;
            self.settle_local(&lcc, &state);
            drop(state);
            lcc.marks_due(self);
            self.changed.notify_waiters();
        }
    }

    /// Hands the marks to the disks' next messages. Source: W-4.
    pub(crate) fn queue_marks(&self) {
        let Ok(lcc) = self.lcc() else { return };
        let mut state = self.state.borrow_mut();
        state.marks_due = false;
        let absent = state.absent();
        for slot in &state.slots {
            if slot.condition.takes_part() && !slot.unknown {
                let marks = GroupMarks {
                    group: self.layout.group(),
                    slot: slot.index,
                    grant: self.grant,
                    decided: state.decided,
                    stable: state.stable,
                    absent: absent.clone(),
                };
                lcc.disks.queue_marks(slot.disk, marks);
            }
        }
    }

    /// What its shadow is told.
    pub(crate) fn ready(&self) -> Option<Ready> {
        let state = self.state.borrow();
        let slots = state.slots.iter().filter(|slot| slot.condition.takes_part() && !slot.unknown);
        let slots: Vec<_> = slots.map(|slot| (slot.index, slot.disk)).collect();
        let (group, grant, decided) = (self.layout.group(), self.grant, state.decided);
        state.dead.is_none().then_some(Ready { group, grant, decided, slots })
    }

    fn check_size(&self, change: &GroupWrite) -> Result<(), WriteError> {
        let ends = change.writes.iter().map(|w| w.at.checked_add(w.bytes.len() as u64));
        let lengths = change.lengths.iter().map(|(_, length)| Some(*length));
        let size_max = PORTION_SIZE_MAX * self.geometry.data() as u64;
        let fits = |end: Option<u64>| end.is_some_and(|end| end <= size_max);
        if ends.chain(lengths).all(fits) { Ok(()) } else { Err(WriteError::TooBig) }
    }

    fn rows_of_change(&self, change: &GroupWrite) -> Vec<Rows> {
        let written = change.writes.iter().map(|write| {
            let range = write.at..write.at + write.bytes.len() as u64;
            Rows { device_index: write.device_index, range: rows_of(&self.geometry, range) }
        });
        let punched = change.punches.iter().map(|(device_index, range)| Rows {
            device_index: *device_index,
            range: rows_of(&self.geometry, range.clone()),
        });
        written.chain(punched).collect()
    }

    fn lengths_after(&self, change: &GroupWrite) -> Vec<u64> {
        let mut lengths = self.state.borrow().lengths.clone();
        for write in change.writes.iter().filter(|write| !write.bytes.is_empty()) {
            let length = &mut lengths[usize::from(write.device_index)];
            *length = (*length).max(write.at + write.bytes.len() as u64);
        }
        for (device_index, length) in &change.lengths {
            lengths[usize::from(*device_index)] = *length;
        }
        lengths
    }

    /// Waits while a withdrawal is under way.
    pub(super) async fn may_number(&self) -> Result<(), WriteError> {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.borrow();
                if state.dead.is_some() {
                    return Err(WriteError::LostOwnership);
                }
                if !state.withdrawing {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    /// Gives the change a number and sends its prepares, all without waiting.
    pub(crate) fn submit(
        self: &Rc<Self>,
        kind: RecordKind,
        mut images: Images,
        lengths: Vec<u64>,
        locks: Option<super::RowGuard>,
    ) -> Result<(WriteNumber, Decided), Dead> {
        let (done, decided) = oneshot::channel();
        let number = {
            let mut state = self.state.borrow_mut();
            if let Some(dead) = state.dead {
                return Err(dead);
            }
            let number = match kind {
                RecordKind::Outcome { .. } => WriteNumber { grant: self.grant, sequence: 0 },
                _ if state.last.grant == self.grant => {
                    WriteNumber { grant: self.grant, sequence: state.last.sequence + 1 }
                }
                _ => WriteNumber { grant: self.grant, sequence: 1 },
            };
            state.last = number;
            let k = self.geometry.data();
            images.slots.resize_with(state.slots.len(), SlotChange::default);
            let to_all = matches!(kind, RecordKind::Outcome { .. })
                || images.to_all
                || self.geometry.parity() == 0;
            // The parity slots alone could all be lost: a write that changes no data goes to one data
            // slot too, so that any k slots in sync know of it (lemma of O-5).
            let changes_data = images.slots.iter().take(k).any(|change| !change.changes.is_empty());
            let mut data = state.slots.iter().take(k);
            let witness = data.position(|slot| slot.condition.in_sync() && !changes_data);
            let mut parts = BTreeMap::new();
            let mut participants = Vec::new();
            let mut existing = state.existing;
            let is_untold = |slot: &Slot| !slot.knows_ends;
            let told = state.slots.iter().any(is_untold).then(|| state.operations_to_tell());
            for (place, change) in images.slots.into_iter().enumerate() {
                let slot = &mut state.slots[place];
                let changes = !change.changes.is_empty();
                let takes_part = changes || k <= place || to_all || witness == Some(place);
                if !slot.condition.takes_part() || !takes_part {
                    continue;
                }
                let incarnation = match &slot.link {
                    Link::Up(up) => up.incarnation,
                    Link::Down | Link::Opening => Default::default(),
                };
                participants.push(Participant { slot: slot.index, incarnation });
                let tells_ends = !std::mem::replace(&mut slot.knows_ends, true);
                let (prev, create) = (slot.prev, slot.unknown);
                let joins = !slot.condition.in_sync();
                let operations = told.as_ref().filter(|_| tells_ends).and_then(|t| t.to(joins));
                let part = Part { prev, change, create, tells_ends, operations, promised: None };
                parts.insert(slot.index, part);
                slot.prev = number;
                slot.unknown = false;
                existing |= slot_bit(slot.index);
            }
            state.existing = existing;
            state.lengths.clone_from(&lengths);
            state.pending.push_back(Pending {
                number,
                kind,
                participants,
                footprints: images.footprints,
                operation: images.operation,
                lengths,
                existing,
                parts,
                done: Some(done),
                locks,
            });
            number
        };
        let slots: Vec<_> = self.layout.slots().collect();
        for slot in slots {
            self.send_part(number, slot);
        }
        self.try_decide();
        Ok((number, decided))
    }

    /// Sends a write's record to one slot, if that is open and takes part.
    pub(crate) fn send_part(self: &Rc<Self>, number: WriteNumber, slot: PortionIndex) {
        let (call, up, kind) = {
            let state = self.state.borrow();
            let Some(pending) = state.pending.iter().find(|write| write.number == number) else {
                return;
            };
            let Some(part) = pending.parts.get(&slot) else { return };
            let Link::Up(up) = &state.slot(slot).link else { return };
            let request = self.prepare_of(&state, pending, part, slot, up);
            let payload = part.change.payload.clone();
            let payload =
                if pending.kind == RecordKind::Write { payload } else { Default::default() };
            (up.client.start_call(&request, payload, PREPARE_WAIT), up.clone(), pending.kind)
        };
        if let Ok(lcc) = self.lcc() {
            lcc.count(|counters| counters.prepares += 1);
        }
        let group = self.clone();
        tokio::task::spawn_local(async move {
            let answer = call.await;
            group.on_prepared((number, kind), slot, &up, answer.map(|(reply, _)| reply));
        });
    }

    fn prepare_of(
        &self,
        state: &super::State,
        pending: &Pending,
        part: &Part,
        slot: PortionIndex,
        up: &DiskUp,
    ) -> IoRequest {
        let record = Record {
            number: pending.number,
            prev: part.prev,
            writer: self.writer,
            kind: pending.kind,
            participants: pending.participants.clone(),
            footprints: pending.footprints.clone(),
            lengths: pending.lengths.clone(),
            existing: pending.existing,
            ends: if part.tells_ends { state.ends.clone() } else { Vec::new() },
            operation: pending.operation.filter(|_| pending.kind == RecordKind::Write),
            operations: part.operations.clone(),
            changes: match pending.kind {
                RecordKind::Write => part.change.changes.clone(),
                _ => Vec::new(),
            },
        };
        let create = part.create.then(|| {
            Box::new(Create {
                writer: self.writer,
                layout: self.layout.clone(),
                home: self.home.get(),
            })
        });
        IoRequest::Prepare(Box::new(Prepare {
            fence: self.fence(slot, up),
            record,
            create,
            decided: state.decided,
            // The stable mark allows to drop records, so it travels only with the list of slots
            // under a fact, in marks (hole 22).
            stable: WriteNumber::NONE,
        }))
    }

    pub(crate) fn fence(&self, slot: PortionIndex, up: &DiskUp) -> Fence {
        Fence { group: self.layout.group(), slot, grant: self.grant, incarnation: up.incarnation }
    }

    /// Takes the answer to a record, which was sent as that kind.
    fn on_prepared(
        self: &Rc<Self>,
        (number, kind): (WriteNumber, RecordKind),
        slot: PortionIndex,
        up: &DiskUp,
        answer: Result<Result<IoReply, IoRefusal>, CallError>,
    ) {
        match answer {
            Ok(Ok(IoReply::Promised { position, synced })) => {
                if let Ok(lcc) = self.lcc() {
                    let link = lcc.disks.link(self.layout.disk(slot));
                    link.note_synced(up.incarnation, synced);
                }
                self.on_promised((number, kind), slot, (up.incarnation, position));
            }
            Ok(Err(IoRefusal::Full)) if kind == RecordKind::Write => {
                // Not where its slot was removed, or it was withdrawn already: nobody waits for it.
                let waits = {
                    let state = self.state.borrow();
                    let waits = state.pending.iter().any(|write| write.number == number);
                    waits && state.slot(slot).condition.takes_part()
                };
                if waits {
                    self.withdraw_from(number);
                }
            }
            Ok(Err(IoRefusal::Fenced { .. })) => {
                tracing::debug!(group = %self.layout.group(), "a newer grant exists");
                self.kill(Dead::LostOwnership);
            }
            Ok(Err(refusal)) => {
                let ours = self.state.borrow().withdrawing;
                tracing::debug!(group = %self.layout.group(), %slot, ?refusal, "not prepared");
                // Behind a refused number every later one meets a gap; the withdrawal mends it.
                if !(ours && matches!(refusal, IoRefusal::Gap { .. })) {
                    {
                        let mut state = self.state.borrow_mut();
                        let refusals = &mut state.slot_mut(slot).refusals;
                        *refusals = refusals.saturating_add(1);
                    }
                    self.slot_failed(slot, up.incarnation);
                }
            }
            Ok(Ok(_)) | Err(_) => self.slot_failed(slot, up.incarnation),
        }
    }

    fn on_promised(
        self: &Rc<Self>,
        (number, kind): (WriteNumber, RecordKind),
        slot: PortionIndex,
        place: (Incarnation, JournalPosition),
    ) {
        {
            let mut state = self.state.borrow_mut();
            // A promise of an earlier start of the I/O server says nothing about this one, and one
            // given to a write says nothing about the void record that replaces it.
            let current = match &state.slot(slot).link {
                Link::Up(up) => up.incarnation == place.0,
                Link::Down | Link::Opening => false,
            };
            let pending = state.pending.iter_mut().find(|write| write.number == number);
            let pending = pending.filter(|write| current && write.kind == kind);
            if let Some(part) = pending.and_then(|write| write.parts.get_mut(&slot)) {
                part.promised = Some(place);
                state.slot_mut(slot).refusals = 0;
            }
        }
        self.try_decide();
    }

    /// Decides what can be decided. Source: W-3, G-8.
    pub(crate) fn try_decide(self: &Rc<Self>) {
        let mut answers = Vec::new();
        {
            let mut state = self.state.borrow_mut();
            while let Some(pending) = state.pending.front() {
                if state.in_sync() < self.geometry.data() && !planted!("G-8/below-the-quorum") {
                    break;
                }
                let required = pending
                    .parts
                    .iter()
                    .filter(|(slot, _)| state.slot(**slot).condition.takes_part())
                    .filter(|(slot, _)| {
                        let removing = state.slot(**slot).condition == Condition::Removing;
                        !(removing && planted!("F-2/answer-before-the-fact"))
                    });
                let mut in_sync = 0;
                let mut all = true;
                for (slot, part) in required {
                    all &= part.promised.is_some() || planted!("W-3/answer-before-all-promised");
                    in_sync += usize::from(state.slot(*slot).condition.in_sync());
                }
                if !all || in_sync == 0 {
                    break;
                }
                if pending.parts.keys().any(|slot| !state.slot(*slot).condition.takes_part()) {
                    sometimes!("W-3: a write was decided without a participant that was removed");
                }
                let pending = state.pending.pop_front().expect("it is the front");
                state.decided = pending.number;
                state.decided_lengths.clone_from(&pending.lengths);
                // A removed slot's promise counts no more, also not once it joins again.
                let positions = pending
                    .parts
                    .into_iter()
                    .filter(|(slot, _)| state.slot(*slot).condition.takes_part())
                    .filter_map(|(slot, part)| Some((slot, part.promised?)))
                    .collect();
                state.unstable.push_back(Unstable { number: pending.number, positions });
                state.marks_due = true;
                let void = pending.kind == RecordKind::Void;
                if let Some(operation) = pending.operation.filter(|_| !void) {
                    state.note_done(pending.number, operation);
                }
                Self::note_ahead(&mut state, pending.number, void);
                answers.push((pending.done, pending.locks, pending.number, void));
            }
            if state.pending.is_empty() {
                state.withdrawing = false;
            }
        }
        if answers.is_empty() {
            return;
        }
        if let Ok(lcc) = self.lcc() {
            if planted!("W-13/kept-until-it-is-decided") {
                self.settle_local(&lcc, &self.state.borrow());
            }
            lcc.unstable(self);
        }
        for (done, locks, number, void) in answers {
            tracing::trace!(group = %self.layout.group(), %number, void, "decided");
            drop(locks);
            if let Some(done) = done {
                let _ = done.send(if void { Err(WriteError::NoSpace) } else { Ok(number) });
            }
        }
        self.changed.notify_waiters();
    }

    /// Makes `number` and all later ones void. Source: W-1, S-4.
    fn withdraw_from(self: &Rc<Self>, number: WriteNumber) {
        let mut resend = Vec::new();
        {
            let mut state = self.state.borrow_mut();
            let decided = state.decided_lengths.clone();
            let existing = state.existing;
            let mut lengths = decided;
            for pending in &mut state.pending {
                if pending.number < number {
                    lengths.clone_from(&pending.lengths);
                    continue;
                }
                if pending.kind == RecordKind::Write {
                    pending.kind = RecordKind::Void;
                    pending.existing = existing;
                    pending.lengths.clone_from(&lengths);
                    for (slot, part) in &mut pending.parts {
                        part.promised = None;
                        part.change = SlotChange::default();
                        resend.push((pending.number, *slot));
                    }
                }
            }
            state.lengths = lengths;
            if resend.is_empty() {
                return;
            }
            sometimes!("W-1: writes were withdrawn");
            state.withdrawing = true;
        }
        for (number, slot) in resend {
            self.send_part(number, slot);
        }
    }
}

/// Largest portion, in bytes: what fits a file of ext4 (16 TiB), with its checksum pages. Behind that
/// an apply would fail for ever.
const PORTION_SIZE_MAX: u64 = 15 << 40;

/// Longest wait for a promise before the slot counts as failed.
const PREPARE_WAIT: Duration = CALL_WAIT;
