//! The end of whoever started the machine's process.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::packet;
use super::protocol::{Answer, FromMachine, Numbered, Request};

/// What has come from the machine, with its descriptor.
#[derive(Debug)]
pub struct Incoming {
    /// The message.
    pub message: FromMachine,
    /// What came along.
    pub descriptor: Option<OwnedFd>,
}

/// The end of whoever started the machine's process.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    next: u64,
    /// What came while an answer was waited for.
    waiting: VecDeque<Incoming>,
}

impl Client {
    /// A client, and the socket the machine's process is to inherit.
    ///
    /// # Errors
    /// When the kernel gives no sockets.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self::new(ours), theirs))
    }

    /// On a socket that is there.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            next: 1,
            waiting: VecDeque::new(),
        }
    }

    /// Sends a request without waiting for its answer, which has the number returned here.
    ///
    /// # Errors
    /// When the machine's process has gone, or does not read.
    pub fn send(&mut self, request: Request, descriptor: Option<BorrowedFd<'_>>) -> io::Result<u64> {
        let id = self.next;
        self.next += 1;
        let message = serde_json::to_vec(&Numbered { id, request })?;
        let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
        packet::send(&self.socket, &message, &descriptors, SendFlags::DONTWAIT)?;
        Ok(id)
    }

    /// The next message that is there; `Ok(None)` when there is none yet.
    ///
    /// # Errors
    /// `UnexpectedEof` when the machine's process has gone; others when it sends what cannot be understood.
    pub fn receive(&mut self) -> io::Result<Option<Incoming>> {
        if let Some(earlier) = self.waiting.pop_front() {
            return Ok(Some(earlier));
        }
        self.next_message()
    }

    /// Messages wait that were read already: the socket does not tell of them.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn next_message(&mut self) -> io::Result<Option<Incoming>> {
        let (message, descriptors) = match packet::receive(&self.socket, RecvFlags::DONTWAIT) {
            Ok(Some(received)) => received,
            Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Incoming {
            message: serde_json::from_slice(&message)?,
            descriptor: descriptors.into_iter().next(),
        }))
    }

    /// Asks and waits for the answer. What else comes meanwhile waits for [`Client::receive`].
    ///
    /// # Errors
    /// The machine's own sentence when it refuses; `TimedOut`; `UnexpectedEof` when its process has gone.
    pub fn call(
        &mut self,
        request: Request,
        descriptor: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> io::Result<Answer> {
        let deadline = Instant::now() + timeout;
        let id = self.send(request, descriptor)?;
        loop {
            match self.next_message()? {
                Some(Incoming {
                    message: FromMachine::Reply(reply),
                    ..
                }) if reply.id == id => return reply.into_result().map_err(io::Error::other),
                Some(other) => self.waiting.push_back(other),
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    self.wait(left)?;
                }
            }
        }
    }

    /// Waits until something has come, at most this long.
    fn wait(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Client {
    /// To be polled for messages.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
