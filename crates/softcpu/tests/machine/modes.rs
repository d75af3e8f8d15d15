//! Real, protected and long mode, and the ways between them.

use iced_x86::code_asm::*;
use vessel_softcpu::{Attention, Reset, Segment};

use crate::machine::{Machine, at, both, flat, selector};

/// Where real mode begins.
const REAL: u64 = 0x3_0000;

fn real_mode(machine: &mut Machine) {
    let real = |base: u64| Segment {
        base,
        limit: 0xffff,
        selector: (base >> 4) as u16,
        attributes: 0x93,
    };
    let state = &mut machine.state;
    state.segments = [real(0); 6];
    state.segments[1] = Segment {
        attributes: 0x9b,
        ..real(REAL)
    };
    state.cr0 = 0x10;
    state.cr3 = 0;
    state.cr4 = 0;
    state.msrs.clear();
    state.rip = 0;
    state.gpr[4] = 0x7000;
    state.idt.base = 0;
    state.idt.limit = 0x3ff;
    state.rflags = 2;
}

#[test]
fn from_real_to_protected_to_long_mode() {
    both(|mut machine| {
        real_mode(&mut machine);
        let (protected, long) = (REAL + 0x100, REAL + 0x200);
        // The pointer of `lgdt`: limit, base.
        machine.write(REAL + 0x80, &[0x7f, 0, 0, 0xa0, 0, 0]);
        machine.code(REAL, 16, |a| {
            a.cli().unwrap();
            a.mov(eax, 0x1234_5678).unwrap();
            // lgdt [0x80] with 32-bit operands, of CS.
            a.db(&[0x2e, 0x66, 0x0f, 0x01, 0x16, 0x80, 0x00]).unwrap();
            a.mov(ebx, cr0).unwrap();
            a.or(bl, 1).unwrap();
            a.mov(cr0, ebx).unwrap();
            // jmp far 0x38:protected with a 32-bit offset.
            a.db(&[0x66, 0xea]).unwrap();
            a.dd(&[protected as u32]).unwrap();
            a.dw(&[selector::CODE_32]).unwrap();
        });
        machine.code(protected, 32, |a| {
            a.mov(ecx, selector::DATA as i32).unwrap();
            a.mov(ds, ecx).unwrap();
            a.mov(ss, ecx).unwrap();
            a.mov(esp, at::STACK as i32).unwrap();
            a.push(0x1111).unwrap();
            a.pop(esi).unwrap();
            a.mov(edx, cr4).unwrap();
            a.or(edx, 0x20).unwrap();
            a.mov(cr4, edx).unwrap();
            a.mov(edx, at::PML4 as i32).unwrap();
            a.mov(cr3, edx).unwrap();
            a.push(eax).unwrap();
            a.mov(ecx, 0xc000_0080_u32).unwrap();
            a.rdmsr().unwrap();
            a.or(eax, 0x100).unwrap();
            a.wrmsr().unwrap();
            a.rdmsr().unwrap();
            a.mov(edi, eax).unwrap();
            a.mov(ebx, cr0).unwrap();
            a.or(ebx, 0x8000_0000_u32 as i32).unwrap();
            a.mov(cr0, ebx).unwrap();
            a.rdmsr().unwrap();
            a.mov(ebp, eax).unwrap();
            a.pop(eax).unwrap();
            a.db(&[0xea]).unwrap();
            a.dd(&[long as u32]).unwrap();
            a.dw(&[selector::CODE]).unwrap();
        });
        machine.code(long, 64, |a| {
            a.mov(r8, 0x1_0000_0000_u64).unwrap();
            a.lea(r9, ptr(r8 + rax)).unwrap();
            a.push(r9).unwrap();
            a.pop(r10).unwrap();
            a.mov(r11d, cs).unwrap();
            a.hlt().unwrap();
        });
        let state = machine.run(&mut machine.cpu(0));
        let g = &state.gpr;
        assert_eq!(g[10], 0x1_1234_5678);
        assert_eq!((g[6], g[11]), (0x1111, u64::from(selector::CODE)));
        // LMA comes with paging.
        assert_eq!((g[7] & 0x500, g[5] & 0x500), (0x100, 0x500));
        assert_eq!(state.cr0 & 0x8000_0001, 0x8000_0001);
    });
}

#[test]
fn real_mode_has_segments_and_interrupts() {
    both(|mut machine| {
        real_mode(&mut machine);
        // Vector 0x21 goes to 0x3000:0x0400.
        machine.write(0x21 * 4, &[0x00, 0x04, 0x00, 0x30]);
        machine.code(REAL + 0x400, 16, |a| {
            a.mov(bx, cs).unwrap();
            a.iret().unwrap();
        });
        machine.code(REAL, 16, |a| {
            a.mov(ax, 0x2000).unwrap();
            a.mov(ds, ax).unwrap();
            a.mov(word_ptr(0x10), 0x1234).unwrap();
            a.mov(si, 0x10).unwrap();
            a.mov(cx, word_ptr(si)).unwrap();
            a.int(0x21).unwrap();
            // Addresses wrap within 16 bits of BX + SI.
            a.mov(dx, sp).unwrap();
            a.hlt().unwrap();
        });
        let state = machine.run(&mut machine.cpu(0));
        assert_eq!(machine.get(0x2_0010) & 0xffff, 0x1234);
        assert_eq!(
            (state.gpr[1], state.gpr[3], state.gpr[2]),
            (0x1234, 0x3000, 0x7000)
        );
    });
}

