//! One queue of a disk at work.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::request::{Access, Range, Request, Status, parse, take_status};
use super::uring::{InFlight, Operation, Uring};
use super::{BlockOptions, Disk, Engine};
use crate::devices::virtio::rate::{RateLimiter, RateLimits};
use crate::devices::virtio::timer::Timer;
use crate::devices::virtio::{Buffers, Chain, Metrics, Poller, QueueError, QueueHandle, Ready, Worker};

const TOKEN_URING: u64 = 0;
const TOKEN_TIMER: u64 = 1;

pub(super) struct BlockWorker {
    queue: QueueHandle,
    disk: Arc<dyn Disk>,
    access: Access,
    serial: [u8; super::SERIAL_MAX],
    uring: Option<Uring>,
    limiter: RateLimiter,
    timer: Timer,
    /// Every write must be on stable storage when it has ended.
    writes_through: bool,
    metrics: Arc<Metrics>,
}

impl BlockWorker {
    pub(super) fn new(
        queue: QueueHandle,
        disk: Arc<dyn Disk>,
        access: Access,
        options: &BlockOptions,
        limits: RateLimits,
        writes_through: bool,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let mut serial = [0; super::SERIAL_MAX];
        for (to, from) in serial.iter_mut().zip(options.serial.bytes()) {
            *to = from;
        }
        let uring = (options.engine == Engine::Auto)
            .then(|| Uring::new(&disk))
            .flatten();
        Ok(Self {
            queue,
            disk,
            access,
            serial,
            uring,
            limiter: RateLimiter::new(limits),
            timer: Timer::new()?,
            writes_through,
            metrics,
        })
    }

    /// Takes chains until none waits, a limit is reached, or so many are in flight that no more fit.
    fn take(&mut self) -> Result<(), QueueError> {
        // A driver that never stops is left after some rounds: the thread must hear of its end.
        let mut rounds = 2 * u32::from(self.queue.lock().max_size());
        loop {
            self.queue.lock().disable_notifications()?;
            loop {
                if rounds == 0 {
                    self.queue.ring();
                    return self.finish_round();
                }
                if self.uring.as_ref().is_some_and(|uring| !uring.has_room()) {
                    // The next one that ends brings us back.
                    return self.finish_round();
                }
                if let Some(wait) = self.limiter.wait(Instant::now()) {
                    self.timer.set(wait)?;
                    return self.finish_round();
                }
                let Some(chain) = self.queue.pop()? else {
                    break;
                };
                rounds -= 1;
                self.begin(chain)?;
            }
            self.finish_round()?;
            if !self.queue.lock().enable_notifications()? {
                return Ok(());
            }
        }
    }

    fn finish_round(&mut self) -> Result<(), QueueError> {
        if let Some(uring) = &mut self.uring {
            uring.submit()?;
        }
        self.queue.signal()
    }

    /// Does a request, or begins it.
    fn begin(&mut self, mut chain: Chain) -> Result<(), QueueError> {
        let Some(status) = take_status(&mut chain) else {
            // There is no way to say what is wrong.
            self.metrics.failed();
            return self.queue.lock().push(chain, 0);
        };
        let request = match parse(&mut chain, self.access) {
            Ok(request) => request,
            Err(answer) => return self.end(chain, status, answer, 0),
        };
        let operation = match request {
            Request::Read { offset, length } => Operation::Read { offset, length },
            Request::Write { offset, length } => Operation::Write { offset, length },
            Request::Flush => Operation::Flush,
            Request::GetId => {
                let length = chain.writable.write(&self.serial) as u64;
                return self.end(chain, status, Status::Ok, length);
            }
            Request::Discard(ranges) => {
                let done = self.each(&ranges, |disk, range| disk.discard(range.offset, range.length));
                return self.end(chain, status, done, 0);
            }
            Request::WriteZeroes(ranges) => {
                let done = self.each(&ranges, |disk, range| {
                    disk.write_zeroes(range.offset, range.length, range.unmap)
                });
                return self.end(chain, status, done, 0);
            }
        };
        self.limiter.take(match operation {
            Operation::Read { length, .. } | Operation::Write { length, .. } => length,
            Operation::Flush => 0,
        });
        let through = self.writes_through && matches!(operation, Operation::Write { .. });
        if let (Some(uring), false) = (&mut self.uring, through) {
            return Ok(uring.push(chain, status, operation)?);
        }
        self.perform(chain, status, operation)
    }

