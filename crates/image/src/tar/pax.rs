//! Pax extended headers: `length key=value\n` records that override what the ustar header can hold.

use super::header::{Sparse, Timestamp, size};
use crate::error::{Error, Result, show};

/// The most extended attributes of one entry; the kernel keeps at most 64 KiB of their names.
const MAX_XATTRS: usize = 1024;
/// The most pieces of a sparse file.
pub(super) const MAX_RANGES: usize = 1 << 17;

/// What extended headers said about the next entry.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<Timestamp>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse_name: Option<Vec<u8>>,
    pub(crate) sparse_size: Option<u64>,
    pub(crate) sparse_ranges: Vec<(u64, u64)>,
    pub(crate) sparse_offset: Option<u64>,
    pub(crate) sparse_seen: bool,
    pub(crate) sparse_major: Option<u64>,
}

impl Pax {
    /// Takes in the records of one header; later ones win.
    pub(crate) fn read(&mut self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let (key, value, rest) = record(data)?;
            self.apply(key, value)?;
            data = rest;
        }
        Ok(())
    }

    /// What a global header can say about every entry after it. Names, sizes, sparse maps and attributes are of one
    /// file; kept for all, an archive could make each of its entries cost megabytes.
    pub(super) fn common(self) -> Self {
        Self {
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            ..Self::default()
        }
    }

    /// Whether the sparse map precedes the payload (format 1.0).
    pub(crate) fn sparse_map_in_payload(&self) -> bool {
        self.sparse_major == Some(1)
    }

    /// The sparse map of formats 0.0 and 0.1.
    pub(crate) fn sparse(&self) -> Result<Option<Sparse>> {
        if !self.sparse_seen {
            return Ok(None);
        }
        let size = self
            .sparse_size
            .ok_or_else(|| Error::invalid("a sparse file in the archive has no size"))?;
        Ok(Some(Sparse {
            size,
            ranges: self.sparse_ranges.clone(),
        }))
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = number(value)?,
            b"uid" => self.uid = id(value)?,
            b"gid" => self.gid = id(value)?,
            b"mtime" => self.mtime = time(value)?,
            b"GNU.sparse.name" => self.sparse_name = text(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = number(value)?,
            b"GNU.sparse.major" => self.sparse_major = number(value)?,
            b"GNU.sparse.numblocks" => self.sparse_seen = true,
            b"GNU.sparse.offset" => {
                self.sparse_seen = true;
                self.sparse_offset = number(value)?;
            }
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse_offset.take().ok_or_else(|| bad(value))?;
                self.range(offset, number(value)?.ok_or_else(|| bad(value))?)?;
            }
            b"GNU.sparse.map" => {
                self.sparse_seen = true;
                self.sparse_ranges.clear();
                let mut numbers = value.split(|&b| b == b',').filter(|n| !n.is_empty());
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().ok_or_else(|| bad(value))?;
                    let offset = number(offset)?.ok_or_else(|| bad(value))?;
                    self.range(offset, number(length)?.ok_or_else(|| bad(value))?)?;
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.contains(&0) || name.len() > 255 {
                        return Err(Error::invalid(format!(
                            "the name of an extended attribute is not valid: {}",
                            show(name)
                        )));
                    }
                    self.xattrs.retain(|(n, _)| n != name);
                    if self.xattrs.len() == MAX_XATTRS {
                        return Err(Error::limit(format!(
                            "an entry of the archive has more than {MAX_XATTRS} extended attributes"
                        )));
                    }
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    fn range(&mut self, offset: u64, length: u64) -> Result<()> {
        if self.sparse_ranges.len() == MAX_RANGES {
            return Err(Error::limit(format!(
                "a sparse file in the archive has more than {MAX_RANGES} pieces"
            )));
        }
        self.sparse_ranges.push((offset, length));
        Ok(())
    }
}

fn bad(value: &[u8]) -> Error {
    Error::invalid(format!("a pax header's value is malformed: {}", show(value)))
}

fn record(data: &[u8]) -> Result<(&[u8], &[u8], &[u8])> {
    let malformed = || Error::invalid(format!("a pax header is malformed: {}", show(data)));
    // Twenty digits hold any length there can be.
    let space = data
        .iter()
        .take(20)
        .position(|&b| b == b' ')
        .ok_or_else(malformed)?;
    let length: usize = std::str::from_utf8(&data[..space])
        .ok()
        .and_then(|n| n.parse().ok())
        .ok_or_else(malformed)?;
    if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
        return Err(malformed());
    }
    let body = &data[space + 1..length - 1];
    let equals = body.iter().position(|&b| b == b'=').ok_or_else(malformed)?;
    if equals == 0 {
        return Err(malformed());
    }
    Ok((&body[..equals], &body[equals + 1..], &data[length..]))
}

/// An empty value takes the record back.
fn text(value: &[u8]) -> Result<Option<Vec<u8>>> {
    if value.contains(&0) {
        return Err(Error::invalid(format!(
            "a name in the archive contains a null byte: {}",
            show(value)
        )));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn number(value: &[u8]) -> Result<Option<u64>> {
    if value.is_empty() {
        return Ok(None);
    }
    let value: i64 = std::str::from_utf8(value)
        .ok()
        .and_then(|n| n.parse().ok())
        .ok_or_else(|| bad(value))?;
    size(value).map(Some)
}

fn id(value: &[u8]) -> Result<Option<u32>> {
    number(value)?
        .map(|n| u32::try_from(n).map_err(|_| bad(value)))
        .transpose()
}

fn time(value: &[u8]) -> Result<Option<Timestamp>> {
    if value.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(value).map_err(|_| bad(value))?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut secs: i64 = whole.parse().map_err(|_| bad(value))?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad(value));
    }
    let mut nanos = 0u32;
    for digit in fraction.bytes().chain(std::iter::repeat(b'0')).take(9) {
        nanos = nanos * 10 + u32::from(digit - b'0');
    }
    if whole.starts_with('-') && nanos > 0 {
        secs = secs.checked_sub(1).ok_or_else(|| bad(value))?;
        nanos = 1_000_000_000 - nanos;
    }
    Ok(Some(Timestamp { secs, nanos }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_records() {
        let mut pax = Pax::default();
        pax.read(b"16 path=a/b/c/d\n21 mtime=-1.25000000\n27 SCHILY.xattr.user.a=b=c\n")
            .unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b/c/d"[..]));
        assert_eq!(
            pax.mtime,
            Some(Timestamp {
                secs: -2,
                nanos: 750_000_000
            })
        );
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"b=c".to_vec())]);
        pax.read(b"8 path=\n").unwrap();
        assert_eq!(pax.path, None);
        pax.read(b"28 GNU.sparse.map=0,5,10,20\n").unwrap();
        assert_eq!(pax.sparse_ranges, [(0, 5), (10, 20)]);
    }

    #[test]
    fn refuses_malformed_records() {
        for bad in [
            &b"x"[..],
            b"5 a=b",
            b"99 a=b\n",
            b"0 a=b\n",
            b"6 =bcd\n",
            b"6 abc\n",
            b"10 path=\0x\n",
            b"10 size=-1\n",
        ] {
            assert!(Pax::default().read(bad).is_err(), "{}", show(bad));
        }
    }

    proptest! {
        #[test]
        fn never_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Pax::default().read(&data);
        }

        #[test]
        fn never_panics_on_near_misses(data in "([0-9]{1,3} (path|size|mtime|GNU.sparse.(map|offset|numbytes))=[0-9.,\\-]{0,20}\n){0,4}") {
            let _ = Pax::default().read(data.as_bytes());
        }
    }
}
