//! One connection: a socket of the host on one side, a guest's socket on the other.
//!
//! What the guest sends goes to the socket at once where that has room, else into a buffer; the buffer is what the guest has credit for, so it never grows beyond
//! it. What the socket has to say is read straight into the guest's buffers, as far as the guest has credit to give.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;

use super::super::{Buffers, Ready};
use super::packet::{
    HOST_CID, Header, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_REQUEST, OP_RESPONSE, OP_RST, OP_RW,
    OP_SHUTDOWN, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND, TYPE_STREAM,
};

/// Bytes the guest may send before the host's reader has taken any.
pub const WINDOW: u32 = 128 << 10;

/// How a connection the host asked for came out.
pub type Outcome = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The host has asked, the guest has not answered.
    Requested,
    /// Bytes can flow.
    Open,
    /// The guest has gone; what it sent before is still to be delivered.
    Draining,
    /// Nothing of it is left but a RST that is to be sent.
    Reset,
    /// It can be dropped.
    Done,
}

/// What is to be told to the guest: bits, so that a guest that takes nothing costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owed {
    request: bool,
    response: bool,
    shutdown: bool,
    credit: bool,
    ask: bool,
}

/// See the module.
pub struct Connection {
    stream: OwnedFd,
    /// The host's port and the guest's.
    pub ports: (u32, u32),
    guest_cid: u64,
    pub state: State,
    owed: Owed,
    /// From the guest, not yet taken by the stream.
    buffer: VecDeque<u8>,
    received: u32,
    forwarded: u32,
    /// What of `forwarded` the guest was told.
    advertised: u32,
    sent: u32,
    peer_window: u32,
    peer_forwarded: u32,
    /// The stream has (or may have) something to read.
    readable: bool,
    /// What the guest will do no more.
    guest: u32,
    /// What the host will do no more.
    host: u32,
    pub outcome: Option<Outcome>,
    /// When waiting ends.
    pub deadline: Option<Instant>,
    /// What the poller waits for.
    pub registered: Option<Ready>,
    /// It stands in the line of those that have something to send.
    pub queued: bool,
}

impl Connection {
    /// A connection that `state` says who has asked for.
    pub fn new(stream: OwnedFd, ports: (u32, u32), guest_cid: u64, state: State) -> Self {
        Self {
            stream,
            ports,
            guest_cid,
            state,
            owed: Owed {
                request: state == State::Requested,
                response: state == State::Open,
                ..Owed::default()
            },
            buffer: VecDeque::new(),
            received: 0,
            forwarded: 0,
            advertised: 0,
            sent: 0,
            peer_window: 0,
            peer_forwarded: 0,
            readable: false,
            guest: 0,
            host: 0,
            outcome: None,
            deadline: None,
            registered: None,
            queued: false,
        }
    }

    /// The host's socket.
    pub fn stream(&self) -> &OwnedFd {
        &self.stream
    }

