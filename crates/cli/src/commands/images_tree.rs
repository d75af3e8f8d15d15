//! `vessel image ls --tree`

use vessel_api::{HistoryItem, ImageInspect, ImageSummary};
use vessel_client::Client;

use super::image_diff::printable;
use super::images::names;
use crate::failure::Result;
use crate::output::tabwriter::align_with;
use crate::output::text::{ellipsis, short_id};
use crate::output::units::human_size_digits;

/// The most of a step's command that is shown.
const COMMAND: usize = 60;

/// The images with their platforms and layers.
pub fn tree(client: &Client, list: &[ImageSummary], truncate: bool) -> Result<String> {
    let mut out = String::from("IMAGE\tID\tDISK USAGE\tUSED BY\tCREATED BY\n");
    for image in list {
        let inspect = client.image_inspect(&image.id)?;
        let history = client.image_history(&image.id, "")?;
        out.push_str(&rows(image, &inspect, &history, truncate));
    }
    Ok(align_with(&out, 1))
}

fn rows(image: &ImageSummary, inspect: &ImageInspect, history: &[HistoryItem], truncate: bool) -> String {
    let id = |id: &str| match truncate {
        true => short_id(id).to_string(),
        false => id.to_string(),
    };
    let size = |bytes: i64| human_size_digits(bytes as f64, 3);
    let mut out = String::new();
    for (repository, tag, _) in names(image, false) {
        let name = match (repository.as_str(), tag.as_str()) {
            ("<none>", _) => "<untagged>".to_string(),
            (repository, tag) => format!("{repository}:{tag}"),
        };
        let used = match image.containers {
            0 | -1 => String::new(),
            1 => "1 container".to_string(),
            n => format!("{n} containers"),
        };
        out.push_str(&format!(
            "{}\t{}\t{}\t{used}\t\n",
            printable(&name),
            id(&image.id),
            size(image.size)
        ));
    }
    let mut platform = format!("{}/{}", inspect.os, inspect.architecture);
    if !inspect.variant.is_empty() {
        platform = format!("{platform}/{}", inspect.variant);
    }
    out.push_str(&format!(
        "└─ {}\t{}\t{}\t\t\n",
        printable(&platform),
        id(&image.id),
        size(image.size)
    ));
    let layers = &inspect.root_fs.layers;
    // Oldest first, as the layers are. Steps without files may have a layer or none: sizes do not tell.
    let mut steps = history.iter().rev().filter(|step| step.size > 0);
    let exact = history.iter().filter(|step| step.size > 0).count() == layers.len();
    for (at, layer) in layers.iter().enumerate() {
        let branch = if at + 1 == layers.len() {
            "└─"
        } else {
            "├─"
        };
        let step = steps.next().filter(|_| exact);
        let by = step.map_or_else(String::new, |step| printable(&step.created_by.replace('\t', " ")));
        let by = if truncate { ellipsis(&by, COMMAND) } else { by };
        let bytes = step.map_or_else(String::new, |step| size(step.size));
        out.push_str(&format!("   {branch} {}\t\t{bytes}\t\t{by}\n", id(layer)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use vessel_api::RootFs;

    #[test]
    fn an_image_with_its_platform_and_layers() {
        let image = ImageSummary {
            id: format!("sha256:{}", "a".repeat(64)),
            repo_tags: vec!["x:1".into()],
            size: 1500,
            containers: 1,
            ..ImageSummary::default()
        };
        let inspect = ImageInspect {
            os: "linux".into(),
            architecture: "arm64".into(),
            variant: "v8".into(),
            root_fs: RootFs {
                layers: vec![
                    format!("sha256:{}", "b".repeat(64)),
                    format!("sha256:{}", "c".repeat(64)),
                ],
                ..RootFs::default()
            },
            ..ImageInspect::default()
        };
        let step = |by: &str, size| HistoryItem {
            created_by: by.into(),
            size,
            ..HistoryItem::default()
        };
        let history = [step("RUN x", 500), step("ENV y", 0), step("base", 1000)];
        let text = align_with(&rows(&image, &inspect, &history, true), 1);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "x:1 aaaaaaaaaaaa 1.5kB 1 container",
                "└─ linux/arm64/v8 aaaaaaaaaaaa 1.5kB",
                "├─ bbbbbbbbbbbb 1kB base",
                "└─ cccccccccccc 500B RUN x",
            ]
        );
    }
}
