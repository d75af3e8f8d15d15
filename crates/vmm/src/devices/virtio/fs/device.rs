//! The device above the server: a tag and queues.
//!
//! Queue 0 is for what must not wait (FORGET), the others for requests; each request queue has a thread, the first of which has queue 0, too. Every
//! answer is given back when it is there, so that one slow disk access holds up only its own queue's next requests.
//!
//! A snapshot cannot keep what a guest has open on the host: machines with shared directories are paused, not moved.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::super::{
    DeviceKind, Metrics, Poller, QueueError, QueueHandle, Start, VirtioDevice, Worker as QueueWorker,
    WorkerThread, read_from,
};
use super::{Descriptors, Options, Server, Worker};

/// The longest tag (5.11.4).
pub const TAG_MAX: usize = 36;

/// As long as a queue can be: a Linux guest makes its largest requests as long as the queue has room for.
pub(super) const QUEUE_SIZE: u16 = 1024;

/// Request queues are for vCPUs: more than this only cost threads.
pub(super) const REQUEST_QUEUES_MAX: u16 = 64;

/// One shared directory as a device.
pub struct VirtioFs {
    config: [u8; TAG_MAX + 4],
    server: Arc<Server>,
    descriptors: Arc<Descriptors>,
    request_queues: u16,
}

impl VirtioFs {
    /// Shares `directory` under `tag`, with `request_queues` queues (and threads) for requests.
    ///
    /// # Errors
    /// When the tag is none, or `directory` is no directory.
    pub fn new(
        tag: &str,
        directory: OwnedFd,
        options: Options,
        descriptors: Arc<Descriptors>,
        request_queues: u16,
    ) -> io::Result<Self> {
        let request_queues = request_queues.clamp(1, REQUEST_QUEUES_MAX);
        Ok(Self {
            config: config_space(tag, request_queues)?,
            server: Arc::new(Server::new(directory, options)?),
            descriptors,
            request_queues,
        })
    }
}

impl VirtioDevice for VirtioFs {
    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 1 + usize::from(self.request_queues)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config, offset, data);
    }

    fn start(&mut self, start: Start) -> io::Result<Vec<WorkerThread>> {
        Ok(threads(
            &self.server,
            &self.descriptors,
            start.queues,
            &start.metrics,
        ))
    }

    fn reset(&mut self) {
        self.server.reset();
    }
}

/// The threads that serve `queues`.
pub(super) fn threads(
    server: &Arc<Server>,
    descriptors: &Arc<Descriptors>,
    queues: Vec<QueueHandle>,
    metrics: &Arc<Metrics>,
) -> Vec<WorkerThread> {
    let mut queues = queues.into_iter();
    let mut first: Vec<QueueHandle> = queues.next().into_iter().collect();
    let mut threads = Vec::new();
    for queue in queues {
        let mut mine = std::mem::take(&mut first);
        mine.push(queue);
        threads.push(WorkerThread {
            queues: mine.clone(),
            worker: Box::new(Thread {
                server: server.clone(),
                descriptors: descriptors.clone(),
                queues: mine,
                worker: None,
                metrics: metrics.clone(),
            }),
        });
    }
    threads
}

/// The configuration space (5.11.4).
pub(super) fn config_space(tag: &str, request_queues: u16) -> io::Result<[u8; TAG_MAX + 4]> {
    if tag.is_empty() || tag.len() > TAG_MAX {
        return Err(io::Error::other(format!(
            "the tag '{tag}' of a shared directory must have 1 to {TAG_MAX} bytes"
        )));
    }
    let mut config = [0; TAG_MAX + 4];
    config[..tag.len()].copy_from_slice(tag.as_bytes());
    config[TAG_MAX..].copy_from_slice(&u32::from(request_queues).to_le_bytes());
    Ok(config)
}

/// What it is.
pub(super) const KIND: DeviceKind = DeviceKind {
    id: 26,
    name: "virtio-fs",
    class: 0x01_80_00,
};

/// One thread.
struct Thread {
    server: Arc<Server>,
    descriptors: Arc<Descriptors>,
    queues: Vec<QueueHandle>,
    worker: Option<Worker>,
    metrics: Arc<Metrics>,
}

impl QueueWorker for Thread {
    fn start(&mut self, _: &Poller) -> Result<(), QueueError> {
        self.worker = Some(Worker::enter(&self.descriptors).map_err(io::Error::from)?);
        Ok(())
    }

    fn queue(&mut self, index: usize, _: &Poller) -> Result<(), QueueError> {
        let Self {
            server,
            queues,
            worker: Some(worker),
            metrics,
            ..
        } = self
        else {
            return Ok(());
        };
        let Some(queue) = queues.iter().find(|queue| queue.index() == index) else {
            return Ok(());
        };
        queue.for_each(|mut chain| {
            let asked = chain.readable.left();
            let written = server.handle(worker, &mut chain.readable, &mut chain.writable);
            metrics.written(asked as u64);
            metrics.read(written as u64);
            // A chain has at most 4 GiB, an answer far less.
            queue.push(chain, u32::try_from(written).unwrap_or(u32::MAX))?;
            Ok(None)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Buffer, FakeDriver};
    use super::super::abi::{InHeader, InitIn, InitOut, OutHeader};
    use super::*;
    use vm_memory::ByteValued;

    #[test]
    fn a_driver_finds_the_tag_and_gets_answers() {
        let dir = tempfile::tempdir().unwrap();
        let root: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
        let descriptors = Arc::new(Descriptors::open().unwrap());
        let device = VirtioFs::new("root", root, Options::default(), descriptors, 2).unwrap();
        let mut driver = FakeDriver::started(Box::new(device));
        let config: [u8; 40] = driver.config(0);
        assert_eq!(&config[..5], b"root\0");
        assert_eq!(config[36..], 2u32.to_le_bytes());
        let body = InitIn {
            major: 7,
            minor: 38,
            ..Default::default()
        };
        let header = InHeader {
            len: 56,
            opcode: 26,
            unique: 5,
            ..Default::default()
        };
        for queue in [1, 2] {
            let (written, answer) = driver.request(
                queue,
                &[
                    Buffer::Out(header.as_slice()),
                    Buffer::Out(body.as_slice()),
                    Buffer::In(16),
                    Buffer::In(64),
                ],
            );
            assert_eq!(written as usize, 16 + size_of::<InitOut>());
            let mut head = OutHeader::default();
            head.as_mut_slice().copy_from_slice(&answer[..16]);
            assert_eq!((head.len, head.error, head.unique), (written, 0, 5));
        }
        // Nothing to answer, nowhere to answer to: the buffers come back.
        assert_eq!(driver.request(0, &[Buffer::Out(&[1, 2, 3])]).0, 0);
        assert_eq!(driver.request(1, &[Buffer::In(3)]).0, 0);
    }

    #[test]
    fn tags_have_a_length() {
        for tag in ["", "0123456789012345678901234567890123456"] {
            let root: OwnedFd = std::fs::File::open("/").unwrap().into();
            let descriptors = Arc::new(Descriptors::open().unwrap());
            assert!(VirtioFs::new(tag, root, Options::default(), descriptors, 1).is_err());
        }
    }
}
