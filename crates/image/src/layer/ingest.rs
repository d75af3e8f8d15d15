//! From a stream of bytes to an unpacked layer, on several threads.
//!
//! ```text
//!            plain:        feeder ──► unpack ──► hash (diff ID)
//!            compressed:   feeder ──► decompress, hash (digest) ──► unpack ──► hash (diff ID)
//! ```
//!
//! Chunks are shared, not copied. Unpacking goes on while the digest is still being computed; nothing counts
//! until [`super::super::Store::commit`] has compared it.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::split::{SplitWriter, open_directory};
use crate::chunk::{ChannelSource, Chunk, ChunkReader, Message, Pool, ReadSource, Source};
use crate::compression::{Compression, MAGIC_LEN};
use crate::digest::{Algorithm, DiffId, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::fs::{ExtractOptions, Extractor, LateMemory, Limits, Stats};
use crate::store::PendingLayer;
use crate::tar::TarReader;
use crate::{Store, compression};

/// Buffers between decompressing and unpacking one layer.
const DECOMPRESSED: usize = 16;

/// What bounds the unpacking of one layer, and of all layers together.
struct Bounds {
    limits: Limits,
    late_memory: LateMemory,
}

/// What unpacking a stream found out.
pub(crate) struct Unpacked {
    pub(crate) diff_id: DiffId,
    pub(crate) digest: Digest,
    pub(crate) stats: Stats,
}

/// The sending side of a layer that is being unpacked.
///
/// Dropped before its end, it waits until the unfinished layer is gone.
pub(crate) struct Feeder {
    sender: Option<Sender<Message>>,
    thread: Option<JoinHandle<Result<PendingLayer>>>,
}

impl Feeder {
    /// Sends a chunk. If the layer has failed, it is dropped: [`Self::finish`] tells.
    pub(crate) fn send(&self, chunk: Chunk) {
        if let Some(sender) = &self.sender {
            let _ = sender.send(Ok(Some(chunk)));
        }
    }

    /// Ends the stream; the layer is then waited for with the handle.
    pub(crate) fn finish(mut self) -> Option<JoinHandle<Result<PendingLayer>>> {
        if let Some(sender) = self.sender.take() {
            let _ = sender.send(Ok(None));
        }
        self.thread.take()
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        // Without the end of the stream, the other side fails.
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts unpacking a layer into a temporary directory of the store.
pub(crate) fn spawn(store: &Store, algorithm: Algorithm, limits: Limits) -> Result<Feeder> {
    let pending = store.pending_layer()?;
    let (sender, receiver) = channel();
    let bounds = Bounds {
        limits,
        late_memory: store.late_memory(),
    };
    let thread = std::thread::Builder::new()
        .name("layer".into())
        .spawn(move || {
            let unpacked = unpack(receiver, pending.path(), algorithm, bounds)?;
            Ok(pending.with(unpacked))
        })
        .map_err(|e| Error::io("cannot start a thread to unpack a layer", e))?;
    Ok(Feeder {
        sender: Some(sender),
        thread: Some(thread),
    })
}

/// Reads all input into a feeder. A failed read fails the layer.
pub(crate) fn feed(feeder: Feeder, input: impl Read, pool: Arc<Pool>) -> Result<PendingLayer> {
    let mut source = ReadSource::new(input, pool);
    loop {
        match source.next_chunk() {
            Ok(Some(chunk)) => feeder.send(chunk),
            Ok(None) => return feeder.finish().map_or_else(|| Err(died()), join),
            Err(e) => return Err(Error::input("cannot read the layer", e)),
        }
    }
}

/// Waits for a layer.
pub(crate) fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(died()))
}

pub(super) fn died() -> Error {
    Error::new(
        ErrorKind::Io,
        "a thread that unpacks a layer has died; this is a defect",
    )
}

fn unpack(
    receiver: Receiver<Message>,
    layer: &Path,
    algorithm: Algorithm,
    bounds: Bounds,
) -> Result<Unpacked> {
    let mut source = ChannelSource::new(receiver, None);
    let (compression, first) = peek(&mut source).map_err(|e| Error::input("cannot read the layer", e))?;
    if compression == Compression::None {
        let source = Prepend {
            first: first.into_iter(),
            rest: source,
        };
        let (diff_id, stats) = unpack_plain(source, layer, bounds)?;
        return Ok(Unpacked {
            digest: diff_id.0.clone(),
            diff_id,
            stats,
        });
    }
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        let decompressor = std::thread::Builder::new()
            .name("decompress".into())
            .spawn_scoped(scope, move || {
                let mut hasher = Hasher::new(algorithm);
                let source = Hashing {
                    first: first.into_iter(),
                    rest: source,
                    hasher: &mut hasher,
                };
                let result = decompress(compression, source, &sender);
                if let Err(e) = result {
                    let _ = sender.send(Err(e));
                }
                hasher.finish()
            });
        let decompressor =
            decompressor.map_err(|e| Error::io("cannot start a thread to unpack a layer", e))?;
        let result = unpack_plain(ChannelSource::new(receiver, None), layer, bounds);
        let digest = decompressor.join().map_err(|_| died())?;
        let (diff_id, stats) = result?;
        Ok(Unpacked {
            diff_id,
            digest,
            stats,
        })
    })
}

