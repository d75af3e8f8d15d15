//! System calls as functions that are safe to call, with owned descriptors and errors.
//!
//! Numbers: `arch/x86/entry/syscalls/syscall_64.tbl`. Structures are the kernel's own.

use alloc::vec::Vec;
use core::arch::asm;
use core::ffi::CStr;

/// An error number of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

pub type Result<T> = core::result::Result<T, Errno>;

impl Errno {
    pub const PERM: Self = Self(1);
    pub const NOENT: Self = Self(2);
    pub const INTR: Self = Self(4);
    pub const AGAIN: Self = Self(11);
    pub const ACCES: Self = Self(13);
    pub const EXIST: Self = Self(17);
    pub const NOTDIR: Self = Self(20);
    pub const INVAL: Self = Self(22);

    /// What the error means, for a sentence.
    pub fn text(self) -> &'static str {
        match self.0 {
            1 => "operation not permitted",
            2 => "no such file or directory",
            3 => "no such process",
            5 => "input/output error",
            6 => "no such device or address",
            7 => "argument list too long",
            8 => "exec format error",
            9 => "bad file descriptor",
            11 => "try again",
            12 => "out of memory",
            13 => "permission denied",
            15 => "block device required",
            16 => "device or resource busy",
            17 => "file exists",
            18 => "invalid cross-device link",
            19 => "no such device, or the kernel lacks it",
            20 => "not a directory",
            21 => "is a directory",
            22 => "invalid argument",
            23 | 24 => "too many open files",
            26 => "text file busy",
            27 => "file too large",
            28 => "no space left",
            30 => "read-only file system",
            32 => "broken pipe",
            36 => "file name too long",
            38 => "the kernel lacks this function",
            40 => "too many levels of symbolic links",
            95 => "operation not supported",
            97 => "address family not supported",
            98 => "address already in use",
            99 => "cannot assign the address",
            101 => "network is unreachable",
            104 => "connection reset",
            110 => "timed out",
            111 => "connection refused",
            _ => "the kernel refused",
        }
    }
}

/// A descriptor that is closed when it is dropped.
#[derive(Debug, PartialEq, Eq)]
pub struct Fd(i32);

impl Fd {
    /// Takes over a descriptor that belongs to nobody else.
    pub fn own(raw: i32) -> Self {
        Self(raw)
    }

    pub fn raw(&self) -> i32 {
        self.0
    }

    /// Leaves it open for the program that is executed.
    pub fn forget(self) -> i32 {
        let raw = self.0;
        core::mem::forget(self);
        raw
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        call(3, [self.0 as usize, 0, 0, 0, 0, 0]);
    }
}

