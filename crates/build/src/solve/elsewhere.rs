//! Steps whose results a cache of elsewhere knows.
//!
//! At first a build believes what such caches promise: a step that one knows is done, its layer is owed and fetched when a
//! step that is not known, or an output, needs what is in it. A cache of `mode=min` keeps the layers of the result only,
//! and yet its promises about the other stages let these be skipped. If a promise cannot be kept, the build begins again
//! and believes only in what it has fetched.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, try_join_all};
use tokio::sync::Semaphore;
use vessel_image::{ChainId, DiffId, Digest, LayerInfo, Lease, Store};

use super::state::State;
use super::step::{Cached, Made, on_top};
use super::vertex::{Pending, as_vertex};
use super::{Held, Solve};
use crate::cache::Key;
use crate::cache::document::Found;
use crate::cache::export::Taken;
use crate::cache::import::{Promise, Teller};
use crate::error::{Error, ErrorKind, Result};

/// Layers that are fetched at the same time.
const FETCHES: usize = 3;

/// What a build owes and has taken from caches of elsewhere.
#[derive(Default)]
pub(super) struct Elsewhere {
    owed: Mutex<HashMap<ChainId, Owed>>,
    /// What keeps what was fetched late.
    fetched: Mutex<Vec<Held>>,
    taken: Mutex<Vec<Taken>>,
    mounts: Mutex<Vec<String>>,
}

/// A layer that is to be fetched when it is needed.
#[derive(Clone)]
struct Owed {
    keys: Vec<Key>,
    parent: Option<ChainId>,
    found: Found,
    description: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A layer of the store, if it is the one that a cache speaks of. The name alone does not say: that of a lowest layer is
/// its digest, and a cache may give the name of any layer for a digest.
fn layer_here(store: &Store, chain: &ChainId, diff: &DiffId, parent: Option<&ChainId>) -> Option<LayerInfo> {
    let layer = store.layer(chain).ok()?;
    (layer.diff_id == *diff && layer.parent.as_ref() == parent).then_some(layer)
}

impl Solve {
    /// What a step gives, as a cache of elsewhere knows.
    pub(super) async fn find_elsewhere(
        &self,
        state: &State,
        cached: &Cached,
        vertex: &Digest,
    ) -> Option<Made> {
        let imports = &self.plan.imports;
        let keys = || [&cached.key].into_iter().chain(&cached.aliases);
        let cache = self.plan.builder.cache();
        let store = self.plan.builder.worker().store();
        for Promise { found, here } in imports.find(keys(), !self.plan.lazy) {
            let chain = on_top(state, &found.diff);
            let made = |lease: Lease| Made {
                chain: chain.clone(),
                diff: found.diff.clone(),
                created: found.created,
                cached: true,
                lease,
            };
            let adopt = |layer: &LayerInfo| cache.adopt(keys(), layer, found.created, &cached.description);
            let mut lease = store.lease();
            if lease.pin_layer(&chain) {
                let Some(layer) = layer_here(store, &chain, &found.diff, state.top()) else {
                    continue;
                };
                adopt(&layer);
                return Some(made(lease));
            }
            if here {
                continue;
            }
            if self.plan.lazy {
                let owed = Owed {
                    keys: keys().cloned().collect(),
                    parent: state.top().cloned(),
                    found: found.clone(),
                    description: cached.description.clone(),
                };
                lock(&self.elsewhere.owed).insert(chain.clone(), owed);
                return Some(made(lease));
            }
            let teller = Teller {
                progress: &self.plan.progress,
                vertex,
            };
            if let Some((layer, lease)) = imports.fetch(&found.diff, state.top(), store, teller).await {
                adopt(&layer);
                return Some(made(lease));
            }
        }
        None
    }

    /// Whether a step of this key is known, here or elsewhere.
    pub(super) fn knows(&self, key: &Key) -> bool {
        self.plan.builder.cache().knows(key)
            || !self
                .plan
                .imports
                .find(std::iter::once(key), !self.plan.lazy)
                .is_empty()
    }

