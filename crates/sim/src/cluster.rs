//! Servers with all their roles on simulated machines: killed, paused, cut off, without power, back.
//! # Theory
//! A process that ends by itself is started again after a short pause, as its main controller would;
//! what it held ends with it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use braid_client::{Client, ClusterFile, HostOptions, Hosted, ServerEntry};
use braid_coordinator::CoordinatorConfig;
use braid_env::simulated::{SimDisk, SimProcess, Simulation};
use braid_env::{Address, Env};
use braid_io_server::{DiskIdentity, IoConfig, Limits, format_disk};
use braid_local_controller::lc::{LcConfig, Registrant, Threads};
use braid_terms::{
    ClusterId, ClusterMap, DiskId, DiskInfo, DiskState, FactKind, FactNumber, RaidScheme, ServerId,
    ServerInfo, ServerState,
};
use braid_wire::coordinator::{CoordinatorReply, CoordinatorRequest};
use braid_wire::coordinator_client::CoordinatorClient;
use braid_wire::io::ScrubStatus;
use braid_wire::rpc::Peer;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::sleep;

const CLUSTER: ClusterId = ClusterId(0x5eed);
const PORTS: [u16; 4] = [1000, 1001, 1002, 1003];
/// Machines from here on are clients.
pub const CLIENTS: u32 = 101;

/// A role of a server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    Coordinator,
    Io,
    Lc,
}

/// A simulated cluster.
pub struct Cluster {
    pub simulation: Simulation,
    pub servers: u32,
    launcher: Launcher,
}

/// What starts processes; clones share them.
#[derive(Clone)]
struct Launcher {
    simulation: Simulation,
    members: u32,
    map: Rc<ClusterMap>,
    /// Those that shall run.
    processes: Rc<RefCell<BTreeMap<(u32, Role), SimProcess>>>,
}

impl Cluster {
    /// Formats and starts `servers` servers of one disk each.
    pub async fn start(simulation: &Simulation, servers: u32, scheme: RaidScheme) -> Self {
        // One coordinator for each server that may be lost, and one more than those. Source: F-7.
        let wanted = if scheme.parity() > 2 { 2 * scheme.parity() as u32 + 1 } else { 5 };
        let members = if servers >= wanted { wanted } else { servers.min(3) };
        let address =
            |server: u32, port: usize| match simulation.machine(server).address(PORTS[port]) {
                Address::Tcp(address) => address,
                Address::Unix(_) => unreachable!("machines have TCP addresses"),
            };
        let mut map = ClusterMap {
            version: 1,
            cluster: CLUSTER,
            name: "simulated".to_owned(),
            coordinators: (1..=members).map(ServerId).collect(),
            scheme_default: Some(scheme),
            ..ClusterMap::default()
        };
        for id in 1..=servers {
            let server = ServerInfo {
                id: ServerId(id),
                name: format!("server-{id}"),
                lc_address: address(id, 0),
                coordinator_address: address(id, 1),
                main_address: address(id, 2),
                state: ServerState::InUse,
                is_mount: false,
                lc: None,
                lccs: Vec::new(),
            };
            let disk = DiskInfo {
                id: DiskId(id),
                identity: u128::from(id),
                server: ServerId(id),
                address: address(id, 3),
                path: "/disk".to_owned(),
                state: DiskState::InUse,
                incarnation: None,
            };
            map.servers.insert(ServerId(id), server);
            map.disks.insert(DiskId(id), disk);
        }
        let launcher = Launcher {
            simulation: simulation.clone(),
            members,
            map: Rc::new(map),
            processes: Rc::default(),
        };
        spawn_local(launcher.clone().watch());
        let cluster = Self { simulation: simulation.clone(), servers, launcher };
        for id in 1..=servers {
            let machine = simulation.machine(id);
            machine.add_disk("/disk", DISK_SIZE);
            machine.add_disk("/coordinator", 1 << 30);
            machine.add_disk("/local", 1 << 30);
            let identity =
                DiskIdentity { cluster: CLUSTER, disk: DiskId(id), identity: u128::from(id) };
            let formatted = format_disk(&machine.env(), "/disk".as_ref(), identity).await;
            formatted.expect("a new disk can be formatted");
            cluster.start_server(id);
        }
        cluster
    }

    /// Starts what does not run of a server.
    pub fn start_server(&self, server: u32) {
        for role in [Role::Coordinator, Role::Io, Role::Lc] {
            self.start_process(server, role);
        }
    }

