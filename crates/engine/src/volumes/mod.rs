//! Volumes: directories under `volumes/NAME/_data` that outlive containers, of the driver `local`; or what a plug-in
//! ([`plugin`], [`plugged`]) keeps, of which there is a record only.
//!
//! A volume's record is written before its directory is made. To be removed, the directory first goes to
//! `volumes/.removed/NAME`, then the record goes, then the files: so the next daemon knows what an interrupted one was
//! about to do. A volume that was made for one container and is to end with it has that container as its owner.
//! One with options of the driver ([`local`]) is mounted on its directory while containers use it ([`uses`]).

mod archive;
mod copy;
mod list;
mod local;
mod mounted;
mod plugged;
pub(crate) mod plugin;
mod remove;
mod size;
mod uses;

pub(crate) use size::tree_size;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard, Weak};

use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;
use vessel_api::{Map, Volume, VolumeCreateRequest, VolumesPruneReport};

use copy::{copy_up, unfinished};
use plugged::Plugged;
pub(crate) use remove::remove_files;
use uses::Uses;

use crate::container::record::{MountKind, MountRecord};
use crate::error::Context;
use crate::oci_spec::mount_points::volume_name;
use crate::paths::remove_tree;
use crate::removed::{Bin, Thing, container_key, taken};
use crate::state::Table;
use crate::{Durability, Engine, Error, ErrorKind, Filters, Result, Store, blocking};

/// What is kept of a volume.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct VolumeRecord {
    /// Nanoseconds since the epoch.
    pub(crate) created: i64,
    labels: Map<String>,
    /// Whether nobody chose its name.
    anonymous: bool,
    /// The container it was made for and is removed with; empty: it is removed by its name only.
    owner: String,
    /// What its driver is told; see [`local`].
    options: Map<String>,
    /// The plug-in whose volume it is; empty: `local`.
    driver: String,
}

impl VolumeRecord {
    /// Whether its files are a directory of ours.
    fn is_local(&self) -> bool {
        self.driver.is_empty()
    }

    /// Whether something is mounted on its directory while it is used.
    fn is_mounted(&self) -> bool {
        self.is_local() && local::is_mount(&self.options)
    }

    fn driver(&self) -> &str {
        match self.driver.as_str() {
            "" => "local",
            driver => driver,
        }
    }
}

/// Volumes that are mounted for as long as this lives.
#[derive(Debug)]
pub(crate) struct Held {
    _local: Option<uses::Held>,
    _plugged: Option<plugged::Held>,
}

/// The label by which Docker marks volumes nobody named.
const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// The volumes of an engine.
#[derive(Debug)]
pub(crate) struct Volumes {
    table: Table<VolumeRecord>,
    records: RwLock<BTreeMap<String, VolumeRecord>>,
    /// By name, while somebody has or waits for it: see [`Self::turn`].
    turns: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    uses: Arc<Uses>,
    plugged: Arc<Plugged>,
}

/// The volumes of a container that is being made. They are not removed before this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Those that were not there before.
    made: Vec<String>,
    turns: Vec<OwnedMutexGuard<()>>,
}

impl Volumes {
    pub fn open(store: &Store, plugins: plugin::Plugins) -> Result<Self> {
        let table: Table<VolumeRecord> = store.table("volumes");
        let records = table.all()?.into_iter().collect();
        Ok(Self {
            table,
            records: RwLock::new(records),
            turns: Mutex::default(),
            uses: Arc::default(),
            plugged: Arc::new(Plugged::new(plugins)),
        })
    }

