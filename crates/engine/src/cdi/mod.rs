//! Devices of the Container Device Interface (CDI): GPUs and whatever else vendors describe in files on this host.
//!
//! A specification (<https://github.com/cncf-tags/container-device-interface>, versions 0.3 to 1.1) says what a container
//! needs to use a device: variables, nodes, mounts, hooks, groups. They are JSON or YAML files, directly in one of the
//! directories given; a device in a later directory takes the place of one in an earlier, two in the same directory exclude each
//! other. The files are read when a container that asks for a device starts, and for `info`: nothing watches them, and
//! what changes in them counts from the next start.
//!
//! They are root's, like hooks they name are. All the same a file that is broken, huge or a pipe costs its own devices
//! and nothing else: files have at most [`MAX_BYTES`], directories [`MAX_FILES`] of them.

mod edits;
mod request;
mod spec;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use vessel_api::{DeviceInfo, DeviceRequest};
use vessel_runtime::spec::Spec as OciSpec;

use crate::{Error, Result};
use spec::{Edits, Specification};

/// Where specifications are unless the daemon is told otherwise.
pub const DEFAULT_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// The longest file that is read: those of a host with many GPUs have a hundred kilobytes.
const MAX_BYTES: u64 = 4 << 20;
/// The most files of a directory.
const MAX_FILES: usize = 256;

/// The devices there are.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    directories: Vec<PathBuf>,
    devices: BTreeMap<String, Device>,
    /// What is wrong, by file.
    faults: Vec<String>,
}

#[derive(Debug)]
struct Device {
    file: Arc<File>,
    /// Its place in the file's list.
    index: usize,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    /// The place of its directory in the list of them.
    priority: usize,
    specification: Specification,
}

impl Registry {
    /// Reads what is in the directories; one that is not there has nothing.
    pub fn read(directories: &[PathBuf]) -> Self {
        let mut registry = Self {
            directories: directories.to_vec(),
            ..Self::default()
        };
        let mut conflicts = BTreeSet::new();
        for (priority, directory) in directories.iter().enumerate() {
            for path in registry.files(directory) {
                match read_file(&path) {
                    Ok(specification) => registry.add(path, priority, specification, &mut conflicts),
                    Err(fault) => registry.fault(&path, &fault),
                }
            }
        }
        for name in conflicts {
            registry.devices.remove(&name);
        }
        registry
    }

    /// The specifications of a directory, by name.
    fn files(&mut self, directory: &Path) -> Vec<PathBuf> {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                self.fault(directory, &error.to_string());
                return Vec::new();
            }
        };
        let is_one = |path: &PathBuf| {
            path.extension()
                .is_some_and(|extension| extension == "json" || extension == "yaml")
        };
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(is_one)
            .take(MAX_FILES + 1)
            .collect();
        if files.len() > MAX_FILES {
            self.fault(
                directory,
                &format!("it has more than {MAX_FILES} files: none is read"),
            );
            return Vec::new();
        }
        files.sort();
        files
    }

    fn fault(&mut self, path: &Path, what: &str) {
        self.faults.push(format!(
            "CDI: Error associated with spec file {}: {what}",
            path.display()
        ));
    }

    fn add(
        &mut self,
        path: PathBuf,
        priority: usize,
        specification: Specification,
        conflicts: &mut BTreeSet<String>,
    ) {
        let file = Arc::new(File {
            path,
            priority,
            specification,
        });
        for (index, device) in file.specification.devices.iter().enumerate() {
            let name = format!("{}={}", file.specification.kind, device.name);
            let other = self.devices.get(&name).map(|other| Arc::clone(&other.file));
            if let Some(other) = other.filter(|other| other.priority == priority) {
                self.faults.push(format!(
                    "CDI: conflicting device \"{name}\" (specs \"{}\", \"{}\")",
                    other.path.display(),
                    file.path.display()
                ));
                conflicts.insert(name);
                continue;
            }
            // What was in dispute in an earlier directory is settled by a later one.
            conflicts.remove(&name);
            let device = Device {
                file: Arc::clone(&file),
                index,
            };
            self.devices.insert(name, device);
        }
    }

    /// The devices as `info` lists them.
    pub fn list(&self) -> Vec<DeviceInfo> {
        let device = |name: &String| DeviceInfo {
            source: "cdi".to_owned(),
            id: name.clone(),
        };
        self.devices.keys().map(device).collect()
    }

    /// What is wrong with the files.
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    /// Whether there is a device of `vendor/class`.
    fn has_kind(&self, kind: &str) -> bool {
        self.devices
            .values()
            .any(|device| device.file.specification.kind == kind)
    }

    /// Gives a container what it asks for.
    ///
    /// # Errors
    /// No driver for a request, no such device, what the specification says cannot be done here.
    pub fn inject(&self, requests: &[DeviceRequest], spec: &mut OciSpec) -> Result<()> {
        for request in requests {
            let names = self.names(request)?;
            for edits in self.edits(&names)? {
                edits::apply(edits, spec).map_err(|error| error.wrap("CDI device injection failed"))?;
            }
        }
        Ok(())
    }

    /// The edits for devices: those of a file come once, before the first of its devices.
    fn edits(&self, names: &[String]) -> Result<Vec<&Edits>> {
        let missing: Vec<&str> = names
            .iter()
            .filter(|name| !self.devices.contains_key(*name))
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            let mut message = format!(
                "CDI device injection failed: unresolvable CDI devices {}",
                missing.join(", ")
            );
            // Why it is not there, if the daemon can know.
            for fault in self.faults.iter().take(3) {
                message.push_str("; ");
                message.push_str(fault);
            }
            return Err(Error::invalid(message));
        }
        let mut seen: Vec<*const File> = Vec::new();
        let mut edits = Vec::new();
        for device in names.iter().filter_map(|name| self.devices.get(name)) {
            let specification = &device.file.specification;
            if !seen.contains(&Arc::as_ptr(&device.file)) {
                seen.push(Arc::as_ptr(&device.file));
                edits.push(&specification.container_edits);
            }
            edits.extend(
                specification
                    .devices
                    .get(device.index)
                    .map(|device| &device.container_edits),
            );
        }
        Ok(edits)
    }
}

