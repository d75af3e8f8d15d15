//! The processes of a container, in the columns of `ps`.
//!
//! Docker runs the host's `ps` and filters its output. Here the processes are those of the container's cgroup, read
//! from `/proc`; nothing is executed. The formats are `-ef` (the default), `-F`, `-l`, `aux`, and lists of columns
//! (`-o pid,comm`, `-eo`, `axo`), each column with an own title after `=`. Process IDs are the host's.

use std::collections::HashMap;
use std::fs;

use vessel_api::TopResponse;

use crate::container::record::Status;
use crate::oci_spec::wall;
use crate::{Engine, Error, Result, blocking};

/// A container with more processes than this is a fork bomb; the rest is left out.
const MAX_PROCESSES: usize = 32_768;
/// More columns than any list has use for.
const MAX_COLUMNS: usize = 64;

impl Engine {
    /// The processes of a running container; `arguments` are those of `ps`, empty for `-ef`.
    ///
    /// # Errors
    /// No such container; not running; a format that is not known.
    pub async fn container_top(&self, id: &str, arguments: &str) -> Result<TopResponse> {
        let container = self.container(id)?;
        let state = container.state();
        if !matches!(state.status, Status::Running | Status::Paused) || state.pid == 0 {
            return Err(Error::conflict(format!(
                "container {} is not running",
                container.id()
            )));
        }
        let columns = columns(arguments)?;
        if wall::is_machine(&container.record().host) {
            let list = self.machine_processes(&container).await?;
            let list = list.into_iter().take(MAX_PROCESSES).filter_map(|process| {
                Process::parse(
                    process.pid,
                    &process.stat,
                    &process.status,
                    process.cmdline.as_bytes(),
                )
            });
            // Its users are not this host's, and its clock began with it.
            let (host, mut names) = (Host::began(state.started_at), Names::of_nobody());
            return Ok(table(columns, list, &host, &mut names));
        }
        let cgroup = self.container_cgroup(&container)?;
        blocking(move || {
            let pids = cgroup.processes()?;
            let processes = pids
                .into_iter()
                .take(MAX_PROCESSES)
                // A process that ends meanwhile is none any more.
                .filter_map(|pid| Process::read(pid.as_raw_nonzero().get()));
            Ok(table(columns, processes, &Host::read(), &mut Names::default()))
        })
        .await
    }
}

fn table(
    columns: Vec<Column>,
    processes: impl Iterator<Item = Process>,
    host: &Host,
    names: &mut Names,
) -> TopResponse {
    let row = |process: Process| {
        let cell = |column: &Column| column.kind.show(&process, host, names);
        columns.iter().map(cell).collect()
    };
    TopResponse {
        processes: processes.map(row).collect(),
        titles: columns.into_iter().map(|column| column.title).collect(),
    }
}

/// A column and what is written above it.
#[derive(Debug, Clone, PartialEq)]
struct Column {
    kind: Kind,
    title: String,
}

/// Declares the columns: variant, title, and the names by which `-o` knows it (the first is the main one).
macro_rules! kinds {
    ($($variant:ident $title:literal [$($name:literal),+]),+ $(,)?) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Kind { $($variant),+ }

        impl Kind {
            fn named(name: &str) -> Option<Self> {
                match name {
                    $($($name)|+ => Some(Self::$variant),)+
                    _ => None,
                }
            }

            fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),+ }
            }

            fn names() -> Vec<&'static str> {
                vec![$([$($name),+][0]),+]
            }
        }
    };
}

