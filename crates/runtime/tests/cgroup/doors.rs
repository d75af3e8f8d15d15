//! The ways a process gets into a cgroup.

use std::os::unix::process::CommandExt;

use rustix::process::{Pid, Signal};
use vessel_runtime::cgroup::Cgroup;

use crate::harness::{HIERARCHIES, Scratch};
use crate::helper::Actor;

/// Every line of `/proc/PID/cgroup` of a hierarchy that is mounted.
fn is_in_every_hierarchy(pid: Pid, scratch: &Scratch) {
    let places = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_pid())).unwrap();
    for hierarchy in HIERARCHIES.list() {
        let wanted = format!(":{}:{}", hierarchy.label, scratch.path);
        assert!(
            places.lines().any(|line| line.ends_with(&wanted)),
            "{wanted} is not in {places}"
        );
    }
}

#[test]
fn a_process_gets_in_by_every_door() {
    let scratch = Scratch::new("doors", "{}");
    let actor = Actor::within(&scratch, "sleep");
    is_in_every_hierarchy(actor.pid(), &scratch);

    let again = Cgroup::open(&HIERARCHIES, &scratch.path).unwrap();
    let mut command = Actor::command("sleep");
    // SAFETY: moving itself makes system calls on descriptors that are open, with buffers on the stack.
    unsafe {
        command.pre_exec(move || {
            again
                .attach_self(false)
                .map_err(|_| std::io::ErrorKind::Other.into())
        });
    }
    is_in_every_hierarchy(Actor::start(command).pid(), &scratch);

    let Some(fd) = scratch.get().clone_into_fd() else {
        println!("cgroup: SKIPPED, no v2 hierarchy to clone into");
        return;
    };
    use vessel_runtime::sys::clone3::{Clone3, Side};
    // SAFETY: the child calls nothing but pause(2), which is async-signal-safe.
    let child = match unsafe { Clone3::new(0).cgroup(fd).call() }.unwrap() {
        Side::Child => loop {
            // SAFETY: no arguments, no memory.
            unsafe { libc::pause() };
        },
        Side::Parent { pid, .. } => pid,
    };
    scratch.get().attach_rest(child).unwrap();
    is_in_every_hierarchy(child, &scratch);
    scratch.get().kill_all(Signal::KILL).unwrap();
    rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).unwrap();
}
