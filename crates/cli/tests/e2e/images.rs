//! Images in and out.

use crate::harness::daemon;

#[test]
fn saved_images_come_back_the_same() {
    let Some(daemon) = daemon() else { return };
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("image.tar").display().to_string();
    let id = daemon
        .vessel(&["inspect", "--type", "image", "-f", "{{.Id}}", "busybox"])
        .ok();
    daemon
        .vessel(&["tag", "busybox", "example.com:5000/team/box:1"])
        .ok();
    daemon
        .vessel(&["save", "-o", &archive, "busybox", "example.com:5000/team/box:1"])
        .ok();
    daemon
        .vessel(&["rmi", "busybox", "example.com:5000/team/box:1"])
        .ok();
    assert_eq!(daemon.vessel(&["images", "-q"]).ok(), "");
    let said = daemon.vessel(&["load", "-i", &archive]).ok();
    assert!(said.contains("busybox:latest"), "{said}");
    assert_eq!(
        daemon
            .vessel(&["inspect", "--type", "image", "-f", "{{.Id}}", "busybox"])
            .ok(),
        id
    );
    assert!(daemon.vessel(&["history", "busybox"]).ok().starts_with("IMAGE"));
    assert_eq!(
        daemon
            .vessel(&["run", "--rm", "example.com:5000/team/box:1", "echo", "hi"])
            .ok(),
        "hi"
    );
}

#[test]
fn an_images_settings_are_where_old_clients_look_for_them() {
    let Some(daemon) = daemon() else { return };
    let command = |place: &str| {
        let template = format!("{{{{.{place}.Cmd}}}}");
        daemon
            .vessel(&["inspect", "--type", "image", "-f", &template, "busybox"])
            .ok()
    };
    assert_eq!(command("Config"), "[sh]");
    assert_eq!(command("ContainerConfig"), "[sh]");
}

#[test]
fn images_in_use_stay() {
    let Some(daemon) = daemon() else { return };
    daemon.vessel(&["create", "--name", "user", "busybox"]).ok();
    let said = daemon.vessel(&["rmi", "busybox"]).fails(1);
    assert!(said.contains("in use") || said.contains("using"), "{said}");
    daemon.vessel(&["rm", "user"]).ok();
    daemon.vessel(&["rmi", "busybox"]).ok();
    daemon.empty_bin();
    daemon.until("no layer is left", |daemon| {
        std::fs::read_dir(daemon.root().join("layers")).is_ok_and(|entries| entries.count() == 0)
    });
}

#[test]
fn hostile_archives_leave_nothing() {
    let Some(daemon) = daemon() else { return };
    for archive in [&b"not an archive"[..], b"", &[0; 4096]] {
        let said = daemon.feed(&["load"], archive);
        assert_ne!(said.code, 0, "{said:?}");
        assert!(!said.err.is_empty());
    }
    assert_eq!(daemon.vessel(&["images", "-q"]).ok().lines().count(), 1);
}

#[test]
fn a_root_archive_becomes_an_image() {
    let Some(daemon) = daemon() else { return };
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("root.tar").display().to_string();
    daemon.vessel(&["create", "--name", "source", "busybox"]).ok();
    daemon.vessel(&["export", "-o", &archive, "source"]).ok();
    daemon
        .vessel(&["import", "-c", "CMD [\"echo\", \"imported\"]", &archive, "copy:1"])
        .ok();
    assert_eq!(daemon.vessel(&["run", "--rm", "copy:1"]).ok(), "imported");
}

#[test]
fn every_byte_on_the_disk_is_accounted_for() {
    let Some(daemon) = daemon() else { return };
    let script = "dd if=/dev/zero of=/big bs=1024 count=300 2>/dev/null; yes | head -c 200000";
    daemon
        .vessel(&[
            "run",
            "--name",
            "wrote",
            "-v",
            "data:/data",
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .ok();
    std::fs::create_dir(daemon.root().join("volumes/stray")).unwrap();
    std::fs::write(daemon.root().join("volumes/stray/x"), vec![1; 100_000]).unwrap();
    let text = daemon.vessel(&["system", "df", "-v", "--format", "json"]).ok();
    let usage: serde_json::Value = serde_json::from_str(&text).unwrap();
    let items = usage["VesselItems"].as_array().unwrap();
    let total: u64 = items.iter().map(|item| item["Size"].as_u64().unwrap()).sum();
    let du = std::process::Command::new("du")
        .args(["-s", "--block-size=1"])
        .arg(daemon.root())
        .output()
        .unwrap();
    let du = String::from_utf8(du.stdout).unwrap();
    assert_eq!(du.split('\t').next().unwrap(), total.to_string(), "{items:#?}");
    let unknown: Vec<&str> = items
        .iter()
        .filter(|item| item["Known"] == false)
        .map(|item| item["Path"].as_str().unwrap())
        .collect();
    assert_eq!(unknown, [daemon.root().join("volumes/stray").to_str().unwrap()]);
    let table = daemon.vessel(&["system", "df", "-v"]).ok();
    assert!(table.contains("Disk space usage: "), "{table}");
    assert!(
        table
            .lines()
            .any(|line| line.contains("volumes/stray") && line.contains("false")),
        "{table}"
    );
    std::fs::remove_dir_all(daemon.root().join("volumes/stray")).unwrap();
}

#[test]
fn what_is_being_removed_is_not_unknown() {
    let Some(daemon) = daemon() else { return };
    // `run --rm` does not wait until all these are gone.
    let script = "i=0; while [ $i -lt 2000 ]; do : > /f$i; i=$((i+1)); done";
    for _ in 0..10 {
        daemon
            .vessel(&["run", "--rm", "--network", "none", "busybox", "sh", "-c", script])
            .ok();
        let text = daemon.vessel(&["system", "df", "-v", "--format", "json"]).ok();
        let usage: serde_json::Value = serde_json::from_str(&text).unwrap();
        let items = usage["VesselItems"].as_array().unwrap();
        let unknown: Vec<_> = items.iter().filter(|item| item["Known"] == false).collect();
        assert!(unknown.is_empty(), "{unknown:#?}");
    }
}
