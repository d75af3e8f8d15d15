//! Networks as the API shows them.

use vessel_api::Network;

use crate::{Engine, Error, Filters, Result};

impl Engine {
    /// The networks: `bridge`, `host`, `none`.
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn network_list(&self, _filters: &Filters) -> Result<Vec<Network>> {
        Err(Error::unsupported("not written yet"))
    }

    /// One network, by name, ID or the beginning of one.
    ///
    /// # Errors
    /// `network … not found`.
    pub async fn network_inspect(&self, _name: &str) -> Result<Network> {
        Err(Error::unsupported("not written yet"))
    }
}