kinds! {
    User "USER" ["user", "euser", "uname"],
    Uid "UID" ["uid", "euid"],
    Group "GROUP" ["group", "egroup"],
    Gid "GID" ["gid", "egid"],
    Pid "PID" ["pid", "tgid"],
    Ppid "PPID" ["ppid"],
    Pgid "PGID" ["pgid", "pgrp"],
    Sid "SID" ["sid", "sess", "session"],
    Cpu "%CPU" ["%cpu", "pcpu"],
    C "C" ["c"],
    Mem "%MEM" ["%mem", "pmem"],
    Vsz "VSZ" ["vsz", "vsize"],
    Rss "RSS" ["rss", "rssize", "rsz"],
    Sz "SZ" ["sz"],
    Tty "TTY" ["tty", "tt", "tname"],
    Stat "STAT" ["stat"],
    S "S" ["s", "state"],
    Flags "F" ["f", "flag", "flags"],
    Pri "PRI" ["pri"],
    Nice "NI" ["ni", "nice"],
    Addr "ADDR" ["addr"],
    Wchan "WCHAN" ["wchan"],
    Psr "PSR" ["psr"],
    Threads "NLWP" ["nlwp", "thcount"],
    Start "START" ["start", "bsdstart"],
    Stime "STIME" ["stime", "start_time"],
    Lstart "STARTED" ["lstart"],
    Etime "ELAPSED" ["etime"],
    Etimes "ELAPSED" ["etimes"],
    Time "TIME" ["time", "cputime"],
    BsdTime "TIME" ["bsdtime"],
    Comm "COMMAND" ["comm", "ucmd", "ucomm"],
    Args "COMMAND" ["args", "command"],
    Cmd "CMD" ["cmd"],
}

fn list(kinds: &[(Kind, &str)]) -> Vec<Column> {
    kinds
        .iter()
        .map(|&(kind, title)| Column {
            kind,
            title: title.to_owned(),
        })
        .collect()
}

/// `ps -ef`.
fn full() -> Vec<Column> {
    use Kind::{C, Cmd, Pid, Ppid, Stime, Time, Tty, User};
    list(&[
        (User, "UID"),
        (Pid, "PID"),
        (Ppid, "PPID"),
        (C, "C"),
        (Stime, "STIME"),
        (Tty, "TTY"),
        (Time, "TIME"),
        (Cmd, "CMD"),
    ])
}

/// `ps -F`.
fn extra_full() -> Vec<Column> {
    use Kind::{C, Cmd, Pid, Ppid, Psr, Rss, Stime, Sz, Time, Tty, User};
    list(&[
        (User, "UID"),
        (Pid, "PID"),
        (Ppid, "PPID"),
        (C, "C"),
        (Sz, "SZ"),
        (Rss, "RSS"),
        (Psr, "PSR"),
        (Stime, "STIME"),
        (Tty, "TTY"),
        (Time, "TIME"),
        (Cmd, "CMD"),
    ])
}

/// `ps -l`.
fn long() -> Vec<Column> {
    use Kind::{Addr, C, Comm, Flags, Nice, Pid, Ppid, Pri, S, Sz, Time, Tty, Uid, Wchan};
    list(&[
        (Flags, "F"),
        (S, "S"),
        (Uid, "UID"),
        (Pid, "PID"),
        (Ppid, "PPID"),
        (C, "C"),
        (Pri, "PRI"),
        (Nice, "NI"),
        (Addr, "ADDR"),
        (Sz, "SZ"),
        (Wchan, "WCHAN"),
        (Tty, "TTY"),
        (Time, "TIME"),
        (Comm, "CMD"),
    ])
}

/// `ps aux`.
fn user() -> Vec<Column> {
    use Kind::{Args, BsdTime, Cpu, Mem, Pid, Rss, Stat, Stime, Tty, User, Vsz};
    list(&[
        (User, "USER"),
        (Pid, "PID"),
        (Cpu, "%CPU"),
        (Mem, "%MEM"),
        (Vsz, "VSZ"),
        (Rss, "RSS"),
        (Tty, "TTY"),
        (Stat, "STAT"),
        (Stime, "START"),
        (BsdTime, "TIME"),
        (Args, "COMMAND"),
    ])
}

/// `ps ax` without more.
fn plain() -> Vec<Column> {
    use Kind::{Args, BsdTime, Pid, Stat, Tty};
    list(&[
        (Pid, "PID"),
        (Tty, "TTY"),
        (Stat, "STAT"),
        (BsdTime, "TIME"),
        (Args, "COMMAND"),
    ])
}

