//! A connection to the shim: bytes in, bytes queued out, never blocking.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::poller::{Interest, Poller, Token};
use super::protocol::{Attach, MAX_FRAME};
use crate::Result;

/// Output waiting for one client beyond which the process is not read from: it waits, as it would for a slow terminal.
pub const HIGH_WATER: usize = 1 << 20;

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Its request has not arrived yet.
    Asking,
    /// The exec it asked for is being started.
    Waiting,
    /// It gets events.
    Watching,
    /// It is attached to a session.
    Attached {
        /// The session's number.
        session: u64,
        /// To what of it.
        to: Attach,
    },
    /// It gets what is queued and is closed then.
    Closing,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    pub fd: OwnedFd,
    pub token: Token,
    pub role: Role,
    interest: Interest,
    /// Bytes of a request that is not complete.
    request: Vec<u8>,
    queue: VecDeque<u8>,
    /// The client sends nothing more.
    pub input_ended: bool,
    /// The client is gone or failed.
    pub dead: bool,
}

impl Connection {
    /// Takes over a connected stream.
    pub fn new(poller: &mut Poller, fd: OwnedFd, role: Role) -> Result<Self> {
        let _ = rustix::io::ioctl_fionbio(&fd, true);
        let token = poller.add(&fd, Interest::READ)?;
        Ok(Self {
            fd,
            token,
            role,
            interest: Interest::READ,
            request: Vec::new(),
            queue: VecDeque::new(),
            input_ended: false,
            dead: false,
        })
    }

    /// Bytes that wait to be sent.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Sends what can be sent now of `parts` and queues the rest.
    pub fn send(&mut self, parts: [&[u8]; 2]) {
        if self.dead {
            return;
        }
        let mut skip = 0;
        if self.queue.is_empty() {
            let slices = [std::io::IoSlice::new(parts[0]), std::io::IoSlice::new(parts[1])];
            let mut nothing = rustix::net::SendAncillaryBuffer::default();
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(&self.fd, &slices, &mut nothing, flags) {
                Ok(sent) => skip = sent,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => {
                    self.dead = true;
                    return;
                }
            }
        }
        for part in parts {
            let taken = skip.min(part.len());
            skip -= taken;
            self.queue.extend(&part[taken..]);
        }
    }

    /// Sends bytes with a descriptor; to a client that does not take them at once, nothing.
    pub fn send_with(&mut self, bytes: &[u8], fd: BorrowedFd<'_>) {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = rustix::net::sendmsg(&self.fd, &[std::io::IoSlice::new(bytes)], &mut ancillary, flags);
        self.dead |= self.queue.is_empty() && sent != Ok(bytes.len());
    }

    /// Sends queued bytes as far as the client takes them.
    pub fn flush(&mut self) {
        while !self.queue.is_empty() && !self.dead {
            match send(
                &self.fd,
                self.queue.as_slices().0,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(sent) => drop(self.queue.drain(..sent)),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => self.dead = true,
            }
        }
        if self.queue.is_empty() {
            // A burst should not be paid for as long as the client stays.
            self.queue.shrink_to(4096);
        }
    }

    /// Awaits what is needed: input when `reading`, room when something is queued.
    pub fn update(&mut self, poller: &Poller, reading: bool) {
        let wanted = Interest {
            read: reading && !self.input_ended,
            write: !self.queue.is_empty(),
        };
        if wanted != self.interest {
            self.interest = wanted;
            poller.set(self.token, &self.fd, wanted);
        }
    }

    /// Reads a request as far as it has arrived; the frame's body when it is complete.
    pub fn read_request(&mut self, buffer: &mut [u8]) -> Option<Vec<u8>> {
        loop {
            let wanted = match self.request.first_chunk::<4>() {
                None => 4 - self.request.len(),
                Some(length) => {
                    let length = u32::from_le_bytes(*length) as usize;
                    if length > MAX_FRAME {
                        self.dead = true;
                        return None;
                    }
                    if self.request.len() == 4 + length {
                        let mut body = std::mem::take(&mut self.request);
                        body.drain(..4);
                        return Some(body);
                    }
                    4 + length - self.request.len()
                }
            };
            // Never more than the request: what follows belongs to the process.
            let most = wanted.min(buffer.len());
            match rustix::io::read(&self.fd, &mut buffer[..most]) {
                Ok(0) => self.dead = true,
                Ok(count) => self.request.extend_from_slice(&buffer[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(_) => self.dead = true,
            }
            if self.dead {
                return None;
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
