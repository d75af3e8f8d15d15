//! `create` and `run`.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::process::{WaitOptions, waitpid};

use super::state::{self, Container, Record, State, Status, check_id, read_spec, start_time};
use crate::cgroup::{CgroupPath, Hierarchies};
use crate::error::Context;
use crate::process::{self, Init, Plan, Stdio, hooks};
use crate::shim::RootSource;
use crate::spec::{OCI_VERSION, Spec};
use crate::{Error, ErrorKind, Result, capabilities, seccomp};

/// How a container is made.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// Where to send the terminal's other side.
    pub console_socket: Option<PathBuf>,
    /// Where to write the first process's ID.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 on the program keeps.
    pub preserve_fds: u32,
}

/// How `run` behaves beyond creating.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// As for create.
    pub create: CreateOptions,
    /// Return once the program runs.
    pub detach: bool,
    /// Leave the container behind when the program has ended.
    pub keep: bool,
}

/// Makes a container whose program waits for `start`.
///
/// # Errors
/// What failed; nothing is left then.
pub fn create(root: &Path, id: &str, options: &CreateOptions, warn: Warn<'_>) -> Result<Container> {
    make(root, id, options, true, warn).map(|(container, _)| container)
}

/// Is told what was asked for and could not be had, a sentence each.
pub type Warn<'a> = &'a dyn Fn(&str);

/// Makes a container and runs its program; returns its exit code unless detached.
///
/// # Errors
/// What failed; nothing is left then.
pub fn run(root: &Path, id: &str, options: &RunOptions, warn: Warn<'_>) -> Result<Option<i32>> {
    let (container, init) = make(root, id, &options.create, false, warn)?;
    container.after_start();
    if options.detach {
        return Ok(None);
    }
    let code = match &init.terminal {
        Some(master) if options.create.console_socket.is_none() => {
            super::exec::proxy(master, init.pidfd.as_fd())?
        }
        _ => super::exec::wait_forwarding(init.pidfd.as_fd(), init.pid)?,
    };
    if !options.keep {
        container.delete(true)?;
    }
    Ok(Some(code))
}

fn make(
    root: &Path,
    id: &str,
    options: &CreateOptions,
    wait: bool,
    warn: Warn<'_>,
) -> Result<(Container, Init)> {
    check_id(id)?;
    let bundle = std::fs::canonicalize(&options.bundle)
        .context(|| format!("open the bundle {}", options.bundle.display()))?;
    let mut spec = read_spec(&bundle.join("config.json"))?;
    if wait {
        // The process finds out when it is started, and nobody listens then.
        warn_of_capabilities(&spec, warn);
    }
    spec.validate()?;
    let terminal = spec.process.as_ref().is_some_and(|process| process.terminal);
    if terminal && wait && options.console_socket.is_none() {
        return Err(Error::invalid(
            "process.terminal needs --console-socket: there is nobody to hold the terminal",
        ));
    }
    if !terminal && options.console_socket.is_some() {
        return Err(Error::invalid(
            "--console-socket is given, but process.terminal is false",
        ));
    }
    let dir = root.join(id);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(root)
        .context(|| format!("make the state directory {}", root.display()))?;
    match std::fs::DirBuilder::new().mode(0o711).create(&dir) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && state::is_unfinished(&dir) => {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "container {id:?} is being made, or its making was cut short: in that case delete it with --force"
                ),
            ));
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("container {id:?} exists already: delete it first, or use another ID"),
            ));
        }
        Err(error) => {
            return Err(error).context(|| format!("make the container's directory {}", dir.display()));
        }
    }
    let result = spawn(&dir, id, &bundle, &mut spec, options, wait);
    match &result {
        Ok((_, init)) => init.warnings.iter().for_each(|warning| warn(warning)),
        Err(_) => {
            let _ = std::fs::remove_dir_all(&dir);
        }
    }
    result
}

