//! The skeleton's behaviour, shown by a device that answers each request with its bytes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::testing::{Buffer, CONFIG_VECTOR, FakeDriver};
use super::*;
use crate::pci::Function;

const KIND: DeviceKind = DeviceKind {
    id: 42,
    name: "echo",
    class: 0xff_0000,
};
const F_REFUSED: u64 = 1 << 3;

/// Copies what it reads to what it may write; a request without room is kept until the worker stops.
#[derive(Default)]
struct Echo {
    starts: Arc<AtomicU32>,
    ends: Arc<AtomicU32>,
    config: [u8; 4],
}

struct EchoWorker {
    queues: Vec<QueueHandle>,
    kept: Vec<Chain>,
    ends: Arc<AtomicU32>,
}

impl VirtioDevice for Echo {
    fn kind(&self) -> DeviceKind {
        KIND
    }
    fn features(&self) -> u64 {
        F_REFUSED | 1
    }
    fn accepts(&self, features: u64) -> bool {
        features & F_REFUSED == 0
    }
    fn queues(&self) -> Vec<u16> {
        vec![16, 256]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config, offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (0, Ok(data)) = (offset, data.try_into()) {
            self.config = data;
        }
    }
    fn start(&mut self, start: Start) -> io::Result<Vec<WorkerThread>> {
        self.starts.fetch_add(1, Ordering::SeqCst);
        let worker = EchoWorker {
            queues: start.queues.clone(),
            kept: Vec::new(),
            ends: self.ends.clone(),
        };
        Ok(vec![WorkerThread {
            queues: start.queues,
            worker: Box::new(worker),
        }])
    }
    fn reset(&mut self) {
        self.config = [0; 4];
    }
    fn save(&self) -> serde_json::Value {
        serde_json::json!(self.config)
    }
    fn restore(&mut self, state: &serde_json::Value) -> io::Result<()> {
        self.config = serde_json::from_value(state.clone())?;
        Ok(())
    }
}

impl Worker for EchoWorker {
    fn queue(&mut self, index: usize, _: &Poller) -> Result<(), QueueError> {
        let queue = self.queues[index].clone();
        if !queue.lock().is_ready() {
            self.kept.clear();
        }
        queue.for_each(|mut chain| {
            if chain.writable.left() == 0 {
                self.kept.push(chain);
                return Ok(None);
            }
            let mut bytes = vec![0; chain.readable.left()];
            chain.readable.read(&mut bytes);
            let written = chain.writable.write(&bytes);
            Ok(Some((chain, u32::try_from(written).unwrap())))
        })
    }
    fn stop(&mut self) {
        self.ends.fetch_add(1, Ordering::SeqCst);
    }
}

fn sound(driver: &FakeDriver) -> u64 {
    driver.offered() & !F_REFUSED
}

fn echo() -> FakeDriver {
    let mut driver = FakeDriver::new(Box::<Echo>::default());
    let features = sound(&driver);
    assert!(driver.negotiate(features));
    driver.set_up();
    driver
}

#[test]
fn requests_are_answered_by_both_queues() {
    let mut driver = echo();
    for queue in [0, 1] {
        let (length, bytes) = driver.request(
            queue,
            &[
                Buffer::Out(b"hel"),
                Buffer::Out(b"lo"),
                Buffer::In(3),
                Buffer::In(8),
            ],
        );
        assert_eq!((length, &bytes[..5]), (5, &b"hello"[..]));
        assert_eq!(bytes[5..], [0xee; 6], "nothing else was written");
    }
    assert_eq!(driver.interrupts.count(1), 1);
    assert_eq!(driver.interrupts.count(2), 1);
    let metrics = driver.device.metrics().snapshot();
    assert_eq!((metrics.notifications, metrics.interrupts), (2, 2));
}

#[test]
fn a_table_of_descriptors_is_a_chain() {
    let mut driver = echo();
    let out: Vec<Buffer<'_>> = (0..40)
        .map(|_| Buffer::Out(b"ab"))
        .chain([Buffer::In(100)])
        .collect();
    // More than the queue has itself.
    let sent = driver.offer_indirect(0, &out);
    driver.ring(0);
    assert_eq!(driver.wait(0), (sent.head, 80));
    assert_eq!(&driver.inputs(&sent)[..80], b"ab".repeat(40));
}

