//! virtio-blk (virtio 1.2, 5.2): disks.
//!
//! Reads, writes, flush, discard, write zeroes and the serial number. What a driver wrote is on the disk's file when a flush has come back; a
//! driver that has not taken `VIRTIO_BLK_F_FLUSH` has every write there. Requests of one queue are done one after the other, or with
//! io_uring at once ([`Engine`]); each queue has a thread.

mod disk;
pub mod qcow2;
mod request;
mod uring;
mod worker;

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use disk::{Disk, RawDisk};

use super::rate::RateLimits;
use super::{DeviceKind, Start, VirtioDevice, WorkerThread, read_from};
use worker::BlockWorker;

/// The unit of everything in virtio-blk.
const SECTOR: u64 = 512;
const KIND: DeviceKind = DeviceKind {
    id: 2,
    name: "block",
    class: 0x01_8000,
};

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const QUEUE_SIZE: u16 = 256;
/// Queues a disk can have.
pub const QUEUES_MAX: u16 = 64;
/// Buffers of a request beside its header and its status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Pieces one discard or write of zeroes can be about.
const RANGES_MAX: u32 = 32;
/// Sectors each of them can have: 1 GiB.
const RANGE_SECTORS_MAX: u32 = 1 << 21;
/// Bytes of a serial number.
const SERIAL_MAX: usize = 20;

/// How requests are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// With io_uring where the host has it and the disk is raw, else [`Engine::Plain`].
    #[default]
    Auto,
    /// One after the other.
    Plain,
}

/// What a disk is like.
#[derive(Clone, Debug, Default)]
pub struct BlockOptions {
    /// The guest cannot write.
    pub read_only: bool,
    /// Its serial number: up to 20 bytes.
    pub serial: String,
    /// Queues: 1 if zero.
    pub queues: u16,
    /// How requests are done.
    pub engine: Engine,
    /// Limits; each queue has its share.
    pub limits: RateLimits,
}

/// The device.
pub struct Block {
    disk: Arc<dyn Disk>,
    options: BlockOptions,
}

impl Block {
    /// A disk. Its size is a whole number of sectors; what is beyond is not seen by the guest.
    pub fn new(disk: Arc<dyn Disk>, options: BlockOptions) -> io::Result<Self> {
        if options.serial.len() > SERIAL_MAX || options.queues > QUEUES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a disk has a serial number of up to {SERIAL_MAX} bytes and up to {QUEUES_MAX} queues"
                ),
            ));
        }
        Ok(Self { disk, options })
    }

    fn queue_count(&self) -> u16 {
        self.options.queues.max(1)
    }

    /// The configuration space (5.2.4).
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.disk.size() / SECTOR).to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &512_u32.to_le_bytes());
        // Physical blocks of 4 KiB (2^3 sectors) begin with the disk; the best length of an access is one of them at least.
        put(24, &[3, 0]);
        put(26, &8_u16.to_le_bytes());
        put(34, &self.queue_count().to_le_bytes());
        put(36, &RANGE_SECTORS_MAX.to_le_bytes());
        put(40, &RANGES_MAX.to_le_bytes());
        // Discards of whole file-system blocks free something.
        put(44, &8_u32.to_le_bytes());
        put(48, &RANGE_SECTORS_MAX.to_le_bytes());
        put(52, &RANGES_MAX.to_le_bytes());
        put(56, &[1]);
        config
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        let common = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_MQ;
        common
            | if self.options.read_only {
                F_RO
            } else {
                F_DISCARD | F_WRITE_ZEROES
            }
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queue_count().into()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config(), offset, data);
    }

    fn start(&mut self, start: Start) -> io::Result<Vec<WorkerThread>> {
        let access = request::Access {
            read_only: self.options.read_only,
            sectors: self.disk.size() / SECTOR,
        };
        let limits = self.options.limits.share(self.queue_count().into());
        let writes_through = !start.has(F_FLUSH);
        let mut threads = Vec::new();
        for queue in start.queues {
            let worker = BlockWorker::new(
                queue.clone(),
                self.disk.clone(),
                access,
                &self.options,
                limits,
                writes_through,
                start.metrics.clone(),
            )?;
            threads.push(WorkerThread {
                queues: vec![queue],
                worker: Box::new(worker),
            });
        }
        Ok(threads)
    }
}

#[cfg(test)]
mod tests;
