//! The daemon and Docker's command line, with all that a daemon does on a kernel of its own.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Check;
use super::bundle::{CGROUPS, Ended, ROOTFS, command, vessel, wait_for};

pub const CHECKS: [Check; 12] = [
    ("engine-hello", hello),
    ("engine-run", run),
    ("engine-layers", layers),
    ("engine-limits", limits),
    ("engine-oom-killed", oom_killed),
    ("engine-cpus", cpus),
    ("engine-exec-stats-stop", exec_stats_stop),
    ("engine-pause", pause),
    ("engine-bridge", bridge),
    ("engine-daemon-death", daemon_death),
    ("engine-user-namespace", user_namespace),
    ("engine-quota", quota),
];

static DAEMON: Mutex<Option<Child>> = Mutex::new(None);

const LOG: &str = "/guest/daemon.log";
const SOCKET: &str = "unix:///run/vessel/vessel.sock";

/// The daemon, started when first needed, with the image `busybox`.
fn engine(arguments: &[&str]) -> Result<Ended> {
    if DAEMON.lock().unwrap().is_none() {
        start(&["--root", "/data/vessel"])?;
        import()?;
    }
    vessel(&[&["-H", SOCKET], arguments].concat())
}

fn start(arguments: &[&str]) -> Result<()> {
    let log = File::options().create(true).append(true).open(LOG)?;
    let daemon = Command::new("/bin/vessel")
        .args(["daemon", "--run", "/run/vessel", "--socket", SOCKET])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    *DAEMON.lock().unwrap() = Some(daemon);
    let answers = || Ok(vessel(&["-H", SOCKET, "version"])?.code == 0);
    wait_for("an answer of the daemon", answers)
        .with_context(|| std::fs::read_to_string(LOG).unwrap_or_default())
}

fn import() -> Result<()> {
    let archive = "/guest/busybox.tar";
    command(Command::new("tar").args(["-C", ROOTFS, "-cf", archive, "."]))?.ok()?;
    let changes = ["--change", "ENV PATH=/bin", "--change", "CMD [\"sh\"]"];
    vessel(&[&["-H", SOCKET, "import"], &changes[..], &[archive, "busybox"]].concat())?.ok()?;
    Ok(())
}

/// Ends the daemon as an operator does; nothing to do when no check started it.
pub fn stop() -> Result<()> {
    let Some(mut daemon) = DAEMON.lock().unwrap().take() else {
        return Ok(());
    };
    command(Command::new("kill").arg(daemon.id().to_string()))?.ok()?;
    let status = daemon.wait()?;
    ensure!(
        status.success(),
        "the daemon ended with {status}: {}",
        std::fs::read_to_string(LOG)?
    );
    let panics = std::fs::read_to_string(LOG)?
        .lines()
        .filter(|line| line.contains("panicked"))
        .count();
    ensure!(
        panics == 0,
        "the daemon panicked: {}",
        std::fs::read_to_string(LOG)?
    );
    Ok(())
}

/// A shell script in a new container without a network.
fn script(arguments: &[&str], script: &str) -> Result<Ended> {
    engine(
        &[
            &["run", "--rm", "--network", "none"],
            arguments,
            &["busybox", "sh", "-c", script],
        ]
        .concat(),
    )
}

/// A container that does nothing, in the background.
fn idle(name: &str, arguments: &[&str]) -> Result<()> {
    let words = [
        "run",
        "-d",
        "--name",
        name,
        "--network",
        "none",
        "--stop-timeout",
        "1",
    ];
    engine(&[&words, arguments, &["busybox", "sleep", "1000"]].concat())?.ok()?;
    Ok(())
}

fn inspect(name: &str, pointer: &str) -> Result<Value> {
    let all: Value = serde_json::from_str(&engine(&["inspect", name])?.ok()?)?;
    all.pointer(&format!("/0{pointer}"))
        .cloned()
        .with_context(|| format!("inspect has no {pointer}"))
}

/// A file of a container's cgroup, wherever the daemon has put that.
fn group_file(name: &str, file: &str) -> Result<String> {
    let pid = inspect(name, "/State/Pid")?;
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = own.trim().strip_prefix("0::").context("no cgroup v2")?;
    Ok(std::fs::read_to_string(format!("{CGROUPS}{path}/{file}"))?
        .trim()
        .to_owned())
}

fn hello() -> Result<()> {
    let text = engine(&["run", "--rm", "--network", "none", "hello"])?.ok()?;
    ensure!(text.to_lowercase().contains("hello"), "{text}");
    let info = engine(&["info", "--format", "{{.CgroupVersion}}"])?.ok()?;
    ensure!(info.trim() == "2", "info says cgroup version {info}");
    Ok(())
}

