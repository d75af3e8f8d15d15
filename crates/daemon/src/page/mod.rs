//! The page: a small program for browsers, served by a listener of its own, and the API for it below `/api`.
//!
//! Off unless it is asked for. Whoever has the page has the API, so it guards itself:
//! - over TCP, a token that was printed once is exchanged for two secrets, and requests need both: a cookie that scripts
//!   cannot read and other sites' requests do not carry (`HttpOnly; SameSite=Strict`), but which browsers send to every port
//!   of a host (RFC 6265, section 8.5); and a key that the page's script keeps, which is its origin's, port and all, and
//!   sends as a header (for websockets, which have no headers of scripts, as a protocol). Over a Unix socket the file's
//!   mode decides, as with the API;
//! - the `Host` has to be an address or localhost: a name that somebody else leads here (DNS rebinding) is refused;
//! - an `Origin` has to be this page's own, and must be there wherever something is changed or a websocket opened;
//! - nothing is loaded from elsewhere, nothing in line (`Content-Security-Policy`), no other page may frame it.

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, COOKIE, HOST, HeaderName, HeaderValue, ORIGIN, REFERRER_POLICY,
    SET_COOKIE, UPGRADE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

use crate::body::Body;
use crate::error::ApiError;
use crate::response;

/// Path, kind and text of what the page is made of.
const FILES: [(&str, &str, &str); 5] = [
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("style.css")),
    (
        "/app.js",
        "text/javascript; charset=utf-8",
        include_str!("app.js"),
    ),
    (
        "/plot.js",
        "text/javascript; charset=utf-8",
        include_str!("plot.js"),
    ),
    (
        "/terminal.js",
        "text/javascript; charset=utf-8",
        include_str!("terminal.js"),
    ),
];
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// How the name of the cookie begins; what follows is the daemon's, for every port of a host gets the cookies of all.
const COOKIE_NAME: &str = "vessel-page-";
/// What the script sends with each request.
const KEY_HEADER: &str = "x-vessel-key";
/// The websocket protocol that the page speaks, and what stands before the key in the other one it offers.
const PROTOCOL: &str = "vessel.page";
const KEY_PROTOCOL: &str = "vessel.key.";
const PROTOCOLS: HeaderName = HeaderName::from_static("sec-websocket-protocol");
/// For what the API says: it is data, whatever it looks like.
const DATA_POLICY: &str = "default-src 'none'; frame-ancestors 'none'; sandbox";
/// A token has 32 digits.
const MAX_TOKEN: usize = 128;
/// How long the token may take to arrive.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A page and who may have it.
#[derive(Debug)]
pub struct Page {
    /// None: whoever reaches the listener.
    token: Option<String>,
    /// What the cookie is called.
    cookie: String,
    /// What it has to say.
    session: String,
    /// What the page's script has to say.
    key: String,
    /// Whether it is reached by `https`.
    secure: bool,
}

/// What becomes of a request.
pub enum Admitted {
    /// It is answered.
    Answer(Box<Response<Body>>),
    /// It is the API's to answer.
    Api(Box<Request<Incoming>>),
}

/// A new token: 32 hexadecimal digits.
///
/// # Errors
/// The kernel's generator cannot be read.
pub fn token() -> io::Result<String> {
    let mut id = vessel_engine::operation::secret()?;
    id.truncate(32);
    Ok(id)
}

impl Page {
    /// The page of a daemon, by its ID, for whoever has the token.
    ///
    /// # Errors
    /// The kernel's generator cannot be read.
    pub fn new(daemon: &str, token: Option<String>, secure: bool) -> io::Result<Self> {
        let name: String = daemon
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .take(12)
            .collect();
        Ok(Self {
            cookie: format!("{COOKIE_NAME}{name}"),
            token,
            session: vessel_engine::operation::secret()?,
            key: vessel_engine::operation::secret()?,
            secure,
        })
    }

