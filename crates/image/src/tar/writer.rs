//! Writing archives: ustar headers, pax records only where ustar cannot hold a value.

use std::io::{self, Write};

use super::header::{BLOCK, Entry, Kind};

/// Writes entries one after the other.
pub(crate) struct TarWriter<W> {
    output: W,
    padding: usize,
}

/// What fits into an octal field of 7 and 11 digits.
const MAX_7: u64 = 0o7_777_777;
const MAX_11: u64 = 0o77_777_777_777;

impl<W: Write> TarWriter<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output, padding: 0 }
    }

    /// Writes the header of an entry. `entry.size` bytes of payload must follow through [`Self::payload`].
    pub(crate) fn header(&mut self, entry: &Entry) -> io::Result<()> {
        self.pad()?;
        let mut records = Vec::new();
        let mut path = entry.path.as_slice();
        let name;
        let mut prefix = &[][..];
        if path.len() > 100 || !path.is_ascii() {
            match split(path) {
                Some((front, back)) if path.is_ascii() => (prefix, path) = (front, back),
                _ => {
                    record(&mut records, b"path", path);
                    name = ascii(path);
                    path = &name;
                }
            }
        }
        let link_name;
        let mut link = entry.link.as_slice();
        if link.len() > 100 || !link.is_ascii() {
            record(&mut records, b"linkpath", link);
            link_name = ascii(link);
            link = &link_name;
        }
        let size = if entry.kind == Kind::File { entry.size } else { 0 };
        if size > MAX_11 {
            record(&mut records, b"size", size.to_string().as_bytes());
        }
        for (key, id) in [(&b"uid"[..], entry.uid), (b"gid", entry.gid)] {
            if u64::from(id) > MAX_7 {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        let secs = u64::try_from(entry.mtime.secs)
            .ok()
            .filter(|&secs| secs <= MAX_11);
        if entry.mtime.nanos != 0 || secs.is_none() {
            record(&mut records, b"mtime", time(entry).as_bytes());
        }
        for (key, value) in &entry.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", key.as_slice()].concat(), value);
        }
        if !records.is_empty() {
            let block = block(
                b"PaxHeaders/entry",
                b"",
                b"",
                b'x',
                0o644,
                (0, 0),
                records.len() as u64,
                0,
                (0, 0),
            );
            self.output.write_all(&block)?;
            self.output.write_all(&records)?;
            self.padding = records.len().wrapping_neg() % BLOCK;
            self.pad()?;
        }
        let flag = match entry.kind {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::Char => b'3',
            Kind::Block => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        let ids = (u64::from(entry.uid).min(MAX_7), u64::from(entry.gid).min(MAX_7));
        let block = block(
            path,
            prefix,
            link,
            flag,
            entry.mode,
            ids,
            size.min(MAX_11),
            secs.unwrap_or(0),
            entry.device,
        );
        self.output.write_all(&block)?;
        self.padding = size.wrapping_neg() as usize % BLOCK;
        Ok(())
    }

    /// Where the payload of the entry is written.
    pub(crate) fn payload(&mut self) -> &mut W {
        &mut self.output
    }

    /// A whole small file.
    pub(crate) fn file(&mut self, path: &str, data: &[u8]) -> io::Result<()> {
        self.header(&plain(path, Kind::File, data.len() as u64))?;
        self.output.write_all(data)
    }

    /// Ends the archive and gives the output back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.pad()?;
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()?;
        Ok(self.output)
    }

    /// Ends the last entry, and not the archive.
    pub(crate) fn pause(mut self) -> io::Result<()> {
        self.pad()?;
        self.output.flush()
    }

    fn pad(&mut self) -> io::Result<()> {
        let n = std::mem::take(&mut self.padding);
        self.output.write_all(&[0; BLOCK][..n])
    }
}

/// An entry with nothing special: owned by root, dated 1970, so that archives are reproducible.
pub(crate) fn plain(path: &str, kind: Kind, size: u64) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: if kind == Kind::Directory { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        size,
        mtime: super::Timestamp::default(),
        link: Vec::new(),
        device: (0, 0),
        xattrs: Vec::new(),
        sparse: None,
    }
}

/// Splits a long path at a slash so that it fits ustar's prefix (155) and name (100).
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = (1..path.len().saturating_sub(1))
        .filter(|&i| path[i] == b'/')
        .find(|&i| i <= 155 && path.len() - i - 1 <= 100)?;
    Some((&path[..at], &path[at + 1..]))
}

