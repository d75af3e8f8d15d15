//! Responses and the headers every one of them has.

use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, SERVER};
use hyper::{Response, StatusCode};
use serde::Serialize;
use vessel_api::ErrorResponse;

use crate::body::Body;
use crate::error::ApiError;
use crate::version::ApiVersion;

/// What a route gives back.
pub type Answer = Result<Response<Body>, ApiError>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A JSON answer with status 200.
pub fn json<T: Serialize + ?Sized>(value: &T) -> Answer {
    json_with(StatusCode::OK, value)
}

/// A JSON answer.
pub fn json_with<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Answer {
    let text = serde_json::to_vec(value)
        .map_err(|error| ApiError::internal(format!("the answer could not be written as JSON: {error}")))?;
    Ok(written(status, text))
}

/// JSON that is text already, with status 200.
pub fn json_text(text: Vec<u8>) -> Answer {
    Ok(written(StatusCode::OK, text))
}

fn written(status: StatusCode, mut text: Vec<u8>) -> Response<Body> {
    // Docker ends its JSON with a newline.
    text.push(b'\n');
    with_type(status, JSON, Body::whole(text))
}

/// A status without a body.
pub fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    response
}

/// 204.
pub fn no_content() -> Answer {
    Ok(status(StatusCode::NO_CONTENT))
}

/// A body of some content type.
pub fn with_type(code: StatusCode, content_type: HeaderValue, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// A streamed body with status 200.
pub fn stream(content_type: &'static str, body: Body) -> Answer {
    Ok(with_type(
        StatusCode::OK,
        HeaderValue::from_static(content_type),
        body,
    ))
}

/// The answer to a refused request.
pub fn error(error: &ApiError) -> Response<Body> {
    let status_code = error.status();
    if status_code == StatusCode::NOT_MODIFIED {
        return status(status_code);
    }
    match json_with(status_code, &ErrorResponse::new(error.message())) {
        Ok(response) => response,
        Err(_) => status(status_code),
    }
}

/// The headers by which clients know a Docker daemon and its version.
pub fn add_common_headers(headers: &mut HeaderMap) {
    const API_VERSION: HeaderName = HeaderName::from_static("api-version");
    const EXPERIMENTAL: HeaderName = HeaderName::from_static("docker-experimental");
    const OS_TYPE: HeaderName = HeaderName::from_static("ostype");
    headers.insert(API_VERSION, HeaderValue::from_static(ApiVersion::NEWEST_TEXT));
    headers.insert(EXPERIMENTAL, HeaderValue::from_static("false"));
    headers.insert(OS_TYPE, HeaderValue::from_static("linux"));
    headers.insert(
        SERVER,
        HeaderValue::from_static(concat!("Vessel/", env!("CARGO_PKG_VERSION"), " (linux)")),
    );
}
