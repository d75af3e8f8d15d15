//! A pull-through cache: what is not here is fetched from another registry, stored, and served from then on.
//!
//! Content never changes under its digest, so only tags grow old: one is asked for again when its time is over, and
//! what it pointed to before is served when the other registry does not answer. However many clients ask for the same
//! blob, it is fetched once; they get its bytes while it is stored, and its last byte only when the digest was right.
//! When a quota has no room for a blob, it is passed on without being stored.

mod fetch;
mod upstream;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode};
use vessel_image::Digest;

use crate::api::{CONTENT_DIGEST, describe, document, empty, field, lists, value};
use crate::error::{Code, Error, Result};
use crate::http::receive::blocking;
use crate::http::{Body, Response, query};
use crate::manifest::{MAX_MANIFEST, OCI_INDEX};
use crate::metrics::Metrics;
use crate::name::{ManifestName, Repository, Tag};
use crate::storage::Storage;

use upstream::Upstream;
pub use upstream::{UpstreamOptions, parse_challenge};

/// Tags whose age is known.
const MAX_TAGS: usize = 100_000;
const MAX_LIST: usize = 16 << 20;

/// The other registry and for how long a tag is believed.
#[derive(Debug, Clone)]
pub struct ProxyOptions {
    /// The registry behind.
    pub upstream: UpstreamOptions,
    /// How long a tag points to what it pointed to.
    pub ttl: Duration,
}

/// Who asks the other registry for something holds it.
type Turn = tokio::sync::Mutex<()>;

/// The cache.
#[derive(Debug)]
pub struct Proxy {
    upstream: Arc<Upstream>,
    storage: Storage,
    ttl: Duration,
    fresh: Mutex<HashMap<(Repository, Tag), Instant>>,
    /// One request at a time asks for the same manifest.
    asking: Mutex<HashMap<(Repository, String), Weak<Turn>>>,
    fetches: fetch::Fetches,
}

impl Proxy {
    /// Prepares the cache.
    pub fn new(options: &ProxyOptions, storage: Storage) -> Result<Self> {
        Ok(Self {
            upstream: Arc::new(Upstream::new(&options.upstream)?),
            storage,
            ttl: options.ttl,
            fresh: Mutex::default(),
            asking: Mutex::default(),
            fetches: fetch::Fetches::default(),
        })
    }

    /// The name of the registry behind.
    pub fn host(&self) -> &str {
        self.upstream.host()
    }

    fn turn(&self, name: &Repository, what: &str) -> Arc<Turn> {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        asking.retain(|_, turn| turn.strong_count() > 0);
        let slot = asking.entry((name.clone(), what.to_owned())).or_default();
        slot.upgrade().unwrap_or_else(|| {
            let turn = Arc::new(Turn::new(()));
            *slot = Arc::downgrade(&turn);
            turn
        })
    }

    /// Sees to it that a manifest is in the storage, if the other registry has it.
    pub async fn ensure_manifest(
        &self,
        metrics: &Metrics,
        name: &Repository,
        which: &ManifestName,
    ) -> Result<()> {
        if self.is_fresh(name, which) {
            metrics.proxy_hits.add(1);
            return Ok(());
        }
        let turn = self.turn(name, &which.to_string());
        let _turn = turn.lock().await;
        if self.is_fresh(name, which) {
            metrics.proxy_hits.add(1);
            return Ok(());
        }
        metrics.proxy_misses.add(1);
        match (self.update(name, which).await, which) {
            (Err(error), ManifestName::Tag(tag)) if error.code() == Code::Unavailable => {
                if self.storage.resolve(name, tag).is_ok() {
                    tracing::warn!(%error, %name, %tag, "what the tag pointed to before is served");
                    return Ok(());
                }
                Err(error)
            }
            (result, _) => result,
        }
    }

    fn is_fresh(&self, name: &Repository, which: &ManifestName) -> bool {
        match which {
            ManifestName::Digest(digest) => self.storage.has_manifest(name, digest),
            ManifestName::Tag(tag) => {
                let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
                let asked = fresh.get(&(name.clone(), tag.clone()));
                asked.is_some_and(|asked| asked.elapsed() < self.ttl)
                    && self.storage.resolve(name, tag).is_ok()
            }
        }
    }

