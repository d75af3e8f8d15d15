//! Requests and responses.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};

use serde::Serialize;
use serde::de::DeserializeOwned;
use vessel_api::ErrorResponse;

use crate::body::Body;
use crate::connection::{Connection, Head, Pool, Stream};
use crate::{Client, Error, Hijacked, Query, Result};

/// The largest answer that is held in memory.
const MAX_JSON: usize = 256 << 20;
/// The largest explanation of an error that is read.
const MAX_ERROR: usize = 1 << 20;
/// The size of the chunks in which a request's body is streamed.
const CHUNK: usize = 128 * 1024;

/// An HTTP method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`
    Head,
    /// `POST`
    Post,
    /// `PUT`
    Put,
    /// `DELETE`
    Delete,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }
}

/// A request that was sent and whose answer was not read yet: several may be under way at once, each on a
/// connection of its own.
#[derive(Debug)]
pub struct Pending {
    connection: Connection,
    head_only: bool,
    pool: Pool,
}

impl Pending {
    /// Waits for the status and the headers. A status of 400 or more is an error.
    pub fn response(self) -> Result<Response> {
        Response::receive(self.connection, self.head_only, self.pool)?.checked()
    }

    /// Waits for the connection to become a raw stream.
    pub fn hijacked(self) -> Result<Hijacked> {
        let mut connection = self.connection;
        let head = connection.read_head()?;
        if head.status == 101 || head.status == 200 {
            let kind = head.header("content-type").unwrap_or_default();
            let multiplexed = match kind {
                "application/vnd.docker.multiplexed-stream" => Some(true),
                // An older daemon says so of both kinds.
                _ => None,
            };
            let (stream, rest) = connection.into_parts();
            return Ok(Hijacked::new(stream, rest, multiplexed));
        }
        let body = Body::new(connection, &head, false, self.pool)?;
        let refused = Response {
            head,
            body,
            upload: None,
        }
        .checked();
        Err(match refused {
            Err(error) => error,
            Ok(response) => Error::Protocol(format!("status {} instead of a raw stream", response.status())),
        })
    }
}

/// An answer: status, headers, and a body that is still to be read.
#[derive(Debug)]
pub struct Response {
    head: Head,
    /// The body.
    pub body: Body,
    upload: Option<Upload>,
}

impl Response {
    pub(crate) fn receive(mut connection: Connection, head_only: bool, pool: Pool) -> Result<Self> {
        let head = connection.read_head()?;
        let body = Body::new(connection, &head, head_only, pool)?;
        Ok(Self {
            head,
            body,
            upload: None,
        })
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// A header, by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Turns a status of 400 or more into an error with the daemon's sentence.
    fn checked(mut self) -> Result<Self> {
        let status = self.head.status;
        if status < 400 {
            return Ok(self);
        }
        let body = self.body.read_all(MAX_ERROR).unwrap_or_default();
        let message = match serde_json::from_slice::<ErrorResponse>(&body) {
            Ok(error) if !error.message.is_empty() => error.message,
            _ => {
                let text = String::from_utf8_lossy(&body);
                match text.trim() {
                    "" => {
                        format!("the daemon answered with HTTP status {status} and no explanation")
                    }
                    text => text.chars().take(2000).collect(),
                }
            }
        };
        Err(Error::Api {
            status,
            message: message.trim_end().to_string(),
        })
    }

    /// Reads the body as JSON.
    pub fn json<T: DeserializeOwned>(mut self) -> Result<T> {
        let body = self.read_all()?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// Reads all of the body into memory.
    pub fn read_all(&mut self) -> Result<Vec<u8>> {
        let body = self.body.read_all(MAX_JSON);
        match self.upload.as_ref().and_then(Upload::error) {
            Some(error) => Err(error),
            None => body,
        }
    }

    /// Reads the body to its end and forgets it.
    pub fn discard(mut self) -> Result<()> {
        self.read_all().map(drop)
    }

    /// What went wrong while the request's body was sent, if anything did.
    pub fn upload_error(&self) -> Option<Error> {
        self.upload.as_ref().and_then(Upload::error)
    }
}

/// How a streamed request body fares, told by the thread that sends it.
#[derive(Debug, Clone, Default)]
struct Upload(Arc<Mutex<Option<io::Error>>>);

impl Upload {
    fn error(&self) -> Option<Error> {
        self.0.lock().ok()?.take().map(Error::Upload)
    }
}

impl Client {
    fn head(&self, method: Method, path: &str, query: &Query, extra: &[(&str, &str)]) -> Vec<u8> {
        let mut head = Vec::with_capacity(256);
        head.extend_from_slice(method.name().as_bytes());
        head.push(b' ');
        if let Some(version) = &self.version {
            head.extend_from_slice(b"/v");
            head.extend_from_slice(version.as_bytes());
        }
        head.extend_from_slice(path.as_bytes());
        query.append_to(&mut head);
        head.extend_from_slice(b" HTTP/1.1\r\nHost: ");
        head.extend_from_slice(self.host.header().as_bytes());
        head.extend_from_slice(b"\r\nUser-Agent: vessel\r\n");
        let own = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in own.chain(extra.iter().copied()) {
            head.extend_from_slice(name.as_bytes());
            head.extend_from_slice(b": ");
            // A line break would start another header.
            head.extend(value.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)));
            head.extend_from_slice(b"\r\n");
        }
        head
    }

    fn send(&self, bytes: &[u8], head_only: bool) -> Result<Pending> {
        let mut connection = Connection::take(&self.pool, &self.host)?;
        connection
            .stream
            .write_all(bytes)
            .map_err(Error::io("sending a request"))?;
        Ok(Pending {
            connection,
            head_only,
            pool: self.pool.clone(),
        })
    }

