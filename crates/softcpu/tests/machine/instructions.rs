//! Instructions that change while they are executed.

use std::sync::atomic::{AtomicBool, Ordering};

use iced_x86::code_asm::*;
use vessel_softcpu::Attention;

use crate::machine::{at, both};

#[test]
fn an_instruction_changes_the_next_one() {
    both(|machine| {
        for _ in 0..2 {
            let state = machine.execute(|a| {
                let mut place = a.create_label();
                a.lea(rbx, ptr(place)).unwrap();
                // From `inc eax` to `inc ecx`: the second byte c0 becomes c1.
                a.mov(byte_ptr(rbx + 1), 0xc1).unwrap();
                a.set_label(&mut place).unwrap();
                a.db(&[0xff, 0xc0]).unwrap();
                a.hlt().unwrap();
            });
            assert_eq!((state.gpr[0], state.gpr[1]), (0, 1));
        }
    });
}

#[test]
fn a_loop_changes_itself_every_time() {
    both(|machine| {
        let state = machine.execute(|a| {
            let mut again = a.create_label();
            let mut place = a.create_label();
            a.lea(rbx, ptr(place)).unwrap();
            a.mov(ecx, 100).unwrap();
            a.set_label(&mut again).unwrap();
            // add eax, imm32, whose immediate is the counter.
            a.mov(dword_ptr(rbx + 1), ecx).unwrap();
            a.set_label(&mut place).unwrap();
            a.db(&[0x05, 0, 0, 0, 0]).unwrap();
            a.dec(ecx).unwrap();
            a.jne(again).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(state.gpr[0], 5050);
    });
}

#[test]
fn an_instruction_across_two_pages_changes() {
    both(|machine| {
        let code = at::CODE + 0x1000 - 3;
        // add eax, 1 (05 01 00 00 00), of which three bytes are in the first page, and ret.
        machine.write(code, &[0x05, 1, 0, 0, 0, 0xc3]);
        let state = machine.execute(|a| {
            a.mov(rbx, code).unwrap();
            a.mov(r12d, 40).unwrap();
            let mut again = a.create_label();
            a.set_label(&mut again).unwrap();
            a.call(rbx).unwrap();
            a.dec(r12d).unwrap();
            a.jne(again).unwrap();
            // Now it adds 0x01000001.
            a.mov(byte_ptr(rbx + 4), 1).unwrap();
            a.call(rbx).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(state.gpr[0], 40 + 0x0100_0001);
    });
}

#[test]
fn a_string_instruction_overwrites_what_follows_it() {
    both(|machine| {
        let state = machine.execute(|a| {
            let mut place = a.create_label();
            a.lea(rdi, ptr(place)).unwrap();
            a.mov(eax, 0x90).unwrap();
            a.mov(ecx, 2).unwrap();
            a.rep().stosb().unwrap();
            a.set_label(&mut place).unwrap();
            // Becomes two `nop`.
            a.inc(edx).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!((state.gpr[1], state.gpr[2]), (0, 0));
    });
}

#[test]
fn another_mapping_of_the_page_changes_it() {
    both(|machine| {
        // Linear page 0x90000 is physical page CODE + 0x1000, too.
        machine.put(at::TABLE + 0x90 * 8, (at::CODE + 0x1000) | 3);
        machine.write(at::CODE + 0x1000, &[0xff, 0xc0, 0xc3]);
        let state = machine.execute(|a| {
            a.mov(rbx, at::CODE + 0x1000).unwrap();
            a.mov(rbp, 0x9_0000_u64).unwrap();
            a.mov(r12d, 30).unwrap();
            let mut again = a.create_label();
            a.set_label(&mut again).unwrap();
            a.call(rbx).unwrap();
            a.dec(r12d).unwrap();
            a.jne(again).unwrap();
            a.mov(byte_ptr(rbp + 1), 0xc1).unwrap();
            a.call(rbx).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!((state.gpr[0], state.gpr[1]), (30, 1));
    });
}

#[test]
fn another_processor_changes_it() {
    both(|machine| {
        // Processor 0 calls a function until it returns 2; processor 1 makes it do that after a while.
        let function = at::CODE + 0x1000;
        machine.write(function, &[0xb8, 1, 0, 0, 0, 0xc3]);
        machine.code(at::CODE, 64, |a| {
            a.mov(rbx, function).unwrap();
            let mut again = a.create_label();
            a.set_label(&mut again).unwrap();
            a.call(rbx).unwrap();
            a.inc(r12).unwrap();
            a.cmp(eax, 2).unwrap();
            a.jne(again).unwrap();
            a.hlt().unwrap();
        });
        let writer = at::CODE + 0x2000;
        machine.code(writer, 64, |a| {
            a.mov(ecx, 100_000).unwrap();
            let mut again = a.create_label();
            a.set_label(&mut again).unwrap();
            a.dec(ecx).unwrap();
            a.jne(again).unwrap();
            a.mov(rbx, function).unwrap();
            a.mov(byte_ptr(rbx + 1), 2).unwrap();
            a.hlt().unwrap();
        });
        let mut first = machine.cpu(0);
        let mut second = machine.cpu(1);
        let mut state = machine.state.clone();
        state.rip = writer;
        state.gpr[4] = at::STACK_IST;
        second.set_state(&state);
        let late = AtomicBool::new(false);
        let attention = first.attention();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                machine.run(&mut second);
                // A processor that does not see it is kicked, so that the test ends.
                for _ in 0..200 {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    if late.load(Ordering::Relaxed) {
                        return;
                    }
                }
                attention.raise(Attention::KICK);
            });
            let state = machine.run(&mut first);
            late.store(true, Ordering::Relaxed);
            assert_eq!(state.gpr[0], 2);
        });
    });
}

#[test]
fn a_device_changes_it() {
    both(|machine| {
        let mut cpu = machine.cpu(0);
        for value in 0..20_u8 {
            machine.write(at::CODE, &[0xb0, value, 0xf4]);
            cpu.set_state(&machine.state);
            assert_eq!(machine.run(&mut cpu).gpr[0], u64::from(value));
        }
    });
}
