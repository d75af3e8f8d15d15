//! Where everything is.

use std::path::{Path, PathBuf};

/// The directories of an engine.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// What survives a reboot.
    pub root: PathBuf,
    /// What does not.
    pub run: PathBuf,
}

impl Paths {
    /// A container's own directory.
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// The directory of a container's shim, with its socket and the files mounted into the container.
    pub fn shim(&self, id: &str) -> PathBuf {
        self.shims().join(id)
    }

    pub fn shims(&self) -> PathBuf {
        self.run.join("shims")
    }

    /// The current log file.
    pub fn log(&self, id: &str) -> PathBuf {
        self.container(id).join(format!("{id}-json.log"))
    }

    /// Where the shim records the exit status.
    pub fn exit_file(&self, id: &str) -> PathBuf {
        self.container(id).join("exit.json")
    }

    /// The build cache.
    pub fn build(&self) -> PathBuf {
        self.root.join("build")
    }

    /// The root that has no layers.
    pub fn build_empty(&self) -> PathBuf {
        self.build().join("empty")
    }

    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// A volume's files.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.volumes().join(name).join("_data")
    }

    /// What is left of volumes while they are removed. No volume's name begins with a dot.
    pub fn removed_volumes(&self) -> PathBuf {
        self.volumes().join(".removed")
    }

    /// What users removed and may want back.
    pub fn removed(&self) -> PathBuf {
        self.root.join("removed")
    }

    /// The layer between every image and its containers' writable layers.
    pub fn init_layer(&self) -> PathBuf {
        self.root.join("init-layer")
    }

    /// The init program.
    pub fn init(&self) -> PathBuf {
        self.root.join("bin").join("init")
    }

    /// Kernels for virtual machines.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// Compiled system call filters.
    pub fn seccomp(&self) -> PathBuf {
        self.run.join("seccomp")
    }

    /// All directories that must exist.
    pub fn directories(&self) -> [PathBuf; 8] {
        [
            self.containers(),
            self.volumes(),
            self.removed(),
            self.build_empty(),
            self.root.join("bin"),
            self.run.clone(),
            self.shims(),
            self.seccomp(),
        ]
    }
}

/// Makes the layer that lies over every image: what the standard mounts are mounted on. Without it every start would
/// make these in the writable layer, where `diff` shows them as changes. Docker has the same layer, one for each container.
pub(crate) fn make_init_layer(layer: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{PermissionsExt, symlink};
    for (directory, mode) in [
        ("", 0o755),
        ("dev", 0o755),
        ("dev/pts", 0o755),
        ("dev/shm", 0o755),
        ("proc", 0o555),
        ("sys", 0o555),
        ("etc", 0o755),
    ] {
        let path = layer.join(directory);
        std::fs::create_dir_all(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    for file in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        let path = layer.join(file);
        std::fs::write(&path, [])?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
    }
    match symlink("/proc/mounts", layer.join("etc/mtab")) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Removes the files of a container, or what is left of them, with the limit that they may have.
pub(crate) fn remove_container_files(path: &Path) -> std::io::Result<()> {
    release_limit(path);
    remove_tree(path)
}

/// Takes the limit back that a container's files, which are about to be removed, may have.
pub(crate) fn release_limit(path: &Path) {
    // Not by `upper`, where root of the container may have put another's number.
    crate::quota::release(&path.join("work"));
}

/// Removes a directory tree that may be gone; links in it are not followed.
pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
