//! The client of the registry behind this one.
//!
//! It is not trusted: documents are bounded, digests are verified by who stores what it sends, credentials go to its
//! own host or, for tokens, to a realm that is reached as safely as itself, and redirects lose them when they lead
//! elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use reqwest::{Client, Url};

use crate::error::{Code, Error, Result};
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::name::Repository;

const CONNECT: Duration = Duration::from_secs(10);
/// An upstream that sends nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(60);
const MAX_TOKEN: usize = 64 << 10;
const MAX_REDIRECTS: usize = 5;
/// Tokens that are kept, one for each repository.
const MAX_TOKENS: usize = 10_000;
/// A token is valid for so long if it does not say.
const TOKEN_VALID: Duration = Duration::from_secs(60);

/// Where the other registry is and how it knows us.
#[derive(Clone)]
pub struct UpstreamOptions {
    /// `https://registry-1.docker.io`
    pub url: String,
    /// User and password.
    pub credentials: Option<(String, String)>,
    /// A certificate (PEM) to trust beside those of the system.
    pub ca: Option<Vec<u8>>,
    /// A proxy on the way there.
    pub http_proxy: Option<String>,
}

impl std::fmt::Debug for UpstreamOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamOptions")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// The client.
pub struct Upstream {
    base: Url,
    client: Client,
    credentials: Option<(String, String)>,
    tokens: Mutex<HashMap<Repository, (HeaderValue, Instant)>>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("base", &self.base.as_str())
            .finish_non_exhaustive()
    }
}

fn wrong(why: impl Into<String>) -> Error {
    Error::new(Code::Unknown, why)
}

/// Follows a few redirects, none of them out of TLS.
fn redirect(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let was_tls = attempt
        .previous()
        .last()
        .is_some_and(|url| url.scheme() == "https");
    if was_tls && attempt.url().scheme() != "https" {
        return attempt.error("the registry behind redirects from https to http");
    }
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("the registry behind redirects too often");
    }
    attempt.follow()
}

impl Upstream {
    /// Prepares to talk to it; nothing is sent yet.
    pub fn new(options: &UpstreamOptions) -> Result<Self> {
        let base = Url::parse(&options.url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.path() == "/")
            .ok_or_else(|| {
                wrong(format!(
                    "{:?} is not the URL of a registry, as in https://registry.example.com",
                    options.url
                ))
            })?;
        let mut client = Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .redirect(reqwest::redirect::Policy::custom(redirect))
            .tls_backend_preconfigured(tls(options.ca.as_deref())?);
        if let Some(proxy) = &options.http_proxy {
            let proxy =
                reqwest::Proxy::all(proxy).map_err(|e| wrong(format!("the proxy cannot be used: {e}")))?;
            client = client.proxy(proxy);
        }
        Ok(Self {
            base,
            client: client
                .build()
                .map_err(|e| wrong(format!("the client cannot be made: {e}")))?,
            credentials: options.credentials.clone(),
            tokens: Mutex::default(),
        })
    }

    /// Its name, for messages.
    pub fn host(&self) -> &str {
        self.base.host_str().unwrap_or_default()
    }

    /// Asks for something of a repository. Every status is an answer.
    pub async fn ask(&self, method: Method, name: &Repository, path: &str) -> Result<reqwest::Response> {
        let url = self
            .base
            .join(&format!("/v2/{name}/{path}"))
            .map_err(|e| wrong(format!("a URL cannot be made of {path:?}: {e}")))?;
        let kept = {
            let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            tokens
                .get(name)
                .filter(|(_, end)| *end > Instant::now())
                .map(|(token, _)| token.clone())
        };
        let response = self.send(method.clone(), url.clone(), kept).await?;
        // Whoever it was redirected to is shown nothing.
        if response.status() != StatusCode::UNAUTHORIZED || response.url().origin() != self.base.origin() {
            return Ok(response);
        }
        let Some(authorization) = self.authorize(name, response.headers()).await? else {
            return Ok(response);
        };
        self.send(method, url, Some(authorization)).await
    }

    async fn send(
        &self,
        method: Method,
        url: Url,
        authorization: Option<HeaderValue>,
    ) -> Result<reqwest::Response> {
        let mut request = self.client.request(method, url);
        for media_type in [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX] {
            request = request.header(header::ACCEPT, media_type);
        }
        if let Some(mut authorization) = authorization {
            authorization.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request.send().await.map_err(|e| self.unavailable(&e))
    }

    /// It does not answer, or breaks off.
    pub fn unavailable(&self, error: &reqwest::Error) -> Error {
        // The innermost cause has the reason; the URL may have secrets of a redirect's target.
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        Error::new(
            Code::Unavailable,
            format!("the registry {} behind this one failed: {cause}", self.host()),
        )
    }

    /// Answers a challenge.
    async fn authorize(&self, name: &Repository, headers: &HeaderMap) -> Result<Option<HeaderValue>> {
        let Some(challenge) = headers
            .get(header::WWW_AUTHENTICATE)
            .and_then(|field| field.to_str().ok())
        else {
            return Ok(None);
        };
        let (scheme, parameters) = challenge.split_once(' ').unwrap_or((challenge, ""));
        let (authorization, valid) = if scheme.eq_ignore_ascii_case("basic") {
            let Some((user, password)) = &self.credentials else {
                return Ok(None);
            };
            (basic(user, password), Duration::from_secs(3600))
        } else if scheme.eq_ignore_ascii_case("bearer") {
            self.token(name, &parse_challenge(parameters)).await?
        } else {
            return Ok(None);
        };
        let authorization = HeaderValue::from_str(&authorization).map_err(|_| {
            Error::new(
                Code::Unavailable,
                "the registry behind this one gave a token that cannot be sent",
            )
        })?;
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            tokens.clear();
        }
        tokens.insert(name.clone(), (authorization.clone(), Instant::now() + valid));
        Ok(Some(authorization))
    }

