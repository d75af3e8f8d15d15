//! Registries: logging in, searching, what a name stands for.

use std::sync::Arc;

use serde_json::json;
use vessel_engine::images::Credentials;

use crate::error::ApiError;
use crate::request::Request;
use crate::response::{Answer, json};
use crate::server::State;

/// What the client shows to registries.
pub fn credentials(request: &Request) -> Result<Credentials, ApiError> {
    let header = request.header("x-registry-auth").unwrap_or_default();
    Credentials::from_header(header).map_err(|error| ApiError::bad_request(error.to_string()))
}

/// `POST /auth`.
pub async fn auth(state: &Arc<State>, mut request: Request) -> Answer {
    let mut credentials: Credentials = request.json_as().await?;
    credentials.split_auth();
    let token = state.engine.registry_login(credentials).await?;
    json(&json!({"Status": "Login Succeeded", "IdentityToken": token}))
}

/// `GET /images/search`.
pub async fn search(state: &Arc<State>, request: &Request) -> Answer {
    let limit = match request.query.text("limit") {
        "" => 0,
        text => text
            .parse()
            .map_err(|_| ApiError::bad_request(format!("invalid limit {text:?}: a number is expected")))?,
    };
    let (filters, credentials) = (request.filters()?, credentials(request)?);
    let term = request.query.text("term");
    json(
        &state
            .engine
            .registry_search(term, limit, &filters, &credentials)
            .await?,
    )
}

/// `GET /distribution/{name}/json`.
pub async fn distribution(state: &Arc<State>, request: &Request, name: &str) -> Answer {
    json(
        &state
            .engine
            .distribution_inspect(name, &credentials(request)?)
            .await?,
    )
}
