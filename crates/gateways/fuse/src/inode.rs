//! Inodes of the mount: what is known of a file, and its bytes that are here.
//!
//! # Theory
//! An inode is a device number. The kernel counts how often it was told of it (*lookups*) and takes
//! that back by *forget*; an inode stays while it is counted, open, or has bytes that wait.
//! ```text
//! FUSE threads          answer from an inode when what is needed is in it
//! thread of the client  asks owners, and is the only one that sends bytes away
//! ```
//! Both hold `state` only for the time of a copy, never while they wait.
//! # Invariants
//! I1 `size` is the size that this mount shows: the record's, unless bytes or a size wait here.
//! I2 Flights do not overlap each other.
//! I3 A chunk (read ahead) overlaps no run and no flight: a write drops the chunks it touches, and
//!    fetched bytes are kept only if no write touched their place since they were asked for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use braid_terms::{AckMode, DeviceId, GroupLayout};
use braid_wire::lcc::{Attributes, DeviceLength, DeviceNews, FileData, FileKind, FileTime};
use bytes::Bytes;
use tokio::sync::Notify;

use crate::around::Around;
use crate::buffer::{DirtyRuns, Flight, cover, overlay_bytes};
use crate::clock::{lease_now, now_ms};
use crate::errno::{Errno, Outcome};
use crate::store::Right;
use crate::unborn::Unborn;

/// A file, directory, link, pipe, socket or node that the kernel was told of.
pub struct Inode {
    /// Inode number.
    pub id: DeviceId,
    /// What it is.
    pub kind: FileKind,
    /// The group with its attributes; for a directory its own group. A rename does not change it.
    pub home: GroupLayout,
    /// Told in listings as `..`.
    pub parent: AtomicU64,
    /// Its name there; both as last heard.
    name: Mutex<Bytes>,
    /// How often the kernel was told of it, less what it forgot.
    pub lookups: AtomicU64,
    /// What is known of it.
    state: Mutex<State>,
    /// Held over changes of where the bytes are: truncate, promote, punch.
    pub structure: tokio::sync::Mutex<()>,
    /// Until when the kernel may believe names in this directory that it was told, in nanoseconds of the
    /// clock of leases.
    pub names_until: AtomicU64,
    /// Until then the kernel is to ask for each name: others change it.
    pub shared_until: AtomicU64,
    /// Recalls of its group.
    pub recalls: AtomicU64,
    /// Reads and writes that wait for owners; of a directory, changes of its names.
    pub busy: AtomicU64,
    /// A task waits until what the kernel has of it is recalled.
    pub is_covering: AtomicBool,
    /// How often bytes that wait here were asked for.
    pub sends: AtomicU64,
    /// Held while the turn to append is taken or given back.
    pub turn: tokio::sync::Mutex<()>,
    /// A flight or a fetch ended.
    pub progress: Notify,
}

/// Whether an open file still has a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Names {
    /// It has, as far as this mount knows.
    Some,
    /// Its last name was removed here while it was open; the record goes with the last close.
    Kept,
    /// It never had one and may get one, or goes with the last close (`O_TMPFILE`).
    NotYet,
    /// The record is gone.
    Gone,
}

impl Names {
    /// Whether the record goes with the last close.
    pub fn has_record_only(self) -> bool {
        matches!(self, Self::Kept | Self::NotYet)
    }

    /// Whether nobody can ever read it after this mount: nothing of it is sent.
    pub fn has_no_name(self) -> bool {
        matches!(self, Self::Kept | Self::Gone)
    }
}

