//! What is in an image archive, from one pass over a stream.
//!
//! An archive names its images in a file that may come last, and a stream cannot be read twice. Nothing is
//! spooled: whatever begins like a tar archive or a compressed stream is unpacked as a layer right away, next
//! to others, and everything else is a document kept in memory. What turns out to belong to no image is
//! dropped, and only a layer that an image needs can fail the load.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Read;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::load::{LoadOptions, Progress};
use crate::Store;
use crate::chunk::{Chunk, ChunkReader, Pool, ReadSource, Source};
use crate::compression::{self, Compression};
use crate::config::MAX_DOCUMENT;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, ErrorKind, Result, show};
use crate::fs::clean;
use crate::layer;
use crate::store::PendingLayer;
use crate::tar::{BLOCK, Kind, TarReader, is_header};

/// Buffers between reading the archive and unpacking layers: 16 MiB.
const BUFFERS: usize = 64;
/// Documents in one archive, together.
const MAX_DOCUMENTS: usize = 64 << 20;
/// Images that an archive lists, each as often as it does.
const MAX_IMAGES: usize = 4096;
/// Files in one archive: each layer has three in Docker's old format.
const MAX_FILES: usize = 65_536;
/// Links followed to find a layer.
const MAX_LINKS: usize = 8;

/// What may be read of documents, each counted as often as an archive refers to it: an archive of a few kilobytes can
/// name one large document thousands of times.
pub(super) struct Budget {
    images: usize,
    bytes: usize,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self {
            images: MAX_IMAGES,
            bytes: MAX_DOCUMENTS,
        }
    }

    /// One more entry of `manifest.json` or of an index.
    pub(super) fn image(&mut self) -> Result<()> {
        self.images = self
            .images
            .checked_sub(1)
            .ok_or_else(|| Error::limit(format!("the archive lists more than {MAX_IMAGES} images")))?;
        Ok(())
    }

    /// A document is about to be read.
    pub(super) fn read(&mut self, document: &[u8]) -> Result<()> {
        self.bytes = self
            .bytes
            .checked_sub(document.len())
            .ok_or_else(|| Error::limit("the image archive refers to more than 64 MiB of documents"))?;
        Ok(())
    }
}

/// A layer found in the archive.
pub(super) enum Slot {
    Running(JoinHandle<Result<PendingLayer>>),
    Ready(PendingLayer),
    Failed(Error),
    /// Already taken for an image.
    Taken,
}

/// Files of an archive by path.
pub(super) struct Contents {
    documents: HashMap<Vec<u8>, Arc<[u8]>>,
    layers: HashMap<Vec<u8>, Slot>,
    links: HashMap<Vec<u8>, Vec<u8>>,
    /// What else was there, for a helpful error.
    others: HashSet<Vec<u8>>,
}

impl Contents {
    /// Reads the whole archive.
    pub(super) fn read(
        store: &Store,
        input: impl Read + Send,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let pool = Pool::new(BUFFERS);
        let (kind, input) =
            compression::peek(input).map_err(|e| Error::input("cannot read the archive", e))?;
        if kind == Compression::None {
            return Self::scan(store, ReadSource::new(input, pool), options, progress);
        }
        let input = ChunkReader::new(ReadSource::new(input, Pool::new(2)));
        Self::scan(
            store,
            ReadSource::new(kind.reader(input)?, pool),
            options,
            progress,
        )
    }

    fn scan(
        store: &Store,
        source: impl Source,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let mut contents = Self {
            documents: HashMap::new(),
            layers: HashMap::new(),
            links: HashMap::new(),
            others: HashSet::new(),
        };
        let mut tar = TarReader::new(ChunkReader::new(source));
        let mut running: VecDeque<Vec<u8>> = VecDeque::new();
        let (mut files, mut document_bytes, mut read) = (0usize, 0usize, 0u64);
        while let Some(entry) = tar.next(&mut |_| Ok(()))? {
            files += 1;
            if files > MAX_FILES {
                return Err(Error::limit(format!(
                    "the image archive has more than {MAX_FILES} files"
                )));
            }
            let path = clean(&entry.path)?;
            contents.forget(&path);
            match entry.kind {
                Kind::File => {}
                Kind::Symlink => {
                    contents
                        .links
                        .insert(path.clone(), resolve_link(&path, &entry.link)?);
                    continue;
                }
                Kind::HardLink => {
                    contents.links.insert(path, clean(&entry.link)?);
                    continue;
                }
                _ => {
                    contents.others.insert(path);
                    continue;
                }
            }
            if entry.sparse.is_some() {
                return Err(Error::invalid(format!(
                    "{} in the image archive is a sparse file",
                    show(&path)
                )));
            }
            let mut first: Vec<Chunk> = Vec::new();
            let mut start = Vec::new();
            while start.len() < BLOCK
                && let Some(chunk) = tar.payload_chunk()?
            {
                start.extend_from_slice(&chunk[..chunk.len().min(BLOCK - start.len())]);
                first.push(chunk);
            }
            if looks_like_layer(&start, entry.size) {
                while running.len() >= options.parallel.max(1) {
                    let oldest = running.pop_front().unwrap_or_default();
                    contents.wait(&oldest);
                }
                let feeder = layer::spawn(store, algorithm(&path), options.limits.clone())?;
                for chunk in first {
                    read += chunk.len() as u64;
                    feeder.send(chunk);
                }
                while let Some(chunk) = tar.payload_chunk()? {
                    read += chunk.len() as u64;
                    feeder.send(chunk);
                    progress(Progress::Read { bytes: read });
                }
                if let Some(thread) = feeder.finish() {
                    contents.layers.insert(path.clone(), Slot::Running(thread));
                    running.push_back(path);
                }
                continue;
            }
            if entry.size > MAX_DOCUMENT as u64 {
                contents.others.insert(path);
                continue;
            }
            let mut document: Vec<u8> = first.iter().flat_map(|chunk| chunk.iter().copied()).collect();
            drop(first);
            document.extend(tar.read_all(MAX_DOCUMENT)?);
            document_bytes += document.len();
            if document_bytes > MAX_DOCUMENTS {
                return Err(Error::limit(
                    "the image archive has more than 64 MiB of documents",
                ));
            }
            contents.documents.insert(path, document.into());
        }
        Ok(contents)
    }

