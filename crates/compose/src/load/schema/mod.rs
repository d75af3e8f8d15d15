//! What a Compose file may say: the schema of the Compose specification, as a table of types.
//!
//! [`check`] refuses what does not fit, with its place. Where the specification takes a number or a boolean as text
//! (variables make text), the text must read as one; [`super::settle`] turns it into one by the same table ([`table`]).

mod table;

use std::collections::HashSet;

use super::units::{parse_bytes, parse_duration};
use crate::yaml::{Fault, Map, Node, Value, number};
pub(super) use table::MODEL;
use table::TEXTS;

/// What a value may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Type {
    /// Anything at all.
    Any,
    /// Text.
    Text,
    /// Text, or nothing.
    TextOrNull,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A boolean, or text that reads as one.
    Bool,
    /// An integer, or text that reads as one.
    Int,
    /// A number, or text that reads as one.
    Number,
    /// A number or text, kept as it is.
    NumberOrText,
    /// A boolean or text, kept as text.
    BoolOrText,
    /// Bytes: a number or a size.
    Bytes,
    /// A duration.
    Duration,
    /// Nothing, a shell's command line, or its words.
    Command,
    /// Text, or a list of texts.
    TextOrList,
    /// `KEY=VALUE` as a list or a mapping.
    Pairs,
    /// `host=address` as a list or a mapping, whose values may be lists.
    Hosts,
    /// Text or numbers by name.
    Options,
    /// A list.
    List(&'static Type),
    /// A list without two of the same.
    Set(&'static Type),
    /// A mapping with names of the user's own.
    Named(&'static Type),
    /// A mapping with any keys.
    Map(&'static Type),
    /// A mapping with these keys.
    Object(&'static Object),
    /// A mapping with these keys, or nothing.
    Maybe(&'static Object),
    /// The first that fits.
    Either(&'static [Type]),
}

/// A mapping with known keys.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) fields: &'static [(&'static str, Type)],
    pub(super) required: &'static [&'static str],
    /// Whether `x-…` may be there.
    pub(super) extensible: bool,
}

use Type::{
    Any, Bool, BoolOrText, Bytes, Command, Duration, Either, Hosts, Int, List, Maybe, Named, Number,
    NumberOrText, Options, Pairs, Set, Text, TextOrList, TextOrNull, Word,
};

impl Object {
    /// The type of a key.
    pub(super) fn field(&self, key: &str) -> Option<Type> {
        self.fields
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, kind)| *kind)
    }
}

/// Checks a model.
pub(super) fn check(model: &Node) -> Result<(), Fault> {
    value(model, Type::Object(&MODEL), &mut String::new())
}

fn wrong(node: &Node, path: &str, expected: &str) -> Fault {
    Fault::new(node.at, path, format!("must be {expected}, not {}", node.kind()))
}

fn value(node: &Node, kind: Type, path: &mut String) -> Result<(), Fault> {
    let fails = |expected: &str| Err(wrong(node, path, expected));
    match (kind, &node.value) {
        (Any, _)
        | (Text | TextOrNull | Command | TextOrList | NumberOrText | BoolOrText, Value::String(_))
        | (TextOrNull | Command, Value::Null)
        | (BoolOrText | Bool, Value::Bool(_))
        | (NumberOrText | Number | Bytes, Value::Int(_) | Value::Float(_))
        | (Int, Value::Int(_)) => Ok(()),
        (Text, _) => fails("a string; put it in quotes"),
        (TextOrNull, _) => fails("a string"),
        (Word(words), Value::String(text)) if words.contains(&text.as_str()) => Ok(()),
        (Word(words), Value::String(text)) => {
            let message = format!("must be one of {}, not {text:?}", words.join(", "));
            Err(Fault::new(node.at, path.as_str(), message))
        }
        (Word(words), _) => fails(&format!("one of {}", words.join(", "))),
        (Bool, Value::String(text)) if reads_as_bool(text).is_some() || has_variable(text) => Ok(()),
        (Bool, _) => fails("true or false"),
        (Int, Value::String(text))
            if matches!(number(text.trim()), Some(Value::Int(_))) || has_variable(text) =>
        {
            Ok(())
        }
        (Int, Value::Float(number)) if number.fract() == 0.0 => Ok(()),
        (Int, _) => fails("an integer"),
        (Number, Value::String(text)) if text.trim().parse::<f64>().is_ok() || has_variable(text) => Ok(()),
        (Number, _) => fails("a number"),
        (NumberOrText, _) => fails("a number or a string"),
        (BoolOrText, _) => fails("a boolean or a string"),
        (Bytes, Value::String(text)) if parse_bytes(text).is_some() || has_variable(text) => Ok(()),
        (Bytes, Value::String(text)) => {
            let message = format!("{text:?} is not a size; write 512m, 1gb or a number of bytes");
            Err(Fault::new(node.at, path.as_str(), message))
        }
        (Bytes, _) => fails("a size"),
        (Duration, Value::String(text)) if parse_duration(text).is_some() || has_variable(text) => Ok(()),
        (Duration, Value::String(text)) => {
            let message = format!("{text:?} is not a duration; write 10s or 1m30s");
            Err(Fault::new(node.at, path.as_str(), message))
        }
        (Duration, _) => fails("a duration with its unit, as 10s"),
        (Command | TextOrList, Value::List(_)) => value(node, List(&Text), path),
        (Command | TextOrList, _) => fails("a string or a list of strings"),
        (Pairs, Value::List(_)) => value(node, TEXTS, path),
        (Pairs, Value::Map(map)) => members(map, path, |_, item, path| match item.value {
            Value::List(_) | Value::Map(_) => {
                Err(wrong(item, path, "a string, a number, a boolean or nothing"))
            }
            _ => Ok(()),
        }),
        (Pairs, _) => fails("a mapping, or a list of KEY=VALUE"),
        (Hosts, Value::List(_)) => value(node, TEXTS, path),
        (Hosts, Value::Map(map)) => members(map, path, |_, item, path| value(item, TextOrList, path)),
        (Hosts, _) => fails("a mapping, or a list of HOST=ADDRESS"),
        (Options, Value::Map(map)) => members(map, path, |_, item, path| value(item, NumberOrText, path)),
        (List(inner) | Set(inner), Value::List(list)) => {
            let unique = matches!((kind, inner), (Set(_), Text));
            let mut known = HashSet::new();
            let length = path.len();
            for (index, item) in list.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                value(item, *inner, path)?;
                if let Value::String(text) = &item.value
                    && unique
                    && !known.insert(text.as_str())
                {
                    return Err(Fault::new(
                        item.at,
                        path.as_str(),
                        format!("{text:?} is there twice"),
                    ));
                }
                path.truncate(length);
            }
            Ok(())
        }
        (List(_) | Set(_), _) => fails("a list"),
        (Named(kind), Value::Map(map)) => members(map, path, |key, item, path| {
            if key.is_empty()
                || !key
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
            {
                let message = "a name consists of letters, digits, dots, hyphens and underscores";
                return Err(Fault::new(item.at, path.as_str(), message));
            }
            value(item, *kind, path)
        }),
        (Type::Map(kind), Value::Map(map)) => members(map, path, |_, item, path| value(item, *kind, path)),
        (Maybe(_), Value::Null) => Ok(()),
        (Type::Object(object) | Maybe(object), Value::Map(map)) => fields(node, object, map, path),
        (Options | Named(_) | Type::Map(_) | Type::Object(_) | Maybe(_), _) => fails("a mapping"),
        (Either(kinds), _) => either(node, kinds, path),
    }
}

/// The error of a choice is that of the kind which takes values of this shape; without one, what is expected.
fn either(node: &Node, kinds: &[Type], path: &mut String) -> Result<(), Fault> {
    let length = path.len();
    let mut found = None;
    for kind in kinds {
        match value(node, *kind, path) {
            Ok(()) => return Ok(()),
            Err(fault) => {
                path.truncate(length);
                let shape = matches!(
                    (kind, &node.value),
                    (
                        Type::Object(_) | Maybe(_) | Named(_) | Type::Map(_),
                        Value::Map(_)
                    ) | (List(_) | Set(_), Value::List(_))
                );
                if shape || found.is_none() {
                    found = Some(fault);
                }
            }
        }
    }
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    let own = found
        .as_ref()
        .is_some_and(|fault| fault.path == *path && fault.message.starts_with("must be"));
    match found {
        Some(fault) if !own => Err(fault),
        _ => Err(wrong(node, path, &names.join(" or "))),
    }
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Any => "anything",
            Text | TextOrNull | Word(_) | Command => "a string",
            Bool => "true or false",
            Int => "an integer",
            Number => "a number",
            NumberOrText => "a number or a string",
            BoolOrText => "a boolean or a string",
            Bytes => "a size",
            Duration => "a duration",
            TextOrList => "a string or a list of strings",
            List(_) | Set(_) => "a list",
            Pairs | Hosts | Options | Named(_) | Type::Map(_) | Type::Object(_) | Maybe(_) => "a mapping",
            Either(_) => "something else",
        }
    }
}

