//! How a file goes on top of another: section 13 of the Compose specification, with Docker Compose's special cases.
//!
//! Mappings are joined, sequences appended, scalars replaced. `command`, `entrypoint` and the test of a health check
//! are replaced whole; what may be written as a mapping or a list of `KEY=VALUE` is joined as such a list, of which
//! [`super::unique`] keeps the last of each key. `!reset` takes away what was there, `!override` replaces it.

use crate::yaml::{At, Directive, Fault, Map, Node, Value};

/// Puts `over` on top of `base`.
pub(super) fn merge(base: Node, over: Node) -> Result<Node, Fault> {
    nodes(base, over, &mut Vec::new())
}

/// Puts a service on top of the one it extends.
pub(super) fn service(base: Node, over: Node) -> Result<Node, Fault> {
    nodes(base, over, &mut vec!["services".to_owned(), "x".to_owned()])
}

/// Puts a part of a model on top of one that was included.
pub(super) fn part(section: &str, name: &str, base: Node, over: Node) -> Result<Node, Fault> {
    nodes(base, over, &mut vec![section.to_owned(), name.to_owned()])
}

/// Takes out what was to be reset, where there was nothing below it, and forgets directives.
pub(super) fn strip(node: &mut Node) {
    node.directive = Directive::None;
    match &mut node.value {
        Value::Map(map) => {
            map.retain(|_, item| item.directive != Directive::Reset);
            map.values_mut().for_each(strip);
        }
        Value::List(list) => {
            list.retain(|item| item.directive != Directive::Reset);
            list.iter_mut().for_each(strip);
        }
        _ => {}
    }
}

/// What is special about a place.
enum Rule {
    Plain,
    Replace,
    Pairs,
    Hosts,
    Build,
    DependsOn,
    Names,
    Logging,
    Pools,
}

fn rule(path: &[String]) -> Rule {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["services", _, rest @ ..] => match rest {
            ["command" | "entrypoint"] | ["healthcheck", "test"] | ["ulimits", _] => Rule::Replace,
            [
                "annotations" | "labels" | "environment" | "env_file" | "label_file" | "dns" | "dns_opt"
                | "dns_search" | "sysctls" | "tmpfs",
            ]
            | ["build", "args" | "additional_contexts" | "labels"]
            | ["deploy", "labels"]
            | ["volumes", _, "volume", "labels"] => Rule::Pairs,
            ["extra_hosts"] | ["build", "extra_hosts"] => Rule::Hosts,
            ["build"] => Rule::Build,
            ["depends_on"] => Rule::DependsOn,
            ["networks" | "models"] => Rule::Names,
            ["logging"] => Rule::Logging,
            _ => Rule::Plain,
        },
        ["networks" | "volumes", _, "labels"] => Rule::Pairs,
        ["networks", _, "ipam", "config"] => Rule::Pools,
        _ => Rule::Plain,
    }
}

fn nodes(base: Node, over: Node, path: &mut Vec<String>) -> Result<Node, Fault> {
    if over.directive == Directive::Override {
        return Ok(over);
    }
    match rule(path) {
        Rule::Replace => Ok(over),
        Rule::Pairs => Ok(sequences(base, over)),
        Rule::Hosts => Ok(hosts(base, over)),
        Rule::Build => {
            let long = |node: Node| match node.value {
                Value::String(_) => {
                    let mut map = Map::new();
                    let at = node.at;
                    map.insert("context".to_owned(), node);
                    Node::new(at, Value::Map(map))
                }
                _ => node,
            };
            maps_or_fail(long(base), long(over), path)
        }
        Rule::DependsOn => {
            let filled = |at| super::canonical::dependency(at);
            maps_or_fail(named(base, filled), named(over, filled), path)
        }
        Rule::Names => {
            let null = |at| Node::new(at, Value::Null);
            maps_or_fail(named(base, null), named(over, null), path)
        }
        Rule::Logging => {
            let (before, after) = (base.text("driver"), over.text("driver"));
            if before == after || before.is_none() || after.is_none() {
                maps_or_fail(base, over, path)
            } else {
                Ok(over)
            }
        }
        Rule::Pools => pools(base, over, path),
        Rule::Plain => plain(base, over, path),
    }
}

