//! Where the bytes below the engine's root are: what `system df -v` shows beyond Docker's tables.
//!
//! Sizes are blocks on disk, hard links counted once, as du(1) counts them: the items together are what du says of the
//! root. Docker's tables show lengths of files instead, and neither logs nor what the engine keeps for itself. What belongs
//! to nobody only because it comes or goes at this moment is looked at again, as `explain` does.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vessel_api::DiskItem;

use crate::explain::PAUSES;
use crate::removed::Thing;
use crate::{Context, Engine, Filters, Result, blocking};

/// What records say should be there, by names of directories.
struct Known {
    layers: HashSet<String>,
    /// Layers that the build cache has, or that belong to what is under way.
    kept: HashSet<String>,
    containers: HashSet<String>,
    volumes: HashSet<String>,
}

impl Engine {
    /// Everything below the root: what records explain by kind, what none explains one by one.
    ///
    /// # Errors
    /// When the root cannot be read.
    pub(crate) async fn disk_items(&self) -> Result<Vec<DiskItem>> {
        let mut items = self.look_at_disk().await?;
        let unknown = items.iter().filter(|item| !item.known);
        let before: HashSet<String> = unknown.map(|item| item.path.clone()).collect();
        if before.is_empty() {
            return Ok(items);
        }
        for pause in PAUSES {
            tokio::time::sleep(pause).await;
            let paths = before.clone();
            if blocking(move || Ok(paths.iter().all(|path| !Path::new(path).exists()))).await? {
                break;
            }
        }
        items = self.look_at_disk().await?;
        // What only this look does not know has just come.
        items.retain(|item| item.known || before.contains(&item.path));
        Ok(items)
    }

    async fn look_at_disk(&self) -> Result<Vec<DiskItem>> {
        let hex = |chain: &String| chain.rsplit(':').next().unwrap_or_default().to_owned();
        // First: what is under way now may be an image in a moment.
        let content = self.images().content();
        let leased = content.leased_layers();
        let unfinished = content.unfinished_layers();
        let kept = leased.iter().chain(&unfinished);
        let kept = kept.map(|chain| hex(&chain.to_string())).collect();
        let mut layers: HashSet<String> = HashSet::new();
        for (_, record) in self.images().all() {
            layers.extend(record.chain_ids.iter().map(hex));
        }
        let mut containers = HashSet::new();
        for container in self.containers() {
            layers.extend(container.record().layers.iter().map(hex));
            containers.insert(container.id().to_owned());
        }
        for entry in self.bin.all().values() {
            match &entry.thing {
                Thing::Container { record, .. } => layers.extend(record.layers.iter().map(hex)),
                Thing::Image { record, .. } => layers.extend(record.chain_ids.iter().map(hex)),
                Thing::Volume { .. } | Thing::Network { .. } => {}
            }
        }
        let volumes = self.volume_list(&Filters::default()).await?.volumes;
        let known = Known {
            layers,
            kept,
            containers,
            volumes: volumes.into_iter().map(|volume| volume.name).collect(),
        };
        let root = self.config().root.clone();
        blocking(move || items(&root, &known)).await
    }
}

