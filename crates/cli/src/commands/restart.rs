//! `vessel restart`

use super::for_each_parallel;
use crate::app::Run;
use crate::context::Context;
use crate::failure::Result;

/// Restart containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Signal to stop it with
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    signal: String,
    /// Seconds to wait before it is killed; -1 for no limit
    #[arg(
        short = 't',
        long,
        alias = "time",
        value_name = "int",
        allow_hyphen_values = true
    )]
    timeout: Option<i64>,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        for_each_parallel(&self.containers, |name| {
            client.container_restart(name, &self.signal, self.timeout)
        })
    }
}