    fn forget(&mut self, path: &[u8]) {
        self.documents.remove(path);
        self.links.remove(path);
        if let Some(Slot::Running(thread)) = self.layers.remove(path) {
            let _ = layer::join(thread);
        }
    }

    fn wait(&mut self, path: &[u8]) {
        if let Some(slot) = self.layers.get_mut(path)
            && let Slot::Running(_) = slot
            && let Slot::Running(thread) = std::mem::replace(slot, Slot::Taken)
        {
            *slot = match layer::join(thread) {
                Ok(layer) => Slot::Ready(layer),
                Err(e) => Slot::Failed(e),
            };
        }
    }

    /// A document, through links.
    pub(super) fn document(&self, path: &[u8]) -> Option<&Arc<[u8]>> {
        self.documents.get(&self.follow(path))
    }

    /// A document by digest, verified.
    pub(super) fn blob(&self, digest: &Digest) -> Result<&Arc<[u8]>> {
        let path = blob_path(digest);
        let raw = self.document(path.as_bytes()).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("the archive lacks {path}, which its index refers to"),
            )
        })?;
        if !digest.verify(raw) {
            return Err(Error::new(
                ErrorKind::Digest,
                format!("{path} in the archive has another digest than its name"),
            ));
        }
        Ok(raw)
    }

    /// A layer, through links, when its thread is done: the path it is kept under.
    pub(super) fn layer(&mut self, path: &[u8]) -> Option<(Vec<u8>, &mut Slot)> {
        let path = self.follow(path);
        self.wait(&path);
        self.layers.get_mut(&path).map(|slot| (path, slot))
    }

    /// Whether there is a file of this name that is no layer.
    pub(super) fn has(&self, path: &[u8]) -> bool {
        let path = self.follow(path);
        self.documents.contains_key(&path) || self.others.contains(&path)
    }

    /// Whether this seems to be the tar of a root file system.
    pub(super) fn looks_like_root(&self) -> bool {
        [&b"etc"[..], b"bin", b"usr"]
            .iter()
            .any(|name| self.others.contains(*name))
    }

    fn follow(&self, path: &[u8]) -> Vec<u8> {
        let mut path = path;
        for _ in 0..MAX_LINKS {
            match self.links.get(path) {
                Some(target) => path = target,
                None => break,
            }
        }
        path.to_vec()
    }
}

impl Drop for Contents {
    /// No thread outlives a failed load, and no temporary directory its thread.
    fn drop(&mut self) {
        for (_, slot) in self.layers.drain() {
            if let Slot::Running(thread) = slot {
                let _ = thread.join();
            }
        }
    }
}

/// Where a blob is in an OCI layout.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn algorithm(path: &[u8]) -> Algorithm {
    if path.starts_with(b"blobs/sha512/") {
        Algorithm::Sha512
    } else {
        Algorithm::Sha256
    }
}

fn looks_like_layer(start: &[u8], size: u64) -> bool {
    if Compression::detect(start) != Compression::None {
        return true;
    }
    match start.first_chunk::<BLOCK>() {
        // An empty layer is nothing but empty blocks.
        Some(block) => is_header(block) || (size.is_multiple_of(BLOCK as u64) && *block == [0; BLOCK]),
        None => false,
    }
}

/// The target of a symbolic link in the archive, which may use `..` but not leave.
fn resolve_link(path: &[u8], link: &[u8]) -> Result<Vec<u8>> {
    let mut parts: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
    parts.pop();
    if link.starts_with(b"/") {
        return Err(Error::invalid(format!(
            "the link {} in the image archive is absolute",
            show(path)
        )));
    }
    for part in link.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or_else(|| {
                    Error::invalid(format!("the link {} leads out of the image archive", show(path)))
                })?;
            }
            part => parts.push(part),
        }
    }
    clean(&parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_in_the_archive() {
        assert_eq!(
            resolve_link(b"a/layer.tar", b"../b/layer.tar").unwrap(),
            b"b/layer.tar"
        );
        assert!(resolve_link(b"a/layer.tar", b"../../b").is_err());
        assert!(resolve_link(b"a", b"/etc/passwd").is_err());
    }
}
