//! One request to a plug-in: `POST /METHOD` with JSON over HTTP/1.1, on a connection of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ACCEPT, HOST};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// What plug-ins answer with.
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";
/// The longest answer that is read: a list of some ten thousand volumes.
const MAX_ANSWER: usize = 4 << 20;

/// Where a plug-in listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The request was not sent: another attempt does no harm.
    NotReached(String),
    /// It is not known what the plug-in did.
    Failed(String),
}

/// Sends a request and waits for the answer, for as long as the caller does.
pub(super) async fn call(address: &Address, method: &str, body: Vec<u8>) -> Result<Bytes, Fault> {
    let not_reached = |error: std::io::Error| Fault::NotReached(error.to_string());
    match address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(not_reached)?;
            over(stream, method, body).await
        }
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await.map_err(not_reached)?;
            over(stream, method, body).await
        }
    }
}

/// Ends the connection with the call, however that ends.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: &str,
    body: Vec<u8>,
) -> Result<Bytes, Fault> {
    let failed = |error: &dyn std::fmt::Display| Fault::Failed(error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    let _driver = Driver(tokio::spawn(async move {
        // Its end is that of the request.
        let _ = connection.await;
    }));
    let request = hyper::Request::post(format!("/{method}"))
        .header(HOST, "plugin.moby.localhost")
        .header(ACCEPT, MEDIA_TYPE)
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| failed(&error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| failed(&error))?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|error| failed(&error))?
        .to_bytes();
    if status == hyper::StatusCode::OK {
        return Ok(answer);
    }
    Err(Fault::Failed(
        match serde_json::from_slice::<super::Reply>(&answer) {
            Ok(super::Reply { err: Some(err), .. }) if !err.is_empty() => super::said(&err),
            _ => format!("{status}: {}", super::said(&String::from_utf8_lossy(&answer))),
        },
    ))
}
