//! A local APIC as a state machine (SDM volume 3, "Local APIC"): xAPIC and x2APIC, six LVT entries, no CMCI, no EOI-broadcast suppression.
//!
//! LINT0 and LINT1 are connected to nothing. The APIC's number is its processor's index and read-only.

use super::super::super::{LAPIC_BASE, LapicState};
use super::message::{DeliveryMode, Destination, Ipi};
use super::timer::{Mode, Now, Timer};
use super::vectors::Vectors;

mod x2apic;

/// Numbers of registers: their offset in the page divided by 16, their MSR less 0x800.
mod register {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TASK_PRIORITY: u32 = 0x08;
    pub const ARBITRATION_PRIORITY: u32 = 0x09;
    pub const PROCESSOR_PRIORITY: u32 = 0x0a;
    pub const END_OF_INTERRUPT: u32 = 0x0b;
    pub const REMOTE_READ: u32 = 0x0c;
    pub const LOGICAL_DESTINATION: u32 = 0x0d;
    pub const DESTINATION_FORMAT: u32 = 0x0e;
    pub const SPURIOUS: u32 = 0x0f;
    pub const IN_SERVICE: u32 = 0x10;
    pub const TRIGGER_MODE: u32 = 0x18;
    pub const REQUEST: u32 = 0x20;
    pub const ERROR_STATUS: u32 = 0x28;
    pub const COMMAND: u32 = 0x30;
    pub const COMMAND_HIGH: u32 = 0x31;
    pub const LVT: u32 = 0x32;
    pub const LVT_LAST: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
    pub const COUNT: u32 = 0x40;
}

/// Integrated, six LVT entries.
const VERSION: u32 = 0x0005_0014;

/// Entries of the LVT, from [`register::LVT`] on, and what software can write of each.
const LVT_WRITABLE: [u32; 6] = [
    // Timer: mode, mask, vector.
    0x0007_00ff,
    // Thermal sensor, performance counters: mask, delivery mode, vector.
    0x0001_07ff,
    0x0001_07ff,
    // LINT0 and LINT1: trigger mode and polarity, too.
    0x0001_a7ff,
    0x0001_a7ff,
    // Error: mask, vector.
    0x0001_00ff,
];
const LVT_TIMER: usize = 0;
const LVT_ERROR: usize = 5;
const LVT_MASKED: u32 = 1 << 16;

const SOFTWARE_ENABLED: u32 = 1 << 8;
/// Vector, enable bit and the one for focus processor checking, which has no meaning any more and old kernels set.
const SPURIOUS_WRITABLE: u32 = 0x3ff;
const COMMAND_STATUS: u32 = 1 << 12;

mod base {
    pub const BOOT_PROCESSOR: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLED: u64 = 1 << 11;
    pub const RESERVED: u64 = 0xfff0_0000_0000_02ff;
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Bits of the error status register.
mod error {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// What the write of a register is for others to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Effect {
    None,
    Send(Ipi),
    /// A level-triggered interrupt of this vector was ended.
    EndOfInterrupt(u8),
}

/// INIT or SIPI, when the processor asks.
pub(in super::super) use vessel_softcpu::Reset;

/// A local APIC and what waits for its processor.
#[derive(Debug)]
pub(in super::super) struct LocalApic {
    id: u8,
    /// IA32_APIC_BASE.
    base: u64,
    task_priority: u8,
    logical_destination: u32,
    destination_format: u32,
    spurious: u32,
    request: Vectors,
    in_service: Vectors,
    trigger_mode: Vectors,
    /// Errors since the status register was written last.
    errors: u32,
    error_status: u32,
    command: u64,
    lvt: [u32; 6],
    timer: Timer,
    nmi: bool,
    init: bool,
    start: Option<u8>,
    waits_for_start: bool,
}

impl LocalApic {
    /// After reset. Number 0 is the boot processor's, the others wait for SIPI.
    pub(super) fn new(id: u8) -> Self {
        let boot = if id == 0 { base::BOOT_PROCESSOR } else { 0 };
        Self {
            id,
            base: LAPIC_BASE | base::ENABLED | boot,
            task_priority: 0,
            logical_destination: 0,
            destination_format: u32::MAX,
            spurious: 0xff,
            request: Vectors::default(),
            in_service: Vectors::default(),
            trigger_mode: Vectors::default(),
            errors: 0,
            error_status: 0,
            command: 0,
            lvt: [LVT_MASKED; 6],
            timer: Timer::new(),
            nmi: false,
            init: false,
            start: None,
            waits_for_start: id != 0,
        }
    }

