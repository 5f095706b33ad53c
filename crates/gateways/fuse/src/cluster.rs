//! The cluster as the mount's store: the client library, with an LCC of its own.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use braid_client::{
    Caches, Change, Client, ClientOptions, ClusterFile, Error, HostOptions, Hosted, Notice, Pins,
};
use braid_env::{Env, Payload, machine};
use braid_terms::{AckMode, DataType, DeviceId, GroupLayout, PolicyQuestion};
use braid_wire::lcc::{DirectoryOp, FileOp, LccReply, OperationId};
use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::errno::Errno;
use crate::mount::{Flags, MountError, MountOptions, Mounted};
use crate::store::{Right, Space, Store, StoreError};

/// A cluster.
pub struct ClusterStore {
    client: Client,
    hosted: RefCell<Option<Hosted>>,
    /// None where nothing is to be kept.
    caches: Option<Rc<Caches>>,
    notices: RefCell<UnboundedReceiver<Notice>>,
    pins: Arc<Pins>,
}

impl ClusterStore {
    /// Reaches the cluster; what owners say may be kept.
    pub async fn connect(
        env: Env,
        file: &ClusterFile,
        priority: Option<u8>,
        keeps: bool,
    ) -> Result<Self, StoreError> {
        let options = ClientOptions { priority, ..ClientOptions::default() };
        let client = Client::connect_with(env, file, options).await.map_err(store_error)?;
        let (notices, heard) = tokio::sync::mpsc::unbounded_channel();
        let caches = keeps.then(|| client.keep_caches(Some(notices)));
        let pins = caches.as_ref().map(|caches| caches.pins().clone()).unwrap_or_default();
        let hosted = RefCell::default();
        Ok(Self { client, hosted, caches, notices: RefCell::new(heard), pins })
    }

    /// Starts an LCC in this process, which owns what only this mount uses.
    pub async fn host(&self, options: HostOptions) {
        let hosted = self.client.host(options).await;
        *self.hosted.borrow_mut() = Some(hosted);
    }
}

/// Where others reach this machine, as seen by the servers of a cluster.
fn host_options(file: &ClusterFile, options: &MountOptions) -> Option<HostOptions> {
    let mut servers = file.servers.iter();
    let here = servers.find_map(|server| machine::address_towards(server.coordinator).ok())?;
    let mut name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.push(':');
    name.push_str(&options.directory.to_string_lossy());
    name.truncate(name.floor_char_boundary(NAME_MAX));
    let io_sockets = options.io_sockets.clone();
    Some(HostOptions { name, listen: (here, 0).into(), io_sockets, groups_kept: GROUPS_KEPT })
}

/// Bytes of a mount's name in the map.
const NAME_MAX: usize = 255;

/// Groups that a mount keeps open without need.
const GROUPS_KEPT: usize = 20_000;

fn store_error(error: Error) -> StoreError {
    match &error {
        Error::Unavailable { .. } => StoreError::Unreachable { reason: error.to_string() },
        Error::HeldLost { .. } => StoreError::HeldLost,
        // Somebody was faster: callers look again.
        Error::Conflict { .. } => StoreError::Refused(Errno::STALE),
        other => StoreError::Refused(Errno::from_raw_os_error(other.errno())),
    }
}

impl Store for ClusterStore {
    async fn root(&self) -> Result<GroupLayout, StoreError> {
        Ok(self.client.root().layout().clone())
    }

    async fn directory(
        &self,
        group: &GroupLayout,
        op: DirectoryOp,
    ) -> Result<(LccReply, Right), StoreError> {
        let Some(caches) = &self.caches else {
            let reply = self.client.directory_op(group, op).await.map_err(store_error)?;
            return Ok((reply, None));
        };
        let (reply, right) = caches.directory_op(group, op, false).await;
        Ok((reply.map_err(store_error)?, right))
    }

    async fn directory_soon(
        &self,
        group: &GroupLayout,
        op: DirectoryOp,
    ) -> Result<(LccReply, Right), StoreError> {
        let Some(caches) = &self.caches else { return self.directory(group, op).await };
        let (reply, right) = caches.directory_op(group, op, true).await;
        Ok((reply.map_err(store_error)?, right))
    }

