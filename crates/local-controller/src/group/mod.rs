//! RAID controller of one group: its slots, cluster writes, marks.
//! # Theory
//! ```text
//! write()  row locks -> images (reading old rows where needed) -> number -> prepares to all slots
//!          -> promised by all in-sync participants, lower numbers decided -> decided -> answer
//!          -> synced at all in-sync participants, lower numbers stable -> stable -> marks
//! ```
//! A slot that does not answer is opened again for a while (its process may have been restarted),
//! then removed by a fact; what is in flight is decided by the others.
//! # Invariants
//! W1 Numbers are given in the order of submission, and decided in this order.
//! W2 A write is answered only when every in-sync participant has promised it, and k are in sync.
//! W3 A slot counts as removed only after its fact is committed.
//! # Source
//! W-1 to W-5, W-9, F-2.

mod ahead;
mod build;
mod clean;
mod copies;
mod heal;
mod images;
mod local;
mod loss;
pub(crate) mod open;
mod read;
pub(crate) mod repair;
mod repeat;
mod resolve;
mod row_locks;
mod seek;
mod slots;
mod verify;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::{Rc, Weak};

use braid_raid::{Code, Geometry};
use braid_terms::{
    DeviceId, DiskId, FactNumber, GrantNumber, GroupLayout, Incarnation, JournalPosition,
    PortionIndex, ServerId, WriteNumber,
};
use braid_wire::io::{Absent, Footprint, Missed, Participant, RecordKind};
use braid_wire::operations::{Operation, Operations};
use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use crate::disks::DiskUp;
use crate::lcc::Lcc;
pub(crate) use copies::Laid;
use images::SlotChange;
use local::Local;
use row_locks::{RowGuard, RowLocks};

/// A group that this LCC owns and has open.
pub struct Group {
    pub(crate) lcc: Weak<Lcc>,
    pub(crate) layout: GroupLayout,
    pub(crate) grant: GrantNumber,
    pub(crate) writer: Incarnation,
    pub(crate) geometry: Geometry,
    pub(crate) code: Code,
    pub(crate) home: Cell<DeviceId>,
    pub(crate) locks: Rc<RowLocks>,
    pub(crate) state: RefCell<State>,
    /// Told whenever a mark moved, a slot changed, or the group died.
    pub(crate) changed: Notify,
    /// When it was last used, by the LCC's counter.
    pub(crate) used: Cell<u64>,
}

