//! Another process in a running container.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::channel::{Channel, FromChild, ToChild};
use super::identity::{self, Gate, Identity};
use super::namespaces::{PidNamespace, with_pid_namespace};
use super::{Stdio, descriptors, environment, init, terminal};
use crate::cgroup::Cgroup;
use crate::error::Context;
use crate::spec::{NamespaceKind, Process, Spec};
use crate::sys::clone3::{Clone3, Side};
use crate::{Error, ErrorKind, Result, seccomp};

/// A process to be run in a container.
pub struct ExecPlan<'a> {
    /// The container.
    pub spec: &'a Spec,
    /// Its first process.
    pub init: BorrowedFd<'a>,
    /// Its first process's ID.
    pub init_pid: Pid,
    /// Its cgroup.
    pub cgroup: &'a Cgroup,
    /// What is run.
    pub process: &'a Process,
    /// The system call filter.
    pub seccomp: Option<seccomp::Program>,
    /// Its standard streams.
    pub stdio: Stdio,
    /// How many descriptors from 3 on the program keeps.
    pub preserve_fds: u32,
}

/// A process run in a container.
#[derive(Debug)]
pub struct Executed {
    /// Its ID. It is a child of the caller.
    pub pid: Pid,
    /// A pidfd of it.
    pub pidfd: OwnedFd,
    /// The other side of its terminal.
    pub terminal: Option<OwnedFd>,
    /// What was asked for and could not be had.
    pub warnings: Vec<String>,
}

/// Runs a process in the container; returns when its program was executed.
///
/// The calling process must be single-threaded.
///
/// # Errors
/// What failed on either side; no process is left then.
pub fn exec(plan: &ExecPlan<'_>) -> Result<Executed> {
    let mut starting = begin(plan)?;
    loop {
        match starting.hear() {
            Ok(false) => {}
            Ok(true) => return Ok(starting.executed()),
            Err(error) => {
                end(&starting.pidfd);
                return Err(error);
            }
        }
    }
}

/// Kills a child and reaps it.
pub(crate) fn end(pidfd: &OwnedFd) {
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}

/// A process on its way to its program.
///
/// It is in the container already: it can be stopped there by others, and frozen with them. Whoever may not wait for it
/// watches [`Starting::channel`] and the time.
#[derive(Debug)]
pub struct Starting {
    pid: Pid,
    pidfd: OwnedFd,
    channel: Channel,
    terminal: Option<OwnedFd>,
    warnings: Vec<String>,
    ready: bool,
}

/// Makes a process in the container that goes on to execute its program.
///
/// The calling process must be single-threaded.
///
/// # Errors
/// When it cannot be made; no process is left then.
pub fn begin(plan: &ExecPlan<'_>) -> Result<Starting> {
    plan.process.validate()?;
    let (ours, theirs) = Channel::pair()?;
    let joins_pids = plan.spec.linux().namespace(NamespaceKind::Pid).is_some();
    let made = with_pid_namespace(joins_pids.then_some(PidNamespace::Of(plan.init)), || {
        let mut call = Clone3::new(0).pidfd();
        if let Some(dir) = plan.cgroup.clone_into_fd() {
            call = call.cgroup(dir);
        }
        let beside;
        // SAFETY: the runtime is single-threaded where processes are made.
        let made = match unsafe { call.clone().call() } {
            // The container nested cgroups with controllers, and v2 keeps processes out of what is above them.
            Err(Errno::BUSY) => {
                beside = plan.cgroup.clone_beside_fd(plan.init_pid)?;
                // SAFETY: as above.
                unsafe { call.cgroup(beside.as_fd()).call() }
            }
            made => made,
        };
        match made.context(|| "make a process in the container")? {
            Side::Parent { pid, pidfd } => Ok((pid, pidfd)),
            Side::Child => {
                // SAFETY: this is the child, which ends below or executes a program, and never uses the parent's end.
                unsafe { ours.forget_in_child() };
                let Err(error) = enter(plan, &theirs);
                let _ = theirs.tell_parent(&FromChild::Failed(error.report()));
                // SAFETY: ends this process at once, finishing nothing of the parent's.
                unsafe { libc::_exit(1) }
            }
        }
    });
    drop(theirs);
    let (pid, pidfd) = made?;
    let pidfd = pidfd.ok_or_else(|| Error::new(ErrorKind::Unsupported, "the kernel gives no pidfd"))?;
    if let Err(error) = let_go(plan, &ours, pid) {
        end(&pidfd);
        return Err(error);
    }
    Ok(Starting {
        pid,
        pidfd,
        channel: ours,
        terminal: None,
        warnings: Vec::new(),
        ready: false,
    })
}

