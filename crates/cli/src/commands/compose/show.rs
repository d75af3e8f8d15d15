//! `vessel compose top`, `events`, `port`, `ls`, `wait`, `version` and `cp`

use std::collections::BTreeMap;

use vessel_api::{EventMessage, WaitResponse};
use vessel_client::{ContainerListOptions, EventsOptions, Filters, WaitCondition};
use vessel_compose::act::labels;
use vessel_compose::act::state::{Container, OneOff};

use super::options::Session;
use crate::app::Run;
use crate::commands::logs::time;
use crate::commands::{cp, filters};
use crate::failure::{Failure, Result};
use crate::output::{self, tabwriter};

/// Show the processes of services
#[derive(Debug, clap::Args)]
pub struct TopArgs {
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl TopArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.known_project(&self.services)?;
        let found = session
            .engine(&project)?
            .containers_of(&self.services, OneOff::Include)?;
        let client = session.client()?;
        let mut out = String::new();
        for container in found
            .iter()
            .filter(|container| container.summary.state == "running")
        {
            let top = client.container_top(&container.id, "")?;
            if out.is_empty() {
                out.push_str(&format!("SERVICE\t#\t{}\n", top.titles.join("\t")));
            }
            for process in &top.processes {
                out.push_str(&format!(
                    "{}\t{}\t{}\n",
                    container.service,
                    container.number,
                    process.join("\t")
                ));
            }
        }
        Ok(output::print(&tabwriter::align(&out))?)
    }
}

/// Show what happens to containers, as it happens
#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    /// As lines of JSON
    #[arg(long)]
    json: bool,
    /// From a time or a duration ago on
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    since: String,
    /// Until a time or a duration ago
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    until: String,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl EventsArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.known_project(&self.services)?;
        let wrong =
            |name: &'static str| move |why| Failure::new(format!("invalid value for \"{name}\": {why}"));
        let mut wanted = labels::of_project(&project.name);
        wanted.add("type", "container");
        let options = EventsOptions {
            since: time(&self.since).map_err(wrong("since"))?,
            until: time(&self.until).map_err(wrong("until"))?,
            filters: wanted,
        };
        for event in session.client()?.events(&options)? {
            let event = event?;
            let service = event
                .actor
                .attributes
                .get(labels::SERVICE)
                .cloned()
                .unwrap_or_default();
            // Health checks and other execs are not of interest.
            let noise = event.action.starts_with("exec_") || event.action.starts_with("top");
            if noise || !(self.services.is_empty() || self.services.contains(&service)) {
                continue;
            }
            output::print_line(&event_line(&event, &service, self.json))?;
        }
        Ok(())
    }
}

fn event_line(event: &EventMessage, service: &str, json: bool) -> String {
    let nanoseconds = match event.time_nano {
        0 => i128::from(event.time) * 1_000_000_000,
        exact => i128::from(exact),
    };
    let at = jiff::Timestamp::from_nanosecond(nanoseconds)
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_zoned(jiff::tz::TimeZone::system());
    let attributes: BTreeMap<&String, &String> = event
        .actor
        .attributes
        .iter()
        .filter(|(name, _)| !name.starts_with("com.docker.compose."))
        .collect();
    if json {
        return serde_json::json!({
            "time": at.strftime("%Y-%m-%dT%H:%M:%S.%9f%:z").to_string(),
            "type": "container",
            "service": service,
            "id": event.actor.id,
            "action": event.action,
            "attributes": attributes,
        })
        .to_string();
    }
    let attributes: Vec<String> = attributes
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    format!(
        "{} container {} {} ({})",
        at.strftime("%Y-%m-%d %H:%M:%S.%6f"),
        event.action,
        event.actor.id,
        attributes.join(", ")
    )
}

