//! Volumes.

use vessel_api::{Volume, VolumeCreateRequest, VolumeList, VolumesPruneReport};

use crate::{Engine, Error, Filters, Result};

impl Engine {
    /// Makes a volume, or returns the one of that name.
    ///
    /// # Errors
    /// A bad name, another driver than `local`, the disk.
    pub async fn volume_create(&self, _request: VolumeCreateRequest) -> Result<Volume> {
        Err(Error::unsupported("not written yet"))
    }

    /// The volumes.
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn volume_list(&self, _filters: &Filters) -> Result<VolumeList> {
        Err(Error::unsupported("not written yet"))
    }

    /// One volume.
    ///
    /// # Errors
    /// `get NAME: no such volume`.
    pub async fn volume_inspect(&self, _name: &str) -> Result<Volume> {
        Err(Error::unsupported("not written yet"))
    }

    /// Removes a volume; with `force` it is no error when there is none.
    ///
    /// # Errors
    /// Not there; in use by a container.
    pub async fn volume_remove(&self, _name: &str, _force: bool) -> Result<()> {
        Err(Error::unsupported("not written yet"))
    }

    /// Removes anonymous volumes (with `all=true` every volume) that no container uses.
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn volume_prune(&self, _filters: &Filters) -> Result<VolumesPruneReport> {
        Err(Error::unsupported("not written yet"))
    }

    /// How many containers use a volume.
    pub fn volume_references(&self, _name: &str) -> usize {
        0
    }
}
