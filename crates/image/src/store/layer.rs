//! Layers: made aside, verified, renamed into place, never changed.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::RenameFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::lease::Item;
use super::{Lease, Store, read_dir};
use crate::chunk::Pool;
use crate::digest::{Algorithm, ChainId, DiffId, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::fs::{Limits, Stats};
use crate::layer::split::Assembler;

/// What is known about a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Its name in the store.
    pub chain_id: ChainId,
    /// The digest of its archive.
    pub diff_id: DiffId,
    /// The layer below.
    pub parent: Option<ChainId>,
    /// Bytes of file data.
    pub size: u64,
    /// Number of entries in its archive.
    pub entries: u64,
    /// Bytes of its uncompressed archive.
    pub archive_size: u64,
}

/// `layer.json`.
#[derive(Serialize, Deserialize)]
pub(super) struct Metadata {
    diff_id: DiffId,
    parent: Option<ChainId>,
    size: u64,
    entries: u64,
    archive_size: u64,
    pub(super) boot: String,
}

/// An unpacked layer that is not in the store yet; dropped, it leaves nothing behind.
pub(crate) struct PendingLayer {
    path: PathBuf,
    unpacked: Option<(DiffId, Digest, Stats)>,
}

impl PendingLayer {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn with(mut self, unpacked: crate::layer::Unpacked) -> Self {
        self.unpacked = Some((unpacked.diff_id, unpacked.digest, unpacked.stats));
        self
    }

    /// The digest of the uncompressed archive.
    pub(crate) fn diff_id(&self) -> Option<&DiffId> {
        self.unpacked.as_ref().map(|(diff_id, _, _)| diff_id)
    }

    /// The digest of the bytes that came in.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.unpacked.as_ref().map(|(_, digest, _)| digest)
    }
}

impl Drop for PendingLayer {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), error = %e, "an unfinished layer stays until the next start");
            }
            _ => {}
        }
    }
}

impl Store {
    /// The directory with a layer's files, for an overlay mount.
    pub fn layer_path(&self, chain: &ChainId) -> PathBuf {
        self.layer_directory(chain).join("diff")
    }

    /// What is known about a layer.
    pub fn layer(&self, chain: &ChainId) -> Result<LayerInfo> {
        let Metadata {
            diff_id,
            parent,
            size,
            entries,
            archive_size,
            boot: _,
        } = self.metadata(chain)?;
        Ok(LayerInfo {
            chain_id: chain.clone(),
            diff_id,
            parent,
            size,
            entries,
            archive_size,
        })
    }