pub(crate) struct State {
    pub slots: Vec<Slot>,
    /// The last number given.
    pub last: WriteNumber,
    pub decided: WriteNumber,
    pub stable: WriteNumber,
    /// Lengths as of the last number given, and as of the decided mark.
    pub lengths: Vec<u64>,
    pub decided_lengths: Vec<u64>,
    pub existing: u32,
    /// The last write of each of the latest grants before ours, in order. Source: W-9.
    pub ends: Vec<WriteNumber>,
    /// The latest changes of clients, up to the decided mark. Source: N-3.
    pub operations: Operations,
    pub pending: VecDeque<Pending>,
    pub unstable: VecDeque<Unstable>,
    /// What slots under a fact lack, as told at the open.
    pub missed: Vec<Missed>,
    /// Numbers that were answered and are not decided.
    pub ahead: BTreeSet<WriteNumber>,
    /// Those that were answered and came to nothing, and nobody was told.
    pub ahead_void: Vec<WriteNumber>,
    /// Its busy period, in which writes are answered from the local journal.
    pub local: Local,
    /// Open facts about local journals, as told at the open, and whose.
    pub copies: Vec<(FactNumber, ServerId)>,
    /// Ends of former grants went up, and the slots were not told.
    pub laid: bool,
    /// Why it takes nothing any more.
    pub dead: Option<Dead>,
    /// Marks moved that the slots have not heard.
    pub marks_due: bool,
    pub repairing: bool,
    /// A withdrawal is under way: nothing new is numbered.
    pub withdrawing: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dead {
    /// A newer grant exists, or our incarnation is invalid.
    LostOwnership,
    /// It was removed.
    Removed,
    /// It has another owner now, and nothing of it was in doubt. Source: O-6.
    GivenUp,
}

pub(crate) struct Slot {
    pub index: PortionIndex,
    pub disk: DiskId,
    pub condition: Condition,
    pub link: Link,
    /// The last record sent to it.
    pub prev: WriteNumber,
    /// Its I/O server knows nothing of the group: the next record makes it.
    pub unknown: bool,
    /// Its report was taken since the group was opened. Without one it is not read, and opened before
    /// the first write; it was silent, and nothing was in doubt.
    pub seen: bool,
    /// Not asked for at a clean open: it is opened when it is first touched. Source: O-8.
    pub untouched: bool,
    /// It was sent the ends of former grants, and the latest changes, under ours.
    pub knows_ends: bool,
    /// Prepares that it refused without a promise in between.
    pub refusals: u8,
    /// It was opened again, and lacks what was decided.
    pub lacks: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Condition {
    InSync,
    /// Its fact is on the way; it is still required.
    Removing,
    Suspect {
        fact: FactNumber,
        after: WriteNumber,
        whole: bool,
    },
    /// Required like one in sync, from that number on; the fact is still open.
    Joining {
        fact: FactNumber,
        after: WriteNumber,
        whole: bool,
        from: WriteNumber,
    },
    /// Joining, and whole again: the close of its fact is proposed. Until its outcome is known the
    /// slot stays required, for the fact may be gone already (hole 23).
    Closing {
        from: WriteNumber,
    },
}

impl Condition {
    /// Whether it gets records.
    pub fn takes_part(self) -> bool {
        match self {
            Self::Suspect { .. } => false,
            Self::Closing { .. } => !braid_terms::planted!("F-4/not-required-while-closing"),
            Self::InSync | Self::Removing | Self::Joining { .. } => true,
        }
    }

    /// Whether it is believed.
    pub fn in_sync(self) -> bool {
        matches!(self, Self::InSync | Self::Removing)
    }
}

#[derive(Clone)]
pub(crate) enum Link {
    /// Opened under our grant at this incarnation.
    Up(DiskUp),
    /// To be opened before its next use.
    Down,
    /// Being opened.
    Opening,
}

/// A numbered write that is not decided.
pub(crate) struct Pending {
    pub number: WriteNumber,
    pub kind: RecordKind,
    pub participants: Vec<Participant>,
    pub footprints: Vec<Footprint>,
    /// The change of a client that it is.
    pub operation: Option<Operation>,
    pub lengths: Vec<u64>,
    pub existing: u32,
    pub parts: BTreeMap<PortionIndex, Part>,
    pub done: Option<oneshot::Sender<Result<WriteNumber, WriteError>>>,
    pub locks: Option<RowGuard>,
}

pub(crate) struct Part {
    pub prev: WriteNumber,
    pub change: SlotChange,
    pub create: bool,
    /// Its record tells the ends of former grants.
    pub tells_ends: bool,
    /// Its record tells these latest changes of clients.
    pub operations: Option<Box<Operations>>,
    pub promised: Option<(Incarnation, JournalPosition)>,
}

/// A decided write that is not stable.
pub(crate) struct Unstable {
    pub number: WriteNumber,
    /// By slot: where it is in that journal; none where it is known to be on the medium.
    pub positions: BTreeMap<PortionIndex, (Incarnation, JournalPosition)>,
}

/// New bytes of one device.
#[derive(Clone, Debug)]
pub struct DeviceWrite {
    /// Which device of the group, 0 or 1.
    pub device_index: u8,
    /// First device byte.
    pub at: u64,
    /// The bytes.
    pub bytes: Bytes,
}

/// One atomic change of a group.
#[derive(Clone, Default, Debug)]
pub struct GroupWrite {
    /// New bytes; they extend the device where they go beyond its end.
    pub writes: Vec<DeviceWrite>,
    /// Device ranges of whole block rows (see `Group::punchable`) that give their space back.
    pub punches: Vec<(u8, std::ops::Range<u64>)>,
    /// New lengths in bytes, by device index; may cut or extend.
    pub lengths: Vec<(u8, u64)>,
    /// Somebody waits until it is stable: the disks are asked for that right behind its prepares, so
    /// that it takes one round trip. Source: W-9, DESIGN 13.
    pub stable_soon: bool,
    /// The change of a client that it is. Source: N-3.
    pub operation: Option<Operation>,
}

/// Why a change did not happen.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum WriteError {
    /// Another LCC owns the group now; nothing was changed.
    LostOwnership,
    /// Another LCC owns the group now, or the lease is over. Whether the change counts, the owner
    /// knows.
    OutcomeUnknown,
    /// A disk is full; nothing was changed.
    NoSpace,
    /// Too few portions answer.
    Unavailable(String),
    /// Old bytes of a row that was to be changed in part are lost.
    Lost(String),
    /// Beyond the largest device.
    TooBig,
    /// Writes that were answered were lost before they were on the media.
    HeldLost,
    /// A client sends it again, and whether it was done is not known any more.
    Forgotten,
}

/// Why bytes could not be read.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// Another LCC owns the group now, or the lease is over.
    LostOwnership,
    /// Too few portions answer.
    Unavailable(String),
    /// More is lost than the scheme tolerates.
    Lost(String),
}