/// What is known of an inode.
pub struct State {
    /// The record as last heard.
    pub record: Attributes,
    /// The right to believe it without asking.
    pub right: Right,
    /// The owner keeps it though its names may be gone, until it hears of the last close. Source: N-4.
    pub is_held: bool,
    /// The owner knows that bytes may wait here.
    pub writes: Right,
    /// The record was asked for although nothing is granted: until then that does.
    pub settled_until: u64,
    /// How often what others may have changed was forgotten.
    pub forgotten: u64,
    /// A lookup heard it just now and no open has used that yet.
    pub open_credit_ms: u64,
    /// See I1.
    pub size: u64,
    /// The size is not in the record yet.
    pub size_waits: bool,
    /// Time of the last write that is not in the record yet.
    pub mtime_waits: Option<FileTime>,
    /// Bytes that wait to be sent.
    pub dirty: DirtyRuns,
    /// Bytes that were sent.
    pub flights: Vec<Flight>,
    /// Counts writes; the number of the last one.
    pub sequence: u64,
    /// Bytes read ahead, by place.
    pub chunks: BTreeMap<u64, Bytes>,
    /// Ranges that are being read ahead.
    pub fetching: Vec<(u64, u64)>,
    /// Places changed at the owner since fetches under way began. See I3.
    changed: Vec<(u64, u64, u64)>,
    change_count: u64,
    fetch_count: u32,
    /// Its random reads.
    pub around: Around,
    /// Bytes on their way into the kernel's pages, in so many pieces. Source: A1 of `around.rs`.
    pub stores: u32,
    /// How many may change its bytes or its size here: opens for writing, cuts under way.
    pub changers: u32,
    /// How often it is open.
    pub opens: u32,
    /// Whether it has names.
    pub names: Names,
    /// The record was changed by this mount and is not known to be stable.
    pub record_unstable: bool,
    /// So were the bytes of its device.
    pub bytes_unstable: bool,
    /// The record counts this mount as a writer of the device. Source: N-2.
    pub is_marked: bool,
    /// The newest length of the device that was heard of.
    pub heard_length: DeviceLength,
    /// No other mount appends now.
    pub has_turn: bool,
    /// The device was never written to by anyone.
    pub fresh: bool,
    /// What the kernel's pages show is what the record says.
    pub pages_valid: bool,
    /// A task that writes back is on its way.
    pub kicked: bool,
    /// A run became complete.
    pub has_complete: bool,
    /// A task looks after what waits too long.
    pub late_task: bool,
    /// The owner has not heard of it. See `unborn.rs`.
    pub unborn: Option<Box<Unborn>>,
    /// When its bytes count as written, by policy, once that was asked.
    pub ack: Option<AckMode>,
    /// A device for it, leased with its number.
    pub reserved: Option<GroupLayout>,
    errors: u64,
    error: Errno,
}

/// What is needed to answer a read.
pub enum ReadPlan {
    /// These bytes.
    Now(Bytes),
    /// A fetch under way brings some of it.
    Wait,
    /// These bytes of the device.
    Fetch,
    /// The record came without its inline bytes.
    Unknown,
}

/// A fetch under way; give it back to [`State::end_fetch`].
#[derive(Clone, Copy)]
pub struct Fetch {
    /// First byte.
    pub from: u64,
    /// First byte behind.
    pub to: u64,
    change_count: u64,
}

impl Inode {
    /// It was found there.
    pub fn found(&self, parent: DeviceId, name: &Bytes) {
        self.parent.store(parent.0, Ordering::Relaxed);
        self.name.lock().expect("no holder panics").clone_from(name);
    }

    /// Where it was found last.
    pub fn place(&self) -> (DeviceId, Bytes) {
        let name = self.name.lock().expect("no holder panics").clone();
        (DeviceId(self.parent.load(Ordering::Relaxed)), name)
    }

    /// An inode with its record just heard.
    pub fn new(home: GroupLayout, record: Attributes, right: Right) -> Self {
        let size = record.size;
        Self {
            id: record.id,
            kind: record.kind,
            home,
            parent: AtomicU64::new(0),
            name: Mutex::default(),
            lookups: AtomicU64::new(0),
            names_until: AtomicU64::new(0),
            shared_until: AtomicU64::new(0),
            recalls: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            is_covering: AtomicBool::new(false),
            sends: AtomicU64::new(0),
            structure: tokio::sync::Mutex::new(()),
            turn: tokio::sync::Mutex::new(()),
            progress: Notify::new(),
            state: Mutex::new(State {
                right: right.filter(|_| record.writers == 0),
                record,
                is_held: false,
                writes: None,
                settled_until: 0,
                forgotten: 0,
                open_credit_ms: 0,
                size,
                size_waits: false,
                mtime_waits: None,
                dirty: DirtyRuns::default(),
                flights: Vec::new(),
                sequence: 0,
                chunks: BTreeMap::new(),
                fetching: Vec::new(),
                changed: Vec::new(),
                change_count: 0,
                fetch_count: 0,
                around: Around::default(),
                stores: 0,
                changers: 0,
                opens: 0,
                names: Names::Some,
                record_unstable: false,
                bytes_unstable: false,
                is_marked: false,
                heard_length: DeviceLength::default(),
                has_turn: false,
                fresh: false,
                pages_valid: false,
                kicked: false,
                has_complete: false,
                late_task: false,
                unborn: None,
                ack: None,
                reserved: None,
                errors: 0,
                error: Errno::IO,
            }),
        }
    }