fn run() -> Result<()> {
    let ended = script(
        &[],
        "cat /proc/self/cgroup; grep Seccomp: /proc/self/status; exit 42",
    )?;
    ensure!(
        (ended.code, ended.stdout.as_str()) == (42, "0::/\nSeccomp:\t2\n"),
        "{ended:?}"
    );
    let refused = script(
        &[],
        "mount -t tmpfs x /tmp || unshare -m true || mkdir /sys/fs/cgroup/x",
    )?;
    ensure!(refused.code != 0, "{refused:?}");
    Ok(())
}

/// Forty layers: kernels before 6.5 take them in one list, in which they must be short. The first holds busybox, each
/// other one a file of its own and one that it replaces.
fn layers() -> Result<()> {
    const COUNT: usize = 40;
    let dir = std::path::Path::new("/guest/layers");
    std::fs::create_dir_all(dir)?;
    let (mut names, mut ids) = (Vec::new(), Vec::new());
    for index in 0..COUNT {
        let content = dir.join(index.to_string());
        std::fs::create_dir_all(&content)?;
        std::fs::write(content.join("top"), index.to_string())?;
        std::fs::write(content.join(format!("file-{index}")), "")?;
        let name = format!("{index}.tar");
        let source = if index == 0 {
            ROOTFS.as_ref()
        } else {
            content.as_path()
        };
        command(
            Command::new("tar")
                .arg("-C")
                .arg(source)
                .arg("-cf")
                .arg(dir.join(&name))
                .arg("."),
        )?
        .ok()?;
        let sum = command(Command::new("sha256sum").arg(dir.join(&name)))?.ok()?;
        ids.push(format!("sha256:{}", sum.split(' ').next().unwrap_or_default()));
        names.push(name);
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": { "Env": ["PATH=/bin"] }, "rootfs": { "type": "layers", "diff_ids": ids },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["layers:latest"], "Layers": names }]);
    std::fs::write(dir.join("config.json"), config.to_string())?;
    std::fs::write(dir.join("manifest.json"), manifest.to_string())?;
    let files: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .chain(["config.json", "manifest.json"])
        .collect();
    command(
        Command::new("tar")
            .current_dir(dir)
            .args(["-cf", "/guest/layers.tar"])
            .args(files),
    )?
    .ok()?;
    engine(&["load", "-i", "/guest/layers.tar"])?.ok()?;
    let words = [
        "run",
        "--name",
        "layers",
        "--network",
        "none",
        "layers",
        "sh",
        "-c",
        "cat /top; ls / | grep -c file-; rm /top",
    ];
    let text = engine(&words)?.ok()?;
    ensure!(text == format!("{}{}\n", COUNT - 1, COUNT - 1), "{text}");
    let diff = engine(&["diff", "layers"])?.ok()?;
    ensure!(
        diff.lines().any(|line| line == "D /top") && !diff.contains("file-"),
        "diff: {diff}"
    );
    engine(&["rm", "layers"])?.ok()?;
    Ok(())
}

fn limits() -> Result<()> {
    let arguments = [
        "--memory",
        "64m",
        "--memory-reservation",
        "32m",
        "--memory-swap",
        "96m",
        "--cpus",
        "0.5",
        "--cpu-shares",
        "2",
        "--cpuset-cpus",
        "1",
        "--pids-limit",
        "33",
        "--device-read-bps",
        "/dev/ram1:1mb",
        "--device-write-iops",
        "/dev/ram1:50",
    ];
    idle("limits", &arguments)?;
    let expected = [
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("memory.swap.max", "33554432"),
        ("cpu.max", "50000 100000"),
        ("cpu.weight", "1"),
        ("cpuset.cpus", "1"),
        ("pids.max", "33"),
        ("io.max", "1:1 rbps=1048576 wbps=max riops=max wiops=50"),
    ];
    for (file, value) in expected {
        ensure!(
            group_file("limits", file)? == value,
            "{file}: {}",
            group_file("limits", file)?
        );
    }
    let change = [
        "--memory",
        "80m",
        "--memory-swap",
        "80m",
        "--cpus",
        "0.25",
        "--pids-limit",
        "44",
        "--cpuset-cpus",
        "0-1",
    ];
    engine(&[&["update"], &change[..], &["limits"]].concat())?.ok()?;
    let expected = [
        ("memory.max", "83886080"),
        ("memory.swap.max", "0"),
        ("cpu.max", "25000 100000"),
        ("cpuset.cpus", "0-1"),
        ("pids.max", "44"),
    ];
    for (file, value) in expected {
        ensure!(
            group_file("limits", file)? == value,
            "after the update, {file}: {}",
            group_file("limits", file)?
        );
    }
    engine(&["rm", "-f", "limits"])?.ok()?;
    Ok(())
}

fn oom_killed() -> Result<()> {
    let words = [
        "run",
        "--name",
        "oom",
        "--network",
        "none",
        "--memory",
        "64m",
        "busybox",
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=200M",
        "count=1",
    ];
    let ended = engine(&words)?;
    ensure!(ended.code == 137, "{ended:?}");
    ensure!(
        inspect("oom", "/State/OOMKilled")? == json!(true),
        "{}",
        inspect("oom", "/State")?
    );
    engine(&["rm", "oom"])?.ok()?;
    Ok(())
}

fn cpus() -> Result<()> {
    let busy = [
        "run",
        "-d",
        "--name",
        "cpus",
        "--network",
        "none",
        "--cpus",
        "0.5",
        "busybox",
        "sh",
        "-c",
        "while :; do :; done",
    ];
    engine(&busy)?.ok()?;
    let usage = || -> Result<f64> {
        let text = group_file("cpus", "cpu.stat")?;
        let usage = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))
            .context("no usage")?;
        Ok(usage.parse::<f64>()? / 1e6)
    };
    let before = usage()?;
    let begin = Instant::now();
    std::thread::sleep(Duration::from_millis(1000));
    let after = usage()?;
    let share = (after - before) / begin.elapsed().as_secs_f64();
    ensure!((0.30..0.65).contains(&share), "half a processor is {share:.2}");
    engine(&["rm", "-f", "cpus"])?.ok()?;
    Ok(())
}

