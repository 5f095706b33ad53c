//! Slots that fail: opened again for a while, then removed by a fact.
//! # Theory
//! ```text
//! Up -failed-> Opening -answers, lacks nothing-> Up (what is in flight is sent again)
//!                      -lacks something, or silent for REOPEN_WINDOW-> fact -> Suspect
//!                      -waits for its lease for NOT_READY_WINDOW-> fact -> Suspect
//!                      -removal would leave fewer than k in sync-> goes on opening; if what it
//!                       lacks was decided, for LOSS_WINDOW, or until all slots have answered: then
//!                       the group is opened anew (W-6)
//! ```
//! # Source
//! W-3, W-5, F-2, W-9 (a changed incarnation).

use std::rc::Rc;
use std::time::Duration;

use braid_env::Payload;
use braid_terms::{DiskId, FactKind, Incarnation, PortionIndex, WriteNumber, planted, sometimes};
use braid_wire::io::{Fence, IoRefusal, IoReply, IoRequest, Open, Report};
use tokio::time::{Instant, sleep, timeout};

use super::images::slot_bit;
use super::open::is_gone;
use super::{Condition, Dead, Group, Link, State, WriteError};
use crate::disks::{CALL_WAIT, DiskUp};

/// How a slot answered an open.
pub(crate) enum Opened {
    Report(Box<Report>, DiskUp),
    Fenced,
    /// Its header or journal cannot be read.
    Unreadable(DiskUp),
    /// It is of a newer layout.
    Unusable,
    /// It is there, and waits for its lease.
    NotReady,
    Silent,
}

impl Group {
    /// Waits until every slot that takes part is open, or was removed; below k in sync it waits on.
    pub(crate) async fn links_ready(self: &Rc<Self>) -> Result<(), WriteError> {
        loop {
            let changed = self.changed.notified();
            let mut down = Vec::new();
            {
                let mut state = self.state.borrow_mut();
                if state.dead.is_some() {
                    return Err(WriteError::LostOwnership);
                }
                let in_sync = state.in_sync();
                let slots = state.slots.iter_mut().filter(|slot| slot.condition.takes_part());
                let mut ready = true;
                for slot in slots {
                    match &slot.link {
                        Link::Up(up) if !up.client.is_closed() => {}
                        Link::Up(up) => {
                            down.push((slot.index, Some(up.incarnation)));
                            ready = false;
                        }
                        Link::Down => {
                            down.push((slot.index, None));
                            ready = false;
                        }
                        Link::Opening => ready = false,
                    }
                }
                if ready && self.geometry.data() <= in_sync {
                    return Ok(());
                }
            }
            for (slot, incarnation) in down {
                match incarnation {
                    Some(incarnation) => self.slot_failed(slot, incarnation),
                    None => self.open_again(slot),
                }
            }
            changed.await;
        }
    }

    /// A slot did not do what it was asked, at that incarnation.
    pub(crate) fn slot_failed(self: &Rc<Self>, slot: PortionIndex, incarnation: Incarnation) {
        {
            let mut state = self.state.borrow_mut();
            let slot = state.slot_mut(slot);
            match &slot.link {
                Link::Up(up) if up.incarnation == incarnation => slot.link = Link::Down,
                _ => return,
            }
        }
        self.open_again(slot);
    }

    /// Opens slots on a disk again whose I/O server was restarted, and waits for that.
    pub(crate) async fn reopen_at(self: &Rc<Self>, disk: DiskId, incarnation: Incarnation) {
        for index in self.layout.slots().filter(|index| self.layout.disk(*index) == disk) {
            let link = self.state.borrow().slot(index).link.clone();
            match link {
                Link::Up(up) if up.incarnation != incarnation => {
                    self.slot_failed(index, up.incarnation);
                }
                Link::Down => self.open_again(index),
                Link::Up(_) | Link::Opening => {}
            }
            // Where it stands still, the others need not wait for it.
            let _ = timeout(2 * OPEN_WAIT, self.opened(index)).await;
        }
    }