    fn right(&self, group: DeviceId) -> Right {
        self.caches.as_ref()?.granted(group)
    }

    fn pins(&self) -> Arc<Pins> {
        self.pins.clone()
    }

    fn drop_lost(&self) {
        if let Some(caches) = &self.caches {
            caches.drop_lost();
        }
    }

    fn notice_now(&self) -> Option<Notice> {
        self.notices.borrow_mut().try_recv().ok()
    }

    async fn notice(&self) -> Option<Notice> {
        std::future::poll_fn(|context| self.notices.borrow_mut().poll_recv(context)).await
    }

    fn change(&self, group: &GroupLayout, op: &FileOp) -> Option<Change> {
        self.client.change(group, op)
    }

    async fn file(
        &self,
        group: &GroupLayout,
        op: FileOp,
        change: Option<&Change>,
        payload: Payload,
    ) -> Result<(LccReply, Bytes), StoreError> {
        self.client.file_change(group, op, change, payload).await.map_err(store_error)
    }

    async fn new_device(
        &self,
        data_type: DataType,
        path: Option<String>,
    ) -> Result<GroupLayout, StoreError> {
        let question = PolicyQuestion { path, ..PolicyQuestion::default() };
        self.client.new_layout(data_type, &question).await.map_err(store_error)
    }

    async fn ack(&self, path: Option<String>) -> AckMode {
        self.client.ack(path).await
    }

    fn ready_device(&self) -> Option<GroupLayout> {
        self.client.ready_file_layout()
    }

    fn session(&self) -> u64 {
        self.client.operation().client
    }

    fn operation(&self) -> OperationId {
        self.client.operation()
    }

    async fn space(&self) -> Result<Space, StoreError> {
        let space = self.client.space().await.map_err(store_error)?;
        Ok(Space { total: space.total, free: space.free })
    }

    async fn end(&self) {
        let hosted = self.hosted.borrow_mut().take();
        if let Some(hosted) = hosted
            && !hosted.end().await
        {
            tracing::warn!("this mount's groups are settled by their next owners");
        }
    }
}

fn read_cluster_file(path: &Path) -> Result<ClusterFile, MountError> {
    let bad = |reason: String| MountError::ClusterFile { file: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    ClusterFile::parse(&text).map_err(|error| bad(error.to_string()))
}

/// Mounts a cluster; returns when it serves.
pub fn start(options: &MountOptions) -> Result<Mounted<ClusterStore>, MountError> {
    let file = read_cluster_file(&options.cluster_file)?;
    let flags = Flags::parse(options.options.iter().map(String::as_str))?;
    let name = options.cluster_file.to_string_lossy().into_owned();
    let priority = flags.priority;
    let keeps = flags.tuning.ttl_ms > 0;
    let host = host_options(&file, options).filter(|_| flags.own_lcc);
    let make = move |env| async move {
        let store = ClusterStore::connect(env, &file, priority, keeps).await?;
        if let Some(host) = host {
            store.host(host).await;
        }
        Ok(store)
    };
    Mounted::start(make, &name, &options.directory, &flags)
}

/// Mounts a cluster and serves until it is unmounted, by `umount` or by SIGINT or SIGTERM.
pub fn mount(options: &MountOptions) -> Result<(), MountError> {
    serve(start(options)?)
}

/// Serves until it is unmounted, by `umount` or by SIGINT or SIGTERM.
pub fn serve<S: Store>(mounted: Mounted<S>) -> Result<(), MountError> {
    use tokio::signal::unix::{SignalKind, signal};
    let (stop, is_stopped) = std::sync::mpsc::channel();
    let listen = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (mut interrupt, mut terminate) =
                (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            // Nobody waits any more: the mount has ended.
            let _ = stop.send(());
            Ok::<_, std::io::Error>(())
        })
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(listen)
        .map_err(|_| MountError::Thread { thread: "signals" })?;
    mounted.wait(|| is_stopped.try_recv().is_ok())
}
