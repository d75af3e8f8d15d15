//! What of a command is logged: names, flags and limits that are listed here, and nothing else. So no environment, no build
//! argument, no option of a driver, no credential and no argument of a program gets there.

use serde_json::Value;
use vessel_api::Map;

use crate::query::Query;

/// The longest value that is kept.
const MAX_VALUE: usize = 200;

/// Parameters of queries.
const QUERY: [&str; 22] = [
    "name",
    "force",
    "v",
    "link",
    "signal",
    "t",
    "repo",
    "tag",
    "fromImage",
    "fromSrc",
    "platform",
    "container",
    "noprune",
    "filters",
    "all",
    "dockerfile",
    "remote",
    "target",
    "path",
    "pause",
    "squash",
    "id",
];

/// Members of bodies, by route.
const BODIES: [(&str, &[&str]); 8] = [
    (
        "POST /containers/create",
        &[
            "/Image",
            "/HostConfig/NetworkMode",
            "/HostConfig/Privileged",
            "/HostConfig/AutoRemove",
            "/HostConfig/PidMode",
            "/HostConfig/Binds",
        ],
    ),
    (
        "POST /containers/{id:.*}/exec",
        &["/User", "/Privileged", "/WorkingDir"],
    ),
    (
        "POST /containers/{id:.*}/update",
        &[
            "/Memory",
            "/NanoCpus",
            "/CpuQuota",
            "/PidsLimit",
            "/RestartPolicy/Name",
        ],
    ),
    ("POST /networks/create", &["/Name", "/Driver", "/Internal"]),
    ("POST /networks/{id:.*}/connect", &["/Container"]),
    ("POST /networks/{id:.*}/disconnect", &["/Container", "/Force"]),
    ("POST /volumes/create", &["/Name", "/Driver"]),
    ("POST /vessel/undo", &["/Operation"]),
];

/// What a query tells.
pub(super) fn of_query(query: &Query, details: &mut Map<String>) {
    for name in QUERY {
        let values: Vec<&str> = query.all(name).filter(|value| !value.is_empty()).collect();
        if !values.is_empty() {
            details.insert(name.to_owned(), shortened(&values.join(" ")));
        }
    }
}

/// What a body tells.
pub(super) fn of_body(route: &str, body: &Value, details: &mut Map<String>) {
    let members = BODIES.iter().find(|(of, _)| *of == route);
    for member in members.into_iter().flat_map(|(_, members)| *members) {
        let text = match body.pointer(member) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(true)) => "true".to_owned(),
            Some(Value::Number(number)) if number.as_f64() != Some(0.0) => number.to_string(),
            Some(Value::Array(list)) => {
                let words: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
                words.join(" ")
            }
            _ => continue,
        };
        if !text.is_empty() {
            let name = member.rsplit('/').next().unwrap_or_default();
            details.insert(name.to_owned(), shortened(&text));
        }
    }
    // The program, without its arguments, which may hold anything.
    let program = |member: &str| match body.get(member)? {
        Value::Array(words) => words.first()?.as_str(),
        Value::String(line) => line.split_whitespace().next(),
        _ => None,
    };
    // What a container is created with may all be arguments, of an entry point of the image's.
    let program = match route {
        route if route.ends_with("/exec") => program("Cmd"),
        route if route.ends_with("/create") => program("Entrypoint"),
        _ => None,
    };
    // A variable may stand before a program.
    if let Some(program) = program.filter(|program| !program.is_empty() && !program.contains('=')) {
        details.insert("Program".to_owned(), shortened(program));
    }
}

/// A value without what an address may hold of secrets, and not too long.
pub(super) fn shortened(value: &str) -> String {
    let words: Vec<String> = value.split(' ').map(without_secrets).collect();
    let text = words.join(" ");
    match text.char_indices().nth(MAX_VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// `https://user:password@host/path?token=x#y` is `https://host/path`.
fn without_secrets(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else {
        return word.to_owned();
    };
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let (rest, fragment) = rest.split_at(end);
    let host = rest.find('/').unwrap_or(rest.len());
    let rest = match rest[..host].rfind('@') {
        Some(at) => &rest[at + 1..],
        None => rest,
    };
    // A Git address names branch and directory behind the sign; a query may hold a token.
    let fragment = if fragment.starts_with('#') { fragment } else { "" };
    format!("{scheme}://{rest}{fragment}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_tell_what_is_listed_only() {
        let body = serde_json::json!({
            "Image": "busybox", "Env": ["PASSWORD=hunter2"], "Cmd": ["hunter2", "-phunter2"], "Entrypoint": ["mysql", "-phunter2"],
            "Labels": {"a": "hunter2"},
            "HostConfig": {"Privileged": true, "AutoRemove": false, "Binds": ["/etc:/etc"], "Memory": 7,
                "LogConfig": {"Config": {"token": "hunter2"}}},
        });
        let mut details = Map::new();
        of_body("POST /containers/create", &body, &mut details);
        let text = format!("{details:?}");
        assert!(!text.contains("hunter2"), "{text}");
        let of = |name: &str| details.get(name).map(String::as_str);
        assert_eq!(of("Image"), Some("busybox"));
        assert_eq!(of("Program"), Some("mysql"));
        assert_eq!(of("Privileged"), Some("true"));
        assert_eq!(of("Binds"), Some("/etc:/etc"));
        assert_eq!(of("AutoRemove"), None);
        let mut none = Map::new();
        of_body(
            "POST /volumes/create",
            &serde_json::json!({"DriverOpts": {"o": "password=hunter2"}}),
            &mut none,
        );
        assert!(none.is_empty());
        of_body("POST /other", &body, &mut none);
        assert!(none.is_empty());
    }

    #[test]
    fn queries_lose_build_arguments_and_passwords() {
        let query = Query::parse(Some(
            "t=a&t=b&buildargs=%7B%22X%22%3A%22hunter2%22%7D&remote=https%3A%2F%2Fme%3Ahunter2%40host%2Fr.git%23main%3Adir&q=1",
        ))
        .unwrap();
        let mut details = Map::new();
        of_query(&query, &mut details);
        assert_eq!(details["t"], "a b");
        assert_eq!(details["remote"], "https://host/r.git#main:dir");
        assert_eq!(details.len(), 2);
        assert_eq!(without_secrets("https://h/a?token=hunter2"), "https://h/a");
        assert_eq!(without_secrets("https://a:b@c@h/p@q"), "https://h/p@q");
        assert_eq!(shortened(&"x".repeat(1000)).chars().count(), 201);
    }
}