#[test]
fn a_32_bit_program_runs_in_long_mode_and_comes_back() {
    both(|mut machine| {
        machine.user();
        machine.state.segments[1] = flat(selector::USER_CODE_32, 0xc0fb);
        machine.state.segments[3] = flat(selector::USER_DATA, 0xc0f3);
        machine.state.gpr[0] = 0xffff_ffff_0000_0001;
        machine.code(at::USER_CODE, 32, |a| {
            a.dec(eax).unwrap();
            a.dec(eax).unwrap();
            a.push(eax).unwrap();
            a.pop(ebx).unwrap();
            a.mov(ecx, at::DATA as i32).unwrap();
            a.mov(dword_ptr(ecx), eax).unwrap();
            a.mov(edx, dword_ptr(ecx)).unwrap();
            a.int(0x80).unwrap();
        });
        machine.gate(0x80, at::HANDLERS + 0x80, 0);
        let state = machine.run(&mut machine.cpu(0));
        let trap = machine.trap(&state);
        assert_eq!((trap.vector, trap.cs, trap.rsp), (0x80, 0x23, at::USER_STACK));
        assert_eq!(
            (state.gpr[0], state.gpr[3], state.gpr[2]),
            (0xffff_ffff, 0xffff_ffff, 0xffff_ffff)
        );
    });
}

#[test]
fn limits_and_rights_of_segments_count_outside_of_64_bit_code() {
    both(|mut machine| {
        // DS: limit 0xfff, at DATA, read-only.
        let small = Segment {
            base: at::DATA,
            limit: 0xfff,
            selector: 0,
            attributes: 0x40f1,
        };
        machine.user();
        machine.state.segments[1] = flat(selector::USER_CODE_32, 0xc0fb);
        machine.state.segments[3] = small;
        machine.write(at::DATA + 0xffc, &[1, 2, 3, 4]);
        for (address, write, vector) in [(0xffc, false, 0x80), (0xffd, false, 13), (0x10, true, 13)] {
            machine.code(at::USER_CODE, 32, |a| {
                a.mov(ecx, address).unwrap();
                if write {
                    a.mov(dword_ptr(ecx), eax).unwrap();
                } else {
                    a.mov(eax, dword_ptr(ecx)).unwrap();
                }
                a.int(0x80).unwrap();
            });
            let state = machine.run(&mut machine.cpu(0));
            assert_eq!(machine.trap(&state).vector, vector, "{address:#x}");
        }
    });
}

#[test]
fn a_processor_starts_where_another_says() {
    both(|machine| {
        machine.code(0x7_0000, 16, |a| {
            a.mov(ax, cs).unwrap();
            a.inc(bx).unwrap();
            a.hlt().unwrap();
        });
        let mut cpu = vessel_softcpu::Cpu::new(machine.memory.clone(), 1, 1_000_000);
        let mut outside = machine.outside.clone();
        assert_eq!(cpu.run(&mut outside), vessel_softcpu::Stop::Halted);
        assert!(cpu.state().events.waits_for_start);
        machine
            .outside
            .0
            .lock()
            .unwrap()
            .reset
            .extend([Reset::Init, Reset::Start(0x70)]);
        cpu.attention().raise(Attention::INTERRUPT);
        // Each is looked at by itself.
        for _ in 0..2 {
            cpu.run(&mut outside);
            cpu.attention().raise(Attention::INTERRUPT);
        }
        let state = cpu.state();
        assert!(state.events.halted && !state.events.waits_for_start);
        assert_eq!((state.gpr[0], state.gpr[3]), (0x7000, 1));
    });
}

#[test]
fn a_state_that_is_taken_out_and_put_back_goes_on() {
    both(|mut machine| {
        machine.user();
        machine.code(at::USER_CODE, 64, |a| {
            let mut again = a.create_label();
            a.movq(xmm3, rax).unwrap();
            a.fld1().unwrap();
            a.set_label(&mut again).unwrap();
            a.inc(rbx).unwrap();
            a.add(rcx, rbx).unwrap();
            a.jmp(again).unwrap();
        });
        let mut cpu = machine.cpu(0);
        let attention = cpu.attention();
        let mut outside = machine.outside.clone();
        attention.raise(Attention::KICK);
        cpu.run(&mut outside);
        let kicker = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(5));
            attention.raise(Attention::KICK);
        });
        cpu.run(&mut outside);
        kicker.join().unwrap();
        let state = cpu.state();
        let mut other = machine.cpu(2);
        other.set_state(&state);
        assert_eq!(other.state(), state);
        // The sum of the numbers up to RBX, or up to the one before.
        let n = state.gpr[3];
        let sum = |n: u64| (u128::from(n) * u128::from(n + 1) / 2) as u64;
        assert!(state.gpr[1] == sum(n) || state.gpr[1] == sum(n - 1));
    });
}
