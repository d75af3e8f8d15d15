//! Making the world match the state, at start: what runs is adopted, what ended meanwhile is recorded, what nobody owns is
//! removed, and what is to be restarted is.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use vessel_runtime::cgroup::{Cgroup, CgroupPath};
use vessel_runtime::shim::Request;
use vessel_runtime::shim::protocol::{self, Reply};

use crate::container::record::{Record, State, Status};
use crate::container::{Container, restart, shim};
use crate::error::Context;
use crate::paths::{remove_container_files, remove_tree};
use crate::{Engine, Error, Result, blocking};

/// How long a shim that was launched just before the last daemon ended may take to open its socket.
const SHIM_STARTS: std::time::Duration = std::time::Duration::from_secs(3);

/// How long after an attempt to adopt a container the next one begins.
const ASK_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// What is said of a container whose start nobody saw the end of.
const CUT_SHORT: &str = "the daemon was killed while it started the container";

/// What came of an attempt to adopt a container.
enum Adoption {
    /// It is followed from now on.
    Done,
    /// Nobody listens on its shim's socket, and nobody will.
    Gone,
    /// That could not be found out.
    Later(Error),
}

impl Engine {
    /// Brings all recorded containers into memory and settles what became of each.
    pub(crate) async fn adopt_all(self: &Arc<Self>) -> Result<()> {
        let mut states: std::collections::HashMap<String, State> = self.states.all()?.into_iter().collect();
        let mut live = Vec::new();
        let mut idle = Vec::new();
        for (id, record) in self.records.all()? {
            let state = states.remove(&id).unwrap_or_default();
            let cgroup = self.cgroup_for(&record)?;
            if let Err(error) = self.containers.take_name(&record.name, &id) {
                tracing::warn!("{error}");
            }
            let (launched, mount_id) = (state.launched, state.mount_id.clone());
            let container = Container::new(record, state, cgroup);
            self.containers.insert(Arc::clone(&container));
            if launched || !mount_id.is_empty() {
                self.adopt_volumes(container.id(), &container.record().mounts, &mount_id);
            }
            if launched {
                live.push(container)
            } else {
                idle.push(container)
            }
        }
        for orphan in states.keys() {
            self.states.delete_now(orphan)?;
        }

        // All at once: one shim that hangs does not delay the others.
        let tasks: Vec<_> = live
            .into_iter()
            .map(|container| {
                let engine = Arc::clone(self);
                tokio::spawn(async move { engine.settle(&container).await.then_some(container) })
            })
            .collect();
        let mut restarts = Vec::new();
        for task in tasks {
            let wanted = task
                .await
                .map_err(|error| Error::system(format!("adopting a container ended abnormally: {error}")))?;
            restarts.extend(wanted);
        }
        for container in idle {
            // Of a start that came to nothing plug-ins may know. Not before all that run are noted.
            self.release_volumes(container.id());
            if !container.state().mount_id.is_empty() {
                self.change(&container, |state| state.mount_id.clear());
            }
            if self.settle_idle(&container).await {
                restarts.push(container);
            }
        }
        let engine = Arc::clone(self);
        blocking(move || {
            engine.sweep();
            Ok(())
        })
        .await?;
        // Not before: what is swept away looks like what a start makes.
        for container in restarts {
            self.restart_now(&container);
        }
        Ok(())
    }

    /// A container that was running, or starting, when the last daemon ended. Returns whether it is to be restarted.
    async fn settle(self: &Arc<Self>, container: &Arc<Container>) -> bool {
        let before = container.state();
        if before.boot_id != self.boot_id {
            return self.lost(container, &before).await;
        }
        match self.adopt(container).await {
            Adoption::Done => {
                tracing::debug!(container = container.id(), "adopted");
                false
            }
            Adoption::Gone => self.lost(container, &before).await,
            Adoption::Later(why) => {
                tracing::warn!(
                    container = container.id(),
                    "{why}; the container is left alone and asked for again until it is clear what became of it"
                );
                self.adopt_later(container, before).await;
                false
            }
        }
    }

