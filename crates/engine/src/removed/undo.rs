//! Bringing back what a command removed.
//!
//! Networks come first, then volumes, images and containers: what a container refers to is there before it. What
//! cannot come back stays in the bin, and why is said; the rest comes all the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use vessel_api::{UndoReport, Undone};
use vessel_image::{Digest, Lease};

use super::list::{Command, commands};
use super::{Bin, BinRecord, Thing};
use crate::container::Container;
use crate::container::record::{Record, State, Status};
use crate::image_index::ImageRecord;
use crate::images::{CHANGES, chain_id, short};
use crate::{Engine, Error, ErrorKind, Result, blocking};

impl Engine {
    /// Brings back what the last command removed that is in the bin, or the one that `which` means: an ID of the operation
    /// log, or the name or ID of something it removed.
    ///
    /// # Errors
    /// There is nothing like that; nothing of it could be brought back.
    pub async fn undo(self: &Arc<Self>, which: &str) -> Result<UndoReport> {
        let _turn = self.bin.turn.lock().await;
        let mut found = commands(self.bin.arrived())
            .into_iter()
            .filter(|command| which.is_empty() || command.is(which));
        let Some(Command { id, mut entries }) = found.next() else {
            return Err(Error::not_found(match which {
                "" if !self.bin.keeps => {
                    "there is nothing to undo: the daemon runs without a bin (--bin off, or VESSEL_BIN)"
                        .to_owned()
                }
                "" => "there is nothing to undo: the bin is empty".to_owned(),
                which => format!(
                    "nothing in the bin was removed by {which} or has this name: `vessel system bin ls` shows what is there"
                ),
            }));
        };
        entries.sort_by_key(|(_, entry)| match entry.thing {
            Thing::Network { .. } => 0,
            Thing::Volume { .. } => 1,
            Thing::Image { .. } => 2,
            Thing::Container { .. } => 3,
        });
        let mut report = UndoReport {
            command: id,
            ..UndoReport::default()
        };
        for (key, entry) in entries {
            let mut line = Undone {
                kind: entry.thing.kind().to_owned(),
                name: entry.thing.name(),
                id: entry.thing.id().to_owned(),
                note: String::new(),
            };
            match self.bring_back(&key, &entry).await {
                Ok(note) => {
                    line.note = note;
                    report.restored.push(line);
                }
                Err(error) => {
                    line.note = error.message().to_owned();
                    report.failed.push(line);
                }
            }
        }
        if report.restored.is_empty() {
            let reasons: Vec<String> = report
                .failed
                .iter()
                .map(|line| format!("{} {}: {}", line.kind, line.name, line.note))
                .collect();
            return Err(Error::conflict(reasons.join("; ")));
        }
        self.store().sync().await?;
        Ok(report)
    }

    /// Returns what is to be said about it.
    async fn bring_back(self: &Arc<Self>, key: &str, entry: &BinRecord) -> Result<String> {
        let note = match entry.thing.clone() {
            Thing::Network { record } => {
                let engine = Arc::clone(self);
                let owned = record.clone();
                blocking(move || engine.networks.restore(&owned)).await?;
                self.publish_network("create", &record.id, &record.name, record.driver(), None);
                String::new()
            }
            Thing::Volume { name, record } => {
                let engine = Arc::clone(self);
                let files = self.bin.files(key);
                blocking(move || engine.restore_volume(&name, *record, &files)).await?;
                String::new()
            }
            Thing::Image {
                id,
                record,
                names,
                indexes,
            } => self.restore_image(&id, *record, &names, &indexes).await?,
            Thing::Container { record, state, owned } => {
                let engine = Arc::clone(self);
                let files = self.bin.files(key);
                blocking(move || engine.restore_container(*record, *state, &owned, &files)).await?
            }
        };
        self.bin.forget(key);
        Ok(note)
    }

