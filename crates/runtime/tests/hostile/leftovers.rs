//! A container that cannot be made leaves nothing behind, whichever step fails.

use serde_json::{Value, json};

use crate::bundle::Bundle;

pub const TESTS: &[(&str, fn())] = &[
    ("failures_leave_nothing_behind", failures),
    ("a_failed_start_leaves_nothing_behind", start),
    ("a_killed_create_leaves_no_process_behind", killed_create),
    ("success_leaves_nothing_behind", success),
];

/// What is broken, how, and a word of the sentence that tells so.
type Case = (&'static str, fn(&mut Bundle), &'static str);

const CASES: &[Case] = &[
    (
        "mount source",
        |b| {
            b.mount(
                json!({ "destination": "/vol", "type": "bind", "source": "/no/such", "options": ["bind"] }),
            )
        },
        "/no/such",
    ),
    (
        "file system",
        |b| b.mount(json!({ "destination": "/vol", "type": "nosuchfs", "source": "x" })),
        "nosuchfs",
    ),
    (
        "mount option",
        |b| {
            b.mount(
                json!({ "destination": "/vol", "type": "tmpfs", "source": "x", "options": ["nonsense=1"] }),
            )
        },
        "nonsense",
    ),
    (
        "mount point",
        |b| b.mount(json!({ "destination": "/program/x", "type": "tmpfs", "source": "x" })),
        "/program/x",
    ),
    (
        "program",
        |b| b.config["process"]["args"] = json!(["/no/such"]),
        "/no/such",
    ),
    ("program's format", |b| b.script_as_program(), "exec format"),
    (
        "working directory",
        |b| b.config["process"]["cwd"] = json!("/program"),
        "process.cwd",
    ),
    (
        "sysctl",
        |b| b.config["linux"]["sysctl"] = json!({ "net.no.such": "1" }),
        "net.no.such",
    ),
    (
        "limit",
        |b| b.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NONSENSE", "hard": 1, "soft": 1 }]),
        "RLIMIT_NONSENSE",
    ),
    (
        "scheduler",
        |b| b.config["process"]["scheduler"] = json!({ "policy": "SCHED_NONSENSE" }),
        "SCHED_NONSENSE",
    ),
    (
        "personality",
        |b| b.config["linux"]["personality"] = json!({ "domain": "NONSENSE" }),
        "NONSENSE",
    ),
    (
        "terminal",
        |b| {
            b.config["process"]["terminal"] = json!(true);
            let m = without(b, "/dev/pts");
            b.mounts(m)
        },
        "/dev/pts",
    ),
    (
        "device",
        |b| b.config["linux"]["devices"] = json!([{ "type": "q", "path": "/dev/q" }]),
        "/dev/q",
    ),
    (
        "namespace",
        |b| b.config["linux"]["namespaces"][1]["path"] = json!("/no/such"),
        "/no/such",
    ),
    (
        "user mapping",
        |b| {
            b.config["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .push(json!({ "type": "user" }));
            let broken = json!([{ "containerID": 5, "hostID": 0, "size": 1 }]);
            b.config["linux"]["uidMappings"] = broken.clone();
            b.config["linux"]["gidMappings"] = broken
        },
        "root",
    ),
    (
        "memory limit",
        |b| b.config["linux"]["resources"]["memory"] = json!({ "limit": 1 }),
        "",
    ),
    ("prestart hook", |b| hook(b, "prestart"), "prestart"),
    (
        "createRuntime hook",
        |b| hook(b, "createRuntime"),
        "createRuntime",
    ),
    (
        "createContainer hook",
        |b| hook(b, "createContainer"),
        "createContainer",
    ),
    (
        "startContainer hook",
        |b| b.config["hooks"] = json!({ "startContainer": [{ "path": "/no/such" }] }),
        "startContainer",
    ),
];

fn hook(bundle: &mut Bundle, point: &str) {
    bundle.config["hooks"] = json!({ point: [{ "path": "/bin/false" }] });
}

fn without(bundle: &Bundle, destination: &str) -> Value {
    let mounts = bundle.config["mounts"].as_array().unwrap();
    mounts
        .iter()
        .filter(|mount| mount["destination"] != destination)
        .cloned()
        .collect()
}

impl Bundle {
    fn script_as_program(&mut self) {
        self.script("broken", "\u{1}\u{2}\u{3}");
        self.config["process"]["args"] = json!(["/broken"]);
    }
}

fn failures() {
    for (what, breaks, word) in CASES {
        let mut bundle = Bundle::new(&["nothing"]);
        breaks(&mut bundle);
        let outcome = bundle.run();
        assert_eq!(outcome.code, 125, "{what}: {outcome:?}");
        assert!(outcome.said.contains(word), "{what}: {outcome:?}");
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{what}: {outcome:?}");
    }
    let bundle = Bundle::new(&["sleep"]);
    let outcome = bundle.call("run-detached", &["--pid-file=/no/such/file"]);
    assert_eq!(
        (outcome.code, bundle.leftovers()),
        (125, Vec::new()),
        "{outcome:?}"
    );
}

/// What only `start` can find out it tells, and `delete` removes the rest.
fn start() {
    let mut bundle = Bundle::new(&["nothing"]);
    bundle.script_as_program();
    assert_eq!(bundle.call("create", &[]).code, 0);
    for name in ["config.json", "state.json"] {
        let file = bundle.state().join(&bundle.id).join(name);
        let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata().unwrap());
        assert_eq!(mode & 0o777, 0o600, "{name}: secrets are in the environment");
    }
    let outcome = bundle.call("start", &[]);
    assert!(
        outcome.code == 125 && outcome.said.contains("exec format"),
        "{outcome:?}"
    );
    assert_eq!(bundle.call("delete", &[]).code, 0);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

/// The process waits to be started, and its maker is killed before it said that the container is made.
fn killed_create() {
    let bundle = Bundle::new(&["sleep"]);
    // Here the maker waits for somebody to read: for ever.
    let pid_file = bundle.path().join("pid");
    let fifo = bundle.path().join("pid.tmp");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .unwrap();
    let mut maker = bundle.begin("create", &[&format!("--pid-file={}", pid_file.display())]);
    let record = bundle.state().join(&bundle.id).join("state.json");
    let record = until("the record", || std::fs::read_to_string(&record).ok());
    let record: Value = serde_json::from_str(&record).unwrap();
    let waiting = std::path::PathBuf::from(format!("/proc/{}", record["pid"]));
    let runs = || std::fs::read_to_string(waiting.join("stat")).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(runs());
    maker.kill().unwrap();
    maker.wait().unwrap();
    until("the end of the waiting process", || (!runs()).then_some(()));
    assert_eq!(bundle.call("delete", &[]).code, 0);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());

    // Killed before there was a record, its directory and cgroup are all that is left.
    std::fs::create_dir_all(bundle.state().join(&bundle.id)).unwrap();
    let path = vessel_runtime::cgroup::CgroupPath::parse(&bundle.id).unwrap();
    let making = bundle.state().join(&bundle.id).join("making.json");
    std::fs::write(making, serde_json::to_vec(&path).unwrap()).unwrap();
    let hierarchies = vessel_runtime::cgroup::Hierarchies::detect().unwrap();
    vessel_runtime::cgroup::Cgroup::create(&hierarchies, &path, &Default::default()).unwrap();
    assert!(bundle.leftovers().len() > 1);
    let again = bundle.call("create", &[]);
    assert!(again.code == 125 && again.said.contains("--force"), "{again:?}");
    assert_eq!(bundle.call("delete", &[]).code, 0);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

/// Waits for something.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed().as_secs() < 20, "waited too long: {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn success() {
    let mut bundle = Bundle::new(&["oom-score", "123"]);
    bundle.config["process"]["oomScoreAdj"] = json!(123);
    assert_eq!(bundle.run().code, 0);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}
