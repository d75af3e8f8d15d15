//! Noticing that logs grow: one inotify instance, of which a user has few (128 by default), for any number of followers.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::error::Context;
use crate::{Error, Result};

/// Room for some events; those that do not fit are read next.
const BUFFER: usize = 16 << 10;

/// The watched directories of an engine. The instance is made when it is needed first.
#[derive(Debug, Default)]
pub(crate) struct Watcher(Mutex<Option<Running>>);

#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    followed: Mutex<Followed>,
    /// Why nothing is noticed any more.
    failed: OnceLock<Error>,
}

#[derive(Debug)]
struct Followed {
    watches: inotify::Watches,
    /// Who is to be woken, by directory.
    waiting: HashMap<WatchDescriptor, Vec<Arc<Notify>>>,
}

impl Shared {
    fn followed(&self) -> MutexGuard<'_, Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// Watches a directory: what happens in it from now on is noticed. Must be called inside a tokio runtime.
    pub fn watch(&self, directory: &Path) -> Result<Watch> {
        let shared = self.shared()?;
        let changed = Arc::new(Notify::new());
        let mut followed = shared.followed();
        // For a directory that is watched already this is the same watch.
        let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO;
        let descriptor = followed.watches.add(directory, mask).context(|| {
            format!(
                "follow the log in {} (too many files are watched? see fs.inotify.max_user_watches)",
                directory.display()
            )
        })?;
        let waiting = followed.waiting.entry(descriptor.clone()).or_default();
        waiting.push(Arc::clone(&changed));
        drop(followed);
        Ok(Watch {
            shared,
            descriptor,
            changed,
        })
    }

    fn shared(&self) -> Result<Arc<Shared>> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*running
            && running.shared.failed.get().is_none()
        {
            return Ok(Arc::clone(&running.shared));
        }
        let inotify = Inotify::init().context(
            || "follow the log (too many programs watch files? see fs.inotify.max_user_instances)",
        )?;
        let shared = Arc::new(Shared {
            followed: Mutex::new(Followed {
                watches: inotify.watches(),
                waiting: HashMap::new(),
            }),
            failed: OnceLock::new(),
        });
        // SAFETY: `Inotify` owns its descriptor for as long as it lives, and closes it only when dropped, which is when
        // the `AsyncFd` that owns it is dropped.
        let inotify = unsafe { AsyncFd::register(inotify) }
            .map_err(std::io::Error::from)
            .context(|| "follow the log")?;
        let task = tokio::spawn(dispatch(inotify, Arc::clone(&shared))).abort_handle();
        *running = Some(Running {
            shared: Arc::clone(&shared),
            task,
        });
        Ok(shared)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Wakes who follows what has changed, without end.
async fn dispatch(mut inotify: AsyncFd<Inotify>, shared: Arc<Shared>) {
    let mut buffer = vec![0; BUFFER];
    let error = loop {
        let mut ready = match inotify.readable_mut().await {
            Ok(ready) => ready,
            Err(error) => break error,
        };
        let read = ready.try_io(|inotify| {
            let followed = shared.followed();
            for event in inotify.get_mut().read_events(&mut buffer)? {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    // Whose events were lost is not known.
                    let all = followed.waiting.values().flatten();
                    all.for_each(|changed| changed.notify_one());
                } else if let Some(waiting) = followed.waiting.get(&event.wd) {
                    waiting.iter().for_each(|changed| changed.notify_one());
                }
            }
            Ok(())
        });
        // Otherwise there is nothing after all.
        if let Ok(Err(error)) = read {
            break error;
        }
    };
    let followed = shared.followed();
    // Only this task sets it, once.
    let _ = shared
        .failed
        .set(Error::system(format!("follow the log: {error}")));
    for changed in followed.waiting.values().flatten() {
        changed.notify_one();
    }
}

/// A directory that is watched until this is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    descriptor: WatchDescriptor,
    changed: Arc<Notify>,
}

impl Watch {
    /// Waits until something in the directory was written, made or renamed since the last call.
    pub async fn changed(&self) -> Result<()> {
        if self.shared.failed.get().is_none() {
            self.changed.notified().await;
        }
        match self.shared.failed.get() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut followed = self.shared.followed();
        let Some(waiting) = followed.waiting.get_mut(&self.descriptor) else {
            return;
        };
        waiting.retain(|changed| !Arc::ptr_eq(changed, &self.changed));
        if waiting.is_empty() {
            followed.waiting.remove(&self.descriptor);
            // The directory may be gone, and the watch with it.
            let _ = followed.watches.remove(self.descriptor.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn more_follow_than_there_are_instances_and_each_hears_of_its_own() {
        let watcher = Watcher::default();
        let directory = tempfile::tempdir().unwrap();
        let of = |number: usize| directory.path().join((number % 2).to_string());
        for number in 0..2 {
            std::fs::create_dir(of(number)).unwrap();
        }
        let watches: Vec<Watch> = (0..400)
            .map(|number| watcher.watch(&of(number)).unwrap())
            .collect();
        std::fs::write(of(0).join("log"), "x").unwrap();
        for watch in watches.iter().step_by(2) {
            timeout(Duration::from_secs(10), watch.changed())
                .await
                .unwrap()
                .unwrap();
        }
        assert!(
            timeout(Duration::from_millis(50), watches[1].changed())
                .await
                .is_err()
        );
        // Some leave, the others stay; all leave and one comes back.
        let mut watches = watches;
        watches.truncate(2);
        std::fs::write(of(1).join("log"), "x").unwrap();
        timeout(Duration::from_secs(10), watches[1].changed())
            .await
            .unwrap()
            .unwrap();
        watches.clear();
        assert!(watcher.shared().unwrap().followed().waiting.is_empty());
        let again = watcher.watch(&of(1)).unwrap();
        std::fs::write(of(1).join("log"), "y").unwrap();
        timeout(Duration::from_secs(10), again.changed())
            .await
            .unwrap()
            .unwrap();
    }
}
