//! `vessel system df`

use vessel_api::{BinList, BuildCache, ContainerSummary, DiskItem, DiskUsage};

use super::{images, ps, volume};
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;
use crate::output::format::{Headers, Row, render, render_lists};
use crate::output::text::short_id;
use crate::output::units::{ago, human_size};

/// Show what takes space on the disk
#[derive(Debug, clap::Args)]
pub struct Args {
    /// table, json, or a Go template
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    format: String,
    /// Everything one by one
    #[arg(short, long)]
    verbose: bool,
}

const HEADERS: &Headers = &[
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];
const TABLE: &str = "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let usage = context.client()?.disk_usage(self.verbose)?;
        if self.verbose && self.format == "json" {
            let value = serde_json::to_string(&usage).map_err(Failure::new)?;
            output::print_line(&value)?;
            return Ok(());
        }
        let text = if self.verbose && !self.format.is_empty() {
            render_lists(&self.format, lists(&usage, false))?
        } else if self.verbose {
            verbose(&usage)?
        } else {
            let format = if self.format.is_empty() {
                "table"
            } else {
                &self.format
            };
            let mut rows: Vec<Row> = summary(&usage).iter().map(Kind::row).collect();
            // Another daemon has none.
            if let Ok(bin) = context.client()?.bin()
                && !bin.items.is_empty()
            {
                rows.push(bin_kind(&bin).row());
            }
            render(format, TABLE, HEADERS, rows)?
        };
        output::print(&text)?;
        Ok(())
    }
}

/// A kind of thing that takes space.
#[derive(Debug, PartialEq)]
struct Kind {
    name: &'static str,
    total: usize,
    active: usize,
    size: i64,
    reclaimable: i64,
    /// Whether the share is shown too.
    share: bool,
}

impl Kind {
    fn row(&self) -> Row {
        let reclaimable = human_size(self.reclaimable as f64);
        let reclaimable = if self.share && self.size > 0 {
            // Widened, since a size times a hundred may not fit.
            format!(
                "{reclaimable} ({}%)",
                i128::from(self.reclaimable) * 100 / i128::from(self.size)
            )
        } else {
            reclaimable
        };
        Row::default()
            .text("Type", self.name)
            .text("TotalCount", self.total.to_string())
            .text("Active", self.active.to_string())
            .text("Size", human_size(self.size as f64))
            .text("Reclaimable", reclaimable)
    }
}

fn bin_kind(bin: &BinList) -> Kind {
    let size = i64::try_from(bin.size).unwrap_or(i64::MAX);
    Kind {
        name: "Bin",
        total: bin.items.len(),
        active: 0,
        size,
        reclaimable: size,
        share: false,
    }
}

fn is_active(container: &ContainerSummary) -> bool {
    matches!(container.state.as_str(), "running" | "paused" | "restarting")
}

fn summary(usage: &DiskUsage) -> [Kind; 4] {
    let used: i64 = usage
        .images
        .iter()
        .filter(|image| image.containers > 0 && image.size >= 0 && image.shared_size >= 0)
        .map(|image| image.size - image.shared_size)
        .sum();
    let container_size = |active: bool| -> i64 {
        usage
            .containers
            .iter()
            .filter(|c| active || !is_active(c))
            .map(|c| c.size_rw)
            .sum()
    };
    let volumes = usage
        .volumes
        .iter()
        .filter_map(|volume| volume.usage_data.as_ref());
    let volume_size = |unused: bool| -> i64 {
        volumes
            .clone()
            .filter(|u| u.size >= 0 && (!unused || u.ref_count == 0))
            .map(|u| u.size)
            .sum()
    };
    let cache_size = |unused: bool| -> i64 {
        usage
            .build_cache
            .iter()
            .filter(|record| !(record.shared || unused && record.in_use))
            .map(|r| r.size)
            .sum()
    };
    [
        Kind {
            name: "Images",
            total: usage.images.len(),
            active: usage.images.iter().filter(|image| image.containers > 0).count(),
            size: usage.layers_size,
            reclaimable: usage.layers_size - used,
            share: true,
        },
        Kind {
            name: "Containers",
            total: usage.containers.len(),
            active: usage
                .containers
                .iter()
                .filter(|container| is_active(container))
                .count(),
            size: container_size(true),
            reclaimable: container_size(false),
            share: true,
        },
        Kind {
            name: "Local Volumes",
            total: usage.volumes.len(),
            active: volumes.clone().filter(|usage| usage.ref_count > 0).count(),
            size: volume_size(false),
            reclaimable: volume_size(true),
            share: true,
        },
        Kind {
            name: "Build Cache",
            total: usage.build_cache.len(),
            active: usage.build_cache.iter().filter(|record| record.in_use).count(),
            size: cache_size(false),
            reclaimable: cache_size(true),
            share: false,
        },
    ]
}

