//! HTTP/2 over connections that left HTTP/1.1, on the calling thread's runtime.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response, Uri};

use crate::connection::Stream;
use crate::{Error, Hijacked, Result};

/// The largest message, as in BuildKit.
pub const MAX_MESSAGE: usize = 16 << 20;
/// What may be on its way in a stream and in a connection.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A connection with what was read from it ahead.
pub struct Io {
    socket: Socket,
    ahead: Vec<u8>,
    at: usize,
}

impl Io {
    /// Takes a connection into the runtime.
    pub fn new(hijacked: Hijacked) -> io::Result<Self> {
        let (stream, ahead) = hijacked.into_parts();
        let socket = match stream {
            Stream::Unix(stream) => {
                stream.set_nonblocking(true)?;
                Socket::Unix(UnixStream::from_std(stream)?)
            }
            Stream::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                Socket::Tcp(TcpStream::from_std(stream)?)
            }
        };
        Ok(Self { socket, ahead, at: 0 })
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let ahead = this.ahead.get(this.at..).unwrap_or_default();
        if !ahead.is_empty() {
            let count = ahead.len().min(buffer.remaining());
            buffer.put_slice(&ahead[..count]);
            this.at += count;
            return Poll::Ready(Ok(()));
        }
        match &mut this.socket {
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, data),
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, data),
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The calling end of a connection.
#[derive(Debug, Clone)]
pub struct Channel(http2::SendRequest<Body>);

impl Channel {
    /// Begins HTTP/2.
    pub async fn open(hijacked: Hijacked) -> Result<Self> {
        let io = Io::new(hijacked).map_err(Error::io("talking to the builder"))?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| Error::Protocol(error.to_string()))?;
        // Calls tell when it breaks.
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// What calls are addressed to; nobody looks at it.
    pub fn origin() -> Uri {
        Uri::from_static("http://localhost")
    }
}

impl tower::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// Answers calls until the connection ends.
pub async fn serve<S>(hijacked: Hijacked, service: S)
where
    S: hyper::service::Service<hyper::Request<Incoming>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    let Ok(io) = Io::new(hijacked) else { return };
    // The daemon tells what it could not get when the connection breaks.
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .serve_connection(TokioIo::new(io), service)
        .await;
}