    /// Starts a process that does not run; nothing for a coordinator where none belongs, and without
    /// power.
    pub fn start_process(&self, server: u32, role: Role) {
        self.launcher.start(server, role);
    }

    /// SIGKILL.
    pub fn kill(&self, server: u32, role: Role) {
        if let Some(process) = self.launcher.processes.borrow_mut().remove(&(server, role)) {
            process.kill();
        }
    }

    /// SIGSTOP and SIGCONT.
    pub fn set_paused(&self, server: u32, role: Role, paused: bool) {
        if let Some(process) = self.launcher.processes.borrow().get(&(server, role)) {
            if paused { process.pause() } else { process.resume() }
        }
    }

    /// The machine loses its power, with all that was not synced.
    pub fn power_cut(&self, server: u32) {
        self.simulation.machine(server).power_cut();
        self.launcher.processes.borrow_mut().retain(|(of, _), _| *of != server);
    }

    /// Everything is repaired from outside: power, network, processes.
    pub fn bring_back(&self) {
        self.simulation.heal_all();
        for server in 1..=self.servers {
            let machine = self.simulation.machine(server);
            if !machine.is_up() {
                machine.power_on();
            }
            for role in [Role::Coordinator, Role::Io, Role::Lc] {
                self.set_paused(server, role, false);
            }
            self.start_server(server);
        }
    }

    /// The disk of a server's portions.
    #[must_use]
    pub fn disk(&self, server: u32) -> SimDisk {
        self.simulation.machine(server).disk("/disk").expect("every server has one")
    }

    /// Whether a process runs.
    #[must_use]
    pub fn runs(&self, server: u32, role: Role) -> bool {
        self.launcher.processes.borrow().get(&(server, role)).is_some_and(SimProcess::is_alive)
    }

    /// A client on a machine of its own.
    pub async fn client(&self, number: u32) -> Result<Client, braid_client::Error> {
        self.client_in(self.simulation.machine(CLIENTS + number).env()).await
    }

    /// A client in a process of its own.
    pub async fn client_in(&self, env: Env) -> Result<Client, braid_client::Error> {
        let servers = self.launcher.map.servers.values().map(|server| ServerEntry {
            id: server.id,
            lc: server.lc_address,
            coordinator: server.coordinator_address,
            main: server.main_address,
        });
        let file = ClusterFile {
            cluster: CLUSTER,
            name: self.launcher.map.name.clone(),
            servers: servers.collect(),
        };
        Client::connect(env, &file).await
    }

    /// Gives a client an LCC of its own, as a mount has: its machine is a server without disks.
    pub async fn host(&self, client: &Client, number: u32) -> Hosted {
        let listen = match self.simulation.machine(CLIENTS + number).address(PORTS[0]) {
            Address::Tcp(address) => address,
            Address::Unix(_) => unreachable!("machines have TCP addresses"),
        };
        let options = HostOptions {
            name: format!("mount-{number}"),
            listen,
            io_sockets: BTreeMap::new(),
            groups_kept: 50,
        };
        client.host(options).await
    }

    /// Open facts: suspect portions, and pending ones of ended controllers; `None` where no global
    /// controller answers.
    pub async fn open_facts(&self) -> Option<(usize, u64)> {
        let client = self.coordinators();
        let request = CoordinatorRequest::Facts { after: FactNumber(0), limit: 4096 };
        let answer = client.call(&request, Duration::from_secs(5)).await;
        let Ok(CoordinatorReply::Facts { facts, .. }) = answer else { return None };
        let suspect = |kind: &FactKind| matches!(kind, FactKind::Suspect { .. });
        let suspects = facts.iter().filter(|fact| suspect(&fact.kind)).count();
        let statuses = client.statuses(Duration::from_secs(5)).await;
        let leader = statuses.into_iter().flatten().find(|s| s.leader == Some(s.server))?;
        Some((suspects, leader.facts.pending))
    }

    /// Open facts about local journals; `None` where no global controller answers.
    pub async fn local_copies(&self) -> Option<Vec<FactNumber>> {
        let request = CoordinatorRequest::Facts { after: FactNumber(0), limit: 4096 };
        let answer = self.coordinators().call(&request, Duration::from_secs(5)).await;
        let Ok(CoordinatorReply::Facts { facts, .. }) = answer else { return None };
        let is_copy = |kind: &FactKind| matches!(kind, FactKind::LocalCopy { .. });
        let copies = facts.iter().filter(|fact| is_copy(&fact.kind));
        Some(copies.map(|fact| fact.number).collect())
    }

