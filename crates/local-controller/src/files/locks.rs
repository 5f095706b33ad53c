//! Locks of files at the owner of their directory.
//!
//! # Theory
//! Locks are in memory only. A client process holds its locks as long as it says so (`KeepLocks`, some
//! times a second); what it says also brings them to a new owner, so a directory that was just read
//! gives no lock to others before the holders have had time to speak.
//! ```text
//! directory read --RECLAIM--> locks are given          a directory just made: at once
//! KeepLocks ------LEASE-----> its locks are gone
//! ```
//! # Invariants
//! L1 No lock is given while a holder that speaks in time may not have been heard.
//! # Failure
//! A client process that was silent for `LEASE` loses its locks; it is told when it speaks again.
//! # Source
//! DESIGN 9: one lock table, the owner of a file is its lock manager. Departure: the owner of the
//! directory that keeps the file's attributes; small files have no device.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use braid_terms::DeviceId;
use braid_wire::lcc::{FileLock, LccRefusal, LccReply};
use braid_wire::locks::LockTable;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::checks::bad;

/// Locks of all directories of an LCC.
#[derive(Default)]
pub struct Locks {
    directories: RefCell<BTreeMap<DeviceId, Directory>>,
    /// Some lock was given up.
    changed: Notify,
}

#[derive(Default)]
struct Directory {
    table: LockTable,
    /// Until when client processes hold what they hold.
    sessions: BTreeMap<u64, Instant>,
}

impl Directory {
    fn expire(&mut self, now: Instant) {
        let over: Vec<u64> =
            self.sessions.iter().filter(|(_, until)| **until <= now).map(|(s, _)| *s).collect();
        for session in over {
            tracing::debug!(session, "a client process is silent: its locks are gone");
            self.sessions.remove(&session);
            self.table.end_session(session);
        }
    }

    fn keep(&mut self, session: u64, now: Instant) {
        self.sessions.insert(session, now + LEASE);
    }

    fn next_end(&self) -> Option<Instant> {
        self.sessions.values().min().copied()
    }
}

fn check(lock: &FileLock) -> Result<(), LccRefusal> {
    if lock.from <= lock.to { Ok(()) } else { Err(bad("a lock's range ends before it begins")) }
}

impl Locks {
    fn with<T>(&self, group: DeviceId, work: impl FnOnce(&mut Directory, Instant) -> T) -> T {
        let now = Instant::now();
        let mut directories = self.directories.borrow_mut();
        let directory = directories.entry(group).or_default();
        directory.expire(now);
        let outcome = work(directory, now);
        if directory.table.is_empty() {
            directories.remove(&group);
        }
        outcome
    }

