//! What clients may see, by what they did and were told.
//! # Theory
//! Every operation is an interval: begun, ended. One without an answer does not end: it may still
//! happen, until it is seen. What a client can read is a *register*: a name (what it stands for), or
//! a range of bytes that no operation ever split. A register has *candidates*: values that it may
//! have now, each put there by an operation.
//! ```text
//! begin(op)      its value becomes a candidate
//! ended(op)      candidates whose operations ended before it began are gone
//! seen(value)    must be a candidate that was not gone when the read began; its operation has ended
//!                now, and other candidates that ended before the read began are gone
//! ```
//! An operation on two names happens at both or at none: what shows it at one ends it at the other.
//! So a read is wrong exactly when no order of the operations explains it with what was known before,
//! register by register (linearizability of each block and each name).
//! A power cut of the site brings candidates back, except those that a sync has buried: they were
//! gone when the sync began. What survives one file must be a prefix of its operations.
//! # Invariants
//! R1 A register never loses the candidate that is its true value.
//! R2 An operation that was seen never becomes unseen, unless the site loses its power.
//! # Source
//! W-3, W-6, W-7, W-9, W-10, DESIGN 12.

use std::collections::BTreeMap;

mod content;
mod register;

pub use content::fill;
use content::{FileModel, LogModel, LogRead};
use register::{Interval, Register};
pub use register::{OpId, Tick};

/// What a name may stand for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Named {
    /// Nothing.
    Nothing,
    /// What that operation made.
    Thing(OpId),
    /// What another name stood for while that operation ran.
    From(String),
    /// A directory that a power cut took before it was synced, and that began anew without its maker.
    Unmade,
}

/// What a look at a name showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sight {
    Nothing,
    Thing(OpId),
    /// Something, it is not known what.
    Something,
}

/// All that is known.
#[derive(Default)]
pub struct Oracle {
    tick: Tick,
    /// When the site last lost its power.
    cut: Tick,
    ops: Vec<Op>,
    names: BTreeMap<String, Register<Named>>,
    files: BTreeMap<OpId, FileModel>,
    logs: BTreeMap<String, LogModel>,
    /// Reads that were compared.
    pub reads: u64,
}

/// An operation.
struct Op {
    interval: Interval,
    /// Names that it changes.
    names: Vec<String>,
    /// The file whose bytes it changes.
    file: Option<OpId>,
    what: String,
    /// The client process that does it, and since when it has a right to count on it.
    process: Process,
    told: Option<Tick>,
}

/// A client process; 0 is nobody.
pub type Process = u64;

