//! What the daemon and a shim say to each other.
//!
//! Launch. The daemon writes a [`ShimConfig`] as `config.json` into the shim's directory (on a tmpfs, e.g.
//! `/run/vessel/shims/ID`) and executes the shim with descriptors it inherits: the control stream, the network
//! namespace, reservations of published ports, and one stream per client that attached before the start.
//!
//! Control stream. The shim sends [`Event`]s: exactly one [`Event::Started`] or [`Event::Failed`] first, then whatever
//! happens, last [`Event::Exited`]. End of file without `Exited` means that the shim died.
//!
//! Socket. The shim listens on `shim.sock` in its directory. A connection carries one [`Request`], answered by one
//! [`Reply`]; what follows depends on the request:
//!
//! ```text
//!   Watch             Reply::Status, then Events as on the control stream (a new daemon uses this)
//!   Attach            Reply::Done, then raw bytes: stdin towards the shim; output from it
//!   Exec{attach}      Reply::Started, then as Attach when attach is wanted, else the connection closes
//!   Resize, Kill, …   Reply::Done, then the connection closes
//!   Ask, Hand         its answer, then the connection closes
//!   any               Reply::Failed, then the connection closes
//! ```
//!
//! Output on an attached stream: with a terminal, raw bytes; without, Docker's multiplexed frames (stream number 1 or
//! 2, three zero bytes, big-endian u32 length, payload), so that the daemon can hand them on untouched. Shutting down
//! the writing side of an attached stream is end of input. The shim closes the stream when the process has exited and
//! all of its output was sent.
//!
//! Messages are frames: a little-endian u32 length, then JSON. A frame is at most [`MAX_FRAME`] bytes.
//!
//! Exit status. Before `Exited` is sent, the [`Exit`] is in `exit_file` (written aside, synced when `durable`, renamed), or,
//! when it cannot be written there, in [`EXIT`] in the shim's directory.

use std::io::{Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use super::machine::config::{Interface, MachineConfig};
use crate::cgroup::Hierarchies;
use crate::error::Report;
use crate::spec::{ConsoleSize, Process, Spec};
use crate::{Error, ErrorKind, Result};

/// The largest frame: an exec request may carry a large environment, nothing else is near it.
pub const MAX_FRAME: usize = 4 << 20;

/// The name of the shim's socket in its directory.
pub const SOCKET: &str = "shim.sock";

/// The name of the configuration in the shim's directory.
pub const CONFIG: &str = "config.json";

/// The name of the exit status in the shim's directory, if it could not be recorded in its proper place.
pub const EXIT: &str = "exit.json";

/// Everything a shim needs to make and keep one container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShimConfig {
    /// The container's ID.
    pub id: String,
    /// The container as an OCI configuration. Of an overlay `root` below, `root.path` is where `createContainer` hooks find it.
    pub spec: Spec,
    /// The directory whose `config.json` hooks read; `/` unless there are hooks.
    #[serde(default)]
    pub bundle: Option<PathBuf>,
    /// What becomes `/`.
    pub root: RootSource,
    /// Puts the container behind a kernel of its own instead of namespaces.
    #[serde(default)]
    pub machine: Option<MachineConfig>,
    /// The host's cgroup hierarchies, detected once by the daemon.
    pub hierarchies: Hierarchies,
    /// A compiled seccomp program (`seccomp::Program::to_bytes`) in a file; takes the place of `linux.seccomp`.
    #[serde(default)]
    pub seccomp_program: Option<PathBuf>,
    /// Whether standard input stays open for clients to attach to (`OpenStdin`); otherwise it is `/dev/null`.
    pub open_stdin: bool,
    /// Whether standard input ends when the first client that had it leaves (`StdinOnce`).
    pub stdin_once: bool,
    /// Whether the container is killed when a client that attached before the start leaves before its end: what a build
    /// runs does not outlive the daemon.
    #[serde(default)]
    pub leashed: bool,
    /// Where output is logged.
    #[serde(default)]
    pub log: Option<LogConfig>,
    /// Where the exit status is recorded.
    pub exit_file: PathBuf,
    /// Whether the exit status is synced to disk (not needed for containers that are removed when they exit).
    pub durable: bool,
    /// Inherited descriptors; filled in by the launcher.
    #[serde(default)]
    pub fds: InheritedFds,
}

