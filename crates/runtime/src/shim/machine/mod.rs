//! A container behind a kernel of its own: what takes the place of namespaces.
//!
//! ```text
//!   shim ── control socket ──► vmm (one process: memory, vCPUs, devices)
//!     │                          │ virtio-fs: the root, put together by the shim
//!     │                          │ virtio-net: TAP devices from the daemon
//!     └── streams ── vsock ──────┴─► init of the guest: requests, standard streams
//! ```
//!
//! The shim stays the supervisor: its socket, its log, attach, and the exit status are as for any container. Where it would have
//! a process it has a connection to the guest's init, where it would have a pipe it has a stream. The monitor is in the
//! container's cgroup, so that what the machine costs is counted and limited there; it ends with the shim.
//!
//! A guest is hostile: nothing it says is waited for without an end, and none of its words reach a terminal untouched.

pub mod channel;
pub mod config;
pub mod relay;
pub mod root;
pub mod vmm;
pub mod words;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use vessel_init::guest::client;
use vessel_init::guest::protocol::{self as guest, Reply, Request};
use vessel_vmm::control::Event;

use super::RootSource;
use super::launch::own_executable;
use super::log::Stream;
use crate::cgroup::resources::{DeviceRule, Memory};
use crate::cgroup::{Cgroup, CgroupPath, Hierarchies, Resources};
use crate::error::Context;
use crate::spec::Spec;
use crate::{Error, ErrorKind, Result, seccomp};
use channel::{in_the_guest, not_executed};
use config::MachineConfig;
use root::Root;
use vmm::{Heard, Launch, Vmm};

/// How long a kernel may take to its init. With a processor in software, on a host that is busy, a second becomes ten.
const BOOT: Duration = Duration::from_secs(120);

/// How long the guest's init may take for an answer before the container runs.
const ANSWER: Duration = Duration::from_secs(30);

/// What the monitor needs beyond the machine's memory: its own, tables for that memory, what it keeps of translated code.
const MONITOR: i64 = 128 << 20;

/// What a machine is made from.
pub struct Plan<'a> {
    /// The container.
    pub spec: &'a Spec,
    /// Relative paths of the configuration are relative to this directory.
    pub bundle: &'a Path,
    /// What becomes its root.
    pub root: &'a RootSource,
    /// The machine.
    pub machine: &'a MachineConfig,
    /// The devices of its interfaces.
    pub taps: Vec<OwnedFd>,
    /// Its kernel and initramfs.
    pub boot: Option<(OwnedFd, OwnedFd)>,
    /// Detached mounts that bind mounts attach, by their destination.
    pub sources: &'a [(PathBuf, OwnedFd)],
    /// The container's network namespace.
    pub netns: Option<OwnedFd>,
    /// The system call filter of the first process.
    pub seccomp: Option<seccomp::Program>,
    /// Whether clients can attach to standard input.
    pub open_stdin: bool,
    /// The host's cgroups.
    pub hierarchies: &'a Hierarchies,
    /// Where the monitor's cgroup goes.
    pub cgroup: CgroupPath,
}

/// A machine whose init answers.
#[derive(Debug)]
pub struct Machine {
    /// Its monitor.
    pub vmm: Vmm,
    /// Its root, with everything that is mounted there from this side.
    pub root: Root,
    /// The container's network namespace.
    pub netns: Option<OwnedFd>,
    /// Whether the machine asks the DNS server there.
    names: bool,
}

/// The container's first process, in the machine.
#[derive(Debug)]
pub struct First {
    /// Its ID in the guest.
    pub pid: i32,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Where its end will be told.
    pub told: OwnedFd,
    /// Its standard input.
    pub input: Option<OwnedFd>,
    /// Its output.
    pub outputs: Vec<(OwnedFd, Stream)>,
}

/// Makes the machine and starts the container's process in it.
///
/// The calling process must be single-threaded.
///
/// # Errors
/// What failed, on either side; nothing of the container is left then.
pub fn start(plan: Plan<'_>) -> Result<(Machine, First, Cgroup, Vec<String>)> {
    let process = plan
        .spec
        .process
        .as_ref()
        .ok_or_else(|| Error::invalid("the configuration has no process: there is nothing to run"))?;
    let process = words::process(
        words::FIRST,
        process,
        plan.open_stdin,
        false,
        plan.seccomp.as_ref(),
    )?;
    let root = Root::make(plan.spec, plan.root, plan.bundle, plan.sources)?;
    let resources = limits(plan.spec, plan.machine);
    let (cgroup, lacks) = Cgroup::create(plan.hierarchies, &plan.cgroup, &resources)?;
    let started = start_in(&plan, root, &cgroup, process);
    match started {
        Ok((machine, first)) => {
            let warnings = lacks.iter().map(ToString::to_string).collect();
            Ok((machine, first, cgroup, warnings))
        }
        Err(error) => {
            let _ = cgroup.kill_all(Signal::KILL);
            let _ = cgroup.clear();
            Err(error)
        }
    }
}

