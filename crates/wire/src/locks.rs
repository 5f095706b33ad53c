//! Locks of files: who holds what, and what conflicts.
//!
//! # Theory
//! The owner of a file's home directory is the lock manager of the file. Both it and the holders keep
//! such a table: when the owner dies, the holders tell its successor what they hold.
//! ```text
//! read locks  share;  a write lock excludes all others that overlap it
//! flock       whole files, by open file        } the two kinds do not see each other, as on Linux
//! ranges      bytes from..=to, by process      }
//! ```
//! # Invariants
//! K1 No two locks of different holders in a table conflict.
//! K2 Locks of one holder and kind on one file do not overlap.

use std::collections::BTreeMap;

use braid_terms::DeviceId;

use crate::lcc::FileLock;

impl FileLock {
    fn overlaps(&self, other: &Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }

    fn same_holder(&self, other: &Self) -> bool {
        (self.session, self.owner, self.kind) == (other.session, other.owner, other.kind)
    }

    fn conflicts(&self, other: &Self) -> bool {
        self.kind == other.kind
            && (self.session, self.owner) != (other.session, other.owner)
            && self.overlaps(other)
            && (self.exclusive || other.exclusive)
    }
}

/// Locks by file.
#[derive(Default, Debug)]
pub struct LockTable {
    files: BTreeMap<DeviceId, Vec<FileLock>>,
}

impl LockTable {
    /// A lock that keeps `wanted` from being had.
    #[must_use]
    pub fn conflict(&self, wanted: &FileLock) -> Option<FileLock> {
        self.files.get(&wanted.id)?.iter().find(|held| held.conflicts(wanted)).copied()
    }

    /// Takes a lock; what its holder has of that kind in the range is replaced.
    ///
    /// Errors: a lock that is in the way; nothing changed.
    pub fn lock(&mut self, wanted: FileLock) -> Result<(), FileLock> {
        if let Some(held) = self.conflict(&wanted) {
            return Err(held);
        }
        self.unlock(&wanted);
        self.files.entry(wanted.id).or_default().push(wanted);
        Ok(())
    }

    /// Gives up what the holder of `range` has of its kind in its range. Says whether that was any.
    pub fn unlock(&mut self, range: &FileLock) -> bool {
        let Some(held) = self.files.get_mut(&range.id) else { return false };
        let mut left = Vec::with_capacity(held.len() + 1);
        let mut some = false;
        for lock in held.drain(..) {
            if !lock.same_holder(range) || !lock.overlaps(range) {
                left.push(lock);
                continue;
            }
            some = true;
            if lock.from < range.from {
                left.push(FileLock { to: range.from - 1, ..lock });
            }
            if range.to < lock.to {
                left.push(FileLock { from: range.to + 1, ..lock });
            }
        }
        *held = left;
        if held.is_empty() {
            self.files.remove(&range.id);
        }
        some
    }

    /// Drops all locks of a client process.
    pub fn end_session(&mut self, session: u64) {
        self.files.retain(|_, held| {
            held.retain(|lock| lock.session != session);
            !held.is_empty()
        });
    }

    /// Locks of a file.
    pub fn of_file(&self, id: DeviceId) -> impl Iterator<Item = &FileLock> {
        self.files.get(&id).into_iter().flatten()
    }

    /// All locks.
    pub fn all(&self) -> impl Iterator<Item = &FileLock> {
        self.files.values().flatten()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lcc::LockKind;

    fn lock(owner: u64, exclusive: bool, from: u64, to: u64) -> FileLock {
        let (id, kind) = (DeviceId(7), LockKind::Range);
        FileLock { id, session: owner / 10, owner, kind, exclusive, from, to, pid: 0 }
    }

    /// Every lock and unlock of two holders in a file of four bytes, three in a row, against a table
    /// of bytes.
    #[test]
    fn all_small_histories_agree_with_a_table_of_bytes() {
        let ranges: Vec<(u64, u64)> =
            (0..4).flat_map(|from| (from..4).map(move |to| (from, to))).collect();
        // None: unlock.
        let actions: Vec<(u64, Option<bool>, (u64, u64))> = [11, 12]
            .into_iter()
            .flat_map(|owner| [None, Some(false), Some(true)].map(|mode| (owner, mode)))
            .flat_map(|(owner, mode)| ranges.iter().map(move |range| (owner, mode, *range)))
            .collect();
        for first in &actions {
            for second in &actions {
                for third in &actions {
                    check([first, second, third]);
                }
            }
        }
    }

    fn check(history: [&(u64, Option<bool>, (u64, u64)); 3]) {
        let mut table = LockTable::default();
        // By holder and byte: what it has there.
        let mut plain: [[Option<bool>; 4]; 2] = [[None; 4]; 2];
        for (owner, mode, (from, to)) in history {
            let (mine, other) = ((owner - 11) as usize, (12 - owner) as usize);
            let range = *from as usize..=*to as usize;
            let is_free = |exclusive: bool| {
                plain[other][range.clone()].iter().flatten().all(|held| !*held && !exclusive)
            };
            match mode {
                None => {
                    table.unlock(&lock(*owner, false, *from, *to));
                    plain[mine][range].fill(None);
                }
                Some(exclusive) => {
                    let got = table.lock(lock(*owner, *exclusive, *from, *to)).is_ok();
                    assert_eq!(got, is_free(*exclusive), "{history:?}");
                    if got {
                        plain[mine][range].fill(Some(*exclusive));
                    }
                }
            }
        }
        for (holder, bytes) in plain.iter().enumerate() {
            for (at, expected) in bytes.iter().enumerate() {
                let here: Vec<bool> = table
                    .of_file(DeviceId(7))
                    .filter(|held| held.owner == 11 + holder as u64)
                    .filter(|held| (held.from..=held.to).contains(&(at as u64)))
                    .map(|held| held.exclusive)
                    .collect();
                assert_eq!(here, expected.iter().copied().collect::<Vec<_>>(), "{history:?}");
            }
        }
    }

    #[test]
    fn kinds_do_not_see_each_other_and_sessions_end() {
        let mut table = LockTable::default();
        let range = lock(11, true, 0, u64::MAX);
        let whole = FileLock { kind: LockKind::Whole, owner: 12, session: 2, ..range };
        assert_eq!(table.lock(range), Ok(()));
        assert_eq!(table.lock(whole), Ok(()));
        assert_eq!(table.lock(FileLock { owner: 11, ..whole }), Err(whole));
        table.end_session(2);
        assert_eq!(table.all().collect::<Vec<_>>(), [&range]);
        assert!(table.unlock(&FileLock { from: 3, to: 3, ..range }));
        assert_eq!(table.all().count(), 2, "a hole in the middle");
    }
}
