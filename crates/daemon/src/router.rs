//! From method and path to a route.
//!
//! The version prefix comes off, the rest is decoded, split at its slashes and looked up in the table; names of images and
//! the like may contain slashes themselves. As with dockerd, a path or method that leads nowhere is "page not found". Answers
//! to clients of older versions get their shape here.

use std::sync::Arc;

use hyper::Method;
use hyper::body::Incoming;
use hyper::header::CONTENT_LENGTH;
use serde_json::Value;
use vessel_engine::operation::{self, Operation};

use crate::body::Body;
use crate::error::ApiError;
use crate::oplog::{self, Peer, Pending};
use crate::query::decode;
use crate::request::Request;
use crate::response::Answer;
use crate::server::State;
use crate::shape;
use crate::table::{ROUTES, Route};
use crate::takeover::Taker;
use crate::version::ApiVersion;

/// Paths with more segments than any has are refused.
const MAX_SEGMENTS: usize = 64;

/// Answers a request; and says whether its connection may be read on as HTTP.
///
/// Who asks to leave HTTP does not always wait for the answer: what follows the request may be a program's input, which must
/// not be taken for requests when the answer is no. The same holds for what is not understood.
pub async fn route(
    state: &Arc<State>,
    request: hyper::Request<Incoming>,
    taker: Taker,
    peer: &Arc<Peer>,
) -> (Answer, bool) {
    let mut leaves = true;
    let answer = routed(state, request, taker, peer, &mut leaves).await;
    (answer, !leaves)
}

async fn routed(
    state: &Arc<State>,
    request: hyper::Request<Incoming>,
    taker: Taker,
    peer: &Arc<Peer>,
    leaves: &mut bool,
) -> Answer {
    let raw = request.uri().path().to_owned();
    let (version, rest) = ApiVersion::strip(&raw)?;
    let path = decode(rest, false)?;
    if path.contains('\0') {
        return Err(ApiError::bad_request("a path cannot contain a zero byte"));
    }
    let segments: Vec<&str> = path.trim_start_matches('/').splitn(MAX_SEGMENTS, '/').collect();
    let found = find(request.method(), &segments);
    let mut request = Request::new(request, version, taker)?;
    let Some((route, places)) = found else {
        request.discard_body().await;
        return Err(ApiError::page_not_found());
    };
    *leaves = route.answer.0 == 101;
    request.route = route.name();
    let name = request.route.clone();
    if route.answer.0 >= 400 {
        // Nobody reads it, and who still sends it would not look at the answer.
        request.discard_body().await;
    }
    request.peer = Some(Arc::clone(peer));
    let answer = if oplog::is_logged(route) {
        let command = Operation::new(peer.identity());
        let note = request.note.clone();
        let pending = Pending::new(
            &state.log,
            peer,
            &command.id,
            route,
            &places,
            &request.query,
            note,
        );
        let answered = operation::scope(command, (route.handler)(state, request, &places)).await;
        pending.answered(answered)?
    } else {
        (route.handler)(state, request, &places).await?
    };
    shaped(&name, version, answer)
}

/// The route for a path, and what stands in its places.
fn find(method: &Method, segments: &[&str]) -> Option<(&'static Route, Vec<String>)> {
    ROUTES
        .iter()
        .filter(|route| route.method == *method)
        .find_map(|route| Some((route, matches(route.path, segments)?)))
}

/// What stands in the places of a pattern, when a path fits it.
fn matches(pattern: &str, segments: &[&str]) -> Option<Vec<String>> {
    let mut places = Vec::new();
    let mut left = segments;
    let mut wanted = pattern.trim_start_matches('/').split('/');
    while let Some(want) = wanted.next() {
        if want.ends_with(":.*}") {
            // All but what the rest of the pattern takes.
            let rest = wanted.clone().count();
            let taken = left.len().checked_sub(rest).filter(|&taken| taken > 0)?;
            let (name, after) = left.split_at(taken);
            places.push(name.join("/"));
            left = after;
            continue;
        }
        let (first, after) = left.split_first()?;
        left = after;
        if want.starts_with('{') {
            places.push((*first).to_owned());
        } else if want != *first {
            return None;
        }
    }
    left.is_empty().then_some(places)
}

/// The answer as the client's version has it.
fn shaped(route: &str, version: ApiVersion, mut answer: hyper::Response<Body>) -> Answer {
    if !answer.status().is_success() || !shape::answer_differs(route, version) {
        return Ok(answer);
    }
    if let Body::Whole(Some(text)) = answer.body()
        && !shape::answer_stays(route, version, text)
        && let Ok(mut value) = serde_json::from_slice::<Value>(text)
    {
        shape::answer(route, version, &mut value);
        let mut text = serde_json::to_vec(&value).map_err(|error| {
            ApiError::internal(format!("the answer could not be written as JSON: {error}"))
        })?;
        text.push(b'\n');
        answer.headers_mut().remove(CONTENT_LENGTH);
        *answer.body_mut() = Body::whole(text);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(method: &Method, path: &str) -> Option<(&'static str, Vec<String>)> {
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        find(method, &segments).map(|(route, places)| (route.path, places))
    }

    #[test]
    fn paths_lead_to_their_routes() {
        for (method, path, route, places) in [
            (Method::GET, "/images/json", "/images/json", vec![]),
            (
                Method::GET,
                "/images/a/b:c/json",
                "/images/{name:.*}/json",
                vec!["a/b:c"],
            ),
            (
                Method::GET,
                "/images/json/json",
                "/images/{name:.*}/json",
                vec!["json"],
            ),
            (
                Method::GET,
                "/containers/x/attach/ws",
                "/containers/{id:.*}/attach/ws",
                vec!["x"],
            ),
            (
                Method::DELETE,
                "/containers/web/db",
                "/containers/{id:.*}",
                vec!["web/db"],
            ),
            (
                Method::DELETE,
                "/containers/x/checkpoints/y",
                "/containers/{id:.*}/checkpoints/{checkpoint}",
                vec!["x", "y"],
            ),
            (Method::DELETE, "/images/a/b", "/images/{name:.*}", vec!["a/b"]),
            (Method::POST, "/exec/1/start", "/exec/{id}/start", vec!["1"]),
            (Method::GET, "/networks/n", "/networks/{id:.*}", vec!["n"]),
        ] {
            let (found, taken) = path_of(&method, path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(
                (found, taken),
                (route, places.into_iter().map(str::to_owned).collect()),
                "{path}"
            );
        }
        for (method, path) in [
            (Method::GET, "/images"),
            (Method::GET, "/images/json/"),
            (Method::POST, "/images/json"),
            (Method::GET, "/containers/x/nothing"),
            (Method::GET, "/exec/1/2/json"),
            (Method::GET, "/nothing"),
        ] {
            assert_eq!(path_of(&method, path), None, "{path}");
        }
    }

    #[test]
    fn no_row_hides_another() {
        for (index, route) in ROUTES.iter().enumerate() {
            let example: Vec<&str> = route
                .path
                .trim_start_matches('/')
                .split('/')
                .map(|segment| if segment.starts_with('{') { "x1" } else { segment })
                .collect();
            let found = ROUTES
                .iter()
                .position(|other| other.method == route.method && matches(other.path, &example).is_some());
            assert_eq!(found, Some(index), "{} {}", route.method, route.path);
        }
    }
}
