//! Starting containers.
//!
//! Journal what is intended, take what was made in advance, launch the shim, wait for it to say that the program runs.
//! Nothing but the shim is executed, and everything that blocks is in one step on one blocking thread.

use std::collections::BTreeMap;
use std::sync::Arc;

use vessel_network::EndpointRecord;
use vessel_runtime::shim::{Event, LaunchedShim};

use super::record::Status;
use super::shim::{asynchronous, receive};
use super::{Container, restart};
use crate::error::Context;
use crate::{Engine, Error, ErrorKind, Result, blocking};

/// Who starts a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Starter {
    User,
    /// Its restart policy.
    Policy,
}

impl Engine {
    /// Starts a container.
    ///
    /// # Errors
    /// `NotModified` when it runs; whatever keeps it from running.
    pub async fn container_start(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = self.container(id)?;
        // The start goes on when the client leaves: half a start is no state a container can be in.
        let engine = Arc::clone(self);
        let task = tokio::spawn(async move {
            let _op = engine.lock_op(&container).await?;
            engine.start_anew(&container).await
        });
        task.await
            .map_err(|error| Error::system(format!("the start ended abnormally: {error}")))?
    }

    /// Starts a container for a user: what its policy counted begins anew. The caller holds `op`.
    ///
    /// # Errors
    /// When its status does not allow that; as [`Self::start_locked`].
    pub(super) async fn start_anew(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let not_now = |what: &str| Err(Error::conflict(what));
        match container.status() {
            Status::Running | Status::Restarting => {
                return Err(Error::new(ErrorKind::NotModified, "container already started"));
            }
            Status::Paused => return not_now("cannot start a paused container, try unpause instead"),
            Status::Removing => return not_now("container is marked for removal and cannot be started"),
            Status::Dead => return not_now("container is dead and cannot be started: remove it"),
            Status::Created | Status::Exited => {}
        }
        {
            let mut inner = container.inner();
            inner.generation += 1;
            inner.backoff = Default::default();
        }
        self.change(container, |state| {
            state.stopped_by_user = false;
            state.restart_count = 0;
        });
        self.start_locked(container, Starter::User).await
    }

    /// Starts a container whose `op` the caller holds and which does not run. When that fails, its policy may want another
    /// attempt: it is `Restarting` then.
    pub(super) async fn start_locked(
        self: &Arc<Self>,
        container: &Arc<Container>,
        starter: Starter,
    ) -> Result<()> {
        let started = self.launch(container).await;
        container.inner().launching = false;
        let Err(error) = started else { return Ok(()) };
        let error = in_dockers_words(error);
        let record = container.record();
        self.change(container, |state| {
            state.launched = false;
            state.mount_id.clear();
            state.pid = 0;
            state.endpoints.clear();
            state.exit_code = error.exit_code();
            state.error = error.message().to_owned();
            // Decided where it is said, as after a run: a stop either is heard here or finds the pause.
            let again = starter == Starter::Policy
                && !record.host.auto_remove
                && restart::wanted(&record.host.restart_policy, state);
            state.status = match state.started_at {
                _ if again => Status::Restarting,
                0 => Status::Created,
                _ => Status::Exited,
            };
        });
        let exit_code = error.exit_code().to_string();
        self.container_event(&record, "die", &[("exitCode", exit_code)]);
        if record.host.auto_remove {
            self.remove_after_end(container).await;
        }
        Err(error)
    }

