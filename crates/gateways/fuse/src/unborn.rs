//! Creates that are answered before the owner is asked.
//!
//! # Theory
//! A file is made, written and closed: two changes at the owner, where one would do. So a create
//! without `O_EXCL` is answered here, with a number that was leased before, and the owner hears of it
//! with the first bytes: at the close, when somebody here asks for the name, or soon
//! ([`Tuning::create_delay_ms`](crate::Tuning)).
//! ```text
//! LOOKUP no such name -> CREATE answered here -> WRITE in memory -> FLUSH: one Create with the bytes
//! ```
//! # When another mount was faster
//! Then the name stands for a file of its making, and this open is an open of that file, as it would
//! have been some milliseconds later: it is cut if `O_TRUNC` was given, and what was written here is
//! written there. The kernel's number of the unborn file becomes an alias of it.
//! # Invariants
//! U1 Who asks this mount for names or times of a directory sees its unborn files: they are born before.
//! U2 A failure to be born reaches the next write, fsync and close, as one of writing back does (M2).
//! # Source
//! W-9, O-2 (numbers ahead).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use braid_terms::{DeviceId, WriteNumber};
use braid_wire::lcc::{
    Attributes, DirectoryOp, FileData, FileKind, IfExists, LccReply, NewAttributes, SetTime,
};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::join_all;

use crate::acl::ACCESS;
use crate::around::Changing;
use crate::attributes::Changes;
use crate::clock::{now_ms, wall};
use crate::errno::{Errno, Outcome};
use crate::inode::{Inode, Names, State};
use crate::open::{O_APPEND, O_TRUNC};
use crate::store::{Right, Store};
use crate::vfs::Vfs;

/// What the owner has not heard yet.
pub struct Unborn {
    parent: Arc<Inode>,
    name: Bytes,
    new: NewAttributes,
    flags: i32,
    since_ms: u64,
}

/// Unborn files by their places.
#[derive(Default)]
pub struct Nursery {
    places: BTreeMap<(DeviceId, Bytes), Arc<Inode>>,
    /// A task looks after them.
    is_watched: bool,
}

/// How often another file of the same name may come and go.
const RACES_MAX: u32 = 16;

impl State {
    /// Changes attributes of a file of which the owner knows nothing. Says whether it is one.
    fn change_unborn(&mut self, changes: &Changes) -> bool {
        if self.unborn.is_none() || (changes.mode.is_some() && self.acl(ACCESS).is_some()) {
            return false;
        }
        let time = |time: SetTime| match time {
            SetTime::Now => wall(),
            SetTime::To(time) => time,
        };
        let record = &mut self.record;
        if let Some(mode) = changes.mode {
            record.mode = mode & 0o7777;
        }
        record.uid = changes.uid.unwrap_or(record.uid);
        record.gid = changes.gid.unwrap_or(record.gid);
        if let Some(atime) = changes.atime {
            record.atime = time(atime);
        }
        if let Some(mtime) = changes.mtime {
            record.mtime = time(mtime);
            self.mtime_waits = None;
        }
        record.ctime = wall();
        let privileges = self.without_privileges(None).mode.filter(|_| changes.kill_privileges);
        let (unborn, record) = (self.unborn.as_mut().expect("seen above"), &mut self.record);
        record.mode = privileges.unwrap_or(record.mode);
        (unborn.new.mode, unborn.new.uid, unborn.new.gid) = (record.mode, record.uid, record.gid);
        true
    }
}

impl<S: Store> Vfs<S> {
    /// Makes a file that the owner hears of later; `None` where that cannot be.
    pub fn conceive(
        self: &Rc<Self>,
        parent: &Arc<Inode>,
        name: &Bytes,
        new: &NewAttributes,
        flags: i32,
    ) -> Option<Arc<Inode>> {
        let delay = self.shared.tuning.create_delay_ms;
        if delay == 0 || self.shared.tuning.sync {
            return None;
        }
        let layout = self.store.ready_device()?;
        let new = NewAttributes { id: Some(layout.group()), ..new.clone() };
        let record = provisional(layout.group(), &new);
        let right = self.store.right(parent.home.group());
        let inode = self.hear(&parent.home, record, right);
        inode.found(parent.id, name);
        {
            let mut state = inode.state();
            state.reserved = Some(layout);
            state.pages_valid = true;
            state.unborn = Some(Box::new(Unborn {
                parent: parent.clone(),
                name: name.clone(),
                new,
                flags,
                since_ms: now_ms(),
            }));
        }
        let mut nursery = self.nursery.borrow_mut();
        nursery.places.insert((parent.id, name.clone()), inode.clone());
        if !std::mem::replace(&mut nursery.is_watched, true) {
            let vfs = self.clone();
            tokio::task::spawn_local(async move { vfs.watch_unborn(delay).await });
        }
        Some(inode)
    }