/// Understands the arguments of `ps`.
fn columns(arguments: &str) -> Result<Vec<Column>> {
    let mut words = arguments.split_whitespace();
    let (mut chosen, mut own): (Option<Vec<Column>>, Vec<Column>) = (None, Vec::new());
    while let Some(word) = words.next() {
        if let Some(option) = word.strip_prefix("--") {
            match option.split_once('=') {
                Some(("format", format)) => add(&mut own, format)?,
                _ if option == "format" => add(&mut own, words.next().ok_or_else(|| unknown(word))?)?,
                _ if option == "forest" || option == "no-headers" => {}
                _ => return Err(unknown(word)),
            }
            continue;
        }
        let dashed = word.starts_with('-');
        let letters = word.trim_start_matches('-');
        for (at, letter) in letters.char_indices() {
            match (letter, dashed) {
                // Which processes: always all of the container's.
                ('e' | 'A' | 'a' | 'd' | 'N', true) | ('a' | 'x' | 'e' | 'g' | 'r', false) | ('x', true) => {}
                // How they look: wide always, no tree.
                ('w' | 'H' | 'y', _) | ('f', false) => {}
                ('f', true) => chosen = Some(full()),
                ('F', true) => chosen = Some(extra_full()),
                ('l', _) => chosen = Some(long()),
                ('u', _) => chosen = Some(user()),
                ('o', _) => {
                    let rest = &letters[at + letter.len_utf8()..];
                    let format = if rest.is_empty() {
                        words.next().ok_or_else(|| unknown(word))?
                    } else {
                        rest
                    };
                    add(&mut own, format)?;
                    break;
                }
                _ => return Err(unknown(word)),
            }
        }
        if chosen.is_none() && !dashed {
            chosen = Some(plain());
        }
    }
    let columns = if own.is_empty() {
        chosen.unwrap_or_else(full)
    } else {
        own
    };
    if !columns.iter().any(|column| column.kind == Kind::Pid) {
        return Err(Error::invalid(
            "Couldn't find PID field in ps output: add pid to the columns",
        ));
    }
    Ok(columns)
}

/// Adds the columns of a list; `name=title` gives a title, and that is the rest of the word.
fn add(columns: &mut Vec<Column>, format: &str) -> Result<()> {
    let mut rest = Some(format);
    while let Some(text) = rest {
        let (name, after) = match text.find([',', '=']) {
            Some(at) if text.as_bytes()[at] == b'=' => (&text[..at], Err(&text[at + 1..])),
            Some(at) => (&text[..at], Ok(Some(&text[at + 1..]))),
            None => (text, Ok(None)),
        };
        let kind = Kind::named(&name.to_ascii_lowercase()).ok_or_else(|| {
            Error::invalid(format!(
                "ps: unknown column {name:?}: the columns are {}",
                Kind::names().join(", ")
            ))
        })?;
        let title = match after {
            Err(title) => title.to_owned(),
            Ok(next) => {
                rest = next;
                kind.title().to_owned()
            }
        };
        columns.push(Column { kind, title });
        if columns.len() > MAX_COLUMNS {
            return Err(Error::invalid(format!("ps: more than {MAX_COLUMNS} columns")));
        }
        if after.is_err() {
            rest = None;
        }
    }
    Ok(())
}

fn unknown(word: &str) -> Error {
    Error::invalid(format!(
        "ps: cannot do {word:?}: the formats are -ef, -F, -l, aux, and lists of columns as -o pid,user,args"
    ))
}

/// What of the host the columns need.
struct Host {
    /// Since boot, in seconds.
    uptime: f64,
    /// When it booted, seconds since the epoch.
    boot: i64,
    /// In KiB.
    memory: u64,
    ticks: u64,
    page: u64,
}

impl Host {
    /// A machine that began then, in nanoseconds since the epoch.
    fn began(at: i64) -> Self {
        Self {
            uptime: (crate::time::now() - at).max(0) as f64 / 1e9,
            boot: at / 1_000_000_000,
            ..Self::read()
        }
    }

