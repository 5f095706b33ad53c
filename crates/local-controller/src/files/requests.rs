//! Requests of clients to one LCC, and its work in the background.
//!
//! # Theory
//! ```text
//! connection --hello: which LCC--> Files --NewDevices--> Lcc
//!                                        --Directory---> Directory (batch.rs), read when first used
//!                                        --File--------> Group
//! background: to-remove lists, old uploads, directories that nobody uses, the root
//! ```
//! # Invariants
//! F1 A directory is in memory once, and only under the group under which it was read.
//! # Failure
//! Lost groups and failed directories are forgotten, and read again when asked for.
//! # Source
//! O-1, O-2, F-9, N-4.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use braid_env::{Address, Connection, Payload};
use braid_terms::{DeviceId, GroupLayout, LccId, PortionIndex, WriteNumber};
use braid_wire::lcc::{
    Answer, AttributeChanges, Chosen, DirectoryOp, FileData, FileOp, FileTime, GroupDescription,
    Lcc as LccService, LccRefusal, LccReply, LccRequest, OperationId,
};
use braid_wire::rpc::{
    Client, Handler, Hello, HelloReply, Peer, Role, accept_hello, serve_connection_after,
};
use bytes::Bytes;
use futures_util::stream::{StreamExt, iter};
use tokio::sync::Mutex;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::access::{OwnedGroup, own_refusal, place_refusal, write_refusal};
use super::batch::{Directory, Losses};
use super::checks::{bad, check_directory_layout, check_layout};
use super::file::FileDevices;
use super::joint::Joints;
use super::locks::{Locks, RECLAIM};
use super::removal::remove_group;
use super::root::ensure_root;
use super::rules::{Circumstances, operation_of};
use super::uses::{Asker, Caller, Uses};
use crate::Lcc;
use crate::caches::Session;
use crate::policy::choose;
use crate::worker::repair_now;

/// The file controllers of one LCC.
pub struct Files {
    pub(super) lcc: Rc<Lcc>,
    devices: FileDevices,
    directories: RefCell<BTreeMap<DeviceId, Held>>,
    /// Directories that are being read.
    loading: RefCell<BTreeMap<DeviceId, Rc<Mutex<()>>>>,
    /// Numbers for files without a device.
    ids: RefCell<Vec<DeviceId>>,
    /// Since when groups are seen on to-remove lists, and since when they were tried.
    to_remove: RefCell<BTreeMap<DeviceId, Instant>>,
    pub(super) joints: Joints,
    pub(super) locks: Locks,
    pub(super) uses: Uses,
    losses: RefCell<Losses>,
    /// It is a mount's LCC.
    pub(super) is_mount: bool,
    peers: RefCell<BTreeMap<(SocketAddr, u8), Client<LccService>>>,
    /// For operations of its own.
    random: u64,
    counter: Cell<u64>,
}

struct Held {
    directory: Rc<Directory<OwnedGroup>>,
    /// Before that nobody gets a lock: see `locks.rs`.
    locks_from: Instant,
    used: Cell<Instant>,
}

/// Whether an operation adds what only its own reversal takes away. Removals, renames and changes of
/// attributes go on while disks are full. Source: S-4.
fn grows(op: &DirectoryOp) -> bool {
    match op {
        DirectoryOp::Begin { .. }
        | DirectoryOp::Create { .. }
        | DirectoryOp::BeginUploads { .. }
        | DirectoryOp::Enter { .. }
        | DirectoryOp::Link { .. } => true,
        DirectoryOp::SetAttributes { changes, .. } => {
            changes.data.as_ref().is_some_and(|(_, size)| 0 < *size)
                || !changes.set_xattrs.is_empty()
        }
        _ => false,
    }
}

fn names_written(op: &DirectoryOp) -> bool {
    matches!(op, DirectoryOp::Sync { written } if !written.is_empty())
}

/// Serves a connection by the LCC that its hello names.
pub(crate) async fn serve_one_of(all: Vec<Rc<Files>>, mut connection: Connection) {
    let hello = match accept_hello(&mut connection).await {
        Ok(hello) => hello,
        Err(error) => {
            tracing::debug!(peer = %connection.peer, ?error, "a connection without a hello");
            return;
        }
    };
    // One that asks for an LCC that is not here is told so by any.
    let Some(files) = all.get(usize::from(hello.index)).or(all.first()).cloned() else {
        return;
    };
    let client = connection.peer.parse::<SocketAddr>().ok().map(|peer| peer.ip());
    let served = Rc::new(Served { files, client });
    serve_connection_after::<LccService, Served>(connection, hello, served).await;
}

