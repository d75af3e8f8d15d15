//! Leaving what a build made for later builds elsewhere (`--cache-to`).
//!
//! Every step that took part is told by its keys. `mode=max` keeps the layers of all of them, otherwise those of the
//! result are kept; layers of base images never are, since a build that needs them has pulled them. The directories of
//! `RUN --mount=type=cache` go along as archives when that is asked for: they are the host's, with what all of its builds
//! left in them. What the place has already is not sent again, and not even compressed
//! again where its compressed digest is known.

use std::collections::HashSet;
use std::io::{BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use vessel_image::{
    Algorithm, ChainId, Compression, Descriptor, DiffId, Digest, Hasher, MAX_DOCUMENT, Manifest, PackOptions,
    compress, media_type, pack,
};

use super::document::{Draft, INLINE, MEDIA_TYPE};
use super::import::{Imports, Teller};
use super::{Cache, Key};
use crate::blocking;
use crate::error::{Error, Result};
use crate::place::CachePlace;
use crate::progress::{Event, Status};
use crate::request::CacheExportOptions;
use crate::tree;
use crate::worker::Worker;

/// Compressed layers that are remembered.
const MAX_KNOWN: usize = 20_000;
/// Further keys of a step, from each place that knows some.
const MAX_KEYS: usize = 4;
/// Kinds of blobs that are named in a cache.
const KINDS: [&str; 5] = [
    media_type::OCI_LAYER,
    media_type::OCI_LAYER_GZIP,
    media_type::OCI_LAYER_ZSTD,
    media_type::DOCKER_LAYER,
    media_type::DOCKER_LAYER_GZIP,
];

/// A step that took part in a build.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    pub keys: Vec<Key>,
    pub parent: Option<ChainId>,
    pub chain: ChainId,
    pub diff: DiffId,
    pub created: i64,
    pub description: String,
}

/// What an export is made of.
pub(crate) struct Export<'a> {
    pub cache: &'a Cache,
    pub worker: &'a Arc<dyn Worker>,
    pub imports: &'a Imports,
    pub steps: &'a [Taken],
    /// The layers of the results.
    pub results: &'a HashSet<ChainId>,
    /// The cache mounts that steps have.
    pub mounts: &'a [String],
    pub options: &'a CacheExportOptions,
    pub teller: Teller<'a>,
}

/// The document for the configuration of an image of these layers, of at most so many bytes. None: there is no room.
pub(crate) fn inline(
    cache: &Cache,
    imports: &Imports,
    steps: &[Taken],
    chain: &[ChainId],
    most: usize,
) -> Result<Option<Vec<u8>>> {
    let mut document = Draft::of_image(chain.len());
    let place = |step: &Taken| chain.iter().position(|layer| *layer == step.chain);
    let (own, others): (Vec<_>, Vec<_>) = steps.iter().partition(|step| place(step).is_some());
    // The steps of other stages come last: they are told so that none is done again when the image's own layers are all
    // that a build needs.
    for step in own.into_iter().chain(others) {
        let Some(at) = place(step).or_else(|| document.layer(&step.diff)) else {
            break;
        };
        for key in keys(cache, imports, step) {
            document.record(&key, at, step.created, "");
        }
    }
    document.encode(most)
}

/// Bytes of a document that fits into a configuration.
pub(crate) fn room(config: &[u8]) -> usize {
    // Its name, a comma, quotes and a colon.
    MAX_DOCUMENT.saturating_sub(config.len() + INLINE.len() + 8)
}

/// A configuration with the document in it.
pub(crate) fn embed(config: Vec<u8>, document: &[u8]) -> Vec<u8> {
    let Some(body) = config.strip_suffix(b"}") else {
        return config;
    };
    [body, format!(",\"{INLINE}\":").as_bytes(), document, b"}"].concat()
}

/// The keys of a step: those it was found by, and others under which the same step is known. Steps that happen to give
/// the same layer are no business of this build: what a cache says of them goes no further.
fn keys(cache: &Cache, imports: &Imports, step: &Taken) -> Vec<Key> {
    let mut keys = step.keys.clone();
    let more = |keys: &mut Vec<Key>, mut known: Vec<Key>| {
        known.sort();
        known.truncate(MAX_KEYS);
        keys.extend(known);
    };
    more(&mut keys, cache.keys_like(&step.keys, &step.chain));
    more(&mut keys, imports.keys_like(&step.keys, &step.diff));
    // The same on every host: it is part of images.
    keys.sort();
    keys.dedup();
    keys
}

