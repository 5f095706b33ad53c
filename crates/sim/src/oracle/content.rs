//! Bytes of files: ranges that no operation split, the length, and logs of records.
//! # Theory
//! Bytes that an operation writes follow from its number and their place in the file, so a read
//! tells which operation it sees. Bytes behind the end count as zeros, as holes do; the length is
//! judged by itself.

use std::collections::BTreeMap;

use super::register::{Interval, OpId, Register, Tick};

/// What a range holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Held {
    /// Nothing was ever written, or it was cut off or punched.
    Zeros,
    /// What that operation wrote.
    Data(OpId),
}

/// Fills `buffer` with what `op` writes at `at` of its file.
pub fn fill(op: OpId, at: u64, buffer: &mut [u8]) {
    let mut done = 0;
    while done < buffer.len() {
        let place = at + done as u64;
        let word = word(op, place / 8).to_le_bytes();
        let from = usize::try_from(place % 8).expect("below 8");
        let count = (8 - from).min(buffer.len() - done);
        buffer[done..done + count].copy_from_slice(&word[from..from + count]);
        done += count;
    }
}

fn word(op: OpId, index: u64) -> u64 {
    let mut word = (op.0 << 40 ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word ^= word >> 29;
    word = word.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    // No byte is zero, so that data is never taken for a hole.
    (word ^ word >> 32) | 0x0101_0101_0101_0101
}

fn is(held: Held, at: u64, found: &[u8]) -> bool {
    match held {
        Held::Zeros => found.iter().all(|byte| *byte == 0),
        Held::Data(op) => {
            let mut expected = vec![0; found.len()];
            fill(op, at, &mut expected);
            expected == found
        }
    }
}

/// A read that cannot be explained.
pub struct Wrong {
    pub what: String,
    pub candidates: Vec<OpId>,
}

/// A file.
#[derive(Clone)]
pub struct FileModel {
    /// By their starts; each reaches to the next, the last one to the end of all.
    ranges: BTreeMap<u64, Register<Held>>,
    lengths: Vec<LengthChange>,
    /// Its making was synced.
    made_stable: bool,
    was_cut: bool,
    /// A power cut came while no byte was stable: its device may be gone, though not its name.
    had_no_bytes: bool,
}

#[derive(Clone, Copy)]
struct LengthChange {
    op: OpId,
    interval: Interval,
    length: u64,
    /// Else it only extends.
    cuts: bool,
    stable: bool,
}

impl LengthChange {
    fn may_follow(&self, other: &Self) -> bool {
        self.op != other.op && other.interval.begin < self.interval.end
    }
}

impl FileModel {
    /// A file that comes into being whole.
    pub fn new(op: OpId, length: u64) -> Self {
        let mut ranges = BTreeMap::from([(0, Register::new(Held::Zeros))]);
        if length > 0 {
            ranges.insert(length, Register::new(Held::Zeros));
            ranges.get_mut(&0).expect("just made").complete(op, Held::Data(op));
        }
        let interval = Interval { begin: 0, end: 0 };
        let first = LengthChange { op, interval, length, cuts: true, stable: false };
        Self {
            ranges,
            lengths: vec![first],
            made_stable: false,
            was_cut: false,
            had_no_bytes: false,
        }
    }

    fn split(&mut self, at: u64) {
        let (start, register) = self.ranges.range(..=at).next_back().expect("one starts at 0");
        if *start < at {
            let register = register.clone();
            self.ranges.insert(at, register);
        }
    }

    fn set(&mut self, op: OpId, begin: Tick, from: u64, to: Option<u64>, held: Held) {
        self.split(from);
        if let Some(to) = to {
            self.split(to);
        }
        for (_, register) in self.ranges.range_mut(from..to.unwrap_or(u64::MAX)) {
            register.begin(op, begin, held);
        }
    }

    pub fn write(&mut self, op: OpId, begin: Tick, at: u64, length: u64) {
        self.set(op, begin, at, Some(at + length), Held::Data(op));
        self.change_length(op, begin, at + length, false);
    }

    pub fn truncate(&mut self, op: OpId, begin: Tick, length: u64) {
        self.set(op, begin, length, None, Held::Zeros);
        self.change_length(op, begin, length, true);
    }

    pub fn punch(&mut self, op: OpId, begin: Tick, at: u64, length: u64) {
        self.set(op, begin, at, Some(at + length), Held::Zeros);
    }

    fn change_length(&mut self, op: OpId, begin: Tick, length: u64, cuts: bool) {
        let interval = Interval { begin, end: Tick::MAX };
        self.lengths.push(LengthChange { op, interval, length, cuts, stable: false });
    }

    pub fn ended(&mut self, op: OpId, end: Tick) {
        for register in self.ranges.values_mut() {
            register.ended(op, end);
        }
        for change in self.lengths.iter_mut().filter(|change| change.op == op) {
            change.interval.end = end;
        }
    }

    pub fn withdraw(&mut self, op: OpId) {
        self.ranges.values_mut().for_each(|register| register.withdraw(op));
        self.lengths.retain(|change| change.op != op);
    }

    /// A read of all bytes; which operations it shows.
    pub fn saw(&mut self, begin: Tick, end: Tick, bytes: &[u8]) -> Result<Vec<OpId>, Wrong> {
        self.check_length(begin, end, bytes.len() as u64)?;
        let starts: Vec<u64> = self.ranges.keys().copied().collect();
        let mut shown = Vec::new();
        for (index, start) in starts.iter().enumerate() {
            let until = starts.get(index + 1).copied().unwrap_or(u64::MAX).min(bytes.len() as u64);
            let until = until.max(*start);
            // What lies behind the end has nothing to show but that it is not there.
            let is_behind = bytes.len() as u64 <= *start;
            let found = if is_behind { &[][..] } else { &bytes[*start as usize..until as usize] };
            let register = self.ranges.get_mut(start).expect("its start is known");
            let mut candidates = Vec::new();
            let mut fits = Vec::new();
            for candidate in register.between(begin, end) {
                candidates.push(candidate.op);
                let does_fit = if is_behind {
                    candidate.value == Held::Zeros
                } else {
                    is(candidate.value, *start, found)
                };
                if does_fit {
                    fits.push(candidate.op);
                }
            }
            // The end moves while pieces are read; what is short of it says nothing.
            if is_behind && fits.is_empty() {
                continue;
            }
            if fits.is_empty() {
                let what = format!(
                    "bytes {start}..{until} of {} begin with {:02x?}",
                    bytes.len(),
                    &found[..found.len().min(16)]
                );
                return Err(Wrong { what, candidates });
            }
            // A read that ends within the range has not seen the rest of it.
            if !is_behind {
                register.seen(&fits, begin, end);
                if let [op] = fits[..] {
                    shown.push(op);
                }
            }
        }
        shown.sort();
        shown.dedup();
        shown.retain(|op| *op != OpId(0));
        // A write is one change: who sees a part of it has seen it happen.
        for op in &shown {
            self.ended_where_seen(*op, end);
        }
        Ok(shown)
    }

    fn ended_where_seen(&mut self, op: OpId, end: Tick) {
        for register in self.ranges.values_mut() {
            register.ended(op, end);
        }
    }

    fn check_length(&self, begin: Tick, end: Tick, found: u64) -> Result<(), Wrong> {
        let begun = || self.lengths.iter().filter(|change| change.interval.begin < end);
        let wrong = |what: String| {
            Err(Wrong { what, candidates: begun().map(|change| change.op).collect() })
        };
        let is_any = found == 0 && self.was_cut || begun().any(|change| change.length == found);
        if !is_any {
            return wrong(format!("its length is {found}, which it never was"));
        }
        let happened = |change: &&LengthChange| change.interval.end < begin;
        for change in begun().filter(happened) {
            let later_cuts =
                begun().filter(|other| other.cuts && other.may_follow(change)).map(|o| o.length);
            let least = later_cuts.min().unwrap_or(u64::MAX).min(change.length);
            if found < least {
                return wrong(format!("its length is {found}, at least {least} is right"));
            }
            if change.cuts {
                let later = begun().filter(|other| other.may_follow(change)).map(|o| o.length);
                let most = later.max().unwrap_or(0).max(change.length);
                if most < found {
                    return wrong(format!("its length is {found}, at most {most} is right"));
                }
            }
        }
        Ok(())
    }

    pub fn synced(&mut self, begin: Tick) {
        self.ranges.values_mut().for_each(|register| register.synced(begin));
        for change in &mut self.lengths {
            change.stable |= change.interval.end <= begin;
        }
        self.made_stable = true;
    }

    pub fn power_cut(&mut self) {
        self.was_cut |= !self.made_stable;
        self.had_no_bytes |= !self.lengths.iter().any(|change| change.stable && 0 < change.length);
        self.ranges.values_mut().for_each(Register::power_cut);
        for change in self.lengths.iter_mut().filter(|change| !change.stable) {
            change.interval.end = Tick::MAX;
        }
    }

    /// All is stable, nothing is under way, and these are the bytes.
    pub fn settle(&mut self, bytes: &[u8]) {
        let length = bytes.len() as u64;
        self.ranges.retain(|start, _| *start < length);
        let starts: Vec<u64> = self.ranges.keys().copied().chain([length]).collect();
        for (register, ends) in self.ranges.values_mut().zip(starts.windows(2)) {
            let found = &bytes[ends[0] as usize..ends[1] as usize];
            let fits = |held: &Held| is(*held, ends[0], found);
            let mut held = register.candidates().iter().rev().map(|candidate| candidate.value);
            *register = Register::new(held.find(fits).unwrap_or(Held::Zeros));
        }
        self.ranges.insert(length, Register::new(Held::Zeros));
        let interval = Interval { begin: 0, end: 0 };
        let change = LengthChange { op: OpId(0), interval, length, cuts: true, stable: true };
        self.lengths = vec![change];
        self.made_stable = true;
        (self.was_cut, self.had_no_bytes) = (false, false);
    }

    pub fn may_be_lost(&self) -> bool {
        self.was_cut
    }

    pub fn may_be_unreadable(&self) -> bool {
        self.was_cut || self.had_no_bytes
    }

    /// Among what is certainly there, nothing is older than an operation that is not.
    ///
    /// Errors: one that is there, and an earlier one that is not.
    pub fn check_prefix(&self, cut: Tick) -> Result<(), (OpId, OpId)> {
        let mut kept: Vec<_> = self.ranges.values().filter_map(Register::value).collect();
        // What ended later may have been done anew after the cut.
        kept.retain(|kept| kept.interval.end < cut);
        for register in self.ranges.values() {
            let Some(value) = register.value() else { continue };
            for missing in register.candidates() {
                // `value` was overwritten by `missing` before ...
                let overwrote = value.interval.end < missing.interval.begin;
                // ... something began that is there.
                let later = |kept: &&&super::register::Candidate<Held>| {
                    missing.interval.end < kept.interval.begin
                };
                if overwrote && let Some(kept) = kept.iter().find(later) {
                    return Err((kept.op, missing.op));
                }
            }
        }
        Ok(())
    }
}

/// A read of a log.
pub struct LogRead<'a> {
    pub begin: Tick,
    pub end: Tick,
    pub bytes: &'a [u8],
}

