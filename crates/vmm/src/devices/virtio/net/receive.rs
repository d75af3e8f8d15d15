//! From the TAP into the guest's buffers, without a copy in between.
//!
//! Buffers are taken from the queue in advance, as many as the largest packet may need, and stay here until packets fill them.

use std::collections::VecDeque;
use std::io;

use super::{HEADER, PACKET_MAX, Tap};
use crate::devices::virtio::{Chain, Metrics, QueueError, QueueHandle};

/// `struct virtio_net_hdr_v1`, `num_buffers`.
const HEADER_BUFFERS: usize = 10;
/// What `readv` takes.
const VECTORS_MAX: usize = 1024;

/// What became of an attempt to receive.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A packet of so many bytes with its header.
    Packet(usize),
    /// The TAP has none.
    Nothing,
    /// The guest has no room for the largest packet.
    NoRoom,
}

/// A queue for received packets.
pub(super) struct ReceiveQueue {
    pub(super) queue: QueueHandle,
    /// A packet may lie in several chains.
    mergeable: bool,
    ready: VecDeque<Chain>,
    capacity: usize,
    /// What a packet may need.
    wanted: usize,
}

impl ReceiveQueue {
    /// `whole_segments`: packets may be as large as TCP makes them.
    pub(super) fn new(queue: QueueHandle, mergeable: bool, whole_segments: bool, mtu: u16) -> Self {
        let frame = usize::from(mtu).max(1500) + 18 + HEADER;
        Self {
            queue,
            mergeable,
            ready: VecDeque::new(),
            capacity: 0,
            wanted: if whole_segments { PACKET_MAX } else { frame },
        }
    }

    /// Takes buffers until they are enough, or no more wait.
    fn refill(&mut self) -> Result<bool, QueueError> {
        if self
            .ready
            .front()
            .is_some_and(|chain| !self.queue.lock().is_current(chain))
        {
            // The queue was reset.
            self.ready.clear();
            self.capacity = 0;
        }
        let enough = |queue: &Self| {
            if queue.mergeable {
                queue.capacity >= queue.wanted
            } else {
                !queue.ready.is_empty()
            }
        };
        while !enough(self) {
            let Some(chain) = self.queue.pop()? else {
                if self.queue.lock().enable_notifications()? {
                    continue;
                }
                return Ok(false);
            };
            if chain.writable.left() < HEADER {
                // Not even the header has room: it goes back empty.
                self.queue.push(chain, 0)?;
                continue;
            }
            self.capacity += chain.writable.left();
            self.ready.push_back(chain);
        }
        self.queue.lock().disable_notifications()?;
        Ok(true)
    }

    /// Receives one packet, if there is one and room for it. The driver is not interrupted yet.
    pub(super) fn receive(&mut self, tap: &Tap, metrics: &Metrics) -> Result<Received, QueueError> {
        if !self.refill()? {
            return Ok(Received::NoRoom);
        }
        let mut vectors = Vec::new();
        for chain in &self.ready {
            vectors.extend(chain.writable.iovecs());
            if !self.mergeable || vectors.len() >= VECTORS_MAX {
                break;
            }
        }
        vectors.truncate(VECTORS_MAX);
        let length = match tap.read(&vectors) {
            Ok(length) => length,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return Ok(Received::Nothing);
            }
            // The interface is down, or gone.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EBADFD)) => {
                return Ok(Received::Nothing);
            }
            Err(error) => return Err(error.into()),
        };
        self.give(length)?;
        metrics.read(length.saturating_sub(HEADER) as u64);
        Ok(Received::Packet(length))
    }

    /// Gives the buffers a packet lies in back to the driver.
    fn give(&mut self, length: usize) -> Result<(), QueueError> {
        let mut used = Vec::new();
        let mut left = length;
        while left > 0
            && let Some(chain) = self.ready.pop_front()
        {
            let here = left.min(chain.writable.left());
            self.capacity -= chain.writable.left();
            left -= here;
            // A packet has less than 4 GiB.
            #[expect(clippy::cast_possible_truncation)]
            used.push((chain, here as u32));
        }
        let count = u16::try_from(used.len()).unwrap_or(u16::MAX);
        if let Some((first, _)) = used.first_mut() {
            first.writable.skip(HEADER_BUFFERS);
            first.writable.write(&count.to_le_bytes());
        }
        self.queue.lock().push_all(used)
    }

    /// Puts buffers that were taken in advance back.
    pub(super) fn release(&mut self) {
        let mut queue = self.queue.lock();
        while let Some(chain) = self.ready.pop_back() {
            queue.undo(chain);
        }
        self.capacity = 0;
    }
}
