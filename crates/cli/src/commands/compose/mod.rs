//! `vessel compose`: projects of several containers.

mod attached;
mod config;
mod control;
mod down;
mod exec;
mod images;
mod logs;
mod options;
mod printer;
mod progress;
mod ps;
mod up;

use clap::Subcommand;

use crate::app::Run;
use crate::context::Context;
use crate::failure::Result;

pub use exec::ExecOptions;

/// Run projects of several containers, described in Compose files
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: options::ProjectOptions,
    /// What to do
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    Config(config::Args),
    Down(down::Args),
    Exec(exec::Args),
    Kill(control::KillArgs),
    Logs(logs::Args),
    Pause(control::PauseArgs),
    Ps(ps::Args),
    Restart(control::RestartArgs),
    Rm(control::RemoveArgs),
    Start(control::StartArgs),
    Stop(control::StopArgs),
    Unpause(control::UnpauseArgs),
    Up(up::Args),
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let session = options::Session::new(context, self.options)?;
        match self.command {
            Command::Config(args) => args.run(&session),
            Command::Down(args) => args.run(&session),
            Command::Exec(args) => args.run(&session),
            Command::Kill(args) => args.run(&session),
            Command::Logs(args) => args.run(&session),
            Command::Pause(args) => args.run(&session),
            Command::Ps(args) => args.run(&session),
            Command::Restart(args) => args.run(&session),
            Command::Rm(args) => args.run(&session),
            Command::Start(args) => args.run(&session),
            Command::Stop(args) => args.run(&session),
            Command::Unpause(args) => args.run(&session),
            Command::Up(args) => args.run(&session),
        }
    }
}
