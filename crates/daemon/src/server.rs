//! The server: accepts connections, answers requests, ends in an orderly way.
//!
//! On the way out no new connection is accepted, what was begun is finished within [`DRAIN`], streams that would
//! go on for ever (events, logs, attach) are cut, and containers are left alone: their shims carry them.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, HeaderValue, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use vessel_build::Builder;
use vessel_engine::{Engine, operation};

use crate::body::Body;
use crate::buildkit::jobs::Jobs;
use crate::buildkit::sessions::Sessions;
use crate::config::{Config, Listen};
use crate::conn::{Conn, drain};
use crate::error::{ApiError, Error};
use crate::listen::{Listener, Security};
use crate::oplog::{OperationLog, Peer, Pending};
use crate::page::{Admitted, Page};
use crate::response::Answer;
use crate::room::{Guest, Room};
use crate::takeover::{Held, Taker};
use crate::{page, response, router, tls};

/// How long begun work may take once the daemon is told to end.
const DRAIN: Duration = Duration::from_secs(15);
/// A client that sends no complete request head for so long is dropped: clients keep connections for the next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Nobody connects to say nothing: the first head has to come sooner.
const FIRST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at most, raw streams among them; when more come, idle ones are closed.
const MAX_CONNECTIONS: u64 = 16384;
/// The most a connection buffers while it reads; heads of requests must fit.
const READ_BUFFER: usize = 256 * 1024;

/// What the routes work with.
#[derive(Debug)]
pub struct State {
    /// The engine.
    pub engine: Arc<Engine>,
    /// Clients that answer calls of builds.
    pub sessions: Arc<Sessions>,
    /// Builds under way.
    pub jobs: Arc<Jobs>,
    /// Who did what.
    pub log: Arc<OperationLog>,
    /// Where contexts are unpacked that come as archives.
    pub uploads: PathBuf,
    upload: AtomicUsize,
    busy: AtomicUsize,
    idle: Notify,
}

impl State {
    /// A name that no other upload has.
    pub fn next_upload(&self) -> String {
        format!(
            "{}-{}",
            std::process::id(),
            self.upload.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// The engine's builder.
    pub fn builder(&self) -> Result<Arc<Builder>, ApiError> {
        Ok(Arc::clone(self.engine.builder()?))
    }

    /// Runs an operation to its end even when the client that asked for it goes away.
    pub async fn finish<F>(self: &Arc<Self>, operation: F) -> Answer
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let busy = Busy::new(self);
        let command = operation::current().unwrap_or_default();
        let task = tokio::spawn(operation::scope(command, async move {
            let _busy = busy;
            operation.await
        }));
        match task.await {
            Ok(answer) => answer,
            Err(error) => Err(ApiError::internal(format!(
                "the operation ended abnormally: {error}"
            ))),
        }
    }
}

/// Counts an operation that must not be cut off.
#[derive(Debug)]
pub struct Busy(Arc<State>);

impl Busy {
    /// Counts one more.
    pub fn new(state: &Arc<State>) -> Self {
        state.busy.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(state))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// A daemon that listens and does not answer yet.
#[derive(Debug)]
pub struct Server {
    state: Arc<State>,
    listeners: Vec<(Arc<Listener>, Option<Arc<Page>>)>,
}

impl Server {
    /// Opens the sockets, then the engine. Clients that connect meanwhile wait.
    ///
    /// # Errors
    /// A socket that cannot be had or is in use, an engine that does not start.
    pub async fn open(config: Config) -> Result<Self, Error> {
        if config.listen.is_empty() {
            return Err(Error::Config(
                "no socket to listen on: give at least one".to_owned(),
            ));
        }
        let security = match &config.tls {
            Some(files) => Some(Security {
                config: tls::configuration(files)?,
                verifies: files.clients.is_some(),
            }),
            None => None,
        };
        let mut listeners = Vec::with_capacity(config.listen.len());
        for listen in config.listen {
            let listener = Listener::open(listen, &config.group, security.as_ref()).await?;
            listeners.push((Arc::new(listener), None));
        }
        let page = match config.page {
            Some(page) => {
                let secure = security.is_some() && !matches!(page.listen, Listen::Unix(_));
                let listener = Listener::open_page(page.listen, &config.group, security.as_ref()).await?;
                Some((listener, page.token, secure))
            }
            None => None,
        };
        let (root, uploads) = (config.engine.root.clone(), config.engine.root.join("uploads"));
        let engine = Engine::open(config.engine).await?;
        if let Some((listener, token, secure)) = page {
            let page = Page::new(engine.id(), token, secure)
                .map_err(|error| Error::Config(format!("the page's secrets cannot be made: {error}")))?;
            listeners.push((Arc::new(listener), Some(Arc::new(page))));
        }
        let log = OperationLog::open(&root, config.operation_log).map_err(|error| {
            Error::Config(format!(
                "the operation log in {} cannot be opened: {error}; --operation-log off does without",
                root.display()
            ))
        })?;
        let log = Arc::new(log);
        Pending::daemon(&log, "daemon start").done(200, "");
        // What a daemon left that was killed.
        match std::fs::remove_dir_all(&uploads) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {error}", uploads.display());
            }
            _ => {}
        }
        let state = State {
            engine,
            sessions: Arc::default(),
            jobs: Arc::default(),
            log,
            uploads,
            upload: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            idle: Notify::new(),
        };
        Ok(Self {
            state: Arc::new(state),
            listeners,
        })
    }

