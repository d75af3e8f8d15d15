//! What a target can be given: build arguments, secrets and agents. The documents are those of BuildKit's subrequest
//! `frontend.outline`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::answer::location;
use crate::dockerfile::{
    Base, Command, Dockerfile, Globals, Instruction, MountType, Span, Variables, charge,
};
use crate::error::{Error, Result};
use crate::request::{Answer, BuildRequest};
use crate::solve::{build_args, from_diagnostic};

/// An argument that is declared.
#[derive(Clone)]
struct Arg {
    name: String,
    value: String,
    description: String,
    span: Span,
    /// Further global arguments its default is made of.
    needs: BTreeSet<String>,
}

/// What a stage knows at some instruction.
#[derive(Clone, Default)]
struct Scope {
    /// Arguments that are declared, with those before the first `FROM`.
    args: BTreeMap<String, Arg>,
    variables: Variables,
}

impl Scope {
    fn get(&self, name: &str) -> Option<String> {
        self.variables.get(name).map(str::to_owned)
    }

    /// What a stage takes with it that begins with this.
    fn bytes(&self) -> usize {
        let of = |arg: &Arg| 2 * arg.name.len() + arg.value.len() + arg.description.len();
        self.args.values().map(of).sum::<usize>() + self.variables.bytes()
    }
}

/// A secret or an agent.
struct Wanted {
    name: String,
    required: bool,
    span: Span,
}

/// What was found, each name once.
#[derive(Default)]
struct Found {
    args: Vec<Arg>,
    names: BTreeSet<String>,
    secrets: Vec<Wanted>,
    agents: Vec<Wanted>,
}

impl Found {
    fn arg(&mut self, arg: &Arg, scope: &Scope) {
        if !self.names.insert(arg.name.clone()) {
            return;
        }
        self.args.push(arg.clone());
        for needed in arg.needs.iter().filter_map(|name| scope.args.get(name)) {
            self.arg(needed, scope);
        }
    }
}

fn want(list: &mut Vec<Wanted>, name: String, required: bool, span: &Span) {
    if !list.iter().any(|known| known.name == name) {
        let span = span.clone();
        list.push(Wanted { name, required, span });
    }
}

/// Of the target of a request and the stages it needs.
pub(crate) fn outline(
    request: &BuildRequest,
    dockerfile: &Dockerfile,
    platform_args: Vec<(String, String)>,
) -> Result<Answer> {
    let build_args = build_args(request);
    let globals = Globals::of(dockerfile, platform_args, &build_args).map_err(from_diagnostic)?;
    let is_context = |name: &str| request.contexts.contains_key(name);
    let graph = dockerfile
        .graph(&globals, request.target.as_deref(), &is_context)
        .map_err(from_diagnostic)?;
    let lexer = dockerfile.lexer();
    let mut global = Scope::default();
    for instruction in &dockerfile.global_args {
        let Command::Arg(args) = &instruction.command else {
            continue;
        };
        for arg in args {
            let default = arg
                .value
                .as_deref()
                .filter(|_| !build_args.contains_key(&arg.name));
            let mut lookup = |name: &str| globals.get(name).map(str::to_owned);
            let needs = default.and_then(|default| Some(lexer.word(default, &mut lookup).ok()?.used));
            let found = Arg {
                name: arg.name.clone(),
                value: globals.get(&arg.name).unwrap_or_default().to_owned(),
                description: arg.description.clone().unwrap_or_default(),
                span: instruction.span.clone(),
                needs: needs.unwrap_or_default(),
            };
            global.args.insert(arg.name.clone(), found);
        }
    }
    // A stage begins as its base ended; what the target itself says of a name counts before what others do.
    let mut scopes: BTreeMap<usize, Scope> = BTreeMap::new();
    let mut by_stage: Vec<Found> = Vec::new();
    let mut taken = 0;
    for &index in &graph.order {
        let (stage, node) = (&dockerfile.stages[index], &graph.nodes[index]);
        let base = match &node.base {
            Base::Stage(base) => scopes.get(base).unwrap_or(&global),
            _ => &global,
        };
        charge(&mut taken, base.bytes())
            .map_err(|message| from_diagnostic(dockerfile.error(&stage.span, message, None)))?;
        let mut scope = base.clone();
        let mut found = Found::default();
        for word in [Some(&stage.base), stage.platform.as_ref()].into_iter().flatten() {
            let used = globals.expand(dockerfile, word).map(|expanded| expanded.used);
            for arg in used
                .unwrap_or_default()
                .iter()
                .filter_map(|name| global.args.get(name))
            {
                found.arg(arg, &global);
            }
        }
        for instruction in node.triggers.iter().chain(&stage.instructions) {
            follow(
                instruction,
                dockerfile,
                &globals,
                &build_args,
                &mut scope,
                &mut found,
            )?;
        }
        scopes.insert(index, scope);
        by_stage.push(found);
    }
    let mut all = Found::default();
    for found in by_stage.into_iter().rev() {
        for arg in found.args {
            all.arg(&arg, &Scope::default());
        }
        for one in found.secrets {
            want(&mut all.secrets, one.name, one.required, &one.span);
        }
        for one in found.agents {
            want(&mut all.agents, one.name, one.required, &one.span);
        }
    }
    all.args.sort_by_key(|arg| arg.span.first);
    all.secrets.sort_by_key(|one| one.span.first);
    all.agents.sort_by_key(|one| one.span.first);
    let target = &dockerfile.stages[graph.target];
    let (name, about) = (target.name.clone(), target.description.clone());
    Ok(answer(
        &all,
        name.unwrap_or_default(),
        about.unwrap_or_default(),
        dockerfile,
    ))
}

