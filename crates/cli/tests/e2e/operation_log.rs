//! Who did what is told, and nothing secret.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Daemon, daemon};

fn log(daemon: &Daemon) -> Vec<Value> {
    let text = daemon.vessel(&["system", "log", "--format", "json"]).ok();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn find<'a>(log: &'a [Value], action: &str) -> &'a Value {
    let found = log.iter().rfind(|line| line["Action"] == action);
    found.unwrap_or_else(|| panic!("no {action} in {log:#?}"))
}

#[test]
fn commands_are_logged_with_who_gave_them_and_without_secrets() {
    let Some(mut daemon) = daemon() else { return };
    let secret = "hunter2";
    let variable = format!("PASSWORD={secret}");
    let create = daemon
        .command(&[
            "create",
            "--name",
            "web",
            "-e",
            &variable,
            "--entrypoint",
            "echo",
            "busybox",
            secret,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = create.id();
    assert!(create.wait_with_output().unwrap().status.success());
    daemon.vessel(&["ps", "-a"]).ok();
    daemon.vessel(&["inspect", "web"]).ok();
    daemon.vessel(&["start", "web"]).ok();
    daemon.vessel(&["wait", "web"]).ok();
    daemon.vessel(&["rm", "nothing"]).fails(1);
    daemon.vessel(&["run", "--rm", "busybox", "true"]).ok();

    let lines = log(&daemon);
    let created = lines
        .iter()
        .find(|line| line["Action"] == "container create" && line["Details"]["name"] == "web")
        .unwrap();
    assert_eq!(created["Pid"], pid);
    assert_eq!((&created["Uid"], &created["Via"]), (&0.into(), &"unix".into()));
    assert_eq!(created["Program"], "vessel");
    assert_eq!(
        (&created["Status"], &created["Details"]["Image"]),
        (&201.into(), &"busybox".into())
    );
    assert_eq!(created["Details"]["Program"], "echo");
    assert_eq!(find(&lines, "image load")["Status"], 200);
    let refused = find(&lines, "container remove");
    assert_eq!(
        (&refused["Status"], &refused["Object"]),
        (&404.into(), &"nothing".into())
    );
    assert_eq!(refused["Error"], "No such container: nothing");
    let actions: Vec<&str> = lines
        .iter()
        .map(|line| line["Action"].as_str().unwrap())
        .collect();
    assert_eq!(actions.first(), Some(&"daemon start"));
    let last: Vec<&&str> = actions.iter().rev().take(2).collect();
    // Reads, attach and wait are not there.
    assert_eq!(last, [&"container start", &"container create"]);

    let all = std::fs::read_to_string(daemon.root().join("operations.log")).unwrap();
    assert!(!all.contains(secret), "{all}");
    let plain = daemon.vessel(&["system", "log", "-n", "1"]).ok();
    assert!(
        plain.contains(" uid 0 vessel[") && plain.contains(" container start "),
        "{plain}"
    );
    assert_eq!(plain.lines().count(), 1);
    assert_eq!(daemon.vessel(&["system", "log", "--until", "1h"]).ok(), "");

    // It outlives a crash.
    daemon.crash();
    daemon.start();
    let after = log(&daemon);
    assert_eq!(after[..lines.len()], lines);
    assert_eq!(after.last().unwrap()["Action"], "daemon start");
    daemon.vessel(&["rm", "web"]).ok();
}

#[test]
fn a_failure_after_the_head_is_the_outcome_and_followers_see_all() {
    let Some(daemon) = daemon() else { return };
    let mut follower = daemon
        .command(&[
            "system",
            "log",
            "--follow",
            "-n",
            "0",
            "--format",
            "{{.Action}} {{.Status}} {{.Error}}",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(follower.stdout.take().unwrap());
    let (told, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        output
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| told.send(line))
    });
    // It tells what happens from the moment that it is connected.
    let mut number = 0;
    let first = loop {
        number += 1;
        assert!(number < 100, "nothing is told");
        daemon
            .vessel(&["volume", "create", &format!("data{number}")])
            .ok();
        if let Ok(line) = lines.recv_timeout(std::time::Duration::from_millis(300)) {
            break line;
        }
    };
    assert_eq!(first, "volume create 201 ");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("Dockerfile"),
        "FROM busybox\nARG SECRET\nRUN exit 7\n",
    )
    .unwrap();
    let build = daemon.vessel(&[
        "build",
        "--build-arg",
        "SECRET=hunter2",
        "-t",
        "x:1",
        dir.path().to_str().unwrap(),
    ]);
    assert_ne!(build.code, 0);
    let line = lines
        .iter()
        .find(|line| line != "volume create 201 ")
        .expect("the build is told");
    assert!(
        line.starts_with("image build ") && line.len() > "image build 200 ".len(),
        "{line}"
    );
    daemon.vessel(&["volume", "rm", "data1"]).ok();
    assert_eq!(lines.recv().unwrap(), "volume remove 204 ");
    follower.kill().unwrap();
    follower.wait().unwrap();
    let all = std::fs::read_to_string(daemon.root().join("operations.log")).unwrap();
    assert!(!all.contains("hunter2") && all.contains("x:1"), "{all}");
}
