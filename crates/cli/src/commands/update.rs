//! `vessel update`

use serde_json::{Map, Value, json};

use super::for_each;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::options::process::restart_policy;
use crate::options::resources::{parse_cpus, parse_swap};
use crate::output::units::parse_size;

/// Change the limits of containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Block I/O relative to others: 10 to 1000, 0 to disable
    #[arg(long, value_name = "uint16")]
    blkio_weight: Option<u16>,
    /// Length of the CFS period in microseconds
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    cpu_period: Option<i64>,
    /// Processor time per CFS period in microseconds
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Length of the real-time period in microseconds
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    cpu_rt_period: Option<i64>,
    /// Real-time processor time per period in microseconds
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<i64>,
    /// Processor time relative to others
    #[arg(short = 'c', long, value_name = "int", allow_hyphen_values = true)]
    cpu_shares: Option<i64>,
    /// Number of processors
    #[arg(long, value_name = "decimal", value_parser = parse_cpus)]
    cpus: Option<i64>,
    /// Processors to run on (0-3, 0,1)
    #[arg(long, value_name = "string")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to allocate from (0-3, 0,1)
    #[arg(long, value_name = "string")]
    cpuset_mems: Option<String>,
    /// Memory limit
    #[arg(short, long, value_name = "bytes", value_parser = parse_size)]
    memory: Option<i64>,
    /// Memory that is kept for the container under pressure
    #[arg(long, value_name = "bytes", value_parser = parse_size)]
    memory_reservation: Option<i64>,
    /// Memory and swap together; -1 for unlimited swap
    #[arg(long, value_name = "bytes", value_parser = parse_swap, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Limit of processes; -1 for none
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// When to restart it
    #[arg(long, value_name = "string")]
    restart: Option<String>,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let request = self.request()?;
        let client = context.client()?;
        for_each(&self.containers, |name| {
            for warning in client.container_update(name, &request)?.warnings {
                crate::output::warn(&format!("WARNING: {warning}"));
            }
            Ok(())
        })
    }
}

impl Args {
    /// Only what was given: zero would be taken for a change by some daemons.
    fn request(&self) -> Result<Value> {
        let mut request = Map::new();
        let numbers = [
            ("BlkioWeight", self.blkio_weight.map(i64::from)),
            ("CpuPeriod", self.cpu_period),
            ("CpuQuota", self.cpu_quota),
            ("CpuRealtimePeriod", self.cpu_rt_period),
            ("CpuRealtimeRuntime", self.cpu_rt_runtime),
            ("CpuShares", self.cpu_shares),
            ("NanoCpus", self.cpus),
            ("Memory", self.memory),
            ("MemoryReservation", self.memory_reservation),
            ("MemorySwap", self.memory_swap),
            ("PidsLimit", self.pids_limit),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                request.insert(name.to_string(), json!(value));
            }
        }
        for (name, value) in [
            ("CpusetCpus", &self.cpuset_cpus),
            ("CpusetMems", &self.cpuset_mems),
        ] {
            if let Some(value) = value {
                request.insert(name.to_string(), json!(value));
            }
        }
        if let Some(policy) = &self.restart {
            let policy = restart_policy(policy).map_err(Failure::usage)?;
            request.insert("RestartPolicy".to_string(), json!(policy));
        }
        if request.is_empty() {
            return Err(
                Failure::new("you must provide one or more flags when using this command")
                    .with_hint("see 'vessel update --help'"),
            );
        }
        Ok(Value::Object(request))
    }
}
