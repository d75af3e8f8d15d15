//! A real server on a private root, run directory and socket, and a client that speaks raw HTTP.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::oneshot;
use vessel_daemon::{Config, Listen, Server};
use vessel_engine::EngineConfig;

/// A running daemon; ended on drop.
pub struct Daemon {
    pub directory: Arc<TempDir>,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The sentence of an error.
    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap().to_owned()
    }

    /// The lines of a stream of JSON.
    pub fn lines(&self) -> Vec<Value> {
        serde_json::Deserializer::from_slice(&self.body)
            .into_iter()
            .map(Result::unwrap)
            .collect()
    }
}

/// How an engine under a directory is set up: no name it shares with another.
pub fn config(directory: &TempDir) -> Config {
    let unique = directory
        .path()
        .file_name()
        .unwrap()
        .to_string_lossy()
        .trim_start_matches('.')
        .to_owned();
    Config {
        engine: EngineConfig {
            root: directory.path().join("root"),
            run: directory.path().join("run"),
            bridge: bridge(directory),
            bridge_address: None,
            bridge_v6: None,
            ports_behind_input: false,
            cgroup_parent: format!("/vessel-{unique}"),
            userns_remap: None,
            dns: Vec::new(),
            init: false,
            registries: Default::default(),
            trust: Default::default(),
            cdi_spec_dirs: Vec::new(),
            plugin_dirs: Vec::new(),
            bin: None,
        },
        listen: vec![Listen::Unix(directory.path().join("vessel.sock"))],
        tls: None,
        group: "no-such-group".to_owned(),
        operation_log: 1 << 20,
        page: None,
    }
}

impl Daemon {
    pub fn start() -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()))
    }

    pub fn start_in(directory: Arc<TempDir>) -> Self {
        Self::start_with(directory, |_| {})
    }

    /// Set up otherwise than usual.
    pub fn start_with(directory: Arc<TempDir>, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(&directory);
        change(&mut config);
        let (shutdown, ended) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            vessel_daemon::runtime().unwrap().block_on(async {
                match Server::open(config).await {
                    Ok(server) => {
                        ready.send(Ok(())).unwrap();
                        server
                            .run(async {
                                let _ = ended.await;
                            })
                            .await;
                    }
                    Err(error) => ready.send(Err(error.to_string())).unwrap(),
                }
            });
        });
        is_ready.recv().unwrap().unwrap();
        Self {
            directory,
            shutdown: Some(shutdown),
            thread: Some(thread),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("vessel.sock")
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Sends bytes and reads until the server closes.
    pub fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        read_answer(&mut stream)
    }

    pub fn request(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n");
        if !content_type.is_empty() {
            head.push_str(&format!("Content-Type: {content_type}\r\n"));
        }
        if !body.is_empty() || method == "POST" || method == "PUT" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).unwrap();
        // A server that refuses early closes before it has read everything.
        let _ = stream.write_all(body);
        read_answer(&mut stream)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "", b"")
    }

    pub fn post(&self, path: &str) -> Answer {
        self.request("POST", path, "", b"")
    }

    pub fn post_json(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, "application/json", body.to_string().as_bytes())
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.request("DELETE", path, "", b"")
    }

    /// Ends the daemon and gives its directory back.
    pub fn stop(self) -> Arc<TempDir> {
        Arc::clone(&self.directory)
    }

    fn end(&mut self) {
        if let Some(shutdown) = self.shutdown.take() {
            let _ = shutdown.send(());
        }
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        // A bridge outlives its daemon, as containers do; this one has none.
        let bridge = bridge(&self.directory);
        for command in [
            ["ip", "link", "del", &bridge].as_slice(),
            &["nft", "delete", "table", "ip", &bridge],
        ] {
            let quiet = std::process::Stdio::null;
            let _ = Command::new(command[0])
                .args(&command[1..])
                .stdout(quiet())
                .stderr(quiet())
                .status();
        }
    }
}

/// A name no other test's bridge has.
fn bridge(directory: &TempDir) -> String {
    let unique = directory.path().file_name().unwrap().to_string_lossy();
    format!("vt{}", &unique[unique.len() - 6..])
}

/// Reads a response to the end of the connection and undoes chunked encoding.
pub fn read_answer(stream: &mut UnixStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let _ = stream.shutdown(Shutdown::Both);
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a complete head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut body = bytes[end + 4..].to_vec();
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        body = unchunk(&body);
    }
    let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    Answer { status, head, body }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = rest
            .windows(2)
            .position(|window| window == b"\r\n")
            .expect("a chunk");
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        rest = &rest[line + 2..];
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

/// One entry of a tar archive (ustar).
pub fn tar_entry(name: &str, kind: u8, content: &[u8], link: &str) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(if kind == b'5' { b"0000755\0" } else { b"0000644\0" });
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut entry = header.to_vec();
    entry.extend_from_slice(content);
    entry.resize(entry.len().div_ceil(512) * 512, 0);
    entry
}

/// A root of a few files, as `import` takes it.
pub fn root_archive(marker: &str) -> Vec<u8> {
    let mut archive = tar_entry("etc/", b'5', b"", "");
    archive.extend(tar_entry(
        "etc/passwd",
        b'0',
        b"root:x:0:0::/:/bin/sh\nwww:x:33:33::/:\n",
        "",
    ));
    archive.extend(tar_entry("etc/marker", b'0', marker.as_bytes(), ""));
    archive.extend(tar_entry("etc/link", b'2', b"", "/etc/marker"));
    archive.extend(tar_entry("empty/", b'5', b"", ""));
    archive.extend([0; 1024]);
    archive
}
