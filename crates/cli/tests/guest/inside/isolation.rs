//! What an older kernel may do otherwise: namespaces, mapped owners, system call filters, roots.

use std::os::unix::fs::{MetadataExt, chown};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Check;
use super::bundle::{Bundle, ROOTFS};

pub const CHECKS: [Check; 6] = [
    ("user-namespace", user_namespace),
    ("time-namespace", time_namespace),
    ("idmapped-mount", idmapped_mount),
    ("seccomp", seccomp),
    ("overlay-mount", overlay_mount),
    ("masked-and-read-only-paths", paths),
];

fn user_namespace() -> Result<()> {
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    let container = Bundle::sh(
        "userns",
        "id -u >/tmp/id; cat /proc/self/uid_map >>/tmp/id; sleep 1000",
    )
    .namespace("user")
    .edit(|spec| {
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
    })
    .limit("pids", json!({ "limit": 20 }))
    .start()?;
    let owner = std::fs::metadata(format!("/proc/{}", container.pid()?))?.uid();
    ensure!(owner == 100_000, "outside, its user is {owner}");
    super::bundle::wait_for("the file", || {
        Ok(container.exec("cat /tmp/id")?.stdout.lines().count() == 2)
    })?;
    let text = container.exec("cat /tmp/id")?.ok()?;
    let words: Vec<&str> = text.split_whitespace().collect();
    ensure!(words == ["0", "0", "100000", "65536"], "{text}");
    ensure!(
        container.file("pids.max")? == "20",
        "pids.max: {}",
        container.file("pids.max")?
    );
    // Root there is nobody here.
    ensure!(container.exec("mknod /dev/x b 1 1")?.code != 0, "made a device");
    container.delete()
}

fn time_namespace() -> Result<()> {
    let ended = Bundle::sh("time", "cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets")
        .namespace("time")
        .edit(|spec| {
            spec["linux"]["timeOffsets"] =
                json!({ "boottime": { "secs": 864_000 }, "monotonic": { "secs": 5 } })
        })
        .run()?
        .ok()?;
    let uptime: u64 = ended.lines().next().context("no output")?.parse()?;
    ensure!(uptime >= 864_000, "uptime: {ended}");
    Ok(())
}

/// Owner 0 on the disk is 1000 in the container, and what 1000 makes belongs to 0.
fn idmapped_mount() -> Result<()> {
    let dir = "/data/idmapped";
    std::fs::create_dir_all(dir)?;
    std::fs::write(format!("{dir}/old"), "x")?;
    chown(dir, Some(0), Some(0))?;
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
    let ended = Bundle::sh("idmap", "stat -c %u /data/old && echo y >/data/new && stat -c %u /data/new")
        .edit(|spec| {
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            let mount = json!({
                "destination": "/data", "type": "bind", "source": dir, "options": ["bind", "rw"], "uidMappings": map, "gidMappings": map,
            });
            spec["mounts"].as_array_mut().unwrap().push(mount);
        })
        .run()?
        .ok()?;
    ensure!(ended == "1000\n1000\n", "{ended}");
    let owner = std::fs::metadata(format!("{dir}/new"))?.uid();
    ensure!(owner == 0, "on the disk the new file belongs to {owner}");
    Ok(())
}

fn seccomp() -> Result<()> {
    let filter = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5 }],
    });
    let ended = Bundle::sh("seccomp", "grep Seccomp: /proc/self/status; mkdir /tmp/x")
        .edit(|spec| spec["linux"]["seccomp"] = filter)
        .run()?;
    ensure!(
        ended.stdout == "Seccomp:\t2\n" && ended.stderr.contains("Input/output error"),
        "{ended:?}"
    );
    Ok(())
}

/// A mount of type overlay in a configuration.
fn overlay_mount() -> Result<()> {
    for name in ["lower", "upper", "work"] {
        std::fs::create_dir_all(format!("/data/overlay/{name}"))?;
    }
    std::fs::write("/data/overlay/lower/file", "below")?;
    let options = ["lower", "upper", "work"].map(|name| format!("{name}dir=/data/overlay/{name}"));
    let ended = Bundle::sh("overlay", "cat /data/file; echo above >/data/file")
        .edit(|spec| {
            let mount =
                json!({ "destination": "/data", "type": "overlay", "source": "overlay", "options": options });
            spec["mounts"].as_array_mut().unwrap().push(mount);
        })
        .run()?
        .ok()?;
    ensure!(ended == "below", "{ended}");
    ensure!(
        std::fs::read_to_string("/data/overlay/upper/file")? == "above\n",
        "the change is not in the upper layer"
    );
    ensure!(
        std::fs::read_to_string("/data/overlay/lower/file")? == "below",
        "the lower layer changed"
    );
    Ok(())
}

fn paths() -> Result<()> {
    let script =
        "ls -A /sys/firmware; echo x >/proc/sys/kernel/domainname; head -c 1 /proc/kcore; touch /file";
    let ended = Bundle::sh("paths", script)
        .edit(|spec| spec["root"]["readonly"] = json!(true))
        .run()?;
    ensure!(
        ended.stdout.is_empty(),
        "a masked path shows something: {ended:?}"
    );
    ensure!(
        ended.stderr.matches("Read-only file system").count() == 2,
        "{ended:?}"
    );
    ensure!(
        !std::path::Path::new(ROOTFS).join("file").exists(),
        "wrote into a read-only root"
    );
    Ok(())
}
