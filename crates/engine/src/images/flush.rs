//! When loaded layers reach the disk.
//!
//! A load does not wait for the disk. The content store knows which layers were not flushed, and after a power failure
//! their images are forgotten, because parts may be missing. So the store is flushed when nothing was loaded for a
//! while, and when the daemon ends. By then the kernel has written most of it anyway: a flush right after a load would
//! take the disk from the next one, and from the containers that are started from the image.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Longer than the kernel by default keeps what was written in memory (30 s, looked at every 5 s).
const PAUSE: Duration = Duration::from_secs(40);

/// Flushes a content store in the background.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flusher {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    loads: AtomicU64,
    waiting: AtomicBool,
}

impl Flusher {
    /// Something was loaded: it is flushed when a while has passed without another load. The thread that waits does
    /// not keep the process from ending.
    pub(crate) fn later(&self, content: &vessel_image::Store) {
        self.inner.loads.fetch_add(1, Ordering::AcqRel);
        if self.inner.waiting.swap(true, Ordering::AcqRel) {
            return;
        }
        let (inner, content) = (Arc::clone(&self.inner), content.clone());
        let waiter = std::thread::Builder::new()
            .name("vessel-flush".into())
            .stack_size(256 << 10)
            .spawn(move || {
                let mut seen = 0;
                while seen != inner.loads.load(Ordering::Acquire) {
                    seen = inner.loads.load(Ordering::Acquire);
                    std::thread::sleep(PAUSE);
                }
                // First: what is loaded from here on has a thread of its own.
                inner.waiting.store(false, Ordering::Release);
                if let Err(error) = content.sync() {
                    tracing::warn!("new layers are not safe from a power failure yet: {error}");
                }
            });
        if let Err(error) = waiter {
            self.inner.waiting.store(false, Ordering::Release);
            tracing::warn!(
                "new layers are not safe from a power failure yet: cannot start a thread: {error}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Store;
    use crate::image_index::{ImageIndex, ImageRecord};

    #[tokio::test]
    async fn an_image_that_a_power_failure_may_have_damaged_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(directory.path()).unwrap();
        let content = vessel_image::Store::open(directory.path()).unwrap();
        let index = ImageIndex::open(&store, content.clone()).unwrap();
        let archive = vessel_init::hello_archive();
        let image = vessel_image::load(&content, archive.as_slice(), &Default::default(), &mut |_| {})
            .unwrap()
            .remove(0);
        let id = image.id.to_string();
        let record = ImageRecord {
            chain_ids: image
                .layers
                .iter()
                .map(|layer| layer.chain_id.to_string())
                .collect(),
            ..ImageRecord::default()
        };
        index.insert(&id, record).await.unwrap();
        index.tag("hello:1", &id).await.unwrap();
        // A daemon that was killed leaves it as it is.
        let again = ImageIndex::open(&store, content.clone()).unwrap();
        assert_eq!((again.all().len(), again.tags().len()), (1, 1));
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        for layer in &image.layers {
            let path = content.layer_path(&layer.chain_id).with_file_name("layer.json");
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(boot.trim()));
            std::fs::write(&path, text.replace(boot.trim(), "another")).unwrap();
        }
        for _ in 0..2 {
            let after = ImageIndex::open(&store, content.clone()).unwrap();
            assert_eq!((after.all().len(), after.tags().len()), (0, 0));
        }
    }
}
