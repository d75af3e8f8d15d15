//! Content that nothing needs: found and removed after a removal, after a load or import that failed, and after a start.
//!
//! Layers get their place in the content store before an image is recorded that has them, so a daemon that is killed
//! meanwhile, or a disk that is full, leaves layers that no record knows. What is being loaded has leases, and what is
//! leased stays: a collection may run at any time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use vessel_image::{Collected, Digest, LiveSet};

use super::chain_id;
use crate::container::record::Record;
use crate::image_index::ImageRecord;
use crate::removed::Thing;
use crate::{Engine, Result, blocking};

/// How long after a start an earlier daemon's leftovers are looked for: who waited for the daemon comes first.
const AFTER_START: Duration = Duration::from_secs(3);

impl Engine {
    /// Collects what an earlier daemon left behind, in the background and a while from now. All containers must be
    /// known: what they use is kept for them.
    pub(crate) fn collect_after_start(self: &Arc<Self>) {
        // An engine that is dropped meanwhile is not kept.
        let engine = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(AFTER_START).await;
            let Some(engine) = engine.upgrade().filter(|engine| !engine.ending()) else {
                return;
            };
            // What was begun long ago is not gone on with.
            let content = engine.images().content().clone();
            if let Err(error) = blocking(move || Ok(content.sweep_partial(false)?)).await {
                tracing::warn!("{error}");
            }
            match engine.collect_images().await {
                Ok(collected) if collected == Collected::default() => {}
                Ok(collected) => tracing::info!(
                    layers = collected.layers.len(),
                    documents = collected.blobs.len(),
                    bytes = collected.freed,
                    "removed what no image and no container uses"
                ),
                Err(error) => tracing::warn!("{error}"),
            }
        });
    }

    /// Runs a load or import and, when it fails, collects what it has stored already: its leases have ended by then.
    pub(super) async fn or_collect<T>(self: &Arc<Self>, work: impl Future<Output = Result<T>>) -> Result<T> {
        let result = work.await;
        if result.is_err()
            && let Err(error) = self.collect_images().await
        {
            tracing::warn!("{error}");
        }
        result
    }

    /// Removes the blobs and layers that no image and no container uses.
    pub(crate) async fn collect_images(self: &Arc<Self>) -> Result<Collected> {
        let engine = Arc::clone(self);
        blocking(move || {
            let content = engine.images().content().clone();
            let mut unreadable = None;
            let collected = content.collect(|| {
                let mut live = LiveSet::default();
                let marked = engine.mark_live(&mut live, &BTreeSet::new());
                if let Err(error) = marked {
                    // What is not known to be unused is used.
                    unreadable = Some(error);
                    live.layers
                        .extend(content.layers().into_iter().flatten().map(|layer| layer.chain_id));
                    live.blobs
                        .extend(content.blobs().into_iter().flatten().map(|blob| blob.digest));
                }
                live
            })?;
            match unreadable {
                Some(error) => Err(error.wrap("unused layers were not removed")),
                None => Ok(collected),
            }
        })
        .await
    }

    /// Adds everything that is needed; of the bin, not what some entries need.
    pub(crate) fn mark_live(&self, live: &mut LiveSet, without: &BTreeSet<String>) -> Result<()> {
        // Looked at first: what comes back meanwhile was in the bin, or is an image by then.
        self.mark_bin(live, without)?;
        for (id, record) in self.images().all() {
            mark_image(&id, &record, live)?;
        }
        // A pull that was cut goes on where it was.
        live.layers.extend(self.images().content().unfinished_layers());
        for container in self.containers() {
            mark_container(&container.record(), live)?;
        }
        // And again: what was removed meanwhile was there, or is in the bin by now. (What comes back has leases.)
        self.mark_bin(live, without)
    }

    fn mark_bin(&self, live: &mut LiveSet, without: &BTreeSet<String>) -> Result<()> {
        for (key, entry) in self.bin.all() {
            match &entry.thing {
                _ if without.contains(&key) => {}
                Thing::Image { id, record, .. } => mark_image(id, record, live)?,
                Thing::Container { record, .. } => mark_container(record, live)?,
                Thing::Volume { .. } | Thing::Network { .. } => {}
            }
        }
        Ok(())
    }
}

fn mark_image(id: &str, record: &ImageRecord, live: &mut LiveSet) -> Result<()> {
    live.blobs.insert(id.parse::<Digest>()?);
    for blob in record.blobs() {
        live.blobs.insert(blob.parse::<Digest>()?);
    }
    for chain in &record.chain_ids {
        live.layers.insert(chain_id(chain)?);
    }
    Ok(())
}

/// A container may outlive its image when its removal was forced.
fn mark_container(record: &Record, live: &mut LiveSet) -> Result<()> {
    if let Ok(id) = record.image_id.parse::<Digest>() {
        live.blobs.insert(id);
    }
    for layer in &record.layers {
        live.layers.insert(chain_id(layer)?);
    }
    Ok(())
}
