//! Who uses the volumes that are mounted while they are used.
//!
//! The first user mounts, the last one takes the mount off. A mount may hang (a server that does not answer): it holds up
//! the users of its own volume and nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use vessel_api::Map;

use super::local;
use crate::{Error, Result};

/// Users by volume. A container uses its volumes from its start to its end; others, under a name of their own, while they
/// look.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<BTreeMap<String, Arc<Use>>>);

#[derive(Debug, Default)]
struct Use {
    users: Mutex<BTreeSet<String>>,
    /// Held while it is mounted, taken off, or removed.
    turn: Mutex<()>,
}

impl Use {
    fn users(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A use ends, and with the last one the mount. The caller has the turn.
    fn end(&self, user: &str, at: &Path) {
        let last = {
            let mut users = self.users();
            users.remove(user) && users.is_empty()
        };
        if last && let Err(error) = local::unmount(at) {
            tracing::warn!("{error}");
        }
    }
}

/// A use that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    uses: Arc<Uses>,
    user: String,
    volumes: std::path::PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.uses.release_now(&self.user, &self.volumes) {
            return;
        }
        // Somebody mounts it at this moment, which may take long: whoever drops this need not wait.
        let (uses, user, volumes) = (Arc::clone(&self.uses), self.user.clone(), self.volumes.clone());
        let release = move || uses.release(&user, &volumes);
        if let Err(error) = std::thread::Builder::new().spawn(release) {
            // The next daemon knows that nobody has it.
            tracing::warn!("a volume of {} stays mounted: start a thread: {error}", self.user);
        }
    }
}

impl Uses {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Use>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, volume: &str) -> Arc<Use> {
        Arc::clone(self.lock().entry(volume.to_owned()).or_default())
    }

    /// Mounts a volume on `at` unless it is mounted, for a user who has it then.
    ///
    /// # Errors
    /// It cannot be mounted; somebody else has mounted something there.
    pub fn acquire(&self, volume: &str, user: &str, options: &Map<String>, at: &Path) -> Result<()> {
        loop {
            let entry = self.of(volume);
            let _turn = entry.turn();
            // Removed, and perhaps made again, while this waited.
            if !self
                .lock()
                .get(volume)
                .is_some_and(|there| Arc::ptr_eq(there, &entry))
            {
                continue;
            }
            let mounted = local::is_mounted(at)?;
            if mounted && entry.users().is_empty() {
                return Err(occupied(volume, at));
            }
            // Also under a user, when an operator has taken it off.
            if !mounted {
                local::mount(options, at)?;
            }
            entry.users().insert(user.to_owned());
            return Ok(());
        }
    }

    /// The same for as long as what is returned lives. `volumes` is where the volumes are.
    pub fn hold(self: &Arc<Self>, list: &[(String, Map<String>)], volumes: &Path) -> Result<Option<Held>> {
        if list.is_empty() {
            return Ok(None);
        }
        let held = Held {
            uses: Arc::clone(self),
            user: crate::ids::id(),
            volumes: volumes.to_owned(),
        };
        for (name, options) in list {
            self.acquire(name, &held.user, options, &data(volumes, name))?;
        }
        Ok(Some(held))
    }

    /// Notes a user from before this daemon.
    pub fn adopt(&self, volume: &str, user: &str) {
        self.of(volume).users().insert(user.to_owned());
    }

    /// Whether a user has any volume.
    pub fn has_any(&self, user: &str) -> bool {
        !self.used_by(user).is_empty()
    }

    /// Ends what a user has, and takes the mounts off that nobody else uses.
    pub fn release(&self, user: &str, volumes: &Path) {
        for (name, entry) in self.used_by(user) {
            let turn = entry.turn();
            entry.end(user, &data(volumes, &name));
            drop(turn);
        }
    }

    /// The same without waiting. Returns whether that could be.
    fn release_now(&self, user: &str, volumes: &Path) -> bool {
        self.used_by(user).into_iter().all(|(name, entry)| {
            let Ok(_turn) = entry.turn.try_lock() else {
                return false;
            };
            entry.end(user, &data(volumes, &name));
            true
        })
    }

    /// Does what removes a volume's directory while nobody can mount it. One with options is taken off first.
    ///
    /// # Errors
    /// Somebody uses it; something else is mounted on it; those of `remove`.
    pub fn remove<T>(
        &self,
        volume: &str,
        optional: bool,
        at: &Path,
        remove: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let entry = self.of(volume);
        let busy = || {
            Error::conflict(format!(
                "remove {volume}: volume is in use: it is being read or mounted"
            ))
        };
        // Not waited for: a mount may hang.
        let _turn = match entry.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(busy()),
        };
        if !entry.users().is_empty() {
            return Err(busy());
        }
        if optional && local::is_mounted(at)? {
            local::unmount(at)?;
        }
        // Files of somebody else's would be removed with it.
        if local::is_mounted(at)? || local::has_mounts_below(at)? {
            return Err(occupied(volume, at));
        }
        let removed = remove()?;
        self.lock().remove(volume);
        Ok(removed)
    }

    /// Takes off what is mounted on a volume that nobody uses.
    pub fn settle(&self, volume: &str, at: &Path) -> Result<()> {
        let entry = self.of(volume);
        let _turn = entry.turn();
        if entry.users().is_empty() && local::is_mounted(at)? {
            local::unmount(at)?;
        }
        Ok(())
    }

    fn used_by(&self, user: &str) -> Vec<(String, Arc<Use>)> {
        let mut entries = self.entries();
        entries.retain(|(_, entry)| entry.users().contains(user));
        entries
    }

    fn entries(&self) -> Vec<(String, Arc<Use>)> {
        self.lock()
            .iter()
            .map(|(name, entry)| (name.clone(), Arc::clone(entry)))
            .collect()
    }
}

