//! Volumes as archives, and copies of volumes.
//!
//! What comes into a volume is whole or not there: it is made beside the volume's files and takes their place (in one with
//! options of the driver it is made in place, and what came before a fault stays). A volume
//! that containers write to is read as it is at that moment, file by file: pause them for a state of all files at once.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use vessel_api::{Map, Volume};
use vessel_image::{ExtractOptions, PackOptions};

use super::copy::{copy, unfinished};
use super::{VolumeRecord, local, missing};
use crate::error::Context;
use crate::files::TarJob;
use crate::oci_spec::mount_points::volume_name;
use crate::paths::remove_tree;
use crate::{Durability, Engine, Error, Result, transfer};

/// The label that says which volume another was copied from.
pub const COPY_LABEL: &str = "vessel.volume.copy-of";

impl Engine {
    /// An archive of a volume's files.
    ///
    /// # Errors
    /// No such volume; what is mounted on it cannot be.
    pub async fn volume_archive(&self, name: &str) -> Result<TarJob> {
        let record = self.volumes.get(name).ok_or_else(|| missing(name))?;
        of_ours(name, &record)?;
        let held = self.hold_volume(name, &record).await?;
        let data = self.paths.volume(name);
        Ok(TarJob::new(move |output| {
            let _held = held;
            let directory = open(&data)?;
            Ok(vessel_image::pack(
                directory.as_fd(),
                b"",
                &PackOptions::default(),
                output,
            )?)
        }))
    }

    /// Fills an empty volume with what is in an archive (compressed or not). Makes it when there is none of that name.
    ///
    /// # Errors
    /// It has files, or a container; a bad archive, which leaves nothing behind.
    pub async fn volume_extract(
        self: &Arc<Self>,
        name: &str,
        labels: Map<String>,
        input: impl Read + Send + 'static,
    ) -> Result<Volume> {
        let record = VolumeRecord {
            labels,
            ..VolumeRecord::default()
        };
        let fill = move |data: &Path| {
            let directory = open(data)?;
            vessel_image::unpack_into(directory.as_fd(), input, &ExtractOptions::default())
                .map_err(Error::from)
                .map(drop)
        };
        self.fill_volume(name, record, fill).await
    }

    /// Copies a volume, whether it is used or not, into a new one.
    ///
    /// # Errors
    /// No such volume; there is one of the new name; the disk.
    pub async fn volume_clone(self: &Arc<Self>, from: &str, to: &str, labels: Map<String>) -> Result<Volume> {
        let source = self.volumes.get(from).ok_or_else(|| missing(from))?;
        of_ours(from, &source)?;
        if from == to || self.volumes.get(to).is_some() {
            return Err(Error::conflict(format!(
                "a volume {to} exists already: choose another name, or remove it first"
            )));
        }
        let held = self.hold_volume(from, &source).await?;
        let data = self.paths.volume(from);
        let mut record = VolumeRecord {
            labels: source.labels,
            ..VolumeRecord::default()
        };
        record.labels.remove(super::ANONYMOUS_LABEL);
        record.labels.insert(COPY_LABEL.to_owned(), from.to_owned());
        record.labels.extend(labels);
        let fill = move |to: &Path| {
            let _held = held;
            copy(&open(&data)?, to)
        };
        self.fill_volume(to, record, fill).await
    }

    async fn hold_volume(&self, name: &str, record: &VolumeRecord) -> Result<Option<super::uses::Held>> {
        if !record.is_mounted() {
            return Ok(None);
        }
        let (uses, volumes) = (Arc::clone(&self.volumes.uses), self.paths.volumes());
        let list = [(name.to_owned(), record.options.clone())];
        crate::blocking(move || uses.hold(&list, &volumes)).await
    }

    /// Makes a volume, unless it is there and empty, and lets `fill` make its files. Goes on when the caller leaves.
    async fn fill_volume(
        self: &Arc<Self>,
        name: &str,
        record: VolumeRecord,
        fill: impl FnOnce(&Path) -> Result<()> + Send + 'static,
    ) -> Result<Volume> {
        volume_name(name)?;
        let (engine, name) = (Arc::clone(self), name.to_owned());
        let task = tokio::spawn(async move {
            let _turn = engine.volumes.turn(&name).await;
            if let Some(user) = engine.volume_users(&name).next() {
                return Err(Error::conflict(format!(
                    "the volume {name} is used by container {}: fill one that no container has",
                    user.id()
                )));
            }
            let made = engine.ensure_volume(&name, record, Durability::Disk).await?;
            let record = engine.volumes.get(&name).unwrap_or_default();
            of_ours(&name, &record)?;
            let filled = engine.fill(&name, &record, fill).await;
            if made
                && filled.is_err()
                && let Err(error) = engine.discard_volume(&name, false).await
            {
                tracing::warn!("{error}");
            }
            filled.map(|()| engine.volume(&name, record))
        });
        task.await
            .map_err(|error| Error::system(format!("filling the volume ended abnormally: {error}")))?
    }

    async fn fill(
        &self,
        name: &str,
        record: &VolumeRecord,
        fill: impl FnOnce(&Path) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        if record.options.get("type").is_some_and(|kind| kind == "tmpfs") {
            return Err(Error::conflict(format!(
                "the volume {name} is a tmpfs, which is empty whenever no container runs with it"
            )));
        }
        let held = self.hold_volume(name, record).await?;
        let (name, data) = (name.to_owned(), self.paths.volume(name));
        transfer::run(move || {
            let held = held;
            let mut entries = std::fs::read_dir(&data).context(|| format!("look into {}", data.display()))?;
            // What a file system makes for itself.
            if entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "lost+found")) {
                return Err(Error::conflict(format!(
                    "the volume {name} has files: fill an empty one, or a new one"
                )));
            }
            if held.is_some() || local::is_mounted(&data)? {
                return fill(&data);
            }
            let new = unfinished(&data);
            remove_tree(&new).context(|| format!("remove {}", new.display()))?;
            std::fs::create_dir(&new).context(|| format!("create {}", new.display()))?;
            let done = fill(&new).and_then(|()| {
                // Lasting before it is in place.
                rustix::fs::syncfs(open(&new)?).context(|| format!("write {} to the disk", new.display()))?;
                std::fs::rename(&new, &data)
                    .context(|| format!("move {} to {}", new.display(), data.display()))
            });
            if done.is_err() {
                let _ = remove_tree(&new);
            }
            done
        })
        .await
    }
}

/// Refuses a volume whose files are a plug-in's.
fn of_ours(name: &str, record: &VolumeRecord) -> Result<()> {
    if record.is_local() {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "the volume {name} is one of the plugin {}: only volumes of the driver local are exported, imported and copied",
        record.driver()
    )))
}

fn open(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).context(|| format!("open {}", directory.display()))
}
