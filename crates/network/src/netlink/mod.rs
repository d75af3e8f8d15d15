//! Netlink, spoken directly: one socket, many messages in one `sendmsg`, one answer.
//!
//! The kernel handles rtnetlink and nfnetlink requests inside `sendmsg`, so every answer is already queued when the call
//! returns: nothing here waits, and a missing answer is an error instead of a hang. Only the last message of a batch asks
//! to be acknowledged; failures of earlier ones are reported by the kernel unasked, before it.

pub(crate) mod message;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::{Error, Result};
use message::{AttrIter, Batch, HEADER, text};

const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The kernel's largest datagram of a listing.
const RECV_BUFFER: usize = 32 * 1024;

/// Which netlink family a socket talks to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Family {
    Route,
    Netfilter,
    SockDiag,
}

/// A netlink socket. It stays in the network namespace of the thread that opened it, whoever uses it later.
pub(crate) struct Socket {
    fd: OwnedFd,
    seq: u32,
    recv: Vec<u8>,
}

/// A message of a batch that the kernel refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// What the refused message was to do.
    pub(crate) what: &'static str,
    pub(crate) errno: Errno,
    /// The kernel's own words, if it had any.
    pub(crate) words: Option<String>,
}

impl Refusal {
    /// With the object that the batch was about: "cannot {what} {object}: …".
    pub(crate) fn on(self, object: impl fmt::Display) -> Error {
        let what = match &self.words {
            Some(words) => format!(
                "{} {object} (the kernel says: {})",
                self.what,
                words.trim_end_matches('.')
            ),
            None => format!("{} {object}", self.what),
        };
        Error::io(what, io::Error::from(self.errno))
    }
}

impl Socket {
    pub(crate) fn open(family: Family) -> Result<Self> {
        let protocol = match family {
            // NETLINK_ROUTE is protocol number zero.
            Family::Route => None,
            Family::Netfilter => Some(rustix::net::netlink::NETFILTER),
            Family::SockDiag => Some(rustix::net::netlink::SOCK_DIAG),
        };
        let open = || -> rustix::io::Result<OwnedFd> {
            let fd = rustix::net::socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                protocol,
            )?;
            rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
            Ok(fd)
        };
        let fd = open().map_err(|e| Error::io("open a netlink socket", e))?;
        // Both only make answers better: an old kernel without them still works.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            set_option(&fd, libc::SOL_NETLINK, option, 1);
        }
        Ok(Self {
            fd,
            seq: 0,
            recv: Vec::new(),
        })
    }

    /// Sends the batch and waits for its outcome; the first refusal counts.
    pub(crate) fn request(&mut self, batch: Batch) -> Result<(), Refusal> {
        self.exchange(batch, |_, _| ())
    }

    /// Like `request`, and hands over every message that comes back before the acknowledgement.
    pub(crate) fn exchange(
        &mut self,
        mut batch: Batch,
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), Refusal> {
        let Some(last) = batch.steps.len().checked_sub(1) else {
            return Ok(());
        };
        batch.set_flag(last, libc::NLM_F_ACK as u16);
        self.send_and_collect(&mut batch, last, &mut each)
    }

    /// An nfnetlink transaction: all of it or nothing. The batch must begin and end with its markers.
    pub(crate) fn transaction(&mut self, mut batch: Batch) -> Result<(), Refusal> {
        let Some(last) = batch.steps.len().checked_sub(2).filter(|&n| n > 0) else {
            return Ok(());
        };
        batch.set_flag(last, libc::NLM_F_ACK as u16);
        self.send_and_collect(&mut batch, last, &mut |_, _| ())
    }

    fn send_and_collect(
        &mut self,
        batch: &mut Batch,
        last: usize,
        each: &mut dyn FnMut(u16, &[u8]),
    ) -> Result<(), Refusal> {
        let first_seq = self.send(batch)?;
        let mut outcome: Result<(), Refusal> = Ok(());
        loop {
            let done = self.receive(batch, |message| {
                let Some(step) =
                    Some(message.seq.wrapping_sub(first_seq) as usize).filter(|&s| s < batch.steps.len())
                else {
                    return Ok(false);
                };
                match message.outcome() {
                    None => {
                        each(message.kind, message.payload);
                        Ok(false)
                    }
                    Some((errno, words)) => {
                        if let Some(errno) = errno
                            && outcome.is_ok()
                        {
                            outcome = Err(Refusal {
                                what: batch.steps[step].what,
                                errno,
                                words,
                            });
                        }
                        // A refused transaction marker is the only answer to the whole transaction.
                        Ok(step == last || (step == 0 && outcome.is_err()))
                    }
                }
            });
            match done {
                Ok(true) => return outcome,
                Ok(false) => {}
                Err(refusal) => return outcome.and(Err(refusal)),
            }
        }
    }

    /// Asks for a listing: the payload of every entry. Asks again when the table changed meanwhile.
    pub(crate) fn dump(&mut self, build: impl Fn(&mut Batch)) -> Result<Vec<Vec<u8>>, Refusal> {
        const ATTEMPTS: usize = 8;
        let mut entries = Vec::new();
        for attempt in 1..=ATTEMPTS {
            entries.clear();
            let mut batch = Batch::new();
            build(&mut batch);
            batch.set_flag(0, libc::NLM_F_DUMP as u16);
            let seq = self.send(&mut batch)?;
            let mut interrupted = false;
            let mut outcome = None;
            while !self.receive(&batch, |message| {
                if message.seq != seq {
                    return Ok(false);
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                let kind = i32::from(message.kind);
                if kind == libc::NLMSG_DONE || kind == libc::NLMSG_ERROR {
                    let code = message
                        .payload
                        .first_chunk()
                        .map_or(0, |b| i32::from_ne_bytes(*b));
                    outcome =
                        (code < 0).then(|| Errno::from_raw_os_error(code.saturating_neg().clamp(1, 4095)));
                    return Ok(true);
                }
                entries.push(message.payload.to_vec());
                Ok(false)
            })? {}
            match outcome {
                Some(errno) if errno != Errno::INTR || attempt == ATTEMPTS => {
                    return Err(Refusal {
                        what: batch.steps[0].what,
                        errno,
                        words: None,
                    });
                }
                None if !interrupted => break,
                _ => {}
            }
        }
        Ok(entries)
    }

    /// Numbers the messages and sends them; returns the number of the first.
    fn send(&mut self, batch: &mut Batch) -> Result<u32, Refusal> {
        let first = self.seq.wrapping_add(1);
        for (i, step) in batch.steps.iter().enumerate() {
            self.seq = first.wrapping_add(i as u32);
            batch.buf[step.at + 8..step.at + 12].copy_from_slice(&self.seq.to_ne_bytes());
        }
        // The kernel wants the whole batch in one piece; the default send buffer holds some 200 KiB.
        if batch.buf.len() > 128 * 1024 {
            set_option(
                &self.fd,
                libc::SOL_SOCKET,
                libc::SO_SNDBUFFORCE,
                i32::try_from(batch.buf.len()).unwrap_or(i32::MAX),
            );
        }
        let refused = |errno| Refusal {
            what: batch.steps[0].what,
            errno,
            words: None,
        };
        match rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, &batch.buf, SendFlags::empty())) {
            Ok(n) if n == batch.buf.len() => Ok(first),
            Ok(_) => Err(refused(Errno::MSGSIZE)),
            Err(errno) => Err(refused(errno)),
        }
    }

    /// One datagram of answers; true when `each` said that it was the last.
    fn receive(
        &mut self,
        batch: &Batch,
        mut each: impl FnMut(Message<'_>) -> Result<bool, Refusal>,
    ) -> Result<bool, Refusal> {
        let what = batch.steps.first().map_or("talk to the kernel", |s| s.what);
        let failed = |errno| Refusal {
            what,
            errno,
            words: None,
        };
        self.recv.resize(RECV_BUFFER, 0);
        let (_, n) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(
                &self.fd,
                self.recv.as_mut_slice(),
                RecvFlags::DONTWAIT | RecvFlags::TRUNC,
            )
        })
        .map_err(|errno| {
            failed(if errno == Errno::AGAIN {
                Errno::PROTO
            } else {
                errno
            })
        })?;
        let mut rest = self.recv.get(..n).ok_or_else(|| failed(Errno::MSGSIZE))?;
        while let Some(message) = Message::split(&mut rest) {
            if each(message)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    seq: u32,
    payload: &'a [u8],
}

