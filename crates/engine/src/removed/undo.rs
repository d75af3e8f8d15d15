//! Bringing back what a command removed.
//!
//! Networks come first, then volumes, images and containers: what a container refers to is there before it. What
//! cannot come back stays in the bin, and why is said; the rest comes all the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use vessel_api::{UndoReport, Undone};

use super::list::{Command, commands};
use super::{BinRecord, Thing};
use crate::container::Container;
use crate::container::record::{Record, State, Status};
use crate::error::Context;
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
        let mut found = commands(self.bin.all())
            .into_iter()
            .filter(|command| which.is_empty() || command.is(which));
        let Some(Command { id, mut entries }) = found.next() else {
            return Err(Error::not_found(match which {
                "" if self.bin.config.is_none() => {
                    "there is nothing to undo: the daemon runs without a bin (vessel daemon --bin auto keeps what is removed)".to_owned()
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
        let done = || -> Result<Arc<Container>> {
            let content = self.images().content();
            for layer in &record.layers {
                content
                    .layer(&chain_id(layer)?)
                    .map_err(crate::image_index::from_image)?;
            }
            let there = self.paths.container(&id);
            std::fs::rename(files, &there)
                .context(|| format!("move {} to {}", files.display(), there.display()))?;
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
            self.states.put_now(&id, &state)?;
            self.records.put_now(&id, &record)?;
            let cgroup = self.cgroup_for(&record)?;
            Ok(Container::new(record.clone(), state, cgroup))
        };
        let container = done().inspect_err(|_| self.containers.free_name(&record.name, &id))?;
        self.containers.insert(container);
        self.own_volumes(&id, owned)?;
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

    async fn restore_image(
        self: &Arc<Self>,
        id: &str,
        record: ImageRecord,
        names: &[String],
        indexes: &BTreeMap<String, String>,
    ) -> Result<String> {
        let _change = CHANGES.lock().await;
        let content = self.images().content().clone();
        let chains = record.chain_ids.clone();
        blocking(move || {
            for chain in &chains {
                content
                    .layer(&chain_id(chain)?)
                    .map_err(crate::image_index::from_image)?;
            }
            Ok(())
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