fn items(root: &Path, known: &Known) -> Result<Vec<DiskItem>> {
    let mut meter = Meter::default();
    let mut items = vec![item(root, meter.own(root), "the directory itself", true)];
    let entries = fs::read_dir(root).context(|| format!("read {}", root.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        match &*entry.file_name().to_string_lossy() {
            "layers" => {
                let unused = "a layer that no image, no container and no build uses";
                let kept = "layers that the build cache alone has, or that are under way";
                let (mut used, mut others) = (meter.own(&path), 0);
                for layer in children(&path) {
                    let size = meter.tree(&layer);
                    if names(&known.layers, &layer) {
                        used += size;
                    } else if names(&known.kept, &layer) {
                        others += size;
                    } else {
                        items.push(item(&layer, size, unused, false));
                    }
                }
                items.push(item(
                    &path,
                    used,
                    "layers of images, containers and the bin",
                    true,
                ));
                items.push(item(&path, others, kept, true));
            }
            "volumes" => {
                let used = meter.split(&path, &known.volumes, "a directory of no volume", &mut items);
                items.push(item(&path, used, "volumes", true));
            }
            "containers" => {
                let unused = "a directory of no container";
                let (mut written, mut rest) = (0, meter.own(&path));
                for own in children(&path) {
                    if !names(&known.containers, &own) {
                        items.push(item(&own, meter.tree(&own), unused, false));
                        continue;
                    }
                    rest += meter.own(&own);
                    for part in children(&own) {
                        match part.ends_with("upper") {
                            true => written += meter.tree(&part),
                            false => rest += meter.tree(&part),
                        }
                    }
                }
                items.push(item(&path, written, "what containers wrote", true));
                items.push(item(&path, rest, "logs and work directories of containers", true));
            }
            "blobs" => items.push(item(
                &path,
                meter.tree(&path),
                "configurations and manifests of images",
                true,
            )),
            "removed" => items.push(item(
                &path,
                meter.tree(&path),
                "the bin: containers and volumes that were removed",
                true,
            )),
            "uploads" => items.push(item(
                &path,
                meter.tree(&path),
                "contexts of builds that run",
                true,
            )),
            "partial" => items.push(item(&path, meter.tree(&path), "downloads to be resumed", true)),
            "bin" => items.push(item(
                &path,
                meter.tree(&path),
                "the init program of containers",
                true,
            )),
            "build" => items.push(item(
                &path,
                meter.tree(&path),
                "the build cache: its index, cache mounts, contexts of clients",
                true,
            )),
            "init-layer" => items.push(item(
                &path,
                meter.tree(&path),
                "mount points in every container's root",
                true,
            )),
            name => {
                let own = name.starts_with("state") || name.starts_with("operations.log") || name == "lock";
                let purpose = if own {
                    "the engine's state"
                } else {
                    "not made by this engine"
                };
                items.push(item(&path, meter.tree(&path), purpose, own));
            }
        }
    }
    items.sort_by(|one, other| other.known.cmp(&one.known).then(one.path.cmp(&other.path)));
    Ok(items)
}

fn item(path: &Path, size: u64, purpose: &str, known: bool) -> DiskItem {
    DiskItem {
        path: path.display().to_string(),
        size,
        purpose: purpose.to_owned(),
        known,
    }
}

pub(crate) fn children(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

fn names(known: &HashSet<String>, path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| known.contains(name))
}

/// Measures. What cannot be read counts nothing.
#[derive(Default)]
pub(crate) struct Meter {
    /// Files with several names that were counted.
    linked: HashSet<(u64, u64)>,
}

impl Meter {
    /// A file, or a directory without what is in it.
    pub fn own(&mut self, path: &Path) -> u64 {
        match fs::symlink_metadata(path) {
            Ok(found)
                if found.is_dir() || found.nlink() == 1 || self.linked.insert((found.dev(), found.ino())) =>
            {
                found.blocks() * 512
            }
            _ => 0,
        }
    }

    /// A file, or a directory with all that is in it.
    pub fn tree(&mut self, path: &Path) -> u64 {
        let mut total = 0;
        let mut pending = vec![path.to_owned()];
        while let Some(path) = pending.pop() {
            total += self.own(&path);
            if fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                pending.extend(children(&path));
            }
        }
        total
    }

    /// A directory of things: what is in those that `known` names, and the directory itself. The others become items.
    fn split(
        &mut self,
        directory: &Path,
        known: &HashSet<String>,
        unknown: &str,
        items: &mut Vec<DiskItem>,
    ) -> u64 {
        let mut size = self.own(directory);
        for path in children(directory) {
            let tree = self.tree(&path);
            match names(known, &path) {
                true => size += tree,
                false => items.push(item(&path, tree, unknown, false)),
            }
        }
        size
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn set(names: &[&str]) -> HashSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_items_are_what_du_says() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        for directory in [
            "layers/aa/diff/sub",
            "layers/bb/diff",
            "layers/cc/diff",
            "containers/one/upper/etc",
            "containers/one/work/work",
            "containers/two",
            "volumes/data/_data",
            "volumes/lost",
            "blobs/sha256",
            "other",
        ] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let write = |path: &str, size: usize| fs::write(root.join(path), vec![b'x'; size]).unwrap();
        write("layers/aa/diff/file", 300_000);
        fs::hard_link(
            root.join("layers/aa/diff/file"),
            root.join("layers/aa/diff/sub/same"),
        )
        .unwrap();
        std::os::unix::fs::symlink("/", root.join("layers/aa/diff/root")).unwrap();
        write("layers/bb/diff/file", 100_000);
        write("layers/cc/diff/file", 200_000);
        write("containers/one/upper/etc/hosts", 50_000);
        write("containers/one/container.log", 70_000);
        write("containers/two/x", 1);
        write("volumes/data/_data/x", 20_000);
        write("blobs/sha256/x", 10_000);
        write("state.journal", 5_000);
        write("other/\u{1F4E6}", 1_000);
        let odd = std::ffi::OsStr::from_bytes(b"other/\xff");
        fs::write(root.join(odd), "not UTF-8").unwrap();
        let known = Known {
            layers: set(&["aa"]),
            kept: set(&["cc"]),
            containers: set(&["one"]),
            volumes: set(&["data"]),
        };
        let items = items(root, &known).unwrap();
        let du = std::process::Command::new("du")
            .args(["-s", "--block-size=1"])
            .arg(root)
            .output()
            .unwrap();
        let du = String::from_utf8(du.stdout).unwrap();
        let total: u64 = items.iter().map(|item| item.size).sum();
        assert_eq!(du.split('\t').next().unwrap(), total.to_string(), "{items:#?}");
        let unknown: Vec<&str> = items
            .iter()
            .filter(|item| !item.known)
            .map(|item| item.path.strip_prefix(root.to_str().unwrap()).unwrap())
            .collect();
        assert_eq!(
            unknown,
            ["/containers/two", "/layers/bb", "/other", "/volumes/lost"]
        );
        let written = items
            .iter()
            .find(|item| item.purpose == "what containers wrote")
            .unwrap();
        assert!((50_000..70_000).contains(&written.size), "{written:?}");
        let kept = items
            .iter()
            .find(|item| item.purpose.contains("build cache alone"))
            .unwrap();
        assert!((200_000..230_000).contains(&kept.size), "{kept:?}");
    }
}
