//! The child's side: from the first instruction in the new namespaces to the program.

use std::cell::OnceCell;
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::thread::UnshareFlags;

use super::channel::{Channel, FromChild, ToChild};
use super::identity::{self, Gate, Identity};
use super::namespaces::{Namespaces, loopback_up};
use super::spawn::Plan;
use super::{Stdio, descriptors, environment, hooks, terminal};
use crate::cgroup::Cgroup;
use crate::error::Context;
use crate::rootfs::DevOwner;
use crate::shim::RootSource;
use crate::spec::{Hook, NamespaceKind, Process};
use crate::sys::keyctl;
use crate::{Error, Result, rootfs};

/// What the child knows.
pub(super) struct Child<'a> {
    pub plan: &'a Plan<'a>,
    pub namespaces: &'a Namespaces,
    pub cgroup: &'a Cgroup,
    /// For each mount, what the parent made of it, if it did.
    pub sources: &'a [Option<OwnedFd>],
    pub channel: Channel,
    /// Whether a user namespace was made with this process.
    pub user_made: bool,
}

/// Becomes the container's program, or tells why not and ends.
pub(super) fn run(child: Child<'_>) -> Infallible {
    let Err(error) = prepare(&child);
    let _ = child.channel.tell_parent(&FromChild::Failed(error.report()));
    // SAFETY: ends this process at once; nothing of the parent's (buffers, temporary files) may be finished here.
    unsafe { libc::_exit(1) }
}

fn prepare(child: &Child<'_>) -> Result<Infallible> {
    let Child {
        plan,
        namespaces,
        cgroup,
        channel,
        user_made,
        ..
    } = child;
    let spec = plan.spec;
    let linux = spec.linux();
    let process = spec
        .process
        .as_ref()
        .ok_or_else(|| Error::invalid("the configuration has no process: there is nothing to run"))?;
    // This thread moves itself: that spares the kernel the lock on all processes that moving another one takes.
    cgroup.attach_self(cgroup.clone_into_fd().is_some())?;
    // Modes in the configuration are meant as they are written.
    let umask = rustix::process::umask(Mode::empty());

    let joined = namespaces.joined(NamespaceKind::User).is_some();
    if !user_made
        && !joined
        && let Some(adjustment) = process.oom_score_adj
    {
        // Its own: whoever else wrote it could be later than the program. And now: /proc is still the host's.
        std::fs::write("/proc/self/oom_score_adj", adjustment.to_string())
            .context(|| format!("set oom_score_adj to {adjustment}"))?;
    }
    let mut given_root = None;
    if *user_made {
        // The parent writes the mappings, and makes an overlay whose owners are mapped.
        let ToChild::Go(root) = channel.hear_parent()?;
        given_root = root;
        identity::become_root()?;
    } else if joined {
        identity::become_root()?;
    }
    namespaces.enter()?;
    if namespaces.cgroup {
        // Only now: the namespace's root is the cgroup this process is in.
        // SAFETY: a cgroup namespace changes the view of /proc and cgroupfs only.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }
            .context(|| "make a cgroup namespace")?;
    }
    if namespaces.makes(NamespaceKind::Network) {
        loopback_up()?;
    }

    let own_mounts = namespaces.makes(NamespaceKind::Mount);
    let console = if own_mounts {
        make_root(child, process, given_root, umask)?
    } else {
        run_outer_hooks(child, umask)?;
        enter_without_mounts(child)?;
        None
    };
    // Before anything is looked up in the container's root.
    let has_console = console.is_some();
    match console {
        Some(console) => terminal::adopt(&std::mem::ManuallyDrop::new(console))?,
        None => given_streams(&plan.stdio)?,
    }
    let kept: Vec<BorrowedFd<'_>> = [Some(channel.as_fd()), plan.start.as_ref().map(AsFd::as_fd)]
        .into_iter()
        .flatten()
        .collect();
    // SAFETY: this child ends with execve(2) or _exit(2). Of what was open it uses the channel and the socket of `start`
    // alone; what `make_root` opened is closed, and the console's owner is never dropped.
    unsafe { descriptors::close_all_but(plan.preserve_fds, &kept)? };
    if !has_console {
        own_streams(process);
    }
    if own_mounts {
        if !linux.sysctl.is_empty() {
            let proc = rootfs::private_proc()?;
            for (name, value) in &linux.sysctl {
                rootfs::write_sysctl(proc.as_fd(), name, value)?;
            }
        }
        rootfs::finish(
            spec.root.as_ref().is_some_and(|root| root.readonly),
            &linux.rootfs_propagation,
        )?;
    }
    if !spec.hostname.is_empty() {
        rustix::system::sethostname(spec.hostname.as_bytes())
            .context(|| format!("set the host name {:?}", spec.hostname))?;
    }
    if !spec.domainname.is_empty() {
        rustix::system::setdomainname(spec.domainname.as_bytes())
            .context(|| format!("set the domain name {:?}", spec.domainname))?;
    }

    session_keyring(channel)?;
    let (program, entered) = environment::find_program_from(process)?;
    // Whoever calls `start`, to be told what `create` could not know yet.
    let starter = OnceCell::new();
    let pass = || -> Result<()> {
        if let Some(listener) = &plan.start {
            channel.tell_parent(&FromChild::Ready)?;
            channel.hear_recorded()?;
            let _ = starter.set(wait_for_start(listener)?);
        }
        let Some(configured) = &spec.hooks else {
            return Ok(());
        };
        if configured.start_container.is_empty() {
            return Ok(());
        }
        // As in runc, one without an environment has the program's.
        let mut start_container = configured.start_container.clone();
        for hook in start_container.iter_mut().filter(|hook| hook.env.is_empty()) {
            hook.env.clone_from(&process.env);
        }
        run_hooks(
            "startContainer",
            &start_container,
            &(plan.state)("created", 1),
            umask,
        )
    };
    let Err(error) = identity::execute(Identity {
        process,
        program,
        entered,
        seccomp: plan.seccomp.as_ref(),
        personality: linux.personality.as_ref(),
        channel,
        gate: Gate {
            waits: plan.start.is_some(),
            pass: &pass,
        },
    });
    if let Some(starter) = starter.get() {
        let text = serde_json::to_vec(&error.report()).unwrap_or_default();
        let _ = rustix::io::write(starter, &text);
    }
    Err(error)
}

