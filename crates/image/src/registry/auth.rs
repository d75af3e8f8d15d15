//! Who one is to a registry: none, basic, or a bearer token from the server that the registry names.
//!
//! Credentials go to the registry they are for and to the token server it names in its challenge, over TLS unless the
//! registry itself is spoken to in clear. Tokens are kept for the life of a [`super::Repository`], by scope.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Url};

use super::challenge::Challenge;
use super::credentials::{Credentials, TOKEN_USERNAME};
use super::token::{MAX_ANSWER, Token};
use super::transport::{Call, Transport, again, authority, complaint, origin, read_all};
use crate::error::{Error, ErrorKind, Result};

/// What token servers know this client as.
const CLIENT_ID: &str = "vessel";
/// Scopes that are remembered for one repository.
const MAX_TOKENS: usize = 64;

/// How a registry wants to be shown who one is.
#[derive(Debug, Clone)]
enum Scheme {
    /// It has not said anything.
    Unknown,
    Basic,
    Bearer {
        realm: Url,
        service: String,
    },
}

/// What is known of a registry's wishes, and the tokens so far.
#[derive(Debug)]
pub(super) struct Authorizer {
    credentials: Credentials,
    state: tokio::sync::Mutex<State>,
}

#[derive(Debug)]
struct State {
    scheme: Scheme,
    tokens: HashMap<String, Token>,
    /// The last token that was not to be had, and since when.
    failed: Option<(Instant, String, Error)>,
}

impl Authorizer {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            state: tokio::sync::Mutex::new(State {
                scheme: Scheme::Unknown,
                tokens: HashMap::new(),
                failed: None,
            }),
        }
    }

    /// The header for a request of this scope (several, separated by blanks), as far as is known. A token that was not to
    /// be had since the request began is not asked for again.
    pub(super) async fn header(
        &self,
        transport: &Transport,
        scope: &str,
        begun: Instant,
    ) -> Result<Option<HeaderValue>> {
        if !self.credentials.registrytoken.is_empty() {
            return bearer(&self.credentials.registrytoken).map(Some);
        }
        // Held while a token is fetched: who else needs it waits for the same, be it a token or a failure.
        let mut state = self.state.lock().await;
        match state.scheme.clone() {
            Scheme::Unknown => Ok(None),
            Scheme::Basic => basic(&self.credentials),
            Scheme::Bearer { realm, service } => {
                if let Some(value) = state.tokens.get(scope).and_then(Token::value) {
                    return bearer(value).map(Some);
                }
                if let Some((when, of, error)) = &state.failed
                    && *when >= begun
                    && (of == scope || error.kind() == ErrorKind::Unavailable)
                {
                    return Err(again(error));
                }
                let fetched = fetch(transport, &self.credentials, &realm, &service, scope, false).await;
                let token = match fetched {
                    Ok(token) => token,
                    Err(error) => {
                        state.failed = Some((Instant::now(), scope.to_owned(), again(&error)));
                        return Err(error);
                    }
                };
                let header = token.value().map(bearer).transpose()?;
                if state.tokens.len() >= MAX_TOKENS {
                    state.tokens.clear();
                }
                state.tokens.insert(scope.to_owned(), token);
                Ok(header)
            }
        }
    }

    /// Takes in a refusal of the registry at `base`. Whether another try may succeed; `shown` is what was refused.
    pub(super) async fn refused(
        &self,
        transport: &Transport,
        base: &Url,
        headers: &HeaderMap,
        scope: &str,
        shown: Option<&HeaderValue>,
    ) -> Result<bool> {
        if !self.credentials.registrytoken.is_empty() {
            return Ok(false);
        }
        let scheme = choose(transport, base, headers, &self.credentials)?;
        let mut state = self.state.lock().await;
        if let Scheme::Basic = scheme {
            state.scheme = scheme;
            // The same name and password would be refused again.
            return Ok(shown.is_none() && basic(&self.credentials)?.is_some());
        }
        if let Scheme::Unknown = scheme {
            return Ok(false);
        }
        state.scheme = scheme;
        let before = state
            .tokens
            .get(scope)
            .and_then(Token::value)
            .map(bearer)
            .transpose()?;
        // Another request may have fetched a new one meanwhile.
        if before.as_ref() == shown {
            state.tokens.remove(scope);
        }
        Ok(true)
    }

    /// Shows name and password to the registry's token server; gives what replaces the password, if it has such a thing.
    pub(super) async fn login_token(&self, transport: &Transport) -> Result<Option<String>> {
        let state = self.state.lock().await;
        let Scheme::Bearer { realm, service } = &state.scheme else {
            return Ok(None);
        };
        let token = fetch(transport, &self.credentials, realm, service, "", true).await?;
        Ok(token.refresh().map(str::to_owned))
    }
}

/// Chooses among the challenges: bearer before basic.
fn choose(
    transport: &Transport,
    base: &Url,
    headers: &HeaderMap,
    credentials: &Credentials,
) -> Result<Scheme> {
    let challenges: Vec<Challenge> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .take(8)
        .filter_map(|value| value.to_str().ok())
        .flat_map(Challenge::parse_all)
        .collect();
    if let Some(challenge) = challenges.iter().find(|one| one.scheme == "bearer") {
        let bad = |why: &str| {
            Error::new(
                ErrorKind::Unavailable,
                format!("{} names a token server {why}", origin(base)),
            )
        };
        let realm = challenge.get("realm").ok_or_else(|| bad("without an address"))?;
        let realm = Url::parse(realm).map_err(|_| bad("by something that is no address"))?;
        let clear_is_fine = base.scheme() == "http" || transport.settings.is_insecure(&authority(&realm));
        match realm.scheme() {
            "https" => {}
            "http" if clear_is_fine || credentials.is_anonymous() => {}
            "http" => return Err(bad("without TLS, which would give the credentials away")),
            _ => return Err(bad("that is neither http nor https")),
        }
        return Ok(Scheme::Bearer {
            realm,
            service: challenge.get("service").unwrap_or_default().to_owned(),
        });
    }
    if challenges.iter().any(|one| one.scheme == "basic") {
        return Ok(Scheme::Basic);
    }
    Ok(Scheme::Unknown)
}