/// What one connection asks.
struct Served {
    files: Rc<Files>,
    /// From where, for policies.
    client: Option<IpAddr>,
}

impl Handler<LccService> for Served {
    type Session = Asker;

    fn hello(&self, hello: &Hello) -> Result<Asker, HelloReply> {
        let cluster = self.files.lcc.cluster();
        if hello.cluster != cluster {
            return Err(HelloReply::WrongCluster { cluster });
        }
        if hello.index != self.files.lcc.id().index {
            return Err(HelloReply::WrongRole);
        }
        Ok(match hello.peer {
            Peer::Client { random, server } => {
                let caller = server.map_or(Caller::Client(random), Caller::Mount);
                Asker { caller, session: random, is_ahead: false }
            }
            Peer::Server { .. } => Asker::SERVER,
            Peer::Unknown => Asker { caller: Caller::Client(0), session: 0, is_ahead: false },
        })
    }

    async fn handle(
        self: Rc<Self>,
        asker: Rc<Asker>,
        mut request: LccRequest,
        payload: Bytes,
    ) -> (Result<Answer, LccRefusal>, Payload) {
        if let LccRequest::NewDevices { question, .. } | LccRequest::Choose { question, .. } =
            &mut request
        {
            question.client = question.client.or(self.client);
        }
        let answered = match &request {
            LccRequest::Status
            | LccRequest::Watch { .. }
            | LccRequest::KeepCaches { .. }
            | LccRequest::Shadow { .. } => self.files.answer(*asker, request, payload).await,
            _ => self.files.answer_under_lease(*asker, request, payload).await,
        };
        match answered {
            Ok((answer, payload)) => (Ok(answer), payload),
            Err(refusal) => (Err(refusal), Payload::empty()),
        }
    }
}

impl Files {
    /// Of one LCC.
    #[must_use]
    pub fn new(lcc: Rc<Lcc>) -> Rc<Self> {
        let random = lcc.env().random();
        let is_mount = lcc.map().servers.get(&lcc.id().server).is_some_and(|own| own.is_mount);
        Rc::new(Self {
            devices: FileDevices::new(lcc.clone()),
            lcc,
            directories: RefCell::default(),
            loading: RefCell::default(),
            ids: RefCell::default(),
            to_remove: RefCell::default(),
            locks: Locks::default(),
            joints: Joints::default(),
            uses: Uses::default(),
            losses: RefCell::default(),
            is_mount,
            peers: RefCell::default(),
            random,
            counter: Cell::new(0),
        })
    }

    /// Drawn at the start; for operations of its own.
    pub(super) fn random(&self) -> u64 {
        self.random
    }

    /// For an operation of its own.
    pub(super) fn new_operation(&self) -> OperationId {
        self.counter.set(self.counter.get() + 1);
        OperationId { client: self.random, counter: self.counter.get() }
    }

    /// From now on this is told of changes that were answered ahead and are lost.
    pub fn set_losses(&self, losses: Losses) {
        *self.losses.borrow_mut() = losses;
    }

    /// Waits until all that was answered is decided, or known to be lost: nothing new is asked. Source:
    /// W-9.
    pub(crate) async fn ahead_decided(&self) {
        for directory in self.all() {
            // What was lost is told by the next sync.
            let _ = directory.all_decided().await;
        }
    }

    /// Its LCC.
    #[must_use]
    pub fn lcc(&self) -> &Rc<Lcc> {
        &self.lcc
    }

