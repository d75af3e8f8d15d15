//! `vessel compose`: projects of several containers.

mod attached;
mod build;
mod config;
mod control;
mod create;
mod down;
mod exec;
mod images;
mod logs;
mod options;
mod printer;
mod progress;
mod ps;
mod run;
mod show;
mod tree;
mod up;
mod watch;

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
    Build(build::BuildArgs),
    Config(config::Args),
    Cp(show::CopyArgs),
    Create(create::CreateArgs),
    Down(down::Args),
    Events(show::EventsArgs),
    Exec(exec::Args),
    Images(build::ImagesArgs),
    Kill(control::KillArgs),
    Logs(logs::Args),
    Ls(show::ListArgs),
    Pause(control::PauseArgs),
    Port(show::PortArgs),
    Ps(ps::Args),
    Pull(build::PullArgs),
    Push(build::PushArgs),
    Restart(control::RestartArgs),
    Rm(control::RemoveArgs),
    Run(run::Args),
    Scale(create::ScaleArgs),
    Start(control::StartArgs),
    Stop(control::StopArgs),
    Top(show::TopArgs),
    Unpause(control::UnpauseArgs),
    Up(up::Args),
    Version(show::VersionArgs),
    Wait(show::WaitArgs),
    Watch(watch::Args),
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let session = options::Session::new(context, self.options)?;
        match self.command {
            Command::Build(args) => args.run(&session),
            Command::Config(args) => args.run(&session),
            Command::Cp(args) => args.run(&session),
            Command::Create(args) => args.run(&session),
            Command::Down(args) => args.run(&session),
            Command::Events(args) => args.run(&session),
            Command::Exec(args) => args.run(&session),
            Command::Images(args) => args.run(&session),
            Command::Kill(args) => args.run(&session),
            Command::Logs(args) => args.run(&session),
            Command::Ls(args) => args.run(&session),
            Command::Pause(args) => args.run(&session),
            Command::Port(args) => args.run(&session),
            Command::Ps(args) => args.run(&session),
            Command::Pull(args) => args.run(&session),
            Command::Push(args) => args.run(&session),
            Command::Restart(args) => args.run(&session),
            Command::Rm(args) => args.run(&session),
            Command::Run(args) => args.run(&session),
            Command::Scale(args) => args.run(&session),
            Command::Start(args) => args.run(&session),
            Command::Stop(args) => args.run(&session),
            Command::Top(args) => args.run(&session),
            Command::Unpause(args) => args.run(&session),
            Command::Up(args) => args.run(&session),
            Command::Version(args) => args.run(&session),
            Command::Wait(args) => args.run(&session),
            Command::Watch(args) => args.run(&session),
        }
    }
}
