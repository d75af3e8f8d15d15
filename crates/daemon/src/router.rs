//! From method and path to a route.
//!
//! The version prefix comes off, the rest is decoded and split at its slashes; image and plugin names may contain
//! slashes themselves. As with dockerd, a path or method that leads nowhere is "page not found".

use std::sync::Arc;

use hyper::Method;
use hyper::body::Incoming;

use crate::buildkit;
use crate::error::ApiError;
use crate::query::decode;
use crate::request::Request;
use crate::response::Answer;
use crate::routes::{
    absent, build, commit, containers, copy, exec, image_explain, images, networks, registries, streams,
    system, volumes,
};
use crate::server::State;
use crate::version::ApiVersion;

/// Paths with more segments than any has are refused.
const MAX_SEGMENTS: usize = 64;

/// Answers a request.
pub async fn route(state: &Arc<State>, request: hyper::Request<Incoming>) -> Answer {
    let raw = request.uri().path().to_owned();
    let (version, rest) = ApiVersion::strip(&raw)?;
    let path = decode(rest, false)?;
    if path.contains('\0') {
        return Err(ApiError::bad_request("a path cannot contain a zero byte"));
    }
    let segments: Vec<&str> = path.trim_start_matches('/').splitn(MAX_SEGMENTS, '/').collect();
    let mut request = Request::new(request, version)?;
    match segments.as_slice() {
        ["containers", rest @ ..] => container(state, request, rest).await,
        ["exec", id, verb] => match (request.method.clone(), *verb) {
            (Method::POST, "start") => exec::start(state, request, id).await,
            (Method::POST, "resize") => exec::resize(state, request, id).await,
            (Method::GET, "json") => exec::inspect(state, id).await,
            _ => Err(ApiError::page_not_found()),
        },
        ["images", rest @ ..] => image(state, request, rest).await,
        ["volumes", rest @ ..] => volume(state, request, rest).await,
        ["networks", rest @ ..] => network(state, request, rest).await,
        [single] => match (request.method.clone(), *single) {
            (Method::GET | Method::HEAD, "_ping") => system::ping(&request),
            (Method::GET, "version") => system::version(state),
            (Method::GET, "info") => system::info(state),
            (Method::GET, "events") => system::events(state, &request),
            (Method::POST, "commit") => commit::commit(state, request).await,
            (Method::POST, "build") => build::build(state, request).await,
            (Method::POST, "auth") => registries::auth(state, request).await,
            (Method::POST, "session") => state.sessions.accept(request),
            (Method::POST, "grpc") => buildkit::serve(state, request),
            _ => nowhere(&mut request, &segments).await,
        },
        ["build", "cancel"] if request.method == Method::POST => build::cancel(state, &request),
        ["build", "prune"] if request.method == Method::POST => build::prune(state, &request).await,
        ["system", "df"] if request.method == Method::GET => system::disk_usage(state, &request).await,
        ["distribution", name @ .., "json"] if !name.is_empty() && request.method == Method::GET => {
            registries::distribution(state, &request, &name.join("/")).await
        }
        segments => nowhere(&mut request, segments).await,
    }
}

async fn nowhere(request: &mut Request, segments: &[&str]) -> Answer {
    request.discard_body().await;
    absent::route(&request.method, segments)
}

