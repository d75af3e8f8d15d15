//! Events from outside: the power button, devices put in and to be taken out. The registers behind ACPI's generic event device.
//!
//! | offset | on a load (which empties it) | on a store |
//! |---|---|---|
//! | 0 | what happened: [`EVENT_POWER_BUTTON`], [`EVENT_PCI`] | |
//! | 4 | slots into which a device was put, a bit each | |
//! | 8 | slots whose device is to be taken out | |
//! | 12 | | slots whose device the guest has let go of |
//!
//! All are 32 bits wide. The layout is this machine's own: only its ACPI tables know it.

use std::sync::{Arc, Mutex};

use crate::accel::Vm;
use crate::bus::{Device, SystemBus, Taken};
use crate::memory::layout::{EVENT_GSI, EVENT_PORT};
use crate::sync::lock;

/// Somebody pressed the power button.
pub const EVENT_POWER_BUTTON: u8 = 1;
/// A PCI slot has changed.
pub const EVENT_PCI: u8 = 2;

/// Called with the slots a guest has let go of. It runs on the vCPU's thread.
pub type EjectSink = Box<dyn Fn(u32) + Send + Sync>;

#[derive(Default)]
struct State {
    pending: u32,
    inserted: u32,
    removed: u32,
}

/// The registers.
pub struct Events {
    state: Mutex<State>,
    vm: Arc<dyn Vm>,
    eject: EjectSink,
}

impl Events {
    /// Puts them on the bus.
    pub fn attach(bus: &SystemBus, vm: Arc<dyn Vm>, eject: EjectSink) -> Result<Arc<Self>, Taken> {
        let events = Arc::new(Self {
            state: Mutex::new(State::default()),
            vm,
            eject,
        });
        bus.ports.insert(EVENT_PORT.into(), 16, events.clone())?;
        Ok(events)
    }

    fn raise(&self, event: u8, change: impl FnOnce(&mut State)) {
        {
            let mut state = lock(&self.state);
            state.pending |= u32::from(event);
            change(&mut state);
        }
        super::pulse(&*self.vm, EVENT_GSI);
    }

    /// Presses the power button: a guest that listens shuts down.
    pub fn press_power_button(&self) {
        self.raise(EVENT_POWER_BUTTON, |_| {});
    }

    /// Tells the guest that a device was put into `slot`.
    pub fn inserted(&self, slot: u8) {
        self.raise(EVENT_PCI, |state| state.inserted |= bit(slot));
    }

    /// Asks the guest to let go of the device in `slot`.
    pub fn remove(&self, slot: u8) {
        self.raise(EVENT_PCI, |state| state.removed |= bit(slot));
    }

    /// Nothing has happened: the machine was reset.
    pub fn reset(&self) {
        *lock(&self.state) = State::default();
    }
}

fn bit(slot: u8) -> u32 {
    1_u32.checked_shl(slot.into()).unwrap_or(0)
}

impl Device for Events {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let mut state = lock(&self.state);
        let register = match offset {
            0 => &mut state.pending,
            4 => &mut state.inserted,
            8 => &mut state.removed,
            _ => return,
        };
        if data.len() == 4 {
            data.copy_from_slice(&std::mem::take(register).to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (12, Ok(slots)) = (offset, data.try_into()) {
            (self.eject)(u32::from_le_bytes(slots));
        }
    }
}
