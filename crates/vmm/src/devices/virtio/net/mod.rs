//! virtio-net (virtio 1.2, 5.1): a network card whose wire is a TAP device.
//!
//! Checksums and segmentation are the other end's where it can: packets of up to 64 KiB go between guest and TAP whole, with virtio-net's header,
//! which is the TAP's, too. Received packets lie in as many buffers as they need (`VIRTIO_NET_F_MRG_RXBUF`). Several pairs of queues
//! are several queues of the TAP, each pair with a thread of its own.
//!
//! Everything the network sends is delivered; what is not for this card the guest's kernel drops, as behind any switch that floods.

mod control;
mod receive;
mod tap;
mod worker;

use std::io;
use std::sync::{Arc, Mutex};

pub use tap::Tap;

use super::rate::RateLimits;
use super::{DeviceKind, Interrupt, Start, VirtioDevice, WorkerThread, read_from};
use crate::sync::lock;
use worker::PairWorker;

const KIND: DeviceKind = DeviceKind {
    id: 1,
    name: "net",
    class: 0x02_0000,
};

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_CTRL_RX: u64 = 1 << 18;
const F_MQ: u64 = 1 << 22;
const F_CTRL_MAC_ADDR: u64 = 1 << 23;

const STATUS_LINK_UP: u16 = 1;

const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 64;
/// Pairs of queues a card can have.
pub const PAIRS_MAX: usize = 32;
/// `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
/// The largest packet with its header: 64 KiB of IP, Ethernet's header with a VLAN's, ours.
const PACKET_MAX: usize = 65_535 + 18 + HEADER;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl std::str::FromStr for MacAddress {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let wrong = || {
            let message = format!(
                "\"{text}\" is no address of a network card: it is six bytes as in 52:54:00:12:34:56"
            );
            io::Error::new(io::ErrorKind::InvalidInput, message)
        };
        let mut address = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut address {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        // The lowest bit of the first byte is a group's.
        if parts.next().is_some() || address[0] & 1 != 0 || address == [0; 6] {
            return Err(wrong());
        }
        Ok(Self(address))
    }
}

/// What a card is like.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// Its address.
    pub mac: MacAddress,
    /// The largest payload of a packet; 0: the guest decides.
    pub mtu: u16,
    /// Limits of what the guest receives; each pair of queues has its share.
    pub receive_limits: RateLimits,
    /// Limits of what it sends.
    pub send_limits: RateLimits,
}

/// What the control queue changes.
#[derive(Debug)]
struct Shared {
    mac: MacAddress,
    link_up: bool,
    /// Pairs the driver uses.
    pairs: u16,
    running: bool,
}

/// What a card's owner can do while the machine runs.
#[derive(Clone)]
pub struct NetControl {
    shared: Arc<Mutex<Shared>>,
    interrupt: Arc<Mutex<Option<Interrupt>>>,
}

impl NetControl {
    /// Plugs the cable in or out, as the guest sees it.
    pub fn set_link(&self, up: bool) {
        lock(&self.shared).link_up = up;
        let interrupt = lock(&self.interrupt).clone();
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }
}

/// The device.
pub struct Net {
    taps: Vec<Arc<Tap>>,
    options: NetOptions,
    control: NetControl,
}