async fn container(state: &Arc<State>, request: Request, path: &[&str]) -> Answer {
    let method = request.method.clone();
    match (method, path) {
        (Method::GET, ["json"]) => containers::list(state, &request).await,
        (Method::POST, ["create"]) => containers::create(state, request).await,
        (Method::POST, ["prune"]) => containers::prune(state, &request).await,
        (Method::DELETE, [id]) => containers::remove(state, &request, id).await,
        (Method::GET, [id, "json"]) => containers::inspect(state, &request, id).await,
        (Method::GET, [id, "top"]) => containers::top(state, &request, id).await,
        (Method::GET, [id, "changes"]) => copy::changes(state, id).await,
        (Method::GET, [id, "export"]) => copy::export(state, id).await,
        (Method::GET, [id, "archive"]) => copy::get(state, &request, id).await,
        (Method::HEAD, [id, "archive"]) => copy::head(state, &request, id).await,
        (Method::PUT, [id, "archive"]) => copy::put(state, request, id).await,
        (Method::GET, [id, "logs"]) => streams::logs(state, &request, id).await,
        (Method::GET, [id, "stats"]) => streams::stats(state, &request, id).await,
        (Method::POST, [id, "attach"]) => streams::attach(state, request, id).await,
        (Method::GET, [_, "attach", "ws"]) => Err(ApiError::not_implemented(
            "attaching over a websocket is not there yet: attach with POST /containers/{id}/attach",
        )),
        (Method::POST, [id, "wait"]) => streams::wait(state, &request, id),
        (Method::POST, [id, "exec"]) => exec::create(state, request, id).await,
        (Method::POST, [id, "start"]) => containers::start(state, &request, id).await,
        (Method::POST, [id, "stop"]) => containers::stop(state, &request, id).await,
        (Method::POST, [id, "restart"]) => containers::restart(state, &request, id).await,
        (Method::POST, [id, "kill"]) => containers::kill(state, &request, id).await,
        (Method::POST, [id, "pause"]) => containers::pause(state, id).await,
        (Method::POST, [id, "unpause"]) => containers::unpause(state, id).await,
        (Method::POST, [id, "rename"]) => containers::rename(state, &request, id).await,
        (Method::POST, [id, "resize"]) => containers::resize(state, &request, id).await,
        (Method::POST, [id, "update"]) => containers::update(state, request, id).await,
        _ => Err(ApiError::page_not_found()),
    }
}

async fn image(state: &Arc<State>, request: Request, path: &[&str]) -> Answer {
    let method = request.method.clone();
    match (method, path) {
        (Method::GET, ["json"]) => images::list(state, &request).await,
        (Method::GET, ["get"]) => images::save(state, &request, None).await,
        (Method::GET, ["search"]) => registries::search(state, &request).await,
        (Method::POST, ["load"]) => images::load(state, request).await,
        (Method::POST, ["create"]) => images::create(state, request).await,
        (Method::POST, ["prune"]) => images::prune(state, &request).await,
        (Method::GET, [name @ .., "json"]) if !name.is_empty() => {
            images::inspect(state, &name.join("/")).await
        }
        (Method::GET, [name @ .., "history"]) if !name.is_empty() => {
            images::history(state, &request, &name.join("/")).await
        }
        (Method::GET, [name @ .., "explain"]) if !name.is_empty() => {
            image_explain::explain(state, &name.join("/")).await
        }
        (Method::GET, [name @ .., "diff"]) if !name.is_empty() => {
            image_explain::diff(state, &request, &name.join("/")).await
        }
        (Method::GET, [name @ .., "get"]) if !name.is_empty() => {
            images::save(state, &request, Some(name.join("/"))).await
        }
        (Method::POST, [name @ .., "tag"]) if !name.is_empty() => {
            images::tag(state, &request, &name.join("/")).await
        }
        (Method::POST, [name @ .., "push"]) if !name.is_empty() => {
            images::push(state, request, name.join("/")).await
        }
        (Method::DELETE, name) if !name.is_empty() => images::remove(state, &request, &name.join("/")).await,
        _ => Err(ApiError::page_not_found()),
    }
}

async fn volume(state: &Arc<State>, request: Request, path: &[&str]) -> Answer {
    let method = request.method.clone();
    match (method, path) {
        (Method::GET, []) => volumes::list(state, &request).await,
        (Method::POST, ["create"]) => volumes::create(state, request).await,
        (Method::POST, ["prune"]) => volumes::prune(state, &request).await,
        (Method::GET, [name]) => volumes::inspect(state, name).await,
        (Method::DELETE, [name]) => volumes::remove(state, &request, name).await,
        (Method::PUT, [_]) => absent::swarm(),
        _ => Err(ApiError::page_not_found()),
    }
}

async fn network(state: &Arc<State>, request: Request, path: &[&str]) -> Answer {
    let method = request.method.clone();
    match (method, path) {
        (Method::GET, []) => networks::list(state, &request).await,
        (Method::POST, ["create"]) => networks::create(state, request).await,
        (Method::POST, ["prune"]) => networks::prune(state, &request).await,
        (Method::GET, [name]) => networks::inspect(state, &request, name).await,
        (Method::DELETE, [name]) => networks::remove(state, name).await,
        (Method::POST, [name, "connect"]) => networks::connect(state, request, name).await,
        (Method::POST, [name, "disconnect"]) => networks::disconnect(state, request, name).await,
        _ => Err(ApiError::page_not_found()),
    }
}
