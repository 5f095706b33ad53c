//! Writing behind: runs leave as flights, and the record follows.
//!
//! # Theory
//! ```text
//! write()   copies into a run, and is answered                        FUSE thread
//! kick      a run is complete, or memory is short, or time is up      client's thread
//!             -> flights, several at once, none over another; short ones go together
//! flush     everything written before it is held, then the record     close
//! fsync     ... and stable
//! ```
//! Where a file's bytes are follows its size:
//! ```text
//! None --first flush of at most inline_max bytes--> Inline --grows--> Device
//! None --a run leaves, or more bytes--------------------------------> Device
//! ```
//! The record names the device before its first flight leaves; only inline bytes are written to the
//! device first, so that they are in one of the two at any time.
//! # Failure
//! A flight that failed is gone: its error reaches the next write, fsync and close of every handle.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use braid_env::Payload;
use braid_terms::{AckMode, DataType, DeviceId, GroupLayout};
use braid_wire::lcc::{
    AttributeChanges, DeviceLength, DeviceNews, DirectoryOp, FileData, FileOp, LccReply, PARTS_MAX,
    SetTime,
};
use bytes::Bytes;

use crate::buffer::{Flight, Pick, WriteAt};
use crate::clock::{now_ms, wall};
use crate::errno::{Errno, Outcome};
use crate::inode::{Inode, Names, State};
use crate::open::{O_APPEND, O_DSYNC, O_SYNC_TOO};
use crate::read::whole_stripes;
use crate::store::Store;
use crate::vfs::{Handle, Shared, Vfs};

/// What a FUSE thread made of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteHere {
    /// It is in memory.
    Done,
    /// It is in memory, and something is to leave now.
    Kick,
    /// There is no room.
    Full,
    /// Another mount may be appending.
    NoTurn,
    /// The owner is to know first that bytes wait here.
    NotTold,
}

/// How far a flush goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Bytes and record are held.
    Held,
    /// Bytes are stable, and what of the record is needed to read them again (fdatasync).
    Bytes,
    /// Bytes and record are stable.
    Stable,
}

/// Which runs are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Leaving {
    /// Those to which nothing will be added.
    Complete,
    /// All.
    All,
    /// All, and somebody waits until they are stable.
    Stable,
}

/// How often it is tried to tell an owner of bytes that wait, while others look at the file.
const TELL_MAX: u32 = 3;
/// Largest size of a file.
const SIZE_MAX: u64 = i64::MAX as u64;

impl Shared {
    /// Whether a write through this handle is answered only when it is on its way or stable.
    pub fn writes_through(&self, handle: &Handle) -> bool {
        handle.flags & O_DSYNC != 0 || self.tuning.sync
    }

    /// Takes a write in, if there is room; an append, if it is this mount's turn.
    pub fn write_here(&self, handle: &Handle, at: u64, data: &[u8]) -> Outcome<WriteHere> {
        // With nothing kept anywhere, nobody keeps what is old.
        let is_told = self.tuning.ttl_ms == 0 || handle.inode.state().may_wait();
        self.write_told(handle, at, data, is_told)
    }

    fn write_told(
        &self,
        handle: &Handle,
        at: u64,
        data: &[u8],
        is_told: bool,
    ) -> Outcome<WriteHere> {
        if handle.flags & O_APPEND != 0 {
            let state = handle.inode.state();
            // Of a file that no owner knows yet, or that has no name any more, no other mount knows.
            if !state.has_turn && state.unborn.is_none() && state.names == Names::Some {
                return Ok(WriteHere::NoTurn);
            }
            if state.size != at {
                // The kernel has put the bytes where it took the end to be.
                self.drop_pages(handle.inode.id);
            }
        }
        if !is_told {
            return Ok(WriteHere::NotTold);
        }
        self.take_in(handle, at, data)
    }

