//! Removing what nothing uses.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use super::Store;
use super::layer::LayerInfo;
use super::lease::Item;
use crate::config::ImageConfig;
use crate::digest::{ChainId, Digest};
use crate::error::{Error, Result};

/// Everything that is in use.
#[derive(Debug, Clone, Default)]
pub struct LiveSet {
    /// Layers; those below them are live as well.
    pub layers: HashSet<ChainId>,
    /// Blobs.
    pub blobs: HashSet<Digest>,
}

impl LiveSet {
    /// Adds an image: its configuration and its layers.
    pub fn add_image(&mut self, id: &Digest, config: &ImageConfig) {
        self.blobs.insert(id.clone());
        self.layers.extend(config.chain());
    }
}

impl LiveSet {
    /// What is below a layer that is live is live as well.
    fn add_parents(&mut self, layers: &[LayerInfo]) {
        let parents: std::collections::HashMap<_, _> = layers
            .iter()
            .map(|layer| (&layer.chain_id, layer.parent.as_ref()))
            .collect();
        for start in self.layers.clone() {
            let mut next = parents.get(&start).copied().flatten();
            while let Some(parent) = next.filter(|parent| !self.layers.contains(*parent)) {
                self.layers.insert(parent.clone());
                next = parents.get(parent).copied().flatten();
            }
        }
    }
}

/// What a collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers.
    pub layers: Vec<ChainId>,
    /// Blobs.
    pub blobs: Vec<Digest>,
    /// Bytes of file data in them.
    pub freed: u64,
}

impl Store {
    /// Removes every layer and blob that is neither live nor leased.
    ///
    /// `live` is asked after the collection has begun: from then on, what a lease releases stays, so an image
    /// that is recorded and released while `live` reads the records is not lost. It must see every image
    /// recorded before it was called, and every layer that a container uses.
    pub fn collect(&self, live: impl FnOnce() -> LiveSet) -> Result<Collected> {
        let _one = self
            .inner
            .collecting
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        self.pins().begin_collection();
        let result = self.collect_unused(live);
        self.pins().end_collection();
        result
    }

    /// What a collection would remove at this moment.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn unused(&self, mut live: LiveSet) -> Result<Collected> {
        let (layers, blobs) = (self.layers()?, self.blobs()?);
        live.add_parents(&layers);
        let pins = self.pins();
        let mut unused = Collected::default();
        for layer in layers {
            let item = Item::Layer(layer.chain_id.clone());
            if !live.layers.contains(&layer.chain_id) && !pins.contains(&item) {
                unused.freed += layer.size;
                unused.layers.push(layer.chain_id);
            }
        }
        for blob in blobs {
            if !live.blobs.contains(&blob.digest) && !pins.contains(&Item::Blob(blob.digest.clone())) {
                unused.freed += blob.size;
                unused.blobs.push(blob.digest);
            }
        }
        Ok(unused)
    }

    fn collect_unused(&self, live: impl FnOnce() -> LiveSet) -> Result<Collected> {
        let mut live = live();
        let (layers, blobs) = (self.layers()?, self.blobs()?);
        live.add_parents(&layers);
        let mut collected = Collected::default();
        let mut doomed: Vec<PathBuf> = Vec::new();
        for layer in &layers {
            let pins = self.pins();
            if live.layers.contains(&layer.chain_id) || pins.contains(&Item::Layer(layer.chain_id.clone())) {
                continue;
            }
            // Gone at once for everybody; the long removal comes without the lock.
            let aside = self.layers_path().join(self.temporary_name());
            fs::rename(self.layer_directory(&layer.chain_id), &aside)
                .map_err(|e| Error::io(format!("cannot remove layer {}", layer.chain_id), e))?;
            drop(pins);
            collected.freed += layer.size;
            collected.layers.push(layer.chain_id.clone());
            doomed.push(aside);
        }
        for blob in blobs {
            let pins = self.pins();
            if live.blobs.contains(&blob.digest) || pins.contains(&Item::Blob(blob.digest.clone())) {
                continue;
            }
            fs::remove_file(self.blob_path(&blob.digest))
                .map_err(|e| Error::io(format!("cannot remove blob {}", blob.digest), e))?;
            drop(pins);
            collected.freed += blob.size;
            collected.blobs.push(blob.digest);
        }
        for path in doomed {
            fs::remove_dir_all(&path)
                .map_err(|e| Error::io(format!("cannot remove {}", path.display()), e))?;
        }
        Ok(collected)
    }
}
