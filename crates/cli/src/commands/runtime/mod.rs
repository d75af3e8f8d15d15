//! `vessel runtime`: the OCI command line, for containerd, Docker and Podman (`--runtime`), with runc's options.

mod args;
mod failure;

use std::ffi::{CString, OsString};
use std::io::{IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Parser;
use rustix::process::Signal;
use vessel_runtime::oci::{self, Container, ExecOutcome, Status};
use vessel_runtime::spec::{Process, Resources};
use vessel_runtime::{Error, ErrorKind, Result};

use args::{Command, Exec, Runtime, Update};
use failure::Failures;

/// The name the protected process goes by.
const NAME: &[u8] = b"vessel-runtime";
/// The variable that tells a process, by its ID, that it was executed to be protected.
const TRIED: &str = "_VESSEL_RUNTIME_EXECUTED";

/// Runs the command and ends the process. `arguments` are those after `runtime`.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ! {
    let arguments: Vec<OsString> = arguments.collect();
    let code = run(&arguments);
    let _ = std::io::stdout().flush();
    // SAFETY: ends the process; output was flushed.
    unsafe { libc::_exit(code) }
}

fn run(arguments: &[OsString]) -> i32 {
    // Before the arguments are understood: that takes as long as much of a start does, and the protected process does it
    // again. A word too many among these costs an execution, no more.
    let starts = |word: &OsString| ["create", "run", "exec"].iter().any(|start| word == start);
    let protection = arguments.iter().any(starts).then(|| protect(arguments));
    let parsed = Runtime::try_parse_from(
        std::iter::once(OsString::from("vessel runtime")).chain(arguments.iter().cloned()),
    );
    let runtime = match parsed {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { 1 } else { 0 };
        }
    };
    let failures = Failures::new(runtime.log.as_deref(), runtime.log_format == "json");
    if matches!(
        runtime.command,
        Command::Create(_) | Command::Run(_) | Command::Exec(_)
    ) && let Err(error) = protection.unwrap_or_else(|| protect(arguments))
    {
        failures.tell(&error);
        return 1;
    }
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    match dispatch(&runtime, &|message| failures.warn(message)) {
        Ok(code) => code,
        Err(error) => {
            failures.tell(&error);
            match (&runtime.command, error.kind()) {
                (Command::Exec(_), _) => 255,
                _ => 1,
            }
        }
    }
}

/// Goes on as a process whose executable the container cannot write to (CVE-2019-5736): the same program, executed
/// through a detached read-only mount. Whether it is that already the kernel is asked; a name or a variable may come from
/// anywhere.
fn protect(arguments: &[OsString]) -> Result<()> {
    let protected = rustix::fs::statvfs("/proc/self/exe")
        .is_ok_and(|found| found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    // Where the system allows no such mount it is not tried for ever.
    if protected
        || std::env::var_os(TRIED).is_some_and(|tried| tried == std::process::id().to_string().as_str())
    {
        return Ok(());
    }
    let executable = vessel_runtime::shim::launch::own_executable()?;
    let c_string =
        |text: &[u8]| CString::new(text).map_err(|_| Error::invalid("an argument contains a NUL character"));
    let path = c_string(format!("/proc/self/fd/{}", executable.as_raw_fd()).as_bytes())?;
    let mut argv = vec![c_string(NAME)?, c_string(b"runtime")?];
    for argument in arguments {
        argv.push(c_string(argument.as_bytes())?);
    }
    let mut env = vec![c_string(format!("{TRIED}={}", std::process::id()).as_bytes())?];
    for (name, value) in std::env::vars_os().filter(|(name, _)| name != TRIED) {
        env.push(c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat())?);
    }
    let pointers = |strings: &[CString]| -> Vec<_> {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (arguments, environment) = (pointers(&argv), pointers(&env));
    // SAFETY: path, arguments and environment are NUL-terminated strings that outlive the call, both vectors end with a
    // null pointer.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Err(Error::with_source(
        ErrorKind::System,
        "execute the runtime from a protected place",
        std::io::Error::last_os_error(),
    ))
}

