//! `bpf(2)` for cgroup device programs: load, attach, detach, query.
//!
//! cgroup v2 has no `devices` controller; access to device nodes is decided by eBPF programs of type
//! `BPF_PROG_TYPE_CGROUP_DEVICE` attached to the cgroup (Linux 4.15). This file speaks the system call; what the
//! program says is the cgroup code's business.
//!
//! Limits: before Linux 5.11 programs are charged to `RLIMIT_MEMLOCK` and a low limit shows as `EPERM`. Attaching
//! needs `CAP_BPF`/`CAP_NET_ADMIN` or `CAP_SYS_ADMIN` in the initial user namespace, so a rootless engine cannot.
//!
//! See `include/uapi/linux/bpf.h` and `bpf(2)`.

use super::{check, owned_fd};
use rustix::io::{Errno, Result};
use std::fmt;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;

/// The verifier's log of a rejected program is cut at this size; device programs never come near it.
const LOG_SIZE: usize = 64 * 1024;
/// The kernel attaches at most 64 programs of one type to a cgroup (`BPF_CGROUP_MAX_PROGS`).
const MAX_ATTACHED: usize = 64;
/// The verifier gives up with `EAGAIN` when a signal is pending; a few more tries get through.
const LOAD_TRIES: u32 = 5;

/// One eBPF instruction, `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Insn {
    /// Operation.
    pub code: u8,
    registers: u8,
    /// Offset: of a jump, or of a load or store.
    pub off: i16,
    /// Immediate operand.
    pub imm: i32,
}

impl Insn {
    /// Builds an instruction from its fields; `dst` and `src` are register numbers (0 to 10).
    pub const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        // The kernel declares two bit fields of 4 bits; their order in the byte follows the byte order.
        let registers = if cfg!(target_endian = "little") {
            (dst & 0xf) | (src << 4)
        } else {
            (dst << 4) | (src & 0xf)
        };
        Self {
            code,
            registers,
            off,
            imm,
        }
    }
}

