//! `vessel compose exec`

use super::options::Session;
use crate::app::Run;
use crate::commands::exec;
use crate::failure::{Failure, Result};
use crate::terminal;

/// Run a command in a running container of a service
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run it in the background
    #[arg(short, long)]
    detach: bool,
    /// Set environment variables
    #[arg(short, long, value_name = "stringArray")]
    env: Vec<String>,
    /// Number of the container, when there are several
    #[arg(long, value_name = "int", default_value = "0")]
    index: u32,
    /// Do not give it a terminal
    #[arg(short = 'T', long = "no-tty", visible_alias = "no-TTY")]
    no_tty: bool,
    /// Keep standard input open, which is the default
    #[arg(short, long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", hide = true)]
    interactive: bool,
    /// Give it a terminal, which is the default
    #[arg(short, long, hide = true)]
    tty: bool,
    /// Give all privileges to the command
    #[arg(long)]
    privileged: bool,
    /// User, by name or number: USER[:GROUP]
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    user: String,
    /// Working directory
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    workdir: String,
    /// The service, and the command with its arguments
    #[arg(
        value_name = "SERVICE COMMAND [ARG...]",
        required = true,
        trailing_var_arg = true
    )]
    args: Vec<String>,
}

/// What an exec in a container of a service is like.
#[derive(Debug, Default)]
pub struct ExecOptions {
    pub detach: bool,
    pub env: Vec<String>,
    pub interactive: bool,
    pub privileged: bool,
    pub tty: bool,
    pub user: String,
    pub workdir: String,
}

impl Args {
    pub fn run(self, session: &Session<'_>) -> Result {
        let Some((service, command)) = self.args.split_first().filter(|(_, command)| !command.is_empty())
        else {
            return Err(Failure::new(
                "'vessel compose exec' requires at least 2 arguments: a service and a command",
            ));
        };
        let project = session.known_project(&[])?;
        let container = session.engine(&project)?.container(service, self.index, true)?;
        let terminal = terminal::stdin_is_terminal() && terminal::stdout_is_terminal();
        let options = ExecOptions {
            detach: self.detach,
            env: self.env,
            interactive: self.interactive,
            privileged: self.privileged,
            tty: !self.no_tty && !self.detach && terminal,
            user: self.user,
            workdir: self.workdir,
        };
        exec::Args::in_container(container.id, command.to_vec(), options).run(session.context)
    }
}
