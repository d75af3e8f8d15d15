//! Bodies: of responses (empty, whole, or streamed through a channel) and, for work on blocking threads,
//! request bodies as [`std::io::Read`] and response bodies as [`std::io::Write`].
//!
//! A client that goes away closes its channel: the next write of the producer fails and ends the work.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::Stream;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;

/// Pieces of this size travel between blocking producers and the connection.
const PIECE: usize = 64 * 1024;
/// Pieces under way at most.
const DEPTH: usize = 4;

/// The most that is read only to be forgotten.
const MAX_DISCARDED: usize = 4 * 1024 * 1024;
/// And for how long.
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// The body of a response.
pub enum Body {
    /// Nothing.
    Empty,
    /// Everything at once; `None` once it was sent.
    Whole(Option<Bytes>),
    /// Piece by piece, from another task or thread.
    Channel(mpsc::Receiver<io::Result<Bytes>>),
    /// Piece by piece, made while the connection asks for it.
    Stream(Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Whole(_) => "Whole",
            Self::Channel(_) => "Channel",
            Self::Stream(_) => "Stream",
        })
    }
}

impl Body {
    /// A body of known content.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// A streamed body and the end that feeds it.
    pub fn channel() -> (Feed, Self) {
        let (sender, receiver) = mpsc::channel(DEPTH);
        (Feed { sender }, Self::Channel(receiver))
    }

    /// A body of what a stream gives.
    pub fn stream(stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self::Stream(Box::pin(stream))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Channel(receiver) => receiver
                .poll_recv(cx)
                .map(|item| item.map(|item| item.map(Frame::data))),
            Self::Stream(stream) => stream
                .as_mut()
                .poll_next(cx)
                .map(|item| item.map(|item| item.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_none(),
            Self::Channel(_) | Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Channel(_) | Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// The producing end of a streamed body.
#[derive(Debug)]
pub struct Feed {
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Feed {
    /// This end as a [`io::Write`] for a blocking thread.
    pub fn writer(self) -> FeedWriter {
        FeedWriter {
            feed: self,
            buffer: BytesMut::new(),
        }
    }

    fn send_blocking(&self, piece: Bytes) -> io::Result<()> {
        self.sender.blocking_send(Ok(piece)).map_err(|_| gone())
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the client closed the connection")
}

/// Writes into a response body from a blocking thread. Must be flushed at the end.
#[derive(Debug)]
pub struct FeedWriter {
    feed: Feed,
    buffer: BytesMut,
}

impl FeedWriter {
    /// Breaks the stream off.
    pub fn abort(self, error: io::Error) {
        // A client that is gone does not miss it.
        let _ = self.feed.sender.blocking_send(Err(error));
    }
}

impl io::Write for FeedWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(PIECE);
        }
        let room = PIECE.saturating_sub(self.buffer.len());
        let taken = room.min(data.len());
        self.buffer.extend_from_slice(&data[..taken]);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.feed.send_blocking(self.buffer.split().freeze())
    }
}

/// Reads on for a while and forgets what comes. Clients that are still sending when they are answered may take the
/// closed connection for a failure and never look at the answer.
pub async fn discard(body: &mut Incoming) {
    let rest = async {
        let mut total = 0;
        while total < MAX_DISCARDED
            && let Some(Ok(frame)) = body.frame().await
        {
            total += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Whatever comes of it: it is a courtesy.
    let _ = tokio::time::timeout(DISCARD_TIME, rest).await;
}

/// A request body read from a blocking thread. Dropping it stops the transfer.
#[derive(Debug)]
pub struct BodyReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl BodyReader {
    /// Starts to pump `body` towards the reader.
    pub fn new(mut body: Incoming) -> Self {
        let (sender, receiver) = mpsc::channel(DEPTH);
        tokio::spawn(async move {
            while let Some(frame) = body.frame().await {
                let piece = match frame {
                    Ok(frame) => match frame.into_data() {
                        Ok(data) => Ok(data),
                        Err(_trailers) => continue,
                    },
                    Err(error) => Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!("the request body broke off: {error}"),
                    )),
                };
                let failed = piece.is_err();
                if sender.send(piece).await.is_err() {
                    discard(&mut body).await;
                    break;
                }
                if failed {
                    break;
                }
            }
        });
        Self::of(receiver)
    }

    /// Reads what comes through a channel.
    pub fn of(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self {
            receiver,
            piece: Bytes::new(),
        }
    }
}

impl io::Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let taken = self.piece.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&self.piece[..taken]);
        self.piece.advance(taken);
        Ok(taken)
    }
}
