//! Questions for the DNS server, from inside the machine to the one in the container's network namespace.
//!
//! Both sides speak DNS over TCP, so that what goes through are bytes.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType, send};

use crate::Result;
use crate::error::Context;
use crate::process::set_namespace;
use crate::shim::poller::{Interest, Poller, Ready, Token};
use crate::spec::NamespaceKind;

/// Where the server answers in every namespace.
const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11)), 53);

/// What one side may be behind the other: more than any message of DNS has.
const MOST: usize = 128 << 10;

/// One question's way, and its answer's.
#[derive(Debug)]
pub struct Relay {
    sides: [Side; 2],
}

#[derive(Debug)]
struct Side {
    fd: OwnedFd,
    token: Token,
    interest: Interest,
    /// For this side, from the other.
    queue: VecDeque<u8>,
    /// It says nothing more.
    ended: bool,
    /// It was told that nothing more comes.
    closed: bool,
}

impl Relay {
    /// From `guest` to the server in the namespace.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn begin(poller: &mut Poller, guest: OwnedFd, netns: BorrowedFd<'_>) -> Result<Self> {
        let server = connect(netns)?;
        let _ = rustix::io::ioctl_fionbio(&guest, true);
        let mut side = |fd: OwnedFd| -> Result<Side> {
            Ok(Side {
                token: poller.add(&fd, Interest::READ)?,
                fd,
                interest: Interest::READ,
                queue: VecDeque::new(),
                ended: false,
                closed: false,
            })
        };
        Ok(Self {
            sides: [side(guest)?, side(server)?],
        })
    }

    /// Whether an event is of this one.
    pub fn has(&self, event: Ready) -> bool {
        self.sides.iter().any(|side| side.token == event.token)
    }

    /// Moves what can be moved. False when it is over.
    pub fn push(&mut self, poller: &Poller, buffer: &mut [u8]) -> bool {
        let [guest, server] = &mut self.sides;
        let alive = guest.read_for(server, buffer)
            && server.read_for(guest, buffer)
            && guest.write()
            && server.write();
        let over = |side: &Side| side.closed;
        if !alive || self.sides.iter().all(over) {
            return false;
        }
        let room = [self.sides[1].queue.len() < MOST, self.sides[0].queue.len() < MOST];
        for (side, room) in self.sides.iter_mut().zip(room) {
            let wanted = Interest {
                read: room && !side.ended,
                write: !side.queue.is_empty(),
            };
            if wanted != side.interest {
                side.interest = wanted;
                poller.set(side.token, &side.fd, wanted);
            }
        }
        let [guest, server] = &mut self.sides;
        guest.pass_end(server);
        server.pass_end(guest);
        !self.sides.iter().all(over)
    }
}

impl Side {
    fn read_for(&mut self, other: &mut Self, buffer: &mut [u8]) -> bool {
        if self.ended || other.queue.len() >= MOST {
            return true;
        }
        match rustix::io::read(&self.fd, &mut *buffer) {
            Ok(0) => self.ended = true,
            Ok(count) => other.queue.extend(&buffer[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return false,
        }
        true
    }

    fn write(&mut self) -> bool {
        while !self.queue.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match send(&self.fd, self.queue.as_slices().0, flags) {
                Ok(sent) => drop(self.queue.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return false,
            }
        }
        true
    }

    /// Tells the other side that this one has said everything.
    fn pass_end(&self, other: &mut Self) {
        if self.ended && other.queue.is_empty() && !other.closed {
            other.closed = true;
            let _ = rustix::net::shutdown(&other.fd, Shutdown::Write);
        }
    }
}

/// A connection to the server, begun in its namespace.
fn connect(netns: BorrowedFd<'_>) -> Result<OwnedFd> {
    let failed = || "ask the DNS server for the machine";
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty()).context(failed)?;
    set_namespace(netns, NamespaceKind::Network)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
    // A socket stays in the namespace it was made in.
    set_namespace(own.as_fd(), NamespaceKind::Network)?;
    let socket = socket.context(failed)?;
    match rustix::net::connect(&socket, &SERVER) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno).context(failed),
    }
}