    /// As `answer`; refused when the lease ends. Who is cut off from the others must not keep clients
    /// waiting that may ask them. Source: O-4.
    async fn answer_under_lease(
        self: &Rc<Self>,
        asker: Asker,
        request: LccRequest,
        payload: Bytes,
    ) -> Result<(Answer, Payload), LccRefusal> {
        if !self.lcc.lease_valid() {
            return Err(LccRefusal::NotOwner { owner: None });
        }
        let device = match &request {
            LccRequest::File { layout, .. } | LccRequest::Directory { layout, .. } => {
                layout.devices.first().copied()
            }
            _ => None,
        };
        let files = self.clone();
        let mut answering = Box::pin(async move { files.answer(asker, request, payload).await });
        tokio::select! {
            biased;
            answered = &mut answering => answered,
            () = self.lcc.lease_over() => {
                // It waits for the group: nothing has begun.
                if device.is_some_and(|device| self.lcc.is_opening(device)) {
                    return Err(LccRefusal::NotOwner { owner: None });
                }
                // What it has begun goes on.
                spawn_local(answering);
                Err(LccRefusal::OutcomeUnknown)
            }
        }
    }

    /// Answers a request of this process or of a connection. It may be dropped at any time: what is
    /// numbered goes on.
    ///
    /// Errors: the refusal.
    pub async fn answer(
        self: &Rc<Self>,
        asker: Asker,
        request: LccRequest,
        payload: Bytes,
    ) -> Result<(Answer, Payload), LccRefusal> {
        let group = match &request {
            LccRequest::File { layout, .. }
            | LccRequest::Directory { layout, .. }
            | LccRequest::DescribeGroup { layout }
            | LccRequest::Repair { layout }
            | LccRequest::Verify { layout, .. } => layout.devices.first().copied(),
            LccRequest::NewDevices { .. }
            | LccRequest::Choose { .. }
            | LccRequest::Shadow { .. }
            | LccRequest::Watch { .. }
            | LccRequest::KeepCaches { .. }
            | LccRequest::Status => None,
        };
        group.iter().for_each(|device| braid_terms::panic_at(*device));
        let Asker { caller, session, .. } = asker;
        let _under_way = match group {
            Some(group) => Some(self.enter(group, caller).await?),
            None => None,
        };
        let reply = match request {
            LccRequest::File { layout, op: FileOp::Remove, .. } => self.remove(&layout).await?,
            LccRequest::File { layout, op, change } => {
                let done = self.devices.handle(&layout, op, change, payload).await;
                let (reply, written, payload) = done?;
                return Ok((Answer { reply, written }, payload));
            }
            LccRequest::Directory { layout, op } => {
                let (reply, written) = self.directory_change(asker, &layout, op).await?;
                return Ok((Answer { reply, written }, Payload::empty()));
            }
            LccRequest::Choose { data_type, question } => {
                let map = self.lcc.map();
                let choice = choose(&map, data_type, &question);
                LccReply::Chosen(Box::new(Chosen {
                    policy: choice.policy.map(str::to_owned),
                    scheme: choice.scheme,
                    strip_size: choice.strip_size,
                    spread: choice.spread,
                    ack: choice.ack,
                }))
            }
            LccRequest::NewDevices { data_type, question, count } => {
                if !(1..=NEW_DEVICES_MAX).contains(&count) {
                    return Err(bad("1 to 256 devices are made at once"));
                }
                let layouts = self.lcc.new_layouts(data_type, &question, count).await;
                LccReply::Layouts(layouts.map_err(place_refusal)?)
            }
            LccRequest::DescribeGroup { layout } => self.describe(&layout).await?,
            LccRequest::Repair { layout } => {
                let group = self.lcc.group_to_repair(&layout).await.map_err(own_refusal)?;
                if !repair_now(&group).await {
                    let reason = "not all of its portions could be repaired now".into();
                    return Err(LccRefusal::Unavailable { reason });
                }
                LccReply::Done
            }
            LccRequest::Verify { layout, from } => {
                let group = self.lcc.group(&layout).await.map_err(own_refusal)?;
                LccReply::Verified(group.verify(from).await.map_err(super::access::read_refusal)?)
            }
            LccRequest::Shadow { writer, ready, done } => {
                let now = self.lcc.env().now();
                self.lcc.shadow.take(now, writer, ready, &done);
                LccReply::Done
            }
            LccRequest::Status => LccReply::Status(self.lcc.status()),
            LccRequest::Watch { registration, begins, answers } => {
                self.lcc.caches.watch(session, registration, begins, answers).await?
            }
            LccRequest::KeepCaches { registration } => {
                self.lcc.caches.keep(session, registration).await?
            }
        };
        Ok((Answer { reply, written: None }, Payload::empty()))
    }

