//! Requests over HTTP: connections, redirects, retries.
//!
//! Redirects are followed here, one by one: `Authorization` goes to the origin it was meant for and nowhere else, and
//! never from `https:` to `http:`. What may succeed a moment later (a broken connection, 429, 5xx) is tried again with
//! growing pauses, or the pause that the server asks for; that there is no way to a host at all (no address for its name,
//! nobody who listens) only when it answered a short while ago. Silence is bounded in both directions, duration in none.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Body, Client, Method, NoProxy, Proxy, Response, StatusCode, Url};

use super::headers;
use super::names::{Forbidden, Guard, Names};
use super::settings::{Settings, is_named};
use super::silence::Pulse;
use super::tls;
use crate::error::{Error, ErrorKind, Result, show};

/// Redirects in a row.
const MAX_REDIRECTS: usize = 10;
/// The first pause before another try; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause of one's own.
const MAX_PAUSE: Duration = Duration::from_secs(8);
/// Of an error's answer so much is read, and for so long.
const MAX_COMPLAINT: usize = 64 << 10;
const COMPLAINT_TIME: Duration = Duration::from_secs(30);
/// Clients that are kept: redirects name hosts as they like.
const MAX_CLIENTS: usize = 256;
/// A host that answered within this time is there: when it cannot be reached, that will pass.
const REACHED: Duration = Duration::from_secs(120);
/// Hosts of which it is known when they answered.
const MAX_REACHED: usize = 1024;
/// Large windows: a layer is one stream, and the way may be long.
const WINDOW: u32 = 4 << 20;

/// A request that can be made more than once.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    /// The address comes from somebody who could not ask there: only public hosts are asked, and this one (`host[:port]`).
    pub(super) foreign: Option<String>,
}

impl Call {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            body: Vec::new(),
            foreign: None,
        }
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Result<Self> {
        let value = HeaderValue::from_str(value).map_err(|_| {
            Error::invalid(format!(
                "{} cannot be sent in the header {name}",
                show(value.as_bytes())
            ))
        })?;
        self.headers.append(name, value);
        Ok(self)
    }
}

/// What a client is for. Each has connections of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Purpose {
    /// Questions without a body, answers of any size.
    Receive,
    /// Requests of any size, of which the answer may take long, such as the one that ends an upload. Their silence is
    /// bounded here, see [`Pulse`].
    Send,
    /// Addresses that somebody else wrote down.
    Foreign,
}

/// Connections to registries, shared by all who use the same settings.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) settings: Settings,
    names: Names,
    /// By purpose and host, for hosts with certificates of their own or none that count; all others share one. With
    /// the certificates it was made with.
    clients: Mutex<HashMap<(Purpose, String), (tls::Stamp, Client)>>,
    /// When a host answered last.
    reached: Mutex<HashMap<String, Instant>>,
}