impl Group {
    pub(crate) fn lcc(&self) -> Result<Rc<Lcc>, Dead> {
        self.lcc.upgrade().ok_or(Dead::LostOwnership)
    }

    /// Its layout.
    #[must_use]
    pub fn layout(&self) -> &GroupLayout {
        &self.layout
    }

    /// The grant under which it is owned.
    #[must_use]
    pub fn grant(&self) -> GrantNumber {
        self.grant
    }

    /// Length of a device in bytes, as of the decided mark.
    #[must_use]
    pub fn length(&self, device_index: u8) -> u64 {
        self.state.borrow().decided_lengths[usize::from(device_index)]
    }

    /// Length of a device in bytes with all writes that were called before.
    #[must_use]
    pub fn length_ahead(&self, device_index: u8) -> u64 {
        self.state.borrow().lengths[usize::from(device_index)]
    }

    /// The decided and the stable mark.
    #[must_use]
    pub fn marks(&self) -> (WriteNumber, WriteNumber) {
        let state = self.state.borrow();
        (state.decided, state.stable)
    }

    /// Slots that are not in sync.
    #[must_use]
    pub fn absent(&self) -> Vec<PortionIndex> {
        let state = self.state.borrow();
        let out = state.slots.iter().filter(|slot| !slot.condition.in_sync());
        out.map(|slot| slot.index).collect()
    }

    /// Whether nothing is in flight, unstable or untold, so that it may be forgotten.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        state.pending.is_empty()
            && state.unstable.is_empty()
            && state.ahead_void.is_empty()
            && !state.marks_due
            && !state.repairing
            && !state.withdrawing
            && state.local.is_idle()
    }

    /// Whether it still works.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.state.borrow().dead.is_none()
    }

    /// Whether some slot is under a fact.
    #[must_use]
    pub fn has_facts(&self) -> bool {
        let state = self.state.borrow();
        state.slots.iter().any(|slot| !slot.condition.in_sync())
    }

    /// The whole rows within a range of device bytes: what `punches` may name, as device bytes.
    #[must_use]
    pub fn punchable(&self, range: std::ops::Range<u64>) -> std::ops::Range<u64> {
        let unit = self.geometry.stripe_size().max(images::BLOCK * self.geometry.data() as u64);
        let start = range.start.next_multiple_of(unit);
        start..(range.end / unit * unit).max(start)
    }

    /// Ends it: what waits fails.
    pub(crate) fn kill(&self, dead: Dead) {
        let pending = {
            let mut state = self.state.borrow_mut();
            if state.dead.is_none() {
                state.dead = Some(dead);
            }
            std::mem::take(&mut state.pending)
        };
        for write in pending {
            if let Some(done) = write.done {
                let _ = done.send(Err(WriteError::LostOwnership));
            }
        }
        self.changed.notify_waiters();
        if let Ok(lcc) = self.lcc() {
            if dead == Dead::LostOwnership {
                lcc.note_lost(self.layout.group());
            }
            lcc.forget(self.layout.group(), self.grant);
            // What it leaves in the local journal is to be laid.
            lcc.local.bell.notify_one();
        }
    }
}

