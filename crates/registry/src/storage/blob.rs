//! Content, and the repositories that have it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use vessel_image::Digest;

use super::{Lease, Storage, flush, in_directory, make_durable, remove};
use crate::error::{Code, Error, Result};
use crate::name::Repository;

/// How old the sign of life of content becomes before it is renewed: times on disk are compared by the second.
const RENEW: Duration = Duration::from_secs(1);

/// An open blob.
#[derive(Debug)]
pub struct Content {
    /// Its file, never changed.
    pub file: File,
    /// Its size.
    pub size: u64,
}

/// No such blob.
pub fn unknown(name: &Repository, digest: &Digest) -> Error {
    Error::new(Code::BlobUnknown, format!("{name} has no blob {digest}"))
}

impl Storage {
    /// Opens a blob that a repository has.
    pub fn blob(&self, name: &Repository, digest: &Digest) -> Result<Content> {
        let path = self.blob_link(name, digest);
        match open(&path) {
            Ok(content) => Ok(content),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // A manifest may be asked for as a blob: it is one.
                match open(&self.manifest_link(name, digest)) {
                    Ok(content) => Ok(content),
                    Err(_) => Err(unknown(name, digest)),
                }
            }
            Err(e) => Err(Error::io(format!("cannot open {}", path.display()), e)),
        }
    }

    /// The size of a blob that a repository has. Who asks may be about to refer to it without sending it, so the
    /// question gives it a new sign of life, which the collector respects.
    pub fn stat_blob(&self, name: &Repository, digest: &Digest) -> Result<u64> {
        // A collection that has looked at its age already spares it, or has removed it before it is looked at here.
        let _lease = self.lease_of(digest);
        let path = self.blob_link(name, digest);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                match fs::metadata(self.manifest_link(name, digest)) {
                    Ok(metadata) => return Ok(metadata.len()),
                    Err(_) => return Err(unknown(name, digest)),
                }
            }
            Err(e) => return Err(Error::io(format!("cannot look at {}", path.display()), e)),
        };
        renew(&path, &metadata);
        Ok(metadata.len())
    }

    /// Whether a repository has a blob.
    pub(super) fn has_blob(&self, name: &Repository, digest: &Digest) -> bool {
        self.blob_link(name, digest).exists()
    }

    /// Gives a repository a blob of another. False when the other has none.
    pub fn mount(&self, from: &Repository, digest: &Digest, to: &Repository) -> Result<bool> {
        let _lease = self.lease_of(digest);
        let source = self.blob_link(from, digest);
        let Ok(metadata) = fs::metadata(&source) else {
            return Ok(false);
        };
        self.link(&source, to, digest, metadata.len())?;
        Ok(true)
    }

    /// Gives a repository a blob that any repository has. False when none has it.
    pub fn mount_any(&self, digest: &Digest, to: &Repository) -> Result<bool> {
        let _lease = self.lease_of(digest);
        let source = self.content_path(digest);
        let Ok(metadata) = fs::metadata(&source) else {
            return Ok(false);
        };
        self.link(&source, to, digest, metadata.len())?;
        Ok(true)
    }

    fn link(&self, source: &Path, to: &Repository, digest: &Digest, size: u64) -> Result<()> {
        let target = self.blob_link(to, digest);
        if let Ok(metadata) = fs::metadata(&target) {
            renew(&target, &metadata);
            return Ok(());
        }
        self.0.usage.charge(to, size)?;
        let made = self.make_link(source, &target);
        if !matches!(made, Ok(true)) {
            self.0.usage.refund(to, size);
        }
        made.map(drop)
    }

    /// A durable hard link; false when it was there before.
    pub(super) fn make_link(&self, source: &Path, target: &Path) -> Result<bool> {
        let fail = |e: io::Error| match e.raw_os_error() {
            Some(libc::EPERM | libc::EOPNOTSUPP) => Error::new(
                Code::Unknown,
                format!(
                    "the file system of {} has no hard links, which the registry needs; use another",
                    self.0.root.display()
                ),
            ),
            _ => Error::io(format!("cannot make {}", target.display()), e),
        };
        let directory = target.parent().unwrap_or(target);
        let linked = in_directory(directory, || {
            // What is missing may also be the source: then making the directory again does not help.
            fs::metadata(source)?;
            fs::hard_link(source, target)
        });
        match linked {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(e) if e.raw_os_error() == Some(libc::EMLINK) => self.copy(source, target).map_err(fail)?,
            Err(e) => return Err(fail(e)),
        }
        flush(directory).map_err(fail)?;
        Ok(true)
    }

    /// The file system counts no more links of this content (ext4: 65,000), so it gets a second copy.
    fn copy(&self, source: &Path, target: &Path) -> io::Result<()> {
        let temporary = self.temporary_path();
        let copied = fs::copy(source, &temporary)
            .and_then(|_| File::open(&temporary)?.sync_all())
            .and_then(|()| fs::hard_link(&temporary, target));
        let _ = fs::remove_file(&temporary);
        copied
    }

    /// Puts a complete, verified and flushed file in its place among the content, unless that is there already. The
    /// file is gone afterwards. Whether the content is new.
    pub(super) fn adopt(&self, file: &Path, digest: &Digest, _lease: &Lease) -> Result<bool> {
        let path = self.content_path(digest);
        let fail = |e| Error::io(format!("cannot store {digest}"), e);
        let directory = path.parent().unwrap_or(&path);
        make_durable(directory).map_err(fail)?;
        {
            // Of two equal files only one may get the name: the other one's bytes are not on disk any more.
            let _adopting = self.0.adopting.lock().unwrap_or_else(PoisonError::into_inner);
            if path.exists() {
                fs::remove_file(file).map_err(fail)?;
                return Ok(false);
            }
            fs::rename(file, &path).map_err(fail)?;
        }
        flush(directory).map_err(fail)?;
        Ok(true)
    }

    /// Takes a blob from a repository.
    pub fn delete_blob(&self, name: &Repository, digest: &Digest) -> Result<()> {
        let path = self.blob_link(name, digest);
        let size = fs::metadata(&path).map_err(|_| unknown(name, digest))?.len();
        if !remove(&path)? {
            return Err(unknown(name, digest));
        }
        self.0.usage.refund(name, size);
        flush(path.parent().unwrap_or(&path)).map_err(|e| Error::io(format!("cannot flush {name}"), e))
    }
}

fn open(path: &Path) -> io::Result<Content> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    Ok(Content { file, size })
}

/// Somebody has just shown interest in a file: the collector lets it live for another while.
pub(super) fn renew(path: &Path, metadata: &fs::Metadata) {
    if age(metadata) > RENEW {
        // Best effort: without it, the file is as old as its newest link.
        let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    }
}

/// How long ago something was made, linked or asked for.
pub(super) fn age(metadata: &fs::Metadata) -> Duration {
    let changed = u64::try_from(metadata.mtime().max(metadata.ctime())).unwrap_or(0);
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(changed);
    SystemTime::now().duration_since(changed).unwrap_or_default()
}

/// Reads a small file whole.
pub(super) fn read_small(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if size > limit {
        return Err(io::Error::other("it is larger than it can be"));
    }
    let mut bytes = Vec::with_capacity(size);
    Read::by_ref(&mut file)
        .take(limit as u64)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
