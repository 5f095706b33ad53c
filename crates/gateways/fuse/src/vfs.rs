//! The mount's file system: inodes and handles, and how requests reach owners.
//!
//! # Theory
//! ```text
//! kernel -> session.rs -- answered from Shared where it is here
//!              | tasks
//!              v
//!            Vfs -> Store -> owners
//! ```
//! The operations are in files by what they are about: `names.rs`, `listing.rs`, `attributes.rs`,
//! `open.rs`, `read.rs`, `write.rs`, `space.rs`. None of them knows the kernel's protocol.
//! # Coherence
//! What owners say is believed while they grant it, and forgotten when they recall it (`recalls.rs`);
//! the kernel believes it as long as the lease runs, and [`Tuning::ttl_ms`] at most. Where nothing is
//! granted, an open asks the owner (close to open), and the kernel keeps its pages of a file only if
//! nobody else changed the bytes.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use braid_client::Pins;
use braid_env::Payload;
use braid_terms::{AckMode, DataType, DeviceId, GroupLayout};
use braid_wire::lcc::{Attributes, DirectoryOp, FileData, FileKind, FileOp, LccReply};
use bytes::Bytes;
use tokio::sync::Notify;

use crate::clock::now_ms;
use crate::errno::{Errno, Outcome, of_store};
use crate::inode::{Inode, InodeTable, Names};
use crate::listing::Listing;
use crate::locks::HeldLocks;
use crate::store::{Right, Space, Store, StoreError};
use crate::unborn::Nursery;

/// Sizes and times of a mount.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// How long the kernel may believe attributes and entries at most; 0: nothing is kept anywhere.
    pub ttl_ms: u64,
    /// Bytes that may wait to be written, sent ones included.
    pub write_memory: u64,
    /// Bytes of one write to an owner, about.
    pub write_span: u64,
    /// Writes to owners under way.
    pub flights_max: usize,
    /// Bytes in them, about.
    pub flight_bytes: u64,
    /// Bytes of one read ahead, about.
    pub read_unit: u64,
    /// Bytes read ahead of a sequential reader.
    pub read_window: u64,
    /// Bytes that read ahead may keep.
    pub read_memory: u64,
    /// Files up to this size are brought into the kernel's pages by random reads. See `around.rs`.
    pub around_max: u64,
    /// Files up to this size live in their record.
    pub inline_max: u64,
    /// How long written bytes may wait before they are sent.
    pub write_delay_ms: u64,
    /// Give up when the cluster is not there; else wait for it.
    pub soft: bool,
    /// Each write is held before it is answered.
    pub sync: bool,
    /// Locks are the local kernel's: they hold within this mount only.
    pub local_locks: bool,
    /// How long a file may be made here before its owner hears of it; 0: at once.
    pub create_delay_ms: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            ttl_ms: 1_000,
            write_memory: 64 << 20,
            write_span: 4 << 20,
            flights_max: 64,
            flight_bytes: 24 << 20,
            read_unit: 1 << 20,
            read_window: 8 << 20,
            read_memory: 64 << 20,
            around_max: 512 << 20,
            inline_max: braid_terms::INLINE_MAX_DEFAULT as u64,
            write_delay_ms: 500,
            soft: false,
            sync: false,
            local_locks: false,
            create_delay_ms: 5,
        }
    }
}

/// What FUSE threads and the client library's thread share.
pub struct Shared {
    /// Sizes and times.
    pub tuning: Tuning,
    /// Inodes.
    pub inodes: InodeTable,
    /// Number of the root directory.
    pub root: DeviceId,
    /// Bytes that wait to be written, sent ones included.
    pub waiting_bytes: AtomicU64,
    handles: Mutex<BTreeMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
    /// Inodes whose pages in the kernel are no longer right.
    pub stale_pages: std::sync::mpsc::Sender<Stale>,
    /// Bytes on their way into the kernel's pages.
    pub store_bytes: AtomicU64,
    /// Names in the kernel that are no longer right.
    pub stale_names: std::sync::mpsc::Sender<Stale>,
    /// Homes of open files: their attributes and bytes are used without asking.
    pub pins: Arc<Pins>,
}

