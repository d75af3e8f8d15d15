//! How builds reach the builder: our own client over BuildKit's protocols, the classic endpoint, and the real docker
//! command lines where they are installed.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{Daemon, Said, daemon};

/// A context: a file to copy, and a Dockerfile around it.
fn context(daemon: &Daemon, dockerfile: &str) -> PathBuf {
    let dir = daemon.dir().join("context");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    fs::write(dir.join("file"), "one\n").unwrap();
    fs::write(dir.join("sub/other"), "two\n").unwrap();
    dir
}

const SIMPLE: &str =
    "FROM busybox\nCOPY file /copied\nRUN cat /copied > /ran && echo said\nCMD [\"cat\", \"/ran\"]\n";

fn build(daemon: &Daemon, dir: &Path, args: &[&str]) -> Said {
    let mut all = vec!["build", "--progress", "plain"];
    all.extend(args);
    all.push(dir.to_str().unwrap());
    daemon.vessel(&all)
}

#[test]
fn a_directory_is_built_and_only_what_changed_is_sent() {
    let Some(daemon) = daemon() else { return };
    let dir = context(&daemon, SIMPLE);
    fs::write(dir.join("large"), vec![7; 8 << 20]).unwrap();
    fs::write(dir.join("Dockerfile"), format!("{SIMPLE}COPY large /\n")).unwrap();
    let first = build(&daemon, &dir, &["-t", "proto"]);
    assert_eq!(first.code, 0, "{first:?}");
    assert!(first.err.contains(" said\n"), "{}", first.err);
    assert_eq!(daemon.vessel(&["run", "--rm", "proto"]).ok(), "one");
    assert!(sent(&first.err) >= 8 << 20, "{}", first.err);
    // The file is replaced by one of the same contents: it is sent again, the large one is not.
    fs::write(dir.join("file"), "ONE\n").unwrap();
    let second = build(&daemon, &dir, &["-t", "proto"]);
    assert_eq!(second.code, 0, "{second:?}");
    assert!(sent(&second.err) < 1 << 20, "{}", second.err);
    assert_eq!(daemon.vessel(&["run", "--rm", "proto"]).ok(), "ONE");
    // What is gone is gone.
    fs::remove_file(dir.join("file")).unwrap();
    let third = build(&daemon, &dir, &[]);
    assert!(third.fails(1).contains("file"));
}

/// The bytes of the context that the progress tells of.
fn sent(progress: &str) -> u64 {
    let line = progress
        .lines()
        .rev()
        .find(|line| line.contains("transferring context:"));
    let Some(text) = line.and_then(|line| line.split("transferring context:").nth(1)) else {
        return 0;
    };
    let amount = text.split_whitespace().next().unwrap_or_default();
    let end = amount
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(amount.len());
    let number: f64 = amount[..end].parse().unwrap_or_default();
    let unit = match &amount[end..] {
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => 1.0,
    };
    (number * unit) as u64
}

#[test]
fn a_dockerfile_or_an_archive_from_standard_input() {
    let Some(daemon) = daemon() else { return };
    let id = daemon
        .feed(&["build", "-q", "-"], b"FROM busybox\nRUN echo x > /x\n")
        .ok();
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(daemon.vessel(&["run", "--rm", &id, "cat", "/x"]).ok(), "x");
    let dir = context(&daemon, SIMPLE);
    let tar = Command::new("tar")
        .arg("-C")
        .arg(&dir)
        .args(["-cz", "."])
        .output()
        .unwrap();
    let id = daemon.feed(&["build", "-q", "-"], &tar.stdout).ok();
    assert_eq!(daemon.vessel(&["run", "--rm", &id]).ok(), "one");
    let uploads = daemon.root().join("uploads");
    daemon.until("uploads are removed", |_| {
        fs::read_dir(&uploads).map_or(true, |mut entries| entries.next().is_none())
    });
}

#[test]
fn secrets_arguments_and_ignored_files() {
    let Some(daemon) = daemon() else { return };
    let dir = context(
        &daemon,
        "FROM busybox\nARG A\nCOPY . /all\nRUN --mount=type=secret,id=s wc -c < /run/secrets/s > /size && echo $A > /a\n",
    );
    fs::write(dir.join(".dockerignore"), "sub\n").unwrap();
    fs::write(daemon.dir().join("secret"), "top secret").unwrap();
    let secret = format!("id=s,src={}", daemon.dir().join("secret").display());
    build(
        &daemon,
        &dir,
        &["-t", "proto", "--secret", &secret, "--build-arg", "A=v"],
    )
    .ok();
    let cat = |path: &str| daemon.vessel(&["run", "--rm", "proto", "cat", path]);
    assert_eq!(cat("/size").ok(), "10");
    assert_eq!(cat("/a").ok(), "v");
    assert_eq!(cat("/all/file").ok(), "one");
    assert_ne!(cat("/all/sub/other").code, 0);
}

