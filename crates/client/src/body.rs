//! The body of a response: by length, in chunks, or to the end of the connection (RFC 9112, section 6).

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use crate::connection::{Connection, Head, Pool};
use crate::{Error, Result};

/// A chunk's size line, with extensions, and a trailer's line: what is read before giving up.
const MAX_LINE: usize = 4096;
const MAX_TRAILERS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(u64),
    /// What is left of the chunk; `first` until one was begun.
    Chunked {
        left: u64,
        first: bool,
    },
    UntilClose,
    Done,
}

/// A response's body, to be read to its end. Its connection is then reused; dropped earlier, it is closed.
#[derive(Debug)]
pub struct Body {
    connection: Option<Connection>,
    framing: Framing,
    keep_alive: bool,
    pool: Pool,
}

impl Body {
    pub(crate) fn new(connection: Connection, head: &Head, no_body: bool, pool: Pool) -> Result<Self> {
        let chunked = head.header("transfer-encoding").is_some_and(|value| {
            value
                .rsplit(',')
                .next()
                .is_some_and(|v| v.trim().eq_ignore_ascii_case("chunked"))
        });
        let framing = if no_body || head.status == 204 || head.status == 304 {
            Framing::Done
        } else if chunked {
            Framing::Chunked { left: 0, first: true }
        } else if let Some(length) = head.header("content-length") {
            match length.trim().parse() {
                Ok(length) => Framing::Length(length),
                Err(_) => return Err(Error::Protocol(format!("{length:?} is no content length"))),
            }
        } else {
            Framing::UntilClose
        };
        let mut body = Self {
            connection: Some(connection),
            framing,
            keep_alive: head.keep_alive,
            pool,
        };
        if matches!(framing, Framing::Done | Framing::Length(0)) {
            body.finish();
        }
        Ok(body)
    }

    /// Whether everything was read.
    pub fn is_finished(&self) -> bool {
        self.framing == Framing::Done
    }

    /// The connection, to poll for more; `None` when there is something to read already, or nothing more.
    pub fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        let connection = self.connection.as_ref()?;
        connection
            .buffered()
            .is_empty()
            .then(|| connection.stream.as_fd())
    }

    /// Close the connection at the end instead of keeping it.
    pub(crate) fn do_not_reuse(&mut self) {
        self.keep_alive = false;
    }

    fn finish(&mut self) {
        let until_close = self.framing == Framing::UntilClose;
        self.framing = Framing::Done;
        if let Some(connection) = self.connection.take()
            && self.keep_alive
            && !until_close
            && let Ok(mut idle) = self.pool.lock()
        {
            idle.push(connection);
        }
    }

    /// Reads all of it, at most `limit` bytes.
    pub fn read_all(&mut self, limit: usize) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let read = self.by_ref().take(limit as u64 + 1).read_to_end(&mut out);
        read.map_err(Error::io("reading an answer"))?;
        if out.len() > limit {
            return Err(Error::Protocol(format!("it is longer than {limit} bytes")));
        }
        Ok(out)
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Read for Body {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let Some(connection) = self.connection.as_mut() else {
            return Ok(0);
        };
        if let Framing::Chunked { left: 0, first } = self.framing {
            if !first && !connection.read_line(MAX_LINE)?.is_empty() {
                return Err(invalid("a chunk of the answer is longer than it said"));
            }
            let line = connection.read_line(MAX_LINE)?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(invalid("a chunk of the answer has no size"));
            }
            let left =
                u64::from_str_radix(digits, 16).map_err(|_| invalid("a chunk of the answer is too large"))?;
            if left == 0 {
                for _ in 0..MAX_TRAILERS {
                    if connection.read_line(MAX_LINE)?.is_empty() {
                        self.finish();
                        return Ok(0);
                    }
                }
                return Err(invalid("the answer has too many trailers"));
            }
            self.framing = Framing::Chunked { left, first: false };
        }
        let limit = match self.framing {
            Framing::Length(left) | Framing::Chunked { left, .. } => left,
            Framing::UntilClose => u64::MAX,
            Framing::Done => return Ok(0),
        };
        let want = usize::try_from(limit).unwrap_or(usize::MAX).min(out.len());
        let count = connection.read(&mut out[..want])?;
        match &mut self.framing {
            Framing::UntilClose if count == 0 => self.finish(),
            Framing::Length(_) | Framing::Chunked { .. } if count == 0 => {
                self.keep_alive = false;
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the daemon closed it in mid-answer",
                ));
            }
            Framing::Length(left) => {
                *left -= count as u64;
                if *left == 0 {
                    self.finish();
                }
            }
            Framing::Chunked { left, .. } => *left -= count as u64,
            Framing::UntilClose | Framing::Done => {}
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Stream;
    use crate::request::Response;
    use proptest::prelude::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn answer(bytes: &[u8]) -> (Result<Response>, Pool) {
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(bytes).unwrap();
        drop(b);
        let pool = Pool::default();
        let connection = Connection::from_stream(Stream::Unix(a));
        (Response::receive(connection, false, pool.clone()), pool)
    }

    fn text(bytes: &[u8]) -> Result<String> {
        let (response, _) = answer(bytes);
        Ok(String::from_utf8_lossy(&response?.body.read_all(1 << 20)?).into_owned())
    }

    #[test]
    fn framings() {
        assert_eq!(
            text(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd").unwrap(),
            "abc"
        );
        assert_eq!(text(b"HTTP/1.1 200 OK\r\n\r\nabcd").unwrap(), "abcd");
        assert_eq!(text(b"HTTP/1.1 204 No\r\n\r\n").unwrap(), "");
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: r\r\n\r\n";
        assert_eq!(text(chunked).unwrap(), "abcde");
    }

    #[test]
    fn a_finished_body_gives_its_connection_back() {
        let (response, pool) = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc");
        response.unwrap().body.read_all(10).unwrap();
        assert_eq!(pool.lock().unwrap().len(), 1);
        let (response, pool) =
            answer(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc");
        response.unwrap().body.read_all(10).unwrap();
        assert!(pool.lock().unwrap().is_empty());
        let (response, pool) = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc");
        drop(response);
        assert!(pool.lock().unwrap().is_empty());
    }

    #[test]
    fn cut_and_false_bodies_are_errors() {
        for wrong in [
            "Content-Length: 5\r\n\r\nabc",
            "Content-Length: x\r\n\r\nabc",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nabc",
            "Transfer-Encoding: chunked\r\n\r\n-5\r\nabc",
            "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc",
            "Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
        ] {
            assert!(
                text(format!("HTTP/1.1 200 OK\r\n{wrong}").as_bytes()).is_err(),
                "{wrong}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut all = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            all.extend(bytes);
            let _ = text(&all);
        }

        #[test]
        fn chunks_join(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..10)) {
            let mut all = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for part in &parts {
                all.extend(format!("{:x}\r\n", part.len()).bytes());
                all.extend(part);
                all.extend(b"\r\n");
            }
            all.extend(b"0\r\n\r\n");
            let (response, pool) = answer(&all);
            prop_assert_eq!(response.unwrap().body.read_all(1 << 20).unwrap(), parts.concat());
            prop_assert_eq!(pool.lock().unwrap().len(), 1);
        }
    }
}
