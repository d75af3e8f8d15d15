//! Time as the guest sees it: the time-stamp counter, and the paravirtual clock of KVM (`KVM_FEATURE_CLOCKSOURCE2`).
//!
//! The guest's counter is the host's plus an offset, so it runs at the host's frequency. The paravirtual clock is one linear function of the
//! counter for the whole machine: all processors are given the same numbers, so none is ever behind another.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds for which the counter is watched at least before its frequency is told: errors of a reading of some 20 ns stay below ten in a million.
const WATCHED: u64 = 4_000_000;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    tsc: u64,
    nanoseconds: u64,
}

/// The clocks of a machine.
#[derive(Debug)]
pub(super) struct Clock {
    /// When the machine was made. The frequency is what the counter did since.
    origin: Sample,
    frequency: OnceLock<u64>,
    /// What the paravirtual clock says at `origin`.
    base: AtomicU64,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            origin: Sample::take(),
            frequency: OnceLock::new(),
            base: AtomicU64::new(0),
        }
    }

    /// The host's time-stamp counter.
    pub(super) fn host_tsc(&self) -> u64 {
        // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it unless one asks that it not.
        unsafe { std::arch::x86_64::_rdtsc() }
    }

    /// The host's monotonic clock.
    pub(super) fn nanoseconds(&self) -> u64 {
        nanoseconds(ClockId::Monotonic)
    }

    /// Hertz of the counter. It is measured from the machine's beginning to the first call, which therefore can take some milliseconds
    /// when it comes soon.
    pub(super) fn frequency(&self) -> u64 {
        *self.frequency.get_or_init(|| {
            let mut now = Sample::take();
            let past = now.nanoseconds.saturating_sub(self.origin.nanoseconds);
            if past < WATCHED {
                thread::sleep(Duration::from_nanos(WATCHED - past));
                now = Sample::take();
            }
            let ticks = u128::from(now.tsc.wrapping_sub(self.origin.tsc));
            let elapsed = u128::from(now.nanoseconds - self.origin.nanoseconds).max(1);
            u64::try_from(ticks * 1_000_000_000 / elapsed)
                .unwrap_or(u64::MAX)
                .max(1)
        })
    }

    /// What the paravirtual clock says: nanoseconds of the machine's life.
    pub(super) fn paravirtual(&self) -> u64 {
        let scale = Scale::of(self.frequency());
        let ticks = self.host_tsc().wrapping_sub(self.origin.tsc);
        self.base
            .load(Ordering::SeqCst)
            .wrapping_add(scale.nanoseconds(ticks))
    }

    /// Makes it say `nanoseconds` now. Pages that guests were given before are wrong then.
    pub(super) fn set_paravirtual(&self, nanoseconds: u64) {
        let now = self.paravirtual();
        self.base
            .fetch_add(nanoseconds.wrapping_sub(now), Ordering::SeqCst);
    }

    /// The page for a processor with this offset, with version `version` (`struct pvclock_vcpu_time_info`).
    pub(super) fn page(&self, version: u32, tsc_offset: u64) -> [u8; 32] {
        /// All processors' pages agree: the guest need not compare.
        const TSC_STABLE: u8 = 1;
        let scale = Scale::of(self.frequency());
        let mut page = [0; 32];
        page[0..4].copy_from_slice(&version.to_le_bytes());
        page[8..16].copy_from_slice(&self.origin.tsc.wrapping_add(tsc_offset).to_le_bytes());
        page[16..24].copy_from_slice(&self.base.load(Ordering::SeqCst).to_le_bytes());
        page[24..28].copy_from_slice(&scale.multiplier.to_le_bytes());
        page[28] = scale.shift as u8;
        page[29] = TSC_STABLE;
        page
    }

    /// The time of day at which the paravirtual clock was zero: seconds and nanoseconds (`struct pvclock_wall_clock` after its version).
    pub(super) fn wall_clock(&self) -> (u32, u32) {
        let began = nanoseconds(ClockId::Realtime).saturating_sub(self.paravirtual());
        // Seconds in 32 bits: the format's limit, good until 2106.
        ((began / 1_000_000_000) as u32, (began % 1_000_000_000) as u32)
    }
}

