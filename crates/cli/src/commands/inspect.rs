//! `vessel inspect`, and `inspect` of every group

use serde_json::Value;
use vessel_client::Client;

use super::FormatOption;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;
use crate::output::template::Data;

/// Show everything about containers, images, volumes or networks
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    format: FormatOption,
    /// Show sizes of containers
    #[arg(short, long)]
    size: bool,
    /// Only a kind of thing: container, image, network or volume
    #[arg(
        long = "type",
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    kind: String,
    /// Names or IDs
    #[arg(value_name = "NAME|ID", required = true)]
    names: Vec<String>,
}

/// Show everything about containers
#[derive(Debug, clap::Args)]
pub struct ContainerArgs {
    #[command(flatten)]
    format: FormatOption,
    /// Show sizes
    #[arg(short, long)]
    size: bool,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    names: Vec<String>,
}

/// Show everything about images
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    #[command(flatten)]
    format: FormatOption,
    /// Images
    #[arg(value_name = "IMAGE", required = true)]
    names: Vec<String>,
}

/// Show everything about networks
#[derive(Debug, clap::Args)]
pub struct NetworkArgs {
    #[command(flatten)]
    format: FormatOption,
    /// Include services and peers
    #[arg(short, long)]
    verbose: bool,
    /// Networks
    #[arg(value_name = "NETWORK", required = true)]
    names: Vec<String>,
}

/// Show everything about volumes
#[derive(Debug, clap::Args)]
pub struct VolumeArgs {
    #[command(flatten)]
    format: FormatOption,
    /// Volumes
    #[arg(value_name = "VOLUME", required = true)]
    names: Vec<String>,
}

/// What may be looked at, in the order a name is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Container,
    Image,
    Network,
    Volume,
}

const KINDS: [(&str, Kind); 4] = [
    ("container", Kind::Container),
    ("image", Kind::Image),
    ("network", Kind::Network),
    ("volume", Kind::Volume),
];

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let kinds: Vec<Kind> = KINDS
            .iter()
            .filter(|(name, _)| self.kind.is_empty() || self.kind == *name)
            .map(|(_, kind)| *kind)
            .collect();
        if kinds.is_empty() {
            let kind = &self.kind;
            return Err(
                Failure::new(format!("\"{kind}\" is not a valid value for --type"))
                    .with_hint("container, image, network and volume are"),
            );
        }
        let client = context.client()?;
        inspect(&self.names, &self.format, |name| match kinds.as_slice() {
            [kind] => look(client, *kind, name, self.size, false),
            kinds => {
                for kind in kinds {
                    match look(client, *kind, name, self.size, false) {
                        Err(error) if error.is_not_found() => {}
                        other => return other,
                    }
                }
                Err(vessel_client::Error::Api {
                    status: 404,
                    message: format!("No such object: {name}"),
                })
            }
        })
    }
}

impl Run for ContainerArgs {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        inspect(&self.names, &self.format, |name| {
            look(client, Kind::Container, name, self.size, false)
        })
    }
}

impl Run for ImageArgs {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        inspect(&self.names, &self.format, |name| {
            look(client, Kind::Image, name, false, false)
        })
    }
}

impl Run for NetworkArgs {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        inspect(&self.names, &self.format, |name| {
            look(client, Kind::Network, name, false, self.verbose)
        })
    }
}

impl Run for VolumeArgs {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        inspect(&self.names, &self.format, |name| {
            look(client, Kind::Volume, name, false, false)
        })
    }
}

fn look(client: &Client, kind: Kind, name: &str, size: bool, verbose: bool) -> vessel_client::Result<Value> {
    match kind {
        Kind::Container => client.container_inspect_raw(name, size),
        Kind::Image => client.image_inspect_raw(name),
        Kind::Network => client.network_inspect_raw(name, verbose),
        Kind::Volume => client.volume_inspect_raw(name),
    }
}

/// Shows what was found, as it was sent, and then what was not.
fn inspect(
    names: &[String],
    format: &FormatOption,
    find: impl Fn(&str) -> vessel_client::Result<Value>,
) -> Result {
    let template = format.template()?;
    let mut found = Vec::new();
    let mut errors = Vec::new();
    for name in names {
        match find(name) {
            Ok(value) => found.push(value),
            Err(error @ vessel_client::Error::Connect { .. }) => return Err(error.into()),
            Err(error) => errors.push(error.to_string()),
        }
    }
    match template {
        Some(template) => {
            for mut value in found {
                add_absent(&mut value);
                output::print_line(&template.apply(&Data::new(&value)).map_err(failed)?)?;
            }
        }
        None => output::print_line(&indented(&Value::Array(found)))?,
    }
    for error in &errors {
        output::warn(&format!("vessel: {error}"));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Failure::silent(1))
    }
}

/// A template that failed. Go finds a `break` without its loop when it reads the template, for which the code is 64.
fn failed(message: String) -> Failure {
    let code = if message.contains("outside of range") {
        64
    } else {
        1
    };
    Failure::new(message).with_code(code)
}

/// Adds what Docker leaves out of a container when it is empty, so that templates can ask for it: `{{if .State.Health}}`.
fn add_absent(value: &mut Value) {
    let absent = [
        ("/State", "Health", Value::Null),
        ("/Config", "Healthcheck", Value::Null),
        ("/Config", "Shell", Value::Null),
        ("/Config", "StopSignal", Value::String(String::new())),
        ("/Config", "StopTimeout", Value::Null),
        ("", "SizeRw", Value::Null),
        ("", "SizeRootFs", Value::Null),
    ];
    if value.get("HostConfig").is_none() {
        return;
    }
    for (within, name, empty) in absent {
        if let Some(Value::Object(members)) = value.pointer_mut(within) {
            members.entry(name).or_insert(empty);
        }
    }
}

/// JSON with four spaces to a level, as Docker shows it.
fn indented(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    match serde::Serialize::serialize(value, &mut serializer) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        Err(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::template::Format;

    #[test]
    fn templates_can_ask_for_what_a_container_does_not_have() {
        let mut value = serde_json::json!({"State": {}, "Config": {"StopTimeout": 3}, "HostConfig": {}});
        add_absent(&mut value);
        let said = |template: &str| {
            Format::parse(template)
                .unwrap()
                .apply(&Data::new(&value))
                .unwrap()
        };
        let health = "{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}";
        assert_eq!(said(health), "none");
        assert_eq!(said("{{json .State.Health}} {{.Config.StopTimeout}}"), "null 3");
        let mut image = serde_json::json!({"Config": {}});
        add_absent(&mut image);
        assert_eq!(image, serde_json::json!({"Config": {}}));
    }
}
