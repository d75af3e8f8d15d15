//! `docker` and `vessel` side by side against one private dockerd: the same arguments have to give the same
//! standard output and the same exit code.
//!
//! Skipped, with a line that says why, where dockerd, the docker command, a static busybox or root is missing.

use std::io::Write;

mod behaviour;
mod cases;
mod compare;
mod dockerd;

use behaviour::{round_trip_of_files, signals, streams};
use cases::{CHANGING, SAME};
use compare::compare;
use dockerd::{Dockerd, docker, run, vessel};

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