    fn believe(&self, name: &Repository, which: &ManifestName) {
        if let ManifestName::Tag(tag) = which {
            let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
            if fresh.len() >= MAX_TAGS {
                fresh.retain(|_, asked| asked.elapsed() < self.ttl);
            }
            if fresh.len() >= MAX_TAGS {
                fresh.clear();
            }
            fresh.insert((name.clone(), tag.clone()), Instant::now());
        }
    }

    async fn update(&self, name: &Repository, which: &ManifestName) -> Result<()> {
        // A tag that still points to what is here costs one question without an answer's body.
        if let ManifestName::Tag(tag) = which {
            let head = self
                .upstream
                .ask(Method::HEAD, name, &format!("manifests/{tag}"))
                .await?;
            let digest =
                field(head.headers(), CONTENT_DIGEST).and_then(|digest| digest.parse::<Digest>().ok());
            if head.status() == StatusCode::OK
                && let Some(digest) = digest
                && self.storage.resolve(name, tag).is_ok_and(|known| known == digest)
                && self.storage.has_manifest(name, &digest)
            {
                self.believe(name, which);
                return Ok(());
            }
        }
        let response = self
            .upstream
            .ask(Method::GET, name, &format!("manifests/{which}"))
            .await?;
        self.check(response.status(), Code::ManifestUnknown, || {
            format!("{name} has no manifest {which}")
        })?;
        let content_type = field(response.headers(), header::CONTENT_TYPE).map(str::to_owned);
        let said = field(response.headers(), CONTENT_DIGEST).and_then(|digest| digest.parse::<Digest>().ok());
        let raw = self.upstream.body(response, MAX_MANIFEST).await?;
        if let (Some(said), ManifestName::Tag(_)) = (&said, which)
            && !said.verify(&raw)
        {
            return Err(Error::new(
                Code::Unavailable,
                format!(
                    "the registry {} behind this one sent a manifest that is not {said}",
                    self.host()
                ),
            ));
        }
        let (storage, to, wanted) = (self.storage.clone(), name.clone(), which.clone());
        blocking(move || storage.put_manifest(&to, &wanted, &[], content_type.as_deref(), &raw, true))
            .await?;
        self.believe(name, which);
        Ok(())
    }

