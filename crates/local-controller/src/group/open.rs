//! Opening a group: the new owner fences every portion, and settles what was in flight.
//! # Theory
//! ```text
//! facts of the grant -> Open at all slots without a fact -> reports
//!   resolve()           -> what counts
//!   nothing in doubt    -> silent slots are asked again before the first write, and not read
//!   anything in doubt   -> silent slots get facts, if k remain in sync; outcome record at all
//!                          in-sync slots, stable, before the first answer
//! ```
//! # Source
//! W-6, W-10, O-5, F-5.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use braid_raid::{Code, Geometry};
use braid_terms::{
    DeviceId, Fact, FactKind, GrantNumber, GroupLayout, LEASE_MS, PortionIndex, WriteNumber,
    planted, sometimes,
};
use braid_wire::io::{FileState, Missed, RecordKind, Report};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::images::{Images, slot_bit};
use super::local::Local;
use super::resolve::{Counts, Resolution, resolve};
use super::slots::{NOT_READY_WINDOW, Opened, REOPEN_WINDOW};
use super::{Condition, Dead, Group, Link, RowLocks, Slot, State};
use crate::disks::DiskUp;
use crate::lcc::Lcc;

/// Why a group could not be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// A newer grant exists.
    LostOwnership,
    /// Too few portions answer now.
    Unavailable(String),
    /// Something is in doubt that was written under this very grant: what settles it needs a
    /// higher one.
    GrantUsed,
    /// No portion knows it.
    Unknown,
    /// The layout is none.
    BadLayout(String),
}

type Reports = BTreeMap<PortionIndex, (Report, DiskUp)>;

impl Group {
    /// A group that was never written: nothing is asked, its slots are made by their first records.
    pub(crate) fn fresh(
        lcc: &Rc<Lcc>,
        layout: GroupLayout,
        (grant, facts): (GrantNumber, &[Fact]),
        home: DeviceId,
    ) -> Result<Rc<Self>, OpenError> {
        let group = Self::new(lcc, layout, grant, home, true)?;
        group.take_copies(facts);
        {
            let mut state = group.state.borrow_mut();
            for slot in &mut state.slots {
                if let Some(up) = lcc.disks.up(slot.disk) {
                    slot.link = Link::Up(up);
                }
            }
        }
        Ok(group)
    }

    pub(super) fn new(
        lcc: &Rc<Lcc>,
        layout: GroupLayout,
        grant: GrantNumber,
        home: DeviceId,
        unknown: bool,
    ) -> Result<Rc<Self>, OpenError> {
        let bad = |error: &dyn std::fmt::Display| OpenError::BadLayout(error.to_string());
        layout.check().map_err(|error| bad(&error))?;
        let geometry = Geometry::of_layout(&layout).map_err(|error| bad(&error))?;
        let code = Code::of_scheme(layout.scheme).map_err(|error| bad(&error))?;
        let devices = layout.devices.len();
        let slots = layout.slots().map(|index| Slot {
            index,
            disk: layout.disk(index),
            condition: Condition::InSync,
            link: Link::Down,
            prev: WriteNumber::NONE,
            unknown,
            seen: unknown,
            untouched: false,
            knows_ends: false,
            refusals: 0,
            lacks: false,
        });
        let state = State {
            slots: slots.collect(),
            last: WriteNumber::NONE,
            decided: WriteNumber::NONE,
            stable: WriteNumber::NONE,
            lengths: vec![0; devices],
            decided_lengths: vec![0; devices],
            existing: 0,
            ends: Vec::new(),
            operations: Default::default(),
            pending: VecDeque::new(),
            unstable: VecDeque::new(),
            missed: Vec::new(),
            ahead: BTreeSet::new(),
            ahead_void: Vec::new(),
            local: Local::new(),
            copies: Vec::new(),
            laid: false,
            dead: None,
            marks_due: false,
            repairing: false,
            withdrawing: false,
        };
        Ok(Rc::new(Self {
            lcc: Rc::downgrade(lcc),
            writer: lcc.incarnation(),
            layout,
            grant,
            geometry,
            code,
            home: Cell::new(home),
            locks: Rc::new(RowLocks::default()),
            state: RefCell::new(state),
            changed: Notify::new(),
            used: Cell::new(0),
        }))
    }

