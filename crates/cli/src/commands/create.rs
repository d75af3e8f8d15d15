//! `vessel create`

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
    let cidfile = &options.process.cidfile;
    if !cidfile.is_empty() && std::fs::exists(cidfile).unwrap_or(false) {
        return Err(Failure::usage(format!(
            "container ID file found, make sure the other container isn't running or delete {cidfile}"
        )));
    }
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
    if !cidfile.is_empty() {
        std::fs::write(cidfile, &created.id)
            .map_err(|error| Failure::usage(format!("cannot write {cidfile}: {}", words(&error))))?;
    }
    Ok(created)
}

/// Whether the image is missing, and not a network or something else.
fn is_about_image(error: &vessel_client::Error) -> bool {
    let text = error.to_string().to_lowercase();
    text.contains("no such image") || text.contains("image not known") || text.contains("image not found")
}
