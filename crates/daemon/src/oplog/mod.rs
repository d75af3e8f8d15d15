//! The operation log: who did what, when, and what came of it.
//!
//! Every request that changes something is one line of JSON, appended with one write(2) when it is answered (or, with answers
//! that stream, when they end), so it survives the end of the daemon however it comes; nothing is synced. Requests that only
//! read are not logged. Nothing secret is: see [`fields`]. The file and three older ones are bounded together: see [`file`].

mod fields;
mod file;
mod peer;
mod reader;
mod subject;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use hyper::{Method, Response};
use vessel_api as api;
use vessel_engine::time;

use crate::body::Body;
use crate::error::ApiError;
use crate::query::Query;
use crate::response::Answer;
use crate::table::Route;
pub use file::OperationLog;
pub use peer::Peer;
pub use reader::{Reading, follow};

/// The longest text of an error that is kept.
const MAX_ERROR: usize = 500;

/// Routes that change nothing although they are no `GET`, or that are part of another one that is logged.
const QUIET: [&str; 8] = [
    "POST /auth",
    "POST /session",
    "POST /grpc",
    "POST /build/cancel",
    "POST /containers/{id:.*}/attach",
    "POST /containers/{id:.*}/wait",
    "POST /containers/{id:.*}/resize",
    "POST /exec/{id}/resize",
];

/// Bodies of these routes hold secrets, which messages about them may repeat.
const SECRETIVE: [&str; 6] = [
    "POST /containers/create",
    "POST /containers/{id:.*}/exec",
    "POST /build",
    "POST /commit",
    "POST /volumes/create",
    "POST /images/create",
];

/// What a request has told of itself that may be logged.
#[derive(Debug, Clone, Default)]
pub struct Note(Arc<Mutex<api::Map<String>>>);

impl Note {
    /// A body of JSON was read.
    pub fn body(&self, route: &str, body: &serde_json::Value) {
        let mut details = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fields::of_body(route, body, &mut details);
    }

    fn take(&self) -> api::Map<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether a route's requests are logged.
pub fn is_logged(route: &Route) -> bool {
    // It starts a process, whatever its method has to be.
    let starts = route.path == "/vessel/exec/{id}/ws";
    (starts || !matches!(route.method, Method::GET | Method::HEAD))
        && route.answer.0 < 400
        && !QUIET.contains(&route.name().as_str())
}

/// A request that is being answered. It is logged when it is dropped, too: then its client did not wait.
#[derive(Debug)]
pub struct Pending {
    log: Arc<OperationLog>,
    line: api::Operation,
    note: Note,
    began: Instant,
    secretive: bool,
    written: bool,
}

impl Pending {
    /// A request begins.
    pub fn new(
        log: &Arc<OperationLog>,
        peer: &Peer,
        id: &str,
        route: &Route,
        places: &[String],
        query: &Query,
        note: Note,
    ) -> Self {
        let mut line = peer.line();
        line.id = id.to_owned();
        line.time = time::rfc3339(time::now());
        line.action = action(route);
        line.object = fields::shortened(places.first().map_or("", String::as_str));
        fields::of_query(query, &mut line.details);
        Self {
            log: Arc::clone(log),
            line,
            note,
            began: Instant::now(),
            secretive: SECRETIVE.contains(&route.name().as_str()),
            written: false,
        }
    }

    /// A build of BuildKit's protocols begins, which is no request of its own.
    pub fn build(log: &Arc<OperationLog>, peer: &Peer, attributes: api::Map<String>) -> Self {
        let mut line = peer.line();
        line.id = vessel_engine::operation::Operation::new(String::new()).id;
        line.time = time::rfc3339(time::now());
        line.action = "image build".to_owned();
        line.details = attributes
            .into_iter()
            .map(|(name, value)| (name, fields::shortened(&value)))
            .collect();
        Self {
            log: Arc::clone(log),
            line,
            note: Note::default(),
            began: Instant::now(),
            secretive: true,
            written: false,
        }
    }

    /// Something the daemon itself does begins.
    pub fn daemon(log: &Arc<OperationLog>, action: &str) -> Self {
        let mut pending = Self::build(log, &Peer::daemon(), api::Map::new());
        action.clone_into(&mut pending.line.action);
        pending
    }

    /// It came to an end.
    pub fn done(mut self, status: u16, error: &str) {
        self.write(status, error);
    }

