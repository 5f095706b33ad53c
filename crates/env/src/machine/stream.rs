//! Frames on a stream socket.
//!
//! # Theory
//! One reader task and one writer task per connection.
//! ```text
//! send -> queue of pieces -writer: one writev for up to 64 pieces-> socket
//! socket -> buffer -> heads, small payloads (copied out) -> channel of 256 frames -> recv
//!        \--------> large payloads, straight into a buffer of their own --/
//! ```
//! A small frame waits for the writer task, so that all frames of one turn of the role leave in one
//! system call. A large one is written at once from where it lies: its bytes are a system call's
//! worth anyway, and the peer can begin to read.
//!
//! The reader asks for much at a time while frames are small and for little after a large one,
//! because what it reads too much of a large payload must be copied again.
//! # Invariants
//! M1 Pieces leave in the order of `send`; a frame is never torn apart by another.
//! M2 Nothing is allocated by a length that was not checked.
//! # Failure
//! Bytes that are no frame close the connection and are logged. A broken socket closes both
//! directions; frames that were received whole before can still be read.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use braid_terms::PAYLOAD_MAX;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_local;

use crate::{
    Closed, Connection, FRAME_HEAD_MAX, Frame, FrameReceiver, FrameSender, PageBuffer, SenderOps,
};

/// Starts the two tasks in this thread.
pub(super) fn start(stream: Stream, peer: String) -> Connection {
    let (sender, receiver) = mpsc::channel(RECEIVED_FRAMES_MAX);
    let shared = Rc::new(Shared {
        socket: stream.write,
        queue: RefCell::default(),
        queued_bytes: Cell::new(0),
        state: Cell::new(State::Open),
        wake: Notify::new(),
    });
    spawn_local(write_frames(shared.clone()));
    let reader = Reader {
        socket: stream.read,
        buffer: BytesMut::new(),
        ask: BUFFER,
        shared: shared.clone(),
    };
    spawn_local(read_frames(reader, sender, peer.clone()));
    Connection {
        sender: FrameSender(Rc::new(Sender(shared))),
        receiver: FrameReceiver(receiver),
        peer,
    }
}

/// Both halves of a socket.
pub(super) struct Stream {
    read: ReadHalf,
    write: WriteHalf,
}

impl Stream {
    pub(super) fn tcp(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        Self { read: ReadHalf::Tcp(read), write: WriteHalf::Tcp(write) }
    }

    pub(super) fn unix(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self { read: ReadHalf::Unix(read), write: WriteHalf::Unix(write) }
    }
}

/// The 16 bytes in front of each frame.
pub(super) struct FrameHeader {
    pub(super) head_length: usize,
    pub(super) payload_length: usize,
    head_crc: u32,
}

impl FrameHeader {
    fn of(frame: &Frame) -> Self {
        Self {
            head_length: frame.head.len(),
            payload_length: frame.payload.len(),
            head_crc: crc_fast::crc32_iscsi(&frame.head),
        }
    }

    /// Errors: `InvalidData` where it is no frame's header or the frame is too long.
    pub(super) fn parse(bytes: &[u8; FRAME_HEADER]) -> io::Result<Self> {
        let mut bytes = &bytes[..];
        if bytes.get_u32_le() != u32::from_le_bytes(*MAGIC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not our protocol"));
        }
        let header = Self {
            head_length: bytes.get_u32_le() as usize,
            payload_length: bytes.get_u32_le() as usize,
            head_crc: bytes.get_u32_le(),
        };
        if header.head_length > FRAME_HEAD_MAX || header.payload_length > PAYLOAD_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the frame is too long"));
        }
        Ok(header)
    }

    /// Errors: `InvalidData` where the head was damaged on its way.
    pub(super) fn check_head(&self, head: &[u8]) -> io::Result<()> {
        if crc_fast::crc32_iscsi(head) != self.head_crc {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the head is damaged"));
        }
        Ok(())
    }

    fn put(&self, buffer: &mut BytesMut) {
        buffer.put_slice(MAGIC);
        for number in [self.head_length, self.payload_length] {
            buffer.put_u32_le(u32::try_from(number).expect("frames are below 4 GiB"));
        }
        buffer.put_u32_le(self.head_crc);
    }
}

