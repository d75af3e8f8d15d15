//! The parent's side of making a container.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};

use super::channel::{Channel, FromChild, ToChild};
use super::init::{self, Child};
use super::namespaces::{Namespaces, PidNamespace, set, with_pid_namespace, with_time_namespace};
use super::{Stdio, hooks, idmap};
use crate::cgroup::resources::DeviceRule;
use crate::cgroup::{Cgroup, CgroupPath, Hierarchies, Lack, Resources, refuse};
use crate::error::Context;
use crate::seccomp;
use crate::shim::RootSource;
use crate::spec::{IdMapping, Linux, Mount, NamespaceKind, Spec};
use crate::sys::clone3::{Clone3, Side, flags};
use crate::{Error, ErrorKind, Result, rootfs};

/// A container to be made.
pub struct Plan<'a> {
    /// What it is.
    pub spec: &'a Spec,
    /// Relative paths of the configuration are relative to this directory.
    pub bundle: &'a Path,
    /// What becomes its root.
    pub root: &'a RootSource,
    /// Detached mounts that bind mounts attach, by their destination, instead of what `source` names.
    pub sources: &'a [(PathBuf, OwnedFd)],
    /// A network namespace to enter instead of making one.
    pub netns: Option<BorrowedFd<'a>>,
    /// The system call filter.
    pub seccomp: Option<seccomp::Program>,
    /// The process's standard streams.
    pub stdio: Stdio,
    /// The host's cgroups.
    pub hierarchies: &'a Hierarchies,
    /// Where the container's cgroup goes.
    pub cgroup: CgroupPath,
    /// A listening socket: the program is executed when someone connects to it. None: at once.
    pub start: Option<OwnedFd>,
    /// How many descriptors from 3 on the program keeps.
    pub preserve_fds: u32,
    /// The container's state (runtime-spec, "State") as JSON for hooks and seccomp listeners, given status and process ID.
    pub state: &'a dyn Fn(&str, i32) -> Vec<u8>,
}

/// A container's first process.
#[derive(Debug)]
pub struct Init {
    /// Its ID.
    pub pid: Pid,
    /// A pidfd of it.
    pub pidfd: OwnedFd,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// The other side of its terminal.
    pub terminal: Option<OwnedFd>,
    /// What was asked for and could not be had, each a sentence.
    pub warnings: Vec<String>,
    /// With [`Plan::start`]: where the process waits to hear that it is known.
    waiting: Option<Channel>,
}

impl Init {
    /// Tells a process that waits to be started that whoever starts it will find it. Until then it ends when this process
    /// does, so that nothing is left of a container whose making was cut short.
    ///
    /// # Errors
    /// When it cannot be told. That it has died is no error.
    pub fn recorded(&self) -> Result<()> {
        match &self.waiting {
            Some(channel) => channel.tell_child(&ToChild::Go(None)),
            None => Ok(()),
        }
    }
}

/// Makes the container. Returns when its program was executed, or, with [`Plan::start`], when all is ready for that; then
/// [`Init::recorded`] has to follow.
///
/// The calling process must be single-threaded.
///
/// # Errors
/// What failed, on either side; nothing of the container is left then.
pub fn spawn(plan: Plan<'_>) -> Result<Init> {
    let linux = plan.spec.linux();
    let namespaces = Namespaces::of(linux, plan.netns)?;
    let (ours, theirs) = Channel::pair()?;
    let mut resources = linux.resources.clone().unwrap_or_default();
    allow_standard_devices(&mut resources, linux);

    let sources = sources(&plan, &namespaces)?;
    let (cgroup, lacks) = Cgroup::create(plan.hierarchies, &plan.cgroup, &resources)?;
    if let Err(error) = refuse_unified(&lacks) {
        let _ = cgroup.destroy();
        return Err(error);
    }
    let (pid, pidfd) = match clone(&plan, &namespaces, &cgroup, &sources, &ours, theirs) {
        Ok(made) => made,
        Err(error) => {
            // A child there may be nevertheless: what failed can be the way back to this process's own namespaces.
            let _ = cgroup.kill_all(Signal::KILL);
            let _ = cgroup.destroy();
            return Err(error);
        }
    };
    // The child has its own copies.
    drop(sources);
    match supervise(&plan, &namespaces, &ours, pid, pidfd.as_fd()) {
        Ok(Prepared {
            terminal,
            mut warnings,
        }) => {
            warnings.extend(lacks.iter().map(ToString::to_string));
            Ok(Init {
                pid,
                pidfd,
                cgroup,
                terminal,
                warnings,
                waiting: plan.start.is_some().then_some(ours),
            })
        }
        Err(error) => {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
            let _ = cgroup.kill_all(Signal::KILL);
            let _ = cgroup.destroy();
            Err(error)
        }
    }
}

