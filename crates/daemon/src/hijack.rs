//! Connections that leave HTTP behind: attach and exec.
//!
//! After a `101`, or after the head of an answer to a client that does not ask for an upgrade, the bytes go both ways between the client and the engine's stream, whose output is in Docker's
//! framing already. The client's half-close is the end of input; the end of output closes the client's
//! connection, but not over input that nobody took: see [`linger`]. Bytes pass through one buffer per thread, so an idle
//! connection owns none.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use vessel_engine::{Attached, LogStream};

use crate::body::Body;
use crate::conn::{Conn, RawConn, hung_up};
use crate::detach::Watcher;
use crate::error::ApiError;
use crate::response::{self, Answer};
use crate::takeover::{Body as RequestBody, Held, Permit, Taker};
use crate::version::ApiVersion;

/// What is copied at once.
const BUFFER: usize = 64 * 1024;

/// A program that takes no input for so long gets no more of a client that is gone.
pub const STALLED: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });

/// How long a client whose stream is over may take to leave.
const LEAVING: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// How long output is held back for a client that has not read the head of the answer.
const HEAD: Duration = Duration::from_secs(2);

/// The same over TCP, with or without TLS, where it cannot be told whether it has.
const HEAD_TCP: Duration = Duration::from_millis(3);

thread_local! {
    static BUFFERS: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// How a stream's bytes are to be treated.
#[derive(Debug)]
pub struct Rules {
    /// Whether the client's bytes are input for the program.
    pub stdin: bool,
    /// The keys that take the client off, where they are watched for.
    pub detach_keys: Option<Vec<u8>>,
    /// Whether a terminal's output is framed all the same, as standard output: for a client that started an exec with a
    /// terminal without saying so, which Docker answers so.
    pub frames: bool,
}

/// The content type of a stream of output: raw for a terminal and for clients before 1.42.
pub fn content_type(version: ApiVersion, tty: bool) -> HeaderValue {
    if tty || version < ApiVersion::new(42) {
        HeaderValue::from_static("application/vnd.docker.raw-stream")
    } else {
        HeaderValue::from_static("application/vnd.docker.multiplexed-stream")
    }
}

/// How a connection leaves HTTP.
#[derive(Debug)]
pub enum Way {
    /// The client asks for it.
    Upgrade(OnUpgrade),
    /// The client does not, and knows all the same that what follows is raw, as dockerd has it.
    Take(Taker, RequestBody),
}

/// Hands a stream over to a client.
pub fn respond(way: Way, version: ApiVersion, attached: Attached, rules: Rules) -> Answer {
    match way {
        Way::Upgrade(upgrade) => Ok(upgrade_to(upgrade, version, attached, rules)),
        Way::Take(taker, body) => {
            let Some((conn, first, permit)) = taker.take(&body) else {
                return Err(ApiError::internal("the connection is in use already"));
            };
            tokio::spawn(async move {
                let _permit = permit;
                let served = async {
                    let conn = conn.into_raw()?;
                    write_all(&conn, RAW_HEAD).await?;
                    pump(conn, first, attached, rules).await
                };
                if let Err(error) = served.await {
                    tracing::debug!(%error, "an attached connection ended");
                }
            });
            // Nobody hears it.
            Ok(response::status(StatusCode::OK))
        }
    }
}

/// What comes before raw bytes of a client that did not ask for an upgrade. The type is the same for all versions.
const RAW_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n";

fn upgrade_to(upgrade: OnUpgrade, version: ApiVersion, attached: Attached, rules: Rules) -> Response<Body> {
    let content_type = content_type(version, attached.tty && !rules.frames);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                // What ends it (either side going away) is no fault of anybody's.
                if let Err(error) = serve(upgraded, attached, rules).await {
                    tracing::debug!(%error, "an attached connection ended");
                }
            }
            Err(error) => tracing::debug!(%error, "the client went away before the upgrade"),
        }
    });
    let mut response = response::with_type(StatusCode::SWITCHING_PROTOCOLS, content_type, Body::Empty);
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response
        .headers_mut()
        .insert(UPGRADE, HeaderValue::from_static("tcp"));
    response
}

/// The next piece of a log. Why a log broke off is told where errors of the program would be.
pub async fn next_chunk(log: &mut LogStream) -> Option<Bytes> {
    match log.chunks.recv().await? {
        Ok(chunk) => Some(chunk),
        Err(error) => {
            log.chunks.close();
            let text = format!("Error grabbing logs: {error}\n");
            let mut chunk = Vec::with_capacity(8 + text.len());
            if !log.tty {
                // A frame of standard error: type, three zeros, length.
                chunk.extend_from_slice(&[2, 0, 0, 0]);
                chunk.extend_from_slice(&(text.len() as u32).to_be_bytes());
            }
            chunk.extend_from_slice(text.as_bytes());
            Some(chunk.into())
        }
    }
}