/// A system call. Not marked unsafe so that the wrappers stay readable; private, and every use below passes what the call of
/// that number expects: pointers come from live slices, strings end with NUL, structures are the kernel's.
fn call(number: usize, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: see above; the kernel clobbers rcx and r11, memory counts as clobbered.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// `sys!(number, arguments...)`: a [`Result`] of the call's value.
macro_rules! sys {
    ($number:expr $(, $argument:expr)*) => {{
        let given = [$($argument as usize),*];
        let mut arguments = [0usize; 6];
        for (slot, value) in arguments.iter_mut().zip(given) {
            *slot = value;
        }
        let result = call($number, arguments);
        if result < 0 { Err(Errno(-result as i32)) } else { Ok(result as usize) }
    }};
}

/// The same for calls that give a descriptor.
macro_rules! open {
    ($($all:tt)*) => { sys!($($all)*).map(|fd| Fd(fd as i32)) };
}

mod socket;

pub use socket::*;

/// Text with the NUL that the kernel wants; the path is refused when it has one inside.
pub fn terminated(text: &[u8]) -> Result<Vec<u8>> {
    if text.contains(&0) {
        return Err(Errno::INVAL);
    }
    let mut owned = Vec::with_capacity(text.len() + 1);
    owned.extend_from_slice(text);
    owned.push(0);
    Ok(owned)
}

/// The argument for the current directory in calls that take a directory.
pub const CWD: i32 = -100;

pub const O_WRONLY: i32 = 1;
pub const O_RDWR: i32 = 2;
pub const O_CREAT: i32 = 0o100;
pub const O_NOCTTY: i32 = 0o400;
pub const O_NONBLOCK: i32 = 0o4000;
pub const O_DIRECTORY: i32 = 0o200_000;
pub const O_CLOEXEC: i32 = 0o2_000_000;
pub const O_PATH: i32 = 0o10_000_000;

pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub const RESOLVE_IN_ROOT: u64 = 0x10;

// --- memory -------------------------------------------------------------------------------------------------------------

pub fn brk(end: usize) -> usize {
    call(12, [end, 0, 0, 0, 0, 0]) as usize
}

/// Anonymous private memory.
pub fn map(length: usize) -> Option<usize> {
    let at = call(9, [0, length, 3, 0x22, usize::MAX, 0]);
    (at > 0).then_some(at as usize)
}

pub fn unmap(at: usize, length: usize) {
    call(11, [at, length, 0, 0, 0, 0]);
}

// --- files --------------------------------------------------------------------------------------------------------------

pub fn open(path: &[u8], flags: i32) -> Result<Fd> {
    open_at(CWD, path, flags)
}

pub fn open_at(directory: i32, path: &[u8], flags: i32) -> Result<Fd> {
    let path = terminated(path)?;
    open!(257, directory, path.as_ptr(), flags | O_CLOEXEC, 0o644)
}

/// Opens a path without leaving the tree below `root`.
pub fn open_in(root: &Fd, path: &[u8], flags: i32, resolve: u64) -> Result<Fd> {
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    let path = terminated(if path.is_empty() { b"." } else { path })?;
    let creates = flags & O_CREAT != 0;
    let how = How {
        flags: (flags | O_CLOEXEC) as u64,
        mode: if creates { 0o644 } else { 0 },
        resolve,
    };
    loop {
        // EAGAIN: somebody renamed something while the kernel was looking.
        match open!(437, root.0, path.as_ptr(), &raw const how, size_of::<How>()) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

pub fn read(fd: &Fd, into: &mut [u8]) -> Result<usize> {
    loop {
        match sys!(0, fd.0, into.as_mut_ptr(), into.len()) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

pub fn write(fd: &Fd, bytes: &[u8]) -> Result<usize> {
    loop {
        match sys!(1, fd.0, bytes.as_ptr(), bytes.len()) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// The first `limit` bytes of a file.
pub fn read_file(path: &[u8], limit: usize) -> Result<Vec<u8>> {
    read_all(&open(path, 0)?, limit)
}

pub fn read_all(fd: &Fd, limit: usize) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut piece = [0; 4096];
    while content.len() < limit {
        let count = read(fd, &mut piece)?;
        if count == 0 {
            break;
        }
        content.extend_from_slice(piece.get(..count.min(limit - content.len())).unwrap_or_default());
    }
    Ok(content)
}

/// Writes a file of the kernel's: one write.
pub fn write_file(path: &[u8], bytes: &[u8]) -> Result<()> {
    let file = open(path, O_WRONLY)?;
    write(&file, bytes).map(drop)
}

pub fn make_directory(directory: i32, name: &[u8], mode: u32) -> Result<()> {
    let name = terminated(name)?;
    sys!(258, directory, name.as_ptr(), mode).map(drop)
}

pub fn make_node(directory: &Fd, name: &[u8], mode: u32, major: u32, minor: u32) -> Result<()> {
    let name = terminated(name)?;
    // The kernel's encoding of a device number in 32 bits.
    let device = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
    sys!(259, directory.0, name.as_ptr(), mode, device).map(drop)
}

pub fn make_link(directory: &Fd, name: &[u8], to: &[u8]) -> Result<()> {
    let (name, to) = (terminated(name)?, terminated(to)?);
    sys!(266, to.as_ptr(), directory.0, name.as_ptr()).map(drop)
}

pub fn change_owner_at(directory: &Fd, name: &[u8], uid: u32, gid: u32) -> Result<()> {
    let name = terminated(name)?;
    sys!(260, directory.0, name.as_ptr(), uid, gid, 0x100).map(drop)
}

pub fn change_owner(fd: i32, uid: u32, gid: u32) -> Result<()> {
    sys!(93, fd, uid, gid).map(drop)
}

pub fn change_mode_at(directory: &Fd, name: &[u8], mode: u32) -> Result<()> {
    let name = terminated(name)?;
    sys!(268, directory.0, name.as_ptr(), mode).map(drop)
}

pub fn remove_at(directory: &Fd, name: &[u8]) -> Result<()> {
    let name = terminated(name)?;
    sys!(263, directory.0, name.as_ptr(), 0).map(drop)
}

/// The mode of what is open.
pub fn mode(fd: &Fd) -> Result<u32> {
    let mut stat = [0u64; 18];
    sys!(262, fd.0, c"".as_ptr(), stat.as_mut_ptr(), 0x1000)?;
    // `st_mode` is the first half of the fourth word.
    Ok(stat[3] as u32)
}

pub fn is_directory(fd: &Fd) -> Result<bool> {
    Ok(mode(fd)? & 0o170_000 == 0o040_000)
}

/// The names in a directory, without the two dots.
pub fn names(path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let directory = open(path, O_DIRECTORY)?;
    let mut names = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        let count = sys!(217, directory.0, buffer.as_mut_ptr(), buffer.len())?;
        let mut rest = buffer.get(..count).unwrap_or_default();
        if rest.is_empty() {
            return Ok(names);
        }
        // struct linux_dirent64: inode 8, offset 8, length 2, type 1, name.
        while let (Some([low, high]), Some(text)) = (rest.get(16..18), rest.get(19..)) {
            let length = u16::from_le_bytes([*low, *high]) as usize;
            let name = text.split(|byte| *byte == 0).next().unwrap_or_default();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
            rest = rest.get(length.max(1)..).unwrap_or_default();
        }
    }
}

pub fn control(fd: i32, request: usize, argument: usize) -> Result<usize> {
    sys!(16, fd, request, argument)
}

pub fn set_nonblocking(fd: &Fd) -> Result<()> {
    let flags = sys!(72, fd.0, 3)?;
    sys!(72, fd.0, 4, flags | O_NONBLOCK as usize).map(drop)
}

pub fn duplicate(fd: &Fd) -> Result<Fd> {
    // F_DUPFD_CLOEXEC
    open!(72, fd.0, 1030, 3)
}

/// Makes `to` another name of `fd`, open in executed programs.
pub fn duplicate_to(fd: &Fd, to: i32) -> Result<()> {
    if fd.0 == to {
        // dup3(2) refuses this; what is wanted is that it stays open.
        return sys!(72, to, 2, 0).map(drop);
    }
    sys!(292, fd.0, to, 0).map(drop)
}

pub fn pipe() -> Result<(Fd, Fd)> {
    let mut ends = [0i32; 2];
    sys!(293, ends.as_mut_ptr(), O_CLOEXEC)?;
    Ok((Fd(ends[0]), Fd(ends[1])))
}

// --- directories and mounts ---------------------------------------------------------------------------------------------

pub const MS_RDONLY: u64 = 1;
pub const MS_NOSUID: u64 = 2;
pub const MS_NODEV: u64 = 4;
pub const MS_NOEXEC: u64 = 8;
pub const MS_NOATIME: u64 = 1024;
pub const MS_NODIRATIME: u64 = 2048;
pub const MS_MOVE: u64 = 8192;
pub const MS_REC: u64 = 16384;
pub const MS_PRIVATE: u64 = 1 << 18;
pub const MS_STRICTATIME: u64 = 1 << 24;

pub fn mount(source: &[u8], target: &[u8], kind: &[u8], flags: u64, options: &[u8]) -> Result<()> {
    let (source, target) = (terminated(source)?, terminated(target)?);
    let (kind, options) = (terminated(kind)?, terminated(options)?);
    sys!(
        165,
        source.as_ptr(),
        target.as_ptr(),
        kind.as_ptr(),
        flags,
        options.as_ptr()
    )
    .map(drop)
}

pub fn unmount(target: &[u8]) -> Result<()> {
    let target = terminated(target)?;
    // MNT_DETACH, UMOUNT_NOFOLLOW
    sys!(166, target.as_ptr(), 2 | 8).map(drop)
}

/// A file system context; its messages explain what the kernel refuses.
pub fn fs_open(kind: &[u8]) -> Result<Fd> {
    let kind = terminated(kind)?;
    open!(430, kind.as_ptr(), 1)
}

pub fn fs_set(context: &Fd, name: &[u8], value: Option<&[u8]>) -> Result<()> {
    let name = terminated(name)?;
    match value {
        None => sys!(431, context.0, 0, name.as_ptr(), 0, 0).map(drop),
        Some(value) => {
            let value = terminated(value)?;
            sys!(431, context.0, 1, name.as_ptr(), value.as_ptr(), 0).map(drop)
        }
    }
}

pub fn fs_create(context: &Fd) -> Result<()> {
    sys!(431, context.0, 6, 0, 0, 0).map(drop)
}

pub fn fs_mount(context: &Fd, attributes: u64) -> Result<Fd> {
    open!(432, context.0, 1, attributes)
}

/// A detached copy of the mount at `fd`, from there on.
pub fn copy_tree(fd: &Fd, recursive: bool) -> Result<Fd> {
    // OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, AT_EMPTY_PATH, AT_RECURSIVE
    let flags = 1 | O_CLOEXEC | 0x1000 | if recursive { 0x8000 } else { 0 };
    open!(428, fd.0, c"".as_ptr(), flags)
}

/// Moves a detached mount onto what `target` has open.
pub fn attach(mount: &Fd, target: &Fd) -> Result<()> {
    // MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH
    sys!(429, mount.0, c"".as_ptr(), target.0, c"".as_ptr(), 0x44).map(drop)
}

/// Sets attributes (`MOUNT_ATTR_...`) and propagation (`MS_...`) of a mount.
pub fn set_mount(mount: &Fd, set: u64, propagation: u64, recursive: bool) -> Result<()> {
    let attributes = [set, 0, propagation, 0u64];
    let flags = 0x1000 | if recursive { 0x8000 } else { 0 };
    sys!(442, mount.0, c"".as_ptr(), flags, attributes.as_ptr(), 32).map(drop)
}

pub fn change_directory(path: &[u8]) -> Result<()> {
    let path = terminated(path)?;
    sys!(80, path.as_ptr()).map(drop)
}

pub fn change_to(directory: &Fd) -> Result<()> {
    sys!(81, directory.0).map(drop)
}

pub fn change_root(path: &[u8]) -> Result<()> {
    let path = terminated(path)?;
    sys!(161, path.as_ptr()).map(drop)
}

/// Makes the current directory the root and hides the old one below it, to be unmounted.
pub fn pivot_here() -> Result<()> {
    sys!(155, c".".as_ptr(), c".".as_ptr()).map(drop)
}

// --- processes ----------------------------------------------------------------------------------------------------------

pub const CLONE_PARENT: u64 = 0x8000;
pub const CLONE_NEWNS: u64 = 0x0002_0000;
pub const CLONE_NEWCGROUP: u64 = 0x0200_0000;
pub const CLONE_NEWUTS: u64 = 0x0400_0000;
pub const CLONE_NEWIPC: u64 = 0x0800_0000;
pub const CLONE_NEWPID: u64 = 0x2000_0000;

/// fork(2) with flags of clone(2), into a cgroup; 0 in the child.
pub fn fork(flags: u64, cgroup: Option<&Fd>) -> Result<i32> {
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size,
    // cgroup.
    let mut arguments = [0u64; 11];
    arguments[0] = flags;
    if flags & CLONE_PARENT == 0 {
        arguments[4] = SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        arguments[0] |= 0x2_0000_0000;
        arguments[10] = cgroup.0 as u64;
    }
    sys!(435, arguments.as_ptr(), 88).map(|pid| pid as i32)
}

/// A child that has ended, and its status.
pub fn reap() -> Option<(i32, i32)> {
    let mut status = 0i32;
    match sys!(61, -1isize, &raw mut status, 1, 0) {
        Ok(pid) if pid > 0 => Some((pid as i32, status)),
        _ => None,
    }
}

pub fn kill(pid: i32, signal: i32) -> Result<()> {
    sys!(62, pid, signal).map(drop)
}

pub fn pidfd(pid: i32) -> Result<Fd> {
    open!(434, pid, 0)
}

pub fn enter(pidfd: &Fd, kinds: u64) -> Result<()> {
    sys!(308, pidfd.0, kinds).map(drop)
}

pub fn unshare(kinds: u64) -> Result<()> {
    sys!(272, kinds).map(drop)
}

/// Lets everybody else go first.
pub fn be_nice() {
    // PRIO_PROCESS, this one
    let _ = sys!(141, 0, 0, 19);
}

pub fn new_session() -> Result<()> {
    sys!(112).map(drop)
}

pub fn new_keyring() {
    // KEYCTL_JOIN_SESSION_KEYRING; a kernel without keys has none to protect.
    let _ = sys!(250, 1, 0);
}

pub fn umask(mask: u32) {
    let _ = sys!(95, mask);
}

pub fn set_groups(groups: &[u32]) -> Result<()> {
    sys!(116, groups.len(), groups.as_ptr()).map(drop)
}

pub fn set_user(uid: u32) -> Result<()> {
    sys!(117, uid, uid, uid).map(drop)
}

pub fn set_group(gid: u32) -> Result<()> {
    sys!(119, gid, gid, gid).map(drop)
}

pub fn process_control(option: usize, a: usize, b: usize) -> Result<usize> {
    sys!(157, option, a, b, 0, 0)
}

pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<()> {
    // _LINUX_CAPABILITY_VERSION_3, this process; then the lower and upper halves.
    let header = [0x2008_0522u32, 0];
    let half = |shift: u32| [effective, permitted, inheritable].map(|set| (set >> shift) as u32);
    let data = [half(0), half(32)];
    sys!(126, header.as_ptr(), data.as_ptr()).map(drop)
}

pub fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = [soft, hard];
    sys!(302, 0, resource, limit.as_ptr(), 0).map(drop)
}

/// seccomp(2) with `SECCOMP_SET_MODE_FILTER`; `code` is an array of `struct sock_filter`.
pub fn set_filter(flags: u32, code: &[u8]) -> Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const u8,
    }
    let length = u16::try_from(code.len() / 8).map_err(|_| Errno::INVAL)?;
    let program = Program {
        length,
        filter: code.as_ptr(),
    };
    sys!(317, 1, flags, &raw const program).map(drop)
}

/// execve(2); returns only to say why not.
pub fn execute(path: &[u8], arguments: &[*const u8], environment: &[*const u8]) -> Errno {
    let Ok(path) = terminated(path) else {
        return Errno::INVAL;
    };
    match sys!(59, path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) {
        Err(errno) => errno,
        Ok(_) => Errno::INVAL,
    }
}

pub fn exit(status: i32) -> ! {
    loop {
        call(231, [status as usize, 0, 0, 0, 0, 0]);
    }
}

// --- signals and waiting ------------------------------------------------------------------------------------------------

pub const SIGKILL: i32 = 9;
pub const SIGCHLD: i32 = 17;

/// Blocks all signals; the mask of before does not matter to PID 1.
pub fn block_signals(mask: u64) {
    let _ = sys!(14, 2, &raw const mask, 0, 8);
}

pub fn signal_descriptor(mask: u64) -> Result<Fd> {
    open!(289, -1isize, &raw const mask, 8, O_NONBLOCK | O_CLOEXEC)
}

pub const POLLIN: i16 = 1;
pub const POLLOUT: i16 = 4;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PollFd {
    pub fd: i32,
    pub events: i16,
    pub happened: i16,
}

/// Waits; `timeout` in milliseconds, negative: for ever.
pub fn poll(fds: &mut [PollFd], timeout: i32) -> Result<usize> {
    sys!(7, fds.as_mut_ptr(), fds.len(), timeout as isize)
}

pub fn sleep(milliseconds: u64) {
    let time = [milliseconds / 1000, milliseconds % 1000 * 1_000_000];
    let _ = sys!(35, time.as_ptr(), 0);
}

const CLOCK_BOOTTIME: usize = 7;

/// Nanoseconds since the kernel began.
pub fn uptime() -> u64 {
    let mut time = [0u64; 2];
    let _ = sys!(228, CLOCK_BOOTTIME, time.as_mut_ptr());
    time[0].saturating_mul(1_000_000_000).saturating_add(time[1])
}

pub fn set_clock(nanoseconds: u64) -> Result<()> {
    let time = [nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000];
    sys!(227, 0, time.as_ptr()).map(drop)
}

// --- the machine --------------------------------------------------------------------------------------------------------

pub fn load_module(file: &Fd) -> Result<()> {
    sys!(313, file.0, c"".as_ptr(), 0).map(drop)
}

pub fn set_host_name(name: &[u8]) -> Result<()> {
    sys!(170, name.as_ptr(), name.len()).map(drop)
}

pub fn set_domain_name(name: &[u8]) -> Result<()> {
    sys!(171, name.as_ptr(), name.len()).map(drop)
}

pub fn process_id() -> i32 {
    call(39, [0; 6]) as i32
}

pub fn sync() {
    call(162, [0; 6]);
}

/// Powers off or restarts; comes back only when the kernel cannot.
pub fn reboot(restart: bool) {
    // TCSBRK as tcdrain(3) has it: what was written to the console goes out first.
    let _ = control(2, 0x5409, 1);
    let command: u32 = if restart { 0x0123_4567 } else { 0x4321_fedc };
    let _ = sys!(169, 0xfee1_deadu32, 672_274_793, command, 0);
}

/// The kernel's release, as `uname -r` prints it.
pub fn release() -> Vec<u8> {
    let mut names = [0u8; 6 * 65];
    if sys!(63, names.as_mut_ptr()).is_err() {
        return Vec::new();
    }
    let field = names.get(2 * 65..3 * 65).unwrap_or_default();
    CStr::from_bytes_until_nul(field).map_or(Vec::new(), |text| text.to_bytes().to_vec())
}
