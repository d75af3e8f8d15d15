//! virtio-rng (virtio 1.2, 5.4): the host's random numbers.

use std::io;
use std::sync::Arc;

use super::{
    DeviceKind, Metrics, Poller, QueueError, QueueHandle, Start, VirtioDevice, Worker, WorkerThread,
};

const KIND: DeviceKind = DeviceKind {
    id: 4,
    name: "rng",
    class: 0xff_0000,
};
const QUEUE_SIZE: u16 = 64;
/// Bytes a request gets at most: kernels ask for a few dozen.
const REQUEST_MAX: usize = 4096;

/// The device.
#[derive(Debug, Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn start(&mut self, start: Start) -> io::Result<Vec<WorkerThread>> {
        let [queue] = &start.queues[..] else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let worker = RngWorker {
            queue: queue.clone(),
            metrics: start.metrics,
        };
        Ok(vec![WorkerThread {
            queues: start.queues,
            worker: Box::new(worker),
        }])
    }
}

struct RngWorker {
    queue: QueueHandle,
    metrics: Arc<Metrics>,
}

impl Worker for RngWorker {
    fn queue(&mut self, _: usize, _: &Poller) -> Result<(), QueueError> {
        let metrics = &self.metrics;
        self.queue.for_each(|mut chain| {
            let mut bytes = [0; REQUEST_MAX];
            let wanted = chain.writable.left().min(REQUEST_MAX);
            let mut done = 0;
            while done < wanted {
                match rustix::rand::getrandom(&mut bytes[done..wanted], rustix::rand::GetRandomFlags::empty())
                {
                    Ok(count) => done += count,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(QueueError::Device(error.into())),
                }
            }
            let length = chain.writable.write(&bytes[..wanted]);
            metrics.read(length as u64);
            // At most 4096.
            #[expect(clippy::cast_possible_truncation)]
            Ok(Some((chain, length as u32)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Buffer, FakeDriver};
    use super::*;

    #[test]
    fn requests_get_random_bytes() {
        let mut driver = FakeDriver::started(Box::new(Rng));
        let (length, first) = driver.request(0, &[Buffer::In(32), Buffer::In(32)]);
        assert_eq!(length, 64);
        let (_, second) = driver.request(0, &[Buffer::In(64)]);
        assert_ne!(first, second);
        assert_ne!(first[..32], first[32..]);
        assert_eq!(
            driver.request(0, &[Buffer::In(1 << 20)]).0,
            4096,
            "one request has a limit"
        );
        assert_eq!(driver.request(0, &[Buffer::Out(b"hello")]).0, 0);
    }
}
