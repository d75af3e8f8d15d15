//! `vessel exec`

use std::time::Duration;

use vessel_api::{ExecCreateRequest, ExecStartRequest};

use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::options::env;
use crate::output;
use crate::terminal::session::{self, End};
use crate::terminal::signals::{self, Signals};
use crate::terminal::{self, RawMode, detach};

/// Run a command in a running container
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Run it in the background
    #[arg(short, long)]
    detach: bool,
    /// Keys that detach from it
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Set environment variables
    #[arg(short, long, value_name = "list")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "list")]
    env_file: Vec<String>,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give all privileges to the command
    #[arg(long)]
    privileged: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
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
    /// The container, and the command with its arguments
    #[arg(
        value_name = "CONTAINER COMMAND [ARG...]",
        required = true,
        trailing_var_arg = true
    )]
    args: Vec<String>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl Args {
    /// In a container of a service, by its ID.
    pub fn in_container(id: String, command: Vec<String>, options: super::compose::ExecOptions) -> Self {
        let mut args = vec![id];
        args.extend(command);
        Self {
            detach: options.detach,
            detach_keys: String::new(),
            env: options.env,
            env_file: Vec::new(),
            interactive: options.interactive,
            privileged: options.privileged,
            tty: options.tty,
            user: options.user,
            workdir: options.workdir,
            args,
            help: None,
        }
    }
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let Some((container, command)) = self.args.split_first().filter(|(_, command)| !command.is_empty())
        else {
            return Err(Failure::new(
                "'vessel exec' requires at least 2 arguments: a container and a command",
            )
            .with_hint("see 'vessel exec --help'"));
        };
        let attach_stdin = self.interactive && !self.detach;
        if self.tty && attach_stdin && !terminal::stdin_is_terminal() {
            return Err(Failure::new("the input device is not a TTY")
                .with_hint("leave out -t, or run it in a terminal"));
        }
        let keys = match self.detach_keys.as_str() {
            "" => detach::DEFAULT.to_vec(),
            keys => detach::parse(keys).map_err(Failure::usage)?,
        };
        let client = context.client()?;
        let console_size = self
            .tty
            .then(terminal::size)
            .flatten()
            .map(|(h, w)| [u32::from(h), u32::from(w)]);
        let request = ExecCreateRequest {
            user: self.user.clone(),
            privileged: self.privileged,
            tty: self.tty,
            console_size,
            attach_stdin,
            attach_stdout: !self.detach,
            attach_stderr: !self.detach,
            detach: self.detach,
            detach_keys: self.detach_keys.clone(),
            env: env::environment(&self.env_file, &self.env, |name| std::env::var(name).ok())
                .map_err(Failure::usage)?,
            working_dir: self.workdir.clone(),
            cmd: command.to_vec(),
        };
        let id = client.exec_create(container, &request)?;
        if self.detach {
            return Ok(client.exec_start_detached(&id, self.tty)?);
        }
        let stream = client.exec_start(
            &id,
            &ExecStartRequest {
                detach: false,
                tty: self.tty,
                console_size,
            },
        )?;
        let interactive = self.tty && attach_stdin;
        let signals = match (interactive, self.tty) {
            (true, _) => Some(Signals::block(
                signals::ENDING.iter().copied().chain([signals::RESIZED]),
            )?),
            (false, true) => Some(Signals::block([signals::RESIZED])?),
            (false, false) => None,
        };
        let raw = interactive.then(RawMode::enter).transpose()?;
        let resize = || match terminal::size() {
            Some((rows, columns)) => client.exec_resize(&id, rows, columns).is_ok(),
            None => true,
        };
        if self.tty {
            // Some daemons answer before the process is there to be resized.
            for _ in 0..5 {
                if resize() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let options = session::Options {
            stdin: attach_stdin,
            tty: self.tty,
            detach_keys: if interactive { keys } else { Vec::new() },
        };
        let end = session::run(stream, &options, signals.as_ref(), |signal| {
            if signal != signals::RESIZED {
                return Err(Failure::silent(128 + signal));
            }
            resize();
            Ok(())
        })?;
        drop(raw);
        if end == End::Detached {
            output::warn("\nread escape sequence");
            return Err(Failure::silent(1));
        }
        match i32::try_from(client.exec_inspect(&id)?.exit_code.unwrap_or(0)).unwrap_or(1) {
            0 => Ok(()),
            code => Err(Failure::silent(code)),
        }
    }
}