    /// Takes a container over from its shim.
    async fn adopt(self: &Arc<Self>, container: &Arc<Container>) -> Adoption {
        let directory = self.paths.shim(container.id());
        let frame = match protocol::encode(&Request::Watch) {
            Ok(frame) => frame,
            Err(error) => return Adoption::Later(error.into()),
        };
        let give_up = tokio::time::Instant::now() + SHIM_STARTS;
        loop {
            // Asked before the socket is tried: a shim that is gone does not make one any more.
            let held = vessel_runtime::shim::is_held(&directory);
            let doubt = match shim::connect(directory.clone()).await {
                Ok(Some(mut stream)) => {
                    let asked = async {
                        stream.write_all(&frame).await.context(|| "ask the shim")?;
                        shim::receive::<Reply>(&mut stream).await
                    };
                    match tokio::time::timeout_at(give_up, asked).await {
                        Ok(Ok(Some(Reply::Status(status)))) => {
                            self.adopted(container, stream, status);
                            return Adoption::Done;
                        }
                        Ok(Ok(Some(reply))) => Error::system(format!("the shim answers with {reply:?}")),
                        // It is ending: soon nobody listens any more, and what it records tells the rest.
                        Ok(Ok(None)) => Error::system("the shim does not talk"),
                        Ok(Err(error)) => error,
                        Err(_) => Error::system("the shim does not answer"),
                    }
                }
                // One that was starting may be about to make its socket: as long as it lives it is not given up, or what it
                // starts would be nobody's.
                Ok(None) if !held || self.recorded_exit(&container.record()).is_some() => {
                    return Adoption::Gone;
                }
                Ok(None) => Error::system("the shim has no socket yet"),
                // Who cannot even ask knows nothing.
                Err(error) => error,
            };
            if tokio::time::Instant::now() > give_up {
                return Adoption::Later(doubt);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Goes on asking for a container whose shim is there, or may be, and could not be asked: a disk that hangs, or a lack
    /// of descriptors, ends no container.
    async fn adopt_later(self: &Arc<Self>, container: &Arc<Container>, before: State) {
        // What was starting looks as if it could be started; what runs can be killed meanwhile.
        let op = match before.status.has_process() {
            true => None,
            false => self.lock_op(container).await.ok(),
        };
        let (engine, container) = (Arc::clone(self), Arc::clone(container));
        tokio::spawn(async move {
            let _op = op;
            while !engine.ending() {
                tokio::time::sleep(ASK_AGAIN).await;
                match engine.adopt(&container).await {
                    Adoption::Done => tracing::info!(container = container.id(), "adopted"),
                    Adoption::Gone if before.status.has_process() => engine.ended(&container, None).await,
                    Adoption::Gone => {
                        let wanted = engine.lost(&container, &before).await;
                        // Stopped while it was not clear what became of it.
                        let stopped = container.state().stopped_by_user && !before.stopped_by_user;
                        if stopped {
                            engine.change(&container, |state| {
                                if state.status == Status::Restarting {
                                    state.status = Status::Exited;
                                }
                            });
                        } else if wanted {
                            engine.restart_now(&container);
                        }
                    }
                    Adoption::Later(why) => {
                        tracing::debug!(container = container.id(), "{why}");
                        continue;
                    }
                }
                return;
            }
        });
    }

    fn adopted(
        self: &Arc<Self>,
        container: &Arc<Container>,
        stream: tokio::net::UnixStream,
        status: protocol::Status,
    ) {
        let frozen = self
            .container_cgroup(container)
            .is_ok_and(|cgroup| cgroup.is_frozen());
        let record = container.record();
        self.change(container, |state| {
            // The last daemon ended before it heard of the start.
            if !state.status.has_process() || state.health.is_none() {
                state.begin_health(&record.config);
            }
            state.status = if frozen { Status::Paused } else { Status::Running };
            state.pid = status.pid;
            state.started_at = status.started_at;
        });
        for (id, pid) in &status.execs {
            self.adopt_exec(container, id, *pid);
        }
        let (engine, owned) = (Arc::clone(self), Arc::clone(container));
        tokio::task::spawn_blocking(move || engine.adopt_names(&owned));
        self.follow(container, stream, None);
        self.monitor_health(container);
    }

    /// A container whose shim is gone: it ended while no daemon was there, or the machine was restarted. Returns whether
    /// it is to be restarted.
    async fn lost(self: &Arc<Self>, container: &Arc<Container>, before: &State) -> bool {
        let rebooted = before.boot_id != self.boot_id;
        let (engine, owned, endpoints) = (Arc::clone(self), Arc::clone(container), before.endpoints.clone());
        let seen = before.status.has_process();
        let ended = blocking(move || {
            let recorded = engine.recorded_exit(&owned.record()).is_some();
            let (mut exit, mut error) = engine.end_without_shim(&owned);
            if rebooted && !recorded {
                // Docker's code for what a restart of the machine ended.
                exit.code = 255;
                error = String::new();
            } else if !seen && !recorded {
                CUT_SHORT.clone_into(&mut error);
            }
            engine.give_back(owned.id(), &endpoints);
            Ok((seen || recorded, exit, error))
        })
        .await;
        let Ok((begun, exit, error)) = ended else {
            return false;
        };
        if !begun && before.status == Status::Restarting {
            // A restart by the policy that was counted and did not take place.
            self.change(container, |state| {
                state.launched = false;
                state.endpoints.clear();
            });
            return true;
        }
        self.change(container, |state| {
            state.status = Status::Exited;
            state.launched = false;
            state.pid = 0;
            state.endpoints.clear();
            state.exit_code = exit.code;
            state.oom_killed = exit.oom_killed;
            state.finished_at = exit.at;
            state.error = error;
        });
        let record = container.record();
        self.container_event(&record, "die", &[("exitCode", exit.code.to_string())]);
        if record.host.auto_remove {
            self.remove_after_end(container).await;
            return false;
        }
        restart::wanted_at_start(&record.host.restart_policy, &container.state(), true)
    }

    /// A container that did not run when the last daemon ended. Returns whether it is to be started again.
    async fn settle_idle(self: &Arc<Self>, container: &Arc<Container>) -> bool {
        let (record, state) = (container.record(), container.state());
        match state.status {
            // A removal that was interrupted.
            Status::Removing => self.remove_after_end(container).await,
            Status::Exited if record.host.auto_remove => self.remove_after_end(container).await,
            // In the pause before a restart.
            Status::Restarting => return true,
            Status::Exited => return restart::wanted_at_start(&record.host.restart_policy, &state, false),
            _ => {}
        }
        false
    }

    fn restart_now(self: &Arc<Self>, container: &Arc<Container>) {
        self.change(container, |state| {
            state.status = Status::Restarting;
            // With `always`, also what a user had stopped runs again, and its policy counts again.
            state.stopped_by_user = false;
        });
        self.restart_later(container, std::time::Duration::ZERO);
    }

    /// Removes what no record explains.
    fn sweep(&self) {
        let known: BTreeSet<String> = self
            .containers()
            .iter()
            .map(|container| container.id().to_owned())
            .collect();
        for directory in [self.paths.containers(), self.paths.shims()] {
            for name in entries(&directory) {
                if !known.contains(&name) {
                    tracing::info!(
                        "removing {}: no container has this ID",
                        directory.join(&name).display()
                    );
                    // A shim without a record: its container goes first.
                    self.clear_stray(&name);
                    if let Err(error) = remove_container_files(&directory.join(&name)) {
                        tracing::warn!("remove {}: {error}", directory.join(&name).display());
                    }
                }
            }
        }
        // Cgroups are found by these names only: the parent may hold those of other engines, which nobody here may touch. A
        // cgroup without any trace of its container cannot be: the record is written before the cgroup is made, and
        // deleted after it is gone.
        for container in self.containers() {
            let directory = self.paths.shim(container.id());
            if !container.state().launched
                && let Err(error) = remove_tree(&directory)
            {
                tracing::warn!("remove {}: {error}", directory.display());
            }
        }
        self.sweep_volumes();
    }

    /// Kills what runs in the cgroup of a container nobody knows, and removes the cgroup.
    fn clear_stray(&self, id: &str) {
        if !is_id(id) {
            return;
        }
        let Ok(path) = self.cgroup_for(&Record {
            id: id.to_owned(),
            ..Record::default()
        }) else {
            return;
        };
        let Ok(path) = CgroupPath::parse(&path) else {
            return;
        };
        let Ok(cgroup) = Cgroup::open(&self.hierarchies, &path) else {
            return;
        };
        let cleared = cgroup
            .kill_all(rustix::process::Signal::KILL)
            .and_then(|()| cgroup.destroy());
        if let Err(error) = cleared {
            tracing::warn!("{}", error.report().message);
        }
    }
}

/// Whether a name is an ID of ours: only such are touched in places that others may use, too.
fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The names of the directories in a directory.
pub(crate) fn entries(directory: &std::path::Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
