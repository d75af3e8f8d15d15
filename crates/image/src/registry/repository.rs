//! One repository of one registry (OCI distribution specification 1.1): manifests, tags, referrers, small blobs.
//!
//! Whatever arrives is bounded and verified against the digest it was asked by.

use std::sync::Arc;
use std::time::Instant;

use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LINK};
use reqwest::{Method, Response, StatusCode, Url};

use super::auth::Authorizer;
use super::credentials::Credentials;
use super::headers::{content_range, next_link};
use super::transport::{Call, Transport, complaint, origin, read_all};
use crate::config::MAX_DOCUMENT;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Descriptor, Document, Index, media_type};
use crate::reference::valid_tag;

/// Names in one list.
const MAX_NAMES: usize = 100_000;
/// Pages of one list.
const MAX_PAGES: usize = 1000;
/// Bytes of one page.
const MAX_PAGE: usize = 8 << 20;
/// Bytes of one list.
const MAX_LIST: usize = 16 << 20;
/// What may be answered to a request for a manifest.
const MANIFESTS: [&str; 6] = [
    media_type::OCI_INDEX,
    media_type::DOCKER_INDEX,
    media_type::OCI_MANIFEST,
    media_type::DOCKER_MANIFEST,
    media_type::DOCKER_SCHEMA1,
    media_type::DOCKER_SCHEMA1_UNSIGNED,
];

/// What is done with a repository; it decides which token is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Pull,
    /// Reading and writing.
    Push,
    /// Deleting.
    Delete,
}

/// A manifest or index as the registry has it.
#[derive(Debug, Clone)]
pub struct RawManifest {
    /// Its exact bytes.
    pub raw: Vec<u8>,
    /// What it is.
    pub media_type: String,
    /// The digest of the bytes, verified.
    pub digest: Digest,
}

impl RawManifest {
    /// Takes it apart.
    ///
    /// # Errors
    /// What is neither manifest nor index; Docker's first schema, which is not read any more.
    pub fn document(&self) -> Result<Document> {
        if matches!(
            self.media_type.as_str(),
            media_type::DOCKER_SCHEMA1 | media_type::DOCKER_SCHEMA1_UNSIGNED
        ) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the image is in Docker's manifest schema 1, which went out of use in 2017: push it again with a newer client",
            ));
        }
        let document = Document::parse(&self.raw)?;
        let stated = match &document {
            Document::Manifest(manifest) => &manifest.media_type,
            Document::Index(index) => &index.media_type,
        };
        let is_index = matches!(document, Document::Index(_));
        // Two readers must not see two different things (CVE-2021-41190).
        if let Some(stated) = stated
            && media_type::is_index(stated) != is_index
        {
            return Err(Error::invalid(format!(
                "the manifest {} says that it is {stated}, and is not",
                self.digest
            )));
        }
        Ok(document)
    }

    /// Points to it.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(
            self.media_type.clone(),
            self.digest.clone(),
            self.raw.len() as u64,
        )
    }
}

/// A repository of a registry, for somebody.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) transport: Arc<Transport>,
    /// The registry's address, with a slash at its end.
    pub(super) base: Url,
    /// The name below it, `library/debian`.
    pub(super) name: String,
    /// The registry as references name it.
    pub(super) domain: String,
    authorizer: Authorizer,
}

