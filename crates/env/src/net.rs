//! Frames over connections, the same type for sockets and for the simulator.
//!
//! # Theory
//! A frame is a small *head* and a *payload* of raw bytes. On a stream it is
//! ```text
//! | magic 4 | head length 4 | payload length 4 | CRC-32C of the head 4 | head ... | payload ... |
//! ```
//! little endian; `docs/wire.md` has the whole picture. The payload carries no checksum here: its
//! blocks have their own (S-2). It is written with vectored writes from where it lies and read into
//! one buffer of its own.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::mpsc;

/// Longest head of a frame, in bytes.
pub const FRAME_HEAD_MAX: usize = 4 << 20;

/// Where a role listens.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket; only within one server.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Raw bytes in pieces, as they lie in memory.
#[derive(Clone, Default, Debug)]
pub struct Payload {
    /// The pieces in order.
    pub pieces: Vec<Bytes>,
}

impl Payload {
    /// No bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self { pieces: Vec::new() }
    }

    /// Length of all pieces, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// Whether there is not one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.iter().all(Bytes::is_empty)
    }

    /// Appends a piece; an empty one is left out.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.pieces.push(piece);
        }
    }

    /// All bytes in one piece; copies only where there are several.
    #[must_use]
    pub fn into_bytes(mut self) -> Bytes {
        match self.pieces.len() {
            0 => Bytes::new(),
            1 => self.pieces.pop().expect("there is one"),
            _ => {
                let mut whole = Vec::with_capacity(self.len());
                self.pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
                whole.into()
            }
        }
    }
}

impl From<Bytes> for Payload {
    fn from(piece: Bytes) -> Self {
        let mut payload = Self::empty();
        payload.push(piece);
        payload
    }
}

/// One message on a connection.
#[derive(Clone, Default, Debug)]
pub struct Frame {
    /// What is said; at most `FRAME_HEAD_MAX` bytes.
    pub head: Bytes,
    /// Raw bytes; at most `PAYLOAD_MAX`. Arrives in at most one piece.
    pub payload: Payload,
}

/// The connection is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is closed")
    }
}

impl std::error::Error for Closed {}

/// What a world does for [`FrameSender`].
pub trait SenderOps {
    /// Queues a frame; never waits.
    ///
    /// Errors: `Closed`; a frame that was queued before may still be lost.
    fn send(&self, frame: Frame) -> Result<(), Closed>;
    /// Bytes that wait to be sent.
    fn queued_bytes(&self) -> usize;
    /// Ends the connection at both sides; what is queued may be lost.
    fn close(&self);
}

/// The sending half; clones share it. The connection ends when all clones are dropped and what they
/// queued is sent, when either side closes it, or when it breaks.
#[derive(Clone)]
pub struct FrameSender(pub Rc<dyn SenderOps>);

impl FrameSender {
    /// See [`SenderOps::send`].
    pub fn send(&self, frame: Frame) -> Result<(), Closed> {
        self.0.send(frame)
    }

    /// See [`SenderOps::queued_bytes`].
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.0.queued_bytes()
    }

    /// See [`SenderOps::close`].
    pub fn close(&self) {
        self.0.close();
    }
}

/// The receiving half.
pub struct FrameReceiver(pub mpsc::Receiver<Frame>);

impl FrameReceiver {
    /// The next frame in order; `None` when the connection is gone.
    pub async fn recv(&mut self) -> Option<Frame> {
        self.0.recv().await
    }
}

/// Both halves of a connection.
pub struct Connection {
    /// To the other side.
    pub sender: FrameSender,
    /// From the other side. While it is not read, the other side is held back.
    pub receiver: FrameReceiver,
    /// The other side's address, for people.
    pub peer: String,
}

/// Accepts connections; dropping it stops listening.
pub struct Listener {
    /// Connections in the order of their arrival.
    pub accepted: mpsc::Receiver<Connection>,
    /// Where it listens: the real port where 0 was asked.
    pub address: Address,
}

impl Listener {
    /// The next connection; `None` when the listener is gone.
    pub async fn accept(&mut self) -> Option<Connection> {
        self.accepted.recv().await
    }
}
