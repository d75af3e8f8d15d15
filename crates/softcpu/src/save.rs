//! Everything of a processor that a snapshot needs, taken out and put back.

use crate::exception::{Exception, Source};
use crate::msr;
use crate::state::{Cpu, DescriptorTable, Segment, cr0, cr4, efer, gpr};

/// What has been begun and not delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// An exception that is to be delivered first: vector and error code.
    pub exception: Option<(u8, Option<u32>)>,
    /// An interrupt that was acknowledged and is to be delivered first.
    pub interrupt: Option<u8>,
    /// Non-maskable interrupts are held up until the next `iret`.
    pub nmi_masked: bool,
    /// No interrupt before the next instruction has ended.
    pub interrupt_shadow: bool,
    /// It has executed `hlt`.
    pub halted: bool,
    /// It waits for SIPI.
    pub waits_for_start: bool,
}

/// A processor's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    pub gpr: [u64; 16],
    /// The next instruction.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// es, cs, ss, ds, fs, gs.
    pub segments: [Segment; 6],
    /// The local descriptor table.
    pub ldt: Segment,
    /// The task state segment.
    pub task: Segment,
    /// GDTR.
    pub gdt: DescriptorTable,
    /// IDTR.
    pub idt: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// Extended control register 0.
    pub xcr0: u64,
    /// Debug registers 0 to 7; 4 and 5 mean nothing.
    pub debug: [u64; 8],
    /// The model-specific registers that the processor keeps itself.
    pub msrs: Vec<(u32, u64)>,
    /// The extended state as `xsave` writes it in standard format.
    pub xsave: Vec<u8>,
    /// What waits.
    pub events: Events,
}

impl Cpu {
    /// Everything of this processor. It must not be running.
    pub fn state(&self) -> State {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.regs[..16]);
        let waiting = |source: bool| {
            self.pending
                .filter(|exception| (exception.source == Source::External) == source)
        };
        State {
            gpr,
            rip: self.rip,
            rflags: self.rflags(),
            segments: self.segments,
            ldt: self.ldt,
            task: self.task,
            gdt: self.gdt,
            idt: self.idt,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            xcr0: self.xcr0,
            debug: self.debug,
            msrs: msr::SAVED
                .iter()
                .filter_map(|&register| Some((register, self.own_msr(register)?)))
                .collect(),
            xsave: self.extended.to_bytes(),
            events: Events {
                exception: waiting(false).map(|exception| (exception.vector, exception.error)),
                interrupt: waiting(true).map(|exception| exception.vector),
                nmi_masked: self.nmi_masked,
                interrupt_shadow: self.shadow,
                halted: self.halted,
                waits_for_start: self.waits_for_start,
            },
        }
    }

    /// Makes this processor what `state` says. It must not be running.
    pub fn set_state(&mut self, state: &State) {
        self.regs = [0; gpr::COUNT];
        self.regs[..16].copy_from_slice(&state.gpr);
        self.rip = state.rip;
        self.segments = state.segments;
        self.ldt = state.ldt;
        self.task = state.task;
        self.gdt = state.gdt;
        self.idt = state.idt;
        self.cr0 = state.cr0 | cr0::ET;
        self.cr2 = state.cr2;
        self.cr3 = state.cr3;
        self.cr4 = state.cr4 & (0xff_ffff ^ cr4::UMIP);
        self.xcr0 = state.xcr0 & crate::cpuid::XCR0 | 1;
        self.debug = state.debug;
        // EFER is compared with CR0.PG when the guest writes it; here both come from outside.
        let bits = state
            .msrs
            .iter()
            .find(|(register, _)| *register == msr::number::EFER)
            .map_or(0, |(_, value)| *value);
        self.efer = bits & (efer::SCE | efer::LME | efer::LMA | efer::NXE);
        for &(register, value) in &state.msrs {
            if register != msr::number::EFER
                && register != msr::number::FS_BASE
                && register != msr::number::GS_BASE
            {
                self.set_own_msr(register, value);
            }
        }
        self.extended.set_bytes(&state.xsave);
        self.set_rflags_raw(state.rflags);
        self.cpl = if self.cr0 & cr0::PE == 0 {
            0
        } else {
            (self.segments[crate::state::seg::CS].selector & 3) as u8
        };
        let events = &state.events;
        self.pending = match (events.exception, events.interrupt) {
            (Some((vector, error)), _) => Some(Exception {
                vector,
                error,
                address: state.cr2,
                ..Exception::default()
            }),
            (None, Some(vector)) => Some(Exception::external(vector)),
            (None, None) => None,
        };
        self.nmi_masked = events.nmi_masked;
        self.shadow = events.interrupt_shadow;
        self.halted = events.halted;
        self.waits_for_start = events.waits_for_start;
        self.mmu.flush();
        self.update_mode();
    }
}
