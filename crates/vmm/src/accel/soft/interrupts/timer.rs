//! The timer of a local APIC (SDM volume 3, "APIC Timer"). Its bus has 1 GHz: a count is a nanosecond of the host's monotonic clock times the divisor.

/// A periodic timer is not served more often than this: a period of one nanosecond would keep the host busy, not the guest.
const SHORTEST_PERIOD: u64 = 50_000;

/// What LVT bits 17 and 18 say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    Deadline,
}

impl Mode {
    pub(super) fn from_lvt(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            1 => Self::Periodic,
            2 => Self::Deadline,
            // 3 is reserved; a counter that nothing repeats is the least harm.
            _ => Self::OneShot,
        }
    }
}

/// The moment at which a register is touched.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Now {
    /// The host's monotonic clock in nanoseconds.
    pub nanoseconds: u64,
    /// The guest's time-stamp counter.
    pub tsc: u64,
    /// Its frequency in hertz.
    pub frequency: u64,
}

impl Now {
    /// When the guest's counter will show (or showed) `tsc`.
    fn moment_of(&self, tsc: u64) -> u64 {
        let ticks = tsc.saturating_sub(self.tsc);
        let wait = u128::from(ticks) * 1_000_000_000 / u128::from(self.frequency.max(1));
        self.nanoseconds
            .saturating_add(u64::try_from(wait).unwrap_or(u64::MAX))
    }
}

/// The timer.
#[derive(Debug)]
pub(super) struct Timer {
    mode: Mode,
    initial: u32,
    divide: u32,
    deadline: u64,
    /// When the count reaches zero, or the deadline is: in nanoseconds.
    expires: Option<u64>,
}

impl Timer {
    pub(super) fn new() -> Self {
        Self {
            mode: Mode::OneShot,
            initial: 0,
            divide: 0,
            deadline: 0,
            expires: None,
        }
    }

    /// Nanoseconds of a count.
    fn divisor(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        // 000 is 2, 110 is 128, 111 is 1.
        if code == 7 { 1 } else { 2 << code }
    }

