//! Which stages there are to build, and in which order.
//!
//! A stage needs the one it is `FROM`, those it copies or mounts from, and those that triggers (`ONBUILD`) of its base do.
//! A name means the last stage of that name, a number the stage of that place; either must stand before the stage that
//! needs it. Any other name is an image or a named context.

use super::ast::{Command, Dockerfile, Instruction, Stage};
use super::vars::Globals;
use super::{Diagnostic, parse_trigger, platform as platforms, suggest};

/// What a stage builds on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing: `scratch`.
    Scratch,
    /// An earlier stage.
    Stage(usize),
    /// An image, or a named context.
    Image(String),
    /// The stage is replaced by the named context of its name.
    Context(String),
}

/// What `--from` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A stage.
    Stage(usize),
    /// An image, or a named context; `scratch` is nothing.
    Image(String),
}

/// A stage in the graph.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it builds on.
    pub base: Base,
    /// `--platform`, expanded.
    pub platform: Option<String>,
    /// Triggers that the base stage left, to be executed before the stage's own instructions. Triggers of a base image
    /// are known only when the image is.
    pub triggers: Vec<Instruction>,
    /// The other stages it needs, in order, each once, its base among them.
    pub needs: Vec<usize>,
}

/// The stages of a Dockerfile and what they need.
#[derive(Clone, Debug)]
pub struct Graph {
    /// One for each stage, by its index.
    pub nodes: Vec<Node>,
    /// The stage to build.
    pub target: usize,
    /// The stages that have to be built, in an order that puts each after what it needs. The last is the target.
    pub order: Vec<usize>,
}

impl Dockerfile {
    /// What `--from` of an instruction means. A number is a stage only for `COPY`.
    pub fn origin(&self, name: &str, numbers: bool) -> Result<Origin, String> {
        if numbers && let Ok(index) = name.parse::<i64>() {
            let stage = usize::try_from(index)
                .ok()
                .filter(|&index| index < self.stages.len());
            return stage
                .map(Origin::Stage)
                .ok_or_else(|| format!("invalid stage index {index}"));
        }
        Ok(match self.stage(name) {
            Some(index) => Origin::Stage(index),
            None => Origin::Image(name.to_owned()),
        })
    }

    /// The last stage of a name.
    pub fn stage(&self, name: &str) -> Option<usize> {
        let name = name.to_lowercase();
        self.stages
            .iter()
            .rposition(|stage| stage.name.as_deref() == Some(name.as_str()))
    }

    /// The stage that `--target` means: a name or a number; without one, the last.
    pub fn target(&self, target: Option<&str>) -> Result<usize, Diagnostic> {
        let Some(name) = target.filter(|name| !name.is_empty()) else {
            return Ok(self.stages.len().saturating_sub(1));
        };
        let number = || {
            name.parse()
                .ok()
                .filter(|&index: &usize| index < self.stages.len())
        };
        self.stage(name).or_else(number).ok_or_else(|| {
            let known = self.stages.iter().filter_map(|stage| stage.name.as_deref());
            let all: Vec<&str> = known.clone().collect();
            let message = format!("target stage {name:?} could not be found");
            let error = Diagnostic::error(suggest::with(message, suggest::closest(name, known, true)));
            if all.is_empty() {
                error.help("No stage has a name. Give one with: FROM IMAGE AS NAME")
            } else {
                error.help(format!("The stages are {}.", all.join(", ")))
            }
        })
    }

