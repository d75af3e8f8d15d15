//! Changing a container's limits and restart policy, running or not.

use vessel_api::{UpdateRequest, UpdateResponse};

use crate::{Engine, Error, Result};

impl Engine {
    /// Changes limits and restart policy.
    ///
    /// # Errors
    /// A value that is not valid or that the kernel refuses; nothing is changed then.
    pub async fn container_update(&self, _id: &str, _request: UpdateRequest) -> Result<UpdateResponse> {
        Err(Error::unsupported("not written yet"))
    }
}
