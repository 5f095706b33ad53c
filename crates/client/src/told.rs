//! What this client process was told is written, and not yet that it is on the disks.
//! # Theory
//! Every change is answered with its group's decided mark. A sync names the newest of each grant, and
//! the owner says whether all of it still counts. What was lost is told by one error to every handle
//! of before, as `fsync` has it: a handle knows how many losses its groups had when it was opened.
//! # Failure
//! Beyond `GROUPS_MAX` groups that were changed and never synced, some are forgotten: what is lost of
//! those is not told.
//! # Source
//! W-9.

use std::cell::RefCell;
use std::collections::BTreeMap;

use braid_terms::{DeviceId, WriteNumber};

/// All groups that this process changed and did not sync, or lost changes of.
#[derive(Default)]
pub struct Told {
    groups: RefCell<BTreeMap<DeviceId, Group>>,
}

#[derive(Default)]
struct Group {
    /// The newest of each grant.
    written: Vec<WriteNumber>,
    losses: u64,
}

impl Told {
    /// A change was answered.
    pub fn note(&self, group: DeviceId, number: WriteNumber) {
        let mut groups = self.groups.borrow_mut();
        if GROUPS_MAX <= groups.len() && !groups.contains_key(&group) {
            groups.pop_first();
        }
        let written = &mut groups.entry(group).or_default().written;
        match written.iter_mut().find(|known| known.grant == number.grant) {
            Some(known) => *known = number.max(*known),
            None => written.push(number),
        }
    }

    /// What a sync of a group is to name.
    pub fn written(&self, group: DeviceId) -> Vec<WriteNumber> {
        self.groups.borrow().get(&group).map_or_else(Vec::new, |group| group.written.clone())
    }

    /// A sync that named these was done.
    pub fn synced(&self, group: DeviceId, named: &[WriteNumber]) {
        self.settle(group, named, 0);
    }

    /// Some of what a sync named does not count any more.
    pub fn lost(&self, group: DeviceId, named: &[WriteNumber]) {
        self.settle(group, named, 1);
    }

    fn settle(&self, group: DeviceId, named: &[WriteNumber], losses: u64) {
        let mut groups = self.groups.borrow_mut();
        if losses == 0 && !groups.contains_key(&group) {
            return;
        }
        let known = groups.entry(group).or_default();
        let covers = |number: &WriteNumber| {
            named.iter().any(|named| named.grant == number.grant && number <= named)
        };
        known.written.retain(|number| !covers(number));
        known.losses += losses;
        if known.written.is_empty() && known.losses == 0 {
            groups.remove(&group);
        }
    }

    /// How often changes of a group were found lost.
    pub fn losses(&self, group: DeviceId) -> u64 {
        self.groups.borrow().get(&group).map_or(0, |group| group.losses)
    }
}

const GROUPS_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use braid_terms::GrantNumber;

    use super::*;

    fn number(counter: u64, sequence: u64) -> WriteNumber {
        WriteNumber { grant: GrantNumber { term: 1, counter }, sequence }
    }

    #[test] // Proves: W-9.
    fn a_sync_settles_what_it_named_and_no_more() {
        let (told, group) = (Told::default(), DeviceId(7));
        told.note(group, number(1, 5));
        told.note(group, number(1, 4));
        told.note(group, number(2, 1));
        let named = told.written(group);
        assert_eq!(named, [number(1, 5), number(2, 1)]);
        told.note(group, number(2, 2));
        told.synced(group, &named);
        assert_eq!(told.written(group), [number(2, 2)]);
        told.lost(group, &[number(2, 2)]);
        assert_eq!((told.written(group), told.losses(group)), (Vec::new(), 1));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let told = Told::default();
        for group in 0..2 * GROUPS_MAX as u64 {
            told.note(DeviceId(group), number(1, 1));
        }
        assert_eq!(told.groups.borrow().len(), GROUPS_MAX);
    }
}
