//! The embedded programs, run for real.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(10);

/// Shell text that waits for signals, but not for ever: a test that fails leaves nothing running.
/// Builtins only: a shell that forks all the time can be deaf for the moment of a vfork, which is not what is tested.
const LOOP: &str = "i=0; while [ $i -lt 50000000 ]; do i=$((i+1)); done";

/// The programs as files in cargo's directory for tests, written before the first test starts a process: a
/// program that some other thread's fork still holds open for writing cannot be executed (ETXTBSY).
fn program(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("init-programs");
        fs::create_dir_all(&directory).unwrap();
        for (name, bytes, mode) in [
            ("init", vessel_init::INIT, 0o755),
            ("hello", vessel_init::HELLO, 0o755),
            ("true", vessel_init::TRUE, 0o755),
            ("script", b"echo \"script $1\"; exit 9\n", 0o755),
            ("data", b"no program\n", 0o644),
        ] {
            // Renamed into place: another run of these tests may be executing the one that is there.
            let new = directory.join(format!("{name}.{}", std::process::id()));
            fs::write(&new, bytes).unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
            fs::rename(&new, directory.join(name)).unwrap();
        }
        directory
    });
    directory.join(name)
}

fn init(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("init"));
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    init(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Starts `init` with a shell script that prints "ready" when signals may come.
fn start(flags: &[&str], script: &str) -> Child {
    let mut child = init(flags)
        .args(["--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready\n");
    child
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn wait(mut child: Child) -> (Option<i32>, String) {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let pids = children(child.id()).into_iter().map(|(pid, _)| pid);
            let states: Vec<String> = pids
                .chain([child.id().to_string()])
                .map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default())
                .collect();
            child.kill().unwrap();
            panic!("init did not end:\n{}", states.join("\n"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The children of a process with their states ('S', 'Z', ...).
fn children(pid: u32) -> Vec<(String, char)> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    list.split_whitespace()
        .filter_map(|child| {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
            Some((child.to_owned(), stat.rsplit(") ").next()?.chars().next()?))
        })
        .collect()
}

#[test]
fn programs_are_small_and_static() {
    for bytes in [vessel_init::INIT, vessel_init::HELLO, vessel_init::TRUE] {
        assert!(bytes.len() < 16 * 1024);
        assert_eq!(&bytes[..4], b"\x7fELF");
        // e_type 2: an executable at a fixed address, so there is no loader and nothing to relocate.
        assert_eq!(bytes[16], 2);
    }
}

#[test]
fn hello_greets_and_succeeds() {
    let output = Command::new(program("hello")).env_clear().output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(text.contains(&format!("on host \"{}\"", host.trim())), "{text}");
    assert!(text.contains("vessel run -it"), "{text}");
}

#[test]
fn true_succeeds() {
    assert!(Command::new(program("true")).status().unwrap().success());
}

#[test]
fn the_exit_status_is_passed_on() {
    for code in [0, 1, 42, 255] {
        assert_eq!(
            run(&["--", "sh", "-c", &format!("exit {code}")]).status.code(),
            Some(code)
        );
    }
}

#[test]
fn death_by_a_signal_is_128_and_its_number() {
    assert_eq!(run(&["sh", "-c", "kill -KILL $$"]).status.code(), Some(137));
    assert_eq!(run(&["sh", "-c", "kill -SEGV $$"]).status.code(), Some(139));
}

#[test]
fn arguments_and_environment_arrive_unchanged() {
    let output = init(&[
        "-g",
        "--",
        "sh",
        "-c",
        "echo \"$0|$1|$2|$GREETING\"",
        "-g",
        "--",
        "a b",
    ])
    .env("GREETING", "hi there")
    .output()
    .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "-g|--|a b|hi there\n");
}

#[test]
fn a_program_that_is_missing_gives_127_and_a_sentence() {
    for name in ["no-such-program", "/no/such/program", ""] {
        let output = run(&["--", name]);
        assert_eq!(output.status.code(), Some(127));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            text.contains(&format!("cannot run \"{name}\": no such program")),
            "{text}"
        );
    }
}

#[test]
fn a_file_that_is_no_program_gives_126() {
    // Root may execute nothing that has no execute bit at all.
    let output = run(&[program("data").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(126));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("permission denied")
    );
}

#[test]
fn a_script_without_interpreter_line_is_run_by_the_shell() {
    let output = run(&["--", program("script").to_str().unwrap(), "argument"]);
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(output.stdout, b"script argument\n");
}

#[test]
fn the_path_is_searched_in_order() {
    let directory = program("script").parent().unwrap().display().to_string();
    for (path, code) in [
        (format!("/nowhere:{directory}:/bin"), 0),
        ("/nowhere".to_owned(), 127),
        // One directory has a file that cannot be executed, none has one that can.
        (format!("/nowhere:{directory}"), 126),
    ] {
        let name = if code == 126 { "data" } else { "true" };
        let status = init(&["--", name])
            .env("PATH", &path)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(code), "PATH={path}");
    }
    let status = init(&["--", "sh", "-c", "exit 5"]).env_clear().status().unwrap();
    assert_eq!(
        status.code(),
        Some(5),
        "without PATH the usual directories are searched"
    );
}

#[test]
fn wrong_use_gives_125() {
    for arguments in [&[][..], &["--"], &["-g"], &["-x", "true"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}");
        assert!(
            String::from_utf8(output.stderr)
                .unwrap()
                .contains("usage: init [-g]")
        );
    }
}

#[test]
fn signals_reach_the_program() {
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::USR1, "USR1"),
        (Signal::WINCH, "WINCH"),
        (Signal::CONT, "CONT"),
        (Signal::TSTP, "TSTP"),
    ] {
        let script = format!("trap 'echo got {name}; exit 33' {name}; echo ready; {LOOP}");
        let child = start(&[], &script);
        send(&child, signal);
        assert_eq!(wait(child), (Some(33), format!("got {name}\n")));
    }
}

