//! Locks on block rows: writes and rebuilds exclude each other and all reads of the same rows.
//! # Theory
//! First come, first served: a lock waits for every earlier one that it conflicts with, held or
//! waiting, so a writer is not starved by readers and writes of one row keep the order of calls.
//! # Source
//! W-11, W-12.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use braid_terms::planted;
use tokio::sync::oneshot;

/// Rows of one device of the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rows {
    /// Which device.
    pub device_index: u8,
    /// Rows, in blocks of a portion's content.
    pub range: Range<u64>,
}

impl Rows {
    fn meets(&self, other: &Self) -> bool {
        self.device_index == other.device_index
            && self.range.start < other.range.end
            && other.range.start < self.range.end
    }
}

struct Lock {
    id: u64,
    rows: Vec<Rows>,
    shared: bool,
    /// Waits while it is there.
    granted: Option<oneshot::Sender<()>>,
}

impl Lock {
    fn conflicts(&self, other: &Self) -> bool {
        let exclusive = !(self.shared && other.shared);
        exclusive && self.rows.iter().any(|rows| other.rows.iter().any(|o| rows.meets(o)))
    }
}

/// All locks of a group, in the order in which they were asked for.
#[derive(Default)]
pub struct RowLocks {
    locks: RefCell<(u64, VecDeque<Lock>)>,
}

/// A lock that is held; dropping it gives it back.
pub struct RowGuard {
    locks: Rc<RowLocks>,
    id: u64,
}

impl RowLocks {
    /// Takes its place in the order now; the future waits for the turn.
    pub fn lock(
        self: &Rc<Self>,
        rows: Vec<Rows>,
        shared: bool,
    ) -> impl Future<Output = RowGuard> + use<> {
        let (granted, turn) = oneshot::channel();
        let id = {
            let mut locks = self.locks.borrow_mut();
            locks.0 += 1;
            let id = locks.0;
            let lock = Lock { id, rows, shared, granted: Some(granted) };
            locks.1.push_back(lock);
            let last = locks.1.len() - 1;
            grant(&mut locks.1, last);
            id
        };
        let guard = RowGuard { locks: self.clone(), id };
        async move {
            // The sender lives in the list as long as the guard does.
            let _ = turn.await;
            guard
        }
    }
}

/// Grants the lock at that place if it waits and nothing before it stands in its way.
fn grant(locks: &mut VecDeque<Lock>, at: usize) {
    let lock = &locks[at];
    let conflicts = || locks.iter().take(at).any(|earlier| earlier.conflicts(lock));
    let waits = lock.granted.is_some();
    let is_early = planted!("W-11/rows-are-not-locked")
        || lock.shared && planted!("W-12/read-what-is-not-decided");
    if waits && (!conflicts() || is_early) {
        let granted = locks[at].granted.take().expect("it waits");
        // Who no longer waits drops its guard, which gives the lock back.
        let _ = granted.send(());
    }
}

impl Drop for RowGuard {
    fn drop(&mut self) {
        let locks = &mut self.locks.locks.borrow_mut().1;
        let Some(place) = locks.iter().position(|lock| lock.id == self.id) else { return };
        let gone = locks.remove(place).expect("found above");
        // Only who waited for this one may have its turn now: a long queue is not walked for each of
        // the others.
        for at in place..locks.len() {
            if locks[at].granted.is_some() && gone.conflicts(&locks[at]) {
                grant(locks, at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn rows(range: Range<u64>) -> Vec<Rows> {
        vec![Rows { device_index: 0, range }]
    }

    #[test] // Proves: W-11.
    fn writers_of_a_row_follow_each_other_and_others_do_not_wait() {
        let locks = Rc::new(RowLocks::default());
        let first = locks.lock(rows(0..4), false).now_or_never().expect("free");
        let mut second = Box::pin(locks.lock(rows(3..5), false));
        let other = locks.lock(rows(5..9), false).now_or_never().expect("free");
        let mut reader = Box::pin(locks.lock(rows(4..5), true));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(reader.as_mut().now_or_never().is_none(), "behind the second writer");
        drop((first, other));
        let second = second.now_or_never().expect("its turn");
        assert!(reader.as_mut().now_or_never().is_none());
        drop(second);
        assert!(reader.now_or_never().is_some());
    }

    #[test] // Proves: W-12.
    fn readers_share_and_a_lock_given_up_while_waiting_is_gone() {
        let locks = Rc::new(RowLocks::default());
        let one = locks.lock(rows(0..1), true).now_or_never().expect("free");
        let two = locks.lock(rows(0..1), true).now_or_never().expect("shared");
        let writer = locks.lock(rows(0..1), false);
        drop(writer);
        let three = locks.lock(rows(0..1), true).now_or_never().expect("shared");
        drop((one, two, three));
        assert!(locks.locks.borrow().1.is_empty());
    }
}
