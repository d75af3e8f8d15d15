//! `prune` of every group

use vessel_api::ImageDeleteItem;
use vessel_client::{Client, Filters};

use super::{confirm, filters};
use crate::app::Run;
use crate::context::Context;
use crate::failure::Result;
use crate::output;
use crate::output::units::human_size;

/// Remove all stopped containers
#[derive(Debug, clap::Args)]
pub struct ContainerArgs {
    /// Only some: until=TIME, label=NAME
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Remove images without a name
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// All that no container uses
    #[arg(short, long)]
    all: bool,
    /// Only some: until=TIME, label=NAME
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Remove all networks that no container uses
#[derive(Debug, clap::Args)]
pub struct NetworkArgs {
    /// Only some: until=TIME, label=NAME
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Remove anonymous volumes that no container uses
#[derive(Debug, clap::Args)]
pub struct VolumeArgs {
    /// Those with a name too
    #[arg(short, long)]
    all: bool,
    /// Only some: label=NAME
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Remove everything that is not used
#[derive(Debug, clap::Args)]
pub struct SystemArgs {
    /// All images that no container uses, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Only some: until=TIME, label=NAME
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Anonymous volumes too
    #[arg(long)]
    volumes: bool,
}

fn agreed(force: bool, warning: &str) -> Result<bool> {
    if force {
        return Ok(true);
    }
    confirm(&format!("WARNING! {warning}\nAre you sure you want to continue?"))
}

impl Run for ContainerArgs {
    fn run(self, context: &Context) -> Result {
        if agreed(self.force, "This will remove all stopped containers.")? {
            reclaimed(containers(context.client()?, &filters(&self.filter)?)?)?;
        }
        Ok(())
    }
}

impl Run for ImageArgs {
    fn run(self, context: &Context) -> Result {
        let warning = if self.all {
            "This will remove all images without at least one container associated to them."
        } else {
            "This will remove all dangling images."
        };
        if agreed(self.force, warning)? {
            reclaimed(images(context.client()?, filters(&self.filter)?, self.all)?)?;
        }
        Ok(())
    }
}

impl Run for NetworkArgs {
    fn run(self, context: &Context) -> Result {
        if agreed(
            self.force,
            "This will remove all custom networks not used by at least one container.",
        )? {
            networks(context.client()?, &filters(&self.filter)?)?;
        }
        Ok(())
    }
}

impl Run for VolumeArgs {
    fn run(self, context: &Context) -> Result {
        let warning = if self.all {
            "This will remove all local volumes not used by at least one container."
        } else {
            "This will remove anonymous local volumes not used by at least one container."
        };
        if agreed(self.force, warning)? {
            let mut filters = filters(&self.filter)?;
            if self.all {
                filters.add("all", "true");
            }
            reclaimed(volumes(context.client()?, &filters)?)?;
        }
        Ok(())
    }
}

impl Run for SystemArgs {
    fn run(self, context: &Context) -> Result {
        let mut what = vec![
            "all stopped containers",
            "all networks not used by at least one container",
        ];
        if self.volumes {
            what.push("all anonymous volumes not used by at least one container");
        }
        what.push(if self.all {
            "all images without at least one container associated to them"
        } else {
            "all dangling images"
        });
        let list: Vec<String> = what.iter().map(|line| format!("  - {line}\n")).collect();
        if !agreed(self.force, &format!("This will remove:\n{}", list.concat()))? {
            return Ok(());
        }
        let client = context.client()?;
        let filters = filters(&self.filter)?;
        let mut space = containers(client, &filters)?;
        networks(client, &filters)?;
        if self.volumes {
            space += volumes(client, &filters)?;
        }
        space += images(client, filters, self.all)?;
        reclaimed(space)
    }
}

fn reclaimed(space: u64) -> Result {
    output::print_line(&format!("Total reclaimed space: {}", human_size(space as f64)))?;
    Ok(())
}

/// A heading and what was removed; nothing when nothing was.
fn removed(heading: &str, names: &[String]) -> Result {
    if !names.is_empty() {
        output::print(&format!("{heading}:\n{}\n\n", names.join("\n")))?;
    }
    Ok(())
}

fn containers(client: &Client, filters: &Filters) -> Result<u64> {
    let report = client.container_prune(filters)?;
    removed("Deleted Containers", &report.containers_deleted)?;
    Ok(report.space_reclaimed)
}

fn images(client: &Client, mut filters: Filters, all: bool) -> Result<u64> {
    filters.add("dangling", if all { "false" } else { "true" });
    let report = client.image_prune(&filters)?;
    let line = |item: &ImageDeleteItem| match item.deleted.as_str() {
        "" => format!("untagged: {}", item.untagged),
        deleted => format!("deleted: {deleted}"),
    };
    removed(
        "Deleted Images",
        &report.images_deleted.iter().map(line).collect::<Vec<_>>(),
    )?;
    Ok(report.space_reclaimed)
}

fn networks(client: &Client, filters: &Filters) -> Result {
    removed(
        "Deleted Networks",
        &client.network_prune(filters)?.networks_deleted,
    )
}

fn volumes(client: &Client, filters: &Filters) -> Result<u64> {
    let report = client.volume_prune(filters)?;
    removed("Deleted Volumes", &report.volumes_deleted)?;
    Ok(report.space_reclaimed)
}
