//! The directory of kernels.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::error::Context;
use crate::image::Format;
use crate::import::{self, Import, Unpack};
use crate::modules::Module;
use crate::{Error, ErrorKind, Result, initramfs};

const CONFIG: &str = "config.json";
const DEFAULT: &str = "default";
const LOCK: &str = ".lock";
/// What is made aside begins like that; no kernel's name does.
const ASIDE: &str = ".new-";
/// `config.json` has one or two kilobytes.
const MAX_CONFIG: u64 = 1 << 20;
const MAX_NAME: usize = 128;

/// A kernel of the store, as its `config.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    /// Its name in the store.
    pub name: String,
    /// What `uname -r` prints in it.
    pub release: String,
    /// The kernel's file in its directory: `vmlinux` or `bzImage`.
    pub file: String,
    /// Bytes of the kernel and its modules.
    pub size: u64,
    /// SHA-256 of the kernel's file.
    pub digest: String,
    /// What it was imported from.
    pub source: String,
    /// When, in seconds since the epoch.
    pub imported: u64,
    /// The modules a guest loads, in their order, with their SHA-256.
    pub modules: Vec<(String, String)>,
    /// How many of them are loaded before the guest serves; the others meanwhile.
    pub early: usize,
    /// Drivers a container needs that it has neither built in nor as modules.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// What a machine is booted with.
#[derive(Debug)]
pub struct Boot {
    /// The kernel.
    pub kernel: File,
    /// The initramfs.
    pub initramfs: File,
}

