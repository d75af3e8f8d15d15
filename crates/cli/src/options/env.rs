//! Environment variables and labels, from options and files.

use std::collections::BTreeMap;

use crate::failure::words;

/// Reads `--env-file` and `--env`: a name alone takes its value from here, or is dropped when it has none.
pub fn environment(
    files: &[String],
    options: &[String],
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    for file in files {
        for line in read_lines(file)? {
            push(&line, &lookup, &mut out);
        }
    }
    for option in options {
        if option.is_empty() || option.starts_with('=') {
            return Err(format!("invalid environment variable: {option}"));
        }
        push(option, &lookup, &mut out);
    }
    Ok(out)
}

fn push(line: &str, lookup: &impl Fn(&str) -> Option<String>, out: &mut Vec<String>) {
    if line.contains('=') {
        out.push(line.to_string());
    } else if let Some(value) = lookup(line) {
        out.push(format!("{line}={value}"));
    }
}

/// Reads `--label-file` and `--label`.
pub fn labels(files: &[String], options: &[String]) -> Result<BTreeMap<String, String>, String> {
    let mut lines = Vec::new();
    for file in files {
        lines.extend(read_lines(file)?);
    }
    for option in options {
        if option.is_empty() || option.starts_with('=') {
            return Err(format!("invalid label '{option}': empty name"));
        }
        lines.push(option.clone());
    }
    Ok(to_map(&lines))
}

/// `name=value` each; a name alone has an empty value.
pub fn to_map(lines: &[String]) -> BTreeMap<String, String> {
    lines
        .iter()
        .map(|line| line.split_once('=').unwrap_or((line, "")))
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

fn read_lines(file: &str) -> Result<Vec<String>, String> {
    let bytes = std::fs::read(file).map_err(|error| format!("open {file}: {}", words(&error)))?;
    parse_lines(&bytes).map_err(|(line, reason)| format!("invalid env file ({file}): line {line}: {reason}"))
}

/// Lines of `NAME=value`; blank ones and those that begin with `#` are skipped. Values are taken as they are.
fn parse_lines(bytes: &[u8]) -> Result<Vec<String>, (usize, String)> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        (
            before.iter().filter(|byte| **byte == b'\n').count() + 1,
            "it is not UTF-8".to_string(),
        )
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut out = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split_once('=').map_or(line, |(name, _)| name);
        if name.contains(char::is_whitespace) {
            return Err((index + 1, format!("variable '{name}' contains whitespaces")));
        }
        if name.is_empty() {
            return Err((index + 1, format!("no variable name on line '{line}'")));
        }
        out.push(line.to_string());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lookup(name: &str) -> Option<String> {
        (name == "HOME").then(|| "/root".to_string())
    }

    #[test]
    fn options() {
        let options = ["A=b=c", "HOME", "NOPE", "E="].map(String::from);
        assert_eq!(
            environment(&[], &options, lookup).unwrap(),
            ["A=b=c", "HOME=/root", "E="]
        );
        assert!(environment(&[], &["".into()], lookup).is_err());
        assert!(environment(&[], &["=x".into()], lookup).is_err());
        assert_eq!(labels(&[], &["a".into(), "b=c=d".into()]).unwrap()["b"], "c=d");
    }

    #[test]
    fn files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "\u{feff}A=1\n# no\n\n  B=two words \r\nHOME\nQ=\"q\"\n").unwrap();
        let path = file.path().to_str().unwrap().to_string();
        let lines = environment(std::slice::from_ref(&path), &["A=2".into()], lookup).unwrap();
        assert_eq!(lines, ["A=1", "B=two words ", "HOME=/root", "Q=\"q\"", "A=2"]);
        for wrong in ["A b=c", "=x", "A\n\u{20}="] {
            std::fs::write(&file, wrong).unwrap();
            assert!(
                environment(std::slice::from_ref(&path), &[], lookup).is_err(),
                "{wrong:?}"
            );
        }
        assert!(
            environment(&["/no/such/file".into()], &[], lookup)
                .unwrap_err()
                .contains("no such file")
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = parse_lines(&bytes);
        }
    }
}
