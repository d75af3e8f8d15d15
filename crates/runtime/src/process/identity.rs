//! The last steps: limits, filter, identity, program.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::AsRawFd;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::channel::{Channel, FromChild, ToChild};
use super::environment::{cannot_execute, home};
use crate::error::Context;
use crate::spec::{CapabilityLists, IoPriority, Personality, Process, Scheduler};
use crate::{Error, Result, capabilities, rlimits, seccomp};

/// Who the process becomes and what it runs.
pub(super) struct Identity<'a> {
    pub process: &'a Process,
    /// The program's file.
    pub program: CString,
    /// Whether this process is in its working directory already.
    pub entered: bool,
    pub seccomp: Option<&'a seccomp::Program>,
    pub personality: Option<&'a Personality>,
    /// For warnings, the seccomp listener and the announcement.
    pub channel: &'a Channel,
    /// What comes between the preparation and the program.
    pub gate: Gate<'a>,
}

/// What is done before the program is executed: waiting for `start`, hooks.
pub(super) struct Gate<'a> {
    /// Whether it waits for `start`: the parent is told that all is ready before, and is gone after.
    pub waits: bool,
    /// Does it.
    pub pass: &'a dyn Fn() -> Result<()>,
}

/// Becomes root of the user namespace this process is in.
pub(super) fn become_root() -> Result<()> {
    rustix::thread::set_thread_groups(&[])
        .or_else(|errno| match errno {
            // setgroups is denied in user namespaces made without privilege.
            Errno::PERM => Ok(()),
            errno => Err(errno),
        })
        .context(|| "leave the host's groups")?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .context(|| "become root's group in the user namespace (is 0 mapped?)")?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .context(|| "become root in the user namespace (is 0 mapped?)")
}

/// Takes on the identity and executes the program. The runtime's descriptors are closed already, but for the channel and
/// the socket of `start`: the program's path is looked up in the container.
pub(super) fn execute(identity: Identity<'_>) -> Result<Infallible> {
    let Identity {
        process,
        program,
        entered,
        seccomp,
        personality,
        channel,
        gate,
    } = identity;
    // The filter is installed as late as can be. One that notifies a listener has to be there while the parent, which
    // takes the listener, still is: before the wait, not after it.
    let early = gate.waits && seccomp.is_some_and(seccomp::Program::notifies);
    let channel = (!gate.waits || early).then_some(channel);
    if !early {
        (gate.pass)()?;
    }
    let warn = |warning: String| {
        channel.map_or(Ok(()), |channel| {
            channel.tell_parent(&FromChild::Warning(warning))
        })
    };
    let mut limits = Vec::with_capacity(process.rlimits.len());
    for limit in &process.rlimits {
        limits.push(rlimits::Limit::new(&limit.kind, limit.soft, limit.hard)?);
    }
    for lowered in rlimits::apply(None, &limits)? {
        warn(lowered.to_string())?;
    }
    if let Some(priority) = &process.io_priority {
        set_io_priority(priority)?;
    }
    if let Some(scheduler) = &process.scheduler {
        set_scheduler(scheduler)?;
    }
    if let Some(personality) = personality {
        set_personality(personality)?;
    }
    write_labels(process)?;
    let env = environment(process)?;
    let mut arguments = Vec::with_capacity(process.args.len());
    for argument in &process.args {
        arguments.push(c_string(argument)?);
    }

    // What a filter might forbid and needs no privilege comes before it.
    if entered {
        check_directory(process)?;
    }
    rustix::process::umask(Mode::from_raw_mode(process.user.umask.unwrap_or(0o022)));

    // Without no_new_privs, installing a filter needs the privilege that is about to go.
    if !process.no_new_privileges {
        install(seccomp, channel)?;
    } else {
        rustix::thread::set_no_new_privs(true).context(|| "set no_new_privs")?;
    }
    let none = CapabilityLists::default();
    let lists = process.capabilities.as_ref().unwrap_or(&none);
    let (caps, unknown) = capabilities::Sets::from_names(
        &lists.bounding,
        &lists.effective,
        &lists.permitted,
        &lists.inheritable,
        &lists.ambient,
    );
    if !unknown.is_empty() {
        warn(format!(
            "ignoring unknown or unavailable capabilities: [{}]",
            unknown.join(" ")
        ))?;
    }
    caps.before_user()?;
    let groups: Vec<Gid> = process
        .user
        .additional_gids
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    match rustix::thread::set_thread_groups(&groups) {
        Err(Errno::PERM) if groups.is_empty() => {}
        other => other.context(|| "set the supplementary groups")?,
    }
    let (uid, gid) = (Uid::from_raw(process.user.uid), Gid::from_raw(process.user.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).context(|| {
        format!(
            "become group {} (is it mapped in the user namespace?)",
            process.user.gid
        )
    })?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).context(|| {
        format!(
            "become user {} (is it mapped in the user namespace?)",
            process.user.uid
        )
    })?;
    if !entered {
        enter_directory(process)?;
    }
    let missing = caps.after_user()?;
    if !missing.is_empty() {
        warn(format!(
            "the engine does not have the capabilities {} to give: they were left out",
            missing.names().join(", ")
        ))?;
    }
    if let Some(channel) = channel
        && !early
    {
        channel.tell_parent(&FromChild::Ready)?;
    }
    if process.no_new_privileges {
        install(seccomp, channel)?;
    }
    if early {
        (gate.pass)()?;
    }
    reset_signals();
    let errno = exec(&program, &arguments, &env);
    Err(cannot_execute(&process.args[0], errno))
}

