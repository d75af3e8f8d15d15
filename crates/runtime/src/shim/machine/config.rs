//! What the daemon says of a machine.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The machine that a container's processes run in. Its kernel and its devices come as descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// The kernel's command line.
    pub command_line: String,
    /// What executes instructions: `kvm`, `soft` or `auto`.
    pub accelerator: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Virtual processors.
    pub vcpus: u8,
    /// Its interfaces; `fds.taps` has their devices.
    pub interfaces: Vec<Interface>,
    /// Whether there is a DNS server at 127.0.0.11 in the network namespace, which the machine is to reach at the same address.
    pub names: bool,
}

/// An interface of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// What it is called inside.
    pub name: String,
    /// Its hardware address, by which it is found inside.
    pub mac: [u8; 6],
    /// The longest packet.
    pub mtu: u32,
    /// Its addresses and the lengths of their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Where default routes go by it, one for each family at most.
    pub gateways: Vec<IpAddr>,
}
