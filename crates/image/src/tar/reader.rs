//! The sequence of entries in an archive.

use std::io::{self, BufRead};

use super::header::{BLOCK, Entry, Header, Kind, MAX_PATH, Sparse, Timestamp, gnu_sparse_extension};
use super::pax::{MAX_RANGES, Pax};
use crate::chunk::{Chunk, ChunkReader, Source};
use crate::error::{Error, Result, show};

/// The largest pax header, as in Go's reader.
const MAX_PAX: u64 = 1 << 20;
/// The most extended headers in front of one entry.
const MAX_EXTENSIONS: usize = 16;

/// Receives the bytes of an archive that are not payload of an entry, in order.
pub(crate) type Tap<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// Reads entries; the payload of each is read (or skipped) before the next one.
pub(crate) struct TarReader<R> {
    input: R,
    /// Payload of the current entry that was not read yet.
    remaining: u64,
    /// Padding after it.
    padding: usize,
    global: Pax,
}

impl<R: BufRead> TarReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            remaining: 0,
            padding: 0,
            global: Pax::default(),
        }
    }

    /// The next entry; `None` at the end of the archive.
    pub(crate) fn next(&mut self, tap: Tap<'_>) -> Result<Option<Entry>> {
        let mut pax = self.global.clone();
        let (mut long_path, mut long_link) = (None, None);
        for extensions in 0.. {
            self.skip(tap)?;
            let Some(block) = self.block(tap)? else {
                return if extensions == 0 {
                    Ok(None)
                } else {
                    Err(truncated())
                };
            };
            if block == [0; BLOCK] {
                return match self.block(tap)? {
                    // Some writers leave out the second one.
                    None | Some([0, ..]) => Ok(None),
                    Some(_) => Err(Error::invalid(
                        "the tar archive is damaged: data follows an empty block",
                    )),
                };
            }
            if extensions > MAX_EXTENSIONS {
                return Err(Error::limit("too many extended headers in front of one entry"));
            }
            let header = Header::new(&block)?;
            match header.type_flag() {
                b'x' | b'X' => {
                    let data = self.metadata(header.size()?, MAX_PAX, tap)?;
                    pax.read(&data)?;
                }
                b'g' => {
                    let data = self.metadata(header.size()?, MAX_PAX, tap)?;
                    let mut said = Pax::default();
                    said.read(&data)?;
                    (pax.uid, pax.gid) = (said.uid.or(pax.uid), said.gid.or(pax.gid));
                    pax.mtime = said.mtime.or(pax.mtime);
                    self.global.read(&data)?;
                    self.global = std::mem::take(&mut self.global).common();
                }
                b'L' => long_path = Some(self.long_name(header.size()?, tap)?),
                b'K' => long_link = Some(self.long_name(header.size()?, tap)?),
                _ => return self.entry(&header, pax, long_path, long_link, tap).map(Some),
            }
        }
        Ok(None)
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        mut pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        tap: Tap<'_>,
    ) -> Result<Entry> {
        let path = pax.path.take().or(long_path).unwrap_or_else(|| header.path());
        let link = pax.link.take().or(long_link).unwrap_or_else(|| header.link());
        let flag = header.type_flag();
        let kind = match flag {
            0 | b'0' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => {
                return Err(Error::new(
                    crate::ErrorKind::Unsupported,
                    format!(
                        "{}: entries of type {} are not supported",
                        show(&path),
                        show(&[flag])
                    ),
                ));
            }
        };
        // Only files have payload, whatever the size field says: GNU tar and Go agree on it.
        let size = if kind == Kind::File {
            pax.size.map_or_else(|| header.size(), Ok)?
        } else {
            0
        };
        self.remaining = size;
        self.padding = size.wrapping_neg() as usize % BLOCK;
        let device = match kind {
            Kind::Char | Kind::Block => header.device()?,
            _ => (0, 0),
        };
        let mut entry = Entry {
            kind,
            mode: header.mode()?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            size,
            mtime: match pax.mtime {
                Some(time) => time,
                None => Timestamp {
                    secs: header.mtime()?,
                    nanos: 0,
                },
            },
            link,
            device,
            xattrs: std::mem::take(&mut pax.xattrs),
            sparse: None,
            path,
        };
        if flag == b'S' {
            entry.sparse = Some(self.gnu_sparse(header, tap)?);
        } else if kind == Kind::File && pax.sparse_map_in_payload() {
            entry.sparse = Some(self.sparse_map(pax.sparse_size, tap)?);
        } else if kind == Kind::File {
            entry.sparse = pax.sparse()?;
        }
        entry.size = self.remaining;
        if let Some(sparse) = &entry.sparse {
            check_sparse(sparse, entry.size).map_err(|e| e.context(show(&entry.path)))?;
            if let Some(name) = pax.sparse_name {
                entry.path = name;
            }
        }
        if entry.path.len() > MAX_PATH || entry.link.len() >= MAX_PATH {
            return Err(Error::limit(format!(
                "a path is longer than {MAX_PATH} bytes: {}",
                show(&entry.path)
            )));
        }
        Ok(entry)
    }

    /// Payload of the current entry that is at hand; empty when it was all read.
    pub(crate) fn payload(&mut self) -> Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let available = fill(&mut self.input)?;
        if available.is_empty() {
            return Err(truncated());
        }
        let n = available
            .len()
            .min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        Ok(&available[..n])
    }

    /// Marks payload as read.
    pub(crate) fn consume(&mut self, n: usize) {
        self.input.consume(n);
        self.remaining -= n as u64;
    }

    /// Reads the whole payload into memory, unless it is larger than `max`.
    pub(crate) fn read_all(&mut self, max: usize) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        if self.remaining > max as u64 {
            return Err(Error::limit(format!(
                "a document in the archive is larger than {max} bytes"
            )));
        }
        while self.remaining > 0 {
            let part = self.payload()?;
            out.extend_from_slice(part);
            let n = part.len();
            self.consume(n);
        }
        Ok(out)
    }

    /// Goes to the end of the current entry; what is left of its payload goes to the tap.
    pub(crate) fn skip(&mut self, tap: Tap<'_>) -> Result<()> {
        while self.remaining > 0 {
            let part = self.payload()?;
            tap(part)?;
            let n = part.len();
            self.consume(n);
        }
        while self.padding > 0 {
            let available = fill(&mut self.input)?;
            if available.is_empty() {
                return Err(truncated());
            }
            let n = available.len().min(self.padding);
            tap(&available[..n])?;
            self.input.consume(n);
            self.padding -= n;
        }
        Ok(())
    }

    /// Reads whatever follows the end of the archive.
    pub(crate) fn drain(&mut self, tap: Tap<'_>) -> Result<u64> {
        let mut total = 0;
        loop {
            let available = fill(&mut self.input)?;
            let n = available.len();
            if n == 0 {
                return Ok(total);
            }
            tap(available)?;
            total += n as u64;
            self.input.consume(n);
        }
    }

    /// A whole block, tapped; `None` at the end of the input.
    fn block(&mut self, tap: Tap<'_>) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let available = fill(&mut self.input)?;
            if available.is_empty() {
                return if have == 0 { Ok(None) } else { Err(truncated()) };
            }
            let n = available.len().min(BLOCK - have);
            block[have..have + n].copy_from_slice(&available[..n]);
            self.input.consume(n);
            have += n;
        }
        tap(&block)?;
        Ok(Some(block))
    }

    fn metadata(&mut self, size: u64, max: u64, tap: Tap<'_>) -> Result<Vec<u8>> {
        if size > max {
            return Err(Error::limit(format!(
                "an extended header is larger than {max} bytes"
            )));
        }
        self.remaining = size;
        self.padding = size.wrapping_neg() as usize % BLOCK;
        let data = self.read_all(max as usize)?;
        tap(&data)?;
        Ok(data)
    }

    fn long_name(&mut self, size: u64, tap: Tap<'_>) -> Result<Vec<u8>> {
        let data = self.metadata(size, MAX_PATH as u64 + 1, tap)?;
        Ok(super::header::until_nul(&data).to_vec())
    }

    fn gnu_sparse(&mut self, header: &Header<'_>, tap: Tap<'_>) -> Result<Sparse> {
        let (mut ranges, size, mut more) = header.gnu_sparse()?;
        while more {
            let block = self.block(tap)?.ok_or_else(truncated)?;
            let (next, again) = gnu_sparse_extension(&block)?;
            ranges.extend(next);
            if ranges.len() > MAX_RANGES {
                return Err(too_sparse());
            }
            more = again;
        }
        Ok(Sparse { size, ranges })
    }

    /// The map in front of the payload of a pax 1.0 sparse file: decimal lines, padded to a block.
    fn sparse_map(&mut self, size: Option<u64>, tap: Tap<'_>) -> Result<Sparse> {
        let size = size.ok_or_else(|| Error::invalid("a sparse file in the archive has no size"))?;
        let mut numbers = Vec::new();
        let (mut wanted, mut digits) = (1usize, Vec::new());
        while numbers.len() < wanted {
            if self.remaining < BLOCK as u64 {
                return Err(Error::invalid("the map of a sparse file is cut off"));
            }
            let block = self.block(tap)?.ok_or_else(truncated)?;
            self.remaining -= BLOCK as u64;
            for b in block {
                match b {
                    b'0'..=b'9' if digits.len() < 19 => digits.push(b),
                    b'\n' => {
                        let number = std::str::from_utf8(&digits)
                            .ok()
                            .and_then(|n| n.parse::<u64>().ok());
                        let number =
                            number.ok_or_else(|| Error::invalid("the map of a sparse file is malformed"))?;
                        digits.clear();
                        if numbers.is_empty() {
                            if number > MAX_RANGES as u64 {
                                return Err(too_sparse());
                            }
                            wanted = 1 + 2 * number as usize;
                        }
                        numbers.push(number);
                        if numbers.len() == wanted {
                            break;
                        }
                    }
                    _ => return Err(Error::invalid("the map of a sparse file is malformed")),
                }
            }
        }
        let ranges = numbers[1..]
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect();
        Ok(Sparse { size, ranges })
    }
}