struct Shared {
    socket: WriteHalf,
    queue: RefCell<VecDeque<Bytes>>,
    queued_bytes: Cell<usize>,
    state: Cell<State>,
    wake: Notify,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// No sender is left; what is queued still goes out.
    Draining,
    Closed,
}

impl Shared {
    fn queue(&self, piece: Bytes) {
        if !piece.is_empty() {
            self.queued_bytes.set(self.queued_bytes.get() + piece.len());
            self.queue.borrow_mut().push_back(piece);
        }
    }

    /// Writes what the socket takes; `false` when some of it must wait.
    fn flush(&self) -> io::Result<bool> {
        let mut queue = self.queue.borrow_mut();
        while !queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); WRITE_PIECES_MAX];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(queue.iter()) {
                *slice = IoSlice::new(piece);
                count += 1;
            }
            let written = match self.socket.try_write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.queued_bytes.set(self.queued_bytes.get() - written);
            drop_front(&mut queue, written);
        }
        Ok(true)
    }

    fn close(&self) {
        if self.state.replace(State::Closed) != State::Closed {
            self.queue.borrow_mut().clear();
            self.queued_bytes.set(0);
            self.socket.shut_down();
            self.wake.notify_one();
        }
    }
}

fn drop_front(queue: &mut VecDeque<Bytes>, mut count: usize) {
    while count > 0 {
        let front = queue.front_mut().expect("no more was written than queued");
        if count < front.len() {
            front.advance(count);
            return;
        }
        count -= front.len();
        queue.pop_front();
    }
}

struct Sender(Rc<Shared>);

impl SenderOps for Sender {
    fn send(&self, frame: Frame) -> Result<(), Closed> {
        let shared = &*self.0;
        assert!(frame.head.len() <= FRAME_HEAD_MAX, "the head is too long");
        let header = FrameHeader::of(&frame);
        assert!(header.payload_length <= PAYLOAD_MAX, "the payload is too long");
        if shared.state.get() != State::Open {
            return Err(Closed);
        }
        let was_empty = shared.queued_bytes.get() == 0;
        // A short head is copied behind its header: one piece costs less than two.
        let copied = if frame.head.len() <= COPIED_HEAD_MAX { frame.head.len() } else { 0 };
        let mut start = BytesMut::with_capacity(FRAME_HEADER + copied);
        header.put(&mut start);
        start.put_slice(&frame.head[..copied]);
        shared.queue(start.freeze());
        if copied == 0 {
            shared.queue(frame.head);
        }
        frame.payload.pieces.into_iter().for_each(|piece| shared.queue(piece));
        if was_empty && header.payload_length < WRITE_AT_ONCE {
            shared.wake.notify_one();
        } else if header.payload_length >= WRITE_AT_ONCE {
            match shared.flush() {
                Ok(true) => {}
                Ok(false) => shared.wake.notify_one(),
                Err(_) => {
                    shared.close();
                    return Err(Closed);
                }
            }
        }
        Ok(())
    }

    fn queued_bytes(&self) -> usize {
        self.0.queued_bytes.get()
    }

    fn close(&self) {
        self.0.close();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if self.0.state.get() == State::Open {
            self.0.state.set(State::Draining);
            self.0.wake.notify_one();
        }
    }
}

async fn write_frames(shared: Rc<Shared>) {
    loop {
        let flushed = match shared.state.get() {
            State::Closed => return,
            State::Open | State::Draining => shared.flush(),
        };
        match flushed {
            Ok(true) if shared.state.get() == State::Draining => shared.close(),
            Ok(true) => shared.wake.notified().await,
            Ok(false) => {
                // `close` shuts the socket down, which ends this wait too.
                if shared.socket.writable().await.is_err() {
                    shared.close();
                }
            }
            // The reader logs why a connection ends, where there is something to log.
            Err(_) => shared.close(),
        }
    }
}

struct Reader {
    socket: ReadHalf,
    buffer: BytesMut,
    /// How many bytes to ask for, next time.
    ask: usize,
    shared: Rc<Shared>,
}

