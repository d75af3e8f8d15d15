//! Compiled programs in the kernel: installed in a child, with calls made under them.

use std::borrow::Cow;
use std::os::fd::AsRawFd;

use super::profile::{Action, Arg, Flag, Operator, Seccomp, Syscall};
use super::{Program, compile, default_profile, docker};
use crate::capabilities::CapSet;
use crate::sys::clone3::{Clone3, Side};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

fn rule(name: &'static str, action: Action, errno_ret: Option<u32>, args: Vec<Arg>) -> Syscall {
    Syscall {
        names: vec![Cow::Borrowed(name)],
        action,
        errno_ret,
        args,
    }
}

fn deny_list(syscalls: Vec<Syscall>) -> Seccomp {
    Seccomp {
        default_action: Action::Allow,
        default_errno_ret: None,
        architectures: Vec::new(),
        flags: None,
        listener_path: String::new(),
        listener_metadata: String::new(),
        syscalls,
    }
}

/// Forks; `child` must only make system calls, since the harness has other threads.
fn fork(child: impl FnOnce() -> i32) -> Pid {
    // SAFETY: the closures below allocate nothing: they make system calls and return a number.
    match unsafe { Clone3::new(0).call() }.unwrap() {
        // SAFETY: ends the process at once.
        Side::Child => unsafe { libc::_exit(child()) },
        Side::Parent { pid, .. } => pid,
    }
}

fn wait(pid: Pid) -> WaitStatus {
    waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap().1
}

/// Runs `call` in a child under the program, with `no_new_privs`.
fn under(program: &Program, call: impl FnOnce() -> i32) -> WaitStatus {
    wait(fork(|| {
        if rustix::thread::set_no_new_privs(true).is_err() || program.install().is_err() {
            return 200;
        }
        call()
    }))
}

/// The errno of a raw system call, 0 for success.
fn errno_of(number: libc::c_long, args: [u64; 3]) -> i32 {
    // SAFETY: the calls made here take integers, or fail before they look at a pointer.
    let ret = unsafe { libc::syscall(number, args[0], args[1], args[2]) };
    if ret >= 0 {
        return 0;
    }
    // SAFETY: this thread's errno is always there.
    unsafe { *libc::__errno_location() }
}

#[test]
fn actions() {
    let equal = |value| {
        vec![Arg {
            index: 0,
            value,
            value_two: 0,
            op: Operator::Equal,
        }]
    };
    let program = compile(&deny_list(vec![
        rule("getppid", Action::Errno, Some(libc::EDOM as u32), vec![]),
        rule("getpgid", Action::Errno, None, equal(0x1_0000_0000)),
        rule("umask", Action::KillProcess, None, vec![]),
        rule("getuid", Action::Trap, None, vec![]),
        rule("getgid", Action::KillThread, None, vec![]),
        rule("sync", Action::Trace, None, vec![]),
        rule("getsid", Action::Log, None, vec![]),
    ]))
    .unwrap();
    let errno = |number, args| under(&program, move || errno_of(number, args)).exit_status();
    assert_eq!(errno(libc::SYS_getppid, [0; 3]), Some(libc::EDOM));
    assert_eq!(errno(libc::SYS_getpgid, [0; 3]), Some(0));
    assert_eq!(
        errno(libc::SYS_getpgid, [0x1_0000_0000, 0, 0]),
        Some(libc::EPERM),
        "all 64 bits count"
    );
    assert_eq!(errno(libc::SYS_getsid, [0; 3]), Some(0));
    assert_eq!(
        errno(libc::SYS_sync, [0; 3]),
        Some(libc::ENOSYS),
        "there is no tracer"
    );
    for call in [libc::SYS_umask, libc::SYS_getuid, libc::SYS_getgid] {
        let status = under(&program, || errno_of(call, [0; 3]));
        assert_eq!(status.terminating_signal(), Some(libc::SIGSYS));
    }
}

