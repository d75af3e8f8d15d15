//! The device: three queues, a thread, and a door for the host.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::super::bell::{bell, ring, silence};
use super::super::{
    DeviceKind, Metrics, Poller, QueueError, QueueHandle, Ready, Start, VirtioDevice, Worker, WorkerThread,
    read_from,
};
use super::connection::Outcome;
use super::switch::{Accept, Switch};
use crate::sync::lock;

const QUEUE_SIZE: u16 = 256;
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;

/// Tokens that no connection has: connections' are 32 bits, these count down from the end.
const TOKEN_CALLS: u64 = 0xffff_ffff;
const TOKEN_TIMER: u64 = 0xffff_fffe;

/// Calls of the host that the device's thread has not seen yet. Bounded: a guest without a driver takes none.
const CALLS: usize = 512;

struct Call {
    port: u32,
    stream: OwnedFd,
    outcome: Outcome,
}

struct Door {
    calls: Mutex<Vec<Call>>,
    bell: OwnedFd,
}

/// The host's way to a guest's ports.
#[derive(Clone)]
pub struct Connector(Arc<Door>);

impl Connector {
    /// Makes `stream`, a socket, a connection to a port of the guest. `outcome` is called when the guest has accepted or refused it, and with an error
    /// when it does not answer within five seconds. A guest whose driver is not there yet is waited for.
    pub fn connect(&self, port: u32, stream: OwnedFd, outcome: Outcome) {
        let mut calls = lock(&self.0.calls);
        if calls.len() >= CALLS {
            drop(calls);
            return outcome(Err(io::Error::other(
                "too many connections wait for the guest: its vsock driver is not there yet",
            )));
        }
        calls.push(Call {
            port,
            stream,
            outcome,
        });
        drop(calls);
        ring(&self.0.bell);
    }
}

/// The socket device.
pub struct VirtioVsock {
    guest_cid: u64,
    switch: Arc<Mutex<Switch>>,
    door: Arc<Door>,
    /// The guest's connections are from another life: it must be told.
    moved: bool,
}

impl VirtioVsock {
    /// A guest with the context ID `guest_cid` that may call `ports` of the host.
    ///
    /// # Errors
    /// When the ID is one of the reserved ones, or the kernel gives no descriptor.
    pub fn new(guest_cid: u32, ports: HashSet<u32>, accept: Accept) -> io::Result<Self> {
        if guest_cid < 3 || guest_cid == u32::MAX {
            return Err(io::Error::other(format!(
                "a guest cannot have the context ID {guest_cid}: 0 to 2 and the last one are reserved"
            )));
        }
        Ok(Self {
            guest_cid: guest_cid.into(),
            switch: Arc::new(Mutex::new(Switch::new(guest_cid.into(), ports, accept))),
            door: Arc::new(Door {
                calls: Mutex::default(),
                bell: bell()?,
            }),
            moved: false,
        })
    }

    /// The host's way to the guest's ports.
    pub fn connector(&self) -> Connector {
        Connector(self.door.clone())
    }
}

impl VirtioDevice for VirtioVsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            id: 19,
            name: "virtio-vsock",
            class: 0x02_80_00,
        }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn start(&mut self, start: Start) -> io::Result<Vec<WorkerThread>> {
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let Ok([rx, tx, event]) = <[QueueHandle; 3]>::try_from(start.queues.clone()) else {
            return Err(io::Error::other("a socket device has three queues"));
        };
        Ok(vec![WorkerThread {
            queues: start.queues,
            worker: Box::new(Thread {
                switch: self.switch.clone(),
                door: self.door.clone(),
                rx,
                tx,
                event,
                timer,
                timing: false,
                moved: std::mem::take(&mut self.moved),
                metrics: start.metrics,
            }),
        }])
    }

    fn reset(&mut self) {
        lock(&self.switch).clear();
    }

    fn restore(&mut self, _: &serde_json::Value) -> io::Result<()> {
        self.moved = true;
        Ok(())
    }
}

struct Thread {
    switch: Arc<Mutex<Switch>>,
    door: Arc<Door>,
    rx: QueueHandle,
    tx: QueueHandle,
    event: QueueHandle,
    timer: OwnedFd,
    timing: bool,
    moved: bool,
    metrics: Arc<Metrics>,
}