/// The kernel rejected a program.
#[derive(Debug)]
pub struct LoadError {
    /// What the kernel returned.
    pub errno: Errno,
    /// What its verifier said, if it got that far; empty otherwise.
    pub log: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel rejected the device program: {}", self.errno)?;
        match self.log.trim() {
            "" => Ok(()),
            log => write!(f, "; its verifier says: {log}"),
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.errno)
    }
}

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    /// Spelled out so that no uninitialised padding reaches the kernel, which insists on zeros.
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Calls `bpf(2)`.
///
/// # Safety
/// `attr` must be the attribute structure of `cmd` without implicit padding, and every address in it must be valid
/// for the access that `cmd` documents until the call returns.
unsafe fn bpf<T>(cmd: libc::c_int, attr: &mut T) -> Result<usize> {
    // SAFETY: `attr` is a live, exclusively borrowed structure of exactly `size_of::<T>()` bytes, within which the
    // kernel reads and (for a query) writes; the addresses inside are the caller's promise.
    check(unsafe { libc::syscall(libc::SYS_bpf, cmd, std::ptr::from_mut(attr), size_of::<T>()) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // A borrowed descriptor is never negative.
    fd.as_raw_fd() as u32
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program.
///
/// `name` shows up in `bpftool prog`; it is cut at 15 bytes, and bytes other than letters, digits, `_` and `.`
/// (which the kernel refuses) become `_`. The descriptor is close-on-exec.
pub fn load_cgroup_device(insns: &[Insn], name: &str) -> std::result::Result<OwnedFd, LoadError> {
    match load(insns, name, &mut []) {
        Ok(fd) => Ok(fd),
        // The log costs the verifier time and can itself fail the load when it overflows: ask for it only to explain.
        Err(errno @ (Errno::PERM | Errno::NOSYS | Errno::NOMEM)) => Err(LoadError {
            errno,
            log: String::new(),
        }),
        Err(errno) => {
            let mut log = vec![0u8; LOG_SIZE];
            let _ = load(insns, name, &mut log);
            let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
            Err(LoadError {
                errno,
                log: String::from_utf8_lossy(&log[..end]).into_owned(),
            })
        }
    }
}

fn load(insns: &[Insn], name: &str, log: &mut [u8]) -> Result<OwnedFd> {
    let mut prog_name = [0u8; 16];
    for (to, from) in prog_name[..15].iter_mut().zip(name.bytes()) {
        *to = if from.is_ascii_alphanumeric() || from == b'_' || from == b'.' {
            from
        } else {
            b'_'
        };
    }
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(insns.len()).map_err(|_| Errno::TOOBIG)?,
        insns: insns.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log_buf: if log.is_empty() {
            0
        } else {
            log.as_mut_ptr() as u64
        },
        prog_name,
        expected_attach_type: BPF_CGROUP_DEVICE,
        ..LoadAttr::default()
    };
    let mut tries = LOAD_TRIES;
    loop {
        // SAFETY: `LoadAttr` has no implicit padding (its u64s are aligned). `insns` points to `insn_cnt` instructions
        // of the kernel's layout, `license` to a NUL-terminated constant and `log_buf` to `log_size` writable bytes;
        // all outlive the call.
        match unsafe { bpf(BPF_PROG_LOAD, &mut attr) } {
            // SAFETY: a successful BPF_PROG_LOAD returns a new descriptor.
            Ok(fd) => return Ok(unsafe { owned_fd(fd) }),
            Err(Errno::AGAIN) if tries > 1 => tries -= 1,
            Err(errno) => return Err(errno),
        }
    }
}

/// Attaches a device program to the cgroup whose directory is `cgroup`, beside those already there
/// (`BPF_F_ALLOW_MULTI`): an access must satisfy them all.
pub fn attach_cgroup_device(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    attach(AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
        ..AttachAttr::default()
    })
}

/// Puts `program` in the place of `old` in one step (Linux 5.6), so that no access slips through in between.
pub fn replace_cgroup_device(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    old: BorrowedFd<'_>,
) -> Result<()> {
    attach(AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | BPF_F_REPLACE,
        replace_bpf_fd: raw(old),
    })
}

fn attach(mut attr: AttachAttr) -> Result<()> {
    // SAFETY: five u32s, no padding, no addresses.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attr) }.map(drop)
}

/// Detaches a device program from a cgroup.
pub fn detach_cgroup_device(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let mut attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: BPF_CGROUP_DEVICE,
        ..AttachAttr::default()
    };
    // SAFETY: five u32s, no padding, no addresses.
    unsafe { bpf(BPF_PROG_DETACH, &mut attr) }.map(drop)
}

