//! Volume plug-ins by Docker's protocol, with a small one of the test's own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api_versions::api;
use crate::harness::{Daemon, prepared_daemon};

/// Volumes are directories; who has them is counted by ID.
#[derive(Default)]
struct Kept {
    volumes: BTreeMap<String, (Value, BTreeSet<String>)>,
    /// Methods that are not answered.
    silent: BTreeSet<&'static str>,
    /// What it drives in place of volumes.
    drives: Option<&'static str>,
    calls: Vec<String>,
}

struct Plugin {
    files: PathBuf,
    kept: Mutex<Kept>,
}

impl Plugin {
    fn start(daemon: &Daemon, name: &str) -> Arc<Self> {
        let files = daemon.dir().join(format!("files-{name}"));
        std::fs::create_dir(&files).unwrap();
        let plugin = Arc::new(Self {
            files,
            kept: Mutex::default(),
        });
        let listener = UnixListener::bind(daemon.dir().join("plugins").join(format!("{name}.sock"))).unwrap();
        let served = Arc::clone(&plugin);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let plugin = Arc::clone(&served);
                std::thread::spawn(move || plugin.serve(stream));
            }
        });
        plugin
    }

    fn serve(&self, stream: UnixStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut first, mut length) = (String::new(), 0);
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let method = first.split(['/', ' ']).nth(2).unwrap().to_owned();
        while self.kept.lock().unwrap().silent.contains(method.as_str()) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let answer = self.answer(&method, &body).to_string();
        let mut stream = stream;
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        );
    }

    fn answer(&self, method: &str, body: &Value) -> Value {
        let word = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let (name, id) = (word("Name"), word("ID"));
        let path = self.files.join(&name);
        let mut kept = self.kept.lock().unwrap();
        kept.calls.push(format!("{method} {name}"));
        let shown = |name: &str, options: &Value| {
            json!({"Name": name, "Mountpoint": self.files.join(name), "CreatedAt": "2026-01-02T03:04:05Z",
                "Status": {"options": options}})
        };
        match method {
            "Plugin.Activate" => json!({"Implements": [kept.drives.unwrap_or("VolumeDriver")]}),
            "VolumeDriver.Capabilities" => json!({"Capabilities": {"Scope": "global"}}),
            "VolumeDriver.List" => {
                let list: Vec<Value> = kept
                    .volumes
                    .iter()
                    .map(|(name, (options, _))| shown(name, options))
                    .collect();
                json!({"Volumes": list, "Err": ""})
            }
            "VolumeDriver.Create" if body["Opts"]["fail"] == "yes" => json!({"Err": "it was asked to fail"}),
            "VolumeDriver.Create" => {
                std::fs::create_dir_all(&path).unwrap();
                kept.volumes.insert(name, (body["Opts"].clone(), BTreeSet::new()));
                json!({"Err": ""})
            }
            _ => {
                let Some((options, users)) = kept.volumes.get_mut(&name) else {
                    return json!({"Err": format!("no volume {name}")});
                };
                match method {
                    "VolumeDriver.Get" => json!({"Volume": shown(&name, options), "Err": ""}),
                    "VolumeDriver.Path" => json!({"Mountpoint": path, "Err": ""}),
                    "VolumeDriver.Mount" if users.insert(id.clone()) => {
                        json!({"Mountpoint": path, "Err": ""})
                    }
                    "VolumeDriver.Unmount" if users.remove(&id) => json!({"Err": ""}),
                    "VolumeDriver.Remove" if users.is_empty() => {
                        kept.volumes.remove(&name);
                        json!({"Err": ""})
                    }
                    _ => json!({"Err": format!("{method} of {name} by {id:?} while {users:?} have it")}),
                }
            }
        }
    }

    fn users(&self, volume: &str) -> usize {
        self.kept
            .lock()
            .unwrap()
            .volumes
            .get(volume)
            .map_or(0, |(_, users)| users.len())
    }
}

fn daemon_with_plugins() -> Option<Daemon> {
    prepared_daemon(|daemon| {
        let directory = daemon.dir().join("plugins");
        std::fs::create_dir(&directory).unwrap();
        daemon.more.push(format!("--plugin-dir={}", directory.display()));
    })
}

