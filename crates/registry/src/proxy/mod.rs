//! A pull-through cache: what is not here is fetched from another registry, stored, and served from then on.
//!
//! Content never changes under its digest, so only tags grow old: one is asked for again when its time is over, and
//! what it pointed to before is served when the other registry does not answer in time, and for a while after. However
//! many clients ask for the same blob, it is fetched once; they get its bytes while it is stored, and its last byte only
//! when the digest was right. When a quota has no room for a blob, it is passed on without being stored.

mod fetch;
mod upstream;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode};
use vessel_image::Digest;

use crate::api::{describe, document, empty, lists, value};
use crate::error::{Code, Error, Result};
use crate::http::receive::blocking;
use crate::http::{Body, Response, query};
use crate::manifest::OCI_INDEX;
use crate::metrics::Metrics;
use crate::name::{ManifestName, Repository, Tag};
use crate::storage::Storage;

use upstream::Upstream;
pub use upstream::UpstreamOptions;

/// Tags whose age is known.
const MAX_TAGS: usize = 100_000;
/// So long the other registry may take to say where a tag leads of which it is known where it led before.
const PATIENCE: Duration = Duration::from_secs(10);
/// So long it is not asked again for such a tag when it did not answer.
const UNANSWERED: Duration = Duration::from_secs(30);
/// Tags in a page.
const MAX_PAGE: usize = 10_000;

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
    /// When a tag was asked for, and for how long it is not asked for again.
    fresh: Mutex<HashMap<(Repository, Tag), (Instant, Duration)>>,
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
        let tag = match which {
            ManifestName::Tag(tag) if self.storage.resolve(name, tag).is_ok() => tag,
            _ => return self.update(name, which).await,
        };
        let late = || {
            Error::new(
                Code::Unavailable,
                format!(
                    "the registry {} behind this one did not answer within {} seconds",
                    self.host(),
                    PATIENCE.as_secs()
                ),
            )
        };
        let updated = tokio::time::timeout(PATIENCE, self.update(name, which)).await;
        match updated.unwrap_or_else(|_| Err(late())) {
            Err(error) if error.code() == Code::Unavailable => {
                tracing::warn!(%error, %name, %tag, "what the tag pointed to before is served");
                self.believe(name, which, UNANSWERED);
                Ok(())
            }
            result => result,
        }
    }

    fn is_fresh(&self, name: &Repository, which: &ManifestName) -> bool {
        match which {
            ManifestName::Digest(digest) => self.storage.has_manifest(name, digest),
            ManifestName::Tag(tag) => {
                let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
                let asked = fresh.get(&(name.clone(), tag.clone()));
                asked.is_some_and(|(asked, time)| asked.elapsed() < *time)
                    && self.storage.resolve(name, tag).is_ok()
            }
        }
    }

    fn believe(&self, name: &Repository, which: &ManifestName, time: Duration) {
        if let ManifestName::Tag(tag) = which {
            let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
            if fresh.len() >= MAX_TAGS {
                fresh.retain(|_, (asked, time)| asked.elapsed() < *time);
            }
            if fresh.len() >= MAX_TAGS {
                fresh.clear();
            }
            fresh.insert((name.clone(), tag.clone()), (Instant::now(), time));
        }
    }

    async fn update(&self, name: &Repository, which: &ManifestName) -> Result<()> {
        // A tag that still points to what is here costs one question without an answer's body.
        if let ManifestName::Tag(tag) = which {
            let digest = self.upstream.head(name, tag.as_str()).await?;
            if let Some(digest) = digest
                && self.storage.resolve(name, tag).is_ok_and(|known| known == digest)
                && self.storage.has_manifest(name, &digest)
            {
                self.believe(name, which, self.ttl);
                return Ok(());
            }
        }
        let found = self.upstream.manifest(name, &which.to_string()).await?;
        let (storage, to, wanted) = (self.storage.clone(), name.clone(), which.clone());
        blocking(move || {
            let content_type = Some(found.media_type.as_str());
            storage.put_manifest(&to, &wanted, &[], content_type, &found.raw, true)
        })
        .await?;
        self.believe(name, which, self.ttl);
        Ok(())
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
            let size = self.upstream.blob_size(name, digest).await?;
            let mut response = empty(StatusCode::OK);
            response.headers_mut().insert(header::CONTENT_LENGTH, size.into());
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
        let mut response = Response::new(Body::stream(fetched.follow(), Some(length)));
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        headers.insert(header::CONTENT_LENGTH, length.into());
        describe(headers, digest);
        Ok(Some(response))
    }

    /// The tags that the other registry has; ours when it does not answer.
    pub async fn tags(&self, name: &Repository, text: Option<&str>) -> Result<Response> {
        let n = query::get(text, "n")
            .map(|n| n.parse::<usize>())
            .transpose()
            .map_err(|_| {
                Error::new(
                    Code::PaginationNumberInvalid,
                    "the number of results is no number",
                )
            })?;
        let last = query::get(text, "last").filter(|last| Tag::parse(last).is_ok());
        let asked = self
            .upstream
            .tags(name, n.map(|n| n.min(MAX_PAGE)), last.as_deref())
            .await;
        let (tags, next) = match asked {
            Ok(found) => found,
            Err(error) if error.code() == Code::Unavailable && self.storage.exists(name) => {
                tracing::warn!(%error, %name, "the tags that are here are listed");
                let (storage, name, text) = (self.storage.clone(), name.clone(), text.map(str::to_owned));
                return blocking(move || lists::tags(&storage, text.as_deref(), &name)).await;
            }
            Err(error) => return Err(error),
        };
        let answer = serde_json::json!({ "name": name.as_str(), "tags": tags });
        let mut response = document("application/json", answer.to_string().into_bytes());
        if let Some(last) = next {
            let n = n.map(|n| format!("n={n}&")).unwrap_or_default();
            let link = format!(
                "</v2/{name}/tags/list?{n}last={}>; rel=\"next\"",
                query::encode(&last)
            );
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
        let manifests = match self.upstream.referrers(name, subject, filter.as_deref()).await {
            Ok(found) => found,
            Err(error) if error.code() == Code::ManifestUnknown => Vec::new(),
            Err(error) => return Err(error),
        };
        let index = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        let mut response = document(OCI_INDEX, index.to_string().into_bytes());
        if filter.is_some() {
            response
                .headers_mut()
                .insert(crate::api::OCI_FILTERS, value("artifactType"));
        }
        Ok(response)
    }
}
