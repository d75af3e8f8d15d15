//! Caches of elsewhere that a build may use (`--cache-from`).
//!
//! What they say is read when the build begins; a layer is fetched when a step needs what is in it, the contents of a
//! cache mount when a process is about to see it for the first time here. A cache that cannot be read, or not any more,
//! costs a warning and its help, never the build.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Buf as _, Bytes};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use vessel_image::{
    Algorithm, ChainId, Descriptor, DiffId, Digest, Document as ImageDocument, Hasher, LayerInfo, Lease,
    Limits, MAX_DOCUMENT, Manifest, Platform, Store,
};

use super::document::{Contents, Found, MEDIA_TYPE};
use super::{Cache, Key, Record};
use crate::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::place::CachePlace;
use crate::progress::{Event, Progress, Status, Warning};
use crate::request::CacheImport;
use crate::session::Session;
use crate::solve::{Pending, as_vertex};
use crate::time;
use crate::worker::Worker;

/// Images of one index that are looked into.
const MAX_IMAGES: usize = 16;
/// Pieces of a blob on their way to who takes them, and the bytes of one.
const PIECES: usize = 16;
const PIECE: usize = 256 << 10;
/// Between two events about the same blob.
const INTERVAL: Duration = Duration::from_millis(100);

/// The caches of a build.
#[derive(Default)]
pub(crate) struct Imports {
    sources: Vec<Source>,
    /// Something that a cache promised was needed and could not be had.
    broken: AtomicBool,
}

struct Source {
    name: String,
    /// Where the blobs are; none: in the store of this host.
    place: Option<Arc<dyn CachePlace>>,
    contents: Contents,
}

/// Reads the caches that a request names. Those that cannot be read are told and left out.
pub(crate) async fn open(
    wanted: &[CacheImport],
    platforms: &[Platform],
    worker: &Arc<dyn Worker>,
    session: &Arc<dyn Session>,
    progress: &Progress,
) -> Imports {
    let mut seen: Vec<&CacheImport> = Vec::new();
    for import in wanted {
        if !seen.contains(&import) {
            seen.push(import);
        }
    }
    let load = |import: &CacheImport| {
        let (import, worker, session, progress) = (
            import.clone(),
            Arc::clone(worker),
            Arc::clone(session),
            progress.clone(),
        );
        let platforms = platforms.to_vec();
        async move {
            let name = match &import {
                CacheImport::Registry(reference) => reference.clone(),
                CacheImport::Local { store, .. } => store.clone(),
            };
            let vertex = Pending::new(&format!("importing cache manifest from {name}"));
            let work = async {
                match &import {
                    CacheImport::Registry(reference) => {
                        from_registry(reference, &platforms, &worker, &session).await
                    }
                    CacheImport::Local { store, digest } => {
                        let place = session.content(store, Some(digest)).await?;
                        read(place, &platforms).await
                    }
                }
            };
            // The vertex says why; the build goes on.
            let loaded = as_vertex(&progress, &vertex, work).await.ok()?;
            Some(loaded.into_iter().map(move |(place, contents)| Source {
                name: name.clone(),
                place,
                contents,
            }))
        }
    };
    let loaded = futures_util::future::join_all(seen.into_iter().map(load)).await;
    Imports {
        sources: loaded.into_iter().flatten().flatten().collect(),
        broken: AtomicBool::new(false),
    }
}

type Loaded = Vec<(Option<Arc<dyn CachePlace>>, Contents)>;

async fn from_registry(
    reference: &str,
    platforms: &[Platform],
    worker: &Arc<dyn Worker>,
    session: &Arc<dyn Session>,
) -> Result<Loaded> {
    // An image that is here is what the name means, whether it has a cache in it or not.
    if let Some(config) = worker.image_here(reference).await {
        let contents = Contents::of_image(&config, None)?;
        return Ok(contents.into_iter().map(|contents| (None, contents)).collect());
    }
    read(worker.cache_place(reference, session).await?, platforms).await
}