impl Export<'_> {
    /// Leaves all of it in a place. Gives the manifest.
    pub async fn to(&self, place: &Arc<dyn CachePlace>) -> Result<Descriptor> {
        let mut document = Draft::new();
        let mut blobs: Vec<Descriptor> = Vec::new();
        for step in self.steps {
            let Some(at) = document.layer(&step.diff) else {
                break;
            };
            for key in keys(self.cache, self.imports, step) {
                document.record(&key, at, step.created, &step.description);
            }
            let wanted = self.options.max || self.results.contains(&step.chain);
            if wanted
                && !document.has_blob(at)
                && let Some(blob) = self.layer(place, step).await?
            {
                document.blob(at, blob.digest.clone());
                add(&mut blobs, blob);
            }
        }
        if self.options.mounts {
            for id in self.mounts {
                if let Some(blob) = self.mount(place, id).await? {
                    document.mount(id, blob.digest.clone());
                    add(&mut blobs, blob);
                }
            }
        }
        let raw = document.encode(MAX_DOCUMENT)?;
        let raw = raw.ok_or_else(|| Error::invalid("the cache has more layers and cache mounts than fit"))?;
        let config = Descriptor::new(MEDIA_TYPE, Digest::sha256(&raw), raw.len() as u64);
        let file = Temporary::new(self.cache);
        tokio::fs::write(&file.0, &raw)
            .await
            .map_err(|error| Error::io("cannot write the cache's configuration", error))?;
        place.write(&config, &file.0).await?;
        let kind = match self.options.oci {
            Some(false) => media_type::DOCKER_MANIFEST,
            _ => media_type::OCI_MANIFEST,
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(kind.to_owned()),
            config,
            layers: blobs,
            artifact_type: None,
            subject: None,
            annotations: None,
        };
        let raw = serde_json::to_vec(&manifest)
            .map_err(|error| Error::invalid(format!("cannot encode the cache's manifest: {error}")))?;
        place.put_manifest(kind, &raw).await?;
        Ok(Descriptor::new(kind, Digest::sha256(&raw), raw.len() as u64))
    }

    fn compression(&self) -> Compression {
        self.options.compression.unwrap_or(Compression::Gzip)
    }

    fn media_type(&self) -> &'static str {
        match (self.compression(), self.options.oci == Some(false)) {
            (Compression::Zstd, _) => media_type::OCI_LAYER_ZSTD,
            (Compression::None, false) => media_type::OCI_LAYER,
            (Compression::None, true) => media_type::DOCKER_LAYER,
            (_, false) => media_type::OCI_LAYER_GZIP,
            (_, true) => media_type::DOCKER_LAYER_GZIP,
        }
    }

    /// A layer, in the place afterwards. None: it is nowhere.
    async fn layer(&self, place: &Arc<dyn CachePlace>, step: &Taken) -> Result<Option<Descriptor>> {
        let compression = self.compression();
        let mut known: Vec<Descriptor> = self
            .cache
            .compressed(&step.diff, compression)
            .into_iter()
            .collect();
        known.extend(self.imports.blobs(&step.diff).cloned());
        for blob in known {
            let fits = match self.options.compression {
                Some(_) => blob.media_type == self.media_type(),
                None => KINDS.contains(&blob.media_type.as_str()),
            };
            if fits && place.has(&blob).await? {
                return Ok(Some(blob));
            }
        }
        let store = self.worker.store().clone();
        let mut lease = store.lease();
        let _fetched = match lease.pin_layer(&step.chain) {
            true => None,
            false => {
                let fetched = self
                    .imports
                    .fetch(&step.diff, step.parent.as_ref(), &store, self.teller.clone())
                    .await;
                match fetched {
                    Some((_, lease)) => Some(lease),
                    None => return Ok(None),
                }
            }
        };
        let file = Temporary::new(self.cache);
        let (path, chain, level) = (file.0.clone(), step.chain.clone(), self.options.level);
        let (digest, size) = blocking(move || {
            let archive = store.layer_archive(&chain)?;
            write(&path, archive, compression, level)
        })
        .await?;
        let blob = Descriptor::new(self.media_type(), digest, size);
        self.send(place, &blob, &file.0, "layer").await?;
        self.cache
            .remember_compressed(&step.diff, compression, blob.clone());
        Ok(Some(blob))
    }

    /// The contents of a cache mount, in the place afterwards. None: there are none, or they changed while they were read.
    async fn mount(&self, place: &Arc<dyn CachePlace>, id: &str) -> Result<Option<Descriptor>> {
        let Some(held) = self.cache.mounts.read(id).await else {
            return Ok(None);
        };
        let file = Temporary::new(self.cache);
        let (path, compression, level) = (file.0.clone(), self.compression(), self.options.level);
        let packed = blocking(move || {
            let fail = |error| Error::io("cannot read a cache mount", error);
            let root = tree::open_root(&held.data)?;
            let (reader, writer) = std::io::pipe().map_err(fail)?;
            let written = std::thread::scope(|scope| {
                let packing = scope.spawn(move || pack(root.as_fd(), b"/", &PackOptions::default(), writer));
                let written = write(&path, reader, compression, level);
                match packing.join() {
                    Ok(packed) => packed.map_err(Error::from).and(written),
                    Err(_) => Err(fail(std::io::Error::other("the thread that packs it has died"))),
                }
            });
            drop(held);
            written
        })
        .await;
        let (digest, size) = match packed {
            Ok(packed) => packed,
            // Another build works in it.
            Err(error) => {
                tracing::warn!("the cache mount {id} is left out of the exported cache: {error}");
                return Ok(None);
            }
        };
        let blob = Descriptor::new(self.media_type(), digest, size);
        // What leaves the host is told by its name.
        let what = format!("cache mount {id} ({size} bytes)");
        self.send(place, &blob, &file.0, &what).await?;
        Ok(Some(blob))
    }

    async fn send(
        &self,
        place: &Arc<dyn CachePlace>,
        blob: &Descriptor,
        path: &Path,
        what: &str,
    ) -> Result<()> {
        let started = SystemTime::now();
        // Clients show the ID.
        let name = format!("writing {what} {}", blob.digest);
        let tell = |completed: Option<SystemTime>| {
            self.teller.progress.send(Event::Status(Status {
                vertex: self.teller.vertex.clone(),
                id: name.clone(),
                name: name.clone(),
                current: if completed.is_some() { blob.size } else { 0 },
                total: blob.size,
                started,
                completed,
                time: SystemTime::now(),
            }))
        };
        tell(None).await;
        place.write(blob, path).await?;
        tell(Some(SystemTime::now())).await;
        Ok(())
    }
}

