//! The cache: which step gave which layer, and directories that outlive builds.
//!
//! ```text
//! ROOT/index          journal of records, one per line: checksum, then JSON
//! ROOT/mounts/ID/     directories of `RUN --mount=type=cache`: `data` and `record.json`
//! ROOT/contexts/ID/   what clients synchronized: `files`, `digests`, `lock`
//! ROOT/tmp/           what is being made
//! ```
//!
//! Nothing in the index is needed for anything but speed: a line that is damaged or cut off is skipped, a record whose
//! layer is gone is dropped, and a power failure may take what the disk had not yet. A record pins its layer in the
//! content store, so that no collection of images takes it. [`Cache::enforce`] removes the least recently used records
//! until the rest keeps to the limit.

pub(crate) mod document;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod index;
pub(crate) mod mounts;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vessel_image::{ChainId, Descriptor, DiffId, Lease, Store};

use crate::builder::{CacheRecord, PruneOptions, Pruned};
use crate::error::{Error, Result};
use crate::time;
use index::{Index, Line};

/// The name of a step: a digest of all that decides its result.
pub(crate) type Key = String;

/// What a step gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub key: Key,
    /// The layer, with what is below it when it was made.
    pub chain: ChainId,
    pub diff: DiffId,
    pub description: String,
    pub size: u64,
    /// Nanoseconds since the epoch.
    pub created: i64,
    pub used: i64,
    pub uses: u64,
    /// Whose result this is under a further key; it counts nothing by itself and goes with that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias_of: Option<Key>,
}

struct Entry {
    record: Record,
    _lease: Lease,
}

/// The cache of an engine.
pub(crate) struct Cache {
    root: PathBuf,
    store: Store,
    state: Mutex<State>,
    pub mounts: mounts::Mounts,
    limit: u64,
    /// What layers were compressed to for a place elsewhere, by the kind of compression.
    compressed: Mutex<HashMap<(DiffId, u8), Descriptor>>,
}

struct State {
    records: HashMap<Key, Entry>,
    index: Index,
    /// Layers that running builds hold, by how many.
    busy: HashMap<ChainId, usize>,
}

impl State {
    /// Takes a record out with its aliases, and tells the keys.
    fn forget(&mut self, key: &str) -> Vec<Key> {
        let is_it = |entry: &Entry| entry.record.key == key || entry.record.alias_of.as_deref() == Some(key);
        let gone = self.records.extract_if(|_, entry| is_it(entry));
        gone.map(|(key, _)| key).collect()
    }
}

/// Layers a build uses: what has them is not pruned meanwhile.
pub(crate) struct Busy {
    cache: Arc<Cache>,
    chain: ChainId,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.cache.state();
        if let Some(count) = state.busy.get_mut(&self.chain) {
            *count -= 1;
            if *count == 0 {
                state.busy.remove(&self.chain);
            }
        }
    }
}

