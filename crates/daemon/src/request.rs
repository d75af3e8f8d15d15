//! A request as the routes see it: version, path, query, and a body that is read with bounds.

use std::sync::Arc;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, UPGRADE};
use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;
use vessel_api::describe::{Describe, canonical};

use crate::body::{BodyReader, discard};
use crate::error::ApiError;
use crate::hijack::Way;
use crate::oplog::{Note, Peer};
use crate::query::Query;
use crate::shape;
use crate::takeover::{self, Taker};
use crate::version::ApiVersion;

/// JSON bodies are refused when they are larger.
pub const MAX_JSON: usize = 4 * 1024 * 1024;

/// A request on its way to a route.
#[derive(Debug)]
pub struct Request {
    /// `GET`, `POST` and so on.
    pub method: Method,
    /// The version the client speaks.
    pub version: ApiVersion,
    /// The route it took: method and path of the table.
    pub route: String,
    /// The decoded query.
    pub query: Query,
    /// What it tells the operation log.
    pub note: Note,
    /// Who sent it.
    pub peer: Option<Arc<Peer>>,
    inner: hyper::Request<Incoming>,
    taker: Taker,
}

impl Request {
    /// Takes a request whose path was split off already.
    pub fn new(inner: hyper::Request<Incoming>, version: ApiVersion, taker: Taker) -> Result<Self, ApiError> {
        let query = Query::parse(inner.uri().query())?;
        Ok(Self {
            method: inner.method().clone(),
            version,
            route: String::new(),
            query,
            note: Note::default(),
            peer: None,
            inner,
            taker,
        })
    }

    /// The `filters` parameter.
    pub fn filters(&self) -> Result<vessel_engine::Filters, ApiError> {
        Ok(vessel_engine::Filters::parse(self.query.text("filters"))?)
    }

    /// The headers.
    pub fn headers(&self) -> &hyper::HeaderMap {
        self.inner.headers()
    }

    /// A header that is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.inner.headers().get(name)?.to_str().ok()
    }

    /// How this request's connection leaves HTTP. `read`: whether the body was; if not, it is what follows.
    pub fn leave(&mut self, read: bool) -> Way {
        if self.inner.headers().contains_key(UPGRADE) {
            return Way::Upgrade(self.on_upgrade());
        }
        let headers = self.inner.headers();
        let length = headers
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        let body = match length {
            _ if !read => takeover::Body::Length(0),
            None if headers.contains_key(TRANSFER_ENCODING) => takeover::Body::Chunked,
            length => takeover::Body::Length(length.unwrap_or(0)),
        };
        Way::Take(self.taker.clone(), body)
    }

    /// The connection once the response was sent. The body must have been read.
    pub fn on_upgrade(&mut self) -> hyper::upgrade::OnUpgrade {
        hyper::upgrade::on(&mut self.inner)
    }

    /// Takes the body off the connection when nobody wants it.
    pub async fn discard_body(&mut self) {
        if !self.inner.body().is_end_stream() {
            discard(self.inner.body_mut()).await;
        }
    }

    /// The body for a blocking thread.
    pub fn reader(self) -> BodyReader {
        BodyReader::new(self.inner.into_body())
    }

    /// Reads a JSON body; an empty one is `None`.
    pub async fn json_or_none<T: DeserializeOwned + Describe>(&mut self) -> Result<Option<T>, ApiError> {
        let read = self.read_json().await;
        if read.is_err() {
            self.discard_body().await;
        }
        read
    }

    async fn read_json<T: DeserializeOwned + Describe>(&mut self) -> Result<Option<T>, ApiError> {
        let empty = self.inner.body().is_end_stream();
        self.check_content_type(empty)?;
        if empty {
            return Ok(None);
        }
        let bytes = self.bytes().await?;
        if bytes.is_empty() {
            return Err(ApiError::bad_request(
                "invalid JSON: got EOF while reading request body",
            ));
        }
        let invalid = |error| ApiError::bad_request(format!("invalid JSON: {error}"));
        let mut value = serde_json::from_slice(&bytes).map_err(invalid)?;
        // Docker's decoder does not mind in which letters names are written.
        canonical::<T>(&mut value);
        self.note.body(&self.route, &value);
        shape::request(&self.route, self.version, &mut value)?;
        // A `null` leaves the zero value, as any other value would.
        serde_json::from_value(value).map_err(invalid)
    }

    /// Reads a JSON body of which nothing is known but that it can be read; an empty one is the zero value.
    pub async fn json_as<T: DeserializeOwned + Default>(&mut self) -> Result<T, ApiError> {
        let value = self.json_or_none::<serde_json::Value>().await?;
        let read = value.map(serde_json::from_value).transpose();
        Ok(read
            .map_err(|error| ApiError::bad_request(format!("invalid JSON: {error}")))?
            .unwrap_or_default())
    }

    /// Reads a JSON body; an empty one is the zero value.
    pub async fn json<T: DeserializeOwned + Describe + Default>(&mut self) -> Result<T, ApiError> {
        Ok(self.json_or_none().await?.unwrap_or_default())
    }

    /// Reads the body, whatever it is.
    async fn bytes(&mut self) -> Result<Bytes, ApiError> {
        match Limited::new(self.inner.body_mut(), MAX_JSON).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!(
                    "the request body is larger than {} MiB, the most that is taken",
                    MAX_JSON >> 20
                ),
            )),
            Err(error) => Err(ApiError::bad_request(format!(
                "the request body broke off: {error}"
            ))),
        }
    }

    /// Docker wants `application/json` wherever there is a body.
    fn check_content_type(&self, empty: bool) -> Result<(), ApiError> {
        let given = self.inner.headers().get(CONTENT_TYPE);
        let given = match given {
            None if empty => return Ok(()),
            None => "",
            Some(value) => value
                .to_str()
                .map_err(|_| ApiError::bad_request("malformed Content-Type header: it is not ASCII text"))?,
        };
        let essence = given.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case("application/json") {
            return Ok(());
        }
        if essence.is_empty() {
            return Err(ApiError::bad_request(
                "malformed Content-Type header (): mime: no media type",
            ));
        }
        Err(ApiError::bad_request(format!(
            "unsupported Content-Type header ({given}): must be 'application/json'"
        )))
    }
}
