//! The skeleton of a layer's archive: everything but the files' contents.
//!
//! A layer is kept unpacked only, yet `save` and `push` need its exact archive, or its diff ID would change.
//! So all bytes that are not payload of a file (headers, padding, the end) are kept in order, zstd-compressed,
//! with references to the files where the payload went. About 1 % of the archive's size remains.
//!
//! A sequence of records, each a tag byte and its fields; numbers are LEB128:
//!
//! ```text
//! 1 length bytes…                    bytes of the archive
//! 2 path-length path offset length   a piece of a file below diff/
//! 3 path-length path number          the path was replaced: it is now replaced/NUMBER
//! ```
//!
//! A name that occurs twice in an archive replaces the first file, whose content is needed all the same: it
//! moves to `replaced/`, and a record says so for every reference before it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result, show};
use crate::fs::Recorder;

const MAGIC: &[u8; 8] = b"VSLTAR\x001";
const RAW: u8 = 1;
const PAYLOAD: u8 = 2;
const REPLACED: u8 = 3;
/// Raw bytes are written in records of at most this size.
const MAX_RAW: usize = 64 << 10;
/// Longest path in a record.
const MAX_PATH: u64 = 8192;

/// Writes a skeleton while a layer is unpacked.
pub(crate) struct SplitWriter {
    output: zstd::Encoder<'static, BufWriter<File>>,
    raw: Vec<u8>,
    directory: OwnedFd,
    replaced: Option<OwnedFd>,
    replacements: u64,
}

impl SplitWriter {
    /// Makes `tar-split` in a layer's directory.
    pub(crate) fn create(layer: &Path) -> Result<Self> {
        let fail = |e| Error::io("cannot make the layer's tar-split", e);
        let file = File::create_new(layer.join("tar-split")).map_err(fail)?;
        let directory = File::open(layer).map_err(fail)?.into();
        let mut output = zstd::Encoder::new(BufWriter::new(file), 3).map_err(fail)?;
        output.include_checksum(true).map_err(fail)?;
        output.write_all(MAGIC).map_err(fail)?;
        Ok(Self {
            output,
            raw: Vec::with_capacity(MAX_RAW),
            directory,
            replaced: None,
            replacements: 0,
        })
    }

    /// Completes the file.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.flush_raw()?;
        let buffered = self.output.finish().map_err(write_failed)?;
        buffered.into_inner().map_err(|e| write_failed(e.into_error()))?;
        Ok(())
    }

    fn flush_raw(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let mut head = vec![RAW];
        number(&mut head, self.raw.len() as u64);
        self.output.write_all(&head).map_err(write_failed)?;
        self.output.write_all(&self.raw).map_err(write_failed)?;
        self.raw.clear();
        Ok(())
    }

    fn record(&mut self, tag: u8, path: &[u8], numbers: &[u64]) -> Result<()> {
        self.flush_raw()?;
        let mut record = vec![tag];
        number(&mut record, path.len() as u64);
        record.extend_from_slice(path);
        for &n in numbers {
            number(&mut record, n);
        }
        self.output.write_all(&record).map_err(write_failed)
    }
}

impl Recorder for SplitWriter {
    fn raw(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let n = bytes.len().min(MAX_RAW - self.raw.len());
            self.raw.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.raw.len() == MAX_RAW {
                self.flush_raw()?;
            }
        }
        Ok(())
    }

    fn payload(&mut self, path: &[u8], offset: u64, length: u64) -> Result<()> {
        self.record(PAYLOAD, path, &[offset, length])
    }

    fn displace(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<bool> {
        let fail = |e| Error::io(format!("cannot set aside {}", show(path)), e);
        if self.replaced.is_none() {
            rustix::fs::mkdirat(&self.directory, "replaced", Mode::from_raw_mode(0o700)).map_err(fail)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&self.directory, "replaced", flags, Mode::empty()).map_err(fail)?;
            self.replaced = Some(fd);
        }
        let Some(replaced) = &self.replaced else {
            return Ok(false);
        };
        let n = self.replacements;
        rustix::fs::renameat(dir, name, replaced, n.to_string()).map_err(fail)?;
        self.replacements += 1;
        self.record(REPLACED, path, &[n])?;
        Ok(true)
    }
}

fn write_failed(e: io::Error) -> Error {
    Error::io("cannot write the layer's tar-split", e)
}

/// Puts a layer's archive together again, as a reader of its exact bytes.
pub(crate) struct Assembler {
    records: Box<dyn BufRead + Send>,
    layer: OwnedFd,
    /// Replacements, and how many payload records precede each.
    replaced: Vec<(Vec<u8>, u64, u64)>,
    seen: u64,
    current: Current,
}

enum Current {
    None,
    Raw(u64),
    File {
        file: File,
        path: Vec<u8>,
        offset: u64,
        left: u64,
    },
}

impl Assembler {
    /// Opens the skeleton in a layer's directory.
    pub(crate) fn open(layer: &Path) -> Result<Self> {
        let mut replaced = Vec::new();
        if layer.join("replaced").exists() {
            let mut records = open_records(layer)?;
            let mut seen = 0;
            while let Some(record) = read_record(&mut records)? {
                match record {
                    Record::Raw(length) => skip(&mut records, length)?,
                    Record::Payload(..) => seen += 1,
                    Record::Replaced(path, n) => replaced.push((path, n, seen)),
                }
            }
        }
        let directory = File::open(layer).map_err(|e| Error::io("cannot open the layer's directory", e))?;
        Ok(Self {
            records: open_records(layer)?,
            layer: directory.into(),
            replaced,
            seen: 0,
            current: Current::None,
        })
    }

