//! Making processes: the first one of a container, and others in it.
//!
//! ```text
//!   parent (shim, `vessel runtime`)              child (the container's process to be)
//!   ───────────────────────────────              ─────────────────────────────────────
//!   cgroup: make, limit
//!   clone3 with the new namespaces        ──►    move into the cgroup, join given namespaces
//!   user namespace: mappings              ──►    become its root
//!                                                root, mounts, devices, masks
//!   terminal, hooks                       ◄──►   terminal, hooks, pivot_root
//!                                                close all descriptors; sysctls
//!                                         ◄──    Ready
//!   (start)                               ──►    limits, seccomp, identity, execve
//! ```
//!
//! The parent is single-threaded, so the child may use all of Rust.

pub mod channel;
mod descriptors;
mod environment;
pub mod exec;
pub mod hooks;
mod identity;
mod idmap;
mod init;
mod namespaces;
pub mod spawn;
pub mod terminal;

use std::os::fd::OwnedFd;

pub(crate) use exec::end;
pub use exec::{ExecPlan, Executed, Starting, begin, exec};
pub(crate) use namespaces::set as set_namespace;
pub use spawn::{Init, Plan, allow_standard_devices, spawn};

/// What a new process's standard streams are.
#[derive(Debug)]
pub enum Stdio {
    /// The parent's own.
    Inherit,
    /// These three.
    Streams {
        /// Standard input.
        input: OwnedFd,
        /// Standard output.
        output: OwnedFd,
        /// Standard error.
        errors: OwnedFd,
    },
    /// A new pseudo terminal, whose other side is handed back.
    Terminal,
}