fn plain(base: Node, over: Node, path: &mut Vec<String>) -> Result<Node, Fault> {
    if over.is_null() {
        return Ok(base);
    }
    match (&base.value, &over.value) {
        (Value::Map(_), Value::Map(_)) => maps_or_fail(base, over, path),
        (Value::List(_), Value::List(_)) => {
            let (at, mut list) = match base.value {
                Value::List(list) => (base.at, list),
                _ => return Ok(over),
            };
            if let Value::List(more) = over.value {
                list.extend(more);
            }
            Ok(Node::new(at, Value::List(list)))
        }
        (Value::Map(_) | Value::List(_), _) => Err(cannot(&base, &over, path)),
        _ => Ok(over),
    }
}

fn cannot(base: &Node, over: &Node, path: &[String]) -> Fault {
    let message = format!(
        "cannot override {} by {}; write !override before the value to replace it",
        base.kind(),
        over.kind()
    );
    Fault::new(over.at, path.join("."), message)
}

fn maps_or_fail(base: Node, over: Node, path: &mut Vec<String>) -> Result<Node, Fault> {
    if over.is_null() {
        return Ok(base);
    }
    if base.is_null() {
        return Ok(over);
    }
    let at = base.at;
    match (base.value, over.value) {
        (Value::Map(mut map), Value::Map(more)) => {
            maps(&mut map, more, path)?;
            Ok(Node::new(at, Value::Map(map)))
        }
        (base, value) => Err(cannot(&Node::new(at, base), &Node::new(over.at, value), path)),
    }
}

fn maps(map: &mut Map, more: Map, path: &mut Vec<String>) -> Result<(), Fault> {
    for (key, over) in more {
        if over.directive == Directive::Reset {
            map.shift_remove(&key);
            continue;
        }
        let Some(place) = map.get_mut(&key) else {
            map.insert(key, over);
            continue;
        };
        let at = place.at;
        let base = std::mem::replace(place, Node::new(at, Value::Null));
        path.push(key.clone());
        let merged = nodes(base, over, path)?;
        path.pop();
        map.insert(key, merged);
    }
    Ok(())
}

/// A list of names as a mapping with the value that stands for each.
fn named(node: Node, value: impl Fn(At) -> Node) -> Node {
    let at = node.at;
    match node.value {
        Value::List(list) => {
            let members = list
                .into_iter()
                .filter_map(|item| Some((item.as_str()?.to_owned(), value(item.at))));
            Node::new(at, Value::Map(members.collect()))
        }
        value => Node::new(at, value),
    }
}

/// A mapping as a list of `KEY=VALUE`, sorted; text as a list of one.
fn sequence(node: Node) -> Vec<Node> {
    match node.value {
        Value::List(list) => list,
        Value::Map(map) => {
            let mut list = Vec::new();
            for (key, value) in map {
                match &value.value {
                    Value::Null => list.push(Node::string(value.at, key)),
                    Value::List(items) => {
                        list.extend(items.iter().map(|item| pair(&key, item)));
                    }
                    _ => list.push(pair(&key, &value)),
                }
            }
            list.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
            list
        }
        Value::String(_) => vec![node],
        _ => Vec::new(),
    }
}

fn pair(key: &str, value: &Node) -> Node {
    Node::string(value.at, format!("{key}={}", value.printed().unwrap_or_default()))
}

fn sequences(base: Node, mut over: Node) -> Node {
    let at = base.at;
    let mut list = sequence(base);
    if let Value::Map(map) = &mut over.value {
        for (key, _) in map.iter().filter(|(_, item)| item.directive == Directive::Reset) {
            list.retain(|item| {
                item.as_str()
                    .is_none_or(|text| text.split('=').next() != Some(key))
            });
        }
        map.retain(|_, item| item.directive != Directive::Reset);
    }
    list.extend(sequence(over));
    Node::new(at, Value::List(list))
}

