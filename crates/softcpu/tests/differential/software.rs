//! Execution by the processor in software.

use std::sync::Arc;

use vessel_softcpu::{Cpu, DescriptorTable, Environment, Memory, MemoryRegion, Reset, Segment, State, Stop};

use crate::case::{CODE, CODE_BYTES, Case, DATA, DATA_BYTES, Outcome, STACK, STACK_BYTES};

/// The guest's RAM.
const RAM: usize = 1 << 20;

/// Physical addresses.
mod at {
    pub const PML4: usize = 0x1000;
    pub const PDPT: usize = 0x2000;
    pub const DIRECTORY: usize = 0x3000;
    pub const CODE_TABLE: usize = 0x4000;
    pub const DATA_TABLE: usize = 0x5000;
    pub const STACK_TABLE: usize = 0x6000;
    pub const SYSTEM_TABLE: usize = 0x7000;
    pub const SYSTEM_PDPT: usize = 0xe000;
    pub const SYSTEM_DIRECTORY: usize = 0xf000;
    /// A page of `hlt`: byte n is the handler of vector n.
    pub const HANDLERS: usize = 0x8000;
    pub const IDT: usize = 0x9000;
    pub const GDT: usize = 0xa000;
    pub const TSS: usize = 0xb000;
    pub const KERNEL_STACK: usize = 0xd000;
    pub const CODE: usize = 0x1_0000;
    pub const DATA: usize = 0x2_0000;
    pub const STACK: usize = 0x3_0000;
}

/// Where all of it is for the supervisor: where no case has a reason to look.
const SYSTEM: u64 = 0xffff_8000_0000_0000;

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;

struct Nothing;