#[test]
fn results_as_files_and_archives() {
    let Some(daemon) = daemon() else { return };
    let dir = context(&daemon, "FROM scratch\nCOPY file sub/other /out/\n");
    let out = daemon.dir().join("result");
    build(&daemon, &dir, &["-o", out.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(out.join("out/other")).unwrap(), "two\n");
    let tar = daemon.dir().join("result.tar");
    build(
        &daemon,
        &dir,
        &["-o", &format!("type=tar,dest={}", tar.display())],
    )
    .ok();
    let list = Command::new("tar").arg("-tf").arg(&tar).output().unwrap();
    assert!(String::from_utf8_lossy(&list.stdout).contains("out/file"));
    let oci = daemon.dir().join("result.oci.tar");
    build(
        &daemon,
        &dir,
        &["-t", "kept", "-o", &format!("type=oci,dest={}", oci.display())],
    )
    .ok();
    let list = Command::new("tar").arg("-tf").arg(&oci).output().unwrap();
    assert!(String::from_utf8_lossy(&list.stdout).contains("oci-layout"));
}

#[test]
fn a_failure_shows_the_line() {
    let Some(daemon) = daemon() else { return };
    let dir = context(&daemon, "FROM busybox\nRUN echo before && exit 3\n");
    let said = build(&daemon, &dir, &[]).fails(1);
    assert!(said.contains("exit code: 3"), "{said}");
    assert!(said.contains("2 | >>> RUN echo before && exit 3"), "{said}");
    fs::write(dir.join("Dockerfile"), "FROM busybox\nRUM true\n").unwrap();
    let said = build(&daemon, &dir, &[]).fails(1);
    assert!(said.contains("2 | >>> RUM true\n     |     ^^^"), "{said}");
}

#[test]
fn a_build_that_is_cancelled_leaves_nothing_running() {
    let Some(daemon) = daemon() else { return };
    let dir = context(&daemon, "FROM busybox\nRUN echo begun && sleep 1000\n");
    let mut child = daemon
        .command(&["build", "--progress", "plain", dir.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = child.stderr.take().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
    assert!(lines.map_while(Result::ok).any(|line| line.ends_with(" begun")));
    let running = |daemon: &Daemon| {
        let own = daemon.dir().to_string_lossy().into_owned();
        let mounts = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let mounts = fs::read_to_string(entry.path().join("mountinfo")).ok()?;
            (command.contains("sleep 1000") && mounts.contains(&own)).then_some(())
        });
        mounts.count() > 0
    };
    daemon.until("the step runs", running);
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::INT,
    )
    .unwrap();
    assert!(!child.wait().unwrap().success());
    daemon.until("the step is gone", |daemon| !running(daemon));
}

/// A docker command line whose configuration is the test's own.
fn docker(daemon: &Daemon, binary: &str, buildkit: &str) -> Option<Command> {
    if !Path::new(binary).exists() {
        eprintln!("skipped: there is no {binary}");
        return None;
    }
    let config = daemon.dir().join("dockercfg");
    fs::create_dir_all(&config).unwrap();
    let mut command = Command::new(binary);
    command
        .env("DOCKER_HOST", daemon.socket())
        .env("DOCKER_CONFIG", config)
        .env("DOCKER_BUILDKIT", buildkit)
        .stdin(Stdio::null());
    Some(command)
}

/// Dockers that may be installed: Debian's, whose BuildKit client is built in, and a newer one.
const DOCKERS: [&str; 2] = ["/usr/bin/docker", "/usr/local/bin/docker"];

#[test]
fn docker_builds_the_classic_way() {
    let Some(daemon) = daemon() else { return };
    let dir = context(&daemon, SIMPLE);
    for binary in DOCKERS {
        let Some(mut docker) = docker(&daemon, binary, "0") else {
            continue;
        };
        let said: Said = docker
            .args(["build", "--no-cache", "-t", "classic"])
            .arg(&dir)
            .output()
            .unwrap()
            .into();
        assert_eq!(said.code, 0, "{said:?}");
        for text in [
            "Step 1/4 : FROM busybox\n",
            "\nsaid\n",
            "\nSuccessfully built ",
            "Successfully tagged classic:latest",
        ] {
            assert!(said.out.contains(text), "{text:?}: {said:?}");
        }
        assert_eq!(daemon.vessel(&["run", "--rm", "classic"]).ok(), "one");
    }
}