fn exec_stats_stop() -> Result<()> {
    idle("idle", &["--memory", "64m"])?;
    let ended = engine(&["exec", "idle", "sh", "-c", "cat /proc/self/cgroup; exit 7"])?;
    ensure!((ended.code, ended.stdout.as_str()) == (7, "0::/\n"), "{ended:?}");
    let stats = engine(&[
        "stats",
        "--no-stream",
        "--format",
        "{{.Name}} {{.MemUsage}} {{.PIDs}}",
        "idle",
    ])?
    .ok()?;
    ensure!(
        stats.starts_with("idle ") && stats.contains("/ 64MiB") && stats.ends_with(" 1\n"),
        "{stats:?}"
    );
    let top = engine(&["top", "idle"])?.ok()?;
    ensure!(top.contains("sleep 1000"), "{top}");
    engine(&["stop", "idle"])?.ok()?;
    ensure!(
        inspect("idle", "/State/ExitCode")? == json!(137),
        "{}",
        inspect("idle", "/State")?
    );
    ensure!(
        inspect("idle", "/State/OOMKilled")? == json!(false),
        "{}",
        inspect("idle", "/State")?
    );
    engine(&["start", "idle"])?.ok()?;
    engine(&["rm", "-f", "idle"])?.ok()?;
    Ok(())
}

fn pause() -> Result<()> {
    idle("pause", &[])?;
    engine(&["pause", "pause"])?.ok()?;
    ensure!(
        inspect("pause", "/State/Status")? == json!("paused"),
        "{}",
        inspect("pause", "/State")?
    );
    ensure!(group_file("pause", "cgroup.freeze")? == "1", "not frozen");
    engine(&["exec", "pause", "true"])?.failed()?;
    engine(&["unpause", "pause"])?.ok()?;
    engine(&["exec", "pause", "true"])?.ok()?;
    // A paused container can be removed.
    engine(&["pause", "pause"])?.ok()?;
    engine(&["rm", "-f", "pause"])?.ok()?;
    Ok(())
}

/// The bridge, an address, the way to another container and a published port.
fn bridge() -> Result<()> {
    let server = "while :; do echo served | nc -l -p 8080; done";
    engine(&[
        "run",
        "-d",
        "--name",
        "server",
        "-p",
        "127.0.0.1:8888:8080",
        "busybox",
        "sh",
        "-c",
        server,
    ])?
    .ok()?;
    let address = inspect("server", "/NetworkSettings/Networks/bridge/IPAddress")?;
    let address = address.as_str().context("no address")?;
    let fetch = format!("nc -w 5 {address} 8080");
    let text = engine(&["run", "--rm", "busybox", "sh", "-c", &fetch])?.ok()?;
    ensure!(text == "served\n", "from another container: {text:?}");
    let published =
        || Ok(command(Command::new("nc").args(["-w", "5", "127.0.0.1", "8888"]))?.stdout == "served\n");
    wait_for("an answer of the published port", published)?;
    engine(&["rm", "-f", "server"])?.ok()?;
    Ok(())
}

