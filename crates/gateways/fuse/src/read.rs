//! Reading, and reading ahead.
//!
//! # Theory
//! ```text
//! reader        at ----------> |
//! chunks here      [ unit ][ unit ][ unit ]
//! being fetched                            [ unit ][ unit ]
//!               <------------- read_window ------------->
//! ```
//! Who reads on where the last read ended has the next bytes fetched in units of whole stripes, several
//! at once, the more the longer the sequence is, up to `read_window`. A chunk goes when it was read
//! to its end: from then on the kernel's pages have it. Reads at random places: `around.rs`.
//! # Invariants
//! R1 Nothing is fetched ahead that is here or coming already, and at most `read_memory` at a time:
//!    a reader that jumps about, or many of them, must not drown the owners.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use braid_env::Payload;
use braid_terms::GroupLayout;
use braid_wire::lcc::{FileOp, LccReply};
use bytes::Bytes;

use crate::clock::now_ms;
use crate::errno::{Errno, Outcome, of_store};
use crate::inode::{Inode, ReadPlan};
use crate::store::Store;
use crate::vfs::{Handle, Shared, Tuning, Vfs};

/// What a FUSE thread finds.
pub enum ReadHere {
    /// These bytes; more is to be fetched ahead if the flag is set.
    Now(Bytes, bool),
    /// It must be fetched.
    Ask,
}

const PAGE: u64 = 4096;
/// Where owners grant nothing, an open file's record is asked for that often while it is read.
const SETTLED_MS: u64 = 100;
/// The kernel sends neighbouring reads at the same time, so they come in any order: as far apart as
/// this they still count as one sequence.
const NEAR: u64 = 2 << 20;
/// A sequence of so many bytes is one to be read ahead of; the kernel's first reads are short.
const SEQUENCE: u64 = 128 << 10;
pub(crate) const O_DIRECT: i32 = 0o40000;

impl Handle {
    /// Whether a read at `at` goes on where this handle read before.
    fn follows(&self, at: u64) -> bool {
        self.read_end.load(Ordering::Relaxed).abs_diff(at) <= NEAR
    }

    /// Whether it is the next one of a sequence.
    fn is_sequential(&self, at: u64) -> bool {
        let is_long = self.read_run.load(Ordering::Relaxed) >= SEQUENCE;
        self.read_end.load(Ordering::Relaxed) == at || is_long && self.follows(at)
    }

    fn note_read(&self, at: u64, end: u64) {
        let length = end.saturating_sub(at);
        if self.is_sequential(at) {
            self.read_end.fetch_max(end, Ordering::Relaxed);
            self.read_run.fetch_add(length, Ordering::Relaxed);
        } else {
            self.read_end.store(end, Ordering::Relaxed);
            self.read_run.store(length, Ordering::Relaxed);
            self.ahead_end.store(end, Ordering::Relaxed);
        }
    }

    /// How far to fetch ahead of the sequence.
    fn window(&self, tuning: &Tuning) -> u64 {
        let run = self.read_run.load(Ordering::Relaxed);
        let most = if run < SEQUENCE { 0 } else { run.saturating_mul(4).max(tuning.read_unit) };
        most.min(tuning.read_window)
    }
}

/// Bytes of one read ahead: `read_unit`, in whole stripes.
fn read_unit(tuning: &Tuning, layout: &GroupLayout) -> u64 {
    whole_stripes(tuning.read_unit, layout)
}

/// The largest number of whole stripes up to `bytes`, at least one stripe, at most a request.
pub(crate) fn whole_stripes(bytes: u64, layout: &GroupLayout) -> u64 {
    let stripe = u64::from(layout.strip_size) * layout.scheme.data() as u64;
    let most = braid_terms::REQUEST_BYTES_MAX as u64;
    if stripe > most {
        return most;
    }
    (bytes / stripe).max(1) * stripe
}

