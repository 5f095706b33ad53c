//! `client.toml`: where a client finds a cluster.
//!
//! ```text
//! cluster = "00112233445566778899aabbccddeeff"
//! name = "home"
//!
//! [[server]]
//! id = 1
//! lc = "10.0.0.1:7401"
//! coordinator = "10.0.0.1:7402"
//! main = "10.0.0.1:7400"
//! ```

use std::net::SocketAddr;

use braid_terms::{ClusterId, ServerId};
use serde::{Deserialize, Serialize};

/// What a client must know to reach a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterFile {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name, for people.
    pub name: String,
    /// Servers to begin with; the map of the cluster names the rest.
    pub servers: Vec<ServerEntry>,
}

/// A server that a client can begin with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerEntry {
    /// Which.
    pub id: ServerId,
    /// Where its LC listens.
    pub lc: SocketAddr,
    /// Where its coordinator listens.
    pub coordinator: SocketAddr,
    /// Where its main controller listens.
    pub main: SocketAddr,
}

/// Why a text is no cluster file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterFileError {
    /// Not the fields that it must have.
    #[error("not a cluster file: {0}")]
    Form(String),
    /// The cluster's identity is not 32 hexadecimal digits.
    #[error("`cluster` is 32 hexadecimal digits, not `{0}`")]
    Cluster(String),
    /// There is nobody to begin with.
    #[error("a cluster file names at least one [[server]]")]
    NoServer,
}

#[derive(Serialize, Deserialize)]
struct Text {
    cluster: String,
    name: String,
    #[serde(default)]
    server: Vec<ServerEntry>,
}

impl ClusterFile {
    /// Parses the text of a `client.toml`.
    pub fn parse(text: &str) -> Result<Self, ClusterFileError> {
        let text: Text =
            toml::from_str(text).map_err(|error| ClusterFileError::Form(error.to_string()))?;
        let is_hex =
            text.cluster.len() == 32 && text.cluster.bytes().all(|b| b.is_ascii_hexdigit());
        let cluster = text.cluster.parse().ok().filter(|_| is_hex);
        let cluster = cluster.ok_or_else(|| ClusterFileError::Cluster(text.cluster.clone()))?;
        if text.server.is_empty() {
            return Err(ClusterFileError::NoServer);
        }
        Ok(Self { cluster, name: text.name, servers: text.server })
    }
}

impl std::fmt::Display for ClusterFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = Text {
            cluster: self.cluster.to_string(),
            name: self.name.clone(),
            server: self.servers.clone(),
        };
        f.write_str(&toml::to_string(&text).map_err(|_| std::fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> ClusterFile {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let servers = (1..=2)
            .map(|id| ServerEntry {
                id: ServerId(id),
                lc: address(7401),
                coordinator: address(7402),
                main: address(7400),
            })
            .collect();
        ClusterFile { cluster: ClusterId(0xab << 100), name: "a \"name\"".into(), servers }
    }

    #[test]
    fn it_prints_and_parses() {
        assert_eq!(ClusterFile::parse(&file().to_string()), Ok(file()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let text = file().to_string();
        let bad = text.replace("0ab", "0xb").replace("cluster = \"", "cluster = \"+");
        assert!(matches!(ClusterFile::parse(&bad), Err(ClusterFileError::Cluster(_))));
        let none = text.split("[[server]]").next().unwrap();
        assert_eq!(ClusterFile::parse(none), Err(ClusterFileError::NoServer));
        assert!(matches!(ClusterFile::parse("x"), Err(ClusterFileError::Form(_))));
    }
}