/// The manifest of a place, and the document it leads to.
async fn read(place: Arc<dyn CachePlace>, platforms: &[Platform]) -> Result<Loaded> {
    let raw = place.manifest(None).await?;
    let manifests = match ImageDocument::parse(&raw) {
        Ok(ImageDocument::Index(index)) => {
            let mut manifests = Vec::new();
            let wanted = index.manifests.iter().filter(|entry| {
                entry
                    .platform
                    .as_ref()
                    .is_none_or(|offered| platforms.iter().any(|wanted| wanted.accepts(offered)))
            });
            for entry in wanted.take(MAX_IMAGES) {
                let raw = place.manifest(Some(&entry.digest)).await?;
                if !entry.digest.verify(&raw) {
                    return Err(Error::invalid(format!(
                        "the manifest {} is another",
                        entry.digest
                    )));
                }
                manifests.push(raw);
            }
            manifests
        }
        // One with more layers than an image can have is a cache's.
        _ => vec![raw],
    };
    let mut found = Vec::new();
    for raw in manifests {
        if let Some(contents) = read_manifest(&place, &raw).await? {
            found.push((Some(Arc::clone(&place)), contents));
        }
    }
    if found.is_empty() {
        return Err(Error::not_found(
            "there is no cache of this builder: export one with --cache-to, or build the image with --cache-to type=inline",
        ));
    }
    Ok(found)
}

async fn read_manifest(place: &Arc<dyn CachePlace>, raw: &[u8]) -> Result<Option<Contents>> {
    if raw.len() > MAX_DOCUMENT {
        return Err(Error::invalid("the cache's manifest is too large"));
    }
    let manifest: Manifest = serde_json::from_slice(raw)
        .map_err(|error| Error::invalid(format!("the cache's manifest cannot be read: {error}")))?;
    let config = document(place, &manifest.config).await?;
    if manifest.config.media_type == MEDIA_TYPE {
        return Contents::of_manifest(&manifest, &config).map(Some);
    }
    if manifest.config.media_type.contains("buildkit.cacheconfig") {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "this cache was exported by BuildKit, whose steps have other names: export one with this builder",
        ));
    }
    Contents::of_image(&config, Some(&manifest))
}

/// A small blob, verified.
async fn document(place: &Arc<dyn CachePlace>, blob: &Descriptor) -> Result<Vec<u8>> {
    if blob.size > MAX_DOCUMENT as u64 {
        return Err(Error::invalid("the cache's configuration is too large"));
    }
    let mut pieces = place.read(blob).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > blob.size {
            break;
        }
    }
    if bytes.len() as u64 != blob.size || !blob.digest.verify(&bytes) {
        return Err(wrong(blob));
    }
    Ok(bytes)
}

fn wrong(blob: &Descriptor) -> Error {
    Error::invalid(format!(
        "the blob {} of the cache has other content than it should have",
        blob.digest
    ))
}

/// What a cache says that a step gives.
pub(crate) struct Promise {
    pub found: Found,
    /// Whether no cache has the layer, so that it is in the store of this host or nowhere.
    pub here: bool,
}

/// What is told while something is fetched.
#[derive(Clone)]
pub(crate) struct Teller<'a> {
    pub progress: &'a Progress,
    pub vertex: &'a Digest,
}

