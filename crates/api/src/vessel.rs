//! Vessel's extensions to the API.

use serde::{Deserialize, Serialize};

/// The value of `HostConfig.Isolation` that asks for a virtual machine.
pub const ISOLATION_VM: &str = "vm";

/// The value of `HostConfig.Runtime` that asks for the same.
pub const RUNTIME_VM: &str = "vessel-vm";

/// The annotation (`HostConfig.Annotations`) that says what executes a virtual machine's instructions: `kvm`, `soft` or `auto`.
/// An annotation, so that every client can set it that knows nothing of it.
pub const ACCELERATOR: &str = "vessel.vm.accel";

/// The annotation with the name of the kernel that a virtual machine runs; without it the default one.
pub const KERNEL: &str = "vessel.vm.kernel";

/// Something below the engine's root, in `GET /system/df?vessel=1`. Together the items are every byte there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DiskItem {
    /// Where.
    pub path: String,
    /// Bytes on disk.
    pub size: u64,
    /// What it is.
    pub purpose: String,
    /// Whether a record explains it. What none explains can be removed.
    pub known: bool,
}