impl Cache {
    pub fn open(root: &Path, store: Store, limit: u64) -> Result<Self> {
        for directory in ["mounts", "contexts", "tmp"] {
            let path = root.join(directory);
            std::fs::create_dir_all(&path)
                .map_err(|error| Error::io(format!("cannot create {}", path.display()), error))?;
        }
        for left in std::fs::read_dir(root.join("tmp"))
            .into_iter()
            .flatten()
            .flatten()
        {
            crate::tree::copy::remove(&left.path());
        }
        let (mut index, lines) = Index::open(&root.join("index"))?;
        let mut found: HashMap<Key, Record> = HashMap::new();
        for line in lines {
            match line {
                Line::Put(record) => {
                    found.insert(record.key.clone(), record);
                }
                Line::Used { key, at } => {
                    if let Some(record) = found.get_mut(&key) {
                        record.used = record.used.max(at);
                        record.uses += 1;
                    }
                }
                Line::Removed { key } => {
                    found.remove(&key);
                }
            }
        }
        let mut records = HashMap::with_capacity(found.len());
        for (key, record) in found {
            let mut lease = store.lease();
            if lease.pin_layer(&record.chain) {
                records.insert(
                    key,
                    Entry {
                        record,
                        _lease: lease,
                    },
                );
            }
        }
        index.rewrite_if_long(records.values().map(|entry| &entry.record))?;
        Ok(Self {
            root: root.to_owned(),
            store,
            state: Mutex::new(State {
                records,
                index,
                busy: HashMap::new(),
            }),
            mounts: mounts::Mounts::open(&root.join("mounts"))?,
            limit,
            compressed: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn contexts(&self) -> PathBuf {
        self.root.join("contexts")
    }

    pub fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Looks a step up. What is found counts as used, and the lease keeps its layer.
    pub fn get(&self, key: &str, lease: &mut Lease) -> Option<Record> {
        let mut state = self.state();
        let state = &mut *state;
        // What an alias stands for is what counts as used.
        let record = &state.records.get(key)?.record;
        let key = &record.alias_of.clone().unwrap_or_else(|| record.key.clone());
        let entry = state.records.get_mut(key)?;
        if !lease.pin_layer(&entry.record.chain) {
            state.forget(key);
            return None;
        }
        entry.record.used = time::now();
        entry.record.uses += 1;
        let record = entry.record.clone();
        let line = Line::Used {
            key: record.key.clone(),
            at: record.used,
        };
        if let Err(error) = state.index.append(&line) {
            tracing::warn!("{error}");
        }
        Some(record)
    }

    /// Whether a step is known; it does not count as used.
    pub fn knows(&self, key: &str) -> bool {
        self.state().records.contains_key(key)
    }

    /// The keys under which the step of these keys is known, if it gave this layer.
    pub fn keys_like(&self, keys: &[Key], chain: &ChainId) -> Vec<Key> {
        fn first(record: &Record) -> &Key {
            record.alias_of.as_ref().unwrap_or(&record.key)
        }
        let state = self.state();
        let known = keys.iter().filter_map(|key| state.records.get(key));
        let steps: HashSet<&Key> = known
            .filter(|entry| entry.record.chain == *chain)
            .map(|entry| first(&entry.record))
            .collect();
        let records = state.records.values().map(|entry| &entry.record);
        records
            .filter(|record| record.chain == *chain && steps.contains(first(record)))
            .map(|record| record.key.clone())
            .collect()
    }

    /// Bytes that a cache mount may bring along: what the cache may take, and the disk has.
    pub fn room(&self) -> u64 {
        let free = rustix::fs::statvfs(&self.root).map_or(u64::MAX, |disk| disk.f_bavail * disk.f_frsize);
        self.limit.min(free)
    }

    /// Remembers what a step gave. That it cannot be written costs the next daemon the record, no build.
    pub fn put(&self, record: Record) {
        let mut lease = self.store.lease();
        if !lease.pin_layer(&record.chain) {
            return;
        }
        let mut state = self.state();
        let state = &mut *state;
        let mut lines = Vec::new();
        // What an alias gave goes with it: aliases of what is no longer known would keep its layer unseen.
        if state
            .records
            .get(&record.key)
            .is_some_and(|known| known.record.alias_of.is_none() && known.record.chain != record.chain)
        {
            let gone = state.forget(&record.key).into_iter();
            lines.extend(gone.map(|key| Line::Removed { key }));
        }
        lines.push(Line::Put(record.clone()));
        for line in &lines {
            if let Err(error) = state.index.append(line) {
                tracing::warn!("{error}");
            }
        }
        state.records.insert(
            record.key.clone(),
            Entry {
                record,
                _lease: lease,
            },
        );
    }

    /// Marks a layer as used by a running build.
    pub fn hold(self: &Arc<Self>, chain: &ChainId) -> Busy {
        *self.state().busy.entry(chain.clone()).or_default() += 1;
        Busy {
            cache: Arc::clone(self),
            chain: chain.clone(),
        }
    }

    /// All records, the most recently used first. `shared`: the layers images have. A layer that several steps gave
    /// counts for the first of them only.
    pub fn records(&self, shared: &HashSet<ChainId>) -> Vec<CacheRecord> {
        let mut counted = HashSet::new();
        let mut records = self.whole_records(shared);
        for (record, chain) in &mut records {
            if chain.as_ref().is_some_and(|chain| !counted.insert(chain.clone())) {
                record.size = 0;
            }
        }
        records.into_iter().map(|(record, _)| record).collect()
    }

    /// What made the layers that records name, by layer.
    pub fn layers(&self) -> HashMap<ChainId, String> {
        let state = self.state();
        let records = state.records.values().map(|entry| &entry.record);
        records
            .map(|record| (record.chain.clone(), record.description.clone()))
            .collect()
    }

    /// All records, each with the size and the name of its layer.
    fn whole_records(&self, shared: &HashSet<ChainId>) -> Vec<(CacheRecord, Option<ChainId>)> {
        let state = self.state();
        let mut out: Vec<(CacheRecord, Option<ChainId>)> = state
            .records
            .values()
            .filter(|entry| entry.record.alias_of.is_none())
            .map(|Entry { record, .. }| {
                let shown = CacheRecord {
                    id: record.key.clone(),
                    kind: "regular",
                    description: record.description.clone(),
                    in_use: state.busy.contains_key(&record.chain),
                    shared: shared.contains(&record.chain),
                    size: record.size,
                    created: time::system(record.created),
                    last_used: time::system(record.used),
                    usage_count: record.uses,
                };
                (shown, Some(record.chain.clone()))
            })
            .collect();
        drop(state);
        let others = self
            .mounts
            .records()
            .into_iter()
            .chain(contexts(&self.contexts()));
        out.extend(others.map(|record| (record, None)));
        out.sort_by(|(a, _), (b, _)| b.last_used.cmp(&a.last_used).then_with(|| a.id.cmp(&b.id)));
        out
    }

    /// Removes records.
    pub fn prune(&self, options: &PruneOptions, shared: &HashSet<ChainId>) -> Result<Pruned> {
        let now = std::time::SystemTime::now();
        // What stays of records, and what of it layers are.
        let (mut kept, mut layers) = (0, HashSet::new());
        let mut pruned = Pruned::default();
        let mut freed: HashMap<ChainId, u64> = HashMap::new();
        for (record, chain) in self.whole_records(shared) {
            let counts = !record.shared && chain.as_ref().is_none_or(|chain| !layers.contains(chain));
            let size = if counts { record.size } else { 0 };
            let any = |wanted: &[String], test: &dyn Fn(&str) -> bool| {
                wanted.is_empty() || wanted.iter().any(|one| test(one))
            };
            let wanted = !record.in_use
                && (options.all || !record.shared && record.kind != "source.local")
                && any(&options.ids, &|id| record.id.starts_with(id))
                && any(&options.kinds, &|kind| record.kind == kind)
                && any(&options.descriptions, &|text| record.description.contains(text))
                && options.unused_for.is_none_or(|least| {
                    now.duration_since(record.last_used)
                        .is_ok_and(|unused| unused >= least)
                });
            // The newest come first: they are what is kept.
            let fits = options
                .keep_storage
                .is_some_and(|keep| !record.shared && kept + size <= keep);
            if !wanted || fits || !self.remove(&record)? {
                kept += size;
                layers.extend(chain);
                continue;
            }
            match chain {
                Some(chain) if !record.shared => drop(freed.insert(chain, record.size)),
                _ if !record.shared => pruned.reclaimed += record.size,
                _ => {}
            }
            pruned.ids.push(record.id);
        }
        freed.retain(|chain, _| !layers.contains(chain));
        pruned.reclaimed += freed.values().sum::<u64>();
        Ok(pruned)
    }

    /// Forgets a record. False: a build began to use it meanwhile.
    fn remove(&self, record: &CacheRecord) -> Result<bool> {
        match record.kind {
            "exec.cachemount" => self.mounts.remove(&record.id),
            "source.local" => Ok(remove_context(&self.contexts().join(&record.id))),
            _ => {
                let mut state = self.state();
                let Some(entry) = state.records.get(&record.id) else {
                    return Ok(false);
                };
                if state.busy.contains_key(&entry.record.chain) {
                    return Ok(false);
                }
                for key in state.forget(&record.id) {
                    state.index.append(&Line::Removed { key })?;
                }
                Ok(true)
            }
        }
    }

    /// Removes what is beyond the limit, the least recently used first. Layers that images have count nothing.
    pub fn enforce(&self, shared: &HashSet<ChainId>) -> Result<Pruned> {
        let total: u64 = self
            .records(shared)
            .iter()
            .filter(|record| !record.shared)
            .map(|record| record.size)
            .sum();
        if total <= self.limit {
            let mut state = self.state();
            let state = &mut *state;
            state
                .index
                .rewrite_if_long(state.records.values().map(|entry| &entry.record))?;
            return Ok(Pruned::default());
        }
        let options = PruneOptions {
            all: true,
            keep_storage: Some(self.limit),
            ..PruneOptions::default()
        };
        self.prune(&options, shared)
    }
}

/// Contexts that were synchronized.
fn contexts(root: &Path) -> Vec<CacheRecord> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let Ok(id) = entry.file_name().into_string() else {
            continue;
        };
        let path = entry.path();
        let time = |result: std::io::Result<std::time::SystemTime>| result.unwrap_or(std::time::UNIX_EPOCH);
        let (Ok(about), Ok(lock)) = (path.metadata(), path.join("lock").metadata()) else {
            continue;
        };
        out.push(CacheRecord {
            id,
            kind: "source.local",
            description: std::fs::read_to_string(path.join("name")).unwrap_or_default(),
            in_use: is_locked(&path.join("lock")),
            shared: false,
            size: std::fs::read_to_string(path.join("size"))
                .ok()
                .and_then(|size| size.parse().ok())
                .unwrap_or_else(|| crate::tree::disk_usage(&path)),
            created: time(about.created()),
            last_used: time(lock.modified()),
            usage_count: 1,
        });
    }
    out
}

fn is_locked(path: &Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else {
        return false;
    };
    matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock))
}

