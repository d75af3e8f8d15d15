//! PID 1 of containers started with `--init`.
//!
//! `init [-g] [--] PROGRAM [ARGUMENT...]` starts PROGRAM (searched in `PATH` as execvp(3) does), passes
//! every signal it receives on to it, reaps what is orphaned to it, and exits as PROGRAM does: with its
//! status, or 128 + N when signal N killed it. With `-g` signals go to PROGRAM's whole process group.
//! PROGRAM gets a process group of its own and, on a terminal, the foreground.
//!
//! A program that cannot be found ends in status 127, one that cannot be executed in 126, a mistaken
//! command line in 125.
//!
//! Signals stay blocked here and are taken one by one with rt_sigtimedwait(2): nothing is lost between
//! two of them, and the kernel does not drop those whose default action PID 1 would ignore.

#![no_std]
#![no_main]

mod sys;

use core::ffi::{CStr, c_char};
use sys::{Args, EACCES, EAGAIN, EINTR, ENOENT, ENOEXEC, ENOTDIR, exit, syscall, write, write_number};

const SIGCHLD: i32 = 17;
const SIGTTIN: i32 = 21;
const SIGTTOU: i32 = 22;

/// Signals that report a fault of the receiving process; they are never forwarded.
const FAULTS: [i32; 7] = [4, 5, 6, 7, 8, 11, 31];

const SIG_BLOCK: usize = 0;
const SIG_SETMASK: usize = 2;
const SIG_DFL: usize = 0;
const SIG_IGN: usize = 1;

const WNOHANG: usize = 1;
const TIOCSPGRP: usize = 0x5410;
const PR_SET_CHILD_SUBREAPER: usize = 36;

/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PATH_MAX: usize = 4096;

