//! The I/O server's process: starts, registers, serves, keeps its lease, syncs, makes checkpoints.
//! # Theory
//! One task each: serving, syncing, the clock (lease, space, when to make a checkpoint). All share
//! one [`Store`]; nobody holds it while waiting.
//! # States
//! ```text
//! Starting (recovery) -> Registering -> Serving <-> lease over (NotReady) -> ended by a fatal error
//! ```
//! # Failure
//! A failed sync, a foreign disk or an invalid incarnation ends [`run`] with [`IoFatal`]; the main
//! controller starts the process again.
//! # Source
//! O-5, S-3, S-4, S-7.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use braid_env::{Address, Env, Payload};
use braid_terms::{
    ClusterId, ClusterMap, DiskId, Incarnation, JournalPosition, LEASE_MS, RENEW_MS, ServerId,
};
use braid_wire::coordinator::{CoordinatorRefusal, CoordinatorReply, CoordinatorRequest};
use braid_wire::coordinator_client::{CoordinatorClient, CoordinatorError};
use braid_wire::io::{Io, IoRefusal, IoReply, IoRequest, IoStatus};
use braid_wire::rpc::{Handler, Hello, HelloReply, Peer, serve};
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::checkpoint::{checkpoint, remove_old_segments, sync_journal_folder};
use crate::direct::{Ticket, take_begun, written};
use crate::disk::{DiskError, DiskIdentity, check_disk};
use crate::inventory::verify;
use crate::journal_body::{Rejoined, Removed};
use crate::read::read;
use crate::recovery::recover;
use crate::requests::{Promise, key_of};
use crate::scrub::Scrub;
use crate::store::{Limits, Store};
use crate::sync::{MediumFailed, Syncer};

/// What an I/O server needs to know to start.
#[derive(Clone, Debug)]
pub struct IoConfig {
    /// Its disk.
    pub disk: DiskId,
    /// The disk's folder.
    pub folder: PathBuf,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its server.
    pub server: ServerId,
    /// Where it listens.
    pub listen: Vec<Address>,
    /// All coordinators that may be asked.
    pub coordinators: Vec<SocketAddr>,
    /// Bounds of memory and disk use.
    pub limits: Limits,
}

/// Why an I/O server ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoFatal {
    /// The folder is not the disk that it should be.
    #[error("disk: {0}")]
    Disk(#[from] DiskError),
    /// The disk cannot be read or written.
    #[error("disk: {0}")]
    Io(#[from] std::io::Error),
    /// A sync failed: what was written may be lost. Source: S-4.
    #[error("medium: {0}")]
    Medium(String),
    /// The cluster does not know the disk.
    #[error("the cluster does not accept the disk: {0}")]
    NotAccepted(String),
    /// Another start of this I/O server is the valid one.
    #[error("another incarnation of this I/O server is valid")]
    Superseded,
}

/// Nothing: the type of what never comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Never {}

/// A started I/O server without its network: what `run` serves, and what tests talk to.
#[derive(Clone)]
pub struct IoServer {
    store: Rc<RefCell<Store>>,
    syncer: Syncer,
    writers: Rc<RefCell<Writers>>,
    coordinators: Rc<RefCell<Option<CoordinatorClient>>>,
    map_version: Rc<Cell<u64>>,
    scrub: Scrub,
}

// LCC incarnations of the newest map known, and requests that wait for a newer one.
#[derive(Default)]
struct Writers {
    valid: Option<BTreeSet<Incarnation>>,
    waiting: Option<VecDeque<Waiting>>,
}

struct Waiting {
    request: IoRequest,
    payload: Bytes,
    answer: oneshot::Sender<Answer>,
}

type Answer = (Result<IoReply, IoRefusal>, Payload);

/// Runs the I/O server of one disk until it must end.
///
/// Errors: see [`IoFatal`]; the disk's state is whole whenever this is dropped.
pub async fn run(env: Env, config: IoConfig) -> Result<Never, IoFatal> {
    match run_until(env, config, std::future::pending::<Never>()).await {
        Ok(never) => match never {},
        Err(fatal) => Err(fatal),
    }
}

/// Runs the I/O server until it must end, or `end` comes; then what is stable is applied, so that
/// the portion files alone hold it.
///
/// Errors: see [`IoFatal`].
pub async fn run_until<T>(
    env: Env,
    config: IoConfig,
    end: impl Future<Output = T>,
) -> Result<T, IoFatal> {
    let server = IoServer::start(&env, &config).await?;
    let mut listeners = Vec::new();
    for address in &config.listen {
        listeners.push(env.listen(address.clone()).await?);
    }
    let peer = Peer::Server { server: config.server, incarnation: Incarnation(0), stream: 0 };
    let addresses = config.coordinators.clone();
    let coordinators = CoordinatorClient::new(env.clone(), config.cluster, peer, addresses);
    server.register(coordinators).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        let handler = Rc::new(IoHandler { server: server.clone(), cluster: config.cluster });
        tasks.spawn_local(serve::<Io, IoHandler>(listener, handler));
    }
    let ended = tokio::select! {
        fatal = server.keep_lease() => return Err(fatal),
        fatal = server.maintain() => return Err(fatal),
        ended = end => ended,
    };
    // Nobody is served any more, and what was promised is in the journal.
    tasks.abort_all();
    server.checkpoint().await?;
    Ok(ended)
}

