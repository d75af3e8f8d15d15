//! A step that makes a layer: from the cache, or made.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use vessel_image::{ChainId, DiffId, DirectoryLayerOptions, LayerDirectory, Lease, Limits};

use super::Solve;
use super::dispatch::Line;
use super::state::State;
use super::vertex::Pending;
use crate::cache::{Key, Record};
use crate::error::{Error, Result};
use crate::worker::Writable;
use crate::{blocking, time, tree};

/// Changes when a step of the same key would give another result.
const VERSION: &str = "vessel-build-2";

/// A key: a digest of what decides a step's result.
pub(super) fn key(kind: &str, parts: &impl Serialize) -> Result<Key> {
    let text = serde_json::to_vec(&(VERSION, kind, parts))
        .map_err(|error| Error::invalid(format!("cannot encode the key of a step: {error}")))?;
    Ok(vessel_image::Digest::sha256(&text).hex().to_owned())
}

/// A place to make a layer in; removed when it is dropped.
pub(crate) struct Workspace {
    directory: PathBuf,
    pub upper: PathBuf,
    pub work: PathBuf,
}

impl Workspace {
    pub fn new(root: &std::path::Path) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let directory = root.join(format!("{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let (upper, work) = (directory.join("upper"), directory.join("work"));
        for path in [&directory, &upper, &work] {
            std::fs::create_dir(path)
                .and_then(|()| {
                    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                })
                .map_err(|error| Error::io(format!("cannot create {}", path.display()), error))?;
        }
        Ok(Self {
            directory,
            upper,
            work,
        })
    }

    /// A further, empty directory.
    pub fn scratch(&self) -> Result<PathBuf> {
        let path = self.directory.join("scratch");
        std::fs::create_dir(&path)
            .map_err(|error| Error::io(format!("cannot create {}", path.display()), error))?;
        Ok(path)
    }

    pub fn writable(&self) -> Writable<'_> {
        Writable {
            upper: &self.upper,
            work: &self.work,
        }
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        tree::copy::remove(&self.directory);
    }
}

/// A layer a step gave.
pub(super) struct Made {
    pub chain: ChainId,
    pub diff: DiffId,
    pub created: i64,
    pub cached: bool,
    pub lease: Lease,
}

/// The steps a build has made itself, by their keys: with `--no-cache` too, stages that begin alike share them, and what
/// another build puts into the cache meanwhile does not count.
pub(crate) type Own = Mutex<HashMap<Key, Arc<OwnStep>>>;

/// One of them.
pub(crate) struct OwnStep {
    chain: ChainId,
    diff: DiffId,
    created: i64,
    _lease: Lease,
}

/// What a step is to the cache.
pub(super) struct Cached {
    pub key: Key,
    /// Further keys under which the same result is found.
    pub aliases: Vec<Key>,
    pub description: String,
    /// Whether the result does not depend on what is below (`--link`).
    pub link: bool,
    /// Whether it must not come from the cache.
    pub ignore: bool,
}

/// The chain of a layer on top of a state.
pub(super) fn on_top(state: &State, diff: &DiffId) -> ChainId {
    match state.top() {
        Some(parent) => parent.child(diff),
        None => ChainId::base(diff),
    }
}

impl Solve {
    /// Runs a step as a vertex: from the cache, or by `make`, which fills a workspace, and takes a place among the steps
    /// that run as soon as it needs to wait for nobody else. Returns when the layer was made.
    pub(super) async fn layer<F, W>(
        self: &Arc<Self>,
        state: &mut State,
        line: &mut Line,
        vertex: Pending,
        cached: Cached,
        make: F,
    ) -> Result<i64>
    where
        F: FnOnce(Workspace) -> W,
        W: Future<Output = Result<(Workspace, OwnedSemaphorePermit)>>,
    {
        line.previous = Some(vertex.digest.clone());
        let parent = state.top().cloned();
        let made = Box::pin(self.cached_or_made(state, &cached, &vertex.digest, make)).await;
        let about = |made: &Made| (made.cached, Some(made.chain.0.clone()));
        let made = self.told(vertex, made, about).await?;
        self.took(&cached, parent, &made);
        let held = self.hold(&made.chain, made.lease);
        state.push_layer(made.chain, made.diff, held);
        Ok(made.created)
    }

