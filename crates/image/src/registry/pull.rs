//! Pulling: from a name at a registry to an image in the store.
//!
//! Layers are downloaded, verified, decompressed and unpacked as one stream, several at once; layers that the store has
//! are not fetched, and of two pulls that need the same layer one fetches it. What has arrived of a layer is also written
//! beside the store (`partial/`), so that a pull that is cut, even by the end of the process, goes on where it was; that
//! file goes when the layer is complete, and what is unpacked but belongs to no image yet is kept for a while.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::{Buf as _, Bytes};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;

use super::attestation;
use super::client::RegistryClient;
use super::credentials::Credentials;
use super::repository::{RawManifest, Repository};
use super::trust::TrustPolicy;
use crate::chunk::Pool;
use crate::config::ImageConfig;
use crate::digest::{Algorithm, ChainId, DiffId, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::fs::Limits;
use crate::manifest::{Descriptor, Document, Manifest, Platform, media_type};
use crate::reference::Reference;
use crate::store::{LayerInfo, Lease, Partial, PendingLayer, mismatch};
use crate::{Store, layer};

/// Indexes within indexes.
const MAX_DEPTH: usize = 3;
/// Pieces between the network and the thread that unpacks.
const DEPTH: usize = 16;
/// Buffers between reading and unpacking one layer: 4 MiB.
const BUFFERS: usize = 16;
/// Smaller layers are not worth a file of their own.
const WORTH_KEEPING: u64 = 256 << 10;

/// News of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullEvent {
    /// A layer of the image (by its blob's digest) is in the store already.
    Exists(Digest),
    /// A layer waits for its turn.
    Waiting(Digest),
    /// So many bytes of a layer are here, of so many.
    Downloading(Digest, u64, u64),
    /// All bytes are here; the rest of them is unpacked.
    Extracting(Digest, u64),
    /// A layer is in the store.
    Complete(Digest),
}

/// How to pull.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// The platform; none: this host's.
    pub platform: Option<Platform>,
    /// Bounds for each layer.
    pub limits: Limits,
    /// Which signatures are required.
    pub trust: TrustPolicy,
}

/// A name that was looked up at a registry.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Where it was found.
    pub repository: Repository,
    /// What the name stands for: a manifest, or an index.
    pub top: RawManifest,
    /// Indexes and the manifest on the way to the image, `top` first; the last one is the image's manifest.
    pub documents: Vec<RawManifest>,
    /// The image's manifest.
    pub manifest: Manifest,
}

/// A pulled image; its content is kept until the lease is dropped.
#[derive(Debug)]
pub struct PulledImage {
    /// The image ID: the digest of the configuration.
    pub id: Digest,
    /// The configuration's bytes.
    pub raw_config: Vec<u8>,
    /// The digest of what the name stands for; with the repository it is the image's RepoDigest.
    pub digest: Digest,
    /// Blobs in the store: the index, if any, and the manifest.
    pub documents: Vec<Digest>,
    /// Blobs in the store: what the index says about the image, manifests and statements.
    pub attestations: Vec<Digest>,
    /// The layers, bottom first.
    pub layers: Vec<LayerInfo>,
    /// Where each layer's archive is at the registry, in the same order.
    pub blobs: Vec<Descriptor>,
    /// Whether anything was downloaded.
    pub downloaded: bool,
    /// Keeps all of it.
    pub lease: Lease,
}

