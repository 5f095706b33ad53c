//! The map: versioned state of the cluster that every role knows.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{ClusterId, DiskId, GroupLayout, Incarnation, Policy, RaidScheme, ServerId};

/// Servers, disks, their states and incarnations, policies. Changed only through the consensus log.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Grows with every change.
    pub version: u64,
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name, for people.
    pub name: String,
    /// All servers that are not removed.
    pub servers: BTreeMap<ServerId, ServerInfo>,
    /// All disks that are not removed.
    pub disks: BTreeMap<DiskId, DiskInfo>,
    /// Members of the consensus group.
    pub coordinators: Vec<ServerId>,
    /// Where the root directory's group lives; none before the first server has stored it.
    pub root: Option<GroupLayout>,
    /// In order; first match wins.
    pub policies: Vec<Policy>,
    /// Scheme of file devices that no policy matches.
    pub scheme_default: Option<RaidScheme>,
}

/// A server as the map knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Its number.
    pub id: ServerId,
    /// Its name, for people.
    pub name: String,
    /// Rear address of its LC.
    pub lc_address: SocketAddr,
    /// Rear address of its coordinator process, whether or not it is a member now.
    pub coordinator_address: SocketAddr,
    /// Rear address of its main controller: the up indicator and its process list.
    pub main_address: SocketAddr,
    /// What an operator asked of it.
    pub state: ServerState,
    /// A mount of a client machine: it has an LC only, and is in the map as long as that is valid.
    pub is_mount: bool,
    /// Incarnation of its LC that is valid now.
    pub lc: Option<Incarnation>,
    /// Incarnations of its LCCs that are valid now, by index; none where that LCC is invalidated.
    pub lccs: Vec<Option<Incarnation>>,
}

/// What an operator asked of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// Takes part.
    #[default]
    InUse,
    /// Gets nothing new and is being emptied.
    Draining,
}

/// A disk as the map knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskInfo {
    /// Its number, never reused.
    pub id: DiskId,
    /// Its random identity, as in its `disk.toml`. Source: S-7.
    pub identity: u128,
    /// The server that it is in.
    pub server: ServerId,
    /// Rear address of its I/O server.
    pub address: SocketAddr,
    /// Its folder on that server, for people.
    pub path: String,
    /// Its state.
    pub state: DiskState,
    /// Incarnation of its I/O server that is valid now.
    pub incarnation: Option<Incarnation>,
}

/// State of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// Takes part.
    #[default]
    InUse,
    /// Gets nothing new and is being emptied.
    Draining,
    /// Declared lost: every portion on it is missing. Source: F-5.
    Failed,
}
