//! Removing containers.

use std::sync::Arc;

use vessel_api::ContainersPruneReport;
use vessel_runtime::cgroup::Cgroup;

use super::Container;
use super::record::{Record, Status};
use crate::error::Context;
use crate::paths::remove_container_files;
use crate::removed::{Bin, Thing, container_key};
use crate::volumes::tree_size;
use crate::{Durability, Engine, Error, ErrorKind, Filters, Result, blocking};

/// How to remove.
#[derive(Debug, Clone, Copy, Default)]
pub struct RemoveOptions {
    /// Kill it first when it runs.
    pub force: bool,
    /// Its anonymous volumes, too.
    pub volumes: bool,
    /// Remove a link instead of the container.
    pub link: bool,
    /// Not into the bin.
    pub for_good: bool,
}

impl Engine {
    /// Removes a container.
    ///
    /// # Errors
    /// No such container; running and not forced; being removed already.
    pub async fn container_remove(&self, id: &str, options: RemoveOptions) -> Result<()> {
        if options.link {
            return self.remove_link(id).await;
        }
        let container = self.container(id)?;
        let _op = loop {
            if options.force && container.status().is_running() {
                // Not under `op`: a start or a stop that hangs is to be ended by this, too.
                self.change(&container, |state| state.stopped_by_user = true);
                if !self.cancel_restart(&container) {
                    self.kill_and_wait(&container).await?;
                }
            }
            let op = match self.lock_op(&container).await {
                Ok(op) => op,
                // It was to be removed when it ended, and was.
                Err(_) if options.force => return Ok(()),
                Err(error) => return Err(error),
            };
            // A start that was under way when this began may have won: then it is killed like any other.
            if options.force && container.status().is_running() {
                continue;
            }
            break op;
        };
        let refuse = |what: &str| {
            Err(Error::conflict(format!(
                "cannot remove container \"{}\": {what}",
                container.display_name()
            )))
        };
        match container.status() {
            Status::Running | Status::Restarting => {
                return refuse("container is running: stop the container before removing or force remove");
            }
            Status::Paused => return refuse("container is paused and must be unpaused first"),
            Status::Created | Status::Exited | Status::Dead | Status::Removing => {}
        }
        let keep = !options.for_good;
        self.discard(&container, options.volumes, keep).await
    }

    /// Removes everything of a container that does not run; into the bin if that is wanted. The caller holds `op`.
    pub(super) async fn discard(&self, container: &Arc<Container>, volumes: bool, keep: bool) -> Result<()> {
        if self.containers.get(&container.id).is_none() {
            return Ok(());
        }
        let record = container.record();
        // What removes itself goes for good. What was begun by an earlier daemon goes on as it was begun.
        let key = container_key(&record.id);
        let mut kept = match self.bin.get(&key) {
            Some(_) => Some(key),
            None if record.host.auto_remove || !keep => None,
            None => self.bin.keep(Some(key), || Thing::Container {
                record: Box::new(Record::clone(&record)),
                state: Box::new(container.state()),
                owned: self.volumes_of(&record.id, &record.mounts),
            })?,
        };
        if !volumes {
            self.disown_volumes(&record.id, &record.mounts)?;
        }
        if !record.host.auto_remove {
            // A removal that is interrupted is finished by the next daemon; what removes itself is known by its record.
            self.change(container, |state| state.status = Status::Removing);
        }
        container.inner().waiting.clear();
        let (own, shim) = (self.paths.container(&record.id), self.paths.shim(&record.id));
        // The shim removed the cgroup, unless something kept it.
        let cgroup = self.container_cgroup(container).ok().filter(Cgroup::exists);
        // Nobody asked for the removal of what removes itself, and nobody waits for its files: they go when it is gone.
        let (now, later) = if record.host.auto_remove {
            (Vec::new(), vec![shim, own.clone()])
        } else if kept.is_some() {
            (vec![shim], Vec::new())
        } else {
            (vec![shim, own.clone()], Vec::new())
        };
        let moved = kept.as_ref().map(|key| self.bin.files(key));
        let removed = async {
            if cgroup.is_none() && now.is_empty() {
                return Ok(false);
            }
            blocking(move || {
                if let Some(cgroup) = cgroup {
                    cgroup.kill_all(rustix::process::Signal::KILL)?;
                    cgroup.destroy()?;
                }
                now.iter().try_for_each(|tree| {
                    remove_container_files(tree).context(|| format!("remove {}", tree.display()))
                })?;
                let Some(files) = moved else { return Ok(false) };
                let moved = Bin::move_in(&own, &files)?;
                if !moved {
                    remove_container_files(&own).context(|| format!("remove {}", own.display()))?;
                }
                Ok(moved)
            })
            .await
        };
        match removed.await {
            Ok(true) => {}
            Ok(false) => {
                if let Some(key) = kept.take() {
                    self.bin.forget(&key);
                }
            }
            Err(error) => {
                if let Some(key) = &kept {
                    self.bin.forget(key);
                }
                self.change(container, |state| {
                    state.status = Status::Dead;
                    state.error = error.message().to_owned();
                });
                return Err(error.wrap(format!("unable to remove filesystem for {}", record.id)));
            }
        }
        {
            // Who follows it may change its state once more.
            let mut inner = container.inner();
            self.states.delete_now(&record.id)?;
            inner.removed = true;
        }
        self.records.delete_now(&record.id)?;
        self.containers.remove(container);
        self.drop_execs(container);
        if volumes {
            self.discard_anonymous_volumes(&record.mounts, kept.is_some())
                .await;
        }
        if let Some(key) = &kept {
            self.bin.kept(key);
        }
        self.container_event(&record, "destroy", &[]);
        container.life.send_modify(|life| {
            life.removed = true;
            (life.running, life.process, life.active) = (false, false, 0);
        });
        if !later.is_empty() {
            tokio::task::spawn_blocking(move || {
                for tree in later {
                    if let Err(error) = remove_container_files(&tree) {
                        tracing::warn!(
                            "remove {}: {error}; the next start of the daemon removes it",
                            tree.display()
                        );
                    }
                }
            });
            self.launcher.calm();
        }
        let durability = if record.host.auto_remove {
            Durability::Process
        } else {
            Durability::Disk
        };
        self.records.sync(durability).await
    }

    /// Removes the containers that do not run (filters `until`, `label`).
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn container_prune(&self, filters: &Filters) -> Result<ContainersPruneReport> {
        filters.check(&["until", "label", "label!"])?;
        let until = filters.until()?;
        // It is asked for to have the space.
        let options = RemoveOptions {
            for_good: true,
            ..RemoveOptions::default()
        };
        let mut report = ContainersPruneReport::default();
        for container in self.containers() {
            let record = container.record();
            let state = container.state();
            let idle =
                matches!(state.status, Status::Created | Status::Exited | Status::Dead) && !state.launched;
            if !idle
                || until.is_some_and(|until| record.created > until)
                || !filters.labels(&record.config.labels)
            {
                continue;
            }
            let upper = self.root_paths(&record)?.upper;
            let size = blocking(move || Ok(tree_size(&upper))).await?;
            match self.container_remove(&record.id, options).await {
                Ok(()) => {
                    report.space_reclaimed += size;
                    report.containers_deleted.push(record.id.clone());
                }
                // Started or removed by somebody else meanwhile.
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(report)
    }
}
