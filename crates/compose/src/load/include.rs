//! `include`: other projects' files become parts of this one, each with its own directory and environment.

use std::path::{Path, PathBuf};

use super::{Loader, MAX_NESTING, Scope, files, merge};
use crate::error::{Error, Result};
use crate::yaml::{Fault, Node, Value};

/// One entry of the list.
struct Include {
    paths: Vec<String>,
    env_files: Vec<String>,
    directory: Option<String>,
}

impl Loader {
    /// Brings what a document includes into it.
    pub(super) fn include(&mut self, document: &mut Node, path: &Path, scope: &Scope) -> Result<()> {
        let Some(list) = document.as_map_mut().and_then(|map| map.shift_remove("include")) else {
            return Ok(());
        };
        let at = list.at;
        if list.is_null() {
            return Ok(());
        }
        let Value::List(list) = list.value else {
            return Err(self.fault(Fault::new(at, "include", "must be a list")));
        };
        for (index, entry) in list.iter().enumerate() {
            let fail = |loader: &Self, message: String| {
                loader.fault(Fault::new(entry.at, format!("include[{index}]"), message))
            };
            let include = entry_of(entry).map_err(|message| fail(self, message))?;
            let (paths, directory) = places(&include, scope).map_err(|message| fail(self, message))?;
            let mut including = scope.including.clone();
            including.push(path.to_owned());
            if paths.first().is_some_and(|first| including.contains(first)) || including.len() > MAX_NESTING {
                let steps: Vec<String> = including
                    .iter()
                    .chain(paths.first())
                    .map(|path| path.display().to_string())
                    .collect();
                return Err(fail(
                    self,
                    format!("include cycle detected: {}", steps.join(" includes ")),
                ));
            }
            let mut environment = scope.environment.clone();
            for (name, value) in
                files::variables(&env_files(&include, &directory, scope)?, &scope.environment)?
            {
                environment.entry(name).or_insert(value);
            }
            let inner = Scope {
                directory,
                environment,
                including,
            };
            let imported = self.model(&paths, &inner)?;
            self.import(imported, document)?;
        }
        Ok(())
    }

    /// Puts what was included below what the document itself says.
    fn import(&mut self, imported: Node, document: &mut Node) -> Result<()> {
        let (Value::Map(imported), Some(map)) = (imported.value, document.as_map_mut()) else {
            return Ok(());
        };
        for (section, parts) in imported {
            let known = ["services", "volumes", "networks", "secrets", "configs", "models"];
            let Value::Map(parts) = parts.value else { continue };
            if !known.contains(&section.as_str()) {
                continue;
            }
            let target = map
                .entry(section.clone())
                .or_insert_with(|| Node::map(parts_at(&parts)));
            if target.is_null() {
                target.value = Value::Map(Default::default());
            }
            let Some(target) = target.as_map_mut() else {
                continue;
            };
            for (name, part) in parts {
                let merged = match target.shift_remove(&name) {
                    None => part,
                    Some(own) if own.value == part.value => own,
                    Some(own) => {
                        merge::part(&section, &name, part, own).map_err(|fault| self.fault(fault))?
                    }
                };
                target.insert(name, merged);
            }
        }
        Ok(())
    }
}

fn parts_at(parts: &crate::yaml::Map) -> crate::yaml::At {
    parts
        .values()
        .next()
        .map_or(crate::yaml::At::file(0), |part| part.at)
}

fn entry_of(node: &Node) -> std::result::Result<Include, String> {
    let texts = |node: Option<&Node>| -> std::result::Result<Vec<String>, String> {
        let text = |node: &Node| {
            node.as_str()
                .map(str::to_owned)
                .ok_or_else(|| format!("must be a string, not {}", node.kind()))
        };
        match node.map(|node| (node, &node.value)) {
            None => Ok(Vec::new()),
            Some((_, Value::List(list))) => list.iter().map(text).collect(),
            Some((node, _)) => Ok(vec![text(node)?]),
        }
    };
    if node.as_str().is_some() {
        return Ok(Include {
            paths: texts(Some(node))?,
            env_files: Vec::new(),
            directory: None,
        });
    }
    let Some(map) = node.as_map() else {
        return Err(format!("must be a string or a mapping, not {}", node.kind()));
    };
    let known = ["path", "env_file", "project_directory"];
    if let Some(other) = map.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("additional properties '{other}' not allowed"));
    }
    Ok(Include {
        paths: texts(map.get("path"))?,
        env_files: texts(map.get("env_file"))?,
        directory: node.text("project_directory").map(str::to_owned),
    })
}

/// The files of an entry, and the directory of what is included.
fn places(include: &Include, scope: &Scope) -> std::result::Result<(Vec<PathBuf>, PathBuf), String> {
    if let Some(remote) = include
        .paths
        .iter()
        .find(|path| path.contains("://") || path.starts_with("git@") || path.starts_with("oci:"))
    {
        return Err(format!(
            "{remote:?} is not here: only local files can be included"
        ));
    }
    let paths: Vec<PathBuf> = include
        .paths
        .iter()
        .map(|path| files::absolute(&scope.directory, Path::new(path)))
        .collect();
    let Some(first) = paths.first() else {
        return Err("path is missing".to_owned());
    };
    let directory = match &include.directory {
        Some(directory) => files::absolute(&scope.directory, Path::new(directory)),
        None => first
            .parent()
            .map_or_else(|| scope.directory.clone(), Path::to_owned),
    };
    Ok((paths, directory))
}

fn env_files(include: &Include, directory: &Path, scope: &Scope) -> Result<Vec<PathBuf>> {
    if include.env_files.is_empty() {
        let file = directory.join(".env");
        return Ok(if file.is_file() { vec![file] } else { Vec::new() });
    }
    let mut found = Vec::new();
    for file in &include.env_files {
        if file == "/dev/null" {
            continue;
        }
        let file = files::absolute(&scope.directory, Path::new(file));
        if file.is_dir() {
            return Err(Error::project(format!("{} is not a file", file.display())));
        }
        found.push(file);
    }
    Ok(found)
}
