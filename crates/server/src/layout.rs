//! Folders, files and ports.
//!
//! ```text
//! braid-data/
//!   client.toml               what clients need
//!   server-1/
//!     server.toml             who it is, its ports, its disks
//!     first-map.json          the map of a new cluster
//!     coordinator/            consensus log and state
//!     disk-1/                 a disk, unless its folder is elsewhere
//!     local/                  local journals: what was answered from there and not yet in the cluster
//!     log/  run/
//! ```
//! Ports of a server: +0 LC, +1 coordinator, +2 main controller, +3 and up its I/O servers, +10 and
//! up front services.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use braid_terms::{
    ClusterId, ClusterMap, DiskId, DiskInfo, DiskState, RaidScheme, SCHEME_DEFAULT, ServerId,
    ServerInfo, ServerState,
};
use serde::{Deserialize, Serialize};

/// Ports that one server takes.
pub const PORTS_PER_SERVER: u16 = 20;

/// `server.toml`.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct ServerFile {
    /// 32 hexadecimal digits.
    pub cluster: String,
    pub id: u32,
    pub name: String,
    pub lc: SocketAddr,
    pub coordinator: SocketAddr,
    pub main: SocketAddr,
    /// Whether it is a member of the consensus group.
    pub is_member: bool,
    /// LCCs of its LC; each but a single one has a thread of its own.
    #[serde(default = "one")]
    pub lccs: u8,
    #[serde(default)]
    pub member: Vec<Member>,
    #[serde(default)]
    pub disk: Vec<DiskEntry>,
}

/// A member of the consensus group.
#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
pub struct Member {
    pub id: u32,
    pub address: SocketAddr,
}

/// A disk of the server.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct DiskEntry {
    pub id: u32,
    pub path: PathBuf,
    pub address: SocketAddr,
}

impl ServerFile {
    /// Reads it from a server's folder.
    ///
    /// Errors: a text for people.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let path = folder.join("server.toml");
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("{}: {error}; is this a server's folder?", path.display()))?;
        let file: Self =
            toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        file.cluster_id().map(|_| file)
    }

    /// The cluster.
    ///
    /// Errors: a text for people.
    pub fn cluster_id(&self) -> Result<ClusterId, String> {
        self.cluster.parse().map_err(|_| format!("no cluster identity: {}", self.cluster))
    }

    /// Addresses of all members of the consensus group.
    pub fn coordinators(&self) -> Vec<SocketAddr> {
        self.member.iter().map(|member| member.address).collect()
    }

    /// The Unix sockets of all I/O servers of that cluster whose servers have their folders here;
    /// with an address only of those that have the same, for folders may be shared by machines.
    pub fn io_sockets(
        folder: &Path,
        cluster: ClusterId,
        here: Option<IpAddr>,
    ) -> BTreeMap<DiskId, PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut sockets = BTreeMap::new();
        for server in entries.map(|entry| entry.path()) {
            let Ok(file) = Self::read(&server) else { continue };
            let is_here = here.is_none_or(|here| file.lc.ip() == here);
            if is_here && file.cluster_id() == Ok(cluster) {
                let own = file.disk.iter();
                sockets.extend(own.map(|d| (DiskId(d.id), Self::io_socket(&server, d.id))));
            }
        }
        sockets
    }

    /// The Unix socket of a disk's I/O server.
    pub fn io_socket(folder: &Path, disk: u32) -> PathBuf {
        folder.join("run").join(format!("io-{disk}.sock"))
    }
}

