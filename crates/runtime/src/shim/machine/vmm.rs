//! The monitor: one process, in the container's cgroup, that is the machine (see [`vessel_vmm::process`]).
//!
//! It is this same executable with the word `vmm`. Everything it may touch it inherits as descriptors, numbered from 3 on, the
//! first of which is its configuration. When the control socket's other end is closed it ends; until it serves that socket it gets
//! SIGKILL when the shim dies.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use vessel_init::guest::protocol::{DNS_PORT, READY_PORT};
use vessel_vmm::accel::Choice;
use vessel_vmm::control::{Client, Event, FromMachine, Incoming, Request};
use vessel_vmm::devices::virtio::fs;
use vessel_vmm::machine::{Descriptor, DeviceConfig, NetConfig, SerialConfig};
use vessel_vmm::process;

use super::config::MachineConfig;
use super::words::ROOT_TAG;
use crate::cgroup::Cgroup;
use crate::error::Context;
use crate::process::set_namespace;
use crate::spec::NamespaceKind;
use crate::sys::clone3::{Clone3, Side};
use crate::sys::close_range;
use crate::{Error, ErrorKind, Result, rlimits};

/// The configuration's number.
const CONFIG_FD: i32 = 3;

/// The guest's context ID, which has no meaning outside its machine.
const GUEST: u32 = 3;

/// How much of what the machine's console said is kept for whoever asks why it ended.
const TAIL: usize = 4 << 10;

/// The last of what came through a pipe.
#[derive(Debug)]
pub struct Tail {
    /// Not blocking.
    pub pipe: OwnedFd,
    kept: VecDeque<u8>,
}

impl Tail {
    fn new() -> Result<(Self, OwnedFd)> {
        let (pipe, end) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(|| "make a pipe for the machine")?;
        rustix::io::ioctl_fionbio(&pipe, true).context(|| "make a pipe for the machine")?;
        let kept = VecDeque::new();
        Ok((Self { pipe, kept }, end))
    }