    /// Fetches the layers of a state that are owed.
    pub fn obtain<'a>(&'a self, state: &'a State) -> BoxFuture<'a, Result<()>> {
        let owed: Vec<(ChainId, Owed)> = {
            let owed = lock(&self.elsewhere.owed);
            let layers = state.chain.iter();
            layers
                .filter_map(|chain| Some((chain.clone(), owed.get(chain)?.clone())))
                .collect()
        };
        if owed.is_empty() {
            return Box::pin(std::future::ready(Ok(())));
        }
        Box::pin(async move {
            let name = match owed.len() {
                1 => "fetching a cached layer".to_owned(),
                count => format!("fetching {count} cached layers"),
            };
            let vertex = Pending::new(&name);
            let room = Semaphore::new(FETCHES);
            let fetches = owed
                .into_iter()
                .map(|(chain, owed)| self.obtain_one(chain, owed, &vertex.digest, &room));
            as_vertex(&self.plan.progress, &vertex, try_join_all(fetches)).await?;
            Ok(())
        })
    }

    async fn obtain_one(&self, chain: ChainId, owed: Owed, vertex: &Digest, room: &Semaphore) -> Result<()> {
        let closed = |_| Error::new(ErrorKind::Cancelled, "the builder is ending");
        let _room = room.acquire().await.map_err(closed)?;
        let builder = &self.plan.builder;
        let _only = builder.alone(&chain.to_string()).await;
        if !lock(&self.elsewhere.owed).contains_key(&chain) {
            return Ok(());
        }
        let store = builder.worker().store();
        let mut lease = store.lease();
        let pinned = lease.pin_layer(&chain);
        let here = layer_here(store, &chain, &owed.found.diff, owed.parent.as_ref());
        let layer = if let Some(layer) = here.filter(|_| pinned) {
            layer
        } else {
            let teller = Teller {
                progress: &self.plan.progress,
                vertex,
            };
            let imports = &self.plan.imports;
            let fetched = imports
                .fetch(&owed.found.diff, owed.parent.as_ref(), store, teller)
                .await;
            let Some((layer, fetched)) = fetched else {
                imports.broke();
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    "no cache has a layer that is needed: what gives it is done again",
                ));
            };
            lease = fetched;
            layer
        };
        builder
            .cache()
            .adopt(owed.keys.iter(), &layer, owed.found.created, &owed.description);
        lock(&self.elsewhere.fetched).push(self.hold(&chain, lease));
        lock(&self.elsewhere.owed).remove(&chain);
        Ok(())
    }

    /// Notes that a step took part.
    pub(super) fn took(&self, cached: &Cached, parent: Option<ChainId>, made: &Made) {
        let keys = [&cached.key].into_iter().chain(&cached.aliases);
        lock(&self.elsewhere.taken).push(Taken {
            keys: keys.cloned().collect(),
            parent,
            chain: made.chain.clone(),
            diff: made.diff.clone(),
            created: made.created,
            description: cached.description.clone(),
        });
    }

    /// Notes that a step has a cache mount.
    pub(super) fn mounts(&self, id: &str) {
        let mut mounts = lock(&self.elsewhere.mounts);
        if !mounts.iter().any(|known| known == id) {
            mounts.push(id.to_owned());
        }
    }

    /// The steps that took part.
    pub fn taken(&self) -> Vec<Taken> {
        lock(&self.elsewhere.taken).clone()
    }

    /// The cache mounts that steps have.
    pub fn cache_mounts(&self) -> Vec<String> {
        lock(&self.elsewhere.mounts).clone()
    }

    /// Fetches what the contents of a new cache mount begin with into a file. None: no cache has any.
    pub(super) async fn mount_elsewhere(
        self: &Arc<Self>,
        id: &str,
    ) -> Option<crate::cache::export::Temporary> {
        let cache = self.plan.builder.cache();
        if !self.plan.imports.has_mount(id) || cache.mounts.has(id) {
            return None;
        }
        let vertex = Pending::new(&format!("fetching the cache mount {id}"));
        let file = crate::cache::export::Temporary::new(cache);
        let work = async {
            let teller = Teller {
                progress: &self.plan.progress,
                vertex: &vertex.digest,
            };
            let fetched = self
                .plan
                .imports
                .fetch_mount(id, &file.0, cache.room(), teller)
                .await;
            fetched.ok_or_else(|| Error::new(ErrorKind::Remote, "it begins empty"))
        };
        as_vertex(&self.plan.progress, &vertex, work).await.ok()?;
        Some(file)
    }
}
