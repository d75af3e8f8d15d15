//! Registries: Debian's `docker-registry` on loopback, in clear, with users, and behind a line that is slow or cut.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::{Daemon, daemon};

/// bcrypt of `secret`.
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

pub struct Registry {
    child: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Registry {
    /// One of its own, or none with the reason printed.
    pub fn start(users: bool) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let root = directory.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\nhttp: {{addr: '{address}'}}\n"
        );
        if users {
            std::fs::write(directory.path().join("users"), format!("me:{HASH}\n")).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: test, path: {root}/users}}}}\n");
        }
        let path = directory.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let started = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = started else {
            eprintln!("skipped: docker-registry is not installed");
            return None;
        };
        for _ in 0..500 {
            if TcpStream::connect(address).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Self {
            child,
            address,
            directory,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.directory.path();
    }
}

fn id(daemon: &Daemon, image: &str) -> String {
    daemon
        .vessel(&["inspect", "--type", "image", "-f", "{{.Id}}", image])
        .ok()
}

#[test]
fn what_was_pushed_can_be_pulled_and_run() {
    let (Some(daemon), Some(registry)) = (daemon(), Registry::start(false)) else {
        return;
    };
    let (one, two) = (registry.name("team/box:1"), registry.name("other:2"));
    let before = id(&daemon, "busybox");
    daemon.vessel(&["tag", "busybox", &one]).ok();
    daemon.vessel(&["tag", "busybox", &two]).ok();
    let said = daemon.vessel(&["push", &one]).ok();
    assert!(
        said.contains("Pushed") && said.contains("1: digest: sha256:"),
        "{said}"
    );
    assert!(
        daemon
            .vessel(&["push", &one])
            .ok()
            .contains("Layer already exists")
    );
    let mounted = daemon.vessel(&["push", &two]).ok();
    assert!(mounted.contains("Mounted from team/box"), "{mounted}");
    let digest = daemon
        .vessel(&[
            "inspect",
            "--type",
            "image",
            "-f",
            "{{index .RepoDigests 0}}",
            &one,
        ])
        .ok();
    daemon.vessel(&["rmi", "-f", &before]).ok();
    daemon.empty_bin();
    let said = daemon.vessel(&["pull", &one]).ok();
    assert!(
        said.contains("Pull complete") && said.contains("Downloaded newer image"),
        "{said}"
    );
    assert_eq!(id(&daemon, &one), before);
    assert!(
        daemon
            .vessel(&["pull", &one])
            .ok()
            .contains("Image is up to date")
    );
    daemon.vessel(&["rmi", &one]).ok();
    daemon.vessel(&["pull", "-q", &digest]).ok();
    assert_eq!(id(&daemon, &digest), before);
    daemon.vessel(&["rmi", &digest]).ok();
    let run = ["run", "--rm", "--network", "none"];
    let echo = [&run[..], &["--pull", "never", &one, "echo", "hi"]].concat();
    daemon.vessel(&echo).fails(125);
    let echo = [&run[..], &["-q", &one, "echo", "hi"]].concat();
    assert_eq!(daemon.vessel(&echo).ok(), "hi");
    let missing = daemon.vessel(&["pull", &registry.name("team/none")]).fails(1);
    assert!(missing.contains("not found"), "{missing}");
    let found = daemon
        .vessel(&["search", "--format", "{{.Name}}", &registry.name("box")])
        .ok();
    assert_eq!(found, "team/box");
    let all = daemon.vessel(&["pull", "-a", &registry.name("team/box")]).ok();
    assert!(all.contains("Image is up to date"), "{all}");
}

fn with_config(daemon: &Daemon, home: &Path, args: &[&str], input: &str) -> (i32, String) {
    let mut child = daemon
        .command(args)
        .env("DOCKER_CONFIG", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn a_registry_with_users() {
    let (Some(daemon), Some(registry)) = (daemon(), Registry::start(true)) else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    let host = registry.address.to_string();
    let name = registry.name("box:1");
    let run = |args: &[&str], input: &str| with_config(&daemon, home.path(), args, input);
    daemon.vessel(&["tag", "busybox", &name]).ok();
    assert_eq!(run(&["push", &name], "").0, 1);
    let login = ["login", "-u", "me", "--password-stdin", &host];
    let (code, said) = run(&login, "wrong\n");
    assert!(
        code == 1 && said.contains("unauthorized") && !said.contains("wrong\n"),
        "{said}"
    );
    assert!(!home.path().join("config.json").exists());
    let (code, said) = run(&login, "secret\n");
    assert!(
        code == 0 && said.contains("Login Succeeded") && said.contains("unencrypted"),
        "{said}"
    );
    let (code, said) = run(&["push", &name], "");
    assert_eq!(code, 0, "{said}");
    daemon.vessel(&["rmi", &name]).ok();
    let (code, said) = run(&["pull", &name], "");
    assert_eq!(code, 0, "{said}");
    let (code, said) = run(&["logout", &host], "");
    assert!(code == 0 && said.contains("Removing login credentials"), "{said}");
    assert_eq!(run(&["pull", &name], "").0, 1);
    // As people see it: what the daemon logs holds neither.
    assert!(!daemon.log().contains("secret") && !daemon.log().contains("bWU6c2VjcmV0"));
}

/// A credential helper as simple as can be: a file for each registry.
const HELPER: &str = r#"#!/bin/sh
file() { cat | tr -c 'a-z0-9.\n' _; }
case $1 in
    store) read -r json; name=$(printf '%s' "$json" | sed 's/.*"ServerURL":"\([^"]*\)".*/\1/' | tr -c 'a-z0-9.' _); printf '%s' "$json" > "$STORE/$name" ;;
    get) cat "$STORE/$(file)" 2>/dev/null || { echo "credentials not found in native keychain"; exit 1; } ;;
    erase) rm -f "$STORE/$(file)" ;;
