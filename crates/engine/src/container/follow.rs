//! Following a running container through its shim, to its end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions};
use tokio::net::UnixStream;
use vessel_runtime::shim::{Event, Exit};

use super::record::{Record, Status};
use super::shim::receive;
use super::{Container, restart};
use crate::{Engine, Result, blocking};

/// What is said of a container whose shim was killed.
const SHIM_DIED: &str = "the container's shim was killed or crashed; the container's processes were killed";

impl Engine {
    /// Follows a container from now on. `child`: the shim's process ID when it is a child of this process.
    pub(crate) fn follow(
        self: &Arc<Self>,
        container: &Arc<Container>,
        control: UnixStream,
        child: Option<i32>,
    ) {
        let (engine, container) = (Arc::clone(self), Arc::clone(container));
        tokio::spawn(async move {
            let exit = engine.read_events(&container, control).await;
            if let Some(pid) = child {
                reap(pid);
            }
            engine.ended(&container, exit).await;
        });
    }

    async fn read_events(&self, container: &Container, mut control: UnixStream) -> Option<Exit> {
        loop {
            match receive::<Event>(&mut control).await {
                Ok(Some(Event::Exited(exit))) => return Some(exit),
                Ok(Some(Event::Oom)) => self.container_event(&container.record(), "oom", &[]),
                Ok(Some(Event::ExecExited { id, exit })) => self.exec_ended(container, &id, exit),
                Ok(Some(Event::Started { .. } | Event::Failed(_))) => {}
                Ok(None) => return None,
                Err(error) => {
                    tracing::warn!(container = container.id, "{error}");
                    return None;
                }
            }
        }
    }

    /// A run has ended; without `exit` the shim did not live to say how.
    pub(crate) async fn ended(self: &Arc<Self>, container: &Arc<Container>, exit: Option<Exit>) {
        let (record, before) = (container.record(), container.state());
        let (engine, owned, endpoints) = (Arc::clone(self), Arc::clone(container), before.endpoints.clone());
        // What removes itself has its shim's files removed after its client was answered: a thread less to wait for.
        let later = record.host.auto_remove && !container.inner().restarting_by_user;
        let (exit, error) = match exit {
            Some(exit) if later && endpoints.is_empty() && !self.has_mounted_volumes(&container.id) => {
                (exit, String::new())
            }
            exit => {
                let cleaned = blocking(move || {
                    let (exit, error) = match exit {
                        Some(exit) => (exit, String::new()),
                        None => engine.end_without_shim(&owned),
                    };
                    engine.give_back(&owned.id, &endpoints);
                    Ok((exit, error))
                });
                cleaned.await.unwrap_or_else(|error| (died(), error.to_string()))
            }
        };
        let ran = Duration::from_nanos(u64::try_from(exit.at - before.started_at).unwrap_or(0));

        let by_user = {
            let mut inner = container.inner();
            inner.waiting.clear();
            inner.restarting_by_user
        };
        self.end_execs(container);
        let mut again = false;
        self.change(container, |state| {
            // Decided where it is said: who stops it meanwhile either is heard here, or finds the pause to be ended.
            state.exit_code = exit.code;
            again = !by_user && !self.ending() && restart::wanted(&record.host.restart_policy, state);
            if state.status != Status::Removing {
                state.status = if again { Status::Restarting } else { Status::Exited };
            }
            state.launched = false;
            state.mount_id.clear();
            state.pid = 0;
            state.endpoints.clear();
            state.oom_killed = exit.oom_killed;
            state.finished_at = exit.at;
            state.error = error;
        });
        self.container_event(
            &record,
            "die",
            &[
                ("execDuration", ran.as_secs().to_string()),
                ("exitCode", exit.code.to_string()),
            ],
        );
        for network in self.joined_networks(&record, &before.endpoints) {
            self.network_event(&record, &network, "disconnect");
        }
        if again {
            let pause = container.inner().backoff.next(ran);
            self.restart_later(container, pause);
        } else if record.host.auto_remove && !by_user {
            let op = self.lock_op(container).await;
            if op.is_ok() && !container.status().is_running() {
                self.remove_after_end(container).await;
            }
        }
    }

    /// The shim is gone without a word: what it recorded counts; else everything in the cgroup is killed.
    pub(crate) fn end_without_shim(&self, container: &Container) -> (Exit, String) {
        let recorded = self.exit_of(&container.id);
        if let Err(error) = self.clear_cgroup(container) {
            tracing::warn!(container = container.id, "{error}");
        }
        match recorded {
            Some(exit) => (exit, String::new()),
            None => (died(), SHIM_DIED.to_owned()),
        }
    }

    /// Kills what is left in a container's cgroup and removes it.
    pub(super) fn clear_cgroup(&self, container: &Container) -> Result<()> {
        let Ok(cgroup) = self.container_cgroup(container) else {
            return Ok(());
        };
        cgroup.kill_all(Signal::KILL)?;
        Ok(cgroup.destroy()?)
    }

    /// Removes a container that ended and is to be removed by that. The caller holds `op`.
    pub(crate) async fn remove_after_end(&self, container: &Arc<Container>) {
        if let Err(error) = self.discard(container, true, true).await {
            tracing::warn!(
                container = container.id,
                "{error}; the next start of the daemon removes it"
            );
        }
    }

    /// The log of what a run had: for containers of an earlier daemon.
    pub(crate) fn recorded_exit(&self, record: &Record) -> Option<Exit> {
        self.exit_of(&record.id)
    }

    /// What a shim recorded, in its own directory if the disk was full.
    fn exit_of(&self, id: &str) -> Option<Exit> {
        read_exit(&self.paths.exit_file(id))
            .or_else(|| read_exit(&self.paths.shim(id).join(vessel_runtime::shim::protocol::EXIT)))
    }
}

fn died() -> Exit {
    Exit {
        code: 137,
        signal: Some(9),
        oom_killed: false,
        at: crate::time::now(),
    }
}

/// The exit status a shim recorded; it writes it aside and renames it, so it is whole or not there.
fn read_exit(path: &Path) -> Option<Exit> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Collects the exit status of a shim that was our child and is ending, so that it does not stay a zombie.
pub(crate) fn reap(pid: i32) {
    tokio::spawn(async move {
        let Some(pid) = Pid::from_raw(pid) else { return };
        // Its last word came just before its end; a shim that hangs is looked at less and less often.
        let mut pause = Duration::from_micros(500);
        loop {
            match rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Ok(Some(_)) | Err(_) => return,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    });
}