impl Shared {
    /// Reads what is here.
    pub fn read_here(&self, handle: &Handle, at: u64, len: usize) -> Outcome<ReadHere> {
        let mut state = handle.inode.state();
        if !state.is_settled() {
            return Ok(ReadHere::Ask);
        }
        let ReadPlan::Now(bytes) = state.plan_read(at, len) else {
            return Ok(ReadHere::Ask);
        };
        let end = at + bytes.len() as u64;
        let sequential = handle.is_sequential(at);
        handle.note_read(at, end);
        if sequential {
            // What lies well behind the reader is in the kernel's pages now.
            let behind = end.saturating_sub(NEAR);
            while let Some(entry) = state.chunks.first_entry()
                && entry.key() + entry.get().len() as u64 <= behind
            {
                entry.remove();
            }
        }
        let ahead = handle.ahead_end.load(Ordering::Relaxed);
        let wants_more = sequential
            && state.device().is_some()
            && ahead < state.size
            && ahead < end + handle.window(&self.tuning) / 2;
        Ok(ReadHere::Now(bytes, wants_more))
    }
}

impl<S: Store> Vfs<S> {
    /// Reads.
    pub async fn read(
        self: &Rc<Self>,
        handle: &Arc<Handle>,
        at: u64,
        len: usize,
    ) -> Outcome<Bytes> {
        let inode = &handle.inode;
        if !inode.state().is_settled() {
            // What is here, and what the kernel has from here, is recalled only while it is granted.
            let forgotten = inode.state().forgotten;
            self.refetch(inode).await?;
            let mut state = inode.state();
            if state.forgotten == forgotten {
                state.settled_until = now_ms() + SETTLED_MS;
            }
        }
        let mut has_fetched = false;
        loop {
            let progress = inode.progress.notified();
            let plan = inode.state().plan_read(at, len);
            match plan {
                ReadPlan::Now(_) => break,
                ReadPlan::Wait => progress.await,
                ReadPlan::Unknown => self.ensure_bytes(inode).await?,
                // What waits to be written next to it, or a unit's edge, may keep a fetch from being
                // enough: then exactly what is asked is read.
                ReadPlan::Fetch if !has_fetched => {
                    has_fetched = true;
                    if !self.fetch_more(handle, at, len).await? {
                        break;
                    }
                }
                ReadPlan::Fetch => {
                    handle.note_read(at, at.saturating_add(len as u64));
                    break;
                }
            }
        }
        self.cover(inode);
        match self.shared.read_here(handle, at, len)? {
            ReadHere::Now(bytes, wants_more) => {
                if wants_more {
                    self.read_ahead(handle);
                }
                Ok(bytes)
            }
            ReadHere::Ask => self.read_exactly(inode, at, len).await,
        }
    }

    /// Fetches more than the read that misses at `at`, if that makes sense. Says whether what came is
    /// kept.
    async fn fetch_more(
        self: &Rc<Self>,
        handle: &Arc<Handle>,
        at: u64,
        len: usize,
    ) -> Outcome<bool> {
        let inode = &handle.inode;
        if handle.is_sequential(at) {
            handle.ahead_end.store(at, Ordering::Relaxed);
            let Some(unit) = self.plan_unit(handle, at) else { return Ok(false) };
            self.read_ahead(handle);
            return Ok(self.fetch_unit(inode, unit, Patience::AsMounted).await?.is_some());
        }
        let unit = {
            let mut state = inode.state();
            // Who writes to the file, or keeps its pages away from the kernel, gains nothing.
            if state.changers > 0 || handle.flags & O_DIRECT != 0 || len > SEQUENCE as usize {
                return Ok(false);
            }
            let Some(layout) = state.device().cloned() else { return Ok(false) };
            let (size, max) = (state.size, self.shared.tuning.around_max);
            let Some((from, to)) = state.around.widen(at, size, max, now_ms()) else {
                return Ok(false);
            };
            // Beside what is here already, which the kernel was told.
            let from = state.coming_to(from).unwrap_or(from).min(at - at % PAGE);
            let to = to.min(size.next_multiple_of(PAGE));
            let Some((from, to)) = state.plan_fetch(from, to) else { return Ok(false) };
            (layout, from, to)
        };
        let from = unit.1;
        let Some(bytes) = self.fetch_unit(inode, unit, Patience::AsMounted).await? else {
            return Ok(false);
        };
        self.shared.store_pages(inode, from, bytes);
        Ok(true)
    }

