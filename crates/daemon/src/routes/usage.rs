//! `GET /system/df`: what takes how much of the disk, in the two shapes it has.
//!
//! Lists of everything were all there was; from version 1.52 there are sums, and the lists are in them for who asks with
//! `verbose`. Who does not gets both: docker-py and others take the newest version unasked, and read the lists.

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};
use vessel_api::{BuildCache, DiskUsage, Usage};
use vessel_build::CacheRecord;
use vessel_engine::system::DiskUsageOptions;
use vessel_engine::time::rfc3339;

use crate::error::ApiError;
use crate::request::Request;
use crate::response::{self, Answer};
use crate::server::State;
use crate::version::ApiVersion;

/// The version that sums came with.
const SUMS: ApiVersion = ApiVersion::new(52);
/// What the lists are called without the sums.
const LISTS: [&str; 5] = ["LayersSize", "Images", "Containers", "Volumes", "BuildCache"];

/// With `vessel=1` also what else is on the disk.
pub async fn disk_usage(state: &Arc<State>, request: &Request) -> Answer {
    let mut options = DiskUsageOptions::default();
    for kind in request.query.all("type") {
        match kind {
            "container" => options.containers = true,
            "image" => options.images = true,
            "volume" => options.volumes = true,
            "build-cache" => options.build_cache = true,
            other => {
                return Err(ApiError::bad_request(format!(
                    "unknown object type: {other}: container, image, volume or build-cache is expected"
                )));
            }
        }
    }
    if request.query.get("type").is_none() {
        options = DiskUsageOptions::everything();
    }
    options.items = request.query.flag("vessel");
    let wanted = options;
    let mut usage = state.engine.disk_usage(options).await?;
    if wanted.build_cache
        && let Ok(builder) = state.builder()
    {
        let records = builder
            .cache_records()
            .await
            .map_err(|error| ApiError::internal(error.to_string()))?;
        usage.build_cache = records.into_iter().map(cache_record).collect();
    }
    if request.version < SUMS {
        return response::json(&usage);
    }
    let verbose = request.query.flag("verbose");
    add_sums(&mut usage, &wanted, verbose);
    let mut value = serde_json::to_value(&usage)
        .map_err(|error| ApiError::internal(format!("the answer could not be written as JSON: {error}")))?;
    if verbose && let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| !LISTS.contains(&name.as_str()));
    }
    response::json(&value)
}

/// The sums of what was asked for, with the lists in them if they are wanted.
fn add_sums(usage: &mut DiskUsage, wanted: &DiskUsageOptions, verbose: bool) {
    let items = |list: Value| match list {
        Value::Array(list) if verbose => list,
        _ => Vec::new(),
    };
    if wanted.images {
        // A size that was not measured is negative.
        let measured = |size: i64| size.max(0);
        let in_use = usage.images.iter().filter(|image| image.containers > 0);
        let used: i64 = in_use
            .clone()
            .map(|image| measured(image.size.saturating_sub(measured(image.shared_size))))
            .fold(0, i64::saturating_add);
        usage.image_usage = Some(Usage {
            active_count: count(in_use.count()),
            total_count: count(usage.images.len()),
            total_size: usage.layers_size,
            reclaimable: measured(usage.layers_size.saturating_sub(used)),
            items: items(json!(usage.images)),
        });
    }
    if wanted.containers {
        let active = ["running", "paused", "restarting"];
        usage.container_usage = Some(sums(
            usage.containers.iter().map(|container| {
                let size = container.size_rw;
                (size, active.contains(&container.state.as_str()))
            }),
            items(json!(usage.containers)),
        ));
    }
    if wanted.volumes {
        usage.volume_usage = Some(sums(
            usage.volumes.iter().map(|volume| {
                let data = volume.usage_data.as_ref();
                let size = data.map_or(0, |data| data.size);
                (size, data.is_some_and(|data| data.ref_count > 0))
            }),
            items(json!(usage.volumes)),
        ));
    }
    if wanted.build_cache {
        usage.build_cache_usage = Some(sums(
            usage.build_cache.iter().map(|record| {
                let size = if record.shared { 0 } else { record.size };
                (size, record.in_use)
            }),
            items(json!(usage.build_cache)),
        ));
    }
}

/// The sums over sizes, and whether each is in use.
fn sums(each: impl Iterator<Item = (i64, bool)>, items: Vec<Value>) -> Usage {
    let mut sums = Usage {
        items,
        ..Usage::default()
    };
    for (size, active) in each {
        // What was not measured is negative.
        let size = size.max(0);
        sums.total_count += 1;
        sums.total_size = sums.total_size.saturating_add(size);
        if active {
            sums.active_count += 1;
        } else {
            sums.reclaimable = sums.reclaimable.saturating_add(size);
        }
    }
    sums
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn cache_record(record: CacheRecord) -> BuildCache {
    let time = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        rfc3339(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    };
    BuildCache {
        id: record.id,
        kind: record.kind.to_owned(),
        description: record.description,
        in_use: record.in_use,
        shared: record.shared,
        size: i64::try_from(record.size).unwrap_or(i64::MAX),
        created_at: time(record.created),
        last_used_at: Some(time(record.last_used)),
        usage_count: i64::try_from(record.usage_count).unwrap_or(i64::MAX),
        ..BuildCache::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vessel_api::{ContainerSummary, ImageSummary, Volume, VolumeUsage};

    #[test]
    fn sums_are_those_of_the_lists() {
        let image = |containers, size, shared_size| ImageSummary {
            containers,
            size,
            shared_size,
            ..ImageSummary::default()
        };
        let container = |state: &str, size| ContainerSummary {
            state: state.to_owned(),
            size_rw: size,
            ..ContainerSummary::default()
        };
        let volume = |ref_count, size| Volume {
            usage_data: Some(VolumeUsage { ref_count, size }),
            ..Volume::default()
        };
        let mut usage = DiskUsage {
            layers_size: 100,
            images: vec![image(2, 60, 20), image(0, 50, 20), image(1, 7, -1)],
            containers: vec![
                container("running", 3),
                container("exited", 4),
                container("created", 0),
            ],
            volumes: vec![volume(1, 10), volume(0, 5), volume(0, -1)],
            ..DiskUsage::default()
        };
        let wanted = DiskUsageOptions {
            build_cache: false,
            ..DiskUsageOptions::everything()
        };
        add_sums(&mut usage, &wanted, true);
        let told = |usage: Option<Usage>| {
            let usage = usage.unwrap();
            (
                usage.active_count,
                usage.total_count,
                usage.total_size,
                usage.reclaimable,
                usage.items.len(),
            )
        };
        assert_eq!(told(usage.image_usage.take()), (2, 3, 100, 53, 3));
        assert_eq!(told(usage.container_usage.take()), (1, 3, 7, 4, 3));
        assert_eq!(told(usage.volume_usage.take()), (1, 3, 15, 5, 3));
        assert_eq!(usage.build_cache_usage, None);
        add_sums(&mut usage, &wanted, false);
        assert_eq!(told(usage.volume_usage), (1, 3, 15, 5, 0));
    }
}
