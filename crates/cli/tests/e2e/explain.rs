//! Everything on the host has an owner, and what has none is said.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Daemon, daemon_with_bin};

fn explained(daemon: &Daemon) -> Vec<Value> {
    let text = daemon.vessel(&["system", "explain", "--format", "json"]).ok();
    let value: Value = serde_json::from_str(&text).unwrap();
    let items = value["Items"].as_array().unwrap().clone();
    let unknown = items.iter().filter(|item| item["Known"] == false).count();
    assert_eq!(value["Unknown"], unknown);
    items
}

fn find<'a>(items: &'a [Value], kind: &str, test: impl Fn(&str) -> bool) -> &'a Value {
    items
        .iter()
        .find(|item| item["Kind"] == kind && test(item["Name"].as_str().unwrap()))
        .unwrap_or_else(|| panic!("no such {kind} in {items:#?}"))
}

fn unknown(items: &[Value]) -> Vec<&str> {
    items
        .iter()
        .filter(|item| item["Known"] == false)
        .map(|item| item["Name"].as_str().unwrap())
        .collect()
}

fn du(paths: [&Path; 2]) -> u64 {
    let output = Command::new("du")
        .args(["-s", "-c", "--block-size=1"])
        .args(paths)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .last()
        .unwrap()
        .split('\t')
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn what_a_container_has_is_its_own_and_what_it_is_freed_by_frees_it() {
    let Some(daemon) = daemon_with_bin() else { return };
    daemon
        .vessel(&["network", "create", "--subnet", &daemon.further_subnet(0), "back"])
        .ok();
    let script =
        "echo hello; dd if=/dev/zero of=/big bs=1024 count=100 2>/dev/null; mkdir -p /data; sleep 1000";
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "back",
            "-p",
            "127.0.0.1::80",
            "-v",
            "data:/data",
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .ok();
    let id = daemon.inspect("web", "{{.Id}}");
    let pid = daemon.inspect("web", "{{.State.Pid}}");
    let root = daemon.root();
    daemon.until("the container wrote", |_| {
        root.join("containers")
            .join(&id)
            .join("upper/big")
            .metadata()
            .is_ok_and(|big| big.len() == 102_400)
    });

    let items = explained(&daemon);
    assert_eq!(unknown(&items), Vec::<&str>::new(), "{items:#?}");
    let files: u64 = items.iter().filter_map(|item| item["Size"].as_u64()).sum();
    let du = du([&daemon.root(), &daemon.run_dir()]);
    // The journal and the log may have grown meanwhile.
    assert!(du.abs_diff(files) <= 64 << 10, "{files} {du}");

    let written = find(&items, "file", |name| name.ends_with(&format!("{id}/upper")));
    assert_eq!(
        (&written["Owner"], &written["Free"]),
        (&"container web".into(), &"vessel rm -f web".into())
    );
    assert!(written["Size"].as_u64().unwrap() >= 102_400);
    let volume = find(&items, "file", |name| name.ends_with("volumes/data"));
    assert_eq!(volume["Owner"], "volume data, used by web");
    assert_eq!(
        find(&items, "file", |name| name.contains("/layers/"))["Owner"],
        "image busybox:latest"
    );
    let program = find(&items, "process", |name| name.starts_with(&format!("{pid} ")));
    assert_eq!(
        (&program["Owner"], &program["Purpose"]),
        (&"container web".into(), &"its program".into())
    );
    assert_eq!(program["Free"], "vessel stop web");
    let of_web = |kind: &str| {
        let mine = items
            .iter()
            .filter(|item| item["Kind"] == kind && item["Owner"] == "container web");
        mine.count()
    };
    // A shim and a program, at least; one end, one port, one namespace.
    assert!(of_web("process") >= 2, "{items:#?}");
    assert_eq!(
        (of_web("interface"), of_web("rule"), of_web("mount")),
        (1, 1, 1),
        "{items:#?}"
    );
    assert!(of_web("cgroup") >= 1);
    assert!(
        items
            .iter()
            .any(|item| item["Kind"] == "interface" && item["Owner"] == "network back"),
        "{items:#?}"
    );
    assert!(
        items
            .iter()
            .any(|item| item["Kind"] == "rule" && item["Owner"] == "network back"),
        "{items:#?}"
    );
    let only = daemon.vessel(&["system", "explain", "web"]).ok();
    assert!(
        only.contains("published port") && !only.contains("state.journal"),
        "{only}"
    );

    daemon.vessel(&["stop", "-t", "0", "web"]).ok();
    // Its shim says that it has ended before it ends itself.
    daemon.until("only its files are left", |daemon| {
        explained(daemon)
            .iter()
            .all(|item| item["Owner"] != "container web" || item["Kind"] == "file")
    });
    daemon.vessel(&["rm", "-v", "web"]).ok();
    daemon.vessel(&["volume", "rm", "data"]).ok();
}

#[test]
fn what_nothing_explains_is_unknown() {
    let Some(daemon) = daemon_with_bin() else { return };
    // It makes the parent of cgroups.
    daemon.vessel(&["run", "--rm", "busybox", "true"]).ok();
    let stray = daemon.root().join("volumes/stray");
    std::fs::create_dir(&stray).unwrap();
    std::fs::write(stray.join("x"), vec![1; 50_000]).unwrap();
    let mount = daemon.root().join("strange mount");
    std::fs::create_dir(&mount).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "t"])
        .arg(&mount)
        .status()
        .unwrap();
    assert!(mounted.success());
    let cgroup = std::fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .flatten()
        .map(|hierarchy| hierarchy.path().join(daemon.bridge()))
        .find(|path| path.is_dir());
    let cgroup = cgroup.map(|parent| parent.join("stray"));
    cgroup.iter().for_each(|path| std::fs::create_dir(path).unwrap());

    let items = explained(&daemon);
    let table = daemon.vessel(&["system", "explain", "unknown"]).ok();
    cgroup.iter().for_each(|path| std::fs::remove_dir(path).unwrap());
    assert!(Command::new("umount").arg(&mount).status().unwrap().success());
    std::fs::remove_dir(&mount).unwrap();
    std::fs::remove_dir_all(&stray).unwrap();

    let mut expected = vec![
        stray.display().to_string(),
        mount.display().to_string(),
        mount.display().to_string(),
    ];
    expected.extend(cgroup.map(|path| path.display().to_string()));
    expected.sort();
    let mut found = unknown(&items);
    found.sort_unstable();
    assert_eq!(found, expected, "{items:#?}");
    assert!(
        table.contains("volumes/stray") && table.contains("Cgroups:"),
        "{table}"
    );
    assert_eq!(unknown(&explained(&daemon)), Vec::<&str>::new());
}