    /// The graph of the stages. `is_context` says which names are named contexts: such a stage is replaced.
    pub fn graph(
        &self,
        globals: &Globals,
        target: Option<&str>,
        is_context: &dyn Fn(&str) -> bool,
    ) -> Result<Graph, Diagnostic> {
        let mut nodes: Vec<Node> = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            nodes.push(self.node(stage, globals, is_context)?);
        }
        let target = self.target(target)?;
        for stage in &self.stages {
            let needs = self.needs(stage, &nodes[stage.index])?;
            nodes[stage.index].needs = needs;
        }
        self.refuse_cycles(&nodes)?;
        let mut wanted = vec![false; nodes.len()];
        let mut open = vec![target];
        while let Some(index) = open.pop() {
            if !std::mem::replace(&mut wanted[index], true) {
                open.extend(&nodes[index].needs);
            }
        }
        // What a stage needs stands before it, or is refused.
        let order: Vec<usize> = (0..nodes.len()).filter(|&index| wanted[index]).collect();
        for &index in &order {
            if let Some(&later) = nodes[index].needs.iter().find(|&&needed| needed > index) {
                let stage = &self.stages[index];
                let message = format!(
                    "stage {} needs stage {}, which has to be defined before it",
                    self.label(index),
                    self.label(later)
                );
                let error = self.error(&stage.span, message, None);
                return Err(error.help("Move the stage that is needed further up."));
            }
        }
        Ok(Graph { nodes, target, order })
    }

    /// A stage's name for people: its own, or `stage-0`.
    pub fn label(&self, index: usize) -> String {
        let name = self.stages.get(index).and_then(|stage| stage.name.clone());
        name.unwrap_or_else(|| format!("stage-{index}"))
    }

    fn node(
        &self,
        stage: &Stage,
        globals: &Globals,
        is_context: &dyn Fn(&str) -> bool,
    ) -> Result<Node, Diagnostic> {
        let wrong = |message: String, word: &str| self.error(&stage.span, message, Some(word));
        let base = globals
            .expand(self, &stage.base)
            .map_err(|error| wrong(error.to_string(), &stage.base))?;
        if base.text.is_empty() {
            let error = wrong(
                format!("base name ({}) should not be blank", stage.base),
                &stage.base,
            );
            let names: Vec<&str> = base.undefined.iter().map(String::as_str).collect();
            return Err(if names.is_empty() {
                error
            } else {
                let first = names[0];
                error.help(format!(
                    "{} has no value here: declare it before the first FROM, as ARG {first}=VALUE, or give \
                     --build-arg {first}=VALUE.",
                    names.join(", ")
                ))
            });
        }
        let mut platform = None;
        if let Some(word) = &stage.platform {
            let expanded = globals.expand(self, word).map_err(|error| {
                wrong(
                    format!("failed to process arguments for platform {word}: {error}"),
                    word,
                )
            })?;
            let mut undefined = expanded.undefined.iter();
            let suggestion = undefined.find_map(|name| suggest::closest(name, globals.names(), true));
            if expanded.text.is_empty() {
                let message = format!("empty platform value from expression {word}");
                return Err(wrong(suggest::with(message, suggestion), word));
            }
            if platforms::parse(&expanded.text).is_none() {
                let message = format!("failed to parse platform {word}: {:?} is not one", expanded.text);
                return Err(wrong(suggest::with(message, suggestion), word)
                    .help("Write SYSTEM/ARCHITECTURE, such as linux/arm64."));
            }
            platform = Some(expanded.text);
        }
        let context = stage
            .name
            .as_deref()
            .filter(|name| !matches!(*name, "scratch" | "context") && is_context(name));
        let earlier = || {
            let before = self.stages.iter().take(stage.index);
            before
                .rev()
                .find(|before| before.name.as_deref() == Some(base.text.as_str()))
        };
        let mut triggers = Vec::new();
        let base = if let Some(name) = context {
            Base::Context(name.to_owned())
        } else if let Some(earlier) = earlier() {
            triggers = self.triggers(earlier)?;
            Base::Stage(earlier.index)
        } else if base.text == "scratch" {
            Base::Scratch
        } else if !is_context(&base.text)
            && let Err(error) = vessel_image::Reference::parse(&base.text)
        {
            let message = format!(
                "failed to parse stage name {:?}: invalid reference format",
                base.text
            );
            return Err(wrong(message, &stage.base).help(error.to_string()));
        } else {
            Base::Image(base.text)
        };
        Ok(Node {
            base,
            platform,
            triggers,
            needs: Vec::new(),
        })
    }

    /// What a stage of this file leaves to the stages that build on it.
    fn triggers(&self, stage: &Stage) -> Result<Vec<Instruction>, Diagnostic> {
        let mut triggers = Vec::new();
        for instruction in &stage.instructions {
            if let Command::Onbuild(text) = &instruction.command {
                let trigger = parse_trigger(text)
                    .map_err(|error| self.error(&instruction.span, error.message, None))?;
                triggers.push(Instruction {
                    span: instruction.span.clone(),
                    ..trigger
                });
            }
        }
        Ok(triggers)
    }

    fn needs(&self, stage: &Stage, node: &Node) -> Result<Vec<usize>, Diagnostic> {
        let mut needs = Vec::new();
        match node.base {
            Base::Context(_) => return Ok(needs),
            Base::Stage(index) => needs.push(index),
            Base::Scratch | Base::Image(_) => {}
        }
        for instruction in node.triggers.iter().chain(&stage.instructions) {
            for origin in self
                .origins(&instruction.command)
                .map_err(|(message, word)| self.error(&instruction.span, message, Some(&word)))?
            {
                if let Origin::Stage(index) = origin
                    && !needs.contains(&index)
                {
                    needs.push(index);
                }
            }
        }
        Ok(needs)
    }

    /// Where an instruction takes files from besides the context, in order. An error comes with the word it is about.
    pub fn origins(&self, command: &Command) -> Result<Vec<Origin>, (String, String)> {
        match command {
            Command::Copy(copy) => {
                let Some(name) = &copy.from else {
                    return Ok(Vec::new());
                };
                let wrong = |message: String| (message, name.clone());
                let expanded = self
                    .lexer()
                    .word(name, &mut |_| None)
                    .map_err(|error| wrong(error.to_string()))?;
                if expanded.text != *name {
                    return Err(wrong(
                        "variable expansion is not supported for --from, define a new stage with FROM using ARG from \
                         global scope as a workaround"
                            .to_owned(),
                    ));
                }
                Ok(vec![self.origin(name, true).map_err(wrong)?])
            }
            Command::Run(run) => {
                let sources = run.mount_sources();
                sources
                    .map(|name| self.origin(&name, false).map_err(|message| (message, name)))
                    .collect()
            }
            _ => Ok(Vec::new()),
        }
    }

    fn refuse_cycles(&self, nodes: &[Node]) -> Result<(), Diagnostic> {
        // 0: not seen, 1: on the way here, 2: known to be good.
        let mut state = vec![0u8; nodes.len()];
        for start in 0..nodes.len() {
            let mut path = vec![(start, 0)];
            while let Some((index, next)) = path.last_mut() {
                let index = *index;
                if *next == 0 {
                    if state[index] == 2 {
                        path.pop();
                        continue;
                    }
                    state[index] = 1;
                }
                let Some(&needed) = nodes[index].needs.get(*next) else {
                    state[index] = 2;
                    path.pop();
                    continue;
                };
                *next += 1;
                if state[needed] == 1 {
                    let mut names: Vec<String> = path.iter().map(|(index, _)| self.label(*index)).collect();
                    names.push(self.label(needed));
                    let stage = &self.stages[index];
                    let message = format!("circular dependency detected on stage: {}", self.label(needed));
                    let error = self.error(&stage.span, message, None);
                    let from = names
                        .iter()
                        .position(|name| *name == names[names.len() - 1])
                        .unwrap_or(0);
                    return Err(error.help(format!("Each needs the next: {}.", names[from..].join(", "))));
                }
                path.push((needed, 0));
            }
        }
        Ok(())
    }
}
