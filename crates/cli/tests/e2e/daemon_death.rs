//! Nothing dies with the daemon.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::harness::daemon;

#[test]
fn containers_outlive_a_crash() {
    let Some(mut daemon) = daemon() else { return };
    let script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "count",
            "-p",
            "127.0.0.1::80",
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .ok();
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "ends",
            "busybox",
            "sh",
            "-c",
            "sleep 0.5; echo last words; exit 9",
        ])
        .ok();
    let before = daemon.inspect(
        "count",
        "{{.State.Pid}} {{.State.StartedAt}} {{.NetworkSettings.IPAddress}}",
    );
    daemon.crash();
    std::thread::sleep(std::time::Duration::from_millis(800));
    daemon.start();
    assert_eq!(
        daemon.inspect(
            "count",
            "{{.State.Pid}} {{.State.StartedAt}} {{.NetworkSettings.IPAddress}}"
        ),
        before
    );
    assert_eq!(
        daemon.inspect("ends", "{{.State.Status}} {{.State.ExitCode}}"),
        "exited 9"
    );
    assert_eq!(daemon.vessel(&["logs", "ends"]).ok(), "last words");
    // No line of the one that went on is missing.
    let lines: Vec<u64> = daemon
        .vessel(&["logs", "count"])
        .ok()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert!(lines.len() > 40, "{}", lines.len());
    assert!(
        lines
            .iter()
            .enumerate()
            .all(|(index, number)| index as u64 == *number)
    );
    assert_eq!(
        daemon.vessel(&["exec", "count", "echo", "still there"]).ok(),
        "still there"
    );
    daemon.vessel(&["stop", "-t", "0", "count"]).ok();
    assert_eq!(daemon.inspect("count", "{{.State.ExitCode}}"), "137");
}

#[test]
fn a_followed_log_goes_on_with_the_next_daemon() {
    let Some(mut daemon) = daemon() else { return };
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "slow",
            "busybox",
            "sh",
            "-c",
            "for i in 1 2 3 4 5; do echo $i; sleep 0.2; done",
        ])
        .ok();
    let mut follower = daemon
        .command(&["logs", "-f", "slow"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(follower.stdout.take().unwrap())
        .read_line(&mut first)
        .unwrap();
    assert_eq!(first, "1\n");
    daemon.crash();
    follower.wait().unwrap();
    daemon.start();
    let said = daemon.vessel(&["logs", "-f", "slow"]).ok();
    assert_eq!(said, "1\n2\n3\n4\n5");
}

#[test]
fn a_killed_shim_takes_its_container_along_and_nothing_else() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&["run", "-d", "--name", "victim", "busybox", "sleep", "1000"])
        .ok();
    daemon
        .vessel(&["run", "-d", "--name", "other", "busybox", "sleep", "1000"])
        .ok();
    let pid: i32 = daemon.inspect("victim", "{{.State.Pid}}").parse().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let shim: i32 = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(shim).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    daemon.until("the container is recorded as ended", |daemon| {
        daemon.inspect("victim", "{{.State.Running}}") == "false"
    });
    assert_eq!(daemon.inspect("victim", "{{.State.ExitCode}}"), "137");
    daemon.until("its process is gone", |_| {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
    assert_eq!(daemon.inspect("other", "{{.State.Running}}"), "true");
    daemon.vessel(&["start", "victim"]).ok();
}

#[test]
fn restart_policies_hold_across_daemons() {
    let Some(mut daemon) = daemon() else { return };
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "again",
            "--restart",
            "on-failure:2",
            "busybox",
            "sh",
            "-c",
            "echo x; exit 1",
        ])
        .ok();
    daemon.until("three runs", |daemon| {
        daemon.vessel(&["logs", "again"]).out == "x\nx\nx\n"
    });
    daemon.until("it rests", |daemon| {
        daemon.inspect("again", "{{.State.Status}} {{.RestartCount}}") == "exited 2"
    });
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "always",
            "--restart",
            "always",
            "busybox",
            "sleep",
            "1000",
        ])
        .ok();
    let pid = daemon.inspect("always", "{{.State.Pid}}");
    daemon.crash();
    let raw = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
    daemon.start();
    daemon.until("it runs again", |daemon| {
        daemon.inspect("always", "{{.State.Running}}") == "true"
            && daemon.inspect("always", "{{.State.Pid}}") != pid
    });
}

/// The process that watches a container's.
fn shim_of(pid: &str) -> rustix::process::Pid {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap();
    rustix::process::Pid::from_raw(parent.trim().parse().unwrap()).unwrap()
}

#[test]
fn a_shim_that_stalls_while_the_daemon_comes_up_keeps_its_container() {
    use rustix::process::{Signal, kill_process};
    let Some(mut daemon) = daemon() else { return };
    for name in ["stalled", "ends"] {
        daemon
            .vessel(&["run", "-d", "--name", name, "busybox", "sleep", "1000"])
            .ok();
    }
    let pid = daemon.inspect("stalled", "{{.State.Pid}}");
    let ends = daemon.inspect("ends", "{{.State.Pid}}");
    let shims = [shim_of(&pid), shim_of(&ends)];
    daemon.crash();
    for shim in shims {
        kill_process(shim, Signal::STOP).unwrap();
    }
    daemon.start();
    assert_eq!(
        daemon.inspect("stalled", "{{.State.Status}} {{.State.Pid}}"),
        format!("running {pid}")
    );
    // One goes on, the other ends before anybody could ask it.
    kill_process(shims[1], Signal::KILL).unwrap();
    kill_process(shims[0], Signal::CONT).unwrap();
    assert_eq!(daemon.vessel(&["exec", "stalled", "echo", "there"]).ok(), "there");
    daemon.until("the other is recorded as ended", |daemon| {
        daemon.inspect("ends", "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"
    });
    daemon.until("the one is followed", |daemon| daemon.log().contains("adopted"));
    daemon.vessel(&["stop", "-t", "0", "stalled"]).ok();
    assert_eq!(
        daemon.inspect("stalled", "{{.State.Status}} {{.State.ExitCode}}"),
        "exited 137"
    );
}

#[test]
fn what_is_restarted_by_a_new_daemon_starts_at_the_first_attempt() {
    let Some(mut daemon) = daemon() else { return };
    let names: Vec<String> = (0..8).map(|number| format!("always{number}")).collect();
    for name in &names {
        daemon
            .vessel(&[
                "run",
                "-d",
                "--name",
                name,
                "--restart",
                "always",
                "busybox",
                "sleep",
                "1000",
            ])
            .ok();
    }
    let pids: Vec<String> = names
        .iter()
        .map(|name| daemon.inspect(name, "{{.State.Pid}}"))
        .collect();
    daemon.crash();
    for pid in &pids {
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    daemon.start();
    for name in &names {
        daemon.until("it runs again", |daemon| {
            daemon.inspect(name, "{{.State.Running}} {{.RestartCount}}") == "true 1"
        });
    }
    assert!(!daemon.log().contains("restart: "), "{}", daemon.log());
}