/// Reads what is there, as a frame of standard output when `frames` says so. The bytes that are in the buffer then; none
/// at the end.
fn read_piece(stream: &UnixStream, buffer: &mut [u8], frames: bool) -> io::Result<usize> {
    if !frames {
        return stream.try_read(buffer);
    }
    // Type, three zeros, length.
    let (head, body) = buffer.split_at_mut(8);
    let read = stream.try_read(body)?;
    head.copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    head[4..].copy_from_slice(&(read as u32).to_be_bytes());
    Ok(if read == 0 { 0 } else { 8 + read })
}

async fn serve(upgraded: Upgraded, attached: Attached, rules: Rules) -> io::Result<()> {
    let (conn, first, _permit) = conn_of(upgraded)?;
    pump(conn.into_raw()?, first, attached, rules).await
}

/// The connection below an upgraded one, what was read of it already, and what counts it.
pub fn conn_of(upgraded: Upgraded) -> io::Result<(Conn, Bytes, Permit)> {
    let lost = || io::Error::other("the upgraded connection is not of the server's kind");
    let parts = upgraded.downcast::<TokioIo<Held>>().map_err(|_| lost())?;
    let (conn, permit) = parts.io.into_inner().into_conn().ok_or_else(lost)?;
    Ok((conn, parts.read_buf, permit))
}

/// Copies both ways until the output or the client is at its end. `first` was read from the client already.
pub async fn pump(client: RawConn, first: Bytes, attached: Attached, rules: Rules) -> io::Result<()> {
    let Attached {
        logs, stream, ended, ..
    } = attached;
    let (taken, frames) = (AtomicUsize::new(0), rules.frames);
    let output = async {
        let fresh = logs.is_none();
        if let Some(mut log) = logs {
            head_is_read(&client).await;
            while let Some(chunk) = next_chunk(&mut log).await {
                write_all(&client, &chunk).await?;
            }
        }
        if let Some(engine) = &stream {
            engine.readable().await?;
            if fresh {
                head_is_read(&client).await;
            }
            copy_output(engine, &client, frames).await?;
        }
        if let Some(ended) = &ended {
            ended.wait().await;
        }
        Ok(())
    };
    let input = async {
        copy_input(&client, first, stream.as_ref(), rules, &taken).await?;
        // The input is over; the output goes on unless the client is gone altogether.
        hung_up(&client).await
    };
    let gone = async {
        hung_up(&client).await?;
        // What it sent before it left is still input, as long as the program takes it.
        let mut before = taken.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(STALLED).await;
            let now = taken.load(Ordering::Relaxed);
            if now == before {
                return Ok(());
            }
            before = now;
        }
    };
    // Whichever way it ends, both connections are closed on the way out.
    let done = tokio::select! {
        done = output => done,
        done = input => done,
        done = gone => return done,
    };
    drop(stream);
    linger(&client).await;
    done
}

/// Tells the client that its stream is over, and drops what it still sends until it leaves, too. A connection that is closed
/// while something of it is unread is reset: the client would get an error instead of the end, and over TCP lose output
/// that it has not read. Any client has such input whose program takes less than it is given: `cat FILE | docker run -i IMAGE head`.
async fn linger(client: &RawConn) {
    if rustix::net::shutdown(client.as_fd(), rustix::net::Shutdown::Write).is_err() {
        return;
    }
    let dropped = async {
        loop {
            tokio::task::consume_budget().await;
            client.readable().await?;
            match BUFFERS.with_borrow_mut(|buffer| client.try_read(buffer)) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err::<(), io::Error>(error),
            }
        }
    };
    // A client that stays longer is closed over what it says.
    let _ = tokio::time::timeout(LEAVING, dropped).await;
}

/// Waits until the client has read what it was sent. Clients that read heads through a buffer and bodies past it, as
/// Python's `http.client` makes docker-py do, lose the output that arrives together with the head. Docker takes so long
/// to start a process that it does not show there.
///
/// Only a Unix socket tells when it was read. Over TCP the client's kernel says that it arrived, which is sooner: a client
/// gets a moment more there, and a slow one may still lose output.
async fn head_is_read(client: &RawConn) {
    let end = tokio::time::Instant::now() + HEAD;
    while client.unread() > 0 && tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    if client.is_remote() {
        tokio::time::sleep(HEAD_TCP).await;
    }
}

