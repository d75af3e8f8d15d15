//! Sequences that have one entry for each key keep the last of them, in the place of the first.

use std::collections::HashMap;

use super::short;
use crate::yaml::{Fault, Node, Value};

/// Enforces it in a whole model.
pub(super) fn enforce(model: &mut Node) -> Result<(), Fault> {
    for section in ["networks", "services"] {
        let Some(Value::Map(parts)) = model.get_mut(section).map(|node| &mut node.value) else {
            continue;
        };
        for (name, part) in parts.iter_mut() {
            walk(part, section, &mut vec![name.clone()])?;
        }
    }
    Ok(())
}

fn walk(node: &mut Node, section: &str, path: &mut Vec<String>) -> Result<(), Fault> {
    match &mut node.value {
        Value::Map(map) => {
            for (key, item) in map.iter_mut() {
                if path.len() == 1 && key.starts_with("x-") {
                    continue;
                }
                path.push(key.clone());
                walk(item, section, path)?;
                path.pop();
            }
        }
        Value::List(list) => {
            let Some(key) = key_of(section, &path[1..]) else {
                return Ok(());
            };
            let mut places: HashMap<String, usize> = HashMap::new();
            let mut kept: Vec<Node> = Vec::with_capacity(list.len());
            for (index, item) in std::mem::take(list).into_iter().enumerate() {
                let place = key(&item).map_err(|message| {
                    let path = format!("{section}.{}[{index}]", path.join("."));
                    Fault::new(item.at, path, message)
                })?;
                match places.get(&place) {
                    Some(known) => kept[*known] = item,
                    None => {
                        places.insert(place, kept.len());
                        kept.push(item);
                    }
                }
            }
            *list = kept;
        }
        _ => {}
    }
    Ok(())
}

type Key = fn(&Node) -> Result<String, String>;

/// How entries of the list at a path are told apart.
fn key_of(section: &str, path: &[String]) -> Option<Key> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    Some(match (section, path.as_slice()) {
        ("networks", ["labels"] | ["ipam", "options"]) => before_equals,
        (
            "services",
            [
                "annotations" | "cap_add" | "cap_drop" | "dns" | "dns_opt" | "dns_search" | "environment"
                | "labels" | "links" | "profiles" | "sysctls" | "tmpfs",
            ]
            | [
                "build",
                "args" | "additional_contexts" | "platforms" | "tags" | "labels",
            ]
            | ["deploy", "labels"]
            | ["networks", _, "aliases" | "link_local_ips"],
        ) => before_equals,
        ("services", ["expose"]) => |node| Ok(node.printed().unwrap_or_default()),
        ("services", ["env_file"]) => |node| {
            Ok(node
                .as_str()
                .or_else(|| node.text("path"))
                .unwrap_or_default()
                .to_owned())
        },
        ("services", ["configs"]) => |node| Ok(mount(node, "")),
        ("services", ["secrets"]) => |node| Ok(mount(node, "/run/secrets")),
        ("services", ["ports"]) => |node| Ok(port(node)),
        ("services", ["volumes"]) => |node| match node.as_str() {
            Some(text) => short::volume(text, node.at)
                .map(|volume| volume.text("target").unwrap_or_default().to_owned()),
            None => target(node, "a volume is missing a mount target"),
        },
        ("services", ["devices"]) => |node| match node.as_str() {
            Some(text) => {
                let mut parts = text.split(':');
                let first = parts.next().unwrap_or_default();
                Ok(parts.next().unwrap_or(first).to_owned())
            }
            None => Ok(node
                .text("target")
                .or_else(|| node.text("source"))
                .unwrap_or_default()
                .to_owned()),
        },
        _ => return None,
    })
}

fn before_equals(node: &Node) -> Result<String, String> {
    let text = node.printed().unwrap_or_default();
    Ok(text
        .split_once('=')
        .map_or(text.as_str(), |(key, _)| key)
        .to_owned())
}

fn mount(node: &Node, directory: &str) -> String {
    match node.as_str() {
        Some(name) => format!("{directory}/{name}"),
        None => match node.text("target") {
            Some(target) => target.to_owned(),
            None => format!("{directory}/{}", node.text("source").unwrap_or_default()),
        },
    }
}

fn target(node: &Node, missing: &str) -> Result<String, String> {
    match node.text("target") {
        Some(target) => Ok(target.to_owned()),
        None if node.as_map().is_some() => Err(missing.to_owned()),
        // The schema says what is wrong.
        None => Ok(String::new()),
    }
}

fn port(node: &Node) -> String {
    if node.as_map().is_none() {
        return node.printed().unwrap_or_default();
    }
    let text = |key: &str| node.get(key).and_then(Node::printed);
    format!(
        "{}:{}:{}/{}",
        text("host_ip").unwrap_or_else(|| "0.0.0.0".to_owned()),
        text("published").unwrap_or_default(),
        text("target").unwrap_or_default(),
        text("protocol").unwrap_or_else(|| "tcp".to_owned()),
    )
}
