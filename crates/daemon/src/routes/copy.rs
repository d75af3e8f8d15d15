//! Files of containers: `cp` both ways, `diff`, `export`.

use std::io;
use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use vessel_api::PathStat;
use vessel_engine::files::{ExtractOptions, TarJob};
use vessel_engine::transfer;

use crate::base64;
use crate::body::Body;
use crate::error::ApiError;
use crate::request::Request;
use crate::response::{self, Answer, json, status};
use crate::server::{Busy, State};

const PATH_STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");

/// `GET /containers/{id}/changes`.
pub async fn changes(state: &Arc<State>, id: &str) -> Answer {
    let changes = state.engine.container_changes(id).await?;
    // Docker says `null` for nothing.
    if changes.is_empty() {
        json(&serde_json::Value::Null)
    } else {
        json(&changes)
    }
}

/// `GET /containers/{id}/export`.
pub async fn export(state: &Arc<State>, id: &str) -> Answer {
    let archive = state.engine.container_export(id).await?;
    response::stream("application/octet-stream", tar_body(state, archive)?)
}

fn path(request: &Request) -> Result<&str, ApiError> {
    match request.query.text("path") {
        "" => Err(ApiError::bad_request("bad parameter: 'path' cannot be empty")),
        path if path.contains('\0') => Err(ApiError::bad_request(
            "bad parameter: 'path' cannot contain a zero byte",
        )),
        path => Ok(path),
    }
}

fn stat_header(stat: &PathStat) -> Result<HeaderValue, ApiError> {
    let unwritable =
        |error: &dyn std::fmt::Display| ApiError::internal(format!("cannot describe the path: {error}"));
    let text = serde_json::to_vec(stat).map_err(|error| unwritable(&error))?;
    HeaderValue::from_str(&base64::encode(&text)).map_err(|error| unwritable(&error))
}

/// `HEAD /containers/{id}/archive`: what is at a path.
pub async fn head(state: &Arc<State>, request: &Request, id: &str) -> Answer {
    let stat = state.engine.container_stat_path(id, path(request)?).await?;
    let mut response = status(StatusCode::OK);
    response.headers_mut().insert(PATH_STAT, stat_header(&stat)?);
    Ok(response)
}

/// `GET /containers/{id}/archive`: what is at a path, as a tar archive.
pub async fn get(state: &Arc<State>, request: &Request, id: &str) -> Answer {
    let (stat, archive) = state.engine.container_archive(id, path(request)?).await?;
    let mut response = response::stream("application/x-tar", tar_body(state, archive)?)?;
    response.headers_mut().insert(PATH_STAT, stat_header(&stat)?);
    Ok(response)
}

/// `PUT /containers/{id}/archive`: unpacks a tar archive into a directory.
pub async fn put(state: &Arc<State>, request: Request, id: &str) -> Answer {
    let options = ExtractOptions {
        no_overwrite_dir_non_dir: request.query.flag("noOverwriteDirNonDir"),
        copy_uid_gid: request.query.flag("copyUIDGID"),
    };
    let (engine, id, path) = (
        Arc::clone(&state.engine),
        id.to_owned(),
        path(&request)?.to_owned(),
    );
    let reader = request.reader();
    state
        .finish(async move {
            engine.container_extract(&id, &path, options, reader).await?;
            Ok(status(StatusCode::OK))
        })
        .await
}

/// A body that a thread of its own fills with an archive. If that fails, the stream breaks off: a client must not take
/// half an archive for a whole one.
pub fn tar_body(state: &Arc<State>, archive: TarJob) -> Result<Body, ApiError> {
    let (feed, body) = Body::channel();
    let busy = Busy::new(state);
    transfer::spawn(move || {
        let _busy = busy;
        let mut writer = feed.writer();
        let result = archive.write_to(&mut writer).map_err(io::Error::other);
        if let Err(error) = result.and_then(|()| io::Write::flush(&mut writer)) {
            tracing::debug!(%error, "an archive broke off");
            writer.abort(error);
        }
    })?;
    Ok(body)
}
