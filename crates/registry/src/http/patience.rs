//! Clients that take nothing of an answer are given up, so that they hold no connection, file or memory for ever. How
//! slow they are otherwise does not matter.
//!
//! Where the connection itself is full, [`Patience`] sees it. On an HTTP/2 connection a client can let a stream starve
//! while the connection is idle: there, [`Appetite`] watches the bodies.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::Body;

fn given_up() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of an answer")
}

/// How many bytes wait in a connection for being taken, if that can be told.
pub type Waiting<S> = fn(&S) -> Option<u32>;

/// Bytes that the kernel holds for the other end (tcp(7), `SIOCOUTQ`). A full connection can be written to again only when
/// a good part of it was taken; this falls with every byte.
pub fn queued(stream: &TcpStream) -> Option<u32> {
    let mut queued: libc::c_int = 0;
    // SAFETY: the request writes one int, to a live one.
    let result = unsafe { libc::ioctl(stream.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
    (result == 0).then(|| u32::try_from(queued).ok())?
}

/// How long nothing was taken from a full connection.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    full: Option<(Pin<Box<Sleep>>, Option<u32>)>,
}

impl Patience {
    /// Patience of so long.
    pub fn new(limit: Duration) -> Self {
        Self { limit, full: None }
    }

    /// What became of an attempt to write; an error when nothing was taken for too long.
    pub fn judge<T, S>(
        &mut self,
        cx: &mut Context<'_>,
        attempt: Poll<io::Result<T>>,
        stream: &S,
        waiting: Waiting<S>,
    ) -> Poll<io::Result<T>> {
        if attempt.is_ready() {
            self.full = None;
            return attempt;
        }
        let limit = self.limit;
        let (sleep, before) = self
            .full
            .get_or_insert_with(|| (Box::pin(tokio::time::sleep(limit)), waiting(stream)));
        loop {
            ready!(sleep.as_mut().poll(cx));
            match (waiting(stream), *before) {
                (Some(now), Some(then)) if now < then => {
                    *before = Some(now);
                    sleep.as_mut().reset(Instant::now() + limit);
                }
                _ => return Poll::Ready(Err(given_up())),
            }
        }
    }
}

/// A connection that is written to with patience.
#[derive(Debug)]
pub struct Patient<S> {
    stream: S,
    patience: Patience,
    waiting: Waiting<S>,
}

impl<S> Patient<S> {
    /// Wraps a connection.
    pub fn new(stream: S, limit: Duration, waiting: Waiting<S>) -> Self {
        Self {
            stream,
            patience: Patience::new(limit),
            waiting,
        }
    }

    fn judge<T>(&mut self, cx: &mut Context<'_>, attempt: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.patience.judge(cx, attempt, &self.stream, self.waiting)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, attempt)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.judge(cx, attempt)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let attempt = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, attempt)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let attempt = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.judge(cx, attempt)
    }
}

/// What a connection takes of the bodies that are offered to it.
#[derive(Debug)]
pub struct Appetite {
    begin: Instant,
    bodies: Mutex<Vec<Weak<Since>>>,
}

/// Since when a piece of a body waits to be taken, by [`Appetite::now`]; 0 while there is none.
type Since = AtomicU64;

impl Appetite {
    /// Of a new connection.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            begin: Instant::now(),
            bodies: Mutex::default(),
        })
    }

    /// Milliseconds, never 0.
    fn now(&self) -> u64 {
        let elapsed = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        elapsed.saturating_add(1)
    }

    /// Offers a body.
    pub fn offer(self: &Arc<Self>, body: Body) -> Offered {
        let since = Arc::new(Since::new(self.now()));
        let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        bodies.retain(|body| body.strong_count() > 0);
        bodies.push(Arc::downgrade(&since));
        Offered {
            body,
            appetite: Arc::clone(self),
            since,
            last: None,
        }
    }

    /// For how long the body that waits longest has been waiting to be taken.
    fn longest(&self) -> Duration {
        let bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = bodies.iter().filter_map(|body| {
            let since = body.upgrade()?.load(Ordering::Relaxed);
            (since > 0).then_some(since)
        });
        let waited = waiting.min().map_or(0, |since| self.now().saturating_sub(since));
        Duration::from_millis(waited)
    }

    /// Resolves when nothing was taken for so long of a body of which something could be taken, whatever becomes of the
    /// others: a client that keeps one answer in memory for ever can keep as many as there may be.
    pub async fn lost(&self, limit: Duration) -> io::Error {
        loop {
            let waited = self.longest();
            if waited >= limit {
                return given_up();
            }
            tokio::time::sleep((limit - waited).max(limit / 8)).await;
        }
    }
}

