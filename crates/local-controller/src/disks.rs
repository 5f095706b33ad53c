//! Connections to I/O servers, shared by all groups of an LCC; syncs and marks for all of them.
//! # Theory
//! One connection per disk keeps the order of a group's prepares. A sync of a disk is for everybody
//! who waits: one is under way, the next collects. Marks of many groups travel in one message.
//! # Source
//! W-4, W-9, DESIGN 13.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use braid_env::{Address, Env, Payload};
use braid_terms::{
    ClusterId, ClusterMap, DeviceId, DiskId, Incarnation, JournalPosition, ServerId,
};
use braid_wire::coordinator::LiveDisk;
use braid_wire::io::{GroupMarks, Io, IoReply, IoRequest};
use braid_wire::rpc::{Client, ClientOptions, Hello, Peer, Role};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, timeout};

/// An I/O server as it answers now.
#[derive(Clone)]
pub struct DiskUp {
    /// The connection.
    pub client: Client<Io>,
    /// Who answers on it.
    pub incarnation: Incarnation,
}

/// One disk.
pub struct DiskLink {
    /// Which.
    pub disk: DiskId,
    up: RefCell<Option<DiskUp>>,
    connecting: Mutex<()>,
    /// When it could not be reached last.
    failed: Cell<Option<Instant>>,
    /// Positions up to here are on the medium, of that incarnation.
    synced: Cell<(Incarnation, JournalPosition)>,
    /// Who answered when it was last looked for a restart; 0 before.
    seen: Cell<Incarnation>,
    /// Told when `synced` moved or a sync failed.
    moved: Notify,
    syncing: Cell<bool>,
    wanted: Cell<JournalPosition>,
    marks: RefCell<BTreeMap<DeviceId, GroupMarks>>,
}

/// All disks of the cluster.
pub struct Disks {
    env: Env,
    cluster: ClusterId,
    server: ServerId,
    /// Unix sockets of I/O servers of this machine, which cost less than TCP.
    sockets: BTreeMap<DiskId, PathBuf>,
    peer: Cell<Peer>,
    links: RefCell<BTreeMap<DiskId, Rc<DiskLink>>>,
    addresses: RefCell<BTreeMap<DiskId, SocketAddr>>,
    /// Syncs asked of I/O servers.
    pub syncs: Cell<u64>,
}

impl Disks {
    /// Knows no disk until `learn`.
    pub fn new(
        env: Env,
        cluster: ClusterId,
        server: ServerId,
        sockets: BTreeMap<DiskId, PathBuf>,
    ) -> Self {
        Self {
            env,
            cluster,
            server,
            sockets,
            peer: Cell::new(Peer::Unknown),
            links: RefCell::default(),
            addresses: RefCell::default(),
            syncs: Cell::new(0),
        }
    }

    /// Who we are from now on.
    pub fn set_incarnation(&self, incarnation: Incarnation, stream: u8) {
        self.peer.set(Peer::Server { server: self.server, incarnation, stream });
    }

    /// Takes addresses from a map.
    pub fn learn(&self, map: &ClusterMap) {
        let addresses = map.disks.values().map(|disk| (disk.id, disk.address));
        *self.addresses.borrow_mut() = addresses.collect();
    }

    /// A disk's link.
    pub fn link(&self, disk: DiskId) -> Rc<DiskLink> {
        let mut links = self.links.borrow_mut();
        let link = links.entry(disk).or_insert_with(|| {
            Rc::new(DiskLink {
                disk,
                up: RefCell::default(),
                connecting: Mutex::new(()),
                failed: Cell::default(),
                synced: Cell::default(),
                seen: Cell::default(),
                moved: Notify::new(),
                syncing: Cell::default(),
                wanted: Cell::default(),
                marks: RefCell::default(),
            })
        });
        link.clone()
    }

    /// The I/O server of a disk, if it is connected.
    pub fn up(&self, disk: DiskId) -> Option<DiskUp> {
        self.link(disk).up()
    }

