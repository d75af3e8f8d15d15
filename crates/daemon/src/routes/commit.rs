//! `POST /commit`.

use std::sync::Arc;

use hyper::StatusCode;
use vessel_api::{CommitResponse, ContainerConfig};
use vessel_engine::images::CommitOptions;

use crate::error::ApiError;
use crate::request::Request;
use crate::response::{Answer, json_with};
use crate::server::State;

/// Makes an image of a container.
pub async fn commit(state: &Arc<State>, mut request: Request) -> Answer {
    let config = request.json_or_none::<ContainerConfig>().await?;
    let query = &request.query;
    let container = query.text("container").to_owned();
    if container.is_empty() {
        return Err(ApiError::bad_request(
            "no container is named: the parameter container must not be empty",
        ));
    }
    let options = CommitOptions {
        repository: query.text("repo").to_owned(),
        tag: query.text("tag").to_owned(),
        comment: query.text("comment").to_owned(),
        author: query.text("author").to_owned(),
        // Without a word about it, the container is paused.
        pause: query.get("pause").is_none() || query.flag("pause"),
        changes: query.all("changes").map(str::to_owned).collect(),
        config,
    };
    let engine = Arc::clone(&state.engine);
    state
        .finish(async move {
            let id = engine.container_commit(&container, options).await?;
            json_with(StatusCode::CREATED, &CommitResponse { id })
        })
        .await
}
