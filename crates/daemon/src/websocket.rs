//! Attaching over a websocket (RFC 6455), for browsers.
//!
//! The client's messages, text or binary, are the program's input; its output comes as binary messages (text before API
//! 1.28, as dockerd has it). There are no frames of Docker's own inside: what both streams say is put together in the order
//! it comes. A ping is answered, a close ends the attachment. Extensions are not spoken.

use std::io;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use vessel_engine::Attached;

use crate::base64;
use crate::conn::{Conn, RawConn, drain};
use crate::error::ApiError;
use crate::hijack::{self, Rules, STALLED};
use crate::request::Request;
use crate::response::{self, Answer};
use crate::version::ApiVersion;

/// What the answer to a key is made with.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The longest control frame's payload (section 5.5).
const MAX_CONTROL: u64 = 125;
const PIECE: usize = 32 * 1024;
/// How long the last frames may take to a client that reads nothing.
const LAST: Duration = Duration::from_secs(10);

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What has to be right before anything is attached: the answer's `Sec-WebSocket-Accept`.
pub fn accept_key(request: &Request) -> Result<HeaderValue, ApiError> {
    let refuse = |what: &str| Err(ApiError::bad_request(format!("bad websocket handshake: {what}")));
    let header = |name: &str| request.header(name).unwrap_or_default();
    if !header("upgrade").eq_ignore_ascii_case("websocket") {
        return refuse("the header Upgrade has to be websocket");
    }
    if header("sec-websocket-version") != "13" {
        return refuse("only version 13 is spoken");
    }
    let key = header("sec-websocket-key");
    let sixteen_bytes = key.len() == 24
        && key.ends_with("==")
        && key[..22]
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'));
    if !sixteen_bytes {
        return refuse("the header Sec-WebSocket-Key has to be 16 bytes in base64");
    }
    HeaderValue::from_str(&accept_of(key))
        .map_err(|error| ApiError::internal(format!("cannot answer the handshake: {error}")))
}

fn accept_of(key: &str) -> String {
    let digest = ring::digest::digest(
        &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}{GUID}").as_bytes(),
    );
    base64::encode(digest.as_ref())
}

