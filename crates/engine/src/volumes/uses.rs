//! Who uses the volumes that are mounted while they are used.
//!
//! The first user mounts, the last one takes the mount off. A mount may hang (a server that does not answer): it holds up
//! the users of its own volume and nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vessel_api::Map;

use super::local;
use crate::Result;

/// Users by volume. A container uses its volumes from its start to its end; others, under a name of their own, while they
/// look.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<BTreeMap<String, Arc<Use>>>);

#[derive(Debug, Default)]
struct Use {
    users: Mutex<BTreeSet<String>>,
    /// Held while it is mounted or taken off.
    turn: Mutex<()>,
}

impl Use {
    fn users(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.uses.release(&self.user, &self.volumes);
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
    pub fn acquire(&self, volume: &str, user: &str, options: &Map<String>, at: &Path) -> Result<()> {
        let entry = self.of(volume);
        let _turn = entry.turn();
        if !local::is_mounted(at)? {
            local::mount(options, at)?;
        }
        entry.users().insert(user.to_owned());
        Ok(())
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
        self.entries()
            .iter()
            .any(|(_, entry)| entry.users().contains(user))
    }

    /// Ends what a user has, and takes the mounts off that nobody else uses.
    pub fn release(&self, user: &str, volumes: &Path) {
        for (name, entry) in self.entries() {
            if !entry.users().contains(user) {
                continue;
            }
            let _turn = entry.turn();
            let last = {
                let mut users = entry.users();
                users.remove(user) && users.is_empty()
            };
            if last && let Err(error) = local::unmount(&data(volumes, &name)) {
                tracing::warn!("{error}");
            }
        }
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

    /// Forgets a volume that is gone.
    pub fn forget(&self, volume: &str) {
        self.lock().remove(volume);
    }

    fn entries(&self) -> Vec<(String, Arc<Use>)> {
        self.lock()
            .iter()
            .map(|(name, entry)| (name.clone(), Arc::clone(entry)))
            .collect()
    }
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
