//! `vessel import`

use std::fs::File;
use std::io::{self, Read};

use vessel_client::ImportOptions;

use super::pull::split_reference;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result, words};
use crate::output::progress;

/// Make an image of a tar archive of a file system
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Apply a line of a Dockerfile: CMD, ENV, ENTRYPOINT, ...
    #[arg(short, long, value_name = "list")]
    change: Vec<String>,
    /// A message for the image's history
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    message: String,
    /// Platform: OS[/ARCH[/VARIANT]]
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    platform: String,
    /// The archive: a file, an URL, or - for standard input
    #[arg(value_name = "file|URL|-")]
    source: String,
    /// The image's name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let url = self.source.starts_with("http://") || self.source.starts_with("https://");
        let archive: Box<dyn Read + Send> = if self.source == "-" {
            Box::new(io::stdin())
        } else if url {
            Box::new(io::empty())
        } else {
            let path = &self.source;
            let file =
                File::open(path).map_err(|error| Failure::new(format!("open {path}: {}", words(&error))))?;
            Box::new(file)
        };
        let (repo, tag) = split_reference(self.name.as_deref().unwrap_or_default());
        let options = ImportOptions {
            source: if url { self.source.clone() } else { "-".to_string() },
            repo: repo.to_string(),
            tag: tag.unwrap_or_default().to_string(),
            message: self.message.clone(),
            changes: self.change.clone(),
            platform: self.platform.clone(),
        };
        progress::show(context.client()?.image_import(&options, archive)?)
    }
}