    /// Nobody waits longer than the delay for a name that was made here.
    async fn watch_unborn(self: Rc<Self>, delay: u64) {
        loop {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            let due: Vec<Arc<Inode>> = {
                let mut nursery = self.nursery.borrow_mut();
                nursery.is_watched = !nursery.places.is_empty();
                if !nursery.is_watched {
                    return;
                }
                nursery.places.values().filter(|inode| is_due(inode, delay)).cloned().collect()
            };
            self.bear_all(due).await;
        }
    }

    /// The unborn file of that name.
    pub fn unborn(&self, parent: DeviceId, name: &Bytes) -> Option<Arc<Inode>> {
        let nursery = self.nursery.borrow();
        if nursery.places.is_empty() {
            return None;
        }
        nursery.places.get(&(parent, name.clone())).cloned()
    }

    /// Whether a directory has unborn files.
    pub fn has_unborn(&self, parent: DeviceId) -> bool {
        let nursery = self.nursery.borrow();
        let mut from = nursery.places.range((parent, Bytes::new())..);
        from.next().is_some_and(|((id, _), _)| *id == parent)
    }

    /// The owner hears of all unborn files of a directory (U1).
    pub async fn settle_in(self: &Rc<Self>, parent: DeviceId) {
        let all: Vec<Arc<Inode>> = {
            let nursery = self.nursery.borrow();
            let first = (parent, Bytes::new());
            let inside = nursery.places.range(first..).take_while(|((id, _), _)| *id == parent);
            inside.map(|(_, inode)| inode.clone()).collect()
        };
        self.bear_all(all).await;
    }

    async fn bear_all(self: &Rc<Self>, inodes: Vec<Arc<Inode>>) {
        let births = inodes.iter().map(|inode| async move {
            // Whoever has it open hears of a failure.
            if self.settle(inode).await.is_ok() && inode.state().is_dirty() {
                self.kick(inode);
            }
        });
        join_all(births).await;
    }

    /// The owner hears of the file, if it is unborn. Afterwards it may go by another inode.
    pub async fn settle(self: &Rc<Self>, inode: &Arc<Inode>) -> Outcome<()> {
        if inode.state().unborn.is_none() {
            return Ok(());
        }
        let _structure = inode.structure.lock().await;
        self.bear(inode, false).await.map(drop)
    }

    /// See [`Vfs::settle`]; gives the inode that it goes by now.
    pub async fn settled(self: &Rc<Self>, inode: &Arc<Inode>) -> Outcome<Arc<Inode>> {
        self.settle(inode).await?;
        let now = self.shared.inodes.get(inode.id);
        Ok(now.unwrap_or_else(|| inode.clone()))
    }

    /// Changes attributes of an unborn file here. Says whether it is one.
    pub fn change_unborn(&self, inode: &Inode, changes: &Changes) -> bool {
        // Held: the owner is hearing of it just now.
        let Ok(_structure) = inode.structure.try_lock() else { return false };
        changes.size.is_none() && inode.state().change_unborn(changes)
    }

    /// The owner hears of the file, with its bytes if they are few; `structure` is held. Gives the
    /// inode that stands for it, if that is another one.
    pub async fn bear(
        self: &Rc<Self>,
        inode: &Arc<Inode>,
        stable: bool,
    ) -> Outcome<Option<Arc<Inode>>> {
        for _ in 0..RACES_MAX {
            let Some(Birth { op, parent, told }) = self.birth(inode, stable) else {
                return Ok(None);
            };
            let reply = self.look(&parent.home, op).await;
            parent.state().right = None;
            match reply {
                Ok((LccReply::Entry { attributes: Some(record), .. }, right)) => {
                    self.born(inode, (*record, right), told, stable);
                    return Ok(None);
                }
                Err(Errno::EXIST) => {
                    self.take_back(inode);
                    match self.adopt(inode).boxed_local().await {
                        Ok(Some(other)) => return Ok(Some(other)),
                        Ok(None) => {} // It is gone again.
                        Err(error) => return self.stillborn(inode, error),
                    }
                }
                Ok(_) => return self.stillborn(inode, Errno::IO),
                Err(error) => return self.stillborn(inode, error),
            }
        }
        self.stillborn(inode, Errno::BUSY)
    }

    /// The request that makes the file, and what goes with it.
    fn birth(&self, inode: &Inode, stable: bool) -> Option<Birth> {
        let mut state = inode.state();
        let unborn = state.unborn.as_ref()?;
        let (parent, name) = (unborn.parent.clone(), unborn.name.clone());
        let mut new = unborn.new.clone();
        let mtime = state.mtime_waits;
        let mut told = Told { sent: 0, until: (state.size == 0).then_some(state.sequence), mtime };
        if state.size > 0 && state.size <= self.shared.tuning.inline_max {
            let size = state.size;
            new.data = FileData::Inline(state.compose(0, size, None));
            new.size = size;
            let flights = state.dirty.take_all();
            told.sent = flights.iter().map(|flight| flight.len).sum();
            told.until = Some(state.sequence);
            state.flights.extend(flights);
        }
        // As they were told already.
        let record = &state.record;
        new.made = Some(mtime.map_or(record.ctime, |mtime| mtime.max(record.ctime)));
        (new.atime, new.mtime) = (Some(record.atime), Some(mtime.unwrap_or(record.mtime)));
        let op = DirectoryOp::Create {
            operation: self.store.operation(),
            name,
            attributes: new,
            if_exists: IfExists::Fail,
            stable,
        };
        Some(Birth { op, parent, told })
    }

