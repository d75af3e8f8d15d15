//! Vessel's extensions about what is in images.

use std::sync::Arc;

use crate::error::ApiError;
use crate::request::Request;
use crate::response::{Answer, json};
use crate::server::State;

/// `GET /images/{name}/explain`: what each layer holds, what of it is wasted, who shares it.
pub async fn explain(state: &Arc<State>, name: &str) -> Answer {
    json(&state.engine.image_explain(name).await?)
}

/// `GET /images/{name}/diff?to=NAME`: what differs between two images.
pub async fn diff(state: &Arc<State>, request: &Request, name: &str) -> Answer {
    let to = request.query.text("to");
    if to.is_empty() {
        return Err(ApiError::bad_request(
            "no second image is named: the parameter to must not be empty",
        ));
    }
    json(&state.engine.image_diff(name, to).await?)
}