async fn fetch(
    transport: &Transport,
    credentials: &Credentials,
    realm: &Url,
    service: &str,
    scope: &str,
    offline: bool,
) -> Result<Token> {
    let call = if credentials.identitytoken.is_empty() {
        by_get(credentials, realm, service, scope, offline)
    } else {
        by_post(credentials, realm, service, scope)?
    };
    let shown = match credentials.identitytoken.is_empty() {
        true => basic(credentials)?,
        false => None,
    };
    let what = "cannot get a token";
    let limit = Duration::from_secs(60);
    let asking = async {
        let response = transport.send(&call, shown.as_ref()).await?;
        if !response.status().is_success() {
            return Err(complaint(response, what).await);
        }
        Token::parse(&read_all(response, MAX_ANSWER, "a token").await?)
    };
    tokio::time::timeout(limit, asking).await.map_err(|_| {
        Error::new(
            ErrorKind::Unavailable,
            format!("{what}: {} does not answer in time", origin(realm)),
        )
    })?
}

fn by_get(credentials: &Credentials, realm: &Url, service: &str, scope: &str, offline: bool) -> Call {
    let mut url = realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if !service.is_empty() {
            query.append_pair("service", service);
        }
        for one in scope.split_whitespace() {
            query.append_pair("scope", one);
        }
        if !credentials.username.is_empty() {
            query.append_pair("account", &credentials.username);
        }
        if offline {
            query
                .append_pair("offline_token", "true")
                .append_pair("client_id", CLIENT_ID);
        }
    }
    Call::new(Method::GET, url)
}

/// OAuth2: an identity token is exchanged.
fn by_post(credentials: &Credentials, realm: &Url, service: &str, scope: &str) -> Result<Call> {
    let mut form = realm.clone();
    form.set_query(None);
    form.query_pairs_mut()
        .append_pair("grant_type", "refresh_token")
        .append_pair("service", service)
        .append_pair("client_id", CLIENT_ID)
        .append_pair("scope", scope)
        .append_pair("refresh_token", &credentials.identitytoken);
    let body = form.query().unwrap_or_default().as_bytes().to_vec();
    let mut call =
        Call::new(Method::POST, realm.clone()).header("content-type", "application/x-www-form-urlencoded")?;
    call.body = body;
    Ok(call)
}

fn basic(credentials: &Credentials) -> Result<Option<HeaderValue>> {
    let (name, password) = match (credentials.username.as_str(), credentials.identitytoken.as_str()) {
        ("", "") => return Ok(None),
        ("", token) => (TOKEN_USERNAME, token),
        (name, _) => (name, credentials.password.as_str()),
    };
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
    secret(format!("Basic {pair}")).map(Some)
}

fn bearer(token: &str) -> Result<HeaderValue> {
    secret(format!("Bearer {token}"))
}

/// A header's value that HTTP libraries do not print.
fn secret(value: String) -> Result<HeaderValue> {
    let mut value = HeaderValue::try_from(value)
        .map_err(|_| Error::invalid("the credentials hold characters that no header can have"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::super::settings::Settings;
    use super::*;

    fn chosen(base: &str, header: &'static str, credentials: &Credentials) -> Result<Scheme> {
        let transport = Transport::new(Settings::default());
        let mut headers = HeaderMap::new();
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(header));
        choose(&transport, &Url::parse(base).unwrap(), &headers, credentials)
    }

    #[test]
    fn credentials_are_not_sent_in_clear() {
        let me = Credentials::password("me", "pw");
        let clear = "Bearer realm=\"http://evil.example/token\",service=\"x\"";
        assert!(chosen("https://r.example", clear, &me).is_err());
        assert!(chosen("https://r.example", clear, &Credentials::default()).is_ok());
        assert!(chosen("http://localhost:5000", clear, &me).is_ok());
        assert!(chosen("https://r.example", "Bearer realm=\"file:///etc/passwd\"", &me).is_err());
        assert!(matches!(
            chosen(
                "https://r.example",
                "Basic realm=x, Bearer realm=\"https://t.example\"",
                &me
            ),
            Ok(Scheme::Bearer { .. })
        ));
    }

    #[test]
    fn requests_for_tokens() {
        let me = Credentials::password("me", "pw");
        let realm = Url::parse("https://t.example/token?a=b").unwrap();
        let call = by_get(
            &me,
            &realm,
            "s",
            "repository:a:pull repository:b:pull,push",
            false,
        );
        assert_eq!(
            call.url.query(),
            Some("a=b&service=s&scope=repository%3Aa%3Apull&scope=repository%3Ab%3Apull%2Cpush&account=me")
        );
        let token = Credentials {
            identitytoken: "secret".into(),
            ..Credentials::default()
        };
        let call = by_post(&token, &realm, "s", "x y").unwrap();
        assert_eq!(
            String::from_utf8(call.body).unwrap(),
            "grant_type=refresh_token&service=s&client_id=vessel&scope=x+y&refresh_token=secret"
        );
        assert_eq!(call.url, realm);
    }
}
