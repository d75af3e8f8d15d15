//! Volumes with options of their driver, and bind mounts that show owners as others.

use std::os::unix::fs::{MetadataExt, chown};

use crate::harness::{Daemon, daemon};

fn mounted(daemon: &Daemon, volume: &str) -> bool {
    let at = format!("{}/volumes/{volume}/_data ", daemon.root().display());
    std::fs::read_to_string("/proc/self/mounts")
        .unwrap()
        .contains(&at)
}

#[test]
fn a_volume_with_options_is_mounted_while_it_is_used() {
    let Some(mut daemon) = daemon() else { return };
    daemon
        .vessel(&[
            "volume",
            "create",
            "-o",
            "type=tmpfs",
            "-o",
            "device=tmpfs",
            "-o",
            "o=size=64k,mode=700",
            "mem",
        ])
        .ok();
    let options = daemon
        .vessel(&["volume", "inspect", "-f", "{{json .Options}}", "mem"])
        .ok();
    assert_eq!(
        options,
        r#"{"device":"tmpfs","o":"size=64k,mode=700","type":"tmpfs"}"#
    );
    assert!(!mounted(&daemon, "mem"));
    let run = |name: &str| {
        let args = [
            "run",
            "-d",
            "--stop-timeout",
            "0",
            "--name",
            name,
            "-v",
            "mem:/m",
            "busybox",
            "sleep",
            "1000",
        ];
        daemon.vessel(&args).ok();
    };
    run("one");
    run("two");
    daemon
        .vessel(&["exec", "one", "sh", "-c", "echo shared > /m/word"])
        .ok();
    assert_eq!(daemon.vessel(&["exec", "two", "cat", "/m/word"]).ok(), "shared");
    assert!(
        daemon
            .vessel(&["exec", "one", "sh", "-c", "head -c 100000 /dev/zero > /m/zeros"])
            .code
            != 0
    );
    daemon.vessel(&["rm", "-f", "one"]).ok();
    // A new daemon knows who uses it.
    daemon.crash();
    daemon.start();
    assert!(mounted(&daemon, "mem"));
    assert_eq!(daemon.vessel(&["exec", "two", "cat", "/m/word"]).ok(), "shared");
    assert!(
        daemon
            .vessel(&["volume", "rm", "mem"])
            .fails(1)
            .contains("in use")
    );
    daemon.vessel(&["stop", "-t", "0", "two"]).ok();
    daemon.until("the mount is taken off", |daemon| !mounted(daemon, "mem"));
    // What was in it went with it; looking into the stopped container mounts it for the look only.
    assert!(
        daemon
            .vessel(&["cp", "two:/m/word", "-"])
            .fails(1)
            .contains("word")
    );
    assert!(!mounted(&daemon, "mem"));
    daemon.vessel(&["start", "two"]).ok();
    // The container ends while nobody looks.
    let pid: i32 = daemon.inspect("two", "{{.State.Pid}}").parse().unwrap();
    daemon.crash();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert!(mounted(&daemon, "mem"));
    daemon.start();
    daemon.until("the end is noticed", |daemon| !mounted(daemon, "mem"));
    daemon.vessel(&["rm", "-f", "two"]).ok();
    daemon.vessel(&["volume", "rm", "mem"]).ok();
    assert_eq!(daemon.leftovers(), Vec::<String>::new());
}

