//! Listing containers.

use vessel_api::ContainerSummary;

use crate::{Engine, Error, Filters, Result};

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Not only those that run.
    pub all: bool,
    /// The newest so many, running or not.
    pub limit: Option<usize>,
    /// With sizes.
    pub size: bool,
    /// What must match.
    pub filters: Filters,
}

impl Engine {
    /// Containers, newest first.
    ///
    /// # Errors
    /// A filter that is not known or does not make sense.
    pub async fn container_list(&self, _options: ListOptions) -> Result<Vec<ContainerSummary>> {
        Err(Error::unsupported("not written yet"))
    }
}
