//! `vessel rename`

use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};

/// Rename a container
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Its new name
    #[arg(value_name = "NEW_NAME")]
    name: String,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let (old, new) = (self.container.trim(), self.name.trim());
        if old.is_empty() || new.is_empty() {
            return Err(Failure::new("neither old nor new names may be empty"));
        }
        Ok(context.client()?.container_rename(old, new)?)
    }
}
