//! What a server's main controller answers: the up indicator and its processes.

use braid_terms::{DiskId, ServerId};
use serde::{Deserialize, Serialize};

use crate::rpc::{Role, Service};

/// The service of a main controller.
pub enum MainController {}

impl Service for MainController {
    type Request = MainRequest;
    type Reply = MainReply;

    const ROLE: Role = Role::Main;
}

/// A request to a main controller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MainRequest {
    /// Can this server send and receive? Answer: `Up`.
    Up,
    /// Its processes. Answer: `Processes`.
    Processes,
    /// Ends the local controller cleanly, and does not start it again. Answer: `Ending`, when it is
    /// gone. Done at all servers first, since each needs the others' I/O servers to end cleanly.
    EndLc,
    /// Ends the server cleanly. Answer: `Ending`, before it does.
    End,
}

/// An answer of a main controller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MainReply {
    /// It can.
    Up {
        /// Who answers.
        server: ServerId,
    },
    /// To `Processes`.
    Processes {
        /// Who answers.
        server: ServerId,
        /// All, the main controller first.
        processes: Vec<ProcessInfo>,
        /// Milliseconds since it started.
        up_ms: u64,
    },
    /// To `End`.
    Ending,
}

/// A process of a server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// What it does.
    pub role: ProcessRole,
    /// For an I/O server: its disk.
    pub disk: Option<DiskId>,
    /// Its process id; none while it is being started again.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    /// Why it ended last.
    pub last_end: Option<String>,
}

/// What a process of a server does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessRole {
    /// Main controller.
    Main,
    /// Coordinator.
    Coordinator,
    /// Local controller.
    Lc,
    /// I/O server.
    Io,
}
