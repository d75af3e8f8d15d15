//! Taking a connection out of HTTP's hands in the middle of a request.
//!
//! dockerd hijacks the connection of every attach and exec, whether or not the client asked to leave HTTP by `Upgrade`:
//! what follows the request is the program's input, and the answer is a head without a length, with raw bytes behind it.
//! Clients from before `Upgrade` (and people with `nc`) rely on that. hyper gives a connection away only after a `101`, so
//! it is handed one that can be taken from it: from then on it sees the end of its input and writes into the void.
//!
//! What hyper has read beyond the request is input, too. Therefore the last bytes it was given are remembered, until the
//! next request begins.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::conn::Conn;

/// As much is remembered at most: more than the head and the body of any request whose connection is taken.
const REMEMBERED: usize = 128 * 1024;

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[derive(Debug)]
struct Slot {
    /// None once it was taken.
    conn: Option<Conn>,
    /// What was read last.
    seen: Vec<u8>,
}

/// A connection that can be taken from whoever reads and writes it.
#[derive(Debug)]
pub struct Held(Arc<Mutex<Slot>>);

/// What of a request follows its head.
#[derive(Debug)]
pub enum Body {
    /// So many bytes.
    Length(usize),
    /// Chunks, to the last one.
    Chunked,
}

/// The right to take it.
#[derive(Debug, Clone)]
pub struct Taker(Arc<Mutex<Slot>>);

impl Held {
    /// Holds a connection.
    pub fn new(conn: Conn) -> (Self, Taker) {
        let slot = Arc::new(Mutex::new(Slot {
            conn: Some(conn),
            seen: Vec::new(),
        }));
        (Self(Arc::clone(&slot)), Taker(slot))
    }

    /// The connection, when HTTP is over with it.
    pub fn into_conn(self) -> Option<Conn> {
        locked(&self.0).conn.take()
    }

    fn with<T>(
        &self,
        nothing: T,
        act: impl FnOnce(Pin<&mut Conn>, &mut Vec<u8>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut slot = locked(&self.0);
        let Slot { conn, seen } = &mut *slot;
        match conn {
            Some(conn) => act(Pin::new(conn), seen),
            None => Poll::Ready(Ok(nothing)),
        }
    }
}

fn locked(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    // A poll that panicked takes its connection down with it.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Taker {
    /// A request has begun, with this method and target: of what was read, only what comes after its head is of interest
    /// from now on. (The rest of an earlier request's body may stand before it.)
    pub fn request_begins(&self, method: &str, target: &str) {
        let mut slot = locked(&self.0);
        let line = format!("{method} {target} HTTP/");
        let head = find(&slot.seen, line.as_bytes()).and_then(|start| {
            let end = find(slot.seen.get(start..)?, b"\r\n\r\n")?;
            Some(start + end + 4)
        });
        match head {
            Some(end) => drop(slot.seen.drain(..end)),
            None => slot.seen.clear(),
        }
    }

    /// Takes the connection, with the input that was read already and is not the request's body. None: somebody else has it.
    pub fn take(&self, body: &Body) -> Option<(Conn, Bytes)> {
        let mut slot = locked(&self.0);
        let conn = slot.conn.take()?;
        let seen = std::mem::take(&mut slot.seen);
        let mut seen = Bytes::from(seen);
        let body = match body {
            Body::Length(length) => *length,
            Body::Chunked => find(&seen, LAST_CHUNK).map_or(seen.len(), |at| at + LAST_CHUNK.len()),
        };
        let input = seen.split_off(body.min(seen.len()));
        Some((conn, input))
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

impl AsyncRead for Held {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with((), |conn, seen| {
            let before = buffer.filled().len();
            let read = conn.poll_read(cx, buffer);
            let new = &buffer.filled()[before..];
            if new.len() + seen.len() > REMEMBERED {
                // Somebody sends an archive: what matters comes after it.
                seen.clear();
            }
            if new.len() <= REMEMBERED {
                seen.extend_from_slice(new);
            }
            read
        })
    }
}

impl AsyncWrite for Held {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.with(buffer.len(), |conn, _| conn.poll_write(cx, buffer))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = buffers.iter().map(|buffer| buffer.len()).sum();
        self.with(all, |conn, _| conn.poll_write_vectored(cx, buffers))
    }

    fn is_write_vectored(&self) -> bool {
        locked(&self.0)
            .conn
            .as_ref()
            .is_none_or(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with((), |conn, _| conn.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with((), |conn, _| conn.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn what_was_read_ahead_goes_along() {
        let (mut peer, conn) = UnixStream::pair().unwrap();
        let (mut held, taker) = Held::new(Conn::Unix(conn));
        let mut buffer = vec![0; 1000];
        peer.write_all(b"GET /_ping HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(held.read(&mut buffer).await.unwrap(), 23);
        taker.request_begins("GET", "/_ping");
        peer.write_all(b"\r\n\r\nPOST /x HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}input")
            .await
            .unwrap();
        assert_ne!(held.read(&mut buffer).await.unwrap(), 0);
        taker.request_begins("POST", "/x");
        peer.write_all(b" more").await.unwrap();
        assert_ne!(held.read(&mut buffer).await.unwrap(), 0);
        let (mut conn, first) = taker.take(&Body::Length(2)).unwrap();
        assert_eq!(&first[..], b"input more");
        // Who held it is at the end, and is heard by nobody.
        assert_eq!(held.read(&mut buffer).await.unwrap(), 0);
        held.write_all(b"lost").await.unwrap();
        conn.write_all(b"answer").await.unwrap();
        let read = peer.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..read], b"answer");
        assert!(taker.take(&Body::Length(0)).is_none());
    }
}