impl Repository {
    pub(super) fn new(
        transport: Arc<Transport>,
        base: Url,
        domain: &str,
        name: &str,
        credentials: Credentials,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                transport,
                base,
                name: name.to_owned(),
                domain: domain.to_owned(),
                authorizer: Authorizer::new(credentials),
            }),
        }
    }

    /// The registry, as references name it.
    pub fn domain(&self) -> &str {
        &self.inner.domain
    }

    /// The name at the registry.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The registry's address.
    pub fn origin(&self) -> String {
        origin(&self.inner.base)
    }

    /// The address of something in this repository. What is joined was validated or comes from constants.
    pub(super) fn url(&self, path: &str) -> Result<Url> {
        self.at(&format!("v2/{}/{path}", self.inner.name))
    }

    pub(super) fn at(&self, path: &str) -> Result<Url> {
        self.inner
            .base
            .join(path)
            .map_err(|_| Error::invalid("the repository's name gives no address"))
    }

    pub(super) fn scope(&self, access: Access) -> String {
        let actions = match access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
            Access::Delete => "delete,pull",
        };
        format!("repository:{}:{actions}", self.inner.name)
    }

    /// Makes a request, showing who one is when the registry wants to know.
    pub(super) async fn send(&self, call: &Call, scope: &str) -> Result<Response> {
        let inner = &self.inner;
        let begun = Instant::now();
        let mut tries = 0;
        loop {
            let shown = self.shown(call, scope, begun).await?;
            let response = inner.transport.send(call, shown.as_ref()).await?;
            if response.status() != StatusCode::UNAUTHORIZED
                || tries == 2
                || !self.learn(&response, scope, shown.as_ref()).await?
            {
                return Ok(response);
            }
            tries += 1;
        }
    }

    /// Makes a request once whose body is a stream. The registry must have been asked something before, so that it is
    /// known what it wants to be shown.
    pub(super) async fn send_stream(
        &self,
        call: &Call,
        scope: &str,
        body: impl futures_util::Stream<Item = std::io::Result<bytes::Bytes>> + Send + Sync + Unpin + 'static,
    ) -> Result<Response> {
        let shown = self.shown(call, scope, Instant::now()).await?;
        let response = self.inner.transport.stream(call, shown.as_ref(), body).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.learn(&response, scope, shown.as_ref()).await?;
        }
        Ok(response)
    }

    /// What to show; nothing to anybody but the registry.
    async fn shown(
        &self,
        call: &Call,
        scope: &str,
        begun: Instant,
    ) -> Result<Option<reqwest::header::HeaderValue>> {
        if origin(&call.url) != origin(&self.inner.base) {
            return Ok(None);
        }
        let inner = &self.inner;
        inner.authorizer.header(&inner.transport, scope, begun).await
    }

    async fn learn(
        &self,
        response: &Response,
        scope: &str,
        shown: Option<&reqwest::header::HeaderValue>,
    ) -> Result<bool> {
        // Who was redirected to does not decide what the registry is shown.
        if origin(response.url()) != origin(&self.inner.base) {
            return Ok(false);
        }
        let inner = &self.inner;
        inner
            .authorizer
            .refused(&inner.transport, &inner.base, response.headers(), scope, shown)
            .await
    }

    fn manifest_call(&self, method: Method, target: &str) -> Result<Call> {
        let mut call = Call::new(method, self.url(&format!("manifests/{target}"))?);
        for accepted in MANIFESTS {
            call = call.header("accept", accepted)?;
        }
        Ok(call)
    }

    /// Fetches a manifest or index by tag or digest.
    ///
    /// # Errors
    /// `NotFound` when there is none; `Digest` when it is not what was asked for.
    pub async fn manifest(&self, target: &str) -> Result<RawManifest> {
        let call = self.manifest_call(Method::GET, target)?;
        let response = self.send(&call, &self.scope(Access::Pull)).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(self.no_manifest(target));
        }
        if !response.status().is_success() {
            return Err(complaint(
                response,
                &format!("cannot get the manifest {target} of {}", self.inner.name),
            )
            .await);
        }
        let stated = header_digest(response.headers());
        let content_type = content_type(response.headers());
        let raw = read_all(response, MAX_DOCUMENT, "the manifest").await?;
        let digest = verified(target, stated, &raw)?;
        Ok(RawManifest {
            media_type: type_of(&raw, &content_type),
            raw,
            digest,
        })
    }

    fn no_manifest(&self, target: &str) -> Error {
        Error::new(
            ErrorKind::NotFound,
            format!(
                "manifest for {}/{}{}{target} not found: manifest unknown",
                self.inner.domain,
                self.inner.name,
                if target.contains(':') { "@" } else { ":" }
            ),
        )
    }

    /// Whether there is a manifest of this tag or digest, and which. Registries that do not tell the digest are asked
    /// for the manifest itself.
    pub async fn head_manifest(&self, target: &str) -> Result<Option<Descriptor>> {
        let call = self.manifest_call(Method::HEAD, target)?;
        let response = self.send(&call, &self.scope(Access::Pull)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => return Ok(None),
            status if status.is_success() => {}
            _ => {
                let what = format!("cannot look up the manifest {target} of {}", self.inner.name);
                return Err(complaint(response, &what).await);
            }
        }
        let size = response
            .headers()
            .get("content-length")
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        match (header_digest(response.headers()), size) {
            (Some(digest), Some(size))
                if target.parse::<Digest>().map_or(true, |wanted| wanted == digest) =>
            {
                Ok(Some(Descriptor::new(
                    content_type(response.headers()),
                    digest,
                    size,
                )))
            }
            _ => match self.manifest(target).await {
                Ok(manifest) => Ok(Some(manifest.descriptor())),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// Stores a manifest under a tag or its digest. Gives its digest.
    pub async fn put_manifest(&self, target: &str, media_type: &str, raw: &[u8]) -> Result<Digest> {
        let mut call = Call::new(Method::PUT, self.url(&format!("manifests/{target}"))?)
            .header("content-type", media_type)?;
        call.body = raw.to_vec();
        let response = self.send(&call, &self.scope(Access::Push)).await?;
        if !response.status().is_success() {
            let what = format!("cannot store the manifest {target} of {}", self.inner.name);
            return Err(complaint(response, &what).await);
        }
        Ok(Digest::sha256(raw))
    }

    /// Deletes a manifest by digest, or a tag where the registry can.
    pub async fn delete_manifest(&self, target: &str) -> Result<()> {
        let call = Call::new(Method::DELETE, self.url(&format!("manifests/{target}"))?);
        let response = self.send(&call, &self.scope(Access::Delete)).await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            StatusCode::NOT_FOUND => Err(self.no_manifest(target)),
            _ => Err(complaint(
                response,
                &format!("cannot delete {target} of {}", self.inner.name),
            )
            .await),
        }
    }

    /// All tags, in the registry's order. What cannot be a tag is left out.
    pub async fn tags(&self) -> Result<Vec<String>> {
        let first = self.url("tags/list?n=1000")?;
        let mut tags = Vec::new();
        self.pages(first, &self.scope(Access::Pull), |raw| {
            tags.extend(tags_of(raw)?);
            Ok(tags.len())
        })
        .await?;
        Ok(tags)
    }

    /// One page of tags behind `last`, of `n` at most (none: as many as the registry likes), and the last tag of it if
    /// there are more.
    pub async fn tags_page(
        &self,
        n: Option<usize>,
        last: Option<&str>,
    ) -> Result<(Vec<String>, Option<String>)> {
        let mut url = self.url("tags/list")?;
        if let Some(n) = n {
            url.query_pairs_mut().append_pair("n", &n.to_string());
        }
        if let Some(last) = last {
            url.query_pairs_mut().append_pair("last", last);
        }
        let call = Call::new(Method::GET, url.clone());
        let response = self.send(&call, &self.scope(Access::Pull)).await?;
        if !response.status().is_success() {
            return Err(complaint(response, &format!("cannot list {}", self.inner.name)).await);
        }
        let more = next_page(&url, response.headers());
        let tags = tags_of(&read_all(response, MAX_PAGE, "a list").await?)?;
        // Where the next page begins is the registry's to say; most say the last tag of this one.
        let next = more.map(|next| {
            let said = next.query_pairs().find(|(name, _)| name == "last");
            said.map(|(_, last)| last.into_owned())
        });
        let next = match next {
            Some(Some(last)) => Some(last),
            Some(None) => tags.last().cloned(),
            None => None,
        };
        Ok((tags, next.filter(|last| valid_tag(last))))
    }

    /// Reads a list page by page. `take` gets a page and says how many entries there are so far.
    pub(super) async fn pages(
        &self,
        first: Url,
        scope: &str,
        mut take: impl FnMut(&[u8]) -> Result<usize>,
    ) -> Result<()> {
        let mut next = Some(first);
        let mut bytes = 0;
        for _ in 0..MAX_PAGES {
            let Some(url) = next else { return Ok(()) };
            let response = self.send(&Call::new(Method::GET, url.clone()), scope).await?;
            if !response.status().is_success() {
                return Err(complaint(response, &format!("cannot list {}", self.inner.name)).await);
            }
            next = next_page(&url, response.headers());
            let page = read_all(response, MAX_PAGE, "a list").await?;
            bytes += page.len();
            if bytes > MAX_LIST {
                return Err(Error::limit(format!(
                    "the registry's list is larger than {MAX_LIST} bytes"
                )));
            }
            if take(&page)? > MAX_NAMES {
                return Err(Error::limit(format!(
                    "the registry lists more than {MAX_NAMES} names"
                )));
            }
        }
        Err(Error::limit(format!(
            "the registry's list has more than {MAX_PAGES} pages"
        )))
    }

    /// What refers to a manifest: signatures, bills of materials. Registries without the referrers API are asked for
    /// the tag that takes its place (OCI distribution specification, "referrers tag schema").
    pub async fn referrers(&self, digest: &Digest, artifact_type: Option<&str>) -> Result<Vec<Descriptor>> {
        let mut url = self.url(&format!("referrers/{digest}"))?;
        if let Some(kind) = artifact_type {
            url.query_pairs_mut().append_pair("artifactType", kind);
        }
        let mut found: Vec<Descriptor> = Vec::new();
        let take = |raw: &[u8]| {
            found.extend(Index::parse(raw)?.manifests);
            Ok(found.len())
        };
        match self.pages(url, &self.scope(Access::Pull), take).await {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::Invalid
                ) =>
            {
                found.clear();
                let tag = format!("{}-{}", digest.algorithm().name(), digest.hex());
                match self.manifest(&tag).await {
                    Ok(index) => {
                        if let Document::Index(index) = index.document()? {
                            found = index.manifests;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
        // The filter is a wish that a registry may ignore.
        if let Some(kind) = artifact_type {
            found.retain(|descriptor| descriptor.artifact_type.as_deref() == Some(kind));
        }
        Ok(found)
    }

    /// Fetches a small blob, such as a configuration, and verifies it.
    pub async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if descriptor.size > MAX_DOCUMENT as u64 {
            return Err(Error::limit(format!(
                "the blob {} is {} bytes large, more than a document can be",
                descriptor.digest, descriptor.size
            )));
        }
        let call = Call::new(Method::GET, self.url(&format!("blobs/{}", descriptor.digest))?);
        let response = self.send(&call, &self.scope(Access::Pull)).await?;
        if !response.status().is_success() {
            return Err(complaint(response, &format!("cannot get the blob {}", descriptor.digest)).await);
        }
        let raw = read_all(response, MAX_DOCUMENT, "the blob").await?;
        if raw.len() as u64 != descriptor.size || !descriptor.digest.verify(&raw) {
            return Err(Error::new(
                ErrorKind::Digest,
                format!(
                    "{} gave something else than the blob {} it was asked for",
                    self.origin(),
                    descriptor.digest
                ),
            ));
        }
        Ok(raw)
    }

    /// The size of a blob, if the registry has it. Who is about to push asks as one who may: one token is enough then.
    pub async fn blob_size(&self, digest: &Digest, access: Access) -> Result<Option<u64>> {
        let call = Call::new(Method::HEAD, self.url(&format!("blobs/{digest}"))?);
        let response = self.send(&call, &self.scope(access)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(response
                .headers()
                .get("content-length")
                .and_then(|value| value.to_str().ok()?.parse().ok())),
            _ => Err(complaint(response, &format!("cannot look up the blob {digest}")).await),
        }
    }

    /// The size of a blob that is to be read. Where `HEAD` does not tell it (some servers do not know it, and addresses
    /// that lead to a store of objects may be signed for `GET` alone), the first byte is asked for.
    pub async fn blob_length(&self, digest: &Digest) -> Result<Option<u64>> {
        match self.blob_size(digest, Access::Pull).await {
            Ok(None) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Permission | ErrorKind::Unsupported) => {}
            told => return told,
        }
        let call = Call::new(Method::GET, self.url(&format!("blobs/{digest}"))?)
            .header("accept-encoding", "identity")?
            .header("range", "bytes=0-0")?;
        let response = self.send(&call, &self.scope(Access::Pull)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE);
                let range = range.and_then(|value| content_range(value.to_str().ok()?));
                Ok(range.and_then(|(_, _, total)| total))
            }
            status if status.is_success() => Ok(response.content_length()),
            _ => Err(complaint(response, &format!("cannot look up the blob {digest}")).await),
        }
    }

    /// Asks whether the registry is there and lets one in. Gives the token that replaces the password, if it has such.
    pub(super) async fn ping(&self, login: bool) -> Result<Option<String>> {
        let call = Call::new(Method::GET, self.at("v2/")?);
        let response = self.send(&call, "").await?;
        if !response.status().is_success() {
            return Err(complaint(response, "cannot log in").await);
        }
        match login {
            true => self.inner.authorizer.login_token(&self.inner.transport).await,
            false => Ok(None),
        }
    }
}

fn tags_of(raw: &[u8]) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Page {
        #[serde(default)]
        tags: Option<Vec<String>>,
    }
    let page: Page =
        serde_json::from_slice(raw).map_err(|e| Error::json("the list of tags is not valid", e))?;
    let mut tags = page.tags.unwrap_or_default();
    // They go to terminals and into addresses.
    tags.retain(|tag| valid_tag(tag));
    Ok(tags)
}

