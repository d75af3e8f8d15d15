//! Limits that limit, from the start and changed while running.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Check;
use super::bundle::{Bundle, Running, wait_for};

pub const CHECKS: [Check; 9] = [
    ("memory-kills", memory_kills),
    ("memory-files", memory_files),
    ("memory-update", memory_update),
    ("pids-limit", pids_limit),
    ("cpu-halves", cpu_halves),
    ("cpu-weight", cpu_weight),
    ("cpuset", cpuset),
    ("io-max", io_max),
    ("unified", unified),
];

/// 64 MB and a program that wants more: killed, and the cgroup tells it was for want of memory.
fn memory_kills() -> Result<()> {
    let limit = json!({ "limit": 64 << 20 });
    let hog = "dd if=/dev/zero of=/dev/null bs=200M count=1";
    let ended = Bundle::new("hog", &["sh", "-c", &format!("exec {hog}")])
        .limit("memory", limit.clone())
        .run()?;
    ensure!(ended.code == 137, "a hog of memory was not killed: {ended:?}");
    let ended = Bundle::sh("modest", "exec dd if=/dev/zero of=/dev/null bs=32M count=1")
        .limit("memory", limit.clone())
        .run()?;
    ensure!(ended.code == 0, "a modest user of memory was killed: {ended:?}");
    // Only the hog dies, not the container.
    let container = Bundle::idle("roomy").limit("memory", limit).start()?;
    let ended = container.exec(hog)?;
    ensure!(ended.code == 137, "{ended:?}");
    ensure!(
        container.number("memory.events", "oom_kill")? == 1,
        "{}",
        container.file("memory.events")?
    );
    ensure!(
        container.state()?["status"] == "running",
        "the container died with the hog"
    );
    container.delete()
}

