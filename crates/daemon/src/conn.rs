//! A client's connection: a Unix or a TCP stream, or TLS over one.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio_rustls::server::TlsStream;

/// How long the end of TLS may take to a client that reads nothing.
const LAST: Duration = Duration::from_secs(10);
/// How long what a client still sends is read and dropped, so that it gets what it was sent last: a TCP socket that is closed
/// with unread bytes resets its connection.
pub const LINGER: Duration = Duration::from_millis(500);
/// How long a program may take to read what a client sent over TLS before it went away.
const GONE: Duration = Duration::from_secs(30);

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
            Self::Tls(stream) => {
                let (ours, theirs) = UnixStream::pair()?;
                let network = stream.get_ref().0.as_fd().try_clone_to_owned()?;
                tokio::spawn(async move {
                    let gone = async {
                        // Where it cannot be watched, its end shows when something is written.
                        if hung_up(&network).await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    };
                    carry(*stream, theirs, gone).await;
                });
                RawConn::Tls(ours)
            }
        })
    }

    /// Whether whoever is on the way can read and write it: TCP without TLS.
    pub fn is_in_clear(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

/// Carries a client's bytes between TLS and `theirs`, whose other end is a program's.
///
/// The end of input, or a program that takes none, is no end of the output. The end of output is the end of everything, and
/// so is a client that is `gone`, once its input was taken.
async fn carry<S: AsyncRead + AsyncWrite>(stream: S, theirs: UnixStream, gone: impl Future<Output = ()>) {
    let (mut from_client, mut to_client) = tokio::io::split(stream);
    let (mut output, mut input) = theirs.into_split();
    {
        let (over, is_over) = oneshot::channel::<()>();
        let inward = async {
            // However it ends, there is no more of it.
            let _ = tokio::io::copy(&mut from_client, &mut input).await;
            let _ = input.shutdown().await;
            drop(over);
            std::future::pending::<()>().await;
        };
        let outward = async {
            // Not `copy`, which gives up what it has not written yet when reading fails, as it does after input nobody took.
            let mut piece = vec![0; 16 << 10];
            while let Ok(read @ 1..) = output.read(&mut piece).await {
                if to_client.write_all(&piece[..read]).await.is_err() || to_client.flush().await.is_err() {
                    break;
                }
            }
        };
        let gone = async {
            gone.await;
            let _ = tokio::time::timeout(GONE, is_over).await;
        };
        tokio::select! {
            () = inward => {}
            () = outward => {}
            () = gone => return,
        }
    }
    drop((output, input));
    let _ = tokio::time::timeout(LAST, to_client.shutdown()).await;
    drain(&mut from_client).await;
}

/// Reads and drops, for [`LINGER`] at most, to the client's end.
pub async fn drain(client: &mut (impl AsyncRead + Unpin)) {
    let dropped = async { tokio::io::copy(client, &mut tokio::io::sink()).await };
    let _ = tokio::time::timeout(LINGER, dropped).await;
}

/// Resolves when the client, which has shut down its writing side, closes the other as well.
///
/// Registered for nothing but what epoll reports unasked, a hang-up: the end of the client's input would otherwise
/// stay ready for ever. The registration is its own; the stream's is in the hands of the writer.
pub async fn hung_up(client: &impl AsFd) -> io::Result<()> {
    let duplicate = client.as_fd().try_clone_to_owned()?;
    // SAFETY: the duplicate is owned by the registration and by nothing else, so it stays the same open descriptor
    // until it is taken off again.
    let watched = unsafe { AsyncFd::register_with_interest(duplicate, Interest::PRIORITY) }?;
    loop {
        let mut guard = watched.ready(Interest::PRIORITY).await?;
        let mut fds = [PollFd::new(&watched, PollFlags::empty())];
        poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )?;
        if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return Ok(());
        }
        // Out-of-band data, which nobody reads.
        guard.clear_ready();
    }
}

/// A socket with a client's bytes, which tells how much of them was read.
#[derive(Debug)]
pub enum RawConn {
    /// A Unix socket.
    Unix(UnixStream),
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket, beyond which TLS is spoken over TCP.
    Tls(UnixStream),
}

/// The same for the three kinds.
macro_rules! either {
    ($conn:expr, $stream:ident => $call:expr) => {
        match $conn {
            RawConn::Unix($stream) => $call,
            RawConn::Tcp($stream) => $call,
            RawConn::Tls($stream) => $call,
        }
    };
}

impl RawConn {
    /// Whether a network is on the way to the client, whoever is at the other end of the socket.
    pub fn is_remote(&self) -> bool {
        !matches!(self, Self::Unix(_))
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_program_that_takes_no_input_loses_no_output() {
        let (mut client, stream) = UnixStream::pair().unwrap();
        let (program, theirs) = UnixStream::pair().unwrap();
        let carrying = tokio::spawn(carry(stream, theirs, std::future::pending()));
        rustix::net::shutdown(&program, rustix::net::Shutdown::Read).unwrap();
        client.write_all(b"nobody reads this").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        program.writable().await.unwrap();
        assert_eq!(program.try_write(b"output").unwrap(), 6);
        drop(program);
        let mut seen = Vec::new();
        // And the client, which ends nothing itself, gets its end.
        let read = timeout(Duration::from_secs(5), client.read_to_end(&mut seen));
        read.await.unwrap().unwrap();
        assert_eq!(seen, b"output");
        timeout(Duration::from_secs(5), carrying).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_end_of_input_is_not_that_of_output_but_a_client_that_is_gone_is() {
        let (mut client, stream) = UnixStream::pair().unwrap();
        let (mut program, theirs) = UnixStream::pair().unwrap();
        let (leave, left) = oneshot::channel::<()>();
        let carrying = tokio::spawn(carry(stream, theirs, async move {
            let _ = left.await;
        }));
        client.write_all(b"input").await.unwrap();
        client.shutdown().await.unwrap();
        let mut seen = Vec::new();
        program.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"input");
        program.write_all(b"output").await.unwrap();
        let mut piece = [0; 10];
        assert_eq!(client.read(&mut piece).await.unwrap(), 6);
        drop(leave);
        timeout(Duration::from_secs(5), carrying).await.unwrap().unwrap();
        assert!(program.write_all(b"more").await.is_err());
    }
}