    /// Takes a group over under a grant. Source: W-6.
    ///
    /// One that no slot knows is `Unknown`, or open and empty where `may_be_new` is said and some
    /// slot is under a fact, so that the slot is made to forget what it may have.
    pub(crate) async fn open(
        lcc: &Rc<Lcc>,
        layout: GroupLayout,
        (grant, facts): (GrantNumber, &[Fact]),
        may_be_new: bool,
        end: Instant,
    ) -> Result<Rc<Self>, OpenError> {
        let layout = newest_layout(layout, facts);
        let group = Self::new(lcc, layout, grant, DeviceId(0), false)?;
        group.take_facts(facts);
        let (reports, silent) = group.open_all(end).await?;
        for (slot, (report, _)) in &reports {
            let kept: Vec<_> = report.records.iter().map(|head| head.record.number).collect();
            tracing::debug!(
                group = %group.layout.group(), %grant, %slot, incarnation = %report.incarnation,
                last = %report.last, stable = %report.stable, ?kept, "told at an open"
            );
        }
        if !silent.is_empty() {
            tracing::debug!(group = %group.layout.group(), ?silent, "silent at an open");
        }
        let made = reports.values().any(|(report, _)| report.layout.is_some());
        // Every write has a part at any k slots in sync (lemma of O-5): there was none.
        if !(made || may_be_new && group.has_facts()) {
            return Err(OpenError::Unknown);
        }
        let only: BTreeMap<PortionIndex, Report> =
            reports.iter().map(|(slot, (report, _))| (*slot, report.clone())).collect();
        let resolution = group.judge(&only);
        if resolution.needs_outcome && grant <= resolution.ends_at.grant {
            return Err(OpenError::GrantUsed);
        }
        let lost = group.lost_slots(&only, &resolution);
        // A fact for some of them would not help: the others cannot replace what is lost, and who looks
        // after the facts could never close them (simulator, seed 50179 of twelve servers).
        if !lost.is_empty() && reports.len() < lost.len() + group.geometry.data() {
            let slots: Vec<_> = lost.keys().map(|slot| slot.to_string()).collect();
            let reason =
                format!("portions {} lack what the others cannot replace", slots.join(", "));
            return Err(OpenError::Unavailable(reason));
        }
        if resolution.needs_outcome || !lost.is_empty() {
            group.state.borrow_mut().stable = resolution.settled;
            let removals = silent.into_iter().map(|slot| group.remove_slot(slot, false));
            futures_util::future::join_all(removals).await;
            group.alive()?;
        }
        group.take_reports(reports, &resolution);
        for (slot, whole) in lost {
            if !group.state.borrow().may_remove(slot, group.geometry.data()) {
                let reason = format!("portion {slot} lacks what the others cannot replace");
                return Err(OpenError::Unavailable(reason));
            }
            tracing::warn!(group = %group.layout.group(), %slot, "a portion lacks what counts");
            sometimes!("W-6: a portion had lost what counts");
            group.remove_slot(slot, whole).await;
            group.alive()?;
        }
        if resolution.needs_outcome {
            group.write_outcome(&resolution).await?;
        } else if group.has_facts() {
            group.state.borrow_mut().marks_due = true;
            lcc.marks_due(&group);
        }
        group.alive()?;
        Ok(group)
    }

    fn alive(&self) -> Result<(), OpenError> {
        if self.is_alive() { Ok(()) } else { Err(OpenError::LostOwnership) }
    }