/// Everything one by one, by the names templates know it by.
fn lists(usage: &DiskUsage, truncate: bool) -> [(&'static str, Vec<Row>); 4] {
    let mut rows = Vec::new();
    for image in &usage.images {
        for name in images::names(image, false) {
            rows.push(images::row(image, &name, truncate));
        }
    }
    let container = |container| ps::row_without_virtual_size(container, truncate);
    [
        ("Images", rows),
        ("Containers", usage.containers.iter().map(container).collect()),
        ("Volumes", usage.volumes.iter().map(volume::row).collect()),
        ("BuildCache", usage.build_cache.iter().map(cache_row).collect()),
    ]
}

fn verbose(usage: &DiskUsage) -> Result<String> {
    let [image_rows, containers, volumes, build_cache] = lists(usage, true).map(|(_, rows)| rows);
    let mut out = String::from("Images space usage:\n\n");
    out.push_str(&render(
        "table",
        "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}",
        images::HEADERS,
        image_rows,
    )?);
    out.push_str("\nContainers space usage:\n\n");
    out.push_str(&render(
        "table",
        "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}",
        ps::HEADERS,
        containers,
    )?);
    out.push_str("\nLocal Volumes space usage:\n\n");
    out.push_str(&render(
        "table",
        "{{.Name}}\t{{.Links}}\t{{.Size}}",
        volume::HEADERS,
        volumes,
    )?);
    let cache: i64 = usage
        .build_cache
        .iter()
        .filter(|record| !record.shared)
        .map(|record| record.size)
        .sum();
    out.push_str(&format!("\nBuild cache usage: {}\n\n", human_size(cache as f64)));
    const CACHE: &Headers = &[
        ("ID", "CACHE ID"),
        ("CacheType", "CACHE TYPE"),
        ("Size", "SIZE"),
        ("CreatedSince", "CREATED"),
        ("LastUsedSince", "LAST USED"),
        ("UsageCount", "USAGE"),
        ("Shared", "SHARED"),
    ];
    out.push_str(&render(
        "table",
        "{{.ID}}\t{{.CacheType}}\t{{.Size}}\t{{.CreatedSince}}\t{{.LastUsedSince}}\t{{.UsageCount}}\t{{.Shared}}",
        CACHE,
        build_cache,
    )?);
    if !usage.vessel_items.is_empty() {
        let total: u64 = usage.vessel_items.iter().map(|item| item.size).sum();
        let total = human_size(total as f64);
        out.push_str(&format!("\nDisk space usage: {total}\n\n"));
        const ITEMS: &Headers = &[
            ("Path", "PATH"),
            ("Size", "SIZE"),
            ("Purpose", "PURPOSE"),
            ("Known", "KNOWN"),
        ];
        out.push_str(&render(
            "table",
            "{{.Path}}\t{{.Size}}\t{{.Known}}\t{{.Purpose}}",
            ITEMS,
            usage.vessel_items.iter().map(item_row).collect(),
        )?);
    }
    Ok(out)
}

fn item_row(item: &DiskItem) -> Row {
    Row::default()
        .text("Path", &item.path)
        .text("Size", human_size(item.size as f64))
        .text("Known", item.known.to_string())
        .text("Purpose", &item.purpose)
}

fn cache_row(record: &BuildCache) -> Row {
    let since = |text: &str| {
        text.parse::<jiff::Timestamp>()
            .map(|time| ago(time.as_second()))
            .unwrap_or_default()
    };
    Row::default()
        .text("ID", short_id(&record.id))
        .text("CacheType", &record.kind)
        .text("Size", human_size(record.size as f64))
        .text("CreatedSince", since(&record.created_at))
        .text(
            "LastUsedSince",
            record.last_used_at.as_deref().map(since).unwrap_or_default(),
        )
        .text("UsageCount", record.usage_count.to_string())
        .text("Shared", record.shared.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vessel_api::{ImageSummary, Volume, VolumeUsage};

    #[test]
    fn sums() {
        let image = |containers, size, shared_size| ImageSummary {
            containers,
            size,
            shared_size,
            ..Default::default()
        };
        let container = |state: &str, size_rw| ContainerSummary {
            state: state.into(),
            size_rw,
            ..Default::default()
        };
        let volume = |ref_count, size| Volume {
            usage_data: Some(VolumeUsage { ref_count, size }),
            ..Default::default()
        };
        let usage = DiskUsage {
            layers_size: 1000,
            images: vec![image(1, 600, 100), image(0, 500, 100)],
            containers: vec![container("running", 10), container("exited", 20)],
            volumes: vec![volume(1, 5), volume(0, 7), volume(0, -1)],
            ..Default::default()
        };
        let [images, containers, volumes, cache] = summary(&usage);
        assert_eq!(
            (images.total, images.active, images.size, images.reclaimable),
            (2, 1, 1000, 500)
        );
        assert_eq!(
            (containers.active, containers.size, containers.reclaimable),
            (1, 30, 20)
        );
        assert_eq!(
            (volumes.total, volumes.active, volumes.size, volumes.reclaimable),
            (3, 1, 12, 7)
        );
        assert_eq!(cache.total, 0);
        let said = render_lists(
            "{{len .Images}} {{range .Containers}}{{.Size}} {{end}}{{json .BuildCache}}",
            lists(&usage, false),
        );
        assert_eq!(said.unwrap(), "2 10B 20B []");
        let table = render("table", TABLE, HEADERS, vec![images.row(), cache.row()]).unwrap();
        assert!(
            table.contains("Images        2         1         1kB       500B (50%)\n"),
            "{table}"
        );
        assert!(
            table.contains("Build Cache   0         0         0B        0B\n"),
            "{table}"
        );
    }
}