    /// Whether it is a file that is open at this mount.
    pub fn is_open_file(&self) -> bool {
        self.kind == FileKind::File && self.state().opens > 0
    }

    /// What is known of it. Never held over a wait.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl State {
    /// Whether anything waits to be sent or answered.
    pub fn is_dirty(&self) -> bool {
        self.size_waits
            || self.unborn.is_some()
            || self.mtime_waits.is_some()
            || !self.dirty.is_empty()
            || !self.flights.is_empty()
    }

    /// Whether no bytes wait to be sent or answered.
    pub fn is_quiet(&self) -> bool {
        self.dirty.is_empty() && self.flights.is_empty()
    }

    /// Whether the record may be believed.
    pub fn is_fresh(&self) -> bool {
        self.right.as_ref().is_some_and(|right| right.use_at(lease_now()))
    }

    /// Whether the kernel may keep its pages without asking: whoever changes them has them recalled.
    pub fn is_recalled(&self) -> bool {
        self.right.as_ref().is_some_and(|right| right.is_recalled()) && self.is_fresh()
    }

    /// Whether a reader may go on without asking for the record.
    pub fn is_settled(&self) -> bool {
        let is_ours = self.names != Names::Some || self.unborn.is_some() || self.is_dirty();
        is_ours || now_ms() < self.settled_until || self.is_fresh()
    }

    /// How long the kernel may believe the record, in milliseconds.
    pub fn attributes_ms(&self, most: u64) -> u64 {
        let here = self.names != Names::Some || self.unborn.is_some();
        if here { most } else { right_ms(&self.right, most) }
    }

    /// Whether bytes may be kept that were not sent.
    pub fn may_wait(&self) -> bool {
        let is_ours = self.names != Names::Some || self.unborn.is_some();
        is_ours || self.writes.as_ref().is_some_and(|right| right.use_at(lease_now()))
    }

    /// All that others may have changed is forgotten.
    pub fn forget_copies(&mut self) {
        self.right = None;
        self.settled_until = 0;
        self.forgotten += 1;
        self.chunks.clear();
        self.note_change(0, u64::MAX);
        self.pages_valid = false;
    }

    /// Takes a record in that was just heard. Says whether somebody else changed the bytes.
    pub fn absorb(&mut self, mut record: Attributes, own_change: bool, right: Right) -> bool {
        if record.version < self.record.version {
            return false; // Answers overtook each other; the newer one is here.
        }
        let old = &self.record;
        if lacks_bytes(&record) && record.version == old.version {
            record.data = old.data.clone();
        }
        if old.device() != record.device() {
            self.is_marked = false;
            self.heard_length = DeviceLength::default();
        }
        let same_bytes = (record.mtime, record.size) == (old.mtime, old.size);
        let foreign = if own_change {
            record.version != old.version + 1
        } else {
            record.version != old.version && !same_bytes
        };
        if !self.is_dirty() {
            self.size = record.size;
        }
        // While others write, its size is theirs.
        self.right = right.filter(|_| record.writers <= u32::from(self.is_marked));
        self.record = record;
        if foreign {
            self.chunks.clear();
            self.around = Around::default();
            self.note_change(0, u64::MAX);
            self.pages_valid = false;
        }
        foreign
    }

    /// The record tells what was written up to this number now, and this time; later ones wait on.
    pub fn record_waits_no_more(&mut self, until: Option<u64>, mtime: Option<FileTime>) {
        if Some(self.sequence) == until {
            self.size_waits = false;
        }
        if self.mtime_waits == mtime {
            self.mtime_waits = None;
        }
    }