async fn read_frames(mut reader: Reader, sender: mpsc::Sender<Frame>, peer: String) {
    loop {
        match reader.next().await {
            Ok(Some(frame)) => {
                // Without a receiver frames are read and dropped, so that the end is still seen.
                let _ = sender.send(frame).await;
            }
            Ok(None) => break,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%peer, %error, "closed a connection");
                break;
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "a connection broke");
                break;
            }
        }
    }
    reader.shared.close();
}

impl Reader {
    /// The next frame; `None` where the peer ended the connection behind the last one.
    async fn next(&mut self) -> io::Result<Option<Frame>> {
        while self.buffer.len() < FRAME_HEADER {
            if !self.fill().await? {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
        let bytes = self.buffer.first_chunk().expect("as many are there");
        let header = FrameHeader::parse(bytes)?;
        self.buffer.advance(FRAME_HEADER);
        let head = self.take(header.head_length).await?;
        header.check_head(&head)?;
        self.ask = if header.payload_length >= BUFFER { SMALL_ASK } else { BUFFER };
        let payload = self.take(header.payload_length).await?;
        Ok(Some(Frame { head, payload: payload.into() }))
    }

    /// The next `length` bytes, in memory of their own.
    async fn take(&mut self, length: usize) -> io::Result<Bytes> {
        if length <= self.buffer.len() {
            let bytes = Bytes::copy_from_slice(&self.buffer[..length]);
            self.buffer.advance(length);
            return Ok(bytes);
        }
        let mut bytes = PageBuffer::new(length);
        let mut done = self.buffer.len();
        bytes[..done].copy_from_slice(&self.buffer);
        self.buffer.clear();
        while length - done > READ_DIRECTLY {
            match self.socket.read(&mut bytes[done..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => done += count,
            }
        }
        let missing = length - done;
        while self.buffer.len() < missing {
            self.ask = self.ask.max(missing);
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        bytes[done..].copy_from_slice(&self.buffer[..missing]);
        self.buffer.advance(missing);
        Ok(bytes.freeze())
    }

    /// Reads into the buffer; `false` at the end of the stream.
    async fn fill(&mut self) -> io::Result<bool> {
        if self.buffer.capacity() - self.buffer.len() < self.ask {
            // Everything was copied out, so this moves the rest to the front instead of allocating.
            self.buffer.reserve(BUFFER);
        }
        Ok(self.socket.read_buf(&mut (&mut self.buffer).limit(self.ask)).await? > 0)
    }
}

enum ReadHalf {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_read(context, buffer),
            Self::Unix(half) => Pin::new(half).poll_read(context, buffer),
        }
    }
}

enum WriteHalf {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
}

impl WriteHalf {
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => half.try_write_vectored(slices),
            Self::Unix(half) => half.try_write_vectored(slices),
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(half) => half.writable().await,
            Self::Unix(half) => half.writable().await,
        }
    }

    /// Ends both directions; a reader or writer that waits goes on and finds the end.
    fn shut_down(&self) {
        // An error means that the peer was faster.
        let _ = match self {
            Self::Tcp(half) => rustix::net::shutdown(half.as_ref(), Shutdown::Both),
            Self::Unix(half) => rustix::net::shutdown(half.as_ref(), Shutdown::Both),
        };
    }
}

/// Bytes in front of each head.
pub(super) const FRAME_HEADER: usize = 16;

const MAGIC: &[u8; 4] = b"BRD1";

/// Frames that are received and not yet read, per connection.
const RECEIVED_FRAMES_MAX: usize = 256;

/// Size of the read buffer.
const BUFFER: usize = 64 << 10;

/// What is asked for behind a large payload: a header and a usual head.
const SMALL_ASK: usize = 4 << 10;

/// What is missing above this is read to its place; below, a call more would cost more than a copy.
const READ_DIRECTLY: usize = 16 << 10;

/// Payloads from this size on are written by `send` itself.
const WRITE_AT_ONCE: usize = 16 << 10;

/// Heads up to this size are copied behind their header.
const COPIED_HEAD_MAX: usize = 4 << 10;

/// Pieces of one system call.
const WRITE_PIECES_MAX: usize = 64;
