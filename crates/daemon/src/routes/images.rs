//! Images.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use hyper::StatusCode;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use vessel_api::JsonMessage;
use vessel_engine::images::{
    AttestationOptions, ImageListOptions, ImportOptions, Platform, Progress, PullRequest, PushRequest,
};

use crate::body::Body;
use crate::error::ApiError;
use crate::request::Request;
use crate::response::{self, Answer, json, status};
use crate::routes::copy::tar_body;
use crate::routes::registries::credentials;
use crate::server::{Busy, State};
use crate::version::ApiVersion;

/// `GET /images/json`.
pub async fn list(state: &Arc<State>, request: &Request) -> Answer {
    let mut filters = request.filters()?;
    if request.version < ApiVersion::new(41)
        && let Some(name) = request.query.get("filter").filter(|name| !name.is_empty())
    {
        filters.add("reference", name);
    }
    // What an image consists of is not listed here, as by a dockerd whose store has no indexes.
    if request.version >= ApiVersion::new(54)
        && request.query.flag("identity")
        && !request.query.flag("manifests")
    {
        return Err(ApiError::bad_request(
            "conflicting options: identity requires manifests=1",
        ));
    }
    let options = ImageListOptions {
        all: request.query.flag("all"),
        filters,
        shared_size: request.version >= ApiVersion::new(42) && request.query.flag("shared-size"),
    };
    json(&state.engine.image_list(options).await?)
}

/// `GET /images/{name}/json`.
pub async fn inspect(state: &Arc<State>, name: &str) -> Answer {
    json(&state.engine.image_inspect(name).await?)
}

/// `GET /images/{name}/attestations`.
pub async fn attestations(state: &Arc<State>, request: &Request, name: &str) -> Answer {
    if request.version < ApiVersion::new(55) {
        return Err(ApiError::page_not_found());
    }
    let types = request.query.all("type").map(str::trim);
    let options = AttestationOptions {
        platform: platform(request)?,
        predicate_types: types.filter(|kind| !kind.is_empty()).map(str::to_owned).collect(),
        statements: request.query.flag("statement"),
    };
    json(&state.engine.image_attestations(name, &options).await?)
}

/// `GET /images/{name}/history`.
pub async fn history(state: &Arc<State>, request: &Request, name: &str) -> Answer {
    let platform = platform(request)?;
    json(&state.engine.image_history(name, platform.as_ref()).await?)
}

/// `POST /images/{name}/tag`.
pub async fn tag(state: &Arc<State>, request: &Request, name: &str) -> Answer {
    let (engine, name) = (Arc::clone(&state.engine), name.to_owned());
    let (repository, tag) = (
        request.query.text("repo").to_owned(),
        request.query.text("tag").to_owned(),
    );
    state
        .finish(async move {
            engine.image_tag(&name, &repository, &tag).await?;
            Ok(status(StatusCode::CREATED))
        })
        .await
}

/// `DELETE /images/{name}`.
pub async fn remove(state: &Arc<State>, request: &Request, name: &str) -> Answer {
    let (engine, name) = (Arc::clone(&state.engine), name.to_owned());
    let (force, keep_parents) = (request.query.flag("force"), request.query.flag("noprune"));
    state
        .finish(async move { json(&engine.image_remove(&name, force, !keep_parents).await?) })
        .await
}

/// `POST /images/prune`.
pub async fn prune(state: &Arc<State>, request: &Request) -> Answer {
    let (engine, filters) = (Arc::clone(&state.engine), request.filters()?);
    state
        .finish(async move { json(&engine.image_prune(&filters).await?) })
        .await
}

/// The platform to load or save, as JSON of the OCI image specification.
fn platform(request: &Request) -> Result<Option<Platform>, ApiError> {
    let mut given = request.query.all("platform").filter(|text| !text.is_empty());
    let Some(text) = given.next() else {
        return Ok(None);
    };
    if given.next().is_some() {
        return Err(ApiError::bad_request(
            "several platforms are given: an image here is for one, give one at a time",
        ));
    }
    serde_json::from_str(text).map(Some).map_err(|error| {
        ApiError::bad_request(format!(
            "failed to parse platform {text:?}: {error}: a JSON object with os and architecture is expected"
        ))
    })
}

/// `GET /images/{name}/get` and `GET /images/get?names=…`.
pub async fn save(state: &Arc<State>, request: &Request, name: Option<String>) -> Answer {
    let names = match name {
        Some(name) => vec![name],
        None => request.query.all("names").map(str::to_owned).collect(),
    };
    if names.is_empty() {
        return Err(ApiError::bad_request("no image to save: name at least one"));
    }
    let platform = platform(request)?;
    let archive = state.engine.image_save(&names, platform.as_ref()).await?;
    response::stream("application/x-tar", tar_body(state, archive)?)
}

