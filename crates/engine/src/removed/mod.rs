//! The bin: what a user's commands removed, for a while.
//!
//! A container keeps its record and its directory, a volume its record and its directory, an image its record and its names
//! (its layers and documents stay where they are and count as used), a network its record. Directories are moved within the
//! file system, to `removed/KEY`, never copied; so a removal is one rename(2) and a record more, and less work than to remove
//! the files. What removes itself (`--rm`), what builds make for themselves, what the engine tidies up and what a prune
//! removes to make room (all but networks) does not come here; nor do files on another file system than the root.
//!
//! **Order.** The record of the bin is written before anything of the thing goes, and deleted after all of it is back; what
//! a daemon that is killed in between leaves is finished or taken back by [`settle`] before anything else looks, so that there
//! is one of both, the thing or its record here, and no files that belong to neither. While the thing is on its way, its
//! entry keeps the layers it needs, but is not shown, brought back or let go.
//!
//! **Bounds.** See [`trim`]: an age, a size, and what the file system must have left for others. They are recorded: a daemon
//! that runs without a bin keeps nothing more, and leaves what an earlier one kept until its time is over.

mod list;
mod settle;
mod trim;
mod undo;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub(crate) use settle::settle;
pub(crate) use undo::taken;

use crate::container::record::{Record, State};
use crate::error::Context;
use crate::image_index::ImageRecord;
use crate::network::NetworkRecord;
use crate::operation::{self, Operation};
use crate::paths::Paths;
use crate::state::Table;
use crate::volumes::VolumeRecord;
use crate::{Result, Store, ids, time};

/// How the bin is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// The one key of the table of bounds.
const BOUNDS: &str = "last";

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
    /// Whether what users remove comes here.
    pub(crate) keeps: bool,
    /// Those of this daemon, or of the one before that kept something.
    bounds: BinConfig,
    directory: PathBuf,
    table: Table<BinRecord>,
    entries: Mutex<Entries>,
    /// Held while something is brought back or removed for good.
    turn: tokio::sync::Mutex<()>,
    /// There may be something to look after.
    filled: Arc<Notify>,
    /// Counts changes of the entries.
    changes: AtomicU64,
    /// Bytes of layers that only the bin needs, and the change after which that was found.
    shared: Mutex<Option<(u64, u64)>>,
}

#[derive(Debug, Default)]
struct Entries {
    all: BTreeMap<String, Arc<BinRecord>>,
    /// Those of things that are being removed: not all of them is here yet.
    coming: BTreeSet<String>,
}

/// A container's key: removing it twice is removing it once.
pub(crate) fn container_key(id: &str) -> String {
    format!("c-{id}")
}

