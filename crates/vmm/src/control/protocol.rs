//! The messages.

use serde::{Deserialize, Serialize};

use crate::devices::virtio::MetricsSnapshot;

/// Of this protocol.
pub const VERSION: u32 = 1;

/// What can be asked of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Request {
    /// Make the stream socket that comes along a connection to the guest's vsock port. Answered when the guest has accepted or refused; a guest whose driver is not
    /// there yet is waited for.
    Connect {
        /// The guest's port.
        port: u32,
    },
    /// Stop vCPUs and devices.
    Pause,
    /// Go on.
    Resume,
    /// Ask the guest to give up this much memory, in all.
    Balloon {
        /// Bytes; what is beyond whole pages does not count.
        bytes: u64,
    },
    /// What the machine has done so far.
    Stats,
    /// Press the power button.
    PowerButton,
    /// End the machine at once.
    Quit,
}

/// What is answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// To [`Request::Stats`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
}

/// Figures of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Devices by slot: what they have done.
    pub devices: Vec<(u8, DeviceStats)>,
    /// What the balloon knows of the guest's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonStats>,
}

/// A device's counters, as [`MetricsSnapshot`] has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStats {
    /// The driver rang.
    pub notifications: u64,
    /// The driver was interrupted.
    pub interrupts: u64,
    /// Requests, packets or messages.
    pub requests: u64,
    /// Bytes the guest got.
    pub read: u64,
    /// Bytes the guest gave.
    pub written: u64,
    /// Requests that failed.
    pub errors: u64,
}

impl From<MetricsSnapshot> for DeviceStats {
    fn from(from: MetricsSnapshot) -> Self {
        Self {
            notifications: from.notifications,
            interrupts: from.interrupts,
            requests: from.requests,
            read: from.read,
            written: from.written,
            errors: from.errors,
        }
    }
}

/// The guest's memory as its balloon driver sees it: bytes and counts, `None` where the driver does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BalloonStats {
    /// Bytes the guest has given up.
    pub inflated: u64,
    /// Bytes swapped in.
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that needed a disk.
    pub major_faults: Option<u64>,
    /// Those that did not.
    pub minor_faults: Option<u64>,
    /// Bytes nobody uses.
    pub free: Option<u64>,
    /// Bytes in all.
    pub total: Option<u64>,
    /// Bytes that could be had without swapping.
    pub available: Option<u64>,
    /// Bytes of file caches.
    pub caches: Option<u64>,
}

/// A request as it is sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Numbered {
    pub id: u64,
    #[serde(flatten)]
    pub request: Request,
}

/// An answer as it is sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Of the request.
    pub id: u64,
    /// It was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<Answer>,
    /// It was not, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Reply {
    /// As a result.
    pub fn into_result(self) -> Result<Answer, String> {
        match (self.ok, self.error) {
            (Some(answer), None) => Ok(answer),
            (_, Some(error)) => Err(error),
            (None, None) => Err("the machine's process gave an empty answer".to_owned()),
        }
    }
}

/// How a machine has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The guest has powered off.
    PowerOff,
    /// The guest has reset the machine.
    Reset,
    /// It was asked for.
    Asked,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The machine is built and runs.
    Ready {
        /// [`VERSION`].
        version: u32,
        /// The accelerator.
        #[serde(default)]
        accelerator: String,
    },
    /// The guest has called a port of the host; the stream comes along.
    Accepted {
        /// The host's port.
        port: u32,
        /// The guest's.
        guest_port: u32,
    },
    /// The machine has ended; so does its process.
    Ended {
        /// Why.
        how: Ended,
    },
    /// The machine could not be built or cannot go on, in a sentence; its process ends.
    Failed {
        /// Why.
        message: String,
    },
}

/// What comes from a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FromMachine {
    /// Something has happened.
    Event(Event),
    /// A request is answered.
    Reply(Reply),
}