fn memory_files() -> Result<()> {
    let container = Bundle::idle("memory")
        .limit(
            "memory",
            json!({ "limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20 }),
        )
        .start()?;
    let expected = [
        ("memory.max", 64 << 20),
        ("memory.low", 32 << 20),
        ("memory.swap.max", 32 << 20),
    ];
    for (file, bytes) in expected {
        ensure!(
            container.file(file)? == bytes.to_string(),
            "{file}: {}",
            container.file(file)?
        );
    }
    container.delete()
}

fn memory_update() -> Result<()> {
    let container = Bundle::idle("update")
        .limit("memory", json!({ "limit": 64 << 20 }))
        .start()?;
    let fill = "dd if=/dev/zero of=/dev/null bs=100M count=1";
    ensure!(container.exec(fill)?.code == 137, "100 MB fit into 64 MB");
    container
        .runtime("update", &["--memory", &(160 << 20).to_string()])?
        .ok()?;
    ensure!(
        container.file("memory.max")? == (160 << 20).to_string(),
        "memory.max: {}",
        container.file("memory.max")?
    );
    container.exec(fill)?.ok().context("with 160 MB")?;
    container.runtime("update", &["--memory", "-1"])?.ok()?;
    ensure!(
        container.file("memory.max")? == "max",
        "memory.max: {}",
        container.file("memory.max")?
    );
    container.delete()
}

fn pids_limit() -> Result<()> {
    let script = "i=0; while [ $i -lt 20 ]; do sleep 1000 & i=$((i + 1)); done; echo all; wait";
    let ended = Bundle::sh("pids", script)
        .limit("pids", json!({ "limit": 8 }))
        .run()?;
    ensure!(
        ended.code != 0 && !ended.stdout.contains("all"),
        "20 processes with a limit of 8: {ended:?}"
    );
    ensure!(ended.stderr.contains("fork"), "{ended:?}");
    let container = Bundle::sh("pids", script)
        .limit("pids", json!({ "limit": 30 }))
        .start()?;
    wait_for("21 processes", || Ok(container.file("pids.current")? == "21"))?;
    container.runtime("update", &["--pids-limit", "5"])?.ok()?;
    ensure!(
        container.file("pids.max")? == "5",
        "pids.max: {}",
        container.file("pids.max")?
    );
    ensure!(
        container.exec("true")?.code != 0,
        "a process joined above the limit"
    );
    container.delete()
}

/// Processor time used in about a second, as a part of one processor.
fn load(container: &Running) -> Result<f64> {
    let usage = || container.number("cpu.stat", "usage_usec");
    let (start, before) = (Instant::now(), usage()?);
    std::thread::sleep(Duration::from_millis(1000));
    let used = Duration::from_micros(usage()? - before);
    Ok(used.as_secs_f64() / start.elapsed().as_secs_f64())
}

fn cpu_halves() -> Result<()> {
    let busy = "while :; do :; done";
    let container = Bundle::sh("cpu", busy)
        .limit("cpu", json!({ "quota": 50_000, "period": 100_000 }))
        .start()?;
    ensure!(
        container.file("cpu.max")? == "50000 100000",
        "cpu.max: {}",
        container.file("cpu.max")?
    );
    let half = load(&container)?;
    ensure!((0.30..0.65).contains(&half), "a quota of a half gives {half:.2}");
    ensure!(
        container.number("cpu.stat", "nr_throttled")? > 0,
        "never throttled"
    );
    container.runtime("update", &["--cpu-quota", "-1"])?.ok()?;
    let full = load(&container)?;
    ensure!(full > 0.75, "without a quota: {full:.2}");
    container.runtime("update", &["--cpu-quota", "20000"])?.ok()?;
    let fifth = load(&container)?;
    ensure!(
        (0.08..0.35).contains(&fifth),
        "a quota of a fifth gives {fifth:.2}"
    );
    container.delete()
}

/// OCI's shares, 2 to 262144 with 1024 in the middle, become a weight.
fn cpu_weight() -> Result<()> {
    for (shares, low, high) in [(2, 1, 1), (1024, 39, 100), (262_144, 10_000, 10_000)] {
        let container = Bundle::idle("weight")
            .limit("cpu", json!({ "shares": shares }))
            .start()?;
        let weight: u32 = container.file("cpu.weight")?.parse()?;
        ensure!(
            (low..=high).contains(&weight),
            "{shares} shares are a weight of {weight}"
        );
        container.delete()?;
    }
    Ok(())
}

fn cpuset() -> Result<()> {
    let script = "grep Cpus_allowed_list /proc/self/status";
    let ended = Bundle::sh("cpuset", script)
        .limit("cpu", json!({ "cpus": "1", "mems": "0" }))
        .run()?
        .ok()?;
    ensure!(ended == "Cpus_allowed_list:\t1\n", "{ended}");
    let container = Bundle::idle("cpuset")
        .limit("cpu", json!({ "cpus": "1" }))
        .start()?;
    container.runtime("update", &["--cpuset-cpus", "0"])?.ok()?;
    ensure!(
        container.exec(script)?.ok()? == "Cpus_allowed_list:\t0\n",
        "after the update"
    );
    let refusal = container.runtime("update", &["--cpuset-cpus", "0-7"])?.failed()?;
    ensure!(refusal.contains("0-7"), "{refusal}");
    container.delete()
}

/// A megabyte a second from a RAM disk that can do a thousand.
fn io_max() -> Result<()> {
    let limit = json!({
        "throttleReadBpsDevice": [{ "major": 1, "minor": 1, "rate": 1 << 20 }],
        "throttleWriteIOPSDevice": [{ "major": 1, "minor": 1, "rate": 50 }],
    });
    let device = json!([{ "path": "/dev/ram1", "type": "b", "major": 1, "minor": 1, "fileMode": 0o666 }]);
    let container = Bundle::idle("io")
        .edit(|spec| {
            spec["linux"]["devices"] = device;
            let rules = spec["linux"]["resources"]["devices"].as_array_mut().unwrap();
            rules.push(json!({ "allow": true, "type": "b", "major": 1, "minor": 1, "access": "rw" }));
        })
        .limit("blockIO", limit)
        .start()?;
    let line = container.file("io.max")?;
    ensure!(
        line == "1:1 rbps=1048576 wbps=max riops=max wiops=50",
        "io.max: {line}"
    );
    let start = Instant::now();
    container
        .exec("dd if=/dev/ram1 of=/dev/null bs=64k count=24 iflag=direct")?
        .ok()?;
    let time = start.elapsed().as_secs_f64();
    ensure!((0.9..6.0).contains(&time), "1.5 MB at 1 MB/s took {time:.2} s");
    ensure!(
        container.file("io.stat")?.contains("1:1 rbytes=1572864"),
        "io.stat: {}",
        container.file("io.stat")?
    );
    container.delete()
}

/// `linux.resources.unified` reaches files that have no other name.
fn unified() -> Result<()> {
    let container = Bundle::idle("unified")
        .limit("unified", json!({ "memory.high": "50331648", "cpu.idle": "1" }))
        .start()?;
    ensure!(
        container.file("memory.high")? == "50331648",
        "memory.high: {}",
        container.file("memory.high")?
    );
    ensure!(
        container.file("cpu.idle")? == "1",
        "cpu.idle: {}",
        container.file("cpu.idle")?
    );
    container.delete()?;
    let refusal = Bundle::idle("unified")
        .limit("unified", json!({ "no.such": "1" }))
        .run()?
        .failed()?;
    ensure!(refusal.contains("no.such"), "{refusal}");
    Ok(())
}
