//! `vessel builder prune` and `vessel builder du`

use std::time::Duration;

use vessel_client::build::UsageRecord;

use super::confirm;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;
use crate::output::tabwriter;
use crate::output::units::{ago, human_size, parse_duration, parse_size};

/// Remove what the build cache holds
#[derive(Debug, clap::Args)]
pub struct PruneArgs {
    /// Also what images share and contexts
    #[arg(short, long)]
    all: bool,
    /// Only records that fit: id=ID, type=TYPE, description=TEXT, until=DURATION
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Bytes to keep
    #[arg(long, alias = "reserved-space", alias = "max-used-space", value_name = "bytes", value_parser = parse_size)]
    keep_storage: Option<i64>,
}

/// Show what the build cache holds
#[derive(Debug, clap::Args)]
pub struct UsageArgs {
    /// Only records that fit: id=ID, type=TYPE, description=TEXT
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,
    /// Show everything about each record
    #[arg(long)]
    verbose: bool,
}

impl Run for PruneArgs {
    fn run(self, context: &Context) -> Result {
        let what = if self.all {
            "WARNING! This will remove all build cache. Are you sure you want to continue?"
        } else {
            "WARNING! This will remove all dangling build cache. Are you sure you want to continue?"
        };
        if !self.force && !confirm(what)? {
            return Ok(());
        }
        let mut filters = Vec::new();
        let mut unused = Duration::ZERO;
        for filter in &self.filter {
            match filter.split_once('=') {
                Some(("until" | "unused-for", age)) => {
                    let nanos = parse_duration(age).map_err(Failure::usage)?;
                    unused = Duration::from_nanos(u64::try_from(nanos).unwrap_or_default());
                }
                _ => filters.push(filter.clone()),
            }
        }
        let keep = u64::try_from(self.keep_storage.unwrap_or_default()).unwrap_or_default();
        let records = context.client()?.build_prune(self.all, keep, unused, filters)?;
        let total: i64 = records.iter().map(|record| record.size).sum();
        if !records.is_empty() {
            show(&records)?;
        }
        Ok(output::print_line(&format!(
            "Total:\t{}",
            human_size(total as f64)
        ))?)
    }
}

impl Run for UsageArgs {
    fn run(self, context: &Context) -> Result {
        let records = context.client()?.build_cache(self.filter)?;
        if self.verbose {
            for record in &records {
                output::print_line(&details(record))?;
            }
        } else {
            show(&records)?;
        }
        let sum = |fits: &dyn Fn(&UsageRecord) -> bool| {
            let total: i64 = records
                .iter()
                .filter(|record| fits(record))
                .map(|record| record.size)
                .sum();
            human_size(total as f64)
        };
        output::print_line(&format!("Shared:\t\t{}", sum(&|record| record.shared)))?;
        output::print_line(&format!("Private:\t{}", sum(&|record| !record.shared)))?;
        output::print_line(&format!(
            "Reclaimable:\t{}",
            sum(&|record| !record.in_use && !record.shared)
        ))?;
        Ok(output::print_line(&format!("Total:\t\t{}", sum(&|_| true)))?)
    }
}

fn seconds(time: Option<&vessel_client::build::Timestamp>) -> i64 {
    time.map_or(0, |time| time.seconds)
}

fn show(records: &[UsageRecord]) -> Result {
    let mut text = "ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED\n".to_owned();
    for record in records {
        let mark = if record.mutable { "*" } else { "" };
        text.push_str(&format!(
            "{}{mark}\t{}\t{}\t{}\n",
            record.id,
            !record.in_use,
            human_size(record.size as f64),
            ago(seconds(record.last_used_at.as_ref())),
        ));
    }
    Ok(output::print(&tabwriter::align(&text))?)
}

fn details(record: &UsageRecord) -> String {
    format!(
        "ID:\t\t{}\nCreated at:\t{}\nMutable:\t{}\nReclaimable:\t{}\nShared:\t\t{}\nSize:\t\t{}\nDescription:\t{}\nUsage count:\t{}\nLast used:\t{}\nType:\t\t{}\n",
        record.id,
        ago(seconds(record.created_at.as_ref())),
        record.mutable,
        !record.in_use,
        record.shared,
        human_size(record.size as f64),
        record.description,
        record.usage_count,
        ago(seconds(record.last_used_at.as_ref())),
        record.record_type,
    )
}
