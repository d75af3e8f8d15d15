//! One connection: a stream, and what was read from it ahead.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{Error, Host, Result};

/// The bytes of a response's status line and headers that are read before giving up.
const MAX_HEAD: usize = 64 * 1024;
/// The headers of a response that are read before giving up.
const MAX_HEADERS: usize = 64;
const READ_SIZE: usize = 16 * 1024;

/// Idle connections.
pub(crate) type Pool = Arc<Mutex<Vec<Connection>>>;

/// A Unix or TCP stream.
#[derive(Debug)]
pub enum Stream {
    /// A Unix socket.
    Unix(UnixStream),
    /// A TCP connection.
    Tcp(TcpStream),
}

impl Stream {
    /// Another handle of the same stream.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    /// Close one direction or both.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(data),
            Self::Tcp(stream) => stream.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The status line and the headers of a response.
#[derive(Debug, Default, Clone)]
pub(crate) struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub keep_alive: bool,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub stream: Stream,
    buffer: Vec<u8>,
    start: usize,
}

impl Connection {
    pub fn open(host: &Host) -> Result<Self> {
        let stream = match host {
            Host::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Host::Tls(address, tls) => tls.connect(address).map(Stream::Unix),
            Host::Tcp(address) => TcpStream::connect(address.as_str()).map(|stream| {
                // Requests are written in one piece; waiting for more would only delay them.
                let _ = stream.set_nodelay(true);
                Stream::Tcp(stream)
            }),
        };
        let stream = stream.map_err(|source| Error::Connect {
            host: host.to_string(),
            source,
        })?;
        Ok(Self::from_stream(stream))
    }

    pub fn from_stream(stream: Stream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// Takes an idle connection that is still good, or opens one.
    pub fn take(pool: &Pool, host: &Host) -> Result<Self> {
        loop {
            let idle = match pool.lock() {
                Ok(mut idle) => idle.pop(),
                Err(poisoned) => poisoned.into_inner().pop(),
            };
            match idle {
                Some(connection) if connection.is_quiet() => return Ok(connection),
                Some(_) => {}
                None => return Self::open(host),
            }
        }
    }

    /// Whether nothing came in while the connection was idle: neither bytes nor its end.
    fn is_quiet(&self) -> bool {
        if self.start < self.buffer.len() {
            return false;
        }
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        matches!(
            poll(
                &mut fds,
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 0
                })
            ),
            Ok(0)
        )
    }

    /// What was read ahead and not used.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    pub fn consume(&mut self, amount: usize) {
        self.start = (self.start + amount).min(self.buffer.len());
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
    }

    pub fn into_parts(self) -> (Stream, Vec<u8>) {
        let rest = self.buffer[self.start..].to_vec();
        (self.stream, rest)
    }

    /// Reads more into the buffer; 0 at the end.
    pub fn fill(&mut self) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let length = self.buffer.len();
        self.buffer.resize(length + READ_SIZE, 0);
        loop {
            match self.stream.read(&mut self.buffer[length..]) {
                Ok(count) => {
                    self.buffer.truncate(length + count);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.buffer.truncate(length);
                    return Err(error);
                }
            }
        }
    }

    /// Reads past the buffer when it is empty, so that large bodies are not copied twice.
    pub fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.buffered().is_empty() {
            if out.len() >= READ_SIZE {
                return self.stream.read(out);
            }
            self.fill()?;
        }
        let available = self.buffered();
        let count = available.len().min(out.len());
        out[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }

    /// Reads a line of at most `limit` bytes, without its end.
    pub fn read_line(&mut self, limit: usize) -> io::Result<String> {
        let mut searched = 0;
        loop {
            let available = self.buffered();
            if let Some(at) = available[searched..].iter().position(|byte| *byte == b'\n') {
                let end = searched + at;
                let line = String::from_utf8_lossy(available[..end].trim_ascii_end()).into_owned();
                self.consume(end + 1);
                return Ok(line);
            }
            searched = available.len();
            if searched > limit {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a line of the answer is too long",
                ));
            }
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads the status line and the headers, past interim answers.
    pub fn read_head(&mut self) -> Result<Head> {
        loop {
            if let Some((head, length)) = parse_head(self.buffered())? {
                self.consume(length);
                // 101 ends HTTP on this connection; the other 1xx only announce the real answer.
                if !(100..200).contains(&head.status) || head.status == 101 {
                    return Ok(head);
                }
                continue;
            }
            if self.buffered().len() > MAX_HEAD {
                return Err(Error::Protocol("its headers are longer than 64 KiB".into()));
            }
            if self.fill().map_err(Error::io("waiting for an answer"))? == 0 {
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon closed it");
                return Err(Error::Io {
                    doing: "waiting for an answer",
                    source,
                });
            }
        }
    }
}

/// Reads a head from the start of `bytes`, and how long it is; `None` when there is not all of it yet.
fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(Error::Protocol(error.to_string())),
    };
    let mut head = Head {
        status: response.code.unwrap_or_default(),
        keep_alive: response.version == Some(1),
        headers: Vec::with_capacity(response.headers.len()),
    };
    for header in response.headers.iter() {
        let value = String::from_utf8_lossy(header.value).into_owned();
        if header.name.eq_ignore_ascii_case("connection") {
            if value.eq_ignore_ascii_case("close") {
                head.keep_alive = false;
            } else if value.eq_ignore_ascii_case("keep-alive") {
                head.keep_alive = true;
            }
        }
        head.headers.push((header.name.to_string(), value));
    }
    Ok(Some((head, length)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn connection(bytes: &[u8]) -> Connection {
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(bytes).unwrap();
        Connection::from_stream(Stream::Unix(a))
    }

    #[test]
    fn interim_answers_are_skipped() {
        let mut c = connection(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\nrest");
        let head = c.read_head().unwrap();
        assert_eq!((head.status, head.header("a")), (200, Some("b")));
        assert_eq!(c.buffered(), b"rest");
    }

    #[test]
    fn a_switch_of_protocols_ends_the_head() {
        let mut c = connection(b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\n\x01\0\0");
        assert_eq!(c.read_head().unwrap().status, 101);
        assert_eq!(c.into_parts().1, b"\x01\0\0");
    }

    #[test]
    fn garbage_and_ends_are_errors() {
        assert!(matches!(
            connection(b"SSH-2.0-x\r\n").read_head(),
            Err(Error::Protocol(_))
        ));
        assert!(matches!(
            connection(b"HTTP/1.1 2").read_head(),
            Err(Error::Io { .. })
        ));
        let mut long = b"HTTP/1.1 200 OK\r\n".to_vec();
        long.extend(std::iter::repeat_n(b'a', MAX_HEAD + 10));
        assert!(matches!(connection(&long).read_head(), Err(Error::Protocol(_))));
    }

    proptest! {
        #[test]
        fn no_head_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = connection(&bytes).read_head();
            let mut prefixed = b"HTTP/1.1 200 OK\r\n".to_vec();
            prefixed.extend(&bytes);
            let _ = connection(&prefixed).read_head();
        }
    }
}
