//! Writes that are answered from the local journal of the owner's server.
//! # Theory
//! ```text
//! first write   number, on its way -> fact `local copy` recorded -> record on the medium -> answered
//! next ones     number, on its way ------------------------------> record on the medium -> answered
//! stable        its record is not needed any more
//! a pause       nothing is needed: the fact is closed
//! ```
//! From the fact to its close the group is *busy*: one entry of the consensus log at its begin and one at
//! its end, whatever is written between. What lies between an answer and the cluster is as with writes
//! that are answered from memory (`ahead.rs`).
//! # States
//! ```text
//! None -first write-> Recording -committed-> Open -nothing needed, a pause-> Closing -closed-> None
//! ```
//! # Invariants
//! C1 A record is in a local journal only under a fact that is recorded.
//! C2 A fact is closed only when the cluster has all that was kept under it on its media.
//! C3 A group that is busy is not given up.
//! # Failure
//! The local journal does not take it, or there is none (a mount): it is answered when it is decided. The
//! owner ends: see `copies.rs`.
//! # Source
//! W-13; hole 24 and 45 of the design's reasons.

use std::rc::Rc;
use std::time::Duration;

use braid_terms::{FactKind, FactNumber, WriteNumber, planted, sometimes};
use braid_wire::operations::Operation;
use tokio::time::{Instant, timeout};

use super::{Dead, DeviceWrite, Group, GroupWrite, State, WriteError};
use crate::lcc::Lcc;
use crate::local::{Copy, NotKept};

/// How busy a group is.
pub(crate) struct Local {
    busy: Busy,
    /// Writes that wait for the fact or the medium.
    writers: u32,
    used: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Busy {
    None,
    Recording,
    Open(FactNumber),
    Closing(FactNumber),
}

impl Local {
    pub fn new() -> Self {
        Self { busy: Busy::None, writers: 0, used: Instant::now() }
    }

    /// Whether no fact is open, nor on its way.
    pub fn is_idle(&self) -> bool {
        self.busy == Busy::None && self.writers == 0
    }

    /// Whether this fact is its own, or may be.
    pub fn is_under(&self, fact: FactNumber) -> bool {
        match self.busy {
            Busy::None => false,
            Busy::Recording => true,
            Busy::Open(own) | Busy::Closing(own) => own == fact,
        }
    }
}

/// A write on its way to the local journal.
struct Writer(Rc<Group>);

impl Writer {
    fn begin(group: &Rc<Group>) -> Self {
        let local = &mut group.state.borrow_mut().local;
        local.writers += 1;
        local.used = Instant::now();
        Self(group.clone())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.state.borrow_mut().local.writers -= 1;
        self.0.changed.notify_waiters();
    }
}

impl Group {
    /// As `write`, of the first device, answered when it is in the local journal. Returns its number, and
    /// the device's length with it, in bytes.
    ///
    /// Errors: `WriteError`.
    pub async fn write_local(
        self: &Rc<Self>,
        change: GroupWrite,
    ) -> Result<(WriteNumber, u64), WriteError> {
        let (writes, operation) = (change.writes.clone(), change.operation);
        let (number, mut decided) = self.begin(change).await?;
        let length = {
            let mut state = self.state.borrow_mut();
            state.ahead.insert(number);
            state.lengths[0]
        };
        let lcc = self.lcc().map_err(|_| WriteError::OutcomeUnknown)?;
        if self.keep(&lcc, (number, operation), &writes).await.is_err() {
            sometimes!("W-13: a local journal did not take a write");
            self.state.borrow_mut().ahead.remove(&number);
            self.decided(number, decided).await?;
            return Ok((number, length));
        }
        if let Ok(Err(WriteError::NoSpace)) = decided.try_recv() {
            // It came to nothing before it was answered.
            self.state.borrow_mut().ahead_void.retain(|void| *void != number);
            return Err(WriteError::NoSpace);
        }
        if lcc.lease_valid() { Ok((number, length)) } else { Err(WriteError::OutcomeUnknown) }
    }

