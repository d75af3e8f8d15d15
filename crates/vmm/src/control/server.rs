//! The machine's end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};

use super::packet;
use super::protocol::{Answer, Event, Numbered, Reply, Request};

/// What was asked.
#[derive(Debug)]
pub struct Asked {
    /// For the answer.
    pub id: u64,
    /// What.
    pub request: Request,
    /// The descriptor that came along.
    pub descriptor: Option<OwnedFd>,
}

/// The machine's end of the control socket.
pub struct Server {
    socket: Arc<OwnedFd>,
}

/// Sends answers and events, from any thread.
#[derive(Clone)]
pub struct Sender {
    socket: Arc<OwnedFd>,
}

impl Server {
    /// On a socket that was inherited.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Arc::new(socket),
        }
    }

    /// For answers and events.
    pub fn sender(&self) -> Sender {
        Sender {
            socket: self.socket.clone(),
        }
    }

    /// The socket itself, for [last words](crate::jail::report).
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Waits for the next request; `None` when the other end has gone. What cannot be understood is answered here.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn receive(&self) -> io::Result<Option<Asked>> {
        loop {
            let (message, descriptors) = match packet::receive(&self.socket, RecvFlags::empty()) {
                Ok(Some(received)) => received,
                Ok(None) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.sender().refuse(0, error.to_string())?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            match serde_json::from_slice::<Numbered>(&message) {
                Ok(Numbered { id, request }) => {
                    return Ok(Some(Asked {
                        id,
                        request,
                        descriptor: descriptors.into_iter().next(),
                    }));
                }
                Err(error) => {
                    #[derive(Default, Deserialize)]
                    #[serde(default)]
                    struct Identified {
                        id: u64,
                    }
                    let known: Identified = serde_json::from_slice(&message).unwrap_or_default();
                    let text = format!("the request cannot be understood: {error}");
                    self.sender().refuse(known.id, text)?;
                }
            }
        }
    }
}

impl Sender {
    fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
        flags: SendFlags,
    ) -> io::Result<()> {
        packet::send(&self.socket, &serde_json::to_vec(message)?, descriptors, flags)
    }

    /// Answers that it was done.
    ///
    /// # Errors
    /// When the other end has gone.
    pub fn answer(&self, id: u64, answer: Answer) -> io::Result<()> {
        let reply = Reply {
            id,
            ok: Some(answer),
            error: None,
        };
        self.send(&reply, &[], SendFlags::empty())
    }

    /// Answers that it was not done.
    ///
    /// # Errors
    /// When the other end has gone.
    pub fn refuse(&self, id: u64, error: impl Into<String>) -> io::Result<()> {
        let reply = Reply {
            id,
            ok: None,
            error: Some(error.into()),
        };
        self.send(&reply, &[], SendFlags::empty())
    }

    /// Tells what has happened; waits when the socket is full.
    ///
    /// # Errors
    /// When the other end has gone.
    pub fn event(&self, event: &Event) -> io::Result<()> {
        self.send(event, &[], SendFlags::empty())
    }

    /// Tells of something with a descriptor, from a thread that must not wait: when the socket is full it is an error.
    ///
    /// # Errors
    /// When the other end does not read or has gone.
    pub fn event_with(&self, event: &Event, descriptor: &impl AsFd) -> io::Result<()> {
        self.send(event, &[descriptor.as_fd()], SendFlags::DONTWAIT)
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
