//! Go templates for `--format`, with the functions Docker adds to Go's own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gotmpl::{FuncMap, MissingKey, Template, TemplateError, Value};

/// JSON as template data. Go's structures keep the order of their fields when they are written as JSON
/// again; the engine's maps are sorted, so the order is remembered beside them.
#[derive(Debug, Default)]
pub struct Data {
    root: Option<Value>,
    orders: Arc<Orders>,
}

/// The keys of an object in their order, by the address of its map, which lives as long as [`Data`].
type Orders = HashMap<usize, Vec<Arc<str>>>;

impl Data {
    /// Takes over a JSON value.
    pub fn new(json: &serde_json::Value) -> Self {
        let mut orders = Orders::new();
        let root = convert(json, false, &mut orders);
        Self {
            root: Some(root),
            orders: Arc::new(orders),
        }
    }

    /// Takes over a template value.
    pub fn from_value(value: Value) -> Self {
        Self {
            root: Some(value),
            orders: Arc::default(),
        }
    }

    fn root(&self) -> Value {
        self.root.clone().unwrap_or(Value::Nil)
    }
}

/// Objects whose keys are not fields but names that people and programs chose.
const MAPS: &[&str] = &[
    "Annotations",
    "Attributes",
    "AuxiliaryAddresses",
    "Containers",
    "Data",
    "Details",
    "DriverOpts",
    "ExposedPorts",
    "IndexConfigs",
    "Labels",
    "Networks",
    "Options",
    "PortBindings",
    "Ports",
    "Runtimes",
    "StorageOpt",
    "Sysctls",
    "Tmpfs",
    "Volumes",
];

/// The name of a field in Go, where templates may use it, when it is not the one in JSON: `ID` for `Id`,
/// `TimeNano` for `timeNano`.
fn go_name(json: &str) -> Option<String> {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(first) = rest.chars().next() {
        let end = rest[first.len_utf8()..]
            .find(|c: char| c.is_uppercase())
            .map_or(rest.len(), |at| at + first.len_utf8());
        let (word, more) = rest.split_at(end);
        match word {
            "Id" | "Ip" | "Api" | "Cpu" | "Dns" | "Http" | "Https" => out.push_str(&word.to_uppercase()),
            "Ids" => out.push_str("IDs"),
            "Cpus" => out.push_str("CPUs"),
            _ => out.push_str(word),
        }
        rest = more;
    }
    if let Some(first) = out.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    match out.as_str() {
        "Id" => out = "ID".to_string(),
        "CpusetCPUs" => out = "CpusetCpus".to_string(),
        _ => {}
    }
    (out != json).then_some(out)
}

fn convert(json: &serde_json::Value, is_map: bool, orders: &mut Orders) -> Value {
    match json {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::Int(value),
            (None, Some(value)) => Value::Uint(value),
            _ => Value::Float(number.as_f64().unwrap_or_default()),
        },
        serde_json::Value::String(text) => Value::String(text.as_str().into()),
        serde_json::Value::Array(list) => {
            Value::List(list.iter().map(|value| convert(value, false, orders)).collect())
        }
        serde_json::Value::Object(members) => {
            let mut order = Vec::with_capacity(members.len());
            let mut map = BTreeMap::new();
            for (name, member) in members {
                let value = convert(member, MAPS.contains(&name.as_str()), orders);
                if let Some(alias) = go_name(name).filter(|alias| !is_map && !members.contains_key(alias)) {
                    // Not in the order, and so not in the JSON of the whole.
                    map.insert(Arc::from(alias.as_str()), value.clone());
                }
                let name: Arc<str> = name.as_str().into();
                order.push(name.clone());
                map.insert(name, value);
            }
            let map = Arc::new(map);
            orders.insert(Arc::as_ptr(&map) as usize, order);
            Value::Map(map)
        }
    }
}

