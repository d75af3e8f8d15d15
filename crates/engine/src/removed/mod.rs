//! The bin: what a user's commands removed, for a while.
//!
//! A container keeps its record and its directory, a volume its record and its directory, an image its record and its names
//! (its layers and documents stay where they are and count as used), a network its record. Directories are moved within the
//! file system, to `removed/KEY`, never copied; so a removal is one rename(2) and a record more, and less work than to remove
//! the files. What removes itself (`--rm`), what builds make for themselves and what the engine tidies up does not come here.
//!
//! **Order.** The record of the bin is written before anything of the thing goes, and deleted after all of it is back; what
//! a daemon that is killed in between leaves is finished or taken back by [`settle`] before anything else looks, so that there
//! is one of both, the thing or its record here, and no files that belong to neither.
//!
//! **Bounds.** See [`trim`]: an age, a size, and what the file system must have left for others.

mod list;
mod settle;
mod trim;
mod undo;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub(crate) use settle::settle;
pub(crate) use undo::taken;

use crate::container::record::{Record, State};
use crate::image_index::ImageRecord;
use crate::network::NetworkRecord;
use crate::operation::{self, Operation};
use crate::paths::Paths;
use crate::state::Table;
use crate::volumes::VolumeRecord;
use crate::{Result, Store, ids, time};

/// How the bin is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BinConfig {
    /// Bytes at most; none: a tenth of the file system, 10 GB at most.
    pub size: Option<u64>,
    /// How long something stays.
    pub age: Duration,
}

impl Default for BinConfig {
    fn default() -> Self {
        Self {
            size: None,
            age: Duration::from_secs(24 * 3600),
        }
    }
}

/// What is kept of something removed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BinRecord {
    /// The command that removed it.
    pub operation: String,
    /// Who gave that.
    pub client: String,
    /// When, nanoseconds since the epoch.
    pub time: i64,
    /// Bytes on disk of its files; none: not measured yet.
    pub size: Option<u64>,
    /// What it was.
    pub thing: Thing,
}

/// Something removed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Thing {
    Container {
        record: Box<Record>,
        state: Box<State>,
        /// Its anonymous volumes, which were its own.
        owned: Vec<String>,
    },
    Volume {
        name: String,
        record: Box<VolumeRecord>,
    },
    Image {
        id: String,
        record: Box<ImageRecord>,
        names: Vec<String>,
        /// Names that stood for an index, with its digest.
        indexes: BTreeMap<String, String>,
    },
    Network {
        record: Box<NetworkRecord>,
    },
}

impl Thing {
    /// `container`, ...
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Container { .. } => "container",
            Self::Volume { .. } => "volume",
            Self::Image { .. } => "image",
            Self::Network { .. } => "network",
        }
    }

    /// What users call it.
    pub fn name(&self) -> String {
        match self {
            Self::Container { record, .. } => record.name.clone(),
            Self::Volume { name, .. } => name.clone(),
            Self::Image { id, names, .. } => match names.first() {
                Some(name) => name.clone(),
                None => crate::images::short(id).to_owned(),
            },
            Self::Network { record } => record.name.clone(),
        }
    }

    /// Its ID; a volume has none.
    pub fn id(&self) -> &str {
        match self {
            Self::Container { record, .. } => &record.id,
            Self::Volume { .. } => "",
            Self::Image { id, .. } => id,
            Self::Network { record } => &record.id,
        }
    }

    /// Whether it has a directory here.
    pub fn has_files(&self) -> bool {
        matches!(self, Self::Container { .. } | Self::Volume { .. })
    }
}

/// The bin.
#[derive(Debug)]
pub(crate) struct Bin {
    config: Option<BinConfig>,
    directory: PathBuf,
    table: Table<BinRecord>,
    entries: Mutex<BTreeMap<String, Arc<BinRecord>>>,
    /// Held while something is brought back or removed for good.
    turn: tokio::sync::Mutex<()>,
    /// There may be something to look after.
    filled: Arc<Notify>,
    /// Counts changes of the entries.
    changes: AtomicU64,
    /// Bytes of layers that only the bin needs, and the change after which that was found.
    shared: Mutex<Option<(u64, u64)>>,
}

/// A container's key: removing it twice is removing it once.
pub(crate) fn container_key(id: &str) -> String {
    format!("c-{id}")
}

impl Bin {
    /// Reads the table, which is settled.
    pub fn open(config: Option<BinConfig>, paths: &Paths, store: &Store) -> Result<Self> {
        let table = store.table::<BinRecord>("bin");
        let entries = table
            .all()?
            .into_iter()
            .map(|(key, record)| (key, Arc::new(record)));
        Ok(Self {
            config,
            directory: paths.removed(),
            entries: Mutex::new(entries.collect()),
            table,
            turn: tokio::sync::Mutex::default(),
            filled: Arc::default(),
            changes: AtomicU64::new(0),
            shared: Mutex::default(),
        })
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Arc<BinRecord>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that is in it, by key.
    pub fn all(&self) -> BTreeMap<String, Arc<BinRecord>> {
        self.entries().clone()
    }

    pub fn get(&self, key: &str) -> Option<Arc<BinRecord>> {
        self.entries().get(key).cloned()
    }

    /// Where the files of an entry are.
    pub fn files(&self, key: &str) -> PathBuf {
        self.directory.join(key)
    }

    /// Makes room for something that a user's command removes: from now on it is in the journal. None: it is to be removed
    /// for good.
    pub fn keep(&self, key: Option<String>, thing: impl FnOnce() -> Thing) -> Result<Option<String>> {
        if self.config.is_none() {
            return Ok(None);
        }
        let Some(command) = operation::current().filter(|command| !command.id.is_empty()) else {
            return Ok(None);
        };
        self.add(key, command, time::now(), thing()).map(Some)
    }

    /// The same for something that was to be removed with what an entry is about.
    pub fn keep_with(&self, other: &BinRecord, thing: Thing) -> Result<String> {
        let command = Operation {
            id: other.operation.clone(),
            client: other.client.clone(),
        };
        self.add(None, command, other.time, thing)
    }

    fn add(&self, key: Option<String>, command: Operation, time: i64, thing: Thing) -> Result<String> {
        let key = key.unwrap_or_else(|| {
            let mut id = ids::id();
            id.truncate(24);
            format!("x-{id}")
        });
        let record = BinRecord {
            operation: command.id,
            client: command.client,
            time,
            size: None,
            thing,
        };
        self.table.put_now(&key, &record)?;
        self.entries().insert(key.clone(), Arc::new(record));
        self.changes.fetch_add(1, Ordering::AcqRel);
        Ok(key)
    }

    fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn shared(&self, now: u64) -> Option<u64> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.filter(|(at, _)| *at == now).map(|(_, bytes)| bytes)
    }

    fn set_shared(&self, at: u64, bytes: u64) {
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, bytes));
    }

    /// Something is all here.
    pub fn kept(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.filled.notify_one();
    }

    /// Something is not here after all.
    pub fn forget(&self, key: &str) {
        if let Err(error) = self.table.delete_now(key) {
            tracing::warn!("{error}; the next start of the daemon finds out");
        }
        self.entries().remove(key);
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    fn put(&self, key: &str, record: BinRecord) -> Result<()> {
        let mut entries = self.entries();
        // Unless it went meanwhile.
        if entries.contains_key(key) {
            self.table.put_now(key, &record)?;
            entries.insert(key.to_owned(), Arc::new(record));
        }
        Ok(())
    }
}
