//! Making a processor, and its state after reset, INIT and SIPI (SDM volume 3, "Processor Management and Initialization").

use std::sync::Arc;

use crate::block::BlockCache;
use crate::environment::Attention;
use crate::exception::Exception;
use crate::memory::Memory;
use crate::mmu::Mmu;
use crate::state::{Cpu, DescriptorTable, ExtendedState, Msrs, Segment, cr0, gpr, mode, seg};
use crate::translate::{Arena, Runtime};

/// What the page attribute table says after reset.
const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;

impl Cpu {
    /// A processor in the state after reset. Number 0 can run; the others wait for INIT and SIPI. The time-stamp counter of its environment counts `tsc_khz` thousand times a second.
    pub fn new(memory: Arc<Memory>, index: u8, tsc_khz: u64) -> Box<Self> {
        Self::with_attention(memory, index, tsc_khz, Arc::default())
    }

    /// The same, for a processor that others reach through a word that is there already.
    pub fn with_attention(
        memory: Arc<Memory>,
        index: u8,
        tsc_khz: u64,
        attention: Arc<Attention>,
    ) -> Box<Self> {
        let membership = memory.join(u32::from(index), &attention);
        let snapshot = memory.current();
        let runtime = Runtime::new(&attention);
        let mut cpu = Box::new(Self {
            regs: [0; gpr::COUNT],
            rip: 0,
            status: 0,
            control: 0,
            mode: mode::REAL,
            cpl: 0,
            shadow: false,
            trap_flag_was_set: false,
            interrupt_waits: true,
            halted: false,
            waits_for_start: index != 0,
            nmi_masked: false,
            segments: [Segment::default(); 6],
            fault: Exception::default(),
            mmu: Mmu::new(membership),
            attention,
            environment: None,
            extended: Box::new(ExtendedState::initial()),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            debug: [0; 8],
            ldt: Segment::default(),
            task: Segment::default(),
            gdt: DescriptorTable::default(),
            idt: DescriptorTable::default(),
            msrs: Msrs::default(),
            memory,
            snapshot,
            blocks: BlockCache::new(Arena::new()),
            block_page: u64::MAX,
            pending: None,
            index: u32::from(index),
            runtime,
            scratch: 0,
            translates: true,
            hot: crate::translate::HOT,
            tsc_khz,
            instructions: 0,
        });
        cpu.runtime.recent = cpu.recent();
        cpu.translates = cpu.blocks.arena.works();
        cpu.msrs.pat = PAT_AT_RESET;
        // Fast strings.
        cpu.msrs.misc_enable = 1;
        cpu.reset_registers();
        cpu
    }

    /// After how many executions blocks are translated: `None` is the interpreter alone, as on a host that gives no executable memory.
    pub fn set_translation(&mut self, after: Option<u32>) {
        self.translates = after.is_some() && self.blocks.arena.works();
        self.hot = after.unwrap_or(0);
    }

    /// What INIT does: everything but the extended state, the time-stamp counter and most model-specific registers.
    pub(crate) fn initialize(&mut self) {
        self.reset_registers();
        self.waits_for_start = self.index != 0;
        self.halted = false;
        self.shadow = false;
        self.nmi_masked = false;
        self.pending = None;
    }

    fn reset_registers(&mut self) {
        self.regs = [0; gpr::COUNT];
        // Family and model, as `cpuid` leaf 1 tells.
        self.regs[gpr::RDX] = u64::from(self.cpuid(1, 0)[0]);
        self.status = 0;
        self.control = 0;
        self.rip = 0xfff0;
        let data = Segment {
            base: 0,
            limit: 0xffff,
            selector: 0,
            attributes: 0x93,
        };
        self.segments = [data; 6];
        self.segments[seg::CS] = Segment {
            base: 0xffff_0000,
            selector: 0xf000,
            attributes: 0x9b,
            ..data
        };
        self.gdt = DescriptorTable {
            base: 0,
            limit: 0xffff,
        };
        self.idt = self.gdt;
        self.ldt = Segment {
            attributes: 0x82,
            ..data
        };
        self.task = Segment {
            attributes: 0x8b,
            ..data
        };
        self.cr0 = cr0::ET | cr0::NW | cr0::CD;
        (self.cr2, self.cr3, self.cr4, self.efer) = (0, 0, 0, 0);
        self.debug = [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400];
        self.cpl = 0;
        self.mmu.flush();
        self.update_mode();
    }

    /// What SIPI does: begins in real mode at the page it names.
    pub(crate) fn start_at(&mut self, page: u8) {
        self.waits_for_start = false;
        self.segments[seg::CS].selector = u16::from(page) << 8;
        self.segments[seg::CS].base = u64::from(page) << 12;
        self.rip = 0;
        self.update_mode();
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.memory.leave(self.index);
    }
}
