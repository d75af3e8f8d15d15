use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vessel_softcpu::{Attention, Reset};

use super::super::clock::Clock;
use super::*;

const X2APIC: u64 = 1 << 10;

/// A machine whose local APICs are enabled, in xAPIC mode or x2APIC mode.
fn machine(vcpus: u8, x2apic: bool) -> Arc<Interrupts> {
    let interrupts = Interrupts::new(vcpus, Arc::new(Clock::new())).unwrap();
    for index in 0..vcpus {
        write(&interrupts, index, 0xf0, 0x1ff);
        write(&interrupts, index, 0xd0, 1 << (24 + index % 8));
        if x2apic {
            let done = processor(&interrupts, index).with(|apic| apic.set_base(apic.base() | X2APIC));
            assert!(done);
        }
    }
    interrupts
}

fn processor(interrupts: &Interrupts, index: u8) -> &Processor {
    interrupts.processor(index).unwrap()
}

fn write(interrupts: &Interrupts, index: u8, offset: u32, value: u32) {
    let processor = processor(interrupts, index);
    let now = processor.now();
    let effect = processor.with(|apic| apic.write_page(offset, value, now));
    interrupts.apply(effect, index);
}

fn write_msr(interrupts: &Interrupts, index: u8, msr: u32, value: u64) {
    let processor = processor(interrupts, index);
    let now = processor.now();
    let effect = processor.with(|apic| apic.write_msr(msr, value, now));
    interrupts.apply(effect.unwrap(), index);
}

/// Who has an interrupt of this vector; it is taken and ended.
fn receivers(interrupts: &Interrupts, vector: u8) -> Vec<u8> {
    (0..interrupts.count())
        .filter(|index| {
            let processor = processor(interrupts, *index);
            let attention = processor.attention().take();
            let taken = processor.take_interrupt();
            assert_eq!(taken.is_some(), attention & Attention::INTERRUPT != 0);
            let effect = processor.with(|apic| apic.write_page(0xb0, 0, super::timer::Now::default()));
            interrupts.apply(effect, *index);
            taken == Some(vector)
        })
        .collect()
}

fn msi(destination: u8, logical: bool, hint: bool, data: u32) -> Msi {
    Msi {
        address: 0xfee0_0000 | u64::from(destination) << 12 | u64::from(hint) << 3 | u64::from(logical) << 2,
        data,
    }
}

#[test]
fn messages_of_devices_find_their_processors() {
    for x2apic in [false, true] {
        let interrupts = machine(4, x2apic);
        for (destination, logical, expected) in [
            (0, false, vec![0]),
            (3, false, vec![3]),
            (4, false, vec![]),
            (0xff, false, vec![0, 1, 2, 3]),
            (0b0101, true, vec![0, 2]),
            (0b1111_0000, true, vec![]),
            (0xff, true, vec![0, 1, 2, 3]),
        ] {
            interrupts.signal_msi(msi(destination, logical, false, 0x41));
            assert_eq!(
                receivers(&interrupts, 0x41),
                expected,
                "{destination} {logical} {x2apic}"
            );
        }
        interrupts.signal_msi(Msi {
            address: 0xfed0_0000,
            data: 0x41,
        });
        assert_eq!(receivers(&interrupts, 0x41), [0; 0]);
    }
}

#[test]
fn the_lowest_priority_gets_it_and_equals_take_turns() {
    let interrupts = machine(4, false);
    let lowest = msi(0b1111, true, false, 0x41 | 1 << 8);
    let mut turns = [0; 4];
    for _ in 0..8 {
        interrupts.signal_msi(lowest);
        let receivers = receivers(&interrupts, 0x41);
        assert_eq!(receivers.len(), 1);
        turns[usize::from(receivers[0])] += 1;
    }
    assert_eq!(turns, [2; 4]);
    for index in [0, 1, 3] {
        write(&interrupts, index, 0x80, 0x20);
    }
    for _ in 0..4 {
        // The same by the redirection hint.
        interrupts.signal_msi(msi(0b1111, true, true, 0x41));
        assert_eq!(receivers(&interrupts, 0x41), [2]);
    }
    write(&interrupts, 2, 0xf0, 0xff);
    interrupts.signal_msi(lowest);
    assert!(!receivers(&interrupts, 0x41).contains(&2), "it is disabled");
}

