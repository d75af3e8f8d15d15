//! A client's connection: a Unix or a TCP stream, or TLS over one.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A client's connection.
#[derive(Debug)]
pub enum Conn {
    /// Over a Unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
    /// Over TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Calls the same method on whichever stream it is.
macro_rules! any {
    ($conn:expr, $stream:ident => $call:expr) => {
        match $conn {
            Conn::Unix($stream) => $call,
            Conn::Tcp($stream) => $call,
            Conn::Tls($stream) => $call,
        }
    };
}

impl Conn {
    /// The connection as a socket whose bytes are the client's: those of TLS pass through one more.
    pub fn into_raw(self) -> io::Result<RawConn> {
        Ok(match self {
            Self::Unix(stream) => RawConn::Unix(stream),
            Self::Tcp(stream) => RawConn::Tcp(stream),
            Self::Tls(mut stream) => {
                let (ours, mut theirs) = UnixStream::pair()?;
                tokio::spawn(async move {
                    // How it ends is seen by both sides.
                    let _ = tokio::io::copy_bidirectional(&mut *stream, &mut theirs).await;
                });
                RawConn::Unix(ours)
            }
        })
    }
}

/// A socket with a client's bytes, which tells how much of them was read.
#[derive(Debug)]
pub enum RawConn {
    /// A Unix socket.
    Unix(UnixStream),
    /// TCP.
    Tcp(TcpStream),
}

/// The same for the two kinds.
macro_rules! either {
    ($conn:expr, $stream:ident => $call:expr) => {
        match $conn {
            RawConn::Unix($stream) => $call,
            RawConn::Tcp($stream) => $call,
        }
    };
}

impl RawConn {
    /// Waits until there is something to read.
    pub async fn readable(&self) -> io::Result<()> {
        either!(self, stream => stream.readable().await)
    }

    /// Waits until something can be written.
    pub async fn writable(&self) -> io::Result<()> {
        either!(self, stream => stream.writable().await)
    }

    /// Reads what is there.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        either!(self, stream => stream.try_read(buffer))
    }

    /// How many bytes that were written have not arrived: over a Unix socket those the client has not read, over TCP
    /// those its kernel has not acknowledged (unix(7), tcp(7): `SIOCOUTQ`). The unit is the kernel's own; 0 is exact.
    pub fn unread(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open while `self` is borrowed, and the call writes one int, which `bytes` is.
        let done = unsafe { libc::ioctl(self.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        if done == 0 {
            usize::try_from(bytes).unwrap_or(0)
        } else {
            0
        }
    }

    /// Writes what there is room for.
    pub fn try_write(&self, buffer: &[u8]) -> io::Result<usize> {
        either!(self, stream => stream.try_write(buffer))
    }
}

impl AsFd for RawConn {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        either!(self, stream => stream.as_fd())
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        any!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        any!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buffer))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        any!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, buffers))
    }

    fn is_write_vectored(&self) -> bool {
        any!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        any!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        any!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}
