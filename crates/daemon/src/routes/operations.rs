//! Below `/vessel`: where things come from, who did what, what can be undone.

use std::sync::Arc;

use vessel_api::UndoRequest;

use crate::error::ApiError;
use crate::oplog::{self, Reading};
use crate::request::Request;
use crate::response::{Answer, json};
use crate::routes::streams::timestamp;
use crate::server::State;

/// `GET /vessel/explain`.
pub async fn explain(state: &Arc<State>) -> Answer {
    json(&state.engine.explain().await?)
}

/// `GET /vessel/log`: one JSON object a line, the newest last.
pub fn log(state: &Arc<State>, request: &Request) -> Answer {
    let tail = match request.query.text("tail") {
        "" | "all" => None,
        text => Some(text.parse().map_err(|_| {
            ApiError::bad_request(format!(
                "invalid value {text:?} for tail: a number of lines, or all, is expected"
            ))
        })?),
    };
    let (since, until) = (timestamp(request, "since")?, timestamp(request, "until")?);
    let follow = request.query.flag("follow");
    oplog::answer(Reading::begin(&state.log, since, until, tail, follow)?)
}

/// `GET /vessel/bin`.
pub async fn bin(state: &Arc<State>) -> Answer {
    json(&state.engine.bin_list().await?)
}

/// `POST /vessel/bin/empty`.
pub async fn empty(state: &Arc<State>) -> Answer {
    let engine = Arc::clone(&state.engine);
    state
        .finish(async move { json(&engine.bin_empty().await?) })
        .await
}

/// `POST /vessel/undo`.
pub async fn undo(state: &Arc<State>, mut request: Request) -> Answer {
    let asked = request.json::<UndoRequest>().await?;
    let engine = Arc::clone(&state.engine);
    state
        .finish(async move { json(&engine.undo(&asked.operation).await?) })
        .await
}