/// Descriptors the shim inherits, by number.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct InheritedFds {
    /// The control stream.
    pub control: i32,
    /// The shim's directory.
    pub dir: i32,
    /// A network namespace to enter instead of making one.
    pub netns: Option<i32>,
    /// Detached mounts that bind mounts attach, by their destination.
    #[serde(default)]
    pub sources: Vec<(i32, PathBuf)>,
    /// The TAP devices of a machine, in the order of its interfaces.
    #[serde(default)]
    pub taps: Vec<i32>,
    /// A machine's kernel and initramfs.
    #[serde(default)]
    pub boot: Option<(i32, i32)>,
    /// The soft limit of descriptors to go back to, when the daemon has raised its own.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Held open while the container lives (reservations of published ports).
    pub keep: Vec<i32>,
    /// Clients that attached before the start.
    pub attach: Vec<(i32, Attach)>,
}

/// What becomes the root of the container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootSource {
    /// An overlay, made as a detached mount that the host never sees.
    Overlay(Overlay),
    /// A directory, bound.
    Directory(PathBuf),
}

/// An overlay of read-only layers and a writable one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overlay {
    /// Topmost layer first.
    pub lower: Vec<PathBuf>,
    /// The writable layer; with `work` absent too, the overlay is read-only.
    pub upper: Option<PathBuf>,
    /// overlayfs' work directory, on the same file system as `upper`.
    pub work: Option<PathBuf>,
    /// What is written need not outlive a crash of the machine: sync(2) inside and the unmount write nothing to disk.
    /// Every mount of the same `upper` must then be volatile (Linux 5.10; before, it has no effect).
    #[serde(default)]
    pub volatile: bool,
}

/// A log in Docker's json-file format.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogConfig {
    /// The current file; older ones are `PATH.1`, `PATH.2`, …
    pub path: PathBuf,
    /// Bytes at which the file is rotated; 0: never.
    pub max_size: u64,
    /// How many files are kept, the current one included; at least 1.
    pub max_files: u32,
    /// Extra attributes (`attrs` of each line), sorted by the caller; usually empty.
    #[serde(default)]
    pub attrs: Vec<(String, String)>,
    /// Where lines are sent as well.
    #[serde(default)]
    pub target: Option<LogTarget>,
}

/// Where lines of a log are sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTarget {
    /// To whom.
    pub address: LogAddress,
    /// And how.
    pub format: LogFormat,
}

/// Who takes lines of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogAddress {
    /// A Unix socket, of datagrams or a stream.
    Unix(PathBuf),
    /// UDP.
    Udp(std::net::SocketAddr),
    /// TCP.
    Tcp(std::net::SocketAddr),
}

/// How lines of a log are sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// As messages of syslog.
    Syslog {
        /// Of which kind.
        style: SyslogStyle,
        /// The facility's number.
        facility: u8,
        /// The name of this host.
        host: String,
        /// What tells containers apart; the name of the program, too.
        tag: String,
        /// The process.
        process: u32,
    },
    /// By the journal's native protocol.
    Journal {
        /// Further fields.
        fields: Vec<(String, String)>,
    },
}

/// Kinds of syslog messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyslogStyle {
    /// RFC 3164 without a host, for a server on this one.
    Local,
    /// RFC 3164.
    Rfc3164,
    /// RFC 5424 with whole seconds.
    Rfc5424,
    /// RFC 5424 with microseconds.
    Rfc5424Micro,
}

/// What a client attaches to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Bytes from the client become the process's input.
    pub stdin: bool,
    /// Output is sent to the client.
    pub stdout: bool,
    /// Errors are sent to the client (with a terminal there is only output).
    pub stderr: bool,
}

/// A request on the shim's socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(
    clippy::large_enum_variant,
    reason = "a request lives for a moment; boxing would help nobody"
)]
pub enum Request {
    /// Follow the container: its status, then its events.
    Watch,
    /// Attach to the container's process.
    Attach(Attach),
    /// Run another process in the container.
    Exec(ExecRequest),
    /// Change the size of a terminal.
    Resize {
        /// An exec's ID, or none for the container's own process.
        exec: Option<String>,
        /// The new size.
        size: ConsoleSize,
    },
    /// Send a signal.
    Kill {
        /// An exec's ID, or none for the container's own process.
        exec: Option<String>,
        /// Signal number.
        signal: i32,
        /// To every process of the container instead of its first.
        all: bool,
    },
    /// Ask the kernel of a machine.
    Ask(Question),
    /// Something the shim holds of a machine: `Reply::Done`, and its descriptor with it.
    Hand(Held),
}

/// What a shim holds of a machine, where a container would have it by its first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// The root directory, with what is mounted there.
    Root,
    /// The network namespace.
    Network,
}

/// What can be asked of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// The container's processes. `Reply::Processes`.
    Processes,
    /// The container's statistics. `Reply::Files`: files of its cgroup (v2) by name, then `/proc/net/dev`, `/proc/meminfo`
    /// and `/proc/stat`.
    Statistics,
    /// Sets the clock after a pause. `Reply::Done`.
    Clock,
}