    /// "Local APIC State After It Receives an INIT-Reset": all but its number and its mode.
    fn reset_registers(&mut self) {
        *self = Self {
            base: self.base,
            nmi: self.nmi,
            init: self.init,
            start: self.start,
            waits_for_start: self.waits_for_start,
            ..Self::new(self.id)
        };
    }

    fn is_present(&self) -> bool {
        self.base & base::ENABLED != 0
    }

    /// Whether it is in x2APIC mode.
    pub(in super::super) fn is_x2apic(&self) -> bool {
        self.base & base::X2APIC != 0
    }

    /// Whether it takes interrupts: enabled by IA32_APIC_BASE and by the spurious vector register.
    pub(super) fn is_enabled(&self) -> bool {
        self.is_present() && self.spurious & SOFTWARE_ENABLED != 0
    }

    /// Where its page is now. `None`: there is none (disabled, or in x2APIC mode).
    pub(in super::super) fn page(&self) -> Option<u64> {
        (self.is_present() && !self.is_x2apic()).then_some(self.base & base::ADDRESS)
    }

    /// IA32_APIC_BASE.
    pub(in super::super) fn base(&self) -> u64 {
        self.base
    }

    /// Changes mode or place of the page. False: #GP (SDM, "x2APIC State Transitions").
    pub(in super::super) fn set_base(&mut self, value: u64) -> bool {
        let mode = value & (base::ENABLED | base::X2APIC);
        let old = self.base & (base::ENABLED | base::X2APIC);
        let both = base::ENABLED | base::X2APIC;
        let allowed = value & base::RESERVED == 0
            && mode != base::X2APIC
            && !(mode == both && old == 0)
            && !(mode == base::ENABLED && old == both);
        if !allowed {
            return false;
        }
        self.base = value;
        if mode == 0 && old != 0 {
            self.reset_registers();
        } else if mode == both && old != both {
            self.command &= 0xffff_ffff;
        }
        true
    }

    /// Puts IA32_APIC_BASE back from a snapshot, whatever it was before.
    pub(in super::super) fn restore_base(&mut self, value: u64) {
        if value & base::RESERVED == 0 && value & (base::ENABLED | base::X2APIC) != base::X2APIC {
            self.base = value;
        }
    }

    fn logical_destination(&self) -> u32 {
        if self.is_x2apic() {
            let id = u32::from(self.id);
            (id >> 4) << 16 | 1 << (id & 0xf)
        } else {
            self.logical_destination
        }
    }

    /// Whether a message with this destination is for it.
    pub(super) fn is_addressed(&self, destination: Destination) -> bool {
        self.is_present()
            && match destination {
                Destination::All => true,
                Destination::Physical(id) => id == u32::from(self.id),
                Destination::Logical(set) => self.is_addressed_logically(set),
            }
    }

    fn is_addressed_logically(&self, set: u32) -> bool {
        let own = self.logical_destination();
        if self.is_x2apic() {
            return own >> 16 == set >> 16 && own & set & 0xffff != 0;
        }
        let own = own >> 24;
        match self.destination_format >> 28 {
            _ if set > 0xff => false,
            // Flat.
            0xf => own & set != 0,
            // Clusters.
            0x0 => own >> 4 == set >> 4 && own & set & 0xf != 0,
            _ => false,
        }
    }