#[test]
fn interprocessor_interrupts() {
    for x2apic in [false, true] {
        let interrupts = machine(4, x2apic);
        let send = |low: u32, destination: u32| {
            if x2apic {
                write_msr(
                    &interrupts,
                    1,
                    0x830,
                    u64::from(destination) << 32 | u64::from(low),
                );
            } else {
                write(&interrupts, 1, 0x310, destination << 24);
                write(&interrupts, 1, 0x300, low);
            }
            receivers(&interrupts, 0x51)
        };
        assert_eq!(send(0x51, 2), [2]);
        assert_eq!(send(0x51 | 1 << 11, 0b1010), [1, 3]);
        assert_eq!(send(0x51 | 1 << 18, 0), [1], "self");
        assert_eq!(send(0x51 | 2 << 18, 0), [0, 1, 2, 3], "all");
        assert_eq!(send(0x51 | 3 << 18, 0), [0, 2, 3], "all others");
        assert_eq!(send(0x51 | 1 << 11 | 1 << 8, 0b0110).len(), 1, "lowest priority");
        let all = if x2apic { u32::MAX } else { 0xff };
        assert_eq!(send(0x51, all), [0, 1, 2, 3], "broadcast");
        if x2apic {
            assert_eq!(send(0x51, 0xff), [0; 0], "32 bits: no processor has this number");
            write_msr(&interrupts, 1, 0x83f, 0x51);
            assert_eq!(receivers(&interrupts, 0x51), [1]);
        }
    }
}

#[test]
fn non_maskable_ones_and_starts() {
    let interrupts = machine(3, false);
    write(&interrupts, 0, 0x300, 4 << 8 | 3 << 18);
    let nmis: Vec<_> = (0..3)
        .map(|index| processor(&interrupts, index).take_nmi())
        .collect();
    assert_eq!(nmis, [false, true, true]);
    // As kernels do it: INIT, its de-assertion, SIPI twice.
    write(&interrupts, 0, 0x310, 1 << 24);
    for command in [0xc500, 0x8500, 0x0609, 0x060a] {
        write(&interrupts, 0, 0x300, command);
    }
    let started = processor(&interrupts, 1);
    assert_ne!(started.attention().take() & Attention::INTERRUPT, 0);
    assert_eq!(started.take_reset(), Some(Reset::Init));
    assert_eq!(started.take_reset(), Some(Reset::Start(0x0a)));
    assert_eq!(started.take_reset(), None);
    write(&interrupts, 0, 0x300, 0x0609);
    assert_eq!(started.take_reset(), None, "it runs already");
    assert_eq!(processor(&interrupts, 2).take_reset(), None);
}

#[test]
fn a_level_goes_through_and_back() {
    let interrupts = machine(2, false);
    interrupts.write_ioapic(0x00, 0x10 + 2 * 11);
    interrupts.write_ioapic(0x10, 0x45 | 1 << 15);
    interrupts.write_ioapic(0x00, 0x11 + 2 * 11);
    interrupts.write_ioapic(0x10, 1 << 24);
    interrupts.set_irq(11, true);
    assert_eq!(
        receivers(&interrupts, 0x45),
        [1],
        "its end is told: it is asserted and comes again"
    );
    interrupts.set_irq(11, false);
    assert_eq!(receivers(&interrupts, 0x45), [1]);
    assert_eq!(receivers(&interrupts, 0x45), [0; 0]);
    interrupts.write_ioapic(0x00, 0x10 + 2 * 11);
    assert_eq!(interrupts.read_ioapic(0x10), 0x45 | 1 << 15, "no remote IRR");
}

#[test]
fn an_end_lets_the_next_in() {
    let interrupts = machine(1, false);
    let only = processor(&interrupts, 0);
    interrupts.signal_msi(msi(0, false, false, 0x41));
    assert_eq!(only.take_interrupt(), Some(0x41));
    only.attention().take();
    interrupts.signal_msi(msi(0, false, false, 0x42));
    assert_eq!(only.attention().take(), 0, "nothing that could be taken");
    assert_eq!(only.take_interrupt(), None);
    write(&interrupts, 0, 0xb0, 0);
    assert_eq!(only.attention().take(), Attention::INTERRUPT);
    assert_eq!(only.take_interrupt(), Some(0x42));
}

fn arm(interrupts: &Interrupts, vector: u8, periodic: bool, nanoseconds: u32) {
    write(interrupts, 0, 0x3e0, 0xb);
    write(
        interrupts,
        0,
        0x320,
        u32::from(vector) | u32::from(periodic) << 17,
    );
    write(interrupts, 0, 0x380, nanoseconds);
}

#[test]
fn a_timer_interrupts_a_processor_that_runs() {
    let interrupts = machine(1, false);
    let only = processor(&interrupts, 0);
    let begin = Instant::now();
    arm(&interrupts, 0xec, false, 5_000_000);
    while !only.attention().any() {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "the timer does not come"
        );
        thread::yield_now();
    }
    assert!(begin.elapsed() >= Duration::from_millis(5));
    assert_eq!(only.take_interrupt(), Some(0xec));
    write(&interrupts, 0, 0xb0, 0);
    only.attention().take();
    // A later one that is put off, and one that comes before it.
    arm(&interrupts, 0xec, false, 4_000_000_000);
    arm(&interrupts, 0xed, true, 2_000_000);
    for _ in 0..3 {
        let begin = Instant::now();
        while !only.attention().any() {
            assert!(
                begin.elapsed() < Duration::from_secs(3),
                "the period does not come"
            );
            thread::yield_now();
        }
        only.attention().take();
        assert_eq!(only.take_interrupt(), Some(0xed));
        write(&interrupts, 0, 0xb0, 0);
    }
}

