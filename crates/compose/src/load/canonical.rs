//! The long forms: what may be written in several ways is brought into one, so that files go on top of each other.

use super::short;
use crate::yaml::{At, Fault, Map, Node, Value};

/// A dependency of which nothing is said.
pub(super) fn dependency(at: At) -> Node {
    let mut map = Map::new();
    map.insert("condition".to_owned(), Node::string(at, "service_started"));
    map.insert("required".to_owned(), Node::new(at, Value::Bool(true)));
    Node::new(at, Value::Map(map))
}

/// Brings a whole model into the long forms. What cannot be read is left when variables stand in it (`lenient`).
pub(super) fn canonical(model: &mut Node, lenient: bool) -> Result<(), Fault> {
    if let Some(services) = model.get_mut("services").and_then(Node::as_map_mut) {
        for (name, node) in services.iter_mut() {
            let at = node.at;
            if let Some(map) = node.as_map_mut() {
                service(map, lenient).map_err(|(key, message)| {
                    let at = map.get(key).map_or(at, |node| node.at);
                    Fault::new(at, format!("services.{name}.{key}"), message)
                })?;
            }
        }
    }
    for section in ["volumes", "networks", "secrets", "configs"] {
        if let Some(parts) = model.get_mut(section).and_then(Node::as_map_mut) {
            for (name, node) in parts.iter_mut() {
                external(node)
                    .map_err(|message| Fault::new(node.at, format!("{section}.{name}"), message))?;
            }
        }
    }
    Ok(())
}

