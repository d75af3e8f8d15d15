//! `vessel create`

use std::fs::File;
use std::io::{self, Write};

use vessel_api::{ContainerCreateRequest, ContainerCreateResponse};
use vessel_client::Client;

use super::pull;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result, words};
use crate::options::ContainerOptions;
use crate::output;

/// Create a container without starting it
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    #[command(flatten)]
    options: ContainerOptions,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let request = self.options.request()?;
        let created = create(context.client()?, &self.options, &request).map_err(|f| f.with_code(1))?;
        output::print_line(&created.id)?;
        Ok(())
    }
}

/// Creates the container, pulling the image first as `--pull` says, and writes the file with its ID.
pub fn create(
    client: &Client,
    options: &ContainerOptions,
    request: &ContainerCreateRequest,
) -> Result<ContainerCreateResponse> {
    let cidfile = match options.process.cidfile.as_str() {
        "" => None,
        path => Some(IdFile::create(path)?),
    };
    let (name, platform, image) = (&options.process.name, &options.platform, &request.config.image);
    let fail = |error: vessel_client::Error| Failure::from(error).with_code(125);
    if options.pull == "always" {
        pull::pull_for_run(client, image, platform, options.quiet)?;
    }
    let created = match client.container_create(name, platform, request) {
        Err(error) if options.pull == "missing" && error.is_not_found() && is_about_image(&error) => {
            output::warn(&format!(
                "Unable to find image '{}' locally",
                pull::with_default_tag(image)
            ));
            pull::pull_for_run(client, image, platform, options.quiet)?;
            client.container_create(name, platform, request).map_err(fail)?
        }
        other => other.map_err(fail)?,
    };
    for warning in &created.warnings {
        output::warn(&format!("WARNING: {warning}"));
    }
    if let Some(cidfile) = cidfile {
        cidfile.write(&created.id)?;
    }
    Ok(created)
}

/// The file that gets the container's ID. It is there before the container, so that no container is made whose ID cannot be
/// written; without a container it goes again.
struct IdFile<'a> {
    path: &'a str,
    file: File,
    written: bool,
}

impl<'a> IdFile<'a> {
    fn create(path: &'a str) -> Result<Self> {
        let file = File::create_new(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Failure::usage(format!(
                "container ID file found, make sure the other container isn't running or delete {path}"
            )),
            _ => Failure::usage(format!(
                "cannot create the container ID file {path}: {}",
                words(&error)
            )),
        })?;
        Ok(Self {
            path,
            file,
            written: false,
        })
    }

    fn write(mut self, id: &str) -> Result<()> {
        self.file
            .write_all(id.as_bytes())
            .map_err(|error| Failure::usage(format!("cannot write {}: {}", self.path, words(&error))))?;
        self.written = true;
        Ok(())
    }
}

impl Drop for IdFile<'_> {
    fn drop(&mut self) {
        if !self.written {
            // It is empty; one that cannot be removed any more harms nobody.
            let _ = std::fs::remove_file(self.path);
        }
    }
}

/// Whether the image is missing, and not a network or something else.
fn is_about_image(error: &vessel_client::Error) -> bool {
    let text = error.to_string().to_lowercase();
    text.contains("no such image") || text.contains("image not known") || text.contains("image not found")
}
