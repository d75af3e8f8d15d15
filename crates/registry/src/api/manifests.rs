//! Manifests: get, head, put, delete; and tags' removal.

use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode};

use super::{CONTENT_DIGEST, OCI_SUBJECT, OCI_TAG, describe, document, empty, field, value};
use crate::error::{Code, Error, Result};
use crate::http::fields::none_match;
use crate::http::receive::{blocking, whole};
use crate::http::{Body, Request, Response, query};
use crate::manifest::{MAX_MANIFEST, Manifest, too_large};
use crate::name::{ManifestName, Repository, Tag};
use crate::storage::{Storage, StoredManifest};

/// Tags that one push may set.
const MAX_TAGS: usize = 100;

/// `GET` and `HEAD`
pub fn get(
    storage: &Storage,
    method: &Method,
    headers: &HeaderMap,
    name: &Repository,
    which: &ManifestName,
) -> Result<Response> {
    let StoredManifest { digest, raw } = storage.manifest(name, which)?;
    if none_match(field(headers, header::IF_NONE_MATCH), &digest.to_string()) {
        let mut response = empty(StatusCode::NOT_MODIFIED);
        describe(response.headers_mut(), &digest);
        return Ok(response);
    }
    let length = raw.len();
    let media_type = Manifest::media_type_of(&raw)?;
    let mut response = document(media_type, raw);
    let headers = response.headers_mut();
    describe(headers, &digest);
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    if method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    Ok(response)
}

/// `PUT`
pub async fn put(
    storage: &Storage,
    mut request: Request,
    name: Repository,
    which: ManifestName,
) -> Result<Response> {
    let tags: Vec<Tag> = query::all(request.uri().query(), "tag")
        .take(MAX_TAGS + 1)
        .map(|tag| Tag::parse(&tag))
        .collect::<Result<_>>()?;
    if tags.len() > MAX_TAGS {
        return Err(Error::new(
            Code::TagInvalid,
            format!("one push sets at most {MAX_TAGS} tags"),
        ));
    }
    let content_type = match field(request.headers(), header::CONTENT_TYPE) {
        Some(text) => Some(text.to_owned()),
        None => {
            return Err(Error::new(
                Code::ManifestInvalid,
                "the manifest has no Content-Type",
            ));
        }
    };
    let raw = whole(request.body_mut(), MAX_MANIFEST, too_large).await?;
    let (storage, to, wanted, set) = (storage.clone(), name.clone(), which.clone(), tags.clone());
    let put =
        blocking(move || storage.put_manifest(&to, &wanted, &set, content_type.as_deref(), &raw, false))
            .await?;
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(
        header::LOCATION,
        value(format!("/v2/{name}/manifests/{}", put.digest)),
    );
    headers.insert(CONTENT_DIGEST, value(put.digest.to_string()));
    headers.insert(header::CONTENT_LENGTH, 0.into());
    if let Some(subject) = put.subject {
        headers.insert(OCI_SUBJECT, value(subject.to_string()));
    }
    for tag in tags {
        headers.append(OCI_TAG, value(tag.as_str()));
    }
    Ok(response)
}

/// `DELETE`
pub async fn delete(storage: &Storage, name: Repository, which: ManifestName) -> Result<Response> {
    let storage = storage.clone();
    blocking(move || match which {
        ManifestName::Tag(tag) => storage.delete_tag(&name, &tag),
        ManifestName::Digest(digest) => storage.delete_manifest(&name, &digest),
    })
    .await?;
    Ok(empty(StatusCode::ACCEPTED))
}
