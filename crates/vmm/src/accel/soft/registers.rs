//! The software processor's state and [`VcpuState`](super::super::VcpuState), each made of the other.

use vessel_softcpu::{DescriptorTable as SoftTable, Events, Segment as SoftSegment, State};

use super::super::{DescriptorTable, Segment, VcpuEvents, VcpuRegisters, VcpuState};

/// Bit 16 of a segment's attributes; the software processor has none and says so by clearing them all.
const UNUSABLE: u32 = 1 << 16;
const PRESENT: u16 = 1 << 7;

fn segment(from: &SoftSegment) -> Segment {
    let unusable = if from.attributes & PRESENT == 0 {
        UNUSABLE
    } else {
        0
    };
    Segment {
        selector: from.selector,
        base: from.base,
        limit: from.limit,
        attributes: u32::from(from.attributes) | unusable,
    }
}

fn soft_segment(from: &Segment) -> SoftSegment {
    let attributes = if from.attributes & UNUSABLE != 0 {
        0
    } else {
        from.attributes as u16
    };
    SoftSegment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        attributes,
    }
}

fn table(from: &SoftTable) -> DescriptorTable {
    DescriptorTable {
        base: from.base,
        limit: from.limit,
    }
}

fn soft_table(from: &DescriptorTable) -> SoftTable {
    SoftTable {
        base: from.base,
        limit: from.limit,
    }
}

/// What programs and kernels see.
pub(super) fn registers(from: &State, cr8: u64) -> VcpuRegisters {
    let [db0, db1, db2, db3, _, _, db6, db7] = from.debug;
    VcpuRegisters {
        gpr: from.gpr,
        rip: from.rip,
        rflags: from.rflags,
        segments: from.segments.each_ref().map(segment),
        ldt: segment(&from.ldt),
        task: segment(&from.task),
        gdt: table(&from.gdt),
        idt: table(&from.idt),
        cr0: from.cr0,
        cr2: from.cr2,
        cr3: from.cr3,
        cr4: from.cr4,
        cr8,
        debug: [db0, db1, db2, db3, db6, db7],
        xcr0: from.xcr0,
    }
}

/// What waits in the processor; what waits in its local APIC is added: a non-maskable interrupt.
pub(super) fn events(from: &Events, nmi_pending: bool) -> VcpuEvents {
    VcpuEvents {
        exception: from.exception,
        interrupt: from.interrupt,
        nmi_pending,
        nmi_masked: from.nmi_masked,
        interrupt_shadow: from.interrupt_shadow,
        halted: from.halted,
        waits_for_start: from.waits_for_start,
    }
}

/// The processor's part of a state.
pub(super) fn soft_state(from: &VcpuState) -> State {
    let registers = &from.registers;
    let events = &from.events;
    let [db0, db1, db2, db3, db6, db7] = registers.debug;
    State {
        gpr: registers.gpr,
        rip: registers.rip,
        rflags: registers.rflags,
        segments: registers.segments.each_ref().map(soft_segment),
        ldt: soft_segment(&registers.ldt),
        task: soft_segment(&registers.task),
        gdt: soft_table(&registers.gdt),
        idt: soft_table(&registers.idt),
        cr0: registers.cr0,
        cr2: registers.cr2,
        cr3: registers.cr3,
        cr4: registers.cr4,
        xcr0: registers.xcr0,
        debug: [db0, db1, db2, db3, 0, 0, db6, db7],
        msrs: from.msrs.clone(),
        xsave: from.xsave.clone(),
        events: Events {
            exception: events.exception,
            interrupt: events.interrupt,
            nmi_masked: events.nmi_masked,
            interrupt_shadow: events.interrupt_shadow,
            halted: events.halted,
            waits_for_start: events.waits_for_start,
        },
    }
}
