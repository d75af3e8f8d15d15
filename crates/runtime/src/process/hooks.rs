//! Hooks: programs of the configuration run at points of the life cycle, with the container's state on their standard
//! input (runtime-spec, config.md, "POSIX-platform Hooks").

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::spec::Hook;
use crate::{Error, ErrorKind, Result};

/// Runs `hooks` in their order with `state` on standard input.
///
/// # Errors
/// The first that cannot be run, fails or takes longer than its timeout.
pub fn run(point: &str, hooks: &[Hook], state: &[u8]) -> Result<()> {
    hooks
        .iter()
        .try_for_each(|hook| one(hook, state).map_err(|error| error.wrap(format!("{point} hook {}", hook.path.display()))))
}

fn one(hook: &Hook, state: &[u8]) -> Result<()> {
    let failed = |what: &str, error: std::io::Error| Error::with_source(ErrorKind::System, what, error);
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|pair| pair.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed("cannot be executed", error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its input.
        let _ = stdin.write_all(state);
    }
    if let Some(seconds) = hook.timeout {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pidfd = pid
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .map_err(|errno| failed("cannot be watched", errno.into()))?;
        let deadline = Instant::now() + Duration::from_secs(seconds.unsigned_abs());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&timeout)) {
                Ok(0) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(Error::new(ErrorKind::System, format!("did not end within its {seconds} s")));
                }
                Err(rustix::io::Errno::INTR) => {}
                _ => break,
            }
        }
    }
    let output = child.wait_with_output().map_err(|error| failed("cannot be waited for", error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    let said = &said[..said.floor_char_boundary(1024)];
    Err(Error::new(ErrorKind::System, format!("failed ({}){}{said}", output.status, if said.is_empty() { "" } else { ": " })))
}
