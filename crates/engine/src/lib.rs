//! The engine: containers, volumes, images, their state and events, and the reconciler that makes the world match.
//!
//! [`Engine`] is the facade; its methods have Docker's vocabulary and take and return the structures of `vessel-api`.
//! The engine knows nothing of HTTP, terminals or the environment. All of it is asynchronous: what takes the kernel
//! more than a moment runs on tokio's blocking threads, no lock is held across such a call, and each container has a
//! state and an order of operations of its own, so a container that hangs delays nobody else.

pub mod container;
mod error;
pub mod events;
mod files;
pub mod filters;
pub mod image_index;
mod images;
pub mod logs;
mod network;
pub mod oci_spec;
pub mod state;
mod stats;
mod system;
pub mod time;
mod top;
mod volumes;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

pub use container::Container;
pub use container::attach::{AttachOptions, Attached};
pub use container::list::ListOptions;
pub use container::remove::RemoveOptions;
pub use container::stop::StopOptions;
pub use container::wait::{WaitCondition, Waiter};
pub use error::{Context, Error, ErrorKind, Result, blocking};
pub use events::{Events, EventsOptions};
pub use filters::Filters;
pub use image_index::{Image, ImageIndex};
pub use logs::{LogStream, LogsOptions};
pub use state::{Durability, Store};

/// How an engine is set up.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where state, images, containers and volumes are kept, e.g. `/var/lib/vessel`.
    pub root: PathBuf,
    /// Where sockets and shims' directories are; must not survive a reboot, e.g. `/run/vessel`.
    pub run: PathBuf,
    /// The default bridge's name.
    pub bridge: String,
    /// The default bridge's own address and prefix length; none: a free one is chosen.
    pub bridge_address: Option<(Ipv4Addr, u8)>,
    /// The cgroup under which containers' cgroups are made, absolute in every hierarchy, e.g. `/vessel`.
    pub cgroup_parent: String,
    /// The range of host IDs containers are mapped to; none: no user namespaces.
    pub userns_remap: Option<IdRange>,
    /// Name servers of containers that name none; empty: the host's.
    pub dns: Vec<std::net::IpAddr>,
    /// Whether containers run under a small init unless they say otherwise.
    pub init: bool,
}

/// A range of IDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first.
    pub start: u32,
    /// How many.
    pub size: u32,
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    store: Store,
    events: Events,
    images: ImageIndex,
}

impl Engine {
    /// Opens the engine's state, adopts what runs, cleans up what nobody owns, restarts what is to be restarted.
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the root is held by another engine, cannot be read, or the network cannot be set up.
    pub async fn open(_config: EngineConfig) -> Result<Arc<Self>> {
        Err(Error::unsupported("not written yet"))
    }

    /// Prepares for the end of the process: what is prepared but not used is given back. Containers keep running.
    pub async fn shutdown(&self) {}

    /// How it is set up.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The state store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What happened and happens.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Names and records of images.
    pub fn images(&self) -> &ImageIndex {
        &self.images
    }
}
