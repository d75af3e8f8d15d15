//! Health checks.

use std::process::Stdio;

use crate::harness::{Daemon, daemon};

/// Starts a container that is well when `/ok` is there, probed every 100 ms.
fn start(daemon: &Daemon, name: &str, more: &[&str]) {
    let head = [
        "run",
        "-d",
        "--name",
        name,
        "--health-cmd",
        "echo looked; test -e /ok",
        "--health-interval",
        "100ms",
        "--health-retries",
        "2",
    ];
    let tail = ["busybox", "sleep", "1000"];
    daemon.vessel(&[&head[..], more, &tail].concat()).ok();
}

fn health(daemon: &Daemon, name: &str) -> String {
    daemon.inspect(name, "{{.State.Health.Status}}")
}

/// When the newest probe began.
fn last_probe(daemon: &Daemon, name: &str) -> String {
    daemon.inspect(name, "{{range .State.Health.Log}}{{.Start}} {{end}}")
}

fn listed(daemon: &Daemon, filter: &str) -> String {
    let filter = format!("health={filter}");
    let format = "{{.Names}}: {{.Status}}";
    daemon
        .vessel(&["ps", "-a", "--filter", &filter, "--format", format])
        .ok()
}

#[test]
fn states_follow_the_command() {
    let Some(daemon) = daemon() else { return };
    let mut events = daemon
        .command(&["events", "--format", "{{.Action}}"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    start(
        &daemon,
        "web",
        &["--health-start-period", "1h", "--health-start-interval", "50ms"],
    );
    daemon
        .vessel(&["run", "-d", "--name", "plain", "busybox", "sleep", "1000"])
        .ok();
    daemon.until("three failures", |daemon| {
        daemon
            .inspect("web", "{{len .State.Health.Log}}")
            .parse::<u32>()
            .is_ok_and(|count| count >= 3)
    });
    // In the start period failures do not count.
    assert_eq!(
        daemon.inspect(
            "web",
            "{{.State.Health.Status}} {{.State.Health.FailingStreak}} {{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}"
        ),
        "starting 0 1 looked"
    );
    assert!(listed(&daemon, "starting").ends_with("(health: starting)"));
    daemon.vessel(&["exec", "web", "touch", "/ok"]).ok();
    daemon.until("healthy", |daemon| health(daemon, "web") == "healthy");
    assert!(listed(&daemon, "healthy").starts_with("web: Up "));
    assert!(listed(&daemon, "healthy").ends_with("(healthy)"));
    assert!(listed(&daemon, "none").starts_with("plain: Up "));
    daemon.vessel(&["exec", "web", "rm", "/ok"]).ok();
    daemon.until("unhealthy", |daemon| health(daemon, "web") == "unhealthy");
    daemon.until("five results", |daemon| {
        daemon
            .inspect("web", "{{.State.Health.FailingStreak}}")
            .parse::<u32>()
            .unwrap()
            > 6
    });
    assert_eq!(daemon.inspect("web", "{{len .State.Health.Log}}"), "5");
    assert!(listed(&daemon, "unhealthy").ends_with("(unhealthy)"));
    let unknown = daemon.vessel(&["ps", "--filter", "health=fine"]).fails(1);
    assert!(
        unknown.contains("Unrecognised filter value for health: fine"),
        "{unknown}"
    );

    // Nobody probes what has ended, and it counts as unhealthy. The next run begins anew.
    daemon.vessel(&["exec", "web", "touch", "/ok"]).ok();
    daemon.until("healthy", |daemon| health(daemon, "web") == "healthy");
    daemon.vessel(&["stop", "-t", "0", "web"]).ok();
    assert_eq!(health(&daemon, "web"), "unhealthy");
    daemon.vessel(&["start", "web"]).ok();
    daemon.until("healthy", |daemon| health(daemon, "web") == "healthy");

    events.kill().unwrap();
    let output = events.wait_with_output().unwrap();
    let events = String::from_utf8(output.stdout).unwrap();
    let changes: Vec<&str> = events
        .lines()
        .filter(|action| action.starts_with("health_status"))
        .collect();
    assert_eq!(
        changes,
        [
            "health_status: healthy",
            "health_status: unhealthy",
            "health_status: healthy",
            "health_status: healthy"
        ]
    );
    for action in [
        "exec_create: /bin/sh -c echo looked; test -e /ok",
        "exec_start: /bin/sh -c echo looked; test -e /ok",
        "exec_die",
    ] {
        assert!(events.lines().any(|line| line == action), "{action}: {events}");
    }
}

#[test]
fn a_command_that_hangs_is_killed() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "slow",
            "--health-cmd",
            "echo waiting; exec sleep 4321",
            "--health-interval",
            "50ms",
            "--health-timeout",
            "150ms",
            "--health-retries",
            "2",
            "busybox",
            "sleep",
            "1000",
        ])
        .ok();
    daemon.until("unhealthy", |daemon| health(daemon, "slow") == "unhealthy");
    assert_eq!(
        daemon.inspect(
            "slow",
            "{{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}"
        ),
        "-1 Health check exceeded timeout (150ms): waiting"
    );
    daemon.vessel(&["pause", "slow"]).ok();
    daemon.vessel(&["unpause", "slow"]).ok();
    // Of the many that were started, at most the newest is there.
    let processes = daemon.vessel(&["top", "slow", "-eo", "pid,args"]).ok();
    let left = processes.lines().filter(|line| line.contains("4321")).count();
    assert!(left <= 1, "{processes}");

    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "loud",
            "--health-cmd",
            "dd if=/dev/zero bs=5000 count=1 2>/dev/null | tr '\\0' x",
            "--health-interval",
            "50ms",
            "busybox",
            "sleep",
            "1000",
        ])
        .ok();
    daemon.until("healthy", |daemon| health(daemon, "loud") == "healthy");
    let said = daemon.inspect("loud", "{{(index .State.Health.Log 0).Output}}");
    assert_eq!(said, format!("{}...", "x".repeat(4096)));
}

