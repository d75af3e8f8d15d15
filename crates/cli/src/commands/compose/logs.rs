//! `vessel compose logs`

use vessel_client::LogsOptions;
use vessel_compose::act::logs;
use vessel_compose::act::state::OneOff;

use super::options::Session;
use super::printer::{Printer, short_name};
use crate::commands::logs::time;
use crate::failure::{Failure, Result};

/// Show what containers wrote
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    /// Of the container of that number
    #[arg(long, value_name = "int", default_value = "0")]
    index: u32,
    /// Do not colour
    #[arg(long)]
    no_color: bool,
    /// Show lines without the names of containers
    #[arg(long)]
    no_log_prefix: bool,
    /// Only since a time (2026-01-02T15:04:05Z) or for a duration (42m)
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    since: String,
    /// Lines from the end, or all
    #[arg(short = 'n', long, value_name = "string", default_value = "all")]
    tail: String,
    /// Show times
    #[arg(short, long)]
    timestamps: bool,
    /// Only until a time (2026-01-02T15:04:05Z) or a duration ago (42m)
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    until: String,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl Args {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.known_project(&self.services)?;
        let engine = session.engine(&project)?;
        let mut found = engine.containers_of(&self.services, OneOff::Exclude)?;
        if self.index > 0 {
            found.retain(|container| container.number == self.index);
        }
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            follow: self.follow,
            timestamps: self.timestamps,
            details: false,
            tail: self.tail,
            since: time(&self.since)
                .map_err(|why| Failure::new(format!("invalid value for \"since\": {why}")))?,
            until: time(&self.until)
                .map_err(|why| Failure::new(format!("invalid value for \"until\": {why}")))?,
        };
        let printer = Printer::new(session.colour() && !self.no_color, !self.no_log_prefix);
        let named: Vec<(String, &String)> = found
            .iter()
            .map(|container| (short_name(&project.name, &container.name), &container.id))
            .collect();
        for (name, _) in &named {
            printer.register(name);
        }
        let client = session.client()?;
        let read = |name: &str, id: &str| logs::read(client, id, &options, |line| printer.line(name, line));
        let mut result = Ok(());
        if self.follow {
            std::thread::scope(|scope| {
                let threads: Vec<_> = named
                    .iter()
                    .map(|(name, id)| scope.spawn(|| read(name, id)))
                    .collect();
                for thread in threads {
                    let one = thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                    if result.is_ok() {
                        result = one;
                    }
                }
            });
        } else {
            for (name, id) in &named {
                read(name, id)?;
            }
        }
        Ok(result?)
    }
}
