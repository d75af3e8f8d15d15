//! What the host and the init of a guest say to each other. Both sides compile this file.
//!
//! The guest listens on vsock port [`PORT`] and takes connections from the host only. One connection carries one
//! [`Request`] and its [`Reply`]; what follows depends on the request:
//!
//! ```text
//!   Start, Exec       Reply::Started when the program was executed, Reply::Exited when it has ended, end
//!   Stream            Reply::Done, then bytes: towards the guest for stdin, towards the host for stdout and stderr
//!   any other         its reply, end
//!   any               Reply::Failed, end
//! ```
//!
//! Streams. A process's standard streams are connections of their own, announced by [`Request::Stream`] with the process's
//! name, before or after the request that starts it: the start waits for the streams it was told of. End of file on
//! `stdin` is passed on; the guest ends `stdout` and `stderr` when nobody in the guest can write there any more. With a
//! terminal there are `stdin` and `stdout` only. A connection that is closed ends the program's pipe as usual (SIGPIPE).
//!
//! As soon as the guest serves, it connects to the *host's* port [`READY_PORT`] and sends [`Reply::Hello`]: whoever listens
//! there need not try. It also connects to the host's port [`DNS_PORT`] for each DNS query that a program in the guest
//! sends to 127.0.0.11: queries and answers have the two bytes of length of DNS over TCP.
//!
//! A frame is a little-endian `u32` length, [`VERSION`], and a message in the form of [`Wire`]; the length counts what follows
//! it and is at most [`MAX_FRAME`]. A message that is not exactly that is refused as a whole.

use alloc::string::String;
use alloc::vec::Vec;

use super::wire::Wire;

/// The vsock port the guest listens on.
pub const PORT: u32 = 1024;

/// The host's vsock port a guest connects to when it is ready.
pub const READY_PORT: u32 = 1024;

/// The host's vsock port for DNS queries.
pub const DNS_PORT: u32 = 53;

/// The version of these messages; both sides come from one build, so there is no negotiation.
pub const VERSION: u8 = 1;

/// The largest frame: a start carries an environment and a filter.
pub const MAX_FRAME: usize = 4 << 20;

/// Text or a path as the kernel takes it: any bytes but NUL.
pub type Bytes = Vec<u8>;