#[test]
fn probes_rest_while_paused_and_outlive_the_daemon() {
    let Some(mut daemon) = daemon() else { return };
    start(&daemon, "web", &[]);
    daemon.vessel(&["exec", "web", "touch", "/ok"]).ok();
    daemon.until("healthy", |daemon| health(daemon, "web") == "healthy");
    daemon.vessel(&["pause", "web"]).ok();
    let before = last_probe(&daemon, "web");
    assert_eq!(health(&daemon, "web"), "unhealthy");
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(last_probe(&daemon, "web"), before);
    daemon.vessel(&["unpause", "web"]).ok();
    daemon.until("healthy", |daemon| health(daemon, "web") == "healthy");

    daemon.crash();
    daemon.start();
    // The state is known at once, and the probes go on.
    assert_eq!(health(&daemon, "web"), "healthy");
    let before = last_probe(&daemon, "web");
    daemon.until("another probe", |daemon| last_probe(daemon, "web") != before);
    daemon.vessel(&["exec", "web", "rm", "/ok"]).ok();
    daemon.until("unhealthy", |daemon| health(daemon, "web") == "unhealthy");
}

#[test]
fn a_probe_does_not_outlive_its_daemon() {
    let Some(mut daemon) = daemon() else { return };
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "slow",
            "--health-cmd",
            "exec sleep 97531",
            "--health-interval",
            "50ms",
            "busybox",
            "sleep",
            "1000",
        ])
        .ok();
    let probes = || {
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
            .filter(|line| line == b"sleep\x0097531\0")
            .count()
    };
    daemon.until("a probe runs", |_| probes() > 0);
    daemon.crash();
    daemon.until("the probe is gone", |_| probes() == 0);
    daemon.start();
    assert_eq!(health(&daemon, "slow"), "starting");
    daemon.until("the next daemon probes", |_| probes() == 1);
}

#[test]
fn images_and_options() {
    let Some(daemon) = daemon() else { return };
    let config = |name: &str| daemon.inspect(name, "{{json .Config.Healthcheck}}");
    daemon
        .vessel(&["create", "--name", "first", "busybox", "true"])
        .ok();
    let mut export = daemon
        .command(&["export", "first"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let import = daemon
        .command(&[
            "import",
            "-c",
            "HEALTHCHECK --interval=100ms CMD test -e /",
            "-c",
            "ENV PATH=/bin",
            "-",
            "checked",
        ])
        .stdin(export.stdout.take().unwrap())
        .output()
        .unwrap();
    export.wait().unwrap();
    assert!(import.status.success(), "{import:?}");
    daemon
        .vessel(&["run", "-d", "--name", "of-image", "checked", "sleep", "1000"])
        .ok();
    daemon.until("healthy", |daemon| health(daemon, "of-image") == "healthy");
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "off",
            "--no-healthcheck",
            "checked",
            "sleep",
            "1000",
        ])
        .ok();
    assert!(config("off").contains("\"NONE\""), "{}", config("off"));
    assert_eq!(daemon.inspect("off", "{{json .State.Health}}"), "null");
    // What the image says is completed by what the user says.
    daemon
        .vessel(&[
            "create",
            "--name",
            "own",
            "--health-retries",
            "7",
            "checked",
            "true",
        ])
        .ok();
    let own = config("own");
    assert!(
        own.contains("\"Retries\":7") && own.contains("100000000"),
        "{own}"
    );

    for (option, why) in [
        (
            "--health-interval=500us",
            "Interval in Healthcheck cannot be less than 1ms",
        ),
        (
            "--health-timeout=1ns",
            "Timeout in Healthcheck cannot be less than 1ms",
        ),
        (
            "--health-start-period=999us",
            "StartPeriod in Healthcheck cannot be less than 1ms",
        ),
        (
            "--health-start-interval=1us",
            "StartInterval in Healthcheck cannot be less than 1ms",
        ),
        ("--health-interval=-1s", "--health-interval cannot be negative"),
        ("--health-retries=-1", "--health-retries cannot be negative"),
    ] {
        let said = daemon.vessel(&["create", option, "busybox", "true"]);
        assert_ne!(said.code, 0, "{option}");
        assert!(said.err.contains(why), "{option}: {}", said.err);
    }
    let both = daemon.vessel(&[
        "create",
        "--no-healthcheck",
        "--health-cmd",
        "x",
        "busybox",
        "true",
    ]);
    assert!(
        both.err
            .contains("--no-healthcheck conflicts with --health-* options"),
        "{both:?}"
    );
}