fn dispatch(runtime: &Runtime, warn: oci::Warn<'_>) -> Result<i32> {
    let root = runtime.root.clone().unwrap_or_else(default_root);
    let open = |id: &str| Container::open(&root, id);
    match &runtime.command {
        Command::Create(create) => {
            oci::create(&root, &create.id, &create.options(), warn)?;
        }
        Command::Run(run) => return Ok(oci::run(&root, &run.create.id, &run.options(), warn)?.unwrap_or(0)),
        Command::Start { id } => open(id)?.start()?,
        Command::State { id } => print_json(&open(id)?.state()?)?,
        Command::Kill { id, signal, all } => open(id)?.kill(parse_signal(signal)?, *all)?,
        Command::Delete { id, force } => match open(id) {
            Ok(container) => container.delete(*force)?,
            Err(error) if *force && error.kind() == ErrorKind::NotFound => {
                oci::discard_unfinished(&root, id)?;
            }
            Err(error) => return Err(error),
        },
        Command::Exec(exec) => return run_exec(&open(&exec.id)?, exec),
        Command::Ps { id, format, .. } => print_processes(&open(id)?, format == "json")?,
        Command::Pause { id } => open(id)?.pause()?,
        Command::Resume { id } => open(id)?.resume()?,
        Command::Update(update) => open(&update.id)?.update(&resources(update)?)?,
        Command::List { format, quiet } => print_list(&root, format == "json", *quiet)?,
        Command::Events { id, stats, interval } => events(&open(id)?, *stats, interval)?,
        Command::Features => print_json(&oci::features())?,
        Command::Spec { bundle } => write_template(bundle.as_deref())?,
    }
    Ok(0)
}

fn default_root() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/run/vessel/runtime");
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    own.map_or_else(
        || PathBuf::from("/run/vessel/runtime"),
        |dir| PathBuf::from(dir).join("vessel/runtime"),
    )
}

fn output(text: &str) -> Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Error::with_source(ErrorKind::System, "write to standard output", error))
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::with_source(ErrorKind::System, "encode the output", error))?;
    output(&format!("{text}\n"))
}

/// `SIGTERM`, `TERM`, `15`; also real-time signals by number.
fn parse_signal(text: &str) -> Result<Signal> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let number = name.parse::<i32>().ok().or_else(|| {
        args::SIGNALS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, n)| *n)
    });
    match number {
        // SAFETY: the number is only handed to kill-like calls, which refuse what is no signal.
        Some(number @ 1..=64) => Ok(unsafe { Signal::from_raw_unchecked(number) }),
        _ => Err(Error::invalid(format!("{text:?} is not a signal"))),
    }
}

fn run_exec(container: &Container, exec: &Exec) -> Result<i32> {
    let process = match &exec.process {
        Some(path) => oci::read_process(path)?,
        None => exec_process(container, exec)?,
    };
    match oci::exec(container, &process, &exec.options())? {
        ExecOutcome::Running => Ok(0),
        ExecOutcome::Exited(code) => Ok(code),
    }
}

/// The container's own process with what the command line changes.
fn exec_process(container: &Container, exec: &Exec) -> Result<Process> {
    let mut process = container.spec()?.process.unwrap_or_default();
    if exec.command.is_empty() {
        return Err(Error::invalid(
            "exec needs a command, or a process file with --process",
        ));
    }
    process.args = exec.command.clone();
    process.terminal = exec.tty;
    process.env.extend(exec.env.iter().cloned());
    if let Some(cwd) = &exec.cwd {
        process.cwd.clone_from(cwd);
    }
    if let Some(user) = &exec.user {
        let mut parts = user.splitn(2, ':').map(str::parse::<u32>);
        let number = |part: Option<std::result::Result<u32, _>>| match part {
            Some(Ok(number)) => Ok(Some(number)),
            Some(Err(_)) => Err(Error::invalid(format!(
                "--user {user:?}: give numbers, uid[:gid]"
            ))),
            None => Ok(None),
        };
        process.user.uid = number(parts.next())?.unwrap_or(0);
        if let Some(gid) = number(parts.next())? {
            process.user.gid = gid;
        }
    }
    if !exec.additional_gids.is_empty() {
        process.user.additional_gids.clone_from(&exec.additional_gids);
    }
    if exec.no_new_privs {
        process.no_new_privileges = true;
    }
    if !exec.cap.is_empty() {
        let lists = process.capabilities.get_or_insert_default();
        for list in [&mut lists.bounding, &mut lists.effective, &mut lists.permitted] {
            list.extend(exec.cap.iter().cloned());
        }
    }
    Ok(process)
}

