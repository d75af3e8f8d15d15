//! `exec`, and waiting for a program in the foreground.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::create::{send_terminal, write_pid};
use super::state::{Container, Status};
use crate::error::Context;
use crate::process::{self, ExecPlan, Stdio, terminal};
use crate::spec::Process;
use crate::{Error, ErrorKind, Result, seccomp};

/// How `exec` behaves.
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    /// Where to send the terminal's other side.
    pub console_socket: Option<PathBuf>,
    /// Where to write the process's ID.
    pub pid_file: Option<PathBuf>,
    /// Return once the program runs.
    pub detach: bool,
    /// How many descriptors from 3 on the program keeps.
    pub preserve_fds: u32,
    /// Also in a paused container (the process is then frozen at once).
    pub ignore_paused: bool,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecOutcome {
    /// It runs, detached.
    Running,
    /// It ended with this code.
    Exited(i32),
}

/// Runs a process in a running container.
///
/// # Errors
/// `Conflict` when the container does not run; what failed otherwise.
pub fn exec(container: &Container, process: &Process, options: &ExecOptions) -> Result<ExecOutcome> {
    match container.status() {
        Status::Running | Status::Created => {}
        Status::Paused if options.ignore_paused => {}
        Status::Paused => {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("container {} is paused: resume it first", container.id()),
            ));
        }
        _ => {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("container {} is not running", container.id()),
            ));
        }
    }
    if options.detach && process.terminal && options.console_socket.is_none() {
        return Err(Error::invalid(
            "a detached process with a terminal needs --console-socket: there is nobody to hold the terminal",
        ));
    }
    let spec = container.spec()?;
    let pidfd = container.pidfd()?;
    let cgroup = container.cgroup()?;
    let seccomp = spec.linux().seccomp.as_ref().map(seccomp::compile).transpose()?;
    let init_pid = container
        .pid()
        .ok_or_else(|| Error::new(ErrorKind::Conflict, "the container has no process"))?;
    let executed = process::exec(&ExecPlan {
        spec: &spec,
        init: pidfd.as_fd(),
        init_pid,
        cgroup: &cgroup,
        process,
        seccomp,
        stdio: if process.terminal {
            Stdio::Terminal
        } else {
            Stdio::Inherit
        },
        preserve_fds: options.preserve_fds,
    })?;
    let told = || -> Result<()> {
        if let Some(path) = &options.pid_file {
            write_pid(path, executed.pid.as_raw_nonzero().get())?;
        }
        if let (Some(path), Some(master)) = (&options.console_socket, &executed.terminal) {
            send_terminal(path, master)?;
        }
        Ok(())
    };
    if let Err(error) = told() {
        // What is reported as failed must not run.
        process::end(&executed.pidfd);
        return Err(error);
    }
    if options.detach {
        return Ok(ExecOutcome::Running);
    }
    let code = match &executed.terminal {
        Some(master) if options.console_socket.is_none() => proxy(master, executed.pidfd.as_fd())?,
        _ => wait_forwarding(executed.pidfd.as_fd(), executed.pid)?,
    };
    Ok(ExecOutcome::Exited(code))
}

/// Waits for a child, handing on the signals this process gets; returns its exit code, 128 + the signal that ended it.
pub(super) fn wait_forwarding(pidfd: BorrowedFd<'_>, pid: Pid) -> Result<i32> {
    let signals = SignalFd::new()?;
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
            PollFd::new(&signals.0, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            other => other.context(|| "wait for the container")?,
        };
        let ended = !fds[0].revents().is_empty();
        if let Some(signal) = signals.read() {
            let _ = rustix::process::kill_process(pid, signal);
        }
        if ended {
            return reap(pidfd);
        }
    }
}

fn reap(pidfd: BorrowedFd<'_>) -> Result<i32> {
    let status = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED).context(|| "wait for the container")?;
    Ok(status.map_or(255, |status| {
        status
            .exit_status()
            .unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0))
    }))
}

/// Signals as something to poll.
struct SignalFd(OwnedFd);

impl SignalFd {
    fn new() -> Result<Self> {
        use std::os::fd::FromRawFd;
        // SAFETY: the set is made full before signals are taken out of it; signalfd returns a new descriptor or -1.
        let fd = unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::sigfillset(&mut set);
            for own in [
                libc::SIGCHLD,
                libc::SIGPIPE,
                libc::SIGSEGV,
                libc::SIGBUS,
                libc::SIGFPE,
                libc::SIGILL,
                libc::SIGTRAP,
            ] {
                libc::sigdelset(&mut set, own);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(std::io::Error::last_os_error()).context(|| "watch signals");
        }
        // SAFETY: just opened, owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn read(&self) -> Option<Signal> {
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        let count = rustix::io::read(&self.0, &mut info).ok()?;
        let number = i32::from_ne_bytes(info.get(..4)?.try_into().ok()?);
        // SAFETY: the kernel reports numbers of real signals only; it is just sent on.
        (count == info.len()).then(|| unsafe { Signal::from_raw_unchecked(number) })
    }
}