/// A process in a machine, as its kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestProcess {
    /// Its ID there.
    pub pid: i32,
    /// `/proc/PID/stat`.
    pub stat: String,
    /// `/proc/PID/status`.
    pub status: String,
    /// `/proc/PID/cmdline`, the first 4096 bytes.
    pub cmdline: String,
}

/// Another process in the container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The exec's ID, unique in the container.
    pub id: String,
    /// The process; `terminal`, `user`, `capabilities` … are as in the OCI configuration.
    pub process: Process,
    /// Compiled seccomp program to install; none: unconfined.
    #[serde(default)]
    pub seccomp_program: Option<PathBuf>,
    /// Whether this connection becomes its standard streams.
    pub attach: Option<Attach>,
    /// Whether the process is killed when this connection closes before it has ended. So whoever asked, a health check
    /// say, ends it by leaving, and it does not outlive a daemon that crashes.
    #[serde(default)]
    pub leashed: bool,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It was done.
    Done,
    /// An exec's process runs.
    Started {
        /// Its process ID on the host.
        pid: i32,
    },
    /// Answer to `Watch`.
    Status(Status),
    /// Answer to `Ask(Processes)`.
    Processes(Vec<GuestProcess>),
    /// Answer to `Ask(Statistics)`: names and contents.
    Files(Vec<(String, String)>),
    /// It was not done.
    Failed(Report),
}

/// What a shim knows of its container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The first process's ID on the host.
    pub pid: i32,
    /// When it was started, nanoseconds since the epoch.
    pub started_at: i64,
    /// Running execs: ID and process ID.
    pub execs: Vec<(String, i32)>,
    /// How many times the kernel killed for lack of memory.
    pub oom_kills: u64,
    /// Set when the process has exited.
    pub exit: Option<Exit>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0 to 255: the exit code, or 128 + the signal.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the container for lack of memory.
    pub oom_killed: bool,
    /// When, nanoseconds since the epoch.
    pub at: i64,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The program was executed.
    Started {
        /// The first process's ID on the host.
        pid: i32,
        /// When, nanoseconds since the epoch.
        at: i64,
        /// Things that were asked for and could not be had, each a sentence for the user.
        warnings: Vec<String>,
    },
    /// The container could not be made; nothing of it is left.
    Failed(Report),
    /// The kernel killed a process for lack of memory.
    Oom,
    /// An exec's process ended.
    ExecExited {
        /// The exec's ID.
        id: String,
        /// How.
        exit: Exit,
    },
    /// The first process ended, all its output was logged and the cgroup is gone.
    Exited(Exit),
}

/// One frame: length and JSON.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(|error| {
        Error::with_source(
            ErrorKind::System,
            "encode a message between daemon and shim",
            error,
        )
    })?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(Error::invalid(format!(
            "a request of {length} bytes is too large: the limit is {MAX_FRAME}"
        )));
    }
    // Fits: MAX_FRAME is below u32::MAX.
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// The message of a frame's body.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        Error::with_source(
            ErrorKind::Invalid,
            "understand a message between daemon and shim",
            error,
        )
    })
}

/// Writes a message, blocking.
pub fn send(stream: &mut impl Write, message: &impl Serialize) -> Result<()> {
    let frame = encode(message)?;
    stream.write_all(&frame).map_err(|error| {
        Error::with_source(ErrorKind::System, "send a message between daemon and shim", error)
    })
}

/// Reads a message, blocking; `None` at the end of the stream.
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<T>> {
    let failed = |error| {
        Error::with_source(
            ErrorKind::System,
            "receive a message between daemon and shim",
            error,
        )
    };
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(Error::invalid(format!(
            "a message of {length} bytes is over the limit of {MAX_FRAME}"
        )));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).map_err(failed)?;
    decode(&body).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let mut wire = Vec::new();
        send(
            &mut wire,
            &Request::Kill {
                exec: None,
                signal: 15,
                all: false,
            },
        )
        .unwrap();
        send(&mut wire, &Request::Watch).unwrap();
        let mut reader = wire.as_slice();
        assert!(matches!(
            receive(&mut reader).unwrap(),
            Some(Request::Kill {
                exec: None,
                signal: 15,
                all: false
            })
        ));
        assert!(matches!(receive(&mut reader).unwrap(), Some(Request::Watch)));
        assert!(receive::<Request>(&mut reader).unwrap().is_none());
    }

    #[test]
    fn oversized_and_cut_frames_are_refused() {
        let huge = u32::MAX.to_le_bytes();
        assert!(receive::<Request>(&mut huge.as_slice()).is_err());
        let mut cut = encode(&Request::Watch).unwrap();
        cut.pop();
        assert!(receive::<Request>(&mut cut.as_slice()).is_err());
    }
}
