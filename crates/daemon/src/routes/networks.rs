//! Networks: `bridge`, `host` and `none`; others come later.

use std::sync::Arc;

use hyper::StatusCode;
use vessel_api::NetworksPruneReport;

use crate::error::ApiError;
use crate::request::Request;
use crate::response::{Answer, json};
use crate::server::State;

/// `GET /networks`.
pub async fn list(state: &Arc<State>, request: &Request) -> Answer {
    json(&state.engine.network_list(&request.filters()?).await?)
}

/// `GET /networks/{name}`.
pub async fn inspect(state: &Arc<State>, name: &str) -> Answer {
    json(&state.engine.network_inspect(name).await?)
}

/// `POST /networks/create`.
pub fn create() -> Answer {
    Err(ApiError::not_implemented(
        "networks of one's own are not there yet: use bridge, host, none or container:NAME",
    ))
}

/// `POST /networks/{name}/connect` and `disconnect`.
pub fn connect() -> Answer {
    Err(ApiError::not_implemented(
        "connecting a container to further networks is not there yet: choose its network with --network when it is created",
    ))
}

/// `DELETE /networks/{name}`: all there are cannot be removed.
pub async fn remove(state: &Arc<State>, name: &str) -> Answer {
    let network = state.engine.network_inspect(name).await?;
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        format!("{} is a pre-defined network and cannot be removed", network.name),
    ))
}

/// `POST /networks/prune`: there is nothing to prune.
pub fn prune() -> Answer {
    json(&NetworksPruneReport::default())
}