/// Removes a context nobody uses.
fn remove_context(path: &Path) -> bool {
    let Ok(file) = std::fs::File::options().write(true).open(path.join("lock")) else {
        return false;
    };
    if file.try_lock().is_err() {
        return false;
    }
    crate::tree::copy::remove(path);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use vessel_image::{DirectoryLayerOptions, LayerDirectory, LayerInfo, Limits};

    fn layer(root: &Path, store: &Store, text: &str, lease: &mut Lease) -> LayerInfo {
        let path = root.join(text);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("file"), text).unwrap();
        let options = DirectoryLayerOptions {
            clamp: None,
            limits: Limits::default(),
            cancelled: None,
        };
        let directory = LayerDirectory { path, take: false };
        store.put_directory(directory, None, &options, lease).unwrap()
    }

    fn record(key: &str, alias_of: Option<&str>, layer: &LayerInfo) -> Record {
        Record {
            key: key.to_owned(),
            chain: layer.chain_id.clone(),
            diff: layer.diff_id.clone(),
            description: String::new(),
            size: layer.size,
            created: 1,
            used: 1,
            uses: 1,
            alias_of: alias_of.map(str::to_owned),
        }
    }

    /// Two steps that gave the same layer take its space once, and the layer stays as long as one of them is kept.
    #[test]
    fn a_layer_of_several_steps_counts_once() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("store")).unwrap();
        let mut lease = store.lease();
        let one = layer(directory.path(), &store, "one", &mut lease);
        let two = layer(directory.path(), &store, "two", &mut lease);
        let root = directory.path().join("cache");
        std::fs::create_dir(&root).unwrap();
        let size = one.size;
        assert_eq!(two.size, size);
        let cache = Cache::open(&root, store.clone(), 2 * size).unwrap();
        let at = |used, record: Record| Record { used, ..record };
        cache.put(at(4, record("a", None, &one)));
        cache.put(at(3, record("b", None, &one)));
        cache.put(at(2, record("c", None, &two)));
        let none = HashSet::new();
        assert_eq!(
            cache.records(&none).iter().map(|record| record.size).sum::<u64>(),
            2 * size
        );
        assert!(cache.enforce(&none).unwrap().ids.is_empty());
        // Of those that may stay the newest do, whichever layer is whose.
        let keep = PruneOptions {
            all: true,
            keep_storage: Some(size),
            ..PruneOptions::default()
        };
        let pruned = cache.prune(&keep, &none).unwrap();
        assert_eq!((pruned.ids, pruned.reclaimed), (vec!["c".to_owned()], size));
        let first = PruneOptions {
            all: true,
            ids: vec!["a".to_owned()],
            ..PruneOptions::default()
        };
        assert_eq!(
            cache.prune(&first, &none).unwrap().reclaimed,
            0,
            "b has the layer"
        );
        assert_eq!(cache.records(&none)[0].size, size);
        let rest = PruneOptions {
            all: true,
            ..PruneOptions::default()
        };
        assert_eq!(cache.prune(&rest, &none).unwrap().reclaimed, size);
    }

    /// An alias is seen nowhere: one of a result that is known no longer would keep its layer for ever.
    #[test]
    fn aliases_go_with_what_they_stood_for() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("store")).unwrap();
        let mut lease = store.lease();
        let one = layer(directory.path(), &store, "one", &mut lease);
        let two = layer(directory.path(), &store, "two", &mut lease);
        let root = directory.path().join("cache");
        std::fs::create_dir(&root).unwrap();
        let cache = Cache::open(&root, store.clone(), u64::MAX).unwrap();
        cache.put(record("main", None, &one));
        cache.put(record("alias", Some("main"), &one));
        cache.put(record("main", None, &one));
        assert!(cache.knows("alias"));
        cache.put(record("main", None, &two));
        cache.put(record("other", Some("main"), &two));
        assert!(!cache.knows("alias") && cache.knows("main") && cache.knows("other"));
        drop(cache);
        let cache = Cache::open(&root, store.clone(), u64::MAX).unwrap();
        assert!(!cache.knows("alias") && cache.knows("other"));
    }
}
