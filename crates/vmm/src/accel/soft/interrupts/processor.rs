//! A local APIC that several threads reach: its processor's, those who send it interrupts, the alarm's.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use vessel_softcpu::{Attention, Reset};

use super::super::clock::Clock;
use super::alarm::Alarm;
use super::lapic::LocalApic;
use crate::sync::lock;

/// What waits for a processor: bits of one word, so that asking for what is not there costs one load.
pub(in super::super) struct Pending;

impl Pending {
    pub(in super::super) const INTERRUPT: u32 = 1;
    pub(in super::super) const NMI: u32 = 1 << 1;
    pub(in super::super) const RESET: u32 = 1 << 2;
}

/// A local APIC behind a lock, and the means to get its processor's attention.
pub(in super::super) struct Processor {
    index: u8,
    guarded: Mutex<Guarded>,
    /// What of [`Pending`] there is; written with the lock held.
    pending: AtomicU32,
    attention: Arc<Attention>,
    /// The processor's thread is in [`Processor::wait`], or about to be.
    asleep: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
    alarm: Arc<Alarm>,
    clock: Arc<Clock>,
    /// The guest's time-stamp counter less the host's.
    tsc_offset: std::sync::atomic::AtomicU64,
}

struct Guarded {
    apic: LocalApic,
    /// The processor waits itself, the alarm need not.
    waits: bool,
    /// What the alarm was told.
    told: Option<u64>,
}

impl Processor {
    pub(super) fn new(index: u8, alarm: Arc<Alarm>, clock: Arc<Clock>) -> Self {
        Self {
            index,
            guarded: Mutex::new(Guarded {
                apic: LocalApic::new(index),
                waits: false,
                told: None,
            }),
            pending: AtomicU32::new(0),
            attention: Arc::default(),
            asleep: AtomicBool::new(false),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            alarm,
            clock,
            tsc_offset: std::sync::atomic::AtomicU64::new(0),
        }
    }

    pub(super) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    pub(in super::super) fn attention(&self) -> &Arc<Attention> {
        &self.attention
    }

    /// The guest's time-stamp counter.
    pub(in super::super) fn tsc(&self) -> u64 {
        self.clock.host_tsc().wrapping_add(self.tsc_offset())
    }

    /// What is to be added to the host's counter.
    pub(in super::super) fn tsc_offset(&self) -> u64 {
        self.tsc_offset.load(Ordering::Relaxed)
    }

    /// Sets the guest's counter off against the host's. A deadline of the timer stays the same value of the counter.
    pub(in super::super) fn set_tsc_offset(&self, offset: u64) {
        self.tsc_offset.store(offset, Ordering::Relaxed);
        let now = self.now();
        self.with(|apic| {
            let deadline = apic.tsc_deadline();
            apic.set_tsc_deadline(deadline, now);
        });
    }

    /// This moment, for the timer.
    pub(in super::super) fn now(&self) -> super::timer::Now {
        super::timer::Now {
            nanoseconds: self.clock.nanoseconds(),
            tsc: self.tsc(),
            frequency: self.clock.frequency(),
        }
    }

    /// Does something to the local APIC; then who must know of it does: its processor, its alarm.
    pub(in super::super) fn with<R>(&self, action: impl FnOnce(&mut LocalApic) -> R) -> R {
        let mut guarded = lock(&self.guarded);
        let result = action(&mut guarded.apic);
        self.tell_alarm(&mut guarded);
        let apic = &guarded.apic;
        let now = (u32::from(apic.has_interrupt()) * Pending::INTERRUPT)
            | (u32::from(apic.has_nmi()) * Pending::NMI)
            | (u32::from(apic.has_reset()) * Pending::RESET);
        let before = self.pending.swap(now, Ordering::SeqCst);
        drop(guarded);
        if now & !before != 0 {
            self.raise(Attention::INTERRUPT);
        }
        result
    }

    fn tell_alarm(&self, guarded: &mut Guarded) {
        let wanted = guarded.apic.timer_expires().filter(|_| !guarded.waits);
        if wanted != guarded.told {
            guarded.told = wanted;
            self.alarm.set(self.index, wanted);
        }
    }

    /// Sets bits of the processor's attention and wakes it if it waits.
    pub(in super::super) fn raise(&self, bits: u32) {
        self.attention.raise(bits);
        if self.asleep.load(Ordering::SeqCst) {
            // With the lock: it is either waiting by now or will look at its attention.
            let _held = lock(&self.sleep);
            self.wake.notify_all();
        }
    }

    /// The alarm's time for this processor may have come.
    pub(super) fn poll_timer(&self) {
        let now = self.now();
        let mut guarded = lock(&self.guarded);
        // What it was told has been used up.
        guarded.told = None;
        drop(guarded);
        self.with(|apic| apic.poll_timer(now));
    }

    /// The processor has halted: waits on its thread until something wants its attention. The timer is served meanwhile.
    pub(in super::super) fn wait(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        // Whoever raises a bit after this sees that it sleeps; what was raised before is seen below.
        fence(Ordering::SeqCst);
        while !self.attention.any() {
            let expires = {
                let mut guarded = lock(&self.guarded);
                guarded.waits = true;
                self.tell_alarm(&mut guarded);
                guarded.apic.timer_expires()
            };
            if self.sleep_until(expires) {
                let now = self.now();
                self.with(|apic| apic.poll_timer(now));
            }
        }
        self.asleep.store(false, Ordering::SeqCst);
        let mut guarded = lock(&self.guarded);
        guarded.waits = false;
        self.tell_alarm(&mut guarded);
    }

    /// Until that moment, or a bit of its attention is set. True: the moment has come.
    fn sleep_until(&self, expires: Option<u64>) -> bool {
        let mut held = lock(&self.sleep);
        while !self.attention.any() {
            held = match expires {
                None => self.wake.wait(held).unwrap_or_else(PoisonError::into_inner),
                Some(expires) => {
                    let left = expires.saturating_sub(self.clock.nanoseconds());
                    if left == 0 {
                        return true;
                    }
                    self.wake
                        .wait_timeout(held, Duration::from_nanos(left))
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        false
    }

    /// Whether any of these is there.
    pub(in super::super) fn pends(&self, what: u32) -> bool {
        self.pending.load(Ordering::SeqCst) & what != 0
    }

    pub(in super::super) fn take_interrupt(&self) -> Option<u8> {
        self.pends(Pending::INTERRUPT)
            .then(|| self.with(LocalApic::take_interrupt))?
    }

    pub(in super::super) fn take_nmi(&self) -> bool {
        self.pends(Pending::NMI) && self.with(LocalApic::take_nmi)
    }

    pub(in super::super) fn take_reset(&self) -> Option<Reset> {
        let reset = self
            .pends(Pending::RESET)
            .then(|| self.with(LocalApic::take_reset))?;
        if self.pends(Pending::RESET) {
            // SIPI was there behind INIT, and will not be announced again.
            self.raise(Attention::INTERRUPT);
        }
        reset
    }
}
