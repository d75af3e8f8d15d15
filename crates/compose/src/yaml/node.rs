//! The tree.

use indexmap::IndexMap;

/// A mapping, in the order of the file.
pub type Map = IndexMap<String, Node>;

/// A place in a file: a member of a mapping stands where its key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Which file, by the number the loader gave it.
    pub file: u32,
    /// From 1; 0 for no place in particular.
    pub line: u32,
    /// From 1.
    pub column: u32,
}

impl At {
    /// Somewhere in a file.
    pub fn file(file: u32) -> Self {
        Self {
            file,
            line: 0,
            column: 0,
        }
    }
}

/// What a tag asks of the merge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Directive {
    /// Nothing: the rules apply.
    #[default]
    None,
    /// `!reset`: the value is gone.
    Reset,
    /// `!override`: this replaces what was.
    Override,
}

/// A node.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where it stands.
    pub at: At,
    /// What it asks of the merge.
    pub directive: Directive,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// Another number.
    Float(f64),
    /// Text.
    String(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping.
    Map(Map),
}

impl Node {
    /// A node without a directive.
    pub fn new(at: At, value: Value) -> Self {
        Self {
            value,
            at,
            directive: Directive::None,
        }
    }

    /// Text.
    pub fn string(at: At, text: impl Into<String>) -> Self {
        Self::new(at, Value::String(text.into()))
    }

    /// An empty mapping.
    pub fn map(at: At) -> Self {
        Self::new(at, Value::Map(Map::new()))
    }

    /// The text, when it is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The mapping, when it is one.
    pub fn as_map(&self) -> Option<&Map> {
        match &self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The mapping, when it is one.
    pub fn as_map_mut(&mut self) -> Option<&mut Map> {
        match &mut self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The sequence, when it is one.
    pub fn as_list(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// The sequence, when it is one.
    pub fn as_list_mut(&mut self) -> Option<&mut Vec<Node>> {
        match &mut self.value {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// Whether it is nothing.
    pub fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    /// A member of a mapping.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_map()?.get(key)
    }

    /// A member of a mapping.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        self.as_map_mut()?.get_mut(key)
    }

    /// Text of a member of a mapping.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// What kind it is, for people.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::String(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// A scalar as text, as Go prints it; `None` for lists and mappings.
    pub fn printed(&self) -> Option<String> {
        Some(match &self.value {
            Value::Null => String::new(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => float(*value),
            Value::String(text) => text.clone(),
            Value::List(_) | Value::Map(_) => return None,
        })
    }

    /// The same as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Float(value) => serde_json::Number::from_f64(*value)
                .map_or_else(|| float(*value).into(), serde_json::Value::Number),
            Value::String(text) => text.as_str().into(),
            Value::List(list) => list.iter().map(Node::to_json).collect(),
            Value::Map(map) => map
                .iter()
                .map(|(key, node)| (key.clone(), node.to_json()))
                .collect(),
        }
    }

    /// A tree made of JSON, all at one place.
    pub fn from_json(at: At, json: &serde_json::Value) -> Self {
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(value) => Value::Int(value),
                None => Value::Float(number.as_f64().unwrap_or_default()),
            },
            serde_json::Value::String(text) => Value::String(text.clone()),
            serde_json::Value::Array(list) => {
                Value::List(list.iter().map(|item| Self::from_json(at, item)).collect())
            }
            serde_json::Value::Object(map) => Value::Map(
                map.iter()
                    .map(|(key, item)| (key.clone(), Self::from_json(at, item)))
                    .collect(),
            ),
        };
        Self::new(at, value)
    }
}

/// A number as Go's `%v` prints it: whole ones without a point.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if value != 0.0 && (value.abs() >= 1e21 || value.abs() < 1e-4) {
        let text = format!("{value:e}");
        // Go writes at least two digits of the exponent, with its sign.
        if let Some((digits, exponent)) = text.split_once('e') {
            let (sign, number) = match exponent.strip_prefix('-') {
                Some(number) => ('-', number),
                None => ('+', exponent),
            };
            return format!("{digits}e{sign}{number:0>2}");
        }
        return text;
    }
    value.to_string()
}
