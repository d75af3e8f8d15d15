//! Blobs: get, head, delete.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode};
use vessel_image::Digest;

use super::{describe, empty, field, value};
use crate::error::{Error, Result};
use crate::http::fields::{Range, none_match, range};
use crate::http::mapping::Mapping;
use crate::http::receive::blocking;
use crate::http::server::Client;
use crate::http::{Body, Response};
use crate::name::Repository;
use crate::storage::{Content, Storage};

/// What is smaller is read and sent with the head: a mapping costs more than a copy.
const SMALL: u64 = 64 << 10;

/// `GET` and `HEAD`
pub fn get(
    storage: &Storage,
    client: &Client,
    method: &Method,
    headers: &HeaderMap,
    name: &Repository,
    digest: &Digest,
) -> Result<Response> {
    if method == Method::HEAD {
        let size = storage.stat_blob(name, digest)?;
        let mut response = empty(StatusCode::OK);
        common(response.headers_mut(), digest);
        response.headers_mut().insert(header::CONTENT_LENGTH, size.into());
        return Ok(response);
    }
    if none_match(field(headers, header::IF_NONE_MATCH), &digest.to_string()) {
        storage.stat_blob(name, digest)?;
        let mut response = empty(StatusCode::NOT_MODIFIED);
        describe(response.headers_mut(), digest);
        return Ok(response);
    }
    content(storage.blob(name, digest)?, client, headers, digest)
}

/// Answers with a blob, or the part of it that is asked for.
fn content(content: Content, client: &Client, headers: &HeaderMap, digest: &Digest) -> Result<Response> {
    let size = content.size;
    let (status, from, end) = match range(field(headers, header::RANGE), size) {
        Range::Whole => (StatusCode::OK, 0, size),
        Range::Part(from, end) => (StatusCode::PARTIAL_CONTENT, from, end),
        Range::Unsatisfiable => {
            let mut response = empty(StatusCode::RANGE_NOT_SATISFIABLE);
            response
                .headers_mut()
                .insert(header::CONTENT_RANGE, value(format!("bytes */{size}")));
            return Ok(response);
        }
    };
    let fail = |e| Error::io(format!("cannot read blob {digest}"), e);
    let body = if end - from <= SMALL {
        // No larger than `SMALL`.
        let mut bytes = vec![0; (end - from) as usize];
        content.file.read_exact_at(&mut bytes, from).map_err(fail)?;
        Body::from(bytes)
    } else if let Some(files) = &client.files {
        let mapping = Arc::new(Mapping::new(content.file, size).map_err(fail)?);
        files.add(&mapping);
        Body::mapped(mapping, from, end)
    } else {
        Body::file(content.file, from, end)
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    common(headers, digest);
    if status == StatusCode::PARTIAL_CONTENT {
        headers.insert(
            header::CONTENT_RANGE,
            value(format!("bytes {from}-{}/{size}", end - 1)),
        );
    }
    headers.insert(header::CONTENT_LENGTH, (end - from).into());
    Ok(response)
}

fn common(headers: &mut HeaderMap, digest: &Digest) {
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("max-age=31536000, immutable"),
    );
    describe(headers, digest);
}

/// `DELETE`
pub async fn delete(storage: &Storage, name: Repository, digest: Digest) -> Result<Response> {
    let storage = storage.clone();
    blocking(move || storage.delete_blob(&name, &digest)).await?;
    Ok(empty(StatusCode::ACCEPTED))
}