/// Killed at once, the daemon leaves its containers running, and the next one knows them.
fn daemon_death() -> Result<()> {
    let ticks = "i=0; while :; do echo $i; i=$((i + 1)); sleep 0.1; done";
    engine(&[
        "run",
        "-d",
        "--name",
        "ticks",
        "--network",
        "none",
        "--memory",
        "32m",
        "busybox",
        "sh",
        "-c",
        ticks,
    ])?
    .ok()?;
    let pid = inspect("ticks", "/State/Pid")?;
    let mut daemon = DAEMON.lock().unwrap().take().context("no daemon")?;
    daemon.kill()?;
    daemon.wait()?;
    std::thread::sleep(Duration::from_millis(300));
    start(&["--root", "/data/vessel"])?;
    ensure!(
        inspect("ticks", "/State/Pid")? == pid,
        "another process: {}",
        inspect("ticks", "/State")?
    );
    let log = engine(&["logs", "ticks"])?.ok()?;
    let expected: Vec<String> = (0..log.lines().count())
        .map(|number| number.to_string())
        .collect();
    ensure!(
        log.lines().eq(expected.iter().map(String::as_str)) && expected.len() > 2,
        "output was lost: {log:?}"
    );
    engine(&["update", "--memory", "48m", "--memory-swap", "48m", "ticks"])?.ok()?;
    ensure!(
        group_file("ticks", "memory.max")? == (48 << 20).to_string(),
        "memory.max: {}",
        group_file("ticks", "memory.max")?
    );
    engine(&["rm", "-f", "ticks"])?.ok()?;
    Ok(())
}

/// A daemon whose containers' users are nobody outside.
fn user_namespace() -> Result<()> {
    stop()?;
    start(&["--root", "/data/remapped", "--userns-remap", "100000:65536"])?;
    import()?;
    let text = script(
        &[],
        "id -u; stat -c %u /bin; echo x >/new; stat -c %u /new; cat /proc/self/uid_map",
    )?
    .ok()?;
    let words: Vec<&str> = text.split_whitespace().collect();
    ensure!(words == ["0", "0", "0", "0", "100000", "65536"], "{text}");
    stop()
}

/// On an ext4 with project quotas: `--storage-opt size=`, and the same of a volume.
fn quota() -> Result<()> {
    if !std::path::Path::new("/quota.ext4").exists() {
        println!("left out: the host has no mkfs.ext4");
        return Ok(());
    }
    stop()?;
    command(Command::new("dd").args(["if=/quota.ext4", "of=/dev/ram2", "bs=1M"]))?.ok()?;
    std::fs::create_dir_all("/quota")?;
    command(Command::new("mount").args(["-t", "ext4", "-o", "prjquota", "/dev/ram2", "/quota"]))?.ok()?;
    start(&["--root", "/quota/vessel"])?;
    import()?;
    let fill = "head -c 3000000 /dev/zero > FILE; echo $? $(stat -c %s FILE)";
    let write = |arguments: &[&str], file: &str| -> Result<u64> {
        let said = script(arguments, &fill.replace("FILE", file))?.ok()?;
        let (code, size) = said.trim().split_once(' ').with_context(|| said.clone())?;
        let size = size.parse()?;
        ensure!((code == "0") == (size == 3_000_000), "{said}");
        Ok(size)
    };
    ensure!(write(&[], "/big")? == 3_000_000, "without a limit there is one");
    let size = write(&["--storage-opt", "size=1m"], "/big")?;
    ensure!((500_000..=1 << 20).contains(&size), "1 MiB holds {size} bytes");
    // It is the directory's: a new daemon need know nothing.
    let words = [
        "create",
        "--name",
        "limited",
        "--network",
        "none",
        "--storage-opt",
        "size=1m",
        "busybox",
    ];
    let words = [&words[..], &["sh", "-c", "head -c 3000000 /dev/zero > /big"]].concat();
    engine(&words)?.ok()?;
    engine(&["volume", "create", "-o", "size=1m", "small"])?.ok()?;
    stop()?;
    start(&["--root", "/quota/vessel"])?;
    ensure!(
        engine(&["start", "-a", "limited"])?.code != 0,
        "the limit did not outlive the daemon"
    );
    let size = write(&["-v", "small:/m"], "/m/big")?;
    ensure!(
        (500_000..=1 << 20).contains(&size),
        "1 MiB of a volume holds {size} bytes"
    );
    let text = script(&["-v", "small:/m"], "df -k /m | tail -n 1 | awk '{print $2}'")?.ok()?;
    ensure!(text.trim() == "1024", "df says {text}");
    engine(&["rm", "limited"])?.ok()?;
    engine(&["volume", "rm", "small"])?.ok()?;
    stop()?;
    command(Command::new("umount").arg("/quota"))?.ok()?;
    Ok(())
}
