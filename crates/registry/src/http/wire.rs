//! A plain TCP connection under hyper that sends files without copying them.
//!
//! Bodies that are files reach [`Wire::poll_write_vectored`] as slices of a [`Mapping`]. They are recognized by their
//! address and sent with `sendfile(2)`: the pages go from the page cache to the socket. Anything else is written as
//! it is, and so would be a mapped slice that is not recognized.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::mapping::Mapping;
use super::patience::{Patience, queued};
use crate::metrics::Counter;

/// The kernel sends at most this much at once; it keeps one client from holding a thread.
const MOST: usize = 1 << 20;

/// The files that are being sent on a connection.
#[derive(Debug, Clone, Default)]
pub struct Files(Arc<Mutex<Vec<Weak<Mapping>>>>);

impl Files {
    /// From now on this file's memory is recognized.
    pub fn add(&self, mapping: &Arc<Mapping>) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|file| file.strong_count() > 0);
        files.push(Arc::downgrade(mapping));
    }

    fn find(&self, memory: &[u8]) -> Option<(Arc<Mapping>, u64)> {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.iter().find_map(|file| {
            let file = file.upgrade()?;
            let offset = file.offset_of(memory)?;
            Some((file, offset))
        })
    }
}

/// The connection.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    files: Files,
    sent: Counter,
    patience: Patience,
}

impl Wire {
    /// Wraps a connection; `sent` counts bytes.
    pub fn new(stream: TcpStream, files: Files, sent: Counter, patience: Patience) -> Self {
        Self {
            stream,
            files,
            sent,
            patience,
        }
    }
}

impl Wire {
    fn judge<T>(&mut self, cx: &mut Context<'_>, attempt: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.patience.judge(cx, attempt, &self.stream, queued)
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: the read below only ever initializes bytes.
        let mut target = ReadBuf::uninit(unsafe { buffer.as_mut() });
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut target))?;
        let filled = target.filled().len();
        // SAFETY: this many bytes were filled.
        unsafe { buffer.advance(filled) };
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.stream).poll_write(cx, bytes);
        let sent = ready!(self.judge(cx, attempt))?;
        self.sent.add(sent as u64);
        Poll::Ready(Ok(sent))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // What is before the first file, and that file.
        let mut plain = 0;
        let mut file = None;
        for slice in slices {
            if slice.is_empty() && plain == 0 && file.is_none() {
                plain += 1;
                continue;
            }
            file = self.files.find(slice).map(|found| (found, slice.len()));
            if file.is_some() {
                break;
            }
            plain += 1;
        }
        let Some(((mapping, offset), length)) = file else {
            let attempt = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
            let sent = ready!(self.judge(cx, attempt))?;
            self.sent.add(sent as u64);
            return Poll::Ready(Ok(sent));
        };
        let head = &slices[..plain];
        let before: usize = head.iter().map(|slice| slice.len()).sum();
        loop {
            let attempt = self.stream.poll_write_ready(cx);
            ready!(self.judge(cx, attempt))?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                if before > 0 {
                    // More follows at once: one segment, not two.
                    let mut control = rustix::net::SendAncillaryBuffer::default();
                    let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
                    return rustix::net::sendmsg(&self.stream, head, &mut control, flags)
                        .map_err(io::Error::from);
                }
                let mut offset = offset;
                let sent =
                    rustix::fs::sendfile(&self.stream, mapping.file(), Some(&mut offset), length.min(MOST))?;
                if sent == 0 {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "a stored blob became shorter",
                    ));
                }
                Ok(sent)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(sent) => {
                    self.sent.add(sent as u64);
                    return Poll::Ready(Ok(sent));
                }
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let attempt = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.judge(cx, attempt)
    }
}