fn members(
    map: &Map,
    path: &mut String,
    mut check: impl FnMut(&str, &Node, &mut String) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let length = path.len();
    for (key, item) in map {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
        check(key, item, path)?;
        path.truncate(length);
    }
    Ok(())
}

fn fields(node: &Node, object: &Object, map: &Map, path: &mut String) -> Result<(), Fault> {
    let whole = path.clone();
    members(map, path, |key, item, path| match object.field(key) {
        Some(kind) => value(item, kind, path),
        None if object.extensible && key.starts_with("x-") => Ok(()),
        None => {
            let meant = nearest(key, object);
            let hint = meant
                .map(|name| format!("; did you mean {name}?"))
                .unwrap_or_default();
            let message = format!("additional properties '{key}' not allowed{hint}");
            Err(Fault::new(item.at, whole.as_str(), message))
        }
    })?;
    match object.required.iter().find(|name| !map.contains_key(**name)) {
        Some(missing) => Err(Fault::new(
            node.at,
            path.as_str(),
            format!("missing property '{missing}'"),
        )),
        None => Ok(()),
    }
}

/// The key that was probably meant.
fn nearest(key: &str, object: &Object) -> Option<&'static str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let known = || object.fields.iter().map(|(name, _)| *name);
    known().find(|name| plain(name) == plain(key)).or_else(|| {
        known()
            .filter(|name| distance(name, key) <= 2)
            .min_by_key(|name| distance(name, key))
    })
}