/// The address of a list's next page: a list goes on where it began.
fn next_page(url: &Url, headers: &HeaderMap) -> Option<Url> {
    let link = next_link(headers.get(LINK)?.to_str().ok()?)?;
    let next = url.join(link).ok()?;
    (origin(&next) == origin(url) && next != *url).then_some(next)
}

fn header_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.unwrap_or_default().split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

/// What a document says of itself goes before what the registry says of it, as its digest covers it.
fn type_of(raw: &[u8], content_type: &str) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        media_type: Option<String>,
        schema_version: Option<u32>,
    }
    match serde_json::from_slice::<Probe>(raw) {
        Ok(Probe {
            media_type: Some(stated),
            ..
        }) if !stated.is_empty() => stated,
        Ok(Probe {
            schema_version: Some(1),
            ..
        }) => media_type::DOCKER_SCHEMA1_UNSIGNED.to_owned(),
        _ if MANIFESTS.contains(&content_type) => content_type.to_owned(),
        _ => match Document::parse(raw) {
            Ok(Document::Index(_)) => media_type::OCI_INDEX.to_owned(),
            Ok(Document::Manifest(_)) => media_type::OCI_MANIFEST.to_owned(),
            Err(_) => content_type.to_owned(),
        },
    }
}

/// The digest of a manifest, which must be the one it was asked by, or else the one the registry states.
fn verified(target: &str, stated: Option<Digest>, raw: &[u8]) -> Result<Digest> {
    let wanted = target.parse::<Digest>().ok();
    for expected in [&wanted, &stated].into_iter().flatten() {
        if !expected.verify(raw) {
            return Err(Error::new(
                ErrorKind::Digest,
                format!("the registry gave something else than the manifest {expected}: do not trust it"),
            ));
        }
    }
    Ok(wanted.unwrap_or_else(|| Digest::sha256(raw)))
}
