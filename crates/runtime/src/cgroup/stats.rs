//! Statistics, in one shape for v1 and v2: everything Docker's statistics report.
//!
//! Files that this kernel does not have leave their numbers at zero or their parts absent; a cgroup that goes away while it
//! is read gives what was read until then.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::dir::Dir;
use super::hierarchy::{Controller, Version};
use super::{Cgroup, Node};

/// The numbers of a container at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory; absent without a memory controller.
    pub memory: Option<MemoryStats>,
    /// Tasks; absent without a pids controller.
    pub pids: Option<PidsStats>,
    /// Block devices.
    pub blkio: BlkioStats,
    /// Huge pages by size.
    pub hugetlb: BTreeMap<String, HugetlbStats>,
    /// Pressure stall information; absent without a v2 hierarchy or PSI.
    pub pressure: Option<PressureStats>,
}

/// Processor time, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// All of it.
    pub total: u64,
    /// In programs.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
    /// By processor (v1 only).
    pub per_cpu: Vec<u64>,
    /// Periods of the bandwidth limit.
    pub periods: u64,
    /// Those in which the limit was hit.
    pub throttled_periods: u64,
    /// How long processes were held up.
    pub throttled_time: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// In use, page cache included.
    pub usage: u64,
    /// The most that ever was (v2: since Linux 5.19).
    pub max_usage: Option<u64>,
    /// The limit; absent when there is none.
    pub limit: Option<u64>,
    /// How often the limit was hit.
    pub failcnt: u64,
    /// Swap in use; on v1 the difference of both counters.
    pub swap: Option<u64>,
    /// Limit of swap alone; absent when there is none.
    pub swap_limit: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// The kernel's `memory.stat`.
    pub stat: BTreeMap<String, u64>,
}

impl MemoryStats {
    /// Usage without the page cache that the kernel would give up first: what `docker stats` shows.
    pub fn working_set(&self) -> u64 {
        let cache = self
            .stat
            .get("total_inactive_file")
            .or_else(|| self.stat.get("inactive_file"));
        cache
            .filter(|&&cache| cache < self.usage)
            .map_or(self.usage, |cache| self.usage - cache)
    }
}

/// Tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidsStats {
    /// Now.
    pub current: u64,
    /// The limit; absent when there is none.
    pub limit: Option<u64>,
}

/// Block devices, the cgroup and all below it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkioStats {
    /// Bytes.
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    /// Operations.
    pub io_serviced_recursive: Vec<BlkioEntry>,
}

/// One counter of a block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkioEntry {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// As Docker writes it: `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total` on v1; `read`, `write` on v2.
    pub op: String,
    /// The counter.
    pub value: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugetlbStats {
    /// In use.
    pub usage: u64,
    /// The most that ever was (v1 only).
    pub max_usage: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Pressure stall information by resource.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PressureStats {
    /// Processor.
    pub cpu: Option<Pressure>,
    /// Memory.
    pub memory: Option<Pressure>,
    /// Block devices.
    pub io: Option<Pressure>,
}

/// The two lines of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// Some task was held up.
    pub some: PressureLine,
    /// All tasks were.
    pub full: PressureLine,
}

/// Shares of time in per cent over windows of seconds, and the total in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub struct PressureLine {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
}

pub(super) fn collect(cgroup: &Cgroup) -> Stats {
    let node = |controller| cgroup.node(controller);
    let mut stats = Stats {
        cpu: cpu(cgroup),
        ..Stats::default()
    };
    stats.memory = node(Controller::Memory).map(memory);
    stats.pids = node(Controller::Pids).map(|node| PidsStats {
        current: node.dir.read_number("pids.current").unwrap_or(0),
        limit: node.dir.read_number("pids.max"),
    });
    if let Some(node) = node(Controller::Blkio) {
        stats.blkio = blkio(node);
    }
    if let Some(node) = node(Controller::Hugetlb) {
        stats.hugetlb = hugetlb(node);
    }
    stats.pressure = cgroup.unified().and_then(pressure);
    stats
}