fn hosts(base: Node, over: Node) -> Node {
    let at = base.at;
    let mut list = sequence(base);
    for item in sequence(over) {
        if !list.iter().any(|known| known.value == item.value) {
            list.push(item);
        }
    }
    Node::new(at, Value::List(list))
}

/// Address pools are joined by their subnets.
fn pools(base: Node, over: Node, path: &mut Vec<String>) -> Result<Node, Fault> {
    let (at, over_at) = (base.at, over.at);
    let (Value::List(mut list), Value::List(more)) = (base.value, over.value) else {
        return Err(Fault::new(over_at, path.join("."), "a list of pools is expected"));
    };
    for item in more {
        let subnet = item.text("subnet").map(str::to_owned);
        let known = list
            .iter()
            .position(|pool| pool.text("subnet").map(str::to_owned) == subnet);
        match known {
            Some(index) => {
                let pool = std::mem::replace(&mut list[index], Node::map(item.at));
                list[index] = maps_or_fail(pool, item, path)?;
            }
            None => list.push(item),
        }
    }
    Ok(Node::new(at, Value::List(list)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::documents;

    fn merged(base: &str, over: &str) -> serde_json::Value {
        let read = |text: &str| documents(text, 0).unwrap().remove(0);
        let wrap = |text: &str| {
            read(&format!(
                "services:\n  x:\n{}",
                text.replace("\n", "\n    ").trim_end()
            ))
        };
        let mut node = merge(wrap(&format!("\n{base}")), wrap(&format!("\n{over}"))).unwrap();
        strip(&mut node);
        super::super::unique::enforce(&mut node).unwrap();
        node.get("services").unwrap().get("x").unwrap().to_json()
    }

    #[test]
    fn rules() {
        use serde_json::json;
        for (base, over, expected) in [
            ("image: a", "image: b", json!({"image": "b"})),
            ("command: [a, b]", "command: [c]", json!({"command": ["c"]})),
            ("expose: [1]", "expose: [2]", json!({"expose": [1, 2]})),
            (
                "environment: {A: 1, B: 2}",
                "environment: [B=3, C]",
                json!({"environment": ["A=1", "B=3", "C"]}),
            ),
            (
                "build: .",
                "build: {target: x}",
                json!({"build": {"context": ".", "target": "x"}}),
            ),
            (
                "depends_on: [a]",
                "depends_on: {b: {condition: service_healthy}}",
                json!({"depends_on": {"a": {"condition": "service_started", "required": true}, "b": {"condition": "service_healthy"}}}),
            ),
            (
                "networks: [a]",
                "networks: {a: {aliases: [x]}}",
                json!({"networks": {"a": {"aliases": ["x"]}}}),
            ),
            (
                "logging: {driver: a, options: {x: y}}",
                "logging: {driver: b}",
                json!({"logging": {"driver": "b"}}),
            ),
            (
                "volumes: ['a:/x']",
                "volumes: ['b:/x', 'c:/y']",
                json!({"volumes": ["b:/x", "c:/y"]}),
            ),
            ("ports: ['80:80']", "ports: !reset []", json!({})),
            (
                "ports: ['80:80']",
                "ports: !override ['81:81']",
                json!({"ports": ["81:81"]}),
            ),
            (
                "environment: {A: 1, B: 2}",
                "environment: {A: !reset null}",
                json!({"environment": ["B=2"]}),
            ),
            (
                "extra_hosts: {a: 1.1.1.1}",
                "extra_hosts: ['a=1.1.1.1', 'b=2.2.2.2']",
                json!({"extra_hosts": ["a=1.1.1.1", "b=2.2.2.2"]}),
            ),
        ] {
            assert_eq!(merged(base, over), expected, "{base} + {over}");
        }
    }

    #[test]
    fn kinds_must_fit() {
        let read = |text: &str| documents(text, 0).unwrap().remove(0);
        let fault = merge(
            read("services: {x: {ports: [1]}}"),
            read("services:\n  x:\n    ports: a\n"),
        )
        .unwrap_err();
        assert_eq!((fault.at.line, fault.path.as_str()), (3, "services.x.ports"));
    }
}