/// A body that an [`Appetite`] watches.
///
/// Its last byte is a piece of its own. A piece is handed over whole as soon as the client wants one byte of it, and with
/// the last piece the body is out of sight: what comes before it was taken by then.
#[derive(Debug)]
pub struct Offered {
    body: Body,
    appetite: Arc<Appetite>,
    since: Arc<Since>,
    last: Option<Bytes>,
}

impl hyper::body::Body for Offered {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let mut polled = match this.last.take() {
            Some(last) => Poll::Ready(Some(Ok(Frame::data(last)))),
            None => Pin::new(&mut this.body).poll_frame(cx),
        };
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(piece) = frame.data_mut()
            && piece.len() > 1
            && this.body.is_end_stream()
        {
            this.last = Some(piece.split_off(piece.len() - 1));
        }
        // What is not there yet cannot be taken.
        let since = match polled {
            Poll::Ready(_) => this.appetite.now(),
            Poll::Pending => 0,
        };
        this.since.store(since, Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.last {
            // Nothing comes after it.
            Some(last) => SizeHint::with_exact(last.len() as u64),
            None => self.body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LIMIT: Duration = Duration::from_millis(80);

    #[tokio::test]
    async fn who_takes_slowly_is_served_and_who_takes_nothing_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut patient = Patient::new(ours, LIMIT, |_| None);
        let reading = tokio::spawn(async move {
            let mut got = [0; 16];
            for _ in 0..6 {
                tokio::time::sleep(LIMIT / 3).await;
                theirs.read_exact(&mut got).await.unwrap();
            }
            theirs
        });
        patient.write_all(&[7; 96]).await.unwrap();
        let theirs = reading.await.unwrap();
        let error = patient.write_all(&[7; 96]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }

    #[tokio::test]
    async fn bodies_that_nobody_takes() {
        let appetite = Appetite::new();
        let waits = |time| tokio::time::timeout(time, appetite.lost(LIMIT));
        assert!(waits(LIMIT * 3).await.is_err(), "nothing was offered");
        let (send, receive) = tokio::sync::mpsc::channel(1);
        let mut body = appetite.offer(Body::stream(receive, None));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(hyper::body::Body::poll_frame(Pin::new(&mut body), &mut cx).is_pending());
        assert!(waits(LIMIT * 3).await.is_err(), "nothing is there yet");
        send.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
        assert!(hyper::body::Body::poll_frame(Pin::new(&mut body), &mut cx).is_ready());
        assert!(waits(LIMIT * 3).await.is_ok(), "nothing more is taken");
        let mut other = appetite.offer(Body::from(vec![7; 3]));
        let taking = async {
            for _ in 0..100 {
                tokio::time::sleep(LIMIT / 4).await;
                other = appetite.offer(Body::empty());
            }
        };
        tokio::select! {
            lost = waits(LIMIT * 3) => assert!(lost.is_ok(), "others are taken, this one is not"),
            () = taking => {}
        }
        drop((body, other));
        assert!(waits(LIMIT * 3).await.is_err(), "nothing is offered any more");
    }

    #[test]
    fn the_last_byte_comes_alone() {
        use hyper::body::Body as _;
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for length in [0u8, 1, 2, 5] {
            let bytes: Vec<u8> = (0..length).collect();
            let mut body = Appetite::new().offer(Body::from(bytes.clone()));
            let mut got = Vec::new();
            while !body.is_end_stream() {
                assert_eq!(
                    body.size_hint().exact(),
                    Some(u64::from(length) - got.len() as u64)
                );
                let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut cx) else {
                    panic!("{got:?} of {length} bytes");
                };
                let piece = frame.into_data().unwrap();
                assert!(piece.len() == 1 || !body.is_end_stream());
                got.extend_from_slice(&piece);
            }
            assert_eq!(got, bytes);
        }
    }
}
