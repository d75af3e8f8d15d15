//! Attaching to a container's streams.

use tokio::net::UnixStream;

use crate::logs::LogStream;
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
}

impl Engine {
    /// Attaches to a container, which may not have been started yet.
    ///
    /// # Errors
    /// No such container; paused or restarting.
    pub async fn container_attach(&self, _id: &str, _options: AttachOptions) -> Result<Attached> {
        Err(Error::unsupported("not written yet"))
    }

    /// Changes the size of a container's terminal.
    ///
    /// # Errors
    /// Not running.
    pub async fn container_resize(&self, _id: &str, _height: u16, _width: u16) -> Result<()> {
        Err(Error::unsupported("not written yet"))
    }
}
