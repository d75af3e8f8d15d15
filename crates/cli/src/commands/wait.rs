//! `vessel wait`

use vessel_client::WaitCondition;

use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;

/// Wait until containers stop, and print their exit codes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        let mut failed = false;
        for name in &self.containers {
            match client.container_wait(name, WaitCondition::NotRunning) {
                Ok(exit) => {
                    output::print_line(&exit.status_code.to_string())?;
                    if let Some(error) = exit.error.filter(|error| !error.message.is_empty()) {
                        output::warn(&format!("vessel: {}", error.message));
                        failed = true;
                    }
                }
                Err(error) => {
                    output::warn(&format!("vessel: {error}"));
                    failed = true;
                }
            }
        }
        if failed { Err(Failure::silent(1)) } else { Ok(()) }
    }
}
