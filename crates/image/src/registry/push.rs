//! Pushing: from the store to a name at a registry.
//!
//! A layer that the registry is known to have (it came from there, or was sent there before) is looked up or mounted and
//! not sent. An image that was pulled and whose layers are all there goes with the manifest it came with, byte for byte:
//! its digest stays. Otherwise layers are put together again, compressed on the way, and a new manifest is made.

use std::collections::BTreeMap;

use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::client::RegistryClient;
use super::credentials::Credentials;
use super::repository::{Access, RawManifest, Repository};
use super::upload::{Mount, Upload};
use crate::Store;
use crate::compression::Compression;
use crate::config::ImageConfig;
use crate::digest::{DiffId, Digest};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Descriptor, Document, Manifest, media_type};
use crate::reference::Reference;

/// Known places of one layer that are tried.
const MAX_TRIES: usize = 4;

/// A compressed layer that some registry is known to have.
#[derive(Debug, Clone)]
pub struct KnownBlob {
    /// Registry and repository, `docker.io/library/debian`.
    pub repository: String,
    /// The blob.
    pub descriptor: Descriptor,
}

/// What to push.
#[derive(Debug, Clone)]
pub struct PushImage {
    /// The configuration's bytes.
    pub raw_config: Vec<u8>,
    /// The manifest it came with, if it came from a registry.
    pub manifest: Option<Vec<u8>>,
    /// Where each layer is known to be, best first; bottom layer first.
    pub known: Vec<Vec<KnownBlob>>,
    /// How what has to be made anew is made.
    pub style: PushStyle,
}

/// How layers and manifests are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PushStyle {
    /// The compression of layers that are sent; none: gzip.
    pub compression: Option<Compression>,
    /// Its level.
    pub level: Option<i32>,
    /// Whether layers that the registry has in another compression are sent again in this one.
    pub force: bool,
    /// Whether media types are OCI's; none: Docker's, unless something needs OCI's.
    pub oci: Option<bool>,
    /// Annotations of the manifest, which only OCI's have.
    pub annotations: BTreeMap<String, String>,
}

impl PushStyle {
    /// Whether a blob may stand for a layer.
    fn takes(&self, blob: &Descriptor) -> bool {
        !self.force || self.makes(blob)
    }

    /// Whether a blob is compressed as what is sent anew would be.
    fn makes(&self, blob: &Descriptor) -> bool {
        let kind = blob.media_type.as_str();
        match self.compression.unwrap_or(Compression::Gzip) {
            Compression::Zstd => kind.ends_with("zstd"),
            Compression::None => kind.ends_with("tar"),
            _ => kind.ends_with("gzip"),
        }
    }

    /// Whether the manifest an image came with says what is wanted.
    fn keeps(&self, kind: &str) -> bool {
        let is_oci = kind == media_type::OCI_MANIFEST;
        self.annotations.is_empty() && self.oci.is_none_or(|wanted| wanted == is_oci)
    }
}

/// News of a push; layers by their diff IDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushEvent {
    /// A layer waits for its turn.
    Preparing(DiffId),
    /// The registry has the layer.
    Exists(DiffId),
    /// The registry took it from another of its repositories.
    Mounted(DiffId, String),
    /// So many bytes of the layer's archive were sent, of so many.
    Pushing(DiffId, u64, u64),
    /// The layer was sent.
    Pushed(DiffId),
}

/// What was pushed.
#[derive(Debug, Clone)]
pub struct PushedImage {
    /// The manifest's digest.
    pub digest: Digest,
    /// Its bytes.
    pub manifest: Vec<u8>,
    /// Its media type.
    pub media_type: String,
    /// The layers' blobs, bottom first.
    pub blobs: Vec<Descriptor>,
}