    /// Gives a lock, not before `since`; waits for it at most `WAIT`.
    ///
    /// Errors: a range that is none, too many locks.
    pub async fn lock(
        &self,
        group: DeviceId,
        lock: FileLock,
        wait: bool,
        since: Instant,
    ) -> Result<LccReply, LccRefusal> {
        check(&lock)?;
        // Holders that speak have been heard by then.
        sleep_until(since).await;
        let end = Instant::now() + WAIT;
        loop {
            let changed = self.changed.notified();
            let (outcome, next) = self.with(group, |directory, now| {
                if LOCKS_MAX <= directory.table.all().count() {
                    return (Err(bad("a directory has at most 65536 locks")), None);
                }
                let outcome = directory.table.lock(lock);
                if outcome.is_ok() {
                    directory.keep(lock.session, now);
                }
                (Ok(outcome), directory.next_end())
            });
            let held = match outcome? {
                Ok(()) => return Ok(LccReply::Lock(None)),
                Err(held) => held,
            };
            if !wait || end <= Instant::now() {
                return Ok(LccReply::Lock(Some(held)));
            }
            let until = next.map_or(end, |next| next.min(end));
            tokio::select! {
                () = changed => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// Gives locks up.
    ///
    /// Errors: a range that is none.
    pub fn unlock(&self, group: DeviceId, lock: &FileLock) -> Result<LccReply, LccRefusal> {
        check(lock)?;
        if self.with(group, |directory, _| directory.table.unlock(lock)) {
            self.changed.notify_waiters();
        }
        Ok(LccReply::Done)
    }

    /// A lock that is in the way.
    ///
    /// Errors: a range that is none.
    pub async fn test(
        &self,
        group: DeviceId,
        lock: &FileLock,
        since: Instant,
    ) -> Result<LccReply, LccRefusal> {
        check(lock)?;
        sleep_until(since).await;
        Ok(LccReply::Lock(self.with(group, |directory, _| directory.table.conflict(lock))))
    }

    /// The group has another owner: holders tell it.
    pub fn forget(&self, group: DeviceId) {
        self.directories.borrow_mut().remove(&group);
        self.changed.notify_waiters();
    }

    /// A client process is alive and says what it holds.
    ///
    /// Errors: a lock that is not its own, or has no range.
    pub fn keep(
        &self,
        group: DeviceId,
        session: u64,
        locks: &[FileLock],
    ) -> Result<LccReply, LccRefusal> {
        locks.iter().try_for_each(check)?;
        if locks.iter().any(|lock| lock.session != session) || LOCKS_MAX < locks.len() {
            return Err(bad("a client process keeps its own locks"));
        }
        let lost = self.with(group, |directory, now| {
            directory.keep(session, now);
            let lost = locks.iter().filter(|lock| directory.table.lock(**lock).is_err());
            lost.copied().collect()
        });
        Ok(LccReply::LostLocks(lost))
    }
}

/// After a directory was read: holders say what they hold within this.
pub const RECLAIM: Duration = Duration::from_secs(3);
/// A client process that is silent for so long has no locks any more.
const LEASE: Duration = Duration::from_secs(10);
/// Longest wait of one request.
const WAIT: Duration = Duration::from_secs(2);
const LOCKS_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;
    use braid_wire::lcc::LockKind;

    const GROUP: DeviceId = DeviceId(5);

    fn lock(session: u64) -> FileLock {
        FileLock {
            id: DeviceId(9),
            session,
            owner: 1,
            kind: LockKind::Whole,
            exclusive: true,
            from: 0,
            to: u64::MAX,
            pid: 0,
        }
    }

    async fn get(locks: &Locks, session: u64, wait: bool) -> Option<FileLock> {
        match locks.lock(GROUP, lock(session), wait, Instant::now()).await {
            Ok(LccReply::Lock(held)) => held,
            other => panic!("{other:?}"),
        }
    }

    fn keep(locks: &Locks, session: u64) -> Vec<FileLock> {
        match locks.keep(GROUP, session, &[lock(session)]) {
            Ok(LccReply::LostLocks(lost)) => lost,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_the_unlock() {
        let locks = Locks::default();
        assert_eq!(get(&locks, 1, false).await, None);
        assert_eq!(get(&locks, 2, false).await, Some(lock(1)));
        let waiting = get(&locks, 2, true);
        let unlocking = async { locks.unlock(GROUP, &lock(1)) };
        let (got, unlocked) = tokio::join!(waiting, unlocking);
        assert!(unlocked.is_ok());
        assert_eq!(got, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_process_loses_its_locks_and_one_that_speaks_keeps_them() {
        let locks = Locks::default();
        assert_eq!(get(&locks, 1, false).await, None);
        sleep_until(Instant::now() + LEASE / 2).await;
        assert_eq!(keep(&locks, 1), []);
        sleep_until(Instant::now() + LEASE / 2).await;
        assert_eq!(get(&locks, 2, false).await, Some(lock(1)));
        sleep_until(Instant::now() + LEASE).await;
        assert_eq!(get(&locks, 2, false).await, None);
        assert_eq!(keep(&locks, 1), [lock(1)], "it is told what it lost");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_owner_hears_the_holders_first() {
        let locks = Locks::default();
        let since = Instant::now() + RECLAIM;
        let wanting = locks.lock(GROUP, lock(2), false, since);
        let keeping = async { keep(&locks, 1) };
        let (wanted, kept) = tokio::join!(wanting, keeping);
        assert_eq!(kept, []);
        assert!(matches!(wanted, Ok(LccReply::Lock(Some(held))) if held == lock(1)));
    }
}
