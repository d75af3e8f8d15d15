//! Bytes from one descriptor to another, as fast as the slower one takes them.

use alloc::vec::Vec;

use crate::os::{self, Errno, Fd, POLLIN, POLLOUT, PollFd};

/// How much is moved at once; what cannot be written stays with the pump, and nothing more is read until it is gone.
pub const PIECE: usize = 64 << 10;

pub struct Pump {
    from: Fd,
    to: Fd,
    /// Read and not yet written, from `at` on.
    waiting: Vec<u8>,
    at: usize,
    /// Both are sockets: the end of input is told to the other side, which may still answer.
    relays: bool,
    /// `to` is not connected yet.
    connecting: bool,
}

impl Pump {
    /// Both descriptors are made not to block. `first` was read already.
    pub fn new(from: Fd, to: Fd, first: Vec<u8>) -> Self {
        let _ = os::set_nonblocking(&from);
        let _ = os::set_nonblocking(&to);
        Self {
            from,
            to,
            waiting: first,
            at: 0,
            relays: false,
            connecting: false,
        }
    }

    /// One direction of a relayed connection; `connecting` towards the side that is being called.
    pub fn relay(from: Fd, to: Fd, connecting: bool) -> Self {
        Self {
            relays: true,
            connecting,
            ..Self::new(from, to, Vec::new())
        }
    }

    /// What it waits for.
    pub fn wants(&self) -> PollFd {
        let (fd, events) = if self.waiting.is_empty() && !self.connecting {
            (self.from.raw(), POLLIN)
        } else {
            (self.to.raw(), POLLOUT)
        };
        PollFd {
            fd,
            events,
            happened: 0,
        }
    }

    /// Moves what can be moved; false when there is nothing more to come or nobody to take it.
    pub fn work(&mut self, scratch: &mut [u8]) -> bool {
        if self.connecting {
            // Or not connected for good, which the first write will say.
            self.connecting = false;
            return true;
        }
        if !self.waiting.is_empty() {
            let rest = self.waiting.get(self.at..).unwrap_or_default();
            match os::write(&self.to, rest) {
                Ok(count) => self.at += count,
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
            if self.at >= self.waiting.len() {
                self.waiting = Vec::new();
                self.at = 0;
            }
            return true;
        }
        // A terminal whose last program has gone reports an error instead of an end.
        let count = match os::read(&self.from, scratch) {
            Ok(0) => {
                if self.relays {
                    os::end_writing(&self.to);
                }
                return false;
            }
            Ok(count) => count,
            Err(Errno::AGAIN) => return true,
            Err(_) => return false,
        };
        let bytes = scratch.get(..count).unwrap_or_default();
        let written = match os::write(&self.to, bytes) {
            Ok(written) => written,
            Err(Errno::AGAIN) => 0,
            Err(_) => return false,
        };
        if let Some(rest) = bytes.get(written..)
            && !rest.is_empty()
        {
            self.waiting = rest.to_vec();
        }
        true
    }
}