/// A program starts with every signal at its default and none blocked, whatever this process was started with.
pub(super) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL runs no code of ours; numbers that cannot be changed are refused without effect.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero set is made empty before use; only this thread's mask changes.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

fn exec(program: &CString, arguments: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect::<Vec<_>>()
    };
    let (argv, envp) = (pointers(arguments), pointers(env));
    // SAFETY: the program is a NUL-terminated string, both vectors end with a null pointer and point to such strings;
    // all outlive the call, which returns only when it failed.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn install(program: Option<&seccomp::Program>, channel: Option<&Channel>) -> Result<()> {
    let Some(program) = program else { return Ok(()) };
    let listener = program.install()?;
    if let Some(listener) = listener {
        let Some(channel) = channel else {
            return Err(Error::invalid(
                "a seccomp profile with SCMP_ACT_NOTIFY cannot be used where nobody can listen",
            ));
        };
        channel.tell_parent(&FromChild::SeccompListener(listener.as_raw_fd()))?;
        let ToChild::Go(_) = channel.hear_parent()?;
    }
    Ok(())
}

fn enter_directory(process: &Process) -> Result<()> {
    rustix::process::chdir(&process.cwd)
        .context(|| format!("enter the working directory {}", process.cwd.display()))?;
    check_directory(process)
}

/// Makes sure of where this process is: a directory of the host, reached through a descriptor the runtime holds, is not
/// below the root and is refused (CVE-2024-21626).
fn check_directory(process: &Process) -> Result<()> {
    let here = rustix::process::getcwd(Vec::new())
        .context(|| format!("find the working directory {}", process.cwd.display()))?;
    if here.to_bytes().first() != Some(&b'/') {
        return Err(Error::invalid(format!(
            "the working directory {} lies outside of the container's root",
            process.cwd.display()
        )));
    }
    Ok(())
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid(format!("{text:?} contains a NUL character")))
}

/// The environment: of a name that occurs twice the last one counts, as in runc; `HOME` is filled in.
fn environment(process: &Process) -> Result<Vec<CString>> {
    let name = |pair: &str| pair.find('=').unwrap_or(pair.len());
    let mut seen = std::collections::HashSet::with_capacity(process.env.len() + 1);
    let mut env = Vec::with_capacity(process.env.len() + 1);
    for pair in process.env.iter().rev() {
        if pair != "HOME=" && seen.insert(&pair[..name(pair)]) {
            env.push(c_string(pair)?);
        }
    }
    env.reverse();
    if !seen.contains("HOME") {
        env.push(c_string(&format!("HOME={}", home(process.user.uid)))?);
    }
    Ok(env)
}

