//! Making and removing the directories of a container in every hierarchy.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode};
use rustix::io::Errno;

use super::dir::Dir;
use super::hierarchy::{Controller, Hierarchy, Version};
use super::path::CgroupPath;
use super::{Member, cpuset};
use crate::{Error, ErrorKind, Result};

/// How long the removal waits for processes that are on their way out.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long they have before they are killed, where nothing may be left.
pub(super) const GRACE: Duration = Duration::from_millis(100);

/// Nested cgroups deeper than this are not ours to follow.
pub(super) const MAX_DEPTH: usize = 64;

/// The directories made so far; removed again unless kept.
#[derive(Default)]
pub(super) struct Made(Vec<PathBuf>);

impl Made {
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // An error is on its way to the caller already; what cannot be removed is empty.
            let _ = rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR);
        }
    }
}

/// Makes the directory of `path` in one hierarchy and opens it. The note tells why a v2 controller could not be had.
pub(super) fn member(
    hierarchy: &Hierarchy,
    path: &CgroupPath,
    made: &mut Made,
    note: &mut Option<String>,
) -> Result<Member> {
    let full = path.below(&hierarchy.mount);
    let fresh = match mkdir(&full) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(Errno::NOENT) => {
            parents(hierarchy, path)?;
            match mkdir(&full) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(not_made(&full, errno)),
            }
        }
        Err(errno) => return Err(not_made(&full, errno)),
    };
    if fresh {
        made.0.push(full.clone());
    }
    let dir = Dir::open(full.clone()).map_err(|errno| not_opened(&full, errno))?;
    if !fresh {
        // One that was prepared for us is fine, one that somebody lives in, or below it, is not.
        let mut processes = Vec::new();
        dir.processes_recursive(MAX_DEPTH, &mut processes)
            .map_err(|errno| not_opened(&full, errno))?;
        if !processes.is_empty() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "cgroup {} exists and has {} processes: is the container running already?",
                    full.display(),
                    processes.len()
                ),
            ));
        }
    }
    match hierarchy.version {
        Version::V1 if hierarchy.controllers.contains(&Controller::Cpuset) => {
            cpuset::inherit(&dir, || {
                cpuset_parents(hierarchy, path)?;
                let parent = full.parent().unwrap_or(&hierarchy.mount).to_owned();
                Dir::open(parent.clone()).map_err(|errno| not_opened(&parent, errno))
            })?;
        }
        Version::V2 if !hierarchy.controllers.is_empty() => {
            let have = dir.read("cgroup.controllers").unwrap_or_default();
            let complete = hierarchy
                .controllers
                .iter()
                .all(|wanted| have.split_whitespace().any(|name| name == wanted.name()));
            if !complete {
                *note = delegate(hierarchy, path);
            }
        }
        _ => {}
    }
    Ok(Member {
        dir,
        version: hierarchy.version,
        controllers: hierarchy.controllers.clone(),
        fresh,
    })
}

fn mkdir(path: &Path) -> Result<(), Errno> {
    rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755))
}

fn parents(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<()> {
    for ancestor in path.ancestors() {
        let full = hierarchy.mount.join(ancestor);
        match mkdir(&full) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(not_made(&full, errno)),
        }
    }
    if hierarchy.version == Version::V1 && hierarchy.controllers.contains(&Controller::Cpuset) {
        cpuset_parents(hierarchy, path)?;
    }
    Ok(())
}

