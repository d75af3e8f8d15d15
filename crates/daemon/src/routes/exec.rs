//! Running another process in a running container.

use std::sync::Arc;

use hyper::StatusCode;
use vessel_api::{ExecCreateRequest, ExecStartRequest};

use crate::detach;
use crate::error::ApiError;
use crate::hijack::{self, Rules};
use crate::request::Request;
use crate::response::{Answer, json, json_with, status};
use crate::routes::containers::terminal_size;
use crate::server::State;
use crate::websocket;

/// `POST /containers/{id}/exec`.
pub async fn create(state: &Arc<State>, mut request: Request, id: &str) -> Answer {
    let body = request.json::<ExecCreateRequest>().await?;
    if body.cmd.is_empty() {
        return Err(ApiError::bad_request("no exec command specified"));
    }
    detach::parse(&body.detach_keys)?;
    json_with(StatusCode::CREATED, &state.engine.exec_create(id, body).await?)
}

/// `POST /exec/{id}/start`: detached, or the connection becomes the process's streams.
pub async fn start(state: &Arc<State>, mut request: Request, id: &str) -> Answer {
    let body = request.json::<ExecStartRequest>().await?;
    let way = request.leave(true);
    let exec = state.engine.exec_inspect(id).await?;
    let rules = Rules {
        stdin: exec.open_stdin,
        detach_keys: match exec.open_stdin && exec.process_config.tty {
            true => Some(detach::parse(&exec.detach_keys)?),
            false => None,
        },
        frames: exec.process_config.tty && !body.tty,
    };
    let (engine, id, version) = (Arc::clone(&state.engine), id.to_owned(), request.version);
    state
        .finish(async move {
            match engine.exec_start(&id, body).await? {
                Some(attached) => hijack::respond(way, version, attached, rules),
                None => Ok(status(StatusCode::OK)),
            }
        })
        .await
}

/// `GET /vessel/exec/{id}/ws`: a prepared process is started, and a websocket becomes its streams.
pub async fn start_websocket(state: &Arc<State>, request: Request, id: &str) -> Answer {
    let accept = websocket::accept_key(&request)?;
    let exec = state.engine.exec_inspect(id).await?;
    let rules = Rules {
        stdin: exec.open_stdin,
        detach_keys: None,
        frames: false,
    };
    let body = ExecStartRequest {
        tty: exec.process_config.tty,
        ..ExecStartRequest::default()
    };
    let (engine, id) = (Arc::clone(&state.engine), id.to_owned());
    state
        .finish(async move {
            match engine.exec_start(&id, body).await? {
                Some(attached) => websocket::respond(request, accept, attached, rules),
                None => Err(ApiError::bad_request(
                    "the process was prepared without any stream to attach to",
                )),
            }
        })
        .await
}

/// `POST /exec/{id}/resize`.
pub async fn resize(state: &Arc<State>, request: Request, id: &str) -> Answer {
    let (height, width) = terminal_size(&request)?;
    state.engine.exec_resize(id, height, width).await?;
    Ok(status(StatusCode::OK))
}

/// `GET /exec/{id}/json`.
pub async fn inspect(state: &Arc<State>, id: &str) -> Answer {
    json(&state.engine.exec_inspect(id).await?)
}