    /// The same, whoever else appends.
    pub fn take_in(&self, handle: &Handle, at: u64, data: &[u8]) -> Outcome<WriteHere> {
        let len = data.len() as u64;
        let waiting = self.waiting_bytes.load(Ordering::Relaxed);
        if waiting > 0 && waiting + len > self.tuning.write_memory {
            return Ok(WriteHere::Full);
        }
        let mut state = handle.inode.state();
        state.check_error(&handle.errors_seen)?;
        if state.dirty.is_crowded() {
            return Ok(WriteHere::Full);
        }
        let at = if handle.flags & O_APPEND != 0 { state.size } else { at };
        let end = at.checked_add(len).filter(|end| *end <= SIZE_MAX).ok_or(Errno::FBIG)?;
        let span = match state.device() {
            Some(layout) => whole_stripes(self.tuning.write_span, layout),
            None => self.tuning.write_span,
        };
        state.sequence += 1;
        let sequence = state.sequence;
        state.drop_chunks(at, end);
        let before = state.dirty.bytes();
        let was_dirty = state.is_dirty();
        let complete = state.dirty.write(WriteAt { at, span, sequence, now_ms: now_ms() }, data);
        state.has_complete |= complete;
        let grown = state.dirty.bytes() - before;
        self.waiting_bytes.fetch_add(grown, Ordering::Relaxed);
        if end > state.size {
            state.size = end;
            state.size_waits = true;
        }
        state.mtime_waits = Some(wall());
        let short = waiting + grown > self.tuning.write_memory / 2;
        let leaves = !was_dirty || short || complete;
        if leaves && !state.kicked {
            state.kicked = true;
            return Ok(WriteHere::Kick);
        }
        Ok(WriteHere::Done)
    }

    pub(crate) fn freed(&self, bytes: u64) {
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl<S: Store> Vfs<S> {
    /// Writes; waits for room.
    pub async fn write(
        self: &Rc<Self>,
        handle: &Arc<Handle>,
        at: u64,
        data: Bytes,
    ) -> Outcome<usize> {
        // Who waits until they are sent need not tell that they wait.
        let mut goes_through = self.shared.writes_through(handle);
        loop {
            let room = self.room.notified();
            let here = match goes_through {
                true => self.shared.write_told(handle, at, &data, true),
                false => self.shared.write_here(handle, at, &data),
            };
            match here? {
                WriteHere::Done => break,
                WriteHere::Kick => {
                    self.kick(&handle.inode);
                    break;
                }
                WriteHere::Full => {
                    self.send_all();
                    room.await;
                }
                WriteHere::NoTurn => self.take_turn(&handle.inode).await?,
                // Where the owner cannot know, others see the bytes when they are sent: before the
                // answer.
                WriteHere::NotTold => goes_through = !self.tell_writes(&handle.inode).await?,
            }
            let now = self.shared.inodes.get(handle.inode.id);
            if let Some(other) = now.filter(|now| !Arc::ptr_eq(now, &handle.inode)) {
                // It turned out to be another file. See `unborn.rs`.
                let handle = Arc::new(handle.of_other(other));
                return Box::pin(self.write(&handle, at, data)).await;
            }
        }
        if goes_through {
            let depth = match handle.flags {
                flags if flags & O_SYNC_TOO != 0 => Depth::Stable,
                flags if flags & O_DSYNC != 0 => Depth::Bytes,
                _ => Depth::Held,
            };
            self.finish(handle, depth).await?;
            self.cover(&handle.inode);
        }
        Ok(data.len())
    }

    /// Tells the owner that bytes of the file are going to wait here. Says whether it knows.
    async fn tell_writes(&self, inode: &Arc<Inode>) -> Outcome<bool> {
        let group = inode.home.group();
        for _ in 0..TELL_MAX {
            if self.store.right(group).is_none() {
                break;
            }
            let sends = inode.sends.load(Ordering::Relaxed);
            match self.directory(&inode.home, DirectoryOp::Writes { id: inode.id }).await {
                Ok(_) => {}
                Err(Errno::STALE) => continue,
                Err(error) => return Err(error),
            }
            // If somebody looked at it meanwhile, the owner does not know any more.
            if sends == inode.sends.load(Ordering::Relaxed) {
                let right = self.store.right(group);
                let is_told = right.is_some();
                inode.state().writes = right;
                return Ok(is_told);
            }
        }
        Ok(false)
    }

    /// Flushes and reports a failure that the handle has not reported.
    pub async fn finish(self: &Rc<Self>, handle: &Handle, depth: Depth) -> Outcome<()> {
        let outcome = self.flush(&handle.inode, depth).await;
        handle.inode.state().check_error(&handle.errors_seen)?;
        outcome
    }

    /// A file has bytes to send: complete runs leave now, others when their time is up.
    pub fn kick(self: &Rc<Self>, inode: &Arc<Inode>) {
        let (vfs, inode) = (self.clone(), inode.clone());
        inode.state().kicked = false;
        tokio::task::spawn_local(async move {
            vfs.send_complete(&inode).await;
            vfs.send_late(&inode).await;
        });
    }

    async fn send_complete(self: &Rc<Self>, inode: &Arc<Inode>) {
        let has_complete = std::mem::take(&mut inode.state().has_complete);
        if has_complete && self.ensure_device(inode).await.is_ok() {
            self.send_runs(inode, Leaving::Complete);
        }
    }

    /// Flushes what waits for `write_delay_ms`; one such task per file.
    async fn send_late(self: &Rc<Self>, inode: &Arc<Inode>) {
        let delay = self.shared.tuning.write_delay_ms;
        let late = |since: u64| now_ms() >= since + delay;
        if inode.state().late_task {
            return;
        }
        inode.state().late_task = true;
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(delay / 2 + 1)).await;
            let (dirty, since) = {
                let state = inode.state();
                (state.is_dirty(), state.dirty.since_ms())
            };
            if !dirty {
                break;
            }
            if since.is_none_or(late) && self.flush(inode, Depth::Held).await.is_err() {
                break; // The handles report it.
            }
        }
        inode.state().late_task = false;
    }

