//! Limits: memory, processors, processes, block devices.

use vessel_api::{Resources, Ulimit};

use super::devices;
use crate::output::units::parse_size;

/// Limits.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Resources")]
pub struct ResourceOptions {
    /// Memory limit
    #[arg(short = 'm', long, value_name = "bytes", value_parser = parse_size)]
    pub memory: Option<i64>,
    /// Memory and swap together; -1 for unlimited swap
    #[arg(long, value_name = "bytes", value_parser = parse_swap, allow_hyphen_values = true)]
    pub memory_swap: Option<i64>,
    /// Memory that is kept for the container under pressure
    #[arg(long, value_name = "bytes", value_parser = parse_size)]
    pub memory_reservation: Option<i64>,
    /// How readily memory is swapped: 0 to 100
    #[arg(long, value_name = "int", allow_hyphen_values = true, default_value_t = -1)]
    pub memory_swappiness: i64,
    /// Kernel memory limit
    #[arg(long, value_name = "bytes", value_parser = parse_size, hide = true)]
    pub kernel_memory: Option<i64>,
    /// Do not kill the container when it runs out of memory
    #[arg(long)]
    pub oom_kill_disable: bool,
    /// The host's preference to kill it: -1000 to 1000
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    pub oom_score_adj: Option<i64>,
    /// Number of processors
    #[arg(long, value_name = "decimal", value_parser = parse_cpus)]
    pub cpus: Option<i64>,
    /// Processor time relative to others
    #[arg(short = 'c', long, value_name = "int", allow_hyphen_values = true)]
    pub cpu_shares: Option<i64>,
    /// Length of the CFS period in microseconds
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    pub cpu_period: Option<i64>,
    /// Processor time per CFS period in microseconds
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Length of the real-time period in microseconds
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    pub cpu_rt_period: Option<i64>,
    /// Real-time processor time per period in microseconds
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// Processors to run on (0-3, 0,1)
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub cpuset_cpus: String,
    /// Memory nodes to allocate from (0-3, 0,1)
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub cpuset_mems: String,
    /// Limit of processes; -1 for none
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Limits of the first process: NAME=SOFT[:HARD]
    #[arg(long, value_name = "ulimit")]
    pub ulimit: Vec<String>,
    /// Block I/O relative to others: 10 to 1000, 0 to disable
    #[arg(long, value_name = "uint16")]
    pub blkio_weight: Option<u16>,
    /// Block I/O weight of a device: PATH:WEIGHT
    #[arg(long, value_name = "list")]
    pub blkio_weight_device: Vec<String>,
    /// Limit the read rate of a device: PATH:BYTES
    #[arg(long, value_name = "list")]
    pub device_read_bps: Vec<String>,
    /// Limit the write rate of a device: PATH:BYTES
    #[arg(long, value_name = "list")]
    pub device_write_bps: Vec<String>,
    /// Limit the reads per second of a device: PATH:NUMBER
    #[arg(long, value_name = "list")]
    pub device_read_iops: Vec<String>,
    /// Limit the writes per second of a device: PATH:NUMBER
    #[arg(long, value_name = "list")]
    pub device_write_iops: Vec<String>,
    /// Parent of the container's cgroup
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub cgroup_parent: String,
}

fn all<T>(specs: &[String], parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    specs.iter().map(|spec| parse(spec)).collect()
}

impl ResourceOptions {
    /// Fills in its part of the request.
    pub fn fill(&self, resources: &mut Resources) -> Result<(), String> {
        let swappiness = self.memory_swappiness;
        if swappiness != -1 && !(0..=100).contains(&swappiness) {
            return Err(format!(
                "invalid value: {swappiness}. Valid memory swappiness range is 0-100"
            ));
        }
        resources.memory = self.memory.unwrap_or(0);
        resources.memory_swap = self.memory_swap.unwrap_or(0);
        resources.memory_reservation = self.memory_reservation.unwrap_or(0);
        resources.memory_swappiness = Some(swappiness);
        resources.kernel_memory = self.kernel_memory.unwrap_or(0);
        resources.oom_kill_disable = Some(self.oom_kill_disable);
        resources.nano_cpus = self.cpus.unwrap_or(0);
        resources.cpu_shares = self.cpu_shares.unwrap_or(0);
        resources.cpu_period = self.cpu_period.unwrap_or(0);
        resources.cpu_quota = self.cpu_quota.unwrap_or(0);
        resources.cpu_realtime_period = self.cpu_rt_period.unwrap_or(0);
        resources.cpu_realtime_runtime = self.cpu_rt_runtime.unwrap_or(0);
        resources.cpuset_cpus = self.cpuset_cpus.clone();
        resources.cpuset_mems = self.cpuset_mems.clone();
        resources.pids_limit = Some(self.pids_limit.unwrap_or(0));
        resources.ulimits = ulimits(&self.ulimit)?;
        resources.blkio_weight = self.blkio_weight.unwrap_or(0);
        resources.blkio_weight_device = all(&self.blkio_weight_device, devices::weight)?;
        resources.blkio_device_read_bps = all(&self.device_read_bps, devices::bytes_per_second)?;
        resources.blkio_device_write_bps = all(&self.device_write_bps, devices::bytes_per_second)?;
        resources.blkio_device_read_iops = all(&self.device_read_iops, devices::operations_per_second)?;
        resources.blkio_device_write_iops = all(&self.device_write_iops, devices::operations_per_second)?;
        resources.cgroup_parent = self.cgroup_parent.clone();
        Ok(())
    }
}

