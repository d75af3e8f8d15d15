//! A small machine: RAM, page tables, descriptor tables, and processors whose exceptions stop them unless a test says otherwise.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use iced_x86::code_asm::CodeAssembler;
use vessel_softcpu::{Cpu, DescriptorTable, Environment, Memory, MemoryRegion, Reset, Segment, State, Stop};

/// The guest's RAM. All of it is mapped at the same linear addresses, writable, for the supervisor.
pub const RAM: u64 = 2 << 20;

/// Physical and linear addresses.
pub mod at {
    pub const PML4: u64 = 0x1000;
    pub const PDPT: u64 = 0x2000;
    pub const DIRECTORY: u64 = 0x3000;
    /// The page table of the first 2 MiB.
    pub const TABLE: u64 = 0x4000;
    /// Byte n is the `hlt` that is the handler of vector n.
    pub const HANDLERS: u64 = 0x8000;
    pub const IDT: u64 = 0x9000;
    pub const GDT: u64 = 0xa000;
    pub const TSS: u64 = 0xb000;
    /// Stacks grow down from here: of privilege 0 as the TSS has it, of IST 1, and the one in use at first.
    pub const STACK_0: u64 = 0x1_0000;
    pub const STACK_IST: u64 = 0x1_2000;
    pub const STACK: u64 = 0x1_4000;
    pub const USER_STACK: u64 = 0x1_6000;
    pub const CODE: u64 = 0x2_0000;
    pub const USER_CODE: u64 = 0x4_0000;
    pub const DATA: u64 = 0x8_0000;
}

/// Selectors, in the order that `syscall` and `sysret` want.
pub mod selector {
    pub const CODE: u16 = 0x10;
    pub const DATA: u16 = 0x18;
    pub const USER_CODE_32: u16 = 0x23;
    pub const USER_DATA: u16 = 0x2b;
    pub const USER_CODE: u16 = 0x33;
    pub const CODE_32: u16 = 0x38;
    pub const CODE_16: u16 = 0x40;
    pub const DATA_16: u16 = 0x48;
    pub const TSS: u16 = 0x50;
}

/// Bits of a page table's entry.
pub mod page {
    pub const PRESENT: u64 = 1;
    pub const WRITE: u64 = 2;
    pub const USER: u64 = 4;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// What is outside of the processor.
#[derive(Default)]
pub struct Outside {
    /// Interrupts that wait.
    pub interrupts: VecDeque<u8>,
    pub nmi: bool,
    pub reset: VecDeque<Reset>,
    /// What was written to ports.
    pub written: Vec<(u16, Vec<u8>)>,
    /// Writes to what is no RAM.
    pub stored: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone, Default)]
pub struct Shared(pub Arc<Mutex<Outside>>);

impl Environment for Shared {
    fn read_port(&mut self, port: u16, data: &mut [u8]) {
        data.fill(port as u8);
    }
    fn write_port(&mut self, port: u16, data: &[u8]) {
        self.0.lock().unwrap().written.push((port, data.to_vec()));
    }
    fn read_memory(&mut self, address: u64, data: &mut [u8]) {
        data.fill(address as u8);
    }
    fn write_memory(&mut self, address: u64, data: &[u8]) {
        self.0.lock().unwrap().stored.push((address, data.to_vec()));
    }
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
        self.0.lock().unwrap().interrupts.pop_front()
    }
    fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.0.lock().unwrap().nmi)
    }
    fn take_reset(&mut self) -> Option<Reset> {
        self.0.lock().unwrap().reset.pop_front()
    }
    fn tsc(&mut self) -> u64 {
        12345
    }
}

/// What a processor pushed on the way into a handler that is `hlt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    pub vector: u8,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

pub struct Machine {
    ram: *mut u8,
    pub memory: Arc<Memory>,
    pub outside: Shared,
    /// How processors begin: in 64-bit code of privilege 0 at [`at::CODE`].
    pub state: State,
    /// Blocks are translated at once, or never.
    translated: bool,
}

