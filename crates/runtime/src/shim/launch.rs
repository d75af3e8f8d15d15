//! Launching shims: the one that was executed in advance ([`super::spare`]) or one `posix_spawn` of our own executable,
//! nothing else.
//!
//! The executable is run from a detached, read-only copy of the mount it lies on. A container that gets hold of
//! `/proc/PID/exe` of a process of ours therefore holds a file it cannot open for writing, whatever its privileges
//! (CVE-2019-5736), and no copy of the program is made.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::OpenTreeFlags;

use super::protocol::{self, Attach, ShimConfig};
use super::spare::Spare;
use crate::error::Context;
use crate::sys::close_range;
use crate::sys::mount_setattr::{MountAttr, attr, mount_setattr};
use crate::{Error, ErrorKind, Result};

/// Descriptors a shim inherits.
#[derive(Debug, Default)]
pub struct ShimFds {
    /// The network namespace to enter instead of making one.
    pub netns: Option<OwnedFd>,
    /// Detached mounts that bind mounts attach, by their destination: of what no path may be trusted to lead to.
    pub sources: Vec<(PathBuf, OwnedFd)>,
    /// The TAP devices of a machine, in the order of its interfaces.
    pub taps: Vec<OwnedFd>,
    /// A machine's kernel (a bzImage or an ELF file) and initramfs, open for reading.
    pub boot: Option<(OwnedFd, OwnedFd)>,
    /// Held while the container lives, closed by its end (reservations of published ports).
    pub keep: Vec<OwnedFd>,
    /// Streams of the clients that attached before the start.
    pub attach: Vec<(OwnedFd, Attach)>,
}

/// A shim that was started.
#[derive(Debug)]
pub struct LaunchedShim {
    /// Its process ID. It is a child of the launching process, which has to reap it.
    pub pid: i32,
    /// The control stream: [`protocol::Event`]s come from it.
    pub control: UnixStream,
}

/// Starts shims.
#[derive(Debug)]
pub struct Launcher {
    executable: OwnedFd,
    spare: Spare,
}

impl Launcher {
    /// Prepares the running executable for being executed as shim.
    ///
    /// # Errors
    /// When the executable cannot be opened; a kernel or a privilege that does not allow the read-only mount is not an
    /// error: the plain file is used then (as without root, where a container cannot write it either).
    pub fn new() -> Result<Self> {
        // What this process was started with is not for shims, which inherit whatever is not close-on-exec.
        close_range::set_cloexec_from(3).context(|| "mark inherited descriptors")?;
        let executable = own_executable()?;
        let spare = Spare::keep(executable.try_clone().context(|| "open the running executable")?)?;
        Ok(Self { executable, spare })
    }

    /// Starts a shim in directory `dir`, which must exist, belong to this shim alone and lie on a file system that
    /// does not survive a reboot. Returns as soon as the shim's program runs; what becomes of the container is said on
    /// the control stream.
    ///
    /// # Errors
    /// When the configuration cannot be written or the process cannot be started.
    pub fn launch(&self, dir: &Path, config: &mut ShimConfig, fds: ShimFds) -> Result<LaunchedShim> {
        let dir_fd = rustix::fs::open(
            dir,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .context(|| format!("open the shim's directory {}", dir.display()))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&dir_fd, protocol::CONFIG, flags, Mode::from_raw_mode(0o600))
            .map(std::fs::File::from)
            .context(|| format!("write the shim's configuration in {}", dir.display()))?;
        // The lock belongs to the open file, which the shim inherits before it is a program of its own: see `is_held`.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .context(|| format!("lock the shim's configuration in {}", dir.display()))?;
        let (ours, theirs) = UnixStream::pair().context(|| "make the shim's control stream")?;
        // Numbers from 3 on, in this order.
        let mut inherited: Vec<BorrowedFd<'_>> = Vec::with_capacity(5 + fds.keep.len() + fds.attach.len());
        let mut number = |fd| {
            inherited.push(fd);
            2 + inherited.len() as RawFd
        };
        config.fds.control = number(theirs.as_fd());
        config.fds.dir = number(dir_fd.as_fd());
        config.fds.netns = fds.netns.as_ref().map(|fd| number(fd.as_fd()));
        config.fds.sources = fds
            .sources
            .iter()
            .map(|(at, fd)| (number(fd.as_fd()), at.clone()))
            .collect();
        config.fds.taps = fds.taps.iter().map(|fd| number(fd.as_fd())).collect();
        let boot = fds.boot.as_ref();
        config.fds.boot = boot.map(|(kernel, initramfs)| (number(kernel.as_fd()), number(initramfs.as_fd())));
        config.fds.keep = fds.keep.iter().map(|fd| number(fd.as_fd())).collect();
        config.fds.attach = fds
            .attach
            .iter()
            .map(|(fd, attach)| (number(fd.as_fd()), attach.clone()))
            .collect();

        number(file.as_fd());

        let text = serde_json::to_vec(config).map_err(|error| {
            Error::with_source(ErrorKind::System, "encode the shim's configuration", error)
        })?;
        std::io::Write::write_all(&mut &file, &text)
            .context(|| format!("write the shim's configuration in {}", dir.display()))?;

        let pid = match self.spare.take(&config.id, &inherited) {
            Some(pid) => pid,
            None => {
                let inherited: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
                spawn(&self.executable, &["vessel", "shim", &config.id], &inherited)?
            }
        };
        Ok(LaunchedShim { pid, control: ours })
    }

    /// To be called when a container has ended and its client was answered: what makes the next start faster is best
    /// done now.
    pub fn calm(&self) {
        self.spare.calm();
    }
}

