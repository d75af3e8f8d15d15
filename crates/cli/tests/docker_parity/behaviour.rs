//! What `vessel` does with dockerd beyond one command and its answer: files, streams, signals.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::dockerd::{Dockerd, docker, vessel};

pub fn round_trip_of_files(dockerd: &Dockerd, scratch: &Path) {
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

pub fn streams(dockerd: &Dockerd) {
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

pub fn signals(dockerd: &Dockerd) {
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
