//! Containers: everything that is a question and an answer.

use std::sync::Arc;

use hyper::StatusCode;
use vessel_api::{ContainerCreateRequest, UpdateRequest};
use vessel_engine::{ListOptions, RemoveOptions, StopOptions};

use crate::error::ApiError;
use crate::request::Request;
use crate::response::{self, Answer, json, json_with, no_content, status};
use crate::server::State;
use crate::version::ApiVersion;

/// `GET /containers/json`.
pub async fn list(state: &Arc<State>, request: &Request) -> Answer {
    let options = ListOptions {
        all: request.query.flag("all"),
        // Docker takes negative limits for none.
        limit: request
            .query
            .number("limit", i64::MIN, i64::MAX)?
            .and_then(|limit| usize::try_from(limit).ok())
            .filter(|&limit| limit > 0),
        size: request.query.flag("size"),
        filters: request.filters()?,
    };
    response::json_text(state.engine.container_list_json(options).await?)
}

/// `POST /containers/create`.
pub async fn create(state: &Arc<State>, mut request: Request) -> Answer {
    let Some(body) = request.json_or_none::<ContainerCreateRequest>().await? else {
        return Err(ApiError::bad_request(
            "config cannot be empty in order to create a container",
        ));
    };
    let name = request
        .query
        .get("name")
        .filter(|name| !name.is_empty())
        .map(str::to_owned);
    let platform = request
        .query
        .get("platform")
        .filter(|platform| !platform.is_empty())
        .map(str::to_owned);
    let engine = Arc::clone(&state.engine);
    state
        .finish(async move {
            let created = engine
                .container_create(name.as_deref(), platform.as_deref(), body)
                .await?;
            json_with(StatusCode::CREATED, &created)
        })
        .await
}

/// `GET /containers/{id}/json`.
pub async fn inspect(state: &Arc<State>, request: &Request, id: &str) -> Answer {
    json(
        &state
            .engine
            .container_inspect(id, request.query.flag("size"))
            .await?,
    )
}

/// `GET /containers/{id}/top`.
pub async fn top(state: &Arc<State>, request: &Request, id: &str) -> Answer {
    json(
        &state
            .engine
            .container_top(id, request.query.text("ps_args"))
            .await?,
    )
}

/// `POST /containers/{id}/start`.
pub async fn start(state: &Arc<State>, _request: &Request, id: &str) -> Answer {
    let (engine, id) = (Arc::clone(&state.engine), id.to_owned());
    state
        .finish(async move {
            engine.container_start(&id).await?;
            no_content()
        })
        .await
}

/// How to stop: `t` and, since 1.42, `signal`.
fn stop_options(request: &Request) -> Result<StopOptions, ApiError> {
    let signal = request.query.get("signal").filter(|signal| !signal.is_empty());
    Ok(StopOptions {
        signal: signal
            .filter(|_| request.version >= ApiVersion::new(42))
            .map(str::to_owned),
        timeout: request
            .query
            .number("t", i64::from(i32::MIN), i64::from(i32::MAX))?,
    })
}

/// `POST /containers/{id}/stop`.
pub async fn stop(state: &Arc<State>, request: &Request, id: &str) -> Answer {
    let (engine, id, options) = (Arc::clone(&state.engine), id.to_owned(), stop_options(request)?);
    state
        .finish(async move {
            engine.container_stop(&id, options).await?;
            no_content()
        })
        .await
}

/// `POST /containers/{id}/restart`.
pub async fn restart(state: &Arc<State>, request: &Request, id: &str) -> Answer {
    let (engine, id, options) = (Arc::clone(&state.engine), id.to_owned(), stop_options(request)?);
    state
        .finish(async move {
            engine.container_restart(&id, options).await?;
            no_content()
        })
        .await
}

/// `POST /containers/{id}/kill`.
pub async fn kill(state: &Arc<State>, request: &Request, id: &str) -> Answer {
    let signal = request
        .query
        .get("signal")
        .filter(|signal| !signal.is_empty())
        .unwrap_or("SIGKILL")
        .to_owned();
    let (engine, id) = (Arc::clone(&state.engine), id.to_owned());
    state
        .finish(async move {
            engine.container_kill(&id, &signal).await?;
            no_content()
        })
        .await
}

/// `POST /containers/{id}/pause`.
pub async fn pause(state: &Arc<State>, id: &str) -> Answer {
    let (engine, id) = (Arc::clone(&state.engine), id.to_owned());
    state
        .finish(async move {
            engine.container_pause(&id).await?;
            no_content()
        })
        .await
}

/// `POST /containers/{id}/unpause`.
pub async fn unpause(state: &Arc<State>, id: &str) -> Answer {
    let (engine, id) = (Arc::clone(&state.engine), id.to_owned());
    state
        .finish(async move {
            engine.container_unpause(&id).await?;
            no_content()
        })
        .await
}

/// `POST /containers/{id}/rename`.
pub async fn rename(state: &Arc<State>, request: &Request, id: &str) -> Answer {
    let (engine, id, name) = (
        Arc::clone(&state.engine),
        id.to_owned(),
        request.query.text("name").to_owned(),
    );
    state
        .finish(async move {
            engine.container_rename(&id, &name).await?;
            no_content()
        })
        .await
}

/// The size of a terminal: `h` and `w`.
pub fn terminal_size(request: &Request) -> Result<(u16, u16), ApiError> {
    let side = |name: &str| {
        let number = request.query.number(name, 0, i64::from(u16::MAX))?;
        Ok::<_, ApiError>(
            number
                .and_then(|number| u16::try_from(number).ok())
                .unwrap_or_default(),
        )
    };
    Ok((side("h")?, side("w")?))
}

/// `POST /containers/{id}/resize`.
pub async fn resize(state: &Arc<State>, request: &Request, id: &str) -> Answer {
    let (height, width) = terminal_size(request)?;
    state.engine.container_resize(id, height, width).await?;
    Ok(status(StatusCode::OK))
}

/// `POST /containers/{id}/update`.
pub async fn update(state: &Arc<State>, mut request: Request, id: &str) -> Answer {
    let body = request.json::<UpdateRequest>().await?;
    let (engine, id) = (Arc::clone(&state.engine), id.to_owned());
    state
        .finish(async move { json(&engine.container_update(&id, body).await?) })
        .await
}

/// `DELETE /containers/{id}`.
pub async fn remove(state: &Arc<State>, request: &Request, id: &str) -> Answer {
    let options = RemoveOptions {
        force: request.query.flag("force"),
        volumes: request.query.flag("v"),
        link: request.query.flag("link"),
        for_good: false,
    };
    let (engine, id) = (Arc::clone(&state.engine), id.to_owned());
    state
        .finish(async move {
            engine.container_remove(&id, options).await?;
            no_content()
        })
        .await
}

/// `POST /containers/prune`.
pub async fn prune(state: &Arc<State>, request: &Request) -> Answer {
    let (engine, filters) = (Arc::clone(&state.engine), request.filters()?);
    state
        .finish(async move { json(&engine.container_prune(&filters).await?) })
        .await
}
