//! Modes of the processor, ports, devices in memory, the ways out.

use std::thread;
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use vessel_vmm::accel::{ErrorKind, Exit, Kvm};

use crate::guest::*;

#[test]
fn real_mode_reaches_ports() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        bench.input(&[7, 0x34, 0x12]);
        bench.write(0x6000, b"ports");
        bench.assemble(16, CODE, |a| {
            a.mov(dx, u32::from(INPUT))?;
            a.in_(al, dx)?;
            a.add(al, 1)?;
            a.out(u32::from(NOTE), al)?;
            a.in_(ax, dx)?;
            a.inc(ax)?;
            a.out(u32::from(NOTE), ax)?;
            // Several units at once.
            a.mov(dx, u32::from(NOTE))?;
            a.mov(si, 0x6000)?;
            a.mov(cx, 5)?;
            a.cld()?;
            a.rep().outsb()?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpu = bench.vcpu(0, real_mode);
        bench.finish(&mut vcpu);
        assert_eq!(bench.noted(), b"\x08\x35\x12ports");
    });
}

#[test]
fn string_input_fills_memory() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        bench.input(&[1, 2, 3, 4, 5, 6]);
        bench.assemble(16, CODE, |a| {
            a.mov(dx, u32::from(INPUT))?;
            a.mov(di, 0x6000)?;
            a.mov(cx, 3)?;
            a.cld()?;
            a.rep().insw()?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpu = bench.vcpu(0, real_mode);
        bench.finish(&mut vcpu);
        assert_eq!(bench.read::<7>(0x6000), [1, 2, 3, 4, 5, 6, 0]);
    });
}

#[test]
fn protected_mode_reaches_devices_in_memory() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        bench.assemble(32, CODE, |a| {
            a.mov(ebx, 0xd000_0040_u32)?;
            a.mov(eax, ptr(ebx))?;
            a.out(u32::from(NOTE), eax)?;
            a.mov(ax, ptr(ebx + 1))?;
            a.out(u32::from(NOTE), ax)?;
            a.mov(al, ptr(ebx + 3))?;
            a.out(u32::from(NOTE), al)?;
            a.mov(dword_ptr(ebx), 0x1122_3344)?;
            a.mov(word_ptr(ebx + 4), 0x5566)?;
            a.mov(byte_ptr(ebx + 6), 0x77)?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpu = bench.vcpu(0, |state| protected_mode(&bench, state));
        bench.finish(&mut vcpu);
        assert_eq!(bench.noted(), [0x40, 0x41, 0x42, 0x43, 0x41, 0x42, 0x43]);
        assert_eq!(
            bench.stores(),
            [
                (0xd000_0040, vec![0x44, 0x33, 0x22, 0x11]),
                (0xd000_0044, vec![0x66, 0x55]),
                (0xd000_0046, vec![0x77]),
            ]
        );
    });
}

#[test]
fn long_mode_has_wide_registers() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        bench.assemble(64, CODE, |a| {
            a.mov(r15, 0x0123_4567_89ab_cdef_u64)?;
            a.mov(rbx, DATA)?;
            a.mov(ptr(rbx), r15)?;
            a.mov(ecx, 0xd000_0000_u32)?;
            a.mov(ptr(rcx + 8), r15)?;
            a.mov(rax, ptr(rcx + 0x10))?;
            a.mov(ptr(rbx + 8), rax)?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpu = bench.vcpu(0, |state| long_mode(&bench, state));
        bench.finish(&mut vcpu);
        assert_eq!(bench.read_u64(DATA), 0x0123_4567_89ab_cdef);
        assert_eq!(bench.read_u64(DATA + 8), 0x1716_1514_1312_1110);
        let bytes = 0x0123_4567_89ab_cdef_u64.to_le_bytes().to_vec();
        assert_eq!(bench.stores(), [(0xd000_0008, bytes)]);
    });
}