messages! {
    /// What the host asks.
    enum Request {
        /// Who is there? Answered by [`Reply::Hello`].
        0 Hello,
        /// Make the container and start its process, once in a guest's life.
        1 Start(Start),
        /// Start another process in the container.
        2 Exec(Process),
        /// This connection is a standard stream of a process.
        3 Stream(Stream),
        /// Send a signal to a process.
        4 Signal {
            /// The process's name.
            process: String,
            /// The signal's number.
            signal: i32,
            /// To every process of the container instead.
            all: bool,
        },
        /// Change the size of a process's terminal.
        5 Resize {
            /// The process's name.
            process: String,
            /// The new size.
            size: Size,
        },
        /// The container's processes. Answered by [`Reply::Processes`].
        6 Top,
        /// The container's statistics. Answered by [`Reply::Files`]: the files of its cgroup that [`STATISTICS`] names, as
        /// far as they exist, then `/proc/net/dev`, `/proc/meminfo` and `/proc/stat` under these names.
        7 Statistics,
        /// Set limits of the container's running cgroup: names of files and what is written there.
        8 Limit(Vec<Setting>),
        /// Bring network interfaces up. A card that was just plugged in is waited for, up to two seconds.
        9 Network(Network),
        /// Set the clock: after a pause, a snapshot, a migration.
        10 Clock {
            /// Nanoseconds since the epoch.
            realtime: u64,
        },
        /// Fresh randomness, so that two machines from one snapshot do not have the same.
        11 Reseed {
            /// At least 32 bytes; all count as entropy.
            seed: Bytes,
        },
        /// Write everything to disk.
        12 Sync,
        /// End what runs, write everything to disk, and power off; or restart.
        13 Shutdown {
            /// Restart instead.
            restart: bool,
        },
        /// Mount something in the running container.
        14 Mount(Mount),
        /// Unmount it again; what is still used goes when it is used no longer.
        15 Unmount {
            /// The path in the container.
            target: Bytes,
        },
    }

    /// What the guest answers.
    enum Reply {
        /// It was done.
        0 Done,
        /// It was not done.
        1 Failed {
            /// What kind of failure.
            kind: Failure,
            /// A sentence.
            message: String,
        },
        /// Who is there.
        2 Hello(Hello),
        /// The program was executed.
        3 Started {
            /// Its process ID in the guest.
            pid: i32,
        },
        /// The program has ended.
        4 Exited(Exit),
        /// The container's processes.
        5 Processes(Vec<ProcessFiles>),
        /// Files by name.
        6 Files(Vec<File>),
    }

    /// Kinds of failures, so that the host can tell them apart.
    enum Failure {
        /// The kernel refused.
        0 System,
        /// The request makes no sense.
        1 Invalid,
        /// The program, the process or the path is not there.
        2 NotFound,
        /// The program cannot be executed, or the rights do not suffice.
        3 Permission,
        /// Something with this name exists already, or it is too late or too early.
        4 Conflict,
        /// This guest cannot do that.
        5 Unsupported,
    }

    /// Which guest this is.
    struct Hello {
        /// Release of its kernel, as `uname -r` prints it.
        release: String,
        /// Nanoseconds since the kernel began, when init began to serve.
        uptime: u64,
    }

    /// A container and its first process.
    struct Start {
        /// What becomes `/`.
        root: Root,
        /// Propagation of the container's mounts as a flag of mount(2) (`MS_SLAVE` ...); 0: private.
        propagation: u64,
        /// Mounts beyond the root, in order.
        mounts: Vec<Mount>,
        /// Device nodes beyond the standard ones; made when a mount covers `/dev` with a tmpfs.
        devices: Vec<Device>,
        /// Paths that cannot be read inside.
        masked: Vec<Bytes>,
        /// Paths that cannot be written inside.
        readonly: Vec<Bytes>,
        /// The host name; empty: none is set.
        hostname: Bytes,
        /// The domain name; empty: none is set.
        domainname: Bytes,
        /// Kernel parameters: names with dots or slashes, and values.
        sysctls: Vec<Setting>,
        /// Files of the container's cgroup (v2) and what is written there, in order.
        limits: Vec<Setting>,
        /// Whether a limit that this guest's kernel does not have is an error.
        limits_required: bool,
        /// The first process; its name is the empty string by custom.
        process: Process,
    }

    /// What becomes the container's `/`.
    struct Root {
        /// `virtiofs`, the file system on a block device, or `bind` for a directory of the guest.
        kind: Bytes,
        /// The tag, or the device.
        source: Bytes,
        /// Options of the file system.
        options: Bytes,
        /// Whether it is read-only in the container.
        readonly: bool,
    }

    /// A mount in the container.
    struct Mount {
        /// The file system (`virtiofs`, `tmpfs`, `proc`, `sysfs`, `devpts`, `mqueue`, `cgroup2`, `ext4` ...), or `bind`.
        kind: Bytes,
        /// The tag, the device, a name; for `bind` a path in the guest, outside of the container.
        source: Bytes,
        /// What of the file system is mounted: a path in it, a file or a directory; empty: all.
        part: Bytes,
        /// Where, in the container. Made when it is missing.
        target: Bytes,
        /// `MS_...` of mount(2).
        flags: u64,
        /// Flags of propagation, `MS_...` of mount(2); 0: as the container's.
        propagation: u64,
        /// Options of the file system.
        options: Bytes,
    }

    /// A device node.
    struct Device {
        /// The path in the container.
        path: Bytes,
        /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, and the mode.
        mode: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    }

    /// A name and a value.
    struct Setting {
        /// The name.
        name: Bytes,
        /// The value.
        value: Bytes,
    }

    /// A process to start.
    struct Process {
        /// What later requests call it; unique among those that live.
        name: String,
        /// Program and arguments; looked for in `PATH` of `env`, as execvp(3) does.
        args: Vec<Bytes>,
        /// The whole environment, `NAME=value`.
        env: Vec<Bytes>,
        /// Working directory; of the first process it is made when it is missing.
        cwd: Bytes,
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
        /// Supplementary groups.
        groups: Vec<u32>,
        /// umask; absent: 022.
        umask: Option<u32>,
        /// A terminal of this size is its standard streams.
        terminal: Option<Size>,
        /// Standard input will be a stream; otherwise it is `/dev/null`.
        stdin: bool,
        /// Standard output will be a stream; otherwise it is `/dev/null`.
        stdout: bool,
        /// Standard error will be a stream; otherwise it is `/dev/null`. None with a terminal.
        stderr: bool,
        /// Capability sets; absent: all that the guest has.
        capabilities: Option<Capabilities>,
        /// Sets `no_new_privs`.
        no_new_privileges: bool,
        /// Resource limits.
        rlimits: Vec<Rlimit>,
        /// Value for `/proc/self/oom_score_adj`.
        oom_score_adj: Option<i32>,
        /// A compiled seccomp filter, as the runtime stores it ("VSF1": flags, preference, count, instructions); empty: none.
        seccomp: Bytes,
        /// Whether it is killed when the connection that started it closes.
        leashed: bool,
    }

    /// A terminal's size.
    struct Size {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    }

    /// Capability sets as the kernel has them: bit N is capability N.
    struct Capabilities {
        /// The most that can ever be had.
        bounding: u64,
        /// In force.
        effective: u64,
        /// Kept by executed programs that also inherit them.
        inheritable: u64,
        /// Can be put in force.
        permitted: u64,
        /// Kept by any executed program.
        ambient: u64,
    }

    /// A resource limit, by its number in prlimit(2).
    struct Rlimit {
        /// Which.
        resource: u32,
        /// In force.
        soft: u64,
        /// The ceiling.
        hard: u64,
    }

    /// Which stream a connection is.
    struct Stream {
        /// The process's name.
        process: String,
        /// 0, 1 or 2.
        number: u8,
    }

    /// How a process ended.
    struct Exit {
        /// Its status; or absent when a signal ended it.
        status: Option<i32>,
        /// The signal that ended it, or 0.
        signal: i32,
        /// How many processes of the container the kernel has killed for lack of memory.
        oom_kills: u64,
    }

    /// A process, as the kernel shows it.
    struct ProcessFiles {
        /// Its ID in the guest.
        pid: i32,
        /// `/proc/PID/stat`.
        stat: Bytes,
        /// `/proc/PID/status`.
        status: Bytes,
        /// `/proc/PID/cmdline`, at most 4096 bytes.
        cmdline: Bytes,
    }

    /// A file.
    struct File {
        /// Its name.
        name: String,
        /// What it holds.
        content: Bytes,
    }

    /// The guest's network.
    struct Network {
        /// Interfaces, found by their addresses.
        interfaces: Vec<Interface>,
        /// Interfaces to take down, by their hardware addresses.
        removed: Vec<Bytes>,
        /// Routes, added after all addresses.
        routes: Vec<Route>,
        /// Whether 127.0.0.11 answers DNS queries through the host.
        dns: bool,
    }

    /// A network card.
    struct Interface {
        /// Its hardware address, 6 bytes.
        hardware: Bytes,
        /// The name it gets (`eth0`); empty: it keeps its own.
        name: Bytes,
        /// Bytes of a frame's payload; 0: as it is.
        mtu: u32,
        /// Addresses.
        addresses: Vec<Address>,
    }

    /// An IP address and the length of its network's prefix.
    struct Address {
        /// 4 or 16 bytes.
        address: Bytes,
        /// Bits.
        prefix: u8,
    }

    /// A route.
    struct Route {
        /// Where to; the address `0.0.0.0` or `::` with prefix 0 is the default.
        destination: Address,
        /// Through whom; empty: directly.
        gateway: Bytes,
        /// The interface's hardware address; empty: the kernel finds it.
        hardware: Bytes,
        /// Metric; 0: the kernel's.
        metric: u32,
    }
}