    /// Answers a request, or hands it on to the API.
    pub async fn admit(&self, mut request: Request<Incoming>) -> Admitted {
        let answer = match self.refused(&request) {
            Some(why) => Err(ApiError::new(StatusCode::FORBIDDEN, why)),
            None => match request.uri().path().strip_prefix("/api") {
                Some(rest) if rest.starts_with('/') => {
                    if !self.knows(request.headers()) {
                        Err(ApiError::new(
                            StatusCode::UNAUTHORIZED,
                            "log in with the page's token first",
                        ))
                    } else {
                        match without_prefix(&request) {
                            Some(uri) => {
                                *request.uri_mut() = uri;
                                // They have been looked at, and mean nothing to the API.
                                request.headers_mut().remove(ORIGIN);
                                request.headers_mut().remove(COOKIE);
                                request.headers_mut().remove(KEY_HEADER);
                                if request.headers_mut().remove(PROTOCOLS).is_some() {
                                    let protocol = HeaderValue::from_static(PROTOCOL);
                                    request.headers_mut().insert(PROTOCOLS, protocol);
                                }
                                return Admitted::Api(Box::new(request));
                            }
                            None => Err(ApiError::page_not_found()),
                        }
                    }
                }
                _ if request.method() == Method::POST && request.uri().path() == "/login" => {
                    self.login(request).await
                }
                _ => file(&request),
            },
        };
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => response::error(&error),
        };
        guard(answer.headers_mut(), POLICY);
        Admitted::Answer(Box::new(answer))
    }

    /// Why a request may be one of another site.
    fn refused<B>(&self, request: &Request<B>) -> Option<&'static str> {
        let headers = request.headers();
        let mut hosts = headers.get_all(HOST).iter();
        let host = hosts
            .next()
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default();
        if hosts.next().is_some() || !crate::server::is_local(host) || request.uri().authority().is_some() {
            return Some(
                "the page is reached by an IP address or localhost only: another site could have led here",
            );
        }
        let own = format!("{}://{host}", if self.secure { "https" } else { "http" });
        let mut origins = headers.get_all(ORIGIN).iter();
        let origin = origins.next();
        let changes =
            !matches!(*request.method(), Method::GET | Method::HEAD) || headers.contains_key(UPGRADE);
        let same = match origin {
            Some(origin) => {
                origin.as_bytes().eq_ignore_ascii_case(own.as_bytes()) && origins.next().is_none()
            }
            None => !changes,
        };
        if !same {
            return Some("requests of other sites are not answered");
        }
        let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none"))
            && request.uri().path().starts_with("/api/")
        {
            return Some("requests of other sites are not answered");
        }
        None
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        if self.token.is_none() {
            return true;
        }
        let texts = |name: HeaderName| {
            let values = headers.get_all(name).into_iter();
            values.filter_map(|value| value.to_str().ok())
        };
        let session = texts(COOKIE)
            .flat_map(|cookies| cookies.split(';'))
            .filter_map(|cookie| cookie.trim().split_once('='))
            .any(|(name, value)| name == self.cookie && same(value, &self.session));
        let protocol = texts(PROTOCOLS)
            .flat_map(|protocols| protocols.split(','))
            .filter_map(|protocol| protocol.trim().strip_prefix(KEY_PROTOCOL));
        let mut keys = texts(HeaderName::from_static(KEY_HEADER)).chain(protocol);
        session && keys.any(|key| same(key, &self.key))
    }

    async fn login(&self, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
        let body = Limited::new(request.into_body(), MAX_TOKEN).collect();
        let body = tokio::time::timeout(TOKEN_TIMEOUT, body).await.map_err(|_| {
            ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "the token did not arrive within 10 seconds",
            )
        })?;
        let given = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let right = match (&self.token, std::str::from_utf8(&given)) {
            (None, _) => true,
            (Some(token), Ok(given)) => same(given, token),
            _ => false,
        };
        if !right {
            tracing::warn!("somebody gave the page a wrong token");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            return Err(ApiError::new(StatusCode::FORBIDDEN, "that is not the token"));
        }
        let secure = if self.secure { "; Secure" } else { "" };
        let cookie = format!(
            "{}={}; Path=/; HttpOnly; SameSite=Strict{secure}",
            self.cookie, self.session
        );
        let mut answer = response::json(&serde_json::json!({ "Key": self.key }))?;
        let cookie = HeaderValue::from_str(&cookie)
            .map_err(|error| ApiError::internal(format!("the cookie cannot be written: {error}")))?;
        answer.headers_mut().insert(SET_COOKIE, cookie);
        Ok(answer)
    }
}

/// Whether two texts are the same, in a time that does not tell where they differ.
fn same(one: &str, other: &str) -> bool {
    one.len() == other.len()
        && one
            .bytes()
            .zip(other.bytes())
            .fold(0, |differs, (one, other)| differs | (one ^ other))
            == 0
}

/// The address of a request without `/api`.
fn without_prefix<B>(request: &Request<B>) -> Option<hyper::Uri> {
    let rest = request.uri().path_and_query()?.as_str().strip_prefix("/api")?;
    rest.parse().ok()
}

fn file<B>(request: &Request<B>) -> Result<Response<Body>, ApiError> {
    let found = FILES.iter().find(|(path, ..)| *path == request.uri().path());
    match found {
        Some((_, kind, text)) if matches!(*request.method(), Method::GET | Method::HEAD) => {
            let body = match *request.method() {
                Method::HEAD => Body::Empty,
                _ => Body::whole(*text),
            };
            Ok(response::with_type(
                StatusCode::OK,
                HeaderValue::from_static(kind),
                body,
            ))
        }
        _ => Err(ApiError::page_not_found()),
    }
}

