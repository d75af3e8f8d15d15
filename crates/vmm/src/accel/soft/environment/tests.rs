use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::accel::LAPIC_BASE;

/// Notes what it is asked.
#[derive(Default)]
struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

impl Recorder {
    fn taken(&self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Bus for Recorder {
    fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(port as u8);
    }

    fn write_port(&self, port: u16, data: &[u8]) {
        self.0.lock().unwrap().push((port.into(), data.to_vec()));
    }

    fn read_memory(&self, address: u64, data: &mut [u8]) {
        data.fill((address >> 12) as u8);
    }

    fn write_memory(&self, address: u64, data: &[u8]) {
        self.0.lock().unwrap().push((address, data.to_vec()));
    }
}

impl GuestMemory for Recorder {
    fn write(&self, address: u64, data: &[u8]) {
        self.0.lock().unwrap().push((address, data.to_vec()));
    }
}

struct Bench {
    interrupts: Arc<Interrupts>,
    bus: Arc<Recorder>,
    memory: Arc<Recorder>,
    clock: Arc<Clock>,
}

fn bench() -> Bench {
    let clock = Arc::new(Clock::new());
    Bench {
        interrupts: Interrupts::new(2, clock.clone()).unwrap(),
        bus: Arc::default(),
        memory: Arc::default(),
        clock,
    }
}

impl Bench {
    fn processor(&self, index: u8) -> Surroundings {
        let (bus, memory) = (self.bus.clone(), self.memory.clone());
        Surroundings::new(index, self.interrupts.clone(), self.clock.clone(), bus, memory).unwrap()
    }
}

fn read(environment: &mut Surroundings, address: u64) -> u32 {
    let mut data = [0xaa; 4];
    environment.read_memory(address, &mut data);
    u32::from_le_bytes(data)
}

fn write(environment: &mut Surroundings, address: u64, value: u32) {
    environment.write_memory(address, &value.to_le_bytes());
}

#[test]
fn pages_of_the_apics_and_the_rest() {
    let bench = bench();
    let mut first = bench.processor(0);
    let mut second = bench.processor(1);
    assert_eq!(read(&mut first, LAPIC_BASE + 0x20), 0);
    assert_eq!(read(&mut second, LAPIC_BASE + 0x20), 1 << 24);
    let mut wide = [0xaa; 8];
    second.read_memory(LAPIC_BASE + 0x22, &mut wide);
    assert_eq!(wide, [0, 1, 0, 0, 0, 0, 0, 0]);
    write(&mut first, LAPIC_BASE + 0xf0, 0x1ff);
    assert_eq!(read(&mut first, LAPIC_BASE + 0xf0), 0x1ff);
    first.write_memory(LAPIC_BASE + 0x80, &[1, 2, 3, 4, 5, 6, 7, 8]);
    first.write_memory(LAPIC_BASE + 0x84, &[1, 2, 3, 4]);
    assert_eq!(
        read(&mut first, LAPIC_BASE + 0x80),
        0,
        "neither is an access to a register"
    );

    write(&mut first, IOAPIC_BASE, 1);
    assert_eq!(read(&mut second, IOAPIC_BASE + 0x10), 0x0017_0011);
    first.write_memory(IOAPIC_BASE, &[0x12]);
    assert_eq!(read(&mut first, IOAPIC_BASE), 0x12);

    assert_eq!(read(&mut first, 0xd012_3000), 0x2323_2323);
    write(&mut first, 0xd000_0000, 0x55);
    first.write_port(0x3f8, b"x");
    let mut data = [0; 2];
    first.read_port(0x60, &mut data);
    assert_eq!(data, [0x60; 2]);
    let written = [(0xd000_0000, vec![0x55, 0, 0, 0]), (0x3f8, vec![b'x'])];
    assert_eq!(bench.bus.taken(), written);
}

#[test]
fn the_page_follows_the_mode() {
    let bench = bench();
    let mut first = bench.processor(0);
    assert_eq!(first.read_msr(msr::APIC_BASE), Some(0xfee0_0900));
    assert_eq!(first.read_msr(0x802), None, "not in x2APIC mode");
    assert!(!first.write_msr(msr::APIC_BASE, 0xfee0_0500));
    assert!(first.write_msr(msr::APIC_BASE, 0xd000_0900));
    assert_eq!(read(&mut first, 0xd000_0030), 0x0005_0014);
    assert_eq!(read(&mut first, LAPIC_BASE + 0x30), 0, "the bus answers here now");
    assert!(first.write_msr(msr::APIC_BASE, 0xfee0_0d00));
    assert_eq!(first.read_msr(0x802), Some(0));
    assert_eq!(read(&mut first, LAPIC_BASE + 0x30), 0);
    assert!(!first.write_msr(0x802, 1));
    assert!(first.write_msr(0x80f, 0x1ff));
    assert!(first.write_msr(0x83f, 0x41));
    assert_eq!(first.take_interrupt(), Some(0x41));
    assert_eq!(
        (first.read_msr(0x1234), first.write_msr(0x1234, 0)),
        (None, false)
    );
}

#[test]
fn task_priority_by_cr8() {
    let bench = bench();
    let mut first = bench.processor(0);
    write(&mut first, LAPIC_BASE + 0xf0, 0x1ff);
    first.set_cr8(5);
    assert_eq!((first.cr8(), read(&mut first, LAPIC_BASE + 0x80)), (5, 0x50));
    write(&mut first, LAPIC_BASE + 0x300, 0x51 | 1 << 18);
    assert_eq!(first.take_interrupt(), None);
    assert_eq!(first.processor().attention().take(), 0);
    first.set_cr8(4);
    assert_eq!(first.processor().attention().take(), Attention::INTERRUPT);
    assert_eq!(first.take_interrupt(), Some(0x51));
}

#[test]
fn the_counter_is_set_and_adjusted() {
    let bench = bench();
    let mut first = bench.processor(0);
    let mut second = bench.processor(1);
    let before = second.tsc();
    assert!(first.write_msr(msr::TSC, 1000));
    let now = first.tsc();
    assert!((1000..1000 + 20_000_000_000).contains(&now), "{now}");
    assert!(second.tsc() >= before);
    let adjust = first.read_msr(msr::TSC_ADJUST).unwrap();
    let written = 1000_u64.wrapping_sub(adjust);
    assert!(
        (before..=second.tsc()).contains(&written),
        "the difference that the write made"
    );
    assert!(first.write_msr(msr::TSC_ADJUST, adjust.wrapping_add(1 << 50)));
    assert!(first.tsc() - now >= 1 << 50);
    assert!(first.write_msr(msr::TSC_ADJUST, 0));
    assert!(first.tsc().abs_diff(second.tsc()) < 20_000_000_000, "as it was");
}

#[test]
fn a_deadline_follows_the_counter() {
    let bench = bench();
    let mut first = bench.processor(0);
    write(&mut first, LAPIC_BASE + 0xf0, 0x1ff);
    write(&mut first, LAPIC_BASE + 0x320, 0xec | 2 << 17);
    let deadline = first.tsc() + bench.clock.frequency() * 1000;
    assert!(first.write_msr(msr::TSC_DEADLINE, deadline));
    assert_eq!(first.read_msr(msr::TSC_DEADLINE), Some(deadline));
    assert_eq!(first.take_interrupt(), None);
    assert!(first.write_msr(msr::TSC, deadline - bench.clock.frequency() / 100));
    first.processor().wait();
    assert_eq!(first.take_interrupt(), Some(0xec));
    assert_eq!(first.read_msr(msr::TSC_DEADLINE), Some(0));
    assert!(first.tsc() >= deadline);
}

#[test]
fn the_clocks_page_is_written_in_order() {
    let bench = bench();
    let mut first = bench.processor(0);
    assert!(first.write_msr(msr::KVM_SYSTEM_TIME, 0x5001));
    let writes = bench.memory.taken();
    let version = |write: &(u64, Vec<u8>)| u32::from_le_bytes(write.1[..].try_into().unwrap());
    let places: Vec<_> = writes.iter().map(|write| (write.0, write.1.len())).collect();
    assert_eq!(places, [(0x5000, 4), (0x5004, 28), (0x5000, 4)]);
    assert_eq!((version(&writes[0]), version(&writes[2])), (1, 2));
    // It depends on the counter's offset.
    assert!(first.write_msr(msr::TSC_ADJUST, 4096));
    let again = bench.memory.taken();
    assert_eq!((version(&again[0]), version(&again[2])), (3, 4));
    let tsc = |write: &(u64, Vec<u8>)| u64::from_le_bytes(write.1[4..12].try_into().unwrap());
    assert_eq!(tsc(&again[1]), tsc(&writes[1]) + 4096);
    assert!(first.write_msr(msr::KVM_SYSTEM_TIME, 0));
    assert!(first.write_msr(msr::TSC_ADJUST, 0));
    assert_eq!(bench.memory.taken(), []);

    assert!(first.write_msr(msr::KVM_WALL_CLOCK, 0x6000));
    let places: Vec<_> = bench.memory.taken().iter().map(|write| write.0).collect();
    assert_eq!(places, [0x6000, 0x6004, 0x6008, 0x6000]);
    assert_eq!(first.read_msr(msr::KVM_WALL_CLOCK), Some(0x6000));
}

#[test]
fn init_of_the_boot_processor_is_a_reset() {
    let bench = bench();
    let mut first = bench.processor(0);
    let mut second = bench.processor(1);
    write(&mut second, LAPIC_BASE + 0x310, 0);
    write(&mut second, LAPIC_BASE + 0x300, 5 << 8 | 1 << 14);
    assert_eq!(first.take_reset(), None);
    assert!(first.is_reset());
    assert_ne!(first.processor().attention().take() & Attention::KICK, 0);
    write(&mut first, LAPIC_BASE + 0x310, 1 << 24);
    write(&mut first, LAPIC_BASE + 0x300, 5 << 8 | 1 << 14);
    assert_eq!(second.take_reset(), Some(Reset::Init));
    assert!(!second.is_reset());
}

#[test]
fn its_state_is_saved() {
    let bench = bench();
    let mut first = bench.processor(0);
    assert!(first.write_msr(msr::APIC_BASE, 0xfee0_0d00));
    assert!(first.write_msr(0x80f, 0x1ff));
    assert!(first.write_msr(0x832, 0xec | 2 << 17));
    assert!(first.write_msr(msr::TSC, 1 << 52));
    let deadline = (1 << 52) + bench.clock.frequency() * 3600;
    assert!(first.write_msr(msr::TSC_DEADLINE, deadline));
    assert!(first.write_msr(msr::KVM_SYSTEM_TIME, 0x7001));
    let msrs = first.msrs();
    let now = first.processor().now();
    let lapic = first.processor().with(|apic| apic.state(now));
    bench.memory.taken();

    let other = super::tests::bench();
    let mut restored = other.processor(0);
    restored.restore(&msrs, &lapic);
    assert_eq!(restored.read_msr(msr::APIC_BASE), Some(0xfee0_0d00));
    assert_eq!(restored.read_msr(0x80f), Some(0x1ff));
    assert_eq!(restored.read_msr(msr::TSC_DEADLINE), Some(deadline));
    assert_eq!(
        restored.read_msr(msr::TSC_ADJUST),
        first.read_msr(msr::TSC_ADJUST)
    );
    assert!((1 << 52..(1 << 52) + (1 << 40)).contains(&restored.tsc()));
    assert_eq!(other.memory.taken()[0].0, 0x7000, "the page is written again");
    assert_eq!(
        read(&mut restored, LAPIC_BASE + 0x30),
        0,
        "no page in x2APIC mode"
    );
    std::thread::sleep(Duration::from_millis(1));
    assert_eq!(restored.take_interrupt(), None);
}
