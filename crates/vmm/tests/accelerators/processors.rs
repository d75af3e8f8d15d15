//! Several vCPUs: their start, messages between them, memory that they share.

use iced_x86::code_asm::*;
use vessel_vmm::accel::{Accelerator, ErrorKind, Exit, LAPIC_BASE, Vcpu, VcpuState};

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::guest::*;
use crate::interrupts::{enable, end, return_from_interrupt, wait};

/// The page where the others start, in real mode.
const START: u64 = 0x4000;

/// vCPU 0 in protected mode, the others waiting; memory 0 to [`SIZE`].
fn vcpus(bench: &Bench, count: u8) -> Vec<Box<dyn Vcpu>> {
    (0..count)
        .map(|index| {
            bench.vcpu(index, |state: &mut VcpuState| {
                if index == 0 {
                    protected_mode(bench, state);
                } else {
                    assert!(state.events.waits_for_start);
                }
            })
        })
        .collect()
}

/// INIT and SIPI to all others.
fn start_others(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.mov(dword_ptr(LAPIC_BASE + 0x300), 0x000c_4500)?;
    a.mov(dword_ptr(LAPIC_BASE + 0x300), 0x000c_4600 | (START >> 12) as i32)
}

fn on_machines(test: impl Fn(&Arc<dyn Accelerator>, u8)) {
    on_each(Needs::Little, |accelerator| {
        for count in [1, 2, 4] {
            test(&accelerator, count);
        }
    });
}

#[test]
fn others_start_where_they_are_told() {
    on_machines(|accelerator, count| {
        let bench = Bench::new(accelerator, count);
        bench.assemble(16, START, |a| {
            // CS is the page: the data is reached from zero.
            let mut here = a.create_label();
            a.mov(ax, cs)?;
            a.mov(word_ptr(0x6008), ax)?;
            a.lock().inc(dword_ptr(0x6000))?;
            a.set_label(&mut here)?;
            a.hlt()?;
            a.jmp(here)
        });
        bench.assemble(32, CODE, |a| {
            let mut again = a.create_label();
            enable(a)?;
            start_others(a)?;
            a.set_label(&mut again)?;
            a.pause()?;
            a.cmp(dword_ptr(0x6000), i32::from(count) - 1)?;
            a.jne(again)?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpus = vcpus(&bench, count);
        bench.finish_all(&mut vcpus);
        if count > 1 {
            assert_eq!(bench.read_u32(0x6008), (START >> 4) as u32);
        }
    });
}

#[test]
fn shared_counters_lose_nothing() {
    const TIMES: i32 = 20_000;
    on_machines(|accelerator, count| {
        let bench = Bench::new(accelerator, count);
        bench.assemble(16, START, |a| {
            let mut again = a.create_label();
            let mut here = a.create_label();
            a.mov(ecx, TIMES)?;
            a.set_label(&mut again)?;
            a.lock().inc(dword_ptr(0x6000))?;
            a.mov(eax, 1)?;
            a.lock().xadd(dword_ptr(0x6100), eax)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.lock().inc(dword_ptr(0x6200))?;
            a.set_label(&mut here)?;
            a.hlt()?;
            a.jmp(here)
        });
        bench.assemble(32, CODE, |a| {
            let mut again = a.create_label();
            let mut wait = a.create_label();
            enable(a)?;
            start_others(a)?;
            a.mov(ecx, TIMES)?;
            a.set_label(&mut again)?;
            a.lock().inc(dword_ptr(0x6000))?;
            a.lock().add(dword_ptr(0x6100), 1)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(dword_ptr(0x6200), i32::from(count) - 1)?;
            a.jne(wait)?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpus = vcpus(&bench, count);
        bench.finish_all(&mut vcpus);
        let all = u32::from(count) * TIMES as u32;
        assert_eq!((bench.read_u32(0x6000), bench.read_u32(0x6100)), (all, all));
    });
}

/// vCPU 0 sends to 1, which sends back, and each halts meanwhile.
#[test]
fn messages_go_to_and_fro() {
    on_each(Needs::Little, |accelerator| {
        const ROUNDS: i32 = 200;
        let bench = Bench::new(&accelerator, 2);
        let send = |a: &mut CodeAssembler, to: u32, vector: i32| {
            a.mov(dword_ptr(LAPIC_BASE + 0x310), (to << 24) as i32)?;
            a.mov(dword_ptr(LAPIC_BASE + 0x300), vector)
        };
        bench.assemble(32, HANDLERS + 0x100, |a| {
            a.inc(dword_ptr(0x6000))?;
            end(a)?;
            send(a, 0, 0x42)?;
            return_from_interrupt(a)
        });
        bench.assemble(32, HANDLERS + 0x200, |a| {
            let mut last = a.create_label();
            end(a)?;
            a.dec(dword_ptr(0x6004))?;
            a.jz(last)?;
            send(a, 1, 0x41)?;
            return_from_interrupt(a)?;
            a.set_label(&mut last)?;
            a.out(u32::from(DONE), al)?;
            return_from_interrupt(a)
        });
        bench.assemble(32, CODE, |a| {
            let mut first = a.create_label();
            enable(a)?;
            // Which one it is.
            a.cmp(dword_ptr(LAPIC_BASE + 0x20), 0)?;
            a.je(first)?;
            a.mov(esp, STACK as u32 - 0x800)?;
            wait(a)?;
            a.set_label(&mut first)?;
            send(a, 1, 0x41)?;
            wait(a)
        });
        bench.write(0x6004, &ROUNDS.to_le_bytes());
        let mut vcpus: Vec<_> = (0..2)
            .map(|index| {
                bench.vcpu(index, |state| {
                    protected_mode(&bench, state);
                    state.events.waits_for_start = false;
                    // The first message finds the other enabled.
                    state.lapic.registers[0xf] = 0x1ff;
                })
            })
            .collect();
        bench.finish_all(&mut vcpus);
        assert_eq!(bench.read_u32(0x6000), ROUNDS as u32);
    });
}

#[test]
fn one_that_waits_for_its_start_can_be_kicked() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 2);
        let mut vcpu = bench.vcpu(1, |_| {});
        let handle = vcpu.handle();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(10));
                handle.kick();
            });
            assert_eq!(run(&mut vcpu), Exit::Kicked);
        });
        assert!(vcpu.state().unwrap().events.waits_for_start);
    });
}

