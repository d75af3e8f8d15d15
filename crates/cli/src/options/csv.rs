//! One line of comma-separated values (RFC 4180, as Go's `encoding/csv` reads it), for `--mount` and others.

/// Reads a line.
pub fn parse(line: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut field = String::new();
            let mut inside = quoted;
            loop {
                let at = inside
                    .find('"')
                    .ok_or_else(|| format!("a quote is missing in '{line}'"))?;
                field.push_str(&inside[..at]);
                inside = &inside[at + 1..];
                match inside.strip_prefix('"') {
                    Some(more) => {
                        field.push('"');
                        inside = more;
                    }
                    None => break,
                }
            }
            fields.push(field);
            match inside.strip_prefix(',') {
                Some(more) => rest = more,
                None if inside.is_empty() => return Ok(fields),
                None => return Err(format!("a comma is missing after a quote in '{line}'")),
            }
        } else {
            let (field, more) = match rest.split_once(',') {
                Some((field, more)) => (field, Some(more)),
                None => (rest, None),
            };
            if field.contains('"') {
                return Err(format!(
                    "a quote inside a field in '{line}'; the whole field has to be quoted"
                ));
            }
            fields.push(field.to_string());
            match more {
                Some(more) => rest = more,
                None => return Ok(fields),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines() {
        assert_eq!(parse("a,b=c,").unwrap(), ["a", "b=c", ""]);
        assert_eq!(parse("\"a,\"\"b\",c").unwrap(), ["a,\"b", "c"]);
        for wrong in ["\"a", "a\"b", "\"a\"b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn quoting_keeps_everything(fields in proptest::collection::vec("[a,\" ü]{0,6}", 1..5)) {
            let line: Vec<String> = fields.iter().map(|f| format!("\"{}\"", f.replace('"', "\"\""))).collect();
            prop_assert_eq!(parse(&line.join(",")).unwrap(), fields);
        }

        #[test]
        fn nothing_panics(line in "[a,\"]{0,20}") {
            let _ = parse(&line);
        }
    }
}
