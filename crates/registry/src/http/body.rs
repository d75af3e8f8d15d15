//! Bodies of answers.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::mapping::Mapping;

/// What one piece of a mapped file is; looked up whether it is in memory before it is sent.
const WINDOW: usize = 4 << 20;
/// What is read at once where files cannot be sent as such (TLS, HTTP/2).
const CHUNK: usize = 128 << 10;

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// None, or all of it.
    Bytes(Option<Bytes>),
    /// A part of a file, sent from the page cache.
    Mapped(Mapped),
    /// A part of a file, read piece by piece.
    Read(ReadFile),
    /// What somebody else produces.
    Stream(Stream),
}

/// A file that the connection recognizes.
#[derive(Debug)]
pub struct Mapped {
    mapping: Arc<Mapping>,
    at: usize,
    end: usize,
    /// Reads the next window from the disk.
    warming: Option<JoinHandle<()>>,
}

/// A file that is read.
#[derive(Debug)]
pub struct ReadFile {
    file: Arc<File>,
    at: u64,
    end: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

/// Pieces from elsewhere.
#[derive(Debug)]
pub struct Stream {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    left: Option<u64>,
}

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Self::Bytes(None)
    }

    /// A part of a mapped file.
    pub fn mapped(mapping: Arc<Mapping>, from: u64, end: u64) -> Self {
        // A mapping is no larger than memory can be addressed.
        Self::Mapped(Mapped {
            mapping,
            at: from as usize,
            end: end as usize,
            warming: None,
        })
    }

    /// A part of a file.
    pub fn file(file: File, from: u64, end: u64) -> Self {
        Self::Read(ReadFile {
            file: Arc::new(file),
            at: from,
            end,
            reading: None,
        })
    }

    /// Pieces that arrive over a channel; `length` if it is known.
    pub fn stream(pieces: mpsc::Receiver<io::Result<Bytes>>, length: Option<u64>) -> Self {
        Self::Stream(Stream { pieces, left: length })
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes((!bytes.is_empty()).then(|| bytes.into()))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = match self.get_mut() {
            Self::Bytes(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Mapped(mapped) => ready!(mapped.poll(cx)),
            Self::Read(file) => ready!(file.poll(cx)),
            Self::Stream(stream) => ready!(stream.poll(cx)),
        };
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.is_none(),
            Self::Mapped(mapped) => mapped.at >= mapped.end,
            Self::Read(file) => file.at >= file.end,
            Self::Stream(stream) => stream.left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Mapped(mapped) => SizeHint::with_exact(mapped.end.saturating_sub(mapped.at) as u64),
            Self::Read(file) => SizeHint::with_exact(file.end.saturating_sub(file.at)),
            Self::Stream(stream) => stream.left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Mapped {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.at >= self.end {
            return Poll::Ready(None);
        }
        let length = (self.end - self.at).min(WINDOW);
        if let Some(warming) = &mut self.warming {
            // Whether it could be read will show when it is sent.
            let _ = ready!(Pin::new(warming).poll(cx));
            self.warming = None;
        } else if !self.mapping.is_resident(self.at, length) {
            let (mapping, at) = (Arc::clone(&self.mapping), self.at as u64);
            let mut warming = tokio::task::spawn_blocking(move || warm(&mapping, at, length));
            if Pin::new(&mut warming).poll(cx).is_pending() {
                self.warming = Some(warming);
                return Poll::Pending;
            }
        }
        let bytes = self.mapping.bytes(self.at, length);
        self.at += length;
        Poll::Ready(Some(Ok(bytes)))
    }
}

/// Brings a part of a file into the page cache.
fn warm(mapping: &Mapping, mut at: u64, length: usize) {
    let end = at + length as u64;
    let Ok(file) = mapping.try_clone() else {
        return;
    };
    let _ = rustix::fs::fadvise(
        &file,
        at,
        std::num::NonZeroU64::new(2 * length as u64),
        rustix::fs::Advice::WillNeed,
    );
    let mut buffer = [0; 16 << 10];
    while at < end {
        match file.read_at(&mut buffer, at) {
            Ok(n) if n > 0 => at += n as u64,
            _ => return,
        }
    }
}

impl ReadFile {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.at >= self.end && self.reading.is_none() {
            return Poll::Ready(None);
        }
        let (at, end) = (self.at, self.end);
        let file = &self.file;
        let reading = self.reading.get_or_insert_with(|| {
            let file = Arc::clone(file);
            tokio::task::spawn_blocking(move || {
                let length = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
                let mut piece = vec![0; length];
                file.read_exact_at(&mut piece, at)?;
                Ok(piece.into())
            })
        });
        let read = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        match read {
            Ok(Ok(piece)) => {
                self.at += piece.len() as u64;
                Poll::Ready(Some(Ok(piece)))
            }
            Ok(Err(error)) => Poll::Ready(Some(Err(error))),
            Err(error) => Poll::Ready(Some(Err(io::Error::other(error)))),
        }
    }
}

impl Stream {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let piece = ready!(self.pieces.poll_recv(cx));
        match (piece, &mut self.left) {
            (Some(Ok(piece)), Some(left)) => {
                let length = piece.len() as u64;
                if length > *left {
                    return Poll::Ready(Some(Err(io::Error::other("more came than was announced"))));
                }
                *left -= length;
                Poll::Ready(Some(Ok(piece)))
            }
            (None, Some(left)) if *left > 0 => Poll::Ready(Some(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "less came than was announced",
            )))),
            (piece, _) => Poll::Ready(piece),
        }
    }
}
