//! Content on disk: blobs by digest, layers by chain ID.
//!
//! ```text
//! ROOT/blobs/sha256/HEX      image configurations, manifests, indexes
//! ROOT/layers/HEX/diff/      a layer's files in overlayfs form (whiteouts, opaque marks)
//! ROOT/layers/HEX/tar-split  what else its archive consists of
//! ROOT/layers/HEX/replaced/  files that the archive itself replaced, if any
//! ROOT/layers/HEX/layer.json diff ID, parent, sizes, the boot it was made in
//! ROOT/layers/HEX/flushed    all of the above has reached the disk
//! ROOT/layers/.tmp-*         what is being made or removed
//! ROOT/partial/              downloads that are not complete
//! ```
//!
//! A blob or layer appears by a rename and is complete and verified from then on. A blob is durable at once. A
//! layer is not: to flush it takes several times as long as to unpack it. [`Store::sync`] (one `syncfs`, meant
//! for the background) marks the layers it has made durable; after a power failure,
//! [`Store::discard_unflushed`] removes those without the mark, because parts of them may be missing. A crash
//! of the process alone loses nothing.
//!
//! What is used is the caller's knowledge. A [`Lease`] keeps what a load or save works with from
//! [`Store::collect`] until the caller has recorded it.

mod blob;
mod collect;
mod durability;
mod layer;
mod lease;
mod partial;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use blob::BlobInfo;
pub use collect::{Collected, LiveSet};
pub use layer::{LayerInfo, LayerReader};
pub(crate) use layer::{PendingLayer, mismatch};
pub use lease::Lease;
pub(crate) use partial::Partial;

use crate::error::{Error, Result};
use crate::fs::LateMemory;

const TEMPORARY: &str = ".tmp-";
/// Changes with every boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The content store. Clones share it; one process at a time owns a root.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    layers: OwnedFd,
    pins: Mutex<lease::Pins>,
    collecting: Mutex<()>,
    late_memory: LateMemory,
    temporary: AtomicU64,
    boot: String,
}

impl Store {
    /// Opens a store, making its directories if they are missing.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        for directory in ["blobs/sha256", "layers"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(|e| Error::io(format!("cannot make {}", path.display()), e))?;
        }
        let layers = root.join("layers");
        let fd =
            fs::File::open(&layers).map_err(|e| Error::io(format!("cannot open {}", layers.display()), e))?;
        // Layers hold set-user-ID programs: nobody but root walks in.
        rustix::fs::fchmod(&fd, rustix::fs::Mode::from_raw_mode(0o700))
            .map_err(|e| Error::io(format!("cannot set the mode of {}", layers.display()), e))?;
        spread(&fd);
        let boot = fs::read_to_string(BOOT_ID).map_err(|e| Error::io(format!("cannot read {BOOT_ID}"), e))?;
        Ok(Self {
            inner: Arc::new(Inner {
                root,
                layers: fd.into(),
                pins: Mutex::default(),
                collecting: Mutex::new(()),
                late_memory: LateMemory::default(),
                temporary: AtomicU64::new(0),
                boot: boot.trim().to_owned(),
            }),
        })
    }

    /// The directory it was opened with.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// A new lease that keeps nothing yet.
    pub fn lease(&self) -> Lease {
        Lease::new(self.clone())
    }

    /// Removes what earlier processes left unfinished. Call it once, before anything is loaded.
    pub fn sweep_temporary(&self) -> Result<u64> {
        let mut removed = 0;
        for directory in [self.layers_path(), self.inner.root.join("blobs/sha256")] {
            for entry in read_dir(&directory)? {
                if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                    let path = entry.path();
                    let result = if path.is_dir() {
                        fs::remove_dir_all(&path)
                    } else {
                        fs::remove_file(&path)
                    };
                    result.map_err(|e| Error::io(format!("cannot remove {}", path.display()), e))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// Shared by all layers that are unpacked at the same time.
    pub(crate) fn late_memory(&self) -> LateMemory {
        self.inner.late_memory.clone()
    }

    fn layers_path(&self) -> PathBuf {
        self.inner.root.join("layers")
    }

    /// A name for something that is not complete: unique in this process, swept by the next one.
    fn temporary_name(&self) -> String {
        let n = self.inner.temporary.fetch_add(1, Ordering::Relaxed);
        format!("{TEMPORARY}{}-{n}", std::process::id())
    }

    fn pins(&self) -> MutexGuard<'_, lease::Pins> {
        self.inner.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks ext4 to put the directories of different layers far apart, as it does with those of the file system's root
/// (`chattr +T`). They have nothing to do with each other; in particular, a new layer does not look for its inodes
/// among those of one that was just removed: without a journal, ext4 skips these one by one for up to five minutes,
/// and unpacking took ten times as long. Other file systems do not know the mark and need none.
fn spread(layers: &fs::File) {
    use rustix::fs::IFlags;
    if let Ok(flags) = rustix::fs::ioctl_getflags(layers)
        && !flags.contains(IFlags::TOPDIR)
        && let Err(error) = rustix::fs::ioctl_setflags(layers, flags | IFlags::TOPDIR)
    {
        tracing::debug!(%error, "the file system cannot be asked to spread layers");
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.inner.root).finish()
    }
}

fn read_dir(path: &Path) -> Result<Vec<fs::DirEntry>> {
    fs::read_dir(path)
        .and_then(Iterator::collect)
        .map_err(|e| Error::io(format!("cannot list {}", path.display()), e))
}
