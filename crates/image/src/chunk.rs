//! Reference-counted pieces of a byte stream from a bounded pool.
//!
//! A layer's bytes go to several threads at once (one hashes, one unpacks). A [`Chunk`] is shared between
//! them without copying; its buffer returns to its [`Pool`] with the last user, and whoever reads the input
//! waits when all are in use. That bounds memory, and it is the only back pressure there is: the queues
//! between the threads have no limit of their own.

use std::io::{self, BufRead, Read};
use std::ops::Deref;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Bytes per buffer: small enough that the second reader finds them in the cache.
pub(crate) const CHUNK: usize = 256 << 10;

/// A bounded set of buffers.
pub(crate) struct Pool {
    state: Mutex<PoolState>,
    returned: Condvar,
    limit: usize,
}

struct PoolState {
    free: Vec<Vec<u8>>,
    made: usize,
}

impl Pool {
    /// A pool of at most `limit` buffers.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let state = PoolState {
            free: Vec::new(),
            made: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            returned: Condvar::new(),
            limit,
        })
    }

    fn take(&self) -> Vec<u8> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(buffer) = state.free.pop() {
                return buffer;
            }
            if state.made < self.limit {
                state.made += 1;
                return vec![0; CHUNK];
            }
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Reads until a buffer is full or the input ends; `None` at the end.
    pub(crate) fn read(self: &Arc<Self>, input: &mut impl Read) -> io::Result<Option<Chunk>> {
        let mut buffer = Buffer {
            bytes: self.take(),
            pool: Arc::clone(self),
        };
        let mut end = 0;
        while end < CHUNK {
            match input.read(&mut buffer.bytes[end..]) {
                Ok(0) => break,
                Ok(n) => end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok((end > 0).then(|| Chunk {
            buffer: Arc::new(buffer),
            start: 0,
            end,
        }))
    }
}

struct Buffer {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.free.push(std::mem::take(&mut self.bytes));
        self.pool.returned.notify_one();
    }
}

/// A shared piece of the stream.
#[derive(Clone)]
pub(crate) struct Chunk {
    buffer: Arc<Buffer>,
    start: usize,
    end: usize,
}

impl Deref for Chunk {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer.bytes[self.start..self.end]
    }
}

impl Chunk {
    fn split_to(&mut self, n: usize) -> Chunk {
        let n = n.min(self.end - self.start);
        let mut front = self.clone();
        front.end = self.start + n;
        self.start += n;
        front
    }
}

/// Fills chunks and sends each that is full to another thread.
pub(crate) struct ChunkWriter {
    pool: Arc<Pool>,
    sender: Sender<Chunk>,
    buffer: Option<Buffer>,
    end: usize,
    written: u64,
}

impl ChunkWriter {
    pub(crate) fn new(pool: Arc<Pool>, sender: Sender<Chunk>) -> Self {
        Self {
            pool,
            sender,
            buffer: None,
            end: 0,
            written: 0,
        }
    }

    /// Where the next bytes go, at least one; [`Self::advance`] says how many were put there. It waits for a buffer.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        let buffer = self.buffer.get_or_insert_with(|| Buffer {
            bytes: self.pool.take(),
            pool: Arc::clone(&self.pool),
        });
        &mut buffer.bytes[self.end..]
    }

    pub(crate) fn advance(&mut self, n: usize) {
        self.end += n;
        self.written += n as u64;
        if self.end == CHUNK {
            self.flush();
        }
    }

    /// Copies bytes.
    pub(crate) fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.space();
            let n = space.len().min(bytes.len());
            space[..n].copy_from_slice(&bytes[..n]);
            self.advance(n);
            bytes = &bytes[n..];
        }
    }

    /// Sends what there is.
    pub(crate) fn flush(&mut self) {
        let end = std::mem::take(&mut self.end);
        if let Some(buffer) = self.buffer.take().filter(|_| end > 0) {
            // The other side only stops early when it panicked, which joining it reports.
            let _ = self.sender.send(Chunk {
                buffer: Arc::new(buffer),
                start: 0,
                end,
            });
        }
    }

    /// Bytes so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }
}

