//! Answered writes of an owner that is gone, in the local journal of its server.
//! # Theory
//! While a fact says that there may be some, nobody changes the group: reads show what the cluster has.
//! The server that is back lays what the cluster lacks, as itself the owner or through the owner.
//! ```text
//! record's number    its fact is open    what becomes of it
//! counts             any                 nothing: the cluster has it
//! lost               yes                 written again, under a new number of the owner
//! lost               no                  a conflict: others may have written; a file of its own
//! ```
//! What was laid is found by a sync: the end of its grant goes up, as far as no write is left out
//! (`loss.rs`). The close of the fact says that all of it is stable.
//! # Invariants
//! P1 Nothing is laid unless the fact under which it was answered is open.
//! P2 While a fact is open that is not its own, an owner changes nothing but by laying.
//! # Failure
//! A stop half way: all is laid again from the first, in the same order, for nobody wrote meanwhile.
//! # Source
//! W-13; hole 24 of the design's reasons.

use std::rc::Rc;

use braid_terms::{Fact, FactKind, FactNumber, ServerId, WriteNumber, planted, sometimes};
use braid_wire::io::{ENDS_MAX, RecordKind};
use braid_wire::operations::Operation;

use super::images::Images;
use super::loss::is_lost;
use super::{DeviceWrite, Group, GroupWrite, WriteError};
use crate::lcc::Lcc;
use crate::local::Kept;

/// What became of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Laid {
    /// The cluster has it.
    There,
    /// It may not be laid.
    Conflict,
}

impl Group {
    /// Notes the open facts about local journals.
    pub(super) fn take_copies(&self, facts: &[Fact]) {
        let copies = facts.iter().filter_map(|fact| match &fact.kind {
            FactKind::LocalCopy { layout, server, .. } if layout.group() == self.layout.group() => {
                Some((fact.number, *server))
            }
            _ => None,
        });
        self.state.borrow_mut().copies = copies.collect();
    }

    /// Whether it may be changed. Source: W-13.
    ///
    /// Errors: `Unavailable` while bytes may be in a local journal only.
    pub(crate) fn check_no_copies(&self) -> Result<(), WriteError> {
        match self.state.borrow().copies.first() {
            Some((_, server)) if !planted!("W-13/written-over-a-local-copy") => {
                Err(WriteError::Unavailable(away(self, *server)))
            }
            _ => Ok(()),
        }
    }

    /// Whether some fact about a local journal is open, its own too.
    pub(crate) fn has_copies(&self) -> bool {
        let state = self.state.borrow();
        !state.copies.is_empty() || !state.local.is_idle()
    }

    /// The server whose local journal may have a write that is not in the cluster.
    pub(super) fn may_come_back(&self) -> Result<(), WriteError> {
        match self.state.borrow().copies.first() {
            Some((_, server)) => Err(WriteError::Unavailable(away(self, *server))),
            None => Ok(()),
        }
    }

    /// Whether a write of a local journal is in the cluster.
    pub(crate) fn has_number(&self, number: WriteNumber) -> bool {
        let state = self.state.borrow();
        if number.grant == self.grant {
            return number <= state.last;
        }
        !is_lost(number, self.grant, &state.ends)
    }

    /// Lays a write that the cluster lacks.
    ///
    /// Errors: `WriteError`; then it is laid again later, after all before it.
    pub(crate) async fn lay(
        self: &Rc<Self>,
        (fact, number): (FactNumber, WriteNumber),
        (writes, operation): (Vec<DeviceWrite>, Option<Operation>),
    ) -> Result<Laid, WriteError> {
        let is_open = self.state.borrow().copies.iter().any(|(open, _)| *open == fact);
        if !is_open && !planted!("W-13/laid-without-its-fact") {
            sometimes!("W-13: a local copy was in conflict");
            return Ok(Laid::Conflict);
        }
        tracing::info!(group = %self.layout.group(), %number, "laid from a local journal");
        sometimes!("W-13: a local copy was laid");
        self.write(GroupWrite { writes, operation, ..GroupWrite::default() }).await?;
        let mut state = self.state.borrow_mut();
        if number.grant < self.grant {
            raise_end(&mut state.ends, number);
            state.laid = true;
        }
        Ok(Laid::There)
    }

