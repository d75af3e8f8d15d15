//! Starting containers.

use std::sync::Arc;

use crate::{Engine, Error, Result};

impl Engine {
    /// Starts a container.
    ///
    /// # Errors
    /// `NotModified` when it runs; whatever keeps it from running.
    pub async fn container_start(self: &Arc<Self>, _id: &str) -> Result<()> {
        Err(Error::unsupported("not written yet"))
    }
}
