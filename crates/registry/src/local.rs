//! The images of the engine on this machine, served read-only out of its content store.
//!
//! The store has no compressed blobs. A manifest is made here: the image's own configuration, and its layers as
//! uncompressed archives, which are put together while they are sent and end in an error if they are not what their
//! digest says. So an image has its own ID, but another manifest digest than where it came from. What the engine
//! removes while it is being sent is cut off; a client fetches it again and is told that it is gone.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode};
use tokio::sync::{Semaphore, mpsc};
use vessel_image::{ChainId, Digest, ImageConfig, Store};

use crate::api::{describe, document, empty, field, lists, value};
use crate::error::{Code, Error, Result};
use crate::http::fields::{Range, none_match, range};
use crate::http::receive::blocking;
use crate::http::{Body, Response};
use crate::manifest::OCI_MANIFEST;
use crate::name::{ManifestName, Repository, Tag};

/// How long a list of the engine's images is believed.
const FRESH: Duration = Duration::from_secs(2);
/// Each layer that is put together takes a thread.
const AT_ONCE: usize = 16;
const PIECE: usize = 128 << 10;

/// A name of an image of the engine.
#[derive(Debug, Clone)]
pub struct LocalImage {
    /// Its repository here.
    pub repository: Repository,
    /// Its tag.
    pub tag: String,
    /// The digest of its configuration.
    pub id: Digest,
}

/// What images the engine has; blocks.
pub type ListImages = Arc<dyn Fn() -> Result<Vec<LocalImage>, String> + Send + Sync>;

/// The engine's images.
#[derive(Clone)]
pub struct LocalOptions {
    /// The directory of the engine.
    pub store: std::path::PathBuf,
    /// Asks the engine for names.
    pub images: ListImages,
}