impl Transport {
    pub(super) fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            names: Names::default(),
            clients: Mutex::default(),
            reached: Mutex::default(),
        })
    }

    /// It answered, whatever it said.
    fn answered(&self, url: &Url) {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        if reached.len() >= MAX_REACHED {
            reached.clear();
        }
        reached.insert(authority(url), Instant::now());
    }

    /// A failure of a request, which lasts when nothing says that there is a way to the host.
    fn failed(&self, url: &Url, error: reqwest::Error) -> Error {
        let no_way = error.is_connect();
        let error = unreachable(url, error);
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = reached
            .get(&authority(url))
            .is_some_and(|when| when.elapsed() < REACHED);
        match error.source().and_then(|source| source.downcast_ref::<Broken>()) {
            Some(broken) if no_way && !lately => Error::with_source(
                error.kind(),
                error.message(),
                Broken {
                    permanent: true,
                    ..broken.clone()
                },
            ),
            _ => error,
        }
    }

    fn client(&self, url: &Url, purpose: Purpose) -> Result<Client> {
        let authority = authority(url);
        let secure = url.scheme() == "https";
        let own = tls::directory(&self.settings.certificates, &authority).filter(|_| secure);
        // Who names authorities wants a certificate of theirs, also of this machine itself.
        let insecure = secure
            && own.is_none()
            && match self.settings.authorities {
                Some(_) => is_named(&self.settings.insecure, &authority),
                None => self.settings.is_insecure(&authority),
            };
        let host = match (secure, own.is_some() || insecure) {
            (false, _) => "http:",
            (true, true) => authority.as_str(),
            (true, false) => "",
        };
        let key = (purpose, host.to_owned());
        // New certificates count at once, for new connections.
        let stamp = own.as_deref().map(tls::stamp).transpose()?.unwrap_or_default();
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, client)) = clients.get(&key)
            && *known == stamp
        {
            return Ok(client.clone());
        }
        let client = self.build(key.0, secure, own.as_deref(), insecure)?;
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, (stamp, client.clone()));
        Ok(client)
    }

    fn build(
        &self,
        purpose: Purpose,
        secure: bool,
        own: Option<&std::path::Path>,
        insecure: bool,
    ) -> Result<Client> {
        let settings = &self.settings;
        let config = if secure {
            tls::config(own, insecure, settings.authorities.as_deref())?
        } else {
            // Never used; the library wants one.
            tls::config(None, true, None)?
        };
        let names = match purpose {
            Purpose::Foreign => self.names.guarded(self.guard()),
            _ => self.names.clone(),
        };
        let mut builder = Client::builder()
            .user_agent(&settings.user_agent)
            .tls_backend_preconfigured(config)
            .dns_resolver(names)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(settings.connect_timeout)
            .tcp_user_timeout(settings.read_timeout)
            .http2_initial_stream_window_size(WINDOW)
            .http2_initial_connection_window_size(WINDOW * 2)
            .no_proxy();
        if purpose != Purpose::Send {
            // It runs from the beginning of a request, also while a body is sent.
            builder = builder.read_timeout(settings.read_timeout);
        }
        for proxy in self.proxies()? {
            builder = builder.proxy(proxy);
        }
        builder.build().map_err(|error| {
            Error::new(
                ErrorKind::Io,
                format!("cannot set up HTTP: {}", innermost(&error)),
            )
        })
    }

    /// Who may be asked in a stranger's name: beside everybody who is public what was declared insecure, and proxies.
    fn guard(&self) -> Guard {
        let settings = &self.settings;
        let proxies = settings.http_proxy.iter().chain(&settings.https_proxy);
        let hosts = proxies.filter_map(|proxy| {
            let url = Url::parse(proxy)
                .or_else(|_| Url::parse(&format!("http://{proxy}")))
                .ok()?;
            url.host_str().map(str::to_ascii_lowercase)
        });
        Guard {
            hosts: hosts.collect(),
            insecure: settings.insecure.clone(),
        }
    }

    fn proxies(&self) -> Result<Vec<Proxy>> {
        let settings = &self.settings;
        // Like Go's: loopback is always reached directly.
        let direct = format!(
            "localhost,127.0.0.0/8,::1,{}",
            settings.no_proxy.as_deref().unwrap_or_default()
        );
        let direct = NoProxy::from_string(&direct);
        let mut proxies = Vec::new();
        let all = [(&settings.http_proxy, false), (&settings.https_proxy, true)];
        for (address, secure) in all {
            let Some(address) = address.as_deref().filter(|address| !address.is_empty()) else {
                continue;
            };
            // The address may hold a password.
            let proxy = if secure {
                Proxy::https(address)
            } else {
                Proxy::http(address)
            };
            let proxy = proxy.map_err(|_| {
                Error::invalid("the address of the proxy is not valid: http://proxy:3128 is one")
            })?;
            proxies.push(proxy.no_proxy(direct.clone()));
        }
        Ok(proxies)
    }

    /// Makes a request once, following redirects where the method allows it. Any status is a result.
    pub(super) async fn once(&self, call: &Call, authorization: Option<&HeaderValue>) -> Result<Response> {
        let mut url = call.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let stranger = call.foreign.as_ref().is_some_and(|own| *own != authority(&url));
            let asks = call.method == Method::GET || call.method == Method::HEAD;
            let purpose = match asks {
                _ if stranger => Purpose::Foreign,
                true => Purpose::Receive,
                false => Purpose::Send,
            };
            let host = url.host_str().unwrap_or_default();
            if stranger && !self.guard().allows(host) {
                return Err(Error::with_source(
                    ErrorKind::Permission,
                    format!("{} is not asked", origin(&url)),
                    Forbidden(host.to_owned()),
                ));
            }
            let mut request = self
                .client(&url, purpose)?
                .request(call.method.clone(), url.clone())
                .headers(call.headers.clone());
            if let Some(authorization) = authorization.filter(|_| same_origin(&url, &call.url)) {
                request = request.header(AUTHORIZATION, authorization);
            }
            if !call.body.is_empty() {
                request = request.body(call.body.clone());
            }
            // Bodies are documents here: what is sent and answered within this is not bounded any further.
            let response = tokio::time::timeout(self.settings.answer_timeout, request.send())
                .await
                .map_err(|_| silent(&url))?
                .map_err(|error| self.failed(&url, error))?;
            self.answered(&url);
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED || !asks {
                return Ok(response);
            }
            url = self.redirected(&url, response.headers().get(LOCATION))?;
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "{} leads through more than {MAX_REDIRECTS} redirects",
                origin(&call.url)
            ),
        ))
    }

    /// Where a `Location` leads.
    fn redirected(&self, from: &Url, location: Option<&HeaderValue>) -> Result<Url> {
        let bad = |why: &str| {
            Error::new(
                ErrorKind::Unavailable,
                format!("{} redirects {why}", origin(from)),
            )
        };
        let location = location
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| bad("to nowhere: it gives no location"))?;
        let to = from
            .join(location)
            .map_err(|_| bad("to something that is no address"))?;
        match to.scheme() {
            "https" => {}
            "http" if from.scheme() == "http" || is_named(&self.settings.insecure, &authority(&to)) => {}
            "http" => return Err(bad("from https to http, which would give away what is encrypted")),
            _ => return Err(bad("to something that is neither http nor https")),
        }
        Ok(to)
    }

    /// Makes a request whose body is a stream, once, without redirects. It may take as long as it gets on.
    pub(super) async fn stream(
        &self,
        call: &Call,
        authorization: Option<&HeaderValue>,
        body: impl Stream<Item = std::io::Result<Bytes>> + Send + Sync + Unpin + 'static,
    ) -> Result<Response> {
        let pulse = Pulse::new();
        let mut request = self
            .client(&call.url, Purpose::Send)?
            .request(call.method.clone(), call.url.clone())
            .headers(call.headers.clone())
            .body(Body::wrap_stream(pulse.follow(body)));
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let settings = &self.settings;
        let response = pulse
            .bound(settings.read_timeout, settings.answer_timeout, request.send())
            .await
            .ok_or_else(|| silent(&call.url))?
            .map_err(|error| self.failed(&call.url, error))?;
        self.answered(&call.url);
        Ok(response)
    }

    /// How long to wait before try number `attempt` (from 0), or `None` when there were enough.
    pub(super) fn pause(&self, attempt: u32, asked: Option<Duration>) -> Option<Duration> {
        if attempt >= self.settings.retries {
            return None;
        }
        let own = FIRST_PAUSE.saturating_mul(1 << attempt.min(10)).min(MAX_PAUSE);
        let own = own.mul_f64(0.5 + jitter());
        Some(asked.map_or(own, |asked| asked.max(own)))
    }

    /// Makes a request, again and again while that may help.
    pub(super) async fn send(&self, call: &Call, authorization: Option<&HeaderValue>) -> Result<Response> {
        let mut attempt = 0;
        loop {
            let result = self.once(call, authorization).await;
            let (asked, why) = match &result {
                Ok(response) if is_passing(response.status()) => {
                    (wanted_pause(response), response.status().to_string())
                }
                Err(error) if error.kind() == ErrorKind::Unavailable && is_connection(error) => {
                    (None, error.to_string())
                }
                _ => return result,
            };
            let Some(pause) = self.pause(attempt, asked) else {
                return result;
            };
            tracing::debug!(host = origin(&call.url), why, "trying again in {pause:?}");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }
}