    /// Reads what there is; false at the end.
    pub fn read(&mut self) -> bool {
        let mut buffer = [0; TAIL];
        loop {
            match rustix::io::read(&self.pipe, &mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    self.kept.extend(&buffer[..count]);
                    let surplus = self.kept.len().saturating_sub(TAIL);
                    self.kept.drain(..surplus);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
    }

    /// The last line that has something in it, without control characters: it ends in the host's terminals and logs.
    pub fn last_line(&self) -> Option<String> {
        let bytes: Vec<u8> = self.kept.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let clean = |line: &str| -> String { line.chars().filter(|c| !c.is_control()).take(300).collect() };
        text.lines()
            .rev()
            .map(|line| clean(line.trim()))
            .find(|line| !line.is_empty())
    }
}

/// What is handed to the monitor.
pub struct Launch<'a> {
    /// This executable.
    pub executable: &'a OwnedFd,
    /// The machine.
    pub machine: &'a MachineConfig,
    /// Its interfaces' devices.
    pub taps: &'a [OwnedFd],
    /// Its kernel and initramfs.
    pub boot: &'a (OwnedFd, OwnedFd),
    /// The directory that becomes the container's root.
    pub root: BorrowedFd<'a>,
    /// Whether the guest cannot change anything in it.
    pub read_only: bool,
    /// Where its processes are counted and limited.
    pub cgroup: &'a Cgroup,
    /// The container's network namespace.
    pub netns: Option<BorrowedFd<'a>>,
    /// The host's preference to kill it.
    pub oom_score_adj: Option<i32>,
}

/// A monitor that runs.
#[derive(Debug)]
pub struct Vmm {
    /// Its process.
    pub pid: Pid,
    /// A pidfd of it.
    pub pidfd: OwnedFd,
    /// The control socket.
    pub control: Client,
    /// What the machine's console said last.
    pub console: Tail,
    /// What the monitor itself said last.
    pub report: Tail,
}

impl Vmm {
    /// Starts it. The calling process must be single-threaded.
    ///
    /// # Errors
    /// When the process cannot be made.
    pub fn launch(launch: &Launch<'_>) -> Result<Self> {
        let machine = launch.machine;
        let (kernel, initramfs) = launch.boot;
        let (console, console_end) = Tail::new()?;
        let (report, report_end) = Tail::new()?;
        let (control, theirs) = Client::pair().context(|| "make the monitor's control socket")?;
        let config = rustix::fs::memfd_create("vmm", MemfdFlags::CLOEXEC)
            .context(|| "write the monitor's configuration")?;

        let mut fds = vec![config.as_fd()];
        let mut number = |fd| {
            fds.push(fd);
            Descriptor(CONFIG_FD - 1 + fds.len() as i32)
        };
        let mut devices = vec![DeviceConfig::Rng];
        for (interface, tap) in machine.interfaces.iter().zip(launch.taps) {
            devices.push(DeviceConfig::Net(NetConfig {
                taps: vec![number(tap.as_fd())],
                mac: interface.mac.map(|byte| format!("{byte:02x}")).join(":"),
                mtu: u16::try_from(interface.mtu).unwrap_or(u16::MAX),
                receive_limits: Default::default(),
                send_limits: Default::default(),
            }));
        }
        let mut ports = vec![READY_PORT];
        ports.extend(machine.names.then_some(DNS_PORT));
        let accelerator = machine.accelerator.parse::<Choice>();
        let text = serde_json::to_vec(&process::Config {
            control: number(theirs.as_fd()),
            accelerator: accelerator
                .map_err(|error| Error::with_source(ErrorKind::Invalid, "choose an accelerator", error))?,
            machine: vessel_vmm::machine::Config {
                memory: machine.memory,
                vcpus: machine.vcpus,
                kernel: number(kernel.as_fd()),
                initramfs: Some(number(initramfs.as_fd())),
                command_line: machine.command_line.clone(),
                serial: Some(SerialConfig {
                    input: None,
                    output: number(console_end.as_fd()),
                }),
                hotplug: false,
                devices,
            },
            // Others change it, too: whoever else has the volumes, and `cp`.
            directories: vec![process::DirectoryConfig {
                tag: ROOT_TAG.to_owned(),
                directory: number(launch.root),
                options: fs::Options {
                    read_only: launch.read_only,
                    ..fs::Options::default()
                },
                queues: 1,
            }],
            vsock: Some(process::VsockConfig { cid: GUEST, ports }),
            balloon: false,
            jail: true,
        })
        .map_err(|error| Error::with_source(ErrorKind::System, "write the monitor's configuration", error))?;
        let mut file = std::fs::File::from(
            config
                .try_clone()
                .context(|| "write the monitor's configuration")?,
        );
        std::io::Write::write_all(&mut file, &text)
            .and_then(|()| std::io::Seek::rewind(&mut file))
            .context(|| "write the monitor's configuration")?;

        let (pid, pidfd) = spawn(launch, &fds, report_end.as_fd())?;
        Ok(Self {
            pid,
            pidfd,
            control,
            console,
            report,
        })
    }

    /// A stream that becomes a connection to a port of the guest. What is written before it is one is not lost; one that the guest
    /// does not take is closed.
    ///
    /// # Errors
    /// When the monitor is gone.
    pub fn connect(&mut self, port: u32) -> Result<OwnedFd> {
        let failed = || "connect to the machine";
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).context(failed)?;
        self.control
            .send(Request::Connect { port }, Some(theirs.as_fd()))
            .context(failed)?;
        Ok(ours)
    }

    /// What it said of itself, if it has said something. Answers are not awaited: what became of a connection is seen at its stream.
    ///
    /// # Errors
    /// Anything that is no message.
    pub fn hear(&mut self) -> Result<Heard> {
        loop {
            match self.control.receive() {
                Ok(Some(Incoming {
                    message: FromMachine::Event(event),
                    descriptor,
                })) => return Ok(Heard::Said(event, descriptor)),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(Heard::Nothing),
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(Heard::End),
                Err(error) => {
                    return Err(Error::with_source(
                        ErrorKind::System,
                        "hear from the monitor",
                        error,
                    ));
                }
            }
        }
    }

    /// Ends it at once.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// How it ended, once it has: the code and the signal.
    pub fn ended(&self) -> Option<(i32, Option<i32>)> {
        match waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Ok(None) | Err(Errno::INTR) => None,
            Ok(Some(status)) => {
                let signal = status.terminating_signal();
                Some((
                    status.exit_status().unwrap_or_else(|| 128 + signal.unwrap_or(0)),
                    signal,
                ))
            }
            // Reaped already.
            Err(_) => Some((255, None)),
        }
    }

    /// Why it ended, as far as it or its machine said something.
    pub fn last_words(&mut self) -> Option<String> {
        self.report.read();
        self.console.read();
        self.report.last_line().or_else(|| {
            self.console
                .last_line()
                .map(|line| format!("its console said last: {line}"))
        })
    }
}