async fn copy_output(engine: &UnixStream, client: &RawConn, frames: bool) -> io::Result<()> {
    loop {
        // A program that never stops writing must not keep a worker to itself: readiness alone does not yield.
        tokio::task::consume_budget().await;
        engine.readable().await?;
        // Most output fits the client's socket buffer and needs no copy of its own.
        let step = BUFFERS.with_borrow_mut(|buffer| {
            let read = match read_piece(engine, buffer, frames) {
                // It ended without taking all of its input.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                read => read?,
            };
            if read == 0 {
                return Ok(None);
            }
            let written = match client.try_write(&buffer[..read]) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            Ok(Some(buffer[written..read].to_vec()))
        });
        match step {
            Ok(None) => return Ok(()),
            Ok(Some(rest)) => write_all(client, &rest).await?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Copies input until its end, which is passed on. Without standard input it is read and dropped, so that the
/// client's end is noticed. Fails when the detach keys were seen.
async fn copy_input(
    client: &RawConn,
    first: Bytes,
    engine: Option<&UnixStream>,
    rules: Rules,
    taken: &AtomicUsize,
) -> io::Result<()> {
    let engine = engine.filter(|_| rules.stdin);
    let mut watcher = rules.detach_keys.map(Watcher::new);
    let mut filtered = Vec::new();
    let mut piece = first.to_vec();
    loop {
        if !piece.is_empty() {
            let mut detached = false;
            let out = match &mut watcher {
                Some(watcher) => {
                    filtered.clear();
                    detached = watcher.feed(&piece, &mut filtered);
                    &filtered
                }
                None => &piece,
            };
            if let Some(engine) = engine {
                write_engine(engine, out, taken).await?;
            }
            if detached {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "the client detached",
                ));
            }
        }
        // As above, for a client that never stops.
        tokio::task::consume_budget().await;
        client.readable().await?;
        let read =
            BUFFERS.with_borrow_mut(|buffer| client.try_read(buffer).map(|read| buffer[..read].to_vec()));
        match read {
            Ok(read) if read.is_empty() => break,
            Ok(read) => piece = read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => piece.clear(),
            Err(error) => return Err(error),
        }
    }
    if let Some(engine) = engine {
        if let Some(watcher) = &mut watcher {
            filtered.clear();
            watcher.finish(&mut filtered);
            write_engine(engine, &filtered, taken).await?;
        }
        rustix::net::shutdown(engine.as_fd(), rustix::net::Shutdown::Write)?;
    }
    Ok(())
}

async fn write_all(client: &RawConn, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match client.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => client.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// `taken` counts the bytes.
async fn write_engine(engine: &UnixStream, mut bytes: &[u8], taken: &AtomicUsize) -> io::Result<()> {
    while !bytes.is_empty() {
        match engine.try_write(bytes) {
            Ok(written) => {
                taken.fetch_add(written, Ordering::Relaxed);
                bytes = &bytes[written..];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => engine.writable().await?,
            // The program closed its input: that is its right, and its output goes on.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::time::timeout;

    fn cpu_time() -> Duration {
        let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(spent.tv_sec.cast_unsigned(), spent.tv_nsec as u32)
    }

    #[tokio::test]
    async fn half_closed_is_not_hung_up_and_costs_nothing() {
        let (mut peer, client) = UnixStream::pair().unwrap();
        peer.shutdown().await.unwrap();
        let client = RawConn::Unix(client);
        let before = cpu_time();
        assert!(
            timeout(Duration::from_millis(300), hung_up(&client))
                .await
                .is_err()
        );
        let spent = cpu_time() - before;
        assert!(
            spent < Duration::from_millis(50),
            "{spent:?} of waiting were work"
        );
        // What is written still arrives.
        assert_eq!(client.try_write(b"x").unwrap(), 1);
        drop(peer);
        timeout(Duration::from_secs(5), hung_up(&client))
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn input_reaches_the_program_until_its_end_or_the_detach_keys() {
        for (keys, sent, expected, detached) in [
            (None, &b"a\x10\x11b"[..], &b"a\x10\x11b"[..], false),
            (Some(vec![16, 17]), b"a\x10\x11b", b"a", true),
            (Some(vec![16, 17]), b"ab\x10", b"ab\x10", false),
        ] {
            let (mut peer, client) = UnixStream::pair().unwrap();
            let (engine, mut program) = UnixStream::pair().unwrap();
            peer.write_all(&sent[1..]).await.unwrap();
            peer.shutdown().await.unwrap();
            let rules = Rules {
                stdin: true,
                detach_keys: keys,
                frames: false,
            };
            let first = Bytes::copy_from_slice(&sent[..1]);
            let taken = AtomicUsize::new(0);
            let copied = copy_input(&RawConn::Unix(client), first, Some(&engine), rules, &taken).await;
            assert_eq!(copied.is_err(), detached);
            drop(engine);
            let mut seen = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut program, &mut seen)
                .await
                .unwrap();
            assert_eq!(seen, expected);
        }
    }

    #[tokio::test]
    async fn a_client_that_left_is_noticed_while_the_program_takes_no_input() {
        for reads in [true, false] {
            let (peer, client) = UnixStream::pair().unwrap();
            let (engine, mut program) = UnixStream::pair().unwrap();
            let attached = Attached {
                tty: false,
                logs: None,
                stream: Some(engine),
                ended: None,
            };
            let rules = Rules {
                stdin: true,
                detach_keys: None,
                frames: false,
            };
            let pumping = tokio::spawn(pump(RawConn::Unix(client), Bytes::new(), attached, rules));
            // As much as there is room for on the way.
            let mut sent = 0;
            while timeout(STALLED / 10, peer.writable()).await.is_ok() {
                sent += peer.try_write(&[1; 4096]).unwrap_or(0);
            }
            drop(peer);
            if reads {
                tokio::time::sleep(STALLED / 3).await;
                let mut seen = Vec::new();
                tokio::io::AsyncReadExt::read_to_end(&mut program, &mut seen)
                    .await
                    .unwrap();
                assert_eq!(seen.len(), sent);
            }
            timeout(STALLED * 3, pumping).await.unwrap().unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn input_that_nobody_takes_is_no_error_of_the_clients() {
        let (mut peer, client) = UnixStream::pair().unwrap();
        let (engine, mut program) = UnixStream::pair().unwrap();
        let attached = Attached {
            tty: false,
            logs: None,
            stream: Some(engine),
            ended: None,
        };
        let rules = Rules {
            stdin: true,
            detach_keys: None,
            frames: false,
        };
        let pumping = tokio::spawn(pump(RawConn::Unix(client), Bytes::new(), attached, rules));
        // As much as there is room for on the way.
        while timeout(STALLED / 10, peer.writable()).await.is_ok() {
            let _ = peer.try_write(&[1; 4096]);
        }
        program.write_all(b"output").await.unwrap();
        drop(program);
        let mut seen = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut peer, &mut seen);
        timeout(Duration::from_secs(5), read).await.unwrap().unwrap();
        assert_eq!(seen, b"output");
        // One that stays is left at last.
        let _ = timeout(LEAVING * 5, pumping).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn output_comes_apart_from_the_head_and_in_frames() {
        let (mut peer, client) = UnixStream::pair().unwrap();
        let (engine, mut program) = UnixStream::pair().unwrap();
        assert_eq!(client.try_write(b"head").unwrap(), 4);
        program.write_all(b"output").await.unwrap();
        program.shutdown().await.unwrap();
        let attached = Attached {
            tty: false,
            logs: None,
            stream: Some(engine),
            ended: None,
        };
        let rules = Rules {
            stdin: false,
            detach_keys: None,
            frames: true,
        };
        let pumping = tokio::spawn(pump(RawConn::Unix(client), Bytes::new(), attached, rules));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut piece = [0; 100];
        for expected in [&b"head"[..], b"\x01\0\0\0\0\0\0\x06output"] {
            let read = tokio::io::AsyncReadExt::read(&mut peer, &mut piece)
                .await
                .unwrap();
            assert_eq!(&piece[..read], expected);
        }
        timeout(Duration::from_secs(5), pumping)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn output_is_complete_for_a_slow_client() {
        let (mut peer, client) = UnixStream::pair().unwrap();
        let (engine, mut program) = UnixStream::pair().unwrap();
        let all: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
        let written = all.clone();
        let writer = tokio::spawn(async move { program.write_all(&written).await });
        let copier = tokio::spawn(async move { copy_output(&engine, &RawConn::Unix(client), false).await });
        let mut seen = Vec::new();
        let mut piece = vec![0; 7000];
        loop {
            let read = tokio::io::AsyncReadExt::read(&mut peer, &mut piece)
                .await
                .unwrap();
            if read == 0 {
                break;
            }
            seen.extend_from_slice(&piece[..read]);
            tokio::task::yield_now().await;
        }
        writer.await.unwrap().unwrap();
        copier.await.unwrap().unwrap();
        assert!(seen == all);
    }
}