    fn take_facts(&self, facts: &[Fact]) {
        self.take_copies(facts);
        let mut state = self.state.borrow_mut();
        for fact in facts {
            if let FactKind::Suspect { layout, slot, after, whole } = &fact.kind
                && layout.group() == self.layout.group()
                && layout.generation == self.layout.generation
                && usize::from(slot.0) <= state.slots.len()
                && slot.0 >= 1
            {
                let fact = fact.number;
                let condition = Condition::Suspect { fact, after: *after, whole: *whole };
                state.slot_mut(*slot).condition = condition;
            }
        }
    }

    /// Reports of all slots without a fact, of k at least, and those that stay silent.
    async fn open_all(&self, end: Instant) -> Result<(Reports, Vec<PortionIndex>), OpenError> {
        let answer_window = Instant::now() + ANSWER_WINDOW;
        let window = Instant::now() + REOPEN_WINDOW;
        let not_ready_window = Instant::now() + NOT_READY_WINDOW;
        let mut reports = Reports::new();
        let mut unusable = BTreeSet::new();
        let not_ready = RefCell::new(BTreeSet::new());
        let wanted: Vec<PortionIndex> = {
            let state = self.state.borrow();
            let in_sync = state.slots.iter().filter(|slot| slot.condition.in_sync());
            in_sync.map(|slot| slot.index).collect()
        };
        let opens = wanted.iter().map(|slot| self.open_until_answered(*slot, &not_ready));
        let mut opens: FuturesUnordered<_> = opens.collect();
        loop {
            // One that stands still must not hold up the others: its call may take seconds.
            let answered = async {
                match opens.next().await {
                    Some(answered) => answered,
                    None => std::future::pending().await,
                }
            };
            if let Ok((slot, opened)) = timeout(LOOK_AGAIN, answered).await {
                match opened {
                    Opened::Report(report, up) => {
                        reports.insert(slot, (*report, up));
                    }
                    Opened::Fenced => return Err(OpenError::LostOwnership),
                    Opened::Unreadable(_)
                    | Opened::Unusable
                    | Opened::NotReady
                    | Opened::Silent => {
                        unusable.insert(slot);
                    }
                }
            }
            self.alive()?;
            if reports.len() == wanted.len() {
                return Ok((reports, Vec::new()));
            }
            let now = Instant::now();
            let silent: Vec<PortionIndex> =
                wanted.iter().copied().filter(|slot| !reports.contains_key(slot)).collect();
            let mut usable = silent.iter().filter(|slot| !unusable.contains(slot));
            let is_dead = |slot| self.lcc().is_ok_and(|lcc| lcc.is_dead(self.layout.disk(slot)));
            let may_return = usable.any(|slot| !is_dead(*slot));
            // It is alive, and may be the only one with an answered write that the others lost.
            let wakes_up = now < not_ready_window && !not_ready.borrow().is_empty();
            // A new global controller has not heard all disks: who is alive says so within a moment.
            let are_gone_for = |span| {
                let is_gone = |lcc: &Lcc, slot| lcc.is_dead_for(self.layout.disk(slot), span);
                self.lcc().is_ok_and(|lcc| silent.iter().all(|slot| is_gone(&lcc, *slot)))
            };
            let is_told = (answer_window <= now || are_gone_for(LONG_DEAD)) && !may_return;
            let waited = !wakes_up && (window <= now || is_told);
            // Those that were restarted may all lack the same answered write, and say nothing of it: the
            // others are waited for, by the first group that is opened or since they are gone.
            let vouched = not_ready_window <= now
                || are_gone_for(NOT_READY_WINDOW)
                || self.geometry.data() <= reports.len() - restarted(&reports)
                || planted!("W-6/restarted-portions-are-believed")
                || planted!("W-6/the-silent-are-not-waited-for");
            if waited && !vouched {
                sometimes!("W-6: restarted portions alone are not believed");
            }
            if waited && vouched && self.geometry.data() <= reports.len() {
                // What restarted slots lost may have been answered: while a silent one may still
                // have it, nothing is judged without that (simulator, seed 118).
                let only = reports.iter().map(|(slot, (report, _))| (*slot, report.clone()));
                let settled = !(self.judge(&only.collect()).beyond_tolerance
                    || self.may_be_forgotten(&reports))
                    || planted!("W-6/the-silent-are-not-waited-for");
                if !settled {
                    sometimes!("W-6: the silent are waited for");
                }
                if settled {
                    return Ok((reports, silent));
                }
                if end <= now {
                    return Err(OpenError::Unavailable(format!(
                        "portions of device {} lost what only silent ones may still have",
                        self.layout.group()
                    )));
                }
            }
            if end <= now {
                let (count, needed) = (reports.len(), self.geometry.data());
                return Err(OpenError::Unavailable(format!(
                    "{count} of at least {needed} portions of device {} answer",
                    self.layout.group()
                )));
            }
        }
    }

