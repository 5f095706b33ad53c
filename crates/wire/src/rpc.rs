//! Calls over connections.
//!
//! # Theory
//! One side calls, the other answers; many calls are under way on one connection and are answered
//! as they finish. Two roles that call each other have two connections.
//! ```text
//! caller                                answerer
//!   | Hello: version, cluster, role, who   |
//!   |------------------------------------->| Handler::hello
//!   |<-------------------------------------| Hello: welcome or why not
//!   | Request 1, Request 2 + payload       |
//!   |------------------------------------->| handle(1) is polled once, then handle(2)
//!   |<-------------------------------------| Reply 2
//!   | Cancel 1                             |
//!   |------------------------------------->| handle(1) is dropped
//! ```
//! Nothing is repeated here: whether a lost call may be sent again is a matter of what it says.
//! # Invariants
//! R1 Requests leave in the order of `start_call`, and each handler is polled once before the next
//!    request of its connection is looked at: what a handler does before its first wait happens in
//!    the order in which the caller started the calls.
//! R2 A handler runs to its end when its connection breaks; only its reply is lost. It is dropped
//!    before its end only by `Cancel` of a connection that works.
//! R3 A call ends: by its reply, its deadline, or the end of the connection, which a silent peer
//!    brings about too.
//! # Failure
//! [`CallError::Closed`] and [`CallError::Deadline`] tell nothing about whether the request was
//! carried out. A peer that does not speak our protocol is refused with a reason if it can be told.
//! # Not here
//! What is said: the modules beside this one. Frames: `env`. Bytes: `header.rs`, `docs/wire.md`.

mod client;
mod server;

use std::time::Duration;

use braid_env::{Closed, Connection, Frame};
use braid_terms::{ClusterId, Incarnation, ServerId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::header::{self, FrameKind, Header, Undecodable};
pub use client::{Call, CallError, Client, ClientOptions, ConnectError};
pub use server::{
    Handler, HelloError, accept_hello, serve, serve_connection, serve_connection_after,
};

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

/// Newest version of the protocol that we speak.
pub const WIRE_VERSION: u16 = 1;

/// Oldest version of the protocol that we speak.
pub const WIRE_VERSION_MIN: u16 = 1;

/// First frame of a caller.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Newest version that the caller speaks.
    pub version: u16,
    /// Oldest version that the caller speaks.
    pub version_min: u16,
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Whom it wants to speak to.
    pub role: Role,
    /// Which of several behind one address: of an LCC its index, else 0.
    pub index: u8,
    /// Who calls.
    pub peer: Peer,
}

impl Hello {
    /// A hello in our own version.
    #[must_use]
    pub const fn new(cluster: ClusterId, role: Role, index: u8, peer: Peer) -> Self {
        Self { version: WIRE_VERSION, version_min: WIRE_VERSION_MIN, cluster, role, index, peer }
    }

    /// Reads a hello from the head of a first frame, also of one that was only peeked at.
    pub fn parse(head: &[u8]) -> Result<Self, Undecodable> {
        let (header, body) = Header::parse(head)?;
        if header.kind != FrameKind::Hello {
            return Err(Undecodable);
        }
        header::decode(body)
    }
}

/// Who calls.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Peer {
    /// A process of a server.
    Server {
        /// Which server.
        server: ServerId,
        /// Incarnation of the process; 0 where it has none.
        incarnation: Incarnation,
        /// Which of several connections between the two.
        stream: u8,
    },
    /// A client.
    Client {
        /// What it drew at its start.
        random: u64,
        /// The server whose LCC is in its own process, where it has one: a mount. Source: O-6.
        server: Option<ServerId>,
    },
    /// Someone who does not say.
    Unknown,
}

/// First frame of an answerer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum HelloReply {
    /// Go on, in this version.
    Welcome {
        /// The newest that both speak.
        version: u16,
    },
    /// We belong to another cluster.
    WrongCluster {
        /// Ours.
        cluster: ClusterId,
    },
    /// There is no version that both speak.
    WrongVersion {
        /// Our oldest.
        min: u16,
        /// Our newest.
        max: u16,
    },
    /// Nobody of that role, or no such index, is here.
    WrongRole,
    /// Not yet, or not any more; come back.
    NotReady,
}

/// How long either side waits for the other's hello.
pub const HELLO_WAIT: Duration = Duration::from_secs(5);

fn send_hello<T: Serialize>(connection: &Connection, hello: &T) -> Result<(), Closed> {
    let head = Header::plain(FrameKind::Hello).with(hello);
    connection.sender.send(Frame { head, payload: braid_env::Payload::empty() })
}
