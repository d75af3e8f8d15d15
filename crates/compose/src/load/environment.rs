//! What comes from the environment: values of variables without one, contents of secrets and configs, and the files
//! of `env_file` and `label_file`.

use std::path::{Path, PathBuf};

use super::{Environment, dotenv, files};
use crate::error::{Error, Result};
use crate::yaml::{Map, Node, Value};

/// The key under which the value of a secret is kept that comes from the environment.
pub(crate) const SECRET_VALUE: &str = "x-#value";

/// Gives secrets and configs their contents where they come from the environment.
pub(super) fn contents(model: &mut Node, environment: &Environment) {
    for (section, key) in [("configs", "content"), ("secrets", SECRET_VALUE)] {
        let parts = model.get_mut(section).and_then(Node::as_map_mut);
        for part in parts.into_iter().flat_map(Map::values_mut) {
            let Some(value) = part
                .text("environment")
                .and_then(|name| environment.get(name))
                .cloned()
            else {
                continue;
            };
            let at = part.at;
            if let Some(map) = part.as_map_mut() {
                map.insert(key.to_owned(), Node::string(at, value));
            }
        }
    }
}

/// Gives variables without a value that of the environment; those it does not have stay, or go.
pub(super) fn resolve(node: Option<&mut Node>, environment: &Environment, keep: bool) {
    let Some(map) = node.and_then(Node::as_map_mut) else {
        return;
    };
    for (name, item) in map.iter_mut() {
        if item.is_null()
            && let Some(value) = environment.get(name)
        {
            item.value = Value::String(value.clone());
        }
    }
    if !keep {
        map.retain(|_, item| !item.is_null());
    }
}

/// Puts the variables of a service's files below those it names itself.
pub(super) fn add_files(service: &mut Node, environment: &Environment) -> Result<()> {
    let at = service.at;
    let Some(list) = service.get("env_file").and_then(Node::as_list) else {
        return Ok(());
    };
    let own = service
        .get("environment")
        .and_then(Node::as_map)
        .cloned()
        .unwrap_or_default();
    let mut found = Map::new();
    for file in list {
        let path = PathBuf::from(file.text("path").unwrap_or_default());
        let required = !matches!(
            file.get("required").map(|node| &node.value),
            Some(Value::Bool(false))
        );
        if !path.exists() {
            if !required {
                continue;
            }
            return Err(Error::project(format!("env file {} not found", path.display())));
        }
        let lookup = |name: &str| {
            environment
                .get(name)
                .cloned()
                .or_else(|| own.get(name)?.as_str().map(str::to_owned))
                .or_else(|| found.get(name).and_then(Node::as_str).map(str::to_owned))
        };
        let more = variables(&path, file.text("format"), &lookup)?;
        for (name, value) in more {
            found.insert(name, Node::string(file.at, value));
        }
    }
    found.extend(own);
    if let Some(map) = service.as_map_mut() {
        map.insert("environment".to_owned(), Node::new(at, Value::Map(found)));
    }
    Ok(())
}

fn variables(
    path: &Path,
    format: Option<&str>,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Environment> {
    let text = files::text(path)?;
    match format {
        None | Some("") => dotenv::parse(&text, lookup).map_err(|fault| files::line_fault(path, fault)),
        Some("raw") => Ok(dotenv::parse_raw(&text, lookup)),
        Some(other) => Err(Error::project(format!(
            "unsupported env_file format {other:?} of {}: raw is known",
            path.display()
        ))),
    }
}

/// Puts the labels of a service's files below those it names itself.
pub(super) fn add_labels(service: &mut Node) -> Result<()> {
    let at = service.at;
    let Some(list) = service.get("label_file").and_then(Node::as_list) else {
        return Ok(());
    };
    let mut found = Map::new();
    for file in list {
        let path = PathBuf::from(file.as_str().unwrap_or_default());
        for (name, value) in variables(&path, None, &|_| None)? {
            found.insert(name, Node::string(file.at, value));
        }
    }
    found.extend(
        service
            .get("labels")
            .and_then(Node::as_map)
            .cloned()
            .unwrap_or_default(),
    );
    if let Some(map) = service.as_map_mut() {
        map.insert("labels".to_owned(), Node::new(at, Value::Map(found)));
    }
    Ok(())
}
