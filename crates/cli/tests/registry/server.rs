//! A registry of its own for each test.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use vessel_image::Digest;

use crate::http::{Answer, send};

pub const VESSEL: &str = env!("CARGO_BIN_EXE_vessel");
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A server, gone when dropped.
pub struct Server {
    pub address: SocketAddr,
    pub root: PathBuf,
    options: Vec<String>,
    pub child: Child,
}

impl Server {
    pub fn start(root: &Path, options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let (child, address) = spawn(root, &options, "127.0.0.1:0");
        Self {
            address,
            root: root.to_owned(),
            options,
            child,
        }
    }

    /// Starts it again where it was.
    pub fn again(&mut self) {
        let address = self.address.to_string();
        (self.child, self.address) = spawn(&self.root, &self.options, &address);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        send(self.address, method, path, &[], body)
    }

    /// Pushes a blob by three requests; its digest once it is acknowledged.
    pub fn push_blob(&self, name: &str, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::sha256(bytes);
        let begun = self.send("POST", &format!("/v2/{name}/blobs/uploads/"), b"")?;
        let location = begun.header("location").ok_or_else(|| refused(&begun))?;
        let (first, last) = bytes.split_at(bytes.len() / 2);
        self.send("PATCH", location, first)?;
        let ended = self.send("PUT", &format!("{location}?digest={digest}"), last)?;
        if ended.status == 201 {
            Ok(digest)
        } else {
            Err(refused(&ended))
        }
    }

    /// Pushes an image of one layer.
    pub fn push_image(&self, name: &str, tag: &str, layer: &[u8]) -> io::Result<Vec<u8>> {
        let config = self.push_blob(name, b"{}")?;
        let digest = self.push_blob(name, layer)?;
        let size = layer.len();
        let raw = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{size}}}]}}"#
        );
        let path = format!("/v2/{name}/manifests/{tag}");
        let answer = send(
            self.address,
            "PUT",
            &path,
            &[("content-type", OCI_MANIFEST)],
            raw.as_bytes(),
        )?;
        if answer.status == 201 {
            Ok(raw.into_bytes())
        } else {
            Err(refused(&answer))
        }
    }
}

fn refused(answer: &Answer) -> io::Error {
    io::Error::other(format!(
        "{}: {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    ))
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(root: &Path, options: &[String], listen: &str) -> (Child, SocketAddr) {
    let mut child = Command::new(VESSEL)
        .args(["registry", "serve", "--listen", listen, "--root"])
        .arg(root)
        .args(options)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = String::new();
    let address = loop {
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("the registry ended: {said}"))
            .unwrap();
        if let Some((_, address)) = line.split_once("listening at ") {
            break address.split_once("://").unwrap().1.parse().unwrap();
        }
        said += &line;
    };
    // Its log goes on.
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
    (child, address)
}

/// Runs `vessel registry …`; what it printed.
pub fn vessel(arguments: &[&str]) -> Output {
    Command::new(VESSEL)
        .arg("registry")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}