fn start_in(
    plan: &Plan<'_>,
    root: Root,
    cgroup: &Cgroup,
    process: guest::Process,
) -> Result<(Machine, First)> {
    let executable = own_executable()?;
    let boot = plan
        .boot
        .as_ref()
        .ok_or_else(|| Error::invalid("the machine has no kernel"))?;
    let vmm = Vmm::launch(&Launch {
        executable: &executable,
        machine: plan.machine,
        taps: &plan.taps,
        boot,
        root: root.directory.as_fd(),
        read_only: plan.spec.root.as_ref().is_some_and(|root| root.readonly),
        cgroup,
        netns: plan.netns.as_ref().map(AsFd::as_fd),
        oom_score_adj: plan
            .spec
            .process
            .as_ref()
            .and_then(|process| process.oom_score_adj),
    })?;
    let netns = plan
        .netns
        .as_ref()
        .map(|netns| netns.try_clone().context(|| "keep the network namespace"));
    let mut machine = Machine {
        netns: netns.transpose()?,
        names: plan.machine.names,
        vmm,
        root,
    };
    let begun = machine
        .wait_until_ready()
        .and_then(|()| machine.begin(plan.machine, plan.spec, process));
    match begun {
        Ok(first) => Ok((machine, first)),
        Err(error) => {
            machine.vmm.kill();
            machine.reap();
            Err(error)
        }
    }
}

/// The limits of the monitor's cgroup: memory for the machine and the monitor, no devices but what it needs, and no limit of
/// processes, which are those of the guest's kernel.
fn limits(spec: &Spec, machine: &MachineConfig) -> Resources {
    let mut resources = spec.linux().resources.clone().unwrap_or_default();
    resources.pids = None;
    resources.hugepage_limits.clear();
    let size = i64::try_from(machine.memory)
        .unwrap_or(i64::MAX)
        .saturating_add(MONITOR);
    let asked = resources.memory.unwrap_or_default();
    // Swap is what was asked for beyond the memory.
    let swap = match (asked.swap, asked.limit) {
        (Some(swap), Some(limit)) if swap > 0 && limit > 0 => {
            Some(size.saturating_add(swap.saturating_sub(limit)))
        }
        (Some(-1), _) => Some(-1),
        _ => None,
    };
    resources.memory = Some(Memory {
        limit: Some(size),
        swap,
        reservation: asked.reservation,
        swappiness: asked.swappiness,
        ..Memory::default()
    });
    let rule = |major, minor| DeviceRule {
        allow: true,
        kind: Some("c".to_owned()),
        major: Some(major),
        minor: Some(minor),
        access: Some("rw".to_owned()),
    };
    resources.devices = vec![DeviceRule {
        allow: false,
        access: Some("rwm".to_owned()),
        ..DeviceRule::default()
    }];
    // null, zero, random, urandom; kvm. TAP devices are open already.
    let needed = [(1, 3), (1, 5), (1, 8), (1, 9), (10, 232)];
    resources
        .devices
        .extend(needed.map(|(major, minor)| rule(major, minor)));
    // What the guest makes on its file systems, it makes through the monitor: nodes are made, not opened.
    for kind in ["c", "b"] {
        resources.devices.push(DeviceRule {
            allow: true,
            kind: Some(kind.to_owned()),
            access: Some("m".to_owned()),
            ..DeviceRule::default()
        });
    }
    resources
}

