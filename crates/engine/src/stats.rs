//! What a container uses: Docker's statistics from its cgroup and its network namespace.
//!
//! A container that does not run has a name and an ID and nothing else, as with Docker. Readings come once a second,
//! each with the processor's counters of the one before, so that a client can compute a share from one message.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::time::{Interval, MissedTickBehavior, interval};
use vessel_api::inspect::ZERO_TIME;
use vessel_api::{
    BlkioEntry, BlkioStats, CpuStats, CpuUsage, InterfaceStats, Map, MemoryStats, PidsStats, Stats,
    ThrottlingData,
};
use vessel_network::{EndpointRecord, StatsReader};
use vessel_runtime::cgroup;

use crate::container::record::Status;
use crate::oci_spec::wall;
use crate::system::memory_total;
use crate::{Container, Engine, Error, Result, blocking, time};

/// The time between two readings.
const PERIOD: Duration = Duration::from_secs(1);

impl Engine {
    /// One reading. With `one_shot` at once; otherwise after a second, to have one before it to compare with.
    ///
    /// # Errors
    /// No such container.
    pub async fn container_stats_once(&self, id: &str, one_shot: bool) -> Result<Stats> {
        let container = self.container(id)?;
        let first = read(self, &container).await;
        if one_shot || first.read == ZERO_TIME {
            return Ok(first);
        }
        tokio::time::sleep(PERIOD).await;
        Ok(following(read(self, &container).await, &first))
    }

    /// Readings, one a second, until the container is removed.
    ///
    /// # Errors
    /// No such container.
    pub fn container_stats(self: &Arc<Self>, id: &str) -> Result<StatsStream> {
        let container = self.container(id)?;
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(StatsStream {
            engine: Arc::clone(self),
            container,
            ticks,
            previous: None,
        })
    }
}

/// Readings on their way.
#[derive(Debug)]
pub struct StatsStream {
    engine: Arc<Engine>,
    container: Arc<Container>,
    ticks: Interval,
    previous: Option<Stats>,
}

impl StatsStream {
    /// The next reading; none when the container is gone.
    pub async fn next(&mut self) -> Option<Stats> {
        self.ticks.tick().await;
        self.engine.container(self.container.id()).ok()?;
        let mut now = read(&self.engine, &self.container).await;
        if let Some(previous) = &self.previous {
            now = following(now, previous);
        }
        self.previous = Some(now.clone());
        Some(now)
    }
}

/// A reading with the processor's counters of the one before it.
fn following(mut now: Stats, before: &Stats) -> Stats {
    if now.read != ZERO_TIME {
        now.preread.clone_from(&before.read);
        now.precpu_stats.clone_from(&before.cpu_stats);
    }
    now
}

/// Reads on a blocking thread: the kernel may have to add up the counters of all processors first.
async fn read(engine: &Engine, container: &Arc<Container>) -> Stats {
    let owned = Arc::clone(container);
    let cgroup = engine.container_cgroup(container);
    let nothing = || Stats {
        name: format!("/{}", container.record().name),
        id: container.id().to_owned(),
        read: ZERO_TIME.to_owned(),
        preread: ZERO_TIME.to_owned(),
        ..Stats::default()
    };
    let reading = blocking(move || {
        let state = owned.state();
        if !matches!(state.status, Status::Running | Status::Paused) || state.pid == 0 {
            return Err(Error::conflict("not running"));
        }
        let numbers = cgroup?.stats();
        let record = owned.record();
        let networks = match record.host.network_mode.as_str() {
            "host" => Map::new(),
            _ if wall::is_machine(&record.host) => taps(&state.endpoints),
            _ => interfaces(state.pid),
        };
        Ok((numbers, networks, HostCpu::read()))
    });
    match reading.await {
        // It ended, before or meanwhile.
        Err(_) => nothing(),
        Ok((numbers, networks, host)) => Stats {
            read: time::rfc3339(time::now()),
            pids_stats: match wall::is_machine(&container.record().host) {
                true => {
                    let (current, limit) = engine.machine_pids(container).await;
                    PidsStats { current, limit }
                }
                false => numbers.pids.map(|pids| pids_stats(&pids)).unwrap_or_default(),
            },
            blkio_stats: BlkioStats {
                io_service_bytes_recursive: entries(numbers.blkio.io_service_bytes_recursive),
                io_serviced_recursive: entries(numbers.blkio.io_serviced_recursive),
                ..BlkioStats::default()
            },
            cpu_stats: cpu_stats(numbers.cpu, &host),
            memory_stats: numbers.memory.map(memory_stats).unwrap_or_default(),
            networks,
            ..nothing()
        },
    }
}

fn pids_stats(pids: &cgroup::stats::PidsStats) -> PidsStats {
    PidsStats {
        current: pids.current,
        limit: pids.limit.unwrap_or_default(),
    }
}

fn entries(entries: Vec<cgroup::stats::BlkioEntry>) -> Vec<BlkioEntry> {
    let convert = |entry: cgroup::stats::BlkioEntry| BlkioEntry {
        major: entry.major,
        minor: entry.minor,
        op: entry.op,
        value: entry.value,
    };
    entries.into_iter().map(convert).collect()
}

