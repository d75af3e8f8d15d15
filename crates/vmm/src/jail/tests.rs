//! Processes in jail: this test program, started again.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::filter::{self, Kind};
use super::{Jail, report};

const VARIABLE: &str = "VESSEL_TEST_JAIL";

/// What happens inside: a child is this test with the variable set.
#[test]
#[ignore = "the inside of the other tests"]
fn inside() {
    let Ok(what) = std::env::var(VARIABLE) else {
        return;
    };
    // SAFETY: the parent left it open for us.
    let socket = unsafe { BorrowedFd::borrow_raw(3) };
    let files = std::fs::read_dir("/").unwrap().count();
    assert!(files > 0);
    Jail::default().enter().unwrap();
    let who = format!(
        "{:?} {}",
        rustix::thread::capabilities(None),
        rustix::process::getuid().as_raw()
    );
    report::install(socket).unwrap();
    filter::install(Kind::Machine { makes_code: false }).unwrap();
    let worked = std::thread::spawn(|| {
        // Threads, memory, clocks, pairs of sockets.
        let large = vec![1u8; 10 << 20];
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        rustix::io::write(&ours, &large[..5]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
        rustix::io::read(&theirs, &mut [0; 10]).unwrap()
    });
    assert_eq!(worked.join().unwrap(), 5);
    match what.as_str() {
        "open" => drop(std::fs::File::open("/etc/passwd")),
        "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "execute" => drop(Command::new("/bin/true").exec()),
        "panic" => panic!("a device's defect"),
        _ => {
            rustix::net::send(socket, who.as_bytes(), rustix::net::SendFlags::empty()).unwrap();
        }
    }
}

/// Runs it; how it ended, and what it said last.
fn run(what: &str) -> (ExitStatus, String) {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "jail::tests::inside", "--ignored", "--test-threads=1"])
        .env(VARIABLE, what);
    let number = theirs.as_raw_fd();
    // SAFETY: between fork and exec only a descriptor is duplicated.
    unsafe {
        command.pre_exec(move || match libc::dup2(number, 3) {
            3 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let output = command.output().unwrap();
    drop::<OwnedFd>(theirs);
    let mut line = [0; 4096];
    let (length, _) = rustix::net::recv(&ours, &mut line, RecvFlags::DONTWAIT).unwrap_or((0, 0));
    (
        output.status,
        String::from_utf8_lossy(&line[..length]).into_owned(),
    )
}

#[test]
fn a_jailed_process_ends_with_a_report_when_it_leaves_its_list() {
    for (what, number) in [
        ("open", libc::SYS_openat),
        ("socket", libc::SYS_socket),
        ("execute", libc::SYS_execve),
    ] {
        let (status, line) = run(what);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{what}: {status} {line}");
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["event"], "failed");
        let message = event["message"].as_str().unwrap();
        assert!(message.contains(&format!("system call {number},")), "{message}");
    }
}

#[test]
fn a_panic_ends_the_process_with_a_report() {
    let (status, line) = run("panic");
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status} {line}");
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(event["message"].as_str().unwrap().contains("a device's defect"));
}

#[test]
fn a_jailed_process_is_nobody() {
    let (status, line) = run("nothing");
    // The harness prints its result, for which it has the descriptor.
    assert!(status.success(), "{status} {line}");
    assert!(line.contains("effective: CapabilitySet(0x0)"), "{line}");
    assert!(line.ends_with(" 65534"), "{line}");
}