impl RegistryClient {
    /// Pushes an image of the store under a name with a tag. `tell` is told how it gets on, from several tasks.
    ///
    /// Dropping the future ends the push; what was sent whole is there for the next one.
    ///
    /// # Errors
    /// `Unauthorized` and `Permission`; a registry that keeps failing; layers that were damaged on disk.
    pub async fn push(
        &self,
        store: &Store,
        image: &PushImage,
        reference: &Reference,
        credentials: &Credentials,
        tell: impl Fn(PushEvent) + Send + Sync,
    ) -> Result<PushedImage> {
        let repository = self.repository(reference, credentials).await?;
        let config = ImageConfig::parse(&image.raw_config)?;
        let style = &image.style;
        let original = image.manifest.as_deref().and_then(|raw| original(raw, image));
        let diff_ids = &config.rootfs.diff_ids;
        let chain = config.chain();
        for diff_id in diff_ids {
            tell(PushEvent::Preparing(diff_id.clone()));
        }
        let room = tokio::sync::Semaphore::new(self.settings().uploads.max(1));
        let mut tasks = FuturesUnordered::new();
        for (at, (diff_id, chain_id)) in diff_ids.iter().zip(&chain).enumerate() {
            // An image may have a layer twice: it is sent once.
            if diff_ids.iter().position(|other| other == diff_id) != Some(at) {
                continue;
            }
            let first = original
                .as_ref()
                .and_then(|(manifest, _)| manifest.layers.get(at));
            let known = image.known.get(at).map(Vec::as_slice).unwrap_or_default();
            let (room, tell, repository) = (&room, &tell, &repository);
            tasks.push(async move {
                let _room = room
                    .acquire()
                    .await
                    .map_err(|_| Error::new(ErrorKind::Io, "the push has ended"))?;
                if let Some(foreign) = first.filter(|layer| media_type::is_foreign(&layer.media_type)) {
                    // Its owner does not want it in registries.
                    tell(PushEvent::Exists(diff_id.clone()));
                    return Ok((diff_id, foreign.clone()));
                }
                let begun = match find(repository, diff_id, first, known, style, tell).await? {
                    Place::There(descriptor) => return Ok((diff_id, descriptor)),
                    Place::Nowhere(begun) => begun,
                };
                let total = store.layer(chain_id)?.archive_size;
                let passed = |bytes| tell(PushEvent::Pushing(diff_id.clone(), bytes, total));
                let descriptor = repository
                    .put_layer(store, chain_id, style, begun, &passed)
                    .await?;
                tell(PushEvent::Pushed(diff_id.clone()));
                Ok::<_, Error>((diff_id, descriptor))
            });
        }
        let mut sent: Vec<(&DiffId, Descriptor)> = Vec::with_capacity(diff_ids.len());
        while let Some(result) = tasks.next().await {
            sent.push(result?);
        }
        drop(tasks);
        let mut blobs = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            let found = sent.iter().find(|(known, _)| *known == diff_id);
            blobs.extend(found.map(|(_, descriptor)| descriptor.clone()));
        }
        let config_digest = Digest::sha256(&image.raw_config);
        repository.put_blob(&image.raw_config, &config_digest).await?;
        let (raw, kind) = match original {
            Some((manifest, kind)) if style.keeps(&kind) && same_blobs(&manifest.layers, &blobs) => {
                (image.manifest.clone().unwrap_or_default(), kind)
            }
            _ => manifest(&image.raw_config, config_digest, &blobs, style)?,
        };
        let target = match (reference.tag(), reference.digest()) {
            (Some(tag), _) => tag.to_owned(),
            (None, _) => Digest::sha256(&raw).to_string(),
        };
        let digest = repository.put_manifest(&target, &kind, &raw).await?;
        Ok(PushedImage {
            digest,
            manifest: raw,
            media_type: kind,
            blobs,
        })
    }
}

/// The manifest an image came with, if it fits its configuration.
fn original(raw: &[u8], image: &PushImage) -> Option<(Manifest, String)> {
    let digest = Digest::sha256(raw);
    let Ok(Document::Manifest(manifest)) = Document::parse(raw) else {
        return None;
    };
    let fits = manifest.config.digest == Digest::sha256(&image.raw_config)
        && manifest.layers.len() == image.known.len();
    let kind = manifest.media_type.clone().unwrap_or_else(|| {
        match manifest.config.media_type.as_str() {
            media_type::DOCKER_CONFIG => media_type::DOCKER_MANIFEST,
            _ => media_type::OCI_MANIFEST,
        }
        .to_owned()
    });
    let whole = RawManifest {
        raw: raw.to_vec(),
        media_type: kind.clone(),
        digest,
    };
    (fits && whole.document().is_ok()).then_some((manifest, kind))
}

fn same_blobs(one: &[Descriptor], other: &[Descriptor]) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|(one, other)| one.digest == other.digest)
}

/// Whether a layer need not be sent.
enum Place {
    There(Descriptor),
    Nowhere(Option<Upload>),
}

/// The blobs that may stand for a layer, best first: what came with the image's manifest (with all of these, it can be
/// sent as it is), what is compressed as is wanted, what the repository itself had.
fn candidates<'a>(
    own: &str,
    first: Option<&Descriptor>,
    known: &'a [KnownBlob],
    style: &PushStyle,
) -> Vec<&'a KnownBlob> {
    let mut candidates: Vec<_> = known
        .iter()
        .filter(|blob| style.takes(&blob.descriptor))
        .collect();
    candidates.sort_by_key(|blob| {
        (
            first.is_none_or(|first| first.digest != blob.descriptor.digest),
            !style.makes(&blob.descriptor),
            blob.repository != own,
        )
    });
    candidates
}

