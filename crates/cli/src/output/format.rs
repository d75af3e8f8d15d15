//! Lists: as a table, as a template for each row, or as JSON.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::Value;

use super::tabwriter;
use super::template::{Data, Format};
use crate::failure::{Failure, Result};

/// A row: its fields by name.
#[derive(Debug, Clone, Default)]
pub struct Row(BTreeMap<Arc<str>, Value>);

impl Row {
    /// Adds a field.
    #[must_use]
    pub fn text(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.0.insert(name.into(), Value::String(value.as_ref().into()));
        self
    }

    /// Adds the labels that `.Label "name"` reads.
    #[must_use]
    pub fn labels(mut self, labels: &BTreeMap<String, String>) -> Self {
        let map = labels
            .iter()
            .map(|(name, value)| (Arc::from(name.as_str()), Value::String(value.as_str().into())))
            .collect();
        self.0.insert(LABELS.into(), Value::Map(Arc::new(map)));
        self
    }
}

/// The field `.Label` reads; not shown by `{{json .}}`.
const LABELS: &str = "LabelMap";

/// The fields of a list's rows and their headings.
pub type Headers = [(&'static str, &'static str)];

/// Renders rows as `--format` asks: `table`, `table TEMPLATE`, `json` or a template.
pub fn render(format: &str, default_table: &str, headers: &Headers, rows: Vec<Row>) -> Result<String> {
    let (format, table) = match format.strip_prefix("table") {
        Some("") => (default_table, true),
        Some(rest) => (rest, true),
        None if format == "json" => ("{{json .}}", false),
        None => (format, false),
    };
    let source = format.trim_matches(' ').replace("\\t", "\t").replace("\\n", "\n");
    let json_of_row = source.contains("json .}}") || source.contains("json . ");
    let template = Format::parse(&source).map_err(Failure::new)?;
    let mut out = String::new();
    if table {
        let mut heading = Row::default();
        for (name, header) in headers {
            heading = heading.text(name, header);
        }
        let heading = heading.labels_heading(&source);
        out.push_str(
            &template
                .apply_headers(&Data::from_value(heading))
                .map_err(Failure::new)?,
        );
        out.push('\n');
    }
    for mut row in rows {
        if json_of_row {
            row.0.remove(LABELS);
        }
        let data = Data::from_value(Value::Map(Arc::new(row.0)));
        out.push_str(
            &template
                .apply(&data)
                .map_err(|message| with_fields(message, headers))?,
        );
        out.push('\n');
    }
    Ok(if table { tabwriter::align(&out) } else { out })
}

/// Renders several lists at once, each of which a template knows by its name: `{{json .Images}}`.
pub fn render_lists<const N: usize>(format: &str, lists: [(&'static str, Vec<Row>); N]) -> Result<String> {
    let source = format.replace("\\t", "\t").replace("\\n", "\n");
    let template = Format::parse(&source).map_err(Failure::new)?;
    let rows = |rows: Vec<Row>| {
        let maps = rows.into_iter().map(|mut row| {
            row.0.remove(LABELS);
            Value::Map(Arc::new(row.0))
        });
        Value::List(maps.collect())
    };
    let all = lists.map(|(name, list)| (Arc::from(name), rows(list)));
    let data = Data::from_value(Value::Map(Arc::new(BTreeMap::from(all))));
    template.apply(&data).map_err(Failure::new)
}

fn with_fields(message: String, headers: &Headers) -> Failure {
    if !message.contains("no field") {
        return Failure::new(message);
    }
    let mut fields: Vec<String> = headers.iter().map(|(name, _)| format!(".{name}")).collect();
    fields.sort();
    Failure::new(message).with_hint(format!("the fields are {}", fields.join(" ")))
}

impl Row {
    /// The heading of `.Label "com.example.name"` is the label's last word.
    fn labels_heading(mut self, source: &str) -> Value {
        let mut map = BTreeMap::new();
        for part in source.split(".Label \"").skip(1) {
            if let Some((name, _)) = part.split_once('"') {
                let last = name.rsplit('.').next().unwrap_or(name).replace(['-', '_'], " ");
                map.insert(Arc::from(name), Value::String(last.as_str().into()));
            }
        }
        self.0.insert(LABELS.into(), Value::Map(Arc::new(map)));
        Value::Map(Arc::new(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: &Headers = &[("ID", "CONTAINER ID"), ("Names", "NAMES")];

    fn rows() -> Vec<Row> {
        let labels = BTreeMap::from([("a.b".to_string(), "c".to_string())]);
        vec![
            Row::default()
                .text("ID", "123456789012")
                .text("Names", "one")
                .labels(&labels),
            Row::default()
                .text("ID", "2")
                .text("Names", "two")
                .labels(&labels),
        ]
    }

    #[test]
    fn formats() {
        let default = "table {{.ID}}\t{{.Names}}";
        let default = default.strip_prefix("table ").unwrap();
        for (format, expected) in [
            (
                "table",
                "CONTAINER ID   NAMES\n123456789012   one\n2              two\n",
            ),
            (
                "table {{.Names}}\\t{{.ID}}",
                "NAMES     CONTAINER ID\none       123456789012\ntwo       2\n",
            ),
            ("table {{upper .Names}}", "NAMES\nONE\nTWO\n"),
            ("table {{.Label \"a.b\"}}", "b\nc\nc\n"),
            ("{{.Names}}\\t{{.Label \"a.b\"}}", "one\tc\ntwo\tc\n"),
            (
                "json",
                "{\"ID\":\"123456789012\",\"Names\":\"one\"}\n{\"ID\":\"2\",\"Names\":\"two\"}\n",
            ),
        ] {
            assert_eq!(
                render(format, default, HEADERS, rows()).unwrap(),
                expected,
                "{format}"
            );
        }
    }

    #[test]
    fn a_wrong_field_is_answered_with_the_right_ones() {
        let failure = render("{{.Name}}", "", HEADERS, rows()).unwrap_err();
        assert_eq!(failure.hint.unwrap(), "the fields are .ID .Names");
    }
}
