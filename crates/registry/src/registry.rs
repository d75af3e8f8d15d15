//! A request's way: route, rights, answer, error.

use std::sync::Arc;
use std::time::Instant;

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};

use crate::api::{blobs, document, field, lists, manifests, uploads, value};
use crate::auth::{Action, Auth, Identity};
use crate::error::{Code, Error, Result};
use crate::http::receive::blocking;
use crate::http::server::Client;
use crate::http::{Body, Request, Response, query};
use crate::local::Local;
use crate::metrics::{Gauges, Metrics};
use crate::name::Repository;
use crate::page;
use crate::proxy::Proxy;
use crate::route::{Kind, Route};
use crate::storage::Storage;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// What clients of the protocol before `/v2/` say, of which `docker search` is what is left.
const DOCKER_TOKEN: HeaderName = HeaderName::from_static("x-docker-token");

/// How a registry behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Nothing can be pushed or deleted.
    pub read_only: bool,
    /// Manifests, tags and blobs can be deleted by clients.
    pub delete: bool,
    /// There is a page for browsers.
    pub page: bool,
    /// Metrics are served at `/metrics` beside everything else, to everybody.
    pub metrics: bool,
    /// `https://registry.example.com`, when clients reach it by another name than they say.
    pub public_url: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            read_only: false,
            delete: true,
            page: true,
            metrics: true,
            public_url: None,
        }
    }
}

/// Answers requests.
#[derive(Debug)]
pub struct Registry {
    storage: Storage,
    auth: Option<Auth>,
    proxy: Option<Arc<Proxy>>,
    local: Option<Arc<Local>>,
    settings: Settings,
    metrics: Arc<Metrics>,
}

/// Why somebody may not.
enum Refusal {
    /// Credentials are wrong or missing, or too small a token.
    Challenge(Error),
    /// This user never may.
    Denied(Error),
}

impl Registry {
    pub(crate) fn new(
        storage: Storage,
        auth: Option<Auth>,
        proxy: Option<Proxy>,
        settings: Settings,
    ) -> Self {
        Self {
            storage,
            auth,
            proxy: proxy.map(Arc::new),
            local: None,
            settings,
            metrics: Arc::default(),
        }
    }

