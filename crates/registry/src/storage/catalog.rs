//! Which repositories there are.

use std::fs;
use std::path::PathBuf;

use vessel_image::Digest;

use super::{Storage, list};
use crate::error::{Error, Result};
use crate::name::Repository;

impl Storage {
    /// All repositories, sorted by name.
    pub fn repositories(&self) -> Result<Vec<Repository>> {
        let mut names: Vec<Repository> = list(&self.0.root.join("repositories"))?
            .iter()
            .filter_map(|name| Repository::from_file_name(name))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Calls for each content.
    pub(super) fn each_content(&self, mut visit: impl FnMut(Digest, &fs::Metadata)) -> Result<()> {
        self.each_content_path(|digest, path| {
            // What has just been removed is not there any more.
            if let Ok(metadata) = fs::metadata(&path) {
                visit(digest, &metadata);
            }
        })
    }

    pub(super) fn each_content_path(&self, mut visit: impl FnMut(Digest, PathBuf)) -> Result<()> {
        for algorithm in ["sha256", "sha512"] {
            let root = self.0.root.join("blobs").join(algorithm);
            for shard in list(&root)? {
                let directory = root.join(shard);
                let entries = fs::read_dir(&directory)
                    .map_err(|e| Error::io(format!("cannot list {}", directory.display()), e))?;
                for entry in entries {
                    let entry =
                        entry.map_err(|e| Error::io(format!("cannot list {}", directory.display()), e))?;
                    if let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                        visit(digest, entry.path());
                    }
                }
            }
        }
        Ok(())
    }
}