fn ascii(path: &[u8]) -> Vec<u8> {
    path.iter()
        .take(100)
        .map(|&b| if b.is_ascii() { b } else { b'_' })
        .collect()
}

fn time(entry: &Entry) -> String {
    let (secs, nanos) = (entry.mtime.secs, entry.mtime.nanos);
    if nanos == 0 {
        secs.to_string()
    } else if secs >= 0 {
        format!("{secs}.{nanos:09}")
    } else {
        // -2 s + 0.75 s is written -1.25.
        let whole = secs + 1;
        let sign = if whole == 0 { "-" } else { "" };
        format!("{sign}{whole}.{:09}", 1_000_000_000 - nanos)
    }
}

/// One pax record; its length counts its own digits.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[allow(clippy::too_many_arguments, reason = "they are the fields of one header")]
fn block(
    path: &[u8],
    prefix: &[u8],
    link: &[u8],
    flag: u8,
    mode: u32,
    (uid, gid): (u64, u64),
    size: u64,
    mtime: u64,
    device: (u32, u32),
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path);
    put(100, format!("{mode:07o}").as_bytes());
    put(108, format!("{uid:07o}").as_bytes());
    put(116, format!("{gid:07o}").as_bytes());
    put(124, format!("{size:011o}").as_bytes());
    put(136, format!("{mtime:011o}").as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, link);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}", device.0 & 0o7_777_777).as_bytes());
    put(337, format!("{:07o}", device.1 & 0o7_777_777).as_bytes());
    put(345, prefix);
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::super::{TarReader, Timestamp};
    use super::*;
    use proptest::prelude::*;

    fn round_trip(entry: &Entry, payload: &[u8]) -> (Entry, Vec<u8>) {
        let mut writer = TarWriter::new(Vec::new());
        writer.header(entry).unwrap();
        writer.payload().write_all(payload).unwrap();
        let archive = writer.finish().unwrap();
        assert_eq!(archive.len() % BLOCK, 0);
        let mut raw = 0;
        let mut reader = TarReader::new(&archive[..]);
        let mut tap = |bytes: &[u8]| {
            raw += bytes.len();
            Ok(())
        };
        let read = reader.next(&mut tap).unwrap().unwrap();
        let data = reader.read_all(1 << 20).unwrap();
        assert!(reader.next(&mut tap).unwrap().is_none());
        assert_eq!(raw + payload.len(), archive.len());
        (read, data)
    }

    proptest! {
        #[test]
        fn entries_round_trip(
            path in "[a-zé/]{1,300}", link in "[a-z/]{0,200}", mode in 0u32..0o10000, uid: u32, gid: u32,
            secs in -10_000_000_000i64..100_000_000_000, nanos in 0u32..1_000_000_000, payload in proptest::collection::vec(any::<u8>(), 0..1500),
            xattr in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let entry = Entry {
                path: path.trim_end_matches('/').as_bytes().to_vec(), link: link.into_bytes(), mode, uid, gid,
                mtime: Timestamp { secs, nanos }, size: payload.len() as u64,
                xattrs: vec![(b"user.x".to_vec(), xattr)], ..plain("", Kind::File, 0)
            };
            prop_assume!(!entry.path.is_empty());
            let (read, data) = round_trip(&entry, &payload);
            prop_assert_eq!(read, entry);
            prop_assert_eq!(data, payload);
        }

        #[test]
        fn the_reader_never_panics(mut data in proptest::collection::vec(any::<u8>(), 0..2000), flips in proptest::collection::vec((0usize..1024, any::<u8>()), 0..4)) {
            let _ = TarReader::new(&data[..]).next(&mut |_| Ok(()));
            // A valid archive with a few wrong bytes and a right checksum gets further.
            let mut writer = TarWriter::new(Vec::new());
            writer.file("a", b"x").unwrap();
            data.clear();
            data.extend(writer.finish().unwrap());
            for (at, value) in flips {
                data[at] = value;
            }
            let sum: u32 = data[..512].iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u32::from(b) }).sum();
            data[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            let mut reader = TarReader::new(&data[..]);
            while let Ok(Some(_)) = reader.next(&mut |_| Ok(())) {}
        }
    }
}
