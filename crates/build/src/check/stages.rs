//! Checks that follow a stage instruction by instruction, with the variables it has at each.

use std::collections::BTreeSet;

use super::{BaseImage, Linter, Options, rules};
use crate::dockerfile::{
    Base, Command, CommandLine, Diagnostic, Globals, Graph, Instruction, KeyValue, Sources, Span, Variables,
    charge, parse_port, parse_trigger, suggest,
};
use crate::ignore::clean;

/// Words that make a variable's name look like a secret's.
const SECRETS: [&str; 10] = [
    "apikey",
    "auth",
    "credential",
    "credentials",
    "key",
    "password",
    "pword",
    "passwd",
    "secret",
    "token",
]; // fmt: skip

/// Words that make it harmless.
const HARMLESS: [&str; 3] = ["public", "file", "version"];

fn is_secret(name: &str) -> bool {
    let has = |words: &[&str]| {
        name.split('_')
            .any(|part| words.iter().any(|word| part.eq_ignore_ascii_case(word)))
    };
    has(&SECRETS) && !has(&HARMLESS)
}

/// What a stage has come to.
#[derive(Clone, Default)]
struct State {
    /// Environment and arguments with a value.
    variables: Variables,
    /// Arguments that are declared.
    arguments: BTreeSet<String>,
    /// Whether the base's environment is known.
    known: bool,
    shell: bool,
    workdir: bool,
}

impl State {
    fn get(&self, name: &str) -> Option<String> {
        self.variables.get(name).map(str::to_owned)
    }

    /// What a stage takes with it that is `FROM` this one.
    fn bytes(&self) -> usize {
        let arguments: usize = self.arguments.iter().map(String::len).sum();
        self.variables.bytes() + arguments
    }

    fn of_image(image: Option<BaseImage>) -> Self {
        let mut state = Self {
            known: image.is_some(),
            ..Self::default()
        };
        let image = image.unwrap_or_default();
        state.shell = image.shell;
        for variable in &image.env {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            // Of one with too many, the rest is not known.
            state.known &= state.variables.set(name, value).is_ok();
        }
        if state.get("PATH").is_none() {
            let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
            state.known &= state.variables.set("PATH", path).is_ok();
        }
        state
    }
}

/// Where an instruction that counts once stood last.
#[derive(Default)]
struct Last<'a> {
    cmd: Option<&'a Instruction>,
    entrypoint: Option<&'a Instruction>,
    healthcheck: Option<&'a Instruction>,
}