/// Makes the container's root and makes it `/`; returns the terminal.
fn make_root(
    child: &Child<'_>,
    process: &Process,
    given_root: Option<OwnedFd>,
    umask: Mode,
) -> Result<Option<OwnedFd>> {
    let Child {
        plan,
        namespaces,
        sources,
        channel,
        ..
    } = child;
    let spec = plan.spec;
    let linux = spec.linux();
    rootfs::isolate(&linux.rootfs_propagation)?;
    let root = match (given_root, plan.root) {
        (Some(root), _) => root,
        (None, RootSource::Overlay(overlay)) => rootfs::overlay(overlay, None)?,
        (None, RootSource::Directory(path)) => {
            rootfs::directory(&plan.bundle.join(path), &linux.rootfs_propagation)?
        }
    };
    let mut masker = (!linux.masked_paths.is_empty())
        .then(rootfs::Masker::new)
        .transpose()?;
    let taken = rootfs::bind_sources(&spec.mounts, sources, plan.bundle)?;
    let aside = place_for_hooks(plan);
    let root = rootfs::attach_root(&root, aside.as_deref())?;
    for ((mount, given), taken) in spec.mounts.iter().zip(sources.iter()).zip(&taken) {
        if matches!(mount.kind.as_str(), "cgroup" | "cgroup2") {
            rootfs::mount_cgroup(
                root.as_fd(),
                mount,
                plan.hierarchies,
                &plan.cgroup,
                namespaces.cgroup,
            )?;
        } else {
            let source = given.as_ref().or(taken.as_ref()).map(AsFd::as_fd);
            rootfs::mount(root.as_fd(), mount, source)?;
        }
    }
    let dev = DevOwner::of(&spec.mounts);
    if dev == DevOwner::Container {
        rootfs::populate_devices(root.as_fd(), &linux.devices)?;
    }
    // A missing working directory is made, as Docker and runc do.
    rootfs::make_directory(root.as_fd(), &process.cwd)
        .map_err(|error| error.wrap(format!("process.cwd {}", process.cwd.display())))?;
    let console = process
        .terminal
        .then(|| make_terminal(root.as_fd(), process, dev, channel))
        .transpose()?;
    run_outer_hooks(child, umask)?;
    if aside.is_some() {
        rootfs::cover(root.as_fd())?;
    }
    // While the host's /dev/null can still be bound.
    for path in &linux.readonly_paths {
        rootfs::make_readonly(root.as_fd(), path)?;
    }
    if let Some(masker) = &mut masker {
        for path in &linux.masked_paths {
            masker.mask(root.as_fd(), path)?;
        }
    }
    rootfs::enter(root.as_fd())?;
    Ok(console)
}

/// Where `createContainer` hooks find the container's root: at the path the configuration names, as with runc. Where mounts
/// are shared with the host it would be seen there, and it stays over `/`.
fn place_for_hooks(plan: &Plan<'_>) -> Option<PathBuf> {
    let hooks = plan.spec.hooks.as_ref()?;
    let shared = matches!(
        plan.spec.linux().rootfs_propagation.as_str(),
        "shared" | "rshared"
    );
    if hooks.create_container.is_empty() || shared {
        return None;
    }
    let path = match plan.root {
        RootSource::Directory(path) => path,
        RootSource::Overlay(_) => &plan.spec.root.as_ref()?.path,
    };
    Some(plan.bundle.join(path))
}

