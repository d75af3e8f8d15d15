//! Networks.

use std::sync::Arc;

use hyper::StatusCode;
use vessel_api::{NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest};

use crate::error::ApiError;
use crate::request::Request;
use crate::response::{Answer, json, json_with, no_content, status};
use crate::server::State;
use crate::version::ApiVersion;

/// `GET /networks`.
pub async fn list(state: &Arc<State>, request: &Request) -> Answer {
    let mut networks = state.engine.network_list(&request.filters()?).await?;
    if request.version < ApiVersion::new(28) {
        // The list was as detailed as each of its elements.
        let mut detailed = Vec::with_capacity(networks.len());
        for network in networks {
            match state
                .engine
                .network_inspect(&network.id)
                .await
                .map_err(ApiError::from)
            {
                Ok(network) => detailed.push(network),
                // It was removed meanwhile.
                Err(error) if error.status() == StatusCode::NOT_FOUND => {}
                Err(error) => return Err(error),
            }
        }
        networks = detailed;
    }
    json(&networks)
}

/// `GET /networks/{name}`. All networks are of the scope `local`.
pub async fn inspect(state: &Arc<State>, request: &Request, name: &str) -> Answer {
    let network = state.engine.network_inspect(name).await?;
    match request.query.get("scope") {
        Some(scope) if !scope.is_empty() && scope != network.scope => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!("network {name} not found in the scope {scope}"),
        )),
        _ => json(&network),
    }
}

/// `POST /networks/create`.
pub async fn create(state: &Arc<State>, mut request: Request) -> Answer {
    let body = request.json::<NetworkCreateRequest>().await?;
    let engine = Arc::clone(&state.engine);
    state
        .finish(async move { json_with(StatusCode::CREATED, &engine.network_create(body).await?) })
        .await
}

/// `POST /networks/{name}/connect`.
pub async fn connect(state: &Arc<State>, mut request: Request, name: &str) -> Answer {
    let body = request.json::<NetworkConnectRequest>().await?;
    let (engine, name) = (Arc::clone(&state.engine), name.to_owned());
    state
        .finish(async move {
            engine.network_connect(&name, body).await?;
            Ok(status(StatusCode::OK))
        })
        .await
}

/// `POST /networks/{name}/disconnect`.
pub async fn disconnect(state: &Arc<State>, mut request: Request, name: &str) -> Answer {
    let body = request.json::<NetworkDisconnectRequest>().await?;
    let (engine, name) = (Arc::clone(&state.engine), name.to_owned());
    state
        .finish(async move {
            engine.network_disconnect(&name, body).await?;
            Ok(status(StatusCode::OK))
        })
        .await
}

/// `DELETE /networks/{name}`.
pub async fn remove(state: &Arc<State>, name: &str) -> Answer {
    let (engine, name) = (Arc::clone(&state.engine), name.to_owned());
    state
        .finish(async move {
            engine.network_remove(&name).await?;
            no_content()
        })
        .await
}

/// `POST /networks/prune`.
pub async fn prune(state: &Arc<State>, request: &Request) -> Answer {
    let (engine, filters) = (Arc::clone(&state.engine), request.filters()?);
    state
        .finish(async move { json(&engine.network_prune(&filters).await?) })
        .await
}