impl Net {
    /// A card on a TAP's queues: as many pairs as there are.
    pub fn new(taps: Vec<Tap>, options: NetOptions) -> io::Result<Self> {
        if taps.is_empty() || taps.len() > PAIRS_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a network card has 1 to {PAIRS_MAX} TAP queues, not {}",
                    taps.len()
                ),
            ));
        }
        let shared = Shared {
            mac: options.mac,
            link_up: true,
            pairs: 1,
            running: false,
        };
        Ok(Self {
            taps: taps.into_iter().map(Arc::new).collect(),
            options,
            control: NetControl {
                shared: Arc::new(Mutex::new(shared)),
                interrupt: Arc::default(),
            },
        })
    }

    /// For its owner.
    pub fn control(&self) -> NetControl {
        self.control.clone()
    }

    fn pairs(&self) -> u16 {
        // At most 32.
        u16::try_from(self.taps.len()).unwrap_or(1)
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        let offloads = F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_HOST_TSO4 | F_HOST_TSO6;
        let always = offloads | F_MAC | F_MRG_RXBUF | F_STATUS | F_CTRL_VQ | F_CTRL_RX | F_CTRL_MAC_ADDR;
        let mtu = if self.options.mtu == 0 { 0 } else { F_MTU };
        let pairs = if self.taps.len() > 1 { F_MQ } else { 0 };
        always | mtu | pairs
    }

    /// What depends on another feature is not taken without it (5.1.3.1).
    fn accepts(&self, features: u64) -> bool {
        let needs = |feature: u64, other: u64| features & feature == 0 || features & other != 0;
        needs(F_GUEST_TSO4 | F_GUEST_TSO6, F_GUEST_CSUM)
            && needs(F_HOST_TSO4 | F_HOST_TSO6, F_CSUM)
            && needs(F_CTRL_RX | F_CTRL_MAC_ADDR | F_MQ, F_CTRL_VQ)
    }

    fn queues(&self) -> Vec<u16> {
        let mut queues = vec![QUEUE_SIZE; 2 * self.taps.len()];
        queues.push(CONTROL_QUEUE_SIZE);
        queues
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let shared = lock(&self.control.shared);
        let mut config = [0; 12];
        config[..6].copy_from_slice(&shared.mac.0);
        let status = if shared.link_up { STATUS_LINK_UP } else { 0 };
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&self.pairs().to_le_bytes());
        config[10..12].copy_from_slice(&self.options.mtu.to_le_bytes());
        read_from(&config, offset, data);
    }

    fn start(&mut self, start: Start) -> io::Result<Vec<WorkerThread>> {
        *lock(&self.control.interrupt) = Some(start.interrupt.clone());
        for tap in &self.taps {
            tap.set_offloads(
                start.has(F_GUEST_CSUM),
                start.has(F_GUEST_TSO4),
                start.has(F_GUEST_TSO6),
            )?;
        }
        let used = {
            let mut shared = lock(&self.control.shared);
            shared.running = true;
            shared.pairs
        };
        control::attach(&self.taps, used)?;
        // Without several pairs the control queue is the third, however many the device could have (5.1.2).
        let count = if start.has(F_MQ) { self.taps.len() } else { 1 };
        let mut threads = Vec::new();
        for (pair, tap) in self.taps.iter().enumerate().take(count) {
            let mut queues = vec![start.queues[2 * pair].clone(), start.queues[2 * pair + 1].clone()];
            let control = (pair == 0 && start.has(F_CTRL_VQ)).then(|| {
                let queue = start.queues[2 * count].clone();
                queues.push(queue.clone());
                control::ControlQueue::new(queue, self.taps.clone(), self.control.shared.clone())
            });
            let worker = PairWorker::new(pair, tap.clone(), &start, &self.options, count as u64, control)?;
            threads.push(WorkerThread {
                queues,
                worker: Box::new(worker),
            });
        }
        Ok(threads)
    }

    fn reset(&mut self) {
        let mut shared = lock(&self.control.shared);
        shared.mac = self.options.mac;
        shared.pairs = 1;
        shared.running = false;
        *lock(&self.control.interrupt) = None;
    }

    fn save(&self) -> serde_json::Value {
        let shared = lock(&self.control.shared);
        serde_json::json!({ "mac": shared.mac.0, "pairs": shared.pairs })
    }

    fn restore(&mut self, state: &serde_json::Value) -> io::Result<()> {
        let mac: [u8; 6] = serde_json::from_value(state["mac"].clone())?;
        let pairs: u16 = serde_json::from_value(state["pairs"].clone())?;
        if pairs == 0 || pairs > self.pairs() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the saved network card uses {pairs} pairs of queues, this one has {}",
                    self.pairs()
                ),
            ));
        }
        let mut shared = lock(&self.control.shared);
        shared.mac = MacAddress(mac);
        shared.pairs = pairs;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
