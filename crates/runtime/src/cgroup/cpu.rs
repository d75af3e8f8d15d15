//! `cpu`: weight, bandwidth, burst, idle, real-time share.

use super::Node;
use super::hierarchy::Version;
use super::lack::Lacks;
use super::resources::Cpu;
use crate::Result;

const DEFAULT_PERIOD: u64 = 100_000;

pub(super) fn apply(node: Option<Node<'_>>, cpu: &Cpu, lacks: &mut Lacks) -> Result<()> {
    let Some(node) = node else {
        for (property, asked) in [
            ("cpu.shares", cpu.shares.is_some_and(|shares| shares != 0)),
            ("cpu.quota", cpu.quota.is_some_and(|quota| quota > 0)),
            ("cpu.burst", cpu.burst.is_some_and(|burst| burst != 0)),
            ("cpu.idle", cpu.idle.is_some_and(|idle| idle != 0)),
            (
                "cpu.realtimeRuntime",
                cpu.realtime_runtime.is_some_and(|runtime| runtime != 0),
            ),
        ] {
            if asked {
                lacks.add(property, "no cgroup hierarchy has the cpu controller");
            }
        }
        return Ok(());
    };
    match node.version {
        Version::V1 => v1(node, cpu, lacks),
        Version::V2 => v2(node, cpu, lacks),
    }
}

fn v1(node: Node<'_>, cpu: &Cpu, lacks: &mut Lacks) -> Result<()> {
    let dir = node.dir;
    if let Some(shares) = cpu.shares.filter(|&shares| shares != 0) {
        dir.write_or_lack("cpu.shares", "cpu.shares", &shares.to_string(), lacks)?;
    }
    let mut writes = Vec::new();
    if let Some(period) = cpu.period.filter(|&period| period != 0) {
        writes.push(("cpu.period", "cpu.cfs_period_us", period.to_string()));
    }
    if let Some(quota) = cpu.quota.filter(|&quota| quota != 0) {
        writes.push(("cpu.quota", "cpu.cfs_quota_us", quota.max(-1).to_string()));
    }
    if let Some(burst) = cpu.burst {
        writes.push(("cpu.burst", "cpu.cfs_burst_us", burst.to_string()));
    }
    dir.write_settling(&writes, lacks)?;
    let mut writes = Vec::new();
    if let Some(period) = cpu.realtime_period.filter(|&period| period != 0) {
        writes.push(("cpu.realtimePeriod", "cpu.rt_period_us", period.to_string()));
    }
    if let Some(runtime) = cpu.realtime_runtime.filter(|&runtime| runtime != 0) {
        writes.push(("cpu.realtimeRuntime", "cpu.rt_runtime_us", runtime.to_string()));
    }
    dir.write_settling(&writes, lacks)?;
    idle(node, cpu, lacks)
}

fn v2(node: Node<'_>, cpu: &Cpu, lacks: &mut Lacks) -> Result<()> {
    let dir = node.dir;
    if let Some(shares) = cpu.shares.filter(|&shares| shares != 0) {
        dir.write_or_lack("cpu.shares", "cpu.weight", &weight(shares).to_string(), lacks)?;
    }
    let mut writes = Vec::new();
    let quota = cpu.quota.filter(|&quota| quota != 0);
    let period = cpu.period.filter(|&period| period != 0);
    if quota.is_some() || period.is_some() {
        let text = match quota {
            Some(quota) if quota > 0 => quota.to_string(),
            Some(_) => "max".to_owned(),
            // Only the period changes: the file takes both, so say again what is there.
            None => first_word(dir.read("cpu.max")).unwrap_or_else(|| "max".to_owned()),
        };
        let period = match period {
            Some(period) => period,
            None => second_number(dir.read("cpu.max")).unwrap_or(DEFAULT_PERIOD),
        };
        writes.push(("cpu.quota", "cpu.max", format!("{text} {period}")));
    }
    if let Some(burst) = cpu.burst {
        writes.push(("cpu.burst", "cpu.max.burst", burst.to_string()));
    }
    dir.write_settling(&writes, lacks)?;
    if cpu.realtime_runtime.is_some_and(|runtime| runtime != 0) {
        lacks.add("cpu.realtimeRuntime", "cgroup v2 has no real-time bandwidth");
    }
    idle(node, cpu, lacks)
}

fn idle(node: Node<'_>, cpu: &Cpu, lacks: &mut Lacks) -> Result<()> {
    match cpu.idle {
        Some(idle) => node
            .dir
            .write_or_lack("cpu.idle", "cpu.idle", &idle.to_string(), lacks),
        None => Ok(()),
    }
}

fn first_word(text: Option<String>) -> Option<String> {
    text?.split_whitespace().next().map(str::to_owned)
}

fn second_number(text: Option<String>) -> Option<u64> {
    text?.split_whitespace().nth(1)?.parse().ok()
}

/// v1 shares (2 to 262144, usually 1024) to a v2 weight (1 to 10000, usually 100), so that the usual values, the least and
/// the greatest meet: the curve on which the OCI runtimes agreed in 2025.
pub(super) fn weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // A hair is taken off so that rounding errors of the exact points do not count as the next integer.
    ((10f64.powf(exponent) - 1e-9).ceil() as u64).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_meet_at_the_usual_points_and_rise() {
        assert_eq!(
            [
                weight(0),
                weight(2),
                weight(1024),
                weight(262_144),
                weight(u64::MAX)
            ],
            [1, 1, 100, 10_000, 10_000]
        );
        let mut last = 0;
        for shares in (2..262_200).step_by(7) {
            assert!(weight(shares) >= last, "{shares}");
            last = weight(shares);
        }
    }
}
