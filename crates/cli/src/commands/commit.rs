//! `vessel commit`

use vessel_client::CommitOptions;

use super::pull::split_reference;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;

/// Make an image of what a container has changed
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Who made it: "John Hannibal Smith <hannibal@a-team.com>"
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    author: String,
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
    /// Pause the container meanwhile
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set, value_name = "bool")]
    pause: bool,
    /// Do not pause the container meanwhile
    #[arg(long)]
    no_pause: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The image's name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let name = self.name.unwrap_or_default();
        let (repo, tag) = split_reference(&name);
        if name.contains('@') {
            return Err(Failure::new(format!(
                "a new image's name cannot have a digest: {name}"
            )));
        }
        let options = CommitOptions {
            container: self.container,
            repo: repo.to_string(),
            tag: tag.unwrap_or_default().to_string(),
            comment: self.message,
            author: self.author,
            pause: self.pause && !self.no_pause,
            changes: self.change,
        };
        output::print_line(&context.client()?.container_commit(&options)?)?;
        Ok(())
    }
}
