//! The OCI runtime and the shim.
//!
//! A `config.json` ([`spec::Spec`]) becomes an isolated process: namespaces, cgroups (v1, hybrid and v2), a root made
//! of detached mounts, devices, masks, capabilities, seccomp. [`shim`] is the small process that stays with a
//! container, holds its standard streams, writes its log and records its exit status, and so outlives the daemon.
//! [`oci`] is the life cycle behind the OCI command line (`create`, `start`, `state`, `kill`, `delete`, ...).
//!
//! The crate knows nothing of images or of networks by name: it is handed paths and descriptors.

pub mod capabilities;
pub mod cgroup;
pub mod error;
pub mod oci;
pub mod process;
pub mod rlimits;
pub mod rootfs;
pub mod seccomp;
pub mod shim;
pub mod spec;
pub mod sys;

pub use error::{Error, ErrorKind, Result};
