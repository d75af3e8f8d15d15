//! `POST /build?version=2`: the client has a session, and gets BuildKit's messages as lines of JSON. The docker command
//! line before buildx builds so.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use hyper::StatusCode;
use prost::Message;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use vessel_api::JsonMessage;
use vessel_build::request::{BuildRequest, CacheExport, DockerfileSource, Network, Output, Source};

use super::query::Query;
use super::{Cancel, DEPTH, stream_of};
use crate::base64;
use crate::buildkit::context::upload;
use crate::buildkit::jobs::Running;
use crate::buildkit::{client, exporters, status_response, take_upload};
use crate::error::ApiError;
use crate::request::Request;
use crate::response::{Answer, status};
use crate::server::{Busy, State};

/// By this a client says that its session has the context; without it the body is the context.
const SESSION: &str = "client-session";

#[derive(Debug, Deserialize)]
struct RawOutput {
    #[serde(rename = "Type", alias = "type", default)]
    kind: String,
    #[serde(rename = "Attrs", alias = "attrs", default)]
    attributes: Option<HashMap<String, String>>,
}

/// By this a client says that the context comes with another request.
const UPLOAD: &str = "upload-request";

/// Where the files are, and what becomes of the result.
fn complete(build: &mut BuildRequest, request: &Request, tags: &[String]) -> Result<(), String> {
    let remote = request.query.text("remote");
    let local = remote == SESSION;
    build.context = match remote {
        SESSION => Source::Session("context".to_owned()),
        // What is sent takes its place.
        "" | UPLOAD => Source::Empty,
        remote => Source::Remote(remote.to_owned()),
    };
    if let DockerfileSource::File { source, .. } = &mut build.dockerfile {
        *source = local.then(|| Source::Session("dockerfile".to_owned()));
    }
    if build
        .args
        .get("BUILDKIT_INLINE_CACHE")
        .is_some_and(|value| value.as_deref() == Some("1"))
    {
        build.cache_to.push(CacheExport::Inline);
    }
    let text = request.query.text("outputs");
    let outputs: Option<Vec<RawOutput>> = match text {
        "" => None,
        text => serde_json::from_str(text).map_err(|error| format!("error reading outputs: {error}"))?,
    };
    for (index, output) in outputs.unwrap_or_default().into_iter().enumerate() {
        let attributes = output.attributes.unwrap_or_default();
        build
            .outputs
            .push(exporters::output(index, &output.kind, &attributes)?);
    }
    if build.outputs.is_empty() {
        build.outputs.push(exporters::output(0, "moby", &HashMap::new())?);
    }
    for output in &mut build.outputs {
        if let Output::Image { names, .. } | Output::Archive { names, .. } = output {
            names.extend(tags.iter().cloned());
        }
    }
    Ok(())
}

/// Answers it.
pub async fn build(state: &Arc<State>, request: Request) -> Answer {
    let id = request.query.text("buildid").to_owned();
    if let Some(id) = id.strip_prefix("upload-request:") {
        let given = state.jobs.give_body(id, request.reader()).await;
        return match given {
            Ok(()) => Ok(status(StatusCode::OK)),
            Err(error) => Err(ApiError::bad_request(error.message().to_owned())),
        };
    }
    let Query {
        request: mut build,
        tags,
        quiet,
    } = Query::parse(&request.query).map_err(ApiError::bad_request)?;
    if let Network::Named(name) = &build.network {
        return Err(ApiError::bad_request(format!(
            "network mode {name:?} not supported by buildkit: default, none or host is"
        )));
    }
    complete(&mut build, &request, &tags).map_err(ApiError::bad_request)?;
    let builder = state.builder()?;
    let client = client(state, request.query.text("session"))
        .await
        .map_err(|status| ApiError::bad_request(status.message().to_owned()))?;
    let remote = request.query.text("remote").to_owned();
    // As with dockerd: without a remote context the body is one.
    let received = if remote.is_empty() {
        upload(state, request.reader(), &mut build).await?
    } else {
        None
    };
    let id = if id.is_empty() { state.next_upload() } else { id };
    let running = state
        .jobs
        .begin(&id)
        .map_err(|status| ApiError::new(hyper::StatusCode::CONFLICT, status.message().to_owned()))?;
    let listener = state.jobs.listen(&id).await;
    let listener = listener.ok_or_else(|| ApiError::internal("the build ended before it began"))?;
    let (sender, receiver) = mpsc::channel(DEPTH);
    let (busy, state) = (Busy::new(state), Arc::clone(state));
    let task = tokio::spawn(async move {
        let _busy = busy;
        let told = sender.clone();
        let work = async move {
            let running: Running = running;
            let context = if remote == UPLOAD {
                let body = state
                    .jobs
                    .take_body(&id)
                    .await
                    .ok_or("the build's context does not come")?;
                upload(&state, body, &mut build)
                    .await
                    .map_err(|error| error.message().to_owned())?
            } else {
                let taken = take_upload(&state, &client, &mut build).await;
                taken.map_err(|status| status.message().to_owned())?
            };
            let result = running.job.build(&builder, build, client).await;
            drop((context, received));
            result.map_err(|error| error.to_string())
        };
        let tell = async move {
            while let Some(events) = listener.next().await {
                let trace = base64::encode(&status_response(events).encode_to_vec());
                send(&told, aux("moby.buildkit.trace", Value::from(trace))).await;
            }
        };
        let (result, ()) = tokio::join!(work, tell);
        match result {
            Ok(result) => {
                if let Some(image) = result.images.first() {
                    let id = image.id.to_string();
                    send(&sender, aux("moby.image.id", json!({ "ID": id }))).await;
                    if quiet {
                        send(&sender, JsonMessage::stream(format!("{id}\n"))).await;
                    }
                }
            }
            Err(sentence) => send(&sender, JsonMessage::error(sentence)).await,
        }
    });
    stream_of(None, receiver, Cancel(task.abort_handle()))
}

fn aux(id: &str, value: Value) -> JsonMessage {
    JsonMessage {
        id: id.to_owned(),
        aux: Some(value),
        ..JsonMessage::default()
    }
}

async fn send(sender: &mpsc::Sender<Bytes>, message: JsonMessage) {
    if let Ok(mut line) = serde_json::to_vec(&message) {
        line.extend_from_slice(b"\r\n");
        // A client that is gone cancels the build by that.
        let _ = sender.send(line.into()).await;
    }
}
