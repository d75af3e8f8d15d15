//! The journal file: replay, append, compaction.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::record::{self, Operation};
use crate::error::Context;
use crate::{Error, Result};

const NAME: &str = "state.journal";
const NEW_NAME: &str = "state.journal.new";
/// The first bytes of the file: what it is and in which version.
const SIGNATURE: &[u8; 16] = b"vessel journal 1";
/// Below this size a journal is not compacted, whatever it holds.
const SMALL: u64 = 1 << 20;

/// Tables by name, values by key.
pub(super) type Tables = BTreeMap<Box<str>, BTreeMap<Box<str>, Arc<[u8]>>>;

/// What was found when the journal was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes at the end that were no whole record: a change that was never acknowledged.
    pub torn: u64,
    /// Bytes in the middle that were damaged; changes they held are lost.
    pub damaged: u64,
    /// Where a copy of the damaged journal was put.
    pub set_aside: Option<PathBuf>,
}

/// The map and the file it is kept in.
#[derive(Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    file: Arc<File>,
    /// Where the next record goes.
    end: u64,
    /// Bytes a journal of only the live values would have.
    live: u64,
    tables: Tables,
    /// Records appended while a compaction is under way.
    tail: Option<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Journal {
    /// Opens or makes the journal in `directory`.
    pub fn open(directory: &Path) -> Result<(Self, Recovery)> {
        let path = directory.join(NAME);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
            .context(|| format!("open the state journal {}", path.display()))?;
        let mut file = File::from(file);
        let mut data = Vec::new();
        file.read_to_end(&mut data)
            .context(|| format!("read the state journal {}", path.display()))?;

        let write = |offset, bytes: &[u8]| {
            file.write_all_at(bytes, offset)
                .context(|| format!("write the state journal {}", path.display()))
        };
        if data.len() < SIGNATURE.len() && SIGNATURE.starts_with(&data) {
            write(0, SIGNATURE)?;
            data = SIGNATURE.to_vec();
        }
        if !data.starts_with(SIGNATURE) {
            return Err(Error::system(format!(
                "{} is not a state journal of this version of Vessel: move it away to start empty, or use the version that wrote it",
                path.display()
            )));
        }

        let mut journal = Self {
            directory: directory.to_owned(),
            file: Arc::new(
                file.try_clone()
                    .context(|| "duplicate the state journal's descriptor")?,
            ),
            end: SIGNATURE.len() as u64,
            live: SIGNATURE.len() as u64,
            tables: Tables::new(),
            tail: None,
            buffer: Vec::new(),
        };
        let mut recovery = journal.replay(&data);
        if recovery.damaged > 0 {
            let aside = directory.join(format!("{NAME}.damaged-{}", crate::time::now() / 1_000_000_000));
            std::fs::copy(&path, &aside)
                .context(|| format!("set the damaged state journal aside as {}", aside.display()))?;
            recovery.set_aside = Some(aside);
            journal.compact()?;
        } else if recovery.torn > 0 {
            file.set_len(journal.end)
                .context(|| format!("truncate the state journal {}", path.display()))?;
        }
        Ok((journal, recovery))
    }

    /// Applies every whole record. A damaged stretch is skipped up to the next whole record; if there is none, it is
    /// the torn end of an interrupted write.
    fn replay(&mut self, data: &[u8]) -> Recovery {
        let mut recovery = Recovery::default();
        let mut at = SIGNATURE.len();
        while at < data.len() {
            if let Some((operation, length)) = record::decode(&data[at..]) {
                self.apply(operation);
                at += length;
                self.end = at as u64;
                continue;
            }
            let next = (at + 1..data.len().saturating_sub(record::HEADER)).find(|&start| {
                data[start..].starts_with(&record::MAGIC) && record::decode(&data[start..]).is_some()
            });
            match next {
                Some(next) => {
                    recovery.damaged += (next - at) as u64;
                    at = next;
                }
                None => {
                    recovery.torn = (data.len() - at) as u64;
                    break;
                }
            }
        }
        recovery
    }

    fn apply(&mut self, operation: Operation<'_>) {
        let Operation { table, key, value } = operation;
        let old = match value {
            Some(value) => {
                self.live += record::size(table, key, value.len());
                if !self.tables.contains_key(table) {
                    self.tables.insert(table.into(), BTreeMap::new());
                }
                self.tables
                    .get_mut(table)
                    .and_then(|values| values.insert(key.into(), value.into()))
            }
            None => self.tables.get_mut(table).and_then(|values| values.remove(key)),
        };
        if let Some(old) = old {
            self.live = self.live.saturating_sub(record::size(table, key, old.len()));
        }
    }

    /// Writes a change and makes it. On failure nothing has changed: the next record overwrites what was written of
    /// this one.
    pub fn append(&mut self, operation: Operation<'_>) -> Result<()> {
        self.buffer.clear();
        record::encode(&mut self.buffer, operation).ok_or_else(|| {
            Error::invalid(format!(
                "{} {} is too large to be stored",
                operation.table, operation.key
            ))
        })?;
        if let Err(error) = self.file.write_all_at(&self.buffer, self.end) {
            // What was written is cut off, so that the room is free again; if that fails too it is overwritten.
            let _ = self.file.set_len(self.end);
            return Err(error)
                .context(|| format!("write the state journal {}", self.directory.join(NAME).display()));
        }
        self.end += self.buffer.len() as u64;
        if let Some(tail) = &mut self.tail {
            tail.extend_from_slice(&self.buffer);
        }
        self.apply(operation);
        if self.buffer.capacity() > 64 << 10 {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Whether more than half of the file is of no use any more.
    pub fn wants_compaction(&self) -> bool {
        self.tail.is_none() && self.end > SMALL && self.live < self.end / 2
    }

    /// Compacts in one go; nobody else uses the journal.
    fn compact(&mut self) -> Result<()> {
        let snapshot = self.begin_compaction();
        let new = write_compacted(&snapshot)?;
        self.finish_compaction(new)
    }

    /// First step of a compaction: a snapshot, shared not copied. Changes go on.
    pub fn begin_compaction(&mut self) -> Snapshot {
        self.tail = Some(Vec::new());
        Snapshot {
            path: self.directory.join(NEW_NAME),
            tables: self
                .tables
                .iter()
                .map(|(name, values)| (name.clone(), values.clone()))
                .collect(),
        }
    }

    /// Gives a compaction up.
    pub fn abort_compaction(&mut self) {
        self.tail = None;
    }

    /// Last step: adds what changed meanwhile, syncs it, and puts the new file in the old one's place.
    pub fn finish_compaction(&mut self, new: Compacted) -> Result<()> {
        let tail = self.tail.take().unwrap_or_default();
        let target = self.directory.join(NAME);
        let fail = || format!("compact the state journal {}", target.display());
        if !tail.is_empty() {
            new.file.write_all_at(&tail, new.end).context(fail)?;
            new.file.sync_data().context(fail)?;
        }
        std::fs::rename(self.directory.join(NEW_NAME), &target).context(fail)?;
        self.end = new.end + tail.len() as u64;
        self.file = Arc::new(new.file);
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .context(fail)
    }
}

/// The map at one moment.
pub(super) struct Snapshot {
    path: PathBuf,
    tables: Tables,
}

/// A new journal, written and synced, not yet in place.
pub(super) struct Compacted {
    file: File,
    end: u64,
}

/// Middle step of a compaction: writes the snapshot. Needs no lock.
pub(super) fn write_compacted(snapshot: &Snapshot) -> Result<Compacted> {
    let fail = || format!("write the compacted state journal {}", snapshot.path.display());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::open(&snapshot.path, flags, Mode::from_raw_mode(0o600)).context(fail)?);
    let mut end = 0;
    let mut buffer = SIGNATURE.to_vec();
    for (table, values) in &snapshot.tables {
        for (key, value) in values {
            // It was encoded before, so it can be encoded again.
            let _ = record::encode(
                &mut buffer,
                Operation {
                    table,
                    key,
                    value: Some(value),
                },
            );
            if buffer.len() > 256 << 10 {
                file.write_all_at(&buffer, end).context(fail)?;
                end += buffer.len() as u64;
                buffer.clear();
            }
        }
    }
    file.write_all_at(&buffer, end).context(fail)?;
    end += buffer.len() as u64;
    file.sync_data().context(fail)?;
    Ok(Compacted { file, end })
}
