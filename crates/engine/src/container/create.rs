//! Creating containers.

use vessel_api::{ContainerCreateRequest, ContainerCreateResponse};

use crate::{Engine, Error, Result};

impl Engine {
    /// Makes a container. Without a name it gets one.
    ///
    /// # Errors
    /// No such image, a name taken, any value that is not valid.
    pub async fn container_create(
        &self,
        _name: Option<&str>,
        _platform: Option<&str>,
        _request: ContainerCreateRequest,
    ) -> Result<ContainerCreateResponse> {
        Err(Error::unsupported("not written yet"))
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// No such container, a bad name, a name taken.
    pub async fn container_rename(&self, _id: &str, _name: &str) -> Result<()> {
        Err(Error::unsupported("not written yet"))
    }
}