    /// Memory is short: all files send what they have.
    pub(crate) fn send_all(self: &Rc<Self>) {
        for inode in self.shared.inodes.dirty() {
            let vfs = self.clone();
            tokio::task::spawn_local(async move {
                if vfs.ensure_device(&inode).await.is_ok() {
                    vfs.send_runs(&inode, Leaving::All);
                }
                vfs.room.notify_waiters();
            });
        }
    }

    /// Sends runs that may leave, up to the number of flights. What cannot leave now does so when a
    /// flight ends.
    fn send_runs(self: &Rc<Self>, inode: &Arc<Inode>, leaving: Leaving) {
        loop {
            if self.flights.get() >= self.shared.tuning.flights_max
                || self.flight_bytes.get() >= self.shared.tuning.flight_bytes
            {
                let mut backlog = self.backlog.borrow_mut();
                if !backlog.iter().any(|waiting| Arc::ptr_eq(waiting, inode)) {
                    backlog.push_back(inode.clone());
                }
                return;
            }
            let mut state = inode.state();
            let Some(layout) = state.device().cloned() else { return };
            let span = whole_stripes(self.shared.tuning.write_span, &layout);
            let sent =
                gather(&mut state, |end| leaving != Leaving::Complete || end.is_multiple_of(span));
            if sent.is_empty() {
                return;
            }
            let (parts, payload) = parts(&sent);
            let len = payload.len() as u64;
            let fresh = state.fresh;
            state.flights.extend(sent);
            // One round trip makes the last one stable, and all that was sent before it.
            let stable = leaving == Leaving::Stable && parts.len() == 1 && state.dirty.is_empty();
            state.bytes_unstable |= !stable;
            drop(state);
            self.flights.set(self.flights.get() + 1);
            self.flight_bytes.set(self.flight_bytes.get() + len);
            let (vfs, inode) = (self.clone(), inode.clone());
            tokio::task::spawn_local(async move {
                let (home, ack) = (home_device(&inode.home), vfs.ack_of(&inode).await);
                let op = match parts[..] {
                    [(at, _)] => FileOp::Write { at, home, fresh, stable, append: false, ack },
                    _ => FileOp::WriteMany { parts: parts.clone(), home, fresh, ack },
                };
                let outcome = vfs.write_device(&layout, op, payload).await;
                vfs.landed(&inode, &parts, outcome, leaving);
            });
        }
    }

    /// Writes to a device. Where no portion knows it, nobody wrote to it yet, although a record names
    /// it: then it is made by this write.
    pub async fn write_device(
        &self,
        layout: &GroupLayout,
        mut op: FileOp,
        payload: Payload,
    ) -> Outcome<DeviceLength> {
        let reply = match self.file(layout, op.clone(), payload.clone()).await {
            Err(Errno::NOENT) => {
                if let FileOp::Write { fresh, .. } | FileOp::WriteMany { fresh, .. } = &mut op {
                    *fresh = true;
                }
                self.file(layout, op, payload).await?
            }
            outcome => outcome?,
        };
        match reply {
            (LccReply::Written { length, .. }, _) => Ok(length),
            _ => Err(Errno::IO),
        }
    }