/// What is known when the child is ready.
#[derive(Default)]
struct Prepared {
    terminal: Option<OwnedFd>,
    warnings: Vec<String>,
}

fn clone(
    plan: &Plan<'_>,
    namespaces: &Namespaces,
    cgroup: &Cgroup,
    sources: &[Option<OwnedFd>],
    ours: &Channel,
    theirs: Channel,
) -> Result<(Pid, OwnedFd)> {
    let user = namespaces.joined(NamespaceKind::User);
    let pid_namespace = namespaces
        .joined(NamespaceKind::Pid)
        .map(|file| PidNamespace::File(file.as_fd()));
    let start = |channel: Channel| -> Infallible {
        // SAFETY: this is the child: `run` executes a program or ends, and knows nothing of the parent's end.
        unsafe { ours.forget_in_child() };
        let user_made = namespaces.makes(NamespaceKind::User);
        init::run(Child {
            plan,
            namespaces,
            cgroup,
            sources,
            channel,
            user_made,
        })
    };
    let make = || {
        if let Some(user) = user {
            return clone_in_user_namespace(namespaces, user, cgroup, ours, theirs, &start);
        }
        let mut call = Clone3::new(namespaces.clone).pidfd();
        if let Some(dir) = cgroup.clone_into_fd() {
            call = call.cgroup(dir);
        }
        // SAFETY: the runtime is single-threaded where containers are made (see the module's documentation).
        match unsafe { call.call() }.context(|| clone_failed(namespaces))? {
            Side::Child => match start(theirs) {},
            Side::Parent { pid, pidfd } => Ok((pid, pidfd.ok_or_else(no_pidfd)?)),
        }
    };
    with_pid_namespace(pid_namespace, || {
        namespaces.with_network(|| {
            if namespaces.time {
                with_time_namespace(plan.spec.linux(), make)
            } else {
                make()
            }
        })
    })
}

/// The bind mounts the container's own process could not make, detached, in the order of `mounts`: a user namespace has
/// no access to what its root may not read on the host, and none to the owners of the host's files (idmapped mounts).
fn sources(plan: &Plan<'_>, namespaces: &Namespaces) -> Result<Vec<Option<OwnedFd>>> {
    let linux = plan.spec.linux();
    let user = namespaces.makes(NamespaceKind::User) || namespaces.joined(NamespaceKind::User).is_some();
    if !namespaces.makes(NamespaceKind::Mount) {
        return Ok(Vec::new());
    }
    let one = |mount: &Mount| -> Result<Option<OwnedFd>> {
        let options = rootfs::Options::parse(&mount.options);
        if !rootfs::is_bind(mount, &options) {
            return Ok(None);
        }
        // Without mappings of its own, an idmapped mount has the container's.
        let (uids, gids) = match options.idmap {
            Some(_) if mount.uid_mappings.is_empty() => (&linux.uid_mappings, &linux.gid_mappings),
            _ => (&mount.uid_mappings, &mount.gid_mappings),
        };
        let given = plan.sources.iter().find(|(at, _)| *at == mount.destination);
        if uids.is_empty() && !user && given.is_none() {
            return Ok(None);
        }
        let idmap = (!uids.is_empty())
            .then(|| idmap::user_namespace(uids, gids))
            .transpose()?;
        let idmap = idmap.as_ref().map(AsFd::as_fd);
        let made = match given {
            Some((_, given)) => given
                .try_clone()
                .context(|| "copy a descriptor")
                .and_then(|copy| {
                    rootfs::settle_source(&copy, mount, &options, idmap, true)?;
                    Ok(copy)
                }),
            None => rootfs::bind_source(mount, &options, plan.bundle, idmap, true),
        };
        made.map(Some)
            .map_err(|error| error.wrap(format!("mount {}", mount.destination.display())))
    };
    plan.spec.mounts.iter().map(one).collect()
}

fn no_pidfd() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "the kernel gives no pidfd: Linux 5.12 or newer is needed",
    )
}

