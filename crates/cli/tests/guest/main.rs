//! The `vessel` command on pure cgroup v2 and an older kernel: a stock Debian cloud kernel under QEMU.
//!
//! The test makes an initramfs of busybox, the `vessel` binary, this very test binary and the kernel modules that containers
//! need, boots it (two to three seconds on an idle machine), and reads the outcome of each check from the serial console.
//! What runs in the guest is [`inside`]; it needs no network, no KVM and no root on the host.
//!
//! Without QEMU, busybox or a kernel the test says loudly what is missing and counts as passed; with
//! `VESSEL_GUEST_REQUIRED=1` it fails instead. `VESSEL_GUEST_ONLY=memory` runs only the checks whose name contains that word.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests talk to whoever runs them"
)]

mod cpio;
mod elf;
mod inside;
mod kernel;
mod qemu;

use std::path::Path;
use std::time::{Duration, Instant};

use cpio::Archive;

/// How long the guest may take: it is emulated, maybe on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// What containers of the checks use, by module name; what they depend on is found out.
const MODULES: [&str; 11] = [
    "overlay",
    "brd",
    "quota_v2",
    "veth",
    "bridge",
    "br_netfilter",
    "nft_ct",
    "nft_fib_inet",
    "nft_nat",
    "nft_chain_nat",
    "nft_masq",
];

#[test]
fn containers_on_cgroup_v2() {
    let (image, kernel) = match prepare() {
        Ok(prepared) => prepared,
        Err(reason) => {
            assert!(
                std::env::var_os("VESSEL_GUEST_REQUIRED").is_none(),
                "no guest: {reason}"
            );
            eprintln!("\n*** SKIPPED: containers on cgroup v2 are NOT tested: {reason}\n");
            return;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let initrd = dir.path().join("initrd");
    std::fs::write(&initrd, image).unwrap();
    let only = std::env::var("VESSEL_GUEST_ONLY").unwrap_or_default();
    let start = Instant::now();
    let console = qemu::boot(&kernel, &initrd, &only, LIMIT);
    println!(
        "guest: {} bytes of initramfs, {:.1} s",
        std::fs::metadata(&initrd).unwrap().len(),
        start.elapsed().as_secs_f64()
    );
    judge(&console, &only);
}

/// The initramfs and the path of the kernel, or what is missing.
fn prepare() -> Result<(Vec<u8>, std::path::PathBuf), String> {
    qemu::available()?;
    let busybox = std::fs::read("/bin/busybox")
        .map_err(|error| format!("/bin/busybox: {error} (Debian: busybox-static)"))?;
    if elf::is_dynamic(&busybox) {
        return Err("/bin/busybox needs shared libraries (Debian: install busybox-static)".to_owned());
    }
    let kernel = kernel::find(Path::new(env!("CARGO_TARGET_TMPDIR")))?;

    let mut archive = Archive::new();
    for dir in ["bin", "dev", "modules", "proc", "run", "sys", "tmp", "guest"] {
        archive.directory(dir);
    }
    archive.character_device("dev/console", 5, 1);
    archive.file("bin/busybox", 0o755, &busybox);
    archive.symlink("bin/sh", "busybox");
    archive.file(
        "bin/vessel",
        0o755,
        elf::loaded_part(&read(env!("CARGO_BIN_EXE_vessel"))),
    );
    archive.file(
        "bin/checks",
        0o755,
        elf::loaded_part(&read(std::env::current_exe().unwrap())),
    );
    archive.file("init", 0o755, include_bytes!("init.sh"));
    first_bundle(&mut archive, &busybox);
    match quota_image() {
        Ok(image) => archive.file("quota.ext4", 0o644, &image),
        Err(reason) => println!("no file system with project quotas: {reason}"),
    }
    let mut order = String::new();
    for (name, module) in kernel.modules(&MODULES) {
        archive.file(&format!("modules/{name}.ko"), 0o644, &module);
        order.push_str(&format!("{name}\n"));
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok((archive.finish(), kernel.image))
}

/// An ext4 with project quotas, which busybox cannot make.
fn quota_image() -> Result<Vec<u8>, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = dir.path().join("image");
    let made = std::fs::File::create(&path).and_then(|file| file.set_len(16 << 20));
    made.map_err(|error| error.to_string())?;
    let output = std::process::Command::new("mkfs.ext4")
        .args([
            "-q",
            "-O",
            "quota,project,^has_journal",
            "-E",
            "quotatype=prjquota",
        ])
        .arg(&path)
        .output()
        .map_err(|error| format!("mkfs.ext4: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(read(path))
}

/// A bundle for `init.sh`, which shows its root.
fn first_bundle(archive: &mut Archive, busybox: &[u8]) {
    let config = serde_json::json!({
        "ociVersion": "1.2.0",
        "process": { "args": ["/bin/busybox", "ls", "/"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
        "root": { "path": "rootfs" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "cgroupsPath": "/vessel/first", "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
    });
    for dir in [
        "first",
        "first/state",
        "first/rootfs",
        "first/rootfs/bin",
        "first/rootfs/dev",
        "first/rootfs/proc",
    ] {
        archive.directory(dir);
    }
    archive.file("first/rootfs/bin/busybox", 0o755, busybox);
    archive.file("first/config.json", 0o644, config.to_string().as_bytes());
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

/// Every check must have said `ok`, and the guest must have come to its end.
fn judge(console: &str, only: &str) {
    let (mut passed, mut failed) = (0, Vec::new());
    for line in console.lines() {
        let mut words = line.splitn(4, ' ');
        if words.next() != Some("CHECK") {
            continue;
        }
        let (name, outcome, rest) = (words.next(), words.next(), words.next().unwrap_or_default());
        println!(
            "{:<34} {:<5} {rest}",
            name.unwrap_or_default(),
            outcome.unwrap_or_default()
        );
        match outcome {
            Some("ok") => passed += 1,
            _ => failed.push(line.to_owned()),
        }
    }
    let complete = console.lines().any(|line| line == inside::END);
    if !complete || !failed.is_empty() {
        println!("---- the guest's console\n{console}\n----");
    }
    assert!(complete, "the guest did not come to the end of its checks");
    assert!(
        failed.is_empty(),
        "{} checks failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
    let expected = if only.is_empty() { inside::count() } else { 1 };
    assert!(
        passed >= expected,
        "only {passed} of {expected} checks told how they went"
    );
}