    async fn describe(&self, layout: &GroupLayout) -> Result<LccReply, LccRefusal> {
        let group = self.lcc.group(layout).await.map_err(own_refusal)?;
        let count = u8::try_from(group.layout().devices.len()).expect("a checked layout");
        let (decided, stable) = group.marks();
        let absent: Vec<PortionIndex> = group.absent();
        Ok(LccReply::Group(Box::new(GroupDescription {
            layout: group.layout().clone(),
            owner: self.lcc.id(),
            lengths: (0..count).map(|device_index| group.length(device_index)).collect(),
            decided,
            stable,
            absent,
        })))
    }

    /// An operation on a directory.
    pub async fn directory_op(
        self: &Rc<Self>,
        session: Session,
        layout: &GroupLayout,
        op: DirectoryOp,
    ) -> Result<LccReply, LccRefusal> {
        let asker = Asker { session, ..Asker::SERVER };
        self.directory_change(asker, layout, op).await.map(|(reply, _)| reply)
    }

    /// An operation on a directory, and the mark at which it is decided if it is a change. What is
    /// before the first wait happens in the order of the calls, if the directory is in memory.
    async fn directory_change(
        self: &Rc<Self>,
        asker: Asker,
        layout: &GroupLayout,
        mut op: DirectoryOp,
    ) -> Result<(LccReply, Option<WriteNumber>), LccRefusal> {
        check_directory_layout(layout)?;
        let session = asker.session;
        tracing::trace!(directory = %layout.group(), ?op, "asked");
        if let DirectoryOp::Rename { target, .. } = &mut op {
            target.take_if(|target| target.group() == layout.group());
        }
        let begins = matches!(op, DirectoryOp::Begin { .. });
        let directory = match self.held(layout.group()) {
            Some(directory) => directory,
            None => match self.load(layout, begins).await {
                Err(LccRefusal::NotFound) if names_written(&op) => {
                    return Err(LccRefusal::HeldLost);
                }
                loaded => loaded?,
            },
        };
        let reply = match op {
            DirectoryOp::Sync { written } => {
                directory.group().0.check_written(&written).map_err(write_refusal)?;
                directory.all_decided().await?;
                self.all_settled(&directory).await?;
                directory.sync().await
            }
            DirectoryOp::MoveDirectory { source, rename } => {
                self.move_directory(layout.clone(), source, *rename).await
            }
            DirectoryOp::Intend { .. }
            | DirectoryOp::Decide { .. }
            | DirectoryOp::Finish { .. }
            | DirectoryOp::Outcome { .. } => self.take_part(directory, op).await,
            DirectoryOp::Remove => self.remove_directory(layout, &directory).await,
            op if operation_of(&op).is_some() => {
                if grows(&op) && !self.lcc.has_room(layout) {
                    return Err(LccRefusal::NoSpace);
                }
                self.before_look(layout.group(), session, &directory, &op).await;
                let new_id = self.id_for(&op).await?;
                let around = Circumstances { now: self.now(), new_id, session };
                // From here on it hears what others change of what it is told.
                let is_granted = self.lcc.caches.grant(layout.group(), session);
                let held = self.hold_open(session, layout.group(), &directory, &op).await?;
                // Of the group that the directory was read under: a later one has other numbers.
                let group = directory.group().0.clone();
                let is_ahead = asker.is_ahead
                    && asker.caller == Caller::Here
                    && !self.lcc.caches.is_watched_by_others(layout.group(), session);
                let losses = is_ahead.then(|| self.losses.borrow().clone());
                let changed = self.change(directory.clone(), op, around, losses).await;
                if let (Some(id), Err(_)) = (held, &changed) {
                    self.let_go(layout.group(), &directory, id).await;
                }
                let reply = changed?;
                let reply = if is_granted { LccReply::Granted(Box::new(Ok(reply))) } else { reply };
                return Ok((reply, group.written()));
            }
            DirectoryOp::Lock { lock, wait } => {
                let since = self.locks_from(layout.group());
                let reply = self.locks.lock(layout.group(), lock, wait, since).await?;
                directory.check().map(|()| reply)
            }
            DirectoryOp::TestLock { lock } => {
                let since = self.locks_from(layout.group());
                let reply = self.locks.test(layout.group(), &lock, since).await?;
                directory.check().map(|()| reply)
            }
            DirectoryOp::Unlock { lock } => {
                directory.check()?;
                self.locks.unlock(layout.group(), &lock)
            }
            DirectoryOp::KeepLocks { session, locks } => {
                directory.check()?;
                self.locks.keep(layout.group(), session, &locks)
            }
            DirectoryOp::Closed { id } => {
                self.lcc.caches.closed(layout.group(), session, id);
                directory.check().map(|()| LccReply::Done)
            }
            DirectoryOp::Writes { id } => {
                let reply = self.lcc.caches.writes(layout.group(), session, id).await?;
                directory.check().map(|()| reply)
            }
            op => {
                self.look_is_settled(&directory, &op).await?;
                self.before_look(layout.group(), session, &directory, &op).await;
                let seen = match asker.caller {
                    Caller::Here => directory.look_ahead(&op).await,
                    _ => directory.look_decided(&op).await,
                };
                // Only what the directory says may be kept, not that it cannot say anything.
                let says = matches!(seen, Ok(_) | Err(LccRefusal::NotFound));
                if says && self.lcc.caches.grant(layout.group(), session) {
                    return Ok((LccReply::Granted(Box::new(seen)), None));
                }
                seen
            }
        };
        reply.map(|reply| (reply, None))
    }