    /// What the kernel goes by when it reads.
    pub fn told(&self) -> (u64, u64, FileTime) {
        (self.record.version, self.size, self.record.mtime)
    }

    /// The record as this mount shows it.
    pub fn shown(&self) -> Attributes {
        let old = &self.record;
        let mut shown = Attributes {
            id: old.id,
            kind: old.kind,
            mode: old.mode,
            uid: old.uid,
            gid: old.gid,
            size: self.size,
            nlink: old.nlink,
            atime: old.atime,
            mtime: old.mtime,
            ctime: old.ctime,
            btime: old.btime,
            rdev: old.rdev,
            version: old.version,
            writers: old.writers,
            size_number: old.size_number,
            // What `stat` does not tell is not copied.
            data: FileData::None,
            target: None,
            xattrs: Vec::new(),
        };
        if let Some(mtime) = self.mtime_waits {
            shown.mtime = mtime;
            shown.ctime = shown.ctime.max(mtime);
        }
        if self.names != Names::Some {
            shown.nlink = 0;
        }
        shown
    }

    /// Whether the record came without its inline bytes, as it does in listings.
    pub fn lacks_bytes(&self) -> bool {
        lacks_bytes(&self.record)
    }

    /// The file's device, if it has one.
    pub fn device(&self) -> Option<&GroupLayout> {
        self.record.device()
    }

    /// What the record is to hear of the device once nothing is under way: its length, and, when
    /// nothing waits either, that this mount writes no more. Source: N-2.
    pub fn device_news(&self) -> Option<DeviceNews> {
        let quiet = self.is_quiet();
        let news = DeviceNews {
            device: self.device()?.group(),
            length: (self.heard_length != DeviceLength::default()).then_some(self.heard_length),
            writers: -i32::from(quiet && self.is_marked),
        };
        (news.length.is_some() || news.writers != 0).then_some(news)
    }

    /// Something was done to the device, and it was so long then.
    pub fn hear_length(&mut self, length: DeviceLength) {
        self.heard_length = self.heard_length.max(length);
    }

    /// Remembers that writing back failed, for every handle to report once.
    pub fn note_error(&mut self, error: Errno) {
        self.errors += 1;
        self.error = error;
    }

    /// Number of failures so far: what a new handle has seen.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// Reports a failure that the handle has not yet reported.
    pub fn check_error(&self, seen: &AtomicU64) -> Outcome<()> {
        if seen.swap(self.errors, Ordering::Relaxed) == self.errors {
            Ok(())
        } else {
            Err(self.error)
        }
    }

    /// Bytes at the owner changed in `from..to`.
    pub fn note_change(&mut self, from: u64, to: u64) {
        self.change_count += 1;
        if self.fetch_count > 0 {
            self.changed.push((self.change_count, from, to));
        }
    }

    /// A fetch begins.
    pub fn begin_fetch(&mut self, from: u64, to: u64) -> Fetch {
        self.fetch_count += 1;
        Fetch { from, to, change_count: self.change_count }
    }

    /// A fetch ended; says whether what it brought is still what the owner has.
    pub fn end_fetch(&mut self, fetch: Fetch) -> bool {
        let good = !self.changed.iter().any(|(count, from, to)| {
            *count > fetch.change_count && *from < fetch.to && *to > fetch.from
        });
        self.fetch_count -= 1;
        if self.fetch_count == 0 {
            self.changed.clear();
        }
        good
    }

    /// Keeps bytes that were read ahead, unless a write that waits touches them. Says whether.
    /// Chunks that they overlap go.
    pub fn keep_chunk(&mut self, at: u64, bytes: Bytes) -> bool {
        let end = at + bytes.len() as u64;
        let touched = self.dirty.overlaps(at, end)
            || self.flights.iter().any(|flight| flight.start < end && flight.end() > at);
        if !touched && !bytes.is_empty() {
            self.drop_chunks(at, end);
            self.chunks.insert(at, bytes);
        }
        !touched
    }

