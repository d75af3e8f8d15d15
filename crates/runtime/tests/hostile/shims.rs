//! Shims whose containers, disks or clients are no help.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use vessel_runtime::cgroup::Hierarchies;
use vessel_runtime::shim::protocol::{self, InheritedFds};
use vessel_runtime::shim::{
    Event, ExecRequest, Exit, Launcher, LogConfig, Reply, Request, RootSource, ShimConfig, ShimFds,
};

use crate::bundle::Bundle;

pub const TESTS: &[(&str, fn())] = &[
    ("the_program_is_inside_for_the_shim", program),
    ("an_exec_that_is_held_up_holds_up_nobody", held_up),
    ("a_terminal_can_be_closed_and_opened_again", reopened),
    ("output_that_others_hold_open_ends", held_open),
    ("the_exit_status_survives_a_full_disk", full_disk),
    ("a_shim_without_descriptors_rests", no_descriptors),
    ("hooks_have_the_callers_umask_and_the_state", hooks),
];

/// A shim in a directory of its own.
struct Shim {
    bundle: Bundle,
    pid: i32,
    control: UnixStream,
}

impl Shim {
    fn launch(bundle: Bundle) -> Self {
        let dir = bundle.path().join("shim");
        std::fs::create_dir(&dir).unwrap();
        let mut config = ShimConfig {
            machine: None,
            bundle: None,
            id: bundle.id.clone(),
            spec: serde_json::from_value(bundle.config.clone()).unwrap(),
            root: RootSource::Directory(bundle.inside("")),
            hierarchies: Hierarchies::detect().unwrap(),
            seccomp_program: None,
            open_stdin: false,
            stdin_once: false,
            leashed: false,
            log: Some(LogConfig {
                path: bundle.path().join("log"),
                max_size: 0,
                max_files: 1,
                attrs: Vec::new(),
                target: None,
            }),
            exit_file: bundle.path().join("record/exit"),
            durable: true,
            fds: InheritedFds::default(),
        };
        let launched = Launcher::new()
            .unwrap()
            .launch(&dir, &mut config, ShimFds::default())
            .unwrap();
        launched
            .control
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self {
            bundle,
            pid: launched.pid,
            control: launched.control,
        }
    }

    fn event(&mut self) -> Option<Event> {
        protocol::receive(&mut self.control).unwrap()
    }

    fn started(&mut self) -> i32 {
        match self.event() {
            Some(Event::Started { pid, .. }) => pid,
            other => panic!("{other:?}"),
        }
    }