impl Imports {
    /// What a step of one of these keys gives, as the caches say: all of their answers, in their order. `kept`: only what
    /// is kept somewhere.
    pub fn find<'a>(&self, keys: impl Iterator<Item = &'a String> + Clone, kept: bool) -> Vec<Promise> {
        let mut promises = Vec::new();
        for source in &self.sources {
            for found in keys.clone().filter_map(|key| source.contents.find(key)) {
                let fetched = self.has(&found.diff);
                let here = source.place.is_none() && !fetched;
                if here || !kept || fetched {
                    let found = found.clone();
                    promises.push(Promise { found, here });
                }
            }
        }
        promises
    }

    fn has(&self, diff: &DiffId) -> bool {
        self.blobs(diff).next().is_some()
    }

    /// The blobs that caches have of a layer.
    pub fn blobs<'a>(&'a self, diff: &'a DiffId) -> impl Iterator<Item = &'a Descriptor> {
        let blob = |source: &'a Source| source.place.as_ref().and_then(|_| source.contents.blob(diff));
        self.sources.iter().filter_map(blob)
    }

    /// The keys under which caches know the step of these keys, if it gives this layer.
    pub fn keys_like(&self, keys: &[Key], diff: &DiffId) -> Vec<Key> {
        let mut like = Vec::new();
        for source in &self.sources {
            for key in keys {
                like.extend(source.contents.keys_like(key, diff).cloned());
            }
        }
        like.sort();
        like.dedup();
        like
    }

    /// Fetches a layer, and puts it on another. None: no cache has it whole, which is told.
    pub async fn fetch(
        &self,
        diff: &DiffId,
        parent: Option<&ChainId>,
        store: &Store,
        teller: Teller<'_>,
    ) -> Option<(LayerInfo, Lease)> {
        for source in &self.sources {
            let (Some(place), Some(blob)) = (&source.place, source.contents.blob(diff)) else {
                continue;
            };
            match fetch_layer(place, blob, diff, parent, store, &teller).await {
                Ok(fetched) => return Some(fetched),
                Err(error) => self.warn(source, &error, &teller).await,
            }
        }
        None
    }

    /// Fetches the contents of a cache mount into a file. None: no cache has them whole, and in so many bytes at most.
    pub async fn fetch_mount(&self, id: &str, into: &Path, most: u64, teller: Teller<'_>) -> Option<()> {
        for source in &self.sources {
            let (Some(place), Some(blob)) = (&source.place, source.contents.mount(id)) else {
                continue;
            };
            match fetch_file(place, blob, into, most, &teller).await {
                Ok(()) => return Some(()),
                Err(error) => self.warn(source, &error, &teller).await,
            }
        }
        None
    }

    /// Whether a cache has the contents of a mount.
    pub fn has_mount(&self, id: &str) -> bool {
        let mut sources = self.sources.iter();
        sources.any(|source| source.place.is_some() && source.contents.mount(id).is_some())
    }

    async fn warn(&self, source: &Source, error: &Error, teller: &Teller<'_>) {
        tracing::warn!("the cache {} is not whole: {error}", source.name);
        let warning = Warning {
            vertex: teller.vertex.clone(),
            level: 1,
            short: format!("the cache {} is not whole: {error}", source.name),
            detail: Vec::new(),
            url: None,
            location: None,
            text: None,
        };
        teller.progress.send(Event::Warning(warning)).await;
    }

    /// A step counted on what no cache has.
    pub fn broke(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// Whether one did, since it was asked last.
    pub fn was_broken(&self) -> bool {
        self.broken.swap(false, Ordering::Relaxed)
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.sources.iter().map(|source| source.contents.len()).sum()
    }
}

impl Cache {
    /// Remembers what a step gave according to a cache of elsewhere. The first key is the one that counts.
    /// The description is the step's own: what a cache says is shown to nobody.
    pub fn adopt<'a>(
        &self,
        keys: impl Iterator<Item = &'a String>,
        layer: &LayerInfo,
        created: i64,
        description: &str,
    ) {
        let now = time::now();
        let mut first: Option<&String> = None;
        for key in keys {
            let alias_of = first.cloned();
            first.get_or_insert(key);
            self.put(Record {
                key: key.clone(),
                alias_of,
                chain: layer.chain_id.clone(),
                diff: layer.diff_id.clone(),
                description: description.to_owned(),
                size: layer.size,
                created,
                used: now,
                uses: 1,
            });
        }
    }
}

async fn fetch_layer(
    place: &Arc<dyn CachePlace>,
    blob: &Descriptor,
    diff: &DiffId,
    parent: Option<&ChainId>,
    store: &Store,
    teller: &Teller<'_>,
) -> Result<(LayerInfo, Lease)> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let reader = Verified {
        pieces: receiver,
        current: Bytes::new(),
        hasher: Some(Hasher::new(Algorithm::Sha256)),
        digest: blob.digest.clone(),
    };
    let (store, diff, parent) = (store.clone(), diff.clone(), parent.cloned());
    let unpack = blocking(move || {
        let mut lease = store.lease();
        let layer = store.put_layer(reader, parent.as_ref(), &diff, &Limits::default(), &mut lease)?;
        Ok((layer, lease))
    });
    let pump = async {
        let mut taker = Taker::Reader(sender);
        let pumped = pump(place, blob, teller, &mut taker).await;
        // Without this mark the reader knows that it did not get all.
        if let (Ok(true), Taker::Reader(sender)) = (&pumped, taker) {
            let _ = sender.send(None).await;
        }
        pumped
    };
    let (pumped, unpacked) = tokio::join!(pump, unpack);
    // What went wrong first explains the rest.
    pumped?;
    unpacked
}

