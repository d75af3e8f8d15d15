//! The daemon itself: ping, version, information, events, disk usage.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream;
use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue, PRAGMA};
use hyper::{Method, StatusCode};
use vessel_api::BuildCache;
use vessel_build::CacheRecord;
use vessel_engine::EventsOptions;
use vessel_engine::system::DiskUsageOptions;
use vessel_engine::time::rfc3339;

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
    let events = state.engine.events().subscribe(options);
    response::stream(
        "application/json",
        Body::stream(stream::unfold(events, |mut events| async move {
            let event = events.recv().await?;
            let line = line(&event);
            Some((Ok(line), events))
        })),
    )
}

fn line(value: &impl serde::Serialize) -> Bytes {
    // The structures of the API always serialize; a line lost would still be better than a stream lost.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// `GET /system/df`; with `vessel=1` also what else is on the disk.
pub async fn disk_usage(state: &Arc<State>, request: &Request) -> Answer {
    let mut options = DiskUsageOptions::default();
    for kind in request.query.all("type") {
        match kind {
            "container" => options.containers = true,
            "image" => options.images = true,
            "volume" => options.volumes = true,
            "build-cache" => options.build_cache = true,
            other => {
                return Err(ApiError::bad_request(format!(
                    "unknown object type: {other}: container, image, volume or build-cache is expected"
                )));
            }
        }
    }
    if request.query.get("type").is_none() {
        options = DiskUsageOptions::everything();
    }
    options.items = request.query.flag("vessel");
    let mut usage = state.engine.disk_usage(options).await?;
    if options.build_cache
        && let Ok(builder) = state.builder()
    {
        let records = builder
            .cache_records()
            .await
            .map_err(|error| ApiError::internal(error.to_string()))?;
        usage.build_cache = records.into_iter().map(cache_record).collect();
    }
    json(&usage)
}

fn cache_record(record: CacheRecord) -> BuildCache {
    let time = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        rfc3339(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    };
    BuildCache {
        id: record.id,
        kind: record.kind.to_owned(),
        description: record.description,
        in_use: record.in_use,
        shared: record.shared,
        size: i64::try_from(record.size).unwrap_or(i64::MAX),
        created_at: time(record.created),
        last_used_at: Some(time(record.last_used)),
        usage_count: i64::try_from(record.usage_count).unwrap_or(i64::MAX),
        ..BuildCache::default()
    }
}
