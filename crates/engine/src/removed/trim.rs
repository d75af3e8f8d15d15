//! The bounds of the bin, and its emptying.
//!
//! What is older than the set age goes, and the oldest of more than 256 things. The oldest goes while all of it is larger
//! than the set size, except what was removed in the last ten minutes; and, that too, while the file system has less left
//! than it should: what its user needs comes first. As long as anything is in the bin this is looked at every two seconds,
//! which costs one statfs(2).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use vessel_api::BinEmptied;
use vessel_image::{ChainId, Collected, LiveSet};

use super::{BinRecord, Thing};
use crate::disk::Meter;
use crate::paths::release_limit;
use crate::volumes::remove_files;
use crate::{Engine, Result, blocking, time};

/// How often the bounds are looked at while there is something.
const EVERY: Duration = Duration::from_secs(2);
/// For so long something stays that is larger than the bin.
const GRACE: i64 = 600 * 1_000_000_000;
/// The default size at most: this, and a tenth of the file system.
const MOST: u64 = 10_000_000_000;
/// So many things at most: each is kept in memory.
const MOST_THINGS: usize = 256;
/// What must be left on the file system: this, or a fiftieth of it.
const RESERVE: u64 = 2_000_000_000;

/// The bounds at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Bytes of the bin.
    pub size: u64,
    /// Bytes that the file system has left for others.
    free: u64,
    /// And should have.
    reserve: u64,
}

impl Limits {
    fn of(size: Option<u64>, total: u64, free: u64) -> Self {
        Self {
            size: size.unwrap_or_else(|| MOST.min(total / 10)),
            free,
            reserve: RESERVE.min(total / 50),
        }
    }

    /// Whether the oldest thing of a bin of `size` bytes, removed `age` ago, has to go.
    fn exceeded(self, size: u64, age: i64) -> bool {
        self.free < self.reserve || size > self.size && age > GRACE
    }
}