impl<'a> Message<'a> {
    fn split(rest: &mut &'a [u8]) -> Option<Self> {
        let head = rest.first_chunk::<HEADER>()?;
        let len = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let payload = rest.get(HEADER..len)?;
        let message = Self {
            kind: u16::from_ne_bytes([head[4], head[5]]),
            flags: u16::from_ne_bytes([head[6], head[7]]),
            seq: u32::from_ne_bytes([head[8], head[9], head[10], head[11]]),
            payload,
        };
        *rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }

    /// For an acknowledgement: the error, if it is one, and the kernel's words.
    fn outcome(&self) -> Option<(Option<Errno>, Option<String>)> {
        if i32::from(self.kind) != libc::NLMSG_ERROR {
            return None;
        }
        let code = self
            .payload
            .first_chunk()
            .map_or(-libc::EPROTO, |b| i32::from_ne_bytes(*b));
        if code == 0 {
            return Some((None, None));
        }
        let mut words = None;
        if self.flags & NLM_F_ACK_TLVS != 0 {
            let echoed = match self.payload.get(4..8).and_then(|b| b.first_chunk()) {
                Some(len) if self.flags & NLM_F_CAPPED == 0 => {
                    (u32::from_ne_bytes(*len) as usize).next_multiple_of(4)
                }
                _ => HEADER,
            };
            words = self
                .payload
                .get(4 + echoed..)
                .and_then(|tail| AttrIter(tail).find(NLMSGERR_ATTR_MSG))
                .map(text);
        }
        Some((
            Some(Errno::from_raw_os_error(code.saturating_neg().clamp(1, 4095))),
            words,
        ))
    }
}

fn set_option(fd: &OwnedFd, level: i32, option: i32, value: i32) {
    // SAFETY: the option value is a live i32 and its size is passed along; the descriptor is open for the whole call.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        );
    }
}
