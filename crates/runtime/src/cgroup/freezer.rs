//! Stopping and resuming all processes of a cgroup at once.
//!
//! v2's freezer (Linux 5.2) is preferred wherever a v2 hierarchy exists: its frozen processes can be killed. The v1 freezer
//! may have to be told several times, because a process that forks at that moment slips through.
//! See `Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst` and `cgroup-v2.rst`.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::dir::{Dir, read_to_string};
use crate::{Error, ErrorKind, Result};

/// How long processes may take to stop: they do not while they wait for a device in an uninterruptible sleep.
const PATIENCE: Duration = Duration::from_secs(10);

/// Stops everything in a v2 cgroup. `None` when this kernel has no freezer there.
pub(super) fn freeze_v2(dir: &Dir) -> Result<Option<()>> {
    let events = match dir.file("cgroup.events", OFlags::RDONLY) {
        Err(Errno::NOENT) => return Ok(None),
        result => result.map_err(|errno| failed(dir, "open cgroup.events", errno))?,
    };
    match dir.try_write("cgroup.freeze", "1") {
        Err(Errno::NOENT) => return Ok(None),
        result => result.map_err(|errno| failed(dir, "freeze", errno))?,
    }
    let end = Instant::now() + PATIENCE;
    loop {
        // Reading arms the notification, so nothing is missed between here and the wait.
        let text = read_to_string(std::os::fd::AsFd::as_fd(&events))
            .map_err(|errno| failed(dir, "read cgroup.events", errno))?;
        if flag(&text, "frozen") == Some(true) {
            return Ok(Some(()));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Best effort: the caller hears that the container is not frozen.
            let _ = dir.try_write("cgroup.freeze", "0");
            return Err(stubborn(dir));
        }
        let timeout = rustix::event::Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(dir, "wait for cgroup.events", errno)),
        }
    }
}

/// Resumes a v2 cgroup.
pub(super) fn thaw_v2(dir: &Dir) -> Result<()> {
    match dir.try_write("cgroup.freeze", "0") {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed(dir, "thaw", errno)),
    }
}

/// Whether a v2 cgroup is told to be frozen.
pub(super) fn is_frozen_v2(dir: &Dir) -> bool {
    dir.read("cgroup.freeze").is_some_and(|text| text.trim() == "1")
}

/// Stops everything in a v1 cgroup.
pub(super) fn freeze_v1(dir: &Dir) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(20);
    for round in 1u32.. {
        dir.try_write("freezer.state", "FROZEN")
            .map_err(|errno| failed(dir, "freeze", errno))?;
        match dir.read_required("freezer.state")?.trim() {
            "FROZEN" => return Ok(()),
            _ if Instant::now() >= end => break,
            _ => {}
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
        if round % 25 == 0 {
            // Two that wait for each other get through when let go for a moment.
            dir.try_write("freezer.state", "THAWED")
                .map_err(|errno| failed(dir, "thaw", errno))?;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let _ = dir.try_write("freezer.state", "THAWED");
    Err(stubborn(dir))
}

/// Resumes a v1 cgroup.
pub(super) fn thaw_v1(dir: &Dir) -> Result<()> {
    dir.try_write("freezer.state", "THAWED")
        .map_err(|errno| failed(dir, "thaw", errno))
}

/// Whether a v1 cgroup is frozen, or about to be.
pub(super) fn is_frozen_v1(dir: &Dir) -> bool {
    dir.read("freezer.self_freezing")
        .is_some_and(|text| text.trim() == "1")
}

/// A line `KEY 0` or `KEY 1`.
pub(super) fn flag(text: &str, key: &str) -> Option<bool> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .map(|value| value.trim() == "1")
}

fn failed(dir: &Dir, what: &str, errno: Errno) -> Error {
    let kind = match errno {
        Errno::NOENT | Errno::NODEV => ErrorKind::NotFound,
        Errno::PERM | Errno::ACCESS | Errno::ROFS => ErrorKind::Permission,
        _ => ErrorKind::System,
    };
    let text = format!("cannot {what} in cgroup {}", dir.path().display());
    Error::with_source(kind, text, std::io::Error::from(errno))
}

fn stubborn(dir: &Dir) -> Error {
    Error::new(
        ErrorKind::System,
        format!(
            "the processes in cgroup {} did not stop within {} seconds, one of them is stuck in the kernel; \
             they were resumed",
            dir.path().display(),
            PATIENCE.as_secs()
        ),
    )
}