    /// The TCP port that the page is served at.
    pub fn page_address(&self) -> Option<SocketAddr> {
        let page = self.listeners.iter().find(|(_, page)| page.is_some());
        page.and_then(|(listener, _)| listener.address())
    }

    /// Answers until `shutdown` resolves, then ends in an orderly way.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { state, listeners } = self;
        let (end, ended) = watch::channel(false);
        let mut accepting = JoinSet::new();
        // Strangers on one must not keep out those who come by another.
        let share = (connections() / listeners.len().max(1)).max(1);
        for (listener, page) in &listeners {
            accepting.spawn(accept(
                Arc::clone(listener),
                Arc::clone(&state),
                Room::new(share),
                ended.clone(),
                page.clone(),
            ));
        }
        shutdown.await;
        tracing::debug!("ending");
        accepting.shutdown().await;
        // The socket file goes first, so that a client that comes now starts a new daemon instead of waiting.
        drop(listeners);
        // No receiver means no connection.
        let _ = end.send(true);
        let drained = async {
            loop {
                let idle = state.idle.notified();
                if state.busy.load(Ordering::Acquire) == 0 {
                    break;
                }
                idle.await;
            }
            // What is answered still has to be sent.
            let sent = end.closed();
            let _ = tokio::time::timeout(Duration::from_millis(100), sent).await;
        };
        drop(ended);
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!(
                "operations were still under way after {} s and are left to the next daemon",
                DRAIN.as_secs()
            );
        }
        Pending::daemon(&state.log, "daemon stop").done(200, "");
        state.engine.shutdown().await;
    }
}

/// How many connections there may be: half of the descriptors are for the engine, whose work must go on.
fn connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let half = limit.unwrap_or(u64::MAX) / 2;
    usize::try_from(half.clamp(1, MAX_CONNECTIONS)).unwrap_or(usize::MAX)
}

