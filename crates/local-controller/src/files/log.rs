//! The log of a directory device: records with a chained checksum, checkpoints, two root slots.
//!
//! # Theory
//! A device only grows: a record is appended behind the last one, to the byte. Writes to the group
//! begin at a block, so the block in which the log ends is kept here and sent again with each append;
//! what it adds lies beyond the device's length, so no block is ever read to be written.
//! A checkpoint goes to new space while the log goes on behind it, reached by a *jump*:
//! ```text
//! | A | B | checkpoint 1 | log ........ jump | checkpoint 2 | log ... | end
//!   ^ root 1 names checkpoint 1 and the log behind it          ^ root 2 names checkpoint 2 and this
//! ```
//! The root is switched by a write of its own with a higher number than all bytes of the checkpoint,
//! and the old space is punched by one with a higher number still. What survives a crash is a prefix
//! of the writes (W-3), so each state in between can be replayed: by root 1 up to the switch, by
//! root 2 from there.
//! # Invariants
//! L1 Addresses are never used twice, so nothing old can be taken for something new.
//! L2 The log ends exactly at the device's length; a break below it is damage, never the end.
//! L3 A record follows its predecessor by device, sequence, log generation and checksum.
//! # Failure
//! All bytes read are checked; what does not fit gives [`Damage`], with the place.
//! # Source
//! N-3; holes 4 and 29 of the design's reasons. Bytes: `docs/format/directory.md`.

use braid_terms::{BLOCK_SIZE, DeviceId, STRIP_SIZE_MAX};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use super::bytes_le::Reader;

/// Which of the two logs of a directory's group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogRole {
    /// Names; the group's first device.
    Names,
    /// Attributes; the group's second device.
    Attributes,
}

impl LogRole {
    /// The device's place in its group.
    pub const fn device_index(self) -> u8 {
        match self {
            Self::Names => 0,
            Self::Attributes => 1,
        }
    }
}

/// A record without its frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// What it is; `KIND_JUMP` is the log's own.
    pub kind: u8,
    /// At most `BODY_MAX` bytes.
    pub body: Vec<u8>,
}

/// Bytes of the device that are to be written, from a place that is a multiple of 4096.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogWrite {
    /// First byte.
    pub at: u64,
    /// What.
    pub bytes: Bytes,
}

/// Why a device is no log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// No valid root slot.
    Root,
    /// The record that begins at this byte of the device does not fit.
    Record {
        /// First byte.
        at: u64,
    },
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root => f.write_str("no valid root slot"),
            Self::Record { at } => write!(f, "the record at byte {at} does not fit"),
        }
    }
}

/// The end of a log, to which records are appended. A clone taken before an append undoes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    device: DeviceId,
    role: LogRole,
    root: Root,
    /// End of the log; the device's length unless a jump was the last record.
    end: u64,
    /// Of the next record.
    sequence: u64,
    generation: u32,
    /// Checksum of the last record.
    chain: u32,
    /// Bytes of the block in which `end` lies, up to it.
    tail: Vec<u8>,
    /// Behind the root slots, all below is given back; after a replay that is not known.
    used_from: u64,
    /// Bytes of records since the checkpoint of the root.
    log_bytes: u64,
}

/// A checkpoint on its way to new space.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// The jump: to be written first.
    pub jump: LogWrite,
    /// The checkpoint's bytes, to be written behind the jump in any portions.
    pub body: LogWrite,
    root: Root,
}

/// What becomes of the device when a checkpoint is all written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Switch {
    /// The root slot: a write of its own, behind all bytes of the checkpoint.
    pub root: LogWrite,
    /// Then: these bytes are given back.
    pub punch_at: u64,
    /// See above.
    pub punch_length: u64,
}

impl Log {
    /// The log of a device that was never written, and its root slot.
    pub fn create(device: DeviceId, role: LogRole) -> (Self, LogWrite) {
        let root = Root {
            format: FORMAT,
            root_generation: 1,
            checkpoint_at: LOG_START,
            checkpoint_length: 0,
            log_at: LOG_START,
            sequence: 1,
            generation: 1,
            chain: 0,
        };
        let log = Self::at_start_of(device, role, root);
        (log, root.write(device, role))
    }

    fn at_start_of(device: DeviceId, role: LogRole, root: Root) -> Self {
        Self {
            device,
            role,
            root,
            end: root.log_at,
            sequence: root.sequence,
            generation: root.generation,
            chain: root.chain,
            tail: Vec::new(),
            used_from: LOG_START,
            log_bytes: 0,
        }
    }

