//! Stopping, killing, pausing.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use vessel_runtime::shim::Request;

use super::record::Status;
use super::{Container, shim};
use crate::oci_spec::wall;
use crate::{Engine, Error, ErrorKind, Result, blocking, signal};

/// How to stop; none: as the container says.
#[derive(Debug, Clone, Default)]
pub struct StopOptions {
    /// The signal to ask with, name or number.
    pub signal: Option<String>,
    /// Seconds until it is killed; -1: never.
    pub timeout: Option<i64>,
}

/// What was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// A run.
    Running,
    /// The pause before a restart.
    InPause,
}

/// Seconds a container has unless told otherwise.
const TIMEOUT: i64 = 10;
/// How long a killed process may take to be gone. What hangs in the kernel longer is reported.
const KILLED: Duration = Duration::from_secs(15);

impl Engine {
    /// Stops a container: asks, waits, kills.
    ///
    /// # Errors
    /// `NotModified` when it does not run.
    pub async fn container_stop(&self, id: &str, options: StopOptions) -> Result<()> {
        let container = self.container(id)?;
        if !container.status().is_running() {
            return Err(Error::new(ErrorKind::NotModified, "container already stopped"));
        }
        if self.stop(&container, &options).await? == Stopped::InPause
            && self.restarted_meanwhile(&container).await?
        {
            self.stop(&container, &options).await?;
        }
        self.container_event(&container.record(), "stop", &[]);
        Ok(())
    }

    /// Whether a container runs although the pause before its restart was ended: that restart had begun. One that a user
    /// started since is another matter.
    ///
    /// # Errors
    /// The restart that has begun does not come to an end.
    async fn restarted_meanwhile(&self, container: &Arc<Container>) -> Result<bool> {
        // Whoever restarts it holds this.
        let op = match tokio::time::timeout(KILLED, self.lock_op(container)).await {
            Ok(Ok(op)) => op,
            Ok(Err(_)) => return Ok(false),
            Err(_) => {
                return Err(Error::system(format!(
                    "container {} was being started again, and that has not come to an end after {} s: it is stopped when it does, or removed by force",
                    container.id,
                    KILLED.as_secs()
                )));
            }
        };
        // Its start may have failed, and its policy want the next.
        self.cancel_restart(container);
        drop(op);
        let state = container.state();
        Ok(state.status.has_process() && state.stopped_by_user)
    }

    async fn stop(&self, container: &Container, options: &StopOptions) -> Result<Stopped> {
        let record = container.record();
        let number = match options.signal.as_deref().unwrap_or(&record.config.stop_signal) {
            "" => libc::SIGTERM,
            name => signal::parse(name)?,
        };
        let timeout = options.timeout.or(record.config.stop_timeout).unwrap_or(TIMEOUT);
        self.change(container, |state| state.stopped_by_user = true);
        if self.cancel_restart(container) {
            return Ok(Stopped::InPause);
        }
        self.send(container, number).await?;
        let limit = u64::try_from(timeout).ok().map(Duration::from_secs);
        if !container.wait_for_end(limit).await {
            self.kill_and_wait(container).await?;
        }
        Ok(Stopped::Running)
    }

    /// Ends the pause before a restart. Returns whether there was one. Without `op` that restart may have begun: then the
    /// container runs when whoever holds `op` lets it go.
    pub(super) fn cancel_restart(&self, container: &Container) -> bool {
        if container.status() != Status::Restarting {
            return false;
        }
        container.inner().generation += 1;
        self.change(container, |state| {
            if state.status == Status::Restarting {
                state.status = Status::Exited;
            }
        });
        true
    }

    /// Kills a container and waits until it is gone.
    pub(super) async fn kill_and_wait(&self, container: &Container) -> Result<()> {
        self.send(container, libc::SIGKILL).await?;
        if container.wait_for_end(Some(KILLED)).await {
            return Ok(());
        }
        Err(Error::system(format!(
            "container {} was killed and is not gone after {} s: a process of it hangs in the kernel (see the wait channel in /proc/{}/stack)",
            container.id,
            KILLED.as_secs(),
            container.state().pid
        )))
    }

    /// Sends a signal to a container's first process. One that has ended meanwhile is no error. A paused container is
    /// resumed for a signal that is to end it.
    async fn send(&self, container: &Container, number: i32) -> Result<()> {
        let record = container.record();
        let ends = number == libc::SIGKILL
            || number == libc::SIGTERM
            || signal::parse(&record.config.stop_signal).is_ok_and(|stop| stop == number);
        if wall::is_machine(&record.host) && container.status() == Status::Paused {
            // A signal is delivered by the machine's own kernel, which stands still.
            if !ends {
                return Err(Error::conflict(format!(
                    "Cannot kill container: {}: it is a virtual machine and paused, unpause it first",
                    record.name
                )));
            }
            let thawed = self.thaw(container).await;
            self.unless_ended(container, thawed)?;
        }
        let request = Request::Kill {
            exec: None,
            signal: number,
            all: false,
        };
        let sent = shim::request(self.paths.shim(&container.id), &request).await;
        if let Err(error) = sent {
            if !container.status().has_process() || error.kind() == ErrorKind::NotFound {
                return Ok(());
            }
            // The shim is ending, or dying: then its end kills the container. Who asked for an end waits for it.
            if error.kind() == ErrorKind::Conflict {
                return Ok(());
            }
            // The kernel needs no shim for this one.
            if number != libc::SIGKILL {
                return Err(error.wrap(format!("Cannot kill container: {}", record.name)));
            }
            let killed = match self.container_cgroup(container) {
                Ok(cgroup) => blocking(move || Ok(cgroup.kill_all(Signal::KILL)?)).await,
                Err(error) => Err(error),
            };
            self.unless_ended(container, killed)?;
        }
        self.container_event(&record, "kill", &[("signal", number.to_string())]);
        if ends && container.status() == Status::Paused {
            let thawed = self.thaw(container).await;
            self.unless_ended(container, thawed)?;
        }
        Ok(())
    }

