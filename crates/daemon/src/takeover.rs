//! Taking a connection out of HTTP's hands in the middle of a request.
//!
//! dockerd hijacks the connection of every attach and exec, whether or not the client asked to leave HTTP by `Upgrade`:
//! what follows the request is the program's input, and the answer is a head without a length, with raw bytes behind it.
//! Clients from before `Upgrade` (and people with `nc`) rely on that. hyper gives a connection away only after a `101`, so
//! it is handed one that can be taken from it: from then on it sees the end of its input and writes into the void.
//!
//! What hyper has read beyond the request is input, too. Therefore heads are remembered as they come, and what comes after that
//! of a request whose connection may be taken. Of other requests nothing is, until they are answered: a client that sends a
//! request to be taken before it has the answer to the one before may lose input that was read together with it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::Method;
use hyper::header::UPGRADE;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use crate::conn::Conn;

/// As much is remembered at most: more than the head and the body of any request whose connection is taken.
const REMEMBERED: usize = 128 * 1024;

#[derive(Debug)]
struct Slot {
    /// None once it was taken.
    conn: Option<Conn>,
    /// What was read last.
    seen: Vec<u8>,
    memory: Memory,
    /// Room for a connection, which this is for as long as it is anybody's.
    permit: Permit,
}

/// Whether what is read is remembered.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Memory {
    /// It is.
    On,
    /// Not before the request under way is answered.
    UntilAnswered,
    /// Never again: the connection has left HTTP.
    Off,
}

/// What counts a connection, when something does.
pub type Permit = Option<OwnedSemaphorePermit>;

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
    pub fn new(conn: Conn, permit: impl Into<Permit>) -> (Self, Taker) {
        let slot = Arc::new(Mutex::new(Slot {
            conn: Some(conn),
            seen: Vec::new(),
            memory: Memory::On,
            permit: permit.into(),
        }));
        (Self(Arc::clone(&slot)), Taker(slot))
    }

    /// The connection, when HTTP is over with it.
    pub fn into_conn(self) -> Option<(Conn, Permit)> {
        let mut slot = locked(&self.0);
        Some((slot.conn.take()?, slot.permit.take()))
    }

    fn with<T>(
        &self,
        nothing: T,
        act: impl FnOnce(Pin<&mut Conn>, &mut Vec<u8>, &mut Memory) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut slot = locked(&self.0);
        let Slot {
            conn, seen, memory, ..
        } = &mut *slot;
        match conn {
            Some(conn) => act(Pin::new(conn), seen, memory),
            None => Poll::Ready(Ok(nothing)),
        }
    }
}

fn locked(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    // A poll that panicked takes its connection down with it.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Taker {
    /// A request has begun: of what was read, only what comes after its head is of interest from now on, and that only if its
    /// connection may be taken. (The rest of an earlier request's body may stand before it.)
    pub fn request_begins<B>(&self, request: &hyper::Request<B>) {
        let mut slot = locked(&self.0);
        let path = request.uri().path();
        let may_be_taken = request.method() == Method::POST
            && (path.ends_with("/attach") || path.ends_with("/start"))
            && !request.headers().contains_key(UPGRADE);
        if !may_be_taken {
            slot.seen = Vec::new();
            slot.memory = Memory::UntilAnswered;
            return;
        }
        slot.memory = Memory::On;
        let line = format!("POST {} HTTP/", request.uri());
        let head = find(&slot.seen, line.as_bytes()).and_then(|start| {
            let end = end_of_head(slot.seen.get(start..)?)?;
            Some(start + end)
        });
        match head {
            Some(end) => drop(slot.seen.drain(..end)),
            None => slot.seen.clear(),
        }
    }

    /// The connection leaves HTTP by an upgrade, which keeps what was read ahead itself.
    pub fn forget(&self) {
        let mut slot = locked(&self.0);
        slot.seen = Vec::new();
        slot.memory = Memory::Off;
    }

    /// The connection, if nobody has taken it.
    pub fn rest(&self) -> Option<Conn> {
        locked(&self.0).conn.take()
    }

    /// Takes the connection, with the input that was read already and is not the request's body. None: somebody else has it.
    pub fn take(&self, body: &Body) -> Option<(Conn, Bytes, Permit)> {
        let mut slot = locked(&self.0);
        let conn = slot.conn.take()?;
        let seen = std::mem::take(&mut slot.seen);
        let mut seen = Bytes::from(seen);
        let body = match body {
            Body::Length(length) => *length,
            Body::Chunked => end_of_chunks(&seen).unwrap_or(seen.len()),
        };
        let input = seen.split_off(body.min(seen.len()));
        Some((conn, input, slot.permit.take()))
    }
}