/// What the kernel is to be told.
pub enum Stale {
    /// These bytes of a file, to be kept as its pages.
    Bytes {
        /// Which.
        inode: Arc<Inode>,
        /// First byte.
        at: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// Pages and attributes of this inode are no longer right.
    Inode(DeviceId),
    /// This name in this directory.
    Name(DeviceId, Bytes),
    /// Everything before was told.
    Told(tokio::sync::oneshot::Sender<()>),
}

/// An open file or directory.
pub struct Handle {
    /// What is open.
    pub inode: Arc<Inode>,
    /// With which `O_` flags.
    pub flags: i32,
    /// Failures of writing back that this handle has reported. See `State::check_error`.
    pub errors_seen: AtomicU64,
    /// Where the last read ended.
    pub read_end: AtomicU64,
    /// Bytes of the sequence of reads that ended there.
    pub read_run: AtomicU64,
    /// How far is read ahead.
    pub ahead_end: AtomicU64,
    /// Of a directory: entries fetched and not yet told.
    pub listing: Mutex<Listing>,
}

impl Handle {
    /// An open that the kernel does not know of.
    pub fn of_inode(inode: Arc<Inode>, flags: i32) -> Self {
        let errors = inode.state().errors();
        Self {
            inode,
            flags,
            errors_seen: AtomicU64::new(errors),
            read_end: AtomicU64::new(0),
            read_run: AtomicU64::new(0),
            ahead_end: AtomicU64::new(0),
            listing: Mutex::default(),
        }
    }

    /// The same, of another inode.
    pub fn of_other(&self, inode: Arc<Inode>) -> Self {
        let errors_seen = AtomicU64::new(self.errors_seen.load(Ordering::Relaxed));
        Self { errors_seen, ..Self::of_inode(inode, self.flags) }
    }
}

/// The mount's file system; on the client library's thread.
pub struct Vfs<S> {
    /// What the FUSE threads see too.
    pub shared: Arc<Shared>,
    /// The cluster.
    pub store: S,
    /// Writes that wait for memory are woken.
    pub room: Notify,
    /// Flights under way.
    pub flights: Cell<usize>,
    /// Bytes in them.
    pub flight_bytes: Cell<u64>,
    /// Inodes whose runs wait for a flight's end.
    pub backlog: RefCell<VecDeque<Arc<Inode>>>,
    /// What is read ahead, the oldest first.
    pub read_order: RefCell<VecDeque<(Weak<Inode>, u64, u64)>>,
    /// Bytes in `read_order`.
    pub read_bytes: Cell<u64>,
    /// Fetches ahead under way.
    pub ahead_fetches: Cell<u64>,
    /// When space was asked for, and the answer.
    space: Cell<(u64, Space)>,
    /// The client process that holds locks.
    pub session: u64,
    /// What it holds.
    pub locks: HeldLocks,
    /// Closes under way.
    pub closing: Cell<usize>,
    /// One has ended.
    pub closed: Notify,
    /// Where the kernel is told what is stale.
    pub notices: RefCell<Option<OwnedFd>>,
    /// Files of which owners have not heard yet.
    pub nursery: RefCell<Nursery>,
}

impl Shared {
    /// Nothing known but the root's number.
    pub fn new(
        tuning: Tuning,
        root: DeviceId,
        (stale_pages, stale_names): (
            std::sync::mpsc::Sender<Stale>,
            std::sync::mpsc::Sender<Stale>,
        ),
        pins: Arc<Pins>,
    ) -> Self {
        Self {
            tuning,
            inodes: InodeTable::default(),
            root,
            waiting_bytes: AtomicU64::new(0),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            stale_pages,
            store_bytes: AtomicU64::new(0),
            stale_names,
            pins,
        }
    }

    /// The inode of that number; the kernel only names what it was told of.
    pub fn inode(&self, id: DeviceId) -> Outcome<Arc<Inode>> {
        self.inodes.get(id).ok_or(Errno::STALE)
    }

    /// The open file or directory of that number.
    pub fn handle(&self, number: u64) -> Outcome<Arc<Handle>> {
        let handles = self.handles.lock().expect("no holder panics");
        handles.get(&number).cloned().ok_or(Errno::BADF)
    }