    fn open_file(&self, path: &[u8]) -> Result<File> {
        let mut place = [b"diff/", path].concat();
        let by_name = |(name, _, _): &&(Vec<u8>, u64, u64)| {
            path.strip_prefix(&name[..])
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        if let Some((name, n, _)) = self
            .replaced
            .iter()
            .filter(|(_, _, at)| *at > self.seen)
            .find(by_name)
        {
            place = [format!("replaced/{n}").as_bytes(), &path[name.len()..]].concat();
        }
        let resolve = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = loop {
            match rustix::fs::openat2(&self.layer, &place[..], flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => break other,
            }
        };
        fd.map(File::from)
            .map_err(|e| Error::io(format!("cannot open the layer's file {}", show(path)), e))
    }

    fn advance(&mut self) -> Result<bool> {
        loop {
            match read_record(&mut self.records)? {
                None => return Ok(false),
                Some(Record::Raw(0) | Record::Replaced(..)) => {}
                Some(Record::Raw(length)) => {
                    self.current = Current::Raw(length);
                    return Ok(true);
                }
                Some(Record::Payload(path, offset, left)) => {
                    let file = self.open_file(&path)?;
                    self.seen += 1;
                    self.current = Current::File {
                        file,
                        path,
                        offset,
                        left,
                    };
                    return Ok(true);
                }
            }
        }
    }
}

impl Read for Assembler {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.current {
                Current::Raw(left) if *left > 0 => {
                    let max = out.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    let n = self.records.read(&mut out[..max])?;
                    if n == 0 {
                        return Err(damaged().into());
                    }
                    *left -= n as u64;
                    return Ok(n);
                }
                Current::File {
                    file,
                    path,
                    offset,
                    left,
                } if *left > 0 => {
                    let max = out.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    let n = file.read_at(&mut out[..max], *offset)?;
                    if n == 0 {
                        return Err(Error::invalid(format!(
                            "the layer's file {} is shorter than it was",
                            show(path)
                        ))
                        .into());
                    }
                    *offset += n as u64;
                    *left -= n as u64;
                    return Ok(n);
                }
                _ => {
                    if !self.advance()? {
                        return Ok(0);
                    }
                }
            }
        }
    }
}

enum Record {
    Raw(u64),
    Payload(Vec<u8>, u64, u64),
    Replaced(Vec<u8>, u64),
}

fn damaged() -> Error {
    Error::invalid("the layer's tar-split is damaged; remove the image and load it again")
}

fn open_records(layer: &Path) -> Result<Box<dyn BufRead + Send>> {
    let file =
        File::open(layer.join("tar-split")).map_err(|e| Error::io("cannot open the layer's tar-split", e))?;
    let decoder = zstd::Decoder::new(file).map_err(|e| Error::io("cannot set up zstd", e))?;
    let mut records = BufReader::with_capacity(128 << 10, decoder);
    let mut magic = [0; 8];
    records.read_exact(&mut magic).map_err(|_| damaged())?;
    if magic != *MAGIC {
        return Err(damaged());
    }
    Ok(Box::new(records))
}

fn read_record(input: &mut impl BufRead) -> Result<Option<Record>> {
    let mut tag = [0];
    if input.read(&mut tag).map_err(|_| damaged())? == 0 {
        return Ok(None);
    }
    if tag[0] == RAW {
        return read_number(input).map(|n| Some(Record::Raw(n)));
    }
    let length = read_number(input)?;
    if length > MAX_PATH {
        return Err(damaged());
    }
    let mut path = vec![0; length as usize];
    input.read_exact(&mut path).map_err(|_| damaged())?;
    match tag[0] {
        PAYLOAD => Ok(Some(Record::Payload(
            path,
            read_number(input)?,
            read_number(input)?,
        ))),
        REPLACED => Ok(Some(Record::Replaced(path, read_number(input)?))),
        _ => Err(damaged()),
    }
}

fn skip(input: &mut impl BufRead, length: u64) -> Result<()> {
    let copied = io::copy(&mut input.take(length), &mut io::sink()).map_err(|_| damaged())?;
    if copied == length { Ok(()) } else { Err(damaged()) }
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn read_number(input: &mut impl Read) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        input.read_exact(&mut byte).map_err(|_| damaged())?;
        let bits = u64::from(byte[0] & 0x7f);
        if bits << shift >> shift != bits {
            break;
        }
        value |= bits << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(damaged())
}

/// Opens a directory for the extractor.
pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| Error::io(format!("cannot open {}", path.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_round_trip(value: u64) {
            let mut out = Vec::new();
            number(&mut out, value);
            prop_assert_eq!(read_number(&mut &out[..]).unwrap(), value);
        }

        #[test]
        fn records_never_panic(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut input = &data[..];
            while let Ok(Some(Record::Payload(..) | Record::Replaced(..))) = read_record(&mut input) {}
        }
    }
}