#[test]
fn the_default_profile_holds_and_lets_programs_run() {
    let profile = default_profile(&docker::Host::current(CapSet::DEFAULT));
    let program = Program::from_bytes(&compile(&profile).unwrap().to_bytes()).unwrap();
    let errno = |number, args| under(&program, move || errno_of(number, args)).exit_status();
    assert_eq!(
        errno(libc::SYS_unshare, [libc::CLONE_NEWUTS as u64, 0, 0]),
        Some(libc::EPERM)
    );
    assert_eq!(errno(libc::SYS_keyctl, [0, u64::MAX, 0]), Some(libc::EPERM));
    assert_eq!(errno(libc::SYS_clone3, [0; 3]), Some(libc::ENOSYS));
    assert_eq!(errno(9999, [0; 3]), Some(libc::ENOSYS));
    assert_eq!(
        errno(
            libc::SYS_socket,
            [libc::AF_VSOCK as u64, libc::SOCK_STREAM as u64, 0]
        ),
        Some(libc::EPERM)
    );
    assert_eq!(
        errno(
            libc::SYS_socket,
            [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0]
        ),
        Some(0)
    );

    let argv = [
        c"/bin/sh".as_ptr(),
        c"-c".as_ptr(),
        c"set -e; ls / | wc -l >/dev/null; exit 7".as_ptr(),
        std::ptr::null(),
    ];
    let status = under(&program, || {
        // SAFETY: a NULL-terminated list of constant strings; the environment is empty.
        unsafe { libc::execve(argv[0], argv.as_ptr(), [std::ptr::null()].as_ptr()) };
        201
    });
    assert_eq!(status.exit_status(), Some(7));
}

#[test]
fn an_agent_is_notified_and_answers() {
    let program = compile(&deny_list(vec![rule("getppid", Action::Notify, None, vec![])])).unwrap();
    assert!(program.notifies());
    // The child installs the filter and waits in the call; the listener is taken from it by pidfd_getfd.
    let (mut told, tell) = std::io::pipe().unwrap();
    let tell_fd = tell.as_raw_fd();
    let pid = fork(|| {
        if rustix::thread::set_no_new_privs(true).is_err() {
            return 200;
        }
        let Ok(Some(listener)) = program.install() else {
            return 201;
        };
        let number = listener.as_raw_fd().to_le_bytes();
        // SAFETY: writes four live bytes to a pipe inherited from the parent.
        if unsafe { libc::write(tell_fd, number.as_ptr().cast(), number.len()) } != 4 {
            return 202;
        }
        errno_of(libc::SYS_getppid, [0; 3])
    });
    let mut number = [0u8; 4];
    std::io::Read::read_exact(&mut told, &mut number).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let listener = rustix::process::pidfd_getfd(
        &pidfd,
        i32::from_le_bytes(number),
        rustix::process::PidfdGetfdFlags::empty(),
    )
    .unwrap();

    // SAFETY: seccomp_notif is plain data; the kernel wants it zeroed.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SECCOMP_IOCTL_NOTIF_RECV and _SEND, include/uapi/linux/seccomp.h.
    // SAFETY: the request writes one seccomp_notif to the structure given.
    let received = unsafe { libc::ioctl(listener.as_raw_fd(), 0xc050_2100, &mut notification) };
    assert_eq!(received, 0);
    assert_eq!(i64::from(notification.data.nr), libc::SYS_getppid);
    let mut response = libc::seccomp_notif_resp {
        id: notification.id,
        val: 0,
        error: -libc::EXDEV,
        flags: 0,
    };
    // SAFETY: the request reads and writes the one seccomp_notif_resp given.
    let sent = unsafe { libc::ioctl(listener.as_raw_fd(), 0xc018_2101, &mut response) };
    assert_eq!(sent, 0);
    assert_eq!(wait(pid).exit_status(), Some(libc::EXDEV));
}

#[test]
fn flags_reach_the_kernel() {
    let mut profile = deny_list(vec![rule("getppid", Action::Errno, None, vec![])]);
    profile.flags = Some(vec![
        Flag::Log,
        Flag::SpecAllow,
        Flag::Tsync,
        Flag::WaitKillableRecv,
    ]);
    let program = compile(&profile).unwrap();
    let status = under(&program, || errno_of(libc::SYS_getppid, [0; 3]));
    assert_eq!(status.exit_status(), Some(libc::EPERM));
    profile.syscalls[0].action = Action::Notify;
    let status = under(&compile(&profile).unwrap(), || 5);
    assert_eq!(status.exit_status(), Some(5));
}

#[test]
fn without_privilege_or_no_new_privs_it_is_refused() {
    let program = compile(&deny_list(vec![])).unwrap();
    let error = std::thread::spawn(move || {
        let nobody = CapSet::EMPTY;
        crate::capabilities::Sets {
            bounding: CapSet::KNOWN,
            permitted: nobody,
            ..Default::default()
        }
        .after_user()
        .unwrap();
        program.install().unwrap_err()
    })
    .join()
    .unwrap();
    assert_eq!(error.kind(), crate::ErrorKind::Permission);
    assert!(error.to_string().contains("no_new_privs"), "{error}");
}