    /// A number for something just opened. Counts in the inode's `opens`.
    pub fn add_handle(&self, inode: Arc<Inode>, flags: i32) -> u64 {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let mut state = inode.state();
        state.opens += 1;
        state.changers += u32::from(may_write(flags));
        drop(state);
        let handle = Handle::of_inode(inode, flags);
        if handle.inode.kind == FileKind::File {
            self.pins.pin(handle.inode.home.group());
        }
        self.handles.lock().expect("no holder panics").insert(number, Arc::new(handle));
        number
    }

    /// It was closed. Says what it was, and whether nobody has it open now.
    pub fn remove_handle(&self, number: u64) -> Option<(Arc<Handle>, bool)> {
        let handle = self.handles.lock().expect("no holder panics").remove(&number)?;
        let mut state = handle.inode.state();
        state.opens = state.opens.saturating_sub(1);
        state.changers -= u32::from(may_write(handle.flags));
        let last = state.opens == 0;
        drop(state);
        if handle.inode.kind == FileKind::File {
            self.pins.unpin(handle.inode.home.group());
        }
        Some((handle, last))
    }

    /// From now on the number of `inode` stands for `other`, and whoever has it open has that open.
    pub fn become_alias(&self, inode: &Arc<Inode>, other: &Arc<Inode>) {
        self.inodes.become_alias(inode, other);
        let mut handles = self.handles.lock().expect("no holder panics");
        for handle in handles.values_mut() {
            if Arc::ptr_eq(&handle.inode, inode) {
                let writes = u32::from(may_write(handle.flags));
                {
                    let mut state = inode.state();
                    state.opens -= 1;
                    state.changers -= writes;
                }
                let errors = {
                    let mut state = other.state();
                    state.opens += 1;
                    state.changers += writes;
                    state.errors()
                };
                let moved = handle.of_other(other.clone());
                moved.errors_seen.store(errors, Ordering::Relaxed);
                *handle = Arc::new(moved);
            }
        }
    }

    /// Whether any file is open.
    pub fn any_file_open(&self) -> bool {
        let handles = self.handles.lock().expect("no holder panics");
        handles.values().any(|handle| handle.inode.kind == FileKind::File)
    }

    /// The kernel is to drop its pages of a file, or of a listing.
    pub fn drop_pages(&self, id: DeviceId) {
        // No receiver: the mount is ending, and the kernel's pages with it.
        let _ = self.stale_pages.send(Stale::Inode(id));
        for alias in self.inodes.aliases_of(id) {
            let _ = self.stale_pages.send(Stale::Inode(alias));
        }
    }

    /// The kernel has dropped what it was to drop.
    pub async fn pages_dropped(&self) {
        let (told, is_told) = tokio::sync::oneshot::channel();
        // As above.
        let _ = self.stale_pages.send(Stale::Told(told));
        let _ = is_told.await;
    }
}

/// Whether a handle with these `O_` flags may write, also through a mapping.
pub(crate) fn may_write(flags: i32) -> bool {
    const O_ACCMODE: i32 = 3;
    flags & O_ACCMODE != 0
}

/// How long the client library tried before an answer of "unreachable"; then `hard` tries again.
const HARD_PAUSE: Duration = Duration::from_millis(200);

impl<S: Store> Vfs<S> {
    /// A file system over the store.
    pub fn new(shared: Arc<Shared>, store: S) -> Rc<Self> {
        let session = store.session();
        Rc::new(Self {
            shared,
            store,
            room: Notify::new(),
            flights: Cell::new(0),
            flight_bytes: Cell::new(0),
            backlog: RefCell::default(),
            read_order: RefCell::default(),
            read_bytes: Cell::new(0),
            ahead_fetches: Cell::new(0),
            space: Cell::default(),
            session,
            locks: HeldLocks::default(),
            closing: Cell::new(0),
            closed: Notify::new(),
            notices: RefCell::default(),
            nursery: RefCell::default(),
        })
    }

    /// Hears of the root; before any other operation.
    pub async fn begin(&self, root: &GroupLayout) -> Outcome<()> {
        let (record, right) = self.fetch_record(root, root.group()).await?;
        let (inode, _) = self.shared.inodes.hear(root, record, right);
        // The kernel never forgets the root.
        inode.lookups.store(1, Ordering::Relaxed);
        Ok(())
    }