    /// Flights that went together were answered.
    fn landed(
        self: &Rc<Self>,
        inode: &Arc<Inode>,
        parts: &[(u64, u32)],
        outcome: Outcome<DeviceLength>,
        leaving: Leaving,
    ) {
        {
            let mut state = inode.state();
            let is_one = |flight: &Flight| {
                parts.binary_search_by_key(&flight.start, |(start, _)| *start).is_ok()
            };
            state.flights.retain(|flight| !is_one(flight));
            for (start, len) in parts {
                state.note_change(*start, start + u64::from(*len));
            }
            match outcome {
                Ok(length) => {
                    state.fresh = false;
                    state.hear_length(length);
                }
                Err(error) => state.note_error(error),
            }
        }
        let len = parts.iter().map(|(_, len)| u64::from(*len)).sum();
        self.shared.freed(len);
        self.flights.set(self.flights.get() - 1);
        self.flight_bytes.set(self.flight_bytes.get() - len);
        inode.progress.notify_waiters();
        self.room.notify_waiters();
        self.send_runs(inode, leaving);
        let waiting: Vec<_> = self.backlog.borrow_mut().drain(..).collect();
        for inode in waiting {
            self.send_runs(&inode, Leaving::All);
        }
    }

    /// Makes all that was written before held, and the record with it; or stable.
    pub async fn flush(self: &Rc<Self>, inode: &Arc<Inode>, depth: Depth) -> Outcome<()> {
        if inode.state().names.has_no_name() {
            return Ok(());
        }
        let stable = depth != Depth::Held;
        let other = if inode.state().unborn.is_some() {
            let _structure = inode.structure.lock().await;
            self.bear(inode, stable).await?
        } else {
            None
        };
        if let Some(other) = other {
            return Box::pin(self.flush(&other, depth)).await;
        }
        if !self.flush_inline(inode, stable).await? {
            self.send_device(inode, stable).await?;
            if !stable {
                return self.flush_record(inode, false).await;
            }
            let keeps_record = {
                let state = inode.state();
                depth == Depth::Bytes && !state.size_waits && !state.record_unstable
            };
            let record =
                async { if keeps_record { Ok(()) } else { self.flush_record(inode, true).await } };
            let (bytes, record) = futures_util::future::join(self.sync_bytes(inode), record).await;
            bytes.and(record)?;
        }
        if stable { self.sync_record(inode).await } else { Ok(()) }
    }

    /// A small file goes into its record in one write. Says whether it did.
    async fn flush_inline(self: &Rc<Self>, inode: &Arc<Inode>, stable: bool) -> Outcome<bool> {
        let _structure = inode.structure.lock().await;
        self.ensure_bytes(inode).await?;
        let (bytes, mtime, sent, sequence) = {
            let mut state = inode.state();
            let fits = state.device().is_none() && state.size <= self.shared.tuning.inline_max;
            if !fits || !state.flights.is_empty() {
                return Ok(false);
            }
            if !state.is_dirty() {
                return Ok(true);
            }
            let size = state.size;
            let bytes = state.compose(0, size, None);
            let sent = state.dirty.take_all();
            let sent_bytes: u64 = sent.iter().map(|flight| flight.len).sum();
            state.flights.extend(sent);
            (bytes, state.mtime_waits, sent_bytes, state.sequence)
        };
        let size = bytes.len() as u64;
        let data = if size == 0 { FileData::None } else { FileData::Inline(bytes) };
        let changes = AttributeChanges {
            data: Some((data, size)),
            mtime: mtime.map(SetTime::To),
            ..AttributeChanges::default()
        };
        let outcome = self.set_record(&inode.home, inode.id, changes, stable).await;
        let foreign = {
            let mut state = inode.state();
            state.flights.clear();
            state.record_waits_no_more(Some(sequence), mtime);
            state.record_unstable = !stable;
            match &outcome {
                Ok((record, right)) => state.absorb(record.clone(), true, right.clone()),
                Err(error) => {
                    state.note_error(*error);
                    false
                }
            }
        };
        self.shared.freed(sent);
        self.room.notify_waiters();
        inode.progress.notify_waiters();
        if foreign {
            self.shared.drop_pages(inode.id);
        }
        outcome.map(|_| true)
    }