    /// Appends records and gives the one write that brings them onto the device.
    pub fn append<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>) -> LogWrite {
        let start = self.end - self.tail.len() as u64;
        let mut bytes = std::mem::take(&mut self.tail);
        for record in records {
            self.frame(record.kind, &record.body, &mut bytes);
        }
        self.end = start + bytes.len() as u64;
        self.tail = bytes[bytes.len() / BLOCK_SIZE * BLOCK_SIZE..].to_vec();
        assert_eq!(start % BLOCK_SIZE as u64, 0, "a write begins at a block");
        LogWrite { at: start, bytes: bytes.into() }
    }

    /// Before a record of format 2: says so in the root, if that does not yet. One write with the record.
    pub fn upgrade(&mut self) -> Option<LogWrite> {
        (self.root.format < FORMAT).then(|| {
            self.root.format = FORMAT;
            self.root.write(self.device, self.role)
        })
    }

    fn frame(&mut self, kind: u8, body: &[u8], target: &mut Vec<u8>) {
        let head = Head {
            length: u32::try_from(body.len()).expect("bounded by BODY_MAX"),
            device: self.device,
            sequence: self.sequence,
            generation: self.generation,
            kind,
        };
        self.chain = head.put(self.chain, body, target);
        self.sequence += 1;
        self.log_bytes += (HEAD_SIZE + body.len()) as u64;
    }

    /// Whether the log has grown enough to be worth a checkpoint of a state of `live` bytes.
    pub fn wants_checkpoint(&self, live: u64) -> bool {
        self.log_bytes > 2 * live + LOG_BYTES_SPARE
    }

    /// Begins a checkpoint of `records`, the state as of now. Later records go behind it.
    pub fn begin_checkpoint<'a>(
        &mut self,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Checkpoint {
        let mut bytes = Vec::new();
        let (mut chain, mut sequence) = (0, 1);
        let generation = self.generation + 1;
        for Record { kind, body } in records {
            let length = u32::try_from(body.len()).expect("bounded by BODY_MAX");
            let head = Head { length, device: self.device, sequence, generation, kind: *kind };
            chain = head.put(chain, body, &mut bytes);
            sequence += 1;
        }
        let jump_end = self.end + (HEAD_SIZE + 8) as u64;
        let checkpoint_at = round_up(jump_end);
        let log_at = round_up(checkpoint_at + bytes.len() as u64);
        let body = log_at.to_le_bytes().to_vec();
        let jump = self.append([&Record { kind: KIND_JUMP, body }]);
        assert_eq!(self.end, jump_end, "the checkpoint begins behind the jump");
        self.end = log_at;
        self.generation = generation;
        self.tail.clear();
        self.log_bytes = 0;
        let root = Root {
            format: FORMAT,
            root_generation: self.root.root_generation + 1,
            checkpoint_at,
            checkpoint_length: bytes.len() as u64,
            log_at,
            sequence: self.sequence,
            generation,
            chain: self.chain,
        };
        Checkpoint { jump, body: LogWrite { at: checkpoint_at, bytes: bytes.into() }, root }
    }

    /// The checkpoint is all written or has lower numbers than what follows: switches the root.
    pub fn switch(&mut self, checkpoint: &Checkpoint) -> Switch {
        let root = checkpoint.root;
        assert_eq!(root.root_generation, self.root.root_generation + 1, "one checkpoint at a time");
        // What a group gives back are whole stripes: begin at one, also where its start was in use
        // the last time. All below the checkpoint is old.
        let punch_at = LOG_START.max(self.used_from / STRIPE_MAX * STRIPE_MAX);
        let punch_length = root.checkpoint_at - punch_at;
        self.root = root;
        self.used_from = root.checkpoint_at;
        Switch { root: root.write(self.device, self.role), punch_at, punch_length }
    }
}

/// Reads a log: asks for bytes, gives records, and at last the log's end.
///
/// ```text
/// next -> Read -> feed -> next -> Record, Record, ... -> Read -> ... -> End
/// ```
pub struct Replay {
    device: DeviceId,
    role: LogRole,
    /// Length of the device.
    length: u64,
    part: Part,
    log: Option<Log>,
    /// Bytes that were fed; begins at a block, the byte `at` is at `buffer_used`.
    buffer: Vec<u8>,
    buffer_used: usize,
    /// Next byte; what was used of its block is in the buffer.
    at: u64,
    chain: u32,
    sequence: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Roots,
    Checkpoint,
    Log,
    Ended,
}