    fn check(&self, status: StatusCode, unknown: Code, what: impl Fn() -> String) -> Result<()> {
        match status {
            StatusCode::OK => Ok(()),
            StatusCode::NOT_FOUND => Err(Error::new(unknown, what())),
            // What is private there does not exist here.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Error::new(
                unknown,
                format!(
                    "{}, or the registry {} does not show it to this one",
                    what(),
                    self.host()
                ),
            )),
            status => Err(Error::new(
                Code::Unavailable,
                format!("the registry {} behind this one answers {status}", self.host()),
            )),
        }
    }

    /// Whether a blob is here. Otherwise the answer that another registry's blob makes.
    pub async fn blob(
        self: &Arc<Self>,
        metrics: &Arc<Metrics>,
        method: &Method,
        headers: &HeaderMap,
        name: &Repository,
        digest: &Digest,
    ) -> Result<Option<Response>> {
        if self.storage.stat_blob(name, digest).is_ok() {
            metrics.proxy_hits.add(1);
            return Ok(None);
        }
        metrics.proxy_misses.add(1);
        if method == Method::HEAD {
            let head = self
                .upstream
                .ask(Method::HEAD, name, &format!("blobs/{digest}"))
                .await?;
            self.check(head.status(), Code::BlobUnknown, || {
                format!("{name} has no blob {digest}")
            })?;
            let mut response = empty(StatusCode::OK);
            if let Some(length) = head.headers().get(header::CONTENT_LENGTH) {
                response
                    .headers_mut()
                    .insert(header::CONTENT_LENGTH, length.clone());
            }
            describe(response.headers_mut(), digest);
            return Ok(Some(response));
        }
        let fetched = self.fetch(name, digest).await?;
        if headers.contains_key(header::RANGE) {
            // A part of what is not known as a whole: wait until it is.
            fetched.complete().await?;
            return Ok(None);
        }
        let length = fetched.length();
        let mut response = Response::new(Body::stream(fetched.follow(), length));
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        describe(headers, digest);
        Ok(Some(response))
    }

    /// The tags that the other registry has; ours when it does not answer.
    pub async fn tags(&self, name: &Repository, text: Option<&str>) -> Result<Response> {
        #[derive(serde::Deserialize)]
        struct Tags {
            tags: Option<Vec<String>>,
        }
        let mut path = "tags/list".to_owned();
        let mut separator = '?';
        for key in ["n", "last"] {
            if let Some(value) = query::get(text, key) {
                path.push_str(&format!("{separator}{key}={}", query::encode(&value)));
                separator = '&';
            }
        }
        let asked = match self.upstream.ask(Method::GET, name, &path).await {
            Ok(response) => self
                .check(response.status(), Code::NameUnknown, || {
                    format!("there is no repository {name}")
                })
                .map(|()| response),
            Err(error) => Err(error),
        };
        let response = match asked {
            Ok(response) => response,
            Err(error) if error.code() == Code::Unavailable && self.storage.exists(name) => {
                tracing::warn!(%error, %name, "the tags that are here are listed");
                let (storage, name, text) = (self.storage.clone(), name.clone(), text.map(str::to_owned));
                return blocking(move || lists::tags(&storage, text.as_deref(), &name)).await;
            }
            Err(error) => return Err(error),
        };
        let next = field(response.headers(), header::LINK).and_then(next_page);
        let body = self.upstream.body(response, MAX_LIST).await?;
        let tags: Tags = serde_json::from_slice(&body).map_err(|_| {
            Error::new(
                Code::Unavailable,
                format!("the registry {} sent no list of tags", self.host()),
            )
        })?;
        let tags: Vec<String> = tags
            .tags
            .unwrap_or_default()
            .into_iter()
            .filter(|tag| Tag::parse(tag).is_ok())
            .collect();
        let answer = serde_json::json!({ "name": name.as_str(), "tags": tags });
        let mut response = document("application/json", answer.to_string().into_bytes());
        if let Some(next) = next {
            let link = format!("</v2/{name}/tags/list?{next}>; rel=\"next\"");
            response.headers_mut().insert(header::LINK, value(link));
        }
        Ok(response)
    }

    /// What says something about a manifest, as the other registry has it, by the tag schema if it has no list.
    pub async fn referrers(
        &self,
        name: &Repository,
        subject: &Digest,
        text: Option<&str>,
    ) -> Result<Response> {
        let filter = query::get(text, "artifactType");
        let suffix = filter
            .map(|text| format!("?artifactType={}", query::encode(&text)))
            .unwrap_or_default();
        let mut response = self
            .upstream
            .ask(Method::GET, name, &format!("referrers/{subject}{suffix}"))
            .await?;
        if response.status() == StatusCode::NOT_FOUND {
            let tag = subject.to_string().replace(':', "-");
            response = self
                .upstream
                .ask(Method::GET, name, &format!("manifests/{tag}"))
                .await?;
        }
        let applied = response.headers().contains_key(crate::api::OCI_FILTERS);
        let empty = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] });
        let body = match response.status() {
            StatusCode::OK => self.upstream.body(response, MAX_MANIFEST).await?,
            StatusCode::NOT_FOUND => empty.to_string().into_bytes(),
            status => {
                return Err(Error::new(
                    Code::Unavailable,
                    format!("the registry {} behind this one answers {status}", self.host()),
                ));
            }
        };
        if crate::manifest::Manifest::parse(&body, None).is_ok_and(|index| index.is_index()) {
            let mut response = document(OCI_INDEX, body);
            if applied {
                response
                    .headers_mut()
                    .insert(crate::api::OCI_FILTERS, value("artifactType"));
            }
            return Ok(response);
        }
        Ok(document(OCI_INDEX, empty.to_string().into_bytes()))
    }
}

/// `n=…&last=…` of the next page that a `Link` leads to.
fn next_page(link: &str) -> Option<String> {
    let target = link.strip_prefix('<')?.split('>').next()?;
    let (_, text) = target.split_once('?')?;
    let last = query::get(Some(text), "last")?;
    let last = query::encode(&last);
    Some(
        match query::get(Some(text), "n").filter(|n| n.parse::<u32>().is_ok()) {
            Some(n) => format!("n={n}&last={last}"),
            None => format!("last={last}"),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_us() {
        assert_eq!(
            next_page("</v2/a/tags/list?last=x&n=3>; rel=\"next\"").as_deref(),
            Some("n=3&last=x")
        );
        assert_eq!(
            next_page("<https://x/?last=a%22b>; rel=\"next\"").as_deref(),
            Some("last=a%22b")
        );
        assert_eq!(
            (next_page(""), next_page("<x>"), next_page("<?n=3>")),
            (None, None, None)
        );
    }
}