    pub(super) async fn opened(&self, index: PortionIndex) {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.borrow();
                let slot = state.slot(index);
                let opens = slot.condition.takes_part() && matches!(slot.link, Link::Opening);
                if state.dead.is_some() || !opens {
                    return;
                }
            }
            changed.await;
        }
    }

    pub(super) fn open_again(self: &Rc<Self>, slot: PortionIndex) {
        {
            let mut state = self.state.borrow_mut();
            if state.dead.is_some() {
                return;
            }
            let slot = state.slot_mut(slot);
            if !matches!(slot.link, Link::Down) || !slot.condition.takes_part() {
                return;
            }
            slot.link = Link::Opening;
            slot.lacks = false;
        }
        let group = self.clone();
        tokio::task::spawn_local(async move { group.reopen(slot).await });
    }

    async fn reopen(self: Rc<Self>, slot: PortionIndex) {
        let begun = Instant::now();
        let mut lacks_since = None;
        loop {
            let mut window = REOPEN_WINDOW;
            let mut lacks = match self.open_slot(slot).await {
                Opened::Report(report, up) => {
                    tracing::debug!(
                        group = %self.layout.group(), %slot, incarnation = %report.incarnation,
                        last = %report.last, files = ?report.files, "opened again"
                    );
                    // One that answers an open and refuses every prepare is of no use either.
                    let refuses = REFUSALS_MAX <= self.state.borrow().slot(slot).refusals;
                    if !refuses {
                        if self.take_reopened(slot, &report, up) {
                            return;
                        }
                        lacks_since.get_or_insert_with(Instant::now);
                        self.state.borrow_mut().slot_mut(slot).lacks = true;
                    }
                    true
                }
                Opened::Fenced => {
                    self.kill(Dead::LostOwnership);
                    return;
                }
                Opened::Unreadable(_) | Opened::Unusable => true,
                // Alive and whole: what it promised is worth more than the wait.
                Opened::NotReady => {
                    window = NOT_READY_WINDOW;
                    false
                }
                Opened::Silent => false,
            };
            if self.state.borrow().dead.is_some() {
                return;
            }
            let dead = self.lcc().is_ok_and(|lcc| lcc.is_dead(self.layout.disk(slot)));
            lacks |= dead || window <= begun.elapsed();
            if lacks && self.state.borrow().may_remove(slot, self.geometry.data()) {
                self.remove_slot(slot, false).await;
                if !self.state.borrow().slot(slot).condition.takes_part() {
                    return;
                }
            }
            let for_good = self.state.borrow().is_lost_for_good(self.geometry.data());
            if lacks_since.is_some_and(|since| for_good || LOSS_WINDOW <= since.elapsed()) {
                // More slots lost what was decided than the scheme tolerates. What is left of it is
                // for a new open to say.
                tracing::error!(
                    group = %self.layout.group(), %slot,
                    "lost decided writes, and too few others are in sync: opens the group anew"
                );
                self.doubt();
                return;
            }
            self.state.borrow_mut().slot_mut(slot).refusals = 0;
            sleep(REOPEN_PAUSE).await;
        }
    }

    /// Opens one slot under our grant.
    pub(crate) async fn open_slot(&self, slot: PortionIndex) -> Opened {
        let Ok(lcc) = self.lcc() else { return Opened::Fenced };
        let disk = self.layout.disk(slot);
        // Each group would find out again, and wait for it.
        if lcc.is_dead(disk) && lcc.disks.link(disk).failed_lately() {
            return Opened::Silent;
        }
        let Some(up) = lcc.disks.connect(disk).await else { return Opened::Silent };
        let absent = self.state.borrow().absent();
        let request = IoRequest::Open(Box::new(Open {
            fence: Fence { incarnation: Incarnation(0), ..self.fence(slot, &up) },
            writer: self.writer,
            layout: self.layout.clone(),
            absent,
        }));
        match up.client.call(&request, Payload::empty(), CALL_WAIT.min(OPEN_WAIT)).await {
            Ok((Ok(IoReply::Report(report)), _)) => {
                lcc.disks
                    .link(self.layout.disk(slot))
                    .note_synced(report.incarnation, report.synced);
                let up = DiskUp { incarnation: report.incarnation, ..up };
                Opened::Report(report, up)
            }
            Ok((Err(IoRefusal::Fenced { .. }), _)) => Opened::Fenced,
            Ok((Err(IoRefusal::Unreadable { reason }), _)) => {
                tracing::warn!(group = %self.layout.group(), %slot, %reason, "cannot be opened");
                Opened::Unreadable(up)
            }
            Ok((Err(IoRefusal::WrongLayout { generation }), _)) => {
                tracing::warn!(group = %self.layout.group(), %slot, %generation, "a newer layout");
                Opened::Unusable
            }
            Ok((Err(IoRefusal::NotReady), _)) => Opened::NotReady,
            Ok(_) | Err(_) => Opened::Silent,
        }
    }

    /// Takes a slot that answers again; `false` where it lacks what was decided.
    fn take_reopened(self: &Rc<Self>, index: PortionIndex, report: &Report, up: DiskUp) -> bool {
        let mut numbers = Vec::new();
        {
            let mut state = self.state.borrow_mut();
            let slot = state.slot(index);
            if !slot.condition.takes_part() {
                return true;
            }
            if slot.untouched {
                drop(state);
                self.take_first_touched(index, report, up);
                return true;
            }
            if !slot.seen {
                let exists = state.existing & slot_bit(index) != 0;
                return self.take_unseen(&mut state, report, (index, exists), up);
            }
            // The last decided write that it took part in.
            let of_slot = |write: &&super::Unstable| write.positions.contains_key(&index);
            let decided = state.unstable.iter().rev().find(of_slot).map(|write| write.number);
            let first_pending = state
                .pending
                .iter()
                .find_map(|write| write.parts.get(&index).map(|part| part.prev));
            let needed = decided.or(first_pending).unwrap_or(slot.prev);
            let made = report.layout.is_some();
            let exists = state.existing & slot_bit(index) != 0;
            if needed != WriteNumber::NONE && is_gone(report, exists, state.stable) {
                return false;
            }
            if report.last < needed {
                sometimes!("W-5: a restarted portion lacks what is decided");
            }
            if report.damaged_after.is_some()
                || report.last < needed && !planted!("W-5/take-back-what-lacks-a-write")
            {
                return needed == WriteNumber::NONE && !made && {
                    drop(state);
                    self.link_up(index, up, true);
                    true
                };
            }
            // What it reports after a restart was written anew and synced before it served.
            let incarnation = report.incarnation;
            for write in &mut state.unstable {
                if let Some(position) = write.positions.get(&index)
                    && position.0 != incarnation
                {
                    write.positions.remove(&index);
                }
            }
            for write in &state.pending {
                if write.parts.contains_key(&index) {
                    numbers.push(write.number);
                }
            }
        }
        self.link_up(index, up, report.layout.is_none());
        if !numbers.is_empty() {
            sometimes!("W-5: undecided records were sent again");
        }
        for number in numbers {
            self.send_part(number, index);
        }
        self.settle_stable();
        true
    }

    /// Takes a slot that was silent when the group was opened. Nothing was written since, and what was
    /// before is stable: it has all of that or is under a fact, and nothing more.
    fn take_unseen(
        self: &Rc<Self>,
        state: &mut State,
        report: &Report,
        (index, exists): (PortionIndex, bool),
        up: DiskUp,
    ) -> bool {
        let more = report.records.iter().any(|head| state.stable < head.record.number);
        let lacks = report.damaged_after.is_some() || is_gone(report, exists, state.stable);
        if more || lacks || state.stable < report.last {
            return false;
        }
        let slot = state.slot_mut(index);
        slot.prev = report.last;
        slot.unknown = report.layout.is_none();
        slot.seen = true;
        slot.link = Link::Up(up);
        state.missed.extend(report.missed.iter().cloned());
        self.changed.notify_waiters();
        true
    }

    fn link_up(self: &Rc<Self>, index: PortionIndex, up: DiskUp, unknown: bool) {
        let mut state = self.state.borrow_mut();
        let mut made = false;
        for write in &mut state.pending {
            if let Some(part) = write.parts.get_mut(&index) {
                part.create = unknown && !made;
                part.promised = None;
                made = true;
            }
        }
        let slot = state.slot_mut(index);
        slot.unknown = unknown && !made;
        slot.lacks = false;
        slot.link = Link::Up(up);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Removes a slot by a fact; returns when that is committed, or the group is dead. `whole` says
    /// that nothing of it can be built upon. Source: F-2.
    ///
    /// | condition | what happens                                                                  |
    /// |-----------|-------------------------------------------------------------------------------|
    /// | Suspect   | nothing                                                                       |
    /// | Joining   | suspect again at once: its fact is still open                                 |
    /// | InSync    | Removing until the fact is committed                                          |
    /// | Removing  | waits for the fact that is on its way                                         |
    /// | Closing   | waits for the outcome of the close; a fact recorded before it would be closed |
    ///
    /// It may come back in sync where it waited and others failed meanwhile.
    pub(crate) async fn remove_slot(self: &Rc<Self>, index: PortionIndex, whole: bool) {
        let mut waited = false;
        let after = loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.borrow_mut();
                let (stable, decided) = (state.stable, state.decided);
                let may_remove = !waited || state.may_remove(index, self.geometry.data());
                let slot = state.slot_mut(index);
                match slot.condition {
                    Condition::Suspect { .. } => return,
                    Condition::InSync if !may_remove => return,
                    Condition::Joining { fact, after, whole, .. } => {
                        sometimes!("F-4: a join failed");
                        slot.link = Link::Down;
                        slot.condition = Condition::Suspect { fact, after, whole };
                        state.forget_promises(index);
                        break None;
                    }
                    Condition::InSync => {
                        slot.link = Link::Down;
                        slot.condition = Condition::Removing;
                        break Some(if planted!("F-2/the-mark-is-too-high") {
                            decided
                        } else {
                            stable
                        });
                    }
                    Condition::Removing => {}
                    Condition::Closing { .. } => sometimes!("F-4: a portion failed while closing"),
                }
                if state.dead.is_some() {
                    return;
                }
            }
            waited = true;
            changed.await;
        };
        if planted!("F-2/answer-before-the-fact") {
            self.try_decide();
        }
        if let Some(after) = after {
            let layout = self.layout.clone();
            let kind = FactKind::Suspect { layout, slot: index, after, whole };
            let Ok(lcc) = self.lcc() else { return };
            match lcc.record_fact(self.grant, kind).await {
                Ok(fact) => {
                    let mut state = self.state.borrow_mut();
                    state.slot_mut(index).condition = Condition::Suspect { fact, after, whole };
                    state.forget_promises(index);
                    tracing::info!(group = %self.layout.group(), slot = %index, "removed a slot");
                    sometimes!("F-2: a portion was removed by a fact");
                }
                Err(dead) => {
                    self.kill(dead);
                    return;
                }
            }
        }
        self.after_slot_change();
    }

    /// What may go on once a slot is out or in.
    pub(crate) fn after_slot_change(self: &Rc<Self>) {
        self.state.borrow_mut().marks_due = true;
        if let Ok(lcc) = self.lcc() {
            lcc.marks_due(self);
        }
        self.try_decide();
        self.settle_stable();
        self.changed.notify_waiters();
    }
}

/// How long a slot may be silent before it is removed: a restarted process is back by then.
pub(crate) const REOPEN_WINDOW: Duration = Duration::from_millis(700);

/// How long a slot is waited for whose I/O server has no lease yet: one that lapsed while the global
/// controller changed is back by then.
pub(crate) const NOT_READY_WINDOW: Duration = Duration::from_secs(5);

/// How long a slot may lack what was decided while it cannot be removed: others that come back may
/// let it go.
const LOSS_WINDOW: Duration = Duration::from_secs(10);

/// Prepares that an I/O server may refuse, one after the other, before its slot is removed.
const REFUSALS_MAX: u8 = 8;

/// Pause between two attempts.
const REOPEN_PAUSE: Duration = Duration::from_millis(30);

/// Longest wait for the answer to an open.
const OPEN_WAIT: Duration = Duration::from_millis(2000);
