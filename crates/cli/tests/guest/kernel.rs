//! A stock Debian cloud kernel: the installed one, or the package, downloaded once and kept below the build directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::elf;

/// A kernel and its modules.
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    modules: BTreeMap<String, PathBuf>,
}

impl Kernel {
    /// The content of `wanted` and of all they depend on, each after what it needs. What the kernel does not have as a
    /// module is taken to be built in; if it is not, checks fail.
    pub fn modules(&self, wanted: &[&str]) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        for name in wanted {
            self.add(name, &mut found);
        }
        found
    }

    fn add(&self, name: &str, found: &mut Vec<(String, Vec<u8>)>) {
        if found.iter().any(|(known, _)| known == name) {
            return;
        }
        let Some(path) = self.modules.get(name) else {
            return;
        };
        let module = crate::read(path);
        for needed in elf::dependencies(&module) {
            self.add(&needed, found);
        }
        found.push((name.to_owned(), module));
    }
}

/// Finds a kernel, or downloads one into `cache`.
///
/// # Errors
/// One sentence on why there is none.
pub fn find(cache: &Path) -> Result<Kernel, String> {
    if let Some(kernel) = below(Path::new("/")) {
        return Ok(kernel);
    }
    let unpacked = cache.join("guest-kernel");
    if let Some(kernel) = below(&unpacked) {
        return Ok(kernel);
    }
    download(cache, &unpacked)?;
    below(&unpacked).ok_or_else(|| {
        format!(
            "the kernel package holds no usable kernel; see {}",
            unpacked.display()
        )
    })
}

/// The newest cloud kernel in `root` whose modules are there, too.
fn below(root: &Path) -> Option<Kernel> {
    let mut releases: Vec<String> = std::fs::read_dir(root.join("boot"))
        .ok()?
        .filter_map(|entry| {
            Some(
                entry
                    .ok()?
                    .file_name()
                    .to_str()?
                    .strip_prefix("vmlinuz-")?
                    .to_owned(),
            )
        })
        .filter(|release| release.ends_with("-cloud-amd64"))
        .collect();
    releases.sort();
    releases.into_iter().rev().find_map(|release| {
        let mut modules = BTreeMap::new();
        collect(
            &root.join("lib/modules").join(&release).join("kernel"),
            &mut modules,
        );
        let image = root.join("boot").join(format!("vmlinuz-{release}"));
        modules
            .contains_key("overlay")
            .then_some(Kernel { image, modules })
    })
}

/// Uncompressed modules by name; file names may have `-` where names have `_`.
fn collect(dir: &Path, modules: &mut BTreeMap<String, PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, modules);
        } else if path.extension().is_some_and(|extension| extension == "ko")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            modules.insert(name.replace('-', "_"), path);
        }
    }
}

/// Downloads and unpacks the package that `linux-image-cloud-amd64` stands for.
fn download(cache: &Path, unpacked: &Path) -> Result<(), String> {
    let depends =
        output(Command::new("apt-cache").args(["depends", "--important", "linux-image-cloud-amd64"]))?;
    let package = depends
        .split_whitespace()
        .find(|word| {
            word.starts_with("linux-image-")
                && word.ends_with("-cloud-amd64")
                && *word != "linux-image-cloud-amd64"
        })
        .ok_or("apt knows no package linux-image-cloud-amd64 (run apt-get update)")?;
    // Unpacked aside and renamed: two test runs may meet here, and one that is interrupted leaves nothing half done.
    let failed = |error: std::io::Error| format!("make {}: {error}", unpacked.display());
    let aside = tempfile::tempdir_in(cache).map_err(failed)?;
    output(
        Command::new("apt-get")
            .args(["download", "-q", package])
            .current_dir(&aside),
    )?;
    let archive = std::fs::read_dir(&aside)
        .map_err(failed)?
        .flatten()
        .map(|entry| entry.path())
        .next();
    let archive = archive.ok_or_else(|| format!("apt-get download {package} left no file"))?;
    output(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(archive)
            .arg(aside.path().join("unpacked")),
    )?;
    match std::fs::rename(aside.path().join("unpacked"), unpacked) {
        Err(error) if !unpacked.exists() => Err(failed(error)),
        _ => Ok(()),
    }
}

fn output(command: &mut Command) -> Result<String, String> {
    let out = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if !out.status.success() {
        let complaint = String::from_utf8_lossy(&out.stderr);
        return Err(format!("{command:?} failed: {}", complaint.trim()));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