/// Where chunks come from.
pub(crate) trait Source {
    /// The next chunk; `None` at the end. Chunks are never empty.
    fn next_chunk(&mut self) -> io::Result<Option<Chunk>>;
}

/// Reads any input in chunks.
pub(crate) struct ReadSource<R> {
    input: R,
    pool: Arc<Pool>,
}

impl<R: Read> ReadSource<R> {
    pub(crate) fn new(input: R, pool: Arc<Pool>) -> Self {
        Self { input, pool }
    }
}

impl<R: Read> Source for ReadSource<R> {
    fn next_chunk(&mut self) -> io::Result<Option<Chunk>> {
        self.pool.read(&mut self.input)
    }
}

/// What travels between two threads: an end without `Ok(None)` means that the sender died.
pub(crate) type Message = io::Result<Option<Chunk>>;

/// Receives chunks from another thread, and passes each on to a third one, if any.
pub(crate) struct ChannelSource {
    receiver: Receiver<Message>,
    copy: Option<Sender<Chunk>>,
    ended: bool,
}

impl ChannelSource {
    pub(crate) fn new(receiver: Receiver<Message>, copy: Option<Sender<Chunk>>) -> Self {
        Self {
            receiver,
            copy,
            ended: false,
        }
    }

    /// From now on, pass each chunk on.
    pub(crate) fn copy_to(&mut self, copy: Sender<Chunk>) {
        self.copy = Some(copy);
    }
}

impl Source for ChannelSource {
    fn next_chunk(&mut self) -> io::Result<Option<Chunk>> {
        if self.ended {
            return Ok(None);
        }
        match self.receiver.recv() {
            Ok(Ok(Some(chunk))) => {
                if let Some(copy) = &self.copy {
                    // The other side only stops early when it panicked, which joining it reports.
                    let _ = copy.send(chunk.clone());
                }
                Ok(Some(chunk))
            }
            Ok(Ok(None)) => {
                self.ended = true;
                self.copy = None;
                Ok(None)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the input was abandoned half-way",
            )),
        }
    }
}

/// A [`BufRead`] over chunks that can also hand out the chunks themselves.
pub(crate) struct ChunkReader<S> {
    source: S,
    current: Option<Chunk>,
}

impl<S: Source> ChunkReader<S> {
    pub(crate) fn new(source: S) -> Self {
        Self {
            source,
            current: None,
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.current.as_ref().is_none_or(|chunk| chunk.is_empty()) {
            // Give the buffer back before asking for another one.
            self.current = None;
            self.current = self.source.next_chunk()?;
        }
        Ok(())
    }

    /// Up to `max` bytes without copying; `None` at the end.
    pub(crate) fn take_chunk(&mut self, max: usize) -> io::Result<Option<Chunk>> {
        self.fill()?;
        Ok(self.current.as_mut().map(|chunk| chunk.split_to(max)))
    }
}

impl<S: Source> Read for ChunkReader<S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(out.len());
        out[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl<S: Source> BufRead for ChunkReader<S> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill()?;
        Ok(self.current.as_deref().unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        if let Some(chunk) = &mut self.current {
            chunk.split_to(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_pool_waits_for_a_buffer() {
        let pool = Pool::new(1);
        let first = pool.read(&mut &b"abc"[..]).unwrap().unwrap();
        let other = Arc::clone(&pool);
        let thread = std::thread::spawn(move || other.read(&mut &b"def"[..]).unwrap().unwrap().to_vec());
        assert_eq!(&*first, b"abc");
        drop(first);
        assert_eq!(thread.join().unwrap(), b"def");
    }

    #[test]
    fn takes_chunks_across_boundaries() {
        let data: Vec<u8> = (0..CHUNK * 2 + 10).map(|i| i as u8).collect();
        let mut reader = ChunkReader::new(ReadSource::new(&data[..], Pool::new(2)));
        let mut out = vec![0; 5];
        reader.read_exact(&mut out).unwrap();
        while let Some(chunk) = reader.take_chunk(100_000).unwrap() {
            assert!(!chunk.is_empty() && chunk.len() <= 100_000);
            out.extend_from_slice(&chunk);
        }
        assert!(out == data);
    }
}
