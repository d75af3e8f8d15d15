//! What this daemon does not have: swarm, plugins. The answers are those of a dockerd
//! without them where it has such an answer, and a plain sentence with 501 where it has not.

use hyper::{Method, StatusCode};
use serde_json::json;

use crate::error::ApiError;
use crate::response::{Answer, json};

/// The answer to a path that no other route took.
pub fn route(method: &Method, segments: &[&str]) -> Answer {
    match segments {
        ["swarm", "init" | "join" | "unlock"] if *method == Method::POST => Err(ApiError::not_implemented(
            "this engine has no swarm mode: run containers directly",
        )),
        [
            "swarm" | "services" | "tasks" | "nodes" | "secrets" | "configs",
            ..,
        ] => swarm(),
        ["plugins"] if *method == Method::GET => json(&json!([])),
        // What looks a name up everywhere looks here last, and takes this for the end of its search.
        ["plugins", name @ .., "json"] if *method == Method::GET => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!("plugin \"{}\" not found", name.join("/")),
        )),
        ["plugins", ..] => Err(ApiError::not_implemented("this engine has no plugins")),
        _ => Err(ApiError::page_not_found()),
    }
}

/// The answer to whatever needs a swarm manager.
pub fn swarm() -> Answer {
    Err(ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_not_found() {
        let error = route(&Method::GET, &["plugins", "some", "name", "json"]).unwrap_err();
        assert_eq!(error.status(), StatusCode::NOT_FOUND);
        assert_eq!(error.message(), "plugin \"some/name\" not found");
        let error = route(&Method::POST, &["plugins", "pull"]).unwrap_err();
        assert_eq!(error.status(), StatusCode::NOT_IMPLEMENTED);
    }
}