async fn fetch_file(
    place: &Arc<dyn CachePlace>,
    blob: &Descriptor,
    into: &Path,
    most: u64,
    teller: &Teller<'_>,
) -> Result<()> {
    if blob.size > most {
        return Err(Error::invalid(format!(
            "a cache mount of {} bytes is too large for this builder, whose cache and disk have room for {most}",
            blob.size
        )));
    }
    let fail = |error| Error::io(format!("cannot write {}", into.display()), error);
    let file = tokio::fs::File::create(into).await.map_err(fail)?;
    let mut taker = Taker::File {
        file,
        hasher: Box::new(Hasher::new(Algorithm::Sha256)),
        failed: None,
    };
    pump(place, blob, teller, &mut taker).await?;
    let Taker::File {
        mut file,
        hasher,
        failed,
    } = taker
    else {
        return Err(wrong(blob));
    };
    if let Some(error) = failed {
        return Err(fail(error));
    }
    file.flush().await.map_err(fail)?;
    if hasher.finish() != blob.digest {
        return Err(wrong(blob));
    }
    Ok(())
}

/// Who takes the pieces of a blob.
enum Taker {
    /// A thread that reads them.
    Reader(mpsc::Sender<Option<Bytes>>),
    /// A file.
    File {
        file: tokio::fs::File,
        hasher: Box<Hasher>,
        failed: Option<io::Error>,
    },
}

impl Taker {
    /// Whether more is wanted.
    async fn take(&mut self, piece: Bytes) -> bool {
        match self {
            Self::Reader(sender) => sender.send(Some(piece)).await.is_ok(),
            Self::File { file, hasher, failed } => {
                hasher.update(&piece);
                *failed = file.write_all(&piece).await.err();
                failed.is_none()
            }
        }
    }
}

/// Reads a blob and passes its pieces on until the taker wants no more. Whether all of it was passed on.
async fn pump(
    place: &Arc<dyn CachePlace>,
    blob: &Descriptor,
    teller: &Teller<'_>,
    taker: &mut Taker,
) -> Result<bool> {
    let started = SystemTime::now();
    let tell = |current: u64, done: bool| {
        let now = SystemTime::now();
        teller.progress.try_send(Event::Status(Status {
            vertex: teller.vertex.clone(),
            id: blob.digest.to_string(),
            name: blob.digest.to_string(),
            current,
            total: blob.size,
            started,
            completed: done.then_some(now),
            time: now,
        }));
    };
    let mut pieces = place.read(blob).await?;
    let (mut total, mut told) = (0u64, Instant::now());
    tell(0, false);
    while let Some(mut piece) = pieces.next().await? {
        total += piece.len() as u64;
        if total > blob.size {
            return Err(wrong(blob));
        }
        // Small ones, so that their number bounds the memory they take.
        while !piece.is_empty() {
            let part = piece.split_to(piece.len().min(PIECE));
            if !taker.take(part).await {
                return Ok(false);
            }
        }
        if told.elapsed() >= INTERVAL {
            told = Instant::now();
            tell(total, false);
        }
    }
    if total != blob.size {
        return Err(wrong(blob));
    }
    tell(total, true);
    Ok(true)
}

/// The bytes of a blob, whose end is an error unless they were the right ones.
struct Verified {
    /// None is the end.
    pieces: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    hasher: Option<Hasher>,
    digest: Digest,
}

impl Read for Verified {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let Some(hasher) = &mut self.hasher else {
                return Ok(0);
            };
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => {
                    hasher.update(&piece);
                    self.current = piece;
                }
                Some(None) => {
                    let right = self
                        .hasher
                        .take()
                        .is_some_and(|hasher| hasher.finish() == self.digest);
                    if !right {
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("the blob {} has other content than it should have", self.digest),
                        ));
                    }
                }
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = self.current.len().min(out.len());
        self.current
            .copy_to_slice(out.get_mut(..count).unwrap_or_default());
        Ok(count)
    }
}