/// A file to which records are only appended.
#[derive(Default)]
pub struct LogModel {
    records: BTreeMap<OpId, Record>,
}

#[derive(Clone, Copy)]
struct Record {
    interval: Interval,
    at: Option<u64>,
    /// Where its client was told that it went.
    told: Option<u64>,
    stable: bool,
}

impl LogModel {
    /// Bytes of a record; no divisor of a block.
    pub const RECORD: usize = 700;

    pub fn begin(&mut self, op: OpId, begin: Tick) {
        let interval = Interval { begin, end: Tick::MAX };
        self.records.insert(op, Record { interval, at: None, told: None, stable: false });
    }

    pub fn told(&mut self, op: OpId, at: u64) {
        self.records.get_mut(&op).expect("begun").told = Some(at);
    }

    /// It is there, where its client was told. Nothing where it is no record of this log, or not any
    /// more.
    pub fn ended(&mut self, op: OpId, end: Tick) {
        if let Some(record) = self.records.get_mut(&op) {
            record.interval.end = record.interval.end.min(end);
            record.at = record.told;
        }
    }

    pub fn synced(&mut self, begin: Tick) {
        for record in self.records.values_mut() {
            record.stable |= record.interval.end <= begin;
        }
    }

    pub fn power_cut(&mut self) {
        for record in self.records.values_mut().filter(|record| !record.stable) {
            record.interval.end = Tick::MAX;
            // What comes after the cut may take its place.
            record.at = None;
        }
    }

