//! Text becomes trees.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::node::{At, Directive, Map, Node, Value};
use super::scalar::plain;
use super::{Fault, MAX_DEPTH, MAX_NODES};

/// The documents of a file. An empty file has none.
///
/// # Errors
/// It is not YAML, has a key twice or one that is not text, or is beyond the bounds.
pub fn documents(text: &str, file: u32) -> Result<Vec<Node>, Fault> {
    let mut builder = Builder {
        file,
        stack: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        documents: Vec::new(),
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| {
            let at = place(file, &Span::empty(*error.marker()));
            Fault::new(at, "", format!("this is not YAML: {}", error.info()))
        })?;
        builder.event(event, &span)?;
    }
    Ok(builder.documents)
}

fn place(file: u32, span: &Span) -> At {
    At {
        file,
        line: u32::try_from(span.start.line()).unwrap_or(u32::MAX),
        column: u32::try_from(span.start.col())
            .unwrap_or(u32::MAX)
            .saturating_add(1),
    }
}

/// A collection that is not complete yet.
struct Frame {
    open: Open,
    at: At,
    anchor: usize,
    directive: Directive,
    /// Nodes in it so far, itself included.
    size: usize,
    /// Levels below it.
    depth: usize,
}

enum Open {
    List(Vec<Node>),
    Map {
        map: Map,
        key: Option<(String, At)>,
        /// What `<<` names: a mapping, or several.
        merged: Option<Node>,
    },
}

struct Anchor {
    node: Node,
    size: usize,
    depth: usize,
}

struct Builder {
    file: u32,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Anchor>,
    nodes: usize,
    documents: Vec<Node>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Fault> {
        let at = place(self.file, span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let directive = directive(tag.as_deref());
                let value = match tag.as_deref().filter(|tag| tag.is_yaml_core_schema()) {
                    Some(tag) if tag.suffix == "str" => Value::String(text.into_owned()),
                    Some(_) => plain(&text),
                    None if style == ScalarStyle::Plain => plain(&text),
                    None => Value::String(text.into_owned()),
                };
                // Long texts count as several values: aliases copy them.
                let size = match &value {
                    Value::String(text) => 1 + text.len() / 64,
                    _ => 1,
                };
                let node = Node { value, at, directive };
                self.complete(node, anchor, size, 0)
            }
            Event::SequenceStart(anchor, tag) => {
                self.open(Open::List(Vec::new()), at, anchor, tag.as_deref())
            }
            Event::MappingStart(anchor, tag) => {
                let open = Open::Map {
                    map: Map::new(),
                    key: None,
                    merged: None,
                };
                self.open(open, at, anchor, tag.as_deref())
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.stack.pop() else {
                    return Ok(());
                };
                let value = match frame.open {
                    Open::List(list) => Value::List(list),
                    Open::Map { mut map, merged, .. } => {
                        if let Some(merged) = merged {
                            self.merge(&mut map, merged)?;
                        }
                        Value::Map(map)
                    }
                };
                let node = Node {
                    value,
                    at: frame.at,
                    directive: frame.directive,
                };
                self.complete(node, frame.anchor, frame.size, frame.depth + 1)
            }
            Event::Alias(anchor) => {
                let Some(known) = self.anchors.get(&anchor) else {
                    return Err(Fault::new(at, "", "an alias stands inside of what it stands for"));
                };
                let mut node = known.node.clone();
                node.at = at;
                let (size, depth) = (known.size, known.depth);
                self.complete(node, 0, size, depth)
            }
            Event::DocumentStart(_) => {
                self.anchors.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, open: Open, at: At, anchor: usize, tag: Option<&Tag>) -> Result<(), Fault> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(too_deep(at));
        }
        self.stack.push(Frame {
            open,
            at,
            anchor,
            directive: directive(tag),
            size: 1,
            depth: 0,
        });
        Ok(())
    }

    /// Takes what `<<` names into a mapping: what the mapping says itself comes first, then what is named first.
    fn merge(&mut self, map: &mut Map, merged: Node) -> Result<(), Fault> {
        let at = merged.at;
        let wrong = || Fault::new(at, "", "<< takes a mapping, an alias of one, or a list of them");
        let sources = match merged.value {
            Value::Map(_) => vec![merged],
            Value::List(list) => list,
            _ => return Err(wrong()),
        };
        for source in sources {
            let Value::Map(source) = source.value else {
                return Err(wrong());
            };
            for (key, node) in source {
                map.entry(key).or_insert(node);
            }
        }
        Ok(())
    }

    /// Puts a complete node where it belongs.
    fn complete(&mut self, mut node: Node, anchor: usize, size: usize, depth: usize) -> Result<(), Fault> {
        let at = node.at;
        if self.stack.len() + depth > MAX_DEPTH {
            return Err(too_deep(at));
        }
        // What is kept for an anchor counts, too: it is a copy.
        self.nodes = self
            .nodes
            .saturating_add(if anchor > 0 { size * 2 } else { size });
        if self.nodes > MAX_NODES {
            let message =
                format!("the file is too large: with its aliases it has more than {MAX_NODES} values");
            return Err(Fault::new(at, "", message));
        }
        if anchor > 0 {
            let node = node.clone();
            self.anchors.insert(anchor, Anchor { node, size, depth });
        }
        let Some(frame) = self.stack.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        frame.size += size;
        frame.depth = frame.depth.max(depth);
        match &mut frame.open {
            Open::List(list) => list.push(node),
            Open::Map { map, key, merged } => match key.take() {
                None => match node.value {
                    Value::String(text) => {
                        let twice = if text == "<<" {
                            merged.is_some()
                        } else {
                            map.contains_key(&text)
                        };
                        if twice {
                            let first = map.get(&text).map_or(0, |first| first.at.line);
                            let message = match first {
                                0 => format!("the key {text:?} is there twice"),
                                line => format!("the key {text:?} is there twice; first on line {line}"),
                            };
                            return Err(Fault::new(at, "", message));
                        }
                        *key = Some((text, at));
                    }
                    _ => {
                        let printed = node.printed().unwrap_or_default();
                        let message = format!(
                            "a key must be a string, but {printed:?} is {}; put it in quotes",
                            node.kind()
                        );
                        return Err(Fault::new(at, "", message));
                    }
                },
                Some((name, _)) if name == "<<" => *merged = Some(node),
                Some((name, key_at)) => {
                    node.at = key_at;
                    map.insert(name, node);
                }
            },
        }
        Ok(())
    }
}

