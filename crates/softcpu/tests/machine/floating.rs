//! x87 and SSE as far as the supervisor has a say in them.

use iced_x86::code_asm::*;

use crate::machine::{at, both};

const EM: u64 = 1 << 2;
const TS: u64 = 1 << 3;
const MP: u64 = 1 << 1;

#[test]
fn switched_tasks_and_missing_units_trap() {
    both(|mut machine| {
        let (before_0, before_4) = (machine.state.cr0, machine.state.cr4);
        let mut vector = |bits: u64, osfxsr: bool, code: &[u8]| {
            machine.state.cr0 = before_0 & !MP | bits;
            machine.state.cr4 = if osfxsr { before_4 } else { before_4 & !(1 << 9) };
            machine.write(at::CODE, code);
            machine.write(at::CODE + code.len() as u64, &[0xcc]);
            let state = machine.run(&mut machine.cpu(0));
            machine.trap(&state).vector
        };
        let (fld1, movaps, paddb_mm, wait): (&[u8], &[u8], &[u8], &[u8]) =
            (&[0xd9, 0xe8], &[0x0f, 0x28, 0xc1], &[0x0f, 0xfc, 0xc1], &[0x9b]);
        let fxsave: &[u8] = &[0x0f, 0xae, 0x04, 0x25, 0, 0, 8, 0];
        for (code, ts, em, no_osfxsr) in [
            (fld1, 7, 7, 3),
            (movaps, 7, 6, 6),
            (paddb_mm, 7, 6, 3),
            (wait, 3, 3, 3),
            (fxsave, 7, 7, 3),
        ] {
            assert_eq!(vector(0, true, code), 3, "{code:02x?}");
            assert_eq!(vector(TS, true, code), ts, "{code:02x?} with TS");
            assert_eq!(vector(EM, true, code), em, "{code:02x?} with EM");
            assert_eq!(vector(0, false, code), no_osfxsr, "{code:02x?} without OSFXSR");
        }
        assert_eq!(vector(TS | MP, true, wait), 7);
        // VEX is not offered.
        assert_eq!(vector(0, true, &[0xc5, 0xf8, 0x28, 0xc1]), 6);
        // `clts` is enough.
        assert_eq!(vector(TS, true, &[0x0f, 0x06, 0xd9, 0xe8]), 3);
    });
}

#[test]
fn an_x87_exception_waits_for_the_next_instruction() {
    both(|machine| {
        let state = machine.execute(|a| {
            // Division by zero unmasked: control word 0x037b.
            a.mov(rbx, at::DATA).unwrap();
            a.mov(word_ptr(rbx), 0x037b).unwrap();
            a.fldcw(word_ptr(rbx)).unwrap();
            a.fld1().unwrap();
            a.fldz().unwrap();
            a.fdivp(st1, st0).unwrap();
            a.inc(ecx).unwrap();
            a.fnstsw(ax).unwrap();
            a.inc(ecx).unwrap();
            a.fld1().unwrap();
            a.inc(ecx).unwrap();
            a.hlt().unwrap();
        });
        let trap = machine.trap(&state);
        assert_eq!((trap.vector, state.gpr[1]), (16, 2));
        assert_eq!(state.gpr[0] & 0x84, 0x84);
        // The address of the division.
        let rip = u64::from_le_bytes(state.xsave[8..16].try_into().unwrap());
        assert_eq!(rip, trap.rip - 2 - 2 - 2 - 2);
    });
}

#[test]
fn an_sse_exception_is_xm_or_ud() {
    for (osxmmexcpt, vector) in [(true, 19), (false, 6)] {
        both(|mut machine| {
            if !osxmmexcpt {
                machine.state.cr4 &= !(1 << 10);
            }
            let state = machine.execute(|a| {
                a.mov(rbx, at::DATA).unwrap();
                a.mov(dword_ptr(rbx), 0x1d80).unwrap();
                a.ldmxcsr(dword_ptr(rbx)).unwrap();
                a.mov(eax, 1).unwrap();
                a.cvtsi2sd(xmm0, eax).unwrap();
                a.xorps(xmm1, xmm1).unwrap();
                a.divsd(xmm0, xmm1).unwrap();
            });
            assert_eq!(machine.trap(&state).vector, vector);
            // ZE is set, the register is as it was.
            assert_eq!(state.xsave[24] & 0x3f, 4);
            assert_eq!(state.xsave[160..168], 1.0_f64.to_le_bytes());
        });
    }
}