    pub fn saw(&mut self, read: LogRead<'_>) -> Result<(), String> {
        let LogRead { begin, end, bytes } = read;
        if bytes.len() % Self::RECORD != 0 {
            return Err(format!("{} bytes are not whole records", bytes.len()));
        }
        let mut places = BTreeMap::new();
        for (index, found) in bytes.chunks(Self::RECORD).enumerate() {
            let at = (index * Self::RECORD) as u64;
            let number = u64::from_le_bytes(found[..8].try_into().expect("8 bytes"));
            let op = OpId(number);
            let Some(record) = self.records.get(&op).filter(|r| r.interval.begin < end) else {
                return Err(format!("no append wrote what is at {at}: {:02x?}", &found[..16]));
            };
            let mut expected = vec![0; Self::RECORD];
            Self::fill(op, &mut expected);
            if expected != found {
                return Err(format!("append {op} at {at} is torn"));
            }
            if let Some(other) = places.insert(op, at) {
                return Err(format!("append {op} is at {other} and at {at}"));
            }
            if record.at.is_some_and(|told| told != at) {
                return Err(format!("append {op} is at {at}, it was told {:?}", record.at));
            }
        }
        for (op, record) in self.records.iter().filter(|(_, record)| record.interval.end < begin) {
            if !places.contains_key(op) {
                return Err(format!("append {op}, told {:?}, is not there", record.at));
            }
        }
        for (op, at) in &places {
            let record = self.records.get_mut(op).expect("found above");
            record.interval.end = record.interval.end.min(end);
            record.at = Some(*at);
        }
        Ok(())
    }

    /// What is not there now never will be.
    pub fn settle(&mut self, bytes: &[u8]) {
        let there: Vec<OpId> = bytes
            .chunks_exact(Self::RECORD)
            .map(|found| OpId(u64::from_le_bytes(found[..8].try_into().expect("8 bytes"))))
            .collect();
        self.records.retain(|op, _| there.contains(op));
    }

    /// Bytes of a record.
    pub fn fill(op: OpId, buffer: &mut [u8]) {
        buffer[..8].copy_from_slice(&op.0.to_le_bytes());
        fill(op, 8, &mut buffer[8..]);
    }
}