fn clone_failed(namespaces: &Namespaces) -> String {
    let names: Vec<_> = NamespaceKind::ALL
        .into_iter()
        .filter(|kind| namespaces.makes(*kind))
        .map(NamespaceKind::proc_name)
        .collect();
    format!(
        "make the container's process with new namespaces ({})",
        names.join(", ")
    )
}

/// All other namespaces must belong to the joined user namespace: an intermediate process joins it and makes the
/// container's process as its sibling.
fn clone_in_user_namespace(
    namespaces: &Namespaces,
    user: &OwnedFd,
    cgroup: &Cgroup,
    ours: &Channel,
    theirs: Channel,
    start: &dyn Fn(Channel) -> Infallible,
) -> Result<(Pid, OwnedFd)> {
    // SAFETY: as in `clone`.
    let intermediate = match unsafe { Clone3::new(0).call() }.context(|| "make an intermediate process")? {
        Side::Parent { pid, .. } => {
            drop(theirs);
            pid
        }
        Side::Child => {
            let run = || -> Result<()> {
                set(user.as_fd(), NamespaceKind::User)?;
                let mut call = Clone3::new(namespaces.clone | flags::PARENT);
                if let Some(dir) = cgroup.clone_into_fd() {
                    call = call.cgroup(dir);
                }
                // SAFETY: as in `clone`.
                match unsafe { call.call() }.context(|| clone_failed(namespaces))? {
                    Side::Child => Ok(()),
                    Side::Parent { pid, .. } => {
                        theirs.tell_parent(&FromChild::Pid(pid.as_raw_nonzero().get()))?;
                        // SAFETY: ends the intermediate process at once, running nothing.
                        unsafe { libc::_exit(0) }
                    }
                }
            };
            if let Err(error) = run() {
                let _ = theirs.tell_parent(&FromChild::Failed(error.report()));
                // SAFETY: as above.
                unsafe { libc::_exit(1) }
            }
            #[allow(unreachable_code, reason = "there is no such value")]
            match start(theirs) {}
        }
    };
    let heard = ours.hear_child();
    let _ = waitpid(Some(intermediate), WaitOptions::empty());
    match heard? {
        Some(FromChild::Pid(pid)) => {
            let pid = Pid::from_raw(pid).ok_or_else(no_pidfd)?;
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).context(|| "watch the container's process")?;
            Ok((pid, pidfd))
        }
        Some(FromChild::Failed(report)) => Err(report.into()),
        _ => Err(Error::new(ErrorKind::System, "the intermediate process died")),
    }
}