/// What a replay needs or found.
#[derive(Debug)]
pub enum Step {
    /// `feed` exactly these bytes of the device.
    Read {
        /// First byte.
        at: u64,
        /// Bytes.
        length: u64,
    },
    /// A record of the checkpoint, then of the log.
    Record(Record),
    /// All is read.
    End(Box<Log>),
}

impl Replay {
    /// Reads the log of a device of `length` bytes, as it stands in the newest decided write.
    pub fn new(device: DeviceId, role: LogRole, length: u64) -> Self {
        Self {
            device,
            role,
            length,
            part: Part::Roots,
            log: None,
            buffer: Vec::new(),
            buffer_used: 0,
            at: 0,
            chain: 0,
            sequence: 1,
        }
    }

    /// Takes the bytes that the last step asked for, in any pieces.
    pub fn feed<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>) {
        // The block in which we are stays: it may be the one in which the log ends.
        let kept = (self.at % BLOCK_SIZE as u64) as usize;
        self.buffer.drain(..self.buffer_used - kept);
        self.buffer_used = kept;
        pieces.into_iter().for_each(|piece| self.buffer.extend_from_slice(piece));
    }

    /// Goes on.
    ///
    /// Errors: the bytes are no log; nothing after that makes sense.
    pub fn next(&mut self) -> Result<Step, Damage> {
        loop {
            match self.part {
                Part::Roots => {
                    if self.unused().len() < ROOTS_SIZE {
                        // With them comes all of a small young directory.
                        return self.read_up_to(FIRST_SIZE).ok_or(Damage::Root);
                    }
                    self.take_roots()?;
                }
                Part::Checkpoint => {
                    let root = self.log().root;
                    if self.at == root.checkpoint_at + root.checkpoint_length {
                        self.begin_log(root);
                        continue;
                    }
                    let end = root.checkpoint_at + root.checkpoint_length;
                    match self.record(end, root.generation)? {
                        Found::Record(record) if record.kind == KIND_JUMP => {
                            return Err(Damage::Record { at: self.at });
                        }
                        Found::Record(record) => return Ok(Step::Record(record)),
                        Found::Short(step) => return Ok(step),
                    }
                }
                Part::Log => {
                    if self.at >= self.length {
                        self.part = Part::Ended;
                        return Ok(Step::End(Box::new(self.finished())));
                    }
                    let at = self.at;
                    let generation = self.log().generation;
                    match self.record(self.length, generation)? {
                        Found::Record(record) => {
                            let log = self.log();
                            log.log_bytes += (HEAD_SIZE + record.body.len()) as u64;
                            if record.kind != KIND_JUMP {
                                return Ok(Step::Record(record));
                            }
                            self.jump(at, &record.body)?;
                        }
                        Found::Short(step) => return Ok(step),
                    }
                }
                Part::Ended => return Err(Damage::Record { at: self.at }),
            }
        }
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().expect("the roots were read")
    }

    fn unused(&self) -> &[u8] {
        &self.buffer[self.buffer_used..]
    }

    /// Asks for bytes behind the buffer, up to `end` of the device; `None` where there are none.
    fn read_up_to(&self, end: u64) -> Option<Step> {
        let at = self.at + self.unused().len() as u64;
        let length = end.min(self.length).saturating_sub(at).min(READ_SIZE);
        (length > 0).then_some(Step::Read { at, length })
    }

    fn take_roots(&mut self) -> Result<(), Damage> {
        let slots = self.unused();
        let newest = (0..2)
            .filter_map(|slot| {
                let bytes = &slots[slot * BLOCK_SIZE..(slot + 1) * BLOCK_SIZE];
                Root::parse(bytes, self.device, self.role)
            })
            .max_by_key(|root| root.root_generation)
            .ok_or(Damage::Root)?;
        self.log = Some(Log::at_start_of(self.device, self.role, newest));
        self.go_to(newest.checkpoint_at);
        self.part = Part::Checkpoint;
        Ok(())
    }

    fn begin_log(&mut self, root: Root) {
        self.go_to(root.log_at);
        self.chain = root.chain;
        self.sequence = root.sequence;
        self.part = Part::Log;
    }

    fn go_to(&mut self, at: u64) {
        let skipped = at.checked_sub(self.at).and_then(|skipped| usize::try_from(skipped).ok());
        if let Some(skipped) = skipped.filter(|skipped| *skipped <= self.unused().len()) {
            self.buffer_used += skipped;
        } else {
            self.buffer.clear();
            self.buffer_used = 0;
        }
        self.at = at;
    }

    /// Takes the record at `self.at`, which must end at or below `end`.
    fn record(&mut self, end: u64, generation: u32) -> Result<Found, Damage> {
        let damage = Damage::Record { at: self.at };
        let Some(head) = self.unused().first_chunk::<HEAD_SIZE>() else {
            return self.read_up_to(end).map(Found::Short).ok_or(damage);
        };
        let (crc, head) = Head::parse(head).ok_or(damage)?;
        let fits = head.device == self.device
            && head.sequence == self.sequence
            && head.generation == generation;
        let size = HEAD_SIZE + usize::try_from(head.length).map_err(|_| damage)?;
        if !fits || end - self.at < size as u64 {
            return Err(damage);
        }
        let Some(bytes) = self.unused().get(..size) else {
            return self.read_up_to(end).map(Found::Short).ok_or(damage);
        };
        if chained(self.chain, &bytes[4..]) != crc {
            return Err(damage);
        }
        let record = Record { kind: head.kind, body: bytes[HEAD_SIZE..].to_vec() };
        self.buffer_used += size;
        self.at += size as u64;
        self.chain = crc;
        self.sequence = head.sequence.checked_add(1).ok_or(damage)?;
        Ok(Found::Record(record))
    }

    fn jump(&mut self, at: u64, body: &[u8]) -> Result<(), Damage> {
        let damage = Damage::Record { at };
        let to = u64::from_le_bytes(body.try_into().map_err(|_| damage)?);
        if !(self.at..ADDRESS_MAX).contains(&to) || !to.is_multiple_of(BLOCK_SIZE as u64) {
            return Err(damage);
        }
        let log = self.log();
        log.generation = log.generation.checked_add(1).ok_or(damage)?;
        self.go_to(to);
        Ok(())
    }

    fn finished(&mut self) -> Log {
        let (end, sequence, chain) = (self.at, self.sequence, self.chain);
        let kept = (end % BLOCK_SIZE as u64) as usize;
        let tail = self.buffer[self.buffer_used - kept..self.buffer_used].to_vec();
        let mut log = self.log.take().expect("the roots were read");
        log.end = end;
        log.sequence = sequence;
        log.chain = chain;
        log.tail = tail;
        log
    }
}