fn run_outer_hooks(child: &Child<'_>, umask: Mode) -> Result<()> {
    let Some(configured) = &child.plan.spec.hooks else {
        return Ok(());
    };
    if !configured.prestart.is_empty() || !configured.create_runtime.is_empty() {
        child.channel.tell_parent(&FromChild::Hooks)?;
        let ToChild::Go(_) = child.channel.hear_parent()?;
    }
    if !configured.create_container.is_empty() {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let state = (child.plan.state)("creating", pid);
        run_hooks("createContainer", &configured.create_container, &state, umask)?;
    }
    Ok(())
}

/// Runs hooks with the caller's umask.
fn run_hooks(point: &str, hooks: &[Hook], state: &[u8], umask: Mode) -> Result<()> {
    let own = rustix::process::umask(umask);
    let result = hooks::run(point, hooks, state);
    rustix::process::umask(own);
    result
}

/// Without a mount namespace of its own, the container can only be confined to its directory: as the host, or the
/// namespace that was joined, has it.
fn enter_without_mounts(child: &Child<'_>) -> Result<()> {
    let RootSource::Directory(path) = child.plan.root else {
        return Err(Error::invalid(
            "an overlay root needs a mount namespace: add one to linux.namespaces",
        ));
    };
    rustix::process::chroot(child.plan.bundle.join(path)).context(|| "change to the container's root")?;
    rustix::process::chdir("/").context(|| "enter the container's root")
}

fn make_terminal(
    root: BorrowedFd<'_>,
    process: &Process,
    dev: DevOwner,
    channel: &Channel,
) -> Result<OwnedFd> {
    let made = terminal::open(root, process.console_size, process.user.uid)?;
    terminal::bind_console(root, dev, &made.slave)?;
    channel.tell_parent(&FromChild::Terminal(made.master))?;
    Ok(made.slave)
}

/// Takes the standard streams this process was given, in a session of its own.
pub(super) fn given_streams(stdio: &Stdio) -> Result<()> {
    match stdio {
        Stdio::Streams {
            input,
            output,
            errors,
        } => {
            rustix::process::setsid().context(|| "start a session")?;
            terminal::standard_streams(input.as_fd(), output.as_fd(), errors.as_fd())
        }
        Stdio::Inherit | Stdio::Terminal => {
            // A session leader already (the OCI command line run as one) stays one.
            let _ = rustix::process::setsid();
            Ok(())
        }
    }
}

/// Makes given streams the container's own, as far as they are nobody else's.
pub(super) fn own_streams(process: &Process) {
    reopen_null();
    // The program may open /dev/stdout: it has to own what lies behind it. Not so for what is shared with others.
    if process.user.uid == 0 {
        return;
    }
    let user = rustix::fs::Uid::from_raw(process.user.uid);
    for stream in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let is_pipe =
            rustix::fs::fstat(stream).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_fifo());
        if is_pipe {
            let _ = rustix::fs::fchown(stream, Some(user), None);
        }
    }
}

/// Standard streams that are the host's null device become the container's: the program could change owner and mode of
/// what it has open.
fn reopen_null() {
    let is_null = |fd: BorrowedFd<'_>| {
        rustix::fs::fstat(fd).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode).is_char_device()
                && stat.st_rdev == rustix::fs::makedev(1, 3)
        })
    };
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ]
    .map(is_null);
    if !streams.contains(&true) {
        return;
    }
    // Not blocking: a running container may have put a FIFO there.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // Nor through the kernel's links to what processes have open, or that process's root.
    let direct = ResolveFlags::NO_MAGICLINKS;
    let Ok(own) = rustix::fs::openat2(rustix::fs::CWD, "/dev/null", flags, Mode::empty(), direct) else {
        return;
    };
    if !is_null(own.as_fd()) {
        return;
    }
    let _ = rustix::fs::fcntl_setfl(&own, OFlags::empty());
    if streams[0] {
        let _ = rustix::stdio::dup2_stdin(&own);
    }
    if streams[1] {
        let _ = rustix::stdio::dup2_stdout(&own);
    }
    if streams[2] {
        let _ = rustix::stdio::dup2_stderr(&own);
    }
}

/// A session keyring of its own: the host's keys, and those of other containers, stay out of reach.
pub(super) fn session_keyring(channel: &Channel) -> Result<()> {
    match keyctl::new_session_keyring() {
        Ok(()) | Err(rustix::io::Errno::NOSYS) => Ok(()),
        // The user's quota of keys is used up: not worth failing for, as runc has it.
        Err(rustix::io::Errno::DQUOT) => channel.tell_parent(&FromChild::Warning(
            "the quota of kernel keys is used up: the container shares the host's session keyring".into(),
        )),
        Err(errno) => Err(errno).context(|| "make a session keyring"),
    }
}

fn wait_for_start(listener: &OwnedFd) -> Result<OwnedFd> {
    loop {
        match rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC) {
            Ok(connection) => return Ok(connection),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            Err(errno) => return Err(errno).context(|| "wait to be started"),
        }
    }
}
