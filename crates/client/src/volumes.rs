//! Volumes.

use std::io::Read;

use vessel_api::{Map, Volume, VolumeCloneRequest, VolumeCreateRequest, VolumeList, VolumesPruneReport};

use crate::request::{Method, Response};
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

    /// `GET /volumes/{name}/archive`, of Vessel only.
    pub fn volume_archive(&self, name: &str) -> Result<Response> {
        let url = format!("/volumes/{}/archive", encode(name));
        self.request(Method::Get, &url, &Query::new())
    }

    /// `PUT /volumes/{name}/archive`, of Vessel only.
    pub fn volume_extract(
        &self,
        name: &str,
        labels: &Map<String>,
        archive: impl Read + Send + 'static,
    ) -> Result<Volume> {
        let url = format!("/volumes/{}/archive", encode(name));
        let labels = match labels.is_empty() {
            true => String::new(),
            false => serde_json::to_string(labels).unwrap_or_default(),
        };
        let query = Query::new().text("labels", &labels);
        self.upload(Method::Put, &url, &query, "application/x-tar", archive)?
            .json()
    }

    /// `POST /volumes/{name}/clone`, of Vessel only.
    pub fn volume_clone(&self, name: &str, request: &VolumeCloneRequest) -> Result<Volume> {
        let url = format!("/volumes/{}/clone", encode(name));
        self.post_json(&url, &Query::new(), request)
    }
}