    /// Asks the owner of a directory's group.
    pub async fn directory(&self, group: &GroupLayout, op: DirectoryOp) -> Outcome<LccReply> {
        self.look(group, op).await.map(|(reply, _)| reply)
    }

    /// The same, with the right to believe the answer.
    pub async fn look(&self, group: &GroupLayout, op: DirectoryOp) -> Outcome<(LccReply, Right)> {
        self.ask(group, op, false).await
    }

    /// A change of names or attributes; see [`Store::directory_soon`]. With `-o sync` it is held when it
    /// is answered. Source: W-9.
    pub async fn soon(&self, group: &GroupLayout, op: DirectoryOp) -> Outcome<(LccReply, Right)> {
        self.ask(group, op, !self.shared.tuning.sync).await
    }

    async fn ask(
        &self,
        group: &GroupLayout,
        op: DirectoryOp,
        is_ahead: bool,
    ) -> Outcome<(LccReply, Right)> {
        let keeps = self.shared.tuning.ttl_ms > 0;
        loop {
            let asked = match is_ahead {
                true => self.store.directory_soon(group, op.clone()).await,
                false => self.store.directory(group, op.clone()).await,
            };
            match asked {
                Ok((reply, right)) => return Ok((reply, right.filter(|_| keeps))),
                Err(error) if self.waits_for(&error) => tokio::time::sleep(HARD_PAUSE).await,
                Err(error) => return Err(self.tell_of(group, &error)),
            }
        }
    }

    /// Asks the owner of a file's group.
    pub async fn file(
        &self,
        group: &GroupLayout,
        op: FileOp,
        payload: Payload,
    ) -> Outcome<(LccReply, Bytes)> {
        let change = self.store.change(group, &op);
        loop {
            match self.store.file(group, op.clone(), change.as_ref(), payload.clone()).await {
                Ok(reply) => return Ok(reply),
                Err(error) if self.waits_for(&error) => tokio::time::sleep(HARD_PAUSE).await,
                Err(error) => return Err(self.tell_of(group, &error)),
            }
        }
    }

    /// Whether this failure is only a matter of time and the mount waits.
    fn waits_for(&self, error: &StoreError) -> bool {
        matches!(error, StoreError::Unreachable { .. }) && !self.shared.tuning.soft
    }

    /// Also tells all files whose changes may be among those that are lost: each says so at its next
    /// fsync, whoever asked.
    fn tell_of(&self, group: &GroupLayout, error: &StoreError) -> Errno {
        if let StoreError::HeldLost = error {
            for inode in self.shared.inodes.unstable_in(group.group()) {
                inode.state().note_error(Errno::IO);
            }
        }
        self.tell(error)
    }

    fn tell(&self, error: &StoreError) -> Errno {
        let errno = of_store(error);
        if errno == Errno::IO {
            tracing::warn!(%error, "an operation of the mount failed");
        }
        errno
    }

    /// Asks for a record.
    pub async fn fetch_record(
        &self,
        home: &GroupLayout,
        id: DeviceId,
    ) -> Outcome<(Attributes, Right)> {
        match self.look(home, DirectoryOp::GetAttributes { id }).await? {
            (LccReply::Attributes(record), right) => {
                let asks = self.others_write(&record);
                let record = self.with_length(*record).await?;
                // What came while the length was asked for is not known here.
                Ok((record, right.filter(|_| !asks)))
            }
            _ => Err(Errno::IO),
        }
    }

    /// Looks up the length of a file that is being written elsewhere. Source: N-2.
    async fn with_length(&self, mut record: Attributes) -> Outcome<Attributes> {
        if !self.others_write(&record) {
            return Ok(record); // If any, it is this mount that writes.
        }
        if let FileData::Device(layout) = &record.data {
            match self.file(layout, FileOp::Length, Payload::empty()).await {
                Ok((LccReply::Length(length), _)) => {
                    if record.size_number <= length.number {
                        (record.size, record.size_number) = (length.bytes, length.number);
                    }
                }
                Ok(_) => return Err(Errno::IO),
                Err(Errno::NOENT) => {} // Nobody wrote to it yet.
                Err(error) => return Err(error),
            }
        }
        Ok(record)
    }

