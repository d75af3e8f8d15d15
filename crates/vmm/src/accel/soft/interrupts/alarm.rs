//! The thread that interrupts running processors when their timers expire.
//!
//! A processor that halts waits for its timer itself; only those that execute need somebody else. Setting the alarm costs one system call when it
//! becomes the next to expire, and wakes nobody.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::super::super::{Error, Result};
use super::processor::Processor;
use crate::sync::lock;

const NEVER: u64 = u64::MAX;

/// A deadline for each processor, in nanoseconds of the host's monotonic clock.
pub(super) struct Alarm {
    timer: Arc<OwnedFd>,
    deadlines: Mutex<Deadlines>,
}

struct Deadlines {
    of: Vec<u64>,
    /// What the timer is set to.
    armed: u64,
}

impl Alarm {
    pub(super) fn new(vcpus: u8) -> Result<Self> {
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)
            .map_err(|error| Error::system("cannot make a timer for the guest's processors", error.into()))?;
        Ok(Self {
            timer: Arc::new(timer),
            deadlines: Mutex::new(Deadlines {
                of: vec![NEVER; vcpus.into()],
                armed: NEVER,
            }),
        })
    }

    /// Starts the thread. It ends when the processors are gone.
    pub(super) fn start(&self, processors: &Arc<[Processor]>) -> Result<()> {
        let (timer, processors) = (self.timer.clone(), Arc::downgrade(processors));
        thread::Builder::new()
            .name("timer".into())
            .spawn(move || serve(&timer, &processors))
            .map_err(|error| Error::system("cannot start the thread of the guest's timers", error))?;
        Ok(())
    }

    /// From now on, the processor `index` is to be looked at when `deadline` has come.
    pub(super) fn set(&self, index: u8, deadline: Option<u64>) {
        let deadline = deadline.unwrap_or(NEVER);
        let mut deadlines = lock(&self.deadlines);
        if let Some(of) = deadlines.of.get_mut(usize::from(index)) {
            *of = deadline;
        }
        self.arm(&mut deadlines);
    }

    /// Those whose deadlines have come. They are forgotten, and the timer is set to the next.
    fn due(&self, now: u64) -> Vec<usize> {
        let mut deadlines = lock(&self.deadlines);
        deadlines.armed = NEVER;
        let mut due = vec![];
        for (index, deadline) in deadlines.of.iter_mut().enumerate() {
            if *deadline <= now {
                *deadline = NEVER;
                due.push(index);
            }
        }
        self.arm(&mut deadlines);
        due
    }

    fn arm(&self, deadlines: &mut Deadlines) {
        let next = deadlines.of.iter().copied().min().unwrap_or(NEVER);
        if next == deadlines.armed {
            return;
        }
        deadlines.armed = next;
        self.set_timer(if next == NEVER { 0 } else { next.max(1) });
    }

    /// Zero disarms it.
    fn set_timer(&self, nanoseconds: u64) {
        let it_value = Timespec {
            tv_sec: (nanoseconds / 1_000_000_000) as i64,
            tv_nsec: (nanoseconds % 1_000_000_000) as i64,
        };
        let it_interval = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = Itimerspec {
            it_interval,
            it_value,
        };
        // It fails for a descriptor or a time that is none; these are right by construction.
        let _ = rustix::time::timerfd_settime(&*self.timer, TimerfdTimerFlags::ABSTIME, &value);
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // The thread sees that the processors are gone.
        self.set_timer(1);
    }
}

fn serve(timer: &OwnedFd, processors: &Weak<[Processor]>) {
    loop {
        let mut expirations = [0; 8];
        match rustix::io::read(timer, &mut expirations) {
            Ok(_) | Err(Errno::INTR | Errno::CANCELED) => {}
            Err(_) => return,
        }
        let Some(processors) = processors.upgrade() else {
            return;
        };
        if let Some(first) = processors.first() {
            for index in first.alarm().due(first.now().nanoseconds) {
                processors[index].poll_timer();
            }
        }
    }
}
