//! I/O servers in the simulated world, with one coordinator that keeps everything in memory.
#![allow(dead_code, clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use braid_env::simulated::{SimProcess, Simulation};
use braid_env::{Address, Env, Payload};
use braid_io_server::{DiskIdentity, IoConfig, Limits, format_disk};
use braid_local_controller::lc::{LcConfig, Registrant, Started, Threads};
use braid_terms::*;
use braid_wire::coordinator::*;
use braid_wire::rpc::{Handler, Hello, HelloReply, serve};
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::sleep;

pub const CLUSTER: ClusterId = ClusterId(0xb4a1d);
const COORDINATOR_PORT: u16 = 100;
const IO_PORT: u16 = 200;
const LC_PORT: u16 = 300;

/// A global controller without consensus.
pub struct FakeCoordinator {
    pub map: RefCell<ClusterMap>,
    next_incarnation: Cell<u64>,
    next_range: Cell<u64>,
    grants: Cell<u64>,
    owners: RefCell<BTreeMap<DeviceId, Incarnation>>,
    ranges: RefCell<Vec<(u64, Incarnation)>>,
    pub facts: RefCell<BTreeMap<FactNumber, Fact>>,
    next_fact: Cell<u64>,
    heard: RefCell<BTreeMap<DiskId, tokio::time::Instant>>,
    lcs: RefCell<BTreeMap<Incarnation, Vec<Incarnation>>>,
    pub calls: Cell<u64>,
}

impl FakeCoordinator {
    fn valid(&self, lcc: Incarnation) -> bool {
        self.map.borrow().servers.values().any(|server| server.lccs.contains(&Some(lcc)))
    }

    fn incarnation(&self) -> Incarnation {
        self.next_incarnation.set(self.next_incarnation.get() + 1);
        Incarnation(self.next_incarnation.get())
    }

    fn grant(&self) -> GrantNumber {
        self.grants.set(self.grants.get() + 1);
        GrantNumber { term: 1, counter: self.grants.get() }
    }

    fn facts_of(&self, group: DeviceId) -> Vec<Fact> {
        let facts = self.facts.borrow();
        facts.values().filter(|fact| fact.kind.group() == Some(group)).cloned().collect()
    }

    pub fn suspects(&self) -> usize {
        self.facts.borrow().len()
    }

    fn owner(&self, group: DeviceId) -> Option<Incarnation> {
        let owner = self.owners.borrow().get(&group).copied();
        let ranges = self.ranges.borrow();
        let range =
            ranges.iter().find(|(first, _)| (*first..first + NUMBER_RANGE_SIZE).contains(&group.0));
        owner.or(range.map(|(_, lcc)| *lcc)).filter(|lcc| self.valid(*lcc))
    }

    fn renewed(&self, map_version: u64) -> CoordinatorReply {
        let map = self.map.borrow();
        let now = tokio::time::Instant::now();
        let heard = self.heard.borrow();
        let live = heard.iter().filter(|(_, at)| now - **at < Duration::from_secs(3));
        CoordinatorReply::Renewed {
            term: 1,
            map: (map_version < map.version).then(|| Box::new(map.clone())),
            disks: live
                .map(|(disk, _)| LiveDisk {
                    disk: *disk,
                    incarnation: Incarnation(0),
                    bytes_free: 1 << 30,
                })
                .collect(),
            servers: Vec::new(),
            tell_holdings: false,
            facts_version: 0,
        }
    }

