//! Which system calls a container may make: profiles, their compiler, and the kernel's filter.
//!
//! - [`profile`]: the OCI form (`linux.seccomp`);
//! - [`docker`]: Docker's form, with conditions on capabilities, architecture and kernel, which resolves to the OCI
//!   form; and [`default_profile`], the profile a container gets unless told otherwise;
//! - [`compile`]: the OCI form to a [`Program`] of classic BPF, which can be kept, sent, and installed;
//! - [`notify`]: the listener of a profile that notifies goes to its agent.
//!
//! See `seccomp(2)` and `Documentation/userspace-api/seccomp_filter.rst`. The meaning of a profile is libseccomp's as
//! runc uses it; `lower.rs` spells it out. Supported machines: x86_64 (with i386 and x32 programs) and aarch64 (with
//! 32-bit ARM programs).

mod arch;
mod codegen;
mod default;
pub mod docker;
#[cfg(test)]
mod interpreter;
#[cfg(test)]
mod kernel_tests;
mod lower;
pub mod notify;
pub mod profile;
mod program;
#[cfg(test)]
mod tests;

pub use arch::Machine;
pub use default::default_profile;
pub use profile::Seccomp;
pub use program::Program;

use crate::{Error, Result};

/// Compiles a profile for this machine.
///
/// # Errors
/// When the profile contradicts itself, or needs more than the 4096 instructions a filter may have.
pub fn compile(profile: &Seccomp) -> Result<Program> {
    compile_for(profile, Machine::NATIVE)
}

fn compile_for(profile: &Seccomp, machine: Machine) -> Result<Program> {
    let sections = lower::lower(profile, machine)?;
    let insns = codegen::generate(&sections)?;
    Ok(Program::new(profile, insns))
}

fn too_long() -> Error {
    Error::invalid(
        "seccomp: the profile needs more than the 4096 instructions that the kernel allows a filter: use fewer \
         conditions on arguments",
    )
}
