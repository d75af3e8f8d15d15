//! Exceptions, the way into their handlers and back, single steps.

use iced_x86::code_asm::*;
use vessel_softcpu::Stop;

use crate::machine::{at, both, selector};

const TF: u64 = 1 << 8;

#[test]
fn a_frame_says_where_it_happened() {
    both(|machine| {
        let trap = machine.trapped(|a| {
            a.nop().unwrap();
            a.ud2().unwrap();
        });
        assert_eq!((trap.vector, trap.rip), (6, at::CODE + 1));
        assert_eq!((trap.cs, trap.ss), (0x10, 0x18));
        assert_eq!(trap.rsp, at::STACK);
        // RF is set in what a fault pushes.
        assert_eq!(trap.rflags, 0x1_0002);
        let trap = machine.trapped(|a| {
            a.xor(ecx, ecx).unwrap();
            a.div(ecx).unwrap();
        });
        assert_eq!((trap.vector, trap.rip), (0, at::CODE + 2));
        let trap = machine.trapped(|a| a.int3().unwrap());
        assert_eq!((trap.vector, trap.rip), (3, at::CODE + 1));
    });
}

#[test]
fn the_frame_is_aligned() {
    both(|mut machine| {
        machine.state.gpr[4] = at::STACK - 5;
        let state = machine.execute(|a| a.ud2().unwrap());
        assert_eq!(state.gpr[4], at::STACK - 16 - 40);
        assert_eq!(machine.trap(&state).rsp, at::STACK - 5);
    });
}

#[test]
fn the_interrupt_stack_table_is_used() {
    both(|machine| {
        machine.gate(6, at::HANDLERS + 6, 1);
        let state = machine.execute(|a| a.ud2().unwrap());
        assert_eq!(state.gpr[4], at::STACK_IST - 40);
        assert_eq!(machine.trap(&state).rsp, at::STACK);
    });
}

#[test]
fn user_mode_comes_to_the_supervisors_stack_and_back() {
    both(|mut machine| {
        machine.user();
        let handler = at::CODE;
        machine.gate(0x80, handler, 0);
        machine.code(handler, 64, |a| {
            a.mov(rbx, rsp).unwrap();
            a.mov(ecx, cs).unwrap();
            a.mov(edx, ss).unwrap();
            a.iretq().unwrap();
        });
        machine.code(at::USER_CODE, 64, |a| {
            a.int(0x80).unwrap();
            a.mov(esi, cs).unwrap();
            a.mov(edi, ss).unwrap();
            // Privileged, here.
            a.hlt().unwrap();
        });
        let state = machine.run(&mut machine.cpu(0));
        let trap = machine.trap(&state);
        assert_eq!((trap.vector, trap.error), (13, 0));
        assert_eq!((trap.cs, trap.ss, trap.rsp), (0x33, 0x2b, at::USER_STACK));
        assert_eq!(state.gpr[3], at::STACK_0 - 40);
        // The stack segment is null with the new privilege.
        assert_eq!((state.gpr[1], state.gpr[2]), (0x10, 0));
        assert_eq!((state.gpr[6], state.gpr[7]), (0x33, 0x2b));
    });
}

#[test]
fn gates_of_the_supervisor_are_not_for_int() {
    both(|mut machine| {
        machine.user();
        machine.code(at::USER_CODE, 64, |a| a.int(14).unwrap());
        let state = machine.run(&mut machine.cpu(0));
        let trap = machine.trap(&state);
        // The gate's index, in the IDT.
        assert_eq!(
            (trap.vector, trap.error, trap.rip),
            (13, 14 << 3 | 2, at::USER_CODE)
        );
    });
}