impl std::fmt::Debug for LocalOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalOptions")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// Serves them.
pub struct Local {
    store: Store,
    images: ListImages,
    listed: Mutex<Option<(Instant, Arc<Vec<LocalImage>>)>>,
    sending: Arc<Semaphore>,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// A manifest that was made of an image.
struct Made {
    digest: Digest,
    raw: Vec<u8>,
}

/// What a digest is in a repository.
enum Blob {
    Config(Vec<u8>),
    Layer(ChainId, u64),
}

fn internal(error: &vessel_image::Error) -> Error {
    Error::new(Code::Unknown, error.to_string())
}

impl Local {
    /// Opens the engine's store, which must exist.
    pub fn open(options: &LocalOptions) -> Result<Self> {
        if !options.store.join("layers").is_dir() {
            return Err(Error::new(
                Code::Unknown,
                format!("{} is not the directory of an engine", options.store.display()),
            ));
        }
        Ok(Self {
            store: Store::open(&options.store).map_err(|error| internal(&error))?,
            images: Arc::clone(&options.images),
            listed: Mutex::default(),
            sending: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }

    /// All names; blocks.
    fn list(&self) -> Result<Arc<Vec<LocalImage>>> {
        let known = self.listed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((when, images)) = known
            && when.elapsed() < FRESH
        {
            return Ok(images);
        }
        let images = (self.images)().map_err(|why| {
            Error::new(
                Code::Unavailable,
                format!("the engine cannot be asked for its images: {why}"),
            )
        })?;
        let images = Arc::new(images);
        let now = Some((Instant::now(), Arc::clone(&images)));
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = now;
        Ok(images)
    }

    fn of(&self, name: &Repository) -> Result<Vec<LocalImage>> {
        let images: Vec<_> = self
            .list()?
            .iter()
            .filter(|image| image.repository == *name)
            .cloned()
            .collect();
        if images.is_empty() {
            return Err(Error::new(
                Code::NameUnknown,
                format!("the engine has no image {name}"),
            ));
        }
        Ok(images)
    }

    /// `GET /v2/_catalog`
    pub async fn catalog(self: &Arc<Self>) -> Result<Vec<Repository>> {
        let local = Arc::clone(self);
        let images = blocking(move || local.list()).await?;
        let mut names: Vec<_> = images.iter().map(|image| image.repository.clone()).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// `GET /v2/NAME/tags/list`
    pub async fn tags(self: &Arc<Self>, name: &Repository, text: Option<&str>) -> Result<Response> {
        let (local, of) = (Arc::clone(self), name.clone());
        let images = blocking(move || local.of(&of)).await?;
        let mut tags: Vec<_> = images.into_iter().map(|image| image.tag).collect();
        tags.retain(|tag| Tag::parse(tag).is_ok());
        tags.sort_unstable();
        lists::list_tags(tags, text, name)
    }

    fn make(&self, id: &Digest) -> Result<Made> {
        let fail = |error: vessel_image::Error| internal(&error);
        let raw = self.store.blob(id).map_err(fail)?;
        let config = ImageConfig::parse(&raw).map_err(fail)?;
        let mut layers = Vec::new();
        for chain in config.chain() {
            let layer = self.store.layer(&chain).map_err(fail)?;
            layers.push(serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer.diff_id.digest().to_string(),
                "size": layer.archive_size,
            }));
        }
        let raw = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": id.to_string(),
                "size": raw.len(),
            },
            "layers": layers,
        })
        .to_string()
        .into_bytes();
        Ok(Made {
            digest: Digest::sha256(&raw),
            raw,
        })
    }

    /// `GET` and `HEAD /v2/NAME/manifests/REFERENCE`
    pub async fn manifest(
        self: &Arc<Self>,
        method: &Method,
        headers: &HeaderMap,
        name: &Repository,
        which: &ManifestName,
    ) -> Result<Response> {
        let (local, of, wanted) = (Arc::clone(self), name.clone(), which.clone());
        let made = blocking(move || {
            let unknown = || {
                Error::new(
                    Code::ManifestUnknown,
                    format!("the engine has no image {of} {wanted}"),
                )
            };
            let images = local.of(&of)?;
            match &wanted {
                ManifestName::Tag(tag) => {
                    let image = images
                        .iter()
                        .find(|image| image.tag == tag.as_str())
                        .ok_or_else(unknown)?;
                    local.make(&image.id)
                }
                ManifestName::Digest(digest) => images
                    .iter()
                    .filter_map(|image| local.make(&image.id).ok())
                    .find(|made| made.digest == *digest)
                    .ok_or_else(unknown),
            }
        })
        .await?;
        if none_match(field(headers, header::IF_NONE_MATCH), &made.digest.to_string()) {
            let mut response = empty(StatusCode::NOT_MODIFIED);
            describe(response.headers_mut(), &made.digest);
            return Ok(response);
        }
        let length = made.raw.len();
        let mut response = document(OCI_MANIFEST, made.raw);
        describe(response.headers_mut(), &made.digest);
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length.into());
        if method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        Ok(response)
    }

    fn find(&self, name: &Repository, digest: &Digest) -> Result<Blob> {
        for image in self.of(name)? {
            // One that was just removed has nothing to offer.
            let Ok(raw) = self.store.blob(&image.id) else {
                continue;
            };
            if image.id == *digest {
                return Ok(Blob::Config(raw));
            }
            let Ok(config) = ImageConfig::parse(&raw) else {
                continue;
            };
            for chain in config.chain() {
                if let Ok(layer) = self.store.layer(&chain)
                    && layer.diff_id.digest() == digest
                {
                    return Ok(Blob::Layer(chain, layer.archive_size));
                }
            }
        }
        Err(Error::new(
            Code::BlobUnknown,
            format!("{name} has no blob {digest}"),
        ))
    }

    /// `GET` and `HEAD /v2/NAME/blobs/DIGEST`
    pub async fn blob(
        self: &Arc<Self>,
        method: &Method,
        headers: &HeaderMap,
        name: &Repository,
        digest: &Digest,
    ) -> Result<Response> {
        let (local, of, wanted) = (Arc::clone(self), name.clone(), digest.clone());
        let blob = blocking(move || local.find(&of, &wanted)).await?;
        let size = match &blob {
            Blob::Config(raw) => raw.len() as u64,
            Blob::Layer(_, size) => *size,
        };
        let (status, from, end) = match range(field(headers, header::RANGE), size) {
            _ if method == Method::HEAD => (StatusCode::OK, 0, size),
            Range::Whole => (StatusCode::OK, 0, size),
            Range::Part(from, end) => (StatusCode::PARTIAL_CONTENT, from, end),
            Range::Unsatisfiable => {
                let mut response = empty(StatusCode::RANGE_NOT_SATISFIABLE);
                let range = value(format!("bytes */{size}"));
                response.headers_mut().insert(header::CONTENT_RANGE, range);
                return Ok(response);
            }
        };
        let body = match blob {
            _ if method == Method::HEAD => Body::empty(),
            // Both are within it.
            Blob::Config(raw) => Body::from(raw[from as usize..end as usize].to_vec()),
            Blob::Layer(chain, _) => Body::stream(self.send(chain, from, end).await?, Some(end - from)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        describe(headers, digest);
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(header::CONTENT_LENGTH, (end - from).into());
        if status == StatusCode::PARTIAL_CONTENT {
            headers.insert(
                header::CONTENT_RANGE,
                value(format!("bytes {from}-{}/{size}", end - 1)),
            );
        }
        Ok(response)
    }

    /// Puts a layer's archive together and sends a part of it.
    async fn send(&self, chain: ChainId, from: u64, end: u64) -> Result<mpsc::Receiver<io::Result<Bytes>>> {
        let busy = |_| Error::new(Code::TooManyRequests, "the registry ends");
        let place = Arc::clone(&self.sending).acquire_owned().await.map_err(busy)?;
        let (send, receive) = mpsc::channel(2);
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || {
            let _place = place;
            if let Err(error) = read(&store, &chain, from, end, &send) {
                tracing::warn!(%error, chain = %chain, "a layer cannot be sent");
                // Without it the answer would end as if all were well.
                let _ = send.blocking_send(Err(error));
            }
        });
        Ok(receive)
    }
}

fn read(
    store: &Store,
    chain: &ChainId,
    from: u64,
    end: u64,
    send: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let mut archive = store.layer_archive(chain)?;
    let skipped = io::copy(&mut archive.by_ref().take(from), &mut io::sink())?;
    if skipped < from {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut left = end - from;
    while left > 0 {
        let mut piece = vec![0; usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
        archive.read_exact(&mut piece)?;
        left -= piece.len() as u64;
        if left == 0 {
            // The last piece goes when what follows has been read: there the digest is checked.
            io::copy(&mut archive, &mut io::sink())?;
        }
        if send.blocking_send(Ok(piece.into())).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
