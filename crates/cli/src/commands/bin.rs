//! `vessel system bin` and `vessel undo`

use std::io::Write;

use vessel_api::{BinItem, BinList, UndoReport};

use super::confirm;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;
use crate::output::format::{Headers, Row, render};
use crate::output::text::short_id;
use crate::output::units::{ago, human_size};

/// Show what was removed and can be brought back, or remove it for good
#[derive(Debug, clap::Args)]
pub struct Args {
    /// ls, or empty
    #[arg(value_name = "COMMAND", default_value = "ls", hide_default_value = true, value_parser = ["ls", "empty"])]
    command: String,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// table, json, or a Go template
    #[arg(
        long,
        value_name = "string",
        default_value = "table",
        hide_default_value = true
    )]
    format: String,
}

/// Bring back what the last command removed
#[derive(Debug, clap::Args)]
pub struct UndoArgs {
    /// Another one: its ID in `system log` or `system bin`, or the name or ID of something it removed
    #[arg(value_name = "ID", default_value = "", hide_default_value = true)]
    id: String,
    /// json
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    format: String,
}

const HEADERS: &Headers = &[
    ("Command", "COMMAND ID"),
    ("Kind", "KIND"),
    ("Name", "NAME"),
    ("ID", "ID"),
    ("Removed", "REMOVED"),
    ("Size", "SIZE"),
    ("Expires", "EXPIRES"),
];
const TABLE: &str = "{{.Command}}\t{{.Kind}}\t{{.Name}}\t{{.ID}}\t{{.Removed}}\t{{.Size}}";

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        if self.command == "empty" {
            let question = "WARNING! What is in the bin cannot be brought back afterwards. Are you sure you want to continue?";
            if !self.force && !confirm(question)? {
                return Ok(());
            }
            let emptied = client.empty_bin()?;
            let space = human_size(emptied.space_reclaimed as f64);
            output::print_line(&format!(
                "Removed: {}\nTotal reclaimed space: {space}",
                emptied.removed
            ))?;
            return Ok(());
        }
        let list = client.bin()?;
        let rows = list.items.iter().map(row).collect();
        output::print(&render(&self.format, TABLE, HEADERS, rows)?)?;
        if self.format == "table" {
            output::print_line(&foot(&list))?;
        }
        Ok(())
    }
}

fn row(item: &BinItem) -> Row {
    let since = item.removed.parse::<jiff::Timestamp>();
    Row::default()
        .text("Command", &item.command)
        .text("Kind", &item.kind)
        .text("Name", &item.name)
        .text("ID", short_id(&item.id))
        .text(
            "Removed",
            since.map(|time| ago(time.as_second())).unwrap_or_default(),
        )
        .text("Size", human_size(item.size as f64))
        .text("Expires", &item.expires)
}

fn foot(list: &BinList) -> String {
    let (size, limit) = (human_size(list.size as f64), human_size(list.limit as f64));
    match (list.enabled, list.items.is_empty()) {
        (true, _) => format!("{size} of {limit}"),
        (false, true) => "The daemon runs without a bin: what is removed is gone.".to_owned(),
        (false, false) => {
            format!("{size} of {limit}, of before: the daemon runs without a bin and keeps nothing more")
        }
    }
}

impl Run for UndoArgs {
    fn run(self, context: &Context) -> Result {
        let report = context.client()?.undo(&self.id)?;
        if self.format == "json" {
            output::print_line(&serde_json::to_string(&report).map_err(Failure::new)?)?;
        } else {
            output::print(&told(&report))?;
        }
        std::io::stdout().flush()?;
        for failed in &report.failed {
            output::warn(&format!(
                "vessel: {} {}: {}",
                failed.kind, failed.name, failed.note
            ));
        }
        match report.failed.is_empty() {
            true => Ok(()),
            false => Err(Failure::silent(1)),
        }
    }
}

fn told(report: &UndoReport) -> String {
    let mut out = String::new();
    for line in &report.restored {
        let note = match line.note.as_str() {
            "" => String::new(),
            note => format!(" ({note})"),
        };
        out.push_str(&format!("{} {}{note}\n", line.kind, line.name));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use vessel_api::Undone;

    #[test]
    fn what_is_said() {
        let line = |kind: &str, name: &str, note: &str| Undone {
            kind: kind.into(),
            name: name.into(),
            note: note.into(),
            ..Undone::default()
        };
        let report = UndoReport {
            restored: vec![line("volume", "data", ""), line("image", "a:1", "a note")],
            ..UndoReport::default()
        };
        assert_eq!(told(&report), "volume data\nimage a:1 (a note)\n");
        let list = BinList {
            size: 1000,
            limit: 10_000,
            enabled: true,
            ..BinList::default()
        };
        assert_eq!(foot(&list), "1kB of 10kB");
        assert!(foot(&BinList::default()).contains("what is removed is gone"));
        let left = BinList {
            enabled: false,
            items: vec![BinItem::default()],
            ..list
        };
        assert!(foot(&left).starts_with("1kB of 10kB, of before"));
    }
}