#[test]
fn a_plugin_keeps_volumes() {
    let Some(mut daemon) = daemon_with_plugins() else {
        return;
    };
    let plugin = Plugin::start(&daemon, "keeper");
    let ok = |daemon: &Daemon, args: &[&str]| daemon.vessel(args).ok();
    ok(
        &daemon,
        &[
            "volume",
            "create",
            "-d",
            "keeper",
            "-o",
            "colour=red",
            "--label",
            "a=b",
            "one",
        ],
    );
    assert_eq!(
        ok(
            &daemon,
            &[
                "volume",
                "inspect",
                "-f",
                "{{.Driver}} {{.Scope}} {{.Mountpoint}} {{.CreatedAt}} {{json .Status}} {{json .Options}} {{.Labels.a}}",
                "one"
            ]
        ),
        format!(
            r#"keeper global {} 2026-01-02T03:04:05Z {{"options":{{"colour":"red"}}}} {{"colour":"red"}} b"#,
            plugin.files.join("one").display()
        )
    );
    // Made by somebody else with the plug-in; and what cannot be made.
    plugin.answer("VolumeDriver.Create", &json!({"Name": "foreign", "Opts": null}));
    let list = ok(&daemon, &["volume", "ls", "--format", "{{.Driver}} {{.Name}}"]);
    assert_eq!(list, "keeper foreign\nkeeper one");
    assert_eq!(
        ok(&daemon, &["volume", "inspect", "-f", "{{.Driver}}", "foreign"]),
        "keeper"
    );
    let error = daemon
        .vessel(&["volume", "create", "-d", "keeper", "-o", "fail=yes", "bad"])
        .fails(1);
    assert!(error.contains("create bad: it was asked to fail"), "{error}");
    let error = daemon
        .vessel(&["volume", "create", "-d", "nobody", "bad"])
        .fails(1);
    assert!(
        error.contains("error looking up volume plugin nobody: plugin \"nobody\" not found"),
        "{error}"
    );
    let error = daemon
        .vessel(&["volume", "create", "-d", "local", "one"])
        .fails(1);
    assert!(
        error.contains("driver 'keeper' already has volume 'one'"),
        "{error}"
    );
    assert!(ok(&daemon, &["info", "-f", "{{.Plugins.Volume}}"]).contains("keeper local"));

    // Used by containers, each by an ID of its own; what the image has at the place is copied.
    let run = [
        "run",
        "-d",
        "--stop-timeout",
        "0",
        "--volume-driver",
        "keeper",
        "-v",
        "two:/bin",
        "-v",
        "one:/m",
        "--name",
    ];
    ok(
        &daemon,
        &[&run[..], &["first", "busybox", "sleep", "1000"]].concat(),
    );
    ok(&daemon, &["exec", "first", "sh", "-c", "echo kept > /m/file"]);
    assert_eq!(
        std::fs::read_to_string(plugin.files.join("one/file")).unwrap(),
        "kept\n"
    );
    assert!(
        plugin.files.join("two").read_dir().unwrap().next().is_some(),
        "nothing was copied"
    );
    assert_eq!(
        daemon
            .inspect("first", "{{range .Mounts}}{{.Name}} {{.Driver}} {{end}}")
            .trim(),
        "two keeper one keeper"
    );
    ok(
        &daemon,
        &[
            "run",
            "-d",
            "--stop-timeout",
            "0",
            "--mount",
            "src=one,dst=/m,ro",
            "--name",
            "second",
            "busybox",
            "sleep",
            "1000",
        ],
    );
    assert_eq!(plugin.users("one"), 2);
    assert!(
        daemon
            .vessel(&["volume", "rm", "one"])
            .fails(1)
            .contains("in use")
    );
    // A new daemon knows what the plug-in was told.
    daemon.crash();
    daemon.start();
    assert_eq!(ok(&daemon, &["exec", "second", "cat", "/m/file"]), "kept");
    ok(&daemon, &["stop", "second"]);
    daemon.until("the plug-in is told", |_| plugin.users("one") == 1);
    // The container ends while nobody looks.
    let pid: i32 = daemon.inspect("first", "{{.State.Pid}}").parse().unwrap();
    daemon.crash();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    daemon.start();
    daemon.until("the plug-in is told", |_| {
        plugin.users("one") + plugin.users("two") == 0
    });
    // Looked into while it is stopped.
    assert!(
        daemon
            .vessel(&["cp", "second:/m/file", "-"])
            .ok()
            .contains("kept")
    );
    daemon.until("the look is over", |_| plugin.users("one") == 0);
    ok(&daemon, &["restart", "first"]);
    assert_eq!(ok(&daemon, &["exec", "first", "cat", "/m/file"]), "kept");
    ok(&daemon, &["rm", "-f", "first", "second"]);
    ok(&daemon, &["volume", "rm", "one", "two"]);
    assert!(!plugin.kept.lock().unwrap().volumes.contains_key("one"));
    let prune = ok(&daemon, &["volume", "prune", "-af"]);
    assert!(!prune.contains("foreign"), "{prune}");
    let calls = plugin.kept.lock().unwrap().calls.clone();
    assert_eq!(
        calls
            .iter()
            .filter(|call| *call == "VolumeDriver.Create one")
            .count(),
        1,
        "{calls:?}"
    );
    assert_eq!(daemon.leftovers(), Vec::<String>::new());
}

