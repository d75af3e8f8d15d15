//! KVM's structures and [`VcpuState`](super::super::VcpuState), each made of the other.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI, kvm_debugregs,
    kvm_dtable, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};

use super::super::{DescriptorTable, LapicState, Segment, VcpuEvents, VcpuRegisters};

/// Bit 16 of a segment's attributes.
const UNUSABLE: u32 = 1 << 16;

/// Bytes of the area that `KVM_GET_XSAVE` has.
const XSAVE_SIZE: usize = 4096;

/// Registers of a local APIC's state.
const LAPIC_REGISTERS: usize = 64;

fn segment(from: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    let attributes = u32::from(from.type_ & 0xf)
        | bit(from.s, 4)
        | u32::from(from.dpl & 3) << 5
        | bit(from.present, 7)
        | bit(from.avl, 12)
        | bit(from.l, 13)
        | bit(from.db, 14)
        | bit(from.g, 15)
        | bit(from.unusable, 16);
    Segment {
        selector: from.selector,
        base: from.base,
        limit: from.limit,
        attributes,
    }
}

fn kvm_segment(from: &Segment) -> kvm_segment {
    let bits = |at: u32, mask: u32| (from.attributes >> at & mask) as u8;
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: bits(0, 0xf),
        s: bits(4, 1),
        dpl: bits(5, 3),
        present: bits(7, 1),
        avl: bits(12, 1),
        l: bits(13, 1),
        db: bits(14, 1),
        g: bits(15, 1),
        // Accelerators other than this one have no bit for it: what is not present is not usable.
        unusable: u8::from(from.attributes & UNUSABLE != 0 || from.attributes & 1 << 7 == 0),
        padding: 0,
    }
}

fn table(from: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: from.base,
        limit: from.limit,
    }
}

fn kvm_table(from: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: from.base,
        limit: from.limit,
        ..Default::default()
    }
}

/// What programs and kernels see.
pub(super) fn registers(
    regs: &kvm_regs,
    sregs: &kvm_sregs,
    debug: &kvm_debugregs,
    xcrs: &kvm_xcrs,
) -> VcpuRegisters {
    let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
    let xcr0 = xcrs.xcrs[..count]
        .iter()
        .find(|register| register.xcr == 0)
        .map_or(1, |register| register.value);
    VcpuRegisters {
        gpr: [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
            regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        rip: regs.rip,
        rflags: regs.rflags,
        segments: [&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs].map(segment),
        ldt: segment(&sregs.ldt),
        task: segment(&sregs.tr),
        gdt: table(&sregs.gdt),
        idt: table(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        debug: [
            debug.db[0],
            debug.db[1],
            debug.db[2],
            debug.db[3],
            debug.dr6,
            debug.dr7,
        ],
        xcr0,
    }
}

/// The general registers.
pub(super) fn kvm_regs(from: &VcpuRegisters) -> kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = from.gpr;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: from.rip,
        rflags: from.rflags,
    }
}

/// The system registers. IA32_EFER and IA32_APIC_BASE are among the MSRs of a state.
pub(super) fn kvm_sregs(from: &VcpuRegisters, efer: u64, apic_base: u64) -> kvm_sregs {
    let [es, cs, ss, ds, fs, gs] = from.segments.each_ref().map(kvm_segment);
    kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: kvm_segment(&from.task),
        ldt: kvm_segment(&from.ldt),
        gdt: kvm_table(&from.gdt),
        idt: kvm_table(&from.idt),
        cr0: from.cr0,
        cr2: from.cr2,
        cr3: from.cr3,
        cr4: from.cr4,
        cr8: from.cr8,
        efer,
        apic_base,
        ..Default::default()
    }
}

/// The debug registers.
pub(super) fn kvm_debugregs(from: &VcpuRegisters) -> kvm_debugregs {
    let [db0, db1, db2, db3, dr6, dr7] = from.debug;
    kvm_debugregs {
        db: [db0, db1, db2, db3],
        dr6,
        dr7,
        ..Default::default()
    }
}

/// The extended control registers.
pub(super) fn kvm_xcrs(from: &VcpuRegisters) -> kvm_xcrs {
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    xcrs.xcrs[0].value = from.xcr0;
    xcrs
}

/// What waits.
pub(super) fn events(from: &kvm_vcpu_events, state: kvm_mp_state) -> VcpuEvents {
    let exception = from.exception;
    VcpuEvents {
        exception: (exception.injected != 0 || exception.pending != 0).then(|| {
            let error = (exception.has_error_code != 0).then_some(exception.error_code);
            (exception.nr, error)
        }),
        // One by `int` is executed again: the instruction has not ended.
        interrupt: (from.interrupt.injected != 0 && from.interrupt.soft == 0).then_some(from.interrupt.nr),
        nmi_pending: from.nmi.injected != 0 || from.nmi.pending != 0,
        nmi_masked: from.nmi.masked != 0 && from.nmi.injected == 0,
        interrupt_shadow: from.interrupt.shadow != 0,
        halted: state.mp_state == KVM_MP_STATE_HALTED,
        waits_for_start: matches!(
            state.mp_state,
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED
        ),
    }
}

/// What waits, for KVM.
pub(super) fn kvm_events(from: &VcpuEvents) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events::default();
    if let Some((vector, error)) = from.exception {
        events.exception.injected = 1;
        events.exception.nr = vector;
        events.exception.has_error_code = error.is_some().into();
        events.exception.error_code = error.unwrap_or(0);
    }
    if let Some(vector) = from.interrupt {
        events.interrupt.injected = 1;
        events.interrupt.nr = vector;
    }
    if from.interrupt_shadow {
        events.interrupt.shadow = KVM_X86_SHADOW_INT_STI as u8;
    }
    events.nmi.pending = from.nmi_pending.into();
    events.nmi.masked = from.nmi_masked.into();
    events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    events
}

