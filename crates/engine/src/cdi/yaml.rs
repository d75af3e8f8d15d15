//! YAML as far as specifications need it: one document, as the values JSON has.
//!
//! Aliases are not taken: no tool that writes specifications uses them, and they are how a small file becomes a large tree.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// The deepest nesting; a specification has seven levels.
const MAX_DEPTH: usize = 32;

enum Open {
    List(Vec<Value>),
    Map(Map<String, Value>, Option<String>),
}

/// Reads a document.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parser = Parser::new_from_str(text);
    let mut stack: Vec<Open> = Vec::new();
    let mut document = None;
    while let Some(next) = parser.next_event() {
        let (event, span) =
            next.map_err(|error| format!("line {}: not YAML: {}", error.marker().line(), error.info()))?;
        let at = |what: &str| format!("line {}: {what}", span.start.line());
        let complete = match event {
            Event::Scalar(text, style, _, tag) => {
                let text_only = style != ScalarStyle::Plain
                    || tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                match text_only {
                    true => Value::String(text.into_owned()),
                    false => plain(&text),
                }
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                if stack.len() >= MAX_DEPTH {
                    return Err(at(&format!("nested more than {MAX_DEPTH} levels deep")));
                }
                stack.push(match event {
                    Event::SequenceStart(..) => Open::List(Vec::new()),
                    _ => Open::Map(Map::new(), None),
                });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match stack.pop() {
                Some(Open::List(list)) => Value::Array(list),
                Some(Open::Map(map, _)) => Value::Object(map),
                None => continue,
            },
            Event::Alias(_) => return Err(at("aliases are not taken")),
            _ => continue,
        };
        match stack.last_mut() {
            None if document.is_some() => return Err(at("a second document")),
            None => document = Some(complete),
            Some(Open::List(list)) => list.push(complete),
            Some(Open::Map(map, key)) => match (key.take(), complete) {
                (None, Value::String(name)) if map.contains_key(&name) => {
                    return Err(at(&format!("the key {name:?} is there twice")));
                }
                (None, Value::String(name)) => *key = Some(name),
                (None, _) => return Err(at("a key must be text")),
                (Some(name), value) => {
                    map.insert(name, value);
                }
            },
        }
    }
    Ok(document.unwrap_or_default())
}

/// What a scalar without quotes means.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = |text: &str, radix| {
        let good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        good.then(|| i64::from_str_radix(text, radix).ok()).flatten()
    };
    let number = match text.as_bytes() {
        [b'-', ..] => digits(&text[1..], 10).map(|value| -value),
        [b'0', b'x', ..] => digits(&text[2..], 16),
        [b'0', b'o', ..] => digits(&text[2..], 8),
        [b'0', _, ..] => digits(&text[1..], 8),
        _ => digits(text, 10),
    };
    number.map_or_else(|| Value::String(text.to_owned()), Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values() {
        let text = "a: 0666\nb: [0o17, 0x1F, -3, 'x', \"7\", !!str 7, 0.6.0, yes]\nc:\n- d: ~\n  e: |\n    two\n    lines\n";
        assert_eq!(
            parse(text).unwrap(),
            json!({"a": 0o666, "b": [15, 31, -3, "x", "7", "7", "0.6.0", "yes"], "c": [{"d": null, "e": "two\nlines\n"}]})
        );
    }

    #[test]
    fn what_is_refused() {
        for (text, why) in [
            ("a: &a [1]\nb: *a\n", "aliases"),
            ("a: 1\na: 2\n", "twice"),
            ("1: a\n", "a key must be text"),
            ("a: 1\n---\nb: 2\n", "second document"),
            ("a: [\n", "not YAML"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(
            parse(&format!("{}x", "- ".repeat(100)))
                .unwrap_err()
                .contains("nested")
        );
    }
}
