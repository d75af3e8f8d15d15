//! Uploads: begin (also with the whole blob, also by mounting), chunks, status, end, cancel.

use hyper::header::{self, HeaderName};
use hyper::{HeaderMap, Method, StatusCode};
use vessel_image::{Algorithm, Digest};

use super::{CONTENT_DIGEST, UPLOAD_ID, empty, value};
use crate::error::{Code, Error, Result};
use crate::http::fields::content_range;
use crate::http::receive::{blocking, into_upload};
use crate::http::{Request, Response, query};
use crate::metrics::Metrics;
use crate::name::{self, Repository};
use crate::storage::Storage;

/// What a mount may take from.
pub enum Sources {
    /// A repository the client named and may read.
    Named(Repository),
    /// Any.
    Any,
    /// Those the client may read.
    These(Vec<Repository>),
    /// None: the client may not read what it named.
    None,
}

fn location(response: &mut Response, name: &Repository, id: &str, size: u64) {
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(format!("/v2/{name}/blobs/uploads/{id}")));
    headers.insert(header::RANGE, value(format!("0-{}", size.saturating_sub(1))));
    headers.insert(UPLOAD_ID, value(id));
    headers.insert(header::CONTENT_LENGTH, 0.into());
}

fn created(name: &Repository, digest: &Digest) -> Response {
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(format!("/v2/{name}/blobs/{digest}")));
    headers.insert(CONTENT_DIGEST, value(digest.to_string()));
    headers.insert(header::CONTENT_LENGTH, 0.into());
    response
}

fn progress(status: StatusCode, name: &Repository, id: &str, size: u64) -> Response {
    let mut response = empty(status);
    location(&mut response, name, id, size);
    response
}

/// `POST /v2/NAME/blobs/uploads/`
pub async fn begin(
    storage: &Storage,
    metrics: &Metrics,
    request: Request,
    name: Repository,
    owner: &str,
    sources: Sources,
) -> Result<Response> {
    let query = request.uri().query().map(str::to_owned);
    let parameter = |key: &str| query::get(query.as_deref(), key);
    if let Some(digest) = parameter("mount") {
        let digest = name::digest(&digest)?;
        let (storage, to, wanted) = (storage.clone(), name.clone(), digest.clone());
        let mounted = blocking(move || match sources {
            Sources::Named(from) => storage.mount(&from, &wanted, &to),
            Sources::Any => storage.mount_any(&wanted, &to),
            Sources::These(names) => {
                for from in names {
                    if storage.mount(&from, &wanted, &to)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Sources::None => Ok(false),
        });
        if mounted.await? {
            return Ok(created(&name, &digest));
        }
    }
    let digest = parameter("digest").map(|text| name::digest(&text)).transpose()?;
    let algorithm = match (&digest, parameter("digest-algorithm").as_deref()) {
        (Some(digest), _) => digest.algorithm(),
        (None, None | Some("sha256")) => Algorithm::Sha256,
        (None, Some("sha512")) => Algorithm::Sha512,
        (None, Some(other)) => {
            return Err(Error::new(
                Code::DigestInvalid,
                format!(
                    "the digest algorithm {} is not supported: sha256 and sha512 are",
                    name::show(other)
                ),
            ));
        }
    };
    let begun = {
        let (storage, name, owner) = (storage.clone(), name.clone(), owner.to_owned());
        blocking(move || storage.begin_upload(&name, &owner, algorithm)).await?
    };
    let Some(digest) = digest else {
        let id = begun.id().to_owned();
        return Ok(progress(StatusCode::ACCEPTED, &name, &id, 0));
    };
    let id = begun.id().to_owned();
    let stored = into_upload(begun, request.into_body(), &metrics.received).await;
    let upload = match stored {
        Ok(upload) => upload,
        Err(error) => {
            // The client was never told of this upload.
            let (storage, name) = (storage.clone(), name.clone());
            let _ = blocking(move || storage.resume_upload(&name, &id)?.cancel()).await;
            return Err(error);
        }
    };
    end(upload, name, digest).await
}

async fn end(upload: crate::storage::Upload, name: Repository, digest: Digest) -> Result<Response> {
    let wanted = digest.clone();
    blocking(move || upload.commit(&wanted)).await?;
    Ok(created(&name, &digest))
}

/// Everything below `/v2/NAME/blobs/uploads/ID`
pub async fn act(
    storage: &Storage,
    metrics: &Metrics,
    request: Request,
    name: Repository,
    id: String,
) -> Result<Response> {
    match *request.method() {
        Method::GET | Method::HEAD => {
            let status = storage.upload_status(&name, &id)?;
            let mut response = progress(StatusCode::NO_CONTENT, &name, &id, status.size);
            response.headers_mut().remove(header::CONTENT_LENGTH);
            Ok(response)
        }
        Method::DELETE => {
            let storage = storage.clone();
            blocking(move || storage.resume_upload(&name, &id)?.cancel()).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        Method::PATCH | Method::PUT => chunk(storage, metrics, request, name, id).await,
        _ => Err(Error::new(
            Code::Unsupported,
            "an upload takes GET, PATCH, PUT and DELETE",
        )),
    }
}

async fn chunk(
    storage: &Storage,
    metrics: &Metrics,
    request: Request,
    name: Repository,
    id: String,
) -> Result<Response> {
    // Looked at before the upload: a mistake here costs nothing of it.
    let digest = match *request.method() {
        Method::PUT => {
            let digest = query::get(request.uri().query(), "digest")
                .ok_or_else(|| Error::new(Code::DigestInvalid, "the parameter digest is missing"))?;
            Some(name::digest(&digest)?)
        }
        _ => None,
    };
    let size = storage.upload_status(&name, &id)?.size;
    if let Err(error) = in_order(request.headers(), size) {
        let mut response = crate::registry::failed(&error);
        location(&mut response, &name, &id, size);
        response.headers_mut().remove(header::CONTENT_LENGTH);
        return Ok(response);
    }
    let upload = {
        let (storage, name, id) = (storage.clone(), name.clone(), id.clone());
        blocking(move || storage.resume_upload(&name, &id)).await?
    };
    let upload = into_upload(upload, request.into_body(), &metrics.received).await?;
    match digest {
        Some(digest) => end(upload, name, digest).await,
        None => Ok(progress(StatusCode::ACCEPTED, &name, &id, upload.size())),
    }
}

/// Whether a chunk begins where the last one ended, and is as long as it says.
fn in_order(headers: &HeaderMap, size: u64) -> Result<()> {
    const CONTENT_RANGE: HeaderName = header::CONTENT_RANGE;
    let Some(field) = headers.get(CONTENT_RANGE) else {
        return Ok(());
    };
    let (first, last) = field.to_str().ok().and_then(content_range).ok_or_else(|| {
        Error::new(
            Code::RangeInvalid,
            "the Content-Range of a chunk looks like 0-99: first and last offset",
        )
    })?;
    if first != size {
        return Err(Error::new(
            Code::RangeInvalid,
            format!("the chunk begins at {first}, but {size} bytes were stored; go on from there"),
        ));
    }
    let length = super::field(headers, header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length != (last - first).saturating_add(1)) {
        return Err(Error::new(
            Code::SizeInvalid,
            "the chunk's Content-Range and Content-Length differ",
        ));
    }
    Ok(())
}
