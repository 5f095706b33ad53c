//! Changes of clients that are sent again, answered from what was done.
//! # Theory
//! See `braid_wire::operations`: records name the changes that they are, so the portions tell a new
//! owner, and the owner itself remembers more of its own than a slot keeps. No message is sent for it.
//! ```text
//! the change is       answer
//! done                as the first time
//! under way           when it is decided
//! none of these       done now, unless it was sent before and might be among those forgotten
//! ```
//! # Source
//! N-3, L2 of `wire::lcc`.

use braid_terms::{WriteNumber, planted, sometimes};
use braid_wire::lcc::FileChange;
use braid_wire::operations::{Done, OPERATIONS_MAX, Operation, Operations};

use super::{Group, State, WriteError};

/// What slots are told that do not know the latest changes.
pub(super) struct Told {
    operations: Operations,
    /// The newest write that is under way, and of which a slot that joins would otherwise not hear.
    undecided: WriteNumber,
}

impl Told {
    /// To a slot; one that joins lacks what was written before, and kept its own list of before.
    pub fn to(&self, joins: bool) -> Option<Box<Operations>> {
        let mut told = self.operations.clone();
        if joins {
            told.forgotten = told.forgotten.max(self.undecided);
        }
        (joins || !told.is_empty()).then(|| Box::new(told))
    }
}

impl State {
    pub(super) fn operations_to_tell(&self) -> Told {
        let mut operations = self.operations.clone();
        operations.limit(OPERATIONS_MAX);
        let changes = self.pending.iter().filter(|write| write.operation.is_some());
        let undecided = changes.map(|write| write.number).max().unwrap_or_default();
        Told { operations, undecided }
    }

    /// A change of a client is decided.
    pub(super) fn note_done(&mut self, number: WriteNumber, operation: Operation) {
        self.operations.note(number, operation);
        self.operations.limit(KEPT_MAX);
    }
}

impl Group {
    /// What became of a change, if anything; waits until that is decided.
    ///
    /// Errors: `Forgotten` where it may have been done and is not to be done again; `LostOwnership`.
    pub(crate) async fn repeated(&self, change: &FileChange) -> Result<Option<Done>, WriteError> {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.borrow();
                if let Some(dead) = state.dead {
                    return Err(dead.into());
                }
                let id = change.operation;
                if planted!("N-3/a-repeated-write-is-done-again") {
                    return Ok(None);
                }
                if let Some(done) = state.operations.find(id) {
                    sometimes!("N-3: a write that was sent again had been done");
                    return Ok(Some(*done));
                }
                let is_it = |operation: &Operation| operation.id == id;
                let is_under_way =
                    state.pending.iter().any(|write| write.operation.as_ref().is_some_and(is_it));
                if !is_under_way {
                    let may_be_done = change.again && change.since < state.operations.forgotten;
                    return if may_be_done || state.operations.is_answered(id) {
                        sometimes!("N-3: a write that was sent again is forgotten");
                        Err(WriteError::Forgotten)
                    } else {
                        Ok(None)
                    };
                }
            }
            changed.await;
        }
    }
}

/// Changes of a group that its owner remembers: more than any number of clients has under way.
const KEPT_MAX: usize = 512;
