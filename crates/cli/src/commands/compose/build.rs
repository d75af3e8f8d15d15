//! `vessel compose build`, `pull` and `push`

use vessel_compose::act::state::OneOff;

use super::images::BuildExtra;
use super::options::Session;
use crate::commands::pull::split_reference;
use crate::credentials::header_for;
use crate::failure::{Failure, Result};
use crate::output::{self, progress};

/// Build the images of services
#[derive(Debug, clap::Args)]
pub struct BuildArgs {
    /// Set a build argument: NAME=VALUE, or NAME for the environment's value
    #[arg(long, value_name = "stringArray")]
    build_arg: Vec<String>,
    /// Take nothing from the cache
    #[arg(long)]
    no_cache: bool,
    /// Look images up in their registry even if they are here
    #[arg(long)]
    pull: bool,
    /// Push the images to their registries
    #[arg(long)]
    push: bool,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
    /// Offer an SSH agent: default, or ID=SOCKET
    #[arg(long, value_name = "string")]
    ssh: Vec<String>,
    /// Build what they depend on, too
    #[arg(long)]
    with_dependencies: bool,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl BuildArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.project(&self.services)?;
        let engine = session.engine(&project)?;
        let services = engine.buildable(&self.services, self.with_dependencies)?;
        if services.is_empty() {
            output::warn("No services to build");
            return Ok(());
        }
        let extra = BuildExtra {
            arguments: self.build_arg,
            no_cache: self.no_cache,
            pull: self.pull,
            push: self.push,
            quiet: self.quiet,
            ssh: self.ssh,
        };
        for service in services {
            session.images()?.build_one(&project, service, &extra)?;
            if !self.quiet {
                output::warn(&format!(" Image {}  Built", service.image_name(&project.name)));
            }
        }
        Ok(())
    }
}

/// Download the images of services
#[derive(Debug, clap::Args)]
pub struct PullArgs {
    /// Leave out what can be built
    #[arg(long)]
    ignore_buildable: bool,
    /// Go on when an image cannot be had
    #[arg(long)]
    ignore_pull_failures: bool,
    /// Pull what they depend on, too
    #[arg(long)]
    include_deps: bool,
    /// What is pulled: missing or always
    #[arg(long, value_name = "string", default_value = "always")]
    policy: String,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl PullArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let missing = match self.policy.as_str() {
            "always" => false,
            "missing" => true,
            other => {
                return Err(Failure::new(format!(
                    "invalid value for --policy: {other:?}: missing or always is expected"
                )));
            }
        };
        let project = session.project(&self.services)?;
        let chosen = project.select(&self.services, self.include_deps)?;
        let engine = session.engine(&project)?;
        Ok(engine.pull(&chosen, self.ignore_pull_failures, self.ignore_buildable, missing)?)
    }
}

/// Upload the images of services that are built
#[derive(Debug, clap::Args)]
pub struct PushArgs {
    /// Go on when an image cannot be pushed
    #[arg(long)]
    ignore_push_failures: bool,
    /// Push the images of what they depend on, too
    #[arg(long)]
    include_deps: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl PushArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.project(&self.services)?;
        let chosen = project.select(&self.services, self.include_deps)?;
        let client = session.client()?;
        for service in chosen.iter().filter_map(|name| project.services.get(name)) {
            // What is not built here is not ours to push.
            let Some(build) = &service.build else { continue };
            if service.image.is_empty() && build.tags.is_empty() {
                output::warn(&format!(
                    " Service {}  Skipped: it has no image name to push",
                    service.name
                ));
                continue;
            }
            let names = (!service.image.is_empty())
                .then_some(&service.image)
                .into_iter()
                .chain(&build.tags);
            for name in names {
                let (repository, tag) = split_reference(name);
                let push = || -> Result {
                    let credentials = header_for(repository)?;
                    let messages = client.image_push(repository, tag.unwrap_or("latest"), &credentials)?;
                    if self.quiet {
                        progress::quietly(messages)
                    } else {
                        progress::show_on_stderr(messages)
                    }
                };
                match push() {
                    Err(failure) if self.ignore_push_failures => {
                        output::warn(&format!(
                            "vessel: warning: {name}: {}",
                            failure.message.unwrap_or_default()
                        ));
                    }
                    other => other?,
                }
            }
        }
        Ok(())
    }
}

/// List the images that containers were made of
#[derive(Debug, clap::Args)]
pub struct ImagesArgs {
    /// table or json
    #[arg(long, value_name = "string", default_value = "table")]
    format: String,
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl ImagesArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.known_project(&self.services)?;
        let engine = session.engine(&project)?;
        let client = session.client()?;
        let mut rows = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for container in engine.containers_of(&self.services, OneOff::Include)? {
            let id = container.summary.image_id.clone();
            if self.quiet {
                if seen.insert(id.clone()) {
                    output::print_line(id.strip_prefix("sha256:").unwrap_or(&id))?;
                }
                continue;
            }
            let image = client.image_inspect(&id)?;
            let (repository, tag) = split_reference(&container.summary.image);
            rows.push(serde_json::json!({
                "ID": id,
                "ContainerName": container.name,
                "Repository": repository,
                "Tag": tag.unwrap_or("latest"),
                "Platform": format!("{}/{}", image.os, image.architecture),
                "Size": image.size,
                "Created": image.created,
            }));
        }
        match self.format.as_str() {
            _ if self.quiet => Ok(()),
            "json" => Ok(output::print_line(&serde_json::Value::from(rows).to_string())?),
            "table" => {
                let mut out = "CONTAINER\tREPOSITORY\tTAG\tPLATFORM\tIMAGE ID\tSIZE\n".to_owned();
                for row in &rows {
                    let text = |name: &str| row[name].as_str().unwrap_or_default();
                    let size = output::units::human_size(row["Size"].as_f64().unwrap_or_default());
                    let id = output::text::short_id(text("ID"));
                    let columns = [
                        text("ContainerName"),
                        text("Repository"),
                        text("Tag"),
                        text("Platform"),
                        id,
                        &size,
                    ];
                    out.push_str(&columns.join("\t"));
                    out.push('\n');
                }
                Ok(output::print(&output::tabwriter::align(&out))?)
            }
            other => Err(Failure::new(format!(
                "unsupported format {other:?}: table or json is expected"
            ))),
        }
    }
}
