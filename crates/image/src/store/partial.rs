//! What has arrived of downloads that are not complete.
//!
//! ```text
//! ROOT/partial/ALGORITHM-HEX   the first bytes of a blob
//! ROOT/partial/layer-HEX       empty: this layer is complete, the image it is for is not
//! ```
//!
//! Nothing here is trusted: a resumed download is verified from its first byte. It is bounded in size, age and number,
//! and all of it may be removed at any time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use super::{Store, read_dir};
use crate::digest::{ChainId, Digest};
use crate::error::Result;

/// A download nobody goes on with is forgotten after this.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Bytes of all unfinished downloads together that outlive a pull; the oldest go first.
const MAX_BYTES: u64 = 4 << 30;
const LAYER: &str = "layer-";

/// The first bytes of a blob, and room for more.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Partial {
    /// Bytes that were there when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// Reads those, front to back.
    pub(crate) fn replay(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.file.read(out)
    }

    /// Adds what comes after them. All of the earlier bytes must have been read.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// It is not needed any more.
    pub(crate) fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a partial download stays until it is swept");
        }
    }
}

impl Store {
    fn partial_path(&self) -> PathBuf {
        self.inner.root.join("partial")
    }

    /// Opens what is there of a blob of `size` bytes, or begins anew. `None` when it cannot be had: a download does
    /// without.
    pub(crate) fn partial(&self, digest: &Digest, size: u64, resume: bool) -> Option<Partial> {
        let directory = self.partial_path();
        let path = directory.join(format!("{}-{}", digest.algorithm().name(), digest.hex()));
        let open = || -> io::Result<Partial> {
            fs::create_dir_all(&directory)?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut file = options.open(&path)?;
            // Another pull, for another store position of the same blob, may be writing to it: nothing is changed before
            // it is known to be ours.
            rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
            let found = file.metadata()?;
            if fs::metadata(&path).map(|now| (now.dev(), now.ino()))? != (found.dev(), found.ino()) {
                return Err(io::Error::other("it was replaced meanwhile"));
            }
            let mut length = found.len();
            if length > size || !resume {
                file.set_len(0)?;
                length = 0;
            }
            file.seek(SeekFrom::Start(0))?;
            Ok(Partial {
                path: path.clone(),
                file,
                length,
            })
        };
        open()
            .inspect_err(|error| tracing::debug!(path = %path.display(), "no partial download: {error}"))
            .ok()
    }

    /// Nobody will go on with these downloads.
    pub(crate) fn forget_partial<'a>(&self, blobs: impl Iterator<Item = &'a Digest>) {
        for digest in blobs {
            let name = format!("{}-{}", digest.algorithm().name(), digest.hex());
            // Most have no such file.
            let _ = fs::remove_file(self.partial_path().join(name));
        }
    }

    /// Keeps a layer whose image is not complete: it is not collected for a while.
    pub(crate) fn keep_unfinished(&self, chain: &ChainId) {
        let path = self.partial_path().join(format!("{LAYER}{}", chain.hex()));
        let made = fs::create_dir_all(self.partial_path()).and_then(|()| File::create(path));
        if let Err(error) = made {
            tracing::debug!("a pull that is killed now begins anew: {error}");
        }
    }

    /// The image of these layers is recorded: they need no other protection.
    pub fn finished(&self, chain: &[ChainId]) {
        for layer in chain {
            // Most were never unfinished.
            let _ = fs::remove_file(self.partial_path().join(format!("{LAYER}{}", layer.hex())));
        }
    }

    /// Layers of images that were not pulled to their end a short while ago. They are live for [`Store::collect`].
    pub fn unfinished_layers(&self) -> Vec<ChainId> {
        let entries = read_dir(&self.partial_path()).unwrap_or_default();
        let names = entries
            .iter()
            .filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter_map(|name| Digest::from_sha256_hex(name.strip_prefix(LAYER)?).ok())
            .map(ChainId)
            .collect()
    }

    /// Removes unfinished downloads that are old, or too many; or all. Gives their bytes.
    pub fn sweep_partial(&self, all: bool) -> Result<u64> {
        let directory = self.partial_path();
        if !directory.exists() {
            return Ok(0);
        }
        let mut files: Vec<(PathBuf, u64, Duration)> = read_dir(&directory)?
            .iter()
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                let age = metadata.modified().ok()?.elapsed().unwrap_or_default();
                Some((entry.path(), metadata.len(), age))
            })
            .collect();
        files.sort_by_key(|(_, _, age)| *age);
        let (mut kept, mut freed) = (0u64, 0u64);
        for (path, size, age) in files {
            kept = kept.saturating_add(size);
            if !all && age < MAX_AGE && kept <= MAX_BYTES {
                continue;
            }
            // One that is being written to is somebody's.
            let in_use = File::open(&path).is_ok_and(|file| {
                rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
            });
            if !in_use && fs::remove_file(&path).is_ok() {
                freed += size;
                kept -= size;
            }
        }
        Ok(freed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_pull_writes_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let digest = Digest::sha256(b"layer");
        let mut first = store.partial(&digest, 100, true).unwrap();
        first.append(b"beginning").unwrap();
        for resume in [false, true] {
            assert!(store.partial(&digest, 100, resume).is_none(), "it is in use");
        }
        let path = first.path.clone();
        assert_eq!(fs::read(&path).unwrap(), b"beginning");
        drop(first);
        assert_eq!(store.partial(&digest, 100, true).unwrap().len(), 9);
        assert_eq!(store.partial(&digest, 100, false).unwrap().len(), 0);
        assert!(fs::read(&path).unwrap().is_empty());
    }
}
