//! Cgroups as such: found, entered, shown, nested, frozen, killed, removed.

use anyhow::{Result, ensure};
use serde_json::json;
use vessel_runtime::cgroup::{Controller, Hierarchies, Mode};

use super::Check;
use super::bundle::{Bundle, wait_for};

pub const CHECKS: [Check; 9] = [
    ("cgroup-mode", mode),
    ("run", run),
    ("cgroup-from-the-start", from_the_start),
    ("cgroup-namespace", namespace),
    ("cgroup-read-only", read_only),
    ("cgroup-nested", nested),
    ("cgroup-freeze", freeze),
    ("cgroup-kill", kill),
    ("cgroup-statistics", statistics),
];

/// All cgroups below a directory.
pub fn all_below(dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            let path = entry.path().display().to_string();
            found.extend(all_below(&path));
            found.push(path);
        }
    }
    found
}

fn mode() -> Result<()> {
    let found = Hierarchies::detect()?;
    ensure!(found.mode() == Mode::V2, "found {:?}", found.mode());
    for controller in [
        Controller::Cpu,
        Controller::Cpuset,
        Controller::Memory,
        Controller::Io,
        Controller::Pids,
        Controller::Devices,
        Controller::Freezer,
    ] {
        ensure!(found.has(controller), "{controller:?} is missing");
    }
    Ok(())
}

fn run() -> Result<()> {
    Bundle::new("true", &["true"]).run()?.ok()?;
    let ended = Bundle::sh("status", "echo out; echo err >&2; exit 42").run()?;
    ensure!(
        (ended.code, ended.stdout.as_str(), ended.stderr.as_str()) == (42, "out\n", "err\n"),
        "{ended:?}"
    );
    Ok(())
}

/// Before its program runs, a container's process is where its limits are; so is one that joins later.
fn from_the_start() -> Result<()> {
    let container = Bundle::idle("start").create()?;
    let group = |pid: i64| std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
    let pid = container.pid()?;
    ensure!(group(pid)? == "0::/vessel/start\n", "created in {}", group(pid)?);
    container.runtime("start", &[])?.ok()?;
    ensure!(group(pid)? == "0::/vessel/start\n", "started in {}", group(pid)?);
    let before = container.file("cgroup.procs")?.lines().count();
    container.exec("sleep 1000 >/dev/null 2>&1 &")?.ok()?;
    let after = container.file("cgroup.procs")?.lines().count();
    ensure!(
        (before, after) == (1, 2),
        "{before} processes, {after} after exec"
    );
    container.delete()
}

fn namespace() -> Result<()> {
    let container = Bundle::sh("namespace", "cat /proc/self/cgroup >/tmp/own; sleep 1000").start()?;
    wait_for("the file", || {
        Ok(container.exec("cat /tmp/own")?.stdout == "0::/\n")
    })?;
    let exec = container.exec("cat /proc/self/cgroup")?.ok()?;
    ensure!(exec == "0::/\n", "exec sees {exec:?}");
    container.delete()?;
    // Sharing the host's, it sees where it is.
    let host = Bundle::new("host", &["cat", "/proc/self/cgroup"])
        .without_namespace("cgroup")
        .run()?
        .ok()?;
    ensure!(host == "0::/vessel/host\n", "without a namespace: {host:?}");
    Ok(())
}

fn read_only() -> Result<()> {
    let script = "grep -q ' /sys/fs/cgroup ro,.* - cgroup2 ' /proc/self/mountinfo || grep cgroup /proc/self/mountinfo >&2
        cat /sys/fs/cgroup/pids.max; mkdir /sys/fs/cgroup/x; echo max >/sys/fs/cgroup/pids.max; cat /sys/fs/cgroup/pids.max";
    for with_namespace in [true, false] {
        let mut bundle = Bundle::sh("read-only", script).limit("pids", json!({ "limit": 77 }));
        if !with_namespace {
            bundle = bundle.without_namespace("cgroup");
        }
        let ended = bundle.run()?;
        ensure!(
            ended.stdout == "77\n77\n",
            "with a cgroup namespace: {with_namespace}: {ended:?}"
        );
        ensure!(
            ended.stderr.matches("Read-only file system").count() == 2,
            "{ended:?}"
        );
    }
    Ok(())
}

