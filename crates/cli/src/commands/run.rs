//! `vessel run`

use vessel_api::{ContainerConfig, WaitResponse};
use vessel_client::{AttachOptions, Client, Response, WaitCondition};

use super::create::create;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::options::ContainerOptions;
use crate::output;
use crate::terminal::session::{self, End};
use crate::terminal::signals::{self, Signals};
use crate::terminal::{self, RawMode, detach};

/// Create a container from an image and run it
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Run it in the background and print its ID
    #[arg(short = 'd', long)]
    detach: bool,
    /// Keys that detach from it
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Pass signals on to the process
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set, value_name = "bool")]
    sig_proxy: bool,
    #[command(flatten)]
    options: ContainerOptions,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let mut request = self.options.request()?;
        let config = &mut request.config;
        if self.detach {
            if !self.options.process.attach.is_empty() {
                return Err(Failure::new(
                    "conflicting options: cannot specify both --attach and --detach",
                ));
            }
            config.attach_stdin = false;
            config.attach_stdout = false;
            config.attach_stderr = false;
            config.stdin_once = false;
        } else if config.tty && config.attach_stdin && !terminal::stdin_is_terminal() {
            return Err(Failure::new("the input device is not a TTY")
                .with_hint("leave out -t, or run it in a terminal"));
        }
        let client = context.client().map_err(|failure| failure.with_code(125))?;
        let created = create(client, &self.options, &request)?;
        let id = created.id.as_str();
        if self.detach {
            client.container_start(id, "").map_err(start_failure)?;
            output::print_line(id)?;
            return Ok(());
        }
        let foreground = Foreground {
            client,
            id,
            config: &request.config,
            auto_remove: request.host_config.auto_remove,
            sig_proxy: self.sig_proxy,
            detach_keys: &self.detach_keys,
            mode: Mode::Run,
        };
        foreground.stream()
    }
}

/// Why a start failed, with the code Docker has for it: 127 for a command that is not there, 126 for one
/// that cannot be run, 125 for everything else.
pub fn start_failure(error: vessel_client::Error) -> Failure {
    let text = error.to_string();
    let any = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    let code = if any(&[
        "executable file not found",
        "no such file or directory",
        "system cannot find the file specified",
    ]) {
        127
    } else if any(&["permission denied", "is a directory"]) {
        126
    } else {
        125
    };
    Failure::from(error).with_code(code)
}

/// What a container in the foreground is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It was made for this and is started: `run`.
    Run,
    /// It existed and is started: `start -a`.
    Start,
    /// It runs: `attach`.
    Attach,
}

/// A container with its streams here: `run`, `start -a` and `attach`.
pub struct Foreground<'a> {
    /// The daemon's client.
    pub client: &'a Client,
    /// The container.
    pub id: &'a str,
    /// Which streams it has.
    pub config: &'a ContainerConfig,
    /// Whether it is removed when it exits.
    pub auto_remove: bool,
    /// Pass signals on.
    pub sig_proxy: bool,
    /// The keys that detach; empty for the default.
    pub detach_keys: &'a str,
    /// What for.
    pub mode: Mode,
}

