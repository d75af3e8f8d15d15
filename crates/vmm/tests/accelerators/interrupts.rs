//! Interrupts: messages, the I/O APIC's pins, the local APIC's timer, waiting.
//!
//! The guests are 32-bit without paging: they reach the APICs' pages, and an emulating KVM executes them.

use std::thread;
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vessel_vmm::accel::{Accelerator, ErrorKind, IOAPIC_BASE, LAPIC_BASE, Msi};

use std::sync::Arc;

use crate::guest::*;

/// Enables the local APIC.
pub fn enable(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dword_ptr(LAPIC_BASE + 0xf0), 0x1ff)
}

pub fn end(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dword_ptr(LAPIC_BASE + 0xb0), 0)
}

/// What `iretd` does here, in instructions that an emulating KVM knows.
pub fn return_from_interrupt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(eax)?;
    // Above it are EIP, CS, EFLAGS: they become EFLAGS and EIP.
    a.mov(eax, ptr(esp + 4))?;
    a.xchg(ptr(esp + 12), eax)?;
    a.mov(ptr(esp + 8), eax)?;
    a.pop(eax)?;
    a.add(esp, 4)?;
    a.popfd()?;
    a.ret()
}

fn redirect(a: &mut CodeAssembler, pin: u32, entry: u32) -> Result<(), IcedError> {
    a.mov(dword_ptr(IOAPIC_BASE), (0x10 + 2 * pin) as i32)?;
    a.mov(dword_ptr(IOAPIC_BASE + 0x10), entry as i32)
}

/// Waits for interrupts for ever.
pub fn wait(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.sti()?;
    a.set_label(&mut again)?;
    a.hlt()?;
    a.jmp(again)
}

/// Notes the vector, ends the interrupt, and the guest if `done`.
fn handler(bench: &Bench, vector: u32, done: bool) {
    bench.assemble(32, HANDLERS + 256 * u64::from(vector & 15), |a| {
        a.mov(al, vector)?;
        a.out(u32::from(NOTE), al)?;
        end(a)?;
        if done {
            a.out(u32::from(DONE), al)?;
        }
        return_from_interrupt(a)
    });
}

fn msi(vector: u32) -> Msi {
    Msi {
        address: 0xfee0_0000,
        data: vector,
    }
}

#[test]
fn messages_wake_a_halted_processor() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        handler(&bench, 0x41, true);
        bench.assemble(32, CODE, |a| {
            enable(a)?;
            a.out(u32::from(DONE), al)?;
            wait(a)
        });
        let mut vcpu = bench.vcpu(0, |state| protected_mode(&bench, state));
        bench.finish(&mut vcpu);
        for _ in 0..5 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(3));
                    bench.vm.signal_msi(msi(0x41)).unwrap();
                });
                bench.finish(&mut vcpu);
            });
            assert_eq!(bench.noted(), [0x41]);
        }
        // To nobody, to nowhere, and no interrupt: nothing happens, and nothing fails.
        for (address, data) in [
            (0xfee0_9000, 0x41),
            (0xfed0_0000, 0x41),
            (0x1_fee0_0000, 0x41),
            (0xfee0_0000, 0x05),
        ] {
            bench.vm.signal_msi(Msi { address, data }).unwrap();
        }
        bench.vm.signal_msi(msi(0x41)).unwrap();
        bench.finish(&mut vcpu);
        assert_eq!(bench.noted(), [0x41]);
    });
}

#[test]
fn a_message_interrupts_a_loop() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        handler(&bench, 0x41, true);
        bench.assemble(32, CODE, |a| {
            let mut again = a.create_label();
            enable(a)?;
            a.sti()?;
            a.set_label(&mut again)?;
            a.inc(ebx)?;
            a.jmp(again)
        });
        let mut vcpu = bench.vcpu(0, |state| protected_mode(&bench, state));
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(10));
                bench.vm.signal_msi(msi(0x41)).unwrap();
            });
            bench.finish(&mut vcpu);
        });
        assert_eq!(bench.noted(), [0x41]);
    });
}

