//! State of vCPUs and machines: put back, it goes on where it was, on the same accelerator or another.

use std::sync::Arc;

use iced_x86::code_asm::*;
use proptest::prelude::*;
use vessel_vmm::accel::{Accelerator, LAPIC_BASE, Soft, Vcpu, VcpuState, VmState};

use crate::guest::*;
use crate::interrupts::{enable, end, return_from_interrupt, wait};

/// Another machine with the same memory and state.
fn moved(bench: &Bench, vcpu: &dyn Vcpu, to: &Arc<dyn Accelerator>) -> (Bench, Box<dyn Vcpu>) {
    let (state, machine) = (vcpu.state().unwrap(), bench.vm.save().unwrap());
    // As it goes over the wire.
    let state: VcpuState = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
    let machine: VmState = serde_json::from_slice(&serde_json::to_vec(&machine).unwrap()).unwrap();
    let other = Bench::new(to, 1);
    other.write(0, &bench.contents());
    other.vm.restore(&machine).unwrap();
    let vcpu = other.vcpu(0, |made| *made = state);
    (other, vcpu)
}

/// From each accelerator to each.
fn on_pairs(needs: Needs, test: impl Fn(&Arc<dyn Accelerator>, &Arc<dyn Accelerator>)) {
    on_each(needs, |from| {
        test(&from, &from);
        let soft: Arc<dyn Accelerator> = Arc::new(Soft::new());
        if from.name() != soft.name() {
            test(&from, &soft);
            test(&soft, &from);
        }
    });
}