/// Everything on the way: as firmware does it.
#[test]
fn from_real_mode_to_user_programs_and_back() {
    on_each(Needs::Everything, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        let (gdtr, protected, long, user, syscall) = (0x6000_u64, 0x1100_u64, 0x1200_u64, 0x1300, 0x1400_u64);
        write_descriptors(&bench);
        write_page_tables(&bench);
        bench.write(gdtr, &[79, 0, 0, 0x80, 0, 0]);
        bench.assemble(16, CODE, |a| {
            a.lgdt(ptr(gdtr))?;
            a.mov(eax, cr0)?;
            a.or(eax, 1)?;
            a.mov(cr0, eax)?;
            // jmp 8:protected
            a.db(&[0xea, protected as u8, (protected >> 8) as u8, 8, 0])
        });
        bench.assemble(32, protected, |a| {
            a.mov(eax, 16)?;
            a.mov(ds, eax)?;
            a.mov(ss, eax)?;
            a.mov(esp, STACK as u32)?;
            a.mov(eax, cr4)?;
            a.or(eax, 0x620)?;
            a.mov(cr4, eax)?;
            a.mov(eax, PAGE_TABLES as u32)?;
            a.mov(cr3, eax)?;
            a.mov(ecx, 0xc000_0080_u32)?;
            a.rdmsr()?;
            a.or(eax, 0x101)?;
            a.wrmsr()?;
            a.mov(eax, cr0)?;
            a.or(eax, 0x8001_0000_u32)?;
            a.mov(cr0, eax)?;
            // jmp 0x28:long
            a.db(&[0xea, long as u8, (long >> 8) as u8, 0, 0, 0x28, 0])
        });
        bench.assemble(64, long, |a| {
            a.mov(ecx, 0xc000_0080_u32)?;
            a.rdmsr()?;
            a.out(u32::from(NOTE), eax)?;
            a.mov(ecx, 0xc000_0081_u32)?;
            a.xor(eax, eax)?;
            // syscall: code 0x28 (and data 0x30, which nobody uses); sysret: code 0x33.
            a.mov(edx, 0x0023_0028)?;
            a.wrmsr()?;
            a.mov(ecx, 0xc000_0082_u32)?;
            a.mov(eax, syscall as u32)?;
            a.xor(edx, edx)?;
            a.wrmsr()?;
            a.mov(ecx, user as u32)?;
            a.mov(r11d, 2)?;
            a.sysretq()
        });
        bench.assemble(64, user, |a| {
            a.mov(edi, cs)?;
            a.syscall()
        });
        bench.assemble(64, syscall, |a| {
            a.mov(eax, edi)?;
            a.out(u32::from(NOTE), al)?;
            a.mov(eax, cs)?;
            a.out(u32::from(NOTE), al)?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpu = bench.vcpu(0, real_mode);
        bench.finish(&mut vcpu);
        assert_eq!(bench.noted(), [0x01, 0x05, 0, 0, 0x33, 0x28]);
    });
}

/// A user program with IOPL 3, entered directly: what even an emulating KVM executes natively.
#[test]
fn user_programs_run() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        bench.assemble(64, CODE, |a| {
            let mut again = a.create_label();
            a.mov(ecx, 100_000)?;
            a.xor(eax, eax)?;
            a.set_label(&mut again)?;
            a.add(eax, ecx)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.mov(rbx, DATA)?;
            a.mov(ptr(rbx), eax)?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpu = bench.vcpu(0, |state| {
            long_mode(&bench, state);
            let registers = &mut state.registers;
            for segment in &mut registers.segments {
                segment.selector = 0x23;
                segment.attributes = 0xc0f3;
            }
            registers.segments[1].selector = 0x33;
            registers.segments[1].attributes = 0xa0fb;
            registers.rflags = 0x3002;
        });
        bench.finish(&mut vcpu);
        let sum = (1..=100_000_u32).fold(0, u32::wrapping_add);
        assert_eq!(bench.read_u32(DATA), sum);
    });
}

#[test]
fn exceptions_have_handlers() {
    on_each(Needs::Everything, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        // #BP returns behind the instruction, #PF tells address and error code and is skipped.
        bench.assemble(64, HANDLERS + 0x300, |a| {
            a.mov(al, 3)?;
            a.out(u32::from(NOTE), al)?;
            a.iretq()
        });
        bench.assemble(64, HANDLERS + 0xe00, |a| {
            a.pop(rax)?;
            a.out(u32::from(NOTE), al)?;
            a.mov(rax, cr2)?;
            a.out(u32::from(NOTE), eax)?;
            a.add(qword_ptr(rsp), 2)?;
            a.iretq()
        });
        bench.assemble(64, CODE, |a| {
            a.int3()?;
            a.mov(ebx, 0x4000_0123)?;
            // Two bytes.
            a.mov(ptr(rbx), al)?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpu = bench.vcpu(0, |state| long_mode(&bench, state));
        bench.finish(&mut vcpu);
        assert_eq!(bench.noted(), [3, 2, 0x23, 0x01, 0, 0x40]);
    });
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        bench.assemble(32, CODE, |a| a.ud2());
        let mut vcpu = bench.vcpu(0, |state| {
            protected_mode(&bench, state);
            state.registers.idt.limit = 0;
        });
        assert_eq!(run(&mut vcpu), Exit::Shutdown);
    });
}