    /// Whether slots that know nothing of the group may all have lost it: no more are left out than
    /// the scheme tolerates.
    fn may_be_forgotten(&self, reports: &Reports) -> bool {
        let known = reports.values().any(|(report, _)| report.layout.is_some());
        let state = self.state.borrow();
        let removed = state.slots.iter().filter(|slot| !slot.condition.in_sync()).count();
        !known && removed + reports.len() <= self.geometry.parity()
    }

    /// What counts by these reports; slots without one are taken for lost.
    fn judge(&self, reports: &BTreeMap<PortionIndex, Report>) -> Resolution {
        let counts = Counts {
            data: self.geometry.data(),
            parity: self.geometry.parity(),
            devices: self.layout.devices.len(),
            removed: self.layout.scheme.portions() - reports.len(),
        };
        resolve(reports, counts)
    }

    /// Opens a slot as often as it takes; says meanwhile whether it waits for its lease.
    async fn open_until_answered(
        &self,
        slot: PortionIndex,
        not_ready: &RefCell<BTreeSet<PortionIndex>>,
    ) -> (PortionIndex, Opened) {
        loop {
            let opened = self.open_slot(slot).await;
            match opened {
                Opened::NotReady => not_ready.borrow_mut().insert(slot),
                _ => not_ready.borrow_mut().remove(&slot),
            };
            match opened {
                Opened::NotReady | Opened::Silent => sleep(LOOK_AGAIN).await,
                opened => return (slot, opened),
            }
        }
    }

    /// In-sync slots that lack something: a record that counts, what their journal lost, or a
    /// portion file that the others know to exist; and whether all of it is to be rebuilt.
    fn lost_slots(
        &self,
        reports: &BTreeMap<PortionIndex, Report>,
        resolution: &Resolution,
    ) -> BTreeMap<PortionIndex, bool> {
        let mut lost: BTreeMap<_, _> =
            resolution.lost_at.iter().map(|slot| (*slot, false)).collect();
        if planted!("W-6/what-was-lost-is-not-rebuilt") {
            lost.clear();
        }
        for (slot, report) in reports {
            let exists = resolution.existing & slot_bit(*slot) != 0;
            let whole = is_gone(report, exists, resolution.settled);
            if report.damaged_after.is_some() || whole {
                lost.insert(*slot, whole);
            }
        }
        lost
    }

    fn take_reports(&self, reports: Reports, resolution: &Resolution) {
        let mut state = self.state.borrow_mut();
        let mut missed: BTreeMap<PortionIndex, Vec<_>> = BTreeMap::new();
        for (index, (report, up)) in reports {
            let slot = state.slot_mut(index);
            slot.link = Link::Up(up);
            slot.prev = report.last;
            slot.unknown = report.layout.is_none();
            slot.seen = true;
            if report.home != DeviceId(0) {
                self.home.set(report.home);
            }
            for part in report.missed {
                missed.entry(part.slot).or_default().extend(part.ranges);
            }
        }
        state.missed = missed.into_iter().map(|(slot, ranges)| Missed { slot, ranges }).collect();
        state.lengths.clone_from(&resolution.lengths);
        state.decided_lengths.clone_from(&resolution.lengths);
        state.existing = resolution.existing;
        state.ends.clone_from(&resolution.ends);
        state.operations.clone_from(&resolution.operations);
        state.last = resolution.ends_at;
        state.decided = resolution.ends_at;
        state.stable = resolution.settled;
    }