/// The kernel's `struct sigaction`.
#[repr(C)]
struct SigAction {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

#[unsafe(no_mangle)]
fn main(args: Args) -> i32 {
    let mut program = 1;
    let mut group = false;
    while let Some(argument) = args.get(program) {
        match argument.to_bytes() {
            b"-g" => group = true,
            b"--" => {
                program += 1;
                break;
            }
            [b'-', ..] => return usage("an option it does not have"),
            _ => break,
        }
        program += 1;
    }
    if args.get(program).is_none() {
        return usage("no program to start");
    }

    let wanted = mask_of_all_but_faults();
    let mut before = 0u64;
    sigprocmask(SIG_BLOCK, wanted, &mut before);
    // Giving the terminal away, or writing to it afterwards, must not stop PID 1.
    set_action(SIGTTIN, SIG_IGN);
    set_action(SIGTTOU, SIG_IGN);
    // Under `--pid host` this is not PID 1; orphans come here all the same.
    // SAFETY: this prctl takes one integer; on failure orphans merely go to the real PID 1.
    unsafe { syscall(157, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };

    // SAFETY: clone with SIGCHLD alone is fork: the child gets a copy of everything.
    let child = unsafe { syscall(56, SIGCHLD as usize, 0, 0, 0, 0) } as i32;
    if child < 0 {
        fail("cannot start a process", None, -child as isize);
        return 125;
    }
    if child == 0 {
        become_program(args, program, before);
    }
    // Also done by the child; whoever is first, the group exists before a signal is sent to it.
    // SAFETY: setpgid takes two process ids; it fails harmlessly once the child has executed.
    unsafe { syscall(109, child as usize, child as usize, 0, 0, 0) };
    supervise(child, group, wanted)
}

/// Forwards signals and reaps until `child` has ended; its exit status as a shell would give it.
fn supervise(child: i32, group: bool, wanted: u64) -> i32 {
    let target = if group { -child } else { child };
    loop {
        // SAFETY: a mask of eight bytes, no siginfo wanted, no time limit.
        let signal = unsafe { syscall(128, &raw const wanted as usize, 0, 0, 8, 0) };
        if signal == -EINTR || signal == -EAGAIN {
            continue;
        }
        if signal < 0 {
            fail("cannot wait for signals", None, -signal);
            return 125;
        }
        if signal as i32 == SIGCHLD {
            if let Some(status) = reap(child) {
                return status;
            }
        } else {
            // SAFETY: kill takes two integers. A failure means the program has just ended; the SIGCHLD
            // that says so is next.
            unsafe { syscall(62, target as usize, signal as usize, 0, 0, 0) };
        }
    }
}

/// Reaps all that can be reaped; the exit status of `child` if it was among them.
fn reap(child: i32) -> Option<i32> {
    let mut result = None;
    loop {
        let mut status = 0i32;
        // SAFETY: `status` is an int the kernel may write; no rusage is asked for.
        let pid = unsafe { syscall(61, usize::MAX, &raw mut status as usize, WNOHANG, 0, 0) };
        if pid == -EINTR {
            continue;
        }
        if pid <= 0 {
            return result;
        }
        if pid as i32 == child {
            let signal = status & 0x7f;
            result = Some(if signal == 0 {
                (status >> 8) & 0xff
            } else {
                128 + signal
            });
        }
    }
}

/// In the child: its own process group, the terminal, the signals as they were, then the program.
fn become_program(args: Args, program: usize, mask: u64) -> ! {
    // SAFETY: setpgid(0, 0) takes integers and concerns this process alone.
    unsafe { syscall(109, 0, 0, 0, 0, 0) };
    let own = sys::getpid();
    // Fails when stdin is no terminal or not the controlling one; then there is nothing to give.
    // SAFETY: TIOCSPGRP reads one pid_t.
    unsafe { syscall(16, 0, TIOCSPGRP, &raw const own as usize, 0, 0) };
    set_action(SIGTTIN, SIG_DFL);
    set_action(SIGTTOU, SIG_DFL);
    let mut blocked = 0;
    sigprocmask(SIG_SETMASK, mask, &mut blocked);

    let name = args.get(program).map_or(&b""[..], CStr::to_bytes);
    let error = search_and_execute(args, program, name);
    fail("cannot run", Some(name), error);
    exit(if error == ENOENT || error == ENOTDIR {
        127
    } else {
        126
    })
}

/// execvp(3); returns the error that counts when nothing could be executed.
fn search_and_execute(args: Args, program: usize, name: &[u8]) -> isize {
    let mut path = [0u8; PATH_MAX];
    if name.contains(&b'/') || name.is_empty() {
        return match join(&mut path, b"", name) {
            true => execute(args, program, &path),
            false => ENOENT,
        };
    }
    let mut result = ENOENT;
    for directory in args.env(b"PATH").unwrap_or(DEFAULT_PATH).split(|b| *b == b':') {
        if !join(&mut path, directory, name) {
            continue;
        }
        match execute(args, program, &path) {
            ENOENT | ENOTDIR => {}
            // Another directory may still have one that can be executed.
            EACCES => result = EACCES,
            error => return error,
        }
    }
    result
}

/// Puts `directory/name` and a NUL into `path`; false when it does not fit. No directory: `name` alone.
fn join(path: &mut [u8; PATH_MAX], directory: &[u8], name: &[u8]) -> bool {
    let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
    let mut bytes = directory.iter().chain(slash).chain(name).chain(&[0]);
    if directory.len() + slash.len() + name.len() + 1 > PATH_MAX {
        return false;
    }
    for slot in path.iter_mut() {
        match bytes.next() {
            Some(byte) => *slot = *byte,
            None => break,
        }
    }
    true
}

/// execve(2) of `path` with the arguments from `program` on; returns its errno. A file that is no
/// program but may be executed is given to the shell, as execvp(3) does.
fn execute(args: Args, program: usize, path: &[u8; PATH_MAX]) -> isize {
    // SAFETY: program < argc, so argv + program is a NULL-terminated array of strings; `path` ends
    // with NUL because `join` said it fits.
    let error = unsafe {
        let argv = args.argv.add(program);
        -syscall(
            59,
            path.as_ptr() as usize,
            argv as usize,
            args.envp as usize,
            0,
            0,
        )
    };
    if error != ENOEXEC {
        return error;
    }
    // argv[program - 1] exists (it is at least argv[0], init's own name) and is not needed any more:
    // the array turns into "sh", path, arguments without any memory being allocated.
    let shell = c"/bin/sh".as_ptr();
    // SAFETY: program >= 1, and this process will only execute or exit.
    unsafe {
        let argv = args.argv.add(program - 1);
        *argv = shell;
        *argv.add(1) = path.as_ptr().cast::<c_char>();
        -syscall(59, shell as usize, argv as usize, args.envp as usize, 0, 0)
    }
}

fn mask_of_all_but_faults() -> u64 {
    FAULTS
        .iter()
        .fold(u64::MAX, |mask, signal| mask & !(1 << (signal - 1)))
}

fn sigprocmask(how: usize, mask: u64, before: &mut u64) {
    // SAFETY: both masks are the kernel's eight bytes. It cannot fail with these arguments.
    unsafe {
        syscall(
            14,
            how,
            &raw const mask as usize,
            before as *mut u64 as usize,
            8,
            0,
        );
    }
}

fn set_action(signal: i32, handler: usize) {
    let action = SigAction {
        handler,
        flags: 0,
        restorer: 0,
        mask: 0,
    };
    // SAFETY: the kernel reads one SigAction; no handler function is ever installed, only SIG_IGN and
    // SIG_DFL, so no restorer is needed.
    unsafe { syscall(13, signal as usize, &raw const action as usize, 0, 8, 0) };
}

fn usage(what: &str) -> i32 {
    write(2, b"init: was given ");
    write(2, what.as_bytes());
    write(2, b"; usage: init [-g] [--] PROGRAM [ARGUMENT...]\n");
    125
}

fn fail(what: &str, subject: Option<&[u8]>, error: isize) {
    write(2, b"init: ");
    write(2, what.as_bytes());
    if let Some(subject) = subject {
        write(2, b" \"");
        write(2, subject);
        write(2, b"\"");
    }
    match error {
        ENOENT | ENOTDIR => write(
            2,
            b": no such program in this container; check the command and PATH, or the interpreter it names",
        ),
        EACCES => write(2, b": permission denied; is the file executable for this user?"),
        ENOEXEC => write(
            2,
            b": not a program for this machine, and there is no /bin/sh to run it as a script",
        ),
        other => {
            write(2, b": the kernel refused with error ");
            write_number(2, other as u32);
        }
    }
    write(2, b"\n");
}
