//! `vessel rmi`

use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;

/// Remove images
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove it even when it is in use or has other names
    #[arg(short, long)]
    force: bool,
    /// Keep parents without a name
    #[arg(long)]
    no_prune: bool,
    /// Images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        let mut failed = false;
        for image in &self.images {
            match client.image_remove(image, self.force, self.no_prune) {
                Ok(items) => {
                    for item in items {
                        if item.deleted.is_empty() {
                            output::print_line(&format!("Untagged: {}", item.untagged))?;
                        } else {
                            output::print_line(&format!("Deleted: {}", item.deleted))?;
                        }
                    }
                }
                Err(error) => {
                    // With --force what is gone already is what was wanted.
                    failed |= !(self.force && error.is_not_found());
                    output::warn(&format!("vessel: {error}"));
                }
            }
        }
        if failed { Err(Failure::silent(1)) } else { Ok(()) }
    }
}