/// `POST /images/load`.
pub async fn load(state: &Arc<State>, request: Request) -> Answer {
    let quiet = request.query.flag("quiet");
    let platform = platform(&request)?;
    let (engine, reader) = (Arc::clone(&state.engine), request.reader());
    let answer = progress(state, move |progress| async move {
        engine.image_load(reader, quiet, platform, progress).await
    });
    match answer.await {
        // With dockerd the answer has begun before the archive is looked at, so what is wrong with it is told in the stream.
        Err(error) if matches!(error.status(), StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND) => {
            response::stream(
                "application/json",
                Body::whole(line(&JsonMessage::error(error.message())).unwrap_or_default()),
            )
        }
        answer => answer,
    }
}

/// `POST /images/create`: a pull, or import of an archive of a root.
pub async fn create(state: &Arc<State>, request: Request) -> Answer {
    let query = &request.query;
    let engine = Arc::clone(&state.engine);
    let image = query.text("fromImage").to_owned();
    if !image.is_empty() {
        let pull = PullRequest {
            image,
            tag: query.text("tag").to_owned(),
            platform: query.text("platform").to_owned(),
            credentials: credentials(&request)?,
        };
        return progress(state, move |progress| async move {
            engine.image_pull(pull, progress).await
        })
        .await;
    }
    let source = query.text("fromSrc");
    if source != "-" {
        return Err(ApiError::not_implemented(
            "importing from an address is not there yet: send the archive itself (import -)",
        ));
    }
    let options = ImportOptions {
        repository: query.text("repo").to_owned(),
        tag: query.text("tag").to_owned(),
        message: query.text("message").to_owned(),
        changes: query.all("changes").map(str::to_owned).collect(),
        platform: query.text("platform").to_owned(),
    };
    let reader = request.reader();
    progress(state, move |progress| async move {
        engine.image_import(reader, options, progress).await
    })
    .await
}

/// `POST /images/{name}/push`.
pub async fn push(state: &Arc<State>, request: Request, name: String) -> Answer {
    let push = PushRequest {
        image: name,
        tag: request.query.text("tag").to_owned(),
        credentials: credentials(&request)?,
    };
    let engine = Arc::clone(&state.engine);
    progress(state, move |progress| async move {
        engine.image_push(push, progress).await
    })
    .await
}

/// Runs an operation that tells how it gets on. It goes on when the client goes away; what fails before anything
/// was told is a status, what fails later a last message.
async fn progress<F, T>(state: &Arc<State>, operation: F) -> Answer
where
    F: FnOnce(Progress) -> T,
    T: Future<Output = vessel_engine::Result<()>> + Send + 'static,
{
    let (sender, mut messages) = unbounded_channel();
    let (busy, operation) = (Busy::new(state), operation(Progress::new(sender)));
    let task = tokio::spawn(async move {
        let _busy = busy;
        operation.await
    });
    let body = match messages.recv().await {
        Some(first) => Body::stream(stream::unfold((Some(first), messages, Some(task)), next_message)),
        None => {
            finish(task).await?;
            Body::Empty
        }
    };
    response::stream("application/json", body)
}

type Running = (
    Option<JsonMessage>,
    UnboundedReceiver<JsonMessage>,
    Option<JoinHandle<vessel_engine::Result<()>>>,
);

async fn next_message((first, mut messages, task): Running) -> Option<(std::io::Result<Bytes>, Running)> {
    let message = match first {
        Some(first) => Some(first),
        None => messages.recv().await,
    };
    match message {
        Some(message) => Some((line(&message), (None, messages, task))),
        None => match finish(task?).await {
            Ok(()) => None,
            Err(error) => Some((line(&JsonMessage::error(error.message())), (None, messages, None))),
        },
    }
}

async fn finish(task: JoinHandle<vessel_engine::Result<()>>) -> Result<(), ApiError> {
    match task.await {
        Ok(result) => Ok(result?),
        Err(error) => Err(ApiError::internal(format!(
            "the operation ended abnormally: {error}"
        ))),
    }
}

fn line(message: &JsonMessage) -> std::io::Result<Bytes> {
    let mut text = serde_json::to_vec(message)?;
    text.extend_from_slice(b"\r\n");
    Ok(text.into())
}
