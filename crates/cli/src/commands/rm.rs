//! `vessel rm`

use vessel_client::RemoveOptions;

use super::at_once;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;

/// Remove containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kill it first when it runs
    #[arg(short, long)]
    force: bool,
    /// Remove the link of that name
    #[arg(short, long)]
    link: bool,
    /// Remove its anonymous volumes too
    #[arg(short, long)]
    volumes: bool,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        let options = RemoveOptions {
            volumes: self.volumes,
            link: self.link,
            force: self.force,
        };
        let mut failed = false;
        let results = at_once(&self.containers, |name| {
            client.container_remove(name.trim_start_matches('/'), options)
        });
        for (name, result) in self.containers.iter().zip(results) {
            match result {
                Ok(()) => output::print_line(name)?,
                Err(error @ vessel_client::Error::Connect { .. }) => return Err(error.into()),
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