fn spawn(
    dir: &Path,
    id: &str,
    bundle: &Path,
    spec: &mut Spec,
    options: &CreateOptions,
    wait: bool,
) -> Result<(Container, Init)> {
    let hierarchies = Hierarchies::detect()?;
    let cgroup = CgroupPath::from_oci(&spec.linux().cgroups_path, id)?;
    state::write_private(
        &dir.join(state::MAKING),
        &serde_json::to_vec(&cgroup).unwrap_or_default(),
    )
    .context(|| "record that the container is being made")?;
    let created = now();
    let start: Option<OwnedFd> = wait
        .then(|| {
            state::through_descriptor(dir, |near| {
                UnixListener::bind(near.join(state::START)).map(OwnedFd::from)
            })
        })
        .transpose()
        .context(|| "make the socket for start")?;
    let seccomp = spec.linux().seccomp.as_ref().map(seccomp::compile).transpose()?;
    let terminal = spec.process.as_ref().is_some_and(|process| process.terminal);
    let rootfs = spec
        .root
        .as_ref()
        .map(|root| root.path.clone())
        .unwrap_or_default();
    let source = RootSource::Directory(rootfs.clone());
    let annotations = spec.annotations.clone();
    let state = |status: &str, pid: i32| {
        let status = if status == "creating" {
            Status::Creating
        } else {
            Status::Created
        };
        let state = State {
            oci_version: OCI_VERSION.to_owned(),
            id: id.to_owned(),
            status,
            pid,
            bundle: bundle.to_owned(),
            rootfs: bundle.join(&rootfs),
            created: created.clone(),
            annotations: annotations.clone(),
            owner: String::new(),
        };
        serde_json::to_vec(&state).unwrap_or_default()
    };
    let init = process::spawn(Plan {
        spec,
        bundle,
        root: &source,
        sources: &[],
        netns: None,
        seccomp,
        stdio: if terminal { Stdio::Terminal } else { Stdio::Inherit },
        hierarchies: &hierarchies,
        cgroup: cgroup.clone(),
        start,
        preserve_fds: options.preserve_fds,
        state: &state,
    })?;
    let pid = init.pid.as_raw_nonzero().get();
    let record = Record {
        id: id.to_owned(),
        pid,
        pid_start: start_time(pid).unwrap_or(0),
        bundle: bundle.to_owned(),
        created: created.clone(),
        cgroup,
    };
    let container = Container {
        dir: dir.to_owned(),
        record,
    };
    let finish = || -> Result<()> {
        container.save(spec)?;
        if let Some(path) = &options.pid_file {
            write_pid(path, pid)?;
        }
        if let (Some(path), Some(master)) = (&options.console_socket, &init.terminal) {
            send_terminal(path, master)?;
        }
        init.recorded()
    };
    if let Err(error) = finish() {
        let _ = init.cgroup.kill_all(rustix::process::Signal::KILL);
        let _ = rustix::process::pidfd_send_signal(&init.pidfd, rustix::process::Signal::KILL);
        let _ = waitpid(Some(init.pid), WaitOptions::empty());
        let _ = init.cgroup.destroy();
        return Err(error);
    }
    Ok((container, init))
}

fn warn_of_capabilities(spec: &Spec, warn: Warn<'_>) {
    let Some(lists) = spec
        .process
        .as_ref()
        .and_then(|process| process.capabilities.as_ref())
    else {
        return;
    };
    let (_, unknown) = capabilities::Sets::from_names(
        &lists.bounding,
        &lists.effective,
        &lists.permitted,
        &lists.inheritable,
        &lists.ambient,
    );
    if !unknown.is_empty() {
        warn(&format!(
            "ignoring unknown or unavailable capabilities: [{}]",
            unknown.join(" ")
        ));
    }
}

impl Container {
    /// Runs what belongs after the start; failures of these hooks are the operator's to see, not the container's end.
    pub(super) fn after_start(&self) {
        let Ok(spec) = self.spec() else { return };
        let Some(configured) = spec.hooks.filter(|hooks| !hooks.poststart.is_empty()) else {
            return;
        };
        if let Ok(state) = self
            .state()
            .map(|state| serde_json::to_vec(&state).unwrap_or_default())
        {
            let _ = hooks::run("poststart", &configured.poststart, &state);
        }
    }
}

/// Written aside and renamed: whoever waits for the file never reads half of it.
pub(super) fn write_pid(path: &Path, pid: i32) -> Result<()> {
    let mut aside = path.to_owned().into_os_string();
    aside.push(".tmp");
    std::fs::write(&aside, pid.to_string())
        .and_then(|()| std::fs::rename(&aside, path))
        .context(|| format!("write the process ID to {}", path.display()))
}

/// Sends the terminal's other side as runc's console socket protocol has it: one descriptor, its name as the message.
pub(super) fn send_terminal(path: &Path, master: &OwnedFd) -> Result<()> {
    let failed = || format!("send the terminal to the console socket {}", path.display());
    let socket = UnixStream::connect(path).context(failed)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(
        &socket,
        &[std::io::IoSlice::new(b"/dev/ptmx")],
        &mut ancillary,
        rustix::net::SendFlags::NOSIGNAL,
    )
    .context(failed)?;
    Ok(())
}

/// The time, RFC 3339 with nanoseconds.
fn now() -> String {
    crate::shim::rfc3339_now()
}
