//! A pair of queues at work.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::control::ControlQueue;
use super::receive::{ReceiveQueue, Received};
use super::{F_GUEST_TSO4, F_GUEST_TSO6, F_MRG_RXBUF, HEADER, NetOptions, PACKET_MAX, Tap};
use crate::devices::virtio::rate::RateLimiter;
use crate::devices::virtio::timer::Timer;
use crate::devices::virtio::{Metrics, Poller, QueueError, QueueHandle, Ready, Start, Worker};

const TOKEN_TAP: u64 = 0;
const TOKEN_RECEIVE_TIMER: u64 = 1;
const TOKEN_SEND_TIMER: u64 = 2;
/// Packets of one direction in a row: the other has its turn after it.
const ROUND: u32 = 64;

pub(super) struct PairWorker {
    tap: Arc<Tap>,
    receive: ReceiveQueue,
    send: QueueHandle,
    control: Option<ControlQueue>,
    /// Whether packets from the TAP wake us, and whether we wait for room in it.
    waits: Ready,
    receive_limiter: RateLimiter,
    receive_timer: Timer,
    send_limiter: RateLimiter,
    send_timer: Timer,
    metrics: Arc<Metrics>,
}

impl PairWorker {
    pub(super) fn new(
        pair: usize,
        tap: Arc<Tap>,
        start: &Start,
        options: &NetOptions,
        pairs: u64,
        control: Option<ControlQueue>,
    ) -> io::Result<Self> {
        let whole_segments = start.features & (F_GUEST_TSO4 | F_GUEST_TSO6) != 0;
        let receive = start.queues[2 * pair].clone();
        Ok(Self {
            tap,
            receive: ReceiveQueue::new(receive, start.has(F_MRG_RXBUF), whole_segments, options.mtu),
            send: start.queues[2 * pair + 1].clone(),
            control,
            waits: Ready::READ,
            receive_limiter: RateLimiter::new(options.receive_limits.share(pairs)),
            receive_timer: Timer::new()?,
            send_limiter: RateLimiter::new(options.send_limits.share(pairs)),
            send_timer: Timer::new()?,
            metrics: start.metrics.clone(),
        })
    }

    /// Says what of the TAP wakes us.
    fn wait_for(&mut self, waits: Ready, poller: &Poller) -> Result<(), QueueError> {
        if waits != self.waits {
            poller.modify(&*self.tap, TOKEN_TAP, waits)?;
            self.waits = waits;
        }
        Ok(())
    }

    /// Receives what has come.
    fn pump_in(&mut self, poller: &Poller) -> Result<(), QueueError> {
        let mut wanted = true;
        for _ in 0..ROUND {
            if let Some(wait) = self.receive_limiter.wait(Instant::now()) {
                self.receive_timer.set(wait)?;
                wanted = false;
                break;
            }
            match self.receive.receive(&self.tap, &self.metrics)? {
                Received::Packet(length) => self.receive_limiter.take(length as u64),
                Received::Nothing => break,
                Received::NoRoom => {
                    // The driver rings when it has put buffers in.
                    wanted = false;
                    break;
                }
            }
        }
        self.receive.queue.signal()?;
        self.wait_for(
            Ready {
                read: wanted,
                ..self.waits
            },
            poller,
        )
    }

    /// Sends what the guest has for us.
    fn pump_out(&mut self, poller: &Poller) -> Result<(), QueueError> {
        let mut full = false;
        let mut rounds = 0;
        self.send.lock().disable_notifications()?;
        loop {
            if rounds == ROUND {
                self.send.ring();
                break;
            }
            if let Some(wait) = self.send_limiter.wait(Instant::now()) {
                self.send_timer.set(wait)?;
                break;
            }
            let Some(chain) = self.send.pop()? else {
                if self.send.lock().enable_notifications()? {
                    continue;
                }
                break;
            };
            rounds += 1;
            let length = chain.readable.left();
            if !(HEADER..=2 * PACKET_MAX).contains(&length) {
                self.metrics.failed();
                self.send.lock().push(chain, 0)?;
                continue;
            }
            match self.tap.write(&chain.readable.iovecs()) {
                Ok(_) => {
                    self.metrics.written((length - HEADER) as u64);
                    self.send_limiter.take(length as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.send.lock().undo(chain);
                    full = true;
                    break;
                }
                // A header that makes no sense, an interface that is down: the packet is lost, as on any network.
                Err(_) => self.metrics.failed(),
            }
            self.send.lock().push(chain, 0)?;
        }
        self.send.signal()?;
        self.wait_for(
            Ready {
                write: full,
                ..self.waits
            },
            poller,
        )
    }
}

impl Worker for PairWorker {
    fn start(&mut self, poller: &Poller) -> Result<(), QueueError> {
        poller.add(&*self.tap, TOKEN_TAP, self.waits)?;
        poller.add(&self.receive_timer, TOKEN_RECEIVE_TIMER, Ready::READ)?;
        poller.add(&self.send_timer, TOKEN_SEND_TIMER, Ready::READ)?;
        Ok(())
    }

    fn queue(&mut self, index: usize, poller: &Poller) -> Result<(), QueueError> {
        if index == self.send.index() {
            return self.pump_out(poller);
        }
        match &self.control {
            Some(control) if control.index() == index => control.serve(),
            _ => self.pump_in(poller),
        }
    }

    fn event(&mut self, token: u64, ready: Ready, poller: &Poller) -> Result<(), QueueError> {
        match token {
            TOKEN_RECEIVE_TIMER => {
                self.receive_timer.clear();
                self.pump_in(poller)
            }
            TOKEN_SEND_TIMER => {
                self.send_timer.clear();
                self.pump_out(poller)
            }
            _ => {
                if ready.write && self.waits.write {
                    self.pump_out(poller)?;
                }
                if ready.read { self.pump_in(poller) } else { Ok(()) }
            }
        }
    }

    fn stop(&mut self) {
        self.receive.release();
    }
}
