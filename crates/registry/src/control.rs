//! A socket in the registry's directory by which its owner talks to the process that has it: `garbage-collect` while
//! the registry serves.
//!
//! One line of JSON each way. Who may connect is a matter of the file's mode: its owner alone.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use crate::error::{Code, Error, Result};
use crate::http::receive::blocking;
use crate::registry::Registry;
use crate::storage::{CollectOptions, Collected};

/// No request or answer is longer.
const MAX_LINE: u64 = 4096;

/// The socket.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

fn path(root: &Path) -> PathBuf {
    root.join("control.sock")
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Done(Collected),
    Failed(String),
}

impl Control {
    /// Makes the socket. The directory is locked by this process, so an old one is nobody's.
    pub fn open(root: &Path) -> Result<Self> {
        let path = path(root);
        let fail = |e| Error::io(format!("cannot make {}", path.display()), e);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(e)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(fail)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        Ok(Self { listener, path })
    }

    /// Answers for ever.
    pub async fn run(self, registry: Arc<Registry>) {
        loop {
            let Ok((mut stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let registry = Arc::clone(&registry);
            tokio::spawn(async move {
                let (read, mut write) = stream.split();
                let mut line = String::new();
                let read = tokio::io::BufReader::new(read.take(MAX_LINE))
                    .read_line(&mut line)
                    .await;
                let answer = match (read, serde_json::from_str(&line)) {
                    (Ok(_), Ok(options)) => match registry.collect(options).await {
                        Ok(collected) => Answer::Done(collected),
                        Err(error) => Answer::Failed(error.to_string()),
                    },
                    _ => Answer::Failed("the request cannot be read".into()),
                };
                let mut text = serde_json::to_string(&answer).unwrap_or_default();
                text.push('\n');
                // Nobody to tell when the other end went away.
                let _ = write.write_all(text.as_bytes()).await;
            });
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Registry {
    /// Collects garbage.
    pub(crate) async fn collect(self: &Arc<Self>, options: CollectOptions) -> Result<Collected> {
        let storage = self.storage().clone();
        let collected = blocking(move || storage.collect(&options)).await?;
        self.metrics().collections.add(1);
        self.metrics().collected_bytes.add(collected.bytes);
        Ok(collected)
    }
}

/// Whether a process serves a directory.
pub(crate) fn answers(root: &Path) -> bool {
    UnixStream::connect(path(root)).is_ok()
}

/// Asks the process that serves a directory to collect garbage. None when no process does.
pub fn collect_running(root: &Path, options: &CollectOptions) -> Result<Option<Collected>> {
    let path = path(root);
    let fail = |e| Error::io(format!("cannot talk to the registry at {}", path.display()), e);
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(fail(e)),
    };
    let mut line = serde_json::to_string(options).map_err(|e| Error::new(Code::Unknown, e.to_string()))?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(fail)?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_LINE))
        .read_line(&mut answer)
        .map_err(fail)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Done(collected)) => Ok(Some(collected)),
        Ok(Answer::Failed(why)) => Err(Error::new(Code::Unknown, why)),
        Err(_) => Err(Error::new(
            Code::Unknown,
            "the registry ended while it collected; try again",
        )),
    }
}