    /// Sends a request without a body and does not wait for the answer.
    pub fn begin(&self, method: Method, path: &str, query: &Query) -> Result<Pending> {
        let mut request = self.head(method, path, query, &[]);
        if matches!(method, Method::Post | Method::Put) {
            request.extend_from_slice(b"Content-Length: 0\r\n");
        }
        request.extend_from_slice(b"\r\n");
        self.send(&request, method == Method::Head)
    }

    /// Sends a request without a body that shows credentials for a registry.
    pub fn with_credentials(
        &self,
        method: Method,
        path: &str,
        query: &Query,
        credentials: &str,
    ) -> Result<Response> {
        let headers = [("X-Registry-Auth", credentials), ("Content-Length", "0")];
        let mut request = self.head(method, path, query, &headers);
        request.extend_from_slice(b"\r\n");
        self.send(&request, false)?.response()
    }

    /// Sends a request with a body of JSON and does not wait for the answer.
    pub fn begin_json(&self, path: &str, query: &Query, body: &impl Serialize) -> Result<Pending> {
        let body = serde_json::to_vec(body)?;
        let length = body.len().to_string();
        let headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", length.as_str()),
        ];
        let mut request = self.head(Method::Post, path, query, &headers);
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(&body);
        self.send(&request, false)
    }

    /// Sends a request that turns the connection into a raw stream, and does not wait for the answer.
    pub fn begin_hijack(&self, path: &str, query: &Query, body: Option<Vec<u8>>) -> Result<Pending> {
        let body = body.unwrap_or_default();
        let length = body.len().to_string();
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "tcp"),
            ("Content-Type", "application/json"),
            ("Content-Length", length.as_str()),
        ];
        let mut request = self.head(Method::Post, path, query, &headers);
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(&body);
        self.send(&request, false)
    }

    /// Sends a request that turns the connection into HTTP/2, and does not wait for the answer.
    pub fn begin_upgrade(&self, path: &str, headers: &[(&str, String)]) -> Result<Pending> {
        let mut all = vec![("Connection", "Upgrade"), ("Upgrade", "h2c")];
        all.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
        let mut request = self.head(Method::Post, path, &Query::new(), &all);
        request.extend_from_slice(b"\r\n");
        self.send(&request, false)
    }

    /// Sends a request and waits for the status and headers of its answer.
    pub fn request(&self, method: Method, path: &str, query: &Query) -> Result<Response> {
        self.begin(method, path, query)?.response()
    }

    /// `GET`, read as JSON.
    pub fn get<T: DeserializeOwned>(&self, path: &str, query: &Query) -> Result<T> {
        self.request(Method::Get, path, query)?.json()
    }

    /// `POST` without a body; the answer is forgotten.
    pub fn post(&self, path: &str, query: &Query) -> Result<()> {
        self.request(Method::Post, path, query)?.discard()
    }

    /// `POST` of JSON, answered with JSON.
    pub fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &Query,
        body: &impl Serialize,
    ) -> Result<T> {
        self.begin_json(path, query, body)?.response()?.json()
    }

    /// `DELETE`; the answer is forgotten.
    pub fn delete(&self, path: &str, query: &Query) -> Result<()> {
        self.request(Method::Delete, path, query)?.discard()
    }

    /// Sends a request whose body is read from `body` while the answer is awaited. When reading it fails
    /// the connection is cut, so that the daemon does not take a part for the whole.
    pub fn upload(
        &self,
        method: Method,
        path: &str,
        query: &Query,
        content_type: &str,
        body: impl Read + Send + 'static,
    ) -> Result<Response> {
        let headers = [("Content-Type", content_type), ("Transfer-Encoding", "chunked")];
        let mut request = self.head(method, path, query, &headers);
        request.extend_from_slice(b"\r\n");
        let pending = self.send(&request, false)?;
        let stream = pending
            .connection
            .stream
            .try_clone()
            .map_err(Error::io("sending a request"))?;
        let upload = Upload::default();
        let told = upload.clone();
        std::thread::spawn(move || {
            if let Err(error) = send_chunks(&stream, body) {
                if let Ok(mut slot) = told.0.lock() {
                    *slot = Some(error);
                }
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        let answer = Response::receive(pending.connection, false, pending.pool);
        let mut response = answer
            .and_then(Response::checked)
            // A broken connection is the consequence when reading the body failed.
            .map_err(|error| upload.error().unwrap_or(error))?;
        // The daemon may have answered before it read everything.
        response.body.do_not_reuse();
        response.upload = Some(upload);
        Ok(response)
    }
}

/// Sends `body` in chunks. Only a failure to read it is an error: when the daemon stops listening, its
/// answer tells why.
fn send_chunks(mut stream: impl Write, mut body: impl Read) -> io::Result<()> {
    const ROOM: usize = 8;
    let mut buffer = vec![0; ROOM + CHUNK + 2];
    loop {
        let count = match body.read(&mut buffer[ROOM..ROOM + CHUNK]) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if count == 0 {
            let _ = stream.write_all(b"0\r\n\r\n");
            return Ok(());
        }
        // Six digits and a line end: exactly the room before the data.
        buffer[..ROOM].copy_from_slice(format!("{count:06x}\r\n").as_bytes());
        buffer[ROOM + count..ROOM + count + 2].copy_from_slice(b"\r\n");
        if stream.write_all(&buffer[..ROOM + count + 2]).is_err() {
            return Ok(());
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).write(data),
            Stream::Tcp(stream) => (&*stream).write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
