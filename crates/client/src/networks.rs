//! Networks.

use vessel_api::{
    Network, NetworkConnectRequest, NetworkCreateRequest, NetworkCreateResponse, NetworkDisconnectRequest,
    NetworksPruneReport,
};

use crate::request::Method;
use crate::{Client, Filters, Query, Result, encode};

impl Client {
    /// `GET /networks`
    pub fn network_list(&self, filters: &Filters) -> Result<Vec<Network>> {
        self.get("/networks", &Query::new().filters(filters))
    }

    /// `GET /networks/{id}`
    pub fn network_inspect(&self, id: &str, verbose: bool) -> Result<Network> {
        self.get(
            &format!("/networks/{}", encode(id)),
            &Query::new().flag("verbose", verbose),
        )
    }

    /// `GET /networks/{id}`, as the daemon wrote it.
    pub fn network_inspect_raw(&self, id: &str, verbose: bool) -> Result<serde_json::Value> {
        self.get(
            &format!("/networks/{}", encode(id)),
            &Query::new().flag("verbose", verbose),
        )
    }

    /// `POST /networks/create`
    pub fn network_create(&self, request: &NetworkCreateRequest) -> Result<NetworkCreateResponse> {
        self.post_json("/networks/create", &Query::new(), request)
    }

    /// `DELETE /networks/{id}`
    pub fn network_remove(&self, id: &str) -> Result<()> {
        self.delete(&format!("/networks/{}", encode(id)), &Query::new())
    }

    /// `POST /networks/{id}/connect`
    pub fn network_connect(&self, id: &str, request: &NetworkConnectRequest) -> Result<()> {
        let path = format!("/networks/{}/connect", encode(id));
        self.begin_json(&path, &Query::new(), request)?
            .response()?
            .discard()
    }

    /// `POST /networks/{id}/disconnect`
    pub fn network_disconnect(&self, id: &str, request: &NetworkDisconnectRequest) -> Result<()> {
        let path = format!("/networks/{}/disconnect", encode(id));
        self.begin_json(&path, &Query::new(), request)?
            .response()?
            .discard()
    }

    /// `POST /networks/prune`
    pub fn network_prune(&self, filters: &Filters) -> Result<NetworksPruneReport> {
        self.request(Method::Post, "/networks/prune", &Query::new().filters(filters))?
            .json()
    }
}
