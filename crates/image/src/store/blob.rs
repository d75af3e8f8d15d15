//! Small documents by digest.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use super::lease::Item;
use super::{Lease, Store, TEMPORARY, read_dir};
use crate::config::MAX_DOCUMENT;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// A blob and its size on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

impl Store {
    /// Stores a document, durably, and keeps it by the lease.
    pub fn put_blob(&self, bytes: &[u8], lease: &mut Lease) -> Result<Digest> {
        let digest = Digest::sha256(bytes);
        if lease.pin_blob(&digest) && self.blob(&digest).is_ok() {
            return Ok(digest);
        }
        let path = self.blob_path(&digest);
        let fail = |e| Error::io(format!("cannot write {}", path.display()), e);
        let directory = self.inner.root.join("blobs/sha256");
        let temporary = directory.join(self.temporary_name());
        let written = File::create_new(&temporary).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        let renamed = written.and_then(|()| {
            let mut pins = self.pins();
            fs::rename(&temporary, &path)?;
            lease.insert(&mut pins, Item::Blob(digest.clone()));
            Ok(())
        });
        if let Err(e) = renamed {
            let _ = fs::remove_file(&temporary);
            return Err(fail(e));
        }
        File::open(&directory)
            .and_then(|directory| directory.sync_all())
            .map_err(fail)?;
        Ok(digest)
    }

    /// Reads a document and verifies it.
    pub fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let fail = |e| Error::io(format!("cannot read blob {digest}"), e);
        let size = fs::metadata(&path).map_err(fail)?.len();
        if size > MAX_DOCUMENT as u64 {
            return Err(Error::limit(format!(
                "blob {digest} is larger than a document can be"
            )));
        }
        let bytes = fs::read(&path).map_err(fail)?;
        if !digest.verify(&bytes) {
            return Err(Error::new(
                ErrorKind::Digest,
                format!("blob {digest} is damaged on disk; load the image again"),
            ));
        }
        Ok(bytes)
    }

    /// All blobs.
    pub fn blobs(&self) -> Result<Vec<BlobInfo>> {
        let mut out = Vec::new();
        for entry in read_dir(&self.inner.root.join("blobs/sha256"))? {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with(TEMPORARY)) else {
                continue;
            };
            let Ok(digest) = Digest::from_sha256_hex(name) else {
                continue;
            };
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io(format!("cannot look at blob {digest}"), e)),
            };
            out.push(BlobInfo {
                digest,
                size: metadata.len(),
            });
        }
        out.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(out)
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner
            .root
            .join("blobs")
            .join(digest.algorithm().name())
            .join(digest.hex())
    }
}