impl Linter<'_> {
    pub(super) fn stages(
        &mut self,
        graph: &Graph,
        globals: &Globals,
        options: &Options<'_>,
    ) -> Result<(), Diagnostic> {
        let dockerfile = self.dockerfile;
        let mut states: Vec<State> = Vec::with_capacity(dockerfile.stages.len());
        let mut taken = 0;
        for stage in &dockerfile.stages {
            let node = &graph.nodes[stage.index];
            if options.target.is_some() && graph.order.binary_search(&stage.index).is_err() {
                states.push(State::default());
                continue;
            }
            let mut triggers = Vec::new();
            let mut state = match &node.base {
                Base::Scratch => State::of_image(Some(BaseImage::default())),
                Base::Stage(index) => {
                    charge(&mut taken, states[*index].bytes())
                        .map_err(|message| dockerfile.error(&stage.span, message, None))?;
                    states[*index].clone()
                }
                Base::Image(name) | Base::Context(name) => {
                    let image = (options.base)(name, node.platform.as_deref());
                    if let Some((found, wanted)) = image.as_ref().and_then(|image| image.mismatch.as_ref()) {
                        let message = format!(
                            "Base image {name} was pulled with platform {found:?}, expected {wanted:?} for current build"
                        );
                        let rule = &rules::INVALID_BASE_IMAGE_PLATFORM;
                        self.warn(rule, message, &stage.span, Some(&stage.base), &[]);
                    }
                    for text in image.iter().flat_map(|image| &image.on_build) {
                        let trigger = parse_trigger(text).map_err(|error| {
                            dockerfile.error(&stage.span, error.message, Some(&stage.base))
                        })?;
                        triggers.push(trigger);
                    }
                    State::of_image(image)
                }
            };
            triggers.extend(node.triggers.iter().cloned());
            // They stand in no line of this file but the one that brings them.
            for trigger in &mut triggers {
                trigger.span = stage.span.clone();
            }
            if !matches!(node.base, Base::Context(_)) {
                let mut last = Last::default();
                for instruction in triggers.iter().chain(&stage.instructions) {
                    self.instruction(instruction, &mut state, &mut last, globals, options)?;
                }
            }
            states.push(state);
        }
        Ok(())
    }

    fn instruction<'a>(
        &mut self,
        instruction: &'a Instruction,
        state: &mut State,
        last: &mut Last<'a>,
        globals: &Globals,
        options: &Options<'_>,
    ) -> Result<(), Diagnostic> {
        let dockerfile = self.dockerfile;
        let lexer = dockerfile.lexer();
        let wrong = |message: String| dockerfile.error(&instruction.span, message, None);
        let expansion = instruction.command.expanded(&lexer, &mut |name| state.get(name));
        let expansion = expansion.map_err(|error| wrong(error.to_string()))?;
        self.undefined(instruction, &expansion.undefined, state);
        let keyword = instruction.keyword.as_str();
        match &expansion.command {
            Command::Arg(args) => {
                for arg in args {
                    self.secret("ARG", &arg.name, instruction);
                    let value = if let Some(value) = options.build_args.get(&arg.name) {
                        Some(value.clone())
                    } else if let Some(expanded) = arg
                        .default(&lexer, &mut |name| state.get(name))
                        .map_err(|error| wrong(error.to_string()))?
                    {
                        self.undefined(instruction, &expanded.undefined, state);
                        Some(expanded.text)
                    } else {
                        globals.get(&arg.name).map(str::to_owned)
                    };
                    if let Some(value) = value {
                        state.variables.set(&arg.name, &value).map_err(wrong)?;
                    }
                    state.arguments.insert(arg.name.clone());
                }
            }
            Command::Env(pairs) => {
                self.legacy(pairs, instruction);
                for pair in pairs {
                    self.secret("ENV", &pair.key, instruction);
                    state.variables.set(&pair.key, &pair.value).map_err(wrong)?;
                }
            }
            Command::Label(pairs) => self.legacy(pairs, instruction),
            Command::Cmd(line) => {
                self.once(last.cmd.replace(instruction), keyword);
                self.shell_form(line, instruction, state);
            }
            Command::Entrypoint(line) => {
                self.once(last.entrypoint.replace(instruction), keyword);
                self.shell_form(line, instruction, state);
            }
            Command::Healthcheck(_) => self.once(last.healthcheck.replace(instruction), keyword),
            Command::Shell(_) => state.shell = true,
            Command::Volume(volumes) if volumes.iter().any(String::is_empty) => {
                return Err(wrong("VOLUME specified can not be an empty string".to_owned()));
            }
            Command::Workdir(path) => {
                if !state.workdir && !path.starts_with('/') {
                    let message = format!(
                        "Relative workdir {path:?} can have unexpected results if the base image changes"
                    );
                    self.warn_at(&rules::WORKDIR_RELATIVE_PATH, message, instruction, path);
                }
                state.workdir = true;
            }
            Command::Copy(copy) if copy.from.is_none() => {
                self.ignored("Copy", &copy.sources, instruction, options)
            }
            Command::Add(add) => self.ignored("Add", &add.sources, instruction, options),
            Command::Expose(ports) => self.ports(ports, instruction)?,
            Command::Run(run) => {
                let mut undefined = BTreeSet::new();
                let expanded = run.mounts(&mut |word| {
                    let mut expanded = lexer
                        .word(word, &mut |name| state.get(name))
                        .map_err(|error| error.to_string())?;
                    undefined.append(&mut expanded.undefined);
                    Ok(expanded.text)
                });
                expanded.map_err(wrong)?;
                self.undefined(instruction, &undefined, state);
            }
            _ => {}
        }
        Ok(())
    }

    fn undefined(&mut self, instruction: &Instruction, names: &BTreeSet<String>, state: &State) {
        for name in names {
            if !state.known
                || state.arguments.contains(name)
                || matches!(
                    name.as_str(),
                    "BUILDKIT_SBOM_SCAN_CONTEXT" | "BUILDKIT_SBOM_SCAN_STAGE"
                )
            {
                continue;
            }
            let known = state.variables.iter().map(|(name, _)| name);
            let mut message = format!("Usage of undefined variable '${name}'");
            if let Some(nearest) = suggest::closest(name, known, true) {
                message.push_str(&format!(" (did you mean ${nearest}?)"));
            }
            self.warn_at(&rules::UNDEFINED_VAR, message, instruction, name);
        }
    }

    fn secret(&mut self, keyword: &str, name: &str, instruction: &Instruction) {
        if is_secret(name) {
            let message =
                format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {name:?})");
            self.warn_at(&rules::SECRETS_USED_IN_ARG_OR_ENV, message, instruction, name);
        }
    }

    fn legacy(&mut self, pairs: &[KeyValue], instruction: &Instruction) {
        let keyword = &instruction.keyword;
        for _ in pairs.iter().filter(|pair| pair.legacy) {
            let message = format!(
                "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
            );
            self.warn_at(&rules::LEGACY_KEY_VALUE_FORMAT, message, instruction, keyword);
        }
    }

    /// The earlier one is what has no effect.
    fn once(&mut self, earlier: Option<&Instruction>, keyword: &str) {
        if let Some(earlier) = earlier {
            let message = format!(
                "Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
            );
            self.warn_at(
                &rules::MULTIPLE_INSTRUCTIONS_DISALLOWED,
                message,
                earlier,
                &earlier.keyword,
            );
        }
    }

    fn shell_form(&mut self, line: &CommandLine, instruction: &Instruction, state: &State) {
        if !line.exec && !state.shell {
            let keyword = &instruction.keyword;
            let message = format!(
                "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"
            );
            self.warn_at(&rules::JSON_ARGS_RECOMMENDED, message, instruction, keyword);
        }
    }

    fn ignored(&mut self, verb: &str, sources: &Sources, instruction: &Instruction, options: &Options<'_>) {
        let Some(ignore) = options.ignore.filter(|ignore| !ignore.has_negatives()) else {
            return;
        };
        let local = |path: &&String| !path.contains("://") && !path.starts_with("git@");
        for path in sources.paths.iter().filter(local) {
            let path = clean(path);
            let root = matches!(path.as_str(), "." | "/");
            if (!root || ignore.excludes_root()) && ignore.matches(&path) {
                let message = format!("Attempting to {verb} file {path:?} that is excluded by .dockerignore");
                self.warn_at(&rules::COPY_IGNORED_FILE, message, instruction, &path);
            }
        }
    }

    fn ports(&mut self, ports: &[String], instruction: &Instruction) -> Result<(), Diagnostic> {
        let span: &Span = &instruction.span;
        for word in ports {
            let port =
                parse_port(word).map_err(|message| self.dockerfile.error(span, message, Some(word)))?;
            if port.protocol != port.protocol.to_lowercase() {
                let message = format!("Defined protocol '{word}' in EXPOSE instruction should be lowercase");
                self.warn_at(&rules::EXPOSE_PROTO_CASING, message, instruction, word);
            }
            if port.mapping {
                let message = format!(
                    "EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'"
                );
                self.warn_at(&rules::EXPOSE_INVALID_FORMAT, message, instruction, word);
            }
        }
        Ok(())
    }
}
