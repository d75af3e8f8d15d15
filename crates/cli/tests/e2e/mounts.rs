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

/// A link of the host that climbs to `/` leads through the host, whatever the image has there.
#[test]
fn links_of_the_host_lead_through_the_host() {
    let Some(daemon) = daemon() else { return };
    let dir = daemon.dir().to_path_buf();
    std::fs::create_dir_all(dir.join("links")).unwrap();
    std::fs::create_dir_all(dir.join("source")).unwrap();
    std::fs::write(dir.join("source/file"), "of the host").unwrap();
    let up = "../".repeat(dir.components().count());
    let target = format!("{up}{}/source/file", dir.strip_prefix("/").unwrap().display());
    std::os::unix::fs::symlink(target, dir.join("links/climbs")).unwrap();
    let script = format!(
        "mkdir -p {0}/source && echo of the image > {0}/source/file",
        dir.display()
    );
    daemon
        .vessel(&["run", "--name", "maker", "busybox", "sh", "-c", &script])
        .ok();
    daemon.vessel(&["commit", "maker", "imitates"]).ok();
    let volume = format!("{}:/file:ro", dir.join("links/climbs").display());
    for image in ["imitates", "busybox"] {
        let said = daemon
            .vessel(&["run", "--rm", "-v", &volume, image, "cat", "/file"])
            .ok();
        assert_eq!(said, "of the host", "{image}");
    }
}

/// What is mounted in a volume that is shared with the host is seen there.
#[test]
fn a_shared_volume_is_shared() {
    let Some(daemon) = daemon() else { return };
    let dir = daemon.dir().join("shared");
    std::fs::create_dir(&dir).unwrap();
    let host = |program: &str, args: &[&str]| {
        let status = std::process::Command::new(program).args(args).arg(&dir).status();
        assert!(status.unwrap().success(), "{program} {args:?}");
    };
    host("mount", &["-t", "tmpfs", "vessel-test"]);
    host("mount", &["--make-shared"]);
    let script = "mkdir /mnt/inner && mount -t tmpfs none /mnt/inner && touch /mnt/inner/seen; sleep 1000";
    let volume = format!("{}:/mnt:rshared", dir.display());
    let options = [
        "--cap-add",
        "SYS_ADMIN",
        "--security-opt",
        "seccomp=unconfined",
        "--stop-timeout",
        "0",
    ];
    let run = [
        &["run", "-d", "--name", "mounter", "-v", &volume],
        &options[..],
        &["busybox", "sh", "-c", script],
    ];
    let said = daemon.vessel(&run.concat());
    let seen = dir.join("inner/seen");
    for _ in 0..600 {
        if seen.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let was_seen = seen.exists();
    daemon.vessel(&["rm", "-f", "mounter"]).ok();
    host("umount", &["--recursive"]);
    said.ok();
    assert!(was_seen, "the mount made in the container is not seen outside");
}
