//! Memory slots: what is written is known, what is read-only is a device's, what is taken away is gone.

use iced_x86::code_asm::*;
use vessel_vmm::accel::{ErrorKind, MemoryRegion};

use crate::guest::*;

/// The pages whose bits are set, but for those that programs are read from: KVM may take a page that could be written for one that was.
fn bits(pages: &[u64]) -> Vec<u64> {
    (0..pages.len() as u64 * 64)
        .filter(|page| pages[(page / 64) as usize] >> (page % 64) & 1 != 0)
        .filter(|page| page * 4096 != CODE)
        .collect()
}

#[test]
fn written_pages_are_known() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::without_memory(&accelerator, 1);
        bench.map(0, 0, 0, SIZE, false, true);
        bench.assemble(32, CODE, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.mov(eax, ptr(0x1_0000))?;
            a.mov(dword_ptr(0x2_0ffe), 1)?;
            a.add(dword_ptr(0x3_0004), 1)?;
            a.in_(al, u32::from(INPUT))?;
            a.test(al, al)?;
            a.jnz(again)?;
            a.mov(byte_ptr(0xf_f000), 1)?;
            a.out(u32::from(DONE), al)?;
            a.mov(byte_ptr(0x3_0fff), 1)?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpu = bench.vcpu(0, |state| protected_mode(&bench, state));
        bench.vm.take_dirty_pages(0).unwrap();
        bench.input(&[1, 1, 1]);
        bench.finish(&mut vcpu);
        assert_eq!(
            bits(&bench.vm.take_dirty_pages(0).unwrap()),
            [0x20, 0x21, 0x30, 0xff]
        );
        assert_eq!(bits(&bench.vm.take_dirty_pages(0).unwrap()), [0; 0], "taken");
        bench.finish(&mut vcpu);
        assert_eq!(
            bits(&bench.vm.take_dirty_pages(0).unwrap()),
            [0x30],
            "written again"
        );
    });
}

#[test]
fn writes_are_recorded_from_when_it_is_asked() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        bench.assemble(16, CODE, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.inc(word_ptr(0x6000))?;
            a.out(u32::from(DONE), al)?;
            a.jmp(again)
        });
        let mut vcpu = bench.vcpu(0, real_mode);
        bench.finish(&mut vcpu);
        let error = bench.vm.take_dirty_pages(0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        bench.map(0, 0, 0, SIZE, false, true);
        bench.vm.take_dirty_pages(0).unwrap();
        bench.finish(&mut vcpu);
        assert_eq!(bits(&bench.vm.take_dirty_pages(0).unwrap()), [6]);
        bench.map(0, 0, 0, SIZE, false, false);
        bench.finish(&mut vcpu);
        assert!(bench.vm.take_dirty_pages(0).is_err());
        assert_eq!(bench.read::<2>(0x6000), [3, 0]);
    });
}

#[test]
fn read_only_memory_is_read() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        bench.map(1, 0xc000_0000, 0x2_0000, 0x1000, true, false);
        bench.write(0x2_0010, &[0xaa, 0xbb, 0xcc, 0xdd]);
        bench.assemble(32, CODE, |a| {
            a.mov(eax, ptr(0xc000_0010_u32))?;
            a.out(u32::from(NOTE), eax)?;
            a.mov(dword_ptr(0xc000_0010_u32), 0x0102_0304)?;
            a.mov(eax, ptr(0xc000_0010_u32))?;
            a.out(u32::from(NOTE), eax)?;
            a.out(u32::from(DONE), al)
        });
        let mut vcpu = bench.vcpu(0, |state| protected_mode(&bench, state));
        bench.finish(&mut vcpu);
        assert_eq!(bench.noted(), [0xaa, 0xbb, 0xcc, 0xdd, 0xaa, 0xbb, 0xcc, 0xdd]);
        assert_eq!(bench.stores(), [(0xc000_0010, vec![4, 3, 2, 1])]);
    });
}