#[test]
fn iret_to_the_same_privilege_takes_the_stack_along() {
    both(|machine| {
        let state = machine.execute(|a| {
            let mut after = a.create_label();
            a.mov(rbx, rsp).unwrap();
            a.push(selector::DATA as i32).unwrap();
            a.push((at::STACK - 0x100) as i32).unwrap();
            a.push(0x0c3).unwrap();
            a.push(selector::CODE as i32).unwrap();
            a.lea(rax, ptr(after)).unwrap();
            a.push(rax).unwrap();
            a.iretq().unwrap();
            a.ud2().unwrap();
            a.set_label(&mut after).unwrap();
            a.pushfq().unwrap();
            a.pop(rdx).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(state.gpr[4], at::STACK - 0x100);
        assert_eq!(state.gpr[2], 0xc3);
    });
}

#[test]
fn an_iret_that_fails_changes_nothing() {
    both(|machine| {
        let trap = machine.trapped(|a| {
            a.push(selector::DATA as i32).unwrap();
            a.push(0x1234).unwrap();
            a.push(2).unwrap();
            // No such selector.
            a.push(0x7008).unwrap();
            a.push(0x1000).unwrap();
            a.iretq().unwrap();
        });
        assert_eq!((trap.vector, trap.error), (13, 0x7008));
        assert_eq!((trap.rsp, trap.cs), (at::STACK - 40, 0x10));
    });
}

#[test]
fn syscall_and_sysret() {
    both(|mut machine| {
        machine.user();
        machine.state.rflags = 0x246;
        // SFMASK has IF.
        machine.state.msrs.push((0xc000_0082, at::CODE));
        machine.state.msrs.push((0xc000_0084, 0x200));
        machine.code(at::CODE, 64, |a| {
            a.pushfq().unwrap();
            a.pop(r8).unwrap();
            a.mov(r9d, cs).unwrap();
            a.mov(r10d, ss).unwrap();
            a.mov(r12, rcx).unwrap();
            a.sysretq().unwrap();
        });
        machine.code(at::USER_CODE, 64, |a| {
            a.syscall().unwrap();
            a.mov(r13d, cs).unwrap();
            a.mov(r14d, ss).unwrap();
            a.pushfq().unwrap();
            a.pop(r15).unwrap();
            a.ud2().unwrap();
        });
        let mut state = machine.state.clone();
        state.gpr[4] = at::USER_STACK;
        let state = machine.run(&mut machine.cpu(0));
        assert_eq!(machine.trap(&state).vector, 6);
        let g = &state.gpr;
        assert_eq!((g[8], g[9], g[10]), (0x46, 0x10, 0x18));
        assert_eq!(g[12], at::USER_CODE + 2);
        assert_eq!((g[13], g[14], g[15]), (0x33, 0x2b, 0x246));
    });
}

#[test]
fn two_faults_are_a_double_fault_and_three_the_end() {
    both(|machine| {
        // The handler of #GP is not present: #NP on the way, both contributory.
        let slot = at::IDT + 13 * 16;
        machine.put(slot, machine.get(slot) & !(1 << 47));
        let trap = machine.trapped(|a| {
            a.mov(ax, 0x7008).unwrap();
            a.mov(ds, eax).unwrap();
        });
        assert_eq!((trap.vector, trap.error, trap.rip), (8, 0, at::CODE + 4));
        let slot = at::IDT + 8 * 16;
        machine.put(slot, machine.get(slot) & !(1 << 47));
        let mut cpu = machine.cpu(0);
        assert_eq!(cpu.run(&mut machine.outside.clone()), Stop::Shutdown);
    });
}

#[test]
fn a_page_fault_after_another_exception_is_delivered_by_itself() {
    both(|machine| {
        // The table of gates is not there: #UD, then a page fault whose gate is not to be found either.
        let state = machine.execute(|a| {
            a.xor(eax, eax).unwrap();
            a.ud2().unwrap();
        });
        assert_eq!(machine.trap(&state).vector, 6);
        // A stack that is not there.
        machine.gate(14, at::HANDLERS + 14, 1);
        let mut state = machine.state.clone();
        state.gpr[4] = 0x4000_0000;
        let mut cpu = machine.cpu(0);
        cpu.set_state(&state);
        let state = machine.run(&mut cpu);
        let trap = machine.trap(&state);
        assert_eq!((trap.vector, trap.error), (14, 2));
        assert_eq!((trap.rip, state.cr2), (at::CODE + 2, 0x4000_0000 - 8));
    });
}

#[test]
fn tf_traps_after_each_instruction() {
    both(|machine| {
        // The handler counts, and keeps where it was.
        let handler = at::CODE + 0x800;
        machine.gate(1, handler, 0);
        machine.code(handler, 64, |a| {
            a.push(rax).unwrap();
            a.mov(rax, qword_ptr(rsp + 8)).unwrap();
            a.mov(qword_ptr(r14), rax).unwrap();
            a.add(r14, 8).unwrap();
            a.pop(rax).unwrap();
            a.iretq().unwrap();
        });
        let state = machine.execute(|a| {
            a.mov(r14, at::DATA).unwrap();
            a.pushfq().unwrap();
            a.or(dword_ptr(rsp), TF as i32).unwrap();
            a.popfq().unwrap();
            // The first trap is after the instruction that follows.
            a.nop().unwrap();
            a.inc(eax).unwrap();
            a.mov(ecx, ss).unwrap();
            // No trap between this and the next.
            a.mov(ss, ecx).unwrap();
            a.nop().unwrap();
            a.pushfq().unwrap();
            a.and(dword_ptr(rsp), !(TF as i32)).unwrap();
            a.popfq().unwrap();
            a.nop().unwrap();
            a.hlt().unwrap();
        });
        let first = at::CODE + 10 + 1 + 7 + 1;
        let count = (state.gpr[14] - at::DATA) / 8;
        let places: Vec<u64> = (0..count)
            .map(|index| machine.get(at::DATA + index * 8) - first)
            .collect();
        // nop, inc, mov from ss, (mov ss with) nop, pushfq, and, popfq: it began with TF set, so it traps, too.
        assert_eq!(places, [1, 3, 5, 8, 9, 16, 17]);
        assert_ne!(state.debug[6] & 1 << 14, 0);
    });
}

#[test]
fn selectors_are_checked() {
    both(|machine| {
        // Beyond the table.
        let trap = machine.trapped(|a| {
            a.mov(eax, 0x7008).unwrap();
            a.mov(ds, eax).unwrap();
        });
        assert_eq!((trap.vector, trap.error), (13, 0x7008));
        // A code segment as the stack.
        let trap = machine.trapped(|a| {
            a.mov(eax, selector::CODE as i32).unwrap();
            a.mov(ss, eax).unwrap();
        });
        assert_eq!((trap.vector, trap.error), (13, 0x10));
        // Not present.
        machine.put(at::GDT + 0x60, 0x00cf_1300_0000_ffff);
        let trap = machine.trapped(|a| {
            a.mov(eax, 0x60).unwrap();
            a.mov(es, eax).unwrap();
        });
        assert_eq!((trap.vector, trap.error), (11, 0x60));
    });
}
