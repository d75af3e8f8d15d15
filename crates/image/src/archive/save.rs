//! `save`: images become an archive that Docker, Podman, containerd and skopeo read.
//!
//! Like Docker since version 25, the Docker format is an OCI layout with a `manifest.json` for older readers;
//! layers are stored once, uncompressed, named by their diff ID, with exactly the bytes they came with. The
//! archive depends on the images and their names only, not on when it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use super::contents::blob_path;
use super::docker::Item;
use crate::Store;
use crate::config::ImageConfig;
use crate::digest::{ChainId, Digest};
use crate::error::{Error, Result};
use crate::manifest::{
    ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, Descriptor, Index, Manifest, Platform, media_type,
};
use crate::reference::Reference;
use crate::store::Lease;
use crate::tar::{Kind, TarWriter, plain};

/// The kind of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `manifest.json` on top of an OCI layout.
    Docker,
    /// An OCI layout only.
    Oci,
}

/// An image to save and the names to save with it.
#[derive(Debug, Clone)]
pub struct SaveImage {
    /// The image ID.
    pub id: Digest,
    /// Names; those without a tag are left out.
    pub references: Vec<Reference>,
}

/// Writes an archive of images.
pub fn save(store: &Store, images: &[SaveImage], format: Format, output: impl Write) -> Result<()> {
    let mut lease = store.lease();
    let mut plan = Plan::default();
    for image in images {
        plan.add(store, image, &mut lease)?;
    }
    plan.write(store, format, output)
}

/// Writes an OCI layout of one image for several platforms: its names lead to an index of theirs.
pub fn save_platforms(
    store: &Store,
    images: &[Digest],
    references: &[Reference],
    output: impl Write,
) -> Result<()> {
    let mut lease = store.lease();
    let mut plan = Plan::default();
    for id in images {
        let image = SaveImage {
            id: id.clone(),
            references: Vec::new(),
        };
        plan.add(store, &image, &mut lease)?;
    }
    plan.nest(references)?;
    plan.write(store, Format::Oci, output)
}

enum Content {
    Document(Vec<u8>),
    Layer(ChainId, u64),
}

#[derive(Default)]
struct Plan {
    blobs: BTreeMap<String, Content>,
    index: Vec<Descriptor>,
    items: Vec<Item>,
    repositories: BTreeMap<String, BTreeMap<String, String>>,
}

impl Plan {
    fn add(&mut self, store: &Store, image: &SaveImage, lease: &mut Lease) -> Result<()> {
        lease.pin_blob(&image.id);
        let raw = store.blob(&image.id)?;
        let config = ImageConfig::parse(&raw)?;
        let (mut layers, mut paths) = (Vec::new(), Vec::new());
        for chain in config.chain() {
            lease.pin_layer(&chain);
            let layer = store.layer(&chain)?;
            let path = blob_path(&layer.diff_id.0);
            layers.push(descriptor(
                media_type::OCI_LAYER,
                layer.diff_id.0,
                layer.archive_size,
            ));
            self.blobs
                .entry(path.clone())
                .or_insert(Content::Layer(chain, layer.archive_size));
            paths.push(path);
        }
        let top = layers.last().map_or_else(
            || image.id.hex().to_owned(),
            |layer| layer.digest.hex().to_owned(),
        );
        let manifest = Manifest {
            artifact_type: None,
            subject: None,
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            config: descriptor(media_type::OCI_CONFIG, image.id.clone(), raw.len() as u64),
            layers,
            annotations: None,
        };
        let manifest = encode(&manifest)?;
        let digest = Digest::sha256(&manifest);
        let mut entry = descriptor(media_type::OCI_MANIFEST, digest.clone(), manifest.len() as u64);
        entry.platform = Some(Platform::of(&config))
            .filter(|platform| !platform.os.is_empty() && !platform.architecture.is_empty());
        let config_path = blob_path(&image.id);
        self.blobs.insert(config_path.clone(), Content::Document(raw));
        self.blobs.insert(blob_path(&digest), Content::Document(manifest));

        let mut tags = BTreeSet::new();
        for reference in &image.references {
            let Some(tag) = reference.tag() else { continue };
            tags.insert(format!("{}:{tag}", reference.familiar_name()));
            let named = named(&entry, reference, tag);
            if !self.index.contains(&named) {
                self.index.push(named);
            }
            self.repositories
                .entry(reference.familiar_name())
                .or_default()
                .insert(tag.to_owned(), top.clone());
        }
        if tags.is_empty() && !self.index.contains(&entry) {
            self.index.push(entry);
        }
        match self.items.iter_mut().find(|item| item.config == config_path) {
            Some(item) => {
                tags.extend(item.repo_tags.take().unwrap_or_default());
                item.repo_tags = Some(tags.into_iter().collect());
            }
            None => {
                let repo_tags = (!tags.is_empty()).then(|| tags.into_iter().collect());
                self.items.push(Item {
                    config: config_path,
                    repo_tags,
                    layers: Some(paths),
                });
            }
        }
        Ok(())
    }