async fn find(
    repository: &Repository,
    diff_id: &DiffId,
    first: Option<&Descriptor>,
    known: &[KnownBlob],
    style: &PushStyle,
    tell: &(impl Fn(PushEvent) + Sync),
) -> Result<Place> {
    let own = format!("{}/{}", repository.domain(), repository.name());
    let mut begun = None;
    let tries = candidates(&own, first, known, style).into_iter().enumerate();
    // What the repository itself had is there, in all likelihood: it is not given up for what others have.
    for (_, blob) in tries.filter(|(at, blob)| *at < MAX_TRIES || blob.repository == own) {
        let digest = &blob.descriptor.digest;
        let there = || {
            Ok(Place::There(
                first
                    .filter(|first| first.digest == *digest)
                    .unwrap_or(&blob.descriptor)
                    .clone(),
            ))
        };
        let elsewhere = blob
            .repository
            .strip_prefix(repository.domain())
            .and_then(|rest| rest.strip_prefix('/'))
            .filter(|name| *name != repository.name());
        if repository.blob_size(digest, Access::Push).await?.is_some() {
            tell(PushEvent::Exists(diff_id.clone()));
            return there();
        }
        if let Some(name) = elsewhere {
            match repository.mount(digest, name).await? {
                Mount::Mounted => {
                    tell(PushEvent::Mounted(diff_id.clone(), name.to_owned()));
                    return there();
                }
                Mount::Upload(upload) => begun = Some(upload),
            }
        }
    }
    Ok(Place::Nowhere(begun))
}

/// A new manifest: Docker's, as every registry takes it, or OCI's when that is asked for or something is of a kind that
/// only it has.
fn manifest(
    raw_config: &[u8],
    config: Digest,
    blobs: &[Descriptor],
    style: &PushStyle,
) -> Result<(Vec<u8>, String)> {
    let needs_oci =
        !style.annotations.is_empty() || blobs.iter().any(|blob| blob.media_type.contains("zstd"));
    if style.oci == Some(false) && needs_oci {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "Docker's media types know neither zstd layers nor annotations: leave out oci-mediatypes=false",
        ));
    }
    let docker = !needs_oci && style.oci != Some(true);
    let layer_type = |kind: &str| {
        let (from, to) = match docker {
            true => (media_type::OCI_LAYER_GZIP, media_type::DOCKER_LAYER_GZIP),
            false => (media_type::DOCKER_LAYER_GZIP, media_type::OCI_LAYER_GZIP),
        };
        let (plain_from, plain_to) = match docker {
            true => (media_type::OCI_LAYER, media_type::DOCKER_LAYER),
            false => (media_type::DOCKER_LAYER, media_type::OCI_LAYER),
        };
        match kind {
            kind if kind == from => to.to_owned(),
            kind if kind == plain_from => plain_to.to_owned(),
            other => other.to_owned(),
        }
    };
    let (kind, config_type) = match docker {
        true => (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG),
        false => (media_type::OCI_MANIFEST, media_type::OCI_CONFIG),
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(kind.to_owned()),
        config: Descriptor::new(config_type, config, raw_config.len() as u64),
        layers: blobs
            .iter()
            .map(|blob| Descriptor {
                urls: blob.urls.clone(),
                ..Descriptor::new(layer_type(&blob.media_type), blob.digest.clone(), blob.size)
            })
            .collect(),
        artifact_type: None,
        subject: None,
        annotations: (!style.annotations.is_empty()).then(|| style.annotations.clone()),
    };
    let raw =
        serde_json::to_vec_pretty(&manifest).map_err(|e| Error::json("cannot encode the manifest", e))?;
    Ok((raw, kind.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_of_the_wanted_compression_comes_before_another() {
        let blob = |repository: &str, kind: &str| KnownBlob {
            repository: repository.to_owned(),
            descriptor: Descriptor::new(kind, Digest::sha256(kind.as_bytes()), 1),
        };
        let known = [
            blob("r/own", media_type::OCI_LAYER_ZSTD),
            blob("r/other", media_type::OCI_LAYER_GZIP),
            blob("r/own", media_type::OCI_LAYER_GZIP),
        ];
        let order = |style: &PushStyle, first: Option<&Descriptor>| -> Vec<usize> {
            candidates("r/own", first, &known, style)
                .into_iter()
                .filter_map(|found| known.iter().position(|blob| std::ptr::eq(blob, found)))
                .collect()
        };
        let plain = PushStyle::default();
        assert_eq!(order(&plain, None), [2, 1, 0]);
        assert_eq!(order(&plain, Some(&known[0].descriptor)), [0, 2, 1]);
        let zstd = PushStyle {
            compression: Some(Compression::Zstd),
            ..PushStyle::default()
        };
        assert_eq!(order(&zstd, None), [0, 2, 1]);
        let forced = PushStyle { force: true, ..zstd };
        assert_eq!(order(&forced, None), [0]);
    }
}
