//! The registry's own directory: content by digest, and repositories as directories of names for it.
//!
//! ```text
//! ROOT/blobs/sha256/ab/sha256:ab…                 content: blobs and manifests alike
//! ROOT/repositories/NAME/blobs/sha256:…           hard link: the repository has this blob
//! ROOT/repositories/NAME/manifests/sha256:…       hard link: the repository has this manifest
//! ROOT/repositories/NAME/tags/TAG                 symbolic link to ../manifests/sha256:…
//! ROOT/repositories/NAME/referrers/sha256:…/…     by subject: symbolic links to ../../manifests/sha256:…
//! ROOT/uploads/NAME/ID                            what has come of an upload
//! ROOT/tmp/                                       what is being made
//! ROOT/lock                                       held by the one process that owns the directory
//! ```
//!
//! `NAME` has `+` for `/`, so that one directory lists all repositories. Content that a repository has is a hard link
//! to it: one `open` answers whether it is there and gives it, a mount from another repository is one `link`, and
//! content whose count of links is 1 belongs to nobody.
//!
//! Everything appears by a rename or a link after its bytes have reached the disk, and the directory is flushed before
//! the client is told: what was acknowledged survives a `kill -9` and a power cut. Of an upload in progress, what was
//! acknowledged survives the end of the process; after a power cut it may be shorter, and its status says so.
//!
//! These functions block. None holds a lock while it reads or writes content.

mod blob;
mod catalog;
mod collect;
mod lease;
mod manifest;
mod upload;
mod usage;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use vessel_image::Digest;

pub use blob::{Content, unknown as unknown_blob};
pub use collect::{CollectOptions, Collected};
pub use lease::Lease;
pub use manifest::StoredManifest;
pub use upload::{Upload, Uploads};
pub use usage::{Quota, Usage};

use crate::error::{Code, Error, Result};
use crate::name::Repository;

/// Names of what is not finished, in any directory.
const TEMPORARY: &str = ".tmp-";

/// What may be changed about a storage.
#[derive(Debug, Clone)]
pub struct StorageOptions {
    /// Limits of space.
    pub quotas: Vec<Quota>,
    /// Uploads in progress at most; a quarter of them of one user, or of one address where nobody says who they are.
    pub max_uploads: usize,
    /// An upload of which nothing was heard for so long is forgotten.
    pub upload_expiry: Duration,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self {
            quotas: Vec::new(),
            max_uploads: 10_000,
            upload_expiry: Duration::from_secs(24 * 3600),
        }
    }
}

/// The storage. Clones share it.
#[derive(Debug, Clone)]
pub struct Storage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    _lock: OwnedFd,
    pins: lease::Pins,
    uploads: Uploads,
    usage: Usage,
    options: StorageOptions,
    temporary: AtomicU64,
    collecting: std::sync::Mutex<()>,
    /// Held while a name among the content is given: for two system calls.
    adopting: std::sync::Mutex<()>,
    /// Held while a tag gets another target, or loses the one it was found with: for two system calls.
    tagging: std::sync::Mutex<()>,
}

/// Why a storage cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{0} is in use by another registry or its garbage-collect; stop that one, or give another directory"
    )]
    InUse(PathBuf),
    /// Anything else.
    #[error("{0}")]
    Failed(#[from] Error),
}

impl Storage {
    /// Opens a directory, making it if it is missing, and removes what an earlier process left unfinished.
    ///
    /// # Errors
    /// Another process owns it, or the file system refuses.
    pub fn open(root: &Path, options: StorageOptions) -> Result<Self, OpenError> {
        for directory in ["blobs/sha256", "blobs/sha512", "repositories", "uploads", "tmp"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(|e| Error::io(format!("cannot make {}", path.display()), e))?;
        }
        let path = root.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io(format!("cannot open {}", path.display()), e))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::InUse(root.to_owned())),
            Err(e) => return Err(Error::io(format!("cannot lock {}", path.display()), e).into()),
        }
        let temporary = root.join("tmp");
        for entry in list(&temporary)? {
            let path = temporary.join(entry);
            fs::remove_file(&path).map_err(|e| Error::io(format!("cannot remove {}", path.display()), e))?;
        }
        let storage = Self(Arc::new(Inner {
            root: root.to_owned(),
            _lock: lock.into(),
            pins: lease::Pins::default(),
            uploads: Uploads::default(),
            usage: Usage::new(options.quotas.clone()),
            options,
            temporary: AtomicU64::new(0),
            collecting: std::sync::Mutex::new(()),
            adopting: std::sync::Mutex::new(()),
            tagging: std::sync::Mutex::new(()),
        }));
        storage.recover_uploads()?;
        storage.measure()?;
        Ok(storage)
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// How much space is used by whom.
    pub fn usage(&self) -> &Usage {
        &self.0.usage
    }

    fn content_path(&self, digest: &Digest) -> PathBuf {
        let mut path = self.0.root.join("blobs");
        path.push(digest.algorithm().name());
        path.push(&digest.hex()[..2]);
        path.push(digest.to_string());
        path
    }

    fn repository_path(&self, name: &Repository) -> PathBuf {
        self.0.root.join("repositories").join(name.to_file_name())
    }

    fn blob_link(&self, name: &Repository, digest: &Digest) -> PathBuf {
        let mut path = self.repository_path(name);
        path.push("blobs");
        path.push(digest.to_string());
        path
    }

    fn manifest_link(&self, name: &Repository, digest: &Digest) -> PathBuf {
        let mut path = self.repository_path(name);
        path.push("manifests");
        path.push(digest.to_string());
        path
    }

    /// A path for something that is not complete: unique in this process, removed by the next one.
    fn temporary_path(&self) -> PathBuf {
        let n = self.0.temporary.fetch_add(1, Ordering::Relaxed);
        self.0.root.join("tmp").join(n.to_string())
    }

    /// Whether a repository exists: something was pushed to it.
    pub fn exists(&self, name: &Repository) -> bool {
        self.repository_path(name).exists()
    }

    /// Fails when there is no such repository.
    pub fn require(&self, name: &Repository) -> Result<()> {
        if self.exists(name) {
            return Ok(());
        }
        Err(Error::new(
            Code::NameUnknown,
            format!("there is no repository {name}"),
        ))
    }
}

/// The names in a directory; none when it does not exist.
fn list(path: &Path) -> Result<Vec<String>> {
    let fail = |e| Error::io(format!("cannot list {}", path.display()), e);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(fail(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(fail)?.file_name().into_string()
            && !name.starts_with(TEMPORARY)
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// Makes the names in a directory durable.
fn flush(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Does something in a directory that may not exist yet, or that is just being removed because it was empty.
fn in_directory(directory: &Path, act: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match act() {
            Err(e) if e.kind() == io::ErrorKind::NotFound && tries < 100 => {
                tries += 1;
                match make_durable(directory) {
                    // A parent, too, may be removed in the same moment.
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            result => return result,
        }
    }
}

/// `mkdir -p`, and the parents of what was made are flushed.
fn make_durable(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = directory.parent() {
                make_durable(parent)?;
            }
            match fs::create_dir(directory) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        Err(e) => return Err(e),
    }
    match directory.parent() {
        Some(parent) => flush(parent),
        None => Ok(()),
    }
}

/// Removes a file; whether it was there.
fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(format!("cannot remove {}", path.display()), e)),
    }
}