/// What [`Vmm::hear`] heard.
#[derive(Debug)]
pub enum Heard {
    /// Something happened; the stream that came along.
    Said(Event, Option<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// Nothing ever again.
    End,
}

fn spawn(launch: &Launch<'_>, fds: &[BorrowedFd<'_>], report: BorrowedFd<'_>) -> Result<(Pid, OwnedFd)> {
    let parent = rustix::process::getpid();
    let mut call = Clone3::new(0).pidfd();
    if let Some(dir) = launch.cgroup.clone_into_fd() {
        call = call.cgroup(dir);
    }
    // SAFETY: the shim is single-threaded.
    match unsafe { call.call() }.context(|| "start the machine's monitor")? {
        Side::Parent { pid, pidfd } => match pidfd {
            Some(pidfd) => Ok((pid, pidfd)),
            None => Err(Error::new(
                ErrorKind::Unsupported,
                "the kernel gives no pidfd: Linux 5.12 or newer is needed",
            )),
        },
        Side::Child => {
            let failed = match become_vmm(launch, fds, report, parent) {
                Ok(never) => match never {},
                Err(error) => error.report().message,
            };
            let _ = rustix::io::write(report, failed.as_bytes());
            // SAFETY: ends this process at once; nothing of the parent's may be finished here.
            unsafe { libc::_exit(1) }
        }
    }
}

/// The child's side: executes the monitor.
fn become_vmm(
    launch: &Launch<'_>,
    fds: &[BorrowedFd<'_>],
    report: BorrowedFd<'_>,
    parent: Pid,
) -> Result<std::convert::Infallible> {
    launch
        .cgroup
        .attach_self(launch.cgroup.clone_into_fd().is_some())?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context(|| "have the monitor end with the shim")?;
    if rustix::process::getppid() != Some(parent) {
        return Err(Error::new(ErrorKind::Conflict, "the shim has ended"));
    }
    // The shim's own limit is that of a container's first process.
    let _ = rlimits::raise_descriptors();
    if let Some(adjustment) = launch.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", adjustment.to_string())
            .context(|| format!("set oom_score_adj to {adjustment}"))?;
    }
    if let Some(netns) = launch.netns {
        set_namespace(netns, NamespaceKind::Network)?;
    }
    // Everything first above the numbers that are given out, so that nothing is overwritten that is still needed.
    let floor = CONFIG_FD + fds.len() as i32;
    let failed = || "hand descriptors to the monitor";
    let above = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, floor).context(failed);
    let moved = fds.iter().map(|fd| above(*fd)).collect::<Result<Vec<_>>>()?;
    let executable = above(launch.executable.as_fd())?;
    let report = above(report)?;
    let null =
        rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context(failed)?;
    let dup2 = |fd: &OwnedFd, number: i32| {
        // SAFETY: both are numbers of descriptors; what had the second one is a copy that nobody uses any more.
        match unsafe { libc::dup2(fd.as_raw_fd(), number) } {
            -1 => Err(std::io::Error::last_os_error()).context(failed),
            _ => Ok(()),
        }
    };
    let null = above(null.as_fd())?;
    for (number, fd) in [&null, &null, &report].into_iter().chain(&moved).enumerate() {
        dup2(fd, number as i32)?;
    }
    close_range::set_cloexec_from(floor.unsigned_abs()).context(failed)?;
    let path = CString::new(format!("/proc/self/fd/{}", executable.as_raw_fd())).unwrap_or_default();
    let number = CString::new(CONFIG_FD.to_string()).unwrap_or_default();
    let arguments = [
        c"vessel".as_ptr(),
        c"vmm".as_ptr(),
        number.as_ptr(),
        std::ptr::null(),
    ];
    let environment = [std::ptr::null()];
    // SAFETY: the strings and both arrays, which end with a null pointer, outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Err(std::io::Error::last_os_error()).context(|| "execute the machine's monitor")
}