    fn others_write(&self, record: &Attributes) -> bool {
        let known = self.shared.inodes.get(record.id);
        known.map_or(0, |inode| u32::from(inode.state().is_marked)) < record.writers
    }

    /// Makes sure that what is known of the inode is not older than the mount believes.
    pub async fn refresh(self: &Rc<Self>, inode: &Arc<Inode>) -> Outcome<()> {
        let known = {
            let state = inode.state();
            let is_here = state.names != Names::Some || state.unborn.is_some();
            is_here || state.is_fresh()
        };
        if known { Ok(()) } else { self.refetch(inode).await }
    }

    /// Asks the owner what is known of the inode.
    pub async fn refetch(self: &Rc<Self>, inode: &Arc<Inode>) -> Outcome<()> {
        if inode.state().unborn.is_some() {
            return self.settle(inode).await;
        }
        let (record, right) = self.fetch_record(&inode.home, inode.id).await?;
        self.absorb(inode, record, false, right);
        Ok(())
    }

    /// Makes sure that inline bytes are here, where the record has some.
    pub async fn ensure_bytes(self: &Rc<Self>, inode: &Arc<Inode>) -> Outcome<()> {
        let lacks = inode.state().lacks_bytes();
        if lacks { self.refetch(inode).await } else { Ok(()) }
    }

    /// Takes a record in, and has the kernel drop its pages where somebody else changed the bytes.
    pub fn absorb(&self, inode: &Arc<Inode>, record: Attributes, own_change: bool, right: Right) {
        let foreign = inode.state().absorb(record, own_change, right);
        if foreign && inode.kind == FileKind::File {
            self.shared.drop_pages(inode.id);
        }
    }

    /// The inode of a record that was just heard, counted as told to the kernel.
    pub fn hear(&self, home: &GroupLayout, record: Attributes, right: Right) -> Arc<Inode> {
        let (inode, foreign) = self.shared.inodes.hear(home, record, right);
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        if foreign && inode.kind == FileKind::File {
            self.shared.drop_pages(inode.id);
        }
        inode
    }

    /// The path of an inode as it was found last; none where that is not known.
    pub fn path_of(&self, inode: &Inode) -> Option<String> {
        let mut names = Vec::new();
        let (mut id, (mut parent, mut name)) = (inode.id, inode.place());
        while id.0 != self.shared.root.0 {
            names.push(String::from_utf8_lossy(&name).into_owned());
            let above = self.shared.inodes.get(parent)?;
            if DEPTH_MAX < names.len() {
                return None;
            }
            id = above.id;
            (parent, name) = above.place();
        }
        names.reverse();
        Some(format!("/{}", names.join("/")))
    }

    /// The path of a name in a directory.
    pub fn path_below(&self, parent: &Inode, name: &[u8]) -> Option<String> {
        let above = self.path_of(parent)?;
        Some(format!("{}/{}", above.trim_end_matches('/'), String::from_utf8_lossy(name)))
    }

    /// When bytes of a file count as written. Source: DESIGN 4.
    pub async fn ack_of(&self, inode: &Inode) -> AckMode {
        let known = inode.state().ack;
        match known {
            Some(ack) => ack,
            None => {
                let ack = self.store.ack(self.path_of(inode)).await;
                inode.state().ack = Some(ack);
                ack
            }
        }
    }

    /// A layout for a new device, by the policy of its path.
    pub async fn new_device(
        &self,
        data_type: DataType,
        path: Option<String>,
    ) -> Outcome<GroupLayout> {
        loop {
            match self.store.new_device(data_type, path.clone()).await {
                Ok(layout) => return Ok(layout),
                Err(error) if self.waits_for(&error) => tokio::time::sleep(HARD_PAUSE).await,
                Err(error) => return Err(self.tell(&error)),
            }
        }
    }

    /// How full the cluster is, asked at most once a second.
    pub async fn space(&self) -> Outcome<Space> {
        let (since_ms, space) = self.space.get();
        if since_ms > 0 && now_ms() < since_ms + 1_000 {
            return Ok(space);
        }
        let space = self.store.space().await.map_err(|error| self.tell(&error))?;
        self.space.set((now_ms(), space));
        Ok(space)
    }
}

/// Directories above a file that are followed for its path.
const DEPTH_MAX: usize = 2048;