/// Number of coordinators for so many servers: 2m+1 of the default scheme's m where there are as
/// many servers, else the next smaller odd number that makes sense. Source: F-7.
pub fn coordinator_count(servers: u32) -> u32 {
    match servers {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

/// A new cluster on loopback: the files of all its servers, and the first map.
pub fn new_cluster(
    cluster: ClusterId,
    folder: &Path,
    servers: u32,
    disks: u32,
    port_base: u16,
    identity: impl Fn() -> u128,
) -> Result<(Vec<ServerFile>, ClusterMap), String> {
    let last = u32::from(port_base) + u32::from(PORTS_PER_SERVER) * servers;
    if last > 65536 {
        return Err(format!("{servers} servers from port {port_base} on need ports above 65535"));
    }
    let address = |server: u32, offset: u32| {
        let port = u32::from(port_base) + u32::from(PORTS_PER_SERVER) * (server - 1) + offset;
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port as u16)
    };
    let members: Vec<Member> =
        (1..=coordinator_count(servers)).map(|id| Member { id, address: address(id, 1) }).collect();
    let mut map = ClusterMap {
        version: 1,
        cluster,
        name: "braid".to_owned(),
        coordinators: members.iter().map(|member| ServerId(member.id)).collect(),
        scheme_default: Some(default_scheme(servers)),
        ..ClusterMap::default()
    };
    let mut files = Vec::new();
    for id in 1..=servers {
        let own = server_folder(folder, id);
        let disk = (0..disks).map(|at| DiskEntry {
            id: (id - 1) * disks + at + 1,
            path: own.join(format!("disk-{}", at + 1)),
            address: address(id, 3 + at),
        });
        let file = ServerFile {
            cluster: cluster.to_string(),
            id,
            name: format!("server-{id}"),
            lc: address(id, 0),
            coordinator: address(id, 1),
            main: address(id, 2),
            is_member: members.iter().any(|member| member.id == id),
            lccs: lccs_of(servers),
            member: members.clone(),
            disk: disk.collect(),
        };
        map.servers.insert(
            ServerId(id),
            ServerInfo {
                id: ServerId(id),
                name: file.name.clone(),
                lc_address: file.lc,
                coordinator_address: file.coordinator,
                main_address: file.main,
                state: ServerState::InUse,
                is_mount: false,
                lc: None,
                lccs: Vec::new(),
            },
        );
        for disk in &file.disk {
            map.disks.insert(
                DiskId(disk.id),
                DiskInfo {
                    id: DiskId(disk.id),
                    identity: identity(),
                    server: ServerId(id),
                    address: disk.address,
                    path: disk.path.display().to_string(),
                    state: DiskState::InUse,
                    incarnation: None,
                },
            );
        }
        files.push(file);
    }
    Ok((files, map))
}

/// LCCs of each server where all of them share this machine: a thread for two cores, so that I/O
/// servers and gateways have theirs.
fn lccs_of(servers: u32) -> u8 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = cores / (2 * servers.max(1) as usize);
    u8::try_from(share.clamp(1, LCCS_MAX)).unwrap_or(1)
}

fn one() -> u8 {
    1
}

/// More bring nothing: by then the network or the disks are the limit.
const LCCS_MAX: usize = 16;

/// The default scheme of a new cluster of so many servers. One server has only its disks to lose.
fn default_scheme(_: u32) -> RaidScheme {
    SCHEME_DEFAULT
}

/// Folder of server `id` of an embedded cluster.
pub fn server_folder(folder: &Path, id: u32) -> PathBuf {
    folder.join(format!("server-{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // Proves: F-7.
    fn ports_and_members_are_as_the_contract_says() {
        let made = new_cluster(ClusterId(7), Path::new("/x"), 6, 2, 7400, || 9);
        let (files, map) = made.expect("fits");
        assert_eq!(files[1].lc.port(), 7420);
        assert_eq!(files[5].disk[1].address.port(), 7504);
        assert_eq!(files[5].disk[1].id, 12);
        assert_eq!(map.coordinators.len(), 5);
        assert_eq!(map.disks.len(), 12);
        assert!(files[4].is_member && !files[5].is_member);
        assert!(new_cluster(ClusterId(7), Path::new("/x"), 100, 1, 64000, || 9).is_err());
    }
}
