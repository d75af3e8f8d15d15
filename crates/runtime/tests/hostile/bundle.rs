//! A bundle in a temporary directory, and the runtime as a process.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// A bundle and what belongs to it; gone when dropped.
pub struct Bundle {
    dir: tempfile::TempDir,
    pub id: String,
    pub config: Value,
    /// What the runtime inherits beyond its streams.
    pub leaked: Vec<OwnedFd>,
    /// What the runtime gets as descriptors from 3 on.
    pub passed: Vec<OwnedFd>,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub said: String,
}

impl Bundle {
    /// A container like Docker's default one, whose program is `inside PROBE`.
    pub fn new(probe: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for name in ["proc", "sys", "dev", "tmp", "etc", "vol"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        let own = std::env::current_exe().unwrap();
        std::fs::copy(&own, root.join("program")).unwrap();
        std::fs::copy(&own, dir.path().join("runtime")).unwrap();
        let mut config = vessel_runtime::oci::template();
        let mut args = vec!["/program", "inside"];
        args.extend(probe);
        config["process"]["args"] = json!(args);
        config["process"]["terminal"] = json!(false);
        config["process"]["noNewPrivileges"] = json!(false);
        config["process"].as_object_mut().unwrap().remove("rlimits");
        config["root"]["readonly"] = json!(false);
        let id = format!(
            "hostile-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        config["linux"]["cgroupsPath"] = json!(format!("/{id}"));
        Self {
            dir,
            id,
            config,
            leaked: Vec::new(),
            passed: Vec::new(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the container's root.
    pub fn inside(&self, path: &str) -> PathBuf {
        self.dir.path().join("rootfs").join(path)
    }

    /// Where the runtime keeps its state.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn mount(&mut self, mount: Value) {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
    }

    /// Replaces the mounts.
    pub fn mounts(&mut self, mounts: Value) {
        self.config["mounts"] = mounts;
    }

    /// Runs one command of the runtime to its end.
    pub fn call(&self, command: &str, flags: &[&str]) -> Outcome {
        let status = self.begin(command, flags).wait().unwrap();
        Outcome {
            code: status.code().unwrap_or(255),
            said: std::fs::read_to_string(self.path().join("said")).unwrap(),
        }
    }

    /// Begins one command of the runtime.
    pub fn begin(&self, command: &str, flags: &[&str]) -> Child {
        std::fs::write(self.path().join("config.json"), self.config.to_string()).unwrap();
        let log = self.path().join("said");
        let said = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        said.set_len(0).unwrap();
        let mut call = Command::new(self.path().join("runtime"));
        call.args(["runtime", command])
            .arg(self.state())
            .arg(self.path())
            .arg(&self.id)
            .args(flags);
        // A file: with a pipe, a detached container would keep this waiting.
        call.stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said);
        let leaked: Vec<i32> = self.leaked.iter().map(AsRawFd::as_raw_fd).collect();
        // Copies far above the numbers they get, below which others may lie in the way.
        let passed: Vec<OwnedFd> = self
            .passed
            .iter()
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 200).unwrap())
            .collect();
        // SAFETY: fcntl and dup2 are async-signal-safe; the numbers are of descriptors this process has open. What dup2
        // replaces is the child's: of this process's, or where it would tell that the program cannot be executed.
        unsafe {
            call.pre_exec(move || {
                for fd in &leaked {
                    libc::fcntl(*fd, libc::F_SETFD, 0);
                }
                for (number, fd) in passed.iter().enumerate() {
                    libc::dup2(fd.as_raw_fd(), 3 + number as i32);
                }
                Ok(())
            });
        }
        call.spawn().unwrap()
    }

    /// Runs the container to its end.
    pub fn run(&self) -> Outcome {
        self.call("run", &[])
    }

    /// An executable script in the root.
    pub fn script(&self, path: &str, text: &str) {
        let path = self.inside(path);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What exists of the container: its directory, its cgroups, its processes.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.state().join(&self.id).exists() {
            found.push("the state directory".to_owned());
        }
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .filter_map(|entry| Some(entry.ok()?.path()));
        for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            if hierarchy.join(&self.id).exists() {
                found.push(format!("the cgroup in {}", hierarchy.display()));
            }
        }
        for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let own = self.path().as_os_str().as_encoded_bytes();
            if cmdline.windows(own.len()).any(|part| part == own) {
                found.push(format!("process {}", entry.file_name().display()));
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        if mounts.contains(self.path().to_str().unwrap()) {
            found.push("a mount".to_owned());
        }
        found
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.state().join(&self.id).exists() {
            let _ = self.call("delete", &[]);
        }
    }
}
