//! `load`: an archive becomes images in the store.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use super::contents::{Contents, Slot};
use super::{docker, oci};
use crate::digest::{ChainId, DiffId, Digest};
use crate::error::{Error, ErrorKind, Result, show};
use crate::fs::Limits;
use crate::manifest::Platform;
use crate::reference::Reference;
use crate::store::{LayerInfo, Lease, mismatch};
use crate::{Store, store::PendingLayer};

/// How [`load`] behaves.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The only platform to load images for. None: the host's out of an index, and whatever else is there.
    pub platform: Option<Platform>,
    /// Bounds for each layer.
    pub limits: Limits,
    /// Layers that are unpacked at the same time.
    pub parallel: usize,
    /// Flush the layers to the disk before the images are returned. It takes much longer than the load;
    /// otherwise call [`Store::sync`] in the background afterwards.
    pub sync: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        let parallel = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8));
        Self {
            platform: None,
            limits: Limits::default(),
            parallel,
            sync: false,
        }
    }
}

/// News from a running load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes of layers were read.
    Read {
        /// Since the beginning.
        bytes: u64,
    },
    /// A layer is in the store.
    Layer(LayerInfo),
}

/// An image that is in the store; its content is kept until the lease is dropped.
#[derive(Debug)]
pub struct LoadedImage {
    /// The image ID: the digest of the configuration.
    pub id: Digest,
    /// The configuration's bytes, for [`ImageConfig::parse`](crate::ImageConfig::parse).
    pub raw_config: Arc<[u8]>,
    /// The names it came with.
    pub references: Vec<Reference>,
    /// The layers, bottom first.
    pub layers: Vec<LayerInfo>,
    /// Keeps all of it.
    pub lease: Lease,
}

