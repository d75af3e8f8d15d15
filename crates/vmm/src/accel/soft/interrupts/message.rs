//! Interrupt messages: what devices write (MSI), what the I/O APIC sends, what a processor's ICR says.

use super::super::super::Msi;

/// What the receiver does with a message (SDM volume 3, "Delivery Mode").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum DeliveryMode {
    /// An interrupt for all who are addressed.
    Fixed,
    /// An interrupt for one of them.
    LowestPriority,
    /// A non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// SIPI: the vector is the page to start at.
    StartUp,
    /// Nothing: SMI (there is no system management mode), ExtINT (there is no PIC), the reserved one.
    Ignored,
}

impl DeliveryMode {
    /// From the three bits that MSI data, redirection entries, ICR and LVT have in common.
    pub(super) fn from_bits(bits: u32) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::Ignored,
        }
    }
}

/// Whom a message addresses (SDM volume 3, "Determining IPI Destination").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Destination {
    /// The local APIC of this number.
    Physical(u32),
    /// Those whose logical destination register fits this one.
    Logical(u32),
    /// Everybody.
    All,
}

impl Destination {
    /// From eight bits, as MSI, the I/O APIC and a local APIC in xAPIC mode have them.
    fn from_byte(id: u8, logical: bool) -> Self {
        match (id, logical) {
            (0xff, _) => Self::All,
            (id, false) => Self::Physical(id.into()),
            (id, true) => Self::Logical(id.into()),
        }
    }

    /// From 32 bits, as a local APIC in x2APIC mode has them.
    fn from_word(id: u32, logical: bool) -> Self {
        match (id, logical) {
            (u32::MAX, _) => Self::All,
            (id, false) => Self::Physical(id),
            (id, true) => Self::Logical(id),
        }
    }
}

/// An interrupt on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Message {
    pub destination: Destination,
    pub mode: DeliveryMode,
    pub vector: u8,
    /// Level-triggered: its end is told to the I/O APIC.
    pub level: bool,
}

impl Message {
    /// What a device writes (SDM volume 3, "Message Signalled Interrupts"). `None`: the address is not the local APICs'.
    ///
    /// The redirection hint makes a fixed interrupt one of lowest priority; the destination mode counts with or without it, as KVM has it.
    pub(super) fn from_msi(msi: Msi) -> Option<Self> {
        if msi.address >> 20 != 0xfee {
            return None;
        }
        let address = msi.address as u32;
        let mode = match DeliveryMode::from_bits(msi.data >> 8) {
            DeliveryMode::Fixed if address & 1 << 3 != 0 => DeliveryMode::LowestPriority,
            mode => mode,
        };
        Some(Self {
            destination: Destination::from_byte((address >> 12) as u8, address & 1 << 2 != 0),
            mode,
            vector: msi.data as u8,
            level: msi.data & 1 << 15 != 0,
        })
    }

    /// What an entry of the I/O APIC's redirection table sends (82093AA, "I/O Redirection Table Registers").
    pub(super) fn from_redirection(entry: u64) -> Self {
        Self {
            destination: Destination::from_byte((entry >> 56) as u8, entry & 1 << 11 != 0),
            mode: DeliveryMode::from_bits((entry >> 8) as u32),
            vector: entry as u8,
            level: entry & 1 << 15 != 0,
        }
    }
}

/// Who of a processor's own choice gets an interprocessor interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Targets {
    /// Whom the destination addresses.
    Destination,
    /// The sender.
    Own,
    /// All, the sender too.
    All,
    /// All but the sender.
    Others,
}

/// An interprocessor interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Ipi {
    pub message: Message,
    pub targets: Targets,
}