    /// Bytes that clients have not sent are held before others see or change the file. Source: W-9.
    async fn before_look(
        &self,
        group: DeviceId,
        session: Session,
        directory: &Directory<OwnedGroup>,
        op: &DirectoryOp,
    ) {
        let caches = &self.lcc.caches;
        if !caches.matters(group) {
            return;
        }
        match op {
            DirectoryOp::Lookup { name } | DirectoryOp::Unlink { name, .. } => {
                if let Some(of_name) = directory.id_of(name) {
                    caches.before_look(group, session, |id| *id == of_name).await;
                }
            }
            DirectoryOp::GetAttributes { id: of } | DirectoryOp::SetAttributes { id: of, .. } => {
                caches.before_look(group, session, |id| id == of).await;
            }
            DirectoryOp::List { attributes: true, .. } => {
                caches.before_look(group, session, |_| true).await;
            }
            _ => {}
        }
    }

    /// Where an operation may take the last name of a file that others have open, a name is counted for
    /// them first. Gives the file. Source: N-4.
    async fn hold_open(
        self: &Rc<Self>,
        session: Session,
        group: DeviceId,
        directory: &Rc<Directory<OwnedGroup>>,
        op: &DirectoryOp,
    ) -> Result<Option<DeviceId>, LccRefusal> {
        let caches = &self.lcc.caches;
        let Some(id) = directory.last_name_in(op).filter(|_| caches.matters(group)) else {
            return Ok(None);
        };
        if caches.is_held(group, id) || !caches.is_open_elsewhere(group, session, id).await {
            return Ok(None);
        }
        self.count_name(directory, id, 1).await?;
        caches.count_held(group, id, true);
        Ok(Some(id))
    }

    /// Nobody needs the name that was counted for holders of a file any more.
    async fn let_go(
        self: &Rc<Self>,
        group: DeviceId,
        directory: &Rc<Directory<OwnedGroup>>,
        id: DeviceId,
    ) {
        match self.count_name(directory, id, -1).await {
            Ok(()) | Err(LccRefusal::NotFound) => self.lcc.caches.count_held(group, id, false),
            // Tried again, unless the directory is lost: then the file keeps a name too many.
            Err(refusal) => tracing::debug!(%id, ?refusal, "a removed file stays for now"),
        }
    }

    async fn count_name(
        self: &Rc<Self>,
        directory: &Rc<Directory<OwnedGroup>>,
        id: DeviceId,
        change: i32,
    ) -> Result<(), LccRefusal> {
        let operation = self.new_operation();
        let changes = AttributeChanges { nlink: change, ..AttributeChanges::default() };
        let op = DirectoryOp::SetAttributes { operation, id, changes, stable: false };
        let around = Circumstances { now: self.now(), new_id: DeviceId(0), session: 0 };
        self.change(directory.clone(), op, around, None).await.map(drop)
    }

