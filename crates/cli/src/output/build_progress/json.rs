//! What the daemon tells, as the JSON of BuildKit's clients (`client.SolveStatus`), one object to a line.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use vessel_client::build::{StatusResponse, Timestamp};

/// One line.
pub fn line(told: &StatusResponse) -> Vec<u8> {
    let mut object = Map::new();
    let vertices: Vec<Value> = told
        .vertexes
        .iter()
        .map(|vertex| {
            let mut value = json!({ "digest": vertex.digest });
            set(
                &mut value,
                "inputs",
                (!vertex.inputs.is_empty()).then(|| json!(vertex.inputs)),
            );
            set(&mut value, "name", text(&vertex.name));
            set(&mut value, "started", time(vertex.started.as_ref()));
            set(&mut value, "completed", time(vertex.completed.as_ref()));
            set(&mut value, "cached", vertex.cached.then_some(Value::Bool(true)));
            set(&mut value, "error", text(&vertex.error));
            value
        })
        .collect();
    let statuses: Vec<Value> = told
        .statuses
        .iter()
        .map(|status| {
            let mut value = json!({ "id": status.id, "vertex": status.vertex });
            set(&mut value, "name", text(&status.name));
            set(
                &mut value,
                "total",
                (status.total != 0).then(|| json!(status.total)),
            );
            set(&mut value, "current", Some(json!(status.current)));
            set(&mut value, "timestamp", time(status.timestamp.as_ref()));
            set(&mut value, "started", time(status.started.as_ref()));
            set(&mut value, "completed", time(status.completed.as_ref()));
            value
        })
        .collect();
    let warnings: Vec<Value> = told
        .warnings
        .iter()
        .map(|warning| {
            let mut value = json!({ "vertex": warning.vertex, "level": warning.level });
            set(&mut value, "short", Some(json!(base64(&warning.short))));
            let detail: Vec<String> = warning.detail.iter().map(|line| base64(line)).collect();
            set(&mut value, "detail", (!detail.is_empty()).then(|| json!(detail)));
            set(&mut value, "url", text(&warning.url));
            value
        })
        .collect();
    let logs: Vec<Value> = told
        .logs
        .iter()
        .map(|log| {
            let mut value = json!({ "vertex": log.vertex, "stream": log.stream });
            set(&mut value, "data", Some(json!(base64(&log.msg))));
            set(&mut value, "timestamp", time(log.timestamp.as_ref()));
            value
        })
        .collect();
    for (name, values) in [
        ("vertexes", vertices),
        ("statuses", statuses),
        ("logs", logs),
        ("warnings", warnings),
    ] {
        if !values.is_empty() {
            object.insert(name.to_owned(), Value::Array(values));
        }
    }
    let mut line = Value::Object(object).to_string().into_bytes();
    line.push(b'\n');
    line
}

fn set(object: &mut Value, name: &str, value: Option<Value>) {
    if let (Some(object), Some(value)) = (object.as_object_mut(), value) {
        object.insert(name.to_owned(), value);
    }
}

fn text(text: &str) -> Option<Value> {
    (!text.is_empty()).then(|| Value::from(text))
}

fn time(time: Option<&Timestamp>) -> Option<Value> {
    let time = time?;
    let instant = jiff::Timestamp::new(time.seconds, time.nanos).ok()?;
    Some(Value::from(instant.to_string()))
}

fn base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vessel_client::build::{Vertex, VertexLog};

    #[test]
    fn as_buildkits_clients_write_it() {
        let told = StatusResponse {
            vertexes: vec![Vertex {
                digest: "sha256:0".into(),
                name: "x".into(),
                started: Some(Timestamp { seconds: 0, nanos: 5 }),
                ..Vertex::default()
            }],
            logs: vec![VertexLog {
                vertex: "sha256:0".into(),
                stream: 1,
                msg: b"hi".to_vec(),
                ..VertexLog::default()
            }],
            ..StatusResponse::default()
        };
        assert_eq!(
            String::from_utf8(line(&told)).unwrap(),
            "{\"vertexes\":[{\"digest\":\"sha256:0\",\"name\":\"x\",\"started\":\"1970-01-01T00:00:00.000000005Z\"}],\
             \"logs\":[{\"vertex\":\"sha256:0\",\"stream\":1,\"data\":\"aGk=\"}]}\n"
        );
    }
}
