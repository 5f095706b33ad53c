//! Policies: which scheme, strip size, acknowledgement mode and spread a new object gets.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{RaidScheme, STRIP_SIZE_DEFAULT};

/// What a device keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataType {
    /// Bytes of one file.
    File,
    /// Records of one directory.
    Directory,
    /// Attributes of one directory's entries.
    Metadata,
}

/// When the client is answered. Source: DESIGN 4, acknowledgement modes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AckMode {
    /// Bytes are in the serving LC's memory.
    Memory,
    /// Bytes are in the serving server's local journal, with a fact.
    Local,
    /// The cluster write is decided.
    #[default]
    Cluster,
}

/// What no two portions of a device may share.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// A disk.
    Disk,
    /// A server.
    #[default]
    Server,
    /// A rack.
    Rack,
}

/// One policy; the first that matches wins. Source: G-5.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Glob on the path (`*` within a component, `**` across); none matches all.
    pub path_glob: Option<String>,
    /// Data type; none matches all.
    pub data_type: Option<DataType>,
    /// Smallest expected size in bytes; none matches all.
    pub size_min: Option<u64>,
    /// Client network as `ADDRESS/BITS`, or an address; none matches all.
    pub client: Option<String>,
    /// Client priority, exactly; none matches all.
    pub priority: Option<u8>,
    /// Scheme to use.
    pub scheme: Option<RaidScheme>,
    /// Strip size to use, in bytes.
    pub strip_size: Option<u32>,
    /// Acknowledgement mode to use.
    pub ack: Option<AckMode>,
    /// Failure domain to spread over.
    pub spread: Option<Spread>,
    /// So many LCCs of each LC are for the data type alone, which must be named. Source: O-7.
    pub lccs: Option<u8>,
}

/// What is known of an object when its policy is chosen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PolicyQuestion {
    /// Absolute path in the store, where known.
    pub path: Option<String>,
    /// Expected size in bytes, where known.
    pub size: Option<u64>,
    /// Address of the client; that of the connection, where none is told.
    pub client: Option<IpAddr>,
    /// Its priority, if it has one.
    pub priority: Option<u8>,
}

/// Scheme of file devices where no policy says otherwise: rs/4+2.
pub const SCHEME_DEFAULT: RaidScheme = RaidScheme::Rs { data: 4, parity: 2 };
/// Strip size where no policy says otherwise, in bytes.
pub const STRIP_DEFAULT: u32 = STRIP_SIZE_DEFAULT;