fn decompress(
    compression: Compression,
    source: Hashing<'_>,
    sender: &Sender<Message>,
) -> std::io::Result<()> {
    let mut input = ChunkReader::new(source);
    let mut output = ReadSource::new(compression.reader(&mut input)?, Pool::new(DECOMPRESSED));
    loop {
        let chunk = output.next_chunk()?;
        let end = chunk.is_none();
        if end {
            break;
        }
        // The other side is gone when unpacking failed.
        if sender.send(Ok(chunk)).is_err() {
            return Ok(());
        }
    }
    drop(output);
    // What follows the compressed stream belongs to the blob's digest.
    std::io::copy(&mut input, &mut std::io::sink())?;
    let _ = sender.send(Ok(None));
    Ok(())
}

fn unpack_plain(source: impl Source + CopyTo, layer: &Path, bounds: Bounds) -> Result<(DiffId, Stats)> {
    let mut source = source;
    std::thread::scope(|scope| {
        let (sender, receiver) = channel::<Chunk>();
        let hasher = std::thread::Builder::new()
            .name("hash".into())
            .spawn_scoped(scope, move || {
                let mut hasher = Hasher::new(Algorithm::Sha256);
                for chunk in receiver {
                    hasher.update(&chunk);
                }
                DiffId(hasher.finish())
            });
        let hasher = hasher.map_err(|e| Error::io("cannot start a thread to hash a layer", e))?;
        source.copy_to(sender);
        let result = unpack_files(source, layer, bounds);
        let diff_id = hasher.join().map_err(|_| died())?;
        Ok((diff_id, result?))
    })
}

fn unpack_files(source: impl Source, layer: &Path, bounds: Bounds) -> Result<Stats> {
    let diff = open_directory(&layer.join("diff"))?;
    let mut split = SplitWriter::create(layer)?;
    let mut tar = TarReader::new(ChunkReader::new(source));
    let options = ExtractOptions {
        limits: bounds.limits,
        ..ExtractOptions::default()
    };
    let stats = Extractor::new(diff.as_fd(), options, true, bounds.late_memory).run(&mut tar, &mut split)?;
    split.finish()?;
    Ok(stats)
}

/// Enough chunks to recognize the compression.
fn peek(source: &mut ChannelSource) -> std::io::Result<(Compression, Vec<Chunk>)> {
    let (mut chunks, mut start) = (Vec::new(), Vec::new());
    while start.len() < MAGIC_LEN {
        let Some(chunk) = source.next_chunk()? else { break };
        start.extend_from_slice(&chunk[..chunk.len().min(MAGIC_LEN)]);
        chunks.push(chunk);
    }
    Ok((compression::Compression::detect(&start), chunks))
}

/// A source that can pass its chunks on to another thread.
trait CopyTo {
    fn copy_to(&mut self, copy: Sender<Chunk>);
}

impl CopyTo for ChannelSource {
    fn copy_to(&mut self, copy: Sender<Chunk>) {
        ChannelSource::copy_to(self, copy);
    }
}

/// The peeked chunks, then the rest.
struct Prepend {
    first: std::vec::IntoIter<Chunk>,
    rest: ChannelSource,
}

impl CopyTo for Prepend {
    fn copy_to(&mut self, copy: Sender<Chunk>) {
        for chunk in self.first.as_slice() {
            let _ = copy.send(chunk.clone());
        }
        self.rest.copy_to(copy);
    }
}

impl Source for Prepend {
    fn next_chunk(&mut self) -> std::io::Result<Option<Chunk>> {
        match self.first.next() {
            Some(chunk) => Ok(Some(chunk)),
            None => self.rest.next_chunk(),
        }
    }
}

/// Hashes what passes through.
struct Hashing<'a> {
    first: std::vec::IntoIter<Chunk>,
    rest: ChannelSource,
    hasher: &'a mut Hasher,
}

impl Source for Hashing<'_> {
    fn next_chunk(&mut self) -> std::io::Result<Option<Chunk>> {
        let chunk = match self.first.next() {
            Some(chunk) => Some(chunk),
            None => self.rest.next_chunk()?,
        };
        if let Some(chunk) = &chunk {
            self.hasher.update(chunk);
        }
        Ok(chunk)
    }
}
