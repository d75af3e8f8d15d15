//! A machine's configuration: JSON. Files, sockets and devices of the host are numbers of inherited descriptors; the machine opens nothing itself.

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::Error;
use crate::devices::virtio::block::Engine;
use crate::devices::virtio::rate::RateLimits;
use crate::pci::DEVICE_SLOTS;

/// A machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Bytes of memory.
    pub memory: u64,
    /// vCPUs: 1 to 255.
    pub vcpus: u8,
    /// The kernel: a bzImage or an ELF file.
    pub kernel: Descriptor,
    /// Its initial file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<Descriptor>,
    /// Its command line.
    #[serde(default)]
    pub command_line: String,
    /// Where the serial line leads; nowhere by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<SerialConfig>,
    /// Devices can come and go while it runs. It costs the guest some time when it starts.
    #[serde(default)]
    pub hotplug: bool,
    /// Devices, in the order of their slots.
    #[serde(default)]
    pub devices: Vec<DeviceConfig>,
}

impl Config {
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.vcpus == 0 {
            return Err(Error::Config("it has no vCPU; 1 to 255 are possible".to_owned()));
        }
        if self.devices.len() > DEVICE_SLOTS.len() {
            return Err(Error::Config(format!(
                "it has {} devices, and there are {} slots",
                self.devices.len(),
                DEVICE_SLOTS.len()
            )));
        }
        Ok(())
    }
}

/// The number of a descriptor this process has inherited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Descriptor(pub i32);

impl Descriptor {
    /// A descriptor of the caller's own: the number stays as it is.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        super::duplicate(self.0)
    }
}

/// Where a serial line leads.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialConfig {
    /// What the guest reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Descriptor>,
    /// What the guest writes.
    pub output: Descriptor,
}

/// A device.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum DeviceConfig {
    /// A disk.
    Block(BlockConfig),
    /// Random numbers.
    Rng,
    /// A console beside the serial line.
    Console(ConsoleConfig),
    /// A network card.
    Net(NetConfig),
}

impl DeviceConfig {
    /// What its threads and messages are called, with a number.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Block(_) => "block",
            Self::Rng => "rng",
            Self::Console(_) => "console",
            Self::Net(_) => "net",
        }
    }
}

/// What a disk's file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes. Never guessed: a guest can write anything at the start of its disk.
    #[default]
    Raw,
    /// A qcow2 image.
    Qcow2,
}

/// An image below another. It is only read.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackingConfig {
    /// A file or a block device.
    pub file: Descriptor,
    /// What it holds.
    #[serde(default)]
    pub format: DiskFormat,
}

/// A disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockConfig {
    /// A file or a block device.
    pub file: Descriptor,
    /// What it holds.
    #[serde(default)]
    pub format: DiskFormat,
    /// The images it lies on, the next one first. What an image itself says of them is not believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backing: Vec<BackingConfig>,
    /// The guest cannot write.
    #[serde(default)]
    pub read_only: bool,
    /// Its serial number: up to 20 bytes.
    #[serde(default)]
    pub serial: String,
    /// Queues: one for each vCPU at most makes sense. 1 by default.
    #[serde(default)]
    pub queues: u16,
    /// How requests are done.
    #[serde(default)]
    pub engine: Engine,
    /// Limits.
    #[serde(default)]
    pub limits: RateLimits,
}

/// A console.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// What the guest reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Descriptor>,
    /// What the guest writes.
    pub output: Descriptor,
}

/// A network card.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// A TAP device's queues, opened with `IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR` and, if there are several, `IFF_MULTI_QUEUE`: one for each pair of
    /// queues the guest has.
    pub taps: Vec<Descriptor>,
    /// The card's address: `52:54:00:12:34:56`.
    pub mac: String,
    /// The largest payload of a packet; 0: the guest decides.
    #[serde(default)]
    pub mtu: u16,
    /// Limits of what the guest receives.
    #[serde(default)]
    pub receive_limits: RateLimits,
    /// Limits of what it sends.
    #[serde(default)]
    pub send_limits: RateLimits,
}
