//! epoll(7), level-triggered, with tokens that are never used twice.

use std::os::fd::AsFd;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::Result;
use crate::error::Context;

/// Names a watched descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(u64);

/// What is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// Something to read.
    pub read: bool,
    /// Room to write.
    pub write: bool,
}

impl Interest {
    /// Reading only.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };

    /// Neither; the end is reported nevertheless.
    pub const NONE: Self = Self {
        read: false,
        write: false,
    };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags
    }
}

/// Something that is ready.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// Which descriptor.
    pub token: Token,
    /// It can be read, or has ended.
    pub read: bool,
    /// It can be written.
    pub write: bool,
    /// The other side is gone in both directions.
    pub hangup: bool,
}

/// The set of watched descriptors.
#[derive(Debug)]
pub struct Poller {
    epoll: std::os::fd::OwnedFd,
    next: u64,
}

impl Poller {
    /// An empty set.
    pub fn new() -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC).context(|| "make an epoll instance")?,
            next: 0,
        })
    }

    /// Watches a descriptor. Closing it ends that, as long as no copy of it is open elsewhere.
    pub fn add(&mut self, fd: impl AsFd, interest: Interest) -> Result<Token> {
        let token = Token(self.next);
        self.next += 1;
        epoll::add(&self.epoll, fd, EventData::new_u64(token.0), interest.flags())
            .context(|| "watch a descriptor")?;
        Ok(token)
    }

    /// Watches a descriptor for what poll(2) would be asked for.
    pub fn add_with(&mut self, fd: impl AsFd, interest: rustix::event::PollFlags) -> Result<Token> {
        let token = Token(self.next);
        self.next += 1;
        epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(token.0),
            EventFlags::from_bits_retain(interest.bits().into()),
        )
        .context(|| "watch a descriptor")?;
        Ok(token)
    }

    /// Changes what is awaited.
    pub fn set(&self, token: Token, fd: impl AsFd, interest: Interest) {
        // Fails only for descriptors that are not watched, whose events are ignored anyway.
        let _ = epoll::modify(&self.epoll, fd, EventData::new_u64(token.0), interest.flags());
    }

    /// Stops watching.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for what is ready, at most `timeout` milliseconds.
    pub fn wait(&self, ready: &mut Vec<Ready>, timeout: Option<u32>) -> Result<()> {
        ready.clear();
        let timeout = timeout.map(|milliseconds| rustix::event::Timespec {
            tv_sec: i64::from(milliseconds / 1000),
            tv_nsec: i64::from(milliseconds % 1000) * 1_000_000,
        });
        let mut events = [Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; 32];
        let count = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(errno) => return Err(errno).context(|| "wait for events"),
        };
        ready.extend(events[..count].iter().map(|event| {
            // The struct is packed: fields are copied out before use.
            let (flags, data) = (event.flags, event.data);
            let ended = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            Ready {
                token: Token(data.u64()),
                read: flags.contains(EventFlags::IN) || ended,
                write: flags.contains(EventFlags::OUT),
                hangup: ended,
            }
        }));
        Ok(())
    }
}