    async fn token(
        &self,
        name: &Repository,
        challenge: &HashMap<String, String>,
    ) -> Result<(String, Duration)> {
        let refuse =
            |why: String| Error::new(Code::Unavailable, format!("no token for {}: {why}", self.host()));
        let realm = challenge
            .get("realm")
            .ok_or_else(|| refuse("the challenge has no realm".into()))?;
        let mut realm = Url::parse(realm).map_err(|_| refuse("the realm is not a URL".into()))?;
        // Credentials that were meant for a safe connection do not travel on one that is not.
        if realm.scheme() != "https" && !(realm.scheme() == "http" && self.base.scheme() == "http") {
            return Err(refuse("the realm is not safe".into()));
        }
        {
            let mut query = realm.query_pairs_mut();
            if let Some(service) = challenge.get("service") {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &format!("repository:{name}:pull"));
        }
        let mut request = self.client.get(realm);
        if let Some((user, password)) = &self.credentials {
            request = request.basic_auth(user, Some(password));
        }
        let response = request.send().await.map_err(|e| self.unavailable(&e))?;
        if !response.status().is_success() {
            return Err(refuse(format!(
                "the answer is {}; are user and password right?",
                response.status()
            )));
        }
        #[derive(serde::Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<u64>,
        }
        let body = self.body(response, MAX_TOKEN).await?;
        let token: Token =
            serde_json::from_slice(&body).map_err(|_| refuse("the answer cannot be read".into()))?;
        let valid = token.expires_in.map_or(TOKEN_VALID, |seconds| {
            Duration::from_secs(seconds.clamp(10, 3600) * 4 / 5)
        });
        let token = token
            .token
            .or(token.access_token)
            .ok_or_else(|| refuse("the answer has none".into()))?;
        Ok((format!("Bearer {token}"), valid))
    }

    /// Reads a document that has to fit in memory.
    pub async fn body(&self, mut response: reqwest::Response, limit: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| self.unavailable(&e))? {
            if bytes.len() + piece.len() > limit {
                return Err(Error::new(
                    Code::Unavailable,
                    format!(
                        "the registry {} behind this one sent more than {limit} bytes",
                        self.host()
                    ),
                ));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    )
}

/// `realm="…",service="…"` (RFC 9110, section 11)
pub fn parse_challenge(text: &str) -> HashMap<String, String> {
    let mut out = HashMap::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut letters = quoted.char_indices();
            let mut end = quoted.len();
            while let Some((at, letter)) = letters.next() {
                match letter {
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
                    letter => value.push(letter),
                }
            }
            rest = &quoted[end..];
        } else {
            let end = after.find(',').unwrap_or(after.len());
            value.push_str(after[..end].trim());
            rest = &after[end..];
        }
        if out.len() >= 32 {
            break;
        }
        out.insert(key, value);
    }
    out
}

fn tls(ca: Option<&[u8]>) -> Result<rustls::ClientConfig> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(ca) = ca {
        for certificate in CertificateDer::pem_slice_iter(ca) {
            let certificate =
                certificate.map_err(|e| wrong(format!("the certificate to trust cannot be read: {e}")))?;
            roots
                .add(certificate)
                .map_err(|e| wrong(format!("the certificate to trust cannot be used: {e}")))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(e.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges() {
        let parsed = parse_challenge(r#"realm="https://a/t?x=\"y\"",service=reg, scope="a:b,c""#);
        assert_eq!(parsed["realm"], "https://a/t?x=\"y\"");
        assert_eq!(
            (parsed["service"].as_str(), parsed["scope"].as_str()),
            ("reg", "a:b,c")
        );
        assert!(parse_challenge("").is_empty());
    }

    #[test]
    fn only_urls_of_registries() {
        let new = |url: &str| {
            Upstream::new(&UpstreamOptions {
                url: url.into(),
                credentials: None,
                ca: None,
                http_proxy: None,
            })
        };
        assert!(new("https://registry.example.com").is_ok() && new("http://127.0.0.1:5000/").is_ok());
        for bad in ["", "registry", "ftp://x", "https://x/path", "file:///etc"] {
            assert!(new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}") {
            let _ = parse_challenge(&text);
        }
    }
}
