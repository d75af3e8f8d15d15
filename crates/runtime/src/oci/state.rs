//! What is kept of a container between commands.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroup, CgroupPath, Hierarchies};
use crate::error::Context;
use crate::spec::{MAX_CONFIG_BYTES, OCI_VERSION, Spec};
use crate::{Error, ErrorKind, Result};

const STATE: &str = "state.json";
const CONFIG: &str = "config.json";
/// Where its cgroup is going to be: all that can be left when the making of a container is cut short.
pub(super) const MAKING: &str = "making.json";
/// The socket the first process waits on until it is started.
pub(super) const START: &str = "start.sock";

/// A container's status (runtime-spec, runtime.md, "State").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is being made.
    Creating,
    /// Made; the program waits to be started.
    Created,
    /// The program runs.
    Running,
    /// The program is frozen.
    Paused,
    /// The program has ended.
    Stopped,
}

/// A container's state as `state` prints it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// The container's ID.
    pub id: String,
    /// Where it is in its life.
    pub status: Status,
    /// The first process's ID; 0 when it has ended.
    pub pid: i32,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system (as runc prints it).
    pub rootfs: PathBuf,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The configuration's annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The owner of the container (as runc prints it).
    pub owner: String,
}

/// What is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: String,
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: tells the process from a later one with its number.
    pub pid_start: u64,
    pub bundle: PathBuf,
    pub created: String,
    pub cgroup: CgroupPath,
}

/// A container on disk.
#[derive(Debug)]
pub struct Container {
    pub(super) dir: PathBuf,
    pub(super) record: Record,
}

impl Container {
    /// Opens container `id` below `root`.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn open(root: &Path, id: &str) -> Result<Self> {
        check_id(id)?;
        let dir = root.join(id);
        let text = match std::fs::read(dir.join(STATE)) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("container {id:?} does not exist"),
                ));
            }
            Err(error) => return Err(error).context(|| format!("read the state of container {id}")),
        };
        let record = serde_json::from_slice(&text).map_err(|error| {
            Error::with_source(
                ErrorKind::System,
                format!("understand the state of container {id}"),
                error,
            )
        })?;
        Ok(Self { dir, record })
    }

    pub(super) fn save(&self, spec: &Spec) -> Result<()> {
        let failed = |error| Error::with_source(ErrorKind::System, "encode the container's state", error);
        write_private(&self.dir.join(CONFIG), &serde_json::to_vec(spec).map_err(failed)?)
            .context(|| "keep the container's configuration")?;
        let aside = self.dir.join("state.tmp");
        write_private(&aside, &serde_json::to_vec(&self.record).map_err(failed)?)
            .and_then(|()| std::fs::rename(&aside, self.dir.join(STATE)))
            .context(|| "write the container's state")
    }

    /// Its ID.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Its first process's ID, whether or not it still runs.
    pub fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.record.pid)
    }

    /// The configuration it was made from.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn spec(&self) -> Result<Spec> {
        read_spec(&self.dir.join(CONFIG))
    }

    /// The socket the first process waits on until it is started.
    pub(super) fn start_socket(&self) -> PathBuf {
        self.dir.join(START)
    }

    /// Where it is in its life.
    pub fn status(&self) -> Status {
        if !alive(self.record.pid, self.record.pid_start) {
            return Status::Stopped;
        }
        if self.start_socket().exists() {
            return Status::Created;
        }
        match self.cgroup() {
            Ok(cgroup) if cgroup.is_frozen() => Status::Paused,
            _ => Status::Running,
        }
    }

    /// A pidfd of the first process.
    ///
    /// # Errors
    /// `Conflict` when it has ended.
    pub fn pidfd(&self) -> Result<OwnedFd> {
        let ended = || self.not_running();
        let pid = self.pid().ok_or_else(ended)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| ended())?;
        // The number may have been given away before the pidfd was opened, not after.
        if alive(self.record.pid, self.record.pid_start) {
            Ok(pidfd)
        } else {
            Err(ended())
        }
    }

    /// In words containerd looks for: runc's.
    pub(super) fn not_running(&self) -> Error {
        Error::new(
            ErrorKind::Conflict,
            format!("container not running: {}", self.record.id),
        )
    }

    /// Its cgroup.
    ///
    /// # Errors
    /// When there is none any more.
    pub fn cgroup(&self) -> Result<Cgroup> {
        Cgroup::open(&Hierarchies::detect()?, &self.record.cgroup)
    }

    /// Its state, as `state` prints it.
    ///
    /// # Errors
    /// When its configuration cannot be read.
    pub fn state(&self) -> Result<State> {
        let spec = self.spec()?;
        let status = self.status();
        let rootfs = spec
            .root
            .map(|root| self.record.bundle.join(root.path))
            .unwrap_or_default();
        Ok(State {
            oci_version: OCI_VERSION.to_owned(),
            id: self.record.id.clone(),
            status,
            pid: if status == Status::Stopped {
                0
            } else {
                self.record.pid
            },
            bundle: self.record.bundle.clone(),
            rootfs,
            created: self.record.created.clone(),
            annotations: spec.annotations,
            owner: String::new(),
        })
    }
}