enum Found {
    Record(Record),
    Short(Step),
}

/// What a root slot says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Root {
    /// Of the records that may follow.
    format: u32,
    root_generation: u64,
    checkpoint_at: u64,
    checkpoint_length: u64,
    log_at: u64,
    sequence: u64,
    generation: u32,
    chain: u32,
}

impl Root {
    fn write(&self, device: DeviceId, role: LogRole) -> LogWrite {
        let mut slot = Vec::with_capacity(BLOCK_SIZE);
        slot.extend_from_slice(MAGIC);
        slot.extend_from_slice(&self.format.to_le_bytes());
        slot.extend_from_slice(&[role.device_index(), 0, 0, 0]);
        slot.extend_from_slice(&device.0.to_le_bytes());
        for number in [
            self.root_generation,
            self.checkpoint_at,
            self.checkpoint_length,
            self.log_at,
            self.sequence,
        ] {
            slot.extend_from_slice(&number.to_le_bytes());
        }
        slot.extend_from_slice(&self.generation.to_le_bytes());
        slot.extend_from_slice(&self.chain.to_le_bytes());
        slot.resize(BLOCK_SIZE - 4, 0);
        let crc = crc32c(&slot);
        slot.extend_from_slice(&crc.to_le_bytes());
        let at = if self.root_generation % 2 == 1 { 0 } else { BLOCK_SIZE as u64 };
        LogWrite { at, bytes: slot.into() }
    }