    fn born(&self, inode: &Arc<Inode>, heard: (Attributes, Right), told: Told, stable: bool) {
        self.leave_nursery(inode);
        let mut state = inode.state();
        state.unborn = None;
        state.flights.clear();
        state.record_waits_no_more(told.until, told.mtime);
        state.record_unstable = !stable;
        state.absorb(heard.0, true, heard.1);
        drop(state);
        self.freed(inode, told.sent);
    }

    /// What was to go with a request that failed waits again.
    fn take_back(&self, inode: &Inode) {
        let mut state = inode.state();
        let flights = std::mem::take(&mut state.flights);
        for flight in flights {
            let mut at = flight.start;
            for piece in &flight.pieces {
                let span = self.shared.tuning.write_span;
                let to = crate::buffer::WriteAt {
                    at,
                    span,
                    sequence: flight.sequence,
                    now_ms: now_ms(),
                };
                state.dirty.write(to, piece);
                at += piece.len() as u64;
            }
        }
    }

    fn stillborn(&self, inode: &Arc<Inode>, error: Errno) -> Outcome<Option<Arc<Inode>>> {
        self.take_back(inode);
        self.leave_nursery(inode);
        {
            let mut state = inode.state();
            state.unborn = None;
            state.names = Names::Gone;
            state.note_error(error);
        }
        self.discard(inode);
        Err(error)
    }

    fn leave_nursery(&self, inode: &Inode) {
        let place = match &inode.state().unborn {
            Some(unborn) => (unborn.parent.id, unborn.name.clone()),
            None => return,
        };
        self.nursery.borrow_mut().places.remove(&place);
    }

    /// Somebody else made a file of that name: this one becomes an alias of it. `None` where there is
    /// none any more.
    async fn adopt(self: &Rc<Self>, inode: &Arc<Inode>) -> Outcome<Option<Arc<Inode>>> {
        let (parent, name, flags) = match &inode.state().unborn {
            Some(unborn) => (unborn.parent.clone(), unborn.name.clone(), unborn.flags),
            None => return Ok(None),
        };
        let other = match self.lookup_owner(&parent, name).await {
            Ok(found) => found.inode,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        if other.kind != FileKind::File {
            self.shared.inodes.forget(other.id, 1);
            // What an open for writing of such a name gives.
            let is_directory = other.kind == FileKind::Directory;
            return Err(if is_directory { Errno::ISDIR } else { Errno::LOOP });
        }
        if flags & O_TRUNC != 0 {
            self.truncate(&other, 0).await?;
        }
        if flags & O_APPEND != 0 {
            self.take_turn(&other).await?;
        }
        let _changing = Changing::settled(&other).await;
        self.leave_nursery(inode);
        // From here on there is no wait: nothing can be written between.
        let runs = {
            let mut state = inode.state();
            state.unborn = None;
            state.names = Names::Gone;
            (state.size_waits, state.mtime_waits) = (false, None);
            state.dirty.take_all()
        };
        self.shared.become_alias(inode, &other);
        let handle = self.shared.add_handle(other.clone(), flags);
        let writer = self.shared.handle(handle)?;
        for run in runs {
            self.freed(inode, run.len);
            let mut at = run.start;
            for piece in &run.pieces {
                self.shared.take_in(&writer, at, piece)?;
                at += piece.len() as u64;
            }
        }
        self.shared.remove_handle(handle);
        self.kick(&other);
        // The kernel believes the size that it was told of the unborn file.
        self.shared.drop_pages(inode.id);
        self.shared.pages_dropped().await;
        Ok(Some(other))
    }
}

fn is_due(inode: &Inode, delay: u64) -> bool {
    let state = inode.state();
    state.unborn.as_ref().is_some_and(|unborn| now_ms() >= unborn.since_ms + delay)
}

/// The request that makes a file.
struct Birth {
    op: DirectoryOp,
    parent: Arc<Inode>,
    told: Told,
}

/// What goes with it.
struct Told {
    /// Bytes.
    sent: u64,
    /// All bytes, up to the write of this number; none if they have to wait for a device.
    until: Option<u64>,
    /// Time of the last write.
    mtime: Option<braid_wire::lcc::FileTime>,
}

/// The record as it will be; of version 0, so that the owner's is the next.
fn provisional(id: DeviceId, new: &NewAttributes) -> Attributes {
    let now = wall();
    Attributes {
        id,
        kind: new.kind,
        mode: new.mode,
        uid: new.uid,
        gid: new.gid,
        size: 0,
        nlink: 1,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        rdev: 0,
        version: 0,
        writers: 0,
        size_number: WriteNumber::NONE,
        data: FileData::None,
        target: None,
        xattrs: new.xattrs.clone(),
    }
}
