//! `vessel tag`

use super::pull::split_reference;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};

/// Give an image another name
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    source: String,
    /// Its other name
    #[arg(value_name = "TARGET_IMAGE[:TAG]")]
    target: String,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        if self.target.contains('@') {
            return Err(Failure::new("refusing to create a tag with a digest reference"));
        }
        let (repository, tag) = split_reference(&self.target);
        Ok(context
            .client()?
            .image_tag(&self.source, repository, tag.unwrap_or("latest"))?)
    }
}