impl<S: Source> TarReader<ChunkReader<S>> {
    /// The next piece of payload without copying; `None` at the end of the entry.
    pub(crate) fn payload_chunk(&mut self) -> Result<Option<Chunk>> {
        if self.remaining == 0 {
            return Ok(None);
        }
        let max = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let chunk = self
            .input
            .take_chunk(max)
            .map_err(|e| Error::input("cannot read the archive", e))?;
        let chunk = chunk.ok_or_else(truncated)?;
        self.remaining -= chunk.len() as u64;
        Ok(Some(chunk))
    }
}

fn check_sparse(sparse: &Sparse, payload: u64) -> Result<()> {
    let (mut end, mut total) = (0u64, 0u64);
    for &(offset, length) in &sparse.ranges {
        let next = offset.checked_add(length);
        match next {
            Some(next) if offset >= end && next <= sparse.size => end = next,
            _ => {
                return Err(Error::invalid(
                    "the map of a sparse file overlaps or exceeds the file",
                ));
            }
        }
        total += length;
    }
    if total != payload {
        return Err(Error::invalid("the map of a sparse file does not fit its data"));
    }
    Ok(())
}

fn too_sparse() -> Error {
    Error::limit(format!("a sparse file has more than {MAX_RANGES} pieces"))
}

fn truncated() -> Error {
    Error::invalid("the tar archive is truncated")
}

fn fill(input: &mut impl BufRead) -> Result<&[u8]> {
    // A borrow cannot be returned out of a retrying loop, so the retry comes first.
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::input("cannot read the archive", e)),
        }
    }
    input
        .fill_buf()
        .map_err(|e| Error::input("cannot read the archive", e))
}
