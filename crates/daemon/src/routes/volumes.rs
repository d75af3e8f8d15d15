//! Volumes.

use std::sync::Arc;

use hyper::StatusCode;
use vessel_api::VolumeCreateRequest;

use crate::request::Request;
use crate::response::{Answer, json, json_with, no_content};
use crate::server::State;
use crate::version::ApiVersion;

/// `GET /volumes`.
pub async fn list(state: &Arc<State>, request: &Request) -> Answer {
    json(&state.engine.volume_list(&request.filters()?).await?)
}

/// `POST /volumes/create`.
pub async fn create(state: &Arc<State>, mut request: Request) -> Answer {
    let body = request.json::<VolumeCreateRequest>().await?;
    let engine = Arc::clone(&state.engine);
    state
        .finish(async move { json_with(StatusCode::CREATED, &engine.volume_create(body).await?) })
        .await
}

/// `GET /volumes/{name}`.
pub async fn inspect(state: &Arc<State>, name: &str) -> Answer {
    json(&state.engine.volume_inspect(name).await?)
}

/// `DELETE /volumes/{name}`.
pub async fn remove(state: &Arc<State>, request: &Request, name: &str) -> Answer {
    let (engine, name, force) = (
        Arc::clone(&state.engine),
        name.to_owned(),
        request.query.flag("force"),
    );
    state
        .finish(async move {
            engine.volume_remove(&name, force).await?;
            no_content()
        })
        .await
}

/// `POST /volumes/prune`. Before 1.42 named volumes were pruned, too.
pub async fn prune(state: &Arc<State>, request: &Request) -> Answer {
    let (engine, mut filters) = (Arc::clone(&state.engine), request.filters()?);
    if request.version < ApiVersion::new(42) && !filters.contains("all") {
        filters.add("all", "true");
    }
    state
        .finish(async move { json(&engine.volume_prune(&filters).await?) })
        .await
}