#[allow(
    clippy::derivable_impls,
    reason = "the macro above knows no default of an enum"
)]
impl Default for Failure {
    fn default() -> Self {
        Self::System
    }
}

/// Files of the container's cgroup that [`Request::Statistics`] reads.
pub const STATISTICS: [&str; 14] = [
    "cpu.stat",
    "cpu.pressure",
    "memory.current",
    "memory.peak",
    "memory.max",
    "memory.stat",
    "memory.events",
    "memory.swap.current",
    "memory.swap.max",
    "memory.pressure",
    "pids.current",
    "pids.max",
    "io.stat",
    "io.pressure",
];

/// A message as a frame.
pub fn frame(message: &impl Wire) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&[0; 4]);
    out.push(VERSION);
    message.encode(&mut out);
    let length = (out.len() - 4) as u32;
    if let Some(at) = out.first_chunk_mut() {
        *at = length.to_le_bytes();
    }
    out
}

/// What the first bytes of a stream hold.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// Not yet a frame.
    Partial,
    /// A message, and how many bytes it took.
    Message(T, usize),
    /// Nothing that can be understood.
    Garbage,
}

/// Looks for a message at the front of `bytes`. A frame may have `limit` bytes, at most [`MAX_FRAME`].
pub fn parse<T: Wire>(bytes: &[u8], limit: usize) -> Parsed<T> {
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Parsed::Partial;
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > limit.min(MAX_FRAME) || rest.first().is_some_and(|version| *version != VERSION) {
        return Parsed::Garbage;
    }
    let Some(mut body) = rest.get(..length) else {
        return Parsed::Partial;
    };
    let message = u8::decode(&mut body).and_then(|_| T::decode(&mut body));
    match message {
        Some(message) if body.is_empty() => Parsed::Message(message, 4 + length),
        _ => Parsed::Garbage,
    }
}
