use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::message::{Message, Targets};
use super::*;

const X2APIC: u64 = base::ENABLED | base::X2APIC;

fn at(nanoseconds: u64) -> Now {
    Now {
        nanoseconds,
        tsc: nanoseconds,
        frequency: 1_000_000_000,
    }
}

fn enabled(id: u8) -> LocalApic {
    let mut apic = LocalApic::new(id);
    assert_eq!(apic.write_page(0xf0, 0x1ff, at(0)), Effect::None);
    apic
}

fn x2apic(id: u8) -> LocalApic {
    let mut apic = enabled(id);
    assert!(apic.set_base(apic.base() | base::X2APIC));
    apic
}

fn request(apic: &mut LocalApic, vector: u8) -> bool {
    apic.accept(DeliveryMode::Fixed, vector, false)
}

fn write(apic: &mut LocalApic, offset: u32, value: u32) -> Effect {
    apic.write_page(offset, value, at(0))
}

fn read(apic: &mut LocalApic, offset: u32) -> u32 {
    apic.read_page(offset, at(0))
}

#[test]
fn after_reset() {
    let mut apic = LocalApic::new(3);
    assert_eq!(apic.base(), 0xfee0_0800);
    assert_eq!(LocalApic::new(0).base(), 0xfee0_0900, "the boot processor");
    for (offset, value) in [
        (0x20, 3 << 24),
        (0x30, 0x0005_0014),
        (0x80, 0),
        (0xa0, 0),
        (0xd0, 0),
        (0xe0, u32::MAX),
        (0xf0, 0xff),
        (0x280, 0),
        (0x300, 0),
        (0x320, 1 << 16),
        (0x330, 1 << 16),
        (0x340, 1 << 16),
        (0x350, 1 << 16),
        (0x360, 1 << 16),
        (0x370, 1 << 16),
        (0x380, 0),
        (0x390, 0),
        (0x3e0, 0),
    ] {
        assert_eq!(read(&mut apic, offset), value, "{offset:#x}");
    }
    assert!(apic.waits_for_start);
    assert!(!LocalApic::new(0).waits_for_start);
}

#[test]
fn what_is_disabled_takes_no_interrupt() {
    let mut apic = LocalApic::new(0);
    assert!(!request(&mut apic, 0x31), "software has not enabled it");
    assert!(
        apic.accept(DeliveryMode::Nmi, 0, false),
        "but NMI and INIT come through"
    );
    assert!(apic.take_nmi() && !apic.take_nmi());
    write(&mut apic, 0xf0, 0x1ff);
    assert!(request(&mut apic, 0x31));
    write(&mut apic, 0xf0, 0xff);
    assert_eq!(
        apic.take_interrupt(),
        Some(0x31),
        "what was requested before stays"
    );
    assert!(apic.set_base(LAPIC_BASE));
    assert!(!apic.accept(DeliveryMode::Nmi, 0, false));
    assert!(!apic.is_addressed(Destination::All));
}

#[test]
fn the_higher_class_interrupts_the_lower() {
    let mut apic = enabled(0);
    for vector in [0x31, 0x45, 0x41] {
        assert!(request(&mut apic, vector));
    }
    assert_eq!(apic.take_interrupt(), Some(0x45));
    assert_eq!(read(&mut apic, 0xa0), 0x40);
    assert_eq!(apic.take_interrupt(), None, "same class and lower wait");
    request(&mut apic, 0x52);
    assert_eq!(apic.take_interrupt(), Some(0x52));
    assert_eq!(
        read(&mut apic, 0x120),
        1 << 5 | 1 << 18,
        "0x45 and 0x52 in service"
    );
    assert_eq!(write(&mut apic, 0xb0, 0), Effect::None);
    assert_eq!(apic.take_interrupt(), None, "0x45 is still served");
    write(&mut apic, 0xb0, 0);
    assert_eq!(apic.take_interrupt(), Some(0x41));
    write(&mut apic, 0xb0, 0);
    assert_eq!(apic.take_interrupt(), Some(0x31));
    write(&mut apic, 0xb0, 0);
    assert_eq!(write(&mut apic, 0xb0, 0), Effect::None, "nothing to end");
}

