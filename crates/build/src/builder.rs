//! The builder: one for each engine, many builds at a time.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use crate::answer;
use crate::blocking;
use crate::cache::Cache;
use crate::cache::import::{self, Imports};
use crate::dockerfile::Dockerfile;
use crate::error::{Error, ErrorKind, Result};
use crate::outline::outline;
use crate::progress::Progress;
use crate::request::{BuildRequest, BuildResult, CacheExport, Goal, Output};
use crate::session::Session;
use crate::solve::caches::Caches;
use crate::solve::lint::Bases;
use crate::solve::output::{Exporter, Finished};
use crate::solve::{Cancelled, Opened, Plan, Solve, State, from_diagnostic, platform_args};
use crate::worker::Worker;

/// How a builder is set up.
#[derive(Debug, Clone)]
pub struct BuilderConfig {
    /// Where the cache, contexts and what is being made are kept: on the file system of the content store.
    pub root: PathBuf,
    /// Bytes the cache keeps to; the least recently used goes first. None: a tenth of the file system, at least 2 GiB.
    pub keep_bytes: Option<u64>,
    /// How many steps run at a time; none: as many as there are processors, at least four.
    pub parallelism: Option<usize>,
}

/// A record of the cache, as `system df -v` and `builder prune` show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRecord {
    /// Names it.
    pub id: String,
    /// `regular` (the layer of a step), `exec.cachemount`, `source.local` (a context), `source.git.checkout`.
    pub kind: &'static str,
    /// What made it.
    pub description: String,
    /// Whether a build uses it now.
    pub in_use: bool,
    /// Whether an image has the same layer, so that removing the record frees nothing.
    pub shared: bool,
    /// Bytes on disk.
    pub size: u64,
    /// When it was made.
    pub created: SystemTime,
    /// When a build last used it.
    pub last_used: SystemTime,
    /// How often.
    pub usage_count: u64,
}

/// What to prune.
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// Also what a plain prune keeps: layers that images share, and contexts.
    pub all: bool,
    /// Bytes to keep, the most recently used ones.
    pub keep_storage: Option<u64>,
    /// Only what was not used for this long.
    pub unused_for: Option<std::time::Duration>,
    /// Only records of one of these IDs (prefixes do); empty: any.
    pub ids: Vec<String>,
    /// Only records of one of these kinds; empty: any.
    pub kinds: Vec<String>,
    /// Only records whose description contains one of these; empty: any.
    pub descriptions: Vec<String>,
}

/// What was pruned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The records' IDs.
    pub ids: Vec<String>,
    /// Bytes that are free now.
    pub reclaimed: u64,
}

/// The builder.
pub struct Builder {
    worker: Arc<dyn Worker>,
    config: BuilderConfig,
    cache: Arc<Cache>,
    permits: Arc<Semaphore>,
    /// Steps that are being made, by their keys.
    making: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Cancels what blocks when the build's future is dropped.
struct CancelOnDrop(Cancelled);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Builder {
    /// Opens the cache and removes what builds of a daemon that died left.
    ///
    /// # Errors
    /// The root cannot be made or read.
    pub fn open(worker: Arc<dyn Worker>, config: BuilderConfig) -> Result<Arc<Self>> {
        std::fs::create_dir_all(&config.root)
            .map_err(|error| Error::io(format!("cannot create {}", config.root.display()), error))?;
        let limit = match config.keep_bytes {
            Some(limit) => limit,
            None => default_limit(&config.root),
        };
        let cache = Cache::open(&config.root, worker.store().clone(), limit)?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Arc::new(Self {
            permits: Arc::new(Semaphore::new(
                config.parallelism.unwrap_or(processors.max(4)).max(1),
            )),
            cache: Arc::new(cache),
            making: Mutex::default(),
            worker,
            config,
        }))
    }

    pub(crate) fn worker(&self) -> &Arc<dyn Worker> {
        &self.worker
    }

    pub(crate) fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Waits for a place among the steps that run.
    pub(crate) async fn permit(&self) -> Result<OwnedSemaphorePermit> {
        let closed = |_| Error::new(ErrorKind::Cancelled, "the builder is ending");
        Arc::clone(&self.permits).acquire_owned().await.map_err(closed)
    }