impl Engine {
    /// Looks after the bin until the engine ends.
    pub(crate) fn watch_bin(self: &Arc<Self>) {
        if !self.bin.keeps && self.bin.all().is_empty() {
            return;
        }
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let Some(engine) = weak.upgrade().filter(|engine| !engine.ending()) else {
                    return;
                };
                if engine.bin.all().is_empty() {
                    let bin = engine.bin_filled();
                    drop(engine);
                    bin.await;
                    continue;
                }
                if let Err(error) = engine.trim_bin().await {
                    tracing::warn!("{}", error.wrap("the bin"));
                }
                drop(engine);
                tokio::time::sleep(EVERY).await;
            }
        });
    }

    /// Resolves when something comes into the bin; does not keep the engine.
    fn bin_filled(self: &Arc<Self>) -> impl Future<Output = ()> + Send + 'static {
        let filled = Arc::clone(&self.bin.filled);
        async move { filled.notified().await }
    }

    pub(super) fn bin_limits(&self) -> Option<Limits> {
        let found = rustix::fs::statvfs(&self.config().root).ok()?;
        let (total, free) = (found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize);
        Some(Limits::of(self.bin.bounds.size, total, free))
    }

    async fn trim_bin(self: &Arc<Self>) -> Result<()> {
        // What goes whatever its size is need not be measured.
        self.let_go(false).await?;
        let engine = Arc::clone(self);
        let measured = blocking(move || engine.measure_bin()).await;
        self.let_go(true).await?;
        measured
    }

    /// Lets go of what is too old or too much; of what is too large if sizes count.
    async fn let_go(self: &Arc<Self>, sizes: bool) -> Result<()> {
        let age = self.bin.age();
        let _turn = self.bin.turn.lock().await;
        // Layers are collected once for many things.
        let mut owed = false;
        loop {
            let mut entries: Vec<(String, Arc<BinRecord>)> = self.bin.arrived().into_iter().collect();
            entries.sort_by_key(|(_, entry)| entry.time);
            let Some((key, oldest)) = entries.first() else {
                break;
            };
            let old = time::now().saturating_sub(oldest.time);
            let goes = old > age
                || entries.len() > MOST_THINGS
                || sizes && {
                    if std::mem::take(&mut owed) {
                        self.collect_images().await?;
                    }
                    let shared = self.shared_of_bin().await?;
                    let files: u64 = entries.iter().filter_map(|(_, entry)| entry.size).sum();
                    self.bin_limits()
                        .is_some_and(|limits| limits.exceeded(files + shared, old))
                };
            if !goes {
                break;
            }
            tracing::debug!(
                kind = oldest.thing.kind(),
                name = oldest.thing.name(),
                "leaves the bin"
            );
            self.bin.forget(key);
            if oldest.thing.has_files() {
                let files = self.bin.files(key);
                // What cannot be removed now goes at the next start.
                blocking(move || remove_all(&files)).await?;
            }
            // Layers may have been waiting for a container, too.
            owed |= !matches!(oldest.thing, Thing::Volume { .. } | Thing::Network { .. });
        }
        if owed {
            self.collect_images().await?;
        }
        Ok(())
    }

    /// Bytes of layers that nothing but the bin needs, as they were when the bin last changed: to look costs a file for each
    /// layer there is.
    async fn shared_of_bin(self: &Arc<Self>) -> Result<u64> {
        let now = self.bin.changes();
        if let Some(bytes) = self.bin.shared(now) {
            return Ok(bytes);
        }
        let engine = Arc::clone(self);
        let bytes = blocking(move || engine.layers_of_bin()).await?;
        self.bin.set_shared(now, bytes);
        Ok(bytes)
    }

    /// Empties the bin.
    ///
    /// # Errors
    /// The disk; what was removed until then is gone.
    pub async fn bin_empty(self: &Arc<Self>) -> Result<BinEmptied> {
        self.bin_release(|_| true).await
    }

    /// Lets go of what has layers: nobody else may need them.
    pub(crate) async fn bin_release_layers(self: &Arc<Self>) -> Result<BinEmptied> {
        self.bin_release(|thing| matches!(thing, Thing::Image { .. } | Thing::Container { .. }))
            .await
    }

    async fn bin_release(self: &Arc<Self>, goes: impl Fn(&Thing) -> bool) -> Result<BinEmptied> {
        let _turn = self.bin.turn.lock().await;
        let mut emptied = BinEmptied::default();
        let mut entries = self.bin.arrived();
        entries.retain(|_, entry| goes(&entry.thing));
        let shared = entries
            .values()
            .any(|entry| !matches!(entry.thing, Thing::Volume { .. }));
        for (key, entry) in entries {
            let engine = Arc::clone(self);
            let owned = Arc::clone(&entry);
            emptied.space_reclaimed += blocking(move || {
                let size = if owned.thing.has_files() {
                    engine.entry_size(&key, &owned)?
                } else {
                    0
                };
                engine.bin.forget(&key);
                if owned.thing.has_files() {
                    // It is forgotten, and the others go.
                    if let Err(error) = remove_all(&engine.bin.files(&key)) {
                        tracing::warn!("{error}; the next start of the daemon removes it");
                    }
                }
                Ok(size)
            })
            .await?;
            emptied.removed += 1;
        }
        if shared {
            emptied.space_reclaimed += self.collect_images().await?.freed;
        }
        Ok(emptied)
    }

    fn measure_bin(&self) -> Result<()> {
        for (key, entry) in self.bin.arrived() {
            if entry.size.is_none() && entry.thing.has_files() {
                let size = self.entry_size(&key, &entry)?;
                let measured = BinRecord {
                    size: Some(size),
                    ..BinRecord::clone(&entry)
                };
                self.bin.put(&key, measured)?;
            }
        }
        Ok(())
    }

    /// Bytes of an entry's files. Blocks.
    pub(super) fn entry_size(&self, key: &str, entry: &BinRecord) -> Result<u64> {
        match (entry.size, &entry.thing) {
            (Some(size), _) => Ok(size),
            (None, thing) if thing.has_files() => Ok(Meter::default().tree(&self.bin.files(key))),
            _ => Ok(0),
        }
    }

    /// Bytes of layers that nothing but the bin needs. Blocks.
    pub(super) fn layers_of_bin(&self) -> Result<u64> {
        let all: BTreeSet<String> = self.bin.arrived().into_keys().collect();
        if all.is_empty() {
            return Ok(0);
        }
        Ok(self.unused_without(&all)?.freed)
    }

    /// The layers that nothing but the bin needs. Blocks.
    pub(crate) fn only_in_bin(&self) -> Result<Vec<ChainId>> {
        let all: BTreeSet<String> = self.bin.arrived().into_keys().collect();
        match all.is_empty() {
            true => Ok(Vec::new()),
            false => Ok(self.unused_without(&all)?.layers),
        }
    }

    /// What could be collected without some entries of the bin, and cannot with them. Blocks.
    pub(crate) fn unused_without(&self, keys: &BTreeSet<String>) -> Result<Collected> {
        self.unused_beside(keys, &self.unused_already()?)
    }

    /// What could be collected with all entries of the bin. Blocks.
    pub(super) fn unused_already(&self) -> Result<Collected> {
        let mut live = LiveSet::default();
        self.mark_live(&mut live, &BTreeSet::new())?;
        Ok(self.images().content().unused(live)?)
    }

    /// As [`Self::unused_without`], for who knows what could be collected already. Blocks.
    pub(super) fn unused_beside(&self, keys: &BTreeSet<String>, already: &Collected) -> Result<Collected> {
        let mut live = LiveSet::default();
        self.mark_live(&mut live, keys)?;
        let mut unused = self.images().content().unused(live)?;
        unused.layers.retain(|layer| !already.layers.contains(layer));
        unused.blobs.retain(|blob| !already.blobs.contains(blob));
        unused.freed = unused.freed.saturating_sub(already.freed);
        Ok(unused)
    }
}

/// Removes the files of an entry; a container's have a limit of their own.
pub(super) fn remove_all(files: &std::path::Path) -> Result<()> {
    release_limit(files);
    remove_files(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_comes_first_and_what_is_new_may_be_large() {
        let roomy = Limits::of(None, 1 << 40, 1 << 39);
        assert_eq!((roomy.size, roomy.reserve), (MOST, RESERVE));
        assert!(!roomy.exceeded(MOST, i64::MAX));
        assert!(roomy.exceeded(MOST + 1, GRACE + 1));
        assert!(!roomy.exceeded(MOST * 5, GRACE));
        let full = Limits::of(None, 1 << 40, RESERVE - 1);
        assert!(full.exceeded(1, 0));
        let small = Limits::of(None, 1000, 500);
        assert_eq!((small.size, small.reserve), (100, 20));
        assert_eq!(Limits::of(Some(7), 1000, 500).size, 7);
    }
}