    /// How far the scrub of each disk is, where a global controller heard it.
    pub async fn scrubs(&self) -> Vec<(DiskId, ScrubStatus)> {
        let statuses = self.coordinators().statuses(Duration::from_secs(5)).await;
        let mut leaders = statuses.into_iter().flatten().filter(|s| s.leader == Some(s.server));
        leaders.next().map_or_else(Vec::new, |leader| leader.scrubs)
    }

    fn coordinators(&self) -> CoordinatorClient {
        let addresses = (1..=self.launcher.members)
            .map(|id| self.launcher.map.servers[&ServerId(id)].coordinator_address)
            .collect();
        let env = self.simulation.machine(CLIENTS).env();
        CoordinatorClient::new(env, CLUSTER, Peer::Unknown, addresses)
    }
}

impl Launcher {
    /// Starts again what ended by itself, as main controllers do.
    async fn watch(self) {
        loop {
            sleep(RESTART_PAUSE).await;
            let ended: Vec<(u32, Role)> = {
                let processes = self.processes.borrow();
                let ended = processes.iter().filter(|(_, process)| !process.is_alive());
                ended.map(|(key, _)| *key).collect()
            };
            ended.into_iter().for_each(|(server, role)| self.start(server, role));
        }
    }

    /// See [`Cluster::start_process`].
    fn start(&self, server: u32, role: Role) {
        let machine = self.simulation.machine(server);
        let runs = self.processes.borrow().get(&(server, role)).is_some_and(SimProcess::is_alive);
        let belongs = role != Role::Coordinator || server <= self.members;
        if runs || !belongs || !machine.is_up() {
            return;
        }
        let coordinators: Vec<SocketAddr> = (1..=self.members)
            .map(|id| self.map.servers[&ServerId(id)].coordinator_address)
            .collect();
        let info = &self.map.servers[&ServerId(server)];
        let process = match role {
            Role::Coordinator => {
                let members =
                    (1..=self.members).map(ServerId).zip(coordinators).collect::<Vec<_>>();
                let address = info.coordinator_address;
                let map = self.map.clone();
                self.simulation.spawn_process(&machine, "coordinator", move |env: Env| async move {
                    let config = CoordinatorConfig {
                        server: ServerId(server),
                        cluster: CLUSTER,
                        listen: vec![Address::Tcp(address)],
                        folder: "/coordinator".into(),
                        members: members.clone(),
                        first_map: Some((*map).clone()),
                    };
                    let _ = braid_coordinator::run(env.clone(), config).await;
                })
            }
            Role::Io => {
                let address = self.map.disks[&DiskId(server)].address;
                self.simulation.spawn_process(&machine, "io", move |env: Env| async move {
                    let config = IoConfig {
                        disk: DiskId(server),
                        folder: "/disk".into(),
                        cluster: CLUSTER,
                        server: ServerId(server),
                        listen: vec![Address::Tcp(address)],
                        coordinators: coordinators.clone(),
                        // Small files go every way that large ones go.
                        limits: Limits {
                            direct_blocks_min: 2,
                            uncached_blocks_min: 3,
                            scrub_interval: Duration::from_secs(20),
                            ..Limits::default()
                        },
                    };
                    let _ = braid_io_server::run(env.clone(), config).await;
                })
            }
            Role::Lc => {
                let address = info.lc_address;
                self.simulation.spawn_process(&machine, "lc", move |env: Env| async move {
                    let config = LcConfig {
                        registrant: Registrant::Server(ServerId(server)),
                        cluster: CLUSTER,
                        listen: vec![Address::Tcp(address)],
                        coordinators: coordinators.clone(),
                        io_sockets: BTreeMap::new(),
                        lccs: 1,
                        threads: Threads::One,
                        groups_kept: 50,
                        local: Some("/local".into()),
                        shutdown: Rc::new(Notify::new()),
                    };
                    let _ = braid_local_controller::lc::run(env.clone(), config).await;
                })
            }
        };
        self.processes.borrow_mut().insert((server, role), process);
    }
}

/// Bytes of each disk of portions.
pub const DISK_SIZE: u64 = 4 << 30;

/// Pause before a process that ended is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
