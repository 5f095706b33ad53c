//! One thing that has one value at a time.

use std::fmt;

/// A moment in the order of all that happened.
pub type Tick = u64;

/// An operation, from 1; 0 is how things were at the beginning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OpId(pub u64);

impl OpId {
    pub(super) fn index(self) -> usize {
        usize::try_from(self.0.checked_sub(1).expect("the beginning is no operation"))
            .expect("fewer operations than memory")
    }
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// When something was under way; `end` is `Tick::MAX` while it may still happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interval {
    pub begin: Tick,
    pub end: Tick,
}

/// A value, and who put it there.
#[derive(Clone, Debug)]
pub struct Candidate<V> {
    pub op: OpId,
    pub value: V,
    pub interval: Interval,
    /// From then on it cannot be the value any more.
    pub gone: Tick,
    /// Not even after a power cut.
    pub buried: bool,
}

#[derive(Clone, Debug)]
pub struct Register<V> {
    candidates: Vec<Candidate<V>>,
}

impl<V: Clone + PartialEq> Register<V> {
    /// A register that had this value at the beginning.
    pub fn new(value: V) -> Self {
        let interval = Interval { begin: 0, end: 0 };
        let first = Candidate { op: OpId(0), value, interval, gone: Tick::MAX, buried: false };
        Self { candidates: vec![first] }
    }

    pub fn begin(&mut self, op: OpId, begin: Tick, value: V) {
        let interval = Interval { begin, end: Tick::MAX };
        self.candidates.push(Candidate { op, value, interval, gone: Tick::MAX, buried: false });
    }

    /// A value that was whole before anyone could see the register.
    pub fn complete(&mut self, op: OpId, value: V) {
        self.begin(op, 0, value);
        let last = self.candidates.len() - 1;
        for (index, candidate) in self.candidates.iter_mut().enumerate() {
            candidate.interval.end = 0;
            if index < last {
                candidate.gone = 0;
            }
        }
    }

    pub fn ended(&mut self, op: OpId, end: Tick) {
        let Some(own) = self.candidates.iter_mut().find(|candidate| candidate.op == op) else {
            return;
        };
        own.interval.end = own.interval.end.min(end);
        let begin = own.interval.begin;
        self.bury_before(begin, end, &[op]);
    }

    pub fn withdraw(&mut self, op: OpId) {
        self.candidates.retain(|candidate| candidate.op != op);
    }

    /// Candidates that may have been the value at some time in the interval.
    pub fn between(&self, begin: Tick, end: Tick) -> impl Iterator<Item = &Candidate<V>> {
        self.candidates.iter().filter(move |c| begin < c.gone && c.interval.begin < end)
    }

    /// A read from `begin` to `end` showed what one of `ops` put there.
    pub fn seen(&mut self, ops: &[OpId], begin: Tick, end: Tick) {
        self.bury_before(begin, end, ops);
        if let [op] = ops
            && let Some(own) = self.candidates.iter_mut().find(|candidate| candidate.op == *op)
        {
            own.interval.end = own.interval.end.min(end);
            let began = own.interval.begin;
            self.bury_before(began, end, ops);
        }
    }

    /// What ended before `begin` is gone at `now`, except `but`.
    fn bury_before(&mut self, begin: Tick, now: Tick, but: &[OpId]) {
        for candidate in &mut self.candidates {
            if candidate.interval.end < begin && !but.contains(&candidate.op) {
                candidate.gone = candidate.gone.min(now);
            }
        }
    }

    pub fn synced(&mut self, begin: Tick) {
        for candidate in &mut self.candidates {
            candidate.buried |= candidate.gone <= begin;
        }
    }

    pub fn power_cut(&mut self) {
        for candidate in self.candidates.iter_mut().filter(|candidate| !candidate.buried) {
            candidate.gone = Tick::MAX;
        }
    }

    /// The one candidate that is left, if it is one.
    pub fn value(&self) -> Option<&Candidate<V>> {
        let mut left = self.candidates.iter().filter(|candidate| candidate.gone == Tick::MAX);
        let first = left.next();
        if left.next().is_some() { None } else { first }
    }

    pub fn candidates(&self) -> &[Candidate<V>] {
        &self.candidates
    }
}