fn supervise(
    plan: &Plan<'_>,
    namespaces: &Namespaces,
    channel: &Channel,
    pid: Pid,
    pidfd: BorrowedFd<'_>,
) -> Result<Prepared> {
    let raw_pid = pid.as_raw_nonzero().get();
    let linux = plan.spec.linux();
    // In a user namespace it may not lower its own.
    if (namespaces.makes(NamespaceKind::User) || namespaces.joined(NamespaceKind::User).is_some())
        && let Some(adjustment) = plan
            .spec
            .process
            .as_ref()
            .and_then(|process| process.oom_score_adj)
    {
        std::fs::write(format!("/proc/{raw_pid}/oom_score_adj"), adjustment.to_string())
            .context(|| format!("set oom_score_adj to {adjustment}"))?;
    }
    let mut prepared = Prepared::default();
    if namespaces.makes(NamespaceKind::User) {
        let mut root = None;
        write_mappings(raw_pid, linux)?;
        if let RootSource::Overlay(overlay) = plan.root {
            let user = rustix::fs::open(
                format!("/proc/{raw_pid}/ns/user"),
                rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
            .context(|| "open the container's user namespace")?;
            root = Some(rootfs::overlay(overlay, Some(user.as_fd()))?);
        }
        channel.tell_child(&ToChild::Go(root))?;
    }
    let mut ready = false;
    loop {
        match channel.hear_child()? {
            Some(FromChild::Terminal(fd)) => prepared.terminal = Some(fd),
            Some(FromChild::Warning(warning)) => prepared.warnings.push(warning),
            Some(FromChild::Hooks) => {
                if let Some(configured) = &plan.spec.hooks {
                    let state = (plan.state)("creating", raw_pid);
                    let dir = Some(plan.bundle);
                    hooks::run_in(dir, "prestart", &configured.prestart, &state)?;
                    hooks::run_in(dir, "createRuntime", &configured.create_runtime, &state)?;
                }
                channel.tell_child(&ToChild::Go(None))?;
            }
            Some(FromChild::SeccompListener(number)) => {
                pass_listener(plan, pidfd, raw_pid, number)?;
                channel.tell_child(&ToChild::Go(None))?;
            }
            Some(FromChild::Ready) => {
                ready = true;
                if plan.start.is_some() {
                    return Ok(prepared);
                }
            }
            Some(FromChild::Failed(report)) => return Err(report.into()),
            Some(FromChild::Pid(_)) => {}
            None if ready => return Ok(prepared),
            None => {
                return Err(Error::new(
                    ErrorKind::System,
                    "the container's process died while it was being prepared (was it killed, or out of memory under its limit?)",
                ));
            }
        }
    }
}

/// Sends the seccomp listener where `linux.seccomp.listenerPath` says.
fn pass_listener(plan: &Plan<'_>, pidfd: BorrowedFd<'_>, pid: i32, number: i32) -> Result<()> {
    let listener = rustix::process::pidfd_getfd(pidfd, number, rustix::process::PidfdGetfdFlags::empty())
        .context(|| "take the seccomp listener from the container's process")?;
    let Some(profile) = &plan.spec.linux().seccomp else {
        return Ok(());
    };
    if profile.listener_path.is_empty() {
        return Err(Error::invalid(
            "linux.seccomp notifies a listener (SCMP_ACT_NOTIFY), but listenerPath is not set",
        ));
    }
    let state: serde_json::Value = serde_json::from_slice(&(plan.state)("creating", pid))
        .map_err(|error| Error::with_source(ErrorKind::System, "encode the container's state", error))?;
    seccomp::notify::send_listener(
        Path::new(&profile.listener_path),
        listener.as_fd(),
        &seccomp::notify::ContainerProcessState {
            oci_version: crate::spec::OCI_VERSION,
            fds: &seccomp::notify::FDS,
            pid,
            metadata: &profile.listener_metadata,
            state,
        },
    )
}

/// Files of the v2 cgroup named one by one are wanted by somebody who knows them: the specification has no warning for
/// those that are not there.
fn refuse_unified(lacks: &[Lack]) -> Result<()> {
    let unified: Vec<_> = lacks
        .iter()
        .filter(|lack| lack.property.starts_with("unified["))
        .cloned()
        .collect();
    refuse(&unified)
}

/// Whatever a device list forbids, the devices every container has stay usable, any node can be made (not opened), and
/// so do configured devices' nodes, as runc has it.
pub fn allow_standard_devices(resources: &mut Resources, linux: &Linux) {
    if resources.devices.is_empty() {
        return;
    }
    let rule = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| DeviceRule {
        allow: true,
        kind: Some(kind.to_owned()),
        major,
        minor,
        access: Some(access.to_owned()),
    };
    let mut rules = vec![rule("c", None, None, "m"), rule("b", None, None, "m")];
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)] {
        rules.push(rule("c", Some(major), Some(minor), "rwm"));
    }
    // Terminals of the container's own devpts instance.
    rules.push(rule("c", Some(136), None, "rwm"));
    for device in &linux.devices {
        if matches!(device.kind.as_str(), "c" | "b") {
            rules.push(rule(&device.kind, Some(device.major), Some(device.minor), "m"));
        }
    }
    // At the end, as runc has it: engines deny single devices first, which v1 could not do after a wide rule.
    resources.devices.extend(rules);
}

/// Writes `uid_map` and `gid_map`.
fn write_mappings(pid: i32, linux: &Linux) -> Result<()> {
    let text = |mappings: &[IdMapping]| -> String {
        mappings
            .iter()
            .map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size))
            .collect()
    };
    // An unprivileged writer must give up setgroups(2) first.
    if !rustix::process::geteuid().is_root() {
        std::fs::write(format!("/proc/{pid}/setgroups"), "deny")
            .context(|| "deny setgroups in the user namespace")?;
    }
    std::fs::write(format!("/proc/{pid}/gid_map"), text(&linux.gid_mappings))
        .context(|| "write the user namespace's group mappings")?;
    std::fs::write(format!("/proc/{pid}/uid_map"), text(&linux.uid_mappings))
        .context(|| "write the user namespace's user mappings")
}