/// Answers the handshake and hands the streams over.
pub fn respond(mut request: Request, accept: HeaderValue, attached: Attached, rules: Rules) -> Answer {
    let upgrade = request.on_upgrade();
    let kind = if request.version < ApiVersion::new(28) {
        TEXT
    } else {
        BINARY
    };
    let framed = !attached.tty;
    let mut response = response::status(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert("sec-websocket-accept", accept);
    if let Some(protocol) = request.headers().get("sec-websocket-protocol")
        && !protocol.as_bytes().contains(&b',')
    {
        headers.insert("sec-websocket-protocol", protocol.clone());
    }
    tokio::spawn(async move {
        let served = async {
            let upgraded = upgrade.await.map_err(io::Error::other)?;
            let (conn, first, _permit) = hijack::conn_of(upgraded)?;
            let (inner, outer) = UnixStream::pair()?;
            let pump = hijack::pump(RawConn::Unix(inner), bytes::Bytes::new(), attached, rules);
            let frames = translate(conn, &first, outer, kind, framed);
            // The pump's end is the end of the program's output, which still has to be sent.
            let (_, sent) = tokio::join!(pump, frames);
            sent
        };
        if let Err(error) = served.await {
            tracing::debug!(%error, "a websocket ended");
        }
    });
    Ok(response)
}

/// Frames of the client become bytes of `inner`, and the other way round.
async fn translate(conn: Conn, first: &[u8], inner: UnixStream, kind: u8, framed: bool) -> io::Result<()> {
    let (client_read, mut client) = tokio::io::split(conn);
    let mut client_read = AsyncReadExt::chain(first, client_read);
    let (mut output, mut input) = inner.into_split();
    let (control, mut controls) = tokio::sync::mpsc::channel::<(u8, Vec<u8>)>(4);
    let reader = &mut client_read;
    let reading = async move {
        let read = read_messages(reader, &mut input, &control).await;
        // The end of input, and of the connection if the client says so.
        let _ = input.shutdown().await;
        match read {
            Ok(()) => {
                let _ = control.send((CLOSE, Vec::new())).await;
            }
            Err(error) => {
                tracing::debug!(%error, "a websocket's input ended");
                let _ = control.send((CLOSE, vec![0x03, 0xea])).await;
            }
        }
    };
    let writing = async {
        let mut demux = Demux::new(framed);
        let mut piece = vec![0; PIECE];
        loop {
            tokio::select! {
                biased;
                frame = controls.recv() => match frame {
                    Some((CLOSE, payload)) => return Ok(payload),
                    Some((kind, payload)) => write_frame(&mut client, kind, &payload).await?,
                    None => std::future::pending::<()>().await,
                },
                read = output.read(&mut piece) => {
                    let read = read?;
                    if read == 0 {
                        return Ok(1000_u16.to_be_bytes().to_vec());
                    }
                    for part in demux.payloads(&piece[..read]) {
                        write_frame(&mut client, kind, part).await?;
                    }
                }
            }
        }
    };
    // What the last frame says.
    let written: io::Result<Vec<u8>> = tokio::select! {
        written = writing => written,
        // `writing` goes on until it has come to the close that this has asked for.
        () = async { reading.await; std::future::pending::<()>().await } => return Ok(()),
    };
    let closing = async {
        if let Ok(payload) = &written {
            write_frame(&mut client, CLOSE, payload).await?;
        }
        client.shutdown().await
    };
    let closed = timeout(LAST, closing).await;
    drain(&mut client_read).await;
    written?;
    closed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Reads frames until a close or the end; what is data goes to `input`.
async fn read_messages(
    client: &mut (impl AsyncRead + Unpin),
    input: &mut (impl AsyncWrite + Unpin),
    control: &tokio::sync::mpsc::Sender<(u8, Vec<u8>)>,
) -> io::Result<()> {
    let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut takes = true;
    let mut piece = vec![0; PIECE];
    loop {
        let mut head = [0; 2];
        match client.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let (opcode, finished) = (head[0] & 0x0f, head[0] & 0x80 != 0);
        if head[0] & 0x70 != 0 {
            return Err(broken("a frame of an extension that was not agreed on"));
        }
        if head[1] & 0x80 == 0 {
            return Err(broken("a client's frame has to be masked"));
        }
        let mut left = match head[1] & 0x7f {
            126 => u64::from(client.read_u16().await?),
            127 => client.read_u64().await?,
            short => u64::from(short),
        };
        let mut mask = [0; 4];
        client.read_exact(&mut mask).await?;
        if opcode >= CLOSE && (left > MAX_CONTROL || !finished) {
            return Err(broken("a control frame is too long"));
        }
        let mut whole = Vec::new();
        let mut at = 0;
        while left > 0 {
            let take = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let part = &mut piece[..take];
            client.read_exact(part).await?;
            for byte in part.iter_mut() {
                *byte ^= mask[at % 4];
                at += 1;
            }
            left -= take as u64;
            if opcode >= CLOSE {
                whole.extend_from_slice(part);
            } else if takes {
                // A program that wants no input any more, or takes none for so long: what comes is dropped, its output goes
                // on, and so do pings and the close.
                takes = matches!(timeout(STALLED, input.write_all(part)).await, Ok(Ok(())));
            }
        }
        match opcode {
            0..=BINARY | PONG => {}
            CLOSE => return Ok(()),
            PING if control.send((PONG, whole)).await.is_err() => return Ok(()),
            PING => {}
            _ => return Err(broken("a frame of an unknown kind")),
        }
    }
}

async fn write_frame(client: &mut (impl AsyncWrite + Unpin), kind: u8, payload: &[u8]) -> io::Result<()> {
    let mut head = vec![0x80 | kind];
    match payload.len() {
        short @ 0..=125 => head.push(short as u8),
        medium @ 126..=0xffff => {
            head.push(126);
            head.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            head.push(127);
            head.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    client.write_all(&head).await?;
    client.write_all(payload).await?;
    client.flush().await
}

/// Takes Docker's frames off output that has them.
#[derive(Debug)]
struct Demux {
    framed: bool,
    head: Vec<u8>,
    left: usize,
}

impl Demux {
    fn new(framed: bool) -> Self {
        Self {
            framed,
            head: Vec::with_capacity(8),
            left: 0,
        }
    }

    /// The payloads in the next bytes.
    fn payloads<'a>(&mut self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        if !self.framed {
            return vec![bytes];
        }
        let mut parts = Vec::new();
        while !bytes.is_empty() {
            if self.left == 0 {
                let (head, rest) = bytes.split_at(bytes.len().min(8 - self.head.len()));
                self.head.extend_from_slice(head);
                bytes = rest;
                if let [.., a, b, c, d] = self.head[..]
                    && self.head.len() == 8
                {
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.head.clear();
                }
                continue;
            }
            let (part, rest) = bytes.split_at(bytes.len().min(self.left));
            self.left -= part.len();
            bytes = rest;
            parts.push(part);
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_key_of_the_specification() {
        assert_eq!(
            accept_of("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    fn masked(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [7, 1, 9, 200];
        let mut frame = vec![0x80 | kind];
        if payload.len() < 126 {
            frame.push(0x80 | payload.len() as u8);
        } else {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b));
        frame
    }

    async fn read(frames: &[u8]) -> (io::Result<()>, Vec<u8>, Vec<(u8, Vec<u8>)>) {
        let (control, mut controls) = tokio::sync::mpsc::channel(16);
        let mut input = Vec::new();
        let done = read_messages(&mut &*frames, &mut input, &control).await;
        drop(control);
        let mut answers = Vec::new();
        while let Some(answer) = controls.recv().await {
            answers.push(answer);
        }
        (done, input, answers)
    }

    #[tokio::test]
    async fn messages_become_input_and_pings_are_answered() {
        let long = vec![b'x'; 1000];
        let frames = [
            masked(TEXT, b"hello "),
            masked(PING, b"?"),
            masked(BINARY, &long),
            masked(CLOSE, b""),
            masked(TEXT, b"too late"),
        ]
        .concat();
        let (done, input, answers) = read(&frames).await;
        done.unwrap();
        assert_eq!(input, [b"hello ".as_slice(), &long].concat());
        assert_eq!(answers, [(PONG, b"?".to_vec())]);
    }

    #[tokio::test]
    async fn a_program_that_takes_no_input_does_not_keep_a_ping_waiting() {
        let frames = [masked(BINARY, &[1; 1000]), masked(PING, b"?"), masked(CLOSE, b"")].concat();
        let (control, mut controls) = tokio::sync::mpsc::channel(16);
        let (mut input, _never_read) = tokio::io::duplex(10);
        let mut frames = &*frames;
        let reading = read_messages(&mut frames, &mut input, &control);
        timeout(STALLED * 3, reading).await.unwrap().unwrap();
        assert_eq!(controls.try_recv().unwrap(), (PONG, b"?".to_vec()));
    }

    #[tokio::test]
    async fn what_is_no_frame_ends_it() {
        let unmasked = [0x81, 0x01, b'a'];
        let extension = [0xc1, 0x81, 0, 0, 0, 0, b'a'];
        let unknown = masked(5, b"a");
        let long_ping = masked(PING, &[0; 200]);
        for frames in [&unmasked[..], &extension, &unknown, &long_ping, &[0x81, 0x85, 1]] {
            assert!(read(frames).await.0.is_err(), "{frames:?}");
        }
    }

    #[test]
    fn dockers_frames_come_off_however_they_are_cut() {
        let bytes = b"\x01\0\0\0\0\0\0\x03one\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x03two";
        for size in 1..bytes.len() {
            let mut demux = Demux::new(true);
            let whole: Vec<u8> = bytes
                .chunks(size)
                .flat_map(|chunk| demux.payloads(chunk).concat())
                .collect();
            assert_eq!(whole, b"onetwo", "{size}");
        }
        assert_eq!(Demux::new(false).payloads(b"raw"), [b"raw"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _ = runtime.block_on(read(&bytes));
        }
    }
}
