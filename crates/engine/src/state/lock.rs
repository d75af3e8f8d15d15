//! One engine per root: an advisory lock on a file that names its holder.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::error::Context;
use crate::{Error, Result};

/// Held as long as the engine lives; the kernel gives it back however the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of `directory`.
    pub fn take(directory: &Path) -> Result<Self> {
        let path = directory.join("lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
            .context(|| format!("open the lock {}", path.display()))?;
        let mut file = File::from(file);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = (&file).take(20).read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => String::new(),
                    pid => format!(" (process {pid})"),
                };
                return Err(Error::conflict(format!(
                    "{} is in use by another Vessel daemon{holder}: stop it, or choose another --root",
                    directory.display()
                )));
            }
            Err(error) => return Err(error).context(|| format!("lock {}", path.display())),
        }
        file.set_len(0).context(|| format!("write {}", path.display()))?;
        write!(file, "{}", std::process::id()).context(|| format!("write {}", path.display()))?;
        Ok(Self { _file: file })
    }
}
