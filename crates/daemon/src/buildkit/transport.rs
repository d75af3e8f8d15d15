//! gRPC over a connection that was HTTP/1.1 before: HTTP/2 from the first byte on.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response, Uri};

/// What a stream may hold that was not read: a context comes at the speed of the disk.
pub const STREAM_WINDOW: u32 = 2 << 20;
/// The same for a whole connection.
pub const CONNECTION_WINDOW: u32 = 8 << 20;
/// The largest message of either side, as in BuildKit.
pub const MAX_MESSAGE: usize = 16 << 20;

/// The calling end of a connection.
#[derive(Debug, Clone)]
pub struct Channel(http2::SendRequest<Body>);

impl Channel {
    /// Begins HTTP/2 on a connection that has carried something else. The future that comes with it carries the
    /// connection and resolves at its end.
    pub async fn open<C>(stream: C) -> hyper::Result<(Self, impl Future<Output = hyper::Result<()>>)>
    where
        C: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(stream)
            .await?;
        Ok((Self(sender), connection))
    }

    /// What calls are addressed to; nobody looks at it.
    pub fn origin() -> Uri {
        Uri::from_static("http://localhost")
    }
}

impl tower::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// Answers calls on a connection that was upgraded, until its end.
pub async fn serve<S>(upgraded: Upgraded, service: S) -> hyper::Result<()>
where
    S: hyper::service::Service<
            hyper::Request<Incoming>,
            Response = Response<Body>,
            Error = std::convert::Infallible,
        >,
    S::Future: Send + 'static,
{
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(256)
        .serve_connection(upgraded, service)
        .await
}
