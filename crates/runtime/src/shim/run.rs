//! The shim's beginning and end.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::process::DumpableBehavior;

use super::log::Log;
use super::machine;
use super::protocol::{self, Attach, Event, MAX_FRAME, SOCKET, ShimConfig};
use super::server::{Server, bundle_of, container_streams, hook_state, inherited, load_program};
use crate::cgroup::CgroupPath;
use crate::error::Context;
use crate::process::{self, Plan, hooks};
use crate::sys::close_range;
use crate::{Error, ErrorKind, Result, rlimits, seccomp};

/// Where the launcher puts the control stream.
const CONTROL_FD: i32 = 3;
/// Where the launcher puts the shim's directory.
const DIR_FD: i32 = 4;

/// Runs the shim: makes the container the launcher left a configuration for, and stays with it until its end.
/// Returns the process's exit code. To be called first thing in a process that does nothing else.
pub fn run() -> i32 {
    // Nothing of the shim is for the container to look at, whatever it shares with the host.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = rustix::thread::set_name(c"vessel-shim");
    let _ = close_range::set_cloexec_from(3);
    ignore_signals();
    // SAFETY: the launcher made these numbers the control stream and the directory; nothing else uses them.
    let (control, dir) = unsafe { (inherited(CONTROL_FD), inherited(DIR_FD)) };
    let mut control = Some(control);
    match serve(&mut control, dir) {
        Ok(()) => 0,
        Err(error) => {
            // Once the container runs, its end is what is told.
            if let (Some(control), Ok(frame)) = (&control, protocol::encode(&Event::Failed(error.report()))) {
                let _ = rustix::io::write(control, &frame);
            }
            1
        }
    }
}

/// Takes `control` when the container runs: there must be one copy of it only, or its end would be reported without end.
fn serve(control: &mut Option<OwnedFd>, dir: OwnedFd) -> Result<()> {
    let config = read_config(&dir)?;
    if let Some(limit) = config.fds.limit {
        rlimits::lower_descriptors(limit)?;
    }
    // SAFETY: the launcher passed these descriptors for the shim alone; each number occurs once.
    let (netns, sources, taps, boot, keep, attach) = unsafe {
        (
            config.fds.netns.map(|fd| inherited(fd)),
            config
                .fds
                .sources
                .iter()
                .map(|(fd, at)| (at.clone(), inherited(*fd)))
                .collect::<Vec<_>>(),
            config
                .fds
                .taps
                .iter()
                .map(|fd| inherited(*fd))
                .collect::<Vec<_>>(),
            config
                .fds
                .boot
                .map(|(kernel, initramfs)| (inherited(kernel), inherited(initramfs))),
            config
                .fds
                .keep
                .iter()
                .map(|fd| inherited(*fd))
                .collect::<Vec<_>>(),
            config
                .fds
                .attach
                .iter()
                .map(|(fd, to)| (inherited(*fd), to.clone()))
                .collect::<Vec<_>>(),
        )
    };
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .context(|| "make the shim's socket")?;
    let log = config.log.clone().map(Log::open).transpose()?;
    let seccomp = match (&config.seccomp_program, &config.spec.linux().seccomp) {
        (Some(path), _) => Some(load_program(path)?),
        (None, Some(profile)) => Some(seccomp::compile(profile)?),
        (None, None) => None,
    };
    let cgroup = CgroupPath::from_oci(&config.spec.linux().cgroups_path, &config.id)?;
    if let Some(machine) = &config.machine {
        let bundle = bundle_of(&config).to_owned();
        let (machine, first, cgroup, warnings) = machine::start(machine::Plan {
            spec: &config.spec,
            bundle: &bundle,
            root: &config.root,
            machine,
            taps,
            boot,
            sources: &sources,
            netns,
            seccomp,
            open_stdin: config.open_stdin,
            hierarchies: &config.hierarchies,
            cgroup,
        })?;
        drop(sources);
        let server = Server::with_machine(config, dir, listener.into(), (machine, first, cgroup), log)?;
        return supervise(server, control, (attach, warnings, keep));
    }
    let (stdio, ends) = container_streams(&config)?;
    let (id, bundle) = (config.id.clone(), bundle_of(&config).to_owned());
    let state = |status: &str, pid: i32| hook_state(&id, &bundle, status, pid);
    let init = process::spawn(Plan {
        spec: &config.spec,
        bundle: &bundle,
        root: &config.root,
        sources: &sources,
        netns: netns.as_ref().map(AsFd::as_fd),
        seccomp,
        stdio,
        hierarchies: &config.hierarchies,
        cgroup,
        start: None,
        preserve_fds: 0,
        state: &state,
    })?;
    drop((netns, sources));
    let mut warnings = init.warnings.clone();
    for hook in config.spec.hooks.iter().flat_map(|hooks| &hooks.poststart) {
        // One that fails is told of, and ends neither the others nor the container (config.md, "Posix-platform Hooks").
        let state = hook_state(&id, &bundle, "running", init.pid.as_raw_nonzero().get());
        if let Err(error) = hooks::run("poststart", std::slice::from_ref(hook), &state) {
            warnings.push(error.to_string());
        }
    }
    let server = Server::new(config, dir, listener.into(), init, ends, log)?;
    supervise(server, control, (attach, warnings, keep))
}

/// Stays with what runs to its end.
fn supervise(
    mut server: Server,
    control: &mut Option<OwnedFd>,
    (attach, warnings, keep): (Vec<(OwnedFd, Attach)>, Vec<String>, Vec<OwnedFd>),
) -> Result<()> {
    let adopted = match control.take() {
        Some(control) => server.adopt(control, attach, warnings),
        None => Ok(()),
    };
    let result = adopted.and_then(|()| server.run());
    if result.is_err() {
        server.abort();
    }
    drop(keep);
    result
}

fn read_config(dir: &OwnedFd) -> Result<ShimConfig> {
    use std::io::Read;
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NOFOLLOW;
    let file = rustix::fs::openat(dir, protocol::CONFIG, flags, rustix::fs::Mode::empty())
        .context(|| "open the shim's configuration")?;
    let mut text = Vec::new();
    std::fs::File::from(file)
        .take(MAX_FRAME as u64 * 4)
        .read_to_end(&mut text)
        .context(|| "read the shim's configuration")?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::with_source(ErrorKind::Invalid, "understand the shim's configuration", error))
}

/// Signals meant for the daemon or its terminal must not take containers along; a write to a client that left is an
/// error, not a death.
fn ignore_signals() {
    for signal in [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGPIPE,
        libc::SIGTSTP,
    ] {
        // SAFETY: SIG_IGN is a valid disposition for these signals and runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