#[test]
fn a_kick_interrupts_a_loop() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        bench.assemble(16, CODE, |a| {
            let mut here = a.create_label();
            a.set_label(&mut here)?;
            a.inc(bx)?;
            a.jmp(here)
        });
        let mut vcpu = bench.vcpu(0, real_mode);
        let handle = vcpu.handle();
        for _ in 0..20 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(2));
                    handle.kick();
                });
                let begin = Instant::now();
                assert_eq!(run(&mut vcpu), Exit::Kicked);
                assert!(begin.elapsed() < Duration::from_secs(10));
            });
        }
        // One that came before is not forgotten, and counts once.
        handle.kick();
        handle.kick();
        assert_eq!(run(&mut vcpu), Exit::Kicked);
        thread::scope(|scope| {
            let begin = Instant::now();
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(30));
                handle.kick();
            });
            assert_eq!(run(&mut vcpu), Exit::Kicked);
            assert!(begin.elapsed() >= Duration::from_millis(25), "an old kick");
        });
    });
}

/// Kicks at every moment of entering and leaving: none is lost.
#[test]
fn kicks_and_runs_race() {
    on_each(Needs::Little, |accelerator| {
        const ROUNDS: u32 = 500;
        let bench = Bench::new(&accelerator, 1);
        bench.assemble(16, CODE, |a| {
            let mut here = a.create_label();
            a.set_label(&mut here)?;
            a.jmp(here)
        });
        let mut vcpu = bench.vcpu(0, real_mode);
        let handle = vcpu.handle();
        let (ask, asked) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                for round in asked {
                    for _ in 0..round % 700 {
                        std::hint::spin_loop();
                    }
                    handle.kick();
                }
            });
            for round in 0..ROUNDS {
                let begin = Instant::now();
                ask.send(round).unwrap();
                assert_eq!(vcpu.run().unwrap(), Exit::Kicked);
                assert!(begin.elapsed() < Duration::from_secs(10), "round {round}");
            }
            drop(ask);
        });
    });
}

#[test]
fn the_processor_says_what_it_is() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 3);
        bench.assemble(16, CODE, |a| {
            a.mov(eax, 0x4000_0000)?;
            a.cpuid()?;
            for register in [ebx, ecx, edx] {
                a.mov(eax, register)?;
                a.out(u32::from(NOTE), eax)?;
            }
            a.mov(eax, 1)?;
            a.cpuid()?;
            a.mov(eax, ecx)?;
            a.out(u32::from(NOTE), eax)?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpu = bench.vcpu(0, real_mode);
        bench.finish(&mut vcpu);
        let notes = bench.notes();
        let name: Vec<_> = notes[..3].iter().flat_map(|(_, data)| data.clone()).collect();
        assert_eq!(name, b"KVMKVMKVM\0\0\0");
        let features = u32::from_le_bytes(notes[3].1[..].try_into().unwrap());
        assert_ne!(features & 1 << 31, 0, "a hypervisor");
        assert_ne!(features & 1 << 21, 0, "x2APIC");
    });
}

/// Where the processor has virtualization, `Kvm::new` does not run it; elsewhere it decides.
#[test]
fn the_self_test_knows_a_whole_processor() {
    let kvm = match Kvm::without_self_test() {
        Ok(kvm) => kvm,
        Err(why) => return eprintln!("not on kvm: {why}"),
    };
    let begin = Instant::now();
    let result = kvm.self_test();
    assert!(begin.elapsed() < Duration::from_secs(10), "it has a limit");
    match (Kvm::new(), result) {
        (Ok(_), Ok(())) => {}
        (Err(error), Err(same)) => {
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert_eq!(error.to_string(), same.to_string());
        }
        (new, result) => panic!("{:?} and {result:?}", new.err()),
    }
}