impl Thread {
    /// Moves what can be moved, both ways, until nothing can.
    fn work(&mut self, poller: &Poller) -> Result<(), QueueError> {
        let shared = self.switch.clone();
        let mut switch = lock(&shared);
        loop {
            let held_up = self.take(&mut switch)?;
            self.give(&mut switch)?;
            if !held_up || !switch.can_receive() {
                break;
            }
        }
        switch.update(poller)?;
        if switch.waits() && !self.timing {
            self.timing = true;
            let second = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            let every = Itimerspec {
                it_interval: second,
                it_value: second,
            };
            rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &every)
                .map_err(io::Error::from)?;
        }
        Ok(())
    }

    /// Packets from the guest, until there is no room for answers: then more wait, and it is `true`.
    fn take(&mut self, switch: &mut Switch) -> Result<bool, QueueError> {
        let mut rounds = 2 * QUEUE_SIZE;
        loop {
            self.tx.lock().disable_notifications()?;
            while rounds > 0 && switch.can_receive() {
                let Some(mut chain) = self.tx.pop()? else { break };
                rounds -= 1;
                self.metrics.written(chain.readable.left() as u64);
                switch.receive(&mut chain.readable);
                self.tx.lock().push(chain, 0)?;
            }
            self.tx.signal()?;
            if rounds == 0 {
                // Others want their turn.
                self.tx.ring();
                return Ok(false);
            }
            // A guest that takes no answers is not listened to: it rings when it offers buffers for them.
            if !switch.can_receive() {
                return Ok(true);
            }
            if !self.tx.lock().enable_notifications()? {
                return Ok(false);
            }
        }
    }

    /// Packets for the guest.
    fn give(&mut self, switch: &mut Switch) -> Result<(), QueueError> {
        let mut rounds = 2 * QUEUE_SIZE;
        while switch.has_packets() {
            if rounds == 0 {
                self.rx.ring();
                break;
            }
            rounds -= 1;
            let Some(mut chain) = self.rx.pop()? else {
                if self.rx.lock().enable_notifications()? {
                    continue;
                }
                break;
            };
            match switch.transmit(&mut chain.writable, Instant::now()) {
                Some(written) => {
                    self.metrics.read(written as u64);
                    // Below 4 GiB, as a chain is.
                    self.rx.lock().push(chain, u32::try_from(written).unwrap_or(0))?;
                }
                None => {
                    // Nothing was there to be read after all: the buffer is for the next packet.
                    self.rx.lock().undo(chain);
                    break;
                }
            }
        }
        self.rx.signal()
    }
}

impl Worker for Thread {
    fn start(&mut self, poller: &Poller) -> Result<(), QueueError> {
        lock(&self.switch).renew();
        poller.add(&self.door.bell, TOKEN_CALLS, Ready::READ)?;
        poller.add(&self.timer, TOKEN_TIMER, Ready::READ)?;
        Ok(())
    }

    fn queue(&mut self, index: usize, poller: &Poller) -> Result<(), QueueError> {
        if index == EVENT {
            if self.moved
                && let Some(mut chain) = self.event.pop()?
            {
                // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET
                self.moved = false;
                let written = chain.writable.write(&0u32.to_le_bytes());
                self.event.push(chain, u32::try_from(written).unwrap_or(0))?;
            }
            return Ok(());
        }
        debug_assert!(index == RX || index == TX);
        self.work(poller)
    }

    fn event(&mut self, token: u64, ready: Ready, poller: &Poller) -> Result<(), QueueError> {
        let now = Instant::now();
        match token {
            TOKEN_CALLS => {
                silence(&self.door.bell);
                let calls = std::mem::take(&mut *lock(&self.door.calls));
                let mut switch = lock(&self.switch);
                for call in calls {
                    switch.connect(call.port, call.stream, call.outcome, now);
                }
            }
            TOKEN_TIMER => {
                let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                if !lock(&self.switch).expire(now) {
                    self.timing = false;
                    rustix::time::timerfd_settime(
                        &self.timer,
                        TimerfdTimerFlags::empty(),
                        &Itimerspec {
                            it_interval: Timespec::default(),
                            it_value: Timespec::default(),
                        },
                    )
                    .map_err(io::Error::from)?;
                }
            }
            // Connections' tokens are 32 bits.
            token => lock(&self.switch).ready(token as u32, ready, now),
        }
        self.work(poller)
    }
}