    /// The same, serving the images of an engine.
    pub(crate) fn with_local(mut self, local: Option<Local>) -> Self {
        self.local = local.map(Arc::new);
        self
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Answers a request; failures become answers here.
    pub(crate) async fn answer(self: Arc<Self>, request: Request, client: Client) -> Response {
        let begun = Instant::now();
        let head = request.method() == Method::HEAD;
        let route = Route::parse(request.uri().path());
        let kind = match &route {
            Ok(Some(route)) => route.kind(),
            _ => Kind::Other,
        };
        tracing::debug!(client = %client.address, method = %request.method(), uri = %request.uri(), "request");
        let mut response = match route {
            Ok(Some(route)) => match self.dispatch(request, &client, route).await {
                Ok(response) => response,
                Err(error) => {
                    if error.code() == Code::Unknown {
                        tracing::error!(%error, "a request failed");
                    }
                    failed(&error)
                }
            },
            Ok(None) => failed(&Error::new(
                Code::NotFound,
                "there is nothing here; a registry is at /v2/",
            )),
            Err(error) => failed(&error),
        };
        if kind != Kind::Page {
            response
                .headers_mut()
                .insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        }
        response.headers_mut().insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        if head && !matches!(response.body(), Body::Bytes(None)) {
            *response.body_mut() = Body::empty();
        }
        self.metrics
            .answered(kind, response.status().as_u16(), begun.elapsed());
        response
    }

    async fn dispatch(&self, request: Request, client: &Client, route: Route) -> Result<Response> {
        let reading = matches!(*request.method(), Method::GET | Method::HEAD);
        if client.metrics_only != matches!(route, Route::Metrics)
            && (client.metrics_only || !self.settings.metrics)
        {
            return Err(Error::new(Code::NotFound, "there is nothing here"));
        }
        if route == Route::Token {
            return match &self.auth {
                Some(auth) => match auth.token(request).await {
                    Err(error) if error.code() == Code::Unauthorized => {
                        let mut response = failed(&error);
                        let basic =
                            HeaderValue::from_static("Basic realm=\"Vessel registry\", charset=\"UTF-8\"");
                        response.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
                        self.metrics.refused.add(1);
                        Ok(response)
                    }
                    result => result,
                },
                None => Err(Error::new(Code::NotFound, "this registry needs no tokens")),
            };
        }
        if route == Route::Metrics {
            return self.metrics_text().await;
        }
        let action = match *request.method() {
            Method::GET | Method::HEAD => Action::Pull,
            Method::DELETE if !matches!(route, Route::Upload(..)) => Action::Delete,
            Method::POST | Method::PUT | Method::PATCH | Method::DELETE => Action::Push,
            _ => {
                return Err(Error::new(
                    Code::Unsupported,
                    "the registry does not know this method",
                ));
            }
        };
        // The status of an upload is for who may push.
        let action = if matches!(route, Route::Upload(..)) {
            Action::Push
        } else {
            action
        };
        let who = match self.permit(&request, &route, action).await {
            Ok(who) => who,
            Err(refusal) => return Ok(self.refuse(&request, client, &route, action, refusal)),
        };
        if !reading && self.settings.read_only {
            return Err(Error::new(Code::Unsupported, "this registry is read-only"));
        }
        if action == Action::Delete && !self.settings.delete {
            return Err(Error::new(
                Code::Unsupported,
                "nothing can be deleted from this registry",
            ));
        }
        let storage = &self.storage;
        if let Some(local) = &self.local {
            let (method, headers) = (request.method(), request.headers());
            return match &route {
                Route::Base if reading => Ok(document("application/json", b"{}".to_vec())),
                Route::Blob(name, digest) if reading => local.blob(method, headers, name, digest).await,
                Route::Manifest(name, which) if reading => local.manifest(method, headers, name, which).await,
                Route::Tags(name) if reading => local.tags(name, request.uri().query()).await,
                Route::Catalog if reading => {
                    let mut names = local.catalog().await?;
                    names.retain(|name| self.may_list(&who, name));
                    lists::list_repositories(&names, request.uri().query())
                }
                Route::Search if reading => {
                    let mut names = local.catalog().await?;
                    names.retain(|name| self.may_list(&who, name));
                    lists::search(&names, request.uri().query())
                }
                Route::Referrers(..) if reading => lists::no_referrers(),
                _ => {
                    let why = "this registry serves the images of the engine, and nothing else can be done with them";
                    Err(Error::new(Code::Unsupported, why))
                }
            };
        }
        if let Some(proxy) = &self.proxy {
            let (method, headers) = (request.method(), request.headers());
            match &route {
                Route::Manifest(name, which) if reading => {
                    proxy.ensure_manifest(&self.metrics, name, which).await?
                }
                Route::Blob(name, digest) if reading => {
                    if let Some(response) = proxy.blob(&self.metrics, method, headers, name, digest).await? {
                        return Ok(response);
                    }
                }
                Route::Tags(name) if reading => return proxy.tags(name, request.uri().query()).await,
                Route::Referrers(name, digest) if reading => {
                    return proxy.referrers(name, digest, request.uri().query()).await;
                }
                _ if action == Action::Push => {
                    let why = format!("this registry is a cache of {}; push there", proxy.host());
                    return Err(Error::new(Code::Unsupported, why));
                }
                _ => {}
            }
        }
        let wrong = || {
            Err(Error::new(
                Code::Unsupported,
                "the registry does not do this here",
            ))
        };
        match (route, request.method()) {
            (Route::Base, _) if reading => Ok(document("application/json", b"{}".to_vec())),
            (Route::Blob(name, digest), method) if reading => {
                blobs::get(storage, client, method, request.headers(), &name, &digest)
            }
            (Route::Blob(name, digest), &Method::DELETE) => blobs::delete(storage, name, digest).await,
            (Route::Manifest(name, which), method) if reading => {
                manifests::get(storage, method, request.headers(), &name, &which)
            }
            (Route::Manifest(name, which), &Method::PUT) => {
                manifests::put(storage, request, name, which).await
            }
            (Route::Manifest(name, which), &Method::DELETE) => manifests::delete(storage, name, which).await,
            (Route::Uploads(name), &Method::POST) => {
                let sources = self.sources(&request, &who).await?;
                let owner = owner(&who, client);
                uploads::begin(storage, &self.metrics, request, name, &owner, sources).await
            }
            (Route::Upload(name, id), _) => uploads::act(storage, &self.metrics, request, name, id).await,
            (Route::Tags(name), _) if reading => {
                let (storage, text) = (storage.clone(), request.uri().query().map(str::to_owned));
                blocking(move || lists::tags(&storage, text.as_deref(), &name)).await
            }
            (Route::Referrers(name, digest), _) if reading => {
                let (storage, text) = (storage.clone(), request.uri().query().map(str::to_owned));
                blocking(move || lists::referrers(&storage, text.as_deref(), &name, &digest)).await
            }
            (Route::Catalog, _) if reading => {
                let names = self.visible(&who).await?;
                lists::list_repositories(&names, request.uri().query())
            }
            (Route::Search, _) if reading => {
                let names = self.visible(&who).await?;
                lists::search(&names, request.uri().query())
            }
            (Route::Home | Route::RepositoryPage(_) | Route::ManifestPage(..), _) if !self.settings.page => {
                Err(Error::new(
                    Code::NotFound,
                    "this registry has no pages; a registry is at /v2/",
                ))
            }
            (Route::Home, _) if reading => {
                let (names, storage) = (self.visible(&who).await?, storage.clone());
                blocking(move || page::home(&storage, &names)).await
            }
            (Route::RepositoryPage(name), _) if reading => {
                let (storage, host) = (storage.clone(), host(&request).to_owned());
                blocking(move || page::repository(&storage, &host, &name)).await
            }
            (Route::ManifestPage(name, which), _) if reading => {
                let (storage, host) = (storage.clone(), host(&request).to_owned());
                blocking(move || page::manifest(&storage, &host, &name, &which)).await
            }
            _ => wrong(),
        }
    }

    async fn permit(&self, request: &Request, route: &Route, action: Action) -> Result<Identity, Refusal> {
        let Some(auth) = &self.auth else {
            return Ok(Identity::Anonymous);
        };
        let who = auth
            .identify(request.headers())
            .await
            .map_err(Refusal::Challenge)?;
        let denied = |who: Identity, what: String| {
            let error = |code| Error::new(code, what);
            match who {
                Identity::User(_) => Refusal::Denied(error(Code::Denied)),
                _ => Refusal::Challenge(error(Code::Unauthorized)),
            }
        };
        match route.repository() {
            Some(name) if !auth.may(&who, name, action) => {
                Err(denied(who, format!("{} of {name} is not allowed", action.name())))
            }
            // dockerd shows the password it has without being asked, and cannot be asked for more: a search without
            // one is of somebody who is not logged in. Other clients are challenged, for they may have one.
            None if matches!(route, Route::Search)
                && request.headers().contains_key(DOCKER_TOKEN)
                && auth.may_anybody_read() =>
            {
                Ok(who)
            }
            None if matches!(who, Identity::Anonymous) && !matches!(route, Route::Home) => {
                Err(denied(who, "log in first".into()))
            }
            _ => Ok(who),
        }
    }

    /// The repositories that somebody may see, sorted.
    async fn visible(&self, who: &Identity) -> Result<Vec<Repository>> {
        let storage = self.storage.clone();
        let mut names = blocking(move || storage.repositories()).await?;
        names.retain(|name| self.may_list(who, name));
        Ok(names)
    }

    fn may_list(&self, who: &Identity, name: &Repository) -> bool {
        self.auth.as_ref().is_none_or(|auth| auth.may_list(who, name))
    }

    fn refuse(
        &self,
        request: &Request,
        client: &Client,
        route: &Route,
        action: Action,
        refusal: Refusal,
    ) -> Response {
        self.metrics.refused.add(1);
        let (error, challenge) = match refusal {
            Refusal::Denied(error) => (error, false),
            Refusal::Challenge(error) => {
                let challenge = error.code() == Code::Unauthorized;
                (error, challenge)
            }
        };
        let mut response = failed(&error);
        if challenge && let Some(auth) = &self.auth {
            let tried = request.headers().contains_key(header::AUTHORIZATION);
            let origin = self.origin(request, client);
            // A browser can only be asked for a password.
            let text = if route.kind() == Kind::Page {
                "Basic realm=\"Vessel registry\", charset=\"UTF-8\"".to_owned()
            } else {
                let wanted = route.repository().map(|name| (name, action));
                let error = tried.then_some("insufficient_scope");
                auth.challenge(
                    &origin,
                    wanted,
                    matches!(route, Route::Catalog | Route::Search),
                    error,
                )
            };
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, value(text));
        }
        response
    }

