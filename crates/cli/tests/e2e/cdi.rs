//! Devices by the Container Device Interface: `--device vendor/class=name`, `--gpus`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{Daemon, prepared_daemon};

fn specs(daemon: &Daemon) -> std::path::PathBuf {
    daemon.dir().join("cdi")
}

fn with_specs() -> Option<Daemon> {
    prepared_daemon(|daemon| {
        let directory = specs(daemon);
        std::fs::create_dir(&directory).unwrap();
        daemon
            .more
            .push(format!("--cdi-spec-dir={}", directory.display()));
    })
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

/// A program of the vendor's, which finds the container's root as they do: by the configuration in the bundle.
fn script(path: &Path, body: &str) {
    let find = "bundle=$(sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')\n\
                root=$(sed 's/.*\"root\":{\"path\":\"\\([^\"]*\\)\".*/\\1/' \"$bundle/config.json\")\n";
    write(path, &format!("#!/bin/sh\nset -e\n{find}{body}\n"));
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_container_gets_what_the_specification_says() {
    if !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: this host has no /dev/fuse to give");
        return;
    }
    let Some(mut daemon) = with_specs() else { return };
    let dir = daemon.dir().to_owned();
    write(&dir.join("library"), "of the vendor\n");
    script(
        &dir.join("inside"),
        "test -e \"$root/opt/library\"; echo \"$1 $WORD\" > \"$root/from-hook\"",
    );
    script(
        &dir.join("after"),
        &format!("echo over >> {}/ended", dir.display()),
    );
    script(
        &dir.join("begun"),
        &format!("echo begun >> {}/begun-at", dir.display()),
    );
    let own = dir.display();
    write(
        &specs(&daemon).join("vendor.yaml"),
        &format!(
            "---\ncdiVersion: 0.7.0\nkind: vendor.example/thing\ncontainerEdits:\n  env: [ALL=yes]\n  hooks:\n  \
             - {{hookName: createContainer, path: {own}/inside, args: [inside, argument], env: [WORD=word, PATH=/bin:/usr/bin]}}\n  \
             - {{hookName: poststart, path: {own}/begun, env: [PATH=/bin:/usr/bin]}}\n  \
             - {{hookName: poststop, path: {own}/after, env: [PATH=/bin:/usr/bin]}}\n\
             devices:\n- name: 0\n  containerEdits:\n    env: [WHICH=zero]\n    deviceNodes:\n    \
             - {{path: /dev/thing0, hostPath: /dev/fuse, permissions: r}}\n    additionalGids: [4711]\n    mounts:\n    \
             - {{hostPath: {own}/library, containerPath: /opt/library, options: [ro, nosuid, nodev, rbind, rprivate]}}\n\
             - name: other\n  containerEdits:\n    env: [WHICH=other]\n"
        ),
    );
    let info = daemon
        .vessel(&["info", "-f", "{{json .DiscoveredDevices}} {{json .CDISpecDirs}}"])
        .ok();
    assert_eq!(
        info,
        format!(
            r#"[{{"Source":"cdi","ID":"vendor.example/thing=0"}},{{"Source":"cdi","ID":"vendor.example/thing=other"}}] ["{}"]"#,
            specs(&daemon).display()
        )
    );
    let look = "echo $ALL $WHICH; id -G; cat /opt/library; touch /opt/library || echo read-only; cat /from-hook; \
                (: < /dev/thing0) && echo read; (: > /dev/thing0) 2>/dev/null || echo not written";
    let args = [
        "run",
        "--name",
        "one",
        "--device",
        "vendor.example/thing=0",
        "-e",
        "WHICH=mine",
        "-v",
        "/tmp:/opt/library",
        "busybox",
        "sh",
        "-c",
        look,
    ];
    let said = daemon.vessel(&args);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(
        said.out.trim(),
        "yes zero\n0 4711\nof the vendor\nread-only\nargument word\nread\nnot written",
        "{said:?}"
    );
    daemon.until("the hooks have run", |_| {
        dir.join("ended").exists() && dir.join("begun-at").exists()
    });
    // It is in the writable layer, not somewhere on the host.
    assert_eq!(
        daemon.inspect("one", "{{(index .HostConfig.DeviceRequests 0).DeviceIDs}}"),
        "[vendor.example/thing=0]"
    );
    // The files are read at each start: what they say now counts.
    daemon.crash();
    daemon.start();
    std::fs::remove_file(specs(&daemon).join("vendor.yaml")).unwrap();
    let error = daemon.vessel(&["start", "one"]).fails(1);
    assert!(
        error.contains("CDI device injection failed: unresolvable CDI devices vendor.example/thing=0"),
        "{error}"
    );
    daemon.vessel(&["rm", "-f", "one"]).ok();
    assert_eq!(daemon.leftovers(), Vec::<String>::new());
}

#[test]
fn gpus_are_the_devices_of_a_vendor() {
    let Some(daemon) = with_specs() else { return };
    let error = daemon
        .vessel(&["run", "--rm", "--gpus", "all", "busybox", "true"])
        .fails(125);
    assert!(
        error.contains("could not select device driver \"\" with capabilities: [[gpu]]"),
        "{error}"
    );
    write(
        &specs(&daemon).join("nvidia.json"),
        r#"{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","devices":[
            {"name":"0","containerEdits":{"env":["GPU=zero"]}},
            {"name":"1","containerEdits":{"env":["GPU=one"]}},
            {"name":"all","containerEdits":{"env":["GPU=all"]}}]}"#,
    );
    write(&specs(&daemon).join("broken.yaml"), "kind: [\n");
    for (asked, got) in [
        ("all", "all"),
        ("1", "zero"),
        ("\"device=1\"", "one"),
        ("2", "one"),
    ] {
        let said = daemon.vessel(&["run", "--rm", "--gpus", asked, "busybox", "sh", "-c", "echo $GPU"]);
        assert_eq!(said.ok(), got, "{asked}");
    }
    let error = daemon
        .vessel(&["run", "--rm", "--gpus", "3", "busybox", "true"])
        .fails(125);
    assert!(
        error.contains("unresolvable CDI devices nvidia.com/gpu=2"),
        "{error}"
    );
    // What is wrong with a file is a warning, not the end of the others.
    let warnings = daemon.vessel(&["info", "-f", "{{json .Warnings}}"]).ok();
    assert!(warnings.contains("broken.yaml"), "{warnings}");
    // What removes itself goes when its client has been answered.
    daemon.until("nothing is left", |daemon| daemon.leftovers().is_empty());
}
