//! `vessel attach`

use super::run::{Foreground, Mode};
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::terminal;

/// Attach to a running container's input and output
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keys that detach from it
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Do not attach to its input
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the process
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set, value_name = "bool")]
    sig_proxy: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        let found = client.container_inspect(&self.container, false)?;
        let state = &found.state;
        let cannot = |what: &str, hint: &str| {
            Err(Failure::new(format!(
                "you cannot attach to a {what} container, {hint} first"
            )))
        };
        if !state.running {
            return cannot("stopped", "start it");
        }
        if state.paused {
            return cannot("paused", "unpause it");
        }
        if state.restarting {
            return Err(Failure::new(
                "you cannot attach to a restarting container, wait until it is running",
            ));
        }
        let mut config = found.config;
        config.attach_stdin = !self.no_stdin && config.open_stdin;
        config.attach_stdout = true;
        config.attach_stderr = true;
        if config.tty && config.attach_stdin && !terminal::stdin_is_terminal() {
            return Err(Failure::new("the input device is not a TTY")
                .with_hint("run it in a terminal, or with --no-stdin"));
        }
        let foreground = Foreground {
            client,
            id: &found.id,
            config: &config,
            auto_remove: false,
            sig_proxy: self.sig_proxy,
            detach_keys: &self.detach_keys,
            mode: Mode::Attach,
        };
        foreground.stream()
    }
}
