//! A container's life behind the wall, as the daemon sees it.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vessel_runtime::cgroup::{CgroupPath, Hierarchies};
use vessel_runtime::error::Report;
use vessel_runtime::shim::protocol::{self, InheritedFds};
use vessel_runtime::shim::{
    Attach, Event, ExecRequest, Exit, Held, Interface, Launcher, LogConfig, MachineConfig, Question, Reply,
    Request, RootSource, ShimConfig, ShimFds,
};
use vessel_runtime::spec::{ConsoleSize, Process};

pub const TESTS: &[(&str, fn())] = &[
    ("output_and_status_are_those_of_the_guests_process", output),
    ("input_and_its_end_arrive", input),
    ("execs_have_streams_and_ends_of_their_own", execs),
    ("a_program_that_is_not_there_is_told", not_there),
    ("signals_reach_the_guest_and_a_deaf_one_is_killed", signals),
    ("a_terminal_is_in_the_guest", terminal),
    ("mounts_are_made_on_this_side", mounts),
    ("the_guests_kernel_is_asked", questions),
    ("names_are_asked_in_the_containers_namespace", names),
    ("a_machine_that_does_not_start_says_why", no_start),
    ("nothing_is_left_when_monitor_or_shim_are_killed", killed),
    ("much_output_arrives_whole", much),
];

const PATIENCE: Duration = Duration::from_secs(20);

struct Container {
    dir: tempfile::TempDir,
    pub spec: Value,
    config: ShimConfig,
    fds: ShimFds,
}

struct Shim {
    dir: tempfile::TempDir,
    pid: i32,
    control: UnixStream,
    cgroup: String,
}