/// Show where a port of a service is published
#[derive(Debug, clap::Args)]
pub struct PortArgs {
    /// Number of the container, when there are several
    #[arg(long, value_name = "int", default_value = "0")]
    index: u32,
    /// tcp, udp or sctp
    #[arg(long, value_name = "string", default_value = "tcp")]
    protocol: String,
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// The port in the container
    #[arg(value_name = "PRIVATE_PORT")]
    port: u16,
}

impl PortArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.known_project(&[])?;
        let container = session
            .engine(&project)?
            .container(&self.service, self.index, false)?;
        let ports = session
            .client()?
            .container_inspect(&container.id, false)?
            .network_settings
            .ports;
        let key = format!("{}/{}", self.port, self.protocol.to_ascii_lowercase());
        let bindings = ports.get(&key).cloned().flatten().unwrap_or_default();
        let Some(first) = bindings.first() else {
            return Err(Failure::new(format!(
                "no port {key} for container {}: it is not published, or the container does not run",
                container.name
            )));
        };
        let address = match first.host_ip.as_str() {
            ip if ip.contains(':') => format!("[{ip}]:{}", first.host_port),
            ip => format!("{ip}:{}", first.host_port),
        };
        Ok(output::print_line(&address)?)
    }
}

/// List projects
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Those that are stopped, too
    #[arg(short, long)]
    all: bool,
    /// Only some: name=NAME
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,
    /// table or json
    #[arg(long, value_name = "string", default_value = "table")]
    format: String,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
}

impl ListArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        // Reads the form of the options; names are compared below.
        filters(&self.filter)?;
        let names: Vec<&str> = self
            .filter
            .iter()
            .filter_map(|filter| filter.strip_prefix("name="))
            .collect();
        let mut wanted = Filters::new();
        wanted.add("label", labels::PROJECT);
        let options = ContainerListOptions {
            all: self.all,
            filters: wanted,
            ..ContainerListOptions::default()
        };
        let mut projects: BTreeMap<String, Vec<Container>> = BTreeMap::new();
        for container in session
            .client()?
            .container_list(&options)?
            .into_iter()
            .filter_map(Container::of)
        {
            let name = container.label(labels::PROJECT).to_owned();
            if !container.one_off && names.iter().all(|wanted| name.contains(wanted)) {
                projects.entry(name).or_default().push(container);
            }
        }
        if self.quiet {
            for name in projects.keys() {
                output::print_line(name)?;
            }
            return Ok(());
        }
        let rows: Vec<(String, String, String)> = projects
            .into_iter()
            .map(|(name, containers)| {
                let mut states: BTreeMap<&str, usize> = BTreeMap::new();
                for container in &containers {
                    *states.entry(container.summary.state.as_str()).or_default() += 1;
                }
                let states: Vec<String> = states
                    .iter()
                    .map(|(state, count)| format!("{state}({count})"))
                    .collect();
                let files = containers
                    .first()
                    .map(|container| container.label(labels::CONFIG_FILES).to_owned());
                (name, states.join(", "), files.unwrap_or_default())
            })
            .collect();
        match self.format.as_str() {
            "json" => {
                let rows: Vec<serde_json::Value> = rows
                    .iter()
                    .map(|(name, status, files)| serde_json::json!({"Name": name, "Status": status, "ConfigFiles": files}))
                    .collect();
                Ok(output::print_line(&serde_json::Value::from(rows).to_string())?)
            }
            "table" => {
                let mut out = "NAME\tSTATUS\tCONFIG FILES\n".to_owned();
                for (name, status, files) in &rows {
                    out.push_str(&format!("{name}\t{status}\t{files}\n"));
                }
                Ok(output::print(&tabwriter::align_with(&out, 20))?)
            }
            other => Err(Failure::new(format!(
                "unsupported format {other:?}: table or json is expected"
            ))),
        }
    }
}

/// Wait until containers of services end, and end with the code of the first that failed
#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    /// Bring the project down when the first one ends
    #[arg(long)]
    down_project: bool,
    /// Services
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<String>,
}

