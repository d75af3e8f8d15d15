//! What a machine's process is told: JSON, read from an inherited descriptor.

use serde::{Deserialize, Serialize};

use crate::accel::Choice;
use crate::devices::virtio::fs;
use crate::machine::{self, Descriptor};

/// The longest configuration.
pub const CONFIG_MAX: u64 = 1 << 20;

/// A machine's process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The [control socket](crate::control).
    pub control: Descriptor,
    /// What executes the guest: `auto`, `kvm` or `soft`.
    #[serde(default, with = "choice")]
    pub accelerator: Choice,
    /// The machine.
    pub machine: machine::Config,
    /// Directories of the host that the guest gets.
    #[serde(default)]
    pub directories: Vec<DirectoryConfig>,
    /// Sockets between host and guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// The guest can be asked for memory, and gives back what it does not use.
    #[serde(default)]
    pub balloon: bool,
    /// Build walls around the processes. Without them they can be looked at with the usual tools.
    #[serde(default = "yes")]
    pub jail: bool,
}

fn yes() -> bool {
    true
}

/// A directory of the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryConfig {
    /// What the guest mounts it by: 1 to 36 bytes.
    pub tag: String,
    /// The directory: a number that nothing else in the configuration has. The machine's own process does not keep it.
    pub directory: Descriptor,
    /// How it is shared.
    #[serde(default)]
    pub options: fs::Options,
    /// Queues for requests, and threads that answer them: 1 by default.
    #[serde(default)]
    pub queues: u16,
}

/// Sockets between host and guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context ID: 3 or more. It has no meaning outside this machine.
    #[serde(default = "first_cid")]
    pub cid: u32,
    /// Ports of the host that the guest may call.
    #[serde(default)]
    pub ports: Vec<u32>,
}

fn first_cid() -> u32 {
    3
}

/// The accelerator by its name.
mod choice {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::accel::Choice;

    pub fn serialize<S: Serializer>(choice: &Choice, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(choice)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Choice, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}
