//! What a container says over time: attach, logs, statistics, its end.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use hyper::StatusCode;
use vessel_api::{WaitError, WaitResponse};
use vessel_engine::{AttachOptions, LogsOptions, WaitCondition};

use crate::body::Body;
use crate::detach;
use crate::error::ApiError;
use crate::hijack::{self, Rules};
use crate::request::Request;
use crate::response::{self, Answer, json};
use crate::server::State;
use crate::version::ApiVersion;
use crate::websocket;

/// `POST /containers/{id}/attach`.
pub async fn attach(state: &Arc<State>, mut request: Request, id: &str) -> Answer {
    let query = &request.query;
    let options = AttachOptions {
        logs: query.flag("logs"),
        stream: query.flag("stream"),
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
    };
    let keys = detach::parse(query.text("detachKeys"))?;
    let stdin = options.stdin && options.stream;
    let way = request.leave(false);
    let attached = state.engine.container_attach(id, options).await?;
    let rules = Rules {
        stdin,
        detach_keys: (stdin && attached.tty).then_some(keys),
        frames: false,
    };
    hijack::respond(way, request.version, attached, rules)
}

/// `GET /containers/{id}/attach/ws`. Before 1.42 the streams could not be chosen.
pub async fn attach_websocket(state: &Arc<State>, request: Request, id: &str) -> Answer {
    let accept = websocket::accept_key(&request)?;
    let query = &request.query;
    let wanted = |name: &str| request.version < ApiVersion::new(42) || query.flag(name);
    let options = AttachOptions {
        logs: query.flag("logs"),
        stream: query.flag("stream"),
        stdin: wanted("stdin"),
        stdout: wanted("stdout"),
        stderr: wanted("stderr"),
    };
    let keys = detach::parse(query.text("detachKeys"))?;
    let stdin = options.stdin && options.stream;
    let attached = state.engine.container_attach(id, options).await?;
    let rules = Rules {
        stdin,
        detach_keys: (stdin && attached.tty).then_some(keys),
        frames: false,
    };
    websocket::respond(request, accept, attached, rules)
}

/// `GET /containers/{id}/logs`.
pub async fn logs(state: &Arc<State>, request: &Request, id: &str) -> Answer {
    let query = &request.query;
    let options = LogsOptions {
        follow: query.flag("follow"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        // Zero is "from the beginning".
        since: timestamp(request, "since")?.filter(|&since| since != 0),
        until: match request.version < ApiVersion::new(35) {
            true => None,
            false => timestamp(request, "until")?.filter(|&until| until != 0),
        },
        timestamps: query.flag("timestamps"),
        details: query.flag("details"),
        // Whatever is not a number is "all".
        tail: query.text("tail").parse().ok(),
    };
    if !options.stdout && !options.stderr {
        return Err(ApiError::bad_request(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    let log = state.engine.container_logs(id, options).await?;
    let content_type = hijack::content_type(request.version, log.tty);
    let body = Body::stream(stream::unfold(log, |mut log| async move {
        let chunk = hijack::next_chunk(&mut log).await?;
        Some((Ok(chunk), log))
    }));
    Ok(response::with_type(StatusCode::OK, content_type, body))
}

/// A time as Docker's clients send it, seconds since the epoch with an optional fraction, in nanoseconds.
pub fn timestamp(request: &Request, name: &str) -> Result<Option<i64>, ApiError> {
    let text = request.query.text(name);
    if text.is_empty() {
        return Ok(None);
    }
    parse_timestamp(text).map(Some).ok_or_else(|| {
        ApiError::bad_request(format!(
            "invalid value {text:?} for {name}: seconds since 1970, with at most nine decimals, are expected"
        ))
    })
}

fn parse_timestamp(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos = format!("{fraction:0<9}").parse::<i64>().ok()?;
    let whole = seconds.parse::<i64>().ok()?.checked_mul(1_000_000_000)?;
    if seconds.starts_with('-') {
        whole.checked_sub(nanos)
    } else {
        whole.checked_add(nanos)
    }
}

/// `POST /containers/{id}/wait`. The head of the answer tells the client that nothing can be missed any more, so it
/// is sent at once; the body follows when the container has ended.
pub fn wait(state: &Arc<State>, request: &Request, id: &str) -> Answer {
    let asked = match request.version < ApiVersion::new(30) {
        true => "",
        false => request.query.text("condition"),
    };
    let condition = match asked {
        "" | "not-running" => WaitCondition::NotRunning,
        "next-exit" => WaitCondition::NextExit,
        "removed" => WaitCondition::Removed,
        other => {
            return Err(ApiError::bad_request(format!(
                "invalid condition: {other:?}: not-running, next-exit or removed is expected"
            )));
        }
    };
    let waiter = state.engine.container_wait(id, condition)?;
    let body = Body::stream(stream::once(async move {
        let answer = waiter.wait().await.unwrap_or_else(|error| WaitResponse {
            error: Some(WaitError {
                message: error.to_string(),
            }),
            status_code: -1,
        });
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        Ok(Bytes::from(text))
    }));
    response::stream("application/json", body)
}

/// `GET /containers/{id}/stats`: one reading a second, or one.
pub async fn stats(state: &Arc<State>, request: &Request, id: &str) -> Answer {
    let streaming = request.query.flag_or("stream", true);
    let os = if request.version < ApiVersion::new(52) {
        ""
    } else {
        "linux"
    };
    if !streaming {
        // With one-shot there is no second reading to compare with, and nothing to wait for.
        let once = request.query.flag("one-shot");
        let mut reading = state.engine.container_stats_once(id, once).await?;
        os.clone_into(&mut reading.os_type);
        return json(&reading);
    }
    if request.query.flag("one-shot") {
        return Err(ApiError::bad_request("cannot have stream=true and one-shot=true"));
    }
    let readings = state.engine.container_stats(id)?;
    let body = Body::stream(stream::unfold(readings, move |mut readings| async move {
        let mut reading = readings.next().await?;
        os.clone_into(&mut reading.os_type);
        let mut text = match serde_json::to_vec(&reading) {
            Ok(text) => text,
            Err(error) => return Some((Err(error.into()), readings)),
        };
        text.push(b'\n');
        Some((Ok(Bytes::from(text)), readings))
    }));
    response::stream("application/json", body)
}

#[cfg(test)]
mod tests {
    use super::parse_timestamp;

    #[test]
    fn timestamps() {
        assert_eq!(parse_timestamp("1"), Some(1_000_000_000));
        assert_eq!(parse_timestamp("1.5"), Some(1_500_000_000));
        assert_eq!(parse_timestamp("1.000000001"), Some(1_000_000_001));
        assert_eq!(parse_timestamp("-1.5"), Some(-1_500_000_000));
        for bad in ["x", "1.x", "1.0000000001", "99999999999999", ".5", "1.-5"] {
            assert_eq!(parse_timestamp(bad), None, "{bad}");
        }
    }
}
