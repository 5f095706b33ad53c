//! Calls over connections.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What a peer can be asked for.
pub trait Service: 'static {
    /// Who answers it.
    const ROLE: Role;
    /// What is asked.
    type Request: Serialize + DeserializeOwned + 'static;
    /// What is answered.
    type Reply: Serialize + DeserializeOwned + 'static;
}

/// Who answers on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Role {
    /// An I/O server.
    Io,
    /// A coordinator.
    Coordinator,
    /// An LCC; which one stands in the hello.
    Lcc,
    /// A main controller.
    Main,
}
