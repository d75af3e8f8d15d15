//! `vessel man`

use std::path::PathBuf;

use crate::app::{self, Run};
use crate::context::Context;
use crate::failure::{Failure, Result, words};

/// Write the manual pages to a directory
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory, which is made when it is missing
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Run for Args {
    fn run(self, _context: &Context) -> Result {
        let cannot = |error: std::io::Error| {
            Failure::new(format!(
                "cannot write manual pages to {}: {}",
                self.directory.display(),
                words(&error)
            ))
        };
        std::fs::create_dir_all(&self.directory).map_err(cannot)?;
        clap_mangen::generate_to(app::whole(), &self.directory).map_err(cannot)
    }
}