async fn accept(
    listener: Arc<Listener>,
    state: Arc<State>,
    room: Arc<Room>,
    ended: watch::Receiver<bool>,
    page: Option<Arc<Page>>,
) {
    loop {
        match listener.accept().await {
            Ok(accepted) => {
                let Some(permit) = room.enter().await else { return };
                let guest = room.guest();
                let (state, ended, page) = (Arc::clone(&state), ended.clone(), page.clone());
                tokio::spawn(async move {
                    match tokio::time::timeout(FIRST_HEAD_TIMEOUT, accepted.ready()).await {
                        Ok(Ok(conn)) => connection(conn, (permit, guest), state, ended, page).await,
                        Ok(Err(error)) => tracing::debug!(%error, "a client's handshake failed"),
                        Err(_) => tracing::debug!("a client's handshake took too long"),
                    }
                });
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => {
                // Out of descriptors or memory: connections are still there in a moment, and perhaps room, too.
                tracing::warn!("cannot accept a connection: {error}; trying again in 100 ms");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(
    conn: Conn,
    (permit, guest): (OwnedSemaphorePermit, Guest),
    state: Arc<State>,
    mut ended: watch::Receiver<bool>,
    page: Option<Arc<Page>>,
) {
    let in_clear = conn.is_in_clear();
    let peer = Arc::new(Peer::of(&conn, page.is_some()));
    let refused = Arc::new(AtomicBool::new(false));
    let refuse = Arc::clone(&refused);
    let spoken = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&spoken);
    let (conn, taker) = Held::new(conn, permit);
    let ending = taker.clone();
    let guest = Arc::new(guest);
    let speaking = Arc::clone(&guest);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        heard.store(true, Ordering::Relaxed);
        speaking.spoke();
        let (state, taker, refuse) = (Arc::clone(&state), taker.clone(), Arc::clone(&refuse));
        let (peer, page, speaking) = (Arc::clone(&peer), page.clone(), Arc::clone(&speaking));
        taker.request_begins(&request);
        async move {
            let answer = answer(state, request, taker, &peer, in_clear, page.as_deref()).await;
            // What streams is under way until it ends; then the next request says that it did.
            if matches!(answer.body(), Body::Empty | Body::Whole(_)) {
                speaking.answered();
            }
            if answer.headers().get(CONNECTION).is_some_and(|how| how == "close") {
                refuse.store(true, Ordering::Relaxed);
            }
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(READ_BUFFER)
        .serve_connection(TokioIo::new(conn), service)
        .with_upgrades();
    let silent = async {
        tokio::time::sleep(FIRST_HEAD_TIMEOUT).await;
        if spoken.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = silent => return,
        () = guest.asked_to_leave() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        // It changes once, or its sender is gone; either way this is the end.
        _ = ended.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // A client that goes away in the middle is everyday life.
        tracing::debug!(%error, "a connection ended");
    }
    // What a client goes on to send must not cost it the answer.
    if refused.load(Ordering::Relaxed)
        && let Some(mut conn) = ending.rest()
    {
        drain(&mut conn).await;
    }
}

async fn answer(
    state: Arc<State>,
    request: hyper::Request<Incoming>,
    taker: Taker,
    peer: &Arc<Peer>,
    in_clear: bool,
    page: Option<&Page>,
) -> Response<Body> {
    let (request, guarded) = match page {
        Some(page) => match page.admit(request).await {
            Admitted::Api(request) => (*request, true),
            Admitted::Answer(answer) => return *answer,
        },
        None => (request, false),
    };
    // Not before: who does not log in keeps nobody waiting.
    let busy = Busy::new(&state);
    tracing::debug!(method = %request.method(), uri = %request.uri(), "request");
    let (routed, goes_on) = match foreign(&request).filter(|_| in_clear && !guarded) {
        Some(why) => (Err(ApiError::new(StatusCode::FORBIDDEN, why)), false),
        None => router::route(&state, request, taker.clone(), peer).await,
    };
    let mut answer = match routed {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(
                status = error.status().as_u16(),
                message = error.message(),
                "refused"
            );
            response::error(&error)
        }
    };
    drop(busy);
    response::add_common_headers(answer.headers_mut());
    if guarded {
        page::guard_data(answer.headers_mut());
    }
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        taker.forget();
    } else if !goes_on {
        // The next bytes may be input, and must not become requests.
        answer
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// Why a request that came in clear may be one of a web page, which a browser on this host was made to send: only
/// browsers send an `Origin`, and a page whose name leads here (DNS rebinding) sends that name as the `Host`.
fn foreign(request: &hyper::Request<Incoming>) -> Option<&'static str> {
    let headers = request.headers();
    if headers.contains_key(ORIGIN) {
        return Some("web pages are not answered over TCP without TLS");
    }
    let named = headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    let target = request.uri().authority().map(|name| name.as_str().as_bytes());
    let known = |host: &[u8]| std::str::from_utf8(host).is_ok_and(is_local);
    (!named.chain(target).all(known)).then_some(
        "over TCP without TLS the Host has to be an IP address or localhost, or a web page could be asking",
    )
}

/// Whether a `Host` is an address, or localhost: no name that somebody else could make lead here.
pub(crate) fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn hosts_that_nobody_else_can_name() {
        for good in [
            "127.0.0.1",
            "127.0.0.1:2375",
            "localhost",
            "LocalHost:1",
            "[::1]",
            "[::1]:2375",
        ] {
            assert!(is_local(good), "{good}");
        }
        for bad in [
            "",
            ":80",
            "evil.example",
            "evil.example:2375",
            "localhost.evil.example",
            "127.0.0.1.evil",
            "1:2:3",
            "[x]",
        ] {
            assert!(!is_local(bad), "{bad}");
        }
    }
}