impl RegistryClient {
    /// Looks a name up: the manifest and, for an index, the image for a platform. The name must have a tag or a digest.
    ///
    /// # Errors
    /// `NotFound` when there is no such manifest or none for the platform; `Unsupported` for what is no image.
    pub async fn resolve(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        credentials: &Credentials,
    ) -> Result<Resolved> {
        let mut sources = self.sources(reference, credentials).await?;
        let registry = sources.pop().ok_or_else(|| Error::invalid("no registry"))?;
        for mirror in sources {
            match self.resolve_at(mirror, reference, platform).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => tracing::info!("the mirror does not have {reference}: {error}"),
            }
        }
        self.resolve_at(registry, reference, platform).await
    }

    async fn resolve_at(
        &self,
        repository: Repository,
        reference: &Reference,
        platform: Option<&Platform>,
    ) -> Result<Resolved> {
        let target = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => return Err(Error::invalid(format!("{reference} has neither tag nor digest"))),
        };
        let host = Platform::host();
        let wanted = platform.unwrap_or(&host);
        let top = repository.manifest(&target).await?;
        let mut documents = vec![top.clone()];
        for _ in 0..=MAX_DEPTH {
            let Some(current) = documents.last() else { break };
            match current.document()? {
                Document::Manifest(manifest) => {
                    check_is_image(&manifest)?;
                    return Ok(Resolved {
                        repository,
                        top,
                        documents,
                        manifest,
                    });
                }
                Document::Index(index) => {
                    let entry = index.select(wanted).ok_or_else(|| {
                        Error::new(
                            ErrorKind::NotFound,
                            format!("no matching manifest for {wanted} in the manifest list entries"),
                        )
                    })?;
                    let next = repository.manifest(&entry.digest.to_string()).await?;
                    if next.raw.len() as u64 != entry.size {
                        return Err(Error::new(
                            ErrorKind::Digest,
                            format!(
                                "the manifest {} has another size than its index says",
                                entry.digest
                            ),
                        ));
                    }
                    documents.push(next);
                }
            }
        }
        Err(Error::limit("the manifest lists are nested too deeply"))
    }

    /// Pulls an image into the store. `tell` is told how it gets on, from several tasks.
    ///
    /// Dropping the future ends the pull; what has arrived is kept for the next one.
    ///
    /// # Errors
    /// Those of [`RegistryClient::resolve`]; content that is not what it should be, of which nothing remains; a registry
    /// that keeps failing; a full disk.
    pub async fn pull(
        &self,
        store: &Store,
        reference: &Reference,
        options: &PullOptions,
        credentials: &Credentials,
        tell: impl Fn(PullEvent) + Send + Sync,
    ) -> Result<PulledImage> {
        let resolved = self
            .resolve(reference, options.platform.as_ref(), credentials)
            .await?;
        options.trust.check(reference, &resolved).await?;
        self.pull_resolved(store, &resolved, options, tell).await
    }

    /// Pulls an image that was looked up.
    ///
    /// # Errors
    /// As [`RegistryClient::pull`].
    pub async fn pull_resolved(
        &self,
        store: &Store,
        resolved: &Resolved,
        options: &PullOptions,
        tell: impl Fn(PullEvent) + Send + Sync,
    ) -> Result<PulledImage> {
        let manifest = &resolved.manifest;
        let repository = &resolved.repository;
        let mut lease = store.lease();
        let raw_config = match store.blob(&manifest.config.digest) {
            Ok(raw) if lease.pin_blob(&manifest.config.digest) => raw,
            _ => repository.document(&manifest.config).await?,
        };
        let config = ImageConfig::parse(&raw_config)?;
        let wanted = options.platform.clone().unwrap_or_else(Platform::host);
        check_platform(&wanted, &config)?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(Error::invalid(format!(
                "the manifest lists {} layers, the image configuration {}",
                manifest.layers.len(),
                diff_ids.len()
            )));
        }
        let chain = ChainId::chain(diff_ids);
        let room = tokio::sync::Semaphore::new(self.settings().downloads.max(1));
        let mut tasks = FuturesUnordered::new();
        for (at, descriptor) in manifest.layers.iter().enumerate() {
            let (Some(chain_id), Some(diff_id)) = (chain.get(at), diff_ids.get(at)) else {
                continue;
            };
            let parent = at.checked_sub(1).and_then(|below| chain.get(below));
            let place = Place {
                store,
                repository,
                descriptor,
                diff_id,
                chain_id,
                parent,
                limits: &options.limits,
            };
            let (room, tell) = (&room, &tell);
            tasks.push(async move { (at, place.obtain(room, tell).await) });
        }
        let mut layers: Vec<Option<LayerInfo>> = vec![None; diff_ids.len()];
        let mut leases = Vec::with_capacity(layers.len());
        let mut downloaded = false;
        let all_layers = async {
            while let Some((at, result)) = tasks.next().await {
                let (layer, lease, fetched) = result.inspect_err(|error| {
                    // Another try gets no further: nothing is kept for it, nor of the layers that are on their way.
                    if !is_passing(error) {
                        store.finished(&chain);
                        store.forget_partial(manifest.layers.iter().map(|layer| &layer.digest));
                    }
                })?;
                downloaded |= fetched;
                leases.push(lease);
                if let Some(slot) = layers.get_mut(at) {
                    *slot = Some(layer);
                }
            }
            Ok(())
        };
        let said = async { Ok(attestation::fetch(repository, store, &resolved.documents).await) };
        let ((), (attestations, said_lease)) = futures_util::try_join!(all_layers, said)?;
        leases.push(said_lease);
        drop(tasks);
        let mut documents = Vec::with_capacity(resolved.documents.len());
        for document in &resolved.documents {
            documents.push(store.put_blob(&document.raw, &mut lease)?);
        }
        let id = store.put_blob(&raw_config, &mut lease)?;
        for layer in layers.iter().flatten() {
            lease.pin_layer(&layer.chain_id);
        }
        for blob in &attestations {
            lease.pin_blob(blob);
        }
        drop(leases);
        Ok(PulledImage {
            id,
            raw_config,
            digest: resolved.top.digest.clone(),
            documents,
            attestations,
            layers: layers.into_iter().flatten().collect(),
            blobs: manifest.layers.clone(),
            downloaded,
            lease,
        })
    }
}