#[test]
fn rings_wrap_around() {
    for with_event_index in [true, false] {
        let mut driver = FakeDriver::new(Box::<Echo>::default());
        let drop = if with_event_index { 0 } else { F_RING_EVENT_IDX };
        let features = sound(&driver) & !drop;
        assert!(driver.negotiate(features));
        driver.set_up();
        for n in 0..70_000_u32 {
            let (length, bytes) = driver.request(0, &[Buffer::Out(&n.to_le_bytes()), Buffer::In(4)]);
            assert_eq!((length, bytes), (4, n.to_le_bytes().to_vec()));
            driver.free_buffers();
        }
    }
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut driver = FakeDriver::new(Box::<Echo>::default());
    let features = sound(&driver) & !F_RING_EVENT_IDX;
    assert!(driver.negotiate(features));
    driver.set_up();
    let flags = GuestAddress(driver.queues[0].available);
    driver.memory.write_obj(1_u16, flags).unwrap();
    driver.send(0, &[Buffer::Out(b"x"), Buffer::In(1)]);
    let used = GuestAddress(driver.queues[0].used + 2);
    let memory = driver.memory.clone();
    driver.wait_until("not used", || memory.read_obj::<u16>(used).unwrap() == 1);
    // Another request after it whose interrupt is wanted: the first has certainly sent none by then.
    driver.memory.write_obj(0_u16, flags).unwrap();
    driver.send(0, &[Buffer::Out(b"y"), Buffer::In(1)]);
    driver.wait_until("no interrupt", || driver.interrupts.count(1) == 1);
    assert_eq!(driver.interrupts.count(CONFIG_VECTOR), 0);
}