#[test]
fn the_task_priority_holds_up_its_class_and_below() {
    let mut apic = enabled(0);
    request(&mut apic, 0x4f);
    apic.set_task_priority_class(4);
    assert_eq!(read(&mut apic, 0x80), 0x40);
    assert_eq!(apic.take_interrupt(), None);
    write(&mut apic, 0x80, 0x3f);
    assert_eq!(apic.task_priority_class(), 3);
    assert_eq!(read(&mut apic, 0xa0), 0x3f, "with its subclass");
    assert_eq!(apic.take_interrupt(), Some(0x4f));
    assert_eq!(read(&mut apic, 0xa0), 0x40, "a served vector without");
}

#[test]
fn the_end_of_a_level_is_told() {
    let mut apic = enabled(0);
    apic.accept(DeliveryMode::Fixed, 0x61, true);
    assert_eq!(read(&mut apic, 0x1b0), 1 << 1, "trigger mode");
    apic.take_interrupt();
    assert_eq!(write(&mut apic, 0xb0, 0), Effect::EndOfInterrupt(0x61));
    request(&mut apic, 0x61);
    assert_eq!(read(&mut apic, 0x1b0), 0, "an edge of the same vector");
    apic.take_interrupt();
    assert_eq!(write(&mut apic, 0xb0, 0), Effect::None);
}

#[test]
fn errors_are_latched_by_a_write_and_interrupt() {
    let mut apic = enabled(0);
    write(&mut apic, 0x370, 0xfe);
    assert_eq!(
        write(&mut apic, 0x300, 0x0f),
        Effect::None,
        "vector 15 is not sent"
    );
    assert_eq!(apic.take_interrupt(), Some(0xfe));
    assert_eq!(read(&mut apic, 0x280), 0, "before the write");
    write(&mut apic, 0x280, 0);
    assert_eq!(read(&mut apic, 0x280), 1 << 5);
    write(&mut apic, 0x280, 0);
    assert_eq!(read(&mut apic, 0x280), 0);
    assert!(!request(&mut apic, 0x0f), "nor taken");
    assert_eq!(read(&mut apic, 0x40), 0, "no such register");
    write(&mut apic, 0x400, 1);
    write(&mut apic, 0x280, 0);
    assert_eq!(read(&mut apic, 0x280), 1 << 6 | 1 << 7);
    // An error vector that is illegal itself.
    write(&mut apic, 0x370, 0x05);
    read(&mut apic, 0x00);
    write(&mut apic, 0x280, 0);
    assert_eq!(read(&mut apic, 0x280), 1 << 6 | 1 << 7);
    // Registers that are only read are no error.
    for offset in [0x20, 0x30, 0x90, 0xa0, 0xc0, 0x100, 0x390] {
        write(&mut apic, offset, u32::MAX);
    }
    write(&mut apic, 0x280, 0);
    assert_eq!(read(&mut apic, 0x280), 0);
}

#[test]
fn the_vector_table_is_masked_with_the_apic() {
    let mut apic = LocalApic::new(0);
    write(&mut apic, 0x320, 0x30);
    assert_eq!(read(&mut apic, 0x320), 1 << 16 | 0x30);
    write(&mut apic, 0xf0, 0x1ff);
    write(&mut apic, 0x320, 0x30);
    assert_eq!(read(&mut apic, 0x320), 0x30);
    for (offset, bits) in [
        (0x320, 0x0007_00ff),
        (0x330, 0x0001_07ff),
        (0x340, 0x0001_07ff),
        (0x350, 0x0001_a7ff),
        (0x360, 0x0001_a7ff),
        (0x370, 0x0001_00ff),
    ] {
        write(&mut apic, offset, u32::MAX);
        assert_eq!(read(&mut apic, offset), bits, "{offset:#x}");
    }
    write(&mut apic, 0x350, 0x700);
    write(&mut apic, 0xf0, 0xff);
    assert_eq!(read(&mut apic, 0x350), 1 << 16 | 0x700);
}

#[test]
fn the_timer_requests_its_interrupt() {
    let mut apic = enabled(0);
    write(&mut apic, 0x3e0, 0xb);
    write(&mut apic, 0x320, 0xec);
    let _ = apic.write_page(0x380, 1000, at(100));
    assert_eq!(apic.read_page(0x390, at(600)), 500);
    assert_eq!(apic.timer_expires(), Some(1100));
    apic.poll_timer(at(1099));
    assert!(!apic.has_interrupt());
    apic.poll_timer(at(1100));
    assert_eq!(apic.take_interrupt(), Some(0xec));
    write(&mut apic, 0xb0, 0);
    write(&mut apic, 0x320, 0xec | 1 << 16);
    let _ = apic.write_page(0x380, 1000, at(2000));
    apic.poll_timer(at(3000));
    assert!(!apic.has_interrupt(), "masked");
    // A deadline that has passed already.
    write(&mut apic, 0x320, 0xec | 2 << 17);
    apic.set_tsc_deadline(5, at(10));
    assert_eq!(apic.take_interrupt(), Some(0xec));
    assert_eq!(apic.tsc_deadline(), 0);
}

