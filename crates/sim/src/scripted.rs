//! Scripts: one thing after the other on a simulated cluster, down to single messages.
//!
//! # Theory
//! A script chooses where each portion lies and which server's LC is asked, holds or loses the
//! messages that matter, and waits for conditions, never for a time.
//! ```text
//! hold(prepares to 2) -> write begun -> reached() -> power cut of 1 -> release() -> what is read?
//! ```
//! A device's strips are one block, so block b of a device with k data portions is in portion
//! `b % k + 1`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use braid_client::Client as BraidClient;
use braid_env::simulated::{self, FrameSeen, Passage, SimProcess, Simulation};
use braid_env::{Address, Payload};
use braid_terms::{
    AckMode, BLOCK_SIZE, ClusterMap, DataType, DeviceId, DiskId, FactNumber, GrantNumber,
    GroupLayout, Incarnation, LayoutGeneration, PolicyQuestion, PortionIndex, RaidScheme, ServerId,
    WriteNumber,
};
use braid_wire::coordinator::{CoordinatorRefusal, CoordinatorReply, CoordinatorRequest};
use braid_wire::header::{self, FrameKind, Header};
use braid_wire::io::{Fence, Io, IoRefusal, IoReply, IoRequest, Report};
use braid_wire::lcc::{
    Answer, DeviceLength, DirectoryOp, FileChange, FileData, FileKind, FileOp, GroupDescription,
    IfExists, Lcc, LccRefusal, LccReply, LccRequest, LccStatus, NewAttributes, OperationId,
};
use braid_wire::rpc::{Client, Hello, Peer, Role as WireRole};
use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};

pub use crate::cluster::Role;
use crate::cluster::{CLIENTS, Cluster};

/// A cluster under a script; clones share it.
#[derive(Clone)]
pub struct Script {
    pub simulation: Simulation,
    pub cluster: Rc<Cluster>,
    scheme: RaidScheme,
    client: BraidClient,
    map: Rc<ClusterMap>,
    rules: Rc<RefCell<Vec<Rule>>>,
    next_rule: Rc<Cell<u32>>,
    next_device: Rc<Cell<u64>>,
    /// Whose LCC is in the process of the client that asks.
    of_mount: Option<ServerId>,
}

/// What one process says to another.
#[derive(Clone, Debug)]
pub enum Message {
    ToIo(IoRequest),
    FromIo(Result<IoReply, IoRefusal>),
    ToLcc(Box<LccRequest>),
    FromLcc(Box<Result<LccReply, LccRefusal>>),
    ToCoordinator(CoordinatorRequest),
    FromCoordinator(Result<CoordinatorReply, CoordinatorRefusal>),
}

/// A message on its way between two servers.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The sending server.
    pub from: u32,
    /// The receiving one.
    pub to: u32,
    /// What it says.
    pub message: Message,
}

struct Rule {
    number: u32,
    matches: Box<dyn Fn(&Seen) -> bool>,
    action: Action,
    count: Rc<Cell<u32>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Note,
    Hold,
    /// So many of them.
    Lose(u32),
}

/// Messages that are held.
pub struct Hold {
    number: u32,
    count: Rc<Cell<u32>>,
    script: Script,
}

/// Why an LC did not do it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failed {
    Refused(LccRefusal),
    /// There was no answer.
    Unanswered,
}

impl Script {
    /// Starts servers of one disk each in a world of their own, waits until all hold leases, and runs
    /// the script.
    pub fn run(seed: u64, servers: u32, scheme: &str, body: impl AsyncFnOnce(Self)) {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        simulated::run(seed, async |simulation: Simulation| {
            let scheme: RaidScheme = scheme.parse().expect("a scheme");
            let cluster = Rc::new(Cluster::start(&simulation, servers, scheme).await);
            let client = loop {
                match cluster.client(0).await {
                    Ok(client) => break client,
                    Err(_) => sleep(LOOK_AGAIN).await,
                }
            };
            let map = client.map().await.expect("a client that is connected knows the map");
            let script = Self {
                simulation,
                client,
                map,
                cluster,
                scheme,
                rules: Rc::default(),
                next_rule: Rc::new(Cell::new(1)),
                next_device: Rc::new(Cell::new(1 << 40)),
                of_mount: None,
            };
            script.watch();
            script.until("every server serves", async |script| script.is_whole().await).await;
            body(script).await;
        });
    }

    /// A client process of the script.
    #[must_use]
    pub fn client(&self) -> &BraidClient {
        &self.client
    }

    /// The same, but what is asked is asked by a client in the process of that server's LCC.
    #[must_use]
    pub fn in_process_of(&self, server: u32) -> Self {
        Self { of_mount: Some(ServerId(server)), ..self.clone() }
    }

