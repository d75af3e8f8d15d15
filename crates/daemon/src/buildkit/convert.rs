//! What the builder tells, in BuildKit's messages.

use std::time::{SystemTime, UNIX_EPOCH};

use bollard_buildkit_proto::google::protobuf::{Any, Timestamp};
use bollard_buildkit_proto::google::rpc;
use bollard_buildkit_proto::moby::buildkit::v1::{
    StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning,
};
use bollard_buildkit_proto::pb;
use prost::Message;
use serde_json::json;
use tonic::{Code, Status};
use vessel_build::progress::Event;
use vessel_build::{Error, ErrorKind, Location};

use crate::base64;

/// By this name clients know where in the Dockerfile an error is.
const SOURCE: &str = "github.com/moby/buildkit/errdefs.Source+json";

fn time(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Events as one message.
pub fn status_response(events: Vec<Event>) -> StatusResponse {
    let mut response = StatusResponse::default();
    for event in events {
        match event {
            // For the classic builder, which counts them.
            Event::Step(_) => {}
            Event::Vertex(vertex) => response.vertexes.push(Vertex {
                digest: vertex.digest.to_string(),
                inputs: vertex.inputs.iter().map(ToString::to_string).collect(),
                name: vertex.name,
                cached: vertex.cached,
                started: vertex.started.map(time),
                completed: vertex.completed.map(time),
                error: vertex.error.unwrap_or_default(),
                progress_group: None,
            }),
            Event::Status(status) => response.statuses.push(VertexStatus {
                id: status.id,
                vertex: status.vertex.to_string(),
                name: status.name,
                current: count(status.current),
                total: count(status.total),
                timestamp: Some(time(status.time)),
                started: Some(time(status.started)),
                completed: status.completed.map(time),
            }),
            Event::Log(log) => response.logs.push(VertexLog {
                vertex: log.vertex.to_string(),
                timestamp: Some(time(log.time)),
                stream: log.stream.into(),
                msg: log.data,
            }),
            Event::Warning(warning) => response.warnings.push(VertexWarning {
                vertex: warning.vertex.to_string(),
                level: warning.level.into(),
                short: warning.short.into_bytes(),
                detail: warning.detail.into_iter().map(String::into_bytes).collect(),
                url: warning.url.unwrap_or_default(),
                // Clients show the lines, and nothing without them.
                info: warning
                    .location
                    .as_ref()
                    .zip(warning.text.as_deref())
                    .map(|(location, text)| pb::SourceInfo {
                        filename: location.file.clone(),
                        language: "Dockerfile".to_owned(),
                        data: text.to_vec(),
                        ..pb::SourceInfo::default()
                    }),
                ranges: warning.location.iter().map(range).collect(),
            }),
        }
    }
    response
}

fn range(location: &Location) -> pb::Range {
    let line = |line: u32| i32::try_from(line).unwrap_or(i32::MAX);
    let (start, end) = location.columns.unwrap_or_default();
    pb::Range {
        start: Some(pb::Position {
            line: line(location.start_line),
            character: line(start),
        }),
        end: Some(pb::Position {
            line: line(location.end_line),
            character: line(end),
        }),
    }
}

/// A failed build as the end of a call. Where in the Dockerfile goes along, and clients show the lines.
pub fn failure(error: &Error) -> Status {
    let code = match error.kind() {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Cancelled => Code::Cancelled,
        _ => Code::Unknown,
    };
    let message = error.to_string();
    let Some(located) = error.located() else {
        return Status::new(code, message);
    };
    let range = range(&located.location);
    let position = |position: Option<pb::Position>| {
        let position = position.unwrap_or_default();
        json!({"line": position.line, "character": position.character})
    };
    let source = json!({
        "info": {
            "filename": located.location.file,
            "data": base64::encode(&located.text),
            "language": "Dockerfile",
        },
        "ranges": [{"start": position(range.start), "end": position(range.end)}],
    });
    let details = rpc::Status {
        code: code.into(),
        message: message.clone(),
        details: vec![Any {
            type_url: SOURCE.to_owned(),
            value: source.to_string().into_bytes(),
        }],
    };
    Status::with_details(code, message, details.encode_to_vec().into())
}

/// The value of a header of a call.
pub fn value<'a, T>(request: &'a tonic::Request<T>, name: &str) -> &'a str {
    request
        .metadata()
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}