/// The ids of the device programs attached to this very cgroup (not to its ancestors), in the order they run.
pub fn query_cgroup_device(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut ids = [0u32; MAX_ATTACHED];
    let mut attr = QueryAttr {
        target_fd: raw(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MAX_ATTACHED as u32,
        ..QueryAttr::default()
    };
    // SAFETY: `QueryAttr` spells out its padding; `prog_ids` points to `prog_cnt` writable u32s that outlive the call.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr)? };
    let count = (attr.prog_cnt as usize).min(MAX_ATTACHED);
    Ok(ids[..count].to_vec())
}

/// Opens a loaded program by its id. Programs disappear while one looks: `ENOENT` means just that.
pub fn program_by_id(id: u32) -> Result<OwnedFd> {
    let mut attr = IdAttr {
        prog_id: id,
        ..IdAttr::default()
    };
    // SAFETY: three u32s, no padding, no addresses.
    let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut attr)? };
    // SAFETY: a successful BPF_PROG_GET_FD_BY_ID returns a new descriptor.
    Ok(unsafe { owned_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{AtFlags, Mode, OFlags};
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    const MOV64_IMM: u8 = 0xb7;
    const EXIT: u8 = 0x95;

    fn always(verdict: i32) -> [Insn; 2] {
        [
            Insn::new(MOV64_IMM, 0, 0, 0, verdict),
            Insn::new(EXIT, 0, 0, 0, 0),
        ]
    }

    /// A cgroup of our own in a v2 hierarchy that is mounted nowhere.
    struct Cgroup {
        root: OwnedFd,
        name: String,
        dir: OwnedFd,
    }

    impl Cgroup {
        fn new(test: &str) -> Self {
            let fs = rustix::mount::fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
            rustix::mount::fsconfig_create(fs.as_fd()).unwrap();
            let root =
                rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
                    .unwrap();
            let name = format!("vessel-test-{test}-{}", std::process::id());
            rustix::fs::mkdirat(&root, &name, Mode::from_raw_mode(0o755)).unwrap();
            let dir =
                rustix::fs::openat(&root, &name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
            Self { root, name, dir }
        }

        /// Whether a process in this cgroup can open `/dev/zero`.
        fn can_open_zero(&self) -> bool {
            let mut child = Command::new("/bin/sh")
                .args(["-c", "read go; : </dev/zero"])
                .stdin(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let procs = rustix::fs::openat(
                &self.dir,
                "cgroup.procs",
                OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .unwrap();
            rustix::io::write(&procs, child.id().to_string().as_bytes()).unwrap();
            child.stdin.take().unwrap().write_all(b"\n").unwrap();
            child.wait().unwrap().success()
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            // A dead process leaves its cgroup a moment after it was reaped.
            for _ in 0..100 {
                if rustix::fs::unlinkat(&self.root, &self.name, AtFlags::REMOVEDIR).is_ok() {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }

    #[test]
    fn attach_replace_query_detach() {
        let cgroup = Cgroup::new("bpf");
        assert!(query_cgroup_device(cgroup.dir.as_fd()).unwrap().is_empty());
        assert!(cgroup.can_open_zero());

        let deny = load_cgroup_device(&always(0), "vessel deny").unwrap();
        attach_cgroup_device(cgroup.dir.as_fd(), deny.as_fd()).unwrap();
        let ids = query_cgroup_device(cgroup.dir.as_fd()).unwrap();
        assert_eq!(ids.len(), 1);
        assert!(!cgroup.can_open_zero());

        let allow = load_cgroup_device(&always(1), "vessel_allow").unwrap();
        let old = program_by_id(ids[0]).unwrap();
        replace_cgroup_device(cgroup.dir.as_fd(), allow.as_fd(), old.as_fd()).unwrap();
        let replaced = query_cgroup_device(cgroup.dir.as_fd()).unwrap();
        assert_eq!(replaced.len(), 1);
        assert_ne!(replaced, ids);
        assert!(cgroup.can_open_zero());

        attach_cgroup_device(cgroup.dir.as_fd(), deny.as_fd()).unwrap();
        assert_eq!(query_cgroup_device(cgroup.dir.as_fd()).unwrap().len(), 2);
        assert!(!cgroup.can_open_zero(), "one program that denies is enough");

        detach_cgroup_device(cgroup.dir.as_fd(), deny.as_fd()).unwrap();
        detach_cgroup_device(cgroup.dir.as_fd(), allow.as_fd()).unwrap();
        assert!(query_cgroup_device(cgroup.dir.as_fd()).unwrap().is_empty());
        assert!(cgroup.can_open_zero());
    }

    #[test]
    fn a_bad_program_is_explained() {
        // Exits without a verdict in r0.
        let error = load_cgroup_device(&[Insn::new(EXIT, 0, 0, 0, 0)], "bad").unwrap_err();
        assert_eq!(error.errno, Errno::ACCESS);
        assert!(error.log.contains("R0"), "{}", error.log);
        assert!(error.to_string().contains("R0"));
    }

    #[test]
    fn an_empty_program_is_refused() {
        assert_eq!(load_cgroup_device(&[], "empty").unwrap_err().errno, Errno::TOOBIG);
    }
}