/// A directory of kernels.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store in this directory, which is made when something is imported.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// All kernels, by name. One whose description cannot be read is left out, and can be removed by its name.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Kernel>> {
        let read = || format!("read {}", self.root.display());
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.context(read)?,
        };
        let mut kernels = Vec::new();
        for entry in entries {
            let name = entry.context(read)?.file_name();
            if let Some(name) = name.to_str()
                && check_name(name).is_ok()
                && let Ok(kernel) = self.get(name)
            {
                kernels.push(kernel);
            }
        }
        kernels.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(kernels)
    }

    /// The kernel of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, name: &str) -> Result<Kernel> {
        check_name(name)?;
        let path = self.root.join(name).join(CONFIG);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("there is no kernel {name:?}; `vessel kernel ls` shows those there are"),
                ));
            }
            file => file.context(|| format!("open {}", path.display()))?,
        };
        let mut text = Vec::new();
        file.take(MAX_CONFIG)
            .read_to_end(&mut text)
            .context(|| format!("read {}", path.display()))?;
        let kernel: Kernel = serde_json::from_slice(&text)
            .context(|| format!("the kernel {name:?} is damaged: read {}", path.display()))?;
        let plain = matches!(&kernel.file[..], "vmlinux" | "bzImage")
            && kernel.modules.iter().all(|(name, _)| check_name(name).is_ok());
        match plain && kernel.name == name {
            true => Ok(kernel),
            false => Err(Error::invalid(format!(
                "the kernel {name:?} is damaged: {} names other files",
                path.display()
            ))),
        }
    }

    /// The kernel that is used when none is named: the one that was [set](Self::set_default), or the only one.
    ///
    /// # Errors
    /// Says what to do when there is none.
    pub fn default_kernel(&self) -> Result<Kernel> {
        if let Some(name) = self.default_name() {
            return self.get(&name);
        }
        let mut kernels = self.list()?;
        match kernels.len() {
            1 => Ok(kernels.remove(0)),
            0 => Err(Error::new(
                ErrorKind::NotFound,
                "there is no kernel for virtual machines: import one with `vessel kernel import /boot/vmlinuz-RELEASE`, or of a \
                 linux-image package",
            )),
            _ => Err(Error::new(
                ErrorKind::NotFound,
                "no kernel was made the default: choose one of `vessel kernel ls` with `vessel kernel default NAME`",
            )),
        }
    }

    /// The name that was set as the default, whether or not it is still there.
    pub fn default_name(&self) -> Option<String> {
        let text = fs::read_to_string(self.root.join(DEFAULT)).ok()?;
        let name = text.trim();
        check_name(name).ok().map(|()| name.to_owned())
    }

    /// Makes a kernel the default.
    ///
    /// # Errors
    /// When there is no such kernel, or it cannot be written down.
    pub fn set_default(&self, name: &str) -> Result<()> {
        let _lock = self.lock()?;
        self.get(name)?;
        write_whole(&self.root.join(DEFAULT), format!("{name}\n").as_bytes())
    }

    /// Imports a kernel. The first becomes the default.
    ///
    /// # Errors
    /// When what is given is no kernel, or there is one of this name and it is not to be replaced.
    pub fn import(&self, import: &Import<'_>, unpack: Unpack<'_>) -> Result<Kernel> {
        if let Some(name) = import.name {
            check_name(name)?;
            self.check_free(name, import.replace)?;
        }
        let _lock = self.lock()?;
        self.sweep();
        let aside = Aside::make(&self.root)?;
        let scratch = aside.path.join("package");
        make_directory(&scratch)?;
        let read = import::read(import, &scratch, unpack)?;
        fs::remove_dir_all(&scratch).context(|| format!("remove {}", scratch.display()))?;

        let name = import.name.unwrap_or(&read.release);
        check_name(name)?;
        self.check_free(name, import.replace)?;
        let file = match read.format {
            Format::Elf => "vmlinux",
            Format::BzImage => "bzImage",
        };
        write_new(&aside.path.join(file), &read.kernel)?;
        let directory = aside.path.join("modules");
        make_directory(&directory)?;
        for module in &read.modules {
            write_new(&directory.join(format!("{}.ko", module.name)), &module.content)?;
        }
        let modules: u64 = read
            .modules
            .iter()
            .map(|module| module.content.len() as u64)
            .sum();
        let kernel = Kernel {
            name: name.to_owned(),
            release: read.release.clone(),
            file: file.to_owned(),
            size: read.kernel.len() as u64 + modules,
            digest: initramfs::digest(&read.kernel),
            source: import
                .described
                .map_or_else(|| import.source.display().to_string(), str::to_owned),
            imported: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
            modules: read
                .modules
                .iter()
                .map(|module| (module.name.clone(), initramfs::digest(&module.content)))
                .collect(),
            early: read.early,
            missing: read.missing,
        };
        let config = serde_json::to_vec_pretty(&kernel).context(|| "describe the kernel".into())?;
        write_new(&aside.path.join(CONFIG), &config)?;
        aside.put(&self.root.join(name))?;
        if self.default_name().is_none() {
            write_whole(&self.root.join(DEFAULT), format!("{name}\n").as_bytes())?;
        }
        Ok(kernel)
    }

    /// Removes a kernel. Machines that run it go on: it is in their memory.
    ///
    /// # Errors
    /// When there is no such kernel, or it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let _lock = self.lock()?;
        let path = self.root.join(name);
        let aside = Aside::make(&self.root)?;
        match fs::rename(&path, aside.path.join("removed")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("there is no kernel {name:?}"),
                ));
            }
            result => result.context(|| format!("remove {}", path.display()))?,
        }
        if self.default_name().as_deref() == Some(name) {
            let path = self.root.join(DEFAULT);
            fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }

    /// What a machine with this kernel is booted with; `init` is the guest's first program. The initramfs is made when this
    /// kernel has none with this `init` yet.
    ///
    /// # Errors
    /// When a file is missing, or is not what was imported.
    pub fn boot(&self, kernel: &Kernel, init: &[u8]) -> Result<Boot> {
        let directory = self.root.join(&kernel.name);
        let open = |path: PathBuf| File::open(&path).context(|| format!("open {}", path.display()));
        let made = directory.join("initramfs");
        let path = made.join(format!(
            "{}.cpio",
            initramfs::key(init, &kernel.modules, kernel.early)
        ));
        if !path.exists() {
            let _lock = self.lock()?;
            let mut modules = Vec::new();
            for (name, digest) in &kernel.modules {
                let path = directory.join("modules").join(format!("{name}.ko"));
                let content = fs::read(&path).context(|| format!("read {}", path.display()))?;
                if initramfs::digest(&content) != *digest {
                    return Err(Error::invalid(format!(
                        "{} is not what was imported: import the kernel again with --force",
                        path.display()
                    )));
                }
                modules.push(Module {
                    name: name.clone(),
                    content,
                });
            }
            // Of another version of Vessel: whoever boots with it has it open.
            if made.exists() {
                fs::remove_dir_all(&made).context(|| format!("remove {}", made.display()))?;
            }
            make_directory(&made)?;
            write_whole(&path, &initramfs::build(init, &modules, kernel.early))?;
        }
        Ok(Boot {
            kernel: open(directory.join(&kernel.file))?,
            initramfs: open(path)?,
        })
    }

    fn check_free(&self, name: &str, replace: bool) -> Result<()> {
        if !replace && self.root.join(name).exists() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "there is a kernel {name:?} already: remove it, give this one another --name, or replace it with --force"
                ),
            ));
        }
        Ok(())
    }

    /// One process at a time changes the store.
    fn lock(&self) -> Result<File> {
        make_directory(&self.root)?;
        let path = self.root.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .context(|| format!("open {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive).context(|| format!("lock {}", path.display()))?;
        Ok(file)
    }

    /// Removes what an import left that was killed. Under the lock.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(ASIDE.as_bytes()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// A directory that becomes a kernel, or goes.
struct Aside {
    path: PathBuf,
}

impl Aside {
    fn make(root: &Path) -> Result<Self> {
        // Under the lock, so this process is the only one.
        let path = root.join(format!("{ASIDE}{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        make_directory(&path)?;
        Ok(Self { path })
    }

    /// Puts it in its place, whatever is there.
    fn put(self, place: &Path) -> Result<()> {
        let what = || format!("put the kernel at {}", place.display());
        let old = self.path.join("old");
        match fs::rename(place, &old) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            // It has to be out of what takes its place.
            result => {
                result.context(what)?;
                let beside = self.path.with_extension("old");
                fs::rename(&old, &beside).context(what)?;
                fs::rename(&self.path, place).context(what)?;
                return fs::remove_dir_all(&beside).context(|| format!("remove {}", beside.display()));
            }
        }
        fs::rename(&self.path, place).context(what)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Names are those of directories, and can be typed.
fn check_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-~".contains(&byte);
    let begins = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if begins && name.len() <= MAX_NAME && name.bytes().all(plain) && name != DEFAULT {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name:?} cannot be the name of a kernel: letters, digits and `._+-~`, beginning with a letter or digit, and not \"{DEFAULT}\""
    )))
}

fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .context(|| format!("make {}", path.display()))
}

fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .context(what)?;
    file.write_all(content).context(what)?;
    file.sync_all().context(what)
}

/// A file that is there whole or not at all.
fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let aside = path.with_extension("new");
    let _ = fs::remove_file(&aside);
    write_new(&aside, content)?;
    fs::rename(&aside, path).context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests;
