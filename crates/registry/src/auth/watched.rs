//! Files that are read again when they change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::error::{Code, Error, Result};

/// How often a file is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// No file of users or rules is larger.
const MAX: u64 = 16 << 20;

/// What a file says, as of about now.
#[derive(Debug)]
pub struct Watched<T> {
    path: PathBuf,
    parse: fn(&str) -> Result<T, String>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    content: Arc<T>,
    stamp: Stamp,
    looked: Instant,
}

/// Changes when the file does.
type Stamp = Option<(SystemTime, u64, u64)>;

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

impl<T> Watched<T> {
    /// Reads the file; it must be right.
    pub fn open(path: &Path, parse: fn(&str) -> Result<T, String>) -> Result<Self> {
        let stamp = stamp(path);
        let state = State {
            content: Arc::new(read(path, parse)?),
            stamp,
            looked: Instant::now(),
        };
        Ok(Self {
            path: path.to_owned(),
            parse,
            state: Mutex::new(state),
        })
    }

    /// What the file says. When it has become wrong, what it said before.
    pub fn get(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK {
            state.looked = Instant::now();
            let now = stamp(&self.path);
            if now != state.stamp {
                match read(&self.path, self.parse) {
                    Ok(content) => {
                        state.content = Arc::new(content);
                        state.stamp = now;
                    }
                    Err(error) => tracing::warn!(%error, "what was read before stays valid"),
                }
            }
        }
        Arc::clone(&state.content)
    }
}

fn read<T>(path: &Path, parse: fn(&str) -> Result<T, String>) -> Result<T> {
    let fail = |e| Error::io(format!("cannot read {}", path.display()), e);
    let wrong = |why: String| Error::new(Code::Unknown, format!("{}: {why}", path.display()));
    if fs::metadata(path).map_err(fail)?.len() > MAX {
        return Err(wrong("the file is larger than 16 MiB".into()));
    }
    parse(&fs::read_to_string(path).map_err(fail)?).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_file_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let parse = |text: &str| text.trim().parse::<u32>().map_err(|e| e.to_string());
        assert!(Watched::open(&path, parse).is_err());
        fs::write(&path, "1").unwrap();
        let watched = Watched::open(&path, parse).unwrap();
        assert_eq!(*watched.get(), 1);
        let later = || watched.state.lock().unwrap().looked = Instant::now().checked_sub(LOOK).unwrap();
        fs::write(&path, "wrong").unwrap();
        later();
        assert_eq!(*watched.get(), 1);
        fs::write(&path, "22").unwrap();
        later();
        assert_eq!(*watched.get(), 22);
    }
}