    fn answer(&self, request: CoordinatorRequest) -> Result<CoordinatorReply, CoordinatorRefusal> {
        use CoordinatorRequest as Ask;
        Ok(match request {
            Ask::RegisterLc { server, lccs } => {
                let lc = self.incarnation();
                let own: Vec<_> = (0..lccs).map(|_| self.incarnation()).collect();
                let mut map = self.map.borrow_mut();
                map.version += 1;
                let info = map.servers.get_mut(&server).unwrap();
                info.lc = Some(lc);
                info.lccs = own.iter().copied().map(Some).collect();
                self.lcs.borrow_mut().insert(lc, own.clone());
                CoordinatorReply::Registered {
                    incarnation: lc,
                    lccs: own,
                    map: Box::new(map.clone()),
                }
            }
            Ask::RegisterIo { disk, .. } => {
                let incarnation = self.incarnation();
                let mut map = self.map.borrow_mut();
                map.version += 1;
                map.disks.get_mut(&disk).unwrap().incarnation = Some(incarnation);
                self.heard.borrow_mut().insert(disk, tokio::time::Instant::now());
                CoordinatorReply::Registered {
                    incarnation,
                    lccs: Vec::new(),
                    map: Box::new(map.clone()),
                }
            }
            Ask::RenewIo { io, map_version, .. } => {
                let disk = {
                    let map = self.map.borrow();
                    let own = map.disks.values().find(|disk| disk.incarnation == Some(io));
                    own.ok_or(CoordinatorRefusal::InvalidIncarnation)?.id
                };
                self.heard.borrow_mut().insert(disk, tokio::time::Instant::now());
                self.renewed(map_version)
            }
            Ask::Renew { lc, map_version, .. } => {
                let valid = self.map.borrow().servers.values().any(|server| server.lc == Some(lc));
                if !valid {
                    return Err(CoordinatorRefusal::InvalidIncarnation);
                }
                self.renewed(map_version)
            }
            Ask::SetRoot { layout } => {
                let mut map = self.map.borrow_mut();
                map.version += u64::from(map.root.is_none());
                map.root.get_or_insert(*layout);
                CoordinatorReply::Map(Box::new(map.clone()))
            }
            Ask::Map { .. } => CoordinatorReply::Map(Box::new(self.map.borrow().clone())),
            Ask::LeaseNumbers { lcc } => {
                let first = self.next_range.get();
                self.next_range.set(first + NUMBER_RANGE_SIZE);
                self.ranges.borrow_mut().push((first, lcc));
                CoordinatorReply::Numbers { first: DeviceId(first), grant: self.grant() }
            }
            Ask::Grant { lcc, group } => {
                if !self.valid(lcc) {
                    return Err(CoordinatorRefusal::InvalidIncarnation);
                }
                match self.owner(group).filter(|owner| *owner != lcc) {
                    Some(owner) => {
                        let map = self.map.borrow();
                        let is_its = |s: &&ServerInfo| s.lccs.contains(&Some(owner));
                        let server = map.servers.values().find(is_its).unwrap();
                        CoordinatorReply::OwnedBy {
                            lcc: LccId { server: server.id, index: 0 },
                            incarnation: owner,
                            address: server.lc_address,
                        }
                    }
                    None => {
                        self.owners.borrow_mut().insert(group, lcc);
                        CoordinatorReply::Granted {
                            grant: self.grant(),
                            facts: self.facts_of(group),
                            clean: false,
                            caches_ms: 0,
                        }
                    }
                }
            }
            Ask::RecordFacts { lcc, facts } => {
                if !self.valid(lcc) {
                    return Err(CoordinatorRefusal::InvalidIncarnation);
                }
                let numbers = facts.into_iter().map(|(grant, kind)| {
                    let known =
                        self.facts.borrow().values().find(|f| f.kind == kind).map(|f| f.number);
                    Ok(known.unwrap_or_else(|| {
                        let number = FactNumber(self.next_fact.get());
                        self.next_fact.set(number.0 + 1);
                        let fact = Fact { number, recorder: lcc, grant, kind };
                        self.facts.borrow_mut().insert(number, fact);
                        number
                    }))
                });
                CoordinatorReply::Recorded(numbers.collect())
            }
            Ask::CloseFacts { facts, .. } => {
                let closed = facts.into_iter().map(|(number, _)| {
                    let closed = self.facts.borrow_mut().remove(&number);
                    closed.map(|_| ()).ok_or(FactRefusal::OtherFact)
                });
                CoordinatorReply::Closed(closed.collect())
            }
            Ask::Facts { .. } => CoordinatorReply::Facts {
                facts: self.facts.borrow().values().cloned().collect(),
                end: true,
            },
            Ask::Work { lc } => {
                let own = self.lcs.borrow().get(&lc).cloned().unwrap_or_default();
                let facts = self.facts.borrow();
                let mine = facts.values().filter(|fact| {
                    let owner = fact.kind.group().and_then(|group| self.owner(group));
                    owner.is_none_or(|owner| own.contains(&owner))
                });
                CoordinatorReply::Work {
                    facts: mine.cloned().collect(),
                    sweeps: Vec::new(),
                    bad: Vec::new(),
                }
            }
            Ask::Release { groups, .. } => {
                for (group, _) in groups {
                    self.owners.borrow_mut().remove(&group);
                }
                CoordinatorReply::Done
            }
            Ask::Holdings { .. } | Ask::UnregisterLc { .. } | Ask::GiveUpNumbers { .. } => {
                CoordinatorReply::Done
            }
            other => panic!("{other:?}"),
        })
    }
}

