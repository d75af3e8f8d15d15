//! The index on disk: lines that are appended, and rewritten when most of them say nothing any more.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Key, Record};
use crate::error::{Error, Result};

/// The largest index that is read; one beyond it begins anew.
const MAX_SIZE: u64 = 1 << 30;
/// The longest line.
const MAX_LINE: usize = 1 << 20;
/// An index is rewritten when it has this many bytes and at most half of its lines count.
const REWRITE: u64 = 256 << 10;
/// Hexadecimal digits of a line's checksum.
const SUM: usize = 16;

/// A line of the index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Line {
    Put(Record),
    Used { key: Key, at: i64 },
    Removed { key: Key },
}

/// The file.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Index {
    /// Opens an index and reads what of it is whole.
    pub fn open(path: &Path) -> Result<(Self, Vec<Line>)> {
        let fail = |error| Error::io(format!("cannot open {}", path.display()), error);
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(fail)?;
        let mut bytes = Vec::new();
        let length = file.metadata().map_err(fail)?.len();
        if length <= MAX_SIZE {
            file.read_to_end(&mut bytes).map_err(fail)?;
        } else {
            file.set_len(0).map_err(fail)?;
        }
        if bytes.last().is_some_and(|&byte| byte != b'\n') {
            // The line that was being written when the daemon was killed.
            file.write_all(b"\n").map_err(fail)?;
        }
        let size = file.seek(SeekFrom::End(0)).map_err(fail)?;
        let lines = parse(&bytes);
        Ok((
            Self {
                path: path.to_owned(),
                file,
                size,
            },
            lines,
        ))
    }

    pub fn append(&mut self, line: &Line) -> Result<()> {
        let text = encode(line)?;
        // One write: a line is whole or the last.
        self.file
            .write_all(&text)
            .map_err(|error| Error::io(format!("cannot write {}", self.path.display()), error))?;
        self.size += text.len() as u64;
        Ok(())
    }

    /// Writes the index anew when it is mostly history.
    pub fn rewrite_if_long<'a>(&mut self, records: impl Iterator<Item = &'a Record>) -> Result<()> {
        if self.size < REWRITE {
            return Ok(());
        }
        let mut text = Vec::new();
        for record in records {
            text.append(&mut encode(&Line::Put(record.clone()))?);
        }
        if self.size < text.len() as u64 * 2 {
            return Ok(());
        }
        let fail = |error| Error::io(format!("cannot rewrite {}", self.path.display()), error);
        let new = self.path.with_extension("new");
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(&new)
            .map_err(fail)?;
        file.set_len(0).map_err(fail)?;
        file.write_all(&text).map_err(fail)?;
        file.sync_data().map_err(fail)?;
        std::fs::rename(&new, &self.path).map_err(fail)?;
        self.size = text.len() as u64;
        self.file = file;
        Ok(())
    }
}

fn sum(text: &[u8]) -> String {
    let digest = Sha256::digest(text);
    digest[..SUM / 2]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn encode(line: &Line) -> Result<Vec<u8>> {
    let json = serde_json::to_string(line)
        .map_err(|error| Error::invalid(format!("cannot encode a cache record: {error}")))?;
    Ok(format!("{} {json}\n", sum(json.as_bytes())).into_bytes())
}

/// The lines that are whole.
pub(crate) fn parse(bytes: &[u8]) -> Vec<Line> {
    let mut skipped = 0usize;
    let mut lines = Vec::new();
    for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let read = (line.len() <= MAX_LINE)
            .then(|| line.split_at_checked(SUM))
            .flatten()
            .and_then(|(stated, rest)| Some((stated, rest.strip_prefix(b" ")?)))
            .filter(|(stated, json)| sum(json).as_bytes() == *stated)
            .and_then(|(_, json)| serde_json::from_slice(json).ok());
        match read {
            Some(line) => lines.push(line),
            None => skipped += 1,
        }
    }
    if skipped > 0 {
        tracing::info!(
            lines = skipped,
            "the build cache's index was damaged; what could be read is in use"
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vessel_image::{ChainId, DiffId, Digest};

    fn record(key: &str) -> Record {
        Record {
            alias_of: None,
            key: key.to_owned(),
            chain: ChainId(Digest::sha256(key.as_bytes())),
            diff: DiffId(Digest::sha256(b"diff")),
            description: "RUN \n\"x\"".to_owned(),
            size: 1,
            created: 2,
            used: 3,
            uses: 4,
        }
    }

    #[test]
    fn lines_survive_and_damage_costs_only_itself() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        let (mut index, lines) = Index::open(&path).unwrap();
        assert!(lines.is_empty());
        for key in ["a", "b", "c"] {
            index.append(&Line::Put(record(key))).unwrap();
        }
        index.append(&Line::Removed { key: "a".to_owned() }).unwrap();
        drop(index);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 3;
        bytes[middle] ^= 1;
        // A line that was cut off in the middle.
        bytes.extend_from_slice(b"0123456789abcdef {\"put\"");
        std::fs::write(&path, &bytes).unwrap();
        let (mut index, lines) = Index::open(&path).unwrap();
        assert_eq!(lines.len(), 3);
        index.append(&Line::Put(record("d"))).unwrap();
        drop(index);
        let (_, lines) = Index::open(&path).unwrap();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[3], Line::Put(record("d")));
    }

    #[test]
    fn rewriting_keeps_what_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        let (mut index, _) = Index::open(&path).unwrap();
        let kept = record("kept");
        while index.size < REWRITE {
            index.append(&Line::Put(kept.clone())).unwrap();
        }
        index.rewrite_if_long([&kept].into_iter()).unwrap();
        index
            .append(&Line::Used {
                key: "kept".to_owned(),
                at: 9,
            })
            .unwrap();
        drop(index);
        let (_, lines) = Index::open(&path).unwrap();
        assert_eq!(lines.len(), 2);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(parse(&bytes).len() <= bytes.len());
        }
    }
}
