//! The main job: run, look, talk to, stop, remove.

use crate::harness::daemon;

#[test]
fn hello_is_embedded() {
    let Some(daemon) = daemon() else { return };
    let said = daemon.vessel(&["run", "--rm", "hello"]).ok();
    assert!(said.to_lowercase().contains("vessel"), "{said}");
}

#[test]
fn output_and_exit_code() {
    let Some(daemon) = daemon() else { return };
    let said = daemon.vessel(&[
        "run",
        "--rm",
        "busybox",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(
        (said.code, said.out.as_str(), said.err.as_str()),
        (7, "out\n", "err\n")
    );
}

#[test]
fn input_is_passed_whole() {
    let Some(daemon) = daemon() else { return };
    let input: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let said = daemon.feed(
        &["run", "--rm", "-i", "--network", "none", "busybox", "wc", "-c"],
        &input,
    );
    assert_eq!(said.ok(), "3000000");
}

#[test]
fn output_is_passed_whole() {
    let Some(daemon) = daemon() else { return };
    let said = daemon.vessel(&[
        "run",
        "--rm",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        "dd if=/dev/zero bs=1024 count=20000 2>/dev/null | tr '\\0' x",
    ]);
    assert_eq!(said.ok().len(), 20_480_000);
}

#[test]
fn detached_life() {
    let Some(daemon) = daemon() else { return };
    let id = daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "web",
            "busybox",
            "sh",
            "-c",
            "echo one; exec sleep 1000",
        ])
        .ok();
    assert_eq!(id.len(), 64);
    assert!(daemon.vessel(&["ps"]).ok().contains("web"));
    assert_eq!(
        daemon.inspect("web", "{{.State.Status}} {{.Name}}"),
        "running /web"
    );
    daemon.until("the log", |daemon| daemon.vessel(&["logs", "web"]).out == "one\n");
    assert_eq!(
        daemon.vessel(&["exec", "web", "sh", "-c", "echo $((6*7))"]).ok(),
        "42"
    );
    assert_eq!(daemon.vessel(&["exec", "web", "sh", "-c", "exit 3"]).code, 3);
    // What cannot be started says why where its output would be, as clients that only look for an upgrade need it.
    for (options, why) in [
        (["-u", "nosuch"], "unable to find user nosuch"),
        (["-w", "/nosuch"], "/nosuch"),
    ] {
        let said = daemon.vessel(&[&["exec"][..], &options, &["web", "true"]].concat());
        assert_eq!(said.code, 126, "{}{}", said.out, said.err);
        assert!(said.out.contains(why), "{}{}", said.out, said.err);
    }
    assert_eq!(
        daemon.feed(&["exec", "-i", "web", "cat"], b"to and fro").ok(),
        "to and fro"
    );
    assert!(daemon.vessel(&["top", "web"]).ok().contains("sleep 1000"));
    daemon.vessel(&["pause", "web"]).ok();
    assert_eq!(daemon.inspect("web", "{{.State.Status}}"), "paused");
    daemon.vessel(&["unpause", "web"]).ok();
    daemon.vessel(&["rename", "web", "site"]).ok();
    daemon.vessel(&["stop", "-t", "0", "site"]).ok();
    assert_eq!(
        daemon.inspect("site", "{{.State.Status}} {{.State.ExitCode}}"),
        "exited 137"
    );
    daemon.vessel(&["start", "site"]).ok();
    assert_eq!(daemon.inspect("site", "{{.State.Running}}"), "true");
    daemon.vessel(&["restart", "-t", "0", "site"]).ok();
    assert!(daemon.vessel(&["rm", "site"]).fails(1).contains("running"));
    daemon.vessel(&["rm", "-f", "site"]).ok();
    assert_eq!(daemon.vessel(&["ps", "-aq"]).ok(), "");
}

/// The shim ends the stream and tells the exit code on two connections; whoever is told of the end can ask for the code.
#[test]
fn an_exec_whose_stream_has_ended_has_its_exit_code() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&[
            "run",
            "-d",
            "--network",
            "none",
            "--name",
            "many",
            "busybox",
            "sleep",
            "1000",
        ])
        .ok();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..12 {
                    let said = daemon.vessel(&["exec", "many", "sh", "-c", "echo said; exit 7"]);
                    assert_eq!((said.code, said.out.as_str()), (7, "said\n"));
                }
            });
        }
    });
    daemon.vessel(&["rm", "-f", "many"]).ok();
}