    /// Puts what the layout's index has into one of its own.
    fn nest(&mut self, references: &[Reference]) -> Result<()> {
        let raw = encode(&index(std::mem::take(&mut self.index)))?;
        let digest = Digest::sha256(&raw);
        let entry = descriptor(media_type::OCI_INDEX, digest.clone(), raw.len() as u64);
        self.blobs.insert(blob_path(&digest), Content::Document(raw));
        for reference in references {
            self.index
                .extend(reference.tag().map(|tag| named(&entry, reference, tag)));
        }
        if self.index.is_empty() {
            self.index.push(entry);
        }
        Ok(())
    }

    fn write(self, store: &Store, format: Format, output: impl Write) -> Result<()> {
        let fail = |e| Error::input("cannot write the archive", e);
        let mut tar = TarWriter::new(io::BufWriter::with_capacity(256 << 10, output));
        for directory in ["blobs/", "blobs/sha256/"] {
            tar.header(&plain(directory, Kind::Directory, 0)).map_err(fail)?;
        }
        for (path, content) in &self.blobs {
            match content {
                Content::Document(raw) => tar.file(path, raw).map_err(fail)?,
                Content::Layer(chain, size) => {
                    tar.header(&plain(path, Kind::File, *size)).map_err(fail)?;
                    copy(&mut store.layer_archive(chain)?, tar.payload(), *size)?;
                }
            }
        }
        tar.file("index.json", &encode(&index(self.index))?)
            .map_err(fail)?;
        if format == Format::Docker {
            tar.file("manifest.json", &encode(&self.items)?).map_err(fail)?;
        }
        tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
            .map_err(fail)?;
        if format == Format::Docker && !self.repositories.is_empty() {
            tar.file("repositories", &encode(&self.repositories)?)
                .map_err(fail)?;
        }
        tar.finish().map_err(fail)?;
        Ok(())
    }
}

/// Copies a layer, whose size was announced; the reader verifies the digest at its end.
fn copy(input: &mut impl Read, output: &mut impl Write, size: u64) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0u64;
    loop {
        let n = input
            .read(&mut buffer)
            .map_err(|e| Error::input("cannot read a layer", e))?;
        if n == 0 {
            break;
        }
        total += n as u64;
        if total > size {
            break;
        }
        output
            .write_all(&buffer[..n])
            .map_err(|e| Error::input("cannot write the archive", e))?;
    }
    if total != size {
        return Err(Error::invalid(
            "a layer's archive has another size than was recorded; load its images again",
        ));
    }
    Ok(())
}

/// An entry with the name it is found by.
fn named(entry: &Descriptor, reference: &Reference, tag: &str) -> Descriptor {
    let mut named = entry.clone();
    named.annotations = Some(BTreeMap::from([
        (
            ANNOTATION_IMAGE_NAME.to_owned(),
            format!("{}:{tag}", reference.repository()),
        ),
        (ANNOTATION_REF_NAME.to_owned(), tag.to_owned()),
    ]));
    named
}

fn index(manifests: Vec<Descriptor>) -> Index {
    Index {
        artifact_type: None,
        subject: None,
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.into()),
        manifests,
        annotations: None,
    }
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor::new(media_type, digest, size)
}

fn encode(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::json("cannot encode a document of the archive", e))
}