    pub(super) fn metadata(&self, chain: &ChainId) -> Result<Metadata> {
        let path = self.layer_directory(chain).join("layer.json");
        let raw = fs::read(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::new(
                ErrorKind::NotFound,
                format!("layer {chain} does not exist; load its image again"),
            ),
            _ => Error::io(format!("cannot read {}", path.display()), e),
        })?;
        serde_json::from_slice(&raw).map_err(|e| Error::json(format!("{} is damaged", path.display()), e))
    }

    /// Bytes of file data in a layer.
    pub fn layer_size(&self, chain: &ChainId) -> Result<u64> {
        self.layer(chain).map(|layer| layer.size)
    }

    /// All layers.
    pub fn layers(&self) -> Result<Vec<LayerInfo>> {
        let mut out = Vec::new();
        for chain in self.layer_ids()? {
            match self.layer(&chain) {
                Ok(layer) => out.push(layer),
                // Collected meanwhile.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    /// The names of all layers, sorted.
    pub(super) fn layer_ids(&self) -> Result<Vec<ChainId>> {
        let entries = read_dir(&self.layers_path())?;
        let names = entries
            .iter()
            .filter_map(|entry| entry.file_name().into_string().ok());
        let mut out: Vec<ChainId> = names
            .filter_map(|name| Digest::from_sha256_hex(&name).ok())
            .map(ChainId)
            .collect();
        out.sort();
        Ok(out)
    }

    /// The exact uncompressed archive of a layer. The reader fails at its end unless the diff ID is right.
    pub fn layer_archive(&self, chain: &ChainId) -> Result<LayerReader> {
        let layer = self.layer(chain)?;
        let assembler = Assembler::open(&self.layer_directory(chain))?;
        Ok(LayerReader {
            assembler,
            hasher: Some(Hasher::new(Algorithm::Sha256)),
            diff_id: layer.diff_id,
        })
    }

    /// Unpacks a layer from its archive, compressed or not, and keeps it by the lease.
    pub fn put_layer(
        &self,
        input: impl Read,
        parent: Option<&ChainId>,
        diff_id: &DiffId,
        limits: &Limits,
        lease: &mut Lease,
    ) -> Result<LayerInfo> {
        let chain = child(parent, diff_id);
        if lease.pin_layer(&chain) {
            let layer = self.layer(&chain)?;
            // The name of a lowest layer is its digest: the name of any layer could be given for a digest.
            if layer.diff_id != *diff_id || layer.parent.as_ref() != parent {
                return Err(mismatch(diff_id, Some(&layer.diff_id)));
            }
            return Ok(layer);
        }
        let pending = crate::layer::feed(
            crate::layer::spawn(self, Algorithm::Sha256, limits.clone())?,
            input,
            Pool::new(32),
        )?;
        if pending.diff_id() != Some(diff_id) {
            return Err(mismatch(diff_id, pending.diff_id()));
        }
        self.commit(pending, parent, lease)
    }

    pub(super) fn layer_directory(&self, chain: &ChainId) -> PathBuf {
        self.layers_path().join(chain.hex())
    }

    /// A new temporary directory to unpack a layer in.
    pub(crate) fn pending_layer(&self) -> Result<PendingLayer> {
        let path = self.layers_path().join(self.temporary_name());
        let pending = PendingLayer { path, unpacked: None };
        for directory in [pending.path.clone(), pending.path.join("diff")] {
            fs::create_dir(&directory)
                .map_err(|e| Error::io(format!("cannot make {}", directory.display()), e))?;
            // The umask must not decide: diff/ becomes the container's root directory.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&directory, mode)
                .map_err(|e| Error::io(format!("cannot set the mode of {}", directory.display()), e))?;
        }
        Ok(pending)
    }

    /// Gives an unpacked layer its name. If somebody else was faster, theirs stays.
    pub(crate) fn commit(
        &self,
        pending: PendingLayer,
        parent: Option<&ChainId>,
        lease: &mut Lease,
    ) -> Result<LayerInfo> {
        let Some((diff_id, _, stats)) = &pending.unpacked else {
            return Err(Error::invalid("a layer that was not unpacked cannot be stored"));
        };
        let chain = child(parent, diff_id);
        let metadata = Metadata {
            diff_id: diff_id.clone(),
            parent: parent.cloned(),
            size: stats.bytes,
            entries: stats.entries,
            archive_size: stats.archive_size,
            boot: self.inner.boot.clone(),
        };
        let fail = |e| Error::io(format!("cannot store layer {chain}"), e);
        let raw = serde_json::to_vec(&metadata).map_err(|e| Error::json("cannot encode layer.json", e))?;
        fs::write(pending.path.join("layer.json"), raw).map_err(fail)?;
        {
            let mut pins = self.pins();
            let Some(name) = pending.path.file_name() else {
                return Err(Error::invalid("a temporary layer has no name"));
            };
            let layers = &self.inner.layers;
            match rustix::fs::renameat_with(layers, name, layers, chain.hex(), RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::EXIST) => lease.insert(&mut pins, Item::Layer(chain.clone())),
                Err(e) => return Err(fail(e.into())),
            }
        }
        // Dropping the pending layer removes the loser of a race.
        drop(pending);
        self.layer(&chain)
    }
}

/// The error for a layer whose archive has another digest than it should.
pub(crate) fn mismatch(expected: &DiffId, found: Option<&DiffId>) -> Error {
    let found = found.map_or_else(String::new, |found| format!(", its archive has {found}"));
    Error::new(
        ErrorKind::Digest,
        format!("a layer is not what its image says: it should have the diff ID {expected}{found}"),
    )
}

fn child(parent: Option<&ChainId>, diff_id: &DiffId) -> ChainId {
    parent.map_or_else(|| ChainId::base(diff_id), |parent| parent.child(diff_id))
}

/// Reads a layer's archive; made by [`Store::layer_archive`].
pub struct LayerReader {
    assembler: Assembler,
    hasher: Option<Hasher>,
    diff_id: DiffId,
}

impl Read for LayerReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.assembler.read(out)?;
        if n > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&out[..n]);
            }
        } else if !out.is_empty()
            && let Some(hasher) = self.hasher.take()
            && hasher.finish() != self.diff_id.0
        {
            let why = format!(
                "layer {} was changed on disk; remove its images and load them again",
                self.diff_id
            );
            return Err(Error::new(ErrorKind::Digest, why).into());
        }
        Ok(n)
    }
}