    /// The I/O server of a disk, connecting if need be; `None` when it does not answer within
    /// `CONNECT_WAIT`.
    pub async fn connect(&self, disk: DiskId) -> Option<DiskUp> {
        let link = self.link(disk);
        if let Some(up) = link.up() {
            return Some(up);
        }
        let called = Instant::now();
        let _one = link.connecting.lock().await;
        if let Some(up) = link.up() {
            return Some(up);
        }
        // What failed while we waited was our attempt, too: else all groups of a machine that died
        // without a word would wait for it one after the other.
        if link.failed.get().is_some_and(|failed| called < failed) {
            return None;
        }
        let address = self.addresses.borrow().get(&disk).copied()?;
        let near = self.sockets.get(&disk).cloned().map(Address::Unix);
        let connecting = async {
            if let Some(near) = near
                && let Some(up) = self.try_connect(disk, near).await
            {
                return Some(up);
            }
            self.try_connect(disk, Address::Tcp(address)).await
        };
        let Some(up) = timeout(CONNECT_WAIT, connecting).await.ok().flatten() else {
            link.failed.set(Some(Instant::now()));
            return None;
        };
        if link.seen.get() == Incarnation(0) {
            link.seen.set(up.incarnation);
        }
        *link.up.borrow_mut() = Some(up.clone());
        Some(up)
    }

    /// Connects to disks that were restarted since they were used here: who answers there now.
    pub async fn restarted(&self, live: &[LiveDisk]) -> Vec<(DiskId, Incarnation)> {
        let links = live.iter().map(|live| (self.link(live.disk), live.incarnation));
        let restarted = links.filter(|(link, now)| {
            let seen = link.seen.get();
            seen != Incarnation(0) && seen < *now
        });
        let looks = restarted.map(|(link, now)| async move {
            // Who is gone without a word keeps its connection for long.
            if let Some(up) = link.up().filter(|up| up.incarnation < now) {
                up.client.close();
            }
            let up = self.connect(link.disk).await?;
            link.seen.set(up.incarnation);
            Some((link.disk, up.incarnation))
        });
        futures_util::future::join_all(looks).await.into_iter().flatten().collect()
    }

    async fn try_connect(&self, disk: DiskId, address: Address) -> Option<DiskUp> {
        let hello = Hello::new(self.cluster, Role::Io, 0, self.peer.get());
        let options = ClientOptions {
            ping_after: PING_AFTER,
            broken_after: SILENCE_MAX,
            ..ClientOptions::default()
        };
        let client = Client::connect_with(&self.env, address, hello, options).await.ok()?;
        let (reply, _) =
            client.call(&IoRequest::Status, Payload::empty(), CONNECT_WAIT).await.ok()?;
        match reply {
            Ok(IoReply::Status(status))
                if status.incarnation != Incarnation(0) && status.disk == disk =>
            {
                Some(DiskUp { client, incarnation: status.incarnation })
            }
            _ => None,
        }
    }

    /// Queues marks of a group for a disk; a later one replaces an earlier one.
    pub fn queue_marks(&self, disk: DiskId, marks: GroupMarks) {
        self.link(disk).marks.borrow_mut().insert(marks.group, marks);
    }

    /// Sends what is queued; to a disk that is not connected it is dropped: who opens the group
    /// there tells it anew. Returns the disks that did not hear it.
    pub async fn flush_marks(&self) -> Vec<DiskId> {
        let links: Vec<_> = self.links.borrow().values().cloned().collect();
        let sent = links.into_iter().map(|link| async move {
            let groups: Vec<_> =
                std::mem::take(&mut *link.marks.borrow_mut()).into_values().collect();
            if groups.is_empty() {
                return None;
            }
            let Some(up) = link.up() else { return Some(link.disk) };
            let request = IoRequest::Marks { incarnation: up.incarnation, groups };
            let answer = up.client.call(&request, Payload::empty(), CALL_WAIT).await;
            let Ok((Ok(IoReply::Marked { synced, .. }), _)) = answer else {
                return Some(link.disk);
            };
            link.note_synced(up.incarnation, synced);
            None
        });
        futures_util::future::join_all(sent).await.into_iter().flatten().collect()
    }

