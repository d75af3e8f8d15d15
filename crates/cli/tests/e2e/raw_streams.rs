//! Connections that leave HTTP as clients other than ours leave it: without asking, and for a websocket.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::harness::{Daemon, daemon};

fn connect(daemon: &Daemon) -> UnixStream {
    let socket = daemon.socket();
    let stream = UnixStream::connect(socket.trim_start_matches("unix://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Reads up to the end of a head, and no further.
fn head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// What Docker's frames carry.
fn payload(mut frames: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while frames.len() >= 8 {
        let length = u32::from_be_bytes([frames[4], frames[5], frames[6], frames[7]]) as usize;
        out.extend_from_slice(&frames[8..8 + length]);
        frames = &frames[8 + length..];
    }
    out
}

#[test]
fn a_client_that_asks_for_no_upgrade_is_heard() {
    let Some(daemon) = daemon() else { return };
    let create = [
        "create",
        "-i",
        "-a",
        "stdin",
        "-a",
        "stdout",
        "--name",
        "cat",
        "--network",
        "none",
        "busybox",
        "cat",
    ];
    daemon.vessel(&create).ok();
    let mut stream = connect(&daemon);
    // Input may come in one piece with the request, on a connection that was used before.
    stream
        .write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
        .unwrap();
    assert!(head(&mut stream).starts_with("HTTP/1.1 200"));
    stream.read_exact(&mut [0; 2]).unwrap();
    stream
        .write_all(
            b"POST /v1.24/containers/cat/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\n\r\nearly ",
        )
        .unwrap();
    let head = head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("application/vnd.docker.raw-stream"), "{head}");
    assert!(!head.to_lowercase().contains("chunked"), "{head}");
    daemon.vessel(&["start", "cat"]).ok();
    stream.write_all(b"late\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut output = Vec::new();
    stream.read_to_end(&mut output).unwrap();
    assert_eq!(payload(&output), b"early late\n");
}

#[test]
fn an_exec_takes_what_follows_its_body_for_input() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "idle",
            "--network",
            "none",
            "busybox",
            "sleep",
            "1000",
        ])
        .ok();
    let body = r#"{"attachStdin":true,"attachStdout":true,"cmd":["cat"]}"#;
    let mut stream = connect(&daemon);
    let request = format!(
        "POST /containers/idle/exec HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    assert!(head(&mut stream).starts_with("HTTP/1.1 201"));
    let mut answer = [0; 1000];
    let read = stream.read(&mut answer).unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer[..read]).unwrap();
    let request = format!(
        "POST /exec/{}/start HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}input",
        answer["Id"].as_str().unwrap()
    );
    stream.write_all(request.as_bytes()).unwrap();
    assert!(head(&mut stream).starts_with("HTTP/1.1 200 OK"));
    stream.shutdown(Shutdown::Write).unwrap();
    let mut output = Vec::new();
    stream.read_to_end(&mut output).unwrap();
    assert_eq!(payload(&output), b"input");
}

/// A client of Docker pulls the image and tries again when a creation is answered with 404, whatever is not there.
#[test]
fn only_an_image_that_is_missing_is_not_found() {
    let Some(daemon) = daemon() else { return };
    let status = |body: &str| {
        let mut stream = connect(&daemon);
        let request = format!(
            "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        head(&mut stream)[9..12].to_owned()
    };
    assert_eq!(status(r#"{"Image":"nosuch"}"#), "404");
    for host in [
        r#"{"VolumesFrom":["nosuch"]}"#,
        r#"{"VolumeDriver":"nosuch","Binds":["name:/data"]}"#,
        r#"{"Links":["nosuch:alias"]}"#,
    ] {
        let body = format!(r#"{{"Image":"busybox","HostConfig":{host}}}"#);
        assert_eq!(status(&body), "400", "{host}");
    }
}

#[test]
fn a_websocket_attaches() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&[
            "run",
            "-d",
            "-i",
            "--name",
            "cat",
            "--network",
            "none",
            "busybox",
            "cat",
        ])
        .ok();
    let request = |headers: &str| {
        format!(
            "GET /containers/cat/attach/ws?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{headers}\r\n"
        )
    };
    for headers in [
        "",
        "Sec-WebSocket-Version: 8\r\n",
        "Sec-WebSocket-Version: 13\r\n",
    ] {
        let mut stream = connect(&daemon);
        stream.write_all(request(headers).as_bytes()).unwrap();
        assert!(head(&mut stream).starts_with("HTTP/1.1 400"), "{headers}");
    }
    let mut stream = connect(&daemon);
    let key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    stream.write_all(request(key).as_bytes()).unwrap();
    let head = head(&mut stream).to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(
        head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{head}"
    );
    // "hi" and a newline, masked with zeros.
    stream.write_all(b"\x81\x83\0\0\0\0hi\n").unwrap();
    let mut message = [0; 5];
    stream.read_exact(&mut message).unwrap();
    assert_eq!(&message, b"\x82\x03hi\n");
    stream.write_all(b"\x88\x80\0\0\0\0").unwrap();
    let mut end = Vec::new();
    stream.read_to_end(&mut end).unwrap();
    assert_eq!(end.first(), Some(&0x88), "{end:?}");
}

#[test]
fn idle_connections_make_room_for_others() {
    let Some(mut daemon) = daemon() else { return };
    daemon.stop();
    // Half of them are for connections.
    daemon.files = Some(256);
    daemon.start();
    daemon
        .vessel(&["run", "-d", "--name", "cat", "-i", "busybox", "cat"])
        .ok();
    let mut attached = connect(&daemon);
    attached
        .write_all(b"POST /containers/cat/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\n\r\n")
        .unwrap();
    assert!(head(&mut attached).starts_with("HTTP/1.1 200"));
    let ping = |stream: &mut UnixStream| {
        stream
            .write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
            .unwrap();
        assert!(head(stream).starts_with("HTTP/1.1 200"));
        let mut body = [0; 2];
        stream.read_exact(&mut body).unwrap();
        assert_eq!(&body, b"OK");
    };
    let begin = std::time::Instant::now();
    let mut idle: Vec<UnixStream> = (0..600)
        .map(|_| {
            let mut stream = connect(&daemon);
            ping(&mut stream);
            stream
        })
        .collect();
    // Without that, it would have been two minutes until the first was closed.
    assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
    ping(idle.last_mut().unwrap());
    let mut rest = Vec::new();
    idle[0].read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"", "the first is told nothing but the end");
    // A stream is no idle connection, however quiet.
    attached.write_all(b"still here\n").unwrap();
    let mut frame = [0; 19];
    attached.read_exact(&mut frame).unwrap();
    assert_eq!(&frame[8..], b"still here\n");
}
