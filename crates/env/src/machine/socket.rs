//! Listening and connecting.
//!
//! # Theory
//! A listening socket comes from the parent process, which keeps it over restarts of the role, or
//! is bound here. An LC listens once for several threads: [`RawListener`] accepts without reading,
//! [`Accepted::peek_head`] looks at the first frame and leaves it unread, and the descriptor goes
//! to the thread that it is for, which makes it a connection by [`connection_from_fd`].
//!
//! Sizes of socket buffers are left to the kernel: with 1 MiB and 4 MiB set, 64 KiB and 1 MiB
//! payloads over loopback were as fast or slower, over TCP and over Unix sockets.
//! # Failure
//! A peer that vanished without a word is noticed by keep-alive probes within a minute, and within
//! 20 s when bytes wait for it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{FileType, Mode, fchmod, lstat};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, bind, recv, socket_with,
    sockopt,
};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use super::Inherited;
use super::stream::{self, FRAME_HEADER, FrameHeader, Stream};
use crate::{Address, Connection, FRAME_HEAD_MAX, Listener};

/// Connects within two seconds.
pub(super) async fn connect(to: Address) -> io::Result<Connection> {
    let stream = tokio::time::timeout(CONNECT_WAIT, connect_stream(&to))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(stream::start(stream, to.to_string()))
}

async fn connect_stream(to: &Address) -> io::Result<Stream> {
    match to {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            prepare_tcp(&stream)?;
            Ok(Stream::tcp(stream))
        }
        Address::Unix(path) => Ok(Stream::unix(UnixStream::connect(path).await?)),
    }
}

/// Listens, and accepts in a task of this thread until the listener is dropped.
pub(super) fn listen(at: Address, inherited: Option<OwnedFd>) -> io::Result<Listener> {
    let mut raw = RawListener::new(at, inherited)?;
    let address = raw.address.clone();
    let (sender, accepted) = mpsc::channel(ACCEPTED_MAX);
    spawn_local(async move {
        loop {
            let socket = tokio::select! {
                biased;
                () = sender.closed() => return,
                socket = raw.accept() => socket,
            };
            match socket.into_connection() {
                Ok(connection) => {
                    if sender.send(connection).await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "an accepted socket is of no use"),
            }
        }
    });
    Ok(Listener { accepted, address })
}

/// Listens like [`crate::Env::listen`], but gives the sockets unread, to be moved to other threads.
pub fn listen_raw(at: Address, inherited: &mut Inherited) -> io::Result<RawListener> {
    let socket = inherited.remove(&at);
    RawListener::new(at, socket)
}