/// Restores the user's terminal however this ends.
struct RawMode(Option<Termios>);

impl RawMode {
    fn new() -> Self {
        let saved = tcgetattr(rustix::stdio::stdin()).ok();
        if let Some(saved) = &saved {
            let mut raw = saved.clone();
            raw.make_raw();
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw);
        }
        Self(saved)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(saved) = &self.0 {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, saved);
        }
    }
}

/// Joins the user's standard streams and the container's terminal until the process ends; returns its exit code.
pub(super) fn proxy(master: &OwnedFd, pidfd: BorrowedFd<'_>) -> Result<i32> {
    let signals = SignalFd::new()?;
    let _raw = RawMode::new();
    let copy_size = || {
        if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
            let _ = tcsetwinsize(master, size);
        }
    };
    copy_size();
    // What the program does not read must not keep its output waiting.
    rustix::io::ioctl_fionbio(master, true).context(|| "prepare the terminal")?;
    // Held while the process lives: it may close its terminal everywhere and open it again.
    let mut slave = terminal::peer(master.as_fd()).ok();
    let (mut buffer, mut queue, mut input_open) = (vec![0; 16 << 10], Vec::new(), true);
    loop {
        let mut wanted = PollFlags::IN;
        wanted.set(PollFlags::OUT, !queue.is_empty());
        let reads = input_open && queue.len() < INPUT_HIGH_WATER;
        let mut fds = vec![
            PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
            PollFd::new(&signals.0, PollFlags::IN),
        ];
        // What is not wanted is left out: a hang-up would be reported without end.
        if slave.is_some() {
            fds.push(PollFd::new(master, wanted));
        }
        if reads {
            fds.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
        }
        match poll(&mut fds, slave.is_none().then_some(&HANGUP_PAUSE)) {
            Err(Errno::INTR) => continue,
            other => other.context(|| "wait for the container")?,
        };
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |wanted: bool| wanted && ready.next().unwrap_or(false);
        let (ended, signalled) = (next(true), next(true));
        let (output, input) = (next(slave.is_some()), next(reads));
        if signalled && let Some(signal) = signals.read() {
            if signal == Signal::WINCH {
                copy_size();
            } else {
                let _ = pidfd_send_signal(pidfd, signal);
            }
        }
        if input {
            match rustix::io::read(rustix::stdio::stdin(), &mut buffer[..]) {
                Ok(count @ 1..) => queue.extend_from_slice(&buffer[..count]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Ok(0) | Err(_) => input_open = false,
            }
        }
        if !queue.is_empty()
            && let Ok(count) = rustix::io::write(master, &queue)
        {
            queue.drain(..count);
        }
        if ended {
            drop(slave);
            // What is there now: others may have it open and write for ever.
            for _ in 0..LAST_PIECES {
                match rustix::io::read(master, &mut buffer[..]) {
                    Ok(count @ 1..) => write_all(rustix::stdio::stdout(), &buffer[..count]),
                    _ => break,
                }
            }
            return reap(pidfd);
        }
        if slave.is_none() {
            slave = terminal::peer(master.as_fd()).ok();
        } else if output {
            match rustix::io::read(master, &mut buffer[..]) {
                Ok(count @ 1..) => write_all(rustix::stdio::stdout(), &buffer[..count]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                // EIO: the other side is closed everywhere, ours too.
                Ok(0) | Err(_) => slave = None,
            }
        }
    }
}

/// Input waiting for the process beyond which no more is read.
const INPUT_HIGH_WATER: usize = 64 << 10;

/// How long a terminal that was hung up is left alone: 50 ms.
const HANGUP_PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// How many pieces are read after the process's end: far more than a terminal holds.
const LAST_PIECES: usize = 64;

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], None);
            }
            Err(_) => return,
        }
    }
}

/// Reads a process from a file (`exec --process`).
///
/// # Errors
/// When it cannot be read or is not valid.
pub fn read_process(path: &Path) -> Result<Process> {
    let text = std::fs::read(path).context(|| format!("read the process {}", path.display()))?;
    serde_json::from_slice(&text).map_err(|error| {
        Error::with_source(
            ErrorKind::Invalid,
            format!("understand the process {}", path.display()),
            error,
        )
    })
}