impl Handler<Coordinator> for FakeCoordinator {
    type Session = ();

    fn hello(&self, _: &Hello) -> Result<(), HelloReply> {
        Ok(())
    }

    async fn handle(
        self: Rc<Self>,
        _: Rc<()>,
        request: CoordinatorRequest,
        _: Bytes,
    ) -> (Result<CoordinatorReply, CoordinatorRefusal>, Payload) {
        self.calls.set(self.calls.get() + 1);
        (self.answer(request), Payload::empty())
    }
}

/// A cluster of I/O servers, one a machine; machine 100 has the coordinator, the test is on 101.
pub struct Cluster {
    pub simulation: Simulation,
    pub coordinator: Rc<FakeCoordinator>,
    io: RefCell<Vec<Option<SimProcess>>>,
    pub count: u32,
}

fn socket(address: Address) -> SocketAddr {
    match address {
        Address::Tcp(address) => address,
        Address::Unix(_) => unreachable!(),
    }
}

impl Cluster {
    pub async fn start(simulation: &Simulation, count: u32, scheme: &str) -> Self {
        let mut map = ClusterMap {
            version: 1,
            cluster: CLUSTER,
            coordinators: vec![ServerId(1)],
            scheme_default: Some(scheme.parse().unwrap()),
            ..ClusterMap::default()
        };
        let coordinator_address = socket(simulation.machine(100).address(COORDINATOR_PORT));
        for number in 1..=count + 2 {
            let lc_address = socket(simulation.machine(100 + number).address(LC_PORT));
            let server = ServerInfo {
                id: ServerId(number),
                name: number.to_string(),
                lc_address,
                coordinator_address,
                main_address: lc_address,
                state: ServerState::InUse,
                is_mount: false,
                lc: None,
                lccs: Vec::new(),
            };
            map.servers.insert(ServerId(number), server);
        }
        for number in 1..=count {
            let disk = DiskInfo {
                id: DiskId(number),
                identity: u128::from(number),
                server: ServerId(number),
                address: socket(simulation.machine(number).address(IO_PORT)),
                path: "/disk".into(),
                state: DiskState::InUse,
                incarnation: None,
            };
            map.disks.insert(DiskId(number), disk);
        }
        let coordinator = Rc::new(FakeCoordinator {
            map: RefCell::new(map),
            next_incarnation: Cell::new(1000),
            next_range: Cell::new(16),
            grants: Cell::default(),
            owners: RefCell::default(),
            ranges: RefCell::default(),
            facts: RefCell::default(),
            next_fact: Cell::new(1),
            heard: RefCell::default(),
            lcs: RefCell::default(),
            calls: Cell::default(),
        });
        let env = simulation.machine(100).env();
        let listener = env.listen(Address::Tcp(coordinator_address)).await.unwrap();
        tokio::task::spawn_local(serve::<Coordinator, _>(listener, coordinator.clone()));
        let io = (0..count).map(|_| None).collect();
        let cluster =
            Self { simulation: simulation.clone(), coordinator, io: RefCell::new(io), count };
        for number in 1..=count {
            let machine = simulation.machine(number);
            machine.add_disk("/disk", 1 << 30);
            let identity = DiskIdentity {
                cluster: CLUSTER,
                disk: DiskId(number),
                identity: u128::from(number),
            };
            format_disk(&machine.env(), "/disk".as_ref(), identity).await.unwrap();
            cluster.start_io(number);
        }
        while cluster.coordinator.heard.borrow().len() < count as usize {
            sleep(Duration::from_millis(10)).await;
        }
        cluster
    }