    async fn launch(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let (engine, owned) = (Arc::clone(self), Arc::clone(container));
        self.mount_plugged(container).await?;
        let launched = blocking(move || engine.launch_blocking(&owned)).await;
        let (shim, endpoints) = launched.inspect_err(|_| self.release_plugged(container.id()))?;
        let LaunchedShim {
            pid: shim_pid,
            control,
        } = shim;
        let mut control = asynchronous(control)?;
        let record = container.record();
        let mut orphaned = true;
        let failed = match receive::<Event>(&mut control).await {
            Ok(Some(Event::Started { pid, at, warnings })) => {
                for warning in warnings {
                    tracing::warn!(container = container.id, "{warning}");
                }
                self.change(container, |state| {
                    state.status = Status::Running;
                    state.pid = pid;
                    state.started_at = at;
                    state.exit_code = 0;
                    state.oom_killed = false;
                    state.error.clear();
                    state.begin_health(&record.config);
                });
                for network in self.joined_networks(&record, &endpoints) {
                    self.network_event(&record, &network, "connect");
                }
                self.container_event(&record, "start", &[]);
                self.renew_links_to(container);
                self.follow(container, control, Some(shim_pid));
                self.monitor_health(container);
                return Ok(());
            }
            Ok(Some(Event::Failed(report))) => {
                // The shim says so when nothing of the container is left.
                orphaned = false;
                Error::from(report)
            }
            Ok(_) => Error::system("the container's shim ended before the container was started"),
            Err(error) => error,
        };
        let (engine, owned) = (Arc::clone(self), Arc::clone(container));
        super::follow::reap(shim_pid);
        blocking(move || {
            if orphaned && let Err(error) = engine.clear_cgroup(&owned) {
                tracing::warn!(container = owned.id, "{error}");
            }
            engine.give_back(&owned.id, &endpoints);
            Ok(())
        })
        .await?;
        Err(failed)
    }

    /// Prepares, journals the intention, launches.
    fn launch_blocking(
        &self,
        container: &Arc<Container>,
    ) -> Result<(LaunchedShim, BTreeMap<String, EndpointRecord>)> {
        let mut prepared = self.prepare(container)?;
        let endpoints = std::mem::take(&mut prepared.endpoints);
        // How the last run ended is in the state; a daemon that finds the file must find this run's.
        let _ = std::fs::remove_file(&prepared.config.exit_file);
        let launched = self.intend(container, &endpoints).and_then(|()| {
            {
                let mut inner = container.inner();
                inner.launching = true;
                prepared.fds.attach = std::mem::take(&mut inner.waiting);
            }
            let directory = self.paths.shim(&container.id);
            self.launcher
                .launch(&directory, &mut prepared.config, prepared.fds)
                .map_err(Error::from)
        });
        match launched {
            Ok(shim) => Ok((shim, endpoints)),
            Err(error) => {
                self.give_back(&container.id, &endpoints);
                Err(error)
            }
        }
    }

    /// Journals that a shim is about to be launched. Unlike later changes this must succeed: otherwise a new daemon would
    /// not know of what runs.
    fn intend(&self, container: &Container, endpoints: &BTreeMap<String, EndpointRecord>) -> Result<()> {
        let mut inner = container.inner();
        let mut state = inner.state.clone();
        state.launched = true;
        state.endpoints.clone_from(endpoints);
        state.boot_id.clone_from(&self.boot_id);
        self.states
            .put_now(&container.id, &state)
            .context(|| "record the start")?;
        *inner.state = state;
        Ok(())
    }

    /// The networks that a run is on, as events name them.
    pub(super) fn joined_networks(
        &self,
        record: &super::record::Record,
        endpoints: &BTreeMap<String, EndpointRecord>,
    ) -> Vec<String> {
        if endpoints.is_empty() {
            return self
                .endpoint_settings(record, endpoints, true)
                .into_keys()
                .collect();
        }
        endpoints.keys().cloned().collect()
    }
}

/// Docker's command line recognizes by words in the message that a program does not exist (exit code 127) or cannot be
/// executed (126).
fn in_dockers_words(error: Error) -> Error {
    let has = |words: &[&str]| words.iter().any(|word| error.message().contains(word));
    match error.kind() {
        ErrorKind::CommandNotFound if !has(&["executable file not found", "no such file or directory"]) => {
            Error::new(
                error.kind(),
                format!("{}: no such file or directory", error.message()),
            )
        }
        ErrorKind::CommandNotExecutable if !has(&["permission denied", "is a directory"]) => {
            Error::new(error.kind(), format!("{}: permission denied", error.message()))
        }
        _ => error,
    }
}
