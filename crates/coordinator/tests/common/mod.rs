//! Coordinators as processes of the simulator, and a client of them.
#![allow(dead_code, clippy::unwrap_used)]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use braid_coordinator::{CoordinatorConfig, CoordinatorFatal, run};
use braid_env::Address;
use braid_env::simulated::{SimProcess, Simulation};
use braid_terms::*;
use braid_wire::coordinator::*;
use braid_wire::coordinator_client::{CoordinatorClient, CoordinatorError};
use braid_wire::rpc::Peer;

pub const SECOND: Duration = Duration::from_secs(1);
pub const CLUSTER: ClusterId = ClusterId(42);
pub const FOLDER: &str = "/coordinator";

/// A group of coordinators on machines 1 to n; the client is on machine n + 1.
pub struct Group {
    pub simulation: Simulation,
    pub count: u32,
    pub processes: Vec<SimProcess>,
    pub ends: Rc<RefCell<Vec<(u32, String)>>>,
    pub client: CoordinatorClient,
}

pub fn address(simulation: &Simulation, number: u32) -> SocketAddr {
    match simulation.machine(number).address(7400) {
        Address::Tcp(address) => address,
        Address::Unix(_) => unreachable!("machines have TCP addresses"),
    }
}

pub fn config(simulation: &Simulation, count: u32, number: u32) -> CoordinatorConfig {
    let members = (1..=count).map(|member| (ServerId(member), address(simulation, member)));
    CoordinatorConfig {
        server: ServerId(number),
        cluster: CLUSTER,
        listen: vec![simulation.machine(number).address(7400)],
        folder: FOLDER.into(),
        members: members.collect(),
        first_map: Some(first_map(simulation, count)),
    }
}

/// As many servers with one disk each as there are coordinators.
pub fn first_map(simulation: &Simulation, count: u32) -> ClusterMap {
    let mut map = ClusterMap { version: 1, cluster: CLUSTER, ..ClusterMap::default() };
    for number in 1..=count {
        let at = address(simulation, number);
        let with_port = |port| SocketAddr::new(at.ip(), port);
        let server = ServerInfo {
            id: ServerId(number),
            name: format!("server {number}"),
            lc_address: with_port(7401),
            coordinator_address: at,
            main_address: with_port(7402),
            state: ServerState::InUse,
            is_mount: false,
            lc: None,
            lccs: Vec::new(),
        };
        map.servers.insert(server.id, server);
        let disk = DiskInfo {
            id: DiskId(number),
            identity: u128::from(number) * 1000,
            server: ServerId(number),
            address: with_port(7403),
            path: "/disk".to_owned(),
            state: DiskState::InUse,
            incarnation: None,
        };
        map.disks.insert(disk.id, disk);
        map.coordinators.push(ServerId(number));
    }
    map
}

impl Group {
    pub fn start(simulation: &Simulation, count: u32) -> Self {
        for number in 1..=count {
            simulation.machine(number).add_disk(FOLDER, 64 << 20);
        }
        let env = simulation.machine(count + 1).env();
        let addresses = (1..=count).map(|number| address(simulation, number)).collect();
        let client = CoordinatorClient::new(env, CLUSTER, Peer::Unknown, addresses);
        let simulation = simulation.clone();
        let ends = Rc::default();
        let mut group = Self { simulation, count, processes: Vec::new(), ends, client };
        for number in 1..=count {
            let process = group.spawn(number);
            group.processes.push(process);
        }
        group
    }

    pub fn spawn(&self, number: u32) -> SimProcess {
        let config = config(&self.simulation, self.count, number);
        let ends = self.ends.clone();
        let machine = self.simulation.machine(number);
        self.simulation.spawn_process(&machine, "coordinator", |env| async move {
            let end: Result<(), CoordinatorFatal> = run(env, config).await;
            ends.borrow_mut().push((number, format!("{end:?}")));
        })
    }

    pub fn restart(&mut self, number: u32) {
        self.processes[number as usize - 1] = self.spawn(number);
    }

    pub fn kill(&self, number: u32) {
        self.processes[number as usize - 1].kill();
    }

    pub async fn call(
        &self,
        request: &CoordinatorRequest,
    ) -> Result<CoordinatorReply, CoordinatorError> {
        self.client.call(request, 10 * SECOND).await
    }

    pub async fn map(&self) -> ClusterMap {
        match self.call(&CoordinatorRequest::Map { linearizable: true }).await {
            Ok(CoordinatorReply::Map(map)) => *map,
            other => panic!("no map: {other:?}"),
        }
    }

    pub async fn register_lc(&self, server: u32, lccs: u8) -> (Incarnation, Vec<Incarnation>) {
        let request = CoordinatorRequest::RegisterLc { server: ServerId(server), lccs };
        match self.call(&request).await {
            Ok(CoordinatorReply::Registered { incarnation, lccs, .. }) => (incarnation, lccs),
            other => panic!("not registered: {other:?}"),
        }
    }

    pub async fn renew(&self, lc: Incarnation) -> Result<CoordinatorReply, CoordinatorError> {
        self.call(&CoordinatorRequest::Renew { lc, map_version: 0, no_copies: None }).await
    }

    pub async fn leader(&self) -> u32 {
        loop {
            for status in self.client.statuses(SECOND).await.into_iter().flatten() {
                if status.leader == Some(status.server) {
                    return status.server.0;
                }
            }
            tokio::time::sleep(SECOND / 10).await;
        }
    }
}

pub fn layout(device: u64) -> GroupLayout {
    GroupLayout {
        devices: vec![DeviceId(device)],
        scheme: RaidScheme::Rs { data: 4, parity: 2 },
        strip_size: STRIP_SIZE_DEFAULT,
        generation: LayoutGeneration(1),
        disks: (1..=6).map(DiskId).collect(),
    }
}

pub fn suspect(device: u64, slot: u8) -> FactKind {
    FactKind::Suspect {
        layout: layout(device),
        slot: PortionIndex(slot),
        after: WriteNumber::NONE,
        whole: false,
    }
}