/// A container that may write its cgroups makes more of them; they go with it.
fn nested() -> Result<()> {
    let script = "cd /sys/fs/cgroup && mkdir -p own a/b && echo $$ >own/cgroup.procs &&
        echo '+memory +pids' >cgroup.subtree_control && echo 5 >a/pids.max && echo ready && cat a/pids.max >/tmp/done && exec sleep 1000";
    let container = Bundle::sh("nested", script)
        .edit(|spec| {
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.last_mut().unwrap()["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
        })
        .start()?;
    wait_for("nested cgroups", || {
        Ok(container.cgroup().join("a/pids.max").exists() && container.file("a/pids.max")? == "5")
    })?;
    // The container's own cgroup may hold no process any more: whoever joins goes where that is possible.
    ensure!(
        container.exec("cat /proc/self/cgroup")?.ok()? == "0::/own\n",
        "exec is not beside the first process"
    );
    let pids = container.runtime("ps", &["--format", "json"])?.ok()?;
    ensure!(pids.contains(&container.pid()?.to_string()), "ps: {pids}");
    container.delete()
}

fn freeze() -> Result<()> {
    let container = Bundle::sh("freeze", "while :; do :; done").start()?;
    container.runtime("pause", &[])?.ok()?;
    ensure!(container.number("cgroup.events", "frozen")? == 1, "not frozen");
    ensure!(container.state()?["status"] == "paused", "{}", container.state()?);
    let usage = || container.number("cpu.stat", "usage_usec");
    let before = usage()?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    ensure!(usage()? == before, "a frozen container used processor time");
    // exec would hang: it is refused.
    let refusal = container.exec("true")?.failed()?;
    ensure!(refusal.contains("paused"), "{refusal}");
    container.runtime("resume", &[])?.ok()?;
    ensure!(
        container.state()?["status"] == "running",
        "{}",
        container.state()?
    );
    wait_for("progress", || Ok(usage()? > before))?;
    // A frozen one can be deleted.
    container.runtime("pause", &[])?.ok()?;
    container.delete()
}

/// Without a PID namespace only the cgroup knows what belongs to a container.
fn kill() -> Result<()> {
    let script = "for i in 1 2 3; do sleep 1000 & setsid sleep 1000 & done; wait";
    let container = Bundle::sh("kill", script).without_namespace("pid").start()?;
    wait_for("seven processes", || {
        Ok(container.file("cgroup.procs")?.lines().count() == 7)
    })?;
    container.runtime("kill", &["TERM"])?.ok()?;
    container.wait_stopped()?;
    ensure!(
        container.number("cgroup.events", "populated")? == 1,
        "the shell's death ended its children"
    );
    container.runtime("kill", &["--all", "KILL"])?.ok()?;
    wait_for("an empty cgroup", || {
        Ok(container.number("cgroup.events", "populated")? == 0)
    })?;
    container.delete()?;
    // SIGKILL to the first process is meant for the container.
    let container = Bundle::sh("kill", script).without_namespace("pid").start()?;
    wait_for("seven processes", || {
        Ok(container.file("cgroup.procs")?.lines().count() == 7)
    })?;
    container.runtime("kill", &["KILL"])?.ok()?;
    wait_for("an empty cgroup", || {
        Ok(container.number("cgroup.events", "populated")? == 0)
    })?;
    container.delete()
}

fn statistics() -> Result<()> {
    let container = Bundle::sh(
        "statistics",
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=8; while :; do :; done",
    )
    .limit("memory", json!({ "limit": 64 << 20 }))
    .limit("pids", json!({ "limit": 12 }))
    .start()?;
    wait_for("8 MiB", || {
        Ok(container.file("memory.current")?.parse::<u64>()? > 8 << 20)
    })?;
    let line = container.runtime("events", &["--stats"])?.ok()?;
    let stats: serde_json::Value = serde_json::from_str(&line)?;
    let text = stats.to_string();
    for part in [
        &*(64 << 20).to_string(),
        "\"memory\"",
        "\"cpu\"",
        "\"pids\"",
        "12",
    ] {
        ensure!(text.contains(part), "no {part} in {text}");
    }
    container.delete()
}
