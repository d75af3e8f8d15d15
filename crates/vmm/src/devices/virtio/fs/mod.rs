//! virtio-fs (virtio 1.2, section 5.11): directories of the host as file systems of the guest.
//!
//! [`Server`] speaks FUSE for one directory and knows nothing of queues. [`VirtioFs`] is the device with the server in the same process; with
//! [`RemoteFs`] the server is in another process ([`serve`]), which has the rights over files that the machine's process has not.

mod abi;
mod device;
mod remote;
mod server;

use serde::{Deserialize, Serialize};

pub use device::{TAG_MAX, VirtioFs};
pub use remote::{RemoteFs, SharedMemory, channel, serve};
pub use server::{Descriptors, Server, Worker};

/// Who else changes a shared directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// Nobody: the guest may remember names, attributes and pages for as long as it likes, and write back late.
    Exclusive,
    /// Others, too: what the guest remembers holds for a second, files are compared when they are opened, and what is written goes to the
    /// host at once.
    #[default]
    Shared,
}

/// How a directory is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The guest cannot change anything.
    pub read_only: bool,
    /// What the guest may remember.
    pub sharing: Sharing,
    /// The guest may make device files. They are the host's devices to whoever reaches them on the host.
    pub devices: bool,
    /// Inodes the guest may know at a time. A Linux guest needs more than a kilobyte for each, so its memory divided by 1024 is enough for any.
    pub inodes: usize,
    /// Descriptors kept for them; beyond it those used least recently are closed, and opened again when needed.
    pub descriptors: usize,
    /// Files and directories the guest may have open at a time.
    pub handles: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            read_only: false,
            sharing: Sharing::Shared,
            devices: false,
            inodes: 1 << 20,
            descriptors: 4096,
            handles: 1 << 16,
        }
    }
}