fn occupied(volume: &str, at: &Path) -> Error {
    Error::conflict(format!(
        "volume {volume}: something is mounted on or in {}: unmount it first",
        at.display()
    ))
}

/// A volume's files, see `Paths::volume`.
fn data(volumes: &Path, name: &str) -> std::path::PathBuf {
    volumes.join(name).join("_data")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mounts_and_the_last_unmounts() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = directory.path();
        let at = data(volumes, "one");
        std::fs::create_dir_all(&at).unwrap();
        let options: Map<String> = [("type", "tmpfs"), ("device", "tmpfs")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let uses = Arc::new(Uses::default());
        if let Err(error) = uses.acquire("one", "first", &options, &at) {
            println!("left out: nothing can be mounted here: {error}");
            return;
        }
        std::fs::write(at.join("file"), "").unwrap();
        let held = uses
            .hold(&[("one".to_owned(), options.clone())], volumes)
            .unwrap();
        uses.release("first", volumes);
        assert!(at.join("file").exists(), "taken off under a user");
        assert!(!uses.has_any("first"));
        drop(held);
        assert!(!local::is_mounted(&at).unwrap());

        // It is not removed under a user, and what somebody else mounted is nobody's of ours.
        uses.acquire("one", "first", &options, &at).unwrap();
        assert!(uses.remove("one", true, &at, || Ok(())).is_err());
        uses.release("first", volumes);
        local::mount(&options, &at).unwrap();
        let error = uses.acquire("one", "first", &options, &at).unwrap_err();
        assert!(error.message().contains("is mounted on or in"), "{error}");
        assert!(uses.remove("one", false, &at, || Ok(())).is_err());
        uses.remove("one", true, &at, || Ok(())).unwrap();
        assert!(!local::is_mounted(&at).unwrap());

        // What an earlier daemon left.
        local::mount(&options, &at).unwrap();
        uses.adopt("one", "running");
        uses.settle("one", &at).unwrap();
        assert!(local::is_mounted(&at).unwrap());
        uses.release("running", volumes);
        assert!(!local::is_mounted(&at).unwrap());
        local::mount(&options, &at).unwrap();
        uses.settle("one", &at).unwrap();
        assert!(!local::is_mounted(&at).unwrap());
    }
}