#[test]
fn the_status_goes_up_step_by_step() {
    let mut driver = FakeDriver::new(Box::<Echo>::default());
    driver.set_status(4);
    assert_eq!(driver.status(), 0, "there is no DRIVER_OK without the others");
    let offered = driver.offered();
    assert!(!driver.negotiate(offered), "the device refuses one of them");
    assert!(
        !driver.negotiate(sound(&driver) & !F_VERSION_1),
        "no legacy driver"
    );
    assert!(
        !driver.negotiate(F_VERSION_1 | 1 << 20),
        "one that was not offered"
    );
    assert!(driver.negotiate(F_VERSION_1));
    driver.set_common(8, &0_u32.to_le_bytes());
    driver.set_common(0xc, &1_u32.to_le_bytes());
    assert_eq!(driver.common::<4>(0xc), [0; 4], "it is too late for others");
    driver.set_status(3);
    assert_eq!(driver.status(), 11, "no bit is cleared");
    driver.set_up();
    assert_eq!(driver.status(), 15);
    driver.set_status(0x80);
    assert_eq!(driver.status(), 0x8f);
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn registers_keep_to_their_limits() {
    let driver = FakeDriver::new(Box::<Echo>::default());
    driver.set_common(0x16, &1_u16.to_le_bytes());
    assert_eq!(driver.common(0x18), 256_u16.to_le_bytes());
    for size in [0_u16, 3, 512] {
        driver.set_common(0x18, &size.to_le_bytes());
        assert_eq!(driver.common(0x18), 256_u16.to_le_bytes(), "{size} is none");
    }
    driver.set_common(0x18, &8_u16.to_le_bytes());
    assert_eq!(driver.common(0x18), 8_u16.to_le_bytes());
    driver.set_common(0x1a, &3_u16.to_le_bytes());
    assert_eq!(driver.common(0x1a), [0xff; 2], "there are three vectors");
    driver.set_common(0x16, &2_u16.to_le_bytes());
    assert_eq!(driver.common(0x18), [0; 2], "there is no such queue");
    driver.set_common(0x18, &8_u16.to_le_bytes());
    driver.set_common(0x1c, &1_u16.to_le_bytes());
    assert_eq!(driver.common(0x1c), [0; 2]);
}

#[test]
fn a_reset_ends_the_worker_and_forgets() {
    let device = Echo::default();
    let (starts, ends) = (device.starts.clone(), device.ends.clone());
    let mut driver = FakeDriver::new(Box::new(device));
    for round in 1..4 {
        let features = sound(&driver);
        assert!(driver.negotiate(features));
        driver.set_up();
        driver.set_config(0, b"abcd");
        assert_eq!(driver.config(0), *b"abcd");
        assert_eq!(driver.config(2), *b"cd\0\0\0\0\0\0");
        driver.request(1, &[Buffer::Out(b"x"), Buffer::In(1)]);
        driver.send(0, &[Buffer::Out(b"kept")]);
        driver.set_status(0);
        assert_eq!(
            (starts.load(Ordering::SeqCst), ends.load(Ordering::SeqCst)),
            (round, round)
        );
        assert_eq!(driver.config(0), [0; 4]);
        driver.set_common(0x16, &0_u16.to_le_bytes());
        assert_eq!(driver.common(0x1c), [0; 2]);
        assert_eq!(driver.common(0x20), [0; 8]);
    }
}

#[test]
fn one_queue_is_reset_and_comes_back() {
    let mut driver = echo();
    driver.send(0, &[Buffer::Out(b"kept")]);
    driver.request(1, &[Buffer::Out(b"x"), Buffer::In(1)]);
    driver.set_common(0x16, &0_u16.to_le_bytes());
    driver.set_common(0x3a, &1_u16.to_le_bytes());
    driver.wait_until("the queue is not reset", || driver.common::<2>(0x3a) == [0; 2]);
    assert_eq!(driver.common(0x1c), [0; 2]);
    driver.request(1, &[Buffer::Out(b"y"), Buffer::In(1)]);
    let status = driver.status();
    driver.renew_queue(0);
    assert_eq!(driver.status(), status);
    let (length, bytes) = driver.request(0, &[Buffer::Out(b"z"), Buffer::In(1)]);
    assert_eq!((length, bytes), (1, b"z".to_vec()));
}

#[test]
fn a_pause_is_not_seen_and_state_moves_to_another_device() {
    let mut driver = echo();
    driver.set_config(0, b"conf");
    driver.request(0, &[Buffer::Out(b"x"), Buffer::In(1)]);
    driver.device.pause();
    let sent = driver.send(0, &[Buffer::Out(b"while"), Buffer::In(5)]);
    assert!(driver.poll(0).is_none());
    let state = serde_json::to_string(&driver.device.save()).unwrap();
    // The same memory, another device.
    let other = FakeDriver::new(Box::<Echo>::default());
    let moved = VirtioPci::new(
        Box::<Echo>::default(),
        "moved",
        driver.memory.clone(),
        driver.sink(),
    )
    .unwrap();
    moved.pause();
    moved.restore(&serde_json::from_str(&state).unwrap()).unwrap();
    driver.device = moved;
    driver.device.resume();
    assert_eq!(driver.wait(0), (sent.head, 5));
    assert_eq!(driver.inputs(&sent), b"while");
    assert_eq!(driver.config(0), *b"conf");
    let mut wrong: serde_json::Value = serde_json::from_str(&state).unwrap();
    wrong["id"] = 1.into();
    assert!(
        other
            .device
            .restore(&serde_json::from_value(wrong).unwrap())
            .is_err()
    );
}

#[test]
fn registers_are_reached_by_configuration_space_too() {
    let driver = echo();
    let mut at = 0x40;
    loop {
        let mut head = [0; 4];
        driver.device.read_config(at, &mut head);
        if head[0] == 9 && head[3] == 5 {
            break;
        }
        at = head[1].into();
    }
    let access = |offset: u32, length: u32| {
        driver.device.write_config(at + 4, &[0]);
        driver.device.write_config(at + 8, &offset.to_le_bytes());
        driver.device.write_config(at + 12, &length.to_le_bytes());
        let mut data = vec![0xaa; length.try_into().unwrap()];
        driver.device.read_config(at + 16, &mut data);
        data
    };
    assert_eq!(access(0x12, 2), 2_u16.to_le_bytes());
    assert_eq!(access(0x14, 1), [15]);
    driver.device.write_config(at + 16, &[0]);
    assert_eq!(driver.status(), 0, "the store was a reset");
    assert_eq!(access(0x4000 - 1, 4), [0; 4], "beyond the BAR there is nothing");
}

/// What a hostile driver does to a ring, and that the device says so and works again after a reset.
fn broken_by(attack: impl FnOnce(&mut FakeDriver)) {
    let mut driver = echo();
    attack(&mut driver);
    driver.ring(0);
    driver.wait_for_needs_reset();
    driver.wait_until("no interrupt", || driver.interrupts.count(CONFIG_VECTOR) == 1);
    driver.ring(0);
    let features = sound(&driver);
    assert!(driver.negotiate(features));
    driver.set_up();
    let (length, _) = driver.request(0, &[Buffer::Out(b"again"), Buffer::In(5)]);
    assert_eq!(length, 5);
}

#[test]
fn hostile_rings_break_the_device_until_its_reset() {
    // An index that jumps.
    broken_by(|driver| {
        let index = GuestAddress(driver.queues[0].available + 2);
        driver.memory.write_obj(17_u16, index).unwrap();
    });
    // A head beyond the table.
    broken_by(|driver| driver.make_available(0, 16));
    // A chain that bites its tail.
    broken_by(|driver| {
        let table = driver.queues[0].descriptors;
        driver.describe(table, 0, 0x10_0000, 1, 1, 1);
        driver.describe(table, 1, 0x10_0000, 1, 1, 0);
        driver.make_available(0, 0);
    });
    // Memory that is none: beyond the end, at the end of the address space, half in.
    for (address, length) in [
        (64 << 20, 1),
        (u64::MAX - 2, 8),
        ((32 << 20) - 4, 8),
        (0, u32::MAX),
    ] {
        broken_by(|driver| {
            driver.describe(driver.queues[0].descriptors, 0, address, length, 0, 0);
            driver.make_available(0, 0);
        });
    }
    // A buffer to read behind one to write.
    broken_by(|driver| {
        let table = driver.queues[0].descriptors;
        driver.describe(table, 0, 0x10_0000, 1, 1 | 2, 1);
        driver.describe(table, 1, 0x10_0000, 1, 0, 0);
        driver.make_available(0, 0);
    });
    // Tables: within a table, empty, of half a descriptor, not memory, with a next one, of endless descriptors.
    for (address, length, flags) in [
        (0x10_0000_u64, 16, 4),
        (0x10_0000, 0, 4),
        (0x10_0000, 17, 4),
        (u64::MAX - 15, 16, 4),
        ((32 << 20) - 16, 32, 4),
        (0x10_0000, 16, 4 | 1),
        (0x20_0000, 16 * 2000, 4),
    ] {
        broken_by(|driver| {
            driver.describe(0x10_0000, 0, 0x10_0000, 16, 4, 0);
            for index in 0..2000 {
                driver.describe(0x20_0000, index, 0x10_0000, 1, 1, index + 1);
            }
            driver.describe(driver.queues[0].descriptors, 0, address, length, flags, 1);
            driver.make_available(0, 0);
        });
    }
    // More than 4 GiB in one chain.
    broken_by(|driver| {
        let table = driver.allocate(16 * 1000);
        for index in 0..1000 {
            driver.describe(table, index, 0, 31 << 20, 1, index + 1);
        }
        driver.describe(driver.queues[0].descriptors, 0, table, 16 * 1000, 4, 0);
        driver.make_available(0, 0);
    });
}

#[test]
fn rings_outside_memory_break_the_device() {
    for (field, value) in [
        (0x20, 64_u64 << 20),
        (0x28, u64::MAX - 1),
        (0x30, 2),
        (0x20, (32 << 20) - 16),
    ] {
        let mut driver = FakeDriver::new(Box::<Echo>::default());
        let features = sound(&driver);
        assert!(driver.negotiate(features));
        driver.set_common(field, &value.to_le_bytes());
        driver.set_common(0x1c, &1_u16.to_le_bytes());
        assert_eq!(driver.common(0x1c), [0; 2]);
        driver.set_status(15);
        assert_eq!(driver.status() & 64, 64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_registers_any_rings(
        stores in prop::collection::vec((0_u64..0x4000, prop::sample::select(vec![1_usize, 2, 4, 8]), any::<u64>()), 0..200),
        rings in prop::collection::vec((0_u64..0x2000, any::<u32>()), 0..100),
        small in any::<bool>(),
    ) {
        let driver = echo();
        for (at, value) in rings {
            let value = if small { value & 0x1f } else { value };
            driver.memory.write_obj(value, GuestAddress(0x1000 + at)).unwrap();
        }
        driver.ring(0);
        driver.ring(1);
        for (at, length, value) in stores {
            let value = if small { value & 0x1f } else { value };
            let at = if small { at % 0x40 } else { at };
            driver.device.write_bar(0, at / length as u64 * length as u64, &value.to_le_bytes()[..length]);
            driver.device.read_bar(0, at, &mut [0; 8][..length]);
        }
        // Whatever happened: a reset brings it back.
        let mut driver = driver;
        let features = sound(&driver);
        prop_assert!(driver.negotiate(features));
        driver.set_up();
        prop_assert_eq!(driver.request(0, &[Buffer::Out(b"abc"), Buffer::In(3)]).0, 3);
    }
}