    /// Fetches ahead of a sequential reader, up to the window.
    pub fn read_ahead(self: &Rc<Self>, handle: &Arc<Handle>) {
        let tuning = &self.shared.tuning;
        let from = handle.read_end.load(Ordering::Relaxed);
        let window = from + handle.window(tuning);
        loop {
            let at = handle.ahead_end.load(Ordering::Relaxed).max(from);
            if at >= window || at >= handle.inode.state().size {
                return;
            }
            if self.ahead_fetches.get() >= tuning.read_memory / tuning.read_unit {
                return; // The reader asks again.
            }
            let (vfs, handle) = (self.clone(), handle.clone());
            let Some(fetch) = vfs.plan_unit(&handle, at) else { continue };
            self.ahead_fetches.set(self.ahead_fetches.get() + 1);
            tokio::task::spawn_local(async move {
                // A reader that needs these bytes asks again and hears of the failure.
                let _ = vfs.fetch_unit(&handle.inode, fetch, Patience::Once).await;
                vfs.ahead_fetches.set(vfs.ahead_fetches.get() - 1);
            });
        }
    }

    /// Marks the unit at `at` as being fetched; `None` where it is here or coming. Either way what
    /// comes behind it is next.
    fn plan_unit(&self, handle: &Handle, at: u64) -> Option<(GroupLayout, u64, u64)> {
        let mut state = handle.inode.state();
        let Some(layout) = state.device().cloned() else {
            handle.ahead_end.store(u64::MAX, Ordering::Relaxed);
            return None;
        };
        let unit = read_unit(&self.shared.tuning, &layout);
        let from = at - at % PAGE;
        let to = (from - from % unit + unit).min(state.size.next_multiple_of(PAGE));
        let planned = state.plan_fetch(from, to);
        let next = planned.map_or_else(|| state.coming_to(from).unwrap_or(to), |(_, to)| to);
        handle.ahead_end.store(next.max(at + 1), Ordering::Relaxed);
        let (from, to) = planned?;
        Some((layout, from, to))
    }

    /// Fetches a unit; gives its bytes if they are kept.
    async fn fetch_unit(
        &self,
        inode: &Arc<Inode>,
        unit: (GroupLayout, u64, u64),
        patience: Patience,
    ) -> Outcome<Option<Bytes>> {
        let (layout, from, to) = unit;
        let fetch = inode.state().begin_fetch(from, to);
        let outcome = match patience {
            Patience::AsMounted => self.fetch(&layout, from, to).await,
            Patience::Once => self.fetch_once(&layout, from, to).await,
        };
        let mut state = inode.state();
        let good = state.end_fetch(fetch);
        if let Some(place) = state.fetching.iter().position(|range| *range == (from, to)) {
            state.fetching.swap_remove(place);
        }
        let bytes = match outcome {
            Ok(bytes) => bytes,
            Err(error) => {
                drop(state);
                inode.progress.notify_waiters();
                return Err(error);
            }
        };
        // Behind the device's end are zeros, up to the file's.
        let want = (to.min(state.size).saturating_sub(from)) as usize;
        let bytes = if bytes.len() < want {
            let mut longer = Vec::with_capacity(want);
            longer.extend_from_slice(&bytes);
            longer.resize(want, 0);
            longer.into()
        } else {
            bytes
        };
        let len = bytes.len() as u64;
        let kept = good && state.keep_chunk(from, bytes.clone());
        drop(state);
        if kept {
            self.count_chunk(inode, from, len);
        }
        inode.progress.notify_waiters();
        Ok(kept.then_some(bytes))
    }

