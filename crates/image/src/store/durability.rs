//! Which layers have reached the disk.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use super::Store;
use crate::digest::ChainId;
use crate::error::{Error, ErrorKind, Result};

/// The file that marks a durable layer. Its absence is safe: nothing has to be written in the right order.
const FLUSHED: &str = "flushed";

impl Store {
    /// Flushes every layer to the disk and marks it as durable.
    ///
    /// It writes out the whole file system and may take seconds: call it from a thread of its own after an
    /// image has been loaded and announced. Without new layers it does nothing.
    pub fn sync(&self) -> Result<()> {
        let waiting: Vec<(ChainId, u64)> = self
            .layers()?
            .into_iter()
            .map(|layer| layer.chain_id)
            .filter(|chain| !self.layer_directory(chain).join(FLUSHED).exists())
            .filter_map(|chain| self.layer_inode(&chain).map(|inode| (chain, inode)))
            .collect();
        if waiting.is_empty() {
            return Ok(());
        }
        rustix::fs::syncfs(&self.inner.layers)
            .map_err(|e| Error::io("cannot flush the layers to the disk", e))?;
        for (chain, inode) in waiting {
            let marked = {
                // Nothing is removed meanwhile; and what was removed and loaded again is another layer.
                let _pins = self.pins();
                if self.layer_inode(&chain) != Some(inode) {
                    continue;
                }
                File::create(self.layer_directory(&chain).join(FLUSHED))
            };
            marked
                .and_then(|file| file.sync_all())
                .map_err(|e| Error::io(format!("cannot mark layer {chain} as durable"), e))?;
        }
        Ok(())
    }

    fn layer_inode(&self, chain: &ChainId) -> Option<u64> {
        let metadata = fs::metadata(self.layer_directory(chain)).ok()?;
        Some(metadata.ino())
    }

    /// Removes layers that were being flushed when the machine went down, and says which. Call it once, before
    /// anything is loaded; images that had them must be loaded again.
    pub fn discard_unflushed(&self) -> Result<Vec<ChainId>> {
        let mut discarded = Vec::new();
        for chain in self.layer_ids()? {
            let directory = self.layer_directory(&chain);
            if directory.join(FLUSHED).exists() || self.made_in_this_boot(&chain)? {
                continue;
            }
            let aside = self.layers_path().join(self.temporary_name());
            fs::rename(&directory, &aside)
                .and_then(|()| fs::remove_dir_all(&aside))
                .map_err(|e| Error::io(format!("cannot remove the incomplete layer {chain}"), e))?;
            discarded.push(chain);
        }
        Ok(discarded)
    }

    fn made_in_this_boot(&self, chain: &ChainId) -> Result<bool> {
        match self.metadata(chain) {
            Ok(metadata) => Ok(metadata.boot == self.inner.boot),
            // A file that never reached the disk, or only in part.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => Ok(false),
            Err(e) => Err(e),
        }
    }
}