esac
"#;

#[test]
fn credential_stores_and_helpers() {
    let (Some(daemon), Some(registry)) = (daemon(), Registry::start(true)) else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let helper = home.path().join("docker-credential-tiny");
    std::fs::write(&helper, HELPER).unwrap();
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let host = registry.address.to_string();
    let name = registry.name("box:1");
    let path = format!(
        "{}:{}",
        home.path().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let run = |args: &[&str], input: &str| {
        let mut child = daemon
            .command(args)
            .env("DOCKER_CONFIG", home.path())
            .env("PATH", &path)
            .env("STORE", &store)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    daemon.vessel(&["tag", "busybox", &name]).ok();
    let config = home.path().join("config.json");
    for content in [
        r#"{"credsStore":"tiny"}"#.to_owned(),
        format!(r#"{{"credHelpers":{{"{host}":"tiny"}}}}"#),
    ] {
        std::fs::write(&config, content).unwrap();
        let (code, said) = run(&["login", "-u", "me", "--password-stdin", &host], "secret\n");
        assert!(code == 0 && !said.contains("unencrypted"), "{said}");
        assert_eq!(std::fs::read_dir(&store).unwrap().count(), 1);
        let kept = std::fs::read_to_string(&config).unwrap();
        assert!(!kept.contains("secret") && !kept.contains("bWU6"), "{kept}");
        let (code, said) = run(&["push", &name], "");
        assert_eq!(code, 0, "{said}");
        let (code, said) = run(&["logout", &host], "");
        assert!(code == 0 && said.contains("Removing login credentials"), "{said}");
        assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);
        assert_eq!(run(&["pull", &name], "").0, 1);
    }
    std::fs::write(&config, r#"{"credsStore":"absent"}"#).unwrap();
    let (code, said) = run(&["pull", &name], "");
    assert!(code == 1 && said.contains("docker-credential-absent"), "{said}");
}

/// A line to a registry that stops after so many bytes, and what was asked through it.
struct Line {
    address: SocketAddr,
    left: Arc<AtomicU64>,
    asked: Arc<Mutex<Vec<u8>>>,
}

impl Line {
    fn to(registry: SocketAddr, bytes: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Self {
            address: listener.local_addr().unwrap(),
            left: Arc::new(AtomicU64::new(bytes)),
            asked: Arc::default(),
        };
        let (left, asked) = (Arc::clone(&line.left), Arc::clone(&line.asked));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(registry) else {
                    return;
                };
                let (mut up_from, mut up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let asked = Arc::clone(&asked);
                std::thread::spawn(move || {
                    let mut buffer = [0; 8192];
                    while let Ok(count @ 1..) = up_from.read(&mut buffer) {
                        asked.lock().unwrap().extend_from_slice(&buffer[..count]);
                        if up_to.write_all(&buffer[..count]).is_err() {
                            return;
                        }
                    }
                });
                let (mut from, mut to, left) = (server, client, Arc::clone(&left));
                std::thread::spawn(move || {
                    let mut buffer = [0; 8192];
                    while let Ok(count @ 1..) = from.read(&mut buffer) {
                        while left.load(Ordering::Relaxed) < count as u64 {
                            std::thread::sleep(Duration::from_millis(10));
                        }
                        left.fetch_sub(count as u64, Ordering::Relaxed);
                        if to.write_all(&buffer[..count]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        line
    }
}

#[test]
fn a_pull_survives_the_death_of_the_daemon() {
    let (Some(mut daemon), Some(registry)) = (daemon(), Registry::start(false)) else {
        return;
    };
    let name = registry.name("box:1");
    daemon.vessel(&["tag", "busybox", &name]).ok();
    daemon.vessel(&["push", &name]).ok();
    let image = id(&daemon, "busybox");
    daemon.vessel(&["rmi", "-f", &image]).ok();
    daemon.empty_bin();
    let line = Line::to(registry.address, 500_000);
    let slow = format!("{}/box:1", line.address);
    let mut client = daemon
        .command(&["pull", &slow])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let partial = daemon.root().join("partial");
    let kept = || -> u64 {
        let entries = std::fs::read_dir(&partial).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| Some(entry.metadata().ok()?.len()))
            .sum()
    };
    daemon.until("some of the layer has arrived", |_| kept() > 300_000);
    daemon.crash();
    client.wait().unwrap();
    let had = kept();
    daemon.start();
    assert_eq!(daemon.vessel(&["images", "-q"]).ok(), "");
    line.left.store(u64::MAX / 2, Ordering::Relaxed);
    line.asked.lock().unwrap().clear();
    daemon.vessel(&["pull", "-q", &slow]).ok();
    assert_eq!(id(&daemon, &slow), image);
    let asked = String::from_utf8_lossy(&line.asked.lock().unwrap()).to_lowercase();
    assert!(asked.contains(&format!("range: bytes={had}-")), "{asked}");
    assert_eq!(kept(), 0);
    let run = ["run", "--rm", "--network", "none", &slow, "echo", "hi"];
    assert_eq!(daemon.vessel(&run).ok(), "hi");
}