/// How many letters must be changed, put in or left out.
fn distance(a: &str, b: &str) -> usize {
    if b.len() > 40 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// What Docker takes for a boolean where a variable may have been.
pub(super) fn reads_as_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "y" | "yes" | "on" | "1" => Some(true),
        "false" | "n" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Without interpolation, variables stand where numbers will be.
fn has_variable(text: &str) -> bool {
    text.contains('$')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::documents;

    fn refused(text: &str) -> (u32, String, String) {
        let fault = check(&documents(text, 0).unwrap()[0]).unwrap_err();
        (fault.at.line, fault.path, fault.message)
    }

    #[test]
    fn what_is_wrong_has_line_path_and_advice() {
        for (text, line, path, part) in [
            (
                "services:\n  a:\n    imgae: x\n",
                3,
                "services.a",
                "'imgae' not allowed; did you mean image?",
            ),
            (
                "services:\n  a:\n    ports: 80\n",
                3,
                "services.a.ports",
                "must be a list, not a number",
            ),
            (
                "services:\n  a:\n    image: 3\n",
                3,
                "services.a.image",
                "must be a string; put it in quotes, not a number",
            ),
            (
                "services:\n  a:\n    depends_on:\n      b: {condition: healthy}\n",
                4,
                "services.a.depends_on.b.condition",
                "must be one of",
            ),
            (
                "services:\n  a:\n    volumes:\n      - {target: /x}\n",
                4,
                "services.a.volumes[0]",
                "missing property 'type'",
            ),
            (
                "services:\n  a:\n    build: [x]\n",
                3,
                "services.a.build",
                "must be a string or a mapping, not a list",
            ),
            ("services:\n  a b: {}\n", 2, "services.a b", "a name consists of"),
            ("servics: {}\n", 1, "", "did you mean services?"),
            (
                "services:\n  a:\n    cap_add: [X, X]\n",
                3,
                "services.a.cap_add[1]",
                "there twice",
            ),
            (
                "services:\n  a:\n    stop_grace_period: '10'\n",
                3,
                "services.a.stop_grace_period",
                "not a duration",
            ),
            (
                "services:\n  a:\n    mem_limit: 5x\n",
                3,
                "services.a.mem_limit",
                "not a size",
            ),
            (
                "services:\n  a:\n    privileged: maybe\n",
                3,
                "services.a.privileged",
                "must be true or false",
            ),
        ] {
            let (found_line, found_path, message) = refused(text);
            assert_eq!(
                (found_line, found_path.as_str()),
                (line, path),
                "{text}: {message}"
            );
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn what_may_be_said() {
        let text = "x-any: [1]\nservices:\n  a:\n    x-y: 1\n    build: {context: ., x-z: 1}\n    privileged: 'yes'\n    \
                    scale: '3'\n    command:\n    pid:\n    ports: [80, '81', {target: 82}]\n    networks: {n: , m: {aliases: [q]}}\n\
                    networks: {n: , m: {driver_opts: {a: 1}}}\n";
        check(&documents(text, 0).unwrap()[0]).unwrap();
    }
}