impl LoadedImage {
    /// Bytes of file data in all layers.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// An image described by an archive.
pub(super) struct Found {
    pub(super) id: Digest,
    pub(super) raw: Arc<[u8]>,
    pub(super) diff_ids: Vec<DiffId>,
    pub(super) references: Vec<Reference>,
    pub(super) layers: Vec<FoundLayer>,
}

/// Where a layer is in the archive, and what its bytes there must hash to.
pub(super) struct FoundLayer {
    pub(super) path: Vec<u8>,
    pub(super) digest: Option<Digest>,
}

/// Loads every image of an archive: `docker save`'s format or an OCI layout, compressed or not.
///
/// The archive is read once, front to back. All is verified before the first image is stored: an archive that is
/// refused leaves nothing behind. When the store itself fails later, what it has of the archive is left to the next
/// [`Store::collect`]. Of an OCI layout the manifests are not kept: an image is its configuration and its layers.
pub fn load(
    store: &Store,
    input: impl Read + Send,
    options: &LoadOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<LoadedImage>> {
    let mut contents = Contents::read(store, input, options, progress)?;
    let (manifest, index) = (
        contents.document(b"manifest.json"),
        contents.document(b"index.json"),
    );
    let found = if let Some(index) = index.filter(|_| manifest.is_none() || options.platform.is_some()) {
        // With both, manifest.json has the images for one platform.
        oci::images(&contents, index, options.platform.as_ref())?
    } else if let Some(manifest) = manifest {
        docker::images(&contents, manifest, options.platform.as_ref())?
    } else if contents.looks_like_root() {
        return Err(Error::invalid(
            "the archive holds a root file system, not images: it has neither manifest.json nor index.json; use `import` for it",
        ));
    } else {
        return Err(Error::invalid(
            "the archive holds no images: it has neither manifest.json nor index.json",
        ));
    };
    let found = merge(found);
    if found.is_empty() {
        return Err(Error::invalid("the archive lists no images"));
    }
    let mut lease = store.lease();
    let mut plan = Plan {
        pending: HashMap::new(),
        placed: HashMap::new(),
    };
    for image in &found {
        plan.verify(&mut contents, image, &mut lease)
            .map_err(|e| e.context(format!("image {}", name(image))))?;
    }
    drop(contents);
    let images = found
        .into_iter()
        .map(|image| plan.store(store, image, options, progress))
        .collect::<Result<Vec<_>>>()?;
    if options.sync {
        store.sync()?;
    }
    Ok(images)
}

/// The error for an archive that has images for other platforms only.
pub(super) fn not_for(platform: &Platform, offered: Vec<Platform>) -> Error {
    let mut offered: Vec<String> = offered.iter().map(Platform::to_string).collect();
    offered.sort();
    offered.dedup();
    Error::new(
        ErrorKind::NotFound,
        format!(
            "the archive has no image for {platform}, only for {}; choose one with --platform",
            offered.join(", ")
        ),
    )
}

/// Images that occur more than once have all their names together.
fn merge(found: Vec<Found>) -> Vec<Found> {
    let mut out: Vec<Found> = Vec::new();
    let mut known: HashMap<Digest, usize> = HashMap::new();
    for image in found {
        match known.get(&image.id).and_then(|&at| out.get_mut(at)) {
            None => {
                known.insert(image.id.clone(), out.len());
                out.push(image);
            }
            Some(other) => {
                for reference in image.references {
                    if !other.references.contains(&reference) {
                        other.references.push(reference);
                    }
                }
            }
        }
    }
    out
}

fn name(image: &Found) -> String {
    image
        .references
        .first()
        .map_or_else(|| image.id.short().to_owned(), Reference::familiar)
}

/// Verified layers that wait for their place, and where layers of a diff ID went.
struct Plan {
    pending: HashMap<DiffId, PendingLayer>,
    placed: HashMap<DiffId, ChainId>,
}

impl Plan {
    fn verify(&mut self, contents: &mut Contents, image: &Found, lease: &mut Lease) -> Result<()> {
        let chain = ChainId::chain(&image.diff_ids);
        for ((layer, diff_id), chain) in image.layers.iter().zip(&image.diff_ids).zip(&chain) {
            let present = lease.pin_layer(chain);
            let Some((_, slot)) = contents.layer(&layer.path) else {
                if present {
                    continue;
                }
                let name = show(&layer.path);
                return Err(if contents.has(&layer.path) {
                    Error::invalid(format!("the layer {name} is not a tar archive, or it is damaged"))
                } else {
                    Error::new(ErrorKind::NotFound, format!("the archive lacks the layer {name}"))
                });
            };
            let pending = match std::mem::replace(slot, Slot::Taken) {
                Slot::Ready(pending) => pending,
                Slot::Failed(e) => return Err(e.context(format!("layer {}", show(&layer.path)))),
                // Several images, or one several times, use it; it was verified before.
                Slot::Running(_) | Slot::Taken => {
                    if present || self.pending.contains_key(diff_id) {
                        continue;
                    }
                    return Err(mismatch(diff_id, None));
                }
            };
            if let Some(digest) = &layer.digest
                && pending.digest() != Some(digest)
            {
                return Err(Error::new(
                    ErrorKind::Digest,
                    format!("the archive's layer {digest} has another digest"),
                ));
            }
            if pending.diff_id() != Some(diff_id) {
                return Err(mismatch(diff_id, pending.diff_id()));
            }
            self.pending.insert(diff_id.clone(), pending);
        }
        Ok(())
    }

    fn store(
        &mut self,
        store: &Store,
        image: Found,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<LoadedImage> {
        let mut lease = store.lease();
        let mut layers: Vec<LayerInfo> = Vec::new();
        for (diff_id, chain) in image.diff_ids.iter().zip(ChainId::chain(&image.diff_ids)) {
            let parent = layers.last().map(|layer| layer.chain_id.clone());
            let layer = if lease.pin_layer(&chain) {
                store.layer(&chain)?
            } else if let Some(pending) = self.pending.remove(diff_id) {
                store.commit(pending, parent.as_ref(), &mut lease)?
            } else {
                // The same layer on top of another one: it is unpacked again from where it is.
                let placed = self.placed.get(diff_id).ok_or_else(|| mismatch(diff_id, None))?;
                let archive = store.layer_archive(placed)?;
                store.put_layer(archive, parent.as_ref(), diff_id, &options.limits, &mut lease)?
            };
            self.placed.insert(diff_id.clone(), chain);
            progress(Progress::Layer(layer.clone()));
            layers.push(layer);
        }
        store.put_blob(&image.raw, &mut lease)?;
        Ok(LoadedImage {
            id: image.id,
            raw_config: image.raw,
            references: image.references,
            layers,
            lease,
        })
    }
}