#[test]
fn the_higher_vector_comes_first() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        handler(&bench, 0x41, false);
        handler(&bench, 0x52, false);
        handler(&bench, 0x33, true);
        bench.assemble(32, CODE, |a| {
            enable(a)?;
            a.out(u32::from(DONE), al)?;
            // They are there already: one instruction of shadow, and then all.
            a.sti()?;
            a.nop()?;
            wait(a)
        });
        let mut vcpu = bench.vcpu(0, |state| protected_mode(&bench, state));
        bench.finish(&mut vcpu);
        for vector in [0x33, 0x52, 0x41] {
            bench.vm.signal_msi(msi(vector)).unwrap();
        }
        bench.finish(&mut vcpu);
        assert_eq!(bench.noted(), [0x52, 0x41, 0x33]);
    });
}

fn ioapic_bench(accelerator: &Arc<dyn Accelerator>, entry: u32) -> (Bench, Box<dyn vessel_vmm::accel::Vcpu>) {
    let bench = Bench::new(accelerator, 1);
    handler(&bench, 0x41, true);
    bench.assemble(32, CODE, |a| {
        enable(a)?;
        redirect(a, 11, entry)?;
        a.out(u32::from(DONE), al)?;
        wait(a)
    });
    let mut vcpu = bench.vcpu(0, |state| protected_mode(&bench, state));
    bench.finish(&mut vcpu);
    (bench, vcpu)
}

#[test]
fn a_pin_with_edges() {
    on_each(Needs::Little, |accelerator| {
        let (bench, mut vcpu) = ioapic_bench(&accelerator, 0x41);
        for _ in 0..3 {
            bench.vm.set_irq(11, true).unwrap();
            bench.vm.set_irq(11, false).unwrap();
            bench.finish(&mut vcpu);
            assert_eq!(bench.noted(), [0x41]);
        }
        assert_eq!(bench.vm.set_irq(24, true).unwrap_err().kind(), ErrorKind::Invalid);
    });
}

#[test]
fn a_pin_with_a_level() {
    on_each(Needs::Little, |accelerator| {
        let (bench, mut vcpu) = ioapic_bench(&accelerator, 0x41 | 1 << 15);
        bench.vm.set_irq(11, true).unwrap();
        for _ in 0..3 {
            // As long as it is asserted, each end is a new beginning.
            bench.finish(&mut vcpu);
            assert_eq!(bench.noted(), [0x41]);
        }
        bench.vm.set_irq(11, false).unwrap();
        bench.settle(&mut vcpu, Duration::from_millis(20));
        let late = bench.noted();
        assert!(
            late.len() <= 1,
            "the one that was requested before, and no more: {late:x?}"
        );
        bench.vm.set_irq(11, true).unwrap();
        bench.finish(&mut vcpu);
        assert!(bench.noted().contains(&0x41));
    });
}

#[test]
fn a_masked_pin_is_silent() {
    on_each(Needs::Little, |accelerator| {
        let (bench, mut vcpu) = ioapic_bench(&accelerator, 0x41 | 1 << 16);
        bench.vm.set_irq(11, true).unwrap();
        bench.vm.set_irq(11, false).unwrap();
        bench.settle(&mut vcpu, Duration::from_millis(20));
        assert_eq!(bench.noted(), [0; 0]);
    });
}

fn timer(
    accelerator: &Arc<dyn Accelerator>,
    lvt: u32,
    count: u32,
    halts: bool,
) -> (Bench, Box<dyn vessel_vmm::accel::Vcpu>) {
    let bench = Bench::new(accelerator, 1);
    handler(&bench, 0x4c, true);
    bench.assemble(32, CODE, |a| {
        enable(a)?;
        a.out(u32::from(DONE), al)?;
        a.mov(dword_ptr(LAPIC_BASE + 0x3e0), 0xb)?;
        a.mov(dword_ptr(LAPIC_BASE + 0x320), lvt as i32)?;
        a.mov(dword_ptr(LAPIC_BASE + 0x380), count as i32)?;
        if halts {
            return wait(a);
        }
        let mut again = a.create_label();
        a.sti()?;
        a.set_label(&mut again)?;
        a.inc(ebx)?;
        a.jmp(again)
    });
    let mut vcpu = bench.vcpu(0, |state| protected_mode(&bench, state));
    bench.finish(&mut vcpu);
    (bench, vcpu)
}

