//! The daemon itself: ping, version, information, events, disk usage.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue, PRAGMA};
use hyper::{Method, StatusCode};
use vessel_engine::EventsOptions;

use crate::body::Body;
use crate::error::ApiError;
use crate::request::Request;
use crate::response::{self, Answer, json};
use crate::routes::streams::timestamp;
use crate::server::State;
use crate::version::ApiVersion;

/// `GET` and `HEAD /_ping`.
pub fn ping(request: &Request) -> Answer {
    let body = if request.method == Method::HEAD {
        Body::Empty
    } else {
        Body::whole("OK")
    };
    let mut response = response::with_type(
        StatusCode::OK,
        HeaderValue::from_static("text/plain; charset=utf-8"),
        body,
    );
    let headers = response.headers_mut();
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, must-revalidate"),
    );
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    // Builds go through BuildKit's protocols unless a client wants otherwise.
    headers.insert(
        HeaderName::from_static("builder-version"),
        HeaderValue::from_static("2"),
    );
    headers.insert(
        HeaderName::from_static("swarm"),
        HeaderValue::from_static("inactive"),
    );
    Ok(response)
}

/// `GET /version`.
pub fn version(state: &Arc<State>) -> Answer {
    json(
        &state
            .engine
            .version(ApiVersion::NEWEST_TEXT, ApiVersion::OLDEST_TEXT),
    )
}

/// `GET /info`.
pub fn info(state: &Arc<State>) -> Answer {
    json(&state.engine.info())
}

/// What a stream of JSON may be called, the best known first; the last is RFC 7464, where a record begins with a sign of its
/// own.
const STREAMS: [&str; 3] = ["application/jsonl", "application/x-ndjson", SEQUENCE];
const SEQUENCE: &str = "application/json-seq";

/// What a client calls the stream of JSON that it wants: only a name counts, no pattern. None if it names none.
fn stream_type(accept: &str) -> Option<&'static str> {
    let mut wanted = accept.split(',').filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next()?;
        let never = parts.any(|part| part.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0)));
        (!never).then_some(name)
    });
    wanted.find_map(|name| STREAMS.into_iter().find(|known| known.eq_ignore_ascii_case(name)))
}

/// `GET /events`: one JSON object a line until the client goes away or `until` comes.
pub fn events(state: &Arc<State>, request: &Request) -> Answer {
    let options = EventsOptions {
        since: timestamp(request, "since")?,
        until: timestamp(request, "until")?,
        filters: request.filters()?,
    };
    if let (Some(since), Some(until)) = (options.since, options.until)
        && since > until
    {
        return Err(ApiError::bad_request(format!(
            "`since` time ({}) cannot be after `until` time ({})",
            request.query.text("since"),
            request.query.text("until")
        )));
    }
    let by_default = if request.version < ApiVersion::new(52) {
        "application/json"
    } else {
        "application/jsonl"
    };
    let kind = stream_type(request.header("accept").unwrap_or_default()).unwrap_or(by_default);
    let begin: &[u8] = if kind == SEQUENCE { b"\x1e" } else { b"" };
    let events = state.engine.events().subscribe(options);
    response::stream(
        kind,
        Body::stream(stream::unfold(events, move |mut events| async move {
            let event = events.recv().await?;
            let line = line(begin, &event);
            Some((Ok(line), events))
        })),
    )
}

fn line(begin: &[u8], value: &impl serde::Serialize) -> Bytes {
    let mut text = begin.to_vec();
    // The structures of the API always serialize; a line lost would still be better than a stream lost.
    text.extend(serde_json::to_vec(value).unwrap_or_default());
    text.push(b'\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::stream_type;

    #[test]
    fn clients_name_the_stream_they_want() {
        for (accept, kind) in [
            ("", None),
            ("*/*", None),
            ("application/*", None),
            ("application/json", None),
            ("application/json-seq", Some("application/json-seq")),
            (
                "text/html, Application/X-NDJSON; charset=utf-8",
                Some("application/x-ndjson"),
            ),
            (
                "application/jsonl;q=0, application/json-seq;q=0.5",
                Some("application/json-seq"),
            ),
        ] {
            assert_eq!(stream_type(accept), kind, "{accept}");
        }
    }
}