    /// Where the chunk or the fetch under way ends that has the byte `at`.
    pub fn coming_to(&self, at: u64) -> Option<u64> {
        let fetching = self.fetching.iter().filter(|(from, to)| *from <= at && at < *to);
        let chunk = self.chunks.range(..=at).next_back();
        let chunk = chunk.map(|(start, bytes)| start + bytes.len() as u64).filter(|end| at < *end);
        fetching.map(|(_, to)| *to).chain(chunk).max()
    }

    /// Marks `from..to`, or what of it comes before something that is here or coming, as being
    /// fetched. None if its first byte is.
    pub fn plan_fetch(&mut self, from: u64, to: u64) -> Option<(u64, u64)> {
        if to <= from || self.coming_to(from).is_some() {
            return None;
        }
        let fetching = self.fetching.iter().map(|(start, _)| *start).filter(|start| from < *start);
        let chunk = self.chunks.range(from..).next().map(|(start, _)| *start);
        let to = fetching.chain(chunk).fold(to, u64::min);
        self.fetching.push((from, to));
        Some((from, to))
    }

    /// Drops chunks that touch `from..to`.
    pub fn drop_chunks(&mut self, from: u64, to: u64) {
        self.chunks.retain(|start, bytes| *start >= to || start + bytes.len() as u64 <= from);
    }

    /// How to answer a read of `len` bytes at `at`.
    pub fn plan_read(&self, at: u64, len: usize) -> ReadPlan {
        let end = at.saturating_add(len as u64).min(self.size);
        if at >= end {
            return ReadPlan::Now(Bytes::new());
        }
        if self.lacks_bytes() {
            return ReadPlan::Unknown;
        }
        if self.device().is_some() {
            if let Some(bytes) = self.in_one_chunk(at, end) {
                return ReadPlan::Now(bytes);
            }
            let mut holes = vec![(at, end)];
            self.dirty.cover(&mut holes);
            for flight in &self.flights {
                cover(&mut holes, flight.start, flight.end());
            }
            for (start, bytes) in &self.chunks {
                cover(&mut holes, *start, start + bytes.len() as u64);
            }
            if !holes.is_empty() {
                let fetched = |(from, to): &(u64, u64)| *from < end && *to > at;
                let waits = self.fetching.iter().any(fetched);
                return if waits { ReadPlan::Wait } else { ReadPlan::Fetch };
            }
        }
        ReadPlan::Now(self.compose(at, end, None))
    }

    fn in_one_chunk(&self, at: u64, end: u64) -> Option<Bytes> {
        let (start, bytes) = self.chunks.range(..=at).next_back()?;
        let inside = end <= start + bytes.len() as u64;
        inside.then(|| bytes.slice((at - start) as usize..(end - start) as usize))
    }

    /// The bytes of `at..end`: zeros below inline bytes, chunks, `fetched`, flights, runs.
    pub fn compose(&self, at: u64, end: u64, fetched: Option<(u64, &[u8])>) -> Bytes {
        let mut out = vec![0; usize::try_from(end - at).expect("one read")];
        if let FileData::Inline(bytes) = &self.record.data {
            overlay_bytes(0, bytes, at, &mut out);
        }
        for (start, bytes) in &self.chunks {
            overlay_bytes(*start, bytes, at, &mut out);
        }
        if let Some((start, bytes)) = fetched {
            overlay_bytes(start, bytes, at, &mut out);
        }
        for flight in &self.flights {
            flight.overlay(at, &mut out);
        }
        self.dirty.overlay(at, &mut out);
        out.into()
    }
}

