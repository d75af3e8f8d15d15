//! The control queue (virtio 1.2, 5.1.6.5): the card's address, how many pairs of queues are used, what is received.

use std::io;
use std::sync::{Arc, Mutex};

use super::{MacAddress, Shared, Tap};
use crate::devices::virtio::{Buffers, QueueError, QueueHandle};
use crate::sync::lock;

const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_MQ: u8 = 4;
/// The last command of [`CLASS_RX`].
const RX_NO_BROADCAST: u8 = 5;
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDRESS_SET: u8 = 1;
const MQ_PAIRS_SET: u8 = 0;

const OK: u8 = 0;
const ERROR: u8 = 1;

/// The queue at work.
pub(super) struct ControlQueue {
    queue: QueueHandle,
    taps: Vec<Arc<Tap>>,
    shared: Arc<Mutex<Shared>>,
}

impl ControlQueue {
    pub(super) fn new(queue: QueueHandle, taps: Vec<Arc<Tap>>, shared: Arc<Mutex<Shared>>) -> Self {
        Self { queue, taps, shared }
    }

    pub(super) fn index(&self) -> usize {
        self.queue.index()
    }

    /// Answers all commands that wait.
    pub(super) fn serve(&self) -> Result<(), QueueError> {
        self.queue.for_each(|mut chain| {
            let answer = self.command(&mut chain.readable).unwrap_or(ERROR);
            // The answer is the last byte there is.
            let answered = chain
                .writable
                .split_back(1)
                .map(|mut status| status.write(&[answer]));
            Ok(Some((chain, u32::from(answered.is_some()))))
        })
    }

    /// `None`: the command is too short.
    fn command(&self, request: &mut Buffers) -> Option<u8> {
        let class: u8 = request.read_obj()?;
        let command: u8 = request.read_obj()?;
        Some(match (class, command) {
            // Everything is delivered anyway: the guest has what it wants, and perhaps more.
            (CLASS_RX, 0..=RX_NO_BROADCAST) | (CLASS_MAC, MAC_TABLE_SET) => OK,
            (CLASS_MAC, MAC_ADDRESS_SET) => {
                let address: [u8; 6] = request.read_obj()?;
                lock(&self.shared).mac = MacAddress(address);
                OK
            }
            (CLASS_MQ, MQ_PAIRS_SET) => {
                let pairs: u16 = request.read_obj()?;
                self.use_pairs(u16::from_le(pairs))
            }
            _ => ERROR,
        })
    }

    fn use_pairs(&self, pairs: u16) -> u8 {
        if pairs == 0 || usize::from(pairs) > self.taps.len() {
            return ERROR;
        }
        match attach(&self.taps, pairs) {
            Ok(()) => {
                lock(&self.shared).pairs = pairs;
                OK
            }
            Err(error) => {
                tracing::warn!(%error, pairs, "the network card cannot use so many queues");
                ERROR
            }
        }
    }
}

/// Has the kernel use the first `pairs` queues of a TAP: packets in the others would be read by nobody.
pub(super) fn attach(taps: &[Arc<Tap>], pairs: u16) -> io::Result<()> {
    if taps.len() == 1 {
        return Ok(());
    }
    for (index, tap) in taps.iter().enumerate() {
        tap.attach(index < usize::from(pairs))?;
    }
    Ok(())
}