fn set_io_priority(priority: &IoPriority) -> Result<()> {
    let class: i32 = match priority.class.as_str() {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        other => {
            return Err(Error::invalid(format!(
                "process.ioPriority.class {other:?} is not a class"
            )));
        }
    };
    let level = i32::try_from(priority.priority)
        .ok()
        .filter(|level| (0..=7).contains(level))
        .ok_or_else(|| {
            Error::invalid(format!(
                "process.ioPriority.priority {} is outside 0 to 7",
                priority.priority
            ))
        })?;
    const WHO_PROCESS: i32 = 1;
    // SAFETY: ioprio_set takes integers only.
    if unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, (class << 13) | level) } < 0 {
        return Err(std::io::Error::last_os_error()).context(|| "set the I/O priority");
    }
    Ok(())
}

/// `struct sched_attr`, first version (48 bytes).
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

fn set_scheduler(scheduler: &Scheduler) -> Result<()> {
    let policy = match scheduler.policy.as_str() {
        "SCHED_OTHER" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        other => {
            return Err(Error::invalid(format!(
                "process.scheduler.policy {other:?} is not a policy"
            )));
        }
    };
    let mut flags = 0;
    for flag in &scheduler.flags {
        flags |= match flag.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 0x01,
            "SCHED_FLAG_RECLAIM" => 0x02,
            "SCHED_FLAG_DL_OVERRUN" => 0x04,
            "SCHED_FLAG_KEEP_POLICY" => 0x08,
            "SCHED_FLAG_KEEP_PARAMS" => 0x10,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
            other => {
                return Err(Error::invalid(format!(
                    "process.scheduler.flags: {other:?} is not a flag"
                )));
            }
        };
    }
    let attributes = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy,
        flags,
        nice: scheduler.nice,
        priority: u32::try_from(scheduler.priority)
            .map_err(|_| Error::invalid("process.scheduler.priority must not be negative"))?,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    };
    // SAFETY: `attributes` is a complete sched_attr whose size field is right; it is only read.
    if unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(&attributes), 0) } < 0 {
        return Err(std::io::Error::last_os_error())
            .context(|| format!("set the scheduling policy {}", scheduler.policy));
    }
    Ok(())
}

fn set_personality(personality: &Personality) -> Result<()> {
    let domain: libc::c_ulong = match personality.domain.as_str() {
        "LINUX" => 0,
        "LINUX32" => 8,
        other => {
            return Err(Error::invalid(format!(
                "linux.personality.domain {other:?} is not LINUX or LINUX32"
            )));
        }
    };
    if !personality.flags.is_empty() {
        return Err(Error::invalid(
            "linux.personality.flags: the specification defines none",
        ));
    }
    // SAFETY: personality takes an integer only.
    if unsafe { libc::personality(domain) } < 0 {
        return Err(std::io::Error::last_os_error()).context(|| "set the execution domain");
    }
    Ok(())
}

/// AppArmor and SELinux labels for the program, written through a private /proc (CVE-2025-52881).
fn write_labels(process: &Process) -> Result<()> {
    let mut labels = Vec::new();
    if !process.apparmor_profile.is_empty() && process.apparmor_profile != "unconfined" {
        labels.push((
            "AppArmor profile",
            "apparmor/exec",
            format!("exec {}", process.apparmor_profile),
        ));
    }
    if !process.selinux_label.is_empty() {
        labels.push(("SELinux label", "exec", process.selinux_label.clone()));
    }
    if labels.is_empty() {
        return Ok(());
    }
    let proc = crate::rootfs::private_proc()?;
    let own = rustix::thread::gettid().as_raw_nonzero();
    for (what, file, value) in labels {
        let path = format!("self/task/{own}/attr/{file}");
        let file = rustix::fs::openat(
            &proc,
            path,
            rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
            Mode::empty(),
        )
        .context(|| format!("this kernel takes no {what}: remove it from the configuration"))?;
        rustix::io::write(&file, value.as_bytes()).context(|| format!("set the {what} {value:?}"))?;
    }
    Ok(())
}