    fn read() -> Self {
        let first = |text: String| {
            text.split_whitespace()
                .next()
                .and_then(|number| number.parse::<f64>().ok())
        };
        let uptime = fs::read_to_string("/proc/uptime")
            .ok()
            .and_then(first)
            .unwrap_or_default();
        Self {
            uptime,
            boot: crate::time::now() / 1_000_000_000 - uptime as i64,
            memory: super::system::memory_total() / 1024,
            ticks: rustix::param::clock_ticks_per_second().max(1),
            page: rustix::param::page_size() as u64,
        }
    }
}

/// Names of users and groups, as this host calls them.
#[derive(Default)]
struct Names {
    users: Option<HashMap<u32, String>>,
    groups: Option<HashMap<u32, String>>,
}

impl Names {
    /// Numbers only, but for root.
    fn of_nobody() -> Self {
        let root = || Some(HashMap::from([(0, "root".to_owned())]));
        Self {
            users: root(),
            groups: root(),
        }
    }

    fn user(&mut self, id: u32) -> String {
        let names = self.users.get_or_insert_with(|| read_names("/etc/passwd"));
        names.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    fn group(&mut self, id: u32) -> String {
        let names = self.groups.get_or_insert_with(|| read_names("/etc/group"));
        names.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }
}

fn read_names(path: &str) -> HashMap<u32, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            Some((fields.nth(1)?.parse().ok()?, name))
        })
        .collect()
}

/// A process: the fields of `/proc/PID/stat` (proc_pid_stat(5)), `status` and `cmdline`.
#[derive(Debug, Default)]
struct Process {
    pid: i32,
    name: String,
    arguments: String,
    state: String,
    stat: Vec<i64>,
    uid: u32,
    gid: u32,
    wchan: String,
    locked: bool,
}

/// Positions in [`Process::stat`], which begins with field 4 of the file, the parent.
mod field {
    pub const PPID: usize = 0;
    pub const PGRP: usize = 1;
    pub const SESSION: usize = 2;
    pub const TTY: usize = 3;
    pub const TPGID: usize = 4;
    pub const FLAGS: usize = 5;
    pub const UTIME: usize = 10;
    pub const STIME: usize = 11;
    pub const PRIORITY: usize = 14;
    pub const NICE: usize = 15;
    pub const THREADS: usize = 16;
    pub const START: usize = 18;
    pub const VSIZE: usize = 19;
    pub const RSS: usize = 20;
    pub const PROCESSOR: usize = 35;
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut process = Self::parse(pid, &String::from_utf8_lossy(&stat), &status, &command)?;
        process.wchan = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        Some(process)
    }

    fn parse(pid: i32, stat: &str, status: &str, command: &[u8]) -> Option<Self> {
        // The name may contain anything, parentheses too: the last one ends it.
        let (open, close) = (stat.find('(')?, stat.rfind(')')?);
        let name = stat.get(open + 1..close)?.to_owned();
        let mut fields = stat.get(close + 1..)?.split_whitespace();
        let state = fields.next()?.to_owned();
        let id = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            // Real, effective, saved, file system.
            line.split_whitespace().nth(1)?.parse().ok()
        };
        let locked = status
            .lines()
            .find_map(|line| line.strip_prefix("VmLck:"))
            .is_some_and(|size| !size.trim().starts_with('0'));
        let mut arguments = String::from_utf8_lossy(command)
            .replace('\0', " ")
            .trim_end()
            .to_owned();
        if arguments.is_empty() {
            arguments = format!("[{name}]");
        }
        // One process is one line.
        arguments.retain(|character| !character.is_control());
        Some(Self {
            pid,
            name,
            arguments,
            state,
            stat: fields.map(|field| field.parse().unwrap_or_default()).collect(),
            uid: id("Uid:")?,
            gid: id("Gid:")?,
            wchan: String::new(),
            locked,
        })
    }

    fn at(&self, field: usize) -> i64 {
        self.stat.get(field).copied().unwrap_or_default()
    }

    fn ticks(&self) -> u64 {
        u64::try_from(self.at(field::UTIME) + self.at(field::STIME)).unwrap_or_default()
    }
}

