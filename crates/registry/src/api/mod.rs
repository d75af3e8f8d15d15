//! What each route does, by the distribution specification.

pub mod blobs;
pub mod lists;
pub mod manifests;
pub mod uploads;

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use vessel_image::Digest;

use crate::http::{Body, Response};

/// The digest of what an answer has or is about.
pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// The digest of the manifest that a pushed one says something about.
pub const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
/// Tags that were set.
pub const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
/// Filters of a query for referrers that were applied.
pub const OCI_FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Identifies an upload, as `docker-registry` does.
pub const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// An answer without a body.
pub fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// An answer with a document.
pub fn document(media_type: &'static str, bytes: Vec<u8>) -> Response {
    let mut response = Response::new(bytes.into());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// Text of ours as a header's value: digests, names and numbers always are.
pub fn value(text: impl AsRef<str>) -> HeaderValue {
    HeaderValue::from_str(text.as_ref()).unwrap_or(HeaderValue::from_static(""))
}

/// A request's header as text.
pub fn field(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Content that never changes under its digest.
pub fn describe(headers: &mut HeaderMap, digest: &Digest) {
    let digest = digest.to_string();
    headers.insert(header::ETAG, value(format!("\"{digest}\"")));
    headers.insert(CONTENT_DIGEST, value(digest));
}
