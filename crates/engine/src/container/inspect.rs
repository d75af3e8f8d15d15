//! Everything about a container.

use vessel_api::ContainerInspect;

use crate::{Engine, Error, Result};

impl Engine {
    /// Everything about a container; with `size` also how large it is.
    ///
    /// # Errors
    /// No such container.
    pub async fn container_inspect(&self, _id: &str, _size: bool) -> Result<ContainerInspect> {
        Err(Error::unsupported("not written yet"))
    }
}