impl WaitArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.known_project(&self.services)?;
        let engine = session.engine(&project)?;
        let found = engine.containers_of(&self.services, OneOff::Exclude)?;
        if found.is_empty() {
            return Err(Failure::new("no containers to wait for"));
        }
        let client = session.client()?;
        let (sender, receiver) = std::sync::mpsc::channel();
        for container in &found {
            let (client, id, name, sender) = (
                client.clone(),
                container.id.clone(),
                container.name.clone(),
                sender.clone(),
            );
            std::thread::spawn(move || {
                let result = client.container_wait(&id, WaitCondition::NotRunning);
                let _ = sender.send((name, result));
            });
        }
        drop(sender);
        let mut code = 0;
        for (name, result) in receiver {
            let WaitResponse { status_code, .. } = result?;
            output::print_line(&format!(
                "container {name:?} exited with status code {status_code}"
            ))?;
            if code == 0 {
                code = status_code;
            }
            if self.down_project {
                engine.down(&vessel_compose::act::down::Down::default())?;
                break;
            }
        }
        match i32::try_from(code).unwrap_or(1) {
            0 => Ok(()),
            code => Err(Failure::silent(code)),
        }
    }
}

/// Print the version
#[derive(Debug, clap::Args)]
pub struct VersionArgs {
    /// pretty or json
    #[arg(short, long, value_name = "string", default_value = "pretty")]
    format: String,
    /// Only the number
    #[arg(long)]
    short: bool,
}

impl VersionArgs {
    pub fn run(self, _session: &Session<'_>) -> Result {
        let version = labels::OUR_VERSION;
        let line = match (self.short, self.format.as_str()) {
            (true, _) => version.to_owned(),
            (_, "json") => serde_json::json!({"version": version}).to_string(),
            (_, "pretty" | "") => format!("Vessel Compose version {version}"),
            (_, other) => {
                return Err(Failure::new(format!(
                    "unsupported format {other:?}: pretty or json is expected"
                )));
            }
        };
        Ok(output::print_line(&line)?)
    }
}

/// Copy files between a container of a service and this host
#[derive(Debug, clap::Args)]
pub struct CopyArgs {
    /// Into all containers of the service
    #[arg(long)]
    all: bool,
    /// Keep users and groups
    #[arg(short, long)]
    archive: bool,
    /// Follow the source when it is a symbolic link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Number of the container, when there are several
    #[arg(long, value_name = "int", default_value = "0")]
    index: u32,
    /// SERVICE:PATH, a path here, or - for a tar archive on standard input
    #[arg(value_name = "SOURCE", allow_hyphen_values = true)]
    source: String,
    /// SERVICE:PATH, a path here, or - for a tar archive on standard output
    #[arg(value_name = "DEST", allow_hyphen_values = true)]
    destination: String,
}

impl CopyArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.known_project(&[])?;
        let engine = session.engine(&project)?;
        let (from, to) = (cp::split(&self.source), cp::split(&self.destination));
        let containers = |service: &str| -> Result<Vec<String>> {
            if !self.all {
                return Ok(vec![engine.container(service, self.index, false)?.id]);
            }
            let found = engine.containers_of(&[service.to_owned()], OneOff::Exclude)?;
            Ok(found.into_iter().map(|container| container.id).collect())
        };
        let copy = |source: String, destination: String| {
            cp::Args::between(source, destination, self.archive, self.follow_link).run(session.context)
        };
        match (from, to) {
            (Some((service, path)), None) => {
                let id = engine.container(service, self.index, false)?.id;
                copy(format!("{id}:{path}"), self.destination.clone())
            }
            (None, Some((service, path))) => {
                for id in containers(service)? {
                    copy(self.source.clone(), format!("{id}:{path}"))?;
                }
                Ok(())
            }
            (Some(_), Some(_)) => Err(Failure::new("copying between services is not supported")
                .with_hint("copy to this host first")),
            (None, None) => Err(Failure::new("unknown copy direction")
                .with_hint("a path in a container looks like SERVICE:PATH")),
        }
    }
}