#[test]
fn the_timer_shoots_once() {
    for halts in [true, false] {
        on_each(Needs::Little, |accelerator| {
            let (bench, mut vcpu) = timer(&accelerator, 0x4c, 20_000_000, halts);
            let begin = Instant::now();
            bench.finish(&mut vcpu);
            assert!(
                begin.elapsed() >= Duration::from_millis(19),
                "{:?}",
                begin.elapsed()
            );
            assert_eq!(bench.noted(), [0x4c]);
            bench.settle(&mut vcpu, Duration::from_millis(50));
            assert_eq!(bench.noted(), [0; 0], "and not again");
        });
    }
}

#[test]
fn the_timer_comes_again() {
    for halts in [true, false] {
        on_each(Needs::Little, |accelerator| {
            let (bench, mut vcpu) = timer(&accelerator, 0x4c | 1 << 17, 5_000_000, halts);
            let begin = Instant::now();
            for _ in 0..6 {
                bench.finish(&mut vcpu);
                assert_eq!(bench.noted(), [0x4c]);
            }
            assert!(
                begin.elapsed() >= Duration::from_millis(27),
                "{:?}",
                begin.elapsed()
            );
        });
    }
}

#[test]
fn the_timer_has_deadlines() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        handler(&bench, 0x4c, true);
        bench.assemble(32, CODE, |a| {
            enable(a)?;
            a.mov(dword_ptr(LAPIC_BASE + 0x320), 0x4c | 2 << 17)?;
            a.rdtsc()?;
            a.mov(ptr(DATA), eax)?;
            a.mov(ptr(DATA + 4), edx)?;
            a.add(eax, 30_000_000)?;
            a.adc(edx, 0)?;
            a.mov(ecx, 0x6e0)?;
            a.wrmsr()?;
            wait(a)
        });
        bench.assemble(32, HANDLERS + 0xc00, |a| {
            a.rdtsc()?;
            a.mov(ptr(DATA + 8), eax)?;
            a.mov(ptr(DATA + 12), edx)?;
            a.mov(ecx, 0x6e0)?;
            a.rdmsr()?;
            a.out(u32::from(NOTE), eax)?;
            end(a)?;
            a.out(u32::from(DONE), al)?;
            return_from_interrupt(a)
        });
        let mut vcpu = bench.vcpu(0, |state| protected_mode(&bench, state));
        bench.finish(&mut vcpu);
        assert_eq!(bench.noted(), [0; 4], "disarmed");
        let waited = bench.read_u64(DATA + 8).wrapping_sub(bench.read_u64(DATA));
        assert!((30_000_000..30_000_000_000).contains(&waited), "{waited}");
    });
}

#[test]
fn the_paravirtual_clock_runs() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        bench.assemble(32, CODE, |a| {
            for (msr, value) in [
                (0x4b56_4d01_u32, DATA as u32 | 1),
                (0x4b56_4d00, DATA as u32 + 64),
            ] {
                a.mov(ecx, msr)?;
                a.mov(eax, value)?;
                a.xor(edx, edx)?;
                a.wrmsr()?;
            }
            a.rdtsc()?;
            a.mov(ptr(DATA + 128), eax)?;
            a.mov(ptr(DATA + 132), edx)?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpu = bench.vcpu(0, |state| protected_mode(&bench, state));
        bench.finish(&mut vcpu);
        let page: [u8; 32] = bench.read(DATA);
        let version = bench.read_u32(DATA);
        assert!(version != 0 && version.is_multiple_of(2), "{page:x?}");
        // As `pvclock_read_cycles` of a guest does it.
        let ticks = bench.read_u64(DATA + 128).wrapping_sub(bench.read_u64(DATA + 8));
        let (multiplier, shift) = (u128::from(bench.read_u32(DATA + 24)), page[28] as i8);
        let shifted = if shift < 0 {
            ticks >> -shift
        } else {
            ticks << shift
        };
        let time = bench.read_u64(DATA + 16) + ((u128::from(shifted) * multiplier) >> 32) as u64;
        assert!(
            (1_000..60_000_000_000).contains(&time),
            "{time} ns since the machine began"
        );
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let began = u64::from(bench.read_u32(DATA + 64 + 4));
        assert_eq!(bench.read_u32(DATA + 64) % 2, 0);
        assert!(now - began <= 61, "{began}, and it is {now}");
    });
}