impl IoServer {
    /// Opens the disk and brings it to the state of before, without serving anybody yet.
    ///
    /// Errors: `Disk`, `Io`, `Medium`.
    pub async fn start(env: &Env, config: &IoConfig) -> Result<Self, IoFatal> {
        let folder = env.folder(&config.folder)?;
        let identity = check_disk(&folder, config.cluster, config.disk)?;
        if !folder.take_exclusively()? {
            return Err(DiskError::Taken.into());
        }
        Self::start_on(env, &folder, identity, config.limits).await
    }

    async fn start_on(
        env: &Env,
        folder: &braid_env::Folder,
        identity: DiskIdentity,
        limits: Limits,
    ) -> Result<Self, IoFatal> {
        let mut store = recover(env, folder, identity, limits)?;
        // The segment that recovery began becomes the one that holds everything.
        let kept = store.finish_first_segment()?;
        let store = Rc::new(RefCell::new(store));
        let syncer = Syncer::new(store.clone());
        let scrub = Scrub::new(store.clone());
        let server = Self {
            store,
            scrub,
            syncer,
            writers: Rc::default(),
            coordinators: Rc::default(),
            map_version: Rc::default(),
        };
        server.medium(server.syncer.sync_all().await)?;
        server.medium(sync_journal_folder(&server.store).await)?;
        server.medium(remove_old_segments(&server.store).await)?;
        if kept {
            server.medium(checkpoint(&server.store, &server.syncer).await.map(|_| ()))?;
        }
        server.store.borrow_mut().files.end_repeating();
        Ok(server)
    }

    /// Serves under an incarnation, without coordinators and with a lease that does not end: for
    /// tests and tools. `run` registers instead.
    pub fn serve_alone(&self, incarnation: Incarnation) {
        let mut store = self.store.borrow_mut();
        store.incarnation = incarnation;
        store.lease_until = braid_env::Moment(u64::MAX);
    }