#[test]
fn a_machine_has_as_many_as_it_was_made_for() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 2);
        assert_eq!(bench.vm.create_vcpu(2).err().unwrap().kind(), ErrorKind::Invalid);
        let _vcpu = bench.vm.create_vcpu(1).unwrap();
        assert!(bench.vm.create_vcpu(1).is_err(), "it is there already");
    });
}

/// As a live migration does it: pages are copied while two vCPUs write, the last ones when they have stopped.
#[test]
fn copies_of_dirty_pages_are_the_memory_in_the_end() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::without_memory(&accelerator, 2);
        bench.map(0, 0, 0, SIZE, false, true);
        // A word of each of 64 pages, again and again; the other does the same in 64 others, from behind.
        let program = |a: &mut CodeAssembler, first: u64, step: i32| {
            let mut round = a.create_label();
            let mut page = a.create_label();
            a.set_label(&mut round)?;
            a.inc(eax)?;
            a.mov(edi, first as u32)?;
            a.mov(ecx, 64)?;
            a.set_label(&mut page)?;
            a.mov(ptr(edi), eax)?;
            a.add(dword_ptr(edi + 8), 3)?;
            a.lock().inc(dword_ptr(edi + 16))?;
            a.add(edi, step)?;
            a.dec(ecx)?;
            a.jnz(page)?;
            a.jmp(round)
        };
        bench.assemble(32, CODE, |a| program(a, 0x2_0000, 0x1004));
        bench.assemble(32, CODE + 0x100, |a| program(a, 0xd_ff00, -0x1000));
        let mut vcpus: Vec<_> = (0..2)
            .map(|index| {
                bench.vcpu(index, |state| {
                    protected_mode(&bench, state);
                    state.events.waits_for_start = false;
                    state.registers.rip = CODE + 0x100 * u64::from(index);
                })
            })
            .collect();
        let mut copy = bench.contents();
        let mut passes = 0;
        let mut copy_dirty = |copy: &mut Vec<u8>| {
            let dirty = bench.vm.take_dirty_pages(0).unwrap();
            let pages = (0..SIZE / 4096).filter(|page| dirty[(page / 64) as usize] >> (page % 64) & 1 != 0);
            for page in pages {
                let bytes: [u8; 4096] = bench.read(page * 4096);
                copy[(page * 4096) as usize..][..4096].copy_from_slice(&bytes);
            }
            passes += 1;
        };
        thread::scope(|scope| {
            for vcpu in &mut vcpus {
                scope.spawn(move || assert_eq!(run(vcpu), Exit::Kicked));
            }
            let begin = std::time::Instant::now();
            let long = |limit| begin.elapsed() >= Duration::from_secs(limit);
            // At least some rounds of the guest, however slow the host.
            while begin.elapsed() < Duration::from_millis(200)
                || (bench.read_u32(0x2_0000) <= 10 && !long(20))
            {
                copy_dirty(&mut copy);
            }
            bench.stop();
        });
        copy_dirty(&mut copy);
        assert!(copy == bench.contents(), "{passes} passes, and pages differ");
        assert!(bench.read_u32(0x2_0000) > 10, "the guest has written");
    });
}

/// A machine whose other vCPUs wait for their start is moved; they are started there.
#[test]
fn those_who_wait_move_along() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 2);
        bench.assemble(32, CODE, |a| {
            let mut again = a.create_label();
            enable(a)?;
            a.out(u32::from(DONE), al)?;
            start_others(a)?;
            a.set_label(&mut again)?;
            a.pause()?;
            a.cmp(dword_ptr(0x6000), 1)?;
            a.jne(again)?;
            a.out(u32::from(DONE), al)
        });
        bench.assemble(16, START, |a| {
            let mut here = a.create_label();
            a.inc(dword_ptr(0x6000))?;
            a.set_label(&mut here)?;
            a.hlt()?;
            a.jmp(here)
        });
        let mut before = vcpus(&bench, 2);
        bench.finish_all(&mut before);
        let states: Vec<_> = before.iter().map(|vcpu| vcpu.state().unwrap()).collect();
        let other = Bench::new(&accelerator, 2);
        other.write(0, &bench.contents());
        other.vm.restore(&bench.vm.save().unwrap()).unwrap();
        let mut after: Vec<_> = (0..2)
            .zip(states)
            .map(|(index, saved)| other.vcpu(index, |state| *state = saved))
            .collect();
        other.finish_all(&mut after);
        assert_eq!(other.read_u32(0x6000), 1);
    });
}