    /// Files that were held for who is gone, or has closed them. Source: N-4.
    async fn let_go_of_closed(self: &Rc<Self>) {
        for (group, id) in self.lcc.caches.held_by_nobody() {
            match self.held(group) {
                Some(directory) => self.let_go(group, &directory, id).await,
                // Somebody else owns it now, and knows nothing of it.
                None => self.lcc.caches.count_held(group, id, false),
            }
        }
    }

    fn locks_from(&self, device: DeviceId) -> Instant {
        let directories = self.directories.borrow();
        // One that is not held any more is refused by its check.
        directories.get(&device).map_or_else(Instant::now, |held| held.locks_from)
    }

    pub(super) fn now(&self) -> FileTime {
        let time = self.lcc.env().wall_time();
        FileTime { seconds: time.seconds, nanoseconds: time.nanoseconds }
    }

    /// A number for what is made without a device.
    async fn id_for(&self, op: &DirectoryOp) -> Result<DeviceId, LccRefusal> {
        let needed = matches!(
            op,
            DirectoryOp::Create { attributes, .. }
                if attributes.id.is_none() && !matches!(attributes.data, FileData::Device(_))
        );
        if !needed {
            return Ok(DeviceId(0));
        }
        if let Some(id) = self.ids.borrow_mut().pop() {
            return Ok(id);
        }
        let mut ids = Vec::new();
        for _ in 0..IDS_AHEAD {
            ids.push(self.lcc.new_number().await.map_err(place_refusal)?);
        }
        let id = ids.pop().expect("some were taken");
        self.ids.borrow_mut().extend(ids);
        Ok(id)
    }

    /// The directory, if it is in memory and counts.
    fn held(&self, device: DeviceId) -> Option<Rc<Directory<OwnedGroup>>> {
        let directories = self.directories.borrow();
        let held = directories.get(&device)?;
        let counts = !held.directory.has_failed() && held.directory.group().0.is_alive();
        counts.then(|| {
            held.used.set(Instant::now());
            held.directory.clone()
        })
    }

    /// The directory, of which this LCC is or becomes the owner.
    pub(super) async fn directory(
        self: &Rc<Self>,
        layout: &GroupLayout,
    ) -> Result<Rc<Directory<OwnedGroup>>, LccRefusal> {
        match self.held(layout.group()) {
            Some(directory) => Ok(directory),
            None => self.load(layout, false).await,
        }
    }

    async fn load(
        self: &Rc<Self>,
        layout: &GroupLayout,
        begins: bool,
    ) -> Result<Rc<Directory<OwnedGroup>>, LccRefusal> {
        let device = layout.group();
        let turn = self.loading.borrow_mut().entry(device).or_default().clone();
        let loaded = {
            let _turn = turn.lock().await;
            match self.held(device) {
                Some(directory) => Ok(directory),
                None => self.read(layout, begins).await,
            }
        };
        drop(turn);
        self.loading.borrow_mut().retain(|_, turn| Rc::strong_count(turn) > 1);
        loaded
    }

    async fn read(
        self: &Rc<Self>,
        layout: &GroupLayout,
        begins: bool,
    ) -> Result<Rc<Directory<OwnedGroup>>, LccRefusal> {
        let home = layout.devices[1];
        let is_new = begins && self.lcc.may_be_fresh(layout);
        let group = if is_new {
            self.lcc.create_group(layout, home).map_err(own_refusal)?
        } else if begins {
            self.lcc.group_or_create(layout, home).await.map_err(own_refusal)?
        } else {
            self.lcc.group(layout).await.map_err(own_refusal)?
        };
        let device = layout.group();
        let directory = Directory::load(OwnedGroup(group)).await?;
        let now = Instant::now();
        let locks_from = if is_new { now } else { now + RECLAIM };
        let held = Held { directory: directory.clone(), locks_from, used: Cell::new(now) };
        self.directories.borrow_mut().insert(device, held);
        self.settle_all(&directory);
        Ok(directory)
    }

    /// Directories whose to-remove lists are not empty.
    pub(super) fn with_removals(&self) -> Vec<GroupLayout> {
        let directories = self.directories.borrow();
        let all = directories.values().map(|held| &held.directory);
        all.filter(|directory| !directory.to_remove().is_empty())
            .map(|directory| directory.group().0.layout().clone())
            .collect()
    }