/// The pause an answer asks for.
pub(super) fn wanted_pause(response: &Response) -> Option<Duration> {
    headers::retry_after(response.headers().get(RETRY_AFTER)?.to_str().ok()?)
}

/// Whether the same request may succeed later.
pub(super) fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Between 0 and 1, different for each who waits.
fn jitter() -> f64 {
    let mut bytes = [0; 2];
    let random = ring::rand::SystemRandom::new();
    match ring::rand::SecureRandom::fill(&random, &mut bytes) {
        Ok(()) => f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX),
        Err(_) => 0.5,
    }
}

fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// `host[:port]` of an address.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// An address in a message: no path, no query, which may hold signatures.
pub(super) fn origin(url: &Url) -> String {
    format!("{}://{}", url.scheme(), authority(url))
}

/// A marker for failures of connections, which are worth another try.
#[derive(Debug, Clone)]
struct Broken {
    why: String,
    permanent: bool,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Broken {}

/// Whether the connection failed in a way that may pass.
pub(super) fn is_connection(error: &Error) -> bool {
    error
        .source()
        .and_then(|source| source.downcast_ref::<Broken>())
        .is_some_and(|broken| !broken.permanent)
}

/// The same failure, for another who waited for what failed.
pub(super) fn again(error: &Error) -> Error {
    match error.source().and_then(|source| source.downcast_ref::<Broken>()) {
        Some(broken) => Error::with_source(error.kind(), error.message(), broken.clone()),
        None => Error::new(error.kind(), error.to_string()),
    }
}

/// A server that takes nothing any more, or does not answer what it took.
fn silent(url: &Url) -> Error {
    Error::with_source(
        ErrorKind::Unavailable,
        format!("{} does not answer in time", origin(url)),
        Broken {
            why: "it was silent for too long".to_owned(),
            permanent: false,
        },
    )
}

pub(super) fn unreachable(url: &Url, error: reqwest::Error) -> Error {
    if let Some(forbidden) = forbidden(&error) {
        return Error::with_source(
            ErrorKind::Permission,
            format!("{} is not asked", origin(url)),
            Forbidden(forbidden.0.clone()),
        );
    }
    let mut why = innermost(&error);
    let lower = why.to_lowercase();
    let mut permanent = false;
    // How servers say it differs by their library and version of TLS.
    let refused = [
        "certificate",
        "unknownca",
        "decrypterror",
        "handshakefailure",
        "accessdenied",
    ];
    let place = format!(
        "put client.cert and client.key into /etc/vessel/certs.d/{}",
        authority(url)
    );
    let advice = if lower.contains("fatal alert") && refused.iter().any(|alert| lower.contains(alert)) {
        permanent = true;
        format!("; it wants a certificate of this client, or another one: {place}")
    } else if url.scheme() == "https" && cut_off(&lower) {
        format!("; if it wants a certificate of this client, or another one: {place}")
    } else if lower.contains("certificate") || lower.contains("unknownissuer") {
        permanent = true;
        format!(
            "; put the authority's certificate into /etc/vessel/certs.d/{}/ca.crt, or declare the registry with --insecure-registry",
            authority(url)
        )
    } else if lower.contains("invalidcontenttype") || lower.contains("corrupt message") {
        permanent = true;
        "; it does not speak TLS: declare it with --insecure-registry if that is how it should be".to_owned()
    } else if lower.contains("dns")
        || lower.contains("no record")
        || lower.contains("no connections available")
    {
        if lower.contains("no record") {
            permanent = true;
            why = format!("there is no address for the name {}", authority(url));
        }
        "; is its name right, and is there a name server?".to_owned()
    } else {
        String::new()
    };
    let what = if error.is_timeout() {
        "does not answer in time"
    } else if error.is_connect() {
        "cannot be reached"
    } else {
        "broke the connection off"
    };
    Error::with_source(
        ErrorKind::Unavailable,
        format!("{} {what}", origin(url)),
        Broken {
            why: format!("{why}{advice}"),
            permanent,
        },
    )
}

/// Whether the server closed a connection that was made. With TLS 1.3 it looks at the client's certificate when the client
/// holds the connection for made already, and its alert is lost when the request meets the closed connection.
fn cut_off(why: &str) -> bool {
    ["connection was not ready", "connection reset", "broken pipe"]
        .iter()
        .any(|end| why.contains(end))
}

fn forbidden(error: &reqwest::Error) -> Option<&Forbidden> {
    let mut cause: &dyn std::error::Error = error;
    loop {
        if let Some(forbidden) = cause.downcast_ref() {
            return Some(forbidden);
        }
        cause = cause.source()?;
    }
}

/// The cause at the bottom, which says most, without addresses that may hold signatures.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    match cause.downcast_ref::<reqwest::Error>() {
        // Itself: its text has the whole address.
        Some(_) => "the request could not be made".to_owned(),
        None => {
            let text = cause.to_string();
            let end = text.find(" (os error").unwrap_or(text.len());
            text[..end].to_owned()
        }
    }
}