#[test]
fn a_program_that_does_not_handle_a_signal_dies_of_it() {
    let child = start(&[], "echo ready; exec sleep 60");
    send(&child, Signal::TERM);
    assert_eq!(wait(child).0, Some(143));
}

#[test]
fn signals_reach_the_whole_group_only_with_g() {
    // The background shell tells whether it got the signal; the main one waits until it has had time to.
    let script = |after: &str| {
        format!(
            "trap 'echo first; {after}' TERM; \
             (trap 'echo second; exit' TERM; echo ready; {LOOP}) & \
             {LOOP}"
        )
    };
    let child = start(&["-g"], &script("wait; exit 0"));
    send(&child, Signal::TERM);
    let (code, text) = wait(child);
    assert_eq!(code, Some(0));
    assert!(text.contains("first") && text.contains("second"), "{text}");

    let child = start(&[], &script("sleep 0.3; kill -KILL $!; exit 0"));
    send(&child, Signal::TERM);
    assert_eq!(wait(child), (Some(0), "first\n".to_owned()));
}

#[test]
fn orphans_are_reaped() {
    let child = start(
        &[],
        "(sleep 0.2 & echo $! >&3) 3>/dev/null; echo ready; exec sleep 60",
    );
    let init = child.id();
    let orphan = until("the orphan comes to init", || {
        let found = children(init);
        (found.len() == 2).then(|| found[1].0.clone())
    });
    until("the orphan is gone, not a zombie", || {
        let found = children(init);
        (found.len() == 1 && !PathBuf::from(format!("/proc/{orphan}")).exists()).then_some(())
    });
    send(&child, Signal::TERM);
    assert_eq!(wait(child).0, Some(143));
}

#[test]
fn many_orphans_at_once_leave_no_zombie() {
    let child = start(
        &[],
        "for i in $(seq 200); do (sleep 0.1 &) ; done; sleep 0.5; echo ready; exec sleep 60",
    );
    until("all are reaped", || {
        (children(child.id()).len() == 1).then_some(())
    });
    send(&child, Signal::TERM);
    assert_eq!(wait(child).0, Some(143));
}

#[test]
fn works_as_pid_1_of_a_pid_namespace() {
    // PID 1 is shielded from signals it has no handler for; forwarding must work all the same.
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child"])
        .arg(program("init"))
        .args(["--", "sh", "-c"])
        .arg(format!("trap 'exit 44' TERM; echo \"parent $PPID\"; {LOOP}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = [0; 9];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"parent 1\n");
    let init = children(child.id())[0].0.parse().unwrap();
    kill_process(Pid::from_raw(init).unwrap(), Signal::TERM).unwrap();
    assert_eq!(wait(child).0, Some(44));
}

#[test]
fn on_a_terminal_the_program_has_the_foreground() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    rustix::io::ioctl_fionbio(&master, true).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let terminal = || -> OwnedFd {
        File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap()
            .into()
    };
    // Reading from the terminal stops a background process; the interrupt character must reach the
    // program and only the program.
    let mut command = init(&[
        "--",
        "sh",
        "-c",
        &format!("read word; echo got $word; trap 'exit 21' INT; echo now; {LOOP}"),
    ]);
    command.stdin(terminal()).stdout(terminal()).stderr(terminal());
    // SAFETY: setsid and one ioctl are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
    let child = command.spawn().unwrap();
    drop(command);

    let mut master = File::from(master);
    let mut seen = String::new();
    let mut read_until = |master: &mut File, what: &str| {
        let mut buffer = [0; 256];
        until(what, || {
            // Nothing to read is an error too: the master does not block.
            let count = master.read(&mut buffer).unwrap_or(0);
            seen.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            seen.contains(what).then_some(())
        });
    };
    master.write_all(b"word\n").unwrap();
    read_until(&mut master, "got word");
    read_until(&mut master, "now");
    master.write_all(b"\x03").unwrap();
    assert_eq!(wait(child).0, Some(21));
}