    /// How much the guest can take now. A guest that says it has forwarded more than it got has no room.
    fn credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_window.saturating_sub(in_flight)
    }

    /// The guest's receiver is there and has room, and the host may have something for it.
    fn can_send(&self) -> bool {
        self.state == State::Open
            && self.readable
            && self.host & SHUTDOWN_SEND == 0
            && self.guest & SHUTDOWN_RCV == 0
            && self.credit() > 0
    }

    /// There is something to tell the guest.
    pub fn has_packets(&self) -> bool {
        match self.state {
            State::Reset => true,
            State::Requested | State::Open => self.owed != Owed::default() || self.can_send(),
            State::Draining | State::Done => false,
        }
    }

    /// What the poller should wait for; `None`: nothing at all, for a socket that was hung up is always ready.
    pub fn interest(&self) -> Option<Ready> {
        let write = !self.buffer.is_empty() && matches!(self.state, State::Open | State::Draining);
        let open = self.state == State::Open;
        let ended = self.host & SHUTDOWN_SEND != 0;
        let read = open && !self.readable && !ended && self.guest & SHUTDOWN_RCV == 0 && self.credit() > 0;
        // After its half of the end, the other half is a hang-up, which is told without being asked for.
        let hang_up = open && ended && self.host & SHUTDOWN_RCV == 0;
        (read || write || hang_up).then_some(Ready { read, write })
    }

    /// What the guest says of its room in any packet.
    pub fn credit_from(&mut self, header: &Header) {
        self.peer_window = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
    }

    /// The guest is told that this is over.
    pub fn reset(&mut self) {
        self.state = State::Reset;
        self.end(io::ErrorKind::ConnectionReset);
    }

    fn end(&mut self, kind: io::ErrorKind) {
        self.deadline = None;
        self.owed = Owed::default();
        self.buffer = VecDeque::new();
        if let Some(outcome) = self.outcome.take() {
            outcome(Err(kind.into()));
        }
    }

    /// A packet of the guest for this connection.
    pub fn receive(&mut self, header: &Header, payload: &mut Buffers) {
        self.credit_from(header);
        match (header.op, self.state) {
            (OP_RST, State::Requested) => {
                self.end(io::ErrorKind::ConnectionRefused);
                self.state = State::Done;
            }
            (OP_RST, State::Open) if !self.buffer.is_empty() => {
                // It has waited long enough for its last words to be read; they still will be.
                self.owed = Owed::default();
                self.deadline = None;
                self.state = State::Draining;
                self.guest = SHUTDOWN_BOTH;
            }
            (OP_RST, _) => {
                self.end(io::ErrorKind::ConnectionReset);
                self.state = State::Done;
            }
            (OP_RESPONSE, State::Requested) => {
                self.state = State::Open;
                self.deadline = None;
                if let Some(outcome) = self.outcome.take() {
                    outcome(Ok(()));
                }
            }
            (OP_RW, State::Open) => self.data(header.len, payload),
            (OP_SHUTDOWN, State::Open) => {
                self.guest |= header.flags & SHUTDOWN_BOTH;
                if self.guest & SHUTDOWN_RCV != 0 {
                    // Whoever writes to the socket learns that nobody reads.
                    let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Read);
                }
                self.settle();
            }
            (OP_CREDIT_UPDATE, State::Open) => {
                self.owed.ask = false;
            }
            (OP_CREDIT_REQUEST, State::Open) => self.owed.credit = true,
            _ => self.reset(),
        }
    }

    fn data(&mut self, length: u32, payload: &mut Buffers) {
        let Some(mut payload) = payload.split_front(length as usize) else {
            return self.reset();
        };
        let waiting = self.received.wrapping_sub(self.forwarded);
        // More than it has credit for, or after it had said that nothing more comes.
        if length > WINDOW - waiting.min(WINDOW) || self.guest & SHUTDOWN_SEND != 0 {
            return self.reset();
        }
        self.received = self.received.wrapping_add(length);
        if self.host & SHUTDOWN_RCV != 0 {
            // It was on its way when the host's reader went.
            return self.forward(length);
        }
        if self.buffer.is_empty() {
            match send(&self.stream, &payload.iovecs()) {
                Ok(taken) => {
                    payload.skip(taken);
                    // At most `length`.
                    self.forward(taken as u32);
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => {
                    self.forward(length);
                    return self.reader_gone();
                }
            }
        }
        let mut rest = vec![0; payload.left()];
        payload.read(&mut rest);
        self.buffer.extend(&rest);
    }

    /// The host's reader has taken bytes.
    fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
        if self.forwarded.wrapping_sub(self.advertised) >= WINDOW / 4 {
            self.owed.credit = true;
        }
    }

    /// Nobody reads the other end of the stream any more.
    fn reader_gone(&mut self) {
        let rest = self.buffer.len();
        self.buffer = VecDeque::new();
        // At most a window.
        self.forward(rest as u32);
        self.host |= SHUTDOWN_RCV;
        self.owed.shutdown = true;
        self.settle();
    }

    /// What follows from who will do no more of what.
    fn settle(&mut self) {
        if !self.buffer.is_empty() {
            return;
        }
        if self.state == State::Draining {
            self.state = State::Done;
            return;
        }
        if self.guest & SHUTDOWN_SEND != 0 {
            // All it said was delivered: the reader gets its end of file.
            let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write);
        }
        if self.guest == SHUTDOWN_BOTH {
            self.reset();
        }
    }

    /// The poller says that the stream is ready.
    pub fn ready(&mut self, ready: Ready, now: Instant) {
        if ready.write && !self.buffer.is_empty() {
            self.flush();
        }
        if !ready.read || self.state != State::Open {
            return;
        }
        if self.host & SHUTDOWN_SEND == 0 {
            self.readable = true;
        } else if self.host & SHUTDOWN_RCV == 0 && is_hung_up(&self.stream) {
            self.host_ended(now);
        }
    }

    fn flush(&mut self) {
        while !self.buffer.is_empty() {
            let (front, back) = self.buffer.as_slices();
            let vectors = [front, back].map(|part| libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
            match send(&self.stream, &vectors) {
                Ok(taken) => {
                    self.buffer.drain(..taken.min(self.buffer.len()));
                    // At most a window.
                    self.forward(taken as u32);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => return self.reader_gone(),
            }
        }
        self.settle();
    }

    /// The host's program has closed its end, or half of it.
    fn host_ended(&mut self, now: Instant) {
        self.readable = false;
        self.host |= SHUTDOWN_SEND;
        if self.guest & SHUTDOWN_SEND != 0 || is_hung_up(&self.stream) {
            self.host = SHUTDOWN_BOTH;
            // The guest answers with RST when it has read all.
            self.deadline = Some(now + super::LINGER);
        }
        self.owed.shutdown = true;
    }

    /// Writes the next packet for the guest. How many bytes of payload it has; `None` when there was nothing to say after all.
    pub fn transmit(&mut self, head: &mut Buffers, payload: &Buffers, now: Instant) -> Option<usize> {
        let mut flags = 0;
        let mut length = 0;
        let op = if self.state == State::Reset {
            self.state = State::Done;
            OP_RST
        } else if std::mem::take(&mut self.owed.request) {
            OP_REQUEST
        } else if std::mem::take(&mut self.owed.response) {
            OP_RESPONSE
        } else if self.can_send() {
            let limit = payload.left().min(self.credit() as usize);
            match receive(&self.stream, payload, limit) {
                Ok(0) if limit > 0 => {
                    self.host_ended(now);
                    return self.transmit(head, payload, now);
                }
                Ok(read) => {
                    length = read;
                    self.sent = self.sent.wrapping_add(read as u32);
                    // The next packet must ask if this one leaves no room.
                    self.owed.ask = self.credit() == 0;
                    OP_RW
                }
                Err(Errno::AGAIN | Errno::INTR) => {
                    self.readable = false;
                    return self.has_packets().then(|| self.transmit(head, payload, now))?;
                }
                Err(_) => {
                    self.host_ended(now);
                    return self.transmit(head, payload, now);
                }
            }
        } else if std::mem::take(&mut self.owed.shutdown) {
            flags = self.host;
            OP_SHUTDOWN
        } else if std::mem::take(&mut self.owed.credit) {
            OP_CREDIT_UPDATE
        } else if std::mem::take(&mut self.owed.ask) {
            OP_CREDIT_REQUEST
        } else {
            return None;
        };
        self.advertised = self.forwarded;
        if op != OP_CREDIT_REQUEST {
            self.owed.credit = false;
        }
        let header = Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.ports.0,
            dst_port: self.ports.1,
            // At most the guest's window.
            len: length as u32,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: WINDOW,
            fwd_cnt: self.forwarded,
        };
        head.write(vm_memory::ByteValued::as_slice(&header));
        Some(length)
    }
}

/// Sends without waiting and without SIGPIPE.
fn send(stream: &OwnedFd, vectors: &[libc::iovec]) -> Result<usize, Errno> {
    // SAFETY: zeroes are an empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = vectors.len().min(1024);
    // SAFETY: the vectors are readable memory: the guest's, kept by its buffers, or ours.
    let sent = unsafe {
        libc::sendmsg(
            stream.as_raw_fd(),
            &message,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| last_error())
}

/// Reads up to `limit` bytes into the guest's buffers without waiting.
fn receive(stream: &OwnedFd, into: &Buffers, limit: usize) -> Result<usize, Errno> {
    let mut vectors = into.iovecs();
    vectors.truncate(1024);
    let mut left = limit;
    for vector in &mut vectors {
        vector.iov_len = vector.iov_len.min(left);
        left -= vector.iov_len;
    }
    // SAFETY: as in `send`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    // SAFETY: the vectors are the guest's memory, kept by `into`.
    let read = unsafe { libc::recvmsg(stream.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
    usize::try_from(read).map_err(|_| last_error())
}

/// Both directions of a socket are closed.
fn is_hung_up(stream: &impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1))
        && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}
