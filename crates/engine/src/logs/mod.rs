//! Containers' logs.
//!
//! [`reader::send`] does the reading; [`entry`] knows the lines.

pub mod entry;
pub mod reader;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{Engine, Error, Result};

/// What of a log is wanted.
#[derive(Debug, Clone, Default)]
pub struct LogsOptions {
    /// Go on with what comes.
    pub follow: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Nothing before this, nanoseconds since the epoch.
    pub since: Option<i64>,
    /// Nothing after this.
    pub until: Option<i64>,
    /// A time before each line.
    pub timestamps: bool,
    /// Extra attributes before each line.
    pub details: bool,
    /// Only so many lines from the end; none: all.
    pub tail: Option<u64>,
}

/// A log on its way: Docker's multiplexed frames, or raw bytes for a container with a terminal.
#[derive(Debug)]
pub struct LogStream {
    /// Whether the bytes are raw.
    pub tty: bool,
    /// Chunks, in order; an error ends it.
    pub chunks: mpsc::Receiver<Result<Bytes>>,
}

impl Engine {
    /// A container's log.
    ///
    /// # Errors
    /// No such container; a log driver that cannot be read; neither stream chosen.
    pub async fn container_logs(&self, _id: &str, _options: LogsOptions) -> Result<LogStream> {
        Err(Error::unsupported("not written yet"))
    }
}
