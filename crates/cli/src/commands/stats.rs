//! `vessel stats`

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use vessel_api::Stats;
use vessel_client::{Client, ContainerListOptions};

use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;
use crate::output::format::{Headers, Row, render};
use crate::output::text::short_id;
use crate::output::units::{bytes_size, human_size_digits};
use crate::terminal;

/// Show what containers use, as it changes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// All containers, not only those that run
    #[arg(short, long)]
    all: bool,
    /// table, json, or a Go template
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    format: String,
    /// Once
    #[arg(long)]
    no_stream: bool,
    /// Do not cut anything short
    #[arg(long)]
    no_trunc: bool,
    /// Containers; all when none is named
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

const HEADERS: &Headers = &[
    ("Container", "CONTAINER"),
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];
const TABLE: &str =
    "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";

/// How often the picture is drawn, and how often new containers are looked for.
const TICK: Duration = Duration::from_millis(500);
const TICKS_TO_LOOK: u32 = 2;

/// What a container's own thread tells.
enum Told {
    Reading(String, Box<Stats>),
    Ended(String),
    Failed(String, vessel_client::Error),
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        let names = self.names(client)?;
        let (sender, receiver) = mpsc::channel();
        // In the order they were named or listed.
        let mut shown: Vec<(String, Option<Stats>)> = Vec::new();
        let follow = |name: String, shown: &mut Vec<(String, Option<Stats>)>| {
            let (client, sender, stream) = (client.clone(), sender.clone(), !self.no_stream);
            shown.push((name.clone(), None));
            std::thread::spawn(move || watch(&client, &name, stream, &sender));
        };
        for name in names {
            follow(name, &mut shown);
        }
        if self.no_stream {
            self.collect(&receiver, &mut shown)?;
            return self.draw(&shown, false);
        }
        let named = !self.containers.is_empty();
        for tick in 0u32.. {
            let until = std::time::Instant::now() + TICK;
            loop {
                match receiver.recv_timeout(until.saturating_duration_since(std::time::Instant::now())) {
                    Ok(Told::Reading(name, stats)) => {
                        if let Some(slot) = shown.iter_mut().find(|(other, _)| *other == name) {
                            slot.1 = Some(*stats);
                        }
                    }
                    Ok(Told::Ended(name)) if named || self.all => {
                        if let Some(slot) = shown.iter_mut().find(|(other, _)| *other == name) {
                            slot.1 = None;
                        }
                    }
                    Ok(Told::Ended(name)) => shown.retain(|(other, _)| *other != name),
                    Ok(Told::Failed(name, error)) => {
                        if named {
                            return Err(error.into());
                        }
                        shown.retain(|(other, _)| *other != name);
                    }
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
            self.draw(&shown, true)?;
            if !named && tick % TICKS_TO_LOOK == 0 {
                for name in self.names(client)? {
                    if !shown.iter().any(|(other, _)| *other == name) {
                        follow(name, &mut shown);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Args {
    fn names(&self, client: &Client) -> Result<Vec<String>> {
        if !self.containers.is_empty() {
            return Ok(self.containers.clone());
        }
        let options = ContainerListOptions {
            all: self.all,
            ..Default::default()
        };
        Ok(client
            .container_list(&options)?
            .into_iter()
            .map(|container| container.id)
            .collect())
    }

    fn collect(&self, receiver: &mpsc::Receiver<Told>, shown: &mut [(String, Option<Stats>)]) -> Result {
        for _ in 0..shown.len() {
            match receiver.recv() {
                Ok(Told::Reading(name, stats)) => {
                    if let Some(slot) = shown.iter_mut().find(|(other, _)| *other == name) {
                        slot.1 = Some(*stats);
                    }
                }
                Ok(Told::Failed(_, error)) if !self.containers.is_empty() => {
                    return Err(Failure::from(error));
                }
                Ok(Told::Ended(_) | Told::Failed(..)) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn draw(&self, shown: &[(String, Option<Stats>)], again: bool) -> Result {
        let rows = shown
            .iter()
            .map(|(name, stats)| self.row(name, stats.as_ref()))
            .collect();
        let format = if self.format.is_empty() {
            "table"
        } else {
            &self.format
        };
        let text = render(format, TABLE, HEADERS, rows)?;
        if again && terminal::stdout_is_terminal() {
            // Over what was drawn before, each line cleared to its end, and the rest of the screen.
            output::print(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")))?;
        } else {
            output::print(&text)?;
        }
        Ok(())
    }

    fn row(&self, name: &str, stats: Option<&Stats>) -> Row {
        let row = Row::default().text(
            "Container",
            if self.containers.is_empty() {
                short_id(name)
            } else {
                name
            },
        );
        let Some(stats) = stats else {
            let id = if self.containers.is_empty() {
                short_id(name)
            } else {
                "--"
            };
            let none = ["CPUPerc", "MemPerc", "NetIO", "BlockIO", "PIDs"].iter();
            return none.fold(
                row.text("ID", id).text("Name", "--").text("MemUsage", "-- / --"),
                |row, field| row.text(field, "--"),
            );
        };
        let usage = Usage::of(stats);
        let pair = |(a, b): (u64, u64)| {
            format!(
                "{} / {}",
                human_size_digits(a as f64, 3),
                human_size_digits(b as f64, 3)
            )
        };
        row.text(
            "ID",
            if self.no_trunc {
                &stats.id
            } else {
                short_id(&stats.id)
            },
        )
        .text("Name", stats.name.trim_start_matches('/'))
        .text("CPUPerc", format!("{:.2}%", usage.cpu))
        .text(
            "MemUsage",
            format!(
                "{} / {}",
                bytes_size(usage.memory as f64),
                bytes_size(usage.limit as f64)
            ),
        )
        .text("MemPerc", format!("{:.2}%", usage.memory_share()))
        .text("NetIO", pair(usage.network))
        .text("BlockIO", pair(usage.block))
        .text("PIDs", usage.pids.to_string())
    }
}

fn watch(client: &Client, name: &str, stream: bool, sender: &mpsc::Sender<Told>) {
    let told = match client.container_stats(name, stream) {
        Err(error) => Told::Failed(name.to_string(), error),
        Ok(readings) => {
            for reading in readings {
                match reading {
                    Ok(stats) => {
                        if sender
                            .send(Told::Reading(name.to_string(), Box::new(stats)))
                            .is_err()
                            || !stream
                        {
                            return;
                        }
                    }
                    Err(_) => break,
                }
            }
            Told::Ended(name.to_string())
        }
    };
    // When nobody listens the command has ended.
    let _ = sender.send(told);
}

/// The figures of a row.
#[derive(Debug, PartialEq)]
struct Usage {
    cpu: f64,
    memory: u64,
    limit: u64,
    network: (u64, u64),
    block: (u64, u64),
    pids: u64,
}

impl Usage {
    fn of(stats: &Stats) -> Self {
        let (now, before) = (&stats.cpu_stats, &stats.precpu_stats);
        let used = now.cpu_usage.total_usage as f64 - before.cpu_usage.total_usage as f64;
        let all = now.system_cpu_usage as f64 - before.system_cpu_usage as f64;
        let count = match now.online_cpus {
            0 => now.cpu_usage.percpu_usage.len() as f64,
            count => f64::from(count),
        };
        let operations = |letter: char| -> u64 {
            let entries = stats.blkio_stats.io_service_bytes_recursive.iter();
            let wanted = |op: &str| op.chars().next().is_some_and(|c| c.eq_ignore_ascii_case(&letter));
            entries
                .filter(|entry| wanted(&entry.op))
                .fold(0, |sum, entry| sum.saturating_add(entry.value))
        };
        let traffic = |of: fn(&vessel_api::InterfaceStats) -> u64| -> u64 {
            stats.networks.values().map(of).fold(0, u64::saturating_add)
        };
        Self {
            cpu: if used > 0.0 && all > 0.0 {
                used / all * count * 100.0
            } else {
                0.0
            },
            memory: memory_without_cache(stats.memory_stats.usage, &stats.memory_stats.stats),
            limit: stats.memory_stats.limit,
            network: (traffic(|i| i.rx_bytes), traffic(|i| i.tx_bytes)),
            block: (operations('r'), operations('w')),
            pids: stats.pids_stats.current,
        }
    }

    fn memory_share(&self) -> f64 {
        if self.limit == 0 {
            0.0
        } else {
            self.memory as f64 / self.limit as f64 * 100.0
        }
    }
}

/// Cache that is not in use is not the container's: cgroup v1 has it under one name, v2 under the other.
fn memory_without_cache(usage: u64, details: &BTreeMap<String, u64>) -> u64 {
    for name in ["total_inactive_file", "inactive_file"] {
        if let Some(cache) = details.get(name)
            && *cache < usage
        {
            return usage - cache;
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        let stats: Stats =
            serde_json::from_str(include_str!("../../../api/tests/golden/stats.json")).unwrap();
        let usage = Usage::of(&stats);
        assert_eq!((usage.memory, usage.limit, usage.pids), (622_592, 64 << 20, 1));
        let used =
            (105_049_795.0 - 87_201_460.0) / (2_564_560_000_000f64 - 2_562_550_000_000.0) * 2.0 * 100.0;
        assert!((usage.cpu - used).abs() < 1e-9);
        assert_eq!(Usage::of(&Stats::default()).memory_share(), 0.0);
    }
}
