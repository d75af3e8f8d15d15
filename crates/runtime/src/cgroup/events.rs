//! Word of processes killed for want of memory.
//!
//! v1 signals an eventfd when a cgroup meets its limit, before the kill; v2 signals `memory.events` after it. Both give a
//! descriptor to poll, and the number of kills is read from the cgroup.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Node;
use super::dir::{Dir, read_to_string};
use super::hierarchy::Version;
use crate::{Error, ErrorKind, Result};

/// A subscription to the out-of-memory events of a cgroup.
#[derive(Debug)]
pub struct OomEvents {
    /// v1: the eventfd. v2: `memory.events`.
    fd: OwnedFd,
    /// v1: where the count is.
    control: Option<OwnedFd>,
}

impl OomEvents {
    pub(super) fn subscribe(node: Node<'_>) -> Result<Self> {
        match node.version {
            Version::V1 => Self::v1(node.dir),
            Version::V2 => Self::v2(node.dir),
        }
        .map_err(|errno| {
            Error::with_source(
                ErrorKind::System,
                format!("cannot watch {} for want of memory", node.dir.path().display()),
                std::io::Error::from(errno),
            )
        })
    }

    fn v1(dir: &Dir) -> Result<Self, Errno> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = dir.file("memory.oom_control", OFlags::RDONLY)?;
        let line = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
        dir.try_write("cgroup.event_control", &line)?;
        Ok(Self {
            fd,
            control: Some(control),
        })
    }

    fn v2(dir: &Dir) -> Result<Self, Errno> {
        let fd = dir.file("memory.events", OFlags::RDONLY)?;
        // Only what happens after a read is signalled.
        read_to_string(fd.as_fd())?;
        Ok(Self { fd, control: None })
    }

    /// What to poll the descriptor for. (On v2 it is a regular file, which is always readable; poll for this only.)
    pub fn interest(&self) -> PollFlags {
        if self.control.is_some() {
            PollFlags::IN
        } else {
            PollFlags::PRI
        }
    }

    /// Takes the event and tells how many processes were killed so far. On v1 the event comes before the kill, so read
    /// again when the container has exited; when the cgroup is gone, the answer is an error of kind `NotFound`.
    pub fn acknowledge(&self) -> Result<u64> {
        if self.control.is_some() {
            let mut counter = [0; 8];
            // Nothing to take is fine: the count matters, not the events.
            let _ = rustix::io::read(&self.fd, &mut counter);
        }
        let text = read_to_string(self.control.as_ref().unwrap_or(&self.fd).as_fd()).map_err(|errno| {
            let kind = if errno == Errno::NODEV {
                ErrorKind::NotFound
            } else {
                ErrorKind::System
            };
            Error::with_source(
                kind,
                "cannot read the out-of-memory events",
                std::io::Error::from(errno),
            )
        })?;
        Ok(count(&text))
    }
}

impl AsFd for OomEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The number of kills now.
pub(super) fn kills(node: Node<'_>) -> u64 {
    let file = if node.version == Version::V1 {
        "memory.oom_control"
    } else {
        "memory.events"
    };
    node.dir.read(file).map_or(0, |text| count(&text))
}

/// `oom_kill N`; kernels before 4.13 do not count.
fn count(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found() {
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(
            count("low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 9\n"),
            1
        );
        assert_eq!(count("oom_kill_disable 0\n"), 0);
    }
}
