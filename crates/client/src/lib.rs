//! A typed, synchronous client of the Docker Engine API.
//!
//! It speaks HTTP/1.1 over a Unix socket or TCP, to Vessel, dockerd or anything alike. There is no
//! runtime and there are no threads, except one while a request body is streamed, so that a server may
//! answer before it has read everything. Connections are kept and reused; connecting is lazy.
//!
//! Paths carry no version unless one was set with [`Client::set_version`]: a daemon then answers with its
//! newest. Responses are bounded where they are held in memory and streamed where they may be large.
#![warn(missing_docs)]

mod archive;
mod body;
pub mod build;
mod connection;
mod containers;
mod error;
mod exec;
mod hijack;
mod host;
mod images;
mod json_stream;
mod networks;
mod operations;
mod query;
mod request;
mod stdcopy;
mod system;
mod tls;
mod volumes;

use std::sync::{Arc, Mutex};

pub use body::Body;
pub use connection::Stream;
pub use containers::{
    AttachOptions, ContainerListOptions, LogsOptions, RemoveOptions, UpdateBody, WaitCondition,
};
pub use error::Error;
pub use hijack::{Hijacked, HijackedReader};
pub use host::Host;
pub use images::{CommitOptions, ImageCreateOptions, ImportOptions};
pub use json_stream::JsonStream;
pub use operations::LogOptions;
pub use query::{Filters, Query, encode};
pub use request::{Method, Pending, Response};
pub use stdcopy::{Demux, Frame, StreamKind, copy as stdcopy, write_part};
pub use system::EventsOptions;
pub use tls::{Tls, TlsFiles};

/// What every call here returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A client of one daemon. Cheap to make, cheap to clone; clones share their idle connections.
#[derive(Debug, Clone)]
pub struct Client {
    host: Arc<Host>,
    version: Option<String>,
    headers: Vec<(String, String)>,
    pool: connection::Pool,
}

impl Client {
    /// A client of the daemon at `host`. Nothing is connected yet.
    pub fn new(host: Host) -> Self {
        Self {
            host: Arc::new(host),
            version: None,
            headers: Vec::new(),
            pool: Arc::new(Mutex::new(Vec::new())),
        }
    }

    /// The daemon this client talks to.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Ask for one version of the API (`1.41`) instead of the daemon's newest.
    pub fn set_version(&mut self, version: Option<String>) {
        self.version = version;
    }

    /// Connects ahead of the first request, which will use the connection.
    pub fn connect(&self) -> Result<()> {
        let connection = connection::Connection::take(&self.pool, &self.host)?;
        match self.pool.lock() {
            Ok(mut idle) => idle.push(connection),
            Err(poisoned) => poisoned.into_inner().push(connection),
        }
        Ok(())
    }

    /// Send a header with every request.
    pub fn add_header(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.headers.push((name.into(), value.into()));
    }
}