    /// Does a request here and now.
    fn perform(&mut self, chain: Chain, status: Buffers, operation: Operation) -> Result<(), QueueError> {
        let (result, read) = match operation {
            Operation::Read { offset, length } => (self.disk.read(&chain.writable.iovecs(), offset), length),
            Operation::Write { offset, length } => {
                self.metrics.written(length);
                let written = self.disk.write(&chain.readable.iovecs(), offset);
                let flush = self.writes_through;
                (
                    written.and_then(|()| if flush { self.disk.flush() } else { Ok(()) }),
                    0,
                )
            }
            Operation::Flush => (self.disk.flush(), 0),
        };
        let answer = self.answer(result);
        self.end(chain, status, answer, if answer == Status::Ok { read } else { 0 })
    }

    fn each(&self, ranges: &[Range], mut f: impl FnMut(&dyn Disk, &Range) -> io::Result<()>) -> Status {
        for range in ranges.iter().filter(|range| range.length > 0) {
            if let Err(error) = f(&*self.disk, range) {
                return self.answer(Err(error));
            }
        }
        let flush = if self.writes_through {
            self.disk.flush()
        } else {
            Ok(())
        };
        self.answer(flush)
    }

    fn answer(&self, result: io::Result<()>) -> Status {
        match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                tracing::warn!(%error, "a request of the disk has failed");
                Status::Error
            }
        }
    }

    /// Gives a request back: so many bytes were read, and the status.
    fn end(
        &mut self,
        chain: Chain,
        mut status: Buffers,
        answer: Status,
        read: u64,
    ) -> Result<(), QueueError> {
        if answer == Status::Ok {
            if read > 0 {
                self.metrics.read(read);
            }
        } else {
            self.metrics.failed();
        }
        status.write(&[answer as u8]);
        // A chain has less than 4 GiB.
        #[expect(clippy::cast_possible_truncation)]
        self.queue.lock().push(chain, read as u32 + 1)
    }

    /// Gives back what has ended.
    fn reap(&mut self) -> Result<(), QueueError> {
        while let Some((request, result)) = self.uring.as_mut().and_then(Uring::next) {
            let InFlight {
                chain,
                status,
                length,
                is_read,
                offset,
                ..
            } = request;
            match result {
                Ok(done) if done == length => {
                    if !is_read && length > 0 {
                        self.metrics.written(length);
                    }
                    self.end(chain, status, Status::Ok, if is_read { length } else { 0 })?;
                }
                // Half done: once more, step by step.
                Ok(_) if is_read => self.perform(chain, status, Operation::Read { offset, length })?,
                Ok(_) => self.perform(chain, status, Operation::Write { offset, length })?,
                Err(error) => {
                    let answer = self.answer(Err(error));
                    self.end(chain, status, answer, 0)?;
                }
            }
        }
        Ok(())
    }
}

impl Worker for BlockWorker {
    fn start(&mut self, poller: &Poller) -> Result<(), QueueError> {
        poller.add(&self.timer, TOKEN_TIMER, Ready::READ)?;
        if let Some(uring) = &self.uring {
            poller.add(uring, TOKEN_URING, Ready::READ)?;
        }
        Ok(())
    }

    fn queue(&mut self, _: usize, _: &Poller) -> Result<(), QueueError> {
        self.take()
    }

    fn event(&mut self, token: u64, _: Ready, _: &Poller) -> Result<(), QueueError> {
        if token == TOKEN_TIMER {
            self.timer.clear();
        }
        self.reap()?;
        self.take()
    }

    fn stop(&mut self) {
        while self.uring.as_ref().is_some_and(|uring| !uring.is_idle()) {
            let waited = self.uring.as_mut().map_or(Ok(()), Uring::wait);
            if let Err(error) = waited.map_err(QueueError::from).and_then(|()| self.reap()) {
                tracing::warn!(%error, "requests of the disk are lost");
                break;
            }
        }
        // The driver may wait for these after a pause.
        if let Err(error) = self.queue.signal() {
            tracing::debug!(%error, "an interrupt of the disk is lost");
        }
    }
}