    async fn cached_or_made<F, W>(
        self: &Arc<Self>,
        state: &State,
        cached: &Cached,
        vertex: &vessel_image::Digest,
        make: F,
    ) -> Result<Made>
    where
        F: FnOnce(Workspace) -> W,
        W: Future<Output = Result<(Workspace, OwnedSemaphorePermit)>>,
    {
        if let Some(made) = self.find(state, cached).await? {
            return Ok(made);
        }
        let builder = &self.plan.builder;
        // Another build may be at the same step: it is waited for.
        let _only = builder.alone(&cached.key).await;
        if let Some(made) = self.find(state, cached).await? {
            return Ok(made);
        }
        if !cached.ignore
            && let Some(made) = Box::pin(self.find_elsewhere(state, cached, vertex)).await
        {
            return Ok(made);
        }
        self.obtain(state).await?;
        let temporary = builder.cache().temporary();
        let (workspace, _permit) = Box::pin(make(Workspace::new(&temporary)?)).await?;
        let store = builder.worker().store().clone();
        let parent = state.top().cloned();
        let (clamp, cancelled) = (self.epoch, self.plan.cancelled.flag());
        let (info, lease) = blocking(move || {
            let mut lease = store.lease();
            let directory = LayerDirectory {
                path: workspace.upper.clone(),
                take: true,
            };
            let options = DirectoryLayerOptions {
                clamp,
                limits: Limits::default(),
                cancelled: Some(cancelled),
            };
            let info = store.put_directory(directory, parent.as_ref(), &options, &mut lease)?;
            Ok((info, lease))
        })
        .await?;
        let now = time::now();
        let mut kept = builder.worker().store().lease();
        kept.pin_layer(&info.chain_id);
        let own = OwnStep {
            chain: info.chain_id.clone(),
            diff: info.diff_id.clone(),
            created: now,
            _lease: kept,
        };
        self.made().insert(cached.key.clone(), Arc::new(own));
        for key in [&cached.key].into_iter().chain(&cached.aliases) {
            builder.cache().put(Record {
                key: key.clone(),
                alias_of: (*key != cached.key).then(|| cached.key.clone()),
                chain: info.chain_id.clone(),
                diff: info.diff_id.clone(),
                description: cached.description.clone(),
                size: info.size,
                created: now,
                used: now,
                uses: 1,
            });
        }
        Ok(Made {
            chain: info.chain_id,
            diff: info.diff_id,
            created: now,
            cached: false,
            lease,
        })
    }

    fn made(&self) -> MutexGuard<'_, HashMap<Key, Arc<OwnStep>>> {
        self.plan.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn find(&self, state: &State, cached: &Cached) -> Result<Option<Made>> {
        let builder = &self.plan.builder;
        let mut lease = builder.worker().store().lease();
        // Nothing of other builds may be used with `ignore`, and a record may be another's by now.
        let known = if cached.ignore {
            let own = self.made().get(&cached.key).cloned();
            own.filter(|own| lease.pin_layer(&own.chain))
                .map(|own| (own.chain.clone(), own.diff.clone(), own.created))
        } else {
            let record = builder.cache().get(&cached.key, &mut lease);
            record.map(|record| (record.chain, record.diff, record.created))
        };
        let Some((from, diff, created)) = known else {
            return Ok(None);
        };
        let chain = on_top(state, &diff);
        let found = |lease| Made {
            chain: chain.clone(),
            diff: diff.clone(),
            created,
            cached: true,
            lease,
        };
        if chain == from || lease.pin_layer(&chain) {
            return Ok(Some(found(lease)));
        }
        if !cached.link {
            return Ok(None);
        }
        // The same layer on another base.
        let store = builder.worker().store().clone();
        let (parent, wanted) = (state.top().cloned(), diff.clone());
        let lease = blocking(move || {
            let archive = store.layer_archive(&from)?;
            store.put_layer(archive, parent.as_ref(), &wanted, &Limits::default(), &mut lease)?;
            Ok(lease)
        })
        .await?;
        Ok(Some(found(lease)))
    }

    /// The layer in which a directory was made.
    pub(super) async fn make_directory(
        self: &Arc<Self>,
        state: &mut State,
        line: &mut Line,
        vertex: Pending,
        path: &str,
    ) -> Result<i64> {
        self.tell(vertex.started()).await;
        let user = state.user().to_owned();
        let cached = Cached {
            key: key("workdir", &(state.top(), path, &user, self.epoch))?,
            aliases: Vec::new(),
            description: format!("WORKDIR {path}"),
            link: false,
            ignore: line.no_cache,
        };
        let (worker, layers) = (Arc::clone(self.plan.builder.worker()), state.chain.clone());
        let (path, epoch, solve) = (path.to_owned(), self.epoch, Arc::clone(self));
        let make = |workspace: Workspace| async move {
            let permit = solve.plan.builder.permit().await?;
            blocking(move || {
                use std::os::fd::AsFd;
                let root = worker.mount(&layers, Some(workspace.writable()))?;
                let owner = match user.as_str() {
                    "" => (0, 0),
                    user => tree::accounts::owner(Some(root.as_fd()), user)?,
                };
                let making = tree::Making {
                    mode: 0o755,
                    owner: Some(owner),
                    mtime: epoch,
                };
                tree::make_dirs(root.as_fd(), path.as_bytes(), &making)?;
                drop(root);
                Ok((workspace, permit))
            })
            .await
        };
        self.layer(state, line, vertex, cached, make).await
    }
}

/// A digest of bytes, for keys.
pub(super) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
