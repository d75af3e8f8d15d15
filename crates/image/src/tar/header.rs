//! One 512-byte header block, and the entry it and its extensions add up to.

use crate::error::{Error, Result, show};

/// The size of a tar block.
pub(crate) const BLOCK: usize = 512;
/// Longest path or link target: the kernel's PATH_MAX.
pub(crate) const MAX_PATH: usize = 4096;

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    File,
    /// Another name of a file that came earlier.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A point in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Timestamp {
    /// Seconds since 1970.
    pub(crate) secs: i64,
    /// Nanoseconds within the second.
    pub(crate) nanos: u32,
}

/// Offset and length of each piece of data in a sparse file.
pub(crate) type Ranges = Vec<(u64, u64)>;

/// A sparse file: its real size and where its data goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Size of the file with its holes.
    pub(crate) size: u64,
    /// The pieces, ascending.
    pub(crate) ranges: Ranges,
}

/// One member of an archive, with everything its extended headers said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// The name as in the archive, not checked.
    pub(crate) path: Vec<u8>,
    /// The type.
    pub(crate) kind: Kind,
    /// Permission bits with set-user-ID, set-group-ID and sticky.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Bytes of payload in the archive.
    pub(crate) size: u64,
    /// Modification time.
    pub(crate) mtime: Timestamp,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the payload goes in a sparse file.
    pub(crate) sparse: Option<Sparse>,
}

/// A header block whose checksum is right.
pub(crate) struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    pub(crate) fn new(block: &'a [u8; BLOCK]) -> Result<Self> {
        let header = Self(block);
        let expected = octal_or_binary(header.field(148, 8)).map_err(|_| not_tar())?;
        let sum = |f: fn(u8) -> i64| -> i64 {
            block
                .iter()
                .enumerate()
                .map(|(i, &b)| if (148..156).contains(&i) { 32 } else { f(b) })
                .sum()
        };
        // Ancient tars summed signed bytes.
        if expected != sum(i64::from) && expected != sum(|b| i64::from(b.cast_signed())) {
            return Err(not_tar());
        }
        Ok(header)
    }

    fn field(&self, at: usize, len: usize) -> &'a [u8] {
        &self.0[at..at + len]
    }

    pub(crate) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the prefix of ustar.
    pub(crate) fn path(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        // GNU's magic is "ustar  ": it has other fields where POSIX has the prefix.
        let prefix = if self.field(257, 6) == b"ustar\0" {
            until_nul(self.field(345, 155))
        } else {
            b""
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        until_nul(self.field(157, 100)).to_vec()
    }

    pub(crate) fn mode(&self) -> Result<u32> {
        Ok((octal_or_binary(self.field(100, 8))? & 0o7777) as u32)
    }

    pub(crate) fn uid(&self) -> Result<u32> {
        small(octal_or_binary(self.field(108, 8))?, "owner")
    }

    pub(crate) fn gid(&self) -> Result<u32> {
        small(octal_or_binary(self.field(116, 8))?, "group")
    }

    pub(crate) fn size(&self) -> Result<u64> {
        size(octal_or_binary(self.field(124, 12))?)
    }

    pub(crate) fn mtime(&self) -> Result<i64> {
        octal_or_binary(self.field(136, 12))
    }

    pub(crate) fn device(&self) -> Result<(u32, u32)> {
        let major = small(octal_or_binary(self.field(329, 8))?, "device number")?;
        Ok((
            major,
            small(octal_or_binary(self.field(337, 8))?, "device number")?,
        ))
    }

    /// The four pieces in an old GNU sparse header, the real size, and whether more blocks follow.
    pub(crate) fn gnu_sparse(&self) -> Result<(Ranges, u64, bool)> {
        let ranges = sparse_fields(self.field(386, 96))?;
        Ok((
            ranges,
            size(octal_or_binary(self.field(483, 12))?)?,
            self.0[482] != 0,
        ))
    }
}

/// The pieces in a block that extends an old GNU sparse header, and whether one more follows.
pub(crate) fn gnu_sparse_extension(block: &[u8; BLOCK]) -> Result<(Ranges, bool)> {
    Ok((sparse_fields(&block[..504])?, block[504] != 0))
}

fn sparse_fields(fields: &[u8]) -> Result<Ranges> {
    let mut ranges = Vec::new();
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        ranges.push((
            size(octal_or_binary(&pair[..12])?)?,
            size(octal_or_binary(&pair[12..])?)?,
        ));
    }
    Ok(ranges)
}

/// Whether a block is the header of an entry.
pub(crate) fn is_header(block: &[u8; BLOCK]) -> bool {
    block[0] != 0 && Header::new(block).is_ok()
}

fn not_tar() -> Error {
    Error::invalid("it is not a tar archive, or it is damaged: a header's checksum is wrong")
}

fn small(value: i64, what: &str) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::invalid(format!("an entry's {what} {value} is out of range")))
}

pub(crate) fn size(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| Error::invalid("an entry's size is negative"))
}

pub(crate) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// A number in octal, or in base 256 (GNU) when the first bit is set.
fn octal_or_binary(field: &[u8]) -> Result<i64> {
    let bad = || Error::invalid(format!("a number in a tar header is malformed: {}", show(field)));
    if let Some((&first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for b in std::iter::once(if negative { first } else { first & 0x7f }).chain(rest.iter().copied()) {
            // Sign extension must not be shifted out.
            if value >> 55 != 0 && value >> 55 != -1 {
                return Err(bad());
            }
            value = (value << 8) | i64::from(b);
        }
        return Ok(value);
    }
    let text = until_nul(field);
    let text = text.trim_ascii();
    if text.is_empty() {
        return Ok(0);
    }
    let mut value: i64 = 0;
    for &b in text {
        if !(b'0'..=b'7').contains(&b) {
            return Err(bad());
        }
        value = value
            .checked_mul(8)
            .and_then(|v| v.checked_add(i64::from(b - b'0')))
            .ok_or_else(bad)?;
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(octal_or_binary(b"0000644\0").unwrap(), 0o644);
        assert_eq!(octal_or_binary(b"   644 \0").unwrap(), 0o644);
        assert_eq!(octal_or_binary(b"\0\0\0\0").unwrap(), 0);
        assert_eq!(
            octal_or_binary(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]).unwrap(),
            (2 << 32) + 1
        );
        assert_eq!(octal_or_binary(&[0xff; 12]).unwrap(), -1);
        assert!(
            octal_or_binary(&[
                0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
            ])
            .is_err()
        );
        assert!(octal_or_binary(b"12x4\0").is_err());
        assert!(octal_or_binary(b"-1\0").is_err());
    }
}
