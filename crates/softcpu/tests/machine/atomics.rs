//! Several processors: locked instructions and the order of memory (SDM volume 3, "Memory Ordering").

use std::sync::Barrier;

use iced_x86::code_asm::*;
use vessel_softcpu::State;

use crate::machine::{Machine, at, both};

/// Has processors execute code at `CODE + 0x1000 × number`, each with its stack, until all of them halt.
fn together(machine: &Machine, count: u64, setup: impl Fn(u64, &mut State) + Sync) -> Vec<State> {
    let barrier = Barrier::new(count as usize);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                let (barrier, setup) = (&barrier, &setup);
                scope.spawn(move || {
                    let mut cpu = machine.cpu(number as u8);
                    let mut state = machine.state.clone();
                    state.rip = at::CODE + number * 0x1000;
                    state.gpr[4] = 0x6_0000 + number * 0x1000;
                    setup(number, &mut state);
                    cpu.set_state(&state);
                    barrier.wait();
                    machine.run(&mut cpu)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn locked_counters_lose_nothing() {
    const TURNS: u64 = 20_000;
    both(|machine| {
        for number in 0..4 {
            machine.code(at::CODE + number * 0x1000, 64, |a| {
                let mut again = a.create_label();
                let mut retry = a.create_label();
                a.mov(rbx, at::DATA).unwrap();
                a.mov(ecx, TURNS as i32).unwrap();
                a.set_label(&mut again).unwrap();
                a.lock().inc(qword_ptr(rbx)).unwrap();
                a.mov(eax, 1).unwrap();
                a.lock().xadd(qword_ptr(rbx + 8), rax).unwrap();
                a.lock().add(dword_ptr(rbx + 16), 1).unwrap();
                // lock cmpxchg
                a.mov(rax, qword_ptr(rbx + 24)).unwrap();
                a.set_label(&mut retry).unwrap();
                a.lea(rdx, ptr(rax + 1)).unwrap();
                a.lock().cmpxchg(qword_ptr(rbx + 24), rdx).unwrap();
                a.jne(retry).unwrap();
                // Across a page.
                a.lock().add(dword_ptr(rbx + 0xffe), 1).unwrap();
                a.dec(ecx).unwrap();
                a.jne(again).unwrap();
                a.hlt().unwrap();
            });
        }
        together(&machine, 4, |_, _| {});
        let all = 4 * TURNS;
        assert_eq!(machine.get(at::DATA), all);
        assert_eq!(machine.get(at::DATA + 8), all);
        assert_eq!(machine.get(at::DATA + 16) & 0xffff_ffff, all);
        assert_eq!(machine.get(at::DATA + 24), all);
        assert_eq!(machine.get(at::DATA + 0xffe) & 0xffff_ffff, all);
    });
}

#[test]
fn a_spin_lock_of_xchg_keeps_others_out() {
    const TURNS: u64 = 5_000;
    both(|machine| {
        for number in 0..2 {
            machine.code(at::CODE + number * 0x1000, 64, |a| {
                let mut again = a.create_label();
                let mut taken = a.create_label();
                a.mov(rbx, at::DATA).unwrap();
                a.mov(ecx, TURNS as i32).unwrap();
                a.set_label(&mut again).unwrap();
                a.mov(eax, 1).unwrap();
                a.xchg(dword_ptr(rbx), eax).unwrap();
                a.test(eax, eax).unwrap();
                a.je(taken).unwrap();
                a.pause().unwrap();
                a.jmp(again).unwrap();
                a.set_label(&mut taken).unwrap();
                // Not atomic by itself.
                a.mov(rdx, qword_ptr(rbx + 64)).unwrap();
                a.inc(rdx).unwrap();
                a.mov(qword_ptr(rbx + 64), rdx).unwrap();
                a.mov(dword_ptr(rbx), 0).unwrap();
                a.dec(ecx).unwrap();
                a.jne(again).unwrap();
                a.hlt().unwrap();
            });
        }
        together(&machine, 2, |_, _| {});
        assert_eq!(machine.get(at::DATA + 64), 2 * TURNS);
    });
}

/// How often both processors do their part of a litmus test in step: each time costs two changes of the thread where cores are busy.
const TURNS: u64 = 300;

/// Waits until the other has come as far, by counters at DATA + 0x400 and DATA + 0x440.
fn meet(a: &mut CodeAssembler, number: u64) {
    let (mine, others) = (0x400 + number * 0x40, 0x400 + (1 - number) * 0x40);
    let mut wait = a.create_label();
    let mut go = a.create_label();
    a.inc(r12).unwrap();
    a.mov(qword_ptr(rbx + mine as i32), r12).unwrap();
    a.set_label(&mut wait).unwrap();
    a.cmp(qword_ptr(rbx + others as i32), r12).unwrap();
    a.jae(go).unwrap();
    a.pause().unwrap();
    a.jmp(wait).unwrap();
    a.set_label(&mut go).unwrap();
}

#[test]
fn with_fences_both_processors_cannot_miss_the_others_store() {
    for locked in [false, true] {
        both(|machine| {
            for number in 0..2_u64 {
                machine.code(at::CODE + number * 0x1000, 64, |a| {
                    let (mine, others) = (number as i32 * 0x40, (1 - number as i32) * 0x40);
                    let mut again = a.create_label();
                    a.mov(rbx, at::DATA).unwrap();
                    a.xor(r12d, r12d).unwrap();
                    a.mov(r14d, TURNS as i32).unwrap();
                    a.mov(rdi, 0xa_0000 + number * 0x8000).unwrap();
                    a.set_label(&mut again).unwrap();
                    a.mov(dword_ptr(rbx + mine), 0).unwrap();
                    a.mfence().unwrap();
                    meet(a, number);
                    a.mov(dword_ptr(rbx + mine), 1).unwrap();
                    if locked {
                        a.lock().or(dword_ptr(rsp - 8), 0).unwrap();
                    } else {
                        a.mfence().unwrap();
                    }
                    a.mov(eax, dword_ptr(rbx + others)).unwrap();
                    a.mov(byte_ptr(rdi), al).unwrap();
                    a.inc(rdi).unwrap();
                    meet(a, number);
                    a.dec(r14d).unwrap();
                    a.jne(again).unwrap();
                    a.hlt().unwrap();
                });
            }
            together(&machine, 2, |_, _| {});
            for turn in 0..TURNS {
                let seen = |number: u64| machine.get(0xa_0000 + number * 0x8000 + turn) & 0xff;
                assert!(seen(0) == 1 || seen(1) == 1, "turn {turn}");
            }
        });
    }
}

#[test]
fn a_message_is_there_when_its_flag_is() {
    both(|machine| {
        machine.code(at::CODE, 64, |a| {
            let mut again = a.create_label();
            a.mov(rbx, at::DATA).unwrap();
            a.xor(ecx, ecx).unwrap();
            a.set_label(&mut again).unwrap();
            a.inc(ecx).unwrap();
            a.mov(dword_ptr(rbx), ecx).unwrap();
            a.mov(dword_ptr(rbx + 0x1000), ecx).unwrap();
            a.cmp(ecx, 200_000).unwrap();
            a.jne(again).unwrap();
            a.hlt().unwrap();
        });
        machine.code(at::CODE + 0x1000, 64, |a| {
            let mut again = a.create_label();
            let mut right = a.create_label();
            a.mov(rbx, at::DATA).unwrap();
            a.set_label(&mut again).unwrap();
            // The flag, then the message: never older than the flag.
            a.mov(eax, dword_ptr(rbx + 0x1000)).unwrap();
            a.mov(edx, dword_ptr(rbx)).unwrap();
            a.cmp(edx, eax).unwrap();
            a.jae(right).unwrap();
            a.inc(r13).unwrap();
            a.set_label(&mut right).unwrap();
            a.cmp(eax, 200_000).unwrap();
            a.jne(again).unwrap();
            a.hlt().unwrap();
        });
        let states = together(&machine, 2, |_, _| {});
        assert_eq!(states[1].gpr[13], 0);
    });
}
