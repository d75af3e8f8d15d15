//! Values get the types that they stand for, and the defaults that the specification gives them.
//!
//! By the table of [`super::schema`]: text that stands for a number or a boolean becomes one, sizes become bytes as
//! text, durations are written as Go writes them, pairs become mappings from text to text.

use super::schema::{MODEL, Object, Type, reads_as_bool};
use super::units::{parse_bytes, parse_duration, show_duration};
use crate::project::split_words;
use crate::yaml::{Map, Node, Value, number};

/// Gives values their types, in a model that was checked.
pub(super) fn types(model: &mut Node) {
    value(model, Type::Object(&MODEL));
}

fn object(map: &mut Map, object: &Object) {
    for (key, item) in map.iter_mut() {
        if let Some(kind) = object.field(key) {
            value(item, kind);
        }
    }
}

fn value(node: &mut Node, kind: Type) {
    match kind {
        Type::Bool => {
            if let Some(truth) = node.as_str().and_then(reads_as_bool) {
                node.value = Value::Bool(truth);
            }
        }
        Type::Int => match &node.value {
            Value::String(text) => {
                if let Some(Value::Int(number)) = number(text.trim()) {
                    node.value = Value::Int(number);
                }
            }
            Value::Float(number) => node.value = Value::Int(*number as i64),
            _ => {}
        },
        Type::Number => {
            if let Some(number) = node.as_str().and_then(|text| text.trim().parse().ok()) {
                node.value = Value::Float(number);
            }
        }
        Type::Bytes => {
            let bytes = match &node.value {
                Value::Int(bytes) => Some(*bytes),
                Value::Float(bytes) => Some(*bytes as i64),
                Value::String(text) => parse_bytes(text),
                _ => None,
            };
            if let Some(bytes) = bytes {
                node.value = Value::String(bytes.to_string());
            }
        }
        Type::Duration => {
            if let Some(duration) = node.as_str().and_then(parse_duration) {
                node.value = Value::String(show_duration(duration));
            }
        }
        Type::BoolOrText => {
            if let Value::Bool(truth) = node.value {
                node.value = Value::String(truth.to_string());
            }
        }
        Type::Command => {
            // What cannot be split is told when it is bound.
            if let Some(words) = node.as_str().and_then(|text| split_words(text).ok()) {
                let at = node.at;
                node.value = Value::List(words.into_iter().map(|word| Node::string(at, word)).collect());
            }
        }
        Type::Pairs => pairs(node),
        Type::Options => {
            for item in node.as_map_mut().into_iter().flat_map(Map::values_mut) {
                item.value = Value::String(item.printed().unwrap_or_default());
            }
        }
        Type::Hosts => hosts(node),
        Type::List(kind) | Type::Set(kind) => {
            for item in node.as_list_mut().into_iter().flatten() {
                value(item, *kind);
            }
        }
        Type::Named(kind) | Type::Map(kind) => {
            for item in node.as_map_mut().into_iter().flat_map(Map::values_mut) {
                value(item, *kind);
            }
        }
        Type::Object(fields) | Type::Maybe(fields) => {
            if let Some(map) = node.as_map_mut() {
                object(map, fields);
            }
        }
        Type::Either(kinds) => {
            for kind in kinds {
                let fits = match kind {
                    Type::Object(_) | Type::Maybe(_) | Type::Named(_) => node.as_map().is_some(),
                    Type::List(_) | Type::Set(_) => node.as_list().is_some(),
                    _ => node.as_map().is_none() && node.as_list().is_none(),
                };
                if fits {
                    return value(node, *kind);
                }
            }
        }
        _ => {}
    }
}

/// A list of `KEY=VALUE`, or a mapping of any scalars, as a mapping of texts; a key alone has nothing.
fn pairs(node: &mut Node) {
    let map = match &mut node.value {
        Value::Map(map) => std::mem::take(map)
            .into_iter()
            .map(|(key, mut item)| {
                if !item.is_null() {
                    item.value = Value::String(item.printed().unwrap_or_default());
                }
                (key, item)
            })
            .collect(),
        Value::List(list) => std::mem::take(list)
            .into_iter()
            .map(|item| {
                let text = item.printed().unwrap_or_default();
                match text.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Node::string(item.at, value)),
                    None => (text, Node::new(item.at, Value::Null)),
                }
            })
            .collect(),
        _ => return,
    };
    node.value = Value::Map(map);
}