fn read_file(path: &Path) -> std::result::Result<Specification, String> {
    // What is no file is not waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| errno.to_string())?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| errno.to_string())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("it is not a regular file".into());
    }
    let mut text = String::new();
    std::fs::File::from(file)
        .take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    Specification::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, text: &str) {
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join(name), text).unwrap();
    }

    fn one(kind: &str, device: &str, variable: &str) -> String {
        format!(
            "cdiVersion: 0.6.0\nkind: {kind}\ndevices:\n- name: \"{device}\"\n  containerEdits:\n    env: [{variable}]\n"
        )
    }

    #[test]
    fn a_later_directory_wins_and_equals_exclude_each_other() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (root.path().join("a"), root.path().join("b"));
        write(&first, "one.yaml", &one("v.com/c", "x", "A=first"));
        write(&first, "two.yaml", &one("v.com/c", "y", "A=first"));
        write(&first, "three.yaml", &one("v.com/c", "y", "A=other"));
        write(&first, "broken.json", "{");
        write(&first, "passed-over.txt", "{");
        write(
            &second,
            "one.json",
            r#"{"cdiVersion":"1.0.0","kind":"v.com/c","devices":[{"name":"x","containerEdits":{"env":["A=second"]}}]}"#,
        );
        let registry = Registry::read(&[first.clone(), second, root.path().join("none")]);
        let names: Vec<String> = registry.list().into_iter().map(|device| device.id).collect();
        assert_eq!(names, ["v.com/c=x"]);
        let edits = registry.edits(&["v.com/c=x".into()]).unwrap();
        assert_eq!(edits[1].env, ["A=second"]);
        assert_eq!(registry.faults().len(), 2, "{:?}", registry.faults());
        let error = registry
            .edits(&["v.com/c=y".into(), "w.com/c=0".into()])
            .unwrap_err();
        assert!(
            error.message().starts_with(
                "CDI device injection failed: unresolvable CDI devices v.com/c=y, w.com/c=0; CDI: "
            ),
            "{error}"
        );
    }

    #[test]
    fn pipes_and_large_files_are_faults() {
        let root = tempfile::tempdir().unwrap();
        let pipe = root.path().join("pipe.json");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        write(root.path(), "large.yaml", &"#".repeat(MAX_BYTES as usize + 1));
        let registry = Registry::read(&[root.path().to_owned()]);
        assert_eq!(registry.faults().len(), 2, "{:?}", registry.faults());
        assert!(registry.list().is_empty());
        for number in 0..=MAX_FILES {
            write(root.path(), &format!("{number}.json"), "");
        }
        let registry = Registry::read(&[root.path().to_owned()]);
        assert_eq!(registry.faults().len(), 1, "{:?}", registry.faults());
    }
}
