//! Containers and their life.

pub mod attach;
pub mod create;
pub mod exec;
pub mod inspect;
pub mod list;
pub mod record;
pub mod remove;
pub mod start;
pub mod stop;
pub mod update;
pub mod wait;

use std::path::PathBuf;
use std::sync::Arc;

use record::{Record, State};

use crate::{Engine, Error, Result};

/// A container.
#[derive(Debug)]
pub struct Container {
    id: String,
}

/// Where a container's root comes from.
#[derive(Debug, Clone)]
pub struct RootPaths {
    /// Read-only layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// overlayfs' work directory.
    pub work: PathBuf,
}

impl Container {
    /// 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What was asked for; a snapshot.
    pub fn record(&self) -> Arc<Record> {
        Arc::default()
    }

    /// Where it is in its life; a snapshot.
    pub fn state(&self) -> State {
        State::default()
    }

    /// Its cgroup while it runs.
    pub fn cgroup_path(&self) -> String {
        String::new()
    }
}

impl Engine {
    /// All containers, in no order.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        Vec::new()
    }

    /// A container by name, ID or the beginning of one.
    ///
    /// # Errors
    /// `No such container: …`, and when a short ID means several.
    pub fn container(&self, name: &str) -> Result<Arc<Container>> {
        Err(Error::not_found(format!("No such container: {name}")))
    }

    /// Where a container's root comes from.
    ///
    /// # Errors
    /// When its image is gone.
    pub async fn container_root(&self, _container: &Container) -> Result<RootPaths> {
        Err(Error::unsupported("not written yet"))
    }
}