impl Sample {
    /// Of several attempts the one that was interrupted least.
    fn take() -> Self {
        let mut best = (
            u64::MAX,
            Self {
                tsc: 0,
                nanoseconds: 0,
            },
        );
        for _ in 0..5 {
            // SAFETY: as in `Clock::host_tsc`.
            let before = unsafe { std::arch::x86_64::_rdtsc() };
            let nanoseconds = nanoseconds(ClockId::Monotonic);
            // SAFETY: as above.
            let after = unsafe { std::arch::x86_64::_rdtsc() };
            let took = after.wrapping_sub(before);
            if took < best.0 {
                let tsc = before.wrapping_add(took / 2);
                best = (took, Self { tsc, nanoseconds });
            }
        }
        best.1
    }
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Neither clock is negative.
    (time.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(time.tv_nsec as u64)
}

/// How the guest makes nanoseconds of ticks: shift (left when positive), multiply, drop 32 bits.
#[derive(Clone, Copy, Debug)]
struct Scale {
    multiplier: u32,
    shift: i8,
}

impl Scale {
    fn of(frequency: u64) -> Self {
        // Nanoseconds of a tick with 64 bits of fraction; 2^31 to 2^32 of it become the multiplier.
        let tick = (1_000_000_000_u128 << 64) / u128::from(frequency.max(1));
        let bits = 128 - tick.leading_zeros();
        Self {
            multiplier: (tick >> bits.saturating_sub(32)) as u32,
            shift: (bits as i32 - 64) as i8,
        }
    }

    /// As the guest computes it.
    fn nanoseconds(self, ticks: u64) -> u64 {
        let ticks = if self.shift < 0 {
            ticks >> self.shift.unsigned_abs()
        } else {
            ticks << self.shift
        };
        ((u128::from(ticks) * u128::from(self.multiplier)) >> 32) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_frequency_is_the_counters() {
        let clock = Clock::new();
        let frequency = clock.frequency();
        let (begin, ticks) = (std::time::Instant::now(), clock.host_tsc());
        thread::sleep(Duration::from_millis(20));
        let ticks = clock.host_tsc() - ticks;
        let measured = ticks as f64 / begin.elapsed().as_secs_f64();
        let ratio = measured / frequency as f64;
        assert!(
            (0.99..1.01).contains(&ratio),
            "{measured} by the watch, {frequency} told"
        );
    }

    #[test]
    fn the_page_leads_to_the_time_that_has_passed() {
        let clock = Clock::new();
        clock.frequency();
        let begin = clock.nanoseconds();
        clock.set_paravirtual(7_000_000_000);
        let begun = clock.nanoseconds();
        thread::sleep(Duration::from_millis(10));
        let offset = 12_345_678_u64.wrapping_neg();
        let page = clock.page(6, offset);
        let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
        assert_eq!(word(0), 6);
        let scale = Scale {
            multiplier: word(24) as u32,
            shift: page[28] as i8,
        };
        // The thread may be held up between any two of these.
        let end = clock.nanoseconds();
        let guest_tsc = clock.host_tsc().wrapping_add(offset);
        let ended = clock.nanoseconds();
        let time = word(16).wrapping_add(scale.nanoseconds(guest_tsc.wrapping_sub(word(8))));
        assert_eq!(page[29], 1);
        let past = time - 7_000_000_000;
        let (least, most) = (end - begun, ended - begin);
        assert!(
            (least - least / 1000..=most + most / 1000).contains(&past),
            "{past} ns, and not {least} to {most}"
        );
        let (seconds, _) = clock.wall_clock();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        assert!((6..=9).contains(&(now.as_secs() - u64::from(seconds))));
    }

    proptest! {
        #[test]
        fn scaling(frequency in 1_000_000_u64..20_000_000_000, seconds in 0_u64..400_000) {
            let ticks = frequency * seconds;
            let exact = u128::from(ticks) * 1_000_000_000 / u128::from(frequency);
            let scaled = u128::from(Scale::of(frequency).nanoseconds(ticks));
            prop_assert!(scaled <= exact);
            prop_assert!(exact - scaled <= exact / (1 << 30) + 2_000, "{scaled} instead of {exact}");
        }
    }
}
