//! One engine per root: an advisory lock on a file that names its holder.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::error::Context;
use crate::{Error, Result};

/// How long what a killed daemon was just starting may hold its lock: until it has become another program.
const DYING: Duration = Duration::from_secs(5);

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
        let begin = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error).context(|| format!("lock {}", path.display())),
            }
            let mut holder = [0; 20];
            let length = file.read_at(&mut holder, 0).unwrap_or(0);
            let holder = String::from_utf8_lossy(&holder[..length]).trim().to_owned();
            let alive = std::fs::read_link(format!("/proc/{holder}/exe")).is_ok();
            if alive || begin.elapsed() > DYING {
                let holder = match holder.as_str() {
                    "" => String::new(),
                    pid => format!(" (process {pid})"),
                };
                return Err(Error::conflict(format!(
                    "{} is in use by another Vessel daemon{holder}: stop it, or choose another --root",
                    directory.display()
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        file.set_len(0).context(|| format!("write {}", path.display()))?;
        write!(file, "{}", std::process::id()).context(|| format!("write {}", path.display()))?;
        Ok(Self { _file: file })
    }
}
