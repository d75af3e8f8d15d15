//! `vessel system explain`

use vessel_api::{ExplainedItem, Explanation};

use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;
use crate::output::format::{Headers, Row, render};
use crate::output::units::human_size;

/// Show where every file, mount, interface, rule, cgroup and process of the engine comes from, and what frees it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// table, json, or a Go template for each thing
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    format: String,
    /// Only what belongs to something of this name, "unknown" for what nothing explains
    #[arg(value_name = "OWNER")]
    owner: Option<String>,
}

const HEADERS: &Headers = &[
    ("Kind", "KIND"),
    ("Name", "NAME"),
    ("Size", "SIZE"),
    ("Owner", "BELONGS TO"),
    ("Purpose", "PURPOSE"),
    ("Free", "FREED BY"),
];
const TABLE: &str = "{{.Name}}\t{{.Size}}\t{{.Owner}}\t{{.Purpose}}\t{{.Free}}";

/// Titles of the kinds, in the order they come.
const TITLES: [(&str, &str); 6] = [
    ("file", "Files"),
    ("mount", "Mounts"),
    ("interface", "Interfaces"),
    ("rule", "Rules"),
    ("cgroup", "Cgroups"),
    ("process", "Processes"),
];

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let mut explanation = context.client()?.explain()?;
        if let Some(owner) = &self.owner {
            explanation.items.retain(|item| belongs(item, owner));
        }
        match self.format.as_str() {
            "json" => {
                let text = serde_json::to_string(&explanation).map_err(Failure::new)?;
                output::print_line(&text)?;
            }
            "" | "table" => output::print(&tables(&explanation)?)?,
            format => {
                let rows = explanation.items.iter().map(row).collect();
                output::print(&render(format, TABLE, HEADERS, rows)?)?;
            }
        }
        Ok(())
    }
}

fn belongs(item: &ExplainedItem, owner: &str) -> bool {
    if owner == "unknown" {
        return !item.known;
    }
    item.owner == owner || item.owner.split([' ', ',']).any(|word| word == owner)
}

fn row(item: &ExplainedItem) -> Row {
    let size = match item.kind.as_str() {
        "file" => human_size(item.size as f64),
        _ => String::new(),
    };
    Row::default()
        .text("Kind", &item.kind)
        .text("Name", &item.name)
        .text("Size", size)
        .text("Owner", if item.known { &item.owner } else { "unknown" })
        .text("Purpose", &item.purpose)
        .text("Free", &item.free)
}

fn tables(explanation: &Explanation) -> Result<String> {
    let mut out = String::new();
    for (kind, title) in TITLES {
        let rows: Vec<Row> = explanation
            .items
            .iter()
            .filter(|item| item.kind == kind)
            .map(row)
            .collect();
        if rows.is_empty() {
            continue;
        }
        let columns = match kind {
            "file" => TABLE.to_owned(),
            _ => TABLE.replace("{{.Size}}\t", ""),
        };
        out.push_str(&format!("{title}:\n\n"));
        out.push_str(&render("table", &columns, HEADERS, rows)?);
        out.push('\n');
    }
    let unknown = match explanation.unknown {
        0 => "everything is explained".to_owned(),
        1 => "1 thing is unknown".to_owned(),
        many => format!("{many} things are unknown"),
    };
    out.push_str(&format!(
        "{} on disk; {unknown}\n",
        human_size(explanation.size as f64)
    ));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_table() {
        let item = |kind: &str, name: &str, owner: &str, known| ExplainedItem {
            kind: kind.into(),
            name: name.into(),
            owner: owner.into(),
            purpose: "for something".into(),
            size: if kind == "file" { 2000 } else { 0 },
            known,
            ..ExplainedItem::default()
        };
        let explanation = Explanation {
            items: vec![
                item("file", "/root/a", "volume data, used by web", true),
                item("process", "7 (sh)", "", false),
            ],
            size: 2000,
            unknown: 1,
        };
        let text = tables(&explanation).unwrap();
        assert!(text.starts_with("Files:\n\nNAME"), "{text}");
        assert!(
            text.contains("2kB") && text.contains("Processes:\n") && !text.contains("Rules:"),
            "{text}"
        );
        assert!(text.ends_with("2kB on disk; 1 thing is unknown\n"), "{text}");
        let [file, process] = explanation.items.as_slice() else {
            unreachable!()
        };
        assert!(belongs(file, "data") && belongs(file, "web") && !belongs(file, "unknown"));
        assert!(belongs(process, "unknown") && !belongs(process, "da"));
    }
}