    /// What was done to a container's cgroup in order to end it; that the cgroup is gone means that it has ended, of which
    /// its state may not know yet.
    fn unless_ended(&self, container: &Container, done: Result<()>) -> Result<()> {
        let gone = || {
            let cgroup = self.container_cgroup(container);
            cgroup.is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        done.or_else(|error| if gone() { Ok(()) } else { Err(error) })
    }

    async fn thaw(&self, container: &Container) -> Result<()> {
        let cgroup = self.container_cgroup(container)?;
        blocking(move || Ok(cgroup.thaw()?)).await?;
        self.change(container, |state| {
            if state.status == Status::Paused {
                state.status = Status::Running;
            }
        });
        Ok(())
    }

    /// Stops a container when it runs and starts it.
    ///
    /// # Errors
    /// As start.
    pub async fn container_restart(self: &Arc<Self>, id: &str, options: StopOptions) -> Result<()> {
        let container = self.container(id)?;
        let engine = Arc::clone(self);
        let task = tokio::spawn(async move {
            let _op = engine.lock_op(&container).await?;
            if container.status().is_running() {
                container.inner().restarting_by_user = true;
                let stopped = engine.stop(&container, &options).await;
                container.inner().restarting_by_user = false;
                stopped?;
            }
            engine.start_anew(&container).await?;
            engine.container_event(&container.record(), "restart", &[]);
            Ok(())
        });
        task.await
            .map_err(|error| Error::system(format!("the restart ended abnormally: {error}")))?
    }

    /// Sends a signal, by name or number.
    ///
    /// # Errors
    /// Not running; no such signal.
    pub async fn container_kill(&self, id: &str, signal: &str) -> Result<()> {
        let container = self.container(id)?;
        let number = if signal.is_empty() {
            libc::SIGKILL
        } else {
            signal::parse(signal)?
        };
        let record = container.record();
        let stop = match record.config.stop_signal.as_str() {
            "" => libc::SIGTERM,
            name => signal::parse(name).unwrap_or(libc::SIGTERM),
        };
        let not_running = || {
            Error::conflict(format!(
                "cannot kill container: {id}: container {} is not running",
                container.id
            ))
        };
        if !container.status().is_running() {
            return Err(not_running());
        }
        if number == libc::SIGKILL || number == stop {
            // Said before it is looked: its policy hears of it, or the pause before a restart is found.
            self.change(&container, |state| state.stopped_by_user = true);
            if self.cancel_restart(&container) && !self.restarted_meanwhile(&container).await? {
                return Ok(());
            }
        }
        if !container.status().has_process() {
            return Err(not_running());
        }
        if number == libc::SIGKILL {
            return self.kill_and_wait(&container).await;
        }
        self.send(&container, number).await
    }

    /// Freezes all processes.
    ///
    /// # Errors
    /// Not running; paused already.
    pub async fn container_pause(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _op = self.lock_op(&container).await?;
        match container.status() {
            Status::Running => {}
            Status::Paused => {
                return Err(Error::conflict(format!(
                    "Container {} is already paused",
                    container.id
                )));
            }
            Status::Restarting => {
                return Err(Error::conflict(format!(
                    "Container {} is restarting, wait until the container is running",
                    container.id
                )));
            }
            _ => return Err(not_running(&container)),
        }
        let cgroup = self.container_cgroup(&container)?;
        let _adding = container.adding.write().await;
        blocking(move || Ok(cgroup.freeze()?)).await?;
        self.change(&container, |state| {
            if state.status == Status::Running {
                state.status = Status::Paused;
            }
        });
        self.container_event(&container.record(), "pause", &[]);
        Ok(())
    }

    /// Thaws all processes.
    ///
    /// # Errors
    /// Not paused.
    pub async fn container_unpause(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _op = self.lock_op(&container).await?;
        if container.status() != Status::Paused {
            return Err(Error::conflict(format!(
                "Container {} is not paused",
                container.id
            )));
        }
        self.thaw(&container).await?;
        if wall::is_machine(&container.record().host) {
            self.set_machine_clock(&container).await;
        }
        self.container_event(&container.record(), "unpause", &[]);
        Ok(())
    }
}

/// Docker's words for an operation that needs a process.
pub(super) fn not_running(container: &Container) -> Error {
    Error::conflict(format!("Container {} is not running", container.id))
}