impl Kind {
    fn show(self, process: &Process, host: &Host, names: &mut Names) -> String {
        let cpu_seconds = process.ticks() / host.ticks;
        let started = process.at(field::START) as f64 / host.ticks as f64;
        let lived = (host.uptime - started).max(0.0);
        let share = if lived > 0.0 {
            process.ticks() as f64 / host.ticks as f64 / lived * 100.0
        } else {
            0.0
        };
        let resident = u64::try_from(process.at(field::RSS)).unwrap_or_default() * host.page / 1024;
        let number = |field| process.at(field).to_string();
        match self {
            Self::User => names.user(process.uid),
            Self::Uid => process.uid.to_string(),
            Self::Group => names.group(process.gid),
            Self::Gid => process.gid.to_string(),
            Self::Pid => process.pid.to_string(),
            Self::Ppid => number(field::PPID),
            Self::Pgid => number(field::PGRP),
            Self::Sid => number(field::SESSION),
            Self::Cpu => format!("{share:.1}"),
            Self::C => format!("{}", (share as u64).min(99)),
            Self::Mem => format!("{:.1}", resident as f64 * 100.0 / host.memory.max(1) as f64),
            Self::Vsz => (process.at(field::VSIZE) / 1024).to_string(),
            Self::Rss => resident.to_string(),
            Self::Sz => (process.at(field::VSIZE) / host.page as i64).to_string(),
            Self::Tty => terminal(process.at(field::TTY)),
            Self::Stat => state(process),
            Self::S => process.state.clone(),
            // The two bits that ps shows: forked without exec, used superuser privileges.
            Self::Flags => ((process.at(field::FLAGS) >> 6) & 7).to_string(),
            Self::Pri => (60 + process.at(field::PRIORITY)).to_string(),
            Self::Nice => number(field::NICE),
            Self::Addr => "-".to_owned(),
            Self::Wchan => match process.wchan.as_str() {
                "" | "0" => "-".to_owned(),
                place => place.to_owned(),
            },
            Self::Psr => number(field::PROCESSOR),
            Self::Threads => number(field::THREADS),
            Self::Start | Self::Stime => short_start(host.boot + started as i64),
            Self::Lstart => long_start(host.boot + started as i64),
            Self::Etime => elapsed(lived as u64),
            Self::Etimes => (lived as u64).to_string(),
            Self::Time => clock(cpu_seconds),
            Self::BsdTime => format!("{}:{:02}", cpu_seconds / 60, cpu_seconds % 60),
            Self::Comm => process.name.clone(),
            Self::Args | Self::Cmd => process.arguments.clone(),
        }
    }
}

/// The letters of `STAT`: state, niceness, locked pages, session leader, threads, foreground.
fn state(process: &Process) -> String {
    let mut text = process.state.clone();
    match process.at(field::NICE) {
        nice if nice < 0 => text.push('<'),
        nice if nice > 0 => text.push('N'),
        _ => {}
    }
    if process.locked {
        text.push('L');
    }
    if process.at(field::SESSION) == i64::from(process.pid) {
        text.push('s');
    }
    if process.at(field::THREADS) > 1 {
        text.push('l');
    }
    if process.at(field::PGRP) == process.at(field::TPGID) {
        text.push('+');
    }
    text
}

/// The name of a terminal by its device number (proc_pid_stat(5), `tty_nr`).
fn terminal(number: i64) -> String {
    let (major, minor) = (
        (number >> 8) & 0xfff,
        (number & 0xff) | ((number >> 12) & 0xfff00),
    );
    match major {
        0 => "?".to_owned(),
        4 if minor < 64 => format!("tty{minor}"),
        4 => format!("ttyS{}", minor - 64),
        136..=143 => format!("pts/{}", minor + (major - 136) * 256),
        _ => format!("{major},{minor}"),
    }
}

/// `HH:MM:SS`, with days in front when there are any.
fn clock(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days == 0 {
        clock
    } else {
        format!("{days}-{clock}")
    }
}

