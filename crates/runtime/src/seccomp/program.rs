//! A compiled filter: it can be kept, handed to another process, and installed.

use std::fmt;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::profile::{Flag, Seccomp};
use crate::sys::seccomp::{Insn, MAX_INSNS, flags, set_filter};
use crate::{Error, ErrorKind, Result};

/// A filter, ready for the kernel.
///
/// Compiling takes a fraction of a millisecond and depends only on the profile, so the same program can serve every
/// container with that profile and capability set: keep it, or send it as [bytes](Self::to_bytes).
#[derive(Clone, PartialEq, Eq)]
pub struct Program {
    pub(super) insns: Vec<Insn>,
    /// Flags of `seccomp(2)`.
    pub(super) flags: u32,
    /// `SPEC_ALLOW` is wanted, but not insisted on.
    pub(super) prefer_spec_allow: bool,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Program({} instructions, flags {:#x})",
            self.insns.len(),
            self.flags
        )
    }
}

/// What [`Program::to_bytes`] begins with: a name and a version.
const MAGIC: [u8; 4] = *b"VSF1";
/// The magic, the flags, the preference, and the number of instructions.
const HEADER: usize = 16;
const INSN: usize = 8;
const KNOWN_FLAGS: u32 = flags::TSYNC
    | flags::TSYNC_ESRCH
    | flags::LOG
    | flags::SPEC_ALLOW
    | flags::NEW_LISTENER
    | flags::WAIT_KILLABLE_RECV;

impl Program {
    pub(super) fn new(profile: &Seccomp, insns: Vec<Insn>) -> Self {
        let mut bits = 0;
        for flag in profile.flags.iter().flatten() {
            bits |= match flag {
                Flag::Tsync => flags::TSYNC,
                Flag::Log => flags::LOG,
                Flag::SpecAllow => flags::SPEC_ALLOW,
                Flag::WaitKillableRecv => flags::WAIT_KILLABLE_RECV,
            };
        }
        let notify = insns
            .iter()
            .any(|insn| insn.code == super::codegen::RET_K && insn.k == libc::SECCOMP_RET_USER_NOTIF);
        if notify {
            bits |= flags::NEW_LISTENER;
            if bits & flags::TSYNC != 0 {
                bits |= flags::TSYNC_ESRCH;
            }
        } else {
            // The kernel takes it only together with a listener.
            bits &= !flags::WAIT_KILLABLE_RECV;
        }
        Self {
            insns,
            flags: bits,
            prefer_spec_allow: profile.flags.is_none(),
        }
    }

    /// Whether installing it gives a listener that has to be sent to an agent.
    pub fn notifies(&self) -> bool {
        self.flags & flags::NEW_LISTENER != 0
    }

    /// How many instructions it has.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        self.insns.len()
    }

    /// Installs it in this thread, for good; programs executed from here on have it too.
    ///
    /// Needs `no_new_privs`, or `CAP_SYS_ADMIN` in this thread's user namespace: without `no_new_privs`, install it
    /// before capabilities are dropped. Allocates nothing and opens nothing, apart from the listener returned when
    /// the profile [notifies](Self::notifies).
    ///
    /// # Errors
    /// Says which of the kernel's conditions is not met.
    pub fn install(&self) -> Result<Option<OwnedFd>> {
        let result = if self.prefer_spec_allow {
            match set_filter(&self.insns, self.flags | flags::SPEC_ALLOW) {
                Err(Errno::INVAL) => set_filter(&self.insns, self.flags),
                result => result,
            }
        } else {
            set_filter(&self.insns, self.flags)
        };
        result.map_err(|errno| {
            let (kind, why) = match errno {
                Errno::ACCESS => (
                    ErrorKind::Permission,
                    "it takes no_new_privs or CAP_SYS_ADMIN in the container's user namespace",
                ),
                Errno::INVAL => (
                    ErrorKind::Unsupported,
                    "this kernel lacks seccomp filters, or an action or flag of the profile",
                ),
                Errno::NOSYS => (ErrorKind::Unsupported, "this kernel lacks seccomp"),
                Errno::BUSY => (
                    ErrorKind::Conflict,
                    "another filter of this process already notifies an agent",
                ),
                Errno::NOMEM => (
                    ErrorKind::System,
                    "there is no memory, or there are too many filters already",
                ),
                _ => (ErrorKind::System, "the kernel refused it"),
            };
            Error::with_source(
                kind,
                format!("install the seccomp filter: {why}"),
                std::io::Error::from(errno),
            )
        })
    }

    /// A form that can be stored or sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + INSN * self.insns.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.flags.to_le_bytes());
        bytes.extend_from_slice(&u32::from(self.prefer_spec_allow).to_le_bytes());
        bytes.extend_from_slice(&(self.insns.len() as u32).to_le_bytes());
        for insn in &self.insns {
            bytes.extend_from_slice(&insn.code.to_le_bytes());
            bytes.extend_from_slice(&[insn.jt, insn.jf]);
            bytes.extend_from_slice(&insn.k.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote. Nothing is believed: sizes and flags are checked here, the instructions
    /// by the kernel when they are installed.
    ///
    /// # Errors
    /// When the bytes are not a program of this version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let invalid = |what: &str| Error::invalid(format!("read a compiled seccomp filter: {what}"));
        let Some((header, code)) = bytes.split_at_checked(HEADER) else {
            return Err(invalid("it is cut short"));
        };
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if header[..4] != MAGIC {
            return Err(invalid("it is not one, or of another version"));
        }
        let (flags, prefer, count) = (word(4), word(8), word(12));
        if flags & !KNOWN_FLAGS != 0 || prefer > 1 {
            return Err(invalid("it has flags this version does not know"));
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count == 0 || count > MAX_INSNS || code.len() != count * INSN {
            return Err(invalid("its length is wrong"));
        }
        let insns = code
            .chunks_exact(INSN)
            .map(|at| Insn {
                code: u16::from_le_bytes([at[0], at[1]]),
                jt: at[2],
                jf: at[3],
                k: u32::from_le_bytes([at[4], at[5], at[6], at[7]]),
            })
            .collect();
        Ok(Self {
            insns,
            flags,
            prefer_spec_allow: prefer == 1,
        })
    }
}
