//! Vessel's extensions to the API.

use serde::{Deserialize, Serialize};

/// The value of `HostConfig.Isolation` that asks for a virtual machine.
pub const ISOLATION_VM: &str = "vm";

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