/// How long a right runs, in milliseconds, at most `most`.
pub fn right_ms(right: &Right, most: u64) -> u64 {
    let left = right.as_ref().map_or(Duration::ZERO, |right| right.left(lease_now()));
    most.min(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
}

fn lacks_bytes(record: &Attributes) -> bool {
    record.kind == FileKind::File && record.size > 0 && record.data == FileData::None
}

/// All inodes that the kernel was told of, by number.
#[derive(Default)]
pub struct InodeTable {
    inodes: Mutex<BTreeMap<DeviceId, Arc<Inode>>>,
    /// Numbers that the kernel knows, of files that turned out to be others; each with how often the
    /// kernel was told of it. Each counts as one lookup of the other. See `unborn.rs`.
    aliases: Mutex<BTreeMap<DeviceId, (Arc<Inode>, u64)>>,
}

impl InodeTable {
    fn inodes(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Arc<Inode>>> {
        self.inodes.lock().expect("no holder panics")
    }

    /// The inode of that number.
    pub fn get(&self, id: DeviceId) -> Option<Arc<Inode>> {
        let found = self.inodes().get(&id).cloned();
        found.or_else(|| self.aliases().get(&id).map(|(inode, _)| inode.clone()))
    }

    /// Inodes with changes in a group that are not known to be stable.
    pub fn unstable_in(&self, group: DeviceId) -> Vec<Arc<Inode>> {
        let all: Vec<_> = self.inodes().values().cloned().collect();
        let is_in = |inode: &Arc<Inode>| {
            let state = inode.state();
            let device = state.device().map(GroupLayout::group);
            state.record_unstable && inode.home.group() == group
                || state.bytes_unstable && device == Some(group)
        };
        all.into_iter().filter(is_in).collect()
    }

    fn aliases(&self) -> MutexGuard<'_, BTreeMap<DeviceId, (Arc<Inode>, u64)>> {
        self.aliases.lock().expect("no holder panics")
    }

    /// From now on the number of `inode` stands for `other`, of which one lookup is used up.
    pub fn become_alias(&self, inode: &Inode, other: &Arc<Inode>) {
        self.inodes().remove(&inode.id);
        let lookups = inode.lookups.load(Ordering::Relaxed);
        self.aliases().insert(inode.id, (other.clone(), lookups));
    }

    /// Numbers that stand for this inode.
    pub fn aliases_of(&self, id: DeviceId) -> Vec<DeviceId> {
        let aliases = self.aliases();
        let of_id = aliases.iter().filter(|(_, (inode, _))| inode.id == id);
        of_id.map(|(alias, _)| *alias).collect()
    }

    fn forget_alias(&self, id: DeviceId, count: u64) {
        let other = {
            let mut aliases = self.aliases();
            let Some((other, lookups)) = aliases.get_mut(&id) else { return };
            *lookups = lookups.saturating_sub(count);
            if *lookups > 0 {
                return;
            }
            let other = other.id;
            aliases.remove(&id);
            other
        };
        self.forget(other, 1);
    }

    /// The inode of a record that was just heard, known already or new. Says also whether somebody
    /// else changed its bytes.
    pub fn hear(&self, home: &GroupLayout, record: Attributes, right: Right) -> (Arc<Inode>, bool) {
        let mut inodes = self.inodes();
        if let Some(inode) = inodes.get(&record.id) {
            let inode = inode.clone();
            drop(inodes);
            let foreign = inode.state().absorb(record, false, right);
            return (inode, foreign);
        }
        let inode = Arc::new(Inode::new(home.clone(), record, right));
        inodes.insert(inode.id, inode.clone());
        (inode, false)
    }

    /// The kernel forgets some of what it was told.
    pub fn forget(&self, id: DeviceId, count: u64) {
        let mut inodes = self.inodes();
        let Some(inode) = inodes.get(&id) else {
            drop(inodes);
            return self.forget_alias(id, count);
        };
        let before = inode.lookups.fetch_sub(count, Ordering::Relaxed);
        if before <= count {
            inode.lookups.store(0, Ordering::Relaxed);
            let state = inode.state();
            let idle = state.opens == 0 && !state.is_dirty() && !state.names.has_record_only();
            drop(state);
            if idle {
                inodes.remove(&id);
            }
        }
    }

    /// Inodes whose records are in this group.
    pub fn of_home(&self, group: DeviceId) -> Vec<Arc<Inode>> {
        let is_of = |inode: &&Arc<Inode>| inode.home.group() == group;
        self.inodes().values().filter(is_of).cloned().collect()
    }

    /// Open inodes without a name.
    pub fn kept(&self) -> Vec<Arc<Inode>> {
        let is_kept = |inode: &&Arc<Inode>| inode.state().names.has_record_only();
        self.inodes().values().filter(is_kept).cloned().collect()
    }

    /// Inodes with bytes, sizes or times that wait.
    pub fn dirty(&self) -> Vec<Arc<Inode>> {
        self.inodes().values().filter(|inode| inode.state().is_dirty()).cloned().collect()
    }
}
