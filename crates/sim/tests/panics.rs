//! Ring 4: an LC whose LCCs have threads of their own, on this machine: one panics, some are reserved.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use braid_client::{Client, ClusterFile, Node, PutOptions, ServerEntry};
use braid_coordinator::CoordinatorConfig;
use braid_env::{Address, machine};
use braid_io_server::{DiskIdentity, IoConfig, Limits, format_disk};
use braid_local_controller::lc::{LcConfig, Registrant, Threads};
use braid_terms::{
    AckMode, ClusterId, ClusterMap, DiskId, DiskInfo, DiskState, FactKind, FactNumber, GroupLayout,
    Incarnation, Policy, ServerId, ServerInfo, ServerState,
};
use braid_wire::coordinator::{CoordinatorReply, CoordinatorRequest};
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

const CLUSTER: ClusterId = ClusterId(0xbad);
const DISKS: u32 = 3;

/// A planted panic is of the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// What a cluster is set up with.
#[derive(Default)]
struct Setup {
    lccs: u8,
    /// LCCs that are for directories alone, by a policy.
    for_directories: Option<u8>,
}

/// Sockets of this machine that are bound already, for roles to take over.
#[derive(Default)]
struct Sockets(BTreeMap<Address, OwnedFd>);

impl Sockets {
    fn bind(&mut self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        self.0.insert(Address::Tcp(address), listener.into());
        address
    }
}

/// One server with three disks.
struct Server {
    map: ClusterMap,
    lc: tokio::task::JoinHandle<braid_local_controller::lc::LcEnd>,
}

async fn start(folder: &Path, setup: Setup) -> Server {
    let mut sockets = Sockets::default();
    let server = ServerId(1);
    let info = ServerInfo {
        id: server,
        name: "one".to_owned(),
        lc_address: sockets.bind(),
        coordinator_address: sockets.bind(),
        main_address: sockets.bind(),
        state: ServerState::InUse,
        is_mount: false,
        lc: None,
        lccs: Vec::new(),
    };
    let policy = Policy {
        name: "local".to_owned(),
        path_glob: Some("/f*".to_owned()),
        data_type: None,
        size_min: None,
        client: None,
        priority: None,
        scheme: None,
        strip_size: None,
        ack: Some(AckMode::Local),
        spread: Some(braid_terms::Spread::Disk),
        lccs: None,
    };
    let names = Policy {
        name: "names".to_owned(),
        path_glob: None,
        data_type: Some(braid_terms::DataType::Directory),
        ack: None,
        lccs: setup.for_directories,
        ..policy.clone()
    };
    let mut map = ClusterMap {
        version: 1,
        cluster: CLUSTER,
        name: "panics".to_owned(),
        coordinators: vec![server],
        scheme_default: "raid5/2+1".parse().ok(),
        policies: vec![policy, names],
        ..ClusterMap::default()
    };
    for disk in 1..=DISKS {
        let path = folder.join(format!("disk-{disk}"));
        std::fs::create_dir(&path).expect("a new folder");
        let info = DiskInfo {
            id: DiskId(disk),
            identity: disk.into(),
            server,
            address: sockets.bind(),
            path: path.display().to_string(),
            state: DiskState::InUse,
            incarnation: None,
        };
        map.disks.insert(DiskId(disk), info);
    }
    map.servers.insert(server, info.clone());
    let coordinators = vec![info.coordinator_address];
    let take = |sockets: &mut Sockets, address| {
        let address = Address::Tcp(address);
        let socket = sockets.0.remove(&address).expect("it was bound");
        BTreeMap::from([(address, socket)])
    };
    for name in ["coordinator", "local"] {
        std::fs::create_dir(folder.join(name)).expect("a new folder");
    }
    let env = machine::env(take(&mut sockets, info.coordinator_address));
    let config = CoordinatorConfig {
        server,
        cluster: CLUSTER,
        listen: vec![Address::Tcp(info.coordinator_address)],
        folder: folder.join("coordinator"),
        members: vec![(server, info.coordinator_address)],
        first_map: Some(map.clone()),
    };
    spawn_local(async move { braid_coordinator::run(env, config).await.map(drop) });
    for disk in map.disks.values() {
        let env = machine::env(take(&mut sockets, disk.address));
        let identity = DiskIdentity { cluster: CLUSTER, disk: disk.id, identity: disk.identity };
        format_disk(&env, disk.path.as_ref(), identity).await.expect("an empty folder");
        let config = IoConfig {
            disk: disk.id,
            folder: disk.path.clone().into(),
            cluster: CLUSTER,
            server,
            listen: vec![Address::Tcp(disk.address)],
            coordinators: coordinators.clone(),
            limits: Limits::default(),
        };
        spawn_local(async move { braid_io_server::run(env, config).await.map(drop) });
    }
    let inherited = take(&mut sockets, info.lc_address);
    let config = LcConfig {
        registrant: Registrant::Server(server),
        cluster: CLUSTER,
        listen: vec![Address::Tcp(info.lc_address)],
        coordinators,
        io_sockets: BTreeMap::new(),
        lccs: setup.lccs,
        threads: Threads::Each(Rc::new(RefCell::new(inherited))),
        groups_kept: 100,
        local: Some(folder.join("local")),
        shutdown: Rc::new(Notify::new()),
    };
    let env = machine::env(BTreeMap::new());
    let lc = spawn_local(async move { braid_local_controller::lc::run(env, config).await });
    Server { map, lc }
}

