//! The Dockerfile language, as BuildKit's front end reads it.
//!
//! [`Dockerfile::parse`] makes a tree of stages and instructions of a file, with nothing expanded. [`Lexer`] expands
//! variables. Where the two differ from BuildKit is listed in `docs/build.md`.
//!
//! Limits: [`MAX_SIZE`] bytes, [`MAX_INSTRUCTIONS`] instructions, [`MAX_VARIABLES`] in each stage with
//! [`MAX_VARIABLE_BYTES`] and, for all stages together, [`MAX_STAGE_BYTES`]. Here-documents and lines are bounded by the file's size.

mod ast;
mod command;
mod diagnostic;
mod directive;
mod duration;
pub mod expand;
mod expose;
mod flags;
mod graph;
mod heredoc;
mod instruction;
mod json;
mod mount;
mod node;
mod pattern;
pub(crate) mod platform;
mod source;
pub(crate) mod suggest;
#[cfg(test)]
mod tests;
mod vars;
mod words;

use std::sync::Arc;

pub use ast::{
    Add, ArgDecl, Command, CommandLine, Copy, Dockerfile, Healthcheck, HealthcheckOptions, Heredoc,
    InlineFile, Instruction, KeyValue, Network, Run, Security, Sources, Stage,
};
pub use command::{Expansion, Script};
pub use diagnostic::{Diagnostic, Rule, Severity};
pub use directive::{Directive, detect_syntax};
pub use expand::{ExpandError, Expanded, Lexer};
pub use expose::{Exposed, parse_port};
pub use graph::{Base, Graph, Node, Origin};
pub use mount::{Device, Mount, MountType, Sharing};
pub use source::{Source, Span};
pub use vars::{
    Globals, MAX_STAGE_BYTES, MAX_VARIABLE_BYTES, MAX_VARIABLES, PLATFORM_ARGS, PROXY_ARGS, Variables,
    charge, is_proxy_arg,
};

/// The largest Dockerfile.
pub const MAX_SIZE: usize = 16 << 20;

/// The most instructions a Dockerfile may have.
pub const MAX_INSTRUCTIONS: usize = 20_000;

impl Dockerfile {
    /// Parses a Dockerfile; `name` is what messages call it.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self, Diagnostic> {
        if bytes.len() > MAX_SIZE {
            return Err(Diagnostic::error(format!(
                "{name} has {} bytes; a Dockerfile may have {MAX_SIZE}",
                bytes.len()
            )));
        }
        if bytes.is_empty() {
            let error = Diagnostic::error("the Dockerfile cannot be empty");
            return Err(error.help("A Dockerfile begins with FROM, such as: FROM debian"));
        }
        let source = Arc::new(Source::new(name, bytes));
        let file = node::read(&source)?;
        let mut global_args = Vec::new();
        let mut stages: Vec<Stage> = Vec::new();
        for node in file.nodes {
            if node.keyword.eq_ignore_ascii_case("from") {
                stages.push(instruction::stage(node, stages.len(), &source)?);
                continue;
            }
            let command = instruction::command(&node, &source)?;
            let global = matches!(command, Command::Arg(_));
            let instruction = Instruction {
                command,
                keyword: node.keyword,
                span: node.span,
                original: node.original.trim().to_owned(),
                comments: node.comments,
            };
            match stages.last_mut() {
                Some(stage) => stage.instructions.push(instruction),
                None if global => global_args.push(instruction),
                None => {
                    let error = Diagnostic::error("no build stage in current context");
                    let error = error.at(&source, &instruction.span, Some(&instruction.keyword));
                    return Err(error.help("Only ARG may stand before the first FROM."));
                }
            }
        }
        if stages.is_empty() {
            let error = Diagnostic::error("dockerfile contains no stages to build");
            return Err(error.help("A Dockerfile needs at least one FROM, such as: FROM debian"));
        }
        Ok(Self {
            source,
            escape: file.escape,
            directives: file.directives,
            global_args,
            stages,
            warnings: file.warnings,
        })
    }

    /// The value of a parser directive.
    pub fn directive(&self, name: &str) -> Option<&Directive> {
        self.directives.iter().find(|directive| directive.name == name)
    }

    /// How words of this file are expanded.
    pub fn lexer(&self) -> Lexer {
        Lexer::new(self.escape)
    }

    /// An error about an instruction or a stage of this file, with a caret under the word if the place has it.
    pub fn error(&self, span: &Span, message: impl Into<String>, word: Option<&str>) -> Diagnostic {
        Diagnostic::error(message).at(&self.source, span, word)
    }
}

/// Parses what `ONBUILD` left in a base image: one instruction.
pub fn parse_trigger(text: &str) -> Result<Instruction, Diagnostic> {
    if text.len() > MAX_SIZE {
        return Err(Diagnostic::error(
            "the base image's ONBUILD instruction is too long",
        ));
    }
    let source = Arc::new(Source::new("ONBUILD", text.as_bytes()));
    let mut nodes = node::read(&source)?.nodes;
    let (Some(node), true) = (nodes.pop(), nodes.is_empty()) else {
        return Err(Diagnostic::error("onbuild trigger should be a single expression"));
    };
    if node.keyword.eq_ignore_ascii_case("from") {
        return Err(Diagnostic::error("FROM isn't allowed as an ONBUILD trigger"));
    }
    let command = instruction::command(&node, &source)?;
    Ok(Instruction {
        command,
        keyword: node.keyword,
        span: node.span,
        original: node.original.trim().to_owned(),
        comments: node.comments,
    })
}
