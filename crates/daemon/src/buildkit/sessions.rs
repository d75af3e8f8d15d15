//! Sessions: connections on which clients answer calls, by the ID that builds name them with. They come by
//! `POST /session`, or through a call of [`super::control`].

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use hyper::{Response, StatusCode};
use tokio::sync::{Notify, watch};

use super::transport::Channel;
use crate::body::Body;
use crate::error::ApiError;
use crate::request::Request;
use crate::response::{Answer, status};

/// A build may come before its session does, on another connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Sessions at most.
const MAX_SESSIONS: usize = 1024;
/// Longest ID and key; a key may be a path.
const MAX_TEXT: usize = 8192;
/// Methods a client may offer.
const MAX_METHODS: usize = 256;

/// A client's connection.
#[derive(Debug)]
pub struct Connected {
    /// The calling end.
    pub channel: Channel,
    /// Names the client's directories beyond the session.
    pub shared_key: String,
    methods: HashSet<String>,
    closed: watch::Receiver<bool>,
}

impl Connected {
    /// Whether the client answers a method, e.g. `/moby.filesync.v1.Auth/Credentials`.
    pub fn supports(&self, method: &str) -> bool {
        self.methods.contains(&method.to_ascii_lowercase())
    }

    /// Resolves when the client is gone.
    pub async fn closed(&self) {
        let mut closed = self.closed.clone();
        // Its sender goes with the connection.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}

/// All sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    by_id: Mutex<HashMap<String, Arc<Connected>>>,
    came: Notify,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Connected>>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session of an ID, which may be about to come.
    pub async fn get(&self, id: &str) -> Option<Arc<Connected>> {
        let wait = async {
            loop {
                let came = self.came.notified();
                tokio::pin!(came);
                came.as_mut().enable();
                if let Some(found) = self.lock().get(id) {
                    return Arc::clone(found);
                }
                came.await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.ok()
    }

    /// Answers `POST /session`.
    pub fn accept(self: &Arc<Self>, mut request: Request) -> Answer {
        check_upgrade(&request)?;
        let offer = self.admit(request.headers())?;
        let upgrade = request.on_upgrade();
        let sessions = Arc::clone(self);
        tokio::spawn(async move {
            match upgrade.await {
                Ok(upgraded) => sessions.hold(offer, upgraded).await,
                Err(error) => tracing::debug!(%error, "the client went away before the upgrade"),
            }
        });
        Ok(upgraded())
    }

    /// Takes the session that a client says it has in its headers.
    ///
    /// # Errors
    /// It has no ID or one that is taken, or there are too many sessions.
    pub fn admit(&self, headers: &HeaderMap) -> Result<Offer, ApiError> {
        let id = text(headers, "x-docker-expose-session-uuid")?;
        if id.is_empty() {
            return Err(ApiError::bad_request(
                "the session has no ID: send X-Docker-Expose-Session-Uuid",
            ));
        }
        let shared_key = text(headers, "x-docker-expose-session-sharedkey")?;
        let methods: HashSet<String> = headers
            .get_all("x-docker-expose-session-grpc-method")
            .iter()
            .take(MAX_METHODS)
            .filter_map(|method| method.to_str().ok())
            .map(str::to_ascii_lowercase)
            .collect();
        let sessions = self.lock();
        if sessions.contains_key(&id) {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                format!("session {id} already exists"),
            ));
        }
        if sessions.len() >= MAX_SESSIONS {
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("there are {MAX_SESSIONS} build sessions already: try again when some have ended"),
            ));
        }
        Ok(Offer {
            id,
            shared_key,
            methods,
        })
    }

    /// Calls the client over `connection` until one of them ends it.
    pub async fn hold<C>(&self, offer: Offer, connection: C)
    where
        C: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (channel, connection) = match Channel::open(connection).await {
            Ok(opened) => opened,
            Err(error) => return tracing::debug!(%error, "a session does not begin"),
        };
        let Offer {
            id,
            shared_key,
            methods,
        } = offer;
        let (close, closed) = watch::channel(false);
        let connected = Arc::new(Connected {
            channel,
            shared_key,
            methods,
            closed,
        });
        self.lock().entry(id.clone()).or_insert(Arc::clone(&connected));
        self.came.notify_waiters();
        let end = connection.await;
        tracing::debug!(session = id, ?end, "a session ended");
        let mut all = self.lock();
        if all.get(&id).is_some_and(|known| Arc::ptr_eq(known, &connected)) {
            all.remove(&id);
        }
        drop(all);
        let _ = close.send(true);
    }
}

/// What a client says of the session it opens.
#[derive(Debug)]
pub struct Offer {
    id: String,
    shared_key: String,
    methods: HashSet<String>,
}

/// Refuses what does not ask for HTTP/2.
pub fn check_upgrade(request: &Request) -> Result<(), ApiError> {
    match request.headers().get(UPGRADE).map(HeaderValue::as_bytes) {
        Some(protocol) if protocol.eq_ignore_ascii_case(b"h2c") => Ok(()),
        Some(protocol) => Err(ApiError::bad_request(format!(
            "protocol {} not supported: h2c is",
            String::from_utf8_lossy(protocol)
        ))),
        None => Err(ApiError::bad_request(
            "no upgrade proto in request: send Upgrade: h2c",
        )),
    }
}

/// The answer that ends HTTP/1.1.
pub fn upgraded() -> Response<Body> {
    let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("h2c"));
    response
}

fn text(headers: &HeaderMap, name: &str) -> Result<String, ApiError> {
    let Some(value) = headers.get(name) else {
        return Ok(String::new());
    };
    match value.to_str() {
        Ok(text) if text.len() <= MAX_TEXT => Ok(text.to_owned()),
        _ => Err(ApiError::bad_request(format!(
            "the header {name} is not text of at most {MAX_TEXT} bytes"
        ))),
    }
}