/// Hosts as a sorted list of `HOST=ADDRESS`.
fn hosts(node: &mut Node) {
    let mut list = Vec::new();
    let bare = |address: &str| {
        let inner = address.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        inner.unwrap_or(address).to_owned()
    };
    match &node.value {
        Value::Map(map) => {
            for (host, item) in map {
                match &item.value {
                    Value::List(addresses) => {
                        for address in addresses.iter().filter_map(Node::as_str) {
                            list.push((item.at, format!("{host}={}", bare(address))));
                        }
                    }
                    _ => {
                        let address = item.printed().unwrap_or_default();
                        list.push((item.at, format!("{host}={}", bare(&address))));
                    }
                }
            }
        }
        Value::List(items) => {
            for item in items {
                let text = item.printed().unwrap_or_default();
                let Some((host, addresses)) = text.split_once('=').or_else(|| text.split_once(':')) else {
                    list.push((item.at, text));
                    continue;
                };
                for address in addresses.split(',') {
                    list.push((item.at, format!("{host}={}", bare(address))));
                }
            }
        }
        _ => return,
    }
    list.sort_by(|a, b| a.1.cmp(&b.1));
    let list = list
        .into_iter()
        .map(|(at, text)| Node::string(at, text))
        .collect();
    node.value = Value::List(list);
}

/// Fills in what the specification says for what is not there.
pub(super) fn defaults(model: &mut Node) {
    let services = model.get_mut("services").and_then(Node::as_map_mut);
    for service in services.into_iter().flat_map(Map::values_mut) {
        let Some(map) = service.as_map_mut() else { continue };
        let fill = |node: &mut Node, key: &str, text: &str| {
            let at = node.at;
            if let Some(map) = node.as_map_mut() {
                map.entry(key.to_owned())
                    .or_insert_with(|| Node::string(at, text));
            }
        };
        if let Some(build) = map.get_mut("build") {
            fill(build, "context", ".");
        }
        for port in lists(map.get_mut("ports")) {
            fill(port, "protocol", "tcp");
            fill(port, "mode", "ingress");
        }
        for secret in lists(map.get_mut("secrets")) {
            let name = secret.text("source").unwrap_or_default().to_owned();
            fill(secret, "target", &format!("/run/secrets/{name}"));
        }
        let reserved = map
            .get_mut("deploy")
            .and_then(|node| node.get_mut("resources"))
            .and_then(|node| node.get_mut("reservations"))
            .and_then(|node| node.get_mut("devices"));
        for device in lists(reserved) {
            count(device);
        }
        for device in lists(map.get_mut("gpus")) {
            count(device);
        }
        for volume in lists(map.get_mut("volumes")) {
            if let Some(bind) = volume.get_mut("bind") {
                let at = bind.at;
                if let Some(map) = bind.as_map_mut() {
                    map.entry("create_host_path".to_owned())
                        .or_insert_with(|| Node::new(at, Value::Bool(true)));
                }
            }
        }
    }
}

/// How many devices: `all`, which nothing said means, is -1.
fn count(device: &mut Node) {
    let (at, named) = (device.at, device.get("device_ids").is_some());
    let Some(map) = device.as_map_mut() else { return };
    if !named {
        map.entry("count".to_owned())
            .or_insert_with(|| Node::string(at, "all"));
    }
    if let Some(count) = map.get_mut("count")
        && let Some(text) = count.as_str()
    {
        if text == "all" {
            count.value = Value::Int(-1);
        } else if let Some(Value::Int(number)) = number(text) {
            count.value = Value::Int(number);
        }
    }
}

fn lists(node: Option<&mut Node>) -> impl Iterator<Item = &mut Node> {
    node.and_then(Node::as_list_mut).into_iter().flatten()
}
