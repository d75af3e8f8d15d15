//! Tests of the language.

mod expand;
mod golden;
mod graph;
mod parse;
mod property;

use super::*;

fn parse(text: &str) -> Dockerfile {
    match Dockerfile::parse(text.as_bytes(), "Dockerfile") {
        Ok(dockerfile) => dockerfile,
        Err(error) => panic!("{}", error.render(false)),
    }
}

fn error(text: &str) -> Diagnostic {
    Dockerfile::parse(text.as_bytes(), "Dockerfile").expect_err("it is wrong")
}

/// The commands of the only stage.
fn commands(text: &str) -> Vec<Command> {
    let dockerfile = parse(&format!("FROM scratch\n{text}"));
    let stage = dockerfile.stages.into_iter().next().unwrap();
    stage
        .instructions
        .into_iter()
        .map(|instruction| instruction.command)
        .collect()
}
