//! The builder: one for each engine, many builds at a time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::request::{BuildRequest, BuildResult};
use crate::session::Session;
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
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .finish_non_exhaustive()
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
        Ok(Arc::new(Self { worker, config }))
    }

    /// Builds. Dropping the future cancels: processes are killed, what is half made is removed, what steps finished stays
    /// in the cache.
    ///
    /// # Errors
    /// With [`Error::located`] when an instruction is to blame.
    pub async fn build(
        self: &Arc<Self>,
        _request: BuildRequest,
        _session: Arc<dyn Session>,
        _progress: Progress,
    ) -> Result<BuildResult> {
        let _ = &self.worker;
        Err(Error::new(
            ErrorKind::Unsupported,
            "the solver is not part of this revision",
        ))
    }

    /// The records of the cache.
    pub async fn cache_records(&self) -> Result<Vec<CacheRecord>> {
        Ok(Vec::new())
    }

    /// Removes records. What a running build uses stays.
    pub async fn prune(&self, _options: PruneOptions) -> Result<Pruned> {
        Ok(Pruned::default())
    }
}
