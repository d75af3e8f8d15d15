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

    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// A volume's files.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.volumes().join(name).join("_data")
    }

    /// The lowest layer of images that have none.
    pub fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    /// The init program.
    pub fn init(&self) -> PathBuf {
        self.root.join("bin").join("init")
    }

    /// Compiled system call filters.
    pub fn seccomp(&self) -> PathBuf {
        self.run.join("seccomp")
    }

    /// All directories that must exist.
    pub fn directories(&self) -> [PathBuf; 7] {
        [
            self.containers(),
            self.volumes(),
            self.empty(),
            self.root.join("bin"),
            self.run.clone(),
            self.shims(),
            self.seccomp(),
        ]
    }
}

/// Removes a directory tree that may be gone; links in it are not followed.
pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
