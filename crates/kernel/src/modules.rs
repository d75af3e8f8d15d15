//! Which modules a guest needs, and in which order they are loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use crate::error::Context;
use crate::modinfo::{self, module_name};
use crate::{Error, Result, unpack};

/// What a guest may need; of those, whatever a kernel does not have built in and has as a module is loaded. The first
/// [`EARLY`] before the guest serves anybody, the others meanwhile.
pub const WANTED: [&str; 13] = [
    "virtio_pci",
    "vmw_vsock_virtio_transport",
    "virtiofs",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "virtio_blk",
    "ext4",
    "overlay",
    "erofs",
    "tun",
    "virtio_mmio",
];

/// How many of [`WANTED`] every container needs at once.
pub const EARLY: usize = 6;

/// Without one of these, a kernel cannot be a container's.
pub const NEEDED: [&str; 4] = [
    "virtio_pci",
    "vmw_vsock_virtio_transport",
    "virtiofs",
    "virtio_net",
];

/// The largest module that is taken: the largest there is, a graphics driver, has a tenth of it.
const MAX_MODULE: u64 = 64 << 20;
/// Modules and directories below `/lib/modules/RELEASE` at most; distributions have 5,000.
const MAX_FILES: usize = 100_000;
/// `modules.builtin` has 50 KiB.
const MAX_BUILTIN: u64 = 4 << 20;

/// The modules of a kernel on disk.
#[derive(Debug, Default)]
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// A module that will be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// The file, uncompressed.
    pub content: Vec<u8>,
}

impl Modules {
    /// Finds the modules in a directory and those below it.
    ///
    /// # Errors
    /// When it cannot be read, or has more files than any kernel's.
    pub fn find(directory: &Path) -> Result<Self> {
        let mut found = Self::default();
        let mut left = MAX_FILES;
        let mut directories = vec![directory.to_owned()];
        while let Some(directory) = directories.pop() {
            let read = || format!("read {}", directory.display());
            for entry in fs::read_dir(&directory).context(read)? {
                let entry = entry.context(read)?;
                left = left.checked_sub(1).ok_or_else(|| {
                    Error::limit(format!(
                        "there are more than {MAX_FILES} files: is this a directory of modules?"
                    ))
                })?;
                // Links (`build`, `source`) lead elsewhere.
                let kind = entry.file_type().context(read)?;
                if kind.is_dir() {
                    directories.push(entry.path());
                } else if kind.is_file()
                    && let Some(name) = entry.file_name().to_str()
                {
                    found.add(name, entry.path())?;
                }
            }
        }
        Ok(found)
    }

    fn add(&mut self, name: &str, path: PathBuf) -> Result<()> {
        if name == "modules.builtin" {
            let file = File::open(&path).context(|| format!("open {}", path.display()))?;
            let text = unpack::whole(BufReader::new(file), MAX_BUILTIN)?;
            self.builtin.extend(builtin(&text));
        } else if let Some(name) = module_of(name) {
            self.files.insert(name, path);
        }
        Ok(())
    }

    /// Whether this kernel has modules at all.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether a module of this name is here or built in.
    pub fn has(&self, name: &str) -> bool {
        self.builtin.contains(name) || self.files.contains_key(name)
    }

    /// What has to be loaded for `wanted`, in the order it has to be loaded in. What is not here is built in, or missing.
    ///
    /// # Errors
    /// When a module cannot be read, or is for another kernel than `release`.
    pub fn in_order(&self, wanted: &[&str], release: &str) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        let mut visited = BTreeSet::new();
        // A stack of its own: how deep modules depend on each other is theirs to say.
        let mut stack: Vec<Step> = wanted
            .iter()
            .rev()
            .map(|name| Step::Visit((*name).to_owned()))
            .collect();
        while let Some(step) = stack.pop() {
            match step {
                Step::Take(module) => order.push(module),
                Step::Visit(name) => {
                    let Some(path) = self.files.get(&name) else {
                        continue;
                    };
                    if !visited.insert(name.clone()) {
                        continue;
                    }
                    let (module, info) = load(name, path, release)
                        .map_err(|error| error.wrap(format!("module {}", path.display())))?;
                    // What it needs comes before it; in a circle, whatever was first.
                    stack.push(Step::Take(module));
                    stack.extend(info.depends.into_iter().chain(info.before).rev().map(Step::Visit));
                }
            }
        }
        Ok(order)
    }
}