fn cpu(cgroup: &Cgroup) -> CpuStats {
    let mut stats = CpuStats::default();
    if let Some(node) = cgroup.node(Controller::Cpuacct) {
        stats.total = node.dir.read_number("cpuacct.usage").unwrap_or(0);
        let number = |file| node.dir.read_number(file);
        // In nanoseconds since Linux 4.7; cpuacct.stat has only hundredths of a second.
        stats.user = number("cpuacct.usage_user").unwrap_or(0);
        stats.system = number("cpuacct.usage_sys").unwrap_or(0);
        stats.per_cpu = node
            .dir
            .read("cpuacct.usage_percpu")
            .map(|text| {
                text.split_whitespace()
                    .filter_map(|word| word.parse().ok())
                    .collect()
            })
            .unwrap_or_default();
        if let Some(text) = cgroup
            .node(Controller::Cpu)
            .and_then(|node| node.dir.read("cpu.stat"))
        {
            let map = flat(&text);
            let get = |key| map.get(key).copied().unwrap_or(0);
            stats.periods = get("nr_periods");
            stats.throttled_periods = get("nr_throttled");
            stats.throttled_time = get("throttled_time");
        }
    } else if let Some(text) = cgroup.unified().and_then(|dir| dir.read("cpu.stat")) {
        // Part of every v2 cgroup, with or without the controller.
        let map = flat(&text);
        let get = |key| map.get(key).copied().unwrap_or(0);
        stats.total = get("usage_usec").saturating_mul(1000);
        stats.user = get("user_usec").saturating_mul(1000);
        stats.system = get("system_usec").saturating_mul(1000);
        stats.periods = get("nr_periods");
        stats.throttled_periods = get("nr_throttled");
        stats.throttled_time = get("throttled_usec").saturating_mul(1000);
    }
    stats
}

fn memory(node: Node<'_>) -> MemoryStats {
    let number = |file| node.dir.read_number(file);
    let stat = node
        .dir
        .read("memory.stat")
        .map(|text| flat(&text))
        .unwrap_or_default();
    match node.version {
        Version::V1 => {
            // An unlimited counter holds the greatest multiple of a page that fits.
            let limited = |file| number(file).filter(|&limit| limit < i64::MAX as u64 & !0xffff);
            let usage = number("memory.usage_in_bytes").unwrap_or(0);
            let limit = limited("memory.limit_in_bytes");
            let both_limit = limited("memory.memsw.limit_in_bytes");
            MemoryStats {
                usage,
                max_usage: number("memory.max_usage_in_bytes"),
                limit,
                failcnt: number("memory.failcnt").unwrap_or(0),
                swap: number("memory.memsw.usage_in_bytes").map(|both| both.saturating_sub(usage)),
                swap_limit: both_limit
                    .zip(limit)
                    .map(|(both, limit)| both.saturating_sub(limit)),
                oom_kills: super::events::kills(node),
                stat,
            }
        }
        Version::V2 => {
            let events = node
                .dir
                .read("memory.events")
                .map(|text| flat(&text))
                .unwrap_or_default();
            MemoryStats {
                usage: number("memory.current").unwrap_or(0),
                max_usage: number("memory.peak"),
                limit: number("memory.max"),
                failcnt: events.get("max").copied().unwrap_or(0),
                swap: number("memory.swap.current"),
                swap_limit: number("memory.swap.max"),
                oom_kills: events.get("oom_kill").copied().unwrap_or(0),
                stat,
            }
        }
    }
}

fn blkio(node: Node<'_>) -> BlkioStats {
    match node.version {
        Version::V1 => {
            let read = |throttle: &str, bfq: &str| {
                let text = node
                    .dir
                    .read(throttle)
                    .or_else(|| node.dir.read(bfq))
                    .unwrap_or_default();
                text.lines().filter_map(blkio_line).collect()
            };
            BlkioStats {
                io_service_bytes_recursive: read(
                    "blkio.throttle.io_service_bytes_recursive",
                    "blkio.bfq.io_service_bytes_recursive",
                ),
                io_serviced_recursive: read(
                    "blkio.throttle.io_serviced_recursive",
                    "blkio.bfq.io_serviced_recursive",
                ),
            }
        }
        Version::V2 => io_stat(&node.dir.read("io.stat").unwrap_or_default()),
    }
}

