//! Changes of files' devices that may be sent again, and are done once.
//! # Theory
//! A change keeps its identity for as long as anybody waits for it. With it go what lets its owner
//! forget others: the lowest of this process that still waits, of the same device; and what tells a
//! forgotten change from one that was never done: the newest write of the device that was known before
//! this one was first sent.
//! # Source
//! N-3, L2 of `wire::lcc`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use braid_terms::{DeviceId, WriteNumber};
use braid_wire::lcc::{Attributes, FileChange, FileOp, LccReply, OperationId};

/// Changes of this process that wait for their answers, and what it knows of the devices.
#[derive(Default)]
pub struct Changes {
    waiting: RefCell<BTreeMap<DeviceId, BTreeSet<u64>>>,
    newest: RefCell<BTreeMap<DeviceId, WriteNumber>>,
}

/// A change of a file's device. Whoever asks for it again with this has it done once; it ends with this.
pub struct Change {
    of: Rc<Changes>,
    device: DeviceId,
    operation: OperationId,
    since: WriteNumber,
    /// It may have been done.
    again: Cell<bool>,
}

/// Whether doing it twice can do harm.
pub fn is_change(op: &FileOp) -> bool {
    match op {
        FileOp::Write { .. }
        | FileOp::WriteMany { .. }
        | FileOp::Truncate { .. }
        | FileOp::Punch { .. } => true,
        FileOp::Read { .. }
        | FileOp::Length
        | FileOp::Seek { .. }
        | FileOp::Sync { .. }
        | FileOp::Remove
        | FileOp::LayCopy { .. }
        | FileOp::EndCopy { .. } => false,
    }
}

impl Changes {
    /// Begins one.
    pub fn begin(self: &Rc<Self>, device: DeviceId, operation: OperationId) -> Change {
        self.waiting.borrow_mut().entry(device).or_default().insert(operation.counter);
        let since = self.newest.borrow().get(&device).copied().unwrap_or_default();
        Change { of: self.clone(), device, operation, since, again: Cell::new(false) }
    }

    /// A write of a device has its number.
    pub fn learn(&self, device: DeviceId, number: WriteNumber) {
        let mut newest = self.newest.borrow_mut();
        if DEVICES_MAX <= newest.len() && !newest.contains_key(&device) {
            newest.pop_first();
        }
        let known = newest.entry(device).or_default();
        *known = number.max(*known);
    }

    /// What an answer about a device, or a file's attributes, says of writes.
    pub fn learn_from(&self, group: DeviceId, reply: &LccReply) {
        match reply {
            LccReply::Length(length) | LccReply::Written { length, .. } => {
                self.learn(group, length.number);
            }
            LccReply::Attributes(attributes) => self.learn_size(attributes),
            LccReply::Entry { attributes: Some(attributes), .. } => self.learn_size(attributes),
            _ => {}
        }
    }

    fn learn_size(&self, attributes: &Attributes) {
        if let Some(layout) = attributes.device() {
            self.learn(layout.group(), attributes.size_number);
        }
    }
}

impl Change {
    /// What its owner is told.
    pub(crate) fn to_send(&self) -> FileChange {
        let waiting = self.of.waiting.borrow();
        let lowest = waiting.get(&self.device).and_then(|counters| counters.first().copied());
        FileChange {
            operation: self.operation,
            answered: lowest.unwrap_or(self.operation.counter),
            since: self.since,
            again: self.again.get(),
        }
    }

    /// Nobody knows whether it was done.
    pub(crate) fn is_unsure(&self) {
        self.again.set(true);
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut waiting = self.of.waiting.borrow_mut();
        if let Some(counters) = waiting.get_mut(&self.device) {
            counters.remove(&self.operation.counter);
            if counters.is_empty() {
                waiting.remove(&self.device);
            }
        }
    }
}

/// Devices of which the newest write is remembered; without it a repeat may be refused.
const DEVICES_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use braid_terms::GrantNumber;

    use super::*;

    const DEVICE: DeviceId = DeviceId(7);

    fn begin(changes: &Rc<Changes>, counter: u64) -> Change {
        changes.begin(DEVICE, OperationId { client: 1, counter })
    }

    #[test] // Proves: N-3.
    fn what_is_answered_is_all_below_the_lowest_that_waits() {
        let changes = Rc::new(Changes::default());
        let (first, second) = (begin(&changes, 3), begin(&changes, 5));
        let _other = changes.begin(DeviceId(8), OperationId { client: 1, counter: 1 });
        assert_eq!(second.to_send().answered, 3);
        drop(first);
        assert_eq!(second.to_send().answered, 5);
        drop(second);
        assert!(!changes.waiting.borrow().contains_key(&DEVICE));
    }

    #[test] // Proves: N-3.
    fn what_is_known_when_it_begins_stays() {
        let changes = Rc::new(Changes::default());
        let number =
            |sequence| WriteNumber { grant: GrantNumber { term: 1, counter: 1 }, sequence };
        changes.learn(DEVICE, number(4));
        let change = begin(&changes, 1);
        changes.learn(DEVICE, number(6));
        change.is_unsure();
        let sent = change.to_send();
        assert_eq!((sent.since, sent.again), (number(4), true));
        assert_eq!(begin(&changes, 2).to_send().since, number(6));
    }
}
