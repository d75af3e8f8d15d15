//! A connection to the guest's init that never blocks: a request queued out, replies taken in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use vessel_init::guest::client::{self, MAX_REPLY};
use vessel_init::guest::protocol::{Failure, Parsed, Reply, Request, frame, parse};

use crate::shim::poller::{Interest, Poller, Token};
use crate::{Error, ErrorKind, Result};

/// A connection on which a request was, or is being, sent.
#[derive(Debug)]
pub struct Channel {
    pub fd: OwnedFd,
    pub token: Token,
    out: Vec<u8>,
    /// Of a reply that is not complete. No more than that is ever read: what follows may be a stream.
    reply: Vec<u8>,
}

impl Channel {
    /// Begins to send `request` on `fd`, which must not block.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn new(poller: &mut Poller, fd: OwnedFd, request: &Request) -> Result<Self> {
        let token = poller.add(&fd, Interest::READ)?;
        let mut channel = Self {
            fd,
            token,
            out: frame(request),
            reply: Vec::new(),
        };
        channel.push(poller);
        Ok(channel)
    }

    /// One on which everything was asked: what is still to be told is awaited.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn listening(poller: &mut Poller, fd: OwnedFd) -> Result<Self> {
        Ok(Self {
            token: poller.add(&fd, Interest::READ)?,
            fd,
            out: Vec::new(),
            reply: Vec::new(),
        })
    }

    /// Sends what the guest takes now.
    pub fn push(&mut self, poller: &Poller) {
        while !self.out.is_empty() {
            match send(&self.fd, &self.out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => drop(self.out.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // What it said before, or its end, is read.
                Err(_) => self.out.clear(),
            }
        }
        let interest = Interest {
            read: true,
            write: !self.out.is_empty(),
        };
        poller.set(self.token, &self.fd, interest);
    }

    /// The next reply, when it is complete.
    ///
    /// # Errors
    /// What the guest refuses, and why; the end of the connection; what is no reply.
    pub fn hear(&mut self) -> Result<Option<Reply>> {
        let mut buffer = [0; 4096];
        loop {
            let wanted = match self.reply.first_chunk::<4>() {
                None => 4,
                Some(length) => 4 + u32::from_le_bytes(*length) as usize,
            };
            if wanted > 4 + MAX_REPLY {
                return Err(in_the_guest(client::Error::Garbage));
            }
            if self.reply.len() >= 4 && self.reply.len() == wanted {
                return self.take();
            }
            let most = (wanted - self.reply.len()).min(buffer.len());
            match rustix::io::read(&self.fd, &mut buffer[..most]) {
                Ok(0) => return Err(ended()),
                Ok(count) => self.reply.extend_from_slice(&buffer[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(_) => return Err(ended()),
            }
        }
    }

    fn take(&mut self) -> Result<Option<Reply>> {
        let bytes = std::mem::take(&mut self.reply);
        match parse(&bytes, MAX_REPLY) {
            Parsed::Message(Reply::Failed { kind, message }, _) => Err(refused(kind, &message)),
            Parsed::Message(reply, _) => Ok(Some(reply)),
            Parsed::Partial | Parsed::Garbage => Err(in_the_guest(client::Error::Garbage)),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn ended() -> Error {
    let end = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    in_the_guest(client::Error::Connection(end))
}

/// The guest's refusal, without what could disturb a terminal.
fn refused(kind: Failure, message: &str) -> Error {
    let message = message
        .chars()
        .take(2000)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    in_the_guest(client::Error::Refused { kind, message })
}

/// An error of the guest's as one of the runtime's.
pub fn in_the_guest(error: client::Error) -> Error {
    match error {
        client::Error::Refused { kind, message } => {
            let kind = match kind {
                Failure::System => ErrorKind::System,
                Failure::Invalid => ErrorKind::Invalid,
                Failure::NotFound => ErrorKind::NotFound,
                Failure::Permission => ErrorKind::Permission,
                Failure::Conflict => ErrorKind::Conflict,
                Failure::Unsupported => ErrorKind::Unsupported,
            };
            Error::new(kind, message)
        }
        other => Error::with_source(ErrorKind::System, "ask the machine's init", other),
    }
}

/// The same of one that was to execute a program: its kinds say whether the program is the reason.
pub fn not_executed(error: Error) -> Error {
    let kind = match error.kind() {
        ErrorKind::NotFound => ErrorKind::CommandNotFound,
        ErrorKind::Permission => ErrorKind::CommandNotExecutable,
        other => other,
    };
    Error::new(kind, error.report().message)
}
