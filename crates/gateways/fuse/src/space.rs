//! Changes of a file's extent: truncate, allocate, punch, zero; places of data and holes; copies.

use std::rc::Rc;
use std::sync::Arc;

use braid_env::Payload;
use braid_terms::{AckMode, GroupLayout};
use braid_wire::lcc::{AttributeChanges, DeviceNews, FileData, FileOp, LccReply, SetTime};
use bytes::Bytes;

use crate::around::Changing;
use crate::buffer::cover;
use crate::errno::{Errno, Outcome};
use crate::inode::Inode;
use crate::store::Store;
use crate::vfs::{Handle, Vfs};
use crate::write::{Depth, WriteHere, home_device};

/// What `fallocate` does with a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocate {
    /// Room for it, which is taken now: what was a hole holds zeros, and the size grows over it.
    Room,
    /// It reads as zeros and takes no space; the size stays.
    Punch,
    /// It reads as zeros.
    Zero,
}

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sought {
    /// Data.
    Data,
    /// A hole; the end of the file is one.
    Hole,
}

/// Places between bytes that wait, at which one search asks the owner.
const SEEKS_MAX: usize = 64;
const COPY_STEP: u64 = 4 << 20;
const ROOM_STEP: u64 = 1 << 20;
const O_RDWR: i32 = 2;
const SIZE_MAX: u64 = i64::MAX as u64;

impl<S: Store> Vfs<S> {
    /// Sets the size: what is cut off is gone, what is added reads as zeros.
    pub async fn truncate(self: &Rc<Self>, inode: &Arc<Inode>, size: u64) -> Outcome<()> {
        if size > SIZE_MAX {
            return Err(Errno::FBIG);
        }
        let _changing = Changing::settled(inode).await;
        let _structure = inode.structure.lock().await;
        if let Some(other) = self.bear(inode, false).await? {
            return Box::pin(self.truncate(&other, size)).await;
        }
        self.ensure_bytes(inode).await?;
        self.discard_range(inode, size, u64::MAX);
        self.land(inode).await;
        let data = {
            let mut state = inode.state();
            state.note_change(0, u64::MAX);
            state.drop_chunks(0, u64::MAX);
            state.record.data.clone()
        };
        let changes = match data {
            FileData::Device(layout) => {
                self.mark(inode, &layout).await?;
                self.truncate_device(inode, &layout, size).await?;
                AttributeChanges { device: inode.state().device_news(), ..Self::changed_now() }
            }
            _ if size > self.shared.tuning.inline_max => {
                // What waits keeps waiting; the device is made longer than the bytes.
                self.promote(inode).await?;
                let layout = inode.state().device().cloned().ok_or(Errno::IO)?;
                self.truncate_device(inode, &layout, size).await?;
                AttributeChanges { device: inode.state().device_news(), ..Self::changed_now() }
            }
            FileData::Inline(bytes) if size > 0 => {
                let mut resized = bytes.to_vec();
                resized.resize(size as usize, 0);
                let data = FileData::Inline(Bytes::from(resized));
                AttributeChanges { data: Some((data, size)), ..Self::changed_now() }
            }
            _ if size > 0 => {
                let zeros = FileData::Inline(Bytes::from(vec![0; size as usize]));
                AttributeChanges { data: Some((zeros, size)), ..Self::changed_now() }
            }
            _ => AttributeChanges { data: Some((FileData::None, 0)), ..Self::changed_now() },
        };
        let leaves = changes.device.is_some_and(|news| news.writers < 0);
        let (record, right) = self.set_record(&inode.home, inode.id, changes, false).await?;
        let foreign = {
            let mut state = inode.state();
            state.is_marked &= !leaves;
            state.size = size;
            state.size_waits = false;
            if state.dirty.is_empty() {
                state.mtime_waits = None;
            }
            state.record_unstable = true;
            state.absorb(record, true, right)
        };
        if foreign {
            self.shared.drop_pages(inode.id);
        }
        Ok(())
    }

    fn changed_now() -> AttributeChanges {
        AttributeChanges {
            mtime: Some(SetTime::To(crate::clock::wall())),
            ..AttributeChanges::default()
        }
    }

    /// Counts this mount as a writer in the record: who looks asks the device meanwhile.
    async fn mark(&self, inode: &Arc<Inode>, layout: &GroupLayout) -> Outcome<()> {
        if inode.state().is_marked {
            return Ok(());
        }
        let news = DeviceNews { device: layout.group(), length: None, writers: 1 };
        let changes = AttributeChanges { device: Some(news), ..AttributeChanges::default() };
        self.change_record(inode, changes, false).await?;
        let mut state = inode.state();
        state.is_marked = state.device().is_some_and(|layout| layout.group() == news.device);
        Ok(())
    }