/// Where the head ends that `text` begins with: behind an empty line. Lines may end without a carriage return, as hyper has it.
fn end_of_head(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = line(text.get(at..)?)?;
        at += line.len() + 1;
        if line.trim_ascii_end().is_empty() {
            return Some(at);
        }
    }
}

/// Where a body of chunks ends (RFC 9112, section 7.1).
fn end_of_chunks(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let head = line(text.get(at..)?)?;
        at += head.len() + 1;
        let size = head.split(|&byte| byte == b';').next().unwrap_or_default();
        match usize::from_str_radix(std::str::from_utf8(size).ok()?.trim(), 16).ok()? {
            // Trailers end as a head does.
            0 => return Some(at + end_of_head(text.get(at..)?)?),
            size => at = at.checked_add(size)?.checked_add(2)?,
        }
    }
}

/// The first line, without its newline.
fn line(text: &[u8]) -> Option<&[u8]> {
    Some(&text[..text.iter().position(|&byte| byte == b'\n')?])
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

impl Memory {
    fn answered(&mut self) {
        if *self == Self::UntilAnswered {
            *self = Self::On;
        }
    }
}

impl AsyncRead for Held {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with((), |conn, seen, memory| {
            let before = buffer.filled().len();
            let read = conn.poll_read(cx, buffer);
            if *memory != Memory::On {
                return read;
            }
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
        self.with(buffer.len(), |conn, _, memory| {
            memory.answered();
            conn.poll_write(cx, buffer)
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = buffers.iter().map(|buffer| buffer.len()).sum();
        self.with(all, |conn, _, memory| {
            memory.answered();
            conn.poll_write_vectored(cx, buffers)
        })
    }

    fn is_write_vectored(&self) -> bool {
        locked(&self.0)
            .conn
            .as_ref()
            .is_none_or(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with((), |conn, _, _| conn.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with((), |conn, _, _| conn.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    fn request(method: &str, target: &str) -> hyper::Request<()> {
        hyper::Request::builder()
            .method(method)
            .uri(target)
            .body(())
            .unwrap()
    }

    #[test]
    fn heads_and_chunks_end_where_they_do() {
        assert_eq!(end_of_head(b"POST / HTTP/1.1\nA: b\n\ninput\n\n"), Some(22));
        assert_eq!(end_of_head(b"POST / HTTP/1.1\r\n\r\ninput"), Some(19));
        assert_eq!(end_of_head(b"POST / HTTP/1.1\r\n"), None);
        let body = b"7\r\n0\r\n\r\n{}\r\n3;x=y\r\nabc\r\n0\r\n\r\n";
        assert_eq!(end_of_chunks(&[&body[..], b"input"].concat()), Some(body.len()));
        assert_eq!(end_of_chunks(&body[..body.len() - 1]), None);
        assert_eq!(end_of_chunks(b"ffffffffffffffff\r\n"), None);
        assert_eq!(end_of_chunks(b"x\r\n"), None);
    }

    #[tokio::test]
    async fn nothing_is_remembered_of_what_is_not_taken() {
        let (mut peer, conn) = UnixStream::pair().unwrap();
        let (mut held, taker) = Held::new(Conn::Unix(conn), None);
        let mut buffer = vec![0; 1000];
        let mut read_and_remember = async |held: &mut Held| {
            peer.write_all(b"bytes").await.unwrap();
            assert_eq!(held.read(&mut buffer).await.unwrap(), 5);
            locked(&held.0).seen.len()
        };
        assert_eq!(read_and_remember(&mut held).await, 5);
        taker.request_begins(&request("POST", "/build"));
        assert_eq!(read_and_remember(&mut held).await, 0);
        held.write_all(b"answer").await.unwrap();
        assert_eq!(read_and_remember(&mut held).await, 5);
        taker.forget();
        held.write_all(b"answer").await.unwrap();
        assert_eq!(read_and_remember(&mut held).await, 0);
    }

    #[tokio::test]
    async fn what_was_read_ahead_goes_along() {
        let (mut peer, conn) = UnixStream::pair().unwrap();
        let (mut held, taker) = Held::new(Conn::Unix(conn), None);
        let mut buffer = vec![0; 1000];
        peer.write_all(b"GET /_ping HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(held.read(&mut buffer).await.unwrap(), 23);
        taker.request_begins(&request("GET", "/_ping"));
        held.write_all(b"answer").await.unwrap();
        assert_eq!(peer.read(&mut buffer).await.unwrap(), 6);
        peer.write_all(b"\r\n\r\nPOST /x/attach HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}input")
            .await
            .unwrap();
        assert_ne!(held.read(&mut buffer).await.unwrap(), 0);
        taker.request_begins(&request("POST", "/x/attach"));
        peer.write_all(b" more").await.unwrap();
        assert_ne!(held.read(&mut buffer).await.unwrap(), 0);
        let (mut conn, first, _) = taker.take(&Body::Length(2)).unwrap();
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