    fn exited(&mut self) -> Exit {
        match self.event() {
            Some(Event::Exited(exit)) => exit,
            other => panic!("{other:?}"),
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = vessel_runtime::shim::connect(&self.bundle.path().join("shim")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    fn ask(&self, request: &Request) -> (UnixStream, std::io::Result<Option<Reply>>) {
        let mut stream = self.connect();
        protocol::send(&mut stream, request).unwrap();
        let reply = reply(&mut stream);
        (stream, reply)
    }

    fn kill(&self) {
        let request = Request::Kill {
            exec: None,
            signal: libc::SIGKILL,
            all: false,
        };
        let (_, reply) = self.ask(&request);
        assert!(matches!(reply, Ok(Some(Reply::Done))), "{reply:?}");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.bundle.path().join("log")).unwrap()
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // SAFETY: the shim is a child of this process, and reaped only here.
        unsafe {
            if std::thread::panicking() {
                // Its containers end with it.
                libc::kill(self.pid, libc::SIGTERM);
                libc::kill(self.pid, libc::SIGKILL);
            }
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

fn reply(stream: &mut UnixStream) -> std::io::Result<Option<Reply>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut body)?;
    Ok(Some(protocol::decode(&body).unwrap()))
}

/// CVE-2024-21626, with what the shim has open.
fn program() {
    let mut bundle = Bundle::new(&["nothing"]);
    let up = "../".repeat(16);
    let path: Vec<String> = (3..64)
        .map(|fd| format!("/proc/self/fd/{fd}/{up}{}", bundle.path().display()))
        .collect();
    bundle.config["process"]["args"] = json!(["runtime", "inside", "outside"]);
    bundle.config["process"]["env"] = json!([format!("PATH={}", path.join(":"))]);
    let mut shim = Shim::launch(bundle);
    let event = shim.event();
    assert!(
        matches!(&event, Some(Event::Failed(report)) if report.message.contains("not found")),
        "{event:?}"
    );
}

/// Another process of the container stops the exec's before its program is executed.
fn held_up() {
    let mut shim = Shim::launch(Bundle::new(&["stop-others"]));
    shim.started();
    let mut process = shim.bundle.config["process"].clone();
    process["args"] = json!(["/program", "inside", "nothing"]);
    let mut waiting = None;
    for number in 0..50 {
        let mut stream = shim.connect();
        let request = Request::Exec(ExecRequest {
            id: format!("exec{number}"),
            process: serde_json::from_value(process.clone()).unwrap(),
            seccomp_program: None,
            attach: None,
            leashed: false,
        });
        protocol::send(&mut stream, &request).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        if reply(&mut stream).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            waiting = Some(stream);
            break;
        }
    }
    let mut waiting = waiting.expect("no exec was stopped in time");
    // Everybody else is answered.
    let (_, watched) = shim.ask(&Request::Watch);
    assert!(matches!(watched, Ok(Some(Reply::Status(_)))), "{watched:?}");
    // It is given up.
    waiting.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let given_up = reply(&mut waiting);
    assert!(
        matches!(&given_up, Ok(Some(Reply::Failed(report))) if report.message.contains("was killed")),
        "{given_up:?}"
    );
    shim.kill();
    while !matches!(shim.event(), Some(Event::Exited(_))) {}
}

fn reopened() {
    let mut bundle = Bundle::new(&["reopen"]);
    bundle.config["process"]["terminal"] = json!(true);
    let mut shim = Shim::launch(bundle);
    shim.started();
    assert_eq!(shim.exited().code, 7);
    let log = shim.log();
    assert!(log.contains("before") && log.contains("after"), "{log}");
}

/// A process of the host has the container's output open: it could have been passed there.
fn held_open() {
    let mut shim = Shim::launch(Bundle::new(&["sleep"]));
    let pid = shim.started();
    let mut output = std::fs::File::options()
        .write(true)
        .open(format!("/proc/{pid}/fd/1"))
        .unwrap();
    output.write_all(b"from elsewhere\n").unwrap();
    let begin = Instant::now();
    shim.kill();
    assert_eq!(shim.exited().code, 137);
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(shim.log().contains("from elsewhere"));
    drop(output);
}

/// The record cannot be written: then it is in the shim's own directory.
fn full_disk() {
    let read = |path: PathBuf| -> Option<Exit> { serde_json::from_slice(&std::fs::read(path).ok()?).ok() };
    for possible in [false, true] {
        let bundle = Bundle::new(&["exit", "5"]);
        if possible {
            std::fs::create_dir(bundle.path().join("record")).unwrap();
        }
        let mut shim = Shim::launch(bundle);
        shim.started();
        assert_eq!(shim.exited().code, 5);
        let proper = read(shim.bundle.path().join("record/exit"));
        let aside = read(shim.bundle.path().join("shim").join(protocol::EXIT));
        assert_eq!((proper.is_some(), aside.is_some()), (possible, !possible));
        assert_eq!(proper.or(aside).unwrap().code, 5);
    }
}

fn no_descriptors() {
    let mut shim = Shim::launch(Bundle::new(&["sleep"]));
    shim.started();
    let limit = libc::rlimit {
        rlim_cur: 40,
        rlim_max: 40,
    };
    // SAFETY: the limit is a complete rlimit that is only read.
    let limited = unsafe { libc::prlimit(shim.pid, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) };
    assert_eq!(limited, 0);
    let idle: Vec<OwnedFd> = (0..60).map(|_| shim.connect().into()).collect();
    std::thread::sleep(Duration::from_millis(200));
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", shim.pid)).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(1));
    assert!(ticks() - before < 20, "the shim is busy");
    drop(idle);
    shim.kill();
    assert_eq!(shim.exited().code, 137);
}

fn hooks() {
    let mut bundle = Bundle::new(&["nothing"]);
    let said = |name: &str| bundle.path().join(name);
    let hook = |name: &str, script: &str| {
        let script = format!("{{ {script}; }} > {}", said(name).display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
    };
    bundle.config["hooks"] = json!({
        "createRuntime": hook("outer", "umask"),
        "createContainer": hook("inner", "umask"),
        "poststop": hook("state", "cat; grep SigIgn /proc/self/status"),
    });
    let mut shim = Shim::launch(bundle);
    shim.started();
    shim.exited();
    let read = |name: &str| std::fs::read_to_string(shim.bundle.path().join(name)).unwrap();
    assert_ne!(read("outer").trim(), "0000");
    assert_eq!(read("inner"), read("outer"));
    let state = read("state");
    assert!(
        state.contains("\"status\":\"stopped\"") && state.contains(&shim.bundle.id),
        "{state}"
    );
    // Above 31, the C library keeps two for itself, which it may have inherited as ignored.
    let ignored = u64::from_str_radix(state.rsplit_once("SigIgn:").unwrap().1.trim(), 16).unwrap();
    assert_eq!(ignored & 0x7fff_ffff, 0, "{state}");
}