    /// Waits until nobody else makes a step.
    pub(crate) async fn alone(&self, key: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            match making.get(key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    making.retain(|_, lock| lock.strong_count() > 0);
                    let lock = Arc::<tokio::sync::Mutex<()>>::default();
                    making.insert(key.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }

    /// Builds. Dropping the future cancels: processes are killed, what is half made is removed, what steps finished stays
    /// in the cache.
    ///
    /// # Errors
    /// With [`Error::located`] when an instruction is to blame.
    pub async fn build(
        self: &Arc<Self>,
        request: BuildRequest,
        session: Arc<dyn Session>,
        progress: Progress,
    ) -> Result<BuildResult> {
        let cancelled = Cancelled::default();
        let _guard = CancelOnDrop(cancelled.clone());
        let request = Arc::new(request);
        let opened = Opened::new(self, &request, &session, &progress, &cancelled);
        let (name, text) = opened.dockerfile().await?;
        if request.goal != Goal::Build {
            return self
                .answer(&request, &opened, &session, &progress, (&name, &text))
                .await;
        }
        let dockerfile = Dockerfile::parse(&text, &name).map_err(from_diagnostic)?;
        let dockerfile = Arc::new(dockerfile);
        if request.squash && request.cache_to.contains(&CacheExport::Inline) {
            return Err(Error::invalid(
                "a squashed image has none of the layers that an inline cache speaks of: leave one of the two out, or export the cache to a place of its own",
            ));
        }
        let mut platforms = request.platforms.clone();
        if platforms.is_empty() {
            platforms.push(self.worker.platform());
        }
        let made = Arc::default();
        let imports = match request.cache_from.as_slice() {
            [] => Imports::default(),
            wanted => {
                Box::pin(import::open(
                    wanted,
                    &platforms,
                    &self.worker,
                    &session,
                    &progress,
                ))
                .await
            }
        };
        let imports = Arc::new(imports);
        let anew = Arc::default();
        let plan = |platform: &vessel_image::Platform, lazy: bool| Plan {
            builder: Arc::clone(self),
            request: Arc::clone(&request),
            session: Arc::clone(&session),
            progress: progress.clone(),
            cancelled: cancelled.clone(),
            opened: Arc::clone(&opened),
            dockerfile: Arc::clone(&dockerfile),
            platform: platform.clone(),
            several: platforms.len() > 1,
            imports: Arc::clone(&imports),
            lazy,
            made: Arc::clone(&made),
            anew: Arc::clone(&anew),
        };
        let lazy = imports.len() > 0;
        let (solves, states) = match Box::pin(solve(&platforms, lazy, &plan, &request)).await? {
            // What a cache promised is not to be had.
            (_, Err(_)) if imports.was_broken() => {
                Box::pin(solve(&platforms, false, &plan, &request)).await?
            }
            made => made,
        };
        if let Some(first) = solves.first() {
            first.tell_warnings().await;
        }
        let states = states?;
        let mut finished: Vec<Finished> = platforms
            .into_iter()
            .zip(states)
            .zip(&solves)
            .map(|((platform, state), solve)| Finished {
                platform,
                state,
                epoch: solve.epoch,
                cache: None,
            })
            .collect();
        let caches = Caches {
            builder: self,
            imports: &imports,
            session: &session,
            progress: &progress,
            solves: &solves,
        };
        if request.cache_to.contains(&CacheExport::Inline) {
            caches.inline(&mut finished).await?;
        }
        let exporter = Exporter {
            builder: Arc::clone(self),
            session: Arc::clone(&session),
            progress: progress.clone(),
        };
        let mut squashed = Vec::new();
        if request.squash {
            for (solve, one) in solves.iter().zip(&finished) {
                squashed.push(Finished {
                    platform: one.platform.clone(),
                    state: Box::pin(solve.squash(&one.state)).await?,
                    epoch: one.epoch,
                    cache: None,
                });
            }
        }
        let results = if request.squash { &squashed } else { &finished };
        let mut result = Box::pin(exporter.export(&request.outputs, results)).await?;
        result.cache_manifest = Box::pin(caches.export(&request.cache_to, &finished)).await?;
        drop((finished, squashed, solves, exporter));
        let builder = Arc::clone(self);
        let pruned = blocking(move || builder.cache.enforce(&builder.worker.used_layers())).await?;
        if !pruned.ids.is_empty() {
            self.worker.collect().await;
        }
        Ok(result)
    }

    /// What the Dockerfile itself answers.
    async fn answer(
        &self,
        request: &Arc<BuildRequest>,
        opened: &Opened,
        session: &Arc<dyn Session>,
        progress: &Progress,
        (name, text): (&str, &[u8]),
    ) -> Result<BuildResult> {
        let host = self.worker.platform();
        let target = request.platforms.first().unwrap_or(&host);
        let args = platform_args(&host, target, request.target.as_deref());
        let answer = match request.goal {
            Goal::Check => {
                let patterns = opened.ignored().await?;
                let matcher = crate::ignore::Matcher::new(patterns)
                    .map_err(|error| Error::invalid(format!(".dockerignore: {error}")))?;
                let bases = Bases::here(self, request, session, progress, text, name, target).await;
                let (request, name, text) = (Arc::clone(request), name.to_owned(), text.to_owned());
                let check = move || {
                    Ok(answer::check(
                        &request,
                        &name,
                        &text,
                        &args,
                        Some(&matcher),
                        &bases,
                    ))
                };
                blocking(check).await?
            }
            Goal::Build | Goal::Outline => {
                let dockerfile = Dockerfile::parse(text, name).map_err(from_diagnostic)?;
                let request = Arc::clone(request);
                blocking(move || outline(&request, &dockerfile, args)).await?
            }
            Goal::Targets => {
                let dockerfile = Dockerfile::parse(text, name).map_err(from_diagnostic)?;
                answer::targets(request, &dockerfile, args)?
            }
        };
        Ok(BuildResult {
            answer: Some(answer),
            ..BuildResult::default()
        })
    }

    /// The records of the cache, the most recently used first.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub async fn cache_records(self: &Arc<Self>) -> Result<Vec<CacheRecord>> {
        let builder = Arc::clone(self);
        blocking(move || Ok(builder.cache.records(&builder.worker.used_layers()))).await
    }

    /// What made the layers that the cache keeps, by layer.
    ///
    /// # Errors
    /// When the work ends abnormally.
    pub async fn cache_layers(self: &Arc<Self>) -> Result<HashMap<vessel_image::ChainId, String>> {
        let builder = Arc::clone(self);
        blocking(move || Ok(builder.cache.layers())).await
    }

    /// Removes records. What a running build uses stays.
    ///
    /// # Errors
    /// When the index cannot be written or a directory cannot be removed.
    pub async fn prune(self: &Arc<Self>, options: PruneOptions) -> Result<Pruned> {
        let builder = Arc::clone(self);
        let pruned = blocking(move || builder.cache.prune(&options, &builder.worker.used_layers())).await?;
        if !pruned.ids.is_empty() {
            self.worker.collect().await;
        }
        Ok(pruned)
    }
}

/// Solves for all platforms, and fetches what the outputs need of the results.
async fn solve(
    platforms: &[vessel_image::Platform],
    lazy: bool,
    plan: &impl Fn(&vessel_image::Platform, bool) -> Plan,
    request: &BuildRequest,
) -> Result<(Vec<Arc<Solve>>, Result<Vec<State>>)> {
    let solves = platforms.iter().map(|platform| Solve::new(plan(platform, lazy)));
    let solves = solves.collect::<Result<Vec<_>>>()?;
    let states = async {
        // Platforms differ in little: the first speaks for all.
        if let Some(first) = solves.first() {
            first.refuse_warnings().await?;
        }
        let states = futures_util::future::try_join_all(solves.iter().map(Solve::run)).await?;
        if request.outputs.iter().any(|output| *output != Output::CacheOnly) {
            for (solve, state) in solves.iter().zip(&states) {
                solve.obtain(state).await?;
            }
        }
        Ok(states)
    };
    let states = Box::pin(states).await;
    Ok((solves, states))
}

/// A tenth of the file system, at least 2 GiB.
fn default_limit(root: &std::path::Path) -> u64 {
    let size = rustix::fs::statvfs(root).map_or(0, |stat| stat.f_blocks.saturating_mul(stat.f_frsize));
    (size / 10).max(2 << 30)
}
