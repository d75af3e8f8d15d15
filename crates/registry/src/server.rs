//! Puts a registry together and runs it.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::auth::{Auth, AuthOptions};
use crate::control::{self, Control};
use crate::error::{Error, Result};
use crate::http::receive::blocking;
use crate::http::server::{Limits, Listener, run};
use crate::http::tls::{Tls, TlsFiles};
use crate::local::{Local, LocalOptions};
use crate::proxy::{Proxy, ProxyOptions};
use crate::registry::{Registry, Settings};
use crate::storage::{CollectOptions, OpenError, Storage, StorageOptions};

/// How often uploads that nobody goes on with are looked for.
const SWEEP: Duration = Duration::from_secs(600);
/// How long a directory is waited for that a process has without serving it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everything that can be said about a registry.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub listen: Vec<SocketAddr>,
    /// Where to serve metrics, if not beside everything else.
    pub metrics_listen: Option<SocketAddr>,
    /// The directory of its content.
    pub root: PathBuf,
    /// Limits of space and of uploads.
    pub storage: StorageOptions,
    /// Certificates; without, connections are plain.
    pub tls: Option<TlsFiles>,
    /// Users and rights.
    pub auth: AuthOptions,
    /// The registry behind this one, whose cache it then is.
    pub proxy: Option<ProxyOptions>,
    /// The engine whose images it serves instead of its own content.
    pub local: Option<LocalOptions>,
    /// How it behaves.
    pub settings: Settings,
    /// Collect garbage so often.
    pub collect: Option<(Duration, CollectOptions)>,
    /// Connections at once; those that come then wait to be accepted.
    pub max_connections: usize,
    /// A client that takes nothing of an answer for so long is dropped.
    pub silence: Duration,
}

/// A registry that listens and does not answer yet.
#[derive(Debug)]
pub struct Server {
    registry: Arc<Registry>,
    listeners: Vec<Listener>,
    control: Control,
    collect: Option<(Duration, CollectOptions)>,
    limits: Limits,
}

/// The threads a registry runs on. Few: what waits for a disk does so on others, of which there are at most 32.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    // By default every thread that allocates at the same time as others gets a heap of its own, and keeps it.
    // SAFETY: sets a limit of the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
    let workers = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(2, 16);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(32)
        .thread_stack_size(512 << 10)
        .thread_keep_alive(Duration::from_secs(5))
        .enable_all()
        .build()
}

/// Resolves when the process is told to end, by SIGTERM or SIGINT.
///
/// # Errors
/// The system refuses.
pub fn end_of_process() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

impl Server {
    /// Opens the directory and the sockets.
    ///
    /// # Errors
    /// A directory that another process has, an address that is taken, a file that cannot be used.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let root = config.root.clone();
        let storage = open_storage(&root, &config.storage).await?;
        let auth = Auth::open(&config.auth, &root)?;
        let proxy = config
            .proxy
            .map(|options| Proxy::new(&options, storage.clone()))
            .transpose()?;
        let local = config.local.as_ref().map(Local::open).transpose()?;
        let tls = config.tls.map(Tls::open).transpose()?.map(Arc::new);
        let mut listeners = Vec::new();
        let metrics = config.metrics_listen.map(|address| (address, true));
        for (address, metrics_only) in config
            .listen
            .iter()
            .map(|address| (*address, false))
            .chain(metrics)
        {
            let socket = TcpListener::bind(address)
                .await
                .map_err(|e| Error::io(format!("cannot listen at {address}"), e))?;
            listeners.push(Listener {
                socket,
                tls: tls.clone().filter(|_| !metrics_only),
                metrics_only,
            });
        }
        let control = Control::open(&root)?;
        Ok(Self {
            registry: Arc::new(Registry::new(storage, auth, proxy, config.settings).with_local(local)),
            listeners,
            control,
            collect: config.collect,
            limits: Limits {
                connections: config.max_connections,
                silence: config.silence,
            },
        })
    }

    /// Where it listens, with the ports that were chosen for 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners
            .iter()
            .filter_map(|listener| listener.socket.local_addr().ok())
            .collect()
    }

    /// Answers until `shutdown` resolves, then ends in an orderly way.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let sweeping = tokio::spawn(sweep(self.registry.storage().clone()));
        let control = tokio::spawn(self.control.run(Arc::clone(&self.registry)));
        let collecting = self.collect.map(|(every, options)| {
            tokio::spawn(collect_regularly(Arc::clone(&self.registry), every, options))
        });
        run(self.registry, self.listeners, self.limits, shutdown).await;
        sweeping.abort();
        control.abort();
        if let Some(collecting) = collecting {
            collecting.abort();
        }
    }
}

/// Who has the directory and answers nobody collects garbage from the command line, or is about to end: a registry that is
/// started again after it was killed would otherwise stay down because of a collection that found it down.
async fn open_storage(root: &Path, options: &StorageOptions) -> Result<Storage, OpenError> {
    let begun = Instant::now();
    loop {
        match Storage::open(root, options.clone()) {
            Err(OpenError::InUse(_)) if begun.elapsed() < PATIENCE && !control::answers(root) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            result => return result,
        }
    }
}

async fn sweep(storage: Storage) {
    let mut ticks = tokio::time::interval(SWEEP.min(storage.upload_expiry()).max(Duration::from_secs(1)));
    loop {
        ticks.tick().await;
        let storage = storage.clone();
        let swept = blocking(move || Ok(storage.expire_uploads(storage.upload_expiry()))).await;
        if let Ok(count) = swept
            && count > 0
        {
            tracing::info!(count, "uploads that nobody went on with were removed");
        }
    }
}

async fn collect_regularly(registry: Arc<Registry>, every: Duration, options: CollectOptions) {
    let mut ticks = tokio::time::interval(every);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        match registry.collect(options.clone()).await {
            Ok(collected) => tracing::info!(?collected, "garbage was collected"),
            Err(error) => tracing::error!(%error, "garbage cannot be collected"),
        }
    }
}
