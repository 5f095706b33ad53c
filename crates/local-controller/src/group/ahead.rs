//! Writes that are answered from memory, before they are decided.
//! # Theory
//! ```text
//! write_ahead()  as write(), but answered when it has its number and is under way
//! the next look  waits until all that was answered is decided: who was answered is seen by everyone
//! sync           waits for it, and says where it came to nothing (`loss.rs`)
//! ```
//! Its number is given in the order of all writes, so that what survives is a prefix like any other.
//! # Invariants
//! A1 What was answered is seen by every later look at the device, while its owner lives.
//! A2 What was answered and did not survive is told by the next sync.
//! # Failure
//! The end of this process may take it all. Too many bytes in memory: it is answered when decided.
//! # Source
//! DESIGN 4, acknowledgement modes (1); W-9.

use std::rc::Rc;

use braid_terms::{WriteNumber, planted};

use super::{Dead, Group, GroupWrite, State, WriteError};

impl Group {
    /// As `write`, answered when it has its number. Returns that, and the first device's length with
    /// it, in bytes.
    ///
    /// Errors: `WriteError`.
    pub async fn write_ahead(
        self: &Rc<Self>,
        change: GroupWrite,
    ) -> Result<(WriteNumber, u64), WriteError> {
        let bytes: usize = change.writes.iter().map(|write| write.bytes.len()).sum();
        let (number, decided) = self.begin(change).await?;
        let length = {
            let mut state = self.state.borrow_mut();
            state.ahead.insert(number);
            state.lengths[0]
        };
        let lcc = self.lcc().map_err(|_| WriteError::OutcomeUnknown)?;
        if BYTES_MAX < lcc.ahead_bytes.get() + bytes {
            self.state.borrow_mut().ahead.remove(&number);
            self.decided(number, decided).await?;
            return Ok((number, length));
        }
        lcc.ahead_bytes.set(lcc.ahead_bytes.get() + bytes);
        let of = lcc.clone();
        tokio::task::spawn_local(async move {
            // What became of it the group knows, or the history that its next owner finds.
            let _ = decided.await;
            of.ahead_bytes.set(of.ahead_bytes.get() - bytes);
        });
        if lcc.lease_valid() { Ok((number, length)) } else { Err(WriteError::OutcomeUnknown) }
    }

    /// Waits until all that was answered is decided.
    pub(crate) async fn ahead_settled(&self) -> Result<(), Dead> {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.borrow();
                if let Some(dead) = state.dead {
                    return Err(dead);
                }
                if state.ahead.is_empty() || planted!("W-12/what-was-answered-is-not-seen") {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    /// A number is decided, as what it was or as void.
    pub(super) fn note_ahead(state: &mut State, number: WriteNumber, void: bool) {
        if state.ahead.remove(&number) && void {
            state.ahead_void.push(number);
        }
    }

    /// Whether something up to `number` was answered and is void; told once.
    pub(super) fn take_void(&self, number: WriteNumber) -> bool {
        let mut state = self.state.borrow_mut();
        let before = state.ahead_void.len();
        state.ahead_void.retain(|void| number < *void);
        state.ahead_void.len() < before
    }
}

/// Bytes of an LCC that may be answered and not decided.
const BYTES_MAX: usize = 64 << 20;
