//! The commands of `vessel compose`, one by one.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::compose::{command, compose, networks, project};
use crate::harness::{Said, daemon};

/// Services that do nothing, quickly.
fn sleeper(more: &str) -> String {
    format!("{{image: busybox, command: [sleep, '1000'], stop_grace_period: 0s{more}}}")
}

#[test]
fn run_beside_the_service() {
    let Some(daemon) = daemon() else { return };
    let text = format!(
        "services:\n  db: {}\n  web:\n    image: busybox\n    command: [echo, of the service]\n    depends_on: [db]\n    \
         environment: {{A: '1'}}\n    ports: ['127.0.0.1::80']\n    secrets: [s, f]\n    configs: [{{source: c, target: /etc/c, mode: 0400}}]\n\
         secrets: {{s: {{environment: SECRET}}, f: {{file: ./f.txt}}}}\nconfigs: {{c: {{content: \"of $${{USER}}\"}}}}\n{}",
        sleeper(""),
        networks(&daemon, &["default"])
    );
    let directory = project(
        &daemon,
        "runs",
        &[("compose.yaml", &text), ("f.txt", "of a file")],
    );
    let run = |args: &[&str]| -> Said {
        command(&daemon, &directory, args)
            .env("SECRET", "hush")
            .output()
            .expect("the client runs")
            .into()
    };
    let said = run(&["run", "--rm", "web"]);
    assert_eq!(
        (said.code, said.out.as_str()),
        (0, "of the service\n"),
        "{said:?}"
    );
    assert!(said.err.contains("Container runs-db-1  Started"), "{said:?}");
    let script = "cat /run/secrets/s /run/secrets/f /etc/c; stat -c ' %a' /etc/c; echo $A $B; exit 3";
    let said = run(&[
        "run",
        "--rm",
        "-T",
        "-e",
        "B=2",
        "--no-deps",
        "web",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(said.code, 3, "{said:?}");
    assert_eq!(said.out, "hushof a fileof ${USER} 400\n1 2\n");
    assert_eq!(
        run(&["run", "--rm", "--entrypoint", "echo -n", "web", "x"]).ok(),
        "x"
    );
    let name = run(&[
        "run",
        "-d",
        "--name",
        "mine",
        "-p",
        "127.0.0.1::81",
        "-v",
        "./f.txt:/f:ro",
        "web",
        "sleep",
        "1000",
    ])
    .ok();
    assert_eq!(name, "mine");
    assert_eq!(
        daemon.inspect("mine", "{{index .Config.Labels \"com.docker.compose.oneoff\"}}"),
        "True"
    );
    assert!(
        daemon
            .vessel(&["port", "mine"])
            .ok()
            .starts_with("81/tcp -> 127.0.0.1:")
    );
    assert_eq!(daemon.vessel(&["exec", "mine", "cat", "/f"]).ok(), "of a file");
    // It is none of the service's containers, but goes with the project.
    assert_eq!(run(&["ps", "--services"]).ok(), "db");
    assert!(run(&["ps", "-a", "-q", "web"]).ok().len() >= 64);
    run(&["down"]).ok();
    assert_eq!(daemon.vessel(&["ps", "-aq"]).ok(), "");
}

#[test]
fn who_asks_for_it_is_restarted_with_what_is_made_anew() {
    let Some(daemon) = daemon() else { return };
    let text = |value: &str| {
        let depends = |restart: bool| {
            format!(", depends_on: {{db: {{condition: service_started, restart: {restart}}}}}")
        };
        format!(
            "services:\n  db:\n    image: busybox\n    command: [sleep, '1000']\n    stop_signal: KILL\n    environment: {{A: '{value}'}}\n  \
             asks: {}\n  other: {}\n{}",
            sleeper(&depends(true)),
            sleeper(&depends(false)),
            networks(&daemon, &["default"])
        )
    };
    let directory = project(&daemon, "anew", &[("compose.yaml", &text("1"))]);
    let run = |args: &[&str]| compose(&daemon, &directory, args);
    run(&["up", "-d"]).ok();
    let seen = |name: &str| daemon.inspect(name, "{{.Id}} {{.State.Status}} {{.State.StartedAt}}");
    let (asks, other) = (seen("anew-asks-1"), seen("anew-other-1"));
    std::fs::write(directory.join("compose.yaml"), text("2")).unwrap();
    // Also when it is not named.
    run(&["up", "-d", "db"]).ok();
    assert_eq!(daemon.inspect("anew-db-1", "{{index .Config.Env 0}}"), "A=2");
    assert_eq!(seen("anew-other-1"), other);
    let now = seen("anew-asks-1");
    assert_eq!(
        now.split(' ').take(2).collect::<Vec<_>>(),
        asks.split(' ').take(2).collect::<Vec<_>>()
    );
    assert_ne!(now, asks);
    run(&["down"]).ok();
}

#[test]
fn in_the_foreground() {
    let Some(daemon) = daemon() else { return };
    let text = format!(
        "services:\n  job: {{image: busybox, command: [sh, -c, 'echo one; echo two >&2; sleep 0.3; exit 4']}}\n  \
         other: {}\n  after:\n    image: busybox\n    command: [echo, behind]\n    profiles: [chain]\n    depends_on: {{good: {{condition: service_completed_successfully}}}}\n  \
         good: {{image: busybox, command: [echo, first], profiles: [chain]}}\n{}",
        sleeper(""),
        networks(&daemon, &["default"])
    );
    let directory = project(&daemon, "front", &[("compose.yaml", &text)]);
    let run = |args: &[&str]| compose(&daemon, &directory, args);
    let said = run(&["up", "--exit-code-from", "job"]);
    assert_eq!(said.code, 4, "{said:?}");
    for line in [
        "job-1    | one\n",
        "job-1    | two\n",
        "job-1 exited with code 4\n",
        "Attaching to ",
    ] {
        assert!(said.out.contains(line), "{line:?}: {said:?}");
    }
    assert!(said.err.contains("Container front-other-1  Stopped"), "{said:?}");
    assert_eq!(run(&["ps", "-q"]).ok(), "");
    // All end: so does the command.
    let said = run(&["--profile", "chain", "up", "--no-log-prefix", "good", "after"]);
    assert_eq!(said.code, 0, "{said:?}");
    let (first, behind) = (said.out.find("first"), said.out.find("behind"));
    assert!(first.is_some() && first < behind, "{said:?}");

    // Ctrl-C stops what runs.
    let mut child = command(&daemon, &directory, &["up", "other"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client runs");
    daemon.until("the service runs", |_| run(&["ps", "-q", "other"]).out.len() > 60);
    std::thread::sleep(Duration::from_millis(200));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
    let begin = Instant::now();
    let status = child.wait().expect("it ends");
    assert!(begin.elapsed() < Duration::from_secs(20));
    let mut err = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut err)
        .expect("text");
    assert_eq!(status.code(), Some(130), "{err}");
    assert!(err.contains("Gracefully stopping"), "{err}");
    assert_eq!(run(&["ps", "-q"]).ok(), "");
    run(&["--profile", "chain", "down"]).ok();
}

#[test]
fn what_runs_is_steered() {
    let Some(daemon) = daemon() else { return };
    let text = format!(
        "services:\n  a: {}\n  b: {}\n{}",
        sleeper(", ports: ['127.0.0.1::80']"),
        sleeper(
            ", depends_on: {a: {condition: service_started, restart: true}}, post_start: [{command: [touch, /started]}]"
        ),
        networks(&daemon, &["default"])
    );
    let directory = project(&daemon, "steer", &[("compose.yaml", &text), ("file", "copied")]);
    let run = |args: &[&str]| compose(&daemon, &directory, args);
    run(&["create"]).ok();
    assert_eq!(
        run(&["ps", "-a", "--format", "{{.State}}"]).ok(),
        "created\ncreated"
    );
    run(&["start", "--wait"]).ok();
    run(&["exec", "-T", "b", "test", "-e", "/started"]).ok();
    let state = |name: &str| daemon.inspect(name, "{{.State.Status}}");
    run(&["pause", "a"]).ok();
    assert_eq!(state("steer-a-1"), "paused");
    run(&["unpause"]).ok();
    assert_eq!(state("steer-a-1"), "running");
    let since = |name: &str| daemon.inspect(name, "{{.State.StartedAt}}");
    let before = since("steer-b-1");
    run(&["restart", "-t", "0", "a"]).ok();
    assert_ne!(since("steer-b-1"), before, "b asks to be restarted with a");
    assert!(run(&["port", "a", "80"]).ok().starts_with("127.0.0.1:"));
    assert!(run(&["port", "b", "80"]).fails(1).contains("no port"));
    let top = run(&["top", "a"]).ok();
    assert!(top.starts_with("SERVICE") && top.contains("sleep 1000"), "{top}");
    run(&["cp", "file", "b:/tmp/there"]).ok();
    assert_eq!(run(&["exec", "-T", "b", "cat", "/tmp/there"]).ok(), "copied");
    run(&["cp", "b:/tmp/there", "back"]).ok();
    assert_eq!(
        std::fs::read_to_string(directory.join("back")).expect("a file"),
        "copied"
    );
    assert!(run(&["images"]).ok().contains("steer-a-1"));
    let listed = run(&["ls"]).ok();
    assert!(
        listed.contains("steer") && listed.contains("running(2)"),
        "{listed}"
    );
    run(&["scale", "a=2"]).ok();
    assert_eq!(run(&["ps", "-q", "a"]).ok().lines().count(), 2);
    run(&["exec", "-T", "--index", "2", "a", "true"]).ok();
    let events = run(&["events", "--json", "--since", "10m", "--until", "0s", "b"]).ok();
    assert!(
        events
            .lines()
            .any(|line| line.contains("\"action\":\"start\"") && line.contains("\"service\":\"b\"")),
        "{events}"
    );
    run(&["kill", "a"]).ok();
    daemon.until("killed", |_| run(&["ps", "-q", "a"]).out.is_empty());
    run(&["stop"]).ok();
    run(&["rm", "-f"]).ok();
    assert_eq!(run(&["ps", "-aq"]).ok(), "");
    // What is left of a project without services is an orphan.
    run(&["up", "-d"]).ok();
    let fewer = text.replace("  b: ", "  x-b: ");
    let fewer: String = fewer
        .lines()
        .filter(|line| !line.starts_with("  x-b"))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(directory.join("compose.yaml"), fewer).expect("a file");
    let said = run(&["up", "-d"]);
    assert!(
        said.err.contains("Found orphan containers ([steer-b-1])"),
        "{said:?}"
    );
    run(&["up", "-d", "--remove-orphans"]).ok();
    assert_eq!(run(&["ps", "-a", "--format", "{{.Name}}"]).ok(), "steer-a-1");
    assert!(
        run(&["up", "-d", "--scale", "a=x"])
            .fails(1)
            .contains("SERVICE=NUM")
    );
    run(&["down"]).ok();
}

#[test]
fn images_are_built() {
    let Some(daemon) = daemon() else { return };
    let text = format!(
        "services:\n  one:\n    build: {{context: ctx, args: [WHO=you], labels: {{made: here}}}}\n    command: [cat, /hello]\n  \
         two:\n    image: two:1\n    build:\n      context: ctx\n      dockerfile_inline: |\n        FROM busybox\n        COPY file /inline\n    command: [cat, /inline]\n{}",
        networks(&daemon, &["default"])
    );
    let files = [
        ("compose.yaml", text.as_str()),
        (
            "ctx/Dockerfile",
            "FROM busybox\nARG WHO\nCOPY file /hello\nRUN echo $WHO >> /hello\n",
        ),
        ("ctx/file", "hello\n"),
    ];
    let directory = project(&daemon, "built", &files);
    let run = |args: &[&str]| compose(&daemon, &directory, args);
    let said = run(&["run", "--rm", "one"]);
    assert_eq!((said.code, said.out.as_str()), (0, "hello\nyou\n"), "{said:?}");
    run(&["build"]).ok();
    assert_eq!(run(&["config", "--images"]).ok(), "built-one\ntwo:1");
    assert_eq!(run(&["run", "--rm", "two"]).ok(), "hello");
    assert_eq!(
        daemon
            .vessel(&[
                "inspect",
                "-f",
                "{{.Config.Labels.made}} {{index .Config.Labels \"com.docker.compose.service\"}}",
                "built-one"
            ])
            .ok(),
        "here one"
    );
    // A new image makes a new container.
    run(&["up", "-d", "--wait", "one"]);
    let id = || run(&["ps", "-aq", "one"]).ok();
    let before = id();
    std::fs::write(directory.join("ctx/file"), "changed\n").expect("a file");
    run(&["up", "-d", "--build", "one"]).ok();
    assert_ne!(id(), before);
    let said = run(&["down", "--rmi", "local"]);
    assert!(said.err.contains("Image built-one  Removed"), "{said:?}");
    assert!(daemon.vessel(&["images"]).ok().contains("two"));
}

#[test]
fn files_that_change_are_copied() {
    let Some(daemon) = daemon() else { return };
    let text = format!(
        "services:\n  web:\n    image: busybox\n    command: [sleep, '1000']\n    stop_grace_period: 0s\n    develop:\n      watch:\n        \
         - {{action: sync, path: src, target: /src, ignore: ['*.log'], initial_sync: true}}\n        \
         - {{action: sync+restart, path: conf, target: /conf}}\n{}",
        networks(&daemon, &["default"])
    );
    let files = [("compose.yaml", text.as_str()), ("src/a", "1"), ("conf", "c")];
    let directory = project(&daemon, "watched", &files);
    let run = |args: &[&str]| compose(&daemon, &directory, args);
    let mut watch = command(&daemon, &directory, &["watch"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the client runs");
    let cat = |path: &str| run(&["exec", "-T", "web", "cat", path]).out;
    daemon.until("the first copy", |_| cat("/src/a") == "1");
    // The watch begins a moment later; writing until it is seen waits for it.
    daemon.until("a change", |_| {
        std::fs::write(directory.join("src/a"), "2").expect("a file");
        std::thread::sleep(Duration::from_millis(300));
        cat("/src/a") == "2"
    });
    std::fs::create_dir_all(directory.join("src/new/deep")).expect("a directory");
    std::fs::write(directory.join("src/new/deep/b"), "3").expect("a file");
    std::fs::write(directory.join("src/x.log"), "no").expect("a file");
    daemon.until("a new directory", |_| cat("/src/new/deep/b") == "3");
    assert_eq!(cat("/src/x.log"), "");
    std::fs::remove_file(directory.join("src/a")).expect("a file");
    daemon.until("a removal", |_| {
        run(&["exec", "-T", "web", "test", "-e", "/src/a"]).code == 1
    });
    let started = || daemon.inspect("watched-web-1", "{{.State.StartedAt}}");
    let before = started();
    std::fs::write(directory.join("conf"), "d").expect("a file");
    daemon.until("a restart", |_| started() != before);
    daemon.until("the new file", |_| cat("/conf") == "d");
    watch.kill().expect("kill");
    watch.wait().expect("wait");
    run(&["down"]).ok();
}
