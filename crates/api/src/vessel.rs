//! Vessel's extensions to the API.

/// The value of `HostConfig.Isolation` that asks for a virtual machine.
pub const ISOLATION_VM: &str = "vm";
