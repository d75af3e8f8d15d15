//! `vessel export`

use super::save::write_archive;
use crate::app::Run;
use crate::context::Context;
use crate::failure::Result;

/// Write a container's file system to a tar archive
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "string")]
    output: Option<String>,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        write_archive(self.output.as_deref(), "export", || {
            context
                .client()?
                .container_export(&self.container)
                .map_err(Into::into)
        })
    }
}