/// Writes a new file that is its owner's alone: the environment is in the configuration, and secrets are in that.
pub(super) fn write_private(path: &Path, text: &[u8]) -> std::io::Result<()> {
    std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(text)
}

/// Runs `call` with a short path of directory `dir`: the paths of sockets are limited to 107 bytes.
pub(super) fn through_descriptor<T>(
    dir: &Path,
    call: impl FnOnce(&Path) -> std::io::Result<T>,
) -> std::io::Result<T> {
    let dir = rustix::fs::open(
        dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    call(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())))
}

/// All containers below `root`, by ID. Those that vanish meanwhile are left out.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(root: &Path) -> Result<Vec<Container>> {
    let entries = match std::fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(|| format!("list the containers in {}", root.display())),
    };
    let mut found: Vec<Container> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|id| Container::open(root, &id).ok())
        .collect();
    found.sort_by(|a, b| a.record.id.cmp(&b.record.id));
    Ok(found)
}

/// Whether a container's directory has no record: it is being made, or its making was cut short.
pub(super) fn is_unfinished(dir: &Path) -> bool {
    dir.is_dir() && !dir.join(STATE).exists()
}

/// Removes what is left of a container whose making was cut short; its process ended with its maker. Does nothing when
/// there is none. One that is still being made fails by that.
///
/// # Errors
/// When its directory cannot be removed.
pub fn discard_unfinished(root: &Path, id: &str) -> Result<()> {
    check_id(id)?;
    let dir = root.join(id);
    if !is_unfinished(&dir) {
        return Ok(());
    }
    let cgroup = std::fs::read(dir.join(MAKING))
        .ok()
        .and_then(|text| serde_json::from_slice::<CgroupPath>(&text).ok());
    if let Some(path) = cgroup {
        match Cgroup::open(&Hierarchies::detect()?, &path) {
            Ok(cgroup) => {
                cgroup.kill_all(rustix::process::Signal::KILL)?;
                cgroup.destroy()?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    std::fs::remove_dir_all(&dir).context(|| format!("remove {}", dir.display()))
}

/// IDs become file names.
pub(super) fn check_id(id: &str) -> Result<()> {
    let valid = !id.is_empty()
        && id.len() <= 1024
        && id != "."
        && id != ".."
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte));
    if valid {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{id:?} is not a container ID: letters, digits, _, +, - and . are allowed"
    )))
}

pub(super) fn read_spec(path: &Path) -> Result<Spec> {
    let failed = || format!("read the configuration {}", path.display());
    let file = std::fs::File::open(path).context(failed)?;
    let mut text = Vec::with_capacity(16 << 10);
    file.take(MAX_CONFIG_BYTES + 1)
        .read_to_end(&mut text)
        .context(failed)?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(Error::invalid(format!(
            "{} is larger than {MAX_CONFIG_BYTES} bytes",
            path.display()
        )));
    }
    serde_json::from_slice(&text).map_err(|error| Error::with_source(ErrorKind::Invalid, failed(), error))
}

/// When process `pid` was started (clock ticks since boot) unless it has ended.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may contain anything.
    let rest = stat.get(stat.rfind(')')? + 2..)?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

pub(super) fn alive(pid: i32, started: u64) -> bool {
    start_time(pid) == Some(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_file_names() {
        check_id("a-b_c.d+1").unwrap();
        for id in ["", ".", "..", "a/b", "a b", "é"] {
            check_id(id).unwrap_err();
        }
    }

    #[test]
    fn a_process_is_told_from_its_successor() {
        let own = std::process::id() as i32;
        let started = start_time(own).unwrap();
        assert!(alive(own, started));
        assert!(!alive(own, started + 1));
    }
}
