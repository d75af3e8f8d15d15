//! What is below root and run directory.
//!
//! Sizes are blocks on disk, hard links counted once: together they are what du(1) says of both directories.

use std::path::Path;

use vessel_api::ExplainedItem;

use super::facts::{Facts, Owner};
use super::{known, unknown};
use crate::Result;
use crate::disk::{Meter, children};
use crate::error::Context;
use crate::paths::Paths;

/// Reads both directories.
pub(super) fn explain(paths: &Paths, facts: &Facts, items: &mut Vec<ExplainedItem>) -> Result<()> {
    let mut look = Look {
        facts,
        items,
        meter: Meter::default(),
    };
    look.root(&paths.root)?;
    // With `run` below `root` everything is counted once all the same.
    look.run(&paths.run)
}

struct Look<'a> {
    facts: &'a Facts,
    items: &'a mut Vec<ExplainedItem>,
    meter: Meter,
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

impl Look<'_> {
    fn add(&mut self, path: &Path, size: u64, owner: &Owner, purpose: &str) {
        let item = known(
            "file",
            path.display().to_string(),
            &owner.name,
            purpose,
            owner.free.clone(),
        );
        self.items.push(ExplainedItem { size, ..item });
    }

    fn tree(&mut self, path: &Path, owner: &Owner, purpose: &str) {
        let size = self.meter.tree(path);
        self.add(path, size, owner, purpose);
    }

    /// A directory without what is in it.
    fn own(&mut self, path: &Path, purpose: &str) {
        let size = self.meter.own(path);
        self.add(path, size, &Owner::engine(), purpose);
    }

    fn stray(&mut self, path: &Path, purpose: &str) {
        let size = self.meter.tree(path);
        let item = unknown("file", path.display().to_string(), purpose);
        self.items.push(ExplainedItem { size, ..item });
    }

    /// A directory of things, each of which some owner has.
    fn each<'b>(
        &mut self,
        directory: &Path,
        what: &str,
        purpose: &str,
        stray: &str,
        owner: impl Fn(&str) -> Option<&'b Owner>,
    ) {
        self.own(directory, what);
        for path in children(directory) {
            match owner(&name_of(&path)) {
                Some(owner) => self.tree(&path, owner, purpose),
                None => self.stray(&path, stray),
            }
        }
    }

    fn root(&mut self, root: &Path) -> Result<()> {
        std::fs::read_dir(root).context(|| format!("read {}", root.display()))?;
        self.own(root, "the engine's directory");
        let facts = self.facts;
        for path in children(root) {
            match name_of(&path).as_str() {
                "layers" => self.each(
                    &path,
                    "layers of images",
                    "a layer",
                    "a layer that nothing uses; the daemon's next start removes it",
                    |name| facts.layers.get(name),
                ),
                "blobs" => self.blobs(&path),
                "volumes" => self.each(
                    &path,
                    "volumes",
                    "a volume's files",
                    "a directory of no volume",
                    |name| facts.volumes.get(name),
                ),
                "containers" => self.containers(&path),
                "removed" => self.each(
                    &path,
                    "the bin",
                    "removed, and kept for a while: vessel undo brings it back",
                    "a directory of the bin without an entry; the daemon's next start removes it",
                    |name| facts.removed.get(name),
                ),
                "build" => self.build(&path),
                "partial" => self.tree(
                    &path,
                    &Owner::new(
                        "pulls that were cut",
                        "vessel pull again, or wait for a day and a start of the daemon",
                    ),
                    "downloads to be resumed",
                ),
                "uploads" => self.tree(&path, &Owner::new("builds that run", ""), "contexts of builds"),
                "bin" => self.tree(&path, &Owner::engine(), "the init program of containers"),
                "init-layer" => self.tree(&path, &Owner::engine(), "mount points in every container's root"),
                name if name.starts_with("operations.log") => {
                    let purpose = "the operation log; it has a bound of its own";
                    self.tree(&path, &Owner::engine(), purpose);
                }
                "lock" => self.tree(&path, &Owner::engine(), "keeps other daemons away"),
                name if name.starts_with("state.journal.damaged") => self.tree(
                    &path,
                    &Owner::new("engine", format!("rm {}", path.display())),
                    "a damaged state journal, kept to be looked at",
                ),
                name if name.starts_with("state") => {
                    self.tree(&path, &Owner::engine(), "the state of everything")
                }
                _ => self.stray(&path, "not made by this engine"),
            }
        }
        Ok(())
    }

    /// `blobs/sha256/DIGEST`.
    fn blobs(&mut self, blobs: &Path) {
        let facts = self.facts;
        self.own(blobs, "documents of images");
        for algorithm in children(blobs) {
            let stray = "a document that no image uses; the daemon's next start removes it";
            self.each(
                &algorithm,
                "documents of images",
                "configuration or manifest",
                stray,
                |name| facts.blobs.get(name),
            );
        }
    }

    fn containers(&mut self, containers: &Path) {
        self.own(containers, "containers");
        for own in children(containers) {
            let Some(container) = self.facts.containers.get(&name_of(&own)) else {
                self.stray(
                    &own,
                    "a directory of no container; the daemon's next start removes it",
                );
                continue;
            };
            let owner = container.whole();
            let size = self.meter.own(&own);
            self.add(&own, size, &owner, "the container's directory");
            for part in children(&own) {
                let name = name_of(&part);
                let purpose = match name.as_str() {
                    "upper" => "what the container wrote",
                    "work" => "for overlayfs",
                    "exit.json" => "its exit status",
                    name if name.contains(".log") => "its log",
                    _ => "a file of the container",
                };
                self.tree(&part, &owner, purpose);
            }
        }
    }

    fn build(&mut self, build: &Path) {
        self.own(build, "the builder's directory");
        for part in children(build) {
            let cache = Owner::new("build cache", "vessel builder prune --all");
            match name_of(&part).as_str() {
                "mounts" => self.tree(&part, &cache, "cache mounts"),
                "contexts" => self.tree(&part, &cache, "contexts of clients"),
                "tmp" => self.tree(
                    &part,
                    &Owner::new("builds that run", ""),
                    "files of steps that run",
                ),
                "empty" => self.tree(&part, &Owner::engine(), "the root that has no layers"),
                name if name.starts_with("index") => self.tree(&part, &cache, "what steps gave which layers"),
                _ => self.stray(&part, "not made by this builder"),
            }
        }
    }

    fn run(&mut self, run: &Path) -> Result<()> {
        std::fs::read_dir(run).context(|| format!("read {}", run.display()))?;
        self.own(run, "the engine's directory until a reboot");
        let facts = self.facts;
        for path in children(run) {
            match name_of(&path).as_str() {
                "seccomp" => self.tree(&path, &Owner::engine(), "system call filters, compiled"),
                "shims" => {
                    self.own(&path, "the shims' directories");
                    for own in children(&path) {
                        let id = name_of(&own);
                        let owner = match (facts.containers.get(&id), facts.steps.get(&id)) {
                            (Some(container), _) => container.run(),
                            (None, Some(step)) => step.clone(),
                            (None, None) => {
                                self.stray(&own, "a shim's directory of no container");
                                continue;
                            }
                        };
                        self.tree(
                            &own,
                            &owner,
                            "a shim's socket, and files mounted into the container",
                        );
                    }
                }
                name if name.ends_with(".sock") || name.ends_with(".lock") || name.ends_with(".pid") => {
                    self.tree(&path, &Owner::engine(), "where the daemon is reached");
                }
                _ => self.stray(&path, "not made by this engine"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::explain::facts::ContainerFacts;

    #[test]
    fn every_byte_has_an_owner_or_is_unknown() {
        let scratch = tempfile::tempdir().unwrap();
        let (root, run) = (scratch.path().join("root"), scratch.path().join("run"));
        let files = [
            ("root/layers/aa/diff/file", 300_000),
            ("root/layers/bb/diff/file", 100),
            ("root/blobs/sha256/cc", 100),
            ("root/blobs/sha256/dd", 100),
            ("root/containers/one/upper/etc/hosts", 50_000),
            ("root/containers/one/one-json.log", 70_000),
            ("root/containers/two/upper/x", 1),
            ("root/volumes/data/_data/x", 20_000),
            ("root/volumes/lost/_data/x", 20_000),
            ("root/build/mounts/m/data/x", 9),
            ("root/build/odd", 9),
            ("root/state.journal", 5_000),
            ("root/other", 1_000),
            ("run/shims/one/config", 1_000),
            ("run/shims/two/config", 1_000),
            ("run/vessel.sock", 0),
        ];
        for (path, size) in files {
            let path = scratch.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![b'x'; size]).unwrap();
        }
        let mut facts = Facts::default();
        facts
            .layers
            .insert("aa".into(), Owner::new("image a:1", "vessel rmi a:1"));
        facts
            .blobs
            .insert("cc".into(), Owner::new("image a:1", "vessel rmi a:1"));
        facts
            .volumes
            .insert("data".into(), Owner::new("volume data", "vessel volume rm data"));
        let one = ContainerFacts {
            name: "web".into(),
            ..ContainerFacts::default()
        };
        facts.containers.insert("one".into(), one);
        let paths = Paths { root, run };
        let mut items = Vec::new();
        explain(&paths, &facts, &mut items).unwrap();

        let du = std::process::Command::new("du")
            .args(["-s", "-c", "--block-size=1"])
            .args([&paths.root, &paths.run])
            .output()
            .unwrap();
        let du = String::from_utf8(du.stdout).unwrap();
        let total: u64 = items.iter().map(|item| item.size).sum();
        let said = du.lines().last().unwrap().split('\t').next().unwrap();
        assert_eq!(said, total.to_string(), "{items:#?}");
        let short = |item: &ExplainedItem| {
            item.name
                .strip_prefix(scratch.path().to_str().unwrap())
                .unwrap()
                .to_owned()
        };
        let mut strays: Vec<String> = items.iter().filter(|item| !item.known).map(short).collect();
        strays.sort();
        assert_eq!(
            strays,
            [
                "/root/blobs/sha256/dd",
                "/root/build/odd",
                "/root/containers/two",
                "/root/layers/bb",
                "/root/other",
                "/root/volumes/lost",
                "/run/shims/two"
            ]
        );
        let of = |name: &str| items.iter().find(|item| short(item) == name).unwrap();
        let log = of("/root/containers/one/one-json.log");
        assert_eq!(
            (log.owner.as_str(), log.purpose.as_str()),
            ("container web", "its log")
        );
        assert_eq!(log.free, "vessel rm web");
        assert_eq!(of("/run/shims/one").free, "vessel stop web");
        assert_eq!(of("/root/layers/aa").owner, "image a:1");
    }
}
