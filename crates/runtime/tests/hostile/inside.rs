//! What runs in the containers. Each probe prints `ESCAPED …` when it got where it must not, and `contained` at its end.

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

/// Never returns.
pub fn main(arguments: &[String]) -> ! {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["nothing"] => {}
        ["sleep"] => std::thread::sleep(std::time::Duration::from_secs(60)),
        ["mounts"] => print!("{}", std::fs::read_to_string("/proc/self/mountinfo").unwrap()),
        ["overwrite", fd] => overwrite(fd),
        ["directory"] => directory(),
        ["release-agent"] => release_agent(),
        ["masked", paths @ ..] => masked(paths),
        ["streams"] => streams(),
        // As a program of the host's, or as the interpreter of a script.
        ["outside", ..] => println!("ESCAPED: this is the host's program"),
        [script] if script.starts_with("/script") => println!("ESCAPED: this is the host's interpreter"),
        ["stop-others"] => stop_others(),
        ["reopen"] => reopen(),
        ["oom-score", wanted] => {
            assert_eq!(
                std::fs::read_to_string("/proc/self/oom_score_adj")
                    .unwrap()
                    .trim(),
                *wanted
            )
        }
        ["exit", code] => std::process::exit(code.parse().unwrap()),
        ["home"] => println!("HOME={}", std::env::var("HOME").unwrap()),
        ["open", numbers @ ..] => open(numbers),
        ["sysctl"] => println!(
            "forward={}",
            std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")
                .unwrap()
                .trim()
        ),
        other => panic!("{other:?} is no probe"),
    }
    println!("contained");
    std::io::stdout().flush().unwrap();
    std::process::exit(0);
}

/// CVE-2019-5736: the runtime's executable, run as an interpreter, opens itself, and a later program writes to it when
/// nobody executes it any more.
pub fn interpreter() -> ! {
    let own = std::fs::File::open("/proc/self/exe").unwrap();
    // SAFETY: fcntl with an integer argument; the descriptor is open.
    unsafe { libc::fcntl(own.as_raw_fd(), libc::F_SETFD, 0) };
    let arguments = ["/program", "inside", "overwrite"]
        .map(str::to_owned)
        .into_iter()
        .chain([own.as_raw_fd().to_string()]);
    let arguments: Vec<CString> = arguments
        .map(|argument| CString::new(argument).unwrap())
        .collect();
    let pointers: Vec<_> = arguments
        .iter()
        .map(|argument| argument.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    // SAFETY: strings and vector are NUL-terminated and outlive the call.
    unsafe { libc::execv(pointers[0], pointers.as_ptr()) };
    panic!("execute the program: {}", std::io::Error::last_os_error());
}

fn overwrite(fd: &str) {
    // While the runtime still runs, the kernel answers ETXTBSY.
    for _ in 0..40 {
        match std::fs::File::options()
            .write(true)
            .open(format!("/proc/self/fd/{fd}"))
        {
            Ok(mut file) => {
                file.write_all(b"overwritten by the container").unwrap();
                println!("ESCAPED: the runtime was overwritten");
                return;
            }
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            Err(error) => {
                println!("refused: {error}");
                return;
            }
        }
    }
}

/// CVE-2024-21626: is the working directory one of the host's?
fn directory() {
    let here = rustix::process::getcwd(Vec::new()).unwrap();
    if here.to_bytes().first() != Some(&b'/') || Path::new("../../../../../../secret-of-the-host").exists() {
        println!("ESCAPED: the working directory is {here:?}");
    }
    for fd in 3..64 {
        if let Ok(target) = std::fs::read_link(format!("/proc/self/fd/{fd}")) {
            // The listing of a directory by this very loop is not among them.
            println!("ESCAPED: descriptor {fd} is {}", target.display());
        }
    }
}

/// Stops every process that comes into the namespace.
fn stop_others() {
    let begin = std::time::Instant::now();
    while begin.elapsed().as_secs() < 60 {
        // SAFETY: kill(2) takes integers only; as the first process of its namespace this one reaches no further.
        unsafe { libc::kill(-1, libc::SIGSTOP) };
    }
}

/// Closes its terminal everywhere and opens it again.
fn reopen() {
    let null = std::fs::File::open("/dev/null").unwrap();
    println!("before");
    for stream in 0..3 {
        // SAFETY: both descriptors are open, and nobody owns those of the streams.
        unsafe { libc::dup2(null.as_raw_fd(), stream) };
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut terminal = std::fs::File::options().write(true).open("/dev/console").unwrap();
    writeln!(terminal, "after").unwrap();
    std::process::exit(7);
}

/// Are exactly these descriptors open?
fn open(numbers: &[&str]) {
    for fd in 3..64 {
        let open = Path::new(&format!("/proc/self/fd/{fd}"))
            .symlink_metadata()
            .is_ok();
        if open != numbers.contains(&fd.to_string().as_str()) {
            println!("ESCAPED: descriptor {fd}, open: {open}");
        }
    }
}

/// CVE-2022-0492: a cgroup v1 hierarchy mounted anew in namespaces of one's own has a writable `release_agent`.
fn release_agent() {
    // SAFETY: this process has one thread; only its namespaces change.
    let unshared =
        unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP) } == 0;
    std::fs::create_dir_all("/tmp/cg").unwrap();
    for controller in ["rdma", "memory", "pids", "misc"] {
        let option = CString::new(controller).unwrap();
        // SAFETY: all strings are NUL-terminated and outlive the call.
        let mounted = unsafe {
            libc::mount(
                c"cg".as_ptr(),
                c"/tmp/cg".as_ptr(),
                c"cgroup".as_ptr(),
                0,
                option.as_ptr().cast(),
            )
        };
        if mounted == 0 {
            println!("ESCAPED: mounted the {controller} hierarchy (unshared: {unshared})");
        }
    }
    for entry in std::fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .filter_map(Result::ok)
    {
        let agent = entry.path().join("release_agent");
        if agent.exists() {
            println!("ESCAPED: {} is there", agent.display());
        }
        let procs = std::fs::File::options()
            .write(true)
            .open(entry.path().join("cgroup.procs"));
        if procs.is_ok() {
            println!("ESCAPED: {} can be written to", entry.path().display());
        }
    }
}

/// CVE-2025-31133, and whether the cover of a masked file is a way to the host's null device.
fn masked(paths: &[&str]) {
    for path in paths {
        let Ok(file) = std::fs::File::open(path) else {
            println!("ESCAPED: {path} is not covered");
            continue;
        };
        let mut text = Vec::new();
        let _ = file.take(64).read_to_end(&mut text);
        if !text.is_empty() {
            println!("ESCAPED: {path} can be read");
        }
        // The mode it has: harmless where it works.
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        if rustix::fs::chmodat(rustix::fs::CWD, *path, mode, rustix::fs::AtFlags::empty()).is_ok() {
            println!("ESCAPED: the mode behind {path} can be changed");
        }
    }
}

/// Is a standard stream the host's null device?
fn streams() {
    let own = rustix::fs::stat("/dev/null").unwrap();
    let stream = rustix::fs::fstat(rustix::stdio::stdin()).unwrap();
    if (own.st_dev, own.st_ino) != (stream.st_dev, stream.st_ino) {
        println!("ESCAPED: standard input is a device node of the host");
    }
}
