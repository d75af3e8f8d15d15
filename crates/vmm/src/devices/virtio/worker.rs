//! Threads of devices: each waits for its queues' bells and for whatever else its [`Worker`] asked for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::epoll;
use rustix::io::Errno;

use super::bell::{bell, ring, silence};
use super::interrupt::Interrupt;
use super::queue::{QueueError, QueueHandle};

/// Events taken at once.
const EVENTS: usize = 32;
/// Tokens from here on are the skeleton's; a queue's is this and its number.
const TOKEN_QUEUE: u64 = 1 << 32;
const TOKEN_STOP: u64 = 1 << 33;

/// What one thread of a device does. An error means that the device needs a reset; nothing of the worker is called after it but
/// [`Worker::stop`].
pub trait Worker: Send {
    /// The first call in the thread: what else is to be waited for.
    fn start(&mut self, _poller: &Poller) -> Result<(), QueueError> {
        Ok(())
    }

    /// Queue `index` may have new chains. Called once for each of the thread's queues in the beginning, too.
    fn queue(&mut self, index: usize, poller: &Poller) -> Result<(), QueueError>;

    /// A descriptor is ready that was added under `token`.
    fn event(&mut self, _token: u64, _ready: Ready, _poller: &Poller) -> Result<(), QueueError> {
        Ok(())
    }

    /// The last call: reset or pause. What is in flight must be finished when it has come back.
    fn stop(&mut self) {}
}

/// A thread a device wants.
pub struct WorkerThread {
    /// Queues whose bells wake it.
    pub queues: Vec<QueueHandle>,
    /// What it does.
    pub worker: Box<dyn Worker>,
}

/// What a descriptor is ready for, or is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// It can be read, or the other side has gone.
    pub read: bool,
    /// It can be written, or has an error.
    pub write: bool,
}

impl Ready {
    /// It can be read.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };
    /// It can be written.
    pub const WRITE: Self = Self {
        read: false,
        write: true,
    };
    /// Either.
    pub const BOTH: Self = Self {
        read: true,
        write: true,
    };

    fn flags(self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, self.read);
        flags.set(epoll::EventFlags::OUT, self.write);
        flags
    }

    fn from_flags(flags: epoll::EventFlags) -> Self {
        let gone = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        Self {
            read: gone || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP),
            write: gone || flags.contains(epoll::EventFlags::OUT),
        }
    }
}

/// What a thread waits for (level-triggered).
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Waits for a descriptor, too. `token` is the worker's own, below 2³².
    pub fn add(&self, fd: impl AsFd, token: u64, ready: Ready) -> io::Result<()> {
        if token >= TOKEN_QUEUE {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        self.add_own(fd.as_fd(), token, ready)
    }

    fn add_own(&self, fd: BorrowedFd<'_>, token: u64, ready: Ready) -> io::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), ready.flags())?;
        Ok(())
    }

    /// Waits for something else of a descriptor. With neither, only its end is told.
    pub fn modify(&self, fd: impl AsFd, token: u64, ready: Ready) -> io::Result<()> {
        epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token), ready.flags())?;
        Ok(())
    }

    /// Waits for it no more. A descriptor must be removed before it is closed if it has duplicates.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        epoll::delete(&self.epoll, fd)?;
        Ok(())
    }

    fn wait(&self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        events.clear();
        loop {
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), None) {
                Err(Errno::INTR) => {}
                other => return Ok(other.map(|_| ())?),
            }
        }
    }
}

/// A running thread.
pub(super) struct Running {
    stop: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Starts a thread.
    pub(super) fn spawn(name: &str, thread: WorkerThread, interrupt: Interrupt) -> io::Result<Self> {
        let stop = Arc::new(bell()?);
        let poller = Poller::new()?;
        poller.add_own(stop.as_fd(), TOKEN_STOP, Ready::READ)?;
        for queue in &thread.queues {
            poller.add_own(queue.bell.as_fd(), TOKEN_QUEUE + queue.index as u64, Ready::READ)?;
        }
        let stopped = stop.clone();
        let label = name.to_owned();
        let run = move || {
            let WorkerThread { queues, mut worker } = thread;
            if let Err(error) = serve(&mut *worker, &queues, &poller) {
                tracing::warn!(device = label, %error, "the device needs a reset");
                interrupt.needs_reset();
                wait_for_stop(&stopped);
            }
            worker.stop();
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self { stop, thread })
    }

    /// Ends it, after what is in flight.
    pub(super) fn stop(self) {
        ring(&self.stop);
        if self.thread.join().is_err() {
            tracing::error!("a device's thread has panicked");
        }
    }
}

/// Runs until the stop is rung.
fn serve(worker: &mut dyn Worker, queues: &[QueueHandle], poller: &Poller) -> Result<(), QueueError> {
    worker.start(poller)?;
    for queue in queues {
        worker.queue(queue.index, poller)?;
    }
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        poller.wait(&mut events)?;
        for event in &events {
            let token = event.data.u64();
            if token == TOKEN_STOP {
                return Ok(());
            }
            if token < TOKEN_QUEUE {
                worker.event(token, Ready::from_flags(event.flags), poller)?;
            } else if let Some(queue) = queues
                .iter()
                .find(|queue| TOKEN_QUEUE + queue.index as u64 == token)
            {
                // Emptied first: a bell that rings from now on is for what comes from now on.
                silence(&queue.bell);
                worker.queue(queue.index, poller)?;
            }
        }
    }
}

fn wait_for_stop(stop: &OwnedFd) {
    let mut fds = [rustix::event::PollFd::new(stop, rustix::event::PollFlags::IN)];
    while matches!(rustix::event::poll(&mut fds, None), Err(Errno::INTR)) {}
}
