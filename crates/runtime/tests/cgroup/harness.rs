//! What the tests share: the machine's hierarchies and cgroups of a test's own.

use std::sync::LazyLock;

use rustix::process::Signal;
use vessel_runtime::cgroup::{Cgroup, CgroupPath, Controller, Hierarchies, Resources};

pub static HIERARCHIES: LazyLock<Hierarchies> = LazyLock::new(|| {
    let found = Hierarchies::detect().unwrap();
    println!("cgroup: this machine is {:?}:", found.mode());
    for hierarchy in found.list() {
        println!(
            "cgroup:   {:?} {:?} {:?}",
            hierarchy.version, hierarchy.mount, hierarchy.controllers
        );
    }
    found
});

pub fn lacks(controller: Controller) -> bool {
    let lacks = !HIERARCHIES.has(controller);
    if lacks {
        println!(
            "cgroup: SKIPPED, this machine has no {} controller",
            controller.name()
        );
    }
    lacks
}

pub fn resources(text: &str) -> Resources {
    serde_json::from_str(text).unwrap()
}

/// A cgroup of a test's own, gone with it.
pub struct Scratch {
    cgroup: Option<Cgroup>,
    pub path: CgroupPath,
    pub parent: String,
}

impl Scratch {
    pub fn new(name: &str, text: &str) -> Self {
        let parent = format!("/vessel-test-{name}-{}", std::process::id());
        let path = CgroupPath::parse(&format!("{parent}/c")).unwrap();
        let mut scratch = Self {
            cgroup: None,
            path,
            parent,
        };
        let (cgroup, lacks) = Cgroup::create(&HIERARCHIES, &scratch.path, &resources(text)).unwrap();
        scratch.cgroup = Some(cgroup);
        assert_eq!(lacks, []);
        scratch
    }

    pub fn get(&self) -> &Cgroup {
        self.cgroup.as_ref().unwrap()
    }

    pub fn file(&self, file: &str) -> String {
        let found = self
            .get()
            .directories()
            .map(|dir| dir.join(file))
            .find(|path| path.exists());
        let path = found.unwrap_or_else(|| panic!("no {file}"));
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    }

    pub fn has(&self, file: &str) -> bool {
        self.get().directories().any(|dir| dir.join(file).exists())
    }

    /// v1's file, or v2's.
    pub fn file_of(&self, v1: &str, v2: &str) -> String {
        self.file(if self.has(v1) { v1 } else { v2 })
    }

    pub fn destroy(&mut self) {
        let cgroup = self.cgroup.take().unwrap();
        cgroup.kill_all(Signal::KILL).unwrap();
        cgroup.destroy().unwrap();
        for hierarchy in HIERARCHIES.list() {
            assert!(!self.path.below(&hierarchy.mount).exists(), "{hierarchy:?}");
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.cgroup.is_some() {
            let cgroup = self.cgroup.take().unwrap();
            let _ = cgroup.thaw();
            let _ = cgroup.kill_all(Signal::KILL);
            let _ = cgroup.destroy();
        }
        for hierarchy in HIERARCHIES.list() {
            let _ = std::fs::remove_dir(hierarchy.mount.join(&self.parent[1..]));
        }
    }
}
