//! Volumes of plug-ins: who uses them.
//!
//! The plug-in is told with every start of a container, by an ID that is made up for it, and with its end. The ID
//! is in the container's state, so that a new daemon can end what an earlier one began.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::plugin::Plugins;
use crate::{Error, Result};

/// A volume and its driver.
pub(super) type Named = (String, String);

/// The volumes of plug-ins that are in use.
#[derive(Debug)]
pub(super) struct Plugged {
    pub plugins: Arc<Plugins>,
    users: Mutex<BTreeMap<String, Use>>,
    /// How many ends a volume's plug-in is being told of, by volume.
    ending: watch::Sender<BTreeMap<String, usize>>,
    /// What drops a use need not be a thread of the runtime.
    runtime: Option<Handle>,
}

#[derive(Debug, Default)]
struct Use {
    id: String,
    volumes: Vec<(Named, PathBuf)>,
}

/// A use that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    plugged: Arc<Plugged>,
    user: String,
}

impl Held {
    /// Where one of the volumes is.
    pub fn path(&self, volume: &str) -> Result<PathBuf> {
        self.plugged.path(&self.user, volume)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.plugged.release(&self.user);
    }
}

impl Plugged {
    pub fn new(plugins: Plugins) -> Self {
        Self {
            plugins: Arc::new(plugins),
            users: Mutex::default(),
            ending: watch::Sender::default(),
            runtime: Handle::try_current().ok(),
        }
    }

    fn users(&self) -> MutexGuard<'_, BTreeMap<String, Use>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts volumes for a user, as `id`. When one cannot be, none is.
    pub async fn acquire(self: &Arc<Self>, user: &str, id: &str, volumes: &[Named]) -> Result<()> {
        if volumes.is_empty() {
            return Ok(());
        }
        let mut mounted = Vec::new();
        for (name, driver) in volumes {
            // Plug-ins that do not count their users take the last word: it must not be that of an earlier one.
            self.ended(name).await;
            let mount = async { self.plugins.get(driver).await?.mount(name, id).await };
            match mount.await {
                Ok(path) => mounted.push(((name.clone(), driver.clone()), path)),
                Err(error) => {
                    self.end(
                        id.to_owned(),
                        mounted.into_iter().map(|(named, _)| named).collect(),
                    );
                    return Err(error.wrap(format!("error while mounting volume '{name}'")));
                }
            }
        }
        let this = Use {
            id: id.to_owned(),
            volumes: mounted,
        };
        self.users().insert(user.to_owned(), this);
        Ok(())
    }

    /// Mounts volumes for as long as what is returned lives.
    pub async fn hold(self: &Arc<Self>, volumes: &[Named]) -> Result<Option<Held>> {
        if volumes.is_empty() {
            return Ok(None);
        }
        let (plugged, volumes) = (Arc::clone(self), volumes.to_vec());
        // Goes on when the caller leaves: what is held is dropped then, which tells the plug-in.
        let held = tokio::spawn(async move {
            let user = crate::ids::id();
            plugged.acquire(&user, &user, &volumes).await?;
            Ok(Some(Held { plugged, user }))
        });
        held.await
            .map_err(|error| Error::system(format!("mounting volumes ended abnormally: {error}")))?
    }

    /// Notes a user from before this daemon; where its volumes are is not known, nor of use any more.
    pub fn adopt(&self, user: &str, id: &str, volumes: Vec<Named>) {
        let this = Use {
            id: id.to_owned(),
            volumes: volumes.into_iter().map(|named| (named, PathBuf::new())).collect(),
        };
        self.users().insert(user.to_owned(), this);
    }

    /// Where a user's volume is.
    pub fn path(&self, user: &str, volume: &str) -> Result<PathBuf> {
        let users = self.users();
        let mut volumes = users.get(user).into_iter().flat_map(|this| &this.volumes);
        volumes
            .find(|((name, _), _)| name == volume)
            .map(|(_, path)| path.clone())
            .ok_or_else(|| Error::system(format!("the volume {volume} is not mounted")))
    }

    /// Whether a user has any volume.
    pub fn has_any(&self, user: &str) -> bool {
        self.users().contains_key(user)
    }

    /// Ends what a user has; the plug-ins are told meanwhile.
    pub fn release(self: &Arc<Self>, user: &str) {
        let Some(this) = self.users().remove(user) else {
            return;
        };
        self.end(
            this.id,
            this.volumes.into_iter().map(|(named, _)| named).collect(),
        );
    }

    /// Tells plug-ins that a use has ended.
    pub fn end(self: &Arc<Self>, id: String, volumes: Vec<Named>) {
        let Some(runtime) = self.runtime.clone().or_else(|| Handle::try_current().ok()) else {
            return;
        };
        for (name, driver) in volumes {
            self.ending
                .send_modify(|ending| *ending.entry(name.clone()).or_default() += 1);
            let (plugged, id) = (Arc::clone(self), id.clone());
            runtime.spawn(async move {
                let told = async { plugged.plugins.get(&driver).await?.unmount(&name, &id).await };
                if let Err(error) = told.await {
                    tracing::warn!("the volume {name} could not be unmounted: {error}");
                }
                plugged.ending.send_modify(|ending| {
                    if let Some(count) = ending.get_mut(&name) {
                        *count -= 1;
                        if *count == 0 {
                            ending.remove(&name);
                        }
                    }
                });
            });
        }
    }

    /// Waits until the plug-in knows of every end there was.
    pub async fn ended(&self, volume: &str) {
        let mut ending = self.ending.subscribe();
        // It fails when the sender is gone, which this borrows.
        let _ = ending.wait_for(|ending| !ending.contains_key(volume)).await;
    }
}
