//! `vessel kill`

use super::for_each_parallel;
use crate::app::Run;
use crate::context::Context;
use crate::failure::Result;

/// Kill running containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Signal to send
    #[arg(short, long, value_name = "string", default_value = "KILL")]
    signal: String,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        for_each_parallel(&self.containers, |name| client.container_kill(name, &self.signal))
    }
}
