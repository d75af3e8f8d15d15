//! Trees become text, in block style, as `docker compose config` writes them.

use super::node::{Node, Value};
use super::scalar::plain;

/// A tree as YAML.
pub fn emit(node: &Node) -> String {
    let mut out = String::new();
    match &node.value {
        Value::Map(map) if !map.is_empty() => block(node, 0, &mut out),
        Value::List(list) if !list.is_empty() => block(node, 0, &mut out),
        _ => {
            inline(node, 0, &mut out);
            out.push('\n');
        }
    }
    out
}

/// A collection that is not empty, each line indented.
fn block(node: &Node, indent: usize, out: &mut String) {
    match &node.value {
        Value::Map(map) => {
            for (index, (key, value)) in map.iter().enumerate() {
                // The first line of a list's item stands behind its dash.
                if index > 0 || !out.ends_with("- ") {
                    pad(indent, out);
                }
                // A key stands on one line.
                if key.contains('\n') {
                    out.push_str(&double_quoted(key));
                } else {
                    out.push_str(&scalar(key, indent));
                }
                out.push(':');
                member(value, indent, out);
            }
        }
        Value::List(list) => {
            for (index, value) in list.iter().enumerate() {
                if index > 0 || !out.ends_with("- ") {
                    pad(indent, out);
                }
                out.push_str("- ");
                if is_block(value) {
                    block(value, indent + 2, out);
                } else {
                    inline(value, indent, out);
                    out.push('\n');
                }
            }
        }
        _ => {}
    }
}

fn is_block(node: &Node) -> bool {
    match &node.value {
        Value::Map(map) => !map.is_empty(),
        Value::List(list) => !list.is_empty(),
        _ => false,
    }
}

/// What follows a key.
fn member(value: &Node, indent: usize, out: &mut String) {
    if is_block(value) {
        out.push('\n');
        block(value, indent + 2, out);
    } else {
        out.push(' ');
        inline(value, indent, out);
        out.push('\n');
    }
}

fn inline(node: &Node, indent: usize, out: &mut String) {
    match &node.value {
        Value::Null => out.push_str("null"),
        Value::List(_) => out.push_str("[]"),
        Value::Map(_) => out.push_str("{}"),
        Value::String(text) => out.push_str(&scalar(text, indent)),
        Value::Float(number) if number.is_infinite() => {
            out.push_str(if *number > 0.0 { ".inf" } else { "-.inf" });
        }
        Value::Float(number) if number.is_nan() => out.push_str(".nan"),
        _ => out.push_str(&node.printed().unwrap_or_default()),
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// Text, quoted when it must be.
fn scalar(text: &str, indent: usize) -> String {
    if text.contains('\n') && is_literal(text) {
        return literal(text, indent);
    }
    if is_plain(text) {
        return text.to_owned();
    }
    let printable = text.chars().all(|c| c == '\t' || !c.is_control());
    let meant = plain(text);
    if !printable || text.contains('\'') && !text.contains('"') || !matches!(meant, Value::String(_)) {
        return double_quoted(text);
    }
    format!("'{}'", text.replace('\'', "''"))
}

/// Whether text can be a literal block: printable lines, the first of which does not begin with a space.
fn is_literal(text: &str) -> bool {
    let printable = text
        .chars()
        .all(|c| c == '\n' || c == '\t' || (!c.is_control() && c != '\u{feff}'));
    let first = text.lines().find(|line| !line.is_empty()).unwrap_or_default();
    printable
        && !first.is_empty()
        && !text.starts_with('\n')
        && !first.starts_with([' ', '\t'])
        && text.lines().all(|line| !line.ends_with([' ', '\t']))
}

fn literal(text: &str, indent: usize) -> String {
    let chomp = if !text.ends_with('\n') {
        "-"
    } else if text.ends_with("\n\n") {
        "+"
    } else {
        ""
    };
    let mut out = format!("|{chomp}");
    let body = text.strip_suffix('\n').unwrap_or(text);
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(indent + 2, &mut out);
            out.push_str(line);
        }
    }
    out
}

/// Whether text means itself without quotes.
fn is_plain(text: &str) -> bool {
    if !matches!(plain(text), Value::String(_)) {
        return false;
    }
    let special = |c: char| "-?:,[]{}#&*!|>'\"%@`=".contains(c);
    // A dash or a colon may begin a word when something stands right behind it.
    let begins_well = match text.as_bytes() {
        [b'-' | b'?' | b':', second, ..] => !second.is_ascii_whitespace() && *second != b'-',
        _ => !text.starts_with(special),
    };
    // Words that older readers take for booleans.
    let old = ["y", "n", "yes", "no", "on", "off", "<<", "---", "..."];
    begins_well
        && !old.contains(&text.to_ascii_lowercase().as_str())
        && !text.starts_with([' ', '\t'])
        && !text.ends_with([' ', '\t', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.contains(":\t")
        && !text.contains("\t#")
        && text.chars().all(|c| !c.is_control() && c != '\u{feff}')
        && !looks_like_time_or_sixty(text)
}

/// Dates, and what YAML 1.1 reads as a number of base 60 (`22:22`).
fn looks_like_time_or_sixty(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit() || c == '+')
        && text.contains([':', '-'])
        && text.chars().all(|c| c.is_ascii_digit() || "+-:._TZ ".contains(c))
}

fn double_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\0' => out.push_str("\\0"),
            c if c.is_control() || c == '\u{feff}' => match u32::from(c) {
                code @ 0..=0xff => out.push_str(&format!("\\x{code:02X}")),
                code => out.push_str(&format!("\\u{code:04X}")),
            },
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::super::{At, documents};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_looks_as_docker_writes_it() {
        let text = "services:\n  web:\n    command:\n      - sh\n      - -c\n      - |\n        echo a\n        echo b\n    \
                    environment: {}\n    image: busybox\n    ports:\n      - mode: ingress\n        published: \"8080\"\n        \
                    target: 80\n    x: null\n";
        let node = documents(text, 0).unwrap().remove(0);
        assert_eq!(emit(&node), text);
    }

    fn tree() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i32>().prop_map(Into::into),
            "[ -~\\n\\t\u{e9}\u{1}]{0,12}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                proptest::collection::btree_map("[ -~\\n]{1,8}", inner, 0..5).prop_map(|map| {
                    map.into_iter()
                        .filter(|(key, _)| key != "<<")
                        .collect::<serde_json::Map<_, _>>()
                        .into()
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(json in tree()) {
            let text = emit(&Node::from_json(At::file(0), &json));
            let read = documents(&text, 0).map_err(|fault| TestCaseError::fail(format!("{fault:?}\n{text}")))?;
            let read = read.first().map_or(serde_json::Value::Null, Node::to_json);
            prop_assert_eq!(read, json, "{}", text);
        }
    }
}