/// Connects to the shim whose directory is `dir`, however long its path is.
///
/// # Errors
/// `NotFound` when there is no socket; otherwise when nobody answers (the shim is dead).
pub fn connect(dir: &Path) -> Result<UnixStream> {
    let fd = rustix::fs::open(
        dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| format!("open the shim's directory {}", dir.display()))?;
    UnixStream::connect(format!("/proc/self/fd/{}/{}", fd.as_raw_fd(), protocol::SOCKET))
        .context(|| format!("connect to the shim in {}", dir.display()))
}

/// What the shim whose directory is `dir` holds of its machine.
///
/// # Errors
/// When the shim is gone, or holds no machine.
pub fn hand(dir: &Path, what: protocol::Held) -> Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let failed = || "ask the machine's shim for what it holds";
    let mut stream = connect(dir)?;
    stream
        .set_read_timeout(Some(std::time::Duration::from_secs(10)))
        .context(failed)?;
    protocol::send(&mut stream, &protocol::Request::Hand(what))?;
    // The answer is far below what one call takes; the descriptor comes with its first byte.
    let mut body = [0; 4096];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [std::io::IoSliceMut::new(&mut body)];
    let received = recvmsg(&stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).context(failed)?;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.into_iter().next(),
        _ => None,
    });
    if let Some(held) = descriptors.next() {
        return Ok(held);
    }
    match protocol::receive(&mut &body[..received.bytes])? {
        Some(protocol::Reply::Failed(report)) => Err(report.into()),
        _ => Err(Error::new(ErrorKind::Conflict, "the machine has ended")),
    }
}

/// Whether the shim whose directory is `dir` lives, or has been launched and is about to begin. What it runs may end
/// a moment later than it.
pub fn is_held(dir: &Path) -> bool {
    match std::fs::File::open(dir.join(protocol::CONFIG)) {
        Ok(file) => {
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)
                == Err(rustix::io::Errno::WOULDBLOCK)
        }
        // Who cannot open it, for lack of descriptors for one, does not know.
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// The running executable, through a detached read-only mount where the system allows.
pub fn own_executable() -> Result<OwnedFd> {
    let plain = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .context(|| "open the running executable")?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let Ok(copy) = rustix::mount::open_tree(&plain, c"", flags) else {
        return Ok(plain);
    };
    match mount_setattr(
        &copy,
        false,
        &MountAttr {
            set: attr::RDONLY,
            ..MountAttr::default()
        },
    ) {
        Ok(()) => Ok(copy),
        Err(_) => Ok(plain),
    }
}

/// Runs `executable` with exactly the descriptors `inherited`, numbered from 3, and `/dev/null` as standard streams.
pub(super) fn spawn(executable: &OwnedFd, args: &[&str], inherited: &[RawFd]) -> Result<i32> {
    // posix_spawn's dup2 actions run in order and overwrite what has the wanted numbers: everything that is still needed,
    // the executable too, is first copied above them.
    let floor = 3 + inherited.len() as RawFd;
    let above = |fd: RawFd| -> Result<OwnedFd> {
        // SAFETY: F_DUPFD_CLOEXEC takes no pointer; the result is checked and owned at once.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, floor) };
        if copy < 0 {
            return Err(std::io::Error::last_os_error()).context(|| "pass a descriptor to the shim");
        }
        // SAFETY: `copy` was just made and belongs to nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(copy) })
    };
    let moved = inherited
        .iter()
        .map(|fd| above(*fd))
        .collect::<Result<Vec<_>>>()?;
    let executable = above(executable.as_raw_fd())?;
    let path = CString::new(format!("/proc/self/fd/{}", executable.as_raw_fd())).unwrap_or_default();
    let args: Vec<CString> = args.iter().filter_map(|arg| CString::new(*arg).ok()).collect();
    let mut argv: Vec<*mut libc::c_char> = args.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
    argv.push(std::ptr::null_mut());
    let envp = [std::ptr::null_mut::<libc::c_char>()];

    let mut actions = std::mem::MaybeUninit::<libc::posix_spawn_file_actions_t>::uninit();
    let mut attributes = std::mem::MaybeUninit::<libc::posix_spawnattr_t>::uninit();
    let mut pid = 0;
    // SAFETY: both objects are initialised by their init function before use and destroyed once after; every pointer
    // passed (path, argv, envp, the null device's name) outlives the call; argv and envp end with a null pointer.
    let result = unsafe {
        libc::posix_spawn_file_actions_init(actions.as_mut_ptr());
        libc::posix_spawnattr_init(attributes.as_mut_ptr());
        for stream in 0..3 {
            libc::posix_spawn_file_actions_addopen(
                actions.as_mut_ptr(),
                stream,
                c"/dev/null".as_ptr(),
                libc::O_RDWR,
                0,
            );
        }
        for (index, fd) in moved.iter().enumerate() {
            libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), fd.as_raw_fd(), 3 + index as i32);
        }
        // A new session: the daemon's terminal and its signals are not the container's. No signal is blocked or
        // ignored in the shim whatever the daemon does with its own.
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut none);
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        libc::posix_spawnattr_setsigmask(attributes.as_mut_ptr(), &none);
        libc::posix_spawnattr_setsigdefault(attributes.as_mut_ptr(), &all);
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID;
        libc::posix_spawnattr_setflags(attributes.as_mut_ptr(), flags as libc::c_short);
        let result = libc::posix_spawn(
            &mut pid,
            path.as_ptr(),
            actions.as_ptr(),
            attributes.as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
        );
        libc::posix_spawnattr_destroy(attributes.as_mut_ptr());
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        result
    };
    if result != 0 {
        return Err(std::io::Error::from_raw_os_error(result)).context(|| "start the shim");
    }
    Ok(pid)
}

/// glibc 2.26's flag, which the `libc` crate does not name.
const POSIX_SPAWN_SETSID: libc::c_int = 0x80;
