//! Ring 4: coordinators on the machine's own sockets, files and clock, each in a task set of its own
//! as in a process of its own.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use braid_coordinator::{CoordinatorConfig, run};
use braid_env::{Address, machine};
use braid_terms::*;
use braid_wire::coordinator::*;
use braid_wire::coordinator_client::CoordinatorClient;
use braid_wire::rpc::Peer;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

const CLUSTER: ClusterId = ClusterId(43);
const WAIT: Duration = Duration::from_secs(20);

/// Members 1 to n, each with a folder under `folder`.
struct Group<'a> {
    folder: &'a Path,
    addresses: Vec<SocketAddr>,
    members: Vec<JoinHandle<()>>,
    client: CoordinatorClient,
}

impl<'a> Group<'a> {
    async fn start(folder: &'a Path, count: u32) -> Self {
        let addresses = free_addresses(count);
        let env = machine::env(machine::Inherited::new());
        let client = CoordinatorClient::new(env, CLUSTER, Peer::Unknown, addresses.clone());
        let mut group = Self { folder, addresses, members: Vec::new(), client };
        for number in 1..=count {
            let member = group.spawn(number);
            group.members.push(member);
        }
        group
    }

    fn spawn(&self, number: u32) -> JoinHandle<()> {
        let folder = self.folder.join(number.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let numbers = 1..;
        let members: Vec<_> =
            numbers.zip(&self.addresses).map(|(number, at)| (ServerId(number), *at)).collect();
        let config = CoordinatorConfig {
            server: ServerId(number),
            cluster: CLUSTER,
            listen: vec![Address::Tcp(self.addresses[number as usize - 1])],
            folder,
            first_map: Some(first_map(&members)),
            members,
        };
        let env = machine::env(machine::Inherited::new());
        spawn_local(async move {
            let end = LocalSet::new().run_until(run(env, config)).await;
            panic!("member {number} ended: {end:?}");
        })
    }

    /// All tasks of the member are gone after this.
    async fn stop(&mut self, number: u32) {
        let member = &mut self.members[number as usize - 1];
        member.abort();
        assert!(member.await.unwrap_err().is_cancelled());
    }

    fn restart(&mut self, number: u32) {
        self.members[number as usize - 1] = self.spawn(number);
    }

    async fn call(&self, request: CoordinatorRequest) -> CoordinatorReply {
        self.client.call(&request, WAIT).await.unwrap()
    }

    async fn map(&self) -> ClusterMap {
        match self.call(CoordinatorRequest::Map { linearizable: true }).await {
            CoordinatorReply::Map(map) => *map,
            other => panic!("no map: {other:?}"),
        }
    }

    async fn register(&self) -> (Incarnation, Vec<Incarnation>) {
        match self.call(CoordinatorRequest::RegisterLc { server: ServerId(1), lccs: 2 }).await {
            CoordinatorReply::Registered { incarnation, lccs, .. } => (incarnation, lccs),
            other => panic!("not registered: {other:?}"),
        }
    }

    /// The member that leads, as itself says.
    async fn leader(&self) -> u32 {
        let find = async {
            loop {
                let statuses = self.client.statuses(Duration::from_secs(1)).await;
                let mut leading =
                    statuses.iter().flatten().filter(|it| it.leader == Some(it.server));
                if let Some(status) = leading.next() {
                    return status.server.0;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(WAIT, find).await.unwrap()
    }
}

fn first_map(members: &[(ServerId, SocketAddr)]) -> ClusterMap {
    let mut map = ClusterMap { version: 1, cluster: CLUSTER, ..ClusterMap::default() };
    for (id, at) in members {
        let server = ServerInfo {
            id: *id,
            name: id.to_string(),
            lc_address: *at,
            coordinator_address: *at,
            main_address: *at,
            state: ServerState::InUse,
            is_mount: false,
            lc: None,
            lccs: Vec::new(),
        };
        map.servers.insert(*id, server);
        map.coordinators.push(*id);
    }
    map
}

fn free_addresses(count: u32) -> Vec<SocketAddr> {
    let sockets: Vec<_> =
        (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    sockets.iter().map(|socket| socket.local_addr().unwrap()).collect()
}

/// With `may_lose` members gone, the first of them the leader, the others answer; after a restart of
/// all the state is there.
fn check_group(count: u32, may_lose: u32) {
    let folder = tempfile::tempdir().unwrap();
    // Not a local runtime: in one, tasks of a member would not be tasks of the member's set.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let mut group = Group::start(folder.path(), count).await;
        let (lc, lccs) = group.register().await;
        let numbers = CoordinatorRequest::LeaseNumbers { lcc: lccs[0] };
        let CoordinatorReply::Numbers { first, grant } = group.call(numbers.clone()).await else {
            panic!("no numbers");
        };
        let before = group.map().await;
        let mut gone = Vec::new();
        for _ in 0..may_lose {
            let leader = group.leader().await;
            group.stop(leader).await;
            gone.push(leader);
            assert_eq!(group.map().await, before, "{gone:?} of {count} are gone");
        }
        let renew = CoordinatorRequest::Renew { lc, map_version: before.version, no_copies: None };
        let CoordinatorReply::Renewed { tell_holdings, .. } = group.call(renew).await else {
            panic!("not renewed");
        };
        assert_eq!(tell_holdings, may_lose > 0, "whoever was elected since does not know them");

        for number in (1..=count).filter(|number| !gone.contains(number)) {
            group.stop(number).await;
        }
        for number in 1..=count {
            group.restart(number);
        }
        let CoordinatorReply::Numbers { first: next, grant: next_grant } =
            group.call(numbers).await
        else {
            panic!("no numbers");
        };
        assert_eq!(next.0, first.0 + NUMBER_RANGE_SIZE);
        assert!(next_grant > grant);
        assert_eq!(group.map().await, before);
        assert!(group.members.iter().all(|member| !member.is_finished()));
    });
}

#[test]
fn one_member_comes_back_on_the_machine() {
    check_group(1, 0);
}

#[test]
fn three_members_lose_their_leader_on_the_machine() {
    check_group(3, 1);
}

#[test]
fn five_members_lose_two_leaders_on_the_machine() {
    check_group(5, 2);
}
