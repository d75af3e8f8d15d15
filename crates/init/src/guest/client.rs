//! The host's side: requests over a stream that leads to the guest's port [`PORT`](super::protocol::PORT).
//!
//! A guest is hostile: a reply is bounded by [`MAX_REPLY`], and whatever is not a reply is an error of this one connection.
//! Whoever must not wait uses [`frame`] and [`Replies`] with its own poller instead of [`call`].

use std::fmt;
use std::io::{self, Read, Write};

use super::protocol::{Parsed, Reply, Request, frame, parse};

/// The largest reply that is taken.
pub const MAX_REPLY: usize = 1 << 20;

/// Why a guest did not do what it was asked.
#[derive(Debug)]
pub enum Error {
    /// The connection broke, or ended before the reply.
    Connection(io::Error),
    /// What came was no reply.
    Garbage,
    /// The guest said no.
    Refused {
        /// What kind of failure.
        kind: super::protocol::Failure,
        /// The guest's own sentence, without control characters.
        message: String,
    },
    /// A reply, but to another question.
    Unexpected,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the guest closed the connection before it answered")
            }
            Self::Connection(_) => f.write_str("the connection to the guest broke"),
            Self::Garbage => {
                f.write_str("the guest's answer cannot be understood: its init is not the one it was given")
            }
            Self::Refused { message, .. } => write!(f, "in the guest: {message}"),
            Self::Unexpected => f.write_str("the guest answered another question"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connection(error) if error.kind() != io::ErrorKind::UnexpectedEof => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

/// Sends a request.
///
/// # Errors
/// When the connection breaks.
pub fn send(stream: &mut impl Write, request: &Request) -> Result<(), Error> {
    Ok(stream.write_all(&frame(request))?)
}

/// Waits for the next reply; a refusal is an error. Nothing beyond the reply is taken from `stream`.
///
/// # Errors
/// When the connection ends or breaks, the guest refuses, or what it sends is no reply.
pub fn receive(stream: &mut impl Read) -> Result<Reply, Error> {
    let mut bytes = vec![0; 4];
    stream.read_exact(&mut bytes)?;
    let length = bytes
        .first_chunk()
        .map_or(0, |length| u32::from_le_bytes(*length)) as usize;
    if length > MAX_REPLY {
        return Err(Error::Garbage);
    }
    // As it comes: a length alone reserves nothing.
    if stream.take(length as u64).read_to_end(&mut bytes)? < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    match parse(&bytes, MAX_REPLY) {
        Parsed::Message(reply, _) => accept(reply),
        _ => Err(Error::Garbage),
    }
}

/// Sends a request and waits for its first reply.
///
/// # Errors
/// As [`receive`].
pub fn call(stream: &mut (impl Read + Write), request: &Request) -> Result<Reply, Error> {
    send(stream, request)?;
    receive(stream)
}

/// Sends a request that is answered by "done".
///
/// # Errors
/// As [`receive`].
pub fn order(stream: &mut (impl Read + Write), request: &Request) -> Result<(), Error> {
    match call(stream, request)? {
        Reply::Done => Ok(()),
        _ => Err(Error::Unexpected),
    }
}

/// Replies from bytes as they arrive, for a connection that must not block.
#[derive(Debug, Default)]
pub struct Replies {
    bytes: Vec<u8>,
}

impl Replies {
    /// Takes what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next reply, if it is complete. Take all of them after each [`push`](Self::push): what is kept is then less than one
    /// reply and one push.
    ///
    /// # Errors
    /// When the guest refuses, or what it sends is no reply.
    pub fn pull(&mut self) -> Result<Option<Reply>, Error> {
        match parse(&self.bytes, MAX_REPLY) {
            Parsed::Partial => Ok(None),
            Parsed::Garbage => Err(Error::Garbage),
            Parsed::Message(reply, length) => {
                self.bytes.drain(..length);
                accept(reply).map(Some)
            }
        }
    }

    /// What came after the last reply: a stream's first bytes.
    pub fn into_rest(self) -> Vec<u8> {
        self.bytes
    }
}

fn accept(reply: Reply) -> Result<Reply, Error> {
    match reply {
        Reply::Failed { kind, message } => Err(Error::Refused {
            kind,
            // It ends in terminals and logs of the host.
            message: message
                .chars()
                .take(2000)
                .map(|c| if c.is_control() { '\u{fffd}' } else { c })
                .collect(),
        }),
        reply => Ok(reply),
    }
}
