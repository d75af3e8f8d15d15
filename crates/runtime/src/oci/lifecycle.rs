//! `start`, `kill`, `delete`, `ps`, `pause`, `resume`, `update`.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, pidfd_send_signal};

use super::state::{Container, START, Status, through_descriptor};
use crate::cgroup::{Resources, refuse};
use crate::error::{Context, Report};
use crate::process::{self, hooks};
use crate::spec::NamespaceKind;
use crate::{Error, ErrorKind, Result};

/// How long a killed container may take to be gone.
const GRACE: Duration = Duration::from_secs(10);

impl Container {
    fn conflict(&self, what: &str) -> Error {
        let status = format!("{:?}", self.status()).to_lowercase();
        Error::new(
            ErrorKind::Conflict,
            format!("cannot {what} container {}: it is {status}", self.id()),
        )
    }

    /// Lets the program be executed.
    ///
    /// # Errors
    /// When it is not waiting, or the program cannot be executed after all.
    pub fn start(&self) -> Result<()> {
        if self.status() != Status::Created {
            return Err(self.conflict("start"));
        }
        let path = self.start_socket();
        let mut stream = through_descriptor(&self.dir, |near| UnixStream::connect(near.join(START)))
            .context(|| format!("start container {}", self.id()))?;
        // From here on it counts as started, whatever becomes of it.
        std::fs::remove_file(&path).context(|| "remove the socket for start")?;
        let mut answer = Vec::new();
        // The end comes with execve(2), which closes the socket.
        let _ = stream.read_to_end(&mut answer);
        if !answer.is_empty() {
            let report: Report = serde_json::from_slice(&answer).map_err(|error| {
                Error::with_source(ErrorKind::System, "understand why the start failed", error)
            })?;
            return Err(report.into());
        }
        self.after_start();
        Ok(())
    }

    /// Sends a signal to the first process, or to all of the container.
    ///
    /// # Errors
    /// `Conflict` when it is stopped.
    pub fn kill(&self, signal: Signal, all: bool) -> Result<()> {
        if all {
            return match self.cgroup() {
                Ok(cgroup) => cgroup.kill_all(signal),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            };
        }
        let status = self.status();
        if status == Status::Stopped {
            return Err(self.not_running());
        }
        let pidfd = self.pidfd()?;
        match pidfd_send_signal(&pidfd, signal) {
            Err(Errno::SRCH) => return Err(self.not_running()),
            other => other.context(|| format!("send a signal to container {}", self.id()))?,
        }
        // Without a PID namespace of its own, the others would go on.
        let shares = self
            .spec()?
            .linux()
            .namespace(NamespaceKind::Pid)
            .is_none_or(|namespace| namespace.path.is_some());
        if signal == Signal::KILL && (shares || status == Status::Paused) {
            self.cgroup()?.kill_all(signal)?;
        }
        Ok(())
    }

    /// Removes the container; with `force` a running one is killed first.
    ///
    /// # Errors
    /// `Conflict` when it runs.
    pub fn delete(&self, force: bool) -> Result<()> {
        let status = self.status();
        if status != Status::Stopped {
            if !force && status != Status::Created {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "cannot delete container {} that is not stopped: kill it first, or use --force",
                        self.id()
                    ),
                ));
            }
            self.end()?;
        }
        match self.cgroup() {
            Ok(cgroup) => {
                let _ = cgroup.kill_all(Signal::KILL);
                cgroup.destroy()?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let after = self.spec().ok().and_then(|spec| spec.hooks);
        let state = self
            .state()
            .map(|state| serde_json::to_vec(&state).unwrap_or_default())
            .unwrap_or_default();
        std::fs::remove_dir_all(&self.dir).context(|| format!("remove {}", self.dir.display()))?;
        if let Some(configured) = after {
            // The container is gone whatever they say.
            let _ = hooks::run("poststop", &configured.poststop, &state);
        }
        Ok(())
    }

    fn end(&self) -> Result<()> {
        let Ok(pidfd) = self.pidfd() else { return Ok(()) };
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        if let Ok(cgroup) = self.cgroup() {
            let _ = cgroup.kill_all(Signal::KILL);
        }
        let deadline = Instant::now() + GRACE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => {
                    return Err(Error::new(
                        ErrorKind::System,
                        format!(
                            "container {} does not die: its process is stuck in the kernel",
                            self.id()
                        ),
                    ));
                }
                Err(rustix::io::Errno::INTR) => {}
                _ => return Ok(()),
            }
        }
    }

    /// The processes of the container.
    ///
    /// # Errors
    /// When its cgroup cannot be read.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        self.cgroup()?.processes()
    }

    /// Freezes the container.
    ///
    /// # Errors
    /// `Conflict` unless it runs.
    pub fn pause(&self) -> Result<()> {
        match self.status() {
            Status::Running | Status::Created => self.cgroup()?.freeze(),
            _ => Err(self.conflict("pause")),
        }
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// `Conflict` unless it is paused.
    pub fn resume(&self) -> Result<()> {
        match self.status() {
            Status::Paused => self.cgroup()?.thaw(),
            _ => Err(self.conflict("resume")),
        }
    }

    /// Changes its limits.
    ///
    /// # Errors
    /// When a value is refused, or the kernel cannot do it.
    pub fn update(&self, resources: &Resources) -> Result<()> {
        let mut resources = resources.clone();
        process::allow_standard_devices(&mut resources, self.spec()?.linux());
        let lacks = self.cgroup()?.update(&resources)?;
        refuse(&lacks)
    }
}
