//! The description of the API that is served, as OpenAPI 3.1: made of the table of routes and of the structures that
//! requests are read into and answers written from, so that routes and bodies cannot differ from what is there.
//! (Parameters of queries stand in the table by hand.)

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use vessel_api::describe::{Object, Shape};

use crate::response::{self, Answer};
use crate::table::{Body, Kind, ROUTES, Route};
use crate::version::ApiVersion;

/// `GET /openapi.json`.
pub fn answer() -> Answer {
    response::json(&document())
}

/// The whole description.
pub fn document() -> Value {
    let mut schemas = Schemas::default();
    schemas.of(<vessel_api::ErrorResponse as vessel_api::Describe>::describe());
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for route in ROUTES {
        let path = route.path.replace(":.*}", "}");
        let operation = operation(route, &path, &mut schemas);
        paths
            .entry(path)
            .or_default()
            .insert(route.method.as_str().to_lowercase(), operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Vessel: the Docker Engine API, and what goes beyond it",
            "version": ApiVersion::NEWEST_TEXT,
            "description": "Every path may begin with /v1.NN, a version of the Docker Engine API; without it the newest is meant.",
        },
        "paths": paths,
        "components": {"schemas": schemas.0},
    })
}

fn operation(route: &Route, path: &str, schemas: &mut Schemas) -> Value {
    let mut parameters: Vec<Value> = path
        .split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    for parameter in route.query {
        let mut described = json!({"name": parameter.name, "in": "query", "schema": kind(parameter.kind)});
        if parameter.kind == Kind::Filters {
            described["description"] = json!("A JSON object: names of filters to lists of values.");
        }
        parameters.push(described);
    }
    let mut operation = json!({"summary": route.summary, "operationId": operation_id(route)});
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters);
    }
    if let Some(content) = content(&route.body, schemas) {
        operation["requestBody"] = json!({"content": content});
    }
    let (status, body) = &route.answer;
    let error = json!({"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}});
    let mut answers = Map::new();
    if *status < 400 {
        let mut answer = json!({"description": "done"});
        if let Some(content) = content(body, schemas) {
            answer["content"] = content;
        }
        answers.insert(status.to_string(), answer);
    } else {
        answers.insert(
            status.to_string(),
            json!({"description": "what this engine does not have", "content": error}),
        );
    }
    answers.insert(
        "default".to_owned(),
        json!({"description": "why it was not done", "content": error}),
    );
    operation["responses"] = Value::Object(answers);
    operation
}

/// `GetContainersIdJson`.
fn operation_id(route: &Route) -> String {
    let method = route.method.as_str().to_lowercase();
    std::iter::once(method.as_str())
        .chain(route.path.split(|letter: char| !letter.is_ascii_alphanumeric()))
        .filter(|word| !word.is_empty())
        .map(|word| word[..1].to_uppercase() + &word[1..])
        .collect()
}

fn kind(kind: Kind) -> Value {
    match kind {
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Number => json!({"type": "integer"}),
        Kind::Text | Kind::Filters => json!({"type": "string"}),
        Kind::List => json!({"type": "array", "items": {"type": "string"}}),
    }
}

fn content(body: &Body, schemas: &mut Schemas) -> Option<Value> {
    Some(match body {
        Body::None => return None,
        Body::Json(shape) => json!({"application/json": {"schema": schemas.of(shape())}}),
        Body::Object => json!({"application/json": {"schema": {}}}),
        Body::Lines => {
            json!({"application/json": {"schema": {"type": "string", "description": "one JSON value a line"}}})
        }
        Body::Tar => json!({"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}),
        Body::Text => json!({"text/plain": {"schema": {"type": "string"}}}),
        Body::Raw => json!({
            "application/vnd.docker.raw-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/vnd.docker.multiplexed-stream": {"schema": {"type": "string", "format": "binary"}},
        }),
    })
}

/// Structures by name.
#[derive(Default)]
struct Schemas(BTreeMap<&'static str, Value>);

impl Schemas {
    fn of(&mut self, shape: Shape) -> Value {
        match shape {
            Shape::Any => json!({}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Integer => json!({"type": "integer"}),
            Shape::Number => json!({"type": "number"}),
            Shape::Text => json!({"type": "string"}),
            Shape::List(inner) => json!({"type": ["array", "null"], "items": self.of(inner())}),
            Shape::Map(inner) => {
                json!({"type": ["object", "null"], "additionalProperties": self.of(inner())})
            }
            Shape::Nullable(inner) => json!({"anyOf": [self.of(inner()), {"type": "null"}]}),
            Shape::Object(object) => {
                if !self.0.contains_key(object.name()) {
                    // It may be met again inside of itself.
                    self.0.insert(object.name(), Value::Null);
                    let described = self.object(object);
                    self.0.insert(object.name(), described);
                }
                json!({"$ref": format!("#/components/schemas/{}", object.name())})
            }
        }
    }

    fn object(&mut self, object: &Object) -> Value {
        let mut properties = Map::new();
        for field in object.fields() {
            let mut described = self.of((field.shape)());
            let comment = field.comment();
            if !comment.is_empty() {
                described["description"] = json!(comment);
            }
            properties.insert(field.name().into_owned(), described);
        }
        json!({"type": "object", "properties": properties})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_describes_every_route_and_nothing_else() {
        let document = document();
        let described: Vec<String> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().unwrap().keys();
                methods.map(move |method| format!("{} {path}", method.to_uppercase()))
            })
            .collect();
        for route in ROUTES {
            let name = format!("{} {}", route.method, route.path.replace(":.*}", "}"));
            assert!(described.contains(&name), "{name}");
        }
        assert_eq!(described.len(), ROUTES.len());
    }

    #[test]
    fn references_lead_somewhere_and_operations_have_names_of_their_own() {
        fn references(value: &Value, out: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(to)) = map.get("$ref") {
                        out.push(to.clone());
                    }
                    map.values().for_each(|inner| references(inner, out));
                }
                Value::Array(list) => list.iter().for_each(|inner| references(inner, out)),
                _ => {}
            }
        }
        let document = document();
        let mut all = Vec::new();
        references(&document, &mut all);
        assert!(all.len() > 50);
        for reference in all {
            let found = document.pointer(reference.trim_start_matches('#'));
            assert!(found.is_some_and(Value::is_object), "{reference}");
        }
        let mut ids: Vec<String> = ROUTES.iter().map(operation_id).collect();
        ids.sort();
        let count = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    /// The file in the documentation is what a daemon serves. `VESSEL_BLESS=1` writes it anew.
    #[test]
    fn the_file_is_what_is_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let served = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os("VESSEL_BLESS").is_some() {
            std::fs::write(path, &served).unwrap();
        }
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            file == served,
            "docs/openapi.json is old: run this test with VESSEL_BLESS=1"
        );
    }
}
