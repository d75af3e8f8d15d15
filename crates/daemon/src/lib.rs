//! The HTTP server of the Docker Engine API, versions 1.24 to 1.55.
//!
//! Routes map requests to the engine and answers to Docker's shapes, statuses and messages; nothing here knows of
//! kernels or of files beyond the daemon's own sockets and its operation log. What a daemon without swarm, plugins, registries or a
//! builder would say to requests for those is said here, too.
//!
//! The reference is the Docker Engine API specification; where real clients rely on more than it says (headers,
//! texts they search for, half-closed connections), the behaviour is dockerd's.

mod base64;
mod body;
mod buildkit;
mod config;
mod conn;
mod detach;
mod error;
mod hijack;
mod listen;
mod openapi;
mod oplog;
pub mod page;
mod query;
mod request;
mod response;
mod room;
mod router;
mod routes;
mod server;
mod shape;
mod table;
mod takeover;
mod tls;
mod version;
mod websocket;

pub use config::{Config, Listen, PageConfig};
pub use error::Error;
pub use server::Server;
pub use tls::TlsFiles;

use std::net::SocketAddr;

use tokio::signal::unix::{SignalKind, signal};

/// Threads that run the daemon. Everything is asynchronous, so two are enough for any number of containers.
const WORKERS: usize = 2;
/// Threads for what may block (the disk); they end when there is nothing to do. What waits for clients has its own.
const BLOCKING: usize = 32;
/// Touched pages count, not this; but every thread's stack is address space.
const STACK: usize = 1024 * 1024;

/// A tokio runtime of the daemon's proportions.
///
/// # Errors
/// When the system gives no threads or descriptors.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    // By default every thread that allocates at the same time as others gets a heap of its own, and keeps it. Two
    // workers need two; without the limit the daemon's memory grows with the number of threads it ever had.
    // SAFETY: sets a limit of the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, WORKERS as libc::c_int) };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .thread_stack_size(STACK)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .thread_name("vessel-daemon")
        .enable_all()
        .build()
}

/// Serves until SIGTERM or SIGINT. Containers outlive it. `ready` is told, before anybody is answered, at which port the page
/// is, if it has one.
///
/// # Errors
/// A socket that cannot be had or is in use, an engine that does not start.
pub async fn serve(config: Config, ready: impl FnOnce(Option<SocketAddr>)) -> Result<(), Error> {
    let signals = |source| Error::System {
        what: "cannot listen for signals",
        source,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
    let server = Server::open(config).await?;
    ready(server.page_address());
    server
        .run(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
    Ok(())
}
