//! `vessel compose ps`

use vessel_compose::act::state::{Container, OneOff};

use super::options::Session;
use crate::commands::ps::{created_at, labels, ports};
use crate::failure::{Failure, Result};
use crate::output;
use crate::output::format::{Row, render};
use crate::output::text::{ellipsis, quote};
use crate::output::units::ago;

/// List containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Those that ended, and those of run, too
    #[arg(short, long)]
    all: bool,
    /// Only some: status=STATUS
    #[arg(long, value_name = "string")]
    filter: Vec<String>,
    /// table, json, or a Go template
    #[arg(long, value_name = "string", default_value = "table")]
    format: String,
    /// Do not shorten
    #[arg(long)]
    no_trunc: bool,
    /// Those of services that are not in the files, too
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    orphans: bool,
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Only names of services
    #[arg(long)]
    services: bool,
    /// Only in these states: paused, restarting, removing, running, dead, created, exited
    #[arg(long, value_name = "stringArray")]
    status: Vec<String>,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    names: Vec<String>,
}

const HEADERS: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("Service", "SERVICE"),
    ("Project", "PROJECT"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("Ports", "PORTS"),
    ("Health", "HEALTH"),
    ("ExitCode", "EXIT CODE"),
    ("Labels", "LABELS"),
];
const TABLE: &str =
    "{{.Name}}\t{{.Image}}\t{{.Command}}\t{{.Service}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}";

impl Args {
    pub fn run(self, session: &Session<'_>) -> Result {
        let mut states = self.status.clone();
        for filter in &self.filter {
            match filter.split_once('=') {
                Some(("status", value)) => states.push(value.to_owned()),
                _ => {
                    return Err(Failure::new(format!(
                        "invalid filter {filter:?}: status=STATUS is expected"
                    )));
                }
            }
        }
        let project = session.known_project(&self.names)?;
        let engine = session.engine(&project)?;
        let one_off = if self.all {
            OneOff::Include
        } else {
            OneOff::Exclude
        };
        let mut found = engine.containers_of(&self.names, one_off)?;
        if !states.is_empty() {
            found.retain(|container| states.contains(&container.summary.state));
        } else if !self.all {
            found.retain(Container::is_running);
        }
        if !self.orphans {
            found.retain(|container| project.service(&container.service).is_ok());
        }
        if self.quiet {
            for container in &found {
                output::print_line(&container.id)?;
            }
            return Ok(());
        }
        if self.services {
            let mut names: Vec<&String> = found.iter().map(|container| &container.service).collect();
            names.dedup();
            for name in names {
                output::print_line(name)?;
            }
            return Ok(());
        }
        if self.format == "json" {
            for container in &found {
                output::print_line(&json(&project.name, container).to_string())?;
            }
            return Ok(());
        }
        let rows = found
            .iter()
            .map(|container| row(&project.name, container, !self.no_trunc))
            .collect();
        output::print(&render(&self.format, TABLE, HEADERS, rows)?)?;
        Ok(())
    }
}

fn health(status: &str) -> &'static str {
    match status {
        status if status.contains("(healthy)") => "healthy",
        status if status.contains("(unhealthy)") => "unhealthy",
        status if status.contains("(health: starting)") => "starting",
        _ => "",
    }
}

fn exit_code(status: &str) -> i64 {
    let code = status
        .strip_prefix("Exited (")
        .and_then(|rest| rest.split(')').next());
    code.and_then(|code| code.parse().ok()).unwrap_or(0)
}

fn row(project: &str, container: &Container, truncate: bool) -> Row {
    let summary = &container.summary;
    let command = if truncate {
        ellipsis(&summary.command, 20)
    } else {
        summary.command.clone()
    };
    let id = if truncate {
        output::text::short_id(&container.id)
    } else {
        &container.id
    };
    Row::default()
        .text("ID", id)
        .text("Name", &container.name)
        .text("Names", &container.name)
        .text("Image", &summary.image)
        .text("Command", quote(&command))
        .text("Service", &container.service)
        .text("Project", project)
        .text("CreatedAt", created_at(summary.created))
        .text("RunningFor", ago(summary.created))
        .text("State", &summary.state)
        .text("Status", &summary.status)
        .text("Ports", ports(&summary.ports))
        .text("Health", health(&summary.status))
        .text("ExitCode", exit_code(&summary.status).to_string())
        .text("Labels", labels(&summary.labels))
        .labels(&summary.labels)
}

/// A container as a line of JSON, with Docker Compose's names.
fn json(project: &str, container: &Container) -> serde_json::Value {
    let summary = &container.summary;
    let publishers: Vec<serde_json::Value> = summary
        .ports
        .iter()
        .map(|port| {
            serde_json::json!({
                "URL": port.ip, "TargetPort": port.private_port, "PublishedPort": port.public_port, "Protocol": port.kind,
            })
        })
        .collect();
    serde_json::json!({
        "Command": quote(&summary.command),
        "CreatedAt": created_at(summary.created),
        "ExitCode": exit_code(&summary.status),
        "Health": health(&summary.status),
        "ID": output::text::short_id(&container.id),
        "Image": summary.image,
        "Labels": labels(&summary.labels),
        "Name": container.name,
        "Names": container.name,
        "Networks": summary.network_settings.networks.keys().cloned().collect::<Vec<_>>().join(","),
        "Ports": ports(&summary.ports),
        "Project": project,
        "Publishers": publishers,
        "RunningFor": ago(summary.created),
        "Service": container.service,
        "State": summary.state,
        "Status": summary.status,
    })
}