type Wrong = (&'static str, String);

fn service(map: &mut Map, lenient: bool) -> Result<(), Wrong> {
    if let Some(node) = map.get_mut("build") {
        build(node).map_err(|message| ("build", message))?;
    }
    if let Some(node) = map.get_mut("depends_on") {
        depends_on(node);
    }
    if let Some(node) = map.get_mut("env_file") {
        env_file(node);
    }
    for key in ["label_file", "dns", "dns_search", "tmpfs"] {
        if let Some(node) = map.get_mut(key) {
            listed(node);
        }
    }
    if let Some(node) = map.get_mut("extends")
        && node.as_str().is_some()
    {
        *node = wrapped("service", node.clone());
    }
    if let Some(node) = map.get_mut("gpus")
        && node.as_str().is_some()
    {
        let all = wrapped("count", Node::string(node.at, "all"));
        *node = Node::new(node.at, Value::List(vec![all]));
    }
    for key in ["networks", "models"] {
        if let Some(node) = map.get_mut(key) {
            names(node);
        }
    }
    for key in ["secrets", "configs"] {
        if let Some(node) = map.get_mut(key) {
            mounts(node);
        }
    }
    each(map, "volumes", |node| match node.as_str() {
        Some(text) => match short::volume(text, node.at) {
            Ok(long) => Ok(vec![long]),
            Err(_) if lenient => Ok(vec![node]),
            Err(message) => Err(message),
        },
        None => Ok(vec![node]),
    })?;
    each(map, "devices", |node| match node.as_str() {
        Some(text) => device(text, node.at)
            .map(|long| vec![long])
            .or_else(|message| if lenient { Ok(vec![node]) } else { Err(message) }),
        None => Ok(vec![node]),
    })?;
    each(map, "ports", |node| match &node.value {
        Value::Map(_) => Ok(vec![node]),
        _ => {
            let text = node.printed().unwrap_or_default();
            match short::ports(&text, node.at) {
                Ok(long) => Ok(long),
                Err(_) if lenient => Ok(vec![node]),
                Err(message) => Err(message),
            }
        }
    })?;
    if let Some(watch) = map.get_mut("develop").and_then(|node| node.get_mut("watch")) {
        for rule in watch.as_list_mut().into_iter().flatten() {
            for key in ["ignore", "include"] {
                if let Some(node) = rule.get_mut(key) {
                    listed(node);
                }
            }
        }
    }
    Ok(())
}

/// Replaces each entry of a list by those it stands for.
fn each(
    map: &mut Map,
    key: &'static str,
    long: impl Fn(Node) -> Result<Vec<Node>, String>,
) -> Result<(), Wrong> {
    let Some(list) = map.get_mut(key).and_then(Node::as_list_mut) else {
        return Ok(());
    };
    let mut out = Vec::with_capacity(list.len());
    for node in std::mem::take(list) {
        out.extend(long(node).map_err(|message| (key, message))?);
    }
    *list = out;
    Ok(())
}

fn wrapped(key: &str, node: Node) -> Node {
    let at = node.at;
    Node::new(at, Value::Map(Map::from_iter([(key.to_owned(), node)])))
}

fn listed(node: &mut Node) {
    if node.as_str().is_some() {
        *node = Node::new(node.at, Value::List(vec![node.clone()]));
    }
}

fn names(node: &mut Node) {
    if let Some(list) = node.as_list() {
        let members = list
            .iter()
            .filter_map(|item| Some((item.as_str()?.to_owned(), Node::new(item.at, Value::Null))));
        *node = Node::new(node.at, Value::Map(members.collect()));
    }
}

fn mounts(node: &mut Node) {
    for item in node.as_list_mut().into_iter().flatten() {
        if item.as_str().is_some() {
            *item = wrapped("source", item.clone());
        }
    }
}

fn depends_on(node: &mut Node) {
    match &mut node.value {
        Value::List(list) => {
            let members = list
                .iter()
                .filter_map(|item| Some((item.as_str()?.to_owned(), dependency(item.at))));
            node.value = Value::Map(members.collect());
        }
        Value::Map(map) => {
            for item in map.values_mut() {
                let at = item.at;
                if let Some(members) = item.as_map_mut() {
                    for (key, default) in dependency(at).as_map().into_iter().flatten() {
                        members.entry(key.clone()).or_insert_with(|| default.clone());
                    }
                }
            }
        }
        _ => {}
    }
}

fn env_file(node: &mut Node) {
    listed(node);
    for item in node.as_list_mut().into_iter().flatten() {
        if item.as_str().is_some() {
            *item = wrapped("path", item.clone());
        }
        let at = item.at;
        if let Some(map) = item.as_map_mut() {
            map.entry("required".to_owned())
                .or_insert_with(|| Node::new(at, Value::Bool(true)));
        }
    }
}

fn build(node: &mut Node) -> Result<(), String> {
    if node.as_str().is_some() {
        *node = wrapped("context", node.clone());
    }
    if let Some(secrets) = node.get_mut("secrets") {
        mounts(secrets);
    }
    if let Some(contexts) = node.get_mut("additional_contexts") {
        pairs(contexts, |text| {
            Err(format!("additional_contexts: {text:?} must be NAME=CONTEXT"))
        })?;
    }
    if let Some(ssh) = node.get_mut("ssh") {
        pairs(ssh, |text| match text {
            "default" => Ok(()),
            _ => Err(format!("ssh: {text:?} must be default, or ID=PATH")),
        })?;
    }
    if let Some(filter) = node.get_mut("no_cache_filter") {
        listed(filter);
    }
    Ok(())
}

/// A list of `KEY=VALUE` as a mapping; `alone` says whether a key without a value may be.
fn pairs(node: &mut Node, alone: impl Fn(&str) -> Result<(), String>) -> Result<(), String> {
    let Some(list) = node.as_list() else { return Ok(()) };
    let mut map = Map::new();
    for item in list {
        let text = item.as_str().unwrap_or_default();
        match text.split_once('=') {
            Some((key, value)) => map.insert(key.to_owned(), Node::string(item.at, value)),
            None => {
                alone(text)?;
                map.insert(text.to_owned(), Node::new(item.at, Value::Null))
            }
        };
    }
    node.value = Value::Map(map);
    Ok(())
}

fn device(text: &str, at: At) -> Result<Node, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, permissions) = match parts.as_slice() {
        [source] => (*source, *source, "rwm"),
        [source, target] => (*source, *target, "rwm"),
        [source, target, permissions] => (*source, *target, *permissions),
        _ => {
            return Err(format!(
                "confusing device mapping, please use long syntax: {text}"
            ));
        }
    };
    let map = [
        ("source", source),
        ("target", target),
        ("permissions", permissions),
    ]
    .map(|(key, value)| (key.to_owned(), Node::string(at, value)));
    Ok(Node::new(at, Value::Map(Map::from_iter(map))))
}

/// `external: {name: x}`, which is older than `name: x`.
fn external(node: &mut Node) -> Result<(), String> {
    let own = node.text("name").map(str::to_owned);
    let Some(map) = node.as_map_mut() else {
        return Ok(());
    };
    let Some(external) = map.get_mut("external") else {
        return Ok(());
    };
    if external.as_map().is_none() {
        return Ok(());
    }
    let name = external.get("name").cloned();
    *external = Node::new(external.at, Value::Bool(true));
    match (own, name) {
        (Some(own), Some(name)) if name.as_str() != Some(own.as_str()) => {
            Err("name and external.name conflict; only use name".to_owned())
        }
        (None, Some(name)) => {
            map.insert("name".to_owned(), name);
            Ok(())
        }
        _ => Ok(()),
    }
}
