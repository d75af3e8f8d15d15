//! Instructions one by one: most only change the configuration.
//!
//! What they leave in the configuration and the history is what BuildKit's front end leaves there (its
//! `dockerfile2llb`), to the letter where a tool may read it.

use std::collections::HashMap;
use std::sync::Arc;

use vessel_image::{Digest, Empty, Healthcheck as Health};

use super::state::{State, go_duration, go_list, go_quoted};
use super::{Solve, build_args, makes_layer};
use crate::dockerfile::{
    ArgDecl, Command, CommandLine, Healthcheck, HealthcheckOptions, Instruction, KeyValue, MAX_VARIABLES,
    parse_port,
};
use crate::error::{Error, Result};
use crate::progress::Event;
use crate::tree;

/// Where a stage is.
pub(super) struct Line {
    /// The stage's name in `[stage 2/5]`; empty if there is but one.
    pub label: String,
    /// How many lines were begun.
    pub number: usize,
    pub total: usize,
    /// The vertex before.
    pub previous: Option<Digest>,
    pub no_cache: bool,
    /// The platform in the names of vertices, when there are several.
    pub platform: Option<String>,
}

impl Solve {
    pub(super) async fn dispatch(
        self: &Arc<Self>,
        state: &mut State,
        line: &mut Line,
        instruction: &Instruction,
    ) -> Result<()> {
        let lexer = self.plan.dockerfile.lexer();
        let expanded = instruction
            .command
            .expanded(&lexer, &mut |name| state.get(name))
            .map_err(|error| Error::invalid(error.to_string()))?;
        if !makes_layer(instruction) {
            let step = self.step_of(&instruction.original, &instruction.span);
            self.plan.progress.send(Event::Step(step)).await;
        }
        let text = match expanded.command {
            // Futures lie within each other: those of steps are on the heap, not on the stack of who polls the stage.
            Command::Run(run) => return Box::pin(self.run_step(state, line, instruction, &run)).await,
            Command::Copy(copy) => {
                return Box::pin(self.copy_step(state, line, instruction, copy.into())).await;
            }
            Command::Add(add) => {
                return Box::pin(self.copy_step(state, line, instruction, add.into())).await;
            }
            Command::Workdir(path) => return Box::pin(self.workdir(state, line, instruction, &path)).await,
            Command::Arg(args) => self.arg(state, &args)?,
            Command::Cmd(command) => {
                let args = arguments(state, command);
                let text = format!("CMD {}", go_quoted(&args));
                state.config.config.cmd = Some(args);
                state.config.config.args_escaped = Some(true);
                state.cmd_set = true;
                text
            }
            Command::Entrypoint(command) => {
                let args = arguments(state, command);
                let text = format!("ENTRYPOINT {}", go_quoted(&args));
                state.config.config.entrypoint = Some(args);
                if !state.cmd_set {
                    state.config.config.cmd = None;
                }
                text
            }
            Command::Env(pairs) => {
                let env = state.config.config.env.get_or_insert_default();
                let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
                let mut places = HashMap::new();
                for (place, known) in env.iter().enumerate() {
                    places.entry(name(known)).or_insert(place);
                }
                for pair in &pairs {
                    state.env.set(&pair.key, &pair.value).map_err(Error::invalid)?;
                    let new = format!("{}={}", pair.key, pair.value);
                    let place = *places.entry(pair.key.clone()).or_insert(env.len());
                    match env.get_mut(place) {
                        Some(known) => *known = new,
                        None => env.push(new),
                    }
                }
                format!("ENV{}", words(&pairs))
            }
            Command::Label(pairs) => {
                let labels = state.config.config.labels.get_or_insert_default();
                for pair in &pairs {
                    labels.insert(pair.key.clone(), pair.value.clone());
                }
                format!("LABEL{}", words(&pairs))
            }
            Command::Expose(ports) => {
                let mut all = Vec::new();
                for port in &ports {
                    all.extend(parse_port(port).map_err(Error::invalid)?.ports());
                }
                let exposed = state.config.config.exposed_ports.get_or_insert_default();
                exposed.extend(all.iter().map(|port| (port.clone(), Empty {})));
                format!("EXPOSE {}", go_list(&all))
            }
            Command::Healthcheck(check) => {
                let (health, text) = health(check);
                state.config.config.healthcheck = Some(health);
                text
            }
            Command::Maintainer(name) => {
                state.config.author = Some(name.clone());
                format!("MAINTAINER {name}")
            }
            Command::Onbuild(trigger) => {
                let text = format!("ONBUILD {trigger}");
                state.config.config.on_build.get_or_insert_default().push(trigger);
                text
            }
            Command::Shell(shell) => {
                let text = format!("SHELL {}", go_list(&shell));
                state.config.config.shell = Some(shell);
                text
            }
            Command::StopSignal(signal) => {
                let text = format!("STOPSIGNAL {signal}");
                state.config.config.stop_signal = Some(signal);
                text
            }
            Command::User(user) => {
                let text = format!("USER {user}");
                state.config.config.user = Some(user);
                text
            }
            Command::Volume(volumes) => {
                let there = state.config.config.volumes.get_or_insert_default();
                for volume in &volumes {
                    if volume.is_empty() {
                        return Err(Error::invalid("VOLUME specified can not be an empty string"));
                    }
                    there.insert(volume.clone(), Empty {});
                }
                format!("VOLUME {}", go_list(&volumes))
            }
        };
        self.charge(text.len())?;
        state.history(text, None, self.epoch);
        Ok(())
    }

