//! `vessel push`

use super::pull::split_reference;
use crate::app::Run;
use crate::context::Context;
use crate::credentials;
use crate::failure::{Failure, Result};
use crate::output::{self, progress};

/// Upload an image to a registry
#[derive(Debug, clap::Args)]
pub struct Args {
    /// All tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Do not sign the image
    #[arg(long, hide = true)]
    disable_content_trust: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
    /// NAME[:TAG]
    #[arg(value_name = "NAME")]
    name: String,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let (repository, tag) = split_reference(&self.name);
        if self.all_tags && tag.is_some() {
            return Err(Failure::new("tag can't be used with --all-tags/-a"));
        }
        if self.name.contains('@') {
            return Err(Failure::new("cannot push a digest reference"));
        }
        let tag = match (self.all_tags, tag) {
            (true, _) => "",
            (false, Some(tag)) => tag,
            (false, None) => {
                if !self.quiet {
                    output::print_line("Using default tag: latest")?;
                }
                "latest"
            }
        };
        let shown = credentials::header_for(repository)?;
        let messages = context.client()?.image_push(repository, tag, &shown)?;
        if !self.quiet {
            return progress::show(messages);
        }
        progress::quietly(messages)?;
        output::print_line(&super::pull::full_name(&self.name))?;
        Ok(())
    }
}