/// Notes what an instruction declares and asks for.
fn follow(
    instruction: &Instruction,
    dockerfile: &Dockerfile,
    globals: &Globals,
    build_args: &BTreeMap<String, String>,
    scope: &mut Scope,
    found: &mut Found,
) -> Result<()> {
    let lexer = dockerfile.lexer();
    let wrong = |error: String| from_diagnostic(dockerfile.error(&instruction.span, error, None));
    let expanded = instruction
        .command
        .expanded(&lexer, &mut |name| scope.get(name))
        .map_err(|error| wrong(error.to_string()))?;
    match &expanded.command {
        Command::Arg(args) => {
            for arg in args {
                let given = build_args.get(&arg.name);
                let default = arg
                    .default(&lexer, &mut |name| scope.get(name))
                    .map_err(|error| wrong(error.to_string()))?
                    .map(|expanded| expanded.text);
                let inherits = given.is_none() && default.is_none() && globals.get(&arg.name).is_some();
                let value = given.cloned().or(default);
                let value = value.or_else(|| globals.get(&arg.name).map(str::to_owned));
                if let Some(value) = &value {
                    scope.variables.set(&arg.name, value).map_err(wrong)?;
                }
                if !inherits {
                    let declared = Arg {
                        name: arg.name.clone(),
                        value: value.unwrap_or_default(),
                        description: arg.description.clone().unwrap_or_default(),
                        span: instruction.span.clone(),
                        needs: BTreeSet::new(),
                    };
                    scope.args.insert(arg.name.clone(), declared);
                }
                if let Some(arg) = scope.args.get(&arg.name) {
                    found.arg(arg, scope);
                }
            }
        }
        Command::Env(pairs) => {
            for pair in pairs {
                scope.variables.set(&pair.key, &pair.value).map_err(wrong)?;
            }
        }
        Command::Run(run) => {
            let mut expand = |word: &str| {
                let expanded = lexer.word(word, &mut |name| scope.get(name));
                expanded
                    .map(|expanded| expanded.text)
                    .map_err(|error| error.to_string())
            };
            for mount in run.mounts(&mut expand).map_err(Error::invalid)? {
                let base = |path: &String| path.trim_end_matches('/').rsplit('/').next().map(str::to_owned);
                match mount.kind {
                    MountType::Secret => {
                        let id = mount
                            .id
                            .or(mount.source)
                            .or_else(|| mount.target.as_ref().and_then(base));
                        want(
                            &mut found.secrets,
                            id.unwrap_or_default(),
                            mount.required,
                            &instruction.span,
                        );
                    }
                    MountType::Ssh => {
                        let id = mount.id.unwrap_or_else(|| "default".to_owned());
                        want(&mut found.agents, id, mount.required, &instruction.span);
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
    Ok(())
}

fn answer(all: &Found, name: String, description: String, dockerfile: &Dockerfile) -> Answer {
    // What is empty is left out, as Go does.
    let set = |object: &mut Value, key: &str, value: Value| {
        let empty = match &value {
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Bool(set) => !set,
            _ => false,
        };
        if !empty {
            object[key] = value;
        }
    };
    let args = all.args.iter().map(|arg| {
        let mut one = json!({"name": arg.name});
        set(&mut one, "description", json!(arg.description));
        set(&mut one, "value", json!(arg.value));
        one["location"] = location(&arg.span);
        one
    });
    let wanted = |list: &[Wanted]| -> Vec<Value> {
        let each = list.iter().map(|wanted| {
            let mut one = json!({"name": wanted.name});
            set(&mut one, "required", json!(wanted.required));
            one["location"] = location(&wanted.span);
            one
        });
        each.collect()
    };
    let mut document = json!({});
    set(&mut document, "name", json!(name));
    set(&mut document, "description", json!(description));
    set(&mut document, "args", args.collect());
    set(&mut document, "secrets", json!(wanted(&all.secrets)));
    set(&mut document, "ssh", json!(wanted(&all.agents)));
    let source = dockerfile.source.text.as_bytes();
    document["sources"] = json!([base64::engine::general_purpose::STANDARD.encode(source)]);

    let mut text = String::new();
    if !name.is_empty() || !description.is_empty() {
        let name = if name.is_empty() { "(default)" } else { &name };
        let width = if description.is_empty() { 7 } else { 12 };
        let _ = writeln!(text, "{:width$} {name}", "TARGET:");
        if !description.is_empty() {
            let _ = writeln!(text, "{:width$} {description}", "DESCRIPTION:");
        }
        text.push('\n');
    }
    let rows = all
        .args
        .iter()
        .map(|arg| [&*arg.name, &arg.value, &arg.description]);
    table(&mut text, ["BUILD ARG", "VALUE", "DESCRIPTION"], rows);
    for (title, list) in [("SECRET", &all.secrets), ("SSH", &all.agents)] {
        let required = |one: &Wanted| if one.required { "true" } else { "" };
        let rows = list.iter().map(|one| [&*one.name, required(one), ""]);
        table(&mut text, [title, "REQUIRED", ""], rows);
    }
    Answer {
        json: document.to_string(),
        text,
        findings: 0,
    }
}

/// Columns with three spaces between them; nothing without rows.
fn table<'a>(text: &mut String, head: [&'a str; 3], rows: impl Iterator<Item = [&'a str; 3]>) {
    let rows: Vec<[&str; 3]> = std::iter::once(head).chain(rows).collect();
    if rows.len() == 1 {
        return;
    }
    let width = |at: usize| {
        rows.iter()
            .map(|row| row[at].chars().count() + 3)
            .max()
            .unwrap_or(0)
    };
    let (first, second) = (width(0), width(1));
    for [one, two, three] in rows {
        let line = format!("{one:first$}{two:second$}{three}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_told_with_what_it_needs() {
        let text = "ARG DISTRO=debian\nARG VERSION=12\nARG UNUSED=x\nARG IMAGE=$DISTRO:$VERSION\nFROM $IMAGE AS base\n# MODE how it is built\nARG MODE=release\nRUN --mount=type=secret,id=key,required true\nFROM scratch AS other\nARG NEVER\n# out what is shipped\nFROM base AS out\nARG VERSION\nARG MODE=debug\nARG TARGETARCH\nRUN --mount=type=ssh --mount=type=secret,target=/x/token true\n";
        let dockerfile = Dockerfile::parse(text.as_bytes(), "Dockerfile").unwrap();
        let request = BuildRequest {
            args: [("DISTRO".to_owned(), Some("ubuntu".to_owned()))].into(),
            ..BuildRequest::default()
        };
        let platform = vec![("TARGETARCH".to_owned(), "amd64".to_owned())];
        let answer = outline(&request, &dockerfile, platform).unwrap();
        assert_eq!(
            answer.text,
            "TARGET:      out\nDESCRIPTION: what is shipped\n\nBUILD ARG   VALUE       DESCRIPTION\nDISTRO      ubuntu\nVERSION     12\nIMAGE       ubuntu:12\nMODE        debug\n\nSECRET   REQUIRED\nkey      true\ntoken\n\nSSH       REQUIRED\ndefault\n\n"
        );
        let document: Value = serde_json::from_str(&answer.json).unwrap();
        assert_eq!(document["name"], "out");
        assert_eq!(document["secrets"][0]["required"], true);
        assert_eq!(document["args"][3]["location"]["ranges"][0]["start"]["line"], 14);
    }
}