#[test]
fn a_timer_wakes_a_processor_that_waits() {
    let interrupts = machine(1, false);
    let only = processor(&interrupts, 0);
    let begin = Instant::now();
    arm(&interrupts, 0xec, false, 5_000_000);
    only.wait();
    assert!(begin.elapsed() >= Duration::from_millis(5));
    assert_eq!(only.take_interrupt(), Some(0xec));
    write(&interrupts, 0, 0xb0, 0);
    only.attention().take();
    // It waits, is woken by something else, and runs when the timer comes.
    arm(&interrupts, 0xed, false, 1_000_000_000);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(3));
            interrupts.signal_msi(msi(0, false, false, 0x41));
        });
        only.wait();
    });
    assert_eq!(only.take_interrupt(), Some(0x41));
    write(&interrupts, 0, 0xb0, 0);
    only.attention().take();
    while !only.attention().any() {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "the timer was forgotten"
        );
        thread::yield_now();
    }
    assert_eq!(only.take_interrupt(), Some(0xed));
}

/// Two processors that wake each other: none must sleep through.
#[test]
fn no_wakeup_is_lost() {
    const ROUNDS: u32 = 20_000;
    let interrupts = machine(2, true);
    let (give_up, begin) = (Duration::from_secs(60), Instant::now());
    thread::scope(|scope| {
        for me in 0..2_u8 {
            let interrupts = &interrupts;
            scope.spawn(move || {
                let own = processor(interrupts, me);
                for round in 0..ROUNDS {
                    if me == 0 {
                        write_msr(interrupts, 0, 0x830, 1 << 32 | 0x61);
                    }
                    loop {
                        own.attention().take();
                        if own.take_interrupt().is_some() {
                            break;
                        }
                        own.wait();
                        assert!(begin.elapsed() < give_up, "round {round}");
                    }
                    write_msr(interrupts, me, 0x80b, 0);
                    if me == 1 {
                        write_msr(interrupts, 1, 0x830, 0x61);
                    }
                }
            });
        }
    });
}

#[test]
fn the_timers_thread_goes_with_the_machine() {
    let threads = || {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.trim() == "timer")
            .count()
    };
    let name = std::process::id();
    // In a process of its own: other tests have timers, too.
    if std::env::var_os("VESSEL_TEST_TIMERS").is_none() {
        let test = thread::current().name().unwrap().to_owned();
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test])
            .env("VESSEL_TEST_TIMERS", name.to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let interrupts = machine(2, false);
    arm(&interrupts, 0xec, true, 100_000);
    // A thread names itself, when it comes to run.
    let wait_for = |count| {
        let begin = Instant::now();
        while threads() != count {
            assert!(begin.elapsed() < Duration::from_secs(10), "{} threads", threads());
            thread::sleep(Duration::from_millis(1));
        }
    };
    wait_for(1);
    drop(interrupts);
    wait_for(0);
}

proptest! {
    /// The routing of interprocessor interrupts against who is addressed, one by one.
    #[test]
    fn commands_reach_whom_they_name(
        x2apic: bool, sender in 0_u8..6, destination: u8, logical: bool, shorthand in 0_u32..4, mode in 0_u32..2,
    ) {
        let interrupts = machine(6, x2apic);
        let low = 0x71 | mode << 8 | u32::from(logical) << 11 | shorthand << 18;
        if x2apic {
            write_msr(&interrupts, sender, 0x830, u64::from(destination) << 32 | u64::from(low));
        } else {
            write(&interrupts, sender, 0x310, u32::from(destination) << 24);
            write(&interrupts, sender, 0x300, low);
        }
        let addressed: Vec<u8> = (0..6_u8)
            .filter(|index| match shorthand {
                0 if destination == 0xff && !x2apic => true,
                0 if logical => destination >> index & 1 != 0,
                0 => destination == *index,
                1 => *index == sender,
                2 => true,
                _ => *index != sender,
            })
            .collect();
        let reached = receivers(&interrupts, 0x71);
        let one_only = mode == 1 && shorthand != 1 && (logical || shorthand != 0 || destination == 0xff);
        if one_only && !addressed.is_empty() {
            prop_assert_eq!(reached.len(), 1);
            prop_assert!(addressed.contains(&reached[0]));
        } else {
            prop_assert_eq!(reached, addressed);
        }
    }
}