/// Fills in the cpusets above a container's.
fn cpuset_parents(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<()> {
    let open = |full: PathBuf| Dir::open(full.clone()).map_err(|errno| not_opened(&full, errno));
    let mut parent = open(hierarchy.mount.clone())?;
    for ancestor in path.ancestors() {
        let dir = open(hierarchy.mount.join(ancestor))?;
        let mut filled = false;
        cpuset::inherit(&dir, || {
            filled = true;
            open(parent.path().to_owned())
        })?;
        if filled {
            cpuset::copy_to_children(&dir);
        }
        parent = dir;
    }
    Ok(())
}

/// Hands the controllers of a v2 hierarchy down to the parent of `path`. What a level refuses is left out, so that the
/// limits that need it show up as lacking; the answer tells the first refusal.
fn delegate(hierarchy: &Hierarchy, path: &CgroupPath) -> Option<String> {
    let mut note = None;
    let levels = std::iter::once(hierarchy.mount.clone())
        .chain(path.ancestors().map(|level| hierarchy.mount.join(level)));
    for level in levels {
        let dir = match Dir::open(level.clone()) {
            Ok(dir) => dir,
            Err(errno) => return Some(not_opened(&level, errno).report().message),
        };
        let available = dir.read("cgroup.controllers").unwrap_or_default();
        let enabled = dir.read("cgroup.subtree_control").unwrap_or_default();
        let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
        let wanted: Vec<&str> = hierarchy
            .controllers
            .iter()
            .map(|controller| controller.name())
            .filter(|name| has(&available, name) && !has(&enabled, name))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let all: Vec<String> = wanted.iter().map(|name| format!("+{name}")).collect();
        if dir.try_write("cgroup.subtree_control", &all.join(" ")).is_ok() {
            continue;
        }
        for name in wanted {
            if let Err(errno) = dir.try_write("cgroup.subtree_control", &format!("+{name}"))
                && note.is_none()
            {
                let why = match errno {
                    Errno::BUSY => {
                        "it has processes of its own, and v2 keeps those apart from nested cgroups".to_owned()
                    }
                    errno => std::io::Error::from(errno).to_string(),
                };
                note = Some(format!("{} does not hand {name} down: {why}", level.display()));
            }
        }
    }
    note
}

/// Removes a directory and the cgroups nested in it; one system call when there are none. Waits until `end` for processes
/// that are on their way out.
pub(super) fn remove(path: &Path, end: Instant, kill: Option<Instant>) -> Result<()> {
    let mut pause = Duration::from_micros(100);
    loop {
        match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) => {}
            Err(errno) => return Err(not_removed(path, errno, "")),
        }
        if let Ok(dir) = Dir::open(path.to_owned()) {
            if remove_nested(&dir, MAX_DEPTH) {
                continue;
            }
            if kill.is_some_and(|at| Instant::now() >= at) {
                let mut left = Vec::new();
                let _ = dir.processes_recursive(MAX_DEPTH, &mut left);
                for pid in left {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            if Instant::now() >= end {
                let mut left = Vec::new();
                let _ = dir.processes_recursive(MAX_DEPTH, &mut left);
                let names: Vec<String> = left
                    .iter()
                    .take(10)
                    .map(|pid| pid.as_raw_pid().to_string())
                    .collect();
                let detail = format!(", {} processes are still in it: {}", left.len(), names.join(" "));
                return Err(not_removed(path, Errno::BUSY, &detail));
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Removes what is nested, depth first; tells whether anything went.
fn remove_nested(dir: &Dir, depth: usize) -> bool {
    if depth == 0 {
        return false;
    }
    let mut any = false;
    for child in dir.children().unwrap_or_default() {
        any |= remove_nested(&child, depth - 1);
        any |= dir.remove_child(&child).is_ok();
    }
    any
}

fn not_removed(path: &Path, errno: Errno, detail: &str) -> Error {
    let kind = if errno == Errno::BUSY {
        ErrorKind::Conflict
    } else {
        ErrorKind::System
    };
    let text = format!("cannot remove cgroup {}{detail}", path.display());
    Error::with_source(kind, text, std::io::Error::from(errno))
}

fn not_made(path: &Path, errno: Errno) -> Error {
    let source = std::io::Error::from(errno);
    match errno {
        Errno::PERM | Errno::ACCESS | Errno::ROFS => Error::with_source(
            ErrorKind::Permission,
            format!(
                "this process may not make cgroup {}: run as root, or have a cgroup delegated (systemd: Delegate=yes), \
                 or go without limits",
                path.display()
            ),
            source,
        ),
        Errno::NOSPC | Errno::AGAIN => Error::with_source(
            ErrorKind::System,
            format!(
                "cannot make cgroup {}: the limit of cgroups is reached",
                path.display()
            ),
            source,
        ),
        _ => Error::with_source(
            ErrorKind::System,
            format!("cannot make cgroup {}", path.display()),
            source,
        ),
    }
}

pub(super) fn not_opened(path: &Path, errno: Errno) -> Error {
    let kind = if errno == Errno::NOENT {
        ErrorKind::NotFound
    } else {
        ErrorKind::System
    };
    Error::with_source(
        kind,
        format!("cannot open cgroup {}", path.display()),
        std::io::Error::from(errno),
    )
}