impl Machine {
    /// Waits for the guest's init to say that it is there.
    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + BOOT;
        loop {
            match self.vmm.hear()? {
                Heard::Said(
                    Event::Accepted {
                        port: guest::READY_PORT,
                        ..
                    },
                    Some(stream),
                ) => {
                    return self.welcome(stream);
                }
                Heard::Said(Event::Failed { message }, _) => {
                    return Err(Error::new(
                        ErrorKind::System,
                        format!("start the machine: {message}"),
                    ));
                }
                // Questions for names, before that, are asked again.
                Heard::Said(..) => continue,
                Heard::End => return Err(self.died()),
                Heard::Nothing => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let words = self
                    .vmm
                    .last_words()
                    .map_or(String::new(), |words| format!(" ({words})"));
                return Err(Error::new(
                    ErrorKind::System,
                    format!(
                        "the machine's kernel did not get to its init within {} s{words}: is it one for virtual machines? See 'vessel kernel ls'",
                        BOOT.as_secs()
                    ),
                ));
            }
            self.wait(left)?;
        }
    }

    /// Waits for the monitor to say something, or to end. What it prints meanwhile is taken, so that it can go on.
    fn wait(&mut self, left: Duration) -> Result<()> {
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        let (mut console, mut report) = (true, true);
        loop {
            let mut fds = vec![PollFd::new(&self.vmm.control, PollFlags::IN)];
            // Its pidfd is not asked: the control socket ends with it.
            if console {
                fds.push(PollFd::new(&self.vmm.console.pipe, PollFlags::IN));
            }
            if report {
                fds.push(PollFd::new(&self.vmm.report.pipe, PollFlags::IN));
            }
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(()),
                Ok(_) if !fds[0].revents().is_empty() => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {
                    console &= self.vmm.console.read();
                    report &= self.vmm.report.read();
                }
                Err(errno) => return Err(errno).context(|| "wait for the machine"),
            }
        }
    }

    fn died(&mut self) -> Error {
        self.reap();
        let message = match self.vmm.last_words() {
            Some(words) => format!("the machine ended before its init was there: {words}"),
            None => "the machine ended before its init was there (was its monitor killed, or out of memory under its limit?)".to_owned(),
        };
        Error::new(ErrorKind::System, message)
    }

    fn welcome(&self, stream: OwnedFd) -> Result<()> {
        match client::receive(&mut waiting(stream)?) {
            Ok(Reply::Hello(_)) => Ok(()),
            Ok(_) => Err(in_the_guest(client::Error::Unexpected)),
            Err(error) => Err(in_the_guest(error)),
        }
    }

    /// Sets the guest up and starts the container's process.
    fn begin(&mut self, config: &MachineConfig, spec: &Spec, process: guest::Process) -> Result<First> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let realtime = u64::try_from(now.as_nanos()).unwrap_or(0);
        self.order(&Request::Clock { realtime })?;
        self.order(&Request::Network(words::network(config)))?;
        let mut stream = |wanted: bool, number: u8| -> Result<Option<OwnedFd>> {
            let announced = Request::Stream(guest::Stream {
                process: process.name.clone(),
                number,
            });
            wanted.then(|| self.order(&announced)).transpose()
        };
        let input = stream(process.stdin, 0)?;
        let output = stream(process.stdout, 1)?;
        let errors = stream(process.stderr, 2)?;
        let terminal = process.terminal.is_some();
        let outputs = [(output, Stream::Output), (errors, Stream::Errors)];
        let (reply, told) = self.ask(&Request::Start(words::start(spec, process)))?;
        match reply {
            Ok(Reply::Started { pid }) => Ok(First {
                pid,
                terminal,
                told,
                input,
                outputs: outputs
                    .into_iter()
                    .filter_map(|(fd, stream)| fd.map(|fd| (fd, stream)))
                    .collect(),
            }),
            Ok(_) => Err(in_the_guest(client::Error::Unexpected)),
            Err(error) => Err(not_executed(in_the_guest(error))),
        }
    }

    /// Has something done, and waits for it; the connection.
    fn order(&mut self, request: &Request) -> Result<OwnedFd> {
        match self.ask(request)? {
            (Ok(Reply::Done), stream) => Ok(stream),
            (Ok(_), _) => Err(in_the_guest(client::Error::Unexpected)),
            (Err(error), _) => Err(in_the_guest(error)),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<(Result<Reply, client::Error>, OwnedFd)> {
        let mut stream = waiting(self.vmm.connect(guest::PORT)?)?;
        let reply = client::call(&mut stream, request);
        if matches!(reply, Err(client::Error::Connection(_))) && self.vmm.ended().is_some() {
            return Err(self.died());
        }
        Ok((reply, stream.into()))
    }

    /// Waits for the monitor, which was killed, to be gone.
    pub fn reap(&self) {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let pidfd = || WaitId::PidFd(self.vmm.pidfd.as_fd());
        while matches!(waitid(pidfd(), WaitIdOptions::EXITED), Err(Errno::INTR)) {}
    }

    /// Where the DNS server is that the machine asks.
    pub fn names(&self) -> Option<BorrowedFd<'_>> {
        self.netns.as_ref().filter(|_| self.names).map(AsFd::as_fd)
    }
}

/// A stream that is waited for, but not for ever.
fn waiting(stream: OwnedFd) -> Result<UnixStream> {
    let stream = UnixStream::from(stream);
    stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(ANSWER)))
        .and_then(|()| stream.set_write_timeout(Some(ANSWER)))
        .context(|| "prepare a connection to the machine")?;
    Ok(stream)
}
