//! What differs between two images: files as containers see them, and configurations.
//!
//! Two files are the same when type, content, mode, owner and extended attributes are; times do not count. Files that both
//! images have from the same layer are not looked at, those of equal size are read.

use serde_json::Value;
use vessel_api::{ChangedFile, ComparedImage, ConfigDifference, FileDifferences, ImageDifference, SizedFile};
use vessel_image::{FileKind, ImageConfig, LayerStack, StackFile};

use super::explain::shown;
use crate::{Engine, Error, Result, transfer};

struct Side {
    image: ComparedImage,
    config: ImageConfig,
    document: Value,
}

impl Engine {
    /// Compares two images.
    ///
    /// # Errors
    /// No such image; content that cannot be read.
    pub async fn image_diff(&self, from: &str, to: &str) -> Result<ImageDifference> {
        let from = self.side(from).await?;
        let to = self.side(to).await?;
        let content = self.images().content().clone();
        transfer::run(move || {
            let mut lease = content.lease();
            let (mut one, mut two) = (LayerStack::new(), LayerStack::new());
            for (stack, side) in [(&mut one, &from), (&mut two, &to)] {
                for chain in side.config.chain() {
                    lease.pin_layer(&chain);
                    stack.push(&content.layer_path(&chain))?;
                }
            }
            let (first, second) = (from.config.chain(), to.config.chain());
            let common: Vec<_> = first
                .iter()
                .zip(&second)
                .take_while(|(a, b)| a == b)
                .map(|(chain, _)| chain)
                .collect();
            let mut common_size = 0;
            for chain in &common {
                common_size += content.layer_size(chain)?;
            }
            Ok(ImageDifference {
                common_layers: common.len() as u64,
                common_size,
                files: files(&one, &two)?,
                config: configurations(&from.document, &to.document),
                from: from.image,
                to: to.image,
            })
        })
        .await
    }

    async fn side(&self, name: &str) -> Result<Side> {
        let found = self.find_image(name)?;
        let raw = self.image_document(&found.id).await?;
        let document: Value = serde_json::from_slice(&raw)
            .map_err(|error| Error::system(format!("the configuration of {name} cannot be read: {error}")))?;
        let config = ImageConfig::parse(&raw)?;
        Ok(Side {
            image: ComparedImage {
                name: found.name.unwrap_or_else(|| name.to_owned()),
                size: self.image_record(&found.id)?.size,
                layers: config.rootfs.diff_ids.len() as u64,
                id: found.id,
            },
            config,
            document,
        })
    }
}

fn files(one: &LayerStack, two: &LayerStack) -> Result<FileDifferences> {
    let mut out = FileDifferences::default();
    for (path, before) in one.files() {
        let Some(after) = two.files().get(path) else {
            out.deleted.push(sized(path, before));
            continue;
        };
        let what = what(one, two, path, before, after)?;
        if !what.is_empty() {
            out.changed.push(ChangedFile {
                path: shown(path, after.kind),
                from: before.size,
                to: after.size,
                what: what.into_iter().map(str::to_owned).collect(),
            });
        }
    }
    for (path, after) in two.files() {
        if !one.files().contains_key(path) {
            out.added.push(sized(path, after));
        }
    }
    Ok(out)
}

fn what(
    one: &LayerStack,
    two: &LayerStack,
    path: &[u8],
    before: &StackFile,
    after: &StackFile,
) -> Result<Vec<&'static str>> {
    let mut what = Vec::new();
    if before.mode & libc::S_IFMT != after.mode & libc::S_IFMT {
        what.push("type");
    } else {
        let (content, attributes) = one.same(path, before, two, after)?;
        if !content {
            what.push("content");
        }
        if !attributes {
            what.push("attributes");
        }
    }
    // The mode of a link means nothing.
    if after.kind != FileKind::Symlink && before.mode & 0o7777 != after.mode & 0o7777 {
        what.push("mode");
    }
    if (before.uid, before.gid) != (after.uid, after.gid) {
        what.push("owner");
    }
    Ok(what)
}

fn sized(path: &[u8], file: &StackFile) -> SizedFile {
    SizedFile {
        path: shown(path, file.kind),
        size: file.size,
    }
}

/// Field by field; variables and what has names of its own (labels, ports, volumes) one by one.
fn configurations(from: &Value, to: &Value) -> Vec<ConfigDifference> {
    let mut out = Vec::new();
    for field in ["architecture", "variant", "os", "author"] {
        compare(&mut out, field.to_owned(), &from[field], &to[field]);
    }
    let (from, to) = (&from["config"], &to["config"]);
    for field in keys(from, to) {
        let (before, after) = (&from[&field], &to[&field]);
        let (before, after) = if field == "Env" {
            (variables(before), variables(after))
        } else {
            (before.clone(), after.clone())
        };
        if before.is_object() || after.is_object() {
            for key in keys(&before, &after) {
                compare(&mut out, format!("{field}.{key}"), &before[&key], &after[&key]);
            }
        } else {
            compare(&mut out, field, &before, &after);
        }
    }
    out
}

fn keys(from: &Value, to: &Value) -> Vec<String> {
    let objects = [from, to].into_iter().filter_map(Value::as_object);
    let mut keys: Vec<String> = objects.flat_map(|object| object.keys().cloned()).collect();
    keys.sort();
    keys.dedup();
    keys
}

fn variables(list: &Value) -> Value {
    let lines = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    lines
        .map(|line| line.split_once('=').unwrap_or((line, "")))
        .map(|(key, value)| (key.to_owned(), Value::from(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn compare(out: &mut Vec<ConfigDifference>, field: String, from: &Value, to: &Value) {
    // What Go writes for a value that is not set, and what is not written, are the same.
    let unset = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    if from != to && !(unset(from) && unset(to)) {
        out.push(ConfigDifference {
            field,
            from: from.clone(),
            to: to.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn configurations_differ_field_by_field() {
        let from = json!({"architecture": "amd64", "config": {
            "Env": ["A=1", "B=2"], "Cmd": ["x"], "Labels": {"k": "v"}, "Volumes": null, "User": ""}});
        let to = json!({"architecture": "amd64", "config": {
            "Env": ["B=3", "A=1"], "Cmd": ["x"], "Labels": {}, "ExposedPorts": {"80/tcp": {}}}});
        let seen: Vec<_> = configurations(&from, &to)
            .into_iter()
            .map(|difference| (difference.field, difference.from, difference.to))
            .collect();
        assert_eq!(
            seen,
            [
                ("Env.B".to_owned(), json!("2"), json!("3")),
                ("ExposedPorts.80/tcp".to_owned(), Value::Null, json!({})),
                ("Labels.k".to_owned(), json!("v"), Value::Null),
            ]
        );
    }
}