/// Whether the same pull may succeed later.
fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Unauthorized)
}

/// Refuses what is not an image, by its name.
fn check_is_image(manifest: &Manifest) -> Result<()> {
    let kind = manifest.config.media_type.as_str();
    // What has no type was made by somebody careless; the content decides.
    let image = matches!(
        kind,
        "" | media_type::OCI_CONFIG | media_type::DOCKER_CONFIG | "application/octet-stream"
    );
    if !image || manifest.artifact_type.is_some() {
        let what = manifest.artifact_type.as_deref().unwrap_or(kind);
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "it is not a container image but an artifact of type {}: fetch it with a program that knows what that is",
                crate::error::show(what.as_bytes())
            ),
        ));
    }
    let odd = manifest
        .layers
        .iter()
        .find(|layer| !layer.media_type.is_empty() && !media_type::is_layer(&layer.media_type));
    match odd {
        Some(layer) => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the image has a layer of the type {}, which is not supported: tar, plain or with gzip or zstd, is",
                crate::error::show(layer.media_type.as_bytes())
            ),
        )),
        None => Ok(()),
    }
}

/// A single manifest has no platform beside its configuration's. Docker takes an image for another architecture with a
/// warning; one for another system cannot be of use.
fn check_platform(wanted: &Platform, config: &ImageConfig) -> Result<()> {
    if config.os.is_empty() || config.os.eq_ignore_ascii_case(&wanted.os) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("the image is for {}, not for {wanted}", Platform::of(config)),
    ))
}

/// A layer, and where it belongs.
struct Place<'a> {
    store: &'a Store,
    repository: &'a Repository,
    descriptor: &'a Descriptor,
    diff_id: &'a DiffId,
    chain_id: &'a ChainId,
    parent: Option<&'a ChainId>,
    limits: &'a Limits,
}