    async fn truncate_device(
        &self,
        inode: &Inode,
        layout: &GroupLayout,
        length: u64,
    ) -> Outcome<()> {
        let home = home_device(&inode.home);
        inode.state().bytes_unstable = true;
        let op = FileOp::Truncate { length, home };
        match self.file(layout, op, Payload::empty()).await {
            Ok((LccReply::Length(length), _)) => {
                inode.state().hear_length(length);
                Ok(())
            }
            Ok(_) => Err(Errno::IO),
            // Nobody wrote to it yet.
            Err(Errno::NOENT) if length == 0 => Ok(()),
            Err(Errno::NOENT) => {
                let op = FileOp::Write {
                    at: length - 1,
                    home,
                    fresh: true,
                    stable: false,
                    append: false,
                    ack: AckMode::Cluster,
                };
                let last = Payload::from(Bytes::from_static(&[0]));
                let length = self.write_device(layout, op, last).await?;
                let mut state = inode.state();
                state.fresh = false;
                state.hear_length(length);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// `fallocate`.
    ///
    /// Errors: `NOSPC` before anything is changed where the room is not there; `OPNOTSUPP` for room
    /// behind the end of a file that keeps its size.
    pub async fn allocate(
        self: &Rc<Self>,
        inode: &Arc<Inode>,
        range: (u64, u64),
        what: Allocate,
        keep_size: bool,
    ) -> Outcome<()> {
        let (from, len) = range;
        let to = from.checked_add(len).filter(|to| *to <= SIZE_MAX).ok_or(Errno::FBIG)?;
        let size = inode.state().size;
        if what != Allocate::Room && from < size {
            self.zero(inode, from, to.min(size)).await?;
        }
        let grows = what != Allocate::Punch && !keep_size && to > size;
        if what == Allocate::Room {
            if keep_size && to > size {
                return Err(Errno::OPNOTSUPP);
            }
            // What has no name is not sent (see `flush`), so nothing of it could run out of room.
            if !inode.state().names.has_no_name() {
                return self.make_room(inode, from, to).await;
            }
        }
        if grows { self.truncate(inode, to).await } else { Ok(()) }
    }

    /// Writes zeros where `from..to` is behind the end: only what is stored is sure to have room.
    async fn make_room(self: &Rc<Self>, inode: &Arc<Inode>, from: u64, to: u64) -> Outcome<()> {
        let size = inode.state().size;
        if to.saturating_sub(from.max(size)) > self.space().await?.free {
            return Err(Errno::NOSPC);
        }
        let handle = Arc::new(Handle::of_inode(inode.clone(), O_RDWR));
        let done = async {
            let mut at = from;
            while at < to {
                let end = to.min(at - at % ROOM_STEP + ROOM_STEP);
                self.fill(&handle, at, end).await?;
                at = end;
            }
            self.finish(&handle, Depth::Held).await
        };
        let done = done.await;
        if done.is_err() && size < inode.state().size {
            // As if nothing had been asked; what fails here is told by the first error.
            let _ = self.truncate(inode, size).await;
        }
        done
    }

    async fn fill(self: &Rc<Self>, handle: &Arc<Handle>, at: u64, end: u64) -> Outcome<()> {
        let inode = &handle.inode;
        loop {
            let room = self.room.notified();
            let (layout, fetch) = {
                let mut state = inode.state();
                (state.device().cloned(), state.begin_fetch(at, end))
            };
            let behind = match &layout {
                Some(layout) => self.behind_end(layout, at, end).await,
                None => Ok((at.max(inode.state().size.min(end)), end)),
            };
            // From here to the writes there is no wait: nobody's bytes come between.
            let is_same = inode.state().end_fetch(fetch);
            let (from, to) = behind?;
            let waits = {
                let state = inode.state();
                let flies = |from: u64, to: u64| {
                    state.flights.iter().any(|flight| flight.start < to && flight.end() > from)
                };
                let touched = state.dirty.overlaps(at, end) || flies(at, end);
                touched || !is_same || state.device() != layout.as_ref()
            };
            if inode.state().names.has_no_name() {
                return Ok(());
            }
            if waits {
                self.flush(inode, Depth::Held).await?;
                continue;
            }
            let mut is_full = false;
            if from < to {
                let zeros = vec![0; usize::try_from(to - from).expect("one step")];
                match self.shared.take_in(handle, from, &zeros)? {
                    WriteHere::Full => is_full = true,
                    WriteHere::Kick => self.kick(inode),
                    WriteHere::Done | WriteHere::NoTurn | WriteHere::NotTold => {}
                }
            }
            if !is_full {
                return Ok(());
            }
            self.send_all();
            room.await;
        }
    }

    /// What of `at..end` is behind a device's end. Holes before it stay: another mount may write there
    /// meanwhile, and zeros would come over its bytes.
    async fn behind_end(&self, layout: &GroupLayout, at: u64, end: u64) -> Outcome<(u64, u64)> {
        let length = match self.file(layout, FileOp::Length, Payload::empty()).await {
            Ok((LccReply::Length(length), _)) => length.bytes,
            Ok(_) => return Err(Errno::IO),
            Err(Errno::NOENT) => 0,
            Err(error) => return Err(error),
        };
        Ok((at.max(length.min(end)), end))
    }

    /// Zeros in place of `from..to`, which lies within the file.
    async fn zero(self: &Rc<Self>, inode: &Arc<Inode>, from: u64, to: u64) -> Outcome<()> {
        self.flush(inode, Depth::Held).await?;
        let _structure = inode.structure.lock().await;
        self.ensure_bytes(inode).await?;
        self.discard_range(inode, from, to);
        self.land(inode).await;
        let data = {
            let mut state = inode.state();
            state.note_change(from, to);
            state.drop_chunks(from, to);
            state.record.data.clone()
        };
        let changes = match data {
            FileData::None => return Ok(()),
            FileData::Inline(bytes) => {
                let mut bytes = bytes.to_vec();
                let end = (to as usize).min(bytes.len());
                bytes[(from as usize).min(end)..end].fill(0);
                let size = bytes.len() as u64;
                let data = FileData::Inline(bytes.into());
                AttributeChanges { data: Some((data, size)), ..Self::changed_now() }
            }
            FileData::Device(layout) => {
                inode.state().bytes_unstable = true;
                let op = FileOp::Punch { at: from, length: to - from };
                match self.file(&layout, op, Payload::empty()).await {
                    Ok(_) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                }
                Self::changed_now()
            }
        };
        let outcome = self.change_record(inode, changes, false).await;
        let mut state = inode.state();
        state.note_change(from, to);
        state.drop_chunks(from, to);
        outcome
    }

    /// The next place with data, or without. What waits here is data: of a file without a name it is
    /// never sent.
    ///
    /// Errors: `NXIO` from the end on, and where no data follows.
    pub async fn seek(self: &Rc<Self>, handle: &Handle, at: u64, sought: Sought) -> Outcome<u64> {
        let inode = &handle.inode;
        self.finish(handle, Depth::Held).await?;
        let (size, device, free) = {
            let state = inode.state();
            if at >= state.size {
                return Err(Errno::NXIO);
            }
            let mut free = vec![(at, state.size)];
            state.flights.iter().for_each(|flight| cover(&mut free, flight.start, flight.end()));
            state.dirty.cover(&mut free);
            (state.size, state.device().cloned(), free)
        };
        let Some(layout) = device else {
            return Ok(if sought == Sought::Data { at } else { size });
        };
        let length = match self.file(&layout, FileOp::Length, Payload::empty()).await {
            Ok((LccReply::Length(length), _)) => length.bytes,
            Ok(_) => return Err(Errno::IO),
            Err(Errno::NOENT) => 0,
            Err(error) => return Err(error),
        };
        // Behind the device's end it has no bytes.
        let layout = &layout;
        let stored = |at: u64, hole: bool| async move {
            if at >= length {
                return Ok(if hole { at } else { size });
            }
            match self.file(layout, FileOp::Seek { at, hole }, Payload::empty()).await? {
                (LccReply::Place(place), _) if place >= length && !hole => Ok(size),
                (LccReply::Place(place), _) => Ok(place.clamp(at, size)),
                _ => Err(Errno::IO),
            }
        };
        if sought == Sought::Data {
            let waiting = free.first().map_or(at, |(from, to)| if *from == at { *to } else { at });
            let found = if waiting == at { at } else { waiting.min(stored(at, false).await?) };
            return if found < size { Ok(found) } else { Err(Errno::NXIO) };
        }
        for (from, to) in free.into_iter().take(SEEKS_MAX) {
            let found = stored(from, true).await?;
            if found < to {
                return Ok(found);
            }
        }
        Ok(size)
    }

    /// Copies bytes from file to file without the caller's memory; gives how many.
    pub async fn copy(
        self: &Rc<Self>,
        source: (&Arc<Handle>, u64),
        target: (&Arc<Handle>, u64),
        len: u64,
    ) -> Outcome<u64> {
        let mut done = 0;
        while done < len {
            let step = (len - done).min(COPY_STEP) as usize;
            let bytes = self.read_exactly(&source.0.inode, source.1 + done, step).await?;
            if bytes.is_empty() {
                break;
            }
            done += self.write(target.0, target.1 + done, bytes).await? as u64;
        }
        Ok(done)
    }
}