    /// It was answered: what streams goes on, and is logged at its end.
    pub fn answered(mut self, answer: Answer) -> Answer {
        match answer {
            Err(error) => {
                let message = if self.secretive { "" } else { error.message() };
                self.write(error.status().as_u16(), message);
                Err(error)
            }
            Ok(answer) => {
                let status = answer.status().as_u16();
                let (parts, body) = answer.into_parts();
                let body = match body {
                    Body::Channel(mut receiver) => {
                        let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
                        self.streamed(status, stream)
                    }
                    Body::Stream(stream) => self.streamed(status, stream),
                    whole => {
                        self.write(status, "");
                        whole
                    }
                };
                Ok(Response::from_parts(parts, body))
            }
        }
    }

    fn streamed(
        mut self,
        status: u16,
        stream: impl Stream<Item = std::io::Result<Bytes>> + Send + Unpin + 'static,
    ) -> Body {
        self.line.status = status;
        Body::stream(futures_util::stream::unfold(
            (self, stream),
            move |(mut pending, mut stream)| async move {
                match stream.next().await {
                    Some(piece) => {
                        if let Ok(piece) = &piece {
                            pending.saw(piece);
                        }
                        Some((piece, (pending, stream)))
                    }
                    None => {
                        let error = std::mem::take(&mut pending.line.error);
                        pending.write(status, &error);
                        None
                    }
                }
            },
        ))
    }

    /// Progress comes as lines of JSON; one with an error is the last.
    fn saw(&mut self, piece: &[u8]) {
        const MARK: &[u8] = b"\"errorDetail\"";
        if !piece.windows(MARK.len()).any(|part| part == MARK) {
            return;
        }
        let said = piece
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
            .find_map(|line| Some(line.get("error")?.as_str()?.to_owned()));
        self.line.error = match said {
            Some(said) if !self.secretive => said,
            _ => "it failed after it had begun".to_owned(),
        };
    }

    fn write(&mut self, status: u16, error: &str) {
        if std::mem::replace(&mut self.written, true) {
            return;
        }
        self.line.details.append(&mut self.note.take());
        self.line.status = status;
        self.line.error = error.chars().take(MAX_ERROR).collect();
        self.line.milliseconds = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.log.append(&self.line);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.write(0, "the client did not wait for the end");
    }
}

/// What a route does, in two words: `container remove`, `image prune`.
fn action(route: &Route) -> String {
    let words: Vec<&str> = route
        .path
        .split('/')
        .filter(|word| !word.is_empty() && !word.starts_with('{'))
        .collect();
    let named = match words.as_slice() {
        ["commit"] => Some("container commit"),
        ["build"] => Some("image build"),
        ["build", "prune"] => Some("builder prune"),
        ["images", "create"] => Some("image pull"),
        ["containers", "archive"] => Some("container copy"),
        ["containers", "exec"] => Some("exec create"),
        ["vessel", "exec", "ws"] => Some("exec terminal"),
        ["vessel", "undo"] => Some("undo"),
        ["vessel", "bin", "empty"] => Some("bin empty"),
        _ => None,
    };
    if let Some(named) = named {
        return named.to_owned();
    }
    let thing = words
        .first()
        .map_or("", |word| word.strip_suffix('s').unwrap_or(word));
    let verb = match (route.method == Method::DELETE, words.last()) {
        (true, _) => "remove",
        (false, Some(last)) if words.len() > 1 => last,
        (false, _) => "change",
    };
    format!("{thing} {verb}")
}

/// The log as an answer.
pub fn answer(reading: Reading) -> Answer {
    crate::response::stream("application/json", Body::stream(follow(reading)))
}

impl From<std::io::Error> for ApiError {
    fn from(error: std::io::Error) -> Self {
        Self::internal(format!("the operation log cannot be read: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::ROUTES;

    #[test]
    fn every_route_that_is_logged_has_an_action() {
        let mut actions: Vec<String> = ROUTES
            .iter()
            .filter(|route| is_logged(route))
            .map(action)
            .collect();
        for expected in [
            "container create",
            "container start",
            "container remove",
            "container prune",
            "container copy",
            "exec create",
            "exec start",
            "image pull",
            "image load",
            "image tag",
            "image remove",
            "image build",
            "network connect",
            "network remove",
            "volume create",
            "volume prune",
            "builder prune",
        ] {
            assert!(
                actions.iter().any(|action| action == expected),
                "{expected} {actions:#?}"
            );
        }
        assert!(
            !actions.iter().any(|action| action.ends_with("change")),
            "{actions:#?}"
        );
        let all = actions.len();
        actions.sort();
        actions.dedup();
        assert_eq!(actions.len(), all, "{actions:#?}");
        let named: Vec<String> = ROUTES.iter().map(Route::name).collect();
        for secretive in SECRETIVE {
            assert!(named.iter().any(|name| name == secretive), "{secretive}");
        }
    }
}
