//! Why a kernel cannot be booted.

use std::io;

/// The result of everything in [`crate::boot`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is neither an ELF nor a bzImage.
    #[error("the kernel is neither an x86-64 ELF file nor a bzImage: use a vmlinuz or a vmlinux")]
    NotAKernel,
    /// It is one, and damaged.
    #[error("the kernel is damaged: {0}")]
    Damaged(&'static str),
    /// It cannot be entered in a way this machine knows.
    #[error("the kernel cannot be booted here: {0}")]
    Unsupported(&'static str),
    /// Its compression is none we know, and it has no 64-bit entry of its own.
    #[error("the kernel's payload cannot be unpacked: {0}")]
    Payload(String),
    /// The machine is too small.
    #[error(
        "the machine's {memory} MiB of memory are too little: {what} ends at {end:#x}; give it more memory"
    )]
    TooSmall {
        /// What does not fit.
        what: &'static str,
        /// Where it would end.
        end: u64,
        /// The machine's memory.
        memory: u64,
    },
    /// The command line is too long or has bytes it cannot have.
    #[error("the kernel's command line has {0}: kernels take up to 2047 bytes without zeroes")]
    CommandLine(String),
    /// A file cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// The kernel or the initramfs.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Guest memory is not where it must be.
    #[error("cannot write the boot structures into the guest's memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The tables do not fit.
    #[error("the ACPI tables of this machine take {0} bytes, and there is room for 128 KiB")]
    Acpi(usize),
}