fn too_deep(at: At) -> Fault {
    Fault::new(at, "", format!("it is nested more than {MAX_DEPTH} levels deep"))
}

fn directive(tag: Option<&Tag>) -> Directive {
    match tag {
        Some(tag) if tag.handle == "!" && tag.suffix == "reset" => Directive::Reset,
        Some(tag) if tag.handle == "!" && tag.suffix == "override" => Directive::Override,
        _ => Directive::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> serde_json::Value {
        documents(text, 0).unwrap()[0].to_json()
    }

    #[test]
    fn anchors_and_merge_keys() {
        let text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\nc:\n  <<: [{x: 5}, *a]\nd: *a\n";
        assert_eq!(
            one(text),
            serde_json::json!({"a": {"x": 1, "y": 2}, "b": {"y": 3, "x": 1}, "c": {"x": 5, "y": 2}, "d": {"x": 1, "y": 2}})
        );
    }

    #[test]
    fn what_is_wrong_has_a_place() {
        for (text, line, part) in [
            ("a: 1\na: 2\n", 2, "twice; first on line 1"),
            ("a:\n  1: 2\n", 2, "must be a string"),
            ("a: [\n", 2, "not YAML"),
            ("a: &x\n  b: *x\n", 2, "inside of what it stands for"),
            ("a:\n  <<: 3\n", 2, "<< takes"),
        ] {
            let fault = documents(text, 0).unwrap_err();
            assert_eq!(fault.at.line, line, "{text}: {fault:?}");
            assert!(fault.message.contains(part), "{text}: {fault:?}");
        }
    }

    #[test]
    fn bombs_are_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let alias = format!("*a{}", level - 1);
            let list = vec![alias; 9].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
        }
        assert!(documents(&text, 0).unwrap_err().message.contains("too large"));
        let deep = format!("{}x", "- ".repeat(100));
        assert!(documents(&deep, 0).unwrap_err().message.contains("nested"));
        assert!(documents(&"[".repeat(100_000), 0).is_err());
        // Depth counts through aliases.
        let mut text = String::from("a0: &a0 [x]\n");
        for level in 1..100 {
            text.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
        }
        assert!(documents(&text, 0).unwrap_err().message.contains("nested"));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[a-z0-9 \\n:&*<!{}\\[\\],'\"|>%-]{0,200}") {
            let _ = documents(&text, 0);
        }
    }
}
