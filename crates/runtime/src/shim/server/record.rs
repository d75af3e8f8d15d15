//! The exit status on disk, for whoever asks after the shim has ended.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::error::Context;
use crate::shim::protocol::{self, Exit};
use crate::{Error, ErrorKind, Result};

/// Writes the exit status aside, then puts it in place.
pub(super) fn record(path: &Path, exit: Exit, durable: bool) -> std::io::Result<()> {
    let text = serde_json::to_vec(&exit)?;
    let aside = path.with_extension("tmp");
    let written = || {
        std::fs::write(&aside, text)?;
        if durable {
            std::fs::File::open(&aside)?.sync_all()?;
        }
        std::fs::rename(&aside, path)
    };
    let result = written();
    if result.is_err() {
        // A full disk leaves an empty file.
        let _ = std::fs::remove_file(&aside);
    } else if durable && let Some(dir) = path.parent() {
        // It is in place; that the name lasts as well can only be tried.
        let _ = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
    }
    result
}

/// Writes the exit status to the shim's directory, which is in memory: the disk may be full.
pub(super) fn record_aside(dir: &OwnedFd, exit: Exit) -> Result<()> {
    use rustix::fs::{Mode, OFlags, openat};
    let text = serde_json::to_vec(&exit)
        .map_err(|error| Error::with_source(ErrorKind::System, "encode the exit status", error))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(dir, protocol::EXIT, flags, Mode::from_raw_mode(0o600))
        .context(|| "record the exit status")?;
    std::io::Write::write_all(&mut std::fs::File::from(file), &text).context(|| "record the exit status")
}