// SAFETY: RAM is a mapping that lives as long as the machine; tests order their accesses to it.
unsafe impl Send for Machine {}
// SAFETY: as above.
unsafe impl Sync for Machine {}

/// Runs a test interpreted and translated.
pub fn both(test: impl Fn(Machine)) {
    for translated in [false, true] {
        test(Machine::new(translated));
    }
}

pub fn flat(selector: u16, attributes: u16) -> Segment {
    Segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        attributes,
    }
}

impl Machine {
    pub fn new(translated: bool) -> Self {
        // SAFETY: a new mapping.
        let ram = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RAM as usize,
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
            size: RAM,
            host_address: ram,
            read_only: false,
            log_dirty: false,
        };
        // SAFETY: unmapped by `drop`; tests end their processors before.
        assert!(unsafe { memory.map(0, region) });
        let mut machine = Self {
            ram,
            memory,
            outside: Shared::default(),
            state: State::default(),
            translated,
        };
        machine.build();
        machine
    }

    fn build(&mut self) {
        use page::{PRESENT, USER, WRITE};
        self.put(at::PML4, at::PDPT | PRESENT | WRITE | USER);
        self.put(at::PDPT, at::DIRECTORY | PRESENT | WRITE | USER);
        self.put(at::DIRECTORY, at::TABLE | PRESENT | WRITE | USER);
        for page in 0..512 {
            self.put(at::TABLE + page * 8, (page * 4096) | PRESENT | WRITE);
        }
        for address in [
            at::USER_CODE,
            at::USER_CODE + 4096,
            at::USER_STACK - 4096,
            at::DATA,
            at::DATA + 4096,
        ] {
            self.protect(address, PRESENT | WRITE | USER);
        }
        for vector in 0..=255 {
            self.gate(vector, at::HANDLERS + u64::from(vector), 0);
            self.write(at::HANDLERS + u64::from(vector), &[0xf4]);
        }
        for (selector, descriptor) in [
            (selector::CODE, 0x00af_9b00_0000_ffff_u64),
            (selector::DATA, 0x00cf_9300_0000_ffff),
            (selector::USER_CODE_32, 0x00cf_fb00_0000_ffff),
            (selector::USER_DATA, 0x00cf_f300_0000_ffff),
            (selector::USER_CODE, 0x00af_fb00_0000_ffff),
            (selector::CODE_32, 0x00cf_9b00_0000_ffff),
            (selector::CODE_16, 0x000f_9b00_0000_ffff),
            (selector::DATA_16, 0x0000_9300_0000_ffff),
            (selector::TSS, 0x0000_8900_0000_0067 | at::TSS << 16),
        ] {
            self.put(at::GDT + u64::from(selector & !7), descriptor);
        }
        self.put(at::TSS + 4, at::STACK_0);
        self.put(at::TSS + 0x24, at::STACK_IST);
        self.put(at::TSS + 0x60, 0x68 << 48);
        self.state = State {
            rip: at::CODE,
            rflags: 2,
            cr0: 0x8005_0033,
            cr3: at::PML4,
            // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE.
            cr4: 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18,
            xcr0: 3,
            segments: [
                flat(selector::DATA, 0xc093),
                flat(selector::CODE, 0xa09b),
                flat(selector::DATA, 0xc093),
                flat(selector::DATA, 0xc093),
                Segment::default(),
                Segment::default(),
            ],
            gdt: DescriptorTable {
                base: at::GDT,
                limit: 0x7f,
            },
            idt: DescriptorTable {
                base: at::IDT,
                limit: 0xfff,
            },
            task: Segment {
                base: at::TSS,
                limit: 0x67,
                selector: selector::TSS,
                attributes: 0x8b,
            },
            debug: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            // EFER: SCE, LME, LMA, NXE; STAR.
            msrs: vec![
                (0xc000_0080, 1 | 1 << 8 | 1 << 10 | 1 << 11),
                (0xc000_0081, 0x23 << 48 | u64::from(selector::CODE) << 32),
            ],
            ..State::default()
        };
        self.state.gpr[4] = at::STACK;
        self.state.xsave = vec![0; 832];
        self.state.xsave[0..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        self.state.xsave[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        self.state.xsave[512] = 3;
    }

    /// Writes RAM as a device does.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write(address, bytes);
    }

    pub fn put(&self, address: u64, value: u64) {
        self.write(address, &value.to_le_bytes());
    }

    pub fn get(&self, address: u64) -> u64 {
        assert!(address + 8 <= RAM);
        // SAFETY: inside of RAM.
        unsafe { self.ram.add(address as usize).cast::<u64>().read_unaligned() }
    }

    /// The rights of the page at a linear address; processors must be made, or flushed, afterwards.
    pub fn protect(&self, address: u64, rights: u64) {
        self.put(at::TABLE + address / 4096 * 8, address & !4095 | rights);
    }

    /// The page table's entry of a linear address.
    pub fn entry(&self, address: u64) -> u64 {
        self.get(at::TABLE + address / 4096 * 8)
    }

    /// An interrupt gate.
    pub fn gate(&self, vector: u8, handler: u64, ist: u64) {
        let slot = at::IDT + u64::from(vector) * 16;
        // Software may call what is above the exceptions, and `int3`.
        let dpl: u64 = if vector >= 32 || vector == 3 { 3 } else { 0 };
        let kind = 0x8e | dpl << 5;
        self.put(
            slot,
            handler & 0xffff
                | u64::from(selector::CODE) << 16
                | ist << 32
                | kind << 40
                | (handler >> 16) << 48,
        );
        self.put(slot + 8, handler >> 32);
    }

    /// Assembles at an address.
    pub fn code(&self, address: u64, bitness: u32, write: impl FnOnce(&mut CodeAssembler)) {
        let mut assembler = CodeAssembler::new(bitness).unwrap();
        write(&mut assembler);
        self.write(address, &assembler.assemble(address).unwrap());
    }

    pub fn cpu(&self, index: u8) -> Box<Cpu> {
        let mut cpu = Cpu::new(self.memory.clone(), index, 1_000_000);
        cpu.set_translation(self.translated.then_some(0));
        cpu.set_state(&self.state);
        cpu
    }

    /// A processor that begins in user mode.
    pub fn user(&mut self) {
        self.state.segments = [
            Segment::default(),
            flat(selector::USER_CODE, 0xa0fb),
            flat(selector::USER_DATA, 0xc0f3),
            Segment::default(),
            Segment::default(),
            Segment::default(),
        ];
        self.state.rip = at::USER_CODE;
        self.state.gpr[4] = at::USER_STACK;
        self.state.rflags = 0x202;
    }

    /// Executes until the processor halts.
    pub fn run(&self, cpu: &mut Cpu) -> State {
        let mut outside = self.outside.clone();
        assert_eq!(cpu.run(&mut outside), Stop::Halted);
        cpu.state()
    }

    /// Executes 64-bit code of privilege 0 until `hlt`.
    pub fn execute(&self, write: impl FnOnce(&mut CodeAssembler)) -> State {
        self.code(at::CODE, 64, write);
        self.run(&mut self.cpu(0))
    }

    /// The exception that a processor stopped in.
    pub fn trap(&self, state: &State) -> Trap {
        let vector = state.rip.wrapping_sub(at::HANDLERS + 1);
        assert!(vector < 256, "stopped at {:#x}, not in a handler", state.rip);
        let mut frame = state.gpr[4];
        let mut error = 0;
        if matches!(vector, 8 | 10..=14 | 17) {
            error = self.get(frame);
            frame += 8;
        }
        Trap {
            vector: vector as u8,
            error,
            rip: self.get(frame),
            cs: self.get(frame + 8),
            rflags: self.get(frame + 16),
            rsp: self.get(frame + 24),
            ss: self.get(frame + 32),
        }
    }

    /// Executes and says which exception came.
    pub fn trapped(&self, write: impl FnOnce(&mut CodeAssembler)) -> Trap {
        let state = self.execute(write);
        self.trap(&state)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.memory.unmap(0);
        // SAFETY: made by `new`; no processor is left that runs.
        unsafe { libc::munmap(self.ram.cast(), RAM as usize) };
    }
}
