//! `docker` and `vessel` side by side against one private dockerd: the same arguments have to give the same
//! standard output and the same exit code.
//!
//! Skipped, with a line that says why, where dockerd, the docker command, a static busybox or root is missing.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A dockerd of our own: no bridge, no rules, its own directories. Killed with everything in it at the end.
struct Dockerd {
    child: Child,
    directory: tempfile::TempDir,
}

impl Dockerd {
    fn start() -> Result<Self, String> {
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

    fn host(&self) -> String {
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

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

fn run(program: &str, host: &str, arguments: &[&str], input: &[u8]) -> Output {
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

fn docker(dockerd: &Dockerd, arguments: &[&str]) -> Output {
    run("docker", &dockerd.host(), arguments, b"")
}

fn vessel(dockerd: &Dockerd, arguments: &[&str], input: &[u8]) -> Output {
    run(env!("CARGO_BIN_EXE_vessel"), &dockerd.host(), arguments, input)
}

/// What is not the same twice: IDs, process numbers, times.
fn normal(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    let flush = |word: &mut String, out: &mut String| {
        let hex = word.len() >= 12 && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        out.push_str(if hex { "ID" } else { word });
        word.clear();
    };
    for c in text.chars() {
        if c.is_alphanumeric() {
            word.push(c);
        } else {
            flush(&mut word, &mut out);
            out.push(c);
        }
    }
    flush(&mut word, &mut out);
    // "5 seconds ago" was 4 for who asked first.
    let mut pieces = out.split(" second");
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = out.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        out.truncate(end);
        out.push_str("N second");
        out.push_str(piece);
    }
    out
}

/// Commands that change nothing, or make what `--rm` removes.
const SAME: &[&[&str]] = &[
    // Lists and their formats.
    &["ps"],
    &["ps", "-a"],
    &["ps", "-aq"],
    &["ps", "-a", "--no-trunc"],
    &["ps", "-a", "-s"],
    &["ps", "-n", "1"],
    &["ps", "-l", "-q"],
    &["ps", "--filter", "name=up", "--format", "{{.Names}}"],
    &[
        "ps",
        "-a",
        "--filter",
        "status=exited",
        "--format",
        "{{.Names}}\\t{{.Image}}",
    ],
    &[
        "ps",
        "--format",
        "table {{.Names}}\\t{{.Image}}\\t{{.Mounts}}\\t{{.Networks}}",
    ],
    &[
        "ps",
        "--format",
        "table {{.Names}}\\t{{.Label \"com.example.tier\"}}",
    ],
    &[
        "ps",
        "--format",
        "{{.Names}} {{.Label \"com.example.tier\"}} {{.Labels}}",
    ],
    &[
        "ps",
        "--format",
        "{{upper .Names}} {{.State}} {{pad .Names 1 2}}|{{truncate .Image 2}}",
    ],
    &["ps", "--filter", "nonsense"],
    &["ps", "--filter", "nonsense=x"],
    &["container", "ls", "-a", "-q"],
    &["images"],
    &["images", "-q", "--no-trunc"],
    &["images", "--digests"],
    &["images", "box"],
    &["images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}"],
    &["images", "--format", "table {{.Repository}}\\t{{.ID}}"],
    &["image", "ls", "--filter", "dangling=true"],
    &["history", "box"],
    &["history", "-q", "--no-trunc", "box"],
    &["history", "--format", "{{.Comment}}|{{.Size}}", "box"],
    &["volume", "ls"],
    &["volume", "ls", "-q"],
    &["volume", "ls", "--format", "{{.Name}} {{.Driver}} {{.Labels}}"],
    &["network", "ls"],
    &["network", "ls", "--no-trunc", "-q"],
    &[
        "network",
        "ls",
        "--format",
        "{{.Name}} {{.Driver}} {{.Scope}} {{.Internal}}",
    ],
    &["system", "df"],
    &["system", "df", "-v"],
    &["system", "df", "--format", "{{.Type}}: {{.TotalCount}} {{.Size}}"],
    &[
        "system",
        "df",
        "-v",
        "--format",
        "{{range .Images}}{{.Repository}}:{{.Tag}} {{.ID}}{{end}}",
    ],
    &[
        "system",
        "df",
        "-v",
        "--format",
        "{{range .Volumes}}{{.Name}} {{.Links}} {{.Size}}{{end}}",
    ],
    &[
        "system",
        "df",
        "-v",
        "--format",
        "{{len .Containers}} {{json .BuildCache}}",
    ],
    // One thing.
    &["inspect", "up"],
    &["inspect", "-s", "up"],
    &["inspect", "up", "box"],
    &["inspect", "nonesuch"],
    &["inspect", "up", "nonesuch"],
    &["inspect", "--type", "volume", "data"],
    &[
        "inspect",
        "-f",
        "{{.Name}} {{.State.Status}} {{.HostConfig.Memory}}",
        "up",
    ],
    &[
        "inspect",
        "-f",
        "{{json .Config.Env}} {{json .State.Running}}",
        "up",
    ],
    &["inspect", "-f", "{{json .HostConfig.LogConfig}}", "up"],
    &["inspect", "-f", "{{range .Mounts}}{{.Destination}} {{end}}", "up"],
    &[
        "inspect",
        "-f",
        "{{index .Config.Labels \"com.example.tier\"}}",
        "up",
    ],
    &["inspect", "-f", "{{.Config.Labels.nope}}", "up"],
    &[
        "inspect",
        "-f",
        "{{len .Config.Env}} {{if .State.Running}}yes{{else}}no{{end}}",
        "up",
    ],
    &["inspect", "-f", "{{.ID}} {{.HostConfig.NanoCPUs}}", "up"],
    &["inspect", "-f", "{{", "up"],
    &["container", "inspect", "box"],
    &["image", "inspect", "box"],
    &[
        "image",
        "inspect",
        "-f",
        "{{.RepoTags}} {{.Os}}/{{.Architecture}}",
        "box",
    ],
    &["volume", "inspect", "data"],
    &["network", "inspect", "host"],
    &["network", "inspect", "nonesuch"],
    &["logs", "up"],
    &["logs", "--tail", "1", "up"],
    &["logs", "-t", "up"],
    &["logs", "--since", "1h", "up"],
    &["logs", "--until", "1h", "up"],
    &["logs", "nonesuch"],
    &["top", "up"],
    &["top", "up", "-o", "pid,comm"],
    &["top", "down"],
    &["diff", "up"],
    &["port", "up"],
    &["port", "up", "80"],
    &["wait", "down"],
    &["info", "--format", "{{.Driver}} {{.NCPU}} {{.OSType}}"],
    &[
        "version",
        "--format",
        "{{.Server.Version}} {{.Server.APIVersion}}",
    ],
    &["version", "--format", "{{.Server.Os}}"],
    // Exit codes of run and its streams.
    &["run", "--rm", "--network", "none", "box", "echo", "hello"],
    &["run", "--rm", "--network", "none", "box", "sh", "-c", "exit 42"],
    &["run", "--rm", "--network", "none", "box", "false"],
    &["run", "--rm", "--network", "none", "box", "nosuchcommand"],
    &["run", "--rm", "--network", "none", "box", "/bin"],
    &[
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "echo",
        "box",
        "a",
        "b",
    ],
    &[
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "",
        "box",
        "echo",
        "c",
    ],
    &[
        "run",
        "--rm",
        "--network",
        "none",
        "-e",
        "A=b",
        "-e",
        "TZ",
        "-e",
        "NOPE",
        "-w",
        "/tmp",
        "--hostname",
        "hh",
        "box",
        "sh",
        "-c",
        "echo $A $TZ; pwd; cat /etc/hostname; env | wc -l || true",
    ],
    &["run", "--rm", "--network", "none", "-u", "12:34", "box", "id"],
    &[
        "run",
        "--rm",
        "--network",
        "none",
        "-m",
        "32m",
        "--ulimit",
        "nofile=64:64",
        "box",
        "sh",
        "-c",
        "ulimit -n",
    ],
    &[
        "run",
        "--rm",
        "--network",
        "none",
        "--read-only",
        "box",
        "touch",
        "/x",
    ],
    &[
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        "data:/data:ro",
        "box",
        "ls",
        "/data",
    ],
    &["run", "--rm", "--network", "none", "-i", "box", "cat"],
    &[
        "run",
        "--rm",
        "--network",
        "none",
        "-a",
        "stdout",
        "box",
        "sh",
        "-c",
        "echo out; echo err >&2",
    ],
    &[
        "run",
        "--rm",
        "--network",
        "none",
        "--pull",
        "never",
        "nonesuch",
        "true",
    ],
    &["run", "--rm", "-d", "-a", "stdout", "box"],
    &["run", "-t", "-i", "--rm", "box"],
    &["run", "--nope", "box"],
    &["run", "--memory", "1x", "box"],
    &["run", "--memory", "1", "--network", "none", "--rm", "box", "true"],
    &["run", "--cpus", "x", "box"],
    &["run", "-p", "80:x", "box"],
    &["run", "-v", "a:b:c:d", "box"],
    &["run", "--mount", "type=nope,dst=/a", "--network", "none", "box"],
    &["run", "--mount", "nope=1", "box"],
    &["run", "--ulimit", "nope=1", "box"],
    &["run", "--restart", "always", "--rm", "box"],
    &["run", "--env-file", "/no/such/file", "box"],
    &["run", "--device", "a", "box"],
    &["run", "--add-host", "x", "box"],
    &["run", "--attach", "nope", "box"],
    &["run", "--name", "up", "box"],
    &["run", "--name", "!", "box"],
    &["run", "--pid", "nope", "box"],
    &["run", "--sysctl", "x", "box"],
    &["run", "--memory-swappiness", "101", "box"],
    &["run"],
    &["create"],
    // Values attached to short options, flags with values.
    &[
        "run",
        "--rm",
        "--network=none",
        "-eA=b",
        "-u0",
        "-w/tmp",
        "-lfoo=bar",
        "-hhh",
        "-c512",
        "-m100m",
        "-v/tmp:/x",
        "box",
        "sh",
        "-c",
        "echo $A; pwd; cat /etc/hostname",
    ],
    &[
        "run",
        "--rm",
        "--network=none",
        "-i=false",
        "-t=false",
        "-d=false",
        "-it=false",
        "box",
        "cat",
    ],
    &["run", "--rm", "--network=none", "box", "echo", "-e", "--rm", "-x"],
    &["run", "-x", "box"],
    &["run", "--cpus", "-1", "box"],
    &["run", "--init=maybe", "box"],
    &["run", "--pids-limit", "x", "box"],
    &["run", "--cidfile", "/proc/version/id", "--name", "unmade", "box"],
    &["inspect", "unmade"],
    // Exit codes of the command itself.
    &["container"],
    &["image"],
    &["inspect", "-f", "{{break}}", "up"],
    &["ps", "--format", "{{break}}"],
    &["ps", "--format", "{{"],
    // exec.
    &[
        "exec",
        "-u7",
        "-eX=y",
        "-w/tmp",
        "up",
        "sh",
        "-c",
        "id; echo $X; pwd",
    ],
    &["exec", "-x", "up", "true"],
    &["exec", "up", "echo", "hello"],
    &["exec", "up", "sh", "-c", "exit 9"],
    &[
        "exec",
        "-e",
        "X=y",
        "-w",
        "/tmp",
        "up",
        "sh",
        "-c",
        "echo $X; pwd",
    ],
    &["exec", "-i", "up", "cat"],
    &["exec", "-u", "7", "up", "id"],
    &["exec", "up", "nosuchcommand"],
    &["exec", "down", "true"],
    &["exec", "nonesuch", "true"],
    &["exec", "up"],
    &["exec", "-d", "up", "true"],
    // Errors.
    &["start", "nonesuch"],
    &["stop", "nonesuch"],
    &["kill", "down"],
    &["kill", "-s", "NOPE", "up"],
    &["pause", "down"],
    &["unpause", "up"],
    &["attach", "down"],
    &["rm", "up"],
    &["rm", "nonesuch"],
    &["rm", "-f", "nonesuch"],
    &["rmi", "nonesuch"],
    &["rmi", "-f", "nonesuch"],
    &["rename", "up", "down"],
    &["rename", "up", ""],
    &["update", "up"],
    &["update", "--memory", "1", "up"],
    &["tag", "nonesuch", "x"],
    &["tag", "box", "UPPER"],
    &["save", "nonesuch"],
    &["load", "-i", "/no/such/file"],
    &["cp", "up:/nonesuch", "/tmp"],
    &["cp", "up:/a", "down:/b"],
    &["cp", "/a", "/b"],
    &["cp", "/no/such/file", "up:/"],
    &["volume", "rm", "data"],
    &["volume", "rm", "nonesuch"],
    &["network", "rm", "nonesuch"],
    &["ps", "extra"],
    &["ps", "--nope"],
    &["ps", "--format"],
    &["rm"],
    &["nosuchcommand"],
    &["container", "nosuchcommand"],
    &["logs", "--since", "yesterday", "up"],
];

/// Commands that change something, with what undoes it for the second.
const CHANGING: &[(&[&str], &[&str])] = &[
    (&["pause", "up"], &["unpause", "up"]),
    (&["rename", "up", "other"], &["rename", "other", "up"]),
    (&["tag", "box", "new:1"], &["rmi", "new:1"]),
    (
        &["volume", "create", "--label", "a=b", "fresh"],
        &["volume", "rm", "fresh"],
    ),
    (&["stop", "-t", "0", "up"], &["start", "up"]),
    (&["kill", "up"], &["start", "up"]),
    (&["start", "down"], &["stop", "-t", "0", "down"]),
    (&["start", "-a", "once"], &["ps"]),
    (
        &["update", "--memory", "50m", "--memory-swap", "-1", "up"],
        &["ps"],
    ),
    (
        &["create", "--name", "made", "--network", "none", "box", "true"],
        &["rm", "made"],
    ),
    (
        &[
            "run",
            "-d",
            "--name",
            "made",
            "--network",
            "none",
            "box",
            "sleep",
            "100",
        ],
        &["rm", "-f", "made"],
    ),
    (&["restart", "-t", "0", "up"], &["ps"]),
];

fn compare(arguments: &[&str], docker: &Output, vessel: &Output, differences: &mut Vec<String>) {
    let (mut theirs, mut ours) = (normal(&docker.stdout), normal(&vessel.stdout));
    if arguments.first() == Some(&"diff") {
        // dockerd lists changes in an order of its own, which is another each time.
        for text in [&mut theirs, &mut ours] {
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            *text = lines.join("\n");
        }
    }
    if theirs == ours && docker.status.code() == vessel.status.code() {
        return;
    }
    differences.push(format!(
        "{arguments:?}\n  docker {:?}: {theirs:?}\n    {:?}\n  vessel {:?}: {ours:?}\n    {:?}",
        docker.status.code(),
        String::from_utf8_lossy(&docker.stderr),
        vessel.status.code(),
        String::from_utf8_lossy(&vessel.stderr),
    ));
}

fn round_trip_of_files(dockerd: &Dockerd, scratch: &Path) {
    let here = |name: &str| scratch.join(name).display().to_string();
    let copy = |from: &str, to: &str| {
        let out = vessel(dockerd, &["cp", from, to], b"");
        assert!(
            out.status.success(),
            "cp {from} {to}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    };
    std::fs::create_dir_all(scratch.join("tree/sub")).unwrap();
    std::fs::write(scratch.join("tree/sub/file"), "content").unwrap();
    copy(&here("tree"), "up:/new");
    copy(&here("tree/."), "up:/bin");
    copy(&here("tree/sub/file"), "up:/new/renamed");
    let found = docker(
        dockerd,
        &[
            "exec",
            "up",
            "cat",
            "/new/sub/file",
            "/bin/sub/file",
            "/new/renamed",
        ],
    );
    assert_eq!(String::from_utf8_lossy(&found.stdout), "contentcontentcontent");
    copy("up:/new", &here("back"));
    copy("up:/new/renamed", &here("single"));
    copy("up:/new/.", &here("tree"));
    assert_eq!(
        std::fs::read_to_string(scratch.join("back/sub/file")).unwrap(),
        "content"
    );
    assert_eq!(
        std::fs::read_to_string(scratch.join("single")).unwrap(),
        "content"
    );
    assert_eq!(
        std::fs::read_to_string(scratch.join("tree/renamed")).unwrap(),
        "content"
    );
    // What a tar archive has no room for is left out; the rest comes along.
    let _socket = std::os::unix::net::UnixListener::bind(scratch.join("tree/socket")).unwrap();
    copy(&here("tree"), "up:/withsocket");
    copy("up:/withsocket", &here("withoutsocket"));
    assert!(scratch.join("withoutsocket/sub/file").exists());
    // A destination that is a link is written through.
    std::os::unix::fs::symlink("target", scratch.join("link")).unwrap();
    copy("up:/new/renamed", &here("link"));
    assert!(scratch.join("link").is_symlink());
    assert_eq!(
        std::fs::read_to_string(scratch.join("target")).unwrap(),
        "content"
    );
    // An archive through a pipe.
    let packed = vessel(dockerd, &["cp", "up:/new/renamed", "-"], b"");
    let out = vessel(dockerd, &["cp", "-", "up:/bin"], &packed.stdout);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // A whole image and a whole container.
    let saved = here("image.tar");
    assert!(
        vessel(dockerd, &["save", "-o", &saved, "box"], b"")
            .status
            .success()
    );
    let loaded = vessel(dockerd, &["load", "-i", &saved], b"");
    assert_eq!(
        String::from_utf8_lossy(&loaded.stdout),
        "Loaded image: box:latest\n"
    );
    let exported = vessel(dockerd, &["export", "up"], b"");
    let imported = vessel(dockerd, &["import", "-", "copy:1"], &exported.stdout);
    assert!(
        String::from_utf8_lossy(&imported.stdout).starts_with("sha256:"),
        "{imported:?}"
    );
    assert!(vessel(dockerd, &["rmi", "copy:1"], b"").status.success());
}

fn streams(dockerd: &Dockerd) {
    let data: Vec<u8> = (0..20_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let out = vessel(
        dockerd,
        &["run", "--rm", "-i", "--network", "none", "box", "cat"],
        &data,
    );
    assert!(
        out.stdout == data,
        "{} of {} bytes came back",
        out.stdout.len(),
        data.len()
    );
    let out = vessel(dockerd, &["exec", "-i", "up", "cat"], &data);
    assert!(
        out.stdout == data,
        "{} of {} bytes came back",
        out.stdout.len(),
        data.len()
    );
    // A reader that goes away ends the command.
    let out = vessel(
        dockerd,
        &["run", "--rm", "-i", "--network", "none", "box", "head", "-c", "5"],
        &data,
    );
    assert_eq!(out.stdout, &data[..5]);
}

fn signals(dockerd: &Dockerd) {
    let script = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    for terminal in [&[][..], &["-t"], &["-it"]] {
        signal_passes(dockerd, terminal, script);
    }
}

/// The two ends of a terminal.
fn terminal() -> (std::os::fd::OwnedFd, std::fs::File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&main).unwrap();
    unlockpt(&main).unwrap();
    let name = ptsname(&main, Vec::new()).unwrap().into_string().unwrap();
    let other = std::fs::File::options()
        .read(true)
        .write(true)
        .open(name)
        .unwrap();
    (main, other)
}

fn signal_passes(dockerd: &Dockerd, options: &[&str], script: &str) {
    let (_main, stdin) = terminal();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vessel"))
        .args(["run", "--rm", "--network", "none"])
        .args(options)
        .args(["box", "sh", "-c", script])
        .env("DOCKER_HOST", dockerd.host())
        .stdin(stdin)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap().trim_end(), "ready", "{options:?}");
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert_eq!(lines.next().unwrap().unwrap().trim_end(), "got", "{options:?}");
    assert_eq!(child.wait().unwrap().code(), Some(5), "{options:?}");
}

#[test]
fn docker_and_vessel_do_the_same() {
    let dockerd = match Dockerd::start() {
        Ok(dockerd) => dockerd,
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "skipped: {why}");
            return;
        }
    };
    for setup in [
        &["volume", "create", "--label", "l=v", "data"][..],
        &[
            "run",
            "-d",
            "--name",
            "up",
            "--network",
            "none",
            "-l",
            "com.example.tier=web",
            "-l",
            "b=c",
            "-e",
            "A=b",
            "-v",
            "data:/data",
            "-m",
            "64m",
            "box",
            "sh",
            "-c",
            "echo one; echo two >&2; touch /made; while true; do sleep 1000; done",
        ],
        &["run", "--name", "down", "--network", "none", "box", "sleep", "0"],
        &[
            "create",
            "--name",
            "once",
            "--network",
            "none",
            "box",
            "sh",
            "-c",
            "echo again; exit 3",
        ],
    ] {
        let out = docker(&dockerd, setup);
        assert!(
            out.status.success(),
            "{setup:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    let mut differences = Vec::new();
    for arguments in SAME {
        // A second may begin between the two, and "9 seconds" and "10 seconds" are padded differently; not every time.
        let mut found = Vec::new();
        for _ in 0..4 {
            found.clear();
            let theirs = run("docker", &dockerd.host(), arguments, b"input");
            let ours = vessel(&dockerd, arguments, b"input");
            compare(arguments, &theirs, &ours, &mut found);
            if found.is_empty() {
                break;
            }
        }
        differences.append(&mut found);
    }
    for (arguments, undo) in CHANGING {
        let theirs = docker(&dockerd, arguments);
        docker(&dockerd, undo);
        let ours = vessel(&dockerd, arguments, b"");
        compare(arguments, &theirs, &ours, &mut differences);
        docker(&dockerd, undo);
    }
    streams(&dockerd);
    signals(&dockerd);
    round_trip_of_files(&dockerd, dockerd.directory.path());
    assert!(
        differences.is_empty(),
        "{} differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
}
