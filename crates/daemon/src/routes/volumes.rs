//! Volumes.

use std::sync::Arc;

use hyper::StatusCode;
use vessel_api::{Map, VolumeCloneRequest, VolumeCreateRequest};

use super::copy::tar_body;
use crate::error::ApiError;
use crate::request::Request;
use crate::response::{self, Answer, json, json_with, no_content};
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

/// `GET /volumes/{name}/archive`, of our own: the volume's files as a tar archive.
pub async fn archive(state: &Arc<State>, name: &str) -> Answer {
    let archive = state.engine.volume_archive(name).await?;
    response::stream("application/x-tar", tar_body(state, archive)?)
}

/// `PUT /volumes/{name}/archive`, of our own: fills an empty volume, which is made when there is none. `labels` is a JSON
/// object.
pub async fn extract(state: &Arc<State>, request: Request, name: &str) -> Answer {
    let labels = match request.query.text("labels") {
        "" => Map::new(),
        text => serde_json::from_str(text).map_err(|error| {
            ApiError::bad_request(format!("labels is no JSON object of strings: {error}"))
        })?,
    };
    let (engine, name) = (Arc::clone(&state.engine), name.to_owned());
    let reader = request.reader();
    state
        .finish(async move { json(&engine.volume_extract(&name, labels, reader).await?) })
        .await
}

/// `POST /volumes/{name}/clone`, of our own: copies a volume into a new one.
pub async fn clone(state: &Arc<State>, mut request: Request, name: &str) -> Answer {
    let body = request.json::<VolumeCloneRequest>().await?;
    let (engine, name) = (Arc::clone(&state.engine), name.to_owned());
    state
        .finish(async move {
            let volume = engine.volume_clone(&name, &body.name, body.labels).await?;
            json_with(StatusCode::CREATED, &volume)
        })
        .await
}
