//! `POST /build` and what belongs to it: the classic endpoint, whose client sends an archive and gets text, and its second
//! version, whose client has a session and gets BuildKit's messages.

mod lines;
mod query;
mod v2;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use hyper::StatusCode;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use vessel_build::request::{BuildRequest, CacheImport, Goal, NoCache, Output};
use vessel_build::{ErrorKind, PruneOptions};
use vessel_image::registry::Credentials;

use crate::body::Body;
use crate::buildkit::context;
use crate::error::ApiError;
use crate::request::Request;
use crate::response::{self, Answer, json as json_answer, status};
use crate::server::{Busy, State};
use lines::Lines;
use query::Query;

/// Lines under way at most.
const DEPTH: usize = 64;

/// `POST /build`.
pub async fn build(state: &Arc<State>, mut request: Request) -> Answer {
    if request.query.text("version") == "2" {
        return v2::build(state, request).await;
    }
    if !matches!(request.query.text("version"), "" | "1") {
        return Err(ApiError::bad_request(format!(
            "invalid version {}: 1 and 2 are there",
            request.query.text("version")
        )));
    }
    let query = match Query::parse(&request.query) {
        Ok(query) => query,
        Err(sentence) => {
            request.discard_body().await;
            return Err(ApiError::bad_request(sentence));
        }
    };
    let auth = request.header("x-registry-config").unwrap_or_default();
    let credentials =
        Credentials::map_from_header(auth).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let builder = state.builder()?;
    let mut wanted = query.request.clone();
    caches_that_are_here(state, &mut wanted);
    let anew = wanted.no_cache == NoCache::All;
    let (context, mut build) = context::receive(state, request, wanted).await?;
    build.goal = Goal::Build;
    build.outputs = vec![Output::Image {
        names: query.tags.clone(),
        store: true,
        push: false,
        style: vessel_build::request::ImageStyle::default(),
    }];
    let (sender, mut receiver) = mpsc::channel(DEPTH);
    let busy = Busy::new(state);
    let task = tokio::spawn(async move {
        let _busy = busy;
        // The files stay as long as the build.
        let _context = context;
        let session = Arc::new(context::Keyring(credentials));
        let (progress, events) = vessel_build::progress::channel();
        let mut lines = Lines::new(sender, query.quiet, anew);
        let result = {
            let build = Box::pin(builder.build(build, session, progress));
            let (result, ()) = tokio::join!(build, lines.follow(events));
            result
        };
        lines.end(result, &query.tags).await
    });
    let guard = Cancel(task.abort_handle());
    // As with dockerd, what fails before anything was told is a status.
    let first = receiver.recv().await;
    if first.is_none() {
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(refusal(&error)),
            Err(error) => {
                return Err(ApiError::internal(format!("the build ended abnormally: {error}")));
            }
        }
    }
    stream_of(first, receiver, guard)
}

/// A build that came to nothing.
fn refusal(error: &vessel_build::Error) -> ApiError {
    let status = match error.kind() {
        ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Unsupported => StatusCode::BAD_REQUEST,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, error.to_string())
}

/// With `cachefrom` the classic builder trusts only the images that are named, and only those that are here: it asks no
/// registry, and without any of them it does every step anew.
fn caches_that_are_here(state: &State, build: &mut BuildRequest) {
    if build.cache_from.is_empty() {
        return;
    }
    build.cache_from.retain(|cache| match cache {
        CacheImport::Registry(name) => state.engine.has_image(name),
        _ => true,
    });
    if build.cache_from.is_empty() {
        build.no_cache = NoCache::All;
    }
}

/// The lines of a build, of which the first may be known, as the body of an answer. A client that goes away cancels the build.
fn stream_of(first: Option<Bytes>, receiver: mpsc::Receiver<Bytes>, guard: Cancel) -> Answer {
    let lines = (first, receiver, guard);
    let body = stream::unfold(lines, |(first, mut receiver, guard)| async move {
        let line = match first {
            Some(line) => line,
            None => receiver.recv().await?,
        };
        Some((Ok(line), (None, receiver, guard)))
    });
    response::stream("application/json", Body::stream(body))
}

/// Ends a build when it is dropped.
struct Cancel(AbortHandle);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// `POST /build/cancel`.
pub fn cancel(state: &Arc<State>, request: &Request) -> Answer {
    let id = request.query.text("id");
    if id.is_empty() {
        return Err(ApiError::bad_request("build ID not provided"));
    }
    // As with dockerd, a build that is over already was cancelled well enough.
    state.jobs.cancel(id);
    Ok(status(StatusCode::NO_CONTENT))
}

/// `POST /build/prune`.
pub async fn prune(state: &Arc<State>, request: &Request) -> Answer {
    let filters = request.filters()?;
    let values = |name: &str| -> Vec<String> { filters.get(name).map(str::to_owned).collect() };
    let mut keep = None;
    for name in ["keep-storage", "reserved-space", "max-used-space"] {
        if let Some(bytes) = request.query.number(name, 0, i64::MAX)? {
            keep = keep.max(u64::try_from(bytes).ok());
        }
    }
    let mut unused_for = None;
    for age in values("until").iter().chain(&values("unused-for")) {
        unused_for = Some(duration(age).ok_or_else(|| {
            ApiError::bad_request(format!(
                "invalid filter until={age}: a duration such as 24h is expected"
            ))
        })?);
    }
    let options = PruneOptions {
        all: request.query.flag("all"),
        keep_storage: keep.filter(|bytes| *bytes > 0),
        unused_for,
        ids: values("id"),
        kinds: values("type"),
        descriptions: values("description"),
    };
    let builder = state.builder()?;
    state
        .finish(async move {
            let pruned = builder
                .prune(options)
                .await
                .map_err(|error| ApiError::internal(error.to_string()))?;
            json_answer(&json!({"CachesDeleted": pruned.ids, "SpaceReclaimed": pruned.reclaimed}))
        })
        .await
}

/// A duration of hours, minutes and seconds as Go writes it.
fn duration(text: &str) -> Option<Duration> {
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..end)?.parse().ok()?;
        let unit_end = rest[end..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |at| end + at);
        total += number
            * match &rest[end..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(())?;
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("1.5s"), Some(Duration::from_millis(1500)));
        for wrong in ["", "h", "1", "1x", "-1h", "1e999h"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_duration_panics(text in "[0-9.hmsx]{0,20}") {
            let _ = duration(&text);
        }
    }
}