/// A name without a driver is that of a volume that a plug-in has, before it is that of a new one.
#[test]
fn volumes_that_only_a_plugin_knows_are_found_by_name() {
    let Some(daemon) = daemon_with_plugins() else {
        return;
    };
    let plugin = Plugin::start(&daemon, "keeper");
    let network = Plugin::start(&daemon, "wires");
    network.kept.lock().unwrap().drives = Some("NetworkDriver");
    for name in ["run", "made", "removed", "left"] {
        std::fs::create_dir(plugin.files.join(name)).unwrap();
        std::fs::write(plugin.files.join(name).join("file"), "theirs").unwrap();
        let options = (json!(null), BTreeSet::new());
        plugin
            .kept
            .lock()
            .unwrap()
            .volumes
            .insert(name.to_owned(), options);
    }
    let driver = |name: &str| {
        daemon
            .vessel(&["volume", "inspect", "-f", "{{.Driver}}", name])
            .ok()
    };
    let cat = [
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        "run:/m",
        "busybox",
        "cat",
        "/m/file",
    ];
    assert_eq!(daemon.vessel(&cat).ok(), "theirs");
    assert_eq!(driver("run"), "keeper");
    // The command line says `local` where nothing is said, as Docker's does.
    let (status, made) = api(&daemon, "POST", "/volumes/create", &json!({"Name": "made"}));
    assert_eq!((status, &made["Driver"]), (201, &json!("keeper")), "{made}");
    daemon.vessel(&["volume", "rm", "removed"]).ok();
    assert!(!plugin.kept.lock().unwrap().volumes.contains_key("removed"));
    // What no plug-in has is made here, and a plug-in that drives something else is no reason to warn.
    daemon.vessel(&["volume", "create", "ours"]).ok();
    assert_eq!(driver("ours"), "local");
    let said = daemon.vessel(&["volume", "ls", "-q"]);
    assert_eq!((said.err.as_str(), said.out.lines().count()), ("", 4), "{said:?}");
    assert!(
        !network
            .kept
            .lock()
            .unwrap()
            .calls
            .iter()
            .any(|call| call.starts_with("Volume"))
    );
    let refused = daemon.vessel(&["volume", "create", "-d", "wires", "xx"]).fails(1);
    assert!(refused.contains("does not implement"), "{refused}");
    daemon.vessel(&["volume", "rm", "nosuch"]).fails(1);

    for number in 0..5_000 {
        let options = (json!(null), BTreeSet::new());
        plugin
            .kept
            .lock()
            .unwrap()
            .volumes
            .insert(format!("many-{number}"), options);
    }
    let begin = Instant::now();
    let used = ["volume", "ls", "-q", "--filter", "dangling=true"];
    assert_eq!(daemon.vessel(&used).ok().lines().count(), 5_004);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}

#[test]
fn a_stuck_plugin_delays_nobody_else() {
    let Some(daemon) = daemon_with_plugins() else {
        return;
    };
    let plugin = Plugin::start(&daemon, "stuck");
    for number in 0..40 {
        daemon
            .vessel(&["volume", "create", "-d", "stuck", &format!("v{number}")])
            .ok();
    }
    plugin.kept.lock().unwrap().silent = [
        "VolumeDriver.Mount",
        "VolumeDriver.List",
        "VolumeDriver.Get",
        "VolumeDriver.Remove",
    ]
    .into();
    // More than there are threads for what blocks, and calls of a plug-in.
    let mut waiting = Vec::new();
    for number in 0..40 {
        let mount = format!("src=v{number},dst=/m,volume-nocopy");
        let name = format!("c{number}");
        daemon
            .vessel(&["create", "--name", &name, "--mount", &mount, "busybox", "true"])
            .ok();
        waiting.push(
            daemon
                .command(&["start", &name])
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap(),
        );
    }
    waiting.push(
        daemon
            .command(&["volume", "inspect", "v0"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap(),
    );
    let begin = Instant::now();
    daemon
        .vessel(&["run", "--rm", "-v", "mine:/m", "busybox", "true"])
        .ok();
    daemon.vessel(&["volume", "create", "plain"]).ok();
    daemon.vessel(&["ps", "-a"]).ok();
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    // The list waits a moment for what the plug-in might have, once.
    let list = daemon.vessel(&["volume", "ls", "-q"]);
    assert!(list.ok().contains("v39"));
    let quick = (0..10).any(|_| {
        let begin = Instant::now();
        daemon.vessel(&["volume", "ls", "-q"]).ok();
        // Less than the plug-in is given.
        begin.elapsed() < Duration::from_millis(1500)
    });
    assert!(quick, "the plug-in is waited for each time");
    for mut child in waiting {
        assert!(
            child.try_wait().unwrap().is_none(),
            "something did not wait for the plug-in"
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // It comes back, and what waited goes on.
    plugin.kept.lock().unwrap().silent.clear();
    daemon.until("the starts go on", |daemon| {
        let ended = daemon.vessel(&["ps", "-aq", "--filter", "status=exited"]).ok();
        ended.lines().count() == 40
    });
    daemon.until("the plug-in knows", |_| {
        (0..40).all(|number| plugin.users(&format!("v{number}")) == 0)
    });
}