#[test]
fn reserved_bits_of_mxcsr_are_a_protection_fault() {
    both(|machine| {
        for instruction in 0..2 {
            let trap = machine.trapped(|a| {
                a.mov(rbx, at::DATA).unwrap();
                a.mov(dword_ptr(rbx + 24), 0x1_0000).unwrap();
                if instruction == 0 {
                    a.ldmxcsr(dword_ptr(rbx + 24)).unwrap();
                } else {
                    a.fxrstor(ptr(rbx)).unwrap();
                }
            });
            assert_eq!(trap.vector, 13);
        }
    });
}

#[test]
fn fxsave_and_fxrstor_are_inverse() {
    both(|machine| {
        let state = machine.execute(|a| {
            a.mov(rbx, at::DATA).unwrap();
            a.fldpi().unwrap();
            a.fld1().unwrap();
            a.mov(rax, 0x1122_3344_5566_7788_u64).unwrap();
            a.movq(xmm7, rax).unwrap();
            a.movq(xmm15, rax).unwrap();
            a.fxsave64(ptr(rbx)).unwrap();
            a.fninit().unwrap();
            a.pxor(xmm7, xmm7).unwrap();
            a.pxor(xmm15, xmm15).unwrap();
            a.fxrstor64(ptr(rbx)).unwrap();
            a.fistp(qword_ptr(rbx + 512)).unwrap();
            a.movq(rcx, xmm7).unwrap();
            a.movq(rdx, xmm15).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(
            (state.gpr[1], state.gpr[2]),
            (0x1122_3344_5566_7788, 0x1122_3344_5566_7788)
        );
        assert_eq!(machine.get(at::DATA + 512), 1);
        assert_eq!(machine.get(at::DATA + 24) as u32, 0x1f80);
        // Not aligned.
        let trap = machine.trapped(|a| {
            a.mov(rbx, at::DATA + 8).unwrap();
            a.fxsave(ptr(rbx)).unwrap();
        });
        assert_eq!(trap.vector, 13);
    });
}

#[test]
fn xsave_stores_what_is_asked_and_xrstor_makes_the_rest_initial() {
    both(|machine| {
        let state = machine.execute(|a| {
            a.mov(rbx, at::DATA).unwrap();
            a.mov(rax, 0x1122_3344_5566_7788_u64).unwrap();
            a.movq(xmm7, rax).unwrap();
            a.fldpi().unwrap();
            a.xor(edx, edx).unwrap();
            // SSE only.
            a.mov(eax, 2).unwrap();
            a.xsave(ptr(rbx)).unwrap();
            // What is not in XSTATE_BV becomes initial: x87.
            a.mov(eax, 3).unwrap();
            a.pxor(xmm7, xmm7).unwrap();
            a.xrstor(ptr(rbx)).unwrap();
            a.movq(rcx, xmm7).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(machine.get(at::DATA + 512), 2);
        assert_eq!(machine.get(at::DATA + 32), 0, "x87 was not asked for");
        assert_eq!(state.gpr[1], 0x1122_3344_5566_7788);
        assert_eq!((state.xsave[0], state.xsave[1], state.xsave[4]), (0x7f, 3, 0));
        // The header's other words must be zero.
        machine.put(at::DATA + 520, 1);
        let trap = machine.trapped(|a| {
            a.mov(rbx, at::DATA).unwrap();
            a.mov(eax, 3).unwrap();
            a.xor(edx, edx).unwrap();
            a.xrstor(ptr(rbx)).unwrap();
        });
        assert_eq!(trap.vector, 13);
    });
}

#[test]
fn xsave_needs_osxsave() {
    both(|mut machine| {
        machine.state.cr4 &= !(1 << 18);
        let trap = machine.trapped(|a| {
            a.mov(rbx, at::DATA).unwrap();
            a.xsave(ptr(rbx)).unwrap();
        });
        assert_eq!(trap.vector, 6);
    });
}