    async fn register(&self, coordinators: CoordinatorClient) -> Result<(), IoFatal> {
        let (disk, identity) = {
            let identity = self.store.borrow().identity;
            (identity.disk, identity.identity)
        };
        loop {
            let sent = self.store.borrow().env.now();
            let request = CoordinatorRequest::RegisterIo { disk, identity };
            match coordinators.call(&request, CALL_DEADLINE).await {
                Ok(CoordinatorReply::Registered { incarnation, map, .. }) => {
                    coordinators.learn(&map);
                    self.learn(&map);
                    let mut store = self.store.borrow_mut();
                    store.incarnation = incarnation;
                    store.lease_until = sent + Duration::from_millis(LEASE_MS);
                    drop(store);
                    self.map_version.set(map.version);
                    *self.coordinators.borrow_mut() = Some(coordinators);
                    return Ok(());
                }
                Err(CoordinatorError::Refused(CoordinatorRefusal::Unknown { what })) => {
                    return Err(IoFatal::NotAccepted(what));
                }
                Ok(_) | Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// Renews the lease as long as the incarnation is valid.
    async fn keep_lease(&self) -> IoFatal {
        let coordinators = self.coordinators.borrow().clone().expect("registered before");
        loop {
            sleep(Duration::from_millis(RENEW_MS)).await;
            let sent = self.store.borrow().env.now();
            let (scrub, bad) = (self.scrub.status(), self.scrub.take_bad());
            let request = {
                let mut store = self.store.borrow_mut();
                let _ = store.look_at_space();
                CoordinatorRequest::RenewIo {
                    io: store.incarnation,
                    map_version: self.map_version.get(),
                    bytes_total: store.bytes_total,
                    bytes_free: store.bytes_usable(),
                    scrub,
                    bad,
                }
            };
            match coordinators.call(&request, CALL_DEADLINE).await {
                Ok(CoordinatorReply::Renewed { map, .. }) => {
                    if let Some(map) = map {
                        coordinators.learn(&map);
                        self.map_version.set(map.version);
                        self.learn(&map);
                    }
                    let until = sent + Duration::from_millis(LEASE_MS);
                    let mut store = self.store.borrow_mut();
                    store.lease_until = store.lease_until.max(until);
                }
                Err(CoordinatorError::Refused(CoordinatorRefusal::InvalidIncarnation)) => {
                    return IoFatal::Superseded;
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn learn(&self, map: &ClusterMap) {
        let lccs = map.servers.values().flat_map(|server| server.lccs.iter().flatten().copied());
        self.writers.borrow_mut().valid = Some(lccs.collect());
    }

    /// Syncs for those who wait and makes checkpoints when they are worth it.
    pub async fn maintain(&self) -> IoFatal {
        tokio::select! {
            MediumFailed = self.syncer.run() => {}
            MediumFailed = self.keep_checkpoints() => {}
            never = self.scrub.run() => match never {},
        }
        self.fatal()
    }

    async fn keep_checkpoints(&self) -> MediumFailed {
        let bell = self.store.borrow().bell.clone();
        let mut wait = Duration::from_secs(1);
        loop {
            let _ = timeout(wait, bell.notified()).await;
            if self.store.borrow().failed.is_some() {
                return MediumFailed;
            }
            if !self.store.borrow().wants_checkpoint() {
                wait = Duration::from_secs(1);
                continue;
            }
            if checkpoint(&self.store, &self.syncer).await.is_err() {
                return MediumFailed;
            }
            // A checkpoint that could free little must not be followed by the next one at once.
            wait = Duration::from_secs(1);
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes a checkpoint now.
    ///
    /// Errors: `Medium`.
    pub async fn checkpoint(&self) -> Result<(), IoFatal> {
        self.medium(checkpoint(&self.store, &self.syncer).await.map(|_| ()))
    }

    fn medium(&self, result: Result<(), MediumFailed>) -> Result<(), IoFatal> {
        result.map_err(|MediumFailed| self.fatal())
    }

    fn fatal(&self) -> IoFatal {
        let reason = self.store.borrow().failed.clone();
        IoFatal::Medium(reason.unwrap_or_else(|| "the disk failed".to_owned()))
    }

    /// Takes one request. All that changes the state happens in this call, before the returned
    /// future is polled; the future waits for the medium where the answer needs it.
    pub fn handle(
        &self,
        request: IoRequest,
        payload: Bytes,
    ) -> impl Future<Output = Answer> + use<> {
        let server = self.clone();
        let begun = server.begin(request, payload);
        async move {
            if let Begun::Refresh(_) = begun {
                tokio::task::spawn_local(server.clone().refresh());
            }
            server.finish(begun).await
        }
    }

    fn begin(&self, request: IoRequest, payload: Bytes) -> Begun {
        let unknown_writer = self.has_unknown_writer(&request);
        let mut writers = self.writers.borrow_mut();
        if writers.waiting.is_none() && !unknown_writer {
            drop(writers);
            return self.begin_now(request, payload);
        }
        // All wait, so that the order on each connection stays.
        let refresh = writers.waiting.is_none();
        let (answer, later) = oneshot::channel();
        let waiting = writers.waiting.get_or_insert_default();
        waiting.push_back(Waiting { request, payload, answer });
        if refresh { Begun::Refresh(later) } else { Begun::Wait(later) }
    }

    fn has_unknown_writer(&self, request: &IoRequest) -> bool {
        let writer = match request {
            IoRequest::Open(open) => open.writer,
            IoRequest::Prepare(prepare) => match &prepare.create {
                Some(create) => create.writer,
                None => return false,
            },
            _ => return false,
        };
        let writers = self.writers.borrow();
        writers.valid.as_ref().is_some_and(|valid| !valid.contains(&writer))
    }

    // Asks for a map newer than the request, then lets all who wait go on in their order.
    async fn refresh(self) {
        let coordinators = self.coordinators.borrow().clone();
        let mut fresh = false;
        if let Some(coordinators) = coordinators {
            let request = CoordinatorRequest::Map { linearizable: true };
            let answer = coordinators.call(&request, CALL_DEADLINE).await;
            if let Ok(CoordinatorReply::Map(map)) = answer {
                self.learn(&map);
                fresh = true;
            }
        }
        let waiting = self.writers.borrow_mut().waiting.take().unwrap_or_default();
        for Waiting { request, payload, answer } in waiting {
            let begun = match self.has_unknown_writer(&request) {
                true => Begun::Done((Err(self.invalid_writer(&request, fresh)), Payload::empty())),
                false => self.begin_now(request, payload),
            };
            let server = self.clone();
            match begun {
                Begun::Done(done) => {
                    let _ = answer.send(done);
                }
                later => {
                    tokio::task::spawn_local(async move {
                        let _ = answer.send(server.finish(later).await);
                    });
                }
            }
        }
    }

    async fn finish(self, begun: Begun) -> Answer {
        match begun {
            Begun::Done(answer) => answer,
            Begun::Written(answer, tickets) => self.written(*answer, &tickets).await,
            Begun::Sync(position) => self.synced(position).await,
            Begun::Read(request) => read(self.store, request).await,
            Begun::Verify(name) => (verify(self.store, name).await, Payload::empty()),
            Begun::Rejoined(fence) => self.rejoined(fence).await,
            Begun::Wait(answer) | Begun::Refresh(answer) => {
                answer.await.unwrap_or((Err(IoRefusal::NotReady), Payload::empty()))
            }
        }
    }

    // The map says that this writer is no more: somebody else owns the group, or will.
    fn invalid_writer(&self, request: &IoRequest, fresh: bool) -> IoRefusal {
        let fence = match request {
            IoRequest::Open(open) => open.fence,
            IoRequest::Prepare(prepare) => prepare.fence,
            _ => return IoRefusal::NotReady,
        };
        if !fresh {
            return IoRefusal::NotReady;
        }
        let seen = self.store.borrow().known_fence(key_of(&fence)).seen;
        IoRefusal::Fenced { grant: seen.max(fence.grant) }
    }

    fn begin_now(&self, request: IoRequest, payload: Bytes) -> Begun {
        let mut store = self.store.borrow_mut();
        let report = |report| IoReply::Report(Box::new(report));
        // What says that records are held waits until they are (D1).
        let tells_held = matches!(
            request,
            IoRequest::Open(_) | IoRequest::Inspect { .. } | IoRequest::ListUnfinished { .. }
        );
        let answer = match request {
            IoRequest::Open(open) => store.open(*open).map(report),
            IoRequest::Prepare(prepare) => match store.prepare(*prepare, &payload) {
                Ok(Promise::New(reply)) => Ok(reply),
                Ok(Promise::Repeated(reply)) => {
                    let open = store.direct.open();
                    return Begun::Written(Box::new(Ok(reply)), open);
                }
                Err(refusal) => Err(refusal),
            },
            IoRequest::Marks { incarnation, groups } => {
                let checked = store.check_incarnation(incarnation);
                checked.and_then(|()| store.marks(groups))
            }
            IoRequest::Decided { incarnation, groups } => {
                let checked = store.check_incarnation(incarnation);
                checked.map(|()| store.decided(groups))
            }
            IoRequest::Sync { incarnation, position } => {
                match store.check_incarnation(incarnation) {
                    Ok(()) => return Begun::Sync(position),
                    Err(refusal) => Err(refusal),
                }
            }
            IoRequest::Read(request) => return Begun::Read(request),
            IoRequest::Seek(seek) => store.seek(&seek),
            IoRequest::Inspect { fence } => store.inspect(&fence).map(report),
            IoRequest::Rejoin { fence, rejoin } => {
                let rejoined = Rejoined { key: key_of(&fence), grant: fence.grant, begin: *rejoin };
                match store.rejoin(&fence, rejoined) {
                    Ok(()) => return Begun::Rejoined(fence),
                    Err(refusal) => Err(refusal),
                }
            }
            IoRequest::Rebuild { fence, decided, changes } => {
                store.rebuild(&fence, decided, changes, &payload)
            }
            IoRequest::Remove { fence, layout } => {
                let (key, grant) = (key_of(&fence), fence.grant);
                store.remove(&fence, Removed { key, grant, layout: *layout })
            }
            IoRequest::ListPortions { after, limit } => store.list_portions(after, limit),
            IoRequest::DescribePortion { name } => store.describe(name),
            IoRequest::ListUnfinished { writers } => Ok(store.list_unfinished(&writers)),
            IoRequest::Verify { name } => return Begun::Verify(name),
            IoRequest::Scrub => {
                self.scrub.ask();
                Ok(self.status(&store))
            }
            IoRequest::Status => Ok(self.status(&store)),
        };
        let open = if tells_held { store.direct.open() } else { Vec::new() };
        drop(store);
        // Also a refused request may have begun some.
        let begun = take_begun(&self.store);
        if begun.is_empty() && open.is_empty() {
            return Begun::Done((answer, Payload::empty()));
        }
        Begun::Written(Box::new(answer), begun.into_iter().chain(open).collect())
    }

    fn status(&self, store: &Store) -> IoReply {
        IoReply::Status(IoStatus { scrub: self.scrub.status(), ..store.status() })
    }

    async fn written(&self, answer: Result<IoReply, IoRefusal>, tickets: &[Ticket]) -> Answer {
        written(&self.store, tickets).await;
        let failed = self.store.borrow().failed.is_some();
        (if failed { Err(IoRefusal::NotReady) } else { answer }, Payload::empty())
    }

    async fn synced(&self, position: JournalPosition) -> Answer {
        let result = self.syncer.sync_to(position).await;
        let synced = self.store.borrow().synced;
        let answer = result.map(|()| IoReply::Synced { synced });
        (answer.map_err(|MediumFailed| IoRefusal::NotReady), Payload::empty())
    }

    async fn rejoined(&self, fence: braid_wire::io::Fence) -> Answer {
        if self.syncer.sync_all().await.is_err() {
            return (Err(IoRefusal::NotReady), Payload::empty());
        }
        let report = self.store.borrow_mut().inspect(&fence);
        (report.map(|report| IoReply::Report(Box::new(report))), Payload::empty())
    }
}

/// What is left of a request after its first part.
enum Begun {
    Done(Answer),
    /// The answer waits for blocks on their way.
    Written(Box<Result<IoReply, IoRefusal>>, Vec<Ticket>),
    Sync(JournalPosition),
    Read(Box<braid_wire::io::Read>),
    Verify(braid_terms::PortionName),
    Rejoined(braid_wire::io::Fence),
    Wait(oneshot::Receiver<Answer>),
    Refresh(oneshot::Receiver<Answer>),
}

struct IoHandler {
    server: IoServer,
    cluster: ClusterId,
}

impl Handler<Io> for IoHandler {
    type Session = ();

    fn hello(&self, hello: &Hello) -> Result<(), HelloReply> {
        if hello.cluster == self.cluster {
            Ok(())
        } else {
            Err(HelloReply::WrongCluster { cluster: self.cluster })
        }
    }

    fn handle(
        self: Rc<Self>,
        _session: Rc<()>,
        request: IoRequest,
        payload: Bytes,
    ) -> impl Future<Output = Answer> + 'static {
        self.server.handle(request, payload)
    }
}

/// A renewal must be answered well within a lease.
const CALL_DEADLINE: Duration = Duration::from_millis(1500);
