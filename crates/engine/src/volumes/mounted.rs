//! Volumes that must be mounted to be used: those with options, and those of plug-ins.

use std::path::PathBuf;
use std::sync::Arc;

use vessel_api::Map;

use super::{Held, plugged};
use crate::container::record::{MountKind, MountRecord};
use crate::{Engine, Result, blocking};

impl Engine {
    /// Those of some mounts' volumes that are mounted while they are used, with their options.
    fn optional_volumes(&self, mounts: &[MountRecord]) -> Vec<(String, Map<String>)> {
        mounts
            .iter()
            .filter(|mount| mount.kind == MountKind::Volume)
            .filter_map(|mount| {
                let record = self.volumes.get(&mount.name)?;
                record.is_mounted().then(|| (mount.name.clone(), record.options))
            })
            .collect()
    }

    /// Those of some mounts' volumes that are plug-ins', each once.
    fn plugged_volumes(&self, mounts: &[MountRecord]) -> Vec<plugged::Named> {
        let volumes = mounts.iter().filter(|mount| mount.kind == MountKind::Volume);
        let mut named: Vec<plugged::Named> = volumes
            .filter_map(|mount| {
                let record = self.volumes.get(&mount.name)?;
                (!record.is_local()).then(|| (mount.name.clone(), record.driver))
            })
            .collect();
        named.sort();
        named.dedup();
        named
    }

    /// Has plug-ins mount the volumes of a container that is about to start, until [`Self::release_volumes`].
    pub(crate) async fn mount_plugged(&self, container: &crate::Container) -> Result<()> {
        let volumes = self.plugged_volumes(&container.record().mounts);
        if volumes.is_empty() {
            return Ok(());
        }
        let id = crate::ids::id();
        // Known before the plug-in knows: a new daemon ends what this one began.
        self.change(container, |state| state.mount_id.clone_from(&id));
        self.volumes.plugged.acquire(container.id(), &id, &volumes).await
    }

    /// Where the files of a volume are that a running container has.
    pub(crate) fn volume_path(&self, container: &str, name: &str) -> Result<PathBuf> {
        match self.volumes.get(name) {
            Some(record) if !record.is_local() => self.volumes.plugged.path(container, name),
            _ => Ok(self.paths.volume(name)),
        }
    }

    /// Mounts the volumes of a container that is about to start, until [`Self::release_volumes`]. May block.
    pub(crate) fn use_volumes(&self, container: &str, mounts: &[MountRecord]) -> Result<()> {
        for (name, options) in self.optional_volumes(mounts) {
            self.volumes
                .uses
                .acquire(&name, container, &options, &self.paths.volume(&name))?;
        }
        Ok(())
    }

    /// Mounts volumes for as long as what is returned lives. Mounts of plug-ins' volumes get the place of their files.
    pub(crate) async fn hold_volumes(&self, mounts: &mut [MountRecord]) -> Result<Option<Held>> {
        let (list, named) = (self.optional_volumes(mounts), self.plugged_volumes(mounts));
        if list.is_empty() && named.is_empty() {
            return Ok(None);
        }
        let plugged = self.volumes.plugged.hold(&named).await?;
        if let Some(held) = &plugged {
            for mount in mounts.iter_mut() {
                if named.iter().any(|(name, _)| *name == mount.name) {
                    mount.source = held.path(&mount.name)?.to_string_lossy().into_owned();
                }
            }
        }
        let (uses, volumes) = (Arc::clone(&self.volumes.uses), self.paths.volumes());
        let local = match list.is_empty() {
            true => None,
            false => blocking(move || uses.hold(&list, &volumes)).await?,
        };
        Ok(Some(Held {
            _local: local,
            _plugged: plugged,
        }))
    }

    /// Takes the mounts off that only an ended container used. May block, for plug-ins it does not.
    pub(crate) fn release_volumes(&self, container: &str) {
        self.volumes.uses.release(container, &self.paths.volumes());
        self.volumes.plugged.release(container);
    }

    /// The same for plug-ins' volumes only; does not block.
    pub(crate) fn release_plugged(&self, container: &str) {
        self.volumes.plugged.release(container);
    }

    /// Whether a container uses volumes that are to be released when it ends.
    pub(crate) fn has_mounted_volumes(&self, container: &str) -> bool {
        self.volumes.uses.has_any(container) || self.volumes.plugged.has_any(container)
    }

    /// Notes the volumes of a container that an earlier daemon started.
    pub(crate) fn adopt_volumes(&self, container: &str, mounts: &[MountRecord], mount_id: &str) {
        for (name, _) in self.optional_volumes(mounts) {
            self.volumes.uses.adopt(&name, container);
        }
        let plugged = self.plugged_volumes(mounts);
        if !mount_id.is_empty() && !plugged.is_empty() {
            self.volumes.plugged.adopt(container, mount_id, plugged);
        }
    }

    /// The plug-ins that are there, by name.
    pub(crate) fn volume_drivers(&self) -> Vec<String> {
        let mut drivers = self.volumes.plugged.plugins.names();
        drivers.push("local".to_owned());
        drivers.sort();
        drivers
    }
}