    /// Keeps to the memory for read ahead: the oldest chunks go.
    fn count_chunk(&self, inode: &Arc<Inode>, at: u64, len: u64) {
        let mut order = self.read_order.borrow_mut();
        order.push_back((Arc::downgrade(inode), at, len));
        let mut bytes = self.read_bytes.get() + len;
        while bytes > self.shared.tuning.read_memory {
            let Some((inode, at, len)) = order.pop_front() else { break };
            bytes -= len;
            if let Some(inode) = inode.upgrade() {
                inode.state().chunks.remove(&at);
            }
        }
        self.read_bytes.set(bytes);
    }

    /// Reads exactly what is asked, without keeping it.
    pub async fn read_exactly(
        self: &Rc<Self>,
        inode: &Arc<Inode>,
        at: u64,
        len: usize,
    ) -> Outcome<Bytes> {
        self.ensure_bytes(inode).await?;
        loop {
            let (layout, end, fetch) = {
                let mut state = inode.state();
                if let ReadPlan::Now(bytes) = state.plan_read(at, len) {
                    return Ok(bytes);
                }
                let end = at.saturating_add(len as u64).min(state.size);
                let layout = state.device().ok_or(Errno::IO)?.clone();
                (layout, end, state.begin_fetch(at, end))
            };
            let outcome = self.fetch(&layout, at, end).await;
            let mut state = inode.state();
            if !state.end_fetch(fetch) {
                continue; // A write went over it meanwhile: what came may be of before.
            }
            let bytes = outcome?;
            let end = end.min(state.size).max(at);
            return Ok(state.compose(at, end, Some((at, &bytes))));
        }
    }

    /// Bytes of a device, in as many requests as it takes; shorter at its end.
    pub async fn fetch(&self, layout: &GroupLayout, from: u64, to: u64) -> Outcome<Bytes> {
        let most = braid_terms::REQUEST_BYTES_MAX as u64;
        if to - from <= most {
            return self.fetch_one(layout, from, to).await;
        }
        let mut all = Vec::new();
        let mut at = from;
        while at < to {
            let end = to.min(at + most);
            let bytes = self.fetch_one(layout, at, end).await?;
            all.extend_from_slice(&bytes);
            if (bytes.len() as u64) < end - at {
                break;
            }
            at = end;
        }
        Ok(all.into())
    }

    async fn fetch_one(&self, layout: &GroupLayout, from: u64, to: u64) -> Outcome<Bytes> {
        bytes_read(self.file(layout, read_op(from, to), Payload::empty()).await)
    }

    /// At most a request's bytes of a device, without waiting for a lost cluster.
    async fn fetch_once(&self, layout: &GroupLayout, from: u64, to: u64) -> Outcome<Bytes> {
        let outcome = self.store.file(layout, read_op(from, to), None, Payload::empty()).await;
        bytes_read(outcome.map_err(|error| of_store(&error)))
    }
}

/// What is done about a lost cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// As the mount's options say.
    AsMounted,
    /// It is not waited for: nobody asked for these bytes yet.
    Once,
}

fn read_op(from: u64, to: u64) -> FileOp {
    let length = u32::try_from(to - from).expect("at most a request");
    FileOp::Read { at: from, length, stable: false }
}

fn bytes_read(outcome: Outcome<(LccReply, Bytes)>) -> Outcome<Bytes> {
    match outcome {
        Ok((LccReply::Read { .. }, bytes)) => Ok(bytes),
        Ok(_) => Err(Errno::IO),
        // Promoted, and nothing was written yet.
        Err(Errno::NOENT) => Ok(Bytes::new()),
        Err(error) => Err(error),
    }
}
