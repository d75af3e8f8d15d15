//! What containers share is what was meant, and nothing else.

use crate::harness::{Daemon, daemon};

fn start(daemon: &Daemon, args: &[&str]) {
    let script = "while :; do sleep 1000; done";
    let all = [
        &["run", "-d", "--stop-timeout", "0"],
        args,
        &["busybox", "sh", "-c", script],
    ]
    .concat();
    daemon.vessel(&all).ok();
}

#[test]
fn shared_memory_is_shared_and_limited() {
    let Some(daemon) = daemon() else { return };
    let size = "df -k /dev/shm | tail -1 | awk '{print $2}'";
    start(
        &daemon,
        &["--name", "one", "--ipc", "shareable", "--shm-size", "8m"],
    );
    let exec = |script: &str| daemon.vessel(&["exec", "one", "sh", "-c", script]).ok();
    exec("echo hello > /dev/shm/word");
    assert_eq!(exec(size), "8192");
    let joined = |script: &str| {
        let run = [
            "run",
            "--rm",
            "--ipc",
            "container:one",
            "busybox",
            "sh",
            "-c",
            script,
        ];
        daemon.vessel(&run).ok()
    };
    assert_eq!(joined("cat /dev/shm/word; echo there > /dev/shm/word"), "hello");
    assert_eq!(joined(size), "8192");
    assert_eq!(exec("cat /dev/shm/word"), "there");
    assert!(joined("grep ' /dev/shm ' /proc/mounts").contains("nosuid,nodev,noexec"));
    // One that is mounted on purpose goes before.
    let run = [
        "run",
        "--rm",
        "--ipc",
        "container:one",
        "--tmpfs",
        "/dev/shm",
        "busybox",
        "ls",
        "/dev/shm",
    ];
    assert_eq!(daemon.vessel(&run).ok(), "");
    start(&daemon, &["--name", "two", "--ipc", "private"]);
    let run = ["run", "--rm", "--ipc", "container:two", "busybox", "true"];
    let said = daemon.vessel(&run).fails(125);
    assert!(said.contains("non-shareable IPC"), "{said}");
}

#[test]
fn a_subpath_stays_in_its_volume() {
    let Some(daemon) = daemon() else { return };
    let outside = daemon.dir().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    let prepare = "mkdir -p /v/a/b; echo inside > /v/a/b/file; ln -s a /v/link";
    daemon
        .vessel(&["run", "--rm", "-v", "data:/v", "busybox", "sh", "-c", prepare])
        .ok();
    let look = |subpath: &str, command: &[&str]| {
        let mount = format!("type=volume,src=data,dst=/d,volume-subpath={subpath}");
        daemon.vessel(&[&["run", "--rm", "--mount", &mount, "busybox"], command].concat())
    };
    assert_eq!(look("a/b", &["cat", "/d/file"]).ok(), "inside");
    assert_eq!(look("a/b/file", &["cat", "/d"]).ok(), "inside");
    for bad in ["link", "../outside", "missing"] {
        look(bad, &["ls", "/d"]).fails(125);
    }
    // Another container exchanges the directory for a link all the time.
    let toggle = format!(
        "while :; do mkdir /v/t; usleep 20000; rmdir /v/t; ln -s {} /v/t; usleep 10000; rm /v/t; done",
        outside.display()
    );
    let run = [
        "run",
        "-d",
        "--name",
        "toggler",
        "--stop-timeout",
        "0",
        "-v",
        "data:/v",
        "busybox",
    ];
    daemon.vessel(&[&run[..], &["sh", "-c", &toggle]].concat()).ok();
    let (mut mounted, mut last) = (0, None);
    for _ in 0..40 {
        let said = look("t", &["ls", "/d"]);
        assert!(!said.out.contains("secret"), "the host's directory was mounted");
        mounted += usize::from(said.code == 0);
        last = Some(said);
    }
    assert!(mounted > 0, "the directory was never met: {last:?}");
}

/// The container's root lies over `/` when its volumes are mounted, and is none of the host's.
#[test]
fn the_whole_host_can_be_mounted() {
    let Some(daemon) = daemon() else { return };
    let file = daemon.dir().join("of the host");
    std::fs::write(&file, "the host's").unwrap();
    let there = format!("/host{}", file.display());
    for option in ["-v=/:/host:ro", "--mount=type=bind,src=/,dst=/host,readonly"] {
        let said = daemon
            .vessel(&["run", "--rm", option, "busybox", "cat", &there])
            .ok();
        assert_eq!(said, "the host's", "{option}");
    }
}
