//! Leases: what must not be collected although no record mentions it yet.

use std::collections::{HashMap, HashSet};

use super::Store;
use crate::digest::{ChainId, Digest};

/// A blob or layer of a store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Item {
    Blob(Digest),
    Layer(ChainId),
}

/// How often each item is leased.
#[derive(Default)]
pub(super) struct Pins {
    counts: HashMap<Item, usize>,
    /// While a collection runs, released items stay: its view of the records may be older than the release.
    released: Option<HashSet<Item>>,
}

impl Pins {
    pub(super) fn contains(&self, item: &Item) -> bool {
        self.counts.contains_key(item)
            || self
                .released
                .as_ref()
                .is_some_and(|released| released.contains(item))
    }

    pub(super) fn begin_collection(&mut self) {
        self.released = Some(HashSet::new());
    }

    pub(super) fn end_collection(&mut self) {
        self.released = None;
    }
}

impl Store {
    /// The layers that leases keep: those of the build cache, and of what is being loaded, pulled and built.
    pub fn leased_layers(&self) -> HashSet<ChainId> {
        let pins = self.pins();
        let layers = pins.counts.keys().filter_map(|item| match item {
            Item::Layer(chain) => Some(chain.clone()),
            Item::Blob(_) => None,
        });
        layers.collect()
    }
}

/// Keeps blobs and layers from being collected while it lives.
///
/// Drop it after the image that needs them has been recorded where [`Store::collect`]'s caller looks.
pub struct Lease {
    store: Store,
    items: HashSet<Item>,
}

impl Lease {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            items: HashSet::new(),
        }
    }

    /// Keeps a layer, if it exists.
    pub fn pin_layer(&mut self, chain: &ChainId) -> bool {
        let store = self.store.clone();
        let mut pins = store.pins();
        let exists = store.layer_directory(chain).is_dir();
        if exists {
            self.insert(&mut pins, Item::Layer(chain.clone()));
        }
        exists
    }

    /// Keeps a blob, if it exists.
    pub fn pin_blob(&mut self, digest: &Digest) -> bool {
        let store = self.store.clone();
        let mut pins = store.pins();
        let exists = store.blob_path(digest).is_file();
        if exists {
            self.insert(&mut pins, Item::Blob(digest.clone()));
        }
        exists
    }

    /// With the lock held, so that nothing is collected between its appearance and the pin.
    pub(super) fn insert(&mut self, pins: &mut Pins, item: Item) {
        if self.items.insert(item.clone()) {
            *pins.counts.entry(item).or_default() += 1;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let store = self.store.clone();
        let mut pins = store.pins();
        for item in self.items.drain() {
            if let Some(count) = pins.counts.get_mut(&item) {
                *count -= 1;
                if *count == 0 {
                    pins.counts.remove(&item);
                }
            }
            if let Some(released) = &mut pins.released {
                released.insert(item);
            }
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("items", &self.items).finish()
    }
}