/// Guards what the API answers through the page.
pub fn guard_data(headers: &mut HeaderMap) {
    guard(headers, DATA_POLICY);
}

fn guard(headers: &mut HeaderMap, policy: &'static str) {
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(
        "cross-origin-opener-policy",
        HeaderValue::from_static("same-origin"),
    );
    headers.insert(
        "cross-origin-resource-policy",
        HeaderValue::from_static("same-origin"),
    );
}

#[cfg(test)]
mod tests {
    use hyper::header::CONTENT_TYPE;

    use super::*;

    fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn other_sites_are_refused() {
        let page = Page::new("ab-12", Some(token().unwrap()), false).unwrap();
        let host = ("host", "127.0.0.1:8080");
        let own = ("origin", "http://127.0.0.1:8080");
        for (method, headers) in [
            ("GET", vec![host]),
            ("GET", vec![host, own]),
            ("POST", vec![host, own]),
            ("GET", vec![host, own, ("upgrade", "websocket")]),
            ("GET", vec![host, ("sec-fetch-site", "same-origin")]),
            (
                "POST",
                vec![("host", "localhost:1"), ("origin", "http://localhost:1")],
            ),
        ] {
            assert_eq!(
                page.refused(&request(method, "/api/info", &headers)),
                None,
                "{method} {headers:?}"
            );
        }
        for (method, headers) in [
            ("GET", vec![]),
            ("GET", vec![("host", "evil.example:8080")]),
            ("GET", vec![host, ("host", "evil.example")]),
            ("GET", vec![host, ("origin", "http://evil.example")]),
            ("GET", vec![host, ("origin", "null")]),
            ("GET", vec![host, own, ("origin", "http://evil.example")]),
            ("GET", vec![host, ("origin", "https://127.0.0.1:8080")]),
            ("GET", vec![host, ("origin", "http://127.0.0.1:8081")]),
            ("POST", vec![host]),
            ("DELETE", vec![host]),
            ("GET", vec![host, ("upgrade", "websocket")]),
            ("GET", vec![host, ("sec-fetch-site", "cross-site")]),
        ] {
            assert!(
                page.refused(&request(method, "/api/info", &headers)).is_some(),
                "{method} {headers:?}"
            );
        }
    }

    #[test]
    fn a_cookie_and_a_key_or_nothing() {
        let page = Page::new("ab-12", Some(token().unwrap()), false).unwrap();
        let all = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            headers
        };
        let with = |cookie: &str| all(&[("cookie", cookie), ("x-vessel-key", &page.key)]);
        let right = format!("a=b; vessel-page-other=0; vessel-page-ab12={}", page.session);
        assert!(page.knows(&with(&right)));
        let offered = format!("vessel.page, vessel.key.{}", page.key);
        assert!(page.knows(&all(&[("cookie", &right), ("sec-websocket-protocol", &offered)])));
        // A server on another port of this host has the cookie.
        for other in [
            vec![("cookie", right.as_str())],
            vec![("cookie", &right), ("x-vessel-key", "0")],
            vec![("cookie", &right), ("x-vessel-key", &page.session)],
            vec![("cookie", &right), ("sec-websocket-protocol", "vessel.key.0")],
            vec![("cookie", &right), ("sec-websocket-protocol", &page.key)],
            vec![("x-vessel-key", &page.key)],
        ] {
            assert!(!page.knows(&all(&other)), "{other:?}");
        }
        for wrong in [
            "vessel-page-ab12=",
            "vessel-page-ab12=0",
            "a=b",
            &format!("vessel-page-other={}", page.session),
            &format!("other={}", page.session),
        ] {
            assert!(!page.knows(&with(wrong)), "{wrong}");
        }
        assert!(!page.knows(&HeaderMap::new()));
        assert!(Page::new("x", None, false).unwrap().knows(&HeaderMap::new()));
        assert_ne!(token().unwrap(), token().unwrap());
        assert_eq!(token().unwrap().len(), 32);
    }

    #[test]
    fn what_the_page_is_made_of_loads_nothing_in_line() {
        let (_, _, html) = FILES[0];
        assert!(!html.contains("<style") && !html.contains(" style=") && !html.contains(" onclick"));
        assert_eq!(html.matches("<script").count(), 1);
        for (path, kind, _) in FILES {
            let answer = file(&request("GET", path, &[])).unwrap();
            assert_eq!(answer.headers()[CONTENT_TYPE], kind);
        }
        assert!(file(&request("GET", "/../etc/passwd", &[])).is_err());
        assert!(file(&request("POST", "/", &[])).is_err());
    }
}
