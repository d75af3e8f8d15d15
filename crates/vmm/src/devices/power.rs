//! Power off and reset: ACPI's registers for hardware-reduced machines (ACPI 6.5, 4.8.3.6 and 4.8.3.7), and the keyboard controller's reset
//! line, which kernels try, too.

use std::sync::Arc;

use crate::bus::{Device, SystemBus, Taken};
use crate::memory::layout::{I8042_COMMAND_PORT, POWER_PORT};

/// The type of sleep that is power off, for `_S5_`.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// The reset register.
pub const RESET_PORT: u16 = POWER_PORT + 2;
/// What is written to it.
pub const RESET_VALUE: u8 = 1;

const SLEEP_CONTROL: u64 = 0;
const RESET: u64 = 2;
const SLEEP_ENABLE: u8 = 1 << 5;
const I8042_RESET: u8 = 0xfe;

/// How a guest wants its machine to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Power off.
    Off,
    /// Reset.
    Reset,
}

/// Takes a guest's request to the machine. It is called on the vCPU's thread, and must not wait for it.
pub type PowerSink = Arc<dyn Fn(PowerRequest) + Send + Sync>;

/// Puts the registers on the bus.
pub fn attach(bus: &SystemBus, sink: &PowerSink) -> Result<(), Taken> {
    bus.ports
        .insert(POWER_PORT.into(), 4, Arc::new(Registers(sink.clone())))?;
    bus.ports.insert(
        I8042_COMMAND_PORT.into(),
        1,
        Arc::new(KeyboardController(sink.clone())),
    )
}

struct Registers(PowerSink);

impl Device for Registers {
    fn read(&self, _: u64, data: &mut [u8]) {
        // The machine never sleeps, so it never wakes.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SLEEP_CONTROL, [value]) if *value == SLEEP_ENABLE | SLEEP_TYPE_OFF << 2 => {
                (self.0)(PowerRequest::Off);
            }
            (RESET, [RESET_VALUE]) => (self.0)(PowerRequest::Reset),
            _ => {}
        }
    }
}

/// Port `0x64` alone: nothing waits in the controller, and its reset works.
struct KeyboardController(PowerSink);

impl Device for KeyboardController {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        if data == [I8042_RESET] {
            (self.0)(PowerRequest::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn only_the_right_values_end_a_machine() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = seen.clone();
        let sink: PowerSink = Arc::new(move |request| record.lock().unwrap().push(request));
        let bus = SystemBus::default();
        attach(&bus, &sink).unwrap();
        for port in [0x64, 0x600, 0x601, 0x602, 0x603] {
            for value in 0..=255_u8 {
                bus.ports.write(port, &[value]);
            }
            bus.ports.write(port, &[0xfe, 0x34]);
            let mut data = [0xff];
            bus.ports.read(port, &mut data);
            assert_eq!(data, [0]);
        }
        assert_eq!(
            *seen.lock().unwrap(),
            [PowerRequest::Reset, PowerRequest::Off, PowerRequest::Reset]
        );
    }
}