impl Place<'_> {
    /// The layer from the store or the registry, kept by a lease, and whether it had to be fetched.
    async fn obtain(
        &self,
        room: &tokio::sync::Semaphore,
        tell: &(impl Fn(PullEvent) + Sync),
    ) -> Result<(LayerInfo, Lease, bool)> {
        let digest = &self.descriptor.digest;
        let mut lease = self.store.lease();
        if lease.pin_layer(self.chain_id) {
            tell(PullEvent::Exists(digest.clone()));
            return Ok((self.store.layer(self.chain_id)?, lease, false));
        }
        tell(PullEvent::Waiting(digest.clone()));
        // One of those who need it fetches it.
        let flight = flight(self.store, self.chain_id);
        let _flight = flight.lock().await;
        if lease.pin_layer(self.chain_id) {
            tell(PullEvent::Complete(digest.clone()));
            return Ok((self.store.layer(self.chain_id)?, lease, false));
        }
        let _room = room
            .acquire()
            .await
            .map_err(|_| Error::new(ErrorKind::Io, "the pull has ended"))?;
        let pending = match self.fetch(true, tell).await {
            // What was kept of an earlier pull may be the culprit.
            Err((error, true)) if error.kind() == ErrorKind::Digest || error.kind() == ErrorKind::Invalid => {
                tracing::info!("downloading {digest} again from its beginning: {error}");
                self.fetch(false, tell).await.map_err(|(error, _)| error)?
            }
            other => other.map_err(|(error, _)| error)?,
        };
        let layer = self.store.commit(pending, self.parent, &mut lease)?;
        self.store.keep_unfinished(self.chain_id);
        tell(PullEvent::Complete(digest.clone()));
        Ok((layer, lease, true))
    }

    /// Downloads and unpacks. An error comes with whether bytes of an earlier pull were used.
    async fn fetch(
        &self,
        resume: bool,
        tell: &(impl Fn(PullEvent) + Sync),
    ) -> std::result::Result<PendingLayer, (Error, bool)> {
        let (digest, size) = (&self.descriptor.digest, self.descriptor.size);
        let partial = match size >= WORTH_KEEPING {
            true => self.store.partial(digest, size, resume),
            false => None,
        };
        let kept = partial.as_ref().map_or(0, Partial::len);
        let resumed = kept > 0;
        let fail = |error| (error, resumed);
        let (sender, receiver) = mpsc::channel(DEPTH);
        let feeder = layer::spawn(self.store, digest.algorithm(), self.limits.clone()).map_err(fail)?;
        let input = Input {
            receiver,
            piece: Bytes::new(),
            ended: false,
            partial,
            replay: kept,
            // The pipeline hashes compressed streams only.
            hasher: Hasher::new(digest.algorithm()),
            hash: digest.algorithm() != Algorithm::Sha256,
        };
        // Not one of the runtime's threads for short work: this takes as long as the network.
        let (done, worker) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("pull".into())
            .spawn(move || {
                // Nobody waits for a pull that was given up.
                let _ = done.send(unpack(feeder, input));
            })
            .map_err(|e| fail(Error::io("cannot start a thread to unpack a layer", e)))?;
        let mut reader = self.repository.blob(self.descriptor, kept);
        let mut have = kept;
        tell(PullEvent::Downloading(digest.clone(), have, size));
        let outcome = loop {
            match reader.next().await {
                Ok(Some(piece)) => {
                    have += piece.len() as u64;
                    // The thread is gone when unpacking has failed: it tells why.
                    if sender.send(Message::Piece(piece)).await.is_err() {
                        break Ok(());
                    }
                    tell(PullEvent::Downloading(digest.clone(), have, size));
                }
                Ok(None) => {
                    tell(PullEvent::Extracting(digest.clone(), size));
                    let _ = sender.send(Message::End).await;
                    break Ok(());
                }
                Err(error) => break Err(error),
            }
        };
        drop(sender);
        let (unpacked, partial) = worker.await.map_err(|_| {
            fail(Error::new(
                ErrorKind::Io,
                "a thread that unpacks a layer has died",
            ))
        })?;
        let verified = match (outcome, unpacked) {
            (Err(error), _) => Err(error),
            (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok((pending, hash))) => self.verify(pending, hash),
        };
        if let Some(partial) = partial {
            match &verified {
                // The rest may come later.
                Err(error) if is_passing(error) => {}
                _ => partial.remove(),
            }
        }
        verified.map_err(fail)
    }

    fn verify(&self, pending: PendingLayer, hash: Option<Digest>) -> Result<PendingLayer> {
        let digest = &self.descriptor.digest;
        if hash.as_ref().or(pending.digest()) != Some(digest) {
            return Err(Error::new(
                ErrorKind::Digest,
                format!(
                    "{} gave something else than the layer {digest} it was asked for: filesystem layer verification failed",
                    self.repository.origin()
                ),
            ));
        }
        if pending.diff_id() != Some(self.diff_id) {
            return Err(mismatch(self.diff_id, pending.diff_id()));
        }
        Ok(pending)
    }
}

