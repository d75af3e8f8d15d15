//! Which namespaces are made, which are joined.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use crate::Result;
use crate::error::Context;
use crate::spec::{Linux, NamespaceKind, TimeOffset};

/// A namespace to join.
#[derive(Debug)]
pub struct Join {
    /// Its kind.
    pub kind: NamespaceKind,
    /// Its file.
    pub file: OwnedFd,
}

/// What a configuration asks of namespaces.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// `CLONE_NEW…` flags of those made with the process. The cgroup namespace is not among them: it is made by the
    /// child once it is in its cgroup. Nor is the time namespace, which can only be entered by a later child.
    pub clone: u64,
    /// Whether the child makes a cgroup namespace.
    pub cgroup: bool,
    /// Whether a time namespace is made.
    pub time: bool,
    /// Those joined, in the order of joining; a user namespace first.
    pub join: Vec<Join>,
}

impl Namespaces {
    /// Reads `linux.namespaces`; `netns` takes the place of a network namespace that would be made.
    ///
    /// # Errors
    /// When a namespace file cannot be opened.
    pub fn of(linux: &Linux, netns: Option<BorrowedFd<'_>>) -> Result<Self> {
        let mut found = Self::default();
        for kind in NamespaceKind::ALL {
            let Some(namespace) = linux.namespace(kind) else {
                continue;
            };
            let file = match (&namespace.path, kind, netns) {
                (Some(path), _, _) => Some(
                    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                        .context(|| format!("open the {} namespace {}", kind.proc_name(), path.display()))?,
                ),
                (None, NamespaceKind::Network, Some(fd)) => {
                    Some(fd.try_clone_to_owned().context(|| "keep the network namespace")?)
                }
                _ => None,
            };
            match (file, kind) {
                (Some(file), kind) => found.join.push(Join { kind, file }),
                (None, NamespaceKind::Cgroup) => found.cgroup = true,
                (None, NamespaceKind::Time) => found.time = true,
                (None, kind) => found.clone |= kind.clone_flag(),
            }
        }
        Ok(found)
    }

    /// The namespace of a kind that is joined.
    pub fn joined(&self, kind: NamespaceKind) -> Option<&OwnedFd> {
        self.join
            .iter()
            .find(|join| join.kind == kind)
            .map(|join| &join.file)
    }

    /// Whether a new namespace of this kind is made with the process.
    pub fn makes(&self, kind: NamespaceKind) -> bool {
        self.clone & kind.clone_flag() != 0
    }

    /// Joins, in the child. The user namespace and the PID namespace are the parent's business, as is the network
    /// namespace beside a new user namespace: it belongs to the host's, where the child has no rights.
    pub fn enter(&self) -> Result<()> {
        for join in &self.join {
            let network = join.kind == NamespaceKind::Network && self.makes(NamespaceKind::User);
            if network || matches!(join.kind, NamespaceKind::User | NamespaceKind::Pid) {
                continue;
            }
            set(join.file.as_fd(), join.kind)?;
        }
        Ok(())
    }

    /// Runs `call` while this thread, and so the children it makes, is in the network namespace that a child in a new
    /// user namespace could not join itself.
    pub fn with_network<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let joined = self
            .joined(NamespaceKind::Network)
            .filter(|_| self.makes(NamespaceKind::User));
        let Some(network) = joined else { return call() };
        let own = rustix::fs::open(
            "/proc/thread-self/ns/net",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .context(|| "open this process's network namespace")?;
        set(network.as_fd(), NamespaceKind::Network)?;
        let result = call();
        let restored = set(own.as_fd(), NamespaceKind::Network)
            .map_err(|error| error.wrap("return to this process's network namespace"));
        result.and_then(|value| restored.map(|()| value))
    }
}

/// Moves this thread (for PID and time namespaces: its future children) into a namespace.
pub fn set(file: BorrowedFd<'_>, kind: NamespaceKind) -> Result<()> {
    let raw = match kind {
        NamespaceKind::User => LinkNameSpaceType::User,
        NamespaceKind::Pid => LinkNameSpaceType::ProcessID,
        NamespaceKind::Network => LinkNameSpaceType::Network,
        NamespaceKind::Mount => LinkNameSpaceType::Mount,
        NamespaceKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
        NamespaceKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        NamespaceKind::Cgroup => LinkNameSpaceType::ControlGroup,
        NamespaceKind::Time => LinkNameSpaceType::Time,
    };
    move_into_link_name_space(file, Some(raw)).context(|| format!("join the {} namespace", kind.proc_name()))
}

/// Sets the loopback interface of this (new) network namespace up.
pub fn loopback_up() -> Result<()> {
    use std::os::fd::AsRawFd;
    let failed = || "set the loopback interface up";
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .context(failed)?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request = unsafe { std::mem::zeroed::<libc::ifreq>() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads a complete ifreq, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } < 0 {
        return Err(std::io::Error::last_os_error()).context(failed);
    }
    Ok(())
}

/// Runs `call` while children of this process are made in a new time namespace with the configured offsets.
///
/// clone3(2) could make the namespace with the child, but its offsets can only be set before somebody is in it.
pub fn with_time_namespace<T>(linux: &Linux, call: impl FnOnce() -> Result<T>) -> Result<T> {
    let own = rustix::fs::open(
        "/proc/self/ns/time",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| "open this process's time namespace")?;
    make_time(linux)?;
    let result = call();
    // Hooks and later processes of this parent belong to its own namespace.
    let restored = set(own.as_fd(), NamespaceKind::Time);
    result.and_then(|value| restored.map(|()| value))
}

fn make_time(linux: &Linux) -> Result<()> {
    // SAFETY: CLONE_NEWTIME changes the namespace of future children only; no memory, file or thread of this process
    // is unshared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWTIME) }
        .context(|| "make a time namespace")?;
    let mut text = String::new();
    for (clock, TimeOffset { secs, nanosecs }) in &linux.time_offsets {
        text.push_str(&format!("{clock} {secs} {nanosecs}\n"));
    }
    if !text.is_empty() {
        std::fs::write("/proc/self/timens_offsets", text).context(|| "set the time namespace's offsets")?;
    }
    Ok(())
}

/// A PID namespace for children.
#[derive(Debug, Clone, Copy)]
pub enum PidNamespace<'a> {
    /// A namespace file.
    File(BorrowedFd<'a>),
    /// That of the process with this pidfd.
    Of(BorrowedFd<'a>),
}

/// Runs `call` while children of this process are made in the given PID namespace.
pub fn with_pid_namespace<T>(
    namespace: Option<PidNamespace<'_>>,
    call: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let Some(namespace) = namespace else { return call() };
    let own = rustix::fs::open(
        "/proc/self/ns/pid",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| "open this process's PID namespace")?;
    match namespace {
        PidNamespace::File(file) => set(file, NamespaceKind::Pid)?,
        PidNamespace::Of(pidfd) => move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::PROCESS_ID)
            .context(|| "join the container's PID namespace (has it exited?)")?,
    }
    let result = call();
    let restored = set(own.as_fd(), NamespaceKind::Pid)
        .map_err(|error| error.wrap("return to this process's PID namespace"));
    result.and_then(|value| restored.map(|()| value))
}