#[test]
fn slots_come_and_go() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        bench.map(1, 0xc000_0000, 0x2_0000, 0x1000, false, false);
        bench.write(0x2_0000, &[1; 4]);
        bench.write(0x3_0000, &[2; 4]);
        bench.assemble(32, CODE, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.mov(eax, ptr(0xc000_0000_u32))?;
            a.out(u32::from(NOTE), eax)?;
            a.out(u32::from(DONE), al)?;
            a.jmp(again)
        });
        let mut vcpu = bench.vcpu(0, |state| protected_mode(&bench, state));
        bench.finish(&mut vcpu);
        assert_eq!(bench.noted(), [1; 4]);
        // The same place, other memory.
        bench.map(1, 0xc000_0000, 0x3_0000, 0x1000, false, false);
        bench.finish(&mut vcpu);
        assert_eq!(bench.noted(), [2; 4]);
        bench.vm.unmap_memory(1).unwrap();
        bench.finish(&mut vcpu);
        assert_eq!(bench.noted(), [0, 1, 2, 3], "the bus answers");
        assert_eq!(bench.vm.unmap_memory(1).unwrap_err().kind(), ErrorKind::Invalid);
    });
}

#[test]
fn impossible_memory_is_refused() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        let good = MemoryRegion {
            guest_address: 0xc000_0000,
            size: 0x1000,
            host_address: bench.host(0),
            read_only: false,
            log_dirty: false,
        };
        for region in [
            MemoryRegion { size: 0, ..good },
            MemoryRegion { size: 0x1001, ..good },
            MemoryRegion {
                guest_address: 0xc000_0001,
                ..good
            },
            MemoryRegion {
                guest_address: u64::MAX << 12,
                ..good
            },
            MemoryRegion {
                guest_address: SIZE - 0x1000,
                ..good
            },
            MemoryRegion {
                host_address: bench.host(8),
                ..good
            },
        ] {
            // SAFETY: within the bench's mapping where it is accepted at all.
            let error = unsafe { bench.vm.map_memory(1, region) }.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{region:?}: {error}");
        }
        assert!(bench.vm.take_dirty_pages(7).is_err());
    });
}

/// A device loads other code over what was executed: x86 has no instruction to announce it.
#[test]
fn code_that_a_device_writes_is_executed() {
    on_each(Needs::Little, |accelerator| {
        let bench = Bench::new(&accelerator, 1);
        let routine = 0x5000;
        let program = |bench: &Bench, value: u32| {
            bench.assemble(16, routine, |a| {
                a.mov(al, value)?;
                a.ret()
            });
        };
        program(&bench, 1);
        bench.assemble(16, CODE, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.call(routine)?;
            a.out(u32::from(NOTE), al)?;
            a.out(u32::from(DONE), al)?;
            a.jmp(again)
        });
        let observer = bench.vm.write_observer();
        let mut vcpu = bench.vcpu(0, real_mode);
        for value in 1..5 {
            program(&bench, value);
            if let Some(observer) = &observer {
                observer.written(routine, 3);
            }
            bench.finish(&mut vcpu);
            assert_eq!(bench.noted(), [value as u8]);
        }
    });
}

/// The guest itself does, in the page that it executes and in another.
#[test]
fn code_that_the_guest_writes_is_executed() {
    on_each(Needs::Little, |accelerator| {
        for routine in [0x5000_u64, CODE + 0x100] {
            let bench = Bench::new(&accelerator, 1);
            bench.assemble(16, routine, |a| {
                a.mov(al, 1)?;
                a.ret()
            });
            bench.assemble(16, CODE, |a| {
                let mut again = a.create_label();
                a.mov(cx, 5)?;
                a.set_label(&mut again)?;
                a.call(routine)?;
                a.out(u32::from(NOTE), al)?;
                a.inc(byte_ptr(routine + 1))?;
                a.dec(cx)?;
                a.jnz(again)?;
                a.out(u32::from(DONE), al)
            });
            let mut vcpu = bench.vcpu(0, real_mode);
            bench.finish(&mut vcpu);
            assert_eq!(bench.noted(), [1, 2, 3, 4, 5]);
        }
    });
}
