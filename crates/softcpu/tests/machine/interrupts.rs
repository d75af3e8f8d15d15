//! Interrupts from outside, and what holds them up.

use iced_x86::code_asm::*;
use vessel_softcpu::{Attention, Stop};

use crate::machine::{at, both};

/// Handler of vector 0x40: keeps where it came from in R15.
fn handler(machine: &crate::machine::Machine) {
    let address = at::CODE + 0x800;
    machine.gate(0x40, address, 0);
    machine.code(address, 64, |a| {
        a.mov(r15, qword_ptr(rsp)).unwrap();
        a.inc(r14).unwrap();
        a.iretq().unwrap();
    });
}

#[test]
fn sti_lets_one_more_instruction_pass() {
    both(|machine| {
        handler(&machine);
        machine.outside.0.lock().unwrap().interrupts.push_back(0x40);
        let state = machine.execute(|a| {
            a.nop().unwrap();
            a.sti().unwrap();
            a.nop().unwrap();
            a.nop().unwrap();
            a.cli().unwrap();
            a.hlt().unwrap();
        });
        // After sti and the nop behind it.
        assert_eq!((state.gpr[14], state.gpr[15]), (1, at::CODE + 3));
    });
}

#[test]
fn sti_and_cli_let_none_pass() {
    both(|machine| {
        handler(&machine);
        machine.outside.0.lock().unwrap().interrupts.push_back(0x40);
        let state = machine.execute(|a| {
            a.sti().unwrap();
            a.cli().unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(state.gpr[14], 0);
    });
}

#[test]
fn a_load_of_ss_holds_interrupts_up() {
    both(|mut machine| {
        machine.state.rflags = 0x202;
        handler(&machine);
        let outside = machine.outside.clone();
        machine.code(at::CODE, 64, |a| {
            a.mov(ecx, ss).unwrap();
            // A write to a port, so that the interrupt comes here.
            a.out(0x10, al).unwrap();
            a.mov(ss, ecx).unwrap();
            a.nop().unwrap();
            a.nop().unwrap();
            a.hlt().unwrap();
        });
        let mut cpu = machine.cpu(0);
        // The interrupt arrives before anything is executed, but with the shadow of a load of SS.
        let mut state = machine.state.clone();
        state.rip = at::CODE + 6;
        state.events.interrupt_shadow = true;
        cpu.set_state(&state);
        outside.0.lock().unwrap().interrupts.push_back(0x40);
        let state = machine.run(&mut cpu);
        assert_eq!((state.gpr[14], state.gpr[15]), (1, at::CODE + 7));
    });
}

#[test]
fn hlt_ends_with_an_interrupt() {
    both(|mut machine| {
        machine.state.rflags = 0x202;
        handler(&machine);
        machine.code(at::CODE, 64, |a| {
            a.hlt().unwrap();
            a.inc(r13).unwrap();
            a.cli().unwrap();
            a.hlt().unwrap();
        });
        let mut cpu = machine.cpu(0);
        let state = machine.run(&mut cpu);
        assert!(state.events.halted);
        assert_eq!((state.gpr[13], state.rip), (0, at::CODE + 1));
        machine.outside.0.lock().unwrap().interrupts.push_back(0x40);
        cpu.attention().raise(Attention::INTERRUPT);
        let state = machine.run(&mut cpu);
        assert_eq!(
            (state.gpr[13], state.gpr[14], state.gpr[15]),
            (1, 1, at::CODE + 1)
        );
    });
}

#[test]
fn a_loop_that_never_ends_is_interrupted_and_kicked() {
    both(|mut machine| {
        machine.state.rflags = 0x202;
        machine.gate(0x40, at::HANDLERS + 0x40, 0);
        machine.code(at::CODE, 64, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again).unwrap();
            a.inc(rax).unwrap();
            a.jmp(again).unwrap();
        });
        let mut cpu = machine.cpu(0);
        let attention = cpu.attention();
        let outside = machine.outside.clone();
        let other = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            attention.raise(Attention::KICK);
            std::thread::sleep(std::time::Duration::from_millis(20));
            outside.0.lock().unwrap().interrupts.push_back(0x40);
            attention.raise(Attention::INTERRUPT);
        });
        assert_eq!(cpu.run(&mut machine.outside.clone()), Stop::Kicked);
        assert_eq!(cpu.run(&mut machine.outside.clone()), Stop::Halted);
        assert_eq!(machine.trap(&cpu.state()).vector, 0x40);
        other.join().unwrap();
    });
}