impl Foreground<'_> {
    /// Attaches, starts when that is wanted, streams, and fails with the container's exit code unless that is 0.
    ///
    /// Attaching and waiting are asked for at once, each on a connection of its own; the start follows when
    /// both are under way, so that neither output nor the exit can be missed.
    pub fn stream(&self) -> Result {
        let config = self.config;
        let keys = match self.detach_keys {
            "" => detach::DEFAULT.to_vec(),
            keys => detach::parse(keys).map_err(Failure::usage)?,
        };
        let attached = config.attach_stdin || config.attach_stdout || config.attach_stderr;
        let code = if self.mode == Mode::Run { 125 } else { 1 };
        let tell = |error: vessel_client::Error| Failure::from(error).with_code(code);
        let attach = attached
            .then(|| {
                self.client
                    .container_attach_begin(self.id, &self.attach_options())
            })
            .transpose()
            .map_err(tell)?;
        let condition = match self.mode {
            Mode::Attach => WaitCondition::NotRunning,
            _ if self.auto_remove => WaitCondition::Removed,
            _ => WaitCondition::NextExit,
        };
        let wait = self
            .client
            .container_wait_begin(self.id, condition)
            .map_err(tell)?;
        let stream = attach.map(|attach| attach.hijacked()).transpose().map_err(tell)?;
        let wait = wait.response().map_err(tell)?;
        let interactive = config.tty && config.attach_stdin && terminal::stdin_is_terminal();
        let signals = self.signals(interactive)?;
        let raw = interactive.then(RawMode::enter).transpose()?;
        if self.mode != Mode::Attach
            && let Err(error) = self.client.container_start(self.id, self.detach_keys)
        {
            drop(raw);
            if self.auto_remove {
                // Its removal is under way; the command ends when it is done.
                let _ = wait.json::<WaitResponse>();
            }
            return Err(if self.mode == Mode::Run {
                start_failure(error)
            } else {
                error.into()
            });
        }
        if config.tty {
            if self.mode == Mode::Attach
                && let Some((rows, columns)) = terminal::size()
            {
                // A change of size makes full-screen programs draw again.
                let _ =
                    self.client
                        .container_resize(self.id, rows.saturating_add(1), columns.saturating_add(1));
            }
            self.resize();
        }
        let mut on_signal = |signal| self.on_signal(signal);
        if let Some(stream) = stream {
            let options = session::Options {
                stdin: config.attach_stdin,
                tty: config.tty,
                detach_keys: if config.tty && config.attach_stdin {
                    keys
                } else {
                    Vec::new()
                },
            };
            if session::run(stream, &options, signals.as_ref(), &mut on_signal)? == End::Detached {
                drop(raw);
                if self.mode == Mode::Attach {
                    output::warn("\nread escape sequence");
                    return Err(Failure::silent(1));
                }
                return Ok(());
            }
        }
        drop(raw);
        session::wait_answer(&wait, signals.as_ref(), &mut on_signal)?;
        exit_code(wait)
    }

    fn attach_options(&self) -> AttachOptions {
        AttachOptions {
            stdin: self.config.attach_stdin,
            stdout: self.config.attach_stdout,
            stderr: self.config.attach_stderr,
            logs: false,
            detach_keys: self.detach_keys.to_string(),
        }
    }

    fn signals(&self, interactive: bool) -> Result<Option<Signals>> {
        let mut wanted = Vec::new();
        if self.sig_proxy {
            wanted.extend(signals::PROXIED);
        } else if interactive {
            wanted.extend(signals::ENDING);
        }
        if self.config.tty {
            wanted.push(signals::RESIZED);
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        Ok(Some(Signals::block(wanted)?))
    }

    fn on_signal(&self, signal: i32) -> Result<()> {
        if signal == signals::RESIZED {
            self.resize();
        } else if !self.sig_proxy {
            // The terminal has to be restored before the end.
            return Err(Failure::silent(128 + signal));
        } else if let Some(name) = signals::name(signal) {
            // It may have exited meanwhile; that is told by its exit code.
            let _ = self.client.container_kill(self.id, name);
        }
        Ok(())
    }

    fn resize(&self) {
        if let Some((rows, columns)) = terminal::size() {
            let _ = self.client.container_resize(self.id, rows, columns);
        }
    }
}

/// Waits for the container's exit code and fails with it unless it is 0.
pub fn exit_code(wait: Response) -> Result {
    let exit: WaitResponse = wait.json().map_err(|error| Failure::from(error).with_code(125))?;
    if let Some(error) = exit.error.filter(|error| !error.message.is_empty()) {
        return Err(Failure::new(format!("cannot wait for the container: {}", error.message)).with_code(125));
    }
    match i32::try_from(exit.status_code).unwrap_or(125) {
        0 => Ok(()),
        code => Err(Failure::silent(code)),
    }
}
