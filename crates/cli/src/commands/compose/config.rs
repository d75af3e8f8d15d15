//! `vessel compose config`

use std::collections::BTreeSet;
use std::path::PathBuf;

use vessel_compose::yaml::emit;

use super::options::Session;
use crate::failure::{Failure, Result, words};
use crate::output;

/// Check the files and show what they mean
#[derive(Debug, clap::Args)]
#[command(visible_alias = "convert")]
pub struct Args {
    /// Print the variables the files see
    #[arg(long)]
    environment: bool,
    /// How: yaml or json
    #[arg(long, value_name = "string", default_value = "yaml")]
    format: String,
    /// Print the hash of services: * for all, or names with commas between
    #[arg(long, value_name = "string")]
    hash: Option<String>,
    /// Print the names of images
    #[arg(long)]
    images: bool,
    /// Print the names of networks
    #[arg(long)]
    networks: bool,
    /// Do not check references
    #[arg(long)]
    no_consistency: bool,
    /// Do not read the environment files of services
    #[arg(long)]
    no_env_resolution: bool,
    /// Leave variables as they are
    #[arg(long)]
    no_interpolate: bool,
    /// Write to a file
    #[arg(short, long, value_name = "string")]
    output: Option<PathBuf>,
    /// Print the names of profiles
    #[arg(long)]
    profiles: bool,
    /// Check only
    #[arg(short, long)]
    quiet: bool,
    /// Print the names of services
    #[arg(long)]
    services: bool,
    /// Print the names of volumes
    #[arg(long)]
    volumes: bool,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    names: Vec<String>,
}

impl Args {
    pub fn run(self, session: &Session<'_>) -> Result {
        let mut options = session.load_options()?;
        options.no_interpolate = self.no_interpolate;
        options.no_env_resolution = self.no_env_resolution;
        options.no_consistency = self.no_consistency;
        if self.profiles {
            options.profiles = vec!["*".to_owned()];
        }
        options.services.clone_from(&self.names);
        let mut project = vessel_compose::load(&options)?;
        for warning in &project.warnings {
            output::warn(&format!("vessel: warning: {warning}"));
        }
        if !self.names.is_empty() {
            let chosen = project.select(&self.names, true)?;
            project.services.retain(|name, _| chosen.contains(name));
        }
        if self.quiet {
            return Ok(());
        }
        let lines: Vec<String> = if self.services {
            project.services.keys().cloned().collect()
        } else if self.volumes {
            project.volumes.keys().cloned().collect()
        } else if self.networks {
            project.networks.keys().cloned().collect()
        } else if self.images {
            let names = project
                .services
                .values()
                .map(|service| service.image_name(&project.name));
            names.collect::<BTreeSet<_>>().into_iter().collect()
        } else if self.profiles {
            let names = project
                .services
                .values()
                .flat_map(|service| service.profiles.iter().cloned());
            names.collect::<BTreeSet<_>>().into_iter().collect()
        } else if self.environment {
            project
                .environment
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect()
        } else if let Some(hash) = &self.hash {
            let wanted: Vec<&str> = hash.split(',').collect();
            let mut lines = Vec::new();
            for name in &wanted {
                if *name != "*" {
                    project.service(name)?;
                }
            }
            for name in project
                .services
                .keys()
                .filter(|name| wanted.contains(&"*") || wanted.contains(&name.as_str()))
            {
                lines.push(format!("{name} {}", project.config_hash(name)));
            }
            lines
        } else {
            let mut model = project.canonical();
            if !self.no_env_resolution
                && let Some(services) = model.get_mut("services").and_then(|node| node.as_map_mut())
            {
                // Their variables are among those of the service now.
                for service in services.values_mut().filter_map(|service| service.as_map_mut()) {
                    service.shift_remove("env_file");
                    service.shift_remove("label_file");
                }
            }
            let text = match self.format.as_str() {
                "yaml" => emit(&model),
                "json" => {
                    let mut text = serde_json::to_string_pretty(&model.to_json()).map_err(Failure::new)?;
                    text.push('\n');
                    text
                }
                other => {
                    return Err(Failure::new(format!(
                        "unsupported format {other:?}: yaml or json is expected"
                    )));
                }
            };
            // What is read again must mean the same.
            let text = if self.no_interpolate {
                text
            } else {
                text.replace('$', "$$")
            };
            return self.write(&text);
        };
        let mut text = lines.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        self.write(&text)
    }

    fn write(&self, text: &str) -> Result {
        match &self.output {
            None => Ok(output::print(text)?),
            Some(path) => std::fs::write(path, text)
                .map_err(|error| Failure::new(format!("cannot write {}: {}", path.display(), words(&error)))),
        }
    }
}
