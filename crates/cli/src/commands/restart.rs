//! `vessel restart`

use super::for_each_parallel;
use super::stop::StopOptions;
use crate::app::Run;
use crate::context::Context;
use crate::failure::Result;

/// Restart containers
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    stop: StopOptions,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        let StopOptions {
            signal,
            timeout,
            containers,
        } = &self.stop;
        for_each_parallel(containers, |name| {
            client.container_restart(name, signal, *timeout)
        })
    }
}
