//! Volumes.

use vessel_api::{Volume, VolumeCreateRequest, VolumeList, VolumesPruneReport};

use crate::request::Method;
use crate::{Client, Filters, Query, Result, encode};

impl Client {
    /// `GET /volumes`
    pub fn volume_list(&self, filters: &Filters) -> Result<VolumeList> {
        self.get("/volumes", &Query::new().filters(filters))
    }

    /// `GET /volumes/{name}`
    pub fn volume_inspect(&self, name: &str) -> Result<Volume> {
        self.get(&format!("/volumes/{}", encode(name)), &Query::new())
    }

    /// `GET /volumes/{name}`, as the daemon wrote it.
    pub fn volume_inspect_raw(&self, name: &str) -> Result<serde_json::Value> {
        self.get(&format!("/volumes/{}", encode(name)), &Query::new())
    }

    /// `POST /volumes/create`
    pub fn volume_create(&self, request: &VolumeCreateRequest) -> Result<Volume> {
        self.post_json("/volumes/create", &Query::new(), request)
    }

    /// `DELETE /volumes/{name}`
    pub fn volume_remove(&self, name: &str, force: bool) -> Result<()> {
        self.delete(
            &format!("/volumes/{}", encode(name)),
            &Query::new().flag("force", force),
        )
    }

    /// `POST /volumes/prune`
    pub fn volume_prune(&self, filters: &Filters) -> Result<VolumesPruneReport> {
        self.request(Method::Post, "/volumes/prune", &Query::new().filters(filters))?
            .json()
    }
}