    /// All that a local journal had is laid, or is given up: it is made stable, and the fact is closed.
    ///
    /// Errors: `WriteError`; the fact is open then.
    pub(crate) async fn end_copy(self: &Rc<Self>, fact: FactNumber) -> Result<(), WriteError> {
        let lcc = self.lcc()?;
        if !self.state.borrow().copies.iter().any(|(open, _)| *open == fact) {
            // One that was recorded when its group had been lost already, so that nothing was answered
            // under it, is not known here.
            let is_open = lcc.is_open_fact(self.layout.group(), fact).await;
            let is_open = is_open.map_err(|_| WriteError::Unavailable("the facts".into()))?;
            return if is_open && !self.is_busy_under(fact) {
                self.close_copy(&lcc, fact).await
            } else {
                Ok(())
            };
        }
        if self.state.borrow().laid {
            self.may_number().await?;
            let lengths = {
                let mut state = self.state.borrow_mut();
                state.laid = false;
                state.slots.iter_mut().for_each(|slot| slot.knows_ends = false);
                state.lengths.clone()
            };
            // All slots are told which ends went up.
            let nothing = Images { to_all: true, ..Images::default() };
            let (number, decided) = self.submit(RecordKind::Write, nothing, lengths, None)?;
            self.decided(number, decided).await?;
        }
        self.pending_settled().await?;
        self.sync().await?;
        self.close_copy(&lcc, fact).await?;
        self.state.borrow_mut().copies.retain(|(open, _)| *open != fact);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn close_copy(self: &Rc<Self>, lcc: &Lcc, fact: FactNumber) -> Result<(), WriteError> {
        let closed = lcc.close_fact(fact, self.grant).await;
        closed.map_err(|dead| {
            self.kill(dead);
            WriteError::LostOwnership
        })
    }

    /// Lays what the local journal of this LCC has of the group, before anybody uses it.
    ///
    /// Errors: `WriteError`.
    pub(crate) async fn lay_own(self: &Rc<Self>, lcc: &Lcc) -> Result<(), WriteError> {
        let device = self.layout.group();
        let kept: Vec<Kept> = lcc.local.of(device);
        // Judged before anything is laid: its own numbers may be those of records.
        let lost: Vec<_> = kept
            .into_iter()
            .filter(|kept| !kept.is_conflict && !self.has_number(kept.copy.number))
            .collect();
        let mut conflicts = Vec::new();
        for kept in &lost {
            let copy = &kept.copy;
            let writes = lcc.local.writes_of(kept).map_err(|error| {
                WriteError::Unavailable(format!("the local journal cannot be read: {error}"))
            })?;
            let what = (writes, copy.operation);
            if self.lay((copy.fact, copy.number), what).await? == Laid::Conflict {
                conflicts.push(copy.number);
            }
        }
        let own: Vec<_> = {
            let state = self.state.borrow();
            let own = state.copies.iter().map(|(fact, _)| *fact);
            own.filter(|fact| lcc.local.has_under(*fact)).collect()
        };
        for fact in own {
            self.end_copy(fact).await?;
        }
        conflicts.iter().for_each(|number| lcc.local.set_conflict(device, *number));
        lcc.local.settle(device, |kept| !kept.is_conflict);
        Ok(())
    }
}

fn away(group: &Group, server: ServerId) -> String {
    let device = group.layout.group();
    format!("answered bytes of device {device} may be in the local journal of server {server}")
}

/// The last write of a grant that counts goes up to `number`, if that is the next one.
fn raise_end(ends: &mut Vec<WriteNumber>, number: WriteNumber) {
    match ends.iter_mut().find(|end| end.grant == number.grant) {
        Some(end) if end.sequence + 1 == number.sequence => *end = number,
        None if number.sequence == 1 => {
            let place = ends.partition_point(|end| *end < number);
            ends.insert(place, number);
            let too_many = ends.len().saturating_sub(ENDS_MAX);
            ends.drain(..too_many);
        }
        Some(_) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use braid_terms::GrantNumber;

    use super::*;

    fn number(counter: u64, sequence: u64) -> WriteNumber {
        WriteNumber { grant: GrantNumber { term: 1, counter }, sequence }
    }

    #[test] // Proves: W-13, W-9.
    fn an_end_goes_up_only_by_the_next_write() {
        let mut ends = vec![number(3, 7), number(5, 2)];
        raise_end(&mut ends, number(3, 9));
        assert_eq!(ends, [number(3, 7), number(5, 2)], "8 is missing");
        raise_end(&mut ends, number(3, 8));
        raise_end(&mut ends, number(4, 2));
        assert_eq!(ends, [number(3, 8), number(5, 2)], "nothing of 4 counts");
        raise_end(&mut ends, number(4, 1));
        raise_end(&mut ends, number(6, 1));
        assert_eq!(ends, [number(3, 8), number(4, 1), number(5, 2), number(6, 1)]);
        for counter in 7..30 {
            raise_end(&mut ends, number(counter, 1));
        }
        assert_eq!(ends.len(), ENDS_MAX);
    }
}