/// Reads an answer of at most `limit` bytes.
pub(super) async fn read_all(response: Response, limit: usize, what: &str) -> Result<Vec<u8>> {
    let url = response.url().clone();
    let too_large = || {
        Error::limit(format!(
            "{what} from {} is larger than {limit} bytes",
            origin(&url)
        ))
    };
    if response
        .content_length()
        .is_some_and(|length| length > limit as u64)
    {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| unreachable(&url, error))?;
        if bytes.len() + piece.len() > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// What a registry says went wrong, as an error. `what` was attempted.
pub(super) async fn complaint(response: Response, what: &str) -> Error {
    #[derive(serde::Deserialize)]
    struct Complaint {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: Option<String>,
    }
    let status = response.status();
    let host = origin(response.url());
    let body = tokio::time::timeout(COMPLAINT_TIME, read_all(response, MAX_COMPLAINT, "an error"));
    let body = body.await.ok().and_then(Result::ok).unwrap_or_default();
    let said = serde_json::from_slice::<Complaint>(&body)
        .ok()
        .and_then(|complaint| complaint.errors.into_iter().next())
        .map(
            |entry| match entry.message.filter(|message| !message.is_empty()) {
                Some(message) => message,
                None => entry.code,
            },
        )
        .map(|text| {
            // It goes to a terminal.
            let clean: String = text.chars().filter(|c| !c.is_control()).take(500).collect();
            format!(": {clean}")
        })
        .unwrap_or_default();
    let kind = match status.as_u16() {
        401 => ErrorKind::Unauthorized,
        403 => ErrorKind::Permission,
        404 => ErrorKind::NotFound,
        405 | 501 => ErrorKind::Unsupported,
        400 | 409..=428 => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    };
    let advice = match status.as_u16() {
        401 | 403 => "; the repository may not exist, or may require `login`",
        429 => "; it has had too many requests: wait, or `login` for a higher limit",
        _ => "",
    };
    Error::new(kind, format!("{what}: {host} answers {status}{said}{advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_keep_what_is_encrypted() {
        let transport = Transport::new(Settings {
            insecure: vec!["named.example".into()],
            ..Settings::default()
        });
        let leads = |from: &str, to: &'static str| {
            let to = HeaderValue::from_static(to);
            transport
                .redirected(&Url::parse(from).unwrap(), Some(&to))
                .is_ok()
        };
        for to in [
            "https://other.example/",
            "/relative",
            "http://named.example:5000/",
        ] {
            assert!(leads("https://registry.example/", to), "{to}");
        }
        for to in [
            "http://other.example/",
            "http://127.0.0.1:5000/",
            "http://localhost/",
            "ftp://other.example/",
        ] {
            assert!(!leads("https://registry.example/", to), "{to}");
        }
        assert!(leads("http://127.0.0.1:5000/", "http://127.0.0.1:5001/"));
    }
}