    /// Reads a directory that somebody left, so that its removals go on. Source: N-4, O-8.
    pub(crate) async fn look_after(self: &Rc<Self>, layout: &GroupLayout) {
        if check_directory_layout(layout).is_ok() && self.held(layout.group()).is_none() {
            // Whoever uses it next does the same.
            let _ = self.load(layout, false).await;
        }
    }

    /// Whether a directory is in memory and somebody works with it.
    pub(super) fn is_busy(&self, device: DeviceId) -> bool {
        let directories = self.directories.borrow();
        directories.get(&device).is_some_and(|held| Rc::strong_count(&held.directory) > 1)
    }

    /// Nothing of this directory stays in memory.
    pub fn forget(&self, device: DeviceId) {
        self.directories.borrow_mut().remove(&device);
    }

    async fn remove_directory(
        &self,
        layout: &GroupLayout,
        directory: &Rc<Directory<OwnedGroup>>,
    ) -> Result<LccReply, LccRefusal> {
        if directory.is_disposable() == Some(false) {
            return Err(LccRefusal::NotEmpty);
        }
        self.forget(layout.group());
        let _nobody_has_copies = self.lcc.caches.end_group(layout.group()).await;
        remove_group(&self.lcc, layout).await?;
        Ok(LccReply::Done)
    }

    async fn remove(&self, layout: &GroupLayout) -> Result<LccReply, LccRefusal> {
        check_layout(layout)?;
        if layout.devices.len() != 1 {
            return Err(bad("a directory is removed as such"));
        }
        remove_group(&self.lcc, layout).await?;
        Ok(LccReply::Done)
    }

    /// Works in the background as long as the LCC.
    pub async fn background(self: Rc<Self>) {
        ensure_root(self.clone()).await;
        let mut uploads_looked_at = Instant::now();
        loop {
            sleep(BACKGROUND_EVERY).await;
            self.let_go_of_closed().await;
            self.work_off_removals().await;
            self.work_off_joints().await;
            if UPLOADS_EVERY <= uploads_looked_at.elapsed() {
                uploads_looked_at = Instant::now();
                let before = self.now().seconds - UPLOAD_AGE_MAX;
                for directory in self.all() {
                    directory.abandon_old_uploads(before);
                }
            }
            self.forget_idle();
            self.uses.forget_idle();
        }
    }

    pub(super) fn all(&self) -> Vec<Rc<Directory<OwnedGroup>>> {
        self.directories.borrow().values().map(|held| held.directory.clone()).collect()
    }

    fn forget_idle(&self) {
        self.directories.borrow_mut().retain(|_, held| {
            let directory = &held.directory;
            let is_dead = directory.has_failed() || !directory.group().0.is_alive();
            let is_idle = IDLE_MAX < held.used.get().elapsed()
                && Rc::strong_count(directory) == 1
                && directory.to_remove().is_empty()
                && directory.intents().is_empty()
                && directory.joints().is_empty();
            !is_dead && !is_idle
        });
    }

    async fn work_off_removals(self: &Rc<Self>) {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut seen = BTreeSet::new();
        for directory in self.all() {
            for layout in directory.to_remove() {
                let device = layout.group();
                seen.insert(device);
                let next = *self.to_remove.borrow_mut().entry(device).or_insert(now + REMOVE_DELAY);
                if next <= now {
                    due.push((directory.clone(), layout));
                }
            }
        }
        self.to_remove.borrow_mut().retain(|device, _| seen.contains(device));
        let removals =
            due.into_iter().map(|(directory, layout)| self.remove_listed(directory, layout));
        iter(removals).buffer_unordered(REMOVALS_AT_ONCE).collect::<Vec<()>>().await;
    }

    async fn remove_listed(
        self: &Rc<Self>,
        directory: Rc<Directory<OwnedGroup>>,
        layout: GroupLayout,
    ) {
        let device = layout.group();
        // What a power cut brings back must not name what is gone.
        if directory.sync().await.is_err() {
            return;
        }
        let removed = match layout.devices.len() {
            1 => {
                self.ask_owner(
                    &layout,
                    LccRequest::File { layout: layout.clone(), op: FileOp::Remove, change: None },
                )
                .await
            }
            _ => self.remove_listed_directory(&layout).await,
        };
        match removed {
            Ok(_) | Err(LccRefusal::NotFound) => {
                // A refusal comes again with the next look at the list.
                let _ = directory.removed(device).await;
            }
            Err(refusal) => {
                tracing::debug!(%device, ?refusal, "a device stays on the to-remove list");
                self.to_remove.borrow_mut().insert(device, Instant::now() + REMOVE_AGAIN);
            }
        }
    }

