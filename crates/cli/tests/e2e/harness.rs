//! A private daemon, and what the machine must look like after it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The binary under test.
pub const VESSEL: &str = env!("CARGO_BIN_EXE_vessel");

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A daemon of its own, gone with everything it made when dropped.
pub struct Daemon {
    dir: tempfile::TempDir,
    bridge: String,
    subnet: String,
    number: u32,
    /// The next start is without a bridge.
    pub no_bridge: bool,
    /// Further options of the next start.
    pub more: Vec<String>,
    /// A process whose network the next start is in.
    pub network_of: Option<u32>,
    /// Open files that the daemon may have from the next start on, where that is not as many as there may be.
    pub files: Option<u32>,
    child: Option<Child>,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    /// Standard output without the last newline, of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out.trim_end().to_owned()
    }

    /// The failure's text, of a command that must have ended with `code`.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        self.err
    }
}

/// A daemon with the busybox image, or none with the reason printed.
pub fn daemon() -> Option<Daemon> {
    prepared_daemon(|_| ())
}

/// One that keeps what was removed for a while, however full the disk is.
pub fn daemon_with_bin() -> Option<Daemon> {
    prepared_daemon(|daemon| daemon.more.extend(["--bin".into(), "1g".into()]))
}

/// One with something done before its first start.
pub fn prepared_daemon(prepare: impl FnOnce(&mut Daemon)) -> Option<Daemon> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: containers with networks and cgroups need root");
        return None;
    }
    let Some(image) = busybox_image() else {
        eprintln!("skipped: there is no static busybox (apt-get install busybox-static)");
        return None;
    };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut daemon = Daemon {
        dir: tempfile::tempdir().expect("a temporary directory"),
        bridge: format!("vt{:x}n{number:x}", std::process::id()),
        // The default pools hold some thirty networks; a test run may want more.
        subnet: format!("10.{}.{}.1/24", 20 + std::process::id() % 100, number % 256),
        number,
        no_bridge: false,
        more: Vec::new(),
        network_of: None,
        files: None,
        child: None,
    };
    prepare(&mut daemon);
    daemon.start();
    daemon
        .vessel(&["load", "-q", "-i", image.to_str().expect("a plain path")])
        .ok();
    Some(daemon)
}

/// The archive made by the documented script, once.
fn busybox_image() -> Option<&'static Path> {
    static IMAGE: OnceLock<Option<PathBuf>> = OnceLock::new();
    IMAGE
        .get_or_init(|| {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/busybox.sh");
            let path =
                Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("busybox-{}.tar", std::process::id()));
            let output = Command::new("bash")
                .arg(script)
                .stderr(Stdio::inherit())
                .output()
                .ok()?;
            (output.status.success() && std::fs::write(&path, output.stdout).is_ok()).then_some(path)
        })
        .as_deref()
}

impl Daemon {
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn socket(&self) -> String {
        format!("unix://{}", self.dir.path().join("vessel.sock").display())
    }