    /// The server that owns a group, as far as the global controller knows.
    pub async fn known_owner(&self, group: DeviceId) -> Option<u32> {
        let request = CoordinatorRequest::FindOwner { group };
        match self.client.coordinators().call(&request, CALL_WAIT).await {
            Ok(CoordinatorReply::OwnedBy { lcc, .. }) => Some(lcc.server.0),
            _ => None,
        }
    }

    /// A client on a machine of its own that is a mount, in a process; `work` is what it does.
    pub fn mount<F: Future<Output = ()> + 'static>(
        &self,
        number: u32,
        work: impl FnOnce(BraidClient) -> F + 'static,
    ) -> SimProcess {
        let machine = self.simulation.machine(CLIENTS + number);
        let cluster = self.cluster.clone();
        self.simulation.spawn_process(&machine, "mount", move |env| async move {
            let client = cluster.client_in(env).await.expect("the cluster is there");
            let _hosted = cluster.host(&client, number).await;
            work(client).await;
        })
    }

    /// Whether every LC answers and knows the map, and no fact is open.
    async fn is_whole(&self) -> bool {
        for server in 1..=self.cluster.servers {
            let status = self.status(server).await;
            if status.is_none_or(|status| status.map_version < self.map.version) {
                return false;
            }
        }
        let facts = self.cluster.open_facts().await;
        facts.is_some_and(|(suspects, _)| suspects == 0)
    }

    async fn status(&self, server: u32) -> Option<LccStatus> {
        match self.call(server, LccRequest::Status, Payload::empty(), CALL_WAIT).await {
            Ok((LccReply::Status(status), _)) => Some(status),
            _ => None,
        }
    }

    /// The incarnation of a server's LCC, which must answer.
    pub async fn incarnation(&self, server: u32) -> Incarnation {
        self.status(server).await.expect("the LC answers").incarnation
    }

    /// A device that was never written, with its slots 1, 2, ... on these servers.
    #[must_use]
    pub fn device(&self, servers: &[u32]) -> GroupLayout {
        let number = self.next_device.get();
        self.next_device.set(number + 1);
        GroupLayout {
            devices: vec![DeviceId(number)],
            scheme: self.scheme,
            strip_size: BLOCK_SIZE as u32,
            generation: LayoutGeneration(1),
            disks: servers.iter().map(|server| DiskId(*server)).collect(),
        }
    }

    /// A device of a number that a server's LC gives out, of its own range.
    pub async fn new_device(&self, server: u32) -> GroupLayout {
        let request = LccRequest::NewDevices {
            data_type: DataType::File,
            question: PolicyQuestion::default(),
            count: 1,
        };
        match self.call(server, request, Payload::empty(), CALL_WAIT).await {
            Ok((LccReply::Layouts(layouts), _)) => layouts[0].clone(),
            other => panic!("no number: {other:?}"),
        }
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> GroupLayout {
        self.map.root.clone().expect("a client is connected, so there is one")
    }

    /// An id of an operation that was not given before.
    #[must_use]
    pub fn operation(&self) -> OperationId {
        let counter = self.next_device.get();
        self.next_device.set(counter + 1);
        OperationId { client: 1, counter }
    }

    /// Gives a device of so many bytes a name in the root directory.
    pub async fn name(&self, device: &GroupLayout, size: u64, name: &'static str) {
        let data = FileData::Device(device.clone());
        let attributes = NewAttributes { data, size, ..plain(FileKind::File) };
        let create = DirectoryOp::Create {
            operation: self.operation(),
            name: Bytes::from_static(name.as_bytes()),
            attributes,
            if_exists: IfExists::Fail,
            stable: true,
        };
        self.client.directory_op(&self.root(), create).await.expect("the name is free");
    }

    /// A directory with copies on these servers, begun at the LC of `owner`; its number is above those
    /// of all before. Without a name, unless it gets one.
    pub async fn directory(
        &self,
        servers: &[u32],
        owner: u32,
        parent: &GroupLayout,
    ) -> GroupLayout {
        let number = self.next_device.replace(self.next_device.get() + 2);
        let copies = u8::try_from(servers.len()).expect("few servers");
        let layout = GroupLayout {
            devices: vec![DeviceId(number), DeviceId(number + 1)],
            scheme: RaidScheme::Raid1 { copies },
            strip_size: 64 << 10,
            generation: LayoutGeneration(1),
            disks: servers.iter().map(|server| DiskId(*server)).collect(),
        };
        let (operation, parent) = (self.operation(), parent.clone());
        let begin =
            DirectoryOp::Begin { operation, attributes: plain(FileKind::Directory), parent };
        self.names_at_last(owner, &layout, begin).await.expect("it is new");
        layout
    }

    /// Enters a directory under a name.
    pub async fn enter(&self, server: u32, into: &GroupLayout, name: &str, of: &GroupLayout) {
        let enter = DirectoryOp::Enter {
            operation: self.operation(),
            name: Bytes::copy_from_slice(name.as_bytes()),
            id: of.group(),
            kind: FileKind::Directory,
            home: of.clone(),
        };
        self.names_at_last(server, into, enter).await.expect("the name is free");
    }

    /// Makes an empty file; its number.
    pub async fn make(&self, server: u32, directory: &GroupLayout, name: &str) -> DeviceId {
        let create = DirectoryOp::Create {
            operation: self.operation(),
            name: Bytes::copy_from_slice(name.as_bytes()),
            attributes: plain(FileKind::File),
            if_exists: IfExists::Replace,
            stable: false,
        };
        match self.names_at_last(server, directory, create).await {
            Ok(LccReply::Entry { entry, .. }) => entry.id,
            other => panic!("{other:?}"),
        }
    }

    /// Asks the LC of a server for something of a directory, once.
    pub async fn names(
        &self,
        server: u32,
        directory: &GroupLayout,
        op: DirectoryOp,
    ) -> Result<LccReply, Failed> {
        let request = LccRequest::Directory { layout: directory.clone(), op };
        self.call(server, request, Payload::empty(), CALL_WAIT).await.map(|(reply, _)| reply)
    }

    /// The same in a task of its own.
    #[must_use]
    pub fn begin_names(
        &self,
        server: u32,
        directory: &GroupLayout,
        op: DirectoryOp,
    ) -> JoinHandle<Result<LccReply, Failed>> {
        let (script, directory) = (self.clone(), directory.clone());
        spawn_local(async move { script.names(server, &directory, op).await })
    }

    /// The same, again until the owner answers or refuses for good.
    pub async fn names_at_last(
        &self,
        server: u32,
        directory: &GroupLayout,
        op: DirectoryOp,
    ) -> Result<LccReply, LccRefusal> {
        let ask = async |at_server| for_good(self.names(at_server, directory, op.clone()).await);
        self.at_last("an operation on a directory", server, ask).await
    }

    /// What a name in a directory stands for; none if for nothing.
    pub async fn entry(
        &self,
        server: u32,
        directory: &GroupLayout,
        name: &str,
    ) -> Option<DeviceId> {
        let look = DirectoryOp::Lookup { name: Bytes::copy_from_slice(name.as_bytes()) };
        match self.names_at_last(server, directory, look).await {
            Ok(LccReply::Entry { entry, .. }) => Some(entry.id),
            Err(LccRefusal::NotFound) => None,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// How many names a file has by its record; none where there is no record.
    pub async fn link_count(&self, server: u32, home: &GroupLayout, id: DeviceId) -> Option<u32> {
        match self.names_at_last(server, home, DirectoryOp::GetAttributes { id }).await {
            Ok(LccReply::Attributes(attributes)) => Some(attributes.nlink),
            Err(LccRefusal::NotFound) => None,
            other => panic!("{id}: {other:?}"),
        }
    }

    /// The parent that a directory has by its own record.
    pub async fn parent(&self, server: u32, directory: &GroupLayout) -> DeviceId {
        match self.names_at_last(server, directory, DirectoryOp::Parent).await {
            Ok(LccReply::Layouts(parents)) => parents[0].group(),
            other => panic!("{other:?}"),
        }
    }

    /// All servers.
    #[must_use]
    pub fn servers(&self) -> Vec<u32> {
        (1..=self.cluster.servers).collect()
    }

    /// Asks the LC of one server, once.
    pub async fn call(
        &self,
        server: u32,
        request: LccRequest,
        payload: Payload,
        wait: Duration,
    ) -> Result<(LccReply, Bytes), Failed> {
        let env = self.simulation.machine(CLIENTS).env();
        let peer = Peer::Client { random: self.simulation.random(), server: self.of_mount };
        let hello = Hello::new(self.map.cluster, WireRole::Lcc, 0, peer);
        let to = Address::Tcp(self.map.servers[&ServerId(server)].lc_address);
        let asked = async {
            let client = Client::<Lcc>::connect(&env, to, hello).await.ok()?;
            client.call(&request, payload, wait).await.ok()
        };
        match timeout(wait, asked).await {
            Ok(Some((Ok(answer), bytes))) => Ok((answer.reply, bytes)),
            Ok(Some((Err(refusal), _))) => Err(Failed::Refused(refusal)),
            Ok(None) | Err(_) => Err(Failed::Unanswered),
        }
    }

    async fn file(
        &self,
        server: u32,
        device: &GroupLayout,
        op: FileOp,
        bytes: Vec<u8>,
    ) -> Result<(LccReply, Bytes), Failed> {
        let request = LccRequest::File { layout: device.clone(), op, change: None };
        self.call(server, request, Payload::from(Bytes::from(bytes)), CALL_WAIT).await
    }

    /// Asks the LC of a server for a change of a device that may be asked for again, once.
    pub async fn change(
        &self,
        server: u32,
        device: &GroupLayout,
        op: FileOp,
        change: FileChange,
        bytes: Vec<u8>,
    ) -> Result<LccReply, Failed> {
        let request = LccRequest::File { layout: device.clone(), op, change: Some(change) };
        let payload = Payload::from(Bytes::from(bytes));
        self.call(server, request, payload, CALL_WAIT).await.map(|(reply, _)| reply)
    }

    /// The same, again until the owner answers or refuses for good.
    pub async fn change_at_last(
        &self,
        server: u32,
        device: &GroupLayout,
        op: FileOp,
        change: FileChange,
        bytes: Vec<u8>,
    ) -> Result<LccReply, LccRefusal> {
        let ask = async |at_server| {
            for_good(self.change(at_server, device, op.clone(), change, bytes.clone()).await)
        };
        self.at_last("a change", server, ask).await
    }

    /// Writes through the LC of a server; held when answered.
    pub async fn write(
        &self,
        server: u32,
        device: &GroupLayout,
        at: u64,
        bytes: Vec<u8>,
    ) -> Result<(), Failed> {
        let home = device.group();
        let op = FileOp::Write {
            at,
            home,
            fresh: true,
            stable: false,
            append: false,
            ack: AckMode::Cluster,
        };
        self.file(server, device, op, bytes).await.map(|_| ())
    }

    /// Writes through the LC of a server, answered from its memory.
    pub async fn write_ahead(
        &self,
        server: u32,
        device: &GroupLayout,
        at: u64,
        bytes: Vec<u8>,
    ) -> Result<DeviceLength, Failed> {
        self.write_with(AckMode::Memory, server, device, (at, bytes)).await
    }

    /// Writes through the LC of a server, answered from its local journal.
    pub async fn write_local(
        &self,
        server: u32,
        device: &GroupLayout,
        at: u64,
        bytes: Vec<u8>,
    ) -> Result<DeviceLength, Failed> {
        self.write_with(AckMode::Local, server, device, (at, bytes)).await
    }

    /// The same with several parts, each one block of equal bytes.
    pub async fn write_many_local(
        &self,
        server: u32,
        device: &GroupLayout,
        parts: &[(u64, u8)],
    ) -> Result<DeviceLength, Failed> {
        let bytes = parts.iter().flat_map(|(_, byte)| block(*byte)).collect();
        let parts = parts.iter().map(|(at, _)| (*at, BLOCK_SIZE as u32)).collect();
        let (home, ack) = (device.group(), AckMode::Local);
        let op = FileOp::WriteMany { parts, home, fresh: true, ack };
        match self.file(server, device, op, bytes).await? {
            (LccReply::Written { length, .. }, _) => Ok(length),
            (reply, _) => panic!("a write is answered with {reply:?}"),
        }
    }

    /// The same in a task of its own.
    #[must_use]
    pub fn begin_local(
        &self,
        server: u32,
        device: &GroupLayout,
        at: u64,
        bytes: Vec<u8>,
    ) -> JoinHandle<Result<DeviceLength, Failed>> {
        let (script, device) = (self.clone(), device.clone());
        spawn_local(async move { script.write_local(server, &device, at, bytes).await })
    }

    async fn write_with(
        &self,
        ack: AckMode,
        server: u32,
        device: &GroupLayout,
        (at, bytes): (u64, Vec<u8>),
    ) -> Result<DeviceLength, Failed> {
        let home = device.group();
        let op = FileOp::Write { at, home, fresh: true, stable: false, append: false, ack };
        match self.file(server, device, op, bytes).await? {
            (LccReply::Written { length, .. }, _) => Ok(length),
            (reply, _) => panic!("a write is answered with {reply:?}"),
        }
    }

    /// A write in a task of its own.
    #[must_use]
    pub fn begin_write(
        &self,
        server: u32,
        device: &GroupLayout,
        at: u64,
        bytes: Vec<u8>,
    ) -> JoinHandle<Result<(), Failed>> {
        let (script, device) = (self.clone(), device.clone());
        spawn_local(async move { script.write(server, &device, at, bytes).await })
    }

    /// Waits for all that was answered to be stable.
    pub async fn sync(&self, server: u32, device: &GroupLayout) -> Result<(), Failed> {
        self.file(server, device, FileOp::SYNC, Vec::new()).await.map(|_| ())
    }

    /// As `sync`, by a client that was told of a write.
    pub async fn sync_of(
        &self,
        server: u32,
        device: &GroupLayout,
        written: WriteNumber,
    ) -> Result<(), Failed> {
        let op = FileOp::Sync { written: vec![written] };
        self.file(server, device, op, Vec::new()).await.map(|_| ())
    }

    /// Reads through the LC of a server.
    pub async fn read(
        &self,
        server: u32,
        device: &GroupLayout,
        at: u64,
        length: u32,
    ) -> Result<Vec<u8>, Failed> {
        let op = FileOp::Read { at, length, stable: false };
        self.file(server, device, op, Vec::new()).await.map(|(_, bytes)| bytes.to_vec())
    }

    /// Cuts or extends through the LC of a server.
    pub async fn set_length(
        &self,
        server: u32,
        device: &GroupLayout,
        length: u64,
    ) -> Result<(), Failed> {
        let op = FileOp::Truncate { length, home: device.group() };
        self.file(server, device, op, Vec::new()).await.map(|_| ())
    }

    /// Asks the I/O server of a server.
    pub async fn ask_io(&self, server: u32, request: &IoRequest) -> Option<IoReply> {
        let env = self.simulation.machine(CLIENTS).env();
        let hello = Hello::new(self.map.cluster, WireRole::Io, 0, Peer::Unknown);
        let to = Address::Tcp(self.map.disks[&DiskId(server)].address);
        let asked = async {
            let client = Client::<Io>::connect(&env, to, hello).await.ok()?;
            client.call(request, Payload::empty(), CALL_WAIT).await.ok()
        };
        match timeout(CALL_WAIT, asked).await {
            Ok(Some((Ok(reply), _))) => Some(reply),
            _ => None,
        }
    }

    /// What a slot at a server keeps of a device, as an owner under that grant is told.
    pub async fn inspect(
        &self,
        server: u32,
        slot: PortionIndex,
        device: &GroupLayout,
        grant: GrantNumber,
    ) -> Option<Report> {
        let Some(IoReply::Status(status)) = self.ask_io(server, &IoRequest::Status).await else {
            return None;
        };
        let (group, incarnation) = (device.group(), status.incarnation);
        let fence = Fence { group, slot, grant, incarnation };
        match self.ask_io(server, &IoRequest::Inspect { fence }).await {
            Some(IoReply::Report(report)) => Some(*report),
            _ => None,
        }
    }

    /// Waits until nothing is kept in the journals of these servers above their portion files.
    pub async fn applied(&self, servers: &[u32]) {
        for server in servers {
            let trimmed =
                async |script: &Self| match script.ask_io(*server, &IoRequest::Status).await {
                    Some(IoReply::Status(status)) => status.journal_bytes <= JOURNAL_EMPTY_MAX,
                    _ => false,
                };
            self.until("a journal is trimmed", trimmed).await;
        }
    }

    /// The server whose LC owns a device, or now becomes its owner.
    pub async fn owner(&self, device: &GroupLayout) -> u32 {
        let owner = Cell::new(0);
        let found = async |script: &Self| {
            let request = LccRequest::DescribeGroup { layout: device.clone() };
            owner.set(match script.call(1, request, Payload::empty(), CALL_WAIT).await {
                Ok(_) => 1,
                Err(Failed::Refused(LccRefusal::NotOwner { owner: Some((lcc, _)) })) => {
                    lcc.server.0
                }
                Err(_) => 0,
            });
            owner.get() != 0
        };
        self.until("somebody owns it", found).await;
        owner.get()
    }

    /// Reads a device in every way that the scheme allows for one lost portion: directly, and with
    /// each portion away in turn. All must be whole before and is whole after.
    pub async fn check_all_ways(&self, owner: u32, device: &GroupLayout, expected: &[u8]) {
        self.healed().await;
        let length = u32::try_from(expected.len()).expect("a short device");
        let read = self.read_at_last(owner, device, 0, length).await;
        assert!(read == expected, "directly: {}", differences(&read, expected));
        for disk in device.disks.clone() {
            self.cluster.kill(disk.0, Role::Io);
            let read = self.read_at_last(owner, device, 0, length).await;
            assert!(read == expected, "without {disk}: {}", differences(&read, expected));
            self.cluster.start_process(disk.0, Role::Io);
            self.until("its I/O server is back", async |script| {
                script.ask_io(disk.0, &IoRequest::Status).await.is_some()
            })
            .await;
            self.healed().await;
        }
    }

    /// Becomes or asks the owner: `None` while another is it or too few portions answer.
    pub async fn describe(&self, server: u32, device: &GroupLayout) -> Option<GroupDescription> {
        let request = LccRequest::DescribeGroup { layout: device.clone() };
        match self.call(server, request, Payload::empty(), CALL_WAIT).await {
            Ok((LccReply::Group(group), _)) => Some(*group),
            _ => None,
        }
    }

    /// Reads through the LC of a server, or of who it says is the owner, again until it answers.
    pub async fn read_at_last(
        &self,
        server: u32,
        device: &GroupLayout,
        at: u64,
        length: u32,
    ) -> Vec<u8> {
        let read = async |at_server| self.read(at_server, device, at, length).await;
        self.at_last("a read", server, read).await
    }

    /// Writes through the LC of a server, or of who it says is the owner, again until it answers.
    pub async fn write_at_last(&self, server: u32, device: &GroupLayout, at: u64, bytes: &[u8]) {
        let write = async |at_server| self.write(at_server, device, at, bytes.to_vec()).await;
        self.at_last("a write", server, write).await;
    }

    async fn at_last<T>(
        &self,
        what: &str,
        server: u32,
        attempt: impl AsyncFn(u32) -> Result<T, Failed>,
    ) -> T {
        let end = Instant::now() + UNTIL_MAX;
        let mut asked = server;
        loop {
            let failed = match attempt(asked).await {
                Ok(done) => return done,
                Err(failed) => failed,
            };
            assert!(Instant::now() < end, "{what} ends with {failed:?}");
            // Whoever repairs a portion becomes the owner, too.
            asked = match failed {
                Failed::Refused(LccRefusal::NotOwner { owner: Some((lcc, _)) }) => lcc.server.0,
                _ => server,
            };
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits for a condition.
    pub async fn until(&self, what: &str, is_so: impl AsyncFn(&Self) -> bool) {
        let end = Instant::now() + UNTIL_MAX;
        while !is_so(self).await {
            assert!(Instant::now() < end, "never: {what}");
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until no slot is under a fact.
    pub async fn healed(&self) {
        let healed = async |script: &Self| {
            script.cluster.open_facts().await.is_some_and(|(suspects, _)| suspects == 0)
        };
        self.until("all facts are closed", healed).await;
    }

    /// Waits until some slot is under a fact.
    pub async fn suspected(&self) {
        let suspected = async |script: &Self| {
            script.cluster.open_facts().await.is_some_and(|(suspects, _)| suspects > 0)
        };
        self.until("a fact is recorded", suspected).await;
    }

    /// Whether the owner, asked at its server, says that all is in sync and stable.
    pub async fn stable_everywhere(&self, server: u32, device: &GroupLayout) {
        self.sync(server, device).await.expect("the owner can sync");
        let stable = async |script: &Self| {
            let group = script.describe(server, device).await;
            group.is_some_and(|group| group.decided == group.stable && group.absent.is_empty())
        };
        self.until("all is stable", stable).await;
    }

    /// From now on syncs of the disks of these servers take that long.
    pub fn set_sync_time(&self, servers: &[u32], time: Duration) {
        for server in servers {
            self.disk(*server).set_sync_latency(time..time + Duration::from_millis(1));
        }
    }

    /// The disk of a server's local journals.
    #[must_use]
    pub fn local_disk(&self, server: u32) -> braid_env::simulated::SimDisk {
        self.simulation.machine(server).disk("/local").expect("every server has one")
    }

    /// Open facts about local journals.
    pub async fn copies(&self) -> Vec<FactNumber> {
        let facts = RefCell::new(None);
        self.until("a global controller knows the facts", async |script| {
            *facts.borrow_mut() = script.cluster.local_copies().await;
            facts.borrow().is_some()
        })
        .await;
        facts.take().unwrap_or_default()
    }

    /// Waits until no fact about a local journal is open.
    pub async fn no_copies(&self) {
        self.until("all facts about local journals are closed", async |script| {
            script.copies().await.is_empty()
        })
        .await;
    }

    /// Removes the local journals of a server whose LC does not run. Returns how many there were.
    pub fn remove_local_journals(&self, server: u32) -> usize {
        let folder = self.simulation.machine(server).env().folder("/local".as_ref());
        let folder = folder.expect("the disk is there");
        let files = self.local_disk(server).files();
        let journals: Vec<_> = files.iter().filter(|path| path.ends_with(".log")).collect();
        for path in &journals {
            folder.remove(path.trim_start_matches('/')).expect("a file that is there");
        }
        journals.len()
    }

    /// The disk of a server.
    #[must_use]
    pub fn disk(&self, server: u32) -> braid_env::simulated::SimDisk {
        self.simulation.machine(server).disk("/disk").expect("every server has a disk")
    }

    /// Removes the portion files that a server keeps of a device, while its I/O server does not run.
    /// Returns how many there were.
    pub fn remove_portions(&self, server: u32, device: &GroupLayout) -> usize {
        let folder = self.simulation.machine(server).env().folder("/disk".as_ref());
        let folder = folder.expect("the disk is there");
        let begin = format!("{}-", device.group());
        let is_of =
            |path: &&String| path.rsplit('/').next().is_some_and(|name| name.starts_with(&begin));
        let files = self.disk(server).files();
        let of_device: Vec<_> = files.iter().filter(is_of).collect();
        for path in &of_device {
            folder.remove(path.trim_start_matches('/')).expect("a file that is there");
        }
        of_device.len()
    }

    /// Flips a bit of these bytes on the medium, in a file below `folder` that has them; `false` where
    /// none has.
    #[must_use]
    pub fn flip_a_bit_of(&self, server: u32, folder: &str, bytes: &[u8]) -> bool {
        let disk = self.disk(server);
        let below = |path: &&String| path.trim_start_matches('/').starts_with(folder);
        let place = disk.files().iter().filter(below).find_map(|path| {
            let content = disk.content(path)?;
            let at = content.windows(bytes.len()).position(|window| window == bytes)?;
            Some((path.clone(), at as u64))
        });
        let Some((path, at)) = place else { return false };
        disk.flip_bit(&path, at + bytes.len() as u64 / 2, 3);
        true
    }

    /// Waits until a server's journal has nothing of the device's group that is not stable.
    pub async fn stable_at(&self, device: &GroupLayout, server: u32) {
        let owner = self.owner(device).await;
        let writer = self.incarnation(owner).await;
        let stable = async |script: &Self| {
            let asked = IoRequest::ListUnfinished { writers: vec![writer] };
            match script.ask_io(server, &asked).await {
                Some(IoReply::Unfinished { groups }) => groups.is_empty(),
                _ => false,
            }
        };
        self.until("its records are stable", stable).await;
    }

    /// Machines lose their power, with all that was not synced.
    pub fn power_cut(&self, servers: &[u32]) {
        for server in servers {
            self.disk(*server).set_unlucky(true);
            self.cluster.power_cut(*server);
        }
    }

    /// Power is back, syncs are fast, and everything of these servers starts.
    pub fn power_on(&self, servers: &[u32]) {
        self.set_sync_time(servers, Duration::from_millis(1));
        for server in servers {
            self.simulation.machine(*server).power_on();
            self.cluster.start_server(*server);
        }
    }

    /// Nothing passes between a server and all other servers; clients still reach it.
    pub fn isolate(&self, server: u32) {
        for other in (1..=self.cluster.servers).filter(|other| *other != server) {
            self.simulation.partition_both(server, other);
        }
    }

    /// The server of the global controller.
    pub async fn leader(&self) -> u32 {
        let leader = Cell::new(0);
        self.until("somebody is elected", async |script| {
            leader.set(script.elected().await.unwrap_or(0));
            leader.get() != 0
        })
        .await;
        leader.get()
    }

    async fn elected(&self) -> Option<u32> {
        let statuses = self.client.coordinators().statuses(CALL_WAIT).await;
        let mut statuses = statuses.into_iter().flatten();
        statuses.find(|s| s.leader == Some(s.server)).map(|status| status.server.0)
    }

    /// Kills coordinators until the global controller is at another server than these.
    pub async fn move_leader_from(&self, servers: &[u32]) -> u32 {
        loop {
            let leader = self.leader().await;
            if !servers.contains(&leader) {
                return leader;
            }
            self.cluster.kill(leader, Role::Coordinator);
            let moved =
                async |script: &Self| script.elected().await.is_some_and(|now| now != leader);
            self.until("another one is elected", moved).await;
            self.cluster.start_process(leader, Role::Coordinator);
        }
    }

    /// Holds all messages that match, and what is behind them on their connections.
    #[must_use]
    pub fn hold(&self, matches: impl Fn(&Seen) -> bool + 'static) -> Hold {
        let (number, count) = self.add_rule(Action::Hold, matches);
        Hold { number, count, script: self.clone() }
    }

    /// The next messages that match are lost, and their connections break. Returns how many were.
    pub fn lose(&self, losses: u32, matches: impl Fn(&Seen) -> bool + 'static) -> Rc<Cell<u32>> {
        self.add_rule(Action::Lose(losses), matches).1
    }

    /// Counts messages that match and that no rule of before held.
    pub fn note(&self, matches: impl Fn(&Seen) -> bool + 'static) -> Rc<Cell<u32>> {
        self.add_rule(Action::Note, matches).1
    }

    /// Waits until a count is reached.
    pub async fn counted(&self, what: &str, count: &Cell<u32>, least: u32) {
        self.until(what, async |_| least <= count.get()).await;
    }

    fn add_rule(
        &self,
        action: Action,
        matches: impl Fn(&Seen) -> bool + 'static,
    ) -> (u32, Rc<Cell<u32>>) {
        let mut rules = self.rules.borrow_mut();
        let number = self.next_rule.replace(self.next_rule.get() + 1);
        let count = Rc::new(Cell::new(0));
        rules.push(Rule { number, matches: Box::new(matches), action, count: count.clone() });
        (number, count)
    }

    fn watch(&self) {
        let rules = self.rules.clone();
        self.simulation.watch_frames(move |frame| {
            let rules = rules.borrow();
            if rules.is_empty() {
                return Passage::Pass;
            }
            let Some(seen) = understand(frame) else { return Passage::Pass };
            for rule in rules.iter().filter(|rule| (rule.matches)(&seen)) {
                if rule.action == Action::Lose(rule.count.get()) {
                    continue;
                }
                rule.count.set(rule.count.get() + 1);
                match rule.action {
                    Action::Note => {}
                    Action::Hold => return Passage::Hold(rule.number),
                    Action::Lose(_) => return Passage::Lose,
                }
            }
            Passage::Pass
        });
    }
}

impl Hold {
    /// Waits until so many messages are held.
    pub async fn reached(&self, messages: u32) {
        let reached = async |_: &Script| messages <= self.count.get();
        self.script.until("a message is held", reached).await;
    }

    /// How many were held so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count.get()
    }

    /// They arrive, and no more are held.
    pub fn release(self) {
        self.script.rules.borrow_mut().retain(|rule| rule.number != self.number);
        self.script.simulation.release_frames(self.number);
    }
}

/// What a frame says, if it is of those that scripts know.
fn understand(frame: &FrameSeen<'_>) -> Option<Seen> {
    let (header, body) = Header::parse(frame.head).ok()?;
    let message = match (header.kind, frame.from.1, frame.to.1) {
        (FrameKind::Request, _, "io") => Message::ToIo(header::decode(body).ok()?),
        (FrameKind::Reply, "io", _) => Message::FromIo(header::decode(body).ok()?),
        (FrameKind::Request, _, "lc") => Message::ToLcc(header::decode(body).ok()?),
        (FrameKind::Reply, "lc", _) => {
            let answer: Result<Answer, LccRefusal> = header::decode(body).ok()?;
            Message::FromLcc(Box::new(answer.map(|answer| answer.reply)))
        }
        (FrameKind::Request, _, "coordinator") => {
            Message::ToCoordinator(header::decode(body).ok()?)
        }
        (FrameKind::Reply, "coordinator", _) => {
            Message::FromCoordinator(header::decode(body).ok()?)
        }
        _ => return None,
    };
    Some(Seen { from: frame.from.0, to: frame.to.0, message })
}

/// Which blocks differ, and how they begin.
fn differences(found: &[u8], expected: &[u8]) -> String {
    let pairs = found.chunks(BLOCK_SIZE).zip(expected.chunks(BLOCK_SIZE)).enumerate();
    let wrong = pairs.filter(|(_, (found, expected))| found != expected);
    let wrong: Vec<_> = wrong.map(|(at, (a, b))| format!("{at}: {} not {}", a[0], b[0])).collect();
    format!("{} bytes of {}; blocks {}", found.len(), expected.len(), wrong.join(", "))
}

/// What is not to be asked for again; the error is.
fn for_good(answer: Result<LccReply, Failed>) -> Result<Result<LccReply, LccRefusal>, Failed> {
    match answer {
        Ok(reply) => Ok(Ok(reply)),
        Err(
            failed @ (Failed::Unanswered
            | Failed::Refused(
                LccRefusal::NotOwner { .. }
                | LccRefusal::Unavailable { .. }
                | LccRefusal::OutcomeUnknown,
            )),
        ) => Err(failed),
        Err(Failed::Refused(refusal)) => Ok(Err(refusal)),
    }
}

/// Attributes of something without bytes.
fn plain(kind: FileKind) -> NewAttributes {
    NewAttributes {
        id: None,
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        made: None,
        atime: None,
        mtime: None,
        rdev: 0,
        data: FileData::None,
        size: 0,
        target: None,
        xattrs: Vec::new(),
    }
}

/// One block of equal bytes.
#[must_use]
pub fn block(byte: u8) -> Vec<u8> {
    vec![byte; BLOCK_SIZE]
}

/// Bytes of journal files in which no group keeps anything.
const JOURNAL_EMPTY_MAX: u64 = 4096;

/// Longest wait for the answer to one call, in simulated time.
const CALL_WAIT: Duration = Duration::from_secs(20);

/// Longest wait for a condition, in simulated time.
const UNTIL_MAX: Duration = Duration::from_secs(120);

/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
