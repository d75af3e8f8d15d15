//! How a daemon is set up.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use vessel_engine::EngineConfig;

use crate::tls::TlsFiles;

/// Where the daemon listens.
#[derive(Debug)]
pub enum Listen {
    /// A Unix socket at a path, made with mode 0660.
    Unix(PathBuf),
    /// A TCP port, without TLS on loopback addresses only.
    Tcp(SocketAddr),
    /// A listening stream socket that was passed in (socket activation), Unix or TCP.
    Inherited(OwnedFd),
}

/// How a daemon is set up.
#[derive(Debug)]
pub struct Config {
    /// The engine's part: root, run directory, bridge and so on.
    pub engine: EngineConfig,
    /// Where to listen; at least one.
    pub listen: Vec<Listen>,
    /// TLS of TCP ports; none: in clear.
    pub tls: Option<TlsFiles>,
    /// The group that may use Unix sockets beside root, when it exists.
    pub group: String,
    /// Where the page for browsers is served, if it is.
    pub page: Option<PageConfig>,
    /// Bytes that the operation log may have; 0: nothing is logged.
    pub operation_log: u64,
}

/// How the page is served.
#[derive(Debug)]
pub struct PageConfig {
    /// A Unix socket, or a TCP port of a loopback address (of any with TLS that verifies clients).
    pub listen: Listen,
    /// What a browser has to show once; none: whoever reaches the listener has the page.
    pub token: Option<String>,
}
