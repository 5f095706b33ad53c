//! Which changes of clients a file's group has done lately: what a repeat is answered from.
//!
//! # Theory
//! A client that hears nothing sends a change again. Done twice, it could come after a change of
//! another client that had seen the first. So each record names the change that it is, each slot keeps
//! the latest of those that it took, and who opens the group has the union: any k slots have a part in
//! every write (lemma of O-5).
//! ```text
//! client 7, change 4: write 12      client 7 has no answer to 4 yet
//! client 9, change 2: write 13
//! client 7, change 5: write 14      says "all below 4 are answered": those go
//! ```
//! # Invariants
//! M1 A change whose write counts, above `forgotten`, and whose client may send it again, is here.
//! # Failure
//! Too many clients without answers: the oldest change goes, `forgotten` goes up, and a repeat that may
//! be of one up to it is refused instead of done.
//! # Source
//! W-9, N-3.

use braid_terms::WriteNumber;
use serde::{Deserialize, Serialize};

use crate::io::{Record, RecordKind};
use crate::lcc::OperationId;

/// Changes that a slot keeps of a group.
pub const OPERATIONS_MAX: usize = 20;

/// The change of a client that a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Operation {
    /// Which.
    pub id: OperationId,
    /// Its client sends no change of this group again whose counter is below.
    pub answered: u64,
    /// Where its bytes went, which its answer says.
    pub at: u64,
}

/// A change that was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Done {
    /// As what write.
    pub number: WriteNumber,
    /// The change.
    pub operation: Operation,
}

/// The latest changes of a group.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Operations {
    /// Of writes up to this one some may be missing.
    pub forgotten: WriteNumber,
    /// In order of their numbers.
    pub done: Vec<Done>,
}

impl Operations {
    /// Adds a change, and drops what its client has answers to.
    pub fn note(&mut self, number: WriteNumber, operation: Operation) {
        let client = operation.id.client;
        self.done.retain(|done| {
            let other = done.operation.id;
            other.client != client || operation.answered <= other.counter && other != operation.id
        });
        let place = self.done.partition_point(|done| done.number < number);
        self.done.insert(place, Done { number, operation });
    }

    /// Adds what a slot's next record says.
    pub fn take(&mut self, record: &Record) {
        if let Some(told) = &record.operations {
            self.clone_from(told);
        }
        if let (RecordKind::Write, Some(operation)) = (record.kind, record.operation) {
            self.note(record.number, operation);
        }
    }

    /// Drops the oldest down to so many.
    pub fn limit(&mut self, count_max: usize) {
        let too_many = self.done.len().saturating_sub(count_max);
        let newest = self.done.drain(..too_many).next_back();
        self.forgotten = newest.map_or(self.forgotten, |done| self.forgotten.max(done.number));
    }

    /// Adds what another slot knows.
    pub fn merge(&mut self, other: &Self) {
        self.forgotten = self.forgotten.max(other.forgotten);
        for done in &other.done {
            if self.find(done.operation.id).is_none() && !self.is_answered(done.operation.id) {
                self.note(done.number, done.operation);
            }
        }
    }

    /// What became of a change.
    #[must_use]
    pub fn find(&self, id: OperationId) -> Option<&Done> {
        self.done.iter().find(|done| done.operation.id == id)
    }

    /// Whether its client said since that it has the answer, or waits for none.
    #[must_use]
    pub fn is_answered(&self, id: OperationId) -> bool {
        let later = |done: &Done| {
            done.operation.id.client == id.client && id.counter < done.operation.answered
        };
        self.done.iter().any(later)
    }

    /// Nothing is known, nor forgotten.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.done.is_empty() && self.forgotten == WriteNumber::NONE
    }
}

#[cfg(test)]
mod tests {
    use braid_terms::GrantNumber;

    use super::*;

    fn number(sequence: u64) -> WriteNumber {
        WriteNumber { grant: GrantNumber { term: 1, counter: 1 }, sequence }
    }

    fn operation(client: u64, counter: u64, answered: u64) -> Operation {
        Operation { id: OperationId { client, counter }, answered, at: 0 }
    }

    fn counters(operations: &Operations) -> Vec<(u64, u64)> {
        let ids = operations.done.iter().map(|done| done.operation.id);
        ids.map(|id| (id.client, id.counter)).collect()
    }

    #[test] // Proves: N-3.
    fn what_has_its_answer_goes_and_nothing_else() {
        let mut operations = Operations::default();
        operations.note(number(1), operation(7, 1, 1));
        operations.note(number(2), operation(9, 1, 1));
        operations.note(number(3), operation(7, 2, 1));
        assert_eq!(counters(&operations), [(7, 1), (9, 1), (7, 2)]);
        operations.note(number(4), operation(7, 4, 2));
        assert_eq!(counters(&operations), [(9, 1), (7, 2), (7, 4)]);
        assert!(operations.is_answered(OperationId { client: 7, counter: 1 }));
        assert!(!operations.is_answered(OperationId { client: 7, counter: 3 }));
        assert_eq!(operations.forgotten, WriteNumber::NONE);
    }

    #[test] // Proves: N-3.
    fn what_is_too_much_is_known_to_be_forgotten() {
        let mut operations = Operations::default();
        for client in 0..10 {
            operations.note(number(client + 1), operation(client, 1, 1));
        }
        operations.limit(4);
        assert_eq!(counters(&operations), [(6, 1), (7, 1), (8, 1), (9, 1)]);
        assert_eq!(operations.forgotten, number(6));
    }

    #[test] // Proves: N-3.
    fn slots_know_together_what_each_knows() {
        let (mut one, mut other) = (Operations::default(), Operations::default());
        one.note(number(1), operation(7, 1, 1));
        one.note(number(4), operation(7, 3, 2));
        other.note(number(1), operation(7, 1, 1));
        other.note(number(2), operation(7, 2, 1));
        other.note(number(3), operation(9, 1, 1));
        other.forgotten = number(1);
        one.merge(&other);
        assert_eq!(counters(&one), [(7, 2), (9, 1), (7, 3)]);
        assert_eq!(one.forgotten, number(1));
        one.merge(&other);
        assert_eq!(counters(&one), [(7, 2), (9, 1), (7, 3)]);
    }
}