#[test]
fn init_and_sipi() {
    let mut apic = enabled(1);
    assert!(!apic.has_reset());
    assert!(apic.accept(DeliveryMode::StartUp, 0x9a, false));
    assert!(apic.has_reset());
    assert_eq!(apic.take_reset(), Some(Reset::Start(0x9a)));
    assert!(!apic.accept(DeliveryMode::StartUp, 0x9b, false), "it runs");
    assert_eq!(apic.take_reset(), None);

    assert!(apic.set_base(apic.base() | base::X2APIC));
    apic.set_task_priority_class(7);
    request(&mut apic, 0x81);
    assert!(apic.accept(DeliveryMode::Init, 0, false));
    assert!(
        apic.accept(DeliveryMode::StartUp, 0x12, false),
        "INIT is on its way"
    );
    assert_eq!(apic.take_reset(), Some(Reset::Init));
    assert!(apic.is_x2apic(), "the mode stays");
    assert_eq!(apic.read_msr(0x802, at(0)), Some(1), "the number, too");
    assert_eq!((apic.task_priority_class(), apic.has_interrupt()), (0, false));
    assert!(!apic.is_enabled());
    assert_eq!(apic.take_reset(), Some(Reset::Start(0x12)));
    assert_eq!(apic.take_reset(), None);
}

#[test]
fn the_interrupt_command() {
    let mut apic = enabled(0);
    write(&mut apic, 0x310, 2 << 24);
    let effect = write(&mut apic, 0x300, 0xfd | 1 << 12);
    let message = Message {
        destination: Destination::Physical(2),
        mode: DeliveryMode::Fixed,
        vector: 0xfd,
        level: false,
    };
    let targets = Targets::Destination;
    assert_eq!(effect, Effect::Send(Ipi { message, targets }));
    assert_eq!(read(&mut apic, 0x300), 0xfd, "it is sent already");
    assert_eq!(read(&mut apic, 0x310), 2 << 24);
    // INIT level de-assert.
    assert_eq!(write(&mut apic, 0x300, 5 << 8 | 1 << 15), Effect::None);
}

#[test]
fn modes_change_as_the_manual_draws_it() {
    let disabled = LAPIC_BASE;
    let xapic = LAPIC_BASE | base::ENABLED;
    let x2apic = LAPIC_BASE | X2APIC;
    let invalid = LAPIC_BASE | base::X2APIC;
    for (from, to, allowed) in [
        (disabled, disabled, true),
        (disabled, xapic, true),
        (disabled, x2apic, false),
        (disabled, invalid, false),
        (xapic, disabled, true),
        (xapic, xapic, true),
        (xapic, x2apic, true),
        (xapic, invalid, false),
        (x2apic, disabled, true),
        (x2apic, xapic, false),
        (x2apic, x2apic, true),
        (x2apic, invalid, false),
    ] {
        let mut apic = LocalApic::new(1);
        apic.restore_base(from);
        assert_eq!(apic.set_base(to), allowed, "{from:#x} to {to:#x}");
        assert_eq!(apic.base(), if allowed { to } else { from });
    }
    for bit in [0, 7, 9, 52, 63] {
        assert!(
            !LocalApic::new(1).set_base(xapic | 1 << bit),
            "bit {bit} is reserved"
        );
    }
    let mut apic = enabled(1);
    assert_eq!(apic.page(), Some(LAPIC_BASE));
    assert!(apic.set_base(0xfec8_0000 | base::ENABLED));
    assert_eq!(apic.page(), Some(0xfec8_0000));
    assert!(apic.set_base(disabled));
    assert!(apic.set_base(xapic));
    assert_eq!(read(&mut apic, 0xf0), 0xff, "disabling it resets it");
}

