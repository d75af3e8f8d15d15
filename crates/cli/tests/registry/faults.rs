//! `kill -9` at any moment, SIGTERM, two processes on one directory, collection from the command line.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vessel_image::Digest;

use crate::http;
use crate::server::{Server, vessel};

/// What was acknowledged to a pusher.
enum Acknowledged {
    Blob(String, Digest),
    Image(String, Vec<u8>),
}

#[test]
fn kill_minus_nine_loses_nothing_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start(directory.path(), &[]);
    let acknowledged = Mutex::new(Vec::new());
    let numbers = AtomicUsize::new(0);
    for round in 0..8u64 {
        let stop = AtomicBool::new(false);
        let location = server.send("POST", "/v2/long/blobs/uploads/", b"").unwrap();
        let location = location.header("location").unwrap().to_owned();
        let mut sent = 0;
        std::thread::scope(|scope| {
            for pusher in 0..3 {
                let (server, stop, acknowledged, numbers) = (&server, &stop, &acknowledged, &numbers);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let n = numbers.fetch_add(1, Ordering::Relaxed);
                        let name = format!("r{pusher}");
                        let bytes = format!("{n} ").repeat(2000 + n % 3000 * 7).into_bytes();
                        if n % 3 == 0 {
                            if let Ok(digest) = server.push_blob(&name, &bytes) {
                                acknowledged
                                    .lock()
                                    .unwrap()
                                    .push(Acknowledged::Blob(name, digest));
                            }
                        } else if let Ok(raw) = server.push_image(&name, &format!("t{n}"), &bytes) {
                            let path = format!("/v2/{name}/manifests/t{n}");
                            acknowledged.lock().unwrap().push(Acknowledged::Image(path, raw));
                        }
                    }
                });
            }
            // One upload goes on through it all, chunk by chunk.
            let end = Instant::now() + Duration::from_millis(60 + round * 67 % 300);
            while Instant::now() < end {
                if server
                    .send("PATCH", &location, &[b'x'; 1000])
                    .is_ok_and(|answer| answer.status == 202)
                {
                    sent += 1000;
                }
            }
            let pid = rustix::process::Pid::from_child(&server.child);
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        server.kill();
        server.again();
        // What was acknowledged of the upload is there, possibly with the beginning of the chunk that was cut.
        let status = server.send("GET", &location, b"").unwrap();
        let stored: usize = status.header("range").unwrap()[2..].parse::<usize>().unwrap() + 1;
        assert!(
            stored >= sent,
            "{stored} bytes are there, {sent} were acknowledged"
        );
        let digest = Digest::sha256(&vec![b'x'; stored + 5]);
        let ended = server
            .send("PUT", &format!("{location}?digest={digest}"), b"xxxxx")
            .unwrap();
        assert_eq!(ended.status, 201, "{}", String::from_utf8_lossy(&ended.body));
        for thing in acknowledged.lock().unwrap().iter() {
            match thing {
                Acknowledged::Blob(name, digest) => {
                    let answer = server
                        .send("GET", &format!("/v2/{name}/blobs/{digest}"), b"")
                        .unwrap();
                    assert!(
                        answer.status == 200 && digest.verify(&answer.body),
                        "{name} {digest}: {}",
                        answer.status
                    );
                }
                Acknowledged::Image(path, raw) => {
                    let answer = server.send("GET", path, b"").unwrap();
                    assert!(
                        answer.status == 200 && answer.body == *raw,
                        "{path}: {}",
                        answer.status
                    );
                }
            }
        }
        assert_eq!(
            std::fs::read_dir(directory.path().join("tmp")).unwrap().count(),
            0
        );
    }
    assert!(acknowledged.lock().unwrap().len() > 20);
}

#[test]
fn what_was_begun_is_finished() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start(directory.path(), &[]);
    let bytes: Vec<u8> = (0..40_000_000u32).map(|n| (n >> 3) as u8).collect();
    let digest = server.push_blob("a", &bytes).unwrap();
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream
        .write_all(format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
        .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    server.terminate();
    std::thread::sleep(Duration::from_millis(100));
    assert!(TcpStream::connect(server.address).is_err(), "it still accepts");
    let answer = http::read("GET", stream).unwrap();
    assert!(answer.body == bytes);
    assert!(server.child.wait().unwrap().success());
    assert!(!directory.path().join("control.sock").exists());
}

#[test]
fn one_process_owns_a_directory_and_collects_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_str().unwrap();
    let mut server = Server::start(directory.path(), &[]);
    let second = vessel(&["serve", "--listen", "127.0.0.1:0", "--root", root]);
    assert!(!second.status.success());
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("in use by another registry"),
        "{second:?}"
    );
    let collect = |more: &[&str]| {
        let output = vessel(&[&["garbage-collect", "--root", root, "--grace", "0s"], more].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    server.push_blob("a", b"loose").unwrap();
    assert!(collect(&["--dry-run"]).starts_with("Would remove 0 manifests and 1 blobs"));
    assert!(collect(&[]).starts_with("Removed 0 manifests and 1 blobs from repositories, and 1 files of 5B"));
    server.push_blob("a", b"loose").unwrap();
    server.kill();
    assert!(collect(&[]).starts_with("Removed 0 manifests and 1 blobs from repositories, and 1 files of 5B"));
    let none = vessel(&["garbage-collect", "--root", "/nonexistent"]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("not the directory of a registry"));
}

#[test]
fn uploads_that_nobody_goes_on_with_are_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path(), &["--upload-expiry", "1s"]);
    let begun = server.send("POST", "/v2/a/blobs/uploads/", b"").unwrap();
    let location = begun.header("location").unwrap();
    server.send("PATCH", location, b"abc").unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while directory.path().join("uploads/a").exists() {
        assert!(Instant::now() < end, "it is still there");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(server.send("GET", location, b"").unwrap().status, 404);
}