#[test]
fn a_repeated_string_instruction_is_interrupted() {
    both(|mut machine| {
        machine.state.rflags = 0x202;
        machine.gate(0x40, at::HANDLERS + 0x40, 0);
        machine.code(at::CODE, 64, |a| {
            a.mov(rsi, at::DATA).unwrap();
            a.mov(rcx, 1_u64 << 40).unwrap();
            a.mov(rax, 0_u64).unwrap();
            // Forever the same byte: the step is undone by nothing, so the page's end is met; a comparison with itself in a window.
            let mut again = a.create_label();
            a.set_label(&mut again).unwrap();
            a.mov(rdi, rsi).unwrap();
            a.mov(rcx, 0x1000_u64).unwrap();
            a.repe().scasb().unwrap();
            a.jmp(again).unwrap();
        });
        let mut cpu = machine.cpu(0);
        let attention = cpu.attention();
        let outside = machine.outside.clone();
        let other = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            outside.0.lock().unwrap().interrupts.push_back(0x40);
            attention.raise(Attention::INTERRUPT);
        });
        assert_eq!(cpu.run(&mut machine.outside.clone()), Stop::Halted);
        let state = cpu.state();
        let trap = machine.trap(&state);
        assert_eq!(trap.vector, 0x40);
        // Wherever it was, the counter and the address belong together.
        let scan = at::CODE + 10 + 10 + 7 + 3 + 7;
        if trap.rip == scan {
            assert_eq!(state.gpr[1] + (state.gpr[7] - at::DATA), 0x1000);
        }
        other.join().unwrap();
    });
}

#[test]
fn nmi_comes_once_until_iret() {
    both(|machine| {
        let address = at::CODE + 0x800;
        machine.gate(2, address, 0);
        machine.code(address, 64, |a| {
            a.inc(r14).unwrap();
            a.hlt().unwrap();
            a.iretq().unwrap();
        });
        machine.code(at::CODE, 64, |a| {
            a.inc(r13).unwrap();
            a.hlt().unwrap();
            a.hlt().unwrap();
        });
        let mut cpu = machine.cpu(0);
        machine.outside.0.lock().unwrap().nmi = true;
        let state = machine.run(&mut cpu);
        assert_eq!((state.gpr[13], state.gpr[14]), (0, 1));
        assert!(state.events.nmi_masked);
        // Another waits.
        machine.outside.0.lock().unwrap().nmi = true;
        let state = machine.run(&mut cpu);
        assert_eq!(state.gpr[14], 1);
        assert!(state.events.halted);
    });
}

#[test]
fn ports_without_rights_are_a_protection_fault() {
    both(|mut machine| {
        let state = machine.execute(|a| {
            a.mov(edx, 0x3f8).unwrap();
            a.mov(eax, 0x41).unwrap();
            a.out(dx, al).unwrap();
            a.in_(eax, 0x20).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(state.gpr[0], 0x2020_2020);
        assert_eq!(machine.outside.0.lock().unwrap().written, [(0x3f8, vec![0x41])]);
        machine.user();
        machine.code(at::USER_CODE, 64, |a| a.in_(al, 0x20).unwrap());
        let state = machine.run(&mut machine.cpu(0));
        assert_eq!(machine.trap(&state).vector, 13);
        // The map allows port 0x20 alone.
        machine.put(at::TSS + 0x60, 0x68 << 48);
        for byte in 0..16 {
            machine.write(at::TSS + 0x68 + byte, &[if byte == 4 { 0xfe } else { 0xff }]);
        }
        machine.state.task.limit = 0x68 + 15;
        machine.code(at::USER_CODE, 64, |a| {
            a.in_(al, 0x20).unwrap();
            a.in_(al, 0x21).unwrap();
        });
        let state = machine.run(&mut machine.cpu(0));
        let trap = machine.trap(&state);
        assert_eq!((trap.vector, trap.rip), (13, at::USER_CODE + 2));
        assert_eq!(state.gpr[0] & 0xff, 0x20);
    });
}