/// Runs on a thread of its own. The partial file is closed and given back, whatever happens.
#[allow(clippy::type_complexity, reason = "used once, right above")]
fn unpack(
    feeder: layer::Feeder,
    mut input: Input,
) -> (Result<(PendingLayer, Option<Digest>)>, Option<Partial>) {
    let result = layer::feed(feeder, &mut input, Pool::new(BUFFERS));
    let hash = input.hash.then(|| input.hasher.finish());
    (result.map(|pending| (pending, hash)), input.partial)
}

/// From the network to the thread that unpacks. An end without `End` is no end.
enum Message {
    Piece(Bytes),
    End,
}

/// The bytes of a layer: those kept of an earlier pull, then those that arrive, which are kept as well.
struct Input {
    receiver: mpsc::Receiver<Message>,
    piece: Bytes,
    ended: bool,
    partial: Option<Partial>,
    /// So many bytes of the partial file are still to be read.
    replay: u64,
    hasher: Hasher,
    hash: bool,
}

impl Read for Input {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.replay > 0
            && let Some(partial) = &mut self.partial
        {
            let max = usize::try_from(self.replay).unwrap_or(usize::MAX).min(out.len());
            let count = partial.replay(&mut out[..max])?;
            if count == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the partial download was changed",
                ));
            }
            self.replay -= count as u64;
            if self.hash {
                self.hasher.update(&out[..count]);
            }
            return Ok(count);
        }
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Message::Piece(piece)) => {
                    if let Some(partial) = &mut self.partial
                        && let Err(error) = partial.append(&piece)
                    {
                        // A convenience only; the download itself needs the room more.
                        tracing::debug!("the download cannot be resumed later: {error}");
                        if let Some(partial) = self.partial.take() {
                            partial.remove();
                        }
                    }
                    self.piece = piece;
                }
                Some(Message::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the download was broken off",
                    ));
                }
            }
        }
        let count = self.piece.len().min(out.len());
        out[..count].copy_from_slice(&self.piece[..count]);
        if self.hash {
            self.hasher.update(&out[..count]);
        }
        self.piece.advance(count);
        Ok(count)
    }
}

type Flights = Mutex<HashMap<(std::path::PathBuf, ChainId), Weak<tokio::sync::Mutex<()>>>>;

/// The lock of those who fetch a layer of a store.
fn flight(store: &Store, chain: &ChainId) -> Arc<tokio::sync::Mutex<()>> {
    static FLIGHTS: std::sync::LazyLock<Flights> = std::sync::LazyLock::new(Mutex::default);
    let mut flights = FLIGHTS.lock().unwrap_or_else(PoisonError::into_inner);
    flights.retain(|_, flight| flight.strong_count() > 0);
    let key = (store.root().to_owned(), chain.clone());
    if let Some(flight) = flights.get(&key).and_then(Weak::upgrade) {
        return flight;
    }
    let flight = Arc::new(tokio::sync::Mutex::new(()));
    flights.insert(key, Arc::downgrade(&flight));
    flight
}
