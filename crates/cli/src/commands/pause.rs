//! `vessel pause`

use super::for_each_parallel;
use crate::app::Run;
use crate::context::Context;
use crate::failure::Result;

/// Pause all processes of containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        for_each_parallel(&self.containers, |name| client.container_pause(name))
    }
}