    async fn keep(
        self: &Rc<Self>,
        lcc: &Rc<Lcc>,
        (number, operation): (WriteNumber, Option<Operation>),
        writes: &[DeviceWrite],
    ) -> Result<(), NotKept> {
        if !lcc.local.is_usable() {
            return Err(NotKept);
        }
        let _writer = Writer::begin(self);
        let fact = match planted!("W-13/answer-before-the-fact") {
            true => FactNumber(u64::MAX),
            false => self.local_fact(lcc).await.ok_or(NotKept)?,
        };
        let (layout, home) = (self.layout.clone(), self.home.get());
        let part = |write: &DeviceWrite| {
            (write.at, u32::try_from(write.bytes.len()).expect("a request has at most 4 MiB"))
        };
        let parts = writes.iter().map(part).collect();
        let bytes: Vec<&[u8]> = writes.iter().map(|write| &write.bytes[..]).collect();
        lcc.local.keep(Copy { fact, number, layout, home, parts, operation }, &bytes).await?;
        self.state.borrow_mut().local.used = Instant::now();
        // The cluster may have been faster.
        self.settle_local(lcc, &self.state.borrow());
        Ok(())
    }

    /// The fact of the busy period, which begins where there is none. `None`: it ended.
    async fn local_fact(self: &Rc<Self>, lcc: &Rc<Lcc>) -> Option<FactNumber> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.borrow_mut();
                if state.dead.is_some() {
                    return None;
                }
                match state.local.busy {
                    Busy::Open(fact) => return Some(fact),
                    Busy::None => {
                        state.local.busy = Busy::Recording;
                        let (group, lcc, base) = (self.clone(), lcc.clone(), state.decided);
                        // A task: who waits may go away.
                        tokio::task::spawn_local(async move { group.begin_busy(&lcc, base).await });
                    }
                    Busy::Recording | Busy::Closing(_) => {}
                }
            }
            changed.await;
        }
    }

    async fn begin_busy(self: &Rc<Self>, lcc: &Rc<Lcc>, base: WriteNumber) {
        let layout = self.layout.clone();
        let kind = FactKind::LocalCopy { layout, server: lcc.id().server, base };
        lcc.note_busy(self);
        match lcc.record_fact(self.grant, kind).await {
            Ok(fact) => {
                self.state.borrow_mut().local.busy = Busy::Open(fact);
                self.changed.notify_waiters();
            }
            Err(dead) => self.kill(dead),
        }
    }

    /// Ends the busy period where nothing is needed of it, and nobody wrote for so long. Whether it is
    /// over.
    pub(crate) fn try_end_busy(self: &Rc<Self>, unused: Duration) -> bool {
        let Ok(lcc) = self.lcc() else { return true };
        let fact = {
            let mut state = self.state.borrow_mut();
            let local = &mut state.local;
            let is_needed = lcc.local.has(self.layout.group());
            match local.busy {
                Busy::None => return true,
                Busy::Open(fact)
                    if local.writers == 0 && !is_needed && unused <= local.used.elapsed() =>
                {
                    local.busy = Busy::Closing(fact);
                    fact
                }
                _ => return false,
            }
        };
        let group = self.clone();
        tokio::task::spawn_local(async move {
            match lcc.close_fact(fact, group.grant).await {
                Ok(()) => {
                    group.state.borrow_mut().local.busy = Busy::None;
                    lcc.local.rest();
                    group.changed.notify_waiters();
                }
                Err(dead) => group.kill(dead),
            }
        });
        false
    }

    /// Waits until nothing is in the local journal only, and the fact is closed; for when all is decided
    /// and stable, and nothing new comes.
    pub(crate) async fn busy_ended(self: &Rc<Self>) -> Result<(), Dead> {
        loop {
            let changed = self.changed.notified();
            if let Some(dead) = self.state.borrow().dead {
                return Err(dead);
            }
            if self.try_end_busy(Duration::ZERO) {
                return Ok(());
            }
            let _ = timeout(LOOK_AGAIN, changed).await;
        }
    }

    /// Whether writes are answered under this fact now, so that it lays nothing.
    pub(crate) fn is_busy_under(&self, fact: FactNumber) -> bool {
        self.state.borrow().local.is_under(fact)
    }

    /// What is on the media of the cluster need not be kept.
    pub(super) fn settle_local(&self, lcc: &Lcc, state: &State) {
        let settled = match planted!("W-13/kept-until-it-is-decided") {
            true => state.decided,
            false => state.stable,
        };
        lcc.local.settled_to(self.layout.group(), self.grant, settled);
    }
}

/// In case nobody tells.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
