//! `vessel images`

use vessel_api::ImageSummary;

use super::pull::split_reference;
use super::{filters, images_tree, ps};
use crate::app::Run;
use crate::context::Context;
use crate::failure::Result;
use crate::output;
use crate::output::format::{Headers, Row, render};
use crate::output::text::short_id;
use crate::output::units::{ago, human_size, human_size_digits};

/// List images
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Intermediate images too
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Only some: NAME=VALUE
    #[arg(short, long, value_name = "filter")]
    filter: Vec<String>,
    /// table, json, or a Go template
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Do not cut anything short
    #[arg(long)]
    no_trunc: bool,
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Platforms and layers of each image
    #[arg(long, conflicts_with_all = ["digests", "format", "quiet"])]
    tree: bool,
    /// Only those of a repository
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
}

/// The fields of an image's row.
pub const HEADERS: &Headers = &[
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Containers", "CONTAINERS"),
];
const TABLE: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
const TABLE_DIGESTS: &str = "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let mut filters = filters(&self.filter)?;
        if let Some(reference) = &self.reference {
            filters.add("reference", reference);
        }
        let list = context.client()?.image_list(self.all, self.digests, &filters)?;
        if self.tree {
            let client = context.client()?;
            output::print(&images_tree::tree(client, &list, !self.no_trunc)?)?;
            return Ok(());
        }
        let format = match &self.format {
            Some(format) if !format.is_empty() => format.as_str(),
            _ if self.quiet => "{{.ID}}",
            _ => "table",
        };
        let wants_digest = self.digests || format.contains(".Digest");
        let mut rows = Vec::new();
        for image in &list {
            for name in names(image, wants_digest) {
                rows.push(row(image, &name, !self.no_trunc));
            }
        }
        let table = if self.digests { TABLE_DIGESTS } else { TABLE };
        output::print(&render(format, table, HEADERS, rows)?)?;
        Ok(())
    }
}

/// A row's repository, tag and digest.
pub type Name = (String, String, String);

/// The rows of an image: one for each tag, and for digests without a tag when they are asked for.
pub fn names(image: &ImageSummary, wants_digest: bool) -> Vec<Name> {
    const NONE: &str = "<none>";
    let known = |list: &[String]| -> Vec<(String, String)> {
        list.iter()
            .filter(|name| !name.starts_with(NONE))
            .map(|name| {
                let (repository, rest) = split_reference(name);
                (repository.to_string(), rest.unwrap_or(NONE).to_string())
            })
            .collect()
    };
    let (tags, digests) = (known(&image.repo_tags), known(&image.repo_digests));
    let mut out = Vec::new();
    for (repository, tag) in &tags {
        let own: Vec<_> = digests
            .iter()
            .filter(|(other, _)| wants_digest && other == repository)
            .collect();
        if own.is_empty() {
            out.push((repository.clone(), tag.clone(), NONE.to_string()));
        }
        for (_, digest) in own {
            out.push((repository.clone(), tag.clone(), digest.clone()));
        }
    }
    for (repository, digest) in &digests {
        if !tags.iter().any(|(other, _)| other == repository) {
            out.push((repository.clone(), NONE.to_string(), digest.clone()));
        }
    }
    if out.is_empty() {
        out.push((NONE.to_string(), NONE.to_string(), NONE.to_string()));
    }
    out
}

/// A row of the list.
pub fn row(image: &ImageSummary, name: &Name, truncate: bool) -> Row {
    let size = |size: i64| {
        if size < 0 {
            "N/A".to_string()
        } else {
            human_size_digits(size as f64, 3)
        }
    };
    let unique = if image.shared_size < 0 {
        -1
    } else {
        image.size - image.shared_size
    };
    Row::default()
        .text("ID", if truncate { short_id(&image.id) } else { &image.id })
        .text("Repository", &name.0)
        .text("Tag", &name.1)
        .text("Digest", &name.2)
        .text("CreatedSince", ago(image.created))
        .text("CreatedAt", ps::created_at(image.created))
        .text("Size", human_size_digits(image.size as f64, 3))
        .text("VirtualSize", human_size_digits(image.size as f64, 3))
        .text("SharedSize", size(image.shared_size))
        .text(
            "UniqueSize",
            if unique < 0 {
                "N/A".to_string()
            } else {
                human_size(unique as f64)
            },
        )
        .text(
            "Containers",
            if image.containers < 0 {
                "N/A".to_string()
            } else {
                image.containers.to_string()
            },
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let mut image = ImageSummary {
            repo_tags: vec!["a:1".into(), "a:2".into(), "r:5000/b:1".into()],
            repo_digests: vec!["a@sha256:0".into(), "c@sha256:1".into()],
            ..Default::default()
        };
        let shown = |image: &ImageSummary, digests| -> Vec<String> {
            names(image, digests)
                .into_iter()
                .map(|(r, t, d)| format!("{r}|{t}|{d}"))
                .collect()
        };
        assert_eq!(
            shown(&image, true),
            [
                "a|1|sha256:0",
                "a|2|sha256:0",
                "r:5000/b|1|<none>",
                "c|<none>|sha256:1"
            ]
        );
        image.repo_tags.clear();
        image.repo_digests.clear();
        assert_eq!(shown(&image, false), ["<none>|<none>|<none>"]);
        image.repo_tags.push("<none>:<none>".into());
        assert_eq!(shown(&image, false), ["<none>|<none>|<none>"]);
    }
}
