//! OCI image layouts: `index.json` leads to manifests, perhaps through more indexes.

use std::sync::Arc;

use super::contents::{Budget, Contents, blob_path};
use super::load::{Found, FoundLayer, not_for};
use crate::config::ImageConfig;
use crate::error::{Error, Result};
use crate::manifest::{ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, Descriptor, Document, Index, Platform};
use crate::reference::Reference;

/// Indexes within indexes.
const MAX_DEPTH: usize = 4;

/// The images for a platform, or for the host, in a layout whose `index.json` this is.
pub(super) fn images(contents: &Contents, index: &[u8], platform: Option<&Platform>) -> Result<Vec<Found>> {
    let index = Index::parse(index).map_err(|e| e.context("index.json"))?;
    let platform = platform.cloned().unwrap_or_else(Platform::host);
    let mut search = Search {
        contents,
        platform: &platform,
        found: Vec::new(),
        budget: Budget::new(),
        offered: Vec::new(),
    };
    search.index(&index, &[], 0)?;
    if search.found.is_empty() && !search.offered.is_empty() {
        return Err(not_for(&platform, search.offered));
    }
    Ok(search.found)
}

struct Search<'a> {
    contents: &'a Contents,
    platform: &'a Platform,
    found: Vec<Found>,
    budget: Budget,
    offered: Vec<Platform>,
}

impl Search<'_> {
    fn index(&mut self, index: &Index, names: &[Reference], depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::limit("the indexes in the archive are nested too deeply"));
        }
        for descriptor in &index.manifests {
            self.budget.image()?;
            self.descriptor(descriptor, names, depth)?;
        }
        Ok(())
    }

    fn descriptor(&mut self, descriptor: &Descriptor, names: &[Reference], depth: usize) -> Result<()> {
        // Attestations and other artifacts travel in indexes as manifests of platform unknown/unknown.
        if descriptor.annotation("vnd.docker.reference.type").is_some() || descriptor.artifact_type.is_some()
        {
            return Ok(());
        }
        if let Some(platform) = &descriptor.platform
            && !self.platform.accepts(platform)
        {
            self.offered.push(platform.clone());
            return Ok(());
        }
        let mut names = names.to_vec();
        if let Some(name) = name(descriptor)?
            && !names.contains(&name)
        {
            names.push(name);
        }
        if self
            .contents
            .document(blob_path(&descriptor.digest).as_bytes())
            .is_none()
            && depth > 0
        {
            // An archive for one platform keeps the index of all.
            return Ok(());
        }
        let raw = self.contents.blob(&descriptor.digest)?;
        self.budget.read(raw)?;
        if raw.len() as u64 != descriptor.size {
            return Err(Error::invalid(format!(
                "{} has another size than its descriptor says",
                descriptor.digest
            )));
        }
        match Document::parse(raw)? {
            Document::Index(index) => self.index(&index, &names, depth + 1),
            Document::Manifest(manifest) => {
                let config_raw = self.contents.blob(&manifest.config.digest)?;
                self.budget.read(config_raw)?;
                let config = ImageConfig::parse(config_raw)?;
                let found = Platform::of(&config);
                if descriptor.platform.is_none()
                    && depth == 0
                    && is_known(&found)
                    && !self.platform.accepts(&found)
                {
                    self.offered.push(found);
                    return Ok(());
                }
                if manifest.layers.len() != config.rootfs.diff_ids.len() {
                    return Err(Error::invalid(format!(
                        "image {}: its manifest lists {} layers, its configuration {}",
                        manifest.config.digest.short(),
                        manifest.layers.len(),
                        config.rootfs.diff_ids.len()
                    )));
                }
                let layers = manifest
                    .layers
                    .iter()
                    .map(|layer| FoundLayer {
                        path: blob_path(&layer.digest).into_bytes(),
                        digest: Some(layer.digest.clone()),
                    })
                    .collect();
                self.found.push(Found {
                    id: crate::Digest::sha256(config_raw),
                    raw: Arc::clone(config_raw),
                    diff_ids: config.rootfs.diff_ids,
                    references: names,
                    layers,
                });
                Ok(())
            }
        }
    }
}

/// Whether a configuration names a platform at all.
fn is_known(platform: &Platform) -> bool {
    !platform.os.is_empty() && !platform.architecture.is_empty()
}

/// The image's name: the full one, or a reference name that has a repository. A bare tag names nothing.
fn name(descriptor: &Descriptor) -> Result<Option<Reference>> {
    let name = match descriptor.annotation(ANNOTATION_IMAGE_NAME) {
        Some(name) => name,
        None => match descriptor.annotation(ANNOTATION_REF_NAME) {
            Some(name) if name.contains([':', '/']) => name,
            _ => return Ok(None),
        },
    };
    Reference::parse(name).map(|name| Some(name.with_default_tag()))
}
