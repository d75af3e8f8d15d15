//! `vessel image diff`

use std::collections::HashMap;

use vessel_api::{ComparedImage, ConfigDifference, ImageDifference, SizedFile};

use super::FormatOption;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;
use crate::output::tabwriter::align_with;
use crate::output::template::Data;
use crate::output::text::{ellipsis, short_id};
use crate::output::units::human_size_digits;

/// Show how two images differ: files and configuration
///
/// Files are compared as a container sees them: type, content, mode, owner, extended attributes; times do not count. A: only
/// in the second image, D: only in the first, C: changed. A directory that only one of them has is one line.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    format: FormatOption,
    /// Everything in directories that only one image has
    #[arg(short, long)]
    all: bool,
    /// Do not cut anything short
    #[arg(long)]
    no_trunc: bool,
    /// The image to compare from
    #[arg(value_name = "IMAGE")]
    from: String,
    /// The image to compare to
    #[arg(value_name = "IMAGE")]
    to: String,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let difference = context.client()?.image_diff(&self.from, &self.to)?;
        if let Some(template) = self.format.template()? {
            let value = serde_json::to_value(&difference).map_err(Failure::new)?;
            output::print_line(&template.apply(&Data::new(&value)).map_err(Failure::new)?)?;
            return Ok(());
        }
        output::print(&self.text(&difference))?;
        Ok(())
    }
}

impl Args {
    fn text(&self, difference: &ImageDifference) -> String {
        let image = |image: &ComparedImage| {
            format!(
                "{} ({})\t{} in {}",
                printable(&image.name),
                short_id(&image.id),
                size(image.size),
                count(image.layers, "layer")
            )
        };
        let mut out = align_with(
            &format!(
                "From\t{}\nTo\t{}\nCommon\t{}\t{}\n",
                image(&difference.from),
                image(&difference.to),
                count(difference.common_layers, "layer"),
                size(difference.common_size)
            ),
            1,
        );
        let files = &difference.files;
        let total = |files: &[SizedFile]| size(files.iter().map(|file| file.size).sum());
        let (before, after) = files
            .changed
            .iter()
            .fold((0, 0), |(from, to), file| (from + file.from, to + file.to));
        out.push_str(&format!(
            "\n{} added ({}), {} deleted ({}), {} changed ({} to {})\n",
            files.added.len(),
            total(&files.added),
            files.deleted.len(),
            total(&files.deleted),
            files.changed.len(),
            size(before),
            size(after)
        ));
        let mut lines: Vec<(String, String)> = Vec::new();
        for (mark, list) in [("A", &files.added), ("D", &files.deleted)] {
            for (path, text) in self.folded(list) {
                let line = format!("{mark}\t{}\t{text}", printable(&path));
                lines.push((path, line));
            }
        }
        for file in &files.changed {
            let what = file.what.join(", ");
            let sizes = if file.from == file.to {
                size(file.to)
            } else {
                format!("{} to {}", size(file.from), size(file.to))
            };
            let line = format!("C\t{}\t{sizes}\t{what}", printable(&file.path));
            lines.push((file.path.clone(), line));
        }
        lines.sort();
        let lines: Vec<String> = lines.into_iter().map(|(_, line)| line + "\n").collect();
        out.push_str(&align_with(&lines.concat(), 1));
        if !difference.config.is_empty() {
            out.push_str("\nConfiguration\n");
            let lines = difference.config.iter().map(|item| self.setting(item));
            out.push_str(&align_with(&lines.collect::<String>(), 1));
        }
        out
    }

    /// Paths with what is to be said of them; directories stand for what is in them.
    fn folded(&self, files: &[SizedFile]) -> Vec<(String, String)> {
        let text = |file: &SizedFile| match file.path.ends_with('/') {
            true => String::new(),
            false => size(file.size),
        };
        if self.all {
            return files.iter().map(|file| (file.path.clone(), text(file))).collect();
        }
        let mut inside: HashMap<&str, (u64, u64)> = files
            .iter()
            .filter(|file| file.path.ends_with('/'))
            .map(|file| (file.path.as_str(), (0, 0)))
            .collect();
        let mut top = Vec::new();
        for file in files {
            let trimmed = file.path.trim_end_matches('/');
            let above = trimmed.match_indices('/').map(|(at, _)| &trimmed[..=at]);
            match above.into_iter().find(|directory| inside.contains_key(directory)) {
                Some(directory) => {
                    if let Some(sum) = inside.get_mut(directory)
                        && !file.path.ends_with('/')
                    {
                        *sum = (sum.0 + 1, sum.1 + file.size);
                    }
                }
                None => top.push(file),
            }
        }
        top.into_iter()
            .map(|file| {
                let text = match inside.get(file.path.as_str()) {
                    Some((0, _)) => "no files".to_string(),
                    Some((files, bytes)) => format!("{} in {}", size(*bytes), count(*files, "file")),
                    None => text(file),
                };
                (file.path.clone(), text)
            })
            .collect()
    }

    fn setting(&self, item: &ConfigDifference) -> String {
        let value = |value: &serde_json::Value| {
            let text = match value {
                serde_json::Value::Null => "none".to_string(),
                serde_json::Value::Object(map) if map.is_empty() => "set".to_string(),
                other => printable(&other.to_string()),
            };
            if self.no_trunc { text } else { ellipsis(&text, 60) }
        };
        let field = printable(&item.field);
        format!("{field}\t{}\tto {}\n", value(&item.from), value(&item.to))
    }
}

/// Text of an image that cannot move the cursor: control characters are escaped.
pub(super) fn printable(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_string();
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// `1 layer`, `2 layers`.
pub(super) fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

fn size(bytes: u64) -> String {
    human_size_digits(bytes as f64, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(all: bool) -> Args {
        Args {
            format: FormatOption {
                format: String::new(),
            },
            all,
            no_trunc: false,
            from: String::new(),
            to: String::new(),
        }
    }

    #[test]
    fn directories_stand_for_what_is_in_them() {
        let file = |path: &str, size| SizedFile {
            path: path.to_string(),
            size,
        };
        let files = [
            file("/new/", 0),
            file("/new-er", 7),
            file("/new/a", 1000),
            file("/new/d/", 0),
            file("/new/d/b", 500),
            file("/old/x", 3),
        ];
        let seen = args(false).folded(&files);
        let pair = |path: &str, text: &str| (path.to_string(), text.to_string());
        assert_eq!(
            seen,
            [
                pair("/new/", "1.5kB in 2 files"),
                pair("/new-er", "7B"),
                pair("/old/x", "3B")
            ]
        );
        assert_eq!(args(true).folded(&files).len(), 6);
    }

    #[test]
    fn names_of_files_do_not_reach_the_terminal_as_they_are() {
        assert_eq!(printable("/a\x1b[31m\tb"), "/a\\u{1b}[31m\\tb");
    }
}