#[test]
fn x2apic_registers() {
    let mut apic = x2apic(0x25);
    assert_eq!(apic.page(), None);
    for (msr, value) in [
        (0x802, Some(0x25)),
        (0x803, Some(0x0005_0014)),
        (0x80d, Some(2 << 16 | 1 << 5)),
        (0x80e, None),
        (0x80b, None),
        (0x83f, None),
        (0x831, None),
        (0x82f, None),
        (0x800, None),
        (0x8ff, None),
        (0x80f, Some(0x1ff)),
        (0x830, Some(0)),
        (0x810, Some(0)),
        (0x827, Some(0)),
    ] {
        assert_eq!(apic.read_msr(msr, at(0)), value, "{msr:#x}");
    }
    // What is read-only, does not exist, or has reserved bits.
    for (msr, value) in [
        (0x802, 0),
        (0x803, 0),
        (0x80d, 0),
        (0x80e, 0),
        (0x80a, 0),
        (0x810, 0),
        (0x839, 0),
        (0x831, 0),
        (0x80b, 1),
        (0x828, 1),
        (0x808, 0x100),
        (0x80f, 1 << 12),
        (0x832, 1 << 19),
        (0x83e, 4),
        (0x83f, 0x100),
        (0x838, 1 << 32),
        (0x830, 1 << 20),
    ] {
        assert_eq!(apic.write_msr(msr, value, at(0)), None, "{msr:#x} {value:#x}");
    }
    let effect = apic.write_msr(0x830, 0x1234_5678_0000_08fd, at(0));
    let message = Message {
        destination: Destination::Logical(0x1234_5678),
        mode: DeliveryMode::Fixed,
        vector: 0xfd,
        level: false,
    };
    let targets = Targets::Destination;
    assert_eq!(effect, Some(Effect::Send(Ipi { message, targets })));
    assert_eq!(apic.read_msr(0x830, at(0)), Some(0x1234_5678_0000_08fd));
    let effect = apic.write_msr(0x83f, 0x41, at(0));
    assert!(
        matches!(effect, Some(Effect::Send(ipi)) if ipi.targets == Targets::Own && ipi.message.vector == 0x41)
    );
    assert_eq!(apic.write_msr(0x83f, 0x0f, at(0)), Some(Effect::None));
    assert_eq!(apic.write_msr(0x828, 0, at(0)), Some(Effect::None));
    assert_eq!(apic.read_msr(0x828, at(0)), Some(1 << 5));
    let mut other = enabled(1);
    assert_eq!(other.read_msr(0x802, at(0)), None, "not in xAPIC mode");
    assert_eq!(other.write_msr(0x808, 0, at(0)), None);
}

#[test]
fn its_state_is_saved() {
    for extended in [false, true] {
        let mut apic = enabled(5);
        if extended {
            assert!(apic.set_base(apic.base() | base::X2APIC));
        } else {
            write(&mut apic, 0xd0, 0x2000_0000);
            write(&mut apic, 0xe0, 0x0fff_ffff);
        }
        let put = |apic: &mut LocalApic, register: u32, value: u64, now| {
            if extended {
                assert!(apic.write_msr(0x800 + register, value, now).is_some());
            } else {
                let _ = apic.write_page(register << 4, value as u32, now);
            }
        };
        apic.accept(DeliveryMode::Fixed, 0x77, true);
        apic.take_interrupt();
        request(&mut apic, 0x78);
        put(&mut apic, 0x08, 0x25, at(0));
        put(&mut apic, 0x30, 0xfb | 1 << 18, at(0));
        put(&mut apic, 0x32, 0x30 | 1 << 17, at(0));
        put(&mut apic, 0x3e, 0xb, at(0));
        put(&mut apic, 0x38, 100_000, at(0));
        let state = apic.state(at(30_000));
        assert_eq!(state.registers.len(), 64);
        assert_eq!(state.registers[0x39], 70_000);

        let mut other = LocalApic::new(5);
        other.restore_base(apic.base());
        other.set_state(&state, at(500_000));
        assert_eq!(other.state(at(500_000)), state);
        assert_eq!(other.timer_expires(), Some(570_000), "goes on where it was");
        other.poll_timer(at(570_000));
        assert_eq!(other.timer_expires(), Some(670_000), "and begins anew");
        let end = if extended {
            other.write_msr(0x80b, 0, at(0)).unwrap()
        } else {
            write(&mut other, 0xb0, 0)
        };
        assert_eq!(end, Effect::EndOfInterrupt(0x77));
        assert_eq!(other.take_interrupt(), Some(0x78));
    }
}