    /// Takes a message that addresses it. False: not in this state.
    pub(super) fn accept(&mut self, mode: DeliveryMode, vector: u8, level: bool) -> bool {
        if !self.is_present() {
            return false;
        }
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if !self.is_enabled() {
                    return false;
                }
                if vector < 16 {
                    self.signal_error(error::RECEIVE_ILLEGAL_VECTOR);
                    return false;
                }
                self.request.insert(vector);
                if level {
                    self.trigger_mode.insert(vector);
                } else {
                    self.trigger_mode.remove(vector);
                }
                true
            }
            DeliveryMode::Nmi => {
                self.nmi = true;
                true
            }
            DeliveryMode::Init => {
                self.init = true;
                self.start = None;
                true
            }
            DeliveryMode::StartUp => {
                let waits = self.init || self.waits_for_start;
                if waits {
                    self.start = Some(vector);
                }
                waits
            }
            DeliveryMode::Ignored => false,
        }
    }

    fn signal_error(&mut self, bit: u32) {
        self.errors |= bit;
        let lvt = self.lvt[LVT_ERROR];
        if lvt & LVT_MASKED != 0 {
            return;
        }
        if lvt as u8 >= 16 {
            self.accept(DeliveryMode::Fixed, lvt as u8, false);
        } else {
            self.errors |= error::RECEIVE_ILLEGAL_VECTOR;
        }
    }

    /// The class of what is being served or of the task, the higher.
    pub(super) fn processor_priority(&self) -> u8 {
        let served = self.in_service.highest().unwrap_or(0);
        if self.task_priority >> 4 >= served >> 4 {
            self.task_priority
        } else {
            served & 0xf0
        }
    }

    fn deliverable(&self) -> Option<u8> {
        let vector = self.request.highest().filter(|_| self.is_present())?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Whether there is an interrupt that its processor can be given.
    pub(super) fn has_interrupt(&self) -> bool {
        self.deliverable().is_some()
    }

    /// Gives the processor the interrupt of highest priority: requested no more, in service.
    pub(super) fn take_interrupt(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.request.remove(vector);
        self.in_service.insert(vector);
        Some(vector)
    }

    pub(super) fn has_nmi(&self) -> bool {
        self.nmi
    }

    pub(super) fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }

    pub(super) fn has_reset(&self) -> bool {
        self.init || self.waits_for_start && self.start.is_some()
    }

    /// INIT and SIPI, in this order. INIT resets this APIC.
    pub(super) fn take_reset(&mut self) -> Option<Reset> {
        if self.init {
            self.init = false;
            self.nmi = false;
            self.waits_for_start = true;
            self.reset_registers();
            return Some(Reset::Init);
        }
        if !self.waits_for_start {
            return None;
        }
        let vector = self.start.take()?;
        self.waits_for_start = false;
        Some(Reset::Start(vector))
    }

    /// Puts back what waits.
    pub(in super::super) fn set_events(&mut self, waits_for_start: bool, nmi: bool) {
        self.waits_for_start = waits_for_start;
        self.nmi = nmi;
        self.init = false;
        self.start = None;
    }

    /// Whether a non-maskable interrupt waits.
    pub(in super::super) fn nmi_waits(&self) -> bool {
        self.nmi
    }

    /// CR8.
    pub(in super::super) fn task_priority_class(&self) -> u64 {
        u64::from(self.task_priority >> 4)
    }

    /// Sets it through CR8.
    pub(in super::super) fn set_task_priority_class(&mut self, class: u64) {
        self.task_priority = (class as u8 & 0xf) << 4;
    }

    /// IA32_TSC_DEADLINE.
    pub(in super::super) fn tsc_deadline(&self) -> u64 {
        self.timer.deadline()
    }

    /// Arms the timer, if it is in that mode.
    pub(in super::super) fn set_tsc_deadline(&mut self, deadline: u64, now: Now) {
        self.timer.set_deadline(deadline, now);
        self.poll_timer(now);
    }

    /// When [`LocalApic::poll_timer`] is to be called.
    pub(super) fn timer_expires(&self) -> Option<u64> {
        self.timer.expires()
    }

    /// Requests the timer's interrupt if it has expired.
    pub(super) fn poll_timer(&mut self, now: Now) {
        let lvt = self.lvt[LVT_TIMER];
        if self.timer.poll(now) && lvt & LVT_MASKED == 0 {
            self.accept(DeliveryMode::Fixed, lvt as u8, false);
        }
    }

    fn end_interrupt(&mut self) -> Effect {
        let Some(vector) = self.in_service.highest() else {
            return Effect::None;
        };
        self.in_service.remove(vector);
        if self.trigger_mode.contains(vector) {
            Effect::EndOfInterrupt(vector)
        } else {
            Effect::None
        }
    }

    fn command(&mut self) -> Effect {
        let Some(ipi) = Ipi::from_icr(self.command, self.is_x2apic()) else {
            return Effect::None;
        };
        let is_interrupt = matches!(
            ipi.message.mode,
            DeliveryMode::Fixed | DeliveryMode::LowestPriority
        );
        if is_interrupt && ipi.message.vector < 16 {
            self.signal_error(error::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        Effect::Send(ipi)
    }

    fn set_spurious(&mut self, value: u32) {
        self.spurious = value & SPURIOUS_WRITABLE;
        if self.spurious & SOFTWARE_ENABLED == 0 {
            for entry in &mut self.lvt {
                *entry |= LVT_MASKED;
            }
        }
    }

    fn set_lvt(&mut self, index: usize, value: u32) {
        let masked = if self.spurious & SOFTWARE_ENABLED == 0 {
            LVT_MASKED
        } else {
            0
        };
        self.lvt[index] = value & LVT_WRITABLE[index] | masked;
        if index == LVT_TIMER {
            self.timer.set_mode(Mode::from_lvt(value));
        }
    }

    /// A register that both modes have; `None`: it is not one.
    fn read_register(&self, number: u32, now: Now) -> Option<u32> {
        use register::*;
        let word = |vectors: &Vectors, first: u32| vectors.words()[(number - first) as usize & 7];
        Some(match number {
            ID if self.is_x2apic() => self.id.into(),
            ID => u32::from(self.id) << 24,
            VERSION => self::VERSION,
            TASK_PRIORITY => self.task_priority.into(),
            PROCESSOR_PRIORITY => self.processor_priority().into(),
            LOGICAL_DESTINATION => self.logical_destination(),
            SPURIOUS => self.spurious,
            IN_SERVICE..TRIGGER_MODE => word(&self.in_service, IN_SERVICE),
            TRIGGER_MODE..REQUEST => word(&self.trigger_mode, TRIGGER_MODE),
            REQUEST..ERROR_STATUS => word(&self.request, REQUEST),
            ERROR_STATUS => self.error_status,
            COMMAND => self.command as u32,
            LVT..=LVT_LAST => self.lvt[(number - LVT) as usize],
            INITIAL_COUNT => self.timer.initial(),
            CURRENT_COUNT => self.timer.current(now),
            DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Writes a register that both modes have; `None`: it is not one, or it is read-only. Reserved bits are dropped.
    fn write_register(&mut self, number: u32, value: u32, now: Now) -> Option<Effect> {
        use register::*;
        match number {
            TASK_PRIORITY => self.task_priority = value as u8,
            END_OF_INTERRUPT => return Some(self.end_interrupt()),
            SPURIOUS => self.set_spurious(value),
            ERROR_STATUS => self.error_status = std::mem::take(&mut self.errors),
            LVT..=LVT_LAST => self.set_lvt((number - LVT) as usize, value),
            INITIAL_COUNT => self.timer.set_initial(value, now),
            DIVIDE => self.timer.set_divide(value, now),
            _ => return None,
        }
        Some(Effect::None)
    }

    /// A 32-bit register of the page at `offset`, a multiple of 16. What is not implemented reads as zero and is an error in ESR.
    pub(in super::super) fn read_page(&mut self, offset: u32, now: Now) -> u32 {
        use register::*;
        let number = offset >> 4;
        match number {
            ARBITRATION_PRIORITY | REMOTE_READ | END_OF_INTERRUPT => 0,
            DESTINATION_FORMAT => self.destination_format,
            COMMAND_HIGH => (self.command >> 32) as u32,
            number => self.read_register(number, now).unwrap_or_else(|| {
                self.signal_error(error::ILLEGAL_REGISTER);
                0
            }),
        }
    }

    /// Writes one.
    #[must_use]
    pub(in super::super) fn write_page(&mut self, offset: u32, value: u32, now: Now) -> Effect {
        use register::*;
        match offset >> 4 {
            LOGICAL_DESTINATION => self.logical_destination = value & 0xff00_0000,
            DESTINATION_FORMAT => self.destination_format = value | 0x0fff_ffff,
            COMMAND_HIGH => self.command = self.command & 0xffff_ffff | u64::from(value) << 32,
            COMMAND => {
                self.command = self.command & !0xffff_ffff | u64::from(value & !COMMAND_STATUS);
                return self.command();
            }
            number => {
                if let Some(effect) = self.write_register(number, value, now) {
                    return effect;
                }
                let read_only = matches!(number, ARBITRATION_PRIORITY | REMOTE_READ)
                    || self.read_register(number, now).is_some();
                if !read_only {
                    self.signal_error(error::ILLEGAL_REGISTER);
                }
            }
        }
        Effect::None
    }

    /// For snapshots: the registers as they lie in the page. IA32_APIC_BASE and IA32_TSC_DEADLINE are MSRs.
    pub(in super::super) fn state(&self, now: Now) -> LapicState {
        let mut registers: Vec<u32> = (0..register::COUNT)
            .map(|number| self.read_register(number, now).unwrap_or(0))
            .collect();
        if !self.is_x2apic() {
            registers[register::DESTINATION_FORMAT as usize] = self.destination_format;
        }
        registers[register::COMMAND_HIGH as usize] = (self.command >> 32) as u32;
        LapicState { registers }
    }

    /// Puts them back; IA32_APIC_BASE must be back already. Registers that are missing read as zero.
    pub(in super::super) fn set_state(&mut self, state: &LapicState, now: Now) {
        use register::*;
        self.reset_registers();
        let get = |number: u32| state.registers.get(number as usize).copied().unwrap_or(0);
        let words = |first: u32| Vectors::from_words(std::array::from_fn(|index| get(first + index as u32)));
        self.task_priority = get(TASK_PRIORITY) as u8;
        self.logical_destination = get(LOGICAL_DESTINATION) & 0xff00_0000;
        if !self.is_x2apic() {
            self.destination_format = get(DESTINATION_FORMAT) | 0x0fff_ffff;
        }
        self.spurious = get(SPURIOUS) & SPURIOUS_WRITABLE;
        self.in_service = words(IN_SERVICE);
        self.trigger_mode = words(TRIGGER_MODE);
        self.request = words(REQUEST);
        self.error_status = get(ERROR_STATUS);
        self.command = u64::from(get(COMMAND_HIGH)) << 32 | u64::from(get(COMMAND) & !COMMAND_STATUS);
        for index in 0..self.lvt.len() {
            self.set_lvt(index, get(LVT + index as u32));
        }
        self.timer.set_divide(get(DIVIDE), now);
        self.timer.resume(get(INITIAL_COUNT), get(CURRENT_COUNT), now);
    }
}

#[cfg(test)]
mod tests;