impl Container {
    fn new(words: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for name in ["proc", "sys", "dev", "tmp", "etc"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::copy(std::env::current_exe().unwrap(), root.join("program")).unwrap();
        std::fs::create_dir(dir.path().join("shim")).unwrap();
        let mut spec = vessel_runtime::oci::template();
        let mut args = vec!["/program", "inside"];
        args.extend(words);
        spec["process"]["args"] = json!(args);
        spec["process"]["terminal"] = json!(false);
        spec["process"].as_object_mut().unwrap().remove("rlimits");
        spec["root"]["readonly"] = json!(false);
        let id = format!(
            "machine-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        spec["linux"]["cgroupsPath"] = json!(format!("/{id}"));
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let config = ShimConfig {
            id,
            spec: serde_json::from_value(spec.clone()).unwrap(),
            bundle: None,
            root: RootSource::Directory(root),
            machine: Some(MachineConfig {
                command_line: String::new(),
                accelerator: "auto".into(),
                memory: 64 << 20,
                vcpus: 1,
                interfaces: Vec::new(),
                names: false,
            }),
            hierarchies: Hierarchies::detect().unwrap(),
            seccomp_program: None,
            open_stdin: false,
            stdin_once: false,
            leashed: false,
            log: Some(LogConfig {
                path: dir.path().join("log"),
                max_size: 0,
                max_files: 1,
                attrs: Vec::new(),
                target: None,
            }),
            exit_file: dir.path().join("exit"),
            durable: false,
            fds: InheritedFds::default(),
        };
        Self {
            dir,
            spec,
            config,
            fds: ShimFds {
                boot: Some((open(), open())),
                ..ShimFds::default()
            },
        }
    }

    fn machine(&mut self) -> &mut MachineConfig {
        self.config.machine.as_mut().unwrap()
    }

    fn root(&self, path: &str) -> PathBuf {
        self.dir.path().join("rootfs").join(path)
    }

    fn launch(mut self) -> Shim {
        self.config.spec = serde_json::from_value(self.spec).unwrap();
        let launched = Launcher::new()
            .unwrap()
            .launch(&self.dir.path().join("shim"), &mut self.config, self.fds)
            .unwrap();
        launched.control.set_read_timeout(Some(PATIENCE)).unwrap();
        Shim {
            dir: self.dir,
            pid: launched.pid,
            control: launched.control,
            cgroup: self.config.id,
        }
    }
}

impl Shim {
    fn event(&mut self) -> Option<Event> {
        protocol::receive(&mut self.control).unwrap()
    }

    /// The monitor's process.
    fn started(&mut self) -> i32 {
        match self.event() {
            Some(Event::Started { pid, .. }) => pid,
            other => panic!("{other:?}"),
        }
    }

    fn failed(&mut self) -> Report {
        match self.event() {
            Some(Event::Failed(report)) => report,
            other => panic!("{other:?}"),
        }
    }

    fn exited(&mut self) -> Exit {
        loop {
            match self.event() {
                Some(Event::Exited(exit)) => {
                    assert!(!self.has_cgroup(), "its cgroup is left");
                    return exit;
                }
                Some(Event::ExecExited { .. } | Event::Oom) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn has_cgroup(&self) -> bool {
        let path = CgroupPath::from_oci(&format!("/{}", self.cgroup), "x").unwrap();
        vessel_runtime::cgroup::Cgroup::open(&Hierarchies::detect().unwrap(), &path).is_ok()
    }

    fn ask(&self, request: &Request) -> (UnixStream, Option<Reply>) {
        let mut stream = vessel_runtime::shim::connect(&self.dir.path().join("shim")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        protocol::send(&mut stream, request).unwrap();
        let reply = protocol::receive(&mut stream).unwrap();
        (stream, reply)
    }

    fn done(&self, request: &Request) {
        let (_, reply) = self.ask(request);
        assert!(matches!(reply, Some(Reply::Done)), "{reply:?}");
    }

    fn kill(&self, signal: i32) {
        self.done(&Request::Kill {
            exec: None,
            signal,
            all: false,
        });
    }

    fn exec(&self, id: &str, words: &[&str], attach: Option<Attach>) -> (UnixStream, Option<Reply>) {
        let mut args = vec!["/program".to_owned(), "inside".to_owned()];
        args.extend(words.iter().map(|word| (*word).to_owned()));
        self.ask(&Request::Exec(ExecRequest {
            id: id.into(),
            process: Process {
                args,
                cwd: "/".into(),
                ..Process::default()
            },
            seccomp_program: None,
            attach,
            leashed: false,
        }))
    }

    fn log(&self) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        let line = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            let field = |name: &str| line[name].as_str().unwrap().to_owned();
            (field("stream"), field("log"))
        };
        text.lines().map(line).collect()
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // SAFETY: the shim is a child of this process, and reaped only here.
        unsafe {
            if std::thread::panicking() {
                libc::kill(self.pid, libc::SIGKILL);
            }
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

fn attach(stdin: bool) -> Attach {
    Attach {
        stdin,
        stdout: true,
        stderr: true,
    }
}

fn to_the_end(mut stream: UnixStream) -> String {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn output() {
    let mut shim = Container::new(&["say", "hello"]).launch();
    let pid = shim.started();
    assert!(pid > 0);
    assert_eq!(shim.exited().code, 0);
    assert_eq!(shim.log(), [("stdout".to_owned(), "hello\n".to_owned())]);
    let recorded: Exit =
        serde_json::from_slice(&std::fs::read(shim.dir.path().join("exit")).unwrap()).unwrap();
    assert_eq!(recorded.code, 0);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());

    let mut shim = Container::new(&["exit", "42"]).launch();
    shim.started();
    assert_eq!(shim.exited().code, 42);

    let mut container = Container::new(&["complain", "no memory"]);
    container.machine().command_line = "oom".into();
    let mut shim = container.launch();
    shim.started();
    assert!(shim.exited().oom_killed);
    assert_eq!(shim.log(), [("stderr".to_owned(), "no memory\n".to_owned())]);
}

fn input() {
    let mut container = Container::new(&["cat"]);
    container.config.open_stdin = true;
    container.config.stdin_once = true;
    let mut shim = container.launch();
    shim.started();
    let (mut stream, reply) = shim.ask(&Request::Attach(attach(true)));
    assert!(matches!(reply, Some(Reply::Done)));
    stream.write_all(b"ping\n").unwrap();
    let mut framed = [0; 13];
    stream.read_exact(&mut framed).unwrap();
    assert_eq!(&framed, b"\x01\0\0\0\0\0\0\x05ping\n");
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(to_the_end(stream), "");
    assert_eq!(shim.exited().code, 0);
}

fn execs() {
    let mut shim = Container::new(&["sleep"]).launch();
    shim.started();
    let (stream, reply) = shim.exec("one", &["say", "from", "one"], Some(attach(false)));
    assert!(matches!(reply, Some(Reply::Started { pid: 1.. })), "{reply:?}");
    assert!(to_the_end(stream).ends_with("from one\n"));
    assert!(matches!(shim.event(), Some(Event::ExecExited { id, exit }) if id == "one" && exit.code == 0));

    let (mut stream, reply) = shim.exec("two", &["cat"], Some(attach(true)));
    assert!(matches!(reply, Some(Reply::Started { .. })), "{reply:?}");
    // A name that is taken.
    let (_, again) = shim.exec("two", &["cat"], None);
    assert!(matches!(again, Some(Reply::Failed(_))), "{again:?}");
    stream.write_all(b"x").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(to_the_end(stream).ends_with('x'));
    assert!(matches!(shim.event(), Some(Event::ExecExited { id, exit }) if id == "two" && exit.code == 0));

    let (_, reply) = shim.exec("three", &["exit", "3"], None);
    assert!(matches!(reply, Some(Reply::Started { .. })), "{reply:?}");
    assert!(matches!(shim.event(), Some(Event::ExecExited { id, exit }) if id == "three" && exit.code == 3));

    let (_, reply) = shim.exec("four", &["sleep"], None);
    assert!(matches!(reply, Some(Reply::Started { .. })), "{reply:?}");
    shim.done(&Request::Kill {
        exec: Some("four".into()),
        signal: libc::SIGTERM,
        all: false,
    });
    let ended = shim.event();
    assert!(
        matches!(&ended, Some(Event::ExecExited { id, exit }) if id == "four" && exit.signal == Some(libc::SIGTERM)),
        "{ended:?}"
    );
    // One that runs ends with the container.
    let (stream, reply) = shim.exec("five", &["sleep"], Some(attach(false)));
    assert!(matches!(reply, Some(Reply::Started { .. })), "{reply:?}");
    shim.kill(libc::SIGKILL);
    assert_eq!(shim.exited().code, 137);
    assert_eq!(to_the_end(stream), "");
}

fn not_there() {
    let mut container = Container::new(&[]);
    container.spec["process"]["args"] = json!(["/no/such"]);
    let mut shim = container.launch();
    let report = shim.failed();
    assert_eq!(
        report.kind,
        vessel_runtime::ErrorKind::CommandNotFound,
        "{report:?}"
    );
    assert!(!shim.has_cgroup());

    let mut shim = Container::new(&["sleep"]).launch();
    shim.started();
    let (_, reply) = shim.ask(&Request::Exec(ExecRequest {
        id: "x".into(),
        process: Process {
            args: vec!["/no/such".into()],
            cwd: "/".into(),
            ..Process::default()
        },
        seccomp_program: None,
        attach: None,
        leashed: false,
    }));
    assert!(
        matches!(&reply, Some(Reply::Failed(report)) if report.kind == vessel_runtime::ErrorKind::CommandNotFound),
        "{reply:?}"
    );
    shim.kill(libc::SIGTERM);
    shim.exited();
}

fn signals() {
    let mut shim = Container::new(&["sleep"]).launch();
    shim.started();
    shim.kill(libc::SIGTERM);
    let exit = shim.exited();
    assert_eq!((exit.code, exit.signal), (143, Some(libc::SIGTERM)));

    // It takes signals and shutdowns for granted, and does nothing.
    let mut container = Container::new(&["sleep"]);
    container.machine().command_line = "deaf".into();
    let mut shim = container.launch();
    shim.started();
    shim.kill(libc::SIGTERM);
    let begin = Instant::now();
    shim.kill(libc::SIGKILL);
    let exit = shim.exited();
    assert_eq!((exit.code, exit.signal), (137, Some(libc::SIGKILL)));
    assert!(
        begin.elapsed() > Duration::from_secs(1),
        "it had no time to end by itself"
    );
}

fn terminal() {
    if !Path::new("/sys/fs/cgroup/devices/cgroup.procs").exists() {
        println!("skipped: the double cannot leave a device filter of cgroup v2, and so has no terminals");
        return;
    }
    let mut container = Container::new(&["size"]);
    container.spec["process"]["terminal"] = json!(true);
    container.spec["process"]["consoleSize"] = json!({ "height": 24, "width": 80 });
    container.config.open_stdin = true;
    let (ours, theirs) = UnixStream::pair().unwrap();
    container.fds.attach.push((theirs.into(), attach(true)));
    let mut shim = container.launch();
    shim.started();
    let resize = |exec: Option<String>| Request::Resize {
        exec,
        size: ConsoleSize {
            height: 50,
            width: 132,
        },
    };
    shim.done(&resize(None));
    let (_, reply) = shim.ask(&resize(Some("nobody".into())));
    assert!(matches!(reply, Some(Reply::Failed(_))), "{reply:?}");
    // Raw, as a terminal's output is.
    assert_eq!(to_the_end(ours), "Some((24, 80))\r\n50 132\r\n");
    assert_eq!(shim.exited().code, 0);
}

fn mounts() {
    let mut container = Container::new(&["sleep"]);
    let outside = container.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "of the host\n").unwrap();
    std::fs::write(container.dir.path().join("single"), "one file\n").unwrap();
    let bind = |source: &Path, at: &str, options: &[&str]| json!({ "destination": at, "type": "bind", "source": source, "options": options });
    let mounts = container.spec["mounts"].as_array_mut().unwrap();
    mounts.push(bind(&outside, "/data", &["rbind", "rprivate"]));
    mounts.push(bind(&outside, "/data/again", &["bind", "ro"]));
    mounts.push(bind(
        &container.dir.path().join("single"),
        "/etc/single",
        &["bind", "ro"],
    ));
    std::fs::create_dir(outside.join("again")).unwrap();
    let mut shim = container.launch();
    shim.started();
    let ask = |id: &str, words: &[&str]| {
        let (stream, reply) = shim.exec(id, words, Some(attach(false)));
        assert!(matches!(reply, Some(Reply::Started { .. })), "{reply:?}");
        to_the_end(stream)
    };
    assert!(ask("1", &["read", "/data/file"]).ends_with("of the host\n"));
    assert!(ask("2", &["read", "/etc/single"]).ends_with("one file\n"));
    assert!(ask("3", &["write", "/data/new", "x"]).ends_with("written\n"));
    assert!(ask("4", &["write", "/data/again/new", "x"]).contains("Read-only"));
    assert!(ask("5", &["write", "/etc/single", "x"]).contains("Read-only"));
    assert_eq!(std::fs::read_to_string(outside.join("new")).unwrap(), "x");
    // The host sees none of the mounts, and the daemon reaches all of them.
    let seen = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!seen.contains("/data/again"));
    let root = vessel_runtime::shim::hand(&shim.dir.path().join("shim"), Held::Root).unwrap();
    let inside = |path: &str| {
        std::fs::read_to_string(format!(
            "/proc/self/fd/{}/{path}",
            std::os::fd::AsRawFd::as_raw_fd(&root)
        ))
    };
    assert_eq!(inside("data/file").unwrap(), "of the host\n");
    assert_eq!(inside("etc/single").unwrap(), "one file\n");
    shim.kill(libc::SIGTERM);
    shim.exited();

    let mut container = Container::new(&["write", "/tmp/x", "y"]);
    container.spec["root"]["readonly"] = json!(true);
    let mut shim = container.launch();
    shim.started();
    shim.exited();
    assert!(shim.log()[0].1.contains("Read-only"), "{:?}", shim.log());
}

fn questions() {
    let mut container = Container::new(&["sleep"]);
    container.machine().interfaces = vec![Interface {
        name: "eth0".into(),
        mac: [2, 0, 0, 0, 0, 7],
        mtu: 1400,
        addresses: vec![("10.1.2.3".parse().unwrap(), 24)],
        gateways: vec!["10.1.2.1".parse().unwrap()],
    }];
    // Anything that can be inherited.
    container
        .fds
        .taps
        .push(std::fs::File::open("/dev/null").unwrap().into());
    let mut shim = container.launch();
    shim.started();
    let (_, reply) = shim.ask(&Request::Ask(Question::Processes));
    let Some(Reply::Processes(list)) = reply else {
        panic!("{reply:?}")
    };
    assert!(
        list.len() == 1 && list[0].stat.starts_with(&list[0].pid.to_string()),
        "{list:?}"
    );
    let (_, reply) = shim.ask(&Request::Ask(Question::Statistics));
    let Some(Reply::Files(files)) = reply else {
        panic!("{reply:?}")
    };
    assert!(
        files[0].1.contains("mtu: 1400") && files[0].1.contains("[10, 1, 2, 3]"),
        "{files:?}"
    );
    shim.done(&Request::Ask(Question::Clock));
    let (_, reply) = shim.ask(&Request::Watch);
    assert!(matches!(reply, Some(Reply::Status(status)) if status.exit.is_none()));
    shim.kill(libc::SIGTERM);
    shim.exited();
}

fn names() {
    let netns = std::thread::spawn(|| {
        // SAFETY: this thread alone leaves its namespace, and ends.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        let netns: OwnedFd = std::fs::File::open("/proc/thread-self/ns/net").unwrap().into();
        let status = std::process::Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(status.unwrap().success());
        (netns, TcpListener::bind("127.0.0.11:53").unwrap())
    });
    let (netns, server) = netns.join().unwrap();
    std::thread::spawn(move || {
        let (mut client, _) = server.accept().unwrap();
        let mut question = Vec::new();
        client.read_to_end(&mut question).unwrap();
        question.reverse();
        client.write_all(&question).unwrap();
    });
    let mut container = Container::new(&["sleep"]);
    container.machine().names = true;
    container.fds.netns = Some(netns);
    let answer = container.root("answer");
    let mut shim = container.launch();
    shim.started();
    eventually("the answer", || {
        std::fs::read(&answer).is_ok_and(|text| text == b"olleh\x05\0")
    });
    shim.kill(libc::SIGTERM);
    shim.exited();
}

fn no_start() {
    let mut container = Container::new(&["sleep"]);
    container.machine().command_line = "panic".into();
    let mut shim = container.launch();
    let report = shim.failed();
    assert!(
        report
            .message
            .contains("its console said last: Kernel panic - not syncing: [31mno init[0m"),
        "{report:?}"
    );
    assert!(!shim.has_cgroup());

    let mut container = Container::new(&["sleep"]);
    container.fds.boot = None;
    let mut shim = container.launch();
    let report = shim.failed();
    assert_eq!(report.message, "the machine has no kernel");
    assert!(!shim.has_cgroup());
}

fn killed() {
    let mut shim = Container::new(&["sleep"]).launch();
    let monitor = shim.started();
    let (stream, _) = shim.exec("x", &["sleep"], Some(attach(false)));
    // SAFETY: the monitor of this test's machine.
    unsafe { libc::kill(monitor, libc::SIGKILL) };
    let exit = shim.exited();
    assert_eq!((exit.code, exit.signal), (137, Some(libc::SIGKILL)));
    assert_eq!(to_the_end(stream), "");

    let mut shim = Container::new(&["sleep"]).launch();
    let monitor = shim.started();
    // SAFETY: the shim of this test's machine.
    unsafe { libc::kill(shim.pid, libc::SIGKILL) };
    assert!(shim.event().is_none());
    eventually("the monitor's end", || {
        let state = std::fs::read_to_string(format!("/proc/{monitor}/stat"));
        state.map_or(true, |state| state.contains(") Z "))
    });
    // What a daemon does then.
    let path = CgroupPath::from_oci(&format!("/{}", shim.cgroup), "x").unwrap();
    let cgroup = vessel_runtime::cgroup::Cgroup::open(&Hierarchies::detect().unwrap(), &path).unwrap();
    cgroup.kill_all(rustix::process::Signal::KILL).unwrap();
    cgroup.destroy().unwrap();
}

fn much() {
    let mut container = Container::new(&["much", "4096"]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    container.fds.attach.push((theirs.into(), attach(false)));
    let mut shim = container.launch();
    shim.started();
    let reader = std::thread::spawn(move || {
        let mut frames = Vec::new();
        let mut stream = ours;
        stream.read_to_end(&mut frames).unwrap();
        frames
    });
    assert_eq!(shim.exited().code, 0);
    let frames = reader.join().unwrap();
    // Between the text are headers of eight bytes, whose lengths can have an `x`, too.
    let (mut rest, mut count) = (&frames[..], 0);
    while let Some((header, after)) = rest.split_first_chunk::<8>() {
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let (text, next) = after.split_at(length);
        count += text.iter().filter(|byte| **byte == b'x').count();
        rest = next;
    }
    assert_eq!(count, 4096 * 1023);
    assert_eq!(shim.log().len(), 4096);
}