fn add(blobs: &mut Vec<Descriptor>, blob: Descriptor) {
    if !blobs.iter().any(|known| known.digest == blob.digest) {
        blobs.push(blob);
    }
}

/// Compresses into a file. Gives the digest and the size.
fn write(
    path: &Path,
    input: impl Read,
    compression: Compression,
    level: Option<i32>,
) -> Result<(Digest, u64)> {
    let fail = |error| Error::io(format!("cannot write {}", path.display()), error);
    let mut file = BufWriter::with_capacity(1 << 18, std::fs::File::create(path).map_err(fail)?);
    let (mut hasher, mut size) = (Hasher::new(Algorithm::Sha256), 0);
    compress(input, compression, level, &mut |piece| {
        hasher.update(&piece);
        size += piece.len() as u64;
        file.write_all(&piece)
    })?;
    file.flush().map_err(fail)?;
    Ok((hasher.finish(), size))
}

/// A file that is gone when this is.
pub(crate) struct Temporary(pub PathBuf);

impl Temporary {
    pub fn new(cache: &Cache) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(cache.temporary().join(format!("blob-{number}")))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Cache {
    /// What a layer was compressed to before.
    fn compressed(&self, diff: &DiffId, how: Compression) -> Option<Descriptor> {
        let known = self
            .compressed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        known.get(&(diff.clone(), how as u8)).cloned()
    }

    fn remember_compressed(&self, diff: &DiffId, how: Compression, blob: Descriptor) {
        let mut known = self
            .compressed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert((diff.clone(), how as u8), blob);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_keeps_its_members() {
        let config = vessel_image::ImageConfig {
            os: "linux".to_owned(),
            ..vessel_image::ImageConfig::default()
        };
        let raw = config.to_raw().unwrap();
        let with = embed(raw, &Draft::new().encode(MAX_DOCUMENT).unwrap().unwrap());
        assert_eq!(vessel_image::ImageConfig::parse(&with).unwrap(), config);
        let value: serde_json::Value = serde_json::from_slice(&with).unwrap();
        assert_eq!(value[INLINE]["version"], 1);
    }
}