    /// A valid slot of this device, else none.
    fn parse(slot: &[u8], device: DeviceId, role: LogRole) -> Option<Self> {
        let (body, crc) = slot.split_last_chunk::<4>()?;
        if crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut reader = Reader::new(body);
        let is_log = reader.take(8).ok()? == MAGIC;
        let format = reader.u32().ok()?;
        let is_ours = is_log
            && (FORMAT_OLDEST..=FORMAT).contains(&format)
            && reader.take(4).ok()? == [role.device_index(), 0, 0, 0]
            && reader.u64().ok()? == device.0;
        if !is_ours {
            return None;
        }
        let root = Self {
            format,
            root_generation: reader.u64().ok()?,
            checkpoint_at: reader.u64().ok()?,
            checkpoint_length: reader.u64().ok()?,
            log_at: reader.u64().ok()?,
            sequence: reader.u64().ok()?,
            generation: reader.u32().ok()?,
            chain: reader.u32().ok()?,
        };
        let checkpoint_end = root.checkpoint_at.checked_add(root.checkpoint_length)?;
        let aligned = [root.checkpoint_at, root.log_at]
            .iter()
            .all(|at| *at >= LOG_START && at.is_multiple_of(BLOCK_SIZE as u64));
        let sane = root.log_at < ADDRESS_MAX
            && root.sequence < ADDRESS_MAX
            && root.generation < u32::MAX / 2
            && root.root_generation < ADDRESS_MAX;
        (aligned && sane && checkpoint_end <= root.log_at).then_some(root)
    }
}

/// The head of a record, without its checksum.
struct Head {
    length: u32,
    device: DeviceId,
    sequence: u64,
    generation: u32,
    kind: u8,
}

impl Head {
    /// Appends head and body; gives the record's checksum.
    fn put(&self, chain: u32, body: &[u8], target: &mut Vec<u8>) -> u32 {
        assert!(body.len() <= BODY_MAX, "bodies are bounded when they come in");
        let start = target.len();
        target.extend_from_slice(&[0; 4]);
        target.extend_from_slice(&self.length.to_le_bytes());
        target.extend_from_slice(&self.device.0.to_le_bytes());
        target.extend_from_slice(&self.sequence.to_le_bytes());
        target.extend_from_slice(&self.generation.to_le_bytes());
        target.extend_from_slice(&[self.kind, 0, 0, 0]);
        target.extend_from_slice(body);
        let crc = chained(chain, &target[start + 4..]);
        target[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// Checksum and head; none where the length is out of bounds.
    fn parse(bytes: &[u8; HEAD_SIZE]) -> Option<(u32, Self)> {
        let mut reader = Reader::new(bytes);
        let crc = reader.u32().ok()?;
        let head = Self {
            length: reader.u32().ok()?,
            device: DeviceId(reader.u64().ok()?),
            sequence: reader.u64().ok()?,
            generation: reader.u32().ok()?,
            kind: reader.u8().ok()?,
        };
        (head.length as usize <= BODY_MAX).then_some((crc, head))
    }
}

fn chained(chain: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&chain.to_le_bytes());
    digest.update(bytes);
    u32::try_from(digest.finalize()).expect("32 bits of result")
}

fn crc32c(bytes: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes)).expect("32 bits of result")
}

fn round_up(at: u64) -> u64 {
    at.next_multiple_of(BLOCK_SIZE as u64)
}

/// The log goes on elsewhere.
pub const KIND_JUMP: u8 = 255;

/// Longest body of a record, in bytes.
pub const BODY_MAX: usize = 1 << 20;

/// Bytes of a record in front of its body.
pub const HEAD_SIZE: usize = 32;

const MAGIC: &[u8; 8] = b"BRAIDDIR";

/// 2: intents and decisions of changes over several groups.
const FORMAT: u32 = 2;

const FORMAT_OLDEST: u32 = 1;

/// Both root slots.
const ROOTS_SIZE: usize = 2 * BLOCK_SIZE;

const LOG_START: u64 = ROOTS_SIZE as u64;

/// Addresses and counters beyond this are not believed: sums with them could overflow.
const ADDRESS_MAX: u64 = 1 << 62;

/// The largest stripe of a directory's group, in bytes.
const STRIPE_MAX: u64 = STRIP_SIZE_MAX as u64;

/// A log of less than this is no reason for a checkpoint, in bytes.
const LOG_BYTES_SPARE: u64 = 1 << 20;

/// Bytes asked for at first in a replay.
const FIRST_SIZE: u64 = 256 << 10;

/// Bytes asked for at once in a replay.
const READ_SIZE: u64 = 4 << 20;

#[cfg(test)]
#[path = "log_test.rs"]
pub(super) mod test;
