//! Attaching to a container's streams.

use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::net::UnixStream;
use vessel_runtime::shim::{Attach, Request};
use vessel_runtime::spec::ConsoleSize;

use super::exec::Exec;
use super::record::Status;
use super::shim;
use super::stop::not_running;
use crate::error::Context;
use crate::logs::{LogStream, LogsOptions};
use crate::{Engine, Error, Result};

/// What to attach to.
#[derive(Debug, Clone, Default)]
pub struct AttachOptions {
    /// First what was logged so far.
    pub logs: bool,
    /// Then what comes.
    pub stream: bool,
    /// Bytes from the client become the program's input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// Streams of a container or an exec.
#[derive(Debug)]
pub struct Attached {
    /// Whether the bytes are a terminal's, raw; otherwise output is in Docker's multiplexed frames.
    pub tty: bool,
    /// Sent first, when the log was asked for.
    pub logs: Option<LogStream>,
    /// Raw bytes of input towards the program, output as above from it; its end is the end. Shutting down writing is
    /// the end of input.
    pub stream: Option<UnixStream>,
    /// To be waited for between the end of the stream and telling the client of it.
    pub ended: Option<Ended>,
}

/// The end of an exec as the daemon knows it. The shim ends the stream and says how the process ended at the same time,
/// on two connections; a client whose stream has ended asks for the exit code at once.
#[derive(Debug)]
pub struct Ended(pub(super) Arc<Exec>);

impl Ended {
    /// Waits until the exit code is known.
    pub async fn wait(&self) {
        // Whoever waits longer waits for a shim that hangs.
        let _ = tokio::time::timeout(Duration::from_secs(10), self.0.ended()).await;
    }
}

/// What a client that attaches has to do.
enum Waiting {
    /// Nothing: it is registered for the start to come.
    ForStart,
    /// Wait for the start that is under way, then ask the shim.
    Starting,
    /// Ask the shim.
    Runs,
    /// Give up: too many wait already.
    InVain,
}

/// Clients that may wait for a container's start. Each is a descriptor, and all are handed to the shim at once.
const MAX_WAITING: usize = 128;

impl super::Container {
    /// Registers a client for the next start, unless there is one already.
    fn wait_for_start(&self, stream: std::os::fd::OwnedFd, attach: &Attach) -> Waiting {
        let mut inner = self.inner();
        if inner.launching {
            Waiting::Starting
        } else if inner.state.status == Status::Running {
            Waiting::Runs
        } else {
            inner.waiting.retain(|(stream, _)| !hung_up(stream));
            if inner.waiting.len() >= MAX_WAITING {
                return Waiting::InVain;
            }
            inner.waiting.push((stream, attach.clone()));
            Waiting::ForStart
        }
    }
}

/// Whether the other end of a stream is closed.
fn hung_up(stream: &std::os::fd::OwnedFd) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // What cannot be asked stays.
    rustix::event::poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

impl Engine {
    /// Attaches to a container, which may not have been started yet.
    ///
    /// # Errors
    /// No such container; paused or restarting.
    pub async fn container_attach(&self, id: &str, options: AttachOptions) -> Result<Attached> {
        let container = self.container(id)?;
        let record = container.record();
        let not_now = |what: &str| Err(Error::conflict(format!("Container {} is {what}", container.id)));
        match container.status() {
            Status::Paused => return not_now("paused, unpause the container before attach"),
            Status::Restarting => return not_now("restarting, wait until the container is running"),
            Status::Removing | Status::Dead => return not_now("being removed"),
            Status::Created | Status::Running | Status::Exited => {}
        }
        let logs = if options.logs {
            let wanted = LogsOptions {
                stdout: options.stdout,
                stderr: options.stderr,
                ..LogsOptions::default()
            };
            Some(self.container_logs(&container.id, wanted).await?)
        } else {
            None
        };
        let stream = if options.stream {
            let attach = Attach {
                stdin: options.stdin && record.config.open_stdin,
                stdout: options.stdout,
                stderr: options.stderr,
            };
            Some(self.attach_stream(&container, attach).await?)
        } else {
            None
        };
        self.container_event(&record, "attach", &[]);
        Ok(Attached {
            tty: record.config.tty,
            logs,
            stream,
            ended: None,
        })
    }

    async fn attach_stream(&self, container: &Arc<super::Container>, attach: Attach) -> Result<UnixStream> {
        let (ours, theirs) =
            std::os::unix::net::UnixStream::pair().context(|| "make a stream for the client")?;
        match container.wait_for_start(theirs.into(), &attach) {
            Waiting::ForStart => return shim::asynchronous(ours),
            // Those that waited were handed to the shim: this one asks it, when the start is over.
            Waiting::Starting => drop(self.lock_op(container).await?),
            Waiting::Runs => {}
            Waiting::InVain => {
                return Err(Error::conflict(format!(
                    "{MAX_WAITING} clients wait for the start of container {} already: start it, or end some of them",
                    container.id
                )));
            }
        }
        let directory = self.paths.shim(&container.id);
        let (_, stream) = shim::request(directory, &Request::Attach(attach)).await?;
        Ok(stream)
    }

    /// Changes the size of a container's terminal.
    ///
    /// # Errors
    /// Not running.
    pub async fn container_resize(&self, id: &str, height: u16, width: u16) -> Result<()> {
        let container = self.container(id)?;
        if !container.status().has_process() {
            return Err(not_running(&container));
        }
        let request = Request::Resize {
            exec: None,
            size: ConsoleSize { height, width },
        };
        shim::request(self.paths.shim(&container.id), &request).await?;
        self.container_event(
            &container.record(),
            "resize",
            &[("height", height.to_string()), ("width", width.to_string())],
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Container;
    use crate::container::record::{Record, State};

    #[test]
    fn who_left_does_not_wait_for_the_start() {
        let container = Container::new(Record::default(), State::default(), String::new());
        let wait = || {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            (ours, container.wait_for_start(theirs.into(), &Attach::default()))
        };
        for _ in 0..2 * MAX_WAITING {
            assert!(matches!(wait().1, Waiting::ForStart));
        }
        assert_eq!(container.inner().waiting.len(), 1);
        let stay: Vec<_> = (0..MAX_WAITING).map(|_| wait().0).collect();
        assert!(matches!(wait().1, Waiting::InVain));
        drop(stay);
        assert!(matches!(wait().1, Waiting::ForStart));
    }
}