/// A size, or -1.
pub fn parse_swap(text: &str) -> Result<i64, String> {
    if text == "-1" { Ok(-1) } else { parse_size(text) }
}

/// `1.5` processors, in billionths.
pub fn parse_cpus(text: &str) -> Result<i64, String> {
    let wrong = || format!("failed to parse {text} as a rational number");
    if text.starts_with('-') {
        return Err("it must not be negative".to_string());
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 9 {
        return Err("value is too precise".to_string());
    }
    let whole: i64 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| wrong())?
    };
    let fraction: i64 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    whole
        .checked_mul(1_000_000_000)
        .and_then(|whole| whole.checked_add(fraction))
        .ok_or_else(wrong)
}

/// Reads `--ulimit`s; of several of one name the last counts.
fn ulimits(specs: &[String]) -> Result<Vec<Ulimit>, String> {
    let mut limits: Vec<Ulimit> = Vec::new();
    for spec in specs {
        let limit = ulimit(spec)?;
        limits.retain(|other| other.name != limit.name);
        limits.push(limit);
    }
    limits.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(limits)
}

fn ulimit(spec: &str) -> Result<Ulimit, String> {
    let (name, values) = spec
        .split_once('=')
        .ok_or_else(|| format!("invalid ulimit argument: {spec}"))?;
    if !Ulimit::NAMES.contains(&name) {
        return Err(format!("invalid ulimit type: {name}"));
    }
    let number = |text: &str| {
        text.parse::<i64>()
            .map_err(|_| format!("invalid ulimit value: {text}"))
    };
    let (soft, hard) = match values.split(':').collect::<Vec<_>>().as_slice() {
        [both] => (number(both)?, number(both)?),
        [soft, hard] => (number(soft)?, number(hard)?),
        _ => {
            let what = "too many limit value arguments";
            return Err(format!(
                "{what} - {values}, can only have up to two, `soft[:hard]`"
            ));
        }
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        let soft = if soft == -1 {
            "-1 (unlimited)".to_string()
        } else {
            soft.to_string()
        };
        return Err(format!(
            "ulimit soft limit must be less than or equal to hard limit: soft: {soft}, hard: {hard}"
        ));
    }
    Ok(Ulimit {
        name: name.to_string(),
        hard,
        soft,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cpus() {
        for (text, nano) in [
            ("1", 1_000_000_000),
            ("0.5", 500_000_000),
            (".25", 250_000_000),
            ("1.", 1_000_000_000),
        ] {
            assert_eq!(parse_cpus(text), Ok(nano), "{text}");
        }
        assert_eq!(parse_cpus("0.1230000000000"), Ok(123_000_000));
        for wrong in ["", ".", "x", "-1", "1.0000000001", "1e3", "99999999999"] {
            assert!(parse_cpus(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits() {
        let list = ulimits(&["nofile=1:2".into(), "core=-1".into(), "nofile=3".into()]).unwrap();
        assert_eq!(
            list[0],
            Ulimit {
                name: "core".into(),
                hard: -1,
                soft: -1
            }
        );
        assert_eq!(
            list[1],
            Ulimit {
                name: "nofile".into(),
                hard: 3,
                soft: 3
            }
        );
        for wrong in [
            "",
            "x=1",
            "nofile",
            "nofile=",
            "nofile=2:1",
            "nofile=-1:5",
            "nofile=1:2:3",
            "nofile=a",
        ] {
            assert!(ulimit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn swappiness() {
        let mut resources = Resources::default();
        let options = |memory_swappiness| ResourceOptions {
            memory_swappiness,
            ..ResourceOptions::default()
        };
        assert!(options(101).fill(&mut resources).is_err());
        assert!(options(-2).fill(&mut resources).is_err());
        assert!(options(100).fill(&mut resources).is_ok());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,16}") {
            let _ = parse_cpus(&text);
            let _ = ulimit(&text);
            let _ = ulimit(&format!("nofile={text}"));
        }
    }
}
