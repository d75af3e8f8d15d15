//! `vessel stop`

use super::for_each_parallel;
use crate::app::Run;
use crate::context::Context;
use crate::failure::Result;

/// Stop running containers
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    stop: StopOptions,
}

/// Which containers to stop, and how.
#[derive(Debug, clap::Args)]
pub struct StopOptions {
    /// Signal to stop it with
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    pub signal: String,
    /// Seconds to wait before it is killed; -1 for no limit
    #[arg(
        short = 't',
        long,
        alias = "time",
        value_name = "int",
        allow_hyphen_values = true
    )]
    pub timeout: Option<i64>,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        let StopOptions {
            signal,
            timeout,
            containers,
        } = &self.stop;
        for_each_parallel(containers, |name| client.container_stop(name, signal, *timeout))
    }
}