#[test]
fn docker_builds_with_its_own_buildkit_client() {
    let Some(daemon) = daemon() else { return };
    let dir = context(&daemon, SIMPLE);
    // The newer one needs buildx, which is a plugin.
    let Some(mut docker) = docker(&daemon, DOCKERS[0], "1") else {
        return;
    };
    let said: Said = docker
        .args(["build", "--progress", "plain", "-t", "v2"])
        .arg(&dir)
        .output()
        .unwrap()
        .into();
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains(" said\n"), "{said:?}");
    assert_eq!(daemon.vessel(&["run", "--rm", "v2"]).ok(), "one");
}

/// What the classic endpoint answers to a Dockerfile that comes in an archive's place.
fn classic(daemon: &Daemon, query: &str, dockerfile: &str) -> String {
    let socket = daemon.socket();
    let mut stream = UnixStream::connect(socket.trim_start_matches("unix://")).unwrap();
    write!(
        stream,
        "POST /build?{query} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/x-tar\r\nContent-Length: {}\r\n\r\n{dockerfile}",
        dockerfile.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_classic_endpoint_has_dockers_words() {
    let Some(daemon) = daemon() else { return };
    let failed = classic(&daemon, "", "FROM busybox\nRUN echo bad >&2; exit 3\n");
    assert!(
        failed.contains(r#""stream":"\u001b[91mbad\n\u001b[0m""#),
        "{failed}"
    );
    let words = "The command '/bin/sh -c echo bad >&2; exit 3' returned a non-zero code: 3";
    assert!(
        failed.contains(&format!(r#""errorDetail":{{"code":3,"message":"{words}"}}"#)),
        "{failed}"
    );
}

#[test]
fn what_is_no_dockerfile_is_refused_by_a_status() {
    let Some(daemon) = daemon() else { return };
    for (query, dockerfile) in [("", "\n"), ("q=1", "FROM busybox\nNOSUCH x\n")] {
        let answer = classic(&daemon, query, dockerfile);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    // A step that fails says what it said, also when it was to be quiet.
    let failed = classic(&daemon, "q=1", "FROM busybox\nRUN echo bad; exit 3\n");
    assert!(failed.contains(r#""stream":"bad\n""#), "{failed}");
    let well = classic(&daemon, "q=1", "FROM busybox\nRUN echo good\n");
    assert!(!well.contains("good"), "{well}");
}

#[test]
fn the_classic_endpoint_trusts_the_images_it_is_told() {
    let Some(daemon) = daemon() else { return };
    let dockerfile = "FROM busybox\nENV A=b\nRUN touch c\nRUN touch d\n";
    let cached = |query: &str| {
        let answer = classic(&daemon, query, dockerfile);
        assert!(answer.contains("Successfully built"), "{answer}");
        answer.matches("Using cache").count()
    };
    cached("t=one");
    assert_eq!(cached("t=two&cachefrom=%5B%22one%22%5D"), 3);
    assert_eq!(cached("t=two&cachefrom=%5B%22nosuchimage%22%5D"), 0);
    assert_eq!(cached("t=two&nocache=1"), 0);
}

#[test]
fn a_build_is_on_the_network_it_is_told() {
    let Some(daemon) = daemon() else { return };
    let subnet = daemon.further_subnet(0);
    daemon
        .vessel(&["network", "create", "--subnet", &subnet, "own"])
        .ok();
    let id = daemon
        .vessel(&["network", "inspect", "-f", "{{.Id}}", "own"])
        .ok();
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "target",
            "--network",
            "own",
            "busybox",
            "sleep",
            "1000",
        ])
        .ok();
    let dockerfile = "FROM busybox\nRUN ping -c 1 target\n";
    for mode in ["own", &id[..12], "container:target"] {
        let answer = classic(&daemon, &format!("nocache=1&networkmode={mode}"), dockerfile);
        assert!(answer.contains("Successfully built"), "{mode}: {answer}");
    }
    let answer = classic(&daemon, "nocache=1", dockerfile);
    assert!(answer.contains("non-zero code: 1"), "{answer}");
    let answer = classic(&daemon, "nocache=1&networkmode=nosuchnetwork", dockerfile);
    assert!(
        answer.contains("errorDetail") && answer.contains("nosuchnetwork"),
        "{answer}"
    );
    daemon.vessel(&["rm", "-f", "target"]).ok();
    // Nothing of the builds is on it any more.
    daemon.vessel(&["network", "rm", "own"]).ok();
}