    /// How the client reached this server.
    pub(crate) fn origin(&self, request: &Request, client: &Client) -> String {
        if let Some(url) = &self.settings.public_url {
            return url.clone();
        }
        let forwarded = field(request.headers(), FORWARDED_PROTO) == Some("https");
        let scheme = if client.tls || forwarded { "https" } else { "http" };
        format!("{scheme}://{}", host(request))
    }

    /// Where a blob may be mounted from.
    async fn sources(&self, request: &Request, who: &Identity) -> Result<uploads::Sources> {
        let text = request.uri().query();
        if query::get(text, "mount").is_none() {
            return Ok(uploads::Sources::None);
        }
        if let Some(from) = query::get(text, "from").filter(|from| !from.is_empty()) {
            let from = Repository::parse(&from)?;
            let may = self
                .auth
                .as_ref()
                .is_none_or(|auth| auth.may(who, &from, Action::Pull));
            return Ok(if may {
                uploads::Sources::Named(from)
            } else {
                uploads::Sources::None
            });
        }
        let Some(auth) = &self.auth else {
            return Ok(uploads::Sources::Any);
        };
        if auth.is_uniform(who) {
            return Ok(uploads::Sources::Any);
        }
        let storage = self.storage.clone();
        let mut names = blocking(move || storage.repositories()).await?;
        names.retain(|name| auth.may(who, name, Action::Pull));
        Ok(uploads::Sources::These(names))
    }