async fn client_of(server: &Server) -> Client {
    let entries = server.map.servers.values().map(|server| ServerEntry {
        id: server.id,
        lc: server.lc_address,
        coordinator: server.coordinator_address,
        main: server.main_address,
    });
    let file =
        ClusterFile { cluster: CLUSTER, name: "panics".to_owned(), servers: entries.collect() };
    until("the cluster can be used", async || {
        let env = machine::env(BTreeMap::new());
        Client::connect(env, &file).await.ok()
    })
    .await
}

async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "never: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Whether an LCC of this incarnation answers.
async fn answers(client: &Client, incarnation: Incarnation) -> Option<()> {
    let statuses = client.lcc_statuses().await;
    statuses.iter().any(|(_, status)| status.incarnation == incarnation).then_some(())
}

/// The incarnations that the map has of the server's LCCs.
async fn valid(client: &Client) -> Option<Vec<Incarnation>> {
    let request = CoordinatorRequest::Map { linearizable: true };
    match client.coordinators().call(&request, Duration::from_secs(5)).await {
        Ok(CoordinatorReply::Map(map)) => map.servers[&ServerId(1)].lccs.iter().copied().collect(),
        _ => None,
    }
}

fn bytes(number: usize) -> Bytes {
    (0..60_000).map(|at| (at * 7 + number * 13) as u8).collect::<Vec<_>>().into()
}

/// The LCC that owns the device of a file.
async fn owner_of(client: &Client, layout: &GroupLayout) -> usize {
    let group = client.describe_group(layout).await.expect("somebody owns it");
    usize::from(group.owner.index)
}

