//! `vessel volume`

use vessel_api::{Volume, VolumeCreateRequest};

use super::{filters, for_each, ps};
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::options::env;
use crate::output;
use crate::output::format::{Headers, Row, render};
use crate::output::units::human_size_digits;

/// Create a volume
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Volume driver
    #[arg(short, long, value_name = "string", default_value = "local")]
    driver: String,
    /// Set labels: NAME=VALUE
    #[arg(long, value_name = "list")]
    label: Vec<String>,
    /// Options of the driver: NAME=VALUE
    #[arg(short, long, value_name = "map")]
    opt: Vec<String>,
    /// Its name; one is made up when there is none
    #[arg(long = "name", value_name = "string", hide = true)]
    old_name: Option<String>,
    /// Its name; one is made up when there is none
    #[arg(value_name = "VOLUME")]
    name: Option<String>,
}

impl Run for CreateArgs {
    fn run(self, context: &Context) -> Result {
        if self.name.is_some() && self.old_name.is_some() {
            return Err(Failure::new(
                "conflicting options: cannot specify a volume-name through both --name and as a positional arg",
            ));
        }
        let request = VolumeCreateRequest {
            driver: self.driver.clone(),
            driver_opts: env::to_map(&self.opt),
            labels: env::labels(&[], &self.label).map_err(Failure::usage)?,
            name: self.name.or(self.old_name).unwrap_or_default(),
        };
        output::print_line(&context.client()?.volume_create(&request)?.name)?;
        Ok(())
    }
}

/// Remove volumes
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// No error when one is gone already
    #[arg(short, long)]
    force: bool,
    /// Volumes
    #[arg(value_name = "VOLUME", required = true)]
    volumes: Vec<String>,
}

impl Run for RemoveArgs {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        for_each(&self.volumes, |name| client.volume_remove(name, self.force))
    }
}

/// List volumes
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only some: NAME=VALUE
    #[arg(short, long, value_name = "filter")]
    filter: Vec<String>,
    /// table, json, or a Go template
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
}

/// The fields of a volume's row.
pub const HEADERS: &Headers = &[
    ("Name", "VOLUME NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Labels", "LABELS"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
    ("Availability", "AVAILABILITY"),
    ("Group", "GROUP"),
    ("Status", "STATUS"),
];

impl Run for ListArgs {
    fn run(self, context: &Context) -> Result {
        let mut list = context.client()?.volume_list(&filters(&self.filter)?)?.volumes;
        list.sort_by(|a, b| a.name.cmp(&b.name));
        let format = match &self.format {
            Some(format) if !format.is_empty() => format.as_str(),
            _ if self.quiet => "{{.Name}}",
            _ => "table",
        };
        output::print(&render(
            format,
            "{{.Driver}}\t{{.Name}}",
            HEADERS,
            list.iter().map(row).collect(),
        )?)?;
        Ok(())
    }
}

/// A row of the list.
pub fn row(volume: &Volume) -> Row {
    let usage = volume.usage_data.as_ref();
    let measured = |value: Option<i64>| value.filter(|value| *value >= 0);
    let links = measured(usage.map(|usage| usage.ref_count)).map(|count| count.to_string());
    let size = measured(usage.map(|usage| usage.size)).map(|size| human_size_digits(size as f64, 3));
    Row::default()
        .text("Name", &volume.name)
        .text("Driver", &volume.driver)
        .text("Scope", &volume.scope)
        .text("Mountpoint", &volume.mountpoint)
        .text("Labels", ps::labels(&volume.labels))
        .text("Links", links.as_deref().unwrap_or("N/A"))
        .text("Size", size.as_deref().unwrap_or("N/A"))
        .text("Availability", "N/A")
        .text("Group", "N/A")
        .text("Status", "N/A")
        .labels(&volume.labels)
}