    async fn metrics_text(&self) -> Result<Response> {
        let usage = self.storage.usage();
        let gauges = Gauges {
            disk: usage.disk(),
            uploads: self.storage.uploads().count(),
            quotas: usage
                .quotas()
                .into_iter()
                .map(|(quota, used)| (quota.prefix, quota.limit, used))
                .collect(),
        };
        Ok(document(
            "text/plain; version=0.0.4; charset=utf-8",
            self.metrics.render(&gauges).into_bytes(),
        ))
    }
}

/// Whose share an upload takes a place of: a user's, or an address's where nobody says who they are.
fn owner(who: &Identity, client: &Client) -> String {
    match who {
        Identity::User(user) => format!("user {user}"),
        Identity::Token(claims) if !claims.sub.is_empty() => format!("user {}", claims.sub),
        _ => format!("address {}", client.address.ip()),
    }
}

/// The name by which the client knows this server; nothing else gets into an answer.
pub(crate) fn host(request: &Request) -> &str {
    let said = field(request.headers(), header::HOST)
        .or_else(|| request.uri().authority().map(|host| host.as_str()));
    let plain = |host: &&str| {
        host.len() <= 255
            && host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'))
    };
    said.filter(plain).unwrap_or("localhost")
}

/// An answer that tells a failure.
pub(crate) fn failed(error: &Error) -> Response {
    let mut response = document("application/json", error.document());
    *response.status_mut() = error.status();
    if error.status() == StatusCode::TOO_MANY_REQUESTS {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}