impl State {
    pub fn slot(&self, index: PortionIndex) -> &Slot {
        &self.slots[index.zero_based()]
    }

    pub fn slot_mut(&mut self, index: PortionIndex) -> &mut Slot {
        &mut self.slots[index.zero_based()]
    }

    pub fn in_sync(&self) -> usize {
        self.slots.iter().filter(|slot| slot.condition.in_sync()).count()
    }

    /// Whether k slots stay in sync and answer without this one, not counting others whose fact is on
    /// the way. One that does not answer may be back without what it held: then this one is needed
    /// (simulator, seed 2209 of three servers).
    pub fn may_remove(&self, index: PortionIndex, data: usize) -> bool {
        let others = self.slots.iter().filter(|slot| {
            let answers = matches!(slot.link, Link::Up(_));
            slot.index != index && slot.condition == Condition::InSync && answers
        });
        data <= others.count() || braid_terms::planted!("G-8/below-the-quorum")
    }

    /// Whether what was answered is surely still there: it is stable, or k slots in sync are as they were
    /// when they promised it. Of slots that were restarted this is not known before they are open again;
    /// those that were not touched since the group was opened had no part in it. Source: W-9.
    pub fn vouches(&self, data: usize) -> bool {
        let answers = |slot: &&Slot| match &slot.link {
            Link::Up(up) => !up.client.is_closed(),
            Link::Down | Link::Opening => slot.untouched || !slot.seen,
        };
        let in_sync = self.slots.iter().filter(|slot| slot.condition.in_sync());
        self.unstable.is_empty()
            || data <= in_sync.filter(answers).count()
            || braid_terms::planted!("W-9/what-was-lost-is-shown")
    }

    /// Whether every slot in sync has answered, and those that lack what was decided are too many to go
    /// on without them: no wait can bring it back.
    pub fn is_lost_for_good(&self, data: usize) -> bool {
        let is_settled = |slot: &Slot| match slot.condition {
            Condition::InSync => matches!(slot.link, Link::Up(_)) || slot.lacks,
            Condition::Suspect { .. } | Condition::Joining { .. } => true,
            Condition::Removing | Condition::Closing { .. } => false,
        };
        let has_all = |slot: &&Slot| slot.condition == Condition::InSync && !slot.lacks;
        self.slots.iter().all(is_settled) && self.slots.iter().filter(has_all).count() < data
    }

    /// What a removed slot promised is missed now; it must not hold the stable mark once it joins.
    pub fn forget_promises(&mut self, index: PortionIndex) {
        for write in &mut self.unstable {
            write.positions.remove(&index);
        }
    }

    /// What the slots are told of those under a fact.
    pub fn absent(&self) -> Vec<Absent> {
        let absent = self.slots.iter().filter_map(|slot| match slot.condition {
            Condition::InSync | Condition::Removing => None,
            Condition::Suspect { .. } => Some(Absent { slot: slot.index, joining_from: None }),
            Condition::Joining { from, .. } | Condition::Closing { from } => {
                Some(Absent { slot: slot.index, joining_from: Some(from) })
            }
        });
        absent.collect()
    }
}

impl From<Dead> for WriteError {
    fn from(_: Dead) -> Self {
        Self::LostOwnership
    }
}

impl From<Dead> for ReadError {
    fn from(_: Dead) -> Self {
        Self::LostOwnership
    }
}