/// `8:0 Read 1234`; the grand total has no device and is left out.
fn blkio_line(line: &str) -> Option<BlkioEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = device(words.next()?)?;
    let op = words.next()?.to_owned();
    Some(BlkioEntry {
        major,
        minor,
        op,
        value: words.next()?.parse().ok()?,
    })
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io_stat(text: &str) -> BlkioStats {
    let mut stats = BlkioStats::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(device) else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "write"),
                "rios" => (&mut stats.io_serviced_recursive, "read"),
                "wios" => (&mut stats.io_serviced_recursive, "write"),
                _ => continue,
            };
            if let Ok(value) = value.parse() {
                list.push(BlkioEntry {
                    major,
                    minor,
                    op: op.to_owned(),
                    value,
                });
            }
        }
    }
    stats
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn hugetlb(node: Node<'_>) -> BTreeMap<String, HugetlbStats> {
    let v1 = node.version == Version::V1;
    let usage = if v1 { ".usage_in_bytes" } else { ".current" };
    node.dir
        .file_names()
        .iter()
        .filter_map(|name| name.strip_prefix("hugetlb.")?.strip_suffix(usage))
        .filter(|size| !size.contains('.'))
        .map(|size| {
            let number = |suffix: &str| {
                node.dir
                    .read_number(&format!("hugetlb.{size}.{suffix}"))
                    .unwrap_or(0)
            };
            let stats = if v1 {
                HugetlbStats {
                    usage: number("usage_in_bytes"),
                    max_usage: number("max_usage_in_bytes"),
                    failcnt: number("failcnt"),
                }
            } else {
                let events = node
                    .dir
                    .read(&format!("hugetlb.{size}.events"))
                    .unwrap_or_default();
                let failcnt = flat(&events).get("max").copied().unwrap_or(0);
                HugetlbStats {
                    usage: number("current"),
                    max_usage: 0,
                    failcnt,
                }
            };
            (size.to_owned(), stats)
        })
        .collect()
}

fn pressure(dir: &Dir) -> Option<PressureStats> {
    let read = |file| dir.read(file).map(|text| pressure_file(&text));
    let stats = PressureStats {
        cpu: read("cpu.pressure"),
        memory: read("memory.pressure"),
        io: read("io.pressure"),
    };
    (stats.cpu.is_some() || stats.memory.is_some() || stats.io.is_some()).then_some(stats)
}

fn pressure_file(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let target = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => target.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => target.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => target.avg300 = value.parse().unwrap_or(0.0),
                "total" => target.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    pressure
}

/// Lines `KEY NUMBER`.
fn flat(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_devices() {
        let entry = blkio_line("254:0 Read 4096").unwrap();
        assert_eq!(
            entry,
            BlkioEntry {
                major: 254,
                minor: 0,
                op: "Read".into(),
                value: 4096
            }
        );
        assert_eq!(blkio_line("Total 4096"), None);
        let stats = io_stat("254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:1 \n");
        let values = |list: &[BlkioEntry]| {
            list.iter()
                .map(|entry| (entry.op.clone(), entry.value))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            values(&stats.io_service_bytes_recursive),
            [("read".into(), 1), ("write".into(), 2)]
        );
        assert_eq!(
            values(&stats.io_serviced_recursive),
            [("read".into(), 3), ("write".into(), 4)]
        );
    }

    #[test]
    fn pressure_lines() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let pressure = pressure_file(text);
        assert_eq!(
            (pressure.some.avg10, pressure.some.total, pressure.full.total),
            (1.5, 12, 7)
        );
    }

    #[test]
    fn working_set_leaves_cold_cache_out() {
        let mut memory = MemoryStats {
            usage: 100,
            ..MemoryStats::default()
        };
        assert_eq!(memory.working_set(), 100);
        memory.stat.insert("inactive_file".into(), 30);
        assert_eq!(memory.working_set(), 70);
        memory.stat.insert("total_inactive_file".into(), 200);
        assert_eq!(memory.working_set(), 100);
    }
}