    pub fn cgroup_parent(&self) -> String {
        format!("/{}", self.bridge)
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        self.spawn();
        let begin = Instant::now();
        while self.vessel(&["version"]).code != 0 {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "the daemon does not answer:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the daemon.
    pub fn spawn(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("daemon.log"))
            .expect("the daemon's log");
        let mut command = match (self.network_of, self.files) {
            (Some(pid), _) => {
                let mut command = Command::new("nsenter");
                command.args(["-n", "-t", &pid.to_string(), VESSEL]);
                command
            }
            (None, Some(files)) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\""), VESSEL]);
                shell
            }
            (None, None) => Command::new(VESSEL),
        };
        let child = command
            .arg("daemon")
            .args(["--root", self.root().to_str().expect("a plain path")])
            .args(["--run", self.run_dir().to_str().expect("a plain path")])
            .args([
                "--socket",
                self.dir
                    .path()
                    .join("vessel.sock")
                    .to_str()
                    .expect("a plain path"),
            ])
            .args(["--bridge", if self.no_bridge { "none" } else { &self.bridge }])
            .args(["--subnet", &self.subnet])
            .args(["--cgroup-parent", &self.cgroup_parent()])
            .args(&self.more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the daemon's log"))
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        self.child = Some(child);
    }

    /// The daemon's process ID while it runs.
    #[allow(dead_code, reason = "torture asks for it, e2e does not")]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// A subnet for a network of this daemon's; there are eight.
    #[allow(dead_code, reason = "e2e asks for it, torture does not")]
    pub fn further_subnet(&self, which: u32) -> String {
        // Where no daemon of this process has its bridge.
        let (a, b) = (120 + std::process::id() % 100, self.number % 256);
        format!("10.{a}.{b}.{}/27", which * 32)
    }

    /// A subnet of IPv6 for a network of this daemon's, up to its last group: `fd…:N:`.
    #[allow(dead_code, reason = "e2e asks for it, torture does not")]
    pub fn further_subnet_v6(&self, which: u32) -> String {
        // No group is zero: what is shown leaves those out.
        let (process, network) = (1 + std::process::id() % 0xfff0, which + 1);
        format!("fd5e:{process:x}:{:x}:{network:x}:", self.number + 1)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default()
    }

    /// Kills the daemon as a crash would.
    pub fn crash(&mut self) {
        let mut child = self.child.take().expect("a running daemon");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// Ends the daemon as an operator would.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            child.wait().expect("wait");
        }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(VESSEL);
        command
            .arg("--host")
            .arg(self.socket())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Runs a client command.
    pub fn vessel(&self, args: &[&str]) -> Said {
        self.command(args).output().expect("the client runs").into()
    }

    /// Lets go of what was removed, where it is kept: for tests that count on it to be gone.
    #[allow(dead_code, reason = "e2e asks for it, torture does not")]
    #[track_caller]
    pub fn empty_bin(&self) {
        self.vessel(&["system", "bin", "empty", "-f"]).ok();
    }

    /// Runs a client command with something on its standard input.
    pub fn feed(&self, args: &[&str], input: &[u8]) -> Said {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the client runs");
        let mut stdin = child.stdin.take().expect("piped");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().expect("the client ends");
        writer.join().expect("the writer ends");
        output.into()
    }

    /// A member of `inspect`, by Go template.
    #[track_caller]
    pub fn inspect(&self, container: &str, template: &str) -> String {
        self.vessel(&["inspect", "-f", template, container]).ok()
    }

    /// Waits until `test` holds.
    #[track_caller]
    pub fn until(&self, what: &str, test: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !test(self) {
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "waited too long: {what}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What of ours is on the machine: processes, mounts, cgroups, interfaces, container and shim directories.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let own = self.dir.path().to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        found.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&own))
                .map(|line| format!("mount {line}")),
        );
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let dir = hierarchy.path().join(&self.bridge);
            let nested = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            found.extend(
                nested
                    .filter(|entry| entry.path().is_dir())
                    .map(|entry| format!("cgroup {}", entry.path().display())),
            );
        }
        for dir in [self.root().join("containers"), self.run_dir().join("shims")] {
            let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| format!("directory {}", entry.path().display())));
        }
        found
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_none() {
            self.start();
        }
        let all = self.vessel(&["ps", "-aq"]);
        let ids: Vec<&str> = all.out.split_whitespace().collect();
        if !ids.is_empty() {
            self.vessel(&[&["rm", "-f", "-v"][..], &ids].concat());
        }
        self.vessel(&["network", "prune", "-f"]);
        let begin = Instant::now();
        while !self.leftovers().is_empty() && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let left = self.leftovers();
        let log = self.log();
        self.stop();
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            clear_cgroup(&hierarchy.path().join(&self.bridge));
        }
        // The bridge outlives an orderly stop for the containers' sake; here nobody needs it any more.
        let _ = Command::new("ip")
            .args(["link", "delete", &self.bridge])
            .stderr(Stdio::null())
            .status();
        for family in ["ip", "ip6"] {
            let _ = Command::new("nft")
                .args(["delete", "table", family, &self.bridge])
                .stderr(Stdio::null())
                .status();
        }
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind: {left:#?}\n{log}");
        }
    }
}

/// Kills what a daemon that failed left running, and removes the cgroup.
fn clear_cgroup(cgroup: &Path) {
    let nested = std::fs::read_dir(cgroup).into_iter().flatten().flatten();
    for entry in nested.filter(|entry| entry.path().is_dir()) {
        clear_cgroup(&entry.path());
    }
    let processes = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let pids = processes.lines().filter_map(|line| line.parse().ok());
    for pid in pids.filter_map(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    // What was killed is gone in a moment.
    for _ in 0..100 {
        if !cgroup.exists() || std::fs::remove_dir(cgroup).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