impl Oracle {
    /// The next moment; all moments are in the order of what happened.
    pub fn now(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    fn op(&mut self, what: String) -> OpId {
        let begin = self.now();
        let interval = Interval { begin, end: Tick::MAX };
        let (names, file, process, told) = Default::default();
        self.ops.push(Op { interval, names, file, what, process, told });
        OpId(self.ops.len() as u64)
    }

    fn get(&self, op: OpId) -> &Op {
        &self.ops[op.index()]
    }

    /// What an operation was, for people.
    #[must_use]
    pub fn describe(&self, op: OpId) -> String {
        if op == OpId(0) {
            return "the beginning".to_owned();
        }
        let op_known = self.get(op);
        let Interval { begin, end } = op_known.interval;
        let end = if end == Tick::MAX { "no end".to_owned() } else { end.to_string() };
        format!("{op} ({}, from {begin} to {end})", op_known.what)
    }

    /// That process does it.
    pub fn by(&mut self, op: OpId, process: Process) {
        self.ops[op.index()].process = process;
    }

    /// A process was told that something it counted on is lost: it counts on nothing any more.
    pub fn told_of_loss(&mut self, process: Process) {
        for op in self.ops.iter_mut().filter(|op| op.process == process) {
            op.told = None;
        }
    }

    /// What a process was told before `begin`, and not that it is lost: a sync of it that was begun
    /// then says that it is there, whatever happened to the site meanwhile. Source: W-9.
    fn counted_on(
        &self,
        process: Process,
        begin: Tick,
        is_synced: impl Fn(&Op) -> bool,
    ) -> Vec<OpId> {
        let ops = (1..).map(OpId).zip(&self.ops);
        let own = ops.filter(|(_, op)| op.process == process && process != 0);
        let told = own.filter(|(_, op)| op.told.is_some_and(|told| told <= begin));
        told.filter(|(_, op)| is_synced(op)).map(|(number, _)| number).collect()
    }

    /// Something new with bytes of its own under `name`: a put, replacing, or a mkdir.
    pub fn begin_make(&mut self, name: &str, length: Option<u64>) -> OpId {
        let what = match length {
            Some(length) => format!("put {name} {length} bytes"),
            None => format!("mkdir {name}"),
        };
        let op = self.op(what);
        if let Some(length) = length {
            self.files.insert(op, FileModel::new(op, length));
        }
        self.change_name(op, name, Named::Thing(op));
        op
    }

    /// `name` shall stand for nothing.
    pub fn begin_remove(&mut self, name: &str) -> OpId {
        let op = self.op(format!("remove {name}"));
        self.change_name(op, name, Named::Nothing);
        op
    }

    /// `to` shall stand for what `from` stands for; `from` then for nothing unless it is a link.
    pub fn begin_move(&mut self, from: &str, to: &str, link: bool) -> OpId {
        let op = self.op(format!("{} {from} {to}", if link { "link" } else { "rename" }));
        self.change_name(op, to, Named::From(from.to_owned()));
        if !link {
            self.change_name(op, from, Named::Nothing);
        }
        op
    }

    /// Each of two names shall stand for what the other stands for.
    pub fn begin_exchange(&mut self, one: &str, other: &str) -> OpId {
        let op = self.op(format!("exchange {one} {other}"));
        self.change_name(op, other, Named::From(one.to_owned()));
        self.change_name(op, one, Named::From(other.to_owned()));
        op
    }

    fn change_name(&mut self, op: OpId, name: &str, value: Named) {
        let begin = self.get(op).interval.begin;
        let register =
            self.names.entry(name.to_owned()).or_insert_with(|| Register::new(Named::Nothing));
        register.begin(op, begin, value);
        self.ops[op.index()].names.push(name.to_owned());
    }

    /// An operation on names was answered with success.
    pub fn ended(&mut self, op: OpId) {
        let end = self.now();
        let names = self.get(op).names.clone();
        if let [to, from] = &names[..]
            && self.may_be_one(op, from, to)
        {
            // Two names of one file: a rename between them does nothing.
            return;
        }
        self.ops[op.index()].told = Some(end);
        if self.was_cut_since(self.get(op).interval.begin) {
            return;
        }
        self.ops[op.index()].interval.end = end;
        for name in names {
            self.names.get_mut(&name).expect("begun").ended(op, end);
        }
    }

    /// What was done in part before a power cut of the site may be lost although the rest was
    /// answered after it: such operations tell nothing by themselves. The next sync of the same
    /// process says whether they count, and so do syncs that span the cut, but only of what that
    /// process did.
    fn was_cut_since(&self, begin: Tick) -> bool {
        begin < self.cut
    }

    /// An operation was refused, and surely did nothing.
    pub fn refused(&mut self, op: OpId) {
        for name in self.get(op).names.clone() {
            self.names.get_mut(&name).expect("begun").withdraw(op);
        }
        if let Some(file) = self.get(op).file
            && let Some(file) = self.files.get_mut(&file)
        {
            file.withdraw(op);
        }
    }

    fn may_be_one(&self, op: OpId, one: &str, other: &str) -> bool {
        let begin = self.get(op).interval.begin;
        let all = |name| self.things(name, (begin, Tick::MAX), Some(op), 0);
        let others = all(other);
        all(one).iter().any(|thing| others.contains(thing))
    }

    /// All that `name` may have stood for at some time between two moments, without `but`'s doing.
    fn things(&self, name: &str, during: (Tick, Tick), but: Option<OpId>, depth: u32) -> Vec<OpId> {
        let Some(register) = self.names.get(name) else { return Vec::new() };
        let mut things = Vec::new();
        for candidate in register.between(during.0, during.1).filter(|c| Some(c.op) != but) {
            match &candidate.value {
                Named::Nothing | Named::Unmade => {}
                Named::Thing(thing) => things.push(*thing),
                Named::From(source) if depth < DEPTH_MAX => {
                    let Interval { begin, end } = candidate.interval;
                    things.extend(self.things(source, (begin, end), but, depth + 1));
                }
                Named::From(_) => {}
            }
        }
        things
    }

    /// A look at a name, from `begin` to now.
    ///
    /// Errors: what is wrong, for people.
    pub fn saw_name(&mut self, name: &str, begin: Tick, sight: Sight) -> Result<(), String> {
        self.reads += 1;
        let end = self.now();
        let mut fits = Vec::new();
        self.names.entry(name.to_owned()).or_insert_with(|| Register::new(Named::Nothing));
        let register = &self.names[name];
        let candidates: Vec<_> =
            register.between(begin, end).map(|c| (c.op, c.value.clone(), c.interval)).collect();
        for (op, value, interval) in &candidates {
            let does_fit = match (value, sight) {
                (Named::Nothing, Sight::Nothing) => true,
                (Named::Nothing, _) | (Named::Unmade, Sight::Nothing | Sight::Thing(_)) => false,
                // The name of a file whose bytes a power cut took goes, too. Source: N-4.
                (Named::Thing(thing), Sight::Nothing) => self.may_be_lost(*thing),
                (Named::From(source), Sight::Nothing) => {
                    let until = interval.end.min(end);
                    let things = self.things(source, (interval.begin, until), Some(*op), 0);
                    things.into_iter().any(|thing| self.may_be_lost(thing))
                }
                (_, Sight::Something) => true,
                (Named::Thing(thing), Sight::Thing(found)) => *thing == found,
                (Named::From(source), Sight::Thing(found)) => {
                    let until = interval.end.min(end);
                    self.things(source, (interval.begin, until), Some(*op), 0).contains(&found)
                }
            };
            if does_fit {
                fits.push(*op);
            }
        }
        if fits.is_empty() {
            let found = match sight {
                Sight::Nothing => "nothing".to_owned(),
                Sight::Thing(op) => self.describe(op),
                Sight::Something => "something".to_owned(),
            };
            let known: Vec<String> = candidates
                .iter()
                .map(|(op, value, _)| format!("{value:?} by {}", self.describe(*op)))
                .collect();
            return Err(format!("{name} is {found} from {begin} to {end}, expected {known:?}"));
        }
        self.names.get_mut(name).expect("looked at").seen(&fits, begin, end);
        if let [op] = fits[..] {
            self.happened(op, name, end);
        }
        Ok(())
    }

    /// What `name` shows can only be the doing of this operation: then it was done to its other name,
    /// too. Source: W-7.
    fn happened(&mut self, op: OpId, name: &str, end: Tick) {
        if op == OpId(0) {
            return;
        }
        let names = self.get(op).names.clone();
        let [to, from] = &names[..] else { return };
        if self.may_be_one(op, from, to) {
            return;
        }
        for other in names.iter().filter(|other| *other != name) {
            self.names.get_mut(other).expect("begun").ended(op, end);
        }
    }

    /// New bytes at a place of a file.
    pub fn begin_write(&mut self, file: OpId, at: u64, length: u64) -> OpId {
        let op = self.op(format!("write of file {file} at {at} {length} bytes"));
        self.change_file(op, file, |model, begin| model.write(op, begin, at, length));
        op
    }

    /// A file's length changes.
    pub fn begin_truncate(&mut self, file: OpId, length: u64) -> OpId {
        let op = self.op(format!("truncate of file {file} to {length}"));
        self.change_file(op, file, |model, begin| model.truncate(op, begin, length));
        op
    }

    /// A range shall read as zeros; the length stays.
    pub fn begin_punch(&mut self, file: OpId, at: u64, length: u64) -> OpId {
        let op = self.op(format!("punch of file {file} at {at} {length} bytes"));
        self.change_file(op, file, |model, begin| model.punch(op, begin, at, length));
        op
    }

    fn change_file(&mut self, op: OpId, file: OpId, change: impl FnOnce(&mut FileModel, Tick)) {
        let begin = self.get(op).interval.begin;
        self.ops[op.index()].file = Some(file);
        if let Some(model) = self.files.get_mut(&file) {
            change(model, begin);
        }
    }

    /// A change of a file was answered with success.
    pub fn changed(&mut self, op: OpId) {
        let end = self.now();
        self.ops[op.index()].told = Some(end);
        if self.was_cut_since(self.get(op).interval.begin) {
            return;
        }
        self.ops[op.index()].interval.end = end;
        if let Some(file) = self.get(op).file
            && let Some(model) = self.files.get_mut(&file)
        {
            model.ended(op, end);
        }
    }

    /// A change of a file was answered before it was sure: the next sync of its process says.
    pub fn answered_ahead(&mut self, op: OpId) {
        let end = self.now();
        self.ops[op.index()].told = Some(end);
    }

    /// A file was read from its start to its end, from `begin` to now.
    ///
    /// Errors: what is wrong, for people.
    pub fn saw_file(&mut self, file: OpId, begin: Tick, bytes: &[u8]) -> Result<(), String> {
        self.reads += 1;
        let end = self.now();
        let Some(model) = self.files.get_mut(&file) else {
            return Err(format!("{} is no file", self.describe(file)));
        };
        let seen = model.saw(begin, end, bytes);
        let seen = seen.map_err(|wrong| {
            let known: Vec<String> = wrong.candidates.iter().map(|op| self.describe(*op)).collect();
            format!(
                "{}: {}, seen from {begin} to {end}; it may be {known:?}",
                self.describe(file),
                wrong.what
            )
        })?;
        for op in seen {
            let op = &mut self.ops[op.index()];
            op.interval.end = op.interval.end.min(end);
        }
        Ok(())
    }

    /// A sync of a file, begun then by that process, was answered with success.
    pub fn synced_file(&mut self, file: OpId, begin: Tick, process: Process) {
        let end = self.now();
        for op in self.counted_on(process, begin, |op| op.file == Some(file)) {
            let interval = &mut self.ops[op.index()].interval;
            interval.end = interval.end.min(end);
            if let Some(model) = self.files.get_mut(&file) {
                model.ended(op, end);
            }
        }
        if self.was_cut_since(begin) {
            return;
        }
        if let Some(model) = self.files.get_mut(&file) {
            model.synced(begin);
        }
    }

    /// A sync of the directory that keeps these names, begun then by that process, was answered with
    /// success.
    pub fn synced_names(
        &mut self,
        begin: Tick,
        process: Process,
        in_directory: impl Fn(&str) -> bool,
    ) {
        let end = self.now();
        for op in self.counted_on(process, begin, |op| !op.names.is_empty()) {
            for name in self.get(op).names.clone().iter().filter(|name| in_directory(name)) {
                self.names.get_mut(name).expect("begun").ended(op, end);
            }
        }
        if self.was_cut_since(begin) {
            return;
        }
        for (_, register) in self.names.iter_mut().filter(|(name, _)| in_directory(name)) {
            register.synced(begin);
        }
    }

    /// All machines lost their power.
    pub fn power_cut(&mut self) {
        self.cut = self.now();
        for register in self.names.values_mut() {
            register.power_cut();
        }
        for file in self.files.values_mut() {
            file.power_cut();
        }
        for log in self.logs.values_mut() {
            log.power_cut();
        }
    }

    /// Nothing is under way, all was synced, and this is what a name stands for.
    pub fn settle_name(&mut self, name: &str, found: Sight) {
        let value = match found {
            Sight::Nothing => Named::Nothing,
            Sight::Thing(op) => Named::Thing(op),
            Sight::Something => Named::Unmade,
        };
        self.names.insert(name.to_owned(), Register::new(value));
    }

    /// Nothing is under way, all was synced, and these are a file's bytes.
    pub fn settle_file(&mut self, file: OpId, bytes: &[u8]) {
        if let Some(model) = self.files.get_mut(&file) {
            model.settle(bytes);
        }
    }

    /// Whether a power cut may have taken the bytes of a file that has a name.
    #[must_use]
    pub fn may_be_lost(&self, file: OpId) -> bool {
        self.files.get(&file).is_some_and(FileModel::may_be_lost)
    }

    /// Whether a power cut may have taken all bytes that a file had.
    #[must_use]
    pub fn may_be_unreadable(&self, file: OpId) -> bool {
        self.files.get(&file).is_some_and(FileModel::may_be_unreadable)
    }

    /// What became of a file in the power cut is a prefix of what was done to it.
    ///
    /// Errors: what is wrong, for people.
    pub fn check_prefix(&self, file: OpId) -> Result<(), String> {
        let Some(model) = self.files.get(&file) else { return Ok(()) };
        model.check_prefix(self.cut).map_err(|(kept, missing)| {
            format!("{} is there, {} before it is not", self.describe(kept), self.describe(missing))
        })
    }

    /// A file that only grows by records, as it was made.
    pub fn make_log(&mut self, name: &str) {
        self.logs.insert(name.to_owned(), LogModel::default());
    }

    /// A record shall go to the end of a log.
    pub fn begin_append(&mut self, name: &str) -> OpId {
        let op = self.op(format!("append to {name}"));
        let begin = self.get(op).interval.begin;
        self.logs.get_mut(name).expect("a log").begin(op, begin);
        op
    }

    /// It went there.
    pub fn appended(&mut self, name: &str, op: OpId, at: u64) {
        let end = self.now();
        self.ops[op.index()].told = Some(end);
        let is_sure = !self.was_cut_since(self.get(op).interval.begin);
        self.logs.get_mut(name).expect("a log").told(op, at);
        if !is_sure {
            return;
        }
        self.ops[op.index()].interval.end = end;
        self.logs.get_mut(name).expect("a log").ended(op, end);
    }

    /// A sync of a log, begun then by that process, was answered with success.
    pub fn synced_log(&mut self, name: &str, begin: Tick, process: Process) {
        let end = self.now();
        for op in self.counted_on(process, begin, |_| true) {
            self.logs.get_mut(name).expect("a log").ended(op, end);
        }
        if self.was_cut_since(begin) {
            return;
        }
        self.logs.get_mut(name).expect("a log").synced(begin);
    }

    /// A log was read from its start to its end, from `begin` to now.
    ///
    /// Errors: what is wrong, for people.
    pub fn saw_log(&mut self, name: &str, begin: Tick, bytes: &[u8]) -> Result<(), String> {
        self.reads += 1;
        let end = self.now();
        let log = self.logs.get_mut(name).expect("a log");
        log.saw(LogRead { begin, end, bytes }).map_err(|wrong| format!("{name}: {wrong}"))
    }

    /// Nothing is under way, and these are all records of a log, synced then.
    pub fn settle_log(&mut self, name: &str, bytes: &[u8], synced: Tick) {
        let log = self.logs.get_mut(name).expect("a log");
        log.settle(bytes);
        log.synced(synced);
    }

    /// Whether a name is known to stand for something.
    #[must_use]
    pub fn stands_for_something(&self, name: &str) -> bool {
        let value = self.names.get(name).and_then(Register::value);
        value.is_some_and(|candidate| candidate.value != Named::Nothing)
    }

    /// All names that were ever used.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }
}

/// Bytes of a record of a log.
pub const LOG_RECORD: usize = LogModel::RECORD;

/// Fills `buffer`, of `LOG_RECORD` bytes, with the record that `op` appends.
pub fn fill_record(op: OpId, buffer: &mut [u8]) {
    LogModel::fill(op, buffer);
}

/// Renames of what was renamed, and so on, are followed so far.
const DEPTH_MAX: u32 = 4;

#[cfg(test)]
#[path = "oracle_test.rs"]
mod test;
