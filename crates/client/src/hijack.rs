//! A connection that became a raw stream: attach and exec.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};

use crate::connection::Stream;

/// Both directions of a raw stream.
#[derive(Debug)]
pub struct Hijacked {
    stream: Stream,
    /// What came in behind the headers.
    rest: Vec<u8>,
    multiplexed: Option<bool>,
}

/// The incoming direction of a raw stream.
#[derive(Debug)]
pub struct HijackedReader {
    stream: Stream,
    rest: io::Cursor<Vec<u8>>,
}

impl Hijacked {
    pub(crate) fn new(stream: Stream, rest: Vec<u8>, multiplexed: Option<bool>) -> Self {
        Self {
            stream,
            rest,
            multiplexed,
        }
    }

    /// Whether the daemon says that output and errors come in frames; `None` when it does not say.
    pub fn multiplexed(&self) -> Option<bool> {
        self.multiplexed
    }

    /// The two directions, for two threads or one poll loop. Dropping both closes the connection.
    pub fn split(self) -> io::Result<(HijackedReader, Stream)> {
        let writer = self.stream.try_clone()?;
        Ok((
            HijackedReader {
                stream: self.stream,
                rest: io::Cursor::new(self.rest),
            },
            writer,
        ))
    }

    /// The stream, and what was read from it ahead.
    pub(crate) fn into_parts(self) -> (Stream, Vec<u8>) {
        (self.stream, self.rest)
    }

    /// Tell the other side that nothing more will be written.
    pub fn close_write(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }
}

impl HijackedReader {
    /// Whether bytes are at hand that a poll of the descriptor would not show.
    pub fn has_buffered(&self) -> bool {
        (self.rest.position() as usize) < self.rest.get_ref().len()
    }
}

impl AsFd for HijackedReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Read for HijackedReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.has_buffered() {
            return self.rest.read(out);
        }
        self.stream.read(out)
    }
}

impl Write for Hijacked {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.stream.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
