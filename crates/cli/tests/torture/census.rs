//! What of an engine is on the machine: everything that must be gone when its containers are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::arena::processes;
use crate::harness::Daemon;

/// An interface whose owner cannot be told.
pub const LOOSE: &str = "interface without a bridge";

/// Where to look.
pub struct Places {
    dir: String,
    root: PathBuf,
    run: PathBuf,
    bridge: String,
}

impl Places {
    pub fn of(daemon: &Daemon) -> Self {
        Self {
            dir: daemon.dir().to_string_lossy().into_owned(),
            root: daemon.root(),
            run: daemon.run_dir(),
            bridge: daemon.bridge().to_owned(),
        }
    }

    /// Everything there is, each as one line. The daemon does not run: what it prepares is gone with it.
    pub fn take(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        self.mounts(&mut found);
        self.interfaces(&mut found);
        self.rules(&mut found);
        self.cgroups(&mut found);
        self.processes(&mut found);
        for root in [&self.root, &self.run] {
            files(root, &mut found);
        }
        // It is bounded by itself, and begins new files now and then.
        found.retain(|line| !line.contains("/operations.log"));
        found
    }

    fn mounts(&self, found: &mut BTreeSet<String>) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = mounts.lines().filter(|line| line.contains(&self.dir));
        found.extend(own.map(|line| format!("mount {line}")));
    }

    fn interfaces(&self, found: &mut BTreeSet<String>) {
        let ports = fs::read_dir(format!("/sys/class/net/{}/brif", self.bridge));
        for port in ports.into_iter().flatten().flatten() {
            found.insert(format!("interface {}", port.file_name().to_string_lossy()));
        }
        // Ends of containers that are on no bridge at all. Others may have theirs: those were there before, or go again.
        for interface in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
            let name = interface.file_name().to_string_lossy().into_owned();
            let end = name
                .strip_prefix("ve")
                .is_some_and(|id| id.len() == 10 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
            if end && !interface.path().join("master").exists() {
                found.insert(format!("{LOOSE} {name}"));
            }
        }
    }

    /// Published ports: everything else in the table belongs to the bridge.
    fn rules(&self, found: &mut BTreeSet<String>) {
        let Ok(output) = Command::new("nft")
            .args(["list", "table", "ip", &self.bridge])
            .output()
        else {
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let mut inside = false;
        for line in text.lines() {
            inside |= line.contains("elements");
            if inside {
                found.insert(format!("rule {}", line.trim()));
            }
            inside &= !line.contains('}');
        }
    }

    fn cgroups(&self, found: &mut BTreeSet<String>) {
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            directories(&hierarchy.path().join(&self.bridge), &mut |path| {
                found.insert(format!("cgroup {}", path.display()));
            });
        }
        directories(&Path::new("/sys/fs/cgroup").join(&self.bridge), &mut |path| {
            found.insert(format!("cgroup {}", path.display()));
        });
    }

    fn processes(&self, found: &mut BTreeSet<String>) {
        let own = std::process::id();
        for pid in processes() {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            let text = |file: &str| {
                let bytes = fs::read(proc.join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).replace('\0', " ")
            };
            let command = text("cmdline");
            let ours = command.contains(&self.dir)
                || text("cgroup").contains(&format!("/{}", self.bridge))
                || fs::read_dir(proc.join("fd"))
                    .into_iter()
                    .flatten()
                    .flatten()
                    .filter_map(|entry| fs::read_link(entry.path()).ok())
                    .any(|target| target.to_string_lossy().contains(&self.dir));
            if ours && pid.unsigned_abs() != own {
                found.insert(format!("process {pid} ({})", command.trim_end()));
            }
        }
    }
}

fn directories(root: &Path, each: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            each(&entry.path());
            directories(&entry.path(), each);
        }
    }
}

fn files(root: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        found.insert(format!("file {}", path.display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, found);
        }
    }
}