/// A panic ends its LCC only: what it answered is there, the other LCC is the same as before, and so is
/// the process.
#[test] // Proves: O-8, O-3, W-6, W-13.
fn a_panic_ends_one_lcc_and_nothing_is_lost() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().expect("a folder");
    let ran = machine::run(async {
        let server = start(folder.path(), Setup { lccs: 2, ..Setup::default() }).await;
        let client = client_of(&server).await;
        let mut files: Vec<(Node, GroupLayout, usize)> = Vec::new();
        for number in 0.. {
            let put = client.put_bytes(format!("/f{number}"), bytes(number), PutOptions::default());
            let node = put.await.expect("a held file");
            let layout = node.attributes.device().expect("it is long").clone();
            let owner = owner_of(&client, &layout).await;
            files.push((node, layout, owner));
            let owners: Vec<_> = files.iter().map(|(_, _, owner)| *owner).collect();
            if owners.contains(&0) && owners.contains(&1) {
                break;
            }
            assert!(number < 200, "all devices are at one LCC: {owners:?}");
        }
        let before = valid(&client).await.expect("both LCCs are valid");
        assert_eq!(before.len(), 2);
        let last = |index| {
            let number = files.iter().rposition(|(_, _, owner)| *owner == index);
            number.expect("both own files")
        };
        // Each in turn, the one with the front's duties too.
        for index in [1, 0] {
            let before = valid(&client).await.expect("both LCCs are valid");
            let (ends, stays) = (last(index), last(1 - index));
            let file = client.open(format!("/f{ends}")).await.expect("it is there");
            file.write(60_000, bytes(1000)).await.expect("answered from the local journal");
            braid_terms::plant_panic(files[ends].1.group());
            let read = file.read(60_000, 60_000).await.expect("its next owner has it");
            assert!(read == bytes(1000), "an answered write is gone");
            let other = client.get_bytes(format!("/f{stays}")).await.expect("it is served");
            assert!(other.starts_with(&bytes(stays)), "another LCC's file is another");
            let after = until("the LCC is registered anew", async || {
                valid(&client).await.filter(|after| after.len() == 2 && *after != before)
            })
            .await;
            assert_ne!(after[index], before[index], "it is another start");
            assert_eq!(after[1 - index], before[1 - index], "the other one ended too");
            until("the new LCC answers", async || answers(&client, after[index]).await).await;
            assert!(!server.lc.is_finished(), "the whole LC ended");
        }
        for number in 0..files.len() {
            let read = client.get_bytes(format!("/f{number}")).await.expect("it is served");
            assert!(read.starts_with(&bytes(number)), "file {number} is another");
        }
        // What the LCCs left is swept and closed as that of any that is gone.
        let valid = valid(&client).await.expect("both LCCs are valid");
        until("nothing is left open", async || {
            let request = CoordinatorRequest::Facts { after: FactNumber(0), limit: 4096 };
            let answer = client.coordinators().call(&request, Duration::from_secs(5)).await;
            let Ok(CoordinatorReply::Facts { facts, .. }) = answer else { return None };
            let is_left = |kind: &FactKind| match kind {
                FactKind::Pending { incarnation } => !valid.contains(incarnation),
                FactKind::Suspect { .. } | FactKind::LocalCopy { .. } => true,
            };
            (!facts.iter().any(|fact| is_left(&fact.kind))).then_some(())
        })
        .await;
    });
    ran.expect("this machine has a runtime");
}

/// LCCs that a policy reserves for directories own all of them, and no file; also what the first owner
/// lost. The root was made before the map said so: whoever is asked for it next sends it there.
#[test] // Proves: O-7.
fn reserved_lccs_own_what_they_are_for_and_nothing_else() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().expect("a folder");
    let ran = machine::run(async {
        let setup = Setup { lccs: 4, for_directories: Some(2) };
        let server = start(folder.path(), setup).await;
        let client = client_of(&server).await;
        let (mut of_files, mut of_directories) = (Vec::new(), Vec::new());
        let mut directories = Vec::new();
        for number in 0..12 {
            let path = format!("/d{number}");
            client.mkdir(&path, &Default::default()).await.expect("a directory");
            let directory = client.directory(&path).await.expect("it is there");
            let layout = directory.layout().clone();
            of_directories.push(owner_of(&client, &layout).await);
            directories.push(layout);
            let path = format!("/d{number}/f");
            let put = client.put_bytes(&path, bytes(number), PutOptions::default());
            let node = put.await.expect("a held file");
            let device = node.attributes.device().expect("it is long").clone();
            of_files.push(owner_of(&client, &device).await);
        }
        let owners = |owners: &[usize]| owners.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(owners(&of_directories), BTreeSet::from([2, 3]));
        assert_eq!(owners(&of_files), BTreeSet::from([0, 1]));
        // One of them ends: what it had goes to those that are for it.
        let ended = directories.iter().zip(&of_directories).find(|(_, owner)| **owner == 3);
        let (ended, _) = ended.expect("both own some");
        let before = valid(&client).await.expect("all LCCs are valid");
        braid_terms::plant_panic(ended.group());
        for number in 0..12 {
            let read = client.get_bytes(format!("/d{number}/f")).await.expect("it is served");
            assert!(read == bytes(number), "file {number} is another");
        }
        until("the LCC is registered anew", async || {
            valid(&client).await.filter(|after| after.len() == 4 && *after != before)
        })
        .await;
        for layout in &directories {
            let owner = owner_of(&client, layout).await;
            assert!((2..4).contains(&owner), "LCC {owner} owns a directory");
        }
    });
    ran.expect("this machine has a runtime");
}
