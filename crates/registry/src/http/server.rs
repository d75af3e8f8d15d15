//! Listens, accepts, and hands requests to the registry.
//!
//! Plain connections speak HTTP/1.1 over [`Wire`], which sends files without copies, or HTTP/2 when the client begins
//! with its preface; TLS connections what was negotiated. On the way out no new connection is accepted, and what was
//! begun is finished within [`DRAIN`].

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::patience::{Appetite, Patience, Patient, queued};
use super::tls::Tls;
use super::wire::{Files, Wire};
use crate::registry::Registry;

/// How long begun work may take once the server is told to end.
const DRAIN: Duration = Duration::from_secs(30);
/// A client that sends no complete request head for so long is dropped.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// A client that does not get through the TLS handshake, or says nothing at all, for so long is dropped.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests at once on an HTTP/2 connection.
const MAX_STREAMS: u32 = 100;
/// Heads of requests must fit; bodies are read in pieces of up to this size.
const READ_BUFFER: usize = 256 << 10;
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its address.
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Where files can be sent as such.
    pub files: Option<Files>,
    /// It came in on the port for metrics.
    pub metrics_only: bool,
}

/// A socket that is listened on.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// Its certificates.
    pub tls: Option<Arc<Tls>>,
    /// Only metrics are served here.
    pub metrics_only: bool,
}

/// What connections may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// So many at once.
    pub connections: usize,
    /// A client that takes nothing of an answer for so long is dropped.
    pub silence: Duration,
}

/// Serves until `shutdown` resolves, then ends in an orderly way.
pub async fn run(
    registry: Arc<Registry>,
    listeners: Vec<Listener>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let (end, ended) = watch::channel(false);
    let room = Arc::new(Semaphore::new(limits.connections));
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(
            listener,
            Arc::clone(&registry),
            Arc::clone(&room),
            limits,
            ended.clone(),
        ));
    }
    shutdown.await;
    accepting.shutdown().await;
    // No receiver means no connection.
    let _ = end.send(true);
    drop(ended);
    let drained = tokio::time::timeout(DRAIN, end.closed()).await;
    if drained.is_err() {
        tracing::warn!(
            "some connections did not end within {} seconds and are cut",
            DRAIN.as_secs()
        );
    }
}

async fn accept(
    listener: Listener,
    registry: Arc<Registry>,
    room: Arc<Semaphore>,
    limits: Limits,
    ended: watch::Receiver<bool>,
) {
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let (stream, address) = match listener.socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: others have to close theirs first.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let client = Client {
            address,
            tls: listener.tls.is_some(),
            files: None,
            metrics_only: listener.metrics_only,
        };
        let (tls, registry, ended) = (listener.tls.clone(), Arc::clone(&registry), ended.clone());
        // Kept to the connection's end: by it, the server knows that there is one.
        let alive = ended.clone();
        tokio::spawn(async move {
            let _alive = alive;
            let connections = registry.metrics().connections.clone();
            connections.add(1);
            if let Err(error) = connection(stream, client, tls, registry, limits, ended).await {
                tracing::debug!(%address, %error, "a connection ended");
            }
            connections.subtract(1);
            drop(permit);
        });
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn connection(
    stream: TcpStream,
    mut client: Client,
    tls: Option<Arc<Tls>>,
    registry: Arc<Registry>,
    limits: Limits,
    mut ended: watch::Receiver<bool>,
) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    if is_local(&stream) {
        // Within a machine there is no way whose capacity could be found out: an algorithm that paces what it sends, as
        // BBR does, divides the throughput by four. This one is in every kernel.
        let _ = rustix::net::sockopt::set_tcp_congestion(&stream, "reno");
    }
    let end = async move {
        let _ = ended.wait_for(|ended| *ended).await;
    };
    match tls {
        Some(tls) => {
            let acceptor = tokio_rustls::TlsAcceptor::from(tls.config());
            let stream = Patient::new(stream, limits.silence, queued);
            let stream = tokio::time::timeout(HELLO_TIMEOUT, acceptor.accept(stream)).await??;
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                serve2(TokioIo::new(stream), client, registry, limits, end).await
            } else {
                serve1(TokioIo::new(stream), client, registry, end).await
            }
        }
        None if tokio::time::timeout(HELLO_TIMEOUT, is_http2(&stream)).await?? => {
            let stream = Patient::new(stream, limits.silence, queued);
            serve2(TokioIo::new(stream), client, registry, limits, end).await
        }
        None => {
            let files = Files::default();
            client.files = Some(files.clone());
            let wire = Wire::new(
                stream,
                files,
                registry.metrics().sent.clone(),
                Patience::new(limits.silence),
            );
            serve1(wire, client, registry, end).await
        }
    }
}

/// Whether both ends are on this machine.
fn is_local(stream: &TcpStream) -> bool {
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(here), Ok(there)) => there.ip().is_loopback() || here.ip() == there.ip(),
        _ => false,
    }
}

/// Whether the first bytes are those of HTTP/2.
async fn is_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        let n = stream.peek(&mut first).await?;
        if n == 0 || first[..n] != PREFACE[..n] {
            return Ok(false);
        }
        if n == PREFACE.len() {
            return Ok(true);
        }
        // Bytes that were only looked at make the socket readable again at once.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn serve1<I>(
    io: I,
    client: Client,
    registry: Arc<Registry>,
    end: impl Future<Output = ()>,
) -> Result<(), Failure>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (registry, client) = (Arc::clone(&registry), client.clone());
        async move { Ok::<_, Infallible>(registry.answer(request, client).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(READ_BUFFER)
        .max_headers(64)
        .half_close(true)
        .serve_connection(io, service);
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return Ok(result?),
        () = end => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

async fn serve2<I>(
    io: I,
    client: Client,
    registry: Arc<Registry>,
    limits: Limits,
    end: impl Future<Output = ()>,
) -> Result<(), Failure>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    let appetite = Appetite::new();
    let offering = Arc::clone(&appetite);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (registry, client, offering) = (Arc::clone(&registry), client.clone(), Arc::clone(&offering));
        async move {
            let response = registry.answer(request, client).await;
            Ok::<_, Infallible>(response.map(|body| offering.offer(body)))
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(64 << 10)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(HEAD_TIMEOUT)
        .serve_connection(io, service);
    tokio::pin!(connection);
    let starving = appetite.lost(limits.silence);
    tokio::pin!(starving);
    tokio::select! {
        result = connection.as_mut() => return Ok(result?),
        error = &mut starving => return Err(error.into()),
        () = end => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        result = connection.as_mut() => Ok(result?),
        error = &mut starving => Err(error.into()),
    }
}
