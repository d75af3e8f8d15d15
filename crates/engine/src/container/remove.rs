//! Removing containers.

use vessel_api::ContainersPruneReport;

use crate::{Engine, Error, Filters, Result};

/// How to remove.
#[derive(Debug, Clone, Copy, Default)]
pub struct RemoveOptions {
    /// Kill it first when it runs.
    pub force: bool,
    /// Its anonymous volumes, too.
    pub volumes: bool,
    /// Remove a link instead of the container.
    pub link: bool,
}

impl Engine {
    /// Removes a container.
    ///
    /// # Errors
    /// No such container; running and not forced; being removed already.
    pub async fn container_remove(&self, _id: &str, _options: RemoveOptions) -> Result<()> {
        Err(Error::unsupported("not written yet"))
    }

    /// Removes the containers that do not run (filters `until`, `label`).
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn container_prune(&self, _filters: &Filters) -> Result<ContainersPruneReport> {
        Err(Error::unsupported("not written yet"))
    }
}
