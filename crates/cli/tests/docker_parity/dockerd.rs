//! A dockerd of our own, and the two clients that talk to it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A dockerd of our own: no bridge, no rules, its own directories. Killed with everything in it at the end.
pub struct Dockerd {
    child: Child,
    pub directory: tempfile::TempDir,
}

impl Dockerd {
    pub fn start() -> Result<Self, String> {
        for program in ["dockerd", "docker", "busybox", "tar"] {
            if find(program).is_none() {
                return Err(format!("{program} is not installed"));
            }
        }
        if !rustix::process::geteuid().is_root() {
            return Err("dockerd needs root".into());
        }
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let at = |name: &str| directory.path().join(name).display().to_string();
        let log = std::fs::File::create(at("log")).map_err(|error| error.to_string())?;
        let child = Command::new("dockerd")
            .args([
                "--data-root",
                &at("data"),
                "--exec-root",
                &at("exec"),
                "--pidfile",
                &at("pid"),
            ])
            .args(["-H", &format!("unix://{}", at("docker.sock"))])
            .args([
                "--bridge=none",
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
                "--ip-masq=false",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut dockerd = Self { child, directory };
        let begin = Instant::now();
        while !docker(&dockerd, &["version"]).status.success() {
            let ended = dockerd.child.try_wait().ok().flatten().is_some();
            if ended || begin.elapsed() > Duration::from_secs(60) {
                let log = std::fs::read_to_string(dockerd.directory.path().join("log")).unwrap_or_default();
                return Err(format!(
                    "dockerd does not start here: {}",
                    log.lines().last().unwrap_or_default()
                ));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        dockerd.import()?;
        Ok(dockerd)
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.directory.path().join("docker.sock").display())
    }

    /// An image of the host's static busybox.
    fn import(&self) -> Result<(), String> {
        let root = self.directory.path().join("root");
        std::fs::create_dir_all(root.join("bin")).map_err(|error| error.to_string())?;
        let busybox = find("busybox").unwrap_or_default();
        std::fs::copy(busybox, root.join("bin/busybox")).map_err(|error| error.to_string())?;
        for applet in [
            "sh", "echo", "cat", "sleep", "true", "false", "ls", "id", "env", "pwd", "head", "mkdir",
            "touch", "rm", "ln", "stat",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))
                .map_err(|error| error.to_string())?;
        }
        let tar = Command::new("tar")
            .arg("-C")
            .arg(&root)
            .args(["-c", "."])
            .output()
            .map_err(|e| e.to_string())?;
        let out = run(
            "docker",
            &self.host(),
            &[
                "import",
                "-c",
                "CMD [\"sh\"]",
                "-c",
                "ENV PATH=/bin",
                "-",
                "box:latest",
            ],
            &tar.stdout,
        );
        if out.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let ids = docker(self, &["ps", "-aq"]);
        for id in String::from_utf8_lossy(&ids.stdout).lines() {
            docker(self, &["rm", "-f", "-v", id]);
        }
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        );
        let _ = self.child.wait();
    }
}

pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

pub fn run(program: &str, host: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .env("DOCKER_HOST", host)
        .env("DOCKER_CLI_HINTS", "false")
        .env("TZ", "UTC")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

pub fn docker(dockerd: &Dockerd, arguments: &[&str]) -> Output {
    run("docker", &dockerd.host(), arguments, b"")
}

pub fn vessel(dockerd: &Dockerd, arguments: &[&str], input: &[u8]) -> Output {
    run(env!("CARGO_BIN_EXE_vessel"), &dockerd.host(), arguments, input)
}
