//! What an idle group costs: members of a group over loopback, each a process, and as many LCs and
//! I/O servers that renew their leases.
//!
//! `cargo run --release -p braid-coordinator --example idle -- 5` runs for 20 seconds and prints CPU
//! time and memory of each member.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use braid_coordinator::{CoordinatorConfig, run};
use braid_env::{Address, machine};
use braid_terms::*;
use braid_wire::coordinator::{CoordinatorReply, CoordinatorRequest};
use braid_wire::coordinator_client::CoordinatorClient;
use braid_wire::rpc::Peer;
use tokio::time::sleep;

const CLUSTER: ClusterId = ClusterId(5);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let count = arguments.get(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    match (arguments.get(2), arguments.get(3).and_then(|text| text.parse().ok())) {
        (Some(folder), Some(number)) => member(count, Path::new(folder), number),
        _ => measure(count),
    }
}

fn address(number: u32) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 17_400 + u16::try_from(number).expect("few members")))
}

fn member(count: u32, folder: &Path, number: u32) {
    let folder: PathBuf = folder.join(number.to_string());
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut map = ClusterMap { version: 1, cluster: CLUSTER, ..ClusterMap::default() };
    for number in 1..=count {
        let at = address(number);
        let server = ServerInfo {
            id: ServerId(number),
            name: number.to_string(),
            lc_address: at,
            coordinator_address: at,
            main_address: at,
            state: ServerState::InUse,
            is_mount: false,
            lc: None,
            lccs: Vec::new(),
        };
        let disk = DiskInfo {
            id: DiskId(number),
            identity: 1,
            server: ServerId(number),
            address: at,
            path: String::new(),
            state: DiskState::InUse,
            incarnation: None,
        };
        map.servers.insert(server.id, server);
        map.disks.insert(disk.id, disk);
    }
    let config = CoordinatorConfig {
        server: ServerId(number),
        cluster: CLUSTER,
        listen: vec![Address::Tcp(address(number))],
        folder,
        members: (1..=count).map(|number| (ServerId(number), address(number))).collect(),
        first_map: Some(map),
    };
    let env = machine::env(machine::Inherited::new());
    let end = machine::run(run(env, config));
    println!("member {number} ended: {end:?}");
}

fn measure(count: u32) {
    let folder = tempfile::tempdir().expect("a folder");
    let program = std::env::current_exe().expect("this program");
    let mut members: Vec<_> = (1..=count)
        .map(|number| {
            let mut command = Command::new(&program);
            command.arg(count.to_string()).arg(folder.path()).arg(number.to_string());
            command.spawn().expect("a member")
        })
        .collect();
    let ids: Vec<u32> = members.iter().map(std::process::Child::id).collect();
    let done = machine::run(async {
        for number in 1..=count {
            tokio::task::spawn_local(renew(count, number));
        }
        sleep(Duration::from_secs(5)).await;
        let before: Vec<f64> = ids.iter().map(|id| cpu_seconds(*id)).collect();
        sleep(Duration::from_secs(20)).await;
        let mut all = 0.0;
        for (id, before) in ids.iter().zip(before) {
            let percent = (cpu_seconds(*id) - before) / 20.0 * 100.0;
            all += percent;
            println!("process {id}: {percent:.2} % of a core, {} KiB resident", resident(*id));
        }
        println!("all members: {all:.2} % of a core");
    });
    members.iter_mut().for_each(|member| {
        let _ = member.kill();
        let _ = member.wait();
    });
    done.expect("a runtime");
}

/// The LC and the I/O server of one server.
async fn renew(count: u32, number: u32) {
    let env = machine::env(machine::Inherited::new());
    let addresses = (1..=count).map(address).collect();
    let client = CoordinatorClient::new(env, CLUSTER, Peer::Unknown, addresses);
    let wait = Duration::from_secs(10);
    let lc = CoordinatorRequest::RegisterLc { server: ServerId(number), lccs: 1 };
    let io = CoordinatorRequest::RegisterIo { disk: DiskId(number), identity: 1 };
    let (Ok(lc), Ok(io)) = (client.call(&lc, wait).await, client.call(&io, wait).await) else {
        return println!("server {number} is not registered");
    };
    let (
        CoordinatorReply::Registered { incarnation: lc, .. },
        CoordinatorReply::Registered { incarnation: io, .. },
    ) = (lc, io)
    else {
        return;
    };
    loop {
        let of_lc = CoordinatorRequest::Renew { lc, map_version: 1000, no_copies: None };
        let of_io = CoordinatorRequest::RenewIo {
            io,
            map_version: 1000,
            bytes_total: 1,
            bytes_free: 1,
            scrub: Default::default(),
            bad: Vec::new(),
        };
        for request in [of_lc, of_io, CoordinatorRequest::Work { lc }] {
            if let Err(error) = client.call(&request, wait).await {
                println!("server {number}: {error}");
            }
        }
        sleep(Duration::from_secs(1)).await;
    }
}

fn cpu_seconds(id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn resident(id: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.map_or(String::new(), |line| line.trim().trim_end_matches(" kB").to_owned())
}
