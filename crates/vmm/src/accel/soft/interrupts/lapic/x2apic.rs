//! The local APIC's registers as MSRs (SDM volume 3, "Extended XAPIC (x2APIC)"): unlike in the page, what does not exist and reserved bits are #GP.

use super::super::timer::Now;
use super::{COMMAND_STATUS, Effect, LVT_WRITABLE, LocalApic, SPURIOUS_WRITABLE, error, register};
use super::{DeliveryMode, Destination, Ipi};
use crate::accel::soft::interrupts::message::{Message, Targets};

/// The first of the MSRs.
const FIRST: u32 = 0x800;

/// What of the interrupt command register is not reserved: destination, shorthand, trigger, level, mode, vector.
const COMMAND_WRITABLE: u64 = 0xffff_ffff_000c_cfff;

impl LocalApic {
    /// Reads one of the MSRs 0x800 to 0x8ff. `None`: #GP.
    pub(in super::super::super) fn read_msr(&self, msr: u32, now: Now) -> Option<u64> {
        if !self.is_x2apic() {
            return None;
        }
        match msr.checked_sub(FIRST)? {
            register::COMMAND => Some(self.command),
            number => self.read_register(number, now).map(u64::from),
        }
    }

    /// Writes one. `None`: #GP.
    #[must_use]
    pub(in super::super::super) fn write_msr(&mut self, msr: u32, value: u64, now: Now) -> Option<Effect> {
        use register::*;
        if !self.is_x2apic() {
            return None;
        }
        let number = msr.checked_sub(FIRST)?;
        let allowed = match number {
            TASK_PRIORITY => 0xff,
            END_OF_INTERRUPT | ERROR_STATUS => 0,
            SPURIOUS => SPURIOUS_WRITABLE.into(),
            COMMAND => COMMAND_WRITABLE | u64::from(COMMAND_STATUS),
            // The delivery status can be written back as it was read.
            LVT..=LVT_LAST => u64::from(LVT_WRITABLE[(number - LVT) as usize] | 1 << 12 | 1 << 14),
            INITIAL_COUNT => u32::MAX.into(),
            DIVIDE => 0xb,
            SELF_IPI => 0xff,
            _ => return None,
        };
        if value & !allowed != 0 {
            return None;
        }
        match number {
            COMMAND => {
                self.command = value & COMMAND_WRITABLE;
                Some(self.command())
            }
            SELF_IPI => Some(self.send_to_self(value as u8)),
            number => self.write_register(number, value as u32, now),
        }
    }

    fn send_to_self(&mut self, vector: u8) -> Effect {
        if vector < 16 {
            self.signal_error(error::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        Effect::Send(Ipi {
            message: Message {
                destination: Destination::All,
                mode: DeliveryMode::Fixed,
                vector,
                level: false,
            },
            targets: Targets::Own,
        })
    }
}