    /// A change from or to deadline mode disarms it; between the others it goes on.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        if (mode == Mode::Deadline) != (self.mode == Mode::Deadline) {
            self.initial = 0;
            self.deadline = 0;
            self.expires = None;
        }
        self.mode = mode;
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    /// Starts the count; zero stops it. Without effect in deadline mode.
    pub(super) fn set_initial(&mut self, count: u32, now: Now) {
        if self.mode != Mode::Deadline {
            self.initial = count;
            self.restart(count, now);
        }
    }

    fn restart(&mut self, count: u32, now: Now) {
        let wait = u64::from(count) * self.divisor();
        self.expires = (count != 0).then(|| now.nanoseconds.saturating_add(wait));
    }

    pub(super) fn current(&self, now: Now) -> u32 {
        let Some(expires) = self.expires.filter(|_| self.mode != Mode::Deadline) else {
            return 0;
        };
        let left = match expires.checked_sub(now.nanoseconds) {
            Some(left) => left,
            None if self.mode == Mode::OneShot => 0,
            // Nobody has looked since.
            None => {
                let period = (u64::from(self.initial) * self.divisor()).max(1);
                period - (now.nanoseconds - expires) % period
            }
        };
        u32::try_from(left.div_ceil(self.divisor())).unwrap_or(u32::MAX)
    }

    /// For a restored timer: goes on from `count`, then from the initial count.
    pub(super) fn resume(&mut self, initial: u32, count: u32, now: Now) {
        if self.mode != Mode::Deadline {
            self.initial = initial;
            self.restart(count, now);
        }
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    /// The count that is left stays, and goes on at the new pace.
    pub(super) fn set_divide(&mut self, divide: u32, now: Now) {
        let left = self.current(now);
        self.divide = divide & 0xb;
        if self.mode != Mode::Deadline {
            self.restart(left, now);
        }
    }

    /// IA32_TSC_DEADLINE: zero when it is not armed.
    pub(super) fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Arms it for a value of the guest's time-stamp counter; zero disarms. Without effect in other modes.
    pub(super) fn set_deadline(&mut self, deadline: u64, now: Now) {
        if self.mode == Mode::Deadline {
            self.deadline = deadline;
            self.expires = (deadline != 0).then(|| now.moment_of(deadline));
        }
    }

    /// When [`Timer::poll`] is to be called.
    pub(super) fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// Whether it has expired since the last call.
    pub(super) fn poll(&mut self, now: Now) -> bool {
        let Some(expires) = self.expires.filter(|expires| *expires <= now.nanoseconds) else {
            return false;
        };
        self.expires = None;
        match self.mode {
            Mode::OneShot => {}
            Mode::Deadline => self.deadline = 0,
            Mode::Periodic if self.initial != 0 => {
                let period = u64::from(self.initial) * self.divisor();
                let missed = (now.nanoseconds - expires) / period;
                let next = expires.saturating_add((missed + 1).saturating_mul(period));
                self.expires = Some(next.max(now.nanoseconds.saturating_add(SHORTEST_PERIOD)));
            }
            Mode::Periodic => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(nanoseconds: u64) -> Now {
        Now {
            nanoseconds,
            tsc: nanoseconds * 2,
            frequency: 2_000_000_000,
        }
    }

    #[test]
    fn divisors() {
        for (divide, divisor) in [
            (0b0000, 2),
            (0b0001, 4),
            (0b0010, 8),
            (0b0011, 16),
            (0b1000, 32),
            (0b1001, 64),
            (0b1010, 128),
            (0b1011, 1),
        ] {
            let mut timer = Timer::new();
            timer.set_divide(divide, at(0));
            assert_eq!(timer.divisor(), divisor, "{divide:04b}");
        }
    }

    #[test]
    fn one_shot() {
        let mut timer = Timer::new();
        timer.set_divide(0b1011, at(0));
        timer.set_initial(1000, at(5000));
        assert_eq!(timer.current(at(5400)), 600);
        assert!(!timer.poll(at(5999)));
        assert!(timer.poll(at(6000)));
        assert!(!timer.poll(at(9000)));
        assert_eq!(timer.current(at(9000)), 0);
        assert_eq!(timer.initial(), 1000);
        timer.set_initial(1000, at(10_000));
        timer.set_initial(0, at(10_500));
        assert!(!timer.poll(at(20_000)));
    }

    #[test]
    fn periodic() {
        let mut timer = Timer::new();
        timer.set_mode(Mode::Periodic);
        timer.set_divide(0b1011, at(0));
        timer.set_initial(1_000_000, at(0));
        assert_eq!(
            timer.current(at(1_250_000)),
            750_000,
            "reloaded though nobody looked"
        );
        assert!(timer.poll(at(1_250_000)));
        assert_eq!(timer.expires(), Some(2_000_000), "the phase is kept");
        assert!(timer.poll(at(5_500_000)));
        assert_eq!(timer.expires(), Some(6_000_000), "what was missed is one");
        timer.set_initial(1, at(7_000_000));
        assert!(timer.poll(at(7_000_001)));
        assert_eq!(timer.expires(), Some(7_000_001 + SHORTEST_PERIOD));
    }

    #[test]
    fn the_deadline_is_one_of_the_guests_counter() {
        let mut timer = Timer::new();
        timer.set_deadline(100, at(0));
        assert_eq!(timer.deadline(), 0, "not in deadline mode");
        timer.set_initial(77, at(0));
        timer.set_mode(Mode::Deadline);
        assert_eq!(
            (timer.initial(), timer.expires()),
            (0, None),
            "disarmed by the change"
        );
        timer.set_initial(77, at(0));
        assert_eq!(timer.expires(), None);
        timer.set_deadline(3000, at(1000));
        assert_eq!(timer.expires(), Some(1500));
        assert!(!timer.poll(at(1499)));
        assert!(timer.poll(at(1500)));
        assert_eq!(timer.deadline(), 0);
        timer.set_deadline(1, at(5000));
        assert!(timer.poll(at(5000)), "one that has passed expires at once");
        timer.set_deadline(u64::MAX, at(5000));
        assert!(!timer.poll(at(1 << 60)));
        timer.set_deadline(0, at(5000));
        assert_eq!(timer.expires(), None);
    }

    #[test]
    fn a_new_divisor_keeps_the_count() {
        let mut timer = Timer::new();
        timer.set_divide(0b1011, at(0));
        timer.set_initial(1000, at(0));
        timer.set_divide(0b0001, at(400));
        assert_eq!(timer.current(at(400)), 600);
        assert_eq!(timer.expires(), Some(400 + 2400));
    }

    proptest! {
        #[test]
        fn the_count_never_exceeds_its_beginning(
            initial in 1_u32.., divide in 0_u32..16, periodic: bool, wait in 0_u64..1 << 42,
        ) {
            let mut timer = Timer::new();
            timer.set_mode(if periodic { Mode::Periodic } else { Mode::OneShot });
            timer.set_divide(divide, at(0));
            timer.set_initial(initial, at(0));
            prop_assert!(timer.current(at(wait)) <= initial);
            let expired = wait >= u64::from(initial) * timer.divisor();
            prop_assert_eq!(timer.poll(at(wait)), expired);
            prop_assert!(timer.expires().is_none_or(|expires| expires > wait));
        }
    }
}