/// Writes a value as JSON, without escaping HTML.
fn to_json(value: &Value, orders: &Orders, out: &mut String) {
    match value {
        Value::Nil | Value::Function(_) => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Int(value) => out.push_str(&value.to_string()),
        Value::Uint(value) => out.push_str(&value.to_string()),
        Value::Float(value) => out.push_str(&serde_json::Value::from(*value).to_string()),
        Value::String(text) => out.push_str(&serde_json::Value::from(text.as_ref()).to_string()),
        Value::List(list) => {
            out.push('[');
            for (index, value) in list.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                to_json(value, orders, out);
            }
            out.push(']');
        }
        Value::Map(map) => {
            out.push('{');
            let sorted: Vec<_>;
            let order = match orders.get(&(Arc::as_ptr(map) as usize)) {
                Some(order) => order,
                None => {
                    sorted = map.keys().cloned().collect();
                    &sorted
                }
            };
            let mut first = true;
            for name in order {
                let Some(value) = map.get(name) else { continue };
                if matches!(value, Value::Function(_)) {
                    continue;
                }
                if !std::mem::take(&mut first) {
                    out.push(',');
                }
                out.push_str(&serde_json::Value::from(name.as_ref()).to_string());
                out.push(':');
                to_json(value, orders, out);
            }
            out.push('}');
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.to_string(),
        other => other.to_string(),
    }
}

fn argument<'a>(name: &str, args: &'a [Value], index: usize) -> Result<&'a Value, TemplateError> {
    args.get(index).ok_or_else(|| TemplateError::ArgCount {
        name: name.to_string(),
        expected: index + 1,
        got: args.len(),
    })
}

type Function = fn(&[Value]) -> Result<Value, TemplateError>;

fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut start = true;
    for c in s.chars() {
        if start {
            out.extend(c.to_uppercase())
        } else {
            out.push(c)
        }
        start = !(c.is_alphanumeric() || c == '_' || c == '\'');
    }
    out
}

