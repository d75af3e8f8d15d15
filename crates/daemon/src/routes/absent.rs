//! What this daemon does not have: swarm, plugins, checkpoints. The answers are those of a dockerd
//! without them where it has such an answer, and a plain sentence with 501 where it has not.

use hyper::StatusCode;
use serde_json::json;

use crate::error::ApiError;
use crate::request::Request;
use crate::response::{Answer, json};

/// The answer to whatever needs a swarm manager.
pub fn not_a_manager() -> Answer {
    Err(ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
    ))
}

/// The answer to leaving a swarm.
pub fn not_in_a_swarm() -> Answer {
    Err(ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node is not part of a swarm",
    ))
}

/// The answer to beginning or joining one.
pub fn no_swarm_mode() -> Answer {
    Err(ApiError::not_implemented(
        "this engine has no swarm mode: run containers directly",
    ))
}

/// An update of something of a swarm names the version it changes; that is looked at first.
pub fn needs_version(request: &Request, what: &str) -> Answer {
    let version = request.query.text("version");
    if version.parse::<u64>().is_err() {
        return Err(ApiError::bad_request(format!(
            "invalid {what} version '{version}': a whole number is expected"
        )));
    }
    not_a_manager()
}

/// Logs name the streams they want; that is looked at first.
pub fn needs_stream(request: &Request) -> Answer {
    if !request.query.flag("stdout") && !request.query.flag("stderr") {
        return Err(ApiError::bad_request(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    not_a_manager()
}

/// No plugins, nothing that one would be granted.
pub fn no_plugins() -> Answer {
    json(&json!([]))
}

/// What looks a name up everywhere looks here last, and takes this for the end of its search.
pub fn no_plugin(name: &str) -> Answer {
    Err(ApiError::new(
        StatusCode::NOT_FOUND,
        format!("plugin \"{name}\" not found"),
    ))
}

/// The answer to installing one.
pub fn plugins_missing() -> Answer {
    Err(ApiError::not_implemented("this engine has no plugins"))
}

/// The answer to everything about checkpoints: that of a dockerd that is not told to experiment.
pub fn checkpoints() -> Answer {
    Err(ApiError::not_implemented(
        "This experimental feature is disabled by default. Start the Docker daemon in experimental mode in order to enable it. \
         (This engine has no such mode: it cannot freeze a container to disk.)",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_not_found() {
        let error = no_plugin("some/name").unwrap_err();
        assert_eq!(error.status(), StatusCode::NOT_FOUND);
        assert_eq!(error.message(), "plugin \"some/name\" not found");
        assert_eq!(
            plugins_missing().unwrap_err().status(),
            StatusCode::NOT_IMPLEMENTED
        );
    }
}