    /// Sends everything written before, and waits until it is held; or stable, where it is the last.
    async fn send_device(self: &Rc<Self>, inode: &Arc<Inode>, stable: bool) -> Outcome<()> {
        let (until, nothing) = {
            let state = inode.state();
            (state.sequence, state.dirty.is_empty() && state.flights.is_empty())
        };
        if nothing {
            return Ok(());
        }
        self.ensure_device(inode).await?;
        loop {
            let progress = inode.progress.notified();
            self.send_runs(inode, if stable { Leaving::Stable } else { Leaving::All });
            {
                let state = inode.state();
                let flying = state.flights.iter().any(|flight| flight.sequence <= until);
                if !flying && !state.dirty.has_until(until) {
                    return Ok(());
                }
            }
            progress.await;
        }
    }

    /// Brings size and time in the record up to date.
    async fn flush_record(&self, inode: &Arc<Inode>, stable: bool) -> Outcome<()> {
        let (changes, told, mtime) = {
            let mut state = inode.state();
            if state.mtime_waits.is_none() && !state.size_waits {
                return Ok(());
            }
            // What is not at the device yet is not in the length that is told.
            let told = state.is_quiet().then_some(state.sequence);
            let device = state.device_news();
            state.is_marked &= device.is_none_or(|news| news.writers == 0);
            let changes = AttributeChanges {
                mtime: state.mtime_waits.map(SetTime::To),
                device,
                ..AttributeChanges::default()
            };
            (changes, told, state.mtime_waits)
        };
        match self.set_record(&inode.home, inode.id, changes, stable).await {
            Ok((record, right)) => {
                {
                    let mut state = inode.state();
                    state.record_waits_no_more(told, mtime);
                    state.record_unstable = !stable;
                }
                self.absorb(inode, record, true, right);
                Ok(())
            }
            Err(error) => {
                inode.state().note_error(error);
                Err(error)
            }
        }
    }

    /// Waits until the held bytes of the file are stable. Source: W-9.
    async fn sync_bytes(&self, inode: &Arc<Inode>) -> Outcome<()> {
        let device = {
            let mut state = inode.state();
            let unstable = std::mem::take(&mut state.bytes_unstable);
            state.device().filter(|_| unstable).cloned()
        };
        let Some(layout) = device else { return Ok(()) };
        match self.file(&layout, FileOp::SYNC, Payload::empty()).await {
            // Nobody wrote to it yet.
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => {
                let mut state = inode.state();
                state.note_error(error);
                state.bytes_unstable = true;
                Err(error)
            }
        }
    }

    /// Waits until the held record of the file, and its name, are stable. Source: W-9.
    async fn sync_record(&self, inode: &Arc<Inode>) -> Outcome<()> {
        if !std::mem::take(&mut inode.state().record_unstable) {
            return Ok(());
        }
        let outcome = self.directory(&inode.home, DirectoryOp::SYNC).await.map(drop);
        if let Err(error) = outcome {
            let mut state = inode.state();
            state.note_error(error);
            state.record_unstable = true;
        }
        outcome
    }

    /// Makes what was made in a directory stable.
    pub async fn sync_directory(self: &Rc<Self>, inode: &Inode) -> Outcome<()> {
        self.settle_in(inode.id).await;
        self.directory(&inode.home, DirectoryOp::SYNC).await.map(drop)
    }

    /// Gives the file a device, if it has none.
    pub async fn ensure_device(self: &Rc<Self>, inode: &Arc<Inode>) -> Outcome<()> {
        if inode.state().device().is_some() {
            return Ok(());
        }
        let _structure = inode.structure.lock().await;
        // What was written goes with it if it becomes another's; a failure is noted.
        if self.bear(inode, false).await?.is_some() {
            return Ok(());
        }
        let outcome = self.promote(inode).await;
        if let Err(error) = outcome {
            // Nothing can be sent: what waits is lost, as after a failed flight.
            inode.state().note_error(error);
            self.discard(inode);
        }
        outcome
    }

    /// See `ensure_device`; `structure` is held.
    pub async fn promote(self: &Rc<Self>, inode: &Arc<Inode>) -> Outcome<()> {
        self.ensure_bytes(inode).await?;
        let inline = {
            let state = inode.state();
            match &state.record.data {
                FileData::Device(_) => return Ok(()),
                FileData::Inline(bytes) => bytes.clone(),
                FileData::None => Bytes::new(),
            }
        };
        let reserved = inode.state().reserved.take();
        let layout = match reserved {
            Some(layout) => layout,
            None => self.new_device(DataType::File, self.path_of(inode)).await?,
        };
        let size = inode.state().record.size;
        let mut length = DeviceLength::default();
        if !inline.is_empty() {
            length = self.write_inline(inode, &layout, inline.clone()).await?;
        }
        let news = DeviceNews { device: layout.group(), length: None, writers: 1 };
        let changes = AttributeChanges {
            data: Some((FileData::Device(layout), size)),
            device: Some(news),
            ..AttributeChanges::default()
        };
        self.change_record(inode, changes, false).await?;
        let mut state = inode.state();
        state.is_marked = state.device().is_some_and(|layout| layout.group() == news.device);
        state.hear_length(length);
        state.fresh = inline.is_empty();
        state.bytes_unstable = true;
        Ok(())
    }

