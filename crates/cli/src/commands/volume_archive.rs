//! `vessel volume export`, `import`, `clone`, `snapshot`

use std::fs::File;
use std::io::{self, Read};

use vessel_api::{Map, VolumeCloneRequest};

use super::save::write_archive;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result, words};
use crate::options::env;
use crate::output;
use crate::terminal;

/// Write a volume's files to a tar archive
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "string")]
    output: Option<String>,
    /// The volume
    #[arg(value_name = "VOLUME")]
    volume: String,
}

impl Run for ExportArgs {
    fn run(self, context: &Context) -> Result {
        write_archive(self.output.as_deref(), "export", || {
            context.client()?.volume_archive(&self.volume).map_err(Into::into)
        })
    }
}

/// Fill a new, or an empty, volume from a tar archive
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// Set labels, if it is made: NAME=VALUE
    #[arg(long, value_name = "list")]
    label: Vec<String>,
    /// The volume
    #[arg(value_name = "VOLUME")]
    volume: String,
    /// The archive, which may be compressed: a file, or - for standard input
    #[arg(value_name = "file|-", default_value = "-")]
    source: String,
}

impl Run for ImportArgs {
    fn run(self, context: &Context) -> Result {
        let archive: Box<dyn Read + Send> = match self.source.as_str() {
            "-" if terminal::stdin_is_terminal() => {
                return Err(
                    Failure::new("there is no archive to import: standard input is a terminal")
                        .with_hint("name a file or redirect standard input"),
                );
            }
            "-" => Box::new(io::stdin()),
            path => Box::new(
                File::open(path).map_err(|error| Failure::new(format!("open {path}: {}", words(&error))))?,
            ),
        };
        let labels = labels(&self.label)?;
        let volume = context.client()?.volume_extract(&self.volume, &labels, archive)?;
        output::print_line(&volume.name)?;
        Ok(())
    }
}

/// Copy a volume into a new one
#[derive(Debug, clap::Args)]
pub struct CloneArgs {
    /// Set labels: NAME=VALUE
    #[arg(long, value_name = "list")]
    label: Vec<String>,
    /// The volume
    #[arg(value_name = "VOLUME")]
    volume: String,
    /// The new one's name
    #[arg(value_name = "NEW")]
    name: String,
}

impl Run for CloneArgs {
    fn run(self, context: &Context) -> Result {
        copy(context, &self.volume, self.name, labels(&self.label)?)
    }
}

/// Keep a volume's state of now: a copy named VOLUME-DATE-TIME
#[derive(Debug, clap::Args)]
pub struct SnapshotArgs {
    /// Set labels: NAME=VALUE
    #[arg(long, value_name = "list")]
    label: Vec<String>,
    /// The volume
    #[arg(value_name = "VOLUME")]
    volume: String,
    /// Another name than that of the time
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

impl Run for SnapshotArgs {
    fn run(self, context: &Context) -> Result {
        let name = self.name.unwrap_or_else(|| {
            let now = jiff::Zoned::now();
            format!("{}-{}", self.volume, now.strftime("%Y%m%d-%H%M%S"))
        });
        copy(context, &self.volume, name, labels(&self.label)?)
    }
}

fn labels(list: &[String]) -> Result<Map<String>> {
    env::labels(&[], list).map_err(Failure::usage)
}

fn copy(context: &Context, volume: &str, name: String, labels: Map<String>) -> Result {
    let request = VolumeCloneRequest { labels, name };
    let made = context.client()?.volume_clone(volume, &request)?;
    output::print_line(&made.name)?;
    Ok(())
}