#[test]
fn a_directory_as_a_volume_is_not_removed_with_it() {
    let Some(daemon) = daemon() else { return };
    let source = daemon.dir().join("mine");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("kept"), "word").unwrap();
    let mount = format!(
        "type=volume,src=mine,dst=/m,volume-opt=type=none,volume-opt=o=bind,volume-opt=device={},volume-label=a=b",
        source.display()
    );
    let said = daemon.vessel(&[
        "run",
        "--rm",
        "--mount",
        &mount,
        "busybox",
        "sh",
        "-c",
        "cat /m/kept; echo new > /m/new",
    ]);
    assert_eq!(said.ok(), "word");
    assert_eq!(std::fs::read_to_string(source.join("new")).unwrap(), "new\n");
    assert_eq!(
        daemon
            .vessel(&["volume", "inspect", "-f", "{{.Labels.a}}", "mine"])
            .ok(),
        "b"
    );
    daemon.vessel(&["volume", "rm", "mine"]).ok();
    assert!(source.join("kept").exists());

    daemon
        .vessel(&[
            "volume",
            "create",
            "-o",
            "type=none",
            "-o",
            "o=bind",
            "-o",
            "device=/no/such",
            "lost",
        ])
        .ok();
    let error = daemon
        .vessel(&["run", "--rm", "-v", "lost:/m", "busybox", "true"])
        .fails(125);
    assert!(
        error.contains("failed to mount local volume") && error.contains("/no/such"),
        "{error}"
    );
    let error = daemon.vessel(&["volume", "create", "-o", "colour=red"]).fails(1);
    assert!(error.contains("invalid option: \"colour\""), "{error}");

    // An empty one gets what the image has there, on the same file system, too.
    let empty = daemon.dir().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let device = format!("device={}", empty.display());
    let create = [
        "volume",
        "create",
        "-o",
        "type=none",
        "-o",
        "o=bind",
        "-o",
        &device,
        "empty",
    ];
    daemon.vessel(&create).ok();
    daemon
        .vessel(&["run", "--rm", "-v", "empty:/bin", "busybox", "true"])
        .ok();
    assert!(empty.join("busybox").exists());

    // What an operator mounted there is left alone.
    daemon.vessel(&["volume", "create", "plain"]).ok();
    let data = daemon
        .vessel(&["volume", "inspect", "-f", "{{.Mountpoint}}", "plain"])
        .ok();
    rustix::mount::mount_bind(&source, &data).unwrap();
    let error = daemon.vessel(&["volume", "rm", "plain"]).fails(1);
    rustix::mount::unmount(&data, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(error.contains("is mounted on or in"), "{error}");
    // Nor what is mounted further down.
    let below = format!("{data}/below");
    std::fs::create_dir(&below).unwrap();
    rustix::mount::mount_bind(&source, &below).unwrap();
    assert!(source.join("kept").exists());
    let error = daemon.vessel(&["volume", "rm", "plain"]).fails(1);
    assert!(error.contains("is mounted on or in"), "{error}");
    rustix::mount::unmount(&below, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(source.join("kept").exists());
    daemon.vessel(&["volume", "rm", "plain"]).ok();
}

#[test]
fn volumes_are_exported_imported_and_copied() {
    let Some(daemon) = daemon() else { return };
    let fill = "echo word > /v/file; mkdir -m 750 /v/dir; chown 12:34 /v/dir; ln /v/file /v/dir/hard; ln -s file /v/link";
    daemon
        .vessel(&["run", "--rm", "-v", "one:/v", "busybox", "sh", "-c", fill])
        .ok();
    let list = |volume: &str| {
        let bind = format!("{volume}:/v");
        let script = "cd /v && find . | sort | xargs stat -c '%n %a %u:%g %h %F' && cat file link dir/hard";
        daemon
            .vessel(&["run", "--rm", "-v", &bind, "busybox", "sh", "-c", script])
            .ok()
    };
    let file = daemon.dir().join("one.tar");
    let file = file.to_str().unwrap();
    daemon.vessel(&["volume", "export", "-o", file, "one"]).ok();
    assert_eq!(
        daemon
            .vessel(&["volume", "import", "--label", "a=b", "two", file])
            .ok(),
        "two"
    );
    assert_eq!(list("two"), list("one"));
    assert_eq!(
        daemon
            .vessel(&["volume", "inspect", "-f", "{{.Labels.a}}", "two"])
            .ok(),
        "b"
    );
    assert_eq!(daemon.vessel(&["volume", "clone", "one", "three"]).ok(), "three");
    assert_eq!(list("three"), list("one"));
    let taken = daemon.vessel(&["volume", "snapshot", "one"]).ok();
    assert!(taken.starts_with("one-2"), "{taken}");
    assert_eq!(list(&taken), list("one"));

    let error = daemon.vessel(&["volume", "import", "two", file]).fails(1);
    assert!(error.contains("has files"), "{error}");
    let error = daemon.vessel(&["volume", "clone", "one", "two"]).fails(1);
    assert!(error.contains("exists already"), "{error}");
    let error = daemon.vessel(&["volume", "export", "no-such"]).fails(1);
    assert!(error.contains("no such volume"), "{error}");
    // What is no archive leaves no volume.
    let said = daemon.feed(&["volume", "import", "four"], b"this is no archive");
    assert_ne!(said.code, 0);
    assert_eq!(daemon.vessel(&["volume", "ls", "-q", "-f", "name=four"]).ok(), "");
    // A hostile one neither, and nothing outside is touched.
    let mut hostile = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    hostile.append_link(&mut header, "out", daemon.dir()).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    hostile
        .append_data(&mut header, "out/stolen", &b"word"[..])
        .unwrap();
    daemon.feed(&["volume", "import", "five"], &hostile.into_inner().unwrap());
    assert!(!daemon.dir().join("stolen").exists());
}

#[test]
fn files_belong_to_the_user_outside() {
    let Some(daemon) = daemon() else { return };
    let source = daemon.dir().join("theirs");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("old"), "").unwrap();
    for path in [source.clone(), source.join("old")] {
        chown(path, Some(1234), Some(1235)).unwrap();
    }
    let bind = format!("{}:/m:idmap", source.display());
    let script = "stat -c %u:%g /m/old; echo new > /m/new; stat -c %u:%g /m/new";
    let said = daemon.vessel(&["run", "--rm", "-v", &bind, "busybox", "sh", "-c", script]);
    assert_eq!(said.ok(), "0:0\n0:0");
    let said = daemon.vessel(&[
        "run",
        "--rm",
        "-u",
        "33:44",
        "-v",
        &bind,
        "busybox",
        "sh",
        "-c",
        "echo more > /m/more; stat -c %u:%g /m/old",
    ]);
    assert_eq!(said.ok(), "33:44");
    for name in ["new", "more"] {
        let meta = std::fs::metadata(source.join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 1235), "{name}");
    }
}