fn let_go(plan: &ExecPlan<'_>, channel: &Channel, pid: Pid) -> Result<()> {
    let raw = pid.as_raw_nonzero().get();
    if let Some(adjustment) = plan.process.oom_score_adj {
        std::fs::write(format!("/proc/{raw}/oom_score_adj"), adjustment.to_string())
            .context(|| format!("set oom_score_adj to {adjustment}"))?;
    }
    channel.tell_child(&ToChild::Go(None))
}

impl Starting {
    /// Readable when there is something to [`Starting::hear`].
    pub fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Hears the next thing it says, waiting for it; returns whether its program was executed.
    ///
    /// # Errors
    /// What failed; the process may still be there, and is then to be killed.
    pub fn hear(&mut self) -> Result<bool> {
        match self.channel.hear_child()? {
            Some(FromChild::Terminal(fd)) => self.terminal = Some(fd),
            Some(FromChild::Warning(warning)) => self.warnings.push(warning),
            Some(FromChild::Failed(report)) => return Err(report.into()),
            Some(FromChild::Ready) => self.ready = true,
            Some(FromChild::SeccompListener(_)) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "the container's seccomp profile notifies a listener, which exec cannot reach",
                ));
            }
            Some(_) => {}
            None if self.ready => return Ok(true),
            None => {
                return Err(Error::new(
                    ErrorKind::System,
                    "the process died before its program was executed",
                ));
            }
        }
        Ok(false)
    }

    /// The process, once its program was executed.
    pub fn executed(self) -> Executed {
        Executed {
            pid: self.pid,
            pidfd: self.pidfd,
            terminal: self.terminal,
            warnings: self.warnings,
        }
    }
}

fn enter(plan: &ExecPlan<'_>, channel: &Channel) -> Result<Infallible> {
    let ToChild::Go(_) = channel.hear_parent()?;
    plan.cgroup.attach_self(plan.cgroup.clone_into_fd().is_some())?;
    let linux = plan.spec.linux();
    let mut kinds = ThreadNameSpaceType::empty();
    for namespace in &linux.namespaces {
        kinds |= match namespace.kind {
            NamespaceKind::User => ThreadNameSpaceType::USER,
            NamespaceKind::Network => ThreadNameSpaceType::NETWORK,
            NamespaceKind::Mount => ThreadNameSpaceType::MOUNT,
            NamespaceKind::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
            NamespaceKind::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
            NamespaceKind::Cgroup => ThreadNameSpaceType::CONTROL_GROUP,
            NamespaceKind::Time => ThreadNameSpaceType::TIME,
            // This process was made in it.
            NamespaceKind::Pid => ThreadNameSpaceType::empty(),
        };
    }
    let has_root = linux.namespace(NamespaceKind::Mount).is_some();
    // Without a mount namespace, the container is confined to a directory by chroot: its first process knows which.
    let root = (!has_root)
        .then(|| {
            let path = format!("/proc/{}/root", plan.init_pid.as_raw_nonzero());
            rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        })
        .transpose()
        .context(|| "open the container's root")?;
    move_into_thread_name_spaces(plan.init, kinds)
        .context(|| "join the container's namespaces (has it exited?)")?;
    if let Some(root) = root {
        rustix::process::fchdir(&root).context(|| "enter the container's root")?;
        rustix::process::chroot(".").context(|| "enter the container's root")?;
    }
    if linux.namespace(NamespaceKind::User).is_some() {
        identity::become_root()?;
    }
    rustix::process::chdir("/").context(|| "enter the container's root")?;
    if !plan.process.terminal {
        init::given_streams(&plan.stdio)?;
    }
    // SAFETY: this child ends with execve(2) or _exit(2) and uses of what was open the channel alone.
    unsafe { descriptors::close_all_but(plan.preserve_fds, &[channel.as_fd()])? };
    if plan.process.terminal {
        let slash = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .context(|| "open the container's root")?;
        let made = terminal::open(slash.as_fd(), plan.process.console_size, plan.process.user.uid)?;
        channel.tell_parent(&FromChild::Terminal(made.master))?;
        terminal::adopt(&made.slave)?;
    } else {
        init::own_streams(plan.process);
    }
    init::session_keyring(channel)?;
    let (program, entered) = environment::find_program_from(plan.process)?;
    identity::execute(Identity {
        process: plan.process,
        program,
        entered,
        seccomp: plan.seccomp.as_ref(),
        personality: linux.personality.as_ref(),
        channel,
        gate: Gate {
            waits: false,
            pass: &|| Ok(()),
        },
    })
}