fn print_processes(container: &Container, json: bool) -> Result<()> {
    let pids: Vec<i32> = container
        .processes()?
        .iter()
        .map(|pid| pid.as_raw_pid())
        .collect();
    if json {
        return print_json(&pids);
    }
    let mut text = String::from("PID        COMMAND\n");
    for pid in pids {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        text.push_str(&format!("{pid:<10} {}\n", command.trim_end()));
    }
    output(&text)
}

fn print_list(root: &Path, json: bool, quiet: bool) -> Result<()> {
    let states: Vec<_> = oci::list(root)?
        .iter()
        .filter_map(|container| container.state().ok())
        .collect();
    if json {
        return print_json(&states);
    }
    let mut text = String::new();
    if !quiet {
        text.push_str(&format!(
            "{:<20} {:<10} {:<10} {:<32} CREATED\n",
            "ID", "PID", "STATUS", "BUNDLE"
        ));
    }
    for state in states {
        if quiet {
            text.push_str(&format!("{}\n", state.id));
        } else {
            let status = format!("{:?}", state.status).to_lowercase();
            text.push_str(&format!(
                "{:<20} {:<10} {:<10} {:<32} {}\n",
                state.id,
                state.pid,
                status,
                state.bundle.display(),
                state.created
            ));
        }
    }
    output(&text)
}

fn events(container: &Container, once: bool, interval: &str) -> Result<()> {
    let pause = args::parse_duration(interval)?;
    while container.status() != Status::Stopped {
        let stats = container.cgroup()?.stats();
        let line = serde_json::json!({ "type": "stats", "id": container.id(), "data": stats });
        output(&format!("{line}\n"))?;
        if once {
            break;
        }
        std::thread::sleep(pause);
    }
    Ok(())
}

/// A configuration in the bundle, refusing to replace one.
fn write_template(bundle: Option<&Path>) -> Result<()> {
    let path = bundle.unwrap_or(Path::new(".")).join("config.json");
    let failed = |error| Error::with_source(ErrorKind::System, format!("write {}", path.display()), error);
    let mut file = std::fs::File::create_new(&path).map_err(failed)?;
    let text = serde_json::to_string_pretty(&oci::template())
        .map_err(|error| Error::with_source(ErrorKind::System, "encode the configuration", error))?;
    file.write_all(text.as_bytes()).map_err(failed)
}

fn resources(update: &Update) -> Result<Resources> {
    if let Some(path) = &update.resources {
        let text = if path == Path::new("-") {
            if std::io::stdin().is_terminal() {
                return Err(Error::invalid(
                    "--resources - reads limits from standard input, which is a terminal",
                ));
            }
            std::io::read_to_string(std::io::stdin())
        } else {
            std::fs::read_to_string(path)
        };
        let text = text.map_err(|error| {
            Error::with_source(
                ErrorKind::NotFound,
                format!("read limits from {}", path.display()),
                error,
            )
        })?;
        return serde_json::from_str(&text).map_err(|error| {
            Error::with_source(
                ErrorKind::Invalid,
                format!("understand the limits in {}", path.display()),
                error,
            )
        });
    }
    serde_json::from_value(update.to_json())
        .map_err(|error| Error::with_source(ErrorKind::Invalid, "understand the limits given", error))
}