    fn restore_container(
        &self,
        record: Record,
        state: State,
        owned: &[String],
        files: &std::path::Path,
    ) -> Result<String> {
        let id = record.id.clone();
        self.containers.take_name(&record.name, &id).map_err(|_| {
            Error::conflict(format!(
                "another container is called {0}: rename it (vessel rename {0} OTHER), then undo {1}",
                record.name,
                record.id.get(..12).unwrap_or_default()
            ))
        })?;
        // Held until the container is known: a collection may run.
        let mut lease = self.images().content().lease();
        let done = || -> Result<Arc<Container>> {
            self.pin_layers(&record.layers, &mut lease)?;
            let cgroup = self.cgroup_for(&record)?;
            let state = State {
                status: match state.status {
                    Status::Created => Status::Created,
                    _ => Status::Exited,
                },
                launched: false,
                pid: 0,
                stopped_by_user: true,
                endpoints: BTreeMap::new(),
                health: None,
                ..state
            };
            Bin::with_moved(files, &self.paths.container(&id), || {
                self.states.put_now(&id, &state)?;
                self.records.put_now(&id, &record).inspect_err(|_| {
                    // Without a record the next start removes it.
                    let _ = self.states.delete_now(&id);
                })
            })?;
            Ok(Container::new(record.clone(), state, cgroup))
        };
        let container = done().inspect_err(|_| self.containers.free_name(&record.name, &id))?;
        self.containers.insert(container);
        if let Err(error) = self.own_volumes(&id, owned) {
            // It is back, whatever becomes of them later.
            tracing::warn!("{error}; volumes of container {id} are not removed with it");
        }
        self.container_event(&record, "create", &[]);
        let missing: Vec<&str> = record
            .mounts
            .iter()
            .filter(|mount| mount.kind == crate::container::record::MountKind::Volume)
            .filter(|mount| !self.has_volume(&mount.name))
            .map(|mount| mount.name.as_str())
            .collect();
        Ok(match missing.as_slice() {
            [] => String::new(),
            missing => format!("its volumes are not there: {}", missing.join(", ")),
        })
    }

    /// Keeps layers as long as the lease.
    fn pin_layers(&self, chains: &[String], lease: &mut Lease) -> Result<()> {
        let content = self.images().content();
        for chain in chains {
            let chain = chain_id(chain)?;
            lease.pin_layer(&chain);
            content.layer(&chain).map_err(crate::image_index::from_image)?;
        }
        Ok(())
    }

    async fn restore_image(
        self: &Arc<Self>,
        id: &str,
        record: ImageRecord,
        names: &[String],
        indexes: &BTreeMap<String, String>,
    ) -> Result<String> {
        let _change = CHANGES.lock().await;
        // Held until the image is recorded: a collection may run.
        let mut lease = self.images().content().lease();
        let (engine, chains) = (Arc::clone(self), record.chain_ids.clone());
        let blobs: Vec<Digest> = [id]
            .into_iter()
            .chain(record.blobs())
            .filter_map(|digest| digest.parse().ok())
            .collect();
        let lease = blocking(move || {
            engine.pin_layers(&chains, &mut lease)?;
            for blob in &blobs {
                lease.pin_blob(blob);
            }
            Ok(lease)
        })
        .await?;
        let mut record = record;
        if let Ok(now) = self.image_record(id) {
            // It has only lost names, or came back by another way.
            record.repo_digests.extend(now.repo_digests);
            record.repo_digests.sort();
            record.repo_digests.dedup();
        }
        self.images().insert(id, record).await?;
        drop(lease);
        let mut taken = Vec::new();
        for name in names {
            match self.images().id_of_tag(name) {
                Some(other) if other != id => taken.push(format!("{name} (now {})", short(&other))),
                _ => {
                    self.images().tag(name, id).await?;
                    if let Some(index) = indexes.get(name) {
                        self.images().tag_index(name, index).await?;
                    }
                    self.events()
                        .publish("image", "tag", id, [("name".to_owned(), name.clone())].into());
                }
            }
        }
        Ok(match taken.as_slice() {
            [] => String::new(),
            taken => format!("its names are another image's by now: {}", taken.join(", ")),
        })
    }
}

/// What cannot be done because of something that is there now.
pub(crate) fn taken(kind: &str, name: &str) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("another {kind} is called {name}: remove that one first"),
    )
}
