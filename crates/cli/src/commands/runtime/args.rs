//! The arguments of `vessel runtime`, compatible with runc's.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde_json::{Map, Value, json};
use vessel_runtime::oci::{CreateOptions, ExecOptions, RunOptions};
use vessel_runtime::{Error, Result};

/// Run containers according to the OCI runtime specification.
#[derive(Debug, Parser)]
#[command(name = "vessel runtime", version, disable_help_subcommand = true)]
pub struct Runtime {
    /// Directory for the state of containers, on a tmpfs.
    #[arg(long, global = true)]
    pub root: Option<PathBuf>,
    /// File to which failures are written as well.
    #[arg(long, global = true)]
    pub log: Option<PathBuf>,
    /// Format of that file: text or json.
    #[arg(long, global = true, default_value = "text")]
    pub log_format: String,
    /// Accepted for compatibility; there is no debug log.
    #[arg(long, global = true)]
    pub debug: bool,
    /// Accepted for compatibility; cgroups are always made through cgroupfs.
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
    /// Accepted for compatibility.
    #[arg(long, global = true, num_args = 0..=1, require_equals = true)]
    pub rootless: Option<Option<String>>,
    /// Accepted for compatibility.
    #[arg(long, global = true)]
    pub criu: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a container; its program waits for `start`.
    Create(Create),
    /// Execute the program of a created container.
    Start { id: String },
    /// Print the state of a container.
    State { id: String },
    /// Send a signal to a container's first process.
    Kill {
        id: String,
        /// Name or number.
        #[arg(default_value = "SIGTERM")]
        signal: String,
        /// Send it to all processes of the container.
        #[arg(short, long)]
        all: bool,
    },
    /// Remove a stopped container.
    Delete {
        id: String,
        /// Kill it first if it runs; no error if it does not exist.
        #[arg(short, long)]
        force: bool,
    },
    /// Make a container and run its program.
    Run(Run),
    /// Run another process in a container.
    Exec(Exec),
    /// List the processes of a container.
    Ps {
        id: String,
        /// table or json.
        #[arg(short, long, default_value = "table")]
        format: String,
        /// Options for ps(1), accepted for compatibility.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Freeze a container.
    Pause { id: String },
    /// Let a frozen container go on.
    Resume { id: String },
    /// Change limits of a container.
    Update(Box<Update>),
    /// List containers.
    List {
        /// table or json.
        #[arg(short, long, default_value = "table")]
        format: String,
        /// IDs only.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Print statistics of a container, regularly.
    Events {
        id: String,
        /// Once.
        #[arg(long)]
        stats: bool,
        /// Time between two prints.
        #[arg(long, default_value = "5s")]
        interval: String,
    },
    /// Print what this runtime can do.
    Features,
    /// Write a configuration to start from.
    Spec {
        /// The bundle's directory.
        #[arg(short, long)]
        bundle: Option<PathBuf>,
    },
}

/// `create`.
#[derive(Debug, Args)]
pub struct Create {
    pub id: String,
    /// The bundle's directory.
    #[arg(short, long, default_value = ".")]
    pub bundle: PathBuf,
    /// Socket to which the terminal is sent.
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// File to which the process ID is written.
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// Descriptors from 3 on that the program keeps.
    #[arg(long, default_value_t = 0)]
    pub preserve_fds: u32,
    /// Accepted for compatibility: done by itself where it is needed.
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted for compatibility.
    #[arg(long)]
    pub no_new_keyring: bool,
}

impl Create {
    /// As the library takes them.
    pub fn options(&self) -> CreateOptions {
        CreateOptions {
            bundle: self.bundle.clone(),
            console_socket: self.console_socket.clone(),
            pid_file: self.pid_file.clone(),
            preserve_fds: self.preserve_fds,
        }
    }
}

/// `run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub create: Create,
    /// Return once the program runs.
    #[arg(short, long)]
    pub detach: bool,
    /// Leave the container when the program has ended.
    #[arg(long)]
    pub keep: bool,
    /// Accepted for compatibility.
    #[arg(long)]
    pub no_subreaper: bool,
}

impl Run {
    /// As the library takes them.
    pub fn options(&self) -> RunOptions {
        RunOptions {
            create: self.create.options(),
            detach: self.detach,
            keep: self.keep,
        }
    }
}

/// `exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// The process as a file in the OCI configuration's form.
    #[arg(short, long)]
    pub process: Option<PathBuf>,
    /// Working directory.
    #[arg(long)]
    pub cwd: Option<PathBuf>,
    /// Environment, NAME=value.
    #[arg(short, long)]
    pub env: Vec<String>,
    /// Give it a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// uid[:gid].
    #[arg(short, long)]
    pub user: Option<String>,
    /// Supplementary groups.
    #[arg(short = 'g', long)]
    pub additional_gids: Vec<u32>,
    /// Return once it runs.
    #[arg(short, long)]
    pub detach: bool,
    /// Socket to which the terminal is sent.
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// File to which the process ID is written.
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// Capabilities added.
    #[arg(short, long)]
    pub cap: Vec<String>,
    /// Set no_new_privs.
    #[arg(long)]
    pub no_new_privs: bool,
    /// Descriptors from 3 on that the program keeps.
    #[arg(long, default_value_t = 0)]
    pub preserve_fds: u32,
    /// Also in a paused container.
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container.
    pub id: String,
    /// Program and arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

impl Exec {
    /// As the library takes them.
    pub fn options(&self) -> ExecOptions {
        ExecOptions {
            console_socket: self.console_socket.clone(),
            pid_file: self.pid_file.clone(),
            detach: self.detach,
            preserve_fds: self.preserve_fds,
            ignore_paused: self.ignore_paused,
        }
    }
}

/// `update`.
#[derive(Debug, Args)]
pub struct Update {
    pub id: String,
    /// File with limits in the OCI configuration's form; - is standard input.
    #[arg(short, long)]
    pub resources: Option<PathBuf>,
    /// Memory limit in bytes; -1: none.
    #[arg(long, allow_hyphen_values = true)]
    pub memory: Option<i64>,
    /// Memory and swap limit in bytes.
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<i64>,
    /// Soft memory limit in bytes.
    #[arg(long, allow_hyphen_values = true)]
    pub memory_reservation: Option<i64>,
    /// Relative weight of processor time.
    #[arg(long)]
    pub cpu_share: Option<u64>,
    /// Microseconds of processor time a period.
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// The period, microseconds.
    #[arg(long)]
    pub cpu_period: Option<u64>,
    /// Processors.
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    #[arg(long)]
    pub cpuset_mems: Option<String>,
    /// Number of processes; -1: no limit.
    #[arg(long, allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Relative weight of block I/O.
    #[arg(long)]
    pub blkio_weight: Option<u16>,
}

impl Update {
    /// The flags as `linux.resources`.
    pub fn to_json(&self) -> Value {
        fn put(map: &mut Map<String, Value>, section: &str, name: &str, value: Option<Value>) {
            if let Some(value) = value {
                let section = map.entry(section).or_insert_with(|| json!({}));
                section[name] = value;
            }
        }
        let mut map = Map::new();
        put(&mut map, "memory", "limit", self.memory.map(Value::from));
        put(&mut map, "memory", "swap", self.memory_swap.map(Value::from));
        put(
            &mut map,
            "memory",
            "reservation",
            self.memory_reservation.map(Value::from),
        );
        put(&mut map, "cpu", "shares", self.cpu_share.map(Value::from));
        put(&mut map, "cpu", "quota", self.cpu_quota.map(Value::from));
        put(&mut map, "cpu", "period", self.cpu_period.map(Value::from));
        put(&mut map, "cpu", "cpus", self.cpuset_cpus.clone().map(Value::from));
        put(&mut map, "cpu", "mems", self.cpuset_mems.clone().map(Value::from));
        put(&mut map, "pids", "limit", self.pids_limit.map(Value::from));
        put(&mut map, "blockIO", "weight", self.blkio_weight.map(Value::from));
        Value::Object(map)
    }
}

/// `5s`, `500ms`, `1m`.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split]
        .parse()
        .map_err(|_| Error::invalid(format!("{text:?} is not a duration such as 5s")))?;
    match &text[split..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(Error::invalid(format!("{text:?} is not a duration such as 5s"))),
    }
}

/// Signals by name.
pub const SIGNALS: [(&str, i32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];
