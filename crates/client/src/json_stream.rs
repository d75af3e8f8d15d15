//! Answers that are JSON values one after the other: events, statistics, progress.

use std::io::{BufReader, Read};
use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use crate::{Error, Response, Result};

/// The longest value that is read.
const MAX_VALUE: usize = 16 << 20;

/// Values, as they come. Ends after the first error.
#[derive(Debug)]
pub struct JsonStream<T> {
    reader: BufReader<Response>,
    failed: bool,
    values: PhantomData<T>,
}

impl Read for Response {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.body.read(out)
    }
}

impl<T: DeserializeOwned> JsonStream<T> {
    pub(crate) fn new(response: Response) -> Self {
        Self {
            reader: BufReader::new(response),
            failed: false,
            values: PhantomData,
        }
    }

    /// The answer the values are in.
    pub fn response(&self) -> &Response {
        self.reader.get_ref()
    }
}

impl<T: DeserializeOwned> Iterator for JsonStream<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let bounded = self.reader.by_ref().take(MAX_VALUE as u64);
        // An object's end is known from its last byte, so nothing is read ahead of the next value.
        let mut values = serde_json::Deserializer::from_reader(bounded).into_iter();
        let value = values.next()?;
        self.failed = value.is_err();
        Some(value.map_err(|error| match error.io_error_kind() {
            Some(kind) => Error::Io {
                doing: "reading an answer",
                source: kind.into(),
            },
            None => Error::Json(error),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::{Connection, Pool, Stream};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn values_come_before_the_next_one_is_sent() {
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{\"a\":1}\r\n\r\n")
            .unwrap();
        let connection = Connection::from_stream(Stream::Unix(a));
        let response = Response::receive(connection, false, Pool::default()).unwrap();
        let mut values = JsonStream::<serde_json::Value>::new(response);
        assert_eq!(values.next().unwrap().unwrap()["a"], 1);
        b.write_all(b"e\r\n{\"a\":2}{\"a\":3}\r\n0\r\n\r\n").unwrap();
        assert_eq!(values.next().unwrap().unwrap()["a"], 2);
        assert_eq!(values.next().unwrap().unwrap()["a"], 3);
        assert!(values.next().is_none());
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"a\":1}{\"a\"")
            .unwrap();
        drop(b);
        let connection = Connection::from_stream(Stream::Unix(a));
        let response = Response::receive(connection, false, Pool::default()).unwrap();
        let mut values = JsonStream::<serde_json::Value>::new(response);
        assert!(values.next().unwrap().is_ok());
        assert!(values.next().unwrap().is_err());
        assert!(values.next().is_none());
    }
}
