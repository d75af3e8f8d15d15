//! Limits limit.

use crate::harness::daemon;

#[test]
fn memory_kills() {
    let Some(daemon) = daemon() else { return };
    let said = daemon.vessel(&[
        "run",
        "--name",
        "eater",
        "--memory",
        "64m",
        "--memory-swap",
        "64m",
        "busybox",
        "sh",
        "-c",
        "x=x; while :; do x=$x$x; done",
    ]);
    assert_eq!(said.code, 137, "{said:?}");
    assert_eq!(
        daemon.inspect("eater", "{{.State.OOMKilled}} {{.State.ExitCode}}"),
        "true 137"
    );
}

#[test]
fn processes_are_counted() {
    let Some(daemon) = daemon() else { return };
    let script = "for i in $(seq 30); do sleep 5 & done; wait";
    let said = daemon.vessel(&[
        "run",
        "--rm",
        "--init",
        "--stop-timeout",
        "0",
        "--pids-limit",
        "10",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    assert!(said.err.contains("can't fork"), "{said:?}");
}

#[test]
fn half_a_processor_is_half() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "busy",
            "--cpus",
            "0.5",
            "busybox",
            "sh",
            "-c",
            "while :; do :; done",
        ])
        .ok();
    let used = |daemon: &crate::harness::Daemon| -> f64 {
        let stat = daemon.vessel(&["exec", "busy", "cat", "/proc/1/stat"]).ok();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<f64>().unwrap() / 100.0
    };
    let (begin, before) = (std::time::Instant::now(), used(&daemon));
    std::thread::sleep(std::time::Duration::from_secs(3));
    let share = (used(&daemon) - before) / begin.elapsed().as_secs_f64();
    // A loaded machine gives less, never more.
    assert!(share < 0.65, "{share}");
    daemon.vessel(&["update", "--cpus", "0.1", "busy"]).ok();
    assert_eq!(daemon.inspect("busy", "{{.HostConfig.NanoCpus}}"), "100000000");
}

#[test]
fn devices_are_denied() {
    let Some(daemon) = daemon() else { return };
    let script = "mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg";
    let said = daemon.vessel(&["run", "--rm", "busybox", "sh", "-c", script]);
    assert!(said.code != 0 && said.err.contains("not permitted"), "{said:?}");
}