impl Ipi {
    /// What the interrupt command register says. `None`: INIT level de-assert, which has no effect since the Pentium 4.
    ///
    /// The trigger mode means nothing else: interprocessor interrupts are edges.
    pub(super) fn from_icr(icr: u64, x2apic: bool) -> Option<Self> {
        let low = icr as u32;
        let logical = low & 1 << 11 != 0;
        let mode = DeliveryMode::from_bits(low >> 8);
        if mode == DeliveryMode::Init && low & 1 << 15 != 0 && low & 1 << 14 == 0 {
            return None;
        }
        let destination = if x2apic {
            Destination::from_word((icr >> 32) as u32, logical)
        } else {
            Destination::from_byte((icr >> 56) as u8, logical)
        };
        let (destination, targets) = match low >> 18 & 3 {
            0 => (destination, Targets::Destination),
            1 => (Destination::All, Targets::Own),
            2 => (Destination::All, Targets::All),
            _ => (Destination::All, Targets::Others),
        };
        Some(Self {
            message: Message {
                destination,
                mode,
                vector: low as u8,
                level: false,
            },
            targets,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn modes() -> impl Strategy<Value = (u32, DeliveryMode)> {
        prop::sample::select(vec![
            (0, DeliveryMode::Fixed),
            (1, DeliveryMode::LowestPriority),
            (2, DeliveryMode::Ignored),
            (3, DeliveryMode::Ignored),
            (4, DeliveryMode::Nmi),
            (5, DeliveryMode::Init),
            (6, DeliveryMode::StartUp),
            (7, DeliveryMode::Ignored),
        ])
    }

    fn expected(id: u8, logical: bool) -> Destination {
        if id == 0xff {
            Destination::All
        } else if logical {
            Destination::Logical(u32::from(id))
        } else {
            Destination::Physical(u32::from(id))
        }
    }

    proptest! {
        #[test]
        fn a_message_of_a_device(
            id: u8, logical: bool, hint: bool, vector: u8, level: bool, (bits, mode) in modes(), noise: u32,
        ) {
            let address = 0xfee0_0000
                | u64::from(id) << 12
                | u64::from(hint) << 3
                | u64::from(logical) << 2
                | u64::from(noise & 0xff3) & 0xff3;
            let data = u32::from(vector) | bits << 8 | u32::from(level) << 15 | noise & 0xffff_3800 & !0x8000;
            let message = Message::from_msi(Msi { address, data }).unwrap();
            let mode = if hint && mode == DeliveryMode::Fixed { DeliveryMode::LowestPriority } else { mode };
            prop_assert_eq!(message, Message { destination: expected(id, logical), mode, vector, level });
        }

        #[test]
        fn a_write_elsewhere_is_no_message(address: u64, data: u32) {
            let message = Message::from_msi(Msi { address, data });
            prop_assert_eq!(message.is_some(), address & !0xf_ffff == 0xfee0_0000);
        }

        #[test]
        fn a_redirection_entry(id: u8, logical: bool, vector: u8, level: bool, (bits, mode) in modes(), noise: u64) {
            let entry = u64::from(id) << 56
                | u64::from(level) << 15
                | u64::from(logical) << 11
                | u64::from(bits) << 8
                | u64::from(vector)
                | noise & 0x00ff_ffff_ffff_7000 & !0x8000;
            prop_assert_eq!(
                Message::from_redirection(entry),
                Message { destination: expected(id, logical), mode, vector, level }
            );
        }

        #[test]
        fn an_interrupt_command(
            id: u32, logical: bool, vector: u8, x2apic: bool, shorthand in 0_u64..4, level: bool, assert: bool,
            (bits, mode) in modes(),
        ) {
            let icr = if x2apic { u64::from(id) << 32 } else { u64::from(id) << 56 }
                | shorthand << 18
                | u64::from(level) << 15
                | u64::from(assert) << 14
                | u64::from(logical) << 11
                | u64::from(bits) << 8
                | u64::from(vector);
            let ipi = Ipi::from_icr(icr, x2apic);
            if mode == DeliveryMode::Init && level && !assert {
                prop_assert_eq!(ipi, None);
                return Ok(());
            }
            let destination = match (shorthand, x2apic) {
                (1..=3, _) => Destination::All,
                (_, false) => expected(id as u8, logical),
                (_, true) if id == u32::MAX => Destination::All,
                (_, true) if logical => Destination::Logical(id),
                (_, true) => Destination::Physical(id),
            };
            let targets = [Targets::Destination, Targets::Own, Targets::All, Targets::Others][shorthand as usize];
            prop_assert_eq!(
                ipi,
                Some(Ipi { message: Message { destination, mode, vector, level: false }, targets })
            );
        }
    }
}