fn functions(orders: Arc<Orders>) -> FuncMap {
    let plain: [(&'static str, Function); 8] = [
        ("lower", |args| {
            Ok(text(argument("lower", args, 0)?)
                .to_lowercase()
                .as_str()
                .into_value())
        }),
        ("upper", |args| {
            Ok(text(argument("upper", args, 0)?)
                .to_uppercase()
                .as_str()
                .into_value())
        }),
        ("title", |args| {
            Ok(title(&text(argument("title", args, 0)?)).as_str().into_value())
        }),
        ("split", |args| {
            let (subject, separator) = (
                text(argument("split", args, 0)?),
                text(argument("split", args, 1)?),
            );
            let parts: Vec<Value> = if separator.is_empty() {
                subject
                    .chars()
                    .map(|c| c.to_string().as_str().into_value())
                    .collect()
            } else {
                subject.split(&separator).map(IntoValue::into_value).collect()
            };
            Ok(Value::List(parts.into()))
        }),
        ("join", |args| {
            let separator = text(argument("join", args, 1)?);
            match argument("join", args, 0)? {
                Value::List(list) => {
                    let parts: Vec<String> = list.iter().map(text).collect();
                    Ok(parts.join(&separator).as_str().into_value())
                }
                Value::Nil => Ok("".into_value()),
                other => Err(TemplateError::TypeMismatch {
                    expected: "list",
                    got: other.type_name(),
                }),
            }
        }),
        ("pad", |args| {
            let subject = text(argument("pad", args, 0)?);
            let width = |index| -> Result<usize, TemplateError> {
                let width = argument("pad", args, index)?.as_int().unwrap_or(0);
                Ok(usize::try_from(width).unwrap_or(0).min(4096))
            };
            let (before, after) = (width(1)?, width(2)?);
            if subject.is_empty() {
                return Ok("".into_value());
            }
            Ok(format!("{}{subject}{}", " ".repeat(before), " ".repeat(after))
                .as_str()
                .into_value())
        }),
        ("truncate", |args| {
            let subject = text(argument("truncate", args, 0)?);
            let length = usize::try_from(argument("truncate", args, 1)?.as_int().unwrap_or(0)).unwrap_or(0);
            Ok(subject
                .chars()
                .take(length)
                .collect::<String>()
                .as_str()
                .into_value())
        }),
        // `.Label "name"` of a list's rows is rewritten to this: see [`prepare`].
        ("label", |args| {
            let key = text(argument("label", args, 1)?);
            Ok(match argument("label", args, 0)? {
                Value::Map(labels) => labels
                    .get(key.as_str())
                    .cloned()
                    .unwrap_or_else(|| "".into_value()),
                _ => "".into_value(),
            })
        }),
    ];
    let mut map = FuncMap::new();
    for (name, function) in plain {
        map.insert(name.into(), Arc::new(function));
    }
    map.insert(
        "json".into(),
        Arc::new(move |args: &[Value]| {
            let mut out = String::new();
            to_json(argument("json", args, 0)?, &orders, &mut out);
            Ok(out.as_str().into_value())
        }),
    );
    map
}

/// In the headers of a table the functions that change text leave it alone.
fn header_functions() -> FuncMap {
    let mut map = functions(Arc::default());
    for name in [
        "json", "lower", "upper", "title", "truncate", "split", "join", "pad",
    ] {
        map.insert(
            name.into(),
            Arc::new(|args: &[Value]| Ok(args.first().cloned().unwrap_or(Value::Nil))),
        );
    }
    map
}

trait IntoValue {
    fn into_value(self) -> Value;
}

impl IntoValue for &str {
    fn into_value(self) -> Value {
        Value::String(self.into())
    }
}

/// The engine has no methods with arguments, and Docker has one: `.Label "name"`.
fn prepare(source: &str) -> String {
    const METHOD: &str = ".Label ";
    if !source.contains(METHOD) {
        return source.to_string();
    }
    let mut out = String::with_capacity(source.len() + 32);
    let mut rest = source;
    while let Some(at) = rest.find("{{") {
        let end = rest[at..].find("}}").map_or(rest.len(), |end| at + end);
        out.push_str(&rest[..at]);
        out.push_str(
            &rest[at..end]
                .replace("$.Label ", "label $.LabelMap ")
                .replace(METHOD, "label .LabelMap "),
        );
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// A template that was understood.
#[derive(Debug)]
pub struct Format {
    source: String,
}

impl Format {
    /// Reads a template.
    pub fn parse(source: &str) -> Result<Self, String> {
        let source = prepare(source);
        match Template::new("").funcs(functions(Arc::default())).parse(&source) {
            Ok(_) => Ok(Self { source }),
            Err(error) => Err(format!("template parsing error: {error}")),
        }
    }

    /// Applies it. A field that does not exist is an error; a missing member of a map that users fill is
    /// `<no value>`, as in Go.
    pub fn apply(&self, data: &Data) -> Result<String, String> {
        let strict = self.execute(functions(data.orders.clone()), MissingKey::Error, data);
        match strict {
            Err(TemplateError::MissingKey { .. }) if self.reads_user_maps() => {
                self.execute(functions(data.orders.clone()), MissingKey::Invalid, data)
            }
            other => other,
        }
        .map_err(|error| describe(&error))
    }

    /// Applies it to a table's headers.
    pub fn apply_headers(&self, headers: &Data) -> Result<String, String> {
        self.execute(header_functions(), MissingKey::Invalid, headers)
            .map_err(|error| describe(&error))
    }

    fn execute(&self, functions: FuncMap, missing: MissingKey, data: &Data) -> Result<String, TemplateError> {
        Template::new("")
            .missing_key(missing)
            .funcs(functions)
            .parse(&self.source)?
            .execute_to_string(&data.root())
    }

    fn reads_user_maps(&self) -> bool {
        [
            ".Labels.",
            ".Annotations.",
            ".Options.",
            ".Sysctls.",
            ".Tmpfs.",
            ".Networks.",
            ".Attributes.",
            ".Ports.",
        ]
        .iter()
        .any(|map| self.source.contains(map))
    }
}

fn describe(error: &TemplateError) -> String {
    match error {
        TemplateError::MissingKey { key } => format!("template parsing error: there is no field {key}"),
        other => format!("template parsing error: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn apply(template: &str, json: serde_json::Value) -> Result<String, String> {
        Format::parse(template)?.apply(&Data::new(&json))
    }

    #[test]
    fn docker_functions() {
        let data =
            json!({"Z": 1, "A": {"b": [1, null, "x<y"], "a": 1.5}, "L": ["p", "q"], "S": "one Two", "E": ""});
        for (template, expected) in [
            (
                "{{json .}}",
                r#"{"Z":1,"A":{"b":[1,null,"x<y"],"a":1.5},"L":["p","q"],"S":"one Two","E":""}"#,
            ),
            ("{{json .A.b}}", r#"[1,null,"x<y"]"#),
            ("{{join .L \", \"}}", "p, q"),
            (
                "{{lower .S}} {{.S | upper}} {{title .S}}",
                "one two ONE TWO One Two",
            ),
            ("{{index (split .S \" \") 1}}", "Two"),
            ("[{{pad .S 1 2}}][{{pad .E 1 2}}]", "[ one Two  ][]"),
            ("{{truncate .S 3}}", "one"),
            ("{{range $i, $v := .L}}{{$i}}={{$v}} {{end}}", "0=p 1=q "),
            ("{{with .A}}{{.a}}{{end}}", "1.5"),
            ("{{println .S}}", "one Two\n"),
            ("{{if eq .Z 1}}yes{{end}}", "yes"),
            ("{{printf \"%05d\" .Z}}", "00001"),
        ] {
            assert_eq!(
                apply(template, data.clone()).as_deref(),
                Ok(expected),
                "{template}"
            );
        }
    }

    #[test]
    fn missing_fields() {
        let data = json!({"Config": {"Labels": {"a": "b"}}});
        assert_eq!(apply("{{.Config.Labels.a}}", data.clone()).unwrap(), "b");
        assert_eq!(
            apply("{{.Config.Labels.nope}}", data.clone()).unwrap(),
            "<no value>"
        );
        assert!(apply("{{.Nope}}", data).unwrap_err().contains("Nope"));
    }

    #[test]
    fn names_of_go() {
        let data = json!({"Id": "x", "timeNano": 1, "HostIp": "i", "NanoCpus": 2, "CpusetCpus": "", "Labels": {"Id": "y"}});
        assert_eq!(
            apply(
                "{{.ID}} {{.Id}} {{.TimeNano}} {{.HostIP}} {{.NanoCPUs}}{{.CpusetCpus}}",
                data.clone()
            )
            .unwrap(),
            "x x 1 i 2"
        );
        assert_eq!(apply("{{json .}}", data.clone()).unwrap(), data.to_string());
        assert_eq!(
            apply("{{range $k, $v := .Labels}}{{$k}}{{end}}", data).unwrap(),
            "Id"
        );
        assert_eq!(go_name("ApiVersion").as_deref(), Some("APIVersion"));
        assert_eq!(go_name("MinAPIVersion"), None);
        assert_eq!(go_name("CpusetCpus"), None);
    }

    #[test]
    fn labels_of_rows() {
        let data = json!({"LabelMap": {"a.b": "c"}});
        assert_eq!(
            apply("{{.Label \"a.b\"}}.Label x{{.Label \"no\"}}", data).unwrap(),
            "c.Label x"
        );
    }

    #[test]
    fn broken_templates() {
        for template in ["{{", "{{.A", "{{nope .}}", "{{if}}{{end}}"] {
            assert!(
                Format::parse(template).is_err() || apply(template, json!({})).is_err(),
                "{template}"
            );
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(template in "[{}.a|( )\"json$:=]{0,30}") {
            let _ = apply(&template, json!({"a": "b"}));
            let _ = apply(&format!("{{{{{template}}}}}"), json!({"a": "b"}));
        }
    }
}