/// What removes itself is mounted without syncing, which the kernel lets nobody do twice on the same layer by itself.
#[test]
fn what_removes_itself_is_restarted_with_its_files() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&["create", "--rm", "--name", "brief", "busybox", "sleep", "1000"])
        .ok();
    let file = daemon.dir().join("file");
    std::fs::write(&file, "before the start").unwrap();
    let source = file.to_str().unwrap();
    daemon.vessel(&["cp", source, "brief:/root/before"]).ok();
    daemon.vessel(&["start", "brief"]).ok();
    daemon
        .vessel(&[
            "exec",
            "brief",
            "sh",
            "-c",
            "mount | grep ' / ' | grep -q volatile",
        ])
        .ok();
    daemon
        .vessel(&["exec", "brief", "sh", "-c", "echo after > /root/after"])
        .ok();
    daemon.vessel(&["restart", "-t", "0", "brief"]).ok();
    let said = daemon
        .vessel(&["exec", "brief", "cat", "/root/before", "/root/after"])
        .ok();
    assert_eq!(said, "before the startafter");
    daemon.vessel(&["stop", "-t", "0", "brief"]).ok();
    assert_eq!(daemon.vessel(&["ps", "-aq"]).ok(), "");
}

/// A restart by the policy that has begun cannot be called off, but its run does not outlive the stop.
#[test]
fn what_was_stopped_stays_stopped_while_its_policy_restarts_it() {
    let Some(daemon) = daemon() else { return };
    let names: Vec<String> = (0..48).map(|number| format!("crash{number}")).collect();
    std::thread::scope(|scope| {
        for (worker, names) in names.chunks(12).enumerate() {
            let daemon = &daemon;
            scope.spawn(move || {
                for (round, name) in names.iter().enumerate() {
                    // The second run stays.
                    let script = "[ -e /again ] && exec sleep 1000; touch /again; sleep 0.03; exit 1";
                    daemon
                        .vessel(&[
                            "run",
                            "-d",
                            "--name",
                            name,
                            "--restart",
                            "always",
                            "--network",
                            "none",
                            "busybox",
                            "sh",
                            "-c",
                            script,
                        ])
                        .ok();
                    // It ends after 30 ms, and its first restart begins 100 ms later.
                    let phase = 120 + (worker * 12 + round) as u64 % 24 * 2;
                    std::thread::sleep(std::time::Duration::from_millis(phase));
                    let verb: &[&str] = if round % 4 == 3 {
                        &["kill"]
                    } else {
                        &["stop", "-t", "0"]
                    };
                    daemon.vessel(&[verb, &[name.as_str()]].concat()).ok();
                }
            });
        }
    });
    // Longer than the pause before the next restart.
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(daemon.vessel(&["ps", "-q"]).ok(), "");
    let restarting = daemon
        .vessel(&["ps", "-aq", "--filter", "status=restarting"])
        .ok();
    assert_eq!(restarting, "");
}

#[test]
fn signals_reach_the_program() {
    let Some(daemon) = daemon() else { return };
    let script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    daemon
        .vessel(&["run", "-d", "--name", "trap", "busybox", "sh", "-c", script])
        .ok();
    daemon.until("ready", |daemon| {
        daemon.vessel(&["logs", "trap"]).out.contains("ready")
    });
    daemon.vessel(&["stop", "trap"]).ok();
    assert_eq!(daemon.inspect("trap", "{{.State.ExitCode}}"), "5");
    assert_eq!(daemon.vessel(&["logs", "trap"]).ok(), "ready\nbye");
    assert_eq!(daemon.vessel(&["wait", "trap"]).ok(), "5");
}

#[test]
fn init_reaps() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&[
            "run",
            "-d",
            "--init",
            "--name",
            "initial",
            "busybox",
            "sh",
            "-c",
            "(sleep 0.1 &) ; sleep 1000",
        ])
        .ok();
    daemon.until("no zombie", |daemon| {
        let said = daemon
            .vessel(&["exec", "initial", "ps", "-o", "pid,stat,args"])
            .out;
        said.contains("sleep 1000") && !said.lines().any(|line| line.contains(" Z"))
    });
    let first = daemon.vessel(&["exec", "initial", "cat", "/proc/1/cmdline"]).ok();
    assert!(first.contains("init"), "{first}");
}