    /// `ARG`: a value of the request, or of the global `ARG` of the same name, or the default.
    fn arg(&self, state: &mut State, args: &[ArgDecl]) -> Result<String> {
        let given = build_args(&self.plan.request);
        let lexer = self.plan.dockerfile.lexer();
        let mut text = String::from("ARG");
        for arg in args {
            let value = match (given.get(&arg.name), &arg.value) {
                (Some(value), _) => Some(value.clone()),
                (None, None) => self.globals.get(&arg.name).map(str::to_owned),
                (None, Some(_)) => arg
                    .default(&lexer, &mut |name| state.get(name))
                    .map_err(|error| Error::invalid(error.to_string()))?
                    .map(|expanded| expanded.text),
            };
            text.push(' ');
            text.push_str(&arg.name);
            if let Some(value) = &value {
                text.push('=');
                text.push_str(value);
                state.set(&arg.name, value)?;
            }
            if state.args.len() >= MAX_VARIABLES {
                return Err(Error::invalid(format!(
                    "a stage may declare {MAX_VARIABLES} arguments, and this is one more"
                )));
            }
            state.args.push((arg.name.clone(), value));
        }
        Ok(text)
    }

    /// `WORKDIR`: makes the directory, owned by the user in effect.
    async fn workdir(
        self: &Arc<Self>,
        state: &mut State,
        line: &mut Line,
        instruction: &Instruction,
        path: &str,
    ) -> Result<()> {
        if path.is_empty() {
            return Err(Error::invalid("WORKDIR expands to nothing: give it a path"));
        }
        // An absolute path is said as it was written, as BuildKit does.
        let (written, path) = match (path, absolute(state, path)) {
            (written, clean) if written.starts_with('/') => (written.to_owned(), clean),
            (_, clean) => (clean.clone(), clean),
        };
        state.config.config.working_dir = Some(written.clone());
        let place = Some((instruction.original.as_str(), &instruction.span));
        let vertex = self.line_vertex(line, &format!("WORKDIR {written}"), place);
        if path == "/" {
            self.tell(vertex.started()).await;
            self.told(vertex, Ok(()), |()| (true, None)).await?;
            state.history(format!("WORKDIR {written}"), None, self.epoch);
            return Ok(());
        }
        let made = self.make_directory(state, line, vertex, &path).await?;
        state.history(format!("WORKDIR {written}"), Some(made), self.epoch);
        Ok(())
    }
}

/// A path in the root: relative ones begin at the working directory. A slash at the end stays.
pub(super) fn absolute(state: &State, path: &str) -> String {
    let whole = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{}/{path}", state.workdir())
    };
    String::from_utf8_lossy(&tree::clean(whole.as_bytes())).into_owned()
}

fn words(pairs: &[KeyValue]) -> String {
    let texts = pairs.iter().map(|pair| format!(" {}={}", pair.key, pair.value));
    texts.collect()
}

fn arguments(state: &State, command: CommandLine) -> Vec<String> {
    if command.exec {
        command.words
    } else {
        state.with_shell(command.words.join(" "))
    }
}

fn health(check: Healthcheck) -> (Health, String) {
    let (test, options) = match check {
        Healthcheck::None => (vec!["NONE".to_owned()], HealthcheckOptions::default()),
        Healthcheck::Command { line, options } => {
            let kind = if line.exec { "CMD" } else { "CMD-SHELL" };
            let mut test = vec![kind.to_owned()];
            test.extend(line.words);
            (test, options)
        }
    };
    let nanos = |time: std::time::Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    let times = [
        options.interval,
        options.timeout,
        options.start_period,
        options.start_interval,
    ]
    .map(nanos);
    let shown = times.map(go_duration);
    let text = format!(
        "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        go_list(&test),
        shown[0],
        shown[1],
        shown[2],
        shown[3],
        options.retries
    );
    let set = |nanos: i64| (nanos != 0).then_some(nanos);
    let health = Health {
        test: Some(test),
        interval: set(times[0]),
        timeout: set(times[1]),
        start_period: set(times[2]),
        start_interval: set(times[3]),
        retries: set(i64::from(options.retries)),
    };
    (health, text)
}
