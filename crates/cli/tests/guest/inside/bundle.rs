//! OCI bundles of busybox, and `vessel runtime` run on them.

use std::fs::File;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// The containers' root.
pub const ROOTFS: &str = "/guest/rootfs";
/// Where cgroup v2 is mounted.
pub const CGROUPS: &str = "/sys/fs/cgroup";
/// No command of a check takes longer, slow as the guest is.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the root that all bundles share.
pub fn make_rootfs() -> Result<()> {
    for dir in ["bin", "dev", "etc", "data", "proc", "root", "sys", "tmp"] {
        std::fs::create_dir_all(Path::new(ROOTFS).join(dir))?;
    }
    let root = Path::new(ROOTFS);
    std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777))?;
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    std::fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for applet in String::from_utf8(Command::new("/bin/busybox").arg("--list").output()?.stdout)?.lines() {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet))?;
        }
    }
    chown(root, Some(0), Some(0))?;
    Ok(())
}

/// How a command ended, and what it wrote.
#[derive(Debug)]
pub struct Ended {
    /// 128 + signal when one killed it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The output of a command that must have succeeded.
    pub fn ok(self) -> Result<String> {
        ensure!(
            self.code == 0,
            "exit status {}: {}",
            self.code,
            self.stderr.trim()
        );
        Ok(self.stdout)
    }

    /// The error text of a command that must have failed.
    pub fn failed(self) -> Result<String> {
        ensure!(self.code != 0, "succeeded, but must not: {}", self.stdout.trim());
        Ok(self.stderr)
    }
}

/// Runs a command to its end. Output goes through files: what the command leaves running may keep them open.
pub fn command(command: &mut Command) -> Result<Ended> {
    let dir = tempfile::tempdir()?;
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(&out)?)
        .stderr(File::create(&err)?)
        .spawn()
        .context(format!("{command:?}"))?;
    let end = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            bail!(
                "{command:?} did not end: {} {}",
                std::fs::read_to_string(out)?,
                std::fs::read_to_string(err)?
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ok(Ended {
        code: status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&std::fs::read(out)?).into_owned(),
        stderr: String::from_utf8_lossy(&std::fs::read(err)?).into_owned(),
    })
}

/// `vessel` with arguments.
pub fn vessel(arguments: &[&str]) -> Result<Ended> {
    command(Command::new("/bin/vessel").args(arguments))
}

/// Waits until something is so.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !condition()? {
        ensure!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A configuration in the making.
pub struct Bundle {
    id: &'static str,
    spec: Value,
}

impl Bundle {
    /// A container that runs a shell script.
    pub fn sh(id: &'static str, script: &str) -> Self {
        Self::new(id, &["sh", "-c", script])
    }

    /// A container that does nothing, for long.
    pub fn idle(id: &'static str) -> Self {
        Self::new(id, &["sleep", "1000"])
    }

    pub fn new(id: &'static str, arguments: &[&str]) -> Self {
        let capabilities = json!([
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_KILL",
            "CAP_MKNOD",
            "CAP_NET_BIND_SERVICE",
            "CAP_SETGID",
            "CAP_SETUID",
        ]);
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": {
                "args": arguments, "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 }, "noNewPrivileges": true,
                "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            },
            "root": { "path": ROOTFS },
            "hostname": id,
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"] },
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "size=256m"] },
                { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
                { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"] },
            ],
            "linux": {
                "cgroupsPath": format!("/vessel/{id}"),
                "namespaces": [
                    { "type": "pid" }, { "type": "mount" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "cgroup" },
                ],
                "resources": {
                    "devices": [
                        { "allow": false, "access": "rwm" },
                        { "allow": true, "type": "c", "access": "m" }, { "allow": true, "type": "b", "access": "m" },
                    ],
                },
                "maskedPaths": ["/proc/kcore", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys"],
            },
        });
        Self { id, spec }
    }

    /// Changes the configuration as only code can.
    pub fn edit(mut self, edit: impl FnOnce(&mut Value)) -> Self {
        edit(&mut self.spec);
        self
    }

    /// Sets `linux.resources.<part>`.
    pub fn limit(self, part: &str, value: Value) -> Self {
        self.edit(|spec| spec["linux"]["resources"][part] = value)
    }

    /// Adds a namespace.
    pub fn namespace(self, kind: &str) -> Self {
        self.edit(|spec| {
            spec["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .push(json!({ "type": kind }))
        })
    }

    /// Leaves a namespace out.
    pub fn without_namespace(self, kind: &str) -> Self {
        self.edit(|spec| {
            spec["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .retain(|namespace| namespace["type"] != kind)
        })
    }

    fn write(&self) -> Result<PathBuf> {
        let dir = PathBuf::from(format!("/guest/bundles/{}", self.id));
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("config.json"), serde_json::to_vec(&self.spec)?)?;
        Ok(dir)
    }

    /// `vessel runtime run`: to the end.
    pub fn run(self) -> Result<Ended> {
        let dir = self.write()?;
        vessel(&["runtime", "run", "--bundle", dir.to_str().unwrap(), self.id])
    }

    /// `vessel runtime run --detach`, or `create`.
    fn begin(self, verb: &[&str]) -> Result<Running> {
        let dir = self.write()?;
        let running = Running { id: self.id };
        vessel(&[&["runtime"], verb, &["--bundle", dir.to_str().unwrap(), self.id]].concat())?.ok()?;
        Ok(running)
    }

    pub fn start(self) -> Result<Running> {
        self.begin(&["run", "--detach"])
    }

    pub fn create(self) -> Result<Running> {
        self.begin(&["create"])
    }
}

/// A container that is there; deleted with this.
pub struct Running {
    id: &'static str,
}

impl Running {
    /// `vessel runtime VERB ID ARGUMENTS`.
    pub fn runtime(&self, verb: &str, arguments: &[&str]) -> Result<Ended> {
        vessel(&[&["runtime", verb, self.id], arguments].concat())
    }

    /// A process beside the container's own.
    pub fn exec(&self, script: &str) -> Result<Ended> {
        vessel(&["runtime", "exec", self.id, "sh", "-c", script])
    }

    pub fn state(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.runtime("state", &[])?.ok()?)?)
    }

    pub fn pid(&self) -> Result<i64> {
        self.state()?["pid"].as_i64().context("a state without a process")
    }

    /// Its cgroup's directory.
    pub fn cgroup(&self) -> PathBuf {
        Path::new(CGROUPS).join("vessel").join(self.id)
    }

    /// A file of its cgroup.
    pub fn file(&self, name: &str) -> Result<String> {
        let path = self.cgroup().join(name);
        let text = std::fs::read_to_string(&path).context(path.display().to_string())?;
        Ok(text.trim().to_owned())
    }

    /// One line `key value` of a file of its cgroup.
    pub fn number(&self, file: &str, key: &str) -> Result<u64> {
        let text = self.file(file)?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        Ok(value
            .with_context(|| format!("{file} has no {key}: {text}"))?
            .parse()?)
    }

    pub fn wait_stopped(&self) -> Result<()> {
        wait_for("the container's end", || Ok(self.state()?["status"] == "stopped"))
    }

    pub fn delete(&self) -> Result<()> {
        self.runtime("delete", &["--force"])?.ok()?;
        ensure!(
            !self.cgroup().exists(),
            "delete left the cgroup {}",
            self.cgroup().display()
        );
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.runtime("delete", &["--force"]);
    }
}