    pub fn start_io(&self, number: u32) {
        let config = IoConfig {
            disk: DiskId(number),
            folder: "/disk".into(),
            cluster: CLUSTER,
            server: ServerId(number),
            listen: vec![self.simulation.machine(number).address(IO_PORT)],
            coordinators: vec![socket(self.simulation.machine(100).address(COORDINATOR_PORT))],
            limits: Limits::default(),
        };
        let machine = self.simulation.machine(number);
        let process = self.simulation.spawn_process(&machine, "io", |env: Env| async move {
            let end = braid_io_server::run(env, config).await;
            println!("I/O server {number} ended: {end:?}");
        });
        self.io.borrow_mut()[number as usize - 1] = Some(process);
    }

    pub fn kill_io(&self, number: u32) {
        self.io.borrow_mut()[number as usize - 1].take().unwrap().kill();
    }

    pub fn power_cut(&self, number: u32) {
        self.io.borrow_mut()[number as usize - 1] = None;
        self.simulation.machine(number).power_cut();
    }

    pub fn power_on(&self, number: u32) {
        self.simulation.machine(number).power_on();
        self.start_io(number);
    }

    /// Starts an LC as server `count + which`, in the test's own tasks. It does not listen, so that
    /// two starts of one server can live side by side.
    pub async fn start_lc(&self, which: u32) -> Started {
        let config = LcConfig { listen: Vec::new(), ..self.lc_config(which) };
        let env = self.simulation.machine(100 + self.count + which).env();
        let started = Started::start(env, &config).await.unwrap();
        while !started.lccs()[0].lease_valid()
            || (1..=self.count).any(|disk| started.lccs()[0].is_dead(DiskId(disk)))
        {
            sleep(Duration::from_millis(10)).await;
        }
        started
    }

    /// Starts an LC as server `count + which`, as a process that serves clients.
    pub fn start_lc_process(&self, which: u32) -> SimProcess {
        let machine = self.simulation.machine(100 + self.count + which);
        let config = self.lc_config(which);
        self.simulation.spawn_process(&machine, "lc", |env: Env| async move {
            let end = braid_local_controller::lc::run(env, config).await;
            println!("LC {which} ended: {end:?}");
        })
    }

    /// Where clients find it.
    pub fn lc_address(&self, which: u32) -> SocketAddr {
        socket(self.simulation.machine(100 + self.count + which).address(LC_PORT))
    }

    /// Where the coordinator is.
    pub fn coordinator_address(&self) -> SocketAddr {
        socket(self.simulation.machine(100).address(COORDINATOR_PORT))
    }

    fn lc_config(&self, which: u32) -> LcConfig {
        LcConfig {
            registrant: Registrant::Server(ServerId(self.count + which)),
            cluster: CLUSTER,
            listen: vec![self.simulation.machine(100 + self.count + which).address(LC_PORT)],
            coordinators: vec![socket(self.simulation.machine(100).address(COORDINATOR_PORT))],
            io_sockets: BTreeMap::new(),
            lccs: 1,
            threads: Threads::One,
            groups_kept: 1000,
            local: None,
            shutdown: Rc::new(Notify::new()),
        }
    }
}
