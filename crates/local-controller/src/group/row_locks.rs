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
    /// In order, and no two meet.
    rows: Vec<Rows>,
    shared: bool,
    /// Waits while it is there.
    granted: Option<oneshot::Sender<()>>,
}

impl Lock {
    fn conflicts(&self, other: &Self) -> bool {
        let exclusive = !(self.shared && other.shared);
        exclusive && any_meet(&self.rows, &other.rows)
    }
}

/// Whether any of these rows are in both, which are in order.
fn any_meet(mut one: &[Rows], mut other: &[Rows]) -> bool {
    while let ([a, rest_of_one @ ..], [b, rest_of_other @ ..]) = (one, other) {
        if a.meets(b) {
            return true;
        }
        if (a.device_index, a.range.end) <= (b.device_index, b.range.end) {
            one = rest_of_one;
        } else {
            other = rest_of_other;
        }
    }
    false
}

/// In order, and joined where they meet.
fn in_order(mut rows: Vec<Rows>) -> Vec<Rows> {
    if rows.len() < 2 {
        return rows;
    }
    rows.sort_by_key(|rows| (rows.device_index, rows.range.start));
    let mut joined: Vec<Rows> = Vec::with_capacity(rows.len());
    for rows in rows {
        match joined.last_mut() {
            Some(last)
                if last.device_index == rows.device_index && rows.range.start <= last.range.end =>
            {
                last.range.end = last.range.end.max(rows.range.end);
            }
            _ => joined.push(rows),
        }
    }
    joined
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
            let lock = Lock { id, rows: in_order(rows), shared, granted: Some(granted) };
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

    #[test] // Proves: W-11.
    fn locks_of_many_rows_meet_as_each_of_their_rows_does() {
        let mut state = 7_u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..2000 {
            let mut some = || -> Vec<Rows> {
                let one = |device_index, start, length| Rows {
                    device_index,
                    range: start..start + length,
                };
                let count = next(5);
                (0..count).map(|_| one(next(2) as u8, next(30), next(4))).collect()
            };
            let (one, other) = (some(), some());
            let expected = one.iter().any(|rows| other.iter().any(|o| rows.meets(o)));
            let is_empty = |rows: &Rows| rows.range.is_empty();
            if !one.iter().chain(&other).any(is_empty) {
                assert_eq!(any_meet(&in_order(one), &in_order(other)), expected);
            }
        }
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