enum Step {
    Visit(String),
    Take(Module),
}

fn load(name: String, path: &Path, release: &str) -> Result<(Module, modinfo::Info)> {
    let file = File::open(path).context(|| "open it".into())?;
    let content = unpack::whole(BufReader::new(file), MAX_MODULE)?;
    let info = modinfo::read(&content)?;
    let built_for = info.vermagic.split(' ').next().unwrap_or_default();
    if built_for != release {
        return Err(Error::invalid(format!(
            "it is for kernel {built_for:?}, and the kernel is {release:?}"
        )));
    }
    Ok((Module { name, content }, info))
}

/// The module in a file of this name.
pub fn module_of(name: &str) -> Option<String> {
    let stem = ["", ".gz", ".xz", ".zst"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix)?.strip_suffix(".ko"))?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (!stem.is_empty() && stem.len() < 64 && stem.bytes().all(plain)).then(|| module_name(stem))
}

/// The modules that `modules.builtin` names, one path per line.
fn builtin(text: &[u8]) -> impl Iterator<Item = String> {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let name = line.rsplit(|byte| *byte == b'/').next()?;
        module_of(std::str::from_utf8(name).ok()?)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::modinfo::tests::module;

    fn write(directory: &Path, name: &str, depends: &str) {
        let text = format!("depends={depends}\0vermagic=6.1 SMP \0");
        fs::write(directory.join(name), module(text.as_bytes())).unwrap();
    }

    fn names(order: &[Module]) -> Vec<&str> {
        order.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("kernel/drivers");
        fs::create_dir_all(&deep).unwrap();
        write(&deep, "virtio-pci.ko", "virtio,virtio_ring,modern");
        write(&deep, "virtio.ko", "virtio_ring");
        write(&deep, "virtio_ring.ko", "");
        write(&deep, "modern.ko", "built_in,virtio");
        write(&deep, "loop_a.ko", "loop_b");
        write(&deep, "loop_b.ko", "loop_a");
        write(&deep, "unwanted.ko", "");
        fs::write(
            directory.path().join("modules.builtin"),
            "kernel/lib/built-in.ko\nkernel/x.txt\n",
        )
        .unwrap();
        let modules = Modules::find(directory.path()).unwrap();
        assert!(modules.has("built_in") && modules.has("unwanted") && !modules.has("x"));
        let order = modules
            .in_order(&["virtio_pci", "missing", "loop_a", "virtio"], "6.1")
            .unwrap();
        assert_eq!(
            names(&order),
            [
                "virtio_ring",
                "virtio",
                "modern",
                "virtio_pci",
                "loop_b",
                "loop_a"
            ]
        );
        let other = modules.in_order(&["virtio"], "6.2").unwrap_err().to_string();
        assert!(other.contains("\"6.1\"") && other.contains("virtio"), "{other}");
    }

    #[test]
    fn names_of_files() {
        assert_eq!(module_of("a-b.ko.zst"), Some("a_b".into()));
        for bad in ["a.txt", ".ko", "a b.ko", "../a.ko", "a.ko.bz2", "ko"] {
            assert_eq!(module_of(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_dependencies_have_an_order(edges in prop::collection::vec((0..12usize, 0..12usize), 0..40)) {
            let directory = tempfile::tempdir().unwrap();
            for index in 0..12 {
                let depends: Vec<String> =
                    edges.iter().filter(|(from, _)| *from == index).map(|(_, to)| format!("m{to}")).collect();
                write(directory.path(), &format!("m{index}.ko"), &depends.join(","));
            }
            let order = Modules::find(directory.path()).unwrap().in_order(&["m0", "m5"], "6.1").unwrap();
            let place = |name: usize| order.iter().position(|module| module.name == format!("m{name}"));
            let distinct: BTreeSet<&str> = order.iter().map(|module| module.name.as_str()).collect();
            prop_assert_eq!(distinct.len(), order.len());
            // Without a circle, whatever is needed is there before.
            if edges.iter().all(|(from, to)| from < to) {
                for (from, to) in &edges {
                    if let Some(at) = place(*from) {
                        prop_assert!(place(*to).is_some_and(|before| before < at));
                    }
                }
            }
        }

        #[test]
        fn any_list_of_builtin_modules(text in prop::collection::vec(any::<u8>(), 0..300)) {
            for name in builtin(&text) {
                prop_assert!(!name.contains('/'));
            }
        }
    }
}
