//! The file of the operation log: `operations.log` below the engine's root, and up to three older ones, `operations.log.1`
//! being the youngest of these. A line is appended with one write(2); a file that has a quarter of the bound becomes the next
//! older one before the line that would exceed it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use vessel_api::Operation;

/// How many older files there are at most.
pub(super) const OLDER: usize = 3;

/// The log.
#[derive(Debug)]
pub struct OperationLog {
    path: PathBuf,
    /// When a file is full; 0: nothing is logged.
    share: u64,
    inner: Mutex<Option<Open>>,
    /// Counts lines, for those who follow.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Open {
    file: File,
    size: u64,
    /// How often a new file was begun.
    generation: u64,
}

/// The files as they were at a moment, oldest first, for who reads and goes on.
#[derive(Debug)]
pub(super) struct View {
    pub files: Vec<File>,
    /// The generation of the last of them.
    pub generation: u64,
    pub changed: watch::Receiver<u64>,
}

impl OperationLog {
    /// Opens or makes the log in a directory. `bound`: bytes of all files together; 0: nothing is logged.
    ///
    /// # Errors
    /// The disk.
    pub fn open(directory: &Path, bound: u64) -> io::Result<Self> {
        let path = directory.join("operations.log");
        let share = bound / (OLDER as u64 + 1);
        let inner = if share == 0 {
            None
        } else {
            let mut file = appendable(&path)?;
            let mut size = file.metadata()?.len();
            if size > 0 {
                // A machine that went down may have left half a line.
                let mut last = [0];
                file.seek(SeekFrom::End(-1))?;
                file.read_exact(&mut last)?;
                if last != *b"\n" {
                    file.write_all(b"\n")?;
                    size += 1;
                }
            }
            Some(Open {
                file,
                size,
                generation: 0,
            })
        };
        Ok(Self {
            path,
            share,
            inner: Mutex::new(inner),
            changed: watch::Sender::new(0),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Option<Open>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn older(&self, number: u64) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// Appends a line. A disk that refuses costs the line, which is said; no operation fails for it.
    pub fn append(&self, operation: &Operation) {
        let written = || -> io::Result<()> {
            let mut inner = self.inner();
            let Some(open) = &mut *inner else { return Ok(()) };
            let mut line = serde_json::to_vec(operation)?;
            line.push(b'\n');
            if open.size > 0 && open.size + line.len() as u64 > self.share {
                self.rotate(open)?;
            }
            if let Err(error) = open.file.write_all(&line) {
                // What was written of it would be glued to the next.
                open.file.set_len(open.size)?;
                return Err(error);
            }
            open.size += line.len() as u64;
            Ok(())
        };
        if let Err(error) = written() {
            tracing::warn!(
                "write {}: {error}; an operation is missing there",
                self.path.display()
            );
        }
        self.changed.send_modify(|count| *count += 1);
    }

    fn rotate(&self, open: &mut Open) -> io::Result<()> {
        // Before any is renamed: as long as there is no new one, the older ones stay what they are.
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let file = appendable(Path::new(&new))?;
        file.set_len(0)?;
        for number in (1..OLDER as u64).rev() {
            absent(std::fs::rename(self.older(number), self.older(number + 1)))?;
        }
        absent(std::fs::rename(&self.path, self.older(1)))?;
        std::fs::rename(&new, &self.path)?;
        open.file = file;
        open.size = 0;
        open.generation += 1;
        Ok(())
    }

    /// The files now.
    pub(super) fn view(&self) -> io::Result<View> {
        let inner = self.inner();
        let mut files = Vec::new();
        if inner.is_some() {
            for number in (1..=OLDER as u64).rev() {
                files.extend(opened(&self.older(number))?);
            }
            files.extend(opened(&self.path)?);
        }
        Ok(View {
            files,
            generation: inner.as_ref().map_or(0, |open| open.generation),
            changed: self.changed.subscribe(),
        })
    }

    /// What was begun after the file of some generation; and which generation the last one is.
    pub(super) fn since(&self, generation: u64) -> io::Result<(Vec<File>, u64)> {
        let inner = self.inner();
        let now = inner.as_ref().map_or(0, |open| open.generation);
        let mut files = Vec::new();
        let begun = now - generation.min(now);
        for number in (1..begun.min(OLDER as u64 + 1)).rev() {
            files.extend(opened(&self.older(number))?);
        }
        if begun > 0 {
            files.extend(opened(&self.path)?);
        }
        Ok((files, now))
    }
}

fn appendable(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn opened(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(id: usize) -> Operation {
        Operation {
            id: format!("{id:012}"),
            ..Operation::default()
        }
    }

    fn lines(log: &OperationLog) -> Vec<String> {
        let mut text = String::new();
        for mut file in log.view().unwrap().files {
            file.read_to_string(&mut text).unwrap();
        }
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_newest_lines_stay_and_the_bound_holds() {
        let directory = tempfile::tempdir().unwrap();
        let log = OperationLog::open(directory.path(), 40_000).unwrap();
        for id in 0..1000 {
            log.append(&operation(id));
        }
        let sizes: u64 = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!((30_000..=40_000).contains(&sizes), "{sizes}");
        let left = lines(&log);
        let ids: Vec<usize> = left
            .iter()
            .map(|line| {
                serde_json::from_str::<Operation>(line)
                    .unwrap()
                    .id
                    .parse()
                    .unwrap()
            })
            .collect();
        assert_eq!(ids, (1000 - ids.len()..1000).collect::<Vec<_>>());
    }

    #[test]
    fn without_a_new_file_the_older_ones_stay() {
        let directory = tempfile::tempdir().unwrap();
        let log = OperationLog::open(directory.path(), 4000).unwrap();
        for id in 0..10 {
            log.append(&operation(id));
        }
        let before = lines(&log);
        // Not even root can open it to write.
        let obstacle = directory.path().join("operations.log.new");
        std::fs::create_dir(&obstacle).unwrap();
        for id in 10..100 {
            log.append(&operation(id));
        }
        let left = lines(&log);
        assert_eq!(left[..before.len()], before);
        std::fs::remove_dir(&obstacle).unwrap();
        log.append(&operation(100));
        let now = lines(&log);
        assert!(now.last().unwrap().contains("000000000100"), "{now:?}");
    }

    #[test]
    fn half_a_line_costs_itself_only() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("operations.log"), "{\"Id\":\"ha").unwrap();
        let log = OperationLog::open(directory.path(), 40_000).unwrap();
        log.append(&operation(7));
        let lines = lines(&log);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].contains("000000000007"));
    }

    #[test]
    fn without_a_bound_nothing_is_logged() {
        let directory = tempfile::tempdir().unwrap();
        let log = OperationLog::open(directory.path(), 0).unwrap();
        log.append(&operation(1));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(log.view().unwrap().files.is_empty());
    }
}