fn cpu_stats(cpu: cgroup::stats::CpuStats, host: &HostCpu) -> CpuStats {
    CpuStats {
        cpu_usage: CpuUsage {
            total_usage: cpu.total,
            percpu_usage: cpu.per_cpu,
            usage_in_kernelmode: cpu.system,
            usage_in_usermode: cpu.user,
        },
        system_cpu_usage: host.usage,
        online_cpus: host.online,
        throttling_data: ThrottlingData {
            periods: cpu.periods,
            throttled_periods: cpu.throttled_periods,
            throttled_time: cpu.throttled_time,
        },
    }
}

fn memory_stats(memory: cgroup::stats::MemoryStats) -> MemoryStats {
    let host = memory_total();
    MemoryStats {
        usage: memory.usage,
        max_usage: memory.max_usage.unwrap_or_default(),
        failcnt: memory.failcnt,
        limit: memory.limit.filter(|&limit| limit < host).unwrap_or(host),
        stats: memory.stat,
    }
}

/// The processors of the host: what they did since boot, in nanoseconds, and how many there are.
struct HostCpu {
    usage: u64,
    online: u32,
}

impl HostCpu {
    fn read() -> Self {
        Self::parse(
            &fs::read_to_string("/proc/stat").unwrap_or_default(),
            rustix::param::clock_ticks_per_second().max(1),
        )
    }

    /// proc_stat(5). As Docker does, user to softirq are added up; steal and guest time are not.
    fn parse(text: &str, ticks: u64) -> Self {
        let mut host = Self { usage: 0, online: 0 };
        for line in text.lines().take_while(|line| line.starts_with("cpu")) {
            let mut fields = line.split_ascii_whitespace();
            if fields.next() == Some("cpu") {
                let sum: u64 = fields.take(7).filter_map(|field| field.parse::<u64>().ok()).sum();
                host.usage = sum.saturating_mul(1_000_000_000 / ticks);
            } else {
                host.online += 1;
            }
        }
        host
    }
}

/// The interfaces of a process's network namespace, loopback left out.
fn interfaces(pid: i32) -> Map<InterfaceStats> {
    // By descriptor of the process's directory, so that file and process belong together.
    let read = || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let process = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())?;
        let file = rustix::fs::openat(
            &process,
            "net/dev",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        std::io::read_to_string(fs::File::from(file))
    };
    parse_interfaces(&read().unwrap_or_default())
}

/// The interfaces of a machine, by what they are called in it, as this side of them counts.
fn taps(endpoints: &BTreeMap<String, EndpointRecord>) -> Map<InterfaceStats> {
    let Ok(mut reader) = StatsReader::open() else {
        return Map::new();
    };
    let read = |end: &EndpointRecord| {
        let counters = reader.endpoint(&end.ifname).ok()?;
        let shown = InterfaceStats {
            rx_bytes: counters.rx_bytes,
            rx_packets: counters.rx_packets,
            rx_errors: counters.rx_errors,
            rx_dropped: counters.rx_dropped,
            tx_bytes: counters.tx_bytes,
            tx_packets: counters.tx_packets,
            tx_errors: counters.tx_errors,
            tx_dropped: counters.tx_dropped,
        };
        Some((end.inside.clone(), shown))
    };
    endpoints.values().filter_map(read).collect()
}

/// `/proc/PID/net/dev`: two lines of headings, then `name:` and sixteen counters.
fn parse_interfaces(text: &str) -> Map<InterfaceStats> {
    text.lines()
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let name = name.trim();
            let counters: Vec<u64> = counters
                .split_ascii_whitespace()
                .map_while(|field| field.parse().ok())
                .collect();
            let [
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                _,
                _,
                _,
                _,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
                ..,
            ] = counters[..]
            else {
                return None;
            };
            (name != "lo").then(|| {
                let stats = InterfaceStats {
                    rx_bytes,
                    rx_packets,
                    rx_errors,
                    rx_dropped,
                    tx_bytes,
                    tx_packets,
                    tx_errors,
                    tx_dropped,
                };
                (name.to_owned(), stats)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_read() {
        let text = "cpu  1 2 3 4 5 6 7 100 100 0\ncpu0 1 1 1 1 1 1 1 1 1 1\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 5\ncpu9 1\n";
        let host = HostCpu::parse(text, 100);
        assert_eq!((host.usage, host.online), (280_000_000, 2));
        assert!(HostCpu::read().online > 0);
    }

    #[test]
    fn interfaces_without_loopback() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n bad: 1 2\n";
        let found = parse_interfaces(text);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (
                found["eth0"].rx_bytes,
                found["eth0"].tx_bytes,
                found["eth0"].tx_dropped
            ),
            (10, 50, 8)
        );
    }

    #[test]
    fn a_limit_beyond_the_host_is_the_host() {
        let memory = |limit| {
            memory_stats(cgroup::stats::MemoryStats {
                limit,
                ..Default::default()
            })
            .limit
        };
        assert_eq!(memory(None), memory_total());
        assert_eq!(memory(Some(u64::MAX)), memory_total());
        assert_eq!(memory(Some(4096)), 4096);
    }
}