    /// Waits until `position` of `incarnation` is on the medium; asks for it where nobody has.
    ///
    /// `false` when that incarnation does not answer any more.
    pub async fn sync(
        &self,
        disk: DiskId,
        incarnation: Incarnation,
        position: JournalPosition,
    ) -> bool {
        let link = self.link(disk);
        loop {
            if link.is_synced(incarnation, position) {
                return true;
            }
            let Some(up) = link.up().filter(|up| up.incarnation == incarnation) else {
                return false;
            };
            let moved = link.moved.notified();
            link.wanted.set(link.wanted.get().max(position));
            self.begin_sync(&link, up, link.wanted.get());
            moved.await;
        }
    }

    /// Asks for all that the disk has got by then, behind what was sent to it; nobody waits here.
    /// Where a sync is under way already, `sync` asks again after it.
    pub fn sync_soon(&self, disk: DiskId) {
        let link = self.link(disk);
        if let Some(up) = link.up() {
            self.begin_sync(&link, up, JournalPosition(u64::MAX));
        }
    }

    fn begin_sync(&self, link: &Rc<DiskLink>, up: DiskUp, position: JournalPosition) {
        if link.syncing.replace(true) {
            return;
        }
        self.syncs.set(self.syncs.get() + 1);
        let request = IoRequest::Sync { incarnation: up.incarnation, position };
        let call = up.client.start_call(&request, Payload::empty(), SYNC_WAIT);
        let link = link.clone();
        tokio::task::spawn_local(async move {
            let answer = call.await;
            link.syncing.set(false);
            match answer {
                Ok((Ok(IoReply::Synced { synced }), _)) => link.note_synced(up.incarnation, synced),
                Ok(_) | Err(_) => {
                    tracing::debug!(disk = %link.disk, "a sync was not answered");
                    up.client.close();
                    link.wanted.set(JournalPosition(0));
                }
            }
            link.moved.notify_waiters();
        });
    }
}

impl DiskLink {
    /// Whether it could not be reached a moment ago.
    pub fn failed_lately(&self) -> bool {
        self.failed.get().is_some_and(|failed| failed.elapsed() < FAILED_LATELY)
    }

    /// The I/O server, if it is connected.
    pub fn up(&self) -> Option<DiskUp> {
        let mut up = self.up.borrow_mut();
        if up.as_ref().is_some_and(|up| up.client.is_closed()) {
            *up = None;
        }
        up.clone()
    }

    /// Takes a synced position from an answer.
    pub fn note_synced(&self, incarnation: Incarnation, position: JournalPosition) {
        let (known, at) = self.synced.get();
        if incarnation != known || at < position {
            let wanted = if incarnation == known { self.wanted.get() } else { JournalPosition(0) };
            self.wanted.set(wanted);
            self.synced.set((incarnation, position));
            self.moved.notify_waiters();
        }
    }

    /// Whether that position of that incarnation is on the medium.
    pub fn is_synced(&self, incarnation: Incarnation, position: JournalPosition) -> bool {
        let (known, at) = self.synced.get();
        known == incarnation && position <= at
    }
}

/// Longest wait for a connection and its first answer.
const CONNECT_WAIT: Duration = Duration::from_millis(400);

/// How long who could not be reached is not tried again, where it holds no lease either.
const FAILED_LATELY: Duration = Duration::from_secs(1);

/// An I/O server that owes an answer is asked for a sign of life after so long.
const PING_AFTER: Duration = Duration::from_millis(500);

/// Silence of an I/O server, while it is asked something, after which it counts as gone.
const SILENCE_MAX: Duration = Duration::from_millis(1500);

/// Longest wait for an answer from memory.
pub const CALL_WAIT: Duration = Duration::from_secs(5);

/// Longest wait for a medium.
const SYNC_WAIT: Duration = Duration::from_secs(60);
