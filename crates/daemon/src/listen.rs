//! Listening sockets.
//!
//! A Unix socket gets its owner and mode between `bind` and `listen`, so that nobody can connect while they are
//! not right. A socket file that nobody answers on is left from a daemon that was killed, and is replaced; one
//! that somebody answers on is not touched. On an orderly exit the file is removed, unless another took its place.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

use crate::config::Listen;
use crate::conn::Conn;
use crate::error::Error;

/// Connections that may wait to be accepted. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How long something may hold the socket of a daemon that was killed.
const DYING: Duration = Duration::from_secs(5);
/// A silent TCP client is asked so often whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long one attempt to get an answer takes.
const PATIENCE: Duration = Duration::from_millis(100);

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// Unix; the file, when it is ours to remove, goes with the listener.
    Unix {
        /// The socket.
        socket: UnixListener,
        /// Its file.
        _file: Option<SocketFile>,
    },
    /// TCP, with TLS or on a loopback address.
    Tcp(TcpListener, Option<Arc<ServerConfig>>),
}

/// The file of a Unix socket; removed on drop when it is still the one that was made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path)
            .is_ok_and(|now| now.dev() == self.device && now.ino() == self.inode)
        {
            // If it cannot be removed the next daemon replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Opens a socket.
    pub async fn open(listen: Listen, group: &str, tls: Option<&Security>) -> Result<Self, Error> {
        match listen {
            Listen::Unix(path) => unix(path, group).await,
            Listen::Tcp(address) => tcp(address, tls).await,
            Listen::Inherited(fd) => inherited(fd, tls),
        }
    }

    /// Opens the page's socket. In clear it is for this machine only, and its token keeps other users out.
    pub async fn open_page(listen: Listen, group: &str, tls: Option<&Security>) -> Result<Self, Error> {
        let Listen::Tcp(address) = listen else {
            return Self::open(listen, group, tls).await;
        };
        if !address.ip().is_loopback() && tls.is_none() {
            return Err(Error::Config(format!(
                "will not serve the page on {address} without TLS: whoever listens on the way would be root here; use an address like 127.0.0.1:8080 (ssh -L leads there), or give --tls"
            )));
        }
        let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen {
            address: address.to_string(),
            source,
            advice: "choose another port",
        })?;
        Ok(Self::Tcp(listener, tls.map(|tls| Arc::clone(&tls.config))))
    }

    /// The address of a TCP port, which the kernel may have chosen.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix { .. } => None,
            Self::Tcp(listener, _) => listener.local_addr().ok(),
        }
    }

    /// The next client.
    pub async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Unix { socket, .. } => Ok(Accepted::Ready(Conn::Unix(socket.accept().await?.0))),
            Self::Tcp(listener, tls) => {
                let (stream, _) = listener.accept().await?;
                // A client that is gone already is seen when it is read from, and no reason to stop accepting.
                if let Err(error) = prepare(&stream) {
                    tracing::debug!(%error, "a client's connection takes no options");
                }
                Ok(match tls {
                    Some(tls) => Accepted::Handshake(stream, tls.clone()),
                    None => Accepted::Ready(Conn::Tcp(stream)),
                })
            }
        }
    }
}

/// An answer is written at once: waiting for more to send would only delay it. And a client whose machine or network is gone
/// is noticed within two minutes, however long its connection may be silent otherwise.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    sockopt::set_socket_keepalive(stream, true)?;
    Ok(())
}

/// A client that was accepted.
#[derive(Debug)]
pub enum Accepted {
    /// Requests may come.
    Ready(Conn),
    /// TLS has to be agreed on.
    Handshake(TcpStream, Arc<ServerConfig>),
}

impl Accepted {
    /// The connection, after the client's handshake if there is one.
    pub async fn ready(self) -> io::Result<Conn> {
        match self {
            Self::Ready(conn) => Ok(conn),
            Self::Handshake(stream, tls) => {
                let stream = TlsAcceptor::from(tls).accept(stream).await?;
                Ok(Conn::Tls(Box::new(stream)))
            }
        }
    }
}

/// TLS, and whether clients have to show certificates.
#[derive(Debug)]
pub struct Security {
    /// What handshakes are answered with.
    pub config: Arc<ServerConfig>,
    /// Whether they have to.
    pub verifies: bool,
}