    /// Writes down where what came before ends, and waits until that is stable. Source: W-6(5).
    async fn write_outcome(self: &Rc<Self>, resolution: &Resolution) -> Result<(), OpenError> {
        let kind = RecordKind::Outcome { ends_at: resolution.ends_at };
        let (number, decided) = self
            .submit(kind, Images::default(), resolution.lengths.clone(), None)
            .map_err(|_: Dead| OpenError::LostOwnership)?;
        let lost = |_| OpenError::LostOwnership;
        decided.await.map_err(|_| OpenError::LostOwnership)?.map_err(lost)?;
        sometimes!("W-6: an outcome was written");
        if !planted!("W-6/answer-before-the-outcome-is-stable") {
            self.stable(number).await.map_err(lost)?;
        }
        // Slots tell lengths as of the last write that they had part in: after this one, all tell
        // the same, whichever are left.
        let nothing = Images { to_all: true, ..Images::default() };
        let _ = self.submit(RecordKind::Write, nothing, resolution.lengths.clone(), None);
        tracing::info!(
            group = %self.layout.group(),
            ends_at = %resolution.ends_at,
            "settled what was in flight"
        );
        Ok(())
    }
}

/// Slots whose I/O server was restarted since the newest record in doubt that names them: after a power
/// cut they may lack later ones, of which nobody else who answers knows.
fn restarted(reports: &Reports) -> usize {
    let heads = || reports.values().flat_map(|(report, _)| &report.records);
    let is_restarted = |slot: &PortionIndex, report: &Report| {
        let asked = heads().filter_map(|head| {
            let mut participants = head.record.participants.iter();
            let of_slot = participants.find(|participant| participant.slot == *slot)?;
            Some((head.record.number, of_slot.incarnation))
        });
        asked.max().is_some_and(|(_, incarnation)| incarnation != report.incarnation)
    };
    reports.iter().filter(|(slot, (report, _))| is_restarted(slot, report)).count()
}

/// Whether a slot cannot be built upon: its portion files are gone or unreadable, or its journal
/// lost what was stable. Source: F-2, S-3.
pub(crate) fn is_gone(report: &Report, exists: bool, stable: WriteNumber) -> bool {
    report.files.contains(&FileState::Unreadable)
        || (exists
            && !planted!("F-5/an-absent-file-is-zeros")
            && (report.layout.is_none() || report.files.contains(&FileState::None)))
        || report.damaged_after.is_some_and(|after| after < stable)
}

/// The layout of the highest generation that is known.
fn newest_layout(hint: GroupLayout, facts: &[Fact]) -> GroupLayout {
    let known = facts.iter().filter_map(|fact| match &fact.kind {
        FactKind::Suspect { layout, .. } if layout.group() == hint.group() => Some(layout),
        _ => None,
    });
    let newest = known.max_by_key(|layout| layout.generation).cloned();
    match newest {
        Some(layout) if hint.generation < layout.generation => layout,
        _ => hint,
    }
}

/// An I/O server that is alive answers within this, if only that it waits for its lease.
const ANSWER_WINDOW: Duration = Duration::from_millis(200);

/// A disk whose I/O server held no lease for so long is gone, whoever the global controller is.
const LONG_DEAD: Duration = Duration::from_millis(LEASE_MS);

/// How soon a slot that did not answer is asked again, and what is known is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(30);