#[test]
fn files_and_directories() {
    let Some(daemon) = daemon() else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("in"), "from the host").unwrap();
    let volume = format!("{}:/data", dir.path().display());
    let script = "cat /data/in; echo -n back > /data/out; echo -n kept > /vol/file";
    let said = daemon.vessel(&[
        "run",
        "--rm",
        "-v",
        &volume,
        "-v",
        "named:/vol",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(said.ok(), "from the host");
    assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "back");
    assert_eq!(
        daemon
            .vessel(&[
                "run",
                "--rm",
                "-v",
                "named:/vol:ro",
                "busybox",
                "cat",
                "/vol/file"
            ])
            .ok(),
        "kept"
    );
    let said = daemon.vessel(&["run", "--rm", "-v", "named:/vol:ro", "busybox", "touch", "/vol/x"]);
    assert!(said.fails(1).contains("Read-only"));
    let said = daemon.vessel(&[
        "run",
        "--rm",
        "--read-only",
        "--tmpfs",
        "/tmp",
        "busybox",
        "sh",
        "-c",
        "touch /tmp/a && ! touch /b",
    ]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(daemon.vessel(&["volume", "ls", "-q"]).ok().contains("named"));
    daemon.vessel(&["volume", "rm", "named"]).ok();
}

#[test]
fn copying_and_differences() {
    let Some(daemon) = daemon() else { return };
    let dir = tempfile::tempdir().unwrap();
    let host = |name: &str| dir.path().join(name).display().to_string();
    daemon
        .vessel(&[
            "run",
            "--name",
            "copied",
            "busybox",
            "sh",
            "-c",
            "echo a > /made; rm /etc/group",
        ])
        .ok();
    let changes = daemon.vessel(&["diff", "copied"]).ok();
    assert!(
        changes.contains("A /made") && changes.contains("D /etc/group"),
        "{changes}"
    );
    daemon.vessel(&["cp", "copied:/made", &host("copy")]).ok();
    assert_eq!(std::fs::read_to_string(host("copy")).unwrap(), "a\n");
    std::fs::write(host("new"), "b\n").unwrap();
    daemon.vessel(&["cp", &host("new"), "copied:/etc/new"]).ok();
    daemon.vessel(&["cp", "copied:/etc/new", &host("again")]).ok();
    assert_eq!(std::fs::read_to_string(host("again")).unwrap(), "b\n");
}

#[test]
fn identity_and_environment() {
    let Some(daemon) = daemon() else { return };
    let run = |args: &[&str], script: &str| {
        daemon
            .vessel(&[&["run", "--rm"][..], args, &["busybox", "sh", "-c", script]].concat())
            .ok()
    };
    assert_eq!(
        run(&["-u", "www-data"], "id -u; id -g; echo $HOME"),
        "33\n33\n/var/www"
    );
    assert_eq!(
        run(&["-u", "1234:5678", "--group-add", "99"], "id -u; id -g; id -G"),
        "1234\n5678\n5678 99"
    );
    assert_eq!(
        run(&["-e", "A=b c", "-w", "/new/dir"], "echo $A; pwd"),
        "b c\n/new/dir"
    );
    assert_eq!(
        run(
            &["--hostname", "box", "--add-host", "db:10.9.8.7"],
            "hostname; grep -c '10.9.8.7.*db' /etc/hosts"
        ),
        "box\n1"
    );
    assert_eq!(run(&[], "cat /proc/1/comm; ls /proc | grep -c '^[0-9]'"), "sh\n3");
    assert_eq!(
        run(&["--cap-drop", "ALL"], "grep CapEff /proc/self/status"),
        "CapEff:\t0000000000000000"
    );
    assert_eq!(
        run(
            &["--security-opt", "no-new-privileges"],
            "grep NoNewPrivs /proc/self/status"
        ),
        "NoNewPrivs:\t1"
    );
    assert_eq!(run(&[], "grep Seccomp: /proc/self/status"), "Seccomp:\t2");
    assert_eq!(run(&["--ulimit", "nofile=512:512"], "ulimit -n"), "512");
    assert_eq!(
        run(
            &["--sysctl", "net.core.somaxconn=321"],
            "cat /proc/sys/net/core/somaxconn"
        ),
        "321"
    );
    assert_eq!(
        run(
            &["--shm-size", "8m"],
            "df -k /dev/shm | tail -1 | awk '{print $2}'"
        ),
        "8192"
    );
}