async fn unix(path: PathBuf, group: &str) -> Result<Listener, Error> {
    let failed = |advice: &'static str| {
        let address = path.display().to_string();
        move |source: io::Error| Error::Listen {
            address,
            source,
            advice,
        }
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("make its directory or choose another with --socket"))?;
    }
    clear_stale(&path).await?;

    let address = SocketAddrUnix::new(&path)
        .map_err(io::Error::from)
        .map_err(failed(
            "a socket's path may have at most 107 bytes: choose a shorter one",
        ))?;
    let setup = || -> io::Result<(OwnedFd, SocketFile)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        bind(&socket, &address)?;
        let made = fs::symlink_metadata(&path)?;
        let file = SocketFile {
            path: path.clone(),
            device: made.dev(),
            inode: made.ino(),
        };
        if let Some(gid) = group_id(group) {
            std::os::unix::fs::lchown(&path, None, Some(gid))?;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660))?;
        listen(&socket, BACKLOG)?;
        Ok((socket, file))
    };
    let (socket, file) = setup().map_err(failed(
        "run as root, or choose a path you may write with --socket",
    ))?;
    let socket = UnixListener::from_std(socket.into()).map_err(failed("try again"))?;
    Ok(Listener::Unix {
        socket,
        _file: Some(file),
    })
}

/// Removes a socket file that nobody answers on.
async fn clear_stale(path: &Path) -> Result<(), Error> {
    let failed = |source, advice| Error::Listen {
        address: path.display().to_string(),
        source,
        advice,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error, "choose another path with --socket")),
        Ok(found) => {
            use std::os::unix::fs::FileTypeExt;
            if !found.file_type().is_socket() {
                let error = io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "the path exists and is not a socket",
                );
                return Err(failed(error, "remove it or choose another path with --socket"));
            }
        }
    }
    match knock(path).await {
        Ok(()) => Err(Error::InUse(path.display().to_string())),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) =>
        {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(
                    error,
                    "remove the stale socket or choose another path with --socket",
                )),
                _ => Ok(()),
            }
        }
        Err(error) => Err(failed(error, "it cannot be told whether somebody answers on it")),
    }
}

/// Connects to a socket, and tries for a while to get an error.
///
/// What a killed daemon was just starting has its socket until it has become another program: nobody answers there, but
/// a connection succeeds.
async fn knock(path: &Path) -> io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let give_up = tokio::time::Instant::now() + DYING;
    loop {
        let mut stream = match UnixStream::connect(path).await {
            // Who listened died just now, with this connection in its queue.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
            other => other?,
        };
        let answer = async {
            stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n").await?;
            stream.read(&mut [0; 1]).await
        };
        let answered = tokio::time::timeout(PATIENCE, answer).await;
        if matches!(answered, Ok(Ok(1..))) || tokio::time::Instant::now() > give_up {
            return Ok(());
        }
    }
}

async fn tcp(address: SocketAddr, tls: Option<&Security>) -> Result<Listener, Error> {
    check_reach(address, tls)?;
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen {
        address: address.to_string(),
        source,
        advice: "choose another port",
    })?;
    warn_in_clear(address, tls);
    Ok(Listener::Tcp(listener, tls.map(|tls| Arc::clone(&tls.config))))
}

/// Whoever reaches the API is root on this machine; unless clients show certificates only this machine may.
fn check_reach(address: SocketAddr, tls: Option<&Security>) -> Result<(), Error> {
    if address.ip().is_loopback() || tls.is_some_and(|tls| tls.verifies) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "will not listen on {address}: whoever reaches that port would be root here, and clients show no certificates; give --tlsverify with --tlscacert, --tlscert and --tlskey, or listen on 127.0.0.1 or on a Unix socket"
    )))
}

/// A port without TLS has no owner and no mode, as a Unix socket has them.
fn warn_in_clear(address: SocketAddr, tls: Option<&Security>) {
    if tls.is_none() {
        tracing::warn!(
            "{address} has no TLS: every local user who reaches it is root; a Unix socket, or --tlsverify, keeps them out"
        );
    }
}

fn inherited(fd: OwnedFd, tls: Option<&Security>) -> Result<Listener, Error> {
    let failed = |source| Error::Listen {
        address: "the socket passed in".to_owned(),
        source,
        advice: "pass a listening Unix or TCP stream socket",
    };
    let address = rustix::net::getsockname(&fd)
        .map_err(io::Error::from)
        .map_err(failed)?;
    rustix::io::ioctl_fionbio(&fd, true)
        .map_err(io::Error::from)
        .map_err(failed)?;
    match address.address_family() {
        AddressFamily::UNIX => Ok(Listener::Unix {
            socket: UnixListener::from_std(fd.into()).map_err(failed)?,
            _file: None,
        }),
        AddressFamily::INET | AddressFamily::INET6 => {
            let listener = TcpListener::from_std(fd.into()).map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            check_reach(address, tls)?;
            warn_in_clear(address, tls);
            Ok(Listener::Tcp(listener, tls.map(|tls| Arc::clone(&tls.config))))
        }
        _ => Err(failed(io::Error::from(io::ErrorKind::Unsupported))),
    }
}

/// Looks a group up in `/etc/group`; a group that does not exist leaves the socket to root.
fn group_id(name: &str) -> Option<u32> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    })
}