/// Whether it executes. One that waits for its start takes SIPI with or without another INIT.
pub(super) fn kvm_mp_state(from: &VcpuEvents) -> kvm_mp_state {
    let mp_state = if from.waits_for_start {
        KVM_MP_STATE_INIT_RECEIVED
    } else if from.halted {
        KVM_MP_STATE_HALTED
    } else {
        KVM_MP_STATE_RUNNABLE
    };
    kvm_mp_state { mp_state }
}

/// The extended state.
pub(super) fn xsave(from: &kvm_xsave) -> Vec<u8> {
    from.region.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The extended state for KVM, as far as this host's processor has it (`supported`: what XCR0 can be).
pub(super) fn kvm_xsave(from: &[u8], supported: u64) -> kvm_xsave {
    const HEADER: usize = 512;
    let mut bytes = [0; XSAVE_SIZE];
    let length = from.len().min(XSAVE_SIZE);
    bytes[..length].copy_from_slice(&from[..length]);
    // XSTATE_BV; the rest of the header is zero in the standard format.
    let mut present = [0; 8];
    present.copy_from_slice(&bytes[HEADER..HEADER + 8]);
    let present = u64::from_le_bytes(present) & supported;
    bytes[HEADER..HEADER + 64].fill(0);
    bytes[HEADER..HEADER + 8].copy_from_slice(&present.to_le_bytes());
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    xsave
}

/// The local APIC.
pub(super) fn lapic(from: &kvm_lapic_state) -> LapicState {
    let register = |index: usize| {
        let bytes = std::array::from_fn(|byte| from.regs[index * 16 + byte] as u8);
        u32::from_le_bytes(bytes)
    };
    LapicState {
        registers: (0..LAPIC_REGISTERS).map(register).collect(),
    }
}

/// The local APIC for KVM.
pub(super) fn kvm_lapic(from: &LapicState) -> kvm_lapic_state {
    let mut lapic = kvm_lapic_state::default();
    for (index, register) in from.registers.iter().take(LAPIC_REGISTERS).enumerate() {
        for (byte, value) in register.to_le_bytes().into_iter().enumerate() {
            lapic.regs[index * 16 + byte] = value as _;
        }
    }
    lapic
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_segment() -> impl Strategy<Value = Segment> {
        (any::<u16>(), any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
            |(selector, base, limit, attributes)| {
                let present = attributes & 1 << 7 != 0;
                let unusable = if present { attributes & UNUSABLE } else { UNUSABLE };
                Segment {
                    selector,
                    base,
                    limit,
                    attributes: attributes & 0xf0ff | unusable,
                }
            },
        )
    }

    fn any_events() -> impl Strategy<Value = VcpuEvents> {
        (
            any::<Option<(u8, Option<u32>)>>(),
            any::<Option<u8>>(),
            any::<[bool; 5]>(),
        )
            .prop_map(
                |(exception, interrupt, [pending, masked, shadow, halted, waits])| VcpuEvents {
                    exception,
                    interrupt,
                    nmi_pending: pending,
                    nmi_masked: masked,
                    interrupt_shadow: shadow,
                    halted: halted && !waits,
                    waits_for_start: waits,
                },
            )
    }

    proptest! {
        #[test]
        fn registers_come_back(
            gpr: [u64; 16], control: [u64; 6], debug: [u64; 6], xcr0: u64, rip: u64, rflags: u64,
            segments in prop::array::uniform6(any_segment()), ldt in any_segment(), task in any_segment(), limit: u16,
        ) {
            let [cr0, cr2, cr3, cr4, cr8, base] = control;
            let table = DescriptorTable { base, limit };
            let state = VcpuRegisters {
                gpr, rip, rflags, segments, ldt, task, gdt: table, idt: table, cr0, cr2, cr3, cr4, cr8, debug, xcr0,
            };
            let sregs = kvm_sregs(&state, 0x500, 0xfee0_0800);
            prop_assert_eq!((sregs.efer, sregs.apic_base), (0x500, 0xfee0_0800));
            prop_assert_eq!(registers(&kvm_regs(&state), &sregs, &kvm_debugregs(&state), &kvm_xcrs(&state)), state);
        }

        #[test]
        fn events_come_back(state in any_events()) {
            prop_assert_eq!(events(&kvm_events(&state), kvm_mp_state(&state)), state);
        }

        #[test]
        fn a_local_apic_comes_back(registers in prop::collection::vec(any::<u32>(), 64)) {
            let state = LapicState { registers };
            prop_assert_eq!(lapic(&kvm_lapic(&state)), state);
        }

        #[test]
        fn extended_state_of_any_length(bytes in prop::collection::vec(any::<u8>(), 0..5000), supported: u64) {
            let made = xsave(&kvm_xsave(&bytes, supported));
            prop_assert_eq!(made.len(), 4096);
            let legacy = bytes.len().min(512);
            prop_assert_eq!(&made[..legacy], &bytes[..legacy]);
            let present = u64::from_le_bytes(made[512..520].try_into().unwrap());
            prop_assert_eq!(present & !supported, 0);
        }
    }

    #[test]
    fn an_interrupt_by_instruction_is_not_delivered_twice() {
        let mut from = kvm_vcpu_events::default();
        from.interrupt.injected = 1;
        from.interrupt.nr = 0x80;
        from.interrupt.soft = 1;
        assert_eq!(events(&from, kvm_mp_state::default()).interrupt, None);
    }
}