impl Environment for Nothing {
    fn read_port(&mut self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn write_port(&mut self, _: u16, _: &[u8]) {}
    fn read_memory(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn write_memory(&mut self, _: u64, _: &[u8]) {}
    fn read_msr(&mut self, _: u32) -> Option<u64> {
        None
    }
    fn write_msr(&mut self, _: u32, _: u64) -> bool {
        false
    }
    fn cr8(&mut self) -> u64 {
        0
    }
    fn set_cr8(&mut self, _: u64) {}
    fn take_interrupt(&mut self) -> Option<u8> {
        None
    }
    fn take_nmi(&mut self) -> bool {
        false
    }
    fn take_reset(&mut self) -> Option<Reset> {
        None
    }
    fn tsc(&mut self) -> u64 {
        0
    }
}

/// A processor in user mode with pages for instructions, data and the stack, whose exceptions stop it.
pub struct Software {
    ram: *mut u8,
    memory: Arc<Memory>,
    cpu: Box<Cpu>,
    state: State,
}

impl Software {
    /// `translated`: every block is translated before it is executed; otherwise none is.
    pub fn new(translated: bool) -> Self {
        // SAFETY: a new mapping.
        let ram = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RAM,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(ram, libc::MAP_FAILED);
        let ram = ram.cast::<u8>();
        let memory = Memory::new();
        let region = MemoryRegion {
            guest_address: 0,
            size: RAM as u64,
            host_address: ram,
            read_only: false,
            log_dirty: false,
        };
        // SAFETY: unmapped only by `drop`, after the processor.
        assert!(unsafe { memory.map(0, region) });
        let mut cpu = Cpu::new(memory.clone(), 0, 1_000_000);
        cpu.set_translation(translated.then_some(0));
        let mut machine = Self {
            ram,
            memory,
            state: cpu.state(),
            cpu,
        };
        machine.build();
        machine
    }

    fn put(&mut self, at: usize, value: u64) {
        assert!(at + 8 <= RAM);
        // SAFETY: inside of RAM; the processor is not running.
        unsafe { self.ram.add(at).cast::<u64>().write_unaligned(value) };
    }

    fn build(&mut self) {
        self.put(at::PML4, at::PDPT as u64 | PRESENT | WRITE | USER);
        self.put(at::PDPT, at::DIRECTORY as u64 | PRESENT | WRITE | USER);
        // The upper half's first page table.
        self.put(at::PML4 + 256 * 8, at::SYSTEM_PDPT as u64 | PRESENT | WRITE);
        self.put(at::SYSTEM_PDPT, at::SYSTEM_DIRECTORY as u64 | PRESENT | WRITE);
        self.put(at::SYSTEM_DIRECTORY, at::SYSTEM_TABLE as u64 | PRESENT | WRITE);
        for page in 0..16 {
            self.put(
                at::SYSTEM_TABLE + page * 8,
                (page * 4096) as u64 | PRESENT | WRITE,
            );
        }
        for (address, table, frame, pages) in [
            (CODE, at::CODE_TABLE, at::CODE, CODE_BYTES / 4096),
            (DATA, at::DATA_TABLE, at::DATA, DATA_BYTES / 4096),
            (STACK, at::STACK_TABLE, at::STACK, STACK_BYTES / 4096),
        ] {
            let slot = at::DIRECTORY + (address >> 21) as usize * 8;
            self.put(slot, table as u64 | PRESENT | WRITE | USER);
            for page in 0..pages {
                self.put(
                    table + page * 8,
                    (frame + page * 4096) as u64 | PRESENT | WRITE | USER,
                );
            }
        }
        for vector in 0..32_usize {
            let handler = SYSTEM + (at::HANDLERS + vector) as u64;
            // An interrupt gate to selector 0x10; privilege 3 for `int3` and `into`.
            let dpl: u64 = if matches!(vector, 3 | 4) { 3 } else { 0 };
            self.put(
                at::IDT + vector * 16,
                handler & 0xffff | 0x10 << 16 | (0x8e | dpl << 5) << 40 | (handler >> 16) << 48,
            );
            self.put(at::IDT + vector * 16 + 8, handler >> 32);
            // SAFETY: inside of RAM.
            unsafe { self.ram.add(at::HANDLERS + vector).write(0xf4) };
        }
        // As Linux has them, so that pushed selectors are the same.
        self.put(at::GDT + 0x10, 0x00af_9b00_0000_ffff);
        self.put(at::GDT + 0x18, 0x00cf_9300_0000_ffff);
        self.put(at::GDT + 0x20, 0x00cf_fb00_0000_ffff);
        self.put(at::GDT + 0x28, 0x00cf_f300_0000_ffff);
        self.put(at::GDT + 0x30, 0x00af_fb00_0000_ffff);
        self.put(at::TSS + 4, SYSTEM + at::KERNEL_STACK as u64);
        // No map of ports.
        self.put(at::TSS + 0x60, 0x68 << 48);
        let flat = |selector, attributes| Segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            attributes,
        };
        let null = Segment::default();
        let state = &mut self.state;
        state.segments = [null, flat(0x33, 0xa0fb), flat(0x2b, 0xc0f3), null, null, null];
        state.gdt = DescriptorTable {
            base: SYSTEM + at::GDT as u64,
            limit: 0x7f,
        };
        state.idt = DescriptorTable {
            base: SYSTEM + at::IDT as u64,
            limit: 0x1ff,
        };
        state.task = Segment {
            base: SYSTEM + at::TSS as u64,
            limit: 0x67,
            selector: 0x40,
            attributes: 0x8b,
        };
        // PE, MP, ET, NE, WP, AM, PG.
        state.cr0 = 0x8005_0033;
        state.cr3 = at::PML4 as u64;
        // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE.
        state.cr4 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18;
        state.xcr0 = 3;
        // EFER: SCE, LME, LMA, NXE.
        state.msrs = vec![(0xc000_0080, 1 | 1 << 8 | 1 << 10 | 1 << 11)];
    }

    fn ram(&mut self, at: usize, bytes: usize) -> &mut [u8] {
        assert!(at + bytes <= RAM);
        // SAFETY: inside of RAM; the processor is not running.
        unsafe { std::slice::from_raw_parts_mut(self.ram.add(at), bytes) }
    }

    /// Executes `case` until its first exception.
    pub fn run(&mut self, case: &Case, data: &[u8], stack: &[u8], outcome: &mut Outcome) {
        self.ram(at::CODE, CODE_BYTES).fill(0xcc);
        let offset = (case.rip - CODE) as usize;
        self.ram(at::CODE + offset, case.code_bytes as usize)
            .copy_from_slice(&case.code[..case.code_bytes as usize]);
        self.ram(at::DATA, DATA_BYTES).copy_from_slice(data);
        self.ram(at::STACK, STACK_BYTES).copy_from_slice(stack);
        self.memory.written(at::CODE as u64, CODE_BYTES as u64);
        let state = &mut self.state;
        state.gpr = case.gpr;
        state.rip = case.rip;
        state.rflags = case.rflags | 0x202;
        state.xsave = vec![0; 832];
        state.xsave[..512].copy_from_slice(&case.fx);
        state.xsave[512] = 3;
        self.cpu.set_state(state);
        let stop = self.cpu.run(&mut Nothing);
        assert_eq!(stop, Stop::Halted, "{}", crate::compare::text(case));
        let after = self.cpu.state();
        let vector = after.rip - 1 - (SYSTEM + at::HANDLERS as u64);
        let with_error = matches!(vector, 8 | 10..=14 | 17);
        let frame = (after.gpr[4] - SYSTEM) as usize;
        let word = |index: usize| {
            let at = frame + index * 8;
            assert!(at + 8 <= RAM);
            // SAFETY: inside of RAM.
            unsafe { self.ram.add(at).cast::<u64>().read_unaligned() }
        };
        let first = usize::from(with_error);
        outcome.gpr = after.gpr;
        outcome.gpr[4] = word(first + 3);
        outcome.rip = word(first);
        outcome.rflags = word(first + 2);
        outcome.vector = vector;
        outcome.error = if with_error { word(0) } else { 0 };
        outcome.cr2 = after.cr2;
        outcome.fx.copy_from_slice(&after.xsave[..512]);
        outcome.data.copy_from_slice(self.ram(at::DATA, DATA_BYTES));
        outcome.stack.copy_from_slice(self.ram(at::STACK, STACK_BYTES));
    }
}

impl Drop for Software {
    fn drop(&mut self) {
        // The processor is not running, and nothing else of it touches RAM.
        self.memory.unmap(0);
        // SAFETY: made by `new`.
        unsafe { libc::munmap(self.ram.cast(), RAM) };
    }
}