/// A guest that computes for long and is moved in the middle, again and again.
fn computes(bits: u32, needs: Needs, prepare: fn(&Bench, &mut VcpuState)) {
    on_pairs(needs, |from, to| {
        let mut bench = Bench::new(from, 1);
        bench.assemble(bits, CODE, |a| {
            let mut again = a.create_label();
            a.mov(ecx, 60)?;
            a.mov(eax, 12345)?;
            a.set_label(&mut again)?;
            a.imul_3(eax, eax, 1_103_515_245)?;
            a.add(eax, 12345)?;
            a.out(u32::from(NOTE), eax)?;
            a.xor(ebx, ebx)?;
            a.push(ax)?;
            a.pop(bx)?;
            a.rol(bx, 1)?;
            a.xchg(ebx, eax)?;
            a.out(u32::from(NOTE), ax)?;
            a.xchg(ebx, eax)?;
            a.out(u32::from(DONE), al)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpu = bench.vcpu(0, |state| prepare(&bench, state));
        let mut noted = vec![];
        for round in 0..60 {
            bench.finish(&mut vcpu);
            noted.extend(bench.noted());
            if round % 7 == 0 {
                let next = moved(&bench, &*vcpu, if round % 2 == 0 { to } else { from });
                (bench, vcpu) = next;
            }
        }
        let mut expected = vec![];
        let mut value = 12345_u32;
        for _ in 0..60 {
            value = value.wrapping_mul(1_103_515_245).wrapping_add(12345);
            expected.extend(value.to_le_bytes());
            expected.extend((value as u16).rotate_left(1).to_le_bytes());
        }
        assert_eq!(noted, expected);
    });
}

#[test]
fn a_move_in_real_mode() {
    computes(16, Needs::Little, |_, state| real_mode(state));
}

#[test]
fn a_move_in_protected_mode() {
    computes(32, Needs::Little, protected_mode);
}

#[test]
fn a_move_in_long_mode() {
    computes(64, Needs::Little, long_mode);
}

/// The extended state: what SSE computes with.
#[test]
fn vectors_move_along() {
    on_pairs(Needs::Everything, |from, to| {
        let bench = Bench::new(from, 1);
        bench.write(DATA, &(0..16).collect::<Vec<u8>>());
        bench.assemble(64, CODE, |a| {
            a.mov(ebx, DATA as u32)?;
            a.movdqu(xmm9, ptr(rbx))?;
            a.fld1()?;
            a.out(u32::from(DONE), al)?;
            a.paddb(xmm9, xmm9)?;
            a.movdqu(ptr(rbx + 16), xmm9)?;
            a.fstp(qword_ptr(rbx + 32))?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpu = bench.vcpu(0, |state| long_mode(&bench, state));
        bench.finish(&mut vcpu);
        let (other, mut vcpu) = moved(&bench, &*vcpu, to);
        other.finish(&mut vcpu);
        let doubled: Vec<u8> = (0..16).map(|byte| byte * 2).collect();
        assert_eq!(other.read::<16>(DATA + 16), doubled[..]);
        assert_eq!(f64::from_bits(other.read_u64(DATA + 32)), 1.0);
    });
}

/// An interrupt that was requested and not taken, a pin whose level is up, a timer that runs.
#[test]
fn interrupts_move_along() {
    on_pairs(Needs::Little, |from, to| {
        let bench = Bench::new(from, 1);
        for vector in [0x41_u32, 0x52, 0x4c] {
            bench.assemble(32, HANDLERS + 256 * u64::from(vector & 15), |a| {
                a.mov(al, vector)?;
                a.out(u32::from(NOTE), al)?;
                end(a)?;
                if vector == 0x4c {
                    a.out(u32::from(DONE), al)?;
                }
                return_from_interrupt(a)
            });
        }
        bench.assemble(32, CODE, |a| {
            enable(a)?;
            a.mov(dword_ptr(0xfec0_0000_u32), 0x10 + 2 * 5)?;
            a.mov(dword_ptr(0xfec0_0010_u32), 0x52)?;
            a.mov(dword_ptr(LAPIC_BASE + 0x3e0), 0xb)?;
            a.mov(dword_ptr(LAPIC_BASE + 0x320), 0x4c)?;
            a.mov(dword_ptr(LAPIC_BASE + 0x380), 300_000_000)?;
            a.out(u32::from(DONE), al)?;
            wait(a)
        });
        let mut vcpu = bench.vcpu(0, |state| protected_mode(&bench, state));
        bench.finish(&mut vcpu);
        let msi = vessel_vmm::accel::Msi {
            address: 0xfee0_0000,
            data: 0x41,
        };
        bench.vm.signal_msi(msi).unwrap();
        let (other, mut vcpu) = moved(&bench, &*vcpu, to);
        // The table of the I/O APIC came along.
        other.vm.set_irq(5, true).unwrap();
        other.finish(&mut vcpu);
        assert_eq!(other.noted(), [0x52, 0x41, 0x4c]);
    });
}

#[test]
fn the_clocks_go_on() {
    on_pairs(Needs::Little, |from, to| {
        let bench = Bench::new(from, 1);
        bench.assemble(32, CODE, |a| {
            for place in [DATA, DATA + 8] {
                a.rdtsc()?;
                a.mov(ptr(place), eax)?;
                a.mov(ptr(place + 4), edx)?;
                a.out(u32::from(DONE), al)?;
            }
            a.nop()
        });
        let mut vcpu = bench.vcpu(0, |state| protected_mode(&bench, state));
        bench.finish(&mut vcpu);
        let clock = bench.vm.save().unwrap().clock;
        let (other, mut vcpu) = moved(&bench, &*vcpu, to);
        other.finish(&mut vcpu);
        let (before, after) = (other.read_u64(DATA), other.read_u64(DATA + 8));
        let past = after.wrapping_sub(before);
        assert!(past < 60_000_000_000, "the counter went from {before} to {after}");
        let now = other.vm.save().unwrap().clock;
        assert!(
            now >= clock && now - clock < 20_000_000_000,
            "{clock} and then {now}"
        );
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// What is set is what is read.
    #[test]
    fn registers_stay(gpr: [u64; 16], rip in 0_u64..1 << 47, flags in 0_u64..1 << 8, debug in 0_u64..1 << 47, msrs: [u32; 3]) {
        on_each(Needs::Little, |accelerator| {
            let bench = Bench::new(&accelerator, 1);
            let vcpu = bench.vcpu(0, |state| {
                long_mode(&bench, state);
                let registers = &mut state.registers;
                registers.gpr = gpr;
                registers.rip = rip;
                registers.rflags = flags & 0xd5 | 2;
                registers.debug[0] = debug;
                registers.cr2 = debug;
                // SYSENTER's, LSTAR, the kernel's GS.
                set_msr(state, 0x174, msrs[0].into());
                set_msr(state, 0xc000_0082, msrs[1].into());
                set_msr(state, 0xc000_0102, msrs[2].into());
                set_msr(state, 0xc000_0100, debug);
                state.registers.segments[4].base = debug;
            });
            let state = vcpu.state().unwrap();
            let registers = &state.registers;
            assert_eq!(registers.gpr, gpr);
            assert_eq!((registers.rip, registers.rflags), (rip, flags & 0xd5 | 2));
            assert_eq!((registers.debug[0], registers.cr2, registers.cr3), (debug, debug, PAGE_TABLES));
            assert_eq!((registers.cr0, registers.cr4), (0x8001_0033, 0x620));
            assert_eq!(registers.segments[1].attributes, 0xa09b);
            assert_eq!(registers.segments[4].base, debug);
            assert_eq!(registers.task.attributes, 0x8b);
            assert_eq!(registers.idt.base, IDT);
            for (number, value) in [(0x174, msrs[0]), (0xc000_0082, msrs[1]), (0xc000_0102, msrs[2])] {
                assert_eq!(msr(&state, number), Some(value.into()), "{number:#x}");
            }
            assert_eq!(msr(&state, 0xc000_0080), Some(0x501));
            assert!(state.xsave.len() >= 576);
            assert_eq!(state.lapic.registers.len(), 64);
        });
    }
}
