//! Containers' logs: Docker's json-file format, read back as streams.
//!
//! The shim writes them; here they are read from the files alone, so that a log can be read whoever wrote it and whether
//! or not the container runs. Following waits for the kernel to say that the directory changed.

mod entry;
pub mod reader;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{Container, Engine, Error, Result, blocking, time};
use reader::{Reader, Step};
use watch::Watch;
pub(crate) use watch::Watcher;

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

/// A chunk is sent when it is about this large, or when there is nothing more.
const CHUNK: usize = 256 << 10;

impl Engine {
    /// A container's log.
    ///
    /// # Errors
    /// No such container; a log driver that cannot be read; neither stream chosen.
    pub async fn container_logs(&self, id: &str, options: LogsOptions) -> Result<LogStream> {
        let container = self.container(id)?;
        let record = container.record();
        if !options.stdout && !options.stderr {
            return Err(Error::invalid(
                "Bad parameters: you must choose at least one stream",
            ));
        }
        if !crate::container::log_drivers::is_readable(&record) {
            return Err(Error::unsupported(
                "configured logging driver does not support reading",
            ));
        }
        let tty = record.config.tty;
        let path = self.paths.log(&record.id);
        let follow = options.follow && container.status().is_running();
        // Watched before it is read, or what is written in between would not be noticed.
        let watch = if follow {
            Some(self.log_watcher.watch(&self.paths.container(&record.id))?)
        } else {
            None
        };
        let until = options.until;
        let reader = blocking(move || Reader::open(&path, LogsOptions { follow, ..options }, tty)).await?;
        // Little is on its way: a slow client slows the reading, nothing else.
        let (sender, chunks) = mpsc::channel(2);
        tokio::spawn(async move {
            if let Err(error) = send_all(reader, &sender, watch, &container, until).await {
                // A client that left hears nothing.
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(LogStream { tty, chunks })
    }
}

async fn send_all(
    mut reader: Reader,
    sender: &mpsc::Sender<Result<Bytes>>,
    watch: Option<Watch>,
    container: &Arc<Container>,
    until: Option<i64>,
) -> Result<()> {
    let mut life = container.life();
    // When it has ended nothing more is written: one more reading, then the end.
    let mut ended = watch.is_none();
    loop {
        let (back, chunk, step) = blocking(move || {
            let mut chunk = Vec::new();
            let step = loop {
                let step = reader.step(&mut chunk)?;
                if step != Step::More || chunk.len() >= CHUNK {
                    break step;
                }
            };
            Ok((reader, chunk, step))
        })
        .await?;
        reader = back;
        if !chunk.is_empty() && sender.send(Ok(chunk.into())).await.is_err() {
            return Ok(());
        }
        match step {
            Step::More => continue,
            Step::Done => return Ok(()),
            Step::End if ended => return Ok(()),
            Step::End => {}
        }
        let Some(watch) = &watch else { return Ok(()) };
        let late = until.map(|until| Duration::from_nanos(u64::try_from(until - time::now()).unwrap_or(0)));
        tokio::select! {
            changed = watch.changed() => changed?,
            _ = life.wait_for(|life| !life.running || life.removed) => ended = true,
            () = sender.closed() => return Ok(()),
            () = tokio::time::sleep(late.unwrap_or(Duration::MAX)), if late.is_some() => return Ok(()),
        }
    }
}
