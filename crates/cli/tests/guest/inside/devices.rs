//! The device list, on v2 an eBPF program.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use serde_json::json;

use super::Check;
use super::bundle::{Bundle, wait_for};

pub const CHECKS: [Check; 3] = [
    ("devices-list", list),
    ("devices-mknod", mknod),
    ("devices-update", update),
];

const OPEN_RAM: &str = "[ -e /dev/ram1 ] || mknod /dev/ram1 b 1 1; head -c 1 /dev/ram1 >/dev/null";

/// Standard devices work; others can be made, but not opened.
fn list() -> Result<()> {
    let standard =
        "echo x >/dev/null && head -c 4 /dev/zero >/dev/null && head -c 4 /dev/urandom >/dev/null &&
        head -c 4 /dev/random >/dev/null && [ -c /dev/full ] && [ -c /dev/tty ] && ls /dev/pts/ptmx";
    Bundle::sh("standard", standard).run()?.ok()?;
    let ended = Bundle::sh("denied", OPEN_RAM).run()?;
    ensure!(
        ended.code != 0 && ended.stderr.contains("Operation not permitted"),
        "{ended:?}"
    );
    let allowed = Bundle::sh("allowed", OPEN_RAM).edit(|spec| {
        let rules = spec["linux"]["resources"]["devices"].as_array_mut().unwrap();
        rules.push(json!({ "allow": true, "type": "b", "major": 1, "minor": 1, "access": "r" }));
    });
    let allowed = allowed.edit(|spec| {
        let script = format!("{OPEN_RAM} && ! dd if=/dev/zero of=/dev/ram1 bs=1 count=1");
        spec["process"]["args"][2] = json!(script);
    });
    let ended = allowed.run()?;
    ensure!(
        ended.code == 0 && ended.stderr.contains("Operation not permitted"),
        "read, not write: {ended:?}"
    );
    Ok(())
}

/// Any node can be made, as with runc, whatever the list says; opening it is another matter.
fn mknod() -> Result<()> {
    let script = "mknod /dev/block b 1 1 && mknod /dev/char c 10 200 && mknod /dev/nothing c 1 3 && echo x >/dev/nothing &&
        for node in block char; do echo x >/dev/$node; echo x <>/dev/$node; head -c 1 /dev/$node; done";
    let ended = Bundle::sh("mknod", script)
        .limit("devices", json!([{ "allow": false, "access": "rwm" }]))
        .run()?;
    ensure!(
        ended.stderr.matches("Operation not permitted").count() == 6,
        "{ended:?}"
    );
    Ok(())
}

/// A new list replaces the old one in a running container.
fn update() -> Result<()> {
    let container = Bundle::idle("devices").start()?;
    ensure!(container.exec(OPEN_RAM)?.code != 0, "allowed from the start");
    let change = |rules: serde_json::Value| -> Result<()> {
        let path = "/guest/resources.json";
        std::fs::write(path, json!({ "devices": rules }).to_string())?;
        let ended = Command::new("/bin/vessel")
            .args(["runtime", "update", "--resources", path, "devices"])
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            ended.status.success(),
            "{}",
            String::from_utf8_lossy(&ended.stderr)
        );
        Ok(())
    };
    let deny = json!({ "allow": false, "access": "rwm" });
    let make = json!({ "allow": true, "type": "b", "access": "m" });
    change(json!([deny, make, { "allow": true, "type": "b", "major": 1, "minor": 1, "access": "r" }]))?;
    container.exec(OPEN_RAM)?.ok()?;
    change(json!([deny, make]))?;
    wait_for(
        "the old list's return",
        || Ok(container.exec(OPEN_RAM)?.code != 0),
    )?;
    container.exec("echo x >/dev/null")?.ok()?;
    container.delete()
}
