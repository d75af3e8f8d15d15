//! Hooks: programs of the configuration run at points of the life cycle, with the container's state on their standard
//! input (runtime-spec, config.md, "POSIX-platform Hooks").

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::identity::reset_signals;
use crate::error::Context;
use crate::spec::Hook;
use crate::{Error, ErrorKind, Result};

/// Runs `hooks` in their order with `state` on standard input, in this process's working directory.
///
/// # Errors
/// The first that cannot be run, fails or takes longer than its timeout.
pub fn run(point: &str, hooks: &[Hook], state: &[u8]) -> Result<()> {
    run_in(None, point, hooks, state)
}

/// [`run`] in the directory `dir`.
///
/// # Errors
/// As of [`run`].
pub fn run_in(dir: Option<&Path>, point: &str, hooks: &[Hook], state: &[u8]) -> Result<()> {
    hooks.iter().try_for_each(|hook| {
        one(dir, hook, state).map_err(|error| error.wrap(format!("{point} hook {}", hook.path.display())))
    })
}

fn one(dir: Option<&Path>, hook: &Hook, state: &[u8]) -> Result<()> {
    let failed = |what: &str, error: std::io::Error| Error::with_source(ErrorKind::System, what, error);
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command
        .env_clear()
        .envs(hook.env.iter().filter_map(|pair| pair.split_once('=')));
    if let Some(dir) = dir {
        command.current_dir(dir);
    }
    // Files, not pipes: a hook that does not read cannot block this process, nor one that leaves a process behind which
    // holds its streams open.
    let (mut input, mut said) = (memory("state")?, memory("errors")?);
    input
        .write_all(state)
        .and_then(|()| input.rewind())
        .map_err(|error| failed("cannot be given the state", error))?;
    let errors = said
        .try_clone()
        .map_err(|error| failed("cannot be given its streams", error))?;
    command.stdin(input).stdout(Stdio::null()).stderr(errors);
    // SAFETY: the closure calls signal(2) and sigprocmask(2) only, which are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            reset_signals();
            Ok(())
        });
    }
    let mut child = command
        .spawn()
        .map_err(|error| failed("cannot be executed", error))?;
    if let Some(seconds) = hook.timeout {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pidfd = pid
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .map_err(|errno| failed("cannot be watched", errno.into()))?;
        let deadline = Instant::now() + Duration::from_secs(seconds.unsigned_abs());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(
                &mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)],
                Some(&timeout),
            ) {
                Ok(0) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(Error::new(
                        ErrorKind::System,
                        format!("did not end within its {seconds} s"),
                    ));
                }
                Err(rustix::io::Errno::INTR) => {}
                _ => break,
            }
        }
    }
    let status = child
        .wait()
        .map_err(|error| failed("cannot be waited for", error))?;
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    let _ = said
        .rewind()
        .and_then(|()| said.take(MAX_SAID).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    Err(Error::new(
        ErrorKind::System,
        format!(
            "failed ({status}){}{text}",
            if text.is_empty() { "" } else { ": " }
        ),
    ))
}

/// How much of a failed hook's standard error is repeated.
const MAX_SAID: u64 = 1024;

fn memory(name: &str) -> Result<File> {
    rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)
        .map(File::from)
        .context(|| "make a file in memory")
}