    async fn write_inline(
        &self,
        inode: &Inode,
        layout: &GroupLayout,
        bytes: Bytes,
    ) -> Outcome<DeviceLength> {
        let op = FileOp::Write {
            at: 0,
            home: home_device(&inode.home),
            fresh: true,
            // They may be on the disks in the record now: it must not get there before them.
            stable: true,
            append: false,
            ack: AckMode::Cluster,
        };
        self.write_device(layout, op, Payload::from(bytes)).await
    }

    /// Drops what waits: the file is gone, or it cannot be sent.
    pub fn discard(&self, inode: &Inode) {
        let mut state = inode.state();
        let before = state.dirty.bytes();
        state.dirty.punch(0, u64::MAX);
        state.mtime_waits = None;
        state.size_waits = false;
        if state.flights.is_empty() {
            state.size = state.record.size;
        }
        drop(state);
        self.shared.freed(before);
        self.room.notify_waiters();
        inode.progress.notify_waiters();
    }

    /// Bytes that waited were sent, or moved.
    pub fn freed(&self, inode: &Inode, bytes: u64) {
        self.shared.freed(bytes);
        self.room.notify_waiters();
        inode.progress.notify_waiters();
    }

    /// Drops written bytes of `from..to` that were not sent.
    pub fn discard_range(&self, inode: &Inode, from: u64, to: u64) {
        let mut state = inode.state();
        let before = state.dirty.bytes();
        state.dirty.punch(from, to);
        let gone = before - state.dirty.bytes();
        drop(state);
        self.shared.freed(gone);
        self.room.notify_waiters();
    }

    /// Waits until no flight of the file is under way.
    pub async fn land(&self, inode: &Inode) {
        loop {
            let progress = inode.progress.notified();
            if inode.state().flights.is_empty() {
                return;
            }
            progress.await;
        }
    }
}

/// What the portions' headers name as home: the meta-data device. Source: F-9.
pub(crate) fn home_device(home: &GroupLayout) -> DeviceId {
    home.devices.last().copied().unwrap_or_default()
}

/// Takes out runs that may leave and fly over nothing: one, or as many short ones as go together. In
/// the order of their places.
fn gather(state: &mut State, may_leave: impl Fn(u64) -> bool) -> Vec<Flight> {
    let mut busy: Vec<(u64, u64)> = state.flights.iter().map(|f| (f.start, f.end())).collect();
    busy.sort_unstable();
    let is_free = |start: u64, end: u64| {
        let before = busy.partition_point(|(from, _)| *from < end);
        before.checked_sub(1).is_none_or(|last| busy[last].1 <= start)
    };
    let (mut count, mut bytes) = (0, 0);
    state.dirty.take(|start, end| {
        let is_short = end - start <= SHORT_MAX;
        if !may_leave(end) || !is_free(start, end) || count > 0 && !is_short {
            return Pick::Not;
        }
        count += 1;
        bytes += end - start;
        let is_last = !is_short || GATHERED_MAX <= bytes || PARTS_MAX <= count;
        if is_last { Pick::ItAsLast } else { Pick::It }
    })
}

/// Where flights that go together begin, their bytes, and all of these.
fn parts(flights: &[Flight]) -> (Vec<(u64, u32)>, Payload) {
    let mut payload = Payload::empty();
    let pieces = flights.iter().flat_map(|flight| &flight.pieces);
    pieces.for_each(|piece| payload.push(piece.clone()));
    let size = |flight: &Flight| u32::try_from(flight.len).expect("runs are short");
    (flights.iter().map(|flight| (flight.start, size(flight))).collect(), payload)
}

/// Runs of at most so many bytes go together.
const SHORT_MAX: u64 = 64 << 10;
/// Bytes of such runs in one request, about.
const GATHERED_MAX: u64 = 1 << 20;