    fn get(&self, name: &str) -> Option<VolumeRecord> {
        self.records
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, VolumeRecord>> {
        self.records.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for one's turn with a volume. Who makes a container with it has it from before the volume is looked for until
    /// the container is known, who removes it from before its users are counted until it is gone. Who wants several takes
    /// them in the order of their names.
    async fn turn(&self, name: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            turns.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(name.to_owned(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }

    fn all(&self) -> BTreeMap<String, VolumeRecord> {
        self.records
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Engine {
    fn volume(&self, name: &str, record: VolumeRecord) -> Volume {
        Volume {
            created_at: seconds(record.created),
            driver: record.driver().to_owned(),
            mountpoint: match record.is_local() {
                true => self.paths.volume(name).to_string_lossy().into_owned(),
                false => String::new(),
            },
            labels: record.labels,
            name: name.to_owned(),
            options: record.options,
            scope: "local".into(),
            ..Volume::default()
        }
    }

    /// Makes a volume, or returns the one of that name.
    ///
    /// # Errors
    /// A bad name, no such plug-in, what it answers, options that make no mount, the disk.
    pub async fn volume_create(&self, request: VolumeCreateRequest) -> Result<Volume> {
        let anonymous = request.name.is_empty();
        let name = if anonymous { crate::ids::id() } else { request.name };
        let record = VolumeRecord {
            labels: request.labels,
            anonymous,
            options: request.driver_opts,
            driver: driver_of(&request.driver),
            ..VolumeRecord::default()
        };
        if request.driver.is_empty() && !anonymous {
            self.adopt_volume(&name).await?;
        }
        self.check_driver(&name, &record, !request.driver.is_empty())?;
        // Who makes it with a plug-in waits for that one's answer; of this name only.
        let _turn = match record.is_local() {
            true => None,
            false => Some(self.volumes.turn(&name).await),
        };
        self.ensure_volume(&name, record, Durability::Disk).await?;
        let record = self.volumes.get(&name).unwrap_or_default();
        Ok(self.volume(&name, record))
    }

    /// Makes a volume known that a plug-in has and nobody made here: as with Docker, a name without a driver means that
    /// before it means a new volume. A plug-in that does not answer is not waited for long.
    async fn adopt_volume(&self, name: &str) -> Result<()> {
        volume_name(name)?;
        if self.volumes.get(name).is_some() {
            return Ok(());
        }
        let Some((driver, _)) = self.volumes.plugged.plugins.with_volume(name).await else {
            return Ok(());
        };
        let record = VolumeRecord {
            driver,
            created: crate::time::now(),
            ..VolumeRecord::default()
        };
        {
            let mut records = self.volumes.write();
            if records.contains_key(name) {
                return Ok(());
            }
            self.volumes.table.put_now(name, &record)?;
            records.insert(name.to_owned(), record);
        }
        self.volumes.table.sync(Durability::Disk).await
    }

    /// Refuses another driver than that of the volume that is there, and options that a new one of ours cannot have.
    fn check_driver(&self, name: &str, record: &VolumeRecord, named: bool) -> Result<()> {
        match self.volumes.get(name) {
            Some(there) if named && there.driver != record.driver => Err(Error::conflict(format!(
                "create {name}: driver '{}' already has volume '{name}': volume name must be unique",
                there.driver()
            ))),
            _ if record.is_local() => local::check(&record.options),
            _ => Ok(()),
        }
    }

    /// Makes a volume unless it is there. Returns whether it was made.
    async fn ensure_volume(
        &self,
        name: &str,
        mut record: VolumeRecord,
        durability: Durability,
    ) -> Result<bool> {
        volume_name(name)?;
        record.created = crate::time::now();
        if record.anonymous {
            record.labels.insert(ANONYMOUS_LABEL.into(), String::new());
        }
        if !record.is_local() && !self.has_volume(name) {
            let plugin = self.volumes.plugged.plugins.get(&record.driver).await?;
            let created = plugin.create(name, &record.options).await;
            created.map_err(|error| error.wrap(format!("create {name}")))?;
        }
        {
            // Whoever finds the record finds the directory.
            let mut records = self.volumes.write();
            if records.contains_key(name) {
                return Ok(false);
            }
            self.volumes.table.put_now(name, &record)?;
            if record.is_local()
                && let Err(error) = self.make_files(name, &record)
            {
                self.volumes.table.delete_now(name)?;
                return Err(error);
            }
            records.insert(name.to_owned(), record);
        }
        self.volume_event(name, "create");
        self.volumes.table.sync(durability).await?;
        Ok(true)
    }

    /// Makes the directory of a new volume, with its limit.
    fn make_files(&self, name: &str, record: &VolumeRecord) -> Result<()> {
        let data = self.paths.volume(name);
        make_directory(&data)?;
        let limit = local::limit(&record.options)?;
        if limit == 0 {
            return Ok(());
        }
        // All that is made for the volume is made in the directory above, and inherits its project.
        let above = self.paths.volumes().join(name);
        let limited = self.projects.limit(&[&above, &data], limit);
        limited.map_err(|error| {
            let _ = remove_tree(&above);
            match error.kind() {
                ErrorKind::Invalid => {
                    Error::invalid(format!("quota size requested but no quota support: {error}"))
                }
                _ => error,
            }
        })
    }

    fn volume_event(&self, name: &str, action: &str) {
        self.volume_event_of(name, action, self.volumes.get(name).unwrap_or_default().driver());
    }

    fn volume_event_of(&self, name: &str, action: &str, driver: &str) {
        let attributes = Map::from([("driver".to_owned(), driver.to_owned())]);
        self.events.publish("volume", action, name, attributes);
    }

    /// Removes a volume; with `force` it is no error when there is none.
    ///
    /// # Errors
    /// Not there; in use by a container.
    pub async fn volume_remove(&self, name: &str, force: bool) -> Result<()> {
        let _turn = self.volumes.turn(name).await;
        if volume_name(name).is_ok() {
            self.adopt_volume(name).await?;
        }
        if self.volumes.get(name).is_none() {
            return if force { Ok(()) } else { Err(missing(name)) };
        }
        let users: Vec<String> = self
            .volume_users(name)
            .map(|container| container.id().to_owned())
            .collect();
        if !users.is_empty() {
            return Err(Error::conflict(format!(
                "remove {name}: volume is in use - [{}]",
                users.join(", ")
            )));
        }
        match self.discard_volume(name, true).await {
            Err(error) if force && self.volumes.get(name).is_some_and(|record| !record.is_local()) => {
                // What the plug-in has of it stays there; here it is forgotten.
                tracing::warn!("{error}");
                self.forget_volume(name)
            }
            done => done,
        }
    }

    /// Forgets a volume whose files are a plug-in's.
    fn forget_volume(&self, name: &str) -> Result<()> {
        let driver = self.volumes.get(name).unwrap_or_default().driver().to_owned();
        self.volumes.table.delete_now(name)?;
        self.volumes.write().remove(name);
        self.volume_event_of(name, "destroy", &driver);
        Ok(())
    }

    /// Removes a volume nobody uses, for good unless it is to be kept in the bin. The caller has its turn.
    async fn discard_volume(&self, name: &str, keep: bool) -> Result<()> {
        if let Some(record) = self.volumes.get(name).filter(|record| !record.is_local()) {
            self.volumes.plugged.ended(name).await;
            let removed = async {
                let plugin = self.volumes.plugged.plugins.get(&record.driver).await?;
                plugin.remove(name).await
            };
            removed
                .await
                .map_err(|error| error.wrap(format!("remove {name}")))?;
            return self.forget_volume(name);
        }
        let kept = match self.volumes.get(name).filter(|_| keep) {
            Some(record) => self.bin.keep(None, || volume_thing(name, &record))?,
            None => None,
        };
        if let Some(key) = kept
            && self.move_to_bin(name, &key)?
        {
            self.volume_event_of(name, "destroy", "local");
            return Ok(());
        }
        let removed = self.put_aside(name)?;
        blocking(move || remove_files(&removed)).await?;
        {
            // When it was the last one. Nobody puts another one there meanwhile.
            let _records = self.volumes.write();
            let _ = std::fs::remove_dir(self.paths.removed_volumes());
        }
        self.volume_event_of(name, "destroy", "local");
        Ok(())
    }

    /// Moves a volume that nobody uses to the bin, where it has an entry. False: it cannot be kept, has none any more, and is
    /// where it was.
    fn move_to_bin(&self, name: &str, key: &str) -> Result<bool> {
        let record = self.volumes.get(name).unwrap_or_default();
        let (optional, data) = (record.is_mounted(), self.paths.volume(name));
        let (there, files) = (self.paths.volumes().join(name), self.bin.files(key));
        let moved = self.volumes.uses.remove(name, optional, &data, || {
            let mut records = self.volumes.write();
            if !Bin::move_in(&there, &files)? {
                return Ok(false);
            }
            if let Err(error) = self.volumes.table.delete_now(name) {
                let _ = std::fs::rename(&files, &there);
                return Err(error);
            }
            records.remove(name);
            Ok(true)
        });
        match moved {
            Ok(true) => self.bin.kept(key),
            Ok(false) | Err(_) => self.bin.forget(key),
        }
        moved
    }

    /// Brings a volume back whose files are at `files`. Blocks.
    pub(crate) fn restore_volume(&self, name: &str, record: VolumeRecord, files: &Path) -> Result<()> {
        let there = self.paths.volumes().join(name);
        // Its container, if it comes back, makes it its own again: until then it must outlive a restart.
        let record = VolumeRecord {
            owner: String::new(),
            ..record
        };
        {
            let mut records = self.volumes.write();
            if records.contains_key(name) || there.exists() {
                return Err(taken("volume", name));
            }
            Bin::with_moved(files, &there, || self.volumes.table.put_now(name, &record))?;
            records.insert(name.to_owned(), record);
        }
        self.volume_event(name, "create");
        Ok(())
    }

    /// Those of some mounts' volumes that were made for a container.
    pub(crate) fn volumes_of(&self, container: &str, mounts: &[MountRecord]) -> Vec<String> {
        let names = mounts.iter().map(|mount| &mount.name);
        names
            .filter(|name| {
                self.volumes
                    .get(name)
                    .is_some_and(|record| record.owner == container)
            })
            .cloned()
            .collect()
    }

    /// Makes volumes a container's own again.
    pub(crate) fn own_volumes(&self, container: &str, names: &[String]) -> Result<()> {
        let mut records = self.volumes.write();
        for name in names {
            if let Some(record) = records.get_mut(name)
                && record.owner.is_empty()
            {
                container.clone_into(&mut record.owner);
                self.volumes.table.put_now(name, record)?;
            }
        }
        Ok(())
    }

    /// Whether there is a volume.
    pub(crate) fn has_volume(&self, name: &str) -> bool {
        self.volumes.get(name).is_some()
    }

    /// Takes a volume that nobody uses out of the records. Returns where its files are then.
    fn put_aside(&self, name: &str) -> Result<PathBuf> {
        let optional = self.volumes.get(name).is_some_and(|record| record.is_mounted());
        let data = self.paths.volume(name);
        self.volumes
            .uses
            .remove(name, optional, &data, || self.move_aside(name))
    }

    fn move_aside(&self, name: &str) -> Result<PathBuf> {
        let (there, aside) = (self.paths.volumes().join(name), self.paths.removed_volumes());
        let removed = aside.join(name);
        let moved = || {
            std::fs::create_dir_all(&aside)?;
            match std::fs::rename(&there, &removed) {
                // An earlier one of this name that could not be removed.
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists
                    ) =>
                {
                    remove_files(&removed).map_err(std::io::Error::other)?;
                    std::fs::rename(&there, &removed)
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        };
        let mut records = self.volumes.write();
        moved().context(|| format!("move {} to {}", there.display(), removed.display()))?;
        self.volumes.table.delete_now(name)?;
        records.remove(name);
        Ok(removed)
    }

    fn remove_for_good(&self, name: &str) -> Result<()> {
        remove_files(&self.put_aside(name)?)?;
        // When it was the last one.
        let _ = std::fs::remove_dir(self.paths.removed_volumes());
        Ok(())
    }

    /// Finishes what an earlier daemon had begun, and removes the volumes of containers that do not exist.
    pub(crate) fn sweep_volumes(&self) {
        let warn = |result: Result<()>| {
            if let Err(error) = result {
                tracing::warn!("{error}");
            }
        };
        let (volumes, aside) = (self.paths.volumes(), self.paths.removed_volumes());
        for name in crate::reconcile::entries(&aside) {
            if !volumes.join(&name).exists() {
                warn(self.volumes.table.delete_now(&name));
                self.volumes.write().remove(&name);
            }
        }
        warn(remove_files(&aside));
        for (name, record) in self.volumes.all() {
            let orphan =
                record.is_local() && !record.owner.is_empty() && self.containers.get(&record.owner).is_none();
            let container = self.bin.get(&container_key(&record.owner));
            if orphan
                && self.volume_references(&name) == 0
                && let Some(container) = container
            {
                // It was about to follow its container.
                let key = self.bin.keep_with(&container, volume_thing(&name, &record));
                warn(key.and_then(|key| match self.move_to_bin(&name, &key)? {
                    true => Ok(()),
                    false => self.remove_for_good(&name),
                }));
            } else if orphan && self.volume_references(&name) == 0 {
                tracing::info!("removing the volume {name}: the container it was made for does not exist");
                warn(self.remove_for_good(&name));
            } else {
                if !record.is_local() {
                    continue;
                }
                let data = self.paths.volume(&name);
                if record.is_mounted() {
                    warn(self.volumes.uses.settle(&name, &data));
                }
                let copy = unfinished(&data);
                warn(remove_tree(&copy).context(|| format!("remove {}", copy.display())));
                if !data.exists() {
                    warn(make_directory(&data));
                }
            }
        }
        for name in crate::reconcile::entries(&volumes) {
            // A volume without a record may hold data: it is reported and stays.
            if self.volumes.get(&name).is_none() && volumes.join(&name) != aside {
                tracing::warn!("{} belongs to no volume", volumes.join(&name).display());
            }
        }
    }

    /// Removes anonymous volumes (with `all=true` every volume) that no container uses.
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn volume_prune(&self, filters: &Filters) -> Result<VolumesPruneReport> {
        filters.check(&["all", "label", "label!"])?;
        let all = filters.flag("all")?.unwrap_or(false);
        let mut report = VolumesPruneReport::default();
        for (name, record) in self.volumes.all() {
            // As Docker, of plug-ins it removes none: they may be those of other hosts.
            if !record.is_local()
                || !(all || record.anonymous)
                || !filters.labels(&record.labels)
                || self.volume_references(&name) > 0
            {
                continue;
            }
            let data = self.paths.volume(&name);
            let plain = !record.is_mounted();
            let size = blocking(move || Ok(if plain { tree_size(&data) } else { 0 })).await?;
            let _turn = self.volumes.turn(&name).await;
            // It took a while: another may have it now, or another may have come in its place.
            if self.volumes.get(&name).as_ref() != Some(&record) || self.volume_references(&name) > 0 {
                continue;
            }
            match self.discard_volume(&name, false).await {
                Ok(()) => {}
                // Looked into at this moment, or with a mount of somebody's: the others go all the same.
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    tracing::warn!("{error}");
                    continue;
                }
                Err(error) => return Err(error),
            }
            report.space_reclaimed += size;
            report.volumes_deleted.push(name);
        }
        Ok(report)
    }

    fn volume_users(&self, name: &str) -> impl Iterator<Item = std::sync::Arc<crate::Container>> {
        let name = name.to_owned();
        self.containers().into_iter().filter(move |container| {
            container
                .record()
                .mounts
                .iter()
                .any(|mount| mount.kind == MountKind::Volume && mount.name == name)
        })
    }

    /// The volumes that containers use.
    fn used_volumes(&self) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        for container in self.containers() {
            let record = container.record();
            let mounts = record.mounts.iter();
            let volumes = mounts.filter(|mount| mount.kind == MountKind::Volume);
            used.extend(volumes.map(|mount| mount.name.clone()));
        }
        used
    }

    /// How many containers use a volume.
    pub fn volume_references(&self, name: &str) -> usize {
        self.volume_users(name).count()
    }

    /// Settles the volumes among a new container's mounts: makes those that are missing, gives anonymous ones their
    /// names, fills empty ones with what the image has at the place. What was made is removed again on failure.
    pub(crate) async fn settle_volumes(
        &self,
        container: &str,
        mounts: &mut [MountRecord],
        layers: &[PathBuf],
        durability: Durability,
    ) -> Result<Settled> {
        let mut settled = Settled::default();
        let mut own = BTreeSet::new();
        for mount in mounts.iter_mut().filter(|mount| mount.kind == MountKind::Volume) {
            if mount.name.is_empty() {
                mount.name = crate::ids::id();
                own.insert(mount.name.clone());
            }
        }
        let names: BTreeSet<String> = mounts.iter().map(|mount| mount.name.clone()).collect();
        for name in names.iter().filter(|name| !name.is_empty()) {
            settled.turns.push(self.volumes.turn(name).await);
        }
        for mount in mounts.iter_mut().filter(|mount| mount.kind == MountKind::Volume) {
            let owner = if own.contains(&mount.name) { container } else { "" };
            let done = self.settle_volume(owner, mount, layers, durability, &mut settled.made);
            if let Err(error) = done.await {
                self.undo_volumes(settled).await;
                return Err(error);
            }
        }
        Ok(settled)
    }

    async fn settle_volume(
        &self,
        owner: &str,
        mount: &mut MountRecord,
        layers: &[PathBuf],
        durability: Durability,
        made: &mut Vec<String>,
    ) -> Result<()> {
        let record = VolumeRecord {
            anonymous: mount.anonymous,
            owner: owner.to_owned(),
            labels: mount.volume_labels.clone(),
            options: mount.driver_options.clone(),
            driver: driver_of(&mount.driver),
            ..VolumeRecord::default()
        };
        if mount.driver.is_empty() && owner.is_empty() {
            self.adopt_volume(&mount.name).await?;
        }
        self.check_driver(&mount.name, &record, !mount.driver.is_empty())?;
        if self.ensure_volume(&mount.name, record, durability).await? {
            made.push(mount.name.clone());
        }
        let record = self.volumes.get(&mount.name).unwrap_or_default();
        record.driver().clone_into(&mut mount.driver);
        mount.source = match record.is_local() {
            true => self.paths.volume(&mount.name).to_string_lossy().into_owned(),
            false => String::new(),
        };
        if !mount.no_copy && mount.subpath.is_empty() {
            let _held = self.hold_volumes(std::slice::from_mut(mount)).await?;
            let (layers, destination, owned) = (
                layers.to_vec(),
                mount.destination.clone(),
                PathBuf::from(&mount.source),
            );
            // What a plug-in keeps may be anybody's.
            let alone = record.is_local() && self.volume_references(&mount.name) == 0;
            blocking(move || copy_up(layers, &destination, &owned, alone))
                .await
                .map_err(|error| {
                    error.wrap(format!(
                        "copy the image's {} into volume {}",
                        mount.destination, mount.name
                    ))
                })?;
        }
        Ok(())
    }

    /// Makes the anonymous volumes of a container that is about to be removed outlive it. Those of another container that
    /// is there are still that one's.
    pub(crate) fn disown_volumes(&self, container: &str, mounts: &[MountRecord]) -> Result<()> {
        for mount in mounts {
            let mut records = self.volumes.write();
            if let Some(record) = records.get_mut(&mount.name)
                && !record.owner.is_empty()
                && (record.owner == container || self.containers.get(&record.owner).is_none())
            {
                let disowned = VolumeRecord {
                    owner: String::new(),
                    ..record.clone()
                };
                self.volumes.table.put_now(&mount.name, &disowned)?;
                *record = disowned;
            }
        }
        Ok(())
    }

    /// Removes the anonymous volumes of a container that is removed, as far as no other container uses them and none
    /// that used them was removed without them.
    pub(crate) async fn discard_anonymous_volumes(&self, mounts: &[MountRecord], keep: bool) {
        for mount in mounts
            .iter()
            .filter(|mount| mount.kind == MountKind::Volume && mount.anonymous)
        {
            let _turn = self.volumes.turn(&mount.name).await;
            if self.volume_references(&mount.name) == 0
                && self
                    .volumes
                    .get(&mount.name)
                    .is_some_and(|volume| !volume.owner.is_empty())
                && let Err(error) = self.discard_volume(&mount.name, keep).await
            {
                tracing::warn!("{error}; `volume prune` removes it");
            }
        }
    }

    /// Takes back volumes made for a container that could not be created.
    pub(crate) async fn undo_volumes(&self, settled: Settled) {
        for name in &settled.made {
            let undone = match self.volumes.get(name) {
                // It may have been there before, with somebody's files: the plug-in keeps it.
                Some(record) if !record.is_local() && !record.anonymous => self.forget_volume(name),
                _ => self.discard_volume(name, false).await,
            };
            if let Err(error) = undone {
                tracing::warn!("{error}; `volume prune --all` removes it");
            }
        }
    }
}

/// Makes a volume's directory. What is inside belongs to containers; nobody else of the host needs a way in.
fn make_directory(data: &Path) -> Result<()> {
    std::fs::create_dir_all(data).context(|| format!("create volume directory {}", data.display()))?;
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
            .context(|| format!("set the mode of {}", path.display()))
    };
    data.parent().map_or(Ok(()), |parent| mode(parent, 0o700))?;
    mode(data, 0o755)
}

/// A driver as it is recorded.
fn driver_of(name: &str) -> String {
    match name {
        "local" => String::new(),
        name => name.to_owned(),
    }
}

fn volume_thing(name: &str, record: &VolumeRecord) -> Thing {
    Thing::Volume {
        name: name.to_owned(),
        record: Box::new(record.clone()),
    }
}

fn missing(name: &str) -> Error {
    Error::not_found(format!("get {name}: no such volume"))
}

/// RFC 3339 to the second, as Docker shows volumes.
fn seconds(nanos: i64) -> String {
    crate::time::rfc3339(nanos - nanos.rem_euclid(1_000_000_000))
}