proptest! {
    /// Against the manual's words, without any cleverness.
    #[test]
    fn priorities(actions in prop::collection::vec((0_u8..4, any::<u8>()), 1..200)) {
        let mut apic = enabled(0);
        let (mut requested, mut served, mut task) = (BTreeSet::new(), BTreeSet::new(), 0_u8);
        for (action, value) in actions {
            match action {
                0 if value >= 16 => {
                    prop_assert!(request(&mut apic, value));
                    requested.insert(value);
                }
                1 => {
                    let highest = requested.last().copied();
                    let class = (task >> 4).max(served.last().map_or(0, |vector: &u8| vector >> 4));
                    let expected = highest.filter(|vector| vector >> 4 > class);
                    prop_assert_eq!(apic.has_interrupt(), expected.is_some());
                    prop_assert_eq!(apic.take_interrupt(), expected);
                    if let Some(vector) = expected {
                        requested.remove(&vector);
                        served.insert(vector);
                    }
                }
                2 => {
                    prop_assert_eq!(write(&mut apic, 0xb0, 0), Effect::None);
                    served.pop_last();
                }
                3 => {
                    write(&mut apic, 0x80, value.into());
                    task = value;
                }
                _ => {}
            }
            for word in 0..8 {
                let expected = |set: &BTreeSet<u8>| {
                    set.iter().filter(|vector| u32::from(**vector) >> 5 == word).fold(0, |bits, vector| bits | 1_u32 << (vector & 31))
                };
                prop_assert_eq!(read(&mut apic, 0x200 + word * 16), expected(&requested));
                prop_assert_eq!(read(&mut apic, 0x100 + word * 16), expected(&served));
            }
        }
    }

    #[test]
    fn logical_destinations(id in 0_u8..255, set: u32, own: u8) {
        let mut apic = enabled(id);
        write(&mut apic, 0xd0, u32::from(own) << 24);
        let byte = set & 0xff;
        prop_assert_eq!(apic.is_addressed(Destination::Logical(byte)), u32::from(own) & byte != 0);
        write(&mut apic, 0xe0, 0x0fff_ffff);
        prop_assert_eq!(
            apic.is_addressed(Destination::Logical(byte)),
            u32::from(own >> 4) == byte >> 4 && u32::from(own & 0xf) & byte & 0xf != 0
        );
        write(&mut apic, 0xe0, 0x5fff_ffff);
        prop_assert!(!apic.is_addressed(Destination::Logical(byte)), "no such model");
        let apic = x2apic(id);
        let set = u32::from(id >> 4) << 16 | set & 0xffff;
        prop_assert_eq!(apic.is_addressed(Destination::Logical(set)), set >> (id & 15) & 1 != 0);
        prop_assert!(!apic.is_addressed(Destination::Logical(set ^ 1 << 20)));
        prop_assert!(apic.is_addressed(Destination::Physical(id.into())));
        prop_assert!(!apic.is_addressed(Destination::Physical(u32::from(id) | 0x100)));
    }

    /// Whatever a guest does: no panic, and a processor that takes what it is given has an end.
    #[test]
    fn garbage(actions in prop::collection::vec((0_u32..6, any::<u32>(), any::<u64>(), any::<u64>()), 0..200)) {
        let mut apic = enabled(1);
        for (action, place, value, time) in actions {
            let now = Now { nanoseconds: time, tsc: time.rotate_left(7), frequency: 1 << 31 };
            match action {
                0 => { let _ = apic.write_page(place & 0xff0, value as u32, now); }
                1 => { apic.read_page(place & 0xff0, now); }
                2 => { let _ = apic.write_msr(0x800 + (place & 0xff), value & 0xffff_ffff_000f_ffff, now); }
                3 => { apic.read_msr(0x800 + (place & 0xff), now); }
                4 => { apic.set_base(LAPIC_BASE | value & 0xd00); }
                _ => {
                    apic.set_tsc_deadline(value, now);
                    apic.accept(DeliveryMode::from_bits(place), value as u8, place & 8 != 0);
                }
            }
            apic.poll_timer(now);
            apic.take_reset();
            let state = apic.state(now);
            apic.set_state(&state, now);
        }
        let taken = (0..1000).take_while(|_| apic.take_interrupt().is_some()).count();
        prop_assert!(taken <= 15, "one of each class");
    }
}
