//! virtio-console (virtio 1.2, 5.3): one port, whose two ends are descriptors.

mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use super::{DeviceKind, Interrupt, Start, VirtioDevice, WorkerThread, read_from};
use crate::sync::lock;
use worker::ConsoleWorker;

const KIND: DeviceKind = DeviceKind {
    id: 3,
    name: "console",
    class: 0x07_8000,
};
const F_SIZE: u64 = 1;
const QUEUE_SIZE: u16 = 64;

#[derive(Default)]
struct Shared {
    columns: u16,
    rows: u16,
    interrupt: Option<Interrupt>,
}

/// What a console's owner can do while the machine runs.
#[derive(Clone, Default)]
pub struct ConsoleControl(Arc<Mutex<Shared>>);

impl ConsoleControl {
    /// The terminal has another size.
    pub fn resize(&self, columns: u16, rows: u16) {
        let interrupt = {
            let mut shared = lock(&self.0);
            (shared.columns, shared.rows) = (columns, rows);
            shared.interrupt.clone()
        };
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }
}

/// The device.
pub struct Console {
    input: Option<Arc<OwnedFd>>,
    output: Arc<OwnedFd>,
    control: ConsoleControl,
}

impl Console {
    /// A console that reads from `input` and writes to `output`. An input that ends, or an output that is closed, is left alone from then on.
    pub fn new(input: Option<OwnedFd>, output: OwnedFd) -> Self {
        Self {
            input: input.map(Arc::new),
            output: Arc::new(output),
            control: ConsoleControl::default(),
        }
    }

    /// For its owner.
    pub fn control(&self) -> ConsoleControl {
        self.control.clone()
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        F_SIZE
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let shared = lock(&self.control.0);
        let mut config = [0; 12];
        config[..2].copy_from_slice(&shared.columns.to_le_bytes());
        config[2..4].copy_from_slice(&shared.rows.to_le_bytes());
        config[4..8].copy_from_slice(&1_u32.to_le_bytes());
        read_from(&config, offset, data);
    }

    fn start(&mut self, start: Start) -> io::Result<Vec<WorkerThread>> {
        let [receive, transmit] = &start.queues[..] else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        lock(&self.control.0).interrupt = Some(start.interrupt);
        let worker = ConsoleWorker::new(
            receive.clone(),
            transmit.clone(),
            self.input.clone(),
            self.output.clone(),
            start.metrics,
        );
        Ok(vec![WorkerThread {
            queues: start.queues,
            worker: Box::new(worker),
        }])
    }

    fn reset(&mut self) {
        lock(&self.control.0).interrupt = None;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Buffer, CONFIG_VECTOR, FakeDriver};
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn console() -> (FakeDriver, UnixStream, ConsoleControl) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let device = Console::new(Some(theirs.try_clone().unwrap().into()), theirs.into());
        let control = device.control();
        (FakeDriver::started(Box::new(device)), ours, control)
    }

    #[test]
    fn text_goes_both_ways() {
        let (mut driver, mut ours, _) = console();
        assert_eq!(driver.request(1, &[Buffer::Out(b"hel"), Buffer::Out(b"lo")]).0, 0);
        let mut seen = [0; 5];
        ours.read_exact(&mut seen).unwrap();
        assert_eq!(seen, *b"hello");
        // Input that comes before there is a buffer waits.
        ours.write_all(b"abc").unwrap();
        let (length, bytes) = driver.request(0, &[Buffer::In(2)]);
        assert_eq!((length, &bytes[..]), (2, &b"ab"[..]));
        let (length, bytes) = driver.request(0, &[Buffer::In(2)]);
        assert_eq!((length, bytes[0]), (1, b'c'));
        let waiting = driver.send(0, &[Buffer::In(8)]);
        ours.write_all(b"later").unwrap();
        assert_eq!(driver.wait(0), (waiting.head, 5));
    }

    #[test]
    fn a_slow_reader_gets_everything_and_a_gone_one_stops_nobody() {
        let (mut driver, mut ours, _) = console();
        let text: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        let sent = driver.send(1, &[Buffer::Out(&text)]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(driver.poll(1).is_none());
        let mut seen = vec![0; text.len()];
        ours.read_exact(&mut seen).unwrap();
        assert_eq!(seen, text);
        assert_eq!(driver.wait(1).0, sent.head);
        driver.free_buffers();
        driver.send(1, &[Buffer::Out(&text)]);
        drop(ours);
        driver.wait(1);
        driver.request(1, &[Buffer::Out(b"nobody listens")]);
    }

    #[test]
    fn a_pause_in_the_middle_of_a_write_ends_at_once() {
        let (mut driver, ours, _) = console();
        let text = vec![7; 1 << 20];
        driver.send(1, &[Buffer::Out(&text)]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        driver.device.pause();
        driver.device.resume();
        drop(ours);
        driver.wait(1);
    }

    #[test]
    fn the_size_of_the_terminal_is_told() {
        let (driver, _ours, control) = console();
        let generation: [u8; 1] = driver.common(0x15);
        control.resize(132, 43);
        driver.wait_until("no interrupt", || driver.interrupts.count(CONFIG_VECTOR) == 1);
        assert_eq!(driver.config(0), [132, 0, 43, 0]);
        assert_ne!(driver.common(0x15), generation);
    }
}