/// `[[DD-]hh:]mm:ss`.
fn elapsed(seconds: u64) -> String {
    if seconds < 3600 {
        format!("{:02}:{:02}", seconds / 60, seconds % 60)
    } else {
        clock(seconds)
    }
}

/// When a process started: the time today, the day this year, the year. In UTC, as the daemon has no time zone.
fn short_start(second: i64) -> String {
    let Ok(time) = jiff::Timestamp::from_second(second) else {
        return "?".to_owned();
    };
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    let time = time.to_zoned(jiff::tz::TimeZone::UTC);
    let format = match () {
        () if time.date() == now.date() => "%H:%M",
        () if time.year() == now.year() => "%b%d",
        () => "%Y",
    };
    time.strftime(format).to_string()
}

fn long_start(second: i64) -> String {
    match jiff::Timestamp::from_second(second) {
        Ok(time) => time
            .to_zoned(jiff::tz::TimeZone::UTC)
            .strftime("%a %b %e %H:%M:%S %Y")
            .to_string(),
        Err(_) => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn titles(arguments: &str) -> Vec<String> {
        columns(arguments)
            .unwrap()
            .into_iter()
            .map(|column| column.title)
            .collect()
    }

    #[test]
    fn formats() {
        assert_eq!(
            titles(""),
            ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
        );
        assert_eq!(titles("-ef"), titles(""));
        assert_eq!(titles("aux")[..4], ["USER", "PID", "%CPU", "%MEM"]);
        assert_eq!(titles("-aux"), titles("aux"));
        assert_eq!(titles("ax"), ["PID", "TTY", "STAT", "TIME", "COMMAND"]);
        assert_eq!(titles("-o pid,comm"), ["PID", "COMMAND"]);
        assert_eq!(titles("-eo pid,user,args"), ["PID", "USER", "COMMAND"]);
        assert_eq!(titles("axo pid -o comm=NAME,x"), ["PID", "NAME,x"]);
        assert_eq!(titles("--format=pid,%cpu"), ["PID", "%CPU"]);
        for bad in ["-o", "-o nothing,pid", "-o comm", "-Z", "--bogus", "-o pid,"] {
            assert!(columns(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_process_is_read() {
        let mine = Process::read(std::process::id() as i32).unwrap();
        let (host, mut names) = (Host::read(), Names::default());
        assert_eq!(
            Kind::Pid.show(&mine, &host, &mut names),
            std::process::id().to_string()
        );
        assert_eq!(
            Kind::User.show(&mine, &host, &mut names),
            names.user(rustix::process::geteuid().as_raw())
        );
        assert!(Kind::Rss.show(&mine, &host, &mut names).parse::<u64>().unwrap() > 100);
        assert!(
            Kind::Etimes
                .show(&mine, &host, &mut names)
                .parse::<u64>()
                .unwrap()
                < 3600
        );
    }

    #[test]
    fn names_with_parentheses() {
        let process = Process::parse(
            7,
            "7 (a) (b) S 1 7 7 34817 7 4194304 0",
            "Uid:\t5 6 5 5\nGid:\t7 8 7 7\n",
            b"",
        )
        .unwrap();
        assert_eq!((process.name.as_str(), process.uid, process.gid), ("a) (b", 6, 8));
        assert_eq!(process.arguments, "[a) (b]");
        assert_eq!(terminal(process.at(field::TTY)), "pts/1");
        assert_eq!(state(&process), "Ss+");
    }

    #[test]
    fn times() {
        assert_eq!(clock(90_061), "1-01:01:01");
        assert_eq!(elapsed(61), "01:01");
        assert_eq!(elapsed(3661), "01:01:01");
    }

    proptest! {
        #[test]
        fn arguments_never_panic(text in "\\PC{0,60}") {
            let _ = columns(&text);
        }

        #[test]
        fn stat_files_never_panic(stat in "\\PC{0,80}", status in "\\PC{0,80}") {
            let _ = Process::parse(1, &stat, &status, b"");
        }
    }
}