impl Bin {
    /// Reads the table, which is settled.
    pub fn open(config: Option<BinConfig>, paths: &Paths, store: &Store) -> Result<Self> {
        let bounds = store.table::<BinConfig>("bin-bounds");
        let recorded = bounds.get(BOUNDS)?;
        if let Some(config) = config.filter(|config| recorded != Some(*config)) {
            bounds.put_now(BOUNDS, &config)?;
        }
        let table = store.table::<BinRecord>("bin");
        let directory = paths.removed();
        let mut entries = Entries::default();
        for (key, record) in table.all()? {
            // The removal of a container goes on.
            if record.thing.has_files() && !directory.join(&key).exists() {
                entries.coming.insert(key.clone());
            }
            entries.all.insert(key, Arc::new(record));
        }
        Ok(Self {
            keeps: config.is_some(),
            bounds: config.or(recorded).unwrap_or_default(),
            directory,
            entries: Mutex::new(entries),
            table,
            turn: tokio::sync::Mutex::default(),
            filled: Arc::default(),
            changes: AtomicU64::new(0),
            shared: Mutex::default(),
        })
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that is in it or on its way, by key.
    pub fn all(&self) -> BTreeMap<String, Arc<BinRecord>> {
        self.entries().all.clone()
    }

    /// What is in it, by key.
    pub fn arrived(&self) -> BTreeMap<String, Arc<BinRecord>> {
        let entries = self.entries();
        let arrived = entries
            .all
            .iter()
            .filter(|(key, _)| !entries.coming.contains(*key));
        arrived
            .map(|(key, entry)| (key.clone(), Arc::clone(entry)))
            .collect()
    }

    pub fn get(&self, key: &str) -> Option<Arc<BinRecord>> {
        self.entries().all.get(key).cloned()
    }

    /// Where the files of an entry are.
    pub fn files(&self, key: &str) -> PathBuf {
        self.directory.join(key)
    }

    /// Moves a directory to [`Self::files`] of an entry, unless that was done already. False: there is nothing to keep, or it
    /// cannot be had without copying; what is there is to be removed for good.
    pub fn move_in(directory: &Path, files: &Path) -> Result<bool> {
        match std::fs::rename(directory, files) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(files.exists()),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                tracing::info!(
                    "{} is on another file system than the bin: it is removed for good",
                    directory.display()
                );
                Ok(false)
            }
            Err(error) => {
                Err(error).context(|| format!("move {} to {}", directory.display(), files.display()))
            }
        }
    }

    /// Moves files from one place to another for something that is done then, and back if it cannot be done.
    pub fn with_moved<T>(from: &Path, to: &Path, act: impl FnOnce() -> Result<T>) -> Result<T> {
        std::fs::rename(from, to).context(|| format!("move {} to {}", from.display(), to.display()))?;
        act().inspect_err(|_| {
            if let Err(error) = std::fs::rename(to, from) {
                tracing::warn!("move {} back to {}: {error}", to.display(), from.display());
            }
        })
    }

    /// Makes room for something that a user's command removes: from now on it is in the journal. None: it is to be removed
    /// for good. Ends with [`Self::kept`] or [`Self::forget`].
    pub fn keep(&self, key: Option<String>, thing: impl FnOnce() -> Thing) -> Result<Option<String>> {
        if !self.keeps {
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
        {
            let mut entries = self.entries();
            entries.coming.insert(key.clone());
            entries.all.insert(key.clone(), Arc::new(record));
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
        Ok(key)
    }

    /// How long something stays, in nanoseconds.
    fn age(&self) -> i64 {
        i64::try_from(self.bounds.age.as_nanos()).unwrap_or(i64::MAX)
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
    pub fn kept(&self, key: &str) {
        self.entries().coming.remove(key);
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.filled.notify_one();
    }

    /// Something is not here after all.
    pub fn forget(&self, key: &str) {
        if let Err(error) = self.table.delete_now(key) {
            tracing::warn!("{error}; the next start of the daemon finds out");
        }
        {
            let mut entries = self.entries();
            entries.all.remove(key);
            entries.coming.remove(key);
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    fn put(&self, key: &str, record: BinRecord) -> Result<()> {
        let mut entries = self.entries();
        // Unless it went meanwhile.
        if entries.all.contains_key(key) {
            self.table.put_now(key, &record)?;
            entries.all.insert(key.to_owned(), Arc::new(record));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_on_its_way_counts_and_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths {
            root: directory.path().to_owned(),
            run: directory.path().join("run"),
        };
        let (store, _) = Store::open(directory.path()).unwrap();
        let bin = Bin::open(Some(BinConfig::default()), &paths, &store).unwrap();
        let thing = || Thing::Volume {
            name: "data".into(),
            record: Box::default(),
        };
        let key = operation::scope(Operation::new(String::new()), async { bin.keep(None, thing) });
        let key = key.await.unwrap().unwrap();
        assert!(bin.all().contains_key(&key) && bin.arrived().is_empty());
        bin.kept(&key);
        assert!(bin.arrived().contains_key(&key));
        // A removal that goes on with the next daemon is on its way there, too.
        let bin = Bin::open(None, &paths, &store).unwrap();
        assert!(bin.all().contains_key(&key) && bin.arrived().is_empty());
        bin.forget(&key);
        assert!(bin.all().is_empty() && bin.entries().coming.is_empty());
    }

    #[test]
    fn what_cannot_be_done_with_moved_files_moves_them_back() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        let refused = Bin::with_moved(&from, &to, || {
            assert!(to.exists() && !from.exists());
            Err::<(), _>(crate::Error::conflict("no"))
        });
        assert!(refused.is_err() && from.exists() && !to.exists());
        Bin::with_moved(&from, &to, || Ok(())).unwrap();
        assert!(to.exists() && !from.exists());
    }
}
