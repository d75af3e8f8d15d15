//! Speaking with shims.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use vessel_runtime::shim::protocol::{self, MAX_FRAME, Reply, Request};

use crate::error::Context;
use crate::{Error, Result, blocking};

/// Makes a blocking stream one of tokio's.
pub(crate) fn asynchronous(stream: std::os::unix::net::UnixStream) -> Result<UnixStream> {
    stream
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(stream))
        .context(|| "prepare a stream to the shim")
}

/// Connects to the shim in a directory. `None` when nobody is there.
pub(crate) async fn connect(directory: PathBuf) -> Result<Option<UnixStream>> {
    let stream = blocking(move || match vessel_runtime::shim::connect(&directory) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if nobody_listens(&error) => Ok(None),
        Err(error) => Err(Error::from(error)),
    });
    stream.await?.map(asynchronous).transpose()
}

/// Whether there is no socket, or one nobody listens on. Everything else, a lack of descriptors for one, tells nothing of
/// the shim.
fn nobody_listens(error: &vessel_runtime::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| {
        matches!(
            cause.kind(),
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
        )
    })
}

/// How long a shim may take to answer. It never waits for anything but an exec's program, and for that 10 s.
const ANSWER: Duration = Duration::from_secs(30);

/// Sends a request and receives its reply; the stream goes on as the protocol says.
pub(crate) async fn request(directory: PathBuf, request: &Request) -> Result<(Reply, UnixStream)> {
    match tokio::time::timeout(ANSWER, exchange(directory, request)).await {
        Ok(answered) => answered,
        Err(_) => Err(Error::system(format!(
            "the container's shim did not answer within {} s: is it stopped, or the machine overloaded?",
            ANSWER.as_secs()
        ))),
    }
}

async fn exchange(directory: PathBuf, request: &Request) -> Result<(Reply, UnixStream)> {
    let frame = protocol::encode(request)?;
    let Some(mut stream) = connect(directory).await? else {
        return Err(Error::conflict(
            "the container is not running: its shim does not answer",
        ));
    };
    let ended = || Error::conflict("the container ended before the request was answered");
    match stream.write_all(&frame).await {
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset
            ) =>
        {
            return Err(ended());
        }
        other => other.context(|| "send a request to the shim")?,
    }
    match receive(&mut stream).await? {
        Some(Reply::Failed(report)) => Err(report.into()),
        Some(reply) => Ok((reply, stream)),
        None => Err(ended()),
    }
}

/// Receives one message, and not a byte more; `None` at the end of the stream.
pub(crate) async fn receive<T: serde::de::DeserializeOwned>(stream: &mut UnixStream) -> Result<Option<T>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::UnexpectedEof
                    | std::io::ErrorKind::ConnectionReset
                    | std::io::ErrorKind::BrokenPipe
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error).context(|| "receive from the shim"),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(Error::system(format!(
            "a message of {length} bytes from the shim is over the limit"
        )));
    }
    let mut body = vec![0; length];
    match stream.read_exact(&mut body).await {
        Ok(_) => Ok(Some(protocol::decode(&body)?)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error).context(|| "receive from the shim"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_refused_connection_means_that_nobody_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let connected = |path: PathBuf| async move { connect(path).await.map(|stream| stream.is_some()) };
        assert!(!connected(at.join("missing")).await.unwrap());
        assert!(!connected(at.to_owned()).await.unwrap());
        let socket = at.join(protocol::SOCKET);
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(!connected(at.to_owned()).await.unwrap());
        std::fs::remove_file(&socket).unwrap();
        // What else the system may answer says nothing of the shim.
        std::os::unix::fs::symlink(protocol::SOCKET, &socket).unwrap();
        assert!(connected(at.to_owned()).await.is_err());
        std::fs::remove_file(&socket).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(connected(at.to_owned()).await.unwrap());
    }
}