/// The address of this machine from which another one is reached, and which that one can reach if
/// nothing between them forbids it.
///
/// Errors: there is no way to it.
pub fn address_towards(other: SocketAddr) -> io::Result<IpAddr> {
    let any = match other {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    // Nothing is sent: the kernel only chooses the way.
    socket.connect(other)?;
    Ok(socket.local_addr()?.ip())
}

/// Accepts sockets; dropping it stops listening.
pub struct RawListener {
    socket: ListeningSocket,
    /// Where it listens: the real port where 0 was asked.
    pub address: Address,
}

enum ListeningSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl RawListener {
    fn new(at: Address, inherited: Option<OwnedFd>) -> io::Result<Self> {
        match at {
            Address::Tcp(address) => {
                let listener = listen_tcp(address, inherited)?;
                let address = Address::Tcp(listener.local_addr()?);
                Ok(Self { socket: ListeningSocket::Tcp(listener), address })
            }
            Address::Unix(path) => {
                let listener = listen_unix(&path, inherited)?;
                Ok(Self { socket: ListeningSocket::Unix(listener), address: Address::Unix(path) })
            }
        }
    }

    /// The next socket. Waits a moment and goes on where the machine has no descriptor left.
    pub async fn accept(&mut self) -> Accepted {
        loop {
            let accepted = match &self.socket {
                ListeningSocket::Tcp(listener) => accept_tcp(listener).await,
                ListeningSocket::Unix(listener) => accept_unix(listener).await,
            };
            match accepted {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::warn!(%error, at = %self.address, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<Accepted> {
    let (stream, peer) = listener.accept().await?;
    Ok(Accepted { socket: Socket::Tcp(stream), peer: peer.to_string() })
}

async fn accept_unix(listener: &UnixListener) -> io::Result<Accepted> {
    let (stream, _) = listener.accept().await?;
    Ok(Accepted { socket: Socket::Unix(stream), peer: LOCAL_PEER.to_owned() })
}

/// A socket that nobody has read from.
pub struct Accepted {
    socket: Socket,
    /// The other side's address, for people.
    pub peer: String,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Accepted {
    /// The head of the first frame, which stays unread. The caller bounds the wait.
    ///
    /// Errors: `InvalidData` where it is no frame or its head is above `PEEK_MAX`; `UnexpectedEof`
    /// where the peer is gone.
    pub async fn peek_head(&mut self) -> io::Result<Bytes> {
        loop {
            // `WouldBlock` makes `readable` wait until more bytes have come.
            let peeked = match &self.socket {
                Socket::Tcp(stream) => {
                    stream.readable().await?;
                    stream.try_io(Interest::READABLE, || peek_head(stream.as_fd()))
                }
                Socket::Unix(stream) => {
                    stream.readable().await?;
                    stream.try_io(Interest::READABLE, || peek_head(stream.as_fd()))
                }
            };
            match peeked {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                peeked => return peeked,
            }
        }
    }

    /// The socket, to be moved to another thread.
    pub fn into_descriptor(self) -> io::Result<OwnedFd> {
        match self.socket {
            Socket::Tcp(stream) => Ok(stream.into_std()?.into()),
            Socket::Unix(stream) => Ok(stream.into_std()?.into()),
        }
    }

    /// Makes it a connection of this thread.
    pub fn into_connection(self) -> io::Result<Connection> {
        let stream = match self.socket {
            Socket::Tcp(stream) => {
                prepare_tcp(&stream)?;
                Stream::tcp(stream)
            }
            Socket::Unix(stream) => Stream::unix(stream),
        };
        Ok(stream::start(stream, self.peer))
    }
}

/// Errors: `WouldBlock` where the head is not yet whole.
fn peek_head(socket: BorrowedFd<'_>) -> io::Result<Bytes> {
    let mut buffer = [0; FRAME_HEADER + PEEK_MAX];
    let (count, _) = recv(socket, &mut buffer[..], RecvFlags::PEEK)?;
    if count == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    first_head(&buffer[..count])?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
}

fn first_head(bytes: &[u8]) -> io::Result<Option<Bytes>> {
    let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER>() else {
        return Ok(None);
    };
    let header = FrameHeader::parse(header)?;
    if header.head_length > PEEK_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first head is too long"));
    }
    let Some(head) = rest.get(..header.head_length) else {
        return Ok(None);
    };
    header.check_head(head)?;
    Ok(Some(Bytes::copy_from_slice(head)))
}

/// Makes a connection in this thread of a socket that was accepted in any.
pub fn connection_from_fd(socket: OwnedFd) -> io::Result<Connection> {
    let accepted = if sockopt::socket_domain(&socket)? == AddressFamily::UNIX {
        let stream = std::os::unix::net::UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        let socket = Socket::Unix(UnixStream::from_std(stream)?);
        Accepted { socket, peer: LOCAL_PEER.to_owned() }
    } else {
        let stream = std::net::TcpStream::from(socket);
        stream.set_nonblocking(true)?;
        let peer = stream.peer_addr().map_or_else(|_| "gone".to_owned(), |peer| peer.to_string());
        Accepted { socket: Socket::Tcp(TcpStream::from_std(stream)?), peer }
    };
    accepted.into_connection()
}

fn listen_tcp(at: SocketAddr, inherited: Option<OwnedFd>) -> io::Result<TcpListener> {
    if let Some(socket) = inherited {
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        return TcpListener::from_std(listener);
    }
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

fn listen_unix(at: &Path, inherited: Option<OwnedFd>) -> io::Result<UnixListener> {
    let listener: std::os::unix::net::UnixListener = match inherited {
        Some(socket) => socket.into(),
        None => bind_unix(at)?.into(),
    };
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn bind_unix(at: &Path) -> io::Result<OwnedFd> {
    // Only a socket is removed: a wrong path in the configuration must not cost a file.
    if let Ok(stat) = lstat(at)
        && FileType::from_raw_mode(stat.st_mode).is_socket()
    {
        std::fs::remove_file(at)?;
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Before `bind`, which gives the file the socket's mode: it is never open to others.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(at)?)?;
    rustix::net::listen(&socket, i32::try_from(BACKLOG).expect("a small number"))?;
    Ok(socket)
}

fn prepare_tcp(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_COUNT)?;
    sockopt::set_tcp_user_timeout(stream, UNSENT_MS_MAX)?;
    Ok(())
}

/// Longest head that can be looked at before it is read, in bytes.
pub(super) const PEEK_MAX: usize = 4 << 10;
const _: () = assert!(PEEK_MAX <= FRAME_HEAD_MAX);

const LOCAL_PEER: &str = "local";
const CONNECT_WAIT: Duration = Duration::from_secs(2);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const ACCEPTED_MAX: usize = 16;
const BACKLOG: u32 = 1024;
const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;
const UNSENT_MS_MAX: u32 = 20_000;
