//! The guest's init, serving a container in namespaces of this host: everything of it but the machine around it.
//!
//! Needs root, as the crate's programs for containers do not: without it the tests say so and pass.

#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::ffi::CString;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;
use vessel_init::guest::client::{self, Error};
use vessel_init::guest::protocol::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// The descriptor the init inherits: above all that a test has open, of which none may be written over.
const LISTENER: i32 = 900;

/// The init in namespaces of its own, and the directory that becomes its container's root.
struct Guest {
    child: Child,
    directory: tempfile::TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn busybox() -> Option<PathBuf> {
    let found = ["/bin/busybox", "/usr/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists());
    if found.is_none() || !rustix::process::geteuid().is_root() {
        eprintln!("skipped: it takes root and a static busybox");
        return None;
    }
    found
}

impl Guest {
    /// None where this host does not allow it.
    fn start() -> Option<Self> {
        let busybox = busybox()?;
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in [
            "base",
            "image",
            "image/bin",
            "image/etc",
            "image/proc",
            "image/dev",
            "image/tmp",
            "volume",
        ] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::copy(busybox, at("image/bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "id", "sleep", "stty", "tty", "mount", "ls", "readlink", "hostname", "touch", "ip",
            "test", "kill", "umount", "grep",
        ] {
            std::os::unix::fs::symlink("busybox", at("image/bin").join(applet)).unwrap();
        }
        fs::write(at("image/plain"), "data").unwrap();
        fs::write(at("volume/file"), "from the volume\n").unwrap();
        std::os::unix::fs::symlink("/etc", at("image/link")).unwrap();
        let program = at("guest");
        fs::write(&program, vessel_init::guest::GUEST).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let listener: OwnedFd = UnixListener::bind(at("socket")).unwrap().into();

        let base = at("base");
        let mut command = Command::new("/guest");
        command
            .args(["serve", &LISTENER.to_string()])
            .stdin(Stdio::null())
            .env_clear();
        let number = listener.as_raw_fd();
        let (image, volume) = (at("image"), at("volume"));
        // SAFETY: between fork and exec only system calls are made, on paths that were made before; what allocates does so in a
        // process whose other threads wait in `spawn` or do not hold the allocator for ever (glibc resets it in the child).
        unsafe {
            command.pre_exec(move || {
                rustix::thread::unshare_unsafe(
                    UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWUTS | UnshareFlags::NEWPID,
                )?;
                enter_pid_namespace()?;
                make_guest_root(&base, &program, &image, &volume)?;
                let mut listener = std::mem::ManuallyDrop::new(std::os::fd::FromRawFd::from_raw_fd(LISTENER));
                rustix::io::dup2(std::os::fd::BorrowedFd::borrow_raw(number), &mut listener)?;
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        Some(Self { child, directory })
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("socket")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn stream(&self, process: &str, number: u8) -> UnixStream {
        let mut stream = self.connect();
        let request = Request::Stream(Stream {
            process: process.into(),
            number,
        });
        client::order(&mut stream, &request).unwrap();
        stream
    }

    fn ask(&self, request: &Request) -> Result<Reply, Error> {
        client::call(&mut self.connect(), request)
    }

    /// Starts something, gives its connection after it runs.
    fn begin(&self, request: &Request) -> Result<UnixStream, Error> {
        let mut connection = self.connect();
        match client::call(&mut connection, request)? {
            Reply::Started { pid } => assert!(pid > 1),
            other => panic!("{other:?}"),
        }
        Ok(connection)
    }

    /// Runs a script as the container; gives what it wrote, and how it ended.
    fn run(&self, change: impl FnOnce(&mut Start), script: &str) -> (String, Exit) {
        let mut start = container(script);
        change(&mut start);
        let mut output = self.stream("", 1);
        let mut connection = self.begin(&Request::Start(start)).unwrap();
        let text = text(&mut output);
        (text, exit(&mut connection))
    }
}

/// Goes on in a child, the first process of the new namespace; the parent ends as it does, and takes it along when it is killed.
fn enter_pid_namespace() -> std::io::Result<()> {
    // SAFETY: only system calls follow in the parent, and what the caller vouches for in the child.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()),
        0 => Ok(rustix::process::set_parent_process_death_signal(Some(
            rustix::process::Signal::KILL,
        ))?),
        child => {
            let mut status = 0;
            // SAFETY: waits for the child just made, and ends without running anything of the tests'.
            unsafe {
                // What the test waits for to be closed when the program is executed is the child's alone.
                libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
                libc::waitpid(child, &mut status, 0);
                libc::_exit(libc::WEXITSTATUS(status));
            }
        }
    }
}

fn make_guest_root(base: &Path, program: &Path, image: &Path, volume: &Path) -> std::io::Result<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    rustix::mount::mount(
        "base",
        base,
        "tmpfs",
        MountFlags::empty(),
        None::<&CString>.map(|text| text.as_c_str()),
    )?;
    for name in ["proc", "sys", "dev", "root", "parts", "image", "volume", "old"] {
        rustix::fs::mkdir(base.join(name), 0o755.into())?;
    }
    fs::copy(program, base.join("guest"))?;
    rustix::mount::mount(
        "proc",
        base.join("proc"),
        "proc",
        MountFlags::empty(),
        None::<&CString>.map(|text| text.as_c_str()),
    )?;
    rustix::mount::mount_bind_recursive("/dev", base.join("dev"))?;
    rustix::mount::mount(
        "sysfs",
        base.join("sys"),
        "sysfs",
        MountFlags::empty(),
        None::<&CString>.map(|text| text.as_c_str()),
    )?;
    rustix::mount::mount_bind(image, base.join("image"))?;
    rustix::mount::mount_bind(volume, base.join("volume"))?;
    rustix::process::chdir(base)?;
    rustix::process::pivot_root(".", "old")?;
    rustix::mount::unmount("/old", UnmountFlags::DETACH)?;
    rustix::process::chdir("/").map_err(Into::into)
}

fn mount(kind: &str, target: &str, options: &str) -> Mount {
    Mount {
        kind: kind.into(),
        source: kind.into(),
        target: target.into(),
        flags: 2 | 8,
        options: options.into(),
        ..Mount::default()
    }
}

fn process(name: &str, script: &str) -> Process {
    Process {
        name: name.into(),
        args: vec!["sh".into(), "-c".into(), script.into()],
        env: vec!["PATH=/bin".into(), "GREETING=hello".into()],
        cwd: "/work/here".into(),
        stdout: true,
        ..Process::default()
    }
}

fn container(script: &str) -> Start {
    Start {
        root: Root {
            kind: "bind".into(),
            source: "/image".into(),
            ..Root::default()
        },
        mounts: vec![
            mount("proc", "/proc", ""),
            mount("tmpfs", "/dev", "mode=755,size=65536k"),
            mount("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620"),
            mount("tmpfs", "/made/on/the/way", "size=1m"),
            Mount {
                kind: "bind".into(),
                source: "/volume".into(),
                part: "file".into(),
                target: "/link/mounted".into(),
                flags: 1,
                ..Mount::default()
            },
        ],
        hostname: "inside".into(),
        process: process("", script),
        ..Start::default()
    }
}

fn text(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn exit(connection: &mut UnixStream) -> Exit {
    match client::receive(connection).unwrap() {
        Reply::Exited(exit) => exit,
        other => panic!("{other:?}"),
    }
}

fn status(code: i32) -> Exit {
    Exit {
        status: Some(code),
        ..Exit::default()
    }
}

#[test]
fn a_container_runs_and_its_output_and_status_arrive() {
    let Some(guest) = Guest::start() else { return };
    let script = "echo $$ $GREETING $(hostname) $(pwd); cat /etc/mounted; readlink /dev/stdout; test -c /dev/null && ls /dev/fd/ >/dev/null; echo out >/dev/stdout; exit 7";
    let (output, exit) = guest.run(|_| {}, script);
    assert_eq!(
        output,
        "1 hello inside /work/here\nfrom the volume\n/proc/self/fd/1\nout\n"
    );
    assert_eq!(exit, status(7));
    // A guest has one container in its life.
    let again = guest.ask(&Request::Start(container("true"))).unwrap_err();
    assert!(
        matches!(
            again,
            Error::Refused {
                kind: Failure::Conflict,
                ..
            }
        ),
        "{again}"
    );
}

#[test]
fn input_is_passed_on_with_its_end() {
    let Some(guest) = Guest::start() else { return };
    // More than pipes and sockets hold, so that both directions have to wait.
    let sent: Vec<u8> = (0..3_000_000u32)
        .flat_map(|number| number.to_le_bytes())
        .collect();
    let mut start = container("cat");
    start.process.stdin = true;
    // The start waits for its streams.
    let mut connection = guest.connect();
    client::send(&mut connection, &Request::Start(start)).unwrap();
    let mut input = guest.stream("", 0);
    let mut output = guest.stream("", 1);
    assert!(matches!(
        client::receive(&mut connection).unwrap(),
        Reply::Started { .. }
    ));
    let expected = sent.clone();
    let writer = std::thread::spawn(move || {
        input.write_all(&sent).unwrap();
    });
    let mut received = Vec::new();
    output.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(
        received == expected,
        "{} of {} bytes",
        received.len(),
        expected.len()
    );
    assert_eq!(exit(&mut connection), status(0));
}

#[test]
fn execs_signals_and_the_end_of_the_first_process() {
    let Some(guest) = Guest::start() else { return };
    let mut first = guest
        .begin(&Request::Start({
            let mut start = container("trap 'exit 3' TERM; while :; do sleep 0.01; done");
            start.process.stdout = false;
            start
        }))
        .unwrap();

    let mut output = guest.stream("x", 1);
    let mut exec = guest
        .begin(&Request::Exec(process(
            "x",
            "echo $$ $(hostname); readlink /proc/1/exe; exit 4",
        )))
        .unwrap();
    let said = text(&mut output);
    assert!(
        said.ends_with(" inside\n/bin/busybox\n") && !said.starts_with("1 "),
        "{said}"
    );
    assert_eq!(exit(&mut exec), status(4));

    let mut quiet = process("y", "sleep 100");
    quiet.stdout = false;
    let mut sleeper = guest.begin(&Request::Exec(quiet.clone())).unwrap();
    let taken = guest.ask(&Request::Exec(quiet.clone())).unwrap_err();
    assert!(taken.to_string().contains("already"), "{taken}");
    // Its shell has to come to it first.
    let sleeps = || match guest.ask(&Request::Top).unwrap() {
        Reply::Processes(all) => all
            .iter()
            .any(|process| process.cmdline.starts_with(b"sleep\x00100") && process.stat.contains(&b'(')),
        other => panic!("{other:?}"),
    };
    assert!((0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        sleeps()
    }));
    let signal = |process: &str, signal| Request::Signal {
        process: process.into(),
        signal,
        all: false,
    };
    assert_eq!(guest.ask(&signal("y", 9)).unwrap(), Reply::Done);
    assert_eq!(
        exit(&mut sleeper),
        Exit {
            status: None,
            signal: 9,
            oom_kills: 0
        }
    );

    // A leashed process goes with the connection; another does not.
    quiet.leashed = true;
    quiet.name = "z".into();
    drop(guest.begin(&Request::Exec(quiet.clone())).unwrap());
    let gone = |name: &str| {
        (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            guest.ask(&signal(name, 0)).is_err()
        })
    };
    assert!(gone("z"));
    quiet.leashed = false;
    quiet.name = "kept".into();
    drop(guest.begin(&Request::Exec(quiet.clone())).unwrap());
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(guest.ask(&signal("kept", 0)).unwrap(), Reply::Done);

    assert_eq!(guest.ask(&signal("", 15)).unwrap(), Reply::Done);
    assert_eq!(exit(&mut first), status(3));
    assert!(
        gone("kept"),
        "the kernel ends what the first process leaves behind"
    );
    let late = guest.ask(&Request::Exec(quiet)).unwrap_err();
    assert!(late.to_string().contains("does not run"), "{late}");
}

#[test]
fn a_terminal_has_its_size_and_is_the_console() {
    let Some(guest) = Guest::start() else { return };
    let mut start = container("tty; stty size; read line; stty size; echo \"got $line\" >/dev/console");
    start.process.terminal = Some(Size {
        rows: 30,
        columns: 90,
    });
    start.process.stdin = true;
    let (mut input, mut output) = (guest.stream("", 0), guest.stream("", 1));
    let mut connection = guest.begin(&Request::Start(start)).unwrap();
    let resize = Request::Resize {
        process: String::new(),
        size: Size {
            rows: 40,
            columns: 100,
        },
    };
    let mut said = Vec::new();
    while !said.ends_with(b"30 90\r\n") {
        let mut piece = [0; 100];
        let count = output.read(&mut piece).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&said));
        said.extend(&piece[..count]);
    }
    assert!(said.starts_with(b"/dev/pts/0\r\n"));
    assert_eq!(guest.ask(&resize).unwrap(), Reply::Done);
    input.write_all(b"word\n").unwrap();
    let rest = text(&mut output);
    assert_eq!(rest, "word\r\n40 100\r\ngot word\r\n");
    assert_eq!(exit(&mut connection), status(0));
}

#[test]
fn users_capabilities_limits_and_filters_are_set() {
    let Some(guest) = Guest::start() else { return };
    let script = "id -u; id -g; id -G; grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNew|Seccomp:' /proc/self/status; ulimit -n; umask; echo data > /dev/stdout; hostname other || echo denied";
    let (output, exit) = guest.run(
        |start| {
            let process = &mut start.process;
            process.uid = 1000;
            process.gid = 1001;
            process.groups = vec![5, 6];
            process.umask = Some(0o77);
            process.no_new_privileges = true;
            process.rlimits = vec![Rlimit {
                resource: 7,
                soft: 100,
                hard: 200,
            }];
            process.capabilities = Some(Capabilities {
                bounding: 0x401,
                effective: 0x400,
                inheritable: 0x400,
                permitted: 0x400,
                ambient: 0x400,
            });
            // Allow all: load nothing, return SECCOMP_RET_ALLOW.
            process.seccomp = [
                &b"VSF1"[..],
                &[0; 8],
                &[1, 0, 0, 0],
                &[6, 0, 0, 0, 0, 0, 0xff, 0x7f],
            ]
            .concat();
        },
        script,
    );
    let expected = "1000\n1001\n1001 5 6\nCapInh:\t0000000000000400\nCapPrm:\t0000000000000400\nCapEff:\t0000000000000400\nCapBnd:\t0000000000000401\nCapAmb:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t2\n100\n0077\ndata\ndenied\n";
    assert_eq!(output, expected);
    assert_eq!(exit, status(0));
}

#[test]
fn paths_are_masked_protected_and_the_root_read_only() {
    let Some(guest) = Guest::start() else { return };
    let script = "cat /plain; ls /tmp | cat; touch /proc/sys/kernel/x 2>/dev/null; touch /new 2>/dev/null || echo read-only; touch /made/on/the/way/x && echo tmpfs; cat /proc/self/mounts | grep -c '^base'; mount | grep -q 'on /proc/sys .*ro' && echo protected";
    let (output, exit) = guest.run(
        |start| {
            start.root.readonly = true;
            start.process.cwd = "/".into();
            start.masked = vec!["/plain".into(), "/tmp".into(), "/missing".into()];
            start.readonly = vec!["/proc/sys".into(), "/absent".into()];
            start.mounts.retain(|mount| mount.kind != b"bind");
        },
        script,
    );
    assert_eq!(output, "read-only\ntmpfs\n0\nprotected\n");
    assert_eq!(exit, status(0));
}

#[test]
fn failures_name_what_is_wrong() {
    let Some(guest) = Guest::start() else { return };
    let mut first = guest
        .begin(&Request::Start({
            let mut start = container("sleep 100");
            start.process.stdout = false;
            start
        }))
        .unwrap();
    let attempt = |program: &str| {
        let mut process = process("e", "");
        process.args = vec![program.into()];
        process.stdout = false;
        match guest.ask(&Request::Exec(process)).unwrap_err() {
            Error::Refused { kind, message } => (kind, message),
            other => panic!("{other}"),
        }
    };
    let (kind, message) = attempt("missing");
    assert!(
        kind == Failure::NotFound && message.contains("missing"),
        "{message}"
    );
    let (kind, message) = attempt("/plain");
    assert!(
        kind == Failure::Permission && message.contains("/plain"),
        "{message}"
    );
    let unknown = guest
        .ask(&Request::Signal {
            process: "nobody".into(),
            signal: 1,
            all: false,
        })
        .unwrap_err();
    assert!(unknown.to_string().contains("nobody"), "{unknown}");
    // Noise ends its own connection and nothing else.
    let mut noise = guest.connect();
    noise
        .write_all(&[9, 0, 0, 0, VERSION, 200, 1, 2, 3, 4, 5, 6, 7])
        .unwrap();
    assert!(matches!(
        client::receive(&mut noise).unwrap_err(),
        Error::Refused {
            kind: Failure::Invalid,
            ..
        }
    ));
    drop(guest.connect());
    let mut half = guest.connect();
    half.write_all(&[9, 0]).unwrap();
    drop(half);
    assert_eq!(
        guest
            .ask(&Request::Signal {
                process: String::new(),
                signal: 9,
                all: false
            })
            .unwrap(),
        Reply::Done
    );
    assert_eq!(exit(&mut first).signal, 9);
}

#[test]
fn a_start_that_fails_says_at_which_mount() {
    let Some(guest) = Guest::start() else { return };
    let mut start = container("true");
    start.process.stdout = false;
    start.mounts.push(mount("nosuchfs", "/x", ""));
    let error = guest.ask(&Request::Start(start)).unwrap_err().to_string();
    assert!(
        error.contains("mount /x") && error.contains("nosuchfs"),
        "{error}"
    );
}

#[test]
fn mounts_come_and_go_while_it_runs() {
    let Some(guest) = Guest::start() else { return };
    let mut first = guest
        .begin(&Request::Start({
            let mut start = container(
                "while ! test -e /late/x; do sleep 0.01; done; touch /seen; while test -e /late/x; do sleep 0.01; done",
            );
            start.process.stdout = false;
            start
        }))
        .unwrap();
    let volume = Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        target: "/late".into(),
        ..Mount::default()
    };
    assert_eq!(guest.ask(&Request::Mount(volume)).unwrap(), Reply::Done);
    let mut exec = guest
        .begin(&Request::Exec({
            let mut process = process(
                "m",
                "mount | grep -q 'on /late' && touch /late/x && while ! test -e /seen; do sleep 0.01; done",
            );
            process.stdout = false;
            process
        }))
        .unwrap();
    assert_eq!(exit(&mut exec), status(0));
    let missing = guest
        .ask(&Request::Unmount {
            target: "/nowhere".into(),
        })
        .unwrap_err();
    assert!(missing.to_string().contains("/nowhere"), "{missing}");
    let late = Request::Unmount {
        target: "/late".into(),
    };
    assert_eq!(guest.ask(&late).unwrap(), Reply::Done);
    assert_eq!(exit(&mut first), status(0));
}

#[test]
fn the_network_is_set_up_and_shutdown_ends_everything() {
    let Some(mut guest) = Guest::start() else { return };
    let mut first = guest
        .begin(&Request::Start({
            let mut start = container("sleep 100");
            start.process.stdout = false;
            start
        }))
        .unwrap();
    // A card of this namespace's own.
    let made = Command::new("nsenter")
        .args([
            "-n",
            "-t",
            &guest.child.id().to_string(),
            "ip",
            "link",
            "add",
            "v0",
            "address",
            "02:00:00:00:00:07",
        ])
        .args(["type", "veth", "peer", "name", "v1"])
        .status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: it takes nsenter and ip");
        return;
    }
    let exec = |script: &str| {
        let mut output = guest.stream("n", 1);
        let mut connection = guest.begin(&Request::Exec(process("n", script))).unwrap();
        let said = text(&mut output);
        (said, exit(&mut connection))
    };
    assert_eq!(exec("ip link set v1 up").1, status(0));
    let hardware = vec![2, 0, 0, 0, 0, 7];
    let address = |bytes: &[u8], prefix| Address {
        address: bytes.to_vec(),
        prefix,
    };
    let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let network = Network {
        interfaces: vec![Interface {
            hardware,
            name: "eth0".into(),
            mtu: 1400,
            addresses: vec![address(&[10, 9, 8, 2], 24), address(&v6, 64)],
        }],
        routes: vec![Route {
            destination: address(&[0, 0, 0, 0], 0),
            gateway: vec![10, 9, 8, 1],
            ..Route::default()
        }],
        dns: true,
        ..Network::default()
    };
    assert_eq!(
        guest.ask(&Request::Network(network.clone())).unwrap(),
        Reply::Done
    );
    // Twice is as once.
    assert_eq!(guest.ask(&Request::Network(network)).unwrap(), Reply::Done);
    let (said, _) = exec("ip addr show eth0; ip route; ip link show lo");
    for expected in [
        "mtu 1400",
        "10.9.8.2/24 brd 10.9.8.255",
        "fd00::2/64",
        "default via 10.9.8.1",
        "LOOPBACK,UP",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let unknown = Network {
        interfaces: vec![Interface {
            hardware: vec![2, 0, 0, 0, 0, 9],
            ..Interface::default()
        }],
        ..Network::default()
    };
    let error = guest.ask(&Request::Network(unknown)).unwrap_err().to_string();
    assert!(error.contains("02:00:00:00:00:09"), "{error}");

    assert_eq!(
        guest.ask(&Request::Shutdown { restart: false }).unwrap(),
        Reply::Done
    );
    assert_eq!(exit(&mut first).signal, 9);
    assert!(guest.child.wait().unwrap().success());
}

#[test]
fn processes_that_end_at_once_are_not_missed() {
    let Some(guest) = Guest::start() else { return };
    let quiet = |name: &str, script: &str| Process {
        stdout: false,
        ..process(name, script)
    };
    let start = Start {
        process: quiet("", "sleep 100"),
        ..container("")
    };
    let _first = guest.begin(&Request::Start(start)).unwrap();
    let guest = &guest;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for round in 0..25 {
                    let request =
                        Request::Exec(quiet(&format!("{thread}/{round}"), &format!("exit {round}")));
                    let mut connection = guest.begin(&request).unwrap();
                    assert_eq!(exit(&mut connection), status(round));
                }
            });
        }
    });
}