    /// A directory without a name: it was retired, or its making was given up half way.
    async fn remove_listed_directory(
        self: &Rc<Self>,
        layout: &GroupLayout,
    ) -> Result<LccReply, LccRefusal> {
        let operation = self.new_operation();
        let of = |op| LccRequest::Directory { layout: layout.clone(), op };
        match self.ask_owner(layout, of(DirectoryOp::Retire { operation })).await {
            // It was never begun, but portions of it may be there.
            Ok(_) | Err(LccRefusal::NotFound) => {}
            Err(refusal) => return Err(refusal),
        }
        self.ask_owner(layout, of(DirectoryOp::Remove)).await
    }

    /// Does it here, or where the owner is.
    pub(super) async fn ask_owner(
        self: &Rc<Self>,
        layout: &GroupLayout,
        request: LccRequest,
    ) -> Result<LccReply, LccRefusal> {
        match Box::pin(self.answer(Asker::SERVER, request.clone(), Bytes::new())).await {
            Err(LccRefusal::NotOwner { owner: Some((lcc, address)) }) => {
                self.ask_peer(lcc, address, &request).await
            }
            Err(LccRefusal::NotOwner { owner: None }) => {
                let reason = format!("the owner of device {} is changing", layout.group());
                Err(LccRefusal::Unavailable { reason })
            }
            answer => answer.map(|(answer, _)| answer.reply),
        }
    }

    pub(super) async fn ask_peer(
        &self,
        lcc: LccId,
        address: SocketAddr,
        request: &LccRequest,
    ) -> Result<LccReply, LccRefusal> {
        self.tell_peer((lcc, address), request, Payload::empty()).await
    }

    /// As `ask_peer`, with a payload.
    pub(super) async fn tell_peer(
        &self,
        (lcc, address): (LccId, SocketAddr),
        request: &LccRequest,
        payload: Payload,
    ) -> Result<LccReply, LccRefusal> {
        let unavailable = |reason: String| LccRefusal::Unavailable { reason };
        let place = (address, lcc.index);
        let known = self.peers.borrow().get(&place).cloned().filter(|peer| !peer.is_closed());
        let peer = match known {
            Some(peer) => peer,
            None => {
                let server = self.lcc.id().server;
                let incarnation = self.lcc.incarnation();
                let stream = self.lcc.id().index;
                let from = Peer::Server { server, incarnation, stream };
                let hello = Hello::new(self.lcc.cluster(), Role::Lcc, lcc.index, from);
                let to = Address::Tcp(address);
                let connecting = Client::connect(self.lcc.env(), to, hello);
                let connected = timeout(PEER_WAIT, connecting).await;
                let peer = connected
                    .map_err(|_| unavailable(format!("{address} is silent")))?
                    .map_err(|error| unavailable(format!("{address}: {error}")))?;
                self.peers.borrow_mut().insert(place, peer.clone());
                peer
            }
        };
        match peer.call(request, payload, PEER_WAIT).await {
            Ok((answer, _)) => answer.map(|answer| answer.reply),
            Err(error) => Err(unavailable(format!("{address}: {error}"))),
        }
    }
}

const NEW_DEVICES_MAX: u32 = 256;
const IDS_AHEAD: usize = 256;
const BACKGROUND_EVERY: Duration = Duration::from_secs(1);
const UPLOADS_EVERY: Duration = Duration::from_secs(60);
/// Seconds after which an upload that has no name is given up. Source: F-9.
const UPLOAD_AGE_MAX: i64 = 24 * 3600;
/// Who reads a file that is removed may finish within this.
const REMOVE_DELAY: Duration = Duration::from_secs(5);
const REMOVE_AGAIN: Duration = Duration::from_secs(10);
const REMOVALS_AT_ONCE: usize = 32;
const PEER_WAIT: Duration = Duration::from_secs(10);
/// A directory that nobody asked for that long is not kept in memory.
const IDLE_MAX: Duration = Duration::from_secs(120);
