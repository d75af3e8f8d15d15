//! `vessel start`

use super::for_each;
use super::run::{Foreground, Mode};
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};

/// Start stopped containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Attach to its output, and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Keys that detach from it
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Attach to its input
    #[arg(short, long)]
    interactive: bool,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        if !self.attach && !self.interactive {
            return for_each(&self.containers, |name| client.container_start(name, ""));
        }
        let [container] = self.containers.as_slice() else {
            return Err(Failure::new(
                "you cannot start and attach multiple containers at once",
            ));
        };
        let found = client.container_inspect(container, false)?;
        let mut config = found.config;
        config.attach_stdin = self.interactive && config.open_stdin;
        config.attach_stdout = true;
        config.attach_stderr = true;
        let foreground = Foreground {
            client,
            id: &found.id,
            config: &config,
            auto_remove: found.host_config.auto_remove,
            sig_proxy: true,
            detach_keys: &self.detach_keys,
            mode: if found.state.running {
                Mode::Attach
            } else {
                Mode::Start
            },
        };
        foreground.stream()
    }
}
